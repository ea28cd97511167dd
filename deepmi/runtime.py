"""Device, precision and optimizers."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import platform
import re
import shutil
from collections.abc import Iterable

import torch
from torch import nn

from deepmi.process import UserError, num_ranks


def choose_device(name: str) -> torch.device:
    """Turn `--device` into a torch device.

    Args:
        name: `auto` (a CUDA GPU, else Apple's MPS, else the CPU), `cpu`, `cuda`, `cuda:N` or `mps`.
    Raises:
        UserError: the name is unknown, or this machine has no such device.
    """
    gpus = torch.cuda.device_count()
    if num_ranks() > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if processes > gpus:
            raise UserError(f"{processes} processes on a machine with {gpus} CUDA GPUs; start one process per GPU.")
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    elif num_ranks() > 1 and name.startswith("cuda:"):
        raise UserError(f"--device {name}: several processes cannot share one GPU; use --device auto.")
    if name == "auto":
        apple = torch.backends.mps.is_available() and num_ranks() == 1
        name = "cuda" if torch.cuda.is_available() else "mps" if apple else "cpu"
    known = re.fullmatch(r"cpu|mps|cuda(?::(\d+))?", name)
    if not known:
        raise UserError(f"--device {name}: expected auto, cpu, cuda, cuda:N or mps.")
    if name.startswith("cuda") and int(known[1] or 0) >= gpus:
        raise UserError(f"--device {name}: this machine has {gpus} CUDA GPUs; use --device auto.")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: not available on this machine; use --device auto.")
    if name == "cpu":
        _keep_freed_memory()
    if known[1]:
        torch.cuda.set_device(int(known[1]))  # NCCL and compiled networks use the current device
    return torch.device(name)


def _keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of returning it: saves 2 % of an epoch on a CPU, spent on new pages."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, the largest value that every glibc accepts
        libc.mallopt(-1, 2**30)  # M_TRIM_THRESHOLD


def choose_precision(device: torch.device, precision: str) -> str:
    """`precision`, but `fp32` with a note if it is `bf16` and this CPU can only emulate bfloat16, many times slower."""
    if precision == "bf16" and device.type == "cpu" and platform.machine() in ("x86_64", "AMD64"):
        able = torch.cpu.get_capabilities()
        if not any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "avx10_2")):
            print(f"note: this processor has no bfloat16 arithmetic ({able['cpu_name']}); computing in fp32.")
            return "fp32"
    return precision


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Context in which matrix products run in `precision` (`fp32` or `bf16`); parameters stay float32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def seed_everything(seed: int) -> None:
    """Seed torch's generators (weight initialisation, dropout) on every device."""
    torch.manual_seed(seed)


def check_compile(device: torch.device) -> None:
    """Raise `UserError` if `--compile` has no effect on this device or cannot work on this machine."""
    if device.type != "cuda" or num_ranks() > 1:
        raise UserError("--compile: works on a CUDA GPU in a single process; leave it out.")
    compiler = os.environ.get("CC") or any(map(shutil.which, ("gcc", "clang", "cc")))
    if not importlib.util.find_spec("triton") or not compiler:
        raise UserError("--compile: torch.compile needs triton and a C compiler such as gcc; install them.")


def compiled(network: nn.Module, wanted: bool) -> nn.Module:
    """The network, compiled with CUDA graphs if wanted. Both share their weights."""
    return torch.compile(network, mode="reduce-overhead") if wanted else network


def sgd(parameters: Iterable[nn.Parameter], rate: float, device: torch.device) -> torch.optim.SGD:
    """Stochastic gradient descent without momentum or weight decay."""
    return torch.optim.SGD(parameters, lr=rate, fused=device.type in ("cpu", "cuda"))


def adam(parameters: Iterable[nn.Parameter], rate: float, device: torch.device) -> torch.optim.Adam:
    """Adam without weight decay."""
    return torch.optim.Adam(parameters, lr=rate, fused=device.type in ("cpu", "cuda"))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next steps."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict:
    """The state of each parameter, on the CPU, for `load_optimizer`; without settings such as the learning rate."""
    state = optimizer.state_dict()["state"]
    return {number: {name: value.cpu() for name, value in of.items()} for number, of in state.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Restore an optimizer from `optimizer_state`, on any device.

    Raises:
        ValueError: the state belongs to other parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if state.keys() != set(range(len(parameters))) or any(
        value.ndim and value.shape != parameters[number].shape for number, of in state.items() for value in of.values()
    ):
        raise ValueError("the state of an optimizer of other parameters")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
