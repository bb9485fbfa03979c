"""Files of words and of links that people drew."""

from pathlib import Path

import pytest

from modeling_infoxlm.evaluation.alignment.gold_files import (
    GoldAlignment,
    PairFiles,
    read_gold,
    read_words,
)
from modeling_infoxlm.evaluation.alignment.scoring import AlignmentCounts, alignment_scores
from modeling_infoxlm.runs.errors import UsageError


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode("utf-8"))
    return path


def test_words_are_divided_by_blanks_only_and_a_joined_file_is_read_as_two(tmp_path: Path) -> None:
    source = write(tmp_path / "test.fr", "10\u00a0000 \u20ac\u2028 .\r\n\n")
    target = write(tmp_path / "test.en", "10,000  \tEUR .\n\n")
    sources, targets = read_words(PairFiles("fr-en", (source, target), None))
    assert sources == [["10\u00a0000", "\u20ac\u2028", "."], []]
    assert targets == [["10,000", "EUR", "."], []]
    joined = write(tmp_path / "pairs.txt", "das Haus ||| the house\n ||| nothing\nnichts |||\n")
    assert read_words(PairFiles("de-en", (joined,), None)) == (
        [["das", "Haus"], [], ["nichts"]],
        [["the", "house"], ["nothing"], []],
    )


def test_gold_of_a_line_for_each_sentence(tmp_path: Path) -> None:
    lengths = [(2, 3), (1, 1), (1, 1)]
    expected = [
        GoldAlignment(frozenset({(0, 0), (1, 1)}), frozenset({(0, 0), (1, 1), (1, 2)})),
        GoldAlignment(frozenset(), frozenset()),
        GoldAlignment(frozenset(), frozenset({(0, 0)})),
    ]
    for text, base in (
        ("0-0 1p2 1-1\n\n0p0\n", None),
        ("0\t0-0 1p2 1-1\n1\t\n2\t0p0\n", None),  # numbered
        ("1-1 2p3 2-2\n\n1p1\n", 1),
        ("1-1 2p3 2-2\n\n1p1\n", None),  # counted from one, which is found out
    ):
        assert read_gold(write(tmp_path / "gold", text), lengths, index_base=base) == expected


def test_gold_of_a_line_for_each_link(tmp_path: Path) -> None:
    path = write(tmp_path / "gold", "1 1 1 S\n0001 2 3 P\n1 2 2\n\n3 1 1 P\n")
    assert read_gold(path, [(2, 3), (1, 1), (1, 1)]) == [
        GoldAlignment(frozenset({(0, 0), (1, 1)}), frozenset({(0, 0), (1, 1), (1, 2)})),
        None,  # not annotated
        GoldAlignment(frozenset(), frozenset({(0, 0)})),
    ]
    from_zero = write(tmp_path / "from-zero", "1 0 0\n")
    (gold,) = read_gold(from_zero, [(1, 1)], index_base=0)
    assert gold is not None and gold.sure == {(0, 0)}


ONE_LINK = GoldAlignment(frozenset({(0, 0)}), frozenset({(0, 0)}))


@pytest.mark.parametrize(
    "numbers",
    [(1, 2, 3), (3, 1, 2), (2, 0, 1), (1, 2, 4), (0, 2, 3), (10, 12, 11)],
)
def test_sentences_are_matched_by_their_numbers_or_by_their_order(
    tmp_path: Path, numbers: tuple[int, ...]
) -> None:
    """A sentence of its own length each, so that a link tells whose it is."""
    in_order = numbers if min(numbers) > 1 else sorted(numbers)
    lines = [f"{number} {in_order.index(number) + 1} 1 S\n" for number in numbers]
    gold = read_gold(write(tmp_path / "gold", "".join(lines)), [(1, 1), (2, 1), (3, 1)])
    assert [one and one.sure for one in gold] == [{(0, 0)}, {(1, 0)}, {(2, 0)}]


def test_links_that_cannot_be_found_count_as_missed(tmp_path: Path) -> None:
    """As in XLM-Align's aligner, whose sets have a link to -99 and a pair without text."""
    path = write(tmp_path / "gold", "0 1 1 S\n0 2 -99 P\n0 -99 1 S\n2 1 1 S\n4 1 2 P\n")
    gold = read_gold(path, [(2, 1), (1, 0), (2, 2)])
    assert gold == [
        GoldAlignment(frozenset({(0, 0), (-100, 0)}), frozenset({(0, 0), (1, -100), (-100, 0)})),
        ONE_LINK,
        GoldAlignment(frozenset(), frozenset({(0, 1)})),
    ]
    counts = alignment_scores([(0, 0)], gold[0].sure, gold[0].possible)
    assert counts == AlignmentCounts(predicted=1, sure=2, in_sure=1, in_possible=1)
    for numbers in ("13", "57"):  # a pair without text needs no gold
        text = "".join(f"{number} 1 1 S\n" for number in numbers)
        found = read_gold(write(tmp_path / "gold", text), [(1, 1), (0, 1), (1, 1)])
        assert found == [ONE_LINK, None, ONE_LINK]


@pytest.mark.parametrize(
    ("text", "base", "message"),
    [
        ("0-0\n0-3\n", None, "gold line 2: target word 3 does not exist; the sentence has 3, counted from 0"),
        ("0-0\n2-0\n", None, "gold line 2: source word 2 does not exist; the sentence has 2"),
        ("1-1\n0-1\n", 1, "gold line 2: source word 0 does not exist; the sentence has 2, counted from 1"),
        ("3 1 1 S\n", None, "gold: sentence 3 does not exist; the texts have 2. Nor can the 1 sentences of"),
        ("1 0 1 S\n2 1 1 S\n", None, "gold line 1: source word 0 does not exist; .* counted from 1"),
        ("\n1-1\n", None, "no link says whether words count from 0 or from 1; give --gold_index_base"),
        ("1 1 1 S\n2 1 1 X\n", None, "gold line 2: expected `sentence source target`, then S, P or nothing"),
        ("0-0\n0-0 1:1\n", None, "gold line 2: expected links such as 1-2 .* or 1p2 .*, found '1:1'"),
        ("0-0\n", None, "gold has 1 lines of links for 2 sentences"),
    ],
)  # fmt: skip
def test_bad_gold_is_told_with_its_line(tmp_path: Path, text: str, base: int | None, message: str) -> None:
    path = write(tmp_path / "gold", text)
    with pytest.raises(UsageError, match=message):
        read_gold(path, [(1, 2), (2, 3)], index_base=base)
