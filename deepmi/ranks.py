"""Ranks: the processes of one run under torchrun. Without torchrun there is one rank; these functions do nothing."""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.autograd import Function
from torch.nn.parallel import DistributedDataParallel

from deepmi.process import notify, num_ranks, rank
from deepmi.runtime import seed_everything
from deepmi.seeds import derived_seed

T = TypeVar("T")
JOIN_PATIENCE = 10  # seconds of waiting for the other ranks before a note


def join_ranks() -> None:
    """Connect to the other ranks: gloo between CPUs, NCCL between GPUs."""
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    note = threading.Timer(JOIN_PATIENCE, notify, [f"note: waiting for {num_ranks()} processes to connect at {where}."])
    note.daemon = True
    note.start()
    # Long, because the other ranks wait while rank 0 packs the features of a large corpus.
    distributed.init_process_group(backend, timeout=datetime.timedelta(days=7))
    note.cancel()


def _meet() -> None:
    """Wait for every rank."""
    sum_over_ranks(torch.zeros(1))  # on the CPU, which every rank has


def leave_ranks() -> None:
    """Disconnect from the other ranks when all are done."""
    _meet()
    distributed.destroy_process_group()


def on_every_rank(main: Callable) -> Callable:
    """Decorator for the main function of a script that runs under torchrun; otherwise it changes nothing."""

    @functools.wraps(main)
    def joined(args):
        if num_ranks() == 1:
            return main(args)
        join_ranks()
        status = main(args)
        leave_ranks()
        return status

    joined.runs_on_every_rank = True
    return joined


@contextlib.contextmanager
def first_rank_first() -> Iterator[None]:
    """Rank 0 executes the block first; the other ranks then find the files that it wrote."""
    if rank() > 0:
        _meet()
    yield
    if rank() == 0:
        _meet()


def own_share(count: int) -> slice:
    """The part of `count` items that belongs to this rank; the sizes of all parts differ by one at most."""
    return slice(count * rank() // num_ranks(), count * (rank() + 1) // num_ranks())


def from_first_rank(make: Callable[[], T]) -> T:
    """Call `make` on rank 0 only, and return its result on every rank."""
    if num_ranks() == 1:
        return make()
    box = [make() if rank() == 0 else None]
    distributed.broadcast_object_list(box, device="cpu")
    return box[0]


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of the tensors of all ranks, on every rank."""
    if num_ranks() == 1:
        return tensor
    total = tensor.clone(memory_format=torch.contiguous_format)  # else gloo also sums the gaps between strided rows
    distributed.all_reduce(total)
    return total


def whole_of_shares(own: Tensor, count: int) -> Tensor:
    """The shares of all ranks put together, shape (count, ...), on every rank.

    Args:
        own: the share of this rank, shape (size of `own_share(count)`, ...).
        count: number of rows over all ranks.
    """
    if num_ranks() == 1:
        return own
    whole = own.new_zeros(count, *own.shape[1:])
    whole[own_share(count)] = own
    return sum_over_ranks(whole)


def seed_own_dropout(seed: int, *place: int | str) -> None:
    """Seed every rank except the first differently, so that no two ranks drop the same units."""
    if rank() > 0:
        seed_everything(derived_seed(seed, "dropout", *place, rank()))


def copy_from_first_rank(tensor: Tensor) -> None:
    """Overwrite a random tensor by that of rank 0, because GPU models differ in what they draw from the same seed."""
    if num_ranks() > 1:
        distributed.broadcast(tensor, 0)


class _WholeBatch(Function):
    @staticmethod
    def forward(context, own: Tensor, count: int) -> Tensor:
        context.share = own_share(count)
        return whole_of_shares(own, count)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[context.share], None


def whole_batch(own: Tensor, count: int) -> Tensor:
    """`whole_of_shares` with a gradient, for a loss that needs the whole batch, such as CCC.

    In the backward pass each rank keeps the gradient of its own share.
    """
    return own if num_ranks() == 1 else _WholeBatch.apply(own, count)


def over_ranks(model: nn.Module, in_parts: bool = False) -> nn.Module:
    """The model, with gradients averaged over the ranks in every backward pass.

    Args:
        model: the network.
        in_parts: whether a pass may leave some of its weights without a gradient.
    """
    if num_ranks() == 1:
        return model
    return DistributedDataParallel(model, find_unused_parameters=in_parts)
