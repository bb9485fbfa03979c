"""The benchmark of a recipe measures both encoders with the vectors that the run names."""

import json
from pathlib import Path

import pytest

from benchmarks import recipe
from modeling_infoxlm import InfoXLMConfig

BEFORE, AFTER = {"sw": 78.8, "ur": 91.7}, {"sw": 82.9, "ur": 92.2}


class Programs:
    """Stands for the programs: notes each command and writes what it would."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []

    def __call__(self, *command: str) -> None:
        self.commands.append(list(command))
        folder = Path(command[command.index("--output_dir") + 1])
        folder.mkdir(parents=True)
        if command[0] == "run_pretraining.py":
            InfoXLMConfig(num_hidden_layers=12, xlco_layer=-1, xlco_pooling="mean").save_pretrained(folder)
            record = {"identity": {"seed": 1}, "heldout_vectors": {"layer": 7, "pooling": "cls"}}
            (folder / "run.json").write_text(json.dumps(record))
            (folder / "eval_results.json").write_text(json.dumps({"eval_retrieval/mean": 0.97}))
            return
        values = AFTER if command[command.index("--model_name_or_path") + 1].endswith("run") else BEFORE
        scores = {language: {"accuracy": {"value": value}} for language, value in values.items()}
        mean = sum(values.values()) / len(values)
        (folder / "tatoeba_results.json").write_text(
            json.dumps({"scores": scores, "summary": {"mean": mean}})
        )


def test_both_encoders_are_measured_at_each_layer_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    programs = Programs()
    monkeypatch.setattr(recipe, "_program", programs)
    files = ["--bitext_files", "en-sw.tsv", "en-ur.tsv", "--data_dir", "tatoeba", "--languages", "sw", "ur"]
    model = ["--model_name_or_path", "encoder", "--output_dir", str(tmp_path)]
    recipe.main(["recipes/align_encoder.yaml", *model, *files, "--max_steps", "300"])
    training, *retrievals = programs.commands
    assert training[0] == "run_pretraining.py" and training[-2:] == ["--max_steps", "300"]
    assert training[1:5] == ["--config", "recipes/align_encoder.yaml", "--model_name_or_path", "encoder"]
    measured = [
        (command[2], command[command.index("--layer") + 1], command[command.index("--pooling") + 1])
        for command in retrievals
    ]
    run = str(tmp_path / "run")
    assert measured == [
        ("encoder", "12", "mean"),
        (run, "12", "mean"),
        ("encoder", "7", "cls"),
        (run, "7", "cls"),
    ]
    result = json.loads((tmp_path / "recipe.json").read_text())
    assert [entry["layer"] for entry in result["retrieval"]] == [12, 7]
    assert result["retrieval"][0]["after"] == {**AFTER, "mean": pytest.approx(87.55)}
    assert result["heldout"] == {"eval_retrieval/mean": 0.97}
    assert "| sw | 78.8 | 82.9 |\n| ur | 91.7 | 92.2 |\n| mean | 85.2 | 87.6 |" in capsys.readouterr().out
