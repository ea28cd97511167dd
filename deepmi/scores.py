"""Figures of a test beside the CCC and its interval: correlation, errors, and differences by gender and by speaker."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from deepmi.ccc import UNKNOWN_SPEAKER, concordance_cc

FEWEST_SPEAKERS = 3  # whose means can be ranked


def figures(truth: ArrayLike, prediction: ArrayLike) -> dict[str, float]:
    """Size, CCC, Pearson's correlation, mean absolute error and root mean square error of predictions.

    Args:
        truth: labels, shape (N,).
        prediction: in the same unit, shape (N,).
    Returns:
        n, ccc, pearson, mae, rmse, mean_label, mean_prediction; NaN where a figure is not defined.
    """
    x, y = np.asarray(truth, float), np.asarray(prediction, float)
    with np.errstate(invalid="ignore", divide="ignore"):
        covariance = ((x - x.mean()) * (y - y.mean())).mean()
        pearson = covariance / (x.std() * y.std())
    return {
        "n": len(x),
        "ccc": concordance_cc(x, y),
        "pearson": float(pearson),
        "mae": float(np.abs(x - y).mean()),
        "rmse": float(np.sqrt(np.square(x - y).mean())),
        "mean_label": float(x.mean()),
        "mean_prediction": float(y.mean()),
    }


def figures_by(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """`figures` of each group of utterances.

    Args:
        table: columns label and prediction, one row per utterance.
        column: the group of each utterance; those without one (empty or `Unknown`) are left out.
    Returns:
        One row per group, sorted by name.
    """
    known = table[~table[column].isin(("", UNKNOWN_SPEAKER))]
    rows = {group: figures(of["label"], of["prediction"]) for group, of in known.groupby(column)}
    found = pd.DataFrame.from_dict(rows, orient="index")
    if len(found):
        found.loc[found["n"] == 1, "ccc"] = np.nan  # a single utterance has none
    return found


def agreement_of_means(groups: pd.DataFrame) -> dict[str, float] | None:
    """CCC and Spearman's rank correlation of the mean labels and mean predictions of speakers.

    Args:
        groups: from `figures_by`.
    Returns:
        speakers, ccc and spearman; None for fewer than FEWEST_SPEAKERS speakers.
    """
    if len(groups) < FEWEST_SPEAKERS:
        return None
    labels, predictions = groups["mean_label"], groups["mean_prediction"]
    spearman = labels.corr(predictions, method="spearman")
    return {"speakers": len(groups), "ccc": concordance_cc(labels, predictions), "spearman": float(spearman)}


def describe(result: dict) -> list[str]:
    """The figures of a test as lines for the console.

    Args:
        result: as `testing_Curriculum.py` writes it: `figures`, with attribute, interval, by_gender and by_speaker
            (`figures` of each), means_of_speakers, corpus and split.
    """
    lines = [
        f"{result['attribute']} (CCC): {result['ccc']:.3f}",
        result["interval"],
        f"Pearson {result['pearson']:.3f}, MAE {result['mae']:.3f}, RMSE {result['rmse']:.3f}",
    ]
    if genders := result["by_gender"]:
        found = (f"{gender} {_text(of['ccc'])} ({of['n']})" for gender, of in genders.items())
        lines.append(f"CCC by gender (utterances): {', '.join(found)}")
    if means := result["means_of_speakers"]:
        lines.append(
            f"means of {means['speakers']} speakers: CCC {means['ccc']:.3f}, rank correlation {means['spearman']:.3f}"
        )
    return [*lines, f"{result['n']} utterances of {result['corpus']}, split {result['split']}"]


def group_rows(result: dict, kind: str) -> list[list[str]]:
    """The figures of each gender or speaker as rows of a table, the header first.

    Args:
        result: as for `describe`.
        kind: `gender` or `speaker`.
    """
    shown = {"n": "utterances", "ccc": "CCC", "pearson": "Pearson", "mae": "MAE", "rmse": "RMSE"}
    shown |= {"mean_label": "mean label", "mean_prediction": "mean prediction"}
    rows = [[kind, *shown.values()]]
    for group, of in result[f"by_{kind}"].items():
        rows.append([group, f"{of['n']:.0f}", *(_text(of[key]) for key in list(shown)[1:])])
    return rows


def _text(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"
