"""One job at a time makes a file that several want; the others wait, or take over from one that died.

Only what disks shared by machines give is relied on: creating a file exclusively and renaming one are atomic.
A claim saves work and protects nothing: whatever is made is written under a name of its own and then renamed,
and two jobs that make the same file write the same bytes.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from modeling_infoxlm.runs.files import is_running, own_name

BEAT_SECONDS = 5.0
DEAD_AFTER_SECONDS = 100.0  # longer than a network file system may keep an old date of a file
POLL_SECONDS = 0.2


@contextmanager
def claimed(claim: Path) -> Iterator[bool]:
    """Hold a claim, a file, until the block ends, or learn that another job holds it.

    Yields:
        True if it is this job's now, False if another job has it.
    """
    try:
        with open(claim, "x", encoding="utf-8") as file:
            file.write(f"{socket.gethostname()} {os.getpid()}")
    except FileExistsError:
        yield False
        return
    over = threading.Event()
    beat = threading.Thread(target=_beat, args=(claim, over), daemon=True)
    beat.start()
    try:
        yield True
    finally:
        over.set()
        beat.join()
        claim.unlink(missing_ok=True)


def _beat(claim: Path, over: threading.Event) -> None:
    """Date the claim anew while its job lives."""
    while not over.wait(BEAT_SECONDS):
        try:
            os.utime(claim)
        except FileNotFoundError:  # taken for dead, or all is finished and cleaned up
            return


class Watch:
    """The claims of other jobs, as one that waits for them sees them."""

    def __init__(self) -> None:
        self._beats: dict[Path, tuple[int, float]] = {}

    def is_free(self, claim: Path) -> bool:
        """Whether no living job holds the claim; that of a dead one is removed."""
        try:
            beat, holder = claim.stat().st_mtime_ns, claim.read_text(encoding="utf-8")
        except FileNotFoundError:
            return True
        now = time.monotonic()  # this machine's own time: clocks of others may be wrong
        if self._beats.setdefault(claim, (beat, now))[0] != beat:
            self._beats[claim] = beat, now
        if not _has_ended(holder) and now - self._beats[claim][1] < DEAD_AFTER_SECONDS:
            return False
        aside = own_name(claim)  # renamed first: one of those who find it dead removes it
        try:
            claim.rename(aside)
            aside.unlink()
        except FileNotFoundError:
            pass  # another one was faster
        del self._beats[claim]
        return True


def _has_ended(holder: str) -> bool:
    """Whether the process is one of this machine that is no more."""
    host, _, number = holder.partition(" ")
    return host == socket.gethostname() and bool(number) and not is_running(int(number))


def make_once(path: Path, claim: Path, make: Callable[[], None]) -> None:
    """Have `path` made, whole or not at all, by one of all jobs that ask for it; `claim` stands for that."""
    watch = Watch()
    while not path.exists():
        if watch.is_free(claim):
            with claimed(claim) as mine:
                if mine and not path.exists():
                    make()
        else:
            time.sleep(POLL_SECONDS)
