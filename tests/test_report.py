"""The DeepMI report: its figures against hand-computed ones, and its files."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from conftest import SHARED, needs_shared, read_rows, write_labels

from deepmi import metric as metric_module
from deepmi.process import UserError
from tools import feature_sets
from tools.report import charts, measures, page

CHECKPOINT_CHARTS = {
    "joint", "contribution", "predicted", "pca_cluster", "pca_level", "pca_deepmi", "cluster_sizes", "cluster_features",
}  # fmt: skip
JSON_CHARTS = {"distribution", "groups", "edges", "bin_cells"}
LABEL_CHARTS = JSON_CHARTS | {"bin_spread", "bin_levels", "level", "class", "speaker"}
HOSTILE = ("<img src=x onerror=alert(1)>", "</script>")


def test_clusters_are_sorted_by_their_mean_level_without_empty_ones():
    joint = np.array([[0.0, 0.2], [0.3, 0.0], [0.0, 0.0], [0.25, 0.25]])
    assert measures.clusters_by_level(joint).tolist() == [1, 3, 0]


def test_a_bin_edge_knows_the_tie_group_that_it_cuts():
    edges = measures.bin_edges(np.array([3.0] * 14 + [5.0] * 3 + [4.0] * 3))
    found = [tuple(row) for row in edges[:4].to_numpy().tolist()]
    assert found == [(1, 2, 5, 3, 2, True), (2, 4, 4, 3, 1, True), (3, 6, 4, 3, 3, False), (4, 8, 3, 14, 2, True)]
    assert edges["utterances"].tolist() == list(range(2, 20, 2))


def test_a_bin_of_the_curriculum_holds_the_bins_before_it():
    cell = [(cluster, level) for cluster in (3, 7) for level in (2, 1) * 5]
    labels = np.arange(20)[::-1] / 4
    bins = measures.curriculum_bins(pd.DataFrame({"cell": cell, "level": [2, 1] * 10, "label": labels}))
    assert bins["utterances"].tolist() == list(range(2, 21, 2))
    assert bins["cells"].tolist() == [2, 2, 2, 2, 2, 4, 4, 4, 4, 4]
    assert bins.loc[0, list(measures.LEVEL_NAMES)].tolist() == [0, 0.5, 0.5, 0, 0, 0]
    assert bins["label_sd"][0] == pytest.approx(0.125) and bins["label_sd"][9] == pytest.approx(labels.std())
    assert list(measures.curriculum_bins(pd.DataFrame({"cell": cell}))) == ["bin", "utterances", "cells"]


def test_spearman_is_scipys_with_ties_and_has_the_interval_of_a_bootstrap():
    rng = np.random.default_rng(3)
    x = rng.normal(size=200).round(1)
    y = (x + rng.normal(size=200)).round()
    found = measures.spearman(x, y, 31)
    assert found.value == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    drawn = [scipy.stats.spearmanr(x[rows], y[rows]).statistic for rows in rng.integers(0, 200, (600, 200))]
    assert [found.low, found.high] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.02)
    assert np.isnan(measures.spearman(x, np.ones(200), 31, 20).value)


def test_auc_counts_pairs_and_half_of_the_ties():
    values, marked = [0.1, 0.3, 0.3, 0.2, 0.5], [True, True, False, False, False]
    # of the six pairs .1 wins three, .3 wins over .5 and ties with .3
    assert measures.auc_lower(values, marked, 31).value == pytest.approx(4.5 / 6)
    rng = np.random.default_rng(0)
    values, marked = rng.normal(size=120).round(1), np.arange(120) < 40
    found = measures.auc_lower(values, marked, 31)
    expected = scipy.stats.mannwhitneyu(values[~marked], values[marked]).statistic / (40 * 80)
    assert found.value == pytest.approx(expected)
    drawn = [measures.auc_lower(values[rows], marked[rows], 31, 1).value for rows in rng.integers(0, 120, (400, 120))]
    assert [found.low, found.high] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.03)
    assert np.isnan(measures.auc_lower([1.0], [True], 31).value)


def test_the_most_disputed_are_a_share_and_ties_go_by_name():
    spread = pd.Series([1.0, 2.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], index=list("dcbaefghij"))
    marked = measures.most_disputed(spread, 0.3)
    assert marked.index[marked].tolist() == ["c", "b", "a"]


def test_standardised_differences_are_of_means_within_and_over_the_rest(monkeypatch):
    monkeypatch.setattr(measures, "BLOCK", 3)
    rows = np.random.default_rng(0).normal(size=(11, 4)).astype(np.float32)
    clusters = np.array([0, 2, 2, 0, 0, 2, 2, 2, 0, 2, 0])
    found = measures.standardised_differences(rows, clusters, 3)
    expected = rows[clusters == 0].mean(axis=0) - rows[clusters != 0].mean(axis=0)
    assert found[0] == pytest.approx(expected, abs=1e-6) and found[2] == pytest.approx(-expected, abs=1e-6)
    assert not found[1].any()
    assert not measures.standardised_differences(rows, np.zeros(11, dtype=int), 1).any()


def test_typical_features_are_of_different_descriptors():
    names = ["mfcc_sma[1]_amean", "mfcc_sma_de[2]_quartile1", "F0final_sma_amean", "loudness_sma3_amean", "feature 4"]
    assert measures.typical_features(np.array([-3.0, 2.5, 2.0, 0.0, -0.1]), names, 3) == [0, 2, 4]


def test_features_have_the_names_of_their_set():
    names = feature_sets.feature_names("eGeMAPSv02", 88)
    assert names[0] == "F0semitoneFrom27.5Hz_sma3nz_amean" and len(names) == 88
    for unknown in ("eGeMAPSv02", "wavlm-0123456789ab"):
        assert feature_sets.feature_names(unknown, 2) == ["feature 0", "feature 1"]


def test_a_sample_is_drawn_evenly_and_by_seed():
    assert measures.sample(5, 31, 100).tolist() == [0, 1, 2, 3, 4]
    drawn = measures.sample(1000, 31, 100)
    assert len(set(drawn)) == 100 and (np.diff(drawn) > 0).all()
    assert (drawn == measures.sample(1000, 31, 100)).all() and (drawn != measures.sample(1000, 1, 100)).any()


def test_recordings_are_found_with_any_ending(tmp_path):
    audios = tmp_path / "my corpus" / "Audios"
    audios.mkdir(parents=True)
    for name in ("a.wav", "a.flac", "b 1.flac", "c.x.ogg", "notes.txt"):
        (audios / name).touch()
    found = page.find_recordings(tmp_path / "my corpus", None, tmp_path / "results")
    assert found.base == "../my%20corpus/Audios/"
    assert page.recording_names(["a.wav", "b 1.wav", "c.x.wav", "d.wav"], found) == [0, "b 1.flac", "c.x.ogg", None]
    assert page.find_recordings(None, str(audios), tmp_path).base == "my%20corpus/Audios/"
    assert page.find_recordings(None, None, tmp_path) == ("", {})
    away = page.find_recordings(None, "https://example.org/my audio/", tmp_path)
    assert away == ("https://example.org/my%20audio/", None) and page.recording_names(["a.wav"], away) == [0]
    moved = page.find_recordings(tmp_path / "my corpus", "https://example.org", tmp_path)
    assert moved == ("https://example.org/", found.files), "the endings are those of the corpus"
    for base in ("javascript://x", "nowhere", "https://exa mple.org/;script-src"):
        with pytest.raises(UserError, match="--audio-base"):
            page.find_recordings(None, base, tmp_path)


def write_metric(bench, seed: int = 0) -> dict[str, float]:
    """A DeepMI file of the corpus' Train split, with few distinct values."""
    train = [row[0] for row in read_rows(bench.labels)[1:] if row[-1] == "Train"]
    rng = np.random.default_rng(seed)
    values = dict(zip(train, rng.choice([-0.01, 0.0, 0.02, 0.05], len(train)).tolist()))
    bench.metric.parent.mkdir(exist_ok=True)
    metric_module.write_metric(bench.metric, values)
    return values


TOOL = "tools.report_DeepMI"
SMALL = ("-ep", 2, "-batch", 16, "-nc", 5)


def reported(bench, *more):
    """The tool succeeds: standard output, standard error."""
    return bench.runs(TOOL, *SMALL, "--corpus", bench.corpus, *more)


def charts_of(bench) -> set[str]:
    files = bench.folder.glob("results/DeepMI_report_Val_*.png")
    return {file.stem.removeprefix("DeepMI_report_Val_") for file in files}


@pytest.fixture
def undrawn(monkeypatch):
    """PNG files that are empty: drawing them takes most of a run."""
    monkeypatch.setattr(charts, "write_png", lambda chart, path: path.write_bytes(b""))


def page_of(bench) -> str:
    return (bench.folder / "results/DeepMI_report_Val.html").read_text()


def data_in(html: str) -> dict[str, list]:
    """The columns of the table in a page by title."""
    columns = json.loads(re.search(r'id="data">(.*?)</script>', html)[1])["columns"]
    return {c["title"]: [c["names"][v] for v in c["data"]] if "names" in c else c["data"] for c in columns}


def test_labels_and_deepmi_are_enough_and_give_the_same_bytes_again(bench, monkeypatch):
    values, write_png = write_metric(bench), charts.write_png
    shutil.rmtree(bench.corpus / "Features")
    out, _ = reported(bench)
    assert f"no checkpoint Models/{bench.ssl_checkpoint.name}" in out
    assert charts_of(bench) == LABEL_CHARTS
    assert all(file.stat().st_size > 5000 for file in (bench.folder / "results").iterdir())
    data = data_in(page_of(bench))
    rows = {row[0]: row for row in read_rows(bench.labels)[1:]}
    assert set(data["file"]) == set(rows) and "cluster" not in data
    assert data["DeepMI"] == [values.get(name) for name in data["file"]]
    assert data["place"] == [*range(1, 61), *[None] * 48] and data["first bin"][5:7] == [1, 2]
    assert data["ties"][0] == sum(value == max(values.values()) for value in values.values())
    labels = [float(rows[name][3]) for name in data["file"]]
    assert data["Val"] == pytest.approx(labels, abs=0.0051)
    assert data["level"] == [measures.LEVEL_NAMES[level] for level in metric_module.emotion_levels(labels)]
    assert data["split"] == [rows[name][-1] for name in data["file"]]
    monkeypatch.setattr(charts, "write_png", lambda chart, path: write_png(chart, path) if "edges" in path.name else 0)
    reported(bench, "--results-dir", "again")
    for name in ("DeepMI_report_Val.html", "DeepMI_report_Val_edges.png"):
        assert (bench.folder / "results" / name).read_bytes() == (bench.folder / "again" / name).read_bytes()


def test_the_checkpoint_adds_clusters_and_agrees_with_its_own_values(trained, undrawn):
    information = re.search(r"I\(X;Y\)\s+= ([\d.]+) nats", trained.runs(2)[0])[1]
    assert "differ" not in reported(trained)[0]
    assert charts_of(trained) == CHECKPOINT_CHARTS | LABEL_CHARTS
    html = page_of(trained)
    assert f"I(X;Y) = {information} nats" in html
    data = data_in(html)
    assert all(0 <= cluster < 5 for cluster in data["cluster"][:60]) and data["cluster"][60:] == [None] * 48
    assert re.search(r"<td>cluster head</td><td>\d</td>", html) and "<td>k-means, mean of 20</td>" in html

    trained.runs(2, "--clusters", "kmeans", "--restarts", 20)
    out, _ = reported(trained)
    assert "mean over 20 k-means" in out and "differ" not in out

    values = write_metric(trained)
    out, _ = reported(trained, "--checkpoint", trained.ssl_checkpoint)
    warning = re.search(r"warning: (\d+ of 60 values) of the DeepMI file differ", out)
    html = page_of(trained)
    assert f'class="warning" role="note">{warning[1]}' in html
    assert sorted(v for v in data_in(html)["DeepMI"] if v is not None) == sorted(values.values())


def test_names_that_look_like_html_stay_names(bench, undrawn):
    def make_hostile(rows):
        for number, row in enumerate(rows[1:]):
            row[1], row[5] = HOSTILE[number % 2], HOSTILE[(number + 1) % 2]

    bench.edit_labels(make_hostile)
    write_metric(bench)
    reported(bench)
    html = page_of(bench)
    assert HOSTILE[0] not in html
    assert html.count("</script") == 3, "the data, Vega, page.js"
    assert set(data_in(html)["class"]) == set(HOSTILE)


def test_hidden_labels_of_a_split_that_is_not_used_do_not_stop_the_report(bench, undrawn):
    write_metric(bench)
    hidden = [["hidden.wav", "N", "-", "0", "4", "s", "Female", "Test3"]]
    bench.edit_labels(lambda rows: rows.extend(hidden))
    assert "hidden.wav" in reported(bench)[1]


def test_disagreement_comes_from_the_demo_or_from_the_raters(bench, undrawn):
    values = write_metric(bench)
    names = sorted(values)
    ratings = [
        [name, f"W{rater}; Neutral; Neutral; A:1; V:{1 + rater * (number % 3)}; D:1;"]
        for number, name in enumerate(names)
        for rater in range(2)
    ]
    write_labels(bench.labels.with_name("labels_detailed.csv"), ratings, ("FileName", "EmoDetail"))
    out, _ = reported(bench)
    spread = [0.5 * (number % 3) for number in range(60)]
    expected = scipy.stats.spearmanr(spread, [values[name] for name in names]).statistic
    assert f"Spearman correlation {expected:.3f} (" in out
    marked = [name for number, name in enumerate(names) if number % 3 == 2][:9]  # 15 % of 60, ties by name
    rest = [name for name in names if name not in marked]
    pairs = [(values[b] > values[a]) + 0.5 * (values[b] == values[a]) for a in marked for b in rest]
    assert f"AUC {np.mean(pairs):.3f} (" in out and "15% with the largest" in out
    assert charts_of(bench) == LABEL_CHARTS | {"disagreement", "disputed"}

    truth = [[name, int(values[name] < 0)] for name in names]
    write_labels(bench.labels.with_name("demo_truth.csv"), truth, ("FileName", "HighDisagreement"))
    assert "AUC 1.000 (1.000 to 1.000)" in reported(bench)[0]
    write_labels(bench.labels.with_name("demo_truth.csv"), truth + truth[:1], ("FileName", "HighDisagreement"))
    out, err = reported(bench)
    assert "duplicate" in err and "15% with the largest" in out


def test_a_deepmi_file_is_enough(bench, undrawn):
    values = write_metric(bench)
    target, act, dom = (bench.metric.with_name(f"DeepMI_7clusters@_{name}.json") for name in ("Val", "Act", "Dom"))
    bench.metric.rename(target)
    metric_module.write_metric(act, {name: -value for name, value in values.items()})
    dom.write_text("[]")
    assert dom.name in bench.runs(TOOL, "--metric", target)[1]
    assert charts_of(bench) == JSON_CHARTS | {"act_val"}
    html = page_of(bench)
    assert "Spearman correlation -1.000 (-1.000 to -1.000)" in html and "<dd>7</dd>" in html
    data = data_in(html)
    assert list(data) == ["file", "DeepMI", "DeepMI Act", "place", "first bin", "ties"]
    assert data["DeepMI"] == [values[name] for name in data["file"]] == sorted(values.values(), reverse=True)
    assert data["DeepMI Act"] == [-value + 0.0 for value in data["DeepMI"]]


def test_the_attribute_is_that_in_the_name_of_the_file(bench, undrawn):
    write_metric(bench)
    act = bench.metric.rename(bench.metric.with_name("DeepMI_7clusters@_Act.json"))
    bench.runs(TOOL, "--metric", act)
    assert (bench.folder / "results/DeepMI_report_Act.html").exists()
    assert f"warning: {act.name}" in bench.runs(TOOL, "-emo", "Val", "--metric", act)[0]


def test_files_that_do_not_belong_together_are_refused(bench, undrawn):
    def refuses(argv, *words):
        bench.refuses(bench.run(TOOL, *argv), *words)

    of_corpus = (*SMALL, "--corpus", bench.corpus)
    refuses(of_corpus, bench.metric.name, "no such DeepMI file")
    values = write_metric(bench)
    refuses((*of_corpus, "--checkpoint", "none.pth.tar"), "no such norm")
    refuses((*of_corpus, "--corpus", "nowhere"), "nowhere", "--corpus")
    refuses((), "--corpus", "--metric")
    refuses(("--metric", bench.metric, "--checkpoint", "x"), "--corpus")
    first = min(values)
    metric_module.write_metric(bench.metric, {name: value for name, value in values.items() if name != first})
    refuses(of_corpus, "lacks 1", first)
    assert "no value for 1 of 60" in reported(bench, "--skip-missing")[1]
    metric_module.write_metric(bench.metric, values | {"other.wav": 1.0})
    refuses((*of_corpus, "--skip-missing"), "has 1 besides", "other.wav")
    for content in ({}, {"../x.wav": 1.0}):
        metric_module.write_metric(bench.metric, content)
        refuses(("--metric", bench.metric), bench.metric.name)
    assert not list(bench.folder.glob("results/*.tmp"))


@needs_shared
def test_the_published_values_make_a_report(bench, undrawn):
    file = SHARED / "upstream_v1.8/curriculum_metric_v1.8/DeepMI_50clusters@_Val.json"
    out, _ = bench.runs(TOOL, "--metric", shutil.copy(file, bench.folder))
    assert "44,879 utterances have 319 distinct values; 9 of 9 bin edges cut a tie group, of up to 2,765" in out
    assert data_in(page_of(bench))["place"] == list(range(1, 44880))
