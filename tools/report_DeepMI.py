"""A report on DeepMI: what the values are, what they follow, and which utterances have them, as one page.

    python -m tools.report_DeepMI -emo Val -nc 50 --corpus /data/MSP-PODCAST-Publish-1.8

reads curriculum_metric/DeepMI_50clusters@_Val.json and the corpus' label file, and writes
results/DeepMI_report_Val.html, which needs no network, and each of its pictures as results/DeepMI_report_Val_*.png.
Where the checkpoint that the values came from is there too (with its features and norm terms), clusters, information
and acoustic features are added: by -ep, -batch and -nc, or by --checkpoint.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from deepmi import cli, storage
from deepmi.process import UserError, notify, one_line

TRUTH = "demo_truth.csv"  # of the demo corpus: which clips it made disputed


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    parser = cli.new_parser(__doc__)
    cli.add_training_arguments(parser, epochs=200, trained_before="the checkpoint")
    cli.add_clusters_argument(parser)
    cli.add_metric_dir_argument(parser)
    parser.add_argument(
        "--metric", type=Path, metavar="FILE", help="DeepMI file to report on, whatever -nc and --metric-dir say"
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="DeepEmoCluster that the values came from; by default the one of -ep, -batch and -nc in --model-dir if it "
        "is there",
    )
    cli.add_corpus_arguments(parser)
    cli.add_model_dir_argument(parser)
    parser.add_argument(
        "--audio-base",
        metavar="URL_OR_DIR",
        help="where the page finds the recordings: a URL, or a folder instead of the corpus' Audios",
    )
    parser.add_argument(
        "--results-dir", type=Path, default=Path("results"), metavar="DIR", help="folder of the page and its pictures"
    )
    cli.add_compute_arguments(parser, "seed of the bootstrap, of the random order and of what a picture samples")
    return parser


def read_truth(labels: Path):
    """Which clips the demo corpus made disputed, bool by file name; None where the corpus is another one."""
    import pandas as pd

    import utils

    file = labels.with_name(TRUTH)
    if not file.is_file():
        return None
    truth = utils.read_csv(file, ("FileName", "HighDisagreement"))
    if truth["FileName"].duplicated().any():
        notify(f"warning: {file}: file names stand there twice, so it is not used.")
        return None
    return pd.Series((truth["HighDisagreement"] == "1").to_numpy(), index=truth["FileName"])


def read_spread(root: Path | None, emo_attr: str):
    """How far the raters are apart, by file name; None, with a line that says why, where it can't be known."""
    import utils

    file = utils.find_detailed_file(root) if root else None
    if file is None:
        print("note: no labels_detailed beside the labels: rater disagreement is left out.")
        return None
    try:
        return utils.rater_spread(file, emo_attr)
    except UserError as error:
        notify(f"warning: {error} Rater disagreement is left out.")
        return None


def read_others(args: argparse.Namespace, folder: Path) -> dict:
    """DeepMI of the other attributes of the same -nc, attribute -> series by file name, where there is a file."""
    import pandas as pd

    import utils
    from deepmi.metric import read_metric

    files = {
        attribute: utils.metric_file(folder, args.num_clusters, attribute)
        for attribute in cli.ATTRIBUTES
        if attribute != args.emo_attr
    }
    found = {}
    for attribute, file in files.items():
        if file.is_file():
            try:
                found[attribute] = pd.Series(read_metric(file))
            except UserError as error:
                notify(f"warning: {error} It is left out.")
    return found


def run_network(args: argparse.Namespace, checkpoint: Path):
    """(training utterances that have features, `report_panels.Network` over them)."""
    import torch

    import utils
    from deepmi import runtime
    from deepmi.batches import Rows, in_batches
    from deepmi.metric import ALPHA, deepmi_values, emotion_levels
    from model import load_ssl_checkpoint
    from tools import feature_sets
    from tools.report_panels import Network, standardised_differences

    device = runtime.choose_device(args.device)
    precision = runtime.choose_precision(device, args.precision)
    corpus = utils.open_corpus(args)
    model, info = load_ssl_checkpoint(
        checkpoint, corpus.num_features, args.num_clusters, args.emo_attr, corpus.feature_set
    )
    corpus.note_other_norm_stats(checkpoint, info)
    train, model = corpus.load("Train"), model.to(device)
    rows = Rows(train.rows, device, precision)

    def outputs(rows: torch.Tensor) -> tuple:
        return (*model(rows), model.cluster_features(rows))

    logits, prediction, features = in_batches(model, outputs, rows, precision)
    clusters = logits.argmax(dim=1).cpu().numpy()
    predicted = emotion_levels(utils.denormalise(prediction.cpu().numpy(), corpus.label_norm, checkpoint))
    values, information = deepmi_values(
        clusters,
        emotion_levels(train.labels),
        predicted,
        args.num_clusters,
        ALPHA[args.emo_attr],
    )
    # MSP-Podcast's own features carry no note; their folder is called after their set.
    is_default = corpus.corpus.features.parts[-3:] == utils.FEATURE_FOLDER.parts
    names = feature_sets.feature_names(corpus.feature_set or ("IS13" if is_default else ""), corpus.num_features)
    network = Network(
        checkpoint.name,
        clusters,
        predicted,
        values,
        information,
        features.cpu().numpy(),
        standardised_differences(train.rows, clusters, args.num_clusters),
        names,
    )
    return train.names, network


def find_network(args: argparse.Namespace):
    """As `run_network`, or (None, None) with a line that says what is missing: it was not asked for by name."""
    import utils

    if args.checkpoint:
        return run_network(args, args.checkpoint)
    checkpoint = utils.ssl_checkpoint(args.model_dir, args.epoch, args.batch_size, args.num_clusters, args.emo_attr)
    if not checkpoint.is_file():
        print(
            f"note: no {checkpoint}; that checkpoint (by -ep, -batch, -nc, --model-dir, or --checkpoint FILE) would "
            "add clusters, information and features."
        )
        return None, None
    try:
        return run_network(args, checkpoint)
    except UserError as error:
        notify(f"warning: {checkpoint} is left out: {error}")
        return None, None


def other_labels(table, emo_attr: str, label_file: Path) -> list:
    """Labels of each split besides Train, for the table of the page; a split whose labels are hidden is left out."""
    import utils

    found = []
    for _, rows in table.groupby("Split_Set"):
        if utils.has_labels(rows, emo_attr):
            try:
                found.append(utils.attribute_labels(rows, emo_attr, label_file))
            except UserError as error:
                notify(f"note: {error} That split is left out of the table.")
    return found


def gather(args: argparse.Namespace, metric_file: Path, label_file: Path):
    """Read everything: `report_panels.Evidence`.

    Raises:
        UserError: labels, DeepMI file or an explicit checkpoint are missing or damaged, or not of one Train split.
    """
    import numpy as np
    import pandas as pd

    import utils
    from deepmi import curriculum
    from deepmi.metric import read_metric
    from tools import report_panels

    metric = read_metric(metric_file)
    table = utils.read_labels(label_file)
    in_train = utils.select_split(table, "Train", label_file)
    train = utils.attribute_labels(in_train, args.emo_attr, label_file)
    labels = pd.concat([train, *other_labels(table.drop(in_train.index), args.emo_attr, label_file)])
    with_features, network = find_network(args)
    names = sorted(train.index) if network is None else with_features
    if args.skip_missing:
        kept = np.array([name in metric for name in names])
        if not kept.all():
            notify(f"warning: {(~kept).sum()} training utterances have no DeepMI; left out.")
            if network is not None:
                notify("warning: the checkpoint's pictures are of all training utterances; left out.")
                network = None
        names = [name for name in names if name in metric]
    values = curriculum.match_metric(metric, names, metric_file, in_train["FileName"].tolist())
    spread = read_spread(args.corpus, args.emo_attr)
    marked, marked_by = read_truth(label_file), f"the clips that {TRUTH} calls so"
    if marked is None and spread is not None:
        ours = spread[spread.index.isin(names)]
        marked = report_panels.most_disputed(ours)
        marked_by = f"the {100 * report_panels.DISPUTED_SHARE:.0f} % whose raters are furthest apart"
    table = table.set_index("FileName").loc[labels.index]
    return report_panels.Evidence(
        emo_attr=args.emo_attr,
        num_clusters=args.num_clusters,
        seed=args.seed,
        names=names,
        values=values,
        labels=train.loc[names].to_numpy(),
        table=table.assign(label=labels),
        others=read_others(args, metric_file.parent),
        spread=spread,
        marked=marked,
        marked_by=marked_by,
        network=network,
    )


def main(args: argparse.Namespace) -> None:
    """Gather, draw and write."""
    import utils
    from deepmi import plots
    from tools import report_page, report_panels
    from tools.report_render import matplotlib_figure

    if args.corpus is None and args.labels is None:
        raise UserError(utils.NO_CORPUS)
    if args.corpus is not None and not args.corpus.is_dir():
        raise UserError(f"{args.corpus}: no such folder; --corpus (or DEEPMI_CORPUS) names a corpus.")
    metric_file = args.metric or utils.metric_file(args.metric_dir, args.num_clusters, args.emo_attr)
    label_file = args.labels or utils.find_label_file(args.corpus)
    audio = report_page.find_audio(args.corpus, args.audio_base, args.results_dir)
    utils.make_output_folders(args.results_dir)
    found = gather(args, metric_file, label_file)
    report = report_panels.build(found)
    corpus_name = one_line(args.corpus.resolve().name if args.corpus else label_file.stem)
    page = args.results_dir / f"DeepMI_report_{args.emo_attr}.html"
    written = []
    for panel in report.panels:
        written.append(page.with_name(f"{page.stem}_{panel.name}.png"))
        plots.save(matplotlib_figure(panel), written[-1])
    other = re.search(r"@_(Act|Dom|Val)\b", metric_file.name)
    if other and other[1] != args.emo_attr:
        report.warnings.append(f"{metric_file.name} is by its name a file of {other[1]}, not of {args.emo_attr}.")
    storage.write_text(page, report_page.page(found, report, corpus_name, metric_file.name, audio))
    for line in (*(f"warning: {text}" for text in report.warnings), *report.findings):
        print(line)
    print(f"wrote {page} and, beside it, {len(written)} pictures, {page.stem}_*.png")


if __name__ == "__main__":
    cli.run(main, cli.parse(get_args_parser()))
