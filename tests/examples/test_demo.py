"""The demo: it runs whole, goes on, leaves the folders of others alone, and says what it found."""

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import demo
import pytest
from rich.console import Console
from tiny_encoder import word_tokenizer
from tiny_run import tiny_model
from tiny_text import TINY_DATA, TINY_MODEL, TINY_RUN, sentence_pairs, write_pairs
from transformers import AutoModel, XLMRobertaModel

from modeling_infoxlm.hub.formats import save_as_xlm_roberta

RECIPE = [*TINY_MODEL, *TINY_DATA, *TINY_RUN, *"--max_steps 4 --mono_from_bitext true --eval_steps 4".split()]
RECIPE += "--heldout_fraction 0.2 --eval_strategy steps --eval_layer 1 --eval_max_pairs 9".split()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    pairs = zip(RECIPE[::2], RECIPE[1::2], strict=True)
    (tmp_path / "tiny.yaml").write_text("".join(f"{flag[2:]}: {value}\n" for flag, value in pairs))
    return tmp_path / "tiny.yaml"


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_whole_demo_and_that_it_goes_on(
    tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    examples, pairs = tmp_path / "examples", sentence_pairs(120)
    write_pairs(examples / "en-de.tsv", pairs)
    write_pairs(examples / "en-fr.tsv", [(source, target.upper()) for source, target in pairs])
    monkeypatch.setattr(demo, "EXAMPLES", examples)
    monkeypatch.chdir(tmp_path)
    argv = ["--output_dir", "out", "--config", str(recipe)]
    demo.run_demo(argv)
    out, printed = tmp_path / "out", capsys.readouterr().out
    assert "7/7 export to plain XLM-R" in printed and "make demo-compare" in printed
    assert "{'loss'" in (out / "run.log").read_text() and "{'loss'" not in printed
    results, first = read(out / "results.json"), (out / "run" / "model.safetensors").stat().st_mtime_ns
    # What the training measured at its end, at the layer that is reported.
    measured, trained = read(out / "run" / "eval_results.json"), results["retrieval"]["trained"]
    assert trained["mean"] == pytest.approx(measured["eval_retrieval/mean"])
    assert trained["mean"] == trained["mean_by_layer"][1] and len(trained["mean_by_layer"]) == 3
    assert trained["pairs"]["en-fr"]["mean"] == pytest.approx(measured["eval_retrieval/en-fr"])
    assert results["retrieval"]["untrained"]["mean"] == pytest.approx(measured["start_retrieval/mean"])
    assert results["run"]["pairs"]["en-de"]["candidates"] == 9

    demo.run_demo([*argv, "--compare"])
    assert (out / "run" / "model.safetensors").stat().st_mtime_ns == first, "what is finished is kept"
    again, printed = read(out / "results.json"), capsys.readouterr().out
    stages = [one["stages"]["pre-training"]["training_seconds"] for one in (results, again)]
    assert stages[0] == stages[1] > 0
    assert list(again["retrieval"]) == ["untrained", "trained", "MLM+TLM only"]
    assert again["retrieval"]["trained"] == trained
    assert "xlco" not in again["stages"]["pre-training without the contrast"]["result"]
    assert (out / "results.md").read_text() == demo.markdown_table(again)
    figures = ["losses.png", "retrieval_by_layer.png", "similarity.png", "sentence_map.png"]
    assert again["stages"]["figures"]["files"] == figures
    assert all((out / "figures" / name).stat().st_size > 10_000 for name in figures)
    assert type(AutoModel.from_pretrained(out / "xlm-roberta")) is XLMRobertaModel
    assert "load the release" in printed and "make demo-compare" not in printed


# -------------------------------------------------------------------------------------------- what it keeps


def stages_in(root: Path, recipe: Path, *, fresh: bool = False) -> demo.Stages:
    options = argparse.Namespace(output_dir=root, config=recipe, fresh=fresh)
    return demo.Stages(demo.open_results(options, []), root, count=2)


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path, recipe: Path) -> None:
    folder = tmp_path / "out"
    (folder / "data").mkdir(parents=True)
    for content in (None, '{"made_by": "someone else"}'):
        if content:
            (folder / "results.json").write_text(content)
        for fresh in (False, True):
            with pytest.raises(ValueError, match="is not empty and holds no demo"):
                stages_in(folder, recipe, fresh=fresh)
    assert (folder / "data").is_dir()


def test_fresh_removes_what_the_demo_made_and_nothing_else(tmp_path: Path, recipe: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    with pytest.raises(RuntimeError), stages_in(out, recipe).stage("data"):
        raise RuntimeError
    assert read(out / "results.json")["stages"] == {}, "a stage that failed is no result"
    (out / "run" / "checkpoint-1").mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    elsewhere.mkdir()
    (out / "data").symlink_to(elsewhere)
    recipe = tmp_path / "changed.yaml"
    recipe.write_text("max_steps: 1\n")
    with pytest.raises(ValueError, match="demo of another recipe .*--fresh starts over"):
        stages_in(out, recipe)
    stages_in(out, recipe, fresh=True)
    assert {path.name for path in out.iterdir()} == {"notes.txt", "results.json"}
    assert elsewhere.is_dir()


# -------------------------------------------------------------------------------------------- what it says


def test_last_screen_says_what_the_results_say() -> None:
    def encoder(mean: float) -> dict[str, Any]:
        return {"pairs": {"en-de": {"mean": mean + 0.05}, "en-hi": {"mean": mean - 0.05}}, "mean": mean}

    sizes = {"en-de": {"training": 5200, "candidates": 300}, "en-hi": {"training": 2200, "candidates": 299}}
    shape = {"layers": 4, "parameters": 5_312_000, "steps": 600, "layer": 4, "pooling": "mean"}
    results = {
        "output_dir": "demo_output",
        "stages": {"pre-training": {"training_seconds": 245.0}, "figures": {"files": ["losses.png"]}},
        "run": {**shape, "objectives": ["mlm", "xlco"], "pairs": sizes},
        "retrieval": {"untrained": encoder(0.12), "trained": encoder(0.81)},
    }
    console = Console(record=True, width=100, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    demo.print_last_screen(results, console)
    words = " ".join(console.export_text().split())
    assert "on 7,400 sentence pairs of 2 language pairs: 600 steps of mlm + xlco in 4 min 05 s." in words
    assert "it now finds 81.0% of the translations; untrained it found 12.0%" in words
    assert "en-hi 299 7.0 76.0" in words and "demo_output/figures: losses.png" in words


def test_durations_and_losses_as_one_reads_them(tmp_path: Path) -> None:
    assert [demo.duration(one) for one in (7.6, 59.6, 245.0)] == ["8 s", "1 min 00 s", "4 min 05 s"]
    history = [
        {"step": 10, "loss": 9.0, "loss/mlm": 8.0, "information/mlm": 1.0},
        {"loss": 7.0, "loss/mlm": 6.0, "information/mlm": 3.0, "loss/xlco": 1.5, "information/xlco": 7.5},
        {"step": 20, "eval_loss": 3.0, "eval_loss/mlm": 1.0},
    ]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    assert demo.last_losses(tmp_path) == "mlm 6.00 (guess 9.00), xlco 1.50 (guess 9.00)"


def test_a_release_that_differs_is_an_error(
    tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, stages = tiny_model(), stages_in(tmp_path / "out", recipe)
    stages.results["run"] = {"layer": 1}
    demo.export(stages, model, word_tokenizer())
    assert stages.results["stages"].popitem()[1]["largest_difference"] < demo.LARGEST_DIFFERENCE

    def save_another(model: Any, folder: Path, *, tokenizer: Any) -> None:
        other = copy.deepcopy(model)
        other.roberta.encoder.layer[0].output.dense.weight.data.neg_()
        save_as_xlm_roberta(other, folder, tokenizer=tokenizer)

    monkeypatch.setattr(demo, "save_as_xlm_roberta", save_another)
    with pytest.raises(ValueError, match="differ from ours"):
        demo.export(stages, model, word_tokenizer())
    assert not stages.results["stages"]
