"""Natural language inference data: premises, hypotheses and labels, from files or from the Hub.

Files are TSV, JSON lines or Parquet, compressed or not, in the layouts of XNLI (`xnli.dev.tsv`, all languages
in one file, with a header), of XTREME (`dev-de.tsv`, without one) and of MultiNLI's translations.
"""

import glob
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from modeling_infoxlm.data.readers import from_json, hub_revision, parquet_records
from modeling_infoxlm.data.sources import HUB_PREFIX, language_in, take_apart
from modeling_infoxlm.data.text_files import decode, raw_lines
from modeling_infoxlm.hub.benchmarks import LANGUAGES
from modeling_infoxlm.runs.errors import DataError, UsageError

logger = logging.getLogger(__name__)

LABELS = ("entailment", "neutral", "contradiction")  # their numbers in facebook/xnli are 0, 1, 2
XNLI_LANGUAGES = tuple(sorted(LANGUAGES["xnli"]))

Split = Literal["train", "dev", "test"]

# Names of a column in the layouts, the first of each is ours.
_COLUMNS = {
    "premise": ("premise", "sentence1"),
    "hypothesis": ("hypothesis", "hypo", "sentence2"),
    "label": ("label", "gold_label"),
    "language": ("language",),
    "genre": ("genre",),
}
_CANONICAL = {name: column for column, names in _COLUMNS.items() for name in names}
_LABEL_NUMBERS = {
    **{name: number for number, name in enumerate(LABELS)},
    **{str(number): number for number in range(len(LABELS))},
    "contradictory": 2,  # so written in MultiNLI's translations
}
# SNLI and MultiNLI where annotators did not agree, and test sets whose labels are not public.
_NO_LABEL = ("-", "-1", "", "none", "nan")
# Stems of a split's file in a folder; `{}` is the language, without it the file holds all of them.
_STEMS: dict[Split, tuple[str, ...]] = {
    "train": ("train-{}", "multinli.train.{}"),
    "dev": ("dev-{}", "xnli.dev"),
    "test": ("test-{}", "xnli.test"),
}
_HUB_SPLITS: dict[Split, str] = {"train": "train", "dev": "validation", "test": "test"}
_FORMATS = ("tsv", "jsonl", "parquet")


@dataclass(frozen=True)
class NLIRows:
    """Rows of one language: column i of each field belongs to row i.

    Attributes:
        premises: Texts.
        hypotheses: Texts.
        labels: Numbers of `LABELS`.
        genres: Empty where they are not given.
        left_out: Number of lines and rows that are not among these, by the reason.
    """

    premises: list[str]
    hypotheses: list[str]
    labels: list[int]
    genres: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.labels)

    def take(self, numbers: Sequence[int]) -> "NLIRows":
        """Some of the rows."""
        return NLIRows(
            [self.premises[number] for number in numbers],
            [self.hypotheses[number] for number in numbers],
            [self.labels[number] for number in numbers],
            [self.genres[number] for number in numbers] if self.genres else [],
            self.left_out,
        )

    @classmethod
    def joined(cls, parts: Iterable["NLIRows"]) -> "NLIRows":
        """All rows of several sets, one after another."""
        joined = cls([], [], [])
        for part in parts:
            joined.premises.extend(part.premises)
            joined.hypotheses.extend(part.hypotheses)
            joined.labels.extend(part.labels)
        return joined


# --------------------------------------------------------------------------------------------- finding files


def files_in_folder(folder: str | Path, split: Split, languages: Sequence[str]) -> dict[str, Path]:
    """File of each language; several languages share one that holds all of them.

    Raises:
        UsageError: If the folder is missing, or lacks a language.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UsageError(f"--data_dir {root}: no such folder.")
    by_stem = {take_apart(path).stem: path for path in sorted(root.iterdir()) if _is_data(path)}
    found: dict[str, Path] = {}
    for language in languages:
        stems = [stem.format(language) for stem in _STEMS[split]]
        present = [by_stem[stem] for stem in stems if stem in by_stem]
        if present:
            found[language] = present[0]
    _require(found, languages, f"{root} has no {split} file, such as {_STEMS[split][0].format('xx')}.tsv,")
    return found


def files_of_patterns(
    patterns: Sequence[str], flag: str, *, languages: Sequence[str] | None, unnamed: Sequence[str]
) -> dict[str, Path]:
    """File of each language, by the language at the end of its name (`dev-de.tsv`, `train.de.jsonl.gz`).

    Args:
        patterns: Paths or globs.
        flag: Where they were given, for messages.
        languages: Those wanted, in order; None wants those of the names.
        unnamed: Languages that a single file without one in its name is taken for.

    Raises:
        UsageError: If a file or a language is missing, two files are of one language, or none is in a name.
    """
    paths = [path for pattern in patterns for path in _expand(pattern, flag)]
    named: dict[str, Path] = {}
    for path in paths:
        language = language_in(take_apart(path).stem)
        if language is None and len(paths) == 1:
            return dict.fromkeys(languages or unnamed, path)
        if language is None:
            raise UsageError(
                f"{flag}: {path} carries no language at the end of its name, as dev-de.tsv does."
            )
        if language in named:
            raise UsageError(f"{flag}: {named[language]} and {path} are both of the language {language}.")
        named[language] = path
    if languages is None:
        return named
    _require(named, languages, f"{flag} names no file")
    return {language: named[language] for language in languages}


def _is_data(path: Path) -> bool:
    return path.is_file() and take_apart(path).format in _FORMATS


def _expand(pattern: str, flag: str) -> list[Path]:
    path = Path(pattern).expanduser()
    paths = [path] if path.is_file() else sorted(map(Path, glob.glob(str(path), recursive=True)))
    paths = [path for path in paths if path.is_file()]
    if not paths:
        raise UsageError(f"{flag}: no file matches {pattern}.")
    return paths


def _require(found: Mapping[str, Path], languages: Sequence[str], message: str) -> None:
    missing = [language for language in languages if language not in found]
    if missing:
        raise UsageError(
            f"{message} for {', '.join(missing)}; name the languages that you have with --languages."
        )


# --------------------------------------------------------------------------------------------------- reading


def read_nli(path: Path, language: str) -> NLIRows:
    """Read the rows of one language.

    Args:
        path: TSV, JSON lines or Parquet.
        language: Rows of other ones are left out where the file says each row's.

    Returns:
        The rows without those that have no gold label, and without blank lines, which are counted.

    Raises:
        UsageError: If the file cannot be read, lacks a column, has no row, or a label is none of the three.
    """
    rows = NLIRows([], [], [])
    for place, record in _records(path, rows.left_out):
        if record.get("language", language) == language:
            _append(rows, record, place)
    return _checked(rows, str(path), language)


def _checked(rows: NLIRows, place: str, language: str) -> NLIRows:
    """Refuse a set without a row, and say what was left out of one."""
    left_out = " and ".join(f"{count:,} {reason}" for reason, count in sorted(rows.left_out.items()))
    if not rows.labels:
        found = f" that can be used, only {left_out}" if left_out else ""
        raise UsageError(f"{place} has no row of the language {language}{found}.")
    if left_out:
        logger.warning("%s, %s: left out %s", place, language, left_out)
    return rows


def read_hub_nli(
    name: str, split: Split, language: str, *, revision: str, cache_dir: str | None, token: str | None
) -> NLIRows:
    """Read one language of a Hub dataset laid out as facebook/xnli: its configuration is the language.

    Raises:
        UsageError: If it cannot be loaded, lacks a column, or a label is none of the three.
    """
    import datasets

    try:
        loaded = datasets.load_dataset(
            name, language, split=_HUB_SPLITS[split], revision=revision, cache_dir=cache_dir, token=token
        )
    except (OSError, ValueError, RuntimeError) as error:
        advice = " (give --dataset_revision refs/convert/parquet)" if "script" in str(error) else ""
        raise UsageError(f"--dataset_name {name}, {language} cannot be loaded: {error}{advice}") from error
    rows = NLIRows([], [], [])
    # What a number says, where the dataset tells it: not all number the labels alike.
    feature = _canonical(loaded.features).get("label")
    names = dict(enumerate(feature.names)) if isinstance(feature, datasets.ClassLabel) else {}
    for number, row in enumerate(loaded, start=1):
        record = _canonical(row)
        if names:
            record["label"] = names.get(record["label"], record["label"])
        _append(rows, record, f"{name}, {language}, row {number:,}")
    return _checked(rows, name, language)


def dataset_commit(name: str, revision: str | None, *, token: str | None) -> str:
    """Commit of a branch or tag of a Hub dataset; None is that which it stands at now.

    Raises:
        UsageError: If the Hub cannot be reached or does not know it.
    """
    try:
        return hub_revision(f"{HUB_PREFIX}{name}", revision=revision, token=token)
    except DataError as error:
        raise UsageError(f"{error}; without a network, give --data_dir.") from error


def _append(rows: NLIRows, record: Mapping[str, Any], place: str) -> None:
    if "label" in record and _label_text(record["label"]) in _NO_LABEL:
        rows.left_out["rows without a gold label"] += 1
        return
    for column in ("premise", "hypothesis", "label"):
        if record.get(column) is None:
            raise UsageError(f"{place}: no {column}; found {', '.join(map(str, record)) or 'nothing'}.")
    label = _LABEL_NUMBERS.get(_label_text(record["label"]))
    if label is None:
        raise UsageError(
            f"{place}: label {str(record['label'])!r} is none of {', '.join(LABELS)}, or 0, 1, 2."
        )
    rows.premises.append(str(record["premise"]))
    rows.hypotheses.append(str(record["hypothesis"]))
    rows.labels.append(label)
    rows.genres.append(str(record.get("genre") or ""))


def _label_text(label: Any) -> str:
    """As in `_LABEL_NUMBERS`; a table that once lacked a label has numbers such as 1.0."""
    return str(label).strip().lower().removesuffix(".0")


def _records(path: Path, left_out: Counter[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and canonical record of each row; blank lines are counted."""
    kind = take_apart(path).format
    if kind == "tsv":
        yield from _tsv_records(path, left_out)
    elif kind == "jsonl":
        for number, line in _lines(path, left_out):
            yield f"{path}, line {number:,}", _json_record(path, number, line)
    elif kind == "parquet":
        for place, record in parquet_records(path, tuple(_CANONICAL)):
            yield place, _canonical(record)
    else:
        raise UsageError(
            f"{path}: unknown kind of file; expected .tsv, .jsonl or .parquet, or these with .gz."
        )


def _lines(path: Path, left_out: Counter[str]) -> Iterator[tuple[int, bytes]]:
    for number, line in raw_lines(path):
        if line.strip():
            yield number, line
        else:
            left_out["blank lines"] += 1


def _tsv_records(path: Path, left_out: Counter[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Records of a TSV file; without a header the columns are premise, hypothesis, label and maybe genre."""
    columns: list[str] = []
    needed = 3
    for number, line in _lines(path, left_out):
        fields = _text(path, number, line).split("\t")
        names = [_CANONICAL.get(name.strip().lower(), name) for name in fields]
        if not columns and {"premise", "hypothesis"} <= set(names):
            columns, needed = names, len(names)
            continue
        columns = columns or ["premise", "hypothesis", "label", "genre"]
        if len(fields) < needed:
            raise UsageError(
                f"{path}, line {number:,}: expected the columns {', '.join(columns[:needed])}, "
                f"found {len(fields)} (columns are split by tabs)."
            )
        yield f"{path}, line {number:,}", dict(zip(columns, fields, strict=False))


def _json_record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = from_json(_text(path, number, line))
    except ValueError as error:
        raise UsageError(f"{path}, line {number:,}: {error}") from error
    if not isinstance(record, dict):
        raise UsageError(f"{path}, line {number:,}: found {type(record).__name__}, expected an object.")
    return _canonical(record)


def _text(path: Path, number: int, line: bytes) -> str:
    try:
        return decode(line)
    except ValueError as error:
        raise UsageError(f"{path}, line {number:,}: {error}") from error


def _canonical(record: Mapping[str, Any]) -> dict[str, Any]:
    return {_CANONICAL.get(str(name).lower(), str(name)): value for name, value in record.items()}
