"""The whole chain on real speech, over attributes and seeds, beside a ridge regression: one table.

    python -m benchmarks.real_speech LABELED UNLABELED --results benchmarks/RESULTS.md

LABELED is a corpus in MSP-Podcast's layout with its Audios, UNLABELED a folder of recordings. Features are extracted,
then the five stages run as a user runs them, once an attribute and seed, and Test1 CCCs are gathered.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from deepmi import cli, storage
from deepmi.process import UserError

ROOT = Path(__file__).resolve().parents[1]
# Test1 CCC of the original program on EmoDB with nEMO as unlabeled set (its published code, made to start on a CPU):
# 20 SSL epochs, 70 curriculum epochs, 10 clusters, batch 64, seeds 1, 2, 3.
ORIGINAL = {"Act": (0.825, 0.884, 0.864), "Val": (0.297, 0.244, 0.280)}


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this benchmark."""
    parser = cli.new_parser(__doc__)
    parser.add_argument("labeled", type=Path, metavar="LABELED", help="corpus with Labels and Audios")
    parser.add_argument("unlabeled", type=Path, metavar="UNLABELED", help="folder of unlabeled recordings")
    parser.add_argument("--attributes", nargs="+", choices=cli.ATTRIBUTES, default=["Act", "Val"], help="attributes")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="N", help="seeds")
    parser.add_argument("--ssl-epochs", type=cli.positive_int, default=20, metavar="N", help="DeepEmoCluster epochs")
    parser.add_argument("--epochs", type=cli.positive_int, default=70, metavar="N", help="curriculum epochs")
    parser.add_argument("--clusters", type=cli.positive_int, default=10, metavar="K", help="clusters")
    parser.add_argument("--batch", type=cli.positive_int, default=64, metavar="N", help="utterances a step")
    parser.add_argument(
        "--work", type=Path, default=Path("real_speech"), metavar="DIR", help="folder for all that is made"
    )
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="Markdown file whose section real_speech is replaced"
    )
    return parser


if __name__ == "__main__":
    ARGS = cli.parse(get_args_parser())  # before the heavy imports, so that --help answers at once

import torch
from tqdm import tqdm

import utils
from deepmi.ccc import concordance_cc
from tools.trials import ridge_predictions


def run(*command: object) -> None:
    """Run a script of the program and pass its errors on."""
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise UserError(f"{' '.join(map(str, command))} ended with status {done.returncode}.")


def prepare(args: argparse.Namespace) -> tuple[Path, Path]:
    """Features of both sets in a copy of the corpus' layout."""
    corpus, pool = args.work / "corpus", args.work / "unlabeled"
    shutil.copytree(args.labeled / "Labels", corpus / "Labels", dirs_exist_ok=True)
    run("-m", "tools.extract_features", args.labeled / "Audios", corpus / utils.FEATURE_FOLDER)
    run("-m", "tools.extract_features", args.unlabeled, pool / utils.FEATURE_FOLDER)
    run("norm_para.py", "--corpus", corpus, "--norm-dir", args.work / "NormTerm")
    return corpus, pool


def chain(args: argparse.Namespace, corpus: Path, pool: Path, attribute: str, seed: int) -> dict:
    """Stages 1 to 4 for one attribute and seed; the content of the results file."""
    folder = args.work / f"seed{seed}"
    data = ["--corpus", corpus, "--norm-dir", args.work / "NormTerm", "--cache-dir", args.work / "feature_cache"]
    common = ["-batch", args.batch, "-emo", attribute, *data, "--seed", seed, "--model-dir", folder, "--device", "cpu"]
    clusters = ["-nc", args.clusters]
    metric = ["--metric-dir", folder]
    run("training_DeepEmoCluster.py", "-ep", args.ssl_epochs, *clusters, *common, "--unlabeled", pool)
    run("extract_DeepMI.py", "-ep", args.ssl_epochs, *clusters, *common, *metric)
    run("training_Curriculum.py", "-ep", args.epochs, *clusters, *common, *metric)
    run("testing_Curriculum.py", "-ep", args.epochs, *common, "--results-dir", folder)
    return json.loads((folder / f"SimpleEmoRegressor_DeepMI@_{attribute}_Test1.json").read_text())


def ridge(args: argparse.Namespace, corpus: Path, attribute: str) -> float:
    """Test1 CCC of scikit-learn's RidgeCV on the same normalised features."""
    opened = utils.LabeledCorpus(
        utils.find_corpus(corpus), attribute, args.work / "NormTerm", args.work / "feature_cache", cli.cpu_count()
    )
    train, test = opened.load("Train"), opened.load("Test1")
    return concordance_cc(test.labels, *ridge_predictions(train.rows, train.labels, test.rows))


def table(args: argparse.Namespace, results: dict[str, list[dict]], ridges: dict[str, float], seconds: float) -> str:
    """The Markdown section: command, machine, table."""
    seeds = " | ".join(f"seed {seed}" for seed in args.seeds)
    lines = [f"| attribute | program | {seeds} | mean |", "| --- | --- " + "| --- " * (len(args.seeds) + 1) + "|"]

    def row(attribute: str, program: str, cccs: list[float]) -> str:
        cells = " | ".join(f"{ccc:.3f}" for ccc in cccs)
        return f"| {attribute} | {program} | {cells} | **{sum(cccs) / len(cccs):.3f}** |"

    for attribute, runs in results.items():
        lines.append(row(attribute, "this program", [result["ccc"] for result in runs]))
        if attribute in ORIGINAL and args.seeds == [1, 2, 3]:
            lines.append(row(attribute, "the original", list(ORIGINAL[attribute])))
        lines.append(f"| {attribute} | RidgeCV, no network {'| ' * len(args.seeds)}| **{ridges[attribute]:.3f}** |")
    lines.append("")
    for attribute, runs in results.items():
        intervals = ", ".join("{:.3f}..{:.3f}".format(*result["interval_95"]) for result in runs)
        lines.append(f"- {attribute}: n = {runs[0]['n']}, 95 % bootstrap intervals of this program's runs {intervals}.")
    lines.append(
        f"- {args.ssl_epochs} SSL epochs, {args.epochs} curriculum epochs, {args.clusters} clusters, batch {args.batch}"
        f"; {seconds:.0f} s for all runs, features included where they were not there, on {machine()}."
    )
    return "\n".join(lines)


def demo_corpus(given: Path | None, work: Path) -> Path:
    """The demo corpus at `given`, or where that is None a new one below `work`."""
    if given:
        return given.resolve()
    run("-m", "tools.make_demo_corpus", work / "demo")
    return work / "demo"


def machine() -> str:
    """Processor, cores and library in words."""
    found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text()) if os.name == "posix" else None
    name = found[1] if found else platform.processor()
    return f"{name}, {cli.cpu_count()} cores, torch {torch.__version__}"


def split_section(path: Path, name: str) -> tuple[str, str]:
    """What stands before and after the content of a section, its markers included.

    Raises:
        UserError: no such section.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    content = storage.read_text(path)
    if begin not in content or end not in content:
        raise UserError(f"{path}: no section {name}; expected the markers {begin} and {end}.")
    return content.split(begin)[0] + begin, end + content.split(end)[1]


def replace_section(path: Path, name: str, text: str) -> None:
    """Put a text into a section of a Markdown file; raises as `split_section`."""
    before, after = split_section(path, name)
    storage.write_text(path, f"{before}\n{text}\n{after}")


def main(args: argparse.Namespace) -> None:
    """Run everything and print the table."""
    for name in ("labeled", "unlabeled", "work"):
        setattr(args, name, getattr(args, name).resolve())  # the stages run in the program's own folder
    if args.results:
        split_section(args.results, "real_speech")  # a wrong file must not come to light after all the runs
    begin = time.monotonic()
    corpus, pool = prepare(args)
    results: dict[str, list[dict]] = {attribute: [] for attribute in args.attributes}
    for attribute, seed in tqdm([(a, s) for a in args.attributes for s in args.seeds], unit="run", disable=None):
        results[attribute].append(chain(args, corpus, pool, attribute, seed))
        tqdm.write(f"{attribute}, seed {seed}: Test1 CCC {results[attribute][-1]['ccc']:.3f}")
    ridges = {attribute: ridge(args, corpus, attribute) for attribute in args.attributes}
    text = table(args, results, ridges, time.monotonic() - begin)
    print(text)
    if args.results:
        replace_section(args.results, "real_speech", text)


if __name__ == "__main__":
    cli.run(main, ARGS)
