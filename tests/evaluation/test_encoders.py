"""Any encoder that AutoModel loads gives its own hidden states' vectors."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from reference.retrieval import sentence_vectors
from tiny_nli import word_tokenizer
from tiny_run import VOCAB
from transformers import AutoModel, XLMRobertaModel

from modeling_infoxlm import InfoXLMModel
from modeling_infoxlm.evaluation.encoders import Encoder, EncoderArguments, load_encoder
from modeling_infoxlm.runs.errors import UsageError

TEXTS = ["w4 w5 w6 w7 w8", "w9", "", "w10 w11 w12", "w9 w10", "w13 w14 w15 w16", "w17 w18"]


def load(folder: Path, **options: object) -> Encoder:
    return load_encoder(EncoderArguments(model_name_or_path=str(folder), **options))


def slow_vectors(folder: Path, layer: int, pooling: str) -> torch.Tensor:
    """One text at a time through AutoModel."""
    path = folder / "0_Transformer" if (folder / "modules.json").is_file() else folder
    model = XLMRobertaModel if path.name in ("infoxlm", "plain") else AutoModel
    rows = word_tokenizer()(TEXTS)["input_ids"]
    vectors = sentence_vectors(model.from_pretrained(path).eval(), rows, layer, pooling)
    return torch.from_numpy(vectors).float()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("kind", ["infoxlm", "plain", "bert", "st"])
def test_vectors_are_those_of_each_text_alone(folders: dict[str, Path], kind: str, pooling: str) -> None:
    encoder = load(folders[kind])
    assert isinstance(encoder.model, InfoXLMModel) == (kind in ("infoxlm", "plain"))
    assert encoder.record.name_or_path == str(folders[kind]) and len(encoder.record.sha256 or "") == 64
    every_layer = encoder.encode_layers(TEXTS, pooling=pooling)
    assert every_layer.shape == (encoder.num_layers + 1, len(TEXTS), 32)
    for layer in range(encoder.num_layers + 1):
        expected = slow_vectors(folders[kind], layer, pooling)
        torch.testing.assert_close(encoder.encode(TEXTS, layer=layer, pooling=pooling), expected)
        torch.testing.assert_close(every_layer[layer], expected)


@pytest.mark.parametrize("kind", ["plain", "bert"])
def test_how_a_tokenizer_is_set_to_pad_changes_nothing(folders: dict[str, Path], kind: str) -> None:
    """Padded at its beginning, a text had the state of padding for that of its first token."""
    encoder = load(folders[kind])
    expected = encoder.encode_layers(TEXTS, pooling="cls")
    encoder.tokenizer.padding_side = "left"
    encoder.tokenizer.model_input_names = ["input_ids"]
    torch.testing.assert_close(encoder.encode_layers(TEXTS, pooling="cls"), expected)


def test_long_texts_are_cut_and_missing_layers_refused(folders: dict[str, Path]) -> None:
    encoder = load(folders["bert"])
    assert encoder.max_length == 40  # the tokenizer's limit, below the model's 50 positions
    long, cut = "w5 " * 60, "w5 " * 38
    torch.testing.assert_close(encoder.encode([long], layer=2), encoder.encode([cut], layer=2))
    for layer in (-1, 3):
        with pytest.raises(UsageError, match=rf"layer must be in 0\.\.2, found {layer}"):
            encoder.encode(TEXTS, layer=layer)


def test_what_cannot_be_loaded_is_a_usage_error(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model: give --model_name_or_path"):
        load_encoder(EncoderArguments())
    with pytest.raises(UsageError, match="cannot be loaded"):
        load(tmp_path / "missing" / "folder")
    word_tokenizer(VOCAB + 5).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="tokenizer has 65 tokens, the model's table 60"):
        load(folders["bert"], tokenizer_name=str(tmp_path))


@pytest.mark.parametrize("kind", ["infoxlm", "plain", "bert", "st"])
def test_vectors_that_are_not_finite_are_refused(folders: dict[str, Path], kind: str) -> None:
    encoder = load(folders[kind])
    encoder.model.get_input_embeddings().weight.data[9] = math.nan  # the word w9
    texts = ["w4", "w5 w6", "w9 w5 w7", "w9"]
    for encode in (partial(encoder.encode, layer=2), encoder.encode_layers):
        with pytest.raises(UsageError, match=rf"{kind}.* not finite, first for 'w9 w5 w7'; its weights"):
            encode(texts)
        assert encode(texts[:2]).isfinite().all()


OUTSIDE = '[{"path": "../elsewhere", "type": "sentence_transformers.models.Transformer"}]'


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"type": 1}]', "[" * 100_000, OUTSIDE], ids=range(6))
def test_a_broken_list_of_modules_is_told_of_with_its_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(UsageError, match="outside of" if text == OUTSIDE else r"modules\.json"):
        load(tmp_path)
