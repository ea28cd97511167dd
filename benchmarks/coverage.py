"""How often does a 95 % interval hold the true CCC? Simulated corpora whose true CCC is known.

    python -m benchmarks.coverage --corpora 400 --results benchmarks/RESULTS.md

draws speakers, their utterances, labels and predictions from a known population, and compares several rules by the
share of corpora whose interval holds the population's CCC (coverage) and by the mean width of the interval. Speakers
differ in their labels, and in how their predictions are shifted and stretched (the speaker effect).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks.sections import machine, replace_section, split_section
from deepmi import cli
from deepmi.ccc import (
    bootstrap_cccs,
    bootstrap_interval,
    ccc_of_sums,
    concordance_cc,
    moment_sums,
    percentile_interval,
    widened_cccs,
    widening,
    widest_interval,
)
from tools.statistics import order_means

LABELS = (0.5, 0.9)  # standard deviation of labels between speakers, and within one
EFFECTS = {"none": (0.0, 0.0), "medium": (0.25, 0.12), "large": (0.7, 0.3)}  # sd over speakers of shift and slope
REGRESSORS = {"typical": (0.6, 0.8), "accurate": (0.9, 0.25)}  # slope of the predictions, sd of their noise
BIAS = 0.2
SIZES = ((2, 60), (4, 40), (10, 30), (20, 30), (60, 30))  # speakers, mean utterances per speaker
NO_SPEAKERS = (20, 120, 600)  # utterances
RULES = ("utterances", "speakers, then utterances", "whole speakers", "jackknife and t", "this program")
SEEDS = 5
SEED_SPREAD = 0.05  # sd over training seeds of the slope
DIFFERENCE_SIZES = ((2, 60), (10, 30), (20, 30))


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this benchmark."""
    parser = cli.new_parser(__doc__)
    number = cli.positive_int
    parser.add_argument("--corpora", type=number, default=400, metavar="N", help="corpora per setting")
    parser.add_argument("--resamples", type=number, default=400, metavar="N", help="bootstrap samples per corpus")
    parser.add_argument(
        "--regressor", choices=REGRESSORS, default="typical", help="population CCC near .6 (typical) or .9 (accurate)"
    )
    parser.add_argument("--seed", type=int, default=31, metavar="N", help="seed of corpora and bootstrap")
    parser.add_argument("--results", type=Path, metavar="FILE", help="Markdown file whose section is replaced")
    return parser


if __name__ == "__main__":
    ARGS = cli.parse(get_args_parser())  # before the heavy imports, so that --help answers at once

from tqdm import tqdm


@dataclass
class Corpus:
    """One simulated test set.

    Attributes:
        speaker: number of each utterance's speaker, shape (N,).
        labels: shape (N,).
        shift, stretch: of each utterance's speaker, shape (N,).
    """

    speaker: np.ndarray
    labels: np.ndarray
    shift: np.ndarray
    stretch: np.ndarray


def draw_corpus(rng: np.random.Generator, speakers: int, mean: int, equal: bool, effect: str) -> Corpus:
    """A test set of some speakers, with `mean` utterances each, or on average where they are not equal."""
    sizes = np.full(speakers, mean)
    if not equal:
        sizes = np.maximum(3, rng.gamma(2, mean / 2, speakers).round()).astype(int)
    speaker = np.repeat(np.arange(speakers), sizes)
    between, within = LABELS
    labels = rng.normal(0, between, speakers)[speaker] + rng.normal(0, within, len(speaker))
    shift, stretch = (rng.normal(0, sd, speakers)[speaker] for sd in EFFECTS[effect])
    return Corpus(speaker, labels, shift, stretch)


def predict(rng: np.random.Generator, corpus: Corpus, slope: float, noise: float) -> np.ndarray:
    """Predictions of a regressor with that slope and noise, shape (N,)."""
    clean = BIAS + (slope + corpus.stretch) * corpus.labels + corpus.shift
    return clean + rng.normal(0, noise, len(corpus.labels))


def population_ccc(effect: str, slope, noise: float):
    """CCC of the population: all speakers and utterances that `draw_corpus` can draw; one per slope."""
    shift, stretch = EFFECTS[effect]
    variance = sum(sd**2 for sd in LABELS)
    predicted = (slope**2 + stretch**2) * variance + shift**2 + noise**2
    return 2 * slope * variance / (variance + predicted + BIAS**2)


def two_stages(corpus: Corpus, predictions: list[np.ndarray], resamples: int, seed: int) -> np.ndarray:
    """Bootstrap CCCs by speakers, then utterances within each drawn speaker; shape (resamples, S)."""
    x = corpus.labels
    sums = np.stack([moment_sums(x, y) for y in predictions], 1)
    sizes = np.bincount(corpus.speaker)
    starts = np.cumsum(sizes) - sizes
    rng = np.random.default_rng(seed)
    times = np.empty((resamples, len(x)))
    for sample in range(resamples):
        drawn = rng.integers(0, len(sizes), len(sizes))
        size = np.repeat(sizes[drawn], sizes[drawn])
        utterances = np.repeat(starts[drawn], sizes[drawn]) + rng.integers(0, size)
        times[sample] = np.bincount(utterances, minlength=len(x))
    return ccc_of_sums(np.tensordot(times, sums, 1))


def jackknife(corpus: Corpus, prediction: np.ndarray) -> tuple[float, float]:
    """Fisher's z of the CCC, its variance by leaving out one speaker at a time, Student's t."""
    sums = moment_sums(corpus.labels, prediction)
    by_speaker = np.stack([np.bincount(corpus.speaker, column) for column in sums.T], 1)
    count = len(by_speaker)
    estimate = np.arctanh(ccc_of_sums(sums.sum(axis=0)))
    z = np.arctanh(ccc_of_sums(sums.sum(axis=0) - by_speaker))
    half = stats.t.ppf(0.975, count - 1) * np.sqrt((count - 1) / count * ((z - z.mean()) ** 2).sum())
    return np.tanh(estimate - half), np.tanh(estimate + half)


def intervals(corpus: Corpus, prediction: np.ndarray, resamples: int, seed: int) -> Iterator[tuple[float, float]]:
    """The interval of every rule."""
    ccc = concordance_cc(corpus.labels, prediction)
    draws = widened_cccs(corpus.labels, [prediction], list(corpus.speaker), resamples, seed=seed)
    sizes = np.ones(len(corpus.labels)), np.bincount(corpus.speaker)
    # Undoing the widening is the same as drawing again, and faster.
    by_utterance, by_speaker = (ccc + (draw - ccc) / widening(size) for draw, size in zip(draws, sizes))
    yield percentile_interval(by_utterance)
    yield percentile_interval(two_stages(corpus, [prediction], resamples, seed))
    yield percentile_interval(by_speaker)
    yield jackknife(corpus, prediction)
    yield widest_interval(draws)


def without_speakers(corpus: Corpus, prediction: np.ndarray, resamples: int, seed: int) -> list[tuple[float, float]]:
    """The intervals of single utterances: percentiles, and this program's."""
    cccs = bootstrap_cccs(corpus.labels, [prediction], None, resamples, seed)
    ours = bootstrap_interval(corpus.labels, prediction, None, resamples, seed=seed)
    return [percentile_interval(cccs), ours]


def difference_intervals(corpus: Corpus, predictions: list, resamples: int, seed: int) -> list[tuple[float, float]]:
    """Intervals of the difference of two orders' mean CCC: speakers, then utterances, and seeds; this program's."""
    cccs = np.reshape([concordance_cc(corpus.labels, one) for one in predictions], (2, SEEDS))
    nested = two_stages(corpus, predictions, resamples, seed).reshape(-1, 2, SEEDS)
    seeds = np.random.default_rng((seed, 1)).integers(0, SEEDS, (resamples, 1, SEEDS))
    nested = np.take_along_axis(nested, seeds, axis=2).mean(axis=2)
    draws = widened_cccs(corpus.labels, predictions, list(corpus.speaker), resamples, seed=seed)
    draws = [order_means(draw.reshape(-1, 2, SEEDS), cccs, seed) for draw in draws]
    return [
        percentile_interval(nested[:, 0] - nested[:, 1]),
        widest_interval([means[:, 0] - means[:, 1] for means in draws], limit=2),
    ]


def cells(found: list[list[list[tuple[float, float]]]], truths: list[float]) -> tuple[list[str], list[str]]:
    """Coverage and mean width of each rule, the effects in one cell.

    Args:
        found: intervals by effect, corpus and rule.
        truths: by effect.
    """
    bounds = np.array(found)  # (effects, corpora, rules, 2)
    truth = np.reshape(truths, (-1, 1, 1))
    held = ((bounds[..., 0] <= truth) & (truth <= bounds[..., 1])).mean(axis=1)
    width = np.diff(bounds)[..., 0].mean(axis=1)
    return tuple(
        [" / ".join(f"{value:.{digits}f}" for value in rule) for rule in of.T] for of, digits in ((held, 2), (width, 3))
    )


def simulate_cccs(args: argparse.Namespace, speakers: int, mean: int, equal: bool, bar) -> tuple[list[str], list[str]]:
    """The cells of one row: intervals of the CCC."""
    slope, noise = REGRESSORS[args.regressor]
    found = []
    for effect in EFFECTS:
        rng = np.random.default_rng(args.seed)
        found.append([])
        for number in range(args.corpora):
            corpus = draw_corpus(rng, speakers, mean, equal, effect)
            found[-1].append(list(intervals(corpus, predict(rng, corpus, slope, noise), args.resamples, number)))
            bar.update()
    return cells(found, [population_ccc(effect, slope, noise) for effect in EFFECTS])


def simulate_utterances(args: argparse.Namespace, utterances: int, bar) -> tuple[list[str], list[str]]:
    """The cells of one row: every utterance has a speaker of its own, whom nobody knows; no speaker effect."""
    slope, noise = REGRESSORS[args.regressor]
    rng = np.random.default_rng(args.seed)
    found = []
    for number in range(args.corpora):
        corpus = draw_corpus(rng, utterances, 1, True, "none")
        found.append(without_speakers(corpus, predict(rng, corpus, slope, noise), args.resamples, number))
        bar.update()
    return cells([found], [population_ccc("none", slope, noise)])


def simulate_differences(args: argparse.Namespace, speakers: int, mean: int, bar) -> tuple[list[str], list[str]]:
    """The cells of one row: two orders of five seeds; the second has a lower slope and speaker effects of its own."""
    slope, noise = REGRESSORS[args.regressor]
    slopes = slope, slope - 0.1
    any_seed = np.random.default_rng(0).normal(0, SEED_SPREAD, 1_000_000)
    found, truths = [], []
    for effect in EFFECTS:
        first, second = (population_ccc(effect, one + any_seed, noise).mean() for one in slopes)
        truths.append(first - second)
        rng = np.random.default_rng(args.seed)
        found.append([])
        for number in range(args.corpora):
            corpus = draw_corpus(rng, speakers, mean, True, effect)
            predictions = []
            for order_slope in slopes:
                predictions += [
                    predict(rng, corpus, order_slope + rng.normal(0, SEED_SPREAD), noise) for _ in range(SEEDS)
                ]
                corpus.shift, corpus.stretch = (rng.normal(0, sd, speakers)[corpus.speaker] for sd in EFFECTS[effect])
            found[-1].append(difference_intervals(corpus, predictions, args.resamples, number))
            bar.update()
    return cells(found, truths)


def tables(args: argparse.Namespace) -> str:
    """The Markdown section."""
    settings = [(*size, equal) for size in SIZES for equal in (True, False)]
    runs = len(EFFECTS) * (len(settings) + len(DIFFERENCE_SIZES)) + len(NO_SPEAKERS)
    begin = time.monotonic()
    rows: list[list[list[str]]] = [[["speakers x utterances", *RULES]] for _ in range(2)]
    differences: list[list[list[str]]] = [[["speakers x utterances", RULES[1], RULES[-1]]] for _ in range(2)]
    with tqdm(total=runs * args.corpora, unit="corpus", disable=None) as bar:
        for speakers, mean, equal in settings:
            name = f"{speakers} x {mean}" if equal else f"{speakers} x {mean} on average, unequal"
            for table, line in zip(rows, simulate_cccs(args, speakers, mean, equal, bar)):
                table.append([name, *line])
        for utterances in NO_SPEAKERS:
            for table, (percentiles, ours) in zip(rows, simulate_utterances(args, utterances, bar)):
                table.append([f"{utterances} utterances, speakers unknown", percentiles, "-", "-", "-", ours])
        for speakers, mean in DIFFERENCE_SIZES:
            for table, line in zip(differences, simulate_differences(args, speakers, mean, bar)):
                table.append([f"{speakers} x {mean}", *line])
    slope, noise = REGRESSORS[args.regressor]
    cccs = " / ".join(f"{population_ccc(effect, slope, noise):.2f}" for effect in EFFECTS)
    lines = []
    for title, table in (
        (f"Coverage, speaker effect {' / '.join(EFFECTS)} (true CCC {cccs}):", rows[0]),
        ("Mean width:", rows[1]),
        (f"Difference between two orders of {SEEDS} seeds, coverage:", differences[0]),
        ("Mean width:", differences[1]),
    ):
        lines += [title, "", *cli.markdown_table(table), ""]
    lines.append(
        f"{args.corpora} corpora per setting, {args.resamples} resamples, seed {args.seed}, {args.regressor} "
        f"regressor; {time.monotonic() - begin:.0f} s on {machine()}."
    )
    return "\n".join(lines)


def main(args: argparse.Namespace) -> None:
    """Simulate, print, write."""
    if args.results:
        split_section(args.results, f"coverage {args.regressor}")
    text = tables(args)
    print(text)
    if args.results:
        replace_section(args.results, f"coverage {args.regressor}", text)


if __name__ == "__main__":
    cli.run(main, ARGS)
