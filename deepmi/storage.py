"""Files that are written whole or not at all, and read without trust; digests of content.

Reading runs no code, and a small file never takes much memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import signal
import socket
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from deepmi.process import UserError, signals_blocked

LARGEST_TEXT = 2**30  # bytes; the individual ratings of MSP-Podcast 2.0 take about 2**28
SCRATCH = ".scratch-"  # prefix of temporary folders


def _process_suffix() -> str:
    """Suffix of temporary files of this process; host names contain no @."""
    return f"@{socket.gethostname()}.{os.getpid()}.tmp"


def output_file(path: Path) -> Path:
    """The file to write for an output path, with links resolved.

    Raises:
        UserError: the path is a folder or a device.
    """
    path = Path(path)
    if path.is_symlink():
        path = path.resolve()
    if not path.name or (path.exists() and not path.is_file()):
        raise UserError(f"{path}: not a file that can be written (a folder or a device); give a different name.")
    return path


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """A temporary file name beside `path`; the file is renamed to `path` if the block succeeds, else removed."""
    path = output_file(path)
    temporary = path.with_name(f".{path.name}{_process_suffix()}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # the error for a full disk names no file
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def checked_output(path: Path, flag: str, inputs: Iterable[Path | None]) -> Path:
    """The file that a flag names, to be written later; its folder is made.

    Raises:
        UserError: it is a folder, or one of the inputs, or its folder can't be written.
    """
    target = output_file(path)
    if target.resolve() in {Path(file).resolve() for file in inputs if file}:
        raise UserError(f"{flag} {path}: is one of the inputs; choose a different name.")
    prepare_folder(target.parent)
    return target


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file in one step: readers see the old file or the new one, never a part of it."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: dict | list) -> None:
    """Write indented JSON in one step; NaN and infinite numbers become null."""
    write_text(path, json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(of) for key, of in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(of) for of in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_together(contents: dict[Path, bytes | None]) -> None:
    """Write several files that belong together; a file whose content is None is removed.

    All files are written under temporary names, then the old files are removed, then the new files are renamed in the
    given order. After a kill in between files may be missing, but there are never new files beside old ones.
    """
    with contextlib.ExitStack() as stack:
        for path, content in reversed(contents.items()):  # the file entered last is renamed first
            if content is not None:
                stack.enter_context(write_atomically(path)).write_bytes(content)
        with signals_blocked(signal.SIGINT, signal.SIGTERM):
            for path in contents:
                output_file(path).unlink(missing_ok=True)
            stack.close()


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file; if the disk is full or the process is stopped, the file does not change."""
    with open(path, "ab", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        try:
            rest = f"{line}\n".encode()
            while rest:
                rest = rest[stream.write(rest) :]
        except BaseException as error:
            stream.truncate(size)
            if isinstance(error, OSError):
                error.filename = str(path)
            raise


def read_text(path: Path) -> str:
    """A UTF-8 text file, with or without byte order mark.

    Raises:
        UserError: missing, not a regular file, too large, or not UTF-8.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file.")
    if not path.is_file():  # reading a pipe would wait for its writer
        raise UserError(f"{path}: not a regular file; expected text, CSV or JSON.")
    if (size := path.stat().st_size) > LARGEST_TEXT:
        raise UserError(f"{path}: {size:,} bytes; expected at most {LARGEST_TEXT:,}.")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); expected text, CSV or JSON.") from None


def _unique_keys(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        duplicate = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"duplicate key {duplicate!r}")
    return found


def read_json_object(path: Path) -> dict:
    """A JSON file whose top level is an object, without duplicate keys.

    Raises:
        UserError: missing, too large, not JSON, nested too deeply, a different top level, or a duplicate key.
    """
    text = read_text(path)
    try:
        content = json.loads(text, object_pairs_hook=_unique_keys)
        if re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(content, ensure_ascii=False).encode()  # ValueError for an escape of half a surrogate pair
    except RecursionError:
        raise UserError(f"{path}: nested too deeply; expected one object with a value per file name.") from None
    except ValueError as error:
        raise UserError(f"{path}: not usable JSON ({error}).") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected one JSON object with a value per file name, found {type(content).__name__}.")
    return content


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)  # else another user's process
    return True


def prepare_folder(folder: Path) -> Path:
    """Make an output folder, check that it can be written, and remove temporary files of killed runs on this machine.

    Raises:
        UserError: the folder can't be created or written.
    """
    folder = Path(folder)
    probe = folder / f".write_test{_process_suffix()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{folder}: can't be written ({error.strerror}); name a different folder or correct its permissions."
        ) from None
    for entry in os.scandir(folder):
        leftover = re.fullmatch(rf"\..*@{re.escape(socket.gethostname())}\.(\d{{1,9}})\.tmp", entry.name)
        if leftover and not _is_alive(int(leftover[1])):
            if not entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)
            elif entry.name.startswith(SCRATCH):
                shutil.rmtree(entry.path, ignore_errors=True)
    return folder


@contextlib.contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder within a folder; if the run is killed, the next `prepare_folder` removes it.

    Raises:
        UserError: the outer folder can't be created or written.
    """
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, suffix=_process_suffix(), dir=prepare_folder(folder)))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def digest(*parts: object) -> str:
    """SHA-256 (hex) over JSON-serialisable parts and raw bytes, for cache keys and run fingerprints."""
    sha = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, (bytes, memoryview)) else json.dumps(part, sort_keys=True).encode()
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()


def update_with_file(digest: hashlib._Hash, path: Path) -> None:
    """Feed the content of a file to a digest of hashlib, a block at a time."""
    with path.open("rb") as stream:
        while data := stream.read(2**20):
            digest.update(data)
