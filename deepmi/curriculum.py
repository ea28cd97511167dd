"""Which utterances the curriculum regressor sees at which epoch, and at which learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from deepmi.process import UserError, notify
from deepmi.seeds import derived_seed

ORDERS = ("deepmi", "deepmi-balanced", "random", "reverse", "none")
METRIC_ORDERS = ("deepmi", "deepmi-balanced", "reverse")  # those that need a metric
RIVAL_ORDERS = ("agreement", "selftaught", "prediction")  # by other values than DeepMI
RIDGE = "ridge"  # not an order: a ridge regression in place of the network
COMPARED = (*ORDERS, *RIVAL_ORDERS, RIDGE)
NUM_BINS = 10
EPOCHS_PER_BIN = 5
FULL_EPOCH = (NUM_BINS - 1) * EPOCHS_PER_BIN  # the first that has the whole set, whatever the pacing
# Share of what comes after the first tenth, by the share of the epochs before FULL_EPOCH that are over.
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
    """The metric's value of each utterance, joined by file name.

    Args:
        metric: DeepMI or another value by file name.
        utterances: those to train on, N of them.
        source: the metric's file, for the messages.
        train: every utterance of the label file's Train split, with or without features; by default `utterances`.
        skip_missing: whether the metric may lack utterances; how many is reported.
    Returns:
        float64, shape (N,), NaN where the metric lacks an utterance.
    Raises:
        UserError: the metric lacks an utterance (all of them, with `skip_missing`), or has one that is not in `train`.
    """
    known = set(utterances if train is None else train)
    lacking = [name for name in utterances if name not in metric]
    unknown = [name for name in metric if name not in known]
    if lacking and skip_missing and not unknown and len(lacking) < len(utterances):
        notify(
            f"warning: {source}: no value for {len(lacking)} of {len(utterances)} Train utterances "
            f"({', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''}); left out."
        )
    elif lacking or unknown:
        parts = [
            f"{what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for what, names in (
                (f"lacks {len(lacking)} of them", lacking),
                (f"has {len(unknown)} besides", unknown),
            )
            if names
        ]
        raise UserError(
            f"{source}: made for a Train split different from these {len(utterances)} utterances: it "
            f"{' and '.join(parts)}. Run extract_DeepMI.py on this corpus, or name its metric with --metric FILE"
            + (", or leave out what it lacks with --skip-missing." if not (unknown or skip_missing) else ".")
        )
    return np.array([metric.get(name, math.nan) for name in utterances])


def training_order(
    order: str, utterances: Sequence[str], values: NDArray | None, seed: int, levels: NDArray | None = None
) -> NDArray[np.int64]:
    """Positions of the utterances, the first to be trained first.

    Args:
        order: `deepmi` (highest value first), `deepmi-balanced` (highest first within each emotion level, every level
            with the same share of every bin), `reverse` (lowest first), one of RIVAL_ORDERS (highest first), `random`
            or `none` (both drawn or kept without looking at the values).
        utterances: file names, N of them; they break ties, so it does not matter how they came.
        values: DeepMI, or what the rival goes by (less error, less disagreement: higher), shape (N,); None where the
            order needs none. Utterances whose value is NaN are left out.
        seed: of `random`.
        levels: emotion level of each utterance, shape (N,), for `deepmi-balanced`.
    Returns:
        Each position once, int64, shape (N,), fewer where values are NaN.
    Source: Lin, Sridhar & Busso (2024); ties: docs/differences.md, difference 4.
    """
    names = np.asarray(utterances, dtype=str)
    by_name = np.argsort(names, kind="stable")
    if order == "none":
        return by_name
    if order == "random":
        return np.random.default_rng(derived_seed(seed, "random order")).permutation(by_name)
    if order in METRIC_ORDERS + RIVAL_ORDERS:
        values = np.asarray(values)
        ranked = np.lexsort((names, values * (1 if order == "reverse" else -1)))
        ranked = ranked[~np.isnan(values[ranked])]
        return _spread_levels(ranked, np.asarray(levels)) if order == "deepmi-balanced" else ranked
    raise ValueError(f"order {order!r}, expected one of {', '.join(ORDERS + RIVAL_ORDERS)}")


def _spread_levels(ranked: NDArray[np.int64], levels: NDArray) -> NDArray[np.int64]:
    """The utterances by their rank within their emotion level, as a share of that level; equal shares as they came."""
    share = np.empty(len(levels))
    for level in np.unique(levels):
        rows = ranked[levels[ranked] == level]
        share[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return ranked[np.argsort(share[ranked], kind="stable")]


def training_size(order: str, epoch: int, total: int, pacing: str = "paper") -> int:
    """How many utterances, from the first, an epoch trains on.

    Args:
        order: `none` has the whole set from the start.
        epoch: counted from 0; from FULL_EPOCH (45) on it is the whole set.
        total: N utterances.
        pacing: `paper`, ten cumulative bins of int(level / 10 * N), five epochs each; or one of PACING_FAMILIES, which
            start with a tenth too, and grow every epoch (`step`: not until FULL_EPOCH).
    Returns:
        1..N.
    Source: Lin, Sridhar & Busso (2024); Wu, Dyer & Neyshabur (2021).
    """
    if order == "none" or epoch >= FULL_EPOCH:
        return total
    if pacing == "paper":
        size = int((epoch // EPOCHS_PER_BIN + 1) / NUM_BINS * total)
    else:
        size = int(total / NUM_BINS + total * (1 - 1 / NUM_BINS) * PACING_FAMILIES[pacing](epoch / FULL_EPOCH))
    return min(max(size, 1), total)


def bin_sizes(total: int) -> list[int]:
    """Utterances that each of the ten bins of the paper's pacing trains on, the bins before it included."""
    return [training_size("deepmi", number * EPOCHS_PER_BIN, total) for number in range(NUM_BINS)]


def learning_rate(epoch: int) -> float:
    """Adam's learning rate at an epoch (counted from 0): 1e-3, halved at epochs 4, 9, ..., 44."""
    return LEARNING_RATE * 0.5 ** sum(epoch >= milestone for milestone in HALVING_EPOCHS)
