"""SentencePiece gives the ids of the tokenizers library, or the tokenizers library is asked."""

from __future__ import annotations

import itertools
import json
import logging
import lzma
import os
import shutil
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from tokenizers import Tokenizer
from transformers import AutoTokenizer, XLMRobertaTokenizer

from modeling_infoxlm import InfoXLMConfig
from modeling_infoxlm.data import tokenise
from modeling_infoxlm.data.plan import plain_text_encoder
from modeling_infoxlm.data.prepare import prepare
from modeling_infoxlm.data.ragged import PackedRows
from modeling_infoxlm.data.sources import parse_bitext_sources, parse_mono_sources
from modeling_infoxlm.data.tokenise import (
    MODEL_FILE_NAME,
    CannotEncode,
    CheckedEncoder,
    IdsDiffer,
    SentencePieceEncoder,
    TokenizersEncoder,
    find_sentencepiece_model,
)

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "data"
DATA = Path(os.environ.get("INFOXLM_DATA", ROOT / ".." / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not (DATA / "tokenizer_xlmr" / MODEL_FILE_NAME).is_file(),
    reason="INFOXLM_DATA names no folder with tokenizer_xlmr/sentencepiece.bpe.model",
)

DECOMPOSED = [
    unicodedata.normalize("NFD", text)
    for text in ("கொடு போ தமிழ் கௌ", "কোথায় যাচ্ছো দৌড় ড়", "한국어 문장입니다", "Ünïcödé Việt ﬁ")
]
TRAPS = [
    "",
    " ",
    " \t \u00a0\u3000 ",
    "zero\u200bwidth \u200b space\u200b",
    "\u200b",
    "表意\u3000空格 \u3000 两个",
    "no\u00a0break \u00a0 space",
    "thin\u2009 and\u202fnarrow and\u2028line\u2029paragraph\x85next\x1cfile\x0bend\ufeff",
    "soft\u00adhyphen \u00ad alone",
    "\u2581 under \u2581line in\u2581side \u2581",
    "▁▁ ▁a",
    *DECOMPOSED,
    "ா ௗ \u0301 \u0301a a \u0301 \u0bbe\u0bd7",  # signs without a letter before them
    "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇩🇪🇫🇷 a👩‍💻b",
    "\u200d \u200dx \ufe0f",
    "x" * 5000,
    "ha" * 3000,
    "abcdefghij" * 500 + " end",
    "mmmm mmm mm hahaha mmmmm ... !!!! -----",
    "<s> </s> <mask> <unk> <pad> a<mask>b",
    "ｶﾞ ½ Å ① ﷺ ﬁne Ｈouse Ⅷ ㎏",
    "نِّصْف مُتَحَرِّكَةٌ لا ﻻ",
    "\U0010ffff \ue000 \x00 \x07bell",
]


class Counting(TokenizersEncoder):
    """Counts the texts and words that the tokenizers library is asked for."""

    num_texts = 0

    def encode(self, texts: Sequence[str]) -> PackedRows:
        self.num_texts += len(texts)
        return super().encode(texts)


class Wrong:
    """Gives each text a token that it does not have."""

    def encode(self, texts: Sequence[str]) -> PackedRows:
        return PackedRows.from_lists([[5]] * len(texts))


def plain_tokenizer(tokenizer: XLMRobertaTokenizer) -> Tokenizer:
    """As `prepare` uses it: special tokens in a text are text."""
    return Tokenizer.from_str(plain_text_encoder(tokenizer.backend_tokenizer.to_str()))


def load(folder: Path) -> tuple[SentencePieceEncoder, Counting]:
    counting = Counting(plain_tokenizer(XLMRobertaTokenizer.from_pretrained(folder)))
    fast = SentencePieceEncoder(folder / MODEL_FILE_NAME, counting)
    counting.num_texts = 0  # what it asked for while it was loaded
    return fast, counting


def ids(rows: PackedRows) -> list[list[int]]:
    ends = np.cumsum(rows.lengths)
    return [rows.tokens[end - length : end].tolist() for end, length in zip(ends, rows.lengths, strict=True)]


def assert_equal_ids(fast: SentencePieceEncoder, exact: Counting, texts: Sequence[str]) -> None:
    for text, found, wanted in zip(
        texts, ids(fast.encode(texts)), ids(TokenizersEncoder.encode(exact, texts)), strict=True
    ):
        assert found == wanted, repr(text[:200])


def first_lines(path: Path, count: int) -> list[str]:
    with lzma.open(path, "rt", encoding="utf-8") as file:
        return [
            part for line in itertools.islice(file, count) for part in line.rstrip("\n").split("\t") if part
        ]


def example_lines(count: int | None = None) -> list[str]:
    """Sentences in ten languages."""
    paths = sorted(EXAMPLES.glob("en-*.tsv.xz"))
    assert len(paths) == 9
    return [line for path in paths for line in first_lines(path, count or 10**9)]


def train(folder: Path, lines: Sequence[str], vocab_size: int) -> Path:
    """A folder with a SentencePiece model and the tokenizer that transformers makes of it."""
    folder.mkdir()
    with (folder / MODEL_FILE_NAME).open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=file,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            character_coverage=0.9995,
            num_threads=1,
            minloglevel=2,
        )
    XLMRobertaTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("tokenise") / "t", example_lines(150), 3000)


@pytest.fixture(scope="module")
def xlmr() -> Iterator[tuple[SentencePieceEncoder, Counting]]:
    yield load(DATA / "tokenizer_xlmr")


# --- equal ids ----------------------------------------------------------------------------------------------


def test_equal_ids_for_ten_languages(trained: Path) -> None:
    fast, exact = load(trained)
    lines = example_lines()
    assert_equal_ids(fast, exact, lines)
    assert exact.num_texts < 0.2 * len(lines)


def test_equal_ids_for_traps(trained: Path) -> None:
    fast, exact = load(trained)
    assert_equal_ids(fast, exact, TRAPS)
    for text in TRAPS:  # alone, and met for the second time
        assert_equal_ids(fast, exact, [text])
    assert_equal_ids(fast, exact, [f"{one}{two}" for one in TRAPS for two in TRAPS])


def test_words_are_forgotten_when_they_are_too_many(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenise, "_MOST_WORDS", 50)
    fast, exact = load(trained)
    lines = example_lines(40)
    for start in range(0, len(lines), 20):
        assert_equal_ids(fast, exact, lines[start : start + 20])
        assert len(fast._numbers) < 1000


def test_no_text_at_all(trained: Path) -> None:
    fast, exact = load(trained)
    for encoder in (fast, exact, CheckedEncoder(fast, exact)):
        assert len(encoder.encode([])) == 0


@needs_data
@pytest.mark.parametrize("kind", ["mono/*.txt.xz", "parallel/*.tsv.xz"])
def test_equal_ids_for_every_language_with_xlmr(
    xlmr: tuple[SentencePieceEncoder, Counting], kind: str
) -> None:
    fast, exact = xlmr
    exact.num_texts = num_lines = 0
    for path in sorted(DATA.glob(kind)):
        lines = first_lines(path, 300)
        assert_equal_ids(fast, exact, lines)
        num_lines += len(lines)
    assert num_lines > 4000
    assert exact.num_texts < 0.2 * num_lines


@needs_data
def test_equal_ids_for_traps_with_xlmr(xlmr: tuple[SentencePieceEncoder, Counting]) -> None:
    fast, exact = xlmr
    assert_equal_ids(fast, exact, TRAPS)
    assert_equal_ids(fast, exact, [f"{one}{two}" for one in TRAPS for two in TRAPS if len(one + two) < 500])


@pytest.mark.parametrize("file", [MODEL_FILE_NAME, "tokenizer.json"])
def test_a_folder_of_infoxlm_needs_no_more_than_one_file(trained: Path, tmp_path: Path, file: str) -> None:
    """Without tokenizer_config.json AutoTokenizer takes XLM-R's tokenizer, with its special tokens."""
    InfoXLMConfig().save_pretrained(tmp_path)
    shutil.copy(trained / file, tmp_path)
    whole, found = XLMRobertaTokenizer.from_pretrained(trained), AutoTokenizer.from_pretrained(tmp_path)
    assert found.all_special_tokens == whole.all_special_tokens and found.mask_token_id == whole.mask_token_id
    assert found(TRAPS)["input_ids"] == whole(TRAPS)["input_ids"]


# --- which models serve -------------------------------------------------------------------------------------


def test_model_is_found_beside_the_tokenizer(trained: Path, tmp_path: Path) -> None:
    found = find_sentencepiece_model(XLMRobertaTokenizer.from_pretrained(trained))
    assert found == trained / MODEL_FILE_NAME
    shutil.copytree(trained, tmp_path / "t", ignore=shutil.ignore_patterns("*.model"))
    assert find_sentencepiece_model(XLMRobertaTokenizer.from_pretrained(tmp_path / "t")) is None


@pytest.mark.parametrize("change", ["score", "piece", "fewer"])
def test_another_model_is_refused(trained: Path, tmp_path: Path, change: str) -> None:
    model = tokenise._model_proto((trained / MODEL_FILE_NAME).read_bytes())
    if change == "score":
        model.pieces[100].score += 0.01
    elif change == "piece":
        model.pieces[100].piece = "anotherpiece"
    else:
        del model.pieces[-1]
    (tmp_path / "other.model").write_bytes(model.SerializeToString())
    exact = TokenizersEncoder(plain_tokenizer(XLMRobertaTokenizer.from_pretrained(trained)))
    SentencePieceEncoder(trained / MODEL_FILE_NAME, exact)
    with pytest.raises(CannotEncode, match="other pieces or scores"):
        SentencePieceEncoder(tmp_path / "other.model", exact)


def test_a_tokenizer_with_added_words_is_refused(trained: Path) -> None:
    content = json.loads(plain_tokenizer(XLMRobertaTokenizer.from_pretrained(trained)).to_str())
    content["added_tokens"].append({**content["added_tokens"][0], "content": "new", "special": False})
    tokenizer = Tokenizer.from_str(json.dumps(content))
    with pytest.raises(CannotEncode, match="without added words"):
        SentencePieceEncoder(trained / MODEL_FILE_NAME, TokenizersEncoder(tokenizer))


# --- the check ----------------------------------------------------------------------------------------------


def test_wrong_ids_are_found(trained: Path) -> None:
    _, exact = load(trained)
    with pytest.raises(IdsDiffer, match=r"'good day' has the ids \[5\], expected \["):
        CheckedEncoder(Wrong(), exact).encode(["good day"])


def test_the_sample_goes_on_to_the_end(trained: Path) -> None:
    """The first hundred texts, then every five hundredth, however they are cut into batches."""
    fast, exact = load(trained)
    fast.encode(["good day"])
    exact.num_texts = 0
    checked = CheckedEncoder(fast, exact)
    for count in (60, 60, 300, 79, 2, 500):  # the third holds no text of the sample
        assert len(checked.encode(["good day"] * count)) == count
    assert exact.num_texts == 100 + 2  # numbers 500 and 1000


# --- prepare ------------------------------------------------------------------------------------------------


def shard_bytes(folder: Path) -> dict[str, bytes]:
    files = [path for kind in ("mono", "bitext") for path in folder.glob(f"{kind}/*/*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def prepare_examples(tokenizer_folder: Path, output: Path) -> dict[str, bytes]:
    """Prepare bitext and traps as monolingual text; returns the shards."""
    trap_file = output.with_name("traps.en.txt")
    lines = [
        " ".join(text.replace("\x00", "").split()) for text in TRAPS
    ] + DECOMPOSED  # prepare refuses a null
    trap_file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    bitext = parse_bitext_sources([str(EXAMPLES / "en-hi.tsv.xz")])
    tokenizer = XLMRobertaTokenizer.from_pretrained(tokenizer_folder)
    prepare([*bitext, *parse_mono_sources([str(trap_file)])], tokenizer=tokenizer, output_dir=output)
    return shard_bytes(output)


def test_prepare_makes_the_same_bytes_in_every_way(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the model, without it, with another one, and when the fast way gives wrong ids."""
    caplog.set_level(logging.INFO)
    expected = prepare_examples(trained, tmp_path / "with")
    assert len(expected) > 4 and "tokenising with sentencepiece" in caplog.text

    folder = tmp_path / "tokenizer"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("*.model"))
    caplog.clear()
    assert prepare_examples(folder, tmp_path / "without") == expected
    assert "there is no SentencePiece model beside the tokenizer" in caplog.text

    other = train(tmp_path / "other", example_lines(50), 1000)
    shutil.copy(other / MODEL_FILE_NAME, folder)
    caplog.clear()
    assert prepare_examples(folder, tmp_path / "wrong_model") == expected
    assert "has other pieces or scores" in caplog.text

    monkeypatch.setattr(SentencePieceEncoder, "encode", Wrong.encode)
    caplog.clear()
    assert prepare_examples(trained, tmp_path / "wrong_ids") == expected
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2 and all(
        "is prepared with tokenizers, not sentencepiece" in text for text in warnings
    )
