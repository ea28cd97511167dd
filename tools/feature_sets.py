"""Feature sets: openSMILE's functionals, or a speech encoder. Each turns a recording into one vector."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import opensmile
from joblib import Parallel, delayed
from numpy.typing import NDArray

from deepmi.process import UserError, workers_without_interrupt
from deepmi.runtime import choose_device
from tools.encoders import EncoderSet, SetName, hub_folder
from tools.finetuned import FinetunedSet, is_finetuned, open_finetuned
from tools.sound import SAMPLING_RATE, Clip, read_signal

# openSMILE releases Python's lock for all but a fourteenth of its time (measured), so a few threads are as fast as
# processes and start at once; many threads would wait for each other.
MOST_THREADS = 8
OPENSMILE_SETS = list(opensmile.FeatureSet.__members__)


class Features(NamedTuple):
    """The features of a clip."""

    vector: NDArray[np.float64] | None  # shape (1, D); None if the clip has none
    remark: str = ""  # why it has none, or what makes it doubtful


class OpenSmileSet:
    """Functionals of openSMILE, by a name in `opensmile.FeatureSet`."""

    alone = True  # the features of a clip do not depend, even in their last bits, on the clips in its batch
    most_workers = math.inf  # batches at a time

    def __init__(self, name: str):
        self.name = self.opened_as = name
        self._smile = opensmile.Smile(
            feature_set=opensmile.FeatureSet[name],
            feature_level=opensmile.FeatureLevel.Functionals,
            sampling_rate=SAMPLING_RATE,
        )
        self.num_features = self._smile.num_features
        self.feature_names = self._smile.feature_names
        warnings.filterwarnings("ignore", "Segment too short", UserWarning)  # `features_of` reports it

    def batches(self, clips: Sequence[Clip], size: int) -> list[list[Clip]]:
        """`size` clips per batch."""
        return [list(clips[start : start + size]) for start in range(0, len(clips), size)]

    def features_of(self, signals: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float64] | None]:
        """The features of each signal of `read_signal`, shape (1, D), or None if it is too short."""
        found = [self._smile.process_signal(signal, SAMPLING_RATE).to_numpy(dtype=np.float64) for signal in signals]
        return [None if np.isnan(features).all() else features for features in found]


@functools.cache  # opening a set takes longer than a clip
def open_set(feature_set: str, device: str = "auto") -> OpenSmileSet | EncoderSet | FinetunedSet:
    """Open a feature set.

    Args:
        feature_set: a name in `opensmile.FeatureSet`, the file of a fine-tuned encoder, or the folder of an encoder or
            its name on the Hugging Face hub, with layer and pooling as `SetName` writes them.
        device: where an encoder computes, as `--device`.
    Raises:
        UserError: no such set. (openSMILE itself ends the process over some names.)
    """
    if feature_set in OPENSMILE_SETS:
        return OpenSmileSet(feature_set)
    if is_finetuned(Path(feature_set)):
        return open_finetuned(Path(feature_set), choose_device(device))
    name = SetName.parse(feature_set)
    if Path(name.source).is_dir():
        return EncoderSet(Path(name.source), choose_device(device), name)
    if name.on_hub:
        folder = hub_folder(name)
        commit = name._replace(revision=folder.name)  # a branch may move on between two calls or machines
        return EncoderSet(folder, choose_device(device), name) if commit == name else open_set(str(commit), device)
    raise UserError(
        f"--set {feature_set}: neither the folder of an encoder, nor an encoder of the Hugging Face hub (OWNER/NAME), "
        f"nor a feature set of openSMILE: {', '.join(OPENSMILE_SETS)}."
    )


def with_options(feature_set: str, revision: str | None, layer: str | None, pool: str | None) -> str:
    """The name of a feature set, as `open_set` takes it, with the values of --revision, --layer and --pool.

    Raises:
        UserError: the set has no such option.
    """
    name = SetName.parse(feature_set)
    given = {"revision": revision, "layer": layer, "pool": pool}
    given = {option: value for option, value in given.items() if value is not None}
    if given and name.source in OPENSMILE_SETS:
        raise UserError(f"--{next(iter(given))}: only for speech encoders; {name.source} is a set of openSMILE.")
    if revision and not name.on_hub:
        raise UserError(f"--revision: only for encoders of the Hugging Face hub; {name.source} is not one of them.")
    return str(name._replace(**given))


def feature_names(feature_set: str, count: int) -> list[str]:
    """openSMILE's names of the features of a set of `count` features; else `feature 0`, `feature 1`, ..."""
    names = open_set(feature_set).feature_names if feature_set in OPENSMILE_SETS else []
    return names if len(names) == count else [f"feature {number}" for number in range(count)]


def features_of(clips: Sequence[Clip], feature_set: str, device: str = "auto") -> list[Features]:
    """The features of each clip, or why it has none.

    Args:
        clips: recordings or parts of them.
        feature_set: as for `open_set`.
        device: as for `open_set`.
    """
    signals, vectors = {}, {}
    remarks: list[list[str]] = [[] for _ in clips]
    for number, clip in enumerate(clips):
        try:
            signals[number] = read_signal(clip, remarks[number])
        except UserError as error:
            remarks[number].insert(0, str(error))
        except OSError as error:
            remarks[number] = [error.strerror or str(error)]
    if signals:
        vectors = dict(zip(signals, open_set(feature_set, device).features_of(list(signals.values()))))
    for number, vector in vectors.items():
        if vector is None:
            remarks[number].insert(0, f"too short ({1000 * len(signals[number]) / SAMPLING_RATE:.0f} ms)")
        elif np.isnan(vector).all():
            vectors[number], remarks[number] = None, ["the encoder returns only NaN"]
    return [Features(vectors.get(number), "; ".join(found)) for number, found in enumerate(remarks)]


def in_parallel(work: Callable, tasks: Sequence[tuple], workers: int) -> Iterator:
    """Results of `work(*task)` in the order of the tasks, so many at a time.

    Up to MOST_THREADS workers are threads; more are processes, for which `work` must be in an importable module.
    """
    if workers > MOST_THREADS:
        pool = Parallel(n_jobs=min(workers, len(tasks)), return_as="generator")
        with workers_without_interrupt():
            results = pool(delayed(work)(*task) for task in tasks)
        yield from results
        return
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(work, *zip(*tasks))
    finally:  # a thread that is still within openSMILE when Python ends would abort the process
        pool.shutdown(cancel_futures=True)
