"""Questions about contexts, in sets of one language each: read, paired, and which can be learned and scored.

Files are in SQuAD's layout and named as MLQA, XQuAD and TyDiQA are, or datasets of the Hub:

    dev-context-de-question-en.json   MLQA
    xquad.de.json                     XQuAD
    tydiqa.goldp.sw.dev.json          TyDiQA-GoldP; also tydiqa-goldp-dev-swahili.json
    anything-de.json                  any; where no name helps de=FILE, or de-en=FILE with English questions
    hub:NAME[:CONFIG[:SPLIT]]         rows of id, context, question and answers, such as hub:rajpurkar/squad;
                                      hub:NAME@REVISION... of a branch, tag or commit

JSON files may be compressed with gzip.
"""

import glob
import gzip
import logging
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from modeling_infoxlm.data.readers import from_json
from modeling_infoxlm.data.sources import HUB_PREFIX, hub_parts
from modeling_infoxlm.evaluation.finetuning.rows import draw
from modeling_infoxlm.evaluation.hub_data import HubData
from modeling_infoxlm.evaluation.questions.mlqa_scoring import Rules, count_blank
from modeling_infoxlm.evaluation.results import DatasetRecord
from modeling_infoxlm.runs.errors import UsageError

logger = logging.getLogger(__name__)

OnMismatch = Literal["skip", "fail"]

_SUFFIXES = (".json", ".json.gz")
_LANGUAGE = r"(?P<context>[a-z]{2,3}(?:[_-][A-Z][A-Za-z]+)?)"
_QUESTION = _LANGUAGE.replace("context", "question")
# The first that fits tells benchmark and languages. Configurations of the Hub are named likewise.
_NAMES = (
    ("mlqa", re.compile(rf"(?P<split>\w+)-context-{_LANGUAGE}-question-{_QUESTION}")),
    ("mlqa", re.compile(rf"(?i:mlqa)\.{_LANGUAGE}\.{_QUESTION}")),
    ("xquad", re.compile(rf"(?i:xquad)[._-]{_LANGUAGE}")),
    ("tydiqa", re.compile(r"(?i:tydiqa[._-]goldp)(?:-v[\d.]+)?-(?P<split>\w+)-(?P<name>[a-z]+)")),
    ("tydiqa", re.compile(rf"(?i:tydiqa(?:[._-]goldp)?)[._-]{_LANGUAGE}(?:[._-](?P<split>\w+))?")),
    ("qa", re.compile(r".*[._-](?P<context>[a-z]{2})")),
)
_BENCHMARK = re.compile(r"mlqa|xquad|tydiqa", re.IGNORECASE)
_TYDIQA_LANGUAGES = {
    "arabic": "ar", "bengali": "bn", "english": "en", "finnish": "fi", "indonesian": "id", "korean": "ko",
    "russian": "ru", "swahili": "sw", "telugu": "te",
}  # fmt: skip


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
        share = f"{blank:,} of {len(part.questions):,}"
        message = "%s, %s: the gold answers of %s questions are blank, only a blank answer to them is right"
        logger.warning(message, part.location, part.name, share)
    return replace(part, num_blank=blank)


def read_question_sets(
    specs: Iterable[str],
    *,
    hub: HubData,
    on_mismatched_answers: OnMismatch,
    unnamed: str | None = None,
    with_negatives: bool = False,
    for_training: bool = False,
) -> list[QuestionSet]:
    """Read files, folders of them and Hub datasets.

    A spec is `LOCATION`, `LANGUAGE=LOCATION` or `CONTEXT-QUESTION=LOCATION`; a location is a file, a glob, a
    folder or `hub:NAME[@REVISION][:CONFIG[:SPLIT]]`. `unnamed` is the language where neither the spec nor the
    name tells it; None refuses such a location. For the other arguments see `check_places`.

    Raises:
        UsageError: If a location is missing, damaged or not in SQuAD's layout, its language is not known, or
            questions are not what is expected.
    """
    sets = [
        _read_set(location, languages, (unnamed, unnamed) if unnamed else None, hub)
        for spec in specs
        for location, languages in _locations(*_take_apart(spec))
    ]
    return [
        check_places(part, on_mismatched_answers, with_negatives=with_negatives, for_training=for_training)
        for part in sets
    ]


def record_questions(name: str, sets: Sequence[QuestionSet]) -> DatasetRecord:
    """Hashes of the files, and the commit of a Hub dataset, for a result file."""
    commits = {part.location: part.commit for part in sets if part.commit}
    paths = {part.location for part in sets} - set(commits)
    datasets = {(_dataset_of(place)[0], commit) for place, commit in commits.items()}
    if len(datasets) != 1 or paths:
        return DatasetRecord.of_files(name, paths, commits)
    ((repo_id, commit),) = datasets
    return DatasetRecord(name, {}, commit, repo_id)


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


def _dataset_of(location: str) -> tuple[str, str | None]:
    """Name and revision of the dataset of `hub:NAME@REVISION:CONFIG:SPLIT`."""
    name, _, revision = hub_parts(location)[0].partition("@")
    return name, revision or None


def _read_set(
    location: str, languages: tuple[str, str] | None, default: tuple[str, str] | None, hub: HubData
) -> QuestionSet:
    is_hub = location.startswith(HUB_PREFIX)
    name = (hub_parts(location)[1] or "") if is_hub else re.sub(r"\.json(\.gz)?$", "", Path(location).name)
    benchmark, split, named = _parse_name(name)
    if is_hub:
        dataset, _, split = hub_parts(location)
        # Its configurations may be named after nothing but their languages.
        known = _BENCHMARK.search(dataset) if benchmark == "qa" else None
        benchmark = known[0].lower() if known else benchmark
    found = languages or named or default
    if found is None:
        raise UsageError(
            f"the name of {location} does not tell its language; write it in front, de={location}, "
            f"or of contexts and questions, de-en={location}."
        )
    if is_hub:
        repo_id, revision = _dataset_of(location)
        commit = hub.commit(repo_id, revision)
        rows = hub.rows(repo_id, hub_parts(location)[1], split, revision)
    else:
        commit, rows = None, _flattened(_read_json(Path(location)))
    questions = list(_questions(location, rows))
    if not questions:
        raise UsageError(f"{location} has no question.")
    return QuestionSet(benchmark, split, *found, location, questions, commit=commit)


def _parse_name(name: str) -> tuple[str, str, tuple[str, str] | None]:
    """Benchmark, split and languages that a name tells; XTREME calls XQuAD's only split `test`."""
    for benchmark, pattern in _NAMES:
        if match := pattern.fullmatch(name):
            parts = match.groupdict()
            context = parts.get("context") or _TYDIQA_LANGUAGES.get(parts.get("name") or "")
            languages = (context, parts.get("question") or context) if context else None
            return benchmark, parts.get("split") or "test", languages
    return "qa", "test", None


def _questions(location: str, rows: Iterable[Mapping[str, Any]]) -> Iterator[Question]:
    """Questions of rows of id, question, context, answers and perhaps a title, the article's."""
    place = "the file"
    try:
        for row in rows:
            place = f"question {row['id']!r}"
            context = _text(row["context"])
            answers = tuple(_answers(row))
            article = str(row.get("title") or context)
            yield Question(str(row["id"]), _text(row["question"]), context, answers, article)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UsageError(
            f"{location} is not in SQuAD's layout: in {place}, {what}; expected data[].paragraphs[] with "
            "context and qas[], each with id, question and answers[] of text and answer_start, or of the Hub "
            "rows of these, where answers has lists text and answer_start."
        ) from error


def _answers(row: Mapping[str, Any]) -> Iterator[Answer]:
    # SQuAD 2.0 gives what might be taken for an answer under another name.
    gold = () if row.get("is_impossible") else row["answers"] or ()
    pairs: Iterable[tuple[Any, Any]]
    if isinstance(gold, Mapping):  # as `datasets` stores a list of records
        pairs = zip(gold["text"], gold["answer_start"], strict=True)
    else:
        pairs = ((answer["text"], answer["answer_start"]) for answer in gold)
    return (Answer(_text(text), int(start)) for text, start in pairs)


def _flattened(content: Any) -> Iterator[dict[str, Any]]:
    """A row of each question of a file."""
    for number, article in enumerate(content["data"]):
        for paragraph in article["paragraphs"]:
            about = {"context": paragraph["context"], "title": article.get("title") or str(number)}
            yield from ({"answers": (), **question, **about} for question in paragraph["qas"])


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text is of type {type(value).__name__}")
    if not value.isascii():
        value.encode()  # raises UnicodeEncodeError for half a surrogate pair, which no tokenizer takes
    return value


def _read_json(path: Path) -> Any:
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
        return from_json(text)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    except ValueError as error:
        raise UsageError(f"{path} is no JSON file in UTF-8: {error}") from error
