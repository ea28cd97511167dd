"""The figures of the report: bins and ties, rank correlation, AUC, typical features. Reads no files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from deepmi.ccc import percentile_interval
from deepmi.curriculum import bin_sizes
from deepmi.metric import NUM_LEVELS
from deepmi.seeds import derived_seed

LEVEL_NAMES = ("<2", "[2,3)", "[3,4)", "[4,5)", "[5,6)", "≥6")
DISPUTED_SHARE = 0.15  # of the utterances, if the corpus does not list the disputed ones
RESAMPLES = 1000
BLOCK = 4096  # utterances whose features are in memory at a time


def bin_edges(values: NDArray[np.float64]) -> pd.DataFrame:
    """The nine inner edges of the ten bins of DeepMI, shape (N,), counted from the highest value.

    Returns:
        One row per edge: its number, `utterances` up to it, the `value` at the edge, number of utterances with that
        value (`ties`) and of those among them inside the bin (`inside`), and whether the edge cuts them (`cut`).
    """
    ranked = np.sort(values)[::-1]
    sizes = np.array(bin_sizes(len(values))[:-1])
    value = ranked[sizes - 1]
    ties = (ranked == value[:, None]).sum(axis=1)
    inside = sizes - (ranked > value[:, None]).sum(axis=1)
    edge = np.arange(1, len(sizes) + 1)
    columns = {"edge": edge, "utterances": sizes, "value": value, "ties": ties, "inside": inside}
    return pd.DataFrame(columns | {"cut": inside < ties})


def cluster_sources(clusters: dict[str, NDArray], of: dict[str, tuple[NDArray, dict[str, float]]]) -> pd.DataFrame:
    """How fine DeepMI is by each source of clusters.

    Args:
        clusters: by source, shape (N,) or (R, N) for R clusterings.
        of: by source, DeepMI and information from `deepmi_values`.
    Returns:
        One row per source: clusters in use (mean over clusterings), H(X), I(X;Y), distinct values, bin edges that cut a
        tie, and the largest tie at an edge.
    """
    rows = []
    for source, (values, information) in of.items():
        used = np.mean([len(np.unique(one)) for one in np.atleast_2d(clusters[source])])
        edges = bin_edges(values)
        rows.append(
            {
                "clusters from": source,
                "in use": f"{used:.4g}",
                "H(X)": f"{information['H(X)']:.3f}",
                "I(X;Y)": f"{information['I(X;Y)']:.3f}",
                "distinct values": len(np.unique(values)),
                "edges that cut a tie": int(edges["cut"].sum()),
                "largest tie at an edge": int(edges["ties"].max()),
            }
        )
    return pd.DataFrame(rows)


def curriculum_bins(ordered: pd.DataFrame) -> pd.DataFrame:
    """The training set of each bin of a curriculum, including all previous bins.

    Args:
        ordered: the utterances in training order: `cell` and, if the labels are known, `level` and `label`.
    Returns:
        One row per bin: its number, `utterances`, distinct `cells`, and, if the labels are known, their population
        standard deviation `label_sd` and the share of each level.
    """
    bins = []
    for number, size in enumerate(bin_sizes(len(ordered)), start=1):
        rows = ordered.iloc[:size]
        found = {"bin": number, "utterances": size, "cells": rows["cell"].nunique()}
        if "level" in rows:
            shares = np.bincount(rows["level"], minlength=NUM_LEVELS) / size
            found |= {"label_sd": rows["label"].std(ddof=0), **dict(zip(LEVEL_NAMES, shares))}
        bins.append(found)
    return pd.DataFrame(bins)


@dataclass
class Interval:
    """An estimate with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def spearman(x: ArrayLike, y: ArrayLike, seed: int, resamples: int = RESAMPLES) -> Interval:
    """Spearman's rank correlation of x and y, shape (n,) each; NaN if one of them is constant.

    The percentile bootstrap interval resamples utterances and ranks each resample again.
    Source: Davison & Hinkley, Bootstrap Methods and their Application (1997), section 5.3.
    """
    # A resample is a count per distinct pair of values, so its ranks need no sorting.
    first, second = (np.unique(values, return_inverse=True)[1] for values in (x, y))
    pairs, counts = np.unique(np.column_stack([first, second]), axis=0, return_counts=True)
    rng = np.random.default_rng(derived_seed(seed, len(first)))
    total = int(counts.sum())
    drawn = [_rank_correlation(pairs, rng.multinomial(total, counts / total)) for _ in range(resamples)]
    return Interval(_rank_correlation(pairs, counts), *percentile_interval(np.array(drawn)))


def _rank_correlation(pairs: NDArray[np.int64], counts: NDArray[np.int64]) -> float:
    """Spearman's correlation of pairs of positions 0, 1, ..., shape (m, 2), with their counts, shape (m,)."""
    total = counts.sum()
    deviations = []
    for positions in pairs.T:
        mass = np.bincount(positions, counts)
        ranks = np.cumsum(mass) - mass / 2  # mid-ranks minus 0.5, a constant that centering removes
        deviations.append((ranks - mass @ ranks / total)[positions])
    x, y = deviations
    scale = np.sqrt((counts @ (x * x)) * (counts @ (y * y)))
    return float(counts @ (x * y) / scale) if scale > 0 else float("nan")


def auc_lower(values: ArrayLike, marked: ArrayLike, seed: int, resamples: int = RESAMPLES) -> Interval:
    """Probability that a marked utterance has a lower value than an unmarked one, ties counted half; .5 is chance.

    The bootstrap resamples marked and unmarked utterances separately. NaN if one of these groups is empty.
    Source: the statistic of Mann & Whitney (1947), divided by the number of pairs.
    """
    positions = np.unique(values, return_inverse=True)[1]
    chosen = np.asarray(marked, dtype=bool)
    groups = [np.bincount(positions[part], minlength=positions.max() + 1) for part in (chosen, ~chosen)]
    if not all(group.sum() for group in groups):
        return Interval(float("nan"), float("nan"), float("nan"))

    def auc(low: NDArray, high: NDArray) -> NDArray:
        below = np.cumsum(low, axis=-1) - low / 2  # marked utterances below each value, ties counted half
        return (below * high).sum(axis=-1) / (low.sum(axis=-1) * high.sum(axis=-1))

    rng = np.random.default_rng(derived_seed(seed, len(positions)))
    draws = [rng.multinomial(group.sum(), group / group.sum(), resamples) for group in groups]
    return Interval(float(auc(*groups)), *percentile_interval(auc(*draws)))


def most_disputed(spread: pd.Series, share: float = DISPUTED_SHARE) -> pd.Series:
    """Whether each utterance is in the share with the largest rater disagreement; ties are broken by file name."""
    ranked = (-spread).sort_index().sort_values(kind="stable").index
    return pd.Series(spread.index.isin(ranked[: round(share * len(spread))]), index=spread.index)


def clusters_by_level(joint: NDArray[np.float64]) -> NDArray[np.int64]:
    """The non-empty clusters of p(x,y), shape (K, levels), from the lowest mean level to the highest."""
    p = joint.sum(axis=1)
    seen = np.flatnonzero(p > 0)
    mean = joint[seen] @ np.arange(joint.shape[1]) / p[seen]
    return seen[np.argsort(mean, kind="stable")]


def standardised_differences(
    rows: NDArray[np.float32], clusters: NDArray[np.int64], num_clusters: int
) -> NDArray[np.float64]:
    """Difference of the mean of each acoustic feature between each cluster and the rest.

    Args:
        rows: z-normalised features, shape (N, D); read in blocks.
        clusters: X, 0..K-1, shape (N,).
        num_clusters: K.
    Returns:
        In standard deviations of Train, shape (K, D); 0 for a cluster with no utterances or with all of them.
    """
    sums = np.zeros((num_clusters, rows.shape[1]))
    for start in range(0, len(rows), BLOCK):
        block = np.asarray(rows[start : start + BLOCK])
        members = np.arange(num_clusters)[:, None] == clusters[start : start + BLOCK]
        sums += members.astype(np.float32) @ block
    sizes = np.bincount(clusters, minlength=num_clusters)[:, None]
    rest = len(rows) - sizes
    differences = sums / np.maximum(sizes, 1) - (sums.sum(axis=0) - sums) / np.maximum(rest, 1)
    return np.where((sizes > 0) & (rest > 0), differences, 0.0)


def typical_features(differences: NDArray[np.float64], names: Sequence[str], count: int) -> list[int]:
    """Positions of the `count` largest standardised differences of a cluster, at most one per low-level descriptor.

    Coefficients, bands and time derivatives of a descriptor count as one, because they are highly correlated:
    openSMILE's `mfcc_sma_de[3]_quartile1` belongs to the descriptor `mfcc`.
    """
    found: dict[str, int] = {}
    for position in np.argsort(-np.abs(differences), kind="stable"):
        if len(found) == count or differences[position] == 0:
            break
        found.setdefault(names[position].split("_sma")[0], int(position))
    return list(found.values())


def sample(count: int, seed: int, most: int) -> NDArray[np.int64]:
    """Sorted positions 0..count-1, or `most` of them drawn at random if there are more."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(derived_seed(seed, count)).choice(count, most, replace=False))
