"""Orders, ties and pacing."""

import doctest
import hashlib

import numpy as np
import pytest

from deepmi import curriculum
from deepmi.curriculum import Schedule
from deepmi.process import UserError

NAMES = ["d.wav", "a.wav", "c.wav", "b.wav"]
VALUES = np.array([0.1, 0.1, 0.5, -0.2])
LEVELS = np.array([0, 3, 0, 3])


def ordered(order, names=NAMES, values=VALUES, seed=31, levels=LEVELS):
    return [names[i] for i in curriculum.training_order(order, names, values, seed, levels)]


def test_high_deepmi_comes_first_and_ties_go_by_a_digest_of_the_name():
    tied = sorted(["a.wav", "d.wav"], key=lambda name: hashlib.sha256(name.encode()).digest())
    for order in ("deepmi", *curriculum.RIVAL_ORDERS):
        assert ordered(order) == ["c.wav", *tied, "b.wav"]
    assert ordered("reverse") == ["b.wav", *tied, "c.wav"]


def test_balanced_has_high_deepmi_first_within_each_level():
    assert ordered("deepmi-balanced")[0] == "c.wav" and ordered("deepmi-balanced")[-1] == "b.wav"
    values, levels = np.array([0.4, 0.3, 0.2, 0.1]), np.array([1, 1, 1, 0])
    assert ordered("deepmi-balanced", list("abcd"), values, levels=levels) == ["a", "b", "d", "c"]


def test_balanced_bins_have_every_level_in_its_share():
    rng = np.random.default_rng(1)
    levels = rng.choice(6, size=2000, p=[0.05, 0.1, 0.2, 0.3, 0.2, 0.15])
    values = levels + rng.random(2000)  # the plain order would take one level after the other
    names = [f"{i:04d}" for i in rng.permutation(2000)]
    order = curriculum.training_order("deepmi-balanced", names, values, 31, levels)
    assert sorted(order) == list(range(2000))
    for size in (200, 600, 1400):
        share = np.bincount(levels[order[:size]], minlength=6) / np.bincount(levels, minlength=6)
        assert np.allclose(share, size / 2000, atol=0.02)
        for level in range(6):
            taken, left = (values[part[levels[part] == level]] for part in (order[:size], order[size:]))
            assert taken.min() >= left.max()


@pytest.mark.parametrize("order", curriculum.ORDERS)
def test_no_order_depends_on_how_the_files_came(order):
    shuffled = np.random.default_rng(0).permutation(4)
    again = ordered(order, [NAMES[i] for i in shuffled], VALUES[shuffled], levels=LEVELS[shuffled])
    assert again == ordered(order)


def test_random_order_is_its_seeds():
    names = [f"{i:03d}.wav" for i in range(100)]
    one, again, different = (ordered("random", names, np.zeros(100), seed) for seed in (1, 1, 2))
    assert one == again != different and sorted(one) == names


def test_pacing_is_the_papers():
    sizes = [Schedule().size("deepmi", epoch, 44879) for epoch in range(70)]
    for level in range(1, 10):
        assert sizes[5 * (level - 1) : 5 * level] == [int(level / 10 * 44879)] * 5
    assert sizes[45:] == [44879] * 25
    assert Schedule().size("deepmi", 0, 7) == 1, "a tiny corpus still has an utterance in its first bin"
    assert {Schedule().size("none", epoch, 100) for epoch in range(70)} == {100}


@pytest.mark.parametrize("pacing", curriculum.PACINGS)
def test_every_pacing_grows_from_a_tenth_to_all_at_epoch_45(pacing):
    sizes = [Schedule(pacing).size("random", epoch, 1000) for epoch in range(70)]
    assert sizes[0] == 100 and sizes == sorted(sizes)
    assert sizes[44] < 1000 and set(sizes[45:]) == {1000}


def test_pacing_families_are_those_of_wu_dyer_and_neyshabur():
    # epoch 9 of 45 is a share of .2: .1 + .9 g(.2)
    expected = {"linear": 280, "quadratic": 136, "root": 502, "exponential": 100, "log": 855, "step": 100}
    assert {name: Schedule(name).size("random", 9, 1000) for name in expected} == expected


def test_learning_rate_halves_at_the_papers_epochs():
    rates = [Schedule().learning_rate(epoch) for epoch in range(70)]
    assert rates[:4] == [1e-3] * 4
    drops = [epoch for epoch in range(1, 70) if rates[epoch] < rates[epoch - 1]]
    assert drops == [4, 9, 14, 19, 24, 29, 34, 39, 44]
    assert rates[-1] == pytest.approx(1e-3 / 2**9)


def test_a_metric_is_joined_by_name_and_that_of_another_corpus_is_refused():
    metric = dict(zip(reversed(NAMES), reversed(VALUES)))
    assert curriculum.match_metric(metric, NAMES, "m.json").tolist() == VALUES.tolist()
    with pytest.raises(UserError, match=r"m.json.*lacks 1 .*d.wav.* 1 besides.*x.wav"):
        curriculum.match_metric({"a.wav": 1, "b.wav": 1, "c.wav": 1, "x.wav": 1}, NAMES, "m.json")


def test_late_decay_keeps_the_rate_until_all_are_in():
    rates = [Schedule(decay="late").learning_rate(epoch) for epoch in range(70)]
    assert rates[:50] == [1e-3] * 50 and rates[50:60] == [5e-4] * 5 + [2.5e-4] * 5
    short = Schedule(decay="late", bins=4, epochs_per_bin=2)
    assert short.full_epoch == 6 and [short.learning_rate(epoch) for epoch in (7, 8)] == [1e-3, 5e-4]


def test_steps_before_the_rate_is_spent_are_few_on_a_small_set():
    assert Schedule().steps_before_spent("deepmi", 278, 64, 70) == 76
    assert Schedule().steps_before_spent("deepmi", 44879, 512, 70) > 1000
    assert Schedule(decay="late").steps_before_spent("deepmi", 278, 64, 70) > 200


def test_the_highest_share_of_every_level_is_kept():
    values, levels = np.array([0.4, 0.3, 0.2, 0.1, 0.0, np.nan]), np.array([0, 0, 0, 1, 1, 1])
    kept = curriculum.keep_highest(values, levels, list("abcdef"), 0.5)
    assert np.isfinite(kept).tolist() == [True, True, False, True, False, False]
    for order in ("deepmi", "random", "none"):
        assert sorted(curriculum.training_order(order, list("abcdef"), kept, 1, levels)) == [0, 1, 3]


def test_the_examples_of_the_docstrings_hold():
    assert doctest.testmod(curriculum).failed == 0
