"""What the benchmarks share: how they start the program, and the sections of RESULTS.md that they fill."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from deepmi import cli, storage
from deepmi.process import UserError

ROOT = Path(__file__).resolve().parents[1]


def run(*command: object) -> None:
    """Run a script of the program; raises `UserError` if it fails."""
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise UserError(f"{' '.join(map(str, command))} ended with status {done.returncode}.")


def demo_corpus(given: Path | None, work: Path) -> Path:
    """The demo corpus at `given`, or a new one in `work` if that is None."""
    if given:
        return given.resolve()
    run("-m", "tools.make_demo_corpus", work / "demo")
    return work / "demo"


def machine() -> str:
    """Processor, number of cores and version of torch in words."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.*)", info.read_text()) if info.exists() else None
    return f"{found[1] if found else platform.processor()}, {cli.cpu_count()} cores, torch {version('torch')}"


def split_section(path: Path, name: str) -> tuple[str, str]:
    """The text before and after the content of a section, including its markers.

    Raises:
        UserError: the file has no such section.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    content = storage.read_text(path)
    if begin not in content or end not in content:
        raise UserError(f"{path}: no section {name}; expected the markers {begin} and {end}.")
    return content.split(begin)[0] + begin, end + content.split(end)[1]


def replace_section(path: Path, name: str, text: str) -> None:
    """Replace the content of a section of a Markdown file; raises as `split_section` does."""
    before, after = split_section(path, name)
    storage.write_text(path, f"{before}\n{text}\n{after}")
