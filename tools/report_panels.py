"""The DeepMI report's numbers: from values, labels and clusters to panels, tables and sentences. Reads no files.

N is the number of training utterances, sorted by file name; entry i of each array belongs to names[i]. K is the number
of clusters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from deepmi import curriculum
from deepmi import metric as metric_module
from deepmi.ccc import percentile_interval
from deepmi.seeds import derived_seed
from tools.report_render import (
    CATEGORY_COLOURS,
    LEVEL_COLOURS,
    Bars,
    Boxes,
    FiveNumbers,
    HeatMap,
    Histogram,
    Lines,
    Panel,
    Points,
)

LEVEL_NAMES = ("<2", "[2,3)", "[3,4)", "[4,5)", "[5,6)", "≥6")
SHOWN_ORDERS = ("deepmi", "deepmi-balanced", "reverse", "random")
ATTRIBUTE_NAMES = {"Act": "arousal", "Dom": "dominance", "Val": "valence"}
DISPUTED_SHARE = 0.15  # of the utterances, where the corpus does not say which ones are disputed
MOST_POINTS = 5000  # of a scatter plot: more are slow to draw and hide each other
MOST_GROUPS = 40
TYPICAL_FEATURES = 5  # named for each cluster
FEWEST_MEMBERS = 5  # of a cluster whose features are named: the mean of fewer says more of them than of it
RESAMPLES = 1000
SAME_VALUE = 1.5e-5  # how far a recomputed DeepMI may be from one that was rounded to 5 decimals
BLOCK = 4096  # utterances whose features are in memory at a time


@dataclass
class Section:
    """A part of the page.

    Attributes:
        anchor: its id.
        title: heading.
        text: paragraphs that belong to no picture.
        panels: pictures.
        tables: small tables, each as (caption, header, rows); a cell that is a list has a line an entry.
    """

    anchor: str
    title: str
    text: list[str] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)
    tables: list[tuple[str, list[str], list[list]]] = field(default_factory=list)


@dataclass
class Network:
    """What a checkpoint adds.

    Attributes:
        source: the file's name.
        clusters: X, 0..K-1, shape (N,).
        predicted_levels: Y', 0..5, shape (N,).
        values: DeepMI computed from it, shape (N,).
        information: as from `deepmi.deepmi_values`.
        features: what k-means sees, shape (N, 256).
        differences: as from `standardised_differences`, shape (K, D).
        feature_names: name of each acoustic feature, D of them.
    """

    source: str
    clusters: NDArray[np.int64]
    predicted_levels: NDArray[np.int64]
    values: NDArray[np.float64]
    information: dict[str, float]
    features: NDArray[np.float32]
    differences: NDArray[np.float64]
    feature_names: list[str]


@dataclass
class Evidence:
    """All that the report is made of.

    Attributes:
        emo_attr: `Act`, `Dom` or `Val`.
        num_clusters: K.
        seed: of bootstrap and samples.
        names: training utterances, sorted.
        values: DeepMI, shape (N,).
        labels: in label units, shape (N,).
        table: label rows of all labelled utterances, indexed by file name; the attribute's label in column `label`.
        others: DeepMI of the other attributes, attribute -> series by file name.
        spread: standard deviation of the raters by file name, or None.
        marked: whether an utterance is disputed, by file name, or None.
        marked_by: what says so.
        network: what the checkpoint adds, or None.
    """

    emo_attr: str
    num_clusters: int
    seed: int
    names: list[str]
    values: NDArray[np.float64]
    labels: NDArray[np.float64]
    table: pd.DataFrame
    others: dict[str, pd.Series]
    spread: pd.Series | None
    marked: pd.Series | None
    marked_by: str
    network: Network | None

    @property
    def levels(self) -> NDArray[np.int64]:
        """Y, 0..5, shape (N,)."""
        return metric_module.emotion_levels(self.labels)

    @property
    def cells(self) -> NDArray:
        """What tells the cells of the joint table apart: the cluster where it is known, else the value; shape (N,)."""
        return self.values if self.network is None else self.network.clusters

    @property
    def alpha(self) -> float:
        """Weight of the predicted level's part that the paper gives the attribute."""
        return metric_module.ALPHA[self.emo_attr]


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


def clusters_by_level(joint: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The clusters that have utterances, from the lowest mean level to the highest.

    Args:
        joint: p(x,y), shape (K, levels).
    Returns:
        (cluster numbers, shape (n,); mean level 0..5 of each of these, shape (n,)).
    """
    p = joint.sum(axis=1)
    seen = np.flatnonzero(p > 0)
    mean = joint[seen] @ np.arange(joint.shape[1]) / p[seen]
    order = np.argsort(mean, kind="stable")
    return seen[order], mean[order]


@dataclass
class Edge:
    """Where a bin of the curriculum ends.

    Attributes:
        bin: 1..9.
        size: utterances up to here.
        value: DeepMI of the last one.
        ties: utterances with this value.
        inside: those of them that the bin still takes; the file name decides which.
    """

    bin: int
    size: int
    value: float
    ties: int
    inside: int

    @property
    def cuts(self) -> bool:
        """Whether the edge runs through a tie group."""
        return self.inside < self.ties


def bin_edges(names: Sequence[str], values: NDArray[np.float64], seed: int = 0) -> list[Edge]:
    """The nine inner edges of the ten bins, high DeepMI first."""
    ranked = values[curriculum.training_order("deepmi", names, values, seed)]
    edges = []
    for number, size in enumerate(curriculum.bin_sizes(len(values))[:-1], start=1):
        value = ranked[size - 1]
        edges.append(
            Edge(number, size, float(value), int((ranked == value).sum()), int((ranked[:size] == value).sum()))
        )
    return edges


@dataclass
class Bin:
    """What one bin trains on, the bins before it included.

    Attributes:
        size: utterances.
        cells: distinct (cell, level) pairs.
        shares: share of each level, shape (6,).
        label_sd: standard deviation of the labels, population moments.
    """

    size: int
    cells: int
    shares: NDArray[np.float64]
    label_sd: float


def curriculum_bins(order: NDArray[np.int64], cells: NDArray, levels: NDArray, labels: NDArray) -> list[Bin]:
    """The ten bins of an order.

    Args:
        order: positions, the first to be trained first, shape (N,).
        cells: what tells cells of one level apart, shape (N,).
        levels: 0..5, shape (N,).
        labels: in label units, shape (N,).
    """
    codes = np.unique(cells, return_inverse=True)[1] * metric_module.NUM_LEVELS + levels
    bins = []
    for size in curriculum.bin_sizes(len(order)):
        rows = order[:size]
        shares = np.bincount(levels[rows], minlength=metric_module.NUM_LEVELS) / size
        bins.append(Bin(size, len(np.unique(codes[rows])), shares, float(labels[rows].std())))
    return bins


def first_bins(order: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(place in the order, from 1; first bin that has it, 1..10) of each utterance, shape (N,) each."""
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(1, len(order) + 1)
    return places, np.searchsorted(curriculum.bin_sizes(len(order)), places) + 1


def five_numbers(values: NDArray[np.float64]) -> FiveNumbers:
    """A distribution as a box; whiskers reach the lowest and the highest value, so that none is hidden."""
    low, q1, median, q3, high = np.percentile(values, [0, 25, 50, 75, 100])
    return FiveNumbers(float(low), float(q1), float(median), float(q3), float(high), float(values.mean()), len(values))


@dataclass
class Interval:
    """An estimate with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def _interval(value: float, drawn: ArrayLike) -> Interval:
    return Interval(value, *percentile_interval(np.asarray(drawn)))


def spearman(x: ArrayLike, y: ArrayLike, seed: int, resamples: int = RESAMPLES) -> Interval:
    """Spearman's rank correlation with its percentile bootstrap interval, ranks made anew in each resample.

    Args:
        x: shape (n,).
        y: shape (n,).
        seed: of the draws.
        resamples: bootstrap samples of n utterances.
    Returns:
        `Interval`; NaN where one of them is constant.
    Source: Davison & Hinkley, Bootstrap Methods and their Application (1997), section 5.3.
    """
    # A resample is how often it has each pair of values: ranks of weighted values need no sorting of their own.
    first, second = (np.unique(values, return_inverse=True)[1] for values in (x, y))
    pairs, counts = np.unique(np.column_stack([first, second]), axis=0, return_counts=True)
    draws = np.random.default_rng(derived_seed(seed, len(first))).multinomial
    total = int(counts.sum())
    chances = counts / total
    drawn = [_rank_correlation(pairs, draws(total, chances)) for _ in range(resamples)]
    return _interval(_rank_correlation(pairs, counts), drawn)


def _rank_correlation(pairs: NDArray[np.int64], counts: NDArray[np.int64]) -> float:
    """Spearman's correlation of pairs of positions 0, 1, ..., shape (m, 2), that occur so often, shape (m,)."""
    total = counts.sum()
    deviations = []
    for positions in pairs.T:
        mass = np.bincount(positions, counts)
        ranks = np.cumsum(mass) - mass / 2  # mid-ranks, less a half, which the mean takes away
        deviations.append((ranks - mass @ ranks / total)[positions])
    x, y = deviations
    scale = np.sqrt((counts @ (x * x)) * (counts @ (y * y)))
    return float(counts @ (x * y) / scale) if scale > 0 else float("nan")


def auc_lower(values: ArrayLike, marked: ArrayLike, seed: int, resamples: int = RESAMPLES) -> Interval:
    """Probability that a marked utterance has a lower value than an unmarked one, ties counted half.

    Args:
        values: shape (n,).
        marked: bool, shape (n,).
        seed: of the draws.
        resamples: bootstrap samples; utterances are drawn within the marked and within the others.
    Returns:
        `Interval`; .5 says that the mark tells nothing. NaN where one of the groups is empty.
    Source: the statistic of Mann & Whitney (1947), divided by the number of pairs.
    """
    positions = np.unique(values, return_inverse=True)[1]
    chosen = np.asarray(marked, dtype=bool)
    size = positions.max() + 1
    low, high = np.bincount(positions[chosen], minlength=size), np.bincount(positions[~chosen], minlength=size)
    if not low.sum() or not high.sum():
        return Interval(float("nan"), float("nan"), float("nan"))

    def auc(low: NDArray, high: NDArray) -> float:
        below = np.cumsum(low, axis=-1) - low / 2  # marked ones below each value, ties half
        return (below * high).sum(axis=-1) / (low.sum(axis=-1) * high.sum(axis=-1))

    rng = np.random.default_rng(derived_seed(seed, len(positions)))
    draws = [rng.multinomial(group.sum(), group / group.sum(), resamples) for group in (low, high)]
    return _interval(float(auc(low, high)), auc(*draws))


def most_disputed(spread: pd.Series, share: float = DISPUTED_SHARE) -> pd.Series:
    """Whether an utterance is among the share of them whose raters are furthest apart; ties by file name."""
    ranked = spread.index[np.lexsort((spread.index.to_numpy(dtype=str), -spread.to_numpy()))]
    return pd.Series(spread.index.isin(ranked[: round(share * len(spread))]), index=spread.index)


def standardised_differences(
    rows: NDArray[np.float32], clusters: NDArray[np.int64], num_clusters: int
) -> NDArray[np.float64]:
    """How far each cluster's mean of each acoustic feature is from the mean of the rest.

    Args:
        rows: z-normed features, shape (N, D); read in blocks.
        clusters: X, 0..K-1, shape (N,).
        num_clusters: K.
    Returns:
        Mean within minus mean over the rest, in standard deviations of Train, shape (K, D); 0 for a cluster without
        utterances, or with all.
    """
    sums = np.zeros((num_clusters, rows.shape[1]))
    for start in range(0, len(rows), BLOCK):
        block = np.asarray(rows[start : start + BLOCK])
        members = np.zeros((num_clusters, len(block)), dtype=np.float32)
        members[clusters[start : start + BLOCK], np.arange(len(block))] = 1
        sums += members @ block
    sizes = np.bincount(clusters, minlength=num_clusters)[:, None]
    rest = len(rows) - sizes
    differences = sums / np.maximum(sizes, 1) - (sums.sum(axis=0) - sums) / np.maximum(rest, 1)
    return np.where((sizes > 0) & (rest > 0), differences, 0.0)


def descriptor(name: str) -> str:
    """The low-level descriptor of an openSMILE functional: `mfcc_sma_de[3]_quartile1` -> `mfcc`.

    Coefficients, bands and time derivatives count as one: neighbours among them say nearly the same.
    """
    return name.split("_sma")[0] if "_sma" in name else name


def typical_features(differences: NDArray[np.float64], names: Sequence[str], count: int) -> list[int]:
    """Positions of a cluster's features of the largest standardised difference, at most one a low-level descriptor.

    Args:
        differences: shape (D,).
        names: D of them.
        count: how many at most.
    """
    found: dict[str, int] = {}
    for position in np.argsort(-np.abs(differences), kind="stable"):
        if len(found) == count or differences[position] == 0:
            break
        found.setdefault(descriptor(names[position]), int(position))
    return list(found.values())


def sample(count: int, seed: int, most: int = MOST_POINTS) -> NDArray[np.int64]:
    """Positions of all, or where there are more than `most`, of so many drawn evenly, in their order."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(derived_seed(seed, count)).choice(count, most, replace=False))


def gather_places(
    x: NDArray[np.float64], y: NDArray[np.float64], colour: NDArray[np.float64], names: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], list[str]]:
    """Utterances at one place as one point.

    Args:
        x: shape (n,).
        y: shape (n,).
        colour: shape (n,).
        names: n of them.
    Returns:
        (x, y, mean colour, number of utterances of each place, shape (places,); what each place is called).
    """
    places, first, of, counts = np.unique(
        np.column_stack([x, y]), axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    mean = np.bincount(of.ravel(), colour) / counts
    texts = [
        names[row] if count == 1 else f"{count:,} utterances, such as {names[row]}" for row, count in zip(first, counts)
    ]
    return places[:, 0], places[:, 1], mean, counts, texts


# ---------------------------------------------------------------------------------------------------------------------
# Panels


def _places(
    x_title: str, y_title: str, x: NDArray, y: NDArray, levels: NDArray[np.int64], names: Sequence[str]
) -> Points:
    """Points whose size says how many utterances lie there, and whose colour their mean level, 1 to 6."""
    x, y, colour, counts, texts = gather_places(x, y, levels + 1.0, names)
    return Points(
        x_title, y_title, x, y, texts, colour, (), "mean level, 1 to 6", counts, (1.0, float(metric_module.NUM_LEVELS))
    )


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _points_note(total: int) -> str:
    return f" Shown: {MOST_POINTS:,} of {total:,} utterances, drawn evenly." if total > MOST_POINTS else ""


def _cluster_names(found: Evidence, clusters: Sequence[int]) -> list[str]:
    sizes = np.bincount(found.network.clusters, minlength=found.num_clusters)
    return [f"c{number} · {sizes[number]:,}" for number in clusters]


def joint_section(found: Evidence) -> Section:
    """Clusters and levels: the joint table and what each cell adds to the information."""
    network, levels = found.network, found.levels
    joint = metric_module.joint_probability(network.clusters, levels, found.num_clusters, metric_module.NUM_LEVELS)
    clusters, _ = clusters_by_level(joint)
    rows = _cluster_names(found, clusters)
    attribute = ATTRIBUTE_NAMES[found.emo_attr]
    axes = {"x_title": f"level of {attribute}", "y_title": "cluster · utterances"}
    table, cells = joint[clusters], metric_module.information_of_cells(joint)[clusters]
    used = f"{len(clusters)} of {found.num_clusters} clusters have utterances."
    panels = [
        Panel(
            "joint",
            "Joint table p(x,y)",
            "Share of all training utterances in each pair of cluster and level; clusters from the lowest mean level "
            f"(top) to the highest. Rows that look alike tell nothing about {attribute}. {used}",
            HeatMap(rows=rows, columns=LEVEL_NAMES, values=table, unit="p(x,y)", **axes),
        ),
        Panel(
            "contribution",
            "Each cell's part of I(X;Y)",
            "p(x,y) ln(p(x,y)/(p(x)p(y))): positive where cluster and level occur together more often than by chance. "
            f"The cells add up to I(X;Y) = {network.information['I(X;Y)']:.5f} nats.",
            HeatMap(rows=rows, columns=LEVEL_NAMES, values=cells, unit="nats", **axes),
        ),
    ]
    if found.alpha > 0:
        predicted = metric_module.joint_probability(
            network.predicted_levels, levels, metric_module.NUM_LEVELS, metric_module.NUM_LEVELS
        )
        panels.append(
            Panel(
                "predicted",
                "Predicted level and level: each cell's part of I(Y';Y)",
                f"The other {found.alpha:g} of DeepMI for {attribute}: the same for the level that the network "
                f"predicts. The cells add up to {network.information['I(Yp;Y)']:.5f} nats.",
                HeatMap(
                    f"level of {attribute}",
                    "predicted level",
                    LEVEL_NAMES,
                    LEVEL_NAMES,
                    metric_module.information_of_cells(predicted),
                    "nats",
                ),
            )
        )
    return Section("joint", "Clusters and levels", panels=panels)


def distribution_section(found: Evidence, edges: list[Edge]) -> Section:
    """How the values are distributed, their ties, and the bin edges."""
    values, levels = found.values, found.levels
    counts, borders = np.histogram(values, bins=60 if np.ptp(values) > 1e-9 else 1)
    lines: dict[float, list[str]] = {}
    for edge in edges:
        lines.setdefault(edge.value, []).append(str(edge.bin))
    distinct, sizes = np.unique(values, return_counts=True)
    pairs, pair_sizes = np.unique(np.column_stack([values, levels]), axis=0, return_counts=True)
    cut = sum(edge.cuts for edge in edges)
    panels = [
        Panel(
            "distribution",
            "Distribution of DeepMI and the bin edges",
            "Utterances by DeepMI. A dotted line is the value at which a bin of the curriculum ends, counted from the "
            "highest values (right): left of line 1 the second bin goes on.",
            Histogram(
                "DeepMI, nats",
                "training utterances",
                borders,
                counts,
                {value: ", ".join(bins) for value, bins in lines.items()},
            ),
        ),
        Panel(
            "groups",
            "Groups of utterances with one value and level",
            "Each point is a group of utterances with the same DeepMI and the same level, as large as their number. "
            "Where alpha is 0, such a group is a cell of the joint table"
            + (
                f"; for {ATTRIBUTE_NAMES[found.emo_attr]} it is a cell of cluster, predicted level and level."
                if found.alpha > 0
                else "."
            ),
            Points(
                "DeepMI, nats",
                f"level of {ATTRIBUTE_NAMES[found.emo_attr]} (1 to 6)",
                pairs[:, 0],
                pairs[:, 1] + 1,
                [f"{size:,} utterances" for size in pair_sizes],
                np.log10(pair_sizes),
                (),
                "log10 of utterances",
                pair_sizes,
            ),
        ),
        Panel(
            "edges",
            "The tie groups at the bin edges",
            "The utterances that share the value at each edge: those that the bin still takes, and those that it "
            "leaves to the next. Which ones is decided by file name alone.",
            Bars(
                "edge",
                "utterances with that value",
                [str(edge.bin) for edge in edges],
                {
                    "inside the bin": [edge.inside for edge in edges],
                    "left to the next": [edge.ties - edge.inside for edge in edges],
                },
            ),
        ),
    ]
    text = [
        f"A value belongs to a cell, not to an utterance: {len(values):,} utterances have {len(distinct):,} distinct "
        f"values, the largest group {sizes.max():,} utterances. {cut} of the {len(edges)} inner bin edges cut a group."
    ]
    header = ["edge", "utterances up to it", "DeepMI there", "tie group", "inside the bin", "cut"]
    rows = [
        [
            edge.bin,
            f"{edge.size:,}",
            f"{edge.value:.5f}",
            f"{edge.ties:,}",
            f"{edge.inside:,}",
            "yes" if edge.cuts else "no",
        ]
        for edge in edges
    ]
    return Section(
        "distribution", "Distribution and ties", text, panels, [("Bin edges and the tie groups at them", header, rows)]
    )


def curriculum_section(found: Evidence, bins: dict[str, list[Bin]]) -> Section:
    """What the ten bins of each order hold."""
    numbers = list(range(1, curriculum.NUM_BINS + 1))
    if found.network is not None:
        what = "A cell is a (cluster, level) pair."
    else:
        what = "Without a checkpoint the clusters are not known; a cell is here a distinct (value, level) pair."
    attribute = ATTRIBUTE_NAMES[found.emo_attr]
    panels = [
        Panel(
            "bin_cells",
            "Cells in each bin",
            f"Number of cells that the utterances of a bin come from. {what} Few cells: the regressor sees few kinds "
            "of utterances.",
            Lines("bin", "cells", numbers, {order: [part.cells for part in of] for order, of in bins.items()}),
        ),
        Panel(
            "bin_spread",
            "Spread of the labels in each bin",
            f"Standard deviation of the {attribute} labels; the CCC of a bin without spread is hardly defined. All "
            "orders meet in bin 10, the whole split.",
            Lines(
                "bin",
                "standard deviation of labels",
                numbers,
                {order: [part.label_sd for part in of] for order, of in bins.items()},
            ),
        ),
        Panel(
            "bin_levels",
            "Levels in each bin",
            "Share of each level among the utterances of a bin; a blank row is a level that the bin does not have at "
            "all.",
            HeatMap(
                "bin",
                "level and order",
                [f"{name} {order}" for order in bins for name in LEVEL_NAMES],
                [str(number) for number in numbers],
                np.vstack([np.column_stack([part.shares for part in of]) for of in bins.values()]),
                "share",
            ),
        ),
    ]
    rows = [
        [
            order,
            f"{of[0].size:,}",
            of[0].cells,
            ", ".join(np.array(LEVEL_NAMES)[of[0].shares > 0]),
            f"{of[0].label_sd:.3f}",
            f"{of[-1].label_sd:.3f}",
        ]
        for order, of in bins.items()
    ]
    header = ["order", "utterances", "cells", "levels present", "label sd", "label sd of all"]
    return Section(
        "curriculum",
        "The curriculum's bins",
        ["A bin trains on its utterances and those of all bins before it, as training_Curriculum.py does."],
        panels,
        [("The first bin of each order", header, rows)],
    )


def _boxes(found: Evidence, groups: pd.Series, y_title: str, order: Sequence[str]) -> Boxes:
    """DeepMI by group, in the order given."""
    values = pd.Series(found.values, index=found.names)
    summaries = [five_numbers(values[groups.index[groups == name]].to_numpy()) for name in order]
    return Boxes("DeepMI, nats", y_title, list(order), summaries)


def _by_mean(found: Evidence, groups: pd.Series) -> list[str]:
    """Names of the groups, the highest mean DeepMI first; equal ones by name."""
    mean = pd.Series(found.values, index=found.names).groupby(groups).mean()
    return sorted(mean.index, key=lambda name: (-mean[name], name))


def _ends(order: list[str], these: str, those: str) -> tuple[list[str], str]:
    """As many groups of the highest and the lowest mean as a picture has room for, and what it says of them."""
    if len(order) <= MOST_GROUPS:
        return order, f"{these}, highest mean first."
    half = MOST_GROUPS // 2
    note = f"The {half} {those} of the highest mean and the {half} of the lowest, of {len(order):,}."
    return order[:half] + order[-half:], note


BOX_NOTE = (
    " Box: quartiles and median; dashes (in the files a diamond): mean; whiskers: lowest and highest; in brackets: n."
)


def groups_section(found: Evidence) -> Section:
    """DeepMI by level, emotion class and speaker."""
    train = found.table.loc[found.names]
    attribute = ATTRIBUTE_NAMES[found.emo_attr]
    levels = pd.Series([LEVEL_NAMES[level] for level in found.levels], index=found.names)
    panels = [
        Panel(
            "level",
            "DeepMI by level",
            f"Levels of {attribute} that are common, or whose clusters are pure, have the larger values: p(x,y) "
            "stands before the logarithm." + BOX_NOTE,
            _boxes(found, levels, f"level of {attribute}", [name for name in LEVEL_NAMES if (levels == name).any()]),
        )
    ]
    if "EmoClass" in train and (train["EmoClass"] != "").any():
        classes = train["EmoClass"].where(train["EmoClass"] != "", "(none)")
        order, note = _ends(_by_mean(found, classes), "Consensus classes", "consensus classes")
        note += " Small classes say little." + BOX_NOTE
        panels.append(Panel("class", "DeepMI by emotion class", note, _boxes(found, classes, "emotion class", order)))
    if train["SpkrID"].nunique() > 1:
        order, note = _ends(_by_mean(found, train["SpkrID"]), "Speakers", "speakers")
        note += " Differences mix voice, emotion and how many utterances a speaker has; this is no score of a speaker."
        panels.append(
            Panel("speaker", "DeepMI by speaker", note + BOX_NOTE, _boxes(found, train["SpkrID"], "speaker", order))
        )
    return Section("groups", "By level, class and speaker", panels=panels)


def disagreement_section(found: Evidence, correlation: Interval | None, auc: Interval | None) -> Section | None:
    """DeepMI against how far the raters are apart."""
    panels = []
    values = pd.Series(found.values, index=found.names)
    attribute = ATTRIBUTE_NAMES[found.emo_attr]
    if correlation is not None:
        names = [name for name in found.names if name in found.spread.index]
        rows = [names[row] for row in sample(len(names), found.seed)]
        levels = pd.Series(found.levels, index=found.names)
        panels.append(
            Panel(
                "disagreement",
                "DeepMI against rater disagreement",
                f"Standard deviation of the single {attribute} ratings of each utterance; a point is as large as the "
                f"number of utterances there. Spearman correlation "
                f"{correlation} over {len(names):,} utterances, 95 % bootstrap interval of utterances; those of one "
                f"speaker or rater are not independent, so it is rather too narrow.{_points_note(len(names))}",
                _places(
                    "standard deviation of the ratings",
                    "DeepMI, nats",
                    found.spread[rows].to_numpy(),
                    values[rows].to_numpy(),
                    levels[rows].to_numpy(),
                    rows,
                ),
            )
        )
    if auc is not None:
        names = [name for name in found.names if name in found.marked.index]
        groups = pd.Series(np.where(found.marked[names], "disputed", "the rest"), index=names)
        panels.append(
            Panel(
                "disputed",
                "Disputed utterances against the rest",
                f"Disputed: {found.marked_by}. AUC {auc}: how often a disputed utterance has a lower DeepMI than one "
                "of the rest, ties counted half; 0.5 is chance. Interval: 95 % bootstrap within "
                "both groups." + BOX_NOTE,
                _boxes(found, groups, "", [name for name in ("disputed", "the rest") if (groups == name).any()]),
            )
        )
    return Section("disagreement", "Rater disagreement", panels=panels) if panels else None


def attributes_section(found: Evidence) -> Section | None:
    """DeepMI of the attributes against each other."""
    series = {found.emo_attr: pd.Series(found.values, index=found.names)} | found.others
    present = [attribute for attribute in ATTRIBUTE_NAMES if attribute in series]
    panels = []
    levels = pd.Series(found.levels, index=found.names)
    for number, first in enumerate(present):
        for second in present[number + 1 :]:
            common = series[first].index.intersection(series[second].index).intersection(levels.index).sort_values()
            if len(common) < 2:
                continue
            correlation = spearman(series[first][common], series[second][common], found.seed)
            rows = common[sample(len(common), found.seed)]
            panels.append(
                Panel(
                    f"{first}_{second}".lower(),
                    f"DeepMI of {first} against {second}",
                    f"The {len(common):,} utterances that both files have. A point is as large as the number of "
                    f"utterances there, coloured by their mean level of {ATTRIBUTE_NAMES[found.emo_attr]}. Spearman "
                    f"correlation {correlation}." + _points_note(len(common)),
                    _places(
                        f"DeepMI of {first}, nats",
                        f"DeepMI of {second}, nats",
                        series[first][rows].to_numpy(),
                        series[second][rows].to_numpy(),
                        levels[rows].to_numpy(),
                        rows.tolist(),
                    ),
                )
            )
    text = ["Each attribute has networks and clusters of its own: an order for one is not an order for another."]
    return Section("attributes", "Act, Dom and Val", text, panels) if panels else None


def pca_section(found: Evidence) -> Section:
    """The clustered features in two dimensions."""
    from sklearn.decomposition import PCA

    network = found.network
    pca = PCA(n_components=2, svd_solver="full")
    places = pca.fit_transform(network.features.astype(np.float64))
    rows = sample(len(places), found.seed)
    shares = pca.explained_variance_ratio_
    texts = [found.names[row] for row in rows]
    position = {
        "x_title": f"component 1 ({_percent(shares[0])} of the variance)",
        "y_title": f"component 2 ({_percent(shares[1])})",
        "x": places[rows, 0],
        "y": places[rows, 1],
        "texts": texts,
    }
    used = np.unique(network.clusters)
    by_cluster = Points(
        **position,
        colour=np.searchsorted(used, network.clusters[rows]),
        categories=[f"c{number}" for number in used],
        colour_title="cluster",
        palette=CATEGORY_COLOURS,
    )
    by_level = Points(
        **position,
        colour=found.levels[rows],
        categories=LEVEL_NAMES,
        colour_title="level",
        palette=LEVEL_COLOURS,
    )
    by_value = Points(**position, colour=found.values[rows], categories=(), colour_title="DeepMI, nats")
    more = _points_note(len(places))
    repeated = f" {len(CATEGORY_COLOURS)} colours, used again and again." if len(used) > len(CATEGORY_COLOURS) else ""
    panels = [
        Panel(
            "pca_cluster", "Features by cluster", "X, the cluster that the head chooses." + repeated + more, by_cluster
        ),
        Panel(
            "pca_level",
            "Features by level",
            "Y, the level of the label: where levels separate, so may clusters." + more,
            by_level,
        ),
        Panel(
            "pca_deepmi",
            "Features by DeepMI",
            "Where the utterances that come first in the curriculum lie." + more,
            by_value,
        ),
    ]
    text = [
        "The 256 features that k-means sees, on their first two principal components, which hold "
        f"{_percent(shares.sum())} of the variance"
        + ("; clusters that overlap here may be apart in the others." if shares.sum() < 0.995 else ".")
    ]
    return Section("pca", "The clustered features", text, panels)


def clusters_section(found: Evidence) -> Section:
    """Size, mean labels and typical acoustic features of each cluster."""
    network = found.network
    joint = metric_module.joint_probability(
        network.clusters, found.levels, found.num_clusters, metric_module.NUM_LEVELS
    )
    clusters, _ = clusters_by_level(joint)
    labels = found.table.loc[found.names]
    columns = [attribute for attribute in ATTRIBUTE_NAMES if f"Emo{attribute}" in labels]
    numbers = {attribute: pd.to_numeric(labels[f"Emo{attribute}"], errors="coerce").to_numpy() for attribute in columns}
    values = pd.Series(found.values)
    rows, first_features = [], []
    for cluster in clusters:
        members = np.flatnonzero(network.clusters == cluster)
        difference = network.differences[cluster]
        enough = len(members) >= FEWEST_MEMBERS
        typical = typical_features(difference, network.feature_names, TYPICAL_FEATURES) if enough else []
        first_features += typical[:1]
        means = [numbers[attribute][members] for attribute in columns]
        rows.append(
            [
                f"c{cluster}",
                f"{len(members):,}",
                *(f"{np.nanmean(mean):.2f}" if np.isfinite(mean).any() else "" for mean in means),
                f"{values[members].mean():.4f}",
                [f"{difference[at]:+.2f} {network.feature_names[at]}" for at in typical]
                if enough
                else f"fewer than {FEWEST_MEMBERS} utterances",
            ]
        )
    sizes = {
        f"level {name}": np.round(joint[clusters, level] * len(found.names)) for level, name in enumerate(LEVEL_NAMES)
    }
    panels = [
        Panel(
            "cluster_sizes",
            "Size of each cluster",
            "Utterances of each cluster by level, clusters from the lowest mean level to the highest.",
            Bars("cluster", "training utterances", [f"c{cluster}" for cluster in clusters], sizes, LEVEL_COLOURS),
        )
    ]
    if shown := sorted(set(first_features)):
        panels.append(
            Panel(
                "cluster_features",
                "The clusters' most typical acoustic features",
                "The feature that sets each cluster most apart, against all clusters: mean within the cluster minus "
                "mean over the rest, in standard deviations of Train (features are clipped at 3).",
                HeatMap(
                    "cluster",
                    "feature",
                    [network.feature_names[at] for at in shown],
                    [f"c{cluster}" for cluster in clusters],
                    network.differences[np.ix_(clusters, shown)].T,
                    "standard deviations",
                ),
            )
        )
    header = ["cluster", "utterances", *(f"mean {name}" for name in columns), "mean DeepMI", "typical features"]
    text = [
        "Typical features: the largest standardised differences (mean within the cluster minus mean over the rest, in "
        "standard deviations of Train), at most one of each low-level descriptor, its bands, coefficients and "
        "time derivatives counted together. They describe; speaker and channel are in them as well as emotion."
    ]
    return Section("clusters", "What is in the clusters", text, panels, [("Clusters by mean level", header, rows)])


# ---------------------------------------------------------------------------------------------------------------------
# The whole report


@dataclass
class Report:
    """What the page says.

    Attributes:
        findings: sentences with the headline figures.
        warnings: what a reader must know before believing them.
        sections: pictures and small tables.
        correlation: Spearman of DeepMI and rater disagreement, or None.
        auc: as from `auc_lower`, or None.
    """

    findings: list[str]
    warnings: list[str]
    sections: list[Section]
    correlation: Interval | None
    auc: Interval | None

    @property
    def panels(self) -> Iterator[Panel]:
        """Every picture."""
        return (panel for section in self.sections for panel in section.panels)


def mismatch(found: Evidence) -> str:
    """What differs between the DeepMI file and the checkpoint's own values; empty where they agree."""
    if found.network is None:
        return ""
    difference = np.abs(found.values - found.network.values)
    other = int((difference > SAME_VALUE).sum())
    if not other:
        return ""
    return (
        f"{other:,} of {len(difference):,} values of the DeepMI file differ from those computed from "
        f"{found.network.source}, by up to {difference.max():.5f} nats: the file is of another checkpoint, alpha or "
        "label file, or of the original program, whose dropout stays on and makes values random. DeepMI is shown as "
        "the file has it, clusters and information as the checkpoint has them; they do not belong together."
    )


def _findings(
    found: Evidence, edges: list[Edge], bins: dict[str, list[Bin]], correlation: Interval | None, auc: Interval | None
) -> list[str]:
    attribute = ATTRIBUTE_NAMES[found.emo_attr]
    lines = []
    if found.network is not None:
        information = found.network.information
        levels = np.bincount(found.levels, minlength=metric_module.NUM_LEVELS) / len(found.levels)
        entropy = metric_module.entropy(levels)
        sizes = np.bincount(found.network.clusters)
        used = int((sizes > 0).sum())
        lines.append(
            f"{used} of {_counted(found.num_clusters, 'cluster')} have training utterances; the largest has "
            f"{_percent(sizes.max() / sizes.sum())} of them."
            + (" DeepMI is as coarse as these clusters are." if 2 * used <= found.num_clusters else "")
        )
        share = f", {_percent(information['I(X;Y)'] / entropy)} of that level's entropy" if entropy > 0 else ""
        lines.append(
            f"I(X;Y) = {information['I(X;Y)']:.3f} nats: what the clusters tell about the level of {attribute}{share} "
            f"(H(Y) = {entropy:.3f} nats). The predicted level tells I(Y';Y) = {information['I(Yp;Y)']:.3f} nats"
            + (", which has no part in DeepMI here (alpha 0)" if not found.alpha else "")
            + ". On few utterances both are too high: an information estimated from counts is biased upwards."
        )
    first, even = bins["deepmi"][0], bins["deepmi-balanced"][0]
    lines.append(
        f"The first bin of the published order has {first.size:,} utterances from {_counted(first.cells, 'cell')} and "
        f"{int((first.shares > 0).sum())} of {int((bins['deepmi'][-1].shares > 0).sum())} levels; its labels have a "
        f"standard deviation of {first.label_sd:.2f}, those of the balanced order {even.label_sd:.2f}, those of the "
        f"whole split {bins['deepmi'][-1].label_sd:.2f}."
    )
    cut = sum(edge.cuts for edge in edges)
    widest = max(edges, key=lambda edge: edge.ties)
    lines.append(
        f"{len(found.values):,} utterances have {len(np.unique(found.values)):,} distinct values; {cut} of "
        f"{len(edges)} bin edges cut a tie group, of up to {widest.ties:,} utterances."
    )
    if correlation is not None:
        lines.append(
            f"DeepMI and rater disagreement: Spearman correlation {correlation}. Below 0: what raters dispute has "
            "lower values."
        )
    if auc is not None:
        lines.append(
            f"AUC {auc}: so often has a disputed utterance ({found.marked_by}) a lower DeepMI than one of the rest, "
            "ties counted half; 0.5 is chance."
        )
    return lines


def build(found: Evidence) -> Report:
    """All panels, tables and sentences that the evidence allows."""
    edges = bin_edges(found.names, found.values)
    orders = {
        order: curriculum.training_order(order, found.names, found.values, found.seed, found.levels)
        for order in SHOWN_ORDERS
    }
    bins = {order: curriculum_bins(rows, found.cells, found.levels, found.labels) for order, rows in orders.items()}
    values = pd.Series(found.values, index=found.names)
    correlation = auc = None
    if found.spread is not None and len(common := values.index.intersection(found.spread.index).sort_values()) > 1:
        correlation = spearman(found.spread[common], values[common], found.seed)
    if found.marked is not None and len(common := values.index.intersection(found.marked.index).sort_values()):
        auc = auc_lower(values[common], found.marked[common], found.seed)
    sections = [
        joint_section(found) if found.network else None,
        distribution_section(found, edges),
        curriculum_section(found, bins),
        groups_section(found),
        disagreement_section(found, correlation, auc),
        attributes_section(found),
        pca_section(found) if found.network else None,
        clusters_section(found) if found.network else None,
    ]
    return Report(
        _findings(found, edges, bins, correlation, auc),
        [text for text in (mismatch(found),) if text],
        [section for section in sections if section is not None],
        correlation,
        auc,
    )
