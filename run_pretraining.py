r"""Pre-train InfoXLM with the joint MLM + TLM + XlCo loss (arXiv 2007.07834).

    python run_pretraining.py --config recipes/continue_xlmr_base.yaml \
        --bitext_files 'bitext/*.tsv.gz' --output_dir out
    torchrun --nproc_per_node 8 run_pretraining.py --config recipes/infoxlm_base.yaml \
        --prepared_data corpus --output_dir out

Every entry of a recipe is a flag of the same name; flags override. Run the same command again to go on
after a kill.
"""

import sys

from modeling_infoxlm.commands import pretrain
from modeling_infoxlm.runs.process import run_main


def main(argv: list[str] | None = None) -> int:
    """Run the script; see `run_main` for the exit codes."""
    return run_main(pretrain.run, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
