"""Model cards: what a release's own files say, and nothing else.

`release.json` says what it is, `training.json` how it came to be, `results/` what was measured. What none of
them says does not stand in the card. `card_template.md` is the card; this file gathers what is put into it.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from markupsafe import Markup
from transformers import AutoConfig

from modeling_infoxlm.hub.benchmarks import BENCHMARKS, comparable_sets, whole_test_sets
from modeling_infoxlm.hub.evidence import (
    FIGURES_FOLDER,
    RELEASE,
    RESULTS_FOLDER,
    TRAINING,
    TRAINING_FILE,
    read_record,
)
from modeling_infoxlm.runs.files import write_text
from modeling_infoxlm.runs.provenance import read_result
from modeling_infoxlm.runs.secrets import blot_secrets

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
_KINDS = {
    "sentence-transformers": "Sentence vectors of a multilingual text encoder",
    "onnx": "A multilingual text encoder as an ONNX graph",
}
_PIPELINES = {
    "ForMaskedLM": "fill-mask",
    "ForPreTraining": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMultipleChoice": "multiple-choice",
}
# Settings that a reader must know to compare a result.
_CONDITIONS = (
    "layer pooling similarity margin margin_neighbours scoring_rules train_language max_seq_length "
    "learning_rate num_train_epochs bf16"
).split()
# What begins something in Markdown or HTML; an underscore within a word does not, nor does a lone colon.
_MARKUP = re.compile(r"[\\`*\[\]<&|~$#]|(?<!\w)_|_(?!\w)|:(?=//)|(?<=www)\.")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9_][\w.\-]*)?")
_LANGUAGE = re.compile(r"[a-z]{2,3}([-_][A-Za-z0-9]+)*")

Record = Mapping[str, Any]


def write_card(release: Path, repo_id: str, *, license: str | None = None) -> None:
    """Write README.md of a release; one that people have made their own is kept.

    Args:
        release: Folder with `release.json` and, as far as there are, `training.json`, `results/`, `figures/`.
        repo_id: Name of the repository, for the code in it.
        license: Licence of the model; None leaves it open.
    """
    path = release / CARD_NAME
    if path.is_file() and not is_ours(path.read_bytes()):
        return
    card = build_card(release, repo_id, license=license)
    write_text(path, blot_secrets(f"{str(card).rstrip()}\n"))


def is_ours(card: bytes) -> bool:
    """Whether nobody has made a card their own; it need not be UTF-8."""
    return MARKER.encode() in card


def build_card(release: Path, repo_id: str, *, license: str | None = None) -> ModelCard:
    """Fill the template from the files of a release; see `write_card`."""
    about = read_record(release / "release.json", RELEASE)
    training = read_record(release / TRAINING_FILE, TRAINING)
    results = [read_result(path) for path in sorted((release / RESULTS_FOLDER).glob("*.json"))]
    config = AutoConfig.from_pretrained(release)
    objectives = (training.get("recipe", {}).get("objectives") or "").split(",")
    layer, pooling = _sentence_vector(config.num_hidden_layers, about, training, results)
    contrast = _contrast(training)
    text = _template().render(
        metadata=card_data(about, training, results, name=repo_id, license=license),
        marker=MARKER,
        repo_id=repo_id,
        name=repo_id.split("/")[-1],
        kinds=_KINDS,
        about=about,
        training=training,
        training_file=_markdown(TRAINING_FILE),
        results=results,
        objectives=[OBJECTIVES.get(name, name) for name in objectives if name],
        languages=_languages(training),
        start=(training.get("base_model") or training.get("starts_from") or "") if training else "",
        contrast=contrast if "xlco" in objectives and contrast["layer"] is not None else {},
        layer=layer,
        pooling=pooling,
        size=config.hidden_size,
        figures=sorted((release / FIGURES_FOLDER).glob("*.png")),
    )
    return ModelCard(text, ignore_metadata_errors=True)


def card_data(
    about: Record, training: Record, results: Sequence[Record], *, name: str, license: str | None
) -> ModelCardData:
    """The metadata at the top of a card, by which the Hub finds and shows the model."""
    is_st = about["format"] == "sentence-transformers"
    pipelines = [value for end, value in _PIPELINES.items() if about["architecture"].endswith(end)]
    languages = [name for name in _languages(training) if _LANGUAGE.fullmatch(name)]
    evaluated = [entry for result in results for entry in _index_entries(result)]
    base = training.get("base_model")
    base = base if base and _HUB_NAME.fullmatch(base) else None
    return ModelCardData(
        language=["multilingual", *languages] if languages else None,
        license=license,
        library_name="sentence-transformers" if is_st else "transformers",
        pipeline_tag="sentence-similarity" if is_st else (*pipelines, "feature-extraction")[0],
        base_model=base,
        base_model_relation="finetune" if base else None,
        tags=["infoxlm", "xlm-roberta", "cross-lingual", *(["onnx"] if about["format"] == "onnx" else [])],
        datasets=[name for name in training.get("datasets") or () if _HUB_NAME.fullmatch(name)] or None,
        metrics=sorted({entry.metric_type for entry in evaluated}) or None,
        eval_results=evaluated or None,
        model_name=name.split("/")[-1],
    )


def _index_entries(result: Record) -> list[EvalResult]:
    """One entry for each language; results of a part, or of a dev set, stand in the tables only."""
    metric = result["metric"]
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
        for language, benchmark in comparable_sets(result).items()
    ]


def _languages(training: Record) -> list[str]:
    pairs = [language for pair in training.get("pairs", {}) for language in pair.split("-")]
    return sorted({*training.get("languages", {}), *pairs})


def _sentence_vector(
    depth: int, about: Record, training: Record, results: Sequence[Record]
) -> tuple[int, str]:
    """Layer and pooling of sentence vectors: the release's, else those measured, else those trained."""
    measured = [result["settings"] for result in results if result["task"] == "tatoeba"]
    known = (about, *measured, training.get("heldout_vectors") or {}, _contrast(training))
    layers = [found["layer"] for found in known if found.get("layer") is not None]
    poolings = [found["pooling"] for found in known if found.get("pooling") is not None]
    return min([*layers, depth][0], depth), [*poolings, "mean"][0]


def _contrast(training: Record) -> dict[str, Any]:
    """Layer and pooling of the vectors that the contrast was trained on; None where unknown."""
    return {name: training.get("recipe", {}).get(f"xlco_{name}") for name in ("layer", "pooling")}


# --- the template -------------------------------------------------------------------------------------------


@functools.cache
def _template() -> jinja2.Template:
    """The template, in which all that is no `Markup` becomes plain words."""
    environment = jinja2.Environment(
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else _markdown(_text(str(value))),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "code": _code,
        "json": json.dumps,
        "grouped": lambda number: f"{number:,}",
        "listed": lambda items: " and ".join(filter(None, [", ".join(items[:-1]), items[-1]])),
        "starting": lambda table, *starts: {key: table[key] for key in table if key.startswith(starts)},
        "interval": lambda one: f"{one['value']:.1f} ({one['low']:.1f} to {one['high']:.1f})",
        "title": lambda result: BENCHMARKS[task].title if (task := result["task"]) in BENCHMARKS else task,
        "conditions": _conditions,
        "partial": _partial,
        "means": _means,
        "vector": _vector,
        "gives_others": _gives_others,
        "recipes": _recipes,
    }
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def _conditions(result: Record) -> str:
    """Settings and seed of a result."""
    settings = {name: result["settings"].get(name) for name in _CONDITIONS} | {"seed": result["seed"]}
    return ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)


def _partial(result: Record) -> list[str]:
    """Languages whose test set is not a whole public one."""
    languages = {language for language in result["scores"] if "-" not in language}
    return sorted(languages - {*whole_test_sets(result)})


def _means(result: Record) -> str:
    means = {name: value for name, value in result["summary"].items() if name.startswith("mean")}
    return ", ".join(f"{name.replace('_', ' ')} {value:.1f}" for name, value in means.items())


def _vector(vectors: Record) -> Markup:
    tokens = {"mean": "mean of all tokens of ", "cls": "`<s>` of ", None: ""}
    return _markdown(f"{tokens[vectors.get('pooling')]}layer {vectors['layer']:d}")


def _gives_others(about: Record, vectors: Record) -> bool:
    """Whether a release ends at a layer, or pools, so that its vectors are not these."""
    return any(
        about.get(name) is not None and vectors.get(name) not in (None, about[name])
        for name in ("layer", "pooling")
    )


def _recipes(training: Record) -> tuple[dict[str, Any], dict[str, Any]]:
    """Values that were set for the run, and those left at their defaults; without what nothing used."""
    recipe = {name: value for name, value in training["recipe"].items() if value is not None}
    own = {name: recipe[name] for name in training["non_default"] if name in recipe}
    return own, {name: value for name, value in recipe.items() if name not in own}


def _one_line(text: str) -> str:
    return "".join(character for character in " ".join(text.split()) if character.isprintable())


def _text(text: str) -> str:
    """A text out of a file, which anybody may have written, as plain words of Markdown."""
    return _MARKUP.sub(r"\\\g<0>", _one_line(text))


def _code(text: str) -> Markup:
    """The same as code, in a fence that it cannot end and a table cell that it cannot leave."""
    line = _one_line(text).replace("|", "\N{BROKEN BAR}")
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if fence != "`" else ""
    return _markdown(f"{fence}{space}{line}{space}{fence}" if line else "")


def _markdown(text: str) -> Markup:
    """What may stand in a card as it is, since its caller has made it harmless."""
    return Markup(text)  # nosec B704
