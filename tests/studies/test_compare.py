"""Runs held against each other."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_results import accuracy, content, write

from modeling_infoxlm import plots
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.studies.compare import compare, paired_difference
from modeling_infoxlm.studies.runs import read_runs


def write_run(folder: Path, *, seed: int, retrieval: float, **settings: Any) -> Path:
    """A run folder as `infoxlm pretrain` leaves it, without weights."""
    identity = {"objectives": "mlm", "seed": seed, "prepared_data": str(folder), **settings}
    history = [
        {"step": step, "loss/mlm": 5.0 - step / 10, "eval_retrieval/mean": retrieval * step / 20}
        for step in (0, 10, 20)
    ]
    files = {
        "run.json": {"identity": identity},
        "trainer_state.json": {"log_history": history, "num_input_tokens_seen": 3_000_000},
        "eval_results.json": {
            "eval_retrieval/mean": retrieval,
            "start_retrieval/mean": 0.1,
            "eval_loss/mlm": 3.0,
        },
    }
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(json.dumps(text))
    return folder


def write_arm(folder: Path, scores: list[dict[str, float]], **settings: Any) -> None:
    """An arm of two seeds, as `infoxlm study` leaves it."""
    for seed, score in enumerate(scores, 1):
        cell = folder / f"seed-{seed}"
        write_run(cell / "run", seed=seed, retrieval=0.5 + seed / 10, **settings)
        (cell / "study.json").write_text(
            json.dumps({"arm": folder.name, "seed": seed, "number": len(folder.name)})
        )
        result = content(accuracy(**score), seed=7, model={"sha256": f"{folder}{seed}"})
        write(cell / "nli", "xnli", result)


def test_seeds_are_merged_and_only_what_differs_is_shown(tmp_path: Path) -> None:
    write_arm(
        tmp_path / "base", [{"en": 70, "de": 60}, {"en": 72, "de": 62}], learning_rate=1e-4, max_steps=20
    )
    write_arm(
        tmp_path / "better", [{"en": 74, "de": 63}, {"en": 76, "de": 65}], learning_rate=2e-4, max_steps=20
    )
    assert "2 arms, 4 runs, 4 result files" in compare([tmp_path], tmp_path / "out")
    text = (tmp_path / "out/compare.md").read_text()
    assert r"| learning\_rate | 0.0001 | 0.0002 |" in text
    assert "max\\_steps" not in text and "prepared" not in text
    assert "| base | 2 | 3.00 ± 0.00 | 65.0 ± 7.1 | 10.0 ± 0.0 | 3.000 ± 0.000 |" in text
    assert "| better | nli/xnli | accuracy | 2 | +3.50 | +3.00 | +4.00 |" in text
    assert "| better | 2 | 75.0 ± 1.4 | 64.0 ± 1.4 |" in text
    assert (tmp_path / "out/compare.png").stat().st_size > 10_000
    lines = (tmp_path / "out/compare.csv").read_text().splitlines()
    assert any(line.startswith("xnli,xnli,percent,accuracy,better,en,75.0") for line in lines)
    assert r"\caption{Comparison, settings that differ" in (tmp_path / "out/compare.tex").read_text()


def test_layers_are_drawn_as_means_over_languages_and_directions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    retrieval = {"de": {"to": [10, 20], "from": [30, 60]}, "fr": {"to": [50, 70], "from": [70, 90]}}
    information = {"de": {"1": {"value": 2.0}, "0": {"value": 1.0}}}
    write_arm(tmp_path / "base", [{"en": 70, "de": 60}])
    for name, layers in (("tatoeba", retrieval), ("information", information)):
        result = content(accuracy(en=70, de=60), details={"layers": layers})
        write(tmp_path / "base/seed-1" / name, name, result)
        write(tmp_path / "base/seed-1/again" / name, name, result)
    figures: list[Any] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    compare([tmp_path], tmp_path / "out")
    lines = {axes.get_title("left"): axes.get_lines()[0].get_xydata().tolist() for axes in figures[0].axes}
    assert lines["tatoeba: accuracy, percent"] == [[0, 40], [1, 60]]
    assert lines["information: accuracy, percent"] == [[0, 1], [1, 2]]
    assert "again/tatoeba: accuracy, percent" in lines  # not a second line of the other's panel
    assert lines["MLM loss, nats"] == [[0, 5], [1.5, 4], [3, 3]]


def test_plain_run_folders_are_arms_by_their_settings_and_runs_of_fine_tuning_are_none(
    tmp_path: Path,
) -> None:
    for name, seed, rate in (("a", 1, 1e-4), ("b", 2, 1e-4), ("c", 1, 2e-4)):
        write_run(tmp_path / name, seed=seed, retrieval=0.5, learning_rate=rate)
    (tmp_path / "a/nli").mkdir()
    (tmp_path / "a/nli/run.json").write_text(json.dumps({"identity": {"model": {}, "seed": 1}}))
    write(tmp_path / "a/nli", "xnli", content(accuracy(en=70.0, de=60.0)))
    runs = read_runs([tmp_path / "a", tmp_path / "b", tmp_path / "c"])
    assert [(run.arm, run.seed, len(run.results)) for run in runs] == [("a", 1, 1), ("a", 2, 0), ("c", 1, 0)]


def test_what_differs_in_more_than_the_seed_is_not_one_arm_for_its_name(tmp_path: Path) -> None:
    for study in ("a", "b"):
        write_arm(tmp_path / study / "plain", [{"en": 70, "de": 60}])
    assert [run.arm for run in read_runs([tmp_path])] == ["plain", str(tmp_path / "b/plain")]
    for seed, rate in ((1, 1e-4), (2, 2e-4)):
        write_run(tmp_path / f"{rate}/run", seed=seed, retrieval=0.5, learning_rate=rate)
    arms = [run.arm for run in read_runs([tmp_path / "0.0001", tmp_path / "0.0002"])]
    assert arms == ["run", str(tmp_path / "0.0002/run")]


def test_runs_from_another_model_or_of_another_text_are_another_arm(tmp_path: Path) -> None:
    for name, settings in (("a", {}), ("b", {"model_name_or_path": "x"}), ("c", {"bitext_files": ["y"]})):
        write_run(tmp_path / name, seed=1, retrieval=0.5, **settings)
    assert "3 arms, 3 runs" in compare([tmp_path], tmp_path / "out")
    assert r"| model\_name\_or\_path | - | x | - |" in (tmp_path / "out/compare.md").read_text()


def test_a_model_that_was_not_trained_stands_beside_the_others(tmp_path: Path) -> None:
    write_arm(tmp_path / "trained", [{"en": 70, "de": 60}], learning_rate=1e-4)
    (tmp_path / "start/seed-1").mkdir(parents=True)
    (tmp_path / "start/seed-1/study.json").write_text('{"arm": "start", "seed": 1, "number": 0}')
    write(tmp_path / "start/seed-1/nli", "xnli", content(accuracy(en=60.0, de=50.0)))
    compare([tmp_path], tmp_path / "out")
    text = (tmp_path / "out/compare.md").read_text()
    assert "Differences to start" in text
    assert "| trained | nli/xnli | accuracy | 2 | +10.00 | +10.00 | +10.00 |" in text
    assert "settings that differ" not in text.lower()


def test_what_arms_begin_with_is_no_arm(tmp_path: Path) -> None:
    write_arm(tmp_path / "trained", [{"en": 70, "de": 60}])
    write_run(tmp_path / "begin/seed-1/run", seed=1, retrieval=0.1)
    (tmp_path / "begin/seed-1/study.json").write_text('{"arm": "begin", "seed": 1, "number": -1}')
    assert [run.arm for run in read_runs([tmp_path])] == ["trained"]


def test_differences_are_of_what_was_measured_on_the_same_data(tmp_path: Path) -> None:
    for name in ("MLM", "MLM-long", "MLM-longer"):
        write_arm(tmp_path / name, [{"en": 70, "de": 60}])
    result = content(accuracy(en=70, de=60), dataset={"sha256": "e" * 64})
    write(tmp_path / "MLM-long/seed-1/nli", "xnli", result)
    compare([tmp_path], tmp_path / "out")
    text = (tmp_path / "out/compare.md").read_text()
    assert "## Differences to MLM\n" in text
    assert "| MLM-longer | nli/xnli | accuracy |" in text and "| MLM-long | nli/xnli |" not in text


def test_what_a_study_has_not_done_yet_is_passed_over_unless_it_is_asked_for(tmp_path: Path) -> None:
    write_arm(tmp_path / "done", [{"en": 70, "de": 60}])
    under_way = write_run(tmp_path / "next/seed-1/run", seed=1, retrieval=0.1)
    (tmp_path / "next/seed-1/run.json").write_text('{"max_steps": 5}')  # its flags
    assert [run.arm for run in read_runs([tmp_path])] == ["done"]
    assert [run.arm for run in read_runs([under_way])] == ["run"]


def test_folders_without_a_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run in"):
        read_runs([tmp_path])
    with pytest.raises(UsageError, match="there is no folder"):
        read_runs([tmp_path / "absent"])


def test_the_interval_of_a_difference_is_that_of_its_pairs() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(50, 10, size=(3, 400))  # languages differ much, arms little
    value, low, high = paired_difference(base + rng.normal(1, 0.5, base.shape), base)
    assert low < 1 < high and high - low < 0.3
    alone = paired_difference(base[:1], base)
    assert alone[1] < 0 < alone[2]
    assert value == pytest.approx(1, abs=0.1)
