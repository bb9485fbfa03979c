"""The record of a run, and the guard that keeps two runs from sharing a folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from modeling_infoxlm import InfoXLMConfig
from modeling_infoxlm.runs.provenance import PACKAGES
from modeling_infoxlm.training.arguments import (
    ContrastArguments,
    DataArguments,
    ModelArguments,
    PretrainingArguments,
)
from modeling_infoxlm.training.run_record import (
    OutputFolderError,
    find_checkpoint,
    is_finished,
    run_identity,
    write_run_record,
)

IDENTITY = {"seed": 1, "xlco_layer": 8, "bitext_files": ["a.tsv"], "queue_size": 64, "optim": "adamw"}
IDENTITY |= {"prepared_data": None}


def identity(tmp_path: Path, *, token: str | None = None, **training: Any) -> dict[str, Any]:
    model = ModelArguments(token=token, cache_dir=str(tmp_path))
    args = PretrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", **training)
    return run_identity(model, DataArguments(), ContrastArguments(), args)


def write(folder: Path, identity: dict[str, Any], argv: list[str] | None = None, **details: Any) -> None:
    write_run_record(folder, argv=argv or [], identity=identity, details=details)


def write_trained(folder: Path, identity: dict[str, Any]) -> None:
    """A folder whose run has got as far as a checkpoint."""
    write(folder, identity)
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "trainer_state.json").write_text("{}")


def record(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return content


# ---------------------------------------------------------------------------- what a run is


def test_what_changes_the_result_is_part_of_the_run(tmp_path: Path) -> None:
    plain = identity(tmp_path)
    for change in ({"seed": 7}, {"learning_rate": 1.0}, {"xlco_weight": 2.0}, {"max_steps": 3}):
        assert identity(tmp_path, **change) != plain, change
    # A checkpoint's optimiser could not go on with other moments.
    for change in ({"moments_dtype": "bfloat16"}, {"weight_decay_on_all": True}):
        assert identity(tmp_path, **change) != plain, change


def test_what_does_not_change_the_result_may_differ_on_resumption(tmp_path: Path) -> None:
    plain = identity(tmp_path)
    assert identity(tmp_path / "elsewhere", token="hf_abcdefghijkl", dataloader_num_workers=3) == plain
    assert identity(tmp_path, logging_steps=1, save_steps=7, eval_strategy="steps", eval_steps=5) == plain


def test_a_batch_may_be_cut_up_otherwise(tmp_path: Path) -> None:
    whole = identity(tmp_path, per_device_train_batch_size=8)
    halves = identity(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert halves == whole and whole["total_train_batch_size"] == 8
    assert identity(tmp_path, per_device_train_batch_size=4) != whole


@pytest.mark.parametrize(
    ("contrast", "checkpoint", "same"),
    [
        ({}, {}, True),
        ({"xlco_in_batch_negatives": True}, {}, False),
        ({"xlco_symmetric": True}, {}, False),
        ({"xlco_enqueue": "microbatch"}, {}, False),
        ({}, {"xlco_in_batch_negatives": True}, False),  # what is unset is the checkpoint's
        ({"xlco_in_batch_negatives": False}, {"xlco_in_batch_negatives": True}, True),
    ],
)
def test_pairs_that_are_contrasted_with_each_other_stay_together(
    tmp_path: Path, contrast: dict[str, Any], checkpoint: dict[str, Any], same: bool
) -> None:
    """With in-batch negatives 4 pairs twice are another loss than 8 pairs once."""
    found = [
        run_identity(
            ModelArguments(),
            DataArguments(),
            ContrastArguments(**contrast),
            PretrainingArguments(
                output_dir=str(tmp_path),
                use_cpu=True,
                report_to="none",
                per_device_train_batch_size=size,
                gradient_accumulation_steps=8 // size,
            ),
            config=InfoXLMConfig(**checkpoint),
        )
        for size in (8, 4)
    ]
    assert (found[0] == found[1]) is same


def test_the_end_of_a_run_is_measured_as_its_start_was(tmp_path: Path) -> None:
    plain = identity(tmp_path)
    for change in ({"eval_layer": 1}, {"eval_pooling": "mean"}, {"eval_max_pairs": 7}):
        assert identity(tmp_path, **change) != plain, change


def test_identity_survives_the_file(tmp_path: Path) -> None:
    """Tuples and paths are read back as something else; they must still compare equal."""
    found = {**identity(tmp_path), "columns": (0, 1), "path": tmp_path}
    write(tmp_path / "out", found)
    assert find_checkpoint(tmp_path / "out", found, overwrite=False) is None


# ---------------------------------------------------------------------------- the other run


def test_an_empty_or_missing_folder_starts_anew(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path, IDENTITY, overwrite=False) is None
    assert find_checkpoint(tmp_path / "missing", IDENTITY, overwrite=False) is None


def test_the_same_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, IDENTITY)
    for step in (5, 20, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    assert find_checkpoint(tmp_path, IDENTITY, overwrite=False) == str(tmp_path / "checkpoint-100")


def test_another_run_is_refused_with_name_and_both_values(tmp_path: Path) -> None:
    write_trained(tmp_path, IDENTITY)
    with pytest.raises(OutputFolderError) as error:
        find_checkpoint(tmp_path, {**IDENTITY, "xlco_layer": 4}, overwrite=False)
    assert str(error.value) == (
        f"{tmp_path} holds a different run: xlco_layer was 8, is now 4. "
        "Give another --output_dir, or --overwrite_output_dir true to start anew."
    )


def test_all_differences_are_counted_and_named(tmp_path: Path) -> None:
    write_trained(tmp_path, IDENTITY)
    changed = {**IDENTITY, "xlco_layer": 4, "seed": 2, "queue_size": 1}
    with pytest.raises(
        OutputFolderError, match=r"queue_size was 64, is now 1 \(and 2 more: seed, xlco_layer"
    ):
        find_checkpoint(tmp_path, changed, overwrite=False)


def test_a_setting_that_one_of_the_two_does_not_know_is_a_difference(tmp_path: Path) -> None:
    write_trained(tmp_path, IDENTITY)
    with pytest.raises(OutputFolderError, match="new_setting was None, is now 3"):
        find_checkpoint(tmp_path, {**IDENTITY, "new_setting": 3}, overwrite=False)


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputFolderError, match=r"is not empty and holds no run\.json of a run"):
        find_checkpoint(tmp_path, IDENTITY, overwrite=False)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_overwriting_removes_all_of_the_old_run_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, IDENTITY)
    for name in ("checkpoint-5", "checkpoint-900", "data", "tokenizer", ".saving", "figures"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("old")
    for name in ("model.safetensors", "eval_results.json", "trainer_state.json"):
        (tmp_path / name).write_text("old")  # a push of the new run would take it for its own
    (tmp_path / "notes.txt").write_text("keep")
    assert find_checkpoint(tmp_path, {"seed": 2}, overwrite=True) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures", "notes.txt"]


def test_overwriting_a_folder_that_is_no_run_removes_nothing_of_it(tmp_path: Path) -> None:
    """`--output_dir . --overwrite_output_dir true` must not delete the user's own `data`."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "corpus.tsv").write_text("irreplaceable")
    find_checkpoint(tmp_path, IDENTITY, overwrite=True)
    assert (tmp_path / "data" / "corpus.tsv").exists()


# ---------------------------------------------------------------------------- the record


def test_record_says_what_ran_and_with_what(tmp_path: Path) -> None:
    write(tmp_path, IDENTITY, ["--seed", "1"], corpus={"pairs": 3})
    found = record(tmp_path)
    assert found["command"] == ["--seed", "1"]
    assert found["identity"] == IDENTITY
    assert found["corpus"] == {"pairs": 3}
    assert set(found["versions"]) == set(PACKAGES) and all(found["versions"].values())
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("secret", ["hf_AbCdEfGhIjKlMnOp", "hf_oauth_eyJhbGciOi.eyJzdWIi-x"])
@pytest.mark.parametrize("form", ["--token {}", "--token={}", "--hub_token {}", "--hub_token={}"])
def test_no_token_reaches_the_record(tmp_path: Path, form: str, secret: str) -> None:
    argv = ["--seed", "1", *form.format(secret).split(), "--max_steps", "3"]
    write(tmp_path, identity(tmp_path, token=secret), argv)
    text = (tmp_path / "run.json").read_text()
    assert secret not in text and secret[-8:] not in text
    assert record(tmp_path)["command"][-2:] == ["--max_steps", "3"]


def test_a_run_that_has_trained_nothing_may_be_mended(tmp_path: Path) -> None:
    write(tmp_path, IDENTITY)
    (tmp_path / "tokenizer").mkdir()
    assert find_checkpoint(tmp_path, {**IDENTITY, "xlco_layer": 4}, overwrite=False) is None
    assert (tmp_path / "tokenizer").is_dir()
    assert find_checkpoint(tmp_path, {**IDENTITY, "tokenizer_vocab_size": 5}, overwrite=False) is None
    assert not (tmp_path / "tokenizer").exists()


def test_finished_is_said_of_the_same_run_alone(tmp_path: Path) -> None:
    assert not is_finished(tmp_path, IDENTITY)
    write(tmp_path, IDENTITY)
    assert not is_finished(tmp_path, IDENTITY)
    write(tmp_path, IDENTITY, finished=True)
    assert is_finished(tmp_path, IDENTITY)
    assert not is_finished(tmp_path, {**IDENTITY, "seed": 99})


# ---------------------------------------------------------------------------- what may be removed


def test_broken_checkpoints_are_removed_of_this_run_alone(tmp_path: Path) -> None:
    write_trained(tmp_path, IDENTITY)
    (tmp_path / "checkpoint-10").mkdir()
    (tmp_path / "checkpoint-notes").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputFolderError, match="holds a different run: seed was 1, is now 2"):
        find_checkpoint(tmp_path, {**IDENTITY, "seed": 2}, overwrite=False)
    assert sorted(tmp_path.rglob("*")) == before
    assert find_checkpoint(tmp_path, IDENTITY, overwrite=False) == str(tmp_path / "checkpoint-5")
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "checkpoint-5", "checkpoint-notes"}


def test_a_run_whose_checkpoints_are_all_broken_is_still_another_run(tmp_path: Path) -> None:
    write(tmp_path, IDENTITY)
    (tmp_path / "checkpoint-5").mkdir()
    with pytest.raises(OutputFolderError, match="holds a different run"):
        find_checkpoint(tmp_path, {**IDENTITY, "seed": 2}, overwrite=False)
    assert (tmp_path / "checkpoint-5").is_dir()


def test_a_kill_while_the_record_is_written_leaves_the_folder_to_its_run(tmp_path: Path) -> None:
    (tmp_path / "run.json.partial").write_text('{"identi')
    assert find_checkpoint(tmp_path, IDENTITY, overwrite=False) is None
    write(tmp_path, IDENTITY)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    (tmp_path / "run.json").rename(tmp_path / "run.json.partial")
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(OutputFolderError, match="holds no run.json"):
        find_checkpoint(tmp_path, IDENTITY, overwrite=False)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"identity": 3}', "[" * 100_000])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_record_that_cannot_be_read_is_named_and_nothing_removed(
    tmp_path: Path, content: str, overwrite: bool
) -> None:
    write_trained(tmp_path, IDENTITY)
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(OutputFolderError, match=f"{tmp_path / 'run.json'} (cannot be read|is no record)"):
        find_checkpoint(tmp_path, IDENTITY, overwrite=overwrite)
    assert (tmp_path / "checkpoint-5").is_dir()
    with pytest.raises(OutputFolderError, match="run.json"):
        is_finished(tmp_path, IDENTITY)


SHARD = "en-de.tsv-0123456789abcdef.source.tokens"


@pytest.mark.parametrize(
    "own, gone",
    [
        ({}, {"tokenizer", "data/manifest.json", "data/bitext/en-de", f"data/bitext/en-de/{SHARD}"}),
        ({"tokenizer_name": "out/tokenizer", "prepared_data": "out/data"}, set()),
    ],
)
def test_overwriting_removes_what_the_run_made_and_not_what_it_was_given(
    tmp_path: Path, own: dict[str, str], gone: set[str]
) -> None:
    """Text and tokenizer may lie in the output folder; an earlier run was told to read them there."""
    write_trained(tmp_path, {**IDENTITY, **own})
    for name in ("tokenizer", "data/bitext/en-de", "checkpoint-notes"):
        (tmp_path / name).mkdir(parents=True)
    # Text in folders called as ours are: it is what the corpus was made from.
    texts = {"data/en-de.tsv", "data/bitext/en-de.tsv"}
    for name in (*texts, "data/manifest.json", f"data/bitext/en-de/{SHARD}", "checkpoint-1.txt"):
        (tmp_path / name).write_text("x")
    kept = {"tokenizer", "data/manifest.json", "data/bitext", "data/bitext/en-de", "checkpoint-notes"}
    kept = (kept | texts | {f"data/bitext/en-de/{SHARD}"}) - gone
    assert find_checkpoint(tmp_path, IDENTITY, overwrite=True) is None
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert found == kept | {"data", "checkpoint-1.txt"}


@pytest.mark.parametrize(
    ("flag", "name"),
    [
        ("model_name_or_path", "."),
        ("model_name_or_path", "checkpoint-5"),
        ("tokenizer_name", "tokenizer"),
        ("momentum_state", "checkpoint-5"),
        ("prepared_data", "data"),
    ],
)
def test_a_run_does_not_overwrite_what_it_starts_from(tmp_path: Path, flag: str, name: str) -> None:
    """A kill of the new run would leave neither it nor the weights, text or tokenizer that it was made of."""
    write_trained(tmp_path, IDENTITY)
    for folder in ("tokenizer", "data"):
        (tmp_path / folder).mkdir()
    before = sorted(tmp_path.rglob("*"))
    (tmp_path.parent / f"{tmp_path.name}-link").symlink_to(tmp_path)
    for folder in (tmp_path, tmp_path.parent / f"{tmp_path.name}-link"):
        with pytest.raises(OutputFolderError, match=f"{flag} .* lies in .*, whose run is to be overwritten"):
            find_checkpoint(tmp_path, {**IDENTITY, flag: str(folder / name)}, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert find_checkpoint(tmp_path, {**IDENTITY, flag: f"{tmp_path}-other/{name}"}, overwrite=True) is None


def test_a_model_folder_is_no_output_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("of somebody")
    with pytest.raises(OutputFolderError, match="model_name_or_path"):
        find_checkpoint(tmp_path, {**IDENTITY, "model_name_or_path": str(tmp_path)}, overwrite=True)


def test_overwriting_leaves_what_a_link_points_at(tmp_path: Path) -> None:
    """A corpus, a tokenizer or checkpoints on another disk."""
    elsewhere, out = tmp_path / "elsewhere", tmp_path / "out"
    for name in ("data", "tokenizer", "checkpoint-9"):
        (elsewhere / name).mkdir(parents=True)
        (elsewhere / name / "manifest.json").write_text("{}")
    write_trained(out, IDENTITY)
    for path in elsewhere.iterdir():
        (out / path.name).symlink_to(path)
    assert find_checkpoint(out, IDENTITY, overwrite=True) is None
    assert sorted(path.name for path in out.iterdir()) == ["data", "tokenizer"]
    assert len(list(elsewhere.glob("*/manifest.json"))) == 3
