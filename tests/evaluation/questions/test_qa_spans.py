"""Best spans of windows and questions, against slow loops."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset

from modeling_infoxlm.evaluation.questions import qa_spans
from modeling_infoxlm.evaluation.questions.qa_features import Windows
from modeling_infoxlm.evaluation.questions.qa_spans import (
    BestSpans,
    SpanSettings,
    best_spans,
    choose_answers,
    predict_answers,
)
from modeling_infoxlm.evaluation.questions.question_sets import Question

INF = float("inf")
TOKENS = 17
TEXT_STARTS = torch.arange(TOKENS).expand(5, TOKENS)
BLANK = (4, 5, 11)  # tokens that stand for no character, such as a lone space
TEXT_ENDS = torch.tensor([token + (token not in BLANK) for token in range(TOKENS)]).expand(5, TOKENS)


def slow_spans(
    start: torch.Tensor, end: torch.Tensor, begin: int, stop: int, last: int, length: int
) -> list[tuple[float, int, int]]:
    """All spans of a window that stand for a text, the best first, of equal ones the first in the text."""
    found = [
        (float(start[first] + end[final]), first, final)
        for first in range(begin, stop)
        for final in range(first, min(first + length, last))
        if first < TEXT_ENDS[0, final]
    ]
    return sorted(found, key=lambda span: (-span[0], span[1:]))


@pytest.mark.parametrize(("length", "count"), [(1, 1), (3, 1), (4, 6), (30, 20), (2, 500)])
def test_the_best_spans_are_those_of_a_loop_over_all(length: int, count: int) -> None:
    torch.manual_seed(1)
    # Rounded, as bf16 does it: many spans score the same, and the best one must not depend on `count`.
    start, end = torch.randn(5, TOKENS).mul(2).round(), torch.randn(5, TOKENS).mul(2).round()
    begin, stop, last = torch.tensor([[0, 3, 5, 5, 4], [17, 9, 8, 5, 6], [17, 12, 17, 9, 6]])
    options = {"text_starts": TEXT_STARTS, "text_ends": TEXT_ENDS, "length": length, "count": count}
    scores, starts, ends = best_spans(start, end, begin, stop, last, **options)
    for row in range(5):
        bounds = (int(begin[row]), int(stop[row]), int(last[row]))
        expected = slow_spans(start[row], end[row], *bounds, length)[:count]
        kept = scores[row] > -INF
        assert int(kept.sum()) == len(expected)  # row 3 has no span
        assert scores[row][kept].tolist() == pytest.approx([score for score, _, _ in expected])
        spans = zip(starts[row][kept].tolist(), ends[row][kept].tolist(), strict=True)
        assert list(spans) == [(first, final) for _, first, final in expected]


def windows_of(question: list[int], texts: list[list[tuple[int, int]]]) -> Windows:
    """Windows whose context begins at position 2, with the characters of each token."""
    lengths = [len(text) for text in texts]
    flat = np.array([pair for text in texts for pair in text])
    return Windows(
        Dataset.from_dict({"input_ids": texts}),
        np.array(question),
        np.full(len(texts), 2),
        np.zeros(len(texts), dtype=np.int64),
        np.append(0, np.cumsum(lengths)),
        flat[:, 0],
        flat[:, 1],
    )


QUESTIONS = [Question(key, "?", text, ()) for key, text in (("a", "one two three"), ("b", "four"), ("c", ""))]
ONE, TWO, THREE = (0, 3), (4, 7), (8, 13)
WINDOWS = windows_of([0, 0, 1, 2], [[ONE, TWO], [TWO, THREE], [(0, 4), (4, 4)], []])
BEST = BestSpans(
    scores=np.array([[1.0, 0.5, 0.4], [3.0, 0.9, -INF], [0.2, 0.1, -INF], [-INF, -INF, -INF]]),
    starts=np.array([[2, 2, 3], [3, 2, 0], [2, 2, 3], [0, 0, 0]]),
    ends=np.array([[3, 2, 3], [3, 2, 0], [2, 3, 3], [0, 0, 0]]),
    null_scores=np.array([9.0, 2.0, 5.0, 1.0]),
)


def texts(settings: SpanSettings) -> list[list[str]]:
    return [[item.text for item in found] for found in choose_answers(QUESTIONS, WINDOWS, BEST, settings)]


def test_n_best_lists_hold_each_text_once_best_first() -> None:
    """The best span of all windows is the answer; questions without windows keep their place."""
    assert texts(SpanSettings(n_best_size=1)) == [["three"], ["four"], [""]]
    # "two" is found in two windows, "four" with and without its last token, which is no character.
    assert texts(SpanSettings(n_best_size=4)) == [["three", "one two", "two", "one"], ["four"], [""]]
    found = choose_answers(QUESTIONS, WINDOWS, BEST, SpanSettings(n_best_size=4))[0]
    assert [item.score for item in found] == [3.0, 1.0, 0.9, 0.5]
    assert [item.start for item in found] == [8, 0, 4, 0]
    assert texts(SpanSettings(n_best_size=2))[0] == ["three", "one two"]
    shuffled = replace(BEST, scores=np.where(np.arange(4)[:, None] == 2, BEST.scores, -INF))
    answers = choose_answers(QUESTIONS, WINDOWS, shuffled, SpanSettings())
    assert [items[0].text for items in answers] == ["", "four", ""]


def test_the_answer_does_not_depend_on_how_many_are_written() -> None:
    """Else a score would depend on `--save_n_best`: a window's best span may be a lone space."""
    text = "a b"
    windows = windows_of([0], [[(0, 1), (1, 1), (2, 3)]])
    first, last = torch.tensor([[0.0, 0.0, 1.0, 9.0, 1.0]]), torch.tensor([[0.0, 0.0, 1.0, 9.0, 1.0]])

    def answers(count: int) -> list[list[str]]:
        output = SimpleNamespace(start_logits=first, end_logits=last)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(qa_spans, "forward_batches", lambda *args, **kwargs: args[2](np.array([0]), output))
            found = predict_answers(None, [Question("a", "?", text, ())], windows, SpanSettings(3, count))
        return [[item.text for item in items] for items in found]

    assert answers(1) == [["a"]]  # of "a ", 10, and " b", 10, the first; the space alone had 18
    assert [items[0] for items in answers(20)] == ["a"]
    assert len(answers(20)[0]) > 1


def test_no_answer_wins_by_more_than_the_threshold_in_the_window_that_is_least_for_it() -> None:
    # Question a: 2 - 3 = -1, its lower null score counts; question b: 5 - 0.2 = 4.8.
    found = texts(SpanSettings(n_best_size=2, null_score_diff_threshold=0.0))
    assert found == [["three", "one two"], ["", "four"], [""]]
    assert texts(SpanSettings(null_score_diff_threshold=-1.5))[0] == [""]
    assert texts(SpanSettings(null_score_diff_threshold=4.9))[1] == ["four"]
