"""`infoxlm`: one command for all there is to do; `infoxlm COMMAND --help` lists the flags of each.

infoxlm train-tokenizer --bitext_files bitext/ --tokenizer_vocab_size 32000 --output_dir tokenizer
infoxlm prepare --tokenizer_name tokenizer --bitext_files bitext/ --output_dir corpus
infoxlm pretrain --config recipes/continue_xlmr_base.yaml --prepared_data corpus --output_dir out
infoxlm export out --output_dir release
infoxlm card release --results results/
infoxlm push out ORG/NAME
infoxlm doctor out
infoxlm convert-fairseq model.pt out
infoxlm tatoeba --model_name_or_path out --data_dir tatoeba --output_dir results
infoxlm xnli --model_name_or_path out --data_dir XNLI --output_dir results/xnli
infoxlm mlqa --model_name_or_path out --train_file train.json --test_files MLQA --output_dir results/mlqa
infoxlm report results --output_dir tables
infoxlm study studies/smoke.yaml
infoxlm compare outputs/a outputs/b --output_dir comparison
infoxlm mine en.txt de.txt --model_name_or_path out --output en-de.tsv
infoxlm information --model_name_or_path out --bitext_files heldout/en-de.tsv --output_dir results
infoxlm align-words --model_name_or_path out --pairs_file en-de.txt --output_dir alignment
"""

import importlib
import re
import sys
from importlib.metadata import version

# Module and function of each command. They are imported when called: help does not wait for torch.
COMMANDS = {
    "prepare": "commands.prepare:run",
    "train-tokenizer": "commands.train_tokenizer:run",
    "pretrain": "commands.pretrain:run",
    "export": "hub.export:export_command",
    "card": "hub.push:card_command",
    "push": "hub.push:push_command",
    "doctor": "doctor:doctor_command",
    "convert-fairseq": "fairseq.checkpoint:convert_fairseq_command",
    "tatoeba": "commands.tatoeba:run",
    "xnli": "commands.xnli:run",
    "mlqa": "commands.mlqa:run",
    "report": "evaluation.report.report:report_command",
    "study": "commands.study:run",
    "compare": "commands.compare:run",
    "mine": "commands.mine:run",
    "information": "commands.information:run",
    "align-words": "commands.align_words:run",
}


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; see `process.run_main` for the exit codes."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print((__doc__ or "").strip())
        return 0
    if argv[0] == "--version":
        print(f"infoxlm {version('modeling_infoxlm')}")
        return 0
    if argv[0] not in COMMANDS:
        # A token that was typed in its place is not repeated.
        command = f" {argv[0]!r}" if re.fullmatch("[A-Za-z-]{1,30}", argv[0]) else ""
        print(f"error: unknown command{command}; expected one of {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    run_main = importlib.import_module("modeling_infoxlm.runs.process").run_main
    module, function = COMMANDS[argv[0]].split(":")
    code: int = run_main(getattr(importlib.import_module(f"modeling_infoxlm.{module}"), function), argv[1:])
    return code


if __name__ == "__main__":
    sys.exit(main())
