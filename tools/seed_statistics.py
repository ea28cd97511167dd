"""Statistics of a comparison of curricula over seeds and speakers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from deepmi.ccc import bootstrap_groups, concordance_cc, widened_cccs, widening, widest_interval
from deepmi.seeds import derived_seed


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down method; NaN stays NaN and does not count.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    ranked = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    corrected, highest = list(p_values), 0.0
    for rank, (p, place) in enumerate(ranked):
        highest = max(highest, min(1.0, p * (len(ranked) - rank)))
        corrected[place] = highest
    return corrected


def paired_p(differences: NDArray, test: str) -> float:
    """Two-sided p-value of paired differences over seeds; NaN for fewer than two, or where all are the same.

    Args:
        differences: shape (S,).
        test: `t` (paired t) or `wilcoxon` (signed ranks).
    """
    if len(differences) < 2 or np.ptp(differences) == 0:
        return float("nan")
    found = stats.ttest_1samp(differences, 0) if test == "t" else stats.wilcoxon(differences)
    return float(found.pvalue)


def order_means(samples: NDArray, cccs: NDArray, seed: int) -> NDArray:
    """Mean CCC of each row of a comparison in each bootstrap sample, with the seeds resampled too.

    Speakers and seeds are independent sources of variation; each is widened by its own factor.

    Args:
        samples: one array of `ccc.widened_cccs`, shape (resamples, rows, S).
        cccs: CCCs of the whole test set, shape (rows, S).
        seed: of the resampling.
    Returns:
        Shape (resamples, rows). A sample has the same utterances and seeds for all rows, so that differences between
        its columns are paired.
    """
    resamples, _, seeds = samples.shape
    # A random stream that is independent of that of the speakers, even where there are as many speakers as seeds.
    drawn = np.random.default_rng(derived_seed(seed, "resampled seeds")).integers(0, seeds, (resamples, seeds))
    of_seeds = cccs[:, drawn].mean(axis=2).T - cccs.mean(axis=1)
    return samples.mean(axis=2) + widening(np.ones(seeds)) * of_seeds


def compare(
    labels: NDArray,
    predictions: Mapping[str, Sequence[Sequence[float]]],
    speakers: Sequence[str],
    names: Sequence[str],
    controls: Mapping[str, Mapping[str, str]],
    seed: int,
    test: str = "t",
) -> tuple[pd.DataFrame, str]:
    """CCC of every row of a comparison on one test set, and its differences to the controls.

    Args:
        labels: of the N test utterances.
        predictions: for each row, those of each of S seeds, S x N.
        speakers, names: of the utterances.
        controls: for each row the rows it is compared with, under the name of the control.
        seed: the first seed, which also seeds the resampling.
        test: as for `paired_p`.
    Returns:
        (table indexed by row with the columns ccc, sd, low, high, for each control minus_X, minus_X_low, minus_X_high,
        p_X and p_X_holm, and ccc_seedN per seed; what the bootstrap resamples, in words). The p-values are corrected
        over all pairs of rows that are compared.
    """
    rows = list(predictions)
    seeds = len(predictions[rows[0]])
    flat = [one for of in predictions.values() for one in of]
    cccs = np.reshape([concordance_cc(labels, one) for one in flat], (len(rows), seeds))
    groups, drawn, warning = bootstrap_groups(speakers, names)
    draws = [
        order_means(samples.reshape(-1, *cccs.shape), cccs, seed)
        for samples in widened_cccs(labels, flat, groups, seed=seed)
    ]
    table, p_values = [], {}
    for place, row in enumerate(rows):
        low, high = widest_interval([means[:, place] for means in draws])
        sd = cccs[place].std(ddof=1) if seeds > 1 else float("nan")
        found = {"ccc": cccs[place].mean(), "sd": sd, "low": low, "high": high}
        for name, control in controls[row].items():
            other = rows.index(control)
            difference = cccs[place] - cccs[other]
            low, high = widest_interval([means[:, place] - means[:, other] for means in draws], limit=2)
            # Two controls are compared with each other in both their rows, but that is one comparison.
            p = p_values[frozenset((row, control))] = paired_p(difference, test)
            columns = [f"minus_{name}", f"minus_{name}_low", f"minus_{name}_high", f"p_{name}", f"p_{name}_holm"]
            found |= dict(zip(columns, [difference.mean(), low, high, p, p]))
        table.append(found | {f"ccc_seed{seed + number}": ccc for number, ccc in enumerate(cccs[place])})
    corrected = dict(zip(p_values, holm(list(p_values.values()))))
    for row, found in zip(rows, table):
        for name, control in controls[row].items():
            found[f"p_{name}_holm"] = corrected[frozenset((row, control))]
    return pd.DataFrame(table, index=rows), drawn + warning
