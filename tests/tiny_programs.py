"""Commands of XNLI and MLQA on made-up data, learnt in seconds; and the parsers of all commands."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification, HfArgumentParser

import run_mlqa
import run_xnli
from modeling_infoxlm import cli
from modeling_infoxlm.runs.provenance import read_result


@dataclass(frozen=True)
class Program:
    """One of the programs: its flags, those of a run with everything in it, and what is looked at.

    Attributes:
        testing: What predicts; it is called once training is done.
        stop_at: A step in the second epoch of 12.
    """

    name: str
    main: Callable[[list[str]], int]
    data: str
    flags: str
    extras: str
    metric: str
    auto_class: Any
    testing: str
    stop_at: int


XNLI = Program(
    "xnli",
    run_xnli.main,
    "--data_dir {data}/xnli",
    "--languages en de fr --max_seq_length 40 --num_train_epochs 3 --eval_steps 6 --logging_steps 6",
    "--mixed_languages true --mixed_max_samples 9",
    "accuracy",
    AutoModelForSequenceClassification,
    "modeling_infoxlm.evaluation.inference.xnli.XNLIRun.predict",
    15,
)
MLQA = Program(
    "mlqa",
    run_mlqa.main,
    "--train_file {data}/qa/train-v1.1.json --test_files {data}/qa/mlqa",
    "--max_seq_length 16 --doc_stride 4 --max_query_length 4 --max_answer_length 2 --num_train_epochs 4 "
    "--save_steps 12 --logging_steps 12",
    "--test_files {data}/qa/mlqa {data}/qa/xquad --all_pairs true --save_n_best true",
    "f1",
    AutoModelForQuestionAnswering,
    "modeling_infoxlm.evaluation.questions.mlqa.MLQARun.answer",
    20,
)


def command(program: Program, shared: Path, out: Path, *own: str, model: str = "infoxlm") -> list[str]:
    """A command; of a flag given twice the last one counts."""
    return [
        *("--model_name_or_path", str(shared / model)),
        *program.data.format(data=shared).split(),
        *("--cache_dir", str(shared / "cache"), "--output_dir", str(out)),
        *"--use_cpu true --disable_tqdm true --seed 1 --per_device_train_batch_size 8".split(),
        *("--learning_rate", "5e-3", *program.flags.split(), *own),
    ]


def result_of(folder: Path, program: Program) -> dict[str, Any]:
    """The result file of a program."""
    return read_result(folder / f"{program.name}_results.json")


class Parsed(Exception):
    """The flags were understood; the work itself is not wanted."""


def called(name: str) -> Callable[[list[str]], None]:
    """The function of an `infoxlm` command."""
    place, function = cli.COMMANDS[name].split(":")
    found: Callable[[list[str]], None] = getattr(import_module(f"modeling_infoxlm.{place}"), function)
    return found


def parser_of(name: str) -> HfArgumentParser:
    """The parser of an `infoxlm` command."""
    parsers = []

    def note_and_stop(parser: HfArgumentParser, *args: Any, **kwargs: Any) -> None:
        parsers.append(parser)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Parsed):
        patch.setattr(HfArgumentParser, "parse_args_into_dataclasses", note_and_stop)
        called(name)([])
    return parsers[0]
