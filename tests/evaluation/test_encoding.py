"""Sentence vectors of many sentences: each one's own, whatever it is batched with."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from reference.retrieval import sentence_vectors
from tiny_encoder import word_tokenizer
from tiny_run import tiny_model
from transformers import BertConfig, PreTrainedTokenizerBase

from modeling_infoxlm import InfoXLMModel
from modeling_infoxlm.data.ragged import PackedRows
from modeling_infoxlm.evaluation import encoding
from modeling_infoxlm.evaluation.encoding import encode_rows, encode_texts, longest_sequence

TEXTS = ["w4 w5 w6 w7 w8", "w9", "", "w10 w11 w12", "w9", "w13 w14 w15 w16", "w17 w18"]


@pytest.fixture(scope="module")
def encoder() -> InfoXLMModel:
    return tiny_model().roberta.eval()


@pytest.fixture(scope="module")
def sequences() -> list[np.ndarray]:
    """Bare ids of ragged lengths, not sorted, with the type of a token store."""
    draw = np.random.default_rng(0)
    return [draw.integers(4, 59, length).astype(np.uint32) for length in (5, 1, 30, 2, 17, 1, 8, 30, 3)]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return word_tokenizer()


def encode_sequences(
    encoder: InfoXLMModel, sequences: Sequence[np.ndarray], *, layer: int, **options: Any
) -> torch.Tensor:
    """Vectors of `<s> ids </s>` of each sequence."""

    def read(start: int, stop: int) -> PackedRows:
        return PackedRows.from_lists([[0, *sequences[i].tolist(), 2] for i in range(start, stop)])

    out = torch.empty(1, len(sequences), encoder.config.hidden_size)
    encode_rows(encoder, read, out, layers=[layer], show=str, **options)
    return out[0]


def one_by_one(encoder: InfoXLMModel, sequences: list[np.ndarray], layer: int, pooling: str) -> torch.Tensor:
    rows = [[0, *ids.tolist(), 2] for ids in sequences]
    return torch.from_numpy(sentence_vectors(encoder, rows, layer, pooling)).float()


@pytest.mark.parametrize(
    ("layer", "pooling", "window", "tokens_per_batch"),
    [(0, "mean", 1024, 64), (2, "cls", 1, 1), (3, "mean", 4, 33), (2, "mean", 4, 1), (3, "cls", 1, 33)],
)
def test_vectors_are_those_of_whole_sentences_whatever_the_batch_and_the_window(
    encoder: InfoXLMModel, tokenizer: PreTrainedTokenizerBase, sequences: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch, layer: int, pooling: str, window: int, tokens_per_batch: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(encoding, "SENTENCES_PER_WINDOW", window)
    monkeypatch.setattr(encoding, "TEXTS_PER_CALL", window)
    options = {"layer": layer, "pooling": pooling, "tokens_per_batch": tokens_per_batch}
    vectors = encode_sequences(encoder, sequences, **options)
    expected = one_by_one(encoder, sequences, layer, pooling)
    assert vectors.shape == (9, 16) and vectors.dtype == torch.float32 and not vectors.requires_grad
    torch.testing.assert_close(vectors, expected, rtol=1e-5, atol=1e-6)
    rounded = encode_sequences(encoder, sequences, **options, bf16=True)
    assert rounded.dtype == torch.float32 and (layer == 0 or not torch.equal(rounded, vectors))
    assert ((rounded - expected).norm(dim=1) / expected.norm(dim=1)).max() < 0.02
    texts = [" ".join(f"w{i}" for i in ids) for ids in sequences]
    tokenizer(texts, padding=True, truncation=True, max_length=3)  # what it leaves there does not matter
    vectors = encode_texts(encoder, tokenizer, texts, layer=layer, pooling=pooling)
    torch.testing.assert_close(vectors, expected, rtol=1e-5, atol=1e-6)
    unit = encode_texts(encoder, tokenizer, texts, layer=layer, pooling=pooling, normalize=True)
    torch.testing.assert_close(unit, expected / expected.norm(dim=1, keepdim=True))


def test_only_a_window_of_sentences_is_held_and_no_layer_above_the_asked_one_runs(
    encoder: InfoXLMModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "SENTENCES_PER_WINDOW", 2)
    reads: list[tuple[int, int]] = []
    runs: list[int] = []
    hooks = [
        layer.register_forward_hook(lambda *_, i=i: runs.append(i))
        for i, layer in enumerate(encoder.encoder.layer, 1)
    ]

    class Store(list[np.ndarray]):
        def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
            reads.append((index, len(runs)))
            return super().__getitem__(index)

    encode_sequences(encoder, Store([np.array([5])] * 5), layer=1)
    for hook in hooks:
        hook.remove()
    assert reads == [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2)]  # which sentence, after how many batches
    assert runs == [1, 1, 1]


def test_odd_requests(
    encoder: InfoXLMModel, tokenizer: PreTrainedTokenizerBase, sequences: list[np.ndarray]
) -> None:
    assert encode_sequences(encoder, [], layer=1).shape == (0, 16)
    assert encode_texts(encoder, tokenizer, [], normalize=True).shape == (0, 16)
    assert encode_texts(encoder, tokenizer, TEXTS).device.type == "cpu"
    assert encode_texts(encoder, tokenizer, TEXTS, device="meta").device.type == "meta"
    with pytest.raises(ValueError, match="layer must be"):
        encode_sequences(encoder, sequences, layer=99)
    with pytest.raises(ValueError, match=r"found one string; write \[text\]"):
        encode_texts(encoder, tokenizer, "w5 w6")


def test_layer_and_pooling_are_those_of_the_contrast_unless_asked(tokenizer: PreTrainedTokenizerBase) -> None:
    encoder = tiny_model(xlco_layer=1, xlco_pooling="cls").roberta.eval()
    explicit = encode_texts(encoder, tokenizer, TEXTS, layer=1, pooling="cls")
    assert torch.equal(encode_texts(encoder, tokenizer, TEXTS), explicit)
    for other in ({"layer": 0}, {"pooling": "mean"}):
        assert not torch.allclose(encode_texts(encoder, tokenizer, TEXTS, **other), explicit)


@pytest.mark.parametrize("fast", [True, False])
def test_long_texts_are_cut_with_one_warning_that_counts_them(
    encoder: InfoXLMModel, tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch, fast: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(type(tokenizer), "is_fast", fast)
    room = encoder.config.max_position_embeddings - 2 - 2
    words = [f"w{4 + i % 50}" for i in range(room + 3)]
    whole, longer, longest = (" ".join(words[:count]) for count in (room, room + 1, room + 3))
    with caplog.at_level(logging.WARNING):
        exact = encode_texts(encoder, tokenizer, ["w5", whole])
        assert not caplog.records
        cut = encode_texts(encoder, tokenizer, [longer, whole, longest])
    assert len(caplog.records) == 1
    assert f"2 of 3 texts have more than {room + 2} tokens" in caplog.records[0].getMessage()
    torch.testing.assert_close(cut, exact[1].expand(3, -1), rtol=1e-5, atol=1e-6)


def test_roberta_loses_two_positions_to_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.model_max_length = 10_000
    config = BertConfig(max_position_embeddings=514, pad_token_id=1)
    assert longest_sequence(config, tokenizer) == 514
    config.model_type = "roberta"
    assert longest_sequence(config, tokenizer) == 512
