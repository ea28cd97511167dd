"""The charts, small tables and findings of the report; the explanations are in page.html."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import altair as alt
import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from deepmi import curriculum
from deepmi.metric import NUM_LEVELS, emotion_levels, entropy, information_of_cells, joint_probability
from deepmi.process import one_line
from tools.report import charts, measures
from tools.report.evidence import ATTRIBUTE_NAMES, RESTARTS, Evidence
from tools.report.measures import LEVEL_NAMES, Interval

SHOWN_ORDERS = ("deepmi", "deepmi-balanced", "reverse", "random")
MOST_POINTS = 5000  # in a scatter plot: more points are slow to draw and hide each other
MOST_GROUPS = 40  # in a chart of boxes
TYPICAL_FEATURES = 5  # features listed per cluster
FEWEST_MEMBERS = 5  # utterances of a cluster whose features are listed
SAME_VALUE = 1.5e-5  # tolerance between a recomputed DeepMI and one rounded to 5 decimals
VALUE = "DeepMI, nats"

Charts = dict[str, alt.LayerChart]  # by name, which is part of a file name: lower case, digits, underscores


@dataclass
class Report:
    """The content of the report."""

    found: Evidence
    edges: pd.DataFrame  # as from `measures.bin_edges`
    first_bins: pd.DataFrame  # as from `first_bin_table`
    charts: Charts = field(default_factory=dict)
    clusters: pd.DataFrame | None = None  # as from `cluster_charts`
    variance: float = 0.0  # as from `pca_charts`
    findings: list[str] = field(default_factory=list)  # the main results, one sentence each
    warnings: list[str] = field(default_factory=list)  # reasons to doubt the results
    correlation: Interval | None = None  # Spearman correlation of DeepMI and rater disagreement
    auc: Interval | None = None  # of disputed utterances
    pairs: dict[str, tuple[Interval, int]] = field(default_factory=dict)  # attributes -> correlation, utterances


def joint_charts(found: Evidence) -> Charts:
    """The joint tables, and the contribution of each cell to the information."""
    network, levels = found.network, found.train["level"]
    joint = joint_probability(network.clusters, levels, found.num_clusters, NUM_LEVELS)
    clusters = measures.clusters_by_level(joint)
    sizes = np.bincount(network.clusters, minlength=found.num_clusters)
    rows = [f"c{cluster} · {sizes[cluster]:,}" for cluster in clusters]
    titles = (f"level of {found.attribute}", "cluster · utterances")
    shares, cells = (pd.DataFrame(of[clusters], rows, LEVEL_NAMES) for of in (joint, information_of_cells(joint)))
    drawn = {
        "joint": charts.heat_map("Joint table p(x,y)", shares, *titles, "p(x,y)"),
        "contribution": charts.heat_map("Part of I(X;Y) in each cell", cells, *titles, "nats"),
    }
    if found.alpha > 0:
        joint = joint_probability(emotion_levels(network.prediction), levels, NUM_LEVELS, NUM_LEVELS)
        cells = pd.DataFrame(information_of_cells(joint), LEVEL_NAMES, LEVEL_NAMES)
        title = "Predicted level and level: part of I(Y';Y) in each cell"
        drawn["predicted"] = charts.heat_map(title, cells, titles[0], "predicted level", "nats")
    return drawn


def distribution_charts(found: Evidence, edges: pd.DataFrame) -> Charts:
    """The distribution of the values, their ties, and the bin edges."""
    train, edge = found.train.rename_axis("file").reset_index(), edges["edge"].astype(str)
    lines = edges.assign(name=edge).groupby("value", as_index=False)["name"].agg(", ".join)
    groups = train.groupby(["value", "level"] if found.has_labels else ["value"], as_index=False)
    groups = groups.agg(file=("file", "first"), utterances=("file", "size")).rename(columns={"value": "x"})
    groups["y"] = groups.pop("level") + 1 if found.has_labels else groups["utterances"]
    title = "Groups with the same value" + (" and level" if found.has_labels else "")
    y_title = f"level of {found.attribute} (1 to 6)" if found.has_labels else "utterances with that value"
    taken = pd.DataFrame({"inside the bin": edges["inside"], "in the next bin": edges["ties"] - edges["inside"]})
    taken, sizes = taken.set_axis(edge), "utterances with that value"
    return {
        "distribution": charts.histogram(
            "Distribution of DeepMI and the bin edges", train["value"], lines, VALUE, "training utterances"
        ),
        "groups": charts.points(title, groups, VALUE, y_title),
        "edges": charts.bars("Tie groups at the bin edges", taken, "edge", sizes, charts.CATEGORY_COLORS),
    }


def order_bins(found: Evidence) -> pd.DataFrame:
    """`measures.curriculum_bins` of each order that the evidence allows, with its name in the column `order`."""
    train, bins = found.train, []
    levels = train["level"].to_numpy() if found.has_labels else None
    for order in SHOWN_ORDERS:  # "deepmi-balanced" needs levels
        if found.has_labels or order != "deepmi-balanced":
            rows = curriculum.training_order(order, train.index.tolist(), train["value"].to_numpy(), found.seed, levels)
            bins.append(measures.curriculum_bins(train.iloc[rows]).assign(order=order))
    return pd.concat(bins, ignore_index=True)


def first_bin_table(bins: pd.DataFrame) -> pd.DataFrame:
    """The first bin of each order."""
    first, whole = (bins[bins["bin"] == number].reset_index() for number in (1, curriculum.NUM_BINS))
    table = first[["order", "utterances", "cells"]]
    if "label_sd" in bins:
        levels = [", ".join(level for level in LEVEL_NAMES if row[level] > 0) for _, row in first.iterrows()]
        spread, spread_of_all = (of["label_sd"].map("{:.3f}".format) for of in (first, whole))
        columns = {"levels present": levels, "label sd": spread, "label sd of all": spread_of_all}
        table = table.assign(**columns)
    return table


def curriculum_charts(bins: pd.DataFrame) -> Charts:
    """The content of the ten bins of each order."""
    drawn = {"bin_cells": charts.lines("Cells in each bin", bins, "cells", "cells")}
    if "label_sd" in bins:
        title = "standard deviation of labels"
        drawn["bin_spread"] = charts.lines("Spread of the labels in each bin", bins, "label_sd", title)
        shares = {
            f"{level} {order}": rows.set_index("bin")[level]
            for order, rows in bins.groupby("order", sort=False)
            for level in LEVEL_NAMES
        }
        shares = pd.DataFrame(shares).T.rename(columns=str)
        drawn["bin_levels"] = charts.heat_map("Levels in each bin", shares, "bin", "level and order", "share")
    return drawn


def group_charts(found: Evidence) -> Charts:
    """DeepMI by level, emotion class and speaker."""
    train = found.train
    by_level = train["value"].groupby(train["level"]).describe().rename(index=dict(enumerate(LEVEL_NAMES)))
    drawn = {"level": charts.boxes("DeepMI by level", by_level, VALUE, f"level of {found.attribute}")}
    for name, column, title in (("class", "EmoClass", "emotion class"), ("speaker", "SpkrID", "speaker")):
        if column in train and train[column].nunique() > (column == "SpkrID") and train[column].any():
            summary = train["value"].groupby(train[column].replace("", "(none)").map(one_line)).describe()
            summary = summary.sort_values("mean", ascending=False, kind="stable")
            if len(summary) > MOST_GROUPS:
                summary = pd.concat([summary[: MOST_GROUPS // 2], summary[-MOST_GROUPS // 2 :]])
            drawn[name] = charts.boxes(f"DeepMI by {title}", summary, VALUE, title)
    return drawn


def _scatter(found: Evidence, title: str, x: pd.Series, y: pd.Series, x_title: str, y_title: str) -> alt.LayerChart:
    """Utterances that have both values; utterances at the same place are one point, colored by their mean level."""
    rows = found.train.loc[x.index[measures.sample(len(x), found.seed, MOST_POINTS)]]
    table = pd.DataFrame({"x": x[rows.index], "y": y[rows.index], "file": rows.index})
    columns = {"file": ("file", "first"), "utterances": ("file", "size")}
    if found.has_labels:
        table, columns = table.assign(level=rows["level"] + 1), columns | {"color": ("level", "mean")}
    places = table.groupby(["x", "y"], as_index=False).agg(**columns)
    color = f"mean level of {found.attribute}"
    return charts.points(title, places, x_title, y_title, color, limits=(1, NUM_LEVELS))


def pair_charts(found: Evidence) -> Iterator[tuple[str, alt.LayerChart, Interval, int]]:
    """Name, chart, Spearman correlation and number of utterances for each pair of attributes that have DeepMI."""
    train = found.train.rename(columns={"value": f"DeepMI {found.emo_attr}"})
    present = [attribute for attribute in ATTRIBUTE_NAMES if f"DeepMI {attribute}" in train]
    for first, second in itertools.combinations(present, 2):
        common = train[[f"DeepMI {first}", f"DeepMI {second}"]].dropna()
        if len(common) > 1:
            x, y = (column for _, column in common.items())
            titles = (f"DeepMI of {first}, nats", f"DeepMI of {second}, nats")
            chart = _scatter(found, f"DeepMI of {first} against {second}", x, y, *titles)
            yield f"{first}_{second}".lower(), chart, measures.spearman(x, y, found.seed), len(common)


def pca_charts(found: Evidence) -> tuple[Charts, float]:
    """The clustered features on their first two principal components, and the share of variance these explain."""
    pca = PCA(n_components=2, svd_solver="full")
    places = pca.fit_transform(found.network.features.astype(np.float64))
    rows = measures.sample(len(places), found.seed, MOST_POINTS)
    train = found.train.iloc[rows]
    table = pd.DataFrame({"x": places[rows, 0], "y": places[rows, 1], "file": train.index})
    shares = pca.explained_variance_ratio_
    titles = [f"component {number} ({share:.0%} of the variance)" for number, share in enumerate(shares, start=1)]
    used = [f"c{cluster}" for cluster in np.unique(found.network.clusters)]
    clusters = table.assign(color=[f"c{cluster:.0f}" for cluster in train["cluster"]])
    levels = table.assign(color=[LEVEL_NAMES[level] for level in train["level"]])
    values, palette = table.assign(color=train["value"].to_numpy()), charts.CATEGORY_COLORS
    drawn = {
        "pca_cluster": charts.points("Features by cluster", clusters, *titles, "cluster", used, palette),
        "pca_level": charts.points("Features by level", levels, *titles, "level", LEVEL_NAMES),
        "pca_deepmi": charts.points("Features by DeepMI", values, *titles, VALUE),
    }
    return drawn, shares.sum()


def cluster_charts(found: Evidence) -> tuple[Charts, pd.DataFrame]:
    """Charts and a table of the size, mean labels and typical acoustic features of each cluster."""
    network, train = found.network, found.train
    joint = joint_probability(network.clusters, train["level"], found.num_clusters, NUM_LEVELS)
    clusters = measures.clusters_by_level(joint)
    names, rows, first_features = [f"c{cluster}" for cluster in clusters], [], set()
    labels = [name for name in ATTRIBUTE_NAMES if name in train]
    for name, cluster in zip(names, clusters):
        members, difference, typical = train[train["cluster"] == cluster], network.differences[cluster], []
        if len(members) >= FEWEST_MEMBERS:
            typical = measures.typical_features(difference, network.feature_names, TYPICAL_FEATURES)
        first_features.update(typical[:1])
        features = [f"{difference[at]:+.2f} {network.feature_names[at]}" for at in typical]
        row = {"cluster": name, "utterances": len(members)}
        row |= {f"mean {label}": f"{members[label].mean():.2f}".replace("nan", "") for label in labels}
        row |= {"mean DeepMI": f"{members['value'].mean():.4f}"}
        rows.append(row | {"typical features": "\n".join(features) or f"fewer than {FEWEST_MEMBERS} utterances"})
    sizes = np.round(joint[clusters] * len(train)).astype(int)
    sizes = pd.DataFrame(sizes, names, [f"level {level}" for level in LEVEL_NAMES])
    title, palette = "training utterances", charts.LEVEL_COLORS
    drawn = {"cluster_sizes": charts.bars("Size of each cluster", sizes, "cluster", title, palette)}
    if shown := sorted(first_features):
        features = [network.feature_names[at] for at in shown]
        differences = pd.DataFrame(network.differences[np.ix_(clusters, shown)].T, features, names)
        title = "The most typical acoustic features of the clusters"
        drawn["cluster_features"] = charts.heat_map(title, differences, "cluster", "feature", "standard deviations")
    return drawn, pd.DataFrame(rows)


def is_by_kmeans(found: Evidence) -> bool:
    """Whether the values are those of k-means of the checkpoint's features."""
    by_kmeans = found.network.kmeans_values
    return by_kmeans is not None and np.abs(found.train["value"].to_numpy() - by_kmeans).max() <= SAME_VALUE


def mismatch(found: Evidence) -> list[str]:
    """A warning if the values of the DeepMI file differ from those of the checkpoint."""
    difference = np.abs(found.train["value"].to_numpy() - found.network.values)
    if (count := int((difference > SAME_VALUE).sum())) == 0 or is_by_kmeans(found):
        return []
    return [
        f"{count:,} of {len(difference):,} values of the DeepMI file differ from those computed from "
        f"{found.network.source}, by up to {difference.max():.5f} nats. The file was made with a different checkpoint, "
        "alpha or label file, from k-means, or by the original program, whose dropout stays on. DeepMI is "
        "from the file, clusters and information are from the checkpoint; they do not belong together."
    ]


def information_findings(found: Evidence) -> list[str]:
    """The main results on clusters and information."""
    sizes, information = np.bincount(found.network.clusters), found.network.information
    used, i_x = int((sizes > 0).sum()), information["I(X;Y)"]
    h_y = entropy(np.bincount(found.train["level"]) / len(found.train))
    by_kmeans = (
        f" The values are the mean over {RESTARTS} k-means of the network's features. Charts, cells and the column of "
        "clusters below are of the cluster head, and do not explain them."
    )
    coarse = " DeepMI is as coarse as these clusters." if 2 * used <= found.num_clusters else ""
    return [
        f"{used} of {found.num_clusters} clusters of the cluster head have training utterances; the largest has "
        f"{sizes.max() / sizes.sum():.0%} of them." + (by_kmeans if is_by_kmeans(found) else coarse),
        f"I(X;Y) = {i_x:.3f} nats: the information of the clusters about the level of {found.attribute}"
        + (f", {i_x / h_y:.0%} of its entropy" if h_y > 0 else "")
        + f" (H(Y) = {h_y:.3f} nats). For the predicted level, I(Y';Y) = {information['I(Yp;Y)']:.3f} nats"
        + ("" if found.alpha else ", which is not part of DeepMI here (alpha 0)")
        + ". With few utterances both are too high: information estimated from counts is biased upwards.",
    ]


def bin_findings(found: Evidence, edges: pd.DataFrame, bins: pd.DataFrame) -> list[str]:
    """The main results on the first bin and on ties."""
    first, whole = (bins[bins["bin"] == number].set_index("order").T for number in (1, curriculum.NUM_BINS))
    start, train = first["deepmi"], found.train
    text = f"The first bin of the DeepMI order has {start['utterances']:,.0f} utterances "
    if found.has_labels:
        levels, all_levels = ((of["deepmi"][list(LEVEL_NAMES)] > 0).sum() for of in (first, whole))
        text += (
            f"(cells: {start['cells']:,.0f}; levels: {levels} of {all_levels}). Standard deviation of its labels: "
            f"{start['label_sd']:.2f}; in the balanced order {first['deepmi-balanced']['label_sd']:.2f}, in the whole "
            f"split {whole['deepmi']['label_sd']:.2f}."
        )
    else:
        text += f"(distinct values: {start['cells']:,.0f})."
    return [
        text,
        f"{len(train):,} utterances have {train['value'].nunique():,} distinct values; {edges['cut'].sum()} of "
        f"{len(edges)} bin edges cut a tie group, of up to {edges['ties'].max():,} utterances.",
    ]


def build(found: Evidence) -> Report:
    """All charts, tables and findings that the evidence allows."""
    train = found.train
    edges, bins = measures.bin_edges(train["value"].to_numpy()), order_bins(found)
    report = Report(found, edges, first_bin_table(bins), distribution_charts(found, edges) | curriculum_charts(bins))
    if found.network:
        of_features, report.variance = pca_charts(found)
        of_clusters, report.clusters = cluster_charts(found)
        report.charts |= joint_charts(found) | of_features | of_clusters
        report.findings += information_findings(found)
        report.warnings += mismatch(found)
    report.findings += bin_findings(found, edges, bins)
    if found.has_labels:
        report.charts |= group_charts(found)
    if "spread" in train and len(rated := train[train["spread"].notna()]) > 1:
        x, y, title = rated["spread"], rated["value"], "standard deviation of the ratings"
        report.charts["disagreement"] = _scatter(found, "DeepMI against rater disagreement", x, y, title, VALUE)
        report.correlation = measures.spearman(x, y, found.seed)
        report.findings.append(
            f"DeepMI and rater disagreement: Spearman correlation {report.correlation}. Below 0: disputed utterances "
            "have lower values."
        )
    if "disputed" in train and len(rated := train[train["disputed"].notna()]):
        groups = rated["value"].groupby(rated["disputed"].map({1.0: "disputed", 0.0: "undisputed"})).describe()
        report.charts["disputed"] = charts.boxes("Disputed and undisputed utterances", groups, VALUE, "")
        report.auc = measures.auc_lower(rated["value"], rated["disputed"], found.seed)
        report.findings.append(
            f"AUC {report.auc}: probability that a disputed utterance ({found.disputed_by}) has lower DeepMI than an "
            "undisputed one, ties counted half; 0.5 is chance."
        )
    for name, chart, correlation, count in pair_charts(found):
        report.charts[name], report.pairs[name] = chart, (correlation, count)
    return report
