"""Stage 2: DeepMI, the mutual information between acoustic clusters and emotion levels, for each training utterance.

    python extract_DeepMI.py -ep 200 -batch 512 -emo Val -nc 50 --corpus /data/MSP-PODCAST-Publish-1.8

reads the checkpoint that training_DeepEmoCluster.py wrote with the same -ep, -batch, -emo and -nc, and writes
curriculum_metric/DeepMI_50clusters@_Val.json: file name -> DeepMI in nats.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from deepmi import cli, ranks
from deepmi.process import UserError


def fraction(text: str) -> float:
    """A number in 0..1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, found {text}")
    return value


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this stage."""
    parser = cli.new_parser(__doc__)
    cli.add_training_arguments(parser, epochs=200, trained_before="the checkpoint")
    cli.add_clusters_argument(parser)
    parser.add_argument(
        "--alpha",
        type=fraction,
        metavar="A",
        help="weight 0..1 of the predicted level's part; by default the paper's: 0.5 for Val, 0 for Act and Dom",
    )
    cli.add_corpus_arguments(parser)
    cli.add_model_dir_argument(parser)
    cli.add_metric_dir_argument(parser)
    cli.add_compute_arguments(
        parser, "taken as by every stage; extraction draws nothing, so its values are the same for any seed"
    )
    return parser


def open_network(args: argparse.Namespace, checkpoint: Path, *folders: Path) -> tuple:
    """A DeepEmoCluster and the Train split that it is to pass over.

    Args:
        args: corpus and computing arguments, and num_clusters and emo_attr of the checkpoint.
        checkpoint: its file.
        folders: made, beside that of the packed features, once the checkpoint is known to fit.
    Returns:
        (network on the device, what was saved with it, corpus, its Train split, `batches.Rows` of that, precision).
    Raises:
        UserError: corpus, norm terms or checkpoint are missing, damaged or do not fit.
    """
    import utils
    from deepmi import run_log, runtime
    from deepmi.batches import Rows
    from model import load_ssl_checkpoint

    device = runtime.choose_device(args.device)
    precision = runtime.choose_precision(device, args.precision)
    corpus = utils.open_corpus(args)
    corpus.select("Train")
    model, info = load_ssl_checkpoint(
        checkpoint, corpus.num_features, args.num_clusters, args.emo_attr, corpus.feature_set
    )
    run_log.note_if_unfinished(checkpoint)
    corpus.note_other_norm_stats(checkpoint, info)
    utils.make_output_folders(*folders, args.cache_dir)
    with ranks.first_rank_first():
        train = corpus.load("Train")
    return model.to(device), info, corpus, train, Rows(train.rows, device, precision), precision


def main(args: argparse.Namespace) -> None:
    """Extract and write the DeepMI values."""
    import numpy as np

    import utils
    from deepmi.batches import in_batches
    from deepmi.metric import ALPHA, deepmi_values, emotion_levels, warn_if_flat, write_metric

    checkpoint = utils.ssl_checkpoint(args.model_dir, args.epoch, args.batch_size, args.num_clusters, args.emo_attr)
    model, info, corpus, train, rows, precision = open_network(args, checkpoint, args.metric_dir)

    outputs = in_batches(model, model, rows, precision)
    if outputs is None:
        return  # rank 0 has them
    logits, prediction = outputs
    if not logits.isfinite().all():
        raise UserError(
            f"{checkpoint}: the cluster head outputs NaN or infinity; download or train the checkpoint again."
        )
    alpha = ALPHA[args.emo_attr] if args.alpha is None else args.alpha
    values, information = deepmi_values(
        logits.argmax(dim=1).cpu().numpy(),
        emotion_levels(train.labels),
        emotion_levels(utils.denormalise(prediction.cpu().numpy(), corpus.label_norm, checkpoint)),
        args.num_clusters,
        alpha,
    )
    target = utils.metric_file(args.metric_dir, args.num_clusters, args.emo_attr)
    write_metric(target, dict(zip(train.names, values.tolist())))

    print(
        f"{len(values)} training utterances, checkpoint {checkpoint} (best epoch {info.get('best_epoch', 'not given')})"
    )
    print(f"I(X;Y)  = {information['I(X;Y)']:.5f} nats  clusters and levels")
    print(f"I(Y';Y) = {information['I(Yp;Y)']:.5f} nats  predicted levels and levels")
    print(f"H(X)    = {information['H(X)']:.5f} nats  clusters ({np.log(args.num_clusters):.5f} if all were as large)")
    print(f"alpha {alpha:g}; {len(set(values.tolist()))} distinct values from {values.min():g} to {values.max():g}")
    print(f"wrote {target}")
    warn_if_flat(values, target)


if __name__ == "__main__":
    cli.run(main, get_args_parser(), with_ranks=True)
