"""Arousal, dominance and valence of recordings, by regressors that training_Curriculum.py trained.

    python -m tools.predict interview.wav clips/ --model Models/SimpleEmoRegressor_DeepMI@_Act.pt.tar \\
        Models/SimpleEmoRegressor_DeepMI@_Val.pt.tar --out predictions.csv

One row per recording, or with --segment one per piece of it: FileName, and of EmoAct, EmoDom, EmoVal (1..7) those that
a regressor was given for. Features are made on the way, with the feature set that the regressors were trained on. A
recording that can't be used is named and left out, and the exit status is then 1; one that may not be what it should,
such as one that was cut off, is used and named. A stopped run goes on. The table on standard output (--out -) is UTF-8,
like the one in a file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deepmi import cli

SHORTEST_SEGMENT = 0.1  # seconds; openSMILE needs about half of it
BLOCK = 256  # clips that pass through the networks together, and that a killed run loses at most


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= SHORTEST_SEGMENT):
        raise argparse.ArgumentTypeError(f"expected a number of seconds, at least {SHORTEST_SEGMENT}, found {text}")
    return value


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    parser = cli.new_parser(__doc__)
    parser.add_argument(
        "inputs",
        type=Path,
        nargs="+",
        metavar="AUDIO_OR_FOLDER",
        help="recordings (wav, flac, ogg, opus, mp3, aiff, ...; any rate, any number of channels), folders to search",
    )
    parser.add_argument(
        "--model",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="regressors, one an attribute: Models/SimpleEmoRegressor_DeepMI@_Val.pt.tar, ...",
    )
    parser.add_argument(
        "--out",
        default="predictions.csv",
        metavar="FILE",
        help="table to write; - writes it to standard output",
    )
    parser.add_argument(
        "--norm-dir",
        type=Path,
        default=Path("NormTerm"),
        metavar="DIR",
        help="folder of the z-norm terms that the regressors, all of one corpus and feature set, were trained with",
    )
    parser.add_argument(
        "--segment",
        type=_seconds,
        metavar="SECONDS",
        help="cut recordings into pieces of so many seconds, one row each, with columns start and end in seconds; what "
        "is left at the end is a piece of its own if it is at least half as long, else part of the last one",
    )
    parser.add_argument(
        "--set",
        dest="feature_set",
        metavar="NAME|FOLDER",
        help="feature set, where a regressor does not know its own (else IS13), or the folder of the encoder that it "
        "was trained on",
    )
    cli.add_extraction_arguments(parser, "networks compute")
    return parser


if __name__ == "__main__":
    ARGS = cli.parse(get_args_parser())  # before the heavy imports, so that --help answers at once

import csv

import numpy as np
from tqdm import tqdm

import utils
from deepmi import features, run_log, runtime, storage
from deepmi.batches import Rows, in_batches
from deepmi.process import UserError, notify
from model import load_regressor
from tools import extract_features
from tools.feature_sets import Clip, features_of, in_parallel, is_opensmile_set, open_set, seconds_of
from tools.recordings import list_recordings

# ---------------------------------------------------------------------------------------------------------------------
# What to predict


def find_clips(inputs: list[Path], segment: float | None) -> dict[Clip, str]:
    """The clips to predict, in order, and the file name of each.

    Args:
        inputs: recordings and folders.
        segment: length of the pieces in seconds, None for whole recordings.
    Returns:
        Clip -> name: a recording's path below the folder that was given, or its own name; all paths as they were given
        where two of those would be the same.
    Raises:
        UserError: an input is not there, or a folder has no recordings.
    """
    names: dict[Path, str] = {}
    for given in inputs:
        if given.is_dir():
            names.update((path, path.relative_to(given).as_posix()) for path in list_recordings(given))
        elif given.exists():
            names[given] = given.name
        else:
            raise UserError(f"{given}: no such recording or folder.")
    if len(set(names.values())) < len(names):
        names = {path: path.as_posix() for path in names}
    if segment is None:
        return {Clip(path): name for path, name in names.items()}
    return {clip: name for path, name in names.items() for clip in cut(path, segment)}


def cut(recording: Path, segment: float) -> list[Clip]:
    """A recording in pieces of `segment` seconds; the last is from half to one and a half times as long."""
    length = seconds_of(recording)
    count = max(1, math.floor(length / segment + 0.5))
    stops = [(number + 1) * segment for number in range(count - 1)]
    return [Clip(recording, start, stop) for start, stop in zip([0.0, *stops], [*stops, length or None])]


# ---------------------------------------------------------------------------------------------------------------------
# What predicts


@dataclass
class Predictor:
    """Regressors of one feature set, with the norm terms that they were trained with.

    Attributes:
        regressors: attribute -> network, in the order Act, Dom, Val.
        files: attribute -> the network's file.
        label_norm: attribute -> mean and standard deviation of the Train labels.
        feature_norm: mean and standard deviation of each feature, float64, shape (D,) each.
        feature_set: what the features are made with, as `--set`.
        device: a `torch.device`.
        key: digest of all that its predictions depend on, clips aside.
    """

    regressors: dict
    files: dict
    label_norm: dict
    feature_norm: tuple
    feature_set: str
    device: object
    key: str

    def labels_of(self, vectors: list) -> dict:
        """Predictions of some clips in label units.

        Args:
            vectors: float64 features of the clips, shape (1, D) each.
        Returns:
            Attribute -> float64, shape (number of clips,).
        """

        rows = Rows(features.normalise(np.concatenate(vectors), *self.feature_norm), self.device, "fp32")
        found = {}
        for attribute, regressor in self.regressors.items():
            (z,) = in_batches(regressor, regressor, rows, "fp32")
            found[attribute] = utils.denormalise(z.cpu().numpy(), self.label_norm[attribute], self.files[attribute])
        return found


def attribute_of(file: Path, info: dict) -> str:
    """Which attribute a regressor predicts: by what it was saved with, else by the file's name.

    Raises:
        UserError: neither says.
    """
    named = re.search(r"@_(Act|Dom|Val)\b", file.name)
    attribute = info.get("emo_attr") or (named[1] if named else None)
    if attribute not in cli.ATTRIBUTES:
        raise UserError(f"{file}: does not say its attribute; call it like SimpleEmoRegressor_DeepMI@_Val.pt.tar.")
    return attribute


def load_predictor(args: argparse.Namespace) -> Predictor:
    """Regressors and norm terms, checked against each other.

    Raises:
        UserError: one is missing, damaged, or of another feature set than the rest; two are of one attribute.
    """
    device = runtime.choose_device(args.device)
    feature_norm = utils.read_feature_norm(args.norm_dir)
    sets = {args.norm_dir: features.read_feature_set(args.norm_dir)}
    regressors, files, label_norm, terms = {}, {}, {}, {}
    for file in args.model:
        regressor, info = load_regressor(file, feature_norm[0].size)
        run_log.note_if_unfinished(file)
        attribute = attribute_of(file, info)
        sets[file] = info.get("feature_set", "")
        label_norm[attribute] = utils.read_label_norm(args.norm_dir, attribute)
        terms[attribute] = utils.norm_key(feature_norm, label_norm[attribute])
        if utils.has_other_norm_stats(info, terms[attribute]):
            raise UserError(
                f"{args.norm_dir}: not the norm terms that {file} was trained with; name its by --norm-dir."
            )
        if attribute in files:
            raise UserError(f"{files[attribute]} and {file} both predict {attribute}; give one of them.")
        regressors[attribute], files[attribute] = regressor.to(device), file
    known = features.common_feature_set(sets)
    asked = args.feature_set or known or "IS13"
    if not args.feature_set and not is_opensmile_set(asked):  # a folder is opened where the user names it, only
        raise UserError(
            f"{args.model[0]}: trained on features of {asked}, no set of openSMILE; name its folder with --set."
        )
    kind = open_set(asked, args.device)
    features.common_feature_set({**sets, f"--set {asked}": kind.name})
    if kind.num_features != feature_norm[0].size:
        raise UserError(
            f"{args.norm_dir}: norm terms of {feature_norm[0].size} features, {asked} has {kind.num_features}; name "
            "the set that the regressors were trained on with --set."
        )
    order = [attribute for attribute in cli.ATTRIBUTES if attribute in files]
    regressors = {attribute: regressors[attribute] for attribute in order}
    key = storage.digest(kind.name, terms, *(files[attribute].read_bytes() for attribute in order))
    return Predictor(regressors, files, label_norm, feature_norm, asked, device, key)


# ---------------------------------------------------------------------------------------------------------------------
# Predicting


def predict_block(predictor: Predictor, clips: list[Clip], args: argparse.Namespace, bar) -> tuple[dict, dict]:
    """(clip -> its labels in the order of the predictor's attributes, clip -> its remark, as `Features` has it)."""
    kind = open_set(predictor.feature_set, args.device)
    batches = kind.batches(clips, 1)
    tasks = [(batch, predictor.feature_set, args.device) for batch in batches]
    found = {}
    with contextlib.closing(in_parallel(features_of, tasks, kind.workers(args.workers))) as results:
        for batch, features in zip(batches, results):
            found.update(zip(batch, features))
            bar.update(len(batch))
    good = [clip for clip in clips if found[clip].vector is not None]
    labels = predictor.labels_of([found[clip].vector for clip in good]) if good else {}
    remarks = {clip: found[clip].remark for clip in clips if found[clip].remark}
    return dict(zip(good, zip(*(values.tolist() for values in labels.values())))), remarks


class Progress:
    """The blocks that are done, in a file beside the table, so that a run that was stopped goes on."""

    def __init__(self, table: Path | None):
        """
        Args:
            table: the table to come, None for standard output: then nothing is kept.
        """
        self.file = table and table.with_name(f".{table.name}.unfinished")
        self.done: dict[str, dict] = {}
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):  # a line may be cut off
            for line in self.file.read_text(encoding="utf-8").splitlines() if self.file else ():
                block = json.loads(line)
                self.done[block["key"]] = block
        if self.file and self.file.exists():
            storage.write_text(self.file, "".join(json.dumps(block) + "\n" for block in self.done.values()))

    def add(self, block: dict) -> None:
        """Keep one more block."""
        if self.file:
            storage.append_line(self.file, json.dumps(block))

    def end(self) -> None:
        """All is written elsewhere."""
        if self.file:
            self.file.unlink(missing_ok=True)


def predict(
    predictor: Predictor, clips: dict[Clip, str], args: argparse.Namespace, progress: Progress
) -> Iterator[dict]:
    """Predict the clips block by block.

    Args:
        predictor: the networks.
        clips: as from `find_clips`.
        args: the command line.
        progress: where to find and keep blocks that are done.
    Returns:
        For each block `rows`, as text, `faults`, (where, reason) each, and `doubtful`, (recording, remark) each of
        those that are in the rows.
    """
    todo = list(clips)
    with tqdm(total=len(todo), desc="predictions", unit="clip", disable=None) as bar:
        for start in range(0, len(todo), BLOCK):
            part = {clip: clips[clip] for clip in todo[start : start + BLOCK]}
            key = storage.digest(predictor.key, args.segment, list(map(_state, part)), list(part.values()))
            block = progress.done.get(key)
            if block is None or "doubtful" not in block:  # an earlier version read less of some recordings
                labels, remarks = predict_block(predictor, list(part), args, bar)
                rows = [
                    [part[clip], *_times(clip, args.segment), *(f"{value:.4f}" for value in found)]
                    for clip, found in labels.items()
                ]
                faults = [[_where(clip), why] for clip, why in remarks.items() if clip not in labels]
                doubtful = [[str(clip.recording), why] for clip, why in remarks.items() if clip in labels]
                block = {"key": key, "rows": rows, "faults": faults, "doubtful": doubtful}
                progress.add(block)
            else:
                bar.update(len(part))
            yield block


def _state(clip: Clip) -> tuple:
    """What tells a clip from every other, and from itself before a change."""
    state = clip.recording.stat()
    return str(clip.recording.absolute()), clip.start, clip.stop, state.st_size, state.st_mtime_ns


def _times(clip: Clip, segment: float | None) -> list[str]:
    return [] if segment is None else [f"{clip.start:.3f}", f"{clip.stop or 0:.3f}"]


def _where(clip: Clip) -> str:
    """A clip, for a list of faults."""
    return str(clip.recording) if clip.stop is None else f"{clip.recording} ({clip.start:.3f} to {clip.stop:.3f} s)"


def main(args: argparse.Namespace) -> int:
    """Predict, write, name what could not be used."""

    clips = find_clips(args.inputs, args.segment)
    table = None if args.out == "-" else storage.output_file(args.out)
    if table:
        storage.prepare_folder(table.parent)
        if table.resolve() in {path.resolve() for path in (*args.model, *(clip.recording for clip in clips))}:
            raise UserError(f"--out {args.out}: is one of the inputs; give another name.")
    predictor = load_predictor(args)
    header = ["FileName", *(["start", "end"] if args.segment else []), *(f"Emo{name}" for name in predictor.regressors)]
    progress = Progress(table)
    rows, faults, doubtful = 0, [], {}
    with contextlib.ExitStack() as stack:
        stream = sys.stdout
        if not table and hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")
        if table:
            temporary = stack.enter_context(storage.write_atomically(table))
            # A file name of no encoding is written as it is.
            stream = stack.enter_context(temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape"))
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        for block in predict(predictor, clips, args, progress):
            writer.writerows(block["rows"])
            rows += len(block["rows"])
            faults += block["faults"]
            for recording, remark in block["doubtful"]:
                doubtful.setdefault(recording, remark)  # once per recording, not per segment
    progress.end()
    extract_features.warn_of_doubtful(doubtful.items())
    for where, reason in faults:
        notify(f"warning: no prediction: {where}: {reason}")
    told = f"{rows} rows, {len(faults)} without prediction" + (f"; wrote {table}" if table else "")
    print(told, file=sys.stdout if table else sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    # By its own name, not as __main__: worker processes import what they are sent.
    from tools import predict as this

    cli.run(this.main, ARGS)
