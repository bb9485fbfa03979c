"""Prepare: exact shards, nothing held out leaks, restarts redo only what is missing, bad input is a line."""

from __future__ import annotations

import errno
import lzma
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_prepare import Letters, Run, Texts, WriteLines, contents, vocabulary
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, XLMRobertaTokenizer

from modeling_infoxlm.data import plan, work
from modeling_infoxlm.data import prepare as prepare_module
from modeling_infoxlm.data.prepare import PrepareSettings, prepare_part
from modeling_infoxlm.data.sources import parse_mono_sources
from modeling_infoxlm.runs import files
from modeling_infoxlm.runs.errors import DataError, DiskFullError

# ---------------------------------------------------------------------------------------------------- content


def test_pairs_are_bare_ids_in_file_order_of_files_as_given_each_text_once(
    run: Run, write_lines: WriteLines, texts: Texts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    no_text = os.fsdecode(b"\xff.en-de.tsv")
    lines = ["eins\tx\tone", "zwei\tx\t two ", "y\t-\tx", "das </s> <mask> Feld\tx\tpress <s> now"]
    paths = [write_lines("b.en-de.tsv", lines[:1]), write_lines(no_text, lines[1:])]
    paths.append(write_lines("copy.en-de.tsv", lines[:1]))
    corpus = run(paths, bitext_columns=[2, 0])
    assert "copy.en-de.tsv equals" in caplog.text and "is left out" in caplog.text
    assert [source["files"][0]["path"][-15:] for source in corpus.manifest["sources"]] == [
        str(paths[0])[-15:],
        "/\\xff.en-de.tsv",
    ]
    store = corpus.bitext["en-de"]
    assert texts(store.source) == ["one", "two", "x", "press <s> now"]
    assert texts(store.target)[:3] == ["eins", "zwei", "y"]
    for side in (store.source, store.target):  # special tokens in the text are text
        assert not set(corpus.special.all_ids) & set(side.gather(np.arange(4))[0].tolist())
    entry = corpus.manifest["bitext"]["en-de"]
    assert (entry["num_examples"], entry["num_sentences"], entry["dropped"]) == (4, 8, {})
    # each letter is a token, and so is the space before a word
    assert entry["num_tokens"] == 4 + 5 + 4 + 5 + 2 + 2 + 14 + 21 and entry["max_length"] == 14 + 21
    assert (corpus.mono, corpus.heldout) == ({}, {})


def test_blocks_are_filled_and_never_split_a_sentence(
    run: Run, write_lines: WriteLines, texts: Texts, letter_tokenizer: Letters
) -> None:
    # truncation and padding left in the tokenizer do not matter
    letter_tokenizer("warm up", truncation=True, max_length=3, padding="max_length")
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


def test_sides_of_pairs_become_blocks_each_sentence_once(
    run: Run, write_lines: WriteLines, texts: Texts
) -> None:
    bitext = write_lines("en-de.tsv", ["one\teins", "one\tein", "same\tsame", "two\tzwei"])
    corpus = run([bitext], [write_lines("de.txt", ["drei"])], mono_from_bitext=True)
    assert texts(corpus.mono["en"]) == ["<s> one</s> two</s>"]
    assert texts(corpus.mono["de"]) == ["<s> eins</s> ein</s> zwei</s>", "<s> drei</s>"]
    assert corpus.manifest["mono"]["de"]["num_sentences"] == 4


def test_every_reason_to_drop_is_counted(
    run: Run, write_lines: WriteLines, caplog: pytest.LogCaptureFixture
) -> None:
    lines = ["one\teins", "\tempty", "empty\t \u2028", "same\tsame", "one\teins"]
    lines += ["one\tuno", "abcdefghijkl\tlong", "a\tabcdefgh"]  # the first is another pair
    corpus = run([write_lines("en-de.tsv", lines)], max_seq_length=27, max_length_ratio=4.0)
    assert corpus.manifest["settings"]["max_side_length"] == 12
    dropped = {"duplicate": 1, "empty": 2, "identical_sides": 1, "length_ratio": 1, "too_long": 1}
    assert corpus.manifest["bitext"]["en-de"]["dropped"] == dropped
    assert len(corpus.bitext["en-de"]) == 2 and "<unk>" not in caplog.text
    other = {"output_dir": corpus.folder.with_name("other")}
    lines = ["one\teins", "\u0e01\u0e02 \u0e03\t\U00012000", "one \u0e01\tein \u0e01", "two\t\u0e01"]
    mono = [write_lines("de.txt", ["abc", "a", "abc"]), write_lines("th.txt", ["abc", "\u0e01 \u0e02"])]
    corpus = run([write_lines("en-th.tsv", lines)], mono, min_length=3, deduplicate=False, **other)
    assert corpus.manifest["mono"]["de"]["dropped"] == {"too_short": 1}
    assert corpus.manifest["mono"]["de"]["num_sentences"] == 2
    # a script that the tokenizer does not know
    assert corpus.manifest["bitext"]["en-th"]["dropped"] == {"unknown": 2}
    assert corpus.manifest["mono"]["th"]["dropped"] == {"unknown": 1}
    assert "en-th.tsv: 20% of the tokens are <unk>" in caplog.text


@pytest.mark.parametrize("model", [models.BPE, models.WordPiece])
def test_other_kinds_of_fast_tokenizers(run: Run, write_lines: WriteLines, model: Any) -> None:
    special = ("pad", "unk", "cls", "sep", "mask")
    pieces = [*(f"[{name.upper()}]" for name in special), "ab", "a", "b", "[", "]"]
    merges = {"merges": [("a", "b")]} if model is models.BPE else {}
    backend = Tokenizer(model({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]", **merges))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = {f"{name}_token": piece for name, piece in zip(special, pieces, strict=False)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.add_tokens(["domain"])
    corpus = run(mono=[write_lines("de.txt", ["ab a b domain c", "[ab]"])], tokenizer=tokenizer)
    assert corpus.mono["de"][0].tolist() == [2, 5, 6, 7, 10, 1, 3, 8, 5, 9, 3]
    special_ids = corpus.special
    assert (special_ids.bos, special_ids.eos, special_ids.mask, special_ids.vocab_size) == (2, 3, 4, 11)


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


def test_a_complete_folder_is_opened_and_only_leftovers_of_a_kill_go(
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
    corpus = run(multiway)
    left = [
        "work/en-de.tsv-0123456789abcdef.npz",
        "manifest.json.4711.partial",
        "heldout/en-de.tsv.1.partial",
    ]
    of_the_user = {"work/mine.txt", "heldout/notes.txt", "bitext/en-de/notes.json"}
    for name in (*left, *of_the_user):
        (corpus.folder / name).parent.mkdir(exist_ok=True)
        (corpus.folder / name).write_text("x")
    run(multiway)
    assert contents(corpus.folder).keys() - before.keys() == of_the_user


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


def test_a_full_disk_keeps_the_other_shards_says_what_to_do_and_other_settings_may_go_on(
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
    left = contents(tmp_path / "out")
    assert left and not [name for name in left if "en-sw" in name or name.endswith(".partial")]
    own = tmp_path / "out/bitext/en-de/notes.json"
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text("of the user")
    finished = run(multiway, min_length=2)
    assert sorted(finished.bitext) == ["en-de", "en-fr", "en-sw", "fr-de"]
    straight = run(multiway, min_length=2, output_dir=tmp_path / "straight")
    own.unlink()  # it was left alone
    assert contents(finished.folder) == contents(straight.folder)


def test_differences_are_refused_by_name(
    run: Run, write_lines: WriteLines, multiway: list[Path], letter_tokenizer: Letters
) -> None:
    before = contents(run(multiway).folder)
    other = XLMRobertaTokenizer(vocab=vocabulary(letter_tokenizer)[:-2])
    settings = "prepared differently: max_length was 512, now it is 64; max_side_length"
    for sources, options, complaint in (
        ([multiway], {"max_seq_length": 64}, settings),
        ([multiway], {"tokenizer": other}, "the tokenizer was '' .* tokens, other content"),
        ([multiway[:-1]], {}, r"fr-de = .*/fr-de.tsv is no longer given\. Choose another folder"),
        ([multiway, [write_lines("de.txt", ["x"])]], {}, "source de = .*/de.txt is new"),
    ):
        with pytest.raises(DataError, match=complaint):
            run(*sources, **options)
    write_lines("en-fr.tsv", ["one\tun"])
    with pytest.raises(DataError, match=r"source en-fr = .*/en-fr.tsv has changed"):
        run(multiway)
    assert contents(multiway[0].parent / "out") == before


# -------------------------------------------------------------------------------------------------- bad input


def test_bad_lines_stop_or_are_counted(run: Run, write_lines: WriteLines, tmp_path: Path) -> None:
    path = tmp_path / "en-de.tsv.xz"
    path.write_bytes(lzma.compress(b"one\teins\nt\xffo\tzwei\nthree\n"))
    with pytest.raises(DataError, match=r"en-de.tsv.xz, line 2: invalid UTF-8.*--on_bad_line skip"):
        run([path])
    for fraction in (0.0, 0.001):  # the pass that selects held-out sentences must skip them as well
        folder = tmp_path / f"out{fraction}"
        corpus = run([path], on_bad_line="skip", heldout_fraction=fraction, output_dir=folder)
        assert corpus.manifest["bitext"]["en-de"]["dropped"] == {"bad_line": 2}
    good = write_lines("en-fr.tsv", ["one\tun"])
    bad = write_lines("en-de.tsv", ["\teins", "two\t" + "z" * 300])
    with pytest.raises(DataError, match=r"no usable line in en-de \(dropped: empty 1, too_long 1\)"):
        run([good, bad])
    with pytest.raises(DataError, match=r"no usable line in sw \(dropped: empty 2\)"):
        run([good], [write_lines("sw.txt", ["", " "])])
    assert list(run([good]).bitext) == ["en-fr"]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"max_seq_length": 4}, "max_seq_length must be at least 5, found 4"),
        ({"max_side_length": 600}, "max_side_length is 600; it must be at least min_length"),
        ({"heldout_fraction": 1.0}, "heldout_fraction must be at least 0 and below 1"),
        ({"heldout_language": "../x"}, "not a language code"),
        ({"on_bad_line": "ignore"}, "expected fail or skip"),
        ({"bitext_columns": [0, 1, 1]}, "two different column numbers"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        PrepareSettings(**settings)


def test_what_cannot_be_prepared_is_refused(
    run: Run, write_lines: WriteLines, letter_tokenizer: Letters, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="nothing to prepare"):
        run()
    path = write_lines("de.txt", ["abc"])
    without_mask = XLMRobertaTokenizer(vocab=vocabulary(letter_tokenizer))
    without_mask.mask_token = None
    with pytest.raises(DataError, match="has no mask token"):
        run(mono=[path], tokenizer=without_mask)
    options = {"tokenizer": letter_tokenizer, "output_dir": tmp_path / "x", "settings": PrepareSettings()}
    with pytest.raises(DataError, match=r"shard_index 3 is not in 0\.\.2"):
        prepare_part(parse_mono_sources([str(path)]), **options, shard_index=3, num_shards=3)
    (tmp_path / "out").write_text("of the user")
    for folder in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(DataError, match="a file is in its place; give another --output_dir"):
            run(mono=[path], output_dir=folder)
    assert (tmp_path / "out").read_text() == "of the user"
