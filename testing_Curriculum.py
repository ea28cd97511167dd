"""Stage 4: test the curriculum regressor.

    python testing_Curriculum.py -ep 70 -batch 512 -emo Val --corpus /data/MSP-PODCAST-Publish-1.8

prints the CCC of Models/SimpleEmoRegressor_DeepMI@_Val.pt.tar on the Test1 split with its 95 % bootstrap interval, and
writes
results/SimpleEmoRegressor_DeepMI@_Val_Test1.json and .csv (label and prediction of each utterance, in label units).

    python testing_Curriculum.py -emo Val --corpus MSP-PODCAST-Publish-1.8 corpora/iemocap --split Test1 all

tests on several corpora, and adds one table of them (console, JSON, Markdown).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from deepmi import cli, curriculum


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this stage."""
    parser = cli.new_parser(__doc__)
    cli.add_training_arguments(parser, epochs=70, trained_before="the regressor")
    parser.add_argument(
        "--split",
        nargs="+",
        default=["Test1"],
        metavar="NAME",
        help="split to test on: Test1, Test2, Validation, ... or all (Train included); one for all corpora or "
        "one for each",
    )
    cli.add_label_scale_argument(parser)
    parser.add_argument(
        "--order",
        choices=curriculum.ORDERS,
        help="regressor to test, by the order that training_Curriculum.py was given; by default deepmi, or where that "
        "is missing the only regressor in the folder",
    )
    parser.add_argument(
        "--model",
        type=Path,
        metavar="FILE",
        help="regressor file to test instead of the one that --order and --model-dir name",
    )
    cli.add_corpus_arguments(parser, several=True)
    cli.add_model_dir_argument(parser)
    cli.add_results_dir_argument(parser)
    cli.add_compute_arguments(parser, "seed of the bootstrap")
    return parser


if __name__ == "__main__":
    ARGS = cli.parse(get_args_parser())  # before the heavy imports, so that --help answers at once

import json
import math
import re
from dataclasses import dataclass

import pandas as pd

import utils
from deepmi import label_scales, run_log, runtime, storage
from deepmi.batches import Rows, in_batches
from deepmi.ccc import concordance_cc, interval_by_speaker
from deepmi.process import UNPRINTABLE, UserError
from model import load_regressor


def find_regressor(args: argparse.Namespace) -> Path:
    """The regressor to test: --model, that of --order, or by default deepmi's or the only one in the folder."""

    if args.model:
        if args.order:
            raise UserError("--order and --model both name a regressor; leave one out.")
        return args.model
    file = utils.regressor_checkpoint(args.model_dir, args.order or "deepmi", args.emo_attr)
    if args.order or file.is_file() or not args.model_dir.is_dir():
        return file
    pattern = utils.regressor_checkpoint(args.model_dir, "*", args.emo_attr).name
    others = sorted(args.model_dir.glob(pattern))
    if len(others) != 1:
        return file
    print(f"{file} is not there; testing the only regressor of {args.model_dir}: {others[0].name}")
    return others[0]


@dataclass
class TestCorpus:
    """One corpus to test on.

    Attributes:
        name: as from `label_scales.distinct_names`.
        corpus: the opened corpus.
        data: the rows of the split.
        split: which rows.
        scale: lowest and highest label before they were, or are, brought to 1..7.
        norm_dir: folder of the norm terms.
    """

    name: str
    corpus: object
    data: object
    split: str
    scale: tuple[float, float]
    norm_dir: Path


def open_tests(args: argparse.Namespace) -> list[TestCorpus]:
    """Every corpus, read before any is tested.

    Raises:
        UserError: flags that do not fit the number of corpora, or a corpus that can't be opened.
    """

    corpora = args.corpus or [None]
    if len(corpora) > 1 and (args.features or args.labels):
        raise UserError("--features and --labels are of one corpus; test on several without them, or one by one.")
    for split in args.split:
        if re.search(rf"[/\\{UNPRINTABLE}]", split) or len(split) > 64:
            raise UserError(f"--split {split}: becomes part of a file name; expected the name of a split.")
    scales = label_scales.scale_pairs(args.label_scale)
    tests = []
    for name, folder, split, norm_dir, asked in zip(
        label_scales.distinct_names(corpora),
        corpora,
        label_scales.one_each(args.split, corpora, "--split"),
        label_scales.one_each(args.norm_dir, corpora, "--norm-dir"),
        label_scales.one_each(scales, corpora, "--label-scale"),
    ):
        labels = utils.find_corpus(folder, args.labels, args.features).labels
        scale, original = label_scales.label_scale(labels, asked)
        one = argparse.Namespace(**{**vars(args), "corpus": folder, "norm_dir": norm_dir})
        corpus = utils.open_corpus(one, scale)
        data = corpus.load(split)
        label_scales.note_if_narrow_scale(labels, asked, data.labels)
        tests.append(TestCorpus(name, corpus, data, split, original, norm_dir))
    return tests


def test_on(test: TestCorpus, model_file: Path, device, precision: str, args: argparse.Namespace) -> dict:
    """Predict, score, write, print; the result."""

    corpus, data, (low, high) = test.corpus, test.data, test.scale
    model, info = load_regressor(model_file, corpus.num_features, args.emo_attr, corpus.feature_set)
    corpus.note_other_norm_stats(model_file, info)
    given = {"epoch": args.epoch, "batch_size": args.batch_size}
    if any(value not in (info.get(name, value), get_args_parser().get_default(name)) for name, value in given.items()):
        print(
            f"note: {model_file} was trained with -ep {info.get('epoch')} -batch {info.get('batch_size')}; the test "
            "does not depend on what is given here."
        )
    (z,) = in_batches(model.to(device), model, Rows(data.rows, device, precision), precision)
    prediction = utils.denormalise(z.cpu().numpy(), corpus.label_norm, model_file)
    ccc = concordance_cc(data.labels, prediction)
    if min(data.labels) == max(data.labels):
        print(f"note: all labels of {test.split} are the same; their CCC is 0 whatever is predicted.")
    bounds, interval_line = interval_by_speaker(data.labels, prediction, data.speakers, data.names, args.seed)
    result = {
        "attribute": args.emo_attr,
        "ccc": ccc if math.isfinite(ccc) else None,
        "interval_95": [bound if math.isfinite(bound) else None for bound in bounds],
        "interval": interval_line,
        "n": len(data.names),
        "split": test.split,
        "corpus": str(corpus.corpus.root or corpus.corpus.labels),
        "label_scale": [low, high],
        "norm_dir": str(test.norm_dir),
        "seed": args.seed,
        "checkpoint": str(model_file),
        "training": info,
    }
    stem = model_file.name.removesuffix(".pt.tar") + (f"_{test.name}" if test.name else "")
    files = [args.results_dir / f"{stem}_{test.split}{ending}" for ending in (".json", ".csv")]
    rows = pd.DataFrame({"FileName": data.names, "label": data.labels, "prediction": prediction})
    write_result(files[0], result)
    storage.write_text(files[1], rows.to_csv(index=False))

    if test.name:
        print(f"\n{test.name}, split {test.split}:")
    elif test.split[:4].casefold() == "test" and all(name.upper().startswith("MSP-PODCAST") for name in data.names):
        print("Recognition performance for the MSP-Podcast Test set:")
    else:
        where = corpus.corpus.root.resolve().name if corpus.corpus.root else corpus.corpus.labels
        print(f"Recognition performance for {where}, split {test.split}:")
    print(f"{args.emo_attr} (CCC): {ccc:.3f}")
    print(interval_line)
    print(f"{result['n']} utterances of {result['corpus']}, split {test.split}")
    if (low, high) != utils.LABEL_RANGE:
        rescaled = f"labels rescaled linearly from {low:g}-{high:g} to 1-7"
        print(f"{rescaled}; CCC depends on this, so report it with the result")
    print("\n".join(f"wrote {path}" for path in files))
    return result


def write_result(file: Path, result) -> None:
    """Write JSON without NaN."""
    storage.write_text(file, json.dumps(result, indent=1, allow_nan=False) + "\n")


def table_of(tests: list[TestCorpus], results: list[dict]) -> list[str]:
    """The results of several corpora, a Markdown table."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    rows = [
        ["corpus", "split", "utterances", "labels", "norm terms", f"{results[0]['attribute']} CCC", "95 % interval"]
    ]
    for test, result in zip(tests, results):
        scale = f"{test.scale[0]:g}..{test.scale[1]:g}"
        scale += "" if scale == "1..7" else " to 1..7"
        bounds = " .. ".join(map(number, result["interval_95"]))
        count = f"{result['n']:,}"
        rows.append([test.name, test.split, count, scale, str(test.norm_dir), number(result["ccc"]), bounds])
    return cli.markdown_table(rows)


def main(args: argparse.Namespace) -> None:
    """Test on each corpus."""

    device = runtime.choose_device(args.device)
    precision = runtime.choose_precision(device, args.precision)
    model_file = find_regressor(args)
    utils.make_output_folders(args.results_dir, args.cache_dir)
    tests = open_tests(args)
    run_log.note_if_unfinished(model_file)
    results = [test_on(test, model_file, device, precision, args) for test in tests]
    if len(results) > 1:
        table = table_of(tests, results)
        stem = args.results_dir / model_file.name.removesuffix(".pt.tar")
        files = [stem.with_name(f"{stem.name}_corpora{ending}") for ending in (".json", ".md")]
        write_result(files[0], results)
        storage.write_text(files[1], "\n".join(table) + "\n")
        print("\n".join(["", *table, "", *(f"wrote {path}" for path in files)]))


if __name__ == "__main__":
    cli.run(main, ARGS)
