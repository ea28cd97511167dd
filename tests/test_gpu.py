"""The chain on a CUDA GPU."""

import json

import numpy as np
import pytest
import torch

from deepmi import batches, run_log, runtime
from deepmi.metric import read_metric

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")


def test_the_chain_runs_on_a_gpu(bench):
    for number in range(5):
        more = ["--device", "cuda"] if number else []
        code, _, err = bench.stage(number, *more)
        assert code == 0, err


def test_extraction_on_a_gpu_gives_the_values_of_the_cpu(trained):
    on_cpu = read_metric(trained.metric)
    assert trained.stage(2, "--device", "cuda")[0] == 0
    on_gpu = read_metric(trained.metric)
    # Rounding may put an utterance on the border of two clusters into the other.
    assert np.mean([abs(on_cpu[name] - on_gpu[name]) > 2e-5 for name in on_cpu]) < 0.05


@pytest.mark.parametrize("number", [1, 3])
def test_a_run_resumes_on_a_gpu(bench, monkeypatch, number):
    for before in range(number):
        bench.stage(before)
    with monkeypatch.context() as patched:
        patched.setattr(run_log.TrainingRun, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert bench.stage(number, "--device", "cuda")[0] == 130
    code, out, err = bench.stage(number, "--device", "cuda")
    assert code == 0 and "resuming after" in out, err


def losses(log) -> list[float]:
    records = [json.loads(line) for line in log.read_text().splitlines()[1:-1]]
    return [record["labeled"]["joint_loss"] for record in records]


@pytest.mark.parametrize("where", ["eager", "streamed"])
def test_every_way_of_training_on_a_gpu_gives_the_losses_of_the_captured_resident_one(bench, monkeypatch, where):
    assert bench.stage(0)[0] == 0
    curves = []
    for plain in (False, True):
        if plain and where == "eager":
            monkeypatch.setattr(runtime.CapturedStep, "EAGER_CALLS", 10**9)
        if plain and where == "streamed":
            monkeypatch.setattr(batches, "SHARE_OF_GPU", 0)
        models = f"M{plain}"
        assert bench.stage(1, "--device", "cuda", "-ep", 3, "--model-dir", models)[0] == 0
        (log,) = bench.folder.glob(f"{models}/*.log.jsonl")
        curves.append(losses(log))
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)


def test_a_captured_step_is_replayed_and_other_shapes_run_eagerly():
    device = torch.device("cuda")
    weight = torch.ones(3, device=device, requires_grad=True)
    optimizer = runtime.sgd([weight], 0.1, device)
    calls = []

    def step(x):
        calls.append(len(x))
        optimizer.zero_grad(set_to_none=True)
        loss = (x @ weight).sum()
        loss.backward()
        optimizer.step()
        return loss.detach()

    captured = runtime.CapturedStep(step, device)
    plain = torch.ones(3, device=device)
    for number in range(12):
        x = torch.full((2 if number == 7 else 4, 3), float(number), device=device)
        assert captured(x).item() == pytest.approx((x @ plain).sum().item())
        plain -= 0.1 * x.sum(dim=0)
    assert torch.allclose(weight, plain)
    assert calls == [4] * (runtime.CapturedStep.EAGER_CALLS + 1) + [2]
