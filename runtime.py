"""Device, precision, seeds, files that are never half written, run log and resume. Nothing here is about emotion."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

__version__ = "0.1.0"


class UserError(Exception):
    """Something the user can mend. The message says which file, what was found, what was expected and what to do."""


# ---------------------------------------------------------------------------------------------------------------------
# Device, precision, seed


def choose_device(name: str):
    """Turn `--device` into a torch device.

    Args:
        name: `auto` (a CUDA GPU, else Apple's MPS, else the CPU), `cpu`, `cuda`, `cuda:N` or `mps`.
    Returns:
        A `torch.device`.
    Raises:
        UserError: the name is unknown, or this machine has no such device.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    known = re.fullmatch(r"cpu|mps|cuda(?::(\d+))?", name)
    if not known:
        raise UserError(f"--device {name}: expected auto, cpu, cuda, cuda:N or mps.")
    if name.startswith("cuda") and int(known[1] or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: this machine shows {torch.cuda.device_count()} CUDA GPUs; use --device auto."
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: not available on this machine; use --device auto.")
    return torch.device(name)


def autocast(device, precision: str):
    """Context in which matrix products run in `precision` (`fp32` or `bf16`); parameters stay float32."""
    import torch

    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def derived_seed(seed: int, *context: int) -> int:
    """A seed of its own for one place of a run, e.g. (epoch, stage).

    Every random step takes its seed from the run's seed and its place, so no generator state has to outlive an
    epoch and a resumed run draws what the uninterrupted one would have drawn.

    Returns:
        An int in [0, 2**31), the range that faiss, numpy and torch all accept.
    """
    import numpy as np

    return int(np.random.SeedSequence([seed, *context]).generate_state(1)[0] >> 1)


def seed_everything(seed: int) -> None:
    """Seed torch's generators (weight initialisation, dropout) on every device."""
    import torch

    torch.manual_seed(seed)


# ---------------------------------------------------------------------------------------------------------------------
# Files and folders


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; rename it to `path` if the block succeeds, remove it if not."""
    path = Path(path)
    temporary = _temporary_name(path)
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say which file it could not take
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file in one step: readers see the old file or the new one, never a part."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_text(path: Path) -> str:
    """A UTF-8 text file, with or without byte order mark.

    Raises:
        UserError: missing, not UTF-8, or with NUL bytes.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); expected text, CSV or JSON.") from None
    if "\0" in text:
        raise UserError(f"{path}: holds NUL bytes; expected text, CSV or JSON.")
    return text


def _unique_keys(pairs: list[tuple[str, object]]) -> dict:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{twice!r} stands there twice")
    return dict(pairs)


def read_json_object(path: Path) -> dict:
    """A JSON file whose top level is an object, each key once.

    Raises:
        UserError: missing, not JSON, another top level, a key twice, or nested too deeply.
    """
    text = read_text(path)
    try:
        content = json.loads(text, object_pairs_hook=_unique_keys)
        if re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair is no character
    except UserError as error:
        raise UserError(f"{path}: {error}.") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply; expected one object with a value a file name.") from None
    except UnicodeEncodeError:
        raise UserError(f"{path}: holds half a character (an escape such as \\ud800); expected text.") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}).") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected one JSON object with a value a file name, found {type(content).__name__}.")
    return content


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def prepare_folder(folder: Path) -> Path:
    """Make an output folder, prove that it can be written, and clear what killed runs of this machine left in it.

    Raises:
        UserError: the folder can't be made or written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = _temporary_name(folder / "write_test")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{folder}: can't be written ({error.strerror}); name another folder or mend its permissions."
        ) from None
    host = re.escape(socket.gethostname())
    for entry in os.scandir(folder):
        leftover = re.fullmatch(rf"\..*\.{host}\.(\d+)\.tmp", entry.name)
        if leftover and not _is_alive(int(leftover[1])):
            Path(entry.path).unlink(missing_ok=True)
    return folder


def digest(*parts: object) -> str:
    """SHA-256 (hex) over JSON-serialisable parts and raw bytes, for cache keys and run fingerprints."""
    sha = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()


def save_tensors(content: object, path: Path) -> None:
    """`torch.save` in one step; the same content gives the same bytes whatever the file is called."""
    import torch

    # By way of memory: torch writes a path's name into the archive, and hides a full disk behind an error of its own.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with write_atomically(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_tensors(path: Path) -> object:
    """`torch.load` onto the CPU that refuses to run code.

    Raises:
        UserError: the file is missing, damaged, or holds anything but tensors and plain values.
    """
    import pickle

    import torch

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error) or "Weights only" in str(error):
            raise UserError(
                f"{path}: refused, since reading it would run code; expected a file of tensors and plain values only."
            ) from None
        raise UserError(f"{path}: damaged, not a checkpoint that torch can read; get or train it anew.") from None
    except MemoryError:
        raise UserError(f"{path}: damaged, it claims more memory than this machine has.") from None
    except Exception as error:  # torch raises many kinds for a damaged archive
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: damaged, not a checkpoint that torch can read ({reason}); get or train it anew."
        ) from None


# ---------------------------------------------------------------------------------------------------------------------
# A training run: its log, its resume file, its end


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


def tell_if_unfinished(checkpoint: Path) -> None:
    """Say so if a checkpoint that is about to be used is the best so far of a run that has not ended."""
    if _resume_file(checkpoint).exists():
        print(f"note: {checkpoint}: its training has not ended; this is the best so far.", file=sys.stderr)


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
            "--precision fp32. The last saved state is kept."
        )


class TrainingRun:
    """The log (one JSON line an epoch) and the resume file that lie beside a checkpoint.

    A state is saved whenever ten times the cost of a save has passed, so saving takes a tenth of a run at most and a
    kill costs seconds. Training that resumes from a state repeats the epochs after it with the same seeds.
    """

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
        self.picture = self.checkpoint.with_name(f"{stem}.png")
        self.identity = {"arguments": arguments, "inputs": inputs, "version": __version__}
        self.details = details
        self.resume = resume
        self.history: list[dict] = []
        self.best: dict = {"loss": None, "epoch": None, "weights": None}
        self._last_save = time.monotonic()
        self._save_cost = 0.0

    def _log_lines(self) -> list[dict]:
        try:
            lines = [json.loads(line) for line in self.log_file.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError):
            return []
        return lines if all(isinstance(line, dict) for line in lines) else []

    def is_finished(self) -> bool:
        """Whether this very run (arguments, data, program) has ended before and its checkpoint is here; says so."""
        if not (self.resume and self.checkpoint.is_file()) or self.resume_file.exists():
            return False
        lines = self._log_lines()
        if len(lines) < 2 or lines[0].get("run") != self.identity or lines[-1].get("finished") is not True:
            return False
        print(f"{self.checkpoint}: trained already with these arguments on these data; --no-resume trains it anew.")
        return True

    def start(self) -> dict | None:
        """Begin the log; return the saved state (on the CPU) to go on from, or None.

        Raises:
            UserError: an unfinished run with other arguments or data lies here.
        """
        state = None
        if not self.resume:
            self.resume_file.unlink(missing_ok=True)  # given up now, or a kill before the first save would revive it
        elif self.resume_file.exists():
            state = self._read_state()
            print(f"going on after {len(self.history)} epochs, saved in {self.resume_file}")
        else:
            self._tell_what_is_replaced()
        first = {"run": self.identity, **self.details, "versions": _versions(), "git_commit": _git_commit()}
        write_text(self.log_file, "".join(json.dumps(line) + "\n" for line in [first, *self.history]))
        return state

    def _tell_what_is_replaced(self) -> None:
        lines = self._log_lines()
        if len(lines) > 1 and lines[-1].get("finished") is True and isinstance(lines[0].get("run"), dict):
            differences = self._differences(lines[0]["run"])
            print(f"note: replaces {self.checkpoint}, a finished run ({differences}).", file=sys.stderr)

    def _read_state(self) -> dict:
        try:
            saved = load_tensors(self.resume_file)
            identity, self.history = json.loads(saved["identity"]), json.loads(saved["history"])
            self.best, state = saved["best"], saved["state"]
        except (UserError, KeyError, TypeError, ValueError) as error:
            reason = str(error).removeprefix(f"{self.resume_file}: ")
            raise UserError(
                f"{self.resume_file}: the state of an unfinished run can't be read ({reason[:120]}). Start anew with "
                "--no-resume."
            ) from None
        self._refuse_another_run(identity)
        return state

    def _differences(self, other: dict) -> str:
        """In which arguments and data another run's identity differs from this one's."""
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
        with open(self.log_file, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")

    def keep_if_best(self, loss: float, epoch: int, weights: dict) -> None:
        """Keep a copy of the weights if their validation loss is the lowest so far.

        Raises:
            UserError: the loss is not finite.
        """
        if not math.isfinite(loss):
            raise UserError(
                f"epoch {epoch}: the validation loss is not finite: training diverged, or the validation labels are "
                "all the same. Look at them, or try --precision fp32. The last saved state is kept."
            )
        if self.best["weights"] is None or loss < self.best["loss"]:
            copy = {key: value.detach().clone() for key, value in weights.items()}
            self.best = {"loss": loss, "epoch": epoch, "weights": copy}

    def save_if_due(self, make_state: Callable[[], dict], write_outputs: Callable[[], None]) -> None:
        """Write the outputs so far and the state, unless the last save is too recent to be worth it."""
        if time.monotonic() - self._last_save < 10 * self._save_cost:
            return
        begin = time.monotonic()
        write_outputs()
        content = {
            "identity": json.dumps(self.identity),
            "history": json.dumps(self.history),
            "best": self.best,
            "state": make_state(),
        }
        save_tensors(content, self.resume_file)
        self._last_save = time.monotonic()
        self._save_cost = self._last_save - begin

    def finish(self, write_outputs: Callable[[], None]) -> None:
        """Write the outputs for good, mark the log, remove the resume file and say where all is."""
        write_outputs()
        self.end_epoch({"finished": True, "best_epoch": self.best["epoch"], "validation_loss": self.best["loss"]})
        self.resume_file.unlink(missing_ok=True)
        print(f"best validation loss {self.best['loss']:.4f} at epoch {self.best['epoch']}")
        print("\n".join(f"wrote {path}" for path in (self.checkpoint, self.log_file, self.picture)))

    def facts(self) -> dict:
        """What a checkpoint should remember of its run: the chosen arguments and which epoch it is from."""
        return self.identity["arguments"] | {"best_epoch": self.best["epoch"], "validation_ccc_loss": self.best["loss"]}
