r"""Bitext retrieval on Tatoeba, NTREX, FLORES or your own pairs, for any encoder that AutoModel loads.

    python run_tatoeba.py --model_name_or_path microsoft/infoxlm-base \
        --dataset_name mteb/tatoeba-bitext-mining --output_dir results/infoxlm-base
    python run_tatoeba.py --model_name_or_path out --data_dir tatoeba --languages de fr sw --all_layers
    python run_tatoeba.py --model_name_or_path out --bitext_files x.de,x.en --margin ratio

The defaults are the paper's (arXiv 2007.07834): mean of all tokens of layer 7, cosine, both directions.
"""

import sys

from modeling_infoxlm.commands import tatoeba
from modeling_infoxlm.runs.process import run_main


def main(argv: list[str] | None = None) -> int:
    """Run the script; see `run_main` for the exit codes."""
    return run_main(tatoeba.run, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
