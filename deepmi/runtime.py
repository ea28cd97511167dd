"""Device, precision and optimizers."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
from collections.abc import Iterable

import torch
from torch import nn

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
        torch.cuda.set_device(int(known[1]))
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
        # No weight is used twice in a pass, so a cache of casts gains nothing.
        return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)
    return contextlib.nullcontext()


def seed_everything(seed: int) -> None:
    """Seed torch's generators (weight initialisation, dropout) on every device."""
    torch.manual_seed(seed)


def sgd(parameters: Iterable[nn.Parameter], rate: float, device: torch.device) -> torch.optim.SGD:
    """Stochastic gradient descent without momentum or weight decay."""
    return torch.optim.SGD(parameters, lr=rate, fused=device.type in ("cpu", "cuda"))


def adam(parameters: Iterable[nn.Parameter], rate: float, device: torch.device) -> torch.optim.Adam:
    """Adam without weight decay."""
    return torch.optim.Adam(parameters, lr=rate, fused=device.type in ("cpu", "cuda"))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the steps to come."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def compiled(network: nn.Module, wanted: bool) -> nn.Module:
    """The network, compiled by torch for many small steps if that is wanted; its weights stay those of the network."""
    return torch.compile(network, mode="reduce-overhead") if wanted else network


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
