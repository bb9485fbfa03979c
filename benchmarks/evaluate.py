"""Encoding sentences beside sentence-transformers, in turn.

    python -m benchmarks.evaluate                            # 500 sentences, fp32 and bf16
    python -m benchmarks.evaluate --sentences 20000 --dtypes float32 --repeats 1
    python -m benchmarks.evaluate --languages de             # one language: less padding for theirs

Real sentences in ten languages (`examples/data`), weights of the same random model, mean pooling.
What stands beside ours:

- `st cut to the layer`: sentence-transformers on the model without its upper layers. Its vectors are ours,
  which is checked, so this compares how they are computed and nothing else.
- `st all layers`: the model whole, as users meet it; its vectors are those of the last layer.
- `st cut, bf16 weights`: in bf16 the others run under autocast as ours does; here the weights are bf16.
"""

import argparse
import importlib.util
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from benchmarks.measure import DEVICE, DTYPES, make_parser, measured_peak, run_benchmark, run_in_turn
from benchmarks.workload import GEOMETRIES, shape
from modeling_infoxlm import InfoXLMConfig, InfoXLMForPreTraining
from modeling_infoxlm.data.readers import read_rows
from modeling_infoxlm.data.sources import parse_bitext_sources
from modeling_infoxlm.data.train_tokenizer import train_tokenizer
from modeling_infoxlm.evaluation.encoding import encode_texts
from modeling_infoxlm.hub.formats import save_as_xlm_roberta
from modeling_infoxlm.objectives import encoder_flops

EXAMPLES = Path(__file__).parents[1] / "examples" / "data"
LANGUAGES = ("de", "el", "en", "es", "fr", "hi", "ru", "tr", "vi", "zh")
MISSING = (
    "sentence-transformers is not installed (pip install -c constraints.txt '.[st]'): ours alone is measured."
)
JUDGED = "st cut to the layer"
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # of the difference of vectors, relative to their norm
ST_BATCH = 32  # sentences; their default

Encoder = Callable[[list[str]], Tensor]


@dataclass(frozen=True)
class Sentences:
    """Sentences, and a model with a tokenizer, which also lie in `folder` as a plain XLM-R."""

    texts: list[str]
    lengths: np.ndarray
    model: InfoXLMForPreTraining
    tokenizer: PreTrainedTokenizerBase
    folder: Path

    @classmethod
    def make(cls, folder: Path, geometry: str, languages: Sequence[str], count: int) -> "Sentences":
        """Train a tokenizer, draw a model, and choose sentences, again and again if there are fewer."""
        sources = parse_bitext_sources([str(EXAMPLES)])
        tokenizer = train_tokenizer(sources, folder / "tokenizer", vocab_size=16_000, max_sentences=20_000)
        texts = example_texts(languages)
        texts = (texts * (count // len(texts) + 1))[:count]
        torch.manual_seed(0)
        layer = max(1, round(7 * GEOMETRIES[geometry][0] / 12))  # the paper's layer for retrieval, 7 of 12
        sizes: dict[str, Any] = {**shape(geometry), "vocab_size": len(tokenizer), "xlco_layer": layer}
        model = InfoXLMForPreTraining(InfoXLMConfig(max_position_embeddings=514, **sizes)).eval()
        save_as_xlm_roberta(model, folder / "plain", tokenizer=tokenizer)
        lengths = np.array([len(ids) for ids in tokenizer(texts)["input_ids"]])
        return cls(texts, lengths, model, tokenizer, folder / "plain")

    @property
    def layer(self) -> int:
        """Layer of the vectors."""
        return self.model.config.resolved_xlco_layer()

    def encode(self, texts: list[str], *, layer: int, bf16: bool = False) -> Tensor:
        """Our vectors (N, D)."""
        how: dict[str, Any] = {"layer": layer, "pooling": "mean", "bf16": bf16, "progress": False}
        return encode_texts(self.model.roberta, self.tokenizer, texts, **how)


def example_texts(languages: Sequence[str]) -> list[str]:
    """All different sentences of the examples in these languages, in random order."""
    found: dict[str, None] = {}
    for source in parse_bitext_sources([str(EXAMPLES)]):
        chosen = [side for side, language in enumerate(source.languages) if language in languages]
        found.update((pair[side], None) for pair in read_rows(source) for side in chosen)
    texts = list(found)
    random.Random(0).shuffle(texts)
    return texts


def padded_share(texts: Sequence[str], lengths: np.ndarray) -> float:
    """Tokens that sentence-transformers computes for one real token: it sorts by characters, then pads."""
    order = np.argsort([-len(text) for text in texts], kind="stable")
    batches = (lengths[order[i : i + ST_BATCH]] for i in range(0, len(order), ST_BATCH))
    return float(sum(len(batch) * batch.max() for batch in batches) / lengths.sum())


class SentenceTransformers:
    """Their `encode` on a plain XLM-R folder, mean pooling, with the first layers and weights of a type."""

    def __init__(self, folder: Path, layers: int, weights: torch.dtype = torch.float32) -> None:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer import modules

        how: dict[str, Any] = {"model_kwargs": {"dtype": weights}, "max_seq_length": 512}
        module = modules.Transformer(str(folder), config_kwargs={"num_hidden_layers": layers}, **how)
        pooling = modules.Pooling(module.get_embedding_dimension(), pooling_mode="mean")
        self._model = SentenceTransformer(modules=[module, pooling])

    def encode(self, texts: list[str]) -> Tensor:
        """Vectors (N, D)."""
        how: dict[str, Any] = {"batch_size": ST_BATCH, "convert_to_tensor": True, "show_progress_bar": False}
        return self._model.encode(texts, **how).float()


def alternatives(sentences: Sentences, dtype: str) -> dict[str, Encoder]:
    """Everything that can encode the sentences, ours first."""
    bf16, folder, layer = dtype == "bfloat16", sentences.folder, sentences.layer
    found: dict[str, Encoder] = {"ours": partial(sentences.encode, layer=layer, bf16=bf16)}
    if importlib.util.find_spec("sentence_transformers") is not None:
        whole = sentences.model.config.num_hidden_layers
        autocast = torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16)
        found[JUDGED] = autocast(SentenceTransformers(folder, layer).encode)
        found["st all layers"] = autocast(SentenceTransformers(folder, whole).encode)
        if bf16:
            found["st cut, bf16 weights"] = SentenceTransformers(folder, layer, torch.bfloat16).encode
    return found


def measure_encoding(sentences: Sentences, dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    """Encode all sentences by each alternative in turn.

    Raises:
        RuntimeError: If the vectors of `st cut to the layer` are not ours.
    """
    vectors: dict[str, Tensor] = {}
    encoders = alternatives(sentences, dtype)

    def keep(name: str) -> None:
        vectors[name] = encoders[name](sentences.texts)

    for encode in encoders.values():
        encode(sentences.texts[:64])  # a whole round of warm-up would double the time
    runs = {name: partial(keep, name) for name in encoders}
    samples = run_in_turn(runs, repeats=options.repeats, warmup=0)
    config, lengths, peak = sentences.model.config, sentences.lengths, measured_peak(dtype)
    work = int(lengths.sum()), encoder_flops(config, lengths.tolist(), sentences.layer)  # without padding
    medians = {name: side.median for name, side in samples.items()}
    return {
        "dtype": dtype,
        "sentences": len(sentences.texts),
        "tokens": work[0],
        "layer": sentences.layer,
        "layers_of_the_model": config.num_hidden_layers,
        "tokens_st_computes_per_real_token": padded_share(sentences.texts, lengths),
        "matmul_peak": peak,
        "sides": {
            name: {
                **side.summary(),
                "tokens_per_second": work[0] / side.median,
                "share_of_peak": work[1] / side.median / peak,
            }
            for name, side in samples.items()
        },
        "judged": JUDGED,
        "ratios": {name: value / medians["ours"] for name, value in medians.items() if name != "ours"},
        "differences": differences(vectors, dtype),
    }


def differences(vectors: Mapping[str, Tensor], dtype: str) -> dict[str, float]:
    """Largest difference of any vector from ours, relative to its norm.

    Raises:
        RuntimeError: If it is too large for vectors that should be the same.
    """
    ours, found = vectors["ours"].cpu(), {}
    for name in (name for name in vectors if name.startswith("st cut")):
        found[name] = float(((vectors[name].cpu() - ours).norm(dim=1) / ours.norm(dim=1)).max())
    for name, difference in found.items():
        if not difference <= TOLERANCE[dtype]:
            raise RuntimeError(f"vectors of {name!r} differ from ours by {difference:.2g} of their norm.")
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure each type of products."""
    result: dict[str, Any] = {}
    if importlib.util.find_spec("sentence_transformers") is None:
        result["missing"] = MISSING
    with tempfile.TemporaryDirectory() as folder:
        sentences = Sentences.make(Path(folder), options.geometry, options.languages, options.sentences)
        result["encoding"] = [measure_encoding(sentences, dtype, options) for dtype in options.dtypes]
    return result


def show(console: Console, result: Mapping[str, Any]) -> None:
    """Print what was measured."""
    if "missing" in result:
        console.print(result["missing"], style="bold red")
    for found in result["encoding"]:
        show_encoding(console, found)


def show_encoding(console: Console, result: Mapping[str, Any]) -> None:
    """Print one type's table."""
    title = f"encoding {result['sentences']:,} sentences ({result['tokens']:,} tokens), {result['dtype']}"
    columns = ("", "seconds", "samples", "tokens/s", "of the peak", "to ours")
    table = Table(*columns, title=title, title_justify="left")
    for name, side in result["sides"].items():
        table.add_row(
            name + (" (judged)" if name == JUDGED else ""),
            f"{side['median_s']:.2f}",
            " ".join(f"{value:.2f}" for value in side["samples_s"]),
            f"{side['tokens_per_second']:,.0f}",
            f"{side['share_of_peak']:.0%}",
            f"{result['ratios'][name]:.2f}x" if name in result["ratios"] else "",
        )
    console.print(table)
    differ = ", ".join(f"{value:.1e} ({name})" for name, value in result["differences"].items())
    console.print(
        f"layer {result['layer']} of {result['layers_of_the_model']}; padded batches of {ST_BATCH} have "
        f"{result['tokens_st_computes_per_real_token']:.2f} tokens for each real one; peak "
        f"{result['matmul_peak'] / 1e12:.3f} TFLOP/s; vectors differ by {differ or '-'}"
    )


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags of this program."""
    parser = make_parser(__doc__)
    parser.add_argument("--sentences", type=int, default=500, help="sentences to encode")
    parser.add_argument("--languages", nargs="+", choices=LANGUAGES, default=LANGUAGES)
    parser.add_argument("--geometry", choices=GEOMETRIES, default="base")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=tuple(DTYPES))
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_benchmark(parse_arguments(), measure, show)
