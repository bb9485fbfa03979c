"""The recipes: every value arrives, says where it is from, and is what the documentation shows."""

import re
from pathlib import Path

import pytest
import yaml

from modeling_infoxlm.runs.config_file import parse_args_with_config
from modeling_infoxlm.training.arguments import (
    ContrastArguments,
    DataArguments,
    ModelArguments,
    PretrainingArguments,
)

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
ALL = [ModelArguments, DataArguments, ContrastArguments, PretrainingArguments]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_parses_and_every_value_arrives(path, tmp_path):
    # A machine without GPU can parse the GPU recipes too: bf16 is refused there unless the CPU is asked for.
    flags = ["--config", str(path), "--use_cpu", "--output_dir", str(tmp_path)]
    arrived = {
        name: value for part in parse_args_with_config(ALL, flags) for name, value in vars(part).items()
    }
    recipe = yaml.safe_load(path.read_text()) | {"use_cpu": True, "output_dir": str(tmp_path)}
    for name, written in recipe.items():
        value = getattr(arrived[name], "value", arrived[name])  # some of transformers' are enums
        assert value == (float(written) if isinstance(value, float) else written), name


def test_there_are_the_recipes_that_the_documentation_names():
    text = (RECIPES[0].parents[1] / "docs" / "recipes.md").read_text()
    assert set(re.findall(r"`(\w+\.yaml)`", text)) == {path.name for path in RECIPES}


def test_table_of_differences_shows_what_the_recipes_hold():
    table = (RECIPES[0].parents[1] / "docs" / "recipes.md").read_text().partition("## Where they differ")[2]
    header, _, *rows = [line.strip("| ").split("|") for line in table.splitlines() if line.startswith("|")]
    names = [cell.strip(" `") for cell in header if cell.strip()]
    checked = 0
    for name, *cells in rows:
        if "`" not in name:
            continue
        for recipe, cell in zip(names, [cell.strip() for cell in cells], strict=False):
            values = yaml.safe_load((RECIPES[0].parent / f"{recipe}.yaml").read_text())
            if cell and name.strip(" `") in values:
                shown = cell.replace(",", "") if cell[0].isdigit() else cell
                shown = str(float(shown[:-1]) / 100) if shown.endswith("%") else shown.split(" of ")[0]
                assert yaml.safe_load(shown) == values[name.strip(" `")], (recipe, name)
                checked += 1
    assert checked > 50
