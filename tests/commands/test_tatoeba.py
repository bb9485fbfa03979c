"""The entry point, in this process: results and figure, and every input it must refuse."""

import sys
from pathlib import Path

import pytest
from tiny_encoder import save_tiny_encoder
from tiny_pretraining import Refusal

import run_tatoeba
from modeling_infoxlm.runs.provenance import read_result

WORDS = [f"w{4 + 3 * i} w{5 + i} w{6 + 2 * i}" for i in range(12)]


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
    encoder: Path, data: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal
) -> None:
    argv = flags(encoder, data, "--all_layers", "true", "--languages", "de", "--margin", "ratio")
    out = data.parent / "out"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        patch.delitem(sys.modules, "modeling_infoxlm.plots", raising=False)
        message = refusal(argv, main=run_tatoeba.main)
    assert "need matplotlib: pip install 'modeling-infoxlm[plots]'" in message and not out.exists()
    assert run_tatoeba.main(argv) == 0
    assert sorted(path.name for path in out.iterdir()) == ["tatoeba_layers.png", "tatoeba_results.json"]
    result = read_result(out / "tatoeba_results.json")
    assert len(result["details"]["layers"]["de"]["source_to_target"]) == 4
    assert list(result["scores"]) == ["de"]
    message = refusal(argv, main=run_tatoeba.main)
    assert "exists; give another --output_dir, or --overwrite_output_dir true" in message
    assert run_tatoeba.main([*flags(encoder, data), "--overwrite_output_dir", "true"]) == 0
    assert [path.name for path in out.iterdir()] == ["tatoeba_results.json"]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ("", "fr-en.en is missing"),
        ("--languages de sw", "no set of sw; it has de, fr"),
        ("--languages de --layer 4", "layer must be in 0..3, found 4"),
        ("--model_name_or_path nowhere/at/all --languages de", "cannot be loaded"),
        ("--model_name_or_path org/name --push_to_hub true", "must be a folder"),
        ("--dataset_name x", "found data_dir, dataset_name"),
    ],
)
def test_bad_input_ends_in_one_line_and_leaves_nothing(
    encoder: Path, data: Path, own: str, message: str, refusal: Refusal
) -> None:
    (data / "fr-en.en").unlink()
    assert message in refusal(flags(encoder, data, *own.split()), main=run_tatoeba.main)
    assert not (data.parent / "out").exists()
