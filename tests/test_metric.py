"""Levels, joint tables and DeepMI on cases worked out by hand."""

import json
import math

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from deepmi.metric import deepmi_values, emotion_levels, joint_probability, read_metric, write_metric
from deepmi.process import UserError


def test_levels_take_the_edge_from_above_and_end_with_the_scale():
    labels = [1.0, 1.999, 2.0, 2.999, 3.0, 4.0, 5.0, 5.999, 6.0, 7.0, -3.0, 9.5]
    assert emotion_levels(labels).tolist() == [0, 0, 1, 1, 2, 3, 4, 4, 5, 5, 0, 5]


def test_joint_table_counts_pairs_and_refuses_values_outside():
    joint = joint_probability([0, 0, 1, 1], [0, 1, 1, 1], 3, 2)
    assert joint.tolist() == [[0.25, 0.25], [0, 0.5], [0, 0]]
    with pytest.raises(ValueError, match="outside"):
        joint_probability([0, 3], [0, 0], 3, 2)


def test_values_by_hand():
    # clusters 0 0 1 1, levels 0 0 5 0: p(0,0)=1/2, p(1,5)=1/4, p(1,0)=1/4, p(x)=1/2, p(level 0)=3/4
    values, information = deepmi_values([0, 0, 1, 1], [0, 0, 5, 0], [0, 0, 0, 0], 2, alpha=0.0)
    cells = {
        "00": 0.5 * math.log(0.5 / (0.5 * 0.75)),
        "15": 0.25 * math.log(0.25 / (0.5 * 0.25)),
        "10": 0.25 * math.log(0.25 / (0.5 * 0.75)),
    }
    assert values.tolist() == [round(cells[c], 5) for c in ("00", "00", "15", "10")]
    assert information["I(X;Y)"] == pytest.approx(sum(cells.values()))
    assert information["I(Yp;Y)"] == pytest.approx(0.0)
    assert information["H(X)"] == pytest.approx(math.log(2))


def test_alpha_mixes_cluster_and_prediction():
    clusters, levels, predicted = [0, 1, 0, 1], [0, 1, 1, 1], [0, 1, 1, 0]
    by_cluster, _ = deepmi_values(clusters, levels, predicted, 2, 0.0)
    by_prediction, _ = deepmi_values(clusters, levels, predicted, 2, 1.0)
    both, _ = deepmi_values(clusters, levels, predicted, 2, 0.5)
    assert np.allclose(both, (by_cluster + by_prediction) / 2, atol=1e-5)


def test_information_is_scikit_learns_and_not_the_sum_over_samples():
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 6, 500)
    clusters = (levels + rng.integers(0, 3, 500)) % 7
    values, information = deepmi_values(clusters, levels, levels, 7, 0.0)
    assert information["I(X;Y)"] == pytest.approx(mutual_info_score(clusters, levels))
    assert abs(values.sum() - information["I(X;Y)"]) > 1


def test_values_are_rounded_to_5_decimals_without_negative_zero():
    rng = np.random.default_rng(1)
    values, _ = deepmi_values(rng.integers(0, 9, 4000), rng.integers(0, 6, 4000), [0] * 4000, 9, 0.0)
    assert all(repr(v) != "-0.0" and v == round(v, 5) for v in values.tolist())


def test_json_goes_round(tmp_path):
    values = {"MSP-PODCAST_0001_0049.wav": 0.0083, "MSP-PODCAST_0001_0066.wav": -0.00168}
    write_metric(tmp_path / "m.json", values)
    assert read_metric(tmp_path / "m.json") == values
    assert json.loads((tmp_path / "m.json").read_text()) == values


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2]", "list"),
        ('{"a.wav": "x"}', "a.wav"),
        ('{"a.wav": NaN}', "finite"),
        ('{"a.wav": true}', "finite"),
        ('{"a.wav": 1' + "0" * 400 + "}", "finite"),
        ('{"a.wav": 1, "a.wav": 2}', "duplicate key"),
        ("{" + ", ".join(f'"{n}.wav": 0.1' for n in [*range(60_000), 59_999]) + "}", r"59999\.wav"),  # found at once
        ('{"a.wav": ' * 5000 + "1" + "}" * 5000, "deep"),
        ('{"a.wav": 0.1', "not usable JSON"),
        ("[" * 10**6, "m.json"),
    ],
)
def test_a_bad_metric_is_refused(tmp_path, text, words):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(UserError, match=words):
        read_metric(tmp_path / "m.json")
