"""Token files of the released code: what they hold reaches training unchanged, mended where it was odd."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_fairseq import VOCAB, save_masked_tokenizer, write_items
from transformers import AutoTokenizer

from modeling_infoxlm.data.batches import JointDataset, StreamSettings
from modeling_infoxlm.data.plan import tokenizer_sha256
from modeling_infoxlm.data.shards import Corpus, PairStore, TokenStore
from modeling_infoxlm.fairseq.corpus import (
    ConvertDataArguments,
    convert_fairseq_data,
    convert_fairseq_data_command,
)
from modeling_infoxlm.process import USAGE, UsageError, run_main

BOS, PAD, EOS, MASK = 0, 1, 2, VOCAB - 1
SENTENCES = [[4, 5, 6], [7], [8, 9], [10, 11, 12, 13], [14, 15]]
TRANSLATIONS = [[44, 45, 46], [47], [48, 49], [50, 51, 52, 53], [54, 55]]


def block(*sentences: list[int], doubled: bool = False) -> list[int]:
    """`<s> a </s> b </s>`, or as the released tools write it, `<s> <s> a </s> <s> b </s>`."""
    start = [BOS] if doubled else []
    return [BOS, *(token for ids in sentences for token in (*start, *ids, EOS))]


def tlm_items(*, doubled: bool = False, both_orders: bool = False) -> list[list[int]]:
    ahead = [block(a, b, doubled=doubled) for a, b in zip(SENTENCES, TRANSLATIONS, strict=True)]
    again = [block(b, a, doubled=doubled) for a, b in zip(SENTENCES, TRANSLATIONS, strict=True)]
    return [*ahead, *(again if both_orders else [])]


def xlco_items(*, doubled: bool = False) -> list[list[int]]:
    sides = zip(SENTENCES, TRANSLATIONS, strict=True)
    return [block(side, doubled=doubled) for pair in sides for side in pair]


def arguments(tmp_path: Path, **options: Any) -> ConvertDataArguments:
    tokenizer = tmp_path.parent / f"{tmp_path.name}-tokenizer"
    if not tokenizer.exists():
        save_masked_tokenizer(tokenizer)
    places = {"source_dir": tmp_path / "data", "output_dir": tmp_path / "corpus", "tokenizer_name": tokenizer}
    return ConvertDataArguments(**{**{name: str(place) for name, place in places.items()}, **options})


def convert(tmp_path: Path, **options: Any) -> tuple[Corpus, str]:
    lines = convert_fairseq_data(arguments(tmp_path, **options))
    return Corpus.open(tmp_path / "corpus"), "\n".join(lines)


def refuse(tmp_path: Path, **options: Any) -> str:
    """The one line of a refusal that leaves nothing behind."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError) as caught:
        convert_fairseq_data(arguments(tmp_path, **options))
    assert sorted(tmp_path.rglob("*")) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows(store: TokenStore) -> list[list[int]]:
    return [store[i].tolist() for i in range(len(store))]


def sides(pairs: PairStore) -> tuple[list[list[int]], list[list[int]]]:
    return rows(pairs.source), rows(pairs.target)


# --- what is kept -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "int64", "uint32"])
def test_blocks_come_through_unchanged(tmp_path: Path, dtype: str) -> None:
    items = [block(*SENTENCES[:3]), block(SENTENCES[3]), block(*SENTENCES[3:])]
    write_items(tmp_path / "data/mlm/train.0", items, dtype)
    corpus, printed = convert(tmp_path, mono=["sw=mlm/train.0"])
    assert rows(corpus.mono["sw"]) == items
    assert "3 blocks, 6 sentences" in printed and "mended" not in printed and "dropped" not in printed


def test_the_doubled_start_is_mended_and_counted(tmp_path: Path) -> None:
    odd = [block(*SENTENCES[:3], doubled=True), block(SENTENCES[3])]
    write_items(tmp_path / "data/train.0", odd)
    corpus, printed = convert(tmp_path, mono=["sw=train.0"])
    assert rows(corpus.mono["sw"]) == [block(*SENTENCES[:3]), block(SENTENCES[3])]
    assert "mended: doubled bos 1\n" in printed + "\n"


def test_cut_blocks_are_closed_and_empty_lines_go(tmp_path: Path) -> None:
    cut = block(SENTENCES[0], SENTENCES[3], doubled=True)[:-2]
    write_items(tmp_path / "data/train.0", [cut, [BOS, BOS, EOS, BOS, 4, EOS], [BOS, BOS, EOS]])
    corpus, printed = convert(tmp_path, mono=["sw=train.0"])
    assert rows(corpus.mono["sw"]) == [block(SENTENCES[0], SENTENCES[3][:-1]), block([4])]
    assert "mended: doubled bos 3, unclosed 1, empty sentences 2" in printed
    assert "dropped: empty 1" in printed


@pytest.mark.parametrize("doubled", [False, True])
@pytest.mark.parametrize("items", [tlm_items, xlco_items])
def test_pairs_come_through_as_bare_sentences(
    tmp_path: Path, items: Callable[..., list[list[int]]], doubled: bool
) -> None:
    write_items(tmp_path / "data/train.0", items(doubled=doubled))
    corpus, printed = convert(tmp_path, bitext=["en-sw=train.0"])
    assert sides(corpus.bitext["en-sw"]) == (SENTENCES, TRANSLATIONS)
    assert f"5 {'tlm' if items is tlm_items else 'xlco'} pairs" in printed
    assert ("mended: doubled bos" in printed) is doubled


@pytest.mark.parametrize("doubled", [False, True])
def test_of_pairs_in_both_orders_the_first_is_kept(tmp_path: Path, doubled: bool) -> None:
    """The released tool writes all pairs, then all with sides swapped, and so with languages swapped."""
    write_items(tmp_path / "data/train.0", tlm_items(doubled=doubled, both_orders=True))
    corpus, printed = convert(tmp_path, bitext=["en-sw=train.0"])
    assert sides(corpus.bitext["en-sw"]) == (SENTENCES, TRANSLATIONS)
    assert "dropped: other order 5" in printed


def test_a_second_half_that_differs_is_kept(tmp_path: Path) -> None:
    items = tlm_items(both_orders=True)
    items[-1] = block([20], [21])
    write_items(tmp_path / "data/train.0", items)
    corpus, _ = convert(tmp_path, bitext=["en-sw=train.0"])
    assert len(corpus.bitext["en-sw"]) == 10


def test_pairs_that_are_none_are_counted_by_reason(tmp_path: Path) -> None:
    long = [4] * 255  # longest side: 254
    odd = [block([4], []), block([4], [5], [6]), block([4, MASK], [5]), block([PAD], [5]), block(long, [5])]
    write_items(tmp_path / "data/train.0", [*odd, *tlm_items()])
    corpus, printed = convert(tmp_path, bitext=["en-sw=train.0"], kind="tlm")
    assert sides(corpus.bitext["en-sw"]) == (SENTENCES, TRANSLATIONS)
    assert "dropped: empty 1, not a pair 1, special token 2, too long 1" in printed


def test_xlco_pairs_with_a_bad_side_go_whole(tmp_path: Path) -> None:
    odd = [block([4]), block([]), block([4], [5]), block([6])]
    write_items(tmp_path / "data/train.0", [*odd, *xlco_items()])
    corpus, printed = convert(tmp_path, bitext=["en-sw=train.0"], kind="xlco")
    assert sides(corpus.bitext["en-sw"]) == (SENTENCES, TRANSLATIONS)
    assert "dropped: empty 1, not a pair 1" in printed


def test_blocks_longer_than_asked_for_are_dropped(tmp_path: Path) -> None:
    write_items(tmp_path / "data/train.0", [block([4] * 6), block([4] * 5)])
    corpus, printed = convert(tmp_path, mono=["sw=train.0"], max_seq_length=7)
    assert rows(corpus.mono["sw"]) == [block([4] * 5)]
    assert corpus.max_length == 7 and "dropped: too long 1" in printed


def test_more_items_than_are_read_at_a_time(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    count = 9001
    sentences = [draw.integers(4, MASK, draw.integers(1, 6)).tolist() for _ in range(2 * count)]
    write_items(tmp_path / "data/xlco", [block(ids, doubled=i % 3 == 0) for i, ids in enumerate(sentences)])
    write_items(tmp_path / "data/mlm", [block(ids) for ids in sentences])
    corpus, printed = convert(tmp_path, bitext=["en-sw=xlco"], mono=["sw=mlm"])
    assert sides(corpus.bitext["en-sw"]) == (sentences[::2], sentences[1::2])
    assert rows(corpus.mono["sw"]) == [block(ids) for ids in sentences]
    assert f"doubled bos {len(sentences[::3]):,}" in printed


# --- the corpus ---------------------------------------------------------------------------------------------


def test_the_corpus_is_one_that_training_reads(tmp_path: Path) -> None:
    write_items(tmp_path / "data/mlm/train.0", [block(*SENTENCES), block(*TRANSLATIONS)])
    write_items(tmp_path / "data/tlm/train.0", tlm_items(doubled=True, both_orders=True))
    corpus, _ = convert(tmp_path, mono=["sw=mlm/train.0"], bitext=["en-sw=tlm/train.0.bin"])
    settings = StreamSettings(objectives=("mlm", "tlm", "xlco"))
    batch = JointDataset(corpus, settings, 4).pack(range(4))
    assert sorted(batch) == ["mlm", "tlm", "xlco"]
    assert corpus.max_length == 512 and corpus.special.mask == MASK
    tokenizer = AutoTokenizer.from_pretrained(arguments(tmp_path).tokenizer_name)
    assert corpus.manifest["tokenizer"]["sha256"] == tokenizer_sha256(tokenizer)


def test_the_manifest_says_what_it_was_made_of(tmp_path: Path) -> None:
    write_items(tmp_path / "data/a/train.0", tlm_items())
    write_items(tmp_path / "data/b/train.0", tlm_items(doubled=True)[:3])
    corpus, _ = convert(tmp_path, bitext=["en-sw=a/train.0", "en-sw=b/train.0"])
    assert sides(corpus.bitext["en-sw"])[0] == SENTENCES + SENTENCES[:3]
    entry = corpus.manifest["bitext"]["en-sw"]
    assert {name: entry[name] for name in ("num_examples", "num_sentences", "num_tokens", "max_length")} == {
        "num_examples": 8,
        "num_sentences": 16,
        "num_tokens": 2 * 12 + 2 * 6,
        "max_length": 8,
    }
    assert len(set(entry["shards"])) == 2
    sources = corpus.manifest["sources"]
    assert [source["languages"] for source in sources] == [["en", "sw"]] * 2
    assert [Path(file["path"]).suffix for file in sources[0]["files"]] == [".bin", ".idx"]


# --- damage -------------------------------------------------------------------------------------------------


def _index(change: Callable[[bytearray], bytearray | bytes]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "train.0.idx"
        path.write_bytes(bytes(change(bytearray(path.read_bytes()))))

    return apply


def _put(offset: int, form: str, value: int) -> Callable[[Path], None]:
    def change(content: bytearray) -> bytearray:
        struct.pack_into(form, content, offset, value)
        return content

    return _index(change)


def _data(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "train.0.bin"
        path.write_bytes(change(path.read_bytes()))

    return apply


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "another file": (_index(lambda content: b"PK\x03\x04" + content), "must begin with MMIDIDX"),
    "an empty index": (_index(lambda content: b""), "must begin with MMIDIDX"),
    "a cut header": (_index(lambda content: content[:20]), "must begin with MMIDIDX"),
    "the older layout": (_index(lambda content: b"TNTIDX\x00\x00" + content), "--dataset_impl mmap"),
    "another version": (_put(9, "<Q", 2), "version 2 of the layout; expected 1"),
    "fractions": (_put(17, "<B", 7), "says type 7 of ids"),
    "no items": (_put(18, "<Q", 0), "lists no items"),
    "too many items": (_put(18, "<Q", 1 << 62), "it is cut short"),
    "a cut index": (_index(lambda content: content[:-8]), "it is cut short"),
    "a negative length": (_put(26, "<i", -3), "item 0 has the length -3"),
    "a length of none": (_put(30, "<i", 0), "item 1 has the length 0"),
    "a place outside": (_put(26 + 4 * 5 + 8, "<q", 1 << 40), "item 1 does not lie behind the one before"),
    "a negative place": (_put(26 + 4 * 5, "<q", -8), "item 0 does not lie behind the one before"),
    "cut ids": (_data(lambda content: content[:-4]), "its index says"),
    "too many ids": (_data(lambda content: content + content), "its index says"),
    "another vocabulary": (
        _data(lambda content: content[:8] + struct.pack("<i", VOCAB) + content[12:]),
        "item 0 holds the id 60, but the tokenizer has 60 tokens",
    ),
    "a negative id": (_data(lambda content: content[:-4] + struct.pack("<i", -1)), "item 4 holds the id -1"),
    "no start": (_data(lambda content: struct.pack("<i", 9) + content[4:]), "item 0 begins with the id 9"),
    "no ids at all": (lambda folder: (folder / "train.0.bin").unlink(), "train.0.bin is not a file"),
    "no index at all": (lambda folder: (folder / "train.0.idx").unlink(), "train.0.idx is not a file"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("flag", ["mono=sw", "bitext=en-sw"])
def test_each_damage_is_one_clear_line(tmp_path: Path, damage: str, flag: str) -> None:
    change, expected = DAMAGES[damage]
    write_items(tmp_path / "data/train.0", tlm_items())
    change(tmp_path / "data")
    group, name = flag.split("=")
    assert expected in refuse(tmp_path, **{group: [f"{name}=train.0"]})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "nothing to convert"),
        ({"mono": ["../../x=train.0"]}, "'../../x' is not a language code"),
        ({"mono": ["sw/..=train.0"]}, "is not a language code"),
        ({"bitext": ["en-../sw=train.0"]}, "is not a language pair"),
        ({"bitext": ["en=train.0"]}, "is not a language pair"),
        ({"mono": ["sw=../train.0"]}, "lies outside"),
        ({"mono": ["sw=/etc/train.0"]}, "lies outside"),
        ({"mono": ["sw=a/../../data2/train.0"]}, "lies outside"),
        ({"mono": ["sw=."]}, "lies outside"),
        ({"mono": ["train.0"]}, "does not say language and file"),
        ({"mono": ["sw=train.0", "sw=./train.0.idx"]}, "is given twice"),
        ({"mono": ["sw=train.0"], "max_seq_length": 3}, "max_length is 3"),
        ({"mono": ["sw=train.0"], "max_seq_length": 5}, "nothing can be used; dropped: too long 5"),
        ({"mono": ["sw=train.0"], "tokenizer_name": "no/such/folder"}, "cannot be used"),
    ],
)
def test_names_and_paths_stay_in_their_folder(tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    items = [block([4] * 9) for _ in range(5)]
    write_items(tmp_path / "data/train.0", items)
    write_items(tmp_path / "train.0", items)
    write_items(tmp_path / "data2/train.0", items)
    assert expected in refuse(tmp_path, **options)


def test_the_same_content_twice_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_items(tmp_path / "data" / name / "train.0", [block(*SENTENCES)])
    assert "the content of an earlier file" in refuse(tmp_path, mono=["sw=a/train.0", "sw=b/train.0"])


def test_an_xlco_file_of_odd_length_is_refused(tmp_path: Path) -> None:
    write_items(tmp_path / "data/train.0", xlco_items()[:-1])
    assert "has 9 items" in refuse(tmp_path, bitext=["en-sw=train.0"])


def test_a_file_that_is_no_bitext_is_refused(tmp_path: Path) -> None:
    write_items(tmp_path / "data/train.0", [block(*SENTENCES), block(*SENTENCES[:3]), block([4])])
    message = refuse(tmp_path, bitext=["en-sw=train.0"])
    assert "neither pairs" in message and "1 in 33%, 3 in 33%, 5 in 33%" in message


def test_damage_in_the_second_file_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    write_items(tmp_path / "data/a", [block(*SENTENCES)])
    write_items(tmp_path / "data/b", [[9, 9, EOS]])
    refuse(tmp_path, mono=["sw=a", "ur=b"])


def test_only_a_corpus_is_replaced(tmp_path: Path) -> None:
    write_items(tmp_path / "data/a", [block(*SENTENCES)])
    write_items(tmp_path / "data/b", [block(*TRANSLATIONS)])
    convert(tmp_path, mono=["sw=a"])
    assert "is not empty" in refuse(tmp_path, mono=["sw=b"])
    corpus, _ = convert(tmp_path, mono=["sw=b"], overwrite_output_dir=True)
    assert rows(corpus.mono["sw"]) == [block(*TRANSLATIONS)]
    assert sum(path.suffix == ".tokens" for path in (tmp_path / "corpus/mono/sw").iterdir()) == 1
    (tmp_path / "corpus/manifest.json").rename(tmp_path / "corpus/other.json")
    assert "did not write it" in refuse(tmp_path, mono=["sw=b"], overwrite_output_dir=True)


# --- the command --------------------------------------------------------------------------------------------


def test_the_command_takes_the_folder_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_items(tmp_path / "data/mlm/train.0", [block(*SENTENCES)])
    write_items(tmp_path / "data/tlm/train.0", tlm_items())
    wanted = arguments(tmp_path)
    flags = ["--tokenizer_name", wanted.tokenizer_name, "--output_dir", wanted.output_dir]
    argv = [wanted.source_dir, *flags, "--mono", "sw=mlm/train.0", "--bitext", "en-sw=tlm/train.0"]
    assert run_main(convert_fairseq_data_command, argv) == 0
    assert "5 tlm pairs, 10 sentences" in capsys.readouterr().out
    assert json.loads((tmp_path / "corpus/manifest.json").read_text())["format_version"] == 2


def test_the_command_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["data"], ["data", "--output_dir", str(tmp_path / "corpus")]):
        assert run_main(convert_fairseq_data_command, argv) == USAGE
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "corpus").exists()
