"""Cross-lingual question answering: MLQA (arXiv 1910.07475), XQuAD, TyDiQA-GoldP and the like.

A model that learned to answer in English answers in other languages, also where the question is in one
language and the context in another (generalised cross-lingual transfer, G-XLT in MLQA). `run_mlqa.py` is the
program.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForQuestionAnswering

from modeling_infoxlm.evaluation.finetuning.heads import HeadModel
from modeling_infoxlm.evaluation.finetuning.rows import SAMPLES
from modeling_infoxlm.evaluation.finetuning.run import HeadRun
from modeling_infoxlm.evaluation.questions.mlqa_data import N_BEST, PREDICTIONS, MLQAData
from modeling_infoxlm.evaluation.questions.mlqa_scoring import Rules, score_answers
from modeling_infoxlm.evaluation.questions.qa_features import LABELS, Windows, build_windows, check_windows
from modeling_infoxlm.evaluation.questions.qa_spans import Candidate, predict_answers
from modeling_infoxlm.evaluation.questions.question_sets import Question, QuestionSet, record_questions
from modeling_infoxlm.evaluation.results import Estimate, TaskResult, estimate_share, summarise
from modeling_infoxlm.runs.files import write_json


@dataclass(frozen=True)
class AnsweredSet:
    """A set of N questions, their answers and scores."""

    part: QuestionSet
    answers: Sequence[Sequence[Candidate]]  # best first; the first of each question is the prediction
    scores: Mapping[str, np.ndarray]  # `f1` and `exact_match` of each prediction, 0..1, (N,) each

    @classmethod
    def of(
        cls, part: QuestionSet, answers: Sequence[Sequence[Candidate]], rules: Rules = "mlqa"
    ) -> "AnsweredSet":
        """Score the first answer of each question."""
        texts = [found[0].text for found in answers]
        golds = [question.golds for question in part.questions]
        languages = [part.context_language] * len(texts)
        return cls(part, answers, score_answers(texts, golds, languages, rules=rules))

    def estimates(self) -> dict[str, Estimate]:
        """Both scores in percent; questions about one article hang together."""
        groups = [question.article for question in self.part.questions]
        if len(set(groups)) == 1:  # then those about one paragraph
            groups = [question.context for question in self.part.questions]
        return {name: estimate_share(100 * values, groups=groups) for name, values in self.scores.items()}


class MLQARun(HeadRun):
    """A model on the questions of a run; refuses windows that are too short for a question."""

    auto_class = AutoModelForQuestionAnswering
    label_names = LABELS
    data: MLQAData

    def __init__(self, head: HeadModel, data: MLQAData, **options: Any) -> None:
        super().__init__(head, data, **options)
        check_windows(head.tokenizer, self.task.windows)

    def training_rows(self) -> Dataset:
        """Windows of all questions that are learned."""
        return self._windows(self.data.training_questions).rows

    def train(self, checkpoint: str | None) -> dict[str, Any]:
        """Fine-tune; the steps, and what was learned from."""
        learned = self._windows(self.data.training_questions)  # from the cache
        return {
            "questions": {part.location: len(part.questions) for part in self.data.train},
            "mismatched_answers": sum(part.num_mismatched for part in self.data.train),
            "blank_answers": sum(part.num_blank for part in self.data.train),
            "windows": len(learned),
            "windows_with_answer": learned.num_with_answer,
            "steps": super().train(checkpoint)["steps"],
        }

    def test(self, training: Mapping[str, Any] | None, folder: Path) -> Iterator[TaskResult]:
        """Answer every set, write the answers into the folder, and score; a result for each task."""
        for task in self.data.test:
            answered = self.answer(task)
            for item in answered:
                write_predictions(folder, task, item, n_best=self.task.save_n_best)
            yield self.score(task, answered, training)

    def answer(self, task: str) -> list[AnsweredSet]:
        """Answer and score the sets of a task."""
        return [self._answer(part, self.data.rules[task]) for part in self.data.test[task]]

    def _answer(self, part: QuestionSet, rules: Rules) -> AnsweredSet:
        answers = predict_answers(
            self.head,
            part.questions,
            self._windows(part.questions),
            self.task.spans,
            bf16=self.args.bf16,
            description=f"{part.benchmark} {part.name}",
        )
        return AnsweredSet.of(part, answers, rules)

    def _windows(self, questions: Sequence[Question]) -> Windows:
        return build_windows(questions, self.head.tokenizer, self.task.windows, cache_dir=self.cache_dir)

    def score(
        self, task: str, answered: Sequence[AnsweredSet], training: Mapping[str, Any] | None
    ) -> TaskResult:
        """Scores of every set, means, transfer gap, and the matrix of context and question languages.

        No two sets are of the same languages; `training` is None if there was none.
        """
        parts = [item.part for item in answered]
        scores = {item.part.name: item.estimates() for item in answered}
        f1 = {name: estimates["f1"].value for name, estimates in scores.items()}
        exact_match = {name: estimates["exact_match"].value for name, estimates in scores.items()}
        within = [part.name for part in parts if part.name == part.context_language]
        summary = _summary(f1, within)
        summary |= {f"exact_match_{name}": value for name, value in _summary(exact_match, within).items()}
        details: dict[str, Any] = {"sets": {item.part.name: _describe(item) for item in answered}}
        if len(within) < len(answered):
            details["g_xlt"] = {"f1": _matrix(parts, f1), "exact_match": _matrix(parts, exact_match)}
        return TaskResult(
            task=task,
            metric="f1",
            unit="percent",
            dataset=record_questions(task, parts),
            model=self.head.record,
            settings={**self._settings(), "scoring_rules": self.data.rules[task]},
            seed=None if training is None else self.args.seed,
            scores=scores,
            summary=summary,
            details={**details, "training": training},
        )

    def _settings(self) -> dict[str, Any]:
        task, args = self.task, self.args
        settings = {
            **asdict(task.windows),
            "max_answer_length": task.max_answer_length,
            "max_predict_samples": task.max_predict_samples,
            "bf16": args.bf16,
        }
        if task.max_predict_samples or (args.do_train and task.max_train_samples):
            settings["samples"] = SAMPLES
        if task.version_2_with_negative:
            settings["null_score_diff_threshold"] = task.null_score_diff_threshold
        if args.do_train:
            settings |= {"max_train_samples": task.max_train_samples, **self.training_settings()}
        return settings


def _summary(values: Mapping[str, float], within: Sequence[str]) -> dict[str, float]:
    """Mean and gap over sets whose questions are in the language of the context; mean over mixed pairs."""
    summary = summarise({name: values[name] for name in within}) if within else {}
    across = [value for name, value in values.items() if name not in within]
    return {**summary, **({"across": float(np.mean(across))} if across else {})}


def _matrix(parts: Sequence[QuestionSet], values: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Values by language of the context, then by language of the question."""
    matrix: dict[str, dict[str, float]] = {}
    for part in parts:
        matrix.setdefault(part.context_language, {})[part.question_language] = values[part.name]
    return matrix


def _describe(item: AnsweredSet) -> dict[str, Any]:
    return {
        "location": item.part.location,
        "questions": len(item.part.questions),
        "answered": sum(bool(found[0].text) for found in item.answers),
        "mismatched_answers": item.part.num_mismatched,
        "blank_answers": item.part.num_blank,
    }


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
