"""Bring a corpus into this program's layout: labels, recordings, acoustic features, and a summary to check.

    python -m tools.prepare_corpus csv ratings.csv --audio clips --out corpora/mine --file-column file \\
        --arousal-column arousal --valence-column valence --speaker-column speaker \\
        --split-by-speaker .6 .2 .2 --label-scale 1 9
    python -m tools.prepare_corpus iemocap IEMOCAP_full_release --out corpora/iemocap
    python -m tools.prepare_corpus msp-improv MSP-IMPROV --out corpora/msp-improv
    python -m tools.prepare_corpus msp-podcast MSP-PODCAST-Publish-1.11
    python -m tools.prepare_corpus raters labels_detailed.csv --audio clips --out corpora/mine --label-scale 1 7

Labels are brought to 1..7 linearly; recordings are linked, not copied. The same command again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import filecmp
import itertools
import json
import shutil
from pathlib import Path

from deepmi import cli
from deepmi.process import UserError, one_line
from deepmi.storage import prepare_folder, write_atomically, write_text

# Flags that do not change what the labels are
OTHER_FLAGS = (
    "out", "audio", "skip_missing", "replace", "copy", "feature_set", "no_features", "norm_dir", "workers", "device",
)  # fmt: skip
BAR = 40  # characters of the longest bar of a histogram


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this tool: a kind of corpus, and its flags."""
    parser = cli.new_parser(__doc__)
    kinds = parser.add_subparsers(
        dest="kind", required=True, metavar="KIND", help="of the corpus; `KIND --help` explains its flags"
    )

    def kind(name: str, what: str) -> argparse.ArgumentParser:
        return kinds.add_parser(
            name, help=what, description=what, formatter_class=cli.HelpFormatter, allow_abbrev=False
        )

    podcast = kind("msp-podcast", "any release of MSP-Podcast as downloaded: report, and features where there are none")
    podcast.add_argument("source", type=Path, metavar="CORPUS", help="folder with Labels and Audios")
    podcast.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for the prepared corpus, needed where the label file has no splits; CORPUS' own features are "
        "linked. Without it, features are put into CORPUS and its labels stay as they are",
    )
    _add_common(podcast)

    for name, what in (("iemocap", "IEMOCAP as distributed"), ("msp-improv", "MSP-IMPROV as distributed")):
        other = kind(name, f"{what} (attributes 1..5)")
        other.add_argument("source", type=Path, metavar="CORPUS", help="folder of the corpus, as distributed")
        _add_out(other)
        _add_common(other)
        _add_splits(other)
        _add_flip(other)

    table = kind("csv", "any table with a file column and columns of arousal, valence or dominance")
    table.add_argument(
        "source", type=Path, metavar="TABLE", help="text table with a header; comma, semicolon, tab or bar"
    )
    table.add_argument("--file-column", required=True, metavar="C", help="column with the recording's path or name")
    for attribute in ("arousal", "valence", "dominance"):
        table.add_argument(f"--{attribute}-column", metavar="C", help=f"column with {attribute}")
    for what in ("speaker", "gender", "class"):
        table.add_argument(f"--{what}-column", metavar="C", help=f"column with the {what}")
    _add_audio(table)
    _add_scale(table)
    _add_out(table)
    _add_common(table)
    _add_splits(table).add_argument(
        "--split-column",
        metavar="C",
        help="column with the split: Train, Validation (dev, ...), Test1 (test), or names of your own; rows without "
        "one are left out",
    )
    _add_flip(table)

    raters = kind("raters", "consensus labels (mean, number, standard deviation) from the single raters' labels")
    raters.add_argument(
        "source", type=Path, metavar="DETAILED", help="labels_detailed of any MSP-Podcast release, .csv or .json"
    )
    raters.add_argument(
        "--consensus",
        type=Path,
        metavar="FILE",
        help="consensus label file with speaker, gender and split of the same utterances; without it all are in Test1",
    )
    raters.add_argument(
        "--min-raters", type=cli.positive_int, default=1, metavar="N", help="no label below so many ratings"
    )
    _add_audio(raters)
    _add_scale(raters)
    _add_out(raters)
    _add_common(raters)
    _add_flip(raters)
    return parser


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the prepared corpus")


def _add_audio(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--audio",
        type=Path,
        metavar="DIR",
        help="folder of the recordings, searched with its subfolders; by default that of the table",
    )


def _add_scale(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--label-scale",
        type=float,
        nargs=2,
        required=True,
        metavar=("LO", "HI"),
        help="lowest and highest possible label of the table; labels are brought to 1..7 linearly, those a little "
        "outside count as the end of the scale",
    )


def _add_splits(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--split-by-speaker",
        type=float,
        nargs=3,
        metavar=("TRAIN", "DEV", "TEST"),
        help="draw the splits: fractions of the speakers for Train, Validation and Test1, none in two of them; without "
        "any split all rows are in Test1",
    )
    parser.add_argument("--seed", type=cli.non_negative_int, default=31, metavar="N", help="seed of --split-by-speaker")
    return group


def _add_flip(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--flip-arousal", action="store_true", help="the corpus stores arousal from high to low: turn its scale round"
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(flip_arousal=False, split_by_speaker=None, seed=None)  # where the kind has no such flag
    parser.add_argument("--skip-missing", action="store_true", help="leave out rows without a recording")
    parser.add_argument(
        "--replace",
        action="store_true",
        help="replace labels that were prepared with other flags, and copies of recordings that have changed",
    )
    parser.add_argument("--copy", action="store_true", help="copy recordings, and features, instead of linking to them")
    parser.add_argument(
        "--set",
        dest="feature_set",
        default="IS13",
        metavar="NAME|FOLDER",
        help="feature set, as tools.extract_features; IS13 is the paper's",
    )
    parser.add_argument("--no-features", action="store_true", help="labels and recordings only")
    parser.add_argument(
        "--norm-dir",
        type=Path,
        metavar="DIR",
        help="make the norm terms of the Train split too, as norm_para.py does, in this folder",
    )
    cli.add_extraction_arguments(parser, "an encoder computes")


# ---------------------------------------------------------------------------------------------------------------------
# Reading: a table with the recordings, in the corpus' own scale


if __name__ == "__main__":
    ARGS = cli.parse(get_args_parser())  # before the heavy imports, so that --help answers at once

import numpy as np
from tqdm import tqdm

import norm_para
import utils
from deepmi import features
from deepmi.metric import LEVEL_EDGES, NUM_LEVELS, emotion_levels
from deepmi.storage import read_json_object
from tools import corpora
from tools.extract_features import extract_folder, print_summary
from tools.feature_sets import open_set, seconds_of
from tools.recordings import Recordings, find_recordings, without_features


def read_source(args: argparse.Namespace):
    """(consensus table with `audio`, ratings or None, label scale) of the corpus that the arguments name."""
    if args.kind == "msp-podcast":
        table, ratings, found = corpora.read_podcast(args.source, in_place=args.out is None)
        print("\n".join(found))
        scale, audio = utils.LABEL_RANGE, corpora.podcast_audio(args.source)
    elif args.kind == "iemocap":
        table, ratings = corpora.read_iemocap(args.source)
        scale, audio = corpora.IEMOCAP_SCALE, args.source
    elif args.kind == "msp-improv":
        table, ratings = corpora.read_improv(args.source)
        scale, audio = corpora.IMPROV_SCALE, args.source
    elif args.kind == "csv":
        table, ratings = _read_csv(args), None
        scale, audio = tuple(args.label_scale), args.audio or args.source.parent
    else:
        table, ratings = _read_raters(args)
        scale, audio = tuple(args.label_scale), args.audio or args.source.parent
    utils.refuse_label_scale(*scale)
    if args.kind == "msp-podcast" or getattr(args, "split_column", None) or getattr(args, "consensus", None):
        table = corpora.leave_out_unsplit(table, getattr(args, "consensus", None) or args.source)
    recordings = Recordings(audio, args.out and args.out / "Audios")
    table = corpora.join_recordings(table, recordings, args.source, args.skip_missing)
    if ratings is not None:
        names = dict(zip(table["entry"], table["FileName"]))
        ratings = ratings.assign(FileName=ratings["FileName"].map(names)).dropna(subset="FileName")
    return table, ratings, scale


def _read_csv(args: argparse.Namespace):
    given = {
        "FileName": args.file_column,
        "EmoClass": args.class_column,
        "EmoAct": args.arousal_column,
        "EmoVal": args.valence_column,
        "EmoDom": args.dominance_column,
        "SpkrID": args.speaker_column,
        "Gender": args.gender_column,
        "Split_Set": args.split_column,
    }
    if not any(given[column] for column in corpora.ATTRIBUTE_COLUMNS):
        raise UserError("no attribute: name at least one of --arousal-column, --valence-column, --dominance-column.")
    return corpora.read_table(args.source, {ours: theirs for ours, theirs in given.items() if theirs})


def _read_raters(args: argparse.Namespace):
    ratings = corpora.clip_to_scale(utils.read_detailed_labels(args.source), tuple(args.label_scale), args.source)
    table = corpora.consensus_of(ratings)
    for column in corpora.ATTRIBUTE_COLUMNS:
        table.loc[table[f"{column}_n"] < args.min_raters, column] = float("nan")
    if args.consensus:
        known = utils.read_labels(args.consensus, needs_split=False).set_index("FileName")
        strange = [name for name in table["FileName"] if name not in known.index]
        if strange:
            raise UserError(f"{args.consensus}: lacks {len(strange)} rated utterances, the first {strange[0]}.")
        for column in ("SpkrID", "Gender", "Split_Set"):
            if column in known:
                table[column] = known.loc[table["FileName"], column].to_numpy()
    return corpora.complete(table), ratings


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def bring_to_range(table, scale: tuple[float, float], flip: bool, source: object):
    """The table with its attributes on 1..7; other columns, `_std` with the scale, stay.

    Args:
        table: consensus labels or ratings.
        scale: lowest and highest possible label in it.
        flip: whether to turn arousal round first.
        source: the file, for the message.
    Raises:
        UserError: a label far outside the scale.
    """
    table = corpora.clip_to_scale(table, scale, source)
    for column in corpora.ATTRIBUTE_COLUMNS:
        values = table[column]
        if flip and column == "EmoAct":
            values = scale[0] + scale[1] - values
        table[column] = utils.to_label_range(values, scale)
        if f"{column}_std" in table:
            table[f"{column}_std"] *= (utils.LABEL_RANGE[1] - utils.LABEL_RANGE[0]) / (scale[1] - scale[0])
    return table


def write_corpus(out: Path, table, ratings, mark: dict, copy: bool, replace: bool) -> None:
    """Write labels, links to the recordings, and the mark that says what they were made from.

    Args:
        out: the corpus.
        table: consensus labels on 1..7, with the recordings.
        ratings: the single raters' labels, or None.
        mark: what decides on the labels.
        copy: whether to copy the recordings.
        replace: whether labels made with other flags may be replaced.

    Raises:
        UserError: the folder holds a corpus that this tool did not prepare, or with other flags; or can't be written.
    """
    labels = out / "Labels"
    mark_file = labels / utils.PREPARED_MARK
    if labels.is_dir() and any(labels.iterdir()) and not mark_file.is_file():
        raise UserError(f"{labels}: holds labels that this tool did not write; name another --out.")
    before = read_json_object(mark_file) if mark_file.is_file() else mark
    changed = [name for name in sorted({*before, *mark}) if before.get(name) != mark.get(name)]
    if changed and not replace:
        told = "; ".join(f"{name} {before.get(name)} there, {mark.get(name)} now" for name in changed)
        raise UserError(f"{labels}: prepared with other flags ({told}). Name another --out, or add --replace.")
    prepare_folder(labels)
    link_recordings(prepare_folder(out / "Audios"), table["FileName"], table["audio"], copy, replace)
    more = [column for column in table.columns if column.endswith(("_n", "_std"))]
    write_text(mark_file, json.dumps(mark, indent=1) + "\n")
    corpora.write_table(table[[*utils.CONSENSUS_COLUMNS, *more]], labels / utils.PREPARED_LABELS)
    if ratings is not None and len(ratings):
        ratings = ratings.rename(columns={"Worker": "WorkerID"})
        corpora.write_table(ratings, labels / "labels_detailed.csv")


def link_recordings(folder: Path, names, recordings, copy: bool, replace: bool = False) -> None:
    """A link, or a copy, of each recording or feature file under its name in the corpus.

    Raises:
        UserError: a different file has that name already, and it may not be replaced.
    """
    # The label may say .wav where the recording is .flac; features are found by the name without its ending.
    sources = {
        f"{Path(name).stem}{recording.suffix}": recording.resolve() for name, recording in zip(names, recordings)
    }
    stems = {Path(name).stem for name in sources}
    for path in list(folder.iterdir()):
        if path.is_symlink() and path.stem in stems and path.name not in sources:
            path.unlink()  # the recording has another ending now
    for name, source in sources.items():
        target = folder / name
        if target.is_symlink():
            if target.resolve() == source and not copy:
                continue
            target.unlink()
        elif target.exists():
            if target.samefile(source) or _is_copy(target, source):
                continue
            if not replace:
                raise UserError(f"{target}: a different file than {source}; name another --out, or add --replace.")
            target.unlink()
        if copy:
            with write_atomically(target) as temporary:
                shutil.copy2(source, temporary)  # with its time of change, for the next run
        else:
            target.symlink_to(source)


def _is_copy(target: Path, source: Path) -> bool:
    """Whether a file is a copy of another; size and time of change say so, or its content."""
    here, there = target.stat(), source.stat()
    if here.st_size == there.st_size and here.st_mtime_ns == there.st_mtime_ns:
        return True
    return filecmp.cmp(target, source, shallow=False)


def remove_stale_features(out: Path) -> None:
    """Remove the features, of every set, of recordings that have changed since; a note says which."""
    folders = sorted(folder for folder in out.glob("Features/*/feat_mat") if folder.is_dir())
    recordings = find_recordings(out / "Audios") if folders else []
    for folder in folders:
        without_features(recordings, folder)


def link_features(source: Path, out: Path, feature_set: str, table, copy: bool) -> None:
    """Links to, or copies of, the feature files that a release of MSP-Podcast has for the rows of a prepared corpus.

    Args:
        source: the release.
        out: the prepared corpus.
        feature_set: the name of the set.
        table: its labels, with `entry`, the release's file name.
        copy: whether to copy.
    """
    theirs, ours = utils.feature_folder(source, feature_set), utils.feature_folder(out, feature_set)
    if not theirs.is_dir():
        return
    names, files = [], []
    lacking = set(features.missing_features(theirs, table["entry"].tolist()))
    for name, entry in zip(table["FileName"], table["entry"]):
        target = ours / features.feature_name(name)
        if entry not in lacking and (target.is_symlink() or not target.exists()):
            names.append(name)
            files.append(Path(features.feature_file(theirs, entry)))
    if files:
        if not any(prepare_folder(ours).glob("*.mat")):
            features.write_feature_set(ours, features.read_feature_set(theirs))
        link_recordings(ours, names, files, copy)
        print(f"{'copied' if copy else 'linked'} {len(files):,} feature files of {theirs}")


# ---------------------------------------------------------------------------------------------------------------------
# Summary


def hours_of(recordings) -> tuple[float, int]:
    """(hours of those recordings that can be read, number of those that can't)."""

    bar = tqdm(recordings, "lengths", unit="file", leave=False, delay=0.5, disable=None)
    lengths = [seconds_of(recording) for recording in bar]
    return sum(lengths) / 3600, lengths.count(0)


def histogram(labels) -> list[str]:
    """A line for each of the six emotion levels."""

    edges = [f"{edge:g}" for edge in LEVEL_EDGES]
    names = [f"<{edges[0]}", *(f"{low}-{high}" for low, high in itertools.pairwise(edges)), f">={edges[-1]}"]
    counts = np.bincount(emotion_levels(labels), minlength=NUM_LEVELS)
    bars = np.ceil(BAR * counts / counts.max()).astype(int)
    return [f"    {name:>4} {count:7,} {'#' * bar}".rstrip() for name, count, bar in zip(names, counts, bars)]


def summary(table) -> list[str]:
    """What a prepared corpus holds: utterances, speakers, hours, splits, and each attribute's labels on 1..7."""
    speakers = table["SpkrID"]
    known = speakers[speakers != utils.UNKNOWN_SPEAKER]
    hours, unreadable = hours_of(table["audio"])
    lines = [
        f"{len(table):,} utterances, {known.nunique():,} speakers ({len(speakers) - len(known):,} utterances of "
        f"unknown ones), {hours:.2f} hours" + (f"; {unreadable:,} recordings can't be read" if unreadable else "")
    ]
    order = {name: number for number, name in enumerate(corpora.SPLITS)}
    for split in sorted(set(table["Split_Set"]), key=lambda name: (order.get(name, len(order)), name)):
        rows = table[table["Split_Set"] == split]
        of = rows["SpkrID"][rows["SpkrID"] != utils.UNKNOWN_SPEAKER].nunique()
        lines.append(f"  {split}: {len(rows):,} utterances, {of:,} speakers")
    shared = table[speakers != utils.UNKNOWN_SPEAKER].groupby("SpkrID")["Split_Set"].nunique()
    if (shared > 1).any():
        lines.append(f"  warning: {(shared > 1).sum():,} speakers are in more than one split")
    for column in corpora.ATTRIBUTE_COLUMNS:
        values = table[column].dropna()
        if values.empty:
            lines.append(f"{column}: no labels")
            continue
        lines.append(
            f"{column}: {len(values):,} labels, {values.min():.2f} .. {values.max():.2f}, mean {values.mean():.2f}, "
            f"standard deviation {values.std(ddof=0):.2f}"
        )
        lines += histogram(values)
    return lines


def arousal_check(table) -> list[str]:
    """Anger is the more aroused of anger and sadness in every corpus; if it is not here, the scale runs backwards."""
    means = {}
    for letter, emotion in (("A", "anger"), ("S", "sadness")):
        values = table["EmoAct"][table["EmoClass"] == letter].dropna()
        if values.empty:
            return []
        means[emotion] = values.mean()
    lines = [", ".join(f"mean arousal of {emotion} {mean:.2f}" for emotion, mean in means.items())]
    if means["anger"] < means["sadness"]:
        lines.append(
            "warning: so arousal seems to run from high to low here; if it does, add --flip-arousal --replace."
        )
    return lines


# ---------------------------------------------------------------------------------------------------------------------


def main(args: argparse.Namespace) -> None:
    """Read, check, write, extract, sum up."""
    table, ratings, scale = read_source(args)
    table = bring_to_range(table, scale, args.flip_arousal, args.source)
    if args.split_by_speaker:
        table["Split_Set"] = corpora.split_by_speaker(table, args.split_by_speaker, args.seed, args.source)
    table.loc[table["Split_Set"] == "", "Split_Set"] = "Test1"
    if args.norm_dir and "Train" not in set(table["Split_Set"]):
        raise UserError("--norm-dir: no rows in split Train to make norm terms of; leave it out, or give the splits.")
    kind = None if args.no_features else open_set(args.feature_set, args.device)
    out = args.out or args.source
    if args.out:
        if ratings is not None:
            ratings = corpora.clip_to_scale(ratings, scale, args.source, corpora.RATING_CLIPPED)
            ratings = bring_to_range(ratings, scale, args.flip_arousal, args.source)
        mark = {name: value for name, value in vars(args).items() if name not in OTHER_FLAGS}
        mark |= {"label_scale": list(scale), "source": str(args.source.resolve())}
        mark = json.loads(json.dumps(mark, default=str))
        write_corpus(args.out, table, ratings, mark, args.copy, args.replace)
        print(f"wrote {args.out / 'Labels'} and {args.out / 'Audios'}")
        if args.kind == "msp-podcast":
            link_features(args.source, args.out, kind.name if kind else "IS13", table, args.copy)
        remove_stale_features(args.out)
    if scale != utils.LABEL_RANGE:
        print(f"labels {scale[0]:g}..{scale[1]:g} brought to 1..7 linearly")
    print("\n".join(map(one_line, [*summary(table), *arousal_check(table)])))
    if kind:
        audio = out / "Audios" if args.out else corpora.podcast_audio(args.source)
        feature_dir = utils.feature_folder(out, kind.name)
        made = extract_folder(audio, feature_dir, args.feature_set, args.workers, args.device)
        print_summary(made, feature_dir)
    if args.norm_dir:
        argv = ["--corpus", out, "--norm-dir", args.norm_dir, "--workers", args.workers]
        argv += ["--features", feature_dir] if kind else []
        argv += ["--skip-missing"] if args.skip_missing else []
        norm_para.main(norm_para.get_args_parser().parse_args([str(value) for value in argv]))


if __name__ == "__main__":
    cli.run(main, ARGS)
