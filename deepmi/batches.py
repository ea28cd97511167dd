"""The packed features on the device that computes: batches drawn from them, and passes over all of them.

D is the number of features, N the number of utterances. On a CPU, batches are gathered from the memory map into one
buffer. A GPU keeps the whole matrix in its memory if it fits. If not, each batch is gathered in pinned memory, while
the GPU still computes on the previous one, and copied without waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deepmi import ranks, runtime

PASS_ROWS = 2048  # utterances per step when nothing is trained
ALIGNED = 32  # rows start at a multiple of this many numbers: a cache line, and what tensor cores want
SHARE_OF_GPU = 0.6  # of the free GPU memory that a matrix may take; networks and steps need the rest


class Rows:
    """The packed features of some utterances, for one device."""

    def __init__(self, packed: NDArray[np.float32], device: torch.device, precision: str):
        """
        Args:
            packed: float32, shape (N, D), usually a memory map; nothing is read before it is needed.
            device: device of the batches.
            precision: `fp32` or `bf16`. With `bf16` a GPU keeps the matrix in bfloat16; products would round it anyway.
        """
        self.packed = torch.from_numpy(np.asarray(packed))
        self.device = device
        self.num_features = self.packed.shape[1]  # D
        dtype = torch.bfloat16 if precision == "bf16" and device.type == "cuda" else torch.float32
        room = SHARE_OF_GPU * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
        self.resident = self._upload(dtype) if self.packed.numel() * dtype.itemsize < room else None

    def __len__(self) -> int:
        return len(self.packed)

    def _aligned(self, count: int, **options: object) -> Tensor:
        """Uninitialised memory for `count` rows, (count, D and padding)."""
        return torch.empty(count, -(-self.num_features // ALIGNED) * ALIGNED, **options)

    def _upload(self, dtype: torch.dtype) -> Tensor:
        """The matrix in the memory of the device, (N, D and padding)."""
        resident = self._aligned(len(self), dtype=dtype, device=self.device)
        for part in _parts(slice(0, len(self))):
            resident[part, : self.num_features].copy_(self.packed[part])
        return resident

    def batches(self, positions: Sequence[Tensor]) -> Iterator[Tensor]:
        """The rows at each of these positions.

        Args:
            positions: int64 tensors, shape (B,) each.
        Yields:
            (B, D) on the device. On a CPU the next batch overwrites it.
        """
        if self.resident is not None:
            for batch in positions:
                yield self.resident.index_select(0, batch.to(self.device))[:, : self.num_features]
            return
        on_gpu = self.device.type == "cuda"
        positions = [batch.cpu() for batch in positions]  # at once: each would wait for the GPU
        buffer = None
        for batch in positions:
            if buffer is None or on_gpu:  # torch reuses pinned memory only after the copy from it has ended
                buffer = self._aligned(max(map(len, positions)), pin_memory=on_gpu)
            rows = buffer[: len(batch)]
            torch.index_select(self.packed, 0, batch, out=rows[:, : self.num_features])
            yield rows.to(self.device, non_blocking=on_gpu)[:, : self.num_features]

    def blocks(self, share: slice) -> Iterator[Tensor]:
        """A share of the rows in their order, PASS_ROWS at a time, (B, D) on the device."""
        if self.device.type == "cuda" and self.resident is None:
            return self.batches(torch.arange(share.start, share.stop).split(PASS_ROWS))
        source = self.packed if self.resident is None else self.resident[:, : self.num_features]
        return (source[part].to(self.device) for part in _parts(share))


def _parts(share: slice) -> list[slice]:
    """Parts of PASS_ROWS; one empty part of an empty share, so that a rank without rows still takes part."""
    starts = range(share.start, max(share.stop, share.start + 1), PASS_ROWS)
    return [slice(start, min(start + PASS_ROWS, share.stop)) for start in starts]


def in_batches(
    model: nn.Module,
    function: Callable[[Tensor], Tensor | tuple[Tensor, ...]],
    rows: Rows,
    precision: str,
    own: bool = False,
) -> tuple[Tensor, ...]:
    """Apply a function of the network to all rows, in eval mode and without gradients, each rank to its share.

    Args:
        model: the network; its mode is restored afterwards.
        function: (B, D) -> a tensor (B, ...) or a tuple of tensors.
        rows: N utterances, on the device of the network.
        precision: `fp32` or `bf16`.
        own: return only the share of this rank.
    Returns:
        For each output a float32 tensor (N, ...), on every rank.
    """
    was_training = model.training
    model.eval()
    share = ranks.own_share(len(rows))
    outputs: tuple[Tensor, ...] = ()
    first = 0
    with torch.inference_mode(), runtime.autocast(rows.device, precision):
        for block in rows.blocks(share):
            found = function(block)
            found = found if isinstance(found, tuple) else (found,)
            if not outputs:
                outputs = tuple(part.new_empty(share.stop - share.start, *part.shape[1:]).float() for part in found)
            for output, part in zip(outputs, found):
                output[first : first + len(block)] = part
            first += len(block)
    model.train(was_training)
    return outputs if own else tuple(ranks.whole_of_shares(output, len(rows)) for output in outputs)
