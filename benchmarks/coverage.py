"""How often does a 95 % interval contain the true CCC? Simulated corpora with known true CCC.

    python -m benchmarks.coverage --corpora 400 --results benchmarks/RESULTS.md

Draws speakers, utterances, labels and predictions from a known population. Several rules for the interval are compared
by their coverage (fraction of corpora whose interval contains the CCC of the population) and their mean width. Speakers
differ in their labels, and in shift and slope of their predictions (the speaker effect).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from tqdm import tqdm

from benchmarks.sections import add_results_argument, fill_section, machine
from deepmi import ccc, cli
from tools.seed_statistics import order_means

LABELS = (0.5, 0.9)  # standard deviation of labels between and within speakers
EFFECTS = {"none": (0.0, 0.0), "medium": (0.25, 0.12), "large": (0.7, 0.3)}  # sd over speakers of shift and slope
REGRESSORS = {"typical": (0.6, 0.8), "accurate": (0.9, 0.25)}  # slope of the predictions, sd of their noise
BIAS = 0.2
SEEDS = 5
SEED_SPREAD = 0.05  # sd over training seeds of the slope
SLOPE_LOST = 0.1  # by the second of two orders
SIZES = {  # row of the table -> speakers, mean utterances per speaker, whether all have the same number
    f"{speakers} x {mean}{'' if equal else ' on average, unequal'}": (speakers, mean, equal)
    for speakers, mean in ((2, 60), (4, 40), (10, 30), (20, 30), (60, 30))
    for equal in (True, False)
} | {f"{utterances} utterances, speakers unknown": (utterances, 1, True) for utterances in (20, 120, 600)}
DIFFERENCE_SIZES = {name: SIZES[name] for name in ("2 x 60", "10 x 30", "20 x 30")}
RULES = ("utterances", "speakers, then utterances", "whole speakers", "jackknife and t", "this program")

Interval = tuple[float, float]
NO_INTERVAL = (np.nan, np.nan)


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this benchmark."""
    parser = cli.new_parser(__doc__)
    for flag, help in (("--corpora", "corpora per setting"), ("--resamples", "bootstrap samples per corpus")):
        parser.add_argument(flag, type=cli.positive_int, default=400, metavar="N", help=help)
    help = "CCC of the population: about .6 (typical) or .9 (accurate)"
    parser.add_argument("--regressor", choices=REGRESSORS, default="typical", help=help)
    parser.add_argument("--seed", type=int, default=31, metavar="N", help="seed of corpora and bootstrap")
    add_results_argument(parser)
    return parser


class Corpus(NamedTuple):
    """A simulated test set: speaker and label of each utterance, and the effect of that speaker; shape (N,) each."""

    speaker: NDArray[np.int64]
    labels: NDArray[np.float64]
    shift: NDArray[np.float64]
    stretch: NDArray[np.float64]


def draw_corpus(rng: np.random.Generator, speakers: int, mean: int, equal: bool, effect: str) -> Corpus:
    """A test set with some speakers and `mean` utterances per speaker (on average unless `equal`)."""
    sizes = np.full(speakers, mean)
    if not equal:
        sizes = np.maximum(3, rng.gamma(2, mean / 2, speakers).round()).astype(int)
    speaker = np.repeat(np.arange(speakers), sizes)
    between, within = LABELS
    labels = rng.normal(0, between, speakers)[speaker] + rng.normal(0, within, len(speaker))
    return Corpus(speaker, labels, *draw_effects(rng, speaker, effect))


def draw_effects(rng: np.random.Generator, speaker: NDArray[np.int64], effect: str) -> list[NDArray[np.float64]]:
    """Shift and stretch of the predictions for each utterance, by its speaker."""
    return [rng.normal(0, sd, speaker[-1] + 1)[speaker] for sd in EFFECTS[effect]]


def predict(rng: np.random.Generator, corpus: Corpus, slope: float, noise: float) -> NDArray[np.float64]:
    """Predictions of a regressor with this slope and noise, shape (N,)."""
    clean = BIAS + (slope + corpus.stretch) * corpus.labels + corpus.shift
    return clean + rng.normal(0, noise, len(corpus.labels))


def population_ccc(effect: str, slope, noise: float):
    """CCC of the population that `draw_corpus` draws from, for each slope."""
    shift, stretch = EFFECTS[effect]
    variance = sum(sd**2 for sd in LABELS)
    predicted = (slope**2 + stretch**2) * variance + shift**2 + noise**2
    return 2 * slope * variance / (variance + predicted + BIAS**2)


def population_difference(effect: str, slope: float, noise: float) -> float:
    """Difference of the mean CCCs, over any seeds, of two orders; the second one has a lower slope."""
    seeds = np.random.default_rng(0).normal(0, SEED_SPREAD, 1_000_000)
    first, second = (population_ccc(effect, one + seeds, noise).mean() for one in (slope, slope - SLOPE_LOST))
    return first - second


def two_stages(corpus: Corpus, predictions: list[NDArray], resamples: int, seed: int) -> NDArray[np.float64]:
    """Bootstrap CCCs by speakers, then utterances within each drawn speaker; shape (resamples, S)."""
    sums = np.stack([ccc.moment_sums(corpus.labels, prediction) for prediction in predictions], 1)
    sizes = np.bincount(corpus.speaker)
    starts = np.cumsum(sizes) - sizes
    rng = np.random.default_rng(seed)
    times = np.empty((resamples, len(corpus.labels)))
    for sample in range(resamples):
        drawn = rng.integers(0, len(sizes), len(sizes))
        size = np.repeat(sizes[drawn], sizes[drawn])
        utterances = np.repeat(starts[drawn], sizes[drawn]) + rng.integers(0, size)
        times[sample] = np.bincount(utterances, minlength=len(corpus.labels))
    return ccc.ccc_of_sums(np.tensordot(times, sums, 1))


def jackknife(corpus: Corpus, prediction: NDArray) -> Interval:
    """Interval from Fisher's z of the CCC, its variance by leaving out one speaker at a time, and Student's t."""
    sums = ccc.moment_sums(corpus.labels, prediction)
    by_speaker = np.stack([np.bincount(corpus.speaker, column) for column in sums.T], 1)
    count = len(by_speaker)
    estimate = np.arctanh(ccc.ccc_of_sums(sums.sum(axis=0)))
    z = np.arctanh(ccc.ccc_of_sums(sums.sum(axis=0) - by_speaker))
    half = stats.t.ppf(0.975, count - 1) * np.sqrt((count - 1) / count * ((z - z.mean()) ** 2).sum())
    return np.tanh(estimate - half), np.tanh(estimate + half)


def ccc_intervals(args: argparse.Namespace, rng: np.random.Generator, corpus: Corpus, effect: str, seed: int):
    """The interval of the CCC by each of RULES; those by speaker are missing if each utterance has its own."""
    prediction = predict(rng, corpus, *REGRESSORS[args.regressor])
    sizes = np.bincount(corpus.speaker)
    groups = list(corpus.speaker) if sizes.max() > 1 else None
    draws = ccc.widened_cccs(corpus.labels, [prediction], groups, args.resamples, seed=seed)
    whole = ccc.concordance_cc(corpus.labels, prediction)
    # Undoing the widening gives the same result as drawing again, and is faster.
    units = np.ones(len(corpus.labels)), sizes
    plain = [ccc.percentile_interval(whole + (draw - whole) / ccc.widening(unit)) for draw, unit in zip(draws, units)]
    by_speaker = [NO_INTERVAL] * 3
    if groups:
        nested = ccc.percentile_interval(two_stages(corpus, [prediction], args.resamples, seed))
        by_speaker = [nested, plain[1], jackknife(corpus, prediction)]
    return [plain[0], *by_speaker, ccc.widest_interval(draws)]


def difference_intervals(args: argparse.Namespace, rng: np.random.Generator, corpus: Corpus, effect: str, seed: int):
    """Intervals of the difference in mean CCC of two orders: speakers, utterances and seeds; that of this program."""
    slope, noise = REGRESSORS[args.regressor]
    predictions = []
    for order_slope in (slope, slope - SLOPE_LOST):
        predictions += [predict(rng, corpus, order_slope + rng.normal(0, SEED_SPREAD), noise) for _ in range(SEEDS)]
        corpus = Corpus(*corpus[:2], *draw_effects(rng, corpus.speaker, effect))  # the second order has new ones
    cccs = np.reshape([ccc.concordance_cc(corpus.labels, one) for one in predictions], (2, SEEDS))
    nested = two_stages(corpus, predictions, args.resamples, seed).reshape(-1, 2, SEEDS)
    seeds = np.random.default_rng((seed, 1)).integers(0, SEEDS, (args.resamples, 1, SEEDS))
    nested = np.take_along_axis(nested, seeds, axis=2).mean(axis=2)
    draws = ccc.widened_cccs(corpus.labels, predictions, list(corpus.speaker), args.resamples, seed=seed)
    draws = [order_means(draw.reshape(-1, 2, SEEDS), cccs, seed) for draw in draws]
    ours = ccc.widest_interval([means[:, 0] - means[:, 1] for means in draws], limit=2)
    return [ccc.percentile_interval(nested[:, 0] - nested[:, 1]), ours]


def simulate(args: argparse.Namespace, sizes: tuple, truth: Callable, intervals: Callable) -> tuple[list[str], ...]:
    """Coverage and mean width of each rule, as cells that show all speaker effects."""
    covered, widths = [], []  # per effect, shape (rules,)
    for effect in EFFECTS if sizes[1] > 1 else ["none"]:  # unknown speakers are all different
        rng = np.random.default_rng(args.seed)
        corpora = ((draw_corpus(rng, *sizes, effect), number) for number in range(args.corpora))
        found = [intervals(args, rng, corpus, effect, number) for corpus, number in corpora]
        low, high = np.moveaxis(np.array(found), -1, 0)
        true = truth(effect, *REGRESSORS[args.regressor])
        covered.append(((low <= true) & (true <= high)).mean(axis=0))
        widths.append((high - low).mean(axis=0))
    return tuple(
        [
            "-" if np.isnan(width) else " / ".join(f"{value:{form}}" for value in rule)
            for rule, width in zip(zip(*of), widths[0])
        ]
        for of, form in ((covered, ".2f"), (widths, ".3f"))
    )


def main(args: argparse.Namespace) -> None:
    """Simulate, print, write."""
    section = f"coverage {args.regressor}"
    fill_section(args.results, section)
    true_cccs = " / ".join(f"{population_ccc(effect, *REGRESSORS[args.regressor]):.2f}" for effect in EFFECTS)
    first = f"Coverage, speaker effect {' / '.join(EFFECTS)} (true CCC {true_cccs}):"
    second = f"Difference between two orders of {SEEDS} seeds, coverage:"
    lines, begin = [], time.monotonic()
    for title, settings, rules, *how in (
        (first, SIZES, RULES, population_ccc, ccc_intervals),
        (second, DIFFERENCE_SIZES, (RULES[1], RULES[-1]), population_difference, difference_intervals),
    ):
        cells = {name: simulate(args, settings[name], *how) for name in tqdm(settings, unit="row", disable=None)}
        for part, words in enumerate((title, "Mean width:")):
            table = [["speakers x utterances", *rules], *([name, *row[part]] for name, row in cells.items())]
            lines += [words, "", *cli.markdown_table(table), ""]
    lines.append(
        f"{args.corpora} corpora per setting, {args.resamples} resamples, seed {args.seed}, {args.regressor} "
        f"regressor; {time.monotonic() - begin:.0f} s on {machine()}."
    )
    print("\n".join(lines))
    fill_section(args.results, section, "\n".join(lines))


if __name__ == "__main__":
    cli.run(main, cli.parse(get_args_parser()))
