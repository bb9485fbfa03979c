r"""Fine-tune an encoder on XNLI and test it in every language: `infoxlm xnli`.

    infoxlm xnli --model_name_or_path out --data_dir XNLI --mixed_languages true --output_dir xnli

Run the same command again to go on after a kill.
"""

from modeling_infoxlm.commands.fine_tune import fine_tune
from modeling_infoxlm.evaluation.inference.xnli import XNLIRun
from modeling_infoxlm.evaluation.inference.xnli_data import XNLIArguments, XNLITrainingArguments, load_data


def run(argv: list[str]) -> None:
    """Fine-tune on XNLI, and test in all languages."""
    fine_tune("xnli", __doc__, (XNLIArguments, XNLITrainingArguments), load_data, XNLIRun, argv)
