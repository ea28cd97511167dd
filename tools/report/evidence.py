"""The data of the report: DeepMI joined by file name with labels, raters, clusters and the remaining attributes."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

import utils
from deepmi import clustering, curriculum, run_log, runtime, tables
from deepmi.batches import Rows, in_batches
from deepmi.metric import ALPHA, deepmi_values, emotion_levels, read_label_quality, read_metric
from deepmi.process import UserError, notify
from model import load_ssl_checkpoint
from tools import feature_sets
from tools.report import measures

ATTRIBUTE_NAMES = {"Act": "arousal", "Dom": "dominance", "Val": "valence"}
RESTARTS = 20  # k-means that are averaged, as docs/compare.md recommends
TRUTH = "demo_truth.csv"  # in the demo corpus: which recordings are disputed by construction


@dataclass
class Network:
    """Results of a checkpoint; entry i of an array of N belongs to the i-th training utterance by file name."""

    source: str  # name of the file
    clusters: NDArray[np.int64]  # X, 0..K-1, shape (N,)
    prediction: NDArray[np.float64]  # in label units, shape (N,); its levels are Y'
    values: NDArray[np.float64]  # DeepMI computed from it, shape (N,)
    information: dict[str, float]  # as from `deepmi_values`
    features: NDArray[np.float32]  # the input of k-means, shape (N, 256)
    sources: pd.DataFrame  # as from `measures.cluster_sources`
    kmeans_values: NDArray[np.float64] | None  # DeepMI by RESTARTS k-means of the features, (N,); None if N < K
    differences: NDArray[np.float64]  # as from `measures.standardised_differences`, shape (K, D)
    feature_names: list[str]  # D names


@dataclass
class Evidence:
    """All data of the report.

    Attributes:
        emo_attr: `Act`, `Dom` or `Val`.
        num_clusters: K.
        seed: seed of bootstrap and samples.
        table: one row per utterance, indexed by file name. `value` is DeepMI, NaN outside Train. If a corpus is given:
            `label`, `level` (0..5), the text columns of the label file, and `Act`, `Dom`, `Val` as numbers. If known:
            `spread` (standard deviation of the ratings), `disputed` (1 or 0), `cluster`, `prediction`, `label
            quality`, and `DeepMI Act` and so on for the remaining attributes.
        disputed_by: how the disputed utterances were determined.
        network: results of the checkpoint, or None.
    """

    emo_attr: str
    num_clusters: int
    seed: int
    table: pd.DataFrame
    disputed_by: str = ""
    network: Network | None = None

    def __post_init__(self):
        """Add `place` in the curriculum, first `bin` and `ties`, the number of utterances with the same value."""
        valued = self.table["value"].dropna().sort_index()
        order = curriculum.training_order("deepmi", valued.index.tolist(), valued.to_numpy(), self.seed)
        places, bins = curriculum.places_and_bins(order)
        self.table = self.table.assign(
            place=pd.Series(places, index=valued.index),
            bin=pd.Series(bins, index=valued.index),
            ties=valued.groupby(valued).transform("size"),
        )

    @cached_property
    def train(self) -> pd.DataFrame:
        """The rows of `table` that have DeepMI, sorted by file name, with the number of their joint `cell`."""
        train = self.table[self.table["value"].notna()].sort_index()
        parts = ["value" if self.network is None else "cluster", *(["level"] if self.has_labels else [])]
        return train.assign(cell=train.groupby(parts).ngroup())

    @property
    def has_labels(self) -> bool:
        """Whether a corpus is given."""
        return "level" in self.table

    @property
    def attribute(self) -> str:
        """Name of the attribute."""
        return ATTRIBUTE_NAMES[self.emo_attr]

    @property
    def alpha(self) -> float:
        """The paper's weight of the predicted level in DeepMI of the attribute."""
        return ALPHA[self.emo_attr]


def read_label_table(label_file: Path, emo_attr: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(Table as in `Evidence` of the utterances that have a label; all Train rows of the label file)."""
    rows = utils.read_labels(label_file)
    train = utils.select_split(rows, "Train", label_file)
    labels = [utils.attribute_labels(train, emo_attr, label_file)]
    for _, split in rows.drop(train.index).groupby("Split_Set"):
        if utils.has_labels(split, emo_attr):
            try:
                labels.append(utils.attribute_labels(split, emo_attr, label_file))
            except UserError as error:
                notify(f"note: {error} This split is left out of the table.")
    label = pd.concat(labels)
    table = rows.set_index("FileName").loc[label.index]
    for attribute in ATTRIBUTE_NAMES:
        if f"Emo{attribute}" in table:
            table[attribute] = pd.to_numeric(table[f"Emo{attribute}"], errors="coerce")
    return table.assign(label=label, level=emotion_levels(label)), train


def run_network(args: argparse.Namespace, checkpoint: Path) -> tuple[list[str], Network]:
    """Names of the training utterances that have features, and DeepEmoCluster's outputs for them."""
    device = runtime.choose_device(args.device)
    precision = runtime.choose_precision(device, args.precision)
    corpus = utils.open_corpus(args)
    corpus.select("Train")
    model, info = load_ssl_checkpoint(
        checkpoint, corpus.num_features, args.num_clusters, args.emo_attr, corpus.feature_set
    )
    run_log.note_if_unfinished(checkpoint)
    corpus.note_other_norm_stats(checkpoint, info)
    utils.make_output_folders(args.cache_dir)
    train = corpus.load("Train")
    model.to(device)

    def outputs(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (*model(rows), model.cluster_features(rows))

    logits, prediction, features = in_batches(model, outputs, Rows(train.rows, device, precision), precision)
    if not (logits.isfinite().all() and features.isfinite().all()):
        raise UserError(f"{checkpoint}: outputs NaN or infinity; download or train the checkpoint again.")
    clusters = logits.argmax(dim=1).cpu().numpy()
    prediction = utils.denormalise(prediction.cpu().numpy(), corpus.label_norm, checkpoint)
    predicted = emotion_levels(prediction)
    levels, alpha = emotion_levels(train.labels), ALPHA[args.emo_attr]
    found = {"cluster head": clusters}
    if len(clusters) >= args.num_clusters:
        again = clustering.repeated_kmeans(features.cpu(), args.num_clusters, RESTARTS, args.seed)  # (R, N)
        found |= {"k-means": again[0], f"k-means, mean of {RESTARTS}": again}
    of = {name: deepmi_values(x, levels, predicted, args.num_clusters, alpha) for name, x in found.items()}
    values, information = of["cluster head"]
    kmeans_values, _ = of.get(f"k-means, mean of {RESTARTS}", (None, {}))
    # The features of MSP-Podcast itself have no record of their set; the name of their folder identifies it.
    is_default = corpus.corpus.features.parts[-3:] == utils.FEATURE_FOLDER.parts
    return train.names, Network(
        checkpoint.name,
        clusters,
        prediction,
        values,
        information,
        features.cpu().numpy(),
        measures.cluster_sources(found, of),
        kmeans_values,
        measures.standardised_differences(train.rows, clusters, args.num_clusters),
        feature_sets.feature_names(corpus.feature_set or ("IS13" if is_default else ""), corpus.num_features),
    )


def find_network(args: argparse.Namespace) -> tuple[list[str], Network | None]:
    """As `run_network`; no names and None, with a message, if the default checkpoint can't be used."""
    checkpoint = args.checkpoint or utils.ssl_checkpoint(
        args.model_dir, args.epoch, args.batch_size, args.num_clusters, args.emo_attr
    )
    if not (args.checkpoint or checkpoint.is_file()):
        print(
            f"note: no checkpoint {checkpoint}: clusters, information and features are left out. To name one, use -ep, "
            "-batch, -nc and --model-dir, or --checkpoint FILE."
        )
        return [], None
    try:
        return run_network(args, checkpoint)
    except UserError as error:
        if args.checkpoint:
            raise
        notify(f"warning: {checkpoint} is left out: {error}")
        return [], None


def read_spread(root: Path | None, emo_attr: str) -> pd.Series | None:
    """Standard deviation of the ratings by file name; None, with a message, if there are no ratings."""
    if not (file := utils.find_detailed_file(root) if root else None):
        print("note: no labels_detailed in the corpus: rater disagreement is left out.")
        return None
    try:
        return utils.rater_spread(file, emo_attr)
    except UserError as error:
        notify(f"warning: {error} Rater disagreement is left out.")
        return None


def read_truth(label_file: Path) -> pd.Series | None:
    """Which recordings of the demo corpus are disputed, by file name; None for a different corpus."""
    file = label_file.with_name(TRUTH)
    if not file.is_file():
        return None
    truth = tables.read_csv(file, ("FileName", "HighDisagreement")).set_index("FileName")["HighDisagreement"]
    if truth.index.has_duplicates:
        notify(f"warning: {file}: duplicate file names, so it is not used.")
        return None
    return truth == "1"


def gather(args: argparse.Namespace, metric_file: Path, label_file: Path | None) -> Evidence:
    """Read everything.

    Args:
        args: command line of the tool.
        metric_file: DeepMI file.
        label_file: consensus labels; None for a report on the DeepMI file alone.
    Raises:
        UserError: labels, DeepMI file or a given checkpoint are missing or damaged, or of different Train splits.
    """
    metric = read_metric(metric_file)
    network, disputed_by = None, ""
    if label_file is None:
        if not metric:
            raise UserError(f"{metric_file}: contains no utterances.")
        tables.check_names(metric_file, list(metric))
        table = pd.DataFrame({"value": metric})
    else:
        table, train = read_label_table(label_file, args.emo_attr)
        names, network = find_network(args)
        if network is None:
            names = sorted(set(train["FileName"]) & set(table.index))
        values = curriculum.match_metric(metric, names, metric_file, train["FileName"].tolist(), args.skip_missing)
        if network is not None and np.isnan(values).any():
            notify(
                "warning: DeepMI is missing for some training utterances: the charts of the checkpoint are left out."
            )
            network = None
        table["value"] = pd.Series(values, index=names)
        if network is not None:
            table["cluster"] = pd.Series(network.clusters, index=names)
            table["prediction"] = pd.Series(network.prediction, index=names)
        spread, disputed = read_spread(args.corpus, args.emo_attr), read_truth(label_file)
        disputed_by = f"according to {TRUTH}"
        if spread is not None:
            table["spread"] = spread
            if disputed is None:
                disputed = measures.most_disputed(table["spread"][table["value"].notna()].dropna())
                disputed_by = f"the {measures.DISPUTED_SHARE:.0%} with the largest rater disagreement"
        if disputed is not None:
            table["disputed"] = disputed.astype(float)
    if args.label_quality:
        names = table.index[table["value"].notna()].tolist()
        table["label quality"] = pd.Series(read_label_quality(args.label_quality, names))
    for attribute in [name for name in ATTRIBUTE_NAMES if name != args.emo_attr]:
        file = utils.metric_file(metric_file.parent, args.num_clusters, attribute)
        if file.is_file():
            try:
                table[f"DeepMI {attribute}"] = pd.Series(read_metric(file))
            except UserError as error:
                notify(f"warning: {error} This file is left out.")
    return Evidence(args.emo_attr, args.num_clusters, args.seed, table, disputed_by, network)
