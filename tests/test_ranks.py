"""Several processes under torchrun do what one does."""

import argparse
import io
import json
import os
import signal
import socket
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from deepmi import cli, ranks, run_log, runtime
from deepmi.process import UserError

SMALL = ("-batch", "16", "-emo", "Val", "-nc", "5")
STAGES = {
    "training_DeepEmoCluster": ("-ep", "3", *SMALL, "--unlabeled", "corpus_unlabeled"),
    "extract_DeepMI": ("-ep", "3", *SMALL),
    "training_Curriculum": ("-ep", "8", *SMALL),
}


def run_on(ranks: int, script: str, *argv: object, folder) -> subprocess.CompletedProcess:
    """A script as a user runs it, alone or under torchrun; one thread a process, so that both compute alike."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *torchrun, str(ROOT / script), *map(str, argv), "--corpus", "corpus", "--device", "cpu"]
    variables = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300)


def train_on(count: int, stage: str, folder, *more: object) -> subprocess.CompletedProcess:
    """A training stage without dropout; its outputs go to a folder of their own."""
    result = run_on(
        count, "tests/narrow_stage.py", stage, *STAGES[stage], "--model-dir", f"M{count}", *more, folder=folder
    )
    assert result.returncode == 0, result.stderr
    return result


def losses(log) -> list[float]:
    """Every loss in a run's log."""
    found = []
    for line in log.read_text().splitlines()[1:]:
        record = json.loads(line)
        parts = [record, record.get("labeled", {}), record.get("unlabeled", {})]
        found += [part[name] for part in parts for name in sorted(part) if "loss" in name]
    return found


@pytest.fixture
def prepared(bench):
    assert bench.stage(0)[0] == 0
    return bench.folder


def test_two_ranks_train_deepemocluster_as_one_process_does(prepared):
    curves = []
    for count in (1, 2):
        train_on(count, "training_DeepEmoCluster", prepared)
        (log,) = prepared.glob(f"M{count}/*.log.jsonl")
        assert json.loads(log.read_text().splitlines()[0])["ranks"] == count
        curves.append(losses(log))
    assert len(curves[0]) == 3 * 5 + 1
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)

    values = []
    for count in (1, 2):
        metrics = f"C{count}"
        argv = ("extract_DeepMI", *STAGES["extract_DeepMI"], "--model-dir", "M1", "--metric-dir", metrics)
        result = run_on(count, "tests/narrow_stage.py", *argv, folder=prepared)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("I(X;Y)") == 1
        values.append((prepared / metrics / "DeepMI_5clusters@_Val.json").read_bytes())
    assert values[0] == values[1]


def test_two_ranks_train_the_curriculum_as_one_process_does(trained):
    curves = []
    for count in (1, 2):
        result = train_on(count, "training_Curriculum", trained.folder)
        assert result.stdout.count("epoch   0:") == 1  # rank 0 speaks for all
        (log,) = trained.folder.glob(f"M{count}/SimpleEmoRegressor*.log.jsonl")
        curves.append(losses(log))
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)


def test_a_run_of_two_ranks_goes_on_as_one_process(trained):
    """From the state that the ranks saved: which machine a cluster gives a job next is not known before."""
    killed = "import os; from deepmi import run_log; run_log.TrainingRun.finish = lambda *_: os._exit(9)"
    driver = trained.folder / "killed.py"
    driver.write_text(
        f"import sys; sys.path[:0] = [{str(ROOT)!r}]\n{killed}\n"
        "import training_Curriculum as stage; from deepmi import cli\n"
        "cli.run(stage.main, cli.parse(stage.get_args_parser()))\n"
    )
    argv = (*STAGES["training_Curriculum"], "--model-dir", "M2")
    assert run_on(2, driver, *argv, folder=trained.folder).returncode != 0
    result = run_on(1, "training_Curriculum.py", *argv, folder=trained.folder)
    assert result.returncode == 0 and "resuming after" in result.stdout, result.stderr


def test_bad_input_is_said_once_and_no_rank_hangs(bench):
    result = run_on(2, "training_DeepEmoCluster.py", *STAGES["training_DeepEmoCluster"], folder=bench.folder)
    assert result.returncode != 0
    assert result.stderr.count("no such norm term. Run norm_para.py") == 1, result.stderr
    assert "Traceback" not in result.stderr.split("ChildFailedError")[0].split("torch/distributed")[0]


@pytest.mark.parametrize(
    ("message", "is_lost"),
    [("Connection closed by peer [::1]:80", True), ("Read error: Connection reset by peer.", True), ("a bug", False)],
)
def test_a_rank_whose_rank_0_has_ended_says_so_in_a_line(monkeypatch, message, is_lost):
    """A rank may hear of it in several ways, by chance; any other error keeps its traceback."""

    def loses(args):
        raise RuntimeError(message)

    def ends(status):
        raise SystemExit(status)

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(ranks, "join_ranks", lambda: None)
    monkeypatch.setattr(os, "_exit", ends)
    spoken = io.StringIO()
    for stream in ("stdout", "stderr", "__stderr__"):
        monkeypatch.setattr(sys, stream, spoken)
    with pytest.raises(SystemExit if is_lost else RuntimeError):
        cli.run(ranks.on_every_rank(loses), argparse.Namespace())
    assert spoken.getvalue().endswith("rank 1: another process has ended.\n" if is_lost else "")


def test_a_stage_of_one_process_says_so(bench):
    result = run_on(2, "testing_Curriculum.py", "-emo", "Val", folder=bench.folder)
    assert result.returncode != 0 and "start it without torchrun" in result.stderr


def test_each_rank_drops_units_of_its_own(monkeypatch):
    drawn = []
    for rank in range(3):
        monkeypatch.setenv("WORLD_SIZE", "3")
        monkeypatch.setenv("RANK", str(rank))
        runtime.seed_everything(1)
        ranks.seed_own_dropout(31, 0, 1)
        drawn.append(float(torch.rand(())))
    assert len(set(drawn)) == 3


def test_ranks_that_see_other_folders_are_refused(tmp_path, monkeypatch):
    runs = [run_log.TrainingRun(tmp_path / f"{rank}/x.pt.tar", {}, {}, {}, True) for rank in range(2)]
    runs[0].history = [{"epoch": 0}]  # rank 0 goes on, the other one has nothing to go on from
    found = []
    monkeypatch.setattr(run_log, "from_first_rank", lambda make: found.append(make()) or found[0])
    runs[0].refuse_unlike_ranks(False)
    with pytest.raises(UserError, match="common file system"):
        runs[1].refuse_unlike_ranks(False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_rank_that_waits_for_another_ends_on_a_signal(prepared, number):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, str(ROOT / "training_DeepEmoCluster.py"), *STAGES["training_DeepEmoCluster"]]
    waiting = subprocess.Popen(
        [*command, "--corpus", "corpus", "--device", "cpu"],
        cwd=prepared,
        env=os.environ | variables | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "waiting for 2 processes" in waiting.stderr.readline()
    waiting.send_signal(number)
    waiting.communicate(timeout=60)
    assert waiting.returncode == -number
