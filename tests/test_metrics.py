"""CCC against an independent implementation, its loss and its intervals."""

import audmetric
import numpy as np
import pytest
import torch

from metrics import bootstrap_cccs, bootstrap_interval, ccc_loss, concordance_cc


@pytest.fixture
def pair():
    rng = np.random.default_rng(3)
    truth = rng.normal(4, 1, 301)
    return truth, 0.6 * truth + 1 + rng.normal(0, 0.7, 301)


def test_ccc_is_audmetrics_ccc(pair):
    assert concordance_cc(*pair) == pytest.approx(audmetric.concordance_cc(*pair), abs=1e-12)


def test_ccc_holds_far_from_zero(pair):
    truth, prediction = pair
    assert concordance_cc(truth + 1e6, prediction + 1e6) == pytest.approx(concordance_cc(truth, prediction), abs=1e-6)


def test_a_perfect_prediction_has_ccc_1_and_loss_0():
    truth = np.array([1.0, 2.0, 4.0])
    assert concordance_cc(truth, truth) == pytest.approx(1.0, abs=1e-15)
    # With 1/(N-1) variances, as in the original, this loss would be 1/3.
    assert ccc_loss(torch.tensor(truth), torch.tensor(truth)).item() == pytest.approx(0.0, abs=1e-6)


def test_ccc_is_undefined_only_where_both_are_constant_and_equal():
    assert np.isnan(concordance_cc([2.0, 2.0], [2.0, 2.0]))
    assert concordance_cc([2.0, 2.0], [1.0, 3.0]) == 0.0


def test_ccc_refuses_different_lengths():
    with pytest.raises(ValueError, match=r"\(2,\) != \(3,\)"):
        concordance_cc([1, 2], [1, 2, 3])


def test_loss_is_one_minus_ccc(pair):
    truth, prediction = pair
    loss = ccc_loss(torch.tensor(prediction), torch.tensor(truth)).item()
    assert loss == pytest.approx(1 - audmetric.concordance_cc(truth, prediction), abs=1e-5)


def test_loss_of_one_sample_is_finite_with_a_finite_gradient():
    for value in (0.3, 0.5):
        prediction = torch.tensor([0.5], requires_grad=True)
        loss = ccc_loss(prediction, torch.tensor([value]))
        loss.backward()
        assert loss.isfinite() and prediction.grad.isfinite().all()


def test_interval_holds_the_ccc_and_narrows_with_more_utterances(pair):
    truth, prediction = pair
    low, high = bootstrap_interval(truth, prediction)
    assert low < concordance_cc(truth, prediction) < high
    few = bootstrap_interval(truth[:40], prediction[:40])
    assert few[1] - few[0] > high - low


def test_interval_is_the_same_for_the_same_seed_only(pair):
    assert bootstrap_interval(*pair, seed=1) == bootstrap_interval(*pair, seed=1)
    assert bootstrap_interval(*pair, seed=1) != bootstrap_interval(*pair, seed=2)


def test_speakers_that_differ_widen_the_interval():
    rng = np.random.default_rng(0)
    speakers = np.repeat(np.arange(10), 30)
    truth = rng.normal(4, 1, 300)
    prediction = truth + rng.normal(0, 1.0, 10)[speakers] + rng.normal(0, 0.1, 300)
    by_utterance = bootstrap_interval(truth, prediction)
    by_speaker = bootstrap_interval(truth, prediction, groups=[f"s{s}" for s in speakers])
    assert by_speaker[1] - by_speaker[0] > 2 * (by_utterance[1] - by_utterance[0])


def test_predictions_are_compared_on_the_same_samples(pair):
    truth, prediction = pair
    values = bootstrap_cccs(truth, [prediction, prediction, prediction - 2], resamples=200)
    assert values.shape == (200, 3)
    assert (values[:, 0] == values[:, 1]).all() and (values[:, 0] > values[:, 2]).all()
    low, high = bootstrap_interval(truth, prediction, resamples=200)
    assert (low, high) == pytest.approx(tuple(np.percentile(values[:, 0], [2.5, 97.5])), abs=1e-12)
