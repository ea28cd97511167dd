"""The pictures of a comparison of curricula."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from deepmi.plots import TRAINING, VALIDATION, save


def draw_validation_curves(curves: dict[str, list[list[float]]], path: Path, title: str) -> None:
    """Draw the validation CCC by epoch: the mean over seeds and the range from the lowest to the highest.

    Args:
        curves: order -> for each seed, the CCC of every epoch.
        path: target, .png.
        title: heading.
    """
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    for order, runs in curves.items():
        by_epoch = list(zip(*runs))
        axes.plot([sum(values) / len(values) for values in by_epoch], label=order)
        axes.fill_between(range(len(by_epoch)), [*map(min, by_epoch)], [*map(max, by_epoch)], alpha=0.1)
    axes.set(xlabel="epoch", ylabel="validation CCC, mean and range over seeds", title=title)
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
    save(figure, path)


def draw_orders(tables: dict[str, pd.DataFrame], path: Path, title: str) -> None:
    """Draw the final CCC of each order, with its interval and the single seeds.

    Args:
        tables: test set -> table with the columns order, ccc, low, high and one ccc_seedN per seed.
        path: target, .png.
        title: heading.
    """
    count = len(next(iter(tables.values())))
    figure = Figure(figsize=(9, 0.8 + len(tables) * (0.8 + 0.38 * count)), layout="constrained")
    for axes, (test, table) in zip(figure.subplots(len(tables), squeeze=False)[:, 0], tables.items()):
        places = range(count)
        axes.hlines(places, table["low"], table["high"], color="grey", linewidth=5, alpha=0.35, label="95 % interval")
        seeds = table.filter(like="ccc_seed").to_numpy()  # (orders, seeds)
        singles = axes.plot(seeds, places, ".", color=TRAINING, alpha=0.6)
        singles[0].set_label("one seed")
        axes.plot(table["ccc"], places, "D", color=VALIDATION, label="mean")
        axes.set_yticks(places, table["order"])
        axes.invert_yaxis()
        axes.set(xlabel=f"CCC on {test}")
        axes.grid(alpha=0.3, axis="x")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=3)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    save(figure, path)
