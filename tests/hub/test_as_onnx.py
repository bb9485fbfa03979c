"""ONNX folders: open batch size and length, the numbers of torch, and nothing released that differs."""

import functools
import importlib.util
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_heads import CLASSES, save_checkpoint, trained_model
from transformers import AutoTokenizer

from modeling_infoxlm.hub import as_onnx
from modeling_infoxlm.hub.as_onnx import example_batch, save_as_onnx
from modeling_infoxlm.hub.export import RELEASE_FILE, export, export_command, read_record
from modeling_infoxlm.hub.formats import plain_encoder
from modeling_infoxlm.runs.errors import UsageError

FILES = {"config.json", "export.json", "model.onnx", "model.onnx.data"}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}
# By kind of checkpoint: the layer it is cut at, and the outputs.
EXPORTED: dict[str, tuple[int | None, list[str]]] = {
    "Model": (None, ["last_hidden_state"]),
    "ForPreTraining": (2, ["last_hidden_state"]),
    "ForMaskedLM": (0, ["last_hidden_state"]),
    "ForSequenceClassification": (None, ["logits"]),
    "ForTokenClassification": (None, ["logits"]),
    "ForQuestionAnswering": (None, ["start_logits", "end_logits"]),
    "ForMultipleChoice": (None, ["logits"]),
}
SLOW = ("Model", "ForTokenClassification")  # tracing each takes seconds, and these are as others
FAST = tuple(name for name in CLASSES if name not in SLOW)
LENGTHS = ([6], [1], [5, 5, 5], [3, 17, 2, 8, 1], [9, 2], [510])


needs_onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, as_onnx.PACKAGES)), reason="needs the extra `onnx`"
)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes the release of a kind of checkpoint, once: each takes seconds to trace."""

    @functools.cache
    def make(name: str) -> Path:
        root = tmp_path_factory.mktemp(name)
        checkpoint = save_checkpoint(root / "checkpoint", name)
        export(checkpoint, root / "release", format="onnx", layer=EXPORTED[name][0])
        return root / "release"

    return make


def run(folder: Path, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    for given in session.get_inputs():
        batch_size, *choices, sequence_length = given.shape
        assert (batch_size, sequence_length) == ("batch_size", "sequence_length"), given.name
        assert choices in ([], ["num_choices"])
    assert {output.shape[0] for output in session.get_outputs()} == {"batch_size"}
    names = [output.name for output in session.get_outputs()]
    inputs = {given.name: batch[given.name].numpy() for given in session.get_inputs()}
    found = session.run(names, inputs)
    return dict(zip(names, map(torch.from_numpy, found), strict=True))


@torch.no_grad()
def expected(name: str, layer: int | None, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """By our own class."""
    model = trained_model(name)
    if EXPORTED[name][1] == ["last_hidden_state"]:
        hidden = model.base_model(**batch, output_hidden_states=True).hidden_states
        return {"last_hidden_state": hidden[-1 if layer is None else layer]}
    return dict(model(**batch))


@needs_onnx
@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_release_gives_torchs_numbers_for_every_shape(release: Callable[[str], Path], name: str) -> None:
    layer, outputs = EXPORTED[name]
    for lengths in LENGTHS:
        batch = example_batch(trained_model(name), lengths)
        assert batch["attention_mask"].sum(dim=-1).reshape(len(lengths), -1)[:, 0].tolist() == lengths
        found, by_torch = run(release(name), batch), expected(name, layer, batch)
        assert list(found) == outputs
        for output, value in found.items():
            torch.testing.assert_close(value, by_torch[output], rtol=0, atol=1e-4)
    assert all(value.std() > 0.01 for value in found.values())
    check_files(release(name), outputs == ["last_hidden_state"], name)


def check_files(folder: Path, is_encoder: bool, name: str) -> None:
    """Graph, weights, configuration and tokenizer, and nothing of this machine."""
    assert {path.name for path in folder.iterdir()} == {*FILES, *TOKENIZER, RELEASE_FILE}
    for path in folder.iterdir():
        assert str(folder.parent).encode() not in path.read_bytes(), path.name
    config = json.loads((folder / "config.json").read_text())
    architecture = "XLMRobertaModel" if is_encoder else f"XLMRoberta{name}"
    assert (config["model_type"], config["architectures"]) == ("xlm-roberta", [architecture])
    record = read_record(folder)
    assert record is not None and (record.architecture, record.layer) == (architecture, EXPORTED[name][0])
    assert AutoTokenizer.from_pretrained(folder)("w9 w7")["input_ids"] == [0, 9, 7, 2]


@needs_onnx
def test_transformers_loads_it_by_its_own_means(release: Callable[[str], Path]) -> None:
    from transformers.exporters import ExportedModel

    batch = example_batch(trained_model("ForSequenceClassification"), [5, 3])
    found = ExportedModel.from_pretrained(release("ForSequenceClassification"), device="cpu")(**batch)
    by_torch = expected("ForSequenceClassification", None, batch)
    torch.testing.assert_close(found.logits, by_torch["logits"], rtol=0, atol=1e-4)


@needs_onnx
def test_command_prints_one_line(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    checkpoint, folder = tmp_path / "checkpoint", tmp_path / "release"
    save_checkpoint(checkpoint, "ForPreTraining", num_hidden_layers=2, xlco_layer=1)
    export_command([str(checkpoint), "--output_dir", str(folder), "--format", "onnx", "--layer", "1"])
    out, err = capfd.readouterr()
    assert not re.sub("Writing model shards:.*", "", err).strip()  # but for that bar of transformers
    assert out == (
        f"{folder}: XLMRobertaModel as ONNX, equal to torch's to 1e-4; onnxruntime loads model.onnx.\n"
    )
    record = read_record(folder)
    assert record is not None and (record.layer, record.pooling) == (1, None)
    assert logging.root.manager.disable == logging.NOTSET


# ---------------------------------------------------------------------------- what is not released


@needs_onnx
@pytest.mark.parametrize("error", [2e-4, float("nan")])
def test_graph_that_differs_from_torch_is_found(release: Callable[[str], Path], error: float) -> None:
    """The weights that torch has are not those of the graph."""
    model = plain_encoder(trained_model("ForPreTraining"), 2)
    with torch.no_grad():
        model.encoder.layer[1].output.LayerNorm.bias[0] += error
    message = "the ONNX graph differs from torch by (2.0e-04|nan), more than 1e-04"
    with pytest.raises(RuntimeError, match=message):
        as_onnx._check(model, release("ForPreTraining"))


@needs_onnx
def test_what_is_exported_and_not_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[Any] = []

    def note(model: Any, folder: Path) -> None:
        models.append(model)
        (folder / "model.onnx").touch()

    monkeypatch.setattr(as_onnx, "_export", note)
    monkeypatch.setattr(as_onnx, "_check", lambda *given: None)
    model = trained_model("ForSequenceClassification")
    for layer in (1, None):
        save_as_onnx(model, tmp_path / "whole", layer=layer)
    names = [type(model).__name__ for model in models]
    assert names == ["XLMRobertaModel", "XLMRobertaForSequenceClassification"]
    assert [model.config.num_hidden_layers for model in models] == [1, 3]

    def fail(*given: object) -> None:
        raise RuntimeError("it differs")

    monkeypatch.setattr(as_onnx, "_check", fail)
    with pytest.raises(RuntimeError, match="it differs"):
        save_as_onnx(model, tmp_path / "direct")
    checkpoint = save_checkpoint(tmp_path / "checkpoint", "ForMaskedLM")
    with pytest.raises(RuntimeError, match="it differs"):
        export(checkpoint, tmp_path / "release", format="onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "direct", "whole"]
    assert not list((tmp_path / "direct").iterdir())


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *own: None if name == "onnxruntime" else find_spec(name, *own),
    )
    message = r"^ONNX needs .*onnxruntime: pip install 'modeling-infoxlm\[onnx\]'$"
    with pytest.raises(UsageError, match=message):
        export(save_checkpoint(tmp_path / "checkpoint", "ForMaskedLM"), tmp_path / "release", format="onnx")
    with pytest.raises(UsageError, match=message):
        save_as_onnx(trained_model("ForMaskedLM"), tmp_path / "release")
    assert not (tmp_path / "release").exists()
