"""Every picture: the two training runs, and the drawing of the method."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from runtime import write_atomically


def _save(figure: plt.Figure, path: Path) -> None:
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix[1:], dpi=120, bbox_inches="tight")
    plt.close(figure)


def draw_ssl_run(history: list[dict], path: Path, title: str) -> None:
    """NMI, validation CCC loss and training losses of DeepEmoCluster against the epoch.

    Args:
        history: the records of the run log, one an epoch.
        path: target, .png.
        title: heading, the checkpoint's name.
    """
    epochs = [record["epoch"] for record in history]
    figure, (top, middle, bottom) = plt.subplots(3, 1, figsize=(8, 9), sharex=True)
    top.plot(epochs[1:], [record["nmi"] for record in history[1:]], marker=".")
    top.set(ylabel="NMI with the epoch before", ylim=(0, 1))
    held_out = [record["validation_ccc_loss"] for record in history]
    best = min(range(len(held_out)), key=held_out.__getitem__)
    middle.plot(epochs, held_out, marker=".", label="validation")
    middle.plot(epochs, [record["labeled"]["ccc_loss"] for record in history], marker=".", label="training")
    middle.axvline(epochs[best], color="grey", linestyle=":", label=f"best, epoch {epochs[best]}")
    middle.set(ylabel="CCC loss (1 - CCC)")
    middle.legend()
    bottom.plot(epochs, [record["labeled"]["joint_loss"] for record in history], marker=".", label="joint, labeled")
    if "unlabeled" in history[0]:
        unlabeled = [record["unlabeled"]["cluster_loss"] for record in history]
        bottom.plot(epochs, unlabeled, marker=".", label="cross-entropy, unlabeled")
    bottom.set(xlabel="epoch", ylabel="training loss")
    bottom.legend()
    for axes in (top, middle, bottom):
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    _save(figure, path)


def draw_curriculum_run(history: list[dict], path: Path, title: str) -> None:
    """Both losses of the curriculum against the epoch, with the share of the data in use.

    Args:
        history: the records of the run log, one an epoch.
        path: target, .png.
        title: heading, the regressor's name.
    """
    epochs = [record["epoch"] for record in history]
    held_out = [record["validation_ccc_loss"] for record in history]
    best = min(range(len(held_out)), key=held_out.__getitem__)
    figure, axes = plt.subplots(figsize=(8, 5))
    axes.plot(epochs, [record["ccc_loss"] for record in history], label="training")
    axes.plot(epochs, held_out, label="validation")
    axes.axvline(epochs[best], color="grey", linestyle=":", label=f"best, epoch {epochs[best]}")
    axes.set(xlabel="epoch", ylabel="CCC loss (1 - CCC)", title=title)
    axes.grid(alpha=0.3)
    data = axes.twinx()
    sizes = [record["utterances"] for record in history]
    data.fill_between(epochs, sizes, step="post", alpha=0.1, color="grey", label="utterances in use")
    data.set(ylabel="utterances in use", ylim=(0, max(sizes) * 1.05))
    lines, labels = axes.get_legend_handles_labels()
    areas, names = data.get_legend_handles_labels()
    axes.legend(lines + areas, labels + names, loc="upper right")
    _save(figure, path)
