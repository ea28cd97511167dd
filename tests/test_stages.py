"""The stages as a user runs them: the seed commands, resume, determinism, orders."""

import argparse
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, read_rows, run_script
from scipy.io import loadmat

import model
import training_DeepEmoCluster as ssl_stage
import utils
from deepmi import batches, cli, features, matfile, process, run_log, runtime
from deepmi.ccc import concordance_cc
from deepmi.metric import read_metric
from deepmi.process import UserError

SCRIPTS = ("norm_para", "training_DeepEmoCluster", "extract_DeepMI", "training_Curriculum", "testing_Curriculum")
HEAVY = ("torch", "pandas", "scipy", "faiss", "matplotlib", "sklearn", "altair", "transformers")
TOOLS = (
    "tools.extract_features",
    "tools.prepare_corpus",
    "tools.predict",
    "tools.make_demo_corpus",
    "tools.fetch_v18",
    "tools.compare_curricula",
    "tools.compare_metrics",
    "tools.report_DeepMI",
)


def test_the_seed_commands_run_with_only_the_two_environment_variables(bench):
    """With fewer epochs and clusters than the paper's; nothing else is given."""
    environment = {"DEEPMI_CORPUS": str(bench.corpus), "DEEPMI_UNLABELED": f"{bench.corpus}_unlabeled"}
    commands = (
        "norm_para.py",
        "training_DeepEmoCluster.py -ep 2 -batch 32 -emo Val -nc 50",
        "extract_DeepMI.py -ep 2 -batch 32 -emo Val -nc 50",
        "training_Curriculum.py -ep 3 -batch 32 -emo Val",
        "testing_Curriculum.py -ep 3 -batch 32 -emo Val",
    )
    for command in commands:
        done = run_script(*command.split(), cwd=bench.folder, **environment)
        assert done.returncode == 0, done.stderr
        assert "%|" not in done.stderr, "a progress bar although the output is no terminal"
    lines = done.stdout.splitlines()
    start = lines.index("Recognition performance for the MSP-Podcast Test set:")
    assert lines[start + 1].startswith("Val (CCC): ") and "95 % bootstrap interval" in lines[start + 2]
    made = [
        "NormTerm/feat_norm_means.mat",
        "Models/ResNetDeepEmoCluster_epoch2_batch32_50clusters_Val.pth.tar",
        "Models/ResNetDeepEmoCluster_epoch2_batch32_50clusters_Val.log.jsonl",
        "Models/ResNetDeepEmoCluster_epoch2_batch32_50clusters_Val.png",
        "curriculum_metric/DeepMI_50clusters@_Val.json",
        "Models/SimpleEmoRegressor_DeepMI@_Val.pt.tar",
        "Models/SimpleEmoRegressor_DeepMI@_Val.png",
        "results/SimpleEmoRegressor_DeepMI@_Val_Test1.json",
        "results/SimpleEmoRegressor_DeepMI@_Val_Test1.csv",
    ]
    for name in made:
        assert (bench.folder / name).stat().st_size > 0
    assert not list(bench.folder.rglob("*.tmp")) and not list(bench.folder.rglob("*.resume"))


@pytest.mark.parametrize("script", [f"{name}.py" for name in SCRIPTS] + list(TOOLS))
def test_help_explains_every_flag_and_needs_no_heavy_import(script):
    target = f"run_module({script!r}" if script.startswith("tools.") else f"run_path({str(ROOT / script)!r}"
    code = f"import sys, runpy\nsys.argv = ['x', '--help']\ntry: runpy.{target}, run_name='__main__')\n"
    code += f"except SystemExit: pass\nprint([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]", "help waits for heavy imports"
    assert "python " in done.stdout, "the command is not in the help"
    assert "None" not in done.stdout, "a default that is none"
    parser = importlib.import_module(script.removesuffix(".py")).get_args_parser()
    for action in parser._actions:
        assert action.help and len(action.help) > 5, f"{action.option_strings or action.dest} is not explained"


def test_norm_terms_are_numpys(bench):
    code, out, _ = bench.stage(0)
    assert code == 0 and "1 of them constant" in out
    names, labels = utils.getPaths_attri(bench.corpus, "Train", "Act")
    files = [bench.corpus / utils.FEATURE_FOLDER / f"{name[:-4]}.mat" for name in names]
    matrix = np.concatenate([loadmat(file)["Audio_data"] for file in files])
    for what, expected in {"means": matrix.mean(axis=0), "stds": matrix.std(axis=0)}.items():
        stored = loadmat(bench.folder / "NormTerm" / f"feat_norm_{what}.mat")["normal_para"]
        assert stored.shape == (1, matrix.shape[1]) and np.allclose(stored[0], expected, rtol=1e-12, atol=1e-13)
    assert loadmat(bench.folder / "NormTerm/act_norm_means.mat")["normal_para"].item() == pytest.approx(labels.mean())
    assert loadmat(bench.folder / "NormTerm/act_norm_stds.mat")["normal_para"].item() == pytest.approx(labels.std())


def test_the_settings_of_the_training_are_told_where_others_are_given(trained):
    note = "was trained with -ep 8 -batch 16"
    assert note not in trained.run("testing_Curriculum", "--corpus", trained.corpus, "-emo", "Val")[1]
    assert note not in trained.stage(4)[1] and note in trained.stage(4, "-ep", 9)[1]


def test_other_norm_terms_are_not_replaced_without_a_word(bench):
    assert "replaces" not in bench.stage(0)[2] + bench.stage(0)[2]
    matfile.write_mat(bench.feature_files[0], features.FEATURE_KEY, np.arange(40.0)[None])
    assert "note: replaces different normalisation statistics in NormTerm" in bench.stage(0)[2]


@pytest.mark.parametrize("empty", ["", "nan", "NA"])
def test_an_attribute_without_labels_is_left_out_by_name_and_refused_only_where_asked_for(bench, empty):
    rows = read_rows(bench.labels)
    column = rows[0].index("EmoDom")
    for row in rows[1:]:
        row[column] = empty
    bench.labels.write_text("\n".join(",".join(row) for row in rows))
    code, out, _ = bench.stage(0)
    assert code == 0 and "Dom: no labels" in out
    assert not (bench.folder / "NormTerm/dom_norm_means.mat").exists()
    assert bench.stage(1)[0] == 0
    bench.refuses(bench.stage(1, "-emo", "Dom"), "EmoDom is empty")


def test_the_ssl_log_tells_the_run(trained):
    lines = [
        json.loads(line)
        for line in trained.ssl_checkpoint.with_name(trained.ssl_checkpoint.name.replace(".pth.tar", ".log.jsonl"))
        .read_text()
        .splitlines()
    ]
    first, *epochs, last = lines
    assert first["run"]["arguments"]["num_clusters"] == 5 and first["versions"]["torch"] == torch.__version__
    assert first["counts"] == {"Train": 60, "Validation": 24, "unlabeled": 50}
    assert [record["epoch"] for record in epochs] == [0, 1] and last["finished"]
    assert epochs[0]["nmi"] is None and 0 <= epochs[1]["nmi"] <= 1
    for record in epochs:
        assert sum(record["labeled"]["sizes"]) == 60 and sum(record["unlabeled"]["sizes"]) == 50
        assert record["labeled"]["non_empty"] == sum(size > 0 for size in record["labeled"]["sizes"])
        assert 0 <= record["validation_ccc_loss"] <= 2


def test_the_checkpoint_kept_is_the_best(trained):
    """Its validation loss, computed anew from the file, is the lowest in the log."""
    log = trained.folder / "Models/ResNetDeepEmoCluster_epoch2_batch16_5clusters_Val.log.jsonl"
    losses = [json.loads(line)["validation_ccc_loss"] for line in log.read_text().splitlines()[1:-1]]
    from model import load_ssl_checkpoint

    network, info = load_ssl_checkpoint(trained.ssl_checkpoint, 40, 5, "Val")
    norm_dir = trained.folder / "NormTerm"
    corpus = utils.LabeledCorpus(utils.find_corpus(trained.corpus), "Val", norm_dir, trained.folder / "cache", 1)
    data = corpus.load("Validation")
    with torch.no_grad():
        prediction = network.predict_attribute(torch.from_numpy(np.array(data.rows))).numpy()
    loss = 1 - concordance_cc(data.targets, prediction)
    assert loss == pytest.approx(min(losses), abs=1e-5) and info["best_epoch"] == int(np.argmin(losses))


def phase(learner, rows, targets=None, epoch=0, **settings):
    """Train DeepEmoCluster for one phase on random features."""
    args = argparse.Namespace(num_clusters=3, batch_size=8, precision="fp32", seed=0, **settings)
    names = [str(number) for number in range(len(rows))]
    return ssl_stage.train_phase(learner, on_cpu(rows), names, targets, epoch, args)


def new_learner(num_features=12):
    runtime.seed_everything(0)
    return ssl_stage.Learner(num_features, argparse.Namespace(num_clusters=3, compile=False), torch.device("cpu"))


def on_cpu(rows: torch.Tensor) -> batches.Rows:
    return batches.Rows(rows.numpy(), torch.device("cpu"), "fp32")


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


def test_a_loss_that_is_not_finite_names_the_batch_and_its_files():
    names, parts = [f"u{i}.wav" for i in range(8)], torch.arange(8).split(4)
    with pytest.raises(UserError, match=r"epoch 7: the loss of batch 1 is NaN or infinite .*u5\.wav"):
        run_log.refuse_divergence(torch.tensor([[1.0], [float("nan")]]), parts, names, "epoch 7")


def test_a_curriculum_loss_that_is_not_finite_names_the_files_too(trained, monkeypatch):
    pack = features.pack_features

    def pack_infinite(*arguments):
        packed = pack(*arguments)
        packed.rows[:] = np.inf  # the map is copy-on-write
        return packed

    monkeypatch.setattr(features, "pack_features", pack_infinite)
    result = trained.stage(3, "--no-resume", "--cache-dir", "other")
    trained.refuses(result, "epoch 0: the loss of batch 0 is NaN or infinite", "MSP-PODCAST_")


def test_extraction_is_deterministic_and_knows_no_seed(trained):
    first = trained.metric.read_bytes()
    for more in ([], ["--seed", 7], ["--workers", 1]):
        trained.metric.unlink()
        assert trained.stage(2, *more)[0] == 0
        assert trained.metric.read_bytes() == first


def test_extraction_is_the_formula_on_the_networks_output(trained):
    """The whole stage against numpy, from the checkpoint and the .mat files."""
    from test_model import numpy_dense_resnet

    state = torch.load(trained.ssl_checkpoint, weights_only=True)["state_dict"]
    state = {key.replace("module.", ""): value.double().numpy() for key, value in state.items()}
    names, labels = utils.getPaths_attri(trained.corpus, "Train", "Val")
    files = [trained.corpus / utils.FEATURE_FOLDER / f"{name[:-4]}.mat" for name in names]
    matrix = np.concatenate([loadmat(file)["Audio_data"] for file in files])
    norm = {
        key: loadmat(trained.folder / "NormTerm" / f"{key}.mat")["normal_para"]
        for key in ("feat_norm_means", "feat_norm_stds", "val_norm_means", "val_norm_stds")
    }
    with np.errstate(invalid="ignore", divide="ignore"):
        z = (matrix - norm["feat_norm_means"]) / norm["feat_norm_stds"]
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


def test_alpha_overrides_the_papers_weight(trained):
    by_default = trained.metric.read_bytes()
    code, out, _ = trained.stage(2, "--alpha", 0)
    assert code == 0 and "alpha 0;" in out and trained.metric.read_bytes() != by_default
    trained.stage(2, "--alpha", 0.5)
    assert trained.metric.read_bytes() == by_default


def test_clusters_by_kmeans_are_averaged_over_restarts(trained):
    runs = {}
    for restarts in (1, 3):
        code, out, _ = trained.stage(2, "--clusters", "kmeans", "--restarts", restarts)
        assert code == 0 and "k-means of the 256-d features" in out
        runs[restarts] = np.array(list(read_metric(trained.metric).values()))
    assert len(set(runs[3].tolist())) > len(set(runs[1].tolist()))
    trained.refuses(trained.stage(2, "--restarts", 3), "--restarts", "--clusters kmeans")


def test_a_cluster_head_that_has_collapsed_is_reported(trained, monkeypatch):
    monkeypatch.setattr(
        model.DenseResNet, "forward", lambda self, x: (torch.eye(5)[torch.zeros(len(x), dtype=int)], x[:, 0])
    )
    code, _, err = trained.stage(2)
    assert code == 0 and "uses 1 of 5 clusters" in err and "--clusters kmeans" in err


def test_a_share_of_every_level_and_another_schedule(trained):
    argv = ["--no-resume", "--keep", 0.5, "--rate-decay", "late", "--bins", 2, "--epochs-per-bin", 3]
    code, out, err = trained.stage(3, *argv)
    assert code == 0 and "--keep 0.5: 3" in out and "replaces" not in err
    lines = [
        json.loads(line)
        for line in trained.regressor.with_name("SimpleEmoRegressor_DeepMI@_Val.log.jsonl").read_text().splitlines()
    ]
    assert lines[0]["run"]["arguments"]["rate_decay"] == "late"
    sizes = [line["utterances"] for line in lines[1:-1]]
    assert sizes[:3] == [sizes[-1] // 2] * 3 and sizes[3] == sizes[-1] < 40
    assert [line["lr"] for line in lines[1:-1]] == [1e-3] * 6 + [5e-4] * 2
    trained.refuses(trained.stage(3, "--order", "none", "--metric", trained.metric), "--metric", "no effect")


def test_results_hold_the_printed_ccc(trained):
    code, out, _ = trained.stage(4)
    assert code == 0
    stem = trained.folder / "results" / "SimpleEmoRegressor_DeepMI@_Val_Test1"
    result = json.loads(stem.with_name(stem.name + ".json").read_text())
    table = pd.read_csv(stem.with_name(stem.name + ".csv"))
    assert list(table) == ["FileName", "label", "prediction"] and len(table) == result["n"] == 24
    assert concordance_cc(table["label"], table["prediction"]) == pytest.approx(result["ccc"])
    assert f"Val (CCC): {result['ccc']:.3f}" in out.splitlines()
    assert "2 whole speakers and 8 utterances of unknown speakers" in result["interval"]
    assert result["interval"] in out and "only 2 speakers" in result["interval"]
    expected = dict(zip(*utils.getPaths_attri(trained.corpus, "Test1", "Val")))
    assert dict(zip(table["FileName"], table["label"])) == expected
    assert {"corpus", "label_scale", "seed", "checkpoint", "split", "interval_95"} <= set(result)


def test_an_unfinished_training_is_told_where_its_checkpoint_is_used(trained):
    for number, file in ((2, trained.ssl_checkpoint), (4, trained.regressor)):
        assert "has not finished" not in trained.stage(number)[2]
        file.with_name(file.name + ".resume").touch()
        assert "has not finished" in trained.stage(number)[2]


def test_other_splits_and_scales(trained):
    code, out, _ = trained.stage(4, "--split", "all")
    assert code == 0 and "108 utterances" in out
    code, out, _ = trained.stage(4, "--split", "Validation", "--label-scale", 0, 10)
    assert code == 0 and "from 0-10 to 1-7" in out
    table = pd.read_csv(trained.folder / "results/SimpleEmoRegressor_DeepMI@_Val_Validation.csv")
    labels = dict(zip(*utils.getPaths_attri(trained.corpus, "Validation", "Val")))
    assert np.allclose(table["label"], [1 + 6 * labels[name] / 10 for name in table["FileName"]])


@pytest.mark.parametrize("order", ["deepmi-balanced", "random", "reverse", "none"])
def test_controls_train_into_files_of_their_own(trained, order):
    deepmi_bytes = trained.regressor.read_bytes()
    assert trained.stage(3, "--order", order)[0] == 0
    assert trained.regressor.read_bytes() == deepmi_bytes
    log = trained.folder / f"Models/SimpleEmoRegressor_{order}@_Val.log.jsonl"
    sizes = [json.loads(line)["utterances"] for line in log.read_text().splitlines()[1:-1]]
    assert sizes == ([60] * 8 if order == "none" else [6] * 5 + [12] * 3)
    code, out, _ = trained.stage(4, "--order", order)
    assert code == 0 and f"SimpleEmoRegressor_{order}@_Val" in out


def test_the_only_regressor_of_a_folder_is_tested_and_named(trained):
    assert trained.stage(3, "--order", "none", "--model-dir", "controls")[0] == 0
    code, out, _ = trained.stage(4, "--model-dir", "controls")
    assert code == 0 and "SimpleEmoRegressor_none@_Val.pt.tar" in out


def test_a_metric_may_be_named(trained):
    shutil.move(trained.metric, trained.folder / "mine.json")
    assert trained.stage(3, "--metric", "mine.json", "--no-resume")[0] == 0


def test_utterances_without_features_can_be_left_out(bench):
    bench.feature_files[0].unlink()
    bench.feature_files[-1].unlink()
    for number in range(5):
        code, _, err = bench.stage(number, "--skip-missing")
        assert code == 0, err
    assert "left out" in err
    assert len(read_metric(bench.metric)) == 59


def test_labeled_only_needs_no_unlabeled_set(bench):
    bench.stage(0)
    code, out, _ = bench.run(
        "training_DeepEmoCluster", "--corpus", bench.corpus, "-ep", 1, "-nc", 5, "--unlabeled-size", 0
    )
    assert code == 0 and "unlabeled" not in out.splitlines()[0]


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program catches it."""


@pytest.mark.parametrize("number", [1, 3])
def test_a_run_killed_after_every_epoch_ends_with_the_same_bytes(trained_here, monkeypatch, number):
    target = trained_here.ssl_checkpoint if number == 1 else trained_here.regressor
    stem = target.name.removesuffix(".tar").rsplit(".", 1)[0]
    files = [target, target.with_name(f"{stem}.png")]
    expected = [file.read_bytes() for file in files]

    def log():
        lines = [json.loads(line) for line in target.with_name(f"{stem}.log.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key not in ("seconds", "process")} for line in lines]

    expected_log = log()
    for file in target.parent.iterdir():
        file.unlink()
    if number == 3:
        assert trained_here.stage(2)[0] == 2  # the checkpoint is gone, the metric stays
    save = run_log.TrainingRun.save
    kills = 0

    def save_then_die(self, *args):
        nonlocal kills
        kills += 1
        if kills % 2:
            save(self, *args)  # every other kill comes before the state is saved
        raise Killed

    monkeypatch.setattr(run_log.TrainingRun, "save", save_then_die)
    script = SCRIPTS[number]
    module = sys.modules.get(script) or __import__(script)
    more = ["--unlabeled", f"{trained_here.corpus}_unlabeled"] if number == 1 else []
    epochs = 2 if number == 1 else 8
    argv = ["--corpus", trained_here.corpus, "-ep", epochs, "-batch", 16, "-emo", "Val", "-nc", 5, *more]
    for _ in range(4 * epochs):
        try:
            module.main(module.get_args_parser().parse_args(list(map(str, argv))))
            break
        except Killed:
            continue
    assert kills >= epochs
    assert [file.read_bytes() for file in files] == expected
    assert log() == expected_log
    assert not list(target.parent.glob("*.resume"))


def test_a_second_run_of_the_same_checkpoint_stops_and_names_the_first(trained):
    command = [sys.executable, str(ROOT / "training_Curriculum.py"), "--corpus", str(trained.corpus)]
    command += ["-ep", "100000", "-batch", "16", "-emo", "Val", "-nc", "5", "--order", "none"]
    log = trained.folder / "Models/SimpleEmoRegressor_none@_Val.log.jsonl"
    first = subprocess.Popen(command, cwd=trained.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (log.exists() and len(log.read_text().splitlines()) > 2) and time.monotonic() < deadline:
            time.sleep(0.05)
        trained.refuses(
            trained.stage(3, "--order", "none"), "none@_Val.pt.tar: another run is writing it", f"process {first.pid} "
        )
        assert trained.stage(3, "--order", "random")[0] == 0  # another checkpoint in the same folder
    finally:
        first.kill()
        first.wait()
    before = log.read_text()
    assert trained.stage(3, "--order", "none", "--no-resume")[0] == 0  # a killed run leaves no lock
    assert log.read_text() != before


def test_sigkill_and_the_same_command_again_end_with_the_same_bytes(bench):
    bench.stage(0)
    argv = ["--corpus", bench.corpus, "-ep", 6, "-batch", 8, "-emo", "Val", "-nc", 5, "--unlabeled-size", 0]
    assert run_script("training_DeepEmoCluster.py", *argv, "--model-dir", "whole", cwd=bench.folder).returncode == 0
    command = [sys.executable, str(ROOT / "training_DeepEmoCluster.py"), *map(str, argv), "--model-dir", "parts"]
    resume = bench.folder / "parts/ResNetDeepEmoCluster_epoch6_batch8_5clusters_Val.pth.tar.resume"
    process = subprocess.Popen(command, cwd=bench.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not resume.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    done = run_script("training_DeepEmoCluster.py", *argv, "--model-dir", "parts", cwd=bench.folder)
    assert done.returncode == 0 and "resuming after" in done.stdout
    name = "ResNetDeepEmoCluster_epoch6_batch8_5clusters_Val.pth.tar"
    assert (bench.folder / "parts" / name).read_bytes() == (bench.folder / "whole" / name).read_bytes()
    assert not list((bench.folder / "parts").glob(".*"))


def test_a_signal_ends_a_run_with_one_line(bench):
    bench.stage(0)
    argv = ["--corpus", bench.corpus, "-ep", 5000, "-batch", 8, "-nc", 5, "--unlabeled-size", 0]
    command = [sys.executable, str(ROOT / "training_DeepEmoCluster.py"), *map(str, argv)]
    process = subprocess.Popen(command, cwd=bench.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (line := process.stdout.readline()).startswith("epoch   3"):
        assert line, process.stderr.read()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    (line,) = err.strip().splitlines()
    last = int(out.strip().splitlines()[-1].split(":")[0].split()[1]) if out.strip() else 3
    assert line.endswith(f"stopped. The same command continues after {last + 1} epochs.")


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


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(trained):
    first = trained.ssl_checkpoint.read_bytes(), trained.regressor.read_bytes()
    for number, before in ((1, first[0]), (3, first[1])):
        file = trained.ssl_checkpoint if number == 1 else trained.regressor
        assert trained.stage(number, "--no-resume")[0] == 0 and file.read_bytes() == before
        assert trained.stage(number, "--seed", 5)[0] == 0 and file.read_bytes() != before


def test_a_finished_run_that_is_replaced_is_told(trained):
    code, _, err = trained.stage(3, "-ep", 3)
    assert code == 0 and "replaces" in err and "epoch 8 there, 3 now" in err


def test_the_results_name_the_metric(trained):
    trained.stage(4)
    result = json.loads((trained.folder / "results/SimpleEmoRegressor_DeepMI@_Val_Test1.json").read_text())
    assert result["training"]["metric"] == "DeepMI_5clusters@_Val.json"


def test_a_finished_run_is_not_trained_again(trained):
    for number in (1, 3):
        code, out, _ = trained.stage(number)
        assert code == 0 and "already trained" in out


def test_an_unfinished_run_of_another_seed_is_not_overwritten(bench, monkeypatch):
    bench.stage(0)
    monkeypatch.setattr(run_log.TrainingRun, "finish", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert bench.stage(1)[0] == 130
    monkeypatch.undo()
    os.chdir(bench.folder)
    bench.refuses(bench.stage(1, "--seed", 9), "unfinished run", "seed 31 there, 9 now", "--no-resume")
    assert bench.stage(1, "--seed", 9, "--no-resume")[0] == 0


def test_bf16_trains_and_extracts(bench):
    bench.stage(0)
    for number in range(1, 5):
        code, _, err = bench.stage(number, "--precision", "bf16")
        assert code == 0, err
