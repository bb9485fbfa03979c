"""Which sentences are held out: chosen by a hash of their text, so in every pair and every file at once.

A pair is held out if its English side (or whichever language is asked for) is selected. All sentences of
held-out pairs, in all languages, together are the held-out sentences; nothing that has one of them on a side
is trained on. A sentence is one of them if its text is, but for case, spaces, compatibility and invisible
characters, or if the tokenizer gives it the same ids: then it is the same to the model, whatever the text
says.

Shape letters: n pairs.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Soft hyphens, joiners, marks of direction, variation selectors: text of the web is full of them.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]"
)


@dataclass(frozen=True)
class HeldoutRule:
    """Selects sentences by content.

    Attributes:
        fraction: Share of the sentences that is selected, 0..1.
        language: The side that decides; in pairs without it the source side does.
        seed: Another seed selects other sentences.
    """

    fraction: float
    language: str
    seed: int

    def content_hashes(self, texts: Sequence[str]) -> np.ndarray:
        """64 bits for each text, equal but for case, spaces, compatibility and invisible characters."""
        salt = self.seed.to_bytes(16, "little")
        digests = (
            hashlib.blake2b(
                " ".join(_INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).casefold().split()).encode(),
                digest_size=8,
                salt=salt,
            ).digest()
            for text in texts
        )
        return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)

    def selects(self, content_hashes: np.ndarray) -> np.ndarray:
        """Which of the sentences with these hashes are selected, bool."""
        return content_hashes < np.uint64(min(self.fraction * 2.0**64, 2.0**64 - 2048))


@dataclass(frozen=True, order=True)
class Candidate:
    """A held-out pair to evaluate on; those of smallest key, the hash of the deciding side, are taken.

    No other pair of the evaluation may have one of the hashes `sides`, of text and of ids of each side.
    """

    key: int
    sides: tuple[int, int, int, int]
    source: str
    target: str


class HeldoutScan:
    """What the pairs of one source contribute, `candidates` to evaluate on among it."""

    def __init__(self, rule: HeldoutRule, languages: Sequence[str], limit: int) -> None:
        self._rule, self._limit = rule, limit
        self._side = languages.index(rule.language) if rule.language in languages else 0
        self._sentences: list[np.ndarray] = []
        self.candidates: list[Candidate] = []

    def add(
        self, pairs: Sequence[Sequence[str]], contents: np.ndarray, ids: np.ndarray, usable: np.ndarray
    ) -> None:
        """Look at n pairs of texts: `contents` and `ids` are hashes of both sides, (n, 2).

        Those that are `usable`, bool (n,), could be evaluated on.
        """
        deciding = contents[:, self._side]
        selected = self._rule.selects(deciding)
        self._sentences.append(np.concatenate([contents[selected], ids[selected]], axis=None))
        for number in np.flatnonzero(selected & usable).tolist():
            sides = (*contents[number].tolist(), *ids[number].tolist())
            self.candidates.append(Candidate(int(deciding[number]), sides, *pairs[number]))
        if len(self.candidates) > 2 * self._limit:
            self._shorten()

    def _shorten(self) -> None:
        first = {candidate.key: candidate for candidate in reversed(self.candidates)}
        self.candidates = sorted(first.values())[: self._limit]

    def sentences(self) -> np.ndarray:
        """Hashes of all sentences of selected pairs, by text and by ids, sorted, uint64."""
        self._shorten()
        return np.unique(np.concatenate([np.empty(0, np.uint64), *self._sentences]))


def choose_distinct(candidates: Sequence[Candidate], most: int) -> list[Candidate]:
    """The first by hash; no sentence twice on a side, or retrieval would have two right answers."""
    seen, chosen = set[tuple[int, int]](), list[Candidate]()
    for candidate in sorted(candidates):
        sides = set(enumerate(candidate.sides))
        if len(chosen) < most and not seen & sides:
            seen |= sides
            chosen.append(candidate)
    return chosen


def is_among(hashes: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which of the hashes lie in the sorted array `known`, bool of their shape."""
    if not len(known):
        return np.zeros(hashes.shape, dtype=bool)
    return known[np.searchsorted(known, hashes).clip(max=len(known) - 1)] == hashes
