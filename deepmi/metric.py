"""DeepMI: the information that acoustic clusters carry about emotion levels, as one value per utterance. Plain numpy.

X is the cluster of an utterance, Y the level of its label, Y' the level of its prediction (Lin, Sridhar & Busso 2024).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepmi.process import UserError, first_few, notify
from deepmi.storage import read_json_object, write_text

LEVEL_EDGES = (2.0, 3.0, 4.0, 5.0, 6.0)  # six levels: <2, [2,3), [3,4), [4,5), [5,6), >=6
NUM_LEVELS = len(LEVEL_EDGES) + 1
ALPHA = {"Act": 0.0, "Dom": 0.0, "Val": 0.5}  # weight of the predicted level, by attribute
DECIMALS = 5


def emotion_levels(labels: ArrayLike) -> NDArray[np.int64]:
    """Level 0..5 of labels on the scale 1..7, shape (N,) to (N,); a value on an edge belongs to the level above.

    >>> emotion_levels([1.9, 2.0, 6.5])
    array([0, 1, 5])
    """
    return np.digitize(np.asarray(labels, dtype=np.float64), LEVEL_EDGES)


def joint_probability(first: ArrayLike, second: ArrayLike, num_first: int, num_second: int) -> NDArray[np.float64]:
    """Relative frequency of each pair of values.

    Args:
        first, second: values 0..num_first-1 and 0..num_second-1, shape (N,) each.
    Returns:
        Table that sums to 1, shape (num_first, num_second).
    Raises:
        ValueError: different lengths, no samples, or a value outside its range.

    >>> joint_probability([0, 0, 1, 1], [0, 1, 1, 1], 2, 2)
    array([[0.25, 0.25],
           [0.  , 0.5 ]])
    """
    x, y = np.asarray(first, dtype=np.int64), np.asarray(second, dtype=np.int64)
    if x.shape != y.shape or x.ndim != 1 or x.size == 0:
        raise ValueError(f"expected equal lengths of at least 1, found {x.shape} and {y.shape}")
    for values, number in ((x, num_first), (y, num_second)):
        if values.min() < 0 or values.max() >= number:
            raise ValueError(f"values {values.min()}..{values.max()} outside 0..{number - 1}")
    counts = np.bincount(x * num_second + y, minlength=num_first * num_second)
    return counts.reshape(num_first, num_second) / x.size


def information_of_cells(joint: NDArray[np.float64]) -> NDArray[np.float64]:
    """p(x,y) ln( p(x,y) / (p(x) p(y)) ) of each cell, in nats; 0 where p(x,y) is 0. Their sum is I(X;Y)."""
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    information = np.zeros_like(joint)
    seen = joint > 0
    information[seen] = joint[seen] * np.log(joint[seen] / independent[seen])
    return information


def entropy(probability: NDArray[np.float64]) -> float:
    """Entropy in nats of a distribution of any shape."""
    p = probability[probability > 0]
    return max(0.0, float(-(p * np.log(p)).sum()))  # not -0.0


def deepmi_parts(
    clusters: ArrayLike, levels: ArrayLike, predicted_levels: ArrayLike, num_clusters: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], dict[str, float]]:
    """The two parts of each utterance's DeepMI; the mean over several clusterings if X is of several.

    Args:
        clusters, levels, predicted_levels, num_clusters: as for `deepmi_values`.
    Returns:
        (information of the utterance's (cluster, level) cell, and of its (predicted level, level) cell, in nats, shape
        (N,) each; information as from `deepmi_values`).
    """
    cells_yy = information_of_cells(joint_probability(predicted_levels, levels, NUM_LEVELS, NUM_LEVELS))
    parts, totals, entropies = [], [], []
    for one in np.atleast_2d(clusters):
        joint = joint_probability(one, levels, num_clusters, NUM_LEVELS)
        cells_xy = information_of_cells(joint)
        parts.append(cells_xy[one, levels])
        totals.append(cells_xy.sum())
        entropies.append(entropy(joint.sum(axis=1)))
    information = {"I(X;Y)": np.mean(totals), "I(Yp;Y)": cells_yy.sum(), "H(X)": np.mean(entropies)}
    information = {name: float(value) for name, value in information.items()}
    return np.mean(parts, axis=0), cells_yy[predicted_levels, levels], information


def deepmi_values(
    clusters: ArrayLike, levels: ArrayLike, predicted_levels: ArrayLike, num_clusters: int, alpha: float
) -> tuple[NDArray[np.float64], dict[str, float]]:
    """DeepMI per utterance, and the mutual information behind it; the mean over several clusterings if X is of several.

    DeepMI is (1 - alpha) times the information of the utterance's (cluster, level) cell plus alpha times that of its
    (predicted level, level) cell, with relative frequencies over these utterances as probabilities.

    Args:
        clusters: X in 0..num_clusters-1, shape (N,), or (R, N) for R clusterings.
        levels, predicted_levels: Y and Y' in 0..5, shape (N,) each.
        num_clusters: K.
        alpha: weight of the predicted level's part, 0..1.
    Returns:
        (values in nats, rounded to 5 decimals, shape (N,); I(X;Y), I(Y';Y) under the key `I(Yp;Y)`, and H(X), in nats,
        summed over cells).
    Source: Lin, Sridhar & Busso (2024).

    >>> values, information = deepmi_values([0, 0, 1, 1], [0, 0, 5, 5], [0, 0, 5, 0], num_clusters=2, alpha=0.0)
    >>> values, round(information["I(X;Y)"], 5)
    (array([0.34657, 0.34657, 0.34657, 0.34657]), 0.69315)
    """
    of_clusters, of_prediction, information = deepmi_parts(clusters, levels, predicted_levels, num_clusters)
    return combined(of_clusters, of_prediction, alpha), information


def combined(of_clusters: NDArray, of_prediction: NDArray, alpha: float) -> NDArray[np.float64]:
    """DeepMI, shape (N,): (1 - alpha) times the first part from `deepmi_parts` plus alpha times the second."""
    return rounded((1 - alpha) * of_clusters + alpha * of_prediction)


def rounded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values with DECIMALS decimals. Unlike NumPy's, Python's round is exact; + 0.0 turns -0.0 into 0.0."""
    return np.array([round(value, DECIMALS) + 0.0 for value in values.tolist()])


def write_metric(path: Path, values: dict[str, float]) -> None:
    """Write one flat JSON object, file name (`.wav`) -> value, as the original does."""
    write_text(path, json.dumps(values))


def read_metric(path: Path) -> dict[str, float]:
    """Read a DeepMI file of this program or of the original.

    Raises:
        UserError: missing, not JSON, or not one flat object of finite numbers.
    """
    path = Path(path)
    if not path.is_file():
        others = sorted(file.name for file in path.parent.glob("DeepMI_*.json"))
        found = f"there are {', '.join(others[:5])} (-nc chooses)" if others else "there is none in that folder"
        raise UserError(
            f"{path}: no such DeepMI file; {found}. Run extract_DeepMI.py with the same -nc first, or name another "
            "file with --metric FILE or another folder with --metric-dir."
        )
    values = read_json_object(path)
    for name, value in values.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not abs(value) < 1e300:  # an integer may be too large for a float
            raise UserError(f"{path}: the value of {name[:60]} is {str(value)[:40]!r}; expected a finite number.")
    return {name: float(value) for name, value in values.items()}


def read_label_quality(path: Path, names: Sequence[str]) -> dict[str, float]:
    """Read a file of tools.label_quality: file name -> score.

    Args:
        path: the file.
        names: the utterances that need a score; a warning says how many have none.
    Raises:
        UserError: missing, damaged, or it has none of the names.
    """
    if not Path(path).is_file():
        raise UserError(f"--label-quality {path}: no such file; `python -m tools.label_quality` writes it.")
    scores = read_metric(path)
    if missing := [name for name in names if name not in scores]:
        if len(missing) == len(names):
            raise UserError(f"--label-quality {path}: no score of any of these {len(names)} utterances ({names[0]}).")
        notify(f"warning: {path}: no score of {len(missing)} of {len(names)} utterances ({first_few(missing, 3)}).")
    return scores


def warn_if_flat(values: NDArray[np.float64], source: object) -> None:
    """Warn where all utterances have the same value, as when they are all in one cluster."""
    if len(values) > 1 and values.min() == values.max():
        notify(
            f"warning: {source}: one value for all {len(values)} utterances, so a curriculum by it is a random order. "
            "If it is DeepMI, train a DeepEmoCluster with more epochs or clusters."
        )
