"""The encoding benchmark compares like with like, and says so when it does not."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import evaluate
from benchmarks.evaluate import JUDGED, differences, padded_share
from benchmarks.measure import exponent

THEIRS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def test_vectors_that_are_not_ours_end_the_comparison() -> None:
    close = {"ours": THEIRS, JUDGED: THEIRS * (1 + 1e-6), "st all layers": -THEIRS}
    assert 0 < differences(close, "float32")[JUDGED] < 1e-5
    with pytest.raises(RuntimeError, match="differ from ours"):
        differences(close | {JUDGED: THEIRS * 1.01}, "float32")
    with pytest.raises(RuntimeError, match="differ from ours"):
        differences(close | {JUDGED: THEIRS * float("nan")}, "float32")


def test_padding_of_theirs_is_counted() -> None:
    """33 texts: a batch of 32 with its longest of 10 tokens, and one by itself."""
    texts = ["aaaa", *["aaa"] * 31, "a"]
    lengths = np.array([10, *[5] * 31, 2])
    assert padded_share(texts, lengths) == pytest.approx((32 * 10 + 2) / lengths.sum())


def test_exponent_of_a_square() -> None:
    assert exponent([10, 20, 40], [3.0, 12.0, 48.0]) == pytest.approx(2.0)
    assert exponent([10, 20], [0.0, 1.0]) is None


def test_without_sentence_transformers_ours_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = evaluate.importlib.util.find_spec
    monkeypatch.setattr(
        evaluate.importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "sentence_transformers" else real(name, *rest),
    )
    monkeypatch.setattr(evaluate, "train_tokenizer", _small(evaluate.train_tokenizer))
    monkeypatch.setattr(evaluate, "measured_peak", lambda dtype: 1e12)
    flags = ["--sentences", "20", "--geometry", "tiny", "--dtypes", "float32", "--repeats", "1"]
    result = evaluate.measure(evaluate.parse_arguments(flags))
    assert "not installed" in result["missing"]
    (found,) = result["encoding"]
    assert list(found["sides"]) == ["ours"] and found["ratios"] == {}
    assert found["sentences"] == 20 and found["tokens"] > 40


def _small(train):
    return lambda sources, folder, **options: train(
        sources, folder, **{**options, "vocab_size": 4000, "max_sentences": 2000}
    )
