"""Stage 4: test the curriculum regressor.

    python testing_Curriculum.py -ep 70 -batch 512 -emo Val --corpus /data/MSP-PODCAST-Publish-1.8

prints the CCC of Models/SimpleEmoRegressor_DeepMI@_Val.pt.tar on the Test1 split with its 95 % bootstrap interval and
other figures. It writes results/SimpleEmoRegressor_DeepMI@_Val_Test1.json, .md (the figures, also by gender and by
speaker), .csv (label and prediction of each utterance, in label units) and .png.

    python testing_Curriculum.py -emo Val --model Models/ResNetDeepEmoCluster_epoch200_batch512_50clusters_Val.pth.tar

tests the attribute head of a DeepEmoCluster, the baseline of the method.

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
    cli.add_training_arguments(parser, epochs=70, trained_before="the regressor", several=True)
    help = "split to test on: Test1, Test2, Validation, ... or all (with Train); one for all corpora or one for each"
    parser.add_argument("--split", nargs="+", default=["Test1"], metavar="NAME", help=help)
    cli.add_label_scale_argument(parser)
    help = (
        "regressor to test, by the order that training_Curriculum.py was given; by default deepmi, or where that is "
        "missing the only regressor in the folder"
    )
    parser.add_argument("--order", choices=curriculum.ORDERS, help=help)
    help = "regressor or checkpoint of DeepEmoCluster to test instead of the one that --order and --model-dir name"
    parser.add_argument("--model", type=Path, metavar="FILE", help=help)
    help = (
        "also write the predictions as the MSP-Podcast challenge wants them: FileName, EmoAct, EmoVal, EmoDom, clipped "
        "to 1..7; needs -emo Act Dom Val, one corpus, and labels of all attributes"
    )
    parser.add_argument("--challenge", type=Path, metavar="FILE.csv", help=help)
    cli.add_corpus_arguments(parser, several=True)
    cli.add_model_dir_argument(parser)
    cli.add_results_dir_argument(parser)
    cli.add_compute_arguments(parser, "seed of the bootstrap")
    return parser


if __name__ == "__main__":
    ARGS = cli.parse(get_args_parser())  # before the heavy imports, so that --help answers at once

import re
from dataclasses import dataclass

import pandas as pd

import utils
from deepmi import label_scales, plots, run_log, runtime, scores, storage
from deepmi.batches import Rows, in_batches
from deepmi.ccc import interval_by_speaker
from deepmi.moments import clipped_share, describe_clipped
from deepmi.process import UNPRINTABLE, UserError, first_few
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
        name: as from `label_scales.distinct_names`; empty for a single corpus.
        corpus: the opened corpus.
        data: the rows of the split.
        split: which rows.
        scale: lowest and highest label before they were, or are, brought to 1..7.
        norm_dir: folder of the normalisation statistics.
    """

    name: str
    corpus: utils.LabeledCorpus
    data: utils.LabeledSet
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


def test_on(test: TestCorpus, model_file: Path, args: argparse.Namespace) -> tuple[dict, pd.DataFrame]:
    """Predict and score one corpus.

    Returns:
        The result for the JSON file; FileName, label, prediction, SpkrID and Gender of each utterance.
    """
    corpus, data, device = test.corpus, test.data, runtime.choose_device(args.device)
    model, info = load_regressor(model_file, corpus.num_features, args.emo_attr, corpus.feature_set)
    corpus.note_other_norm_stats(model_file, info)
    given = {"epoch": args.epoch, "batch_size": args.batch_size}
    if any(value not in (info.get(name, value), get_args_parser().get_default(name)) for name, value in given.items()):
        print(
            f"note: {model_file} was trained with -ep {info.get('epoch')} -batch {info.get('batch_size')}; the test "
            "does not depend on what is given here."
        )
    (z,) = in_batches(model.to(device), model, Rows(data.rows, device, args.precision), args.precision)
    prediction = utils.denormalise(z.cpu().numpy(), corpus.label_norm, model_file)
    if min(data.labels) == max(data.labels):
        print(f"note: all labels of {test.split} are the same; their CCC is 0 for any prediction.")
    bounds, interval_line = interval_by_speaker(data.labels, prediction, data.speakers, data.names, args.seed)
    columns = {"FileName": data.names, "label": data.labels, "prediction": prediction, "SpkrID": data.speakers}
    table = pd.DataFrame(columns)
    known = corpus.select(test.split).set_index("FileName").reindex(columns=["Gender"], fill_value="")
    table["Gender"] = known["Gender"].loc[data.names].tolist()
    speakers = scores.figures_by(table, "SpkrID")
    result = {
        "attribute": args.emo_attr,
        **scores.figures(data.labels, prediction),
        "interval_95": bounds,
        "interval": interval_line,
        "by_gender": scores.figures_by(table, "Gender").to_dict("index"),
        "by_speaker": speakers.to_dict("index"),
        "means_of_speakers": scores.agreement_of_means(speakers),
        "clipped_share": clipped_share(data.rows),
        "split": test.split,
        "corpus": str(corpus.corpus.root or corpus.corpus.labels),
        "label_scale": test.scale,
        "norm_dir": str(test.norm_dir),
        "seed": args.seed,
        "checkpoint": str(model_file),
        "training": info,
    }
    return result, table


def title_of(test: TestCorpus) -> str:
    """The heading of a result."""
    if test.name:
        return f"{test.name}, split {test.split}:"
    if test.split[:4].casefold() == "test" and all(name.upper().startswith("MSP-PODCAST") for name in test.data.names):
        return "Recognition performance for the MSP-Podcast Test set:"
    root, labels = test.corpus.corpus.root, test.corpus.corpus.labels
    return f"Recognition performance for {root.resolve().name if root else labels}, split {test.split}:"


def report(test: TestCorpus, result: dict, table: pd.DataFrame, args: argparse.Namespace) -> None:
    """Print a result and write its files."""
    lines = scores.describe(result)
    if test.scale != utils.LABEL_RANGE:
        low, high = test.scale
        rescaled = f"labels rescaled linearly from {low:g}-{high:g} to 1-7"
        lines.append(f"{rescaled}; CCC depends on this, so report it with the result")
    lines.append(describe_clipped(result["clipped_share"]))
    stem = f"{stem_of(result)}{'_' * bool(test.name)}{test.name}_{test.split}"
    files = [args.results_dir / f"{stem}{ending}" for ending in (".json", ".md", ".csv", ".png")]
    groups = [cli.markdown_table(scores.group_rows(result, kind)) for kind in ("gender", "speaker")]
    markdown = [title_of(test), "", *(f"- {line}" for line in lines)]
    markdown += [line for rows in groups if len(rows) > 2 for line in ("", *rows)]
    storage.write_json(files[0], result)
    storage.write_text(files[1], "\n".join(markdown) + "\n")
    storage.write_text(files[2], table[["FileName", "label", "prediction"]].to_csv(index=False))
    plots.draw_test(
        table["label"].to_numpy(), table["prediction"].to_numpy(), files[3], f"{stem}: CCC {result['ccc']:.3f}"
    )
    print("\n".join([*[""][: bool(test.name)], title_of(test), *lines, *(f"wrote {path}" for path in files)]))


def stem_of(result: dict) -> str:
    """Beginning of the names of the files of a result."""
    return re.sub(r"\.(pt|pth)(\.tar)?$", "", Path(result["checkpoint"]).name)


def table_of(tests: list[TestCorpus], results: list[dict]) -> list[list[str]]:
    """The results of several corpora as a table, the header first."""
    rows = [["corpus", "split", "utterances", "labels", "normalisation statistics"]]
    rows[0] += [f"{results[0]['attribute']} CCC", "95 % interval"]
    for test, result in zip(tests, results):
        scale = f"{test.scale[0]:g}..{test.scale[1]:g}"
        scale += "" if scale == "1..7" else " to 1..7"
        cells = [test.name, test.split, f"{result['n']:,}", scale, str(test.norm_dir), f"{result['ccc']:.3f}"]
        rows.append([*cells, " .. ".join(f"{bound:.3f}" for bound in result["interval_95"])])
    return rows


def test_attribute(args: argparse.Namespace, challenge: dict[str, pd.Series]) -> list[dict]:
    """Test the regressor of one attribute on each corpus.

    Args:
        args: the command line, with one attribute.
        challenge: takes the predictions on the last corpus, by attribute and indexed by file name.
    Returns:
        A row of figures per corpus, as text.
    """
    model_file = find_regressor(args)
    tests = open_tests(args)
    run_log.note_if_unfinished(model_file)
    results = []
    for one in tests:
        result, table = test_on(one, model_file, args)
        report(one, result, table, args)
        results.append(result)
        challenge[args.emo_attr] = table.set_index("FileName")["prediction"]
    if len(results) > 1:
        lines = cli.markdown_table(table_of(tests, results))
        stem = f"{stem_of(results[0])}_corpora"
        files = [args.results_dir / f"{stem}{ending}" for ending in (".json", ".md")]
        storage.write_json(files[0], results)
        storage.write_text(files[1], "\n".join(lines) + "\n")
        print("\n".join(["", *lines, "", *(f"wrote {path}" for path in files)]))
    shown = {"ccc": "CCC", "pearson": "Pearson", "mae": "MAE", "rmse": "RMSE"}
    return [
        {"corpus": of["corpus"], "utterances": str(of["n"])} | {shown[key]: f"{of[key]:.3f}" for key in shown}
        for of in results
    ]


def main(args: argparse.Namespace) -> None:
    """Test the regressor of each attribute."""
    if args.challenge and (len(args.corpus or [None]) > 1 or set(args.emo_attr) != set(cli.ATTRIBUTES)):
        raise UserError("--challenge: has one column per attribute; give it -emo Act Dom Val and one corpus.")
    args.precision = runtime.choose_precision(runtime.choose_device(args.device), args.precision)
    utils.make_output_folders(args.results_dir, args.cache_dir)
    if args.challenge:
        labels = utils.find_corpus(*(args.corpus or [None]), args.labels, args.features).labels
        args.challenge = storage.checked_output(args.challenge, "--challenge", [labels])
    predictions: dict[str, pd.Series] = {}
    cli.for_each_attribute(lambda one: test_attribute(one, predictions), args)
    if args.challenge:
        columns = {f"Emo{attribute}": predictions[attribute] for attribute in ("Act", "Val", "Dom")}
        table = pd.DataFrame(columns).clip(*utils.LABEL_RANGE)
        if table.isna().any(axis=None):
            lacking = table.index[table.isna().any(axis=1)]
            raise UserError(
                f"--challenge: {len(lacking)} utterances lack the label of an attribute ({first_few(lacking, 3)}), so "
                "there is no prediction for them."
            )
        storage.write_text(args.challenge, table.to_csv(index_label="FileName"))
        print(f"wrote {args.challenge}")


if __name__ == "__main__":
    cli.run(main, ARGS)
