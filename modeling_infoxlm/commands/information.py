"""Lower bounds of mutual information for the views of InfoXLM's three objectives: `infoxlm information`.

    infoxlm information --model_name_or_path out --bitext_files heldout/en-de.tsv --output_dir results

The paper (arXiv 2007.07834, section 3) reads its objectives as raising the mutual information of two views:
a masked token and its context (MLM), the same with the translation beside the context (TLM), and a sentence
and its translation (XlCo). Here that information is bounded from below, in nats, on text that is given; how
stands in `evaluation/information.py`.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console

from modeling_infoxlm.data.ragged import PackedRows
from modeling_infoxlm.data.readers import SkipBadLines, read_rows
from modeling_infoxlm.data.sources import Source, parse_bitext_sources
from modeling_infoxlm.evaluation.encoders import Encoder, EncoderArguments, load_encoder
from modeling_infoxlm.evaluation.encoding import Pooling
from modeling_infoxlm.evaluation.information import (
    MASK_PROBABILITY,
    LanguageModel,
    NoLanguageModel,
    SentenceBound,
    TokenBounds,
    load_language_model,
    sentence_bound,
    token_bounds,
)
from modeling_infoxlm.evaluation.results import DatasetRecord, TaskResult, print_result, write_result
from modeling_infoxlm.runs.config_file import parse_args_with_config
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.flags import flag
from modeling_infoxlm.runs.process import configure_process

logger = logging.getLogger(__name__)

TASK = "information"


@dataclass
class InformationArguments:
    """Which text, and how the bounds are taken."""

    _argument_group_name = "information"
    bitext_files: list[str] = flag(
        [],
        "Translated text that the model was not trained on: files (en-de.tsv.xz), two files with "
        "a comma (x.en,x.de), folders or globs; en-de=PATH if the name does not say the languages.",
    )
    output_dir: str = flag(TASK, "Folder of information_results.json.")
    layers: list[int] = flag([], "Layers of the sentence vectors, 0 the embedding output. Unset: all.")
    pooling: Pooling = flag("mean", "Sentence vector: mean of all tokens, or <s>.")
    max_pairs: int = flag(2000, "Pairs drawn of each language pair.")
    num_candidates: int = flag(
        500,
        "Sentences among which a translation is sought. The bound of the sentence view is at "
        "most its logarithm, and numbers compare only at the same one. At most half of the pairs.",
    )
    seed: int = flag(42, "Of the drawn pairs, the masks and the bootstrap.")

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.num_candidates < 2:
            raise ValueError(f"num_candidates must be at least 2, found {self.num_candidates}.")
        if self.max_pairs < 2 * self.num_candidates:
            raise ValueError(
                f"max_pairs must be at least twice num_candidates ({2 * self.num_candidates}), "
                f"found {self.max_pairs}: one half of the pairs chooses the temperature, one is measured."
            )


@dataclass(frozen=True)
class PairSample:
    """Pairs drawn from the text of one language pair."""

    languages: tuple[str, str]  # source and target
    texts: list[tuple[str, str]]  # pairs in random order
    num_pairs: int  # pairs with text on both sides from which they were drawn
    num_skipped: int  # lines that could not be read

    @property
    def sides(self) -> list[list[str]]:
        """Texts of the source and of the target."""
        return [[pair[number] for pair in self.texts] for number in (0, 1)]


def run(argv: list[str]) -> None:
    """Bound the information of the three views in given bitext."""
    arguments, encoder_arguments = parse_args_with_config(
        (InformationArguments, EncoderArguments), argv, program="infoxlm information", about=__doc__
    )
    configure_process()
    sources = _sources(arguments.bitext_files)
    samples = {pair: _read(found, arguments) for pair, found in sources.items()}
    encoder = load_encoder(encoder_arguments)
    layers = [encoder.check_layer(layer) for layer in arguments.layers] or list(range(encoder.num_layers + 1))
    sentences = {pair: _sentence_bounds(encoder, one, layers, arguments) for pair, one in samples.items()}
    tokens: dict[str, TokenBounds] = {}
    try:
        model = load_language_model(encoder_arguments, encoder)
    except NoLanguageModel as reason:
        logger.warning("Only the sentence view is measured, for masked tokens there is no model: %s", reason)
    else:
        for pair, sample in samples.items():
            tokens[pair] = _token_bounds(model, sample, encoder.max_length, arguments.seed)
    files = [location for found in sources.values() for source in found for location in source.locations]
    result = _result(arguments, encoder, DatasetRecord.of_files("bitext", files), samples, sentences, tokens)
    path = write_result(arguments.output_dir, result, command=["infoxlm", TASK, *argv])
    print_result(result, Console())
    ceiling = result.settings["log_candidates"]
    print(f"xlco: vectors of layer {result.settings['layer']}; the bound is never above {ceiling:.2f}.")
    print(path)


def _sources(specs: Sequence[str]) -> dict[str, list[Source]]:
    """Files by language pair, in the order given."""
    if not specs:
        raise UsageError("no text: give --bitext_files, translated text that the model was not trained on.")
    pairs: defaultdict[str, list[Source]] = defaultdict(list)
    for source in parse_bitext_sources(specs):
        if source.is_hub:
            raise UsageError(f"{source.locations[0]} is on the Hub; give local files, which can be hashed.")
        pairs[source.name].append(source)
    return dict(pairs)


def _read(sources: Sequence[Source], arguments: InformationArguments) -> PairSample:
    sample = draw_pairs(sources, max_pairs=arguments.max_pairs, seed=arguments.seed)
    if len(sample.texts) < 2 * arguments.num_candidates:
        fewer = len(sample.texts) // 2
        files = ", ".join(str(path) for source in sources for path in source.locations)
        raise UsageError(
            f"{sources[0].name} has {len(sample.texts):,} pairs with text on both sides ({files}), expected "
            f"at least 2 x {arguments.num_candidates:,}; give more text"
            + (f", or for all pairs --num_candidates {fewer}." if fewer > 1 else ".")
        )
    return sample


def draw_pairs(sources: Sequence[Source], *, max_pairs: int, seed: int) -> PairSample:
    """Draw pairs with text on both sides, all equally likely, in one pass over the files (a reservoir)."""
    rng, skipped = np.random.default_rng(seed), SkipBadLines()
    texts: list[tuple[str, str]] = []
    count = 0
    for source in sources:
        for first, second in read_rows(source, on_bad_line=skipped):
            if not (first.strip() and second.strip()):
                continue
            count += 1
            if len(texts) < max_pairs:
                texts.append((first, second))
            elif (place := int(rng.integers(count))) < max_pairs:
                texts[place] = first, second
    order = rng.permutation(len(texts)).tolist()
    first, second = sources[0].languages
    return PairSample((first, second), [texts[i] for i in order], count, skipped.count)


def _sentence_bounds(
    encoder: Encoder, sample: PairSample, layers: Sequence[int], arguments: InformationArguments
) -> dict[int, SentenceBound]:
    """The bound at each layer."""
    source, target = (
        encoder.encode_layers(texts, layers=layers, pooling=arguments.pooling) for texts in sample.sides
    )
    return {
        layer: sentence_bound(
            source[k], target[k], num_candidates=arguments.num_candidates, seed=arguments.seed
        )
        for k, layer in enumerate(layers)
    }


def _token_bounds(model: LanguageModel, sample: PairSample, max_length: int, seed: int) -> TokenBounds:
    # `<s> a </s> b </s>` must fit the positions. MLM sees the sentence cut alike, to compare with TLM.
    longest = (max_length - 3) // 2
    sides = {}
    for language, texts in zip(sample.languages, sample.sides, strict=True):
        rows = model.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        sides[language] = PackedRows.from_lists([ids[:longest] for ids in rows])
    return token_bounds(model, sides, seed=seed)


def _result(
    arguments: InformationArguments,
    encoder: Encoder,
    dataset: DatasetRecord,
    samples: Mapping[str, PairSample],
    sentences: Mapping[str, Mapping[int, SentenceBound]],
    tokens: Mapping[str, TokenBounds],
) -> TaskResult:
    layer = best_layer(list(sentences.values()))
    scores = {pair: {"xlco": bounds[layer].estimate} for pair, bounds in sentences.items()}
    for pair, found in tokens.items():
        scores[pair] |= {"mlm": found.mlm, "tlm": found.tlm, "tlm_minus_mlm": found.difference}
    metrics = list(next(iter(scores.values())))
    means = {metric: np.mean([pair[metric].value for pair in scores.values()]) for metric in metrics}
    layers = {
        pair: {
            str(number): {**asdict(bound.estimate), "temperature": bound.temperature}
            for number, bound in bounds.items()
        }
        for pair, bounds in sentences.items()
    }
    drawn = {
        pair: {"sampled": len(one.texts), "of": one.num_pairs, "skipped_lines": one.num_skipped}
        for pair, one in samples.items()
    }
    return TaskResult(
        task=TASK,
        metric="xlco",
        unit="nats",
        dataset=dataset,
        model=encoder.record,
        settings={
            "layer": layer,
            "layers": list(next(iter(sentences.values()))),
            **{name: getattr(arguments, name) for name in ("pooling", "max_pairs", "num_candidates")},
            "log_candidates": math.log(arguments.num_candidates),
            "mask_probability": MASK_PROBABILITY,
            "bf16": encoder.bf16,
        },
        seed=arguments.seed,
        scores=scores,
        summary={metric: float(mean) for metric, mean in means.items()},
        details={
            "layers": layers,
            "tokens": {pair: found.languages for pair, found in tokens.items()},
            "samples": drawn,
        },
    )


def best_layer(tables: Sequence[Mapping[int, Any]]) -> int:
    """The layer with the highest mean bound over all pairs, on the halves that are not measured."""
    return max(tables[0], key=lambda layer: float(np.mean([bounds[layer].tuned for bounds in tables])))
