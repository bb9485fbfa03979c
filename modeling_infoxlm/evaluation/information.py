"""Lower bounds of mutual information for the views of InfoXLM's three objectives: `infoxlm information`.

The paper (arXiv 2007.07834, section 3) reads its objectives as raising the mutual information of two views:
a masked token and its context (MLM), the same with the translation beside the context (TLM), and a sentence
and its translation (XlCo). Here that information is bounded from below, in nats, on text that is given.

Token views, X the token at a masked position and C what the model sees (Barber and Agakov, NIPS 2003):

    I(X; C) >= E[log q(X | C) - log p(X)] = H(X) - cross entropy of the model q,

for any q; what is missing is the divergence of q from the true conditional. The paper's own reading,
log |V| - cross entropy, is no bound of I(X; C): it takes the vocabulary for |V| samples of p(X), and exceeds
the bound above by log |V| - H(X), some 5 nats of XLM-R's 12.4. It is not reported.

Sentence view, X a sentence and Y its translation (InfoNCE, van den Oord et al., arXiv 1807.03748):

    I(X; Y) >= log K - cross entropy of a softmax that finds Y among K sentences,

for any score; here cosine / temperature. It is never above log K.

Shapes: N pairs, K candidates, G groups of K pairs, T tokens, M masked tokens, D hidden.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerBase

from modeling_infoxlm.data.masking import mask_tokens
from modeling_infoxlm.data.ragged import PackedRows, join_pieces
from modeling_infoxlm.data.readers import SkipBadLines, read_pairs
from modeling_infoxlm.data.sampling import hash64
from modeling_infoxlm.data.shards import SpecialTokens
from modeling_infoxlm.data.sources import BitextSource, is_hub, parse_bitext_sources
from modeling_infoxlm.data.tokenise import special_tokens
from modeling_infoxlm.evaluation.batching import (
    check_finite,
    packed_ids,
    padded_inputs,
    progress_bar,
    run_batches,
)
from modeling_infoxlm.evaluation.encoders import (
    Encoder,
    EncoderArguments,
    Pooling,
    load_encoder,
    transformer_folder,
)
from modeling_infoxlm.evaluation.results import (
    DatasetRecord,
    Estimate,
    TaskResult,
    bootstrap,
    write_result,
)
from modeling_infoxlm.fused_loss import linear_cross_entropy
from modeling_infoxlm.hub.loading import load_whole_model
from modeling_infoxlm.modeling_infoxlm import InfoXLMForPreTraining, InfoXLMModel
from modeling_infoxlm.packed import EncodeRequest, encode
from modeling_infoxlm.runs.config_file import parse_args_with_config
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.process import configure_process

logger = logging.getLogger(__name__)

TASK = "information"
MASK_PROBABILITY = 0.15  # as in pre-training
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 1e-3, 1e2
_BISECTIONS = 16  # the logarithm of the temperature to 1e-4
_PADDED_TOKENS_PER_BATCH = 512  # whole logits are held, 1 MB a token of a large vocabulary


# --- the sentence view --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SentenceBound:
    """A bound of the information of a sentence and its translation.

    Attributes:
        estimate: On the second half of the pairs, in nats.
        tuned: The same on the first half, which chose the temperature: higher than honest.
        temperature: Of the softmax.
    """

    estimate: Estimate
    tuned: float
    temperature: float


def sentence_bound(source: Tensor, target: Tensor, *, num_candidates: int, seed: int = 0) -> SentenceBound:
    """InfoNCE bound of line-aligned sentence vectors, mean of both directions, scores cosine / temperature.

    The first half of the pairs chooses the temperature, the second half is measured: chosen and measured on
    the same pairs the number could exceed the information.

    Args:
        source: Sentence vectors in random order, (N, D).
        target: Vectors of their translations, (N, D).
        num_candidates: K sentences among which each translation is sought; pairs are taken in groups of K,
            and what is left over of a half is not used.
        seed: Of the bootstrap, which draws pairs and keeps their candidates.

    Raises:
        ValueError: If a half has fewer than K pairs, K is below 2, or the sides differ in shape.
    """
    half = len(source) // 2
    if source.shape != target.shape or num_candidates < 2 or half < num_candidates:
        raise ValueError(
            f"expected two sides of equal shape with at least 2 x {num_candidates} pairs, and 2 candidates "
            f"or more; found {tuple(source.shape)} and {tuple(target.shape)}."
        )
    first, second = (
        grouped_cosines(source[part], target[part], num_candidates)
        for part in (slice(None, half), slice(half, None))
    )
    temperature = best_temperature(first)
    terms = infonce_terms(second, temperature).cpu().numpy()
    return SentenceBound(
        bootstrap(terms, seed=seed), float(infonce_terms(first, temperature).mean()), temperature
    )


def grouped_cosines(source: Tensor, target: Tensor, num_candidates: int) -> Tensor:
    """Cosines of sentences (N, D) and translations (N, D) in groups of K, (G, K, K); pairs: the diagonal."""
    count = len(source) // num_candidates * num_candidates
    source, target = (
        F.normalize(side[:count].float(), dim=-1).unflatten(0, (-1, num_candidates))
        for side in (source, target)
    )
    return source @ target.transpose(1, 2)


def infonce_terms(scores: Tensor, temperature: float) -> Tensor:
    """Terms whose mean is the InfoNCE bound in nats, none above log K, (G * K,).

    Each is the mean of two: the sentence seeks its translation, the translation its sentence. Both have the
    bound's expectation below the information, so their mean has it too.

    Args:
        scores: Of sentences with candidates, (G, K, K), each pair's own on the diagonal.
        temperature: Divides the scores.
    """
    logits = scores.double() / temperature  # in fp32 the sum with log K may round to above log K
    log_sums = (logits.logsumexp(dim=2) + logits.logsumexp(dim=1)) / 2
    own = logits.diagonal(dim1=1, dim2=2)
    return (math.log(scores.shape[1]) + own - log_sums).flatten()


def best_temperature(scores: Tensor) -> float:
    """The temperature at which the mean of `infonce_terms` is highest, in 0.001..100.

    The bound is concave in 1 / temperature (a linear function minus logarithms of sums of exponentials), so
    the sign of its slope says on which side the highest point lies.
    """
    low, high = -math.log(HIGHEST_TEMPERATURE), -math.log(LOWEST_TEMPERATURE)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if _slope(scores, math.exp(middle)) > 0:
            low = middle
        else:
            high = middle
    return math.exp(-(low + high) / 2)


def _slope(scores: Tensor, scale: float) -> float:
    """Slope of the bound in scale = 1 / temperature: own scores minus those that the softmax expects."""
    logits = scores * scale
    expected = ((logits.softmax(dim=dim) * scores).sum(dim=dim) for dim in (2, 1))
    return float((scores.diagonal(dim1=1, dim2=2) - sum(expected) / 2).mean())


# --- the token views ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MaskedSide:
    """Sentences of one language without special tokens, and masks in them.

    Attributes:
        text: N sentences.
        inputs: The same tokens with the chosen ones masked, (T,).
        chosen: Where, bool (T,).
        counts: Chosen tokens of each sentence, (N,), sum M.
        surprisals: -log p of each chosen token, (M,); p is its share of the ordinary tokens of `text`.
        entropy: Of p, in nats.
        entropy_bias: By how much `entropy`, and with it a bound, is too low at least, in nats, since p is
            that of a sample, in which rare tokens are missing: the first term of the bias (Miller, 1955).
    """

    text: PackedRows
    inputs: np.ndarray
    chosen: np.ndarray
    counts: np.ndarray
    surprisals: np.ndarray
    entropy: float
    entropy_bias: float


def mask_side(text: PackedRows, special: SpecialTokens, *, keys: np.ndarray) -> MaskedSide:
    """Mask 15 % of the ordinary tokens of each sentence.

    All of them become `<mask>`. Pre-training leaves a tenth as they are; that would tell the model the very
    token whose information is measured.

    Args:
        text: N sentences without special tokens.
        special: The tokenizer's special tokens.
        keys: One uint64 for each sentence, (N,); the masks follow from it.
    """
    masked = mask_tokens(
        text.tokens,
        text.lengths,
        keys,
        special=special,
        probability=MASK_PROBABILITY,
        mask_share=1.0,
        random_share=0.0,
    )
    chosen = np.zeros(len(text.tokens), dtype=bool)
    chosen[masked.rows] = True
    ordinary = np.bincount(text.tokens, minlength=special.vocab_size)
    ordinary[list(special.all_ids)] = 0
    total, kinds = max(1, int(ordinary.sum())), int((ordinary > 0).sum())
    shares = ordinary[ordinary > 0] / total
    return MaskedSide(
        text=text,
        inputs=masked.input_ids,
        chosen=chosen,
        counts=masked.counts,
        surprisals=-np.log(ordinary[masked.labels] / total),
        entropy=float(-(shares * np.log(shares)).sum()),
        entropy_bias=max(0, kinds - 1) / (2 * total),
    )


@dataclass(frozen=True)
class MaskedSequences:
    """Whole sequences for the model, with special tokens.

    Attributes:
        inputs: N sequences.
        targets: The true tokens, (T,).
        side: Which side each chosen token is of, -1 for tokens that are not chosen, (T,).
    """

    inputs: PackedRows
    targets: np.ndarray
    side: np.ndarray


def join_sides(sides: Sequence[MaskedSide], special: SpecialTokens) -> MaskedSequences:
    """`<s> a </s>` of one side, `<s> a </s> b </s>` of two, masks and all."""
    count = len(sides[0].text)
    order = np.arange(len(sides) * count).reshape(len(sides), count).T.ravel()

    def join(tokens: Sequence[np.ndarray]) -> PackedRows:
        pieces = PackedRows.join(
            [PackedRows(part, side.text.lengths) for part, side in zip(tokens, sides, strict=True)]
        )
        return join_pieces(pieces.take(order), np.full(count, len(sides)), special)

    # No id is that high, so a special token between the pieces is not taken for a chosen one.
    codes = join(
        [np.where(side.chosen, special.vocab_size + number, 0) for number, side in enumerate(sides)]
    ).tokens
    return MaskedSequences(
        inputs=join([side.inputs for side in sides]),
        targets=join([side.text.tokens for side in sides]).tokens,
        side=np.maximum(codes.astype(np.int64) - special.vocab_size, -1),
    )


class NoLanguageModel(ValueError):
    """A checkpoint that cannot predict masked tokens; the message says why."""


@dataclass(frozen=True)
class LanguageModel:
    """A model with a head that predicts masked tokens.

    Attributes:
        model: In eval mode; an `InfoXLMForPreTraining` for XLM-R and InfoXLM, which runs packed.
        tokenizer: Its tokenizer.
        special: The special tokens of it.
        bf16: Run products in bf16.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    special: SpecialTokens
    bf16: bool = False

    def losses(self, sequences: MaskedSequences, *, progress: bool = True) -> np.ndarray:
        """-log q of the true token at each chosen position, in nats, in the order of the text, (M,)."""
        inputs, losses = sequences.inputs, np.zeros(len(sequences.targets))
        places = PackedRows(np.arange(len(losses)), inputs.lengths)

        def run(members: np.ndarray) -> None:
            place = places.take(members).tokens
            rows = np.flatnonzero(sequences.side[place] >= 0)
            if len(rows):
                labels = torch.from_numpy(sequences.targets[place[rows]].astype(np.int64))
                batch = inputs.take(members)
                found = self._batch_losses(batch, rows, labels.to(self.model.device))
                owner = np.repeat(members, batch.lengths)[rows]
                check_finite(found[:, None], self.model, lambda i: f"sentence {i + 1:,}", owner)
                losses[place[rows]] = found.double().cpu().numpy()

        most = None if isinstance(self.model, InfoXLMForPreTraining) else _PADDED_TOKENS_PER_BATCH
        with progress_bar(len(inputs), "masked tokens", " sentences", show=progress) as bar:
            run_batches(self.model, inputs.lengths, run, bf16=self.bf16, tokens_per_batch=most, bar=bar)
        return losses[sequences.side >= 0]

    def _batch_losses(self, batch: PackedRows, rows: np.ndarray, labels: Tensor) -> Tensor:
        """Losses (M,) at rows (M,) of the batch's tokens (T,)."""
        model, index = self.model, torch.from_numpy(rows).to(self.model.device)
        if isinstance(model, InfoXLMForPreTraining):
            ids, last = packed_ids(batch, model.device), model.config.num_hidden_layers
            (hidden,) = encode(model.roberta, [EncodeRequest(ids, batch.lengths.tolist(), last, index)])
            weight, bias = model.output_table()
            return linear_cross_entropy(model.transform(hidden), weight, bias, labels)
        inputs = padded_inputs(batch, model)
        logits = model(**inputs).logits[inputs["attention_mask"].bool()]
        return F.cross_entropy(logits[index].float(), labels, reduction="none")


def load_language_model(arguments: EncoderArguments, encoder: Encoder) -> LanguageModel:
    """Load the language model head of a checkpoint, and the encoder below it.

    Args:
        arguments: Which checkpoint.
        encoder: The same one as `load_encoder` gives it.

    Raises:
        NoLanguageModel: If the checkpoint has no such head, or the tokenizer no mask.
    """
    name = transformer_folder(encoder.record.name_or_path)
    model_class: Any = AutoModelForMaskedLM
    options = arguments.hub_options()
    if isinstance(encoder.model, InfoXLMModel):
        # The contrast is not used here, and for odd depths has no default layer.
        model_class, options = InfoXLMForPreTraining, {**options, "xlco_layer": encoder.num_layers}
    try:
        special = special_tokens(encoder.tokenizer)
        model, info = load_whole_model(model_class, name, dtype=torch.float32, **options)
    except ValueError as error:  # of the tokenizer, or of a configuration that has no masked language model
        raise NoLanguageModel(str(error).split("\n")[0]) from error
    known = (f"{model.base_model_prefix}.", "objectives.")
    missing = [key for key in info["missing_keys"] if not key.startswith(known)]
    if missing:
        raise NoLanguageModel(f"it has no language model head ({sorted(missing)[0]} is missing)")
    return LanguageModel(model.to(encoder.model.device).eval(), encoder.tokenizer, special, encoder.bf16)


@dataclass(frozen=True)
class TokenBounds:
    """Bounds of the information of masked tokens and their contexts in one language pair, in nats.

    Each language's tokens are held against their own frequencies: which language a token is of counts for
    nothing.

    Attributes:
        mlm: The context is the rest of the sentence.
        tlm: The context is the rest of the sentence and the translation, which is masked as well.
        difference: `tlm` - `mlm` over the same tokens; as a difference of two bounds it bounds nothing.
        languages: For each language its number of masked `tokens`, their `entropy`, `entropy_bias`, and the
            bounds `mlm` and `tlm`.
    """

    mlm: Estimate
    tlm: Estimate
    difference: Estimate
    languages: Mapping[str, Mapping[str, float]]


def token_bounds(
    model: LanguageModel, sides: Mapping[str, PackedRows], *, seed: int, progress: bool = True
) -> TokenBounds:
    """Bounds for both token views, of the same masked tokens.

    Args:
        model: Language model.
        sides: Source language and its N sentences without special tokens, target language and their
            translations.
        seed: Of the masks and the bootstrap, which draws pairs of sentences.
        progress: Show a progress bar when it takes longer than two seconds.

    Raises:
        ValueError: If no token is masked.
    """
    masked = [
        mask_side(text, model.special, keys=hash64(seed, TASK, number, np.arange(len(text))))
        for number, text in enumerate(sides.values())
    ]
    if not sum(side.chosen.sum() for side in masked):
        raise ValueError("expected text with ordinary tokens to mask, found none.")
    both = join_sides(masked, model.special)
    with_translation = model.losses(both, progress=progress)
    owner = both.side[both.side >= 0]
    mlm = [
        side.surprisals - model.losses(join_sides([side], model.special), progress=progress)
        for side in masked
    ]
    tlm = [side.surprisals - with_translation[owner == number] for number, side in enumerate(masked)]
    counts = [side.counts for side in masked]
    return TokenBounds(
        mlm=mean_gain(mlm, counts, seed=seed),
        tlm=mean_gain(tlm, counts, seed=seed),
        difference=mean_gain([b - a for a, b in zip(mlm, tlm, strict=True)], counts, seed=seed),
        languages={
            language: {
                "tokens": len(a),
                "entropy": side.entropy,
                "entropy_bias": side.entropy_bias,
                "mlm": _mean(a),
                "tlm": _mean(b),
            }
            for language, side, a, b in zip(sides, masked, mlm, tlm, strict=True)
        },
    )


def mean_gain(gains: Sequence[np.ndarray], counts: Sequence[np.ndarray], *, seed: int = 0) -> Estimate:
    """Mean over tokens of log q(x | c) - log p(x): H(X) - cross entropy.

    Surprisal and loss are averaged over the same tokens, so that a sample with many rare ones moves both.

    Args:
        gains: For each side the gain of each masked token, sentence by sentence, (M,).
        counts: For each side the masked tokens of each of the N sentences, (N,).
        seed: Of the bootstrap; it draws pairs, since the tokens of a sentence hang together.
    """
    ends = [np.cumsum(count) for count in counts]
    sums = [
        np.diff(np.concatenate([[0.0], np.cumsum(gain)])[np.concatenate([[0], end])])
        for gain, end in zip(gains, ends, strict=True)
    ]
    table = np.stack([np.sum(sums, axis=0), np.sum(counts, axis=0)], axis=1)
    return bootstrap(table, lambda means: means[..., 0] / np.maximum(means[..., 1], 1e-12), seed=seed)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


# --- the command --------------------------------------------------------------------------------------------


@dataclass
class InformationArguments:
    """Which text, and how the bounds are taken."""

    _argument_group_name = "information"

    bitext_files: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Translated text that the model was not trained on: files (en-de.tsv.xz), two files with "
            "a comma (x.en,x.de), folders or globs; en-de=PATH if the name does not say the languages."
        },
    )
    output_dir: str = field(default=TASK, metadata={"help": "Folder of information_results.json."})
    layers: list[int] = field(
        default_factory=list,
        metadata={"help": "Layers of the sentence vectors, 0 the embedding output. Unset: all of them."},
    )
    pooling: Pooling = field(
        default="mean", metadata={"help": "Sentence vector: mean of all tokens, or <s>."}
    )
    max_pairs: int = field(default=2000, metadata={"help": "Pairs drawn of each language pair."})
    num_candidates: int = field(
        default=500,
        metadata={
            "help": "Sentences among which a translation is sought. The bound of the sentence view is at "
            "most its logarithm, and numbers compare only at the same one. At most half of the pairs."
        },
    )
    seed: int = field(default=42, metadata={"help": "Of the drawn pairs, the masks and the bootstrap."})

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: With what was expected.
        """
        if self.num_candidates < 2:
            raise ValueError(f"num_candidates must be at least 2, found {self.num_candidates}.")
        if self.max_pairs < 2 * self.num_candidates:
            raise ValueError(
                f"max_pairs must be at least twice num_candidates ({2 * self.num_candidates}), "
                f"found {self.max_pairs}: one half of the pairs chooses the temperature, one is measured."
            )


@dataclass(frozen=True)
class PairSample:
    """Pairs drawn from the text of one language pair.

    Attributes:
        languages: Source and target.
        texts: Pairs in random order.
        num_pairs: Pairs with text on both sides from which they were drawn.
        num_skipped: Lines that could not be read.
    """

    languages: tuple[str, str]
    texts: list[tuple[str, str]]
    num_pairs: int
    num_skipped: int

    def side(self, number: int) -> list[str]:
        """Texts of the source (0) or the target (1)."""
        return [pair[number] for pair in self.texts]


def information_command(argv: list[str]) -> None:
    """Bound the information of the three views in given bitext: `infoxlm information`."""
    arguments, encoder_arguments = parse_args_with_config(
        (InformationArguments, EncoderArguments), argv, program="infoxlm information", about=__doc__
    )
    configure_process()
    sources = _sources(arguments.bitext_files)
    samples = {pair: _read(found, arguments) for pair, found in sources.items()}
    encoder = load_encoder(encoder_arguments)
    layers = [encoder.check_layer(layer) for layer in arguments.layers] or list(range(encoder.num_layers + 1))
    sentences = {
        pair: _sentence_bounds(encoder, sample, layers, arguments) for pair, sample in samples.items()
    }
    tokens: dict[str, TokenBounds] = {}
    try:
        model = load_language_model(encoder_arguments, encoder)
    except NoLanguageModel as reason:
        logger.warning("Only the sentence view is measured, for masked tokens there is no model: %s", reason)
    else:
        tokens = {
            pair: _token_bounds(model, sample, encoder.max_length, arguments.seed)
            for pair, sample in samples.items()
        }
    files = [location for found in sources.values() for source in found for location in source.locations]
    result = _result(arguments, encoder, DatasetRecord.of_files("bitext", files), samples, sentences, tokens)
    path = write_result(arguments.output_dir, result, command=["infoxlm", TASK, *argv])
    _print(result)
    print(path)


def _sources(specs: Sequence[str]) -> dict[str, list[BitextSource]]:
    """Files by language pair, in the order given."""
    if not specs:
        raise UsageError("no text: give --bitext_files, translated text that the model was not trained on.")
    sources = parse_bitext_sources(specs)
    pairs: defaultdict[str, list[BitextSource]] = defaultdict(list)
    for source in sources:
        if is_hub(source):
            raise UsageError(f"{source.locations[0]} is on the Hub; give local files, which can be hashed.")
        pairs[source.pair].append(source)
    return dict(pairs)


def _read(sources: Sequence[BitextSource], arguments: InformationArguments) -> PairSample:
    sample = draw_pairs(sources, max_pairs=arguments.max_pairs, seed=arguments.seed)
    if len(sample.texts) < 2 * arguments.num_candidates:
        fewer = len(sample.texts) // 2
        files = ", ".join(str(path) for source in sources for path in source.locations)
        raise UsageError(
            f"{sources[0].pair} has {len(sample.texts):,} pairs with text on both sides ({files}), expected "
            f"at least 2 x {arguments.num_candidates:,}; give more text"
            + (f", or for all pairs --num_candidates {fewer}." if fewer > 1 else ".")
        )
    return sample


def draw_pairs(sources: Sequence[BitextSource], *, max_pairs: int, seed: int) -> PairSample:
    """Draw pairs with text on both sides, all equally likely, in one pass over the files (a reservoir).

    Args:
        sources: Files of one language pair.
        max_pairs: Most pairs to draw.
        seed: Of the draws.

    Raises:
        DataError: If a file cannot be read.
    """
    rng, skipped = np.random.default_rng(seed), SkipBadLines()
    texts: list[tuple[str, str]] = []
    count = 0
    for source in sources:
        for pair in read_pairs(source, on_bad_line=skipped):
            if not all(map(str.strip, pair)):
                continue
            count += 1
            if len(texts) < max_pairs:
                texts.append(pair)
            elif (place := int(rng.integers(count))) < max_pairs:
                texts[place] = pair
    order = rng.permutation(len(texts)).tolist()
    return PairSample(sources[0].languages, [texts[i] for i in order], count, skipped.count)


def _sentence_bounds(
    encoder: Encoder, sample: PairSample, layers: Sequence[int], arguments: InformationArguments
) -> dict[int, SentenceBound]:
    """The bound at each layer."""
    sides = [_vectors(encoder, sample.side(number), layers, arguments.pooling) for number in (0, 1)]
    settings = {"num_candidates": arguments.num_candidates, "seed": arguments.seed}
    return {
        layer: sentence_bound(source, target, **settings)
        for layer, source, target in zip(layers, *sides, strict=True)
    }


def _vectors(encoder: Encoder, texts: Sequence[str], layers: Sequence[int], pooling: Pooling) -> Tensor:
    """Sentence vectors at each layer, (layers, N, D)."""
    return encoder.encode_layers(texts, layers=layers, pooling=pooling)


def _token_bounds(model: LanguageModel, sample: PairSample, max_length: int, seed: int) -> TokenBounds:
    # `<s> a </s> b </s>` must fit the positions. MLM sees the sentence cut alike, to compare with TLM.
    longest = (max_length - 3) // 2
    rows = [
        model.tokenizer(sample.side(number), add_special_tokens=False, verbose=False)["input_ids"]
        for number in (0, 1)
    ]
    cut = [PackedRows.from_lists([ids[:longest] for ids in side]) for side in rows]
    return token_bounds(model, dict(zip(sample.languages, cut, strict=True)), seed=seed)


def _result(
    arguments: InformationArguments,
    encoder: Encoder,
    dataset: DatasetRecord,
    samples: Mapping[str, PairSample],
    sentences: Mapping[str, Mapping[int, SentenceBound]],
    tokens: Mapping[str, TokenBounds],
) -> TaskResult:
    layer = best_layer(sentences.values())
    scores = {pair: {"xlco": bounds[layer].estimate} for pair, bounds in sentences.items()}
    for pair, found in tokens.items():
        scores[pair] |= {"mlm": found.mlm, "tlm": found.tlm, "tlm_minus_mlm": found.difference}
    metrics = list(next(iter(scores.values())))
    return TaskResult(
        task=TASK,
        metric="xlco",
        unit="nats",
        dataset=dataset,
        model=encoder.record,
        settings={
            "layer": layer,
            "layers": list(next(iter(sentences.values()))),
            "pooling": arguments.pooling,
            "max_pairs": arguments.max_pairs,
            "num_candidates": arguments.num_candidates,
            "log_candidates": math.log(arguments.num_candidates),
            "mask_probability": MASK_PROBABILITY,
            "bf16": encoder.bf16,
        },
        seed=arguments.seed,
        scores=scores,
        summary={
            metric: float(np.mean([pair[metric].value for pair in scores.values()])) for metric in metrics
        },
        details={
            "layers": {
                pair: {str(number): _describe(bound) for number, bound in bounds.items()}
                for pair, bounds in sentences.items()
            },
            "tokens": {pair: found.languages for pair, found in tokens.items()},
            "samples": {
                pair: {
                    "sampled": len(sample.texts),
                    "of": sample.num_pairs,
                    "skipped_lines": sample.num_skipped,
                }
                for pair, sample in samples.items()
            },
        },
    )


def best_layer(sentences: Any) -> int:
    """The layer with the highest mean bound over all pairs, on the halves that are not measured."""
    tables = list(sentences)
    return max(tables[0], key=lambda layer: float(np.mean([bounds[layer].tuned for bounds in tables])))


def _describe(bound: SentenceBound) -> dict[str, float]:
    return {**asdict(bound.estimate), "temperature": bound.temperature}


def _print(result: TaskResult) -> None:
    """One line for each language pair."""
    names = {"mlm": "MLM", "tlm": "TLM", "tlm_minus_mlm": "TLM - MLM", "xlco": "XlCo"}
    metrics = [name for name in names if name in next(iter(result.scores.values()))]
    ceiling = result.settings["log_candidates"]
    layer = result.settings["layer"]
    title = f"lower bounds of information, nats (XlCo: layer {layer}, at most {ceiling:.2f})"
    table = Table(title=title, caption="± half of the 95 % interval")
    table.add_column("pair")
    for name in metrics:
        table.add_column(names[name], justify="right")
    for pair, row in result.scores.items():
        table.add_row(pair, *(_text(row[name]) for name in metrics))
    if len(result.scores) > 1:
        table.add_row("mean", *(f"{result.summary[name]:.2f}" for name in metrics))
    Console().print(table)


def _text(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} ± {(estimate.high - estimate.low) / 2:.2f}"
