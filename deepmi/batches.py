"""The packed features on the device that computes: batches drawn from them, and passes over all of them.

D is the number of features, N that of the utterances. On a CPU a batch is gathered from the memory map into one buffer.
On a GPU the whole matrix lies in its memory where it fits; where not, batches are gathered into page-locked memory and
copied while the GPU computes on those before.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deepmi import ranks, runtime
from deepmi.process import rank

PASS_ROWS = 2048  # utterances a step when nothing is trained
ALIGNED = 32  # rows start at a multiple of so many numbers: a cache line, and what tensor cores want
SHARE_OF_GPU = 0.6  # of the GPU's free memory that a matrix may take; networks and steps need the rest
SLOTS = 3  # batches on their way to the GPU at a time


def _aligned(width: int) -> int:
    return -(-width // ALIGNED) * ALIGNED


def _padded(count: int, width: int) -> Tensor:
    """An empty (count, width) matrix whose rows start aligned; what lies between them is never read."""
    return torch.empty(count, _aligned(width))[:, :width]


class Rows:
    """The packed features of some utterances, for one device."""

    def __init__(
        self, packed: NDArray[np.float32], device: torch.device, precision: str, on_device: bool | None = None
    ):
        """
        Args:
            packed: float32, shape (N, D), usually a memory map; nothing is read until it is needed.
            device: where batches are wanted.
            precision: `fp32` or `bf16`; a GPU then keeps the matrix in bfloat16, as its products would round it anyway.
            on_device: keep the whole matrix in the device's memory; by default where it is a GPU and has room.
        """
        self.packed = torch.from_numpy(np.asarray(packed))
        self.device = device
        self.dtype = torch.bfloat16 if precision == "bf16" and device.type == "cuda" else torch.float32
        if on_device is None:
            room = SHARE_OF_GPU * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
            on_device = self.packed.numel() * self.dtype.itemsize < room
        self.resident = self._upload() if on_device else None
        self.streams = device.type == "cuda"

    def __len__(self) -> int:
        return len(self.packed)

    @property
    def num_features(self) -> int:
        """D."""
        return self.packed.shape[1]

    def _upload(self) -> Tensor:
        """The matrix in the device's memory, (N, D and what aligns its rows), zero where there is no feature."""
        width = _aligned(self.num_features)
        resident = torch.zeros(len(self), width, dtype=self.dtype, device=self.device)
        for part in _parts(0, len(self)):
            resident[part, : self.num_features].copy_(self.packed[part])
        return resident

    def batches(self, positions: Sequence[Tensor]) -> Iterator[Tensor]:
        """The rows at each of these positions.

        Args:
            positions: int64 tensors, shape (B,) each.
        Yields:
            (B, D) on the device. On a CPU the memory is used again for the next one.
        """
        if self.resident is not None:
            rows = (self.resident.index_select(0, batch.to(self.device)) for batch in positions)
            return (batch[:, : self.num_features] for batch in rows)
        positions = [batch.cpu() for batch in positions]
        sizes = [len(batch) for batch in positions]

        def gather(number: int, target: Tensor) -> None:
            torch.index_select(self.packed, 0, positions[number], out=target)

        return self._gathered(sizes, gather)

    def blocks(self, share: slice) -> Iterator[Tensor]:
        """The rows of a share of all, PASS_ROWS at a time, in their order; (B, D) on the device."""
        parts = _parts(share.start, share.stop)
        if self.resident is not None:
            return (self.resident[part, : self.num_features] for part in parts)
        if self.device.type == "cpu" and not self.streams:
            return (self.packed[part] for part in parts)
        sizes = [part.stop - part.start for part in parts]
        return self._gathered(sizes, lambda number, target: target.copy_(self.packed[parts[number]]))

    def _gathered(self, sizes: list[int], gather: Callable[[int, Tensor], object]) -> Iterator[Tensor]:
        """Rows that `gather` puts into memory of the CPU."""
        if not sizes:
            return
        if self.streams:
            yield from self._streamed(sizes, gather)
            return
        buffer = _padded(max(sizes), self.num_features)
        for number, size in enumerate(sizes):
            gather(number, buffer[:size])
            yield buffer[:size].to(self.device)

    def _streamed(self, sizes: list[int], gather: Callable[[int, Tensor], object]) -> Iterator[Tensor]:
        """The same, for a GPU: a thread gathers and copies ahead while the GPU computes."""
        on_gpu = self.device.type == "cuda"  # the tests run this on a CPU as well
        copier = torch.cuda.Stream(self.device) if on_gpu else None
        # Copied with what aligns their rows: one piece of memory to one piece, or torch would go through a third.
        width = _aligned(self.num_features)
        with torch.inference_mode(False):  # of this thread only: the other one could not write what is made in it
            slots = [torch.empty(max(sizes), width, pin_memory=on_gpu) for _ in range(SLOTS)]
        copied: list = [None] * SLOTS  # what tells that a slot has been copied and may be filled again

        def bring(number: int) -> tuple[Tensor, object]:
            slot = slots[number % SLOTS][: sizes[number]]
            if copied[number % SLOTS] is not None:
                copied[number % SLOTS].synchronize()
            gather(number, slot[:, : self.num_features])
            with torch.cuda.stream(copier) if on_gpu else contextlib.nullcontext():
                rows = torch.empty_like(slot, device=self.device).copy_(slot, non_blocking=True)
                copied[number % SLOTS] = copier.record_event() if on_gpu else None
            return rows, copied[number % SLOTS]

        with ThreadPoolExecutor(1) as ahead:
            coming = collections.deque(ahead.submit(bring, number) for number in range(min(SLOTS - 1, len(sizes))))
            for number in range(len(sizes)):
                rows, arrived = coming.popleft().result()
                if number + SLOTS - 1 < len(sizes):
                    coming.append(ahead.submit(bring, number + SLOTS - 1))
                if on_gpu:
                    torch.cuda.current_stream(self.device).wait_event(arrived)
                    rows.record_stream(torch.cuda.current_stream(self.device))
                yield rows[:, : self.num_features]


def _parts(start: int, stop: int) -> list[slice]:
    """PASS_ROWS at a time; one empty part of nothing, so that a rank without a share still takes part."""
    return [slice(first, min(first + PASS_ROWS, stop)) for first in range(start, max(stop, start + 1), PASS_ROWS)]


def in_batches(
    model: nn.Module, function: Callable[[Tensor], object], rows: Rows, precision: str
) -> tuple[Tensor, ...] | None:
    """Apply a function of the network to all rows, in eval mode and without gradients, each rank to its share.

    Args:
        model: the network; its mode is put back afterwards.
        function: (B, D) -> a tensor (B, ...) or a tuple of such.
        rows: N utterances, on the network's device.
        precision: `fp32` or `bf16`.
    Returns:
        For each output a float32 tensor (N, ...), on rank 0; None on the others.
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
    gathered = tuple(ranks.gather_shares(output, len(rows)) for output in outputs)
    return gathered if rank() == 0 else None
