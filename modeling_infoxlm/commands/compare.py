"""Runs held against each other: what differs in their settings, and in what they came to: `infoxlm compare`.

    infoxlm compare outputs/a outputs/b --output_dir comparison
    infoxlm compare docs/results/studies/objectives --output_dir comparison

A path is the folder of a run of `infoxlm pretrain`, with result files anywhere below it, or a folder of such
folders, as `infoxlm study` makes it. Runs that differ in nothing but their seed are one row, as mean and
standard deviation. `compare.md`, `compare.tex`, `compare.csv` and the curves `compare.png`.
"""

from dataclasses import dataclass
from pathlib import Path

from modeling_infoxlm.runs.config_file import parse_args_with_config
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.flags import flag
from modeling_infoxlm.studies.compare import compare


@dataclass
class CompareArguments:
    """Which runs are compared, and where to."""

    _argument_group_name = "compare"
    paths: list[str] = flag([], "Folders of runs, or of such folders. Or the first words.")
    output_dir: str = flag("comparison", "Folder that is written.")


def run(argv: list[str]) -> None:
    """Compare runs."""
    flags = next((i for i, argument in enumerate(argv) if argument.startswith("-")), len(argv))
    named = ["--paths", *argv[:flags]] if flags else []
    (arguments,) = parse_args_with_config(
        (CompareArguments,), [*named, *argv[flags:]], program="infoxlm compare", about=__doc__
    )
    if not arguments.paths:
        raise UsageError("no run: infoxlm compare RUN... --output_dir OUT.")
    print(compare([Path(path) for path in arguments.paths], Path(arguments.output_dir)))
