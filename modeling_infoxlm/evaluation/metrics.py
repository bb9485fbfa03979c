"""Metrics in the form of the `evaluate` library that need no network: instantiate them, do not load them.

    metric = XNLIAccuracy()
    metric.add_batch(predictions=[0, 2], references=[0, 1])
    metric.compute()

Every score is in 0..1, as is usual in `evaluate`; result files have percent. `evaluate` keeps what was added
in its own cache folder until it is computed, and nothing in the working directory; with
`keep_in_memory=True` it writes nothing.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import evaluate
import numpy as np
import pandas as pd
import torch
from datasets import Features, List, Value

from modeling_infoxlm.evaluation.alignment.scoring import alignment_rates, alignment_scores
from modeling_infoxlm.evaluation.questions.mlqa_scoring import Rules, count_blank, score_answers
from modeling_infoxlm.evaluation.results import summarise
from modeling_infoxlm.evaluation.retrieval.mining import retrieval_accuracy

logger = logging.getLogger(__name__)

NUM_LABELS = 3  # of XNLI: entailment, neutral, contradiction


class _Metric(evaluate.Metric):
    """What all have: their docstring describes them, and `inputs` are the types of what is added."""

    inputs: ClassVar[Mapping[str, Any]]

    def _info(self) -> evaluate.MetricInfo:
        text = self.__doc__ or ""
        features = Features(dict(self.inputs))
        return evaluate.MetricInfo(description=text, citation="", inputs_description=text, features=features)


class XNLIAccuracy(_Metric):
    """Share of right labels of XNLI (Conneau et al., EMNLP 2018).

    `compute` also takes `languages`, one for each example in the order they were added. Then the result has
    `accuracy_<language>`, their mean and the transfer gap (English minus the mean of the others) as well.

    Example:
        >>> XNLIAccuracy().compute(predictions=[0, 1, 2], references=[0, 1, 1], languages=["en", "en", "de"])
        {'accuracy': 0.66..., 'accuracy_de': 0.0, 'accuracy_en': 1.0, 'mean': 0.5, 'gap': 1.0}
    """

    inputs: ClassVar = {"predictions": Value("int64"), "references": Value("int64")}

    def _compute(
        self, predictions: Sequence[int], references: Sequence[int], languages: Sequence[str] | None = None
    ) -> dict[str, float]:
        labels = {*predictions, *references}
        if not labels or not labels <= set(range(NUM_LABELS)):
            raise ValueError(f"expected labels in 0..{NUM_LABELS - 1}, found {sorted(labels) or 'none'}.")
        hits = np.equal(predictions, references)
        result = {"accuracy": float(hits.mean())}
        if languages is None:
            return result
        by_language = _by_language({"accuracy": hits}, languages)
        return {**result, **_flatten(by_language), **summarise(by_language.accuracy.to_dict())}


class MLQAScore(_Metric):
    """F1 and exact match of answers by MLQA's rules (Lewis et al., ACL 2020); see `mlqa_scoring`.

    `compute` takes `rules="squad"` for XQuAD and TyDiQA-GoldP, which the literature scores by SQuAD v1.1's.

    The result has `f1` and `exact_match` over all examples and for each language; with several languages
    average those, which is what the paper's tables do.

    Example:
        >>> MLQAScore().compute(predictions=["ein Haus"], references=[["Haus", "Hof"]], languages=["de"])
        {'f1': 1.0, 'exact_match': 1.0, 'f1_de': 1.0, 'exact_match_de': 1.0}
    """

    inputs: ClassVar = {
        "predictions": Value("string"),
        "references": List(Value("string")),  # the gold answers of each
        "languages": Value("string"),  # of each context, which is that of the answer
    }

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[str]],
        languages: Sequence[str],
        rules: Rules = "mlqa",
    ) -> dict[str, float]:
        if not len(predictions):
            raise ValueError("expected at least one answer, found none.")
        rows = list(zip(predictions, references, languages, strict=True))
        blank = sum(count_blank([golds], language, rules=rules) for _, golds, language in rows)
        if blank == len(rows):
            raise ValueError(f"all {blank:,} gold answers are blank.")
        if blank:
            logger.warning("%d of %d gold answers are blank: only a blank answer is right.", blank, len(rows))
        scores = score_answers(predictions, references, languages, rules=rules)
        result = {name: float(values.mean()) for name, values in scores.items()}
        return {**result, **_flatten(_by_language(scores, languages))}


class BitextRetrieval(_Metric):
    """Share of sentences whose nearest neighbour by cosine is their translation, in both directions.

    Predictions are vectors of the source sentences, references vectors of their translations, in the same
    order. All that was added is searched together: add the whole of one language pair, then compute.

    Example:
        >>> BitextRetrieval().compute(predictions=[[1.0, 0.0], [0.0, 1.0]], references=[[2.0, 0.1], [0.1, 3]])
        {'source_to_target': 1.0, 'target_to_source': 1.0, 'mean': 1.0}
    """

    inputs: ClassVar = {"predictions": List(Value("float32")), "references": List(Value("float32"))}

    def _compute(
        self, predictions: Sequence[Sequence[float]], references: Sequence[Sequence[float]]
    ) -> dict[str, float]:
        sizes = {len(vector) for vector in (*predictions, *references)}
        if len(sizes) != 1:
            raise ValueError(f"expected vectors of one size, found sizes {sorted(sizes) or 'none'}.")
        source, target = (torch.tensor(np.array(side)) for side in (predictions, references))
        accuracy = retrieval_accuracy(source, target)
        return {**asdict(accuracy), "mean": accuracy.mean}


class AlignmentErrorRate(_Metric):
    """Precision, recall, F1 and alignment error rate of word alignments (Och and Ney, 2003).

    A link is `[source word, target word]`. The links of all sentences are counted together. A sure link is
    possible too, whether it is listed there or not.

    Example:
        >>> AlignmentErrorRate().compute(predictions=[[[0, 0], [1, 2]]], sure=[[[0, 0]]], possible=[[[1, 1]]])
        {'aer': 0.33..., 'precision': 0.5, 'recall': 1.0, 'f1': 0.66...}
    """

    inputs: ClassVar = dict.fromkeys(
        ("predictions", "sure", "possible"), List(List(Value("int32"), length=2))
    )

    def _compute(
        self,
        predictions: Sequence[Sequence[Sequence[int]]],
        sure: Sequence[Sequence[Sequence[int]]],
        possible: Sequence[Sequence[Sequence[int]]],
    ) -> dict[str, float]:
        sides = ([_as_links(links) for links in side] for side in (predictions, sure, possible))
        counts = [alignment_scores(*sentence) for sentence in zip(*sides, strict=True)]
        if not any(count.sure for count in counts):
            raise ValueError("expected at least one sure link in the gold, found none.")
        rates = alignment_rates(np.sum(counts, axis=0))
        return {name: float(rate) / 100 for name, rate in rates.items()}


def _as_links(links: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    return [(source, target) for source, target in links]


def _by_language(scores: Mapping[str, np.ndarray], languages: Sequence[str]) -> pd.DataFrame:
    """Mean of each score, a row for each language."""
    table = pd.DataFrame(scores)
    if len(languages) != len(table):
        found = f"{len(table):,} examples, found {len(languages):,}"
        raise ValueError(f"expected one language for each of {found}.")
    return table.groupby(list(languages)).mean()


def _flatten(by_language: pd.DataFrame) -> dict[str, float]:
    return {
        f"{name}_{language}": float(value)
        for language, scores in by_language.iterrows()
        for name, value in scores.items()
    }
