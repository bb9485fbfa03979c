"""Scores of answers: those of MLQA's own script, to the last digit."""

import json
import os
import random
import string
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import mlqa_rules

from modeling_infoxlm.evaluation.questions.mlqa_scoring import exact_match_score, f1_score, normalize_answer

LANGUAGES = ("en", "es", "de", "ar", "hi", "vi", "zh")
MLQA = Path(os.environ.get("INFOXLM_DATA", "../shared/data")) / "eval" / "mlqa_dev"

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


def phrase(draw: random.Random, language: str) -> str:
    """Words of a language, now and then one of another, with odd things between them."""
    words = WORDS[language].split() * 3 + FOREIGN.split(" ")
    return "".join(draw.choice(words) + draw.choice(JOINTS) for _ in range(draw.randint(1, 7)))


def prediction_of(draw: random.Random, kind: str, answer: str, language: str) -> str:
    """A prediction that is right, nearly right or wrong."""
    middle = draw.randint(0, len(answer))
    return {
        "exact": answer,
        "truncated": answer[:middle],
        "cut in front": answer[middle:],
        "longer": answer + draw.choice(JOINTS) + phrase(draw, language),
        "wrong": phrase(draw, language),
        "empty": "",
        "blank": draw.choice([" ", "\u3000", "!", "。", "the", "ال"]),
        "punctuated": f"“{answer}”…",
        "case": answer.swapcase(),
        "mixed script": answer[:middle] + draw.choice(FOREIGN.split(" ")) + answer[middle:],
        "another language": phrase(draw, draw.choice(LANGUAGES)),
    }[kind]


KINDS = (
    "exact,truncated,cut in front,longer,wrong,empty,blank,punctuated,case,mixed script,another language"
).split(",")


def squad_words(answer: str) -> list[str]:
    """As SQuAD v1.1's script takes an answer apart, whatever its language."""
    kept = "".join(character for character in answer.lower() if character not in string.punctuation)
    return mlqa_rules.without_words(kept, ["a", "an", "the"]).split()


def test_squad_rules_take_each_language_for_english() -> None:
    """XTREME's for XQuAD and TyDiQA-GoldP; MLQA's would give 0.571 and 1 here."""
    assert f1_score("北京", ["北京大学的"], "zh", rules="squad") == 0
    assert f1_score("北京", ["北京大学的"], "zh") == pytest.approx(4 / 7)
    assert f1_score("der Hund", ["Hund"], "de", rules="squad") == pytest.approx(2 / 3)
    assert f1_score("der Hund", ["Hund"], "de") == 1
    assert exact_match_score("The «Hund».", ["«hund»"], "de", rules="squad") == 1
    draw = random.Random(9)
    for _ in range(500):
        language = draw.choice(LANGUAGES)
        answer = phrase(draw, language)
        text = prediction_of(draw, draw.choice(KINDS), answer, language)
        found, gold = squad_words(text), squad_words(answer)
        shared = sum((Counter(found) & Counter(gold)).values())
        f1 = 2 * shared / (len(found) + len(gold)) if shared else 0
        assert f1_score(text, [answer], language, rules="squad") == pytest.approx(f1)
        assert exact_match_score(text, [answer], language, rules="squad") == (found == gold)


def test_2000_generated_predictions_score_as_by_the_rules() -> None:
    draw = random.Random(20)
    seen = set()
    for number in range(2000):
        language, kind = LANGUAGES[number % len(LANGUAGES)], draw.choice(KINDS)
        answers = [phrase(draw, language) for _ in range(draw.randint(1, 3))]
        prediction = prediction_of(draw, kind, draw.choice(answers), language)
        expected = mlqa_rules.f1(prediction, answers, language)
        assert f1_score(prediction, answers, language) == pytest.approx(float(expected), abs=1e-12), (
            prediction,
            answers,
            language,
        )
        assert exact_match_score(prediction, answers, language) == mlqa_rules.exact(
            prediction, answers, language
        )
        seen.add((language, 0 < expected < 1, expected == 1))
    # Each language had wrong, partly right and right answers.
    assert len(seen) == 3 * len(LANGUAGES)


@pytest.mark.skipif(not MLQA.is_dir(), reason=f"no MLQA in {MLQA}; set INFOXLM_DATA")
@pytest.mark.parametrize("language", LANGUAGES)
def test_predictions_made_of_real_answers_score_as_by_the_rules(language: str) -> None:
    content = json.loads((MLQA / f"dev-context-{language}-question-{language}.json").read_text("utf-8"))
    questions = [row for article in content["data"] for part in article["paragraphs"] for row in part["qas"]]
    gold = {row["id"]: [answer["text"] for answer in row["answers"]] for row in questions}
    draw = random.Random(4)
    predictions = {
        key: prediction_of(draw, draw.choice(KINDS), answers[0], language) for key, answers in gold.items()
    }
    f1 = [f1_score(predictions[key], gold[key], language) for key in gold]
    exact = [exact_match_score(predictions[key], gold[key], language) for key in gold]
    expected = mlqa_rules.evaluate(gold, predictions, language)
    assert 100 * sum(f1) / len(f1) == pytest.approx(expected[0], abs=1e-10)
    assert 100 * sum(exact) / len(exact) == pytest.approx(expected[1], abs=1e-10)


@settings(max_examples=300, deadline=None)
@given(
    st.text(max_size=30), st.lists(st.text(max_size=30), min_size=1, max_size=3), st.sampled_from(LANGUAGES)
)
def test_any_text_scores_as_by_the_rules(prediction: str, answers: list[str], language: str) -> None:
    assert normalize_answer(prediction, language).split() == mlqa_rules.words(prediction, language)
    assert f1_score(prediction, answers, language) == pytest.approx(
        float(mlqa_rules.f1(prediction, answers, language)), abs=1e-12
    )
    assert exact_match_score(prediction, answers, language) == mlqa_rules.exact(prediction, answers, language)


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "The  U.S. Army's A-team", "us armys ateam"),
        ("en", "a theatre, an end", "theatre end"),
        ("es", "¿La «Unión» de los Unos?", "unión de"),
        ("de", "Das Haus des „Herrn“ und der Derby", "haus herrn und derby"),
        # zh: characters one by one, other runs whole; only U+4E00 to U+9FA5 count, so 〇 and 㐀 form a run.
        ("zh", "《人民日報》 2008年", "人 民 日 報 2008 年"),
        ("zh", "NASA总部(Washington D.C.)", "nasa 总 部 washington dc"),
        ("zh", "二〇〇八", "二 〇〇 八"),
        ("zh", "㐀龥龦", "㐀 龥 龦"),
        # ar: every "ال" goes, in front of a word, inside it, and behind a joined particle.
        ("ar", "القاهرة", "قاهرة"),
        ("ar", "في البيت والكتاب", "في بيت و كتاب"),
        ("ar", "سؤال؟", "سؤ"),
        ("ar", "ألمانيا، ١٩٢٠", "ألمانيا ١٩٢٠"),
        # hi: no articles; the danda is punctuation, vowel signs and joiners are not.
        ("hi", "नई दिल्ली।", "नई दिल्ली"),
        ("hi", "१९२० में॥", "१९२० में"),
        ("hi", "क्‍षेत्र", "क्‍षेत्र"),
        # vi: the five words, and not the beginnings of others.
        ("vi", "Của những người Việt Nam là", "người việt nam"),
        ("vi", "làng cáii chiếc, cái", "làng cáii"),
        # Composed and decomposed letters are not the same word to the script.
        ("vi", "cu\u0309a", "cu\u0309a"),
        # Other languages: white space, nothing removed but punctuation.
        ("ru", "«Война и мир»", "война и мир"),
        ("th", "กรุงเทพ มหานคร", "กรุงเทพ มหานคร"),
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
        ("en", "in the 1920s", ["1920s"], 2 / 3, 0),
        ("en", "a a b", ["a b b"], 2 / 3, 0),  # "a" is an article: b against b b
        ("zh", "北京", ["北京大学"], 2 / 3, 0),  # 2 of 2 and 2 of 4 characters
        ("zh", "2008年8月8日", ["2008年"], 1 / 2, 0),  # 2008 年 8 月 8 日 against 2008 年
        ("ar", "سؤ", ["سؤال"], 1, 1),  # not the same word at all, but the script says so
        ("hi", "दिल्ली", ["नई दिल्ली।"], 2 / 3, 0),
        ("vi", "của Việt Nam", ["Việt Nam"], 1, 1),
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
