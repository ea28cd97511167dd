"""Draw the method, as the README shows it.

python -m tools.draw_method
"""

from __future__ import annotations

import argparse
from pathlib import Path

from deepmi import cli


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    parser = cli.new_parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("images/method.png"), metavar="FILE", help="target, .png")
    return parser


if __name__ == "__main__":
    ARGS = cli.parse(get_args_parser())  # before the heavy imports, so that --help answers at once

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from deepmi import plots, storage

_BLUE, _GREEN, _ORANGE, _GREY = "#dbe7f5", "#dff0dc", "#fbe6cf", "#eeeeee"


def _box(axes: Axes, x: float, y: float, width: float, height: float, text: str, color: str, **font) -> None:
    shape = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0.02,rounding_size=0.12", facecolor=color, edgecolor="#333333"
    )
    axes.add_patch(shape)
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", **{"fontsize": 9} | font)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "", **style) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, color="#333333", **style))
    if text:
        axes.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.12, text, ha="center", va="bottom", fontsize=8)


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


def main(args: argparse.Namespace) -> None:
    """Draw clusters and levels from one network, their information, and the curriculum."""
    storage.prepare_folder(args.out.parent)
    figure = Figure(figsize=(13, 6.2))
    axes = figure.subplots()
    axes.set(xlim=(0, 20.2), ylim=(0, 9.4))
    axes.axis("off")
    _draw_clustering(axes)
    _draw_information(axes)
    _draw_curriculum(axes)
    plots.save(figure, args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    cli.run(main, ARGS)
