"""Sentences of words, and the links between them that people drew.

A line is a sentence, its words are divided by blanks (not by U+00A0: gold files count words as GIZA does).
"""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from modeling_infoxlm.data.readers import decode, raw_lines
from modeling_infoxlm.evaluation.alignment.scoring import Link
from modeling_infoxlm.runs.errors import UsageError

logger = logging.getLogger(__name__)

_LINK = re.compile(r"([0-9]+)([-p])([0-9]+)")
_LINK_LINE = re.compile(r"\s*([0-9]+)\s+(-?[0-9]+)\s+(-?[0-9]+)(?:\s+([SP]))?\s*")
_GOLD_NAMES = ("alignv2.txt", "gold.txt")


@dataclass(frozen=True)
class GoldAlignment:
    """Links of one sentence that people drew, from 0; the sure ones are possible too."""

    sure: frozenset[Link]
    possible: frozenset[Link]


@dataclass(frozen=True)
class PairFiles:
    """Where the sentences of a language pair and their gold are."""

    name: str  # such as `de-en`
    # two files, line i of one translates line i of the other; or one of `source ||| target`
    texts: tuple[Path, ...]
    gold: Path | None  # none: align only


def find_pairs(folder: Path) -> list[PairFiles]:
    """The pairs of a folder in the layout of XLM-Align's test sets; a `UsageError` if there is none."""
    found = []
    for inner in sorted(path for path in folder.glob("*-*") if path.is_dir()):
        texts = tuple(inner / f"test.{language}" for language in inner.name.split("-", 1))
        gold = next((inner / name for name in _GOLD_NAMES if (inner / name).is_file()), None)
        if gold is None:
            raise UsageError(f"{inner} holds no gold; expected {' or '.join(_GOLD_NAMES)} in it.")
        found.append(PairFiles(inner.name, texts, gold))
    if not found:
        raise UsageError(f"{folder} holds no folder of a pair, such as de-en.")
    return found


def read_words(files: PairFiles) -> tuple[list[list[str]], list[list[str]]]:
    """Words of the sentences of a pair of languages; a `UsageError` if the two sides differ in length."""
    joined = len(files.texts) == 1
    sources, targets = _read_joined(files.texts[0]) if joined else map(_read_lines, files.texts)
    if len(sources) != len(targets):
        raise UsageError(
            f"{files.texts[0]} has {len(sources):,} lines but {files.texts[-1]} has {len(targets):,}; "
            "line i of each file must be a translation."
        )
    return [_words(line) for line in sources], [_words(line) for line in targets]


def read_gold(
    path: Path, lengths: Sequence[tuple[int, int]], *, index_base: int | None = None
) -> list[GoldAlignment | None]:
    """Read a gold file of either usual form, told apart by its first line.

    * A line for each sentence: `1-1 2-3 4p5`, where `-` is sure and `p` possible; a number and a tab may come
      first.
    * A line for each link: `sentence source target`, then `S` (or nothing) or `P`. Where the gold has as many
      sentences as the texts, these come in order of first appearance whatever their numbers, as in the
      aligner of XLM-Align; see `_sentence_of`.

    A link that cannot be found, to a word below 0 or in a pair without text, counts as it does there.

    Args:
        path: The file.
        lengths: Words of source and target of each sentence, to check the links against.
        index_base: Number of the first word, 0 or 1; None is 1 in the second form, and what the links show in
            the first.

    Returns:
        The gold of each sentence; None where the second form has none (it was not annotated).

    Raises:
        UsageError: If a line cannot be read, a link points outside of its sentence, or it cannot be told from
            where sentences or words are counted.
    """
    lines = _read_lines(path)
    first = next((line for line in lines if line.strip()), "")
    if _LINK_LINE.match(first):
        links = list(_links_of_lines(path, lines))
        places = _sentence_of([link.sentence for link in links], lengths, path)
        base = 1 if index_base is None else index_base
    else:
        links = list(_links_of_sentences(path, lines, len(lengths)))
        places = {i: i for i in range(len(lengths))}
        base = _first_word(links, lengths, path) if index_base is None else index_base
    is_whole = len(places) == len(lengths)
    gold: dict[int, tuple[set[Link], set[Link]]] = {place: (set(), set()) for place in places.values()}
    for link in links:
        place = places[link.sentence]
        if not (is_whole and 0 in lengths[place]):
            _check_link(link, lengths[place], base, path)
        shifted = (link.source - base, link.target - base)
        for kind in gold[place] if link.is_sure else gold[place][1:]:
            kind.add(shifted)
    return [GoldAlignment(*map(frozenset, gold[i])) if i in gold else None for i in range(len(lengths))]


class _GoldLink(NamedTuple):
    """A link as it stands in a file, and the number of its line."""

    line: int
    sentence: int
    source: int
    target: int
    is_sure: bool


def _links_of_sentences(path: Path, lines: Sequence[str], num_sentences: int) -> Iterator[_GoldLink]:
    if len(lines) != num_sentences:
        raise UsageError(
            f"{path} has {len(lines):,} lines of links for {num_sentences:,} sentences; "
            "a sentence without any needs an empty line."
        )
    for number, line in enumerate(lines, 1):
        for text in line.rpartition("\t")[2].split():
            match = _LINK.fullmatch(text)
            if not match:
                raise UsageError(
                    f"{path} line {number:,}: expected links such as 1-2 (sure) or 1p2 (possible), "
                    f"found {text!r}."
                )
            yield _GoldLink(number, number - 1, int(match[1]), int(match[3]), match[2] == "-")


def _links_of_lines(path: Path, lines: Sequence[str]) -> Iterator[_GoldLink]:
    for number, line in enumerate(lines, 1):
        match = _LINK_LINE.fullmatch(line)
        if match:
            yield _GoldLink(number, int(match[1]), int(match[2]), int(match[3]), match[4] != "P")
        elif line.strip():
            raise UsageError(
                f"{path} line {number:,}: expected `sentence source target`, then S, P or nothing, "
                f"found {line.strip()!r}."
            )


def _first_word(links: Sequence[_GoldLink], lengths: Sequence[tuple[int, int]], path: Path) -> int:
    """Number of the first word in links that do not say it: read off by one, most of them would still fit."""
    sides = [((link.source, link.target), lengths[link.sentence]) for link in links]
    if not sides or any(0 in link for link, _ in sides):
        return 0
    if any(index == length for side in sides for index, length in zip(*side, strict=True)):
        logger.warning("%s: words count from 1, as no link is to word 0 and some to the last one.", path)
        return 1
    raise UsageError(
        f"{path}: no link says whether words count from 0 or from 1; give --gold_index_base 0, or 1."
    )


def _sentence_of(sentences: Sequence[int], lengths: Sequence[tuple[int, int]], path: Path) -> dict[int, int]:
    """The line of the texts, from 0, that each number of a sentence in the gold stands for.

    Numbers from 1, or from 0 where there is a 0, are those of the lines; some may be left out. Others can
    only be known by their order, if there is one for each pair, or for each pair with text.
    """
    numbers = list(dict.fromkeys(sentences))
    begin = int(0 not in numbers)
    if max(numbers) < len(lengths) + begin:
        if len(numbers) < len(lengths):
            message = "%s has gold for %s of %s sentences, by their numbers, counted from %d."
            logger.warning(message, path, f"{len(numbers):,}", f"{len(lengths):,}", begin)
        return {number: number - begin for number in numbers}
    with_text = [place for place, pair in enumerate(lengths) if min(pair)]
    places = with_text if len(numbers) == len(with_text) else range(len(lengths))
    if len(numbers) != len(places):
        raise UsageError(
            f"{path}: sentence {max(numbers)} does not exist; the texts have {len(lengths):,}. Nor can the "
            f"{len(numbers):,} sentences of the gold be matched by their order; are these its texts?"
        )
    logger.warning("%s: the numbers of its sentences are no line numbers; matched by their order.", path)
    return dict(zip(numbers, places, strict=True))


def _check_link(link: _GoldLink, lengths: tuple[int, int], base: int, path: Path) -> None:
    """Refuse a link past the end of a sentence, a sign of other texts; one below 0 only means "nowhere"."""
    for side, index, length in zip(("source", "target"), (link.source, link.target), lengths, strict=True):
        if not base <= index < length + base and index >= 0:
            raise UsageError(
                f"{path} line {link.line:,}: {side} word {index} does not exist; the sentence has {length}, "
                f"counted from {base}. --gold_index_base says from where; or are source and target swapped?"
            )


def _read_joined(path: Path) -> tuple[list[str], list[str]]:
    """Both sides of a file of `source ||| target`."""
    pairs = [f" {line} ".split(" ||| ") for line in _read_lines(path)]
    for number, sides in enumerate(pairs, 1):
        if len(sides) != 2:
            raise UsageError(
                f"{path} line {number:,}: expected `source ||| target`, found {len(sides)} parts."
            )
    return [source for source, _ in pairs], [target for _, target in pairs]


def _read_lines(path: Path) -> list[str]:
    """Lines of a text file; only LF and CRLF end one, so U+2028 and U+0085 stay inside their sentence."""
    lines = []
    for number, line in raw_lines(path):
        try:
            lines.append(decode(line))
        except ValueError as error:
            raise UsageError(f"{path} line {number:,}: {error}.") from error
    return lines


def _words(line: str) -> list[str]:
    return [word for word in re.split("[ \t]", line) if word]
