"""README.md and the docs must be true: their commands parse, their files exist, their code runs."""

import importlib
import json
import re
import runpy
import shlex
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from demo import markdown_table
from tiny_programs import Parsed, called, parser_of
from tiny_tokenizers import letter_tokenizer
from transformers import AutoModel, HfArgumentParser, XLMRobertaConfig, XLMRobertaForMaskedLM, XLMRobertaModel

from modeling_infoxlm import InfoXLMConfig, InfoXLMForPreTraining, InfoXLMModel, cli

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
EXECUTED, PRINTED = "<!-- executed -->", "<!-- printed -->"
SCRIPTS = {
    "run_pretraining.py": "pretrain",
    "run_mlqa.py": "mlqa",
    "run_tatoeba.py": "tatoeba",
    "run_xnli.py": "xnli",
}
TRAINING = ("pretrain", "mlqa", "xnli")  # machines without a GPU refuse bf16 where no CPU is asked for
OTHER_FLAGS = {"nproc_per_node", "nnodes", "compare", "fresh", "debug", "config"}  # of launchers, demo, all
OTHER_FLAGS |= {"ranking_weight", "ranking_examples"}  # of examples/objectives
OTHER_FLAGS |= {"batch_size", "max_length", "dtype", "only", "flag"}  # of benchmarks.step
SHAPE = {"hidden_size": 16, "num_hidden_layers": 12, "num_attention_heads": 2, "intermediate_size": 32}


class Block(NamedTuple):
    """A fenced block of a page."""

    id: str
    language: str
    text: str
    executed: bool

    def commands(self) -> list[list[str]]:
        lines = self.text.replace("\\\n", " ").splitlines()
        return [argv for line in lines if (argv := shlex.split(line, comments=True))]


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    assert len(re.findall("^```", text, re.MULTILINE)) % 2 == 0, f"{page.name}: a block is not closed"
    found = []
    for match in re.finditer(r"^(<!-- executed -->\n+)?```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, match.start(2)) + 1
        found.append(Block(f"{page.name}:{line}", match[2], match[3], match[1] is not None))
    return found


ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]
RUN = (README.name, "extending.md")  # pages whose Python is run
PYTHON = [one for one in ALL_BLOCKS if one.id.startswith(RUN) and one.language == "python"]
COMMANDS = [
    pytest.param(argv, id=f"{block.id} {' '.join(argv)[:40]}")
    for block in ALL_BLOCKS
    if block.language == "bash"
    for argv in block.commands()
]


def test_there_is_something_to_check() -> None:
    """An extractor that finds nothing would let everything below pass."""
    assert len(PYTHON) >= 3 and len(COMMANDS) >= 10
    assert sum(block.executed for block in ALL_BLOCKS) == README.read_text().count(EXECUTED) == 1
    assert PRINTED in README.read_text() and "<!-- demo-results -->" in README.read_text()


# ----------------------------------------------------------------------------------------------- commands


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch, own_registers: None) -> None:
    """Let commands read their flags with their own parser, and stop there."""
    parse = HfArgumentParser.parse_args_into_dataclasses

    def parse_and_stop(*args: Any, **kwargs: Any) -> None:
        parse(*args, **kwargs)
        raise Parsed

    monkeypatch.setattr(HfArgumentParser, "parse_args_into_dataclasses", parse_and_stop)
    monkeypatch.chdir(ROOT)  # recipes are named from there


def check(argv: list[str]) -> None:
    """Check one command of a page.

    Raises:
        Parsed: If it is one of ours and its flags were understood.
        SystemExit: If it is one of ours and they were not.
    """
    match argv:
        case ["torchrun", "--nproc_per_node", count, *command] if int(count) > 1:
            check(["python", *command])
        case ["python", "-m", module, *flags] if module.startswith("benchmarks."):
            importlib.import_module(module).parse_arguments(flags)
            raise Parsed
        case ["python", script, *flags] if script in SCRIPTS:
            check(["infoxlm", SCRIPTS[script], *flags])
        case ["python", script, *flags] if script.startswith("examples/objectives/"):
            runpy.run_path(script)
            check(["infoxlm", "pretrain", *flags])
        case ["infoxlm", name, *flags]:
            called(name)([*flags, "--use_cpu"] if name in TRAINING else flags)
        case _:
            raise AssertionError(f"a command this test knows nothing of: {shlex.join(argv)}")


@pytest.mark.usefixtures("parse_only")
@pytest.mark.parametrize("argv", COMMANDS)
def test_command_is_understood(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if argv[0] == "make":
        known = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert argv[1:] and set(argv[1:]) <= set(known)
    elif argv not in (["hf", "auth", "login"], ["source", ".venv/bin/activate"]):
        try:
            with pytest.raises(Parsed):
                check(argv)
        except SystemExit:
            pytest.fail(f"{shlex.join(argv)}\n{capsys.readouterr().err}")


@pytest.mark.usefixtures("parse_only")
def test_misspelt_commands_are_refused() -> None:
    for command in (
        "torchrun --nproc_per_node 2 run_pretraining.py --max_step 3",
        "python -m benchmarks.step --batch 0.1",
        "infoxlm push outputs/mine ORG/NAME --privat",
    ):
        with pytest.raises(SystemExit) as error:
            check(command.split())
        assert error.value.code == 2


@cache
def known_flags() -> set[str]:
    """Flags of all commands, as their parsers have them."""
    flags = {flag for name in cli.COMMANDS for flag in parser_of(name)._option_string_actions}
    return OTHER_FLAGS | {flag.removeprefix("--") for flag in flags}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_and_file_that_is_named_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"(?<![\w-])--([a-z]\w*)", text)
    assert sorted(set(named) - known_flags()) == []
    named = re.findall(r"(?<![\w/])(?:recipes|examples|modeling_infoxlm|tests|docs)/[\w./-]+", text)
    assert sorted({path for path in named if not (ROOT / path.rstrip(".")).exists()}) == []
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []


# ----------------------------------------------------------------------------------------------- python code


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder in which the names that README loads are small random models of the right kind."""
    tokenizer = letter_tokenizer(max_length=64)
    shape = {**SHAPE, "vocab_size": len(tokenizer), "max_position_embeddings": 66, "type_vocab_size": 1}
    plain = XLMRobertaForMaskedLM(XLMRobertaConfig(**shape))
    ours = InfoXLMForPreTraining(InfoXLMConfig(**shape))
    stand_ins = {"microsoft/infoxlm-base": plain, "outputs/release": plain, "outputs/mine": ours}
    for name, model in stand_ins.items():
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)  # a folder of that name is taken before the Hub is asked
    return tmp_path


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.id)
def test_python_block_runs(block: Block, checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = re.findall(r'(?:from_pretrained\(|model_name_or_path=)"([^"]+)"', block.text)
    assert loaded and all((checkpoints / name).is_dir() for name in loaded), "tests may not ask the Hub"
    names: dict[str, object] = {}
    exec(compile(block.text, block.id, "exec"), names)
    before, _, after = README.read_text(encoding="utf-8").partition(f"```python\n{block.text}```\n")
    if before.endswith(f"{PRINTED}\n"):
        assert after.startswith(f"\n```text\n{capsys.readouterr().out}```\n")
    if "encoder" in names:
        assert isinstance(names["encoder"], InfoXLMModel) and names["encoder"].pooler is None
    if "outputs/release" in loaded:
        assert type(names["model"]) is XLMRobertaModel


# -------------------------------------------------------------------------------------- the executed block


def test_executed_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = [block for block in ALL_BLOCKS if block.executed]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    for program, *argv in block.commands():
        assert program == "infoxlm" and cli.main(argv) == 0, shlex.join(argv)
    trained = AutoModel.from_pretrained(tmp_path / "outputs" / "tiny")
    release = AutoModel.from_pretrained(tmp_path / "outputs" / "tiny_release")
    assert isinstance(trained, InfoXLMModel) and type(release) is XLMRobertaModel
    assert trained.config.xlco_pooling == "mean" and trained.config.num_hidden_layers == 2
    weights = release.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in trained.state_dict().items())
    files = ("run.json", "all_results.json", "eval_results.json", "trainer_state.json")
    for name in (*files, "checkpoint-2/momentum_state.safetensors"):
        assert (tmp_path / "outputs" / "tiny" / name).is_file(), name


def test_results_in_the_readme_are_those_of_the_result_file() -> None:
    """The table is what `make demo-compare` wrote, and it is the table of the numbers beside it."""
    folder = README.parent / "docs" / "results" / "demo"
    table = (folder / "results.md").read_text(encoding="utf-8")
    assert table in README.read_text(encoding="utf-8")
    assert table == markdown_table(json.loads((folder / "results.json").read_text(encoding="utf-8")))
