"""Stage 2: DeepMI, the mutual information between acoustic clusters and emotion levels, for each training utterance.

    python extract_DeepMI.py -ep 200 -batch 512 -emo Val -nc 50 --corpus /data/MSP-PODCAST-Publish-1.8

reads the checkpoint that training_DeepEmoCluster.py wrote with the same -ep, -batch, -emo and -nc, and writes
curriculum_metric/DeepMI_50clusters@_Val.json: file name -> DeepMI in nats. --table writes more about each utterance.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from deepmi import cli


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this stage."""
    parser = cli.new_parser(__doc__)
    cli.add_training_arguments(parser, epochs=200, trained_before="the checkpoint", several=True)
    cli.add_clusters_argument(parser)
    parser.add_argument(
        "--alpha",
        type=cli.fraction,
        metavar="A",
        help="weight of the predicted level, 0 to 1; by default the paper's: 0.5 for Val, 0 for Act and Dom",
    )
    cli.add_cluster_source_arguments(parser)
    help = (
        "also write a table with one row per utterance: DeepMI, its rank, bin and both parts, cluster, level, label, "
        "prediction, speaker, raters (FILE.csv or FILE.parquet)"
    )
    parser.add_argument("--table", type=Path, metavar="FILE", help=help)
    cli.add_label_quality_argument(parser)
    cli.add_corpus_arguments(parser)
    cli.add_model_dir_argument(parser)
    cli.add_metric_dir_argument(parser)
    cli.add_compute_arguments(parser, "seed of k-means; the cluster head is not random")
    return parser


if __name__ == "__main__":
    ARGS = cli.parse(get_args_parser())  # before the heavy imports, so that --help answers at once

import math

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

import utils
from deepmi import clustering, curriculum, ranks, run_log, runtime, storage
from deepmi.batches import Rows, in_batches
from deepmi.labels import rater_statistics
from deepmi.metric import (
    ALPHA,
    combined,
    deepmi_parts,
    emotion_levels,
    read_label_quality,
    rounded,
    warn_if_flat,
    write_metric,
)
from deepmi.process import UserError, notify, rank
from model import load_ssl_checkpoint


def warn_if_head_collapsed(clusters: NDArray[np.int64], entropy: float, args: argparse.Namespace) -> None:
    """Warn where the cluster head uses fewer than half of the clusters, or its entropy H(X) is under half of ln K."""
    used, most = len(np.unique(clusters)), math.log(args.num_clusters)
    if used < args.num_clusters / 2 or entropy < most / 2:
        notify(
            f"warning: the cluster head uses {used} of {args.num_clusters} clusters (H(X) {entropy:.2f} of {most:.2f} "
            "nats), so DeepMI has few distinct values. --clusters kmeans --restarts 20 uses all of them; or train "
            "DeepEmoCluster for more epochs."
        )


def check_table(args: argparse.Namespace, labels: Path) -> None:
    """Raise `UserError` if the table can't be written; makes its folder."""
    path = args.table
    if path is None:
        if args.label_quality:
            raise UserError("--label-quality: has an effect only on the table; add --table FILE.")
        return
    storage.checked_output(path, "--table", [labels, args.label_quality])
    if path.suffix not in (".csv", ".parquet"):
        raise UserError(f"--table {path}: expected a name that ends with .csv or .parquet.")


def known_facts(corpus: utils.LabeledCorpus, names: list[str], quality: Path | None) -> pd.DataFrame:
    """What is known about utterances, indexed by file name.

    Args:
        corpus: has speaker, gender and, if it has individual ratings, their number and standard deviation.
        names: the utterances.
        quality: file of tools.label_quality, or None.
    """
    known = corpus.table.set_index("FileName").loc[names]
    known = known[[column for column in ("SpkrID", "Gender") if column in known]]
    if ratings := utils.find_detailed_file(corpus.corpus.root) if corpus.corpus.root else None:
        known = known.join(rater_statistics(ratings, corpus.emo_attr))
    if quality:
        known = known.join(pd.Series(read_label_quality(quality, names), name="label_quality"))
    return known


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write one row per utterance, with rank and bin; the table is indexed by file name and has DeepMI."""
    order = curriculum.training_order("deepmi", list(table.index), table["DeepMI"].to_numpy(), 0)
    places, bins = curriculum.places_and_bins(order)
    table.insert(1, "rank", places)
    table.insert(2, "bin", bins)
    with storage.write_atomically(storage.output_file(path)) as temporary:
        if path.suffix == ".csv":
            table.to_csv(temporary, index_label="FileName")
        else:
            table.rename_axis("FileName").reset_index().to_parquet(temporary, index=False)
    print(f"wrote {path}")


def extract(args: argparse.Namespace) -> list[dict]:
    """Extract and write the DeepMI values of one attribute; what is known about them as a row of a table."""
    cli.refuse_idle_restarts(args)
    device = runtime.choose_device(args.device)
    precision = runtime.choose_precision(device, args.precision)
    corpus = utils.open_corpus(args)
    corpus.select("Train")
    check_table(args, corpus.corpus.labels)
    checkpoint = utils.ssl_checkpoint(args.model_dir, args.epoch, args.batch_size, args.num_clusters, args.emo_attr)
    model, info = load_ssl_checkpoint(
        checkpoint, corpus.num_features, args.num_clusters, args.emo_attr, corpus.feature_set
    )
    run_log.note_if_unfinished(checkpoint)
    corpus.note_other_norm_stats(checkpoint, info)
    utils.make_output_folders(args.metric_dir, args.cache_dir)
    with ranks.first_rank_first():
        train = corpus.load("Train")
    known = known_facts(corpus, train.names, args.label_quality) if args.table else None

    def features_and_prediction(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return model.cluster_features(x), model.predict_attribute(x)

    model = model.to(device)
    function = model if args.clusters == "head" else features_and_prediction
    points, prediction = in_batches(model, function, Rows(train.rows, device, precision), precision)
    if not points.isfinite().all():
        raise UserError(f"{checkpoint}: the network outputs NaN or infinity; download or train the checkpoint again.")
    levels = emotion_levels(train.labels)  # Y, (N,)
    prediction = utils.denormalise(prediction.cpu().numpy(), corpus.label_norm, checkpoint)  # in label units, (N,)
    predicted = emotion_levels(prediction)  # Y', (N,)
    alpha = ALPHA[args.emo_attr] if args.alpha is None else args.alpha
    if args.clusters == "head":
        clusters = points.argmax(dim=1).cpu().numpy()  # X, (N,)
    else:
        clusters = clustering.repeated_kmeans(points, args.num_clusters, args.restarts, args.seed)  # (R, N)
    if rank() > 0:
        return []
    of_clusters, of_prediction, information = deepmi_parts(clusters, levels, predicted, args.num_clusters)
    values = combined(of_clusters, of_prediction, alpha)
    target = utils.metric_file(args.metric_dir, args.num_clusters, args.emo_attr)
    write_metric(target, dict(zip(train.names, values.tolist())))

    epoch = info.get("best_epoch", "unknown")
    print(f"{len(values)} training utterances, checkpoint {checkpoint} (best epoch {epoch})")
    kind = "cluster head" if args.clusters == "head" else "k-means of the 256-d features"
    print(f"clusters: {kind}" + (f", mean of {args.restarts} clusterings" if args.restarts > 1 else ""))
    print(f"I(X;Y)  = {information['I(X;Y)']:.5f} nats, clusters and levels")
    print(f"I(Y';Y) = {information['I(Yp;Y)']:.5f} nats, predicted levels and levels")
    most = math.log(args.num_clusters)
    print(f"H(X)    = {information['H(X)']:.5f} nats, clusters; {most:.5f} if all had the same size")
    print(f"alpha {alpha:g}; {len(set(values.tolist()))} distinct values from {values.min():g} to {values.max():g}")
    print(f"wrote {target}")
    if known is not None:
        parts = {"part_of_clusters": of_clusters, "part_of_prediction": of_prediction}
        columns = {"DeepMI": values, **{name: rounded(part) for name, part in parts.items()}}
        columns |= {"cluster": np.atleast_2d(clusters)[0], "level": levels, "predicted_level": predicted}
        prediction = rounded(prediction)
        columns |= {"label": train.labels, "prediction": prediction, "residual": rounded(prediction - train.labels)}
        write_table(args.table, pd.DataFrame(columns, index=train.names).join(known))
    if args.clusters == "head":
        warn_if_head_collapsed(clusters, information["H(X)"], args)
    warn_if_flat(values, target)
    found = {name: f"{information[name]:.5f}" for name in ("I(X;Y)", "H(X)")}
    return [found | {"distinct values": str(len(set(values.tolist()))), "file": str(target)}]


@ranks.on_every_rank
def main(args: argparse.Namespace) -> None:
    """Extract DeepMI for each attribute."""
    cli.for_each_attribute(extract, args)


if __name__ == "__main__":
    cli.run(main, ARGS)
