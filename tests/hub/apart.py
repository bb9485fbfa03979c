"""What transformers makes of models in a process of its own, with our package or without it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Job(NamedTuple):
    """One load: folder or repository, class, options of `from_pretrained`, where to save it again."""

    place: str
    auto_class: str
    options: dict[str, Any]
    saved: str | None = None


_PROGRAM = """
import json, sys
package, jobs, folder = sys.argv[1:]
if package == "with":
    import modeling_infoxlm
else:
    sys.modules["modeling_infoxlm"] = None
import torch, transformers
inputs = torch.load(folder + "/inputs.pt", weights_only=True)
results = {}
for key, (place, auto_class, options, saved) in json.loads(jobs).items():
    try:
        model, report = getattr(transformers, auto_class).from_pretrained(
            place, output_loading_info=True, **options
        )
    except (ValueError, OSError) as error:
        results[key] = {"error": str(error)}
        continue
    options.pop("trust_remote_code", None)
    results[key] = found = {
        "module": type(model).__module__.split(".")[0],
        "class": type(model).__name__,
        "missing": sorted(report["missing_keys"]),
        "unexpected": sorted(report["unexpected_keys"]),
        "labels": model.config.id2label,
        "tokens": len(transformers.AutoTokenizer.from_pretrained(place, **options)),
    }
    with torch.no_grad():
        hidden = model.eval().base_model(**inputs, output_hidden_states=True).hidden_states
        found["hidden"] = torch.stack(hidden)
        if auto_class == "AutoModelForPreTraining":
            row, size = {"input_ids": inputs["input_ids"][0], "lengths": [5]}, model.config.hidden_size
            keys = {"keys": torch.ones(1, size), "negatives": -torch.ones(2, size)}
            found["loss"] = model({"xlco": {"query": row, **keys}})["xlco"].loss_sum
            found["outputs"] = [model.objectives["xlco"].projection.weight.detach()]
        else:
            choices = auto_class == "AutoModelForMultipleChoice"
            given = {name: part[None] for name, part in inputs.items()} if choices else inputs
            found["outputs"] = [part for part in model(**given).values()]
        if type(model).__name__ == "InfoXLMModel":
            found["vectors"] = model.sentence_vectors(**inputs, layer=2, pooling="mean")
    if saved:
        model.save_pretrained(saved)
torch.save(results, folder + "/results.pt")
"""


def load_apart(
    folder: Path,
    jobs: dict[str, Job],
    inputs: dict[str, torch.Tensor],
    environment: dict[str, str],
    *,
    package: str = "without",
) -> dict[str, dict[str, Any]]:
    """Run these loads, in order; the folder is the working directory, where files of the process lie.

    Returns:
        For each job module and class of the model, what its weights lack, labels, hidden states of all layers
        (layers, B, T, D), outputs of the head, sentence vectors and loss; or the error.
    """
    folder.mkdir(exist_ok=True)
    torch.save(inputs, folder / "inputs.pt")
    result = subprocess.run(
        [sys.executable, "-c", _PROGRAM, package, json.dumps(jobs), str(folder)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        cwd=folder,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    found: dict[str, dict[str, Any]] = torch.load(folder / "results.pt", weights_only=True)
    return found
