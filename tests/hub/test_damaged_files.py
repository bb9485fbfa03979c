"""Files that are not what they are called, and paths that are none: one line, before anything is loaded."""

import json
import shutil
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
import torch
from hub.finished_run import save_tiny_model
from tiny_fairseq import Trap
from tiny_heads import tampered
from transformers import AutoModelForSequenceClassification

from modeling_infoxlm.evaluation.encoders import EncoderArguments, load_encoder
from modeling_infoxlm.evaluation.finetuning.arguments import HeadModelArguments
from modeling_infoxlm.evaluation.finetuning.heads import load_head_model
from modeling_infoxlm.fairseq.weights import read_file
from modeling_infoxlm.hub.checkup import check_checkpoint
from modeling_infoxlm.hub.loading import check_state_file
from modeling_infoxlm.hub.source import load_source
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.training.arguments import ContrastArguments, ModelArguments
from modeling_infoxlm.training.model_setup import build_model, load_tokenizer

WEIGHTS = "model.safetensors"


def zipped() -> bytes:
    content = BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("model.safetensors", "x")
    return content.getvalue()


KINDS = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n": "is a Git LFS pointer",
    b"\n<!DOCTYPE html><html>404</html>": "is a page of HTML",
    b"": "is empty",
    zipped(): "is a pickle or a zip archive",
    b"\x80\x04\x95\x0a\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94K\x01s.": "is a pickle or a zip archive",
    b"\x1f\x8b\x08\x00" + b"x" * 50: "is compressed by gzip",
    b"\x00" * 100: "is cut short, damaged or of another kind",
    '{"a": 1}'.encode("utf-16"): "is cut short, damaged or of another kind",
}


def pretraining(folder: Path) -> None:
    arguments = ModelArguments(model_name_or_path=str(folder))
    build_model(arguments, ContrastArguments(), load_tokenizer(arguments), seed=0)


LOADERS: dict[str, Callable[[Path], object]] = {
    "export": load_source,
    "encoder": lambda folder: load_encoder(EncoderArguments(model_name_or_path=str(folder))),
    "head": lambda folder: load_head_model(
        HeadModelArguments(model_name_or_path=str(folder)), AutoModelForSequenceClassification, seed=0
    ),
    "pretraining": pretraining,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("damaged") / "model")


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def refusal(load: Callable[[Path], object], folder: Path) -> str:
    with pytest.raises(UsageError) as error:
        load(folder)
    text = str(error.value)
    assert "\n" not in text and "weights_only" not in text and str(folder) in text, text
    return text


OTHER_FORMS = ("null", "[]", '"x"', "[" * 20_000, '{"a":' * 20_000, '{"a": ' + "9" * 5000 + "}")


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_each_loader_names_the_file_and_what_it_is(model: Path, name: str) -> None:
    for content, kind in KINDS.items():
        (model / name).write_bytes(content)
        for loader, load in LOADERS.items():
            text = refusal(load, model)
            assert name in text and kind in text, (loader, text)
        names = [path.name for path in model.iterdir()]
        failed = [finding.text for finding in check_checkpoint(model, names) if finding.level == "fail"]
        assert any(name in text and kind in text for text in failed), failed
    for content in OTHER_FORMS if name != WEIGHTS else ():
        (model / name).write_text(content)
        for load in LOADERS.values():
            assert name in refusal(load, model)


def test_weights_that_were_cut_short_are_named_with_their_length(model: Path) -> None:
    content = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(content[:-1])
    for load in LOADERS.values():
        assert f"{len(content) - 1:,} bytes, its header promises {len(content):,}" in refusal(load, model)
    for length in range(10):  # the length that a header begins with may look like a pickle
        (model / WEIGHTS).write_bytes(b"\x80\x03\0\0\0\0\0\0{}"[:length])
        with pytest.raises(UsageError, match="cut short|empty"):
            check_state_file(model / WEIGHTS)


def test_a_pickle_is_not_run_nor_advised_to_be(model: Path, tmp_path: Path) -> None:
    (model / WEIGHTS).unlink()
    weights = model / "pytorch_model.bin"
    torch.save({"x": Trap(tmp_path / "made")}, weights)
    for load in (*LOADERS.values(), lambda folder: read_file(weights)):
        text = refusal(load, model)
        assert "mkdir" in text and "Nothing in it was run" in text
    for content, kind in KINDS.items():
        if "pickle" not in kind:
            weights.write_bytes(content)
            for load in (*LOADERS.values(), lambda folder: read_file(weights)):
                assert weights.name in (text := refusal(load, model)) and kind in text
    assert not (tmp_path / "made").exists()


def test_no_encoder_is_random_in_silence(model: Path) -> None:
    name = "roberta.encoder.layer.0.output.dense.bias"
    for change, words in (
        (lambda bias: bias[:3].clone(), "output.dense.bias (3,), not (16,)"),
        (None, "encoder.layer.0.output.dense.bias"),
    ):
        tampered(model / WEIGHTS, name, change)
        for load in LOADERS.values():
            assert words in refusal(load, model)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        # Sizes that no model has.
        ({"num_hidden_layers": 1_000_000}, "num_hidden_layers is 1,000,000"),
        ({"num_hidden_layers": 4}, "num_hidden_layers 4, its weights 3"),
        ({"vocab_size": 10**9}, "vocab_size 1,000,000,000, its weights"),
        ({"hidden_size": "x"}, "hidden_size must be a number of at least 1, found 'x'"),
        ({"num_attention_heads": 0}, "num_attention_heads must be a number of at least 1"),
        ({"architectures": 1.5}, "architectures must be a list of names, found 1.5"),
        ({"num_attention_heads": 3}, "hidden_size 16 cannot be divided among 3 heads"),
        # Parts of split weights.
        ('{"weight_map": {"a": "model-1.safetensors"}}', "model-1.safetensors is missing"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "'../x.safetensors', which is no file of this folder"),
        ('{"weight_map": {"a": 3}}', "cannot be read"),
        ('{"weight_map": {}}', "names nothing"),
        ("[]", "cannot be read"),
        ("{", "cannot be read"),
    ],
)
def test_impossible_sizes_and_parts(model: Path, damage: dict[str, object] | str, words: str) -> None:
    if isinstance(damage, str):
        (model / WEIGHTS).unlink()
        (model / f"{WEIGHTS}.index.json").write_text(damage)
    else:
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, **damage}))
    for load in LOADERS.values():
        assert words in refusal(load, model)


# ---------------------------------------------------------------------------- paths


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("./mdel", "did you mean model?"),
        ("../nowhere", ""),
        ("/nowhere/model", "/ holds no nowhere"),
        ("~/nowhere", ""),
        ("model/checkpoint-5/x", "model holds no checkpoint-5"),
        ("nowhere/model/x", ""),
        ("nowhere/", ""),
        ("model/checkpoint-5", "model holds no checkpoint-5"),
        ("model\\sub", "folders are divided by /: model/sub"),
        ("model/config.json", "it is no folder but a file; give the folder that holds it, model"),
        ("a name", "neither a folder nor a name on the Hub"),
        ("", ""),
    ],
)
def test_paths_that_are_none(model: Path, name: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking the Hub for it would take a minute, and its answer would mislead."""
    (model / "sub").mkdir()
    monkeypatch.chdir(model.parent)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://asked.invalid")
    for load in LOADERS.values():
        with pytest.raises(UsageError, match="no") as error:
            load(name)  # type: ignore[arg-type]
        assert hint in str(error.value) and "asked.invalid" not in str(error.value)
