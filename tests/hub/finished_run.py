"""The folder of a finished pre-training, of a tiny model: what people push."""

import json
from pathlib import Path
from typing import Any

import torch
from tiny_run import tiny_model
from tiny_text import sentence_pairs, write_pairs

from modeling_infoxlm.data.sources import parse_bitext_sources
from modeling_infoxlm.data.train_tokenizer import train_tokenizer
from modeling_infoxlm.hub.benchmarks import BENCHMARKS
from modeling_infoxlm.runs.provenance import hash_weights

# What a run of the demo left, without weights; folders are left out of the paths in run.json.
DEMO_RUN = Path(__file__).with_name("demo_run")


def save_finished_run(folder: Path) -> Path:
    """A tiny model and tokenizer with the records of a demo run beside them."""
    save_tiny_model(folder)
    for path in DEMO_RUN.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def save_tiny_model(folder: Path) -> Path:
    """A model of random weights, the same ones every time, and a tokenizer of made-up words."""
    text = write_pairs(folder.parent / f"{folder.name}-text" / "en-xx.tsv", sentence_pairs(20))
    tokenizer = train_tokenizer(parse_bitext_sources([str(text)]), folder, vocab_size=60)
    with torch.random.fork_rng():
        tiny_model(vocab_size=len(tokenizer)).save_pretrained(folder)
    return folder


def write_result_file(path: Path, measured: Path, *, task: str = "xnli", **changes: Any) -> Path:
    """A result of a task for a model folder, as `evaluation` writes it."""
    scores = {
        language: {"accuracy": {"value": value, "low": value - 1, "high": value + 1, "count": 5010}}
        for language, value in {"en": 84.25, "sw": 61.5}.items()
    }
    dataset = {"name": task, "files": {}, "revision": "c" * 40, "repo_id": BENCHMARKS[task].repo_id}
    weights = {"sha256": hash_weights(measured), "model_type": "infoxlm", "num_parameters": 1}
    content = {
        "schema": "infoxlm-result-1",
        "task": task,
        "metric": "accuracy",
        "unit": "percent",
        "dataset": {**dataset, "sha256": None},
        "model": {"name_or_path": measured.name, "revision": None, **weights},
        "settings": {"train_language": "en", "learning_rate": 2e-5, "max_predict_samples": None},
        "scores": scores,
        "summary": {"mean": 72.875, "gap": 22.75},
        "seed": 1,
        "details": {},
        "command": ["run_xnli.py"],
        "commit": None,
        **{"python": "3.11.7", "machine": "a machine", "versions": {}},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**content, **changes}), encoding="utf-8")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder, by their paths in it."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
