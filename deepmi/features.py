"""From .mat files, one an utterance, to one packed float32 matrix that every stage maps into memory.

A corpus keeps its acoustic features as one MATLAB file an utterance (MSP-Podcast's
`Features/OpenSmile_func_IS13ComParE/feat_mat`). Reading them costs more than training on them, so each file is read
once: normalised in float64, clipped, stored as a row of `feature_cache/<key>.npy`, and mapped from then on.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import os
import re
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from tqdm import tqdm

from deepmi.matfile import read_mat
from deepmi.process import UserError, notify, workers_without_interrupt
from deepmi.storage import digest, prepare_folder, read_json_object, write_atomically, write_together

FEATURE_KEY = "Audio_data"  # the variable that holds the features in MSP-Podcast's .mat files
SET_FILE = "feature_set.json"  # beside .mat files and norm terms: which feature set they are of
# Of recordings that libsndfile reads, and of those that it doesn't.
AUDIO_ENDINGS = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".oga", ".aiff", ".aif", ".aifc", ".au", ".snd", ".caf")
AUDIO_ENDINGS += (".w64", ".rf64", ".sph", ".wave", ".mp2")
UNREADABLE_ENDINGS = (".m4a", ".m4b", ".mp4", ".aac", ".wma", ".webm", ".weba", ".mka", ".amr", ".awb", ".3gp", ".3ga")
UNREADABLE_ENDINGS += (".ac3", ".ape", ".wv", ".spx", ".ra", ".raw", ".pcm")
CLIP = 3.0  # normalised features are clipped to [-CLIP, CLIP]
CACHE_FORMAT = 3  # part of every cache key: raise it when the packed form or the key's own form changes
CHUNK = 64  # files that a worker reads at a time; moments are merged in chunks, so this is part of the result
RUN = 4  # chunks whose moments a worker sends together
BLOCK = 4096  # utterances whose names or file times are held as text at a time
WAVE = 32  # tasks a worker that are handed out before all of their results have been used
START_UP = 1.0  # seconds until worker processes stand ready (measured); one process reads 20,000 files meanwhile
TASK_SECONDS = 0.04  # of work that a worker is given at a time
BAR_DELAY = 0.5  # seconds; what takes less needs no progress bar


# ---------------------------------------------------------------------------------------------------------------------
# One .mat file


def read_feature(path: Path) -> NDArray[np.float64]:
    """The acoustic features of one utterance.

    Returns:
        float64, shape (D,).
    Raises:
        UserError: as `read_mat`; or not one vector; or nothing but NaN.
    """
    value = read_mat(path, FEATURE_KEY)
    if value.ndim != 2 or 1 not in value.shape or value.size == 0:
        raise UserError(f"{path}: {FEATURE_KEY} has shape {value.shape}; expected (1, number of features).")
    vector = value.astype(np.float64, copy=False).ravel()
    if math.isnan(vector[0]) and np.isnan(vector).all():
        raise UserError(
            f"{path}: every feature is NaN (a clip too short for its features?); extract it again or drop it."
        )
    return vector


# ---------------------------------------------------------------------------------------------------------------------
# Which feature set


def read_feature_set(folder: Path) -> str:
    """Name of the feature set that the files of a folder are of; empty where nothing says so, as in MSP-Podcast."""
    file = Path(folder) / SET_FILE
    if not file.is_file():
        return ""
    name = read_json_object(file).get("feature_set")
    if not isinstance(name, str):
        raise UserError(f"{file}: no feature_set in it; expected its name. Remove the file if you know the set.")
    return name


def feature_set_mark(name: str) -> bytes | None:
    """What SET_FILE holds for a feature set; None, no such file, where its name is empty."""
    return json.dumps({"feature_set": name}).encode() + b"\n" if name else None


def write_feature_set(folder: Path, name: str) -> None:
    """Note down which feature set the files of a folder are of; an empty name takes the note away."""
    write_together({Path(folder) / SET_FILE: feature_set_mark(name)})


def common_feature_set(sets: dict[object, str]) -> str:
    """The one feature set of several things.

    Args:
        sets: thing (a folder, a checkpoint) -> its feature set, empty where nothing says which.
    Returns:
        Its name, empty where no thing says.
    Raises:
        UserError: they are of different sets.
    """
    known = {thing: name for thing, name in sets.items() if name}
    (first, name), *others = known.items() or [(None, "")]
    for thing, other in others:
        if other != name:
            raise UserError(
                f"{thing}: of the feature set {other}, but {first} is of {name}. Features, norm terms and models must "
                "be of one set; keep those of each set in folders of their own (--features, --norm-dir, --model-dir)."
            )
    return name


# ---------------------------------------------------------------------------------------------------------------------
# Many files, read in parallel


def _mat_name(utterance: str) -> str:
    stem, ending = os.path.splitext(utterance)
    return f"{stem if ending.lower() in AUDIO_ENDINGS or ending == '.mat' else utterance}.mat"


def feature_name(utterance: str) -> str:
    """The .mat file's name of an utterance: `X.wav` -> `X.mat`; any other ending belongs to the name.

    Accented letters become one character each, since the same name may be written with one or with two.
    """
    return unicodedata.normalize("NFC", _mat_name(utterance))


def feature_file(folder: Path | str, utterance: str) -> str:
    """Path of an utterance's .mat file in a folder, in the Unicode form that is there."""
    name = feature_name(utterance)
    if not name.isascii():
        forms = (name, unicodedata.normalize("NFD", name), _mat_name(utterance))
        name = next((form for form in forms if os.path.exists(os.path.join(folder, form))), name)
    return os.path.join(folder, name)


class FeaturePaths(Sequence[Path]):
    """The .mat files of many utterances; a path is made when it is asked for, since millions of them fill memory."""

    def __init__(self, folder: Path, names: Sequence[str]):
        self.folder, self.names = folder, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return FeaturePaths(self.folder, self.names[index])
        return Path(feature_file(self.folder, self.names[index]))

    def strings(self) -> Iterator[str]:
        """The paths as text, which is made faster than a `Path`."""
        folder = os.fspath(self.folder)
        return (feature_file(folder, name) for name in self.names)


def feature_paths(feature_dir: Path, utterances: Sequence[str]) -> FeaturePaths:
    """The .mat file of each utterance."""
    return FeaturePaths(feature_dir, utterances)


def missing_features(feature_dir: Path, utterances: Sequence[str]) -> list[str]:
    """Those utterances that have no feature file."""
    with contextlib.suppress(OSError):
        present = {unicodedata.normalize("NFC", entry.name) for entry in os.scandir(feature_dir)}
        return [name for name in utterances if os.path.basename(feature_name(name)) not in present]
    return list(utterances)


def _parts(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


@functools.lru_cache(maxsize=1)
def _chunk_buffer(files: int, width: int) -> NDArray[np.float64]:
    """One buffer a process: megabytes that are new at every chunk cost more than the arithmetic on them."""
    return np.empty((files, width))


def _read_chunk(paths: Sequence[Path], width: int) -> tuple[NDArray[np.float64], list[str], list[str]]:
    """Rows (B, D) of a chunk, what is wrong with its files, and the names of files with infinite values.

    The rows last until the next chunk is read; that of a faulty file is NaN.
    """
    files = list(paths.strings() if isinstance(paths, FeaturePaths) else map(os.fspath, paths))
    rows = _chunk_buffer(len(files), width)
    faults, infinite = [], []
    for row, file in zip(rows, files):
        try:
            vector = read_feature(file)
            if vector.shape != row.shape:
                raise UserError(f"{file}: {vector.size} features; expected {width}.")
        except UserError as error:
            faults.append(str(error))
            row[:] = np.nan
            continue
        row[:] = vector
        if np.isinf(vector).any():
            infinite.append(os.path.basename(file))
    return rows, faults, infinite


def _in_parallel(work: Callable, chunks: Iterable[tuple], workers: int, files: int, title: str) -> Iterator:
    """Results of `work(*chunk)` in the order of the chunks, with a progress bar that counts files.

    Workers are started as soon as the pace so far says that they will save more than they cost: thousands of files in
    the page cache are read before workers stand ready, hundreds on a slow disk are not.

    Args:
        work: a function of this module.
        chunks: arguments of each call; the first is the chunk's files.
        workers: processes.
        files: how many files the chunks have together.
        title: what the progress bar calls them.
    """
    chunks, done, begin = iter(chunks), 0, time.perf_counter()
    with tqdm(total=files, desc=title, unit="file", delay=BAR_DELAY, disable=None) as bar:
        for chunk in chunks:
            yield work(*chunk)
            done += len(chunk[0])
            bar.update(len(chunk[0]))
            pace = (time.perf_counter() - begin) / done
            if pace * (files - done) * (1 - 1 / workers) > START_UP:
                break
        if done < files:
            size = len(chunk[0])
            workers = min(workers, math.ceil((files - done) / size))
            for chunk, result in _in_processes(work, chunks, workers, pace * size):
                yield result
                bar.update(len(chunk[0]))


def _in_processes(work: Callable, chunks: Iterator[tuple], workers: int, seconds: float) -> Iterator[tuple]:
    """(chunk, result) in the order of the chunks, of which each takes some `seconds`."""
    # A task costs the main process 0.4 ms, so quick chunks share one; messages of many MB are slow again.
    batch = max(1, min(8, int(TASK_SECONDS / seconds)))
    with Parallel(n_jobs=workers, return_as="generator", batch_size=batch) as pool:
        # joblib runs ahead without end where results are made faster than they are used; waves bound what piles up.
        while wave := list(itertools.islice(chunks, WAVE * batch * workers)):
            with workers_without_interrupt():
                results = pool(delayed(work)(*chunk) for chunk in wave)
            yield from zip(wave, results)


def _raise_faults(faults: list[str], files: int) -> None:
    if faults:
        more = f" (and {len(faults) - 1} more of {files} files)" if len(faults) > 1 else ""
        raise UserError(faults[0] + more)


# ---------------------------------------------------------------------------------------------------------------------
# Moments of the Train split


@dataclass
class Moments:
    """Running count, mean and sum of squared deviations of each feature, about a fixed shift.

    Merging follows Chan, Golub & LeVeque (1979). A shift by the first utterance keeps small spreads about huge means
    (v1.8 has means of 1e12), and the minimum and maximum tell a constant feature exactly.
    """

    count: NDArray | int  # (D,) utterances whose feature is a number; one number if it is the same for all features
    mean: NDArray  # (D,) of x - shift
    squares: NDArray  # (D,) sum of (x - mean)**2
    low: NDArray  # (D,) of x - shift
    high: NDArray  # (D,)

    @classmethod
    def of(cls, rows: NDArray[np.float64]) -> Moments:
        """Moments of shifted rows (B, D), which are overwritten; NaN counts as not observed."""
        missing = np.isnan(rows)
        complete = not missing.any()
        count = len(rows) - (0 if complete else missing.sum(axis=0))
        low = (rows if complete else np.where(missing, np.inf, rows)).min(axis=0)
        high = (rows if complete else np.where(missing, -np.inf, rows)).max(axis=0)
        rows[missing] = 0.0
        mean = rows.sum(axis=0) / np.maximum(count, 1)
        deviations = np.subtract(rows, mean, out=rows)
        deviations[missing] = 0.0
        squares = np.einsum("bd,bd->d", deviations, deviations)
        return cls(count, mean, squares, low, high)

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets together."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        step = other.mean - self.mean
        return Moments(
            count,
            self.mean + step * share,
            self.squares + other.squares + step * step * self.count * share,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
        )


def _chunk_moments(paths: Sequence[Path], shift: NDArray) -> tuple[Moments, list[str], list[str]]:
    rows, faults, infinite = _read_chunk(paths, shift.size)
    if infinite:
        rows[np.isinf(rows)] = np.nan  # named by the caller, kept out of the arithmetic
    return Moments.of(np.subtract(rows, shift, out=rows)), faults, infinite


def _run_moments(paths: Sequence[Path], shift: NDArray, chunk: int) -> tuple[list[Moments], list[str], list[str]]:
    """Moments of each chunk of a run, what is wrong with its files, and the names of files with infinite values.

    The first chunk's extremes are the run's and the others have none: which are merged first is no part of the result
    there, and what a worker sends, the main process's burden, is halved.
    """
    run, faults, infinite = [], [], []
    for part in _parts(len(paths), chunk):
        moments, chunk_faults, chunk_infinite = _chunk_moments(paths[part], shift)
        if run:
            run[0].low, run[0].high = np.minimum(run[0].low, moments.low), np.maximum(run[0].high, moments.high)
            moments.low, moments.high = np.inf, -np.inf
        run.append(moments)
        faults += chunk_faults
        infinite += chunk_infinite
    return run, faults, infinite


def feature_moments(paths: Sequence[Path], workers: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and population standard deviation of each feature over many files, in one pass.

    Memory does not grow with the number of files: each worker holds a chunk, the sum holds five numbers a feature.
    The result does not depend on the number of workers.

    Args:
        paths: feature files, N of them.
        workers: processes that read.
    Returns:
        (mean, standard deviation), float64, shape (D,) each. A feature that is NaN in every file gets NaN and a
        constant one the standard deviation 0.
    Raises:
        UserError: an unreadable file, files of different widths, or infinite values.
    Source: Lin, Sridhar & Busso (2024); merging: `Moments`.
    """
    shift = read_feature(paths[0])
    shift = np.where(np.isfinite(shift), shift, 0.0)
    total, faults, infinite = None, [], []
    runs = ((paths[part], shift, CHUNK) for part in _parts(len(paths), RUN * CHUNK))
    for run, run_faults, run_infinite in _in_parallel(_run_moments, runs, workers, len(paths), "norm terms"):
        for moments in run:
            total = moments if total is None else total.merge(moments)
        faults += run_faults
        infinite += run_infinite
    _raise_faults(faults, len(paths))
    if infinite:
        raise UserError(
            f"infinite values in {len(infinite)} feature files ({', '.join(infinite[:5])}): no mean exists. "
            "Extract them again or take them out of the label file."
        )
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        mean = np.where(total.count > 0, shift + total.mean, np.nan)
        std = np.sqrt(total.squares / total.count)
    endless = np.flatnonzero((total.count > 0) & ~(np.isfinite(mean) & np.isfinite(std)))
    if endless.size:
        raise UserError(
            f"{paths[0].parent}: feature {endless[0]} (counted from 0) has values too large for a standard deviation, "
            f"up to {np.abs(shift + total.high)[endless[0]]:.3g}, in some file. Extract that file again or drop it."
        )
    std[total.low == total.high] = 0.0
    return mean, std


def normalise(features: NDArray[np.float64], mean: NDArray, std: NDArray) -> NDArray[np.float32]:
    """z-norm, NaN to 0, clipped to [-3, 3]; a constant feature (std 0) becomes 0.

    Args:
        features: float64, shape (..., D). The subtraction needs float64: v1.8's means reach 1e12.
        mean: float64, shape (D,).
        std: float64, shape (D,).
    Returns:
        float32, the shape of `features`.
    Source: Lin, Sridhar & Busso (2024).
    """
    return _normalise_into(np.empty(features.shape), features, mean, std).astype(np.float32)


def _normalise_into(z: NDArray, features: NDArray, mean: NDArray, std: NDArray) -> NDArray[np.float64]:
    """`normalise` in float64, written to `z`, which may be `features` itself."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        np.subtract(features, mean, out=z)
        np.divide(z, std, out=z)
    z[..., std == 0] = 0.0
    np.clip(z, -CLIP, CLIP, out=z)
    z[np.isnan(z)] = 0.0
    return z


# ---------------------------------------------------------------------------------------------------------------------
# The packed matrix


@dataclass
class PackedFeatures:
    """Normalised features of some utterances, mapped from disk.

    Attributes:
        names: utterances (file names), sorted; row i belongs to names[i].
        rows: float32, shape (N, D), a memory map.
        key: digest of names and rows. Times of files and their folders have no part in it.
    """

    names: list[str]
    rows: NDArray[np.float32]
    key: str


def _block_digest(paths: FeaturePaths) -> str:
    """Digest over some files.

    A file counts by name, size, and times of change of content and of inode: no tool can set the latter, so a file
    changed behind an old time stamp still makes a new key.
    """
    stats = map(os.stat, paths.strings())
    return digest([(name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in zip(paths.names, stats)])


def cache_file(
    feature_dir: Path,
    names: Iterable[str],
    mean: NDArray[np.float64],
    std: NDArray[np.float64],
    cache_dir: Path,
    workers: int = 1,
) -> Path:
    """The .npy file in which `pack_features` keeps the rows of these utterances, whether it is there or not.

    Its name is a digest of the files' sizes and times, norm terms and packed form: these decide whether to pack again.
    Beside it lies an index with the ending .json: the digest of names and rows, and the sorted names. The matrix counts
    only with that. The arguments are those of `pack_features`.
    """
    paths = feature_paths(feature_dir, sorted(names))
    blocks = ((paths[part],) for part in _parts(len(paths), BLOCK))
    files = ""
    for block in _in_parallel(_block_digest, blocks, workers, len(paths), "file times"):
        files = digest(files, block)
    return Path(cache_dir) / f"{digest(CACHE_FORMAT, files, mean.tobytes(), std.tobytes())}.npy"


def _index_text(content: str, names: Sequence[str]) -> Iterator[bytes]:
    """The index as JSON, one block of names at a time."""
    yield f'{{"content": "{content}", "names": ['.encode()
    for part in _parts(len(names), BLOCK):
        text = json.dumps(names[part])[1:-1]
        yield (f", {text}" if part.start else text).encode()
    yield b"]}"


def write_index(cache: Path, content: str, names: Sequence[str]) -> None:
    """Write the index of a packed matrix: a digest of names and rows (64 hexadecimal digits), and the sorted names."""
    with write_atomically(cache.with_suffix(".json")) as temporary, open(temporary, "wb") as stream:
        stream.writelines(_index_text(content, names))


def _read_index(index: Path, names: Sequence[str]) -> str | None:
    """The digest in an index; None where the index is not that of these names."""
    with open(index, "rb") as stream:
        found = re.match(rb'\{"content": "([0-9a-f]{64})"', stream.read(len('{"content": "') + 65))
        if not found:
            return None
        content = found[1].decode()
        stream.seek(0)
        whole = all(stream.read(len(text)) == text for text in _index_text(content, names)) and not stream.read(1)
    return content if whole else None


def _open_cache(cache: Path, names: Sequence[str], width: int) -> PackedFeatures | None:
    """The cached matrix if it is whole, else None."""
    try:
        content = _read_index(cache.with_suffix(".json"), names)
        if content is None:
            return None
        # Copy-on-write: torch wants writable memory, the file stays as it is.
        rows = np.load(cache, mmap_mode="c", allow_pickle=False)
    except Exception:  # numpy raises many kinds over an odd header
        return None
    whole = rows.shape == (len(names), width) and rows.dtype == np.float32
    return PackedFeatures(list(names), rows, content) if whole else None


def _reserve(target: Path, shape: tuple[int, int]) -> int:
    """An empty .npy file whose space is taken from the disk at once, so that a full disk is found before hours of work.

    Returns:
        Where its rows begin, in bytes.
    """
    start = np.lib.format.open_memmap(target, mode="w+", dtype=np.float32, shape=shape).offset
    if hasattr(os, "posix_fallocate"):
        size = target.stat().st_size
        with open(target, "r+b") as stream:
            try:
                os.posix_fallocate(stream.fileno(), 0, size)
            except OSError as error:
                raise UserError(
                    f"{target.parent}: no room for {size / 1e6:,.1f} MB of packed features ({error.strerror}); make "
                    "room, or name another --cache-dir."
                ) from None
    return start


def _pack_chunk(
    paths: FeaturePaths, mean: NDArray, std: NDArray, target: Path, position: int
) -> tuple[str, list[str], list[str]]:
    """Pack some files; the digest of their names and rows, what is wrong with them, names of those with infinities."""
    rows, faults, infinite = _read_chunk(paths, mean.size)
    packed = _normalise_into(rows, rows, mean, std).astype(np.float32)
    # Written, not mapped: a map takes a page fault every 4 kB, three times as long.
    with open(target, "r+b") as stream:
        stream.seek(position)
        stream.write(packed)
    return digest(paths.names, packed.tobytes()), faults, infinite


def pack_features(
    feature_dir: Path,
    utterances: Iterable[str],
    mean: NDArray[np.float64],
    std: NDArray[np.float64],
    cache_dir: Path,
    workers: int,
    title: str = "features",
) -> PackedFeatures:
    """The normalised features of `utterances` as one memory-mapped matrix, built if it is not in the cache.

    Args:
        feature_dir: folder of the .mat files; each utterance must have one.
        utterances: file names; the rows come in their sorted order.
        mean: norm term, float64, shape (D,).
        std: norm term, float64, shape (D,).
        cache_dir: where packed matrices are kept.
        workers: processes that read.
        title: what the progress bar calls them.
    Returns:
        `PackedFeatures`; rows are float32, shape (N, D).
    Raises:
        UserError: an unreadable file or one whose width is not D.
    """
    names = sorted(utterances)
    cache = cache_file(feature_dir, names, mean, std, cache_dir, workers)
    found = _open_cache(cache, names, mean.size)
    if found is None:
        paths = feature_paths(feature_dir, names)
        _refuse_width(paths[0], mean.size)
        prepare_folder(cache.parent)
        content, faults, infinite = "", [], []
        with write_atomically(cache) as temporary:
            start = _reserve(temporary, (len(names), mean.size))
            row_bytes = mean.size * np.dtype(np.float32).itemsize
            chunks = (
                (paths[part], mean, std, temporary, start + part.start * row_bytes)
                for part in _parts(len(paths), CHUNK)
            )
            for chunk, chunk_faults, chunk_infinite in _in_parallel(_pack_chunk, chunks, workers, len(paths), title):
                content = digest(content, chunk)
                faults += chunk_faults
                infinite += chunk_infinite
            _raise_faults(faults, len(paths))
        write_index(cache, content, names)  # last: without it the matrix does not count
        if infinite:
            notify(
                f"warning: infinite values in {len(infinite)} feature files ({', '.join(infinite[:5])}); "
                f"they were clipped to +-{CLIP:g}."
            )
        found = _open_cache(cache, names, mean.size)
        if found is None:
            raise UserError(f"{cache}: written but can't be read back; is the disk full?")
    return found


def _refuse_width(path: Path, width: int) -> None:
    """Say once, before reading thousands of files, that the corpus has another feature set than the norm terms."""
    found = read_feature(path).size
    if found != width:
        raise UserError(
            f"{path}: {found} features, but the norm terms were made for {width}. "
            "Run norm_para.py on this corpus, or name other norm terms with --norm-dir."
        )
