"""A joint batch, the model for it with the weights of a plain XLM-R, and sentence vectors by hand."""

from collections.abc import Mapping
from typing import Any

import torch
from reference.padded import TINY, hidden_states, random_sequences
from torch import Tensor
from transformers import XLMRobertaForMaskedLM

from modeling_infoxlm import InfoXLMConfig, InfoXLMForPreTraining, InfoXLMModel

NUM_LAYERS = TINY["num_hidden_layers"]
HIDDEN = TINY["hidden_size"]
PROJECTION = "objectives.xlco.projection.weight"
LENGTHS = {"mlm": [512, 1, 64, 30], "tlm": [21, 130, 5], "xlco": [9, 1, 33, 17]}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def pretraining_model(reference: XLMRobertaForMaskedLM, **changes: Any) -> InfoXLMForPreTraining:
    """InfoXLMForPreTraining with the weights of a plain XLM-R and a random projection."""
    torch.manual_seed(1)
    model = InfoXLMForPreTraining(InfoXLMConfig(**{**TINY, "xlco_layer": 3, **changes})).eval()
    model.load_state_dict(reference.state_dict(), strict=False)
    for name, parameter in model.named_parameters():
        if name == PROJECTION:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.to(reference.dtype)


def masked_part(lengths: list[int], seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand(sum(lengths), generator=generator).lt(0.15).nonzero().squeeze(1)
    labels = torch.randint(4, TINY["vocab_size"], rows.shape, generator=generator)
    input_ids = torch.cat(random_sequences(lengths, seed))
    return {"input_ids": input_ids, "lengths": lengths, "masked_rows": rows, "labels": labels}


def joint_batch(*names: str) -> dict[str, Any]:
    query = {"input_ids": torch.cat(random_sequences(LENGTHS["xlco"], 3)), "lengths": LENGTHS["xlco"]}
    parts = {
        "mlm": masked_part(LENGTHS["mlm"], 1),
        "tlm": masked_part(LENGTHS["tlm"], 2),
        "xlco": {"query": query, "key": query},
    }
    return {name: parts[name] for name in names or parts}


def keys_and_negatives(dtype: torch.dtype, queue: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    shapes = {"keys": (len(LENGTHS["xlco"]), HIDDEN), "negatives": (queue, HIDDEN)}
    return {name: torch.randn(*s, generator=generator, dtype=dtype) / 4 for name, s in shapes.items()}


def with_keys(batch: Mapping[str, Any], **extra: Tensor) -> dict[str, Any]:
    """The batch as a trainer hands it on: with what the queries of the contrast are compared with."""
    return {name: {**part, **(extra if name == "xlco" else {})} for name, part in batch.items()}


def split(part: Mapping[str, Any]) -> list[Tensor]:
    return list(part["input_ids"].split(part["lengths"]))


def vectors_by_hand(
    model: XLMRobertaForMaskedLM, sequences: list[Tensor], layer: int, pooling: str
) -> Tensor:
    """Sentence vectors from the padded hidden states of plain XLM-R, one sentence at a time."""
    rows = hidden_states(model, sequences)[layer].split([len(ids) for ids in sequences])
    return torch.stack([row[0] if pooling == "cls" else row.sum(dim=0) / len(row) for row in rows])


def our_copy(reference: XLMRobertaForMaskedLM, **changes: Any) -> InfoXLMModel:
    """InfoXLMModel with the weights of a plain XLM-R."""
    model = InfoXLMModel(InfoXLMConfig(**{**TINY, **changes})).to(reference.dtype).eval()
    model.load_state_dict(reference.roberta.state_dict())
    return model
