"""What is pushed loads: every format and class, by name and by revision, with and without our package."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub.finished_run import save_tiny_model
from hub.server import LoopbackHub
from huggingface_hub import HfApi, constants
from safetensors.torch import load_file
from transformers import AutoTokenizer

from modeling_infoxlm import InfoXLMForPreTraining
from modeling_infoxlm.hub.export import Format
from modeling_infoxlm.hub.publish import push_release
from modeling_infoxlm.hub.release import build_release
from modeling_infoxlm.hub.retries import RetriedApi

FORMS: tuple[Format, ...] = ("xlm-roberta", "infoxlm")
TEXTS = ["bab dod fif", "gug"]

# A matrix of loads in one process; what came out is printed as JSON, hidden states go to a file.
LOAD = """
import json, sys
with_package = sys.argv[1] == "with"
if with_package:
    import modeling_infoxlm
else:
    sys.modules["modeling_infoxlm"] = None
import torch, transformers
from safetensors.torch import save_file
texts, revisions, folder = json.loads(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
names = ("Model", "ModelForMaskedLM", "ModelForSequenceClassification", "ModelForQuestionAnswering")
loaded, hidden = {}, {}
for repo, versions in revisions.items():
    for revision in [None, *versions]:
        for trust in (None, True):
            options = {} if revision is None else {"revision": revision}
            trusting = {} if trust is None else {"trust_remote_code": True}
            for name in names:
                key = "|".join([repo, str(revision), str(trust), name])
                try:
                    model, report = getattr(transformers, f"Auto{name}").from_pretrained(
                        repo, output_loading_info=True, **options, **trusting
                    )
                except (ValueError, OSError) as error:
                    loaded[key] = str(error)
                    continue
                found = type(model).__module__.split(".")[0]
                loaded[key] = [found, type(model).__name__, sorted(report["missing_keys"])]
                if name == "Model":
                    tokenizer = transformers.AutoTokenizer.from_pretrained(repo, **options)
                    inputs = tokenizer(texts, padding=True, return_tensors="pt")
                    with torch.no_grad():
                        output = model.eval()(**inputs, output_hidden_states=True)
                    hidden[key] = torch.stack(output.hidden_states).contiguous()
                    if trust and not with_package and repo.endswith("infoxlm"):
                        model.save_pretrained(folder + "/again")
again = None
if not with_package:
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder + "/again", trust_remote_code=True)
    again = type(model).__name__
save_file(hidden, folder + "/hidden.safetensors")
print()  # ends the line of a question that nobody answered
print(json.dumps({"loaded": loaded, "again": again}))
"""


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
            api = RetriedApi(HfApi(endpoint=hub.endpoint, token=hub.token))
            commits[form] = push_release(release, f"org/{form}", api=api).oid
        yield hub, commits


def run(hub: LoopbackHub, folder: Path, program: str, *arguments: str) -> str:
    folder.mkdir(exist_ok=True)
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments, str(folder)],
        env=hub.environment(folder / "home") | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        cwd=folder,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module", params=["with", "without"])
def loaded(
    request: pytest.FixtureRequest, pushed: tuple[LoopbackHub, dict[Format, str]], source: Path
) -> tuple[str, dict[str, Any], dict[str, torch.Tensor]]:
    hub, commits = pushed
    revisions = {f"org/{form}": ["v1", commits[form]] for form in FORMS}
    folder = source.parent / request.param
    root = str(Path(__file__).parents[2])
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "with":
            patch.setenv("PYTHONPATH", root)
        printed = run(hub, folder, LOAD, request.param, json.dumps(TEXTS), json.dumps(revisions))
    return request.param, json.loads(printed), load_file(folder / "hidden.safetensors")


def expected_hidden(source: Path) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = InfoXLMForPreTraining.from_pretrained(source).eval()
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        return torch.stack(model.roberta(**inputs, output_hidden_states=True).hidden_states)


def test_every_combination_loads_the_class_that_it_should(
    loaded: tuple[str, dict[str, Any], dict[str, torch.Tensor]],
) -> None:
    package, report, _ = loaded
    assert len(report["loaded"]) == 2 * 3 * 2 * 4  # repositories, revisions, trust, classes
    new_heads = {
        "Model": "pooler.",
        "ModelForSequenceClassification": "classifier.",
        "ModelForQuestionAnswering": "qa_outputs.",
    }
    for key, found in report["loaded"].items():
        repo, _, trust, name = key.split("|")
        if repo == "org/xlm-roberta":
            expected = ["transformers", f"XLMRoberta{name.removeprefix('Model') or 'Model'}"]
        elif package == "with":
            expected = ["modeling_infoxlm", f"InfoXLM{name.removeprefix('Model') or 'Model'}"]
        elif trust == "True":
            expected = ["transformers_modules", f"InfoXLM{name.removeprefix('Model') or 'Model'}"]
        else:
            assert "trust_remote_code=True" in found, (key, found)
            continue
        assert found[:2] == expected, key
        assert all(lost.startswith(new_heads.get(name, "none")) for lost in found[2]), key
    # What was loaded with trust can be saved and loaded again.
    assert report["again"] == (None if package == "with" else "InfoXLMForMaskedLM")


def test_all_of_them_compute_the_same(
    loaded: tuple[str, dict[str, Any], dict[str, torch.Tensor]], source: Path
) -> None:
    expected = expected_hidden(source)
    assert len(loaded[2]) >= 9 and expected.std() > 0.1
    for key, hidden in loaded[2].items():
        torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-6, msg=key)
