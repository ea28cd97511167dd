"""Arousal, dominance and valence of recordings, predicted by trained networks.

    python -m tools.predict interview.wav clips/ --model Models/SimpleEmoRegressor_DeepMI@_Act.pt.tar \\
        Models/SimpleEmoRegressor_DeepMI@_Val.pt.tar --out predictions.csv

A network is a regressor of training_Curriculum.py, or a checkpoint of training_DeepEmoCluster.py, such as the published
ones (with --norm-dir NormTerm/v1.8). Writes one row per recording, or per segment with --segment. Its columns are
FileName and, for each network, EmoAct, EmoDom or EmoVal (1..7). The features are extracted on the fly, with the feature
set of the networks.

- A recording that cannot be used is left out with a warning, and the exit status is 1.
- A recording that may be incomplete is used, with a warning.
- A stopped run continues where it stopped.
- The table is UTF-8, also on standard output (--out -).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from deepmi import cli

SHORTEST_SEGMENT = 0.1  # seconds; openSMILE needs about half of it
BLOCK = 256  # segments that pass through the networks together; a killed run loses at most one block


def segment_seconds(text: str) -> float:
    """A length in seconds, at least SHORTEST_SEGMENT."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not SHORTEST_SEGMENT <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of seconds, at least {SHORTEST_SEGMENT}, found {text}")
    return value


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    parser = cli.new_parser(__doc__)
    help = "recordings (wav, flac, ogg, opus, mp3, aiff, ...; any rate, any number of channels) or folders of them"
    parser.add_argument("inputs", type=Path, nargs="+", metavar="AUDIO_OR_FOLDER", help=help)
    help = "regressors or checkpoints of DeepEmoCluster, one per attribute"
    parser.add_argument("--model", type=Path, nargs="+", required=True, metavar="FILE", help=help)
    help = "table to write; - for standard output"
    parser.add_argument("--out", default="predictions.csv", metavar="FILE", help=help)
    cli.add_norm_dir_argument(parser, "folder of the normalisation statistics that the networks were trained with")
    help = (
        "cut recordings into segments of this length, one row per segment, with columns start and end in seconds; a "
        "last segment of less than half the length is joined to the previous one"
    )
    parser.add_argument("--segment", type=segment_seconds, metavar="SECONDS", help=help)
    help = "feature set, if the networks do not record theirs (default IS13); or the encoder they need: its folder, "
    help += "or its name on the Hugging Face hub. Revision, layer and pooling are those that the networks record"
    cli.add_feature_set_argument(parser, help, default=None)
    cli.add_extraction_arguments(parser, "networks compute")
    return parser


if __name__ == "__main__":
    ARGS = cli.parse(get_args_parser())  # before the heavy imports, so that --help answers at once

import csv

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from deepmi import features, norm_stats, run_log, runtime, storage
from deepmi.batches import Rows, in_batches
from deepmi.moments import clipped_share, describe_clipped
from deepmi.process import UserError, notify
from model import attribute_of, load_regressor
from tools import finetuned
from tools.encoders import SetName, cached_folder
from tools.extract_features import warn_of_doubtful
from tools.feature_sets import OPENSMILE_SETS, Features, features_of, in_parallel, open_set, with_options
from tools.recordings import list_recordings
from tools.sound import Clip, seconds_of

# ---------------------------------------------------------------------------------------------------------------------
# What to predict


def find_clips(inputs: Sequence[Path], segment: float | None) -> dict[Clip, str]:
    """The recordings or segments to predict, in order, each with the file name for the table.

    Args:
        inputs: recordings and folders.
        segment: length of the segments in seconds, None for whole recordings.
    Returns:
        Clip -> path of its recording relative to the folder, or name of the recording; if two recordings would have the
        same name, all paths as given.
    Raises:
        UserError: an input does not exist, or a folder has no recordings.
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
    return {clip: name for path, name in names.items() for clip in cut(path, segment)}


def cut(recording: Path, segment: float | None) -> list[Clip]:
    """A recording in segments of `segment` seconds, the last one 0.5 to 1.5 times as long; the whole one if None."""
    if segment is None:
        return [Clip(recording)]
    length = seconds_of(recording)
    count = max(1, math.floor(length / segment + 0.5))
    stops = [(number + 1) * segment for number in range(count - 1)]
    return [Clip(recording, start, stop) for start, stop in zip([0.0, *stops], [*stops, length or None])]


# ---------------------------------------------------------------------------------------------------------------------
# Regressors


class Regressor(NamedTuple):
    """A network that predicts one attribute."""

    network: torch.nn.Module
    file: Path
    label_norm: tuple[float, float]  # mean and standard deviation of the Train labels


class Predictor(NamedTuple):
    """Regressors that share a feature set, and the normalisation statistics that they were trained with."""

    regressors: dict[str, Regressor]  # by attribute, in the order Act, Dom, Val
    feature_norm: tuple[NDArray, NDArray]  # mean and standard deviation of each feature, float64, shape (D,) each
    feature_set: str  # as --set
    device: torch.device
    key: str  # digest of everything that the predictions depend on, except the recordings

    def labels_of(self, vectors: Sequence[NDArray[np.float64]]) -> tuple[list[list[float]], float]:
        """Predict from features.

        Args:
            vectors: features, shape (1, D) each.
        Returns:
            Labels 1..7, one row per vector, one column per attribute; share of the feature values that were clipped.
        """
        if not vectors:
            return [], 0.0
        normalised = features.normalise(np.concatenate(vectors), *self.feature_norm)
        rows = Rows(normalised, self.device, "fp32")
        columns = []
        for network, file, label_norm in self.regressors.values():
            (z,) = in_batches(network, network, rows, "fp32")
            columns.append(norm_stats.denormalise(z.cpu().numpy(), label_norm, file))
        return np.stack(columns, axis=1).tolist(), clipped_share(normalised)


def load_predictor(args: argparse.Namespace) -> Predictor | finetuned.FinetunedPredictor:
    """Regressors and normalisation statistics, checked against each other.

    Raises:
        UserError: a file is missing, damaged, or of a different feature set; two regressors predict one attribute.
    """
    device = runtime.choose_device(args.device)
    if any(map(finetuned.is_finetuned, args.model)):
        return finetuned.load_predictor(args.model, device)
    feature_norm = norm_stats.read_feature_norm(args.norm_dir)
    width = feature_norm[0].size
    sets: dict[object, str] = {args.norm_dir: features.read_feature_set(args.norm_dir)}
    found: dict[str, Regressor] = {}
    unrecorded: list[str] = []
    for file in args.model:
        network, info = load_regressor(file, width)
        run_log.note_if_unfinished(file)
        attribute = attribute_of(file, info)
        if attribute not in cli.ATTRIBUTES:
            raise UserError(f"{file}: unknown attribute; give it a name like SimpleEmoRegressor_DeepMI@_Val.pt.tar.")
        label_norm = norm_stats.read_label_norm(args.norm_dir, attribute)
        if norm_stats.has_other_norm_stats(info, norm_stats.norm_key(feature_norm, label_norm)):
            raise UserError(
                f"{args.norm_dir}: {file} was trained with different normalisation statistics; name them with "
                "--norm-dir."
            )
        if attribute in found:
            raise UserError(f"{found[attribute].file} and {file} both predict {attribute}; give only one of them.")
        found[attribute] = Regressor(network.to(device), file, label_norm)
        unrecorded += [file.name] if "norm_terms" not in info else []
        sets[file] = info.get("feature_set", "")
    name = wanted_set(args, features.common_feature_set(sets) or "IS13")
    opened = open_set(name, args.device)
    features.common_feature_set({**sets, f"--set {name}": opened.name})
    if opened.num_features != width:
        raise UserError(
            f"{args.norm_dir}: has statistics of {width} features, {name} has {opened.num_features}; name the "
            "regressors' feature set with --set."
        )
    if unrecorded:
        norm_stats.note_norm_stats(", ".join(unrecorded), {}, "", args.norm_dir)
    regressors = {attribute: found[attribute] for attribute in cli.ATTRIBUTES if attribute in found}
    parts = [(attribute, part.label_norm) for attribute, part in regressors.items()]
    files = [part.file.read_bytes() for part in regressors.values()]
    key = storage.digest(opened.name, *(statistics.tobytes() for statistics in feature_norm), parts, *files)
    return Predictor(regressors, feature_norm, opened.opened_as, device, key)


def wanted_set(args: argparse.Namespace, recorded: str) -> str:
    """The feature set that flags and networks name together, as `open_set` takes it.

    A folder is opened, and an encoder downloaded, only if the user names it.

    Args:
        args: the command line.
        recorded: the feature set of the networks.
    Raises:
        UserError: the networks need an encoder that the user has to name.
    """
    known = SetName.parse(recorded)
    asked = SetName.parse(args.feature_set or recorded)
    if asked.source not in OPENSMILE_SETS:
        if not args.feature_set and not (known.is_commit and cached_folder(known)):
            remedy = "if that is an encoder, name its folder with --set. Imported features cannot be made here"
            remedy = f"an encoder; name it with --set {known.source} to download it" if known.is_commit else remedy
            raise UserError(f"{args.model[0]}: needs features of {recorded}; {remedy}.")
        same = asked.source == known.source
        asked = asked._replace(
            revision=asked.revision or (known.revision if same else ""),
            layer=asked.layer or known.layer,
            pool=asked.pool or known.pool,
        )
    return with_options(str(asked), args.revision, args.layer, args.pool)


# ---------------------------------------------------------------------------------------------------------------------
# Predicting


def read_unfinished(file: Path) -> dict[str, dict]:
    """The blocks that a stopped run finished, by key; an incomplete last line is removed from the file."""
    blocks: dict[str, dict] = {}
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        for line in file.read_text(encoding="utf-8").splitlines():
            block = json.loads(line)
            if {"rows", "faults", "doubtful", "clipped"} <= block.keys():
                blocks[block["key"]] = block
    if file.exists():
        storage.write_text(file, "".join(json.dumps(block) + "\n" for block in blocks.values()))
    return blocks


def predict_block(predictor: Predictor, clips: dict[Clip, str], args: argparse.Namespace, bar: tqdm) -> dict:
    """Predict some segments.

    Returns:
        `rows` of the table, `faults` (segment, reason), `doubtful` (recording, remark), and the share of `clipped`
        feature values.
    """
    opened = open_set(predictor.feature_set, args.device)
    batches = opened.batches(list(clips), 1)
    tasks = [(batch, predictor.feature_set, args.device) for batch in batches]
    found: dict[Clip, Features] = {}
    with contextlib.closing(in_parallel(features_of, tasks, min(args.workers, opened.most_workers))) as results:
        for batch, batch_features in zip(batches, results):
            found.update(zip(batch, batch_features))
            bar.update(len(batch))
    labels, clipped = predictor.labels_of([found[clip].vector for clip in clips if found[clip].vector is not None])
    labels, block = iter(labels), {"rows": [], "faults": [], "doubtful": [], "clipped": clipped}
    for clip, name in clips.items():
        vector, remark = found[clip]
        if vector is None:
            place = f" ({clip.start:.3f} to {clip.stop:.3f} s)" if clip.stop else ""
            block["faults"].append([f"{clip.recording}{place}", remark])
            continue
        times = [] if args.segment is None else [f"{clip.start:.3f}", f"{clip.stop or 0:.3f}"]
        block["rows"].append([name, *times, *(f"{value:.4f}" for value in next(labels))])
        if remark:
            block["doubtful"].append([str(clip.recording), remark])
    return block


def predict(
    predictor: Predictor, clips: dict[Clip, str], args: argparse.Namespace, unfinished: Path | None
) -> Iterator[dict]:
    """Predict block by block.

    Args:
        predictor: the networks.
        clips: as from `find_clips`.
        args: the command line.
        unfinished: file of finished blocks, from which a stopped run continues; None saves nothing.
    Returns:
        The blocks, as from `predict_block`.
    """
    todo, done = list(clips.items()), read_unfinished(unfinished) if unfinished else {}
    with tqdm(total=len(todo), desc="predictions", unit="segment" if args.segment else "file", disable=None) as bar:
        for start in range(0, len(todo), BLOCK):
            part = dict(todo[start : start + BLOCK])
            key = storage.digest(predictor.key, args.segment, [(name, *_state(clip)) for clip, name in part.items()])
            if key in done:
                bar.update(len(part))
            else:
                done[key] = {"key": key, **predict_block(predictor, part, args, bar)}
                if unfinished:
                    storage.append_line(unfinished, json.dumps(done[key]))
            yield done.pop(key)


def _state(clip: Clip) -> tuple:
    """What distinguishes a segment from all other segments, and from itself before a change."""
    state = clip.recording.stat()
    return str(clip.recording.absolute()), clip.start, clip.stop, state.st_size, state.st_mtime_ns


def main(args: argparse.Namespace) -> int:
    """Predict, write the table, and list what could not be used."""
    clips = find_clips(args.inputs, args.segment)
    inputs = (*args.model, *(clip.recording for clip in clips))
    table = None if args.out == "-" else storage.checked_output(args.out, "--out", inputs)
    predictor = load_predictor(args)
    unfinished = table and table.with_name(f".{table.name}.unfinished")
    rows, clipped, faults, doubtful = 0, 0.0, [], {}
    with contextlib.ExitStack() as stack:
        encoding = {"encoding": "utf-8", "errors": "surrogateescape"}  # keeps file names that are not UTF-8
        stream = sys.stdout
        if table:
            temporary = stack.enter_context(storage.write_atomically(table))
            stream = stack.enter_context(temporary.open("w", newline="", **encoding))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(**encoding)
        writer = csv.writer(stream, lineterminator="\n")
        times = [] if args.segment is None else ["start", "end"]
        writer.writerow(["FileName", *times, *(f"Emo{attribute}" for attribute in predictor.regressors)])
        for block in predict(predictor, clips, args, unfinished):
            writer.writerows(block["rows"])
            rows += len(block["rows"])
            clipped += block["clipped"] * len(block["rows"])
            faults += block["faults"]
            for recording, remark in block["doubtful"]:
                doubtful.setdefault(recording, remark)  # once per recording, not per segment
    if unfinished:
        unfinished.unlink(missing_ok=True)
    warn_of_doubtful(doubtful.items())
    for clip, reason in faults:
        notify(f"warning: no prediction: {clip}: {reason}")
    if rows and isinstance(predictor, Predictor):  # a fine-tuned encoder takes waveforms
        notify(describe_clipped(clipped / rows))
    summary = f"{rows} rows, {len(faults)} without prediction" + (f"; wrote {table}" if table else "")
    print(summary, file=sys.stdout if table else sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    # Imported by name, not run as __main__: worker processes import what they are sent.
    from tools import predict as this

    cli.run(this.main, ARGS)
