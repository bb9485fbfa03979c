"""Text, flags and folders that pre-training must refuse, in one line, before anything is lost."""

import json
import runpy
import shutil
from pathlib import Path

import pytest
from tiny_pretraining import PAIRS, Refusal, StopInStep3, checkpoints, flags
from tiny_text import write_pairs

import run_pretraining
from modeling_infoxlm.data.write_source import PairWriter


def test_unusable_text(text: Path, out: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    for content, message in (
        (b"", f"{text} is empty."),
        (b"a house\tein haus\ncaf\xe9\tkaffee\n", f"{text}, line 2: invalid UTF-8, byte 0xe9 at position 3"),
        (b"Haus\t\n\thouse\n", "no usable line in "),
        (b"the same\tthe same\n" * 9, f"{text}: both sides are the same in 9 of 9 pairs of en-xx"),
    ):
        text.write_bytes(content)
        assert refusal(flags(out, text)).startswith(message)
        shutil.rmtree(out)
    missing = text.with_name("en-yy.tsv")
    assert refusal(flags(out, missing)).startswith(f"{missing}: no such file or folder.")
    assert refusal(flags(out, None)).startswith("a model from scratch needs a tokenizer: give --tokenizer_na")
    monkeypatch.setattr("sys.argv", ["run_pretraining.py", *flags(out, missing)])
    with pytest.raises(SystemExit) as ended:  # a shell must see it
        runpy.run_path(run_pretraining.__file__, run_name="__main__")
    assert ended.value.code == 2


def test_the_way_out_of_a_message_is_open_in_the_same_folder(text: Path, out: Path, refusal: Refusal) -> None:
    text.write_bytes(text.read_bytes() + b"caf\xe9\tkaffee\n")
    argv = flags(out, text, "--max_steps", "1")
    assert "--on_bad_line skip" in refusal(argv)
    assert run_pretraining.main([*argv, "--on_bad_line", "skip"]) == 0
    manifest = json.loads((out / "data/manifest.json").read_text())
    assert manifest["bitext"]["en-xx"]["dropped"] == {"bad_line": 1}
    prepared = ["--prepared_data", str(out / "data"), "--tokenizer_name", str(out / "tokenizer")]
    argv = flags(out.with_name("b"), None, *prepared, "--mono_from_bitext", "false", "--max_steps", "1")
    message = refusal([*argv, "--eval_strategy", "steps", "--eval_steps", "3"])
    assert message.startswith(f"eval_strategy is steps but {out / 'data'} holds out no pair; prepare it with")
    shutil.rmtree(text.parent)
    assert run_pretraining.main([*argv, "--objectives", "tlm,xlco"]) == 0


def test_flags_that_cannot_be_touch_no_folder(text: Path, out: Path, refusal: Refusal) -> None:
    recipe = text.parent / "recipe.yaml"
    recipe.write_text("xlco_temprature: 0.1\n")
    mono = flags(out, None, "--mono_files", f"en={text}", "--mono_from_bitext", "false")
    heldout = "--eval_strategy steps --eval_steps 3".split()
    for argv, message in (
        (flags(out, text, "--max_steps", "0"), "max_steps must be at least 1, found 0."),
        (flags(out, text, "--config", str(recipe)), f"recipe {recipe}: unknown key xlco_temprature; did"),
        (flags(out, text, "--mono_from_bitext", "false"), "objective mlm needs monolingual text, but there"),
        (mono, "objective tlm needs translated text, but there is none; give --bitext_files"),
        (flags(out, text, *heldout), "eval_strategy is steps but heldout_fraction is 0, so no pair"),
    ):
        assert refusal(argv).startswith(message)
        assert not out.exists()


def test_a_corpus_that_changed_within_a_run(
    text: Path, out: Path, tmp_path: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it was given or made by the run: the rest of it would be trained on other text."""
    prepared = tmp_path / "prepared"
    argv = flags(out, text, "--prepared_data", str(prepared))
    with monkeypatch.context() as patch:
        patch.setattr("modeling_infoxlm.commands.pretrain.StopOnSignal", StopInStep3)
        assert run_pretraining.main(argv) == 130
    shutil.move(prepared, tmp_path / "kept")
    content = text.read_bytes()
    write_pairs(text, PAIRS[:-1])
    for _ in range(2):  # the record still tells what the run was trained on
        message = refusal(argv)
        assert message.startswith(f"{out} was trained on another corpus than {prepared} is now: source en-xx")
    shutil.rmtree(prepared)
    text.write_bytes(content)
    assert run_pretraining.main(argv) == 0


def test_full_disk(text: Path, out: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(PairWriter, "extend", full)
        message = refusal(flags(out, text), code=1)
    assert message.startswith(f"{out / 'data'}") and "cannot be written: its disk is full" in message
    assert not list(out.rglob("*.partial")) and not list((out / "data" / "bitext").rglob("*.tokens"))
    assert run_pretraining.main(flags(out, text)) == 0


def test_a_wrong_flag_is_mended_in_the_same_folder(text: Path, out: Path, refusal: Refusal) -> None:
    """It is refused before hours of preparation, and nothing was trained that would have to be protected."""
    for wrong, message in (
        ("--xlco_layer 3", "xlco_layer is 3 but the model has 2 layers; give a layer from 1 to 2, or -1"),
        ("--max_position_embeddings 34", "sequences of up to 64 tokens, the model positions for 32"),
    ):
        assert message in refusal(flags(out, text, *wrong.split()))
        assert not (out / "data").exists() and not checkpoints(out)
    assert run_pretraining.main(flags(out, text)) == 0
