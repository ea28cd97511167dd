"""Does the curriculum help? The same regressor under several orders, schedules and seeds: one table, two pictures.

    python -m tools.compare_curricula -emo Val --seeds 5 --orders deepmi reverse random none --corpus CORPUS

trains the regressor of training_Curriculum.py once per order and seed, on the DeepMI file that stage 2 wrote, and tests
it. With --ssl-epochs each seed trains a DeepEmoCluster and extracts its DeepMI, so that the differences between seeds
are those of the whole method. Where a flag takes several values, each gets a row of the table:

    python -m tools.compare_curricula -emo Val --seeds 5 --ssl-epochs 200 --unlabeled UNLABELED --corpus CORPUS \\
        --orders deepmi deepmi-balanced random none agreement selftaught prediction ridge --label-noise 0.3 \\
        --rate-decay paper late --clusters head kmeans --restarts 20

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
from pathlib import Path

from deepmi import cli, curriculum
from deepmi.process import UserError

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
    help = "number of seeds, counted from --seed"
    parser.add_argument("--seeds", type=cli.positive_int, default=5, metavar="N", help=help)
    parser.add_argument(
        "--orders",
        nargs="+",
        choices=curriculum.COMPARED,
        default=["deepmi", "deepmi-balanced", "reverse", "random", "none", "ridge"],
        metavar="ORDER",
        help="what to compare: " + ", ".join(curriculum.COMPARED),
    )
    cli.add_keep_argument(parser, several=True)
    cli.add_schedule_arguments(parser, several=True)
    help = (
        "test of the differences over seeds; Wilcoxon's signed ranks need six seeds to reach p < .05, and more after "
        "the correction for the number of comparisons"
    )
    parser.add_argument("--paired-test", choices=("t", "wilcoxon"), default="t", help=help)
    parser.add_argument("--split", default="Test1", metavar="NAME", help="split to test on")
    help = "further corpora to test on, all their splits; their features must be of the same set"
    parser.add_argument("--testing", type=Path, nargs="+", default=[], metavar="CORPUS", help=help)
    cli.add_label_scale_argument(parser, " of the --testing corpora")
    cli.add_corpus_arguments(parser)
    _add_noise_arguments(parser)
    _add_deepmi_arguments(parser)
    cli.add_unlabeled_arguments(parser)
    cli.add_trial_arguments(parser)
    cli.add_compute_arguments(parser, "the first seed; it seeds the weights, batches, dropout, random order and noise")
    return parser


def _add_noise_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "noise in the Train labels, different for each seed; DeepMI must not have seen the true labels, so it needs "
        "--ssl-epochs"
    )
    help = "share of the Train labels to replace by draws from all Train labels"
    group.add_argument("--label-noise", type=share, default=0.0, metavar="P", help=help)
    help = (
        "train on the consensus, or on the rating of one random rater per utterance (needs labels_detailed); tests are "
        "on the consensus"
    )
    group.add_argument("--train-labels", choices=("consensus", "single-rater"), default="consensus", help=help)


def _add_deepmi_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("DeepMI: one file for all seeds")
    cli.add_metric_dir_argument(group)
    cli.add_metric_argument(group)
    help = "DeepEmoCluster checkpoint of that DeepMI file, for prediction and deepemocluster"
    group.add_argument("--checkpoint", type=Path, metavar="FILE", help=help)
    group = parser.add_argument_group("DeepMI: one DeepEmoCluster per seed")
    help = "train a DeepEmoCluster of N epochs for each seed, and use its DeepMI"
    group.add_argument("--ssl-epochs", type=cli.positive_int, metavar="N", help=help)
    cli.add_cluster_source_arguments(group, several=True)


if __name__ == "__main__":
    ARGS = cli.parse(get_args_parser())  # before the heavy imports, so that --help answers at once

import numpy as np
import pandas as pd

import utils
from deepmi import label_scales, storage
from deepmi.ccc import RESAMPLES
from tools import comparison_plots, trials
from tools.seed_statistics import compare
from tools.side_by_side import side_by_side, with_changes

# ---------------------------------------------------------------------------------------------------------------------
# What is compared


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of the comparison: an order with its schedule, its kind of clusters and the share that is kept."""

    order: str
    rate_decay: str
    keep: float
    clusters: str | None

    def needs_metric(self) -> bool:
        """Whether DeepMI decides what is trained when."""
        return self.order in curriculum.METRIC_ORDERS or (self.keep < 1 and self.order in curriculum.ORDERS)


def variants_of(args: argparse.Namespace) -> dict[str, Variant]:
    """The rows by name; a name gives the settings that differ within the comparison."""
    names: dict[str, Variant] = {}
    for order, decay, keep, clusters in itertools.product(args.orders, args.rate_decay, args.keep, args.clusters):
        variant = Variant(order, decay, keep, clusters)
        if order in curriculum.YARDSTICKS:
            variant = Variant(order, args.rate_decay[0], 1.0, None)
        elif not variant.needs_metric():
            variant = dataclasses.replace(variant, clusters=None)
        parts = [order]
        if order not in curriculum.YARDSTICKS:
            parts += [decay] * (len(args.rate_decay) > 1) + [f"keep {keep:g}"] * (len(args.keep) > 1)
        if variant.clusters and len(args.clusters) > 1:
            parts.append(variant.clusters)
        names[", ".join(parts)] = variant
    return names


def controls_of(variants: dict[str, Variant]) -> dict[str, dict[str, str]]:
    """For each row the rows of CONTROLS, of the same schedule and the largest share, that it is compared with."""
    most = max((variant.keep for variant in variants.values() if variant.order in CONTROLS), default=1.0)
    found: dict[str, dict[str, str]] = {}
    for name, variant in variants.items():
        found[name] = {
            control.order: other
            for other, control in variants.items()
            if control.order in CONTROLS
            and other != name
            and (control.rate_decay, control.keep) == (variant.rate_decay, most)
            and control.clusters in (None, variant.clusters)
        }
    return found


def by_deepemocluster(args: argparse.Namespace) -> list[str]:
    """Those of the orders that need a DeepEmoCluster."""
    wanted = curriculum.BY_DEEPEMOCLUSTER + (curriculum.ORDERS if min(args.keep) < 1 else ())
    return [order for order in args.orders if order in wanted]


def check_arguments(args: argparse.Namespace) -> None:
    """Raise `UserError` where flags do not fit together, before anything is computed."""
    for name in ("orders", "rate_decay", "keep"):
        setattr(args, name, list(dict.fromkeys(getattr(args, name))))
    if args.label_scale and not args.testing:
        raise UserError("--label-scale is that of further corpora; name them with --testing, or leave it out.")
    args.testing_scales = label_scales.one_each(
        label_scales.scale_pairs(args.label_scale), args.testing, "--label-scale"
    )
    if args.clusters and not args.ssl_epochs:
        raise UserError("--clusters: has an effect only on DeepMI that is extracted here; add --ssl-epochs N.")
    args.clusters = list(dict.fromkeys(args.clusters or ["head"]))
    cli.refuse_idle_restarts(args)
    by_metric = by_deepemocluster(args)
    if args.ssl_epochs and (args.metric or args.checkpoint):
        raise UserError("--ssl-epochs makes the DeepMI and the checkpoint; leave out --metric and --checkpoint.")
    if trials.noise_suffix(args) and by_metric and not args.ssl_epochs:
        raise UserError(
            f"noise in the labels: the DeepMI behind {', '.join(by_metric)} has seen the true labels. Add --ssl-epochs "
            "N, so that each seed extracts DeepMI from its noisy labels."
        )
    needing = [order for order in ("prediction", curriculum.DEEPEMOCLUSTER) if order in args.orders]
    if needing and not (args.ssl_epochs or args.checkpoint):
        raise UserError(
            f"{' and '.join(needing)}: needs a DeepEmoCluster checkpoint. Name it with --checkpoint FILE, or train one "
            "per seed with --ssl-epochs N."
        )


def run_trials(args: argparse.Namespace, variants: dict[str, Variant], data: trials.Data) -> dict[str, list[dict]]:
    """Train what is not trained yet; for each row the results of `trials.run_trials` by seed."""
    by_seed = [with_changes(args, seed=args.seed + number) for number in range(args.seeds)]
    fixed: dict[str, Path] = {}  # scores that are the same for all seeds, read before any training
    if not args.ssl_epochs:
        if any(variant.needs_metric() for variant in variants.values()):
            fixed["deepmi"] = args.metric or utils.metric_file(args.metric_dir, args.num_clusters, args.emo_attr)
            trials.check_metric(fixed["deepmi"], data)
        if "prediction" in args.orders:
            fixed["prediction"] = trials.score_file(args, "prediction", data)
    if "agreement" in args.orders:
        fixed["agreement"] = trials.score_file(args, "agreement", data)
    data_of = {task.seed: data for task in by_seed}
    if trials.noise_suffix(args):
        for task in by_seed:
            task.labels = trials.noisy_labels(task)
            data_of[task.seed] = dataclasses.replace(data, train=utils.open_corpus(task).load("Train"))
    if args.ssl_epochs and by_deepemocluster(args):
        trials.make_metrics(by_seed, args.jobs)
    if "selftaught" in args.orders:
        for task, file in side_by_side(trials.self_taught, by_seed, args.jobs, "self-taught scores"):
            task.self_taught = file

    def scores_of(task: argparse.Namespace, variant: Variant) -> Path | None:
        if variant.order == "selftaught":
            return task.self_taught
        if variant.order in fixed:
            return fixed[variant.order]
        if variant.order == "prediction":
            return trials.score_file(task, "prediction", data_of[task.seed])
        if variant.needs_metric():
            return fixed["deepmi"] if "deepmi" in fixed else task.metrics[variant.clusters]
        return None

    tasks = [
        with_changes(task, order=of.order, rate_decay=of.rate_decay, keep=of.keep, scores=scores_of(task, of))
        for of, task in itertools.product(variants.values(), by_seed)
    ]
    results = trials.run_trials(tasks, data_of, args.jobs)
    return {name: results[place * args.seeds : (place + 1) * args.seeds] for place, name in enumerate(variants)}


# ---------------------------------------------------------------------------------------------------------------------
# Outputs


def training_columns(results: dict[str, list[dict]]) -> pd.DataFrame:
    """For each row the mean over seeds of the best epoch, its validation CCC, and the validation CCC of all epochs."""
    table = {}
    for name, runs in results.items():
        curves = np.array([run["curve"] for run in runs if run["curve"]])
        epochs = [run["best_epoch"] for run in runs if run["curve"]]
        if not epochs:  # yardsticks
            table[name] = dict.fromkeys(("best_epoch", "validation", "validation_area"), float("nan"))
            continue
        best, area = curves.max(axis=1).mean(), curves.mean()
        table[name] = {"best_epoch": np.mean(epochs), "validation": best, "validation_area": area}
    return pd.DataFrame.from_dict(table, orient="index")


def number(value: float, digits: int = 3) -> str:
    """A figure without its leading zero; `-` for NaN."""
    if np.isnan(value):
        return "-"
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def markdown(table: pd.DataFrame) -> list[str]:
    """The statistics of one test set as a Markdown table."""
    controls = [control for control in CONTROLS if f"minus_{control}" in table]
    has_p = any(table[f"p_{control}"].notna().any() for control in controls)
    rows = [["order", "CCC", "sd", "95 % interval", "best epoch", "validation CCC"]]
    rows[0] += [f"minus {control} [95 %]{', p' * has_p}" for control in controls]
    for name, row in zip(table["order"], table.to_dict("records")):
        cells = [name, number(row["ccc"]), number(row["sd"]), f"{number(row['low'])} .. {number(row['high'])}"]
        cells += [number(row["best_epoch"], 1), number(row["validation"])]
        for control in controls:
            mean, low, high = (number(row[f"minus_{control}{end}"]) for end in ("", "_low", "_high"))
            p = number(row[f"p_{control}_holm"])
            cells.append("-" if mean == "-" else f"{mean} [{low} .. {high}]" + (f", p {p}" if p != "-" else ""))
        rows.append(cells)
    return cli.markdown_table(rows)


def describe_labels(args: argparse.Namespace) -> str:
    """The noise in the Train labels in words; empty without noise."""
    rater = ", Train labels of one random rater per utterance" if args.train_labels == "single-rater" else ""
    return rater + (f", {100 * args.label_noise:g} % of the Train labels replaced at random" * bool(args.label_noise))


def describe(args: argparse.Namespace, data: trials.Data, drawn: dict[str, str]) -> list[str]:
    """What was compared, for readers of the table who do not have its command.

    Args:
        args: of the comparison.
        data: of the first seed.
        drawn: by test set, what the bootstrap resamples.
    """
    train = len(data.train.names)
    schedule = f"pacing {args.pacing}"
    if (args.bins, args.epochs_per_bin) != (curriculum.NUM_BINS, curriculum.EPOCHS_PER_BIN):
        schedule += f" of {args.bins} bins, {args.epochs_per_bin} epochs each"
    schedule += f", rate decay {' and '.join(args.rate_decay)}"
    if args.keep != [1]:
        schedule += f", share kept {' and '.join(f'{share:g}' for share in args.keep)}"
    metric = ""
    if by_deepemocluster(args):
        metric = ", one DeepMI for all"
        if args.ssl_epochs:
            metric = (
                f", one DeepEmoCluster of {args.ssl_epochs} epochs per seed, clusters {' and '.join(args.clusters)}"
            )
            metric += f" (mean of {args.restarts})" if args.restarts > 1 else ""
    lines = [
        f"{args.emo_attr}: {train} Train, {len(data.validation.names)} Validation utterances{describe_labels(args)}; "
        f"-ep {args.epoch} -batch {args.batch_size} -nc {args.num_clusters}, {schedule}{metric}, seeds {args.seed} to "
        f"{args.seed + args.seeds - 1}.",
        *(f"{test}: bootstrap over seeds and {words}." for test, words in drawn.items()),
        f"Intervals: {RESAMPLES} resamples. Differences are paired by seed and utterance, for the same rate decay.",
    ]
    if args.seeds > 1:
        test = "paired t test" if args.paired_test == "t" else "Wilcoxon signed-rank test"
        lines.append(
            f"p: {test} over the {args.seeds} seeds, corrected by Holm over all comparisons of a table; unlike the "
            "intervals it does not account for the choice of test utterances."
        )
    else:
        lines.append("One seed does not show how much seeds differ, so there is no p.")
    full_epoch = cli.schedule(args).full_epoch
    if args.epoch <= full_epoch:
        last = cli.schedule(args).size("deepmi", args.epoch - 1, train)
        lines.append(
            f"warning: -ep {args.epoch} ends within the curriculum, at {last} of {train} Train utterances, while none, "
            f"ridge and the folds of selftaught have seen all of theirs. Use at least -ep {full_epoch + 1}."
        )
    return lines


def main(args: argparse.Namespace) -> None:
    """Train, compare, write the table and two pictures."""
    check_arguments(args)
    trials.prepare(args)
    variants, data = variants_of(args), trials.load_data(args)
    results = run_trials(args, variants, data)

    tables, drawn, lines = {}, {}, []
    for test, of in data.tests.items():
        predictions = {name: [list(run["tests"][test].values()) for run in runs] for name, runs in results.items()}
        table, drawn[test] = compare(
            of.labels, predictions, of.speakers, of.names, controls_of(variants), args.seed, args.paired_test
        )
        table = training_columns(results).join(table).rename_axis("order").reset_index()
        table.insert(1, "test", test)
        table.insert(2, "utterances", len(of.names))
        tables[test] = table
        lines += [f"{args.emo_attr} on {test}, {len(of.names)} utterances:", "", *markdown(table), ""]
    lines += describe(args, data, drawn)
    print("\n".join(lines))

    stem = f"compare_{args.emo_attr}{trials.noise_suffix(args)}" + f"_{args.pacing}" * (args.pacing != "paper")
    stem += "_late" * (args.rate_decay == ["late"])
    files = [args.results_dir / f"{stem}{ending}" for ending in (".md", ".csv", "_curves.png", "_orders.png")]
    storage.write_text(files[0], "\n".join(lines) + "\n")
    storage.write_text(files[1], pd.concat(tables.values()).to_csv(index=False))
    title = f"{args.emo_attr}, {args.seeds} seeds{describe_labels(args)}"
    curves = {name: [run["curve"] for run in runs] for name, runs in results.items() if runs[0]["curve"]}
    comparison_plots.draw_validation_curves(curves, files[2], title)
    comparison_plots.draw_orders(tables, files[3], title)
    print("\n".join(f"wrote {file}" for file in files))


if __name__ == "__main__":
    cli.run(main, ARGS)
