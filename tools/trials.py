"""The same training many times, side by side: stages 1 and 2 per seed, stage 3 per order and seed.

A trial runs on one thread of a CPU, so its results do not depend on how many run at a time. Its folder holds the
checkpoint, log and resume file of its stage: a stopped trial continues, and a finished one is not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import os
import shutil
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor
from numpy.typing import NDArray
from tqdm import tqdm

import extract_DeepMI
import training_Curriculum
import training_DeepEmoCluster
import utils
from deepmi import __version__, cli, clustering, curriculum, features, runtime, scores, storage
from deepmi.batches import Rows, in_batches
from deepmi.metric import read_metric, warn_if_flat, write_metric
from deepmi.process import UserError, workers_without_interrupt
from deepmi.seeds import derived_seed
from model import load_regressor, load_ssl_checkpoint

FOLDS = 5  # of the self-taught scores
RIDGE = "ridge"  # no order: scikit-learn's regression in place of the network
SCORE_ORDERS = ("agreement", "selftaught", "prediction")  # highest score first
ORDERS = (*curriculum.ORDERS, *SCORE_ORDERS, RIDGE)


# ---------------------------------------------------------------------------------------------------------------------
# Side by side


def add_trial_arguments(parser: argparse._ActionsContainer) -> None:
    """--jobs and --results-dir, for tools that train many times."""
    parser.add_argument(
        "--jobs",
        type=cli.positive_int,
        metavar="N",
        help="trainings at a time, each on one thread of a CPU; by default one per core, or one on a GPU",
    )
    parser.add_argument(
        "--results-dir",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="folder of tables and pictures; finished trainings are kept in its folder trials and not run again",
    )


def side_by_side(work: Callable, tasks: Sequence[argparse.Namespace], jobs: int, title: str) -> Iterator[tuple]:
    """(task, `work(task)`) per task, in the order in which they finish, with a progress bar.

    Args:
        work: a function of a module; what it prints is dropped.
        tasks: its arguments.
        jobs: how many run at a time; with several, each in a separate process.
        title: of the progress bar.
    """
    pool = Parallel(n_jobs=min(jobs, max(len(tasks), 1)), return_as="generator_unordered", batch_size=1)
    started_by = os.getpid(), Path.cwd()
    with workers_without_interrupt():
        results = pool(delayed(_alone)(work, task, number, *started_by) for number, task in enumerate(tasks))
    try:
        with warnings.catch_warnings():
            # joblib replaces processes whose memory has grown, as it does at the start of a training, and warns of it.
            warnings.filterwarnings("ignore", "A worker stopped", UserWarning)
            for number, result in tqdm(results, desc=title, total=len(tasks), unit="run", disable=None):
                yield tasks[number], result
    except BaseException:
        get_reusable_executor().shutdown(kill_workers=True)
        raise


def _alone(work: Callable, task: argparse.Namespace, number: int, starter: int, folder: Path) -> tuple:
    """(number, `work(task)`), silently, on one thread where it computes on a CPU."""
    if os.getpid() != starter:
        _end_with(starter)
        tqdm.set_lock(threading.RLock())  # by default a lock between processes, which a kill would leave behind
    os.chdir(folder)  # joblib reuses processes that were started in a different folder
    silence = io.StringIO()
    with _one_thread(task), contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        return number, work(task)


@functools.cache
def _end_with(starter: int) -> None:
    """End this process soon after the one that started it: it would otherwise continue and keep its files locked."""

    def watch() -> None:
        while os.getppid() == starter:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _one_thread(args: argparse.Namespace) -> contextlib.AbstractContextManager:
    """One thread where the device is a CPU, so that results do not depend on the number of cores."""
    on_cpu = runtime.choose_device(args.device).type == "cpu"
    return clustering.on_one_thread() if on_cpu else contextlib.nullcontext()


def with_changes(args: argparse.Namespace, **changes: object) -> argparse.Namespace:
    """A copy of the arguments with some of them changed."""
    return argparse.Namespace(**vars(args) | changes)


def run_stage(stage: ModuleType, args: argparse.Namespace, **changes: object) -> None:
    """Run a stage with its defaults, the arguments of `args` that it has too, and `changes`."""
    defaults = vars(stage.get_args_parser().parse_args([]))
    given = {name: value for name, value in vars(args).items() if name in defaults}
    stage.main(argparse.Namespace(**defaults | given | {"workers": 1} | changes))


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


def _settings(args: argparse.Namespace) -> dict:
    """What changes the outcome of a training, aside from its data."""
    return cli.chosen(args) | {"device": runtime.choose_device(args.device).type}


# ---------------------------------------------------------------------------------------------------------------------
# DeepEmoCluster and DeepMI


def make_metrics(tasks: Sequence[argparse.Namespace], jobs: int) -> None:
    """Train a DeepEmoCluster and extract DeepMI per task.

    Args:
        tasks: arguments of stages 1 and 2, with `ssl_epochs` in place of `epoch`. Each is given `metric` (its DeepMI
            file), `checkpoint` and `num_unlabeled`.
        jobs: how many run at a time.
    Raises:
        UserError: as the stages.
    """
    for task in tasks:  # faults of the input show here, and packing uses all workers
        corpus = utils.open_corpus(task)
        keys, task.num_unlabeled = [corpus.load("Train").key, corpus.load_validation().key], 0
        if task.unlabeled_size:
            if task.unlabeled is None:
                raise UserError(utils.NO_UNLABELED)
            paths = utils.draw_unlabeled(task.unlabeled, task.unlabeled_size, task.unlabeled_seed)
            packed = features.pack_features(
                paths.folder, paths.names, *corpus.feature_norm, task.cache_dir, task.workers, "unlabeled"
            )
            corpus.warn_of_tested(packed.names, paths.folder)
            keys, task.num_unlabeled = [*keys, packed.key], len(packed.names)
        settings = _settings(with_changes(task, epoch=task.ssl_epochs))
        task.folder = trial_path(task, "", settings, task.num_clusters, *keys)
        task.metric = utils.metric_file(task.folder, task.num_clusters, task.emo_attr)
        names = task.ssl_epochs, task.batch_size, task.num_clusters, task.emo_attr
        task.checkpoint = utils.ssl_checkpoint(task.folder, *names)
    largest_first = sorted(tasks, key=lambda task: -task.num_clusters)  # too many clusters are refused at once
    for _ in side_by_side(make_metric, largest_first, jobs, "DeepEmoCluster"):
        pass


def make_metric(args: argparse.Namespace) -> None:
    """Stages 1 and 2 in the folder of one task."""
    for stage in (training_DeepEmoCluster, extract_DeepMI):
        run_stage(stage, args, epoch=args.ssl_epochs, model_dir=args.folder, metric_dir=args.folder)


def noisy_labels(args: argparse.Namespace) -> Path:
    """Write a label file in which a share of the Train labels is replaced by draws from all Train labels.

    Args:
        args: corpus, labels, emo_attr, label_noise (share 0..1) and seed.
    Returns:
        The file, in the folder of the trials. Labels of the other splits are unchanged.
    Raises:
        UserError: as `utils.read_labels`, or no Train labels.
    """
    source = args.labels or utils.find_label_file(args.corpus)
    table = utils.read_labels(source)
    labels = utils.attribute_labels(utils.select_split(table, "Train", source), args.emo_attr, source)
    rng = np.random.default_rng(derived_seed(args.seed, "label noise"))
    chosen = rng.choice(len(labels), size=round(args.label_noise * len(labels)), replace=False)
    drawn = pd.Series(rng.choice(labels.to_numpy(), size=len(chosen)), labels.index[chosen]).map("{:.10g}".format)
    column = f"Emo{args.emo_attr}"
    table[column] = table["FileName"].map(drawn).fillna(table[column])
    name = f"labels_{args.emo_attr}_seed{args.seed}_noise{100 * args.label_noise:g}.csv"
    target = args.results_dir / "trials" / name
    storage.write_text(target, table.to_csv(index=False))
    return target


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
    names = scores.distinct_names([args.corpus or args.labels, *args.testing])[1:]
    for name, folder, asked in zip(names, args.testing, args.testing_scales):
        if not folder.is_dir():
            raise UserError(f"--testing {folder}: no such folder; expected a corpus.")
        if args.corpus and folder.samefile(args.corpus):
            print(f"warning: --testing {folder} is the training corpus; its Train utterances are tested too.")
        labels = utils.find_label_file(folder)
        prepared = utils.prepared_scale(labels)
        scale, _ = scores.label_scale(labels, prepared, asked)
        other = with_changes(args, corpus=folder, labels=None, features=None)
        tests[f"{name} (all)"] = data = utils.open_corpus(other, scale).load("all")
        scores.note_if_narrow_scale(labels, prepared, asked, data.labels)
    return Data(corpus, corpus.load("Train"), corpus.load_validation(), tests)


def score_file(args: argparse.Namespace, order: str, data: Data) -> Path | None:
    """The file of scores that an order sorts by: file name -> score.

    Args:
        args: for an order by DeepMI its file, as in stage 3; checkpoint (of DeepEmoCluster) for `prediction`.
        order: not `selftaught`, see `self_taught`.
        data: what is trained on.
    Returns:
        None for an order that needs no scores.
    Raises:
        UserError: the file, or what its scores are made from, is missing or unreadable.
    """
    train = data.train
    if order in curriculum.METRIC_ORDERS:
        file = args.metric or utils.metric_file(args.metric_dir, args.num_clusters, args.emo_attr)
        in_train = data.corpus.select("Train")["FileName"].tolist()
        # All orders of a comparison train on the same utterances, so a metric of some of them is refused.
        warn_if_flat(curriculum.match_metric(read_metric(file), train.names, file, in_train), file)
        return file
    if order == "agreement":
        file = utils.find_detailed_file(args.corpus) if args.corpus else None
        if file is None:
            where = args.corpus or "no --corpus given"
            raise UserError(f"{where}: no labels_detailed file, which the order agreement needs; leave that order out.")
        spread = utils.rater_spread(file, args.emo_attr).reindex(train.names)
        values = -spread.fillna(spread.max() + 1)  # one rating says nothing about agreement: such utterances come last
    elif order == "prediction":
        model, info = load_ssl_checkpoint(
            args.checkpoint, data.corpus.num_features, args.num_clusters, args.emo_attr, data.corpus.feature_set
        )
        data.corpus.note_other_norm_stats(args.checkpoint, info)
        values = -np.abs(predict(model, model.predict_attribute, train.rows, args) - train.targets)
    else:
        return None
    content = dict(zip(train.names, values.tolist()))
    target = trial_path(args, f"scores_{order}_", content).with_suffix(".json")
    write_metric(target, content)
    return target


def predict(model, function: Callable, rows: NDArray[np.float32], args: argparse.Namespace) -> NDArray[np.float32]:
    """What a network's function predicts for normalised features (N, D): z-normed, shape (N,)."""
    device = runtime.choose_device(args.device)
    with _one_thread(args):
        return (
            in_batches(model.to(device), function, Rows(rows, device, args.precision), args.precision)[0].cpu().numpy()
        )


def predict_by(regressor: Path, corpus, rows: NDArray[np.float32], args: argparse.Namespace) -> NDArray[np.float32]:
    """`predict` with the network in a checkpoint of stage 3."""
    model, _ = load_regressor(regressor, corpus.num_features, args.emo_attr, corpus.feature_set)
    return predict(model, model, rows, args)


def folds_by_speaker(speakers: Sequence[str], names: Sequence[str], seed: int) -> NDArray[np.int64]:
    """Fold of each utterance; all utterances of a speaker are in the same fold.

    Args:
        speakers: speaker of each utterance; an utterance of an unknown speaker counts as a speaker.
        names: file name of each utterance.
        seed: of the draw.
    Returns:
        Folds 0..FOLDS-1, fewer where there are fewer speakers, int64, shape (N,). A single speaker is divided.
    """
    groups = [name if who == utils.UNKNOWN_SPEAKER else f"speaker {who}" for who, name in zip(speakers, names)]
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
    folder = trial_path(args, "selftaught_", _settings(args), train.key, validation.key)
    target = folder.with_suffix(".json")
    if target.is_file():
        return target
    fold = folds_by_speaker(train.speakers, train.names, derived_seed(args.seed, "folds"))
    values = np.empty(len(train.names))
    for number in range(fold.max() + 1):
        held_out = fold == number
        with storage.scratch_folder(args.cache_dir) as scratch:
            is_held_out = table["FileName"].isin(np.array(train.names)[held_out])
            labels = table.assign(Split_Set=table["Split_Set"].mask(is_held_out, "held out"))
            storage.write_text(scratch / "labels.csv", labels.to_csv(index=False))
            changes = {"labels": scratch / "labels.csv", "cache_dir": scratch, "model_dir": folder / f"fold{number}"}
            run_stage(training_Curriculum, args, order="none", pacing="paper", **changes)
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
        tasks: arguments of stage 3, with `order` and `scores` (its score file, or None).
        data: by seed.
        jobs: how many train at a time.
    Returns:
        Per task order, seed, best_epoch and curve (validation CCC per epoch; both None for the ridge regression) and
        tests: for each test set file name -> prediction in label units.
    Raises:
        UserError: as the stages.
    """
    for task in tasks:
        of = data[task.seed]
        scores_read = task.scores.read_bytes() if task.scores else b""
        settings = () if task.order == RIDGE else (_settings(task), task.pacing, scores_read)
        task.folder = trial_path(task, f"{task.order}_", *settings, of.train.key, of.validation.key)
        tests = storage.digest({name: test.key for name, test in of.tests.items()})
        task.result = task.folder.with_name(f"{task.folder.name}_{tests[:12]}.json")
    missing = [task for task in tasks if _read_result(task) is None]
    for task in tqdm([task for task in missing if task.order == RIDGE], RIDGE, unit="run", disable=None):
        of = data[task.seed]
        found = ridge_predictions(of.train.rows, of.train.labels, *(test.rows for test in of.tests.values()))
        _write_result(task, of, None, None, found)
    networks = [task for task in missing if task.order != RIDGE]
    for task, (regressor, best_epoch, curve) in side_by_side(train_regressor, networks, jobs, "regressors"):
        of = data[task.seed]
        found = [predict_by(regressor, of.corpus, test.rows, task) for test in of.tests.values()]
        found = [utils.denormalise(z, of.corpus.label_norm, regressor) for z in found]
        _write_result(task, of, best_epoch, curve, found)
    return [_read_result(task) for task in tasks]


def train_regressor(args: argparse.Namespace) -> tuple[Path, int, list[float]]:
    """Stage 3 in the folder of one task: (regressor, its epoch, validation CCC per epoch)."""
    # To stage 3 any file of scores is a DeepMI file.
    order = "deepmi" if args.order in SCORE_ORDERS else args.order
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
    from sklearn.linear_model import RidgeCV

    model = RidgeCV(alphas=np.logspace(0, 6, 25)).fit(train_rows, labels)
    return [model.predict(rows) for rows in test_rows]


def _write_result(task: argparse.Namespace, data: Data, best_epoch, curve, predictions: Sequence[NDArray]) -> None:
    tests = {
        name: dict(zip(test.names, values.tolist())) for (name, test), values in zip(data.tests.items(), predictions)
    }
    result = {"order": task.order, "seed": task.seed, "best_epoch": best_epoch, "curve": curve, "tests": tests}
    storage.write_text(task.result, json.dumps(result))


def _read_result(task: argparse.Namespace) -> dict | None:
    """The result of a finished trial; None where there is none, or where its file is damaged."""
    try:
        return storage.read_json_object(task.result)
    except UserError:
        return None
