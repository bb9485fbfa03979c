"""Plain XLM-R folders: the release format that loads everywhere without custom code."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, XLMRobertaConfig, XLMRobertaForMaskedLM

from modeling_infoxlm.modeling_infoxlm import InfoXLMForMaskedLM, InfoXLMForPreTraining


def save_as_xlm_roberta(
    model: InfoXLMForPreTraining | InfoXLMForMaskedLM,
    folder: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model as plain `xlm-roberta`, safetensors only.

    Encoder and language model head keep XLM-R's names. The projection of the contrast is left
    out, as in the released InfoXLM checkpoints; sentence vectors do not use it.

    Args:
        model: Trained model; not changed.
        folder: Where to write; made if missing.
        tokenizer: Written beside the weights when given.
        dtype: Type of the stored weights; None keeps the model's.
    """
    plain = XLMRobertaForMaskedLM(_plain_config(model.config))
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("objectives.")}
    plain.load_state_dict(state)
    torch.nn.Module.to(plain, dtype=dtype or model.dtype)
    plain.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _plain_config(config: Any) -> XLMRobertaConfig:
    """The fields that XLM-R knows; `xlco_*` and the map of custom code stay behind."""
    own = {"model_type", "auto_map", "architectures", "transformers_version", "dtype"}
    fields = {
        name: value
        for name, value in config.to_dict().items()
        if name not in own and not name.startswith("xlco_")
    }
    return XLMRobertaConfig(**fields)
