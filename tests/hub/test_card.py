"""Cards: each word comes from a file of the release, and each snippet runs."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub.finished_run import save_finished_run, save_tiny_model, write_result_file
from hub.server import LoopbackHub
from huggingface_hub import metadata_load
from markdown_it import MarkdownIt
from tiny_heads import save_checkpoint

from modeling_infoxlm.hub.card import MARKER, build_card
from modeling_infoxlm.hub.checkup import check_card
from modeling_infoxlm.hub.export import FORMATS, export, read_record
from modeling_infoxlm.hub.publish import push_release
from modeling_infoxlm.hub.push import card_command
from modeling_infoxlm.hub.release import build_release
from modeling_infoxlm.hub.retries import RetriedApi
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.process import run_main

REPO = "org/infoxlm-demo"
EXPECTED = Path(__file__).with_name("expected_card.md")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_finished_run(tmp_path_factory.mktemp("card") / "out")


def card_of(release: Path) -> str:
    return (release / "README.md").read_text(encoding="utf-8")


def test_each_number_in_the_card_of_a_demo_run_stands_in_a_file(run: Path, tmp_path: Path) -> None:
    """Numbers of the body, rounded as they are shown; those of the snippets are no results."""
    result = write_result_file(tmp_path / "xnli_results.json", run)
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "sentence_map.png").write_bytes(b"picture")
    release = tmp_path / "release"
    build_release(run, release, repo_id=REPO, results=[result, tmp_path / "given"], license="apache-2.0")
    record = read_record(release)
    assert record is not None and record.source_sha256 is not None
    found = card_of(release).replace(record.source_sha256, "SHA256 OF THE WEIGHTS")
    assert found == EXPECTED.read_text(encoding="utf-8")

    body = re.sub(r"```.*?```", "", found.split("---\n", 2)[2], flags=re.DOTALL)
    files = [path.read_text() for path in release.rglob("*.json")]
    known = {float(text) for file in files for text in re.findall(r"-?\d+\.?\d*(?:e[-+]?\d+)?", file)}
    for text in re.findall(r"(?<![\w.:/-])\d[\d,]*\.?\d*(?:e[-+]\d+)?(?![\w:/])", body):
        value, digits = float(text.replace(",", "")), len(text.partition(".")[2])
        scaled = (number * scale for number in known for scale in (1, 100, 1 / 3600))
        assert any(abs(number - value) <= 0.5000001 * 10**-digits for number in scaled) or (
            value in (1, 95) or "e" in text  # top-1, 95 % intervals; rounded to three digits
        ), text


def test_both_ends_of_a_run_a_warning_and_parts_of_test_sets_are_shown_as_such(tmp_path: Path) -> None:
    run, release = save_finished_run(tmp_path / "out"), tmp_path / "release"
    metrics = json.loads((run / "eval_results.json").read_text())
    metrics |= {"start_retrieval/mean": 0.9, "start_loss/mlm": 9.5, "warning": "ENDED WORSE: 90.0 -> 82.1 %"}
    (run / "eval_results.json").write_text(json.dumps(metrics))
    part = {"en": {"accuracy": {"value": 84.25, "low": 83.0, "high": 85.0, "count": 100}}}
    result = write_result_file(tmp_path / "xnli_results.json", run, scores=part)
    build_release(run, release, repo_id=REPO, results=[result], dtype="bfloat16")
    card = card_of(release)
    assert "**ENDED WORSE: 90.0 -> 82.1 %**" in card
    assert "| pair | before the training | after it, top-1 |" in card
    assert "| en-de |  | 81.5 |" in card and "| mean | 90.0 | 82.1 |" in card
    assert "| loss/mlm | 9.500 | 7.458 |" in card
    assert "Not a whole public test set" in card and "84.2" in card
    assert "model-index" not in card and not (release / ".eval_results").exists()
    assert "It was measured before the weights were stored as bfloat16." in card


def test_without_records_the_card_claims_nothing(tmp_path: Path) -> None:
    build_release(save_tiny_model(tmp_path / "bare"), tmp_path / "release", repo_id=REPO)
    card = card_of(tmp_path / "release")
    assert "How it was trained is not recorded here." in card and "Nothing was measured." in card
    assert "model-index" not in card and "base_model" not in card and "license" not in card


def test_a_card_of_ones_own_is_kept(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "exported")
    (tmp_path / "exported" / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    build_release(tmp_path / "exported", tmp_path / "release", repo_id=REPO)
    assert card_of(tmp_path / "release").endswith("Mine.\n")
    (tmp_path / "exported" / "README.md").write_text(f"old {MARKER}")
    build_release(tmp_path / "exported", tmp_path / "again", repo_id=REPO)
    assert "## How to use it" in card_of(tmp_path / "again")
    assert (tmp_path / "exported" / "README.md").read_text() == f"old {MARKER}"


def test_the_card_of_a_local_release_is_completed_in_its_folder(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "exported"
    export(run, folder)
    write_result_file(tmp_path / "measured" / "xnli_results.json", folder)
    command = [str(folder), "--results", str(tmp_path / "measured"), "--license", "mit"]
    assert run_main(card_command, command) == 0
    shown, card = capsys.readouterr().out, card_of(folder)
    assert f'from_pretrained("{folder}"' in card and "license: mit" in card and "### XNLI" in card
    assert "XNLI" in shown and "license: mit" not in shown
    assert "results/xnli_results.json" in str(read_record(folder))  # so that the next push knows it
    assert run_main(card_command, [str(run)]) == 2
    assert "needs a release" in (error := capsys.readouterr().err) and "infoxlm export makes one" in error


def test_a_base_model_is_named_if_it_is_one_of_the_hub(run: Path, tmp_path: Path) -> None:
    build_release(run, tmp_path / "release", repo_id=REPO)
    path = tmp_path / "release" / "training.json"
    training = json.loads(path.read_text())
    training["recipe"]["objectives"] = "mlm,word_alignment"  # one from outside the package
    path.write_text(json.dumps({**training, "base_model": "org/base", "starts_from": "base"}))
    card = build_card(tmp_path / "release", REPO)
    metadata = yaml.safe_load(card.data.to_yaml())
    assert (metadata["base_model"], metadata["base_model_relation"]) == ("org/base", "finetune")
    assert "started from `org/base` and further pre-trained on 10 languages" in card.text
    assert "by masked words (MLM) and word_alignment." in card.text


# ---------------------------------------------------------------------------- what is shipped


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_a_cut_release_states_its_own_vectors(run: Path, tmp_path: Path, layer: int) -> None:
    """Held-out retrieval was of layer 3, mean; the contrast trained layer 4."""
    options = {"format": "sentence-transformers", "layer": layer}
    build_release(run, tmp_path / "release", repo_id=REPO, **options)
    card = card_of(tmp_path / "release")
    assert f"**Vectors:** mean of all tokens of layer {layer}, the last of this release" in card
    assert "**Contrast trained on:** mean of all tokens of layer 4" in card
    assert ("| en-de | 81.5 |" in card) == (layer == 3)
    assert ("which were not measured" in card) == (layer != 3)


CUT: dict[str, Any] = {"repo_id": REPO, "format": "sentence-transformers", "layer": 2}


def test_results_are_of_the_vectors_of_the_release_or_refused(run: Path, tmp_path: Path) -> None:
    cut, path = tmp_path / "cut", tmp_path / "tatoeba_results.json"
    fitting: dict[str, Any] = {"task": "tatoeba", "settings": {"layer": 2, "pooling": "mean"}}
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"settings": {"layer": 3, "pooling": "mean"}}, "is of layer 3, the release of layer 2"),
        ({"settings": {"layer": 2, "pooling": "cls"}}, "is of pooling cls, the release of pooling mean"),
        # An older program may have written it.
        ({"command": ["x.py", "--run_name", "hf_" + "aB1" * 12]}, r"results\.json holds an access token"),
    )
    for number, (changes, words) in enumerate(refused):
        result = write_result_file(path, run, **fitting | changes)
        with pytest.raises(UsageError, match=words):
            build_release(run, tmp_path / str(number), results=[result], **CUT)
        assert not (tmp_path / str(number)).exists()
    export(run, cut, format="sentence-transformers", layer=2)
    own = write_result_file(path, cut, **fitting)
    build_release(cut, tmp_path / "of_cut", repo_id=REPO, results=[own])
    build_release(run, tmp_path / "of_run", results=[own], **CUT)
    of_source = write_result_file(path, run, **fitting)
    build_release(run, tmp_path / "release", results=[of_source], **CUT)
    assert "layer 2, pooling mean" in card_of(tmp_path / "release")


def test_values_are_those_in_effect_and_never_null(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "out")
    record = json.loads((run / "run.json").read_text())
    record["identity"] |= {"xlco_layer": None, "xlco_pooling": None, "max_side_length": None}
    record["identity"] |= {"xlco_use_projection": None, "optim_args": None, "hidden_size": None}
    (tmp_path / "out" / "run.json").write_text(json.dumps(record))
    for layer, shown in ((2, 2), (-1, 3)):
        config = json.loads((run / "config.json").read_text()) | {"xlco_layer": layer}
        (tmp_path / "out" / "config.json").write_text(json.dumps(config))
        release = tmp_path / f"release{layer}"
        build_release(tmp_path / "out", release, repo_id=REPO)
        card = card_of(release)
        assert "null" not in card and "None" not in card
        assert f"| `xlco_layer` | `{shown}` |" in card and '| `xlco_pooling` | `"cls"` |' in card
        assert "| `max_side_length` | `62` |" in card and "| `hidden_size` | `16` |" in card
        assert f"**Contrast trained on:** `<s>` of layer {shown}, through a projection, no part of" in card
        assert None not in json.loads((release / "training.json").read_text())["recipe"].values()


# ---------------------------------------------------------------------------- what others wrote

HOSTILE = (
    "x\n\n# Owned\n<img src=x onerror=alert(1)> <!-- --> [a](http://evil.example) ![b](c) `code` ``` | --- |"
    " **b** _i_ ~~s~~ </details> {{ 7 * 7 }} {% raw %} \\| \\` $x$ https://evil.example www.evil.example &lt;"
    " \u202e\x00\n---\nlicense: evil\n---\n```\n| a | b |\n| - | - |\n- item\n1. item"
)


def structure(card: str) -> list[tuple[str, str]]:
    """What a reader's browser would make of a card, without the words."""
    body = card.split("\n---\n", 1)[1]
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(body)
    flat = [inner for token in tokens for inner in (token, *(token.children or ()))]
    return [(token.type, token.tag) for token in flat if token.type not in ("text", "softbreak")]


def with_one_text(content: Any, text: str) -> Iterator[Any]:
    """Copies of what a JSON file holds, in each of which one text, or one key, is this one."""
    if isinstance(content, str):
        yield text
    elif isinstance(content, list):
        for i, value in enumerate(content):
            yield from ([*content[:i], new, *content[i + 1 :]] for new in with_one_text(value, text))
    elif isinstance(content, dict):
        for key, value in content.items():
            yield {(text if name == key else name): content[name] for name in content}
            yield from ({**content, key: new} for new in with_one_text(value, text))


def test_nothing_that_others_wrote_gets_into_a_card_as_markup(run: Path, tmp_path: Path) -> None:
    """Each text and each key of each file: it is refused, or shown as the words that it is."""
    release = tmp_path / "release"
    tatoeba = write_result_file(
        tmp_path / "tatoeba_results.json", run, task="tatoeba", settings={"layer": 2, "pooling": "mean"}
    )
    results = [write_result_file(tmp_path / "xnli_results.json", run), tatoeba]
    (run / "figures").mkdir(exist_ok=True)
    (run / "figures" / "a](b) <i> [c.png").write_bytes(b"picture")
    build_release(run, release, repo_id=REPO, results=results)
    shown = refused = 0
    names = ("training.json", "release.json", "results/xnli_results.json", "results/tatoeba_results.json")
    for name in names:
        path = release / name
        content = json.loads(path.read_text())
        content |= {"base_model": "org/base"} if name == "training.json" else {}
        for changed in zip(*(with_one_text(content, text) for text in ("harmless", HOSTILE)), strict=True):
            cards = []
            for one in changed:
                path.write_text(json.dumps(one))
                try:
                    cards.append(str(build_card(release, REPO)))
                except UsageError:
                    refused += 1
            if len(cards) == 2:
                shown += 1
                assert structure(cards[0]) == structure(cards[1]), changed
                metadata, harmless = (yaml.safe_load(card.split("---\n")[1]) for card in reversed(cards))
                assert metadata.keys() <= harmless.keys() and metadata.get("license") is None, changed
        path.write_text(json.dumps(content))
    assert shown > 250 and refused > 100, (shown, refused)


# ---------------------------------------------------------------------------- snippets

# Each snippet as a user would paste it, where our package cannot be imported.
RUN_SNIPPETS = """
import json, os, sys
sys.modules["modeling_infoxlm"] = None
os.chdir(sys.argv[1])
for name, code in json.load(open("snippets.json")).items():
    try:
        exec(compile(code, name, "exec"), {"__name__": "__main__"})
    except BaseException as error:
        sys.exit(f"{name}: {type(error).__name__}: {error}")
    print("done:", name)
"""


def test_each_snippet_of_each_card_runs(hub: LoopbackHub, run: Path, tmp_path: Path) -> None:
    sources: dict[str, tuple[Path, str]] = {form: (run, form) for form in FORMATS}
    for kind in ("ForSequenceClassification", "ForQuestionAnswering"):
        sources[kind] = (save_checkpoint(tmp_path / kind, kind), "xlm-roberta")
    result = write_result_file(tmp_path / "xnli_results.json", run)
    snippets, pipelines = {}, {}
    for name, (source, form) in sources.items():
        repo_id, release, results = f"org/{name}", tmp_path / "releases" / name, [result][: source == run]
        build_release(source, release, repo_id=repo_id, format=form, results=results, license="mit")
        push_release(release, repo_id, api=RetriedApi(hub.client()))
        assert check_card(release).level == "ok"
        metadata = metadata_load(release / "README.md")
        pipelines[name] = (metadata["pipeline_tag"], metadata["library_name"])
        if results:
            assert metadata["license"] == "mit" and metadata["language"][:2] == ["multilingual", "de"]
            found = [entry["dataset"]["config"] for entry in metadata["model-index"][0]["results"]]
            assert found == ["en", "sw"]
        blocks = re.findall(r"### (.*?)\n\n```python\n(.*?)```", card_of(release), flags=re.DOTALL)
        snippets |= {f"{name}: {heading}": code for heading, code in blocks}
    assert pipelines == {
        "xlm-roberta": ("fill-mask", "transformers"),
        "infoxlm": ("fill-mask", "transformers"),
        "sentence-transformers": ("sentence-similarity", "sentence-transformers"),
        "onnx": ("feature-extraction", "transformers"),
        "ForSequenceClassification": ("text-classification", "transformers"),
        "ForQuestionAnswering": ("question-answering", "transformers"),
    }
    assert len(snippets) == 10  # three each of the encoders with a head for words, one each of the others
    (tmp_path / "snippets.json").write_text(json.dumps(snippets))
    process = subprocess.run(
        [sys.executable, "-c", RUN_SNIPPETS, str(tmp_path)],
        env=hub.environment(tmp_path / "home") | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    assert process.stdout.count("done:") == len(snippets)
