"""Lower bounds of mutual information for the views of InfoXLM's three objectives, in nats.

MLM and TLM: X the token at a masked position and C what the model sees (Barber and Agakov, NIPS 2003):

    I(X; C) >= E[log q(X | C) - log p(X)] = H(X) - cross entropy of the model q,

for any q; what is missing is the divergence of q from the true conditional. The paper's own reading,
log |V| - cross entropy, is no bound of I(X; C): it takes the vocabulary for |V| samples of p(X), and exceeds
the bound above by log |V| - H(X), some 5 nats of XLM-R's 12.4. It is not reported.

XlCo: X a sentence and Y its translation (InfoNCE, van den Oord et al., arXiv 1807.03748):

    I(X; Y) >= log K - cross entropy of a softmax that finds Y among K sentences,

for any score; here cosine / temperature. It is never above log K.

Shapes: N pairs, T tokens, M masked tokens, K candidates, G groups of K pairs, D hidden.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerBase

from modeling_infoxlm.backbones import backbone_of
from modeling_infoxlm.data.masking import mask_tokens
from modeling_infoxlm.data.ragged import PackedRows, SpecialTokens, join_pieces
from modeling_infoxlm.data.sampling import hash64
from modeling_infoxlm.data.tokenise import special_tokens
from modeling_infoxlm.evaluation.batching import (
    check_finite,
    packed_ids,
    padded_inputs,
    progress_bar,
    run_batches,
    runs_packed,
)
from modeling_infoxlm.evaluation.encoders import Encoder, EncoderArguments, load_checkpoint
from modeling_infoxlm.evaluation.results import Estimate, bootstrap
from modeling_infoxlm.fused_loss import linear_cross_entropy
from modeling_infoxlm.modeling_infoxlm import InfoXLMForPreTraining, InfoXLMModel
from modeling_infoxlm.packed import EncodeRequest, encode

MASK_PROBABILITY = 0.15  # as in pre-training
_MASK_STREAM = "information"  # the name of the masks' random numbers
_PADDED_TOKENS_PER_BATCH = 512  # whole logits are held, 1 MB a token of a large vocabulary
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 1e-3, 1e2
_BISECTIONS = 16  # the logarithm of the temperature to 1e-4


@dataclass(frozen=True)
class MaskedSide:
    """Sentences of one language without special tokens, and masks in them."""

    text: PackedRows  # N sentences
    inputs: np.ndarray  # the same tokens with the chosen ones masked, (T,)
    chosen: np.ndarray  # where, bool (T,)
    counts: np.ndarray  # chosen tokens of each sentence, (N,), sum M
    # -log p of each chosen token, (M,); p is its share of the ordinary tokens of `text`
    surprisals: np.ndarray
    entropy: float  # of p, in nats
    # by how much `entropy`, and with it a bound, is too low at least, in nats, since p is that of a sample,
    # in which rare tokens are missing: the first term of the bias (Miller, 1955)
    entropy_bias: float


def mask_side(text: PackedRows, special: SpecialTokens, *, keys: np.ndarray) -> MaskedSide:
    """Mask 15 % of the ordinary tokens of N sentences without special tokens; masks follow from `keys`, (N,).

    All of them become `<mask>`. Pre-training leaves a tenth as they are; that would tell the model the very
    token whose information is measured.
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
    """Whole sequences for the model, with special tokens."""

    inputs: PackedRows  # N sequences
    targets: np.ndarray  # the true tokens, (T,)
    # number of each chosen token among the M of all sides, side by side and sentence by sentence; -1 for
    # tokens that are not chosen, (T,)
    place: np.ndarray


def join_sides(sides: Sequence[MaskedSide], special: SpecialTokens) -> MaskedSequences:
    """`<s> a </s>` of one side, `<s> a </s> b </s>` of two, masks and all."""
    count, lengths = len(sides[0].text), np.concatenate([side.text.lengths for side in sides])
    order = np.arange(len(sides) * count).reshape(len(sides), count).T.ravel()
    # What is joined are numbers of tokens, above every id: so the special tokens between are told from text.
    numbers = PackedRows(special.vocab_size + np.arange(lengths.sum()), lengths).take(order)
    joined = join_pieces(numbers, np.full(count, len(sides)), special)
    is_text = joined.tokens >= special.vocab_size
    number = joined.tokens[is_text] - special.vocab_size

    def filled(parts: Sequence[np.ndarray], others: np.ndarray) -> np.ndarray:
        values = others.copy()
        values[is_text] = np.concatenate(parts)[number]
        return values

    chosen = np.concatenate([side.chosen for side in sides])
    places = np.where(chosen, np.cumsum(chosen) - 1, -1)
    return MaskedSequences(
        inputs=PackedRows(filled([side.inputs for side in sides], joined.tokens), joined.lengths),
        targets=filled([side.text.tokens for side in sides], joined.tokens),
        place=filled([places], np.full(len(is_text), -1)),
    )


class NoLanguageModel(ValueError):
    """A checkpoint that cannot predict masked tokens; the message says why."""


@dataclass(frozen=True)
class LanguageModel:
    """A model with a head that predicts masked tokens."""

    model: Any  # in eval mode; an `InfoXLMForPreTraining` for XLM-R and InfoXLM
    tokenizer: PreTrainedTokenizerBase  # its tokenizer
    special: SpecialTokens  # the special tokens of it
    bf16: bool = False  # run products in bf16

    def losses(self, sequences: MaskedSequences, *, progress: bool = True) -> np.ndarray:
        """-log q of the true token at each chosen position, in nats, by their numbers, (M,)."""
        inputs, losses = sequences.inputs, np.zeros(int(sequences.place.max(initial=-1)) + 1)
        tokens = PackedRows(np.arange(len(sequences.place)), inputs.lengths)

        def run(members: np.ndarray) -> None:
            token = tokens.take(members).tokens
            rows = np.flatnonzero(sequences.place[token] >= 0)
            if not len(rows):
                return
            labels = torch.from_numpy(sequences.targets[token[rows]].astype(np.int64))
            batch = inputs.take(members)
            found = self._batch_losses(batch, rows, labels.to(self.model.device))
            owner = np.repeat(members, batch.lengths)[rows]
            check_finite(found[:, None], self.model, lambda i: f"sentence {i + 1:,}", owner)
            losses[sequences.place[token[rows]]] = found.double().cpu().numpy()

        most = None if runs_packed(self.model) else _PADDED_TOKENS_PER_BATCH
        with progress_bar(len(inputs), "masked tokens", " sentences", show=progress) as bar:
            run_batches(self.model, inputs.lengths, run, bf16=self.bf16, tokens_per_batch=most, bar=bar)
        return losses

    def _batch_losses(self, batch: PackedRows, rows: np.ndarray, labels: Tensor) -> Tensor:
        """Losses (M,) at rows (M,) of the batch's tokens (T,)."""
        model, index = self.model, torch.from_numpy(rows).to(self.model.device)
        if runs_packed(model):
            ids, last = packed_ids(batch, model.device), model.config.num_hidden_layers
            (hidden,) = encode(model.base_model, [EncodeRequest(ids, batch.lengths.tolist(), last, index)])
            table = model.get_output_embeddings()
            features = backbone_of(model.config).features(model, hidden)
            return linear_cross_entropy(features, table.weight, table.bias, labels)
        inputs = padded_inputs(batch, model)
        logits = model(**inputs).logits[inputs["attention_mask"].bool()]
        return F.cross_entropy(logits[index].float(), labels, reduction="none")


def load_language_model(arguments: EncoderArguments, encoder: Encoder) -> LanguageModel:
    """Load the language model head of a checkpoint, and the encoder below it, the one that is given.

    Raises:
        NoLanguageModel: If the checkpoint has no such head, or the tokenizer no mask.
    """
    # The contrast is not used here, and for odd depths has no default layer.
    overrides = {"xlco_layer": encoder.num_layers} if isinstance(encoder.model, InfoXLMModel) else {}
    try:
        special = special_tokens(encoder.tokenizer)
        loaded = load_checkpoint(arguments, AutoModelForMaskedLM, ours=InfoXLMForPreTraining, **overrides)
    except ValueError as error:  # of the tokenizer, or of a configuration that has no masked language model
        raise NoLanguageModel(str(error).split("\n")[0]) from error
    model: Any = loaded.model
    known = (f"{model.base_model_prefix}.", "objectives.")
    missing = [name for name in loaded.new_weights if not name.startswith(known)]
    if missing:
        raise NoLanguageModel(f"it has no language model head ({missing[0]} is missing)")
    return LanguageModel(model.to(encoder.model.device).eval(), encoder.tokenizer, special, encoder.bf16)


@dataclass(frozen=True)
class TokenBounds:
    """Bounds of the information of masked tokens and their contexts in one language pair, in nats.

    Each language's tokens are held against their own frequencies: which language a token is of counts for
    nothing.
    """

    mlm: Estimate  # the context is the rest of the sentence
    tlm: Estimate  # the context is the rest of the sentence and the translation, which is masked as well
    # `tlm` - `mlm` over the same tokens; as a difference of two bounds it bounds nothing
    difference: Estimate
    # for each language its number of masked `tokens`, their `entropy`, `entropy_bias`, and the bounds `mlm`
    # and `tlm`
    languages: Mapping[str, Mapping[str, float]]


def token_bounds(
    model: LanguageModel, sides: Mapping[str, PackedRows], *, seed: int, progress: bool = True
) -> TokenBounds:
    """Bounds for both token views, of the same masked tokens.

    `sides` are two languages, each with N sentences without special tokens that translate each other. The
    bootstrap draws pairs of sentences.

    Raises:
        ValueError: If no token is masked.
    """
    masked = [
        mask_side(text, model.special, keys=hash64(seed, _MASK_STREAM, number, np.arange(len(text))))
        for number, text in enumerate(sides.values())
    ]
    if not sum(side.chosen.sum() for side in masked):
        raise ValueError("expected text with ordinary tokens to mask, found none.")
    counts = [side.counts for side in masked]
    together = model.losses(join_sides(masked, model.special), progress=progress)
    alone = [model.losses(join_sides([side], model.special), progress=progress) for side in masked]
    mlm = [side.surprisals - losses for side, losses in zip(masked, alone, strict=True)]
    parts = np.split(together, np.cumsum([len(losses) for losses in alone])[:-1])
    tlm = [side.surprisals - losses for side, losses in zip(masked, parts, strict=True)]
    return TokenBounds(
        mlm=mean_gain(mlm, counts, seed=seed),
        tlm=mean_gain(tlm, counts, seed=seed),
        difference=mean_gain([b - a for a, b in zip(mlm, tlm, strict=True)], counts, seed=seed),
        languages={
            language: {
                "tokens": len(a),
                "entropy": side.entropy,
                "entropy_bias": side.entropy_bias,
                "mlm": float(a.sum() / max(1, len(a))),
                "tlm": float(b.sum() / max(1, len(b))),
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
    both = zip(gains, counts, strict=True)
    sums = [np.bincount(np.repeat(np.arange(len(count)), count), gain, len(count)) for gain, count in both]
    table = np.stack([np.sum(sums, axis=0), np.sum(counts, axis=0)], axis=1)
    return bootstrap(table, lambda means: means[..., 0] / np.maximum(means[..., 1], 1e-12), seed=seed)


@dataclass(frozen=True)
class SentenceBound:
    """A bound of the information of a sentence and its translation."""

    estimate: Estimate  # on the second half of the pairs, in nats
    tuned: float  # the same on the first half, which chose the temperature: higher than honest
    temperature: float  # of the softmax


def sentence_bound(source: Tensor, target: Tensor, *, num_candidates: int, seed: int = 0) -> SentenceBound:
    """InfoNCE bound of line-aligned vectors, (N, D) each, in random order; scores are cosine / temperature.

    The first half of the pairs chooses the temperature, the second half is measured: chosen and measured on
    the same pairs the number could exceed the information. Pairs are taken in groups of K candidates; what is
    left over of a half is not used. The bootstrap draws pairs and keeps their candidates.

    Raises:
        ValueError: If a half has fewer than K pairs, K is below 2, or the sides differ in shape.
    """
    half = len(source) // 2
    if source.shape != target.shape or num_candidates < 2 or half < num_candidates:
        raise ValueError(
            f"expected two sides of equal shape with at least 2 x {num_candidates} pairs, and 2 candidates "
            f"or more; found {tuple(source.shape)} and {tuple(target.shape)}."
        )
    halves = slice(None, half), slice(half, None)
    first, second = (grouped_cosines(source[part], target[part], num_candidates) for part in halves)
    temperature = best_temperature(first)
    terms = infonce_terms(second, temperature).cpu().numpy()
    tuned = float(infonce_terms(first, temperature).mean())
    return SentenceBound(bootstrap(terms, seed=seed), tuned, temperature)


def grouped_cosines(source: Tensor, target: Tensor, num_candidates: int) -> Tensor:
    """Cosines of sentences (N, D) and translations (N, D) in groups of K, (G, K, K); pairs: the diagonal."""
    count = len(source) // num_candidates * num_candidates
    sides = (F.normalize(side[:count].float(), dim=-1) for side in (source, target))
    source, target = (side.unflatten(0, (-1, num_candidates)) for side in sides)
    return source @ target.transpose(1, 2)


def infonce_terms(scores: Tensor, temperature: float) -> Tensor:
    """Terms whose mean is the InfoNCE bound in nats, none above log K, (G * K,), of scores (G, K, K).

    Each pair's own score is on the diagonal. A term is the mean of two: the sentence seeks its translation,
    the translation its sentence. Both have the bound's expectation below the information, so their mean has
    it too.
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
