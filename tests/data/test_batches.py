"""Batches: an item is the same in any batch, on any worker, and of the documented form."""

from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_sentences import flatten, write_store
from torch.utils.data import DataLoader

from modeling_infoxlm.data.batches import JointDataset, PretrainingCollator
from modeling_infoxlm.data.shards import Corpus
from modeling_infoxlm.data.streams import StreamSettings
from modeling_infoxlm.runs.errors import DataError

# ---- one item, however it is asked for


@pytest.fixture(scope="module")
def dataset(corpus: Corpus) -> JointDataset:
    """All objectives, several examples of each in an item."""
    return JointDataset(corpus, StreamSettings(mlm_examples=2, tlm_examples=1, xlco_examples=3), 64)


def test_item_holds_the_next_examples_of_each_stream_that_is_on(
    corpus: Corpus, dataset: JointDataset
) -> None:
    """Item i of r examples is items i r .. i r + r - 1 of one; a part that is off is absent."""
    item = dataset[5]
    assert set(item) == {"mlm", "tlm", "xlco"}
    for part, per_item in (("mlm", 2), ("tlm", 1), ("xlco", 3)):
        numbers = np.arange(5 * per_item, 6 * per_item)
        alone = JointDataset(corpus, StreamSettings(objectives=(part,)), 64 * 3).pack(numbers)
        assert flatten(alone) == flatten({part: item[part]})


@settings(deadline=None)
@given(items=st.lists(st.integers(0, 63), min_size=1, max_size=8))
def test_getitem_and_getitems_agree_after_collation(dataset: JointDataset, items: list[int]) -> None:
    """The quick path of a DataLoader is the plain one: a row shifted by a neighbour's tokens would show."""
    collate = PretrainingCollator()
    one_by_one = collate([dataset[item] for item in items])
    assert flatten(one_by_one) == flatten(collate(dataset.__getitems__(items)))


def test_collated_batch_has_the_documented_form(dataset: JointDataset) -> None:
    """What the model is given: int64 tensors, lengths as a list, rows and labels in item order."""
    batch = PretrainingCollator()([dataset[item] for item in (7, 3, 9)])
    assert list(batch) == ["mlm", "tlm", "xlco"]
    for part in (batch["mlm"], batch["tlm"]):
        assert set(part) == {"input_ids", "lengths", "masked_rows", "masked_lengths", "labels"}
        assert part["input_ids"].dtype == part["masked_rows"].dtype == part["labels"].dtype == torch.int64
        assert part["masked_rows"].shape == part["labels"].shape
        assert all(type(count) is int for count in part["masked_lengths"])
        ends = np.cumsum(part["lengths"])
        sequence_of_row = np.searchsorted(ends, part["masked_rows"].numpy(), side="right")
        assert part["masked_lengths"] == np.bincount(sequence_of_row, minlength=len(ends)).tolist()
    sides = [batch["mlm"], batch["tlm"], batch["xlco"]["query"], batch["xlco"]["key"]]
    assert [len(part["lengths"]) for part in sides] == [3 * 2, 3 * 1, 3 * 3, 3 * 3]
    for part in sides:
        assert all(type(length) is int for length in part["lengths"])
        assert sum(part["lengths"]) == len(part["input_ids"])


def test_data_workers_change_nothing(dataset: JointDataset) -> None:
    """A run resumed with another number of workers must see the same batches."""

    def load(num_workers: int) -> list[dict[str, list[int]]]:
        loader = DataLoader(dataset, batch_size=7, collate_fn=PretrainingCollator(), num_workers=num_workers)
        return [flatten(batch) for batch in loader]

    batches = load(0)
    assert len(batches) == 10 and batches == load(2)
    # Workers that are spawned, not forked, get the dataset sent, and not the corpus with it.
    stored = ForkingPickler.dumps(dataset)
    assert flatten(ForkingPickler.loads(stored).pack([3, 4])) == flatten(dataset.pack([3, 4]))
    assert len(stored) < 20_000


def test_describe_tells_each_streams_shares(corpus: Corpus) -> None:
    """What goes to the log and to run.json; adjacent halves the examples."""
    adjacent = StreamSettings(pair_sampling_alpha=0.0, xlco_examples=3, concatenate_pairs="adjacent")
    described = JointDataset(corpus, adjacent, 8).describe()
    assert list(described) == ["mlm", "tlm", "xlco"]
    assert described["mlm"]["epoch_size"] == 85
    assert [described["xlco"][name] for name in ("examples_per_item", "epoch_size")] == [3, 20]
    third = pytest.approx(1 / 3)
    shares = {
        name: [group[key] for key in ("examples", "probability", "expected_share")]
        for name, group in described["xlco"]["groups"].items()
    }
    assert shares == {"de-en": [15, third, 7 / 20], "en-fr": [4, third, 7 / 20], "en-sw": [1, third, 6 / 20]}


@pytest.mark.parametrize("concatenate_pairs", ["none", "random", "adjacent"])
def test_described_lengths_are_those_of_the_batches(corpus: Corpus, concatenate_pairs: Any) -> None:
    """Mean over whole epochs, special tokens included; the most is reached, or for joined pairs a bound."""
    streams = StreamSettings(sampling_alpha=1.0, pair_sampling_alpha=1.0, concatenate_pairs=concatenate_pairs)
    only = replace(corpus, mono={"en": corpus.mono["en"]}, bitext={"en-fr": corpus.bitext["en-fr"]})
    dataset = JointDataset(only, streams, 10_000)
    described = dataset.describe()
    lengths = {}
    for name, epochs in (("mlm", 60), ("tlm", 8), ("xlco", 8)):
        part = dataset.pack(range(epochs * 8))[name]
        views = [part["query"], part["key"]] if name == "xlco" else [part]
        lengths[name] = sum(view["lengths"] for view in views)
    blocks, pairs = described["mlm"]["groups"]["en"], described["tlm"]["groups"]["en-fr"]
    both_views = described["xlco"]["groups"]["en-fr"]
    assert (blocks["mean_tokens"], blocks["most_tokens"]) == (lengths["mlm"].mean(), lengths["mlm"].max())
    assert (pairs["mean_tokens"], pairs["most_tokens"]) == (lengths["tlm"].mean(), lengths["tlm"].max())
    assert both_views["mean_tokens"] == pytest.approx(lengths["xlco"].mean(), rel=0.1)
    assert lengths["xlco"].max() <= both_views["most_tokens"] <= lengths["xlco"].max() + 10


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objectives": ()}, r"one or more of mlm, tlm, xlco, each once; found \(\)"),
        ({"objectives": ("mlm", "cxlm")}, "found .*cxlm"),
        ({"objectives": ("mlm", "mlm")}, "each once"),
        ({"tlm_examples": 0}, "tlm_examples must be at least 1, found 0"),
        ({"sampling_alpha": 1.1}, "sampling_alpha must be at most 1, found 1.1"),
        ({"mask_probability": 15}, "mask_probability must be at most 1, found 15"),
        ({"concatenate_pairs": "mixup"}, "one of random, adjacent, code_mixed, none; found 'mixup'"),
    ],
)
def test_settings_refuse_what_means_nothing(options: dict[str, Any], message: str) -> None:
    """At once and by name, not in the thousandth step."""
    with pytest.raises(ValueError, match=message):
        StreamSettings(**options)


def test_objective_without_data_and_items_outside_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    """It says which objective, and what to do."""
    empty = {**corpus.mono, "th": write_store(tmp_path / "th", [])}
    for objective, lacking, message in (
        ("mlm", {"mono": {}}, "objective mlm needs monolingual text, .* give mono_files or take mlm out"),
        ("tlm", {"bitext": {}}, "objective tlm needs sentence pairs, .* give bitext_files or take tlm out"),
        ("xlco", {"bitext": {}}, "objective xlco needs sentence pairs"),
        ("mlm", {"mono": empty}, "no monolingual text for th"),
    ):
        with pytest.raises(DataError, match=message):
            JointDataset(replace(corpus, **lacking), StreamSettings(objectives=(objective,)), 8)
    with pytest.raises(ValueError, match="num_items must be at least 1; found 0"):
        JointDataset(corpus, StreamSettings(), 0)
    dataset = JointDataset(corpus, StreamSettings(), 64)
    for item in (64, -1):
        with pytest.raises(IndexError):
            dataset[item]
    with pytest.raises(ValueError):
        dataset.pack([])


@pytest.mark.parametrize("objective", ["mlm", "tlm", "xlco"])
def test_too_long_a_sequence_is_refused(corpus: Corpus, objective: Any) -> None:
    """More tokens than positions: the model would index beyond its embeddings."""
    short = replace(corpus, max_length=5)
    with pytest.raises(ValueError, match=rf"of the {objective} part has \d+ tokens, .* most 5"):
        JointDataset(short, StreamSettings(objectives=(objective,)), 64).pack(range(64))
