"""`infoxlm information` on tiny models."""

import math
import re
import string
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_pretraining import Refusal
from tiny_run import sharp_model
from tiny_text import sentence_pairs, write_pairs
from tiny_tokenizers import letter_tokenizer
from transformers import AutoConfig, AutoModelForMaskedLM, BertTokenizer, XLMRobertaForMaskedLM

from modeling_infoxlm.commands import information
from modeling_infoxlm.commands.information import best_layer, draw_pairs
from modeling_infoxlm.data.ragged import PackedRows
from modeling_infoxlm.data.sources import parse_bitext_sources
from modeling_infoxlm.evaluation.batching import runs_packed
from modeling_infoxlm.evaluation.encoders import EncoderArguments, load_encoder
from modeling_infoxlm.evaluation.information import join_sides, load_language_model, mask_side
from modeling_infoxlm.hub.formats import save_as_xlm_roberta
from modeling_infoxlm.runs.process import run_main
from modeling_infoxlm.runs.provenance import read_result


def test_the_layer_is_chosen_on_the_halves_that_are_not_measured() -> None:
    def bound(value: float, tuned: float) -> Any:
        return SimpleNamespace(estimate=SimpleNamespace(value=value), tuned=tuned)

    pairs = [{3: bound(9, 1), 4: bound(1, 2)}, {3: bound(9, 4), 4: bound(1, 4)}]
    assert best_layer(pairs) == 4


def test_draws_are_uniform_and_in_random_order(tmp_path: Path) -> None:
    pairs = [(f"s{i}", f"t{i}") for i in range(12)] + [("only source", "")]
    (source,) = parse_bitext_sources([str(write_pairs(tmp_path / "en-xx.tsv", pairs))])
    first: list[str] = []
    drawn: list[str] = []
    for seed in range(400):
        sample = draw_pairs([source], max_pairs=4, seed=seed)
        assert len(set(sample.texts)) == 4 and sample.num_pairs == 12
        first.append(sample.texts[0][0])
        drawn += [pair[0] for pair in sample.texts]
        assert all(one[1:] == other[1:] for one, other in sample.texts)
    assert np.unique(drawn, return_counts=True)[1] == pytest.approx(np.full(12, 400 / 3), abs=45)
    assert np.unique(first, return_counts=True)[1] == pytest.approx(np.full(12, 400 / 12), abs=25)


def save(kind: str, folder: Path) -> str:
    """A folder of a tiny model: our checkpoint, our plain export, an encoder alone, or a BERT."""
    if kind in ("bert", "distilbert"):
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase]
        words += [f"##{letter}" for letter in string.ascii_lowercase]
        BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
        shape = {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "initializer_range": 0.3,
        }
        config = AutoConfig.for_model(kind, vocab_size=len(words), **shape)
        torch.manual_seed(1)
        AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
        return str(folder)
    model = sharp_model()
    if kind == "checkpoint":
        model.save_pretrained(folder)
    elif kind == "export":
        save_as_xlm_roberta(model, folder)
    else:
        encoder = XLMRobertaForMaskedLM(model.config).roberta
        encoder.config.model_type = "xlm-roberta"
        encoder.save_pretrained(folder)
    letter_tokenizer(".").save_pretrained(folder)
    return str(folder)


def command(folder: Path, model: str, *flags: str) -> list[str]:
    argv = ["--model_name_or_path", model, "--output_dir", str(folder / "out")]
    return [*argv, "--num_candidates", "20", "--max_pairs", "50", *flags]


def run(folder: Path, model: str, *flags: str) -> dict[str, Any]:
    text = write_pairs(folder / "en-xx.tsv", sentence_pairs(60))
    information.run(command(folder, model, "--bitext_files", str(text), *flags))
    return read_result(folder / "out" / "information_results.json")


def test_the_command_writes_every_view(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save("checkpoint", tmp_path / "model")
    result = run(tmp_path, model, "--seed", "3")
    scores = result["scores"]["en-xx"]
    assert set(scores) == {"xlco", "mlm", "tlm", "tlm_minus_mlm"}
    assert all(score["low"] <= score["value"] <= score["high"] for score in scores.values())
    assert scores["xlco"]["count"] == 20 and scores["mlm"]["count"] == 50  # 25 measured, one group of 20
    assert result["unit"] == "nats" and result["metric"] == "xlco" and result["seed"] == 3
    assert result["settings"]["log_candidates"] == pytest.approx(math.log(20))
    layers = result["details"]["layers"]["en-xx"]
    assert list(layers) == ["0", "1", "2", "3"]
    assert layers[str(result["settings"]["layer"])]["value"] == scores["xlco"]["value"]
    assert result["details"]["samples"]["en-xx"] == {"sampled": 50, "of": 60, "skipped_lines": 0}
    assert set(result["details"]["tokens"]["en-xx"]) == {"en", "xx"}
    assert result["summary"]["tlm"] == scores["tlm"]["value"]
    assert list(result["dataset"]["files"]) == ["en-xx.tsv"]
    assert result["command"][:2] == ["infoxlm", "information"]
    printed = capsys.readouterr().out
    assert "tlm minus mlm" in printed and f"{scores['tlm']['value']:.2f}" in printed
    assert "never above 3.00" in printed
    for asked in (["2"], ["3", "1"]):
        again = run(tmp_path, model, "--seed", "3", "--layers", *asked)
        assert again["scores"]["en-xx"]["mlm"] == scores["mlm"]
        curve = again["details"]["layers"]["en-xx"]
        assert list(curve) == asked
        assert [curve[layer]["value"] for layer in asked] == pytest.approx(
            [layers[layer]["value"] for layer in asked], abs=1e-4
        )


def test_without_a_head_there_is_the_sentence_view(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = run(tmp_path, save("encoder", tmp_path / "model"))
    assert set(result["scores"]["en-xx"]) == {"xlco"} and result["details"]["tokens"] == {}
    assert "Only the sentence view" in caplog.text and "no language model head" in caplog.text


@pytest.mark.parametrize(("kind", "packed"), [("bert", True), ("distilbert", False)])
def test_another_architecture_has_all_views(tmp_path: Path, kind: str, packed: bool) -> None:
    """Against the logits of one sequence at a time."""
    folder = save(kind, tmp_path / "model")
    arguments = EncoderArguments(model_name_or_path=folder)
    model = load_language_model(arguments, load_encoder(arguments))
    texts = [
        model.tokenizer(list(side), add_special_tokens=False)["input_ids"]
        for side in zip(*sentence_pairs(9), strict=True)
    ]
    keys = np.arange(9, dtype=np.uint64)
    sides = [mask_side(PackedRows.from_lists(text), model.special, keys=keys) for text in texts]
    sequences = join_sides(sides, model.special)
    found = model.losses(sequences, progress=False)
    assert runs_packed(model.model) == packed and len(found) > 10
    slow, expected = AutoModelForMaskedLM.from_pretrained(folder).eval(), np.zeros(len(found))
    ends = np.cumsum(sequences.inputs.lengths)
    for start, end in zip(ends - sequences.inputs.lengths, ends, strict=True):
        ids = torch.from_numpy(sequences.inputs.tokens[start:end].astype(np.int64))
        with torch.no_grad():
            logits = slow(ids[None]).logits[0].log_softmax(-1)
        for token in range(start, end):
            if sequences.place[token] >= 0:
                expected[sequences.place[token]] = -logits[token - start, sequences.targets[token]]
    assert found == pytest.approx(expected, abs=1e-4)
    assert set(run(tmp_path, folder)["scores"]["en-xx"]) == {"xlco", "mlm", "tlm", "tlm_minus_mlm"}


def test_long_sentences_are_cut_for_both_token_views(tmp_path: Path) -> None:
    longest = 512 - 2
    long = [("a" * longest + source, "b" * longest + target) for source, target in sentence_pairs(4)]
    text = write_pairs(tmp_path / "long" / "en-xx.tsv", long)
    own = ["--bitext_files", str(text), "--num_candidates", "2", "--max_pairs", "4"]
    result = run(tmp_path, save("export", tmp_path / "model"), *own)
    tokens = result["details"]["tokens"]["en-xx"]["en"]["tokens"]
    assert tokens == pytest.approx(4 * 0.15 * ((512 - 3) // 2), abs=4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--layers 4", r"layer must be in 0\.\.3, found 4"),
        ("--num_candidates 31 --max_pairs 62", "en-xx has 60 pairs .* --num_candidates 30"),
        ("--num_candidates 1", "num_candidates must be at least 2, found 1"),
        ("--max_pairs 39", r"at least twice num_candidates \(40\), found 39"),
        ("--bitext_files hub:some/bitext:en-de", "is on the Hub; give local files"),
        ("", "no text: give --bitext_files"),
    ],
)
def test_bad_input_leaves_nothing_written(tmp_path: Path, flags: str, message: str, refusal: Refusal) -> None:
    text = write_pairs(tmp_path / "en-xx.tsv", sentence_pairs(60))
    own = ["--bitext_files", str(text), *flags.split()] if flags else []
    argv = command(tmp_path, save("checkpoint", tmp_path / "model"), *own)
    assert re.search(message, refusal(argv, main=partial(run_main, information.run)))
    assert not (tmp_path / "out").exists()
