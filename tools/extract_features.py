"""Acoustic features from audio: a folder of recordings to a folder of .mat files.

    python -m tools.extract_features CORPUS/Audios CORPUS/Features/OpenSmile_func_IS13ComParE/feat_mat

One .mat file per recording (key `Audio_data`, shape (1, 6373) for IS13, float64), as MSP-Podcast has them. Recordings
are mixed to mono and brought to 16 kHz. Files that are there already are kept, so a stopped run goes on where it was;
the features of recordings that have changed since are made again. A recording that may not be what it should, such as
one that was cut off, is used and named in a warning.

    python -m tools.extract_features --set wavlm-base-plus CORPUS/Audios CORPUS/Features/wavlm/feat_mat

takes the mean of the last hidden states of an encoder in the folder wavlm-base-plus, as Hugging Face's transformers
saves it, in place of openSMILE.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from deepmi import cli

if TYPE_CHECKING:
    from tools.feature_sets import Clip

FILES_A_TASK = 8  # of a process; a thread takes one at a time, so that a stopped run ends soon
MOST_WARNINGS = 20  # of one kind
WAIT_FOR_SCHEDULER, WAIT_FOR_WORKERS = 30, 600  # seconds


@dataclass
class ExtractionSummary:
    """What became of the recordings.

    Attributes:
        extracted: number of files written now.
        kept: number of files that were there before.
        failed: (recording, reason) of those without features.
        doubtful: (recording, remark) of those extracted now that may not be what they should.
    """

    extracted: int = 0
    kept: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    doubtful: list[tuple[str, str]] = field(default_factory=list)


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    parser = cli.new_parser(__doc__)
    parser.add_argument(
        "audio_dir", type=Path, metavar="AUDIO_DIR", help="folder of recordings, searched with its subfolders"
    )
    parser.add_argument("feature_dir", type=Path, metavar="FEAT_DIR", help="folder for the .mat files")
    parser.add_argument(
        "--set",
        dest="feature_set",
        default="IS13",
        metavar="NAME|FOLDER",
        help="openSMILE feature set (IS13 is the paper's; ComParE_2016, eGeMAPSv02, ... as openSMILE has them), or the "
        "folder of an encoder like wav2vec2, HuBERT or WavLM",
    )
    cli.add_extraction_arguments(parser, "an encoder computes")
    parser.add_argument(
        "--scheduler",
        default="",
        metavar="ADDRESS",
        help="hand the work to a Dask cluster, e.g. tcp://host:8786; its machines must see the folders, and this "
        "program, under the same paths",
    )
    return parser


if __name__ == "__main__":
    ARGS = cli.parse(get_args_parser())  # before the heavy imports, so that --help answers at once

from joblib import Parallel, delayed, parallel_config
from tqdm import tqdm

from deepmi import features, matfile
from deepmi.process import UserError, notify
from deepmi.storage import prepare_folder
from tools.feature_sets import MOST_THREADS, Clip, features_of, in_parallel, open_set
from tools.recordings import find_recordings, without_features


def extract_some(
    clips: Sequence[Clip], targets: Sequence[Path | None], feature_set: str, device: str
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Write the features of some recordings.

    Args:
        clips: the recordings.
        targets: file for the features of each; None where it is written already, and the recording is only there
            because the others are heard with it.
        feature_set: as `extract_folder`.
        device: as `extract_folder`.
    Returns:
        (recording, reason) of those without features, (recording, remark) of doubtful ones.
    Raises:
        UserError, OSError: no such set, or the output folder fails; that is no fault of a recording.
    """
    failed, doubtful = [], []
    for clip, target, (vector, remark) in zip(clips, targets, features_of(clips, feature_set, device)):
        if target is None:
            continue
        if vector is not None:
            matfile.write_mat(target, features.FEATURE_KEY, vector)
        if remark:
            (failed if vector is None else doubtful).append((str(clip.recording), remark))
    return failed, doubtful


def _claim_folder(feature_dir: Path, name: str, width: int) -> None:
    """Have a folder say which set it is of, and refuse one that has files of another."""
    present = next((path for path in sorted(feature_dir.glob("*.mat")) if not path.name.startswith(".")), None)
    if present is None:
        features.write_feature_set(feature_dir, name)
        return
    marked, found = features.read_feature_set(feature_dir), features.read_feature(present).size
    if marked not in ("", name) or found != width:
        raise UserError(
            f"{feature_dir}: holds files of {marked or 'some other set'} with {found} features, {name} has {width}; "
            "name another folder for this set."
        )


def on_cluster(tasks: Sequence[tuple], address: str) -> Iterator:
    """Results of `extract_some(*task)` in the order of the tasks, from the machines of a Dask cluster.

    Raises:
        UserError: dask.distributed is not installed, or no scheduler answers at the address.
    """
    try:
        from dask import distributed
    except ImportError:
        raise UserError("--scheduler needs the package distributed: `pip install distributed`.") from None

    root = str(Path(__file__).resolve().parents[1])

    # Defined here, so that it is sent whole, and given plain tuples: the scheduler knows no module of this program.
    def work(clips: list[tuple], *rest):
        if root not in sys.path:
            sys.path.insert(0, root)
        from tools import extract_features, feature_sets

        return extract_features.extract_some([feature_sets.Clip(*clip) for clip in clips], *rest)

    try:
        client = distributed.Client(address, timeout=WAIT_FOR_SCHEDULER, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"--scheduler {address}: no Dask scheduler answers ({error}).") from None
    with client, parallel_config("dask", client=client):
        if not client.scheduler_info()["workers"]:
            print("note: the Dask cluster has no workers yet; waiting for some.", file=sys.stderr)
            try:
                client.wait_for_workers(1, timeout=WAIT_FOR_WORKERS)
            except TimeoutError:
                raise UserError(f"--scheduler {address}: no workers within {WAIT_FOR_WORKERS} s.") from None
        calls = (delayed(work)([tuple(clip) for clip in clips], *rest) for clips, *rest in tasks)
        yield from Parallel(n_jobs=-1, return_as="generator")(calls)


def extract_folder(
    audio_dir: Path,
    feature_dir: Path,
    feature_set: str = "IS13",
    workers: int = cli.cpu_count(),
    device: str = "auto",
    scheduler: str = "",
) -> ExtractionSummary:
    """Extract the features of every recording below a folder that has none yet, or has changed since.

    Args:
        audio_dir: folder of recordings.
        feature_dir: folder for the .mat files; made if need be.
        feature_set: name in `opensmile.FeatureSet`, or the folder of an encoder.
        workers: recordings at a time.
        device: where an encoder computes, as `--device`.
        scheduler: address of a Dask cluster that does the work, empty for this machine.
    Returns:
        `ExtractionSummary`. A recording that can't be used is listed there and does not stop the rest.
    Raises:
        UserError: no recordings, no such set, a folder that can't be written or that holds another set.
    """

    if scheduler:  # its machines know nothing of the folder that this one is in
        audio_dir, feature_dir = Path(audio_dir).absolute(), Path(feature_dir).absolute()
        feature_set = str(Path(feature_set).absolute()) if Path(feature_set).is_dir() else feature_set
    recordings = find_recordings(Path(audio_dir))
    kind = open_set(feature_set, device)
    _claim_folder(prepare_folder(Path(feature_dir)), kind.name, kind.num_features)
    todo = without_features(recordings, Path(feature_dir))
    summary = ExtractionSummary(kept=len(recordings) - len(todo))
    size = FILES_A_TASK if scheduler or workers > MOST_THREADS else 1
    if kind.alone:
        batches = kind.batches([Clip(path) for path in recordings if path in todo], size)
    else:  # those of all recordings, whatever is done, so that a run that goes on gives the same bytes
        batches = kind.batches([Clip(path) for path in recordings], size)
        batches = [part for part in batches if any(clip.recording in todo for clip in part)]
    tasks = [(part, [todo.get(clip.recording) for clip in part], feature_set, device) for part in batches]
    if tasks:
        bar = tqdm(total=sum(map(len, batches)), desc=f"{kind.name} features", unit="file", disable=None)
        workers = kind.workers(workers)
        results = on_cluster(tasks, scheduler) if scheduler else in_parallel(extract_some, tasks, workers)
        with bar, contextlib.closing(results):
            for part, (failed, doubtful) in zip(batches, results):
                summary.failed += failed
                summary.doubtful += doubtful
                bar.update(len(part))
    summary.failed.sort()
    summary.extracted = len(todo) - len(summary.failed)
    return summary


def warn_of_doubtful(doubtful: Iterable[tuple[str, str]]) -> None:
    """Warn about recordings that were used though something is wrong with them.

    Args:
        doubtful: (recording, remark) each; of a kind, what precedes the colon of the remark, MOST_WARNINGS are printed.
    """
    by_kind = defaultdict(list)
    for recording, remark in sorted(doubtful):
        by_kind[remark.partition(":")[0]].append(f"warning: {recording}: {remark}")
    for kind, warnings in by_kind.items():
        for warning in warnings[:MOST_WARNINGS]:
            notify(warning)
        if len(warnings) > MOST_WARNINGS:
            notify(f"warning: {kind}: and {len(warnings) - MOST_WARNINGS:,} more recordings")


def print_summary(summary: ExtractionSummary, feature_dir: Path) -> None:
    """Print what became of the recordings; those without features are warnings.

    Raises:
        UserError: none has features.
    """
    warn_of_doubtful(summary.doubtful)
    for recording, reason in summary.failed:
        notify(f"warning: no features: {recording}: {reason}")
    print(
        f"{summary.extracted} recordings extracted, {summary.kept} there before, {len(summary.failed)} without "
        f"features; wrote {feature_dir}"
    )
    if not (summary.extracted or summary.kept):
        raise UserError(f"{feature_dir}: no features, since none of the {len(summary.failed)} recordings can be used.")


def main(args: argparse.Namespace) -> None:
    """Extract, and list what could not be; it fails only where that is every recording."""
    summary = extract_folder(
        args.audio_dir, args.feature_dir, args.feature_set, args.workers, args.device, args.scheduler
    )
    print_summary(summary, args.feature_dir)


if __name__ == "__main__":
    # By its own name, not as __main__: what worker processes keep for the next task belongs to a module they import.
    from tools import extract_features

    cli.run(extract_features.main, ARGS)
