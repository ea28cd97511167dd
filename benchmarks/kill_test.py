"""Check that nothing is lost when a run is killed: every stage and eight tools, killed at random and started again.

    python -m benchmarks.kill_test --results benchmarks/RESULTS.md

The steps run twice on a small demo corpus: first undisturbed, then each step is killed (SIGKILL, including its workers)
at random times and started again, a given number of times. After each kill every output is read. At the end all files
are compared with those of the undisturbed run, byte by byte; times in logs are ignored.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
import wave
from dataclasses import dataclass
from pathlib import Path

import matplotlib.image
import numpy as np
from tqdm import tqdm

import utils
from benchmarks.sections import add_results_argument, fill_section, finish, machine, start
from deepmi import cli, features, matfile, tensors
from deepmi.process import first_few
from tools import fetch_v18
from tools.make_demo_corpus import make_corpus
from tools.recordings import RECORD_FILE, plural

CORPUS = "--corpus corpus --workers 2"
TRAINING = f"-batch 16 -emo Val {CORPUS}"
REGRESSOR = "Models/SimpleEmoRegressor_DeepMI@_Val.pt.tar"
SSL, CURRICULUM = f"-ep 4 -nc 4 {TRAINING}", f"-ep 30 {TRAINING}"
DEMO = """from pathlib import Path; from tools.make_demo_corpus import make_corpus
make_corpus(Path('made'), workers=2, clips={'Train': 40, 'Development': 8, 'Test1': 8, 'Unlabeled': 8})"""
FETCH = """import json; from pathlib import Path; from tools.fetch_v18 import fetch
fetch(**json.loads(Path('published.json').read_text()), target=Path('fetched'))"""
STEPS = {
    "make_demo_corpus": f"-c {shlex.quote(DEMO)}",
    "fetch_v18": f"-c {shlex.quote(FETCH)}",
    "extract_features": "-m tools.extract_features corpus/Audios features --workers 2",
    "prepare_corpus": "-m tools.prepare_corpus csv ratings.csv --audio corpus/Audios --out prepared --workers 2 "
    "--file-column FileName --valence-column EmoVal --speaker-column SpkrID --split-by-speaker .6 .2 .2 "
    "--label-scale 1 7 --norm-dir prepared_norm",
    "norm_para": f"norm_para.py {CORPUS}",
    "training_DeepEmoCluster": f"training_DeepEmoCluster.py {SSL} --unlabeled corpus/Unlabeled",
    "extract_DeepMI": f"extract_DeepMI.py {SSL}",
    "training_Curriculum": f"training_Curriculum.py -nc 4 {CURRICULUM}",
    "testing_Curriculum": f"testing_Curriculum.py {CURRICULUM}",
    "predict": f"-m tools.predict corpus/Audios --model {REGRESSOR} --out predictions.csv",
    "compare_curricula": f"-m tools.compare_curricula -nc 4 {CURRICULUM} --seeds 2 --orders deepmi random ridge "
    "--ssl-epochs 2 --unlabeled-size 0",
    "compare_metrics": f"-m tools.compare_metrics --seeds 2 -ep 2 -nc 4 {TRAINING} --unlabeled-size 0",
    "report_DeepMI": f"-m tools.report_DeepMI {SSL}",
}


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this benchmark."""
    parser = cli.new_parser(__doc__)
    parser.add_argument("--kills", type=cli.positive_int, default=50, metavar="N", help="kills per step")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), help="steps to kill")
    parser.add_argument("--seed", type=cli.non_negative_int, default=1, metavar="N", help="seed of the times of kills")
    parser.add_argument("--work", type=Path, metavar="DIR", help="folder for all outputs; by default a temporary one")
    add_results_argument(parser)
    return parser


@dataclass
class Count:
    """A step: undisturbed seconds, its output files, kills, outputs read after the kills, and incomplete outputs."""

    seconds: float
    outputs: set[Path]
    kills: int = 0
    read: int = 0
    faults: int = 0


def publish(folder: Path) -> None:
    """Make a git repository with .mat files of the published names, and published.json: the arguments of `fetch`."""
    repository, blobs = folder / "published", {}
    for number, name in enumerate(name for name in fetch_v18.BLOBS if name.endswith(".mat")):
        file = repository / name
        file.parent.mkdir(parents=True, exist_ok=True)
        matfile.write_mat(file, utils.NORM_KEY, np.full((1, 6373), float(number)))
        blobs[name] = fetch_v18.blob_id(file.read_bytes())
    git = ("git", "-C", str(repository), "-c", "user.name=kill_test", "-c", "user.email=kill_test")
    allow_partial_clones = ("config", "uploadpack.allowFilter", "true")
    commit = ("commit", "-q", "--no-gpg-sign", "-m", "files")
    for command in (("init", "-q"), allow_partial_clones, ("add", "-A"), commit):
        subprocess.run([*git, *command], check=True)
    head = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    (folder / "published.json").write_text(json.dumps({"url": repository.as_uri(), "commit": head, "blobs": blobs}))


def files_of(folder: Path) -> set[Path]:
    """Every file in a folder and its subfolders, as a relative path."""
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def remove(folder: Path, files: set[Path]) -> None:
    """Remove files, given relative to a folder, and subfolders that become empty."""
    for file in files:
        (folder / file).unlink(missing_ok=True)
        for parent in file.parents[:-1]:
            with contextlib.suppress(OSError):
                (folder / parent).rmdir()


def run_step(step: str, folder: Path, kill_after: float | None = None) -> bool:
    """Run a step in a separate process group, and kill the group after this number of seconds.

    Returns:
        Whether the step ended before it was killed.
    Raises:
        UserError: the step failed.
    """
    process = start(*shlex.split(STEPS[step]), folder=folder, start_new_session=True)
    try:
        finish(process, timeout=kill_after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return False
    return True


def read_whole(path: Path) -> None:
    """Read an output from its first to its last byte; raises an exception if it is incomplete."""
    complete = True
    match path.suffix:
        case ".json":
            json.loads(path.read_text())
        case ".jsonl":
            [json.loads(line) for line in path.read_text().splitlines()]
        case ".csv":
            widths = {len(row) for row in csv.reader(path.read_text().splitlines(keepends=True), strict=True)}
            complete = len(widths) == 1 and path.read_text().endswith("\n")
        case ".npy":
            complete = np.load(path, mmap_mode="r", allow_pickle=False)[-1].any()  # the last row is written last
        case ".mat":
            matfile.read_mat(path, utils.NORM_KEY if "_norm_" in path.name else features.FEATURE_KEY)
        case ".tar" | ".resume":
            tensors.load_tensors(path)
        case ".wav":
            with wave.open(str(path)) as stream:
                expected = stream.getnframes() * stream.getsampwidth() * stream.getnchannels()
                complete = len(stream.readframes(stream.getnframes())) == expected
        case ".png":
            matplotlib.image.imread(path)
        case ".html":
            complete = path.read_text().rstrip().endswith("</html>")
    if not complete:
        raise ValueError("the end is missing")


def kill_often(step: str, folder: Path, count: Count, kills: int, rng: np.random.Generator) -> None:
    """Start a step and kill it this number of times, then let it end; the numbers of `count` are updated."""
    with tqdm(total=kills, desc=step, unit="kill", disable=None) as bar:
        while count.kills < kills:
            if run_step(step, folder, kill_after=rng.uniform(0, 1.1 * count.seconds)):
                remove(folder, count.outputs)  # it ended before it was killed: start from the beginning
                continue
            count.kills += 1
            bar.update()
            for path in sorted(folder / path for path in count.outputs if (folder / path).is_file()):
                count.read += 1
                try:
                    read_whole(path)
                except Exception as error:
                    count.faults += 1
                    tqdm.write(f"{step}: {path}: {type(error).__name__}: {error}")
    run_step(step, folder)


def content(path: Path) -> object:
    """A digest of a file; for logs and the record of recordings, the parts that do not depend on the time."""
    if path.name == RECORD_FILE:
        return {name: state.split()[-1] for name, state in json.loads(path.read_text()).items()}
    if path.suffix != ".jsonl":
        return hashlib.sha256(path.read_bytes()).digest()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    times = ("seconds", "process", "git_commit")  # a commit may be made during the test
    return [{key: value for key, value in line.items() if key not in times} for line in lines]


def table(counts: dict[str, Count], different: list[Path]) -> str:
    """The Markdown section."""
    rows = [["step", "undisturbed, s", "kills", "outputs read after them", "incomplete"]]
    for step, count in counts.items():
        rows.append([step, f"{count.seconds:.1f}", str(count.kills), f"{count.read:,}", str(count.faults)])
    ending = "all files of both runs are the same, byte by byte (except times in logs), and none is left over"
    if different:
        ending = f"{plural(len(different), 'file')} missing, left over or different ({first_few(different)})"
    return "\n".join([*cli.markdown_table(rows), "", f"At the end {ending}; on {machine()}."])


def main(args: argparse.Namespace) -> int:
    """Run all steps twice and print the table; 1 if anything was lost."""
    fill_section(args.results, "kill_test")
    rng = np.random.default_rng(args.seed)
    counts: dict[str, Count] = {}
    with tempfile.TemporaryDirectory() as temporary:
        # Both runs use the same input files in the same folder: caches and trials are named after paths and file times.
        folder = (args.work or Path(temporary)).resolve() / "chain"
        make_corpus(folder / "corpus", clips={"Train": 60, "Development": 24, "Test1": 24, "Unlabeled": 40})
        shutil.copy(folder / "corpus/Labels/labels_consensus.csv", folder / "ratings.csv")
        publish(folder)
        given = files_of(folder)
        for step in STEPS:
            before, begin = files_of(folder), time.monotonic()
            run_step(step, folder)
            counts[step] = Count(time.monotonic() - begin, files_of(folder) - before)
        undisturbed = {file: content(folder / file) for file in files_of(folder)}
        remove(folder, undisturbed.keys() - given)
        for step in STEPS:
            kill_often(step, folder, counts[step], args.kills if step in args.steps else 0, rng)
        killed = {file: content(folder / file) for file in files_of(folder)}
        different = sorted(file for file in killed.keys() | undisturbed if killed.get(file) != undisturbed.get(file))
        text = table({step: counts[step] for step in args.steps}, different)
    print(text)
    fill_section(args.results, "kill_test", text)
    return int(bool(different) or any(count.faults for count in counts.values()))


if __name__ == "__main__":
    cli.run(main, cli.parse(get_args_parser()))
