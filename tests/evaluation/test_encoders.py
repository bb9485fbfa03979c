"""Any encoder that AutoModel loads gives its own hidden states' vectors."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_run import VOCAB, tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, BertConfig, BertModel, PreTrainedTokenizerFast, XLMRobertaModel

from modeling_infoxlm import InfoXLMModel
from modeling_infoxlm.evaluation.encoders import (
    Encoder,
    EncoderArguments,
    batches_by_length,
    load_encoder,
    longest_sequence,
)
from modeling_infoxlm.hub.formats import save_as_xlm_roberta
from modeling_infoxlm.runs.process import UsageError

TEXTS = ["w4 w5 w6 w7 w8", "w9", "", "w10 w11 w12", "w9 w10", "w13 w14 w15 w16", "w17 w18"]


def word_tokenizer(size: int = VOCAB) -> PreTrainedTokenizerFast:
    """Words w4, w5, ... are their own ids, in XLM-R's layout."""
    words = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, **{f"w{i}": i for i in range(4, size)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=40,
    )


def write_bert(folder: Path) -> Path:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=50,
        pad_token_id=1,
    )
    BertModel(config).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One encoder folder of each kind."""
    root = tmp_path_factory.mktemp("encoders")
    model = tiny_model()
    model.save_pretrained(root / "infoxlm")
    word_tokenizer().save_pretrained(root / "infoxlm")
    save_as_xlm_roberta(model, root / "plain", tokenizer=word_tokenizer())
    write_bert(root / "bert")
    write_bert(root / "st" / "0_Transformer")
    modules = [
        {"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (root / "st" / "modules.json").write_text(json.dumps(modules))
    return {name: root / name for name in ("infoxlm", "plain", "bert", "st")}


def load(folder: Path, **options: object) -> Encoder:
    return load_encoder(EncoderArguments(model_name_or_path=str(folder), **options))


def slow_vectors(folder: Path, layer: int, pooling: str) -> torch.Tensor:
    """One text at a time through AutoModel."""
    path = folder / "0_Transformer" if (folder / "modules.json").is_file() else folder
    model = XLMRobertaModel if path.name in ("infoxlm", "plain") else AutoModel
    loaded = model.from_pretrained(path).eval()
    tokenizer = word_tokenizer()
    rows = []
    for text in TEXTS:
        with torch.no_grad():
            output = loaded(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        hidden = output.hidden_states[layer][0]
        rows.append(hidden[0] if pooling == "cls" else hidden.mean(dim=0))
    return torch.stack(rows)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("kind", ["infoxlm", "plain", "bert", "st"])
def test_vectors_are_those_of_each_text_alone(folders: dict[str, Path], kind: str, pooling: str) -> None:
    encoder = load(folders[kind])
    assert isinstance(encoder.model, InfoXLMModel) == (kind in ("infoxlm", "plain"))
    every_layer = encoder.encode_layers(TEXTS, pooling=pooling)
    assert every_layer.shape == (4, len(TEXTS), 16)
    for layer in range(4):
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


def test_long_texts_are_cut_at_the_positions(folders: dict[str, Path]) -> None:
    encoder = load(folders["bert"])
    assert encoder.max_length == 40  # the tokenizer's limit, below the model's 50 positions
    long, cut = "w5 " * 60, "w5 " * 38
    torch.testing.assert_close(encoder.encode([long], layer=3), encoder.encode([cut], layer=3))


def test_roberta_loses_two_positions_to_padding() -> None:
    tokenizer = word_tokenizer()
    tokenizer.model_max_length = 10_000
    config = BertConfig(max_position_embeddings=514, pad_token_id=1)
    assert longest_sequence(config, tokenizer) == 514
    config.model_type = "roberta"
    assert longest_sequence(config, tokenizer) == 512


def test_the_record_names_the_weights(folders: dict[str, Path]) -> None:
    record = load(folders["plain"]).record
    assert record.name_or_path == str(folders["plain"]) and record.model_type == "xlm-roberta"
    assert record.sha256 is not None and len(record.sha256) == 64
    assert record.sha256 != load(folders["infoxlm"]).record.sha256


@pytest.mark.parametrize("layer", [-1, 4])
def test_a_layer_that_does_not_exist_is_refused(folders: dict[str, Path], layer: int) -> None:
    with pytest.raises(UsageError, match=rf"layer must be in 0\.\.3, found {layer}"):
        load(folders["bert"]).encode(TEXTS, layer=layer)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    word_tokenizer(VOCAB + 5).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="tokenizer has 65 tokens, the model's table 60"):
        load(folders["bert"], tokenizer_name=str(tmp_path))


def test_what_cannot_be_loaded_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no encoder: give --model_name_or_path"):
        load_encoder(EncoderArguments())
    with pytest.raises(UsageError, match="cannot be loaded"):
        load(tmp_path / "missing" / "folder")


def test_a_module_outside_the_folder_is_refused(tmp_path: Path) -> None:
    modules = [{"path": "../elsewhere", "type": "sentence_transformers.models.Transformer"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UsageError, match="names a folder outside of"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["infoxlm", "plain", "bert", "st"])
def test_vectors_that_are_not_finite_are_refused(folders: dict[str, Path], kind: str) -> None:
    encoder = load(folders[kind])
    encoder.model.get_input_embeddings().weight.data[9] = math.nan  # the word w9
    texts = ["w4", "w5 w6", "w9 w5 w7", "w9"]
    for encode in (partial(encoder.encode, layer=2), encoder.encode_layers):
        with pytest.raises(
            UsageError, match=rf"{folders[kind].name}.* not finite, first for 'w9 w5 w7'; its weights"
        ):
            encode(texts)
        assert encode(texts[:2]).isfinite().all()


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"type": 1}]', "[" * 100_000], ids=range(5))
def test_a_broken_list_of_modules_is_told_of_with_its_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(UsageError, match=r"modules\.json"):
        load(tmp_path)


def test_batches_hold_every_sequence_once_and_keep_the_limit() -> None:
    lengths = torch.randint(1, 30, (57,), generator=torch.Generator().manual_seed(0)).numpy()
    batches = list(batches_by_length(lengths, 64))
    assert sorted(i for batch in batches for i in batch) == list(range(57))
    assert all(len(batch) * lengths[batch].max() <= 64 for batch in batches)
    assert [len(batch) for batch in batches_by_length(lengths, 1)] == [1] * 57
