"""`make demo`: a small encoder learns in minutes which sentences are translations, and shows it.

    python examples/demo.py [--output_dir demo_output] [--compare] [--fresh] [--config RECIPE]

Each stage is a few calls of the package, as in a program of your own; the recipe says what is trained.
Whatever is printed stands in `<output_dir>/results.json` too. Run again, it goes on where it stopped.
"""

import argparse
import logging
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import demo_figures as figures
import numpy as np
import torch
from rich.console import Console
from rich.markdown import Markdown
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase, XLMRobertaModel
from transformers.utils import logging as transformers_logging

from modeling_infoxlm import Corpus, InfoXLMForPreTraining, save_as_xlm_roberta
from modeling_infoxlm.commands import pretrain
from modeling_infoxlm.evaluation.encoding import encode_texts
from modeling_infoxlm.evaluation.retrieval.heldout import HeldoutRetrieval
from modeling_infoxlm.plots import save_figure
from modeling_infoxlm.runs.config_file import parse_args_with_config
from modeling_infoxlm.runs.files import file_sha256, read_json, write_json
from modeling_infoxlm.runs.process import configure_process, run_main
from modeling_infoxlm.runs.provenance import describe_program
from modeling_infoxlm.training import arguments, corpus_setup, model_setup

REPOSITORY = Path(__file__).resolve().parents[1]
EXAMPLES = REPOSITORY / "examples" / "data"
RECIPE = REPOSITORY / "recipes" / "demo.yaml"
MADE_BY = "modeling_infoxlm.demo"  # tells a folder of the demo from any other
RESULTS_NAME, TABLE_NAME = "results.json", "results.md"
# All that the demo writes; --fresh removes these and the results, nothing else.
OUTPUT_NAMES = "tokenizer data run run.log run_mlm_tlm run_mlm_tlm.log figures xlm-roberta".split()
UNTRAINED, TRAINED, WITHOUT_CONTRAST = figures.UNTRAINED, "trained", "MLM+TLM only"
FIGURE_SENTENCES = 30
SENTENCES = ["How are you?", "Das ist ein etwas längerer Satz.", "Où est la mer ?"]  # for the release
LARGEST_DIFFERENCE = 1e-4  # of a number of a sentence vector in fp32, over packed and over padded rows


def run_demo(argv: list[str]) -> None:
    """Run all stages and print the last screen."""
    options = parse_options(argv)
    root = options.output_dir
    # Notes and bars of libraries stay off the screen; warnings of our own are shown.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger().setLevel(logging.WARNING)
    configure_process()
    stages = Stages(open_results(options, argv), root, count=8 if options.compare else 7)
    flags = pretraining_flags(options.config, root, root / "run")
    types = (arguments.ModelArguments, arguments.DataArguments, arguments.ContrastArguments)
    parsed = parse_args_with_config([*types, arguments.PretrainingArguments], flags)
    model_args, data_args, contrast_args, args = parsed
    with stages.stage("tokenizer") as record:
        tokenizer = corpus_setup.find_tokenizer(replace(model_args, tokenizer_name=None), data_args, root)
        record["result"] = f"{len(tokenizer):,} pieces, learnt from {shown(EXAMPLES)}"
    with stages.stage("data") as record:
        corpus = corpus_setup.open_or_prepare(data_args, tokenizer, root)
        used, held = (sum(map(len, pairs.values())) for pairs in (corpus.bitext, corpus.heldout))
        record["result"] = f"{len(corpus.bitext)} language pairs: {used:,} sentence pairs, {held:,} held out"
    start = model_setup.build_model(model_args, contrast_args, tokenizer, seed=args.seed)
    layer, pooling = model_setup.evaluation_vectors(start, args.eval_layer, args.eval_pooling)
    stages.results["run"] = {
        "layers": start.config.num_hidden_layers,
        "parameters": start.num_parameters(),
        "objectives": list(data_args.objective_names()),
        "steps": args.max_steps,
        "xlco_layer": start.xlco_layer,
        "layer": layer,
        "pooling": pooling,
        "max_pairs": args.eval_max_pairs,
        "pairs": {
            pair: {"training": len(corpus.bitext[pair]), "candidates": min(args.eval_max_pairs, len(store))}
            for pair, store in corpus.heldout.items()
        },
    }
    measure(stages, "retrieval, untrained", {UNTRAINED: start}, corpus)
    runs = {TRAINED: root / "run"}
    train(stages, "pre-training", runs[TRAINED], flags)
    if options.compare:
        runs[WITHOUT_CONTRAST] = other = root / "run_mlm_tlm"
        flags = [*pretraining_flags(options.config, root, other), "--objectives", "mlm,tlm"]
        train(stages, "pre-training without the contrast", other, flags)
    models = {label: InfoXLMForPreTraining.from_pretrained(run) for label, run in runs.items()}
    measure(stages, "retrieval, trained", models, corpus)
    draw_figures(stages, runs, {UNTRAINED: start, TRAINED: models[TRAINED]}, tokenizer, corpus)
    export(stages, models[TRAINED], tokenizer)
    (root / TABLE_NAME).write_text(markdown_table(stages.results), encoding="utf-8")
    print_last_screen(stages.results, stages.console)


def parse_options(argv: Sequence[str]) -> argparse.Namespace:
    """Flags of this program."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--output_dir", type=Path, default=Path("demo_output"), help="folder for all results")
    parser.add_argument("--compare", action="store_true", help="also train without the contrast, as long")
    parser.add_argument("--fresh", action="store_true", help="start over instead of going on")
    parser.add_argument("--config", type=Path, default=RECIPE, help="recipe of the pre-training")
    return parser.parse_args(argv)


def pretraining_flags(recipe: Path, root: Path, output_dir: Path) -> list[str]:
    """Flags of `run_pretraining.py` for one run; both runs of the demo share tokenizer and data."""
    own = {"tokenizer_name": root / "tokenizer", "prepared_data": root / "data", "output_dir": output_dir}
    flags = {"config": recipe, "bitext_files": EXAMPLES, **own}
    return [text for name, path in flags.items() for text in (f"--{name}", shown(path))]


def shown(path: Path) -> str:
    """The path as one would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def open_results(options: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """Begin the results in a folder of the demo.

    Raises:
        ValueError: If the folder holds something else than a demo, or a demo of another recipe.
    """
    root, recipe = options.output_dir, {"path": shown(options.config), "sha256": file_sha256(options.config)}
    earlier = read_json(root / RESULTS_NAME) if (root / RESULTS_NAME).is_file() else {}
    if earlier.get("made_by") != MADE_BY and root.is_dir() and any(root.iterdir()):
        raise ValueError(f"{root} is not empty and holds no demo; give another --output_dir.")
    if options.fresh:
        for old in (root / name for name in (*OUTPUT_NAMES, RESULTS_NAME, TABLE_NAME)):
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(old)
            else:  # of a link only the link: what it points at lies elsewhere
                old.unlink(missing_ok=True)
    elif earlier and earlier["recipe"]["sha256"] != recipe["sha256"]:
        raise ValueError(
            f"{root} holds a demo of another recipe ({options.config} may have changed since); "
            "--fresh starts over, another --output_dir keeps both."
        )
    program = describe_program(["python", "examples/demo.py", *argv])
    kept = {name: program[name] for name in ("command", "python", "versions", "machine")}
    return {"made_by": MADE_BY, **kept, "output_dir": str(root), "recipe": recipe, "stages": {}}


class Stages:
    """Announces each of `count` stages, times it, and keeps its result in `<root>/results.json`."""

    def __init__(self, results: dict[str, Any], root: Path, *, count: int) -> None:
        """Write the results, so that a folder left in the first stage is known as a demo's."""
        self.results, self.root, self.count = results, root, count
        self.console = Console(file=sys.stdout, highlight=False)  # while training stdout is a log file
        write_json(root / RESULTS_NAME, results)

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        """Run a stage; the block sets `result`, one line, in the record that it gets."""
        record: dict[str, Any] = {}
        self.console.print(f"[bold]{len(self.results['stages']) + 1}/{self.count} {name}[/]")
        start = time.perf_counter()
        yield record
        record["seconds"] = time.perf_counter() - start
        self.results["stages"][name] = record
        write_json(self.root / RESULTS_NAME, self.results)
        note = f"[dim]({duration(record['seconds'])})[/]"
        self.console.print(f"    {record['result']} {note}", soft_wrap=True)


def duration(seconds: float) -> str:
    """Time as one reads it: `8 s`, `4 min 05 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def train(stages: Stages, name: str, folder: Path, flags: Sequence[str]) -> None:
    """Pre-train as `run_pretraining.py` does, with its bar on the screen and what it prints in a log file.

    An interrupted run goes on where it was; a finished one is left as it is.
    """
    shows_bars = stages.console.is_terminal
    with stages.stage(name) as record:
        with folder.with_suffix(".log").open("a", encoding="utf-8") as log, redirect_stdout(log):
            with redirect_stderr(sys.stderr if shows_bars else log):
                pretrain.run([*flags, "--disable_tqdm", str(not shows_bars)])
        record["command"] = ["python", "run_pretraining.py", *flags]
        metrics = read_json(folder / "train_results.json")  # of all starts
        record["training_seconds"] = metrics["train_runtime"]
        record["result"] = f"{stages.results['run']['steps']} steps; nats: {last_losses(folder)}"


def read_history(folder: Path) -> list[dict[str, float]]:
    """All log entries of a finished run."""
    return list(read_json(folder / "trainer_state.json")["log_history"])


def last_losses(folder: Path) -> str:
    """Last training loss of each objective, and that of a blind guess among its candidates."""
    last = next(entry for entry in reversed(read_history(folder)) if "loss" in entry)
    found = {key.removeprefix("loss/"): loss for key, loss in last.items() if key.startswith("loss/")}
    guesses = {name: loss + last[f"information/{name}"] for name, loss in found.items()}
    return ", ".join(f"{name} {loss:.2f} (guess {guesses[name]:.2f})" for name, loss in found.items())


def measure(stages: Stages, name: str, models: Mapping[str, InfoXLMForPreTraining], corpus: Corpus) -> None:
    """Retrieval of held-out sentences by each model at every layer; at one layer for each pair too."""
    run, retrieval = stages.results["run"], stages.results.setdefault("retrieval", {})
    how = {"pooling": run["pooling"], "max_pairs": run["max_pairs"]}
    with stages.stage(name) as record:
        for label, model in models.items():
            layers = tqdm(range(run["layers"] + 1), f"    {label}, layers", leave=False, disable=None)
            found = [HeldoutRetrieval(corpus, layer=i, **how).accuracies(model.roberta) for i in layers]
            means = [float(np.mean([accuracy.mean for accuracy in pairs.values()])) for pairs in found]
            pairs = {pair: {**asdict(both), "mean": both.mean} for pair, both in found[run["layer"]].items()}
            retrieval[label] = {"pairs": pairs, "mean": means[run["layer"]], "mean_by_layer": means}
        listed = ", ".join(f"{label} {percent(retrieval[label])}%" for label in models)
        record["result"] = f"top-1 retrieval of held-out sentences: {listed}"


def percent(accuracy: Mapping[str, Any]) -> str:
    """Mean of both directions."""
    return f"{100 * accuracy['mean']:.1f}"


def translated_everywhere(corpus: Corpus) -> dict[str, list[str]]:
    """Sentences whose source is held out in every pair, by language: the source, then each target."""
    known = {pair.partition("-")[::2]: dict(corpus.heldout_text(pair)) for pair in corpus.heldout}
    (source, _), first = next(iter(known.items()))
    shared = [text for text in first if all(text in others for others in known.values())][:FIGURE_SENTENCES]
    return {source: shared, **{to: [found[text] for text in shared] for (_, to), found in known.items()}}


def draw_figures(
    stages: Stages,
    runs: Mapping[str, Path],
    models: Mapping[str, InfoXLMForPreTraining],
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
) -> None:
    """Draw all figures: of the runs and of retrieval, and of vectors of the models."""
    run, folder = stages.results["run"], stages.root / "figures"
    where = {"layer": run["layer"], "pooling": run["pooling"], "normalize": True, "progress": False}
    sentences = translated_everywhere(corpus)
    texts = [text for side in sentences.values() for text in side]
    with stages.stage("figures") as record:
        vectors = {}  # (languages, sentences, D)
        for label, model in models.items():
            encoded = encode_texts(model.roberta, tokenizer, texts, **where)
            vectors[label] = encoded.unflatten(0, (len(sentences), -1)).numpy()
        cosines = {label: source @ target.T for label, (source, target, *_) in vectors.items()}
        curves = {label: found["mean_by_layer"] for label, found in stages.results["retrieval"].items()}
        drawn = {
            "losses": figures.losses_figure({label: read_history(path) for label, path in runs.items()}),
            "retrieval_by_layer": figures.retrieval_by_layer_figure(curves, marked_layer=run["xlco_layer"]),
            "similarity": figures.similarity_figure(cosines, pair="-".join(list(sentences)[:2])),
            "sentence_map": figures.sentence_map_figure(vectors, languages=list(sentences)),
        }
        folder.mkdir(exist_ok=True)
        for name, figure in drawn.items():
            save_figure(figure, folder / f"{name}.png")
        record["files"] = [f"{name}.png" for name in drawn]
        record["result"] = f"{len(drawn)} in {folder}"


@torch.no_grad()
def export(stages: Stages, model: InfoXLMForPreTraining, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write plain XLM-R, and check that a class of transformers gets the same sentence vectors from it.

    Raises:
        ValueError: If it does not.
    """
    layer, folder = stages.results["run"]["layer"], stages.root / "xlm-roberta"
    with stages.stage("export to plain XLM-R") as record:
        save_as_xlm_roberta(model, folder, tokenizer=tokenizer)
        plain = AutoModel.from_pretrained(folder).eval()
        inputs = AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="pt")
        mask = inputs["attention_mask"].unsqueeze(-1)
        hidden = plain(**inputs, output_hidden_states=True).hidden_states[layer]
        vectors = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        ours = encode_texts(model.roberta, tokenizer, SENTENCES, layer=layer, pooling="mean")
        difference = float((ours - vectors).abs().max())
        if type(plain) is not XLMRobertaModel or not difference <= LARGEST_DIFFERENCE:
            raise ValueError(
                f"{folder} is loaded as {type(plain).__name__}, expected XLMRobertaModel; its vectors "
                f"differ from ours by {difference:.1e}, rounding explains {LARGEST_DIFFERENCE:.0e}."
            )
        record["largest_difference"] = difference
        record["result"] = f"AutoModel gives the same sentence vectors; largest difference {difference:.1e}"


def markdown_table(results: Mapping[str, Any]) -> str:
    """Retrieval of each pair, a column for each encoder, for a README."""
    encoders = results["retrieval"].values()
    rows = [["pair", "candidates", *results["retrieval"]], ["---", *["---:"] * (1 + len(encoders))]]
    for name, pair in results["run"]["pairs"].items():
        rows.append([name, str(pair["candidates"]), *(percent(found["pairs"][name]) for found in encoders)])
    rows.append(["**mean**", "", *(f"**{percent(found)}**" for found in encoders)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def print_last_screen(results: Mapping[str, Any], console: Console) -> None:
    """Say what happened, where everything lies, and what to type next."""
    root, python = Path(results["output_dir"]), shown(Path(sys.executable))
    recipe = f"{python} run_pretraining.py --config recipes"
    first = "# what the contrast adds: train without it beside\nmake demo-compare"
    if WITHOUT_CONTRAST in results["retrieval"]:
        code = f"from transformers import AutoModel; print(AutoModel.from_pretrained('{root}/xlm-roberta'))"
        first = f'# load the release\n{python} -c "{code}"'
    console.rule("[bold]What happened[/]")
    console.print(what_happened(results), end="\n\n")
    console.print("[bold]held-out top-1 retrieval, %[/]", Markdown(markdown_table(results)))
    console.print(
        f"[bold]figures[/]    {root / 'figures'}: {', '.join(results['stages']['figures']['files'])}\n"
        f"[bold]checkpoint[/] {root / 'run'}, which goes on training\n"
        f"[bold]release[/]    {root / 'xlm-roberta'}, plain XLM-R for AutoModel.from_pretrained\n"
        f"[bold]numbers[/]    {root / RESULTS_NAME}\n",
        soft_wrap=True,
    )
    console.rule("[bold]What to type next[/]")
    console.print(
        f"{first}\n# the same, longer\n{recipe}/demo.yaml --max_steps 2000 --output_dir outputs/longer\n"
        "# make XLM-R more cross-lingual on your own text (one pair a line: English, tab, German)\n"
        f"{recipe}/continue_xlmr_base.yaml --bitext_files YOUR-TEXT.en-de.tsv --output_dir outputs/mine",
        soft_wrap=True,
    )


def what_happened(results: Mapping[str, Any]) -> str:
    """The run in a few sentences."""
    run, retrieval, training = results["run"], results["retrieval"], results["stages"]["pre-training"]
    num_pairs = sum(pair["training"] for pair in run["pairs"].values())
    vector = "<s>" if run["pooling"] == "cls" else "the mean of all tokens"
    before, after = percent(retrieval[UNTRAINED]), percent(retrieval[TRAINED])
    return (
        f"A new encoder of {run['layers']} layers and {run['parameters'] / 1e6:.1f} M parameters was trained "
        f"on {num_pairs:,} sentence pairs of {len(run['pairs'])} language pairs: {run['steps']} steps of "
        f"{' + '.join(run['objectives'])} in {duration(training['training_seconds'])}. "
        f"Of sentences it never saw it now finds {after}% of the translations; untrained it found {before}%. "
        f"(Nearest by cosine, in both directions, of {vector} at layer {run['layer']}.)"
    )


if __name__ == "__main__":
    sys.exit(run_main(run_demo, sys.argv[1:]))
