"""Does the curriculum help? The same regressor under several orders and seeds: one table, two pictures.

    python -m tools.compare_curricula -emo Val --seeds 5 --orders deepmi reverse random none --corpus CORPUS

trains the regressor of training_Curriculum.py once per order and seed, on the DeepMI file that stage 2 wrote, and tests
it. With --ssl-epochs each seed trains a DeepEmoCluster and extracts its DeepMI, so that the differences between seeds
are those of the whole method:

    python -m tools.compare_curricula -emo Val --seeds 5 --ssl-epochs 200 --unlabeled UNLABELED --corpus CORPUS \\
        --orders deepmi deepmi-balanced reverse random none agreement selftaught prediction ridge --label-noise 0.3

Orders, by what comes first:

    deepmi           highest DeepMI                  (Lin, Sridhar & Busso 2024)
    deepmi-balanced  highest DeepMI within each emotion level, each level with the same share of each bin
    reverse          lowest DeepMI
    random           drawn by the seed, same pacing: the control
    none             the whole set from the start: the baseline
    agreement        lowest standard deviation between raters; needs labels_detailed  (Lotfian & Busso 2018)
    selftaught       lowest error of a regressor without curriculum that was trained on different utterances
                     (Hacohen & Weinshall 2019, cross-fitted over five folds of speakers)
    prediction       lowest error of DeepEmoCluster's own regressor: DeepMI without its clusters
    ridge            no order: scikit-learn's RidgeCV on the same features, for comparison
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

import utils
from deepmi import cli, curriculum, plots, scores, storage
from deepmi.ccc import RESAMPLES, bootstrap_groups, concordance_cc, widened_cccs, widening, widest_interval
from deepmi.process import UserError
from deepmi.seeds import derived_seed
from tools import trials

CONTROLS = ("random", "none")  # every order is compared with these


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
    cli.add_clusters_argument(parser, "number of clusters K of the DeepMI file, or of the DeepEmoClusters to train")
    parser.add_argument(
        "--seeds", type=cli.positive_int, default=5, metavar="N", help="number of seeds, counted from --seed"
    )
    parser.add_argument(
        "--orders",
        nargs="+",
        choices=trials.ORDERS,
        default=["deepmi", "deepmi-balanced", "reverse", "random", "none", "ridge"],
        metavar="ORDER",
        help="what to compare: " + ", ".join(trials.ORDERS),
    )
    cli.add_pacing_argument(parser)
    parser.add_argument(
        "--label-noise",
        type=share,
        default=0.0,
        metavar="P",
        help="share of the Train labels to replace by draws from all Train labels, different for each seed; needs "
        "--ssl-epochs where an order goes by DeepMI, which must not have seen the true labels",
    )
    cli.add_metric_dir_argument(parser)
    parser.add_argument("--metric", type=Path, metavar="FILE", help="DeepMI file, in place of -nc and --metric-dir")
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
        help="test of the differences over seeds; Wilcoxon's signed ranks need six seeds to reach p < .05, and more "
        "after the correction for the number of comparisons",
    )
    parser.add_argument("--split", default="Test1", metavar="NAME", help="split to test on")
    parser.add_argument(
        "--testing",
        type=Path,
        nargs="+",
        default=[],
        metavar="CORPUS",
        help="further corpora to test on, all their splits; their features must be of the same set",
    )
    scores.add_label_scale_argument(parser, " of the --testing corpora")
    cli.add_corpus_arguments(parser)
    parser.add_argument(
        "--ssl-epochs",
        type=cli.positive_int,
        metavar="N",
        help="train a DeepEmoCluster of N epochs for each seed, and use its DeepMI",
    )
    cli.add_unlabeled_arguments(parser)
    trials.add_trial_arguments(parser)
    cli.add_compute_arguments(parser, "the first seed; it seeds the weights, batches, dropout, random order and noise")
    return parser


# ---------------------------------------------------------------------------------------------------------------------
# Training


def by_deepemocluster(args: argparse.Namespace) -> list[str]:
    """Those of the orders that need a DeepEmoCluster."""
    return [order for order in args.orders if order in (*curriculum.METRIC_ORDERS, "prediction")]


def check_arguments(args: argparse.Namespace) -> None:
    """Raise `UserError` where flags do not fit together, before anything is computed."""
    args.orders = list(dict.fromkeys(args.orders))
    if args.label_scale and not args.testing:
        raise UserError("--label-scale is that of further corpora; name them with --testing, or leave it out.")
    args.testing_scales = scores.one_each(scores.scale_pairs(args.label_scale), args.testing, "--label-scale")
    by_metric = by_deepemocluster(args)
    if args.ssl_epochs and (args.metric or args.checkpoint):
        raise UserError("--ssl-epochs makes the DeepMI and the checkpoint; leave out --metric and --checkpoint.")
    if args.label_noise and by_metric and not args.ssl_epochs:
        raise UserError(
            f"--label-noise {args.label_noise:g}: the DeepMI behind {', '.join(by_metric)} has seen the true labels. "
            "Add --ssl-epochs N, so that each seed extracts DeepMI from its noisy labels."
        )
    if "prediction" in args.orders and not (args.ssl_epochs or args.checkpoint):
        raise UserError(
            "the order prediction needs a DeepEmoCluster checkpoint: name it with --checkpoint FILE, or train one per "
            "seed with --ssl-epochs N."
        )


def run_trials(args: argparse.Namespace, data: trials.Data) -> dict[tuple[str, int], dict]:
    """Train what is not trained yet; the results as from `trials.run_trials`, by order and seed."""
    by_seed = {seed: trials.with_changes(args, seed=seed) for seed in range(args.seed, args.seed + args.seeds)}
    later = {"selftaught", *(by_deepemocluster(args) if args.ssl_epochs else ())}
    # What an order goes by is read before any training, so that a missing file is not found hours later.
    score_files = {order: trials.score_file(args, order, data) for order in args.orders if order not in later}
    data_of = dict.fromkeys(by_seed, data)
    if args.label_noise:
        for seed, task in by_seed.items():
            task.labels = trials.noisy_labels(task)
            data_of[seed] = dataclasses.replace(data, train=utils.open_corpus(task).load("Train"))
    if later - {"selftaught"}:
        trials.make_metrics(list(by_seed.values()), args.jobs)
    if "selftaught" in args.orders:
        for task, file in trials.side_by_side(trials.self_taught, [*by_seed.values()], args.jobs, "self-taught scores"):
            task.self_taught = file
    tasks = []
    for (seed, task), order in itertools.product(by_seed.items(), args.orders):
        if order == trials.RIDGE and not args.label_noise and seed != args.seed:
            continue  # the same for all seeds
        if order == "selftaught":
            file = task.self_taught
        else:
            file = score_files[order] if order in score_files else trials.score_file(task, order, data_of[seed])
        tasks.append(trials.with_changes(task, order=order, scores=file))
    found = {
        (task.order, task.seed): result for task, result in zip(tasks, trials.run_trials(tasks, data_of, args.jobs))
    }
    return {
        (order, seed): found.get((order, seed)) or found[order, args.seed] for order in args.orders for seed in by_seed
    }


# ---------------------------------------------------------------------------------------------------------------------
# Statistics


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down method; NaN stays NaN and does not count.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    ranked = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    corrected, highest = list(p_values), 0.0
    for rank, (p, place) in enumerate(ranked):
        highest = max(highest, min(1.0, p * (len(ranked) - rank)))
        corrected[place] = highest
    return corrected


def paired_p(differences: NDArray, test: str) -> float:
    """Two-sided p-value of paired differences over seeds; NaN for fewer than two, or where all are the same.

    Args:
        differences: shape (S,).
        test: `t` (paired t) or `wilcoxon` (signed ranks).
    """
    if len(differences) < 2 or np.ptp(differences) == 0:
        return float("nan")
    found = stats.ttest_1samp(differences, 0) if test == "t" else stats.wilcoxon(differences)
    return float(found.pvalue)


def order_means(samples: NDArray, cccs: NDArray, seed: int) -> NDArray:
    """Mean CCC of each order in each bootstrap sample, with the seeds resampled too.

    Speakers and seeds are independent sources of variation; each is widened by its own factor.

    Args:
        samples: one array of `ccc.widened_cccs`, shape (resamples, orders, S).
        cccs: CCCs of the whole test set, shape (orders, S).
        seed: of the resampling.
    Returns:
        Shape (resamples, orders). A sample has the same utterances and seeds for all orders, so that differences
        between its columns are paired.
    """
    resamples, _, seeds = samples.shape
    # A random stream that is independent of that of the speakers, even where there are as many speakers as seeds.
    drawn = np.random.default_rng(derived_seed(seed, "resampled seeds")).integers(0, seeds, (resamples, seeds))
    of_seeds = cccs[:, drawn].mean(axis=2).T - cccs.mean(axis=1)
    return samples.mean(axis=2) + widening(np.ones(seeds)) * of_seeds


def compare(
    args: argparse.Namespace, test: str, data: utils.LabeledSet, results: dict[tuple[str, int], dict]
) -> tuple[pd.DataFrame, str]:
    """Statistics of every order on one test set.

    Args:
        test: its name in the results.
        data: the test set.
        results: by order and seed.
    Returns:
        (table with one row per order; what the bootstrap resamples, in words).
    """
    by_order = {order: [results[order, args.seed + number] for number in range(args.seeds)] for order in args.orders}
    predictions = [[run["tests"][test][name] for name in data.names] for runs in by_order.values() for run in runs]
    shape = len(args.orders), args.seeds
    cccs = np.reshape([concordance_cc(data.labels, one) for one in predictions], shape)
    groups, drawn, warning = bootstrap_groups(data.speakers, data.names)
    draws = [
        order_means(samples.reshape(-1, *shape), cccs, args.seed)
        for samples in widened_cccs(data.labels, predictions, groups, seed=args.seed)
    ]
    rows, p_values = [], {}
    for place, (order, runs) in enumerate(by_order.items()):
        low, high = widest_interval([means[:, place] for means in draws])
        curves = [run["curve"] for run in runs if run["curve"]]
        row = {
            "order": order,
            "test": test,
            "utterances": len(data.names),
            "ccc": cccs[place].mean(),
            "sd": cccs[place].std(ddof=1) if args.seeds > 1 else float("nan"),
            "low": low,
            "high": high,
            "best_epoch": np.mean([run["best_epoch"] for run in runs]) if curves else float("nan"),
            "validation_area": np.mean(curves) if curves else float("nan"),
        }
        for control in (control for control in CONTROLS if control in args.orders and control != order):
            other = args.orders.index(control)
            difference = cccs[place] - cccs[other]
            low, high = widest_interval([means[:, place] - means[:, other] for means in draws], limit=2)
            p = p_values[frozenset((order, control))] = paired_p(difference, args.paired_test)
            names = [f"minus_{control}", f"minus_{control}_low", f"minus_{control}_high", f"p_{control}"]
            row |= dict(zip([*names, f"p_{control}_holm"], [difference.mean(), low, high, p, p]))
        rows.append(row | {f"ccc_seed{args.seed + number}": ccc for number, ccc in enumerate(cccs[place])})
    # The two controls are compared with each other in two rows, but that is one comparison.
    corrected = dict(zip(p_values, holm(list(p_values.values()))))
    for row in rows:
        row |= {
            f"p_{control}_holm": corrected.get(frozenset((row["order"], control)))
            for control in CONTROLS
            if f"p_{control}" in row
        }
    return pd.DataFrame(rows), drawn + warning


# ---------------------------------------------------------------------------------------------------------------------
# Outputs


def number(value: float, digits: int = 3) -> str:
    """A figure without its leading zero; `-` for NaN."""
    if math.isnan(value):
        return "-"
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def markdown(table: pd.DataFrame) -> list[str]:
    """The statistics of one test set as a Markdown table."""
    controls = [control for control in CONTROLS if control in set(table["order"])]
    has_p = any(table.get(f"p_{control}", pd.Series()).notna().any() for control in controls)
    rows = [["order", "CCC", "sd", "95 % interval", "best epoch", "validation CCC, mean of epochs"]]
    rows[0] += [f"minus {control} [95 %]{', p' * has_p}" for control in controls]
    for row in table.to_dict("records"):
        cells = [row["order"], number(row["ccc"]), number(row["sd"]), f"{number(row['low'])} .. {number(row['high'])}"]
        cells += [number(row["best_epoch"], 1), number(row["validation_area"])]
        for control in controls:
            ends = ("", "_low", "_high")
            mean, low, high = (number(row.get(f"minus_{control}{end}", float("nan"))) for end in ends)
            p = number(row.get(f"p_{control}_holm", float("nan")))
            cells.append("-" if mean == "-" else f"{mean} [{low} .. {high}]" + (f", p {p}" if p != "-" else ""))
        rows.append(cells)
    return cli.markdown_table(rows)


def describe(args: argparse.Namespace, data: trials.Data, drawn: dict[str, str]) -> list[str]:
    """What was compared, for readers of the table who do not have its command.

    Args:
        drawn: by test set, what the bootstrap resamples.
    """
    train = len(data.train.names)
    noise = f", {100 * args.label_noise:g} % of the Train labels replaced at random" if args.label_noise else ""
    metric = f", one DeepEmoCluster of {args.ssl_epochs} epochs per seed" if args.ssl_epochs else ", one DeepMI for all"
    lines = [
        f"{args.emo_attr}: {train} Train, {len(data.validation.names)} Validation utterances{noise}; -ep {args.epoch} "
        f"-batch {args.batch_size} -nc {args.num_clusters}, pacing {args.pacing}"
        f"{metric if by_deepemocluster(args) else ''}, seeds {args.seed} to {args.seed + args.seeds - 1}.",
        *(f"{test}: bootstrap over seeds and {words}." for test, words in drawn.items()),
        f"Intervals: {RESAMPLES} resamples, differences paired by seed and utterance.",
    ]
    if args.seeds > 1:
        test = "paired t test" if args.paired_test == "t" else "Wilcoxon signed-rank test"
        lines.append(
            f"p: {test} over the {args.seeds} seeds, corrected by Holm over all comparisons of a table; unlike the "
            "intervals it does not account for the choice of test utterances."
        )
    else:
        lines.append("One seed does not show how much seeds differ, so there is no p.")
    if args.epoch <= curriculum.FULL_EPOCH:
        last = curriculum.training_size("deepmi", args.epoch - 1, train, args.pacing)
        lines.append(
            f"warning: -ep {args.epoch} ends within the curriculum, at {last} of {train} Train utterances, while none, "
            f"ridge and the folds of selftaught have seen all of theirs. Use at least -ep {curriculum.FULL_EPOCH + 1}."
        )
    return lines


def main(args: argparse.Namespace) -> None:
    """Train, compare, write the table and two pictures."""
    check_arguments(args)
    trials.prepare(args)
    data = trials.load_data(args)
    results = run_trials(args, data)

    tables, drawn, lines = {}, {}, []
    for test, of in data.tests.items():
        tables[test], drawn[test] = compare(args, test, of, results)
        lines += [f"{args.emo_attr} on {test}, {len(of.names)} utterances:", "", *markdown(tables[test]), ""]
    lines += describe(args, data, drawn)
    print("\n".join(lines))

    stem = f"compare_{args.emo_attr}" + (f"_noise{100 * args.label_noise:g}" if args.label_noise else "")
    stem += f"_{args.pacing}" if args.pacing != "paper" else ""
    files = [args.results_dir / f"{stem}{ending}" for ending in (".md", ".csv", "_curves.png", "_orders.png")]
    storage.write_text(files[0], "\n".join(lines) + "\n")
    storage.write_text(files[1], pd.concat(tables.values()).to_csv(index=False))
    title = f"{args.emo_attr}, {args.seeds} seeds"
    title += f", {args.label_noise:.0%} label noise" if args.label_noise else ""
    curves: dict[str, list[list[float]]] = {}
    for (order, _), result in results.items():
        if result["curve"]:
            curves.setdefault(order, []).append(result["curve"])
    plots.draw_validation_curves(curves, files[2], title)
    plots.draw_orders(tables, files[3], title)
    print("\n".join(f"wrote {file}" for file in files))


if __name__ == "__main__":
    cli.run(main, get_args_parser())
