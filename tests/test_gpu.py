"""The chain on a CUDA GPU."""

import numpy as np
import pytest
import torch

import deepmi
import runtime

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")


def test_the_chain_runs_on_a_gpu(bench):
    for number in range(5):
        more = ["--device", "cuda"] if number else []
        code, _, err = bench.stage(number, *more)
        assert code == 0, err


def test_extraction_on_a_gpu_gives_the_values_of_the_cpu(trained):
    on_cpu = deepmi.read_metric(trained.metric)
    assert trained.stage(2, "--device", "cuda")[0] == 0
    on_gpu = deepmi.read_metric(trained.metric)
    # Rounding may put an utterance on the border of two clusters into the other.
    assert np.mean([abs(on_cpu[name] - on_gpu[name]) > 2e-5 for name in on_cpu]) < 0.05


@pytest.mark.parametrize("number", [1, 3])
def test_a_run_resumes_on_a_gpu(bench, monkeypatch, number):
    for before in range(number):
        bench.stage(before)
    with monkeypatch.context() as patched:
        patched.setattr(runtime.TrainingRun, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert bench.stage(number, "--device", "cuda")[0] == 130
    code, out, err = bench.stage(number, "--device", "cuda")
    assert code == 0 and "going on after" in out, err
