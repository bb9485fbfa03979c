"""XNLI (Conneau et al., 2018): accuracy in 15 languages of a model fine-tuned in one, or in all.

Also mixed-language XNLI: the premise in one language, the hypothesis in another. It asks for alignment, where
XNLI itself only asks for transfer (InfoXLM, arXiv 2007.07834).

Shapes: N rows, L languages, C = 3 labels.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from modeling_infoxlm.evaluation.encoders import tokenizer_hash
from modeling_infoxlm.evaluation.finetuning.heads import HeadModel, forward_batches
from modeling_infoxlm.evaluation.finetuning.rows import SAMPLES, TEXTS_PER_CALL, cached_rows
from modeling_infoxlm.evaluation.finetuning.run import HeadRun
from modeling_infoxlm.evaluation.finetuning.trainer import Score
from modeling_infoxlm.evaluation.inference.nli_files import LABELS
from modeling_infoxlm.evaluation.inference.xnli_data import LIMITS, XNLIData, draw_rows
from modeling_infoxlm.evaluation.metrics import XNLIAccuracy
from modeling_infoxlm.evaluation.results import Estimate, TaskResult, estimate_share, summarise
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.files import whole_folder

_ROW_FORMAT = 1  # of cached rows; another number when they change


def label_config() -> dict[str, Any]:
    """Fields of a configuration that name the three labels."""
    return {
        "num_labels": len(LABELS),
        "id2label": dict(enumerate(LABELS)),
        "label2id": {name: number for number, name in enumerate(LABELS)},
    }


def label_columns(config: Any) -> list[int]:
    """Column of each of `LABELS` in the logits of a model; others number them in another order."""
    columns = {str(name).lower(): int(number) for number, name in config.id2label.items()}
    if sorted(columns) != sorted(LABELS):
        raise UsageError(
            f"the model's labels are {', '.join(map(str, config.id2label.values()))}, expected "
            f"{', '.join(LABELS)}: name them in id2label of its config.json, or give --do_train true."
        )
    return [columns[name] for name in LABELS]


def tokenise(
    rows: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, *, max_length: int, cache_dir: str | None
) -> Dataset:
    """Token ids of premise and hypothesis together, and the label, from the cache if they were made before.

    A pair that is too long loses tokens of its longer side.
    """
    premises, hypotheses, labels = (rows[name].tolist() for name in ("premise", "hypothesis", "label"))

    def encode() -> Iterator[dict[str, Any]]:
        for start in range(0, len(rows), TEXTS_PER_CALL):
            part = slice(start, start + TEXTS_PER_CALL)
            encoded = tokenizer(
                premises[part],
                hypotheses[part],
                truncation="longest_first",
                max_length=max_length,
                return_attention_mask=False,
            )
            for number, label in enumerate(labels[part]):
                yield {name: values[number] for name, values in encoded.items()} | {"labels": label}

    key = ("xnli", _ROW_FORMAT, tokenizer_hash(tokenizer), max_length, *premises, *hypotheses, *labels)
    return cached_rows(encode, key=key, cache_dir=cache_dir)


def predict_probabilities(
    head: HeadModel, rows: Dataset, *, bf16: bool = False, description: str = "predicting"
) -> np.ndarray:
    """Probability of each of `LABELS`, (N, C), row i for row i."""
    columns = label_columns(head.model.config)
    probabilities = np.empty((len(rows), len(LABELS)), dtype=np.float32)

    def take(members: np.ndarray, output: Any) -> None:
        probabilities[members] = output.logits.float().softmax(dim=-1)[:, columns].cpu().numpy()

    forward_batches(head, rows, take, bf16=bf16, description=description)
    return probabilities


class XNLIRun(HeadRun):
    """A model on the rows of a run; refuses a head for other labels, and a score to choose by that is not."""

    auto_class, config = AutoModelForSequenceClassification, label_config()
    label_names = ("labels",)
    data: XNLIData

    def __init__(self, head: HeadModel, data: XNLIData, **options: Any) -> None:
        super().__init__(head, data, **options)
        label_columns(head.model.config)
        scored = ["accuracy", *(f"accuracy/{language}" for language in data.dev)]
        chosen = (self.args.metric_for_best_model or "").removeprefix("eval_")
        if data.dev and self.args.load_best_model_at_end and chosen not in scored:
            chosen = f"metric_for_best_model is {self.args.metric_for_best_model}"
            raise UsageError(f"{chosen}; give one of {', '.join(scored)}.")

    def training_rows(self) -> Dataset:
        """Rows of all languages that are trained on."""
        return self._tokenise(_joined(self.data.train))

    def dev_score(self) -> Score | None:
        """Mean accuracy over the dev languages, which decides, and that of each, in percent."""
        if not self.data.dev:
            return None
        dev = _joined(self.data.dev)
        rows, languages = self._tokenise(dev), dev.index.get_level_values("language").tolist()

        def score() -> dict[str, float]:
            predicted = self._predict(rows, "dev").argmax(axis=1)
            found = XNLIAccuracy(keep_in_memory=True).compute(
                predictions=predicted, references=dev.label.to_numpy(), languages=languages
            )
            accuracy = {f"accuracy/{one}": 100 * found[f"accuracy_{one}"] for one in self.data.dev}
            return {"accuracy": 100 * found["mean"], **accuracy}

        return score

    def predict(self) -> pd.DataFrame:
        """Test rows of all languages, batched together, indexed by language and row, with what is predicted.

        That is a label's number in the column `predicted`, and probabilities in the columns of `LABELS`.
        """
        rows = _joined(self.data.test)
        probabilities = self._predict(self._tokenise(rows))
        return rows.assign(
            predicted=probabilities.argmax(axis=1), **dict(zip(LABELS, probabilities.T, strict=True))
        )

    def predict_mixed(self) -> np.ndarray:
        """Which rows are right, (L, L, N): premise in the first language, hypothesis in the second."""
        test = draw_rows(self.data.test, self.task.mixed_max_samples)
        correct = []
        for language, rows in test.items():
            mixed = {other: rows.assign(hypothesis=test[other].hypothesis) for other in test}
            probabilities = self._predict(self._tokenise(_joined(mixed)), f"premises in {language}")
            predicted = probabilities.argmax(axis=1).reshape(len(test), len(rows))
            correct.append(predicted == rows.label.to_numpy())
        return np.stack(correct)

    def test(self, training: Mapping[str, Any] | None, folder: Path) -> Iterator[TaskResult]:
        """Predict, write the predictions into the folder, and score."""
        predicted = self.predict()
        mixed = self.predict_mixed() if self.task.mixed_languages else None
        write_predictions(folder, self.task.test_split, predicted)
        yield self.score(predicted, mixed, training)

    def score(
        self, predicted: pd.DataFrame, mixed: np.ndarray | None, training: Mapping[str, Any] | None
    ) -> TaskResult:
        """Put the numbers of the run together, in percent; `mixed` and `training` may be None."""
        data = self.data
        correct = 100.0 * (predicted.predicted == predicted.label)
        accuracy = {language: estimate_share(correct[language].to_numpy()) for language in data.test}
        summary = summarise({language: estimate.value for language, estimate in accuracy.items()})
        details: dict[str, Any] = {
            "test_split": self.task.test_split,
            "selected_on_test": data.selected_on_test,
            "training_rows": {language: len(rows) for language, rows in data.train.items()},
            "left_out": data.left_out,
            "training": training,
        }
        if mixed is not None:
            scores = score_mixed(mixed, list(data.test))
            summary |= {name: scores[name].value for name in ("within", "across") if name in scores}
            genres = next(iter(draw_rows(data.test, self.task.mixed_max_samples).values())).genre
            named = genres.value_counts(sort=False).to_dict() if any(genres) else None
            plain = {name: asdict(one) if isinstance(one, Estimate) else one for name, one in scores.items()}
            details["mixed_languages"] = {"genres": named, **plain}
        return TaskResult(
            task="xnli",
            metric="accuracy",
            unit="percent",
            dataset=data.record,
            model=self.head.record,
            settings=self._settings(),
            seed=None if training is None else self.args.seed,
            scores={language: {"accuracy": estimate} for language, estimate in accuracy.items()},
            summary=summary,
            details=details,
        )

    def _settings(self) -> dict[str, Any]:
        task = self.task
        limits = [*LIMITS, *(["mixed_max_samples"] if task.mixed_languages else [])]
        names = ("train_language", "translate_train", "select_on", "max_seq_length", *limits)
        drawn = {"samples": SAMPLES} if any(getattr(task, name) for name in limits) else {}
        training = self.training_settings() | {"eval_steps": self.args.eval_steps}
        return {
            **{name: getattr(task, name) for name in names},
            **drawn,
            "bf16": self.args.bf16,
            **(training if self.args.do_train else {}),
        }

    def _tokenise(self, rows: pd.DataFrame) -> Dataset:
        length = self.task.max_seq_length
        return tokenise(rows, self.head.tokenizer, max_length=length, cache_dir=self.cache_dir)

    def _predict(self, rows: Dataset, description: str = "predicting") -> np.ndarray:
        return predict_probabilities(self.head, rows, bf16=self.args.bf16, description=description)


def _joined(sets: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Rows of all languages one after another, indexed by language and row."""
    return pd.concat(sets, names=["language", "row"])


def score_mixed(correct: np.ndarray, languages: Sequence[str]) -> dict[str, Any]:
    """Accuracies of mixed-language XNLI, in percent, by what `predict_mixed` returned, (L, L, N).

    Returns:
        `languages`; `matrix`, (L, L) as lists; `within`, the mean of its diagonal, and `across`, that of the
        rest, as estimates with intervals over the rows.
    """
    same = np.eye(len(languages), dtype=bool)
    scores: dict[str, Any] = {
        "languages": list(languages),
        "matrix": (100 * correct.mean(axis=2)).tolist(),
        "within": estimate_share(100 * correct[same].mean(axis=0)),
    }
    if len(languages) > 1:
        scores["across"] = estimate_share(100 * correct[~same].mean(axis=0))
    return scores


def write_predictions(folder: Path, split: str, predicted: pd.DataFrame) -> None:
    """Write `predictions/<split>-<language>.tsv` for error analysis, all of them or none.

    Columns: premise, hypothesis, gold, predicted, and the probability of each label. A tab or a line break in
    a text becomes a space.
    """
    names = pd.Series(LABELS)
    texts = predicted[["premise", "hypothesis"]].replace(r"[\t\n\r]", " ", regex=True)
    gold, found = predicted.label.map(names), predicted.predicted.map(names)
    table = texts.assign(gold=gold, predicted=found, **predicted[[*LABELS]])
    with whole_folder(folder / "predictions", overwrite=True) as staged:
        for language, rows in table.groupby(level="language", sort=False):
            rows.to_csv(
                staged / f"{split}-{language}.tsv",
                sep="\t",
                index=False,
                float_format="%.6f",
                quoting=csv.QUOTE_NONE,
                lineterminator="\n",
            )
