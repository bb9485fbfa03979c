"""Rules that the whole repository keeps: nothing unpickled blindly, no remote code, no secrets."""

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = ("modeling_infoxlm/", "benchmarks/", "run_")
UNPICKLING_MODULES = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}


def tracked_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git repository: the list of its files is not known")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


@cache
def trees() -> dict[str, ast.Module]:
    """Each Python file, parsed."""
    names = [name for name in tracked_files() if name.endswith(".py")]
    return {name: ast.parse((ROOT / name).read_text(encoding="utf-8")) for name in names}


def calls() -> Iterator[tuple[str, ast.Call]]:
    for name, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield f"{name}:{node.lineno}", node


def keyword(call: ast.Call, name: str) -> object:
    return next((ast.unparse(entry.value) for entry in call.keywords if entry.arg == name), None)


def test_torch_load_always_loads_weights_only() -> None:
    loads = [(place, call) for place, call in calls() if ast.unparse(call.func) == "torch.load"]
    assert loads, "expected some torch.load to look at"
    assert [place for place, call in loads if keyword(call, "weights_only") != "True"] == []


def test_programs_in_strings_load_weights_only_too() -> None:
    found = [
        f"{name}: {line.strip()}"
        for name in tracked_files()
        if name.endswith((".py", ".md"))
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines()
        if re.search(r"torch\.load\([^)]", line) and "weights_only=True" not in line
    ]
    assert found == []


def test_no_module_that_unpickles_is_imported() -> None:
    found = []
    for name, tree in trees().items():
        for node in ast.walk(tree):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            found += [name for module in modules if module.split(".")[0] in UNPICKLING_MODULES]
    assert found == []


def test_the_library_trusts_no_remote_code() -> None:
    found = [
        place
        for place, call in calls()
        if place.startswith(LIBRARY) and keyword(call, "trust_remote_code") not in (None, "False")
    ]
    assert found == []


def test_no_secret_is_committed() -> None:
    found = []
    for name in tracked_files():
        content = (ROOT / name).read_bytes()
        found += [name for _ in re.finditer(rb"hf_[A-Za-z0-9]{20,}", content)]
    assert found == []
