"""The kinds of charts in the report, as Altair specifications; page and PNG are drawn from the same specification.

Names of speakers or files are data of a chart, never part of its specification, so they are shown as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd
import vl_convert

from deepmi.storage import write_atomically

# Colors of medium lightness, legible both on white and on near-black.
LEVEL_COLORS = ("#4477bb", "#3a9ea5", "#6cae4f", "#c9a227", "#dd7f35", "#c94f4f")
CATEGORY_COLORS = (
    "#4477bb", "#dd7f35", "#4fa35a", "#c94f4f", "#8f6bb8",
    "#9a7560", "#cf72ad", "#7d8590", "#b0a12c", "#34a4b5",
)  # fmt: skip
BLUE, ORANGE, RED, GREY = (CATEGORY_COLORS[at] for at in (0, 1, 3, 7))
LONGEST_LEGEND = 16  # categories; if there are more, only the tooltip shows them
VEGA_LITE = alt.SCHEMA_VERSION.rpartition(".")[0]  # v6.4.1 -> v6.4

alt.data_transformers.disable_max_rows()


def config(ink: str, paper: str | None) -> dict:
    """Configuration of Vega-Lite. With the ink `currentColor`, a chart has the text color of the surrounding page."""
    text = {"labelColor": ink, "titleColor": ink, "titleFontWeight": "normal", "titleLimit": 0}
    lines = {"gridColor": ink, "gridOpacity": 0.13, "domainColor": ink, "domainOpacity": 0.5, "tickColor": ink}
    return {
        "aria": False,  # the page describes the charts
        "background": paper,
        "font": "system-ui, sans-serif",
        "mark": {"tooltip": True},
        "tooltipFormat": {"numberFormat": ",.5~r"},
        "view": {"stroke": None},
        "axis": text | lines | {"tickOpacity": 0.5, "labelLimit": 230},
        "axisQuantitative": {"tickCount": 8},
        "legend": text | {"orient": "top", "columns": 8, "gradientLength": 200, "labelLimit": 160},
        "title": {"color": ink, "anchor": "start", "fontSize": 14, "offset": 12},
        "text": {"color": ink},
    }


def write_png(chart: alt.LayerChart, path: Path) -> None:
    """Write a chart as a PNG file."""
    spec = chart.properties(width=680).to_dict()
    png = vl_convert.vegalite_to_png(spec, vl_version=VEGA_LITE, scale=1.5, config=config("#1d242c", "white"))
    with write_atomically(path) as temporary:
        temporary.write_bytes(png)


def page_spec(chart: alt.LayerChart) -> dict:
    """The specification of a chart as wide as its container; the page adds heading and configuration."""
    spec = chart.properties(width="container").to_dict()
    return {key: value for key, value in spec.items() if key not in ("config", "title")}


def javascript() -> str:
    """Vega, Vega-Lite and Vega-Embed as one self-contained script that defines `vegaEmbed`."""
    return vl_convert.javascript_bundle(vl_version=VEGA_LITE)


def _names(channel: type, field: str, title: str, names: Sequence[str]) -> alt.X | alt.Y:
    """An axis of names in the given order; names on the x axis are vertical if they would overlap."""
    crowded = channel is alt.X and (sum(map(len, names)) > 70 or len(names) > 15)
    axis = alt.Axis(grid=False, labelAngle=-90 if crowded else 0)
    return channel(f"{field}:N", title=title or None, sort=list(names), axis=axis)


def _long(table: pd.DataFrame) -> pd.DataFrame:
    """One row per number of a table, with the columns `row`, `column`, `value` and `rank`, the number of the column."""
    ranks = {column: rank for rank, column in enumerate(table.columns)}
    values = table.rename_axis(index="row").reset_index().melt("row", var_name="column")
    return values.assign(rank=values["column"].map(ranks))


def heat_map(title: str, table: pd.DataFrame, x_title: str, y_title: str, unit: str) -> alt.LayerChart:
    """A table of numbers with named rows and columns, one tile per number, the first row at the top."""
    limit = float(table.abs().to_numpy().max()) or 1.0
    if table.to_numpy().min() < 0:
        scale = alt.Scale(domain=[-limit, 0, limit], range=["#3f7fd0", "rgba(128,128,128,0.08)", "#d0503f"])
    else:
        scale = alt.Scale(domain=[0, limit], range=["rgba(63,127,208,0.06)", "#3f7fd0"])
    tiles = alt.Chart(_long(table)).mark_rect().encode(
        x=_names(alt.X, "column", x_title, table.columns).scale(paddingInner=0.04),
        y=_names(alt.Y, "row", y_title, table.index).scale(paddingInner=0.06),
        color=alt.Color("value:Q", title=unit, scale=scale),
    )  # fmt: skip
    return alt.layer(tiles, title=title, height=max(15 * len(table), 150))


def bars(title: str, table: pd.DataFrame, x_title: str, y_title: str, palette: Sequence[str]) -> alt.LayerChart:
    """Stacked bars: one bar per row of the table, one part of the bar per column."""
    scale = alt.Scale(domain=list(table.columns), range=list(palette[: len(table.columns)]))
    stacked = alt.Chart(_long(table)).mark_bar().encode(
        x=_names(alt.X, "row", x_title, table.index),
        y=alt.Y("value:Q", title=y_title),
        color=alt.Color("column:N", title=None, scale=scale),
        order="rank:Q",
    )  # fmt: skip
    return alt.layer(stacked, title=title, height=280)


def histogram(title: str, values: pd.Series, lines: pd.DataFrame, x_title: str, y_title: str) -> alt.LayerChart:
    """Number of utterances by value, with a vertical line at each `value` of `lines`, labeled with its `name`."""
    counts, borders = np.histogram(values, bins=60 if np.ptp(values) > 1e-9 else 1)
    table = pd.DataFrame({"from": borders[:-1], "to": borders[1:], "count": counts})
    columns = alt.Chart(table).mark_bar(color=BLUE, binSpacing=0.5).encode(
        x=alt.X("from:Q", bin="binned", title=x_title), x2="to", y=alt.Y("count:Q", title=y_title)
    )  # fmt: skip
    edges = alt.Chart(lines).mark_rule(color=ORANGE, strokeDash=[3, 3]).encode(x="value:Q")
    names = [
        alt.Chart(lines[row::3]).mark_text(dy=-8 - 12 * row).encode(x="value:Q", y=alt.value(0), text="name:N")
        for row in range(min(3, len(lines)))  # neighbors at different heights
    ]
    return alt.layer(columns, edges, *names, title=title, height=280)


def boxes(title: str, summary: pd.DataFrame, x_title: str, y_title: str) -> alt.LayerChart:
    """Quartiles, median, mean (diamond), lowest and highest value of groups (rows from `describe`), top to bottom."""
    names = [f"{name} ({count:,.0f})" for name, count in summary["count"].items()]
    columns = {"min": "lowest", "25%": "q1", "50%": "median", "75%": "q3", "max": "highest", "mean": "mean"}
    base = alt.Chart(summary.rename(columns=columns)[[*columns.values()]].assign(name=names)).encode(
        y=_names(alt.Y, "name", y_title, names)
    )
    whiskers = base.mark_rule(color=GREY).encode(x=alt.X("lowest:Q", title=x_title), x2="highest")
    box = base.mark_bar(color=BLUE, opacity=0.45, size=13).encode(x="q1:Q", x2="q3")
    median = base.mark_tick(color=ORANGE, thickness=3, size=13).encode(x="median:Q")
    mean = base.mark_point(color=RED, shape="diamond", filled=True, size=45, opacity=1).encode(x="mean:Q")
    return alt.layer(whiskers, box, median, mean, title=title, height=max(20 * len(names), 50))


def points(
    title: str,
    table: pd.DataFrame,
    x_title: str,
    y_title: str,
    color_title: str = "",
    categories: Sequence[str] = (),
    palette: Sequence[str] = LEVEL_COLORS,
    limits: Sequence[float] = (),
) -> alt.LayerChart:
    """A scatter plot whose points the page can play.

    Args:
        title: heading.
        table: `x`, `y`, `file` and, optionally, `utterances` (size of a point) and `color`.
        x_title: title of the x axis.
        y_title: title of the y axis.
        color_title: title of the color legend.
        categories: values of `color` in order; empty if `color` is a number.
        palette: colors of the categories, repeated if there are too few, or of the numbers from low to high.
        limits: lowest and highest number of the palette, by default those in the table.
    """
    encoding = {
        "x": alt.X("x:Q", title=x_title).scale(zero=False, nice=False, padding=8),
        "y": alt.Y("y:Q", title=y_title).scale(zero=False, nice=False, padding=8),
        "detail": "file:N",  # for the tooltip
    }
    if "utterances" in table:
        scale = alt.Scale(range=[25, 500], domain=[1, max(int(table["utterances"].max()), 2)])
        encoding["size"] = alt.Size("utterances:Q", scale=scale, legend=alt.Legend(symbolFillColor=GREY))
    if "color" in table:
        kind, domain = ("N", categories) if categories else ("Q", limits)
        scale = alt.Scale(range=list(palette), **({"domain": list(domain)} if domain else {}))
        legend = {"legend": None} if len(categories) > LONGEST_LEGEND else {}
        encoding["color"] = alt.Color(f"color:{kind}", title=color_title, scale=scale, **legend)
    marks = alt.Chart(table.round(6)).mark_circle(opacity=0.75, cursor="pointer").encode(**encoding)
    return alt.layer(marks, title=title, height=380)


def lines(title: str, table: pd.DataFrame, y: str, y_title: str) -> alt.LayerChart:
    """Column `y` of the bins of a curriculum, one line per `order`."""
    names = table["order"].unique().tolist()
    base = alt.Chart(table[["bin", y, "order"]]).encode(
        x=alt.X("bin:O", axis=alt.Axis(labelAngle=0)),
        y=alt.Y(f"{y}:Q", title=y_title, scale=alt.Scale(zero=True)),
        color=alt.Color("order:N", scale=alt.Scale(domain=names, range=list(CATEGORY_COLORS[: len(names)]))),
    )
    strokes = base.mark_line().encode(strokeDash=alt.StrokeDash("order:N", scale=alt.Scale(domain=names)))
    marks = base.mark_point(filled=True, size=50, opacity=1).encode(
        shape=alt.Shape("order:N", scale=alt.Scale(domain=names))
    )
    return alt.layer(strokes, marks, title=title, height=280)
