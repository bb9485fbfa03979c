"""Bitext retrieval: is the nearest sentence on the other side the translation?

The protocol of InfoXLM (arXiv 2007.07834, section 4.2) on the Tatoeba test sets (Artetxe and Schwenk, 2019):
the mean of all tokens of layer 7, cosine, no margin, both directions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from modeling_infoxlm.evaluation.encoders import Encoder
from modeling_infoxlm.evaluation.encoding import Pooling
from modeling_infoxlm.evaluation.results import (
    RESULT_SUFFIX,
    DatasetRecord,
    Estimate,
    TaskResult,
    estimate_share,
)
from modeling_infoxlm.evaluation.retrieval.bitext_sets import (
    PAPER_LANGUAGES,
    XTREME_LANGUAGES,
    BitextSet,
    load_dataset_pairs,
    load_files,
    load_folder,
)
from modeling_infoxlm.evaluation.retrieval.mining import (
    NEIGHBOURS,
    Margin,
    Search,
    Similarity,
    choose_search,
    translations_found,
)
from modeling_infoxlm.runs.errors import UsageError, import_extra
from modeling_infoxlm.runs.files import whole_file
from modeling_infoxlm.runs.flags import flag

TASK = "tatoeba"
FIGURE_NAME = f"{TASK}_layers.png"
PAPER_LAYER = 7  # of 12, in the paper for XLM-R and InfoXLM alike
DIRECTIONS = ("source_to_target", "target_to_source")
LANGUAGE_GROUPS = {"mean_14": PAPER_LANGUAGES, "mean_36": XTREME_LANGUAGES}


@dataclass
class SearchArguments:
    """How sentences are encoded and compared."""

    layer: int | None = flag(
        None,
        "Layer of the vectors, 0 is the embedding output. Unset: 7, or the last of fewer layers, or of a "
        "sentence-transformers folder.",
    )
    pooling: Pooling = flag("mean", "Mean of all tokens, or the first token.")
    margin: Margin = flag("none", "Compare a similarity with those of nearest neighbours (arXiv 1811.01136).")
    margin_neighbours: int = flag(NEIGHBOURS, "Nearest neighbours of a margin; they are the candidates.")


@dataclass
class TatoebaArguments(SearchArguments):
    """Test sets of translated sentences, and how they are searched. The defaults are the paper's."""

    _argument_group_name = "retrieval"
    data_dir: str | None = flag(
        None, "Folder of test sets: Tatoeba (xx-en.xx, xx-en.en), NTREX, FLORES, or .tsv files."
    )
    bitext_files: list[str] | None = flag(None, "Instead of data_dir: x.de,x.en or de-en=pairs.tsv.")
    dataset_name: str | None = flag(None, "Instead: a dataset, mteb/tatoeba-bitext-mining, or its folder.")
    dataset_revision: str | None = flag(None, "Branch, tag or commit of dataset_name. Unset: the newest.")
    languages: list[str] | None = flag(None, "Languages beside English. Unset: all that are found.")
    similarity: Similarity = flag("cosine", "Similarity of two vectors.")
    all_layers: bool = flag(False, f"Measure every layer too, and draw the curve: {FIGURE_NAME}.")
    output_dir: str = flag("tatoeba", f"Folder of the results: {TASK}{RESULT_SUFFIX}.")
    overwrite_output_dir: bool = flag(False, "Replace the results that are in output_dir.")
    push_to_hub: bool = flag(False, "Publish the model, which must be a folder, with these results.")
    hub_model_id: str | None = flag(None, "Repository for push_to_hub, ORG/NAME. Unset: the folder's name.")

    def __post_init__(self) -> None:
        """Check that the test sets are given in one way."""
        given = [name for name in ("data_dir", "bitext_files", "dataset_name") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                "give the test sets by one of --data_dir, --bitext_files and --dataset_name, "
                f"found {', '.join(given) or 'none'}."
            )

    def load_sets(self, token: str | None = None) -> tuple[list[BitextSet], DatasetRecord]:
        """Read the test sets; a `UsageError` if one cannot be read or a language is missing."""
        if self.dataset_name:
            name, revision = self.dataset_name, self.dataset_revision
            return load_dataset_pairs(name, self.languages, revision=revision, token=token)
        if self.bitext_files:
            return load_files(self.bitext_files, self.languages)
        return load_folder(str(self.data_dir), self.languages)


def check_output(arguments: TatoebaArguments) -> None:
    """Refuse what could not be written, before anything is computed."""
    path = Path(arguments.output_dir) / f"{TASK}{RESULT_SUFFIX}"
    if path.exists() and not arguments.overwrite_output_dir:
        raise UsageError(f"{path} exists; give another --output_dir, or --overwrite_output_dir true.")
    if arguments.all_layers:
        import_extra("modeling_infoxlm.plots", extra="plots", purpose="figures of --all_layers")


def resolve_layer(encoder: Encoder, layer: int | None) -> int:
    """The layer asked for; unset it is the paper's, or the last one of a model with fewer.

    Of a sentence-transformers folder it is the last: those are the vectors that it gives.
    """
    if layer is None:
        is_cut = (Path(encoder.record.name_or_path) / "modules.json").is_file()
        layer = encoder.num_layers if is_cut else min(PAPER_LAYER, encoder.num_layers)
    return encoder.check_layer(layer)


def evaluate_retrieval(
    encoder: Encoder, sets: Sequence[BitextSet], dataset: DatasetRecord, arguments: TatoebaArguments
) -> TaskResult:
    """Measure retrieval in both directions of every set, of which there is at least one.

    `scores` has `accuracy`, the mean of both directions, and each direction; English is the target. A layer
    that the model lacks, or faiss if it is needed and not there, is a `UsageError`.
    """
    layer = resolve_layer(encoder, arguments.layer)
    largest = max(len(one.source) for one in sets)
    search = choose_search(largest, largest)
    layers = range(encoder.num_layers + 1) if arguments.all_layers else [layer]
    # NTREX and FLORES have one English side for all languages; it is encoded once.
    encode = lru_cache(maxsize=2)(partial(_encode, encoder, layers, arguments.pooling))
    hits = {}
    for one in tqdm(sets, "retrieval", unit="language", delay=2):
        sides = encode(tuple(one.source)), encode(tuple(one.target))
        hits[one.language] = _search_layers(*sides, arguments, search)
    scores = {language: _estimates(found[layers.index(layer)]) for language, found in hits.items()}
    return TaskResult(
        task=TASK,
        metric="accuracy",
        unit="percent",
        dataset=dataset,
        model=encoder.record,
        settings={
            "layer": layer,
            **{name: getattr(arguments, name) for name in ("pooling", "similarity", "margin")},
            "margin_neighbours": None if arguments.margin == "none" else arguments.margin_neighbours,
            "search": search,
            "max_length": encoder.max_length,
            "bf16": encoder.bf16,
        },
        scores=scores,
        summary=_summary(scores),
        details={
            "measure": "accuracy, the share of sentences whose nearest neighbour on the other side is the "
            "translation; mean of both directions",
            "pairs": {one.language: one.pair for one in sets},
            **(_layer_curves(hits) if arguments.all_layers else {}),
        },
    )


def _encode(encoder: Encoder, layers: Sequence[int], pooling: Pooling, texts: tuple[str, ...]) -> Tensor:
    """Vectors at one layer or at all, (L, N, D).

    A text that stands twice is encoded once: else rounding would decide which of the two is nearer.
    """
    rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    vectors = encoder.encode_layers(list(rows), layers=layers, pooling=pooling, progress=False)
    return vectors[:, [rows[text] for text in texts]]


def _search_layers(source: Tensor, target: Tensor, arguments: TatoebaArguments, search: Search) -> np.ndarray:
    """Whether each sentence is found, (L, 2, N), the directions in the order of `DIRECTIONS`."""
    find = partial(translations_found, similarity=arguments.similarity, margin=arguments.margin)
    k = arguments.margin_neighbours
    found = [find(*sides, k=k, search=search) for sides in zip(source, target, strict=True)]
    return torch.stack([torch.stack(directions) for directions in found]).cpu().numpy()


def _estimates(hits: np.ndarray) -> dict[str, Estimate]:
    """Both directions, (2, N), in percent, and their mean, of which a sentence pair is an item."""
    percent = 100.0 * hits
    directions = dict(zip(DIRECTIONS, percent, strict=True))
    shares = {name: estimate_share(items) for name, items in directions.items()}
    return {"accuracy": estimate_share(percent.mean(axis=0)), **shares}


def _summary(scores: Mapping[str, Mapping[str, Estimate]]) -> dict[str, float]:
    """Means over all languages, and over a known group of them if it is complete, direction by direction."""
    groups: dict[str, Sequence[str]] = {"mean": list(scores)}
    groups |= {name: group for name, group in LANGUAGE_GROUPS.items() if set(group) <= set(scores)}
    summary = {}
    for name, group in groups.items():
        for metric in ("accuracy", *DIRECTIONS):
            key = name if metric == "accuracy" else f"{name}_{metric}"
            summary[key] = float(np.mean([scores[language][metric].value for language in group]))
    return summary


def _layer_curves(hits: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Accuracy at each layer in percent: of each language, and the means over them."""
    shares = {language: (100.0 * found).mean(axis=2) for language, found in hits.items()}  # (L, 2)
    mean = np.mean(list(shares.values()), axis=0)
    return {
        "layers": {
            language: dict(zip(DIRECTIONS, share.T.tolist(), strict=True))
            for language, share in shares.items()
        },
        "layer_means": dict(zip(DIRECTIONS, mean.T.tolist(), strict=True)),
    }


def write_figure(folder: str | Path, result: TaskResult) -> Path | None:
    """Draw `<folder>/tatoeba_layers.png`; if the result has no layer curve, remove an older figure."""
    path = Path(folder) / FIGURE_NAME
    if "layers" not in result.details:
        path.unlink(missing_ok=True)
        return None
    from modeling_infoxlm import plots  # needs the extra `plots`

    figure = plots.layer_curve_figure(result.details["layers"], marked_layer=result.settings["layer"])
    with whole_file(path) as partial_path:
        plots.save_figure(figure, partial_path)
    return path
