"""The curriculum of stage 3 as a sampler for any PyTorch trainer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import distributed
from torch.utils.data import Sampler

from deepmi.curriculum import (
    EPOCHS_PER_BIN,
    METRIC_ORDERS,
    NUM_BINS,
    ORDERS,
    PACINGS,
    Schedule,
    training_order,
)
from deepmi.metric import read_metric, warn_if_flat
from deepmi.process import UserError, first_few, notify
from deepmi.seeds import SEED, derived_seed


class CurriculumSampler(Sampler):
    """Positions of the utterances that an epoch trains on, in random order, from high to low DeepMI over the epochs.

    Call `set_epoch` before each epoch, as for `torch.utils.data.DistributedSampler`. On the CPU, an epoch has the same
    utterances in the same order as the epoch of `training_Curriculum.py` with the same settings.

    Args:
        metric: DeepMI file, or file name -> value (a dict or a pandas Series); any number per utterance will do, and
            what is not finite counts as missing. High values are trained first. Not used by the orders `random` and
            `none`, which take None.
        names: file names of the dataset, N of them, in its order, written as in the metric. Names in the metric that
            are not in the dataset are ignored.
        order: one of `deepmi.curriculum.ORDERS`.
        levels: emotion level per utterance, shape (N,), for `deepmi-balanced`; see `deepmi.emotion_levels`.
        pacing: one of `deepmi.curriculum.PACINGS`.
        bins: number of bins.
        epochs_per_bin: epochs before the next bin is added.
        seed: of the batches, and of the order `random`.
        num_replicas: number of processes; by default that of torch.distributed, or 1 if it is not initialised.
        rank: number of this process, counted from 0; by default that of torch.distributed, or 0.
        drop_last: whether an epoch that cannot be split evenly loses its last utterances. By default its first ones are
            used twice, so that all processes get the same number.
        skip_missing: leave out utterances without a value, with a warning, instead of raising an error.
    Raises:
        UserError: the metric cannot be read, or lacks utterances.
        ValueError: an unknown order or pacing, `metric` or `levels` is missing, there are not N levels, or a number is
            too small.
    Source: Lin, Sridhar & Busso (2024).

    >>> sampler = CurriculumSampler({"a.wav": 0.1, "b.wav": 0.3, "c.wav": 0.2}, ["a.wav", "b.wav", "c.wav"], bins=3)
    >>> list(sampler), len(sampler)
    ([1], 1)
    >>> sampler.set_epoch(5)
    >>> sorted(sampler)
    [1, 2]
    """

    def __init__(
        self,
        metric: PathLike[str] | str | Mapping[str, float] | None,
        names: Sequence[str],
        order: str = "deepmi",
        *,
        levels: ArrayLike | None = None,
        pacing: str = "paper",
        bins: int = NUM_BINS,
        epochs_per_bin: int = EPOCHS_PER_BIN,
        seed: int = SEED,
        num_replicas: int | None = None,
        rank: int | None = None,
        drop_last: bool = False,
        skip_missing: bool = False,
    ):
        if order not in ORDERS or pacing not in PACINGS:
            raise ValueError(f"order {order!r} with pacing {pacing!r}; expected one of {ORDERS} and one of {PACINGS}")
        if order in METRIC_ORDERS and metric is None:
            raise ValueError(f"order {order!r} needs a metric")
        if order == "deepmi-balanced" and levels is None:
            raise ValueError("order 'deepmi-balanced' needs the emotion level of each utterance: levels=...")
        if levels is not None and len(levels) != len(names):
            raise ValueError(f"{len(levels)} levels for {len(names)} names")
        if bins < 1 or epochs_per_bin < 1:
            raise ValueError(f"{bins} bins of {epochs_per_bin} epochs; expected at least 1 of each")
        values = _values(metric, names, skip_missing) if order in METRIC_ORDERS else None
        levels = None if levels is None else np.asarray(levels)
        joined = distributed.is_available() and distributed.is_initialized()
        self.num_replicas = num_replicas or (distributed.get_world_size() if joined else 1)
        self.rank = rank if rank is not None else (distributed.get_rank() if joined else 0)
        if not 0 <= self.rank < self.num_replicas:
            raise ValueError(f"rank {self.rank} of {self.num_replicas} processes")
        self.order, self.seed, self.drop_last = order, seed, drop_last
        self.schedule = Schedule(pacing, bins=bins, epochs_per_bin=epochs_per_bin)
        self.ranked = training_order(order, names, values, seed, levels)  # all epochs train on its first positions
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0, of the next iterations and of `len`."""
        self.epoch = epoch

    def positions(self, epoch: int) -> NDArray[np.int64]:
        """What this process trains on in an epoch: positions in the dataset, in the order of training."""
        subset = self.ranked[: self.schedule.size(self.order, epoch, len(self.ranked))]
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "batches", epoch))
        shuffled = subset[torch.randperm(len(subset), generator=generator).numpy()]
        even = self._count(epoch) * self.num_replicas
        return np.resize(shuffled, even)[self.rank :: self.num_replicas]

    def _count(self, epoch: int) -> int:
        """Number of utterances of an epoch for each process."""
        size = self.schedule.size(self.order, epoch, len(self.ranked))
        return size // self.num_replicas if self.drop_last else -(-size // self.num_replicas)

    def __len__(self) -> int:
        return self._count(self.epoch)

    def __iter__(self) -> Iterator[int]:
        return iter(self.positions(self.epoch).tolist())

    def all_epochs(self, epochs: int) -> AllEpochs:
        """The first epochs one after the other, for a trainer that takes all epochs to have the same length."""
        return AllEpochs(self, epochs)


class AllEpochs(Sampler):
    """The epochs of a curriculum one after the other, as one long epoch; from `CurriculumSampler.all_epochs`."""

    def __init__(self, sampler: CurriculumSampler, epochs: int):
        self.sampler, self.epochs = sampler, epochs

    def __len__(self) -> int:
        return sum(map(self.sampler._count, range(self.epochs)))

    def __iter__(self) -> Iterator[int]:
        for epoch in range(self.epochs):
            yield from self.sampler.positions(epoch).tolist()


def _values(
    metric: PathLike[str] | str | Mapping[str, float], names: Sequence[str], skip_missing: bool
) -> NDArray[np.float64]:
    """The metric's value per utterance, NaN where it lacks one."""
    if isinstance(metric, (str, PathLike)):
        source, found = str(metric), read_metric(Path(metric))
    else:
        source, found = "metric", dict(metric)
    values = np.array([found.get(name, np.nan) for name in names], dtype=np.float64)
    values[~np.isfinite(values)] = np.nan
    if missing := [name for name, absent in zip(names, np.isnan(values)) if absent]:
        fault = f"{source}: no finite value for {len(missing)} of {len(names)} utterances ({first_few(missing, 3)})"
        if not skip_missing or len(missing) == len(names):
            example = f"a name in it is {next(iter(found))}" if found else "it is empty"
            remedy = "" if skip_missing else ", or leave them out with skip_missing=True"
            raise UserError(f"{fault}; {example}. Write the names as in the metric{remedy}.")
        notify(f"warning: {fault}; left out.")
    warn_if_flat(values[~np.isnan(values)], source)
    return values
