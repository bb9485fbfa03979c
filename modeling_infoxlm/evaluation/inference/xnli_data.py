"""Which rows of XNLI a run learns from, selects on and tests on: flags, and the rows read."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from modeling_infoxlm.evaluation.finetuning.arguments import FineTuningArguments, HeadModelArguments
from modeling_infoxlm.evaluation.finetuning.rows import draw
from modeling_infoxlm.evaluation.hub_data import HubData
from modeling_infoxlm.evaluation.inference.nli_files import (
    XNLI_LANGUAGES,
    Split,
    files_in_folder,
    files_of_patterns,
    read_hub_nli,
    read_nli,
)
from modeling_infoxlm.evaluation.results import DatasetRecord
from modeling_infoxlm.runs.errors import DataError, UsageError
from modeling_infoxlm.runs.files import file_sha256
from modeling_infoxlm.runs.flags import check_numbers, flag

ENGLISH = "en"
LIMITS = ("max_train_samples", "max_eval_samples", "max_predict_samples")


@dataclass
class XNLIArguments:
    """Which rows are learnt from, selected on and tested on."""

    _argument_group_name = "data"
    data_dir: str | None = flag(
        None,
        "Folder with train-xx, dev-xx and test-xx as .tsv, .jsonl or .parquet, or these with .gz; xx is a "
        "language. XNLI's own xnli.dev.tsv and xnli.test.tsv are found too.",
    )
    dataset_name: str | None = flag(None, "Dataset of the Hub instead of files: facebook/xnli.")
    dataset_revision: str | None = flag(None, "Branch, tag or commit of dataset_name. Unset: the newest.")
    train_file: list[str] | None = flag(
        None, "Training files (globs) in place of data_dir's; several: translate_train."
    )
    validation_files: list[str] | None = flag(
        None, "Dev files of all languages (globs) in place of data_dir's."
    )
    test_files: list[str] | None = flag(None, "Test files of all languages (globs) in place of data_dir's.")
    languages: list[str] | None = flag(None, "Languages tested. Unset: those of test_files, else XNLI's 15.")
    train_language: str = flag(ENGLISH, "Language of the training set (paper: en, cross-lingual transfer).")
    translate_train: bool = flag(False, "Train on translated sets of all languages (translate-train-all).")
    test_split: Literal["test", "dev"] = flag("test", "What is tested on; dev where there is no test set.")
    select_on: Literal["all", "english"] = flag(
        "all",
        "Dev sets that the best step is chosen by: the mean over all languages (paper: one model for all), "
        "or English alone (strictly zero-shot).",
    )
    max_seq_length: int = flag(256, "Tokens of premise and hypothesis; longer are cut (authors: 256).")
    max_train_samples: int | None = flag(None, "Rows of a training set, see max_predict_samples. Unset: all.")
    max_eval_samples: int | None = flag(None, "Rows of each dev set, see max_predict_samples. Unset: all.")
    max_predict_samples: int | None = flag(
        None,
        "Rows drawn of each language's test set: the same in every run and language, and of each genre its "
        "share where the data names it. Unset: all.",
    )
    mixed_languages: bool = flag(False, "Also test premise and hypothesis of every two languages: L x L.")
    mixed_max_samples: int | None = flag(
        500, "Rows drawn for mixed_languages, see max_predict_samples; 15 languages run 225 times them."
    )

    def __post_init__(self) -> None:
        """Refuse counts and combinations that mean nothing."""
        check_numbers(self)
        files = self.data_dir or self.train_file or self.validation_files or self.test_files
        if bool(files) == bool(self.dataset_name):
            raise ValueError("give either --dataset_name or files (--data_dir, --test_files, ...).")
        if self.dataset_revision and not self.dataset_name:
            raise ValueError("dataset_revision is of --dataset_name, which is not given.")


@dataclass
class XNLITrainingArguments(FineTuningArguments):
    """Fine-tuning with the settings of the authors' XNLI scripts."""

    learning_rate: float = flag(7e-6, "Peak learning rate (authors: base 7e-6, large 5e-6).")
    num_train_epochs: float = flag(10, "Passes over the rows (authors: 10).")
    metric_for_best_model: str | None = flag(
        "accuracy", "Dev score that decides: accuracy, or accuracy/xx of a language."
    )


@dataclass(frozen=True)
class XNLIData:
    """All rows of a run, a table for each language with the columns of `nli_files.COLUMNS`."""

    train: Mapping[str, pd.DataFrame]  # empty if nothing is trained
    dev: Mapping[str, pd.DataFrame]  # what the best step is chosen by; empty if none is
    test: Mapping[str, pd.DataFrame]  # empty if nothing is predicted
    record: DatasetRecord  # what is tested on
    files: Mapping[str, str]  # hash of each file by its path, or the revision of the Hub dataset by its name
    # lines and rows of the files that are not among the rows, by split, language and reason
    left_out: Mapping[str, Mapping[str, Mapping[str, int]]]
    selected_on_test: bool  # whether rows are tested on that the best step was chosen by
    outputs: tuple[str, ...] = ("xnli_results.json", "predictions")  # what a run writes beside the model


def load_data(task: XNLIArguments, args: FineTuningArguments, model: HeadModelArguments) -> XNLIData:
    """Read all rows that the run needs, and check them.

    Raises:
        UsageError: If rows are missing, damaged, or to be mixed and not parallel.
    """
    source = _Source(task, model)
    languages = source.languages()
    train: dict[str, pd.DataFrame] = {}
    dev: dict[str, pd.DataFrame] = {}
    test: dict[str, pd.DataFrame] = {}
    if args.do_train:
        train = draw_rows(source.read("train", source.train_languages(languages)), task.max_train_samples)
        if str(getattr(args.eval_strategy, "value", args.eval_strategy)) != "no":
            chosen = languages if task.select_on == "all" else [ENGLISH]
            dev = draw_rows(source.read("dev", chosen), task.max_eval_samples)
    if args.do_predict:
        test = source.read(task.test_split, languages)
        if task.mixed_languages:
            _check_parallel(test)
        test = draw_rows(test, task.max_predict_samples)
    selected_on_test = task.test_split == "dev" and bool(dev)
    return XNLIData(train, dev, test, source.record(), source.files, source.left_out, selected_on_test)


class _Source:
    """Where rows are read from: files, or a Hub dataset of one commit. For its attributes see `XNLIData`."""

    def __init__(self, task: XNLIArguments, model: HeadModelArguments) -> None:
        self.task, self.hub = task, HubData(model.token, model.cache_dir)
        self.files: dict[str, str] = {}
        self.left_out: dict[str, dict[str, Counter[str]]] = {}
        self._tested: list[Path] = []
        self._given: dict[Split, tuple[list[str] | None, str]] = {
            "train": (task.train_file, "--train_file"),
            "dev": (task.validation_files, "--validation_files"),
            "test": (task.test_files, "--test_files"),
        }
        if task.dataset_name:
            try:
                self.files[task.dataset_name] = self.hub.commit(task.dataset_name, task.dataset_revision)
            except DataError as error:
                raise UsageError(f"{error}; without a network, give --data_dir.") from error

    def languages(self) -> Sequence[str]:
        """Languages that are tested: those asked for, or of the files named, if any are."""
        return self.task.languages or self._named(self.task.test_split, XNLI_LANGUAGES) or XNLI_LANGUAGES

    def train_languages(self, languages: Sequence[str]) -> Sequence[str]:
        """Languages that are trained on: those of the files named, if any are."""
        named = self._named("train", [self.task.train_language])
        if not named:
            return languages if self.task.translate_train else [self.task.train_language]
        if len(named) > 1 and not self.task.translate_train:
            raise UsageError(
                f"--train_file names {len(named)} languages ({', '.join(named)}); give one file, "
                "or --translate_train true to train on all of them."
            )
        return named

    def _named(self, split: Split, unnamed: Sequence[str]) -> list[str]:
        """Languages of the files that are named for a split; empty if none are."""
        patterns, flag = self._given[split]
        return list(files_of_patterns(patterns or [], flag, languages=None, unnamed=unnamed))

    def read(self, split: Split, languages: Sequence[str]) -> dict[str, pd.DataFrame]:
        """Rows of each language."""
        left_out: dict[str, Counter[str]] = {language: Counter() for language in languages}
        if self.task.dataset_name:
            place = (self.task.dataset_name, split, self.task.dataset_revision)
            tables = {one: read_hub_nli(self.hub, *place, one, left_out[one]) for one in languages}
        else:
            paths = self._paths(split, languages)
            self.files |= {str(path): file_sha256(path) for path in set(paths.values())}
            tables = {one: read_nli(path, one, left_out[one]) for one, path in paths.items()}
        found = {language: counts for language, counts in left_out.items() if counts}
        self.left_out |= {split: found} if found else {}
        return tables

    def record(self) -> DatasetRecord:
        """What is tested on."""
        split = self.task.test_split
        suffix = "" if split == "test" else f"-{split}"
        if not self.task.dataset_name:
            return DatasetRecord.of_files(f"xnli{suffix}", self._tested)
        commit = self.files[self.task.dataset_name]
        # The same dataset before the Hub had names of owners.
        repo_id = "facebook/xnli" if self.task.dataset_name == "xnli" else self.task.dataset_name
        name = "xnli" if repo_id == "facebook/xnli" else repo_id
        return DatasetRecord(f"{name}{suffix}", {}, commit, repo_id)

    def _paths(self, split: Split, languages: Sequence[str]) -> dict[str, Path]:
        patterns, flag = self._given[split]
        if patterns:
            paths = files_of_patterns(patterns, flag, languages=languages, unnamed=languages)
        elif self.task.data_dir:
            paths = files_in_folder(self.task.data_dir, split, languages)
        else:
            raise UsageError(f"no {split} files: give {flag} or --data_dir.")
        if split == self.task.test_split:
            self._tested = list(paths.values())
        return paths


def draw_rows(sets: Mapping[str, pd.DataFrame], count: int | None) -> dict[str, pd.DataFrame]:
    """So many rows of each language, the same ones of all that have equally many: they are translations."""
    genres = {len(rows): [""] * len(rows) for rows in sets.values()}
    genres |= {len(rows): list(rows.genre) for rows in sets.values() if any(rows.genre)}
    drawn = {size: draw(names, count) for size, names in genres.items()}
    return {language: rows.iloc[drawn[len(rows)]].reset_index(drop=True) for language, rows in sets.items()}


def _check_parallel(test: Mapping[str, pd.DataFrame]) -> None:
    """Refuse test sets of which row i is not the same example in all languages: the labels would tell."""
    first, *others = test
    for language in others:
        if not test[language].label.equals(test[first].label):
            raise UsageError(
                f"--mixed_languages needs parallel rows, but the labels of {language} "
                f"({len(test[language])} rows) are not those of {first} ({len(test[first])} rows)."
            )
