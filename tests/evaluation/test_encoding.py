"""Sentence vectors of many sentences: each one's own, whatever it is batched with."""

import logging
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tiny_run import SPECIAL, VOCAB, tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from modeling_infoxlm import InfoXLMModel
from modeling_infoxlm.evaluation import encoding
from modeling_infoxlm.evaluation.encoding import encode_sequences, encode_texts

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
def tokenizer() -> PreTrainedTokenizerFast:
    """Words w4 to w58 are their own ids, in XLM-R's layout."""
    words = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, **{f"w{i}": i for i in range(4, VOCAB)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


@pytest.fixture
def seen_lengths(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Lengths of the sequences of each batch that is encoded."""
    seen: list[list[int]] = []
    pooled = encoding.pooled_vectors

    def spy(model: object, input_ids: torch.Tensor, lengths: list[int], *rest: object) -> torch.Tensor:
        seen.append(lengths)
        return pooled(model, input_ids, lengths, *rest)

    monkeypatch.setattr(encoding, "pooled_vectors", spy)
    return seen


def ids_of(text: str) -> np.ndarray:
    return np.array([int(word[1:]) for word in text.split()], dtype=np.uint32)


def one_by_one(encoder: InfoXLMModel, sequences: list[np.ndarray], layer: int, pooling: str) -> torch.Tensor:
    """The padded forward of transformers, a sentence at a time."""
    vectors = []
    for ids in sequences:
        input_ids = torch.tensor([[0, *ids.tolist(), 2]])
        hidden = encoder(input_ids, output_hidden_states=True).hidden_states[layer][0]
        vectors.append(hidden[0] if pooling == "cls" else hidden.mean(dim=0))
    return torch.stack(vectors)


# ---------------------------------------------------------------------------- sequences


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("layer", [0, 2, 3])
def test_vectors_are_those_of_whole_sentences_in_the_order_asked(
    encoder: InfoXLMModel, sequences: list[np.ndarray], layer: int, pooling: str
) -> None:
    vectors = encode_sequences(encoder, sequences, SPECIAL, layer=layer, pooling=pooling)
    assert vectors.shape == (9, 16) and vectors.dtype == torch.float32 and not vectors.requires_grad
    torch.testing.assert_close(vectors, one_by_one(encoder, sequences, layer, pooling), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tokens_per_batch", [1, 10, 33, 1000])
@pytest.mark.parametrize("window", [1, 4, 9])
def test_the_size_of_batches_and_windows_changes_nothing(
    encoder: InfoXLMModel,
    sequences: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    tokens_per_batch: int,
    window: int,
) -> None:
    expected = encode_sequences(encoder, sequences, SPECIAL, layer=2)
    monkeypatch.setattr(encoding, "SENTENCES_PER_WINDOW", window)
    found = encode_sequences(encoder, sequences, SPECIAL, layer=2, tokens_per_batch=tokens_per_batch)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("most", [3, 10, 17, 20, 24, 29, 40])
def test_batches_bound_the_memory_and_hold_sentences_of_like_length(
    encoder: InfoXLMModel, sequences: list[np.ndarray], seen_lengths: list[list[int]], most: int
) -> None:
    encode_sequences(encoder, sequences, SPECIAL, layer=2, tokens_per_batch=most)
    assert sum(seen_lengths, []) == sorted((len(ids) + 2 for ids in sequences), reverse=True)
    for lengths, following in zip(seen_lengths, [*seen_lengths[1:], [most]], strict=True):
        assert len(lengths) == 1 or sum(lengths) <= most, lengths
        assert sum(lengths) + following[0] > most, "a batch with room for the next sentence"


def test_the_default_batch_is_that_of_the_device(
    encoder: InfoXLMModel, seen_lengths: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "CPU_TOKENS_PER_BATCH", 6)
    encode_sequences(encoder, [np.array([5])] * 4, SPECIAL, layer=1)
    assert seen_lengths == [[3, 3], [3, 3]]


def test_only_a_window_of_sentences_is_held_at_a_time(
    encoder: InfoXLMModel, seen_lengths: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "SENTENCES_PER_WINDOW", 2)
    reads: list[tuple[int, int]] = []

    class Store(list[np.ndarray]):
        def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
            reads.append((index, len(seen_lengths)))
            return super().__getitem__(index)

    encode_sequences(encoder, Store([np.array([5])] * 5), SPECIAL, layer=1)
    assert reads == [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2)]  # which sentence, after how many batches


def test_no_layer_above_the_asked_one_runs(encoder: InfoXLMModel, sequences: list[np.ndarray]) -> None:
    runs: list[int] = []
    hooks = [
        layer.register_forward_hook(lambda *_, i=i: runs.append(i))
        for i, layer in enumerate(encoder.encoder.layer, 1)
    ]
    encode_sequences(encoder, sequences, SPECIAL, layer=2)
    for hook in hooks:
        hook.remove()
    assert runs == [1, 2]


def test_bf16_is_close_and_gives_fp32(encoder: InfoXLMModel, sequences: list[np.ndarray]) -> None:
    expected = encode_sequences(encoder, sequences, SPECIAL, layer=3)
    found = encode_sequences(encoder, sequences, SPECIAL, layer=3, bf16=True)
    assert found.dtype == torch.float32 and not torch.equal(found, expected)
    error = (found - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.max() < 0.02


def test_without_the_flag_the_autocast_of_the_caller_holds(
    encoder: InfoXLMModel, sequences: list[np.ndarray]
) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found = encode_sequences(encoder, sequences, SPECIAL, layer=3)
    assert torch.equal(found, encode_sequences(encoder, sequences, SPECIAL, layer=3, bf16=True))


def test_no_sentence(encoder: InfoXLMModel, tokenizer: PreTrainedTokenizerFast) -> None:
    assert encode_sequences(encoder, [], SPECIAL, layer=1).shape == (0, 16)
    assert encode_texts(encoder, tokenizer, [], normalize=True).shape == (0, 16)


@pytest.fixture
def half_training() -> Iterator[InfoXLMModel]:
    """In training mode with dropout, apart from its frozen first layer."""
    model = tiny_model(hidden_dropout_prob=0.5).roberta.train()
    model.encoder.layer[0].eval()
    yield model


def test_vectors_are_made_without_dropout_and_each_mode_is_restored(
    half_training: InfoXLMModel, sequences: list[np.ndarray]
) -> None:
    modes = [module.training for module in half_training.modules()]
    first = encode_sequences(half_training, sequences, SPECIAL, layer=3)
    assert torch.equal(first, encode_sequences(half_training, sequences, SPECIAL, layer=3))
    assert [module.training for module in half_training.modules()] == modes
    with pytest.raises(ValueError, match="layer must be"):
        encode_sequences(half_training, sequences, SPECIAL, layer=99)
    assert [module.training for module in half_training.modules()] == modes


# ---------------------------------------------------------------------------- texts


@pytest.mark.parametrize("texts_per_call", [1, 3, 1024])
def test_texts_are_encoded_as_their_ids(
    encoder: InfoXLMModel,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    texts_per_call: int,
) -> None:
    monkeypatch.setattr(encoding, "TEXTS_PER_CALL", texts_per_call)
    vectors = encode_texts(encoder, tokenizer, TEXTS, layer=2, pooling="mean")
    expected = one_by_one(encoder, [ids_of(text) for text in TEXTS], 2, "mean")
    torch.testing.assert_close(vectors, expected, rtol=1e-5, atol=1e-6)


def test_layer_and_pooling_are_those_of_the_contrast_unless_asked(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = tiny_model(xlco_layer=1, xlco_pooling="cls").roberta.eval()
    explicit = encode_texts(encoder, tokenizer, TEXTS, layer=1, pooling="cls")
    assert torch.equal(encode_texts(encoder, tokenizer, TEXTS), explicit)
    for other in ({"layer": 0}, {"pooling": "mean"}):
        assert not torch.allclose(encode_texts(encoder, tokenizer, TEXTS, **other), explicit)


def test_what_an_earlier_call_left_in_the_tokenizer_does_not_matter(
    encoder: InfoXLMModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    expected = encode_texts(encoder, tokenizer, TEXTS)
    tokenizer(TEXTS, padding=True, truncation=True, max_length=3)
    assert torch.equal(encode_texts(encoder, tokenizer, TEXTS), expected)


def test_normalised_vectors_have_length_one(
    encoder: InfoXLMModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    vectors = encode_texts(encoder, tokenizer, TEXTS)
    unit = encode_texts(encoder, tokenizer, TEXTS, normalize=True)
    assert not torch.allclose(vectors.norm(dim=1), torch.ones(7))
    torch.testing.assert_close(unit, vectors / vectors.norm(dim=1, keepdim=True))


def test_long_texts_are_cut_with_one_warning_that_counts_them(
    encoder: InfoXLMModel, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
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


def test_vectors_are_gathered_on_the_device_asked(
    encoder: InfoXLMModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    assert encode_texts(encoder, tokenizer, TEXTS).device.type == "cpu"
    assert encode_texts(encoder, tokenizer, TEXTS, device="meta").device.type == "meta"


def test_progress_is_shown_for_long_jobs_only(
    encoder: InfoXLMModel,
    tokenizer: PreTrainedTokenizerFast,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encode_texts(encoder, tokenizer, TEXTS)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(encoding, "PROGRESS_DELAY", 0)
    encode_texts(encoder, tokenizer, TEXTS, progress=False)
    assert capsys.readouterr().err == ""
    encode_texts(encoder, tokenizer, TEXTS)
    assert "7/7" in capsys.readouterr().err


def test_one_string_is_not_a_list_of_texts(encoder: InfoXLMModel, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=r"found one string; write \[text\]"):
        encode_texts(encoder, tokenizer, "w5 w6")


def test_a_slow_tokenizer(encoder: InfoXLMModel, tokenizer: PreTrainedTokenizerFast) -> None:
    class SlowTokenizer:
        is_fast = False

    with pytest.raises(
        ValueError, match="SlowTokenizer is not a fast tokenizer; load one with AutoTokenizer"
    ):
        encode_texts(encoder, SlowTokenizer(), TEXTS)  # type: ignore[arg-type]
