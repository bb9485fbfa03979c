"""No token is written down or shown, and no other word is taken for one."""

import json
from pathlib import Path

import pytest

from modeling_infoxlm.runs.files import write_json
from modeling_infoxlm.runs.provenance import describe_program
from modeling_infoxlm.runs.secrets import blot_secrets

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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"bad answer for Bearer {TOKEN}.", "bad answer for Bearer <token>."),
        (f"'{TOKEN}'", "'<token>'"),
        ("api_org_AbCdEfGhIjKlMn", "<token>"),
        ("https://me:pa:s@s@hub.org/x", "https://<token>@hub.org/x"),
        ("GET /x?a=1&token=s3cret&b=2", "GET /x?a=1&token=<token>&b=2"),
        ("https://hub.org/x?X-Amz-Signature=0a1b", "https://hub.org/x?X-Amz-Signature=<token>"),
        ("{'Authorization': 'Basic bWU6cGFzcw=='}", "{'Authorization': 'Basic <token>'}"),
        ("authorization: s3cret", "authorization: <token>"),
        ("with Basic bWU6cGFzc3dvcmQ= failed", "with Basic <token> failed"),
        ("Bearer eyJhbGciOiJI.eyJzdWIi", "Bearer <token>"),
        ("HF_TOKEN=s3cret python", "HF_TOKEN=<token> python"),
        ("of the environment: plain words", "of the environment: <token>"),
    ],
)
def test_secrets_are_blotted_out_of_texts(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "plain words")
    assert blot_secrets(text) == shown == blot_secrets(shown)
    quoted = json.dumps({"x": f'say "{text}"', "y": json.dumps({"z": text})})
    assert "s3cret" not in blot_secrets(quoted) and json.loads(blot_secrets(quoted)).keys() == {"x", "y"}


@pytest.mark.parametrize(
    "text",
    [
        "https://hub.org:443/a?b=c#d and org/name@main, me@home.org",
        "the bearer responsibilities; Basic JavaScript; a basic understanding",
        "--max_tokens=3 mask_token=<mask> tokenizer=mine {'token': null}",
        "by hf_hub_download, hf_transfer or hf_raise_for_status, in hf_checkpoints",
    ],
)
def test_words_are_no_secrets(text: str) -> None:
    assert blot_secrets(text) == text


def test_files_hold_no_secret(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "a.json", {TOKEN: [f"https://me:pass@hub.org/{TOKEN}"]})
    assert json.loads((tmp_path / "new" / "a.json").read_text()) == {
        "<token>": ["https://<token>@hub.org/<token>"]
    }
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]
