"""The chain on a CUDA GPU."""

import numpy as np
import pytest
import torch
from conftest import log_of, stopped_before_the_end

from deepmi import batches
from deepmi.metric import read_metric

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")


def test_the_chain_runs_on_a_gpu(bench):
    for number in range(5):
        more = ["--device", "cuda"] if number else []
        bench.runs(number, *more)


def test_extraction_on_a_gpu_gives_the_values_of_the_cpu(trained):
    on_cpu = read_metric(trained.metric)
    trained.runs(2, "--device", "cuda")
    on_gpu = read_metric(trained.metric)
    # Rounding may put an utterance on the border of two clusters into the other.
    assert np.mean([abs(on_cpu[name] - on_gpu[name]) > 2e-5 for name in on_cpu]) < 0.05


@pytest.mark.parametrize("number", [1, 3])
def test_a_run_resumes_on_a_gpu(bench, number):
    for before in range(number):
        bench.stage(before)
    with stopped_before_the_end():
        assert bench.stage(number, "--device", "cuda")[0] == 130
    assert "resuming after" in bench.runs(number, "--device", "cuda")[0]


@pytest.mark.parametrize("where", ["compiled", "loaded"])
def test_every_way_of_training_on_a_gpu_gives_the_losses_of_the_plain_one(bench, monkeypatch, where):
    bench.runs(0)
    curves = []
    for plain in (False, True):
        if not plain and where == "loaded":
            monkeypatch.setattr(batches, "SHARE_OF_GPU", 0)
        more = ["--compile"] if where == "compiled" and not plain else []
        models = f"M{plain}"
        bench.runs(1, "--device", "cuda", "-ep", 3, "--model-dir", models, *more)
        (checkpoint,) = bench.folder.glob(f"{models}/*.tar")
        curves.append([record["labeled"]["joint_loss"] for record in log_of(checkpoint)[1:-1]])
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)
