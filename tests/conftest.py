"""A tiny corpus in MSP-Podcast's layout, and ways to run a stage on it as a user would."""

from __future__ import annotations

import contextlib
import csv
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import model
import utils
from deepmi import cli, features, matfile, plots, run_log

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
# A process in the background of a shell ignores Ctrl-C, and so would its child processes.
signal.signal(signal.SIGINT, signal.default_int_handler)
# In networks this small, threads mostly wait for each other, here and in the processes that tests start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

STAGES = ("norm_para", "training_DeepEmoCluster", "extract_DeepMI", "training_Curriculum", "testing_Curriculum")
WIDTH = 40
COUNTS = {"Train": 60, "Development": 24, "Test1": 24}
UNLABELED = 50


def write_corpus(root: Path, seed: int = 0) -> Path:
    """WIDTH features per utterance, of which some follow the labels; 3 speakers per split, one of them unknown."""
    rng = np.random.default_rng(seed)
    (root / "Labels").mkdir(parents=True)
    folder = root / utils.FEATURE_FOLDER
    folder.mkdir(parents=True)
    mixing = rng.normal(size=(3, WIDTH))
    rows = []
    for split, count in COUNTS.items():
        for number in range(count):
            labels = np.clip(rng.normal(4, 1.2, 3), 1, 7).round(4)
            name = f"MSP-PODCAST_{len(rows):04d}_{number:04d}.wav"
            values = labels @ mixing + rng.normal(size=WIDTH)
            values[7] = 5.0  # a constant feature
            matfile.write_mat(folder / f"{Path(name).stem}.mat", features.FEATURE_KEY, values[None])
            speaker = "Unknown" if number % 3 == 0 else f"{split}_{number % 3}"
            rows.append([name, "N", *labels, speaker, "Female", split])
    write_labels(root / "Labels" / "labels_concensus.csv", rows)
    pool = root.parent / f"{root.name}_unlabeled"
    pool.mkdir()
    for number in range(UNLABELED):
        values = rng.normal(4, 1.2, 3) @ mixing + rng.normal(size=WIDTH)
        matfile.write_mat(pool / f"unlabeled_{number:04d}.mat", features.FEATURE_KEY, values[None])
    return root


def write_labels(path: Path, rows: list[list], header: tuple = utils.CONSENSUS_COLUMNS) -> None:
    """A consensus CSV."""
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])


def read_rows(path: Path) -> list[list[str]]:
    """Header and rows of a CSV."""
    with path.open(newline="") as stream:
        return list(csv.reader(stream))


def log_of(checkpoint: Path) -> list[dict]:
    """The lines of the log beside a checkpoint."""
    stem = checkpoint.name.removesuffix(".tar").rsplit(".", 1)[0]
    return [json.loads(line) for line in checkpoint.with_name(f"{stem}.log.jsonl").read_text().splitlines()]


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder, except locks and packed features, and its bytes."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock" and "feature_cache" not in path.parts
    }


def interrupt(*_, **__):
    """Stands in for a function of the program in which Ctrl-C comes."""
    raise KeyboardInterrupt


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program catches it."""


def kill(*_, **__):
    """Stands in for a function of the program in which it is killed."""
    raise Killed


@contextlib.contextmanager
def stopped_before_the_end():
    """Within the block a training stops after its last epoch, which is saved, and does not finish."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_log.TrainingRun, "finish", interrupt)
        yield


def voice(seconds: float = 0.6, rate: int = 16000, pitch: float = 140.0) -> np.ndarray:
    """A buzz with a vowel-like spectrum."""
    time = np.arange(int(seconds * rate)) / rate
    return 0.3 * sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 12)) / 3


@pytest.fixture(autouse=True)
def signals_as_before():
    """Restore the signal handlers: `cli.run` leaves its own in place, since it ends a process."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in zip(numbers, before):
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def small_and_without_pictures(request, monkeypatch):
    """Narrow networks and empty pictures, except in tests marked `as_published`."""
    if request.node.get_closest_marker("as_published"):
        return
    monkeypatch.setattr(model, "TRUNK_WIDTHS", (32, 24, 16))
    monkeypatch.setattr(model, "REGRESSOR_WIDTH", 16)
    for name in ("draw_ssl_run", "draw_curriculum_run"):
        monkeypatch.setattr(plots, name, lambda history, path, title: path.write_bytes(b"a picture"))
    monkeypatch.setattr(plots, "draw_test", lambda labels, predictions, path, title: path.write_bytes(b"a picture"))


@pytest.fixture(scope="session")
def pristine_corpus(tmp_path_factory) -> Path:
    """A corpus that no test changes."""
    return write_corpus(tmp_path_factory.mktemp("pristine") / "corpus")


@dataclass
class Bench:
    """A working folder with a copy of the corpus."""

    folder: Path
    capsys: pytest.CaptureFixture

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus"

    @property
    def labels(self) -> Path:
        return self.corpus / "Labels" / "labels_concensus.csv"

    @property
    def feature_files(self) -> list[Path]:
        return sorted((self.corpus / utils.FEATURE_FOLDER).glob("*.mat"))

    @property
    def metric(self) -> Path:
        return self.folder / "curriculum_metric" / "DeepMI_5clusters@_Val.json"

    @property
    def ssl_checkpoint(self) -> Path:
        return self.folder / "Models" / "ResNetDeepEmoCluster_epoch2_batch16_5clusters_Val.pth.tar"

    @property
    def regressor(self) -> Path:
        return self.regressor_of("DeepMI")

    def regressor_of(self, order: str) -> Path:
        return self.folder / "Models" / f"SimpleEmoRegressor_{order}@_Val.pt.tar"

    def result(self, order: str = "DeepMI", split: str = "Test1") -> tuple[dict, pd.DataFrame]:
        """The result and the table of predictions that stage 4 has written."""
        file = self.folder / "results" / f"SimpleEmoRegressor_{order}@_Val_{split}.json"
        return json.loads(file.read_text()), pd.read_csv(file.with_suffix(".csv"))

    def run(self, stage: str, *argv: object) -> tuple[int, str, str]:
        """Run a stage or tool in this process: exit status, standard output, standard error."""
        module = importlib.import_module(stage)
        parser = module.get_args_parser()
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            cli.run(module.main, cli.parse(parser, [str(argument) for argument in argv]))
        out, err = self.capsys.readouterr()
        return leaving.value.code, out, err

    def stage(self, number: int, *more: object) -> tuple[int, str, str]:
        """Run stage 0..4 with small settings on this corpus."""
        small = ["-batch", 16, "-emo", "Val"]
        settings = (
            [],
            ["-ep", 2, *small, "-nc", 5, "--unlabeled", f"{self.corpus}_unlabeled"],
            ["-ep", 2, *small, "-nc", 5],
            ["-ep", 8, *small, "-nc", 5],
            ["-ep", 8, *small],
        )
        return self.run(STAGES[number], "--corpus", self.corpus, *settings[number], *more)

    def runs(self, stage: int | str, *argv: object) -> tuple[str, str]:
        """Run stage 0..4 or a tool, which must succeed: standard output, standard error."""
        code, out, err = (self.stage if isinstance(stage, int) else self.run)(stage, *argv)
        assert code == 0, err
        return out, err

    def edit_labels(self, change: Callable[[list[list[str]]], object]) -> None:
        """Let a function change the rows of the label file, of which the first is the header."""
        rows = read_rows(self.labels)
        change(rows)
        write_labels(self.labels, rows[1:], rows[0])

    def refuses(self, result: tuple[int, str, str], *words: str) -> None:
        """Exit status 2, one short message with all the words, no traceback."""
        code, _, err = result
        assert code == 2, err
        assert "Traceback" not in err
        assert len(err.strip().splitlines()) <= 2, err
        for word in words:
            assert word in err, f"{word!r} not in {err!r}"


@pytest.fixture
def bench(tmp_path, pristine_corpus, capsys, monkeypatch) -> Bench:
    """A copy of the corpus in an empty working folder; no environment variable names a different corpus."""
    monkeypatch.chdir(tmp_path)
    for variable in ("DEEPMI_CORPUS", "DEEPMI_UNLABELED"):
        monkeypatch.delenv(variable, raising=False)
    shutil.copytree(pristine_corpus, tmp_path / "corpus")
    shutil.copytree(f"{pristine_corpus}_unlabeled", tmp_path / "corpus_unlabeled")
    return Bench(tmp_path, capsys)


@pytest.fixture
def prepared(bench) -> Bench:
    """A bench on which stage 0 has run."""
    bench.runs(0)
    return bench


@pytest.fixture(scope="session")
def outputs(tmp_path_factory) -> Path:
    """Outputs of stages 0 to 3; the first test that needs them fills the folder."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture
def trained(bench, outputs) -> Bench:
    """A bench with the outputs of stages 0 to 3, which ran on a copy of the same corpus."""
    folders = ("NormTerm", "curriculum_metric", "Models")
    kept = outputs / f"width {model.TRUNK_WIDTHS[0]}"
    if not kept.exists():
        for number in range(4):
            bench.runs(number)
        for folder in folders:
            shutil.copytree(bench.folder / folder, kept / folder)
    else:
        shutil.copytree(kept, bench.folder, dirs_exist_ok=True)
    return bench


def run_python(*argv: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run Python in a new process."""
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    command = [sys.executable, *map(str, argv)]
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=300)


needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the real speech and the v1.8 files for development are not on this machine"
)
