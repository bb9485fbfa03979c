"""`infoxlm COMMAND`: each command does its work in this process and says what it did."""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_programs import parser_of
from tiny_text import sentence_pairs, write_pairs
from transformers import AutoTokenizer

from modeling_infoxlm import cli
from modeling_infoxlm.data.shards import Corpus

ROOT = Path(__file__).parents[1]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    pairs = sentence_pairs(40)
    return write_pairs(tmp_path / "text" / "en-xx.tsv", [*pairs, pairs[0], ("", "leer")])


@pytest.fixture
def tokenizer(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """One made by the command, in the layout and of the length asked for."""
    folder = tmp_path / "tokenizer"
    argv = ["train-tokenizer", "--bitext_files", str(text), "--tokenizer_vocab_size", "60"]
    assert cli.main([*argv, "--max_seq_length", "64", "--output_dir", str(folder)]) == 0
    assert capsys.readouterr().out == (
        f"{folder}: load it with AutoTokenizer.from_pretrained, or give it as --tokenizer_name.\n"
    )
    loaded = AutoTokenizer.from_pretrained(folder)
    assert loaded.convert_ids_to_tokens([0, 1, 2, 3]) == ["<s>", "<pad>", "</s>", "<unk>"]
    assert len(loaded) <= 60 and loaded.mask_token_id == len(loaded) - 1
    assert loaded.model_max_length == 64
    return folder


def prepare(text: Path, tokenizer: Path, folder: Path, *own: str) -> list[str]:
    files = ["--bitext_files", str(text), "--tokenizer_name", str(tokenizer), "--output_dir", str(folder)]
    return ["prepare", *files, "--max_seq_length", "96", "--preprocessing_num_workers", "1", *own]


# ---------------------------------------------------------------------------- the whole


def test_help_version_and_a_wrong_command_do_not_wait_for_torch(tmp_path: Path) -> None:
    script = (
        "import sys, infoxlm; code = infoxlm.main(); "
        "print(code, sorted({'torch', 'transformers', 'modeling_infoxlm'} & set(sys.modules)))"
    )
    for argv, code, shown in (
        (["--help"], 0, "infoxlm prepare"),
        (["--version"], 0, "infoxlm 0."),
        (["prepaer"], 2, "unknown command 'prepaer'; expected one of prepare"),
        (["hf_abcdefghijklmnop"], 2, "unknown command; expected one of prepare"),
    ):
        ran = subprocess.run(
            [sys.executable, "-c", script, *argv], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert shown in ran.stdout + ran.stderr
        assert ran.stdout.splitlines()[-1] == f"{code} []"


def test_help_names_each_flag_once_ours_first_and_the_trainers_on_request(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = []
    for flag in ("--help", "--help_all"):
        with pytest.raises(SystemExit):
            cli.main(["pretrain", flag])
        shown.append(capsys.readouterr().out)
    flags = [[line.split()[0] for line in text.splitlines() if line.startswith("  --")] for text in shown]
    short, long = flags
    assert shown[0].startswith("usage: infoxlm pretrain [--config FILE]")
    assert "recipes/continue_xlmr" in shown[0] and "about 1% of the whole" in " ".join(shown[0].split())
    groups = ("\nmodel:", "\ndata:", "\ncontrast:", "\ntraining:", "\n  --xlco_weight", "\n  --output_dir")
    places = [shown[0].index(part) for part in groups]
    assert places == sorted(places)
    assert len(set(short)) == len(short) and set(short) < set(long)
    assert {"--bitext_files", "--xlco_layer", "--max_steps", "--learning_rate"} <= set(short)
    assert "--torch_empty_cache_steps" in set(long) - set(short)


def test_every_command_lists_its_flags_and_those_of_the_examples(capsys: pytest.CaptureFixture[str]) -> None:
    examples = [line.split() for line in str(cli.__doc__).splitlines() if line.startswith("infoxlm ")]
    assert {command for _, command, *_ in examples} == set(cli.COMMANDS)
    for _, command, *arguments in examples:
        with pytest.raises(SystemExit) as error:
            cli.main([command, "--help"])
        shown = capsys.readouterr().out
        known = set(re.findall(r"--\w+", shown))
        assert error.value.code == 0 and shown.startswith(f"usage: infoxlm {command} ")
        assert {flag for flag in arguments if flag.startswith("--")} <= known, command
        assert known & {"--model_name_or_path", "--output_dir", "--study_file"}


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_no_number_may_be_nan_infinite_or_negative(command: str) -> None:
    for action in parser_of(command)._actions:
        kind = getattr(action.type, "__name__", "")
        if kind in ("int", "float"):
            wrong = ["nan", "inf", "-inf"] if kind == "float" else [str(10**30)]
            wrong += [] if action.dest in ("null_score_diff_threshold", "threshold") else ["-7"]
            for text in wrong:
                with pytest.raises(argparse.ArgumentTypeError, match="^must be .*, found "):
                    action.type(text)


# ---------------------------------------------------------------------------- its commands


def test_prepare_writes_a_corpus_and_says_what_was_dropped(
    text: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "corpus"
    assert cli.main(prepare(text, tokenizer, folder, "--mono_from_bitext", "true")) == 0
    corpus = Corpus.open(folder)
    assert len(corpus.bitext["en-xx"]) == 40 and corpus.max_length == 96
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == f"{folder}:"
    words = [line.split() for line in lines]
    tokens = f"{corpus.manifest['bitext']['en-xx']['num_tokens']:,}"
    assert [line[:2] for line in words] == [["mono", "en"], ["mono", "xx"], ["bitext", "en-xx"]]
    assert words[2][2:] == ["40", "examples", tokens, *"tokens dropped: duplicate 1, empty 1".split()]


def test_jobs_that_prepare_one_folder_together(
    text: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pairs(text.parent / "en-de.tsv", sentence_pairs(20, seed=2))
    folder = tmp_path / "corpus"
    job = prepare(text.parent, tokenizer, folder, "--num_shards", "2", "--shard_index")
    assert cli.main([*job, "0"]) == 0
    assert capsys.readouterr().out == f"{folder}: this job is done, others are not yet.\n"
    assert not (folder / "manifest.json").exists()
    assert cli.main([*job, "1"]) == 0
    assert sorted(Corpus.open(folder).bitext) == ["en-de", "en-xx"]
    assert capsys.readouterr().out.startswith(f"{folder}:\n")
