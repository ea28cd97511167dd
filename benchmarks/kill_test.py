"""Is anything lost where a run is killed? Each stage and eight tools, killed at random moments and started again.

    python -m benchmarks.kill_test --results benchmarks/RESULTS.md

runs a chain on a part of the demo corpus twice: once undisturbed, and once with each step killed (SIGKILL, its workers
too) at random moments of its running time and started again, until that many kills are counted. After every kill each
output is read; in the end all are compared with those of the undisturbed chain, byte by byte, logs but for their times.
The demo corpus that is made under kills is a small one, and the v1.8 files are fetched from a repository of others.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import wave
from dataclasses import dataclass
from pathlib import Path

from benchmarks.real_speech import ROOT, demo_corpus, machine, replace_section, split_section
from deepmi import cli, matfile, tensors
from deepmi.process import UserError
from tools.recordings import RECORD_FILE

CLIPS = {"Train": 60, "Development": 24, "Test1": 24, "Unlabeled": 40}
TRAINING = ("-batch", "16", "-emo", "Val")
CORPUS = ("--corpus", "corpus", "--workers", "2")
SSL = ("-ep", "4", "-nc", "4", *TRAINING, *CORPUS)
CURRICULUM = ("-ep", "30", *TRAINING, *CORPUS)
REGRESSOR = "Models/SimpleEmoRegressor_DeepMI@_Val.pt.tar"
STEPS = {
    "make_demo_corpus": (
        "-c",
        "from pathlib import Path; from tools.make_demo_corpus import make_corpus; "
        "make_corpus(Path('made'), workers=2, clips={'Train': 40, 'Development': 8, 'Test1': 8}, unlabeled_clips=8)",
    ),
    "fetch_v18": (
        "-c",
        "import json; from pathlib import Path; from tools.fetch_v18 import fetch; "
        "fetch(**json.loads(Path('published.json').read_text()), target=Path('fetched'))",
    ),
    "extract_features": ("-m", "tools.extract_features", "corpus/Audios", "features", "--workers", "2"),
    "prepare_corpus": (
        *("-m", "tools.prepare_corpus", "csv", "ratings.csv", "--audio", "corpus/Audios", "--out", "prepared"),
        *("--file-column", "FileName", "--valence-column", "EmoVal", "--split-by-speaker", ".6", ".2", ".2"),
        *("--speaker-column", "SpkrID", "--label-scale", "1", "7", "--norm-dir", "prepared_norm", "--workers", "2"),
    ),
    "norm_para": ("norm_para.py", *CORPUS),
    "training_DeepEmoCluster": ("training_DeepEmoCluster.py", *SSL, "--unlabeled", "unlabeled"),
    "extract_DeepMI": ("extract_DeepMI.py", *SSL),
    "training_Curriculum": ("training_Curriculum.py", "-nc", "4", *CURRICULUM),
    "testing_Curriculum": ("testing_Curriculum.py", *CURRICULUM),
    "predict": ("-m", "tools.predict", "corpus/Audios", "--model", REGRESSOR, "--out", "predictions.csv"),
    "compare_curricula": (
        *("-m", "tools.compare_curricula", "-nc", "4", *CURRICULUM, "--seeds", "2", "--orders", "deepmi", "random"),
        *("ridge", "--ssl-epochs", "2", "--unlabeled-size", "0"),
    ),
    "compare_metrics": (
        *("-m", "tools.compare_metrics", "--seeds", "2", "-ep", "2", "-nc", "4", *TRAINING, *CORPUS),
        *("--unlabeled-size", "0"),
    ),
    "report_DeepMI": ("-m", "tools.report_DeepMI", *SSL),
}


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this benchmark."""
    parser = cli.new_parser(__doc__)
    parser.add_argument("--kills", type=cli.positive_int, default=50, metavar="N", help="kills of each step")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), help="which of them to kill")
    parser.add_argument("--seed", type=cli.non_negative_int, default=1, metavar="N", help="seed of the moments")
    parser.add_argument("--demo", type=Path, metavar="DIR", help="a demo corpus, in place of a new one")
    parser.add_argument("--work", type=Path, metavar="DIR", help="folder for what is made, in place of a temporary one")
    parser.add_argument("--results", type=Path, metavar="FILE", help="Markdown file whose section is replaced")
    return parser


if __name__ == "__main__":
    ARGS = cli.parse(get_args_parser())  # before the heavy imports, so that --help answers at once

import matplotlib.image
import numpy as np
import torch
from tqdm import tqdm

import utils
from deepmi import features
from tools import fetch_v18


@dataclass
class Count:
    """What was seen of a step: its undisturbed seconds, kills, outputs read after them, and faults."""

    seconds: float
    kills: int = 0
    read: int = 0
    faults: int = 0


# ---------------------------------------------------------------------------------------------------------------------
# A corpus and the undisturbed chain


def make_corpus(demo: Path, folder: Path) -> None:
    """The first clips of each split of the demo corpus, as corpus, unlabeled and ratings.csv below `folder`."""
    with (demo / "Labels/labels_consensus.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    chosen = [row for split, count in CLIPS.items() for row in [r for r in rows if r["Split_Set"] == split][:count]]
    (folder / "corpus/Labels").mkdir(parents=True)
    for target in (folder / "corpus/Labels/labels_consensus.csv", folder / "ratings.csv"):
        with target.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(chosen)
    for kind in (Path("Audios"), utils.FEATURE_FOLDER):
        stems = {Path(row["FileName"]).stem for row in chosen}
        (folder / "corpus" / kind).mkdir(parents=True)
        for file in sorted((demo / kind).iterdir()):
            if file.stem in stems:
                shutil.copy2(file, folder / "corpus" / kind)
    (folder / "unlabeled").mkdir()
    pool = sorted((demo / "Unlabeled" / utils.FEATURE_FOLDER).glob("*.mat"))[: CLIPS["Unlabeled"]]
    for file in pool:
        shutil.copy2(file, folder / "unlabeled")


def publish(folder: Path) -> None:
    """A git repository with files of the published names, and published.json: the arguments that fetch them."""

    rng = np.random.default_rng(0)
    repository, blobs = folder / "published", {}
    for name in fetch_v18.BLOBS:
        file = repository / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".mat":
            matfile.write_mat(file, utils.NORM_KEY, rng.random((1, 6373)))
        elif file.suffix == ".json":
            file.write_text(json.dumps({f"{number}.wav": value for number, value in enumerate(rng.random(40_000))}))
        else:
            tensors.save_tensors({"weight": torch.from_numpy(rng.random((2000, 256)))}, file)
        blobs[name] = fetch_v18.blob_id(file.read_bytes())
    git = ("git", "-C", str(repository), "-c", "user.name=kill_test", "-c", "user.email=kill_test")
    as_public_ones_do = ("config", "uploadpack.allowFilter", "true")
    for command in (("init", "-q"), as_public_ones_do, ("add", "-A"), ("commit", "-q", "--no-gpg-sign", "-m", "files")):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    published = {"url": repository.as_uri(), "commit": commit, "blobs": blobs}
    (folder / "published.json").write_text(json.dumps(published))


def start(step: str, folder: Path) -> subprocess.Popen:
    """Start a step in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, *(str(ROOT / part) if part.endswith(".py") else part for part in STEPS[step])],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def files_of(folder: Path) -> set[Path]:
    """Every file below a folder, by its relative path."""
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def take_away(folder: Path, files: set[Path]) -> None:
    """Remove files, given relative to a folder, and the folders below it that are empty then."""
    for file in files:
        (folder / file).unlink(missing_ok=True)
        for parent in file.parents[:-1]:
            with contextlib.suppress(OSError):
                (folder / parent).rmdir()


def run_whole(step: str, folder: Path) -> float:
    """Run a step undisturbed; seconds.

    Raises:
        UserError: it fails.
    """
    begin = time.monotonic()
    process = start(step, folder)
    _, errors = process.communicate()
    if process.returncode:
        raise UserError(f"{step} ended with status {process.returncode}: {errors.strip()[-300:]}")
    return time.monotonic() - begin


# ---------------------------------------------------------------------------------------------------------------------
# Kills


def fault_of(path: Path) -> str:
    """What is wrong with an output, empty where it can be read from its first byte to its last."""

    try:
        ending = path.suffix
        if ending == ".json":
            json.loads(path.read_text())
        elif ending == ".jsonl":
            [json.loads(line) for line in path.read_text().splitlines()]
        elif ending == ".csv":
            with path.open(newline="") as stream:
                widths = {len(row) for row in csv.reader(stream, strict=True)}
            if len(widths) != 1 or not path.read_text().endswith("\n"):
                raise ValueError("rows of different lengths")
        elif ending == ".npy":
            if not np.load(path, mmap_mode="r", allow_pickle=False)[-1].any():
                raise ValueError("its last row is empty")
        elif ending == ".mat":
            key = features.FEATURE_KEY if "_norm_" not in path.name else utils.NORM_KEY
            matfile.read_mat(path, key)
        elif ending in (".tar", ".resume"):
            tensors.load_tensors(path)
        elif ending == ".wav":
            with wave.open(str(path)) as stream:
                expected = stream.getnframes() * stream.getsampwidth() * stream.getnchannels()
                if len(stream.readframes(stream.getnframes())) != expected:
                    raise ValueError("its end is missing")
        elif ending == ".png":
            matplotlib.image.imread(path)
        elif ending == ".html" and not path.read_text().rstrip().endswith("</html>"):
            raise ValueError("its end is missing")
    except Exception as error:
        return f"{path}: {type(error).__name__}: {error}"
    return ""


def kill_often(step: str, folder: Path, outputs: set[Path], count: Count, kills: int, rng) -> None:
    """Start a step and kill it, until that many kills; then let it end.

    Args:
        step: its name.
        folder: where it works.
        outputs: the files it writes, relative to the folder.
        count: of the step; what is seen is added.
        kills: how many.
        rng: numpy generator of the moments.
    Raises:
        UserError: the step fails by itself.
    """
    with tqdm(total=kills, desc=step, unit="kill", disable=None) as bar:
        while True:
            process = start(step, folder)
            try:
                moment = rng.uniform(0, 1.1 * count.seconds) if count.kills < kills else None
                _, errors = process.communicate(timeout=moment)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                count.kills += 1
                bar.update()
            else:
                if process.returncode:
                    raise UserError(f"{step} ended with status {process.returncode}: {errors.strip()[-300:]}")
                if count.kills >= kills:
                    return
                take_away(folder, outputs)  # it has ended before its kill: from the beginning
            for path in sorted(path for path in outputs if (folder / path).is_file()):
                count.read += 1
                if fault := fault_of(folder / path):
                    count.faults += 1
                    tqdm.write(f"{step}: {fault}")


def content(path: Path) -> object:
    """A file's bytes; of logs, and of notes on recordings, what does not depend on the time."""
    if path.name == RECORD_FILE:
        return {name: state.split()[-1] for name, state in json.loads(path.read_text()).items()}
    if path.suffix != ".jsonl":
        return path.read_bytes()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("seconds", "process")} for line in lines]


def differences(whole: Path, killed: Path) -> list[str]:
    """Files that only one of two folders has, or whose content differs."""
    here, there = files_of(whole), files_of(killed)
    found = [f"{path}: only in {'the undisturbed' if path in here else 'the killed'} chain" for path in here ^ there]
    same = sorted(here & there)
    return sorted(found) + [f"{path}: differs" for path in same if content(whole / path) != content(killed / path)]


def table(counts: dict[str, Count], unlike: list[str]) -> str:
    """The Markdown section."""
    rows = [["step", "undisturbed, s", "kills", "outputs read after them", "half written"]]
    for step, count in counts.items():
        rows.append([step, f"{count.seconds:.1f}", str(count.kills), f"{count.read:,}", str(count.faults)])
    ending = "every file of both chains is the same, byte by byte (logs but for times), and none is left over"
    if unlike:
        ending = f"{len(unlike)} files differ: {', '.join(unlike[:5])}"
    return "\n".join([*cli.markdown_table(rows), "", f"In the end {ending}; on {machine()}."])


def main(args: argparse.Namespace) -> int:
    """Run both chains and print the table; 1 where anything was lost."""
    if args.results:
        split_section(args.results, "kill_test")
    rng = np.random.default_rng(args.seed)
    counts: dict[str, Count] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.work or Path(temporary)).resolve()
        demo = demo_corpus(args.demo, work)
        # One after the other on the same input files: paths and file times are in the names of caches and trials.
        chain, whole = work / "chain", work / "whole"
        make_corpus(demo, chain)
        publish(chain)
        given = files_of(chain)
        outputs: dict[str, set[Path]] = {}
        for step in STEPS:
            before = files_of(chain)
            counts[step] = Count(run_whole(step, chain))
            outputs[step] = files_of(chain) - before
        shutil.copytree(chain, whole)
        take_away(chain, files_of(chain) - given)
        for step in STEPS:
            if step in args.steps:
                kill_often(step, chain, outputs[step], counts[step], args.kills, rng)
            else:
                run_whole(step, chain)
        unlike = differences(whole, chain)
        text = table({step: counts[step] for step in args.steps}, unlike)
    print(text)
    if args.results:
        replace_section(args.results, "kill_test", text)
    return int(bool(unlike) or any(count.faults for count in counts.values()))


if __name__ == "__main__":
    cli.run(main, ARGS)
