"""MSP-Podcast (releases 1.6 to 2.0): where its files are, the draw of the unlabeled set, names of output files.

`LabeledCorpus.load` turns a corpus, a split and an attribute into names, features and targets.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from deepmi import features
from deepmi.labels import CONSENSUS_COLUMNS, DETAILED_COLUMNS, SPLITS, UNKNOWN_SPEAKER, attribute_labels, has_labels
from deepmi.labels import parse_detail, rater_spread, read_detailed_labels, read_labels, select_split, split_name
from deepmi.norm_stats import LABEL_RANGE, NORM_KEY, denormalise, norm_key, note_norm_stats
from deepmi.norm_stats import read_feature_norm, read_label_norm, refuse_label_scale, to_label_range, write_norm_stats
from deepmi.process import UserError, first_few, notify
from deepmi.seeds import UNLABELED_SEED
from deepmi.storage import digest, prepare_folder

FEATURE_FOLDER = Path("Features/OpenSmile_func_IS13ComParE/feat_mat")
NO_CORPUS = (
    "no corpus given. Name one with --corpus DIR or the environment variable DEEPMI_CORPUS (a folder in MSP-Podcast's "
    "layout: Labels, Features); `make demo` builds a small one to try."
)
NO_UNLABELED = (
    "no unlabeled set given. Name one with --unlabeled DIR or the environment variable DEEPMI_UNLABELED, or train on "
    "the labeled set only with --unlabeled-size 0."
)


# ---------------------------------------------------------------------------------------------------------------------
# Where the parts of a corpus are


@dataclass
class Corpus:
    """The parts of a corpus.

    Attributes:
        root: its folder, or None if label file and feature folder were given separately.
        labels: consensus label file.
        features: folder of the .mat files.
    """

    root: Path | None
    labels: Path
    features: Path


def find_corpus(root: Path | None, labels: Path | None = None, feature_dir: Path | None = None) -> Corpus:
    """Find the label file and the feature folder of a corpus.

    Args:
        root: the corpus, e.g. MSP-PODCAST-Publish-1.8.
        labels: label file to use instead of the one in the corpus.
        feature_dir: feature folder to use instead of the one in the corpus.
    Raises:
        UserError: a part is not given, or does not exist.
    """
    if root is None and (labels is None or feature_dir is None):
        raise UserError(NO_CORPUS)
    if root is not None and not root.is_dir():
        raise UserError(f"{root}: no such folder; --corpus (or DEEPMI_CORPUS) names a corpus in MSP-Podcast's layout.")
    if labels is None:
        labels = find_label_file(root)
    elif not labels.is_file():
        raise UserError(f"{labels}: no such label file.")
    if feature_dir is None:
        found = _find_features(root)
        if len(found) > 1:
            raise UserError(f"{root}: feature folders {', '.join(map(str, found))}; name one with --features DIR.")
        if not found:
            raise UserError(
                f"{root / FEATURE_FOLDER}: no such folder. Make the features with `python -m tools.extract_features "
                f"{root / 'Audios'} {root / FEATURE_FOLDER}`, or name --features DIR."
            )
        feature_dir = found[0]
    elif not feature_dir.is_dir():
        raise UserError(f"{feature_dir}: no such feature folder.")
    return Corpus(root, labels, feature_dir)


def feature_folder(root: Path, feature_set: str) -> Path:
    """The folder for a feature set in a corpus; the one for IS13 has MSP-Podcast's name."""
    return root / (FEATURE_FOLDER if feature_set == "IS13" else f"Features/{feature_set.replace('/', '--')}/feat_mat")


def _below(folder: Path, name: str = "") -> list[Path]:
    """The folders in a folder, sorted; if a name is given, only those with that name in any case."""
    folders = sorted(child for child in folder.iterdir() if child.is_dir())
    return [child for child in folders if not name or child.name.casefold() == name.casefold()]


def _find_features(root: Path) -> list[Path]:
    """The feature folder of a corpus: the one for IS13, or else every `Features/*/feat_mat`, in any case."""
    top, middle, last = FEATURE_FOLDER.parts
    sets = [folder for features_folder in _below(root, top)[:1] for folder in _below(features_folder)]
    found = [matrices for folder in sets for matrices in _below(folder, last)]
    return [matrices for matrices in found if matrices.parent.name.casefold() == middle.casefold()][:1] or found


def _find_labels(root: Path, *stems: str) -> Path | None:
    """A label file with one of these stems, .csv before .json, in the label folder of a corpus or its root."""
    folders = [*_below(root, "Labels"), *_below(root, "Label"), root]
    files = [file for folder in folders for file in sorted(folder.iterdir()) if file.is_file()]
    names = [stem + ending for ending in (".csv", ".json") for stem in stems]
    return next((file for name in names for file in files if file.name.casefold() == name), None)


def find_label_file(root: Path) -> Path:
    """The consensus label file of a corpus, in either spelling, any case, CSV or JSON.

    Raises:
        UserError: none found.
    """
    if found := _find_labels(root, "labels_consensus", "labels_concensus"):
        return found
    raise UserError(
        f"{root}: no label file; looked for labels_consensus and labels_concensus (.csv, .json) in its folder Labels. "
        "Name one with --labels FILE."
    )


def find_detailed_file(root: Path) -> Path | None:
    """The file of individual ratings of a corpus, or None."""
    return _find_labels(root, "labels_detailed")


def getPaths_attri(
    path_label: Path | str, split_set: str, emo_attr: str
) -> tuple[NDArray[np.str_], NDArray[np.float64]]:
    """File names and labels 1..7 of one split and attribute, shape (N,) each, in the order of the file.

    Args:
        path_label: consensus label file, or the corpus that holds it.
        split_set: as `split` of `select_split`.
        emo_attr: `Act`, `Dom` or `Val`.
    """
    path = Path(path_label)
    path = find_label_file(path) if path.is_dir() else path
    labels = attribute_labels(select_split(read_labels(path), split_set, path), emo_attr, path)
    return labels.index.to_numpy(dtype=str), labels.to_numpy()


# ---------------------------------------------------------------------------------------------------------------------
# The unlabeled set


@dataclass
class FeatureFiles:
    """Names of .mat files in a folder."""

    folder: Path
    names: list[str]


def draw_unlabeled(root: Path, sample_num: int, seed: int) -> FeatureFiles:
    """Feature files of the unlabeled set, drawn at random.

    Args:
        root: a folder laid out like a corpus, or the folder of .mat files itself.
        sample_num: number of files to draw, without replacement; all files if there are fewer.
        seed: seed of the draw.
    Returns:
        Their folder and their sorted names; the same for the same folder, number and seed.
    Raises:
        UserError: the folder does not exist, or has no .mat files.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; --unlabeled (or DEEPMI_UNLABELED) names the unlabeled set.")
    found = _find_features(root)
    folder = found[0] if len(found) == 1 else root
    entries = (entry.name for entry in os.scandir(folder))
    names = sorted(name for name in entries if name.endswith(".mat") and not name.startswith("."))
    if not names:
        raise UserError(
            f"{folder}: no .mat files, neither here nor in {root / FEATURE_FOLDER}. Extract features from recordings "
            "with `python -m tools.extract_features`."
        )
    if sample_num < len(names):
        drawn = np.random.default_rng(seed).choice(len(names), size=sample_num, replace=False)
        names = [names[index] for index in np.sort(drawn)]
    return FeatureFiles(folder, names)


def getPaths_unlabel_Podcast(root_dir: Path | str, sample_num: int = 90000, seed: int = UNLABELED_SEED) -> list[Path]:
    """Paths of the files that `draw_unlabeled` draws."""
    files = draw_unlabeled(Path(root_dir), sample_num, seed)
    return [files.folder / name for name in files.names]


# ---------------------------------------------------------------------------------------------------------------------
# Labels and features together


@dataclass
class LabeledSet:
    """Utterances of a split with features and labels; entry i of each attribute belongs to names[i].

    Attributes:
        names: file names, sorted.
        rows: normalised features, float32 memory map, shape (N, D).
        labels: in label units (1..7), float64, shape (N,).
        targets: labels z-normalised by the statistics of Train, float32, shape (N,).
        speakers: speaker of each utterance, `Unknown` if missing.
        key: digest of features, normalisation statistics and labels.
    """

    names: list[str]
    rows: NDArray[np.float32]
    labels: NDArray[np.float64]
    targets: NDArray[np.float32]
    speakers: list[str]
    key: str


def present_utterances(corpus: Corpus, utterances: Sequence[str], skip_missing: bool) -> list[str]:
    """The utterances that have a feature file.

    Raises:
        UserError: feature files are missing and `skip_missing` is off, or all are missing.
    """
    if not (missing := features.missing_features(corpus.features, utterances)):
        return list(utterances)
    found = f"{corpus.features}: {len(missing)} of {len(utterances)} feature files are missing ({first_few(missing)})"
    if not skip_missing or len(missing) == len(utterances):
        raise UserError(f"{found}. Extract them, or leave these utterances out with --skip-missing.")
    notify(f"warning: {found}; left out.")
    absent = set(missing)
    return [name for name in utterances if name not in absent]


@dataclass
class LabeledCorpus:
    """A corpus opened for one attribute: its label table, normalisation statistics and features, joined by file name.

    Attributes:
        corpus: from `find_corpus`.
        emo_attr: `Act`, `Dom` or `Val`.
        norm_dir: folder of the normalisation statistics.
        cache_dir: folder of the packed features.
        workers: processes that read feature files.
        skip_missing: leave out utterances without a feature file.
        scale: lowest and highest label of this corpus; labels are rescaled linearly to 1..7.
        table: from `read_labels`.
        feature_set: feature set of features and statistics, empty if neither records it.
        feature_norm: mean and standard deviation of each feature, shape (D,) each.
        label_norm: mean and standard deviation of the Train labels.
    Raises:
        UserError: labels or statistics are missing or unreadable, or features and statistics are of different sets.
    """

    corpus: Corpus
    emo_attr: str
    norm_dir: Path
    cache_dir: Path
    workers: int
    skip_missing: bool = False
    scale: tuple[float, float] = LABEL_RANGE

    def __post_init__(self) -> None:
        self.table = read_labels(self.corpus.labels)
        if not has_labels(self.table, self.emo_attr):
            attribute_labels(self.table, self.emo_attr, self.corpus.labels)  # its error lists what is missing
        self.feature_set = features.common_feature_set(
            {folder: features.read_feature_set(folder) for folder in (self.corpus.features, self.norm_dir)}
        )
        self.feature_norm = read_feature_norm(self.norm_dir)
        self.label_norm = read_label_norm(self.norm_dir, self.emo_attr)

    def select(self, split: str) -> pd.DataFrame:
        """The label rows of a split; raises `UserError` if there is no such split."""
        return select_split(self.table, split, self.corpus.labels)

    def load(self, split: str) -> LabeledSet:
        """Names, features and targets of a split.

        Raises:
            UserError: no such split, no labels, labels outside the scale, or features missing or unreadable.
        """
        rows = self.select(split).set_index("FileName", drop=False)
        labels = attribute_labels(rows, self.emo_attr, self.corpus.labels, self.scale)
        if len(labels) < len(rows):
            notify(f"warning: {len(rows) - len(labels)} rows of {split} have no Emo{self.emo_attr}; left out.")
        names = present_utterances(self.corpus, list(labels.index), self.skip_missing)
        packed = features.pack_features(
            self.corpus.features, names, *self.feature_norm, self.cache_dir, self.workers, split
        )
        values = to_label_range(labels.loc[packed.names].to_numpy(), self.scale)
        mean, std = self.label_norm
        targets = ((values - mean) / std).astype(np.float32)
        speakers = rows["SpkrID"].loc[packed.names].tolist()
        key = digest(packed.key, values.tobytes(), [mean, std])
        return LabeledSet(packed.names, packed.rows, values, targets, speakers, key)

    def load_validation(self) -> LabeledSet:
        """The Validation split, for choosing the best epoch.

        Raises:
            UserError: as `load`; or all labels are equal, so that the CCC is 0 for any prediction.
        """
        data = self.load("Validation")
        if np.ptp(data.labels) == 0:
            raise UserError(
                f"{self.corpus.labels}: all {len(data.labels)} Emo{self.emo_attr} labels of Validation are "
                f"{data.labels[0]:g}, so no epoch would be better than another; expected labels that differ."
            )
        return data

    @property
    def num_features(self) -> int:
        """D, according to the normalisation statistics."""
        return self.feature_norm[0].size

    def facts(self) -> dict:
        """What a network trained on this corpus records about it."""
        return {"feature_set": self.feature_set, "norm_terms": norm_key(self.feature_norm, self.label_norm)}

    def note_other_norm_stats(self, source: object, info: dict) -> None:
        """Print a note if the network in `source` was, according to its `info`, not trained with these statistics."""
        note_norm_stats(source, info, norm_key(self.feature_norm, self.label_norm), self.norm_dir)

    def warn_of_tested(self, unlabeled: Sequence[str], folder: Path) -> None:
        """Warn if the unlabeled set, with these names in this folder, contains validation or test utterances."""
        files = {features.feature_name(name) for name in unlabeled}
        shared = self.table[self.table["FileName"].map(features.feature_name).isin(files)]
        shared = shared[~shared["Split_Set"].map(split_name).isin(("Train", ""))]
        if len(shared):
            counts = ", ".join(f"{count} of {split}" for split, count in shared["Split_Set"].value_counts().items())
            notify(
                f"warning: {folder}: the unlabeled set has files with the names of {counts}, the first "
                f"{shared['FileName'].iloc[0]}. If they are the same utterances, the network is trained on them, and "
                "results on these splits are too high: remove them from the unlabeled set."
            )


def open_corpus(args: argparse.Namespace, scale: tuple[float, float] = LABEL_RANGE) -> LabeledCorpus:
    """The corpus that the flags name."""
    corpus = find_corpus(args.corpus, args.labels, args.features)
    return LabeledCorpus(corpus, args.emo_attr, args.norm_dir, args.cache_dir, args.workers, args.skip_missing, scale)


def load_training_sets(args: argparse.Namespace) -> tuple[dict[str, LabeledSet | features.PackedFeatures], dict]:
    """Train, Validation and (unless its size is 0) the unlabeled set of DeepEmoCluster, and facts for its checkpoint.

    Raises:
        UserError: as `LabeledCorpus.load`; no unlabeled files; or fewer utterances than clusters.
    """
    if args.unlabeled_size and args.unlabeled is None:
        raise UserError(NO_UNLABELED)
    corpus = open_corpus(args)
    facts = corpus.facts()
    sets = {"Train": corpus.load("Train"), "Validation": corpus.load_validation()}
    if args.unlabeled_size:
        paths = draw_unlabeled(args.unlabeled, args.unlabeled_size, args.unlabeled_seed)
        facts["feature_set"] = features.common_feature_set(
            {args.norm_dir: corpus.feature_set, paths.folder: features.read_feature_set(paths.folder)}
        )
        sets["unlabeled"] = features.pack_features(
            paths.folder, paths.names, *corpus.feature_norm, args.cache_dir, args.workers, "unlabeled"
        )
        corpus.warn_of_tested(sets["unlabeled"].names, paths.folder)
    for name, data in sets.items():
        if name != "Validation" and args.num_clusters > len(data.names):
            raise UserError(f"-nc {args.num_clusters}: more clusters than the {len(data.names)} utterances of {name}.")
    return sets, facts


# ---------------------------------------------------------------------------------------------------------------------
# Names of output files


def ssl_checkpoint(model_dir: Path, epoch: int, batch_size: int, num_clusters: int, emo_attr: str) -> Path:
    """DeepEmoCluster's checkpoint, under the original's name."""
    name = f"ResNetDeepEmoCluster_epoch{epoch}_batch{batch_size}_{num_clusters}clusters_{emo_attr}.pth.tar"
    return Path(model_dir) / name


def metric_file(metric_dir: Path, num_clusters: int, emo_attr: str) -> Path:
    """The DeepMI values, under the original's name."""
    return Path(metric_dir) / f"DeepMI_{num_clusters}clusters@_{emo_attr}.json"


def regressor_checkpoint(model_dir: Path, order: str, emo_attr: str) -> Path:
    """The curriculum regressor, under the original's name for the DeepMI order."""
    return Path(model_dir) / f"SimpleEmoRegressor_{'DeepMI' if order == 'deepmi' else order}@_{emo_attr}.pt.tar"


def make_output_folders(*folders: Path) -> None:
    """Make the folders that a stage writes to before it computes anything; `UserError` if one can't be written."""
    for folder in folders:
        prepare_folder(folder)
