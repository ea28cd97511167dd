"""tools.compare_metrics: how far DeepMI files agree."""

import json

import numpy as np
import pytest
from scipy import stats

from deepmi.metric import read_metric
from tools import compare_metrics
from tools.side_by_side import with_changes

NAMES = [f"{number:02d}.wav" for number in range(20)]


def write(path, values):
    path.write_text(json.dumps(dict(zip(NAMES, values))))
    return path


def test_rank_correlation_is_scipys():
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 8, 40), rng.integers(0, 8, 40)
    found = compare_metrics.rank_correlation(first, second)
    assert found == pytest.approx(stats.spearmanr(first, second).statistic)
    assert np.isnan(compare_metrics.rank_correlation(first, np.ones(40)))


def test_bins_of_opposite_curricula_share_what_they_must():
    values = np.arange(20.0)
    assert compare_metrics.bin_overlap(NAMES, values, values * 2 + 1) == [1.0] * 9
    # the upper m of 20 and the lower m share 2 m - 20 of m, if that is more than none
    expected = [max(0, 2 * size - 20) / size for size in range(2, 20, 2)]
    assert compare_metrics.bin_overlap(NAMES, values, -values) == pytest.approx(expected)


def test_those_that_moved_most_come_first():
    first, second = np.arange(5.0), np.array([4.0, 1.0, 2.0, 3.0, 0.0])
    moved = compare_metrics.moved_most(NAMES[:5], first, second, 3)
    assert [row[0] for row in moved] == ["00.wav", "04.wav", "01.wav"]
    assert moved[0][1:] == (0.0, 0.0, 4.0, 1.0)


def test_files_are_joined_by_name(bench):
    first = write(bench.folder / "a.json", range(20))
    second = bench.folder / "b.json"
    second.write_text(json.dumps({name: value for value, name in reversed(list(enumerate(NAMES[:15])))} | {"x.wav": 3}))
    out, _ = bench.runs("tools.compare_metrics", first, second, "--out", "both.csv", "--moved", 2)
    assert "15 utterances in common" in out and "only in the first: 5, only in the second: 1" in out
    assert "Spearman's rank correlation: 1.000" in out
    rows = (bench.folder / "both.csv").read_text().splitlines()
    assert len(rows) == 22 and rows[1] == "00.wav,0.0,0.0,0.0,0.0"


def test_files_without_a_common_utterance_are_refused(bench):
    first, second = write(bench.folder / "a.json", range(20)), bench.folder / "b.json"
    second.write_text('{"x.wav": 1, "y.wav": 2}')
    bench.refuses(bench.run("tools.compare_metrics", first, second), "0 utterances in common")
    bench.refuses(bench.run("tools.compare_metrics", first), "1 DeepMI files given")
    bench.refuses(bench.run("tools.compare_metrics", first, "--seeds", 2), "leave out files")


def test_the_mean_of_files_is_a_deepmi_file(bench):
    first, second = write(bench.folder / "a.json", range(20)), write(bench.folder / "b.json", [0.5] * 19 + [1000])
    bench.runs("tools.compare_metrics", "--mean", "mean.json", first, second)
    values = read_metric(bench.folder / "mean.json")
    assert list(values) == NAMES and values["03.wav"] == 1.75 and values["19.wav"] == 509.5
    bench.runs("tools.compare_metrics", "--mean", "mean.json", "--mean-of", "ranks", first, second)
    ranks = read_metric(bench.folder / "mean.json")
    assert ranks["19.wav"] == 1 and ranks["00.wav"] == pytest.approx(9 / 19 / 2, abs=1e-5)  # 19 tied: rank 9 of 0..19
    second.write_text('{"x.wav": 1, "y.wav": 2}')
    bench.refuses(bench.run("tools.compare_metrics", "--mean", "mean.json", first, second), "in one of them only")


def stability(bench, *more):
    given = ["--seeds", 2, "-ep", 1, "-batch", 16, "-emo", "Val", "--corpus", bench.corpus, "--jobs", 1]
    return bench.runs("tools.compare_metrics", *given, "--unlabeled", f"{bench.corpus}_unlabeled", *more)


def test_stability_compares_seeds_within_and_across_settings(prepared):
    out, _ = stability(prepared, "-nc", 3, 5, "--unlabeled-size", 0, "--clusters", "head", "kmeans")
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in out.splitlines() if line.startswith("| K")]
    settings = [f"K {count}, no unlabeled, {kind}" for count in (3, 5) for kind in ("head", "kmeans")]
    assert [row for row in rows if row[1] == "another seed"] == [[name, "another seed", "1"] for name in settings]
    assert [settings[0], settings[2], "2"] in rows and len(rows) == 10
    assert (prepared.folder / "results" / "compare_metrics_Val.md").read_text() in out


def test_two_unlabeled_sizes_that_draw_the_same_set_are_one_setting(prepared):
    out, err = stability(prepared, "-nc", 3, "--unlabeled-size", 50, 90000)
    assert "90000" in err and "50 utterances" in err
    assert len([line for line in out.splitlines() if line.startswith("| K 3, 50 unlabeled")]) == 1
    args = compare_metrics.get_args_parser().parse_args(["--unlabeled", f"{prepared.corpus}_unlabeled"])
    tasks = [with_changes(args, unlabeled_size=size) for size in (0, 20, 60, 70)]
    assert [task.unlabeled_size for task in compare_metrics.without_equal_sizes(tasks)] == [0, 20, 60]
