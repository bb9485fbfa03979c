"""Sources: which languages and files are meant by what is given."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from modeling_infoxlm.data.sources import Source, check_language, parse_bitext_sources, parse_mono_sources
from modeling_infoxlm.runs.errors import DataError


def test_hub_dataset_is_named_in_full() -> None:
    place = "hub:someone/books:en-de:test"
    assert parse_bitext_sources([place]) == [Source(("en", "de"), (place,))]
    assert parse_mono_sources(["hub:cc100:de"]) == [Source(("de",), ("hub:cc100:de",))]
    assert parse_mono_sources(["sw=hub:someone/text"])[0].name == "sw"
    with pytest.raises(DataError, match="no language pair; write for example en-de=hub:someone/books"):
        parse_bitext_sources(["hub:someone/books"])
    with pytest.raises(DataError, match="expected hub:NAME"):
        parse_mono_sources(["de=hub:a:b:c:d"])


def test_what_cannot_be_found_or_understood(tmp_path: Path) -> None:
    for name in ("x.en", "y.en", "en-de.txt", "x.tsv"):
        (tmp_path / name).write_text("a\n")
    os.symlink(tmp_path / "y.en", tmp_path / "y.fr")
    for spec, complaint in {
        f"en-de={tmp_path}/x-*.tsv": "no file matches .*/x-\\*.tsv",
        f"{tmp_path}/x.en,{tmp_path}/x.fr": "x.fr: no such file; two-file bitext en-fr needs both sides",
        f"{tmp_path}/y.en,{tmp_path}/y.fr": "both sides of en-fr are the same file",
        f"{tmp_path}/en-de.txt": "has one side only; give two files",
        "en-de=": "names languages but no file",
        f"en={tmp_path}/x.tsv": "'en' is not a language pair",
        f"zh-Hans-en={tmp_path}/x.tsv": "underscore as in zh_Hans-en",
        f"en-en={tmp_path}/x.tsv": "names one language twice",
        f"../../evil={tmp_path}/x.tsv": "no such file",
    }.items():
        with pytest.raises(DataError, match=complaint):
            parse_bitext_sources([spec])
    (tmp_path / "empty").mkdir()
    for parse in (parse_bitext_sources, parse_mono_sources):
        with pytest.raises(DataError, match="holds no file to read"):
            parse([str(tmp_path / "empty")])
    for spec, complaint in {
        f"de={tmp_path}/none.txt": "no such file or folder",
        f"en-de={tmp_path}/x.tsv": "is a pair; text of one language wants",
        f"german={tmp_path}/x.tsv": "'german' is not a language code",
    }.items():
        with pytest.raises(DataError, match=complaint):
            parse_mono_sources([spec])


def test_what_is_no_language_code_never_becomes_a_folder() -> None:
    for code in ("de", "ceb", "zh_Hans", "pt-BR", "sr_Latn_RS"):
        assert check_language(code) == code.replace("-", "_")
    for code in ("", "d", "deutsch", "../de", "de/..", "de_", "d.e", "de\n", "de fr"):
        for languages in ((code,), ("en", code)):
            with pytest.raises(DataError):
                Source(languages, ("x.txt",))


def test_languages_in_the_name(tmp_path: Path) -> None:
    pairs = """en-de.tsv.xz en-de, news.de-en.tsv de-en, corpus_zh_Hans-en.jsonl.gz zh_Hans-en
        v1-en-de.tsv en-de, train.en-ceb.parquet en-ceb, dev.en-de.tsv en-de
        wmt-en-de.tsv en-de, wiki_en-zh_Hans.tsv en-zh_Hans"""
    not_pairs = """top-ten en-zh-cn en-pt-br x.en-zh-hans zh-tw pt-br zh-cn-en zh_cn-en en-zh_cn ceb-pt-br
        en-zh-CN en-us dev-de pairs"""
    single = """de.txt.xz de, news.de.txt de, news-2020_de.txt.gz de, cc.zh_Hans.jsonl zh_Hans, news.de de
        eng_Latn.txt eng_Latn, dev-de.txt de"""
    not_single = "raw pt_br zh-cn x.zh_cn zh-TW en_us news-pt-br SOURCE en-de"
    for parse, named, unnamed, suffix, complaint in (
        (parse_bitext_sources, pairs, not_pairs, ".tsv", "no language pair; write for example en-de="),
        (parse_mono_sources, single, not_single, ".txt", "no language; write for example de="),
    ):
        words = named.replace(",", " ").split()
        for name, languages in zip(words[::2], words[1::2], strict=True):
            (tmp_path / name).touch()
            assert parse([str(tmp_path / name)])[0].name == languages, name
        for name in unnamed.split():
            (tmp_path / f"{name}{suffix}").touch()
            with pytest.raises(DataError, match=complaint):
                parse([str(tmp_path / f"{name}{suffix}")])


def names(sources: list[Any]) -> list[tuple[str, ...]]:
    return [("-".join(s.languages), *(Path(location).name for location in s.locations)) for s in sources]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = "en-fr.tsv en-de.tsv.gz x.en x.sw tatoeba.de-en.en tatoeba.de-en.de multi.en.txt multi.de.txt"
    for name in (*files.split(), *"multi.fr.txt SOURCE.txt README.md LICENSE it.txt".split()):
        (tmp_path / name).touch()
    return tmp_path


def test_a_folder_gives_what_it_recognises_and_says_aloud_what_it_passes_over(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = names(parse_bitext_sources([str(folder)]))
    assert found == [("en-de", "en-de.tsv.gz"), ("en-fr", "en-fr.tsv")]
    assert names(parse_bitext_sources([f"en-de={folder}"])) == found[:1]
    found = names(parse_mono_sources([str(folder)]))
    assert ("it", "it.txt") in found and ("de", "multi.de.txt") in found
    others = {"SOURCE.txt", "README.md", "LICENSE", "en-fr.tsv", "en-de.tsv.gz"}
    assert not others & {name for _, name in found}
    assert ("it", "SOURCE.txt") in names(parse_mono_sources([f"it={folder}"]))
    assert ("it", "multi.de.txt") not in names(parse_mono_sources([f"it={folder}"]))
    few = folder / "few"
    few.mkdir()
    for name in ("en-de.tsv", "en-pt-br.tsv", "de.txt", "pt_br.txt", "README.md"):
        (few / name).touch()
    for parse, taken, passed_over in (
        (parse_bitext_sources, "en-de", "de.txt, en-pt-br.tsv, pt_br.txt not read"),
        (parse_mono_sources, "de", "en-de.tsv, en-pt-br.tsv, pt_br.txt not read"),
    ):
        caplog.clear()
        assert [source.name for source in parse([str(few)])] == [taken]
        (record,) = caplog.records
        assert passed_over in record.message
        assert "are given as x.en,x.de, others as LANGUAGES=PATH" in record.message


def test_globs_braces_commas_and_duplicates(folder: Path) -> None:
    given = {
        (f"{folder}/en-*", f"{folder}/en-fr.tsv"): [("en-de", "en-de.tsv.gz"), ("en-fr", "en-fr.tsv")],
        (f"{folder}/multi.{{fr,de}}.txt",): [("fr-de", "multi.fr.txt", "multi.de.txt")],
        (f"{folder}/tatoeba.de-en.de,{folder}/tatoeba.de-en.en",): [
            ("de-en", "tatoeba.de-en.de", "tatoeba.de-en.en")
        ],
    }
    for specs, expected in given.items():
        assert names(parse_bitext_sources(specs)) == expected
    (folder / "a,b").mkdir()  # told from the comma between two files
    for name in ("x.en", "x.de"):
        (folder / "a,b" / name).touch()
    assert names(parse_bitext_sources([f"{folder}/a,b/x.en,{folder}/a,b/x.de"])) == [
        ("en-de", "x.en", "x.de")
    ]
    with pytest.raises(DataError, match="x.en is plain text and has one side only; .* as in x.en,x.fr"):
        parse_bitext_sources([f"en-sw={folder}/x.*"])
    with pytest.raises(DataError, match="LICENSE: its name carries no language pair"):
        parse_bitext_sources([f"{folder}/L*"])
