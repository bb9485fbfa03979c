"""The weights are counted as they are said to be."""

from pathlib import Path

import pytest

from benchmarks import weight


def test_numbers_of_a_made_up_checkout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in {
        "modeling_infoxlm/a.py": "x = 1\n\n# a comment\n",
        "modeling_infoxlm/deep/b.py": "y = 2\n" * 7,
        "modeling_infoxlm/card.md": "no code\n",
        "tests/test_a.py": "z = 3\n",
        "benchmarks/c.py": "",
        "infoxlm.py": "def main():\n    sum(range(30_000_000))\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    weight.main(["--root", str(tmp_path)])
    printed = capsys.readouterr().out.splitlines()
    assert printed[:3] == ["package, lines: 10", "tests, lines: 1", "benchmarks, lines: 0"]
    assert printed[3] == "longest file, lines: 7 (modeling_infoxlm/deep/b.py)"
    assert "_save_checkpoint" in printed[4] or "overridden: 0" in printed[4]
    assert 0.1 <= float(printed[5].removeprefix("infoxlm --help, CPU seconds: ")) < 60


def test_only_private_methods_that_the_base_has_are_counted_once_each() -> None:
    base = type("Base", (), dict.fromkeys(("_step", "_kept", "public"), print))
    place = {"__module__": "modeling_infoxlm.made_up"}
    ours = type("Ours", (base,), dict.fromkeys(("_step", "_own", "public"), print) | place)
    further = type("Further", (ours,), {"_kept": print} | place)
    assert weight.overridden_private_methods(base, [further]) == ["_kept", "_step"]
