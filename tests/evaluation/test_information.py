"""Bounds of mutual information where the information is known, and the command on tiny models."""

import math
import re
import string
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import tiny_model
from tiny_text import sentence_pairs, write_pairs
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    XLMRobertaForMaskedLM,
    XLMRobertaModel,
    XLMRobertaTokenizer,
)

from modeling_infoxlm.data.ragged import PackedRows
from modeling_infoxlm.data.shards import SpecialTokens
from modeling_infoxlm.data.sources import parse_bitext_sources
from modeling_infoxlm.evaluation import information
from modeling_infoxlm.evaluation.encoders import EncoderArguments, load_encoder
from modeling_infoxlm.evaluation.information import (
    LanguageModel,
    best_layer,
    best_temperature,
    draw_pairs,
    grouped_cosines,
    infonce_terms,
    information_command,
    join_sides,
    load_language_model,
    mask_side,
    mean_gain,
    sentence_bound,
    token_bounds,
)
from modeling_infoxlm.hub.formats import save_as_xlm_roberta
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.process import run_main
from modeling_infoxlm.runs.provenance import read_result

SPECIAL = SpecialTokens(bos=0, pad=1, eos=2, unk=3, mask=59, vocab_size=60, all_ids=(0, 1, 2, 3, 59))


# --- the sentence view --------------------------------------------------------------------------------------


def gaussian_pair(
    rho: float, *, pairs: int, size: int, seed: int = 1
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Vectors whose coordinates are correlated by rho, and their information in nats."""
    generator = torch.Generator().manual_seed(seed)
    source, noise = torch.randn(2, pairs, size, generator=generator)
    target = rho * source + math.sqrt(1 - rho**2) * noise
    return source, target, -size / 2 * math.log(1 - rho**2) if rho < 1 else math.inf


@pytest.mark.parametrize("rho", [0.05, 0.1, 0.15, 0.2])
def test_small_information_of_gaussians_is_bounded_closely(rho: float) -> None:
    source, target, truth = gaussian_pair(rho, pairs=4000, size=64)
    bound = sentence_bound(source, target, num_candidates=500)
    assert truth < math.log(500) / 3
    assert bound.estimate.low < truth  # a bound, but for the noise of the sample
    assert bound.estimate.value == pytest.approx(truth, abs=0.05 + 0.15 * truth)
    assert bound.estimate.count == 2000


def test_large_information_is_cut_at_the_logarithm_of_the_candidates() -> None:
    source, target, truth = gaussian_pair(0.9, pairs=800, size=64)
    for candidates in (10, 100, 400):
        bound = sentence_bound(source, target, num_candidates=candidates).estimate
        assert math.log(candidates) - 0.01 < bound.value <= math.log(candidates) + 1e-6
        assert math.log(candidates) < truth / 5


def test_moderate_information_is_bounded_from_below() -> None:
    """Where truth and logarithm are near each other the bound lies clearly below both."""
    source, target, truth = gaussian_pair(0.38, pairs=4000, size=64)
    bound = sentence_bound(source, target, num_candidates=200).estimate
    assert abs(truth - math.log(200)) < 0.5
    assert 0.5 * truth < bound.high < truth - 0.2


@pytest.mark.parametrize("seed", range(5))
def test_independent_vectors_have_none(seed: int) -> None:
    source = gaussian_pair(0, pairs=2000, size=16, seed=seed)[0]
    target = gaussian_pair(0, pairs=2000, size=16, seed=100 + seed)[0]
    bound = sentence_bound(source, target, num_candidates=500)
    assert bound.estimate.low <= 0 and abs(bound.estimate.value) < 0.03


def test_the_temperature_is_chosen_on_pairs_that_are_not_measured() -> None:
    """Related halves and unrelated ones: what is seen in the first says nothing of the second."""
    source, target, _ = gaussian_pair(0.9, pairs=200, size=64)
    source[100:] = gaussian_pair(0, pairs=100, size=64, seed=5)[0]
    bound = sentence_bound(source, target, num_candidates=100)
    assert bound.tuned == pytest.approx(math.log(100), abs=0.01)
    assert bound.estimate.value < 0


def test_terms_by_the_definition() -> None:
    source, target, _ = gaussian_pair(0.5, pairs=13, size=6)
    terms = infonce_terms(grouped_cosines(source, target, 6), 0.3)
    expected = []
    for start in (0, 6):  # the thirteenth pair is left over
        for i in range(start, start + 6):
            group = range(start, start + 6)
            forth = [float(torch.cosine_similarity(source[i], target[j], dim=0)) / 0.3 for j in group]
            back = [float(torch.cosine_similarity(source[j], target[i], dim=0)) / 0.3 for j in group]
            losses = [math.log(sum(map(math.exp, scores))) - scores[i - start] for scores in (forth, back)]
            expected.append(math.log(6) - sum(losses) / 2)
    assert terms.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("rho", [0.2, 0.5, 0.8])
def test_no_other_temperature_gives_more(rho: float) -> None:
    cosines = grouped_cosines(*gaussian_pair(rho, pairs=300, size=24)[:2], 100)
    chosen = best_temperature(cosines)
    best = infonce_terms(cosines, chosen).mean()
    assert all(infonce_terms(cosines, chosen * factor).mean() < best for factor in (0.5, 0.9, 1.1, 2.0))


def test_the_layer_is_chosen_on_the_halves_that_are_not_measured() -> None:
    def bound(value: float, tuned: float) -> Any:
        return SimpleNamespace(estimate=SimpleNamespace(value=value), tuned=tuned)

    pairs = [{3: bound(9, 1), 4: bound(1, 2)}, {3: bound(9, 4), 4: bound(1, 4)}]
    assert best_layer(pairs) == 4


@pytest.mark.parametrize("pairs, candidates", [(9, 5), (10, 1)])
def test_too_few_pairs_or_candidates(pairs: int, candidates: int) -> None:
    vectors = torch.randn(pairs, 3)
    with pytest.raises(ValueError, match=f"at least 2 x {candidates} pairs"):
        sentence_bound(vectors, vectors, num_candidates=candidates)


# --- the token views ----------------------------------------------------------------------------------------


def test_a_known_table_gives_its_information() -> None:
    """Tokens and contexts in exactly the shares of a joint table; q the true conditional, then another."""
    table = np.array([[6, 1, 1], [1, 4, 1], [0, 2, 4], [2, 2, 1]])
    joint = table / table.sum()
    token, context = joint.sum(axis=1), joint.sum(axis=0)
    filled = joint > 0
    truth = float((joint[filled] * np.log((joint / np.outer(token, context))[filled])).sum())
    drawn = [cell for cell, count in np.ndenumerate(table) for _ in range(count)]
    conditional = joint / context
    gains = np.array([math.log(conditional[x, c]) - math.log(token[x]) for x, c in drawn])
    assert mean_gain([gains], [np.ones(len(drawn), int)]).value == pytest.approx(truth, abs=1e-12)
    wrong = 0.5 * conditional + 0.5 / len(table)
    gains = np.array([math.log(wrong[x, c]) - math.log(token[x]) for x, c in drawn])
    assert mean_gain([gains], [np.ones(len(drawn), int)]).value < truth - 0.05


def test_surprisal_and_entropy_are_those_of_the_text() -> None:
    text = PackedRows.from_lists([[4, 4, 5, 0], [4, 6, 6], []])  # <s> in a text is never masked nor counted
    shares = {4: 3 / 6, 5: 1 / 6, 6: 2 / 6}
    side = mask_side(text, SPECIAL, keys=np.arange(3, dtype=np.uint64))
    assert side.entropy == pytest.approx(-sum(share * math.log(share) for share in shares.values()))
    assert side.entropy_bias == 2 / (2 * 6)
    found = {
        int(token): value for token, value in zip(text.tokens[side.chosen], side.surprisals, strict=True)
    }
    assert found == pytest.approx({token: -math.log(shares[token]) for token in found})


def random_text(count: int, seed: int) -> PackedRows:
    rng = np.random.default_rng(seed)
    return PackedRows.from_lists([rng.integers(4, 59, rng.integers(3, 15)).tolist() for _ in range(count)])


def test_masks_hide_every_chosen_token() -> None:
    text = random_text(400, 1)
    side = mask_side(text, SPECIAL, keys=np.arange(400, dtype=np.uint64))
    assert (side.inputs[side.chosen] == SPECIAL.mask).all()
    assert (side.inputs[~side.chosen] == text.tokens[~side.chosen]).all()
    assert side.chosen.mean() == pytest.approx(0.15, abs=0.01)
    assert side.counts.sum() == side.chosen.sum()


def test_joined_sides() -> None:
    sides = [
        mask_side(PackedRows.from_lists(rows), SPECIAL, keys=np.arange(2, dtype=np.uint64))
        for rows in ([[10, 11], [12]], [[20], [21, 22]])
    ]
    for side, chosen in zip(sides, ([1, 0, 1], [0, 0, 1]), strict=True):
        side.chosen[:] = chosen
        side.inputs[:] = np.where(side.chosen, SPECIAL.mask, side.text.tokens)
    both = join_sides(sides, SPECIAL)
    assert both.inputs.tokens.tolist() == [0, 59, 11, 2, 20, 2, 0, 59, 2, 21, 59, 2]
    assert both.inputs.lengths.tolist() == [6, 6]
    assert both.targets.tolist() == [0, 10, 11, 2, 20, 2, 0, 12, 2, 21, 22, 2]
    assert both.side.tolist() == [-1, 0, -1, -1, -1, -1, -1, 0, -1, -1, 1, -1]
    alone = join_sides(sides[1:], SPECIAL)
    assert alone.inputs.tokens.tolist() == [0, 20, 2, 0, 21, 59, 2]
    assert alone.side.tolist() == [-1, -1, -1, -1, -1, 0, -1]


def sharp_model() -> Any:
    """A tiny model whose predictions differ from place to place."""
    model = tiny_model().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5.0)
    return model


def test_bounds_equal_a_slow_loop_over_padded_logits() -> None:
    model = sharp_model()
    slow = XLMRobertaForMaskedLM(model.config).eval()
    slow.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("objectives.")})
    texts = {"en": random_text(30, 2), "xx": random_text(30, 3)}
    found = token_bounds(LanguageModel(model, None, SPECIAL), texts, seed=7, progress=False)
    masked = [
        mask_side(text, SPECIAL, keys=information.hash64(7, "information", number, np.arange(30)))
        for number, text in enumerate(texts.values())
    ]
    gains: dict[str, list[float]] = {"mlm": [], "tlm": []}
    splits = [np.cumsum(side.text.lengths)[:-1] for side in masked]
    parts = [
        [np.split(values, split) for values in (side.text.tokens, side.inputs, side.chosen)]
        for side, split in zip(masked, splits, strict=True)
    ]
    for i in range(30):
        for own in (0, 1):
            truth, _, chosen = (part[i] for part in parts[own])
            shown = [[0, *side[1][i].tolist(), 2] for side in parts]
            contexts = {"mlm": shown[own], "tlm": shown[0] + shown[1][1:]}
            start = {"mlm": 1, "tlm": 1 if own == 0 else len(shown[0])}
            for view, context in contexts.items():
                with torch.no_grad():
                    logits = slow(torch.tensor([context])).logits[0].double().log_softmax(-1)
                for place in np.flatnonzero(chosen):
                    share = (texts["en" if own == 0 else "xx"].tokens == truth[place]).mean()
                    gain = logits[start[view] + place, int(truth[place])].item() - math.log(share)
                    gains[view].append(gain)
    assert len(gains["mlm"]) > 60
    assert found.mlm.value == pytest.approx(np.mean(gains["mlm"]), rel=1e-4)
    assert found.tlm.value == pytest.approx(np.mean(gains["tlm"]), rel=1e-4)
    assert found.difference.value == pytest.approx(found.tlm.value - found.mlm.value, rel=1e-6)
    tokens = sum(language["tokens"] for language in found.languages.values())
    assert tokens == len(gains["mlm"])
    weighted = sum(language["tokens"] * language["tlm"] for language in found.languages.values()) / tokens
    assert weighted == pytest.approx(found.tlm.value)


def test_the_translation_is_context_of_tlm_alone() -> None:
    model = LanguageModel(sharp_model(), None, SPECIAL)
    source = random_text(20, 4)
    one = token_bounds(model, {"en": source, "xx": random_text(20, 5)}, seed=1, progress=False)
    other = token_bounds(model, {"en": source, "xx": random_text(20, 6)}, seed=1, progress=False)
    assert one.languages["en"]["mlm"] == pytest.approx(other.languages["en"]["mlm"], rel=1e-5)
    assert abs(one.languages["en"]["tlm"] - other.languages["en"]["tlm"]) > 1e-3


def test_a_model_that_knows_frequencies_alone_has_none() -> None:
    """Its cross entropy is the entropy of the tokens, whatever the context."""
    model = tiny_model().eval()
    rng = np.random.default_rng(8)
    text = PackedRows.from_lists([np.minimum(58, rng.geometric(0.1, 12) + 3).tolist() for _ in range(300)])
    counts = np.bincount(text.tokens, minlength=60)
    with torch.no_grad():
        model.lm_head.layer_norm.weight.zero_()
        model.lm_head.layer_norm.bias.zero_()
        model.lm_head.bias.copy_(torch.from_numpy(np.log(np.maximum(counts, 1e-9) / counts.sum())))
    found = token_bounds(
        LanguageModel(model, None, SPECIAL), {"en": text, "xx": text}, seed=1, progress=False
    )
    assert found.mlm.value == pytest.approx(0, abs=1e-4) and found.tlm.value == pytest.approx(0, abs=1e-4)


def test_a_trained_model_is_bounded_by_the_truth() -> None:
    """Tokens say nothing of each other; each has its translation, which is seen in 85 % of the cases."""
    generator = torch.Generator().manual_seed(1)

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        source = torch.randint(4, 12, (count, 4), generator=generator)
        return source, source + 20

    torch.manual_seed(1)
    model = tiny_model(hidden_size=32, intermediate_size=64, num_hidden_layers=2, initializer_range=0.2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(200):
        source, target = draw(64)
        ends = [torch.full((64, 1), number) for number in (0, 2, 2)]
        whole = torch.cat([ends[0], source, ends[1], target, ends[2]], dim=1)
        chosen = (torch.rand(whole.shape, generator=generator) < 0.15) & (whole > 2)
        batch = {
            "input_ids": torch.where(chosen, SPECIAL.mask, whole).flatten(),
            "lengths": [whole.shape[1]] * 64,
            "masked_rows": chosen.flatten().nonzero()[:, 0],
            "labels": whole[chosen],
        }
        output = model({"tlm": batch})["tlm"]
        optimizer.zero_grad()
        (output.loss_sum / output.num_items).backward()
        optimizer.step()
    sides = [PackedRows.from_lists(side.tolist()) for side in draw(1000)]
    found = token_bounds(
        LanguageModel(model.eval(), None, SPECIAL), dict(zip(("en", "xx"), sides, strict=True)), seed=2
    )
    truth = 0.85 * math.log(8)
    assert found.languages["en"]["entropy"] == pytest.approx(math.log(8), abs=0.01)
    assert 0.8 * truth < found.tlm.value and found.tlm.low < truth
    assert found.mlm.value < 0.02


def test_losses_that_are_not_finite_are_refused() -> None:
    model = sharp_model()
    model.lm_head.bias.data[7] = float("nan")
    language_model = LanguageModel(model.eval(), None, SPECIAL)
    with pytest.raises(UsageError, match="not finite, first for sentence"):
        token_bounds(language_model, {"en": random_text(3, 1), "fr": random_text(3, 2)}, seed=0)


def test_text_without_ordinary_tokens() -> None:
    empty = PackedRows.from_lists([[], []])
    with pytest.raises(ValueError, match="ordinary tokens"):
        token_bounds(LanguageModel(tiny_model(), None, SPECIAL), {"en": empty, "xx": empty}, seed=1)


# --- text and models ----------------------------------------------------------------------------------------


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


def letter_tokenizer() -> XLMRobertaTokenizer:
    """A token for each letter, 60 in all, as many as the tiny model has."""
    pieces = ["▁", *string.ascii_letters, "."]
    vocabulary = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")]
    vocabulary += [(piece, -1.0 - 0.01 * rank) for rank, piece in enumerate(pieces)]
    return XLMRobertaTokenizer(vocab=[*vocabulary, ("<mask>", 0.0)], model_max_length=512)


def save(kind: str, folder: Path) -> str:
    """A folder of a tiny model: our checkpoint, our plain export, an encoder alone, or a BERT."""
    tokenizer: Any = letter_tokenizer()
    model = sharp_model()
    if kind == "checkpoint":
        model.save_pretrained(folder)
    elif kind == "export":
        save_as_xlm_roberta(model, folder)
    elif kind == "encoder":
        encoder = XLMRobertaForMaskedLM(model.config).roberta
        assert isinstance(encoder, XLMRobertaModel)
        encoder.config.model_type = "xlm-roberta"
        encoder.save_pretrained(folder)
    else:
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase]
        words += [f"##{letter}" for letter in string.ascii_lowercase]
        tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
        torch.manual_seed(1)
        shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        config = BertConfig(vocab_size=len(words), initializer_range=0.3, **shape)
        BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def run(folder: Path, model: str, *flags: str, pairs: int = 60) -> dict[str, Any]:
    text = write_pairs(folder / "en-xx.tsv", sentence_pairs(pairs))
    argv = ["--bitext_files", str(text), "--model_name_or_path", model, "--output_dir", str(folder / "out")]
    information_command([*argv, "--num_candidates", "20", "--max_pairs", "50", *flags])
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
    assert "TLM - MLM" in capsys.readouterr().out
    for asked in (["2"], ["3", "1"]):
        again = run(tmp_path, model, "--seed", "3", "--layers", *asked)
        assert again["scores"]["en-xx"]["mlm"] == scores["mlm"]
        curve = again["details"]["layers"]["en-xx"]
        assert list(curve) == asked
        assert [curve[layer]["value"] for layer in asked] == pytest.approx(
            [layers[layer]["value"] for layer in asked], abs=1e-4
        )


def test_a_checkpoint_and_its_export_give_the_same(tmp_path: Path) -> None:
    one = run(tmp_path, save("checkpoint", tmp_path / "one"))
    other = run(tmp_path, save("export", tmp_path / "other"))
    for metric, score in one["scores"]["en-xx"].items():
        assert other["scores"]["en-xx"][metric]["value"] == pytest.approx(score["value"], rel=1e-4)


def test_an_encoder_without_a_head_gets_the_sentence_view(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = run(tmp_path, save("encoder", tmp_path / "model"))
    assert set(result["scores"]["en-xx"]) == {"xlco"} and result["details"]["tokens"] == {}
    assert "Only the sentence view" in caplog.text and "no language model head" in caplog.text


def test_another_architecture_has_all_views(tmp_path: Path) -> None:
    """Against the logits of one sequence at a time."""
    folder = save("bert", tmp_path / "model")
    arguments = EncoderArguments(model_name_or_path=folder)
    model = load_language_model(arguments, load_encoder(arguments))
    texts = [
        PackedRows.from_lists(model.tokenizer([pair[side] for pair in sentence_pairs(9)],
                                              add_special_tokens=False)["input_ids"])
        for side in (0, 1)
    ]  # fmt: skip
    sides = [mask_side(text, model.special, keys=np.arange(9, dtype=np.uint64)) for text in texts]
    sequences = join_sides(sides, model.special)
    found = model.losses(sequences, progress=False)
    slow = BertForMaskedLM.from_pretrained(folder).eval()
    expected = []
    ends = np.cumsum(sequences.inputs.lengths)
    for start, end in zip(ends - sequences.inputs.lengths, ends, strict=True):
        ids = torch.from_numpy(sequences.inputs.tokens[start:end].astype(np.int64))
        with torch.no_grad():
            logits = slow(ids[None]).logits[0].log_softmax(-1)
        for place in range(start, end):
            if sequences.side[place] >= 0:
                expected.append(-logits[place - start, sequences.targets[place]].item())
    assert len(expected) > 10
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    assert set(run(tmp_path, folder)["scores"]["en-xx"]) == {"xlco", "mlm", "tlm", "tlm_minus_mlm"}


def test_long_sentences_are_cut_for_both_token_views(tmp_path: Path) -> None:
    longest = 512 - 2
    long = [("a" * longest + source, "b" * longest + target) for source, target in sentence_pairs(4)]
    text = write_pairs(tmp_path / "en-xx.tsv", long)
    argv = ["--bitext_files", str(text), "--model_name_or_path", save("checkpoint", tmp_path / "model")]
    argv += ["--output_dir", str(tmp_path / "out"), "--num_candidates", "2", "--max_pairs", "4"]
    information_command(argv)
    tokens = read_result(tmp_path / "out" / "information_results.json")["details"]["tokens"]["en-xx"]
    assert tokens["en"]["tokens"] == pytest.approx(4 * 0.15 * ((512 - 3) // 2), abs=4)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--layers", "4"], "layer must be in 0..3, found 4"),
        (["--num_candidates", "31", "--max_pairs", "62"], "en-xx has 60 pairs .* --num_candidates 30"),
        (["--bitext_files", "nowhere.tsv"], "nowhere.tsv: no such file"),
        (["--bitext_files", "hub:some/bitext:en-de"], "is on the Hub; give local files"),
    ],
)
def test_bad_input_ends_with_2_and_nothing_written(
    tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = write_pairs(tmp_path / "en-xx.tsv", sentence_pairs(60))
    model = save("checkpoint", tmp_path / "model")
    argv = ["--bitext_files", str(text), "--model_name_or_path", model, "--num_candidates", "20"]
    argv += ["--max_pairs", "50", "--output_dir", str(tmp_path / "out"), *flags]
    assert run_main(information_command, argv) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--num_candidates", "1"], "num_candidates must be at least 2, found 1"),
        (["--max_pairs", "39"], r"at least twice num_candidates \(40\), found 39"),
    ],
)
def test_impossible_numbers(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        information_command(["--num_candidates", "20", "--max_pairs", "50", *flags])
    assert end.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_no_text() -> None:
    with pytest.raises(UsageError, match="no text: give --bitext_files"):
        information_command(["--model_name_or_path", "x"])
