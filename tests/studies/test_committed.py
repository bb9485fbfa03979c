"""What is published of studies is what their result files say."""

import re
from pathlib import Path

import pytest

from modeling_infoxlm.studies.compare import compare

ROOT = Path(__file__).parents[2]
STUDIES = Path("docs/results/studies")
PAGE = ROOT / "docs" / "results" / "objectives.md"
NAMES = sorted(path.name for path in (ROOT / STUDIES).iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_a_comparison_is_made_of_the_files_beside_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    compare([STUDIES / name], tmp_path)
    for file in ("compare.md", "compare.csv", "compare.tex"):
        assert (tmp_path / file).read_text() == (STUDIES / name / file).read_text()


@pytest.mark.parametrize("page", [PAGE, ROOT / "README.md"], ids=lambda page: page.name)
def test_each_number_of_a_study_that_is_quoted_stands_in_its_comparison(page: Path) -> None:
    known = "".join((ROOT / STUDIES / name / "compare.md").read_text() for name in NAMES)
    lines = page.read_text().splitlines()
    quoted = lines if page == PAGE else [line for line in lines if "objectives.md" in line]
    numbers = {number for line in quoted for number in re.findall(r"\b\d+\.\d+\b", line)}
    assert numbers and numbers <= set(re.findall(r"\b\d+\.\d+\b", known))
