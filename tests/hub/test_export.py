"""The plain export: an XLM-R folder that needs nothing of ours."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import tiny_model
from tiny_text import sentence_pairs, write_pairs
from transformers import AutoModel

from modeling_infoxlm import InfoXLMConfig, InfoXLMForMaskedLM, InfoXLMForPreTraining
from modeling_infoxlm.data.sources import parse_bitext_sources
from modeling_infoxlm.data.train_tokenizer import train_tokenizer
from modeling_infoxlm.hub.export import save_as_xlm_roberta

INPUT_IDS = torch.tensor([[0, 7, 23, 41, 2], [0, 55, 9, 2, 1]])
MASK = (INPUT_IDS != 1).long()

# In a process where importing our package fails; nothing is fetched and no remote code is trusted.
LOAD = """
import json, sys
sys.modules["modeling_infoxlm"] = None
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer
folder, inputs, result = sys.argv[1:]
inputs = torch.load(inputs)
model = AutoModel.from_pretrained(folder)
masked, report = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
tokenizer = AutoTokenizer.from_pretrained(folder)
assert tokenizer.mask_token == "<mask>"
with torch.no_grad():
    hidden = torch.stack(model.eval()(**inputs, output_hidden_states=True).hidden_states)
    logits = masked.eval()(**inputs).logits
torch.save({"hidden": hidden, "logits": logits}, result)
types = [type(model).__name__, type(masked).__name__]
report = {name: sorted(report[f"{name}_keys"]) for name in ("missing", "unexpected")}
print(json.dumps({"types": types, **report}))
"""


def export(
    folder: Path, model: InfoXLMForPreTraining | InfoXLMForMaskedLM | None = None, **options: object
) -> Path:
    save_as_xlm_roberta(model or tiny_model().eval(), folder, **options)
    return folder


def test_a_clean_process_loads_the_same_model(tmp_path: Path) -> None:
    text = write_pairs(tmp_path / "en-xx.tsv", sentence_pairs(20))
    tokenizer = train_tokenizer(parse_bitext_sources([str(text)]), tmp_path / "tokenizer", vocab_size=60)
    model = tiny_model().eval()
    folder = export(tmp_path / "plain", model, tokenizer=tokenizer)
    torch.save({"input_ids": INPUT_IDS, "attention_mask": MASK}, tmp_path / "inputs.pt")
    arguments = [str(folder), str(tmp_path / "inputs.pt"), str(tmp_path / "result.pt")]
    result = subprocess.run(
        [sys.executable, "-c", LOAD, *arguments], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {
        "types": ["XLMRobertaModel", "XLMRobertaForMaskedLM"],
        "missing": [],
        "unexpected": [],
    }
    with torch.no_grad():
        ours = model.roberta(INPUT_IDS, MASK, output_hidden_states=True).hidden_states
        logits = model.lm_head(ours[-1])
    loaded = torch.load(tmp_path / "result.pt")
    torch.testing.assert_close(loaded["hidden"], torch.stack(ours), rtol=0, atol=1e-6)
    torch.testing.assert_close(loaded["logits"], logits, rtol=0, atol=1e-6)
    assert loaded["hidden"].std() > 0.1


def test_the_folder_holds_weights_and_configuration_and_no_code(tmp_path: Path) -> None:
    names = {path.name for path in export(tmp_path / "plain").iterdir()}
    assert names == {"config.json", "model.safetensors"}


def test_the_configuration_is_that_of_xlm_roberta(tmp_path: Path) -> None:
    config = json.loads((export(tmp_path) / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("xlm-roberta", ["XLMRobertaForMaskedLM"])
    assert "auto_map" not in config and not any(name.startswith("xlco_") for name in config)
    kept = ("hidden_size", "vocab_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    ours = tiny_model().config.to_dict()
    assert {name: config[name] for name in kept} == {name: ours[name] for name in kept}


def test_what_is_not_a_default_reaches_the_release(tmp_path: Path) -> None:
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    other = {"layer_norm_eps": 1e-3, "hidden_act": "relu", "max_position_embeddings": 22, "eos_token_id": 3}
    model = InfoXLMForPreTraining(InfoXLMConfig(vocab_size=9, xlco_layer=1, **shape, **other))
    config = json.loads((export(tmp_path, model) / "config.json").read_text())
    assert {name: config[name] for name in other} == other


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_stored_in_the_type_asked_for(tmp_path: Path, dtype: torch.dtype) -> None:
    model = tiny_model()
    weights = load_file(export(tmp_path, model, dtype=dtype) / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {dtype}
    assert AutoModel.from_pretrained(tmp_path, dtype="auto").dtype == dtype
    name = "roberta.encoder.layer.0.output.dense.weight"
    assert torch.equal(weights[name], model.state_dict()[name].to(dtype))
    assert model.dtype == torch.float32  # the trained model is not changed


def test_without_a_type_the_model_keeps_its_own(tmp_path: Path) -> None:
    weights = load_file(export(tmp_path, tiny_model().bfloat16()) / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}


def test_a_masked_language_model_is_exported_too(tmp_path: Path) -> None:
    model = InfoXLMForMaskedLM(tiny_model().config)
    weights = load_file(export(tmp_path, model) / "model.safetensors")
    assert torch.equal(weights["lm_head.dense.weight"], model.lm_head.dense.weight)
    assert not any(name.startswith("objectives.") for name in weights)
