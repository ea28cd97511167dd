"""The stages as a user runs them: the seed commands, resume, determinism, orders."""

import argparse
import contextlib
import importlib
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, STAGES, Killed, log_of, run_python, stopped_before_the_end
from scipy.io import loadmat
from test_model import numpy_dense_resnet

import model
import training_DeepEmoCluster as ssl_stage
import utils
from deepmi import batches, cli, features, matfile, process, run_log, runtime
from deepmi.ccc import concordance_cc
from deepmi.metric import read_metric
from deepmi.process import UserError

HEAVY = ("torch", "pandas", "scipy", "faiss", "matplotlib", "sklearn", "altair", "transformers")
SCRIPTS = [*STAGES, *sorted(f"tools.{path.stem}" for path in ROOT.glob("tools/*.py") if "__main__" in path.read_text())]


def test_the_seed_commands_run_with_only_the_two_environment_variables(bench):
    """With fewer epochs and clusters than the paper's; nothing else is given."""
    environment = {"DEEPMI_CORPUS": str(bench.corpus), "DEEPMI_UNLABELED": f"{bench.corpus}_unlabeled"}
    commands = (
        "norm_para.py",
        "training_DeepEmoCluster.py -ep 1 -batch 32 -emo Val -nc 50",
        "extract_DeepMI.py -ep 1 -batch 32 -emo Val -nc 50",
        "training_Curriculum.py -ep 1 -batch 32 -emo Val",
        "testing_Curriculum.py -ep 1 -batch 32 -emo Val",
    )
    code = f"""
import runpy, sys
for command in {commands}:
    sys.argv = command.split()
    try:
        runpy.run_path({str(ROOT)!r} + "/" + sys.argv[0], run_name="__main__")
    except SystemExit as leaving:
        assert not leaving.code, command"""
    done = run_python("-c", code, cwd=bench.folder, **environment)
    assert done.returncode == 0, done.stderr
    assert "%|" not in done.stderr, "a progress bar although the output is no terminal"
    lines = done.stdout.splitlines()
    start = lines.index("Recognition performance for the MSP-Podcast Test set:")
    assert lines[start + 1].startswith("Val (CCC): ") and "95 % bootstrap interval" in lines[start + 2]
    made = {
        "NormTerm/feat_norm_means": ["mat"],
        "Models/ResNetDeepEmoCluster_epoch1_batch32_50clusters_Val": ["pth.tar", "log.jsonl", "png"],
        "curriculum_metric/DeepMI_50clusters@_Val": ["json"],
        "Models/SimpleEmoRegressor_DeepMI@_Val": ["pt.tar", "log.jsonl", "png"],
        "results/SimpleEmoRegressor_DeepMI@_Val_Test1": ["json", "csv"],
    }
    assert all((bench.folder / f"{stem}.{kind}").stat().st_size for stem, kinds in made.items() for kind in kinds)
    assert not list(bench.folder.rglob("*.tmp")) and not list(bench.folder.rglob("*.resume"))


def test_help_explains_every_flag_and_needs_no_heavy_import():
    code = f"""
import contextlib, io, json, runpy, sys
found, sys.argv = {{}}, ["x", "--help"]
for name in {SCRIPTS}:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        runpy.run_module(name, run_name="__main__")
    found[name] = out.getvalue(), [heavy for heavy in {HEAVY} if heavy in sys.modules]
print(json.dumps(found))"""
    done = run_python("-c", code, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for name, (text, heavy) in json.loads(done.stdout).items():
        assert not heavy, f"the help of {name} waits for heavy imports"
        assert "python " in text, "the command is not in the help"
        assert "None" not in text, "a default that is none"
        for action in importlib.import_module(name).get_args_parser()._actions:
            assert action.help and len(action.help) > 5, f"{action.option_strings or action.dest} is not explained"


def test_norm_terms_are_numpys(bench):
    assert "1 of them constant" in bench.runs(0)[0]
    names, labels = utils.getPaths_attri(bench.corpus, "Train", "Act")
    matrix = matrix_of(bench, names)
    for what, expected in {"means": matrix.mean(axis=0), "stds": matrix.std(axis=0)}.items():
        stored = loadmat(bench.folder / "NormTerm" / f"feat_norm_{what}.mat")["normal_para"]
        assert stored.shape == (1, matrix.shape[1]) and np.allclose(stored[0], expected, rtol=1e-12, atol=1e-13)
    assert loadmat(bench.folder / "NormTerm/act_norm_means.mat")["normal_para"].item() == pytest.approx(labels.mean())
    assert loadmat(bench.folder / "NormTerm/act_norm_stds.mat")["normal_para"].item() == pytest.approx(labels.std())


def matrix_of(bench, names) -> np.ndarray:
    """The features of utterances as scipy reads them."""
    folder = bench.corpus / utils.FEATURE_FOLDER
    return np.concatenate([loadmat(folder / f"{name[:-4]}.mat")["Audio_data"] for name in names])


def test_replacing_different_normalisation_statistics_is_reported(bench):
    assert "replaces" not in bench.stage(0)[2] + bench.stage(0)[2]
    matfile.write_mat(bench.feature_files[0], features.FEATURE_KEY, np.arange(40.0)[None])
    assert "replaces different normalisation statistics" in bench.stage(0)[2]


@pytest.mark.parametrize("empty", ["", "NA"])
def test_an_attribute_without_labels_is_left_out_and_refused_only_where_asked_for(bench, empty):
    column = utils.CONSENSUS_COLUMNS.index("EmoDom")
    bench.edit_labels(lambda rows: [row.__setitem__(column, empty) for row in rows[1:]])
    assert "Dom: no labels" in bench.runs(0)[0]
    assert not (bench.folder / "NormTerm/dom_norm_means.mat").exists()
    bench.runs(1, "-ep", 1)
    bench.refuses(bench.stage(1, "-emo", "Dom"), "EmoDom is empty")


def test_the_log_describes_the_run(trained):
    first, *epochs, last = log_of(trained.ssl_checkpoint)
    assert first["run"]["arguments"]["num_clusters"] == 5 and first["versions"]["torch"] == torch.__version__
    assert first["counts"] == {"Train": 60, "Validation": 24, "unlabeled": 50}
    assert [record["epoch"] for record in epochs] == [0, 1] and last["finished"]
    assert epochs[0]["nmi"] is None and 0 <= epochs[1]["nmi"] <= 1
    for record in epochs:
        assert sum(record["labeled"]["sizes"]) == 60 and sum(record["unlabeled"]["sizes"]) == 50
        assert record["labeled"]["non_empty"] == sum(size > 0 for size in record["labeled"]["sizes"])


def test_the_checkpoint_kept_is_that_of_the_best_epoch(trained):
    losses = [record["validation_ccc_loss"] for record in log_of(trained.ssl_checkpoint)[1:-1]]
    network, info = model.load_ssl_checkpoint(trained.ssl_checkpoint, 40, 5, "Val")
    norm_dir = trained.folder / "NormTerm"
    corpus = utils.LabeledCorpus(utils.find_corpus(trained.corpus), "Val", norm_dir, trained.folder / "cache", 1)
    data = corpus.load("Validation")
    with torch.no_grad():
        prediction = network.predict_attribute(torch.from_numpy(np.array(data.rows))).numpy()
    loss = 1 - concordance_cc(data.targets, prediction)
    assert loss == pytest.approx(min(losses), abs=1e-5) and info["best_epoch"] == int(np.argmin(losses))


def phase(learner, rows, targets=None, epoch=0, batch_size=8):
    """Train DeepEmoCluster for one phase on random features."""
    args = argparse.Namespace(num_clusters=3, batch_size=batch_size, precision="fp32", seed=0)
    names = [str(number) for number in range(len(rows))]
    rows = batches.Rows(rows.numpy(), torch.device("cpu"), "fp32")
    return ssl_stage.train_phase(learner, rows, names, targets, epoch, args)


def new_learner(num_features=12):
    runtime.seed_everything(0)
    return ssl_stage.Learner(num_features, argparse.Namespace(num_clusters=3, compile=False), torch.device("cpu"))


def test_the_unlabeled_phase_leaves_the_regressor_and_the_labeled_phase_trains_it():
    learner, rows = new_learner(), torch.randn(20, 12)
    before = {key: value.clone() for key, value in learner.model.state_dict().items()}

    def changed():
        state = learner.model.state_dict()
        return {key.split(".")[0] for key, value in state.items() if not torch.equal(value, before[key])}

    phase(learner, rows)
    assert changed() == {"dnn_features", "classifier", "top_layer_class"}
    phase(learner, rows, torch.randn(20))
    assert changed() == {"dnn_features", "classifier", "top_layer_class", "emo_regressor"}


def test_a_joint_step_is_sgd_and_adam_on_one_gradient():
    """Against the update rules written out, for the last layer of the regressor and the bias of the fresh top layer."""
    learner, rows = new_learner(), torch.randn(8, 12)
    weight = learner.model.emo_regressor[2].weight
    before = weight.detach().clone()
    phase(learner, rows, torch.randn(8))
    gradient = weight.grad
    adam = 1e-4 * gradient / (gradient.abs() + 1e-8)  # Adam's first step with its bias correction
    assert torch.allclose(weight, before - 1e-3 * gradient - adam, atol=1e-8)
    bias = learner.model.top_layer_class.bias
    assert torch.allclose(bias, -1e-2 * bias.grad, atol=1e-8)


def test_a_joint_batch_of_one_trains_on_its_pseudo_label_only():
    learner, rows, targets = new_learner(), torch.randn(9, 12), torch.randn(9)
    phase(learner, rows, targets, batch_size=9)  # so that Adam has its momentum
    regressor = [value.clone() for value in learner.model.emo_regressor.parameters()]
    _, record = phase(learner, rows, targets, epoch=1, batch_size=1)
    assert all(torch.equal(a, b) for a, b in zip(regressor, learner.model.emo_regressor.parameters()))
    assert record["cluster_loss"] > 0 and record["ccc_loss"] == 1


def test_a_loss_that_is_not_finite_names_the_batch_and_its_files(trained, monkeypatch):
    names, parts = [f"u{i}.wav" for i in range(8)], torch.arange(8).split(4)
    with pytest.raises(UserError, match=r"epoch 7: the loss of batch 1 is NaN or infinite .*u5\.wav"):
        run_log.refuse_divergence(torch.tensor([[1.0], [float("nan")]]), parts, names, "epoch 7")
    pack = features.pack_features

    def pack_infinite(*arguments):
        packed = pack(*arguments)
        packed.rows[:] = np.inf  # the map is copy-on-write
        return packed

    monkeypatch.setattr(features, "pack_features", pack_infinite)
    result = trained.stage(3, "--no-resume", "--cache-dir", "other")
    trained.refuses(result, "epoch 0: the loss of batch 0 is NaN or infinite", "MSP-PODCAST_")


def test_extraction_is_deterministic_knows_no_seed_and_takes_another_alpha(trained):
    first = trained.metric.read_bytes()
    assert "alpha 0;" in trained.runs(2, "--alpha", 0)[0] and trained.metric.read_bytes() != first
    for more in (["--seed", 7, "--workers", 1], ["--alpha", 0.5]):
        trained.runs(2, *more)
        assert trained.metric.read_bytes() == first


def test_extraction_is_the_formula_on_the_networks_output(trained):
    """The whole stage against numpy, from the checkpoint and the .mat files."""
    state = torch.load(trained.ssl_checkpoint, weights_only=True)["state_dict"]
    state = {key.replace("module.", ""): value.double().numpy() for key, value in state.items()}
    names, labels = utils.getPaths_attri(trained.corpus, "Train", "Val")
    norm = {
        key: loadmat(trained.folder / "NormTerm" / f"{key}.mat")["normal_para"]
        for key in ("feat_norm_means", "feat_norm_stds", "val_norm_means", "val_norm_stds")
    }
    with np.errstate(invalid="ignore", divide="ignore"):
        z = (matrix_of(trained, names) - norm["feat_norm_means"]) / norm["feat_norm_stds"]
    z = np.clip(np.nan_to_num(z, nan=0.0, posinf=0.0, neginf=0.0), -3, 3)
    logits, prediction, _ = numpy_dense_resnet(state, z)
    x = logits.argmax(axis=1)
    y = np.digitize(labels, [2, 3, 4, 5, 6])
    yp = np.digitize(prediction * norm["val_norm_stds"].item() + norm["val_norm_means"].item(), [2, 3, 4, 5, 6])

    def part(a, b):
        pairs = list(zip(a.tolist(), b.tolist()))
        p = {pair: pairs.count(pair) / len(pairs) for pair in pairs}
        pa = {v: np.mean(a == v) for v in set(a.tolist())}
        pb = {v: np.mean(b == v) for v in set(b.tolist())}
        return np.array([p[q] * np.log(p[q] / (pa[q[0]] * pb[q[1]])) for q in pairs])

    expected = 0.5 * part(x, y) + 0.5 * part(yp, y)
    found = read_metric(trained.metric)
    assert np.allclose([found[name] for name in names], expected, atol=6e-6)


def test_clusters_by_kmeans_are_averaged_over_restarts(trained):
    runs = {}
    for restarts in (1, 3):
        assert "k-means" in trained.runs(2, "--clusters", "kmeans", "--restarts", restarts)[0]
        runs[restarts] = set(read_metric(trained.metric).values())
    assert len(runs[3]) > len(runs[1])
    trained.refuses(trained.stage(2, "--restarts", 3), "--restarts", "--clusters kmeans")


def test_a_cluster_head_that_has_collapsed_is_reported(trained, monkeypatch):
    monkeypatch.setattr(model.DenseResNet, "forward", lambda self, x: (torch.eye(5)[[0] * len(x)], x[:, 0]))
    _, err = trained.runs(2)
    assert "uses 1 of 5 clusters" in err and "--clusters kmeans" in err


def test_a_share_of_every_level_and_another_schedule(trained):
    argv = ["--no-resume", "--keep", 0.5, "--rate-decay", "late", "--bins", 2, "--epochs-per-bin", 3]
    out, err = trained.runs(3, *argv)
    assert "--keep 0.5: 3" in out and "replaces" not in err
    first, *epochs, _ = log_of(trained.regressor)
    assert first["run"]["arguments"]["rate_decay"] == "late"
    sizes = [line["utterances"] for line in epochs]
    assert sizes[:3] == [sizes[-1] // 2] * 3 and sizes[3] == sizes[-1] < 40
    assert [line["lr"] for line in epochs] == [1e-3] * 6 + [5e-4] * 2
    trained.refuses(trained.stage(3, "--order", "none", "--metric", trained.metric), "--metric", "no effect")


def test_results_hold_the_printed_ccc_and_where_it_comes_from(trained):
    out, _ = trained.runs(4)
    result, table = trained.result()
    assert list(table) == ["FileName", "label", "prediction"] and len(table) == result["n"] == 24
    assert concordance_cc(table["label"], table["prediction"]) == pytest.approx(result["ccc"])
    assert f"Val (CCC): {result['ccc']:.3f}" in out.splitlines()
    assert "2 whole speakers and 8 utterances of unknown speakers" in result["interval"]
    assert result["interval"] in out and "only 2 speakers" in result["interval"]
    expected = dict(zip(*utils.getPaths_attri(trained.corpus, "Test1", "Val")))
    assert dict(zip(table["FileName"], table["label"])) == expected
    assert {"corpus", "label_scale", "seed", "checkpoint", "split", "interval_95"} <= set(result)
    assert result["training"]["metric"] == trained.metric.name


def test_a_checkpoint_of_other_settings_or_of_an_unfinished_training_is_reported(trained):
    other, unfinished = "was trained with -ep 8 -batch 16", "has not finished"
    assert other not in trained.run("testing_Curriculum", "--corpus", trained.corpus, "-emo", "Val")[1]
    out, err = trained.runs(4)
    assert other not in out and unfinished not in err
    assert other in trained.stage(4, "-ep", 9)[1]
    for number, file in ((2, trained.ssl_checkpoint), (4, trained.regressor)):
        file.with_name(file.name + ".resume").touch()
        assert unfinished in trained.stage(number)[2]


@pytest.mark.parametrize("order", ["deepmi-balanced", "random", "reverse", "none"])
def test_controls_train_into_files_of_their_own(trained, order):
    before = trained.regressor.read_bytes()
    trained.runs(3, "--order", order)
    assert trained.regressor.read_bytes() == before
    sizes = [line["utterances"] for line in log_of(trained.regressor_of(order))[1:-1]]
    assert sizes == ([60] * 8 if order == "none" else [6] * 5 + [12] * 3)
    trained.regressor_of(order).rename(trained.folder / trained.regressor_of(order).name)
    for more in (["--order", order], []):  # the only regressor of a folder needs no name
        assert f"SimpleEmoRegressor_{order}@_Val" in trained.runs(4, "--model-dir", ".", *more)[0]


def test_utterances_without_features_can_be_left_out(bench):
    for file in (bench.feature_files[0], bench.feature_files[-1]):
        file.unlink()
    for number in range(5):
        _, err = bench.runs(number, "--skip-missing")
    assert "left out" in err
    assert len(read_metric(bench.metric)) == 59


@pytest.mark.parametrize("number", [1, 3])
def test_a_run_killed_after_every_epoch_ends_with_the_same_bytes(trained, monkeypatch, number):
    target = trained.ssl_checkpoint if number == 1 else trained.regressor
    picture = target.with_name(f"{target.name.removesuffix('.tar').rsplit('.', 1)[0]}.png")

    def outputs():
        volatile = ("seconds", "process", "corpus", "unlabeled")
        log = [{key: value for key, value in line.items() if key not in volatile} for line in log_of(target)]
        return target.read_bytes(), picture.read_bytes(), log

    expected = outputs()
    for file in target.parent.iterdir():
        file.unlink()
    save, kills = run_log.TrainingRun.save, []

    def save_then_die(self, *args):
        kills.append(self)
        if len(kills) % 2:
            save(self, *args)  # every other kill comes before the state is saved
        raise Killed

    monkeypatch.setattr(run_log.TrainingRun, "save", save_then_die)
    epochs = 2 if number == 1 else 8
    for _ in range(4 * epochs):
        with contextlib.suppress(Killed):
            trained.runs(number)
            break
    assert len(kills) >= epochs
    assert outputs() == expected
    assert not list(target.parent.glob("*.resume"))


def start(stage, bench, *more):
    """Start a training with narrow networks in a new process."""
    command = [sys.executable, ROOT / "tests/narrow_stage.py", stage, "--corpus", bench.corpus, "-nc", 5, *more]
    return subprocess.Popen(
        [*map(str, command), "-emo", "Val"], cwd=bench.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_second_run_of_a_checkpoint_names_the_first_which_ends_on_a_signal_with_one_line(trained):
    log = trained.folder / "Models/SimpleEmoRegressor_none@_Val.log.jsonl"
    first = start("training_Curriculum", trained, "-ep", 100000, "-batch", 16, "--order", "none")
    while not (line := first.stdout.readline()).startswith("epoch   3"):
        assert line, first.stderr.read()
    second = trained.stage(3, "--order", "none")
    trained.refuses(second, "none@_Val.pt.tar: another run is writing it", f"process {first.pid} ")
    assert trained.stage(3, "--order", "random", "-ep", 1)[0] == 0  # another checkpoint in the same folder
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=60)
    assert first.returncode == 130
    (line,) = err.strip().splitlines()
    last = int(out.strip().splitlines()[-1].split(":")[0].split()[1])
    assert line.endswith(f"stopped. The same command continues after {last + 1} epochs.")
    before = log.read_text()
    trained.runs(3, "--order", "none", "--no-resume")
    assert log.read_text() != before


def test_sigkill_and_the_same_command_again_end_with_the_same_bytes(prepared):
    name = "ResNetDeepEmoCluster_epoch40_batch8_5clusters_Val.pth.tar"
    more = ("-ep", 40, "-batch", 8, "--unlabeled-size", 0)
    prepared.runs(1, *more, "--model-dir", "whole")
    first = start("training_DeepEmoCluster", prepared, *more, "--model-dir", "parts")
    resume, deadline = prepared.folder / f"parts/{name}.resume", time.monotonic() + 120
    while not resume.exists() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    first.kill()
    first.communicate()
    assert first.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    out, _ = prepared.runs(1, *more, "--model-dir", "parts")
    assert "resuming after" in out
    assert (prepared.folder / "parts" / name).read_bytes() == (prepared.folder / "whole" / name).read_bytes()
    assert {path.suffix for path in (prepared.folder / "parts").glob(".*")} <= {".lock"}


def test_a_signal_that_a_library_swallows_still_ends_the_run(monkeypatch, capsys):
    def main(args):
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException:
            time.sleep(20)  # as if nothing had happened

    monkeypatch.setattr(process, "STOP_PATIENCE", 0.1)
    with pytest.raises(SystemExit) as leaving:
        cli.run(main, cli.parse(cli.new_parser("some stage"), []))
    assert leaving.value.code == 143
    assert "stopped" in capsys.readouterr().err


@pytest.fixture
def two_threads():
    """As on a machine with several cores; the remaining tests use one thread."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("number", [1, 3])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_different_ones(trained, two_threads, number):
    file, same = (trained.ssl_checkpoint, ["--unlabeled-size", 0]) if number == 1 else (trained.regressor, [])
    found = []
    for more in (["--no-resume"], ["--no-resume"], ["--seed", 5]):
        _, err = trained.runs(number, *same, *more)
        found.append(file.read_bytes())
    assert found[0] == found[1] != found[2]
    assert "replaces" in err and "seed 31 there, 5 now" in err


def test_an_unfinished_run_of_another_seed_is_not_overwritten(prepared):
    with stopped_before_the_end():
        assert prepared.stage(1)[0] == 130
    prepared.refuses(prepared.stage(1, "--seed", 9), "unfinished run", "seed 31 there, 9 now", "--no-resume")
    prepared.runs(1, "--seed", 9, "--no-resume")


@pytest.mark.as_published
def test_networks_of_the_published_width_train_and_extract_in_bf16_and_draw_their_runs(prepared):
    for number in range(1, 5):
        prepared.runs(number, "--precision", "bf16")
    pictures = sorted((prepared.folder / "Models").glob("*.png"))
    assert [picture.read_bytes()[:4] for picture in pictures] == [b"\x89PNG"] * 2
