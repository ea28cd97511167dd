"""Quality of labels by cross-fitted predictions."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import RidgeCV

from tools import label_quality, trials

pytest.importorskip("cleanlab", reason="cleanlab is an optional requirement")


def test_a_prediction_has_not_seen_the_speaker():
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(size=(30, 4)).astype(np.float32), rng.uniform(1, 7, 30)
    folds = trials.folds_by_speaker([f"s{number // 5}" for number in range(30)], list(map(str, range(30))), 1)
    found = label_quality.cross_fitted(rows, labels, folds)
    for fold in set(folds):
        model = RidgeCV(alphas=trials.RIDGE_ALPHAS).fit(rows[folds != fold], labels[folds != fold])
        assert found[folds == fold] == pytest.approx(model.predict(rows[folds == fold]))


def test_a_label_far_from_its_prediction_has_the_lowest_quality():
    labels = np.linspace(1, 7, 30)
    predictions = labels + np.random.default_rng(0).normal(0, 0.3, 30)
    labels[4] = 6.5
    assert label_quality.label_quality(labels, predictions).argmin() == 4


def test_the_scores_stand_in_the_table_and_in_the_report(trained):
    out, _ = trained.runs("tools.label_quality", "--corpus", trained.corpus, "--lowest", 3)
    scores = json.loads((trained.folder / "results/label_quality_Val.json").read_text())
    lowest = sorted(scores, key=scores.get)[:3]
    assert all(name in out for name in lowest)
    trained.runs(2, "--table", "t.csv", "--label-quality", "results/label_quality_Val.json")
    table = pd.read_csv("t.csv", index_col="FileName")
    assert table["label_quality"].to_dict() == scores
    trained.refuses(trained.stage(2, "--label-quality", "results/label_quality_Val.json"), "--table")
