"""Tokenizer training: XLM-R's layout, SentencePiece's own ids, the same tokenizer every time."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest
import sentencepiece
from tiny_prepare import WriteLines
from transformers import AutoTokenizer, XLMRobertaTokenizer

from modeling_infoxlm.data import train_tokenizer as module
from modeling_infoxlm.data.sources import parse_bitext_sources, parse_mono_sources
from modeling_infoxlm.data.train_tokenizer import train_tokenizer
from modeling_infoxlm.runs import files
from modeling_infoxlm.runs.errors import DataError, DiskFullError

WORDS = "the house stands on a green hill and every morning light falls through its old windows".split()
WORTE = "das Haus steht auf einem grünen Hügel und jeden Morgen fällt Licht durch seine alten Fenster".split()
MESSY = "ﬁne  Ｈouse\u00a0the\u200bhill。 Ｗindows – grünen <mask> Straße \u2028 x"


def sentences(words: list[str], count: int, seed: int) -> list[str]:
    source = random.Random(seed)
    return [" ".join(source.choices(words, k=8)) for _ in range(count)]


@pytest.fixture
def pair_file(write_lines: WriteLines) -> Path:
    sides = zip(sentences(WORDS, 300, 1), sentences(WORTE, 300, 2), strict=True)
    return write_lines("en-de.tsv", ("\t".join(pair) for pair in sides))


def test_layout_and_loading(pair_file: Path, tmp_path: Path) -> None:
    made = train_tokenizer(
        parse_bitext_sources([str(pair_file)]), tmp_path / "t", vocab_size=60, max_length=64
    )
    for cls in (AutoTokenizer, XLMRobertaTokenizer):
        loaded = cls.from_pretrained(tmp_path / "t")
        assert isinstance(loaded, XLMRobertaTokenizer)
        assert loaded.convert_ids_to_tokens([0, 1, 2, 3]) == ["<s>", "<pad>", "</s>", "<unk>"]
        assert (loaded.mask_token_id, len(loaded), loaded.model_max_length) == (59, 60, 64)
        assert loaded(MESSY).input_ids == made(MESSY).input_ids
        assert loaded("ﬁne Ｈouse").input_ids == loaded("fine House").input_ids  # normalised as XLM-R's
        assert loaded("x <mask>").input_ids[-2:] == [59, 2]
    ids = made("the green house", add_special_tokens=False).input_ids
    assert len(ids) < 15 and made.unk_token_id not in ids
    assert made.decode(ids) == "the green house"


def test_ids_are_those_of_sentencepiece(pair_file: Path) -> None:
    lines = [side for line in pair_file.read_text().splitlines() for side in line.split("\t")]
    model = module._train_unigram(lines, num_pieces=59)
    tokenizer = module._as_xlm_roberta(model, 64)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in [*lines[:50], MESSY.replace("<mask>", ""), "ｶﾞ ½ Å"]:
        assert tokenizer(text, add_special_tokens=False).input_ids == processor.encode(text)


def test_same_text_same_tokenizer(pair_file: Path, tmp_path: Path) -> None:
    shuffled, lines = pair_file.with_name("b.en-de.tsv"), pair_file.read_bytes().splitlines(keepends=True)
    shuffled.write_bytes(b"".join([b"\xff\tx\n", *lines[::-1], *lines[:50]]))  # the bad line is passed over
    for name, path in {"a": pair_file, "b": shuffled}.items():
        train_tokenizer(parse_bitext_sources([str(path)]), tmp_path / name, vocab_size=60)
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "b/tokenizer.json").read_bytes()


def test_languages_are_balanced_by_the_exponent() -> None:
    samples = {language: module._Sample(1000, bytes(16)) for language in ("de", "en")}
    for language, count in (("en", 810), ("de", 10)):
        for number in range(count):
            samples[language].add(f"{language} {number}")
    chosen = module._balanced(samples, sampling_alpha=0.5, max_sentences=100)
    counts = [sum(line.startswith(language) for line in chosen) for language in ("de", "en")]
    assert counts == [10, 90]  # sqrt(10) : sqrt(810) = 1 : 9
    assert len(module._balanced(samples, sampling_alpha=1.0, max_sentences=1000)) == 820


def test_sample_is_distinct_bounded_and_independent_of_order() -> None:
    lines = [f"line {number}" for number in range(5000)]
    samples = []
    for order, key in ((lines, 0), (lines[::-1] + lines[:700], 0), (lines, 1)):
        sample = module._Sample(500, key.to_bytes(16, "little"))
        for line in order:
            sample.add(line)
        assert len(sample._lines) <= 1000
        assert 4000 < sample.estimated_size() < 6000
        samples.append(sample.lines())
    assert samples[0] == samples[1] and len(set(samples[0])) == 500
    assert set(samples[2]) != set(samples[0])


def test_too_little_text_or_no_place_for_a_folder(
    write_lines: WriteLines, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = parse_mono_sources([str(write_lines("de.txt", sentences(WORTE, 20, 3)))])
    made = train_tokenizer(sources, tmp_path / "t", vocab_size=5000)
    assert len(made) < 5000 and "of the 5000 tokens asked for" in caplog.text
    complaint = "a tokenizer of 12 tokens cannot be trained on this text: .*12|small"
    with pytest.raises(DataError, match=complaint):
        train_tokenizer(sources, tmp_path / "t", vocab_size=12)
    blank = write_lines("fr.txt", ["", " "])
    with pytest.raises(DataError, match="no text to train a tokenizer on"):
        train_tokenizer(parse_mono_sources([str(blank)]), tmp_path / "t", vocab_size=60)
    monkeypatch.setattr(module, "_collect", None)  # what follows is refused before the work
    for folder in (blank, blank / "deeper"):
        with pytest.raises(DataError, match="a file is in its place; give another --output_dir"):
            train_tokenizer(sources, folder, vocab_size=60)


def test_a_full_disk_leaves_no_half_tokenizer(
    pair_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = parse_bitext_sources([str(pair_file)])
    train_tokenizer(sources, tmp_path / "old", vocab_size=60)
    before = (tmp_path / "old/tokenizer.json").read_bytes()

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "fsync_file", full)
        for name in ("old", "new"):
            with pytest.raises(DiskFullError, match=f"{name} cannot be written: .*the same command"):
                train_tokenizer(sources, tmp_path / name, vocab_size=50)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["en-de.tsv", "old"]
    assert (tmp_path / "old/tokenizer.json").read_bytes() == before
    assert len(train_tokenizer(sources, tmp_path / "old", vocab_size=50)) == 50
    assert len(AutoTokenizer.from_pretrained(tmp_path / "old")) == 50
