"""Print the report of `pip install --dry-run` as constraints: `python .ci/pins.py REPORT`."""

import json
import sys
from pathlib import Path

# A CUDA build of torch pins its companions itself; a CPU build has none.
WITH_TORCH = ("cuda-", "nvidia-", "triton")

packages = [entry["metadata"] for entry in json.loads(Path(sys.argv[1]).read_text())["install"]]
print("# Every version that pip resolves from pyproject.toml, torch as before: by `make newest`.")
for package in sorted(packages, key=lambda package: package["name"].lower()):
    if not package["name"].lower().startswith((*WITH_TORCH, "modeling")):
        print(f"{package['name']}=={package['version'].partition('+')[0]}")
