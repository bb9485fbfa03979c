"""`make demo`: a small encoder learns in minutes which sentences are translations, and shows it.

    python -m modeling_infoxlm.demo [--output_dir demo_output] [--compare] [--fresh] [--config RECIPE]

Every stage goes the way of a user with text of their own, and the recipe says what is trained. Whatever is
printed stands in `<output_dir>/results.json` too. Run again, it goes on where it stopped.
"""

import argparse
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TimeElapsedColumn,
    TimeRemainingColumn,
    track,
)
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from modeling_infoxlm import plots
from modeling_infoxlm.data.shards import Corpus, SpecialTokens
from modeling_infoxlm.evaluation.encoding import encode_sequences
from modeling_infoxlm.evaluation.retrieval.mining import RetrievalAccuracy, retrieval_accuracy
from modeling_infoxlm.hub.formats import save_as_xlm_roberta
from modeling_infoxlm.modeling_infoxlm import InfoXLMForPreTraining
from modeling_infoxlm.runs.config_file import parse_args_with_config
from modeling_infoxlm.runs.errors import Interrupted
from modeling_infoxlm.runs.files import file_sha256, write_json
from modeling_infoxlm.runs.process import INTERRUPTED, configure_process, run_main
from modeling_infoxlm.runs.provenance import describe_program
from modeling_infoxlm.training.arguments import (
    ContrastArguments,
    DataArguments,
    ModelArguments,
    PretrainingArguments,
)
from modeling_infoxlm.training.corpus_setup import find_tokenizer, open_or_prepare
from modeling_infoxlm.training.model_setup import build_model, evaluation_vectors

REPOSITORY = Path(__file__).resolve().parents[1]
EXAMPLES = REPOSITORY / "examples" / "data"
RECIPE = REPOSITORY / "recipes" / "demo.yaml"
MADE_BY = "modeling_infoxlm.demo"
RESULTS_NAME = "results.json"
TABLE_NAME = "results.md"
# All that the demo writes; --fresh removes these and nothing else.
OUTPUT_NAMES = ("tokenizer", "data", "run", "run_mlm_tlm", "figures", "xlm-roberta", RESULTS_NAME, TABLE_NAME)
UNTRAINED, TRAINED, WITHOUT_CONTRAST = plots.UNTRAINED, "trained", "MLM+TLM only"
SIMILARITY_SENTENCES = 40
MAP_SENTENCES = 30
# Of one number of a sentence vector in fp32, computed over packed and over padded rows.
LARGEST_DIFFERENCE = 1e-4

_BAR_COLUMNS = (
    *("    training", BarColumn(), MofNCompleteColumn(), "steps"),
    *(TimeElapsedColumn(), "elapsed", TimeRemainingColumn(), "left"),
)

# For a Python that knows nothing of this package: reads sentences, writes their vectors.
_PLAIN_TRANSFORMERS = """
import json, sys
import numpy, torch
from transformers import AutoModel, AutoTokenizer
folder, texts, vectors, layer, pooling = sys.argv[1:]
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
inputs = tokenizer(json.load(open(texts, encoding="utf-8")), padding=True, return_tensors="pt")
with torch.no_grad():
    hidden = model(**inputs, output_hidden_states=True).hidden_states[int(layer)]
mask = inputs["attention_mask"].unsqueeze(-1)
numpy.save(vectors, hidden[:, 0] if pooling == "cls" else (hidden * mask).sum(1) / mask.sum(1))
if "modeling_infoxlm" in sys.modules:
    sys.exit("the plain export was loaded by the code of modeling_infoxlm")
"""


def main(argv: list[str] | None = None) -> int:
    """Run the demo; see `run_main` for the exit codes."""
    return run_main(run_demo, sys.argv[1:] if argv is None else argv)


def run_demo(argv: list[str]) -> None:
    """Run all stages and print the last screen.

    Raises:
        ValueError: If the output folder holds something else, or a stage does not give what it should.
    """
    options = _parse_options(argv)
    _keep_calm()
    configure_process()
    setup = DemoSetup.from_recipe(options.config, options.output_dir)
    results = open_results(setup, argv=argv, fresh=options.fresh)
    console = Console(highlight=False)
    stages = Stages(console, results, setup.root / RESULTS_NAME, count=8 if options.compare else 7)

    tokenizer = learn_tokenizer(setup, stages)
    corpus = prepare_data(setup, stages, tokenizer)
    heldout = collect_heldout(corpus, max_pairs=setup.args.eval_max_pairs)
    start = build_model(setup.model_args, setup.contrast_args, tokenizer, seed=setup.args.seed)
    results["run"] = describe_run(setup, start, corpus, heldout)
    vectors = measure(stages, "retrieval, untrained", {UNTRAINED: start}, corpus.special, heldout)

    folders = {TRAINED: setup.root / "run"}
    pretrain(setup, stages, "pre-training", folders[TRAINED])
    if options.compare:
        folders[WITHOUT_CONTRAST] = setup.root / "run_mlm_tlm"
        flags = ["--objectives", "mlm,tlm"]
        pretrain(setup, stages, "pre-training without the contrast", folders[WITHOUT_CONTRAST], flags)
    models = {label: _load(folder) for label, folder in folders.items()}
    vectors |= measure(stages, "retrieval, trained", models, corpus.special, heldout)
    draw_figures(stages, setup.root / "figures", folders, vectors, heldout)
    export(stages, setup.root / "xlm-roberta", models[TRAINED], tokenizer, corpus)
    (setup.root / TABLE_NAME).write_text(markdown_table(results), encoding="utf-8")
    print_last_screen(results, console)


# --------------------------------------------------------------------------------------------------- set-up


def _parse_options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m {MADE_BY}",
        description="Pre-train a small encoder on real sentence pairs and show what it learnt.",
        allow_abbrev=False,
    )
    parser.add_argument("--output_dir", type=Path, default=Path("demo_output"), help="folder for all results")
    parser.add_argument("--compare", action="store_true", help="also train without the contrast, as long")
    parser.add_argument("--fresh", action="store_true", help="start over instead of going on")
    parser.add_argument("--config", type=Path, default=RECIPE, help="recipe of the pre-training")
    return parser.parse_args(argv)


def _keep_calm() -> None:
    """Keep notes and bars of libraries off the screen; warnings of our own stay."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger().setLevel(logging.WARNING)


@dataclass(frozen=True)
class DemoSetup:
    """Where everything lies, and the arguments of the pre-training as `run_pretraining.py` reads them.

    Attributes:
        recipe: Recipe of the pre-training.
        root: Folder of the demo.
        model_args: Shape of the model.
        data_args: Text and its preparation.
        contrast_args: Definition of the contrast.
        args: Training arguments.
    """

    recipe: Path
    root: Path
    model_args: ModelArguments
    data_args: DataArguments
    contrast_args: ContrastArguments
    args: PretrainingArguments

    @classmethod
    def from_recipe(cls, recipe: Path, root: Path) -> "DemoSetup":
        """Read the recipe, with the demo's text and folders."""
        types = (ModelArguments, DataArguments, ContrastArguments, PretrainingArguments)
        return cls(
            recipe, root, *parse_args_with_config(types, pretraining_flags(recipe, root, root / "run"))
        )


def pretraining_flags(recipe: Path, root: Path, output_dir: Path) -> list[str]:
    """Flags of `run_pretraining.py` for one run; both runs of the demo share tokenizer and data."""
    flags = {
        "config": recipe,
        "bitext_files": EXAMPLES,
        "tokenizer_name": root / "tokenizer",
        "prepared_data": root / "data",
        "output_dir": output_dir,
    }
    return [text for name, value in flags.items() for text in (f"--{name}", str(value))]


def open_results(setup: DemoSetup, *, argv: Sequence[str], fresh: bool) -> dict[str, Any]:
    """Begin the results; what an earlier run of the same recipe has finished is kept.

    Raises:
        ValueError: If the folder holds something else than a demo, or a demo of another recipe.
    """
    path = setup.root / RESULTS_NAME
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if earlier.get("made_by") != MADE_BY and setup.root.is_dir() and any(setup.root.iterdir()):
        raise ValueError(f"{setup.root} is not empty and holds no demo; give another --output_dir.")
    if fresh:
        _remove_output(setup.root)
        earlier = {}
    digest = file_sha256(setup.recipe)
    if earlier and earlier["recipe"]["sha256"] != digest:
        raise ValueError(
            f"{setup.root} holds a demo of another recipe ({setup.recipe} may have changed since); "
            "--fresh starts over, another --output_dir keeps both."
        )
    program = describe_program(argv)
    return {
        "made_by": MADE_BY,
        "command": ["python", "-m", MADE_BY, *program["command"]],
        "python": _shown(Path(sys.executable)),
        "output_dir": str(setup.root),
        "recipe": {"path": _shown(setup.recipe), "sha256": digest},
        "versions": {"python": program["python"], **program["versions"]},
        "machine": program["machine"],
        "stages": earlier.get("stages", {}),
        "seconds": 0.0,
    }


def _remove_output(root: Path) -> None:
    for name in OUTPUT_NAMES:
        path = root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:  # of a link only the link: what it points at lies elsewhere
            path.unlink(missing_ok=True)


def _shown(path: Path) -> str:
    """The path as one would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


# --------------------------------------------------------------------------------------------------- stages


class Stages:
    """Announces each stage, times it, and keeps its result in the results file.

    Args:
        console: Where it is announced.
        results: Results so far; `stages` holds what is finished.
        path: Results file, written now and after each stage.
        count: Number of stages to come.
    """

    def __init__(self, console: Console, results: dict[str, Any], path: Path, *, count: int) -> None:
        """Write the results, so that a folder left in the first stage is known as a demo's."""
        self.console, self.results, self.path, self.count = console, results, path, count
        self._number = 0
        self._earlier = frozenset(results["stages"])
        self._write()

    def finished(self, name: str) -> bool:
        """Whether an earlier run of the demo has finished this stage."""
        return name in self._earlier

    @contextmanager
    def stage(self, name: str, *, keeps: bool = False) -> Iterator[dict[str, Any]]:
        """Run a stage; the block sets `result`, one line, in the record that it gets.

        Args:
            name: Its name.
            keeps: It keeps what an earlier run has finished, so that run's time is the one to report.
        """
        self._number += 1
        self.console.print(f"[bold]{self._number}/{self.count} {name}[/]")
        record: dict[str, Any] = {}
        start = time.perf_counter()
        yield record
        record["seconds"] = time.perf_counter() - start
        record["reused"] = keeps and self.finished(name)
        if record["reused"]:
            record["seconds"] = self.results["stages"][name]["seconds"]
        self.results["stages"][name] = record
        self.results["seconds"] += record["seconds"]
        self._write()
        note = "from an earlier run" if record["reused"] else duration(record["seconds"])
        self.console.print(Padding(f"{record['result']} [dim]({note})[/]", (0, 0, 0, 4)))

    def _write(self) -> None:
        write_json(self.path, self.results)


def duration(seconds: float) -> str:
    """Time as one reads it: `8 s`, `4 min 05 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _bar_options(console: Console) -> dict[str, Any]:
    """Bars vanish when they are done; where they cannot (a log file) there are none."""
    return {"console": console, "transient": True, "disable": not console.is_terminal}


def learn_tokenizer(setup: DemoSetup, stages: Stages) -> PreTrainedTokenizerBase:
    """Train the tokenizer on the demo's text."""
    with stages.stage("tokenizer", keeps=True) as record:
        unnamed = replace(setup.model_args, tokenizer_name=None)
        tokenizer = find_tokenizer(unnamed, setup.data_args, setup.root)
        record["result"] = f"{len(tokenizer):,} pieces, learnt from {_shown(EXAMPLES)}"
    return tokenizer


def prepare_data(setup: DemoSetup, stages: Stages, tokenizer: PreTrainedTokenizerBase) -> Corpus:
    """Tokenise the text and hold pairs out."""
    with stages.stage("data", keeps=True) as record:
        corpus = open_or_prepare(setup.data_args, tokenizer, setup.root)
        training = sum(len(pair) for pair in corpus.bitext.values())
        held_out = sum(len(pair) for pair in corpus.heldout.values())
        record["result"] = (
            f"{len(corpus.bitext)} language pairs: {training:,} pairs of sentences, {held_out:,} held out"
        )
    return corpus


def describe_run(
    setup: DemoSetup, model: InfoXLMForPreTraining, corpus: Corpus, heldout: "HeldoutSentences"
) -> dict[str, Any]:
    """What is trained on what, and how it is measured."""
    args = setup.args
    layer, pooling = evaluation_vectors(model, args.eval_layer, args.eval_pooling)
    return {
        "layers": model.config.num_hidden_layers,
        "parameters": model.num_parameters(),
        "objectives": list(setup.data_args.objective_names()),
        "steps": args.max_steps,
        "xlco_layer": model.xlco_layer,
        "layer": layer,
        "pooling": pooling,
        "pairs": {
            pair: {"training": len(corpus.bitext[pair]), "candidates": len(rows[0])}
            for pair, rows in heldout.pairs.items()
        },
    }


# --------------------------------------------------------------------------------------------- pre-training


def pretrain(setup: DemoSetup, stages: Stages, name: str, folder: Path, flags: Sequence[str] = ()) -> None:
    """Pre-train by `run_pretraining.py`, as one would type it; an interrupted run goes on where it was."""
    with stages.stage(name, keeps=True) as record:
        arguments = [*pretraining_flags(setup.recipe, setup.root, folder), *flags]
        shown = [_shown(Path(argument)) if "/" in argument else argument for argument in arguments]
        record["command"] = ["python", "run_pretraining.py", *shown]
        if not stages.finished(name):
            command = [sys.executable, str(REPOSITORY / "run_pretraining.py"), *arguments]
            log = setup.root / f"{folder.name}.log"
            run_with_bar(command, log, stages.console, steps=setup.args.max_steps)
        record["result"] = f"{setup.args.max_steps} steps; {_losses(read_history(folder))}"


def run_with_bar(command: Sequence[str], log: Path, console: Console, *, steps: int) -> None:
    """Run a training process: its progress as one bar, all else that it prints in a log file.

    Raises:
        Interrupted: If it stopped on a signal, after a checkpoint.
        ValueError: If it failed, with its last line.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("w", encoding="utf-8", buffering=1) as lines,
        Progress(*_BAR_COLUMNS, **_bar_options(console)) as bar,
        subprocess.Popen(
            command, stdout=lines, stderr=subprocess.PIPE, text=True, errors="replace"
        ) as process,
        _ctrl_c_left_to_child(),
    ):
        task = bar.add_task("", total=steps)
        for line in process.stderr or ():  # carriage returns end a line here too
            done = re.search(rf"\b(\d+)/{steps} \[", line)
            if done:
                bar.update(task, completed=int(done[1]))
                continue
            lines.write(line)
            if line.startswith("WARNING modeling_infoxlm"):
                console.print(Padding(Text(line.strip(), "yellow"), (0, 0, 0, 4)))
    if process.returncode == INTERRUPTED:
        raise Interrupted("training stopped after a checkpoint; the same command goes on from there.")
    if process.returncode:
        printed = log.read_text(encoding="utf-8", errors="replace").split("\n")
        reasons = [line for line in printed if line.startswith("error: ")] or [
            f"exit code {process.returncode}"
        ]
        raise ValueError(
            f"pre-training failed: {reasons[-1].removeprefix('error: ')} (all it printed: {log})"
        )


@contextmanager
def _ctrl_c_left_to_child() -> Iterator[None]:
    """A terminal sends Ctrl-C to both processes; the child saves a checkpoint, and this one waits for it."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def read_history(folder: Path) -> list[dict[str, float]]:
    """All log entries of a finished run."""
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    history: list[dict[str, float]] = state["log_history"]
    return history


def _losses(history: Sequence[Mapping[str, float]]) -> str:
    """Last training loss of each objective, and that of a blind guess among its candidates."""
    last = next(entry for entry in reversed(history) if "loss" in entry)
    parts = [
        f"{name} {last[f'loss/{name}']:.2f} (guess {last[f'loss/{name}'] + last[f'information/{name}']:.2f})"
        for name in ("mlm", "tlm", "xlco")
        if f"loss/{name}" in last
    ]
    return f"nats: {', '.join(parts)}"


def _load(folder: Path) -> InfoXLMForPreTraining:
    model: InfoXLMForPreTraining = InfoXLMForPreTraining.from_pretrained(folder, dtype=torch.float32)
    return model


# ------------------------------------------------------------------------------------------------ measuring


@dataclass(frozen=True)
class HeldoutSentences:
    """Held-out sentences of all pairs, each distinct one once: pairs share most of their English.

    Attributes:
        sequences: Token ids without special ones.
        pairs: Language pair -> numbers of its source and of its target sentences, line by line.
        languages: The source language, then the targets.
        map_rows: Numbers of sentences that exist in all languages, (languages, sentences).
    """

    sequences: list[np.ndarray]
    pairs: dict[str, tuple[np.ndarray, np.ndarray]]
    languages: list[str]
    map_rows: np.ndarray


def collect_heldout(corpus: Corpus, *, max_pairs: int) -> HeldoutSentences:
    """Collect the first held-out sentences of each pair, and some that exist in all languages."""
    distinct = _Distinct()
    pairs = {}
    for name, pair in corpus.heldout.items():
        rows = range(min(max_pairs, len(pair)))
        pairs[name] = tuple(
            np.array([distinct.number(side[i]) for i in rows]) for side in (pair.source, pair.target)
        )
    shared = _shared_rows(corpus)
    first = next(iter(corpus.heldout))
    map_rows = [[distinct.number(corpus.heldout[first].source[i]) for i in shared[first]]]
    map_rows += [
        [distinct.number(corpus.heldout[name].target[i]) for i in rows] for name, rows in shared.items()
    ]
    languages = [corpus.heldout[first].source_language]
    languages += [pair.target_language for pair in corpus.heldout.values()]
    return HeldoutSentences(distinct.sequences, pairs, languages, np.array(map_rows))  # type: ignore[arg-type]


class _Distinct:
    """Numbers sequences; equal ones get one number."""

    def __init__(self) -> None:
        self.sequences: list[np.ndarray] = []
        self._numbers: dict[bytes, int] = {}

    def number(self, ids: np.ndarray) -> int:
        number = self._numbers.setdefault(ids.tobytes(), len(self.sequences))
        if number == len(self.sequences):
            self.sequences.append(ids)
        return number


def _shared_rows(corpus: Corpus) -> dict[str, list[int]]:
    """For each pair, the rows of the first sentences whose source is held out in every pair, in one order."""
    rows = {
        name: {source: i for i, (source, _) in enumerate(corpus.heldout_text(name))}
        for name in corpus.heldout
    }
    first, *others = rows.values()
    shared = [source for source in first if all(source in other for other in others)][:MAP_SENTENCES]
    return {name: [numbers[source] for source in shared] for name, numbers in rows.items()}


def measure(
    stages: Stages,
    name: str,
    models: Mapping[str, InfoXLMForPreTraining],
    special: SpecialTokens,
    heldout: HeldoutSentences,
) -> dict[str, np.ndarray]:
    """Measure retrieval at every layer of each model.

    Returns:
        Label -> vectors of all held-out sentences at the layer of the evaluation, (N, D).
    """
    layer, pooling = stages.results["run"]["layer"], stages.results["run"]["pooling"]
    retrieval = stages.results.setdefault("retrieval", {})
    kept = {}
    with stages.stage(name) as record:
        for label, model in models.items():
            model.eval()
            by_layer = []
            layers = range(model.config.num_hidden_layers + 1)
            for i in track(layers, f"    {label}, layers", **_bar_options(stages.console)):
                vectors = encode_sequences(
                    model.roberta, heldout.sequences, special, layer=i, pooling=pooling
                )
                by_layer.append(_accuracies(vectors, heldout))
                if i == layer:
                    kept[label] = vectors.numpy()
            retrieval[label] = summarise(by_layer, layer)
        means = [f"{label} {100 * retrieval[label]['mean']:.1f}%" for label in models]
        record["result"] = f"top-1 retrieval of held-out sentences: {', '.join(means)}"
    return kept


def _accuracies(vectors: torch.Tensor, heldout: HeldoutSentences) -> dict[str, RetrievalAccuracy]:
    return {
        name: retrieval_accuracy(vectors[source], vectors[target])
        for name, (source, target) in heldout.pairs.items()
    }


def summarise(by_layer: Sequence[Mapping[str, RetrievalAccuracy]], layer: int) -> dict[str, Any]:
    """Retrieval of one encoder: both directions of each pair at one layer, the mean of all at every layer."""
    means = [float(np.mean([accuracy.mean for accuracy in pairs.values()])) for pairs in by_layer]
    return {
        "pairs": {name: {**asdict(pair), "mean": pair.mean} for name, pair in by_layer[layer].items()},
        "mean": means[layer],
        "mean_by_layer": means,
    }


# -------------------------------------------------------------------------------------------------- figures


def draw_figures(
    stages: Stages,
    folder: Path,
    runs: Mapping[str, Path],
    vectors: Mapping[str, np.ndarray],
    heldout: HeldoutSentences,
) -> None:
    """Draw all figures."""
    retrieval, layer = stages.results["retrieval"], stages.results["run"]["xlco_layer"]
    histories = {label: read_history(run) for label, run in runs.items()}
    curves = {label: entry["mean_by_layer"] for label, entry in retrieval.items()}
    pair, (source, target) = next(iter(heldout.pairs.items()))
    rows = slice(SIMILARITY_SENTENCES)
    compared = {label: _normalised(vectors[label]) for label in (UNTRAINED, TRAINED)}
    cosines = {label: unit[source[rows]] @ unit[target[rows]].T for label, unit in compared.items()}
    sentences = {label: unit[heldout.map_rows] for label, unit in compared.items()}
    draw = {
        "losses": lambda: plots.losses_figure(histories),
        "retrieval_by_layer": lambda: plots.retrieval_by_layer_figure(curves, marked_layer=layer),
        "similarity": lambda: plots.similarity_figure(cosines, pair=pair),
        "sentence_map": lambda: plots.sentence_map_figure(sentences, languages=heldout.languages),
    }
    folder.mkdir(exist_ok=True)
    with stages.stage("figures") as record:
        for name in track(draw, "    drawing", **_bar_options(stages.console)):
            plots.save_figure(draw[name](), folder / f"{name}.png")
        record["files"] = [f"{name}.png" for name in draw]
        record["result"] = f"{len(draw)} in {folder}"


def _normalised(vectors: np.ndarray) -> np.ndarray:
    unit: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


# --------------------------------------------------------------------------------------------------- export


def export(
    stages: Stages,
    folder: Path,
    model: InfoXLMForPreTraining,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
) -> None:
    """Write plain XLM-R, and check that a Python without this package gets the same sentence vectors from it.

    Raises:
        ValueError: If it does not.
    """
    layer, pooling = stages.results["run"]["layer"], stages.results["run"]["pooling"]
    with stages.stage("export to plain XLM-R") as record:
        save_as_xlm_roberta(model, folder, tokenizer=tokenizer)
        pairs = corpus.heldout_text(next(iter(corpus.heldout)))[:SIMILARITY_SENTENCES]
        texts = [text for pair in pairs for text in pair]
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            ours = model.sentence_vectors(**inputs, layer=layer, pooling=pooling).numpy()
        difference = float(np.abs(ours - plain_vectors(folder, texts, layer, pooling)).max())
        if not difference <= LARGEST_DIFFERENCE:
            raise ValueError(
                f"sentence vectors of {folder} by AutoModel differ from ours by up to {difference:.1e}; "
                f"rounding explains no more than {LARGEST_DIFFERENCE:.0e}."
            )
        record["largest_difference"] = difference
        record["result"] = (
            f"AutoModel alone gives the same sentence vectors; largest difference {difference:.1e}"
        )


def plain_vectors(folder: Path, texts: Sequence[str], layer: int, pooling: str) -> np.ndarray:
    """Sentence vectors by transformers alone, in a process of its own, (N, D).

    Raises:
        ValueError: If that process fails, with its last line.
    """
    with tempfile.TemporaryDirectory() as temporary:
        given, answer = Path(temporary) / "texts.json", Path(temporary) / "vectors.npy"
        given.write_text(json.dumps(texts), encoding="utf-8")
        arguments = [folder.resolve(), given, answer, layer, pooling]
        # -I, and another working directory: this repository is not on the path.
        command = [sys.executable, "-I", "-c", _PLAIN_TRANSFORMERS, *map(str, arguments)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=temporary, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"AutoModel cannot load {folder}: {done.stderr.strip().rpartition(chr(10))[2]}")
        vectors: np.ndarray = np.load(answer)
    return vectors


# ---------------------------------------------------------------------------------------------- last screen


def retrieval_table(results: Mapping[str, Any]) -> Table:
    """Retrieval of each pair, one column for each encoder."""
    retrieval = results["retrieval"]
    table = Table(
        box=SIMPLE_HEAD, title="held-out top-1 retrieval, %", title_justify="left", title_style="bold"
    )
    table.add_column("pair")
    table.add_column("candidates", justify="right")
    for label in retrieval:
        table.add_column(label, justify="right")
    for name, pair in results["run"]["pairs"].items():
        shares = [f"{100 * encoder['pairs'][name]['mean']:.1f}" for encoder in retrieval.values()]
        table.add_row(name, str(pair["candidates"]), *shares)
    table.add_section()
    table.add_row(
        "mean", "", *(f"{100 * encoder['mean']:.1f}" for encoder in retrieval.values()), style="bold"
    )
    return table


def markdown_table(results: Mapping[str, Any]) -> str:
    """The table of retrieval as Markdown, for a README: results of encoders in columns, pairs in rows."""
    retrieval, run = results["retrieval"], results["run"]
    rows = [["pair", "candidates", *retrieval], ["---", *["---:"] * (1 + len(retrieval))]]
    for name, pair in run["pairs"].items():
        shares = [f"{100 * encoder['pairs'][name]['mean']:.1f}" for encoder in retrieval.values()]
        rows.append([name, str(pair["candidates"]), *shares])
    rows.append(["**mean**", "", *(f"**{100 * encoder['mean']:.1f}**" for encoder in retrieval.values())])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def print_last_screen(results: Mapping[str, Any], console: Console) -> None:
    """Say what happened, where everything lies, and what to type next."""
    console.rule("[bold]What happened[/]")
    console.print(_what_happened(results), end="\n\n")
    console.print(retrieval_table(results))
    for what, where in _where(results).items():
        console.print(f"[bold]{what:11}[/]{where}", soft_wrap=True)
    console.print()
    console.rule("[bold]What to type next[/]")
    for command, why in _next_commands(results).items():
        console.print(f"[dim]# {why}[/]\n{command}", soft_wrap=True)


def _what_happened(results: Mapping[str, Any]) -> str:
    run, retrieval, stages = results["run"], results["retrieval"], results["stages"]
    num_pairs = sum(pair["training"] for pair in run["pairs"].values())
    before, after = (f"{100 * retrieval[label]['mean']:.1f}%" for label in (UNTRAINED, TRAINED))
    training, total = duration(stages["pre-training"]["seconds"]), duration(results["seconds"])
    vector = "<s>" if run["pooling"] == "cls" else "the mean of all tokens"
    return (
        f"A new encoder of {run['layers']} layers and {run['parameters'] / 1e6:.1f} M parameters was trained "
        f"on {num_pairs:,} sentence pairs of {len(run['pairs'])} language pairs: {run['steps']} steps of "
        f"{' + '.join(run['objectives'])}, {training} of {total} in all. "
        f"Of sentences it never saw it now finds {after} of the translations; untrained it found {before}. "
        f"(Nearest by cosine, in both directions, of {vector} at layer {run['layer']}.)"
    )


def _where(results: Mapping[str, Any]) -> dict[str, str]:
    root, stages = Path(results["output_dir"]), results["stages"]
    return {
        "figures": f"{root / 'figures'}: {', '.join(stages['figures']['files'])}",
        "checkpoint": f"{root / 'run'}, which goes on training",
        "release": f"{root / 'xlm-roberta'}, plain XLM-R for AutoModel.from_pretrained",
        "numbers": f"{root / RESULTS_NAME}",
    }


def _next_commands(results: Mapping[str, Any]) -> dict[str, str]:
    python, root = results["python"], Path(results["output_dir"])
    script = f"{python} run_pretraining.py --config recipes"
    if WITHOUT_CONTRAST in results["retrieval"]:
        load = f"AutoModel.from_pretrained('{root / 'xlm-roberta'}')"
        first = {f'{python} -c "from transformers import AutoModel; print({load})"': "load the release"}
    else:
        first = {"make demo-compare": "what the contrast adds: train without it beside"}
    return {
        **first,
        f"{script}/demo.yaml --max_steps 2000 --output_dir outputs/longer": "the same, longer",
        f"{script}/continue_xlmr_base.yaml --bitext_files YOUR-TEXT.en-de.tsv --output_dir outputs/mine": (
            "make XLM-R more cross-lingual on your own text (one pair a line: English, tab, German)"
        ),
    }


if __name__ == "__main__":
    sys.exit(main())
