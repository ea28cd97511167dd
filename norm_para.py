"""Stage 0: normalisation statistics (mean and standard deviation) of the Train split.

    python norm_para.py --corpus /data/MSP-PODCAST-Publish-1.8

Reads every Train feature file once and writes NormTerm/feat_norm_means.mat and feat_norm_stds.mat, and for each
attribute with labels, such as Act, act_norm_means.mat and act_norm_stds.mat. All other stages normalise with them.
"""

from __future__ import annotations

import argparse

from deepmi import cli


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this stage."""
    parser = cli.new_parser(__doc__)
    cli.add_corpus_arguments(parser)
    return parser


if __name__ == "__main__":
    ARGS = cli.parse(get_args_parser())  # before the heavy imports, so that --help answers at once

import utils
from deepmi import features
from deepmi.process import UserError


def main(args: argparse.Namespace) -> None:
    """Compute and write the statistics."""
    corpus = utils.find_corpus(args.corpus, args.labels, args.features)
    train = utils.select_split(utils.read_labels(corpus.labels), "Train", corpus.labels)
    utils.make_output_folders(args.norm_dir)
    feature_set = features.read_feature_set(corpus.features)
    features.common_feature_set({args.norm_dir: features.read_feature_set(args.norm_dir), corpus.features: feature_set})
    names = utils.present_utterances(corpus, train["FileName"].tolist(), args.skip_missing)
    train = train[train["FileName"].isin(set(names))]
    labels = {
        attribute: utils.attribute_labels(train, attribute, corpus.labels).to_numpy()
        for attribute in cli.ATTRIBUTES
        if utils.has_labels(train, attribute)
    }
    if not labels:
        raise UserError(f"{corpus.labels}: no attribute has labels; expected EmoAct, EmoDom or EmoVal.")

    mean, std = features.feature_moments(corpus.features, sorted(names), args.workers)
    label_norms = {attribute: (values.mean(), values.std()) for attribute, values in labels.items()}
    written = utils.write_norm_stats(args.norm_dir, (mean, std), label_norms, feature_set)
    print(f"{len(names)} training utterances of {mean.size} features, {int((std == 0).sum())} of them constant.")
    for attribute, (label_mean, label_std) in label_norms.items():
        count = len(labels[attribute])
        print(f"{attribute}: mean {label_mean:.4f}, standard deviation {label_std:.4f} over {count} labels.")
    for attribute in sorted(set(cli.ATTRIBUTES) - set(labels)):
        stale = (args.norm_dir / f"{attribute.lower()}_norm_means.mat").exists()
        rest = f" Its statistics in {args.norm_dir} belong to a different corpus." if stale else ""
        print(f"{attribute}: no labels in {corpus.labels}, left out.{rest}")
    print("\n".join(f"wrote {path}" for path in written))


if __name__ == "__main__":
    cli.run(main, ARGS)
