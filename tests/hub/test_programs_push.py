"""Programs that push: at every moment the Hub holds a model that loads, with its card and results."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hub.server import LoopbackHub
from huggingface_hub import metadata_load
from safetensors.torch import load_file
from tiny_encoder import save_tiny_encoder
from tiny_nli import write_encoders
from tiny_qa import write_sets
from tiny_text import TINY_DATA, TINY_MODEL, TINY_RUN, sentence_pairs, write_pairs
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from modeling_infoxlm.runs.provenance import read_result

ROOT = Path(__file__).parents[2]
REPO = "org/run"


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    text = write_pairs(tmp_path / "en-xx.tsv", sentence_pairs(40))
    own = "--mono_from_bitext true --save_steps 20 --push_to_hub true --hub_strategy every_save".split()
    files = ["--bitext_files", str(text), "--output_dir", str(tmp_path / "out"), "--hub_model_id", REPO]
    shape = [*TINY_MODEL, *TINY_DATA, *TINY_RUN]
    return [sys.executable, "run_pretraining.py", *files, *shape, *own]


def environment(hub: LoopbackHub, tmp_path: Path) -> dict[str, str]:
    return hub.environment(tmp_path / "home") | {"OMP_NUM_THREADS": "1"}


def run(
    command: list[str], hub: LoopbackHub, tmp_path: Path, folder: Path = ROOT, **variables: str
) -> subprocess.CompletedProcess[str]:
    given = environment(hub, tmp_path) | variables
    return subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, timeout=240)


def commits_of_models(hub: LoopbackHub) -> Iterator[dict[str, bytes]]:
    """Files of each commit but the Hub's own first one."""
    if REPO in hub.repositories:
        yield from (commit.files for commit in hub.commits(REPO)[:-1])


def write_files(files: dict[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def test_a_killed_run_leaves_a_model_on_the_hub(hub: LoopbackHub, command: list[str], tmp_path: Path) -> None:
    with subprocess.Popen(
        [*command, "--max_steps", "100000"],
        cwd=ROOT,
        env=environment(hub, tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while process.poll() is None and len(list(commits_of_models(hub))) < 2:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    for number, files in enumerate(commits_of_models(hub)):
        write_files(files, tmp_path / str(number))
        model, report = AutoModelForMaskedLM.from_pretrained(tmp_path / str(number), output_loading_info=True)
        assert type(model).__name__ == "XLMRobertaForMaskedLM" and not report["missing_keys"]
        assert len(AutoTokenizer.from_pretrained(tmp_path / str(number))) == model.config.vocab_size
        assert metadata_load(tmp_path / str(number) / "README.md")["language"] == ["multilingual", "en", "xx"]
        assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    assert b"a checkpoint of a training that had not ended" in hub.files(REPO)["README.md"]

    # With the checkpoint strategy all that resumption needs is there.
    own = "--max_steps 20 --overwrite_output_dir true --hub_strategy checkpoint --hub_format infoxlm".split()
    result = run([*command, *own], hub, tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    saved = {path.name: path.read_bytes() for path in (tmp_path / "out" / "checkpoint-20").iterdir()}
    pushed = next(files for files in commits_of_models(hub) if "last-checkpoint/config.json" in files)
    start = "last-checkpoint/"
    beside = {name.removeprefix(start): pushed[name] for name in pushed if name.startswith(start)}
    assert beside == saved and "momentum_state.safetensors" in saved
    assert hub.tags(REPO) == {"v1": hub.repositories[REPO].heads["main"]}
    assert b"had not ended" not in hub.files(REPO)["README.md"]
    assert not list((tmp_path / "out").glob(".pushing/*"))
    write_files(hub.files(REPO), tmp_path / "last")
    assert type(AutoModel.from_pretrained(tmp_path / "last")).__name__ == "InfoXLMModel"
    weights = load_file(tmp_path / "last" / "model.safetensors")
    assert set(weights) <= set(load_file(tmp_path / "out" / "model.safetensors"))


def test_a_refusal_comes_before_the_first_step(hub: LoopbackHub, command: list[str], tmp_path: Path) -> None:
    result = run([*command, "--max_steps", "20"], hub, tmp_path, HF_TOKEN=hub.read_token)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "out" / "checkpoint-20").exists()


BY_HAND = """
import sys
from pathlib import Path
from tiny_run import tiny_corpus, tiny_model
from modeling_infoxlm import InfoXLMTrainer, JointDataset, PretrainingArguments, StreamSettings
from modeling_infoxlm import ContrastArguments
folder = Path(sys.argv[1])
args = PretrainingArguments(
    output_dir=str(folder / "out"),
    max_steps=2,
    per_device_train_batch_size=2,
    save_strategy="no",
    warmup_steps=0,
    use_cpu=True,
    disable_tqdm=True,
    push_to_hub=True,
    hub_model_id="org/run",
    hub_strategy="end",
)
data = JointDataset(tiny_corpus(folder / "corpus"), StreamSettings(xlco_examples=2), 4)
trainer = InfoXLMTrainer(tiny_model(), args, contrast=ContrastArguments(queue_size=8), train_dataset=data)
trainer.train()
first = trainer.push_to_hub("by hand")
later = trainer.push_to_hub("in the background", blocking=False)
print(first, later.result())
"""


def test_a_trainer_pushes_when_told(hub: LoopbackHub, tmp_path: Path) -> None:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    result = run([sys.executable, "-c", BY_HAND, str(tmp_path)], hub, tmp_path, PYTHONPATH=paths)
    assert result.returncode == 0, result.stderr[-2000:]
    (commit,) = hub.commits(REPO)[:-1]  # nothing had changed the second time
    assert commit.message == "by hand" and hub.tags(REPO) == {"v1": commit.oid}
    assert {"config.json", "model.safetensors", "README.md", "release.json"} <= set(commit.files)
    assert result.stdout.split()[-2].endswith(commit.oid)


# --- evaluation: model, results and card arrive together ---------------------------------------------------


def evaluate(script: str, hub: LoopbackHub, tmp_path: Path, *flags: str) -> None:
    command = [sys.executable, str(ROOT / script), "--push_to_hub", "true", "--hub_model_id", REPO, *flags]
    result = run(command, hub, tmp_path, folder=tmp_path, PYTHONPATH=str(ROOT))
    assert result.returncode == 0, result.stderr[-2000:]


def test_a_fine_tuning(hub: LoopbackHub, tmp_path: Path) -> None:
    """Question answering has two results; XNLI is pushed by the same lines."""
    write_encoders(tmp_path)
    write_sets(tmp_path / "data")
    training = (
        "--use_cpu true --disable_tqdm true --seed 1 --per_device_train_batch_size 8 --max_steps 2 "
        "--eval_strategy no --save_steps 2 --hub_license mit"
    ).split()
    places = "--model_name_or_path infoxlm --train_file data/train-v1.1.json --output_dir out".split()
    tests = ["--test_files", "data/mlqa", "data/xquad", "--cache_dir", "cache"]
    shape = "--max_seq_length 16 --doc_stride 4 --max_query_length 4 --max_answer_length 2".split()
    evaluate("run_mlqa.py", hub, tmp_path, *places, *tests, *shape, *training)
    text = hub.files(REPO)["README.md"].decode()
    metadata = yaml.safe_load(text.split("---\n")[1])
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
    evaluate("run_tatoeba.py", hub, tmp_path, *flags)
    assert b"### Tatoeba" in hub.files(REPO)["README.md"] and "results/tatoeba_results.json" in hub.files(
        REPO
    )

    hub.client().create_repo("org/encoder")
    commit = hub.client().upload_folder(repo_id="org/encoder", folder_path=encoder)
    flags = ["--model_name_or_path", "org/encoder", "--data_dir", "data", "--output_dir", "other"]
    evaluate("run_tatoeba.py", hub, tmp_path, *flags, "--push_to_hub", "false")
    assert read_result(tmp_path / "other" / "tatoeba_results.json")["model"]["revision"] == commit.oid
