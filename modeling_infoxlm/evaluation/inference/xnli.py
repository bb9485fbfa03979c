"""XNLI (Conneau et al., 2018): accuracy in 15 languages of a model fine-tuned in one, or in all.

Also mixed-language XNLI: the premise in one language, the hypothesis in another. It asks for alignment, where
XNLI itself only asks for transfer (InfoXLM, arXiv 2007.07834).

Shapes: N rows, L languages, C = 3 labels.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_infoxlm.evaluation.encoders import tokenizer_hash
from modeling_infoxlm.evaluation.finetuning import (
    SAMPLES,
    TEXTS_PER_CALL,
    FineTuningArguments,
    HeadModel,
    HeadModelArguments,
    Selection,
    TrainingRecord,
    cached_rows,
    draw,
    fine_tune,
    forward_batches,
)
from modeling_infoxlm.evaluation.inference.nli_files import (
    LABELS,
    XNLI_LANGUAGES,
    NLIRows,
    Split,
    dataset_commit,
    files_in_folder,
    files_of_patterns,
    read_hub_nli,
    read_nli,
)
from modeling_infoxlm.evaluation.results import (
    DatasetRecord,
    Estimate,
    TaskResult,
    estimate_share,
    summarise,
)
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.files import file_sha256, whole_folder

ENGLISH = "en"
PREDICTIONS = "predictions"
OUTPUTS = ("xnli_results.json", PREDICTIONS)  # beside the model

_ROW_FORMAT = 1  # of cached rows; another number when they change


@dataclass
class XNLIArguments:
    """Which rows are learnt from, selected on and tested on."""

    _argument_group_name = "data"

    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder with train-xx, dev-xx and test-xx as .tsv, .jsonl or .parquet, or these with "
            ".gz; xx is a language. XNLI's own xnli.dev.tsv and xnli.test.tsv are found too."
        },
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Dataset of the Hub instead of files: facebook/xnli."}
    )
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of dataset_name. Unset: the newest commit."}
    )
    train_file: list[str] | None = field(
        default=None,
        metadata={"help": "Training files (globs allowed) in place of data_dir's; several: translate_train."},
    )
    validation_files: list[str] | None = field(
        default=None, metadata={"help": "Dev files of all languages in place of data_dir's; globs allowed."}
    )
    test_files: list[str] | None = field(
        default=None, metadata={"help": "Test files of all languages in place of data_dir's; globs allowed."}
    )
    languages: list[str] | None = field(
        default=None, metadata={"help": "Languages tested. Unset: those of test_files, else all 15 of XNLI."}
    )
    train_language: str = field(
        default=ENGLISH,
        metadata={"help": "Language of the training set (paper: en, cross-lingual transfer)."},
    )
    translate_train: bool = field(
        default=False,
        metadata={"help": "Train on the translated training sets of all languages (translate-train-all)."},
    )
    test_split: Literal["test", "dev"] = field(
        default="test", metadata={"help": "What is tested on: test, or dev where there is no test set."}
    )
    select_on: Literal["all", "english"] = field(
        default="all",
        metadata={
            "help": "Dev sets that the best step is chosen by: the mean over all languages (paper: one model "
            "for all), or English alone (strictly zero-shot)."
        },
    )
    max_seq_length: int = field(
        default=256, metadata={"help": "Tokens of premise and hypothesis; longer are cut (authors: 256)."}
    )
    max_train_samples: int | None = field(
        default=None,
        metadata={"help": "Rows drawn of each language's training set, see max_predict_samples. Unset: all."},
    )
    max_eval_samples: int | None = field(
        default=None,
        metadata={"help": "Rows drawn of each language's dev set, see max_predict_samples. Unset: all."},
    )
    max_predict_samples: int | None = field(
        default=None,
        metadata={
            "help": "Rows drawn of each language's test set: the same in every run and language, and of each "
            "genre its share where the data names it. Unset: all."
        },
    )
    mixed_languages: bool = field(
        default=False,
        metadata={"help": "Also test every pair of a premise's and a hypothesis's language: L x L passes."},
    )
    mixed_max_samples: int | None = field(
        default=500,
        metadata={
            "help": "Rows drawn for mixed_languages, see max_predict_samples; 15 languages run 225 times "
            "them."
        },
    )

    def __post_init__(self) -> None:
        """Refuse counts and combinations that mean nothing."""
        for name in ("max_seq_length", "max_train_samples", "max_eval_samples", "max_predict_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, found {value}.")
        if self.mixed_max_samples is not None and self.mixed_max_samples < 1:
            raise ValueError(f"mixed_max_samples must be at least 1, found {self.mixed_max_samples}.")
        files = self.data_dir or self.train_file or self.validation_files or self.test_files
        if bool(files) == bool(self.dataset_name):
            raise ValueError("give either --dataset_name or files (--data_dir, --test_files, ...).")
        if self.dataset_revision and not self.dataset_name:
            raise ValueError("dataset_revision is of --dataset_name, which is not given.")


@dataclass
class XNLITrainingArguments(FineTuningArguments):
    """Fine-tuning with the settings of the authors' XNLI scripts."""

    learning_rate: float = field(
        default=7e-6, metadata={"help": "Peak learning rate (authors: base 7e-6, large 5e-6)."}
    )
    num_train_epochs: float = field(default=10, metadata={"help": "Passes over the rows (authors: 10)."})
    metric_for_best_model: str | None = field(
        default="accuracy",
        metadata={"help": "Dev score that decides: accuracy, or accuracy/xx of a language."},
    )


# -------------------------------------------------------------------------------------------------- the data


@dataclass(frozen=True)
class XNLIData:
    """All rows of a run, by language.

    Attributes:
        train: Empty if nothing is trained.
        dev: What the best step is chosen by; empty if none is.
        test: Empty if nothing is predicted.
        record: What is tested on.
        files: Hash of each file by its path, or the revision of the Hub dataset by its name.
        selected_on_test: Whether rows are tested on that the best step was chosen by.
    """

    train: Mapping[str, NLIRows]
    dev: Mapping[str, NLIRows]
    test: Mapping[str, NLIRows]
    record: DatasetRecord
    files: Mapping[str, str]
    selected_on_test: bool

    @property
    def num_train_rows(self) -> dict[str, int]:
        """Training rows of each language."""
        return {language: len(rows) for language, rows in self.train.items()}

    @property
    def left_out(self) -> dict[str, dict[str, dict[str, int]]]:
        """Lines and rows of the files that are not among the rows, by split, language and reason."""
        splits = {"train": self.train, "dev": self.dev, "test": self.test}
        return {
            split: {language: dict(rows.left_out) for language, rows in sets.items() if rows.left_out}
            for split, sets in splits.items()
            if any(rows.left_out for rows in sets.values())
        }


def load_data(task: XNLIArguments, args: FineTuningArguments, model: HeadModelArguments) -> XNLIData:
    """Read all rows that the run needs, and check them.

    Raises:
        UsageError: If a file or a language is missing, a file is damaged, a label is none of the three, or
            rows that are to be mixed are not parallel.
    """
    source = _HubSource(task, model) if task.dataset_name else _FileSource(task)
    languages = source.languages()
    train: Mapping[str, NLIRows] = {}
    dev: Mapping[str, NLIRows] = {}
    test: Mapping[str, NLIRows] = {}
    if args.do_train:
        train = _draw_rows(source.read("train", source.train_languages(languages)), task.max_train_samples)
        if str(getattr(args.eval_strategy, "value", args.eval_strategy)) != "no":
            chosen = languages if task.select_on == "all" else [ENGLISH]
            dev = _draw_rows(source.read("dev", chosen), task.max_eval_samples)
    if args.do_predict:
        test = source.read(task.test_split, languages)
        if task.mixed_languages:
            _check_parallel(test)
        test = _draw_rows(test, task.max_predict_samples)
    selected_on_test = task.test_split == "dev" and bool(dev)
    return XNLIData(train, dev, test, source.record(), source.files, selected_on_test)


class _FileSource:
    """Rows from files."""

    def __init__(self, task: XNLIArguments) -> None:
        self.task = task
        self.files: dict[str, str] = {}  # those read, with their hashes
        self._tested: list[Path] = []

    def languages(self) -> Sequence[str]:
        """Languages that are tested."""
        if self.task.languages:
            return self.task.languages
        patterns, flag = self._patterns(self.task.test_split)
        if patterns:
            return list(files_of_patterns(patterns, flag, languages=None, unnamed=XNLI_LANGUAGES))
        return XNLI_LANGUAGES

    def train_languages(self, languages: Sequence[str]) -> Sequence[str]:
        """Languages that are trained on: those of the files named, if any are."""
        patterns, flag = self._patterns("train")
        if not patterns:
            return languages if self.task.translate_train else [self.task.train_language]
        named = files_of_patterns(patterns, flag, languages=None, unnamed=[self.task.train_language])
        if len(named) > 1 and not self.task.translate_train:
            raise UsageError(
                f"--train_file names {len(named)} languages ({', '.join(named)}); give one file, "
                "or --translate_train true to train on all of them."
            )
        return list(named)

    def read(self, split: Split, languages: Sequence[str]) -> dict[str, NLIRows]:
        patterns, flag = self._patterns(split)
        if patterns:
            paths = files_of_patterns(patterns, flag, languages=languages, unnamed=languages)
        elif self.task.data_dir:
            paths = files_in_folder(self.task.data_dir, split, languages)
        else:
            raise UsageError(f"no {split} files: give {flag} or --data_dir.")
        if split == self.task.test_split:
            self._tested = list(paths.values())
        self.files |= {str(path): file_sha256(path) for path in set(paths.values())}
        return {language: read_nli(path, language) for language, path in paths.items()}

    def record(self) -> DatasetRecord:
        return DatasetRecord.of_files(_record_name(self.task.test_split), self._tested)

    def _patterns(self, split: Split) -> tuple[list[str] | None, str]:
        given = {
            "train": (self.task.train_file, "--train_file"),
            "dev": (self.task.validation_files, "--validation_files"),
            "test": (self.task.test_files, "--test_files"),
        }
        return given[split]


class _HubSource:
    """Rows from a Hub dataset, of one commit."""

    def __init__(self, task: XNLIArguments, model: HeadModelArguments) -> None:
        self.task, self.model, self.name = task, model, str(task.dataset_name)
        self.revision = dataset_commit(self.name, task.dataset_revision, token=model.token)
        self.files = {self.name: self.revision}

    def languages(self) -> Sequence[str]:
        return self.task.languages or XNLI_LANGUAGES

    def train_languages(self, languages: Sequence[str]) -> Sequence[str]:
        return languages if self.task.translate_train else [self.task.train_language]

    def read(self, split: Split, languages: Sequence[str]) -> dict[str, NLIRows]:
        read = partial(
            read_hub_nli,
            self.name,
            split,
            revision=self.revision,
            cache_dir=self.model.cache_dir,
            token=self.model.token,
        )
        return {language: read(language) for language in languages}

    def record(self) -> DatasetRecord:
        # The same dataset before the Hub had names of owners.
        repo_id = "facebook/xnli" if self.name == "xnli" else self.name
        name = "xnli" if repo_id == "facebook/xnli" else repo_id
        return DatasetRecord(_record_name(self.task.test_split, name), {}, self.revision, repo_id)


def _record_name(split: Split, name: str = "xnli") -> str:
    return name if split == "test" else f"{name}-{split}"


def _draw_rows(sets: Mapping[str, NLIRows], count: int | None) -> dict[str, NLIRows]:
    """So many rows of each language, the same ones of all that have equally many: they are translations."""
    genres = {len(rows): [""] * len(rows) for rows in sets.values()}
    genres |= {len(rows): rows.genres for rows in sets.values() if any(rows.genres)}
    drawn = {size: draw(names, count) for size, names in genres.items()}
    return {language: rows.take(drawn[len(rows)]) for language, rows in sets.items()}


def _check_parallel(test: Mapping[str, NLIRows]) -> None:
    """Refuse test sets of which row i is not the same example in all languages: the labels would tell."""
    first, *others = test
    for language in others:
        if test[language].labels != test[first].labels:
            raise UsageError(
                f"--mixed_languages needs parallel rows, but the labels of {language} "
                f"({len(test[language])} rows) are not those of {first} ({len(test[first])} rows)."
            )


# -------------------------------------------------------------------------------------- tokenise and predict


def label_config() -> dict[str, Any]:
    """Fields of a configuration that name the three labels."""
    return {
        "num_labels": len(LABELS),
        "id2label": dict(enumerate(LABELS)),
        "label2id": {name: number for number, name in enumerate(LABELS)},
    }


def label_columns(config: Any) -> list[int]:
    """Column of each of `LABELS` in the logits of a model; others number them in another order.

    Raises:
        UsageError: If the model's labels are not the three.
    """
    columns = {str(name).lower(): int(number) for number, name in config.id2label.items()}
    if sorted(columns) != sorted(LABELS):
        raise UsageError(
            f"the model's labels are {', '.join(map(str, config.id2label.values()))}, expected "
            f"{', '.join(LABELS)}: name them in id2label of its config.json, or give --do_train true."
        )
    return [columns[name] for name in LABELS]


def tokenise(
    rows: NLIRows, tokenizer: PreTrainedTokenizerBase, *, max_length: int, cache_dir: str | None
) -> Dataset:
    """Token ids of premise and hypothesis together, and the label, from the cache if they were made before.

    A pair that is too long loses tokens of its longer side.
    """

    def encode() -> Iterator[dict[str, Any]]:
        for start in range(0, len(rows), TEXTS_PER_CALL):
            part = slice(start, start + TEXTS_PER_CALL)
            encoded = tokenizer(
                rows.premises[part],
                rows.hypotheses[part],
                truncation="longest_first",
                max_length=max_length,
                return_attention_mask=False,
            )
            for number, label in enumerate(rows.labels[part]):
                yield {name: values[number] for name, values in encoded.items()} | {"labels": label}

    key = ("xnli", _ROW_FORMAT, tokenizer_hash(tokenizer), max_length)
    return cached_rows(
        encode, key=(*key, *rows.premises, *rows.hypotheses, *rows.labels), cache_dir=cache_dir
    )


def predict_probabilities(
    model: PreTrainedModel,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    bf16: bool = False,
    description: str = "predicting",
) -> np.ndarray:
    """Probability of each of `LABELS`, (N, C), row i for row i."""
    columns = label_columns(model.config)
    probabilities = np.empty((len(rows), len(LABELS)), dtype=np.float32)

    def take(members: np.ndarray, output: Any) -> None:
        probabilities[members] = output.logits.float().softmax(dim=-1)[:, columns].cpu().numpy()

    forward_batches(model, rows, tokenizer, take, bf16=bf16, description=description)
    return probabilities


class XNLIRun:
    """A model on the rows of a run: fine-tunes, predicts and scores.

    Args:
        head: The model.
        data: The rows.
        task: What is asked for.
        args: Training arguments.
        cache_dir: Folder of the cache of tokenised rows; None is the `datasets` library's own.

    Raises:
        UsageError: If the model cannot take so many tokens, or it is not to be trained and has no head for
            the three labels.
    """

    def __init__(
        self,
        head: HeadModel,
        data: XNLIData,
        *,
        task: XNLIArguments,
        args: FineTuningArguments,
        cache_dir: str | None,
    ) -> None:
        head.check_length(task.max_seq_length)
        if not args.do_train:
            head.check_trained()
        label_columns(head.model.config)
        scored = ["accuracy", *(f"accuracy/{language}" for language in data.dev)]
        chosen = (args.metric_for_best_model or "").removeprefix("eval_")
        if data.dev and args.load_best_model_at_end and chosen not in scored:
            raise UsageError(
                f"metric_for_best_model is {args.metric_for_best_model}; give one of {', '.join(scored)}."
            )
        self.head, self.data, self.task, self.args, self.cache_dir = head, data, task, args, cache_dir

    def train(self, checkpoint: str | None) -> TrainingRecord:
        """Fine-tune; the chosen weights are in the model afterwards, and in the output folder."""
        selection = None
        if self.data.dev:
            dev = self.data.dev
            selection = Selection(self._tokenise(NLIRows.joined(dev.values())), self._dev_accuracy)
        return fine_tune(
            self.head,
            self.args,
            rows=self._tokenise(NLIRows.joined(self.data.train.values())),
            label_names=("labels",),
            selection=selection,
            checkpoint=checkpoint,
        )

    def predict(self) -> dict[str, np.ndarray]:
        """Probabilities (N, C) of the test rows, by language; all languages are batched together."""
        self.head.to(self.args.device)
        return _by_language(self._predict(NLIRows.joined(self.data.test.values())), self.data.test)

    def predict_mixed(self) -> np.ndarray:
        """Which rows are right, (L, L, N): premise in the first language, hypothesis in the second."""
        test = _draw_rows(self.data.test, self.task.mixed_max_samples)
        self.head.to(self.args.device)
        correct = []
        for language, rows in test.items():
            mixed = [NLIRows(rows.premises, other.hypotheses, rows.labels) for other in test.values()]
            probabilities = self._predict(NLIRows.joined(mixed), f"premises in {language}")
            predicted = probabilities.argmax(axis=1).reshape(len(test), len(rows))
            correct.append(predicted == np.array(rows.labels))
        return np.stack(correct)

    def _dev_accuracy(self, model: PreTrainedModel, rows: Dataset) -> dict[str, float]:
        """Mean accuracy over the dev languages, which decides, and that of each, in percent."""
        probabilities = predict_probabilities(
            model, rows, self.head.tokenizer, bf16=self.args.bf16, description="dev"
        )
        by_language = _by_language(probabilities, self.data.dev)
        accuracy = {
            language: 100 * float(_correct(part, self.data.dev[language]).mean())
            for language, part in by_language.items()
        }
        named = {f"accuracy/{language}": value for language, value in accuracy.items()}
        return {"accuracy": float(np.mean(list(accuracy.values()))), **named}

    def _tokenise(self, rows: NLIRows) -> Dataset:
        length = self.task.max_seq_length
        return tokenise(rows, self.head.tokenizer, max_length=length, cache_dir=self.cache_dir)

    def _predict(self, rows: NLIRows, description: str = "predicting") -> np.ndarray:
        return predict_probabilities(
            self.head.model,
            self._tokenise(rows),
            self.head.tokenizer,
            bf16=self.args.bf16,
            description=description,
        )


def _by_language(probabilities: np.ndarray, sets: Mapping[str, NLIRows]) -> dict[str, np.ndarray]:
    ends = np.cumsum([len(rows) for rows in sets.values()])
    return dict(zip(sets, np.split(probabilities, ends[:-1]), strict=True))


def _correct(probabilities: np.ndarray, rows: NLIRows) -> np.ndarray:
    """Whether the most probable label is the right one, (N,)."""
    correct: np.ndarray = probabilities.argmax(axis=1) == np.array(rows.labels)
    return correct


# --------------------------------------------------------------------------------------------------- results


def score(
    run: XNLIRun,
    probabilities: Mapping[str, np.ndarray],
    mixed: np.ndarray | None,
    training: TrainingRecord | None,
) -> TaskResult:
    """Put the numbers of a run together, in percent.

    Args:
        run: The run.
        probabilities: From `predict`.
        mixed: From `predict_mixed`, None if it was not asked for.
        training: How fine-tuning went, None if there was none.
    """
    accuracy = {
        language: estimate_share(100.0 * _correct(part, run.data.test[language]))
        for language, part in probabilities.items()
    }
    summary = summarise({language: estimate.value for language, estimate in accuracy.items()})
    details: dict[str, Any] = {
        "test_split": run.task.test_split,
        "selected_on_test": run.data.selected_on_test,
        "training_rows": run.data.num_train_rows,
        "left_out": run.data.left_out,
        "training": None if training is None else asdict(training),
    }
    if mixed is not None:
        scores = score_mixed(mixed, list(run.data.test))
        summary |= {name: scores[name].value for name in ("within", "across") if name in scores}
        mixed_rows = next(iter(_draw_rows(run.data.test, run.task.mixed_max_samples).values()))
        details["mixed_languages"] = {
            "genres": dict(Counter(mixed_rows.genres)) if any(mixed_rows.genres) else None,
        } | {name: asdict(value) if isinstance(value, Estimate) else value for name, value in scores.items()}
    return TaskResult(
        task="xnli",
        metric="accuracy",
        unit="percent",
        dataset=run.data.record,
        model=run.head.record,
        settings=_settings(run),
        seed=None if training is None else run.args.seed,
        scores={language: {"accuracy": estimate} for language, estimate in accuracy.items()},
        summary=summary,
        details=details,
    )


def score_mixed(correct: np.ndarray, languages: Sequence[str]) -> dict[str, Any]:
    """Accuracies of mixed-language XNLI, in percent.

    Args:
        correct: Which rows are right, (L, L, N): premise in the first language, hypothesis in the second.
        languages: L names.

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


def _settings(run: XNLIRun) -> dict[str, Any]:
    args = run.args
    training = {
        "learning_rate": args.learning_rate,
        "batch_size": args.per_device_train_batch_size * args.gradient_accumulation_steps,
        "num_train_epochs": args.num_train_epochs,
        "max_steps": args.max_steps,
        "warmup_steps": args.warmup_steps,
        "weight_decay": args.weight_decay,
        "eval_steps": args.eval_steps,
    }
    task = asdict(run.task)
    names = ("train_language", "translate_train", "select_on", "max_seq_length")
    limits = ["max_train_samples", "max_eval_samples", "max_predict_samples"]
    limits += ["mixed_max_samples"] if run.task.mixed_languages else []
    chosen = {name: task[name] for name in (*names, *limits)}
    if any(task[name] for name in limits):
        chosen["samples"] = SAMPLES
    return {**chosen, "bf16": args.bf16, **(training if args.do_train else {})}


def write_predictions(
    folder: Path, split: str, test: Mapping[str, NLIRows], probabilities: Mapping[str, np.ndarray]
) -> None:
    """Write `predictions/<split>-<language>.tsv` for error analysis, all of them or none.

    Columns: premise, hypothesis, gold, predicted, and the probability of each label. A tab or a line break in
    a text becomes a space.
    """
    with whole_folder(folder / PREDICTIONS, overwrite=True) as staged:
        for language, rows in test.items():
            with open(staged / f"{split}-{language}.tsv", "w", encoding="utf-8", newline="\n") as file:
                file.write("\t".join(("premise", "hypothesis", "gold", "predicted", *LABELS)) + "\n")
                file.writelines(_prediction_lines(rows, probabilities[language]))


def _prediction_lines(rows: NLIRows, probabilities: np.ndarray) -> Iterator[str]:
    texts = zip(rows.premises, rows.hypotheses, rows.labels, probabilities, strict=True)
    for premise, hypothesis, label, row in texts:
        cells = [_one_line(premise), _one_line(hypothesis), LABELS[label], LABELS[int(row.argmax())]]
        yield "\t".join([*cells, *(f"{value:.6f}" for value in row)]) + "\n"


def _one_line(text: str) -> str:
    return text.translate({ord(character): " " for character in "\t\n\r"})


def print_result(result: TaskResult, console: Console) -> None:
    """Print a table of the languages, and the means."""
    table = Table(title=f"XNLI accuracy, {result.dataset.name}")
    for title in ("language", "accuracy", "95 % interval", "rows"):
        table.add_column(title, justify="left" if title == "language" else "right")
    for language, scores in result.scores.items():
        estimate = scores["accuracy"]
        interval = f"{estimate.low:.1f} - {estimate.high:.1f}"
        table.add_row(language, f"{estimate.value:.1f}", interval, f"{estimate.count:,}")
    table.add_section()
    for name, value in result.summary.items():
        table.add_row(name, f"{value:.1f}")
    console.print(table)
