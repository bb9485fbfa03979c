"""Formats of releases: every head is what it was, in a process that cannot see this package."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_encoder import word_tokenizer
from tiny_heads import CLASSES, INPUTS, save_checkpoint
from tiny_run import tiny_model
from transformers import AutoTokenizer, XLMRobertaModel, set_seed
from transformers.dynamic_module_utils import get_relative_import_files

from modeling_infoxlm import InfoXLMConfig, InfoXLMForPreTraining, modeling_infoxlm
from modeling_infoxlm.configuration_infoxlm import AUTO_MAP
from modeling_infoxlm.hub.export import RELEASE_FILE, export
from modeling_infoxlm.hub.formats import save_as_infoxlm, save_as_xlm_roberta
from modeling_infoxlm.hub.source import PROJECTION
from modeling_infoxlm.runs.errors import UsageError

MODEL_FILE = modeling_infoxlm.__file__
# All that the model file imports from its folder, and it travels.
CODE = {Path(file).name for file in (MODEL_FILE, *get_relative_import_files(MODEL_FILE))}
PLAIN_FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", RELEASE_FILE}

# In a process where importing our package fails, and with the code of a folder or without.
LOAD_MANY = """
import json, sys
sys.modules["modeling_infoxlm"] = None
import torch, transformers
jobs, inputs, result = sys.argv[1:]
inputs = torch.load(inputs, weights_only=True)
results = {}
for key, (folder, auto_class, trust) in json.loads(jobs).items():
    model, report = getattr(transformers, auto_class).from_pretrained(
        folder, trust_remote_code=trust, output_loading_info=True
    )
    found = {
        "class": type(model).__name__,
        "missing": sorted(report["missing_keys"]),
        "unexpected": sorted(report["unexpected_keys"]),
        "labels": model.config.id2label,
        "tokens": len(transformers.AutoTokenizer.from_pretrained(folder)),
    }
    with torch.no_grad():
        found["hidden"] = model.eval().base_model(**inputs).last_hidden_state
        if auto_class == "AutoModelForPreTraining":
            found["outputs"] = [model.objectives["xlco"].projection.weight.detach()]
        else:
            given = inputs
            if auto_class == "AutoModelForMultipleChoice":
                given = {name: part[None] for name, part in inputs.items()}
            found["outputs"] = [part for part in model(**given).values()]
    results[key] = found
torch.save(results, result)
"""


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------------------- plain XLM-R


def test_the_configuration_is_that_of_xlm_roberta(tmp_path: Path) -> None:
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    other = {"layer_norm_eps": 1e-3, "hidden_act": "relu", "max_position_embeddings": 22, "eos_token_id": 3}
    model = InfoXLMForPreTraining(InfoXLMConfig(vocab_size=9, xlco_layer=1, **shape, **other))
    save_as_xlm_roberta(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("xlm-roberta", ["XLMRobertaForMaskedLM"])
    assert "auto_map" not in config and not any(name.startswith("xlco_") for name in config)
    assert {name: config[name] for name in (*shape, *other)} == {**shape, **other}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("save", [save_as_xlm_roberta, save_as_infoxlm])
def test_weights_are_stored_in_the_type_asked_for(
    tmp_path: Path, save: Callable[..., object], dtype: torch.dtype
) -> None:
    model = tiny_model()
    save(model, tmp_path, dtype=dtype)
    weights = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(value, model.state_dict()[name].to(dtype)) for name, value in weights.items())
    assert {value.dtype for value in weights.values()} == {dtype}
    assert model.dtype == torch.float32  # the trained model is not changed
    save(model.to(dtype), tmp_path / "own")  # without a type it keeps its own
    assert (
        load_file(tmp_path / "own" / "model.safetensors")["roberta.embeddings.LayerNorm.bias"].dtype == dtype
    )


@pytest.mark.parametrize("save", [save_as_xlm_roberta, save_as_infoxlm])
def test_a_run_that_saves_draws_the_same_random_numbers(tmp_path: Path, save: Callable[..., object]) -> None:
    model = tiny_model()
    set_seed(1)
    expected = torch.rand(3)
    set_seed(1)
    save(model, tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_a_model_of_another_class_is_refused(tmp_path: Path) -> None:
    plain = XLMRobertaModel(save_as_xlm_roberta(tiny_model(), tmp_path / "plain").config)
    with pytest.raises(
        ValueError, match="cannot make a XLMRobertaModel plain XLM-R; expected one of InfoXLM"
    ):
        save_as_xlm_roberta(plain, tmp_path / "again")


def test_a_weight_that_the_type_cannot_hold_is_refused(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.roberta.encoder.layer[1].output.dense.bias[3] = 1e5
    message = r"roberta.encoder.layer.1.output.dense.bias holds values that are not finite in float16"
    with pytest.raises(UsageError, match=message):
        save_as_xlm_roberta(model, tmp_path / "half", dtype=torch.float16)
    assert not (tmp_path / "half").exists()
    save_as_xlm_roberta(model, tmp_path / "bfloat16", dtype=torch.bfloat16)


# ---------------------------------------------------------------------------- every head, in a clean process


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: save_checkpoint(root / name, name) for name in CLASSES}


@pytest.fixture(scope="module")
def loaded(
    checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """What a clean process finds in the releases of every head, and of plain releases released again."""
    root = tmp_path_factory.mktemp("releases")
    jobs: dict[str, tuple[str, str, bool]] = {}
    for name, (_, auto_class, plain_auto_class) in CLASSES.items():
        export(checkpoints[name], root / "plain" / name)
        export(root / "plain" / name, root / "again" / name)
        export(checkpoints[name], root / "code" / name, format="infoxlm")
        jobs[f"plain/{name}"] = str(root / "plain" / name), plain_auto_class, False
        jobs[f"again/{name}"] = str(root / "again" / name), plain_auto_class, False
        jobs[f"code/{name}"] = str(root / "code" / name), auto_class, True
        jobs[f"head/{name}"] = str(root / "code" / "ForPreTraining"), auto_class, True
        jobs[f"encoder/{name}"] = str(root / "code" / name), "AutoModel", True
    torch.save(INPUTS, root / "inputs.pt")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(root / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", LOAD_MANY, json.dumps(jobs), "inputs.pt", "results.pt"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, cwd=root)
    assert result.returncode == 0, result.stderr
    results = torch.load(root / "results.pt", weights_only=True)
    return {key: {**found, "folder": Path(jobs[key][0])} for key, found in results.items()}


def expected_outputs(checkpoint: Path, name: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Hidden states of the encoder and outputs of the head, by our own class."""
    model = CLASSES[name][0].from_pretrained(checkpoint)
    inputs = {key: part[None] for key, part in INPUTS.items()} if name == "ForMultipleChoice" else INPUTS
    with torch.no_grad():
        hidden = model.base_model(**INPUTS).last_hidden_state
        if name == "ForPreTraining":
            return hidden, [model.lm_head(hidden)]
        return hidden, list(model(**inputs).values())


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("kind", ["plain", "again", "code"])
def test_every_head_is_released_as_it_was(
    loaded: dict[str, dict[str, Any]], checkpoints: dict[str, Path], kind: str, name: str
) -> None:
    found = loaded[f"{kind}/{name}"]
    hidden, outputs = expected_outputs(checkpoints[name], name)
    plain_name = "ForMaskedLM" if name == "ForPreTraining" else name
    assert found["class"] == (f"InfoXLM{name}" if kind == "code" else f"XLMRoberta{plain_name}")
    torch.testing.assert_close(found["hidden"], hidden, rtol=0, atol=1e-5)
    if kind == "code" and name == "ForPreTraining":
        outputs = [load_file(checkpoints[name] / "model.safetensors")[PROJECTION]]
    # The encoder alone has no pooler, so transformers makes one of its own.
    has_random_pooler = name == "Model" and kind != "code"
    assert found["missing"] == (["pooler.dense.bias", "pooler.dense.weight"] if has_random_pooler else [])
    assert found["unexpected"] == []
    for ours, theirs in zip(outputs, found["outputs"], strict=False):
        assert theirs.std() > 0.005
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CLASSES)
def test_code_of_every_auto_class_is_in_every_release(
    loaded: dict[str, dict[str, Any]], checkpoints: dict[str, Path], name: str
) -> None:
    """A release of one head loads as any other, with the trained encoder."""
    head, encoder = loaded[f"head/{name}"], loaded[f"encoder/{name}"]
    assert json.loads((encoder["folder"] / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert (head["class"], encoder["class"]) == (f"InfoXLM{name}", "InfoXLMModel")
    expected, _ = expected_outputs(checkpoints["ForPreTraining"], "ForPreTraining")
    torch.testing.assert_close(head["hidden"], expected, rtol=0, atol=1e-5)
    expected, _ = expected_outputs(checkpoints[name], name)
    torch.testing.assert_close(encoder["hidden"], expected, rtol=0, atol=1e-5)


def test_releases_hold_these_files_and_nothing_of_this_machine(
    loaded: dict[str, dict[str, Any]], checkpoints: dict[str, Path]
) -> None:
    for key, found in loaded.items():
        kind, name = key.split("/")
        if kind in ("plain", "again", "code"):
            files = tree(found["folder"])
            assert set(files) == (PLAIN_FILES | CODE if kind == "code" else PLAIN_FILES), key
            assert not [
                file for file in files if str(checkpoints[name].parent.parent).encode() in files[file]
            ]
            tokenizer = AutoTokenizer.from_pretrained(found["folder"])
            assert tokenizer.get_vocab() == word_tokenizer().get_vocab()
            assert tokenizer("w9 w7")["input_ids"] == [0, 9, 7, 2] and found["tokens"] == len(tokenizer)
        if name == "ForSequenceClassification" and kind not in ("head", "encoder"):
            assert found["labels"] == {0: "entailment", 1: "neutral", 2: "contradiction"}
