"""The utterances of each epoch of a curriculum as a CSV file, for trainers in any language.

    python -m tools.export_curriculum curriculum_metric/DeepMI_50clusters@_Val.json -ep 70 --out curriculum.csv

Writes the columns epoch and FileName: what training_Curriculum.py trains on with the same settings, in the order in
which it does so on a CPU. With --bins-only every utterance has one row, in the order of the curriculum, with the bin
and the epoch in which it is trained for the first time.

The metric may be any JSON file of name -> number, not only DeepMI.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from deepmi import cli, curriculum
from deepmi.seeds import SEED


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    parser = cli.new_parser(__doc__)
    help = "DeepMI file, or any JSON file of name -> number; high values are trained first"
    parser.add_argument("metric", type=Path, metavar="METRIC", help=help)
    help = "epochs to write"
    parser.add_argument("-ep", "--epoch", type=cli.positive_int, default=70, metavar="N", help=help)
    help = "which utterances come first, as in training_Curriculum.py; deepmi-balanced needs --labels"
    parser.add_argument("--order", choices=curriculum.ORDERS, default="deepmi", help=help)
    cli.add_schedule_arguments(parser, rates=False)
    help = "consensus label file (.csv or .json), from which --order deepmi-balanced takes the emotion levels"
    parser.add_argument("--labels", type=Path, metavar="FILE", help=help)
    cli.add_attribute_argument(parser)
    help = "seed of the batches and of the random order"
    parser.add_argument("--seed", type=cli.non_negative_int, default=SEED, metavar="N", help=help)
    help = "one row per utterance instead of one per utterance and epoch: bin, first epoch, FileName"
    parser.add_argument("--bins-only", action="store_true", help=help)
    help = "table to write"
    parser.add_argument("--out", type=Path, default=Path("curriculum.csv"), metavar="FILE", help=help)
    return parser


if __name__ == "__main__":
    ARGS = cli.parse(get_args_parser())  # before the heavy imports, so that --help answers at once

import csv
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from deepmi import storage
from deepmi.labels import attribute_labels, read_labels
from deepmi.metric import emotion_levels, read_metric
from deepmi.process import UserError, first_few
from deepmi.sampler import CurriculumSampler


def levels_of(names: list[str], labels: Path | None, emo_attr: str) -> NDArray[np.int64]:
    """Emotion level of each utterance.

    Args:
        names: file names, N of them.
        labels: consensus label file.
        emo_attr: `Act`, `Dom` or `Val`.
    Returns:
        Levels 0..5, shape (N,).
    Raises:
        UserError: no label file is given, or it lacks utterances.
    """
    if labels is None:
        raise UserError("--order deepmi-balanced: needs the emotion levels; name the label file with --labels.")
    found = attribute_labels(read_labels(labels), emo_attr, labels)
    if lacking := [name for name in names if name not in found.index]:
        raise UserError(
            f"{labels}: no Emo{emo_attr} for {len(lacking)} of {len(names)} utterances of the metric "
            f"({first_few(lacking, 3)}); name the label file that the metric was made from."
        )
    return emotion_levels(found.loc[names].to_numpy())


def rows_by_epoch(sampler: CurriculumSampler, names: list[str], epochs: int) -> Iterator[tuple[int, str]]:
    """Epoch and file name of everything that is trained, in this order."""
    for epoch in range(epochs):
        for position in sampler.positions(epoch):
            yield epoch, names[position]


def rows_by_bin(sampler: CurriculumSampler, names: list[str]) -> Iterator[tuple[int, int, str]]:
    """Bin (from 1), first epoch (from 0) and file name of every utterance, in the order of the curriculum."""
    schedule, total = sampler.schedule, len(sampler.ranked)
    first = 0
    for number, position in enumerate(sampler.ranked):
        while schedule.size(sampler.order, first, total) <= number:
            first += 1
        yield first // schedule.epochs_per_bin + 1, first, names[position]


def main(args: argparse.Namespace) -> None:
    """Write the table."""
    out = storage.checked_output(args.out, "--out", [args.metric, args.labels])
    if args.labels and args.order != "deepmi-balanced":
        raise UserError(f"--labels: has no effect with --order {args.order}; leave one of them out.")
    metric = read_metric(args.metric)
    if not metric:
        raise UserError(f"{args.metric}: no utterances in it.")
    names = list(metric)
    levels = levels_of(names, args.labels, args.emo_attr) if args.order == "deepmi-balanced" else None
    options = {"pacing": args.pacing, "bins": args.bins, "epochs_per_bin": args.epochs_per_bin, "seed": args.seed}
    sampler = CurriculumSampler(metric, names, args.order, levels=levels, **options)
    header = ("bin", "first_epoch", "FileName") if args.bins_only else ("epoch", "FileName")
    rows = rows_by_bin(sampler, names) if args.bins_only else rows_by_epoch(sampler, names, args.epoch)
    with storage.write_atomically(out) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    last = sampler.schedule.size(args.order, args.epoch - 1, len(names))
    of = "" if args.bins_only else f", {last} in the last of {args.epoch} epochs"
    print(f"order {args.order} by {args.metric}: {len(names)} utterances{of}; wrote {out}")


if __name__ == "__main__":
    cli.run(main, ARGS)
