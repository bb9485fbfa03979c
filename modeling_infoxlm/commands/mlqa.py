r"""Fine-tune an encoder to answer questions, and score it in every language: `infoxlm mlqa`.

    infoxlm mlqa --model_name_or_path out --train_file train-v1.1.json --test_files MLQA_V1/test xquad \
        --output_dir qa

Run the same command again to go on after a kill.
"""

from modeling_infoxlm.commands.fine_tune import fine_tune
from modeling_infoxlm.evaluation.questions.mlqa import MLQARun
from modeling_infoxlm.evaluation.questions.mlqa_data import MLQAArguments, MLQATrainingArguments, load_data


def run(argv: list[str]) -> None:
    """Fine-tune on questions, and answer those of all languages."""
    fine_tune("mlqa", __doc__, (MLQAArguments, MLQATrainingArguments), load_data, MLQARun, argv)
