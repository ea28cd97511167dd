"""Do DeepMI files agree, and how stable is DeepMI over seeds, clusters and the unlabeled set?

    python -m tools.compare_metrics A.json B.json

compares two or more files in pairs: Spearman's rank correlation of their values, the share of utterances that each
cumulative bin of the curriculum has in common (by chance as much as the bin is large), and the utterances whose rank
moved most.

    python -m tools.compare_metrics --seeds 5 -ep 200 -emo Val -nc 20 50 --unlabeled-size 0 90000 \\
        --corpus CORPUS --unlabeled UNLABELED

trains a DeepEmoCluster for each seed, number of clusters and size of the unlabeled set, and compares their DeepMI:
files of one setting over seeds, and files of two settings, always of different seeds. --clusters head kmeans compares
both kinds of clusters of the same networks.

    python -m tools.compare_metrics --mean OUT.json A.json B.json ...

writes one DeepMI file, the mean of several, since those of different seeds agree only in part.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from deepmi import cli, curriculum, storage
from deepmi.process import UserError, notify


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    parser = cli.new_parser(__doc__)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE.json", help="two or more DeepMI files")
    parser.add_argument(
        "--moved", type=cli.non_negative_int, default=10, metavar="N", help="utterances to list that moved most"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE.csv", help="write value and rank of every utterance in every file"
    )
    parser.add_argument(
        "--mean",
        type=Path,
        metavar="OUT.json",
        help="write the mean of the files as one DeepMI file, in place of comparing them",
    )
    parser.add_argument(
        "--mean-of",
        choices=("values", "ranks"),
        help="what --mean averages: the values (default), or their ranks from 0 to 1, for values of different size",
    )
    group = parser.add_argument_group("stability, in place of files")
    group.add_argument(
        "--seeds", type=cli.positive_int, metavar="N", help="number of seeds, at least 2, counted from --seed"
    )
    cli.add_trial_arguments(group)
    cli.add_training_arguments(group, epochs=200)
    cli.add_clusters_argument(group, "numbers of clusters to compare", several=True)
    cli.add_cluster_source_arguments(group, several=True)
    cli.add_unlabeled_arguments(parser, several=True)
    cli.add_corpus_arguments(parser)
    cli.add_compute_arguments(parser, "the first seed")
    return parser


if __name__ == "__main__":
    ARGS = cli.parse(get_args_parser())  # before the heavy imports, so that --help answers at once

import warnings

import numpy as np
import pandas as pd
from scipy import stats
from scipy.stats import rankdata

import utils
from deepmi.metric import read_metric, rounded, write_metric
from tools import trials
from tools.side_by_side import with_changes

# ---------------------------------------------------------------------------------------------------------------------
# Agreement


def joined(first: dict[str, float], second: dict[str, float]) -> tuple:
    """Names that both files have, sorted, and their values in each, shape (N,).

    Raises:
        UserError: they have fewer than two in common.
    """
    names = sorted(first.keys() & second.keys())
    if len(names) < 2:
        raise UserError(f"the files have {len(names)} utterances in common; expected DeepMI of one corpus.")
    return names, *(np.array([values[name] for name in names]) for values in (first, second))


def rank_correlation(first, second) -> float:
    """Spearman's correlation, ties with their mean rank; NaN where all values of one are the same."""

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        return float(stats.spearmanr(first, second).statistic)


def bin_overlap(names: list[str], first, second) -> list[float]:
    """Share of the utterances of each cumulative bin, the last aside, that the curricula of both files have in it.

    Args:
        names: file names, N of them.
        first, second: their DeepMI, shape (N,) each.
    Returns:
        Nine numbers in 0..1; by chance .1, .2, ..., .9.
    """
    orders = [curriculum.training_order("deepmi", names, values, 0).tolist() for values in (first, second)]
    sizes = curriculum.bin_sizes(len(names))[:-1]
    return [len(set(orders[0][:size]) & set(orders[1][:size])) / size for size in sizes]


def percentiles(values):
    """Rank of each value as a share of all, ties with their mean; 0 is the lowest, 1 the highest, shape (N,)."""
    return (rankdata(values) - 1) / max(len(values) - 1, 1)


def moved_most(names: list[str], first, second, count: int) -> list[tuple]:
    """(name, value and percentile in the first file, the same in the second) of those that moved most."""
    before, after = percentiles(first), percentiles(second)
    order = np.lexsort((names, -np.abs(after - before)))[:count]
    return [(names[i], first[i], before[i], second[i], after[i]) for i in order]


def pair_lines(titles: tuple[str, str], metrics: tuple[dict, dict], moved: int) -> list[str]:
    """How two files agree, as text."""
    names, first, second = joined(*metrics)
    lines = [f"{titles[0]} and {titles[1]}: {len(names)} utterances in common"]
    only = [len(metric) - len(names) for metric in metrics]
    if any(only):
        lines.append(f"only in the first: {only[0]}, only in the second: {only[1]}; these are left out")
    lines.append(f"Spearman's rank correlation: {rank_correlation(first, second):.3f}")
    lines.append(f"distinct values: {len(set(first))} and {len(set(second))}")
    overlap = bin_overlap(names, first, second)
    rows = [["bin", *(str(level) for level in range(1, curriculum.NUM_BINS))]]
    rows.append(["in common", *(f"{value:.2f}" for value in overlap)])
    rows.append(["by chance", *(f"{level / curriculum.NUM_BINS:.2f}" for level in range(1, curriculum.NUM_BINS))])
    lines += ["", *cli.markdown_table(rows)]
    if moved:
        rows = [["moved most", "value in the first", "percentile", "value in the second", "percentile"]]
        for name, value, place, other, other_place in moved_most(names, first, second, moved):
            rows.append([name, f"{value:g}", f"{100 * place:.0f}", f"{other:g}", f"{100 * other_place:.0f}"])
        lines += ["", *cli.markdown_table(rows)]
    return lines


# ---------------------------------------------------------------------------------------------------------------------
# Stability


def setting_name(task: argparse.Namespace, kind: str) -> str:
    """Clusters and unlabeled size of a training, in words; the kind of clusters unless all are the cluster head's."""
    name = f"K {task.num_clusters}, {task.num_unlabeled or 'no'} unlabeled"
    mean_of = f" (mean of {task.restarts})" if kind == "kmeans" and task.restarts > 1 else ""
    return name + (f", {kind}{mean_of}" if task.clusters != ["head"] else "")


def stability_rows(metrics: dict[str, dict[int, dict[str, float]]]) -> list[list[str]]:
    """A table: how files of one setting agree over seeds, and those of two settings.

    Args:
        metrics: by setting and seed, a DeepMI file's content.
    Returns:
        Header and rows. Two settings are compared by files of different seeds, so that their rows say what another
        setting changes on top of another seed.
    """
    shown = (1, 3, 5)
    header = ["DeepMI of", "and of", "pairs", "Spearman, mean", "lowest .. highest"]
    rows = [header + [f"bin {level} in common (by chance {level / 10:.1f})" for level in shown]]
    for one, other in itertools.combinations_with_replacement(metrics, 2):
        seeds = itertools.combinations if one == other else itertools.permutations
        pairs = [joined(metrics[one][a], metrics[other][b]) for a, b in seeds(metrics[one], 2)]
        correlations = [rank_correlation(first, second) for _, first, second in pairs]
        overlaps = np.mean([bin_overlap(*pair) for pair in pairs], axis=0)
        known = [value for value in correlations if not np.isnan(value)]
        row = [one, "another seed" if one == other else other, str(len(pairs))]
        row += [f"{np.mean(known):.2f}", f"{min(known):.2f} .. {max(known):.2f}"] if known else ["-", "-"]
        rows.append(row + [f"{overlaps[level - 1]:.2f}" for level in shown])
    return rows


def without_equal_sizes(tasks: list[argparse.Namespace]) -> list[argparse.Namespace]:
    """The tasks without those whose unlabeled size draws the same utterances as a smaller one; says which sizes."""
    sizes = sorted({task.unlabeled_size for task in tasks})
    if max(sizes) == 0 or tasks[0].unlabeled is None:
        return tasks
    pool = len(utils.draw_unlabeled(tasks[0].unlabeled, max(sizes), tasks[0].unlabeled_seed).names)
    superfluous = [size for size in sizes if size > pool and any(pool <= other < size for other in sizes)]
    for size in superfluous:
        notify(f"note: --unlabeled-size {size}: {tasks[0].unlabeled} holds {pool} utterances; left out.")
    return [task for task in tasks if task.unlabeled_size not in superfluous]


def measure_stability(args: argparse.Namespace) -> list[str]:
    """Train for every seed and setting; the table, with what it compares."""
    if args.seeds < 2:
        raise UserError("--seeds 1: expected at least 2, to compare them.")
    cli.refuse_idle_restarts(args)
    trials.prepare(args)
    args.ssl_epochs, args.clusters = args.epoch, list(dict.fromkeys(args.clusters or ["head"]))
    tasks = [
        with_changes(args, seed=args.seed + number, num_clusters=clusters, unlabeled_size=size)
        for clusters, size, number in itertools.product(args.num_clusters, args.unlabeled_size, range(args.seeds))
    ]
    tasks = without_equal_sizes(tasks)
    trials.make_metrics(tasks, args.jobs)
    metrics: dict[str, dict[int, dict[str, float]]] = {}
    for task, kind in itertools.product(tasks, args.clusters):
        metrics.setdefault(setting_name(task, kind), {})[task.seed] = read_metric(task.metrics[kind])
    count = len(next(iter(metrics.values()))[args.seed])
    title = (
        f"{args.emo_attr}, {count} Train utterances, DeepEmoCluster -ep {args.epoch} -batch {args.batch_size}, "
        f"seeds {args.seed} to {args.seed + args.seeds - 1}:"
    )
    lines = [title, "", *cli.markdown_table(stability_rows(metrics))]
    flat = [f"{name}, seed {seed}" for name, of in metrics.items() for seed in of if len(set(of[seed].values())) == 1]
    if flat:
        lines += ["", f"One value for all utterances, so that nothing correlates with it: {'; '.join(flat)}."]
    return lines


def main(args: argparse.Namespace) -> None:
    """Compare files, or train and compare."""
    if args.seeds:
        if args.files or args.out or args.mean:
            raise UserError("--seeds makes the DeepMI files itself; leave out files, --out and --mean.")
        lines = measure_stability(args)
        target = args.results_dir / f"compare_metrics_{args.emo_attr}.md"
        storage.write_text(target, "\n".join(lines) + "\n")
        print("\n".join([*lines, f"wrote {target}"]))
        return
    if args.mean and args.out:
        raise UserError("--out: has no effect with --mean; leave one of them out.")
    if args.mean_of and not args.mean:
        raise UserError("--mean-of: has no effect without --mean OUT.json.")
    if len(args.files) < 2:
        raise UserError(f"{len(args.files)} DeepMI files given; expected two or more, or --seeds N.")
    for file in args.files:
        if not file.is_file():
            raise UserError(f"{file}: no such DeepMI file.")
    metrics = {str(file): read_metric(file) for file in args.files}
    if len(metrics) < len(args.files):
        raise UserError("a DeepMI file is given twice; expected each once.")
    if args.mean:
        write_mean(args.mean, metrics, args.mean_of)
        print(f"wrote {args.mean}")
        return
    for titles in itertools.combinations(metrics, 2):
        print("\n".join(pair_lines(titles, tuple(metrics[title] for title in titles), args.moved)), end="\n\n")
    if args.out:
        write_values(args.out, metrics)
        print(f"wrote {args.out}")


def write_mean(target: Path, metrics: dict[str, dict[str, float]], of: str) -> None:
    """Write the mean of DeepMI files, of their `values` or their `ranks` (0 to 1), as one DeepMI file.

    Raises:
        UserError: the files are not of the same utterances.
    """
    first, *others = metrics
    names = sorted(metrics[first])
    for other in others:
        if different := metrics[first].keys() ^ metrics[other].keys():
            raise UserError(
                f"{first} and {other}: {len(different)} utterances are in one of them only ({min(different)}); "
                "expected DeepMI files of the same Train split."
            )
    columns = [np.array([metric[name] for name in names]) for metric in metrics.values()]
    mean = np.mean([percentiles(column) for column in columns] if of == "ranks" else columns, axis=0)
    write_metric(target, dict(zip(names, rounded(mean).tolist())))


def write_values(target: Path, metrics: dict[str, dict[str, float]]) -> None:
    """A CSV with one row per utterance: its value and percentile in each file, empty where it is missing."""
    columns = {}
    for title, metric in metrics.items():
        values = pd.Series(metric)
        columns[title] = values
        columns[f"{title} percentile"] = pd.Series(percentiles(values.to_numpy()), values.index)
    storage.write_text(target, pd.DataFrame(columns).rename_axis("FileName").sort_index().to_csv())


if __name__ == "__main__":
    cli.run(main, ARGS)
