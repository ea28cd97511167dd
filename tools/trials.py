"""The same training many times, side by side: DeepEmoCluster and DeepMI by seed, the regressor by order and seed.

A trial runs on one thread of a CPU, so its bytes do not depend on how many run at a time; all of them share the packed
features, on a CPU through the memory map, on a GPU where they run one after another. A finished trial is not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import math
import os
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from tqdm import tqdm

import extract_DeepMI
import testing_Curriculum
import training_Curriculum
import training_DeepEmoCluster
import utils
from deepmi import __version__, cli, clustering, curriculum, run_log, runtime, storage
from deepmi.batches import Rows, in_batches
from deepmi.metric import read_metric, write_metric
from deepmi.process import UserError, workers_without_interrupt
from deepmi.seeds import derived_seed
from model import load_ssl_checkpoint

FOLDS = 5  # of the self-taught scores
RESULT_KEYS = {"order", "seed", "best_epoch", "curve", "tests"}


# ---------------------------------------------------------------------------------------------------------------------
# Side by side


def side_by_side(work: Callable, tasks: Sequence[argparse.Namespace], jobs: int, title: str) -> Iterator[tuple]:
    """(task, `work(task)`) of every task, as they end, with a progress bar.

    Args:
        work: a function of a module; what it prints is dropped.
        tasks: what it takes.
        jobs: how many at a time, each in a process of its own where there are several.
        title: of the progress bar.
    """
    pool = Parallel(n_jobs=min(jobs, max(len(tasks), 1)), return_as="generator_unordered", batch_size=1)
    started_by = os.getpid(), Path.cwd()
    with workers_without_interrupt():
        results = pool(delayed(_alone)(work, task, number, *started_by) for number, task in enumerate(tasks))
    try:
        with warnings.catch_warnings():
            # It renews processes that have grown, which those that train do at first, and would tell of each.
            warnings.filterwarnings("ignore", "A worker stopped", UserWarning)
            for number, result in tqdm(results, desc=title, total=len(tasks), unit="run", disable=None):
                yield tasks[number], result
    except BaseException:
        get_reusable_executor().shutdown(kill_workers=True)
        raise


def _alone(work: Callable, task: argparse.Namespace, number: int, starter: int, folder: Path) -> tuple:
    """(number, what `work` returns), on one thread where it computes on a CPU, and silently."""

    if os.getpid() != starter:
        _end_with(starter)
        # Its bars are silent. The lock that it would make for them is one between processes, and left behind by a kill.
        tqdm.set_lock(threading.RLock())
    os.chdir(folder)  # joblib may hand on a process that was started elsewhere
    on_cpu = runtime.choose_device(task.device).type == "cpu"
    silence = io.StringIO()
    with clustering.on_one_thread() if on_cpu else contextlib.nullcontext():
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            return number, work(task)


@functools.cache
def _end_with(starter: int) -> None:
    """End this process soon after the one that started it, however that ended: it would go on and hold its files."""

    def watch() -> None:
        while os.getppid() == starter:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def with_changes(args: argparse.Namespace, **changes: object) -> argparse.Namespace:
    """A copy of the arguments with some of them changed."""
    return argparse.Namespace(**vars(args) | changes)


def prepare(args: argparse.Namespace) -> None:
    """Settle device, precision and number of jobs, and make the folders."""
    device = runtime.choose_device(args.device)
    args.precision = runtime.choose_precision(device, args.precision)
    args.jobs = args.jobs or (cli.cpu_count() if device.type == "cpu" else 1)
    utils.make_output_folders(args.results_dir, trial_folder(args), args.cache_dir)
    _load_data.cache_clear()  # an earlier run of this process may have seen other files


def trial_folder(args: argparse.Namespace) -> Path:
    """Where finished trials are kept."""
    return args.results_dir / "trials"


# ---------------------------------------------------------------------------------------------------------------------
# DeepEmoCluster and DeepMI


def make_metric(args: argparse.Namespace) -> Path:
    """Stages 1 and 2 with the seed, clusters, unlabeled size and labels of `args`, in a folder of their own.

    Args:
        args: arguments of those stages; ssl_epochs is the number of epochs, metric_folder where all goes.
    Returns:
        The DeepMI file; the checkpoint lies beside it.
    Raises:
        UserError: as the stages.
    """
    stage = with_changes(args, epoch=args.ssl_epochs, alpha=None, resume=True, workers=1, compile=False)
    stage.clusters, stage.restarts = "head", 1
    stage.model_dir = stage.metric_dir = args.metric_folder
    training_DeepEmoCluster.main(stage)
    extract_DeepMI.main(stage)
    return utils.metric_file(args.metric_folder, args.num_clusters, args.emo_attr)


def make_metrics(tasks: Sequence[argparse.Namespace], jobs: int) -> None:
    """`make_metric` for every task; each then has its metric (the DeepMI file), checkpoint and num_unlabeled."""
    for task in tasks:  # what is wrong with the input comes to light here, and all cores pack
        sets, _ = training_DeepEmoCluster.load_sets(task)
        keys = {name: data.key for name, data in sets.items()}
        task.num_unlabeled = len(sets["unlabeled"].names) if "unlabeled" in sets else 0
        identity = storage.digest(_settings(with_changes(task, epoch=task.ssl_epochs)), task.num_clusters, keys)
        task.metric_folder = trial_folder(task) / f"{task.emo_attr}_seed{task.seed}_{identity[:12]}"
    for task, task.metric in side_by_side(make_metric, tasks, jobs, "DeepEmoCluster"):
        names = task.ssl_epochs, task.batch_size, task.num_clusters, task.emo_attr
        task.checkpoint = utils.ssl_checkpoint(task.metric.parent, *names)


def noisy_labels(args: argparse.Namespace) -> Path:
    """A label file in which a share of the Train labels is drawn anew from all Train labels.

    Args:
        args: corpus, labels, emo_attr, label_noise (share 0..1) and seed.
    Returns:
        The file, in the folder of the trials; the other splits stay as they are.
    Raises:
        UserError: as `utils.read_labels`, or no Train labels.
    """
    source = args.labels or utils.find_label_file(args.corpus)
    table = utils.read_labels(source)
    labels = utils.attribute_labels(utils.select_split(table, "Train", source), args.emo_attr, source)
    rng = np.random.default_rng(derived_seed(args.seed, "label noise"))
    chosen = rng.choice(len(labels), size=round(args.label_noise * len(labels)), replace=False)
    drawn = dict(zip(labels.index[chosen], rng.choice(labels.to_numpy(), size=len(chosen))))
    column = f"Emo{args.emo_attr}"
    table[column] = [
        f"{drawn[name]:.10g}" if name in drawn else text for name, text in zip(table["FileName"], table[column])
    ]
    target = trial_folder(args) / f"labels_{args.emo_attr}_seed{args.seed}_noise{100 * args.label_noise:g}.csv"
    storage.write_text(target, table.to_csv(index=False))
    return target


# ---------------------------------------------------------------------------------------------------------------------
# The regressor


@dataclass
class Part:
    """A set of utterances, ready to compute on: its `utils.LabeledSet` and its `batches.Rows`."""

    data: object
    rows: object


@dataclass
class Data:
    """What the regressors of one label file train and test on."""

    corpus: object
    train: Part
    validation: Part
    tests: dict[str, Part]


def load_data(args: argparse.Namespace) -> Data:
    """Train, Validation, the test split and the other corpora; kept for the next trial with the same labels.

    Args:
        args: those of DATA_ARGUMENTS: of a corpus, and split (its name), testing (tuple of other corpora),
            testing_scales (for each its label scale, or None), device and precision.
    Raises:
        UserError: as the stages.
    """
    return _load_data(*(getattr(args, name) for name in DATA_ARGUMENTS))


DATA_ARGUMENTS = (
    *("corpus", "labels", "features", "norm_dir", "cache_dir", "workers", "skip_missing"),
    *("emo_attr", "split", "testing", "testing_scales", "device", "precision"),
)


@functools.lru_cache(maxsize=1)
def _load_data(*values: object) -> Data:
    args = argparse.Namespace(**dict(zip(DATA_ARGUMENTS, values)))
    device = runtime.choose_device(args.device)

    def part(data) -> Part:
        return Part(data, Rows(data.rows, device, args.precision))

    corpus = utils.open_corpus(args)
    tests = {args.split: part(corpus.load(args.split))}
    own = args.corpus or args.labels
    names = testing_Curriculum.distinct_names([own, *args.testing])[1:] if args.testing else []
    for name, folder, asked in zip(names, args.testing, args.testing_scales):
        if not folder.is_dir():
            raise UserError(f"--testing {folder}: no such folder; expected a corpus.")
        if args.corpus and folder.samefile(args.corpus):
            print(f"warning: --testing {folder} is the training corpus; its Train utterances are tested too.")
        scale, _ = testing_Curriculum.label_scale(utils.find_label_file(folder), asked)
        other = utils.open_corpus(with_changes(args, corpus=folder, labels=None, features=None), scale)
        data = other.load("all")
        testing_Curriculum.note_if_narrow_scale(data, other.corpus.labels, asked)
        tests[f"{name} (all)"] = part(data)
    return Data(corpus, part(corpus.load("Train")), part(corpus.load_validation()), tests)


def fit(args: argparse.Namespace, data: Data, order: NDArray[np.int64]) -> tuple:
    """Train a regressor as training_Curriculum.py does.

    Args:
        args: epoch, batch_size, seed, order, precision, device, and those of the schedule.
        data: what to train and validate on.
        order: positions in Train, the first to be trained first; the others are left out.
    Returns:
        (the regressor of the best epoch, that epoch, validation CCC of every epoch).
    Raises:
        UserError: a loss is not finite.
    """

    device = runtime.choose_device(args.device)
    runtime.seed_everything(derived_seed(args.seed, "regressor"))
    learner = training_Curriculum.Learner(data.corpus.num_features, device)
    train, validation = data.train, data.validation
    targets, order = torch.from_numpy(train.data.targets).to(device), torch.from_numpy(order).to(device)
    best, curve, schedule = run_log.NO_BEST, [], cli.schedule(args)
    for epoch in range(args.epoch):
        subset = order[: schedule.size(args.order, epoch, len(order))]
        rate = schedule.learning_rate(epoch)
        training_Curriculum.train_epoch(learner, train.rows, train.data.names, targets, subset, rate, epoch, args)
        loss = training_Curriculum.validation_loss(learner, validation.rows, validation.data.targets, args.precision)
        best = run_log.better_of(best, loss, epoch, learner.model.state_dict())
        curve.append(1 - loss)
    learner.model.load_state_dict(best["weights"])
    return learner.model, best["epoch"], curve


def predict(model, rows, precision: str) -> NDArray[np.float32]:
    """The regressor's z-normed predictions, shape (N,)."""
    return in_batches(model, model, rows, precision)[0].cpu().numpy()


def folds_by_speaker(speakers: Sequence[str], names: Sequence[str], seed: int) -> NDArray[np.int64]:
    """Fold of each utterance, the utterances of a speaker all in one.

    Args:
        speakers: speaker of each utterance; one of an unknown speaker counts as a speaker.
        names: file name of each utterance.
        seed: of the draw.
    Returns:
        Folds 0..FOLDS-1, fewer where there are fewer speakers, int64, shape (N,). A single speaker is cut through.
    """
    groups = [name if who == utils.UNKNOWN_SPEAKER else f"speaker {who}" for who, name in zip(speakers, names)]
    groups = groups if len(set(groups)) > 1 else list(names)
    sizes = Counter(groups)
    drawn = np.random.default_rng(seed).permutation(sorted(sizes)).tolist()
    totals = [0] * min(FOLDS, len(sizes))
    fold_of = {}
    for group in sorted(drawn, key=lambda group: -sizes[group]):  # the largest first, each into the smallest fold
        fold_of[group] = totals.index(min(totals))
        totals[fold_of[group]] += sizes[group]
    return np.array([fold_of[group] for group in groups])


def self_taught(args: argparse.Namespace) -> Path:
    """Score every training utterance by a regressor that was trained without it.

    Five folds are drawn by speaker; a regressor without curriculum is trained on four of them, and scores the fifth.

    Returns:
        A file like a DeepMI file: file name -> minus the absolute error, z-normed.
    Raises:
        UserError: as the stages.
    Source: Hacohen & Weinshall, ICML 2019; cross-fitted so that no utterance is scored by what has learned it, or has
        heard its speaker.
    """
    data = load_data(args)
    train = data.train.data
    identity = storage.digest(_settings(args), train.key, data.validation.data.key)
    target = trial_folder(args) / f"selftaught_{args.emo_attr}_seed{args.seed}_{identity[:12]}.json"
    if target.is_file():
        return target
    fold = folds_by_speaker(train.speakers, train.names, derived_seed(args.seed, "folds"))
    scores = np.empty(len(train.names))
    for number in range(fold.max() + 1):
        model, _, _ = fit(with_changes(args, order="none"), data, np.flatnonzero(fold != number))
        error = np.abs(predict(model, data.train.rows, args.precision) - train.targets)
        scores[fold == number] = -error[fold == number]
    write_metric(target, dict(zip(train.names, scores.tolist())))
    return target


def _settings(args: argparse.Namespace) -> dict:
    """What changes the outcome of a training, the data aside."""
    return cli.chosen(args) | {"device": runtime.choose_device(args.device).type, "version": __version__}


def order_of(args: argparse.Namespace, data: Data) -> NDArray[np.int64]:
    """The training order of a trial.

    Args:
        args: order; for those by DeepMI its file as in stage 3; scores (the file of `self_taught`) or checkpoint (of
            DeepEmoCluster) for the rivals that need them.
        data: what is trained on.
    Returns:
        Positions in Train, int64, shape (N,).
    Raises:
        UserError: what the order goes by is missing or unreadable.
    """
    train = data.train.data
    if args.order in curriculum.ORDERS:
        # Every order of a comparison trains on the same utterances, so a metric that covers a part of Train is refused.
        metric = args.metric if args.order in curriculum.METRIC_ORDERS else None
        stage = with_changes(args, metric=metric, skip_missing=False, keep=1)
        return training_Curriculum.load_order(stage, data.corpus, train)[0]
    if args.order == "agreement":
        file = utils.find_detailed_file(args.corpus) if args.corpus else None
        if file is None:
            raise UserError(
                f"{args.corpus or 'no --corpus given'}: no labels_detailed file, by which the order agreement goes; "
                "leave that order out."
            )
        spread = utils.rater_spread(file, args.emo_attr)
        # One rating says nothing about agreement: such utterances come last.
        values = -spread.reindex(train.names).fillna(np.inf).to_numpy()
    elif args.order == "selftaught":
        values = curriculum.match_metric(read_metric(args.scores), train.names, args.scores)
    else:
        values = -np.abs(_cluster_predictions(args, data) - train.targets)
    return curriculum.training_order(args.order, train.names, values, args.seed)


def _cluster_predictions(args: argparse.Namespace, data: Data) -> NDArray[np.float32]:
    """What the regressor of the DeepEmoCluster checkpoint predicts for Train, z-normed, shape (N,)."""
    model, info = load_ssl_checkpoint(
        args.checkpoint, data.corpus.num_features, args.num_clusters, args.emo_attr, data.corpus.feature_set
    )
    data.corpus.note_other_norm_stats(args.checkpoint, info)
    rows = data.train.rows
    return in_batches(model.to(rows.device), model.predict_attribute, rows, args.precision)[0].cpu().numpy()


def ridge_predictions(train_rows: NDArray, labels: NDArray, *test_rows: NDArray) -> list[NDArray]:
    """What scikit-learn's RidgeCV predicts from the same normalised features, in label units.

    Args:
        train_rows: shape (N, D).
        labels: shape (N,).
        test_rows: sets of features, shape (M, D) each.
    Returns:
        Predictions for each set, shape (M,).
    """
    model = RidgeCV(alphas=np.logspace(0, 6, 25)).fit(train_rows, labels)
    return [model.predict(rows) for rows in test_rows]


def _kept(target: Path, data: Data) -> dict | None:
    """The result of a finished trial; None where there is none, or what is there is damaged."""
    try:
        result = storage.read_json_object(target)
        whole = result.keys() == RESULT_KEYS and {name: list(tests) for name, tests in result["tests"].items()} == {
            name: part.data.names for name, part in data.tests.items()
        }
        numbers = [*(result["curve"] or ()), *(value for tests in result["tests"].values() for value in tests.values())]
    except (UserError, AttributeError, TypeError):
        return None
    return result if whole and all(isinstance(value, float) and math.isfinite(value) for value in numbers) else None


def run_trial(args: argparse.Namespace) -> dict:
    """Train and test one regressor, unless that is done.

    Args:
        args: those of `load_data`, `fit` and `order_of`.
    Returns:
        order, seed, best_epoch and curve (validation CCC by epoch; None each for the ridge regression) and tests: for
        each test set file name -> prediction in label units.
    Raises:
        UserError: as the stages.
    """
    data = load_data(args)
    parts = {"train": data.train, "validation": data.validation, **data.tests}
    keys = {name: part.data.key for name, part in parts.items()}
    train = data.train.data
    if args.order == curriculum.RIDGE:  # depends on nothing but the data
        settings, order = {"order": curriculum.RIDGE, "version": __version__}, np.arange(len(train.names))
    else:
        settings = _settings(args) | {"order": args.order, "schedule": vars(cli.schedule(args))}
        order = order_of(args, data)
    identity = storage.digest(settings, keys, order.tobytes())
    target = trial_folder(args) / f"{args.emo_attr}_{args.order}_seed{args.seed}_{identity[:12]}.json"
    if kept := _kept(target, data):
        return kept
    result = {"order": args.order, "seed": args.seed, "best_epoch": None, "curve": None}
    if args.order == curriculum.RIDGE:
        found = ridge_predictions(train.rows, train.labels, *(part.data.rows for part in data.tests.values()))
    else:
        model, result["best_epoch"], result["curve"] = fit(args, data, order)
        found = [
            utils.denormalise(predict(model, part.rows, args.precision), data.corpus.label_norm, "a trial")
            for part in data.tests.values()
        ]
    result["tests"] = {
        name: dict(zip(part.data.names, predictions.tolist()))
        for (name, part), predictions in zip(data.tests.items(), found)
    }
    storage.write_text(target, json.dumps(result))
    return result
