"""The model and tokenizer of a run: what is loaded, what is drawn, and what is refused."""

from pathlib import Path

import pytest
import torch
from tiny_text import sentence_pairs, write_pairs
from transformers import ByT5Tokenizer, CanineTokenizer
from transformers import PreTrainedTokenizerBase as Tokenizer

from modeling_infoxlm import InfoXLMConfig, InfoXLMForPreTraining
from modeling_infoxlm.data.sources import parse_bitext_sources
from modeling_infoxlm.data.train_tokenizer import train_tokenizer
from modeling_infoxlm.training.arguments import ContrastArguments, ModelArguments
from modeling_infoxlm.training.model_setup import build_model, check_lengths, load_tokenizer

SHAPE = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    text = write_pairs(folder / "en-xx.tsv", sentence_pairs(30))
    return train_tokenizer(parse_bitext_sources([str(text)]), folder, vocab_size=100, max_length=64)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A checkpoint in half precision, with dropout and a contrast of its own."""
    folder = tmp_path_factory.mktemp("checkpoint")
    config = InfoXLMConfig(
        vocab_size=len(tokenizer), **SHAPE, hidden_dropout_prob=0.1, xlco_layer=1, xlco_temperature=0.5
    )
    InfoXLMForPreTraining(config).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build(
    tokenizer: Tokenizer, contrast: ContrastArguments | None = None, *, seed: int = 1, **arguments: object
) -> InfoXLMForPreTraining:
    if "model_name_or_path" not in arguments:
        arguments = {**SHAPE, **arguments}
    return build_model(
        ModelArguments(**arguments), contrast or ContrastArguments(xlco_layer=1), tokenizer, seed=seed
    )


def differing(one: torch.nn.Module, other: torch.nn.Module) -> list[str]:
    state = other.state_dict()
    return [name for name, value in one.state_dict().items() if not torch.equal(value, state[name])]


# ---------------------------------------------------------------------------- from scratch


def test_from_scratch_has_the_shape_asked_for_and_the_ids_of_the_tokenizer(tokenizer: Tokenizer) -> None:
    model = build(tokenizer, max_position_embeddings=34)
    config = model.config
    assert {name: getattr(config, name) for name in SHAPE} == SHAPE
    assert config.max_position_embeddings == 34
    assert (config.vocab_size, config.pad_token_id) == (len(tokenizer), tokenizer.pad_token_id)
    assert (config.bos_token_id, config.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.0
    check_lengths(model, 32)  # ids 0 and 1 are no positions
    ids = torch.full((32,), tokenizer.eos_token_id)
    assert model.sentence_vectors(ids[None], layer=1).isfinite().all()
    with pytest.raises(ValueError, match="up to 33 tokens, the model positions for 32; .*max_seq_length 32"):
        check_lengths(model, 33)


def test_random_weights_depend_on_the_seed(tokenizer: Tokenizer, checkpoint: Path, tmp_path: Path) -> None:
    """Those of a model from scratch, and those that a checkpoint lacks."""
    stored = InfoXLMForPreTraining.from_pretrained(checkpoint)
    stored.roberta.save_pretrained(tmp_path)  # an encoder alone: no head, no projection
    for given in ({}, {"model_name_or_path": str(tmp_path)}):
        first = build(tokenizer, seed=1, **given)
        torch.rand(7)  # whatever was drawn before
        assert differing(build(tokenizer, seed=1, **given), first) == []
        other = differing(build(tokenizer, seed=2, **given), first)
        assert "objectives.xlco.projection.weight" in other
        assert any(name.startswith("roberta.") for name in other) == (not given)


def test_shapes_given_override_a_configuration(tokenizer: Tokenizer, tmp_path: Path) -> None:
    InfoXLMConfig(**{**SHAPE, "num_hidden_layers": 3}, vocab_size=7, xlco_layer=3).save_pretrained(tmp_path)
    arguments = ModelArguments(config_name=str(tmp_path), intermediate_size=48)
    config = build_model(arguments, ContrastArguments(xlco_pooling="mean"), tokenizer, seed=1).config
    assert (config.num_hidden_layers, config.intermediate_size) == (3, 48)
    assert (config.vocab_size, config.xlco_layer, config.xlco_pooling) == (len(tokenizer), 3, "mean")


# ---------------------------------------------------------------------------- from a checkpoint


def test_a_checkpoint_keeps_its_contrast_and_not_its_dropout(tokenizer: Tokenizer, checkpoint: Path) -> None:
    model = build(tokenizer, ContrastArguments(), model_name_or_path=str(checkpoint))
    assert (model.xlco_layer, model.objectives["xlco"].temperature) == (1, 0.5)
    given = ContrastArguments(xlco_layer=2, xlco_temperature=0.125)
    model = build(tokenizer, given, model_name_or_path=str(checkpoint))
    assert (model.xlco_layer, model.objectives["xlco"].temperature) == (2, 0.125)
    # Checkpoints of XLM-R come with 0.1; the paper's pre-training has none.
    model = build(tokenizer, model_name_or_path=str(checkpoint))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}
    model = build(tokenizer, model_name_or_path=str(checkpoint), hidden_dropout_prob=0.25)
    assert model.roberta.embeddings.dropout.p == 0.25


# ---------------------------------------------------------------------------- what is refused


def test_checkpoints_that_do_not_serve(tokenizer: Tokenizer, checkpoint: Path, tmp_path: Path) -> None:
    for value in (float("nan"), float("inf")):
        stored = InfoXLMForPreTraining.from_pretrained(checkpoint)
        with torch.no_grad():
            stored.roberta.encoder.layer[1].output.dense.bias[3] = value
        stored.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="has NaN or infinite weights in 1 tensors, such as roberta.enc"):
            build(tokenizer, model_name_or_path=str(tmp_path))
    InfoXLMForPreTraining(InfoXLMConfig(vocab_size=20, **SHAPE, xlco_layer=1)).save_pretrained(tmp_path)
    sizes = f"the tokenizer has {len(tokenizer)} tokens, the model's table 20; use the"
    with pytest.raises(ValueError, match=sizes):
        build(tokenizer, model_name_or_path=str(tmp_path))


@pytest.mark.parametrize(
    "unfit, missing", [(ByT5Tokenizer, "bos_token_id, mask_token_id"), (CanineTokenizer, "a fast version")]
)
def test_tokenizers_that_do_not_serve(unfit: type[Tokenizer], missing: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no tokenizer: give --model_name_or_path, or --tokenizer_name"):
        load_tokenizer(ModelArguments())
    unfit().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"must be a fast one in XLM-R's layout; missing: {missing}"):
        load_tokenizer(ModelArguments(tokenizer_name=str(tmp_path)))
