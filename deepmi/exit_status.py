"""How a script ends: its exit status, and one message for an error that the user or the machine has made."""

from __future__ import annotations

import argparse
import errno
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from deepmi.process import Stopped, UserError, num_ranks, one_line, rank, stop

RANK_PATIENCE = 10  # seconds that another rank waits for rank 0 to report an error first
FULL_DISK = ("ENOSPC", "EDQUOT", "EFBIG", "EIO")  # these name no file when standard output is written
PATH_ERRORS = ("ENOENT", "ENOTDIR", "EISDIR")
LOST_CONNECTION = r"connection.*(closed|reset)|broken pipe"  # gloo's message after another rank has ended


def status_of(main: Callable, args: argparse.Namespace, prog: str, errors: TextIO) -> int:
    """Exit status of the script; an error of the user or the machine is printed as one message."""
    try:
        if num_ranks() > 1 and not hasattr(main, "runs_on_every_rank"):
            raise UserError("runs as one process; start it without torchrun.")
        stop.raise_if_asked()
        status = main(args)
        if sys.stdout:  # None if it was closed
            sys.stdout.flush()  # a full disk behind it shows here, not when Python ends
        return status or 0
    except UserError as error:
        if rank() > 0:
            # torchrun ends all ranks when the first one fails. Rank 0 may have the same message, and is not muted.
            time.sleep(RANK_PATIENCE)
            prog = f"{prog}: rank {rank()}"
        print(f"{prog}: error: {error}", file=errors)
        return 2
    except BrokenPipeError:
        _drop_output()  # the reader of our output (head, less) has left; nothing is wrong
        return 141
    except OSError as error:
        if not _can_be_mended(error, args):
            sys.stderr = errors
            raise
        print(f"{prog}: error: {_message_of(error)}", file=errors)
        return 2
    except (KeyboardInterrupt, Stopped):
        stop.ignore_further_signals()
        print(f"\n{prog}: stopped. {stop.advice}", file=errors)
        return 128 + (stop.signal or signal.SIGINT)
    except Exception as error:
        sys.stderr = errors
        if num_ranks() == 1 or not re.search(LOST_CONNECTION, str(error), re.IGNORECASE):
            raise
        # Another rank has failed and reports why; this one only sees the connection break.
        print(f"{prog}: rank {rank()}: another process has ended.", file=errors)
        return 1


def _can_be_mended(error: OSError, args: argparse.Namespace) -> bool:
    """Whether an error is the machine's, or that of a missing file below a path that the user named.

    Any other error is a bug: it names no file, or a file is missing where the program looks by itself.
    """
    kind = errno.errorcode.get(error.errno)
    files = [Path(os.fsdecode(name)).absolute() for name in (error.filename, error.filename2) if name]
    if kind not in PATH_ERRORS:
        return kind in FULL_DISK or (kind is not None and bool(files))
    given = [value for of in vars(args).values() for value in (of if isinstance(of, (list, tuple)) else [of])]
    named = [value.absolute() for value in given if isinstance(value, Path)]
    return any(file.is_relative_to(folder) for file in files for folder in named)


def _message_of(error: OSError) -> str:
    name = error.filename2 or error.filename  # of two names the second is the target
    if name is None and error.errno in (errno.ENOSPC, errno.EFBIG):
        name = "standard output"  # writing a file adds its name
        _drop_output()
    return one_line(f"{name or 'a file'}: {error.strerror or error}.")


def _drop_output() -> None:
    """Discard what standard output still holds, or Python would complain about it at its end."""
    if sys.stdout:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
