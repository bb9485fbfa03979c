"""A grid of arms and seeds, prepared, trained, measured and compared: `infoxlm study`.

    infoxlm study studies/objectives.yaml

The file says output_dir; seeds; starts, models that are trained first and once; pretrain, flags of all
trainings (`config: RECIPE` is read first; what names a start is for the arms); arms, the flags in which each
differs, or null for what the arms start from; evaluations, each with its command and flags. `{NAME}` stands
for the folder of a start, `{model}` and `{seed}` in an evaluation for those of its arm.

Run the same command again to go on after a kill: what is done is never done again. Result files are copied to
results_dir as steps end, and compared at the end.
"""

from dataclasses import dataclass
from pathlib import Path

from modeling_infoxlm.runs.config_file import parse_args_with_config
from modeling_infoxlm.runs.errors import UsageError
from modeling_infoxlm.runs.flags import flag, name_leading
from modeling_infoxlm.studies.compare import compare
from modeling_infoxlm.studies.plan import Study
from modeling_infoxlm.studies.study import carry_out


@dataclass
class StudyArguments:
    """Which study."""

    _argument_group_name = "study"
    study_file: str = flag("", "The study, a YAML file. Or the first word.")


def run(argv: list[str]) -> None:
    """Carry out a study, and compare its arms."""
    if argv and argv[0].endswith((".yaml", ".yml", ".json")):  # else it would be taken for a recipe
        argv = name_leading(argv, ("--study_file",))
    (arguments,) = parse_args_with_config((StudyArguments,), argv, program="infoxlm study", about=__doc__)
    if not arguments.study_file:
        raise UsageError("infoxlm study needs a study file: infoxlm study studies/objectives.yaml.")
    study = Study.read(Path(arguments.study_file))
    carry_out(study)
    folder = study.results_dir or study.output_dir
    # Of the arms and seeds that the file has now, in its order: others may lie there from before.
    cells = dict.fromkeys(step.folder for step in study.steps() if step.number >= 0)
    print(compare([folder / cell.relative_to(study.output_dir) for cell in cells], folder))
