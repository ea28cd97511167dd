"""This process: its messages to the user, its rank under torchrun, and how it stops on a signal."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOP_PATIENCE = 5.0  # seconds from a signal within which a training may finish its epoch

# Control characters, line ends and changes of writing direction, which would garble a terminal or a page
UNPRINTABLE = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"


def one_line(text: str) -> str:
    """The text as one line of readable length, even if it contains a file name or label with line ends."""
    text = re.sub(f"[{UNPRINTABLE}]", lambda found: ascii(found[0])[1:-1], text)
    return text if len(text) <= 1000 else f"{text[:700]} [...] {text[-250:]}"


def first_few(names: Sequence[object], most: int = 5) -> str:
    """The first names of a list, for a message."""
    return ", ".join(map(str, names[:most])) + (", ..." if len(names) > most else "")


def notify(text: str) -> None:
    """Print a note or warning as one line on standard error."""
    print(one_line(text), file=sys.stderr)


class UserError(Exception):
    """An error that the user can correct: which file, what was found, what was expected, and what to do."""

    def __init__(self, message: str):
        super().__init__(one_line(message))


def num_ranks() -> int:
    """Number of processes of this run."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Number of this process; rank 0 writes the files."""
    return int(os.environ.get("RANK", 0)) if num_ranks() > 1 else 0


class Stopped(BaseException):
    """SIGINT (Ctrl-C) or SIGTERM, which a cluster sends to a job at its time limit, was received."""


class StopRequest:
    """How this process reacts to signals.

    A training finishes and saves its current epoch and then stops, if the epoch ends within STOP_PATIENCE seconds. At a
    second signal it stops at once, like everything else at the first signal. `Stopped` is raised again every
    STOP_PATIENCE seconds, because a library can lose an exception that is raised within its callback.

    Attributes:
        signal: the first signal, or None.
        importing: whether heavy modules are being imported; an exception in torch's import would abort the process.
        saves_epochs: whether a training is running that calls `raise_if_asked` at the end of each epoch.
        advice: for the user: what the same command would do next.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget an earlier signal; this process may run several commands in turn (tests, comparisons)."""
        self.signal: int | None = None
        self.importing = False
        self.saves_epochs = False
        self.advice = "No file is half written; run the same command to do the rest."

    def listen(self) -> None:
        """Handle the signals; SIGINT stays ignored if a shell runs this process in the background."""
        self.reset()
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._hear)
        if hasattr(signal, "setitimer"):  # not on Windows
            signal.signal(signal.SIGALRM, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        at_epoch_end = self.saves_epochs and self.signal is None
        self.signal = self.signal or number
        if self.importing:
            return
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, STOP_PATIENCE, STOP_PATIENCE)
        if not at_epoch_end:
            raise Stopped

    def hold_timer(self) -> None:
        """Stop the timer: the epoch has ended in time and is being saved, which may take any time."""
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)

    def raise_if_asked(self) -> None:
        """Raise `Stopped` after a signal."""
        if self.signal:
            raise Stopped

    def ignore_further_signals(self) -> None:
        """Ignore all signals while this process ends."""
        self.hold_timer()
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


stop = StopRequest()


@contextlib.contextmanager
def signals_blocked(*signals: signal.Signals) -> Iterator[None]:
    """Delay signals to this thread until the end of the block; processes started within it do not receive them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def workers_without_interrupt() -> Iterator[None]:
    """Processes that joblib starts within the block ignore Ctrl-C, which a terminal sends to all processes."""
    if hasattr(signal, "pthread_sigmask"):  # Windows has no such trackers
        from multiprocessing import resource_tracker

        from joblib.externals.loky.backend import resource_tracker as tracker_of_joblib

        # Before the block: starting them within it would let the signal through again.
        resource_tracker.ensure_running()
        tracker_of_joblib.ensure_running()
    with signals_blocked(signal.SIGINT):
        yield
