"""Releases are written whole or not at all, of complete checkpoints, and say what they are."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from disk_limit import file_size_limit
from hub.finished_run import contents
from hub.server import LoopbackHub
from safetensors.torch import load_file, save_file
from tiny_encoder import word_tokenizer
from tiny_heads import save_checkpoint, tampered
from transformers import AutoModel, XLMRobertaForMaskedLM, set_seed

from modeling_infoxlm import InfoXLMForPreTraining
from modeling_infoxlm.hub import export as export_module
from modeling_infoxlm.hub.export import RELEASE_FILE, ExportRecord, export, export_command, read_record
from modeling_infoxlm.hub.source import PROJECTION
from modeling_infoxlm.runs.errors import DiskFullError, UsageError
from modeling_infoxlm.runs.files import file_sha256

DEPTH_OF_BASE = {"num_hidden_layers": 12, "xlco_layer": None}  # whose layer of the contrast is known
TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}
PLAIN_FILES = {"config.json", "model.safetensors", *TOKENIZER, RELEASE_FILE}


# ---------------------------------------------------------------------------- the record


def test_record_says_what_the_release_is_and_what_it_was_made_of(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "out" / "checkpoint-20", "ForPreTraining")
    record = export(checkpoint, tmp_path / "release", dtype="bfloat16")
    plain = AutoModel.from_pretrained(tmp_path / "release")
    head = 16 * 16 + 16 + 16 + 16 + 60  # dense, layer norm and the bias of the output table
    pooler = 16 * 16 + 16
    assert record == ExportRecord(
        format="xlm-roberta",
        architecture="XLMRobertaForMaskedLM",
        num_parameters=plain.num_parameters() - pooler + head,
        dtype="bfloat16",
        layer=None,
        pooling=None,
        normalize=False,
        source="checkpoint-20",
        source_revision=None,
        source_sha256=file_sha256(checkpoint / "model.safetensors"),
        new=(),
        files=tuple(sorted(PLAIN_FILES)),
    )
    assert read_record(tmp_path / "release") == record
    assert json.loads((tmp_path / "release" / RELEASE_FILE).read_text()) == {
        **asdict(record),
        "new": [],
        "files": list(record.files),
    }


def test_hash_of_a_sharded_source_is_of_all_its_shards_and_of_nothing_else(tmp_path: Path) -> None:
    whole = save_checkpoint(tmp_path / "whole", "ForPreTraining")
    export(whole, tmp_path / "sharded", max_shard_size="10KB")
    record = export(tmp_path / "sharded", tmp_path / "first")
    save_file({"queue": torch.zeros(2)}, tmp_path / "sharded" / "momentum_state.safetensors")
    assert export(tmp_path / "sharded", tmp_path / "second").source_sha256 == record.source_sha256
    name = "roberta.encoder.layer.0.output.dense.bias"
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    tampered(tmp_path / "sharded" / index["weight_map"][name], name, lambda value: value + 1)
    assert export(tmp_path / "sharded", tmp_path / "third").source_sha256 != record.source_sha256


@pytest.mark.parametrize("content", [None, "{", "[]", '{"format": "onnx"}', '{"new": 1, "files": 2}'])
def test_what_is_no_release_has_no_record(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / RELEASE_FILE).write_text(content)
    assert read_record(tmp_path) is None


# ---------------------------------------------------------------------------- weights


def test_a_release_may_have_another_type_and_several_files(tmp_path: Path) -> None:
    """From one file to several and from half precision to single, in both classes."""
    half = save_checkpoint(
        tmp_path / "half", "ForPreTraining", dtype=torch.bfloat16, max_position_embeddings=42
    )
    trained = load_file(half / "model.safetensors")
    for form, model_class in (("xlm-roberta", XLMRobertaForMaskedLM), ("infoxlm", InfoXLMForPreTraining)):
        export(half, tmp_path / form, format=form, max_shard_size="10KB")
        shards = sorted((tmp_path / form).glob("*.safetensors"))
        assert len(shards) > 2 and not (tmp_path / form / "model.safetensors").exists()
        assert max(shard.stat().st_size for shard in shards) < 12_000  # with the header
        found = model_class.from_pretrained(tmp_path / form).state_dict()
        assert {value.dtype for value in found.values()} == {torch.float32}
        assert all(torch.equal(found[name], trained[name].float()) for name in found.keys() & trained.keys())


def test_plain_masked_language_model_gets_a_projection_and_nothing_else_new(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    export(save_checkpoint(tmp_path / "ours", "ForPreTraining", **DEPTH_OF_BASE), plain)
    weights = []
    for seed, name in enumerate(("first", "second")):
        set_seed(seed)
        record = export(plain, tmp_path / name, format="infoxlm")
        assert (record.new, record.architecture) == ((PROJECTION,), "InfoXLMForPreTraining")
        weights.append(load_file(tmp_path / name / "model.safetensors")[PROJECTION])
    assert torch.equal(*weights) and weights[0].std() > 0.01
    tampered(plain / "model.safetensors", "lm_head.bias", None)
    with pytest.raises(UsageError, match="missing lm_head.bias, lm_head.decoder.bias; unexpected none"):
        export(plain, tmp_path / "release", format="infoxlm")


def test_heads_without_a_place_are_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours = save_checkpoint(tmp_path / "ours", "ForPreTraining")
    weights = load_file(ours / "model.safetensors")
    extra = {"objectives.ranking.scale": torch.ones(2)}  # of an objective from outside the package
    save_file({**weights, **extra}, ours / "model.safetensors", metadata={"format": "pt"})
    export(ours, tmp_path / "plain")
    assert "left out are objectives.ranking.scale, which" in caplog.text
    configure(tmp_path / "plain", architectures=["XLMRobertaModel"])
    assert export(tmp_path / "plain", tmp_path / "release").architecture == "XLMRobertaModel"
    assert "left out are lm_head.bias, " in caplog.text
    names = load_file(tmp_path / "release" / "model.safetensors").keys()
    assert not any(part in name for name in names for part in ("lm_head", "pooler", "objectives"))


def configure(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


# ---------------------------------------------------------------------------- sources that cannot be used


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        # A tensor that is missing: random weights are never released.
        ("ForPreTraining", PROJECTION, f"of a InfoXLMForPreTraining: missing {PROJECTION}; unexp"),
        ("ForMaskedLM", "lm_head.dense.weight", "missing lm_head.dense.weight; unexpected none"),
        ("ForSequenceClassification", "classifier.out_proj.weight", "missing classifier.out_proj.weight"),
        ("ForMultipleChoice", "roberta.pooler.dense.weight", "missing roberta.pooler.dense.weight"),
        ("Model", "encoder.layer.2.output.dense.bias", "InfoXLMModel: missing encoder.layer.2.output.dense"),
        # Another configuration.
        ("ForMaskedLM", {"model_type": "bert"}, "is of model type 'bert'; expected one of xlm-roberta, info"),
        ("ForMaskedLM", {"architectures": None}, r"names the architectures \[\]; expected one of XLMRober"),
        ("ForMaskedLM", {"architectures": ["XLMRobertaForCausalLM"]}, r"ForCausalLM'\]; expected one of"),
        ("ForMaskedLM", {"hidden_size": 18}, "cannot be loaded: .*size"),
        # Released as the encoder alone, the trained classifier would be lost in silence.
        (
            "ForSequenceClassification",
            {"architectures": ["XLMRobertaModel"]},
            "unexpected classifier.dense.b",
        ),
    ],
)
def test_weights_of_another_architecture(
    tmp_path: Path, name: str, change: dict[str, Any] | str, message: str
) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", name)
    if isinstance(change, str):
        tampered(checkpoint / "model.safetensors", change, None)
    else:
        configure(checkpoint, **change)
    for form in ("xlm-roberta", "infoxlm"):
        with pytest.raises(UsageError, match=message):
            export(checkpoint, tmp_path / "release", format=form)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_source_in_torchs_own_format_without_a_tokenizer_or_with_another(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", "ForMaskedLM", with_tokenizer=False)
    state = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    torch.save(state, checkpoint / "pytorch_model.bin")
    record = export(checkpoint, tmp_path / "release")
    assert record.source_sha256 == file_sha256(checkpoint / "pytorch_model.bin")
    assert set(record.files) == PLAIN_FILES - TOKENIZER
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["one more"])
    tokenizer.save_pretrained(checkpoint)
    with pytest.raises(UsageError, match=r"has 61 tokens, the model's table 60; put the tokenizer that"):
        export(checkpoint, tmp_path / "other")


def test_source_on_the_hub_is_named_by_its_commit(hub: LoopbackHub, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", "ForMaskedLM", with_tokenizer=False)
    api = hub.client()
    api.create_repo("org/model", private=True)
    commit = api.upload_folder(repo_id="org/model", folder_path=checkpoint).oid
    api.delete_file("model.safetensors", "org/model")
    environment = {**hub.environment(tmp_path / "home"), "PYTHONPATH": os.pathsep.join(sys.path)}
    for revision, status, folder in ((commit, 0, "release"), ("main", 2, "never")):
        command = ["export", "org/model", "--model_revision", revision, "--output_dir", folder]
        result = subprocess.run(
            [sys.executable, "-m", "modeling_infoxlm.cli", *command],
            capture_output=True,
            text=True,
            timeout=120,
            env=environment,
            cwd=tmp_path,
        )
        assert result.returncode == status, result.stderr
        assert hub.token not in result.stdout + result.stderr
    assert "error: org/model cannot be loaded: " in result.stderr
    record = read_record(tmp_path / "release")
    assert record is not None
    assert (record.source, record.source_revision, record.source_sha256) == ("org/model", commit, None)
    assert not (tmp_path / "never").exists()


# ---------------------------------------------------------------------------- the folder of the release


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "checkpoint", "ForMaskedLM")


def test_release_replaces_an_older_one_or_an_empty_folder(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "release").mkdir()
    export(checkpoint, tmp_path / "release", format="infoxlm", max_shard_size="10KB")
    export(checkpoint, tmp_path / "release", dtype="float16")
    assert set(contents(tmp_path / "release")) == PLAIN_FILES
    assert set(export(checkpoint, tmp_path / "a" / "b").files) == PLAIN_FILES  # missing parents are made
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "checkpoint", "release"]
    with pytest.raises(UsageError, match="would replace its own source"):
        export(tmp_path / "release", tmp_path / "release", dtype="float16")


def test_folder_with_anything_else_is_not_touched(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "notes.txt").write_text("keep me")
    with pytest.raises(UsageError, match="work holds no release.json, so this command did not write it"):
        export(checkpoint, tmp_path / "work")
    export(checkpoint, tmp_path / "release")
    (tmp_path / "release" / "README.md").write_text("by hand")
    before = contents(tmp_path / "release")
    with pytest.raises(UsageError, match="release holds README.md, .* which would be lost"):
        export(checkpoint, tmp_path / "release", dtype="float16")
    assert contents(tmp_path / "release") == before
    with pytest.raises(UsageError, match="notes.txt exists and is not a folder"):
        export(checkpoint, tmp_path / "work" / "notes.txt")
    assert contents(tmp_path / "work") == {"notes.txt": b"keep me"}


def test_full_disk_leaves_what_was_there(checkpoint: Path, tmp_path: Path) -> None:
    """Each format is written by a library of its own, which says so in its own words."""
    export(checkpoint, tmp_path / "release")
    before = contents(tmp_path / "release")
    for form in ("xlm-roberta", "infoxlm", "sentence-transformers"):
        for folder in ("release", "another"):
            message = f"{folder} cannot be written: its disk"
            with file_size_limit(20_000), pytest.raises(DiskFullError, match=message):
                export(checkpoint, tmp_path / folder, format=form)
    assert contents(tmp_path / "release") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "release"]


# ---------------------------------------------------------------------------- options and the command


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "pytorch"}, "format must be one of xlm-roberta, .*, onnx, found 'pytorch'"),
        ({"dtype": "int4"}, "dtype must be one of float32, bfloat16, float16, found 'int4'"),
        ({"format": "onnx", "dtype": "float16"}, "onnx is written in float32, found dtype float16"),
        ({"max_shard_size": "0MB"}, "max_shard_size must be a number and KB, MB, GB or TB, found '0MB'"),
        ({"layer": 0}, "layer is for the format sentence-transformers and onnx, not for xlm-roberta"),
        ({"pooling": "cls", "format": "onnx"}, "pooling is for the format sentence-transformers, not for on"),
        ({"normalize": True}, "normalize is for the format sentence-transformers, not for xlm-roberta"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        export(tmp_path / "checkpoint", tmp_path / "release", **options)
    assert not list(tmp_path.iterdir())


def test_command_without_a_model_or_with_one_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="infoxlm export needs a model: infoxlm export out/checkpoint-500"):
        export_command([])
    with pytest.raises(UsageError, match="there is no folder ./nowhere; give a checkpoint such as out/"):
        export_command(["./nowhere", "--output_dir", str(tmp_path / "release")])
    assert not list(tmp_path.iterdir())
    assert "secret" not in repr(export_module.ExportArguments(token="secret"))


def test_command_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", "ForMaskedLM", **DEPTH_OF_BASE)
    plain, code, vectors = tmp_path / "plain", tmp_path / "code", tmp_path / "vectors"
    export_command([str(checkpoint), "--output_dir", str(plain), "--max_shard_size", "10KB"])
    assert len(list(plain.glob("model-*.safetensors"))) > 2
    where = ["--model_name_or_path", str(plain), "--output_dir"]
    export_command([*where, str(code), *"--format infoxlm --dtype float16".split()])
    record = read_record(code)
    assert record is not None and (record.source, record.dtype) == ("plain", "float16")
    options = "--format sentence-transformers --layer 1 --pooling cls --normalize true".split()
    export_command([*where, str(vectors), *options])
    record = read_record(vectors)
    assert record is not None and (record.layer, record.pooling, record.normalize) == (1, "cls", True)
    assert capsys.readouterr().out.splitlines() == [
        f"{plain}: plain XLM-R; AutoModel.from_pretrained loads it without this package.",
        f"{code}: InfoXLM with its code; AutoModel.from_pretrained loads it with this package, or without it "
        f"by trust_remote_code=True. New and random: {PROJECTION}.",
        f"{vectors}: cls of 1 layers; SentenceTransformer('{vectors}') loads it without this package.",
    ]
