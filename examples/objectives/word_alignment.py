r"""XLM-Align's denoising word alignment (Chi et al., ACL 2021, arXiv 2106.06381), on InfoXLM's runs.

The model aligns the words of a pair itself, then has to point from a masked word to its partner on the other
side. It reads the pairs of TLM, masked as they are, and shares their pass through the encoder:

    python examples/objectives/word_alignment.py --config recipes/demo.yaml \
        --objectives mlm,tlm,dwa --dwa_weight 1 --output_dir outputs/word_alignment

As in the released code: labels are made once an update by the current weights in eval mode, of the pair as it
was before it was masked: dot products of a middle layer, two rounds of Sinkhorn, iterative intersection.
"""

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling_infoxlm.commands import pretrain
from modeling_infoxlm.data.streams import PART_FIELDS, register_stream
from modeling_infoxlm.evaluation.alignment.aligners import itermax_alignment, sinkhorn
from modeling_infoxlm.objectives import (
    FORWARD_BACKWARD,
    IGNORE_INDEX,
    LossOutput,
    Objective,
    Part,
    encoder_flops,
    register_objective,
)
from modeling_infoxlm.packed import EncodeRequest, encode

OUTSIDE = -1e4  # added to the score of a position that is not on the other side, as in the released code


@register_objective("dwa")
class DenoisingWordAlignment(Objective):
    """A pointer from masked sub-words to those that they are aligned to."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.aligned_layer = round(config.num_hidden_layers * 10 / 12)  # the released recipe: 10 of 12

    def prepare(self, part: Part, model: Any) -> dict[str, Any]:
        """Self-labelling: for each masked row its partner and the other side, as rows of its sequence.

        Returns:
            `partners` (M,), `IGNORE_INDEX` without one; `others`, first and end of the other side, (M, 2).
        """
        unmasked = part["input_ids"].clone()
        unmasked[part["masked_rows"]] = part["labels"]
        request = EncodeRequest(unmasked, part["lengths"], self.aligned_layer)
        states = encode(model.roberta, [request])[0].float().split(part["lengths"])
        partners, others = [], []
        for ids, hidden in zip(unmasked.split(part["lengths"]), states, strict=True):
            middle = int((ids == self.config.eos_token_id).nonzero()[0])
            partners.append(partners_of(hidden, middle))
            sides = torch.tensor([[middle + 1, len(ids) - 1], [1, middle]], device=ids.device)
            others.append(sides[(torch.arange(len(ids), device=ids.device) > middle).long()])
        rows = part["masked_rows"]
        return {"partners": torch.cat(partners)[rows], "others": torch.cat(others)[rows]}

    def requests(self, part: Part) -> list[EncodeRequest]:
        """All rows of the last layer; TLM's masked ones are taken of the same pass."""
        return [EncodeRequest(part["input_ids"], part["lengths"], self.layer)]

    def loss(self, part: Part, rows: list[Tensor], model: Any) -> LossOutput:
        """Cross entropy of the partner among the sub-words of the other side, summed over aligned rows."""
        hidden, kept = rows[0], part["partners"] != IGNORE_INDEX
        lengths = torch.tensor(part["lengths"], device=hidden.device)
        starts = torch.repeat_interleave(
            lengths.cumsum(0) - lengths, torch.tensor(part["masked_lengths"], device=hidden.device)
        )[kept]
        queries = self.query(hidden[part["masked_rows"][kept]])
        scores = (queries @ self.key(hidden).t()).float() / self.config.hidden_size**0.5
        first, end = (starts[:, None] + part["others"][kept]).unbind(dim=1)
        row = torch.arange(len(hidden), device=hidden.device)
        inside = (row >= first[:, None]) & (row < end[:, None])
        losses = F.cross_entropy(
            torch.where(inside, scores, scores + OUTSIDE), starts + part["partners"][kept], reduction="none"
        )
        bound = (end - first).float().log().sum() / max(len(losses), 1)
        return LossOutput(losses.sum(), len(losses), {"log_candidates": bound})

    def num_items(self, part: Part) -> Tensor:
        """Masked sub-words that have a partner."""
        return (part["partners"] != IGNORE_INDEX).sum()

    def flops(self, part: Part) -> float:
        """The pass that labels, and the pointer; the masked pass is TLM's."""
        labelling = encoder_flops(self.config, part["lengths"], self.aligned_layer)
        rows = sum(part["lengths"]) + len(part["labels"])
        return labelling + FORWARD_BACKWARD * 2 * rows * self.config.hidden_size**2


def partners_of(hidden: Tensor, middle: int) -> Tensor:
    """The row that each row of `<s> a </s> b </s>` is aligned to, (T,); of several the last.

    Args:
        hidden: States of the rows, (T, D).
        middle: Row of the first `</s>`.
    """
    partners = torch.full((len(hidden),), IGNORE_INDEX, device=hidden.device)
    plan, _ = sinkhorn(hidden[1:middle] @ hidden[middle + 1 : -1].t())
    source, target = itermax_alignment(plan).nonzero().unbind(dim=1)  # by source, then target
    for one, other in zip((source + 1).tolist(), (target + middle + 1).tolist(), strict=True):
        partners[one], partners[other] = other, one
    return partners


register_stream("dwa", like="tlm")
PART_FIELDS.update(partners="masked", others="masked")

if __name__ == "__main__":
    pretrain.run(sys.argv[1:])
