"""Bounds of masked tokens in their contexts, and of sentences and translations, where they are known."""

import math

import numpy as np
import pytest
import torch
from tiny_run import SPECIAL, sharp_model, tiny_model
from transformers import XLMRobertaForMaskedLM

from modeling_infoxlm.data.ragged import PackedRows
from modeling_infoxlm.data.sampling import hash64
from modeling_infoxlm.evaluation.information import (
    LanguageModel,
    best_temperature,
    grouped_cosines,
    infonce_terms,
    mask_side,
    sentence_bound,
    token_bounds,
)
from modeling_infoxlm.runs.errors import UsageError


def test_masks_hide_every_chosen_token_and_surprisal_and_entropy_are_those_of_the_text() -> None:
    text = PackedRows.from_lists([[4, 4, 5, 0], [4, 6, 6], []])  # <s> in a text is never masked nor counted
    shares = {4: 3 / 6, 5: 1 / 6, 6: 2 / 6}
    side = mask_side(text, SPECIAL, keys=np.arange(3, dtype=np.uint64))
    assert side.entropy == pytest.approx(-sum(share * math.log(share) for share in shares.values()))
    assert side.entropy_bias == 2 / (2 * 6)
    hidden = text.tokens[side.chosen]
    found = {int(token): value for token, value in zip(hidden, side.surprisals, strict=True)}
    assert found == pytest.approx({token: -math.log(shares[token]) for token in found})
    text = random_text(400, 1)
    side = mask_side(text, SPECIAL, keys=np.arange(400, dtype=np.uint64))
    assert (side.inputs == np.where(side.chosen, SPECIAL.mask, text.tokens)).all()
    assert side.chosen.mean() == pytest.approx(0.15, abs=0.01)
    assert side.counts.sum() == side.chosen.sum()


def random_text(count: int, seed: int) -> PackedRows:
    rng = np.random.default_rng(seed)
    return PackedRows.from_lists([rng.integers(4, 59, rng.integers(3, 15)).tolist() for _ in range(count)])


def test_bounds_equal_a_slow_loop_over_padded_logits() -> None:
    model = sharp_model()
    slow = XLMRobertaForMaskedLM(model.config).eval()
    slow.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("objectives.")})
    texts = {"en": random_text(30, 2), "xx": random_text(30, 3)}
    found = token_bounds(LanguageModel(model, None, SPECIAL), texts, seed=7, progress=False)
    masked = [
        mask_side(text, SPECIAL, keys=hash64(7, "information", number, np.arange(30)))
        for number, text in enumerate(texts.values())
    ]
    gains: dict[str, list[float]] = {"mlm": [], "tlm": []}
    parts = [
        [
            np.split(values, np.cumsum(side.text.lengths)[:-1])
            for values in (side.text.tokens, side.inputs, side.chosen)
        ]
        for side in masked
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
    texts = dict(zip(("en", "xx"), sides, strict=True))
    found = token_bounds(LanguageModel(model.eval(), None, SPECIAL), texts, seed=2)
    truth = 0.85 * math.log(8)
    assert found.languages["en"]["entropy"] == pytest.approx(math.log(8), abs=0.01)
    assert 0.8 * truth < found.tlm.value and found.tlm.low < truth
    assert found.mlm.value < 0.02


def test_what_has_no_bound() -> None:
    empty = PackedRows.from_lists([[], []])
    with pytest.raises(ValueError, match="ordinary tokens"):
        token_bounds(LanguageModel(tiny_model(), None, SPECIAL), {"en": empty, "xx": empty}, seed=1)
    model = sharp_model()
    model.lm_head.bias.data[7] = float("nan")
    language_model = LanguageModel(model.eval(), None, SPECIAL)
    with pytest.raises(UsageError, match="not finite, first for sentence"):
        token_bounds(language_model, {"en": random_text(3, 1), "fr": random_text(3, 2)}, seed=0)


# ---------------------------------------------------------------------------- sentences


def gaussian_pair(
    rho: float, *, pairs: int, size: int, seed: int = 1
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Vectors whose coordinates are correlated by rho, and their information in nats."""
    generator = torch.Generator().manual_seed(seed)
    source, noise = torch.randn(2, pairs, size, generator=generator)
    target = rho * source + math.sqrt(1 - rho**2) * noise
    return source, target, -size / 2 * math.log(1 - rho**2) if rho < 1 else math.inf


@pytest.mark.parametrize("rho", [0.05, 0.2])
def test_small_information_of_gaussians_is_bounded_closely(rho: float) -> None:
    source, target, truth = gaussian_pair(rho, pairs=4000, size=64)
    bound = sentence_bound(source, target, num_candidates=500)
    assert truth < math.log(500) / 3
    assert bound.estimate.low < truth  # a bound, but for the noise of the sample
    assert bound.estimate.value == pytest.approx(truth, abs=0.05 + 0.15 * truth)
    assert bound.estimate.count == 2000


def test_large_information_is_cut_at_the_logarithm_of_the_candidates() -> None:
    """Where truth and logarithm are near each other the bound lies clearly below both."""
    source, target, truth = gaussian_pair(0.9, pairs=800, size=64)
    for candidates in (10, 100, 400):
        bound = sentence_bound(source, target, num_candidates=candidates).estimate
        assert math.log(candidates) - 0.01 < bound.value <= math.log(candidates) + 1e-6
        assert math.log(candidates) < truth / 5
    source, target, truth = gaussian_pair(0.38, pairs=4000, size=64)
    bound = sentence_bound(source, target, num_candidates=200).estimate
    assert abs(truth - math.log(200)) < 0.5 and 0.5 * truth < bound.high < truth - 0.2


@pytest.mark.parametrize("seed", range(2))
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


@pytest.mark.parametrize("rho", [0.2, 0.8])
def test_no_other_temperature_gives_more(rho: float) -> None:
    cosines = grouped_cosines(*gaussian_pair(rho, pairs=300, size=24)[:2], 100)
    chosen = best_temperature(cosines)
    best = infonce_terms(cosines, chosen).mean()
    assert all(infonce_terms(cosines, chosen * factor).mean() < best for factor in (0.5, 0.9, 1.1, 2.0))


def test_too_few_pairs_or_candidates() -> None:
    for pairs, candidates in ((9, 5), (10, 1)):
        vectors = torch.randn(pairs, 3)
        with pytest.raises(ValueError, match=f"at least 2 x {candidates} pairs"):
            sentence_bound(vectors, vectors, num_candidates=candidates)
