"""Which utterances the curriculum regressor sees at which epoch, and at which learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from runtime import UserError, derived_seed

ORDERS = ("deepmi", "deepmi-balanced", "random", "reverse", "none")
METRIC_ORDERS = ("deepmi", "deepmi-balanced", "reverse")  # those that need a metric
NUM_BINS = 10
EPOCHS_PER_BIN = 5
LEARNING_RATE = 1e-3
HALVING_EPOCHS = range(4, 45, 5)


def match_metric(metric: Mapping[str, float], utterances: Sequence[str], source: object) -> NDArray[np.float64]:
    """The metric's value of each utterance, joined by file name.

    Raises:
        UserError: the metric lacks an utterance, or has one that is not among them.
    """
    known = set(utterances)
    lacking = [name for name in utterances if name not in metric]
    unknown = [name for name in metric if name not in known]
    if lacking or unknown:
        parts = [
            f"{what} {len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for what, names in (("lacks", lacking), ("has unknown", unknown))
            if names
        ]
        raise UserError(
            f"{source}: made for another Train split: it {' and '.join(parts)} of {len(known)} training files. "
            "Run extract_DeepMI.py on this corpus, or name its metric with --metric FILE."
        )
    return np.array([metric[name] for name in utterances])


def training_order(
    order: str, utterances: Sequence[str], values: NDArray | None, seed: int, levels: NDArray | None = None
) -> NDArray[np.int64]:
    """Positions of the utterances, the first to be trained first.

    Args:
        order: `deepmi` (highest value first), `deepmi-balanced` (highest first within each emotion level, every level
            with the same share of every bin), `reverse` (lowest first), `random` or `none` (both drawn or kept without
            looking at the values).
        utterances: file names, N of them; they break ties, so it does not matter how they came.
        values: DeepMI, shape (N,); None where the order needs none.
        seed: of `random`.
        levels: emotion level of each utterance, shape (N,), for `deepmi-balanced`.
    Returns:
        A permutation, int64, shape (N,).
    Source: Lin, Sridhar & Busso (2024); ties: README, difference 4.
    """
    names = np.asarray(utterances, dtype=str)
    by_name = np.argsort(names, kind="stable")
    if order == "none":
        return by_name
    if order == "random":
        return np.random.default_rng(derived_seed(seed, 0)).permutation(by_name)
    if order in METRIC_ORDERS:
        ranked = np.lexsort((names, np.asarray(values) * (1 if order == "reverse" else -1)))
        return _spread_levels(ranked, np.asarray(levels)) if order == "deepmi-balanced" else ranked
    raise ValueError(f"order {order!r}, expected one of {', '.join(ORDERS)}")


def _spread_levels(ranked: NDArray[np.int64], levels: NDArray) -> NDArray[np.int64]:
    """The utterances by their rank within their emotion level, as a share of that level; equal shares as they came."""
    share = np.empty(len(ranked))
    for level in np.unique(levels):
        rows = ranked[levels[ranked] == level]
        share[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return ranked[np.argsort(share[ranked], kind="stable")]


def training_size(order: str, epoch: int, total: int) -> int:
    """How many utterances, from the first, an epoch trains on.

    Ten cumulative bins of int(level / 10 * N), five epochs each, the whole set from epoch 45 (counted from 0). The
    order `none` has the whole set from the start. At least one utterance.
    """
    level = min(epoch // EPOCHS_PER_BIN + 1, NUM_BINS)
    if order == "none" or level == NUM_BINS:
        return total
    return max(int(level / NUM_BINS * total), 1)


def learning_rate(epoch: int) -> float:
    """Adam's learning rate at an epoch (counted from 0): 1e-3, halved at epochs 4, 9, ..., 44."""
    return LEARNING_RATE * 0.5 ** sum(epoch >= milestone for milestone in HALVING_EPOCHS)
