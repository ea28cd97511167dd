"""tools.compare_curricula: orders against their controls, with the same results in any process and on every run."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, log_of, run_python
from scipy import stats

import utils
from deepmi.ccc import bootstrap_cccs, concordance_cc
from deepmi.metric import read_metric, write_metric
from deepmi.process import UserError
from model import load_ssl_checkpoint
from tools import compare_curricula, seed_statistics, trials
from tools.side_by_side import with_changes

ORDERS = ["deepmi", "reverse", "random", "none", "deepmi-balanced", "agreement", "selftaught", "prediction", "ridge"]


def write_detailed(bench) -> Path:
    """Three raters per clip, further apart with every clip."""
    rows = ["FileName,WorkerID,EmoClass_Major,EmoClass_Second,EmoAct,EmoVal,EmoDom"]
    for number, name in enumerate(utils.read_labels(bench.labels)["FileName"]):
        rows += [f"{name},{rater},N,,4,{4 + number / 100 * step},4" for rater, step in (("a", -1), ("b", 0), ("c", 1))]
    file = bench.labels.with_name("labels_detailed.csv")
    file.write_text("\n".join(rows))
    return file


TOOL = "tools.compare_curricula"
SMALL = ["-emo", "Val", "-nc", 5, "-batch", 16, "-ep", 2, "--seeds", 1, "--jobs", 1]


def compare(bench, *more):
    return bench.run(TOOL, "--corpus", bench.corpus, *SMALL, *more)


def compared(bench, *more):
    """The tool succeeds: standard output, standard error."""
    return bench.runs(TOOL, "--corpus", bench.corpus, *SMALL, *more)


def table_of(bench, index="order"):
    return pd.read_csv(bench.folder / "results/compare_Val.csv").set_index(index)


def trial_folders(bench):
    return {path.name for path in (bench.folder / "results/trials").iterdir()}


def task(bench, **changes):
    """Arguments of a trial on the bench."""
    args = compare_curricula.get_args_parser().parse_args(
        ["--corpus", str(bench.corpus), *"-emo Val -nc 5 -batch 16 -ep 3".split()]
    )
    compare_curricula.check_arguments(args)
    trials.prepare(args)
    return with_changes(args, rate_decay="paper", keep=1.0, **changes)


def test_every_order_in_one_table_and_again_without_training(trained):
    write_detailed(trained)
    more = ["--orders", *ORDERS, "--checkpoint", trained.ssl_checkpoint, "--testing", trained.corpus, "--seeds", 2]
    out, _ = compared(trained, *more)
    assert [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("|")][2 : 2 + 9] == ORDERS
    results = trained.folder / "results"
    table = pd.read_csv(results / "compare_Val.csv")
    assert table["order"].tolist() == ORDERS * 2
    assert set(table["utterances"]) == {24, 108}  # Test1; all of the other corpus
    assert np.allclose(table["ccc"], table[["ccc_seed31", "ccc_seed32"]].mean(axis=1))
    assert (table["low"] <= table["ccc"]).all() and (table["ccc"] <= table["high"]).all()
    random = table["ccc"][table["order"] == "random"].to_numpy()
    assert np.allclose(table["minus_random"].dropna(), (table["ccc"] - np.repeat(random, 9)).drop([2, 11]))
    for ending in ("_curves.png", "_orders.png"):
        assert (results / f"compare_Val{ending}").stat().st_size > 10_000

    files = {file: file.stat().st_mtime_ns for file in (results / "trials").iterdir()}
    # ridge has no seed; scores of agreement and prediction, and self-taught ones of each seed
    assert len(files) == 8 * 2 + 1 + 2 + 2
    before = (results / "compare_Val.md").read_bytes()
    lost, cut = (next(file for file in files if f"{order}_seed32" in file.name) for order in ("reverse", "none"))
    contents = {file: file.read_bytes() for file in (lost, cut)}
    lost.unlink()
    cut.write_bytes(contents[cut][:-20])
    compared(trained, *more)
    assert {file: file.read_bytes() for file in contents} == contents
    kept = [file for file in files if file not in contents and "_scores_" not in file.name]
    assert all(file.stat().st_mtime_ns == files[file] for file in kept)
    assert (results / "compare_Val.md").read_bytes() == before


def test_each_seed_has_a_deepmi_of_its_own_and_noise_reaches_it(bench):
    bench.runs(0)
    more = ["--orders", "deepmi", "prediction", "--ssl-epochs", 1, "--unlabeled-size", 0, "--seeds", 2]
    compared(bench, *more)
    out, _ = compared(bench, *more, "--label-noise", 0.5)
    assert "50 % of the Train labels replaced at random" in out
    files = list((bench.folder / "results" / "trials").glob("Val_seed3[12]_*/head/DeepMI_5clusters@_Val.json"))
    assert len({file.read_bytes() for file in files}) == len(files) == 4
    assert (bench.folder / "results" / "compare_Val_noise50.md").is_file()


def test_noise_replaces_its_share_of_train_labels_and_nothing_else(bench):
    truth = utils.read_labels(bench.labels)
    found = [utils.read_labels(trials.noisy_labels(task(bench, label_noise=0.3, seed=s))) for s in (1, 1, 2)]
    assert found[0].equals(found[1]) and not found[0].equals(found[2])
    train = (truth["Split_Set"] == "Train").to_numpy()
    changed = pd.to_numeric(truth["EmoVal"]) != pd.to_numeric(found[0]["EmoVal"])
    assert 0 < changed.sum() <= 18 and changed[train].sum() == changed.sum()  # .3 of 60; a draw may hit its own label
    assert set(pd.to_numeric(found[0]["EmoVal"])) <= set(pd.to_numeric(truth["EmoVal"]))
    assert found[0].drop(columns="EmoVal").equals(truth.drop(columns="EmoVal"))


@pytest.mark.as_published  # the processes of trials do not have the narrow networks of the tests
def test_trials_in_several_processes_give_the_same_bytes(trained):
    folder = trained.folder / "results" / "trials"
    contents = []
    for jobs in (2, 1):
        compared(trained, "--orders", "reverse", "none", "-ep", 1, "--jobs", jobs)
        contents.append({file.name: file.read_bytes() for file in folder.iterdir()})
        shutil.rmtree(folder)
    assert contents[0] == contents[1] and len(contents[0]) == 2


@pytest.mark.as_published
def test_a_trial_is_stage_3(trained):
    argv = "-emo Val -nc 5 -batch 16 -ep 3 --order reverse --pacing root".split()
    # A process that starts with one thread computes as a trial does.
    done = run_python(ROOT / "training_Curriculum.py", "--corpus", "corpus", *argv, cwd=trained.folder)
    assert done.returncode == 0, done.stderr
    losses = [line["validation_ccc_loss"] for line in log_of(trained.regressor_of("reverse"))[1:-1]]
    args = task(trained, order="reverse", pacing="root", scores=trained.metric)
    (found,) = trials.run_trials([args], {args.seed: trials.load_data(args)}, 1)
    assert found["curve"] == [1 - loss for loss in losses]


def test_no_utterance_is_scored_by_what_has_learned_it(trained, monkeypatch):
    learned, run_stage = [], trials.run_stage

    def watched(stage, args, **changes):
        table = utils.read_labels(changes["labels"])
        learned.append(set(table["FileName"][table["Split_Set"] == "Train"]))
        run_stage(stage, args, **changes)

    monkeypatch.setattr(trials, "run_stage", watched)
    # The regressor of fold f predicts f for everything.
    monkeypatch.setattr(trials, "predict_by", lambda _, corpus, rows, args: np.full(len(rows), len(learned)))
    args = task(trained)
    train = trials.load_data(args).train
    scores = read_metric(trials.self_taught(args))
    assert len(learned) == 5 and set.union(*learned) == set(train.names)
    for name, target in zip(train.names, train.targets):
        (fold,) = (fold for fold in range(5) if abs(abs(fold + 1 - target) + scores[name]) < 1e-5)
        assert name not in learned[fold]


def test_agreement_starts_with_raters_who_agree_and_ends_with_single_ones(trained):
    data = trials.load_data(task(trained))

    def order():
        scores = read_metric(trials.score_file(task(trained), "agreement", data))
        return sorted(data.train.names, key=scores.get, reverse=True)

    with pytest.raises(UserError, match="labels_detailed"):
        order()
    detailed = write_detailed(trained)
    assert order() == data.train.names  # names are numbered as the spread grows
    lines = detailed.read_text().splitlines()
    detailed.write_text("\n".join(lines[:2] + lines[4:]))  # the first utterance keeps one rating
    assert order() == [*data.train.names[1:], data.train.names[0]]


def test_prediction_scores_are_the_errors_of_deepemocluster(trained):
    args = task(trained, checkpoint=trained.ssl_checkpoint)
    data = trials.load_data(args)
    scores = read_metric(trials.score_file(args, "prediction", data))
    network, _ = load_ssl_checkpoint(trained.ssl_checkpoint, data.corpus.num_features, 5, "Val")
    with torch.no_grad():
        z = network.eval().predict_attribute(torch.from_numpy(np.array(data.train.rows))).numpy()
    assert [scores[name] for name in data.train.names] == pytest.approx(-np.abs(z - data.train.targets), abs=1e-5)


def test_a_single_rater_replaces_the_consensus_of_train(trained):
    with pytest.raises(UserError, match="labels_detailed"):
        trials.noisy_labels(task(trained, train_labels="single-rater"))
    write_detailed(trained)
    truth = utils.read_labels(trained.labels)
    found = [utils.read_labels(trials.noisy_labels(task(trained, train_labels="single-rater", seed=s))) for s in (1, 2)]
    train = (truth["Split_Set"] == "Train").to_numpy()
    assert found[0][~train].equals(truth[~train])
    number = np.arange(len(truth))[train]
    offsets = [(pd.to_numeric(table["EmoVal"])[train].to_numpy() - 4) * 100 / np.maximum(number, 1) for table in found]
    assert all(set(offset[1:].round(6)) == {-1, 0, 1} for offset in offsets)  # each is that of rater a, b or c
    assert (offsets[0] != offsets[1]).any()


def test_variants_and_the_controls_they_are_compared_with():
    given = "--orders deepmi random ridge --rate-decay paper late --ssl-epochs 1 --clusters head kmeans --keep 1 0.5"
    args = compare_curricula.get_args_parser().parse_args(given.split())
    compare_curricula.check_arguments(args)
    variants = compare_curricula.variants_of(args)
    assert len(variants) == 2 * 2 * 2 + 2 * (1 + 2) + 1  # random needs DeepMI only where a share is kept
    assert "deepmi, late, keep 0.5, kmeans" in variants and "random, late, keep 1" in variants and "ridge" in variants
    controls = compare_curricula.controls_of(variants)
    assert controls["deepmi, late, keep 0.5, kmeans"] == {"random": "random, late, keep 1"}
    assert controls["random, late, keep 1"] == {}
    args.keep = [0.5]
    controls = compare_curricula.controls_of(compare_curricula.variants_of(args))
    assert controls["deepmi, late, kmeans"] == {"random": "random, late, kmeans"}
    assert controls["random, late, kmeans"] == controls["random, paper, head"] == {}


def test_spread_of_raters_is_the_population_deviation(tmp_path):
    file = tmp_path / "labels_detailed.csv"
    file.write_text(
        "FileName,EmoDetail\na.wav,W1; N; ; A:1; V:3;\na.wav,W2; N; ; A:3; V:nan;\nb.wav,W1; N; ; A:5; V:1;"
    )
    assert utils.rater_spread(file, "Act").to_dict() == {"a.wav": 1.0}
    with pytest.raises(UserError, match="no utterance has two ratings of Val"):
        utils.rater_spread(file, "Val")


def test_holm_steps_down_and_passes_over_what_has_no_p():
    assert seed_statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    found = seed_statistics.holm([0.3, float("nan"), 0.6])
    assert found[0] == pytest.approx(0.6) and np.isnan(found[1]) and found[2] == pytest.approx(0.6)


def test_p_is_that_of_the_paired_tests():
    first, second = np.array([0.3, 0.35, 0.32, 0.4, 0.31, 0.37]), np.array([0.28, 0.3, 0.33, 0.33, 0.27, 0.31])
    assert seed_statistics.paired_p(first - second, "t") == pytest.approx(stats.ttest_rel(first, second).pvalue)
    assert seed_statistics.paired_p(first - second, "wilcoxon") == pytest.approx(stats.wilcoxon(first, second).pvalue)
    assert np.isnan(seed_statistics.paired_p(np.zeros(5), "t"))


def test_seeds_widen_an_interval_as_their_t_interval_does():
    cccs = np.random.default_rng(2).normal(0.5, 0.05, (1, 6))
    means = seed_statistics.order_means(np.tile(cccs, (4000, 1, 1)), cccs, 1)
    low, high = np.percentile(means, [2.5, 97.5])
    expected = stats.t.interval(0.95, 5, cccs.mean(), stats.sem(cccs[0]))
    assert high - low == pytest.approx(expected[1] - expected[0], rel=0.1)


def test_as_many_seeds_as_speakers_are_drawn_independently():
    labels, speakers = np.random.default_rng(0).normal(size=200), np.repeat(np.arange(5), 40)
    samples = bootstrap_cccs(labels, [labels + speakers] * 5, list(speakers), 400, 31).reshape(400, 1, 5)
    still = np.zeros_like(samples)
    of_seeds = seed_statistics.order_means(still, np.arange(5.0)[None] ** 2, 31)[:, 0]
    first_speaker = bootstrap_cccs(labels, [labels + (speakers == 4)], list(speakers), 400, 31)[:, 0]
    assert abs(np.corrcoef(of_seeds, first_speaker)[0, 1]) < 0.2


def test_the_controls_are_one_comparison(trained):
    compared(trained, "--orders", "reverse", "random", "none", "--seeds", 2)
    table = table_of(trained)
    assert table["p_none"]["random"] == table["p_random"]["none"]
    assert table["p_none_holm"]["random"] == table["p_random_holm"]["none"]
    raw = [table["p_random"]["reverse"], table["p_none"]["reverse"], table["p_none"]["random"]]
    assert min(table["p_random_holm"].min(), table["p_none_holm"].min()) == pytest.approx(min(1, 3 * min(raw)))


def test_other_norm_terms_and_other_labels_are_other_trials(trained):
    def trials_after_a_run():
        compared(trained, "--orders", "none")
        return len(trial_folders(trained))

    assert trials_after_a_run() == 1
    utils.write_norm_stats(trained.folder / "NormTerm", None, {"Val": (4.5, 1.0)})
    assert trials_after_a_run() == 2
    trained.edit_labels(lambda rows: rows[1].__setitem__(rows[0].index("EmoVal"), "4.4444"))
    assert trials_after_a_run() == 3


def test_more_epochs_of_the_regressor_leave_deepemocluster_and_the_ridge_alone(prepared):
    given = ("--orders", "deepmi", "ridge", "--ssl-epochs", 1, "--unlabeled-size", 0)
    compared(prepared, *given)
    before = trial_folders(prepared)
    compared(prepared, *given, "-ep", 3)
    (new,) = trial_folders(prepared) - before
    assert "deepmi" in new


def test_another_corpus_never_takes_the_place_of_the_test_split(trained):
    other = trained.corpus.rename(trained.folder / "Test1")
    out, _ = trained.runs(TOOL, "--corpus", other, *SMALL, "--orders", "random", "--testing", other)
    assert "Val on Test1, 24 utterances" in out and "(all), 108 utterances" in out


def test_other_corpora_of_a_comparison_have_their_label_scale(trained):
    other = shutil.copytree(trained.corpus, trained.folder / "other")
    table = pd.read_csv(other / "Labels/labels_concensus.csv")
    original = table["EmoVal"].copy()
    table["EmoVal"] = 1 + (table["EmoVal"] - 1) * 4 / 6
    table.to_csv(other / "Labels/labels_concensus.csv", index=False)
    given = ("--orders", "ridge", "--testing", other)
    assert "--label-scale 1 5" in compared(trained, *given)[1]
    assert "--label-scale" not in compared(trained, *given, "--label-scale", 1, 5)[1]
    corpus = utils.open_corpus(task(trained))
    train, everything = corpus.load("Train"), corpus.load("all")
    (predicted,) = trials.ridge_predictions(train.rows, train.labels, everything.rows)
    assert everything.labels == pytest.approx(original[table["FileName"].argsort()].to_numpy())
    found = table_of(trained, "test")["ccc"]["other (all)"]
    assert found == pytest.approx(concordance_cc(everything.labels, predicted))


def test_parts_of_a_corpus_are_enough_but_not_for_agreement(trained):
    parts = ["--labels", trained.labels, "--features", trained.feature_files[0].parent, *SMALL]
    trained.runs(TOOL, *parts, "--orders", "none", "--testing", trained.corpus)
    trained.refuses(trained.run(TOOL, *parts, "--orders", "selftaught", "agreement"), "labels_detailed", "agreement")
    assert not list((trained.folder / "results" / "trials").glob("selftaught*"))  # found before any training


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--ssl-epochs 1 --metric m.json", ["leave out --metric"]),
        ("--clusters kmeans", ["add --ssl-epochs"]),
        ("--ssl-epochs 1 --restarts 2", ["add --clusters kmeans"]),
        ("--label-noise 0.3", ["--ssl-epochs", "deepmi, deepmi-balanced, reverse"]),
        ("--orders prediction", ["--checkpoint", "--ssl-epochs"]),
        ("--orders ridge --label-scale 1 5", ["--testing"]),
    ],
)
def test_flags_that_would_do_nothing_or_need_another_are_refused(trained, flags, words):
    trained.refuses(compare(trained, *flags.split()), *words)


def test_orders_are_compared_on_the_same_utterances(trained):
    values = read_metric(trained.metric)
    values.pop(min(values))
    write_metric(trained.metric, values)
    given = ("--orders", "deepmi", "none", "--metric", trained.metric, "--skip-missing")
    trained.refuses(compare(trained, *given), "lacks 1")


def test_folds_keep_a_speakers_utterances_together():
    speakers = ["a"] * 30 + ["b"] * 5 + ["c"] * 5 + ["d"] * 20 + ["Unknown"] * 40 + ["e"] * 9 + ["f"]
    names = [f"{number}.wav" for number in range(len(speakers))]
    folds = trials.folds_by_speaker(speakers, names, 1)
    assert set(folds.tolist()) == set(range(5)) and max(np.bincount(folds)) <= 30
    folds_of = {who: {fold for fold, speaker in zip(folds, speakers) if speaker == who} for who in set(speakers)}
    assert len(folds_of.pop("Unknown")) > 1, "utterances of unknown speakers are not one speaker"
    assert all(len(found) == 1 for found in folds_of.values())
    assert folds.tolist() == trials.folds_by_speaker(speakers, names, 1).tolist()
    assert folds.tolist() != trials.folds_by_speaker(speakers, names, 2).tolist()
    assert set(trials.folds_by_speaker(["a", "b"] * 9, names[:18], 1).tolist()) == {0, 1}
    assert len(set(trials.folds_by_speaker(["a"] * 18, names[:18], 1).tolist())) == 5
