"""Public benchmarks: some numbers checked by hand against their source, all against their own mean."""

import tomllib
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest

from modeling_infoxlm.hub.benchmarks import BENCHMARKS, LANGUAGES, PUBLISHED, published_rows


@pytest.mark.parametrize(
    ("task", "metric", "training", "model", "values", "means"),
    [
        ("xnli", "accuracy", "english", "InfoXLM base", {"en": 86.4, "sw": 67.5, "ur": 67.3}, {15: 76.5}),
        ("xnli", "accuracy", "translations", "XLM-R large", {"de": 85.7}, {15: 83.6}),
        ("mlqa", "f1", "english", "InfoXLM large", {"hi": 72.5}, {7: 73.6}),
        ("mlqa", "exact_match", "english", "XLM-R base", {"zh": 39.3, "es": 49.6}, {7: 46.3}),
        ("tatoeba", "source_to_target", "none", "InfoXLM base", {"ar": 59.1, "zh": 86.4}, {14: 77.8}),
        ("tatoeba", "target_to_source", "none", "InfoXLM base", {"ar": 68.6}, {14: 80.6}),
        ("tatoeba", "target_to_source", "none", "XLM-R base", {}, {14: 57.5, 36: 53.3}),
    ],
)
def test_values_stand_under_their_language_and_means_as_printed(
    task: str, metric: str, training: str, model: str, values: dict[str, float], means: dict[int, float]
) -> None:
    rows = published_rows(task, task, metric)
    (found,) = (one for one in rows if (one.model, one.training) == (model, training))
    assert values.items() <= found.values.items()
    assert {len(languages): mean for languages, mean in found.means.items()} == means


def test_every_row_has_a_source_and_agrees_with_its_own_mean() -> None:
    assert len(PUBLISHED) == 49
    for published in PUBLISHED:
        assert published.source and (published.values or published.means)
        for languages, mean in published.means.items():
            if set(languages) <= set(published.values):
                # Printed rows are rounded to 0.1, and so is the mean.
                own = np.mean([published.values[one] for one in languages])
                assert own == pytest.approx(mean, abs=0.1), published


def test_rows_are_of_one_dataset_of_a_task_and_hashes_are_whole() -> None:
    """YAML reads digits alone as a number, and `no` as false."""
    assert published_rows("mlqa", "xquad", "f1") == []
    assert published_rows("tatoeba", "ntrex", "source_to_target") == []
    assert published_rows("xnli", "xnli-dev", "accuracy")
    assert published_rows("tatoeba", "mteb/Tatoeba-bitext-mining", "target_to_source")
    (xlm_r, xlm_align) = published_rows("word_alignment", "alignment-test-sets", "aer")
    assert dict(xlm_r.values) == {"de-en": 19.11, "en-fr": 6.83, "en-hi": 33.73, "ro-en": 28.73}
    assert xlm_align.values["ro-en"] == 26.5
    assert set(BENCHMARKS["tatoeba"].files) == set(LANGUAGES["tatoeba_xtreme"])
    for benchmark, count in (("tatoeba", 2), ("xquad", 1)):
        for digests in BENCHMARKS[benchmark].files.values():
            assert [len(digest) for digest in digests.split()] == [12] * count


def test_data_beside_the_code_is_in_the_wheel() -> None:
    """What is no Python file is left out of a wheel unless it is named."""
    root = Path(__file__).parents[2]
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["modeling_infoxlm"]
    package = root / "modeling_infoxlm"
    files = [path.relative_to(package) for path in package.rglob("*") if path.is_file()]
    others = [str(path) for path in files if path.suffix not in (".py", ".pyc")]
    assert "hub/benchmarks.yaml" in others
    assert [name for name in others if not any(fnmatch(name, pattern) for pattern in patterns)] == []
