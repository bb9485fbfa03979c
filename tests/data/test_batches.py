"""Batches: what is joined with what, in which layout, and that an item is the same in any batch."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from modeling_infoxlm.data.batches import JointDataset, PretrainingCollator
from modeling_infoxlm.data.ragged import PackedRows, SpecialTokens, join_pieces
from modeling_infoxlm.data.shards import Corpus, PairStore, TokenStore, TokenStoreWriter
from modeling_infoxlm.data.streams import StreamSettings, gather
from modeling_infoxlm.runs.errors import DataError

SPECIAL = SpecialTokens(bos=0, pad=1, eos=2, unk=3, mask=999, vocab_size=1000, all_ids=(0, 1, 2, 3, 999))
MAX_LENGTH = 40
NUM_BLOCKS = {"de": 20, "en": 60, "sw": 5}
NUM_PAIRS = {"de-en": 31, "en-fr": 8, "en-sw": 2}
FIRST_PAIR = {"de-en": 0, "en-fr": 31, "en-sw": 39}
PLAIN = StreamSettings(mask_probability=0.0, xlco_masking=False)
Sentence = tuple[int, int]
"""Number of a pair among all pairs, and its side: 0 source, 1 target."""


def sentence_ids(pair: int, side: int) -> list[int]:
    """A sentence that says who it is: one id of its own, 3 to 10 times."""
    return [100 + 2 * pair + side] * (3 + (5 * pair + 3 * side) % 8)


def write_store(prefix: Path, sequences: list[list[int]]) -> TokenStore:
    """Write one shard and open it."""
    with TokenStoreWriter(prefix) as writer:
        for ids in sequences:
            writer.append(ids)
    return TokenStore([prefix])


def block_ids(language: int, number: int) -> list[int]:
    """An MLM block of two sentences that is unlike every other."""
    return [0, 300 + number, 400 + language, 2, *[500 + number] * (number % 5), 2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Three languages and three language pairs, of unequal sizes."""
    folder = tmp_path_factory.mktemp("corpus")
    mono = {
        language: write_store(folder / language, [block_ids(i, number) for number in range(count)])
        for i, (language, count) in enumerate(NUM_BLOCKS.items())
    }
    bitext = {}
    for name, count in NUM_PAIRS.items():
        pairs = range(FIRST_PAIR[name], FIRST_PAIR[name] + count)
        sides = [
            write_store(folder / f"{name}.{side}", [sentence_ids(pair, side) for pair in pairs])
            for side in (0, 1)
        ]
        bitext[name] = PairStore(sides[0], sides[1], *name.split("-"))
    return Corpus(folder, manifest(mono, bitext), SPECIAL, MAX_LENGTH, mono, bitext, {})


def manifest(mono: dict[str, TokenStore], bitext: dict[str, PairStore]) -> dict[str, Any]:
    """The lengths that `prepare` writes into a manifest."""

    def entry(*stores: TokenStore) -> dict[str, int]:
        lengths = sum(store.lengths(np.arange(len(store))) for store in stores)
        return {
            "num_examples": len(lengths),
            "num_tokens": int(lengths.sum()),
            "max_length": int(lengths.max()),
        }

    return {
        "mono": {name: entry(store) for name, store in mono.items()},
        "bitext": {name: entry(pairs.source, pairs.target) for name, pairs in bitext.items()},
    }


def split(part: dict[str, Any]) -> list[list[int]]:
    """The sequences of a packed part."""
    ends = np.cumsum(part["lengths"])
    return [piece.tolist() for piece in np.split(np.asarray(part["input_ids"]), ends[:-1])]


def read(sequence: list[int]) -> list[Sentence]:
    """The sentences of `<s> a </s> b </s>`, after checking the layout and that no sentence lost a token."""
    assert sequence[0] == SPECIAL.bos and sequence[-1] == SPECIAL.eos
    sentences, rest = [], sequence[1:]
    while rest:
        end = rest.index(SPECIAL.eos)
        pair, side = divmod(rest[0] - 100, 2)
        assert rest[:end] == sentence_ids(pair, side)
        sentences.append((pair, side))
        rest = rest[end + 1 :]
    return sentences


def group_of(pair: int) -> str:
    """Language pair that a pair belongs to."""
    return max((name for name in FIRST_PAIR if FIRST_PAIR[name] <= pair), key=FIRST_PAIR.__getitem__)


def views(corpus: Corpus, num_items: int, **options: Any) -> Iterator[tuple[list[Sentence], list[Sentence]]]:
    """Query and key sentences of unmasked XlCo examples."""
    plain = replace(PLAIN, objectives=("xlco",), **options)
    part = JointDataset(corpus, plain, num_items).pack(np.arange(num_items))["xlco"]
    for query, key in zip(split(part["query"]), split(part["key"]), strict=True):
        yield read(query), read(key)


def flatten(batch: dict[str, Any]) -> dict[str, list[int]]:
    """A collated or packed batch as comparable lists."""
    flat = {}
    for name, part in batch.items():
        if isinstance(part, dict):
            flat.update({f"{name}.{key}": value for key, value in flatten(part).items()})
        else:
            flat[name] = part if isinstance(part, list) else part.tolist()
    return flat


# ---- the pieces


def test_special_tokens_round_one_and_two_pieces() -> None:
    """One separator between two sentences, none doubled, also round an empty piece."""
    pieces = PackedRows(np.array([5, 6, 7, 8], dtype=np.uint32), np.array([2, 1, 0, 1]))
    one = join_pieces(pieces, np.ones(4, dtype=np.int64), SPECIAL)
    assert one.tokens.tolist() == [0, 5, 6, 2, 0, 7, 2, 0, 2, 0, 8, 2]
    assert one.lengths.tolist() == [4, 3, 2, 3]
    two = join_pieces(pieces, np.array([2, 2]), SPECIAL)
    assert two.tokens.tolist() == [0, 5, 6, 2, 7, 2, 0, 2, 8, 2]
    assert two.lengths.tolist() == [6, 4]
    ragged = join_pieces(pieces, np.array([1, 3]), SPECIAL)
    assert ragged.tokens.tolist() == [0, 5, 6, 2, 0, 7, 2, 2, 8, 2]
    assert ragged.lengths.tolist() == [4, 6]
    assert pieces.lengths.tolist() == [2, 1, 0, 1]


@given(data=st.data())
@settings(deadline=None)
def test_gather_keeps_the_order_asked(corpus: Corpus, data: st.DataObject) -> None:
    """Whatever mixture of stores and repeats, sequence i is the one that was asked i-th."""
    stores = list(corpus.mono.values())
    wanted = data.draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4)), min_size=1, max_size=30))
    store, index = np.array(wanted).T
    found = gather(stores, store, index)
    expected = [stores[which][number].tolist() for which, number in wanted]
    assert found.tokens.tolist() == sum(expected, [])
    assert found.lengths.tolist() == [len(ids) for ids in expected]


# ---- MLM


def test_mlm_epoch_is_every_block_once(corpus: Corpus) -> None:
    """With alpha 1 an epoch is the corpus, each block as it was written."""
    plain = replace(PLAIN, objectives=("mlm",), sampling_alpha=1.0)
    blocks = split(JointDataset(corpus, plain, 85).pack(np.arange(85))["mlm"])
    written = [block_ids(i, n) for i, count in enumerate(NUM_BLOCKS.values()) for n in range(count)]
    assert sorted(blocks) == sorted(written)
    assert blocks != written


@pytest.mark.parametrize("objective", ["mlm", "tlm"])
def test_labels_restore_the_unmasked_part(corpus: Corpus, objective: Any) -> None:
    """Rows and labels belong together, and masking changes neither which examples come nor their lengths."""
    masked = JointDataset(corpus, StreamSettings(objectives=(objective,)), 200).pack(np.arange(200))[
        objective
    ]
    plain = JointDataset(corpus, replace(PLAIN, objectives=(objective,)), 200).pack(np.arange(200))[objective]
    assert len(masked["masked_rows"]) > 100
    assert masked["input_ids"].tolist() != plain["input_ids"].tolist()
    masked["input_ids"][masked["masked_rows"]] = masked["labels"]
    assert masked["input_ids"].tolist() == plain["input_ids"].tolist()
    assert masked["lengths"].tolist() == plain["lengths"].tolist()
    assert not set(masked["labels"].tolist()) & set(SPECIAL.all_ids)


def test_special_tokens_are_masked_on_request(corpus: Corpus) -> None:
    """`mask_special_tokens` reaches the masking."""
    masking = StreamSettings(objectives=("mlm",), mask_special_tokens=True)
    labels = JointDataset(corpus, masking, 200).pack(np.arange(200))["mlm"]["labels"]
    assert {SPECIAL.bos, SPECIAL.eos} <= set(labels.tolist())


def test_masks_are_new_in_every_epoch(corpus: Corpus) -> None:
    """The same block is masked elsewhere when it comes again (dynamic masking)."""
    dataset = JointDataset(corpus, StreamSettings(objectives=("mlm",), sampling_alpha=1.0), 85 * 20)
    plain = JointDataset(corpus, replace(PLAIN, objectives=("mlm",), sampling_alpha=1.0), 85 * 20)
    blocks = split(plain.pack(np.arange(85 * 20))["mlm"])
    masked = split(dataset.pack(np.arange(85 * 20))["mlm"])
    longest = max(blocks, key=len)
    seen = {tuple(after) for before, after in zip(blocks, masked, strict=True) if before == longest}
    assert len(seen) >= 5  # of 20 masks of six tokens; a mask fixed for the example would give 1


# ---- TLM


def test_tlm_joins_both_sides_in_both_directions(corpus: Corpus) -> None:
    """Each sequence is one pair, source or target first about equally often."""
    part = JointDataset(corpus, replace(PLAIN, objectives=("tlm",)), 2000).pack(np.arange(2000))["tlm"]
    sequences = [read(sequence) for sequence in split(part)]
    assert all(len(sentences) == 2 for sentences in sequences)
    assert all(first[0] == second[0] and first[1] == 1 - second[1] for first, second in sequences)
    assert abs(np.mean([first[1] for first, _ in sequences]) - 0.5) < 0.04
    assert len({first[0] for first, _ in sequences}) == sum(NUM_PAIRS.values())


def test_tlm_and_xlco_do_not_walk_in_step(corpus: Corpus) -> None:
    """Independent streams: item i holds the same pair in both only by chance."""
    batch = JointDataset(corpus, replace(PLAIN, concatenate_pairs="none"), 1000).pack(np.arange(1000))
    tlm = [read(sequence)[0][0] for sequence in split(batch["tlm"])]
    xlco = [read(sequence)[0][0] for sequence in split(batch["xlco"]["query"])]
    assert np.mean([a == b for a, b in zip(tlm, xlco, strict=True)]) < 0.1


# ---- XlCo


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31))
def test_none_contrasts_the_two_sides(corpus: Corpus, seed: int) -> None:
    """One sentence in each view, translations of each other, roles swapped half the time."""
    found = list(views(corpus, 200, concatenate_pairs="none", seed=seed))
    for (query,), (key,) in found:
        assert query[0] == key[0] and query[1] == 1 - key[1]
    assert 0.3 < np.mean([query[1] for (query,), _ in found]) < 0.7


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31))
def test_random_joins_two_different_pairs_of_one_language_pair(corpus: Corpus, seed: int) -> None:
    """One language in each view, the same two pairs in both, never a pair with itself."""
    for query, key in views(corpus, 200, concatenate_pairs="random", seed=seed):
        check_mixed_up(query, key)
        assert len({side for _, side in query}) == len({side for _, side in key}) == 1


def check_mixed_up(query: list[Sentence], key: list[Sentence]) -> None:
    """Both views hold the same two pairs of one language pair, each sentence against its translation."""
    assert len(query) == len(key) == 2
    assert query[0][0] != query[1][0]
    assert group_of(query[0][0]) == group_of(query[1][0])
    assert sorted(key) == sorted((pair, 1 - side) for pair, side in query)


@pytest.mark.parametrize("concatenate_pairs", ["random", "adjacent", "code_mixed"])
def test_roles_and_both_orders_are_independent_fair_coins(corpus: Corpus, concatenate_pairs: Any) -> None:
    """8 combinations of 4,000 examples, chi-square (99.9 % point for 7 degrees is 24.3)."""
    combinations: Counter[tuple[bool, ...]] = Counter()
    for query, key in views(corpus, 4000, concatenate_pairs=concatenate_pairs, seed=3):
        source_first = bool(query[0][1])
        combinations[source_first, query[0][0] < query[1][0], key[0][0] < key[1][0]] += 1
    assert len(combinations) == 8
    assert sum((count - 500) ** 2 / 500 for count in combinations.values()) < 24.3


def test_random_partner_is_any_other_pair_equally_often(corpus: Corpus) -> None:
    """All 28 couples of the 8 pairs of en-fr come up (chi-square, 99.9 % point for 27 degrees is 55.5)."""
    only = replace(corpus, bitext={"en-fr": corpus.bitext["en-fr"]})
    couples = Counter(frozenset(pair for pair, _ in query) for query, _ in views(only, 5600))
    assert len(couples) == 28
    assert sum((count - 200) ** 2 / 200 for count in couples.values()) < 55.5


def test_adjacent_joins_pairs_two_by_two(corpus: Corpus) -> None:
    """2k with 2k + 1 as in the released code, each couple once in an epoch; the odd last pair stays out."""
    epoch = 15 + 4 + 1
    found = list(views(corpus, epoch, concatenate_pairs="adjacent", pair_sampling_alpha=1.0))
    couples = sorted(tuple(sorted(pair for pair, _ in query)) for query, _ in found)
    starts = [*range(0, 30, 2), *range(31, 39, 2), 39]
    assert couples == [(start, start + 1) for start in starts]
    for query, key in found:
        check_mixed_up(query, key)
        assert len({side for _, side in query}) == 1


def test_code_mixed_mixes_languages_half_the_time(corpus: Corpus) -> None:
    """(c1, d2) against (d1, c2) in half of the examples, else (c1, d1) against (c2, d2)."""
    mixed = []
    for query, key in views(corpus, 3000, concatenate_pairs="code_mixed"):
        check_mixed_up(query, key)
        mixed.append(query[0][1] != query[1][1])
    assert abs(np.mean(mixed) - 0.5) < 0.03


@pytest.mark.parametrize("concatenate_pairs", ["random", "code_mixed"])
def test_a_single_pair_is_joined_to_itself(corpus: Corpus, tmp_path: Path, concatenate_pairs: Any) -> None:
    """The one case without another pair to join."""
    single = PairStore(
        write_store(tmp_path / "a", [sentence_ids(0, 0)]),
        write_store(tmp_path / "b", [sentence_ids(0, 1)]),
        "x",
        "y",
    )
    lonely = replace(corpus, bitext={"x-y": single})
    for query, key in views(lonely, 20, concatenate_pairs=concatenate_pairs):
        assert [pair for pair, _ in query + key] == [0, 0, 0, 0]
    with pytest.raises(DataError, match="bitext x-y has only 1; use concatenate_pairs=random"):
        JointDataset(lonely, StreamSettings(objectives=("xlco",), concatenate_pairs="adjacent"), 1)


def test_xlco_masks_both_views_and_nothing_special(corpus: Corpus) -> None:
    """About 13.5 % of the ordinary tokens differ from the text: 15 % chosen, less the kept."""
    masking = StreamSettings(objectives=("xlco",))
    masked = JointDataset(corpus, masking, 2000).pack(np.arange(2000))["xlco"]
    plain = JointDataset(corpus, replace(masking, xlco_masking=False), 2000).pack(np.arange(2000))["xlco"]
    for view in ("query", "key"):
        ordinary = ~np.isin(plain[view]["input_ids"], SPECIAL.all_ids)
        changed = masked[view]["input_ids"] != plain[view]["input_ids"]
        assert not changed[~ordinary].any()
        assert abs(changed[ordinary].mean() - 0.135) < 0.006
        assert set(masked[view]) == {"input_ids", "lengths"}


def test_masks_of_streams_and_views_are_independent(corpus: Corpus, tmp_path: Path) -> None:
    """Sentences of equal length everywhere: equal masks would betray a shared key."""
    same = write_store(tmp_path / "same", [[50] * 18])
    block = write_store(tmp_path / "block", [[0, *[50] * 18, 2, *[50] * 18, 2]])
    twins = replace(corpus, mono={"x": block}, bitext={"x-y": PairStore(same, same, "x", "y")})
    batch = JointDataset(twins, StreamSettings(), 300).pack(np.arange(300))
    parts = [batch["mlm"], batch["tlm"], batch["xlco"]["query"], batch["xlco"]["key"]]
    masks = [(part["input_ids"] == SPECIAL.mask).reshape(300, 39) for part in parts]
    for i, one in enumerate(masks):
        assert one.mean() > 0.1
        for other in masks[:i]:
            assert abs(np.corrcoef(one[:, 1:].ravel(), other[:, 1:].ravel())[0, 1]) < 0.05


# ---- one item, however it is asked for


@pytest.fixture(scope="module")
def dataset(corpus: Corpus) -> JointDataset:
    """All objectives, several examples of each in an item."""
    return JointDataset(corpus, StreamSettings(mlm_examples=2, tlm_examples=1, xlco_examples=3), 64)


def test_parts_have_their_numbers_of_examples(dataset: JointDataset) -> None:
    """4 items of 2, 1 and 3 examples."""
    batch = dataset.pack([0, 1, 2, 3])
    assert [len(batch["mlm"]["lengths"]), len(batch["tlm"]["lengths"])] == [8, 4]
    assert [len(batch["xlco"][view]["lengths"]) for view in ("query", "key")] == [12, 12]


def test_item_holds_the_next_examples_of_each_stream(corpus: Corpus, dataset: JointDataset) -> None:
    """Item i of r examples is items i r .. i r + r - 1 of one: no number is skipped or used twice."""
    single = JointDataset(corpus, StreamSettings(), 64 * 3)
    item = flatten(dataset[5])
    for part, per_item in (("mlm", 2), ("tlm", 1), ("xlco", 3)):
        numbers = np.arange(5 * per_item, 6 * per_item)
        expected = flatten({part: single.pack(numbers)[part]})
        assert {key: value for key, value in item.items() if key.startswith(part)} == expected


@settings(deadline=None)
@given(items=st.lists(st.integers(0, 63), min_size=1, max_size=8))
def test_getitem_and_getitems_agree_after_collation(dataset: JointDataset, items: list[int]) -> None:
    """The quick path of a DataLoader is the plain one: a row shifted by a neighbour's tokens would show."""
    collate = PretrainingCollator()
    one_by_one = collate([dataset[item] for item in items])
    assert flatten(one_by_one) == flatten(collate(dataset.__getitems__(items)))


def test_collated_batch_has_the_documented_form(dataset: JointDataset) -> None:
    """What the model is given: int64 tensors, lengths as a list, rows and labels of one size."""
    batch = PretrainingCollator()(dataset.__getitems__([0, 1]))
    assert list(batch) == ["mlm", "tlm", "xlco"]
    for part in (batch["mlm"], batch["tlm"]):
        assert set(part) == {"input_ids", "lengths", "masked_rows", "masked_lengths", "labels"}
        assert part["input_ids"].dtype == part["masked_rows"].dtype == part["labels"].dtype == torch.int64
        assert part["masked_rows"].shape == part["labels"].shape
        assert all(type(count) is int for count in part["masked_lengths"])
        assert part["masked_lengths"] == count_rows(part)
    for part in (batch["mlm"], batch["tlm"], batch["xlco"]["query"], batch["xlco"]["key"]):
        assert all(type(length) is int for length in part["lengths"])
        assert sum(part["lengths"]) == len(part["input_ids"])


def count_rows(part: dict[str, Any]) -> list[int]:
    """How many of the masked rows of a collated part lie in each of its sequences."""
    ends = np.cumsum(part["lengths"])
    rows = part["masked_rows"].numpy()
    pairs = zip(ends, part["lengths"], strict=True)
    return [int(((rows >= end - length) & (rows < end)).sum()) for end, length in pairs]


def test_masked_lengths_survive_the_joining_of_items(dataset: JointDataset) -> None:
    """Counts of several packed items stand in item order, like lengths and rows."""
    batch = PretrainingCollator()([dataset[item] for item in (7, 3, 9)])
    for part in (batch["mlm"], batch["tlm"]):
        assert len(part["masked_lengths"]) == len(part["lengths"])
        assert part["masked_lengths"] == count_rows(part)
        assert sum(part["masked_lengths"]) == len(part["labels"])


@pytest.mark.parametrize("num_workers", [1, 2])
def test_data_workers_change_nothing(dataset: JointDataset, num_workers: int) -> None:
    """A run resumed with another number of workers must see the same batches."""
    batches = load(dataset, num_workers)
    assert len(batches) == 10
    assert batches == load(dataset, 0)


def load(dataset: JointDataset, num_workers: int) -> list[dict[str, list[int]]]:
    """All batches of one epoch of a DataLoader; the last one is smaller."""
    loader = DataLoader(dataset, batch_size=7, collate_fn=PretrainingCollator(), num_workers=num_workers)
    return [flatten(batch) for batch in loader]


def test_a_dataset_sent_to_a_worker_gives_the_same_items(dataset: JointDataset) -> None:
    """Workers that are spawned, not forked, get the dataset sent, and not the corpus with it."""
    stored = ForkingPickler.dumps(dataset)
    assert flatten(ForkingPickler.loads(stored).pack([3, 4])) == flatten(dataset.pack([3, 4]))
    assert len(stored) < 20_000


def test_seed_changes_everything(corpus: Corpus) -> None:
    """Two seeds share neither order nor masks."""
    one, other = (
        flatten(JointDataset(corpus, StreamSettings(seed=seed), 8).pack(range(8))) for seed in (1, 2)
    )
    assert all(one[name] != other[name] for name in one)


@pytest.mark.parametrize("objectives", [("mlm",), ("xlco", "tlm"), ("xlco",)])
def test_parts_that_are_off_are_absent(corpus: Corpus, objectives: Any) -> None:
    """The model computes what it finds; a part that is off must not be there, nor change the others."""
    batch = JointDataset(corpus, StreamSettings(objectives=objectives), 8).pack(range(8))
    assert set(batch) == set(objectives)
    everything = JointDataset(corpus, StreamSettings(), 8).pack(range(8))
    assert flatten(batch) == flatten({name: everything[name] for name in batch})


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
    assert shares == {
        "de-en": [15, third, 7 / 20],
        "en-fr": [4, third, 7 / 20],
        "en-sw": [1, third, 6 / 20],
    }


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
        ({"pair_sampling_alpha": -0.1}, "pair_sampling_alpha must be at least 0, found -0.1"),
        ({"mask_probability": 15}, "mask_probability must be at most 1, found 15"),
        ({"concatenate_pairs": "mixup"}, "one of random, adjacent, code_mixed, none; found 'mixup'"),
    ],
)
def test_settings_refuse_what_means_nothing(options: dict[str, Any], message: str) -> None:
    """At once and by name, not in the thousandth step."""
    with pytest.raises(ValueError, match=message):
        StreamSettings(**options)


@pytest.mark.parametrize(
    ("objective", "missing", "message"),
    [
        ("mlm", "mono", "objective mlm needs monolingual text, .* give mono_files or take mlm out"),
        ("tlm", "bitext", "objective tlm needs sentence pairs, .* give bitext_files or take tlm out"),
        ("xlco", "bitext", "objective xlco needs sentence pairs"),
    ],
)
def test_objective_without_data_is_refused(
    corpus: Corpus, objective: Any, missing: str, message: str
) -> None:
    """It says which objective, and what to do."""
    lacking = replace(corpus, mono={}) if missing == "mono" else replace(corpus, bitext={})
    with pytest.raises(DataError, match=message):
        JointDataset(lacking, StreamSettings(objectives=(objective,)), 8)


def test_empty_language_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    """A language without a block cannot have a probability."""
    lacking = replace(corpus, mono={**corpus.mono, "th": write_store(tmp_path / "th", [])})
    with pytest.raises(DataError, match="no monolingual text for th"):
        JointDataset(lacking, StreamSettings(objectives=("mlm",)), 8)


@pytest.mark.parametrize("objective", ["mlm", "tlm", "xlco"])
def test_too_long_a_sequence_is_refused(corpus: Corpus, objective: Any) -> None:
    """More tokens than positions: the model would index beyond its embeddings."""
    short = replace(corpus, max_length=5)
    with pytest.raises(ValueError, match=rf"of the {objective} part has \d+ tokens, .* most 5"):
        JointDataset(short, StreamSettings(objectives=(objective,)), 64).pack(range(64))


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (lambda dataset: dataset[64], IndexError),
        (lambda dataset: dataset[-1], IndexError),
        (lambda dataset: dataset.pack([]), ValueError),
    ],
)
def test_items_outside_the_dataset_are_refused(
    dataset: JointDataset, ask: Callable[[JointDataset], Any], error: type[Exception]
) -> None:
    """A number outside would silently be an example of another run's length."""
    with pytest.raises(error):
        ask(dataset)
    assert len(dataset) == 64


def test_dataset_without_items_is_refused(corpus: Corpus) -> None:
    """A run of no steps is a mistake in the arguments."""
    with pytest.raises(ValueError, match="num_items must be at least 1; found 0"):
        JointDataset(corpus, StreamSettings(), 0)
