"""Which sentences are held out: chosen by a hash of their content, so in every pair and every file at once.

A pair is held out if its English side (or whichever language is asked for) is selected. All sentences of
held-out pairs, in all languages, together are the held-out sentences; nothing that has one of them on a side
is trained on.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


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

    def content_hash(self, text: str) -> int:
        """64 bits that are equal for texts that differ only in case or in compatibility characters."""
        normalised = unicodedata.normalize("NFKC", text).casefold().encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(normalised, digest_size=8, salt=self.seed.to_bytes(16, "little")).digest()
        return int.from_bytes(digest, "little")

    def selects(self, content_hash: int) -> bool:
        """Whether the sentence with this hash is selected."""
        return content_hash < self.fraction * 2.0**64

    def deciding_side(self, languages: tuple[str, str]) -> int:
        """0 if the source side of such a pair decides, 1 if the target side does."""
        return languages.index(self.language) if self.language in languages else 0


@dataclass(frozen=True)
class HeldoutScan:
    """What one bitext source contributes.

    Attributes:
        sentences: Hashes of both sides of every selected pair, sorted, (n,) uint64.
        candidates: (hash of the deciding side, source, target) of pairs to evaluate on, by rising hash.
    """

    sentences: np.ndarray
    candidates: list[tuple[int, str, str]]

    def save(self, path: Path) -> None:
        """Write it to one `.npz` file without pickle."""
        text = json.dumps(self.candidates).encode()
        with open(path, "wb") as file:
            np.savez(file, sentences=self.sentences, candidates=np.frombuffer(text, dtype=np.uint8))

    @classmethod
    def load(cls, path: Path) -> HeldoutScan:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            candidates = json.loads(arrays["candidates"].tobytes())
            return cls(arrays["sentences"], [(key, source, target) for key, source, target in candidates])


def scan_pairs(
    pairs: Iterable[tuple[str, str]], rule: HeldoutRule, *, languages: tuple[str, str], limit: int
) -> HeldoutScan:
    """Find the held-out sentences of one bitext source.

    Args:
        pairs: Its (source, target) sentences.
        rule: Which are selected.
        languages: Source and target language.
        limit: Most candidates to keep, those of smallest hash.

    Returns:
        The hashes of all held-out sentences, and the candidates.
    """
    side = rule.deciding_side(languages)
    sentences: set[int] = set()
    candidates: dict[int, tuple[str, str]] = {}
    for pair in pairs:
        source, target = pair[0].strip(), pair[1].strip()
        deciding = rule.content_hash((source, target)[side])
        if not (source and target and rule.selects(deciding)):
            continue
        sentences.add(deciding)
        sentences.add(rule.content_hash((target, source)[side]))
        if source != target:
            candidates.setdefault(deciding, (source, target))
        if len(candidates) > 2 * limit:
            candidates = dict(sorted(candidates.items())[:limit])
    kept = sorted(candidates.items())[:limit]
    return HeldoutScan(
        sentences=np.array(sorted(sentences), dtype=np.uint64),
        candidates=[(key, source, target) for key, (source, target) in kept],
    )


class HeldoutSentences:
    """The held-out sentences of the whole corpus, to be kept out of training."""

    def __init__(self, rule: HeldoutRule, hashes: np.ndarray) -> None:
        """Look sentences up in a sorted array, which may be memory-mapped.

        Args:
            rule: The rule whose hash it is.
            hashes: Sorted hashes, (n,) uint64.
        """
        self._rule = rule
        self._hashes = hashes

    def find(self, texts: Sequence[str]) -> np.ndarray:
        """Which of n sentences are held out, in whatever language, bool (n,)."""
        rule = self._rule
        content = np.fromiter((rule.content_hash(text) for text in texts), np.uint64, len(texts))
        places = np.searchsorted(self._hashes, content)
        found = np.zeros(len(texts), dtype=bool)
        inside = places < len(self._hashes)
        found[inside] = self._hashes[places[inside]] == content[inside]
        return found
