"""How many wrong labels are among those that look wrong: by label quality, by DeepMI, and by both.

    python -m benchmarks.suspicious_labels -emo Act -nc 10 -batch 64 --ssl-epochs 20 --unlabeled-size 0 --corpus CORPUS

replaces 10 % of the Train labels by draws from all Train labels, for each of five seeds. DeepEmoCluster, DeepMI and
tools.label_quality see the replaced labels. The table has the share of the replaced labels that are in the worst 20 %.
Chance is .20. A label that was replaced by nearly the same value cannot be found.
"""

from __future__ import annotations

import argparse

from deepmi import cli


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this benchmark."""
    parser = cli.new_parser(__doc__)
    cli.add_attribute_argument(parser)
    parser.add_argument(
        "-batch", "--batch_size", type=cli.batch_int, default=512, metavar="N", help="utterances per step"
    )
    cli.add_clusters_argument(parser)
    parser.add_argument("--seeds", type=cli.positive_int, default=5, metavar="N", help="number of seeds")
    parser.add_argument(
        "--ssl-epochs", type=cli.positive_int, default=200, metavar="N", help="epochs of DeepEmoCluster"
    )
    help = "share of the Train labels to replace"
    parser.add_argument("--label-noise", type=cli.positive_share, default=0.1, metavar="P", help=help)
    help = "share of the Train utterances that count as the worst"
    parser.add_argument("--worst", type=cli.positive_share, default=0.2, metavar="P", help=help)
    cli.add_unlabeled_arguments(parser)
    cli.add_corpus_arguments(parser)
    cli.add_trial_arguments(parser)
    cli.add_compute_arguments(parser, "the first seed")
    return parser


if __name__ == "__main__":
    ARGS = cli.parse(get_args_parser())

import numpy as np

import utils
from deepmi.metric import read_metric
from tools import trials
from tools.compare_metrics import percentiles
from tools.label_quality import cross_fitted, label_quality
from tools.side_by_side import with_changes

CLUSTERS, RESTARTS = ("head", "kmeans"), 20


def found_by(scores: dict[str, np.ndarray], wrong: np.ndarray, worst: float) -> dict[str, float]:
    """Share of the wrong labels (bool, shape (N,)) among the lowest of each score, shape (N,)."""
    count = round(worst * len(wrong))
    return {
        name: wrong[np.argsort(values, kind="stable")[:count]].sum() / wrong.sum() for name, values in scores.items()
    }


def main(args: argparse.Namespace) -> None:
    """Replace labels, score, count, print."""
    args.train_labels, args.clusters, args.restarts, args.epoch = "consensus", list(CLUSTERS), RESTARTS, args.ssl_epochs
    trials.prepare(args)
    consensus = utils.open_corpus(args).load("Train")
    tasks = [with_changes(args, seed=args.seed + number) for number in range(args.seeds)]
    for task in tasks:
        task.labels = trials.noisy_labels(task)
    trials.make_metrics(tasks, args.jobs)
    found = []
    for task in tasks:
        train = utils.open_corpus(task).load("Train")
        folds = trials.folds_by_speaker(train.speakers, train.names, task.seed)
        quality = label_quality(train.labels, cross_fitted(train.rows, train.labels, folds))
        scores = {"label quality": quality}
        for kind in CLUSTERS:
            metric = read_metric(task.metrics[kind])
            values = np.array([metric[name] for name in train.names])
            scores[f"DeepMI, {kind}"] = values
            scores[f"both, {kind}"] = percentiles(quality) + percentiles(values)
        found.append(found_by(scores, train.labels != consensus.labels, args.worst))
    rows = [["score", "found, mean", *(f"seed {task.seed}" for task in tasks)]]
    for name in found[0]:
        shares = [of[name] for of in found]
        rows.append([name, f"{np.mean(shares):.2f}", *(f"{share:.2f}" for share in shares)])
    print(
        f"{args.emo_attr}, {len(consensus.names)} Train utterances, {100 * args.label_noise:g} % of labels replaced: "
        f"share of them in the worst {100 * args.worst:g} %:\n"
    )
    print("\n".join(cli.markdown_table(rows)))


if __name__ == "__main__":
    cli.run(main, ARGS)
