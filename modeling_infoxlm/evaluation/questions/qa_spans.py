"""From the logits of a span head to answers: the best spans of each window, then of all of a question.

Shapes: B windows of a batch, F windows of all questions, N questions, T tokens, K best spans.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from modeling_infoxlm.evaluation.finetuning.heads import HeadModel, forward_batches
from modeling_infoxlm.evaluation.questions.qa_features import Windows
from modeling_infoxlm.evaluation.questions.question_sets import Question


@dataclass(frozen=True)
class SpanSettings:
    """Which spans can be answers."""

    max_answer_length: int = 30  # most tokens of an answer
    n_best_size: int = 1  # answers kept for each question, and spans of each window
    # a question stays unanswered if the score of no answer is higher than that of the best answer by more
    # than this; None answers every question
    null_score_diff_threshold: float | None = None


@dataclass(frozen=True)
class BestSpans:
    """Best spans of each window."""

    scores: np.ndarray  # sums of start and end logit, best first, `-inf` where there is no span, (F, K)
    starts: np.ndarray  # positions in the window of the first token, (F, K)
    ends: np.ndarray  # positions of the last token, (F, K)
    null_scores: np.ndarray  # sums of both logits of the first token, which stands for no answer, (F,)


@dataclass(frozen=True)
class Candidate:
    """A possible answer, cut from the context."""

    text: str  # empty for no answer
    start: int  # its first character in the context
    score: float  # sum of start and end logit


def predict_answers(
    head: HeadModel,
    questions: Sequence[Question],
    windows: Windows,
    settings: SpanSettings,
    *,
    bf16: bool = False,
    description: str = "answering",
) -> list[list[Candidate]]:
    """Answers of each of N questions, best first, at least one, by a model with a span head on its device."""
    shape = (len(windows), settings.n_best_size)
    scores, starts, ends = np.full(shape, -np.inf), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    null_scores = np.zeros(len(windows))
    begin, stop = (torch.from_numpy(bound) for bound in windows.own_range())
    last = torch.from_numpy(windows.context_at + windows.size)

    def take(members: np.ndarray, output: Any) -> None:
        first_logits, last_logits = output.start_logits.float(), output.end_logits.float()
        bounds = [bound[members].to(first_logits.device) for bound in (begin, stop, last)]
        text_starts, text_ends = _characters(windows, members, first_logits)
        found = best_spans(
            first_logits,
            last_logits,
            *bounds,
            text_starts=text_starts,
            text_ends=text_ends,
            length=settings.max_answer_length,
            count=settings.n_best_size,
        )
        count = found[0].shape[1]
        for table, part in zip((scores, starts, ends), found, strict=True):
            table[members, :count] = part.cpu().numpy()
        null_scores[members] = (first_logits[:, 0] + last_logits[:, 0]).cpu().numpy()

    forward_batches(head, windows.rows, take, bf16=bf16, description=description)
    return choose_answers(questions, windows, BestSpans(scores, starts, ends, null_scores), settings)


def _characters(windows: Windows, members: np.ndarray, like: Tensor) -> tuple[Tensor, Tensor]:
    """First character of each token of the contexts of some windows, and its last, exclusive, (B, T) each."""
    bounds = np.zeros((2, *like.shape), dtype=np.int64)
    for row, window in enumerate(members):
        tokens = slice(windows.begins[window], windows.begins[window + 1])
        at = slice(windows.context_at[window], windows.context_at[window] + tokens.stop - tokens.start)
        bounds[0, row, at], bounds[1, row, at] = windows.starts[tokens], windows.ends[tokens]
    first, last = torch.from_numpy(bounds).to(like.device)
    return first, last


def best_spans(
    start_logits: Tensor,
    end_logits: Tensor,
    begin: Tensor,
    stop: Tensor,
    last: Tensor,
    *,
    text_starts: Tensor,
    text_ends: Tensor,
    length: int,
    count: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best spans among all those of up to `length` tokens that stand for a text.

    The first of equal ones comes first, so that the best one does not depend on how many are wanted.

    Args:
        start_logits: (B, T).
        end_logits: (B, T).
        begin: First position that a span may begin at, (B,).
        stop: End of these positions, exclusive, (B,).
        last: End of the positions that a span may end at, exclusive, (B,).
        text_starts: First character of each token, (B, T); that of a lone space is its end.
        text_ends: Last character, exclusive, (B, T).
        length: Most tokens of a span.
        count: Spans wanted.

    Returns:
        Scores, best first and `-inf` where there is no span, and positions of first and last token, (B, K)
        each; K is `count`, or the number of spans where there are fewer.
    """
    positions = torch.arange(start_logits.shape[1], device=start_logits.device)
    lowest = float("-inf")
    starts = start_logits.masked_fill((positions < begin[:, None]) | (positions >= stop[:, None]), lowest)
    ends = end_logits.masked_fill((positions < begin[:, None]) | (positions >= last[:, None]), lowest)
    # ends[b, s, l] is the end logit of the span of l + 1 tokens that begins at s.
    ends = pad(ends, (0, length - 1), value=lowest).unfold(1, length, 1)
    blank = text_starts[:, :, None] >= pad(text_ends, (0, length - 1)).unfold(1, length, 1)
    scores = (starts[:, :, None] + ends).masked_fill(blank, lowest).flatten(1)
    best, index = (part[:, :count] for part in scores.sort(dim=1, descending=True, stable=True))
    first = index // length
    return best, first, first + index % length


def choose_answers(
    questions: Sequence[Question], windows: Windows, best: BestSpans, settings: SpanSettings
) -> list[list[Candidate]]:
    """Up to `n_best_size` answers of different texts for each question, best first.

    The first is the prediction; it is empty for no answer.
    """
    window, rank = np.nonzero(best.scores > -np.inf)
    scores = best.scores[window, rank]
    order = np.lexsort((-scores, windows.question[window]))
    window, rank, scores = window[order], rank[order], scores[order]
    starts, ends = windows.characters(window, best.starts[window, rank], best.ends[window, rank])
    bounds = np.searchsorted(windows.question[window], np.arange(len(questions) + 1))
    null_scores = np.full(len(questions), np.inf)
    np.minimum.at(null_scores, windows.question, best.null_scores)  # as in SQuAD 2.0's script
    answers = []
    for number, question in enumerate(questions):
        part = range(bounds[number], bounds[number + 1])
        spans = ((int(starts[i]), int(ends[i]), float(scores[i])) for i in part)
        candidates = _distinct(question.context, spans, settings.n_best_size)
        answers.append(_with_null(candidates, float(null_scores[number]), settings))
    return answers


def _distinct(context: str, spans: Iterable[tuple[int, int, float]], count: int) -> list[Candidate]:
    """The best span of each text."""
    found: dict[str, Candidate] = {}
    for start, end, score in spans:
        found.setdefault(context[start:end], Candidate(context[start:end], start, score))
        if len(found) == count:
            break
    return list(found.values())


def _with_null(candidates: list[Candidate], null_score: float, settings: SpanSettings) -> list[Candidate]:
    """Put no answer in front where it scores high enough, or where there is nothing else."""
    null = Candidate("", 0, null_score)
    if not candidates:
        return [null]
    if settings.null_score_diff_threshold is None:
        return candidates
    if null_score - candidates[0].score > settings.null_score_diff_threshold:
        return [null, *candidates][: settings.n_best_size]
    return candidates
