"""Sentence vectors of many sequences: each one's own, whatever it is batched with."""

import numpy as np
import pytest
import torch
from tiny_run import SPECIAL, tiny_model

from modeling_infoxlm import InfoXLMModel
from modeling_infoxlm.evaluation import encoding
from modeling_infoxlm.evaluation.encoding import encode_sequences


@pytest.fixture(scope="module")
def encoder() -> InfoXLMModel:
    return tiny_model().roberta.eval()


@pytest.fixture(scope="module")
def sequences() -> list[np.ndarray]:
    """Bare ids of ragged lengths, not sorted, with the type of a token store."""
    draw = np.random.default_rng(0)
    return [draw.integers(4, 59, length).astype(np.uint32) for length in (5, 1, 30, 2, 17, 1, 8, 30, 3)]


def one_by_one(encoder: InfoXLMModel, sequences: list[np.ndarray], layer: int, pooling: str) -> torch.Tensor:
    """The padded forward of transformers, a sentence at a time."""
    vectors = []
    for ids in sequences:
        input_ids = torch.tensor([[0, *ids.tolist(), 2]])
        hidden = encoder(input_ids, output_hidden_states=True).hidden_states[layer][0]
        vectors.append(hidden[0] if pooling == "cls" else hidden.mean(dim=0))
    return torch.stack(vectors)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("layer", [0, 2, 3])
def test_vectors_are_those_of_whole_sentences_in_the_order_asked(
    encoder: InfoXLMModel, sequences: list[np.ndarray], layer: int, pooling: str
) -> None:
    vectors = encode_sequences(encoder, sequences, SPECIAL, layer=layer, pooling=pooling)
    assert vectors.shape == (9, 16) and vectors.dtype == torch.float32 and not vectors.requires_grad
    torch.testing.assert_close(vectors, one_by_one(encoder, sequences, layer, pooling), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tokens_per_batch", [1, 10, 33, 1000])
def test_the_size_of_batches_changes_nothing(
    encoder: InfoXLMModel, sequences: list[np.ndarray], tokens_per_batch: int
) -> None:
    expected = encode_sequences(encoder, sequences, SPECIAL, layer=2)
    found = encode_sequences(encoder, sequences, SPECIAL, layer=2, tokens_per_batch=tokens_per_batch)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("most", [3, 10, 17, 20, 24, 29, 40])
def test_batches_bound_the_memory_and_hold_sentences_of_like_length(
    encoder: InfoXLMModel, sequences: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    seen: list[list[int]] = []
    pooled = encoding.pooled_vectors

    def spy(model: object, input_ids: torch.Tensor, lengths: list[int], *rest: object) -> torch.Tensor:
        seen.append(lengths)
        return pooled(model, input_ids, lengths, *rest)

    monkeypatch.setattr(encoding, "pooled_vectors", spy)
    encode_sequences(encoder, sequences, SPECIAL, layer=2, tokens_per_batch=most)
    assert sum(seen, []) == sorted(len(ids) + 2 for ids in sequences)
    for lengths in seen:
        assert len(lengths) == 1 or sum(lengths) <= most, lengths


def test_the_mode_of_the_model_is_left_as_it_is(encoder: InfoXLMModel, sequences: list[np.ndarray]) -> None:
    encoder.train()
    try:
        encode_sequences(encoder, sequences, SPECIAL, layer=1)
        assert encoder.training
    finally:
        encoder.eval()
