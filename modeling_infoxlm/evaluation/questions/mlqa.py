"""Cross-lingual question answering: MLQA (arXiv 1910.07475), XQuAD, TyDiQA-GoldP and the like.

A model that learned to answer in English answers in other languages, also where the question is in one
language and the context in another (generalised cross-lingual transfer, G-XLT in MLQA). `run_mlqa.py` is the
program.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from modeling_infoxlm.evaluation.finetuning import (
    SAMPLES,
    FineTuningArguments,
    HeadModel,
    HeadModelArguments,
    fine_tune,
)
from modeling_infoxlm.evaluation.questions.mlqa_scoring import Rules, exact_match_score, f1_score
from modeling_infoxlm.evaluation.questions.qa_features import (
    LABELS,
    Windows,
    WindowSettings,
    build_windows,
    check_windows,
)
from modeling_infoxlm.evaluation.questions.qa_spans import Candidate, SpanSettings, predict_answers
from modeling_infoxlm.evaluation.questions.squad_files import (
    Question,
    QuestionSet,
    check_answers,
    check_distinct_ids,
    cross_languages,
    fingerprint,
    limit_questions,
    read_question_sets,
    record_questions,
)
from modeling_infoxlm.evaluation.results import RESULT_SUFFIX, Estimate, TaskResult, estimate_share, summarise
from modeling_infoxlm.hub.benchmarks import SCORING_RULES
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.files import write_json
from modeling_infoxlm.training.bypassed import refuse_bypassed

PREDICTIONS = "predictions"  # folders beside the model
N_BEST = "nbest_predictions"

_DEFAULT_RULES: Rules = "mlqa"


@dataclass
class MLQAArguments:
    """Which questions are learned and answered, and how."""

    _argument_group_name = "question answering"

    train_file: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Questions to learn from, in SQuAD's layout: files (json, json.gz), globs, folders, or "
            "Hub datasets (hub:NAME:CONFIG:SPLIT, or hub:NAME@REVISION:CONFIG:SPLIT)."
        },
    )
    test_files: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Questions to answer: files by the names of MLQA, XQuAD or TyDiQA, globs, folders, or "
            "Hub datasets; de=FILE, or de-en=FILE for English questions about German contexts, if the name "
            "does not say so."
        },
    )
    task_name: str | None = field(
        default=None,
        metadata={"help": "Name of the result. Unset: a result for each benchmark that file names tell."},
    )
    scoring_rules: Rules | None = field(
        default=None,
        metadata={
            "help": "Rules of F1 and exact match: MLQA's, which know the language, or SQuAD v1.1's, which "
            "take each for English. Unset: as in the literature, squad for XQuAD and TyDiQA, else mlqa."
        },
    )
    all_pairs: bool = field(
        default=False,
        metadata={
            "help": "Answer also questions of each language about contexts of each other, put together by id."
        },
    )
    max_seq_length: int = field(default=384, metadata={"help": "Tokens of question and context together."})
    doc_stride: int = field(
        default=128, metadata={"help": "Tokens by which the window moves over a context that is too long."}
    )
    max_query_length: int = field(default=64, metadata={"help": "Longer questions are cut, in tokens."})
    max_answer_length: int = field(default=30, metadata={"help": "Longest answer in tokens."})
    n_best_size: int = field(default=20, metadata={"help": "Answers of each question in the n-best files."})
    save_n_best: bool = field(default=False, metadata={"help": "Write the n-best files."})
    on_mismatched_answers: Literal["fail", "skip"] = field(
        default="fail",
        metadata={
            "help": "What to do where an answer does not stand at its answer_start: fail, or skip such "
            "questions in training and count them; they are scored all the same, as scores compare texts."
        },
    )
    version_2_with_negative: bool = field(
        default=False, metadata={"help": "Some questions have no answer, as in SQuAD 2.0."}
    )
    null_score_diff_threshold: float = field(
        default=0.0,
        metadata={"help": "With these: no answer is predicted if it scores higher by more than this."},
    )
    max_train_samples: int | None = field(
        default=None,
        metadata={"help": "Questions drawn of each training file, see max_predict_samples. Unset: all."},
    )
    max_predict_samples: int | None = field(
        default=None,
        metadata={
            "help": "Questions drawn of each test file: the same in every run, of each article its share. "
            "Unset: all."
        },
    )

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        least = {"doc_stride": 1, "max_query_length": 1, "max_answer_length": 1, "n_best_size": 1}
        counts = {"max_train_samples": 1, "max_predict_samples": 1}
        for name, low in (least | counts).items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"{name} must be at least {low}, found {value}.")
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

    learning_rate: float = field(default=3e-5, metadata={"help": "Highest learning rate (base model: 3e-5)."})
    num_train_epochs: float = field(default=4.0, metadata={"help": "Passes over the training set."})
    eval_strategy: str = field(
        default="no",
        metadata={"help": "Must be no: the last step is taken, there is no selection on a dev set."},
    )
    save_steps: float = field(default=500, metadata={"help": "Steps between checkpoints."})

    def __post_init__(self) -> None:
        """Refuse what is not done."""
        no_dev = "there is no selection on a dev set"
        names = ("eval_steps", "eval_delay", "eval_on_start", "metric_for_best_model", "greater_is_better")
        refuse_bypassed(self, dict.fromkeys(names, no_dev))
        if str(self.eval_strategy) != "no":
            raise ValueError(f"eval_strategy must be no for question answering, found {self.eval_strategy}.")
        if self.label_smoothing_factor:  # over which of the tokens?
            raise ValueError(
                "label_smoothing_factor must be 0 for question answering, "
                f"found {self.label_smoothing_factor}."
            )
        super().__post_init__()


# ------------------------------------------------------------------------------------------------ the data


@dataclass(frozen=True)
class MLQAData:
    """All questions of a run.

    Attributes:
        train: Sets to learn from, without the questions that cannot be learned; empty if nothing is trained.
        test: Sets to answer, by the name of their task; empty if nothing is predicted.
    """

    train: Sequence[QuestionSet]
    test: Mapping[str, Sequence[QuestionSet]]

    @property
    def training_questions(self) -> list[Question]:
        """Of all sets."""
        return [question for part in self.train for question in part.questions]

    @property
    def files(self) -> dict[str, str]:
        """Hash of each file by its path, and the commit of a Hub dataset by its name."""
        sets = [*self.train, *(part for parts in self.test.values() for part in parts)]
        return {
            location: fingerprint(part) for location, part in {part.location: part for part in sets}.items()
        }


def load_data(task: MLQAArguments, args: FineTuningArguments, model: HeadModelArguments) -> MLQAData:
    """Read all questions that the run needs, and check them.

    Raises:
        UsageError: If a file is missing, damaged or of another layout, none is given, or two sets would write
            the same predictions.
    """
    read = partial(
        read_question_sets,
        on_mismatched_answers=task.on_mismatched_answers,
        with_negatives=task.version_2_with_negative,
        token=model.token,
        cache_dir=model.cache_dir,
    )
    train: list[QuestionSet] = []
    test: dict[str, list[QuestionSet]] = {}
    if args.do_train:
        if not task.train_file:
            raise UsageError(
                "nothing to learn from: give --train_file, or --do_train false for a trained model."
            )
        # What language they are in changes nothing, and SQuAD's own names do not tell it.
        train = read(task.train_file, unnamed="en", for_training=True)
        train = [limit_questions(part, task.max_train_samples) for part in train]
    if args.do_predict:
        if not task.test_files:
            raise UsageError("nothing to answer: give --test_files, or --do_predict false to train only.")
        sets = read(task.test_files)
        for part in cross_languages(sets) if task.all_pairs else sets:
            test.setdefault(task.task_name or part.benchmark, []).append(
                limit_questions(part, task.max_predict_samples)
            )
        for name, parts in test.items():
            _check_names(parts)
            rules = choose_rules(task, name, parts)
            test[name] = [check_answers(part, rules) for part in parts]
    return MLQAData(train, test)


def choose_rules(task: MLQAArguments, name: str, parts: Sequence[QuestionSet]) -> Rules:
    """Rules that a result is scored by.

    Raises:
        UsageError: If the literature scores some of its sets by others.
    """
    if task.scoring_rules is not None:
        return task.scoring_rules
    benchmarks = [name] if name in SCORING_RULES else sorted({part.benchmark for part in parts})
    rules = {SCORING_RULES.get(benchmark, _DEFAULT_RULES) for benchmark in benchmarks}
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
        check_distinct_ids(part)
        if part.name in seen:
            raise UsageError(
                f"{seen[part.name].location} and {part.location} are both {part.name}; "
                "score them in two runs, the second with --do_train false."
            )
        seen[part.name] = part


# ------------------------------------------------------------------------------------------------- the run


@dataclass(frozen=True)
class AnsweredSet:
    """A set of N questions, their answers and scores.

    Attributes:
        part: The questions.
        answers: Best first; the first of each question is the prediction.
        f1: Of each question, 0..1, (N,).
        exact_match: 0 or 1, (N,).
    """

    part: QuestionSet
    answers: Sequence[Sequence[Candidate]]
    f1: np.ndarray
    exact_match: np.ndarray

    def estimates(self) -> dict[str, Estimate]:
        """Both scores in percent; questions about one article hang together."""
        groups = [question.article for question in self.part.questions]
        if len(set(groups)) == 1:  # then those about one paragraph
            groups = [question.context for question in self.part.questions]
        scores = {"f1": self.f1, "exact_match": self.exact_match}
        return {name: estimate_share(100 * values, groups=groups) for name, values in scores.items()}


class MLQARun:
    """A model on the questions of a run: fine-tunes and answers.

    Args:
        head: The model.
        data: The questions.
        task: What is asked for.
        args: Training arguments.
        cache_dir: Folder of the cache of tokenised sets; None is the `datasets` library's own.

    Raises:
        UsageError: If the model cannot take windows so long, they are too short for a question, or the model
            is not to be trained and has no span head.
    """

    def __init__(
        self,
        head: HeadModel,
        data: MLQAData,
        *,
        task: MLQAArguments,
        args: FineTuningArguments,
        cache_dir: str | None,
    ) -> None:
        head.check_length(task.max_seq_length)
        if not args.do_train:
            head.check_trained()
        check_windows(head.tokenizer, task.windows)
        self.head, self.data, self.task, self.args, self.cache_dir = head, data, task, args, cache_dir

    def train(self, checkpoint: str | None) -> dict[str, Any]:
        """Fine-tune; the weights are in the model afterwards, and in the output folder.

        Returns:
            How it went, for the result file.
        """
        windows = self._windows(self.data.training_questions)
        record = fine_tune(
            self.head,
            self.args,
            rows=windows.rows,
            label_names=LABELS,
            selection=None,
            checkpoint=checkpoint,
        )
        return {
            "questions": {part.location: len(part.questions) for part in self.data.train},
            "mismatched_answers": sum(part.num_mismatched for part in self.data.train),
            "blank_answers": sum(part.num_blank for part in self.data.train),
            "windows": len(windows),
            "windows_with_answer": windows.num_with_answer,
            "steps": record.steps,
        }

    def answer(self) -> dict[str, list[AnsweredSet]]:
        """Answer and score every set, by the name of its task."""
        self.head.to(self.args.device)
        return {
            task: [self._answer(part, choose_rules(self.task, task, parts)) for part in parts]
            for task, parts in self.data.test.items()
        }

    def _answer(self, part: QuestionSet, rules: Rules) -> AnsweredSet:
        windows = self._windows(part.questions)
        answers = predict_answers(
            self.head.model,
            self.head.tokenizer,
            part.questions,
            windows,
            self.task.spans,
            bf16=self.args.bf16,
            description=f"{part.benchmark} {part.name}",
        )
        return score_answers(part, answers, rules)

    def _windows(self, questions: Sequence[Question]) -> Windows:
        return build_windows(questions, self.head.tokenizer, self.task.windows, cache_dir=self.cache_dir)


def score_answers(
    part: QuestionSet, answers: Sequence[Sequence[Candidate]], rules: Rules = _DEFAULT_RULES
) -> AnsweredSet:
    """Score the first answer of each question."""
    language = part.context_language
    pairs = [(found[0].text, question.golds) for question, found in zip(part.questions, answers, strict=True)]
    f1 = np.array([f1_score(text, gold, language, rules=rules) for text, gold in pairs])
    exact_match = np.array([exact_match_score(text, gold, language, rules=rules) for text, gold in pairs])
    return AnsweredSet(part, answers, f1, exact_match)


def make_result(
    run: MLQARun, task: str, answered: Sequence[AnsweredSet], training: Mapping[str, Any] | None
) -> TaskResult:
    """Scores of every set, means, transfer gap, and the matrix of context and question languages.

    Args:
        run: The run.
        task: Name of the result.
        answered: Sets of it, no two of the same languages.
        training: How fine-tuning went, None if there was none.
    """
    parts = [item.part for item in answered]
    scores = {item.part.name: item.estimates() for item in answered}
    f1 = {name: estimates["f1"].value for name, estimates in scores.items()}
    exact_match = {name: estimates["exact_match"].value for name, estimates in scores.items()}
    within = [item.part.name for item in answered if item.part.name == item.part.context_language]
    summary = _summary(f1, within)
    summary |= {f"exact_match_{name}": value for name, value in _summary(exact_match, within).items()}
    details: dict[str, Any] = {"sets": {item.part.name: _describe(item) for item in answered}}
    if len(within) < len(answered):
        details["g_xlt"] = {"f1": _matrix(answered, f1), "exact_match": _matrix(answered, exact_match)}
    return TaskResult(
        task=task,
        metric="f1",
        unit="percent",
        dataset=record_questions(task, parts),
        model=run.head.record,
        settings={**_settings(run), "scoring_rules": choose_rules(run.task, task, parts)},
        seed=None if training is None else run.args.seed,
        scores=scores,
        summary=summary,
        details={**details, "training": training},
    )


def _settings(run: MLQARun) -> dict[str, Any]:
    task, args = run.task, run.args
    answering = {
        **asdict(task.windows),
        "max_answer_length": task.max_answer_length,
        "max_predict_samples": task.max_predict_samples,
        "bf16": args.bf16,
    }
    if task.max_predict_samples or (args.do_train and task.max_train_samples):
        answering["samples"] = SAMPLES
    if task.version_2_with_negative:
        answering["null_score_diff_threshold"] = task.null_score_diff_threshold
    if not args.do_train:
        return answering
    return answering | {
        "max_train_samples": task.max_train_samples,
        "learning_rate": args.learning_rate,
        "batch_size": args.per_device_train_batch_size * args.gradient_accumulation_steps,
        "num_train_epochs": args.num_train_epochs,
        "max_steps": args.max_steps,
        "warmup_steps": args.warmup_steps,
        "weight_decay": args.weight_decay,
    }


def _summary(values: Mapping[str, float], within: Sequence[str]) -> dict[str, float]:
    """Mean and gap over sets whose questions are in the language of the context; mean over mixed pairs."""
    summary = summarise({name: values[name] for name in within}) if within else {}
    across = [value for name, value in values.items() if name not in within]
    return {**summary, **({"across": float(np.mean(across))} if across else {})}


def _matrix(answered: Sequence[AnsweredSet], values: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Values by language of the context, then by language of the question."""
    matrix: dict[str, dict[str, float]] = {}
    for item in answered:
        matrix.setdefault(item.part.context_language, {})[item.part.question_language] = values[
            item.part.name
        ]
    return matrix


def _describe(item: AnsweredSet) -> dict[str, Any]:
    return {
        "location": item.part.location,
        "questions": len(item.part.questions),
        "answered": sum(bool(found[0].text) for found in item.answers),
        "mismatched_answers": item.part.num_mismatched,
        "blank_answers": item.part.num_blank,
    }


# ------------------------------------------------------------------------------------------------- writing


def outputs(data: MLQAData) -> tuple[str, ...]:
    """Names of the files and folders that a run writes beside the model."""
    return (*(f"{task}{RESULT_SUFFIX}" for task in data.test), PREDICTIONS, N_BEST)


def write_predictions(folder: Path, task: str, item: AnsweredSet, *, n_best: bool) -> None:
    """Write `predictions/<task>/test-de.json`, as XTREME takes it, and the n-best file where asked for."""
    ids = [question.id for question in item.part.questions]
    name = f"{item.part.file_stem}.json"
    texts = {key: found[0].text for key, found in zip(ids, item.answers, strict=True)}
    write_json(folder / PREDICTIONS / task / name, texts)
    if n_best:
        lists = {key: _with_shares(found) for key, found in zip(ids, item.answers, strict=True)}
        write_json(folder / N_BEST / task / name, lists)


def _with_shares(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """Candidates, each with its share of a softmax over them."""
    scores = torch.tensor([candidate.score for candidate in candidates], dtype=torch.float64)
    shares = scores.softmax(dim=0).tolist()
    return [asdict(item) | {"probability": share} for item, share in zip(candidates, shares, strict=True)]


def print_result(result: TaskResult, console: Console) -> None:
    """Print F1 and exact match of every set, and the means."""
    table = Table("context", "question", "questions", "F1", "95 %", "exact match", title=result.task)
    for name, estimates in result.scores.items():
        context, _, question = name.partition("-")
        f1, exact_match = estimates["f1"], estimates["exact_match"]
        interval = f"{f1.low:.1f} to {f1.high:.1f}"
        cells = (f"{f1.count:,}", f"{f1.value:.1f}", interval, f"{exact_match.value:.1f}")
        table.add_row(context, question or context, *cells)
    console.print(table)
    console.print("  ".join(f"{name} {value:.1f}" for name, value in result.summary.items()))
