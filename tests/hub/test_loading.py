"""What is pushed loads: every format and class, by name and by revision, with and without our package."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub.apart import Job, load_apart
from hub.finished_run import save_tiny_model
from hub.server import LoopbackHub
from huggingface_hub import constants
from transformers import AutoTokenizer

from modeling_infoxlm import InfoXLMForPreTraining
from modeling_infoxlm.hub.export import Format
from modeling_infoxlm.hub.publish import push_release
from modeling_infoxlm.hub.release import build_release
from modeling_infoxlm.hub.retries import RetriedApi

FORMS: tuple[Format, ...] = ("xlm-roberta", "infoxlm")
TEXTS = ["bab dod fif", "gug"]
NAMES = ("Model", "ModelForMaskedLM", "ModelForSequenceClassification", "ModelForQuestionAnswering")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("loading") / "model")


@pytest.fixture(scope="module")
def pushed(source: Path) -> Iterator[tuple[LoopbackHub, dict[Format, str]]]:
    """A Hub with each format in a repository of its name, and their commits."""
    with pytest.MonkeyPatch.context() as patch, LoopbackHub() as hub:
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        commits: dict[Format, str] = {}
        for form in FORMS:
            release = source.parent / form
            build_release(source, release, repo_id=f"org/{form}", format=form)
            commits[form] = push_release(release, f"org/{form}", api=RetriedApi(hub.client())).oid
        yield hub, commits


@pytest.fixture(scope="module", params=["with", "without"])
def loaded(
    request: pytest.FixtureRequest, pushed: tuple[LoopbackHub, dict[Format, str]], source: Path
) -> tuple[str, dict[str, dict[str, Any]]]:
    """What was found in each repository at each revision, with and without trust, by each class."""
    hub, commits = pushed
    folder = source.parent / request.param
    again = str(folder / "again")
    jobs = {}
    for form, trust, name in itertools.product(FORMS, (False, True), NAMES):
        for revision in (None, "v1", commits[form]):
            options = {} if revision is None else {"revision": revision}
            trusting = {"trust_remote_code": True} if trust else {}
            saved = again if (form, trust, name) == ("infoxlm", True, "Model") else None
            jobs[f"{form}|{revision}|{trust}|{name}"] = Job(
                f"org/{form}", f"Auto{name}", options | trusting, saved
            )
    jobs["again"] = Job(again, "AutoModelForMaskedLM", {"trust_remote_code": True})
    environment = hub.environment(folder / "home") | {"OMP_NUM_THREADS": "1"}
    if request.param == "with":
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    inputs = AutoTokenizer.from_pretrained(source)(TEXTS, padding=True, return_tensors="pt")
    return request.param, load_apart(folder, jobs, dict(inputs), environment, package=request.param)


def test_every_combination_loads_the_class_that_it_should(
    loaded: tuple[str, dict[str, dict[str, Any]]],
) -> None:
    package, loads = loaded
    # What was loaded with trust can be saved and loaded again.
    assert loads["again"]["class"] == "InfoXLMForMaskedLM"
    new_heads = {
        "Model": "pooler.",
        "ModelForSequenceClassification": "classifier.",
        "ModelForQuestionAnswering": "qa_outputs.",
    }
    for key, found in loads.items():
        if key == "again":
            continue
        form, _, trust, name = key.split("|")
        module = "modeling_infoxlm" if package == "with" else "transformers_modules"
        if form == "infoxlm" and package == "without" and trust == "False":
            assert "trust_remote_code=True" in found["error"], (key, found)
            continue
        start, module = ("XLMRoberta", "transformers") if form == "xlm-roberta" else ("InfoXLM", module)
        expected = (module, f"{start}{name.removeprefix('Model') or 'Model'}")
        assert (found["module"], found["class"]) == expected, key
        assert all(lost.startswith(new_heads.get(name, "none")) for lost in found["missing"]), key


def test_all_of_them_compute_the_same(loaded: tuple[str, dict[str, dict[str, Any]]], source: Path) -> None:
    model = InfoXLMForPreTraining.from_pretrained(source).eval()
    inputs = AutoTokenizer.from_pretrained(source)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = torch.stack(model.roberta(**inputs, output_hidden_states=True).hidden_states)
    found = {key: load["hidden"] for key, load in loaded[1].items() if "hidden" in load}
    assert len(found) >= 9 and expected.std() > 0.1
    for key, hidden in found.items():
        torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-6, msg=key)
