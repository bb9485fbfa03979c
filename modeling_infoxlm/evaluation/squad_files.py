"""Questions about contexts: files in SQuAD's layout, named as MLQA, XQuAD and TyDiQA are, and Hub datasets.

    dev-context-de-question-en.json   MLQA
    xquad.de.json                     XQuAD
    tydiqa.goldp.sw.dev.json          TyDiQA-GoldP; also tydiqa-goldp-dev-swahili.json
    anything-de.json                  any; where no name helps de=FILE, or de-en=FILE with English questions
    hub:NAME[:CONFIG[:SPLIT]]         rows of id, context, question and answers, such as hub:rajpurkar/squad

JSON files may be compressed with gzip.
"""

import glob
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from modeling_infoxlm.data.readers import hub_revision
from modeling_infoxlm.data.sources import HUB_PREFIX, hub_parts
from modeling_infoxlm.evaluation.results import DatasetRecord
from modeling_infoxlm.process import UsageError, usage_errors
from modeling_infoxlm.provenance import file_sha256

OnMismatch = Literal["skip", "fail"]

_SUFFIXES = (".json", ".json.gz")
_LANGUAGE = r"(?P<context>[a-z]{2,3}(?:[_-][A-Z][A-Za-z]+)?)"
_QUESTION = _LANGUAGE.replace("context", "question")
# The first that fits tells benchmark and languages. Configurations of the Hub are named likewise.
_NAMES = (
    ("mlqa", re.compile(rf"(?P<split>\w+)-context-{_LANGUAGE}-question-{_QUESTION}")),
    ("mlqa", re.compile(rf"mlqa\.{_LANGUAGE}\.{_QUESTION}")),
    ("xquad", re.compile(rf"xquad\.{_LANGUAGE}")),
    ("tydiqa", re.compile(rf"tydiqa(?:\.goldp)?\.{_LANGUAGE}(?:\.(?P<split>\w+))?")),
    ("tydiqa", re.compile(r"tydiqa-goldp(?:-v[\d.]+)?-(?P<split>\w+)-(?P<name>[a-z]+)")),
    ("qa", re.compile(r".*[._-](?P<context>[a-z]{2})")),
)
_TYDIQA_LANGUAGES = {
    "arabic": "ar",
    "bengali": "bn",
    "english": "en",
    "finnish": "fi",
    "indonesian": "id",
    "korean": "ko",
    "russian": "ru",
    "swahili": "sw",
    "telugu": "te",
}


@dataclass(frozen=True)
class Answer:
    """A gold answer.

    Attributes:
        text: As it stands in the file.
        start: Its first character in the context.
    """

    text: str
    start: int


@dataclass(frozen=True)
class Question:
    """A question about a context.

    Attributes:
        id: Names it in prediction files.
        text: The question.
        context: Where its answer stands.
        answers: Gold answers; none if the context does not answer it.
    """

    id: str
    text: str
    context: str
    answers: tuple[Answer, ...]

    @property
    def mismatched(self) -> bool:
        """Whether an answer does not stand where its `answer_start` says."""
        return any(not self.context.startswith(answer.text, answer.start) for answer in self.answers)


@dataclass(frozen=True)
class QuestionSet:
    """Questions of one language about contexts of one language.

    Attributes:
        benchmark: `mlqa`, `xquad`, `tydiqa` or `qa`.
        split: `dev`, `test`, ...
        context_language: Language of contexts and answers.
        question_language: Language of the questions.
        location: File or Hub dataset that it was read from.
        questions: In the order of the file.
        num_mismatched: Questions with an answer that does not stand where its `answer_start` says.
    """

    benchmark: str
    split: str
    context_language: str
    question_language: str
    location: str
    questions: Sequence[Question]
    num_mismatched: int = 0

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


def read_question_sets(
    specs: Iterable[str],
    *,
    on_mismatched_answers: OnMismatch,
    unnamed: str | None = None,
    with_negatives: bool = False,
    drop_mismatched: bool = False,
) -> list[QuestionSet]:
    """Read files, folders of them and Hub datasets.

    Args:
        specs: `LOCATION` or `LANGUAGE=LOCATION` or `CONTEXT-QUESTION=LOCATION`; a location is a file, a
            glob, a folder or `hub:NAME[:CONFIG[:SPLIT]]`.
        unnamed: Language where neither the spec nor the name tells it; None refuses such a location.
        on_mismatched_answers: Whether an answer that does not stand where its `answer_start` says ends the
            run.
        with_negatives: Take questions without an answer, as in SQuAD 2.0.
        drop_mismatched: Leave questions with such an answer out. For training: nothing can be learned from
            them. In evaluation they stay, because scores compare texts alone.

    Raises:
        UsageError: If a location is missing, damaged or not in SQuAD's layout, its language is not known, or
            questions are not what is expected.
    """
    with usage_errors():
        sets = [
            _read_set(location, languages, (unnamed, unnamed) if unnamed else None)
            for spec in specs
            for location, languages in _locations(*_take_apart(spec))
        ]
    return [
        _checked(part, on_mismatched_answers, with_negatives=with_negatives, drop_mismatched=drop_mismatched)
        for part in sets
    ]


def limit_questions(part: QuestionSet, count: int | None) -> QuestionSet:
    """The first so many questions; None for all."""
    return part if count is None else replace(part, questions=part.questions[:count])


def cross_languages(sets: Sequence[QuestionSet]) -> list[QuestionSet]:
    """Pair contexts of each language with questions of each other, where both have questions of the same id.

    XQuAD and MLQA ask the same questions in several languages, so monolingual files hold every mixed pair.

    Args:
        sets: Of any benchmarks; pairs are made within one, and not where one is given.

    Returns:
        The given sets, and behind them the made ones.
    """
    given = {(part.benchmark, part.split, part.context_language, part.question_language) for part in sets}
    own = [part for part in sets if part.context_language == part.question_language]
    made = [
        _cross(context, question)
        for context in own
        for question in own
        if (context.benchmark, context.split) == (question.benchmark, question.split)
        and (context.benchmark, context.split, context.context_language, question.question_language)
        not in given
    ]
    return [*sets, *(part for part in made if part.questions)]


def fingerprint(location: str) -> str:
    """What tells one content of a location from another: hash of a file, commit of a Hub dataset."""
    return hub_revision(location) if location.startswith(HUB_PREFIX) else file_sha256(location)


def record_questions(name: str, sets: Sequence[QuestionSet]) -> DatasetRecord:
    """Hashes of the files, and the commit of a Hub dataset, for a result file."""
    locations = {part.location for part in sets}
    hub = sorted(location for location in locations if location.startswith(HUB_PREFIX))
    record = DatasetRecord.of_files(name, locations - set(hub))
    return replace(record, revision=fingerprint(hub[0])) if hub else record


# ----------------------------------------------------------------------------------------------- locations


def _take_apart(spec: str) -> tuple[tuple[str, str] | None, str]:
    """Languages of context and question, if they are written out, and the location."""
    match = re.fullmatch(r"([a-z]{2,3}(?:_[A-Za-z]+)?)(?:-([a-z]{2,3}(?:_[A-Za-z]+)?))?=(.+)", spec)
    return ((match[1], match[2] or match[1]), match[3]) if match else (None, spec)


def _locations(languages: tuple[str, str] | None, location: str) -> list[tuple[str, tuple[str, str] | None]]:
    """A folder is the files in it, a glob those that it fits."""
    if location.startswith(HUB_PREFIX) or Path(location).is_file():
        return [(location, languages)]
    if Path(location).is_dir():
        files = sorted(str(path) for path in Path(location).iterdir() if path.name.endswith(_SUFFIXES))
    else:
        files = sorted(glob.glob(location))
    if not files:
        raise UsageError(f"{location} is no file, and no folder or glob of {' or '.join(_SUFFIXES)} files.")
    return [(path, languages) for path in files]


def _read_set(
    location: str, languages: tuple[str, str] | None, default: tuple[str, str] | None
) -> QuestionSet:
    is_hub = location.startswith(HUB_PREFIX)
    name = (hub_parts(location)[1] or "") if is_hub else re.sub(r"\.json(\.gz)?$", "", Path(location).name)
    benchmark, split, named = _parse_name(name)
    if is_hub:
        split = hub_parts(location)[2]
    found = languages or named or default
    if found is None:
        raise UsageError(
            f"the name of {location} does not tell its language; write it in front, de={location}, "
            f"or of contexts and questions, de-en={location}."
        )
    questions = list(_hub_questions(location) if is_hub else _file_questions(Path(location)))
    if not questions:
        raise UsageError(f"{location} has no question.")
    return QuestionSet(benchmark, split, *found, location, questions)


def _parse_name(name: str) -> tuple[str, str, tuple[str, str] | None]:
    """Benchmark, split and languages that a name tells; XTREME calls XQuAD's only split `test`."""
    for benchmark, pattern in _NAMES:
        if match := pattern.fullmatch(name):
            parts = match.groupdict()
            context = parts.get("context") or _TYDIQA_LANGUAGES.get(parts.get("name") or "")
            languages = (context, parts.get("question") or context) if context else None
            return benchmark, parts.get("split") or "test", languages
    return "qa", "test", None


# ------------------------------------------------------------------------------------------------- reading


def _file_questions(path: Path) -> Iterator[Question]:
    content = _read_json(path)
    place = "the file"
    try:
        for article in content["data"]:
            for paragraph in article["paragraphs"]:
                context = _text(paragraph["context"])
                for question in paragraph["qas"]:
                    place = f"question {question['id']!r}"
                    yield _question(question, context, question.get("answers", ()))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(
            f"{path} is not in SQuAD's layout: in {place}, {_describe(error)}; expected data[].paragraphs[] "
            "with context and qas[], each with id, question and answers[] of text and answer_start."
        ) from error


def _question(row: Mapping[str, Any], context: str, answers: Iterable[Mapping[str, Any]]) -> Question:
    # SQuAD 2.0 gives what might be taken for an answer under another name.
    gold = () if row.get("is_impossible") else answers
    found = tuple(Answer(_text(answer["text"]), int(answer["answer_start"])) for answer in gold)
    return Question(str(row["id"]), _text(row["question"]), context, found)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text is of type {type(value).__name__}")
    if not value.isascii():
        value.encode()  # raises UnicodeEncodeError for half a surrogate pair, which no tokenizer takes
    return value


def _describe(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _read_json(path: Path) -> Any:
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
        return json.loads(text)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no JSON file in UTF-8: {error}") from error


def _hub_questions(location: str) -> Iterator[Question]:
    """Rows of a Hub dataset; `answers` is a record of two lists, as `datasets` stores a list of records."""
    import datasets

    name, config, split = hub_parts(location)
    try:
        rows = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a dataset that is a script
        raise UsageError(f"{location} cannot be loaded: {str(error).splitlines()[0]}") from error
    try:
        for row in rows:
            texts, starts = row["answers"]["text"], row["answers"]["answer_start"]
            answers = (
                {"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)
            )
            yield _question(row, _text(row["context"]), answers)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{location} has rows of another form, {_describe(error)}; expected columns id, context, "
            "question and answers with lists text and answer_start."
        ) from error


# ------------------------------------------------------------------------------------------------ checking


def _checked(
    part: QuestionSet, on_mismatched_answers: OnMismatch, *, with_negatives: bool, drop_mismatched: bool
) -> QuestionSet:
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
    kept = part.questions
    if drop_mismatched and mismatched:
        kept = [question for question in part.questions if not question.mismatched]
    if not kept:
        raise UsageError(f"{part.location}: no answer stands at its answer_start, so no question is left.")
    return replace(part, questions=kept, num_mismatched=len(mismatched))


def check_distinct_ids(part: QuestionSet) -> None:
    """Refuse a set that prediction files could not tell apart.

    Raises:
        UsageError: If two questions have the same id.
    """
    seen: set[str] = set()
    for question in part.questions:
        if question.id in seen:
            raise UsageError(
                f"{part.location} has two questions with the id {question.id!r}; predictions are told apart "
                "by it, so give each its own."
            )
        seen.add(question.id)


def _cross(context: QuestionSet, question: QuestionSet) -> QuestionSet:
    texts = {item.id: item.text for item in question.questions}
    questions = [replace(item, text=texts[item.id]) for item in context.questions if item.id in texts]
    return replace(
        context,
        question_language=question.question_language,
        questions=questions,
        num_mismatched=0,
    )
