"""Rules that the whole repository keeps: nothing unpickled blindly, no remote code, no secrets."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = ("modeling_infoxlm/", "benchmarks/", "run_")
UNPICKLING_MODULES = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}


@pytest.fixture(scope="module")
def texts() -> dict[str, bytes]:
    """Content of each file of the repository."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git repository: the list of its files is not known")
    paths = {name: ROOT / name for name in listed.stdout.splitlines()}
    return {name: path.read_bytes() for name, path in paths.items() if path.is_file()}


@pytest.fixture(scope="module")
def nodes(texts: dict[str, bytes]) -> list[tuple[str, ast.AST]]:
    """All that the Python files hold, and where."""
    trees = {name: ast.parse(text) for name, text in texts.items() if name.endswith(".py")}
    return [(name, node) for name, tree in trees.items() for node in ast.walk(tree)]


def keyword(call: ast.Call, name: str) -> object:
    return next((ast.unparse(entry.value) for entry in call.keywords if entry.arg == name), None)


def test_calls_unpickle_nothing_and_trust_no_remote_code(nodes: list[tuple[str, ast.AST]]) -> None:
    calls = [(f"{name}:{node.lineno}", node) for name, node in nodes if isinstance(node, ast.Call)]
    loads = [(place, call) for place, call in calls if ast.unparse(call.func) == "torch.load"]
    assert loads, "expected some torch.load to look at"
    assert [place for place, call in loads if keyword(call, "weights_only") != "True"] == []
    trusts = [(place, keyword(call, "trust_remote_code")) for place, call in calls]
    found = [place for place, trust in trusts if trust not in (None, "False") and place.startswith(LIBRARY)]
    assert found == []


def test_no_module_that_unpickles_is_imported(nodes: list[tuple[str, ast.AST]]) -> None:
    found = []
    for name, node in nodes:
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        found += [name for module in modules if module.split(".")[0] in UNPICKLING_MODULES]
    assert found == []


def test_programs_in_strings_load_weights_only_and_no_secret_is_committed(texts: dict[str, bytes]) -> None:
    for name, text in texts.items():
        assert not re.search(rb"hf_[A-Za-z0-9]{20,}", text), name
        for line in text.splitlines() if name.endswith((".py", ".md")) else ():
            assert not re.search(rb"torch\.load\([^)]", line) or b"weights_only=True" in line, (name, line)
