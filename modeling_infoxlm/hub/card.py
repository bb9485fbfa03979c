"""Model cards: what a release's own files say, and nothing else.

`release.json` says what it is, `training.json` how it came to be, `results/` what was measured. What none of
them says does not stand in the card.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import AutoConfig

from modeling_infoxlm.hub.benchmarks import BENCHMARKS, comparable_sets, whole_test_sets
from modeling_infoxlm.hub.evidence import (
    FIGURES_FOLDER,
    RELEASE,
    RESULTS_FOLDER,
    TRAINING,
    TRAINING_FILE,
    read_record,
    read_result_file,
)
from modeling_infoxlm.hub.snippets import usage
from modeling_infoxlm.runs.provenance import blot_secrets, writing

TEMPLATE = Path(__file__).with_name("card_template.md")
CARD_NAME = "README.md"
MARKER = (
    "Written by modeling_infoxlm from the files of this repository. "
    "Remove this line to keep your own text at the next push."
)
OBJECTIVES = {
    "mlm": "masked words (MLM)",
    "tlm": "masked words of translated pairs (TLM)",
    "xlco": "contrast of sentences with their translations (XlCo)",
}
_PIPELINES = {
    "ForMaskedLM": "fill-mask",
    "ForPreTraining": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMultipleChoice": "multiple-choice",
}


def write_card(release: Path, repo_id: str, *, license: str | None = None) -> None:
    """Write README.md of a release; one that people have made their own is kept.

    Args:
        release: Folder with `release.json` and, as far as there are, `training.json`, `results/`, `figures/`.
        repo_id: Name of the repository, for the code in it.
        license: Licence of the model; None leaves it open.
    """
    path = release / CARD_NAME
    if path.is_file() and MARKER.encode() not in path.read_bytes():  # which need not be UTF-8
        return
    card = build_card(release, repo_id, license=license)
    with writing(path):
        path.write_text(blot_secrets(f"{str(card).rstrip()}\n"), encoding="utf-8")


def build_card(release: Path, repo_id: str, *, license: str | None = None) -> ModelCard:
    """Fill the template from the files of a release; see `write_card`."""
    about = read_record(release / "release.json", RELEASE)
    training = read_record(release / TRAINING_FILE, TRAINING)
    results = [read_result_file(path) for path in sorted((release / RESULTS_FOLDER).glob("*.json"))]
    layer, pooling = _sentence_vector(release, about, training, results)
    data = card_data(about, training, results, name=repo_id, license=license)
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        marker=MARKER,
        title=_text(repo_id.split("/")[-1]),
        summary=_summary(about, training),
        facts=_facts(about, training, size=_config(release).hidden_size),
        usage=usage(repo_id, about, layer=layer, pooling=pooling, size=_config(release).hidden_size),
        evaluation=_evaluation(results, training, about),
        figures=_figures(release),
        training=_training(training),
        limits=_limits(training, results),
    )


def card_data(
    about: Mapping[str, Any],
    training: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    name: str,
    license: str | None,
) -> ModelCardData:
    """The metadata at the top of a card, by which the Hub finds and shows the model."""
    is_st = about["format"] == "sentence-transformers"
    pipelines = [value for end, value in _PIPELINES.items() if about["architecture"].endswith(end)]
    languages = [name for name in _languages(training) if _LANGUAGE.fullmatch(name)]
    evaluated = [entry for result in results for entry in _index_entries(result)]
    bases = [name for name in [training.get("base_model")] if name and _HUB_NAME.fullmatch(name)]
    base = bases[0] if bases else None
    relation: dict[str, Any] = {"base_model_relation": "finetune"} if base else {}
    return ModelCardData(
        language=["multilingual", *languages] if languages else None,
        license=license,
        library_name="sentence-transformers" if is_st else "transformers",
        pipeline_tag="sentence-similarity" if is_st else (*pipelines, "feature-extraction")[0],
        base_model=base,
        **relation,
        tags=["infoxlm", "xlm-roberta", "cross-lingual", *(["onnx"] if about["format"] == "onnx" else [])],
        datasets=[name for name in training.get("datasets") or () if _HUB_NAME.fullmatch(name)] or None,
        metrics=sorted({entry.metric_type for entry in evaluated}) or None,
        eval_results=evaluated or None,
        model_name=name.split("/")[-1],
    )


def _index_entries(result: Mapping[str, Any]) -> list[EvalResult]:
    """One entry for each language; results of a part, or of a dev set, stand in the tables only."""
    metric, benchmark = result["metric"], BENCHMARKS.get(result["task"])
    if benchmark is None:
        return []
    return [
        EvalResult(
            task_type=benchmark.task_type,
            dataset_type=benchmark.repo_id,
            dataset_name=f"{benchmark.title} ({_one_line(language)})",
            dataset_config=benchmark.config.format(_one_line(language)),
            dataset_split=benchmark.split,
            dataset_revision=result["dataset"]["revision"],
            metric_type=_one_line(metric),
            metric_value=round(result["scores"][language][metric]["value"], 2),
        )
        for language in comparable_sets(result)
    ]


def _languages(training: Mapping[str, Any]) -> list[str]:
    pairs = [language for pair in training.get("pairs", {}) for language in pair.split("-")]
    return sorted({*training.get("languages", {}), *pairs})


def _sentence_vector(
    release: Path,
    about: Mapping[str, Any],
    training: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
) -> tuple[int, str]:
    """Layer and pooling of sentence vectors: the release's, else those measured, else those trained."""
    measured = [result["settings"] for result in results if result["task"] == "tatoeba"]
    trained = {"layer": "xlco_layer", "pooling": "xlco_pooling"}
    recipe = {name: training.get("recipe", {}).get(flag) for name, flag in trained.items()}
    known = (about, *measured, training.get("heldout_vectors") or {}, recipe)
    depth = _config(release).num_hidden_layers
    layer, pooling = (
        next((found[name] for found in known if found.get(name) is not None), default)
        for name, default in (("layer", depth), ("pooling", "mean"))
    )
    return min(layer, depth), pooling


def _vector(layer: int, pooling: str | None) -> str:
    tokens = {"mean": "mean of all tokens", "cls": "`<s>`"}
    return f"{tokens[pooling]} of layer {layer}" if pooling in tokens else f"layer {layer}"


def _gives_others(about: Mapping[str, Any], vectors: Mapping[str, Any]) -> bool:
    """Whether a release ends at a layer, or pools, so that its vectors are not these."""
    return any(
        about.get(name) is not None and vectors.get(name) not in (None, about[name])
        for name in ("layer", "pooling")
    )


# ------------------------------------------------------------------------------------------------- sentences


def _summary(about: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    kinds = {
        "sentence-transformers": "Sentence vectors of a multilingual text encoder",
        "onnx": "A multilingual text encoder as an ONNX graph",
    }
    kind = kinds.get(about["format"], "A multilingual text encoder")
    if not training:
        return f"{kind} with the architecture of XLM-R. How it was trained is not recorded here."
    start = _code(training["base_model"] or training["starts_from"] or "")
    objectives = [OBJECTIVES[name] for name in _objectives(training)]
    if not objectives:
        return f"{kind}, fine-tuned from {start}."
    origin = f"started from {start} and further pre-trained" if start else "pre-trained from random weights"
    paper = "[InfoXLM](https://arxiv.org/abs/2007.07834)"
    languages = _number(len(_languages(training)), "language")
    return f"{kind}, {origin} on {languages} as in {paper}, by {_listed(objectives)}."


def _facts(about: Mapping[str, Any], training: Mapping[str, Any], *, size: int) -> dict[str, str]:
    unit = ", scaled to length 1" if about.get("normalize") else ""
    cut = {}
    if about.get("layer") is not None:
        cut = {"Vectors": f"{_vector(about['layer'], about.get('pooling'))}, the last of this release{unit}"}
    return {
        "Form": f"{_text(about['format'])} ({_text(about['architecture'])})",
        "Parameters": f"{about['num_parameters']:,}, stored as {_text(about['dtype'])}",
        "Length of a vector": f"{size:,}",
        **cut,
        **_contrast(about, training),
        **({"Started from": _code(training["base_model"])} if training.get("base_model") else {}),
        **({"Languages": _text(", ".join(_languages(training)))} if _languages(training) else {}),
        "Weights it was made of": f"sha256 {_code(str(about['source_sha256']))}",
    }


def _contrast(about: Mapping[str, Any], training: Mapping[str, Any]) -> dict[str, str]:
    """What the contrast trained, which need not be what a release gives."""
    recipe = training.get("recipe", {})
    if "xlco" not in (recipe.get("objectives") or "") or recipe.get("xlco_layer") is None:
        return {}
    kept = "part" if about["format"] == "infoxlm" else "no part"
    projection = (
        f", through a projection, {kept} of this release" if recipe.get("xlco_use_projection") else ""
    )
    return {"Contrast trained on": _vector(recipe["xlco_layer"], recipe.get("xlco_pooling")) + projection}


def _limits(training: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> list[str]:
    limits = []
    if _languages(training):
        start = _code(training["base_model"] or training["starts_from"] or "")
        other = f"comes from {start}" if start else "was learnt by accident"
        limits.append(
            f"It was trained here on {_text(', '.join(_languages(training)))}; "
            f"what it knows of others {other}."
        )
    if training and not training["finished"]:
        limits.append("This is a checkpoint of a training that had not ended.")
    if not results:
        limits.append("It was not measured on a public benchmark.")
    if training.get("heldout"):
        limits.append(
            "Held-out pairs come from the same sources as the training text; other text will be harder."
        )
    limits.append("It may have taken over biases of the text it was trained on; this was not examined.")
    return limits


# ---------------------------------------------------------------------------------------------------- tables


def _evaluation(
    results: Sequence[Mapping[str, Any]], training: Mapping[str, Any], about: Mapping[str, Any]
) -> str:
    parts = [_result_section(result, about) for result in results]
    if training.get("heldout"):
        parts.append(_heldout_section(training, about))
    return "\n\n".join(parts) or "Nothing was measured."


def _result_section(result: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    title = BENCHMARKS[result["task"]].title if result["task"] in BENCHMARKS else _text(result["task"])
    path = f"{RESULTS_FOLDER}/{result['task']}_results.json"
    unit = "%" if result["unit"] == "percent" else _text(result["unit"])
    metrics = list(next(iter(result["scores"].values())))
    rows = [
        [
            _text(language),
            *(_interval(scores[metric]) for metric in metrics),
            f"{scores[metrics[0]]['count']:,}",
        ]
        for language, scores in sorted(result["scores"].items())
    ]
    means = {name: value for name, value in result["summary"].items() if name.startswith("mean")}
    summary = ", ".join(f"{_text(name.replace('_', ' '))} {value:.1f}" for name, value in means.items())
    return "\n\n".join(
        [
            f"### {title}",
            f"{_conditions(result)}{_measured_on(result, about)} "
            f"In {unit} with 95 % intervals; [all numbers]({path}).",
            _table(["", *(_text(metric.replace("_", " ")) for metric in metrics), "items"], rows),
            f"Over languages: {summary}." if summary else "",
        ]
    ).rstrip()


def _conditions(result: Mapping[str, Any]) -> str:
    """What a reader must know to compare: the data, the settings, and whether it is all of the test set."""
    shown = (
        "layer",
        "pooling",
        "similarity",
        "margin",
        "margin_neighbours",
        "scoring_rules",
        "train_language",
        "max_seq_length",
        "learning_rate",
        "num_train_epochs",
        "bf16",
    )
    own = {name: result["settings"].get(name) for name in shown}
    settings = [_text(f"{name} {value}") for name, value in own.items() if value is not None]
    partial = sorted(
        {language for language in result["scores"] if "-" not in language} - {*whole_test_sets(result)}
    )
    comparable = (
        " **Not a whole public test set, as far as its content tells, so not comparable with published "
        f"numbers: {_text(', '.join(partial))}.**"
        if partial
        else ""
    )
    seed = "" if result["seed"] is None else f", seed {_text(str(result['seed']))}"
    measure = (
        f" Measure: {_text(str(result['details']['measure']))}." if "measure" in result["details"] else ""
    )
    data = f"Data: {_text(result['dataset']['name'])}.{measure}"
    return f"{data} Settings: {', '.join(settings)}{seed}.{comparable}"


def _measured_on(result: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """Where it was not the very model that is released."""
    notes = []
    if about.get("layer") is not None and "layer" not in result["settings"]:
        notes.append(
            f" It was measured on the whole model; this release ends at layer {about['layer']}, "
            "without a head."
        )
    if about["dtype"] != "float32" and result["model"]["sha256"] == about.get("source_sha256"):
        notes.append(f" It was measured before the weights were stored as {_text(about['dtype'])}.")
    return "".join(notes)


def _heldout_section(training: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    metrics = training["heldout"]
    retrieval = {
        name.removeprefix("retrieval/"): value
        for name, value in metrics.items()
        if name.startswith("retrieval/")
    }
    losses = {name: value for name, value in metrics.items() if name.startswith(("loss/", "information/"))}
    vectors = training.get("heldout_vectors") or {}
    where = f" by vectors of layer {vectors['layer']}, {vectors['pooling']} pooling" if vectors else ""
    parts = [f"### Held-out sentences of the training text\n\n[All numbers]({TRAINING_FILE})."]
    if training.get("heldout_warning"):
        parts.append(f"**{_text(training['heldout_warning'])}**")
    start = training.get("heldout_start") or {}
    if retrieval and _gives_others(about, vectors):
        parts.append(
            f"Retrieval was measured{where}; this release gives others ("
            f"{_vector(about['layer'], about.get('pooling'))}), which were not measured: "
            "`infoxlm tatoeba --model_name_or_path` of this release does it."
        )
    elif retrieval:
        parts.append(f"Translations found first, in %{where}, mean of both directions:")
        parts.append(
            _heldout_table("pair", "top-1", retrieval, start, scale=100, digits=1, prefix="retrieval/")
        )
    if losses:
        parts.append("Losses and lower bounds of mutual information, in nats:")
        parts.append(_heldout_table("", "nats", losses, start, digits=3))
    return "\n\n".join(parts)


def _heldout_table(
    first: str,
    unit: str,
    values: Mapping[str, float],
    start: Mapping[str, float],
    *,
    digits: int,
    scale: int = 1,
    prefix: str = "",
) -> str:
    """One row a measure; with what it was before the first step, where a run has measured that."""
    columns = [start, {f"{prefix}{name}": value for name, value in values.items()}]
    titles = ["before the training", f"after it, {unit}"]
    if not start:
        columns, titles = columns[1:], [unit]
    rows = [
        [
            _text(name),
            *(
                f"{scale * column[key]:.{digits}f}" if (key := prefix + name) in column else ""
                for column in columns
            ),
        ]
        for name in values
    ]
    return _table([first, *titles], rows)


def _training(training: Mapping[str, Any]) -> str:
    if not training:
        return "No record of the training is in this repository."
    parts = [f"[Everything below, in full]({TRAINING_FILE})."]
    if training["languages"]:
        parts.append(
            "### Text in one language\n\n" + _share_table(training["languages"], "language", "sentences")
        )
    if training["pairs"]:
        parts.append("### Translated pairs\n\n" + _share_table(training["pairs"], "pair", "pairs"))
    if training["sources"]:
        names = ", ".join(_code(source["name"]) for source in training["sources"])
        parts.append(f"Read from {names}; their hashes stand in [{TRAINING_FILE}]({TRAINING_FILE}).")
    parts.append(_recipe(training))
    parts.append("### Compute\n\n" + _compute(training))
    return "\n\n".join(parts)


def _share_table(entries: Mapping[str, Mapping[str, Any]], first: str, second: str) -> str:
    rows = [
        [_text(name), f"{entry['sentences']:,}", f"{entry['tokens']:,}", f"{100 * entry['share']:.1f}"]
        for name, entry in entries.items()
    ]
    return _table([first, second, "tokens", "% of the examples drawn"], rows)


def _recipe(training: Mapping[str, Any]) -> str:
    recipe, changed = training["recipe"], training["non_default"]
    own = {name: recipe[name] for name in changed if name in recipe}
    rest = {name: value for name, value in recipe.items() if name not in own}
    parts = ["### Recipe"]
    if own:
        parts += ["Set for this run:", _table(["flag", "value"], _settings(own))]
    title = "Values left at their defaults" if own else "All values"
    folded = (
        f"<details><summary>{title}</summary>\n\n{_table(['flag', 'value'], _settings(rest))}\n\n</details>"
    )
    return "\n\n".join([*parts, folded])


def _settings(recipe: Mapping[str, Any]) -> list[list[str]]:
    return [
        [_code(name), _code(json.dumps(value))]
        for name, value in recipe.items()
        if value is not None  # nothing that was used
    ]


def _compute(training: Mapping[str, Any]) -> str:
    compute = training["compute"]
    lines = [f"- Machine: {_text(compute['machine'])}"]
    if compute["steps"]:
        lines.append(f"- Steps: {compute['steps']:,}")
    if compute["tokens"]:
        lines.append(f"- Tokens: {compute['tokens']:,}")
    if compute["floating_point_operations"]:
        lines.append(f"- Useful floating point operations: {compute['floating_point_operations']:.3g}")
    if compute["seconds"]:
        since = compute["resumed_at_step"]
        note = f" since step {since:,}, where it was last resumed" if since else ""
        lines.append(f"- Time: {compute['seconds'] / 3600:.2f} hours{note}")
    versions = {"Python": training["python"], **training["versions"]}
    software = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines.append(f"- Software: {_text(software)}")
    if training["commit"]:
        lines.append(f"- Code: modeling_infoxlm at commit {_code(training['commit'])}")
    return "\n".join(lines)


# What begins something in Markdown or HTML; an underscore within a word does not, nor does a lone colon.
_MARKUP = re.compile(r"[\\`*\[\]<&|~$#]|(?<!\w)_|_(?!\w)|:(?=//)|(?<=www)\.")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9_][\w.\-]*)?")
_LANGUAGE = re.compile(r"[a-z]{2,3}([-_][A-Za-z0-9]+)*")


def _one_line(text: str) -> str:
    return "".join(character for character in " ".join(text.split()) if character.isprintable())


def _text(text: str) -> str:
    """A text out of a file, which anybody may have written, as plain words of Markdown."""
    return _MARKUP.sub(r"\\\g<0>", _one_line(text))


def _code(text: str) -> str:
    """The same as code, in a fence that it cannot end and a table cell that it cannot leave."""
    line = _one_line(text).replace("|", "\N{BROKEN BAR}")
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if fence != "`" else ""
    return f"{fence}{space}{line}{space}{fence}" if line else ""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _interval(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:.1f} ({estimate['low']:.1f} to {estimate['high']:.1f})"


def _figures(release: Path) -> list[dict[str, str]]:
    return [
        {
            "path": f"{FIGURES_FOLDER}/{quote(path.name)}",
            "alt": _text(path.stem.replace("_", " ").replace("-", " ")),
        }
        for path in sorted((release / FIGURES_FOLDER).glob("*.png"))
    ]


def _objectives(training: Mapping[str, Any]) -> list[str]:
    return [name for name in (training["recipe"].get("objectives") or "").split(",") if name in OBJECTIVES]


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _config(release: Path) -> Any:
    return AutoConfig.from_pretrained(release)
