"""README.md and the docs must be true: their commands parse, their files exist, their code runs."""

import importlib
import json
import os
import re
import shlex
import string
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaModel,
    XLMRobertaTokenizer,
)

from examples.demo import markdown_table
from modeling_infoxlm import InfoXLMConfig, InfoXLMForPreTraining, InfoXLMModel, cli, doctor
from modeling_infoxlm.commands import align_words, fine_tune, information, mine
from modeling_infoxlm.commands.prepare import OutputArguments
from modeling_infoxlm.evaluation.encoders import EncoderArguments
from modeling_infoxlm.evaluation.inference import xnli_data as xnli
from modeling_infoxlm.evaluation.questions import mlqa_data as mlqa
from modeling_infoxlm.evaluation.report import report
from modeling_infoxlm.evaluation.retrieval import tatoeba
from modeling_infoxlm.fairseq import checkpoint
from modeling_infoxlm.hub import export, push
from modeling_infoxlm.training.arguments import (
    ContrastArguments,
    DataArguments,
    ModelArguments,
    PretrainingArguments,
)

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
EXECUTED = "<!-- executed -->"
PROGRAMS = {
    name: importlib.import_module(f"modeling_infoxlm.{place.split(':')[0]}")
    for name, place in cli.COMMANDS.items()
}
SHAPE = {"hidden_size": 16, "num_hidden_layers": 12, "num_attention_heads": 2, "intermediate_size": 32}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str
    executed: bool

    @property
    def id(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    found, opened, content, before = [], None, [], ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if opened is None and line.startswith("```"):
            opened, content = (number, line.removeprefix("```").strip(), before == EXECUTED), []
        elif opened is not None and line.startswith("```"):
            start, language, executed = opened
            found.append(Block(page.name, start, language, "\n".join(content), executed))
            opened = None
        elif opened is not None:
            content.append(line)
        before = line.strip() or before
    assert opened is None, f"{page.name}: the block at line {opened} is not closed"
    return found


def commands(block: Block) -> list[list[str]]:
    lines = block.text.replace("\\\n", " ").splitlines()
    return [argv for line in lines if (argv := shlex.split(line, comments=True))]


ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]
PYTHON = [block for block in ALL_BLOCKS if block.page == README.name and block.language == "python"]
COMMANDS = [
    pytest.param(argv, id=f"{block.id} {' '.join(argv)[:40]}")
    for block in ALL_BLOCKS
    if block.language == "bash"
    for argv in commands(block)
]


def test_there_is_something_to_check() -> None:
    """An extractor that finds nothing would let everything below pass."""
    assert len(PYTHON) >= 3 and len(COMMANDS) >= 10
    assert sum(block.executed for block in ALL_BLOCKS) == README.read_text().count(EXECUTED) == 1
    assert "<!-- demo-results -->" in README.read_text()


# ----------------------------------------------------------------------------------------------- commands


class Parsed(Exception):
    """The flags were understood; the work itself is not wanted here."""


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands read their flags with their own parser, and stop there."""

    def stop_after(parse):
        def parse_and_stop(*args, **kwargs):
            parse(*args, **kwargs)
            raise Parsed

        return parse_and_stop

    for module in {*PROGRAMS.values(), fine_tune} - {
        PROGRAMS["xnli"],
        PROGRAMS["mlqa"],
    }:  # that one runs both
        monkeypatch.setattr(module, "parse_args_with_config", stop_after(module.parse_args_with_config))
    monkeypatch.chdir(ROOT)  # recipes are named from there


def called(name: str) -> Callable[[list[str]], None]:
    """The function of a command."""
    found: Callable[[list[str]], None] = getattr(PROGRAMS[name], cli.COMMANDS[name].split(":")[1])
    return found


def check(argv: list[str]) -> None:
    """Check one command of a page.

    Raises:
        Parsed: If it is one of ours and its flags were understood.
        SystemExit: If it is one of ours and they were not.
    """
    match argv:
        case ["make", *targets]:
            known = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert targets and set(targets) <= set(known)
        case ["hf", *words]:
            assert words == ["auth", "login"]
        case ["source", path]:
            assert path == ".venv/bin/activate"
        case ["python", "run_pretraining.py", *flags]:
            called("pretrain")([*flags, "--use_cpu"])  # machines without a GPU refuse bf16 otherwise
        case ["python", ("run_mlqa.py" | "run_tatoeba.py" | "run_xnli.py") as script, *flags]:
            tuned = script != "run_tatoeba.py"
            command = called(script.removeprefix("run_").removesuffix(".py"))
            command([*flags, "--use_cpu"] if tuned else flags)
        case ["torchrun", "--nproc_per_node", count, "run_pretraining.py", *flags]:
            assert int(count) > 1
            called("pretrain")([*flags, "--use_cpu"])
        case ["python", "-m", module, *flags] if module.startswith("benchmarks."):
            importlib.import_module(module).parse_arguments(flags)
            raise Parsed
        case ["infoxlm", name, *flags]:
            called(name)([*flags, "--use_cpu"] if name == "pretrain" else flags)
        case _:
            raise AssertionError(f"a command this test knows nothing of: {shlex.join(argv)}")


@pytest.mark.usefixtures("parse_only")
@pytest.mark.parametrize("argv", COMMANDS)
def test_command_is_understood(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if argv[0] in ("hf", "make", "source"):
        check(argv)
        return
    try:
        with pytest.raises(Parsed):
            check(argv)
    except SystemExit:
        pytest.fail(f"{shlex.join(argv)}\n{capsys.readouterr().err}")


@pytest.mark.usefixtures("parse_only")
@pytest.mark.parametrize(
    "argv",
    [
        ["python", "run_pretraining.py", "--bitex_files", "data/en-de.tsv"],
        ["python", "run_pretraining.py", "--config", "recipes/no_such.yaml"],
        ["torchrun", "--nproc_per_node", "2", "run_pretraining.py", "--max_step", "3"],
        ["python", "-m", "benchmarks.step", "--batch", "0.1"],
        ["infoxlm", "prepare", "--heldout_part", "0.1"],
        ["infoxlm", "train-tokenizer", "--vocab_size", "4000"],
        ["infoxlm", "export", "outputs/mine", "--output", "outputs/release"],
        ["infoxlm", "push", "outputs/mine", "ORG/NAME", "--privat"],
        ["infoxlm", "mine", "a.de.txt", "a.en.txt", "--limit", "1"],
        ["python", "run_tatoeba.py", "--data", "tatoeba"],
        ["python", "run_xnli.py", "--data", "XNLI"],
    ],
    ids=lambda argv: argv[-2],
)
def test_misspelt_command_is_refused(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        check(argv)
    assert error.value.code == 2


def known_flags() -> set[str]:
    types = [ModelArguments, DataArguments, ContrastArguments, PretrainingArguments]
    types += [OutputArguments, EncoderArguments]
    modules = (information, mine, mlqa, report, tatoeba, align_words, xnli)
    modules += (checkpoint, doctor, export, push)
    types += [part for module in modules for name, part in vars(module).items() if name.endswith("Arguments")]
    names = {field.name for part in types for field in fields(part)}
    others = {"config", "debug", "help", "help_all", "nproc_per_node", "compare", "fresh", "nnodes"}
    others |= {"batch_size", "max_length", "dtype", "only"}  # benchmarks.step
    return names | {f"no_{name}" for name in names} | others


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_named_anywhere_exists(page: Path) -> None:
    named = re.findall(r"(?<![\w-])--([a-z]\w*)", page.read_text(encoding="utf-8"))
    assert sorted(set(named) - known_flags()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_named_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"(?<![\w/])(?:recipes|examples|modeling_infoxlm|tests|docs)/[\w./-]+", text)
    assert sorted({path for path in named if not (ROOT / path.rstrip(".")).exists()}) == []
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []


# ----------------------------------------------------------------------------------------------- python code


def letter_tokenizer() -> XLMRobertaTokenizer:
    pieces = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")]
    pieces += [(piece, -1.0 - 0.01 * rank) for rank, piece in enumerate(["▁", *string.ascii_letters])]
    return XLMRobertaTokenizer(vocab=[*pieces, ("<mask>", 0.0)], model_max_length=64)


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder in which the names that README loads are small random models of the right kind."""
    tokenizer = letter_tokenizer()
    shape = {**SHAPE, "vocab_size": len(tokenizer), "max_position_embeddings": 66, "type_vocab_size": 1}
    plain = XLMRobertaForMaskedLM(XLMRobertaConfig(**shape))
    ours = InfoXLMForPreTraining(InfoXLMConfig(**shape))
    stand_ins = {"microsoft/infoxlm-base": plain, "outputs/release": plain, "outputs/mine": ours}
    for name, model in stand_ins.items():
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    monkeypatch.chdir(tmp_path)  # a folder of that name is taken before the Hub is asked
    return tmp_path


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.id)
def test_python_block_runs(block: Block, checkpoints: Path) -> None:
    loaded = re.findall(r'from_pretrained\("([^"]+)"', block.text)
    assert loaded and all((checkpoints / name).is_dir() for name in loaded), "tests may not ask the Hub"
    names: dict[str, object] = {}
    exec(compile(block.text, block.id, "exec"), names)
    if isinstance(vectors := names.get("vectors"), torch.Tensor):
        assert vectors.shape == (2, SHAPE["hidden_size"])
        assert vectors.isfinite().all() and not torch.allclose(vectors[0], vectors[1])
    if "encoder" in names:
        assert isinstance(names["encoder"], InfoXLMModel) and names["encoder"].pooler is None
    if "outputs/release" in loaded:
        assert type(names["model"]) is XLMRobertaModel


# -------------------------------------------------------------------------------------- the executed block


def run(argv: list[str], folder: Path) -> None:
    assert argv[0] == "infoxlm", f"no way to execute {shlex.join(argv)}"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "modeling_infoxlm.cli", *argv[1:]]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, f"{shlex.join(argv)}\n{done.stderr[-3000:]}"


@pytest.mark.timeout(600)  # each of its commands imports torch anew
def test_executed_block(tmp_path: Path) -> None:
    (block,) = [block for block in ALL_BLOCKS if block.executed]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for argv in commands(block):
        run(argv, tmp_path)
    trained = AutoModel.from_pretrained(tmp_path / "outputs" / "tiny")
    release = AutoModel.from_pretrained(tmp_path / "outputs" / "tiny_release")
    assert isinstance(trained, InfoXLMModel) and type(release) is XLMRobertaModel
    assert trained.config.xlco_pooling == "mean" and trained.config.num_hidden_layers == 2
    weights = release.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in trained.state_dict().items())
    assert (tmp_path / "outputs" / "tiny" / "checkpoint-2" / "momentum_state.safetensors").is_file()
    for name in ("run.json", "all_results.json", "eval_results.json", "trainer_state.json"):
        assert (tmp_path / "outputs" / "tiny" / name).is_file(), name


def test_results_in_the_readme_are_those_of_the_result_file() -> None:
    """The table is what `make demo-compare` wrote, and it is the table of the numbers beside it."""
    folder = README.parent / "docs" / "results" / "demo"
    table = (folder / "results.md").read_text(encoding="utf-8")
    assert table in README.read_text(encoding="utf-8")
    assert table == markdown_table(json.loads((folder / "results.json").read_text(encoding="utf-8")))
