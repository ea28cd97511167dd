"""The pictures of the stages."""

from __future__ import annotations

import gc
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from deepmi.storage import write_atomically

TRAINING, VALIDATION = "tab:blue", "tab:orange"


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG and free its memory; the figure is empty afterwards."""
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix[1:], dpi=120, bbox_inches="tight")
    figure.clear()
    gc.collect()  # a figure consists of reference cycles, and a training draws one after every save


def _mark_best(axes: Axes, epochs: list[int], validation: list[float]) -> None:
    best = epochs[validation.index(min(validation))]
    axes.axvline(best, color="grey", linestyle=":", label=f"best, epoch {best}")
    axes.set(ylabel="CCC loss (1 - CCC)")


def draw_ssl_run(history: list[dict], path: Path, title: str) -> None:
    """Draw NMI, CCC losses and training losses of DeepEmoCluster by epoch.

    Args:
        history: the records of the run log, one per epoch.
        path: target, .png.
        title: heading, the name of the checkpoint.
    """
    epochs = [record["epoch"] for record in history]
    labeled = [record["labeled"] for record in history]
    figure = Figure(figsize=(8, 9), layout="constrained")  # without pyplot it needs neither a screen nor closing
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    top.plot(epochs[1:], [record["nmi"] for record in history[1:]], marker=".")
    top.set(ylabel="NMI with the epoch before", ylim=(0, 1))
    validation = [record["validation_ccc_loss"] for record in history]
    middle.plot(epochs, validation, marker=".", color=VALIDATION, label="validation")
    middle.plot(epochs, [record["ccc_loss"] for record in labeled], marker=".", color=TRAINING, label="training")
    _mark_best(middle, epochs, validation)
    middle.legend()
    bottom.plot(epochs, [record["joint_loss"] for record in labeled], marker=".", label="joint, labeled")
    if "unlabeled" in history[0]:
        unlabeled = [record["unlabeled"]["cluster_loss"] for record in history]
        bottom.plot(epochs, unlabeled, marker=".", label="cross-entropy, unlabeled")
    bottom.set(xlabel="epoch", ylabel="training loss")
    bottom.legend()
    for axes in (top, middle, bottom):
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def draw_curriculum_run(history: list[dict], path: Path, title: str) -> None:
    """Draw both losses of the curriculum by epoch, above the number of utterances in use.

    Args:
        history: the records of the run log, one per epoch.
        path: target, .png.
        title: heading, the name of the regressor.
    """
    epochs = [record["epoch"] for record in history]
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    validation = [record["validation_ccc_loss"] for record in history]
    axes.plot(epochs, [record["ccc_loss"] for record in history], color=TRAINING, label="training")
    axes.plot(epochs, validation, color=VALIDATION, label="validation")
    _mark_best(axes, epochs, validation)
    axes.set(xlabel="epoch", title=title)
    axes.grid(alpha=0.3)
    data = axes.twinx()
    sizes = [record["utterances"] for record in history]
    data.fill_between(epochs, sizes, step="post", alpha=0.1, color="grey", label="utterances in use")
    data.set(ylabel="utterances in use", ylim=(0, max(sizes) * 1.05))
    lines, labels = axes.get_legend_handles_labels()
    areas, names = data.get_legend_handles_labels()
    axes.legend(lines + areas, labels + names, loc="upper left", bbox_to_anchor=(1.12, 1))
    save(figure, path)


def draw_test(labels: NDArray, predictions: NDArray, path: Path, title: str) -> None:
    """Draw predictions against labels, and the Bland-Altman plot of their differences.

    Args:
        labels: in label units, shape (N,).
        predictions: in label units, shape (N,).
        path: target, .png.
        title: heading.
    Source: Bland & Altman, The Lancet 327 (1986).
    """
    figure = Figure(figsize=(10, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    points = {"s": 12, "alpha": 0.5, "edgecolors": "none", "rasterized": True}
    ends = min(labels.min(), predictions.min()), max(labels.max(), predictions.max())
    left.plot(ends, ends, color="grey", linestyle=":", label="prediction = label")
    left.scatter(labels, predictions, **points)
    left.set(xlabel="label", ylabel="prediction", aspect="equal")
    left.legend()
    differences = predictions - labels
    right.scatter((labels + predictions) / 2, differences, **points)
    mean, sd = differences.mean(), differences.std()
    for value, style, name in (
        (mean, "-", f"mean difference {mean:.2f}"),
        (mean + 1.96 * sd, "--", f"mean + 1.96 sd, {mean + 1.96 * sd:.2f}"),
        (mean - 1.96 * sd, "--", f"mean - 1.96 sd, {mean - 1.96 * sd:.2f}"),
    ):
        right.axhline(value, color=VALIDATION, linestyle=style, label=name)
    right.set(xlabel="mean of label and prediction", ylabel="prediction - label")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    save(figure, path)
