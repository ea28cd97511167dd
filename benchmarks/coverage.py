"""How often does a 95 % interval contain the true CCC? Simulated corpora with known true CCC.

    python -m benchmarks.coverage --corpora 400 --results benchmarks/RESULTS.md

Draws speakers, utterances, labels and predictions from a known population. Several rules for the interval are compared
by their coverage (fraction of corpora whose interval contains the CCC of the population) and their mean width. Speakers
differ in their labels, and in shift and slope of their predictions (the speaker effect).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats
from tqdm import tqdm

from benchmarks.sections import add_results_argument, fill_section, machine
from deepmi import ccc, cli
from tools.seed_statistics import order_means

LABELS = (0.5, 0.9)  # standard deviation of labels between and within speakers
EFFECTS = {"none": (0.0, 0.0), "medium": (0.25, 0.12), "large": (0.7, 0.3)}  # sd over speakers of shift and slope
REGRESSORS = {"typical": (0.6, 0.8), "accurate": (0.9, 0.25)}  # slope of the predictions, sd of their noise
BIAS = 0.2
SIZES = ((2, 60), (4, 40), (10, 30), (20, 30), (60, 30))  # speakers, mean utterances per speaker
NO_SPEAKERS = (20, 120, 600)  # utterances
RULES = ("utterances", "speakers, then utterances", "whole speakers", "jackknife and t", "this program")
SEEDS = 5
SEED_SPREAD = 0.05  # sd over training seeds of the slope
DIFFERENCE_SIZES = ((2, 60), (10, 30), (20, 30))

Cells = tuple[list[str], list[str]]  # coverage and mean width of each rule


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


@dataclass
class Corpus:
    """One simulated test set of N utterances.

    Attributes:
        speaker: number of the speaker of each utterance, shape (N,).
        labels: shape (N,).
        shift, stretch: effects of the speaker of each utterance, shape (N,).
    """

    speaker: np.ndarray
    labels: np.ndarray
    shift: np.ndarray
    stretch: np.ndarray


def draw_corpus(rng: np.random.Generator, speakers: int, mean: int, equal: bool, effect: str) -> Corpus:
    """A test set with some speakers and `mean` utterances per speaker (on average unless `equal`)."""
    sizes = np.full(speakers, mean)
    if not equal:
        sizes = np.maximum(3, rng.gamma(2, mean / 2, speakers).round()).astype(int)
    speaker = np.repeat(np.arange(speakers), sizes)
    between, within = LABELS
    labels = rng.normal(0, between, speakers)[speaker] + rng.normal(0, within, len(speaker))
    shift, stretch = (rng.normal(0, sd, speakers)[speaker] for sd in EFFECTS[effect])
    return Corpus(speaker, labels, shift, stretch)


def predict(rng: np.random.Generator, corpus: Corpus, slope: float, noise: float) -> np.ndarray:
    """Predictions of a regressor with this slope and noise, shape (N,)."""
    clean = BIAS + (slope + corpus.stretch) * corpus.labels + corpus.shift
    return clean + rng.normal(0, noise, len(corpus.labels))


def population_ccc(effect: str, slope, noise: float):
    """CCC of the population that `draw_corpus` draws from, for each slope."""
    shift, stretch = EFFECTS[effect]
    variance = sum(sd**2 for sd in LABELS)
    predicted = (slope**2 + stretch**2) * variance + shift**2 + noise**2
    return 2 * slope * variance / (variance + predicted + BIAS**2)


def two_stages(corpus: Corpus, predictions: list[np.ndarray], resamples: int, seed: int) -> np.ndarray:
    """Bootstrap CCCs by speakers, then utterances within each drawn speaker; shape (resamples, S)."""
    x = corpus.labels
    sums = np.stack([ccc.moment_sums(x, y) for y in predictions], 1)
    sizes = np.bincount(corpus.speaker)
    starts = np.cumsum(sizes) - sizes
    rng = np.random.default_rng(seed)
    times = np.empty((resamples, len(x)))
    for sample in range(resamples):
        drawn = rng.integers(0, len(sizes), len(sizes))
        size = np.repeat(sizes[drawn], sizes[drawn])
        utterances = np.repeat(starts[drawn], sizes[drawn]) + rng.integers(0, size)
        times[sample] = np.bincount(utterances, minlength=len(x))
    return ccc.ccc_of_sums(np.tensordot(times, sums, 1))


def jackknife(corpus: Corpus, prediction: np.ndarray) -> tuple[float, float]:
    """Interval from Fisher's z of the CCC, its variance by leaving out one speaker at a time, and Student's t."""
    sums = ccc.moment_sums(corpus.labels, prediction)
    by_speaker = np.stack([np.bincount(corpus.speaker, column) for column in sums.T], 1)
    count = len(by_speaker)
    estimate = np.arctanh(ccc.ccc_of_sums(sums.sum(axis=0)))
    z = np.arctanh(ccc.ccc_of_sums(sums.sum(axis=0) - by_speaker))
    half = stats.t.ppf(0.975, count - 1) * np.sqrt((count - 1) / count * ((z - z.mean()) ** 2).sum())
    return np.tanh(estimate - half), np.tanh(estimate + half)


def intervals(corpus: Corpus, prediction: np.ndarray, resamples: int, seed: int) -> Iterator[tuple[float, float]]:
    """The interval of every rule."""
    whole = ccc.concordance_cc(corpus.labels, prediction)
    draws = ccc.widened_cccs(corpus.labels, [prediction], list(corpus.speaker), resamples, seed=seed)
    sizes = np.ones(len(corpus.labels)), np.bincount(corpus.speaker)
    # Undoing the widening gives the same result as drawing again, and is faster.
    by_utterance, by_speaker = (whole + (draw - whole) / ccc.widening(size) for draw, size in zip(draws, sizes))
    yield ccc.percentile_interval(by_utterance)
    yield ccc.percentile_interval(two_stages(corpus, [prediction], resamples, seed))
    yield ccc.percentile_interval(by_speaker)
    yield jackknife(corpus, prediction)
    yield ccc.widest_interval(draws)


def without_speakers(corpus: Corpus, prediction: np.ndarray, resamples: int, seed: int) -> list[tuple[float, float]]:
    """The intervals without speakers: percentiles, and that of this program."""
    cccs = ccc.bootstrap_cccs(corpus.labels, [prediction], None, resamples, seed)
    ours = ccc.bootstrap_interval(corpus.labels, prediction, None, resamples, seed=seed)
    return [ccc.percentile_interval(cccs), ours]


def difference_intervals(corpus: Corpus, predictions: list, resamples: int, seed: int) -> list[tuple[float, float]]:
    """Intervals of the difference in mean CCC of two orders: speakers, utterances and seeds; that of this program."""
    cccs = np.reshape([ccc.concordance_cc(corpus.labels, one) for one in predictions], (2, SEEDS))
    nested = two_stages(corpus, predictions, resamples, seed).reshape(-1, 2, SEEDS)
    seeds = np.random.default_rng((seed, 1)).integers(0, SEEDS, (resamples, 1, SEEDS))
    nested = np.take_along_axis(nested, seeds, axis=2).mean(axis=2)
    draws = ccc.widened_cccs(corpus.labels, predictions, list(corpus.speaker), resamples, seed=seed)
    draws = [order_means(draw.reshape(-1, 2, SEEDS), cccs, seed) for draw in draws]
    return [
        ccc.percentile_interval(nested[:, 0] - nested[:, 1]),
        ccc.widest_interval([means[:, 0] - means[:, 1] for means in draws], limit=2),
    ]


def simulate(args: argparse.Namespace, bar: tqdm, truths: dict[str, float], draw: Callable) -> Cells:
    """Coverage and mean width of each rule, as cells that show all speaker effects.

    Args:
        args: the command line.
        bar: counts corpora.
        truths: speaker effect -> true value.
        draw: (random numbers, speaker effect, number of the corpus) -> interval of each rule.
    """
    found = []  # (effects, corpora, rules, 2)
    for effect in truths:
        rng = np.random.default_rng(args.seed)
        found.append([])
        for number in range(args.corpora):
            found[-1].append(list(draw(rng, effect, number)))
            bar.update()
    low, high = np.moveaxis(np.array(found), -1, 0)
    truth = np.reshape(list(truths.values()), (-1, 1, 1))
    covered = ((low <= truth) & (truth <= high)).mean(axis=1).T
    widths = (high - low).mean(axis=1).T
    return (
        [" / ".join(f"{value:.2f}" for value in rule) for rule in covered],
        [" / ".join(f"{value:.3f}" for value in rule) for rule in widths],
    )


def simulate_cccs(args: argparse.Namespace, bar: tqdm, effects: Iterable[str], rules: Callable, *sizes) -> Cells:
    """The cells of one row: intervals of the CCC according to `rules`, for corpora of these sizes."""
    slope, noise = REGRESSORS[args.regressor]

    def draw(rng: np.random.Generator, effect: str, number: int) -> Iterable[tuple[float, float]]:
        corpus = draw_corpus(rng, *sizes, effect)
        return rules(corpus, predict(rng, corpus, slope, noise), args.resamples, number)

    return simulate(args, bar, {effect: population_ccc(effect, slope, noise) for effect in effects}, draw)


def simulate_differences(args: argparse.Namespace, bar: tqdm, speakers: int, mean: int) -> Cells:
    """The cells of one row: two orders with five seeds each; the second has a lower slope and new speaker effects."""
    slope, noise = REGRESSORS[args.regressor]
    slopes = slope, slope - 0.1
    any_seed = np.random.default_rng(0).normal(0, SEED_SPREAD, 1_000_000)

    def draw(rng: np.random.Generator, effect: str, number: int) -> list[tuple[float, float]]:
        corpus, predictions = draw_corpus(rng, speakers, mean, True, effect), []
        for order_slope in slopes:
            seeds = (order_slope + rng.normal(0, SEED_SPREAD) for _ in range(SEEDS))
            predictions += [predict(rng, corpus, seed_slope, noise) for seed_slope in seeds]
            corpus.shift, corpus.stretch = (rng.normal(0, sd, speakers)[corpus.speaker] for sd in EFFECTS[effect])
        return difference_intervals(corpus, predictions, args.resamples, number)

    truths = {}
    for effect in EFFECTS:
        first, second = (population_ccc(effect, one + any_seed, noise).mean() for one in slopes)
        truths[effect] = first - second
    return simulate(args, bar, truths, draw)


def tables(args: argparse.Namespace) -> str:
    """The Markdown section."""
    settings = [(*size, equal) for size in SIZES for equal in (True, False)]
    runs = len(EFFECTS) * (len(settings) + len(DIFFERENCE_SIZES)) + len(NO_SPEAKERS)
    begin = time.monotonic()
    cccs: list[list[list[str]]] = [[["speakers x utterances", *RULES]] for _ in range(2)]  # coverage, mean width
    differences: list[list[list[str]]] = [[["speakers x utterances", RULES[1], RULES[-1]]] for _ in range(2)]
    with tqdm(total=runs * args.corpora, unit="corpus", disable=None) as bar:
        for speakers, mean, equal in settings:
            name = f"{speakers} x {mean}" if equal else f"{speakers} x {mean} on average, unequal"
            for table, line in zip(cccs, simulate_cccs(args, bar, EFFECTS, intervals, speakers, mean, equal)):
                table.append([name, *line])
        for utterances in NO_SPEAKERS:  # a different unknown speaker for every utterance; no speaker effect
            for table, (percentiles, ours) in zip(
                cccs, simulate_cccs(args, bar, ["none"], without_speakers, utterances, 1, True)
            ):
                table.append([f"{utterances} utterances, speakers unknown", percentiles, "-", "-", "-", ours])
        for speakers, mean in DIFFERENCE_SIZES:
            for table, line in zip(differences, simulate_differences(args, bar, speakers, mean)):
                table.append([f"{speakers} x {mean}", *line])
    slope, noise = REGRESSORS[args.regressor]
    true_cccs = " / ".join(f"{population_ccc(effect, slope, noise):.2f}" for effect in EFFECTS)
    first = f"Coverage, speaker effect {' / '.join(EFFECTS)} (true CCC {true_cccs}):"
    titles = first, "Mean width:", f"Difference between two orders of {SEEDS} seeds, coverage:", "Mean width:"
    lines = [
        line for title, rows in zip(titles, cccs + differences) for line in (title, "", *cli.markdown_table(rows), "")
    ]
    lines.append(
        f"{args.corpora} corpora per setting, {args.resamples} resamples, seed {args.seed}, {args.regressor} "
        f"regressor; {time.monotonic() - begin:.0f} s on {machine()}."
    )
    return "\n".join(lines)


def main(args: argparse.Namespace) -> None:
    """Simulate, print, write."""
    fill_section(args.results, f"coverage {args.regressor}")
    text = tables(args)
    print(text)
    fill_section(args.results, f"coverage {args.regressor}", text)


if __name__ == "__main__":
    cli.run(main, cli.parse(get_args_parser()))
