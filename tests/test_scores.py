"""Figures of a test, by gender and speaker."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from deepmi import scores


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    labels = rng.uniform(1, 7, 60)
    speakers = np.repeat(["a", "b", "c", "Unknown"], 15)
    return pd.DataFrame({"label": labels, "prediction": labels + rng.normal(0, 1, 60), "SpkrID": speakers})


def test_figures_are_those_of_scipy_and_numpy(table):
    x, y = table["label"], table["prediction"]
    found = scores.figures(x, y)
    assert found["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic)
    assert found["mae"] == pytest.approx(np.mean(np.abs(x - y)))
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean((x - y) ** 2)))
    covariance = np.cov(x, y, ddof=0)
    ccc = 2 * covariance[0, 1] / (covariance.trace() + (x.mean() - y.mean()) ** 2)
    assert found["ccc"] == pytest.approx(ccc)


def test_groups_have_their_own_figures_and_utterances_without_a_group_have_none(table):
    groups = scores.figures_by(table, "SpkrID")
    assert groups.index.tolist() == ["a", "b", "c"]
    of_b = table[table["SpkrID"] == "b"]
    assert groups.loc["b", "ccc"] == scores.figures(of_b["label"], of_b["prediction"])["ccc"]


def test_means_of_speakers_are_ranked_from_three_speakers_on(table):
    groups = scores.figures_by(table, "SpkrID")
    means = scores.agreement_of_means(groups)
    expected = stats.spearmanr(groups["mean_label"], groups["mean_prediction"]).statistic
    assert means["speakers"] == 3 and means["spearman"] == pytest.approx(expected)
    assert scores.agreement_of_means(groups[:2]) is None


def test_constant_predictions_have_no_correlation():
    found = scores.figures([1, 2, 3], [2, 2, 2])
    assert np.isnan(found["pearson"]) and found["ccc"] == 0
