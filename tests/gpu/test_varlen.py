"""Flash attention over packed rows against the padded forward, on a CUDA device."""

import pytest
import torch

from modeling_infoxlm import InfoXLMConfig, InfoXLMModel
from modeling_infoxlm.packed import EncodeRequest, encode
from modeling_infoxlm.packed_attention import VarlenAttention, plan_attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, torch finds none"),
]

LENGTHS = [1, 7, 40, 41, 512, 130]


@pytest.fixture(scope="module")
def model() -> InfoXLMModel:
    torch.manual_seed(0)
    config = InfoXLMConfig(
        vocab_size=200,
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=256,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return InfoXLMModel(config).cuda().to(torch.bfloat16).eval()


@pytest.mark.parametrize("selected", [False, True])
def test_packed_equals_padded(model: InfoXLMModel, selected: bool) -> None:
    hidden = torch.zeros(sum(LENGTHS), 128, device="cuda", dtype=torch.bfloat16)
    plan = plan_attention(torch.tensor(LENGTHS).numpy(), None, hidden, heads=2, needs_dropout=False)
    assert isinstance(plan, VarlenAttention)
    sequences = [torch.randint(4, 199, (length,), device="cuda") for length in LENGTHS]
    rows = torch.tensor([0, 1, 9, 47, 48, 600, 730], device="cuda") if selected else None
    with torch.no_grad():
        (packed,) = encode(model, [EncodeRequest(torch.cat(sequences), LENGTHS, 3, rows)])
        padded = torch.cat([model(ids[None]).last_hidden_state[0] for ids in sequences])
    expected = padded if rows is None else padded[rows]
    # bf16 keeps 8 bits: the two orders of summation differ in the last of them.
    assert (packed.float() - expected.float()).abs().max() < 0.05
