"""How the encoder's layers run in training: recomputed in the backward pass, compiled, or frozen."""

import functools
import logging
import re
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from modeling_infoxlm.modeling_infoxlm import InfoXLMForPreTraining
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.trials import why_not

logger = logging.getLogger(__name__)


def recompute_layers(model: InfoXLMForPreTraining, layers: str) -> None:
    """Have layers, such as `1-6`, keep their input alone and run once more in the backward pass.

    Gradients stay what they are, dropout included. The model is changed in place, its state is not.

    Raises:
        ValueError: See `parse_layers` and `check_layers`.
    """
    first, last = check_layers(model, layers)
    for layer in _layers(model)[first - 1 : last]:
        layer.gradient_checkpointing = True
        # The reentrant form would lose the gradients of a layer whose input needs none.
        layer._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)


def check_layers(model: InfoXLMForPreTraining, layers: str) -> tuple[int, int]:
    """First and last layer of such a text; refuses those that the model does not have.

    Raises:
        UsageError: With the number of its layers.
    """
    first, last = parse_layers(layers)
    count = model.config.num_hidden_layers
    last = count if last is None else last
    if last > count:
        raise UsageError(
            f"recompute_layers is {layers} but the model has {count} layers; "
            f"give layers from 1 to {count}, or all."
        )
    return first, last


def parse_layers(text: str) -> tuple[int, int | None]:
    """First and last layer of `1-6`, `6` or `all`, counted from 1; the last of `all` is None.

    Raises:
        ValueError: If the text is none of these.
    """
    if text == "all":
        return 1, None
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last:
        raise ValueError(
            f"recompute_layers must be a range such as 1-6, one layer such as 6, or all, counted from 1; "
            f"found {text!r}."
        )
    return first, last


def compile_layers(model: InfoXLMForPreTraining, device: torch.device, **options: Any) -> None:
    """Compile what each layer does apart from attention, in place, for any number of rows.

    Attention over packed rows is left out: its groups change with every batch. Compiled with it, a layer was
    seen to be compiled anew for each batch until torch gave up; without it, all layers share a few graphs
    that serve every batch. Names of parameters stay; a copy of a compiled layer (the momentum encoder's) runs
    uncompiled. Options are those of `torch.compile`. Where nothing can be compiled for the device, on which
    the model need not be yet, a warning says why.
    """
    gelu, given = torch.nn.functional.gelu, torch.ones(3, 5, device=device)
    trial = functools.partial(torch.compile, gelu, dynamic=True, **options)
    reason = why_not(lambda: [trial()(given)], lambda: [gelu(given)], tolerance=1e-3)
    if reason is not None:
        logger.warning("The layers run uncompiled: %s.", reason)
        return
    for layer in _layers(model):
        for module in (layer.attention.output, layer.intermediate, layer.output):
            module.compile(dynamic=True, **options)


def freeze_encoder(model: InfoXLMForPreTraining) -> None:
    """Have the heads alone trained; the word embeddings, which they share, are the encoder's.

    Raises:
        ValueError: If no parameter is left that the objectives train.
    """
    model.roberta.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "freeze_encoder leaves nothing to train: the objectives have no head of their own; "
            "give --objectives mlm, or leave the encoder free."
        )


def _layers(model: InfoXLMForPreTraining) -> list[Any]:
    return list(model.roberta.encoder.layer)
