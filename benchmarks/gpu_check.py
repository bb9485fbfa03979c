"""Certify what runs on this GPU, and how fast: ten minutes, `make gpu-check`.

    python -m benchmarks.gpu_check                # writes docs/results/gpu/CARD.json and CARD.md
    python -m benchmarks.gpu_check --only batch16 tokens65k

Each part runs in a process of its own and is written when it ends; what has passed is not run again while the
code is the same. The model of the speed parts is XLM-R base with its whole vocabulary, the text is synthetic.
N1 is plain transformers.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree  # nosec B405  # what pytest has just written

import torch

from benchmarks.measure import describe_machine

ROOT = Path(__file__).parents[1]
FOLDER = Path("docs/results/gpu")
LIMIT = 150  # seconds of a part
_TESTS = "pytest -q -p no:cacheprovider -m gpu"
_STEP = "benchmarks.step --dtype bfloat16 --max_length 512 --warmup 2 --steps 4"
_65K, _131K = (
    "--batch_size 128 --flag tokens_per_device=65536",
    "--batch_size 256 --flag tokens_per_device=131072",
)
_COMPILED = "--flag compile_layers=true"
PARTS = {
    "tests": f"{_TESTS} tests/gpu",
    "ddp": f"torch.distributed.run --nproc_per_node 1 -m {_TESTS} tests/gpu/test_step.py",
    "doctor": "modeling_infoxlm.cli doctor",
    "batch16": f"{_STEP} --only ours --batch_size 16",
    "tokens65k": f"{_STEP} --only ours {_65K}",
    "tokens65k_compiled": f"{_STEP} --only ours {_65K} {_COMPILED}",
    "tokens131k_compiled": f"{_STEP} --only ours {_131K} {_COMPILED}",
    "n1": f"{_STEP} --only baseline --baseline_dtype bfloat16 --batch_size 16",
    "encode": "benchmarks.evaluate --sentences 20000 --dtypes bfloat16 --repeats 2",
}


def run_part(name: str, folder: Path) -> dict[str, Any]:
    """Run one part; what it has written, with its exit code, its time and its last lines."""
    module, *flags = PARTS[name].split()
    result = folder / f"{name}.json"
    if module.startswith("benchmarks."):
        flags += ["--output", str(result)]
    if "pytest" in PARTS[name]:
        flags.append(f"--junit-xml={folder / name}.xml")
    start = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT,
        )
        code, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        code, output = 124, (error.stdout or b"").decode(errors="replace")  # bytes, though text was asked for
    part = {"command": f"python -m {PARTS[name]}", "code": code, "seconds": time.perf_counter() - start}
    if result.is_file():
        part |= {"result": json.loads(result.read_text())}
    if (folder / f"{name}.xml").is_file():
        part |= {"tests": read_tests(folder / f"{name}.xml")}
    return {**part, "output": output[-3000:]}


def read_tests(path: Path) -> dict[str, str]:
    """Of each test: passed, or the first line of why not."""
    found = {}
    for case in ElementTree.parse(path).iter("testcase"):  # nosec B314
        ends = [one for one in case if one.tag in ("failure", "error", "skipped")]
        found[case.attrib["name"]] = (
            f"{ends[0].tag}: {ends[0].get('message', '')[:200]}" if ends else "passed"
        )
    return found


def page(record: Mapping[str, Any]) -> str:
    """What was found, as a page for readers."""
    machine, parts = record["machine"], record["parts"]
    lines = [
        f"# {machine['gpu']}",
        "",
        f"torch {machine['torch']}, transformers {machine['transformers']}, Python {machine['python']}. "
        "Made by `make gpu-check`; [all numbers](" + f"{slug(machine['gpu'])}.json).",
        "",
        "| part | exit | tokens/s | MFU, % | memory, GiB |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, part in parts.items():
        result = part.get("result", {})
        cells = [
            f"{result['tokens_per_second']:,.0f}" if "tokens_per_second" in result else "",
            f"{100 * result['mfu']:.1f}" if "mfu" in result else "",
            f"{result['peak_gpu_gib']:.1f}" if "peak_gpu_gib" in result else "",
        ]
        lines.append(f"| {name} | {part['code']} | {' | '.join(cells)} |")
    failed = {
        f"{name}, {test}": end
        for name, part in parts.items()
        for test, end in part.get("tests", {}).items()
        if end != "passed"
    }
    lines += ["", *(f"- {test}: {end}" for test, end in failed.items())]
    return "\n".join(lines).rstrip() + "\n"


def code_sha256() -> str:
    """Hash of the code that is certified; a copy of the repository need not have its history."""
    digest = hashlib.sha256()
    for folder in ("modeling_infoxlm", "benchmarks", "tests/gpu"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def slug(name: str) -> str:
    """A card's name as that of a file."""
    return re.sub(r"\W+", "-", name.lower()).strip("-")


def check(folder: Path, card: str, names: list[str]) -> dict[str, Any]:
    """Run the parts that have not passed yet; record and page are written after each."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{slug(card)}.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    now = {"code": code_sha256(), "machine": {**describe_machine(), "gpu": card}}
    if {name: record.get(name) for name in now} != now:
        record = {**now, "parts": {}}
    for name in names:
        if record["parts"].get(name, {}).get("code") == 0:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            record["parts"][name] = part = run_part(name, Path(scratch))
        print(f"{name}: exit {part['code']} in {part['seconds']:.0f} s", flush=True)
        path.write_text(json.dumps(record, indent=1) + "\n")
        path.with_suffix(".md").write_text(page(record))
    return record


def main() -> int:
    """Check what the flags name; 0 if all of it has passed."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, allow_abbrev=False)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="these parts alone")
    parser.add_argument("--output_dir", type=Path, default=FOLDER)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"error: torch {torch.__version__} sees no CUDA device.", file=sys.stderr)
        return 2
    record = check(options.output_dir, torch.cuda.get_device_name(), options.only)
    return int(any(record["parts"][name]["code"] for name in options.only))


if __name__ == "__main__":
    sys.exit(main())
