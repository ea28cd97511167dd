"""Does the curriculum help? The same regressor under several orders and seeds: one table, two pictures.

    python -m tools.compare_curricula -emo Val --seeds 5 --orders deepmi reverse random none --corpus CORPUS

trains the regressor of training_Curriculum.py once an order and seed, on the DeepMI file that stage 2 wrote, and tests
it. With --ssl-epochs each seed has a DeepEmoCluster and a DeepMI of its own, so that the differences between seeds are
those of the whole method:

    python -m tools.compare_curricula -emo Val --seeds 5 --ssl-epochs 200 --unlabeled UNLABELED --corpus CORPUS \\
        --orders deepmi deepmi-balanced reverse random none agreement selftaught prediction ridge --label-noise 0.3

Orders, the first to be trained first:

    deepmi           highest DeepMI                  (Lin, Sridhar & Busso 2024)
    deepmi-balanced  highest DeepMI within each emotion level, every level with the same share of every bin
    reverse          lowest DeepMI
    random           drawn by the seed, same pacing: the control
    none             all from the start: the baseline
    agreement        least standard deviation between raters; needs labels_detailed  (Lotfian & Busso 2018)
    selftaught       least error of a regressor without curriculum that was trained on other utterances
                     (Hacohen & Weinshall 2019, cross-fitted over five folds of speakers)
    prediction       least error of DeepEmoCluster's own regressor: what the clusters add to DeepMI is missing here
    ridge            no order: scikit-learn's RidgeCV on the same features, the yardstick
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import math
from pathlib import Path

from deepmi import cli, curriculum
from deepmi.process import UserError
from deepmi.seeds import derived_seed

CONTROLS = ("random", "none")  # what the other orders are compared with


def share(text: str) -> float:
    """A number of at least 0 and below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to below 1, found {text}")
    return value


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    parser = cli.new_parser(__doc__)
    cli.add_training_arguments(parser, epochs=70)
    cli.add_clusters_argument(parser, "clusters of DeepEmoCluster: those of the DeepMI file, or to be made")
    parser.add_argument(
        "--seeds", type=cli.positive_int, default=5, metavar="N", help="number of seeds, counted from --seed"
    )
    parser.add_argument(
        "--orders",
        nargs="+",
        choices=curriculum.COMPARED,
        default=["deepmi", "deepmi-balanced", "reverse", "random", "none", "ridge"],
        metavar="ORDER",
        help="what to compare: " + ", ".join(curriculum.COMPARED),
    )
    cli.add_schedule_arguments(parser)
    parser.add_argument(
        "--label-noise",
        type=share,
        default=0.0,
        metavar="P",
        help="share of the Train labels to replace by draws from all Train labels, anew for each seed; needs "
        "--ssl-epochs where an order goes by DeepMI, which must not have seen the true labels",
    )
    cli.add_metric_dir_argument(parser)
    parser.add_argument("--metric", type=Path, metavar="FILE", help="DeepMI file, whatever -nc and --metric-dir say")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="DeepEmoCluster checkpoint of that DeepMI file, for the order prediction",
    )
    parser.add_argument(
        "--paired-test",
        choices=("t", "wilcoxon"),
        default="t",
        help="test of the differences over seeds; Wilcoxon's signed ranks need six seeds to fall below .05, and more "
        "after the correction for the number of comparisons",
    )
    parser.add_argument("--split", default="Test1", metavar="NAME", help="split to test on")
    parser.add_argument(
        "--testing",
        type=Path,
        nargs="+",
        default=[],
        metavar="CORPUS",
        help="other corpora to test on, whole, for mismatched conditions; their features must be of the same set",
    )
    cli.add_label_scale_argument(parser, " of the --testing corpora")
    cli.add_corpus_arguments(parser)
    parser.add_argument(
        "--ssl-epochs",
        type=cli.positive_int,
        metavar="N",
        help="train a DeepEmoCluster of N epochs for each seed, and take its DeepMI",
    )
    cli.add_unlabeled_arguments(parser)
    cli.add_trial_arguments(parser)
    cli.add_compute_arguments(parser, "the first seed; each seeds weights, batches, dropout, order and noise")
    return parser


if __name__ == "__main__":
    ARGS = cli.parse(get_args_parser())  # before the heavy imports, so that --help answers at once

import numpy as np
import pandas as pd
from scipy import stats

import testing_Curriculum
from deepmi import storage
from deepmi.ccc import RESAMPLES, concordance_cc, widened_cccs, widening, widest_interval
from tools import comparison_plots, trials

# ---------------------------------------------------------------------------------------------------------------------
# Training


def by_deepemocluster(args: argparse.Namespace) -> list[str]:
    """Those of the orders that go by what DeepEmoCluster gives."""
    return [order for order in args.orders if order in (*curriculum.METRIC_ORDERS, "prediction")]


def check_arguments(args: argparse.Namespace) -> None:
    """Raise `UserError` where flags do not fit together; nothing has been computed then."""
    args.orders = list(dict.fromkeys(args.orders))
    if args.label_scale and not args.testing:
        raise UserError("--label-scale is that of other corpora; name them with --testing, or leave it out.")
    scales = testing_Curriculum.scale_pairs(args.label_scale)
    args.testing_scales = tuple(testing_Curriculum.one_each(scales, args.testing, "--label-scale"))
    by_metric = by_deepemocluster(args)
    if args.ssl_epochs:
        if args.metric or args.checkpoint:
            raise UserError("--ssl-epochs makes DeepMI and checkpoint itself; leave out --metric, --checkpoint.")
        return
    if args.label_noise and by_metric:
        raise UserError(
            f"--label-noise {args.label_noise:g}: {', '.join(by_metric)} would go by a DeepMI that has seen the true "
            "labels. Add --ssl-epochs N, so that each seed makes its own from the noisy ones."
        )
    if "prediction" in args.orders and args.checkpoint is None:
        raise UserError(
            "the order prediction needs a DeepEmoCluster checkpoint: name it with --checkpoint FILE, or have one "
            "trained for each seed with --ssl-epochs N."
        )


def seeds_of(args: argparse.Namespace) -> list[int]:
    """The seeds of a comparison."""
    return [args.seed + number for number in range(args.seeds)]


def run_trials(args: argparse.Namespace) -> list[dict]:
    """Train everything that is not there yet; the results as from `trials.run_trial`, one an order and seed."""
    by_seed = [trials.with_changes(args, seed=seed) for seed in seeds_of(args)]
    if args.label_noise:
        for task in by_seed:
            task.labels = trials.noisy_labels(task)
    if args.ssl_epochs and by_deepemocluster(args):
        trials.make_metrics(by_seed, args.jobs)
    if "selftaught" in args.orders:
        for task, scores in trials.side_by_side(trials.self_taught, by_seed, args.jobs, "self-taught scores"):
            task.scores = scores
    tasks = []
    for task, order in itertools.product(by_seed, args.orders):
        if order == curriculum.RIDGE and not args.label_noise and task.seed != args.seed:
            continue  # the same for all seeds
        tasks.append(trials.with_changes(task, order=order))
    return [result for _, result in trials.side_by_side(trials.run_trial, tasks, args.jobs, "regressors")]


# ---------------------------------------------------------------------------------------------------------------------
# Statistics


def holm(p_values: list[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down method; NaN stays NaN and does not count.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    ranked = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    corrected, highest = list(p_values), 0.0
    for rank, (p, place) in enumerate(ranked):
        highest = max(highest, min(1.0, p * (len(ranked) - rank)))
        corrected[place] = highest
    return corrected


def paired_p(differences, test: str) -> float:
    """p-value (two-sided) of paired differences over seeds, NaN where there are too few or none differs.

    Args:
        differences: shape (S,).
        test: `t` (paired t) or `wilcoxon` (signed ranks; six seeds at least, or no result can be below .05).
    """
    if len(differences) < 2 or np.ptp(differences) == 0:
        return float("nan")
    if test == "t":
        return float(stats.ttest_1samp(differences, 0).pvalue)
    return float(stats.wilcoxon(differences).pvalue)


def order_means(samples, cccs, seed: int):
    """Mean CCC of each order in each bootstrap sample, with the seeds resampled too.

    Speakers and seeds are separate sources of chance; the spread of each is widened by its own factor.

    Args:
        samples: one of `metrics.widened_cccs`, shape (resamples, orders, S).
        cccs: CCCs of the whole test set, shape (orders, S).
        seed: of the resampling.
    Returns:
        Shape (resamples, orders). A sample has the same utterances and seeds for all orders, so that differences
        between its columns are paired.
    """

    resamples, _, seeds = samples.shape
    # A random stream separate from that of the speakers, so that equal numbers of both are not drawn alike.
    drawn = np.random.default_rng(derived_seed(seed, "resampled seeds")).integers(0, seeds, (resamples, seeds))
    of_seeds = cccs[:, drawn].mean(axis=2).T - cccs.mean(axis=1)
    return samples.mean(axis=2) + widening(np.ones(seeds)) * of_seeds


def compare(args: argparse.Namespace, test: str, data, results: dict[tuple[str, int], dict]):
    """Statistics of every order on one test set.

    Args:
        test: its name in the results.
        data: its `utils.LabeledSet`.
        results: by order and seed.
    Returns:
        (table, one row per order; what the bootstrap resamples, in words).
    """

    seeds = seeds_of(args)
    predictions = [
        [results[order, seed]["tests"][test][name] for name in data.names] for order in args.orders for seed in seeds
    ]
    shape = len(args.orders), len(seeds)
    cccs = np.reshape([concordance_cc(data.labels, one) for one in predictions], shape)
    groups, drawn, warning = testing_Curriculum.bootstrap_groups(data.speakers, data.names)
    draws = [
        order_means(samples.reshape(-1, *shape), cccs, args.seed)
        for samples in widened_cccs(data.labels, predictions, groups, seed=args.seed)
    ]

    rows, p_values = [], {}
    for place, order in enumerate(args.orders):
        low, high = widest_interval([means[:, place] for means in draws])
        runs = [results[order, seed] for seed in seeds]
        has_curve = runs[0]["curve"] is not None
        row = {
            "order": order,
            "test": test,
            "utterances": len(data.names),
            "ccc": cccs[place].mean(),
            "sd": cccs[place].std(ddof=1) if len(seeds) > 1 else float("nan"),
            "low": low,
            "high": high,
            "best_epoch": np.mean([run["best_epoch"] for run in runs]) if has_curve else float("nan"),
            "validation_area": np.mean([run["curve"] for run in runs]) if has_curve else float("nan"),
        }
        for control in CONTROLS:
            if control in args.orders and order != control:
                other = args.orders.index(control)
                difference = cccs[place] - cccs[other]
                row[f"minus_{control}"] = difference.mean()
                bounds = widest_interval([means[:, place] - means[:, other] for means in draws], limit=2)
                row[f"minus_{control}_low"], row[f"minus_{control}_high"] = bounds
                row[f"p_{control}"] = p_values[frozenset((order, control))] = paired_p(difference, args.paired_test)
        row |= {f"ccc_seed{seed}": ccc for seed, ccc in zip(seeds, cccs[place])}
        rows.append(row)
    # The two controls are compared with each other twice in the table, but that is one comparison.
    corrected = dict(zip(p_values, holm(list(p_values.values()))))
    table = pd.DataFrame(rows)
    for control in CONTROLS:
        if f"p_{control}" in table:
            found = [corrected.get(frozenset((order, control)), float("nan")) for order in args.orders]
            table.insert(table.columns.get_loc(f"p_{control}") + 1, f"p_{control}_holm", found)
    return table, drawn + warning


# ---------------------------------------------------------------------------------------------------------------------
# Outputs


def number(value: float, digits: int = 3) -> str:
    """A figure without its leading zero; `-` where there is none."""
    if value is None or math.isnan(value):
        return "-"
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 and digits else text


def markdown(table, controls: list[str]) -> list[str]:
    """The statistics of one test set as a Markdown table."""
    header = ["order", "CCC", "sd", "95 % interval", "best epoch", "validation CCC, mean of epochs"]
    p_columns = [f"p_{control}" for control in controls if f"p_{control}" in table]
    with_p = ", p" if table[p_columns].notna().any(axis=None) else ""
    header += [f"minus {control} [95 %]{with_p}" for control in controls]
    rows = [header]
    for row in table.to_dict("records"):
        cells = [row["order"], number(row["ccc"]), number(row["sd"]), f"{number(row['low'])} .. {number(row['high'])}"]
        cells += [number(row["best_epoch"], 1), number(row["validation_area"])]
        for control in controls:
            difference = row.get(f"minus_{control}", float("nan"))
            if math.isnan(difference):
                cells.append("-")
                continue
            low, high = (number(row[f"minus_{control}_{end}"]) for end in ("low", "high"))
            p = row[f"p_{control}_holm"]
            cells.append(f"{number(difference)} [{low} .. {high}]" + ("" if math.isnan(p) else f", p {number(p)}"))
        rows.append(cells)
    return cli.markdown_table(rows)


def describe_schedule(args: argparse.Namespace) -> str:
    """Pacing and learning rate in words, with the bins where they are not the paper's."""
    bins = f" of {args.bins} bins, {args.epochs_per_bin} epochs each"
    is_papers = (args.bins, args.epochs_per_bin) == (curriculum.NUM_BINS, curriculum.EPOCHS_PER_BIN)
    return f"pacing {args.pacing}{'' if is_papers else bins}, rate decay {args.rate_decay}"


def describe(args: argparse.Namespace, train: int, validation: int, drawn: dict[str, str]) -> list[str]:
    """What was compared, for whoever finds the table without its command.

    Args:
        train, validation: number of utterances.
        drawn: by test set, what the bootstrap resamples.
    """
    noise = f", {100 * args.label_noise:g} % of the Train labels drawn anew" if args.label_noise else ""
    metric = (
        f", DeepEmoCluster of {args.ssl_epochs} epochs for each seed" if args.ssl_epochs else ", one DeepMI for all"
    )
    metric = metric if by_deepemocluster(args) else ""
    names = {"t": "paired t test", "wilcoxon": "Wilcoxon signed-rank test"}
    lines = [
        f"{args.emo_attr}: {train} Train, {validation} Validation utterances{noise}; -ep {args.epoch} -batch "
        f"{args.batch_size} -nc {args.num_clusters}, {describe_schedule(args)}{metric}, seeds {args.seed} to "
        f"{args.seed + args.seeds - 1}.",
    ]
    lines += [f"{test}: bootstrap over seeds and {words}." for test, words in drawn.items()]
    lines.append(f"Intervals: {RESAMPLES} resamples, differences paired by seed and utterance.")
    if args.seeds > 1:
        lines.append(
            f"p: {names[args.paired_test]} over the {args.seeds} seeds, corrected by Holm over all comparisons of a "
            "table; unlike the intervals it does not ask whether other utterances would say the same."
        )
    else:
        lines.append("One seed says nothing of how far seeds differ: no p.")
    schedule = cli.schedule(args)
    if args.epoch <= schedule.full_epoch:
        last = schedule.size("deepmi", args.epoch - 1, train)
        lines.append(
            f"warning: -ep {args.epoch} ends within the curriculum, at {last} of {train} Train utterances; none, ridge "
            f"and the folds of selftaught have had all of theirs. From -ep {schedule.full_epoch + 1} on all have."
        )
    return lines


def output_stem(args: argparse.Namespace) -> Path:
    """results/compare_Val, with noise, pacing and rate decay in the name; other settings replace the files."""
    noise = f"_noise{100 * args.label_noise:g}" if args.label_noise else ""
    pacing = f"_{args.pacing}" if args.pacing != "paper" else ""
    decay = f"_{args.rate_decay}" if args.rate_decay != "paper" else ""
    return args.results_dir / f"compare_{args.emo_attr}{noise}{pacing}{decay}"


def look_at_input(args: argparse.Namespace) -> tuple[dict, tuple[int, int]]:
    """(`utils.LabeledSet` of every test set, number of Train and Validation utterances).

    Raises:
        UserError: something that an order goes by is missing; hours of training are not needed to find that.
    """
    data = trials.load_data(args)
    made_here = {curriculum.RIDGE, "selftaught", *(by_deepemocluster(args) if args.ssl_epochs else ())}
    with contextlib.redirect_stdout(io.StringIO()):
        for order in args.orders:
            if order not in made_here:
                trials.order_of(trials.with_changes(args, order=order), data)
    sizes = len(data.train.data.names), len(data.validation.data.names)
    return {test: part.data for test, part in data.tests.items()}, sizes


def main(args: argparse.Namespace) -> None:
    """Train, compare, write table and pictures."""

    check_arguments(args)
    trials.prepare(args)
    args.testing = tuple(args.testing)
    tests, sizes = look_at_input(args)
    results = {(result["order"], result["seed"]): result for result in run_trials(args)}
    for seed in seeds_of(args):
        if curriculum.RIDGE in args.orders:
            results.setdefault((curriculum.RIDGE, seed), results[curriculum.RIDGE, args.seed])

    tables, drawn, lines = {}, {}, []
    controls = [control for control in CONTROLS if control in args.orders]
    for test, data in tests.items():
        tables[test], drawn[test] = compare(args, test, data, results)
        lines += [f"{args.emo_attr} on {test}, {len(data.names)} utterances:", ""]
        lines += [*markdown(tables[test], controls), ""]
    lines += describe(args, *sizes, drawn)
    print("\n".join(lines))

    stem = output_stem(args)
    files = [stem.with_name(stem.name + ending) for ending in (".md", ".csv", "_curves.png", "_orders.png")]
    storage.write_text(files[0], "\n".join(lines) + "\n")
    storage.write_text(files[1], pd.concat(tables.values()).to_csv(index=False))
    curves = {
        order: [results[order, seed]["curve"] for seed in seeds_of(args)]
        for order in args.orders
        if order != curriculum.RIDGE
    }
    title = f"{args.emo_attr}, {args.seeds} seeds" + (
        f", {args.label_noise:.0%} label noise" if args.label_noise else ""
    )
    comparison_plots.draw_validation_curves(curves, files[2], title)
    comparison_plots.draw_orders(tables, files[3], title)
    print("\n".join(f"wrote {file}" for file in files))


if __name__ == "__main__":
    cli.run(main, ARGS)
