"""A pre-training of seconds, on forty pairs."""

import signal
from collections.abc import Callable
from pathlib import Path

from tiny_text import TINY_DATA, TINY_MODEL, TINY_RUN, sentence_pairs

from modeling_infoxlm.runs.process import StopOnSignal

PAIRS = sentence_pairs(40)
Refusal = Callable[..., str]  # runs a command and gives the one line of its refusal


def flags(folder: Path, text: Path | None, *own: str) -> list[str]:
    """A command; of a flag given twice the last one counts."""
    files = [] if text is None else ["--bitext_files", str(text)]
    short = ["--output_dir", str(folder), "--mono_from_bitext", "true", "--max_steps", "6"]
    return [*files, *short, *TINY_MODEL, *TINY_DATA, *TINY_RUN, *own]


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


class StopInStep3(StopOnSignal):
    """As if somebody typed Ctrl-C, or Slurm sent SIGTERM, while step 3 runs."""

    def on_step_begin(self, args: object, state: object, control: object, **kwargs: object) -> None:
        if state.global_step == 2:
            signal.raise_signal(signal.SIGTERM)
