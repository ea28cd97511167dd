"""What lies beside a checkpoint (run log, resume file, lock), which epoch is the best, and when training diverges."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import io
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, ClassVar

from deepmi import __version__
from deepmi.process import UserError, notify, num_ranks, rank
from deepmi.ranks import from_first_rank
from deepmi.storage import append_line, digest, read_text, write_text
from deepmi.tensors import load_tensors, save_tensors


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"deepmi": __version__, "python": sys.version.split()[0]}
    for package in (
        "torch",
        "faiss-cpu",
        "faiss-gpu",
        "numpy",
        "scipy",
        "pandas",
        "scikit-learn",
    ):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _resume_file(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}.resume")


def note_if_unfinished(checkpoint: Path) -> None:
    """Say so if a checkpoint that is about to be used is the best so far of a run that has not ended."""
    if _resume_file(checkpoint).exists():
        notify(f"note: {checkpoint}: its training has not ended; this is the best so far.")


def weighted_mean(losses, sizes: list[int], smallest: int = 1) -> float:
    """Mean loss of an epoch's batches, each weighted by its size.

    Args:
        losses: tensor, shape (number of batches,).
        sizes: utterances in each batch.
        smallest: batches of fewer utterances do not count.
    Returns:
        The mean, 1 where no batch counts.
    """
    weights = losses.new_tensor([size if size >= smallest else 0 for size in sizes])
    return (losses @ weights / weights.sum()).item() if weights.any() else 1.0


def refuse_divergence(losses, batches, names: list[str], title: str) -> None:
    """Stop at the first batch whose loss is not finite.

    Args:
        losses: tensor, shape (number of batches, losses of a batch).
        batches: positions of each batch's utterances.
        names: file names that the positions point to.
        title: what was being trained.
    Raises:
        UserError: with the batch and its files.
    """
    broken = (~losses.isfinite().all(dim=1)).nonzero()
    if len(broken):
        first = int(broken[0])
        files = ", ".join(names[i] for i in batches[first][:5].tolist())
        raise UserError(
            f"{title}: the loss of batch {first} is not finite (files {files}, ...). Look at their features, or try "
            "--precision fp32. A saved state, if there is one, is kept."
        )


def _lock(path: Path) -> IO | None:
    """An open file that no other process can lock until it is closed or this process ends, however that happens.

    None where another process has locked it; without effect where system or file system know no such locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return io.BytesIO()
    while True:
        stream = open(path, "ab", buffering=0)
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            return None
        except OSError:
            return stream
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(stream.fileno()), os.stat(path)):
                return stream
        stream.close()  # its owner has ended, and removed it, since it was opened here


NO_BEST: dict = {"loss": None, "epoch": None, "weights": None}


def better_of(best: dict, loss: float, epoch: int, weights: dict) -> dict:
    """The best epoch so far, with a copy of its weights, which goes into the memory of the copy before.

    Args:
        best: what this returned for the epochs before; NO_BEST at first.
        loss: validation loss of this epoch.
        epoch: counted from 0.
        weights: state dict.
    Raises:
        UserError: the loss is not finite.
    """
    if not math.isfinite(loss):
        raise UserError(
            f"epoch {epoch}: the validation loss is not finite: training diverged, or the validation labels are all "
            "the same. Look at them, or try --precision fp32. A saved state, if there is one, is kept."
        )
    if best["weights"] is not None and loss >= best["loss"]:
        return best
    kept = best["weights"]
    if kept is None:
        kept = {key: value.detach().clone() for key, value in weights.items()}
    else:  # in the memory of those before: new blocks of so many MB at odd times leave holes that nothing else fills
        for key, value in weights.items():
            kept[key].copy_(value.detach())
    return {"loss": loss, "epoch": epoch, "weights": kept}


class TrainingRun:
    """The log (one JSON line an epoch) and the resume file that lie beside a checkpoint.

    A state is saved whenever ten times the cost of a save has passed, so saving takes a tenth of a run at most and a
    kill costs seconds. Training that resumes from a state repeats the epochs after it with the same seeds.

    A hidden file beside them is locked while a run goes on, so that no second one writes the same files. A killed run
    leaves it there, but unlocked.
    """

    current: ClassVar[TrainingRun | None] = None  # this process's, from its start to its end
    _locks: ClassVar[dict[Path, IO]] = {}  # of the runs of this process, by the locked file

    def __init__(self, checkpoint: Path, arguments: dict, inputs: dict, details: dict, resume: bool):
        """
        Args:
            checkpoint: the file this run will write; log and resume file take their names from it.
            arguments: what the user chose that changes the outcome.
            inputs: digests of the data the run reads.
            details: further facts for the log's first line (folders, corpus counts).
            resume: go on from a saved state where there is one.
        """
        self.checkpoint = Path(checkpoint)
        stem = self.checkpoint.name.removesuffix(".tar").rsplit(".", 1)[0]
        self.log_file = self.checkpoint.with_name(f"{stem}.log.jsonl")
        self.resume_file = _resume_file(self.checkpoint)
        self.lock_file = self.checkpoint.absolute().with_name(f".{self.checkpoint.name}.lock")
        self.picture = self.checkpoint.with_name(f"{stem}.png")
        self.identity = {"arguments": arguments, "inputs": inputs, "version": __version__}
        self.details = details
        self.resume = resume
        self.first_line: dict = {}
        self.log_is_ours = False  # until the first outputs are written, the log is that of the checkpoint before
        self.history: list[dict] = []
        self.best = NO_BEST
        self.saved_epochs = 0
        self._stop_is_asked = False
        self._last_save = time.monotonic()
        self._save_cost = 0.0

    def _log_lines(self) -> list[dict]:
        try:
            lines = [json.loads(line) for line in read_text(self.log_file).splitlines()]
        except (UserError, OSError, ValueError, RecursionError):
            return []
        return lines if all(isinstance(line, dict) for line in lines) else []

    def is_finished(self) -> bool:
        """Whether this very run (arguments, data, program) has ended before and its checkpoint is here; says so."""
        if not (self.resume and self.checkpoint.is_file()) or self.resume_file.exists():
            return False
        lines = self._log_lines()
        if len(lines) < 2 or lines[0].get("run") != self.identity or lines[-1].get("finished") is not True:
            return False
        if lines[-1].get("checkpoint") != digest(self.checkpoint.read_bytes()):
            return False  # another run has replaced it, and was stopped before it could write its own log
        print(f"{self.checkpoint}: trained already with these arguments on this data; --no-resume trains it again.")
        return True

    def refuse_unlike_ranks(self, finished: bool) -> None:
        """Compare what this rank has found with what rank 0 has; to be called by all of them, after `start`.

        Args:
            finished: what `is_finished` said.
        Raises:
            UserError: other arguments, data or saved state, as where ranks see folders of their own.
        """
        here = digest(self.identity, finished, len(self.history))
        if from_first_rank(lambda: here) != here:
            raise UserError(
                f"{self.checkpoint}: this process has found another state of the run, or other data, than rank 0; all "
                "need --model-dir, the corpus and its norm terms on a common file system."
            )

    def start(self) -> dict | None:
        """Take the run's files for this process; return the saved state (on the CPU) to go on from, or None.

        Raises:
            UserError: another process is writing this run's files, or an unfinished run with other arguments or data
                lies here.
        """
        state = None
        self.first_line = {"run": self.identity, **self.details, "versions": _versions(), "git_commit": _git_commit()}
        started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        self.first_line["process"] = {"id": os.getpid(), "host": socket.gethostname(), "started": started}
        if rank() == 0:
            self._refuse_second_writer()
        if not self.resume:
            if rank() == 0:
                self.resume_file.unlink(missing_ok=True)  # given up now, or a kill before the first save revives it
        elif self.resume_file.exists():
            state = self._read_state()
            print(f"going on after {len(self.history)} epochs, saved in {self.resume_file}")
            self._write_log()
        else:
            self._tell_what_is_replaced()
        self.saved_epochs = len(self.history)
        TrainingRun.current = self
        return state

    def _write(self, write_outputs: Callable[[], None]) -> None:
        """Write the outputs, and with the first of them the log that belongs to them."""
        write_outputs()
        if not self.log_is_ours:
            self._write_log()

    def _write_log(self) -> None:
        """The log of the epochs so far, in place of the one before."""
        if rank() == 0:
            write_text(self.log_file, "".join(json.dumps(line) + "\n" for line in [self.first_line, *self.history]))
            self.log_is_ours = True

    def _refuse_second_writer(self) -> None:
        self._unlock()  # an earlier run of this process
        lock = _lock(self.lock_file)
        if lock is None:
            try:
                who = "process {id} on {host}, since {started}".format(**json.loads(read_text(self.lock_file)))
            except (UserError, OSError, ValueError, LookupError, TypeError):
                who = "not known which"
            raise UserError(
                f"{self.checkpoint}: another run is writing it ({who}). Wait for that one to end, or name another "
                "--model-dir."
            )
        self._locks[self.lock_file] = lock
        atexit.register(self.release_files)
        with contextlib.suppress(OSError):  # a full disk; it only says who this is
            lock.truncate(0)
            lock.write(json.dumps(self.first_line["process"]).encode())

    def _unlock(self) -> None:
        self._release(self.lock_file)

    @classmethod
    def _release(cls, lock_file: Path) -> None:
        if lock := cls._locks.pop(lock_file, None):
            with contextlib.suppress(OSError):
                lock_file.unlink()  # while it is locked: nobody else has it then
            lock.close()

    @classmethod
    def release_files(cls) -> None:
        """Give up what the runs of this process have taken and not finished."""
        for lock_file in list(cls._locks):
            cls._release(lock_file)

    def _tell_what_is_replaced(self) -> None:
        lines = self._log_lines()
        if len(lines) > 1 and lines[-1].get("finished") is True and isinstance(lines[0].get("run"), dict):
            differences = self._differences(lines[0]["run"])
            notify(f"note: replaces {self.checkpoint}, a finished run ({differences}).")

    def _read_state(self) -> dict:
        with self.reading_state():
            saved = load_tensors(self.resume_file)
            identity, history = json.loads(saved["identity"]), json.loads(saved["history"])
            best, state = {key: saved["best"][key] for key in NO_BEST}, dict(saved["state"])
            if [record["epoch"] for record in history] != list(range(len(history))):
                raise ValueError("epochs are missing in its history")
            other = dict(identity)
        self._refuse_another_run(other)
        self.history, self.best = history, best
        return state

    @contextlib.contextmanager
    def reading_state(self) -> Iterator[None]:
        """Raise `UserError` where a saved state is damaged, or is not what the block expects of it."""
        try:
            yield
        except (UserError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = (str(error).removeprefix(f"{self.resume_file}: ").splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{self.resume_file}: the state of an unfinished run can't be read ({reason[:120]}). Start anew with "
                "--no-resume."
            ) from None

    def _differences(self, other: dict) -> str:
        """In which arguments and data another run's identity differs from this one's."""
        other = {name: of if isinstance(of, dict) or name == "version" else {} for name, of in other.items()}
        before, now = other.get("arguments", {}), self.identity["arguments"]
        differences = [
            f"{name} {before.get(name)} there, {now.get(name)} now"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
        before, now = other.get("inputs", {}), self.identity["inputs"]
        differences += [
            f"other {name} data" for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)
        ]
        if other.get("version") != __version__:
            differences.append(f"program version {other.get('version')} there, {__version__} now")
        return "; ".join(differences) or "the same arguments and data"

    def _refuse_another_run(self, other: dict) -> None:
        if other != self.identity:
            raise UserError(
                f"{self.resume_file}: an unfinished run of another kind lies here ({self._differences(other)}). Finish "
                "it with its own arguments, name another --model-dir, or give it up with --no-resume."
            )

    def end_epoch(self, record: dict) -> None:
        """Add an epoch to the log."""
        self.history.append(record)
        if self.log_is_ours:
            append_line(self.log_file, json.dumps(record))

    def keep_if_best(self, loss: float, epoch: int, weights: dict) -> None:
        """Keep a copy of the weights if their validation loss is the lowest so far; raises as `better_of`."""
        self.best = better_of(self.best, loss, epoch, weights)

    def stops_within(self, seconds: float) -> bool:
        """Have SIGALRM come once the epoch has ended and is saved; False if that takes longer, or was said before.

        Several ranks would have to agree on the epoch, so they don't wait for it.
        """
        if self._stop_is_asked or num_ranks() > 1 or not self.history:
            return False
        self._stop_is_asked = self.history[-1].get("seconds", math.inf) < seconds
        return self._stop_is_asked

    def save_if_due(self, make_state: Callable[[], dict], write_outputs: Callable[[], None]) -> None:
        """Write the outputs so far and the state, unless the last save is too recent to be worth it."""
        if self._stop_is_asked:
            signal.setitimer(signal.ITIMER_REAL, 0)
        elif rank() > 0 or time.monotonic() - self._last_save < 10 * self._save_cost:
            return
        begin = time.monotonic()
        self._write(write_outputs)
        content = {
            "identity": json.dumps(self.identity),
            "history": json.dumps(self.history),
            "best": self.best,
            "state": make_state(),
        }
        save_tensors(content, self.resume_file)
        self.saved_epochs = len(self.history)
        self._last_save = time.monotonic()
        self._save_cost = self._last_save - begin
        if self._stop_is_asked:
            signal.raise_signal(signal.SIGALRM)

    def finish(self, write_outputs: Callable[[], None]) -> None:
        """Write the outputs for good, mark the log, remove the resume file and say where all is."""
        if rank() > 0:
            return
        self._write(write_outputs)
        facts = {"best_epoch": self.best["epoch"], "validation_loss": self.best["loss"]}
        self.end_epoch({"finished": True, **facts, "checkpoint": digest(self.checkpoint.read_bytes())})
        self.resume_file.unlink(missing_ok=True)
        self._unlock()
        TrainingRun.current = None
        print(f"best validation loss {self.best['loss']:.4f} at epoch {self.best['epoch']}")
        print("\n".join(f"wrote {path}" for path in (self.checkpoint, self.log_file, self.picture)))

    def facts(self) -> dict:
        """What a checkpoint should remember of its run: the chosen arguments and which epoch it is from."""
        return self.identity["arguments"] | {"best_epoch": self.best["epoch"], "validation_ccc_loss": self.best["loss"]}
