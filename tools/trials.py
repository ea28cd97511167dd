"""The same training many times, side by side: stages 1 and 2 per seed, stage 3 per variant of the curriculum and seed.

A trial runs on one thread of a CPU, so its results do not depend on how many run at a time. Its folder holds the
checkpoint, log and resume file of its stage: a stopped trial continues, and a finished one is not run again.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV

import extract_DeepMI
import training_Curriculum
import training_DeepEmoCluster
import utils
from deepmi import __version__, cli, curriculum, label_scales, runtime, storage
from deepmi.batches import Rows, in_batches
from deepmi.ccc import speaker_groups
from deepmi.labels import draw_ratings
from deepmi.metric import read_metric, warn_if_flat, write_metric
from deepmi.process import UserError
from deepmi.seeds import derived_seed
from model import load_regressor, load_ssl_checkpoint
from tools.side_by_side import one_thread, run_stage, side_by_side, with_changes

FOLDS = 5  # of the self-taught scores
RIDGE_ALPHAS = np.logspace(0, 6, 25)
DEFAULTS = ("pacing", "rate_decay", "bins", "epochs_per_bin", "keep", "metric")  # flags that self-taught scores ignore


# ---------------------------------------------------------------------------------------------------------------------
# Where trials lie


def prepare(args: argparse.Namespace) -> None:
    """Settle device, precision and number of jobs, and make the folders."""
    device = runtime.choose_device(args.device)
    args.precision = runtime.choose_precision(device, args.precision)
    args.jobs = args.jobs or (cli.cpu_count() if device.type == "cpu" else 1)
    utils.make_output_folders(args.results_dir, args.results_dir / "trials", args.cache_dir)


def trial_path(args: argparse.Namespace, name: str, *inputs: object) -> Path:
    """Where a trial lies: its name carries a digest of all that its outcome depends on."""
    identity = storage.digest(__version__, *inputs)
    return args.results_dir / "trials" / f"{args.emo_attr}_{name}seed{args.seed}_{identity[:12]}"


def _settings(args: argparse.Namespace, **changes: object) -> dict:
    """What changes the outcome of a training, aside from its data."""
    return cli.chosen(with_changes(args, **changes)) | {"device": runtime.choose_device(args.device).type}


# ---------------------------------------------------------------------------------------------------------------------
# DeepEmoCluster and DeepMI


def make_metrics(tasks: Sequence[argparse.Namespace], jobs: int) -> None:
    """Train a DeepEmoCluster per task and extract its DeepMI.

    Args:
        tasks: arguments of stages 1 and 2, with `ssl_epochs` in place of `epoch`, and `clusters` (the values of that
            flag to use). Each is given `metrics` (DeepMI file by the value of --clusters), `checkpoint` and
            `num_unlabeled`.
        jobs: how many run at a time.
    Raises:
        UserError: as the stages.
    """
    for task in tasks:  # faults of the input show here, and packing uses all workers
        sets, _ = utils.load_training_sets(task)
        task.num_unlabeled = len(sets["unlabeled"].names) if "unlabeled" in sets else 0
        keys = {name: data.key for name, data in sets.items()}
        task.folder = trial_path(task, "", _settings(task, epoch=task.ssl_epochs), task.num_clusters, keys)
        folder, clusters = task.folder, task.num_clusters
        task.checkpoint = utils.ssl_checkpoint(folder, task.ssl_epochs, task.batch_size, clusters, task.emo_attr)
        task.metrics = {
            kind: utils.metric_file(folder / _restarted(kind, task), clusters, task.emo_attr) for kind in task.clusters
        }
    for _ in side_by_side(make_metric, tasks, jobs, "DeepEmoCluster"):
        pass


def _restarted(kind: str, args: argparse.Namespace) -> str:
    return kind if kind == "head" else f"{kind}{args.restarts}"


def make_metric(args: argparse.Namespace) -> None:
    """Stages 1 and 2 in the folder of one task."""
    run_stage(training_DeepEmoCluster, args, epoch=args.ssl_epochs, model_dir=args.folder)
    for kind, file in args.metrics.items():
        if not file.is_file():
            changes = {"clusters": kind, "restarts": 1 if kind == "head" else args.restarts, "metric_dir": file.parent}
            run_stage(extract_DeepMI, args, epoch=args.ssl_epochs, model_dir=args.folder, **changes)


def noisy_labels(args: argparse.Namespace) -> Path:
    """Write a label file with noise in the Train labels; the labels of the other splits are unchanged.

    Args:
        args: corpus, labels, emo_attr and seed; train_labels, where `single-rater` takes the rating of one random rater
            per utterance; label_noise, the share (0..1) of labels to replace by draws from all Train labels.
    Returns:
        The file, in the folder of the trials.
    Raises:
        UserError: as `utils.read_labels`; no Train labels; no ratings of some utterances.
    """
    source = args.labels or utils.find_label_file(args.corpus)
    table = utils.read_labels(source)
    consensus = utils.attribute_labels(utils.select_split(table, "Train", source), args.emo_attr, source)
    labels = consensus.copy()
    if args.train_labels == "single-rater":
        file = detailed_file(args, "--train-labels single-rater")
        ratings = draw_ratings(file, args.emo_attr, derived_seed(args.seed, "single rater"))
        labels = ratings.reindex(consensus.index)
        if labels.isna().any():
            missing = labels.index[labels.isna()]
            raise UserError(f"{file}: no rating of {len(missing)} of {len(labels)} Train utterances ({missing[0]}).")
    rng = np.random.default_rng(derived_seed(args.seed, "label noise"))
    chosen = rng.choice(len(labels), size=round(args.label_noise * len(labels)), replace=False)
    labels.iloc[chosen] = rng.choice(labels.to_numpy(), size=len(chosen))
    column, changed = f"Emo{args.emo_attr}", labels[labels != consensus]  # the text of all others stays
    table[column] = table["FileName"].map(changed.map("{:.10g}".format)).fillna(table[column])
    name = f"labels_{args.emo_attr}_seed{args.seed}{noise_suffix(args)}.csv"
    target = args.results_dir / "trials" / name
    storage.write_text(target, table.to_csv(index=False))
    return target


def noise_suffix(args: argparse.Namespace) -> str:
    """The noise in the Train labels, as part of a file name; empty without noise."""
    rater = "_single-rater" if args.train_labels == "single-rater" else ""
    return rater + (f"_noise{100 * args.label_noise:g}" if args.label_noise else "")


def detailed_file(args: argparse.Namespace, needed_by: str) -> Path:
    """The file of individual ratings; raises `UserError` if the corpus has none."""
    file = utils.find_detailed_file(args.corpus) if args.corpus else None
    if file is None:
        where = args.corpus or "no --corpus given"
        raise UserError(f"{where}: no labels_detailed file, which {needed_by} needs.")
    return file


# ---------------------------------------------------------------------------------------------------------------------
# Data, and the scores that an order sorts by


@dataclass
class Data:
    """What the regressors of one seed train and test on: a `utils.LabeledCorpus` and sets of it, tests by name."""

    corpus: utils.LabeledCorpus
    train: utils.LabeledSet
    validation: utils.LabeledSet
    tests: dict[str, utils.LabeledSet]


def load_data(args: argparse.Namespace) -> Data:
    """Train, Validation, the test split and the --testing corpora.

    Args:
        args: of the corpus, with split (its name), testing (corpora) and testing_scales (label scale or None for each).
    Raises:
        UserError: as the stages.
    """
    corpus = utils.open_corpus(args)
    tests = {args.split: corpus.load(args.split)}
    names = label_scales.distinct_names([args.corpus or args.labels, *args.testing])[1:]
    for name, folder, asked in zip(names, args.testing, args.testing_scales):
        if not folder.is_dir():
            raise UserError(f"--testing {folder}: no such folder; expected a corpus.")
        if args.corpus and folder.samefile(args.corpus):
            print(f"warning: --testing {folder} is the training corpus; its Train utterances are tested too.")
        labels = utils.find_label_file(folder)
        scale, _ = label_scales.label_scale(labels, asked)
        other = with_changes(args, corpus=folder, labels=None, features=None)
        tests[f"{name} (all)"] = data = utils.open_corpus(other, scale).load("all")
        label_scales.note_if_narrow_scale(labels, asked, data.labels)
    return Data(corpus, corpus.load("Train"), corpus.load_validation(), tests)


def check_metric(file: Path, data: Data) -> None:
    """Warn if all values of a DeepMI file are the same.

    Raises:
        UserError: the file lacks some utterances, since all orders of a comparison train on the same ones.
    """
    in_train = data.corpus.select("Train")["FileName"].tolist()
    warn_if_flat(curriculum.match_metric(read_metric(file), data.train.names, file, in_train), file)


def score_file(args: argparse.Namespace, order: str, data: Data) -> Path:
    """Write the scores that the order `agreement` or `prediction` sorts by: file name -> score.

    Args:
        args: with checkpoint (of DeepEmoCluster) for `prediction`.
        order: which of the two.
        data: what is trained on.
    Raises:
        UserError: what the scores are made from is missing or unreadable.
    """
    train = data.train
    if order == "agreement":
        file = detailed_file(args, "the order agreement")
        spread = utils.rater_spread(file, args.emo_attr).reindex(train.names)
        if spread.isna().all():
            raise UserError(f"{file}: no Train utterance has two ratings; leave out the order agreement.")
        values = -spread.fillna(spread.max() + 1)  # one rating says nothing about agreement: such utterances come last
    else:
        model, info = load_ssl_checkpoint(
            args.checkpoint, data.corpus.num_features, args.num_clusters, args.emo_attr, data.corpus.feature_set
        )
        data.corpus.note_other_norm_stats(args.checkpoint, info)
        values = -np.abs(predict(model, model.predict_attribute, train.rows, args) - train.targets)
    content = dict(zip(train.names, values.tolist()))
    target = trial_path(args, f"scores_{order}_", content).with_suffix(".json")
    write_metric(target, content)
    return target


def predict(model, function: Callable, rows: NDArray[np.float32], args: argparse.Namespace) -> NDArray[np.float32]:
    """What a network's function predicts for normalised features (N, D): z-normed, shape (N,)."""
    device = runtime.choose_device(args.device)
    with one_thread(args):
        (z,) = in_batches(model.to(device), function, Rows(rows, device, args.precision), args.precision)
    return z.cpu().numpy()


def predict_by(regressor: Path, corpus, rows: NDArray[np.float32], args: argparse.Namespace) -> NDArray[np.float32]:
    """`predict` with the network in a checkpoint of stage 3 or 1."""
    model, info = load_regressor(regressor, corpus.num_features, args.emo_attr, corpus.feature_set)
    corpus.note_other_norm_stats(regressor, info)
    return predict(model, model, rows, args)


def labels_by(regressor: Path, data: Data, args: argparse.Namespace) -> list[NDArray[np.float64]]:
    """Predictions of a checkpoint for each test set, in label units, shape (M,) each."""
    found = (predict_by(regressor, data.corpus, test.rows, args) for test in data.tests.values())
    return [utils.denormalise(z, data.corpus.label_norm, regressor) for z in found]


def folds_by_speaker(speakers: Sequence[str], names: Sequence[str], seed: int) -> NDArray[np.int64]:
    """Fold of each utterance; all utterances of a speaker are in the same fold.

    Args:
        speakers: speaker of each utterance; an utterance of an unknown speaker counts as a speaker.
        names: file name of each utterance.
        seed: of the draw.
    Returns:
        Folds 0..FOLDS-1, fewer where there are fewer speakers, int64, shape (N,). A single speaker is divided.
    """
    groups = speaker_groups(speakers, names)
    sizes = Counter(groups if len(set(groups)) > 1 else names)
    drawn = np.random.default_rng(seed).permutation(sorted(sizes)).tolist()
    totals = [0] * min(FOLDS, len(sizes))
    fold_of = {}
    for group in sorted(drawn, key=lambda group: -sizes[group]):  # the largest first, each into the smallest fold
        fold_of[group] = totals.index(min(totals))
        totals[fold_of[group]] += sizes[group]
    return np.array([fold_of[group if group in fold_of else name] for group, name in zip(groups, names)])


def self_taught(args: argparse.Namespace) -> Path:
    """Score each training utterance by a regressor that was trained without it and its speaker.

    Five folds are drawn by speaker. A regressor without curriculum is trained on four of them and scores the fifth.
    Returns:
        A file like a DeepMI file: file name -> minus the absolute error, z-normed.
    Raises:
        UserError: as the stages.
    Source: Hacohen & Weinshall, ICML 2019; cross-fitted, so that no regressor scores what it was trained on.
    """
    source = args.labels or utils.find_label_file(args.corpus)
    table, corpus = utils.read_labels(source), utils.open_corpus(args)
    train, validation = corpus.load("Train"), corpus.load_validation()
    folder = trial_path(args, "selftaught_", _settings(args), train.key, validation.key, train.speakers)
    target = folder.with_suffix(".json")
    if target.is_file():
        return target
    fold = folds_by_speaker(train.speakers, train.names, derived_seed(args.seed, "folds"))
    values = np.empty(len(train.names))
    plain = argparse.Namespace(**{name: value for name, value in vars(args).items() if name not in DEFAULTS})
    for number in range(fold.max() + 1):
        held_out = fold == number
        with storage.scratch_folder(args.cache_dir) as scratch:
            is_held_out = table["FileName"].isin(np.array(train.names)[held_out])
            labels = table.assign(Split_Set=table["Split_Set"].mask(is_held_out, "held out"))
            storage.write_text(scratch / "labels.csv", labels.to_csv(index=False))
            changes = {"labels": scratch / "labels.csv", "cache_dir": scratch, "model_dir": folder / f"fold{number}"}
            run_stage(training_Curriculum, plain, order="none", **changes)
        regressor = utils.regressor_checkpoint(folder / f"fold{number}", "none", args.emo_attr)
        error = np.abs(predict_by(regressor, corpus, train.rows, args) - train.targets)
        values[held_out] = -error[held_out]
    write_metric(target, dict(zip(train.names, values.tolist())))
    shutil.rmtree(folder)
    return target


# ---------------------------------------------------------------------------------------------------------------------
# The regressors


def run_trials(tasks: Sequence[argparse.Namespace], data: dict[int, Data], jobs: int) -> list[dict]:
    """Train and test one regressor per task, unless that is done.

    Args:
        tasks: arguments of stage 3, with `order` and `scores` (the file that it sorts by, or None).
        data: by seed.
        jobs: how many train at a time.
    Returns:
        Per task best_epoch and curve (validation CCC per epoch; both None for the ridge regression) and tests: for each
        test set file name -> prediction in label units.
    Raises:
        UserError: as the stages.
    """
    for task in tasks:
        of = data[task.seed]
        named, settings = task, ()
        if task.order == curriculum.RIDGE:  # depends on the data alone
            named = with_changes(task, seed=0)
        elif task.order == curriculum.DEEPEMOCLUSTER:
            settings = (task.checkpoint.read_bytes(),)
        else:
            scores = task.scores.read_bytes() if task.scores else b""
            settings = _settings(task), vars(cli.schedule(task)), task.keep, scores
        task.folder = trial_path(named, f"{task.order}_", *settings, of.train.key, of.validation.key)
        tests = storage.digest({name: test.key for name, test in of.tests.items()})
        task.result = task.folder.with_name(f"{task.folder.name}_{tests[:12]}.json")
    results = {task.result: _read_result(task, data[task.seed]) for task in tasks}
    missing = {task.result: task for task in tasks if results[task.result] is None}.values()
    for task in missing:
        of = data[task.seed]
        if task.order == curriculum.RIDGE:
            found = ridge_predictions(of.train.rows, of.train.labels, *(test.rows for test in of.tests.values()))
        elif task.order == curriculum.DEEPEMOCLUSTER:
            found = labels_by(task.checkpoint, of, task)
        else:
            continue
        results[task.result] = _write_result(task, of, None, None, found)
    networks = [task for task in missing if task.order not in curriculum.YARDSTICKS]
    for task, (regressor, best_epoch, curve) in side_by_side(train_regressor, networks, jobs, "regressors"):
        of = data[task.seed]
        results[task.result] = _write_result(task, of, best_epoch, curve, labels_by(regressor, of, task))
        shutil.rmtree(task.folder)
    return [results[task.result] for task in tasks]


def train_regressor(args: argparse.Namespace) -> tuple[Path, int, list[float]]:
    """Stage 3 in the folder of one task: (regressor, its epoch, validation CCC per epoch)."""
    # To stage 3 any file of scores is a DeepMI file.
    order = "deepmi" if args.order in curriculum.RIVAL_ORDERS else args.order
    run_stage(training_Curriculum, args, order=order, metric=args.scores, model_dir=args.folder)
    (log,) = args.folder.glob("*.log.jsonl")
    _, *epochs, end = map(json.loads, storage.read_text(log).splitlines())
    regressor = utils.regressor_checkpoint(args.folder, order, args.emo_attr)
    return regressor, end["best_epoch"], [1 - record["validation_ccc_loss"] for record in epochs]


def ridge_predictions(train_rows: NDArray, labels: NDArray, *test_rows: NDArray) -> list[NDArray]:
    """Predictions of scikit-learn's RidgeCV from the same normalised features, in label units.

    Args:
        train_rows: shape (N, D).
        labels: shape (N,).
        test_rows: sets of features, shape (M, D) each.
    Returns:
        Predictions for each set, shape (M,).
    """
    model = RidgeCV(alphas=RIDGE_ALPHAS).fit(train_rows, labels)
    return [model.predict(rows) for rows in test_rows]


def _write_result(task: argparse.Namespace, data: Data, best_epoch, curve, predictions: Sequence[NDArray]) -> dict:
    tests = {
        name: dict(zip(test.names, values.tolist())) for (name, test), values in zip(data.tests.items(), predictions)
    }
    result = {"best_epoch": best_epoch, "curve": curve, "tests": tests}
    storage.write_text(task.result, json.dumps(result))
    return result


def _read_result(task: argparse.Namespace, data: Data) -> dict | None:
    """The result of a finished trial; None where there is none, or where its file is damaged."""
    expected = {name: test.names for name, test in data.tests.items()}
    try:
        result = storage.read_json_object(task.result)
        if {name: list(found) for name, found in result["tests"].items()} == expected:
            return result
    except (UserError, KeyError, AttributeError, TypeError):
        pass
    return None
