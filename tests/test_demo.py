"""The demo: what it prints, what it keeps, what it measures, and that its release needs no code of ours."""

import io
import json
import string
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import XLMRobertaTokenizer

from modeling_infoxlm import InfoXLMConfig, InfoXLMForPreTraining, demo
from modeling_infoxlm.data.shards import Corpus, PairStore, SpecialTokens
from modeling_infoxlm.evaluation.retrieval.heldout import HeldoutRetrieval
from modeling_infoxlm.hub.formats import save_as_xlm_roberta
from modeling_infoxlm.runs.errors import Interrupted

RECIPE = Path(__file__).parents[1] / "recipes" / "demo.yaml"


def screen(width: int = 100) -> Console:
    return Console(file=io.StringIO(), width=width, highlight=False)


def printed(console: Console) -> str:
    return "\n".join(line.rstrip() for line in console.file.getvalue().split("\n"))


# ------------------------------------------------------------------------------------------- what it prints


def encoder_results(forth: float, back: float) -> dict[str, Any]:
    def pair(shift: float) -> dict[str, float]:
        mean = (forth + back) / 2 + shift
        return {"source_to_target": forth + shift, "target_to_source": back + shift, "mean": mean}

    mean = (forth + back) / 2
    return {"pairs": {"en-de": pair(0.05), "en-hi": pair(-0.05)}, "mean": mean, "mean_by_layer": [0.1, mean]}


def fixed_results(*, compare: bool = False) -> dict[str, Any]:
    retrieval = {"untrained": encoder_results(0.1, 0.14), "trained": encoder_results(0.8, 0.82)}
    if compare:
        retrieval["MLM+TLM only"] = encoder_results(0.2, 0.2)
    return {
        "output_dir": "demo_output",
        "python": ".venv/bin/python",
        "seconds": 341.2,
        "stages": {
            "pre-training": {"seconds": 245.0},
            "figures": {"files": ["losses.png", "similarity.png"]},
        },
        "run": {
            "layers": 4,
            "parameters": 5_312_000,
            "objectives": ["mlm", "tlm", "xlco"],
            "steps": 600,
            "layer": 4,
            "pooling": "mean",
            "pairs": {
                "en-de": {"training": 5200, "candidates": 300},
                "en-hi": {"training": 2200, "candidates": 299},
            },
        },
        "retrieval": retrieval,
    }


def test_table_has_a_row_for_each_pair_and_the_mean() -> None:
    console = screen()
    console.print(demo.retrieval_table(fixed_results(compare=True)))
    assert (
        printed(console)
        == """\
held-out top-1 retrieval, %

  pair    candidates   untrained   trained   MLM+TLM only
 ─────────────────────────────────────────────────────────
  en-de          300        17.0      86.0           25.0
  en-hi          299         7.0      76.0           15.0

  mean                      12.0      81.0           20.0

"""
    )


def test_markdown_table_is_that_of_the_screen() -> None:
    assert demo.markdown_table(fixed_results(compare=True)) == (
        "| pair | candidates | untrained | trained | MLM+TLM only |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| en-de | 300 | 17.0 | 86.0 | 25.0 |\n"
        "| en-hi | 299 | 7.0 | 76.0 | 15.0 |\n"
        "| **mean** |  | **12.0** | **81.0** | **20.0** |\n"
    )


def test_last_screen() -> None:
    console = screen()
    demo.print_last_screen(fixed_results(), console)
    assert printed(console) == (
        """\
────────────────────────────────────────── What happened ───────────────────────────────────────────
A new encoder of 4 layers and 5.3 M parameters was trained on 7,400 sentence pairs of 2 language
pairs: 600 steps of mlm + tlm + xlco, 4 min 05 s of 5 min 41 s in all. Of sentences it never saw it
now finds 81.0% of the translations; untrained it found 12.0%. (Nearest by cosine, in both
directions, of the mean of all tokens at layer 4.)

held-out top-1 retrieval, %

  pair    candidates   untrained   trained
 ──────────────────────────────────────────
  en-de          300        17.0      86.0
  en-hi          299         7.0      76.0

  mean                      12.0      81.0

figures    demo_output/figures: losses.png, similarity.png
checkpoint demo_output/run, which goes on training
release    demo_output/xlm-roberta, plain XLM-R for AutoModel.from_pretrained
numbers    demo_output/results.json

──────────────────────────────────────── What to type next ─────────────────────────────────────────
# what the contrast adds: train without it beside
make demo-compare
# the same, longer
.venv/bin/python run_pretraining.py --config recipes/demo.yaml --max_steps 2000 --output_dir outputs/longer
# make XLM-R more cross-lingual on your own text (one pair a line: English, tab, German)
.venv/bin/python run_pretraining.py --config recipes/continue_xlmr_base.yaml \
--bitext_files YOUR-TEXT.en-de.tsv --output_dir outputs/mine
"""
    )


def test_last_screen_of_a_comparison_goes_on_to_the_release() -> None:
    console = screen()
    demo.print_last_screen(fixed_results(compare=True), console)
    assert "make demo-compare" not in printed(console)
    load = "AutoModel.from_pretrained('demo_output/xlm-roberta')"
    assert f'\n.venv/bin/python -c "from transformers import AutoModel; print({load})"\n' in printed(console)


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.6, "8 s"), (59.6, "1 min 00 s"), (245.0, "4 min 05 s"), (0.2, "0 s")]
)
def test_duration(seconds: float, text: str) -> None:
    assert demo.duration(seconds) == text


def test_losses_stand_beside_those_of_a_guess() -> None:
    history = [
        {"step": 10, "loss": 9.0, "loss/mlm": 8.0, "information/mlm": 1.0},
        {
            "step": 20,
            "loss": 7.0,
            "loss/mlm": 6.0,
            "information/mlm": 3.0,
            "loss/xlco": 1.5,
            "information/xlco": 7.5,
        },
        {"step": 20, "eval_loss": 3.0, "eval_loss/mlm": 1.0},
    ]
    assert demo._losses(history) == "nats: mlm 6.00 (guess 9.00), xlco 1.50 (guess 9.00)"


# -------------------------------------------------------------------------------------------- what it keeps


def setup_in(root: Path, recipe: Path = RECIPE) -> demo.DemoSetup:
    return demo.DemoSetup.from_recipe(recipe, root)


def test_recipe_is_read_with_the_text_and_folders_of_the_demo(tmp_path: Path) -> None:
    setup = setup_in(tmp_path / "out")
    assert setup.data_args.bitext_files == [str(demo.EXAMPLES)]
    assert setup.data_args.prepared_data == str(tmp_path / "out" / "data")
    assert setup.model_args.tokenizer_name == str(tmp_path / "out" / "tokenizer")
    assert setup.args.max_steps >= 100 and setup.data_args.heldout_fraction >= 0.1
    assert not (tmp_path / "out").exists()


def stages_in(root: Path, *, argv: tuple[str, ...] = (), fresh: bool = False) -> demo.Stages:
    results = demo.open_results(setup_in(root), argv=argv, fresh=fresh)
    return demo.Stages(screen(), results, root / demo.RESULTS_NAME, count=2)


def test_a_finished_stage_is_known_to_the_next_run_with_its_time(tmp_path: Path) -> None:
    first = stages_in(tmp_path, argv=("--compare",))
    assert not first.finished("data")
    with first.stage("data", keeps=True) as record:
        record["result"] = "nine pairs"
    first.results["stages"]["data"]["seconds"] = 12.0
    first._write()

    second = stages_in(tmp_path)
    assert second.finished("data") and not second.finished("figures")
    for name, keeps in (("data", True), ("figures", False)):
        with second.stage(name, keeps=keeps) as record:
            record["result"] = f"result of {name}"
    written = json.loads((tmp_path / demo.RESULTS_NAME).read_text())
    assert written["stages"]["data"] == {"result": "result of data", "seconds": 12.0, "reused": True}
    assert not written["stages"]["figures"]["reused"]
    assert written["seconds"] == 12.0 + written["stages"]["figures"]["seconds"]
    assert written["command"] == ["python", "-m", "modeling_infoxlm.demo"]
    assert printed(second.console) == (
        "1/2 data\n    result of data (from an earlier run)\n2/2 figures\n    result of figures (0 s)\n"
    )


def test_a_failed_stage_is_not_finished(tmp_path: Path) -> None:
    stages = stages_in(tmp_path)
    with pytest.raises(RuntimeError), stages.stage("data", keeps=True):
        (tmp_path / "data").mkdir()  # what a kill in the first stage leaves
        raise RuntimeError
    assert not stages_in(tmp_path).finished("data")


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for fresh in (False, True):
        with pytest.raises(ValueError, match="is not empty and holds no demo"):
            stages_in(tmp_path, fresh=fresh)
    (tmp_path / demo.RESULTS_NAME).write_text('{"made_by": "someone else"}')
    with pytest.raises(ValueError, match="is not empty and holds no demo"):
        stages_in(tmp_path, fresh=True)
    assert (tmp_path / "data").is_dir()


def test_fresh_removes_what_the_demo_made_and_nothing_else(tmp_path: Path) -> None:
    stages = stages_in(tmp_path)
    with stages.stage("data", keeps=True) as record:
        record["result"] = ""
    (tmp_path / "run" / "checkpoint-1").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("mine")
    assert not stages_in(tmp_path, fresh=True).finished("data")
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", demo.RESULTS_NAME}


def test_a_demo_of_another_recipe_is_refused(tmp_path: Path) -> None:
    with stages_in(tmp_path / "out").stage("data") as record:
        record["result"] = ""
    changed = tmp_path / "changed.yaml"
    changed.write_text(RECIPE.read_text(encoding="utf-8") + "\n# another\n", encoding="utf-8")
    with pytest.raises(ValueError, match="demo of another recipe .*--fresh starts over"):
        demo.open_results(setup_in(tmp_path / "out", changed), argv=[], fresh=False)


# ------------------------------------------------------------------------------------- the training process


def run_program(program: str, tmp_path: Path) -> tuple[Console, str]:
    console, log = screen(), tmp_path / "run.log"
    demo.run_with_bar([sys.executable, "-c", program], log, console, steps=3)
    return console, log.read_text()


def test_progress_moves_the_bar_and_all_else_goes_to_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = """
import sys
for step in range(4):
    sys.stderr.write(f"\\r {step}/3 [00:01<00:02]")
sys.stderr.write("\\r 1/1 [00:00]\\n")
print("{'loss': 1}")
print("WARNING modeling_infoxlm.training.trainer: collapsed", file=sys.stderr)
print("INFO modeling_infoxlm.data: read", file=sys.stderr)
"""
    completed = []
    update = demo.Progress.update
    monkeypatch.setattr(
        demo.Progress,
        "update",
        lambda self, task, **now: (completed.append(now), update(self, task, **now))[1],
    )
    console, log = run_program(program, tmp_path)
    assert completed == [{"completed": step} for step in range(4)]
    assert printed(console) == "    WARNING modeling_infoxlm.training.trainer: collapsed\n"
    assert "{'loss': 1}" in log and "INFO" in log and "1/1" in log and "3/3" not in log


def test_failure_gives_the_reason_and_the_log(tmp_path: Path) -> None:
    program = "import sys; print('error: disk full\\n(OSError; ...)', file=sys.stderr); sys.exit(1)"
    with pytest.raises(ValueError, match=r"^pre-training failed: disk full \(all it printed: .*run\.log\)$"):
        run_program(program, tmp_path)
    with pytest.raises(ValueError, match="exit code -9"):
        run_program("import os; os.kill(os.getpid(), 9)", tmp_path)


def test_interruption_is_no_failure(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="the same command goes on"):
        run_program("import sys; sys.exit(130)", tmp_path)


# ----------------------------------------------------------------------------------------- what it measures


LETTERS = ["▁", *string.ascii_lowercase]
SPECIAL = SpecialTokens(
    bos=0, pad=1, eos=2, unk=3, mask=31, vocab_size=32, all_ids=(0, 1, 2, 3, 31)
)  # <s> <pad> </s> <unk>, 27 pieces, <mask>
HELDOUT = {
    "en-de": [("a cat", "zyx"), ("the dog", "wv"), ("my house", "utsr"), ("sea", "abab")],
    "en-fr": [("the dog", "qp"), ("a tree", "onm"), ("sea", "cdcd"), ("a cat", "lkj")],
}


@pytest.fixture(scope="module")
def tokenizer() -> XLMRobertaTokenizer:
    pieces = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")]
    pieces += [(piece, -1.0 - 0.01 * rank) for rank, piece in enumerate(LETTERS)]
    return XLMRobertaTokenizer(vocab=[*pieces, ("<mask>", 0.0)], model_max_length=32)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tokenizer: XLMRobertaTokenizer) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "heldout").mkdir()
    heldout = {}
    for name, pairs in HELDOUT.items():
        (folder / "heldout" / f"{name}.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in pairs))
        sides = [
            [np.array(tokenizer(pair[side], add_special_tokens=False)["input_ids"]) for pair in pairs]
            for side in (0, 1)
        ]
        heldout[name] = PairStore(sides[0], sides[1], *name.split("-"))  # type: ignore[arg-type]
    return Corpus(folder, {}, SPECIAL, 32, mono={}, bitext=heldout, heldout=heldout)


@pytest.fixture(scope="module")
def model() -> InfoXLMForPreTraining:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    config = InfoXLMConfig(
        vocab_size=32, max_position_embeddings=40, xlco_layer=2, initializer_range=0.3, **shape
    )
    return InfoXLMForPreTraining(config)


def test_collected_sentences_are_distinct_and_map_rows_are_translations(
    corpus: Corpus, tokenizer: XLMRobertaTokenizer
) -> None:
    heldout = demo.collect_heldout(corpus, max_pairs=3)

    def text(number: int) -> str:
        return tokenizer.decode(heldout.sequences[number])

    lines = {
        name: [(text(a), text(b)) for a, b in zip(*sides, strict=True)]
        for name, sides in heldout.pairs.items()
    }
    assert lines == {name: pairs[:3] for name, pairs in HELDOUT.items()}
    assert len({ids.tobytes() for ids in heldout.sequences}) == len(heldout.sequences)
    assert heldout.languages == ["en", "de", "fr"]
    # "my house" and "a tree" are held out in one pair only; rows beyond max_pairs may be in the map.
    assert [[text(number) for number in row] for row in heldout.map_rows] == [
        ["a cat", "the dog", "sea"],
        ["zyx", "wv", "abab"],
        ["lkj", "qp", "cdcd"],
    ]


def test_measured_retrieval_is_that_of_the_evaluation_while_training(
    tmp_path: Path, corpus: Corpus, model: InfoXLMForPreTraining
) -> None:
    results: dict[str, Any] = {"run": {"layer": 2, "pooling": "mean"}, "stages": {}, "seconds": 0.0}
    stages = demo.Stages(screen(), results, tmp_path / "results.json", count=1)
    heldout = demo.collect_heldout(corpus, max_pairs=4)
    vectors = demo.measure(stages, "retrieval", {"trained": model.train()}, SPECIAL, heldout)
    entry = results["retrieval"]["trained"]
    for layer in range(4):
        expected = HeldoutRetrieval(corpus, layer=layer, max_pairs=4)(model)
        assert entry["mean_by_layer"][layer] == pytest.approx(expected["retrieval/mean"])
    expected = HeldoutRetrieval(corpus, layer=2, max_pairs=4)(model)
    assert {name: pair["mean"] for name, pair in entry["pairs"].items()} == {
        name: pytest.approx(expected[f"retrieval/{name}"]) for name in HELDOUT
    }
    assert entry["mean"] == entry["mean_by_layer"][2]
    ours = HeldoutRetrieval(corpus, layer=2, max_pairs=4).vectors(model.roberta, "en-fr")[1]
    assert np.allclose(vectors["trained"][heldout.pairs["en-fr"][1]], ours, atol=1e-6)
    assert json.loads((tmp_path / "results.json").read_text())["retrieval"] == results["retrieval"]


def test_all_figures_are_drawn_from_a_run(tmp_path: Path, corpus: Corpus) -> None:
    random = np.random.default_rng(0)
    heldout = demo.collect_heldout(corpus, max_pairs=4)
    vectors = {label: random.normal(size=(len(heldout.sequences), 8)) for label in ("untrained", "trained")}
    pairs = {name: {"mean": 0.25} for name in HELDOUT}
    retrieval = {label: {"pairs": pairs, "mean": 0.25, "mean_by_layer": [0.1, 0.25]} for label in vectors}
    results: dict[str, Any] = {"run": {"xlco_layer": 1}, "retrieval": retrieval, "stages": {}, "seconds": 0.0}
    log = {"step": 4, "loss": 1.0, "loss/mlm": 2.0, "information/mlm": 1.0, "eval_retrieval/mean": 0.75}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "trainer_state.json").write_text(json.dumps({"log_history": [log]}))
    stages = demo.Stages(screen(), results, tmp_path / "results.json", count=1)
    demo.draw_figures(stages, tmp_path / "figures", {"trained": tmp_path / "run"}, vectors, heldout)
    names = ["losses.png", "retrieval_by_layer.png", "similarity.png", "sentence_map.png"]
    assert results["stages"]["figures"]["files"] == names
    assert all((tmp_path / "figures" / name).stat().st_size > 10_000 for name in names)


# ---------------------------------------------------------------------------------------------- the release


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_release_gives_the_same_vectors_without_our_code(
    tmp_path: Path, model: InfoXLMForPreTraining, tokenizer: XLMRobertaTokenizer, pooling: str
) -> None:
    texts = ["the dog", "a much longer sentence", "sea"]
    save_as_xlm_roberta(model, tmp_path, tokenizer=tokenizer)
    plain = demo.plain_vectors(tmp_path, texts, 2, pooling)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        ours = model.eval().sentence_vectors(**inputs, layer=2, pooling=pooling)
        other = model.sentence_vectors(**inputs, layer=1, pooling=pooling)
    assert np.abs(plain - ours.numpy()).max() < 1e-5
    assert np.abs(plain - other.numpy()).max() > 1e-2


def test_release_that_differs_is_an_error(
    tmp_path: Path,
    corpus: Corpus,
    model: InfoXLMForPreTraining,
    tokenizer: XLMRobertaTokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results: dict[str, Any] = {"run": {"layer": 2, "pooling": "mean"}, "stages": {}, "seconds": 0.0}
    stages = demo.Stages(screen(), results, tmp_path / "results.json", count=1)
    monkeypatch.setattr(demo, "plain_vectors", lambda *given: np.full((8, 16), np.nan))
    with pytest.raises(ValueError, match="differ from ours by up to nan"):
        demo.export(stages, tmp_path / "xlm-roberta", model.eval(), tokenizer, corpus)
    assert "export to plain XLM-R" not in results["stages"]


def test_broken_release_is_reported_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="AutoModel cannot load .*: .+"):
        demo.plain_vectors(tmp_path, ["a"], 1, "mean")
