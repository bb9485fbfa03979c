"""The `infoxlm` command. It reads its command line before the package, and with it torch, is imported."""

import runpy
from pathlib import Path


def main() -> int:
    """Run `modeling_infoxlm/cli.py`, which imports the package only to do something."""
    code: int = runpy.run_path(str(Path(__file__).parent / "modeling_infoxlm" / "cli.py"))["main"]()
    return code
