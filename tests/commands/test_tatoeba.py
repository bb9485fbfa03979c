"""The entry point, in this process: results and figure, and every input it must refuse."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_encoder import save_tiny_encoder

import run_tatoeba
from modeling_infoxlm.runs.provenance import read_result

WORDS = [f"w{4 + 3 * i} w{5 + i} w{6 + 2 * i}" for i in range(12)]


@pytest.fixture(autouse=True)
def unchanged_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of a process are for programs."""
    monkeypatch.setattr("modeling_infoxlm.commands.tatoeba.configure_process", lambda: None)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """German is English; of French the first sentence and the last change places."""
    folder = tmp_path / "data"
    folder.mkdir()
    sides = {"de": WORDS, "fr": [WORDS[-1], *WORDS[1:-1], WORDS[0]]}
    for language, lines in sides.items():
        (folder / f"{language}-en.{language}").write_text("\n".join(lines) + "\n")
        (folder / f"{language}-en.en").write_text("\n".join(WORDS) + "\n")
    return folder


def flags(encoder: Path, data: Path, *own: str) -> list[str]:
    folders = {"model_name_or_path": encoder, "data_dir": data, "output_dir": data.parent / "out"}
    return [*(word for name, path in folders.items() for word in (f"--{name}", str(path))), *own]


def test_results_of_both_directions(encoder: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = flags(encoder, data)
    assert run_tatoeba.main(argv) == 0
    assert [path.name for path in (data.parent / "out").iterdir()] == ["tatoeba_results.json"]
    result = read_result(data.parent / "out" / "tatoeba_results.json")
    for language, expected in (("de", 100.0), ("fr", 100 * 10 / 12)):
        for metric in ("accuracy", "source_to_target", "target_to_source"):
            number = result["scores"][language][metric]
            assert number["value"] == pytest.approx(expected) and number["count"] == 12
    assert result["summary"]["mean"] == pytest.approx((100 + 100 * 10 / 12) / 2)
    assert "mean_14" not in result["summary"]
    assert result["settings"]["layer"] == 3 and result["settings"]["margin"] == "none"
    assert result["command"] == ["run_tatoeba.py", *argv]
    assert set(result["dataset"]["files"]) == {"de-en.de", "de-en.en", "fr-en.fr", "fr-en.en"}
    printed = capsys.readouterr().out
    assert "100.0" in printed and "tatoeba_results.json" in printed


def test_all_layers_make_a_figure_and_a_new_run_must_be_allowed(
    encoder: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = flags(encoder, data, "--all_layers", "true", "--languages", "de", "--margin", "ratio")
    out = data.parent / "out"
    assert run_tatoeba.main(argv) == 0
    assert sorted(path.name for path in out.iterdir()) == ["tatoeba_layers.png", "tatoeba_results.json"]
    result = read_result(out / "tatoeba_results.json")
    assert len(result["details"]["layers"]["de"]["source_to_target"]) == 4
    assert list(result["scores"]) == ["de"]
    assert run_tatoeba.main(argv) == 2
    assert "exists; give another --output_dir, or --overwrite_output_dir true" in capsys.readouterr().err
    assert run_tatoeba.main([*flags(encoder, data), "--overwrite_output_dir", "true"]) == 0
    assert [path.name for path in out.iterdir()] == ["tatoeba_results.json"]


def drop_a_line(data: Path) -> None:
    (data / "fr-en.en").write_text("\n".join(WORDS[1:]) + "\n")


def drop_a_side(data: Path) -> None:
    (data / "fr-en.en").unlink()


def nothing(data: Path) -> None:
    return


@pytest.mark.parametrize(
    ("spoil", "own", "message"),
    [
        (drop_a_line, [], "12 source lines"),
        (drop_a_side, [], "fr-en.en is missing"),
        (nothing, ["--languages", "de", "sw"], "no set of sw; it has de, fr"),
        (nothing, ["--layer", "4"], "layer must be in 0..3, found 4"),
        (nothing, ["--model_name_or_path", "nowhere/at/all"], "cannot be loaded"),
        (nothing, ["--data_dir", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_bad_input_ends_in_one_line_and_leaves_nothing(
    encoder: Path,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    own: list[str],
    message: str,
) -> None:
    spoil(data)
    assert run_tatoeba.main(flags(encoder, data, *own)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert message in line
    assert not (data.parent / "out").exists()


def test_a_negative_layer_and_test_sets_given_in_no_way_or_in_two(encoder: Path, data: Path) -> None:
    own = (["--dataset_name", "x"], ["--layer", "-1"])
    for argv in (*(flags(encoder, data, *one) for one in own), ["--model_name_or_path", str(encoder)]):
        with pytest.raises(SystemExit) as exit_:
            run_tatoeba.main(argv)
        assert exit_.value.code == 2


def test_figure_without_the_extra(
    encoder: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "modeling_infoxlm.plots", raising=False)
    assert run_tatoeba.main(flags(encoder, data, "--all_layers", "true")) == 2
    assert "need matplotlib: pip install 'modeling-infoxlm[plots]'" in capsys.readouterr().err
    assert not (data.parent / "out").exists()
