"""Acoustic features from audio: a folder of recordings to a folder of .mat files, by openSMILE.

    python -m tools.extract_features CORPUS/Audios CORPUS/Features/OpenSmile_func_IS13ComParE/feat_mat

One .mat file a recording (key `Audio_data`, shape (1, 6373) for IS13, float64), as MSP-Podcast has them. Recordings are
mixed to mono and brought to 16 kHz. Files that are there already are kept, so a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import arguments
from runtime import UserError, prepare_folder

SAMPLING_RATE = 16000  # Hz; the features depend on the bandwidth, and MSP-Podcast is at this rate
FILES_A_TASK = 8  # of a process; a thread takes one at a time, so that a stopped run ends soon
# openSMILE leaves the other threads free in all but a fourteenth of its time (measured), so a few threads do as well as
# processes and need no start-up; many would wait for each other.
MOST_THREADS = 8


@dataclass
class ExtractionSummary:
    """What became of the recordings.

    Attributes:
        extracted: number of files written now.
        kept: number of files that were there before.
        failed: (recording, reason) of those without features.
    """

    extracted: int = 0
    kept: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    parser = arguments.new_parser(__doc__)
    parser.add_argument(
        "audio_dir", type=Path, metavar="AUDIO_DIR", help="folder of recordings, searched with its subfolders"
    )
    parser.add_argument("feature_dir", type=Path, metavar="FEAT_DIR", help="folder for the .mat files")
    parser.add_argument(
        "--set",
        dest="feature_set",
        default="IS13",
        metavar="NAME",
        help="openSMILE feature set: IS13 is the paper's; ComParE_2016, eGeMAPSv02, ... as openSMILE has them",
    )
    parser.add_argument(
        "--workers", type=arguments.positive_int, default=arguments.cpu_count(), metavar="N", help="clips at a time"
    )
    return parser


def list_recordings(audio_dir: Path) -> list[Path]:
    """Recordings below a folder, sorted.

    Raises:
        UserError: no such folder, or no recordings.
    """
    from features import AUDIO_ENDINGS

    if not audio_dir.is_dir():
        raise UserError(f"{audio_dir}: no such folder of recordings.")
    found = sorted(
        path
        for path in audio_dir.rglob("*")
        if path.suffix.lower() in AUDIO_ENDINGS and not path.name.startswith(".") and path.is_file()
    )
    if not found:
        raise UserError(f"{audio_dir}: no recordings; expected files ending in {', '.join(AUDIO_ENDINGS)}.")
    return found


def find_recordings(audio_dir: Path) -> list[Path]:
    """Recordings below a folder, sorted, each with a feature file of its own.

    Raises:
        UserError: as `list_recordings`, or two would share a feature file.
    """
    found = list_recordings(audio_dir)
    by_stem: dict[str, Path] = {}
    for path in found:
        other = by_stem.setdefault(path.stem, path)
        if other is not path:
            raise UserError(f"{path} and {other} would share the feature file {path.stem}.mat; rename one.")
    return found


def open_smile(feature_set: str):
    """openSMILE for a feature set.

    Raises:
        UserError: no such set. It is checked here, since openSMILE ends the process over some names.
    """
    import opensmile

    names = [name for name in vars(opensmile.FeatureSet) if not name.startswith("_")]
    if feature_set not in names:
        raise UserError(f"--set {feature_set}: no such openSMILE feature set; expected one of {', '.join(names)}.")
    return opensmile.Smile(
        feature_set=getattr(opensmile.FeatureSet, feature_set),
        feature_level=opensmile.FeatureLevel.Functionals,
        sampling_rate=SAMPLING_RATE,
    )


def extract_one(smile, recording: Path):
    """The features of one recording, float64, shape (1, D).

    Raises:
        UserError: unreadable, empty or too short, in words fit for a list.
    """
    import audresample
    import numpy as np
    import soundfile

    if recording.stat().st_size == 0:
        raise UserError("empty file (0 bytes)")
    try:
        signal, rate = soundfile.read(recording, dtype="float32", always_2d=True)  # (samples, channels)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise UserError(f"not readable as audio ({str(error).rsplit(':', 1)[-1].strip()})") from None
    if len(signal) == 0:
        raise UserError("no samples in it")
    if not np.isfinite(signal).all():
        raise UserError("samples that are no numbers in it")
    mono = signal.mean(axis=1)
    if rate != SAMPLING_RATE:
        mono = audresample.resample(mono, rate, SAMPLING_RATE)[0]
    # opensmile makes 16-bit numbers of samples, which wrap round at full scale; resampling overshoots.
    mono = mono.clip(-1, 1 - 2**-15)
    features = smile.process_signal(mono, SAMPLING_RATE).to_numpy(dtype=np.float64)
    if np.isnan(features).all():
        raise UserError(f"too short ({1000 * len(signal) / rate:.0f} ms)")
    return features


_smiles: dict[str, object] = {}  # one openSMILE a process and set: setting it up takes longer than a clip


def _extract_some(recordings: Sequence[Path], targets: Sequence[Path], feature_set: str) -> list[tuple[str, str]]:
    import warnings

    import features

    # `extract_one` tells it, with the length. Not by `catch_warnings`, which is not for threads.
    warnings.filterwarnings("ignore", "Segment too short", UserWarning)
    if feature_set not in _smiles:
        _smiles[feature_set] = open_smile(feature_set)
    failed = []
    for recording, target in zip(recordings, targets):
        try:
            features.write_mat(target, features.FEATURE_KEY, extract_one(_smiles[feature_set], recording))
        except UserError as error:
            failed.append((str(recording), str(error)))
        except OSError as error:
            if error.filename and Path(error.filename).parent == target.parent:
                raise  # the output folder fails: that is no fault of this recording
            failed.append((str(recording), error.strerror or str(error)))
    return failed


def _refuse_other_set(feature_dir: Path, feature_set: str, width: int) -> None:
    import features

    present = next((path for path in sorted(feature_dir.glob("*.mat")) if not path.name.startswith(".")), None)
    if present is not None and (found := features.read_feature(present).size) != width:
        raise UserError(
            f"{feature_dir}: holds files of {found} features, {feature_set} has {width}; name another folder for "
            "this set."
        )


def _in_parallel(work: Callable, tasks: list[tuple], workers: int) -> Iterator:
    if workers > MOST_THREADS:
        from joblib import Parallel, delayed

        jobs = min(workers, len(tasks))
        yield from Parallel(n_jobs=jobs, return_as="generator")(delayed(work)(*task) for task in tasks)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(work, *zip(*tasks))
    finally:  # a thread that is still within openSMILE when Python ends would abort the process
        pool.shutdown(cancel_futures=True)


def extract_folder(
    audio_dir: Path, feature_dir: Path, feature_set: str = "IS13", workers: int = arguments.cpu_count()
) -> ExtractionSummary:
    """Extract the features of every recording below a folder that has none yet.

    Args:
        audio_dir: folder of recordings.
        feature_dir: folder for the .mat files; made if need be.
        feature_set: name in `opensmile.FeatureSet`.
        workers: recordings at a time.
    Returns:
        `ExtractionSummary`. A recording that can't be used is listed there and does not stop the rest.
    Raises:
        UserError: no recordings, no such set, a folder that can't be written or that holds another set.
    """
    from tqdm import tqdm

    recordings = find_recordings(Path(audio_dir))
    _refuse_other_set(prepare_folder(Path(feature_dir)), feature_set, open_smile(feature_set).num_features)
    targets = [Path(feature_dir) / f"{recording.stem}.mat" for recording in recordings]
    todo = [(recording, target) for recording, target in zip(recordings, targets) if not target.is_file()]
    summary = ExtractionSummary(kept=len(recordings) - len(todo))
    size = 1 if workers <= MOST_THREADS else FILES_A_TASK
    parts = [todo[start : start + size] for start in range(0, len(todo), size)]
    tasks = [([r for r, _ in part], [t for _, t in part], feature_set) for part in parts]
    if tasks:
        bar = tqdm(total=len(todo), desc=f"{feature_set} features", unit="file", disable=None)
        with bar, contextlib.closing(_in_parallel(_extract_some, tasks, workers)) as results:
            for part, failed in zip(parts, results):
                summary.failed += failed
                summary.extracted += len(part) - len(failed)
                bar.update(len(part))
    return summary


def tell(summary: ExtractionSummary, feature_dir: Path) -> None:
    """Print what became of the recordings; those without features are warnings."""
    for recording, reason in summary.failed:
        print(f"warning: no features: {recording}: {reason}", file=sys.stderr)
    print(
        f"{summary.extracted} recordings extracted, {summary.kept} there before, {len(summary.failed)} without "
        f"features; wrote {feature_dir}"
    )


def main(args: argparse.Namespace) -> None:
    """Extract, and list what could not be; a corpus with holes is no failure of the run."""
    tell(extract_folder(args.audio_dir, args.feature_dir, args.feature_set, args.workers), args.feature_dir)


if __name__ == "__main__":
    # By its own name, not as __main__: what worker processes keep for the next task belongs to a module they import.
    from tools import extract_features

    arguments.run(extract_features.main, get_args_parser())
