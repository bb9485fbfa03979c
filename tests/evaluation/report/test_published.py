"""Published numbers: some checked by hand against their source, all against their own mean."""

import numpy as np
import pytest

from modeling_infoxlm.evaluation.report.published import PUBLISHED, Published, published_rows


def row(model: str, metric: str, *, task: str, training: str) -> Published:
    (found,) = (
        one for one in published_rows(task, task, metric) if one.model == model and one.training == training
    )
    return found


@pytest.mark.parametrize(
    ("task", "metric", "training", "model", "language", "value"),
    [
        ("xnli", "accuracy", "english", "InfoXLM base", "en", 86.4),
        ("xnli", "accuracy", "english", "InfoXLM base", "sw", 67.5),
        ("xnli", "accuracy", "english", "InfoXLM base", "ur", 67.3),
        ("xnli", "accuracy", "english", "XLM-R base", "zh", 76.7),
        ("xnli", "accuracy", "english", "InfoXLM large", "ar", 80.4),
        ("xnli", "accuracy", "translations", "XLM-R large", "de", 85.7),
        ("mlqa", "f1", "english", "InfoXLM large", "hi", 72.5),
        ("mlqa", "exact_match", "english", "InfoXLM large", "hi", 54.2),
        ("mlqa", "f1", "english", "XLM-R base", "es", 67.4),
        ("mlqa", "exact_match", "english", "XLM-R base", "zh", 39.3),
        ("tatoeba", "source_to_target", "none", "InfoXLM base", "ar", 59.1),
        ("tatoeba", "target_to_source", "none", "InfoXLM base", "ar", 68.6),
        ("tatoeba", "source_to_target", "none", "InfoXLM base", "zh", 86.4),
    ],
)
def test_values_stand_under_their_language(
    task: str, metric: str, training: str, model: str, language: str, value: float
) -> None:
    assert row(model, metric, task=task, training=training).values[language] == value


@pytest.mark.parametrize(
    ("model", "metric", "task", "training", "means"),
    [
        ("InfoXLM base", "accuracy", "xnli", "english", {15: 76.5}),
        ("InfoXLM large", "accuracy", "xnli", "english", {15: 81.4}),
        ("InfoXLM base", "f1", "mlqa", "english", {7: 68.1}),
        ("InfoXLM base", "exact_match", "mlqa", "english", {7: 49.6}),
        ("InfoXLM base", "source_to_target", "tatoeba", "none", {14: 77.8}),
        ("XLM-R base", "source_to_target", "tatoeba", "none", {14: 59.4, 36: 55.3}),
        ("XLM-R base", "target_to_source", "tatoeba", "none", {14: 57.5, 36: 53.3}),
    ],
)
def test_means_as_printed(model: str, metric: str, task: str, training: str, means: dict[int, float]) -> None:
    found = row(model, metric, task=task, training=training).means
    assert {len(languages): mean for languages, mean in found.items()} == means


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda one: f"{one.task} {one.metric} {one.model}")
def test_every_row_has_a_source_and_agrees_with_its_own_mean(published: Published) -> None:
    assert published.source and (published.values or published.means)
    for languages, mean in published.means.items():
        if set(languages) <= set(published.values):
            # Printed rows are rounded to 0.1, and so is the mean.
            assert np.mean([published.values[one] for one in languages]) == pytest.approx(mean, abs=0.1)


def test_other_datasets_of_a_task_have_none() -> None:
    assert published_rows("mlqa", "xquad", "f1") == []
    assert published_rows("tatoeba", "ntrex", "source_to_target") == []
    assert published_rows("xnli", "xnli-dev", "accuracy")
    assert published_rows("tatoeba", "mteb/Tatoeba-bitext-mining", "target_to_source")


def test_word_alignment_is_error_rate() -> None:
    (xlm_r, xlm_align) = published_rows("word_alignment", "alignment-test-sets", "aer")
    assert dict(xlm_r.values) == {"de-en": 19.11, "en-fr": 6.83, "en-hi": 33.73, "ro-en": 28.73}
    assert xlm_align.values["ro-en"] == 26.5
