"""Words of sentence pairs aligned by the hidden states of any layer of any encoder.

Shapes: N pairs, K layers, m and n sub-words of a source and a target, D hidden.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from modeling_infoxlm.data.ragged import PackedRows
from modeling_infoxlm.evaluation.alignment.aligners import SINKHORN_ITERATIONS, Method, align_states
from modeling_infoxlm.evaluation.alignment.scoring import Link
from modeling_infoxlm.evaluation.batching import check_finite, padded_inputs, progress_bar, run_batches
from modeling_infoxlm.evaluation.encoders import Encoder
from modeling_infoxlm.runs.errors import UsageError

Context = Literal["pair", "single"]

_CONTEXT: Mapping[Method, Context] = {"ot": "pair", "argmax": "single", "itermax": "single"}
# The states of all layers are held, so a batch is smaller than where one layer is asked for.
_CPU_TOKENS_PER_BATCH, _GPU_TOKENS_PER_BATCH = 2048, 16384


class _Side(NamedTuple):
    """Sub-words of a sentence and the word that each belongs to."""

    ids: list[int]
    words: list[int]

    def cut(self, count: int) -> "_Side":
        return _Side(self.ids[:count], self.words[:count])


_Pair = tuple[_Side, _Side]


class WordAligner:
    """Aligns the words of sentence pairs with an encoder.

    Args:
        encoder: Of any architecture.
        method: `"ot"`, `"argmax"` or `"itermax"`.
        layers: The K layers that are aligned, 0 for the embedding output; None for all.
        context: `"pair"` encodes `<s> source </s> target </s>`, `"single"` each sentence by itself; None is
            what the method was published with.
        iterations: Rounds of Sinkhorn scaling.

    Example:
        >>> WordAligner(encoder, layers=[8]).align([["das", "Haus"]], [["the", "house"]])
        [[{(0, 0), (1, 1)}]]
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        method: Method = "ot",
        layers: Sequence[int] | None = None,
        context: Context | None = None,
        iterations: int = SINKHORN_ITERATIONS,
    ) -> None:
        asked = range(encoder.num_layers + 1) if layers is None else layers
        self.layers = [encoder.check_layer(layer) for layer in asked]
        self.encoder, self.method, self.iterations = encoder, method, iterations
        self.context: Context = context or _CONTEXT[method]
        self.num_cut = 0

    def align(
        self, sources: Sequence[Sequence[str]], targets: Sequence[Sequence[str]], *, progress: bool = False
    ) -> list[list[set[Link]]]:
        """Links (source word, target word), from 0, of each of N pairs of word lists at each of the K layers.

        Raises:
            ValueError: If there is not one translation for each sentence.
            UsageError: If states are not finite, or the tokenizer has no special tokens.
        """
        if len(sources) != len(targets):
            raise ValueError(
                f"expected one translation for each of {len(sources):,} sentences, found {len(targets):,}."
            )
        pairs = self._read(sources, targets)
        links: list[list[set[Link]]] = [[set() for _ in self.layers] for _ in pairs]

        def run(members: np.ndarray) -> None:
            batch = [pairs[i] for i in members]
            for i, (source, target), states in zip(members, batch, self._states(batch), strict=True):
                if not source.ids or not target.ids:
                    continue
                aligned = align_states(*states, self.method, iterations=self.iterations)
                for layer, left, right in aligned.nonzero().tolist():
                    links[i][layer].add((source.words[left], target.words[right]))

        model = self.encoder.model
        lengths = np.array([len(source.ids) + len(target.ids) + 4 for source, target in pairs])
        most = _CPU_TOKENS_PER_BATCH if model.device.type == "cpu" else _GPU_TOKENS_PER_BATCH
        with progress_bar(len(pairs), "aligning", " pairs", show=progress) as bar:
            run_batches(model, lengths, run, bf16=self.encoder.bf16, tokens_per_batch=most, bar=bar)
        return links

    def _read(self, sources: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> list[_Pair]:
        """Cut words into sub-words, and pairs at the model's length."""
        words = sorted({word for sentence in (*sources, *targets) for word in sentence})
        cut = self.encoder.tokenizer(words, add_special_tokens=False)["input_ids"] if words else []
        pieces = dict(zip(words, cut, strict=True))
        pairs = []
        for sentences in zip(sources, targets, strict=True):
            source, target = (_sub_words(sentence, pieces) for sentence in sentences)
            pairs.append(self._cut(source, target))
            self.num_cut += pairs[-1] != (source, target)
        return pairs

    def _cut(self, source: _Side, target: _Side) -> _Pair:
        """Leave out the ends that the model has no positions for; of a pair, the longer side gives way."""
        longest = self.encoder.max_length
        if self.context == "single":
            return source.cut(longest - 2), target.cut(longest - 2)
        room = longest - 3
        kept = min(len(source.ids), max(room // 2, room - len(target.ids)))
        return source.cut(kept), target.cut(room - kept)

    def _states(self, pairs: Sequence[_Pair]) -> Iterator[tuple[Tensor, Tensor]]:
        """States (K, m, D) and (K, n, D) of each pair, special tokens left out."""
        model, (first, last) = self.encoder.model, _special_ids(self.encoder.tokenizer)
        if self.context == "pair":
            # One separator, as in the aligner and in TLM; the tokenizer of XLM-R would put two.
            rows = [[first, *source.ids, last, *target.ids, last] for source, target in pairs]
        else:
            rows = [[first, *side.ids, last] for pair in pairs for side in pair]
        inputs = padded_inputs(PackedRows.from_lists(rows), model)
        hidden = model(**inputs, output_hidden_states=True).hidden_states
        for number, (source, target) in enumerate(pairs):
            if self.context == "pair":
                places = (number, 1), (number, 2 + len(source.ids))
            else:
                places = (2 * number, 1), (2 * number + 1, 1)
            yield self._span(hidden, source, places[0]), self._span(hidden, target, places[1])

    def _span(self, hidden: Sequence[Tensor], side: _Side, place: tuple[int, int]) -> Tensor:
        """States of a sentence (K, m, D), which begins at a row and token of the batch."""
        row, start = place
        states = torch.stack([hidden[layer][row, start : start + len(side.ids)] for layer in self.layers])
        tokenizer = self.encoder.tokenizer
        check_finite(
            states.flatten(1)[:, None], self.encoder.model, lambda _: repr(tokenizer.decode(side.ids))
        )
        return states.float()


def _sub_words(sentence: Sequence[str], pieces: Mapping[str, list[int]]) -> _Side:
    cut = [(piece, position) for position, word in enumerate(sentence) for piece in pieces[word]]
    return _Side([piece for piece, _ in cut], [position for _, position in cut])


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Ids of the token that begins a sequence and of the one that ends a sentence."""
    first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    if first is None or last is None:
        raise UsageError(
            "the tokenizer names no token that begins a sequence or none that ends a sentence "
            "(cls_token or bos_token, sep_token or eos_token); an encoder for sentences needs both."
        )
    return first, last
