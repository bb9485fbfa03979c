r"""Fine-tune an encoder on XNLI and test it in every language: `infoxlm xnli`.

    infoxlm xnli --model_name_or_path out --data_dir XNLI --mixed_languages true --output_dir xnli

Run the same command again to go on after a kill.
"""

from transformers import AutoModelForSequenceClassification

from modeling_infoxlm.commands.fine_tune import FineTuning, fine_tune
from modeling_infoxlm.evaluation.inference.xnli import XNLIRun, label_config
from modeling_infoxlm.evaluation.inference.xnli_data import XNLIArguments, XNLITrainingArguments, load_data

PROGRAM = FineTuning(
    "xnli",
    __doc__,
    (XNLIArguments, XNLITrainingArguments),
    load_data,
    AutoModelForSequenceClassification,
    XNLIRun,
    label_config(),
)


def run(argv: list[str]) -> None:
    """Fine-tune on XNLI, and test in all languages."""
    fine_tune(PROGRAM, argv)
