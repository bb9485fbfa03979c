"""InfoXLM: cross-lingual pre-training of text encoders (arXiv 2007.07834), for the Hugging Face ecosystem.

Importing this package registers the models with transformers' auto classes.
"""

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

__all__ = [
    "InfoXLMConfig",
    "InfoXLMForMaskedLM",
    "InfoXLMForMultipleChoice",
    "InfoXLMForPreTraining",
    "InfoXLMForQuestionAnswering",
    "InfoXLMForSequenceClassification",
    "InfoXLMForTokenClassification",
    "InfoXLMModel",
    "InfoXLMPreTrainedModel",
    "__version__",
]
