"""Which questions a run learns from and answers: flags, and the questions read."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from modeling_infoxlm.evaluation.finetuning.arguments import FineTuningArguments, HeadModelArguments
from modeling_infoxlm.evaluation.hub_data import HubData
from modeling_infoxlm.evaluation.questions.mlqa_scoring import Rules
from modeling_infoxlm.evaluation.questions.qa_features import WindowSettings
from modeling_infoxlm.evaluation.questions.qa_spans import SpanSettings
from modeling_infoxlm.evaluation.questions.question_sets import (
    Question,
    QuestionSet,
    check_answers,
    cross_languages,
    limit_questions,
    read_question_sets,
)
from modeling_infoxlm.evaluation.results import RESULT_SUFFIX
from modeling_infoxlm.hub.benchmarks import SCORING_RULES
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.files import file_sha256
from modeling_infoxlm.runs.flags import check_numbers, flag
from modeling_infoxlm.training.bypassed import refuse_bypassed

PREDICTIONS = "predictions"  # folders beside the model
N_BEST = "nbest_predictions"


@dataclass
class MLQAArguments:
    """Which questions are learned and answered, and how."""

    _argument_group_name = "question answering"
    train_file: list[str] = flag(
        [],
        "Questions to learn from, in SQuAD's layout: files (json, json.gz), globs, folders, or Hub datasets "
        "(hub:NAME:CONFIG:SPLIT, or hub:NAME@REVISION:CONFIG:SPLIT).",
    )
    test_files: list[str] = flag(
        [],
        "Questions to answer: files by the names of MLQA, XQuAD or TyDiQA, globs, folders, or Hub datasets; "
        "de=FILE, or de-en=FILE for English questions about German contexts, if the name does not say so.",
    )
    task_name: str | None = flag(None, "Name of the result. Unset: by benchmark, as file names tell.")
    scoring_rules: Rules | None = flag(
        None,
        "Rules of F1 and exact match: MLQA's, which know the language, or SQuAD v1.1's, which take each for "
        "English. Unset: as in the literature, squad for XQuAD and TyDiQA, else mlqa.",
    )
    all_pairs: bool = flag(False, "Also ask each language about contexts of each other, put together by id.")
    max_seq_length: int = flag(384, "Tokens of question and context together.")
    doc_stride: int = flag(128, "Tokens by which the window moves over a context that is too long.")
    max_query_length: int = flag(64, "Longer questions are cut, in tokens.")
    max_answer_length: int = flag(30, "Longest answer in tokens.")
    n_best_size: int = flag(20, "Answers of each question in the n-best files.")
    save_n_best: bool = flag(False, "Write the n-best files.")
    on_mismatched_answers: Literal["fail", "skip"] = flag(
        "fail",
        "What to do where an answer does not stand at its answer_start: fail, or skip such questions in "
        "training and count them; they are scored all the same, as scores compare texts.",
    )
    version_2_with_negative: bool = flag(False, "Some questions have no answer, as in SQuAD 2.0.")
    null_score_diff_threshold: float = flag(0.0, "With these: no answer if it scores more than this higher.")
    max_train_samples: int | None = flag(
        None, "Questions drawn of each training file, see max_predict_samples. Unset: all."
    )
    max_predict_samples: int | None = flag(
        None,
        "Questions drawn of each test file: the same in every run, of each article its share. Unset: all.",
    )

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        check_numbers(self)
        if self.null_score_diff_threshold and not self.version_2_with_negative:
            raise ValueError("null_score_diff_threshold needs --version_2_with_negative true.")

    @property
    def windows(self) -> WindowSettings:
        """How questions and contexts become windows."""
        return WindowSettings(self.max_seq_length, self.doc_stride, self.max_query_length)

    @property
    def spans(self) -> SpanSettings:
        """Which spans can be answers."""
        threshold = self.null_score_diff_threshold if self.version_2_with_negative else None
        return SpanSettings(self.max_answer_length, self.n_best_size if self.save_n_best else 1, threshold)


@dataclass
class MLQATrainingArguments(FineTuningArguments):
    """Training arguments with defaults for question answering."""

    learning_rate: float = flag(3e-5, "Highest learning rate (base model: 3e-5).")
    num_train_epochs: float = flag(4.0, "Passes over the training set.")
    eval_strategy: str = flag("no", "Must be no: the last step is taken, there is no selection on a dev set.")
    save_steps: float = flag(500, "Steps between checkpoints.")

    def __post_init__(self) -> None:
        """Refuse what is not done."""
        no_dev = "there is no selection on a dev set"
        names = ("eval_steps", "eval_delay", "eval_on_start", "metric_for_best_model", "greater_is_better")
        refuse_bypassed(self, dict.fromkeys(names, no_dev))
        if str(self.eval_strategy) != "no":
            raise ValueError(f"eval_strategy must be no for question answering, found {self.eval_strategy}.")
        if self.label_smoothing_factor:  # over which of the tokens?
            found = self.label_smoothing_factor
            raise ValueError(f"label_smoothing_factor must be 0 for question answering, found {found}.")
        super().__post_init__()


@dataclass(frozen=True)
class MLQAData:
    """All questions of a run."""

    # sets to learn from, without the questions that cannot be learned; empty if nothing is trained
    train: Sequence[QuestionSet]
    # sets to answer, by the name of their task; empty if nothing is predicted
    test: Mapping[str, Sequence[QuestionSet]]
    rules: Mapping[str, Rules]  # what each task is scored by

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the files and folders that a run writes beside the model."""
        return (*(f"{task}{RESULT_SUFFIX}" for task in self.test), PREDICTIONS, N_BEST)

    @property
    def training_questions(self) -> list[Question]:
        """Of all sets."""
        return [question for part in self.train for question in part.questions]

    @property
    def files(self) -> dict[str, str]:
        """Hash of each file by its path, and the commit of a Hub dataset by its name."""
        sets = [*self.train, *(part for parts in self.test.values() for part in parts)]
        places = {part.location: part.commit for part in sets}
        return {place: commit or file_sha256(place) for place, commit in places.items()}


def load_data(task: MLQAArguments, args: FineTuningArguments, model: HeadModelArguments) -> MLQAData:
    """Read all questions that the run needs, and check them.

    Raises:
        UsageError: If files are missing, damaged, or of the same languages.
    """
    read = partial(
        read_question_sets,
        on_mismatched_answers=task.on_mismatched_answers,
        with_negatives=task.version_2_with_negative,
        hub=HubData(model.token, model.cache_dir),
    )
    train: list[QuestionSet] = []
    test: dict[str, list[QuestionSet]] = {}
    rules: dict[str, Rules] = {}
    if args.do_train:
        if not task.train_file:
            raise UsageError("nothing to learn from: give --train_file, or --do_train false.")
        # What language they are in changes nothing, and SQuAD's own names do not tell it.
        train = read(task.train_file, unnamed="en", for_training=True)
        train = [limit_questions(part, task.max_train_samples) for part in train]
    if args.do_predict:
        if not task.test_files:
            raise UsageError("nothing to answer: give --test_files, or --do_predict false to train only.")
        sets = read(task.test_files)
        for part in cross_languages(sets) if task.all_pairs else sets:
            name, part = task.task_name or part.benchmark, limit_questions(part, task.max_predict_samples)
            test.setdefault(name, []).append(part)
        for name, parts in test.items():
            _check_names(parts)
            rules[name] = choose_rules(task, name, parts)
            test[name] = [check_answers(part, rules[name]) for part in parts]
    return MLQAData(train, test, rules)


def choose_rules(task: MLQAArguments, name: str, parts: Sequence[QuestionSet]) -> Rules:
    """Rules that a result is scored by; a `UsageError` if the literature scores its sets by several."""
    if task.scoring_rules is not None:
        return task.scoring_rules
    benchmarks = [name] if name in SCORING_RULES else sorted({part.benchmark for part in parts})
    rules = {SCORING_RULES.get(benchmark, "mlqa") for benchmark in benchmarks}
    if len(rules) > 1:
        raise UsageError(
            f"{name} would hold {' and '.join(benchmarks)}, which are scored by different rules; "
            "score them as two tasks, or give --scoring_rules."
        )
    return rules.pop()


def _check_names(parts: Sequence[QuestionSet]) -> None:
    """Refuse sets, or questions of one, that predictions could not tell apart."""
    seen: dict[str, QuestionSet] = {}
    for part in parts:
        (key, count), *_ = Counter(question.id for question in part.questions).most_common(1)
        if count > 1:
            raise UsageError(
                f"{part.location} has two questions with the id {key!r}; predictions are told apart by it, "
                "so give each its own."
            )
        if part.name in seen:
            raise UsageError(
                f"{seen[part.name].location} and {part.location} are both {part.name}; "
                "score them in two runs, the second with --do_train false."
            )
        seen[part.name] = part
