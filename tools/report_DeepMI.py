"""A report on DeepMI: what the values are, what they follow, and which utterances have them, as one page.

    python -m tools.report_DeepMI -emo Val -nc 50 --corpus /data/MSP-PODCAST-Publish-1.8
    python -m tools.report_DeepMI --metric curriculum_metric_v1.8/DeepMI_50clusters@_Val.json

The first reads curriculum_metric/DeepMI_50clusters@_Val.json and the label file of the corpus, and writes
results/DeepMI_report_Val.html, which needs no network, and each of its charts as results/DeepMI_report_Val_*.png.
With the checkpoint that the values came from (-ep, -batch and -nc, or --checkpoint), its features and normalisation
statistics, clusters, information and acoustic features are added. The second needs no corpus: it shows the
distribution, the ties, the bins of the curriculum, and the attributes in that folder against each other.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from deepmi import cli


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    parser = cli.new_parser(__doc__)
    cli.add_training_arguments(parser, epochs=200, trained_before="the checkpoint")
    cli.add_clusters_argument(parser)
    cli.add_metric_dir_argument(parser)
    parser.add_argument(
        "--metric",
        type=Path,
        metavar="FILE",
        help="DeepMI file to report on, instead of the one of -nc (default: 50) and -emo (default: Val) in "
        "--metric-dir; unless given, -nc and -emo follow its name",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="DeepEmoCluster that the values came from; by default the one of -ep, -batch and -nc in --model-dir if it "
        "is there",
    )
    cli.add_label_quality_argument(parser)
    cli.add_corpus_arguments(parser)
    cli.add_model_dir_argument(parser)
    parser.add_argument(
        "--audio-base",
        metavar="URL_OR_DIR",
        help="where the page finds the recordings: a URL, or a folder instead of the corpus' Audios",
    )
    cli.add_results_dir_argument(parser, "folder of the page and its charts")
    cli.add_compute_arguments(parser, "seed of the bootstrap, of the random order and of the samples in charts")
    parser.set_defaults(emo_attr=None, num_clusters=None)  # see main
    return parser


if __name__ == "__main__":
    ARGS = cli.parse(get_args_parser())  # before the heavy imports, so that --help answers at once

import re

import utils
from deepmi import storage
from deepmi.process import UserError, one_line
from tools.report import charts, page, panels
from tools.report.evidence import gather


def main(args: argparse.Namespace) -> None:
    """Gather, draw and write."""
    alone = args.corpus is None and args.labels is None
    if alone and (args.metric is None or args.checkpoint):
        raise UserError(f"{utils.NO_CORPUS} Without a corpus, only --metric FILE can be reported on.")
    if args.corpus is not None and not args.corpus.is_dir():
        raise UserError(f"{args.corpus}: no such folder; --corpus (or DEEPMI_CORPUS) names a corpus.")
    named = re.search(r"DeepMI_(\d{1,6})clusters@_(Act|Dom|Val)\b", args.metric.name if args.metric else "")
    args.num_clusters = args.num_clusters or int(named[1] if named else 50)
    args.emo_attr = args.emo_attr or (named[2] if named else "Val")
    metric_file = args.metric or utils.metric_file(args.metric_dir, args.num_clusters, args.emo_attr)
    label_file = None if alone else args.labels or utils.find_label_file(args.corpus)
    recordings = page.find_recordings(args.corpus, args.audio_base, args.results_dir)
    utils.make_output_folders(args.results_dir)
    report = panels.build(gather(args, metric_file, label_file))
    if named and named[2] != args.emo_attr:
        report.warnings.append(f"{metric_file.name} is by its name a file of {named[2]}, not of {args.emo_attr}.")
    target = args.results_dir / f"DeepMI_report_{args.emo_attr}.html"
    for name, chart in report.charts.items():
        charts.write_png(chart, target.with_name(f"{target.stem}_{name}.png"))
    corpus = "" if alone else one_line(args.corpus.resolve().name if args.corpus else label_file.stem)
    storage.write_text(target, page.render(report, corpus, metric_file.name, recordings))
    for line in (*(f"warning: {text}" for text in report.warnings), *report.findings):
        print(line)
    print(f"wrote {target} and {len(report.charts)} charts, {target.stem}_*.png")


if __name__ == "__main__":
    cli.run(main, ARGS)
