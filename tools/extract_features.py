"""Acoustic features of a folder of recordings, one .mat file per recording.

    python -m tools.extract_features CORPUS/Audios CORPUS/Features/OpenSmile_func_IS13ComParE/feat_mat

Each file has MSP-Podcast's layout: key `Audio_data`, shape (1, 6373) for IS13, float64. Recordings are mixed to mono
and resampled to 16 kHz. Existing files are kept, so a stopped run continues where it was; recordings that have changed
are extracted again. A recording that may be faulty, such as one that was cut off, is used and named in a warning.

    python -m tools.extract_features --set wavlm-base-plus CORPUS/Audios CORPUS/Features/wavlm/feat_mat

averages the last hidden states of the encoder in the folder wavlm-base-plus, as Hugging Face's transformers saves it.
`--set openai/whisper-small` downloads an encoder from the Hugging Face hub.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deepmi import cli

CLIPS_PER_TASK = 8  # for a process; a thread takes one clip at a time, so that a stopped run ends soon
MOST_WARNINGS = 20  # printed of each kind
SCHEDULER_PATIENCE, WORKER_PATIENCE = 30, 600  # seconds


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    parser = cli.new_parser(__doc__)
    help = "folder of recordings, searched with its subfolders"
    parser.add_argument("audio_dir", type=Path, metavar="AUDIO_DIR", help=help)
    parser.add_argument("feature_dir", type=Path, metavar="FEAT_DIR", help="folder for the .mat files")
    help = "openSMILE feature set (IS13 is the paper's; also ComParE_2016, eGeMAPSv02, ...), or a speech encoder "
    help += "(wav2vec2, HuBERT, WavLM, Whisper): its folder, or its name on the Hugging Face hub"
    cli.add_feature_set_argument(parser, help)
    cli.add_extraction_arguments(parser, "an encoder computes")
    parser.add_argument(
        "--scheduler",
        default="",
        metavar="ADDRESS",
        help="use a Dask cluster, e.g. tcp://host:8786; its machines must see the folders and this program under the "
        "same paths",
    )
    return parser


if __name__ == "__main__":
    ARGS = cli.parse(get_args_parser())  # before the heavy imports, so that --help answers at once

from tqdm import tqdm

from deepmi import features, matfile
from deepmi.process import UserError, notify
from deepmi.storage import prepare_folder
from tools.encoders import SetName
from tools.feature_sets import MOST_THREADS, features_of, in_parallel, open_set, with_options
from tools.recordings import find_recordings, without_features
from tools.sound import Clip


@dataclass
class ExtractionSummary:
    """The result of an extraction."""

    extracted: int = 0  # number of files written now
    kept: int = 0  # number of files that existed before
    failed: list[tuple[str, str]] = field(default_factory=list)  # (recording, reason): those without features
    doubtful: list[tuple[str, str]] = field(default_factory=list)  # (recording, remark): extracted, but may be faulty


def extract_some(
    clips: Sequence[Clip], targets: Sequence[Path | None], feature_set: str, device: str
) -> list[tuple[str, str, bool]]:
    """Write the features of a batch of recordings.

    Args:
        clips: the recordings.
        targets: feature file of each; None if it exists, and the recording is only there to complete the batch.
        feature_set: as for `open_set`.
        device: as for `open_set`.
    Returns:
        (recording, remark, whether it has features) of each recording that failed or is doubtful.
    """
    remarks = []
    for clip, target, (vector, remark) in zip(clips, targets, features_of(clips, feature_set, device)):
        if target is None:
            continue
        if vector is not None:
            matfile.write_mat(target, features.FEATURE_KEY, vector)
        if remark:
            remarks.append((str(clip.recording), remark, vector is not None))
    return remarks


def claim_folder(feature_dir: Path, name: str, width: int) -> None:
    """Record the feature set of an output folder, and refuse a folder that holds a different one."""
    present = next((path for path in sorted(feature_dir.glob("*.mat")) if not path.name.startswith(".")), None)
    if present is None:
        features.write_feature_set(feature_dir, name)
        return
    recorded, found = features.read_feature_set(feature_dir), features.read_feature(present).size
    if recorded not in ("", name) or found != width:
        raise UserError(
            f"{feature_dir}: holds {found} features of {recorded or 'a different set'}; {name} has {width}. "
            "Use a different folder for this set."
        )


def on_cluster(tasks: Sequence[tuple], address: str) -> Iterator:
    """Results of `extract_some(*task)` in the order of the tasks, from the machines of a Dask cluster.

    Raises:
        UserError: dask.distributed is not installed, or no scheduler answers at the address.
    """
    try:
        from dask import distributed  # optional
    except ImportError:
        raise UserError("--scheduler needs the package distributed: `pip install distributed`.") from None
    root = str(Path(__file__).resolve().parents[1])

    # Defined here, so that Dask sends its code, and given plain tuples: the scheduler cannot import this program.
    def work(clips: list[tuple], *rest):
        if root not in sys.path:
            sys.path.insert(0, root)
        from tools import extract_features, sound

        return extract_features.extract_some([sound.Clip(*clip) for clip in clips], *rest)

    try:
        client = distributed.Client(address, timeout=SCHEDULER_PATIENCE, set_as_default=False)
        if not client.scheduler_info()["workers"]:
            notify(f"note: the Dask cluster has no workers yet; waiting up to {WORKER_PATIENCE} s for the first one.")
            client.wait_for_workers(1, timeout=WORKER_PATIENCE)
    except (OSError, TimeoutError, ValueError, TypeError) as error:
        raise UserError(f"--scheduler {address}: no Dask scheduler with workers answers ({error}).") from None
    with client:
        clips, *rest = zip(*tasks)
        plain = [[tuple(clip) for clip in part] for part in clips]
        for result in client.map(work, plain, *rest, pure=False):
            yield result.result()


def extract_folder(
    audio_dir: Path,
    feature_dir: Path,
    feature_set: str = "IS13",
    workers: int = cli.cpu_count(),
    device: str = "auto",
    scheduler: str = "",
) -> ExtractionSummary:
    """Extract the features of every recording below a folder that has none yet or has changed since.

    Args:
        audio_dir: folder of recordings.
        feature_dir: folder for the .mat files, created if missing.
        feature_set: as for `open_set`.
        workers: recordings processed at a time.
        device: as for `open_set`.
        scheduler: address of a Dask cluster that does the work; "" for this machine.
    Returns:
        `ExtractionSummary`. An unusable recording is listed there and does not stop the run.
    Raises:
        UserError: no recordings, no such set, or a folder that cannot be written or holds a different set.
    """
    if scheduler:  # its machines have a different working folder
        audio_dir, feature_dir = Path(audio_dir).absolute(), Path(feature_dir).absolute()
        name = SetName.parse(feature_set)
        if Path(name.source).is_dir():
            feature_set = str(name._replace(source=str(Path(name.source).absolute())))
    recordings = find_recordings(Path(audio_dir))
    opened = open_set(feature_set, device)
    claim_folder(prepare_folder(Path(feature_dir)), opened.name, opened.num_features)
    todo = without_features(recordings, Path(feature_dir))
    summary = ExtractionSummary(kept=len(recordings) - len(todo))
    if not todo:
        return summary
    # Batches of an encoder are formed from all recordings, so that a run that continues gives the same bytes.
    clips = [Clip(path) for path in recordings if path in todo or not opened.alone]
    batches = opened.batches(clips, CLIPS_PER_TASK if scheduler or workers > MOST_THREADS else 1)
    batches = [batch for batch in batches if any(clip.recording in todo for clip in batch)]
    tasks = [(batch, [todo.get(clip.recording) for clip in batch], opened.opened_as, device) for batch in batches]
    workers = min(workers, opened.most_workers)
    results = on_cluster(tasks, scheduler) if scheduler else in_parallel(extract_some, tasks, workers)
    bar = tqdm(total=sum(map(len, batches)), desc=f"{opened.name} features", unit="file", disable=None)
    with bar, contextlib.closing(results):
        for batch, remarks in zip(batches, results):
            for recording, remark, has_features in remarks:
                (summary.doubtful if has_features else summary.failed).append((recording, remark))
            bar.update(len(batch))
    summary.failed.sort()
    summary.extracted = len(todo) - len(summary.failed)
    return summary


def warn_of_doubtful(doubtful: Iterable[tuple[str, str]]) -> None:
    """Warn about recordings that are used but may be faulty: (recording, remark), MOST_WARNINGS of each kind."""
    by_kind = defaultdict(list)
    for recording, remark in sorted(doubtful):
        by_kind[remark.partition(":")[0]].append(f"warning: {recording}: {remark}")
    for kind, warnings in by_kind.items():
        for warning in warnings[:MOST_WARNINGS]:
            notify(warning)
        if len(warnings) > MOST_WARNINGS:
            notify(f"warning: {kind}: {len(warnings) - MOST_WARNINGS:,} more recordings")


def print_summary(summary: ExtractionSummary, feature_dir: Path) -> None:
    """Print what was extracted, with a warning for each recording without features.

    Raises:
        UserError: no recording has features.
    """
    warn_of_doubtful(summary.doubtful)
    for recording, reason in summary.failed:
        notify(f"warning: no features: {recording}: {reason}")
    print(
        f"{summary.extracted} recordings extracted, {summary.kept} there before, {len(summary.failed)} without "
        f"features; wrote {feature_dir}"
    )
    if not (summary.extracted or summary.kept):
        raise UserError(f"{feature_dir}: no features; none of the {len(summary.failed)} recordings can be used.")


def main(args: argparse.Namespace) -> None:
    """Extract, and list the recordings that could not be used."""
    feature_set = with_options(args.feature_set, args.revision, args.layer, args.pool)
    folders = args.audio_dir, args.feature_dir
    print_summary(extract_folder(*folders, feature_set, args.workers, args.device, args.scheduler), args.feature_dir)


if __name__ == "__main__":
    # By its own name, not as __main__: worker processes import what they are sent, and keep open sets for later tasks.
    from tools import extract_features

    cli.run(extract_features.main, ARGS)
