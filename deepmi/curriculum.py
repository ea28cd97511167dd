"""Which utterances the curriculum regressor is trained on in which epoch, and at which learning rate."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepmi.process import UserError, first_few, notify
from deepmi.seeds import derived_seed

ORDERS = ("deepmi", "deepmi-balanced", "random", "reverse", "none")
METRIC_ORDERS = ("deepmi", "deepmi-balanced", "reverse")  # those that need a metric
RIVAL_ORDERS = ("agreement", "selftaught", "prediction")  # by other values than DeepMI
RIDGE = "ridge"  # not an order: a ridge regression in place of the network
DEEPEMOCLUSTER = "deepemocluster"  # not an order: the attribute head of DeepEmoCluster
YARDSTICKS = (RIDGE, DEEPEMOCLUSTER)
BY_DEEPEMOCLUSTER = (*METRIC_ORDERS, "prediction", DEEPEMOCLUSTER)  # those that need a DeepEmoCluster
COMPARED = (*ORDERS, *RIVAL_ORDERS, *YARDSTICKS)
NUM_BINS = 10
EPOCHS_PER_BIN = 5
# Share of what comes after the first bin, by the share of the epochs before the whole set that are over.
# Source: Wu, Dyer & Neyshabur, When Do Curricula Work?, ICLR 2021, table 1, with b = .1 and a T = 45 epochs.
PACING_FAMILIES: dict[str, Callable[[float], float]] = {
    "linear": lambda part: part,
    "quadratic": lambda part: part**2,
    "root": lambda part: part**0.5,
    "exponential": lambda part: math.expm1(10 * part) / math.expm1(10),
    "log": lambda part: 1 + 0.1 * math.log(part + math.exp(-10)),
    "step": lambda part: 0.0,
}
PACINGS = ("paper", *PACING_FAMILIES)
LEARNING_RATE = 1e-3
RATE_DECAYS = ("paper", "late")
SPENT_RATE = 1e-5  # a learning rate at which training is practically over
FEW_STEPS = 300  # training steps; with fewer before SPENT_RATE the schedule does not fit the training set


def match_metric(
    metric: Mapping[str, float],
    utterances: Sequence[str],
    source: object,
    train: Sequence[str] | None = None,
    skip_missing: bool = False,
) -> NDArray[np.float64]:
    """The metric's value per utterance, joined by file name.

    Args:
        metric: file name -> DeepMI or another value.
        utterances: file names to train on, N of them.
        source: the metric's file, for the messages.
        train: every utterance of the Train split, with or without features; by default `utterances`.
        skip_missing: accept a metric that lacks utterances; their number is reported.
    Returns:
        float64, shape (N,), NaN where the metric lacks an utterance.
    Raises:
        UserError: the metric lacks utterances (with `skip_missing`: all of them), or has some that are not in `train`.

    >>> match_metric({"b.wav": 0.25, "a.wav": 0.5}, ["a.wav", "b.wav"], "DeepMI.json")
    array([0.5 , 0.25])
    """
    known = set(utterances if train is None else train)
    lacking = [name for name in utterances if name not in metric]
    unknown = [name for name in metric if name not in known]
    if unknown or (lacking and not (skip_missing and len(lacking) < len(utterances))):
        found = [f"lacks {len(lacking)} of them ({first_few(lacking, 3)})"] * bool(lacking)
        found += [f"has {len(unknown)} besides them ({first_few(unknown, 3)})"] * bool(unknown)
        raise UserError(
            f"{source}: made for a Train split different from these {len(utterances)} utterances: it "
            f"{' and '.join(found)}. Run extract_DeepMI.py on this corpus, or name its metric with --metric FILE"
            + (", or leave out what it lacks with --skip-missing." if not (unknown or skip_missing) else ".")
        )
    if lacking:
        count = f"{len(lacking)} of {len(utterances)}"
        notify(f"warning: {source}: no value for {count} Train utterances ({first_few(lacking, 3)}); left out.")
    return np.array([metric.get(name, math.nan) for name in utterances])


def training_order(
    order: str, utterances: Sequence[str], values: NDArray | None, seed: int, levels: NDArray | None = None
) -> NDArray[np.int64]:
    """Positions of the utterances in the order of training.

    Args:
        order: `deepmi` (highest value first), `deepmi-balanced` (highest first within each emotion level, every level
            with the same share of every bin), `reverse` (lowest first), one of RIVAL_ORDERS (highest first), `random`
            or `none` (both drawn or kept without looking at the values).
        utterances: file names, N of them, in any order.
        values: DeepMI, or what the rival goes by (less error, less disagreement: higher), shape (N,); None where the
            order needs none. Utterances whose value is NaN are left out, and equal values are ordered by `tie_keys`.
        seed: of `random`.
        levels: emotion level per utterance, shape (N,), for `deepmi-balanced`.
    Returns:
        Each position once, int64, shape (N,), fewer where values are NaN.
    Source: Lin, Sridhar & Busso (2024); ties: docs/differences.md, difference 4.

    >>> training_order("deepmi", ["a.wav", "b.wav", "c.wav"], np.array([0.1, 0.3, 0.2]), seed=31)
    array([1, 2, 0])
    """
    names = np.asarray(utterances, dtype=str)
    by_name = np.argsort(names, kind="stable")
    kept = np.ones(len(names), dtype=bool) if values is None else ~np.isnan(values)
    if order == "none":
        return by_name[kept[by_name]]
    if order == "random":
        shuffled = np.random.default_rng(derived_seed(seed, "random order")).permutation(by_name)
        return shuffled[kept[shuffled]]
    if order in METRIC_ORDERS + RIVAL_ORDERS:
        ranked = np.lexsort((tie_keys(utterances), np.asarray(values) * (1 if order == "reverse" else -1)))
        ranked = ranked[kept[ranked]]
        return _spread_levels(ranked, np.asarray(levels)) if order == "deepmi-balanced" else ranked
    raise ValueError(f"order {order!r}, expected one of {', '.join(ORDERS + RIVAL_ORDERS)}")


def tie_keys(utterances: Sequence[str]) -> NDArray[np.uint64]:
    """Sort keys of utterances with equal values: the first 8 bytes of the SHA-256 of the file name, shape (N,).

    File names begin with the speaker or the recording, so an order by name would put few speakers into the first bins.
    """
    digests = (hashlib.sha256(name.encode()).digest()[:8] for name in utterances)
    return np.array([int.from_bytes(digest, "big") for digest in digests], dtype=np.uint64)


def keep_highest(values: NDArray, levels: NDArray, utterances: Sequence[str], share: float) -> NDArray[np.float64]:
    """The values, with NaN for all but the highest ones of each emotion level.

    Args:
        values: DeepMI, shape (N,), NaN where unknown.
        levels: emotion levels, shape (N,).
        utterances: file names, N of them, which break ties.
        share: of each level's known values to keep, rounded up, 0 to 1.
    """
    kept = np.full(len(values), np.nan)
    ranked = np.lexsort((tie_keys(utterances), -values))
    ranked = ranked[~np.isnan(values[ranked])]
    for level in np.unique(levels[ranked]):
        rows = ranked[levels[ranked] == level]
        rows = rows[: math.ceil(share * len(rows))]
        kept[rows] = values[rows]
    return kept


def _spread_levels(ranked: NDArray[np.int64], levels: NDArray) -> NDArray[np.int64]:
    """The utterances by their rank within their emotion level, as a share of that level; equal shares as they came."""
    share = np.empty(len(levels))
    for level in np.unique(levels):
        rows = ranked[levels[ranked] == level]
        share[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return ranked[np.argsort(share[ranked], kind="stable")]


@dataclass(frozen=True)
class Schedule:
    """Number of utterances and learning rate of each epoch. The defaults are those of the paper.

    Attributes:
        pacing: `paper` for cumulative bins of int(level / bins * N), or one of PACING_FAMILIES, which start with the
            first bin too and grow every epoch (`step`: not until the whole set).
        decay: `paper` halves the learning rate in the last epoch of every bin but the last; `late` keeps it until the
            whole set is in, and halves it every `epochs_per_bin` epochs from then on.
        bins: number of bins.
        epochs_per_bin: epochs before the next bin is added.
    Source: Lin, Sridhar & Busso (2024); Wu, Dyer & Neyshabur (2021).
    """

    pacing: str = "paper"
    decay: str = "paper"
    bins: int = NUM_BINS
    epochs_per_bin: int = EPOCHS_PER_BIN

    @property
    def full_epoch(self) -> int:
        """The first epoch that trains on the whole set: 45."""
        return (self.bins - 1) * self.epochs_per_bin

    def size(self, order: str, epoch: int, total: int) -> int:
        """How many of `total` utterances, from the first, an epoch (counted from 0) trains on; all for order `none`.

        >>> [Schedule().size("deepmi", epoch, 1000) for epoch in (0, 4, 5, 44, 45)]
        [100, 100, 200, 900, 1000]
        """
        if order == "none" or epoch >= self.full_epoch:
            return total
        if self.pacing == "paper":
            size = int((epoch // self.epochs_per_bin + 1) / self.bins * total)
        else:
            part = PACING_FAMILIES[self.pacing](epoch / self.full_epoch)
            size = int(total / self.bins + total * (1 - 1 / self.bins) * part)
        return min(max(size, 1), total)

    def learning_rate(self, epoch: int) -> float:
        """Adam's learning rate at an epoch: 1e-3, halved as `decay` says.

        >>> Schedule().learning_rate(4), Schedule(decay="late").learning_rate(49)
        (0.0005, 0.001)
        """
        if self.decay == "paper":
            halvings = min((epoch + 1) // self.epochs_per_bin, self.bins - 1)
        else:
            halvings = max(0, epoch - self.full_epoch) // self.epochs_per_bin
        return LEARNING_RATE * 0.5**halvings

    def steps_before_spent(self, order: str, total: int, batch_size: int, epochs: int) -> int:
        """Training steps until the learning rate is below SPENT_RATE."""
        useful = itertools.takewhile(lambda epoch: self.learning_rate(epoch) >= SPENT_RATE, range(epochs))
        return sum(math.ceil(self.size(order, epoch, total) / batch_size) for epoch in useful)


def places_and_bins(order: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each utterance (place in the order, from 1; first bin that includes it, 1..10), shape (N,) each."""
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(1, len(order) + 1)
    return places, np.searchsorted(bin_sizes(len(order)), places) + 1


def bin_sizes(total: int) -> list[int]:
    """Utterances that each of the ten bins of the paper's pacing trains on, including the bins before it."""
    return [Schedule().size("deepmi", number * EPOCHS_PER_BIN, total) for number in range(NUM_BINS)]
