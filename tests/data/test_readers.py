"""Readers: every format gives the same sentences, and every kind of bad input its own clear line."""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import lzma
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow
import pytest
import zstandard
from huggingface_hub import HfApi
from pyarrow import parquet

from modeling_infoxlm.data import readers
from modeling_infoxlm.data.readers import SkipBadLines, read_rows, warn_of_extra_columns
from modeling_infoxlm.data.sources import parse_bitext_sources, parse_mono_sources
from modeling_infoxlm.runs.errors import DataError

PAIRS = [("one", "eins"), ("two", "zwei"), ("", "drei")]
TSV = "".join(f"{a}\t{b}\n" for a, b in PAIRS).encode()


def pairs_of(*specs: str | Path, **options: Any) -> list[tuple[str, ...]]:
    return [row for source in parse_bitext_sources(map(str, specs)) for row in read_rows(source, **options)]


def sentences_of(*specs: str | Path, **options: Any) -> list[str]:
    sources = parse_mono_sources(map(str, specs))
    return [sentence for source in sources for (sentence,) in read_rows(source, **options)]


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.compress,
}


# ---------------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_every_compression_gives_the_same_pairs_and_damage_is_noticed(tmp_path: Path, suffix: str) -> None:
    path, compress = tmp_path / f"en-de.tsv{suffix}", COMPRESSORS[suffix]
    path.write_bytes(compress(TSV))
    assert pairs_of(path) == PAIRS
    path.write_bytes(compress(TSV) + compress(TSV))  # several members in one file
    assert pairs_of(path) == PAIRS * 2
    if suffix:
        whole = compress(b"".join(b"%d\tein Satz\n" % (i * i * 7919) for i in range(20_000)))
        for content, line in ((whole[: len(whole) // 2], r"\d"), (b"plain text\n" * 100, "0")):
            path.write_bytes(content)
            damaged = rf"{re.escape(str(path))}: cannot be read beyond line {line}.* damaged"
            with pytest.raises(DataError, match=damaged):
                pairs_of(path)


TEXT = "ein Satz\tone sentence\n" * 20
CHINESE = "今天天气很好我们去公园\t我们去公园今天\n" * 20


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.txt", TEXT.encode("utf-16"), "expected UTF-8 text (convert it: iconv -f utf-16"),
        ("a.txt", TEXT.encode("utf-16-le"), "holds UTF-16 or"),
        ("a.txt", CHINESE.encode("utf-16-be"), "holds UTF-16 or"),
        ("a.txt", CHINESE.encode("utf-32-le"), "UTF-32 text"),
        ("a.txt", gzip.compress(TEXT.encode()), "is compressed data; its name must end in .gz."),
        ("a.txt", COMPRESSORS[".xz"](TEXT.encode()), "its name must end in .xz."),
        ("a.txt.xz", COMPRESSORS[".zst"](TEXT.encode()), "its name must end in .zst."),
        ("a.txt.gz", gzip.compress(gzip.compress(TEXT.encode())), "holds .gz, expected UTF-8"),
        ("a.txt", b"PK\x03\x04" + bytes(99), "holds a zip archive"),
        ("a.txt", b"\x80\x04\x95" + bytes(99), "no text at all"),
        ("a.txt", TEXT.replace("\n", "\r").encode(), "holds text whose lines end in CR alone"),
        ("a.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
        ("a.txt", TEXT.encode() + b"a\x00b\n", ", line 21: a null byte at position 1"),
        ("a.txt", "für\n".encode("latin-1"), ", line 1: invalid UTF-8, byte 0xfc"),
    ],
)
def test_what_is_no_text_is_called_by_its_name(
    tmp_path: Path, name: str, content: bytes, complaint: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(f"{path}") + ".*" + re.escape(complaint)):
        sentences_of(f"de={path}")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "de.txt")
    os.mkfifo(tmp_path / "x.en")
    (tmp_path / "x.fr").touch()
    for read, spec in ((sentences_of, tmp_path / "de.txt"), (pairs_of, f"{tmp_path}/x.en,{tmp_path}/x.fr")):
        with pytest.raises(DataError, match="is a pipe or device; .* write it to a file first"):
            read(spec)


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    path = tmp_path / "de.txt"
    path.write_bytes("\ufeffa\u2028b\u0085c\x0bd\r\n\ufeffzwei\r\n\nlast".encode())
    assert sentences_of(path) == ["a\u2028b\u0085c\x0bd", "\ufeffzwei", "", "last"]


def test_jsonl_and_parquet_by_language_names_and_as_translations(tmp_path: Path) -> None:
    path, text = tmp_path / "en-de.jsonl", tmp_path / "de.jsonl"
    records: list[dict[str, Any]] = [
        {"en": "one", "de": "eins", "id": 3},
        {"translation": {"de": "zwei", "en": "two"}},
        {"en": None, "de": "drei"},
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    text.write_text('{"text": "eins\\nzwei"}\n\n')
    for name, table in {
        "en-de": {"en": [a for a, _ in PAIRS], "de": [b for _, b in PAIRS], "id": [1, 2, 3]},
        "x.en-de": {"translation": [{"en": a, "de": b} for a, b in PAIRS]},
        "de": {"text": ["eins\nzwei", None]},
    }.items():
        parquet.write_table(pyarrow.table(table), tmp_path / f"{name}.parquet")
    for each in (path, tmp_path / "en-de.parquet", tmp_path / "x.en-de.parquet"):
        assert pairs_of(each) == PAIRS
    assert pairs_of(f"de-en={path}") == [(b, a) for a, b in PAIRS]
    assert sentences_of(text) == sentences_of(text.with_suffix(".parquet")) == ["eins", "zwei", ""]
    (tmp_path / "fr.tsv").write_text("news\tun\nnews\tdeux\n")
    assert sentences_of(tmp_path / "fr.tsv") == ["un", "deux"]
    (tmp_path / "no.parquet").write_bytes(b"PAR1 no parquet")
    for name, complaint in {
        "de": "missing columns translation / en / fr; found text",
        "en-de": "row 1: missing column 'fr'; found en",
        "no": "cannot be read as Parquet",
    }.items():
        with pytest.raises(DataError, match=complaint):
            pairs_of(f"en-fr={tmp_path / name}.parquet")


def test_hub_dataset_is_streamed_and_one_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_dataset(name: str, config: str | None, **options: Any) -> list[dict[str, Any]]:
        calls.append((name, config, options))
        return [{"translation": {"en": a, "de": b}} for a, b in PAIRS]

    def fail(*args: Any, **options: Any) -> Any:
        raise ConnectionError("no route\nmany more lines")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(HfApi, "dataset_info", lambda *args, **options: SimpleNamespace(sha="c0ffee"))
    assert pairs_of("hub:someone/books:en-de:test", revision="abc") == PAIRS
    options = {"split": "test", "streaming": True, "revision": "abc"}
    assert calls == [("someone/books", "en-de", options)]
    assert readers.hub_revision("hub:x:de") == "c0ffee"
    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.setattr(HfApi, "dataset_info", fail)
    with pytest.raises(DataError, match=r"hub:x:de: cannot be read beyond row 0 \(no route\)"):
        sentences_of("hub:x:de")
    with pytest.raises(DataError, match=r"hub:x:de: dataset not reachable on the Hub \(no route\)"):
        readers.hub_revision("hub:x:de")


# ---------------------------------------------------------------------------------------------------- columns


def test_more_than_two_columns_take_the_last_two_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("en-de.tsv", "en-fr.tsv"):
        (tmp_path / name).write_text("bible\tone\teins\nbible\ttwo\tzwei\n")
    sources = parse_bitext_sources([str(tmp_path)])
    assert list(read_rows(sources[0])) == PAIRS[:2]
    assert list(read_rows(sources[0], columns=(2, 0))) == [("eins", "bible"), ("zwei", "bible")]
    with caplog.at_level(logging.WARNING):
        warn_of_extra_columns(sources, (1, 2))
        assert not caplog.records
        warn_of_extra_columns(sources, None)
    assert len(caplog.records) == 1
    assert "--bitext_columns" in caplog.text and "en-de.tsv has 3" in caplog.text


def test_a_last_column_of_scores_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "en-de.tsv"
    path.write_text("one\teins\t0.93\ntwo\tzwei\t-1e-3\n")
    found = r"the last of 3 columns, .* numbers only \(0.93\): "
    with pytest.raises(DataError, match=f"{found}.*--bitext_columns 0 1"):
        pairs_of(path)
    with pytest.raises(DataError, match=f"{found}leave that column out"):
        sentences_of(f"de={path}")
    assert pairs_of(path, columns=(0, 1)) == PAIRS[:2]
    path.write_text("0.93\tone\teins\n0.5\t2\t2\n")
    assert pairs_of(path) == [("one", "eins"), ("2", "2")]


def test_bad_lines_name_file_and_line_or_are_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "en-de.tsv"
    path.write_text("one\teins\ntwo\n\nthree\tdrei\tx\n")
    with pytest.raises(DataError, match=r"en-de.tsv, line 2: missing columns: 2 needed, 1 found"):
        pairs_of(path)
    with pytest.raises(DataError, match=r"line 1: missing columns: 4 needed, 2 found"):
        pairs_of(path, columns=(0, 3))
    skip = SkipBadLines()
    assert pairs_of(path, on_bad_line=skip) == [("one", "eins"), ("", "")] and skip.count == 2
    (tmp_path / "x.en").write_bytes(b"one\nt\xffo\nthree\nf\xfeur\n")
    (tmp_path / "x.de").write_bytes(b"eins\nzwei\ndrei\nvier\n")
    found = r"x.en, line 2: invalid UTF-8, byte 0xff at position 1.*--on_bad_line skip"
    for read, spec in ((pairs_of, f"{tmp_path}/x.{{en,de}}"), (sentences_of, tmp_path / "x.en")):
        with pytest.raises(DataError, match=found):
            read(spec)
    caplog.clear()
    skip = SkipBadLines()
    both_sides = pairs_of(f"{tmp_path}/x.{{en,de}}", on_bad_line=skip)
    assert both_sides == [("one", "eins"), ("three", "drei")] and skip.count == 2
    assert len(caplog.records) == 1 and "line 2" in caplog.text


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not JSON"),
        ("[1]", "found list, expected an object"),
        ('{"en": "a", "fr": "b"}', "missing column 'de'; found en, fr"),
        ('{"en": "a", "de": 3}', "column 'de' holds int, expected text"),
        ('{"en": "a", "de": "b", "en": "c"}', "the key 'en' is given twice"),
        ('{"en": "cut \\ud83d off", "de": "b"}', "column 'en' holds half a surrogate pair at character 4"),
        ('{"en": "a", "de": "b\\u0000"}', "column 'de' holds a null character"),
        ("[" * 100_000, "JSON that is nested too deeply"),
        ('{"en": ' + "9" * 5000, "Exceeds the limit"),
    ],
)
def test_bad_json_lines(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "en-de.jsonl"
    path.write_text('{"en": "a", "de": "b"}\n' + line)
    with pytest.raises(DataError, match=f"en-de.jsonl, line 2: {re.escape(complaint)}.*--on_bad_line skip"):
        pairs_of(path)


# -------------------------------------------------------------------------------------------------- bad input


def test_unequal_line_counts_name_both_counts_and_files_but_blank_lines_at_the_end_do_no_harm(
    tmp_path: Path,
) -> None:
    source, target = tmp_path / "x.en", tmp_path / "x.fr"
    for num_source, num_target in ((3, 5), (1204, 1203)):
        source.write_text("a\n" * num_source)
        target.write_text("b\n" * num_target)
        with pytest.raises(DataError) as error:
            pairs_of(f"{source},{target}")
        assert f"bitext en-fr has {num_source:,} source lines ({source})" in str(error.value)
        assert f"but {num_target:,} target lines ({target})" in str(error.value)
    source.write_text("a\nb\n")
    target.write_text("c\nd\n\n \n")
    assert pairs_of(f"{source},{target}") == [("a", "c"), ("b", "d")]
    (tmp_path / "en-fr.jsonl").write_text('{"en": "a", "fr": "c"}\n\n')  # `prepare` counts it as empty
    assert pairs_of(f"{tmp_path}/en-fr.jsonl") == [("a", "c"), ("", "")]


def test_empty_and_unknown_files(tmp_path: Path) -> None:
    (tmp_path / "de.txt").touch()
    (tmp_path / "fr.txt.gz").write_bytes(gzip.compress(b""))
    for name in ("de.txt", "fr.txt.gz"):
        with pytest.raises(DataError, match=f"{name} is empty"):
            sentences_of(tmp_path / name)
    for name, complaint in {
        "de.txt.lz4": r"unknown compression \.lz4; expected one of .gz, .xz, .bz2, .zst",
        "x.csv": "unknown kind of file; a known file ends in .txt, .tsv",
        "de": "unknown kind of file",
    }.items():
        (tmp_path / name).touch()
        with pytest.raises(DataError, match=complaint):
            sentences_of(f"de={tmp_path / name}")
    with pytest.raises(DataError, match="unknown kind of file"):
        pairs_of(f"en-de={tmp_path / 'x.csv'}")
