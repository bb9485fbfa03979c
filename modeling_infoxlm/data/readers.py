"""Readers: `read_rows` streams the sentences or pairs of a source, line by line."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, TypeVar

from modeling_infoxlm.data.sources import Source, format_of, hub_parts, take_apart
from modeling_infoxlm.data.text_files import decode, raw_lines
from modeling_infoxlm.runs.errors import DataError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SAMPLE = 20  # lines that tell what a column holds
_NUMBER = re.compile(rb"\s*[-+]?(\d+([.,]\d*)?|[.,]\d+)([eE][-+]?\d+)?\s*")


# What happens to a line that cannot be used: it raises the error, or returns to have the line skipped.
BadLineHandler = Callable[[DataError], None]


def fail_on_bad_line(error: DataError) -> None:
    """Stop at the first bad line."""
    raise DataError(f"{error}; mend it, or leave such lines out with --on_bad_line skip")


class SkipBadLines:
    """A handler that skips bad lines and counts them; the first is logged."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, error: DataError) -> None:
        """Skip one line."""
        if self.count == 0:
            logger.warning("%s; skipped, and so are further such lines", error)
        self.count += 1


# --------------------------------------------------------------------------------------- records and columns


def _parse_lines(path: Path, parse: Callable[[str], T], on_bad_line: BadLineHandler) -> Iterator[T]:
    lines = ((f"{path}, line {number:,}", line) for number, line in raw_lines(path))
    return _parse_records(lines, lambda line: parse(decode(line)), on_bad_line)


class _TsvFields:
    """Takes columns of TSV lines, all of which must have them and as many as the first."""

    def __init__(self, columns: tuple[int, ...]) -> None:
        self._columns = columns
        self._needed = max(column + 1 if column >= 0 else -column for column in columns)
        self._num_columns: int | None = None

    def __call__(self, line: str) -> tuple[str, ...]:
        if not line:
            return ("",) * len(self._columns)
        fields = line.split("\t")
        if len(fields) < self._needed:
            raise ValueError(
                f"missing columns: {self._needed} needed, {len(fields)} found (columns are split by tabs)"
            )
        self._num_columns = self._num_columns or len(fields)
        if len(fields) != self._num_columns:
            raise ValueError(f"{len(fields)} columns, but the lines before have {self._num_columns}")
        return tuple([fields[column] for column in self._columns])


def _field(record: Mapping[str, Any], name: str) -> str:
    if name not in record:
        raise ValueError(f"missing column {name!r}; found {', '.join(sorted(map(str, record))) or 'none'}")
    value = record[name]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"column {name!r} holds {type(value).__name__}, expected text")
    try:  # JSON can say half of a character, and the null character; tokenizers fail on the one or the other
        null = value.encode().find(0)
    except UnicodeEncodeError as error:
        raise ValueError(f"column {name!r} holds half a surrogate pair at character {error.start}") from None
    if null >= 0:
        raise ValueError(f"column {name!r} holds a null character")
    return value


def _fields(record: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    """Of `{"text": ...}`, `{"en": ..., "de": ...}` or `{"translation": {"en": ..., "de": ...}}`."""
    if isinstance(record, Mapping) and len(names) == 2 and isinstance(record.get("translation"), Mapping):
        record = record["translation"]
    if not isinstance(record, Mapping):
        raise ValueError(f"found {type(record).__name__}, expected an object with {', '.join(names)}")
    return tuple([_field(record, name) for name in names])


def from_json(line: str) -> Any:
    """What a line of JSON lines says.

    Raises:
        ValueError: If it is not JSON, with the place.
    """
    try:
        return json.loads(line, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at character {error.pos})") from None
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} is given twice")
    return record


def parquet_records(path: Path, names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Place and record of each row; only the columns among `names` are read."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        if file.metadata.num_rows == 0:
            raise DataError(f"{path} is empty.")
        present = file.schema_arrow.names
        columns = [name for name in names if name in present]
        if not columns:
            raise DataError(f"{path}: missing columns {' / '.join(names)}; found {', '.join(present)}")
        row = 0
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            try:
                records = batch.to_pylist()
            except ValueError as error:
                last = row + batch.num_rows
                raise DataError(f"{path}, rows {row + 1:,} to {last:,}: cannot be read ({error})") from error
            for record in records:
                row += 1
                yield f"{path}, row {row:,}", record
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error})") from error


def hub_revision(location: str, *, revision: str | None = None, token: str | None = None) -> str:
    """The commit that `hub:NAME[:CONFIG[:SPLIT]]` stands at now, which identifies its content.

    Args:
        location: The dataset.
        revision: Branch, tag or commit; None is the main branch.
        token: Of the Hub; None is the stored one.

    Raises:
        DataError: If the Hub cannot be reached or does not know the dataset.
    """
    from huggingface_hub import HfApi

    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    name = hub_parts(location)[0]
    try:
        return str(HfApi(token=token).dataset_info(name, revision=revision).sha)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{location}: dataset not reachable on the Hub ({str(error).splitlines()[0]})"
        ) from error


def _hub_records(location: str, revision: str | None) -> Iterator[tuple[str, Any]]:
    import datasets

    name, config, split = hub_parts(location)
    row = 0
    try:
        for record in datasets.load_dataset(name, config, split=split, streaming=True, revision=revision):
            row += 1
            yield f"{location}, row {row:,}", record
    except (OSError, ValueError) as error:
        raise DataError(
            f"{location}: cannot be read beyond row {row:,} ({str(error).splitlines()[0]})"
        ) from error
    if row == 0:
        raise DataError(f"{location} is empty.")


def _parse_records(
    records: Iterable[tuple[str, Any]], parse: Callable[[Any], T], on_bad_line: BadLineHandler
) -> Iterator[T]:
    for place, record in records:
        try:
            parsed = parse(record)
        except ValueError as error:
            on_bad_line(DataError(f"{place}: {error}"))
            continue
        yield parsed


# --------------------------------------------------------------------------------------------------- reading


def warn_of_extra_columns(sources: Iterable[Source], columns: tuple[int, int] | None) -> None:
    """Log one warning if TSV bitext has more than two columns, by its first line, and none were chosen."""
    if columns is not None:
        return
    found = [(source, count) for source in sources if (count := _num_tsv_columns(source)) > 2]
    if found:
        logger.warning(
            "%d bitext file(s) have more than two columns (%s has %d); the last two are read as source and "
            "target, choose others with --bitext_columns",
            len(found),
            *found[0],
        )


def _num_tsv_columns(source: Source) -> int:
    path = Path(source.locations[0])
    if not source.is_bitext or source.is_hub or take_apart(path).format != "tsv":
        return 0
    return next(raw_lines(path))[1].count(b"\t") + 1


def read_rows(
    source: Source,
    *,
    columns: tuple[int, int] | None = None,
    revision: str | None = None,
    on_bad_line: BadLineHandler = fail_on_bad_line,
) -> Iterator[tuple[str, ...]]:
    """Stream the sentences or the pairs of one source.

    Sentences are lines of text, the last column of TSV, or the lines of `text` fields.

    Args:
        source: Where they are.
        columns: 0-based TSV columns of source and target; None takes the last two.
        revision: Commit of a Hub dataset; None takes the newest.
        on_bad_line: What to do with a line that cannot be used: invalid UTF-8, missing columns, no JSON.

    Yields:
        A sentence, or source and target sentence; a side may be empty.

    Raises:
        DataError: If the source is empty, damaged, or its two files differ in length.
    """
    if len(source.locations) == 2:
        yield from _read_two_files(source, on_bad_line)
        return
    rows = _read_one(source, columns, revision, on_bad_line)
    if source.is_bitext:
        yield from rows
    else:
        yield from ((line,) for (text,) in rows for line in text.split("\n"))


def _read_one(
    source: Source, columns: tuple[int, int] | None, revision: str | None, on_bad_line: BadLineHandler
) -> Iterator[tuple[str, ...]]:
    location, path = source.locations[0], Path(source.locations[0])
    names = source.languages if source.is_bitext else ("text",)
    if source.is_hub:
        records = _hub_records(location, revision)
        return _parse_records(records, lambda record: _fields(record, names), on_bad_line)
    kind = format_of(path, source.name)
    if kind == "parquet":
        records = parquet_records(path, ("translation", *names) if source.is_bitext else names)
        return _parse_records(records, lambda record: _fields(record, names), on_bad_line)
    if kind == "jsonl":
        empty = ("",) * len(names)
        return _parse_lines(
            path, lambda line: _fields(from_json(line), names) if line.strip() else empty, on_bad_line
        )
    if kind == "tsv":
        return _parse_lines(path, _tsv_fields(path, source, columns), on_bad_line)
    return _parse_lines(path, lambda line: (line,), on_bad_line)


def _tsv_fields(path: Path, source: Source, columns: tuple[int, int] | None) -> _TsvFields:
    if not source.is_bitext:
        _refuse_scores(path, at_least=2, advice="leave that column out: cut -f1")
        return _TsvFields((-1,))
    if columns is None:
        _refuse_scores(path, at_least=3, advice="say which columns are text: --bitext_columns 0 1")
    return _TsvFields(columns or (-2, -1))


def _refuse_scores(path: Path, *, at_least: int, advice: str) -> None:
    """Refuse a file whose last column, which is read as text, holds only numbers in its first lines."""
    rows = [line.split(b"\t") for _, line in islice(raw_lines(path), _SAMPLE)]
    full = [row for row in rows if len(row) >= at_least]
    if full and all(_NUMBER.fullmatch(row[-1]) for row in full):
        raise DataError(
            f"{path}: the last of {len(full[0])} columns, which is read as text, holds numbers only "
            f"({full[0][-1].decode()}): {advice}"
        )


def _read_two_files(source: Source, on_bad_line: BadLineHandler) -> Iterator[tuple[str, ...]]:
    paths = [Path(location) for location in source.locations]
    lines = zip_longest(*(raw_lines(path) for path in paths))
    for first, second in lines:
        if first is None or second is None:
            number, line = first or second
            left = [bool(line.strip()), *(bool((one or other)[1].strip()) for one, other in lines)]
            if not any(left):
                return  # a blank line at the end of one of the files
            counts = [number - 1, number - 1 + len(left)]
            sides = counts if first is None else counts[::-1]
            raise DataError(
                f"bitext {source.name} has {sides[0]:,} source lines ({paths[0]}) but {sides[1]:,} target "
                f"lines ({paths[1]}); line i of each file must be a translation of line i of the other."
            )
        texts = []
        for path, (number, line) in zip(paths, (first, second), strict=True):
            try:
                texts.append(decode(line))
            except ValueError as error:
                on_bad_line(DataError(f"{path}, line {number:,}: {error}"))
                break
        else:
            yield tuple(texts)
