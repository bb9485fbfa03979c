"""Prepare: exact shards, nothing held out leaks, restarts redo only what is missing, bad input is a line."""

from __future__ import annotations

import errno
import json
import lzma
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, XLMRobertaTokenizer

from modeling_infoxlm.data import claims, decide, plan, shards, work
from modeling_infoxlm.data import prepare as prepare_module
from modeling_infoxlm.data.prepare import PrepareSettings, prepare, prepare_part
from modeling_infoxlm.data.shards import Corpus
from modeling_infoxlm.data.sources import parse_bitext_sources, parse_mono_sources
from modeling_infoxlm.runs import files
from modeling_infoxlm.runs.errors import DataError, DiskFullError

WriteLines = Callable[[str, Iterable[str]], Path]
Run = Callable[..., Corpus]
Letters = XLMRobertaTokenizer
Texts = Callable[[shards.TokenStore], list[str]]


@pytest.fixture
def run(tmp_path: Path, letter_tokenizer: Letters) -> Run:
    """Prepare `tmp_path/out` from specs; keywords that are no settings go to `prepare`."""

    def run(
        bitext: Iterable[str | Path] = (),
        mono: Iterable[str | Path] = (),
        *,
        output_dir: Path = tmp_path / "out",
        tokenizer: XLMRobertaTokenizer = letter_tokenizer,
        num_workers: int = 1,
        **settings: Any,
    ) -> Corpus:
        return prepare(
            [*parse_bitext_sources(map(str, bitext)), *parse_mono_sources(map(str, mono))],
            tokenizer=tokenizer,
            output_dir=output_dir,
            settings=PrepareSettings(**settings),
            num_workers=num_workers,
        )

    return run


@pytest.fixture
def texts(letter_tokenizer: Letters) -> Texts:
    """The text of each sequence of a store."""
    return lambda store: [str(letter_tokenizer.decode(store[i].tolist())) for i in range(len(store))]


def vocabulary(tokenizer: XLMRobertaTokenizer) -> list[tuple[str, float]]:
    return [
        (piece, score) for piece, score in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def numbered(prefix: str, count: int) -> list[str]:
    return [f"{prefix} {number}" for number in range(count)]


# ---------------------------------------------------------------------------------------------------- content


def test_pairs_are_bare_ids_in_file_order(run: Run, write_lines: WriteLines, texts: Texts) -> None:
    corpus = run([write_lines("en-de.tsv", ["one\teins", " two \tzwei", "x\ty"])])
    store = corpus.bitext["en-de"]
    assert texts(store.source) == ["one", "two", "x"]
    assert texts(store.target) == ["eins", "zwei", "y"]
    assert not set(corpus.special.all_ids) & set(store.source.gather(np.arange(3))[0].tolist())
    entry = corpus.manifest["bitext"]["en-de"]
    # each letter is a token, and so is the space before a word
    assert {
        key: entry[key] for key in ("num_examples", "num_sentences", "num_tokens", "max_length", "dropped")
    } == {
        "num_examples": 3,
        "num_sentences": 6,
        "num_tokens": 4 + 5 + 4 + 5 + 2 + 2,
        "max_length": 9,
        "dropped": {},
    }
    assert (corpus.mono, corpus.heldout) == ({}, {})


def test_blocks_are_filled_and_never_split_a_sentence(
    run: Run, write_lines: WriteLines, texts: Texts
) -> None:
    # with the space before a word and </s>, a sentence of n letters takes n + 2 places of a block of 12 - 1
    lines = ["abc", "defg", "h", "ijklmnopq", "rstuvwxyzA", "B", "CDEFGHI"]
    corpus = run(mono=[write_lines("de.txt", lines)], max_seq_length=12)
    assert texts(corpus.mono["de"]) == [
        "<s> abc</s> defg</s>",
        "<s> h</s>",
        "<s> ijklmnopq</s>",
        "<s> B</s>",
        "<s> CDEFGHI</s>",  # together with the block before it would be one too many
    ]
    blocks = [corpus.mono["de"][index].tolist() for index in range(5)]
    assert [len(block) for block in blocks] == [12, 4, 12, 4, 10]
    entry = corpus.manifest["mono"]["de"]
    assert entry["dropped"] == {"too_long": 1}
    assert (entry["num_examples"], entry["num_sentences"], entry["max_length"]) == (5, 6, 12)
    assert entry["num_tokens"] == sum(map(len, blocks))


def test_every_reason_to_drop_is_counted(run: Run, write_lines: WriteLines) -> None:
    lines = [
        "one\teins",
        "\tempty",
        "empty\t \u2028",
        "same\tsame",
        "one\teins",
        "one\tuno",  # another pair
        "abcdefghijkl\tlong",
        "a\tabcdefgh",
    ]
    corpus = run([write_lines("en-de.tsv", lines)], max_seq_length=27, max_length_ratio=4.0)
    assert corpus.manifest["settings"]["max_side_length"] == 12
    dropped = {"duplicate": 1, "empty": 2, "identical_sides": 1, "length_ratio": 1, "too_long": 1}
    assert corpus.manifest["bitext"]["en-de"]["dropped"] == dropped
    assert len(corpus.bitext["en-de"]) == 2
    path, other = write_lines("de.txt", ["abc", "a", "abc"]), corpus.folder.with_name("other")
    corpus = run(mono=[path], min_length=3, deduplicate=False, output_dir=other)
    assert corpus.manifest["mono"]["de"]["dropped"] == {"too_short": 1}
    assert corpus.manifest["mono"]["de"]["num_sentences"] == 2


def test_special_tokens_in_the_text_are_text(run: Run, write_lines: WriteLines, texts: Texts) -> None:
    line = "press <s> now\tdas </s> <mask> Feld"
    corpus = run([write_lines("en-de.tsv", [line])])
    store = corpus.bitext["en-de"]
    for side in (store.source, store.target):
        assert not set(side[0].tolist()) & set(corpus.special.all_ids)
        assert 3 not in side[0]
    assert texts(store.source) == ["press <s> now"]


@pytest.mark.parametrize("model", ["bpe", "wordpiece"])
def test_other_kinds_of_fast_tokenizers(run: Run, write_lines: WriteLines, model: str) -> None:
    vocab = {
        piece: i
        for i, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ab", "a", "b", "[", "]"])
    }
    kinds = {
        "bpe": models.BPE(vocab, [("a", "b")], unk_token="[UNK]"),
        "wordpiece": models.WordPiece(vocab, unk_token="[UNK]"),
    }
    backend = Tokenizer(kinds[model])
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.add_tokens(["domain"])
    corpus = run(mono=[write_lines("de.txt", ["ab a b domain c", "[ab]"])], tokenizer=tokenizer)
    assert corpus.mono["de"][0].tolist() == [2, 5, 6, 7, 10, 1, 3, 8, 5, 9, 3]
    assert (corpus.special.bos, corpus.special.eos, corpus.special.mask, corpus.special.vocab_size) == (
        2,
        3,
        4,
        11,
    )


def test_sides_of_pairs_become_blocks_each_sentence_once(
    run: Run, write_lines: WriteLines, texts: Texts
) -> None:
    bitext = write_lines("en-de.tsv", ["one\teins", "one\tein", "same\tsame", "two\tzwei"])
    mono = write_lines("de.txt", ["drei"])
    corpus = run([bitext], [mono], mono_from_bitext=True)
    assert texts(corpus.mono["en"]) == ["<s> one</s> two</s>"]
    assert texts(corpus.mono["de"]) == ["<s> eins</s> ein</s> zwei</s>", "<s> drei</s>"]
    assert corpus.manifest["mono"]["de"]["num_sentences"] == 4


def test_truncation_left_in_the_tokenizer_does_not_matter(
    run: Run, write_lines: WriteLines, letter_tokenizer: Letters
) -> None:
    path = write_lines("de.txt", ["abcdefgh"])
    letter_tokenizer("warm up", truncation=True, max_length=3, padding="max_length")
    try:
        assert len(run(mono=[path]).mono["de"][0]) == 11
    finally:
        letter_tokenizer.backend_tokenizer.no_truncation()
        letter_tokenizer.backend_tokenizer.no_padding()


# --------------------------------------------------------------------------------------------------- held out


@pytest.fixture
def multiway(write_lines: WriteLines) -> list[Path]:
    """The same 200 English sentences in three pairs, and one pair without English."""
    english = numbered("word", 200)
    paths = [
        write_lines(f"en-{language}.tsv", (f"{text}\t{language} {text}" for text in english))
        for language in ("de", "fr", "sw")
    ]
    return [*paths, write_lines("fr-de.tsv", (f"fr {text}\tde {text}" for text in english))]


def test_nothing_held_out_is_trained_on(
    run: Run, write_lines: WriteLines, multiway: list[Path], texts: Texts
) -> None:
    mono = [
        write_lines(f"mono.{language}.txt", numbered(f"{language} word", 200)) for language in ("de", "sw")
    ]
    # upper case and full-width forms are the same sentence for this purpose
    mono.append(write_lines("mono.en.txt", [f"ＷORD {number}" for number in range(200)]))
    corpus = run(multiway, mono, heldout_fraction=0.2, mono_from_bitext=True)
    selected = {source for source, _ in corpus.heldout_text("en-de")}
    assert 20 < len(selected) < 60
    for pair in ("en-fr", "en-sw"):
        assert {source for source, _ in corpus.heldout_text(pair)} == selected
    secret = {text for pair in corpus.heldout for texts in corpus.heldout_text(pair) for text in texts}
    for pair, store in corpus.bitext.items():
        trained = {*texts(store.source), *texts(store.target)}
        assert trained and not trained & secret
        entry = corpus.manifest["bitext"][pair]
        assert entry["num_examples"] + entry["dropped"]["heldout"] == 200
    lowered = {text.lower() for text in secret}
    for blocks in corpus.mono.values():
        sentences = {s.strip().lower() for t in texts(blocks) for s in t[3:].split("</s>")}
        assert len(sentences) > 50 and not sentences & lowered
    assert corpus.manifest["mono"]["en"]["dropped"]["heldout"] == len(selected)
    # fr-de has no English side: its French side decides, and what it selects is kept out of en-fr too
    assert not {source for source, _ in corpus.heldout_text("fr-de")} & set(
        texts(corpus.bitext["en-fr"].target)
    )


# What the letter tokenizer drops or merges: spaces, and all letters that it does not know.
SAME_TO_THE_MODEL = {
    "double space": lambda text: text.replace(" ", "  "),
    "no-break space": lambda text: text.replace(" ", "\u00a0"),
    "line separator": lambda text: text.replace(" ", "\u2028 "),
    "an unknown letter": lambda text: f"{text} \u0e01",
    "capitals": str.upper,
    # Which it sees, as <unk>, where a reader sees nothing.
    "soft hyphens": lambda text: text.replace("o", "o\u00ad"),
}


@pytest.mark.parametrize("kind", SAME_TO_THE_MODEL)
def test_what_is_held_out_is_not_trained_on_in_another_spelling(
    run: Run, write_lines: WriteLines, kind: str
) -> None:
    change = SAME_TO_THE_MODEL[kind]
    english = [f"{text} \u0e02" if kind == "an unknown letter" else text for text in numbered("word", 100)]
    paths = [
        write_lines("en-de.tsv", (f"{text}\tde {number}" for number, text in enumerate(english))),
        write_lines("en-fr.tsv", (f"{change(text)}\tfr {n}" for n, text in enumerate(numbered("word", 100)))),
    ]
    corpus = run(paths, [write_lines("en.txt", map(change, numbered("word", 100)))], heldout_fraction=0.2)
    held = {tuple(corpus.heldout["en-de"].source[i].tolist()) for i in range(len(corpus.heldout["en-de"]))}
    assert 10 < len(held) < 40
    for entry in (corpus.manifest["bitext"]["en-fr"], corpus.manifest["mono"]["en"]):
        assert entry["dropped"]["heldout"] >= len(held)
    trained = corpus.bitext["en-fr"].source
    assert not held & {tuple(trained[i].tolist()) for i in range(len(trained))}


def test_duplicates_and_identical_sides_are_told_by_ids_within_and_across_files(
    run: Run, write_lines: WriteLines
) -> None:
    one = write_lines("a.en-de.tsv", ["one two\teins", "one  two\teins", "x \u0e01\tx  \u0e02", "b\tc"])
    two = write_lines("b.en-de.tsv", ["b\u00a0\tc", "one\u3000two\teins", "new\tneu"])
    mono = [write_lines("a.de.txt", ["ein Satz", "eins"]), write_lines("b.de.txt", ["ein  Satz", "zwei"])]
    corpus = run([one, two], mono, mono_from_bitext=True)
    assert corpus.manifest["bitext"]["en-de"]["dropped"] == {"duplicate": 3, "identical_sides": 1}
    assert corpus.manifest["mono"]["de"]["dropped"] == {"duplicate": 1}
    assert corpus.manifest["bitext"]["en-de"]["num_examples"] == 3
    assert corpus.manifest["mono"]["de"]["num_sentences"] == 3 + 2  # "eins" of a pair stands in a.de.txt
    everything = run([one, two], mono, deduplicate=False, output_dir=corpus.folder.with_name("all"))
    assert everything.manifest["bitext"]["en-de"]["num_examples"] == 6


def test_a_script_that_the_tokenizer_does_not_know_is_dropped_and_warned_of(
    run: Run, write_lines: WriteLines, caplog: pytest.LogCaptureFixture
) -> None:
    lines = ["one\teins", "\u0e01\u0e02 \u0e03\t\U00012000", "one \u0e01\tein \u0e01", "two\t\u0e01"]
    corpus = run([write_lines("en-th.tsv", lines)], [write_lines("th.txt", ["a", "\u0e01 \u0e02"])])
    assert corpus.manifest["bitext"]["en-th"]["dropped"] == {"unknown": 2}
    assert corpus.manifest["mono"]["th"]["dropped"] == {"unknown": 1}
    assert "en-th.tsv: 20% of the tokens are <unk>" in caplog.text
    caplog.clear()
    run([write_lines("en-de.tsv", ["one\teins"])], output_dir=corpus.folder.with_name("known"))
    assert "<unk>" not in caplog.text


def test_a_file_whose_name_is_no_text(run: Run, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.en-de.tsv")
    path.write_text("one\teins\n")
    assert run([path]).manifest["sources"][0]["files"][0]["path"].endswith("\\xff.en-de.tsv")
    assert len(run([path]).bitext["en-de"]) == 1


def test_heldout_ids_and_text_agree_and_are_limited(run: Run, multiway: list[Path], texts: Texts) -> None:
    corpus = run(multiway, heldout_fraction=0.2, heldout_max_pairs=7)
    everything = run(multiway, heldout_fraction=0.2, output_dir=corpus.folder.with_name("all"))
    for pair, store in corpus.heldout.items():
        assert len(store) == 7
        sides = zip(texts(store.source), texts(store.target), strict=True)
        assert list(sides) == corpus.heldout_text(pair)
        assert corpus.heldout_text(pair) == everything.heldout_text(pair)[:7]
        # the limit is one of evaluation only: what was selected beyond it is not trained on either
        assert contents_of(corpus, pair) == contents_of(everything, pair)
    others = run(multiway, heldout_fraction=0.2, prepare_seed=1, output_dir=corpus.folder.with_name("other"))
    assert set(others.heldout_text("en-de")) != set(everything.heldout_text("en-de"))


def contents_of(corpus: Corpus, pair: str) -> tuple[list[int], list[int]]:
    store = corpus.bitext[pair]
    everything = np.arange(len(store))
    return store.source.gather(everything)[0].tolist(), store.target.gather(everything)[0].tolist()


def test_heldout_pairs_are_usable_and_distinct(run: Run, write_lines: WriteLines) -> None:
    english = numbered("word", 60)
    lines = [f"{text}\tja" for text in english[:30]] + [f"{text}\tnein {text}" for text in english[30:]]
    lines += [f"{text}\tdoch {text}" for text in english] + [f"{text}\t{'x' * 60} {text}" for text in english]
    corpus = run([write_lines("en-de.tsv", lines)], heldout_fraction=0.5, max_seq_length=64)
    pairs = corpus.heldout_text("en-de")
    assert len({source for source, _ in pairs}) == len({target for _, target in pairs}) == len(pairs) > 10


# ------------------------------------------------------------------------------------------------ restarting


def test_workers_do_not_change_a_byte(
    run: Run, multiway: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_BYTES_PER_WORKER", 1)  # or such small files would share one process
    options: dict[str, Any] = {"heldout_fraction": 0.2, "mono_from_bitext": True}
    one = run(multiway, **options)
    two = run(multiway, **options, num_workers=2, output_dir=tmp_path / "two")
    assert contents(one.folder) == contents(two.folder)
    assert not (one.folder / "work").exists()


def test_a_complete_folder_is_opened_and_not_touched(
    run: Run, multiway: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = contents(run(multiway).folder)
    monkeypatch.setattr(prepare_module, "read_source", None)
    monkeypatch.setattr(plan, "_sha256", None)  # unchanged size and time: not even read again
    assert contents(run(multiway).folder) == before
    monkeypatch.undo()
    for path in multiway:  # the same text elsewhere and younger is still the same text
        os.utime(path, (1, 1))
    moved = [shutil.copy(path, tmp_path / f"copy.{path.name}") for path in multiway]
    assert contents(run(moved[::-1]).folder) == before


def failing_on(patch: pytest.MonkeyPatch, step: str, name: str) -> list[str]:
    """Let a step fail at one file; returns the files that it is called for."""
    original, calls = getattr(prepare_module, step), list[str]()

    def failing(task: Any) -> Any:
        calls.append(Path(task.unit.source.locations[0]).name)
        if calls[-1] == name:
            raise KeyboardInterrupt
        return original(task)

    patch.setattr(prepare_module, step, failing)
    return calls


@pytest.mark.parametrize("step", ["read_source", "write_source"])
def test_a_killed_run_redoes_only_what_was_unfinished(
    run: Run, multiway: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    options: dict[str, Any] = {"heldout_fraction": 0.2, "mono_from_bitext": True}
    straight = run(multiway, **options, output_dir=tmp_path / "straight")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        first = failing_on(patch, step, "en-sw.tsv")
        run(multiway, **options)
    assert not (tmp_path / "out" / "manifest.json").exists()
    for name in (
        "bitext/en-sw/half-0123456789abcdef.source.tokens.0123abcd.partial",
        "bitext/en-sw/half-0123456789abcdef.source.tokens.partial",
        "heldout/en-de.tsv.4711.partial",
        "heldout/en-it.source.tokens",
        "manifest.json.4711.partial",
        "work/half-0123456789abcdef.scan.npz",
    ):
        left = tmp_path / "out" / name
        left.parent.mkdir(parents=True, exist_ok=True)
        left.write_bytes(b"by kill -9")
    with monkeypatch.context() as patch:
        second = failing_on(patch, step, "")
        if step == "write_source":
            patch.setattr(prepare_module, "read_source", None)  # what was read is known already
        patch.setattr(plan, "_sha256", None)
        resumed = run(multiway, **options)
    assert sorted([*first[:-1], *second]) == sorted(path.name for path in multiway)
    assert first[-1] == "en-sw.tsv" and "en-sw.tsv" in second
    assert contents(resumed.folder) == contents(straight.folder)


def test_leftovers_of_a_kill_behind_the_manifest_go_and_files_of_the_user_stay(
    run: Run, multiway: list[Path]
) -> None:
    corpus = run(multiway)
    before = contents(corpus.folder)
    names = [
        "work/en-de.tsv-0123456789abcdef.npz",
        "manifest.json.4711.partial",
        "heldout/en-de.tsv.1.partial",
    ]
    for name in [*names, "work/mine.txt", "heldout/notes.txt", "bitext/en-de/notes.json"]:
        (corpus.folder / name).parent.mkdir(exist_ok=True)
        (corpus.folder / name).write_text("x")
    run(multiway)
    assert contents(corpus.folder).keys() - before.keys() == {
        "work/mine.txt",
        "heldout/notes.txt",
        "bitext/en-de/notes.json",
    }


def test_a_full_disk_removes_the_shard_keeps_the_rest_and_says_what_to_do(
    run: Run, multiway: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = files.fsync_file

    def full(path: Path) -> None:
        if path.name.startswith("en-sw"):
            raise OSError(errno.ENOSPC, "No space left on device")
        original(path)

    with monkeypatch.context() as patch, pytest.raises(DiskFullError) as error:
        patch.setattr(files, "fsync_file", full)
        run(multiway)
    assert re.search(f"{tmp_path}/out/.* cannot be written.* run the same command again", str(error.value))
    assert not [name for name in contents(tmp_path / "out") if "en-sw" in name or name.endswith(".partial")]
    assert sorted(run(multiway).bitext) == ["en-de", "en-fr", "en-sw", "fr-de"]


def test_unfinished_folder_takes_other_settings_and_leaves_no_orphans(
    run: Run, multiway: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        failing_on(patch, "write_source", "fr-de.tsv")
        run(multiway)
    own = tmp_path / "out/bitext/en-de/notes.json"
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text("of the user")
    finished = run(multiway, min_length=2)
    straight = run(multiway, min_length=2, output_dir=tmp_path / "straight")
    own.unlink()  # it was left alone
    assert contents(finished.folder) == contents(straight.folder)


def test_parts_make_the_same_corpus(
    run: Run, multiway: list[Path], tmp_path: Path, letter_tokenizer: Letters
) -> None:
    settings = PrepareSettings(heldout_fraction=0.2)
    whole = run(multiway, heldout_fraction=0.2)

    def part(index: int) -> Corpus | None:
        return prepare_part(
            parse_bitext_sources(map(str, multiway)),
            tokenizer=letter_tokenizer,
            output_dir=tmp_path / "parts",
            settings=settings,
            shard_index=index,
            num_shards=3,
        )

    assert part(2) is None and part(0) is None
    corpus = part(1)
    assert corpus is not None and contents(corpus.folder) == contents(whole.folder)
    assert part(0) is not None  # all is done by now
    with pytest.raises(DataError, match=r"shard_index 3 is not in 0\.\.2"):
        part(3)


@pytest.mark.parametrize("parts", [False, True])
def test_jobs_at_once_share_the_work_and_read_nothing_twice(
    run: Run,
    multiway: list[Path],
    tmp_path: Path,
    letter_tokenizer: Letters,
    monkeypatch: pytest.MonkeyPatch,
    parts: bool,
) -> None:
    whole = run(multiway, heldout_fraction=0.2)
    calls: list[str] = []

    def counted(module: Any, name: str, key: Callable[[Any], str]) -> None:
        original = getattr(module, name)

        def counting(*args: Any) -> Any:
            calls.append(f"{name} {key(args[0])}")
            time.sleep(0.05)  # so that jobs meet
            return original(*args)

        monkeypatch.setattr(module, name, counting)

    counted(plan, "_sha256", lambda location: Path(location).name)
    counted(prepare_module, "read_source", lambda task: Path(task.unit.source.locations[0]).name)
    counted(decide, "_decide", lambda plan: "all")
    counted(prepare_module, "write_source", lambda task: Path(task.unit.source.locations[0]).name)
    jobs = 4
    start = threading.Barrier(jobs)

    def job(index: int) -> Corpus | None:
        start.wait()
        options: dict[str, Any] = {
            "tokenizer": letter_tokenizer,
            "output_dir": tmp_path / "shared",
            "settings": PrepareSettings(heldout_fraction=0.2),
        }
        sources = parse_bitext_sources(map(str, multiway))
        if parts:
            return prepare_part(sources, **options, shard_index=index, num_shards=jobs)
        return prepare(sources, **options)

    with ThreadPoolExecutor(jobs) as pool:
        corpora = list(pool.map(job, range(jobs)))
    assert any(corpora) if parts else all(corpora)
    assert contents(tmp_path / "shared") == contents(whole.folder)
    files = [path.name for path in multiway]
    steps = [f"{name} {file}" for name in ("_sha256", "read_source", "write_source") for file in files]
    assert sorted(calls) == sorted([*steps, "_decide all"])


def test_a_claim_of_a_dead_job_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = tmp_path / "x.claim"
    with claims.claimed(claim) as mine, claims.claimed(claim) as again:
        assert mine and not again
        assert not claims.Watch().is_free(claim)  # this process lives
    assert claims.Watch().is_free(claim) and not claim.exists()
    ended = subprocess.Popen(["true"])
    ended.wait()
    claim.write_text(f"{socket.gethostname()} {ended.pid}")  # by kill -9
    assert claims.Watch().is_free(claim) and not list(tmp_path.iterdir())
    claim.write_text("another-machine 1")
    watch = claims.Watch()
    assert not watch.is_free(claim)
    monkeypatch.setattr(claims, "DEAD_AFTER_SECONDS", 0.0)  # no sign of life for that long
    assert watch.is_free(claim)
    made = tmp_path / "made"
    claim.write_text("another-machine 1")
    claims.make_once(made, claim, lambda: made.write_text("x") and None)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


# --------------------------------------------------------------------------------------------- another corpus


def test_differences_are_refused_by_name(
    run: Run, write_lines: WriteLines, multiway: list[Path], letter_tokenizer: Letters
) -> None:
    before = contents(run(multiway).folder)
    with pytest.raises(
        DataError, match=r"prepared differently: max_length was 512, now it is 64; max_side_length"
    ):
        run(multiway, max_seq_length=64)
    other = XLMRobertaTokenizer(vocab=vocabulary(letter_tokenizer)[:-2])
    with pytest.raises(DataError, match="the tokenizer was '' .* tokens, other content"):
        run(multiway, tokenizer=other)
    with pytest.raises(
        DataError, match=r"source fr-de = .*/fr-de.tsv is no longer given\. Choose another folder"
    ):
        run(multiway[:-1])
    with pytest.raises(DataError, match=r"source de = .*/de.txt is new"):
        run(multiway, [write_lines("de.txt", ["x"])])
    write_lines("en-fr.tsv", ["one\tun"])
    with pytest.raises(DataError, match=r"source en-fr = .*/en-fr.tsv has changed"):
        run(multiway)
    assert contents(multiway[0].parent / "out") == before


def test_files_of_one_pair_are_joined_in_the_order_given_each_text_once(
    run: Run, write_lines: WriteLines, texts: Texts, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [write_lines("b.en-de.tsv", ["zwei\tx\ttwo"]), write_lines("a.en-de.tsv", ["eins\tx\tone"])]
    paths.append(write_lines("copy.en-de.tsv", ["zwei\tx\ttwo"]))
    corpus = run(paths, bitext_columns=[2, 0])
    assert texts(corpus.bitext["en-de"].source) == ["two", "one"]
    assert corpus.manifest["bitext"]["en-de"]["num_examples"] == 2
    assert "copy.en-de.tsv equals" in caplog.text and "is left out" in caplog.text


# -------------------------------------------------------------------------------------------------- bad input


def test_two_equal_sides_are_refused(run: Run, write_lines: WriteLines, tmp_path: Path) -> None:
    text = numbered("word", 50)
    write_lines("x.en", text)
    write_lines("x.de", [*text[:46], *numbered("Wort", 4)])
    with pytest.raises(DataError, match="both sides are the same in 46 of 50 pairs of en-de"):
        run([f"{tmp_path}/x.en,{tmp_path}/x.de"])
    assert not list((tmp_path / "out").rglob("*.tokens"))
    write_lines("x.de", [*text[:45], *numbered("Wort", 5)])
    assert len(run([f"{tmp_path}/x.en,{tmp_path}/x.de"]).bitext["en-de"]) == 5


def test_language_without_a_usable_line(run: Run, write_lines: WriteLines) -> None:
    good = write_lines("en-fr.tsv", ["one\tun"])
    bad = write_lines("en-de.tsv", ["\teins", "two\t" + "z" * 300])
    with pytest.raises(DataError, match=r"no usable line in en-de \(dropped: empty 1, too_long 1\)"):
        run([good, bad])
    with pytest.raises(DataError, match=r"no usable line in sw \(dropped: empty 2\)"):
        run([good], [write_lines("sw.txt", ["", " "])])
    assert list(run([good]).bitext) == ["en-fr"]


def test_bad_lines_stop_or_are_counted(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "en-de.tsv.xz"
    path.write_bytes(lzma.compress(b"one\teins\nt\xffo\tzwei\nthree\n"))
    with pytest.raises(DataError, match=r"en-de.tsv.xz, line 2: invalid UTF-8.*--on_bad_line skip"):
        run([path])
    for fraction in (0.0, 0.001):  # the pass that selects held-out sentences must skip them as well
        folder = tmp_path / f"out{fraction}"
        corpus = run([path], on_bad_line="skip", heldout_fraction=fraction, output_dir=folder)
        assert corpus.manifest["bitext"]["en-de"]["dropped"] == {"bad_line": 2}


def test_a_file_in_the_place_of_the_folder(run: Run, multiway: list[Path], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("of the user")
    for folder in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(DataError, match="a file is in its place; give another --output_dir"):
            run(multiway, output_dir=folder)
    assert (tmp_path / "out").read_text() == "of the user"


def test_nothing_given(run: Run) -> None:
    with pytest.raises(DataError, match="nothing to prepare"):
        run()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"max_seq_length": 4}, "max_seq_length must be at least 5, found 4"),
        ({"max_side_length": 600}, "max_side_length is 600; it must be at least min_length"),
        ({"heldout_fraction": 1.0}, "heldout_fraction must be at least 0 and below 1"),
        ({"heldout_language": "../x"}, "not a language code"),
        ({"on_bad_line": "ignore"}, "expected fail or skip"),
        ({"bitext_columns": [1, 1]}, "two different column numbers"),
        ({"bitext_columns": [0, 1, 1]}, "two different column numbers"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        PrepareSettings(**settings)


def test_tokenizers_that_do_not_serve(run: Run, write_lines: WriteLines, letter_tokenizer: Letters) -> None:
    path = write_lines("de.txt", ["abc"])
    without_mask = XLMRobertaTokenizer(vocab=vocabulary(letter_tokenizer))
    without_mask.mask_token = None
    with pytest.raises(DataError, match="has no mask token"):
        run(mono=[path], tokenizer=without_mask)
