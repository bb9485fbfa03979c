r"""Fine-tune an encoder to answer questions in English, and score it in every language: MLQA, XQuAD, TyDiQA.

    python run_mlqa.py --model_name_or_path microsoft/infoxlm-base --bf16 true \
        --train_file hub:rajpurkar/squad --test_files MLQA_V1/test xquad --output_dir qa
    python run_mlqa.py --model_name_or_path qa --do_train false --test_files xquad --all_pairs true \
        --output_dir mixed

It writes the fine-tuned model, `<task>_results.json` for each benchmark and `predictions/` into the output
folder. Run the same command again to go on after a kill.
"""

import sys

from modeling_infoxlm.commands import mlqa
from modeling_infoxlm.runs.process import run_main


def main(argv: list[str] | None = None) -> int:
    """Run the script; see `run_main` for the exit codes."""
    return run_main(mlqa.run, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
