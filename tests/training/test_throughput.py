"""Work that a step needs, against a count by hand."""

import pytest
import torch

from modeling_infoxlm import InfoXLMConfig, InfoXLMForPreTraining
from modeling_infoxlm.training.throughput import count_tokens, matmul_peak

CONFIG = InfoXLMConfig(
    vocab_size=10,
    hidden_size=4,
    intermediate_size=6,
    num_hidden_layers=3,
    num_attention_heads=2,
    xlco_layer=2,
)
MLM = {"lengths": [2, 3], "labels": torch.zeros(2)}
XLCO = {"query": {"lengths": [3, 1]}, "key": {"lengths": [2, 2]}}


def useful_flops(batch: dict) -> float:
    return InfoXLMForPreTraining(CONFIG).flops(batch)


def test_tokens_of_all_parts_and_both_sides_of_the_contrast() -> None:
    tlm = {"lengths": [7], "labels": torch.zeros(1)}
    assert count_tokens({"mlm": MLM, "tlm": tlm, "xlco": XLCO}) == 5 + 7 + 4 + 4
    assert count_tokens({"xlco": XLCO}) == 8


def one_layer(lengths: list[int]) -> int:
    """Multiply-adds counted as two: four D x D products, two D x F, and scores and contexts of attention."""
    per_token = 2 * (4 * 4 * 4 + 2 * 4 * 6)
    return sum(length * per_token + 2 * 2 * length * length * 4 for length in lengths)


def test_masked_objective_counts_all_layers_and_the_head_of_masked_rows_thrice() -> None:
    head = 2 * (2 * 4 * 4 + 2 * 4 * 10)  # two masked rows through D x D and D x V
    expected = 3 * (3 * one_layer([2, 3]) + head)
    assert useful_flops({"mlm": MLM}) == expected
    assert useful_flops({"mlm": MLM, "tlm": MLM}) == 2 * expected


def test_contrast_stops_at_its_layer_and_keys_have_no_backward_pass() -> None:
    query, key = 2 * one_layer([3, 1]), 2 * one_layer([2, 2])
    assert useful_flops({"xlco": XLCO}) == 3 * query + key
    # Two queries against five keys; of the two products of the backward pass one is needed.
    negatives = 2 * (2 * 2 * 5 * 4)
    assert useful_flops({"xlco": {**XLCO, "negatives": torch.zeros(5, 4)}}) == 3 * query + key + negatives


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peak_is_what_one_product_reaches(dtype: torch.dtype) -> None:
    peak = matmul_peak(torch.device("cpu"), dtype, size=64, seconds=0.01)
    # A core of any age does more than 1e6 and less than 1e15 operations a second: a wrong unit would show.
    assert 1e6 < peak < 1e15
