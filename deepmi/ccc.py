"""Concordance correlation coefficient (CCC), its loss and its bootstrap intervals. Moments are over N, not N - 1."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000
FEW = 10  # speakers, or utterances: an interval from fewer is approximate
UNKNOWN_SPEAKER = "Unknown"  # in label tables


def concordance_cc(truth: ArrayLike, prediction: ArrayLike) -> float:
    r"""Concordance correlation coefficient.

    $\frac{2\,cov(x, y)}{var(x) + var(y) + (\bar x - \bar y)^2}$

    Args:
        truth: labels, shape (N,).
        prediction: predictions in the same unit, shape (N,).
    Returns:
        A value in [-1, 1]; NaN if both are constant and equal, where it is not defined.
    Raises:
        ValueError: different lengths, or no samples.
    Source: L. I. Lin, Biometrics 45 (1989); moments over N, see docs/differences.md, difference 6.

    >>> round(concordance_cc([1, 2, 3], [2, 3, 4]), 4)
    0.5714
    """
    x = np.asarray(truth, dtype=np.float64)
    y = np.asarray(prediction, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"truth and prediction differ in shape: {x.shape} != {y.shape}")
    if x.size == 0:
        raise ValueError("CCC of no samples")
    return float(ccc_of_sums(moment_sums(x - x.mean(), y - x.mean()).sum(axis=0)))


def ccc_loss(prediction, truth):
    """1 - CCC of a batch, with its gradient.

    Args:
        prediction: torch tensor, shape (B,).
        truth: torch tensor in the same unit, shape (B,).
    Returns:
        Scalar tensor in [0, 2]; 1 where the CCC is not defined (both constant and equal, e.g. one perfect sample).
    Source: as `concordance_cc`.
    """
    x, y = prediction.float(), truth.float()
    dx, dy = x - x.mean(), y - y.mean()
    covariance = (dx * dy).mean()
    scale = (dx * dx).mean() + (dy * dy).mean() + (x.mean() - y.mean()) ** 2
    return 1 - 2 * covariance / scale.clamp_min(1e-12)


def interval_by_speaker(
    truth: ArrayLike, prediction: ArrayLike, speakers: Sequence[str], names: Sequence[str], seed: int
) -> tuple[tuple[float, float], str]:
    """The 95 % bootstrap interval, by speaker where several are known.

    Args:
        truth, prediction: shape (N,) each.
        speakers, names: as for `bootstrap_groups`.
        seed: of the resampling.
    Returns:
        ((low, high), one line that describes the interval).
    """
    groups, drawn, warning = bootstrap_groups(speakers, names)
    low, high = bootstrap_interval(truth, prediction, groups, seed=seed)
    line = f"95 % bootstrap interval: {low:.3f} .. {high:.3f} ({RESAMPLES} resamples of {drawn})"
    return (low, high), line + warning


def speaker_groups(speakers: Sequence[str], names: Sequence[str]) -> list[str]:
    """The group of each utterance: its speaker, or its own file name if the speaker is not known."""
    return [name if who == UNKNOWN_SPEAKER else f"speaker {who}" for who, name in zip(speakers, names)]


def bootstrap_groups(speakers: Sequence[str], names: Sequence[str]) -> tuple[list[str] | None, str, str]:
    """What the bootstrap resamples: whole speakers where several are known, else single utterances.

    Args:
        speakers: speaker of each utterance, UNKNOWN_SPEAKER where it is not known; N of them.
        names: file name of each utterance.
    Returns:
        (group of each utterance, or None to resample utterances; what is resampled, in words; a warning where there
        are too few groups, else empty).
    """
    known = len({*speakers} - {UNKNOWN_SPEAKER})
    unknown = list(speakers).count(UNKNOWN_SPEAKER)
    groups, count, unit = None, len(names), "utterance"
    drawn = f"{count} utterance{'s' * (count != 1)}"
    if known == 1 and not unknown:
        return groups, drawn, "; only 1 speaker: this interval says nothing about other speakers"
    if known:
        groups = speaker_groups(speakers, names)
        count, unit = known, "speaker"
        drawn = f"{known} whole speaker{'s' * (known != 1)}"
        drawn += f" and {unknown} utterance{'s' * (unknown != 1)} of unknown speakers" if unknown else ""
        drawn += ", no narrower than for single utterances"
    warning = f"; only {count} {unit}{'s' * (count != 1)}: treat this interval as approximate"
    return groups, drawn, warning if count < FEW else ""


def bootstrap_interval(
    truth: ArrayLike,
    prediction: ArrayLike,
    groups: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 31,
) -> tuple[float, float]:
    """Bootstrap interval of the CCC, for new utterances of new speakers.

    Args:
        truth, prediction: shape (N,) each.
        groups: group of each utterance, usually its speaker, since utterances of one speaker are not independent. None
            resamples single utterances.
        resamples: number of bootstrap samples.
        level: coverage, 0..1.
        seed: of the resampling.
    Returns:
        (low, high) within -1..1, never narrower than the interval of single utterances.
    Source: as `widened_cccs`; coverage in benchmarks/coverage.py.

    >>> labels, predictions = [1, 2, 3, 4, 5, 6], [2, 2, 3, 5, 5, 6]
    >>> low, high = bootstrap_interval(labels, predictions, groups=["a", "a", "b", "b", "c", "c"])
    >>> low < concordance_cc(labels, predictions) < high
    True
    """
    draws = widened_cccs(truth, [prediction], groups, resamples, level, seed)
    return widest_interval([draw[:, 0] for draw in draws], level)


def widest_interval(draws: Sequence[NDArray], level: float = 0.95, limit: float = 1.0) -> tuple[float, float]:
    """The lowest and the highest bound of several percentile intervals, within -limit..limit."""
    bounds = [percentile_interval(values, level) for values in draws]
    low, high = min(low for low, _ in bounds), max(high for _, high in bounds)
    return float(np.clip(low, -limit, limit)), float(np.clip(high, -limit, limit))


def percentile_interval(values: NDArray, level: float = 0.95) -> tuple[float, float]:
    """(low, high) of the middle `level` of the values, NaN left out; (NaN, NaN) if all are NaN."""
    if np.isnan(values).all():
        return float("nan"), float("nan")
    tail = 50 * (1 - level)
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return float(low), float(high)


def widening(sizes: ArrayLike, level: float = 0.95) -> float:
    r"""Factor by which a bootstrap sample's distance from the estimate is multiplied, to correct for few groups.

    A percentile interval of G groups is too narrow by $\sqrt{(G - 1) / G}$, and its percentiles are those of a normal
    distribution where Student's t with G - 1 degrees of freedom applies. For groups of unequal size G is the
    effective number $(\sum n)^2 / \sum n^2$, but at least 2: one group says nothing about other groups.

    Args:
        sizes: utterances in each group, shape (G,).
        level: coverage of the interval, 0..1.
    Returns:
        9.2 for two groups of the same size, 1.2 for ten, near 1 for many.
    Source: the factor is that of Hesterberg's expanded percentile interval, The American Statistician 69 (2015), which
        moves the percentiles instead; few groups have too few different bootstrap samples for that. Effective number:
        Kish, Survey Sampling (1965).
    """
    sizes = np.asarray(sizes, dtype=np.float64)
    effective = max(2.0, sizes.sum() ** 2 / (sizes**2).sum())
    tail = (1 + level) / 2
    quantiles = student_t_quantile(tail, effective - 1) / NormalDist().inv_cdf(tail)
    return float(quantiles * np.sqrt(effective / (effective - 1)))


def student_t_quantile(probability: float, freedom: float) -> float:
    """Quantile of Student's t distribution, without SciPy.

    Args:
        probability: 0.5 to 1, exclusive.
        freedom: degrees of freedom, at least 1 and not necessarily an integer.
    Source: with x = sqrt(freedom) tan(angle) the density is proportional to cos(angle)^(freedom - 1), which the
        trapezoidal rule integrates.
    """
    angle = np.linspace(0, np.pi / 2, 2**17 + 1)
    density = np.cos(angle) ** (freedom - 1)
    cumulative = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return float(np.sqrt(freedom) * np.tan(np.interp(2 * probability - 1, cumulative / cumulative[-1], angle)))


def widened_cccs(
    truth: ArrayLike,
    predictions: Sequence[ArrayLike],
    groups: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 31,
) -> list[NDArray[np.float64]]:
    """Bootstrap samples whose percentiles bound an interval: of utterances and, where they are given, of groups.

    Groups that agree by chance would make an interval too narrow, so `widest_interval` takes the bounds of both.

    Args:
        truth, predictions, groups, resamples, seed: as for `bootstrap_cccs`.
        level: coverage of the interval, 0..1.
    Returns:
        One or two arrays of shape (resamples, S): `bootstrap_cccs`, widened by `widening` about the CCC of the data.
    Source: Davison & Hinkley, Bootstrap Methods and their Application (1997), section 3.8, for keeping groups whole;
        Field & Welsh, Journal of the Royal Statistical Society B 69 (2007), for the consistency of doing so.
    """
    estimates = np.array([concordance_cc(truth, prediction) for prediction in predictions])
    draws = []
    for units in (None,) if groups is None else (None, groups):
        factor = widening(np.bincount(_numbered(units, len(truth))), level)
        samples = bootstrap_cccs(truth, predictions, units, resamples, seed)
        draws.append(estimates + factor * (samples - estimates))
    return draws


def bootstrap_cccs(
    truth: ArrayLike,
    predictions: Sequence[ArrayLike],
    groups: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 31,
) -> NDArray[np.float64]:
    """CCC of several predictions of one test set on the same bootstrap samples, so that they can be compared in pairs.

    Args:
        truth: labels, shape (N,).
        predictions: S predictions, shape (N,) each.
        groups: group of each utterance; whole groups are drawn with replacement, as many as there are. None draws
            utterances. The names of the groups make no difference.
        resamples, seed: as for `bootstrap_interval`.
    Returns:
        Shape (resamples, S); NaN where a sample has no CCC.
    """
    x = np.asarray(truth, dtype=np.float64)
    of_utterances = np.stack(
        [moment_sums(x - x.mean(), np.asarray(y, dtype=np.float64) - x.mean()) for y in predictions], 1
    )
    group = _numbered(groups, len(x))
    count = group.max() + 1
    sums = np.zeros((count, *of_utterances.shape[1:]))  # (G, S, 6)
    np.add.at(sums, group, of_utterances)
    rng = np.random.default_rng(seed)
    values = np.empty((resamples, len(predictions)))
    block = max(1, 2**20 // count)  # samples at a time, to bound the memory
    for start in range(0, resamples, block):
        rows = np.arange(min(block, resamples - start))[:, None]
        drawn = rng.integers(0, count, (len(rows), count)) + count * rows
        times = np.bincount(drawn.ravel(), minlength=len(rows) * count).reshape(len(rows), count)
        values[start : start + len(rows)] = ccc_of_sums(np.tensordot(times.astype(float), sums, 1))
    return values


def _numbered(groups: Sequence[str] | None, count: int) -> NDArray[np.int64]:
    """Number of each utterance's group, in the order of their first utterances; without groups, of each utterance."""
    if groups is None:
        return np.arange(count)
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return np.array([numbers[group] for group in groups])


def moment_sums(x: NDArray, y: NDArray) -> NDArray:
    """Per utterance: 1, x, y, x^2, y^2, xy; their sums over any set give its CCC."""
    return np.column_stack([np.ones_like(x), x, y, x * x, y * y, x * y])


def ccc_of_sums(sums: NDArray) -> NDArray:
    """CCC of sums as from `moment_sums`, shape (..., 6); NaN where it is not defined."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    mean_x, mean_y = x / n, y / n
    # scale is var(x) + var(y) + (mean_x - mean_y)^2, with the cross terms cancelled by hand
    scale = (xx + yy) / n - 2 * mean_x * mean_y
    scale = np.where(scale > 0, scale, np.nan)
    return 2 * (xy / n - mean_x * mean_y) / scale
