"""Held-out retrieval and held-out losses on the tiny corpus."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference.retrieval import accuracies, sentence_vectors
from tiny_run import tiny_corpus, tiny_model
from tiny_sentences import write_store

from modeling_infoxlm.data.batches import JointDataset
from modeling_infoxlm.data.shards import Corpus, PairStore
from modeling_infoxlm.data.streams import StreamSettings
from modeling_infoxlm.evaluation.retrieval.heldout import (
    HeldoutRetrieval,
    describe_change,
    heldout_corpus,
    with_start,
)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return Corpus(folder=tmp_path, manifest={}, **vars(tiny_corpus(tmp_path)))


@pytest.mark.parametrize("layer, max_pairs, pooling", [(0, 25, "mean"), (3, 300, "mean"), (2, 300, "cls")])
def test_accuracies_equal_a_slow_search_in_both_directions(
    corpus: Corpus, tmp_path: Path, layer: int, max_pairs: int, pooling: str
) -> None:
    # Random weights find next to nothing across languages; the first half of a sentence they often find.
    pair = corpus.heldout["en-xx"]
    # With small weights all first tokens are so alike that rounding would choose among them.
    model = tiny_model(initializer_range=0.3).eval()
    sentences = [pair.source[i].tolist() for i in range(len(pair))]
    first = [ids[: max(1, len(ids) // 2)] for ids in sentences]
    halves = write_store(tmp_path / "halves", first)
    corpus = replace(corpus, heldout={"en-xx": PairStore(pair.source, halves, "en", "xx")})
    count = min(max_pairs, len(pair))
    sides = (
        sentence_vectors(model.roberta, [[0, *ids, 2] for ids in side[:count]], layer, pooling)
        for side in (sentences, first)
    )
    forth, back = accuracies(*sides)
    assert 0 < forth < 1 and 0 < back < 1
    retrieval = HeldoutRetrieval(corpus, layer=layer, pooling=pooling, max_pairs=max_pairs)
    accuracy = retrieval.accuracies(model.roberta)["en-xx"]
    assert (accuracy.source_to_target, accuracy.target_to_source) == pytest.approx((forth, back))
    assert retrieval(model)["retrieval/en-xx"] == pytest.approx((forth + back) / 2)


def test_mean_is_over_pairs_however_large(corpus: Corpus) -> None:
    pair = corpus.heldout["en-xx"]
    same = PairStore(pair.source, pair.source, "en", "yy")
    retrieval = HeldoutRetrieval(replace(corpus, heldout={"en-xx": pair, "en-yy": same}), layer=2)
    scores = retrieval(model := tiny_model())
    assert scores.keys() == {"retrieval/en-xx", "retrieval/en-yy", "retrieval/mean"}
    assert scores["retrieval/mean"] == (scores["retrieval/en-xx"] + scores["retrieval/en-yy"]) / 2
    assert scores["retrieval/en-yy"] > 0.9 > scores["retrieval/en-xx"]
    with pytest.raises(ValueError, match="holds out no pair; prepare it with heldout_fraction above 0"):
        HeldoutRetrieval(replace(corpus, heldout={}), layer=2)
    model.roberta.get_input_embeddings().weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"not finite, first for number 0 of \d+ sentences"):
        HeldoutRetrieval(corpus, layer=1)(model)


def test_heldout_pairs_become_a_corpus_of_their_own(corpus: Corpus) -> None:
    """Its MLM examples are whole sentences; a language of several pairs is read once."""
    pair = corpus.heldout["en-xx"]
    twice = {"en-xx": pair, "en-yy": PairStore(pair.source, pair.target, "en", "yy")}
    trained_on = PairStore(pair.target, pair.source, "xx", "zz")
    corpus = replace(corpus, mono={"zz": pair.source}, bitext={"xx-zz": trained_on}, heldout=twice)
    held = heldout_corpus(corpus)
    assert held.bitext == twice and sorted(held.mono) == ["en", "xx", "yy"]
    assert len(held.mono["xx"]) == len(pair)
    tokens, lengths = held.mono["xx"].gather(np.array([4, 0]))
    expected = [[0, *pair.target[i].tolist(), 2] for i in (4, 0)]
    assert tokens.tolist() == sum(expected, []) and lengths.tolist() == [len(ids) for ids in expected]
    dataset = JointDataset(held, StreamSettings(), num_items=16)
    assert set(dataset.pack(range(16))) == {"mlm", "tlm", "xlco"}


def ended(retrieval: float, mlm: float) -> dict[str, Any]:
    start = {"step": 0, "epoch": 0, "eval_retrieval/mean": 0.872, "eval_loss/mlm": 3.0}
    later = {"step": 4, "eval_retrieval/mean": 0.5, "eval_loss/mlm": 1.0}
    end = {"eval_retrieval/mean": retrieval, "eval_loss/mlm": mlm, "eval_loss/xlco": 1.0, "epoch": 1}
    return with_start(end, [start, later])


def test_both_ends_of_a_run_are_shown_and_a_worse_one_in_capitals() -> None:
    results = ended(0.902, 2.5)
    assert (results["start_retrieval/mean"], results["eval_retrieval/mean"]) == (0.872, 0.902)
    assert not {"warning", "start_loss/xlco", "start_epoch"} & results.keys()
    assert describe_change(results, layer=12, pooling="mean") == [
        "held-out pairs, vectors of layer 12 by mean pooling: "
        "retrieval 87.2 -> 90.2 %, loss/mlm 3.000 -> 2.500"
    ]
    for mlm, worse in ((2.5, "87.2 -> 13.2 %"), (3.5, "87.2 -> 13.2 %, loss/mlm 3.000 -> 3.500")):
        results = ended(0.132, mlm)
        assert results["warning"] == f"THIS RUN ENDED WORSE THAN IT BEGAN: retrieval {worse}"
        assert describe_change(results, layer=12, pooling="mean")[-1] == results["warning"]
    unmeasured = {"eval_retrieval/mean": 0.1}
    assert with_start(unmeasured, [{"step": 1, "loss": 2.0}]) == unmeasured
    assert describe_change(unmeasured, layer=1, pooling="cls") == []
