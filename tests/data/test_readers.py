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

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from modeling_infoxlm.data import readers
from modeling_infoxlm.data.readers import SkipBadLines, read_rows, warn_of_extra_columns
from modeling_infoxlm.data.sources import (
    Source,
    check_language,
    parse_bitext_sources,
    parse_mono_sources,
)
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
def test_every_compression_gives_the_same_pairs(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"en-de.tsv{suffix}"
    path.write_bytes(COMPRESSORS[suffix](TSV))
    assert pairs_of(path) == PAIRS
    path.write_bytes(COMPRESSORS[suffix](TSV) + COMPRESSORS[suffix](TSV))  # several members in one file
    assert pairs_of(path) == PAIRS * 2


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2", ".zst"])
def test_a_file_that_is_cut_short_or_not_compressed_at_all_is_noticed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"de.txt{suffix}"
    whole = COMPRESSORS[suffix](b"".join(b"%d ein Satz\n" % (i * i * 7919) for i in range(20_000)))
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}: cannot be read beyond line .* damaged"):
        sentences_of(path)
    path.write_bytes(b"plain text\n" * 100)
    with pytest.raises(DataError, match="cannot be read beyond line 0"):
        sentences_of(path)


TEXT = "ein Satz\tone sentence\n" * 20
CHINESE = "今天天气很好我们去公园\t我们去公园今天\n" * 20


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        (
            "a.txt",
            TEXT.encode("utf-16"),
            "holds UTF-16 or UTF-32 text, expected UTF-8 text (convert it: iconv -f utf-16",
        ),
        ("a.txt", TEXT.encode("utf-16-le"), "holds UTF-16 or"),
        ("a.txt", CHINESE.encode("utf-16-be"), "holds UTF-16 or"),
        ("a.txt", CHINESE.encode("utf-32-le"), "UTF-32 text"),
        ("a.txt", TEXT.encode("utf-32-be"), "UTF-32 text"),
        ("a.txt", gzip.compress(TEXT.encode()), "is compressed data; its name must end in .gz."),
        ("a.txt", COMPRESSORS[".xz"](TEXT.encode()), "its name must end in .xz."),
        ("a.txt.xz", COMPRESSORS[".zst"](TEXT.encode()), "its name must end in .zst."),
        (
            "a.txt.gz",
            gzip.compress(gzip.compress(TEXT.encode())),
            "holds .gz, expected UTF-8",
        ),
        ("a.txt.gz", gzip.compress(TEXT.encode("utf-16")), "holds UTF-16 or"),
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


def test_a_comma_in_a_folder_is_told_from_the_one_between_two_files(tmp_path: Path) -> None:
    (tmp_path / "a,b").mkdir()
    for name, text in (("x.en", "one\n"), ("x.de", "eins\n")):
        (tmp_path / "a,b" / name).write_text(text)
    assert pairs_of(f"{tmp_path}/a,b/x.en,{tmp_path}/a,b/x.de") == [("one", "eins")]


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    path = tmp_path / "de.txt"
    path.write_bytes("\ufeffa\u2028b\u0085c\x0bd\r\n\ufeffzwei\r\n\nlast".encode())
    assert sentences_of(path) == ["a\u2028b\u0085c\x0bd", "\ufeffzwei", "", "last"]


def test_jsonl_by_language_names_and_as_translations(tmp_path: Path) -> None:
    path = tmp_path / "en-de.jsonl"
    records: list[dict[str, Any]] = [
        {"en": "one", "de": "eins", "id": 3},
        {"translation": {"de": "zwei", "en": "two"}},
        {"en": None, "de": "drei"},
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    assert pairs_of(path) == PAIRS
    assert pairs_of(f"de-en={path}") == [(b, a) for a, b in PAIRS]


def test_parquet(tmp_path: Path) -> None:
    columns = {"en": [a for a, _ in PAIRS], "de": [b for _, b in PAIRS]}
    parquet.write_table(pyarrow.table({**columns, "id": [1, 2, 3]}), tmp_path / "en-de.parquet")
    records = [{"en": a, "de": b} for a, b in PAIRS]
    parquet.write_table(pyarrow.table({"translation": records}), tmp_path / "x.en-de.parquet")
    parquet.write_table(pyarrow.table({"text": ["eins\nzwei", None]}), tmp_path / "de.parquet")
    assert pairs_of(tmp_path / "en-de.parquet") == PAIRS
    assert pairs_of(tmp_path / "x.en-de.parquet") == PAIRS
    assert sentences_of(tmp_path / "de.parquet") == ["eins", "zwei", ""]
    with pytest.raises(DataError, match="missing columns translation / en / fr; found text"):
        pairs_of(f"en-fr={tmp_path / 'de.parquet'}")
    with pytest.raises(DataError, match="row 1: missing column 'fr'; found en"):
        pairs_of(f"en-fr={tmp_path / 'en-de.parquet'}")
    (tmp_path / "en-fr.parquet").write_bytes(b"PAR1 no parquet")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        pairs_of(tmp_path / "en-fr.parquet")


def test_mono_jsonl_and_tsv(tmp_path: Path) -> None:
    (tmp_path / "de.jsonl").write_text('{"text": "eins\\nzwei"}\n')
    (tmp_path / "fr.tsv").write_text("news\tun\nnews\tdeux\n")
    assert sentences_of(tmp_path / "de.jsonl") == ["eins", "zwei"]
    assert sentences_of(tmp_path / "fr.tsv") == ["un", "deux"]


def test_hub_dataset_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    calls = []

    def load_dataset(name: str, config: str | None, **options: Any) -> list[dict[str, Any]]:
        calls.append((name, config, options))
        return [{"translation": {"en": a, "de": b}} for a, b in PAIRS]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (source,) = parse_bitext_sources(["hub:someone/books:en-de:test"])
    assert source == Source(("en", "de"), ("hub:someone/books:en-de:test",))
    assert list(read_rows(source, revision="abc")) == PAIRS
    options = {"split": "test", "streaming": True, "revision": "abc"}
    assert calls == [("someone/books", "en-de", options)]
    assert parse_mono_sources(["hub:cc100:de"]) == [Source(("de",), ("hub:cc100:de",))]
    assert parse_mono_sources(["sw=hub:someone/text"])[0].name == "sw"
    with pytest.raises(
        DataError, match="carries no language pair; write for example en-de=hub:someone/books"
    ):
        parse_bitext_sources(["hub:someone/books"])
    with pytest.raises(DataError, match="expected hub:NAME"):
        parse_mono_sources(["de=hub:a:b:c:d"])


def test_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    def fail(*args: Any, **options: Any) -> Any:
        raise ConnectionError("no route\nmany more lines")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
    with pytest.raises(DataError, match=r"hub:x:de: cannot be read beyond row 0 \(no route\)"):
        sentences_of("hub:x:de")
    with pytest.raises(DataError, match=r"hub:x:de: dataset not reachable on the Hub \(no route\)"):
        readers.hub_revision("hub:x:de")
    info = SimpleNamespace(sha="c0ffee")
    monkeypatch.setattr(
        huggingface_hub.HfApi, "dataset_info", lambda self, name, revision: info if name == "x" else None
    )
    assert readers.hub_revision("hub:x:de") == "c0ffee"


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
    with pytest.raises(
        DataError, match=r"the last of 3 columns, .* numbers only \(0.93\): .*--bitext_columns 0 1"
    ):
        pairs_of(path)
    assert pairs_of(path, columns=(0, 1)) == PAIRS[:2]
    with pytest.raises(DataError, match=r"the last of 3 columns, .* numbers only .*: leave that column out"):
        sentences_of(f"de={path}")
    path.write_text("0.93\tone\teins\n0.5\t2\t2\n")
    assert pairs_of(path) == [("one", "eins"), ("2", "2")]


def test_missing_and_extra_columns_name_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "en-de.tsv"
    path.write_text("one\teins\ntwo\n\nthree\tdrei\tx\n")
    with pytest.raises(DataError, match=r"en-de.tsv, line 2: missing columns: 2 needed, 1 found"):
        pairs_of(path)
    with pytest.raises(DataError, match=r"line 1: missing columns: 4 needed, 2 found"):
        pairs_of(path, columns=(0, 3))
    skip = SkipBadLines()
    assert pairs_of(path, on_bad_line=skip) == [("one", "eins"), ("", "")]
    assert skip.count == 2


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not JSON"),
        ("[1]", "found list, expected an object"),
        ('{"en": "a", "fr": "b"}', "missing column 'de'; found en, fr"),
        ('{"en": "a", "de": 3}', "column 'de' holds int, expected text"),
        ('{"en": "a", "de": NaN}', "column 'de' holds float, expected text"),
        ('{"en": "a", "de": "b", "en": "c"}', "the key 'en' is given twice"),
        ('{"en": "cut \\ud83d off", "de": "b"}', "column 'en' holds half a surrogate pair at character 4"),
        ('{"translation": {"en": "a", "de": "\\udc00"}}', "column 'de' holds half a surrogate pair"),
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


@pytest.mark.parametrize(("num_source", "num_target"), [(3, 5), (1204, 1203)])
def test_unequal_line_counts_name_both_counts_and_files(
    tmp_path: Path, num_source: int, num_target: int
) -> None:
    (tmp_path / "x.en").write_text("a\n" * num_source)
    (tmp_path / "x.fr").write_text("b\n" * num_target)
    with pytest.raises(DataError) as error:
        pairs_of(f"{tmp_path}/x.en,{tmp_path}/x.fr")
    assert f"bitext en-fr has {num_source:,} source lines ({tmp_path}/x.en)" in str(error.value)
    assert f"but {num_target:,} target lines ({tmp_path}/x.fr)" in str(error.value)


def test_blank_lines_at_the_end_of_a_file_do_no_harm(tmp_path: Path) -> None:
    """An editor or a script adds one; `prepare` counts the blank pairs of JSON lines as empty."""
    (tmp_path / "x.en").write_text("a\nb\n")
    (tmp_path / "x.fr").write_text("c\nd\n\n \n")
    assert pairs_of(f"{tmp_path}/x.en,{tmp_path}/x.fr") == [("a", "c"), ("b", "d")]
    (tmp_path / "en-fr.jsonl").write_text('{"en": "a", "fr": "c"}\n\n')
    assert pairs_of(f"{tmp_path}/en-fr.jsonl") == [("a", "c"), ("", "")]
    (tmp_path / "fr.jsonl").write_text('{"text": "c"}\n\n')
    assert sentences_of(f"{tmp_path}/fr.jsonl") == ["c", ""]


def test_invalid_utf8_names_file_and_line_or_is_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "x.en").write_bytes(b"one\nt\xffo\nthree\nf\xfeur\n")
    (tmp_path / "x.de").write_bytes(b"eins\nzwei\ndrei\nvier\n")
    spec = f"{tmp_path}/x.{{en,de}}"
    with pytest.raises(
        DataError, match=r"x.en, line 2: invalid UTF-8, byte 0xff at position 1.*--on_bad_line skip"
    ):
        pairs_of(spec)
    skip = SkipBadLines()
    assert pairs_of(spec, on_bad_line=skip) == [("one", "eins"), ("three", "drei")]  # both sides are skipped
    assert skip.count == 2
    assert len(caplog.records) == 1 and "line 2" in caplog.text
    with pytest.raises(DataError, match="x.en, line 2: invalid UTF-8"):
        sentences_of(tmp_path / "x.en")


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


def test_missing_files_and_globs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file matches .*/x-\\*.tsv"):
        pairs_of(f"en-de={tmp_path}/x-*.tsv")
    with pytest.raises(DataError, match="no such file or folder"):
        sentences_of(f"de={tmp_path}/none.txt")
    (tmp_path / "x.en").write_text("a\n")
    with pytest.raises(DataError, match="x.fr: no such file; two-file bitext en-fr needs both sides"):
        pairs_of(f"{tmp_path}/x.en,{tmp_path}/x.fr")
    with pytest.raises(DataError, match="holds no file to read"):
        pairs_of(tmp_path)
    with pytest.raises(DataError, match="names languages but no file"):
        pairs_of("en-de=")


def test_two_files_that_are_one_and_one_that_has_one_side(tmp_path: Path) -> None:
    for name in ("x.en", "en-de.txt"):
        (tmp_path / name).write_text("a\n")
    os.symlink(tmp_path / "x.en", tmp_path / "x.fr")
    with pytest.raises(DataError, match="both sides of en-fr are the same file"):
        pairs_of(f"{tmp_path}/x.en,{tmp_path}/x.fr")
    with pytest.raises(DataError, match="has one side only; give two files"):
        pairs_of(tmp_path / "en-de.txt")


# ---------------------------------------------------------------------------------------- names and languages


def test_what_is_no_language_code_never_becomes_a_folder() -> None:
    for code in ("de", "ceb", "zh_Hans", "pt-BR", "sr_Latn_RS"):
        assert check_language(code) == code.replace("-", "_")
    for code in ("", "d", "deutsch", "../de", "de/..", "de_", "d.e", "de\n", "de fr"):
        for languages in ((code,), ("en", code)):
            with pytest.raises(DataError):
                Source(languages, ("x.txt",))


def test_languages_typed_wrongly(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.touch()
    for spec, complaint in {
        f"en={path}": "'en' is not a language pair",
        f"zh-Hans-en={path}": "underscore as in zh_Hans-en",
        f"en-en={path}": "names one language twice",
        f"../../evil={path}": "no such file",
    }.items():
        with pytest.raises(DataError, match=complaint):
            parse_bitext_sources([spec])
    for spec, complaint in {
        f"en-de={path}": "is a pair; text of one language wants",
        f"german={path}": "'german' is not a language code",
    }.items():
        with pytest.raises(DataError, match=complaint):
            parse_mono_sources([spec])


@pytest.mark.parametrize(
    ("name", "pair"),
    [
        ("en-de.tsv.xz", "en-de"),
        ("news.de-en.tsv", "de-en"),
        ("corpus_zh_Hans-en.jsonl.gz", "zh_Hans-en"),
        ("train.en-ceb.parquet", "en-ceb"),
        ("v1-en-de.tsv", "en-de"),
        ("dev.en-de.tsv", "en-de"),
        ("wmt-en-de.tsv", "en-de"),
        ("wiki_en-zh_Hans.tsv", "en-zh_Hans"),
        ("top-ten.tsv", None),
        *(
            (f"{name}.tsv", None)
            for name in "en-zh-cn en-pt-br x.en-zh-hans zh-tw pt-br zh-cn-en zh_cn-en en-zh_cn ceb-pt-br "
            "en-zh-CN en-us dev-de".split()
        ),
        ("pairs.tsv", None),
    ],
)
def test_pair_in_the_name(tmp_path: Path, name: str, pair: str | None) -> None:
    (tmp_path / name).touch()
    if pair is None:
        with pytest.raises(DataError, match="carries no language pair; write for example en-de="):
            parse_bitext_sources([str(tmp_path / name)])
    else:
        assert parse_bitext_sources([str(tmp_path / name)])[0].name == pair


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("de.txt.xz", "de"),
        ("news.de.txt", "de"),
        ("news-2020_de.txt.gz", "de"),
        ("cc.zh_Hans.jsonl", "zh_Hans"),
        ("eng_Latn.txt", "eng_Latn"),
        ("news.de", "de"),
        ("dev-de.txt", "de"),
        ("raw.txt", None),
        *((f"{name}.txt", None) for name in "pt_br zh-cn x.zh_cn zh-TW en_us news-pt-br".split()),
        ("SOURCE.txt", None),
        ("en-de.txt", None),
    ],
)
def test_language_in_the_name(tmp_path: Path, name: str, language: str | None) -> None:
    (tmp_path / name).touch()
    if language is None:
        with pytest.raises(DataError, match="carries no language; write for example de="):
            parse_mono_sources([str(tmp_path / name)])
    else:
        assert parse_mono_sources([str(tmp_path / name)])[0].name == language


def test_a_folder_says_aloud_what_it_passes_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("en-de.tsv", "en-pt-br.tsv", "de.txt", "pt_br.txt", "README.md"):
        (tmp_path / name).touch()
    with caplog.at_level(logging.WARNING):
        assert [source.name for source in parse_bitext_sources([str(tmp_path)])] == ["en-de"]
        assert [source.name for source in parse_mono_sources([str(tmp_path)])] == ["de"]
    passed_over = ["de.txt, en-pt-br.tsv, pt_br.txt not read", "en-de.tsv, en-pt-br.tsv, pt_br.txt not read"]
    for record, names in zip(caplog.records, passed_over, strict=True):
        assert (
            names in record.message and "are given as x.en,x.de, others as LANGUAGES=PATH" in record.message
        )


def names(sources: list[Any]) -> list[tuple[str, ...]]:
    return [("-".join(s.languages), *(Path(location).name for location in s.locations)) for s in sources]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "en-fr.tsv",
        "en-de.tsv.gz",
        "x.en",
        "x.sw",
        "tatoeba.de-en.en",
        "tatoeba.de-en.de",
        "multi.en.txt",
        "multi.de.txt",
        "multi.fr.txt",
        "SOURCE.txt",
        "README.md",
        "LICENSE",
        "it.txt",
    ):
        (tmp_path / name).touch()
    return tmp_path


def test_bitext_folder_takes_what_it_recognises(folder: Path) -> None:
    assert names(parse_bitext_sources([str(folder)])) == [
        ("en-de", "en-de.tsv.gz"),
        ("en-fr", "en-fr.tsv"),
    ]
    assert names(parse_bitext_sources([f"en-de={folder}"])) == [("en-de", "en-de.tsv.gz")]


def test_mono_folder_takes_what_it_recognises(folder: Path) -> None:
    found = names(parse_mono_sources([str(folder)]))
    assert ("it", "it.txt") in found and ("de", "multi.de.txt") in found
    assert not {"SOURCE.txt", "README.md", "LICENSE", "en-fr.tsv", "en-de.tsv.gz"} & {
        name for _, name in found
    }
    assert ("it", "SOURCE.txt") in names(parse_mono_sources([f"it={folder}"]))
    assert ("it", "multi.de.txt") not in names(parse_mono_sources([f"it={folder}"]))


def test_globs_braces_and_duplicates(folder: Path) -> None:
    assert names(parse_bitext_sources([f"{folder}/en-*", f"{folder}/en-fr.tsv"])) == [
        ("en-de", "en-de.tsv.gz"),
        ("en-fr", "en-fr.tsv"),
    ]
    assert names(parse_bitext_sources([f"{folder}/multi.{{fr,de}}.txt"])) == [
        ("fr-de", "multi.fr.txt", "multi.de.txt")
    ]
    assert names(parse_bitext_sources([f"{folder}/tatoeba.de-en.de,{folder}/tatoeba.de-en.en"])) == [
        ("de-en", "tatoeba.de-en.de", "tatoeba.de-en.en")
    ]
    with pytest.raises(DataError, match="x.en is plain text and has one side only; .* as in x.en,x.fr"):
        parse_bitext_sources([f"en-sw={folder}/x.*"])
    with pytest.raises(DataError, match="LICENSE: its name carries no language pair"):
        parse_bitext_sources([f"{folder}/L*"])
