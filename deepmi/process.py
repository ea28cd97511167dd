"""This process: what it tells the user, its rank under torchrun, and which signals it hears."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator

# What does something else on a terminal or a page than to be read: control characters, line ends, changes of direction
UNPRINTABLE = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"


def one_line(text: str) -> str:
    """The text as one line of readable length, whatever a file name or a label that it cites holds."""
    text = re.sub(f"[{UNPRINTABLE}]", lambda found: ascii(found[0])[1:-1], text)
    return text if len(text) <= 1000 else f"{text[:700]} [...] {text[-250:]}"


def notify(text: str) -> None:
    """A note or warning to the user, one line on standard error."""
    print(one_line(text), file=sys.stderr)


class UserError(Exception):
    """Something the user can mend. The message says which file, what was found, what was expected and what to do."""

    def __init__(self, message: str):
        super().__init__(one_line(message))


def num_ranks() -> int:
    """Processes of this run."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Number of this process, 0 the one that writes."""
    return int(os.environ.get("RANK", 0)) if num_ranks() > 1 else 0


@contextlib.contextmanager
def workers_without_interrupt() -> Iterator[None]:
    """Processes that joblib starts within the block leave Ctrl-C, which a terminal sends to all, to this one."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    from multiprocessing import resource_tracker

    from joblib.externals.loky.backend import resource_tracker as tracker_of_joblib

    # Before the block: starting them within it would let the signal through again.
    resource_tracker.ensure_running()
    tracker_of_joblib.ensure_running()
    with signals_blocked(signal.SIGINT):
        yield


@contextlib.contextmanager
def signals_blocked(*signals: signal.Signals) -> Iterator[None]:
    """Within the block this thread, and processes that it starts, do not hear these signals; it hears them after it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
