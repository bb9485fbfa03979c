r"""Fine-tune an encoder on XNLI and test it in every language (cross-lingual transfer, arXiv 2007.07834).

    python run_xnli.py --model_name_or_path microsoft/infoxlm-base --dataset_name facebook/xnli \
        --mixed_languages true --bf16 true --output_dir xnli
    python run_xnli.py --model_name_or_path out --data_dir XNLI --translate_train true --output_dir xnli
    python run_xnli.py --model_name_or_path xnli --do_train false --data_dir XNLI --output_dir again

It writes the fine-tuned model, `xnli_results.json` and `predictions/` into the output folder. Run the same
command again to go on after a kill.
"""

import sys

from modeling_infoxlm.commands import xnli
from modeling_infoxlm.runs.process import run_main


def main(argv: list[str] | None = None) -> int:
    """Run the script; see `run_main` for the exit codes."""
    return run_main(xnli.run, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
