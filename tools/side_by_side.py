"""Run a function, or a stage, many times side by side on one machine."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor
from tqdm import tqdm

from deepmi import clustering, runtime
from deepmi.process import workers_without_interrupt


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
    with one_thread(task), contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        return number, work(task)


@functools.cache
def _end_with(starter: int) -> None:
    """End this process soon after the one that started it: it would otherwise continue and keep its files locked."""

    def watch() -> None:
        while os.getppid() == starter:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def one_thread(args: argparse.Namespace) -> contextlib.AbstractContextManager:
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
