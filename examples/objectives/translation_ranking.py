r"""Translation ranking with an additive margin: LaBSE's objective, on InfoXLM's runs.

A sentence has to find its translation among those of the whole batch, by the cosine of mean vectors less a
margin, in both directions (Yang et al. 2019, arXiv 1902.08564; Feng et al. 2022, arXiv 2007.01852). It needs
no momentum encoder and no queue. This file is a program as well:

    python examples/objectives/translation_ranking.py --config recipes/demo.yaml \
        --objectives mlm,tlm,ranking --ranking_weight 0.5 --ranking_examples 1 --output_dir outputs/ranking

docs/extending.md walks through it line by line.
"""

import math
import sys
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from modeling_infoxlm.commands import pretrain
from modeling_infoxlm.data.streams import Stream, register_stream
from modeling_infoxlm.objectives import (
    FORWARD_BACKWARD,
    LossOutput,
    Objective,
    Part,
    encoder_flops,
    gather_rows,
    register_objective,
)
from modeling_infoxlm.packed import EncodeRequest, pool, sentence_request

SIDES = ("source", "target")
MARGIN = 0.3  # LaBSE's
TEMPERATURE = 0.05  # ours: cosines lie in -1..1


@register_objective("ranking")
class TranslationRanking(Objective):
    """A sentence against all translations of the batch, and the other way round."""

    whole_batch = True

    def requests(self, part: Part) -> list[EncodeRequest]:
        """Both sides through all layers."""
        views = [part[side] for side in SIDES]
        return [sentence_request(view["input_ids"], view["lengths"], self.layer, "mean") for view in views]

    def loss(self, part: Part, rows: list[Tensor], model: Any) -> LossOutput:
        """Mean of the two directions, summed over pairs."""
        source, target = (
            F.normalize(pool(own, part[side]["lengths"], "mean"), dim=-1)
            for own, side in zip(rows, SIDES, strict=True)
        )
        there, candidates = margin_loss(source, target)
        back, _ = margin_loss(target, source)
        bound = {"log_candidates": there.new_full((), math.log(candidates))}
        vectors = (source.detach(), target.detach())
        return LossOutput((there + back).sum() / 2, len(source), bound, vectors)

    def num_items(self, part: Part) -> int:
        """Pairs."""
        return len(part["source"]["lengths"])

    def flops(self, part: Part) -> float:
        """Both sides, forward and backward."""
        sides = (encoder_flops(self.config, part[side]["lengths"], self.layer) for side in SIDES)
        return FORWARD_BACKWARD * sum(sides)


def margin_loss(query: Tensor, key: Tensor) -> tuple[Tensor, int]:
    """Losses (B,) of queries (B, D) against the keys of all ranks, and how many these are."""
    keys, first = gather_rows(key)
    own = torch.arange(first, first + len(query), device=query.device)
    margins = MARGIN * F.one_hot(own, len(keys))
    return F.cross_entropy((query @ keys.t() - margins) / TEMPERATURE, own, reduction="none"), len(keys)


class PairStream(Stream):
    """The two sides of a pair, `<s> a </s>` each."""

    def pack(self, numbers: np.ndarray) -> dict[str, Any]:
        """One pair for each number, (n,)."""
        group, index = self.sampler.locate(numbers)
        sides = [self.sequences((2 * group + side)[:, None], index[:, None]) for side in (0, 1)]
        return {
            name: {"input_ids": side.tokens, "lengths": side.lengths}
            for name, side in zip(SIDES, sides, strict=True)
        }


register_stream("ranking", PairStream)

if __name__ == "__main__":
    pretrain.run(sys.argv[1:])
