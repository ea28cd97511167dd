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
from deepmi import plots
from deepmi.process import UserError
from tools import feature_sets, report_page, report_panels, report_render

CHECKPOINT_PANELS = {
    "joint", "contribution", "predicted", "pca_cluster", "pca_level", "pca_deepmi", "cluster_sizes", "cluster_features",
}  # fmt: skip
OTHER_PANELS = {
    "distribution", "groups", "edges", "bin_cells", "bin_spread", "bin_levels", "level", "class", "speaker",
}  # fmt: skip
HOSTILE = ("<img src=x onerror=alert(1)>", "</script>")


def names_of(count: int) -> list[str]:
    return [f"u{number:02d}.wav" for number in range(count)]


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def test_clusters_are_sorted_by_their_mean_level_and_empty_ones_left_out():
    joint = np.array([[0.0, 0.2], [0.3, 0.0], [0.0, 0.0], [0.25, 0.25]])
    clusters, mean = report_panels.clusters_by_level(joint)
    assert clusters.tolist() == [1, 3, 0]
    assert mean == pytest.approx([0.0, 0.5, 1.0])


def test_a_bin_edge_knows_the_tie_group_that_it_cuts():
    values = np.array([5.0] * 3 + [4.0] * 3 + [3.0] * 14)
    edges = report_panels.bin_edges(names_of(20), values)
    found = [(edge.bin, edge.size, edge.value, edge.ties, edge.inside, edge.cuts) for edge in edges[:4]]
    assert found == [(1, 2, 5, 3, 2, True), (2, 4, 4, 3, 1, True), (3, 6, 4, 3, 3, False), (4, 8, 3, 14, 2, True)]
    assert [edge.size for edge in edges] == list(range(2, 20, 2))


def test_a_bin_of_the_curriculum_holds_those_before_it():
    order = np.arange(20)[::-1]
    cells = np.repeat([7, 3], 10)
    levels = np.tile([1, 2], 10)
    labels = np.arange(20) / 4
    bins = report_panels.curriculum_bins(order, cells, levels, labels)
    assert [part.size for part in bins] == list(range(2, 21, 2))
    # rows 19 and 18, one cluster and two levels; with row 9 the other cluster comes in
    assert [part.cells for part in bins] == [2, 2, 2, 2, 2, 4, 4, 4, 4, 4]
    assert bins[0].shares.tolist() == [0, 0.5, 0.5, 0, 0, 0]
    assert bins[0].label_sd == pytest.approx(0.125)
    assert bins[-1].label_sd == pytest.approx(labels.std())


def test_each_utterance_knows_its_place_and_its_first_bin():
    order = np.array([3, 0, 2, 1, *range(4, 20)])
    places, bins = report_panels.first_bins(order)
    assert places[:5].tolist() == [2, 4, 3, 1, 5]
    assert bins[:5].tolist() == [1, 2, 2, 1, 3] and bins[19] == 10


def test_a_box_hides_no_value():
    box = report_panels.five_numbers(np.array([1.0, 2, 3, 4, 5, 6, 7, 8, 100]))
    assert (box.low, box.q1, box.median, box.q3, box.high, box.count) == (1, 3, 5, 7, 100, 9)
    assert box.mean == pytest.approx(136 / 9)
    alone = report_panels.five_numbers(np.array([2.0]))
    assert (alone.low, alone.q1, alone.high) == (2, 2, 2)


def test_spearman_is_scipys_with_ties_and_has_the_interval_of_a_bootstrap():
    rng = np.random.default_rng(3)
    x = rng.normal(size=200).round(1)
    y = (x + rng.normal(size=200)).round()
    found = report_panels.spearman(x, y, 31)
    assert found.value == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    drawn = [scipy.stats.spearmanr(x[rows], y[rows]).statistic for rows in rng.integers(0, 200, (600, 200))]
    assert [found.low, found.high] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.02)
    assert np.isnan(report_panels.spearman(x, np.ones(200), 31, 20).value)


def test_a_resample_has_ranks_of_its_own():
    pairs = np.array([[0, 1], [1, 0], [2, 2]])
    counts = np.array([3, 1, 2])
    x, y = np.repeat(pairs, counts, axis=0).T
    assert report_panels._rank_correlation(pairs, counts) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)


def test_auc_counts_pairs_and_half_of_the_ties():
    values, marked = [0.1, 0.3, 0.3, 0.2, 0.5], [True, True, False, False, False]
    # of the six pairs .1 wins three, .3 wins over .5 and ties with .3
    assert report_panels.auc_lower(values, marked, 31).value == pytest.approx(4.5 / 6)
    rng = np.random.default_rng(0)
    values, marked = rng.normal(size=120).round(1), np.arange(120) < 40
    found = report_panels.auc_lower(values, marked, 31)
    expected = scipy.stats.mannwhitneyu(values[~marked], values[marked]).statistic / (40 * 80)
    assert found.value == pytest.approx(expected)
    # the interval of Hanley & McNeil (1982), which knows no ties
    first, second = expected / (2 - expected), 2 * expected**2 / (1 + expected)
    variance = expected * (1 - expected) + 39 * (first - expected**2) + 79 * (second - expected**2)
    width = 2 * 1.96 * np.sqrt(variance / (40 * 80))
    assert found.high - found.low == pytest.approx(width, rel=0.1)
    assert np.isnan(report_panels.auc_lower([1.0], [True], 31).value)


def test_the_most_disputed_are_a_share_and_ties_go_by_name():
    spread = pd.Series([1.0, 2.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], index=list("dcbaefghij"))
    marked = report_panels.most_disputed(spread, 0.3)
    assert marked.index[marked].tolist() == ["c", "b", "a"]


def test_standardised_differences_are_of_means_within_and_over_the_rest(monkeypatch):
    monkeypatch.setattr(report_panels, "BLOCK", 3)
    rows = np.random.default_rng(0).normal(size=(11, 4)).astype(np.float32)
    clusters = np.array([0, 2, 2, 0, 0, 2, 2, 2, 0, 2, 0])
    found = report_panels.standardised_differences(rows, clusters, 3)
    expected = rows[clusters == 0].mean(axis=0) - rows[clusters != 0].mean(axis=0)
    assert found[0] == pytest.approx(expected, abs=1e-6) and found[2] == pytest.approx(-expected, abs=1e-6)
    assert not found[1].any()
    assert not report_panels.standardised_differences(rows, np.zeros(11, dtype=int), 1).any()


def test_of_many_groups_the_ends_are_shown():
    order = [f"c{number}" for number in range(3000)]
    assert report_panels._ends(order[:40], "These", "those") == (order[:40], "These, highest mean first.")
    shown, note = report_panels._ends(order, "These", "those")
    assert shown == [*order[:20], *order[-20:]] and "of 3,000" in note


def test_typical_features_are_of_different_descriptors():
    names = ["mfcc_sma[1]_amean", "mfcc_sma_de[2]_quartile1", "F0final_sma_amean", "loudness_sma3_amean", "feature 4"]
    assert report_panels.typical_features(np.array([-3.0, 2.5, 2.0, 0.0, -0.1]), names, 3) == [0, 2, 4]
    assert report_panels.descriptor("pcm_fftMag_fband250-650_sma_de_lpc1") == "pcm_fftMag_fband250-650"
    assert report_panels.descriptor("feature 12") == "feature 12"


def test_features_have_the_names_of_their_set():
    names = feature_sets.feature_names("eGeMAPSv02", 88)
    assert names[0] == "F0semitoneFrom27.5Hz_sma3nz_amean" and len(names) == 88
    assert feature_sets.feature_names("eGeMAPSv02", 3) == ["feature 0", "feature 1", "feature 2"]
    assert feature_sets.feature_names("wavlm-0123456789ab", 2) == ["feature 0", "feature 1"]


def test_utterances_at_one_place_are_one_point():
    x, y, colour, counts, texts = report_panels.gather_places(
        np.array([1.0, 0.0, 1.0]), np.array([2.0, 2.0, 2.0]), np.array([1.0, 3.0, 2.0]), ["a", "b", "c"]
    )
    assert (x.tolist(), y.tolist(), colour.tolist(), counts.tolist()) == ([0, 1], [2, 2], [3, 1.5], [1, 2])
    assert texts == ["b", "2 utterances, such as a"]


def test_a_sample_is_drawn_evenly_and_by_seed():
    assert report_panels.sample(5, 31).tolist() == [0, 1, 2, 3, 4]
    drawn = report_panels.sample(1000, 31, 100)
    assert len(set(drawn)) == 100 and (np.diff(drawn) > 0).all()
    assert (drawn == report_panels.sample(1000, 31, 100)).all() and (drawn != report_panels.sample(1000, 1, 100)).any()


# ---------------------------------------------------------------------------------------------------------------------
# What goes into the page


def test_json_in_the_page_can_not_end_its_element():
    text = report_page.as_json({"a": "</script><!--&\u2028"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": "</script><!--&\u2028"}


def test_labels_of_pictures_are_text():
    chart = report_render.Boxes("x", "y", [HOSTILE[0]], [report_panels.five_numbers(np.arange(3.0))])
    figure = report_render.plotly_figure(report_render.Panel("p", "t", "n", chart))
    assert figure["layout"]["yaxis"]["ticktext"] == ["&lt;img src=x onerror=alert(1)&gt; (3)"]
    formula = report_render.Boxes("x", "y", [r"$\frac$"], chart.summaries)
    report_render.matplotlib_figure(report_render.Panel("p", "t", "n", formula)).canvas.draw()


def test_the_policy_lets_recordings_in_from_their_base_only():
    policy = report_page.policy("https://example.org/a/", ("1",))
    assert "media-src 'self' file: https://example.org;" in policy and "connect-src 'none'" in policy
    assert "unsafe-inline" not in policy.split("style-src")[0] and "unsafe-eval" not in policy


def test_recordings_are_found_whatever_their_ending(tmp_path):
    audios = tmp_path / "my corpus" / "Audios"
    audios.mkdir(parents=True)
    for name in ("a.wav", "a.flac", "b 1.flac", "c.x.ogg", "notes.txt"):
        (audios / name).touch()
    audio = report_page.find_audio(tmp_path / "my corpus", None, tmp_path / "results")
    found = report_page.audio_of(["a.wav", "b 1.wav", "c.x.wav", "d.wav"], audio)
    assert found["base"] == "../my%20corpus/Audios/"
    assert found["codes"] == [0, 1, 2, -1] and found["endings"] == [".flac", ".ogg", ".wav"]
    away = report_page.find_audio(None, "https://example.org/my audio/", tmp_path)
    assert away == ("https://example.org/my%20audio/", None)
    assert report_page.audio_of(["a.wav"], away)["codes"] == [0]
    assert report_page.find_audio(None, str(audios), tmp_path).base == "my%20corpus/Audios/"
    for base in ("javascript://x", "nowhere", "https://exa mple.org/;script-src"):
        with pytest.raises(UserError, match="--audio-base"):
            report_page.find_audio(None, base, tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# The tool


def write_metric(bench, seed: int = 0) -> dict[str, float]:
    """A DeepMI file of the corpus' Train split, with few distinct values."""
    train = [row[0] for row in read_rows(bench.labels)[1:] if row[-1] == "Train"]
    rng = np.random.default_rng(seed)
    values = dict(zip(train, rng.choice([-0.01, 0.0, 0.02, 0.05], len(train)).tolist()))
    bench.metric.parent.mkdir(exist_ok=True)
    metric_module.write_metric(bench.metric, values)
    return values


def report(bench, *more):
    return bench.run("tools.report_DeepMI", "-ep", 2, "-batch", 16, "-nc", 5, "--corpus", bench.corpus, *more)


def panels_in(folder) -> set[str]:
    return {file.name.removeprefix("DeepMI_report_Val_")[:-4] for file in folder.glob("DeepMI_report_Val_*.png")}


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures as empty files: drawing them takes most of a run."""
    monkeypatch.setattr(plots, "save", lambda figure, path: path.write_bytes(b""))


def data_in(html: str) -> dict[str, list]:
    """The columns of the page's table, key -> values."""
    columns = json.loads(re.search(r'id="data">(.*?)</script>', html)[1])["columns"]
    return {c["key"]: [c["names"][v] for v in c["data"]] if "names" in c else c["data"] for c in columns}


def test_labels_and_deepmi_are_enough_and_give_the_same_bytes_again(bench):
    values = write_metric(bench)
    shutil.rmtree(bench.corpus / "Features")
    code, out, err = report(bench)
    assert code == 0, err
    assert "50clusters" not in out and f"{bench.ssl_checkpoint.name}; that checkpoint" in out
    assert panels_in(bench.folder / "results") == OTHER_PANELS
    html = (bench.folder / "results/DeepMI_report_Val.html").read_text()
    data = data_in(html)
    rows = {row[0]: row for row in read_rows(bench.labels)[1:]}
    assert set(data["file"]) == set(rows) and "cluster" not in data
    assert data["deepmi"] == [values.get(name) for name in data["file"]]
    assert data["rank"][:60] == list(range(1, 61)) and data["rank"][60:] == [None] * 48
    assert data["bin"][5:7] == [1, 2]
    assert data["val"] == [float(rows[name][3]) for name in data["file"]]
    assert data["level"] == metric_module.emotion_levels(data["val"]).tolist()
    assert data["split"] == [rows[name][-1] for name in data["file"]]
    assert "distinct (value, level) pair" in html
    assert report(bench, "--results-dir", "again")[0] == 0
    for file in (bench.folder / "results").iterdir():
        assert file.read_bytes() == (bench.folder / "again" / file.name).read_bytes(), file.name
        assert file.stat().st_size > 5000


def test_the_checkpoint_adds_clusters_and_agrees_with_its_own_values(trained, undrawn):
    code, out, _ = trained.stage(2)
    information = re.search(r"I\(X;Y\)\s+= ([\d.]+) nats", out)[1]
    code, out, err = report(trained)
    assert code == 0 and "differ" not in out, err
    assert panels_in(trained.folder / "results") == CHECKPOINT_PANELS | OTHER_PANELS
    html = (trained.folder / "results/DeepMI_report_Val.html").read_text()
    assert f"I(X;Y) = {information} nats" in html
    assert report(trained, "--results-dir", "again")[0] == 0
    assert (trained.folder / "again/DeepMI_report_Val.html").read_text() == html
    data = data_in(html)
    assert all(0 <= cluster < 5 for cluster in data["cluster"][:60]) and data["cluster"][60:] == [None] * 48


def test_values_of_another_checkpoint_are_told(trained, undrawn):
    values = write_metric(trained)
    code, out, err = report(trained, "--checkpoint", trained.ssl_checkpoint)
    assert code == 0, err
    html = (trained.folder / "results/DeepMI_report_Val.html").read_text()
    told = re.search(r"warning: (\d+) of 60 values of the DeepMI file differ from those computed from", out)
    assert int(told[1]) > 30
    assert f'class="warning" role="note">{told[1]} of 60 values' in html
    assert sorted(v for v in data_in(html)["deepmi"] if v is not None) == sorted(values.values())


def test_names_that_look_like_html_stay_names(bench, undrawn):
    rows = read_rows(bench.labels)
    for number, row in enumerate(rows[1:]):
        row[1], row[5] = HOSTILE[number % 2], HOSTILE[(number + 1) % 2]
    write_labels(bench.labels, rows[1:])
    write_metric(bench)
    code, _, err = report(bench)
    assert code == 0, err
    html = (bench.folder / "results/DeepMI_report_Val.html").read_text()
    assert "<img" not in html
    # "</script>" must occur only where this program ends a script
    assert len(re.findall("</script", html)) == len(
        re.findall(r"<script(?: type=\"[^\"]*\"(?: id=\"[^\"]*\")?)>", html)
    )
    assert set(data_in(html)["class"]) == set(HOSTILE)


def test_disagreement_comes_from_the_demo_or_from_the_raters(bench, undrawn):
    values = write_metric(bench)
    names = sorted(values)
    ratings = [
        [name, f"W{rater}; Neutral; Neutral; A:1; V:{1 + rater * (number % 3)}; D:1;"]
        for number, name in enumerate(names)
        for rater in range(2)
    ]
    write_labels(bench.labels.with_name("labels_detailed.csv"), ratings, ("FileName", "EmoDetail"))
    code, out, err = report(bench)
    assert code == 0, err
    spread = [0.5 * (number % 3) for number in range(60)]
    expected = scipy.stats.spearmanr(spread, [values[name] for name in names]).statistic
    assert f"Spearman correlation {expected:.3f} (" in out
    marked = [name for number, name in enumerate(names) if number % 3 == 2][:9]  # 15 % of 60, ties by name
    others = [name for name in names if name not in marked]
    pairs = [(values[b] > values[a]) + 0.5 * (values[b] == values[a]) for a in marked for b in others]
    assert f"AUC {np.mean(pairs):.3f} (" in out and "(the 15 % whose raters are furthest apart)" in out
    assert panels_in(bench.folder / "results") == OTHER_PANELS | {"disagreement", "disputed"}

    truth = [[name, int(values[name] < 0)] for name in names]
    write_labels(bench.labels.with_name("demo_truth.csv"), truth, ("FileName", "HighDisagreement"))
    code, out, err = report(bench)
    assert "(the clips that demo_truth.csv calls so)" in out and "AUC 1.000 (1.000 to 1.000)" in out


def test_a_file_of_another_attribute_is_told(bench, undrawn):
    write_metric(bench)
    target = bench.metric.with_name("DeepMI_5clusters@_Act.json")
    bench.metric.rename(target)
    code, out, err = report(bench, "--metric", target)
    assert code == 0, err
    assert "by its name a file of Act, not of Val" in out


def test_the_other_attributes_are_set_against_it(bench, undrawn):
    values = write_metric(bench)
    metric_module.write_metric(
        bench.metric.with_name("DeepMI_5clusters@_Act.json"), {name: -v for name, v in values.items()}
    )
    code, _, err = report(bench)
    assert code == 0, err
    html = (bench.folder / "results/DeepMI_report_Val.html").read_text()
    assert "DeepMI of Act against Val" in html and "Spearman correlation -1.000 (-1.000 to -1.000)" in html
    assert panels_in(bench.folder / "results") == OTHER_PANELS | {"act_val"}


def test_what_does_not_belong_together_is_refused(bench, undrawn):
    bench.refuses(report(bench), "DeepMI_5clusters@_Val.json", "no such DeepMI file")
    values = write_metric(bench)
    bench.refuses(report(bench, "--checkpoint", "none.pth.tar"), "no such norm term")
    bench.refuses(bench.run("tools.report_DeepMI"), "--corpus")
    first = min(values)
    metric_module.write_metric(bench.metric, {name: value for name, value in values.items() if name != first})
    bench.refuses(report(bench), "lacks 1", first)
    code, _, err = report(bench, "--skip-missing")
    assert code == 0 and "1 training utterances have no DeepMI" in err
    metric_module.write_metric(bench.metric, values | {"other.wav": 1.0})
    bench.refuses(report(bench, "--skip-missing"), "has 1 besides", "other.wav")
    assert not list(bench.folder.glob("results/*.tmp"))


@needs_shared
def test_the_published_values_make_a_report():
    file = SHARED / "upstream_v1.8/curriculum_metric_v1.8/DeepMI_50clusters@_Val.json"
    metric = metric_module.read_metric(file)
    names = sorted(metric)
    rng = np.random.default_rng(0)
    labels = rng.normal(4.15, 0.84, len(names)).clip(1, 7)
    table = pd.DataFrame(
        {
            "EmoVal": labels.astype(str),
            "SpkrID": rng.integers(1, 1300, len(names)).astype(str),
            "Split_Set": "Train",
            "label": labels,
        },
        index=pd.Index(names, name="FileName"),
    )
    values = np.array([metric[name] for name in names])
    found = report_panels.Evidence("Val", 50, 31, names, values, labels, table, {}, None, None, "", None)
    report = report_panels.build(found)
    assert any(
        "44,879 utterances have 319 distinct values; 9 of 9 bin edges cut a tie group, of up to 2,765" in line
        for line in report.findings
    )
    html = report_page.page(found, report, "MSP-PODCAST-Publish-1.8", file.name, report_page.Audio("", {}))
    assert data_in(html)["rank"] == list(range(1, 44880))
