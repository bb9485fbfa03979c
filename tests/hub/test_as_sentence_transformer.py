"""sentence-transformers folders: cut at the sentence layer, with the vectors of `sentence_vectors`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_encoder import word_tokenizer
from tiny_heads import save_checkpoint, trained_model
from tiny_run import tiny_model

from modeling_infoxlm import InfoXLMForMaskedLM, InfoXLMModel
from modeling_infoxlm.hub.export import RELEASE_FILE, export, read_record
from modeling_infoxlm.hub.formats import save_as_sentence_transformer
from modeling_infoxlm.runs.errors import UsageError

TEXTS = ["w9 w7 w23", "w41", "w5 w6 w7 w8 w9 w10 w11 w12", "w30 w31 w32", "w50 w4"]
FILES = {
    "1_Pooling/config.json",
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}

# In a process where importing our package fails: what SentenceTransformer makes of the folders.
ENCODE = """
import json, sys
sys.modules["modeling_infoxlm"] = None
import torch
from sentence_transformers import SentenceTransformer
folders, texts, result = sys.argv[1:]
found = {}
for name, folder in json.loads(folders).items():
    model = SentenceTransformer(folder, device="cpu")
    found[name] = {
        "vectors": model.encode(json.loads(texts), convert_to_tensor=True, batch_size=3).float(),
        "layers": len(model[0].model.encoder.layer),
        "pooler": model[0].model.pooler is not None,
        "similarity": model.similarity_fn_name,
        "modules": [type(module).__name__ for module in model],
        "length": model.max_seq_length,
        "dtype": str(model[0].model.dtype),
        "long": model.encode([" ".join(["w9"] * 500)], convert_to_tensor=True).float(),
    }
torch.save(found, result)
"""
# What is exported: the checkpoint's class, the layer that it is cut at, and the options.
RELEASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "default": ("ForPreTraining", 2, {}),
    "cls": ("ForPreTraining", 1, {"layer": 1, "pooling": "cls"}),
    "last": ("ForMaskedLM", 3, {"layer": 3}),
    "embeddings": ("Model", 0, {"layer": 0}),
    "normalized": ("ForSequenceClassification", 2, {"layer": 2, "normalize": True}),
    "sharded": ("ForPreTraining", 2, {"layer": 2, "pooling": "mean", "max_shard_size": "4KB"}),
    "bfloat16": ("ForPreTraining", 2, {"layer": 2, "dtype": "bfloat16"}),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("releases")
    for name, (kind, _, options) in RELEASES.items():
        checkpoint = save_checkpoint(root / "checkpoints" / kind, kind, max_position_embeddings=42)
        export(checkpoint, root / name, format="sentence-transformers", **options)
    return root


@pytest.fixture(scope="module")
def loaded(root: Path) -> dict[str, dict[str, Any]]:
    """What SentenceTransformer makes of every release."""
    pytest.importorskip("sentence_transformers")
    folders = json.dumps({name: str(root / name) for name in RELEASES})
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(root / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", ENCODE, folders, json.dumps(TEXTS), str(root / "result.pt")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, cwd=root)
    assert result.returncode == 0, result.stderr
    found: dict[str, dict[str, Any]] = torch.load(root / "result.pt", weights_only=True)
    assert not any(word in result.stderr.lower() for word in ("missing", "unexpected", "deprecat"))
    return found


def sentence_vectors(name: str) -> torch.Tensor:
    """Vectors by our own model, one text at a time, so without padding."""
    kind, layer, options = RELEASES[name]
    trained = trained_model(kind, max_position_embeddings=42)
    model = InfoXLMModel(trained.config, add_pooling_layer=False).eval()
    model.load_state_dict(trained.base_model.state_dict())
    ids = [torch.tensor([word_tokenizer()(text)["input_ids"]]) for text in TEXTS]
    chosen = {"layer": layer, "pooling": options.get("pooling", "mean")}
    with torch.no_grad():
        vectors = torch.cat([model.sentence_vectors(one, **chosen) for one in ids])
    return torch.nn.functional.normalize(vectors, dim=-1) if "normalize" in options else vectors


@pytest.mark.parametrize("name", RELEASES)
def test_release_ends_at_its_layer(root: Path, loaded: dict[str, dict[str, Any]], name: str) -> None:
    _, layers, options = RELEASES[name]
    folder, found, expected = root / name, loaded[name], sentence_vectors(name)
    dtype, is_normalized = options.get("dtype", "float32"), "normalize" in options
    tolerance = 1e-6 if dtype == "float32" else 0.05
    torch.testing.assert_close(found["vectors"], expected, rtol=tolerance, atol=tolerance)
    assert expected.std(dim=0).min() > 0.01  # the texts do differ
    modules = ["Transformer", "Pooling", *(["Normalize"] if is_normalized else [])]
    assert (found["layers"], found["pooler"], found["similarity"]) == (layers, False, "cosine")
    assert (found["modules"], found["dtype"]) == (modules, f"torch.{dtype}")
    # Positions of XLM-R begin after the padding id.
    assert found["length"] == 40 and found["long"].isfinite().all()
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("xlm-roberta", ["XLMRobertaModel"])
    assert config["num_hidden_layers"] == layers and "id2label" not in config
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    parts = {file for file in files if file.startswith("model")}
    assert files - parts == {*FILES, RELEASE_FILE} and (parts == {"model.safetensors"}) == (name != "sharded")
    weights = {key: one for part in folder.glob("*.safetensors") for key, one in load_file(part).items()}
    assert all(key.startswith(("embeddings.", "encoder.")) for key in weights)
    assert {key.split(".")[2] for key in weights if "layer." in key} == set(map(str, range(layers)))
    record = read_record(folder)
    assert record is not None and record.num_parameters == sum(value.numel() for value in weights.values())
    pooling = options.get("pooling", "mean")
    assert (record.layer, record.pooling, record.normalize) == (layers, pooling, is_normalized)


# ---------------------------------------------------------------------------- what cannot be


def test_layers_poolings_and_tokenizers_that_are_not_there(tmp_path: Path) -> None:
    model, tokenizer, folder = tiny_model(), word_tokenizer(), tmp_path / "release"
    for layer in (4, -1):
        message = f"layer is {layer} but the model has 3 layers; give one from 0 [(]embeddings[)] to 3"
        with pytest.raises(UsageError, match=message):
            save_as_sentence_transformer(model, folder, tokenizer=tokenizer, layer=layer)
    with pytest.raises(UsageError, match="pooling must be one of .*'cls', 'mean'.*, found 'max'"):
        save_as_sentence_transformer(model, folder, tokenizer=tokenizer, pooling="max")
    checkpoint = save_checkpoint(tmp_path / "checkpoint", "ForMaskedLM", with_tokenizer=False)
    with pytest.raises(UsageError, match="checkpoint has no tokenizer, which sentence-transformers needs"):
        export(checkpoint, folder, format="sentence-transformers", layer=2)
    assert not folder.exists()


def test_default_layer_is_that_of_the_contrast_and_another_depth_needs_one(tmp_path: Path) -> None:
    base = tiny_model(num_hidden_layers=12, xlco_layer=None)
    encoder = save_as_sentence_transformer(base, tmp_path / "base", tokenizer=word_tokenizer())
    assert encoder.config.num_hidden_layers == 8
    export(save_checkpoint(tmp_path / "ours", "ForMaskedLM"), tmp_path / "plain")
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    record = export(tmp_path / "plain", tmp_path / "release", format="sentence-transformers")
    assert record.layer == config.pop("xlco_layer") < 3  # which a release of plain XLM-R remembers
    (tmp_path / "plain" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="xlco_layer has no default for a model of 3 layers.*by --layer"):
        export(tmp_path / "plain", tmp_path / "release", format="sentence-transformers")
    record = export(tmp_path / "plain", tmp_path / "release", format="sentence-transformers", layer=2)
    assert (record.layer, record.source) == (2, "plain")


def test_sparse_vectors_of_a_model_of_pretraining_are_scores_of_its_vocabulary(tmp_path: Path) -> None:
    sparse = pytest.importorskip("sentence_transformers.sparse_encoder")
    model = trained_model("ForPreTraining")
    model.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    encoder = sparse.SparseEncoder(str(tmp_path), device="cpu")
    found = encoder.encode(TEXTS[:1], convert_to_sparse_tensor=False)
    tokens = word_tokenizer()(TEXTS[0], return_tensors="pt")
    with torch.no_grad():
        logits = InfoXLMForMaskedLM.from_pretrained(tmp_path)(**tokens).logits
    torch.testing.assert_close(found, logits.relu().log1p().amax(dim=1), rtol=1e-4, atol=1e-5)
