"""Checkpoints of the released code: the model computes what fairseq's formulas give, or nothing is left."""

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from reference.fairseq_encoder import Reference
from safetensors.torch import load_file
from tiny_fairseq import (
    CONTRAST_LAYER,
    HEADS,
    HIDDEN,
    LAYERS,
    QUEUE,
    VOCAB,
    Trap,
    encoder_tensors,
    flags,
    half,
    released_tensors,
    write_checkpoint,
    write_dictionary,
)
from tiny_tokenizers import word_tokenizer
from torch import Tensor
from transformers import AutoTokenizer

from modeling_infoxlm import InfoXLMForPreTraining
from modeling_infoxlm.fairseq.checkpoint import ConvertArguments, convert_fairseq, convert_fairseq_command
from modeling_infoxlm.key_queue import KeyQueue
from modeling_infoxlm.momentum import MomentumEncoder
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.process import USAGE, run_main

# The last sentence is shorter: its padding must change nothing.
TOKENS = torch.tensor([[0, 7, 23, 41, 12, 2], [0, 33, 5, 18, 51, 2], [0, 55, 9, 2, 1, 1]])
REAL = TOKENS != 1


def convert(tmp_path: Path, tensors: dict[str, Tensor], args: Any = None, **options: Any) -> Path:
    checkpoint = write_checkpoint(tmp_path / "model.pt", tensors, args)
    convert_fairseq(ConvertArguments(str(checkpoint), str(tmp_path / "model"), **options))
    return tmp_path / "model"


def load(folder: Path) -> InfoXLMForPreTraining:
    model, report = InfoXLMForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    return model.eval()


@torch.no_grad()
def assert_computes(model: InfoXLMForPreTraining, reference: Reference) -> list[Tensor]:
    """Compare hidden states of every layer and logits, in float64; returns the reference's states."""
    model.double()  # 12 layers of rounding in float32 come to 1e-5
    expected = reference.hidden_states(TOKENS)
    found = model.roberta(TOKENS, REAL.long(), output_hidden_states=True).hidden_states
    assert len(found) == LAYERS + 1
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours[REAL], theirs[REAL], rtol=0, atol=1e-9)
    logits = model.lm_head(found[-1])[REAL]
    torch.testing.assert_close(logits, reference.logits(expected[-1])[REAL], rtol=0, atol=1e-9)
    assert logits.std() > 0.5 and found[CONTRAST_LAYER][:, 0].std() > 0.1
    return expected


# --- values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fused", "in_half", "use"),
    [(True, True, "fast"), (True, False, "slow"), (False, True, "slow"), (False, False, "fast")],
)
def test_the_model_computes_what_fairseq_does(tmp_path: Path, fused: bool, in_half: bool, use: str) -> None:
    tensors = released_tensors(fused=fused)
    tensors = half(tensors) if in_half else tensors
    folder = convert(tmp_path, tensors, use=use)
    model = load(folder)
    assert {value.dtype for value in load_file(folder / "model.safetensors").values()} == {torch.float32}
    states = assert_computes(model, Reference(tensors, f"model_{use}.decoder."))
    expected = states[CONTRAST_LAYER][:, 0] @ tensors[f"proj_matrix_{use}"][0].double()
    with torch.no_grad():
        hidden = model.roberta(TOKENS, REAL.long(), output_hidden_states=True).hidden_states
        projected = model.objectives["xlco"].project(hidden[model.xlco_layer][:, 0])
    torch.testing.assert_close(projected, expected, rtol=0, atol=1e-9)


def test_momentum_encoder_and_queue_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    tensors = half(released_tensors(enqueued=7))
    folder = convert(tmp_path, tensors)
    model, state = load(folder), load_file(folder / "momentum_state.safetensors")
    assert {value.dtype for name, value in state.items() if name.startswith("momentum.")} == {torch.float32}
    encoder, queue = MomentumEncoder(model), KeyQueue(QUEUE, HIDDEN)
    before = encoder.projection.weight.clone()
    for part, reader in (("momentum.", encoder), ("queue.", queue)):
        own = {name.removeprefix(part): state[name] for name in state if name.startswith(part)}
        reader.load_state_dict(own)
    assert not torch.equal(encoder.projection.weight, before)
    keys = encoder.encode({"input_ids": TOKENS[REAL], "lengths": REAL.sum(dim=1).tolist()})
    slow = Reference(tensors, "model_slow.decoder.").hidden_states(TOKENS)[CONTRAST_LAYER][:, 0]
    expected = slow @ tensors["proj_matrix_slow"][0].double()
    torch.testing.assert_close(keys.double(), expected, rtol=0, atol=1e-5)
    assert (queue.cursor, queue.num_filled) == (7, 7)
    assert torch.equal(queue.negatives(), tensors["queue"][:7].float())
    assert not queue.keys[7:].any()  # random numbers in the released code


def test_without_projection_the_vectors_are_contrasted_as_they_are(tmp_path: Path) -> None:
    tensors = released_tensors(projection=False, enqueued=2 * QUEUE + 3)
    folder = convert(tmp_path, tensors, flags(use_proj=False, xlco_layer=5), dtype="bfloat16")
    assert {value.dtype for value in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    state = load_file(folder / "momentum_state.safetensors")
    assert torch.equal(state["queue.keys"], tensors["queue"])  # in fp32, and it went round
    assert (int(state["queue.cursor"]), int(state["queue.num_filled"])) == (3, QUEUE)
    config = load(folder).config
    shape = (config.num_hidden_layers, config.num_attention_heads, config.max_position_embeddings)
    assert shape == (LAYERS, HEADS, 34)
    assert (config.xlco_layer, config.xlco_temperature, config.xlco_use_projection) == (5, 0.2, False)
    assert (config.hidden_dropout_prob, config.pad_token_id, config.vocab_size) == (0.0, 1, VOCAB)


@pytest.mark.parametrize("start", ["decoder.", "encoder."])
def test_a_single_roberta_has_neither_projection_nor_momentum_state(tmp_path: Path, start: str) -> None:
    tensors = encoder_tensors(4, fused=False, start=start)
    named = {name.replace("emb_layer_norm", "layernorm_embedding"): value for name, value in tensors.items()}
    folder = convert(tmp_path, named if start == "encoder." else tensors, flags(use_proj=False))
    assert not (folder / "momentum_state.safetensors").exists()
    assert load(folder).config.xlco_use_projection is False
    assert_computes(load(folder), Reference(tensors, start))
    shutil.rmtree(folder)
    assert "no momentum copy" in refuse(tmp_path, tmp_path / "model.pt", use="slow")


# --- configuration and record -------------------------------------------------------------------------------


def test_what_was_converted_left_out_and_assumed_is_said(tmp_path: Path) -> None:
    tensors = released_tensors()
    folder = convert(tmp_path, {**tensors, "q_linear.weight": torch.zeros(2)}, ignore_unknown=True)
    record = json.loads((folder / "conversion.json").read_text())
    assert record["source"]["file"] == "model.pt" and len(record["source"]["sha256"]) == 64
    assert record["num_tensors"] == 1 + sum(name.startswith("model_fast.") for name in tensors)
    left_out = record["left_out"]
    assert left_out["entries"] == ["extra_state", "last_optimizer_state", "optimizer_history"]
    assert left_out["unknown_tensors"] == ["q_linear.weight"]
    names = set(left_out["tensors"])
    assert {"model_slow.lm_head.bias", "model_slow.layers.8.fc1.weight"} <= names
    assert "model_slow.layers.7.fc1.weight" not in names
    assert record["settings"]["xlco_momentum"] == "constant,0.9999"
    assert "data" not in record["settings"]  # a path of someone's machine
    path = tmp_path / "model.pt"
    torch.save({"model": tensors}, path)
    lines = convert_fairseq(ConvertArguments(str(path), str(folder), overwrite_output_dir=True))
    assert any("encoder_attention_heads is not stored: 1 of 64 values are assumed" in line for line in lines)
    config = load(folder).config
    assert (config.num_attention_heads, config.xlco_layer) == (1, CONTRAST_LAYER)


# --- files that are not safe or not whole -------------------------------------------------------------------


ZIPPED = pytest.mark.parametrize("zipped", [True, False], ids=["zipped", "older"])


def save(content: dict[str, Any], path: Path, *, zipped: bool) -> Path:
    """In one of torch's two layouts."""
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def refuse(tmp_path: Path, checkpoint: Path, **options: Any) -> str:
    """The one line of a refusal that leaves nothing behind."""
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    with pytest.raises(UsageError) as caught:
        convert_fairseq(ConvertArguments(str(checkpoint), str(tmp_path / "model"), **options))
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


@ZIPPED
def test_a_callable_in_the_file_is_named_and_never_called(tmp_path: Path, zipped: bool) -> None:
    trap = tmp_path / "was_run"
    for where in ("args", "extra_state", "model"):
        content = {"args": flags(), "model": released_tensors(), where: Trap(trap)}
        message = refuse(tmp_path, save(content, tmp_path / "model.pt", zipped=zipped))
        assert not trap.exists()
        assert "mkdir" in message and "Nothing in it was run" in message


@ZIPPED
def test_meters_are_read_past(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool) -> None:
    """fairseq's Trainer stores objects of its own in every checkpoint, in torch's older layout."""
    module = ModuleType("fairseq.meters")
    meters = {name: type(name, (), {"__module__": module.__name__}) for name in ("AverageMeter", "TimeMeter")}
    vars(module).update(meters)
    objects = {name: kind() for name, kind in meters.items()}
    objects["AverageMeter"].avg = 3.5
    tensors = half(released_tensors())
    content = {"args": flags(), "model": tensors, "extra_state": {"train_meters": objects}}
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "fairseq", ModuleType("fairseq"))
        patch.setitem(sys.modules, "fairseq.meters", module)
        save(content, tmp_path / "model.pt", zipped=zipped)
    convert_fairseq(ConvertArguments(str(tmp_path / "model.pt"), str(tmp_path / "model")))
    assert_computes(load(tmp_path / "model"), Reference(tensors, "model_fast.decoder."))


@ZIPPED
def test_a_file_that_was_cut_short_is_refused(tmp_path: Path, zipped: bool) -> None:
    whole = save({"model": released_tensors()}, tmp_path / "model.pt", zipped=zipped)
    content = whole.read_bytes()
    for share in (0.0, 0.001, 0.3, 0.99):
        whole.write_bytes(content[: int(share * len(content))])
        expected = "cut short, damaged or of another kind" if share else "is empty"
        assert expected in refuse(tmp_path, whole)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    assert "is not a file" in refuse(tmp_path, path)
    contents: dict[str, dict[str, Any]] = {
        "entry `model`": released_tensors(),
        "'queue' of `model` is no tensor": {"model": {"queue": 3}},
        "found a dict": {"model": {}, "args": {"a": 1}},
    }
    for message, content in contents.items():
        torch.save(content, path)
        assert message in refuse(tmp_path, path)


FAST, SLOW = "model_fast.decoder.", "model_slow.decoder."
FAST_LAYERS, SLOW_LAYERS = (f"{part}sentence_encoder.layers." for part in (FAST, SLOW))
PROJECTIONS = f"{FAST_LAYERS}3.self_attn.in_proj_weight"
# Tensors that are changed, or taken away with all whose names begin so, and words of the refusal.
DAMAGES: list[tuple[str, Tensor | None, str]] = [
    (f"{FAST_LAYERS}3.fc2.weight", torch.zeros(HIDDEN, 7), "layers.3.fc2.weight of model_fast is (24, 7)"),
    (f"{FAST}lm_head.bias", torch.zeros(VOCAB).long(), "lm_head.bias of model_fast is (60,) torch.int64"),
    (PROJECTIONS, torch.zeros(2 * HIDDEN, HIDDEN), "expected (24, 24) floating"),
    (f"{SLOW_LAYERS}3.self_attn.k_proj.bias", torch.zeros(HIDDEN), "layers.3.self_attn.k_proj.bias twice"),
    (f"{SLOW_LAYERS}0.fc1.bias", None, "model_slow has no layers.0.fc1.bias"),
    (f"{FAST_LAYERS}5.", None, "are not numbered from 0"),
    (f"{SLOW_LAYERS}12.fc1.bias", torch.zeros(96), f"belong to no encoder known here: {SLOW_LAYERS}12.fc1"),
    (f"{FAST}sentence_encoder.embed_tokens.weight", None, "missing: embed_tokens.weight"),
    (f"{FAST}lm_head.weight", torch.ones(VOCAB, HIDDEN), "is not its word embeddings"),
    ("\x1b[2Jx", torch.zeros(2), r"\x1b[2Jx"),  # which a terminal would act on
    ("proj_matrix_slow", None, "projection of model_fast alone"),
    ("queue", None, "has no queue, queue_ptr;"),
    ("queue", torch.full((QUEUE, HIDDEN), torch.inf), "keys that are not finite"),
    ("queue_ptr", torch.tensor([QUEUE]), "do not fit a queue of 10"),
    ("enqueue_cnt", torch.tensor([1, 2]), "expected one whole number"),
    # Terabytes in four bytes, and none.
    ("queue", torch.zeros(1).expand(10**6, 10**6), "plain dense tensor"),
    ("queue", torch.zeros(QUEUE, HIDDEN, device="meta"), "plain dense tensor"),
]


@pytest.mark.parametrize(("name", "value", "expected"), DAMAGES, ids=[words for *_, words in DAMAGES])
def test_tensors_that_do_not_fit_are_refused(
    tmp_path: Path, name: str, value: Tensor | None, expected: str
) -> None:
    tensors = released_tensors()
    if value is None:
        tensors = {other: tensors[other] for other in tensors if not other.startswith(name)}
    else:
        tensors[name] = value
    assert expected in refuse(tmp_path, write_checkpoint(tmp_path / "model.pt", tensors))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"encoder_layers": 6}, "encoder_layers 6, its tensors 12"),
        ({"max_positions": 512}, "max_positions 512, its tensors 32"),
        ({"activation_fn": "relu"}, "only gelu"),
        ({"encoder_attention_heads": 5}, "5 attention heads do not divide"),
        ({"encoder_attention_heads": "12"}, "'12' attention heads"),
        ({"xlco_layer": 13}, "the layer of the contrast is 13; give --xlco_layer, from 1 to 12"),
        ({"xlco_softmax_tau": 0}, "xlco_softmax_tau is 0"),
        ({"dropout": float("nan")}, "dropout is nan"),
        ({"use_proj": True}, "no proj_matrix_fast"),
    ],
)
def test_flags_that_do_not_fit_are_refused(tmp_path: Path, changed: dict[str, Any], expected: str) -> None:
    tensors = released_tensors(projection="use_proj" not in changed)
    path = write_checkpoint(tmp_path / "model.pt", tensors, flags(**changed))
    assert expected in refuse(tmp_path, path)


# --- vocabulary ---------------------------------------------------------------------------------------------


def test_a_dictionary_in_the_tokenizer_s_order_passes(tmp_path: Path) -> None:
    dictionary = write_dictionary(tmp_path / "dict.txt")
    word_tokenizer(mask=True).save_pretrained(tokenizer := tmp_path / "tokenizer")
    folder = convert(tmp_path, released_tensors(), dict=str(dictionary), tokenizer_name=str(tokenizer))
    assert AutoTokenizer.from_pretrained(folder).mask_token_id == VOCAB - 1
    assert json.loads((folder / "conversion.json").read_text())["notes"] == []
    write_dictionary(dictionary, [f"w{i}" for i in range(4, 55)])
    options = {"dict": str(dictionary), "overwrite_output_dir": True}
    lines = convert_fairseq(ConvertArguments(str(tmp_path / "model.pt"), str(folder), **options))
    assert any("4 rows of the embeddings are padding" in line for line in lines)
    options["tokenizer_name"] = str(tmp_path)
    assert f"the tokenizer of {tmp_path} cannot be loaded" in refuse(
        tmp_path, tmp_path / "model.pt", **options
    )


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([4, 5, 7, 6, *range(8, 59)], "id 6 is 'w7' in the dictionary (60 symbols) but 'w6' in tokenizer"),
        ([*range(4, 58)], "id 58 is '<mask>' in the dictionary (59 symbols) but 'w58' in tokenizer"),
        ([*range(4, 60)], "61 ids with <mask>"),
        ([4, 5, 5], "line 3: 'w5' comes twice"),
        (b"w4\n", "expected PIECE COUNT"),
        (b"w4 many\n", "expected PIECE COUNT"),
        (b"\xff 1\n", "not valid UTF-8 at byte 0"),
    ],
)
def test_a_dictionary_in_another_order_or_unreadable_is_refused(
    tmp_path: Path, pieces: list[int] | bytes, expected: str
) -> None:
    dictionary = tmp_path / "dict.txt"
    if isinstance(pieces, bytes):
        dictionary.write_bytes(pieces)
    else:
        write_dictionary(dictionary, [f"w{i}" for i in pieces])
    word_tokenizer(mask=True).save_pretrained(tokenizer := tmp_path / "tokenizer")
    path = write_checkpoint(tmp_path / "model.pt", released_tensors())
    assert expected in refuse(tmp_path, path, dict=str(dictionary), tokenizer_name=str(tokenizer))


# --- the command --------------------------------------------------------------------------------------------


def test_command_replaces_an_earlier_conversion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, folder = write_checkpoint(tmp_path / "model.pt", released_tensors()), tmp_path / "model"
    assert run_main(convert_fairseq_command, [str(path), str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "12 layers of 24" in printed and "with projection; contrast at layer 8, temperature 0.2" in printed
    assert "queue of 10 keys, 7 of them filled" in printed
    assert "left out, entries (3): extra_state, last_optimizer_state, optimizer_history" in printed
    assert "is not empty" in refuse(tmp_path, path)
    first = (folder / "model.safetensors").read_bytes()
    convert(tmp_path, released_tensors(), use="slow", overwrite_output_dir=True)
    assert (folder / "model.safetensors").read_bytes() != first
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model", "model.pt"]
    (folder / "conversion.json").unlink()
    assert "did not write it" in refuse(tmp_path, path, overwrite_output_dir=True)
    path.write_bytes(b"no checkpoint")
    capsys.readouterr()
    assert run_main(convert_fairseq_command, [str(path), str(tmp_path / "other")]) == USAGE
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert run_main(convert_fairseq_command, [str(path)]) == USAGE
    assert not (tmp_path / "other").exists()
