"""Device, precision, optimizers and captured steps."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import sys
from collections.abc import Callable

import torch

from deepmi.process import UserError, num_ranks


def choose_device(name: str):
    """Turn `--device` into a torch device.

    Args:
        name: `auto` (a CUDA GPU, else Apple's MPS, else the CPU), `cpu`, `cuda`, `cuda:N` or `mps`.
    Returns:
        A `torch.device`.
    Raises:
        UserError: the name is unknown, or this machine has no such device.
    """
    if num_ranks() > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
        ranks, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
        if ranks > gpus:
            raise UserError(f"{ranks} processes on this machine, which shows {gpus} CUDA GPUs; start one for each GPU.")
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    elif num_ranks() > 1 and name.startswith("cuda:"):
        raise UserError(f"--device {name}: several processes can't share one GPU; use --device auto.")
    if name == "auto":
        apple = torch.backends.mps.is_available() and num_ranks() == 1
        name = "cuda" if torch.cuda.is_available() else "mps" if apple else "cpu"
    known = re.fullmatch(r"cpu|mps|cuda(?::(\d+))?", name)
    if not known:
        raise UserError(f"--device {name}: expected auto, cpu, cuda, cuda:N or mps.")
    if name.startswith("cuda") and int(known[1] or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: this machine shows {torch.cuda.device_count()} CUDA GPUs; use --device auto."
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: not available on this machine; use --device auto.")
    if name == "cpu":
        _keep_freed_memory()
    if known[1]:
        torch.cuda.set_device(int(known[1]))  # streams and captured steps take the current one
    return torch.device(name)


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed: given back, each batch would pay for fresh pages (2 % of an epoch on a CPU)."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, the most that every glibc takes
        libc.mallopt(-1, 2**30)  # M_TRIM_THRESHOLD


def choose_precision(device, precision: str) -> str:
    """`precision`, or `fp32` with a note where it is `bf16` and this CPU would only emulate that, many times slower."""
    if precision == "bf16" and device.type == "cpu" and platform.machine() in ("x86_64", "AMD64"):
        able = torch.cpu.get_capabilities()
        if not any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "avx10_2")):
            print(f"note: this processor has no bfloat16 arithmetic ({able['cpu_name']}); computing in fp32.")
            return "fp32"
    return precision


def autocast(device, precision: str):
    """Context in which matrix products run in `precision` (`fp32` or `bf16`); parameters stay float32."""
    if precision == "bf16":
        # No weight is used twice in a pass, so a cache gains nothing, and a captured step must not find a cast in it.
        return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)
    return contextlib.nullcontext()


def seed_everything(seed: int) -> None:
    """Seed torch's generators (weight initialisation, dropout) on every device."""
    torch.manual_seed(seed)


def sgd(parameters, rate: float, device):
    """Stochastic gradient descent without momentum or weight decay."""
    return torch.optim.SGD(parameters, lr=rate, fused=device.type in ("cpu", "cuda"))


def adam(parameters, rate: float, device):
    """Adam without weight decay, fit for a `CapturedStep`."""
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.Adam(
        parameters,
        lr=torch.tensor(rate, device=device) if on_gpu else rate,
        fused=device.type in ("cpu", "cuda"),
        capturable=on_gpu,
    )
    optimizer._warned_capturable_if_run_uncaptured = True  # it would warn of the eager steps, which are meant
    return optimizer


def set_rate(optimizer, rate: float) -> None:
    """Another learning rate for the steps to come, captured ones too."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], float):
            group["lr"] = rate
        else:
            group["lr"].fill_(rate)


def optimizer_state(optimizer) -> dict:
    """What `load_optimizer` needs: the state of each parameter, on the CPU; the settings are the program's own."""
    state = optimizer.state_dict()["state"]
    return {number: {name: value.cpu() for name, value in of.items()} for number, of in state.items()}


def load_optimizer(optimizer, state: dict) -> None:
    """Give an optimizer the state of another one, whatever device that ran on.

    Raises:
        ValueError: it is the state of other parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if state.keys() != set(range(len(parameters))) or any(
        value.ndim and value.shape != parameters[number].shape for number, of in state.items() for value in of.values()
    ):
        raise ValueError("an optimizer's state of other parameters")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


class CapturedStep:
    """A training step; on a CUDA GPU it is captured once as a CUDA graph, and replayed with one launch.

    The first calls run eagerly, since optimizers and libraries set themselves up then. The largest batch is captured;
    a smaller one (the last of an epoch) runs eagerly, and so does every call on other devices, with several ranks, or
    where the capture fails.
    """

    EAGER_CALLS = 3

    def __init__(self, function: Callable, device):
        """
        Args:
            function: takes tensors on `device`, returns one tensor, never waits for the device.
            device: a `torch.device`.
        """
        self.function = function
        self.capturable = device.type == "cuda" and num_ranks() == 1
        self._begin([])

    def _begin(self, shapes: list) -> None:
        """Nothing is captured; calls with tensors of these shapes are to be."""
        self.shapes, self.calls, self.graph = shapes, 0, None

    def __call__(self, *inputs):
        """What the function returns; overwritten by the next call."""
        if not self.capturable:
            return self.function(*inputs)
        shapes = [tensor.shape for tensor in inputs]
        if not self.shapes or shapes[0][0] > self.shapes[0][0]:
            self._begin(shapes)
        if shapes != self.shapes:
            return self.function(*inputs)
        self.calls += 1
        if self.calls <= self.EAGER_CALLS:
            return self._run_aside(inputs)
        if self.graph is None and not self._capture(inputs):
            return self.function(*inputs)
        for static, given in zip(self.inputs, inputs):
            static.copy_(given)
        self.graph.replay()
        return self.output

    def _run_aside(self, inputs: tuple):
        """Run on a stream that is not the default one, as every call before a capture must."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            output = self.function(*inputs)
        torch.cuda.current_stream().wait_stream(aside)
        return output

    def _capture(self, inputs: tuple) -> bool:
        # With the strides that they came with: rows that start aligned stay so.
        self.inputs = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device) for t in inputs]
        graph = torch.cuda.CUDAGraph()
        try:
            # A thread may be bringing the next batch; only what this one does belongs to the step.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.output = self.function(*self.inputs)
        except RuntimeError as error:
            self.capturable = False
            print(f"note: the training step can't be captured ({str(error).splitlines()[0]}).", file=sys.stderr)
            return False
        self.graph = graph
        return True
