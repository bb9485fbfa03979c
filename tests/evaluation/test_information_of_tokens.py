"""Bounds of masked tokens and their contexts, where the information is known."""

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
    join_sides,
    mask_side,
    mean_gain,
    token_bounds,
)
from modeling_infoxlm.runs.errors import UsageError


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
    assert both.place.tolist() == [-1, 0, -1, -1, -1, -1, -1, 1, -1, -1, 2, -1]
    alone = join_sides(sides[1:], SPECIAL)
    assert alone.inputs.tokens.tolist() == [0, 20, 2, 0, 21, 59, 2]
    assert alone.place.tolist() == [-1, -1, -1, -1, -1, 0, -1]


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


def test_what_has_no_bound() -> None:
    empty = PackedRows.from_lists([[], []])
    with pytest.raises(ValueError, match="ordinary tokens"):
        token_bounds(LanguageModel(tiny_model(), None, SPECIAL), {"en": empty, "xx": empty}, seed=1)
    model = sharp_model()
    model.lm_head.bias.data[7] = float("nan")
    language_model = LanguageModel(model.eval(), None, SPECIAL)
    with pytest.raises(UsageError, match="not finite, first for sentence"):
        token_bounds(language_model, {"en": random_text(3, 1), "fr": random_text(3, 2)}, seed=0)
