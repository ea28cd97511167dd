"""Two layers tuned for CPUs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Dropout(nn.Module):
    """Dropout with fast masks on a CPU, where torch draws them one by one on a single core.

    On a CPU, 16 random bits decide on each unit, so the rate is exact to 2**-17. torch's own generator seeds the
    generator of these bits in every call, so `runtime.seed_everything` seeds both.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not self.training or self.rate == 0:
            return F.dropout(x, self.rate, self.training)
        seed = int(torch.empty((), dtype=torch.int64).random_())
        bits = np.random.SFC64(seed).random_raw(-(-x.numel() // 4))
        bits = torch.from_numpy(bits.view(np.int16)[: x.numel()]).view(x.shape)
        kept = torch.ge(bits, round(self.rate * 2**16) - 2**15, out=torch.empty_like(x, requires_grad=False))
        return x * kept.mul_(1 / (1 - self.rate))


class InputLinear(nn.Linear):
    """nn.Linear with a weight of shape (in, out) in memory; checkpoints contain it as (out, in), as for nn.Linear.

    The gradient of a weight (out, in) has rows of `in` numbers. With 6,373 of them most rows do not start on a cache
    line, and this product runs at two thirds of the speed of (in, out).
    """

    def __init__(self, width_in: int, width_out: int):
        super().__init__(width_in, width_out)
        self.weight = nn.Parameter(self.weight.detach().t().contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = destination[f"{prefix}weight"].t()

    def _load_from_state_dict(self, state: dict, prefix: str, *more: object) -> None:
        key = f"{prefix}weight"
        turned = {key: state[key].t()} if key in state else {}
        super()._load_from_state_dict({**state, **turned}, prefix, *more)
