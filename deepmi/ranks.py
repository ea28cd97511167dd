"""Ranks: the processes of one run under torchrun. Without torchrun there is one, and nothing here does anything."""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import threading
from collections.abc import Callable, Iterator

import torch
from torch import distributed
from torch.autograd import Function
from torch.nn.parallel import DistributedDataParallel

from deepmi.process import notify, num_ranks, rank
from deepmi.runtime import seed_everything
from deepmi.seeds import derived_seed

JOIN_PATIENCE = 10  # seconds without the other ranks after which that is said


def join_ranks() -> None:
    """Meet the other processes: gloo between CPUs, NCCL between GPUs."""
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    note = threading.Timer(JOIN_PATIENCE, notify, [f"note: waiting for {num_ranks()} processes to meet at {where}."])
    note.daemon = True
    note.start()
    # Long: while rank 0 packs the features of a large corpus the others wait.
    distributed.init_process_group(backend, timeout=datetime.timedelta(days=7))
    note.cancel()


def _meet() -> None:
    """Wait until every rank is here."""

    sum_over_ranks(torch.zeros(1))  # on the CPU whatever computes, and so without a GPU for each rank


def leave_ranks() -> None:
    """Part from the other processes once all are done."""

    _meet()
    distributed.destroy_process_group()


def on_every_rank(main: Callable) -> Callable:
    """Decorator of a script's main function that every rank runs; without torchrun it changes nothing."""

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
    """Rank 0 does the block before the others, which then find the files that it wrote."""
    if rank() > 0:
        _meet()
    yield
    if rank() == 0:
        _meet()


def own_share(count: int) -> slice:
    """Which of `count` things this rank does: as many as every other rank, but for one."""
    return slice(count * rank() // num_ranks(), count * (rank() + 1) // num_ranks())


def from_first_rank(make: Callable[[], object]):
    """What `make` returns on rank 0, on every rank; it is called there only."""
    if num_ranks() == 1:
        return make()
    box = [make() if rank() == 0 else None]
    distributed.broadcast_object_list(box, device="cpu")
    return box[0]


def sum_over_ranks(tensor):
    """The sum of every rank's tensor, on every rank."""
    if num_ranks() == 1:
        return tensor
    total = tensor.clone(memory_format=torch.contiguous_format)  # gloo would sum what lies between strided rows
    distributed.all_reduce(total)
    return total


def whole_of_shares(own, count: int):
    """The rows of all ranks, on every rank.

    Args:
        own: tensor, shape (size of `own_share(count)`, ...).
        count: rows of all ranks together.
    """
    if num_ranks() == 1:
        return own
    whole = own.new_zeros(count, *own.shape[1:])
    whole[own_share(count)] = own
    return sum_over_ranks(whole)


def seed_own_dropout(seed: int, *place: int | str) -> None:
    """Give every rank but the first its own random numbers, so that no two drop the same units."""
    if rank() > 0:
        seed_everything(derived_seed(seed, "dropout", *place, rank()))


def as_on_first_rank(tensor):
    """A random tensor of rank 0, on every rank: GPUs of different models draw differently from one seed."""
    if num_ranks() > 1:
        distributed.broadcast(tensor, 0)
    return tensor


def whole_batch(own, count: int):
    """The values of all ranks' parts of a batch, with their gradient: for statistics of the batch, such as CCC.

    Args:
        own: tensor, shape (size of `own_share(count)`,).
        count: size of the whole batch.
    Returns:
        Tensor, shape (count,), the same on every rank. Backward, each rank keeps the gradient of its own part.
    """
    if num_ranks() == 1:
        return own

    class WholeBatch(Function):
        @staticmethod
        def forward(context, part):
            return whole_of_shares(part, count)

        @staticmethod
        def backward(context, gradient):
            return gradient[own_share(count)]

    return WholeBatch.apply(own)


def over_ranks(model, in_parts: bool = False):
    """The model, its gradients averaged over the ranks in every backward pass.

    Args:
        model: the network.
        in_parts: whether a pass may leave some of its weights without a gradient.
    """
    if num_ranks() == 1:
        return model
    return DistributedDataParallel(model, find_unused_parameters=in_parts)
