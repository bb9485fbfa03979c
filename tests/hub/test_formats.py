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
from transformers import AutoModel, AutoTokenizer, XLMRobertaModel, set_seed
from transformers.dynamic_module_utils import get_relative_import_files

from modeling_infoxlm import InfoXLMConfig, InfoXLMForPreTraining, InfoXLMModel, modeling_infoxlm
from modeling_infoxlm.configuration_infoxlm import AUTO_MAP
from modeling_infoxlm.hub.export import RELEASE_FILE, export
from modeling_infoxlm.hub.formats import save_as_infoxlm, save_as_xlm_roberta
from modeling_infoxlm.hub.source import PROJECTION
from modeling_infoxlm.runs.errors import UsageError

MODEL_FILE = modeling_infoxlm.__file__
# All that the model file imports from its folder, and it travels.
CODE = {Path(file).name for file in (MODEL_FILE, *get_relative_import_files(MODEL_FILE))}
Loads = dict[str, dict[str, Any]]
PLAIN_FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", RELEASE_FILE}


# ---------------------------------------------------------------------------- plain XLM-R


def test_the_configuration_is_that_of_xlm_roberta(tmp_path: Path) -> None:
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    other = {"layer_norm_eps": 1e-3, "hidden_act": "relu", "max_position_embeddings": 22, "eos_token_id": 3}
    model = InfoXLMForPreTraining(InfoXLMConfig(vocab_size=9, xlco_layer=1, **shape, **other))
    save_as_xlm_roberta(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("xlm-roberta", ["XLMRobertaForMaskedLM"])
    vectors = {name for name in config if name.startswith("xlco_")}
    assert "auto_map" not in config and vectors == {"xlco_layer", "xlco_pooling"}
    assert InfoXLMModel.from_pretrained(tmp_path).config.resolved_xlco_layer() == 1
    assert {name: config[name] for name in (*shape, *other)} == {**shape, **other}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("save", [save_as_xlm_roberta, save_as_infoxlm])
def test_weights_have_the_type_asked_for(
    tmp_path: Path, save: Callable[..., object], dtype: torch.dtype
) -> None:
    model = tiny_model()
    set_seed(1)
    drawn = torch.rand(3)
    set_seed(1)
    save(model, tmp_path, dtype=dtype)
    assert torch.equal(torch.rand(3), drawn)  # a run that saves goes on as it would have
    weights = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(value, model.state_dict()[name].to(dtype)) for name, value in weights.items())
    assert {value.dtype for value in weights.values()} == {dtype}
    assert model.dtype == torch.float32  # the trained model is not changed
    save(model.to(dtype), tmp_path / "own")  # without a type it keeps its own
    own = load_file(tmp_path / "own" / "model.safetensors")
    assert own["roberta.embeddings.LayerNorm.bias"].dtype == dtype


def test_what_a_release_cannot_hold_is_refused(tmp_path: Path) -> None:
    model = tiny_model()
    plain = XLMRobertaModel(save_as_xlm_roberta(model, tmp_path / "plain").config)
    with pytest.raises(ValueError, match="cannot make a XLMRobertaModel plain XLM-R; expected one of Info"):
        save_as_xlm_roberta(plain, tmp_path / "again")
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


# In a process where importing our package fails: what transformers makes of folders. For each its module and
# class, what its weights lack, labels, hidden states of all layers (layers, B, T, D), outputs of the head,
# sentence vectors and loss; or the error.
LOAD = """
import json, sys
jobs, folder = sys.argv[1:]
sys.modules["modeling_infoxlm"] = None
import torch, transformers
inputs = torch.load(folder + "/inputs.pt", weights_only=True)
results = {}
for key, (place, auto_class, *trust) in json.loads(jobs).items():
    options = {"trust_remote_code": True} if trust else {}
    try:
        model, report = getattr(transformers, auto_class).from_pretrained(
            place, output_loading_info=True, **options
        )
    except (ValueError, OSError) as error:
        results[key] = {"error": str(error)}
        continue
    results[key] = found = {
        "module": type(model).__module__.split(".")[0],
        "class": type(model).__name__,
        "missing": sorted(report["missing_keys"]),
        "unexpected": sorted(report["unexpected_keys"]),
        "labels": model.config.id2label,
        "tokens": len(transformers.AutoTokenizer.from_pretrained(place)),
    }
    with torch.no_grad():
        hidden = model.eval().base_model(**inputs, output_hidden_states=True).hidden_states
        found["hidden"] = torch.stack(hidden)
        if auto_class == "AutoModelForPreTraining":
            row, size = {"input_ids": inputs["input_ids"][0], "lengths": [5]}, model.config.hidden_size
            keys = {"keys": torch.ones(1, size), "negatives": -torch.ones(2, size)}
            found["loss"] = model({"xlco": {"query": row, **keys}})["xlco"].loss_sum
            found["outputs"] = [model.objectives["xlco"].projection.weight.detach()]
        else:
            choices = auto_class == "AutoModelForMultipleChoice"
            given = {name: part[None] for name, part in inputs.items()} if choices else inputs
            found["outputs"] = list(model(**given).values())
        if type(model).__name__ == "InfoXLMModel":
            found["vectors"] = model.sentence_vectors(**inputs, layer=2, pooling="mean")
    if key == "saved/Model":
        model.save_pretrained(folder + "/saved")
torch.save(results, folder + "/results.pt")
"""


@pytest.fixture(scope="module")
def loaded(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Loads:
    """What is found in the releases of every head, and of plain releases released again."""
    root, trust = tmp_path_factory.mktemp("releases"), "trust"
    jobs: dict[str, tuple[str, ...]] = {}
    for name, (_, auto_class, plain_auto_class) in CLASSES.items():
        plain, again, ours = (str(root / f"{kind}-{name}") for kind in ("plain", "again", "code"))
        export(checkpoints[name], plain)
        export(plain, again)
        export(checkpoints[name], ours, format="infoxlm")
        jobs[f"plain/{name}"] = (plain, plain_auto_class)
        jobs[f"again/{name}"] = (again, plain_auto_class)
        jobs[f"code/{name}"] = (ours, auto_class, trust)
        jobs[f"head/{name}"] = (str(root / "code-ForPreTraining"), auto_class, trust)
        jobs[f"encoder/{name}"] = (ours, "AutoModel", trust)
    jobs["saved/Model"] = jobs["encoder/ForPreTraining"]
    jobs["loaded again/ForMaskedLM"] = (str(root / "saved"), "AutoModelForMaskedLM", trust)
    jobs["no trust/Model"] = jobs["saved/Model"][:2]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(root / "home"), "HF_HUB_OFFLINE": "1"}
    torch.save(INPUTS, root / "inputs.pt")
    command = [sys.executable, "-c", LOAD, json.dumps(jobs), str(root)]
    # It asks nobody whether it should trust.
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "timeout": 240}
    process = subprocess.run(command, env=environment, text=True, cwd=root, **options)
    assert process.returncode == 0, process.stderr[-2000:]
    results = torch.load(root / "results.pt", weights_only=True)
    return {key: {**found, "folder": Path(jobs[key][0])} for key, found in results.items()}


@torch.no_grad()
def expected_outputs(checkpoint: Path, name: str, kind: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Hidden states of the encoder and outputs of the head, by our own class."""
    model = CLASSES[name][0].from_pretrained(checkpoint)
    inputs = {key: part[None] for key, part in INPUTS.items()} if name == "ForMultipleChoice" else INPUTS
    hidden = model.base_model(**INPUTS).last_hidden_state
    if name != "ForPreTraining":
        return hidden, list(model(**inputs).values())
    if kind == "code":
        return hidden, [load_file(checkpoint / "model.safetensors")[PROJECTION]]
    return hidden, [model.lm_head(hidden)]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("kind", ["plain", "again", "code"])
def test_every_head_is_released_as_it_was(
    loaded: Loads, checkpoints: dict[str, Path], kind: str, name: str
) -> None:
    found = loaded[f"{kind}/{name}"]
    hidden, outputs = expected_outputs(checkpoints[name], name, kind)
    plain_name = "ForMaskedLM" if name == "ForPreTraining" else name
    assert found["class"] == (f"InfoXLM{name}" if kind == "code" else f"XLMRoberta{plain_name}")
    torch.testing.assert_close(found["hidden"][-1], hidden, rtol=0, atol=1e-5)
    # The encoder alone has no pooler, so transformers makes one of its own.
    has_random_pooler = name == "Model" and kind != "code"
    assert found["missing"] == (["pooler.dense.bias", "pooler.dense.weight"] if has_random_pooler else [])
    assert found["unexpected"] == []
    for ours, theirs in zip(outputs, found["outputs"], strict=False):
        assert theirs.std() > 0.005
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
    # It holds these files, and nothing of this machine.
    files = {path.name: path.read_bytes() for path in found["folder"].iterdir()}
    assert set(files) == (PLAIN_FILES | CODE if kind == "code" else PLAIN_FILES)
    here = str(checkpoints[name].parent.parent).encode()
    assert not [file for file, content in files.items() if here in content]
    tokenizer = AutoTokenizer.from_pretrained(found["folder"])
    assert tokenizer.get_vocab() == word_tokenizer().get_vocab()
    assert tokenizer("w9 w7")["input_ids"] == [0, 9, 7, 2] and found["tokens"] == len(tokenizer)
    if name == "ForSequenceClassification":
        assert found["labels"] == {0: "entailment", 1: "neutral", 2: "contradiction"}


@pytest.mark.parametrize("name", CLASSES)
def test_code_of_every_auto_class_is_in_every_release(
    loaded: Loads, checkpoints: dict[str, Path], name: str
) -> None:
    """A release of one head loads as any other, with the trained encoder."""
    encoder = loaded[f"encoder/{name}"]
    assert json.loads((encoder["folder"] / "config.json").read_text())["auto_map"] == AUTO_MAP
    for found, trained, expected in (
        (loaded[f"head/{name}"], "ForPreTraining", f"InfoXLM{name}"),
        (encoder, name, "InfoXLMModel"),
    ):
        assert found["class"] == expected
        hidden, _ = expected_outputs(checkpoints[trained], trained, "code")
        torch.testing.assert_close(found["hidden"][-1], hidden, rtol=0, atol=1e-5)
    mask = INPUTS["attention_mask"][..., None]
    by_hand = (encoder["hidden"][2] * mask).sum(dim=1) / mask.sum(dim=1)
    torch.testing.assert_close(encoder["vectors"], by_hand)


def test_code_of_a_release_works_as_ours(loaded: Loads, checkpoints: dict[str, Path]) -> None:
    """The loss is of one sentence, with a key of ones and two negatives of minus ones."""
    assert "trust_remote_code=True" in loaded["no trust/Model"]["error"]
    again = loaded["loaded again/ForMaskedLM"]
    assert (again["module"], again["class"]) == ("transformers_modules", "InfoXLMForMaskedLM")
    here = AutoModel.from_pretrained(loaded["code/Model"]["folder"], trust_remote_code=True)
    assert type(here) is InfoXLMModel  # where the package is installed, its class is taken
    model = InfoXLMForPreTraining.from_pretrained(checkpoints["ForPreTraining"])
    key = torch.ones(1, model.config.hidden_size)
    part = {"query": {"input_ids": INPUTS["input_ids"][0], "lengths": [5]}, "keys": key}
    loss = model({"xlco": {**part, "negatives": -key.expand(2, -1)}})["xlco"].loss_sum
    torch.testing.assert_close(loaded["code/ForPreTraining"]["loss"], loss.detach())
