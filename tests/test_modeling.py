"""Our model classes against plain XLM-R: joint and padded forward, sentence vectors, configuration."""

from typing import Any

import pytest
import torch
from reference.contrast import contrast as slow_contrast
from reference.contrast import project as slow_project
from reference.padded import TINY, gradients, masked_lm_sum, pad, random_sequences, worst_error, xlm_roberta
from tiny_joint import (
    LENGTHS,
    NUM_LAYERS,
    PROJECTION,
    TOLERANCE,
    joint_batch,
    keys_and_negatives,
    our_copy,
    pretraining_model,
    split,
    vectors_by_hand,
    with_keys,
)
from transformers import XLMRobertaForMaskedLM

from modeling_infoxlm import InfoXLMConfig, InfoXLMForMaskedLM, InfoXLMForPreTraining, InfoXLMModel


@pytest.fixture(scope="module")
def reference() -> XLMRobertaForMaskedLM:
    return xlm_roberta(torch.float64)


# --- the joint forward


@pytest.mark.parametrize(
    ("dtype", "pooling"), [(torch.float32, "cls"), (torch.float64, "cls"), (torch.float64, "mean")], ids=str
)
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

    items = {name: len(batch[name]["labels"]) for name in ("mlm", "tlm")} | {"xlco": len(LENGTHS["xlco"])}
    assert {name: loss.num_items for name, loss in losses.items()} == items
    found = {name: float(loss.loss_sum.detach()) for name, loss in losses.items()}
    assert found == pytest.approx({n: float(v.detach()) for n, v in expected.items()}, rel=TOLERANCE[dtype])
    assert float(losses["xlco"].metrics["accuracy"]) == pytest.approx(contrast.accuracy)

    ours, total = gradients(model, sum(loss.loss_sum for loss in losses.values())), sum(expected.values())
    theirs = gradients(reference, total) | {PROJECTION: torch.autograd.grad(total, weight)[0]}
    error, name = worst_error(ours, theirs)
    assert error < TOLERANCE[dtype], name


@pytest.mark.parametrize(
    "names", [("mlm",), ("mlm", "tlm"), ("tlm", "xlco"), ("xlco",), ("mlm", "tlm", "xlco")], ids="+".join
)
def test_objectives_alone_equal_those_together_and_what_gets_no_gradient_is_frozen(
    reference: XLMRobertaForMaskedLM, names: tuple[str, ...]
) -> None:
    """A parameter without gradient would stall DDP; one frozen by mistake would never learn."""
    model, extra = pretraining_model(reference), keys_and_negatives(torch.float64)
    together, alone = (model(with_keys(joint_batch(*which), **extra)) for which in ((), names))
    assert set(alone) == set(names)
    for name in names:
        torch.testing.assert_close(alone[name].loss_sum, together[name].loss_sum, rtol=1e-10, atol=1e-10)
    found = gradients(model, sum(loss.loss_sum for loss in alone.values()))
    assert model.freeze_unused(names) == [name for name, gradient in found.items() if gradient is None]


@pytest.mark.parametrize("queue", [0, 6])
def test_the_configuration_reaches_the_contrast(reference: XLMRobertaForMaskedLM, queue: int) -> None:
    """Without negatives the queue is an empty one."""
    options = {"temperature": 0.5, "similarity": "cosine", "in_batch_negatives": True, "symmetric": True}
    changes = {**options, "layer": 2, "use_projection": False, "pooling": "mean"}
    model = pretraining_model(reference, **{f"xlco_{name}": value for name, value in changes.items()})
    batch, extra = joint_batch("xlco"), keys_and_negatives(torch.float64, queue)
    query = vectors_by_hand(reference, split(batch["xlco"]["query"]), 2, "mean")
    expected = slow_contrast(query, extra["keys"], extra["negatives"], **options).loss_sum
    given = extra if queue else {"keys": extra["keys"]}
    found = model(with_keys(batch, **given))["xlco"].loss_sum
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("kind", "pooling"), [("autocast", "cls"), ("bf16 weights", "mean")])
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
        exact = float(expected[name].loss_sum.detach())
        assert float(loss.loss_sum.detach()) == pytest.approx(exact, rel=0.05), name
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name


def test_batches_that_lack_something(reference: XLMRobertaForMaskedLM) -> None:
    """Without masked tokens nothing is trained; without an objective or its keys nothing can be."""
    model, batch = pretraining_model(reference), joint_batch("mlm")
    batch["mlm"]["masked_rows"] = batch["mlm"]["labels"] = torch.zeros(0, dtype=torch.long)
    loss = model(batch)["mlm"]
    assert loss.num_items == 0 and float(loss.loss_sum.detach()) == 0.0
    loss.loss_sum.backward()
    assert all(not parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)
    for lacking, named in (({}, "mlm"), ({"nsp": {}}, "mlm"), (joint_batch("xlco"), "keys")):
        with pytest.raises(ValueError, match=named):
            model(lacking)


# --- the padded forward


@pytest.mark.parametrize(("dtype", "attention"), [(torch.float32, "sdpa"), (torch.float64, "eager")], ids=str)
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


def test_resizing_the_vocabulary_keeps_the_tie(reference: XLMRobertaForMaskedLM) -> None:
    model = pretraining_model(reference)
    model.resize_token_embeddings(210)
    assert model.lm_head.decoder.weight is model.roberta.embeddings.word_embeddings.weight
    assert model.lm_head.decoder.bias is model.lm_head.bias
    assert model.lm_head.bias.shape == (210,)
    assert float(model(joint_batch("mlm"))["mlm"].loss_sum.detach()) > 0


# --- sentence vectors


SENTENCES = [6, 1, 19, 6, 40]


@pytest.mark.parametrize("layer", range(NUM_LAYERS + 1))
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_sentence_vectors_equal_a_hand_computation_however_they_are_padded(
    reference: XLMRobertaForMaskedLM, pooling: str, layer: int
) -> None:
    model, sequences, options = our_copy(reference), random_sequences(SENTENCES), (layer, pooling)
    expected, padded = vectors_by_hand(reference, sequences, *options), pad(sequences)
    garbage = torch.where(padded["attention_mask"].bool(), padded["input_ids"], 77)
    widened = (torch.nn.functional.pad(t, (0, 9), value=n == "input_ids") for n, t in padded.items())
    for ids, mask in (
        padded.values(),
        (garbage, padded["attention_mask"]),
        widened,
        (padded["input_ids"], padded["attention_mask"].bool()),
    ):
        actual = model.sentence_vectors(ids, mask, layer=layer, pooling=pooling)
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    alone = [model.sentence_vectors(ids[None], layer=layer, pooling=pooling) for ids in sequences]
    torch.testing.assert_close(torch.cat(alone), expected, rtol=1e-10, atol=1e-10)


def test_sentence_vectors_default_to_the_contrasts_without_projection_or_what_else_a_tokenizer_gives(
    reference: XLMRobertaForMaskedLM,
) -> None:
    model, padded = our_copy(reference, xlco_layer=2, xlco_pooling="mean"), pad(random_sequences(SENTENCES))
    expected = model.sentence_vectors(**padded, layer=2, pooling="mean")
    assert torch.equal(model.sentence_vectors(**padded), expected)
    projecting = pretraining_model(reference, xlco_layer=2, xlco_pooling="mean")
    more = {name: torch.zeros_like(padded["input_ids"]) for name in ("token_type_ids", "special_tokens_mask")}
    assert torch.equal(projecting.sentence_vectors(**padded, **more), expected)
    with pytest.raises(TypeError, match="mask_of_attention"):
        projecting.sentence_vectors(**padded, mask_of_attention=padded["attention_mask"])


def test_impossible_sentence_vectors_are_refused(reference: XLMRobertaForMaskedLM) -> None:
    padded = pad(random_sequences(SENTENCES))
    for layer, pooling, message in ((5, "mean", r"4.*5|5.*4"), (-1, "mean", "-1"), (2, "max", "max")):
        with pytest.raises(ValueError, match=message):
            our_copy(reference).sentence_vectors(**padded, layer=layer, pooling=pooling)
    padded["attention_mask"][1] = 0  # a sentence of padding alone
    with pytest.raises(ValueError, match="0"):
        our_copy(reference).sentence_vectors(**padded, layer=2, pooling="mean")


# --- configuration


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({"xlco_layer": layer}, rf"{layer}\D.*\b4\b") for layer in (5, 0, -2)),
        ({"xlco_layer": 3, "xlco_pooling": "max"}, "max"),
        ({"xlco_layer": 3, "xlco_similarity": "max"}, "max"),
        ({}, "xlco_layer"),  # only the published depths have a default
    ],
)
def test_an_impossible_contrast_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InfoXLMForPreTraining(InfoXLMConfig(**TINY, **changes))


def test_defaults_are_the_published_base_model() -> None:
    config = InfoXLMConfig()
    shape = (config.num_hidden_layers, config.hidden_size, config.intermediate_size)
    assert (*shape, config.num_attention_heads) == (12, 768, 3072, 12)
    assert (config.vocab_size, config.max_position_embeddings, config.type_vocab_size) == (250002, 514, 1)
    assert (config.layer_norm_eps, config.pad_token_id, config.xlco_temperature) == (1e-5, 1, 0.25)
    for depth, layer in ((12, 8), (24, 12)):
        assert InfoXLMConfig(num_hidden_layers=depth).resolved_xlco_layer() == layer
        assert InfoXLMConfig(num_hidden_layers=depth, xlco_layer=3).resolved_xlco_layer() == 3
    assert InfoXLMModel(InfoXLMConfig(**TINY)).pooler is None
    assert InfoXLMModel(InfoXLMConfig(**TINY), add_pooling_layer=True).pooler is not None
