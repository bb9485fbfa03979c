"""Evidence: numbers enter a release as files, of this very model, or not at all."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from broken_json import NO_JSON_OF_OURS, with_one_fault
from hub.finished_run import save_finished_run, write_result_file
from huggingface_hub import parse_eval_result_entries

from modeling_infoxlm.hub.card import build_card
from modeling_infoxlm.hub.evidence import add_evidence, describe_training, leaderboard_entries
from modeling_infoxlm.hub.export import export
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.provenance import hash_weights


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_finished_run(tmp_path_factory.mktemp("evidence") / "out")


@pytest.fixture
def release(tmp_path: Path) -> Path:
    folder = tmp_path / "release"
    folder.mkdir()
    return folder


def test_results_figures_and_the_training_come_along(run: Path, release: Path, tmp_path: Path) -> None:
    result = write_result_file(tmp_path / "given" / "xnli_results.json", run)
    (tmp_path / "given" / "xnli.png").write_bytes(b"picture")
    add_evidence(run, release, results=[tmp_path / "given"])
    names = {path.relative_to(release).as_posix() for path in release.rglob("*") if path.is_file()}
    assert names == {
        "training.json",
        "results/xnli_results.json",
        ".eval_results/xnli.yaml",
        "figures/xnli.png",
    }
    assert (release / "results/xnli_results.json").read_bytes() == result.read_bytes()
    entries = parse_eval_result_entries(yaml.safe_load((release / ".eval_results/xnli.yaml").read_text()))
    found = [(entry.dataset_id, entry.task_id, entry.value) for entry in entries]
    assert found == [("facebook/xnli", "en", 84.25), ("facebook/xnli", "sw", 61.5)]


def _score(count: int, metric: str = "accuracy") -> dict[str, dict[str, float]]:
    return {metric: {"value": 84.0, "low": 83.0, "high": 85.0, "count": count}}


# Test sets of the Hub; XQuAD in files, of which the first digits of the hash are known.
HUB = {"files": {}, "revision": "c" * 40, "sha256": None}
XNLI, MLQA = HUB | {"repo_id": "facebook/xnli"}, HUB | {"repo_id": "facebook/mlqa"}
XQUAD = {"files": {"xquad.de.json": "990b5d746746" + "0" * 52}, "revision": None, "sha256": "d" * 64}


@pytest.mark.parametrize(
    ("task", "dataset", "rules", "language", "count", "task_ids"),
    [
        ("xnli", XNLI, None, "en", 5010, ["en"]),
        ("xnli", XNLI, None, "en", 2490, []),
        ("xnli", XNLI, None, "en-sw", 5010, []),
        # Of the right name and size, but of unknown content; of another dataset; of no commit.
        ("xnli", {"files": {"x": "f" * 64}, "sha256": "d" * 64, "revision": None}, None, "en", 5010, []),
        ("xnli", XNLI | {"repo_id": "me/xnli"}, None, "en", 5010, []),
        ("xnli", XNLI | {"revision": None}, None, "en", 5010, []),
        ("mlqa", MLQA, None, "de", 4517, ["mlqa.de.de"]),
        ("mlqa", MLQA, "squad", "de", 4517, []),
        ("mlqa", MLQA, "mlqa", "de", 512, []),
        ("xquad", XQUAD, "squad", "de", 1190, ["xquad.de"]),
        ("xquad", XQUAD | {"files": {"xquad.de.json": "f" * 64}}, "squad", "de", 1190, []),
        ("xquad", XQUAD, None, "de", 1190, []),  # earlier results were scored by MLQA's rules
    ],
)
def test_a_leaderboard_takes_whole_test_sets_that_are_measured_the_same_way_there(
    task: str, dataset: dict[str, Any], rules: str | None, language: str, count: int, task_ids: list[str]
) -> None:
    metric = "accuracy" if task == "xnli" else "f1"
    result = {"task": task, "metric": metric, "scores": {language: _score(count, metric)}}
    result |= {"dataset": {"name": task, **dataset}, "settings": {"scoring_rules": rules} if rules else {}}
    assert [entry["dataset"]["task_id"] for entry in leaderboard_entries(result)] == task_ids


@pytest.mark.parametrize(
    ("dataset", "is_known"),
    [
        # As of the README's own command.
        ({"files": {}, "revision": "c" * 40, "repo_id": "mteb/tatoeba-bitext-mining"}, True),
        ({"files": {"a": "edfa6f75a425" + "0" * 52, "b": "eb9cc83a42f2" + "0" * 52}, "revision": None}, True),
        ({"files": {"a": "edfa6f75a425" + "0" * 52, "b": "f" * 64}, "revision": None}, False),
    ],
)
def test_retrieval_stands_in_the_card_with_its_measure_and_on_no_leaderboard(
    run: Path, release: Path, tmp_path: Path, dataset: dict[str, Any], is_known: bool
) -> None:
    """The Hub's task of this dataset is measured by F1, in one direction."""
    result = write_result_file(
        tmp_path / "tatoeba_results.json",
        run,
        task="tatoeba",
        dataset={"name": "tatoeba", "sha256": None, **dataset},
        scores={"de": _score(1000)},
        settings={"layer": 7, "similarity": "cosine", "margin": "ratio", "margin_neighbours": 4},
        details={"measure": "accuracy, mean of both directions"},
        seed=None,
    )
    export(run, release)
    add_evidence(run, release, results=[result])
    assert not (release / ".eval_results").exists()
    card = str(build_card(release, "org/model"))
    assert "model-index" not in card and "### Tatoeba" in card
    assert "Measure: accuracy, mean of both directions." in card
    assert "similarity cosine, margin ratio, margin_neighbours 4" in card
    assert ("Not a whole public test set" not in card) is is_known


def test_results_that_are_not_this_models_own_are_refused(run: Path, release: Path, tmp_path: Path) -> None:
    other = {"name_or_path": "other", "revision": None, "sha256": "0" * 64}
    given, own = tmp_path / "given" / "xnli_results.json", run / "tatoeba_results.json"
    for path in (given, own):  # the one in the folder is of earlier weights
        write_result_file(path, run, model=other)
        with pytest.raises(UsageError, match=f"{path.name} was measured on 'other'"):
            add_evidence(run, release, results=[] if path == own else [path])
    own.unlink()
    for content, message in (("{}", "no result file"), ("no json", "no JSON file")):
        given.write_text(content)
        with pytest.raises(UsageError, match=message):
            add_evidence(run, release, results=[given])
    with pytest.raises(UsageError, match="there is no"):
        add_evidence(run, release, results=[tmp_path / "none.json"])
    twice = [write_result_file(tmp_path / name / "xnli_results.json", run) for name in ("a", "b")]
    with pytest.raises(UsageError, match="one of two result files of the task 'xnli'"):
        add_evidence(run, release, results=twice)
    given.unlink()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "given" / "x.png").symlink_to(tmp_path / "secret")
    with pytest.raises(UsageError, match="a link to a file outside"):
        add_evidence(run, release, results=[tmp_path / "given"])


@pytest.mark.parametrize("sha256", [True, None], ids=["folder", "Hub"])
def test_a_fine_tuning_names_its_encoder(
    run: Path, release: Path, tmp_path: Path, sha256: bool | None
) -> None:
    encoder = {"name_or_path": "org/base", "revision": "1" * 40, "sha256": sha256 and hash_weights(run)}
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    (tuned / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes() + b" ")
    record = json.loads((run / "run.json").read_text())
    record["identity"] = {"model": encoder, "learning_rate": 1e-5}
    (tuned / "run.json").write_text(json.dumps(record))
    path = write_result_file(tuned / "xnli_results.json", run, model=encoder)
    add_evidence(tuned, release)
    assert (release / "results" / "xnli_results.json").is_file()
    assert json.loads((release / "training.json").read_text())["starts_from"] == "base"
    other = path.rename(tmp_path / "xnli_results.json")  # as if it were of the encoder, or of another run
    with pytest.raises(UsageError, match="weights are not those"):
        add_evidence(tuned, release, results=[other])


def test_an_export_tells_how_it_was_trained(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    record = export(run.name, tmp_path / "exported")
    assert "training.json" in record.files
    training = describe_training(run, run)
    assert json.loads((tmp_path / "exported" / "training.json").read_text()) == training
    assert training["pairs"]["en-de"]["sentences"] > 1000 and training["languages"]["de"]["share"] > 0
    assert training["compute"]["steps"] == 240 and training["compute"]["seconds"] > 0
    assert training["heldout"]["retrieval/mean"] > 0.5
    assert "/examples" not in json.dumps(training) and "demo_output" not in json.dumps(training)
    # Sources on the Hub keep their names.
    shutil.copytree(run, tmp_path / "out")
    content = json.loads((run / "run.json").read_text())
    content["corpus"]["sources"][0]["files"][0]["path"] = "hub:org/pairs:de-en"
    (tmp_path / "out" / "run.json").write_text(json.dumps(content))
    training = describe_training(tmp_path / "out", tmp_path / "out")
    assert training["datasets"] == ["org/pairs"]
    assert [source["name"] for source in training["sources"]][:2] == ["hub:org/pairs:de-en", "en-el.tsv.xz"]


def test_a_checkpoint_is_told_apart_from_the_end(run: Path, release: Path, tmp_path: Path) -> None:
    """It is not given the results and figures of the last weights."""
    shutil.copytree(run, tmp_path / "out")
    checkpoint = tmp_path / "out" / "checkpoint-120"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(b"earlier weights")
    write_result_file(tmp_path / "out" / "xnli_results.json", run)
    for name in ("tatoeba_layers.png", "figures/map.png"):
        (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_bytes(b"of the last weights")
    add_evidence(checkpoint, release)
    assert not (release / "results").exists() and not (release / "figures").exists()
    compute = json.loads((release / "training.json").read_text())["compute"]
    assert compute["steps"] is None and compute["resumed_at_step"] is None  # known of the end alone
    state = {"global_step": 120, "num_input_tokens_seen": 7, "total_flos": 9.0, "log_history": []}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    training = describe_training(tmp_path / "out", checkpoint)
    assert not training["finished"] and training["heldout"] == {}
    assert (training["compute"]["steps"], training["compute"]["seconds"]) == (120, None)
    add_evidence(tmp_path / "out", release)
    assert (release / "results" / "xnli_results.json").is_file()
    assert len(list((release / "figures").iterdir())) == 2


def test_broken_records_of_a_run_are_told_of_with_file_and_key(run: Path, tmp_path: Path) -> None:
    """Whatever is wrong with a file that a card is made of: a card, or one line that names file and key."""
    source, release = tmp_path / "out", tmp_path / "release"
    shutil.copytree(run, source)
    export(source, release)
    places = {
        source / "run.json": {"identity", "streams.mlm.groups.de.expected_share", "corpus.bitext.en-de"},
        source / "trainer_state.json": {"log_history", "total_flos"},
        source / "eval_results.json": {"eval_retrieval/mean"},
        release / "release.json": {"format", "num_parameters"},
        release / "training.json": {"recipe", "compute.steps", "heldout.retrieval/mean"},
    }
    for path, needed in places.items():
        make = partial(build_card, release, "org/model")
        if path.parent == source:
            make = partial(describe_training, source, source)
        text = path.read_text()
        refused = set()
        for place, broken in with_one_fault(_thinned(json.loads(text))):
            path.write_text(json.dumps(broken))
            try:
                make()
            except UsageError as error:
                assert str(path) in str(error) and place.split(".")[0] in str(error), place
                refused.add(place)
        assert needed <= refused, path
        for other in NO_JSON_OF_OURS:
            path.write_bytes(other)
            with pytest.raises(UsageError, match=path.name):
                make()
        path.write_text(text)


def _thinned(content: Any) -> Any:
    """One entry of each list and of what there is for each language, and of the settings few."""
    if isinstance(content, list):
        return [_thinned(value) for value in content[-1:]]
    if not isinstance(content, dict):
        return content
    if "hidden_dropout_prob" in content:
        return {key: content[key] for key in ("objectives", "xlco_layer", "xlco_pooling", "learning_rate")}
    by_language = {"bitext", "mono", "groups", "languages", "pairs", "versions", "streams"}
    return {
        key: _thinned(dict([*value.items()][:1]) if key in by_language and isinstance(value, dict) else value)
        for key, value in content.items()
    }
