"""Normalisation statistics of features and labels on disk, and labels in and out of their units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepmi.features import SET_FILE, feature_set_mark
from deepmi.matfile import mat_bytes, read_mat
from deepmi.process import UserError, notify
from deepmi.storage import digest, write_together
from deepmi.tables import LARGEST_LABEL

LABEL_RANGE = (1.0, 7.0)  # lowest and highest label: the self-assessment manikins of MSP-Podcast
NORM_KEY = "normal_para"  # the variable in their .mat files


def _file(norm_dir: Path, what: str, kind: str) -> Path:
    return Path(norm_dir) / f"{what.lower()}_norm_{kind}.mat"


def write_norm_stats(
    norm_dir: Path,
    feature_norm: tuple[NDArray, NDArray] | None = None,
    label_norms: dict[str, tuple[float, float]] | None = None,
    feature_set: str = "",
) -> list[Path]:
    """Write normalisation statistics, all of them or none.

    Args:
        norm_dir: the folder.
        feature_norm: mean and standard deviation of each feature, shape (D,) each; None keeps the existing ones.
        label_norms: attribute -> mean and standard deviation of its labels, in label units.
        feature_set: feature set that they belong to, empty if it is unknown.
    Returns:
        The files: feat_norm_means.mat and feat_norm_stds.mat, shape (1, D); feature_set.json if the set is known;
        val_norm_means.mat and so on, shape (1, 1).
    """
    contents: dict[Path, bytes | None] = {}
    stats: dict[str, tuple[ArrayLike, ArrayLike]] = dict(label_norms or {})
    if feature_norm:  # the set comes first, or what a kill leaves could pass for statistics of any set
        contents[Path(norm_dir) / SET_FILE] = feature_set_mark(feature_set)
        stats = {"feat": feature_norm, **stats}
    for what, values in stats.items():
        for kind, value in zip(("means", "stds"), values):
            row = np.reshape(np.asarray(value, dtype=np.float64), (1, -1))
            contents[_file(norm_dir, what, kind)] = mat_bytes(NORM_KEY, row)
    if any(path.is_file() and path.read_bytes() != content for path, content in contents.items()):
        notify(f"note: replaces different normalisation statistics in {norm_dir}.")
    write_together(contents)
    return [path for path, content in contents.items() if content is not None]


def _read(norm_dir: Path, what: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    stats = []
    for kind in ("means", "stds"):
        file = _file(norm_dir, what, kind)
        if not file.is_file():
            raise UserError(
                f"{file}: no such normalisation statistics. Run norm_para.py with the same --norm-dir first (for the "
                "published ones, NormTerm/v1.8, `python -m tools.fetch_v18`)."
            )
        stats.append(read_mat(file, NORM_KEY).astype(np.float64).ravel())
    mean, std = stats
    if mean.size != std.size or mean.size == 0:
        raise UserError(f"{norm_dir}: {what} has {mean.size} means but {std.size} stds; run norm_para.py again.")
    # A feature that was never observed has NaN; all other values must be usable.
    if np.isinf(mean).any() or np.isinf(std).any() or (std < 0).any() or np.isnan(mean + std).all():
        raise UserError(f"{norm_dir}: the statistics of {what} are infinite, negative or NaN; run norm_para.py again.")
    return mean, std


def read_feature_norm(norm_dir: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each feature over Train, float64, shape (D,) each.

    Raises:
        UserError: missing or damaged.
    """
    return _read(norm_dir, "feat")


def read_label_norm(norm_dir: Path, emo_attr: str) -> tuple[float, float]:
    """Mean and standard deviation of an attribute's Train labels, in label units.

    Raises:
        UserError: missing, damaged, or a standard deviation that is not positive.
    """
    mean, std = _read(norm_dir, emo_attr.lower())
    low, high = LABEL_RANGE
    if mean.size != 1 or not low <= mean[0] <= high or not 0 < std[0] <= high - low:
        raise UserError(
            f"{norm_dir}: {emo_attr.lower()} has mean {mean[0]:g} and std {std[0]:g}; expected a mean of labels "
            f"{low:g}..{high:g} and a positive std (are all Train labels the same?)."
        )
    return float(mean[0]), float(std[0])


def norm_key(feature_norm: tuple[NDArray, NDArray], label_norm: tuple[float, float]) -> str:
    """Digest of the statistics that a network works with; it is saved with the network as `norm_terms`."""
    return digest(*(values.tobytes() for values in feature_norm), label_norm)


def has_other_norm_stats(info: dict, key: str) -> bool:
    """Whether a network, according to `info` saved with it, was trained with statistics of a different `norm_key`."""
    return info.get("norm_terms", key) != key


def note_norm_stats(source: object, info: dict, key: str, norm_dir: Path) -> None:
    """Print a note if a network was trained with statistics of a different `norm_key`, or does not record its own."""
    if has_other_norm_stats(info, key):
        print(f"note: {source} was trained with different normalisation statistics; results use the given ones.")
    if "norm_terms" not in info:  # as in the published networks
        notify(
            f"note: {source}: not recorded with which normalisation statistics it was trained; those in {norm_dir} are "
            "used. The published networks need NormTerm/v1.8."
        )


def is_label_scale(low: float, high: float) -> bool:
    """Whether these can be the lowest and the highest possible label."""
    return -LARGEST_LABEL < low < high < LARGEST_LABEL  # false for NaN


def refuse_label_scale(low: float, high: float) -> None:
    """Raise `UserError` if a --label-scale is not a range of labels."""
    if not is_label_scale(low, high):
        raise UserError(f"--label-scale {low:g} {high:g}: expected two numbers, the lowest label first.")


def to_label_range(labels: NDArray[np.float64], scale: tuple[float, float]) -> NDArray[np.float64]:
    """Rescale labels linearly to 1..7, shape kept; labels on the scale 1..7 stay the same to the last bit."""
    if tuple(scale) == LABEL_RANGE:
        return labels  # rounding must not move a label over the edge of a level
    low, high = LABEL_RANGE
    return low + (labels - scale[0]) * (high - low) / (scale[1] - scale[0])


def denormalise(
    prediction: NDArray[np.float32], label_norm: tuple[float, float], source: object
) -> NDArray[np.float64]:
    """A z-normed prediction as labels 1..7, shape kept.

    Args:
        prediction: z-normed.
        label_norm: mean and standard deviation of the Train labels, from `read_label_norm`.
        source: file of the network, for the message.
    Raises:
        UserError: a prediction is NaN or infinite.
    """
    if not np.isfinite(prediction).all():
        raise UserError(f"{source}: predicts NaN or infinity, so its weights are damaged; download or train it again.")
    mean, std = label_norm
    return prediction.astype(np.float64) * std + mean
