"""Our model classes against plain XLM-R: joint and padded forward, sentence vectors, loading, saving."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from reference.contrast import contrast as slow_contrast
from reference.contrast import project as slow_project
from reference.padded import (
    TINY,
    hidden_states,
    masked_lm_sum,
    pad,
    random_sequences,
    worst_error,
    xlm_roberta,
)
from torch import Tensor
from transformers import AutoConfig, XLMRobertaForMaskedLM, XLMRobertaModel

import modeling_infoxlm
from modeling_infoxlm import InfoXLMConfig, InfoXLMForMaskedLM, InfoXLMForPreTraining, InfoXLMModel

NUM_LAYERS = TINY["num_hidden_layers"]
HIDDEN = TINY["hidden_size"]
PROJECTION = "objectives.xlco.projection.weight"
LENGTHS = {"mlm": [512, 1, 64, 30], "tlm": [21, 130, 5], "xlco": [9, 1, 33, 17]}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])


@pytest.fixture(scope="module")
def reference() -> XLMRobertaForMaskedLM:
    return xlm_roberta(torch.float64)


def pretraining_model(reference: XLMRobertaForMaskedLM, **changes: Any) -> InfoXLMForPreTraining:
    """InfoXLMForPreTraining with the weights of a plain XLM-R and a random projection."""
    torch.manual_seed(1)
    model = InfoXLMForPreTraining(InfoXLMConfig(**{**TINY, "xlco_layer": 3, **changes})).eval()
    model.load_state_dict(reference.state_dict(), strict=False)
    for name, parameter in model.named_parameters():
        if name == PROJECTION:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.to(reference.dtype)


def masked_part(lengths: list[int], seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand(sum(lengths), generator=generator).lt(0.15).nonzero().squeeze(1)
    labels = torch.randint(4, TINY["vocab_size"], rows.shape, generator=generator)
    input_ids = torch.cat(random_sequences(lengths, seed))
    return {"input_ids": input_ids, "lengths": lengths, "masked_rows": rows, "labels": labels}


def joint_batch(*names: str) -> dict[str, Any]:
    query = {"input_ids": torch.cat(random_sequences(LENGTHS["xlco"], 3)), "lengths": LENGTHS["xlco"]}
    parts = {
        "mlm": masked_part(LENGTHS["mlm"], 1),
        "tlm": masked_part(LENGTHS["tlm"], 2),
        "xlco": {"query": query, "key": query},
    }
    return {name: parts[name] for name in names or parts}


def keys_and_negatives(dtype: torch.dtype, queue: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    shapes = {"keys": (len(LENGTHS["xlco"]), HIDDEN), "negatives": (queue, HIDDEN)}
    return {name: torch.randn(*s, generator=generator, dtype=dtype) / 4 for name, s in shapes.items()}


def with_keys(batch: Mapping[str, Any], **extra: Tensor) -> dict[str, Any]:
    """The batch as a trainer hands it on: with what the queries of the contrast are compared with."""
    return {name: {**part, **(extra if name == "xlco" else {})} for name, part in batch.items()}


def split(part: Mapping[str, Any]) -> list[Tensor]:
    return list(part["input_ids"].split(part["lengths"]))


def gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor | None]:
    """Gradients by name; the output table goes by the name of the embeddings that it is tied to."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    names = [
        name.replace("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight") for name in names
    ]
    return dict(
        zip(names, torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True), strict=True)
    )


def vectors_by_hand(
    model: XLMRobertaForMaskedLM, sequences: list[Tensor], layer: int, pooling: str
) -> Tensor:
    """Sentence vectors from the padded hidden states of plain XLM-R, one sentence at a time."""
    rows = hidden_states(model, sequences)[layer].split([len(ids) for ids in sequences])
    return torch.stack([row[0] if pooling == "cls" else row.sum(dim=0) / len(row) for row in rows])


# --- the joint forward


@DTYPES
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_joint_forward_equals_three_padded_passes(dtype: torch.dtype, pooling: str) -> None:
    """Losses and all gradients of the one packed pass are those of three separate passes of plain XLM-R."""
    reference = xlm_roberta(dtype)
    model = pretraining_model(reference, xlco_pooling=pooling)
    batch, extra = joint_batch(), keys_and_negatives(dtype)
    losses = model(with_keys(batch, **extra))

    weight = dict(model.named_parameters())[PROJECTION].detach().clone().requires_grad_()
    expected = {
        name: masked_lm_sum(reference, split(batch[name]), batch[name]["masked_rows"], batch[name]["labels"])
        for name in ("mlm", "tlm")
    }
    vectors = vectors_by_hand(reference, split(batch["xlco"]["query"]), 3, pooling)
    query = slow_project(vectors.double(), weight.double())
    contrast = slow_contrast(query, extra["keys"].double(), extra["negatives"].double(), temperature=0.25)
    expected["xlco"] = contrast.loss_sum

    assert {name: loss.num_items for name, loss in losses.items()} == {
        "mlm": len(batch["mlm"]["labels"]),
        "tlm": len(batch["tlm"]["labels"]),
        "xlco": len(LENGTHS["xlco"]),
    }
    for name, loss in losses.items():
        assert float(loss.loss_sum.detach()) == pytest.approx(
            float(expected[name].detach()), rel=TOLERANCE[dtype]
        ), name
    assert float(losses["xlco"].metrics["accuracy"]) == pytest.approx(contrast.accuracy)

    ours, total = gradients(model, sum(loss.loss_sum for loss in losses.values())), sum(expected.values())
    theirs = gradients(reference, total) | {PROJECTION: torch.autograd.grad(total, weight)[0]}
    error, name = worst_error(ours, theirs)
    assert error < TOLERANCE[dtype], name


SUBSETS = [("mlm",), ("mlm", "tlm"), ("tlm", "xlco"), ("xlco",)]


@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
def test_objectives_alone_equal_objectives_together(
    reference: XLMRobertaForMaskedLM, names: tuple[str, ...]
) -> None:
    model, extra = pretraining_model(reference), keys_and_negatives(torch.float64)
    together, alone = (model(with_keys(joint_batch(*which), **extra)) for which in ((), names))
    assert set(alone) == set(names)
    for name in names:
        torch.testing.assert_close(alone[name].loss_sum, together[name].loss_sum, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("names", [*SUBSETS, ("mlm", "tlm", "xlco")], ids="+".join)
def test_freeze_unused_freezes_exactly_what_gets_no_gradient(
    reference: XLMRobertaForMaskedLM, names: tuple[str, ...]
) -> None:
    """A parameter without gradient would stall DDP; one frozen by mistake would never learn."""
    model = pretraining_model(reference)
    losses = model(with_keys(joint_batch(*names), **keys_and_negatives(torch.float64)))
    found = gradients(model, sum(loss.loss_sum for loss in losses.values()))
    assert model.freeze_unused(names) == [name for name, gradient in found.items() if gradient is None]


def test_no_negatives_are_an_empty_queue(reference: XLMRobertaForMaskedLM) -> None:
    model, extra = (
        pretraining_model(reference, xlco_in_batch_negatives=True),
        keys_and_negatives(torch.float64, 0),
    )
    batch = joint_batch("xlco")
    expected = model(with_keys(batch, **extra))["xlco"].loss_sum
    torch.testing.assert_close(model(with_keys(batch, keys=extra["keys"]))["xlco"].loss_sum, expected)


def test_the_configuration_reaches_the_contrast(reference: XLMRobertaForMaskedLM) -> None:
    options = {"temperature": 0.5, "similarity": "cosine", "in_batch_negatives": True, "symmetric": True}
    changes = {f"xlco_{name}": value for name, value in options.items()}
    model = pretraining_model(
        reference, xlco_layer=2, xlco_use_projection=False, xlco_pooling="mean", **changes
    )
    batch, extra = joint_batch("xlco"), keys_and_negatives(torch.float64)
    query = vectors_by_hand(reference, split(batch["xlco"]["query"]), 2, "mean")
    expected = slow_contrast(query, extra["keys"], extra["negatives"], **options).loss_sum
    torch.testing.assert_close(
        model(with_keys(batch, **extra))["xlco"].loss_sum, expected, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("kind", ["autocast", "bf16 weights"])
def test_half_precision_gives_fp32_losses_near_the_exact_ones(kind: str, pooling: str) -> None:
    model = pretraining_model(xlm_roberta(), xlco_pooling=pooling)
    extra = keys_and_negatives(torch.float32)
    expected = model(with_keys(joint_batch(), **extra))
    if kind == "bf16 weights":
        model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        losses = model(with_keys(joint_batch(), **extra))
    sum(loss.loss_sum for loss in losses.values()).backward()
    for name, loss in losses.items():
        assert loss.loss_sum.dtype == torch.float32, name
        assert float(loss.loss_sum.detach()) == pytest.approx(
            float(expected[name].loss_sum.detach()), rel=0.05
        ), name
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name


def test_activation_checkpointing_gives_the_same_gradients(reference: XLMRobertaForMaskedLM) -> None:
    model, extra = pretraining_model(reference).train(), keys_and_negatives(torch.float64)
    runs: list[int] = []
    model.roberta.encoder.layer[0].intermediate.register_forward_hook(lambda *_: runs.append(1))

    def run() -> dict[str, Tensor | None]:
        losses = model(with_keys(joint_batch(), **extra))
        return gradients(model, sum(loss.loss_sum for loss in losses.values()))

    plain = run()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()  # before 5.23
    assert worst_error(run(), plain)[0] < 1e-10
    assert len(runs) == 3, "the layer must run once more in the backward pass"


def test_a_batch_without_masked_tokens_trains_nothing_and_breaks_nothing(
    reference: XLMRobertaForMaskedLM,
) -> None:
    model, batch = pretraining_model(reference), joint_batch("mlm")
    batch["mlm"]["masked_rows"] = batch["mlm"]["labels"] = torch.zeros(0, dtype=torch.long)
    loss = model(batch)["mlm"]
    assert loss.num_items == 0 and float(loss.loss_sum.detach()) == 0.0
    loss.loss_sum.backward()
    assert all(not parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("batch", [{}, {"nsp": {}}], ids=["empty", "unknown"])
def test_a_batch_without_a_known_objective_is_refused(reference: XLMRobertaForMaskedLM, batch: dict) -> None:
    with pytest.raises(ValueError, match="mlm"):
        pretraining_model(reference)(batch)


def test_contrast_without_keys_is_refused(reference: XLMRobertaForMaskedLM) -> None:
    with pytest.raises(ValueError, match="keys"):
        pretraining_model(reference)(joint_batch("xlco"))


# --- the padded forward


@DTYPES
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padded_forward_equals_xlm_r(dtype: torch.dtype, attention: str) -> None:
    reference = xlm_roberta(dtype)
    model = InfoXLMForMaskedLM(InfoXLMConfig(**TINY, attn_implementation=attention)).to(dtype).eval()
    model.load_state_dict(reference.state_dict())
    sequences = random_sequences([5, 1, 512, 33])
    labels = torch.full((4, 512), -100)
    labels[[0, 2, 2, 3], [3, 1, 500, 0]] = torch.tensor([7, 8, 9, 10])
    ours, theirs = (m(**pad(sequences), labels=labels, output_hidden_states=True) for m in (model, reference))

    assert len(ours.hidden_states) == NUM_LAYERS + 1
    visible = pad(sequences)["attention_mask"].bool()
    states = [{str(i): state[visible] for i, state in enumerate(out.hidden_states)} for out in (ours, theirs)]
    error, layer = worst_error(*states)
    assert error < TOLERANCE[dtype], layer
    assert float(ours.loss.detach()) == pytest.approx(float(theirs.loss.detach()), rel=TOLERANCE[dtype])
    error, name = worst_error(gradients(model, ours.loss), gradients(reference, theirs.loss))
    assert error < TOLERANCE[dtype], name


def test_no_pooler_by_default() -> None:
    assert InfoXLMModel(InfoXLMConfig(**TINY)).pooler is None
    assert InfoXLMModel(InfoXLMConfig(**TINY), add_pooling_layer=True).pooler is not None


def test_resizing_the_vocabulary_keeps_the_tie(reference: XLMRobertaForMaskedLM) -> None:
    model = pretraining_model(reference)
    model.resize_token_embeddings(210)
    assert model.lm_head.decoder.weight is model.roberta.embeddings.word_embeddings.weight
    assert model.lm_head.decoder.bias is model.lm_head.bias
    assert model.lm_head.bias.shape == (210,)
    assert float(model(joint_batch("mlm"))["mlm"].loss_sum.detach()) > 0


# --- sentence vectors


SENTENCES = [6, 1, 19, 6, 40]


def base_model(reference: XLMRobertaForMaskedLM, **changes: Any) -> InfoXLMModel:
    model = InfoXLMModel(InfoXLMConfig(**{**TINY, **changes})).to(reference.dtype).eval()
    model.load_state_dict(reference.roberta.state_dict())
    return model


@pytest.mark.parametrize("layer", range(NUM_LAYERS + 1))
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_sentence_vectors_equal_a_hand_computation(
    reference: XLMRobertaForMaskedLM, pooling: str, layer: int
) -> None:
    sequences = random_sequences(SENTENCES)
    actual = base_model(reference).sentence_vectors(**pad(sequences), layer=layer, pooling=pooling)
    expected = vectors_by_hand(reference, sequences, layer, pooling)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_what_else_a_tokenizer_gives_changes_no_sentence_vector(reference: XLMRobertaForMaskedLM) -> None:
    model = pretraining_model(reference)
    tokens = pad(random_sequences([5, 9]))
    more = {name: torch.zeros_like(tokens["input_ids"]) for name in ("token_type_ids", "special_tokens_mask")}
    torch.testing.assert_close(
        model.sentence_vectors(**tokens, **more), model.sentence_vectors(**tokens), rtol=0, atol=0
    )
    with pytest.raises(TypeError, match="mask_of_attention"):
        model.sentence_vectors(**tokens, mask_of_attention=tokens["attention_mask"])


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_padding_changes_no_sentence_vector(reference: XLMRobertaForMaskedLM, pooling: str) -> None:
    model, padded = base_model(reference), pad(random_sequences(SENTENCES))
    options = {"layer": 3, "pooling": pooling}
    expected = model.sentence_vectors(**padded, **options)
    garbage = torch.where(padded["attention_mask"].bool(), padded["input_ids"], 77)
    wider = {
        name: torch.nn.functional.pad(t, (0, 9), value=name == "input_ids") for name, t in padded.items()
    }
    alone = [
        model.sentence_vectors(ids[None], layer=3, pooling=pooling) for ids in random_sequences(SENTENCES)
    ]
    for other in (
        model.sentence_vectors(garbage, padded["attention_mask"], **options),
        model.sentence_vectors(**wider, **options),
        model.sentence_vectors(padded["input_ids"], padded["attention_mask"].bool(), **options),
        torch.cat(alone),
    ):
        torch.testing.assert_close(other, expected, rtol=1e-10, atol=1e-10)


def test_sentence_vectors_default_to_the_layer_and_pooling_of_the_contrast(
    reference: XLMRobertaForMaskedLM,
) -> None:
    model, padded = base_model(reference, xlco_layer=2, xlco_pooling="mean"), pad(random_sequences(SENTENCES))
    expected = model.sentence_vectors(**padded, layer=2, pooling="mean")
    assert torch.equal(model.sentence_vectors(**padded), expected)


def test_sentence_vectors_of_the_pretraining_model_are_not_projected(
    reference: XLMRobertaForMaskedLM,
) -> None:
    padded = pad(random_sequences(SENTENCES))
    options = {"layer": 3, "pooling": "cls"}
    expected = base_model(reference).sentence_vectors(**padded, **options)
    assert torch.equal(pretraining_model(reference).sentence_vectors(**padded, **options), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 5, "pooling": "mean"}, r"4.*5|5.*4"),
        ({"layer": -1, "pooling": "mean"}, "-1"),
        ({"layer": 2, "pooling": "max"}, "max"),
    ],
    ids=["layer above", "layer below", "pooling"],
)
def test_impossible_sentence_vectors_are_refused(
    reference: XLMRobertaForMaskedLM, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        base_model(reference).sentence_vectors(**pad(random_sequences(SENTENCES)), **options)


def test_a_sentence_of_padding_alone_is_refused(reference: XLMRobertaForMaskedLM) -> None:
    padded = pad(random_sequences(SENTENCES))
    padded["attention_mask"][1] = 0
    with pytest.raises(ValueError, match="0"):
        base_model(reference).sentence_vectors(**padded, layer=2, pooling="mean")


# --- configuration


@pytest.mark.parametrize("layer", [5, 0, -2])
def test_a_contrast_layer_beyond_the_model_is_refused_with_both_numbers(layer: int) -> None:
    with pytest.raises(ValueError, match=rf"{layer}\D.*\b4\b"):
        InfoXLMForPreTraining(InfoXLMConfig(**TINY, xlco_layer=layer))


@pytest.mark.parametrize(("depth", "layer"), [(12, 8), (24, 12)])
def test_the_published_depths_have_a_default_layer(depth: int, layer: int) -> None:
    assert InfoXLMConfig(num_hidden_layers=depth).resolved_xlco_layer() == layer
    assert InfoXLMConfig(num_hidden_layers=depth, xlco_layer=3).resolved_xlco_layer() == 3


def test_other_depths_must_name_their_layer() -> None:
    with pytest.raises(ValueError, match="xlco_layer"):
        InfoXLMForPreTraining(InfoXLMConfig(**TINY))


@pytest.mark.parametrize("name", ["xlco_pooling", "xlco_similarity"])
def test_an_unknown_choice_in_the_configuration_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="max"):
        InfoXLMForPreTraining(InfoXLMConfig(**{**TINY, "xlco_layer": 3, name: "max"}))


def test_defaults_are_the_published_base_model() -> None:
    config = InfoXLMConfig()
    sizes = (
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
    )
    assert sizes == (12, 768, 3072, 12)
    assert (config.vocab_size, config.max_position_embeddings, config.type_vocab_size) == (250002, 514, 1)
    assert (config.layer_norm_eps, config.pad_token_id, config.xlco_temperature) == (1e-5, 1, 0.25)


# --- loading

CLASSIFIER = {"classifier.weight", "classifier.bias"}
POOLER = {"roberta.pooler.dense.weight", "roberta.pooler.dense.bias"}
# Each class, its auto class, and the parameters that no XLM-R checkpoint has.
CLASSES: dict[str, tuple[str, set[str]]] = {
    "InfoXLMModel": ("AutoModel", set()),
    "InfoXLMForMaskedLM": ("AutoModelForMaskedLM", set()),
    "InfoXLMForPreTraining": ("AutoModelForPreTraining", set()),
    "InfoXLMForSequenceClassification": (
        "AutoModelForSequenceClassification",
        {f"classifier.{layer}.{kind}" for layer in ("dense", "out_proj") for kind in ("weight", "bias")},
    ),
    "InfoXLMForQuestionAnswering": (
        "AutoModelForQuestionAnswering",
        {"qa_outputs.weight", "qa_outputs.bias"},
    ),
    "InfoXLMForTokenClassification": ("AutoModelForTokenClassification", CLASSIFIER),
    "InfoXLMForMultipleChoice": ("AutoModelForMultipleChoice", CLASSIFIER | POOLER),
}


@pytest.mark.parametrize("name", CLASSES)
def test_checkpointing_of_an_old_configuration_reaches_every_layer(name: str) -> None:
    """XLM-R's constructor follows the flag and removes it, on an encoder that ours takes the place of."""
    config = InfoXLMConfig(**{**TINY, "num_hidden_layers": 2, "xlco_layer": 1}, gradient_checkpointing=True)
    model = getattr(modeling_infoxlm, name)(config)
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


def load(name: str, folder: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    return getattr(modeling_infoxlm, name).from_pretrained(
        folder, xlco_layer=3, output_loading_info=True, **options
    )


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
@pytest.mark.parametrize("folder", ["xlm-r", "published"])
def test_plain_checkpoints_load_into_each_class(
    name: str, folder: str, folders: dict[str, Path], plain: XLMRobertaForMaskedLM
) -> None:
    model, info = load(name, folders[folder])
    new = CLASSES[name][1] - (POOLER if folder == "published" else set())
    assert set(info["missing_keys"]) == new, "only heads of a task may be reported missing"
    assert not info["mismatched_keys"] and not info["error_msgs"]
    assert not [key for key in info["unexpected_keys"] if not key.startswith("lm_head.")]
    assert model.config.model_type == "infoxlm" and model.config.xlco_layer == 3
    assert_has_weights_of(model, plain)


def test_a_pooler_in_the_checkpoint_reaches_the_class_that_uses_it(folders: dict[str, Path]) -> None:
    model, _ = load("InfoXLMForMultipleChoice", folders["published"])
    assert bool((model.roberta.pooler.dense.weight == 0.5).all())


@pytest.mark.parametrize("name", CLASSES)
def test_a_bare_encoder_loads_into_each_class(
    name: str, folders: dict[str, Path], plain: XLMRobertaForMaskedLM
) -> None:
    model, info = load(name, folders["xlm-r base model"])
    plain_class = XLMRobertaForMaskedLM.from_pretrained(folders["xlm-r base model"], output_loading_info=True)
    head = (
        plain_class[1]["missing_keys"] if name in ("InfoXLMForMaskedLM", "InfoXLMForPreTraining") else set()
    )
    assert set(info["missing_keys"]) == CLASSES[name][1] | head
    assert not info["unexpected_keys"]
    assert_has_weights_of(model, plain, heads=False)


@pytest.mark.parametrize("name", CLASSES)
def test_our_checkpoints_load_by_the_auto_classes(
    name: str, folders: dict[str, Path], plain: XLMRobertaForMaskedLM
) -> None:
    auto_name, new = CLASSES[name]
    auto_class = getattr(transformers, auto_name)
    model, info = auto_class.from_pretrained(folders["ours"], output_loading_info=True)
    assert type(model) is getattr(modeling_infoxlm, name)
    assert set(info["missing_keys"]) == new - {PROJECTION}
    assert_has_weights_of(model, plain)
    assert isinstance(auto_class.from_config(InfoXLMConfig(**TINY, xlco_layer=3)), type(model))


def test_our_configuration_loads_by_auto_config(folders: dict[str, Path]) -> None:
    config = AutoConfig.from_pretrained(folders["ours"])
    assert type(config) is InfoXLMConfig
    assert (config.xlco_layer, config.vocab_size) == (3, 200)


def test_saving_and_loading_keeps_projection_and_contrast(
    tmp_path: Path, plain: XLMRobertaForMaskedLM
) -> None:
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


def test_our_checkpoint_loads_as_plain_xlm_r(folders: dict[str, Path], plain: XLMRobertaForMaskedLM) -> None:
    """The parameter names are XLM-R's: all that a checkpoint of ours has more is the projection."""
    model, info = XLMRobertaForMaskedLM.from_pretrained(folders["ours"], output_loading_info=True)
    assert not info["missing_keys"] and set(info["unexpected_keys"]) == {PROJECTION}
    assert_has_weights_of(model, plain)
    assert not XLMRobertaModel.from_pretrained(
        folders["ours"], add_pooling_layer=False, output_loading_info=True
    )[1]["missing_keys"]


def test_a_new_projection_is_initialised_as_in_the_released_code(folders: dict[str, Path]) -> None:
    """N(0, 0.02); parameters that from_pretrained does not find are made of uninitialised memory."""
    torch.manual_seed(0)
    model, _ = load("InfoXLMForPreTraining", folders["published"])
    weight = dict(model.named_parameters())[PROJECTION].detach()
    assert abs(float(weight.mean())) < 0.003
    assert float(weight.std()) == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("folder", ["xlm-r", "published", "ours"])
def test_the_output_table_stays_tied_after_loading(folder: str, folders: dict[str, Path]) -> None:
    model, _ = load("InfoXLMForPreTraining", folders[folder])
    assert model.lm_head.decoder.weight is model.roberta.embeddings.word_embeddings.weight
    assert model.lm_head.decoder.bias is model.lm_head.bias


def test_a_layer_beyond_the_checkpoint_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"9\D.*\b4\b"):
        InfoXLMForPreTraining.from_pretrained(folders["ours"], xlco_layer=9)


def test_a_model_of_pretraining_is_named_as_a_masked_lm_too(folders: dict[str, Path]) -> None:
    """Or SparseEncoder would put a random autoencoder on the encoder; see `test_as_sentence_transformer`."""
    named = json.loads((folders["ours"] / "config.json").read_text())["architectures"]
    assert named == ["InfoXLMForPreTraining", "InfoXLMForMaskedLM"]
    again, _ = load("InfoXLMForPreTraining", folders["ours"])
    assert again.config.to_dict()["architectures"] == named


@pytest.mark.parametrize("kind", ["LoraConfig", "LoHaConfig"])
def test_adapters_have_the_default_targets_of_xlm_r(kind: str) -> None:
    """peft has a table for each kind of adapter."""
    peft = pytest.importorskip("peft")
    adapt = getattr(peft, kind)
    ours = peft.get_peft_model(InfoXLMForMaskedLM(InfoXLMConfig(**TINY)), adapt())
    theirs = peft.get_peft_model(xlm_roberta(), adapt())
    assert ours.base_model.targeted_module_names == theirs.base_model.targeted_module_names
    assert len(ours.base_model.targeted_module_names) == 2 * NUM_LAYERS


def test_only_safetensors_are_written(folders: dict[str, Path]) -> None:
    assert not [path for path in folders["ours"].iterdir() if path.suffix in (".bin", ".pt", ".pkl", ".pth")]


# --- without the package

REMOTE_CODE = """
import sys, torch

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "modeling_infoxlm":
            raise ModuleNotFoundError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocked())
import transformers

folder, output, *names = sys.argv[1:]
input_ids, results = torch.tensor([[0, 11, 12, 2], [0, 13, 2, 1]]), {}
mask = (input_ids != 1).long()
try:
    transformers.AutoModel.from_pretrained(folder)
except ValueError as error:
    results["refusal"] = str(error)
for name in names:
    model = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True).eval()
    results[name] = type(model).__name__, type(model).__module__
    if name == "AutoModel":
        results["vectors"] = model.sentence_vectors(input_ids, mask, layer=3, pooling="mean").detach()
    if name == "AutoModelForMaskedLM":
        results["logits"] = model(input_ids, mask).logits.detach()
    if name == "AutoModelForPreTraining":
        batch = {"xlco": {"query": {"input_ids": input_ids[0], "lengths": [4]}}}
        batch["xlco"] |= {"keys": torch.ones(1, 32), "negatives": -torch.ones(2, 32)}
        losses = model(batch)
        results["xlco"] = losses["xlco"].loss_sum.detach()
torch.save(results, output)
"""


def test_a_saved_folder_loads_without_the_package(
    tmp_path: Path, folders: dict[str, Path], plain: XLMRobertaForMaskedLM
) -> None:
    """In a clean process, by the code that save_pretrained put beside the weights."""
    names = {auto_name: name for name, (auto_name, _) in CLASSES.items()}
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSTARTUP")}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
    (tmp_path / "load.py").write_text(REMOTE_CODE)
    command = [sys.executable, "load.py", str(folders["ours"]), "results.pt", *names]
    process = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    results = torch.load(tmp_path / "results.pt", weights_only=True)

    assert "trust_remote_code" in results["refusal"]
    for auto_name, name in names.items():
        found, module = results[auto_name]
        assert found == name and module.startswith("transformers_modules."), auto_name
    sequences = [torch.tensor([0, 11, 12, 2]), torch.tensor([0, 13, 2])]
    torch.testing.assert_close(
        results["vectors"], vectors_by_hand(plain, sequences, 3, "mean"), rtol=1e-5, atol=1e-5
    )
    expected = plain(**pad(sequences)).logits.detach()
    torch.testing.assert_close(results["logits"][:1], expected[:1], rtol=1e-4, atol=1e-4)
    batch = {"xlco": {"query": {"input_ids": sequences[0], "lengths": [4]}}}
    model = pretraining_model(plain)
    expected = model(with_keys(batch, keys=torch.ones(1, 32), negatives=-torch.ones(2, 32)))[
        "xlco"
    ].loss_sum.detach()
    torch.testing.assert_close(results["xlco"], expected, rtol=1e-5, atol=1e-5)


def test_public_names_of_submodules_are_found_at_the_top() -> None:
    """At run time, by `import *`, and by type checkers, which see the imports that are never run."""
    import modeling_infoxlm
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
