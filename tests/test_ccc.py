"""CCC against an independent implementation, its loss and its intervals."""

import audmetric
import numpy as np
import pytest
import torch
from scipy import stats

from deepmi.ccc import bootstrap_cccs, bootstrap_interval, ccc_loss, concordance_cc, student_t_quantile, widening


@pytest.fixture
def pair():
    rng = np.random.default_rng(3)
    truth = rng.normal(4, 1, 301)
    return truth, 0.6 * truth + 1 + rng.normal(0, 0.7, 301)


def test_ccc_is_audmetrics_and_the_loss_one_minus_it(pair):
    truth, prediction = pair
    expected = audmetric.concordance_cc(*pair)
    assert concordance_cc(*pair) == pytest.approx(expected, abs=1e-12)
    assert concordance_cc(truth + 1e6, prediction + 1e6) == pytest.approx(expected, abs=1e-6)
    loss = ccc_loss(torch.tensor(prediction), torch.tensor(truth)).item()
    assert loss == pytest.approx(1 - expected, abs=1e-5)


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
    speakers = list(np.arange(301) % 12)
    for groups in (None, speakers):
        assert bootstrap_interval(*pair, groups, seed=1) == bootstrap_interval(*pair, groups, seed=1)
        assert bootstrap_interval(*pair, groups, seed=1) != bootstrap_interval(*pair, groups, seed=2)


def corpus_of(speakers, utterances, effect):
    """(labels, predictions, speaker of each utterance); the predictions of a speaker are shifted by `effect`."""
    rng = np.random.default_rng(0)
    speaker = np.repeat(np.arange(speakers), utterances)
    truth = rng.normal(4, 1, len(speaker))
    prediction = truth + rng.normal(0, effect, speakers)[speaker] + rng.normal(0, 0.3, len(speaker))
    return truth, prediction, [f"s{number}" for number in speaker]


def width(interval):
    return interval[1] - interval[0]


@pytest.mark.parametrize(
    ("count", "utterances", "effect", "tolerance"),
    [(80, 20, 0.0, 0.12), (80, 20, 0.3, 0.12), (80, 20, 1.0, 0.12), (6, 200, 1.0, 0.25)],
)
def test_interval_has_the_width_of_the_cluster_jackknife_and_students_t(count, utterances, effect, tolerance):
    truth, prediction, speakers = corpus_of(count, utterances, effect)
    names = np.array(speakers)
    without = [concordance_cc(truth[names != name], prediction[names != name]) for name in dict.fromkeys(speakers)]
    standard_error = np.sqrt((count - 1) / count * ((without - np.mean(without)) ** 2).sum())
    found = width(bootstrap_interval(truth, prediction, speakers))
    assert found == pytest.approx(2 * stats.t.ppf(0.975, count - 1) * standard_error, rel=tolerance)


@pytest.mark.parametrize("count", [2, 3, 5, 10])
@pytest.mark.parametrize("effect", [0.0, 0.3, 1.0])
def test_interval_of_few_speakers_is_no_narrower_than_that_of_utterances(count, effect):
    truth, prediction, speakers = corpus_of(count, 40, effect)
    (low, high), (inner_low, inner_high) = (
        bootstrap_interval(truth, prediction, groups) for groups in (speakers, None)
    )
    assert -1 <= low <= inner_low < inner_high <= high <= 1


@pytest.mark.parametrize("names", ["a", "ab"])
def test_one_speaker_or_two_who_agree_give_the_interval_of_the_utterances(pair, names):
    truth, prediction = (np.tile(values, len(names)) for values in pair)
    speakers = [name for name in names for _ in range(301)]
    assert bootstrap_interval(truth, prediction, speakers) == bootstrap_interval(truth, prediction)


def test_utterances_of_unknown_speakers_do_not_count_as_many_speakers():
    truth, prediction, speakers = corpus_of(2, 60, 1.0)
    few = width(bootstrap_interval(truth, prediction, speakers))
    rng = np.random.default_rng(1)
    more = rng.normal(4, 1, 8)
    truth, prediction = np.append(truth, more), np.append(prediction, more + rng.normal(0, 0.3, 8))
    assert width(bootstrap_interval(truth, prediction, [*speakers, *"01234567"])) > 0.6 * few


def test_interval_does_not_depend_on_what_speakers_are_called():
    truth, prediction, speakers = corpus_of(7, 30, 0.5)
    renamed = [f"{9 - int(name[1:])} other" for name in speakers]
    assert bootstrap_interval(truth, prediction, speakers) == bootstrap_interval(truth, prediction, renamed)


def test_perfect_and_undefined_predictions_have_an_interval_too():
    truth, _, speakers = corpus_of(3, 10, 0.0)
    assert bootstrap_interval(truth, truth, speakers) == pytest.approx((1.0, 1.0))
    assert np.isnan(bootstrap_interval(np.ones(30), np.ones(30), speakers)).all()
    assert bootstrap_interval(truth, np.zeros(30), speakers) == pytest.approx((0.0, 0.0))


def test_widening_is_by_the_effective_number_of_groups():
    assert widening([30] * 10) == pytest.approx(stats.t.ppf(0.975, 9) / stats.norm.ppf(0.975) * np.sqrt(10 / 9))
    assert widening([1] * 5000) == pytest.approx(1, abs=1e-3)
    assert widening([60, 60]) > widening([60, 60, 1, 1, 1, 1]) > widening([60] * 3)
    assert widening([60]) == widening([1000, 1, 1]) == widening([60, 60])
    assert widening([30] * 4, 0.8) == pytest.approx(stats.t.ppf(0.9, 3) / stats.norm.ppf(0.9) * np.sqrt(4 / 3))


def test_predictions_are_compared_on_the_same_samples(pair):
    truth, prediction = pair
    for groups in (None, list(np.arange(301) % 20)):
        values = bootstrap_cccs(truth, [prediction, prediction, prediction - 2], groups, resamples=200)
        assert values.shape == (200, 3)
        assert (values[:, 0] == values[:, 1]).all() and (values[:, 0] > values[:, 2]).all()


def test_whole_groups_are_resampled():
    truth, prediction, speakers = corpus_of(2, 30, 1.0)
    pairs = [concordance_cc(truth[part], prediction[part]) for part in (slice(30), slice(30, 60), slice(60))]
    found = bootstrap_cccs(truth, [prediction], speakers, resamples=100)[:, 0]
    assert sorted(set(found.round(9))) == pytest.approx(sorted(pairs), abs=1e-8)


@pytest.mark.parametrize("freedom", [1, 1.3, 5.5, 20, 1000])
def test_quantiles_of_students_t_are_scipys(freedom):
    assert student_t_quantile(0.975, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-5)
