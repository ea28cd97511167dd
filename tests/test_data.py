"""What a run depends on, and its messages where data are missing or unexpected."""

import errno
import json
import shutil

import pytest
import torch
from conftest import log_of, stopped_before_the_end

import training_Curriculum
import utils
from deepmi import cli, exit_status, features, matfile, run_log, runtime
from deepmi.seeds import derived_seed


@pytest.mark.parametrize("number", [1, 3])
def test_a_run_resumes_on_a_copy_of_the_corpus_and_ends_with_the_same_bytes(trained, number):
    target = trained.ssl_checkpoint if number == 1 else trained.regressor
    expected = target.read_bytes()
    with stopped_before_the_end():
        assert trained.stage(number, "--no-resume")[0] == 130
    for folder in (trained.corpus, trained.folder / "corpus_unlabeled"):  # other inodes, times and modes
        shutil.copytree(folder, trained.folder / "copy", copy_function=shutil.copyfile)
        shutil.rmtree(folder)
        (trained.folder / "copy").rename(folder)
        for file in folder.rglob("*.mat"):
            file.chmod(0o640)
    assert "resuming after" in trained.runs(number)[0]
    assert target.read_bytes() == expected
    assert "already trained" in trained.runs(number)[0]


def test_other_content_is_another_run(trained):
    file = trained.feature_files[0]
    matfile.write_mat(file, features.FEATURE_KEY, features.read_feature(file)[None] + 1)
    out, err = trained.runs(1)
    assert "already trained" not in out and "different Train data" in err


def test_different_places_have_different_seeds():
    places = [(), (0,), (0, 0), (0, 0, 0), (1,), ("k-means",), ("k-means", 0), ("sampler", 0), ("sampler", 0, 0)]
    seeds = [derived_seed(31, *place) for place in places]
    assert len(set(seeds)) == len(places) and all(0 <= seed < 2**31 for seed in seeds)
    assert derived_seed(31, "k-means", 0) == seeds[6] != derived_seed(32, "k-means", 0)


def test_the_regressor_shares_no_seed_with_deepemocluster(trained, monkeypatch):
    seed_everything, seeds = runtime.seed_everything, []
    monkeypatch.setattr(runtime, "seed_everything", lambda seed: seeds[-1].add(seed) or seed_everything(seed))
    for stage in (1, 3):
        seeds.append(set())
        trained.runs(stage, "--no-resume")
    assert len(seeds[0]) > 1 < len(seeds[1]) and not seeds[0] & seeds[1]


def test_the_unlabeled_draw_does_not_follow_the_seed(prepared):
    for more in ((), ("--seed", 7), ("--seed", 7, "--unlabeled-seed", 5)):
        prepared.runs(1, "--unlabeled-size", 20, "-ep", 1, *more)
        packed = len(list((prepared.folder / "feature_cache").glob("*.npy")))
        assert packed == (4 if "--unlabeled-seed" in more else 3)  # Train, Validation, unlabeled


def rewrite_metric(bench, change) -> None:
    values = json.loads(bench.metric.read_text())
    change(values)
    bench.metric.write_text(json.dumps(values))


def test_a_metric_knows_utterances_whose_features_are_missing(trained):
    name = min(json.loads(trained.metric.read_text()))
    (trained.corpus / utils.FEATURE_FOLDER / features.feature_name(name)).unlink()
    trained.refuses(trained.stage(3, "--no-resume"), "1 of 60 feature files are missing")
    out, err = trained.runs(3, "--no-resume", "--skip-missing")
    assert "59 Train" in out and name in err


@pytest.mark.parametrize("order", ["deepmi", "deepmi-balanced", "reverse"])
def test_a_metric_of_a_part_of_train_is_refused_or_trains_on_that_part(trained, order):
    names = sorted(json.loads(trained.metric.read_text()))[:7]
    rewrite_metric(trained, lambda values: [values.pop(name) for name in names])
    trained.refuses(trained.stage(3, "--no-resume", "--order", order), "lacks 7", names[0], "--skip-missing")
    out, err = trained.runs(3, "--no-resume", "--order", order, "--skip-missing", "-ep", 47)
    assert "53 Train" in out and "7 of 60" in err and names[0] in err
    checkpoint = trained.regressor_of("DeepMI" if order == "deepmi" else order)
    assert log_of(checkpoint)[-2]["utterances"] == 53


def test_an_unlabeled_set_that_holds_tested_utterances_is_reported(prepared):
    _, err = prepared.runs(1, "--unlabeled", prepared.corpus)
    assert "24 of Test1" in err and "24 of Development" in err and "of Train" not in err
    assert "warning" not in prepared.stage(1, "--no-resume")[2]


def test_the_mean_loss_of_an_epoch_is_weighted_by_the_size_of_its_batches():
    losses = torch.tensor([0.5, 0.8, 1.0])
    parts = torch.arange(9).split(4)
    assert run_log.weighted_mean(losses, parts) == pytest.approx((4 * 0.5 + 4 * 0.8 + 1) / 9)
    assert run_log.weighted_mean(losses, parts, smallest=2) == pytest.approx(0.65)
    assert run_log.weighted_mean(losses[2:], parts[2:], smallest=2) == 1


def test_a_curriculum_batch_of_one_leaves_the_regressor_alone(trained, monkeypatch):
    sizes, loss = [], training_Curriculum.ccc_loss
    monkeypatch.setattr(training_Curriculum, "ccc_loss", lambda *pair: sizes.append(len(pair[1])) or loss(*pair))
    trained.runs(3, "--no-resume", "--order", "none", "-batch", 59, "-ep", 2)
    assert sizes == [59, 59]


def test_a_named_order_is_tested_or_missing(trained):
    trained.runs(4)
    trained.refuses(trained.stage(4, "--order", "reverse"), "SimpleEmoRegressor_reverse@_Val.pt.tar")
    trained.refuses(trained.stage(4, "--order", "reverse", "--model", trained.regressor), "--order", "--model")


def test_the_printed_name_is_that_of_the_tested_corpus(trained):
    assert "Recognition performance for the MSP-Podcast Test set:" in trained.runs(4)[0]
    for file in trained.feature_files:
        file.rename(file.with_name(file.name.replace("MSP-PODCAST", "mine")))
    trained.labels.write_text(trained.labels.read_text().replace("MSP-PODCAST", "mine"))
    out, _ = trained.runs(4)
    assert "MSP-Podcast" not in out and "corpus, split Test1" in out and "Val (CCC): " in out


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
def test_only_errors_that_the_user_can_fix_become_a_message(capsys, monkeypatch, error, message):
    parser = cli.new_parser("x")
    cli.add_corpus_arguments(parser)
    monkeypatch.setattr(exit_status, "_drop_output", lambda: None)

    def main(args):
        raise error

    with pytest.raises(SystemExit if message else OSError) as leaving:
        cli.run(main, cli.parse(parser, ["--corpus", "mine"]))
    if message:
        assert leaving.value.code == 2 and message in capsys.readouterr().err
