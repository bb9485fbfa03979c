"""What is to be prepared: settings, identity of sources and tokenizer, differences from a manifest."""

from __future__ import annotations

import json
import logging
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from tqdm import tqdm

from modeling_infoxlm.data.claims import make_once
from modeling_infoxlm.data.heldout import HeldoutRule
from modeling_infoxlm.data.ragged import SpecialTokens
from modeling_infoxlm.data.readers import hub_revision
from modeling_infoxlm.data.shards import FORMAT_VERSION, MANIFEST_NAME, read_manifest
from modeling_infoxlm.data.sources import HUB_PREFIX, Source, check_language
from modeling_infoxlm.data.tokenise import special_tokens, tokenizer_json, tokenizer_sha256
from modeling_infoxlm.runs.errors import DataError
from modeling_infoxlm.runs.files import file_sha256, make_folder, text_sha256, write_text
from modeling_infoxlm.runs.flags import check_numbers, flag

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

OnBadLine = Literal["fail", "skip"]


@dataclass(frozen=True)
class PrepareSettings:
    """All that shapes the prepared corpus besides the text and the tokenizer; its fields are flags."""

    max_seq_length: int = flag(
        512, "Longest sequence in tokens, for MLM blocks and for joined pairs (README: 512)."
    )
    max_side_length: int | None = flag(
        None,
        "Longest side of a pair in tokens without special ones; longer pairs are dropped. "
        "Unset: half a sequence, 254 of 512.",
    )
    min_length: int = flag(
        1, "Shortest side of a pair and shortest sentence in tokens; shorter ones are dropped (ours)."
    )
    max_length_ratio: float = flag(
        9.0, "A pair is dropped if one side has this many times the other's tokens (ours)."
    )
    deduplicate: bool = flag(
        True, "Drop repeated sentences and pairs: as negatives they would be false ones (ours)."
    )
    mono_from_bitext: bool = flag(False, "Use the sides of the bitext as MLM text too (ours).")
    heldout_fraction: float = flag(
        0.0,
        "Share of the sentences of heldout_language whose pairs are kept out of training, "
        "in all languages at once.",
    )
    heldout_language: str = flag("en", "Language whose sentences decide, by hash, which pairs are held out.")
    heldout_max_pairs: int = flag(
        1000, "Most held-out pairs kept for evaluation, for each language pair; the rest is unused."
    )
    prepare_seed: int = flag(
        0,
        "Seed of the preparation (what is held out). "
        "Apart from --seed, so that runs with other seeds share one corpus.",
    )
    on_bad_line: OnBadLine = flag(
        "fail", "What to do with a line that cannot be read: fail, or skip and count it."
    )
    bitext_columns: list[int] = flag(
        [], "Two columns of TSV bitext, counted from 0: source and target. Unset: the last two."
    )

    def __post_init__(self) -> None:
        """Refuse values that could not work."""
        check_numbers(self)
        if not self.min_length <= self.longest_side <= self.max_seq_length - 4:
            raise ValueError(
                f"max_side_length is {self.longest_side}; it must be at least min_length ({self.min_length}) "
                f"and at most max_seq_length - 4 ({self.max_seq_length - 4})."
            )
        if self.on_bad_line not in get_args(OnBadLine):
            raise ValueError(f"on_bad_line is {self.on_bad_line!r}; expected fail or skip.")
        columns = self.bitext_columns
        if columns and not (len(set(columns)) == len(columns) == 2 and min(columns) >= 0):
            raise ValueError(
                f"bitext_columns is {columns}; expected two different column numbers, of source "
                "and target, counted from 0."
            )
        check_language(self.heldout_language)

    @property
    def longest_side(self) -> int:
        """`max_side_length` with its default filled in: what lets `<s> a </s> b </s>` fit."""
        return (self.max_seq_length - 3) // 2 if self.max_side_length is None else self.max_side_length

    @property
    def columns(self) -> tuple[int, int] | None:
        """Columns of source and target; None takes the last two."""
        return (self.bitext_columns[0], self.bitext_columns[1]) if self.bitext_columns else None

    @property
    def heldout_rule(self) -> HeldoutRule:
        """Which sentences are held out."""
        return HeldoutRule(self.heldout_fraction, self.heldout_language, self.prepare_seed)

    def describe(self) -> dict[str, Any]:
        """The settings, under the names that they have in manifests."""
        values = {field.name: getattr(self, field.name) for field in fields(PrepareSettings)}
        named = {"max_length": values.pop("max_seq_length"), "seed": values.pop("prepare_seed")}
        return {**named, **values, "max_side_length": self.longest_side, "bitext_columns": self.columns}


@dataclass(frozen=True)
class Unit:
    """One source and what identifies its content."""

    source: Source
    record: dict[str, Any]  # its entry in the manifest's `sources`

    @property
    def size(self) -> int:
        """Bytes of its files; a Hub dataset, whose size is unknown, is taken to be large."""
        if self.source.is_hub:
            return 1 << 30
        return sum(file["size"] for file in self.record["files"])

    @property
    def revision(self) -> str | None:
        """Commit of a Hub dataset."""
        return self.record["files"][0]["sha256"] if self.source.is_hub else None

    def shard_name(self, key: str) -> str:
        """A readable name that no other content, tokenizer or settings share."""
        readable = re.sub(r"[^A-Za-z0-9_.-]+", "_", Path(self.source.locations[0]).name)[:80]
        return f"{readable}-{digest(key, _content(self.record))[:16]}"


@dataclass(frozen=True)
class Plan:
    """What is to be prepared, from what, and where."""

    folder: Path
    units: list[Unit]
    settings: PrepareSettings
    tokenizer_json: str
    special: SpecialTokens
    description: dict[str, Any]  # the manifest's `tokenizer`, `settings` and `sources`

    @property
    def key(self) -> str:
        """Identity of tokenizer and settings."""
        identity = {**self.description["tokenizer"], "name": None}
        return digest(FORMAT_VERSION, identity, self.description["settings"])

    @property
    def corpus_key(self) -> str:
        """Identity of the whole corpus: what is kept of a file depends on the others."""
        return digest(self.key, [_content(record) for record in self.description["sources"]])


def digest(*parts: Any) -> str:
    """A SHA-256 in hexadecimal of anything that JSON can hold."""
    return text_sha256(json.dumps(parts, sort_keys=True))


def _content(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Kind, languages and hashes of a source: what must be equal for it to count as unchanged."""
    return (record["kind"], *record["languages"], *(file["sha256"] for file in record["files"]))


def make_plan(
    sources: Sequence[Source],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    settings: PrepareSettings,
    num_workers: int,
) -> Plan:
    """Identify everything that goes into a corpus: hash the files, describe tokenizer and settings.

    Of two sources with equal content and languages the second is left out with a warning.

    Raises:
        DataError: If there is no source, a file cannot be read, or the tokenizer does not serve.
    """
    if not sources:
        raise DataError("nothing to prepare: no bitext and no monolingual source was given.")
    special = special_tokens(tokenizer)
    units = _units(sources, folder, num_workers)
    description = {
        "tokenizer": {
            "name": tokenizer.name_or_path,
            "sha256": tokenizer_sha256(tokenizer),
            "vocab_size": special.vocab_size,
            "special": asdict(special),
        },
        "settings": settings.describe(),
        "sources": [unit.record for unit in units],
    }
    # Through JSON once, so that it compares equal with a manifest that was read: tuples become lists.
    return Plan(
        folder=folder,
        units=units,
        settings=settings,
        tokenizer_json=tokenizer_json(tokenizer),
        special=special,
        description=json.loads(json.dumps(description)),
    )


def _units(sources: Sequence[Source], folder: Path, num_workers: int) -> list[Unit]:
    locations = list({location for source in sources for location in source.locations})
    random.shuffle(locations)  # jobs that start at the same time do not wait for each other's
    known, work = {}, None
    if (folder / MANIFEST_NAME).exists():  # whose hashes hold: terabytes are not read again for nothing
        records = [file for record in read_manifest(folder)["sources"] for file in record["files"]]
        known = {(file["path"], file["size"], file["mtime_ns"]): file["sha256"] for file in records}
    else:
        work = work_folder(folder)
        make_folder(work)  # a complete folder may be read-only
    with ThreadPoolExecutor(max(1, num_workers)) as pool:  # hashing releases the interpreter lock
        described = pool.map(lambda location: _file_record(location, known, work), locations)
        files = dict(zip(locations, tqdm(described, "reading files", len(locations), delay=2), strict=True))
    units: dict[tuple[Any, ...], Unit] = {}
    for source in sources:
        record = {
            "kind": "bitext" if source.is_bitext else "mono",
            "languages": list(source.languages),
            "files": [files[location] for location in source.locations],
        }
        twin = units.setdefault(_content(record), Unit(source, record))
        if twin.source != source:
            logger.warning("%s equals %s and is left out", source, twin.source)
    return list(units.values())


def work_folder(folder: Path) -> Path:
    """The folder for what is needed while preparing; every name in it ends in 16 hexadecimal digits."""
    return folder / "work"


def _file_record(location: str, known: Mapping[Any, str], work: Path | None) -> dict[str, Any]:
    if location.startswith(HUB_PREFIX):
        return {"path": location, "size": 0, "mtime_ns": 0, "sha256": hub_revision(location)}
    with _readable(location):
        status = os.stat(location)
    identity = (location, status.st_size, status.st_mtime_ns)
    sha256 = known.get(identity) or _shared_sha256(location, digest(*identity)[:16], work)
    path = os.fsencode(location).decode(errors="backslashreplace")  # a file's name may be no text
    return {"path": path, "size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sha256}


def _shared_sha256(location: str, name: str, work: Path | None) -> str:
    """Hash of a file, which one job computes for all."""
    if work is None:
        return _sha256(location)
    path = work / f"hash-{name}"
    make_once(path, work / f"hash-{name}.claim", lambda: write_text(path, _sha256(location)))
    return path.read_text(encoding="utf-8")


def _sha256(location: str) -> str:
    with _readable(location):
        return file_sha256(location)


@contextmanager
def _readable(location: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{location}: cannot be read ({error.strerror}).") from error


def is_complete(plan: Plan) -> bool:
    """Whether the folder holds exactly this corpus.

    Raises:
        DataError: If it holds a complete corpus, but another one.
    """
    if not (plan.folder / MANIFEST_NAME).exists():
        return False
    found = differences(read_manifest(plan.folder), plan.description)
    if found:
        raise DataError(
            f"{plan.folder} was prepared differently: {'; '.join(found)}. "
            "Choose another folder, or delete this one to prepare it anew."
        )
    logger.info("%s is already prepared", plan.folder)
    return True


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """In what two corpora differ, given their manifests; where their files lie does not matter."""
    before, now = found["tokenizer"], wanted["tokenizer"]
    differences = []
    if {**before, "name": None} != {**now, "name": None}:
        differences.append(
            f"the tokenizer was {before['name']!r} ({before['vocab_size']:,} tokens), "
            f"now it is {now['name']!r} ({now['vocab_size']:,} tokens, other content)"
        )
    for name, value in wanted["settings"].items():
        if found["settings"].get(name) != value:
            differences.append(f"{name} was {found['settings'].get(name)}, now it is {value}")
    return differences + _source_differences(found["sources"], wanted["sources"])


def _source_differences(found: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]]) -> list[str]:
    before = {_content(record): _place(record) for record in found}
    now = {_content(record): _place(record) for record in wanted}
    gone = {place for content, place in before.items() if content not in now}
    new = {place for content, place in now.items() if content not in before}
    words = {"has changed": gone & new, "is no longer given": gone - new, "is new": new - gone}
    differences = [f"source {place} {word}" for word, places in words.items() for place in sorted(places)]
    more = len(differences) - 5
    return differences if more <= 0 else [*differences[:5], f"{more} more sources"]


def _place(record: Mapping[str, Any]) -> str:
    return f"{'-'.join(record['languages'])} = {' + '.join(file['path'] for file in record['files'])}"
