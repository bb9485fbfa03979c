"""The library's layers over packed rows, of every architecture: values, gradients, heads, padded passes."""

import copy
from typing import Any

import pytest
import torch
from reference.padded import TINY, gradients, pad, random_sequences, score, unpad, worst_error
from torch import Tensor, nn
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    GPT2Config,
    GPT2Model,
    ModernBertConfig,
    PreTrainedModel,
    XLMRobertaConfig,
)

from modeling_infoxlm.backbones import backbone_of
from modeling_infoxlm.packed import EncodeRequest, encode

LENGTHS = [5, 1, 90, 64, 64, 2, 33]
NUM_LAYERS = 4
CONFIGS: dict[str, tuple[type, dict[str, Any]]] = {
    "xlm-roberta": (XLMRobertaConfig, {"pad_token_id": 1}),
    "bert": (BertConfig, {"pad_token_id": 1}),
    # Its local layers see 8 tokens on either side, far less than the longest sequences.
    "modernbert": (ModernBertConfig, {"local_attention": 16, "global_attn_every_n_layers": 3}),
}
# ModernBERT rotates, and eagerly attends, in fp32 whatever its weights are.
DTYPES = {"xlm-roberta": torch.float64, "bert": torch.float64, "modernbert": torch.float32}
TOLERANCE = {"xlm-roberta": 1e-11, "bert": 1e-11, "modernbert": 1e-5}
TOKENS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2}


def masked_lm(kind: str, **options: Any) -> PreTrainedModel:
    """A masked language model, each parameter random."""
    make, settings = CONFIGS[kind]
    torch.manual_seed(0)
    tokens = TOKENS if kind == "modernbert" else {}
    model = AutoModelForMaskedLM.from_config(make(**{**TINY, **tokens, **settings}), **options)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if name.lower().endswith("norm.weight") else 0.0, std=0.2)
    return model.to(DTYPES[kind]).eval()


def request(layer: int, rows: Tensor | None = None) -> EncodeRequest:
    return EncodeRequest(torch.cat(random_sequences(LENGTHS)), LENGTHS, layer, rows)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_packed_equals_padded_in_values_and_gradients(kind: str, attention: str) -> None:
    model = masked_lm(kind, attn_implementation=attention).base_model
    batch = pad(random_sequences(LENGTHS))
    padded = model(**batch, output_hidden_states=True)
    # After the last layer ModernBERT has a norm, which the packed pass applies and `hidden_states` need not.
    states = [*padded.hidden_states[:-1], padded.last_hidden_state]
    expected = [unpad(state, LENGTHS) for state in states]
    actual = encode(model, [request(layer) for layer in range(NUM_LAYERS + 1)])
    for layer, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        assert worst_error({"": ours}, {"": theirs})[0] < TOLERANCE[kind], layer
    error, name = worst_error(
        gradients(model, score([torch.cat(actual)])), gradients(model, score([torch.cat(expected)]))
    )
    assert error < 10 * TOLERANCE[kind], name
    again = model(**batch).last_hidden_state
    assert torch.equal(again, padded.last_hidden_state), "padded batches keep their own attention"


@pytest.mark.parametrize("kind", CONFIGS)
def test_selected_rows_features_and_table_give_the_logits_of_the_masked_lm_and_of_copies(kind: str) -> None:
    """Layers that are recomputed in the backward pass, of a copy, attend as the model's own."""
    model = masked_lm(kind)
    rows = torch.tensor([0, 3, 50, 97, sum(LENGTHS) - 1])
    logits = unpad(model(**pad(random_sequences(LENGTHS))).logits, LENGTHS)[rows]
    twin = copy.deepcopy(model).train()
    getattr(twin, "activation_checkpointing_enable", twin.gradient_checkpointing_enable)()  # before 5.23
    for each in (model, twin):
        (hidden,) = encode(each.base_model, [request(NUM_LAYERS, rows)])
        ours = each.get_output_embeddings()(backbone_of(each.config).features(each, hidden))
        assert worst_error({"": ours}, {"": logits})[0] < TOLERANCE[kind]
        error, name = worst_error(gradients(each, score([ours])), gradients(model, score([logits])))
        assert error < 10 * TOLERANCE[kind], name


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_padded_pass_follows_the_implementation_that_is_set_later(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    seen: list[str] = []

    def recording(module: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(module.config._attn_implementation)
        return AttentionInterface()["sdpa"](module, *args, **kwargs)

    AttentionInterface.register("recording", recording)
    AttentionMaskInterface.register("recording", AttentionMaskInterface()["sdpa"])
    model, batch = masked_lm(kind).base_model, pad(random_sequences(LENGTHS))
    encode(model, [request(NUM_LAYERS)])
    expected = model(**batch).last_hidden_state
    model.set_attn_implementation("recording")
    assert torch.equal(model(**batch).last_hidden_state, expected)
    assert seen == ["recording"] * NUM_LAYERS


def test_an_architecture_without_an_entry_is_refused_with_those_that_have_one() -> None:
    config = GPT2Config(vocab_size=200, n_embd=16, n_layer=1, n_head=2)
    with pytest.raises(ValueError, match=r"gpt2.*bert, infoxlm, modernbert, xlm-roberta"):
        encode(GPT2Model(config), [request(1)])
