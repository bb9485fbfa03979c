"""Checkpoints of every kind load into each class, and ours everywhere; `hub/` loads without the package."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from reference.padded import TINY, xlm_roberta
from tiny_heads import CLASSES
from tiny_joint import (
    HIDDEN,
    NUM_LAYERS,
    PROJECTION,
    joint_batch,
    keys_and_negatives,
    pretraining_model,
    with_keys,
)
from transformers import AutoConfig, XLMRobertaForMaskedLM, XLMRobertaModel

import modeling_infoxlm
from modeling_infoxlm import InfoXLMConfig, InfoXLMForMaskedLM, InfoXLMForPreTraining

CLASSIFIER = {"classifier.weight", "classifier.bias"}
POOLER = {"roberta.pooler.dense.weight", "roberta.pooler.dense.bias"}
# The parameters of a class that no XLM-R checkpoint has.
NEW: dict[str, set[str]] = {
    "ForSequenceClassification": {
        f"classifier.{layer}.{kind}" for layer in ("dense", "out_proj") for kind in ("weight", "bias")
    },
    "ForQuestionAnswering": {"qa_outputs.weight", "qa_outputs.bias"},
    "ForTokenClassification": CLASSIFIER,
    "ForMultipleChoice": CLASSIFIER | POOLER,
}


def test_checkpointing_of_an_old_configuration_reaches_every_layer() -> None:
    """XLM-R's constructor follows the flag and removes it, on an encoder that ours takes the place of."""
    for our_class, *_ in CLASSES.values():
        shape = {**TINY, "num_hidden_layers": 2, "xlco_layer": 1}
        model = our_class(InfoXLMConfig(**shape, gradient_checkpointing=True))
        assert [layer.gradient_checkpointing for layer in model.base_model.encoder.layer] == [True, True]
        assert "gradient_checkpointing" not in model.config.to_dict()


@pytest.fixture(scope="module")
def plain() -> XLMRobertaForMaskedLM:
    return xlm_roberta()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, plain: XLMRobertaForMaskedLM) -> dict[str, Path]:
    """The kinds of folders XLM-R and InfoXLM come in."""
    root = tmp_path_factory.mktemp("checkpoints")
    plain.save_pretrained(root / "xlm-r")
    plain.roberta.save_pretrained(root / "xlm-r base model")
    write_like_published(plain, root / "published")
    model = pretraining_model(plain)
    model.save_pretrained(root / "ours")
    return {folder.name: folder for folder in root.iterdir()}


def write_like_published(plain: XLMRobertaForMaskedLM, folder: Path) -> None:
    """As microsoft/infoxlm-base: XLM-R's configuration and pytorch_model.bin, with pooler and old buffers."""
    folder.mkdir()
    special = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "output_past": True}
    config = {**TINY, **special, "model_type": "xlm-roberta", "architectures": ["XLMRobertaForMaskedLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    weights = {name: value.clone() for name, value in plain.state_dict().items()}
    weights["roberta.embeddings.position_ids"] = torch.arange(514)[None]
    weights["roberta.pooler.dense.weight"] = torch.full((HIDDEN, HIDDEN), 0.5)
    weights["roberta.pooler.dense.bias"] = torch.full((HIDDEN,), 0.25)
    torch.save(weights, folder / "pytorch_model.bin")


def assert_has_weights_of(model: torch.nn.Module, plain: XLMRobertaForMaskedLM, heads: bool = True) -> None:
    """Every parameter that plain XLM-R has too is equal; at least the whole encoder is."""
    expected, encoder = plain.state_dict(), set()
    for name, value in model.state_dict().items():
        full_name = name if name in expected else f"roberta.{name}"
        if full_name in expected and (heads or full_name.startswith("roberta.")):
            assert torch.equal(value, expected[full_name]), name
            encoder.add(full_name)
    assert encoder >= {name for name in expected if name.startswith("roberta.")}


@pytest.mark.parametrize("name", CLASSES)
def test_every_checkpoint_loads_into_each_class(
    name: str, folders: dict[str, Path], plain: XLMRobertaForMaskedLM
) -> None:
    (our_class, auto_name, _), new = CLASSES[name], NEW.get(name, set())
    options: dict[str, Any] = {"xlco_layer": 3, "output_loading_info": True}
    for folder in ("xlm-r", "published"):
        model, info = our_class.from_pretrained(folders[folder], **options)
        expected = new - (POOLER if folder == "published" else set())
        assert set(info["missing_keys"]) == expected, "only heads of a task may be reported missing"
        assert not info["mismatched_keys"] and not info["error_msgs"]
        assert not [key for key in info["unexpected_keys"] if not key.startswith("lm_head.")]
        assert model.config.model_type == "infoxlm" and model.config.xlco_layer == 3
        assert_has_weights_of(model, plain)
        if folder == "published" and POOLER <= new:
            assert bool((model.roberta.pooler.dense.weight == 0.5).all())

    bare = folders["xlm-r base model"]
    model, info = our_class.from_pretrained(bare, **options)
    with_head = name in ("ForMaskedLM", "ForPreTraining")
    theirs = XLMRobertaForMaskedLM.from_pretrained(bare, output_loading_info=True)[1]["missing_keys"]
    assert set(info["missing_keys"]) == new | (theirs if with_head else set())
    assert not info["unexpected_keys"]
    assert_has_weights_of(model, plain, heads=False)

    auto_class = getattr(transformers, auto_name)
    model, info = auto_class.from_pretrained(folders["ours"], output_loading_info=True)
    assert type(model) is our_class
    assert set(info["missing_keys"]) == new - {PROJECTION}
    assert_has_weights_of(model, plain)
    assert isinstance(auto_class.from_config(InfoXLMConfig(**TINY, xlco_layer=3)), type(model))


def test_saving_keeps_projection_and_contrast(tmp_path: Path, plain: XLMRobertaForMaskedLM) -> None:
    options = {"xlco_pooling": "mean", "xlco_temperature": 0.05, "xlco_similarity": "cosine"}
    model = pretraining_model(plain, **options)
    model.save_pretrained(tmp_path)
    again = InfoXLMForPreTraining.from_pretrained(tmp_path)
    assert {name: getattr(again.config, name) for name in options} == options
    loaded = again.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())
    batch, extra = joint_batch(), keys_and_negatives(torch.float32)
    for name, loss in model(with_keys(batch, **extra)).items():
        assert torch.equal(again(with_keys(batch, **extra))[name].loss_sum, loss.loss_sum), name


def test_our_checkpoint_is_xlm_r_and_a_projection(
    folders: dict[str, Path], plain: XLMRobertaForMaskedLM
) -> None:
    model, info = XLMRobertaForMaskedLM.from_pretrained(folders["ours"], output_loading_info=True)
    assert not info["missing_keys"] and set(info["unexpected_keys"]) == {PROJECTION}
    assert_has_weights_of(model, plain)
    options = {"add_pooling_layer": False, "output_loading_info": True}
    assert not XLMRobertaModel.from_pretrained(folders["ours"], **options)[1]["missing_keys"]
    config = AutoConfig.from_pretrained(folders["ours"])
    assert type(config) is InfoXLMConfig and (config.xlco_layer, config.vocab_size) == (3, 200)
    # Or SparseEncoder would put a random autoencoder on the encoder; see `test_as_sentence_transformer`.
    assert config.architectures == ["InfoXLMForPreTraining", "InfoXLMForMaskedLM"]
    assert not {path.suffix for path in folders["ours"].iterdir()} & {".bin", ".pt", ".pkl", ".pth"}
    with pytest.raises(ValueError, match=r"9\D.*\b4\b"):
        InfoXLMForPreTraining.from_pretrained(folders["ours"], xlco_layer=9)


def test_what_is_new_is_initialised_and_what_is_tied_stays_so(folders: dict[str, Path]) -> None:
    """N(0, 0.02); parameters that from_pretrained does not find are made of uninitialised memory."""
    torch.manual_seed(0)
    for name in ("xlm-r", "published", "ours"):
        model = InfoXLMForPreTraining.from_pretrained(folders[name], xlco_layer=3)
        assert model.lm_head.decoder.weight is model.roberta.embeddings.word_embeddings.weight
        assert model.lm_head.decoder.bias is model.lm_head.bias
        if name == "ours":
            assert model.config.to_dict()["architectures"] == ["InfoXLMForPreTraining", "InfoXLMForMaskedLM"]
        else:
            weight = dict(model.named_parameters())[PROJECTION].detach()
            assert abs(float(weight.mean())) < 0.003
            assert float(weight.std()) == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("kind", ["LoraConfig", "LoHaConfig"])
def test_adapters_have_the_default_targets_of_xlm_r(kind: str) -> None:
    """peft has a table for each kind of adapter."""
    peft = pytest.importorskip("peft")
    adapt = getattr(peft, kind)
    ours = peft.get_peft_model(InfoXLMForMaskedLM(InfoXLMConfig(**TINY)), adapt())
    theirs = peft.get_peft_model(xlm_roberta(), adapt())
    assert ours.base_model.targeted_module_names == theirs.base_model.targeted_module_names
    assert len(ours.base_model.targeted_module_names) == 2 * NUM_LAYERS


def test_public_names_of_submodules_are_found_at_the_top() -> None:
    """At run time, by `import *`, and by type checkers, which see the imports that are never run."""
    from modeling_infoxlm.training.trainer import InfoXLMTrainer

    assert modeling_infoxlm.InfoXLMTrainer is InfoXLMTrainer
    for name in dir(modeling_infoxlm):
        assert getattr(modeling_infoxlm, name) is not None
    assert set(modeling_infoxlm._LAZY) < set(modeling_infoxlm.__all__)
    tree = ast.parse(Path(str(modeling_infoxlm.__file__)).read_text())
    (never_run,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.name: imported.module
        for imported in never_run.body
        if isinstance(imported, ast.ImportFrom)
        for alias in imported.names
    }
    assert typed == modeling_infoxlm._LAZY
    with pytest.raises(AttributeError, match="no attribute 'InfoXLMTrainr'"):
        _ = modeling_infoxlm.InfoXLMTrainr
