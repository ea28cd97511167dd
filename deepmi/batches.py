"""The packed features on the device that computes: batches drawn from them, and passes over all of them.

D is the number of features, N the number of utterances. On a CPU a batch is gathered from the memory map into one
buffer. A GPU keeps the whole matrix in its memory if it fits; if not, a data loader gathers batches in page-locked
memory and copies them while the GPU computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from deepmi import ranks, runtime

PASS_ROWS = 2048  # utterances per step when nothing is trained
ALIGNED = 32  # rows start at a multiple of this many numbers: a cache line, and what tensor cores want
SHARE_OF_GPU = 0.6  # of the GPU's free memory that a matrix may take; networks and steps need the rest
LOADERS = 2  # processes that gather batches for a GPU


def _aligned(width: int) -> int:
    return -(-width // ALIGNED) * ALIGNED


class _Gathered(Dataset):
    """The rows of a matrix at each of several positions."""

    def __init__(self, matrix: Tensor, positions: Sequence[Tensor]):
        self.matrix, self.positions = matrix, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, number: int) -> Tensor:
        return self.matrix.index_select(0, self.positions[number])


class Rows:
    """The packed features of some utterances, for one device."""

    def __init__(self, packed: NDArray[np.float32], device: torch.device, precision: str):
        """
        Args:
            packed: float32, shape (N, D), usually a memory map; nothing is read until it is needed.
            device: where batches are wanted.
            precision: `fp32` or `bf16`; a GPU then keeps the matrix in bfloat16, as its products would round it anyway.
        """
        self.packed = torch.from_numpy(np.asarray(packed))
        self.device = device
        self.dtype = torch.bfloat16 if precision == "bf16" and device.type == "cuda" else torch.float32
        room = SHARE_OF_GPU * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
        self.resident = self._upload() if self.packed.numel() * self.dtype.itemsize < room else None

    def __len__(self) -> int:
        return len(self.packed)

    @property
    def num_features(self) -> int:
        """D."""
        return self.packed.shape[1]

    def _upload(self) -> Tensor:
        """The matrix in the memory of the device, (N, D), its rows aligned."""
        resident = torch.zeros(len(self), _aligned(self.num_features), dtype=self.dtype, device=self.device)
        resident = resident[:, : self.num_features]
        for part in _parts(slice(0, len(self))):
            resident[part].copy_(self.packed[part])
        return resident

    def batches(self, positions: Sequence[Tensor]) -> Iterator[Tensor]:
        """The rows at each of these positions.

        Args:
            positions: int64 tensors, shape (B,) each.
        Yields:
            (B, D) on the device. On a CPU its memory is used again for the next batch.
        """
        if self.resident is not None:
            yield from (self.resident.index_select(0, batch.to(self.device)) for batch in positions)
            return
        positions = [batch.cpu() for batch in positions]
        if self.device.type == "cuda":
            loader = DataLoader(
                _Gathered(self.packed, positions), batch_size=None, num_workers=LOADERS, pin_memory=True
            )
            yield from (rows.to(self.device, non_blocking=True) for rows in loader)
            return
        longest = max(map(len, positions), default=0)
        buffer = torch.empty(longest, _aligned(self.num_features))[:, : self.num_features]
        for batch in positions:
            yield torch.index_select(self.packed, 0, batch, out=buffer[: len(batch)]).to(self.device)

    def blocks(self, share: slice) -> Iterator[Tensor]:
        """A share of the rows in their order, PASS_ROWS at a time, (B, D) on the device."""
        source = self.packed if self.resident is None else self.resident
        return (source[part].to(self.device) for part in _parts(share))


def _parts(share: slice) -> list[slice]:
    """PASS_ROWS at a time; one empty part of nothing, so that a rank without a share still takes part."""
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
        function: (B, D) -> a tensor (B, ...) or a tuple of such.
        rows: N utterances, on the network's device.
        precision: `fp32` or `bf16`.
        own: return only the rank's share.
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
