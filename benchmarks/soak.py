"""Does a long training keep its memory, its open files and its files on disk within bounds?

    python -m benchmarks.soak --results benchmarks/RESULTS.md

trains DeepEmoCluster on the demo corpus for 500 epochs in a process of its own and looks at it after every epoch.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.real_speech import ROOT, demo_corpus, machine, replace_section, split_section
from deepmi import cli
from deepmi.process import UserError

WARM_UP = 50  # epochs that memory may take to settle
SLOPE = 1.0  # MB in 100 epochs that memory may grow by


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this benchmark."""
    parser = cli.new_parser(__doc__)
    parser.add_argument("--epochs", type=cli.positive_int, default=500, metavar="N", help="epochs to train")
    parser.add_argument("--demo", type=Path, metavar="DIR", help="a demo corpus, in place of a new one")
    parser.add_argument("--results", type=Path, metavar="FILE", help="Markdown file whose section is replaced")
    return parser


if __name__ == "__main__":
    ARGS = cli.parse(get_args_parser())  # before the heavy imports, so that --help answers at once

import numpy as np
from tqdm import tqdm

import utils


def look(process: subprocess.Popen) -> tuple[float, int] | None:
    """(MB of the process's own memory, open files), None where it has ended."""
    folder = Path("/proc") / str(process.pid)
    try:
        status = (folder / "status").read_text()
        kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon"))
        return int(kilobytes) / 1024, len(list((folder / "fd").iterdir()))
    except (OSError, StopIteration):
        return None


def watch(process: subprocess.Popen, log: Path, resume: Path) -> tuple[list[tuple[int, float, int]], int]:
    """((epochs done, MB, open files) once an epoch until the process ends, most bytes of the resume file).

    Raises:
        UserError: it fails.
    """
    seen: list[tuple[int, float, int]] = []
    largest = 0
    with tqdm(unit="epoch", disable=None) as bar:
        while process.poll() is None:
            time.sleep(0.05)
            epochs = log.read_text().count("\n") - 1 if log.exists() else 0
            found = look(process)
            if found and epochs > (seen[-1][0] if seen else 0):
                seen.append((epochs, *found))
                bar.update(epochs - bar.n)
                largest = max(largest, resume.stat().st_size if resume.exists() else 0)
    if process.returncode:
        raise UserError(f"training_DeepEmoCluster.py ended with status {process.returncode}.")
    return seen, largest


def table(seen: list[tuple[int, float, int]], epochs: int, log: Path, largest_resume: int) -> tuple[str, bool]:
    """(the Markdown section, whether all is within bounds)."""
    settled = np.array([row for row in seen if row[0] > min(WARM_UP, epochs // 2)], dtype=float)
    slope = 100 * np.polyfit(settled[:, 0], settled[:, 1], 1)[0]
    files = settled[:, 2]
    medians = [f"{np.median(part[:, 1]):.0f}" for part in np.array_split(settled, 5)]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    whole = len(lines) == epochs + 2 and lines[-1].get("finished") is True
    rows = [
        ["what", "found", "bound"],
        ["memory, growth in 100 epochs", f"{slope:.2f} MB", f"{SLOPE:g} MB"],
        ["memory, median of each fifth", f"{', '.join(medians)} MB", ""],
        ["memory, lowest .. highest", f"{settled[:, 1].min():.0f} .. {settled[:, 1].max():.0f} MB", ""],
        ["open files, lowest .. highest", f"{files.min():.0f} .. {files.max():.0f}", "no trend"],
        ["log", f"{len(lines)} lines, {log.stat().st_size / 1024:.0f} KB", f"{epochs + 2} lines"],
        ["resume file, largest", f"{largest_resume / 2**20:.0f} MB", ""],
    ]
    steady = abs(np.polyfit(settled[:, 0], files, 1)[0]) * epochs < 1
    text = "\n".join([*cli.markdown_table(rows), "", f"{epochs} epochs on {machine()}."])
    return text, bool(slope < SLOPE and steady and whole)


def main(args: argparse.Namespace) -> int:
    """Train, watch, print; 1 where a bound is broken."""
    if args.results:
        split_section(args.results, "soak")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        demo = demo_corpus(args.demo, work)
        subprocess.run([sys.executable, str(ROOT / "norm_para.py"), "--corpus", str(demo)], cwd=work, check=True)
        checkpoint = utils.ssl_checkpoint(work / "Models", args.epochs, 64, 10, "Act")
        log = checkpoint.with_name(checkpoint.name.removesuffix(".pth.tar") + ".log.jsonl")
        command = [sys.executable, str(ROOT / "training_DeepEmoCluster.py"), "-ep", str(args.epochs), "-emo", "Act"]
        command += ["-batch", "64", "-nc", "10", "--corpus", str(demo), "--unlabeled", str(demo / "Unlabeled")]
        process = subprocess.Popen([*command, "--device", "cpu"], cwd=work, stdout=subprocess.DEVNULL)
        seen, largest = watch(process, log, checkpoint.with_name(f"{checkpoint.name}.resume"))
        text, steady = table(seen, args.epochs, log, largest)
    print(text)
    if args.results:
        replace_section(args.results, "soak", text)
    return int(not steady)


if __name__ == "__main__":
    cli.run(main, ARGS)
