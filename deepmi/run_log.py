"""The log, resume file and lock beside a checkpoint; which epoch is the best; when training diverges."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from filelock import FileLock, Timeout
from torch import Tensor

from deepmi import __version__
from deepmi.process import UserError, first_few, notify, num_ranks, rank, stop
from deepmi.ranks import from_first_rank
from deepmi.storage import append_line, digest, read_text, write_text
from deepmi.tensors import load_tensors, save_tensors

PACKAGES = ("torch", "faiss-cpu", "faiss-gpu", "numpy", "scipy", "pandas", "scikit-learn")
NO_BEST: dict = {"loss": None, "epoch": None, "weights": None}
UNREADABLE = (UserError, OSError, ValueError, LookupError, TypeError, RecursionError)


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _versions() -> dict[str, str]:
    found = {"deepmi": __version__, "python": sys.version.split()[0]}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _resume_file(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}.resume")


def note_if_unfinished(checkpoint: Path) -> None:
    """Print a note if the training of a checkpoint that is about to be used has not finished."""
    if _resume_file(checkpoint).exists():
        notify(f"note: {checkpoint}: its training has not finished; this is the best epoch so far.")


def weighted_mean(losses: Tensor, batches: Sequence[Tensor], smallest: int = 1) -> float:
    """Mean loss of the batches of an epoch, each weighted by its size.

    Args:
        losses: shape (number of batches,).
        batches: positions of the utterances of each batch.
        smallest: smaller batches do not count.
    Returns:
        The mean, or 1 if no batch counts.
    """
    weights = losses.new_tensor([len(batch) if len(batch) >= smallest else 0 for batch in batches])
    return (losses @ weights / weights.sum()).item() if weights.any() else 1.0


def refuse_divergence(losses: Tensor, batches: Sequence[Tensor], names: Sequence[str], title: str) -> None:
    """Stop at the first batch whose loss is not finite.

    Args:
        losses: shape (number of batches, losses per batch).
        batches: positions of the utterances of each batch.
        names: file names that the positions point to.
        title: what is trained.
    Raises:
        UserError: a loss is not finite; the message names the batch and its files.
    """
    finite = losses.isfinite().all(dim=1)
    if not finite.all():
        first = int(finite.int().argmin())
        files = first_few([names[i] for i in batches[first].tolist()])
        raise UserError(
            f"{title}: the loss of batch {first} is NaN or infinite (files {files}). Check their features, or try "
            "--precision fp32. The last saved state, if any, is kept."
        )


def better_of(best: dict, loss: float, epoch: int, weights: dict) -> dict:
    """The best epoch so far, with a copy of its weights.

    Args:
        best: the result of the previous epochs; NO_BEST at first.
        loss: validation loss of this epoch.
        epoch: counted from 0.
        weights: state dict.
    Raises:
        UserError: the loss is NaN or infinite.
    """
    if not math.isfinite(loss):
        raise UserError(
            f"epoch {epoch}: the validation loss is NaN or infinite: training diverged, or all validation labels are "
            "equal. Check them, or try --precision fp32. The last saved state, if any, is kept."
        )
    if best["weights"] is not None and loss >= best["loss"]:
        return best
    kept = best["weights"] or {key: value.detach().clone() for key, value in weights.items()}
    for key, value in weights.items():  # in place, because allocating and freeing large blocks fragments the memory
        kept[key].copy_(value.detach())
    return {"loss": loss, "epoch": epoch, "weights": kept}


class TrainingRun:
    """The log (one JSON line per epoch) and the resume file beside a checkpoint.

    The state is saved whenever ten times the duration of a save has passed, so saving takes at most a tenth of a run
    and a kill costs seconds. A resumed run repeats the epochs since the last save with the same seeds.

    A hidden file beside them is locked during a run, so that no second run writes the same files.
    """

    def __init__(self, checkpoint: Path, arguments: dict, inputs: dict, details: dict, resume: bool):
        """
        Args:
            checkpoint: the file that this run writes; the log and the resume file are named after it.
            arguments: the user's settings that change the result.
            inputs: digests of the data that the run reads.
            details: further facts for the first line of the log (folders, corpus counts).
            resume: continue from a saved state if there is one.
        """
        self.checkpoint = Path(checkpoint)
        stem = self.checkpoint.name.removesuffix(".tar").rsplit(".", 1)[0]
        self.log_file = self.checkpoint.with_name(f"{stem}.log.jsonl")
        self.picture = self.checkpoint.with_name(f"{stem}.png")
        self.resume_file = _resume_file(self.checkpoint)
        self.lock_file = self.checkpoint.absolute().with_name(f".{self.checkpoint.name}.lock")
        # A singleton can be acquired again by a later run of the same process (tests, comparisons).
        self.lock = FileLock(self.lock_file, is_singleton=True)
        self.identity = {"arguments": arguments, "inputs": inputs, "version": __version__}
        self.resume = resume
        started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        process = {"id": os.getpid(), "host": socket.gethostname(), "started": started}
        facts = {"versions": _versions(), "git_commit": _git_commit(), "process": process}
        self.first_line = {"run": self.identity, **details, **facts}
        self.log_is_ours = False  # until the first outputs are written, the log is that of the previous checkpoint
        self.history: list[dict] = []
        self.best = NO_BEST
        self._last_save = time.monotonic()
        self._save_cost = 0.0

    def _log_lines(self) -> list[dict]:
        try:
            lines = [json.loads(line) for line in read_text(self.log_file).splitlines()]
        except UNREADABLE:
            return []
        return lines if all(isinstance(line, dict) for line in lines) else []

    def is_finished(self) -> bool:
        """Whether a run with the same arguments, data and program version has finished; if so, prints a message."""
        if not (self.resume and self.checkpoint.is_file()) or self.resume_file.exists():
            return False
        lines = self._log_lines()
        if len(lines) < 2 or lines[0].get("run") != self.identity or lines[-1].get("finished") is not True:
            return False
        if lines[-1].get("checkpoint") != digest(self.checkpoint.read_bytes()):
            return False  # replaced by a different run that was stopped before it wrote its log
        self.best = NO_BEST | {"loss": lines[-1]["validation_loss"], "epoch": lines[-1]["best_epoch"]}
        print(f"{self.checkpoint}: already trained with these arguments on this data; --no-resume trains it again.")
        return True

    def refuse_unlike_ranks(self, finished: bool) -> None:
        """Compare this rank's arguments, data and saved state with those of rank 0; all ranks call it after `start`.

        Args:
            finished: the result of `is_finished`.
        Raises:
            UserError: they differ, for example because the ranks see different folders.
        """
        here = digest(self.identity, finished, len(self.history))
        if from_first_rank(lambda: here) != here:
            raise UserError(
                f"{self.checkpoint}: saved state or data of this process and of rank 0 differ; --model-dir, the corpus "
                "and its normalisation statistics must be on a common file system."
            )

    def start(self) -> dict | None:
        """Lock the files of the run; return the saved state (on the CPU) to continue from, or None.

        Raises:
            UserError: another process writes these files, or they belong to an unfinished run with different
                arguments or data.
        """
        state = None
        if rank() == 0:
            self._refuse_second_writer()
        if not self.resume:
            if rank() == 0:  # else a run killed before its first save would be followed by one that resumes it
                self.resume_file.unlink(missing_ok=True)
        elif self.resume_file.exists():
            state = self._read_state()
            print(f"resuming after {len(self.history)} epochs from {self.resume_file}")
            self._write_log()
        else:
            self._note_replaced_run()
        self._advise()
        stop.saves_epochs = num_ranks() == 1  # several ranks would have to agree on the epoch
        return state

    def _advise(self) -> None:
        """Set the advice to the user for a run that is stopped before the next save."""
        command = "The same command" if self.resume else "The same command without --no-resume"
        stop.advice = f"{command} continues after {len(self.history)} epochs."
        if not self.history:
            stop.advice = "Nothing has been saved yet; the same command starts again."

    def _refuse_second_writer(self) -> None:
        try:
            self.lock.acquire(blocking=False)
        except Timeout:
            who = "unknown process"
            with contextlib.suppress(*UNREADABLE):
                who = "process {id} on {host}, since {started}".format(**json.loads(read_text(self.lock_file)))
            raise UserError(
                f"{self.checkpoint}: another run is writing it ({who}). Wait for it to end, or choose a different "
                "--model-dir."
            ) from None
        atexit.register(self._release)  # a killed run leaves an unlocked file
        with contextlib.suppress(OSError):  # the lock works without this, for example on a full disk
            self.lock_file.write_text(json.dumps(self.first_line["process"]))

    def _release(self) -> None:
        if self.lock.is_locked:
            with contextlib.suppress(OSError):  # Windows cannot remove a locked file
                self.lock_file.unlink(missing_ok=True)
            self.lock.release(force=True)

    def _note_replaced_run(self) -> None:
        lines = self._log_lines()
        if len(lines) > 1 and lines[-1].get("finished") is True and isinstance(lines[0].get("run"), dict):
            notify(f"note: replaces {self.checkpoint}, a finished run ({self._differences(lines[0]['run'])}).")

    def _read_state(self) -> dict:
        with self.reading_state():
            saved = load_tensors(self.resume_file)
            identity, history = json.loads(saved["identity"]), json.loads(saved["history"])
            best, state = {key: saved["best"][key] for key in NO_BEST}, dict(saved["state"])
            if [record["epoch"] for record in history] != list(range(len(history))):
                raise ValueError("epochs are missing in its history")
            identity = dict(identity)
        if identity != self.identity:
            raise UserError(
                f"{self.resume_file}: belongs to an unfinished run with different settings "
                f"({self._differences(identity)}). Finish it with its own arguments, choose a different --model-dir, "
                "or discard it with --no-resume."
            )
        self.history, self.best = history, best
        return state

    @contextlib.contextmanager
    def reading_state(self) -> Iterator[None]:
        """Raise `UserError` if the saved state is damaged, or is not what the block expects."""
        try:
            yield
        except (*UNREADABLE, AttributeError, RuntimeError) as error:
            reason = (str(error).removeprefix(f"{self.resume_file}: ").splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{self.resume_file}: the saved state of an unfinished run is damaged ({reason[:120]}). Delete it, or "
                "start again with --no-resume."
            ) from None

    def _differences(self, other: dict) -> str:
        """The arguments and data in which the identity of a different run differs from this one."""
        found = []
        for part, form in (("arguments", "{name} {before} there, {now} now"), ("inputs", "different {name} data")):
            there, here = other.get(part), self.identity[part]
            there = there if isinstance(there, dict) else {}
            for name in sorted(there.keys() | here.keys()):
                if (before := there.get(name)) != (now := here.get(name)):
                    found.append(form.format(name=name, before=before, now=now))
        if other.get("version") != __version__:
            found.append(f"program version {other.get('version')} there, {__version__} now")
        return "; ".join(found) or "the same arguments and data"

    def _write(self, write_outputs: Callable[[], None]) -> None:
        """Write the outputs, and at the first time the log that belongs to them."""
        write_outputs()
        if not self.log_is_ours:
            self._write_log()

    def _write_log(self) -> None:
        if rank() == 0:
            write_text(self.log_file, "".join(json.dumps(line) + "\n" for line in [self.first_line, *self.history]))
            self.log_is_ours = True

    def end_epoch(self, record: dict, weights: dict) -> None:
        """Add an epoch to the log, and keep a copy of its weights if its validation loss is the lowest so far.

        Args:
            record: a line of the log, with `epoch` and `validation_ccc_loss`.
            weights: state dict.
        Raises:
            UserError: the loss is NaN or infinite.
        """
        self.history.append(record)
        if self.log_is_ours:
            append_line(self.log_file, json.dumps(record))
        self.best = better_of(self.best, record["validation_ccc_loss"], record["epoch"], weights)

    def save_is_due(self) -> bool:
        """Whether it is time for the next save, or a signal asks for it."""
        is_old = time.monotonic() - self._last_save >= 10 * self._save_cost
        return rank() == 0 and (is_old or stop.signal is not None)

    def save(self, state: dict, write_outputs: Callable[[], None]) -> None:
        """Write the outputs, and the state from which the run can resume.

        Raises:
            Stopped: a signal arrived during the epoch, which is now saved.
        """
        stop.hold_timer()
        begin = time.monotonic()
        self._write(write_outputs)
        identity, history = json.dumps(self.identity), json.dumps(self.history)
        save_tensors({"identity": identity, "history": history, "best": self.best, "state": state}, self.resume_file)
        self._advise()
        self._last_save = time.monotonic()
        self._save_cost = self._last_save - begin
        stop.raise_if_asked()

    def finish(self, write_outputs: Callable[[], None]) -> None:
        """Write the outputs, mark the log as finished, remove the resume file, and print the output files."""
        if rank() > 0:
            return
        self._write(write_outputs)
        facts = {"best_epoch": self.best["epoch"], "validation_loss": self.best["loss"]}
        end = {"finished": True, **facts, "checkpoint": digest(self.checkpoint.read_bytes())}
        append_line(self.log_file, json.dumps(end))
        self.resume_file.unlink(missing_ok=True)
        self._release()
        stop.saves_epochs = False
        print(f"best validation loss {self.best['loss']:.4f} at epoch {self.best['epoch']}")
        print("\n".join(f"wrote {path}" for path in (self.checkpoint, self.log_file, self.picture)))

    def summary(self) -> list[dict]:
        """Best epoch and validation CCC of a finished run, as the row of a table."""
        return [{"best epoch": str(self.best["epoch"]), "validation CCC": f"{1 - self.best['loss']:.3f}"}]

    def facts(self) -> dict:
        """What a checkpoint records about its run: the arguments, its epoch and its validation loss."""
        return self.identity["arguments"] | {"best_epoch": self.best["epoch"], "validation_ccc_loss": self.best["loss"]}
