"""Provenance: no secret is written down, and hashes are of the weights alone."""

import hashlib
from pathlib import Path

import pytest

from modeling_infoxlm.provenance import blot_secrets, describe_program, hash_weights

TOKEN = "hf_" + "x" * 30


@pytest.mark.parametrize(
    ("given", "written"),
    [
        (["--token", "secret", "--seed", "1"], ["--token", "<token>", "--seed", "1"]),
        (["--hub_token=secret"], ["--hub_token=<token>"]),
        (["--hub-token", "secret"], ["--hub-token", "<token>"]),
        (["--push_to_hub_token", TOKEN], ["--push_to_hub_token", "<token>"]),
        (["--name", f"x{TOKEN}"], ["--name", "x<token>"]),
        (
            ["--tokenizer_name", "mine", "--max_tokens", "3"],
            ["--tokenizer_name", "mine", "--max_tokens", "3"],
        ),
    ],
)
def test_commands_are_written_without_secrets(given: list[str], written: list[str]) -> None:
    assert describe_program(given)["command"] == written


def test_secrets_are_blotted_out_of_texts() -> None:
    assert blot_secrets(f"bad answer for Bearer {TOKEN}.") == "bad answer for Bearer <token>"


def test_the_hash_is_of_the_weights_alone(tmp_path: Path) -> None:
    assert hash_weights(tmp_path) is None
    (tmp_path / "model.safetensors").write_bytes(b"one")
    (tmp_path / "optimizer.safetensors").write_bytes(b"state")
    assert hash_weights(tmp_path) == hashlib.sha256(b"one").hexdigest()
    (tmp_path / "model.safetensors").unlink()
    for number in (1, 2):
        (tmp_path / f"model-0000{number}-of-00002.safetensors").write_bytes(str(number).encode())
    parts = "".join(hashlib.sha256(text).hexdigest() for text in (b"1", b"2"))
    assert hash_weights(tmp_path) == hashlib.sha256(parts.encode()).hexdigest()
