"""Encoding sentences beside sentence-transformers, and retrieval beside one large product, in turn.

    python -m benchmarks.evaluate                            # 500 sentences, fp32 and bf16
    python -m benchmarks.evaluate --sentences 20000 --dtypes float32 --repeats 1 --parts encoding
    python -m benchmarks.evaluate --languages de             # one language: less padding for theirs
    python -m benchmarks.evaluate --with_defaults            # theirs also with torch's own settings
    python -m benchmarks.evaluate --parts retrieval --pairs 10000 20000 40000

Encoding: real sentences in ten languages (`examples/data`), weights of the same random model, mean pooling.
What stands beside ours:

- `st cut to the layer`: sentence-transformers on the model without its upper layers. Its vectors are ours,
  which is checked, so this compares how they are computed and nothing else.
- `st all layers`: the model whole, as users meet it; its vectors are those of the last layer.
- `st cut, bf16 weights`: in bf16 the others run under autocast as ours does; here the weights are bf16.
- `st cut, torch's defaults`: in its own process, without the settings of `configure_process`, which all
  others have.
"""

import argparse
import contextlib
import ctypes
import functools
import importlib.util
import multiprocessing
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from benchmarks.measure import Samples, make_console, run_in_turn, write_result
from benchmarks.step import DTYPES, GEOMETRIES
from modeling_infoxlm import InfoXLMConfig, InfoXLMForPreTraining
from modeling_infoxlm.data.readers import read_pairs
from modeling_infoxlm.data.sources import parse_bitext_sources
from modeling_infoxlm.data.train_tokenizer import train_tokenizer
from modeling_infoxlm.evaluation.encoding import encode_texts
from modeling_infoxlm.evaluation.retrieval.mining import nearest_neighbours, retrieval_accuracy
from modeling_infoxlm.hub.formats import save_as_xlm_roberta
from modeling_infoxlm.runs.process import configure_process
from modeling_infoxlm.training.throughput import matmul_peak

EXAMPLES = Path(__file__).parents[1] / "examples" / "data"
LANGUAGES = ("de", "el", "en", "es", "fr", "hi", "ru", "tr", "vi", "zh")
MISSING = (
    "sentence-transformers is not installed (pip install -c constraints.txt '.[st]'): ours alone is measured."
)
JUDGED = "st cut to the layer"
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # of the difference of vectors, relative to their norm
ST_BATCH = 32  # sentences; their default
_M_MMAP_THRESHOLD = -3  # glibc's malloc.h


# --- what is encoded ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Workload:
    """Sentences, and a model with a tokenizer, which also lie in `folder` as a plain XLM-R."""

    texts: list[str]
    lengths: np.ndarray
    model: InfoXLMForPreTraining
    tokenizer: PreTrainedTokenizerBase
    folder: Path

    @property
    def layer(self) -> int:
        """Layer of the vectors."""
        return self.model.config.resolved_xlco_layer()

    @property
    def flops(self) -> float:
        """Operations of encoding every sentence up to the layer, without padding."""
        config = self.model.config
        width = config.hidden_size
        per_token = 2 * (4 * width**2 + 2 * width * config.intermediate_size)
        attention = 4 * width * float((self.lengths**2).sum())
        return self.layer * (per_token * float(self.lengths.sum()) + attention)


def make_workload(folder: Path, geometry: str, languages: Sequence[str], sentences: int) -> Workload:
    """Train a tokenizer, draw a model, and choose sentences.

    Args:
        folder: Where the XLM-R folder is written.
        geometry: One of `GEOMETRIES`.
        languages: Languages of the sentences.
        sentences: How many; when the examples have fewer, they are taken again.
    """
    sources = parse_bitext_sources([str(EXAMPLES)])
    tokenizer = train_tokenizer(sources, folder / "tokenizer", vocab_size=16_000, max_sentences=20_000)
    texts = example_texts(languages)
    texts = (texts * (sentences // len(texts) + 1))[:sentences]
    layers, hidden, heads, intermediate = GEOMETRIES[geometry]
    torch.manual_seed(0)
    config = InfoXLMConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=514,
        pad_token_id=1,
        xlco_layer=max(1, round(7 * layers / 12)),  # the paper's layer for retrieval, 7 of 12
    )
    model = InfoXLMForPreTraining(config).eval()
    save_as_xlm_roberta(model, folder / "plain", tokenizer=tokenizer)
    lengths = np.array([len(ids) for ids in tokenizer(texts)["input_ids"]])
    return Workload(texts, lengths, model, tokenizer, folder / "plain")


def example_texts(languages: Sequence[str]) -> list[str]:
    """All different sentences of the examples in these languages, in random order."""
    found: dict[str, None] = {}
    for source in parse_bitext_sources([str(EXAMPLES)]):
        chosen = [side for side, language in enumerate(source.languages) if language in languages]
        found.update((pair[side], None) for pair in read_pairs(source) for side in chosen)
    texts = list(found)
    random.Random(0).shuffle(texts)
    return texts


def padded_share(texts: Sequence[str], lengths: np.ndarray) -> float:
    """Tokens that sentence-transformers computes for one real token: it sorts by characters, then pads."""
    order = np.argsort([-len(text) for text in texts], kind="stable")
    batches = (lengths[order[i : i + ST_BATCH]] for i in range(0, len(order), ST_BATCH))
    return float(sum(len(batch) * batch.max() for batch in batches) / lengths.sum())


# --- encoding -----------------------------------------------------------------------------------------------


class SentenceTransformers:
    """Their `encode` on the plain XLM-R folder, mean pooling.

    Args:
        folder: XLM-R folder.
        layers: How many of its layers are kept.
        weights: Type of the weights.
    """

    def __init__(self, folder: Path, layers: int, weights: torch.dtype = torch.float32) -> None:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer import modules

        transformer = modules.Transformer(
            str(folder),
            model_kwargs={"dtype": weights},
            config_kwargs={"num_hidden_layers": layers},
            max_seq_length=512,
        )
        pooling = modules.Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
        self._model = SentenceTransformer(modules=[transformer, pooling])

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Vectors (N, D)."""
        vectors: Tensor = self._model.encode(
            list(texts), batch_size=ST_BATCH, convert_to_tensor=True, show_progress_bar=False
        )
        return vectors.float()


class WithDefaults:
    """`SentenceTransformers` in a process of its own, where torch and the allocator are as they come."""

    def __init__(self, folder: Path, layers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, folder, layers), daemon=True)
        self._process.start()

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Vectors (N, D); this process waits meanwhile."""
        self._pipe.send(list(texts))
        return torch.from_numpy(self._pipe.recv())

    def close(self) -> None:
        """End the process."""
        self._pipe.send(None)
        self._process.join()


def _serve(pipe: Any, folder: Path, layers: int) -> None:
    quiet()
    model = SentenceTransformers(folder, layers)
    while (texts := pipe.recv()) is not None:
        pipe.send(model.encode(texts).numpy())


Encoder = Callable[[Sequence[str]], Tensor]


@contextlib.contextmanager
def alternatives(workload: Workload, dtype: str, *, with_defaults: bool) -> Iterator[dict[str, Encoder]]:
    """Everything that can encode the sentences, ours first."""
    bf16, folder, layer = dtype == "bfloat16", workload.folder, workload.layer

    def ours(texts: Sequence[str]) -> Tensor:
        return encode_texts(
            workload.model.roberta,
            workload.tokenizer,
            texts,
            layer=layer,
            pooling="mean",
            bf16=bf16,
            progress=False,
        )

    found: dict[str, Encoder] = {"ours": ours}
    with contextlib.ExitStack() as stack:
        if importlib.util.find_spec("sentence_transformers") is not None:
            whole = workload.model.config.num_hidden_layers
            found[JUDGED] = _autocast(SentenceTransformers(folder, layer).encode, bf16)
            found["st all layers"] = _autocast(SentenceTransformers(folder, whole).encode, bf16)
            if bf16:
                found["st cut, bf16 weights"] = SentenceTransformers(folder, layer, torch.bfloat16).encode
            elif with_defaults:
                defaults = WithDefaults(folder, layer)
                stack.callback(defaults.close)
                found["st cut, torch's defaults"] = defaults.encode
        yield found


def _autocast(encode: Encoder, enabled: bool) -> Encoder:
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def run(texts: Sequence[str]) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=enabled):
            return encode(texts)

    return run


def measure_encoding(workload: Workload, dtype: str, *, repeats: int, with_defaults: bool) -> dict[str, Any]:
    """Encode all sentences by each alternative in turn.

    Raises:
        RuntimeError: If the vectors of `st cut to the layer` are not ours.
    """
    vectors: dict[str, Tensor] = {}

    def kept(name: str, encode: Encoder) -> Callable[[], None]:
        return lambda: vectors.__setitem__(name, encode(workload.texts))

    with alternatives(workload, dtype, with_defaults=with_defaults) as encoders:
        for encode in encoders.values():
            encode(workload.texts[:64])  # a whole round of warm-up would double the time
        samples = run_in_turn(
            {name: kept(name, encode) for name, encode in encoders.items()}, repeats=repeats, warmup=0
        )
    return {**_summarise(workload, dtype, samples), "differences": differences(vectors, dtype)}


def differences(vectors: Mapping[str, Tensor], dtype: str) -> dict[str, float]:
    """Largest difference of any vector from ours, relative to its norm.

    Raises:
        RuntimeError: If it is too large for vectors that should be the same.
    """
    ours = vectors["ours"].cpu()
    found = {
        name: float(((other.cpu() - ours).norm(dim=1) / ours.norm(dim=1)).max())
        for name, other in vectors.items()
        if name.startswith("st cut")
    }
    for name, difference in found.items():
        if not difference <= TOLERANCE[dtype]:
            raise RuntimeError(f"vectors of {name!r} differ from ours by {difference:.2g} of their norm.")
    return found


def _summarise(workload: Workload, dtype: str, samples: Mapping[str, Samples]) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak = matmul_peak(device, DTYPES[dtype] or torch.float32, seconds=2.0)
    tokens, ours = int(workload.lengths.sum()), samples["ours"].median
    return {
        "dtype": dtype,
        "sentences": len(workload.texts),
        "tokens": tokens,
        "layer": workload.layer,
        "layers_of_the_model": workload.model.config.num_hidden_layers,
        "tokens_st_computes_per_real_token": padded_share(workload.texts, workload.lengths),
        "matmul_peak": peak,
        "sides": {
            name: {
                **side.summary(),
                "tokens_per_second": tokens / side.median,
                "share_of_peak": workload.flops / side.median / peak,
            }
            for name, side in samples.items()
        },
        "judged": JUDGED,
        "ratios": {name: side.median / ours for name, side in samples.items() if name != "ours"},
    }


# --- retrieval ----------------------------------------------------------------------------------------------


def plain_accuracy(source: Tensor, target: Tensor) -> float:
    """Mean top-1 accuracy of both directions from one whole matrix of scores."""
    scores = F.normalize(source, dim=-1) @ F.normalize(target, dim=-1).t()
    expected = torch.arange(len(source))
    found = [matrix.topk(1, dim=1).indices[:, 0] for matrix in (scores, scores.t())]
    return float(np.mean([(index == expected).float().mean().item() for index in found]))


RETRIEVAL: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "ours, both directions": lambda source, target: retrieval_accuracy(source, target).mean,
    "plain, both directions": plain_accuracy,
    "ours, nearest neighbours": nearest_neighbours,
}


def noisy_pairs(count: int, width: int = 768) -> tuple[Tensor, Tensor]:
    """Vectors (count, width) and what is left of them under so much noise that most are found again."""
    generator = torch.Generator().manual_seed(count)
    source = torch.randn(count, width, generator=generator)
    return source, source + 5 * torch.randn(count, width, generator=generator)


def measure_retrieval(sizes: Sequence[int], *, repeats: int) -> dict[str, Any]:
    """Seconds and memory of each alternative for each number of pairs, and the exponents of their growth.

    Raises:
        RuntimeError: If both ways do not find the same accuracy.
    """
    rows = [_retrieval_row(size, repeats) for size in sizes]
    memory = in_fresh_process(_retrieval_memory, tuple(sizes))
    exponents = {
        name: {
            "seconds": fitted_exponent(sizes, [row[name]["median_s"] for row in rows]),
            "memory": fitted_exponent(sizes, memory[name]),
        }
        for name in RETRIEVAL
    }
    return {"rows": rows, "memory_mib": memory, "exponents": exponents}


def _retrieval_row(size: int, repeats: int) -> dict[str, Any]:
    source, target = noisy_pairs(size)
    ours, plain = retrieval_accuracy(source, target).mean, plain_accuracy(source, target)
    if abs(ours - plain) > 1.5 / size:  # one sentence may be a tie that rounding decides
        raise RuntimeError(f"{size} pairs: our accuracy is {ours}, that of the whole matrix is {plain}.")
    runs = {name: functools.partial(search, source, target) for name, search in RETRIEVAL.items()}
    samples = run_in_turn(runs, repeats=repeats)
    return {"pairs": size, "accuracy": ours, **{name: side.summary() for name, side in samples.items()}}


def fitted_exponent(sizes: Sequence[int], values: Sequence[float]) -> float | None:
    """Exponent b of values = a x sizes^b; None if a value is 0 or unknown, or there are fewer than two."""
    if len(sizes) < 2 or not all(value > 0 for value in values):
        return None
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


# --- memory -------------------------------------------------------------------------------------------------


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it in a process that gives all memory back at once, so that peaks can be told apart."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=_give_memory_back) as pool:
        return pool.submit(function, *arguments).result()


def _give_memory_back() -> None:
    """Let glibc map each block above 64 KiB by itself; else a peak hides in what an earlier one left."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 65536)


def peak_rise(run: Callable[[], Any]) -> float:
    """MiB by which the resident memory rose while it ran; NaN where the system (not Linux) cannot say."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return float("nan")
    reset.write_text("5")  # the high-water mark falls to the present size
    before = _high_water(status)
    run()
    return (_high_water(status) - before) / 1024


def _high_water(status: Path) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1])  # KiB


def _retrieval_memory(sizes: Sequence[int]) -> dict[str, list[float]]:
    pairs = noisy_pairs(64)
    for search in RETRIEVAL.values():
        search(*pairs)  # threads and kernels take memory once
    return {
        name: [peak_rise(functools.partial(search, *noisy_pairs(size))) for size in sizes]
        for name, search in RETRIEVAL.items()
    }


def measure_encoding_memory(sizes: Sequence[int], geometry: str) -> dict[str, Any]:
    """Peak memory of encoding ever more sentences, and how much the result takes; no layer runs, for time."""
    width = GEOMETRIES[geometry][1]
    return {
        "sentences": list(sizes),
        "peak_mib": [in_fresh_process(_encoding_memory, size, geometry) for size in sizes],
        "result_mib": [size * width * 4 / 2**20 for size in sizes],
    }


def _encoding_memory(size: int, geometry: str) -> float:
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        workload = make_workload(Path(folder), geometry, LANGUAGES, size)

    def encode(texts: Sequence[str]) -> Tensor:
        return encode_texts(workload.model.roberta, workload.tokenizer, texts, layer=0, progress=False)

    encode(workload.texts[:500])  # threads and kernels take memory once
    return peak_rise(functools.partial(encode, workload.texts))


# --- program ------------------------------------------------------------------------------------------------


def print_encoding(console: Console, result: Mapping[str, Any]) -> None:
    """Print one type's table."""
    title = f"encoding {result['sentences']:,} sentences ({result['tokens']:,} tokens), {result['dtype']}"
    table = Table(
        "", "seconds", "samples", "tokens/s", "of the peak", "to ours", title=title, title_justify="left"
    )
    for name, side in result["sides"].items():
        ratio = result["ratios"].get(name)
        table.add_row(
            name + (" (judged)" if name == JUDGED else ""),
            f"{side['median_s']:.2f}",
            " ".join(f"{value:.2f}" for value in side["samples_s"]),
            f"{side['tokens_per_second']:,.0f}",
            f"{side['share_of_peak']:.0%}",
            "" if ratio is None else f"{ratio:.2f}x",
        )
    console.print(table)
    console.print(
        f"layer {result['layer']} of {result['layers_of_the_model']}; padded batches of {ST_BATCH} have "
        f"{result['tokens_st_computes_per_real_token']:.2f} tokens for each real one; peak "
        f"{result['matmul_peak'] / 1e12:.3f} TFLOP/s; vectors differ by "
        + (", ".join(f"{value:.1e} ({name})" for name, value in result["differences"].items()) or "-")
    )


def print_retrieval(console: Console, result: Mapping[str, Any]) -> None:
    """Print seconds and memory by number of pairs."""
    table = Table(
        "pairs", *(f"{name}: s / MiB" for name in RETRIEVAL), title="retrieval", title_justify="left"
    )
    for i, row in enumerate(result["rows"]):
        cells = [f"{row[name]['median_s']:.3f} / {result['memory_mib'][name][i]:.0f}" for name in RETRIEVAL]
        table.add_row(f"{row['pairs']:,}", *cells)
    exponents = [result["exponents"][name] for name in RETRIEVAL]
    table.add_section()
    table.add_row("exponent", *(f"{_number(one['seconds'])} / {_number(one['memory'])}" for one in exponents))
    console.print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def quiet() -> None:
    """Without transformers' reports and bars."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def measure(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure what was asked for and print it."""
    result: dict[str, Any] = {}
    if "encoding" in options.parts:
        result |= _encoding(options, console)
    if "memory" in options.parts:
        result["encoding_memory"] = measure_encoding_memory(options.memory_sentences, options.geometry)
        rows = zip(*result["encoding_memory"].values(), strict=True)
        listed = ", ".join(f"{size:,}: {peak:.0f} / {vectors:.0f}" for size, peak, vectors in rows)
        console.print(f"encoding, number of sentences: peak / result itself, MiB: {listed}")
    if "retrieval" in options.parts:
        result["retrieval"] = measure_retrieval(options.pairs, repeats=options.repeats)
        print_retrieval(console, result["retrieval"])
    return result


def _encoding(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    result: dict[str, Any] = {"encoding": []}
    if importlib.util.find_spec("sentence_transformers") is None:
        result["missing"] = MISSING
        console.print(MISSING, style="bold red")
    with tempfile.TemporaryDirectory() as folder:
        workload = make_workload(Path(folder), options.geometry, options.languages, options.sentences)
        for dtype in options.dtypes:
            found = measure_encoding(
                workload, dtype, repeats=options.repeats, with_defaults=options.with_defaults
            )
            print_encoding(console, found)
            result["encoding"].append(found)
    return result


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags of this program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ("encoding", "memory", "retrieval")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--sentences", type=int, default=500, help="sentences to encode")
    parser.add_argument("--languages", nargs="+", choices=LANGUAGES, default=LANGUAGES)
    parser.add_argument("--geometry", choices=GEOMETRIES, default="base")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=tuple(DTYPES))
    parser.add_argument(
        "--with_defaults", action="store_true", help="theirs in fp32 with torch's defaults too"
    )
    parser.add_argument("--memory_sentences", nargs="+", type=int, default=(10_000, 20_000, 40_000))
    parser.add_argument("--pairs", nargs="+", type=int, default=(1000, 2000, 4000, 8000))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="result file, JSON")
    return parser.parse_args(argv)


def main() -> None:
    """Run what the flags ask for, print it and write it."""
    options = parse_arguments()
    configure_process()
    quiet()
    console = make_console()
    write_result(options.output, measure(options, console), console)


if __name__ == "__main__":
    main()
