"""InfoXLM: cross-lingual pre-training of text encoders (arXiv 2007.07834), for the Hugging Face ecosystem.

Importing this package registers the models with transformers' auto classes.
"""

import importlib
from typing import TYPE_CHECKING, Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .configuration_infoxlm import InfoXLMConfig
from .modeling_infoxlm import (
    InfoXLMForMaskedLM,
    InfoXLMForMultipleChoice,
    InfoXLMForPreTraining,
    InfoXLMForQuestionAnswering,
    InfoXLMForSequenceClassification,
    InfoXLMForTokenClassification,
    InfoXLMModel,
    InfoXLMPreTrainedModel,
)

__version__ = "0.1.0"

_AUTO_CLASSES: dict[type, type[InfoXLMPreTrainedModel]] = {
    AutoModel: InfoXLMModel,
    AutoModelForPreTraining: InfoXLMForPreTraining,
    AutoModelForMaskedLM: InfoXLMForMaskedLM,
    AutoModelForSequenceClassification: InfoXLMForSequenceClassification,
    AutoModelForTokenClassification: InfoXLMForTokenClassification,
    AutoModelForQuestionAnswering: InfoXLMForQuestionAnswering,
    AutoModelForMultipleChoice: InfoXLMForMultipleChoice,
}

AutoConfig.register("infoxlm", InfoXLMConfig)
InfoXLMConfig.register_for_auto_class()
for _auto_class, _model_class in _AUTO_CLASSES.items():
    _auto_class.register(InfoXLMConfig, _model_class)  # type: ignore[attr-defined]
    # So that save_pretrained copies the model code beside the
    # weights: the folder then loads without this package.
    _model_class.register_for_auto_class(_auto_class.__name__)

# What training and release need, imported at first use: it costs seconds that a mere model does not need.
_LAZY = {
    "ContrastArguments": "training.arguments",
    "Corpus": "data.shards",
    "InfoXLMTrainer": "training.trainer",
    "JointDataset": "data.batches",
    "KeyQueue": "key_queue",
    "MomentumEncoder": "momentum",
    "PretrainingArguments": "training.arguments",
    "PretrainingCollator": "data.batches",
    "StreamSettings": "data.streams",
    "encode_texts": "evaluation.encoding",
    "save_as_infoxlm": "hub.formats",
    "save_as_onnx": "hub.as_onnx",
    "save_as_sentence_transformer": "hub.formats",
    "save_as_xlm_roberta": "hub.formats",
}

if TYPE_CHECKING:
    from .data.batches import JointDataset, PretrainingCollator
    from .data.shards import Corpus
    from .data.streams import StreamSettings
    from .evaluation.encoding import encode_texts
    from .hub.as_onnx import save_as_onnx
    from .hub.formats import save_as_infoxlm, save_as_sentence_transformer, save_as_xlm_roberta
    from .key_queue import KeyQueue
    from .momentum import MomentumEncoder
    from .training.arguments import ContrastArguments, PretrainingArguments
    from .training.trainer import InfoXLMTrainer


def __getattr__(name: str) -> Any:
    """Import a public name of a submodule when it is first asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    """All names, those not yet imported included."""
    return sorted({*globals(), *_LAZY})


__all__ = [
    "ContrastArguments",
    "Corpus",
    "InfoXLMConfig",
    "InfoXLMForMaskedLM",
    "InfoXLMForMultipleChoice",
    "InfoXLMForPreTraining",
    "InfoXLMForQuestionAnswering",
    "InfoXLMForSequenceClassification",
    "InfoXLMForTokenClassification",
    "InfoXLMModel",
    "InfoXLMPreTrainedModel",
    "InfoXLMTrainer",
    "JointDataset",
    "KeyQueue",
    "MomentumEncoder",
    "PretrainingArguments",
    "PretrainingCollator",
    "StreamSettings",
    "__version__",
    "encode_texts",
    "save_as_infoxlm",
    "save_as_onnx",
    "save_as_sentence_transformer",
    "save_as_xlm_roberta",
]
