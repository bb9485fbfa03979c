"""Bitext retrieval on the held-out pairs of a prepared corpus, while training and after it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from modeling_infoxlm.data.ragged import PackedRows, SpecialTokens, join_pieces
from modeling_infoxlm.data.shards import Corpus, TokenStore
from modeling_infoxlm.evaluation.encoding import encode_rows
from modeling_infoxlm.evaluation.retrieval.mining import RetrievalAccuracy, retrieval_accuracy
from modeling_infoxlm.modeling_infoxlm import InfoXLMModel


class HeldoutRetrieval:
    """Top-1 retrieval among the first `max_pairs` held-out sentences of each language pair of a corpus.

    Vectors are of `layer`, 0 is the embedding output. A corpus without held-out pairs is a `ValueError`.
    """

    def __init__(self, corpus: Corpus, *, layer: int, pooling: str = "mean", max_pairs: int = 300) -> None:
        if not corpus.heldout:
            raise ValueError(f"{corpus.folder} holds out no pair; prepare it with heldout_fraction above 0.")
        self.corpus, self.layer, self.pooling, self.max_pairs = corpus, layer, pooling, max_pairs

    def __call__(self, model: Any) -> dict[str, float]:
        """`retrieval/<pair>`, mean of both directions, 0..1, and `retrieval/mean`, of `model.roberta`."""
        accuracies = self.accuracies(model.roberta)
        scores = {f"retrieval/{pair}": accuracy.mean for pair, accuracy in accuracies.items()}
        return {**scores, "retrieval/mean": sum(scores.values()) / len(scores)}

    def accuracies(self, encoder: InfoXLMModel) -> dict[str, RetrievalAccuracy]:
        """Both directions of each pair, in eval mode."""
        pairs = tqdm(self.corpus.heldout.items(), "held-out retrieval", unit="pair", delay=2, leave=False)
        return {
            name: retrieval_accuracy(self._vectors(encoder, pair.source), self._vectors(encoder, pair.target))
            for name, pair in pairs
        }

    def _vectors(self, encoder: InfoXLMModel, store: TokenStore) -> Tensor:
        """Sentence vectors of the first sentences of a store, (N, D)."""
        sentences = _WholeSentences(store, self.corpus.special)
        count = min(self.max_pairs, len(store))
        vectors = torch.empty(1, count, encoder.config.hidden_size, device=encoder.device)
        encode_rows(
            encoder,
            lambda start, stop: PackedRows(*sentences.gather(np.arange(start, stop))),
            vectors,
            layers=[self.layer],
            pooling=self.pooling,
            show=lambda number: f"number {number:,} of {count:,} sentences",
        )
        return vectors[0]


def with_start(end: Mapping[str, float], history: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Metrics of the end of a run, `eval_<measure>`, with those of its start beside them, `start_<measure>`.

    The start is what the log history has of step 0. `warning`, in capitals, is added if the run ended worse
    than it began: in mean retrieval, or in the loss of a masked objective.
    """
    first = next((entry for entry in history if entry["step"] == 0), {})
    results: dict[str, Any] = dict(end)
    for name in end:
        if name in first and name.startswith("eval_"):
            results[f"start_{name.removeprefix('eval_')}"] = first[name]
    worse = [change for change, is_worse in _changes(results) if is_worse]
    if worse:
        results["warning"] = f"THIS RUN ENDED WORSE THAN IT BEGAN: {', '.join(worse)}"
    return results


def describe_change(results: Mapping[str, Any], *, layer: int, pooling: str) -> list[str]:
    """Lines that say what a run has made of the held-out measures of `with_start`."""
    changes = ", ".join(change for change, _ in _changes(results))
    lines = [f"held-out pairs, vectors of layer {layer} by {pooling} pooling: {changes}"] if changes else []
    return lines + [results["warning"]] if "warning" in results else lines


def _changes(results: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """Each measure that means the same at the start as at the end, and whether it became worse."""
    for name in ("retrieval/mean", "loss/mlm", "loss/tlm"):
        start, end = results.get(f"start_{name}"), results.get(f"eval_{name}")
        if start is not None and end is not None:
            if name == "retrieval/mean":
                yield f"retrieval {100 * start:.1f} -> {100 * end:.1f} %", end < start
            else:
                yield f"{name} {start:.3f} -> {end:.3f}", end > start


def heldout_corpus(corpus: Corpus) -> Corpus:
    """The held-out pairs as a corpus, for held-out losses; its MLM examples are single sentences."""
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
