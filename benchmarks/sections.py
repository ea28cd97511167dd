"""What the benchmarks share: how they start the program, and the sections of RESULTS.md that they fill."""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from deepmi import cli, storage
from deepmi.process import UserError

ROOT = Path(__file__).resolve().parents[1]


def start(*command: object, folder: Path = ROOT, **options) -> subprocess.Popen:
    """Start Python in a folder; a command that begins with a name in *.py is a script of this program."""
    script, *rest = map(str, command)
    argv = [sys.executable, str(ROOT / script) if script.endswith(".py") else script, *rest]
    options |= {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(argv, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, **options)


def finish(process: subprocess.Popen, timeout: float | None = None) -> None:
    """Wait for a process from `start`; raises `UserError` if it fails, `subprocess.TimeoutExpired` after a timeout."""
    _, errors = process.communicate(timeout=timeout)
    if process.returncode:
        raise UserError(f"{' '.join(process.args[1:])} ended with status {process.returncode}: {errors[-300:]}")


def run(*command: object, folder: Path = ROOT) -> None:
    """Run Python in a folder, as `start`; raises `UserError` if it fails."""
    finish(start(*command, folder=folder))


def megabytes(field: str, process: int | str = "self") -> float:
    """A size in MB from /proc/PROCESS/status (Linux), 0 if it is not there: `RssAnon`, `VmHWM`, ..."""
    status = Path(f"/proc/{process}/status")
    found = re.search(rf"^{field}:\s+(\d+)", status.read_text(), re.M) if status.exists() else None
    return int(found[1]) / 1024 if found else 0.0


def machine() -> str:
    """Processor, number of cores and version of torch in words."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.*)", info.read_text()) if info.exists() else None
    return f"{found[1] if found else platform.processor()}, {cli.cpu_count()} cores, torch {version('torch')}"


def add_results_argument(parser: argparse.ArgumentParser) -> None:
    """--results."""
    parser.add_argument("--results", type=Path, metavar="FILE", help="Markdown file whose section is replaced")


def fill_section(path: Path | None, name: str, text: str | None = None) -> None:
    """Replace the content of a section of a Markdown file, if there is one.

    Args:
        path: the file; None does nothing.
        name: name of the section.
        text: its new content. None changes nothing, so that a wrong file is refused before a long run.
    Raises:
        UserError: the file has no such section.
    """
    if path is None:
        return
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    content = storage.read_text(path)
    if begin not in content or end not in content:
        raise UserError(f"{path}: no section {name}; expected the markers {begin} and {end}.")
    if text is not None:
        storage.write_text(path, f"{content.split(begin)[0]}{begin}\n{text}\n{end}{content.split(end)[1]}")
