"""`--push_to_hub true` of the evaluation scripts: model, results and card arrive together."""

import subprocess
import sys
from pathlib import Path

import yaml
from hub.server import LoopbackHub
from tiny_encoder import save_tiny_encoder
from tiny_nli import write_encoders
from tiny_qa import write_sets

from modeling_infoxlm.runs.provenance import read_result

ROOT = Path(__file__).parents[2]
REPO = "org/pushed"
TRAINING = (
    "--use_cpu true --disable_tqdm true --seed 1 --per_device_train_batch_size 8 --max_steps 2 "
    "--eval_strategy no --save_steps 2 --hub_license mit"
).split()


def push(hub: LoopbackHub, tmp_path: Path, script: str, *flags: object) -> subprocess.CompletedProcess[str]:
    where = ["--push_to_hub", "true", "--hub_model_id", REPO]
    return subprocess.run(
        [sys.executable, str(ROOT / script), *where, *map(str, flags)],
        cwd=tmp_path,
        env=hub.environment(tmp_path / "home") | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )


def card(hub: LoopbackHub) -> tuple[dict[str, object], str]:
    text = hub.files(REPO)["README.md"].decode()
    return yaml.safe_load(text.split("---\n")[1]), text


def test_a_fine_tuning(hub: LoopbackHub, tmp_path: Path) -> None:
    """Question answering has two results; XNLI is pushed by the same lines."""
    write_encoders(tmp_path)
    write_sets(tmp_path / "data")
    places = "--model_name_or_path infoxlm --train_file data/train-v1.1.json --output_dir out".split()
    tests = ["--test_files", "data/mlqa", "data/xquad", "--cache_dir", "cache"]
    shape = "--max_seq_length 16 --doc_stride 4 --max_query_length 4 --max_answer_length 2".split()
    result = push(hub, tmp_path, "run_mlqa.py", *places, *tests, *shape, *TRAINING)
    assert result.returncode == 0, result.stderr[-2000:]
    metadata, text = card(hub)
    assert (metadata["pipeline_tag"], metadata["license"]) == ("question-answering", "mit")
    names = {"results/mlqa_results.json", "results/xquad_results.json", "training.json"}
    assert names <= set(hub.files(REPO)) and hub.tags(REPO) == {"v1": hub.repositories[REPO].heads["main"]}
    assert "### MLQA" in text and "### XQuAD" in text and "Not a whole public test set" in text


def test_tatoeba_of_a_folder_and_of_a_model_on_the_hub(hub: LoopbackHub, tmp_path: Path) -> None:
    encoder = save_tiny_encoder(tmp_path / "encoder")
    (tmp_path / "data").mkdir()
    words = [f"w{4 + 3 * i} w{5 + i} w{6 + 2 * i}" for i in range(12)]
    for name in ("de-en.de", "de-en.en"):
        (tmp_path / "data" / name).write_text("\n".join(words) + "\n")
    flags = ["--model_name_or_path", "encoder", "--data_dir", "data", "--output_dir", "out"]
    result = push(hub, tmp_path, "run_tatoeba.py", *flags)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "### Tatoeba" in card(hub)[1] and "results/tatoeba_results.json" in hub.files(REPO)

    hub.client().create_repo("org/encoder")
    commit = hub.client().upload_folder(repo_id="org/encoder", folder_path=encoder)
    flags = ["--model_name_or_path", "org/encoder", "--data_dir", "data", "--output_dir", "other"]
    result = push(hub, tmp_path, "run_tatoeba.py", *flags, "--push_to_hub", "false")
    assert result.returncode == 0, result.stderr[-2000:]
    assert read_result(tmp_path / "other" / "tatoeba_results.json")["model"]["revision"] == commit.oid
