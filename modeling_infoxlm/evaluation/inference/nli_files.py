"""Natural language inference data: premises, hypotheses and labels, from files or from the Hub.

Files are TSV, JSON lines or Parquet, compressed or not, in the layouts of XNLI (`xnli.dev.tsv`, all languages
in one file, with a header), of XTREME (`dev-de.tsv`, without one) and of MultiNLI's translations.
"""

import glob
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import datasets
import pandas as pd

from modeling_infoxlm.data.readers import from_json, parquet_records
from modeling_infoxlm.data.sources import language_in, take_apart
from modeling_infoxlm.data.text_files import decode, raw_lines
from modeling_infoxlm.evaluation.hub_data import HubData
from modeling_infoxlm.hub.benchmarks import LANGUAGES
from modeling_infoxlm.runs.errors import UsageError

logger = logging.getLogger(__name__)

LABELS = ("entailment", "neutral", "contradiction")  # their numbers in facebook/xnli are 0, 1, 2
XNLI_LANGUAGES = tuple(sorted(LANGUAGES["xnli"]))

COLUMNS = ["premise", "hypothesis", "label", "genre"]  # of tables of rows

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


def files_in_folder(folder: str | Path, split: Split, languages: Sequence[str]) -> dict[str, Path]:
    """File of each language; several languages share one that holds all of them."""
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UsageError(f"--data_dir {root}: no such folder.")
    paths = filter(Path.is_file, sorted(root.iterdir()))
    by_stem = {take_apart(path).stem: path for path in paths if take_apart(path).format in _FORMATS}
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

    Languages that are None are those of the names; `unnamed` are those that a single file without one in its
    name is taken for. `flag` is where the paths or globs were given, for messages.
    """
    paths = [path for pattern in patterns for path in _expand(pattern, flag)]
    named: dict[str, Path] = {}
    for path in paths:
        language = language_in(take_apart(path).stem)
        if language is None and len(paths) == 1:
            return dict.fromkeys(languages or unnamed, path)
        if language is None:
            raise UsageError(f"{flag}: {path} carries no language at the end of its name, as dev-de.tsv.")
        if language in named:
            raise UsageError(f"{flag}: {named[language]} and {path} are both of the language {language}.")
        named[language] = path
    if languages is None:
        return named
    _require(named, languages, f"{flag} names no file")
    return {language: named[language] for language in languages}


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
        raise UsageError(f"{message} for {', '.join(missing)}; name the languages you have with --languages.")


def read_nli(path: Path, language: str, left_out: Counter[str]) -> pd.DataFrame:
    """Read the rows of one language from TSV, JSON lines or Parquet, as a table with the columns `COLUMNS`.

    A label is its number in `LABELS`, a genre that is not given is empty. Rows of other languages are left
    out where the file says each row's. `left_out` counts blank lines, and rows without a gold label.

    Raises:
        UsageError: If the file cannot be read, lacks a column, has no row, or a label is none of the three.
    """
    found = _records(path, left_out)
    records = ((place, row) for place, row in found if row.get("language", language) == language)
    return _table(records, str(path), language, left_out)


def read_hub_nli(
    hub: HubData, name: str, split: Split, revision: str | None, language: str, left_out: Counter[str]
) -> pd.DataFrame:
    """Read one language of a Hub dataset laid out as facebook/xnli: its configuration is the language."""
    loaded = hub.rows(name, language, _HUB_SPLITS[split], revision)
    # What a number says, where the dataset tells it: not all number the labels alike.
    feature = _canonical(loaded.features).get("label")
    names = dict(enumerate(feature.names)) if isinstance(feature, datasets.ClassLabel) else {}
    records = (
        (f"{name}, {language}, row {number:,}", _canonical(row)) for number, row in enumerate(loaded, start=1)
    )
    named = (
        (place, record | ({"label": names.get(record["label"], record["label"])} if names else {}))
        for place, record in records
    )
    return _table(named, name, language, left_out)


def _table(
    records: Iterable[tuple[str, Mapping[str, Any]]], place: str, language: str, left_out: Counter[str]
) -> pd.DataFrame:
    rows = [row for where, record in records if (row := _row(record, where, left_out)) is not None]
    said = " and ".join(f"{count:,} {reason}" for reason, count in sorted(left_out.items()))
    if not rows:
        found = f" that can be used, only {said}" if said else ""
        raise UsageError(f"{place} has no row of the language {language}{found}.")
    if said:
        logger.warning("%s, %s: left out %s", place, language, said)
    return pd.DataFrame(rows, columns=COLUMNS)


def _row(record: Mapping[str, Any], place: str, left_out: Counter[str]) -> tuple[str, str, int, str] | None:
    """Premise, hypothesis, label and genre; None without a gold label."""
    if "label" in record and _label_text(record["label"]) in _NO_LABEL:
        left_out["rows without a gold label"] += 1
        return None
    for column in ("premise", "hypothesis", "label"):
        if record.get(column) is None:
            raise UsageError(f"{place}: no {column}; found {', '.join(map(str, record)) or 'nothing'}.")
    label = _LABEL_NUMBERS.get(_label_text(record["label"]))
    if label is None:
        raise UsageError(f"{place}: label {str(record['label'])!r} is none of {', '.join(LABELS)}, 0, 1, 2.")
    return str(record["premise"]), str(record["hypothesis"]), label, str(record.get("genre") or "")


def _label_text(label: Any) -> str:
    """As in `_LABEL_NUMBERS`; a table that once lacked a label has numbers such as 1.0."""
    return str(label).strip().lower().removesuffix(".0")


def _records(path: Path, left_out: Counter[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and canonical record of each row; blank lines are counted."""
    kind = take_apart(path).format
    if kind == "parquet":
        yield from ((place, _canonical(record)) for place, record in parquet_records(path, tuple(_CANONICAL)))
        return
    if kind not in _FORMATS:
        raise UsageError(f"{path}: unknown kind of file; expected .tsv, .jsonl or .parquet, also with .gz.")
    parse = _TsvLines() if kind == "tsv" else _json_record
    for number, line in raw_lines(path):
        place = f"{path}, line {number:,}"
        if not line.strip():
            left_out["blank lines"] += 1
            continue
        try:
            record = parse(decode(line))
        except ValueError as error:
            raise UsageError(f"{place}: {error}") from error
        if record is not None:
            yield place, record


class _TsvLines:
    """Records of TSV lines; without a header the columns are premise, hypothesis, label and maybe genre."""

    def __init__(self) -> None:
        self.columns: list[str] = []
        self.needed = 3

    def __call__(self, line: str) -> dict[str, Any] | None:
        """A line's record, None of the header."""
        fields = line.split("\t")
        names = [_CANONICAL.get(name.strip().lower(), name) for name in fields]
        if not self.columns and {"premise", "hypothesis"} <= set(names):
            self.columns, self.needed = names, len(names)
            return None
        self.columns = self.columns or ["premise", "hypothesis", "label", "genre"]
        if len(fields) < self.needed:
            raise ValueError(
                f"expected the columns {', '.join(self.columns[: self.needed])}, found {len(fields)} "
                "(columns are split by tabs)."
            )
        return dict(zip(self.columns, fields, strict=False))


def _json_record(line: str) -> dict[str, Any]:
    record = from_json(line)
    if not isinstance(record, dict):
        raise ValueError(f"found {type(record).__name__}, expected an object.")
    return _canonical(record)


def _canonical(record: Mapping[str, Any]) -> dict[str, Any]:
    return {_CANONICAL.get(str(name).lower(), str(name)): value for name, value in record.items()}
