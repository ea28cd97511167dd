"""The original's own files, release v1.8."""

import numpy as np
from conftest import SHARED, needs_shared

import utils
from deepmi import cli, curriculum
from deepmi.metric import read_metric
from tools import fetch_v18

UPSTREAM = SHARED / "upstream_v1.8"
pytestmark = needs_shared


def test_norm_terms_load():
    mean, std = utils.read_feature_norm(UPSTREAM / "NormTerm")
    assert mean.shape == std.shape == (6373,)
    assert mean.max() > 1e12 and np.flatnonzero(std == 0).tolist() == [3874]
    terms = {attribute: utils.read_label_norm(UPSTREAM / "NormTerm", attribute) for attribute in cli.ATTRIBUTES}
    expected = {"Act": (4.4434, 0.8784), "Dom": (4.5535, 0.7215), "Val": (4.1504, 0.8447)}
    for attribute, (mean, std) in expected.items():
        assert np.allclose(terms[attribute], (mean, std), atol=6e-5)


def test_metrics_load_and_order_a_curriculum():
    expected = {"Act": (176, 109.227), "Dom": (172, 67.745), "Val": (319, 134.044)}
    for attribute, (distinct, total) in expected.items():
        metric = read_metric(utils.metric_file(UPSTREAM / "curriculum_metric_v1.8", 50, attribute))
        assert len(metric) == 44879 and len(set(metric.values())) == distinct
        assert round(sum(metric.values()), 3) == total
        assert sum(name.count("_") == 3 for name in metric) == 12845  # MSP-PODCAST_dddd_dddd_dddd.wav
        names = sorted(metric)
        values = curriculum.match_metric(metric, names, "v1.8")
        order = curriculum.training_order("deepmi", names, values, 31)
        assert values[order[0]] == max(metric.values()) and (np.diff(values[order]) <= 0).all()


def test_known_blob_ids_are_those_of_the_files():
    for name, expected in fetch_v18.BLOBS.items():
        if not name.startswith("trained"):
            assert fetch_v18.blob_id((UPSTREAM / name).read_bytes()) == expected
