"""Result files: what is written can be read, and intervals cover what they should."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from modeling_infoxlm.evaluation.results import (
    DatasetRecord,
    Estimate,
    ModelRecord,
    TaskResult,
    bootstrap,
    estimate_share,
    summarise,
    write_result,
)
from modeling_infoxlm.runs.provenance import RESULT_SCHEMA, read_result


@pytest.fixture
def result(tmp_path: Path) -> TaskResult:
    (tmp_path / "dev.tsv").write_text("text\n")
    return TaskResult(
        task="xnli",
        metric="accuracy",
        unit="percent",
        dataset=DatasetRecord.of_files("xnli", [tmp_path / "dev.tsv"]),
        model=ModelRecord("encoder", None, "0" * 64, "infoxlm", 12),
        settings={"learning_rate": 1e-5},
        scores={"en": {"accuracy": Estimate(80.0, 79.0, 81.0, 100)}},
        summary={"mean": 80.0},
        seed=3,
    )


def test_a_result_is_read_as_it_was_written(result: TaskResult, tmp_path: Path) -> None:
    path = write_result(tmp_path / "out", result, command=["run_xnli.py", "--token", "hf_abcdefghijk"])
    assert path == tmp_path / "out" / "xnli_results.json"
    found = read_result(path)
    assert found["schema"] == RESULT_SCHEMA and found["seed"] == 3 and found["unit"] == "percent"
    assert found["scores"]["en"]["accuracy"] == {"value": 80.0, "low": 79.0, "high": 81.0, "count": 100}
    assert found["command"] == ["run_xnli.py", "--token", "<token>"]
    assert found["dataset"]["sha256"] == result.dataset.sha256
    assert found["versions"]["torch"] and "identity" not in found
    files = {"/home/me/b.tsv": "2", "a.tsv": "1"}
    identity = {"seed": 3, "files": files, "data_dir": "/home/me", "optim": "x"}
    path = write_result(tmp_path / "out", result, command=["run_xnli.py"], identity=identity)
    assert read_result(path)["identity"] == {"seed": 3, "files": ["1", "2"], "optim": "x"}


def test_no_file_is_lost_however_alike_the_names_are(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a/x/t.tsv", "b/x/t.tsv", "b/y/t.tsv", "b/y/xt.tsv")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(path))
    record = DatasetRecord.of_files("x", [*paths, paths[0]], {"hub:org/pairs:de-en": "c" * 40})
    assert list(record.files) == ["a/x/t.tsv", "b/x/t.tsv", "y/t.tsv", "xt.tsv", "hub:org/pairs:de-en"]
    for path in paths:
        path.write_text("changed")
        assert DatasetRecord.of_files("x", paths, {"hub:org/pairs:de-en": "c" * 40}).sha256 != record.sha256
        path.write_text(str(path))
    assert DatasetRecord.of_files("x", paths, {"hub:org/pairs:de-en": "d" * 40}).sha256 != record.sha256
    assert DatasetRecord("hub", {}, "abc").sha256 is None


def test_the_gap_is_english_minus_the_mean_of_the_others() -> None:
    assert summarise({"en": 90.0, "de": 80.0, "sw": 60.0}) == pytest.approx({"mean": 230 / 3, "gap": 20.0})
    assert summarise({"de": 80.0, "sw": 60.0}) == {"mean": 70.0}
    assert summarise({"en": 90.0}) == {"mean": 90.0}


@pytest.mark.parametrize("estimate", [estimate_share, bootstrap])
def test_the_interval_of_many_items_is_that_of_the_normal_approximation(
    estimate: Callable[[np.ndarray], Estimate],
) -> None:
    items = np.repeat([100.0, 0.0], [300, 700])
    found = estimate(items)
    half = 1.96 * 100 * np.sqrt(0.3 * 0.7 / 1000)
    assert found.value == pytest.approx(30.0) and found.count == 1000
    assert found.low == pytest.approx(30 - half, abs=0.5)
    assert found.high == pytest.approx(30 + half, abs=0.5)
    assert found == estimate(items)
    found = estimate(np.tile([40.0, 60.0], 500))  # scores between right and wrong: by their spread
    assert found.high - found.low == pytest.approx(2 * 1.96 * 10 / np.sqrt(1000), rel=0.15)


@pytest.mark.parametrize(
    "count, share", [(20, 0.5), (30, 0.98), (100, 0.98), (100, 0.02), (400, 0.995), (100, 1.0)]
)
def test_an_interval_covers_the_share_as_often_as_it_says(count: int, share: float) -> None:
    covered = 0.0
    for right in range(count + 1):
        found = estimate_share(np.repeat([100.0, 0.0], [right, count - right]))
        assert 0 <= found.low <= found.value <= found.high <= 100
        chance = math.comb(count, right) * share**right * (1 - share) ** (count - right)
        covered += chance * (found.low <= 100 * share <= found.high)
    assert covered >= 0.94


def test_a_perfect_score_of_few_items_is_not_certain_and_none_is_no_number() -> None:
    # Wilson's interval is 96.3 to 100, Agresti and Coull's the wider one.
    found = estimate_share(np.full(100, 100.0))
    assert (found.value, found.high) == (100.0, 100.0) and 95 < found.low < 96.4
    assert estimate_share(np.zeros(100)).high == pytest.approx(100 - found.low)
    for estimate in (bootstrap, estimate_share):
        with pytest.raises(ValueError, match="at least one item"):
            estimate(np.empty(0))


def test_items_of_one_group_count_as_one_where_they_are_alike() -> None:
    articles = np.repeat([100.0, 0.0, 100.0, 100.0, 0.0], 20)
    groups = np.repeat(list("abcde"), 20)
    found, alone = estimate_share(articles, groups=groups), estimate_share(articles)
    five = estimate_share(articles[::20])
    assert (found.value, found.count) == (60.0, 100)
    assert found.high - found.low == pytest.approx(five.high - five.low, rel=0.1)
    assert found.high - found.low > 3 * (alone.high - alone.low)
    # Items that do not hang together are as good as single ones.
    mixed = estimate_share(np.tile([100.0, 0.0], 50), groups=groups)
    assert mixed == estimate_share(np.tile([100.0, 0.0], 50))
    perfect = estimate_share(np.full(100, 100.0), groups=groups)
    assert perfect.low == pytest.approx(estimate_share(np.full(5, 100.0)).low)


def test_the_interval_of_a_ratio_of_sums_is_that_of_its_parts() -> None:
    """Links found of links drawn, by sentence."""

    def ratio(means: np.ndarray) -> np.ndarray:
        return 100 * means[..., 0] / means[..., 1]

    rng = np.random.default_rng(0)
    drawn = rng.integers(1, 9, 2000)
    found = rng.binomial(drawn, 0.7)
    estimate = estimate_share(np.stack([found, drawn], axis=1), ratio)
    assert estimate.value == pytest.approx(100 * found.sum() / drawn.sum())
    resampled = bootstrap(np.stack([found, drawn], axis=1), ratio)
    assert estimate.high - estimate.low == pytest.approx(resampled.high - resampled.low, rel=0.1)
    few = bootstrap(np.array([[1.0, 2.0], [3.0, 4.0], [0.0, 10.0]]), ratio)
    assert few.value == pytest.approx(100 * 4 / 16)
    # The extreme resamples are three times the lowest and three times the highest ratio.
    assert 0 <= few.low < few.value < few.high <= 75
