"""Windows over contexts, and spans of tokens that give back every character of the text they came from."""

import os
import random
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_nli import word_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from modeling_infoxlm.evaluation.hub_data import HubData
from modeling_infoxlm.evaluation.questions import qa_features
from modeling_infoxlm.evaluation.questions.qa_features import (
    LABELS,
    PairLayout,
    Windows,
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


def xlmr_like(pre_tokenizer: pre_tokenizers.PreTokenizer) -> PreTrainedTokenizerFast:
    """A Unigram model over NFKC text, whose vocabulary is characters and a few longer pieces."""
    characters = {part for piece in PIECES for part in unicodedata.normalize("NFKC", piece) if part != " "}
    pieces = ["▁", *sorted(characters), "▁a", "▁中", "中国", "दि", "्", "ال", "kg"]
    vocabulary = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary += [
        (piece, -float(len(pieces) - number) / 9) for number, piece in enumerate(dict.fromkeys(pieces))
    ]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=3, byte_fallback=False))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizer
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def sentencepiece_split() -> PreTrainedTokenizerFast:
    """XLM-R as transformers builds it: white space is removed before pieces are found."""
    return xlmr_like(
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁")])
    )


def sentencepiece_joined() -> PreTrainedTokenizerFast:
    """XLM-R's own tokenizer.json: pieces hold the space before a word."""
    return xlmr_like(pre_tokenizers.Metaspace(replacement="▁"))


def bert() -> PreTrainedTokenizerBase:
    """Uncased: accents are dropped, Chinese characters stand alone."""
    characters = sorted({part for piece in PIECES for part in unicodedata.normalize("NFD", piece).lower()})
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{part}" for part in characters)]
    return BertTokenizer(vocab={word: number for number, word in enumerate(words)}, do_lower_case=True)


def byte_level() -> PreTrainedTokenizerFast:
    """RoBERTa's kind: a character may be several tokens, a word holds the space before it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", "<pad>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), trim_offsets=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


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


def join(pieces: list[str], gaps: list[str]) -> str:
    return "".join(gap + piece for gap, piece in zip(gaps, pieces, strict=False))


words = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join)


@pytest.mark.parametrize("maker", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(
    st.lists(words, min_size=1, max_size=6),
    st.lists(st.sampled_from(SPACES), min_size=6, max_size=6),
    st.data(),
)
def test_words_come_back_exactly(
    maker: Maker, parts: list[str], gaps: list[str], data: st.DataObject
) -> None:
    context = join(parts, gaps) + gaps[-1]
    first = data.draw(st.integers(0, len(parts) - 1))
    last = data.draw(st.integers(first, len(parts) - 1))
    start = len(join(parts[:first], gaps)) + len(gaps[first])
    text = context[start : len(join(parts[: last + 1], gaps))]
    assert span_text(made(maker), context, Answer(text, start)) == text


@pytest.mark.parametrize("maker", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(PIECES + SPACES), min_size=1, max_size=12), st.data())
def test_no_character_of_an_answer_is_lost(maker: Maker, parts: list[str], data: st.DataObject) -> None:
    """Also an answer that begins or ends inside a word: tokens may hold more than it, never less."""
    context = "".join(parts)
    first = data.draw(st.integers(0, len(parts) - 1))
    last = data.draw(st.integers(first, len(parts) - 1))
    text = "".join(parts[first : last + 1])
    assume(text.strip())
    found = span_text(made(maker), context, Answer(text, len("".join(parts[:first]))))
    assert found is not None and text.strip() in found
    assert found == found.strip()


@pytest.mark.skipif(
    not (DATA / "tokenizer_xlmr").is_dir(), reason=f"no XLM-R tokenizer in {DATA}; set INFOXLM_DATA"
)
class TestRealTokenizer:
    @pytest.fixture(scope="class")
    @classmethod
    def tokenizer(cls) -> PreTrainedTokenizerBase:
        from transformers import XLMRobertaTokenizer

        return XLMRobertaTokenizer.from_pretrained(str(DATA / "tokenizer_xlmr"))

    def test_answers_of_real_sets_come_back(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Every tenth gold answer of 19 sets: none loses a character, most come back as they are."""
        sets = read_question_sets(
            [str(DATA / "eval" / "mlqa_dev"), str(DATA / "eval" / "xquad")],
            on_mismatched_answers="fail",
            hub=HubData(None, None),
        )
        for part in sets:
            exact = 0
            sample = part.questions[::10]
            for item in sample:
                found = span_text(tokenizer, item.context, item.answers[0])
                assert found is not None and item.answers[0].text in found, (part.location, item)
                exact += found == item.answers[0].text
            # A piece may join the answer with what follows: Chinese and Thai have no spaces between words.
            least = 0.5 if part.context_language in ("zh", "th") else 0.85
            assert exact / len(sample) > least, (part.location, exact, len(sample))

    def test_words_of_odd_text_come_back(self, tokenizer: PreTrainedTokenizerBase) -> None:
        draw = random.Random(3)
        for _ in range(300):
            parts = ["".join(draw.choices(PIECES, k=draw.randint(1, 4))) for _ in range(4)]
            gaps = draw.choices(SPACES, k=4)
            context = join(parts, gaps)
            start = len(join(parts[:1], gaps)) + len(gaps[1])
            text = context[start : len(join(parts[:3], gaps))]
            assert span_text(tokenizer, context, Answer(text, start)) == text

    def test_windows_are_those_of_transformers(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Its own overflowing windows, whose stride is the overlap, with the same room."""
        (part,) = read_question_sets(
            [str(DATA / "eval" / "mlqa_dev" / "dev-context-hi-question-hi.json")],
            on_mismatched_answers="fail",
            hub=HubData(None, None),
        )
        chosen = [max(part.questions, key=lambda item: len(item.context)), *part.questions[:20]]
        settings = WindowSettings(max_seq_length=128, doc_stride=40, max_query_length=64)
        windows = build_windows(chosen, tokenizer, settings)
        expected = []
        for item in chosen:
            room = 128 - 4 - len(tokenizer(item.text, add_special_tokens=False)["input_ids"])
            expected += tokenizer(
                item.text,
                item.context,
                truncation="only_second",
                max_length=128,
                stride=room - 40,
                return_overflowing_tokens=True,
            )["input_ids"]
        assert windows.rows["input_ids"][:] == expected


# ------------------------------------------------------------------------------------------------- windows


def long_question(length: int = 20) -> Question:
    """Its answer is the words w16 and w17, the seventh and eighth of the context."""
    context = " ".join(f"w{10 + number}" for number in range(length))
    answers = (Answer("w16 w17", context.index("w16")),) if length > 7 else ()
    return Question("q", "w4 w5 w6 w7", context, answers)


def test_a_long_context_is_covered_by_windows_that_move_by_the_stride() -> None:
    windows = build_windows([long_question()], word_tokenizer(), SMALL)
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
    with pytest.raises(UsageError, match=r"max_seq_length is 10, .* and 4 special tokens need 11"):
        check_windows(word_tokenizer(), WindowSettings(10, 4, 3))
    check_windows(word_tokenizer(), WindowSettings(11, 4, 3))


@pytest.mark.parametrize("length", [6, 7, 8, 11, 12])
def test_no_token_is_left_out_and_no_window_is_needless(length: int) -> None:
    windows = build_windows([long_question(length=20), long_question(length)], word_tokenizer(), SMALL)
    mine = windows.question == 1
    ends = (windows.first + windows.size)[mine]
    assert ends[-1] == length
    assert len(ends) == 1 or ends[-2] < length


def test_what_is_empty_has_a_window_and_blank_answers_are_not_learned() -> None:
    questions = [Question("q", "w4", "", ()), Question("r", "", "w8 w9", ())]
    windows = build_windows(questions, word_tokenizer(), SMALL)
    assert windows.rows["input_ids"][:] == [[0, 4, 2, 2, 2], [0, 2, 2, 8, 9, 2]]
    assert windows.size.tolist() == [0, 2]
    blank = [Question("q", "w4", "w8 w9  ", (Answer(text, 5),)) for text in (" ", "")]
    assert build_windows(blank, word_tokenizer(), SMALL).num_with_answer == 0


def test_spans_of_every_window_give_back_the_text() -> None:
    questions = [long_question(), Question("r", "w4", "w8  w9", ())]
    windows = build_windows(questions, word_tokenizer(), SMALL)
    for number in range(len(windows)):
        context = questions[windows.question[number]].context
        ids = windows.rows[number]["input_ids"]
        positions = windows.context_at[number] + np.arange(windows.size[number])
        starts, ends = windows.characters(np.full(len(positions), number), positions, positions)
        assert [context[start:end] for start, end in zip(starts, ends, strict=True)] == [
            f"w{ids[position]}" for position in positions
        ]


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


@pytest.mark.parametrize("maker", TOKENIZERS)
def test_layouts_are_those_of_the_tokenizer(maker: Maker) -> None:
    tokenizer = made(maker)
    layout = PairLayout.of(tokenizer)
    question, context = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a B", "中 x1"))
    before, between, after = layout.ids
    expected = tokenizer("a B", "中 x1")
    assert [*before, *question, *between, *context, *after] == expected["input_ids"]
    windows = build_windows([Question("q", "a B", "中 x1", ())], tokenizer, WindowSettings(32, 8, 8))
    for name in ("input_ids", "token_type_ids") if maker is bert else ("input_ids",):
        assert windows.rows[name][:] == [expected[name]]


def test_the_same_windows_are_read_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    questions, tokenizer = [long_question()], word_tokenizer()
    first = build_windows(questions, tokenizer, SMALL)
    calls = []
    encode = qa_features._encode
    monkeypatch.setattr(qa_features, "_encode", lambda *given: calls.append(given) or encode(*given))
    again = build_windows(questions, tokenizer, SMALL)
    assert not calls
    assert again.rows["input_ids"][:] == first.rows["input_ids"][:]
    assert again.starts.tolist() == first.starts.tolist()
    build_windows(questions, tokenizer, WindowSettings(14, 3, 3))
    build_windows([Question("q", "w4", questions[0].context, ())], tokenizer, SMALL)
    assert len(calls) == 2


def test_windows_of_more_questions_than_one_call_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    questions = [long_question(length) for length in (20, 8, 8, 9, 12)]
    whole = build_windows(questions, word_tokenizer(), SMALL)
    monkeypatch.setattr(qa_features, "TEXTS_PER_CALL", 2)
    monkeypatch.setattr(qa_features, "_FORMAT", "another")
    parts: Windows = build_windows(questions, word_tokenizer(), SMALL)
    assert parts.rows["input_ids"][:] == whole.rows["input_ids"][:]
    assert parts.question.tolist() == whole.question.tolist()
    assert parts.ends.tolist() == whole.ends.tolist()
