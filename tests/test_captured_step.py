"""What is captured, when, and what runs eagerly; on a CPU, with CUDA graphs played by a stand-in.

On a GPU, tests/test_gpu.py does the same with the real ones.
"""

import contextlib

import pytest
import torch

from deepmi import runtime


class Graph:
    """Replays a function on the tensors it was captured with."""

    def __init__(self):
        self.replays = 0

    def replay(self):
        self.replays += 1
        self.work()


class Step:
    """Doubles its input into one and the same output; counts who ran it."""

    def __init__(self):
        self.eager = []

    def __call__(self, x):
        if Cuda.capturing is not None:
            output = torch.empty_like(x)
            Cuda.capturing.work = lambda: torch.mul(x, 2, out=output)
            return output
        self.eager.append(len(x))
        return 2 * x


class Cuda:
    capturing = None


@pytest.fixture
def step(monkeypatch) -> tuple[Step, runtime.CapturedStep]:
    @contextlib.contextmanager
    def capture(graph, capture_error_mode):
        Cuda.capturing = graph
        yield
        Cuda.capturing = None

    class Stream:
        def wait_stream(self, other):
            pass

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(Cuda, "capturing", None)
    function = Step()
    return function, runtime.CapturedStep(function, torch.device("cuda"))


def test_the_first_calls_run_eagerly_and_then_one_graph_is_replayed(step):
    function, captured = step
    for number in range(9):
        x = torch.full((4,), float(number))
        assert torch.equal(captured(x), 2 * x)
    assert function.eager == [4] * runtime.CapturedStep.EAGER_CALLS
    assert captured.graph.replays == 9 - runtime.CapturedStep.EAGER_CALLS


def test_a_smaller_batch_runs_eagerly_and_a_larger_one_is_captured_anew(step):
    function, captured = step
    for size in [3] * 6 + [2] + [5] * 6 + [3]:
        x = torch.randn(size)
        assert torch.equal(captured(x), 2 * x)
    assert function.eager == [3, 3, 3, 2, 5, 5, 5, 3]


def test_rows_keep_the_strides_they_came_with(step):
    _, captured = step
    for _ in range(5):
        x = torch.randn(4, 8)[:, :5]
        assert torch.equal(captured(x), 2 * x)
    assert captured.inputs[0].stride() == (8, 1)


def test_a_step_that_cannot_be_captured_goes_on_eagerly_with_a_note(step, monkeypatch, capsys):
    function, captured = step

    @contextlib.contextmanager
    def refuse(graph, capture_error_mode):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")
        yield

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    for _ in range(6):
        assert torch.equal(captured(torch.ones(4)), torch.full((4,), 2.0))
    assert function.eager == [4] * 6
    err = capsys.readouterr().err
    assert err.count("can't be captured (operation not permitted when stream is capturing)") == 1


def test_on_a_cpu_nothing_is_captured():
    function = Step()
    captured = runtime.CapturedStep(function, torch.device("cpu"))
    for _ in range(6):
        captured(torch.ones(4))
    assert function.eager == [4] * 6
