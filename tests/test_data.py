"""What a run depends on, and what is said where data are left out or should not be there."""

import errno
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import log_of, read_rows, stopped_before_the_end, write_labels
from test_stages import new_learner, phase

import training_Curriculum
import training_DeepEmoCluster as ssl_stage
import utils
from deepmi import cli, features, matfile, run_log
from deepmi.ccc import concordance_cc
from deepmi.seeds import derived_seed
from model import DenseNet, DenseResNet
from tools import compare_curricula, compare_metrics, trials
from tools.report import charts
from tools.side_by_side import with_changes


def move_to_a_copy(bench) -> None:
    """The corpus and its unlabeled set as another machine sees them: other inodes, times and modes."""
    for folder in (bench.corpus, bench.folder / "corpus_unlabeled"):
        folder.rename(folder.with_name("old"))
        shutil.copytree(folder.with_name("old"), folder, copy_function=shutil.copyfile)
        shutil.rmtree(folder.with_name("old"))
        for file in folder.rglob("*.mat"):
            file.chmod(0o640)


def test_a_copy_of_the_corpus_is_trained_already(trained):
    files = (trained.ssl_checkpoint, trained.regressor)
    before = [file.read_bytes() for file in files]
    move_to_a_copy(trained)
    for number in (1, 3):
        code, out, err = trained.stage(number)
        assert code == 0 and "already trained" in out, out + err
    assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize("number", [1, 3])
def test_a_run_goes_on_on_a_copy_of_the_corpus_and_ends_with_the_same_bytes(trained, number):
    target = trained.ssl_checkpoint if number == 1 else trained.regressor
    expected = target.read_bytes()
    with stopped_before_the_end():
        assert trained.stage(number, "--no-resume")[0] == 130
    move_to_a_copy(trained)
    code, out, err = trained.stage(number)
    assert code == 0 and "resuming after" in out, out + err
    assert target.read_bytes() == expected


def test_other_content_is_another_run(trained):
    file = trained.feature_files[0]
    matfile.write_mat(file, features.FEATURE_KEY, features.read_feature(file)[None] + 1)
    code, out, err = trained.stage(1)
    assert code == 0 and "already trained" not in out and "different Train data" in err


def test_different_places_have_different_seeds():
    places = [(), (0,), (0, 0), (0, 0, 0), (1,), ("k-means",), ("k-means", 0), ("sampler", 0), ("sampler", 0, 0)]
    seeds = [derived_seed(31, *place) for place in places]
    assert len(set(seeds)) == len(places) and all(0 <= seed < 2**31 for seed in seeds)
    assert derived_seed(31, "k-means", 0) == seeds[6] != derived_seed(32, "k-means", 0)


def test_the_regressor_does_not_start_with_weights_of_deepemocluster(trained, monkeypatch):
    first = []
    for module, network in ((ssl_stage, DenseResNet), (training_Curriculum, DenseNet)):

        class Watched(network):
            def __init__(self, *args):
                super().__init__(*args)
                first.append(next(self.parameters()).detach().flatten()[:100].clone())

        monkeypatch.setattr(module, network.__name__, Watched)
        assert trained.stage(1 if module is ssl_stage else 3, "--no-resume")[0] == 0
    assert not torch.allclose(*first)


def test_the_unlabeled_draw_does_not_follow_the_seed(prepared):
    for more in ((), ("--seed", 7), ("--seed", 7, "--unlabeled-seed", 5)):
        assert prepared.stage(1, "--unlabeled-size", 20, "-ep", 1, *more)[0] == 0
        yet = len(list((prepared.folder / "feature_cache").glob("*.npy")))
        assert yet == (4 if "--unlabeled-seed" in more else 3)  # Train, Validation, unlabeled


def rewrite_metric(bench, change) -> None:
    values = json.loads(bench.metric.read_text())
    change(values)
    bench.metric.write_text(json.dumps(values))


def test_a_metric_knows_utterances_whose_features_are_missing(trained):
    name = sorted(json.loads(trained.metric.read_text()))[0]
    (trained.corpus / utils.FEATURE_FOLDER / features.feature_name(name)).unlink()
    trained.refuses(trained.stage(3, "--no-resume"), "1 of 60 feature files are missing")
    code, out, err = trained.stage(3, "--no-resume", "--skip-missing")
    assert code == 0 and "59 Train" in out and name in err


@pytest.mark.parametrize("order", ["deepmi", "deepmi-balanced", "reverse"])
def test_a_metric_of_a_part_of_train_is_refused_or_trains_on_that_part(trained, order):
    names = sorted(json.loads(trained.metric.read_text()))[:7]
    rewrite_metric(trained, lambda values: [values.pop(name) for name in names])
    trained.refuses(trained.stage(3, "--no-resume", "--order", order), "lacks 7", names[0], "--skip-missing")
    code, out, err = trained.stage(3, "--no-resume", "--order", order, "--skip-missing", "-ep", 47)
    assert code == 0 and "53 Train" in out and "7 of 60" in err and names[0] in err
    checkpoint = trained.regressor_of("DeepMI" if order == "deepmi" else order)
    assert log_of(checkpoint)[-2]["utterances"] == 53


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda values: values.update({"stranger.wav": 0.1}), ["1 besides", "stranger.wav"]),
        (lambda values: [values.pop(name) for name in sorted(values)[1:]], ["fewer than two"]),
    ],
)
def test_a_metric_of_another_corpus_or_of_one_utterance_is_refused_even_with_skip_missing(trained, change, words):
    rewrite_metric(trained, change)
    trained.refuses(trained.stage(3, "--no-resume", "--skip-missing"), *words)


def test_orders_are_compared_on_the_same_utterances(trained):
    rewrite_metric(trained, lambda values: values.pop(sorted(values)[0]))
    given = ("--orders", "deepmi", "none", "--metric", trained.metric, "--skip-missing")
    trained.refuses(compare(trained, *given), "lacks 1")


def test_an_unlabeled_set_that_holds_tested_utterances_is_reported(prepared):
    code, _, err = prepared.stage(1, "--unlabeled", prepared.corpus)
    assert code == 0 and "24 of Test1" in err and "24 of Development" in err and "of Train" not in err
    assert "warning" not in prepared.stage(1, "--no-resume")[2]


def test_hidden_labels_of_a_split_that_is_not_used_do_not_stop_the_report(trained, monkeypatch):
    monkeypatch.setattr(charts, "write_png", lambda chart, path: None)
    rows = read_rows(trained.labels)
    hidden = [dict(zip(rows[0], row)) for row in rows[-3:]]
    for number, row in enumerate(hidden):
        row.update(FileName=f"hidden_{number}.wav", EmoVal="0", EmoAct="-", Split_Set="Test3")
    write_labels(trained.labels, [*rows[1:], *([row[name] for name in rows[0]] for row in hidden)], rows[0])
    code, _, err = trained.run("tools.report_DeepMI", "-emo", "Val", "-nc", 5, "--corpus", trained.corpus)
    assert code == 0, err
    assert "hidden_0.wav" in err


def test_a_joint_batch_of_one_trains_on_its_pseudo_label_only():
    learner, rows, targets = new_learner(), torch.randn(9, 12), torch.randn(9)
    phase(learner, rows, targets, batch_size=9)  # so that Adam has its momentum
    regressor = [value.clone() for value in learner.model.emo_regressor.parameters()]
    _, record = phase(learner, rows, targets, epoch=1, batch_size=1)
    assert all(torch.equal(a, b) for a, b in zip(regressor, learner.model.emo_regressor.parameters()))
    assert record["cluster_loss"] > 0 and record["ccc_loss"] == 1


def test_the_mean_loss_of_an_epoch_is_weighted_by_the_size_of_its_batches():
    losses = torch.tensor([0.5, 0.8, 1.0])
    parts = torch.arange(9).split(4)
    assert run_log.weighted_mean(losses, parts) == pytest.approx((4 * 0.5 + 4 * 0.8 + 1) / 9)
    assert run_log.weighted_mean(losses, parts, smallest=2) == pytest.approx(0.65)
    assert run_log.weighted_mean(losses[2:], parts[2:], smallest=2) == 1


def test_a_curriculum_batch_of_one_leaves_the_regressor_alone(trained, monkeypatch):
    sizes = []
    loss = training_Curriculum.ccc_loss

    def watched(prediction, targets):
        sizes.append(len(targets))
        return loss(prediction, targets)

    monkeypatch.setattr(training_Curriculum, "ccc_loss", watched)
    assert trained.stage(3, "--no-resume", "--order", "none", "-batch", 59, "-ep", 2)[0] == 0
    assert sizes == [59, 59]


def test_a_named_order_is_tested_or_missing(trained):
    assert trained.stage(4)[0] == 0
    trained.refuses(trained.stage(4, "--order", "reverse"), "SimpleEmoRegressor_reverse@_Val.pt.tar")
    trained.refuses(trained.stage(4, "--order", "reverse", "--model", trained.regressor), "--order", "--model")


def test_the_printed_corpus_is_the_tested_one(trained):
    assert "Recognition performance for the MSP-Podcast Test set:" in trained.stage(4)[1]
    rows = read_rows(trained.labels)
    for row in rows[1:]:
        file = trained.corpus / utils.FEATURE_FOLDER / features.feature_name(row[0])
        row[0] = row[0].replace("MSP-PODCAST", "mine")
        file.rename(file.with_name(features.feature_name(row[0])))
    write_labels(trained.labels, rows[1:], rows[0])
    out = trained.stage(4)[1]
    assert "MSP-Podcast" not in out and "corpus, split Test1" in out and "Val (CCC): " in out


def compare(bench, *more):
    given = ["--corpus", bench.corpus, "-emo", "Val", "-nc", 5, "-batch", 16, "-ep", 2, "--seeds", 1, "--jobs", 1]
    return bench.run("tools.compare_curricula", *given, *more)


def test_other_corpora_of_a_comparison_have_their_label_scale(trained):
    other = shutil.copytree(trained.corpus, trained.folder / "other")
    table = pd.read_csv(other / "Labels/labels_concensus.csv")
    original = table["EmoVal"].copy()
    table["EmoVal"] = 1 + (table["EmoVal"] - 1) * 4 / 6
    table.to_csv(other / "Labels/labels_concensus.csv", index=False)
    code, _, err = compare(trained, "--orders", "ridge", "--testing", other)
    assert code == 0 and "--label-scale 1 5" in err
    code, _, err = compare(trained, "--orders", "ridge", "--testing", other, "--label-scale", 1, 5)
    assert code == 0 and "--label-scale" not in err
    found = pd.read_csv(trained.folder / "results/compare_Val.csv").set_index("test")["ccc"]
    args = compare_curricula.get_args_parser().parse_args(["--corpus", str(trained.corpus), "-emo", "Val"])
    train = utils.open_corpus(args).load("Train")
    everything = utils.open_corpus(args).load("all")
    (predicted,) = trials.ridge_predictions(train.rows, train.labels, everything.rows)
    assert everything.labels == pytest.approx(original[table["FileName"].argsort()].to_numpy())
    assert found["other (all)"] == pytest.approx(concordance_cc(everything.labels, predicted))
    trained.refuses(compare(trained, "--orders", "ridge", "--label-scale", 1, 5), "--testing")


def folders(bench) -> set[str]:
    return {path.name for path in (bench.folder / "results/trials").iterdir()}


def test_more_epochs_of_the_regressor_leave_deepemocluster_and_the_ridge_alone(prepared):
    given = ("--orders", "deepmi", "ridge", "--ssl-epochs", 1, "--unlabeled-size", 0)
    assert compare(prepared, *given)[0] == 0
    before = folders(prepared)
    assert compare(prepared, *given, "-ep", 3)[0] == 0
    new = folders(prepared) - before
    assert len(new) == 1 and "deepmi" in new.pop()


def test_two_unlabeled_sizes_that_draw_the_same_set_are_one_setting(prepared):
    given = ["--seeds", 2, "-ep", 1, "-batch", 16, "-emo", "Val", "-nc", 3, "--corpus", prepared.corpus, "--jobs", 1]
    given += ["--unlabeled", f"{prepared.corpus}_unlabeled", "--unlabeled-size", 50, 90000]
    code, out, err = prepared.run("tools.compare_metrics", *given)
    assert code == 0 and "90000" in err and "50 utterances" in err
    assert len([line for line in out.splitlines() if line.startswith("| K 3, 50 unlabeled")]) == 1
    args = compare_metrics.get_args_parser().parse_args(["--unlabeled", f"{prepared.corpus}_unlabeled"])
    tasks = [with_changes(args, unlabeled_size=size) for size in (0, 20, 60, 70)]
    assert [task.unlabeled_size for task in compare_metrics.without_equal_sizes(tasks)] == [0, 20, 60]


def test_folds_keep_a_speakers_utterances_together():
    speakers = ["a"] * 30 + ["b"] * 5 + ["c"] * 5 + ["d"] * 20 + ["Unknown"] * 40 + ["e"] * 9 + ["f"]
    names = [f"{number}.wav" for number in range(len(speakers))]
    folds = trials.folds_by_speaker(speakers, names, 1)
    assert set(folds.tolist()) == set(range(5))
    for who in "abcdef":
        assert len({fold for fold, speaker in zip(folds, speakers) if speaker == who}) == 1
    unknown = [fold for fold, speaker in zip(folds, speakers) if speaker == "Unknown"]
    assert len(set(unknown)) > 1, "utterances of unknown speakers are not one speaker"
    assert max(np.bincount(folds)) <= 30
    assert folds.tolist() == trials.folds_by_speaker(speakers, names, 1).tolist()
    assert folds.tolist() != trials.folds_by_speaker(speakers, names, 2).tolist()
    assert set(trials.folds_by_speaker(["a", "b"] * 9, names[:18], 1).tolist()) == {0, 1}
    assert len(set(trials.folds_by_speaker(["a"] * 18, names[:18], 1).tolist())) == 5


@pytest.mark.parametrize("header", ["FileName,EmoDetail", "EmoDetail,FileName", "Part,EmoDetail,FileName"])
def test_detailed_labels_take_their_columns_by_name(tmp_path, header):
    row = {"FileName": "a.wav", "EmoDetail": "WORKER1; Happy; Amused,Excited; A:5; V:6; D:4;", "Part": "x"}
    file = tmp_path / "labels_detailed.csv"
    file.write_text(f"{header}\n{','.join(row[name] for name in header.split(','))}\n")
    (found,) = utils.read_detailed_labels(file).to_dict("records")
    assert (found["FileName"], found["Worker"], found["EmoVal"]) == ("a.wav", "WORKER1", 6)
    assert found["EmoClass_Second"] == "Amused,Excited"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EBADF, "Bad file descriptor"), None),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/a file of the program's own"), None),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "mine/a.mat"), "mine/a.mat"),
        (PermissionError(errno.EACCES, "Permission denied", "/etc/secret"), "/etc/secret"),
        (OSError(errno.ENOTCONN, "Transport endpoint is not connected", "/mnt/corpus/a.mat"), "/mnt/corpus/a.mat"),
        (OSError(errno.ENOSPC, "No space left on device", "big.npy"), "big.npy"),
    ],
)
def test_only_what_the_user_can_mend_becomes_a_message(capsys, monkeypatch, error, message):
    parser = cli.new_parser("x")
    cli.add_corpus_arguments(parser)
    monkeypatch.setattr(cli, "_drop_output", lambda: None)

    def main(args):
        raise error

    with pytest.raises(SystemExit if message else OSError) as leaving:
        cli.run(main, cli.parse(parser, ["--corpus", "mine"]))
    if message:
        assert leaving.value.code == 2 and message in capsys.readouterr().err
