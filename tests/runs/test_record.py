"""The record of a run, and the guard that keeps two runs from sharing a folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from modeling_infoxlm.data.prepare import remove_prepared
from modeling_infoxlm.runs.provenance import PACKAGES
from modeling_infoxlm.runs.record import OutputFolderError, Run, open_run, run_identity

IDENTITY = {"seed": 1, "xlco_layer": 8, "bitext_files": ["a.tsv"], "queue_size": 64, "optim": "adamw"}
IDENTITY |= {"prepared_data": None}


def open_(folder: Path, identity: dict[str, Any] = IDENTITY, **options: Any) -> Run:
    return open_run(folder, identity, **{"argv": [], "remove_corpus": remove_prepared, **options})


def write_trained(folder: Path, identity: dict[str, Any] = IDENTITY, steps: tuple[int, ...] = (5,)) -> None:
    """A folder whose run has got as far as a checkpoint."""
    Run(folder, identity, []).write_record()
    for step in steps:
        (folder / f"checkpoint-{step}").mkdir()
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")


def record(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return content


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@dataclass
class Settings:
    layer: int = 8
    token: str | None = None
    cache_dir: str | None = None


def test_the_identity_is_all_that_is_computed_and_no_secret() -> None:
    args = SimpleNamespace(seed=3, logging_steps=5)
    found = run_identity(
        Settings(token="hf_x", cache_dir="c"), args=args, computed=["seed"], files={"a": "1"}
    )
    assert found == {"layer": 8, "files": {"a": "1"}, "seed": 3}


# ---------------------------------------------------------------------------- this run


def test_a_new_run_begins_goes_on_and_is_finished(tmp_path: Path) -> None:
    """Tuples and paths are read back as something else; they must still compare equal."""
    identity, out = {**IDENTITY, "columns": (0, 1), "path": tmp_path}, tmp_path / "out"
    assert open_(out, identity, writes=False) == Run(out, identity, []) and not out.exists()
    assert open_(out, identity).checkpoint is None and record(out)["identity"]["columns"] == [0, 1]
    write_trained(out, identity, steps=(5, 20, 100))
    run = open_(out, identity)
    assert (run.checkpoint, run.resumed_at_step) == (str(out / "checkpoint-100"), 100) and not run.finished
    run.write_record(finished=True)
    assert open_(out, identity).finished
    with pytest.raises(OutputFolderError, match="holds a different run: seed was 1, is now 99"):
        open_(out, {**identity, "seed": 99})


def test_record_says_what_ran_and_with_what_and_is_kept_when_it_goes_on(tmp_path: Path) -> None:
    write_trained(tmp_path)
    Run(tmp_path, IDENTITY, ["--seed", "1", "--hub_token", "secret"]).write_record(corpus={"pairs": 3})
    found = record(tmp_path)
    assert found["command"] == ["--seed", "1", "--hub_token", "<token>"]
    assert found["identity"] == IDENTITY and found["corpus"] == {"pairs": 3}
    assert set(found["versions"]) == set(PACKAGES) and all(found["versions"].values())
    open_(tmp_path)
    assert record(tmp_path)["corpus"] == {"pairs": 3}
    run = open_(tmp_path, overwrite=True, writes=False)  # only the process that writes overwrites
    assert run.checkpoint == str(tmp_path / "checkpoint-5")


def test_a_run_that_has_trained_nothing_may_be_mended(tmp_path: Path) -> None:
    open_(tmp_path)
    (tmp_path / "tokenizer").mkdir()
    assert open_(tmp_path, {**IDENTITY, "xlco_layer": 4}).checkpoint is None
    assert (tmp_path / "tokenizer").is_dir() and record(tmp_path)["identity"]["xlco_layer"] == 4
    open_(tmp_path, {**IDENTITY, "tokenizer_vocab_size": 5})
    assert not (tmp_path / "tokenizer").exists()


def test_a_kill_while_the_record_is_written_leaves_the_folder_to_its_run(tmp_path: Path) -> None:
    for name in ("run.json.partial", "run.json.0123abcd.partial"):
        (tmp_path / name).write_text('{"identi')
    open_(tmp_path)
    assert names(tmp_path) == ["run.json"]
    (tmp_path / "run.json").rename(tmp_path / "run.json.partial")
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(OutputFolderError, match="holds no run.json"):
        open_(tmp_path)


# ---------------------------------------------------------------------------- another run


def test_another_run_is_refused_with_names_and_both_values(tmp_path: Path) -> None:
    write_trained(tmp_path)
    many = {"xlco_layer": 4, "seed": 2, "queue_size": 1}
    for changed, expected in (
        ({"xlco_layer": 4}, "a different run: xlco_layer was 8, is now 4. Give another --output_dir"),
        (many, r"queue_size was 64, .* \(and 2 more: seed, xlco_layer"),
        ({"new_setting": 3}, "new_setting was None, is now 3"),
    ):
        with pytest.raises(OutputFolderError, match=expected):
            open_(tmp_path, {**IDENTITY, **changed})


def test_files_of_something_else_are_left_alone(tmp_path: Path) -> None:
    """`--output_dir . --overwrite_output_dir true` must not delete the user's own `data`."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "corpus.tsv").write_text("irreplaceable")
    with pytest.raises(OutputFolderError, match=r"is not empty and holds no run\.json of a run"):
        open_(tmp_path)
    (tmp_path / "model.safetensors").write_text("of somebody")
    with pytest.raises(OutputFolderError, match="model_name_or_path"):
        open_(tmp_path, {**IDENTITY, "model_name_or_path": str(tmp_path)}, overwrite=True)
    open_(tmp_path, overwrite=True)
    assert (tmp_path / "data" / "corpus.tsv").exists()


def test_a_record_that_cannot_be_read_is_named_and_nothing_removed(tmp_path: Path) -> None:
    write_trained(tmp_path)
    for content in ("", "{", "[]", '{"identity": 3}', "[" * 100_000):
        (tmp_path / "run.json").write_text(content)
        for overwrite in (False, True):
            with pytest.raises(OutputFolderError, match=f"{tmp_path / 'run.json'}.* Give another --output_d"):
                open_(tmp_path, overwrite=overwrite)
    assert (tmp_path / "checkpoint-5").is_dir()


def test_broken_checkpoints_are_removed_of_this_run_alone(tmp_path: Path) -> None:
    write_trained(tmp_path)
    (tmp_path / "checkpoint-10").mkdir()
    (tmp_path / "checkpoint-20").mkdir()
    (tmp_path / "checkpoint-20" / "trainer_state.json").write_text('{"global_step": 2')
    (tmp_path / "checkpoint-notes").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputFolderError, match="holds a different run: seed was 1, is now 2"):
        open_(tmp_path, {**IDENTITY, "seed": 2})
    assert sorted(tmp_path.rglob("*")) == before
    assert open_(tmp_path).checkpoint == str(tmp_path / "checkpoint-5")
    assert names(tmp_path) == ["checkpoint-5", "checkpoint-notes", "run.json"]
    (tmp_path / "checkpoint-5" / "trainer_state.json").unlink()
    with pytest.raises(OutputFolderError, match="holds a different run"):  # broken ones are of a run too
        open_(tmp_path, {**IDENTITY, "seed": 2})


# ---------------------------------------------------------------------------- what may be removed


def test_overwriting_removes_all_of_the_old_run_and_nothing_else(tmp_path: Path) -> None:
    """A corpus, a tokenizer, checkpoints and outputs may be links to another disk, where they stay."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    write_trained(out)
    for name in ("data", "tokenizer", "checkpoint-9", "figures"):
        (elsewhere / name).mkdir(parents=True)
        (elsewhere / name / "manifest.json").write_text("{}")
        (out / name).symlink_to(elsewhere / name)
    for name in ("checkpoint-900", ".saving", "predictions", "own"):
        (out / name).mkdir()
        (out / name / "manifest.json").write_text("old")
    for name in ("model.safetensors", "eval_results.json", "trainer_state.json"):
        (out / name).write_text("old")  # a push of the new run would take it for its own
    (out / "notes.txt").write_text("keep")
    open_(out, {"seed": 2}, overwrite=True, outputs=["predictions", "figures", "never_made"])
    assert names(out) == ["data", "notes.txt", "own", "run.json", "tokenizer"]
    assert record(out)["identity"] == {"seed": 2} and any((out / "own").iterdir())
    assert len(list(elsewhere.glob("*/manifest.json"))) == 4


SHARD = "en-de.tsv-0123456789abcdef.source.tokens"


TUNED = {"model": {"name_or_path": "xlm-roberta-base"}}  # fine-tuning makes neither text nor tokenizer


@pytest.mark.parametrize(
    "identity, gone",
    [
        (IDENTITY, {"tokenizer", "data/manifest.json", "data/bitext/en-de", f"data/bitext/en-de/{SHARD}"}),
        ({**IDENTITY, "tokenizer_name": "out/tokenizer", "prepared_data": "out/data"}, set()),
        (TUNED, set()),
    ],
)
def test_overwriting_removes_what_the_run_made_and_not_what_it_was_given(
    tmp_path: Path, identity: dict[str, Any], gone: set[str]
) -> None:
    """Text and tokenizer may lie in the output folder; an earlier run was told to read them there."""
    write_trained(tmp_path, identity)
    for name in ("tokenizer", "data/bitext/en-de", "checkpoint-notes"):
        (tmp_path / name).mkdir(parents=True)
    # Text in folders called as ours are: it is what the corpus was made from.
    texts = {"data/en-de.tsv", "data/bitext/en-de.tsv"}
    for name in (*texts, "data/manifest.json", f"data/bitext/en-de/{SHARD}", "checkpoint-1.txt"):
        (tmp_path / name).write_text("x")
    kept = {"tokenizer", "data/manifest.json", "data/bitext", "data/bitext/en-de", "checkpoint-notes"}
    kept = (kept | texts | {f"data/bitext/en-de/{SHARD}"}) - gone
    open_(tmp_path, {**identity, "seed": 2}, overwrite=True)
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert found == kept | {"data", "checkpoint-1.txt", "run.json"}


@pytest.mark.parametrize(
    ("flag", "name"),
    [
        ("model_name_or_path", "checkpoint-5"),
        ("tokenizer_name", "tokenizer"),
        ("momentum_state", "checkpoint-5"),
        ("prepared_data", "data"),
        ("model", "."),  # as fine-tuning names it
    ],
)
def test_a_run_does_not_overwrite_what_it_starts_from(tmp_path: Path, flag: str, name: str) -> None:
    """A kill of the new run would leave neither it nor the weights, text or tokenizer that it was made of."""

    def starting_from(place: Path) -> dict[str, Any]:
        return {**IDENTITY, flag: {"name_or_path": str(place)} if flag == "model" else str(place)}

    write_trained(tmp_path / "out")
    for folder in ("tokenizer", "data"):
        (tmp_path / "out" / folder).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    for folder in ("out", "link"):
        with pytest.raises(OutputFolderError, match=f"{flag}.* lies in .*, whose run is to be ov"):
            open_(tmp_path / "out", starting_from(tmp_path / folder / name), overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before
    open_(tmp_path / "out", starting_from(tmp_path / "other" / name), overwrite=True)
