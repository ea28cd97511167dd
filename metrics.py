"""Concordance correlation coefficient (CCC), its loss, and bootstrap intervals. Population moments throughout."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def concordance_cc(truth: ArrayLike, prediction: ArrayLike) -> float:
    r"""Concordance correlation coefficient.

    $\frac{2\,cov(x, y)}{var(x) + var(y) + (\bar x - \bar y)^2}$ with moments over N, not N - 1.

    Args:
        truth: labels, shape (N,).
        prediction: predictions, shape (N,), in the same unit.
    Returns:
        A value in [-1, 1]; NaN if both are constant and equal, where it is not defined.
    Raises:
        ValueError: different lengths, or no samples.
    Source: L. I. Lin, Biometrics 45 (1989); 1/N moments, see the README, difference 6.
    """
    x = np.asarray(truth, dtype=np.float64)
    y = np.asarray(prediction, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"truth and prediction differ in shape: {x.shape} != {y.shape}")
    if x.size == 0:
        raise ValueError("CCC of no samples")
    return float(_ccc(_sums(x - x.mean(), y - x.mean()).sum(axis=0)))


def ccc_loss(prediction, truth):
    """1 - CCC of a batch, with its gradient.

    Args:
        prediction: torch tensor, shape (B,).
        truth: torch tensor, shape (B,), in the same unit.
    Returns:
        Scalar tensor in [0, 2]; 1 where the CCC is not defined (both constant and equal, e.g. one perfect sample).
    Source: as `concordance_cc`.
    """
    x, y = prediction.float(), truth.float()
    dx, dy = x - x.mean(), y - y.mean()
    covariance = (dx * dy).mean()
    scale = (dx * dx).mean() + (dy * dy).mean() + (x.mean() - y.mean()) ** 2
    return 1 - 2 * covariance / scale.clamp_min(1e-12)


def bootstrap_interval(
    truth: ArrayLike,
    prediction: ArrayLike,
    groups: Sequence[str] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 31,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the CCC.

    Args:
        truth: labels, shape (N,).
        prediction: predictions, shape (N,).
        groups: what belongs together, one name an utterance (a speaker's utterances are not independent): groups are
            drawn, then utterances within each drawn group, so that few groups still give an interval. None draws
            utterances.
        resamples: number of bootstrap samples.
        level: coverage, 0..1.
        seed: of the draws.
    Returns:
        (low, high).
    Source: Davison & Hinkley, Bootstrap Methods and their Application (1997), section 3.8.
    """
    values = bootstrap_cccs(truth, [prediction], groups, resamples, seed)[:, 0]
    return percentile_interval(values, level)


def percentile_interval(values: NDArray, level: float = 0.95) -> tuple[float, float]:
    """(low, high) between which the middle `level` of the values lies, those that are NaN aside; NaN if all are."""
    if np.isnan(values).all():
        return float("nan"), float("nan")
    tail = 50 * (1 - level)
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return float(low), float(high)


def bootstrap_cccs(
    truth: ArrayLike,
    predictions: Sequence[ArrayLike],
    groups: Sequence[str] | None = None,
    resamples: int = 2000,
    seed: int = 31,
) -> NDArray[np.float64]:
    """CCC of several predictions of one test set on the same bootstrap samples, so that they can be compared in pairs.

    Args:
        truth: labels, shape (N,).
        predictions: S predictions, shape (N,) each.
        groups, resamples, seed: as for `bootstrap_interval`.
    Returns:
        Shape (resamples, S); NaN where a sample has no CCC.
    Source: as `bootstrap_interval`.
    """
    x = np.asarray(truth, dtype=np.float64)
    group = np.zeros(len(x), dtype=int) if groups is None else np.unique(list(groups), return_inverse=True)[1]
    by_group = np.argsort(group, kind="stable")
    sums = [_sums(x - x.mean(), np.asarray(y, dtype=np.float64) - x.mean())[by_group] for y in predictions]  # (N, 6)
    sizes = np.bincount(group)
    starts = np.cumsum(sizes) - sizes
    rng = np.random.default_rng(seed)
    values = np.empty((resamples, len(sums)))
    for sample in range(resamples):
        drawn = rng.integers(0, len(sizes), len(sizes))
        size = np.repeat(sizes[drawn], sizes[drawn])
        utterances = np.repeat(starts[drawn], sizes[drawn]) + rng.integers(0, size)
        times = np.bincount(utterances, minlength=len(x))
        values[sample] = [_ccc(times @ of_one) for of_one in sums]
    return values


def _sums(x: NDArray, y: NDArray) -> NDArray:
    """Per utterance: 1, x, y, x^2, y^2, xy; their sums over any set give its CCC."""
    return np.column_stack([np.ones_like(x), x, y, x * x, y * y, x * y])


def _ccc(sums: NDArray) -> float:
    n, x, y, xx, yy, xy = sums
    mean_x, mean_y = x / n, y / n
    scale = (xx + yy) / n - 2 * mean_x * mean_y
    # scale is var(x) + var(y) + (mean_x - mean_y)^2, with the cross terms cancelled by hand
    return float("nan") if scale <= 0 else 2 * (xy / n - mean_x * mean_y) / scale
