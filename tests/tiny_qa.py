"""Made-up questions in SQuAD's layout, which a tiny model learns to answer in seconds."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_FIRST_WORD = {"en": 4, "de": 14, "fr": 24}


def article(context: str, *questions: dict[str, Any]) -> dict[str, Any]:
    """One article of one paragraph."""
    return {"title": "t", "paragraphs": [{"context": context, "qas": list(questions)}]}


def question(key: str, text: str, answer: str, start: int) -> dict[str, Any]:
    """A question with one answer."""
    return {"id": key, "question": text, "answers": [{"text": answer, "answer_start": start}]}


def write_squad(path: Path, articles: Sequence[dict[str, Any]]) -> Path:
    """Write a file in SQuAD's layout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"version": "1.1", "data": list(articles)}, ensure_ascii=False), "utf-8")
    return path


def marked_articles(language: str, count: int, *, seed: int = 1) -> list[dict[str, Any]]:
    """Questions whose answer is the one word of the context from w52 on.

    Question i has the same id in every language, and is the same words in its own letters.
    """
    draw = random.Random(seed)
    articles = []
    for number in range(count):
        words = [f"w{_FIRST_WORD[language] + draw.randrange(10)}" for _ in range(draw.randint(2, 9))]
        at, answer = draw.randint(0, len(words)), f"w{52 + draw.randrange(6)}"
        start = len(" ".join([*words[:at], ""]))
        context = " ".join([*words[:at], answer, *words[at:]])
        asked = f"w51 w{_FIRST_WORD[language]}"
        articles.append(article(context, question(f"q{number}", asked, answer, start)))
    return articles


def write_sets(folder: Path) -> Path:
    """English questions to learn from, and tests in the names of MLQA and XQuAD."""
    write_squad(folder / "train-v1.1.json", marked_articles("en", 96))
    for language in ("en", "de"):
        name = f"dev-context-{language}-question-{language}.json"
        write_squad(folder / "mlqa" / name, marked_articles(language, 40, seed=2))
        write_squad(folder / "xquad" / f"xquad.{language}.json", marked_articles(language, 30, seed=3))
    return folder
