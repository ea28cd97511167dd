"""Files that are written whole or not at all, and read without trust; digests of what is in them.

Reading runs no code, and takes no memory without a bound.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from deepmi.process import UserError, signals_blocked

LARGEST_TEXT = 2**28  # bytes of a text file, but for labels; a DeepMI file of five million utterances
LARGEST_LABELS = 2**30  # the single raters' labels of MSP-Podcast 2.0 have some 2**28
LARGEST_NESTED = 2**24  # characters of a JSON file, but for labels, that may have more than one level
SCRATCH = ".scratch-"  # how the names of temporary folders begin


def _mark_of_process() -> str:
    """How the names of temporary files of this process end; no name of a host has an @."""
    return f"@{socket.gethostname()}.{os.getpid()}.tmp"


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}{_mark_of_process()}")


def output_file(path: Path) -> Path:
    """The file that an output's name stands for, which a link may lead to.

    Raises:
        UserError: there is something else than a file: a folder, a device.
    """
    path = Path(path)
    if path.is_symlink():
        path = path.resolve()
    if not path.name or (path.exists() and not path.is_file()):
        raise UserError(f"{path}: no file that can be written (a folder, a device); give another name.")
    return path


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; rename it to `path` if the block succeeds, remove it if not."""
    path = output_file(path)
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


def write_together(contents: dict[Path, bytes | None]) -> None:
    """Write several files that belong together; those whose content is None are taken away.

    Only when all of them stand under temporary names do the old ones go, and then the new ones come in the order given.
    A run that is killed meanwhile leaves some missing, never new ones beside old ones.
    """
    with contextlib.ExitStack() as stack:
        for path, content in reversed(contents.items()):  # those that are entered first are renamed last
            if content is not None:
                stack.enter_context(write_atomically(path)).write_bytes(content)
        with signals_blocked(signal.SIGINT, signal.SIGTERM):
            for path in contents:
                output_file(path).unlink(missing_ok=True)
            stack.close()


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file: all of it or, where the disk is full or the process is stopped, nothing."""
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


def read_text(path: Path, largest: int = LARGEST_TEXT) -> str:
    """A UTF-8 text file, with or without byte order mark.

    Args:
        path: the file.
        largest: bytes that it may have.
    Raises:
        UserError: missing, no regular file, too large, not UTF-8, or with NUL bytes.
    """
    path = Path(path)
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):  # a pipe would wait for its writer
            raise UserError(f"{path}: no regular file; expected text, CSV or JSON.")
        if state.st_size > largest:
            raise UserError(f"{path}: {state.st_size:,} bytes; expected {largest:,} at most.")
        data = path.read_bytes()
        if b"\0" in data:
            raise UserError(f"{path}: holds NUL bytes, so it is not UTF-8 text; expected text, CSV or JSON.")
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); expected text, CSV or JSON.") from None


def _unique_keys(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise UserError(f"{twice!r} stands there twice")
    return found


def read_json_object(path: Path, of_labels: bool = False) -> dict:
    """A JSON file whose top level is an object, each key once.

    Args:
        path: the file.
        of_labels: whether it may be as large, and as nested, as label files are.
    Raises:
        UserError: missing, too large, not JSON, another top level, a key twice, or nested too deeply.
    """
    text = read_text(path, LARGEST_LABELS if of_labels else LARGEST_TEXT)
    try:
        if not of_labels and len(text) > LARGEST_NESTED and ("[" in text or text.count("{") > 1):
            # Empty lists and objects take twenty times the memory of their text.
            raise UserError(f"{len(text):,} characters, too many for lists or objects in it")
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
        leftover = re.fullmatch(rf"\..*@{host}\.(\d+)\.tmp", entry.name)
        if not leftover or _is_alive(int(leftover[1])):
            continue
        if not entry.is_dir(follow_symlinks=False):
            with contextlib.suppress(OSError):
                Path(entry.path).unlink()
        elif re.match(rf"{re.escape(SCRATCH)}\w+@", entry.name):
            shutil.rmtree(entry.path, ignore_errors=True)
    return folder


@contextlib.contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A folder within another for as long as the block runs; `prepare_folder` clears that of a killed run.

    Raises:
        UserError: the outer folder can't be made or written.
    """
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, suffix=_mark_of_process(), dir=prepare_folder(folder)))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def digest(*parts: object) -> str:
    """SHA-256 (hex) over JSON-serialisable parts and raw bytes, for cache keys and run fingerprints."""
    sha = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()
