"""Words are encoded once and remembered, with the ids that the tokenizers library gives the whole text."""

from __future__ import annotations

import itertools
import json
import lzma
import os
import string
import sys
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, XLMRobertaTokenizer

from modeling_infoxlm import InfoXLMConfig
from modeling_infoxlm.data import tokenise
from modeling_infoxlm.data.ragged import PackedRows
from modeling_infoxlm.data.sources import parse_bitext_sources
from modeling_infoxlm.data.tokenise import TextEncoder, plain_text_encoder
from modeling_infoxlm.data.train_tokenizer import train_tokenizer

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples" / "data").glob("en-*.tsv.xz"))
DATA = Path(os.environ.get("INFOXLM_DATA", ROOT / ".." / "shared" / "data"))
XLMR = DATA / "tokenizer_xlmr"

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
    "a \u0e33\u0301b a\u00a0\u0301b \uff9e",  # a sign called a letter, and signs that reach over the space
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


def plain_tokenizer(tokenizer: PreTrainedTokenizerFast | XLMRobertaTokenizer) -> Tokenizer:
    """As `prepare` uses it: special tokens in a text are text."""
    return Tokenizer.from_str(plain_text_encoder(tokenizer.backend_tokenizer.to_str()))


def ids(rows: PackedRows) -> list[list[int]]:
    ends = np.cumsum(rows.lengths)
    return [rows.tokens[end - length : end].tolist() for end, length in zip(ends, rows.lengths, strict=True)]


def assert_equal_ids(encoder: TextEncoder, texts: Sequence[str]) -> None:
    wanted = encoder.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    for text, found, expected in zip(texts, ids(encoder.encode(texts)), wanted, strict=True):
        assert found == expected.ids, repr(text[:200])


def example_lines(count: int | None = None) -> list[str]:
    """Sentences in ten languages."""
    assert len(EXAMPLES) == 9
    lines = []
    for path in EXAMPLES:
        with lzma.open(path, "rt", encoding="utf-8") as file:
            lines += [part for line in itertools.islice(file, count) for part in line.strip().split("\t")]
    return lines


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenise") / "t"
    train_tokenizer(parse_bitext_sources(map(str, EXAMPLES)), folder, vocab_size=3000, max_sentences=3000)
    return folder


@pytest.fixture(scope="module")
def tokenizer(trained: Path) -> Tokenizer:
    return plain_tokenizer(XLMRobertaTokenizer.from_pretrained(trained))


def test_equal_ids_for_ten_languages_from_words_that_are_known(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, lines = TextEncoder(tokenizer), example_lines(1500)
    assert_equal_ids(encoder, lines)
    whole: list[str] = []
    monkeypatch.setattr(encoder, "_encode_whole", lambda texts: whole.extend(texts))
    encoder.encode([line for line in lines if not any(map(tokenise._joins_the_space, line))][:5000])
    assert not whole


def test_equal_ids_for_traps(tokenizer: Tokenizer) -> None:
    encoder = TextEncoder(tokenizer)
    assert_equal_ids(encoder, TRAPS)
    for text in TRAPS:  # alone, and met for the second time
        assert_equal_ids(encoder, [text])
    assert_equal_ids(encoder, [f"{one}{two}" for one in TRAPS for two in TRAPS])
    assert len(encoder.encode([])) == 0


@pytest.mark.parametrize("form", ["a{}b", "a {} b", "a {}\u0301b", "a{}\u0301 b"])
def test_equal_ids_whatever_stands_beside_a_space(tokenizer: Tokenizer, form: str) -> None:
    """Every character of Unicode, since the normaliser's clusters are what words alone do not show."""
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code <= 0xDFFF]
    named = [character for character in characters if unicodedata.category(character) not in ("Cn", "Co")]
    rare = [character for character in named if unicodedata.category(character) != "Lo"]
    assert len(rare) > 15_000
    assert_equal_ids(
        TextEncoder(tokenizer), [form.format(character) for character in (*rare, *"\u0e33\u0eb3")]
    )


def test_threads_share_a_memory_that_forgets_words_when_they_are_too_many(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, lines = TextEncoder(tokenizer), example_lines(60)
    pieces = [lines[start : start + 5] for start in range(0, len(lines), 5)]
    with ThreadPoolExecutor(8) as pool:
        found = PackedRows.join(list(pool.map(encoder.encode, pieces)))
    assert_equal_ids(encoder, lines)
    assert ids(found) == ids(encoder.encode(lines))
    monkeypatch.setattr(tokenise, "_MOST_WORDS", 50)
    forgetful = TextEncoder(tokenizer)
    for piece in pieces:
        assert_equal_ids(forgetful, piece)
        assert len(forgetful._numbers) < 1000


def test_tokenizers_of_other_kinds(tokenizer: Tokenizer) -> None:
    """BERT's cuts at spaces too; with added words, or with the space as text, whole texts are encoded."""
    letters = ["[UNK]", "[CLS]", *string.ascii_lowercase, "##a", "##b"]
    bert = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(letters)}, unk_token="[UNK]"))
    bert.normalizer, bert.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    with_word, prefixed = (json.loads(tokenizer.to_str()) for _ in range(2))
    with_word["added_tokens"].append({**with_word["added_tokens"][0], "content": "t h", "special": False})
    prefixed["normalizer"] = {"type": "Prepend", "prepend": "c"}  # to a text, not to each of its words
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bytes_of_text = Tokenizer(models.BPE({piece: i for i, piece in enumerate(alphabet)}, []))
    bytes_of_text.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    changed = [Tokenizer.from_str(json.dumps(each)) for each in (with_word, prefixed)]
    for kind in (bert, *changed, bytes_of_text):
        encoder = TextEncoder(kind)
        assert encoder._is_by_words == (kind is bert)
        assert_equal_ids(encoder, [*TRAPS, *example_lines(20), "a t h b"])


@pytest.mark.skipif(not XLMR.is_dir(), reason="INFOXLM_DATA names no folder with tokenizer_xlmr")
def test_equal_ids_for_every_language_with_xlmr() -> None:
    encoder = TextEncoder(plain_tokenizer(XLMRobertaTokenizer.from_pretrained(XLMR)))
    assert encoder._is_by_words
    files = [*DATA.glob("mono/*.txt.xz"), *DATA.glob("parallel/*.tsv.xz")]
    assert len(files) > 40
    for path in files:
        with lzma.open(path, "rt", encoding="utf-8") as file:
            assert_equal_ids(
                encoder, [part for line in itertools.islice(file, 300) for part in line.split("\t")]
            )
    assert_equal_ids(encoder, [f"{one}{two}" for one in TRAPS for two in TRAPS if len(one + two) < 500])


def test_a_folder_of_infoxlm_needs_no_more_than_tokenizer_json(trained: Path, tmp_path: Path) -> None:
    """Without tokenizer_config.json AutoTokenizer takes XLM-R's tokenizer, with its special tokens."""
    InfoXLMConfig().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((trained / "tokenizer.json").read_bytes())
    whole, found = XLMRobertaTokenizer.from_pretrained(trained), AutoTokenizer.from_pretrained(tmp_path)
    assert found.all_special_tokens == whole.all_special_tokens and found.mask_token_id == whole.mask_token_id
    assert found(TRAPS)["input_ids"] == whole(TRAPS)["input_ids"]
