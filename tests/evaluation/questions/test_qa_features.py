"""Windows over contexts, and spans of tokens that give back every character of the text they came from."""

import os
import random
import unicodedata
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_nli import word_tokenizer
from tokenizers import normalizers, pre_tokenizers
from transformers import (
    BertTokenizer,
    PreTrainedTokenizerBase,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

from modeling_infoxlm.evaluation.hub_data import HubData
from modeling_infoxlm.evaluation.questions import qa_features
from modeling_infoxlm.evaluation.questions.qa_features import (
    LABELS,
    WindowSettings,
    build_windows,
    check_windows,
)
from modeling_infoxlm.evaluation.questions.question_sets import Answer, Question, read_question_sets
from modeling_infoxlm.runs.errors import UsageError

DATA = Path(os.environ.get("INFOXLM_DATA", "../shared/data"))
SMALL = WindowSettings(max_seq_length=14, doc_stride=4, max_query_length=3)

# Letters with marks composed and not, Indic and Thai vowel signs, Hangul, Chinese, full width, characters
# that normalisation makes several of or whose form holds a space, an emoji beyond the first plane.
PIECES = (
    "a B ß é e\u0301 o\u0308\u0323 İ ﬁ ½ … ´ ㎏ ﷺ ﷽ क क्ष कि हिन्दी दिल्ली। น้ำ กำ ไทย 한 \u1112\u1161\u11ab 中 "
    "国 《 》 ｶﾞ ガ Ａ １ 東 ﾌﾟ 𝔘 😀 ½x ، ال كِتَاب ١ Ω ǆ ñ n\u0303 - . x1"
).split(" ")
SPACES = [" ", "  ", "\u3000", "\xa0", "\n", "\t", "\u2009"]


def sentencepiece_split() -> PreTrainedTokenizerBase:
    """XLM-R as transformers builds it: white space is removed before pieces are found, all in NFKC."""
    characters = {part for piece in PIECES for part in unicodedata.normalize("NFKC", piece) if part != " "}
    pieces = ["▁", *sorted(characters), "▁a", "▁中", "中国", "दि", "्", "ال", "kg"]
    special = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")]
    scores = {piece: -float(len(pieces) - number) / 9 for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = XLMRobertaTokenizer(vocab=[*special, *scores.items()])
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    return tokenizer


def sentencepiece_joined() -> PreTrainedTokenizerBase:
    """XLM-R's own tokenizer.json: pieces hold the space before a word."""
    tokenizer = sentencepiece_split()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁")
    return tokenizer


def bert() -> PreTrainedTokenizerBase:
    """Uncased: accents are dropped, Chinese characters stand alone."""
    characters = sorted({part for piece in PIECES for part in unicodedata.normalize("NFD", piece).lower()})
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{part}" for part in characters)]
    return BertTokenizer(vocab={word: number for number, word in enumerate(words)}, do_lower_case=True)


def byte_level() -> PreTrainedTokenizerBase:
    """RoBERTa's kind: a character may be several tokens, a word holds the space before it."""
    tokens = ["<s>", "</s>", "<pad>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return RobertaTokenizer(vocab=vocabulary, merges=[], trim_offsets=False)


TOKENIZERS = (sentencepiece_split, sentencepiece_joined, bert, byte_level)
Maker = Callable[[], PreTrainedTokenizerBase]


@pytest.fixture(autouse=True)
def fresh_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


@cache
def made(maker: Maker) -> PreTrainedTokenizerBase:
    return maker()


def span_text(tokenizer: PreTrainedTokenizerBase, context: str, answer: Answer) -> str | None:
    """The answer as the tokens that a model learns give it back; None if it has none."""
    ((_, offsets),) = qa_features._tokenise(tokenizer, [context])
    offsets = qa_features._whole_characters(context, offsets)
    found = qa_features._answer_tokens(Question("q", "w", context, (answer,)), offsets)
    return None if found is None else context[offsets[found[0], 0] : offsets[found[1], 1]]


words = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join)
pieces = st.lists(st.sampled_from(PIECES + SPACES), min_size=1, max_size=12)
spaces = st.lists(st.sampled_from(SPACES), min_size=6, max_size=6)


@pytest.mark.parametrize("maker", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(st.lists(words, min_size=1, max_size=6), spaces, pieces, st.data())
def test_words_come_back_exactly_and_no_character_of_any_answer_is_lost(
    maker: Maker, parts: list[str], gaps: list[str], odd: list[str], data: st.DataObject
) -> None:
    """Tokens may hold more than an answer that begins or ends inside a word, never less."""
    spaced = [text for pair in zip(gaps, parts, strict=False) for text in pair] + gaps[-1:]
    for texts, step in ((spaced, 2), (odd, 1)):
        first = data.draw(st.sampled_from(range(step - 1, len(texts), step)))
        last = data.draw(st.sampled_from(range(first, len(texts) - step + 1, step)))
        text = "".join(texts[first : last + 1])
        assume(text.strip())
        found = span_text(made(maker), "".join(texts), Answer(text, len("".join(texts[:first]))))
        assert found is not None and text.strip() in found and found == found.strip()
        assert found == text or texts is odd


@pytest.mark.skipif(not (DATA / "eval").is_dir(), reason=f"no real data in {DATA}; set INFOXLM_DATA")
def test_answers_of_real_sets_come_back() -> None:
    """Every tenth gold answer of 25 sets: none loses a character, most come back as they are."""
    tokenizer = XLMRobertaTokenizer.from_pretrained(str(DATA / "tokenizer_xlmr"))
    folders = [str(DATA / "eval" / "mlqa_dev"), str(DATA / "eval" / "xquad")]
    for part in read_question_sets(folders, on_mismatched_answers="fail", hub=HubData(None, None)):
        exact = 0
        sample = part.questions[::10]
        for item in sample:
            found = span_text(tokenizer, item.context, item.answers[0])
            assert found is not None and item.answers[0].text in found, (part.location, item)
            exact += found == item.answers[0].text
        # A piece may join the answer with what follows: Chinese and Thai have no spaces between words.
        least = 0.5 if part.context_language in ("zh", "th") else 0.85
        assert exact / len(sample) > least, (part.location, exact, len(sample))


# ------------------------------------------------------------------------------------------------- windows


def long_question(length: int = 20) -> Question:
    """Its answer is the words w16 and w17, the seventh and eighth of the context."""
    context = "  ".join(f"w{10 + number}" for number in range(length))
    answers = (Answer("w16  w17", context.index("w16")),) if length > 7 else ()
    return Question("q", "w4 w5 w6 w7", context, answers)


def test_a_long_context_is_covered_by_windows_that_move_by_the_stride() -> None:
    item = long_question()
    windows = build_windows([item], word_tokenizer(), SMALL)
    # 14 tokens: 4 special ones, 3 of the question (cut), 7 of the context.
    context = list(range(10, 30))
    assert windows.rows["input_ids"][:] == [
        [0, 4, 5, 6, 2, 2, *context[first : first + 7], 2] for first in (0, 4, 8, 12, 16)
    ]
    assert windows.first.tolist() == [0, 4, 8, 12, 16]
    assert windows.size.tolist() == [7, 7, 7, 7, 4]
    assert windows.context_at.tolist() == [6] * 5
    assert windows.question.tolist() == [0] * 5
    # The answer is marked where a window holds all of it: the first window ends with w16, the second begins
    # with w14, the third with w18.
    labels = list(zip(*(windows.rows[name][:] for name in LABELS), strict=True))
    assert labels == [(0, 0), (8, 9), (0, 0), (0, 0), (0, 0)]
    assert windows.num_with_answer == 1
    for number, row in enumerate(windows.rows):  # each token gives back its text
        positions = windows.context_at[number] + np.arange(windows.size[number])
        starts, ends = windows.characters(np.full(len(positions), number), positions, positions)
        words = [item.context[start:end] for start, end in zip(starts, ends, strict=True)]
        assert words == [f"w{row['input_ids'][position]}" for position in positions]
    with pytest.raises(UsageError, match=r"max_seq_length is 10, .* and 4 special tokens need 11"):
        check_windows(word_tokenizer(), WindowSettings(10, 4, 3))
    check_windows(word_tokenizer(), WindowSettings(11, 4, 3))


@pytest.mark.parametrize("maker", TOKENIZERS)
def test_windows_are_those_of_transformers(maker: Maker) -> None:
    """Its own overflowing windows, whose stride is the overlap, with the same room."""
    tokenizer, draw, expected = made(maker), random.Random(3), defaultdict(list)
    questions = [
        Question("q", "a B", "".join(draw.choices(PIECES + SPACES, k=count)), ()) for count in range(1, 60)
    ]
    room = 32 - tokenizer.num_special_tokens_to_add(pair=True) - len(tokenizer.tokenize("a B"))
    for item in questions:
        options = {"max_length": 32, "stride": room - 9, "return_overflowing_tokens": True}
        rows = tokenizer(item.text, item.context, truncation="only_second", **options)
        for name in rows.keys() & {"input_ids", "token_type_ids"}:
            expected[name] += rows[name]
    windows = build_windows(questions, tokenizer, WindowSettings(32, doc_stride=9, max_query_length=16))
    assert len(windows) > 2 * len(questions)
    for name in ("input_ids", "token_type_ids") if maker is bert else ("input_ids",):
        assert windows.rows[name][:] == expected[name]


def test_what_is_empty_has_a_window_and_blank_answers_are_not_learned() -> None:
    questions = [Question("q", "w4", "", ()), Question("r", "", "w8 w9", ())]
    windows = build_windows(questions, word_tokenizer(), SMALL)
    assert windows.rows["input_ids"][:] == [[0, 4, 2, 2, 2], [0, 2, 2, 8, 9, 2]]
    assert windows.size.tolist() == [0, 2]
    blank = [Question("q", "w4", "w8 w9  ", (Answer(text, 5),)) for text in (" ", "")]
    assert build_windows(blank, word_tokenizer(), SMALL).num_with_answer == 0


def test_each_token_may_begin_an_answer_in_one_window_where_it_is_furthest_from_the_edge() -> None:
    questions = [long_question(), long_question(3), long_question(9)]
    windows = build_windows(questions, word_tokenizer(), SMALL)
    begin, end = windows.own_range()
    for number, length in enumerate((20, 3, 9)):
        owners: list[int] = []
        for window in np.flatnonzero(windows.question == number):
            offset = windows.first[window] - windows.context_at[window]
            tokens = np.arange(begin[window], end[window]) + offset
            assert tokens.tolist() == list(range(len(owners), len(owners) + len(tokens)))
            owners += [window] * len(tokens)
        assert len(owners) == length
        for token, owner in enumerate(owners):
            edges = {
                window: min(
                    token - windows.first[window], windows.first[window] + windows.size[window] - 1 - token
                )
                for window in np.flatnonzero(windows.question == number)
            }
            assert edges[owner] == max(edges.values())


def test_windows_are_made_once_and_the_same_in_several_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    questions, tokenizer = [long_question(length) for length in (20, 8, 8, 9, 12)], word_tokenizer()
    first = build_windows(questions, tokenizer, SMALL)
    calls = []
    encode = qa_features._encode
    monkeypatch.setattr(qa_features, "_encode", lambda *given: calls.append(given) or encode(*given))
    again = build_windows(questions, tokenizer, SMALL)
    assert not calls
    build_windows(questions, tokenizer, WindowSettings(14, 3, 3))
    build_windows([Question("q", "w4", questions[0].context, ())], tokenizer, SMALL)
    assert len(calls) == 2
    monkeypatch.setattr(qa_features, "TEXTS_PER_CALL", 2)
    monkeypatch.setattr(qa_features, "_FORMAT", "another")
    parts = build_windows(questions, tokenizer, SMALL)
    for found in (again, parts):
        assert found.rows["input_ids"][:] == first.rows["input_ids"][:]
        for name in ("question", "starts", "ends"):
            assert getattr(found, name).tolist() == getattr(first, name).tolist()
