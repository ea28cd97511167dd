"""The pictures of the DeepMI report: each described once, drawn for its page (plotly) and as a file (matplotlib).

Positions on an axis of names are 0, 1, 2, ..., with the names as tick labels: a speaker called 12 stays a name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from deepmi.process import one_line

LONGEST_LABEL = 36  # characters of a name beside an axis
LONGEST_LEGEND = 16  # categories; the pointer names those of more
SMALLEST_POINT, LARGEST_POINT = 5, 28  # diameters in pixels
SIGNIFICANT = 6  # digits of a number in the page
# Colours of middle lightness, legible on white and on near-black alike.
LEVEL_COLOURS = ("#4477bb", "#3a9ea5", "#6cae4f", "#c9a227", "#dd7f35", "#c94f4f")
CATEGORY_COLOURS = (
    "#4477bb", "#dd7f35", "#4fa35a", "#c94f4f", "#8f6bb8",
    "#9a7560", "#cf72ad", "#7d8590", "#b0a12c", "#34a4b5",
)  # fmt: skip
# plotly's name, matplotlib's
DASHES = (("solid", "-"), ("dash", "--"), ("dot", ":"), ("dashdot", "-."))
MARKERS = (("circle", "o"), ("square", "s"), ("diamond", "D"), ("triangle-up", "^"))


@dataclass
class Chart:
    """What every kind of picture has: the titles of its axes."""

    x_title: str
    y_title: str


@dataclass
class HeatMap(Chart):
    """A table of numbers; its first row is drawn at the top.

    Attributes:
        rows: their names.
        columns: their names.
        values: shape (rows, columns).
        unit: of the values.
    """

    rows: Sequence[str]
    columns: Sequence[str]
    values: NDArray[np.float64]
    unit: str


@dataclass
class Bars(Chart):
    """Bars over names, one series on top of the other, each with its colour of the palette."""

    labels: Sequence[str]
    series: dict[str, ArrayLike]
    palette: Sequence[str] = CATEGORY_COLOURS


@dataclass
class Histogram(Chart):
    """Counts between edges, with named vertical lines.

    Attributes:
        edges: shape (n + 1,).
        counts: shape (n,).
        lines: position -> what stands above it.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    lines: dict[float, str] = field(default_factory=dict)


@dataclass
class FiveNumbers:
    """A distribution as a box: lowest value, quartiles, highest value, mean, number."""

    low: float
    q1: float
    median: float
    q3: float
    high: float
    mean: float
    count: int


@dataclass
class Boxes(Chart):
    """Lying boxes under each other, the first at the top."""

    labels: Sequence[str]
    summaries: Sequence[FiveNumbers]


@dataclass
class Points(Chart):
    """Points, coloured by category or by number.

    Attributes:
        x: shape (N,).
        y: shape (N,).
        texts: what each is called, or none.
        colour: a category's position or a number each, shape (N,).
        categories: names of the categories; none where the colour is a number.
        colour_title: what the colour says.
        counts: utterances at each place, shape (N,), which make a point larger; none where all are alike.
        limits: of the colours, where the colour is a number; by default those of the numbers.
        palette: colours of the categories, used again from the first where they do not last.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    texts: Sequence[str]
    colour: NDArray
    categories: Sequence[str]
    colour_title: str
    counts: NDArray[np.int64] | None = None
    limits: tuple[float, float] | None = None
    palette: Sequence[str] = CATEGORY_COLOURS


@dataclass
class Lines(Chart):
    """Named lines over common positions."""

    x: Sequence[float]
    series: dict[str, ArrayLike]


@dataclass
class Panel:
    """One picture of the report.

    Attributes:
        name: in file names and anchors: lower case, digits, underscores.
        title: heading.
        note: one to three sentences that tell how to read it.
        chart: what is drawn.
    """

    name: str
    title: str
    note: str
    chart: Chart


def shorten(text: str) -> str:
    """A name as long as fits beside an axis."""
    text = one_line(text)
    return text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1] + "…"


def _diameters(counts: NDArray[np.int64] | None, total: int) -> NDArray[np.float64]:
    """Diameter of each point in pixels: its area grows with its count."""
    if counts is None:
        return np.full(total, float(SMALLEST_POINT))
    return np.maximum(LARGEST_POINT * np.sqrt(counts / counts.max()), SMALLEST_POINT)


def _counted(chart: Boxes, escape: Callable[[str], str]) -> list[str]:
    pairs = zip(chart.labels, chart.summaries)
    return [f"{escape(shorten(label))} ({summary.count:,})" for label, summary in pairs]


def height_of(chart: Chart) -> int:
    """Height of a picture in pixels of its page."""
    if isinstance(chart, HeatMap):
        return 150 + max(14 * len(chart.rows), 200)
    if isinstance(chart, Boxes):
        return 110 + max(22 * len(chart.labels), 120)
    return 480 if isinstance(chart, Points) else 400


# ---------------------------------------------------------------------------------------------------------------------
# For the page: figures of plotly, as plain dicts. Colours of paper, text, grid and colour scales are the page's affair.


def plain(text: str) -> str:
    """Text that plotly shows as it is: its labels are a kind of HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def numbers(values: ArrayLike) -> list[float | None]:
    """Numbers as JSON has them, 6 significant digits; None for what is none."""
    return [float(f"{value:.{SIGNIFICANT}g}") if np.isfinite(value) else None for value in np.ravel(values).tolist()]


def _names_axis(labels: Sequence[str], **more) -> dict:
    shown = [plain(shorten(label)) for label in labels]
    return {
        "tickmode": "array",
        "tickvals": list(range(len(labels))),
        "ticktext": shown,
        "showgrid": False,
        "zeroline": False,
    } | more


def _plotly_heat_map(chart: HeatMap) -> tuple[list, dict]:
    trace = {
        "type": "heatmap",
        "x": list(range(len(chart.columns))),
        "y": list(range(len(chart.rows))),
        "z": [numbers(row) for row in chart.values],
        "autocolorscale": True,
        "xgap": 1,
        "ygap": 1,
        "colorbar": {"title": {"text": plain(chart.unit), "side": "right"}, "thickness": 12},
        "hovertemplate": "%{y}<br>%{x}<br>%{z:.4g} " + plain(chart.unit) + "<extra></extra>",
    }
    if (chart.values < 0).any():
        trace["zmid"] = 0
    return [trace], {
        "xaxis": _names_axis(chart.columns),
        "yaxis": _names_axis(chart.rows, autorange="reversed", tickfont={"size": 11}),
    }


def _plotly_bars(chart: Bars) -> tuple[list, dict]:
    positions = list(range(len(chart.labels)))
    traces = [
        {"type": "bar", "name": plain(name), "x": positions, "y": numbers(values), "marker": {"color": colour}}
        for (name, values), colour in zip(chart.series.items(), chart.palette)
    ]
    legend = {"traceorder": "normal"}
    return traces, {
        "barmode": "stack",
        "xaxis": _names_axis(chart.labels),
        "showlegend": len(traces) > 1,
        "legend": legend,
    }


def _plotly_histogram(chart: Histogram) -> tuple[list, dict]:
    trace = {
        "type": "bar",
        "x": numbers((chart.edges[:-1] + chart.edges[1:]) / 2),
        "width": numbers(np.diff(chart.edges)),
        "y": numbers(chart.counts),
        "hovertemplate": "%{y} utterances near %{x:.4f}<extra></extra>",
    }
    shapes, annotations = [], []
    for number, (position, text) in enumerate(chart.lines.items()):
        at = numbers([position])[0]
        shapes.append(
            {"type": "line", "x0": at, "x1": at, "y0": 0, "y1": 1, "yref": "paper", "line": {"width": 1, "dash": "dot"}}
        )
        annotations.append(
            {"x": at, "y": 1 + 0.05 * (number % 3), "yref": "paper", "yanchor": "bottom", "showarrow": False}
            | {"text": plain(text), "font": {"size": 11}}
        )
    return [trace], {"shapes": shapes, "annotations": annotations, "margin": {"t": 70}}


def _plotly_boxes(chart: Boxes) -> tuple[list, dict]:
    columns = {
        "lowerfence": "low",
        "q1": "q1",
        "median": "median",
        "q3": "q3",
        "upperfence": "high",
        "mean": "mean",
    }
    trace = {"type": "box", "orientation": "h", "y": list(range(len(chart.labels)))} | {
        key: numbers([getattr(summary, name) for summary in chart.summaries]) for key, name in columns.items()
    }
    axis = _names_axis(chart.labels, autorange="reversed", ticktext=_counted(chart, plain))
    return [trace], {"yaxis": axis, "showlegend": False}


def _scale() -> list[tuple[float, str]]:
    """Colours of numbers at points: unlike those of areas, none may come near the paper's."""
    return [(step / (len(LEVEL_COLOURS) - 1), colour) for step, colour in enumerate(LEVEL_COLOURS)]


def _plotly_points(chart: Points) -> tuple[list, dict]:
    diameters = _diameters(chart.counts, len(chart.x))

    def trace(chosen: NDArray, marker: dict, **more) -> dict:
        texts = [plain(chart.texts[row]) for row in np.flatnonzero(chosen)] if len(chart.texts) else []
        return {
            "type": "scatter",
            "mode": "markers",
            "x": numbers(chart.x[chosen]),
            "y": numbers(chart.y[chosen]),
            "text": texts,
            "marker": {"size": numbers(diameters[chosen]), "opacity": 0.75, "line": {"width": 0}} | marker,
            "hovertemplate": ("%{text}<br>" if texts else "") + "%{x:.4g}, %{y:.4g}<extra>%{fullData.name}</extra>",
        } | more

    if not chart.categories:
        bar = {"title": {"text": plain(chart.colour_title), "side": "right"}, "thickness": 12}
        marker = {"color": numbers(chart.colour), "colorscale": _scale(), "colorbar": bar}
        if chart.limits:
            marker |= {"cmin": chart.limits[0], "cmax": chart.limits[1]}
        return [trace(np.ones(len(chart.x), dtype=bool), marker, name="")], {"showlegend": False}
    traces = [
        trace(chart.colour == code, {"color": chart.palette[code % len(chart.palette)]}, name=plain(shorten(name)))
        for code, name in enumerate(chart.categories)
        if (chart.colour == code).any()
    ]
    legend = {"title": {"text": plain(chart.colour_title)}, "itemsizing": "constant"}
    return traces, {"showlegend": len(traces) <= LONGEST_LEGEND, "legend": legend}


def _plotly_lines(chart: Lines) -> tuple[list, dict]:
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": plain(name),
            "x": numbers(chart.x),
            "y": numbers(values),
            "line": {"dash": DASHES[number % len(DASHES)][0]},
            "marker": {"symbol": MARKERS[number % len(MARKERS)][0]},
        }
        for number, (name, values) in enumerate(chart.series.items())
    ]
    return traces, {"xaxis": {"dtick": 1}, "yaxis": {"rangemode": "tozero"}, "showlegend": True}


def plotly_figure(panel: Panel) -> dict:
    """A panel as plotly's `data` and `layout`, without the colours that follow the page's theme."""
    data, layout = _PLOTLY[type(panel.chart)](panel.chart)
    layout = {"margin": {"l": 60, "r": 16, "t": 24, "b": 56}, "legend": {}} | layout
    layout["height"] = height_of(panel.chart)
    for axis, title in (("xaxis", panel.chart.x_title), ("yaxis", panel.chart.y_title)):
        given = layout.get(axis, {})
        layout[axis] = given | {"title": {"text": plain(title), "standoff": 8}, "automargin": True}
    layout["legend"] = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"} | layout["legend"]
    return {"data": data, "layout": layout}


_PLOTLY = {
    HeatMap: _plotly_heat_map,
    Bars: _plotly_bars,
    Histogram: _plotly_histogram,
    Boxes: _plotly_boxes,
    Points: _plotly_points,
    Lines: _plotly_lines,
}


# ---------------------------------------------------------------------------------------------------------------------
# For files


def _literal(text: str) -> str:
    """Text that matplotlib shows as it is: between dollars it would be a formula."""
    return text.replace("$", r"\$")


def _drawn_names(labels: Sequence[str]) -> list[str]:
    return [_literal(shorten(label)) for label in labels]


def _draw_heat_map(chart: HeatMap, axes) -> None:
    signed = (chart.values < 0).any()
    limit = np.abs(chart.values).max() or 1.0
    scale = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit} if signed else {"cmap": "Blues", "vmin": 0}
    image = axes.imshow(chart.values, aspect="auto", interpolation="nearest", **scale)
    axes.set_xticks(range(len(chart.columns)), _drawn_names(chart.columns))
    if max(map(len, chart.columns), default=0) * len(chart.columns) > 90:
        axes.tick_params(axis="x", rotation=90, labelsize=7)
    axes.set_yticks(range(len(chart.rows)), _drawn_names(chart.rows), fontsize=8)
    axes.figure.colorbar(image, label=_literal(chart.unit))


def _draw_bars(chart: Bars, axes) -> None:
    below = np.zeros(len(chart.labels))
    for (name, values), colour in zip(chart.series.items(), chart.palette):
        heights = np.asarray(values, dtype=np.float64)
        axes.bar(range(len(below)), heights, bottom=below, label=_literal(name), color=colour)
        below = below + heights
    many = len(below) > 20
    axes.set_xticks(
        range(len(below)), _drawn_names(chart.labels), rotation=90 if many else 0, fontsize=7 if many else 9
    )
    if len(chart.series) > 1:
        axes.legend()


def _draw_histogram(chart: Histogram, axes) -> None:
    axes.bar(chart.edges[:-1], chart.counts, width=np.diff(chart.edges), align="edge", color=CATEGORY_COLOURS[0])
    for number, (position, text) in enumerate(chart.lines.items()):
        axes.axvline(position, color="grey", linestyle=":", linewidth=1)
        place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "center"}
        axes.annotate(_literal(text), (position, 1), (0, 3 + 11 * (number % 3)), fontsize=8, **place)


def _draw_boxes(chart: Boxes, axes) -> None:
    rows = np.arange(len(chart.labels))
    low, q1, median, q3, high, mean = (
        np.array([getattr(summary, name) for summary in chart.summaries])
        for name in ("low", "q1", "median", "q3", "high", "mean")
    )
    axes.hlines(rows, low, high, color="#555555", linewidth=1)
    axes.barh(rows, q3 - q1, left=q1, height=0.6, facecolor="#c9daf0", edgecolor="#555555")
    axes.vlines(median, rows - 0.3, rows + 0.3, color=CATEGORY_COLOURS[1], linewidth=2)
    axes.plot(mean, rows, linestyle="", marker="D", markersize=3, color="#333333")
    axes.set_yticks(rows, _counted(chart, _literal), fontsize=8)
    axes.invert_yaxis()


def _draw_points(chart: Points, axes) -> None:
    areas = (0.7 * _diameters(chart.counts, len(chart.x))) ** 2  # in square points of type
    style = {"alpha": 0.75, "linewidths": 0}
    if chart.categories:
        for code, name in enumerate(chart.categories):
            chosen = chart.colour == code
            if chosen.any():
                colour = chart.palette[code % len(chart.palette)]
                label = _literal(shorten(name))
                axes.scatter(chart.x[chosen], chart.y[chosen], areas[chosen], color=colour, label=label, **style)
        columns = 1 + len(chart.categories) // 20
        place = {"bbox_to_anchor": (1.01, 1), "loc": "upper left", "fontsize": 8, "ncols": columns}
        axes.legend(title=_literal(chart.colour_title), markerscale=2, **place)
        return
    colours = LinearSegmentedColormap.from_list("numbers", _scale())
    low, high = chart.limits or (None, None)
    drawn = axes.scatter(chart.x, chart.y, areas, c=chart.colour, cmap=colours, vmin=low, vmax=high, **style)
    axes.figure.colorbar(drawn, label=_literal(chart.colour_title))


def _draw_lines(chart: Lines, axes) -> None:
    for number, (name, values) in enumerate(chart.series.items()):
        look = {"linestyle": DASHES[number % len(DASHES)][1], "marker": MARKERS[number % len(MARKERS)][1]}
        axes.plot(chart.x, values, label=_literal(name), color=CATEGORY_COLOURS[number], markersize=4, **look)
    axes.set_xticks(list(chart.x))
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)


def matplotlib_figure(panel: Panel) -> Figure:
    """A panel as a figure of matplotlib, with its title."""
    figure = Figure(figsize=(8, height_of(panel.chart) / 85), layout="constrained")
    axes = figure.subplots()
    _MATPLOTLIB[type(panel.chart)](panel.chart, axes)
    axes.set(xlabel=_literal(panel.chart.x_title), ylabel=_literal(panel.chart.y_title))
    if isinstance(panel.chart, (Points, Lines, Histogram)):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    figure.suptitle(_literal(panel.title), fontsize=11)
    return figure


_MATPLOTLIB = {
    HeatMap: _draw_heat_map,
    Bars: _draw_bars,
    Histogram: _draw_histogram,
    Boxes: _draw_boxes,
    Points: _draw_points,
    Lines: _draw_lines,
}
