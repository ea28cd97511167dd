"""Every picture: the two training runs, and the drawing of the method."""

from __future__ import annotations

import gc
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from deepmi.storage import write_atomically

_TRAINING, _VALIDATION = "tab:blue", "tab:orange"


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    # A Figure without pyplot needs neither a screen nor closing.
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix[1:], dpi=120, bbox_inches="tight")


def _save_run(figure: Figure, path: Path) -> None:
    """Write the picture of a training, which draws one after every save, and leave nothing of it in memory."""
    save(figure, path)
    figure.clear()
    gc.collect()  # a figure is a web of cycles; left to themselves, dozens of them pile up


def draw_ssl_run(history: list[dict], path: Path, title: str) -> None:
    """NMI, validation CCC loss and training losses of DeepEmoCluster against the epoch.

    Args:
        history: the records of the run log, one an epoch.
        path: target, .png.
        title: heading, the checkpoint's name.
    """
    epochs = [record["epoch"] for record in history]
    figure = Figure(figsize=(8, 9), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    top.plot(epochs[1:], [record["nmi"] for record in history[1:]], marker=".")
    top.set(ylabel="NMI with the epoch before", ylim=(0, 1))
    validation = [record["validation_ccc_loss"] for record in history]
    best = min(range(len(validation)), key=validation.__getitem__)
    middle.plot(epochs, validation, marker=".", color=_VALIDATION, label="validation")
    ccc = [record["labeled"]["ccc_loss"] for record in history]
    middle.plot(epochs, ccc, marker=".", color=_TRAINING, label="training")
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
    _save_run(figure, path)


def draw_curriculum_run(history: list[dict], path: Path, title: str) -> None:
    """Both losses of the curriculum against the epoch, with the share of the data in use.

    Args:
        history: the records of the run log, one an epoch.
        path: target, .png.
        title: heading, the regressor's name.
    """
    epochs = [record["epoch"] for record in history]
    validation = [record["validation_ccc_loss"] for record in history]
    best = min(range(len(validation)), key=validation.__getitem__)
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    axes.plot(epochs, [record["ccc_loss"] for record in history], color=_TRAINING, label="training")
    axes.plot(epochs, validation, color=_VALIDATION, label="validation")
    axes.axvline(epochs[best], color="grey", linestyle=":", label=f"best, epoch {epochs[best]}")
    axes.set(xlabel="epoch", ylabel="CCC loss (1 - CCC)", title=title)
    axes.grid(alpha=0.3)
    data = axes.twinx()
    sizes = [record["utterances"] for record in history]
    data.fill_between(epochs, sizes, step="post", alpha=0.1, color="grey", label="utterances in use")
    data.set(ylabel="utterances in use", ylim=(0, max(sizes) * 1.05))
    lines, labels = axes.get_legend_handles_labels()
    areas, names = data.get_legend_handles_labels()
    axes.legend(lines + areas, labels + names, loc="upper left", bbox_to_anchor=(1.12, 1))
    _save_run(figure, path)


# ---------------------------------------------------------------------------------------------------------------------
# Comparisons of curricula


def draw_validation_curves(curves: dict[str, list[list[float]]], path: Path, title: str) -> None:
    """Validation CCC against the epoch: the mean over seeds, in a band from the lowest to the highest.

    Args:
        curves: by order, for each seed the CCC of every epoch.
        path: target, .png.
        title: heading.
    """
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    for order, runs in curves.items():
        epochs = range(len(runs[0]))
        (line,) = axes.plot(epochs, [sum(values) / len(values) for values in zip(*runs)], label=order)
        axes.fill_between(epochs, *([end(values) for values in zip(*runs)] for end in (min, max)), alpha=0.1)
        line.set_linewidth(1.5)
    axes.set(xlabel="epoch", ylabel="validation CCC, mean and range over seeds", title=title)
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
    save(figure, path)


def draw_orders(tables: dict, path: Path, title: str) -> None:
    """Final CCC by order, with its interval and the single seeds.

    Args:
        tables: by test set, a table with order, ccc, low, high and a column ccc_seedN for each seed.
        path: target, .png.
        title: heading.
    """
    count = len(next(iter(tables.values())))
    figure = Figure(figsize=(9, 0.8 + len(tables) * (0.8 + 0.38 * count)), layout="constrained")
    for axes, (test, table) in zip(figure.subplots(len(tables), squeeze=False)[:, 0], tables.items()):
        places = range(count)
        axes.hlines(places, table["low"], table["high"], color="grey", linewidth=5, alpha=0.35, label="95 % interval")
        seeds = [column for column in table if column.startswith("ccc_seed")]
        for column in seeds:
            axes.plot(
                table[column], places, ".", color=_TRAINING, alpha=0.6, label="one seed" if column == seeds[0] else ""
            )
        axes.plot(table["ccc"], places, "D", color=_VALIDATION, label="mean")
        axes.set_yticks(places, table["order"])
        axes.invert_yaxis()
        axes.set(xlabel=f"CCC on {test}")
        axes.grid(alpha=0.3, axis="x")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=3)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    save(figure, path)


# ---------------------------------------------------------------------------------------------------------------------
# The method, for the README

_BLUE, _GREEN, _ORANGE, _GREY = "#dbe7f5", "#dff0dc", "#fbe6cf", "#eeeeee"


def _box(axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str, **font) -> None:
    shape = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0.02,rounding_size=0.12", facecolor=colour, edgecolor="#333333"
    )
    axes.add_patch(shape)
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", **{"fontsize": 9} | font)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "", **style) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, color="#333333", **style))
    if text:
        axes.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.12, text, ha="center", va="bottom", fontsize=8)


def draw_method(path: Path) -> None:
    """The method in one drawing: clusters and levels from one network, their information, the curriculum.

    Args:
        path: target, .png.
    """
    figure = Figure(figsize=(13, 6.2))
    axes = figure.subplots()
    axes.set(xlim=(0, 20.2), ylim=(0, 9.4))
    axes.axis("off")
    _draw_clustering(axes)
    _draw_information(axes)
    _draw_curriculum(axes)
    save(figure, path)


def _draw_clustering(axes: Axes) -> None:
    axes.text(0.1, 9.0, "1  DeepEmoCluster", fontsize=11, weight="bold")
    _box(axes, 0.1, 6.9, 2.5, 1.1, "unlabeled\nutterances", _GREY)
    _box(axes, 0.1, 5.1, 2.5, 1.1, "Train split\nwith labels", _GREY)
    _box(axes, 3.5, 5.1, 2.3, 2.9, "DenseResNet\ntrunk\n\n1024, 512, 256\neach with two\nresidual blocks", _BLUE)
    _box(axes, 6.7, 6.9, 2.6, 1.1, "cluster head\nK logits", _BLUE)
    _box(axes, 6.7, 5.1, 2.6, 1.1, "emotion head\none attribute", _BLUE)
    _arrow(axes, (2.65, 7.45), (3.45, 7.1))
    _arrow(axes, (2.65, 5.65), (3.45, 6.0))
    _arrow(axes, (5.85, 7.1), (6.65, 7.45))
    _arrow(axes, (5.85, 6.0), (6.65, 5.65))
    axes.text(4.65, 4.72, "6,373 openSMILE functionals, z-normed", ha="center", fontsize=8, style="italic")
    _arrow(axes, (8.0, 8.05), (4.65, 8.05), connectionstyle="arc3,rad=0.45")
    axes.text(6.95, 8.95, "k-means of the 256-d features: new pseudo-labels each epoch", ha="center", fontsize=8)


def _draw_information(axes: Axes) -> None:
    axes.text(11.0, 9.0, "2  DeepMI", fontsize=11, weight="bold")
    _box(axes, 10.3, 7.0, 2.1, 0.9, "X  cluster", _GREEN)
    _box(axes, 10.3, 5.2, 2.1, 0.9, "Y'  predicted\nlevel", _GREEN)
    _box(axes, 10.3, 3.4, 2.1, 0.9, "Y  level of\nthe label", _GREEN)
    _arrow(axes, (9.35, 7.45), (10.25, 7.45))
    _arrow(axes, (9.35, 5.65), (10.25, 5.65))
    _arrow(axes, (1.35, 5.05), (10.25, 3.85), connectionstyle="arc3,rad=0.12")
    formula = (
        "each utterance gets its cell's share\nof the information, in nats\n\n"
        r"$(1-\alpha)\; p_{xy}\,\ln\frac{p_{xy}}{p_x\,p_y}$"
        "\n\n"
        r"$+\;\alpha\; p_{y'y}\,\ln\frac{p_{y'y}}{p_{y'}\,p_y}$"
    )
    _box(axes, 13.6, 3.9, 6.3, 4.0, formula, _GREEN, fontsize=11)
    for y in (7.45, 5.65, 4.2):
        _arrow(axes, (12.45, y if y > 4.2 else 3.95), (13.55, y))


def _draw_curriculum(axes: Axes) -> None:
    axes.text(0.1, 2.9, "3  Curriculum", fontsize=11, weight="bold")
    for level in range(1, 11):
        axes.add_patch(
            Rectangle((2.9 + 0.75 * level, 0.9), 0.6, 0.1 * level + 0.15, facecolor=_ORANGE, edgecolor="#333333")
        )
    axes.text(
        7.3,
        0.35,
        "the first tenth, the first two tenths, ...: five epochs each, all from epoch 45",
        ha="center",
        fontsize=8,
    )
    _box(axes, 0.1, 0.9, 2.6, 1.3, "Train split,\nhigh DeepMI first", _ORANGE)
    _arrow(axes, (2.75, 1.55), (3.55, 1.55))
    _arrow(axes, (11.15, 1.55), (12.05, 1.55))
    _box(axes, 12.1, 0.9, 3.2, 1.3, "regressor\nloss 1 - CCC", _ORANGE)
    _arrow(axes, (15.35, 1.55), (16.55, 1.55), "Test1")
    _box(axes, 16.6, 0.9, 3.3, 1.3, "CCC with its\n95 % interval", _ORANGE)
    _arrow(axes, (16.75, 3.85), (1.4, 2.25), connectionstyle="arc3,rad=-0.05")
