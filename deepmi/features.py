"""From .mat files, one per utterance, to one packed float32 matrix that every stage maps into memory.

A corpus has its acoustic features as one MATLAB file per utterance (MSP-Podcast's
`Features/OpenSmile_func_IS13ComParE/feat_mat`). Reading them takes longer than training on them. So each file is read
once: normalised in float64, clipped, and stored as one row of `feature_cache/<key>.npy`, which later stages map.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import os
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
from deepmi.moments import CLIP, Moments, normalise
from deepmi.process import UserError, first_few, notify, workers_without_interrupt
from deepmi.storage import digest, prepare_folder, read_json_object, write_atomically, write_text, write_together

FEATURE_KEY = "Audio_data"  # the variable of a .mat file that holds the features, as in MSP-Podcast
SET_FILE = "feature_set.json"  # beside .mat files and normalisation statistics: the feature set that they belong to
# Endings of recordings that libsndfile reads, and of recordings that it doesn't read
AUDIO_ENDINGS = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".oga", ".aiff", ".aif", ".aifc", ".au", ".snd", ".caf")
AUDIO_ENDINGS += (".w64", ".rf64", ".sph", ".wave", ".mp2")
UNREADABLE_ENDINGS = (".m4a", ".m4b", ".mp4", ".aac", ".wma", ".webm", ".weba", ".mka", ".amr", ".awb", ".3gp", ".3ga")
UNREADABLE_ENDINGS += (".ac3", ".ape", ".wv", ".spx", ".ra", ".raw", ".pcm")
CACHE_FORMAT = 3  # part of every cache key: increase it when the packed form or the form of the key changes
CHUNK = 64  # files whose rows are in memory together; moments are merged by chunk, so this affects the last bits
CACHED_ROWS = 8  # files whose features fit into the cache of a processor
BLOCK = 4096  # files whose sizes and times are hashed together
START_UP = 1.0  # seconds until worker processes are ready (measured)
BATCH = 4  # chunks per message between processes
WAVE = 256  # chunks whose results may wait in memory


# ---------------------------------------------------------------------------------------------------------------------
# One .mat file


def read_feature(path: Path | str) -> NDArray[np.float64]:
    """The acoustic features of one utterance.

    Returns:
        float64, shape (D,).
    Raises:
        UserError: as `read_mat`; or the variable is not a vector; or all of its values are NaN.
    """
    value = read_mat(path, FEATURE_KEY)
    if value.ndim != 2 or 1 not in value.shape or value.size == 0:
        raise UserError(f"{path}: {FEATURE_KEY} has shape {value.shape}; expected (1, number of features).")
    vector = value.astype(np.float64, copy=False).ravel()
    if math.isnan(vector[0]) and np.isnan(vector).all():
        raise UserError(
            f"{path}: every feature is NaN (a recording too short for its features?); extract it again or remove it."
        )
    return vector


def audio_stem(utterance: str) -> str:
    """A file name without its audio ending; any other ending belongs to the name."""
    stem, ending = os.path.splitext(utterance)
    return stem if ending.lower() in AUDIO_ENDINGS else utterance


def _mat_name(utterance: str) -> str:
    return utterance if utterance.endswith(".mat") else f"{audio_stem(utterance)}.mat"


def feature_name(utterance: str) -> str:
    """Name of the .mat file of an utterance: `X.wav` -> `X.mat`, with accented letters as one character each (NFC)."""
    return unicodedata.normalize("NFC", _mat_name(utterance))


def feature_file(folder: Path | str, utterance: str) -> str:
    """Path of the .mat file of an utterance, in the Unicode form in which the file exists."""
    name = feature_name(utterance)
    if not name.isascii():
        forms = (name, unicodedata.normalize("NFD", name), _mat_name(utterance))
        name = next((form for form in forms if os.path.exists(os.path.join(folder, form))), name)
    return os.path.join(folder, name)


def missing_features(feature_dir: Path, utterances: Sequence[str]) -> list[str]:
    """Utterances that have no feature file in the folder."""
    present = set()
    with contextlib.suppress(OSError):
        present = {unicodedata.normalize("NFC", entry.name) for entry in os.scandir(feature_dir)}
    return [name for name in utterances if feature_name(name) not in present]


# ---------------------------------------------------------------------------------------------------------------------
# Which feature set


def read_feature_set(folder: Path) -> str:
    """Name of the feature set of the files in a folder; empty if it is not recorded, as in MSP-Podcast."""
    file = Path(folder) / SET_FILE
    if not file.is_file():
        return ""
    name = read_json_object(file).get("feature_set")
    if not isinstance(name, str):
        raise UserError(f"{file}: no feature_set in it; expected its name. Remove the file if you know the set.")
    return name


def feature_set_mark(name: str) -> bytes | None:
    """Content of SET_FILE for a feature set; None (no such file) if its name is empty."""
    return json.dumps({"feature_set": name}).encode() + b"\n" if name else None


def write_feature_set(folder: Path, name: str) -> None:
    """Record the feature set of the files in a folder; an empty name removes the record."""
    write_together({Path(folder) / SET_FILE: feature_set_mark(name)})


def common_feature_set(sets: dict[object, str]) -> str:
    """The feature set that several folders and checkpoints have in common.

    Args:
        sets: folder or checkpoint -> its feature set, empty if it is not recorded.
    Returns:
        The name of the feature set, empty if it is recorded nowhere.
    Raises:
        UserError: they have different feature sets.
    """
    known = [(thing, name) for thing, name in sets.items() if name]
    for thing, name in known:
        if name != known[0][1]:
            raise UserError(
                f"{thing}: of the feature set {name}, but {known[0][0]} is of {known[0][1]}. Features, normalisation "
                "statistics and models must be of the same set; use separate folders for each set (--features, "
                "--norm-dir, --model-dir)."
            )
    return known[0][1] if known else ""


# ---------------------------------------------------------------------------------------------------------------------
# Many files, read in parallel


def _in_parallel(work: Callable, names: Sequence[str], size: int, workers: int, title: str) -> Iterator:
    """Results of `work(start, names[start : start + size])` in this order, with a progress bar that counts files.

    One process begins; workers join if they will save more time than they need to start.
    """
    starts, done, begin = iter(range(0, len(names), size)), 0, time.perf_counter()
    with tqdm(total=len(names), desc=title, unit="file", delay=0.5, disable=None) as bar:
        for start in starts:
            yield work(start, names[start : start + size])
            bar.update(min(size, len(names) - start))
            done = min(start + size, len(names))
            if (time.perf_counter() - begin) / done * (len(names) - done) * (1 - 1 / workers) > START_UP:
                break
        if done == len(names):
            return
        with Parallel(n_jobs=workers, return_as="generator", batch_size=BATCH) as pool:
            while wave := list(itertools.islice(starts, WAVE)):  # else results of fast workers would fill the memory
                with workers_without_interrupt():
                    results = pool(delayed(work)(start, names[start : start + size]) for start in wave)
                for start, result in zip(wave, results):
                    yield result
                    bar.update(min(size, len(names) - start))


def _read_chunk(folder: Path, names: Sequence[str], rows: NDArray, to_rows: Callable) -> tuple[list[str], list[str]]:
    """Fill `rows` (n, D) with `to_rows` of the features, NaN for a bad file; errors, and files with infinite values."""
    errors, infinite, block = [], [], np.empty((CACHED_ROWS, rows.shape[1]))
    for first in range(0, len(names), CACHED_ROWS):
        files = [feature_file(folder, name) for name in names[first : first + CACHED_ROWS]]
        for row, file in zip(block, files):
            try:
                vector = read_feature(file)
                if vector.shape != row.shape:
                    raise UserError(f"{file}: {vector.size} features; expected {row.size}.")
                row[:] = vector
            except UserError as error:
                errors.append(str(error))
                row[:] = np.nan
        found = block[: len(files)]
        infinite += [os.path.basename(files[at]) for at in np.isinf(found).any(axis=1).nonzero()[0]]
        rows[first : first + CACHED_ROWS] = to_rows(found)
    return errors, infinite


def _raise_first(errors: list[str], files: int) -> None:
    if errors:
        more = f" (and {len(errors) - 1} more of {files} files)" if len(errors) > 1 else ""
        raise UserError(errors[0] + more)


# ---------------------------------------------------------------------------------------------------------------------
# Mean and standard deviation of the Train split


def _chunk_moments(
    folder: Path, shift: NDArray, start: int, names: Sequence[str]
) -> tuple[Moments, list[str], list[str]]:
    rows = np.empty((len(names), shift.size))
    with np.errstate(all="ignore"):  # infinite values are reported by the caller
        errors, infinite = _read_chunk(folder, names, rows, lambda block: block - shift)
        return Moments.of(rows), errors, infinite


def feature_moments(
    feature_dir: Path, utterances: Sequence[str], workers: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and population standard deviation of each feature over many files, in one pass.

    Memory does not grow with the number of files: each worker holds one chunk, the sum holds five numbers per feature.
    The result has the same bytes for any number of workers.

    Args:
        feature_dir: folder of the .mat files; each utterance must have one.
        utterances: file names, N of them; their order affects the last bits.
        workers: processes that read.
    Returns:
        (mean, standard deviation), float64, shape (D,) each. A feature that is NaN in every file gets NaN, and a
        constant feature the standard deviation 0.
    Raises:
        UserError: an unreadable file, files of different widths, or infinite values.
    Source: Lin, Sridhar & Busso (2024); merging: `Moments`.
    """
    first = read_feature(feature_file(feature_dir, utterances[0]))
    shift = np.where(np.isfinite(first), first, 0.0)
    work = functools.partial(_chunk_moments, feature_dir, shift)
    total, errors, infinite = None, [], []
    with np.errstate(all="ignore"):
        for moments, chunk_errors, chunk_infinite in _in_parallel(work, utterances, CHUNK, workers, "statistics"):
            total = moments if total is None else total.merge(moments)
            errors += chunk_errors
            infinite += chunk_infinite
        _raise_first(errors, len(utterances))
        if infinite:
            raise UserError(
                f"infinite values in {len(infinite)} feature files ({first_few(infinite)}), so there is no mean. "
                "Extract them again or remove them from the label file."
            )
        mean = np.where(total.count > 0, shift + total.mean, np.nan)
        std = np.sqrt(total.squares / total.count)
    overflown = np.flatnonzero((total.count > 0) & ~(np.isfinite(mean) & np.isfinite(std)))
    if overflown.size:
        raise UserError(
            f"{feature_dir}: feature {overflown[0]} (counted from 0) has values too large for a standard deviation, up "
            f"to {np.abs(shift + total.high)[overflown[0]]:.3g}, in some file. Extract that file again or remove it."
        )
    std[total.low == total.high] = 0.0
    return mean, std


# ---------------------------------------------------------------------------------------------------------------------
# The packed matrix


@dataclass
class PackedFeatures:
    """Normalised features of some utterances, mapped from disk.

    Attributes:
        names: utterances (file names), sorted; row i belongs to names[i].
        rows: float32, shape (N, D), a memory map.
        key: digest of names and rows; it does not depend on the times or folders of files.
    """

    names: list[str]
    rows: NDArray[np.float32]
    key: str


def _block_digest(folder: Path, start: int, names: Sequence[str]) -> str:
    """Digest of names, sizes and times; no tool can set st_ctime, so a changed file always changes the digest."""
    states = (os.stat(feature_file(folder, name)) for name in names)
    return digest([(name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in zip(names, states)])


def cache_file(
    feature_dir: Path, names: Iterable[str], mean: NDArray, std: NDArray, cache_dir: Path, workers: int = 1
) -> Path:
    """The .npy file in which `pack_features` keeps the rows of these utterances; it may not exist yet.

    Its name is a digest of the sizes and times of the files, the statistics and the packed form. The index beside it
    (.json) contains a digest of names and rows, and the sorted names; without it the matrix is not used.
    """
    work, files = functools.partial(_block_digest, feature_dir), ""
    for block in _in_parallel(work, sorted(names), BLOCK, workers, "file sizes and times"):
        files = digest(files, block)
    return Path(cache_dir) / f"{digest(CACHE_FORMAT, files, mean.tobytes(), std.tobytes())}.npy"


def write_index(cache: Path, content: str, names: Sequence[str]) -> None:
    """Write the index of a packed matrix: a digest of names and rows (64 hexadecimal digits), and the sorted names."""
    write_text(cache.with_suffix(".json"), json.dumps({"content": content, "names": names}))


def _open_cache(cache: Path, names: list[str], width: int) -> PackedFeatures | None:
    """The cached matrix if it is complete, else None."""
    try:
        index = json.loads(cache.with_suffix(".json").read_bytes())
        # Copy-on-write: torch requires writable memory, and the file must not change.
        rows = np.load(cache, mmap_mode="c", allow_pickle=False)
        if index["names"] == names and rows.shape == (len(names), width) and rows.dtype == np.float32:
            return PackedFeatures(names, rows, index["content"])
    except Exception:  # numpy raises many kinds of errors for a damaged header
        pass
    return None


def _create_matrix(target: Path, shape: tuple[int, int]) -> int:
    """Make an empty .npy file and reserve its space, to notice a full disk before hours of work; offset of its rows."""
    offset = np.lib.format.open_memmap(target, mode="w+", dtype=np.float32, shape=shape).offset
    size = target.stat().st_size
    try:
        if hasattr(os, "posix_fallocate"):
            with open(target, "r+b") as stream:
                os.posix_fallocate(stream.fileno(), 0, size)
    except OSError as error:
        raise UserError(
            f"{target.parent}: no room for {size / 1e6:,.1f} MB of packed features ({error.strerror}); make room, or "
            "name a different --cache-dir."
        ) from None
    return offset


def _pack_chunk(
    folder: Path, mean: NDArray, std: NDArray, target: Path, offset: int, start: int, names: Sequence[str]
) -> tuple[str, list[str], list[str]]:
    """Pack some utterances; digest of their names and rows, errors, and names of files with infinite values."""
    packed = np.empty((len(names), mean.size), np.float32)
    errors, infinite = _read_chunk(folder, names, packed, functools.partial(normalise, mean=mean, std=std))
    with open(target, "r+b") as stream:  # a memory map would take three times as long: a page fault per 4 kB
        stream.seek(offset + start * packed.strides[0])
        stream.write(packed)
    return digest(names, packed.data.cast("B")), errors, infinite


def pack_features(
    feature_dir: Path,
    utterances: Iterable[str],
    mean: NDArray[np.float64],
    std: NDArray[np.float64],
    cache_dir: Path,
    workers: int,
    title: str = "features",
) -> PackedFeatures:
    """The normalised features of some utterances as one memory-mapped matrix, from the cache or newly packed.

    Args:
        feature_dir: folder of the .mat files; each utterance must have one.
        utterances: file names; the rows are in their sorted order.
        mean: normalisation statistic, float64, shape (D,).
        std: normalisation statistic, float64, shape (D,).
        cache_dir: folder of packed matrices.
        workers: processes that read.
        title: label of the progress bar.
    Returns:
        `PackedFeatures`; rows are float32, shape (N, D).
    Raises:
        UserError: an unreadable file, or one whose width is not D.
    """
    names = sorted(utterances)
    cache = cache_file(feature_dir, names, mean, std, cache_dir, workers)
    if packed := _open_cache(cache, names, mean.size):
        return packed
    first = feature_file(feature_dir, names[0])
    if (found := read_feature(first).size) != mean.size:  # reported once, before thousands of files are read
        raise UserError(
            f"{first}: {found} features, but the normalisation statistics were made for {mean.size}. Run norm_para.py "
            "on this corpus, or name different statistics with --norm-dir."
        )
    prepare_folder(cache.parent)
    content, errors, infinite = "", [], []
    with write_atomically(cache) as temporary:
        offset = _create_matrix(temporary, (len(names), mean.size))
        work = functools.partial(_pack_chunk, feature_dir, mean, std, temporary, offset)
        for chunk, chunk_errors, chunk_infinite in _in_parallel(work, names, CHUNK, workers, title):
            content = digest(content, chunk)
            errors += chunk_errors
            infinite += chunk_infinite
        _raise_first(errors, len(names))
    write_index(cache, content, names)  # last: without it the matrix is not used
    if infinite:
        notify(
            f"warning: infinite values in {len(infinite)} feature files ({first_few(infinite)}); clipped to +-{CLIP:g}."
        )
    packed = _open_cache(cache, names, mean.size)
    if packed is None:
        raise UserError(f"{cache}: written but can't be read back; is the disk full?")
    return packed
