"""Check that memory, open files and files on disk stay bounded in a long training.

    python -m benchmarks.soak --results benchmarks/RESULTS.md

DeepEmoCluster trains on the demo corpus for 500 epochs in a separate process, which is measured after every epoch.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

import utils
from benchmarks.sections import add_results_argument, fill_section, finish, machine, megabytes, run, start
from deepmi import cli

WARM_UP = 50  # epochs after which memory should have settled
SLOPE = 1.0  # MB per 100 epochs by which memory may grow


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this benchmark."""
    parser = cli.new_parser(__doc__)
    parser.add_argument("--epochs", type=cli.positive_int, default=500, metavar="N", help="epochs to train")
    parser.add_argument("--demo", type=Path, metavar="DIR", help="an existing demo corpus; by default a new one")
    add_results_argument(parser)
    return parser


def watch(process: subprocess.Popen, log: Path, resume: Path) -> np.ndarray:
    """Measure a training until it ends.

    Returns:
        One row per epoch: epochs done, MB of the process's own memory, open files, MB of the resume file.
    Raises:
        UserError: the training fails.
    """
    rows, files = [], Path(f"/proc/{process.pid}/fd")
    with tqdm(unit="epoch", disable=None) as bar:
        while process.poll() is None:
            time.sleep(0.05)
            epochs = log.read_text().count("\n") - 1 if log.exists() else 0
            if epochs > bar.n:
                with contextlib.suppress(OSError):  # the process has just ended
                    saved = resume.stat().st_size / 2**20 if resume.exists() else 0.0
                    rows.append((epochs, megabytes("RssAnon", process.pid), len(list(files.iterdir())), saved))
                bar.update(epochs - bar.n)
    finish(process)
    return np.array([row for row in rows if row[1]])


def table(seen: np.ndarray, epochs: int, log: Path) -> tuple[str, bool]:
    """The Markdown section, and whether everything is within its bounds."""
    done, memory, files, resume = seen[seen[:, 0] > min(WARM_UP, epochs // 2)].T
    growth = 100 * np.polyfit(done, memory, 1)[0]
    medians = ", ".join(f"{np.median(part):.0f}" for part in np.array_split(memory, 5))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    rows = [
        ["what", "found", "bound"],
        ["memory, growth per 100 epochs", f"{growth:.2f} MB", f"{SLOPE:g} MB"],
        ["memory, median of each fifth", f"{medians} MB", ""],
        ["memory, lowest .. highest", f"{memory.min():.0f} .. {memory.max():.0f} MB", ""],
        ["open files, lowest .. highest", f"{files.min():.0f} .. {files.max():.0f}", "no trend"],
        ["log", f"{len(lines)} lines, {log.stat().st_size / 1024:.0f} KB", f"{epochs + 2} lines"],
        ["resume file, largest", f"{resume.max():.0f} MB", ""],
    ]
    steady = growth < SLOPE and abs(np.polyfit(done, files, 1)[0]) * epochs < 1
    complete = len(lines) == epochs + 2 and lines[-1].get("finished") is True
    return "\n".join([*cli.markdown_table(rows), "", f"{epochs} epochs on {machine()}."]), bool(steady and complete)


def main(args: argparse.Namespace) -> int:
    """Train, measure, print; 1 if a bound is exceeded."""
    fill_section(args.results, "soak")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        demo = args.demo.resolve() if args.demo else work / "demo"
        if not args.demo:
            run("-m", "tools.make_demo_corpus", demo)
        run("norm_para.py", "--corpus", demo, folder=work)
        checkpoint = utils.ssl_checkpoint(work / "Models", args.epochs, 64, 10, "Act")
        log = checkpoint.with_name(checkpoint.name.replace(".pth.tar", ".log.jsonl"))
        command = ["training_DeepEmoCluster.py", "-ep", args.epochs, "-emo", "Act", "-batch", 64, "-nc", 10]
        command += ["--corpus", demo, "--unlabeled", demo / "Unlabeled", "--device", "cpu"]
        seen = watch(start(*command, folder=work), log, checkpoint.with_name(f"{checkpoint.name}.resume"))
        text, good = table(seen, args.epochs, log)
    print(text)
    fill_section(args.results, "soak", text)
    return int(not good)


if __name__ == "__main__":
    cli.run(main, cli.parse(get_args_parser()))
