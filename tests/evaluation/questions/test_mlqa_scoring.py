"""Scores of answers: those of MLQA's own script, to the last digit."""

import random
import string
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import mlqa_rules

from modeling_infoxlm.evaluation.questions.mlqa_scoring import exact_match_score, f1_score, normalize_answer

WORDS = {
    "en": "The a an Beatles' ana U.S. 1,920 theatre re-entry café $5 A+ (born)",
    "es": "El la los una ¿Qué? año 1.º Málaga ela «cita» lasaña 50%",
    "de": "Der die das eines Straße Maß „Zitat“ derb Eine 3,5 EU-Recht dem",
    "ar": "ال الكتاب والكتاب كتاب، ١٩٢٠ بال لالة سؤال؟ ألمانيا القاهرة البال",
    "hi": "में की है। १९२० दिल्ली॥ नई भारत क्‍ष ‘उद्धरण’ 5वीं",
    "vi": "của là cái chiếc những Của Việt Nam, làng 1945 năm (TP.HCM) cáii",
    "zh": "的 北京大学 1920年 《人民日报》 NASA的 龦 龥 東京、 ABC公司 3.5亿 ￥100 〇",
}
FOREIGN = "naïve ラーメン Ωμέγα 𝔘𝔫𝔦 ٣٫٥ ＡＢＣ １２３ e\u0301 \u200b \u00ad ﷺ İstanbul ΣΑΣ ﬁne ½ – … _x_ ♥ €"
JOINTS = (" ", " ", " ", "", "  ", "\u3000", "\xa0", "\n", "\t", ", ", "、", "-", "।", " – ")


BLANKS = [" ", "\u3000", "!", "。", "the", "ال"]


def phrase(draw: random.Random, language: str) -> str:
    """Words of a language, now and then one of another, with odd things between them."""
    words = WORDS[language].split() * 3 + mlqa_rules.ARTICLES.get(language, "").split() + FOREIGN.split(" ")
    return "".join(draw.choice(words) + draw.choice(JOINTS) for _ in range(draw.randint(1, 7)))


def prediction_of(draw: random.Random, answer: str, language: str) -> str:
    """A prediction that is right, nearly right, wrong or blank."""
    middle, joint = draw.randint(0, len(answer)), draw.choice(JOINTS)
    near = [answer, answer[:middle], answer[middle:], f"“{answer}”…", answer.swapcase(), ""]
    mixed = answer[:middle] + draw.choice(FOREIGN.split(" ")) + answer[middle:]
    longer = answer + joint + phrase(draw, language)
    other = phrase(draw, draw.choice(list(WORDS)))
    return draw.choice([*near, mixed, longer, phrase(draw, language), other, draw.choice(BLANKS)])


def squad_words(answer: str) -> list[str]:
    """As SQuAD v1.1's script takes an answer apart, whatever its language."""
    kept = "".join(character for character in answer.lower() if character not in string.punctuation)
    return mlqa_rules.without_words(kept, ["a", "an", "the"]).split()


def check(prediction: str, answers: list[str], language: str) -> float:
    """Both rules against their slow loops: MLQA's, and SQuAD's as XTREME has XQuAD and TyDiQA-GoldP."""
    row = (prediction, answers, language)
    assert normalize_answer(prediction, language).split() == mlqa_rules.words(prediction, language), row
    expected = float(mlqa_rules.f1(*row))
    assert f1_score(*row) == pytest.approx(expected, abs=1e-12), row
    assert exact_match_score(*row) == mlqa_rules.exact(*row), row
    found, gold = squad_words(prediction), squad_words(answers[0])
    shared = (Counter(found) & Counter(gold)).total()
    f1 = 2 * shared / (len(found) + len(gold)) if shared else 0
    assert f1_score(prediction, answers[:1], language, rules="squad") == pytest.approx(f1), row
    assert exact_match_score(prediction, answers[:1], language, rules="squad") == (found == gold), row
    return expected


def test_2000_generated_predictions_score_as_by_the_rules() -> None:
    draw, seen = random.Random(20), set()
    for number in range(2000):
        language = list(WORDS)[number % len(WORDS)]
        answers = [phrase(draw, language) for _ in range(draw.randint(1, 3))]
        f1 = check(prediction_of(draw, draw.choice(answers), language), answers, language)
        seen.add((language, 0 < f1 < 1, f1 == 1))
    assert len(seen) == 3 * len(WORDS)  # each language had wrong, partly right and right answers


texts = st.text(max_size=30)


@settings(max_examples=300, deadline=None)
@given(texts, st.lists(texts, min_size=1, max_size=3), st.sampled_from(list(WORDS)))
def test_any_text_scores_as_by_the_rules(prediction: str, answers: list[str], language: str) -> None:
    check(prediction, answers, language)


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "The  U.S. Army's A-team", "us armys ateam"),
        ("es", "¿La «Unión» de los Unos?", "unión de"),
        ("de", "Das Haus des „Herrn“ und der Derby", "haus herrn und derby"),
        # zh: characters one by one, other runs whole; only U+4E00 to U+9FA5 count, so 〇 and 㐀 form a run.
        ("zh", "《人民日報》 2008年", "人 民 日 報 2008 年"),
        ("zh", "二〇〇八", "二 〇〇 八"),
        ("zh", "㐀龥龦", "㐀 龥 龦"),
        # ar: every "ال" goes, in front of a word, inside it, and behind a joined particle.
        ("ar", "القاهرة", "قاهرة"),
        ("ar", "في البيت والكتاب", "في بيت و كتاب"),
        ("ar", "سؤال؟", "سؤ"),
        # hi: no articles; the danda is punctuation, vowel signs and joiners are not.
        ("hi", "नई दिल्ली।", "नई दिल्ली"),
        ("hi", "क्‍षेत्र", "क्‍षेत्र"),
        # vi: the five words, and not the beginnings of others.
        ("vi", "Của những người Việt Nam là", "người việt nam"),
        ("vi", "làng cáii chiếc, cái", "làng cáii"),
        # Composed and decomposed letters are not the same word to the script.
        ("vi", "cu\u0309a", "cu\u0309a"),
        # Other languages: white space, nothing removed but punctuation.
        ("ru", "«Война и мир»", "война и мир"),
        ("ja", "東京、日本", "東京日本"),
        ("zh-Hant", "臺北市", "臺 北 市"),
    ],
)
def test_hand_checked_normalisation(language: str, text: str, expected: str) -> None:
    assert normalize_answer(text, language) == expected


@pytest.mark.parametrize(
    ("language", "prediction", "answers", "f1", "exact"),
    [
        ("en", "the Norman dynasty", ["Normans", "Norman Dynasty!"], 1, 1),
        ("en", "a a b", ["a b b"], 2 / 3, 0),  # "a" is an article: b against b b
        ("zh", "北京", ["北京大学"], 2 / 3, 0),  # 2 of 2 and 2 of 4 characters
        ("zh", "2008年8月8日", ["2008年"], 1 / 2, 0),  # 2008 年 8 月 8 日 against 2008 年
        ("ar", "سؤ", ["سؤال"], 1, 1),  # not the same word at all, but the script says so
        ("ja", "東京", ["東京都"], 0, 0),  # one word each
        ("de", "", ["Berlin"], 0, 0),
        ("en", "the", ["a"], 0, 1),  # nothing is left of either: no word is shared, yet they are equal
        ("en", "", [], 1, 1),  # a question without answer wants none
        ("en", "something", [], 0, 0),
    ],
)
def test_hand_checked_scores(
    language: str, prediction: str, answers: list[str], f1: float, exact: int
) -> None:
    assert f1_score(prediction, answers, language) == pytest.approx(f1)
    assert exact_match_score(prediction, answers, language) == exact
