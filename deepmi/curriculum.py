"""Which utterances the curriculum regressor is trained on in which epoch, and at which learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from deepmi.process import UserError, notify
from deepmi.seeds import derived_seed

ORDERS = ("deepmi", "deepmi-balanced", "random", "reverse", "none")
METRIC_ORDERS = ("deepmi", "deepmi-balanced", "reverse")  # those that need a metric
NUM_BINS = 10
EPOCHS_PER_BIN = 5
FULL_EPOCH = (NUM_BINS - 1) * EPOCHS_PER_BIN  # the first epoch on the whole set, for every pacing
# Share of the utterances after the first tenth, by the share of the epochs before FULL_EPOCH that have passed.
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
HALVING_EPOCHS = range(4, 45, 5)


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

    def some(names: list[str]) -> str:
        return f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"

    known = set(utterances if train is None else train)
    lacking = [name for name in utterances if name not in metric]
    unknown = [name for name in metric if name not in known]
    if unknown or (lacking and not (skip_missing and len(lacking) < len(utterances))):
        found = [f"lacks {len(lacking)} of them {some(lacking)}"] * bool(lacking)
        found += [f"has {len(unknown)} besides them {some(unknown)}"] * bool(unknown)
        raise UserError(
            f"{source}: made for a Train split different from these {len(utterances)} utterances: it "
            f"{' and '.join(found)}. Run extract_DeepMI.py on this corpus, or name its metric with --metric FILE"
            + (", or leave out what it lacks with --skip-missing." if not (unknown or skip_missing) else ".")
        )
    if lacking:
        count = f"{len(lacking)} of {len(utterances)}"
        notify(f"warning: {source}: no value for {count} Train utterances {some(lacking)}; left out.")
    return np.array([metric.get(name, math.nan) for name in utterances])


def training_order(
    order: str, utterances: Sequence[str], values: NDArray | None, seed: int, levels: NDArray | None = None
) -> NDArray[np.int64]:
    """Positions of the utterances in the order of training.

    Args:
        order: `deepmi` (highest value first), `deepmi-balanced` (highest value first within each emotion level, each
            level with the same share of each bin), `reverse` (lowest value first), `random`, or `none` (by name).
        utterances: file names, N of them; they break ties, so the order of this list does not matter.
        values: DeepMI, shape (N,); None where the order needs none. Utterances whose value is NaN are left out.
        seed: of `random`.
        levels: emotion level per utterance, shape (N,), for `deepmi-balanced`.
    Returns:
        Each position once, int64, shape (N,), or fewer where values are NaN.
    Source: Lin, Sridhar & Busso (2024); ties: README, difference 4.

    >>> training_order("deepmi", ["a.wav", "b.wav", "c.wav"], np.array([0.1, 0.3, 0.2]), seed=31)
    array([1, 2, 0])
    """
    names = np.asarray(utterances, dtype=str)
    by_name = np.argsort(names, kind="stable")
    if order == "none":
        return by_name
    if order == "random":
        return np.random.default_rng(derived_seed(seed, "random order")).permutation(by_name)
    if order not in METRIC_ORDERS:
        raise ValueError(f"order {order!r}, expected one of {', '.join(ORDERS)}")
    values = np.asarray(values)
    ranked = np.lexsort((names, values if order == "reverse" else -values))
    ranked = ranked[~np.isnan(values[ranked])]
    return _balanced(ranked, np.asarray(levels)) if order == "deepmi-balanced" else ranked


def _balanced(ranked: NDArray[np.int64], levels: NDArray) -> NDArray[np.int64]:
    """Sort by the rank within the emotion level as a share of that level; ties keep their order."""
    share = np.empty(len(levels))
    for level in np.unique(levels):
        rows = ranked[levels[ranked] == level]
        share[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return ranked[np.argsort(share[ranked], kind="stable")]


def training_size(order: str, epoch: int, total: int, pacing: str = "paper") -> int:
    """Number of utterances, counted from the first, that an epoch trains on.

    Args:
        order: `none` trains on the whole set from the start.
        epoch: counted from 0; from FULL_EPOCH (45) on it is the whole set.
        total: N utterances.
        pacing: `paper`, ten cumulative bins of int(level / 10 * N) with five epochs each; or one of PACING_FAMILIES,
            which start with a tenth too and grow every epoch (`step`: not before FULL_EPOCH).
    Returns:
        1..N.
    Source: Lin, Sridhar & Busso (2024); Wu, Dyer & Neyshabur (2021).

    >>> [training_size("deepmi", epoch, total=1000) for epoch in (0, 4, 5, 44, 45)]
    [100, 100, 200, 900, 1000]
    """
    if order == "none" or epoch >= FULL_EPOCH:
        return total
    if pacing == "paper":
        size = int((epoch // EPOCHS_PER_BIN + 1) / NUM_BINS * total)
    else:
        size = int(total / NUM_BINS + total * (1 - 1 / NUM_BINS) * PACING_FAMILIES[pacing](epoch / FULL_EPOCH))
    return min(max(size, 1), total)


def bin_sizes(total: int) -> list[int]:
    """Size of each of the ten cumulative bins of the paper's pacing."""
    return [training_size("deepmi", number * EPOCHS_PER_BIN, total) for number in range(NUM_BINS)]


def learning_rate(epoch: int) -> float:
    """Adam's learning rate in an epoch (counted from 0): 1e-3, halved at epochs 4, 9, ..., 44."""
    return LEARNING_RATE * 0.5 ** sum(epoch >= milestone for milestone in HALVING_EPOCHS)
