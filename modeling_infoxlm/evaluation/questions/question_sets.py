"""Questions about contexts, in sets of one language each; which of them can be learned, and scored."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from modeling_infoxlm.evaluation.finetuning.rows import draw
from modeling_infoxlm.evaluation.questions.mlqa_scoring import Rules, count_blank
from modeling_infoxlm.runs.errors import UsageError

logger = logging.getLogger(__name__)

OnMismatch = Literal["skip", "fail"]


@dataclass(frozen=True)
class Answer:
    """A gold answer."""

    text: str  # as it stands in the file
    start: int  # its first character in the context


@dataclass(frozen=True)
class Question:
    """A question about a context."""

    id: str  # names it in prediction files
    text: str
    context: str  # where its answer stands
    answers: tuple[Answer, ...]  # gold answers; none if the context does not answer it
    article: str = ""  # that the context is of

    @property
    def golds(self) -> list[str]:
        """Texts of the answers."""
        return [answer.text for answer in self.answers]

    @property
    def blank(self) -> bool:
        """Whether it has answers, and no letter in them."""
        return bool(self.answers) and not any(text.strip() for text in self.golds)

    @property
    def mismatched(self) -> bool:
        """Whether an answer does not stand where its `answer_start` says; a blank one has no place."""
        texts = (answer for answer in self.answers if answer.text.strip())
        return any(not self.context.startswith(answer.text, answer.start) for answer in texts)


@dataclass(frozen=True)
class QuestionSet:
    """Questions of one language about contexts of one language."""

    benchmark: str  # `mlqa`, `xquad`, `tydiqa` or `qa`
    split: str  # `dev`, `test`, ...
    context_language: str  # language of contexts and answers
    question_language: str  # language of the questions
    location: str  # file or Hub dataset that it was read from
    questions: Sequence[Question]  # in the order of the file
    num_mismatched: int = 0  # questions with an answer that does not stand where its `answer_start` says
    num_blank: int = 0  # questions whose answers are blank
    commit: str | None = None  # of a Hub dataset

    @property
    def name(self) -> str:
        """`de`, or `de-en` for English questions about German contexts."""
        if self.context_language == self.question_language:
            return self.context_language
        return f"{self.context_language}-{self.question_language}"

    @property
    def file_stem(self) -> str:
        """Name of its prediction file, as in XTREME's submissions and in MLQA."""
        if self.context_language == self.question_language:
            return f"{self.split}-{self.context_language}"
        return f"{self.split}-context-{self.context_language}-question-{self.question_language}"


def limit_questions(part: QuestionSet, count: int | None) -> QuestionSet:
    """So many questions, of each article its share; None for all."""
    numbers = draw([question.article for question in part.questions], count)
    return replace(part, questions=[part.questions[number] for number in numbers])


def cross_languages(sets: Sequence[QuestionSet]) -> list[QuestionSet]:
    """The given sets, and all pairs of contexts of one language with questions of another that share ids.

    XQuAD and MLQA ask the same questions in several languages, so monolingual files hold every mixed pair.
    Pairs are made within a benchmark, and not where one is given.
    """
    given = {(part.benchmark, part.split, part.name) for part in sets}
    own = [part for part in sets if part.context_language == part.question_language]
    made = [
        _cross(context, question)
        for context in own
        for question in own
        if (context.benchmark, context.split) == (question.benchmark, question.split)
    ]
    new = (part for part in made if (part.benchmark, part.split, part.name) not in given)
    return [*sets, *(part for part in new if part.questions)]


def _cross(context: QuestionSet, question: QuestionSet) -> QuestionSet:
    texts = {item.id: item.text for item in question.questions}
    questions = [replace(item, text=texts[item.id]) for item in context.questions if item.id in texts]
    language = question.question_language
    return replace(context, question_language=language, questions=questions, num_mismatched=0)


def check_places(
    part: QuestionSet, on_mismatched_answers: OnMismatch, *, with_negatives: bool, for_training: bool
) -> QuestionSet:
    """Count answers that do not stand where they are said to; for training leave out what teaches nothing.

    That is questions with such an answer, and with a blank one. In evaluation they stay, because scores
    compare texts alone. `with_negatives` takes questions without an answer, as in SQuAD 2.0.

    Raises:
        UsageError: If a question is not what is expected, or none is left.
    """
    unanswered = sum(not question.answers for question in part.questions)
    if unanswered and not with_negatives:
        raise UsageError(
            f"{part.location}: {unanswered:,} of {len(part.questions):,} questions have no answer; "
            "give --version_2_with_negative true to have them learned and scored as in SQuAD 2.0."
        )
    mismatched = [question for question in part.questions if question.mismatched]
    if mismatched and on_mismatched_answers == "fail":
        raise UsageError(
            f"{part.location}: {len(mismatched):,} of {len(part.questions):,} questions have an answer that "
            f"does not stand at its answer_start, first {mismatched[0].id!r}; mend the file, or give "
            "--on_mismatched_answers skip."
        )
    if not for_training:
        return replace(part, num_mismatched=len(mismatched))
    blank = sum(question.blank for question in part.questions)
    kept = [question for question in part.questions if not question.mismatched and not question.blank]
    if not kept:
        raise UsageError(
            f"{part.location}: no question is left: the answers of {blank:,} are blank, and those of "
            f"{len(mismatched):,} do not stand at their answer_start; give a file with answers."
        )
    if blank:
        logger.warning("%s: left out %s questions whose answers are blank", part.location, f"{blank:,}")
    return replace(part, questions=kept, num_mismatched=len(mismatched), num_blank=blank)


def check_answers(part: QuestionSet, rules: Rules) -> QuestionSet:
    """Count the questions that only a blank answer is right for; a `UsageError` if there are no others."""
    blank = count_blank((question.golds for question in part.questions), part.context_language, rules=rules)
    if blank == sum(bool(question.answers) for question in part.questions):
        raise UsageError(
            f"{part.location}: the gold answers of all {len(part.questions):,} questions are blank or "
            "missing, so they cannot be scored; give a file with answers."
        )
    if blank:
        logger.warning(
            "%s, %s: the gold answers of %s of %s questions are blank, only a blank answer to them is right",
            part.location,
            part.name,
            f"{blank:,}",
            f"{len(part.questions):,}",
        )
    return replace(part, num_blank=blank)


def check_distinct_ids(part: QuestionSet) -> None:
    """Refuse a set that prediction files could not tell apart: two of its questions have the same id."""
    for key, count in Counter(question.id for question in part.questions).items():
        if count > 1:
            raise UsageError(
                f"{part.location} has two questions with the id {key!r}; predictions are told apart by it, "
                "so give each its own."
            )
