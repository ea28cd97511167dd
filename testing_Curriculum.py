"""Stage 4: test the curriculum regressor.

    python testing_Curriculum.py -ep 70 -batch 512 -emo Val --corpus /data/MSP-PODCAST-Publish-1.8

prints the CCC of Models/SimpleEmoRegressor_DeepMI@_Val.pt.tar on the Test1 split with its 95 % bootstrap interval, and
writes
results/SimpleEmoRegressor_DeepMI@_Val_Test1.json and .csv (label and prediction of each utterance, in label units).
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import arguments
import curriculum


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this stage."""
    parser = arguments.new_parser(__doc__)
    arguments.add_training_arguments(parser, epochs=70, trained_before="the regressor")
    parser.add_argument(
        "--split",
        default="Test1",
        metavar="NAME",
        help="split to test on: Test1, Test2, Validation, ... or all, Train included",
    )
    parser.add_argument(
        "--label-scale",
        type=float,
        nargs=2,
        default=[1.0, 7.0],
        metavar=("LO", "HI"),
        help="lowest and highest label of this corpus; labels are brought to 1..7 linearly",
    )
    parser.add_argument(
        "--order",
        choices=curriculum.ORDERS,
        default="deepmi",
        help="which regressor: the order that training_Curriculum.py was given",
    )
    parser.add_argument(
        "--model", type=Path, metavar="FILE", help="regressor file, whatever --order and --model-dir say"
    )
    arguments.add_corpus_arguments(parser)
    arguments.add_model_dir_argument(parser)
    parser.add_argument(
        "--results-dir", type=Path, default=Path("results"), metavar="DIR", help="folder of the results"
    )
    arguments.add_compute_arguments(parser, "seed of the bootstrap")
    return parser


def find_regressor(args: argparse.Namespace) -> Path:
    """The regressor to test: as named, else that of --order, else the only one in the folder."""
    import utils

    if args.model:
        return args.model
    file = utils.regressor_checkpoint(args.model_dir, args.order, args.emo_attr)
    if file.is_file() or not args.model_dir.is_dir():
        return file
    pattern = utils.regressor_checkpoint(args.model_dir, "*", args.emo_attr).name
    others = sorted(args.model_dir.glob(pattern))
    if len(others) != 1:
        return file
    print(f"{file} is not there; testing the only regressor of {args.model_dir}: {others[0].name}")
    return others[0]


def interval(truth, prediction, speakers: list[str], names: list[str], seed: int) -> tuple[tuple[float, float], str]:
    """The 95 % bootstrap interval, by speaker where any is known, and one line that says so."""
    import metrics
    import utils

    known = {speaker for speaker in speakers if speaker != utils.UNKNOWN_SPEAKER}
    unknown = speakers.count(utils.UNKNOWN_SPEAKER)
    groups, drawn, few = None, f"{len(names)} utterances", len(names) < 10
    if known and len(known) + unknown > 1:
        # An utterance of an unknown speaker stands for itself.
        groups = [name if who == utils.UNKNOWN_SPEAKER else f"speaker {who}" for who, name in zip(speakers, names)]
        drawn = f"{len(known)} speakers and their utterances"
        drawn += f" and {unknown} utterances of unknown speakers" if unknown else ""
        few = len(known) < 10
    low, high = metrics.bootstrap_interval(truth, prediction, groups, seed=seed)
    line = f"95 % bootstrap interval: {low:.3f} .. {high:.3f} (2000 resamples of {drawn})"
    return (low, high), line + ("; these are few, so read it as a rough one" if few else "")


def main(args: argparse.Namespace) -> None:
    """Predict, score, write."""
    import pandas as pd

    import metrics
    import runtime
    import utils
    from batches import Rows, in_batches
    from model import load_regressor

    low, high = args.label_scale
    arguments.refuse_label_scale(low, high)
    device = runtime.choose_device(args.device)
    precision = runtime.choose_precision(device, args.precision)
    corpus = arguments.open_corpus(args, (low, high))
    corpus.select(args.split)
    model_file = find_regressor(args)
    model, info = load_regressor(model_file, corpus.num_features, args.emo_attr)
    runtime.tell_if_unfinished(model_file)
    utils.make_output_folders(args.results_dir, args.cache_dir)
    test = corpus.load(args.split)
    asked = {"epoch": args.epoch, "batch_size": args.batch_size}
    if info and asked != {name: info[name] for name in asked}:
        print(f"note: {model_file} was trained with -ep {info['epoch']} -batch {info['batch_size']}.")

    (z,) = in_batches(model.to(device), model, Rows(test.rows, device, precision), precision)
    prediction = utils.in_label_units(z.cpu().numpy(), corpus.label_norm, model_file)
    ccc = metrics.concordance_cc(test.labels, prediction)
    bounds, interval_line = interval(test.labels, prediction, test.speakers, test.names, args.seed)
    result = {
        "attribute": args.emo_attr,
        "ccc": ccc if math.isfinite(ccc) else None,
        "interval_95": [bound if math.isfinite(bound) else None for bound in bounds],
        "interval": interval_line,
        "n": len(test.names),
        "split": args.split,
        "corpus": str(args.corpus or corpus.corpus.labels),
        "label_scale": [low, high],
        "seed": args.seed,
        "checkpoint": str(model_file),
        "training": info,
    }
    stem = args.results_dir / model_file.name.removesuffix(".pt.tar")
    files = [stem.with_name(f"{stem.name}_{args.split}{ending}") for ending in (".json", ".csv")]
    rows = pd.DataFrame({"FileName": test.names, "label": test.labels, "prediction": prediction})
    runtime.write_text(files[0], json.dumps(result, indent=1, allow_nan=False) + "\n")
    runtime.write_text(files[1], rows.to_csv(index=False))

    print("Recognition performance for the MSP-Podcast Test set:")
    print(f"{args.emo_attr} (CCC): {ccc:.3f}")
    print(interval_line)
    print(f"{len(test.names)} utterances of {result['corpus']}, split {args.split}")
    if (low, high) != utils.LABEL_RANGE:
        print(f"labels {low:g}..{high:g} brought to 1..7 linearly; CCC depends on that, so say it beside the figure")
    print("\n".join(f"wrote {path}" for path in files))


if __name__ == "__main__":
    arguments.run(main, get_args_parser())
