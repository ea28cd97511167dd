"""Several processes under torchrun do what one does."""

import argparse
import io
import os
import signal
import socket
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, log_of, run_python

import model
from deepmi import cli, clustering, ranks, run_log, runtime
from deepmi.process import UserError

SMALL = ("-batch", "16", "-emo", "Val", "-nc", "5", "--corpus", "corpus", "--device", "cpu")
ARGUMENTS = {
    "training_DeepEmoCluster": ("-ep", "3", *SMALL, "--unlabeled", "corpus_unlabeled"),
    "extract_DeepMI": ("-ep", "3", *SMALL),
    "training_Curriculum": ("-ep", "8", *SMALL),
}


def on_two_ranks(*argv: object, folder, **environment: str) -> subprocess.CompletedProcess:
    """A script under torchrun."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    return run_python(*torchrun, *argv, cwd=folder, **environment)


def losses(checkpoint) -> list[float]:
    """Every loss in a run's log."""
    lines = log_of(checkpoint)[1:]
    parts = [part for line in lines for part in (line, line.get("labeled", {}), line.get("unlabeled", {}))]
    return [part[name] for part in parts for name in sorted(part) if "loss" in name]


def test_two_ranks_do_what_one_process_does_and_it_goes_on_where_they_were_killed(prepared, monkeypatch):
    monkeypatch.setattr(model, "DROPOUT", 0.0)
    by_torch = lambda points, k, seed, _: clustering._kmeans_torch(points, len(points), k, seed)  # noqa: E731
    monkeypatch.setattr(clustering, "_kmeans_faiss", by_torch)
    places = {count: ("--model-dir", f"M{count}") for count in (1, 2)}
    commands = []
    for stage, argv in ARGUMENTS.items():
        metric = {count: ("--metric-dir", f"C{count}") if "DeepEmo" not in stage else () for count in (1, 2)}
        prepared.runs(stage, *argv, *places[1], *metric[1])
        # The second extraction takes the first checkpoint, and the second curriculum the first metric.
        first = {"extract_DeepMI": (*places[1], *metric[2]), "training_Curriculum": (*places[2], *metric[1])}
        commands += ["--", stage, *argv, *first.get(stage, places[2])]
    killed = on_two_ranks(
        ROOT / "tests/narrow_stage.py", *commands[1:], folder=prepared.folder, DROPOUT="0", KILLED="1"
    )
    assert killed.returncode == 0, killed.stderr
    assert killed.stdout.count("I(X;Y)") == 1  # only rank 0 prints
    again = ("training_Curriculum", *ARGUMENTS["training_Curriculum"], *places[2], *metric[1])
    assert "resuming after" in prepared.runs(*again)[0]
    for checkpoint in sorted((prepared.folder / "M1").glob("*.tar")):
        other = prepared.folder / "M2" / checkpoint.name
        assert [log_of(file)[0]["ranks"] for file in (checkpoint, other)] == [1, 1 if "Simple" in other.name else 2]
        assert losses(checkpoint) == pytest.approx(losses(other), abs=1e-4)
        assert len(losses(checkpoint)) in (3 * 5 + 1, 8 * 2 + 1)
    metrics = [(prepared.folder / f"C{count}/{prepared.metric.name}").read_bytes() for count in (1, 2)]
    assert metrics[0] == metrics[1]


def test_bad_input_is_said_once_and_no_rank_hangs(bench):
    stage = "training_DeepEmoCluster"
    result = on_two_ranks(ROOT / f"{stage}.py", *ARGUMENTS[stage], folder=bench.folder)
    assert result.returncode != 0
    assert result.stderr.count("no such normalisation statistics. Run norm_para.py") == 1, result.stderr
    assert "Traceback" not in result.stderr.split("ChildFailedError")[0].split("torch/distributed")[0]


@pytest.fixture
def end_of_rank(monkeypatch):
    """Sets the number of this process of two; `cli.run` leaves it with SystemExit. Returns what it has printed."""

    def ends(status):
        raise SystemExit(status)

    def become(rank):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setattr(ranks, "join_ranks", lambda: None)
        monkeypatch.setattr(os, "_exit", ends)
        spoken = io.StringIO()
        for stream in ("stdout", "stderr", "__stderr__"):
            monkeypatch.setattr(sys, stream, spoken)
        return spoken

    return become


@pytest.mark.parametrize(
    ("message", "is_lost"),
    [("Connection closed by peer [::1]:80", True), ("Read error: Connection reset by peer.", True), ("a bug", False)],
)
def test_a_rank_whose_rank_0_has_ended_says_so_in_a_line(end_of_rank, message, is_lost):
    """The message of the library varies by chance; any different error keeps its traceback."""

    def loses(args):
        raise RuntimeError(message)

    spoken = end_of_rank(1)
    with pytest.raises(SystemExit if is_lost else RuntimeError):
        cli.run(ranks.on_every_rank(loses), argparse.Namespace())
    assert spoken.getvalue().endswith("rank 1: another process has ended.\n" if is_lost else "")


def test_a_script_that_runs_as_one_process_says_so(end_of_rank):
    spoken = end_of_rank(0)
    with pytest.raises(SystemExit):
        cli.run(lambda args: 0, argparse.Namespace())
    assert "start it without torchrun" in spoken.getvalue()


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
    runs[0].history = [{"epoch": 0}]  # rank 0 resumes, rank 1 has no state to resume from
    found = []
    monkeypatch.setattr(run_log, "from_first_rank", lambda make: found.append(make()) or found[0])
    runs[0].refuse_unlike_ranks(False)
    with pytest.raises(UserError, match="common file system"):
        runs[1].refuse_unlike_ranks(False)


def test_a_rank_that_waits_for_the_other_ends_on_a_signal(prepared):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, ROOT / "training_DeepEmoCluster.py", *ARGUMENTS["training_DeepEmoCluster"]]
    waiting = subprocess.Popen(
        command, cwd=prepared.folder, env=os.environ | variables, stderr=subprocess.PIPE, text=True
    )
    assert "waiting for 2 processes" in waiting.stderr.readline()
    waiting.send_signal(signal.SIGTERM)
    waiting.communicate(timeout=60)
    assert waiting.returncode == -signal.SIGTERM
