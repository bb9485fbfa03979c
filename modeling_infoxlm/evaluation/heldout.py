"""Bitext retrieval on the held-out pairs of a prepared corpus, while training and after it."""

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from torch import Tensor
from tqdm import tqdm

from modeling_infoxlm.data.ragged import PackedRows, join_pieces
from modeling_infoxlm.data.shards import Corpus, SpecialTokens, TokenStore
from modeling_infoxlm.evaluation.encoding import encode_sequences
from modeling_infoxlm.evaluation.mining import RetrievalAccuracy, retrieval_accuracy
from modeling_infoxlm.modeling_infoxlm import InfoXLMModel


class HeldoutRetrieval:
    """Top-1 retrieval among the held-out sentences of each language pair.

    Args:
        corpus: Prepared corpus with held-out pairs.
        layer: Layer of the sentence vectors; 0 is the embedding output.
        pooling: `"mean"` or `"cls"`.
        max_pairs: Candidates of each pair: its first so many held-out sentences.

    Raises:
        ValueError: If the corpus has no held-out pair.
    """

    def __init__(self, corpus: Corpus, *, layer: int, pooling: str = "mean", max_pairs: int = 300) -> None:
        if not corpus.heldout:
            raise ValueError(f"{corpus.folder} holds out no pair; prepare it with heldout_fraction above 0.")
        self.corpus, self.layer, self.pooling, self.max_pairs = corpus, layer, pooling, max_pairs

    def __call__(self, model: Any) -> dict[str, float]:
        """Measure a model with a `roberta` encoder.

        Returns:
            `retrieval/<pair>`: mean of both directions, 0..1; `retrieval/mean` over the pairs.
        """
        scores = {
            f"retrieval/{pair}": accuracy.mean for pair, accuracy in self.accuracies(model.roberta).items()
        }
        return {**scores, "retrieval/mean": sum(scores.values()) / len(scores)}

    def accuracies(self, encoder: InfoXLMModel) -> dict[str, RetrievalAccuracy]:
        """Both directions of each pair."""
        pairs = tqdm(self.corpus.heldout, "held-out retrieval", unit="pair", delay=2, leave=False)
        return {pair: retrieval_accuracy(*self.vectors(encoder, pair)) for pair in pairs}

    def vectors(self, encoder: InfoXLMModel, pair: str) -> tuple[Tensor, Tensor]:
        """Sentence vectors of both sides of a pair, (N, D) each, computed in eval mode."""
        store = self.corpus.heldout[pair]
        count = min(self.max_pairs, len(store))
        sides = [
            encode_sequences(
                encoder,
                [side[i] for i in range(count)],
                self.corpus.special,
                layer=self.layer,
                pooling=self.pooling,
            )
            for side in (store.source, store.target)
        ]
        return sides[0], sides[1]


def heldout_corpus(corpus: Corpus) -> Corpus:
    """The held-out pairs as a corpus of their own, for held-out losses.

    Its MLM examples are single sentences.

    Args:
        corpus: Prepared corpus with held-out pairs.
    """
    mono: dict[str, TokenStore] = {}
    for pair in corpus.heldout.values():
        sides = ((pair.source_language, pair.source), (pair.target_language, pair.target))
        for language, store in sides:
            mono.setdefault(language, cast(TokenStore, _WholeSentences(store, corpus.special)))
    return replace(corpus, mono=mono, bitext=corpus.heldout)


@dataclass(frozen=True)
class _WholeSentences:
    """Store of bare sentences, read as `<s> ids </s>`: what a joint dataset asks of a store of MLM blocks."""

    store: TokenStore
    special: SpecialTokens

    def __len__(self) -> int:
        return len(self.store)

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        bare = PackedRows(*self.store.gather(indices))
        whole = join_pieces(bare, np.ones(len(bare), dtype=np.int64), self.special)
        return whole.tokens, whole.lengths
