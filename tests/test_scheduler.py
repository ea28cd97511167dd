"""Extraction on a Dask cluster, whose workers are started elsewhere and cannot import this program."""

import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import soundfile

from tools import extract_features as tool

pytest.importorskip("distributed", reason="the optional package distributed is not installed")
CLIPS = 40


@pytest.fixture
def cluster(tmp_path):
    """(address of a scheduler, its two worker processes), started in a different folder."""
    place = tmp_path / "cluster"
    place.mkdir()
    file = place / "scheduler.json"

    def start(program, *more):
        command = [sys.executable, "-m", "distributed.cli." + program, *more]
        return subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    scheduler = start("dask_scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", str(file))
    for _ in range(300):
        if file.is_file() and file.stat().st_size:
            break
        time.sleep(0.1)
    address = json.loads(file.read_text())["address"]
    workers = [start("dask_worker", address, "--no-nanny", "--no-dashboard", "--nthreads", "1") for _ in range(2)]
    yield address, workers
    for process in (*workers, scheduler):
        process.kill()
        process.wait()


def test_a_lost_worker_loses_no_file(cluster, tmp_path, bench):
    address, workers = cluster
    (tmp_path / "Audios").mkdir()
    rng = np.random.default_rng(0)
    for number in range(CLIPS):
        soundfile.write(tmp_path / f"Audios/{number:02d}.wav", 0.1 * rng.normal(size=8000), 16000)
    (tmp_path / "Audios/bad.wav").write_text("no sound")
    mats = tmp_path / "mat"

    def kill_one():
        while len(list(mats.glob("*.mat"))) < 5:
            time.sleep(0.01)
        workers[0].kill()

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    code, out, err = bench.run("tools.extract_features", "Audios", "mat", "--scheduler", address)
    killer.join(timeout=1)
    assert code == 0, err
    assert workers[0].wait(timeout=30) != 0 and workers[1].poll() is None
    assert f"{CLIPS} recordings extracted, 0 there before, 1 without features" in out and "bad.wav" in err
    tool.extract_folder(tmp_path / "Audios", tmp_path / "here", workers=2)
    for number in range(CLIPS):
        assert (mats / f"{number:02d}.mat").read_bytes() == (tmp_path / f"here/{number:02d}.mat").read_bytes()


def test_a_missing_scheduler_is_refused(tmp_path, bench, monkeypatch):
    monkeypatch.setattr(tool, "SCHEDULER_PATIENCE", 0.5)
    (tmp_path / "Audios").mkdir()
    soundfile.write(tmp_path / "Audios/a.wav", np.zeros(8000), 16000)
    result = bench.run("tools.extract_features", "Audios", "mat", "--scheduler", "tcp://127.0.0.1:9")
    bench.refuses(result, "--scheduler tcp://127.0.0.1:9", "no Dask scheduler")
