"""From .mat files, one an utterance, to one packed float32 matrix that every stage maps into memory.

A corpus keeps its acoustic features as one MATLAB file an utterance (MSP-Podcast's
`Features/OpenSmile_func_IS13ComParE/feat_mat`). Reading them costs more than training on them, so each file is read
once: normalised in float64, clipped, stored as a row of `feature_cache/<key>.npy`, and mapped from then on.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime import UserError, digest, prepare_folder, write_atomically, write_text

FEATURE_KEY = "Audio_data"  # the variable that holds the features in MSP-Podcast's .mat files
AUDIO_ENDINGS = (".wav", ".flac", ".ogg", ".mp3")
CLIP = 3.0  # normalised features are clipped to [-CLIP, CLIP]
CACHE_FORMAT = 1  # part of every cache key: raise it when the packed form changes
CHUNK = 64  # files that a worker reads at a time; moments are merged in chunks, so this is part of the result


# ---------------------------------------------------------------------------------------------------------------------
# One .mat file


def read_mat(path: Path, key: str) -> NDArray:
    """One numeric variable of a MATLAB v5 file.

    Args:
        path: the file.
        key: the variable's name.
    Returns:
        The variable as stored.
    Raises:
        UserError: missing, empty, damaged, without the key, or not numeric.
    """
    from scipy.io import loadmat

    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}).") from None
    if not data:
        raise UserError(f"{path}: empty (0 bytes); extract it again.")
    if data.startswith((b"MATLAB 7.3", b"\x89HDF")):
        raise UserError(f"{path}: MATLAB v7.3 (HDF5); save it as v5 (`save -v6` or `-v7` in MATLAB).")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # loadmat warns about oddities that the checks below name better
            content = loadmat(io.BytesIO(data), variable_names=[key])
    except Exception as error:  # scipy's reader raises whatever the damaged bytes lead it to
        reason = (str(error).splitlines() or [""])[0][:100] or type(error).__name__
        raise UserError(f"{path}: damaged, not a MATLAB v5 file ({reason}); extract it again.") from None
    if key not in content:
        from scipy.io import whosmat

        found = ", ".join(name for name, *_ in whosmat(io.BytesIO(data))) or "nothing"
        raise UserError(f"{path}: no variable {key!r}; found {found}.")
    value = content[key]
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
        raise UserError(f"{path}: variable {key!r} is not a matrix of real numbers.")
    return value


def write_mat(path: Path, key: str, value: NDArray) -> None:
    """Write one variable as MATLAB v5, in one step, with the same bytes for the same value.

    Source: scipy puts the time of writing into the 116-byte description that opens the file; it is replaced here.
    """
    from scipy.io import savemat

    stream = io.BytesIO()
    savemat(stream, {key: value})
    data = bytearray(stream.getvalue())
    data[:116] = b"MATLAB 5.0 MAT-file, written by DeepMI".ljust(116)
    with write_atomically(path) as temporary:
        temporary.write_bytes(data)


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
    vector = value.astype(np.float64).ravel()
    if np.isnan(vector).all():
        raise UserError(
            f"{path}: every feature is NaN (a clip too short for its features?); extract it again or drop it."
        )
    return vector


# ---------------------------------------------------------------------------------------------------------------------
# Many files, read in parallel


def feature_name(utterance: str) -> str:
    """The .mat file's name of an utterance: `X.wav` -> `X.mat`; what is no audio ending belongs to the name."""
    stem, ending = os.path.splitext(utterance)
    return f"{stem if ending.lower() in AUDIO_ENDINGS or ending == '.mat' else utterance}.mat"


def feature_paths(feature_dir: Path, utterances: Sequence[str]) -> list[Path]:
    """The .mat file of each utterance."""
    return [feature_dir / feature_name(name) for name in utterances]


def missing_features(feature_dir: Path, utterances: Sequence[str]) -> list[str]:
    """Those utterances that have no feature file."""
    with contextlib.suppress(OSError):
        present = {entry.name for entry in os.scandir(feature_dir)}
        return [
            name for name, path in zip(utterances, feature_paths(feature_dir, utterances)) if path.name not in present
        ]
    return list(utterances)


def _chunks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK))


def _read_chunk(paths: Sequence[Path], width: int) -> tuple[NDArray[np.float64], list[str], list[str]]:
    """Rows (B, D) of a chunk, what is wrong with its files, and the names of files with infinite values."""
    rows = np.full((len(paths), width), np.nan)
    faults, infinite = [], []
    for row, path in zip(rows, paths):
        try:
            vector = read_feature(path)
        except UserError as error:
            faults.append(str(error))
            continue
        if vector.shape != row.shape:
            faults.append(f"{path}: {vector.size} features; expected {width}.")
            continue
        row[:] = vector
        if np.isinf(vector).any():
            infinite.append(path.name)
    return rows, faults, infinite


def _in_parallel(work: Callable, chunks: list[tuple], workers: int, files: int, title: str) -> Iterable:
    """Results of `work(*chunk)` in the order of the chunks, with a progress bar that counts files."""
    from joblib import Parallel, delayed
    from tqdm import tqdm

    # Starting processes costs about a second, the time that some thousand files take.
    if files < 1000:
        workers = 1
    results = Parallel(n_jobs=min(workers, len(chunks)), return_as="generator")(delayed(work)(*c) for c in chunks)
    with tqdm(total=files, desc=title, unit="file", disable=None) as bar:
        for chunk, result in zip(chunks, results):
            yield result
            bar.update(len(chunk[0]))


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

    count: NDArray  # (D,) utterances whose feature is a number
    mean: NDArray  # (D,) of x - shift
    squares: NDArray  # (D,) sum of (x - mean)**2
    low: NDArray  # (D,) of x - shift
    high: NDArray  # (D,)

    @classmethod
    def of(cls, rows: NDArray[np.float64]) -> Moments:
        """Moments of shifted rows (B, D); NaN counts as not observed."""
        observed = ~np.isnan(rows)
        count = observed.sum(axis=0)
        filled = rows if observed.all() else np.where(observed, rows, 0.0)
        mean = filled.sum(axis=0) / np.maximum(count, 1)
        deviations = filled - mean
        deviations[~observed] = 0.0
        squares = np.einsum("bd,bd->d", deviations, deviations)
        low = np.where(observed, rows, np.inf).min(axis=0)
        high = np.where(observed, rows, -np.inf).max(axis=0)
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
    rows[np.isinf(rows)] = np.nan  # named by the caller, kept out of the arithmetic
    return Moments.of(rows - shift), faults, infinite


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
    chunks = [(paths[part], shift) for part in _chunks(len(paths))]
    for moments, chunk_faults, chunk_infinite in _in_parallel(
        _chunk_moments, chunks, workers, len(paths), "norm terms"
    ):
        total = moments if total is None else total.merge(moments)
        faults += chunk_faults
        infinite += chunk_infinite
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
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        z = (features - mean) / std
    z[..., std == 0] = 0.0
    np.clip(z, -CLIP, CLIP, out=z)
    z[np.isnan(z)] = 0.0
    return z.astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# The packed matrix


@dataclass
class PackedFeatures:
    """Normalised features of some utterances, mapped from disk.

    Attributes:
        names: utterances (file names), sorted; row i belongs to names[i].
        rows: float32, shape (N, D), a memory map.
        key: digest of what the rows were made from.
    """

    names: list[str]
    rows: NDArray[np.float32]
    key: str


def _cache_key(paths: Sequence[Path], names: Sequence[str], mean: NDArray, std: NDArray) -> str:
    """Digest over files, norm terms and packed form.

    A file counts by name, size, and times of change of content and of inode: no tool can set the latter, so a file
    changed behind an old time stamp still makes a new key.
    """
    files = [(name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in zip(names, map(os.stat, paths))]
    return digest(CACHE_FORMAT, files, mean.tobytes(), std.tobytes())


def _open_cache(cache: Path, names: Sequence[str], width: int) -> NDArray[np.float32] | None:
    """The cached matrix if it is whole, else None."""
    try:
        if json.loads(cache.with_suffix(".json").read_text(encoding="utf-8")) != list(names):
            return None
        # Copy-on-write: torch wants writable memory, the file stays as it is.
        rows = np.load(cache, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError):
        return None
    return rows if rows.shape == (len(names), width) and rows.dtype == np.float32 else None


def _reserve(target: Path, shape: tuple[int, int]) -> None:
    """An empty .npy file whose space is taken from the disk at once: writing to a map of a full disk ends a process."""
    np.lib.format.open_memmap(target, mode="w+", dtype=np.float32, shape=shape)
    if hasattr(os, "posix_fallocate"):
        size = target.stat().st_size
        with open(target, "r+b") as stream:
            try:
                os.posix_fallocate(stream.fileno(), 0, size)
            except OSError as error:
                raise UserError(
                    f"{target.parent}: no room for {size / 1e9:.2f} GB of packed features ({error.strerror}); make "
                    "room, or name another --cache-dir."
                ) from None


def _pack_chunk(
    paths: Sequence[Path], mean: NDArray, std: NDArray, target: Path, first_row: int
) -> tuple[list[str], list[str]]:
    rows, faults, infinite = _read_chunk(paths, mean.size)
    packed = np.lib.format.open_memmap(target, mode="r+")
    packed[first_row : first_row + len(paths)] = normalise(rows, mean, std)
    return faults, infinite


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
    paths = feature_paths(feature_dir, names)
    key = _cache_key(paths, names, mean, std)
    cache = Path(cache_dir) / f"{key}.npy"
    rows = _open_cache(cache, names, mean.size)
    if rows is None:
        _refuse_width(paths[0], mean.size)
        prepare_folder(cache.parent)
        faults, infinite = [], []
        with write_atomically(cache) as temporary:
            _reserve(temporary, (len(names), mean.size))
            chunks = [(paths[part], mean, std, temporary, part.start) for part in _chunks(len(paths))]
            for chunk_faults, chunk_infinite in _in_parallel(_pack_chunk, chunks, workers, len(paths), title):
                faults += chunk_faults
                infinite += chunk_infinite
            _raise_faults(faults, len(paths))
        write_text(cache.with_suffix(".json"), json.dumps(names))  # last: without it the matrix does not count
        if infinite:
            print(
                f"warning: infinite values in {len(infinite)} feature files ({', '.join(infinite[:5])}); "
                f"they were clipped to +-{CLIP:g}.",
                file=sys.stderr,
            )
        rows = _open_cache(cache, names, mean.size)
        if rows is None:
            raise UserError(f"{cache}: written but can't be read back; is the disk full?")
    return PackedFeatures(names, rows, key)


def _refuse_width(path: Path, width: int) -> None:
    """Say once, before reading thousands of files, that the corpus has another feature set than the norm terms."""
    found = read_feature(path).size
    if found != width:
        raise UserError(
            f"{path}: {found} features, but the norm terms were made for {width}. "
            "Run norm_para.py on this corpus, or name other norm terms with --norm-dir."
        )
