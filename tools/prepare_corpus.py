"""Bring a corpus into MSP-Podcast's layout: labels, recordings, acoustic features, and a summary to check.

    python -m tools.prepare_corpus csv ratings.csv --audio clips --out corpora/mine --file-column file \\
        --arousal-column arousal --valence-column valence --speaker-column speaker \\
        --split-by-speaker .6 .2 .2 --label-scale 1 9
    python -m tools.prepare_corpus iemocap IEMOCAP_full_release --out corpora/iemocap
    python -m tools.prepare_corpus msp-improv MSP-IMPROV --out corpora/msp-improv
    python -m tools.prepare_corpus msp-podcast MSP-PODCAST-Publish-1.11
    python -m tools.prepare_corpus audformat databases/mine --out corpora/mine
    python -m tools.prepare_corpus raters labels_detailed.csv --audio clips --out corpora/mine --label-scale 1 7

Labels are rescaled linearly to 1-7. Recordings are linked, not copied. To continue a stopped run, repeat the command.
"""

from __future__ import annotations

import argparse
import filecmp
import itertools
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from deepmi import cli

# Flags that do not change the labels
OTHER_FLAGS = (
    "out", "audio", "skip_missing", "replace", "copy", "feature_set", "revision", "layer", "pool", "no_features",
    "norm_dir", "workers", "device",
)  # fmt: skip
KINDS = {  # kind of corpus -> (what is read, name of the argument, its help)
    "msp-podcast": ("any release of MSP-Podcast as downloaded", "CORPUS", "folder with Labels and Audios"),
    "iemocap": ("IEMOCAP as distributed, labels on 1-5", "CORPUS", "folder with Session1 to Session5"),
    "msp-improv": ("MSP-IMPROV as distributed, labels on 1-5", "CORPUS", "folder with Evalution.txt and recordings"),
    "csv": ("a table with a file column and columns of arousal, valence or dominance", "TABLE", "text with a header"),
    "audformat": ("an audformat database with arousal, valence or dominance", "DATABASE", "folder with db.yaml"),
    "raters": ("labels of each rater, averaged to consensus labels", "DETAILED", "labels_detailed, .csv or .json"),
}  # fmt: skip
COLUMNS = {  # flag of `csv`, without --...-column -> column of the consensus labels
    "file": "FileName", "arousal": "EmoAct", "valence": "EmoVal", "dominance": "EmoDom",
    "speaker": "SpkrID", "gender": "Gender", "class": "EmoClass", "split": "Split_Set",
}  # fmt: skip
# Ten digits, so that rounding errors of rescaling do not move a label across the edge of an emotion level
AS_CSV = {"index": False, "float_format": "%.10g", "lineterminator": "\n"}
BAR = 40  # characters of the longest bar of a histogram


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this tool: a kind of corpus, and its flags."""
    parser = cli.new_parser(__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND", help="`KIND --help` lists its flags")
    for name, (what, metavar, source) in KINDS.items():
        texts = {"help": what, "description": what}
        kind = kinds.add_parser(name, formatter_class=cli.HelpFormatter, allow_abbrev=False, **texts)
        kind.add_argument("source", type=Path, metavar=metavar, help=source)
        _add_flags(kind, name)
        cli.add_extraction_arguments(kind, "an encoder computes")
    return parser


def _add_flags(parser: argparse.ArgumentParser, kind: str) -> None:
    flag, folder = parser.add_argument, {"type": Path, "metavar": "DIR"}
    parser.set_defaults(audio=None, flip_arousal=False, split_by_speaker=None, seed=None)  # for kinds without them
    if kind == "msp-podcast":
        what = "folder for the prepared corpus; by default features are written to CORPUS, whose labels need splits"
        flag("--out", help=what, **folder)
    else:
        flag("--out", required=True, help="folder for the prepared corpus", **folder)
        flag("--flip-arousal", action="store_true", help="reverse arousal, if the corpus stores it from high to low")
    if kind in ("csv", "raters", "audformat"):
        what = "folder of the recordings, searched recursively; by default the folder of the table or database"
        flag("--audio", help=what, **folder)
        what = "lowest and highest possible label; labels slightly outside are set to the end of the scale"
        what += "; by default minimum and maximum of the schemes" * (kind == "audformat")
        options = {"type": float, "nargs": 2, "metavar": ("LOW", "HIGH"), "required": kind != "audformat"}
        flag("--label-scale", help=what, **options)
    if kind == "raters":
        what = "consensus label file with speakers, genders and splits; without it all rows are in Test1"
        flag("--consensus", type=Path, metavar="FILE", help=what)
        flag("--min-raters", type=cli.positive_int, default=1, metavar="N", help="lowest number of ratings for a label")
    if kind == "audformat":
        what = "tables with the labels; by default all with columns of attributes"
        flag("--table", nargs="+", default=[], metavar="NAME", help=what)
    if kind in ("csv", "audformat", "iemocap", "msp-improv"):
        splits = parser.add_mutually_exclusive_group()
        what = "fractions of the speakers to draw for the splits; without splits all rows are in Test1"
        names = ("TRAIN", "DEV", "TEST")
        splits.add_argument("--split-by-speaker", type=float, nargs=3, metavar=names, help=what)
        flag("--seed", type=cli.non_negative_int, default=31, metavar="N", help="seed of --split-by-speaker")
    if kind in ("csv", "audformat"):
        splits_help = ": Train, Validation (dev), Test1 (test) or other names; rows without a split are left out"
        notes = {"file": " (path or name)", "split": splits_help}
        for name in COLUMNS:
            if kind == "audformat" and name == "file":
                continue
            group, what = splits if name == "split" else parser, f"column with the {name}{notes.get(name, '')}"
            group.add_argument(f"--{name}-column", required=name == "file", metavar="COLUMN", help=what)
    flag("--skip-missing", action="store_true", help="leave out rows without a recording, with a warning")
    what = "replace labels made with different flags, and copies of recordings that have changed"
    flag("--replace", action="store_true", help=what)
    flag("--copy", action="store_true", help="copy recordings and features instead of linking to them")
    cli.add_feature_set_argument(parser, "feature set, as for tools.extract_features; IS13 is the paper's")
    flag("--no-features", action="store_true", help="make labels and links to recordings only")
    what = "folder for the normalisation statistics of the Train split, as norm_para.py writes them; omit for none"
    flag("--norm-dir", help=what, **folder)


if __name__ == "__main__":
    ARGS = cli.parse(get_args_parser())  # before the heavy imports, so that --help answers at once

import numpy as np
import pandas as pd
from tqdm import tqdm

import norm_para
import utils
from deepmi import features, label_scales
from deepmi.metric import LEVEL_EDGES, NUM_LEVELS, emotion_levels
from deepmi.process import UserError, first_few, one_line
from deepmi.storage import prepare_folder, read_json_object, write_atomically, write_text
from tools import audformat_corpus, corpora
from tools.extract_features import extract_folder, print_summary
from tools.feature_sets import open_set, with_options
from tools.recordings import Recordings, find_recordings, plural, without_features
from tools.sound import seconds_of

# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_source(args: argparse.Namespace) -> tuple[pd.DataFrame, pd.DataFrame | None, tuple[float, float]]:
    """Consensus labels with recordings, ratings (or None) and label scale of the corpus that the arguments name."""
    scale, audio = getattr(args, "label_scale", None) or utils.LABEL_RANGE, args.audio or args.source.parent
    utils.refuse_label_scale(*scale)
    ratings, split_source = None, None  # the file that holds the splits, if any
    match args.kind:
        case "msp-podcast":
            table, ratings = corpora.read_podcast(args.source, in_place=args.out is None)
            audio, split_source = corpora.find_audio_folder(args.source), args.source
            if audio is None:
                raise UserError(f"{args.source}: no folder Audios in it.")
        case "iemocap" | "msp-improv":
            read = corpora.read_iemocap if args.kind == "iemocap" else corpora.read_improv
            table, ratings = read(args.source)
            audio, scale = args.source, corpora.SCALE_OF_FIVE
        case "csv":
            given = _given_columns(args)
            if given.keys().isdisjoint(corpora.ATTRIBUTE_COLUMNS):
                raise UserError("no attribute; add --arousal-column, --valence-column or --dominance-column.")
            table, split_source = corpora.read_table(args.source, given), args.split_column and args.source
        case "audformat":
            table, scale = audformat_corpus.read_database(
                args.source, _given_columns(args), args.table, args.label_scale
            )
            audio = args.audio or args.source
            split_source = (table["Split_Set"] != "").any() and not args.split_by_speaker and args.source
        case "raters":
            table, ratings = _read_raters(args)
            split_source = args.consensus
    if split_source:
        table = corpora.leave_out_unsplit(table, split_source)
    recordings = Recordings(audio, args.out and args.out / "Audios")
    table = corpora.join_recordings(table, recordings, args.source, args.skip_missing)
    if ratings is not None:
        names = dict(zip(table["entry"], table["FileName"]))
        ratings = ratings.assign(FileName=ratings["FileName"].map(names)).dropna(subset="FileName")
    return table, ratings, tuple(scale)


def _given_columns(args: argparse.Namespace) -> dict[str, str]:
    """Column of the consensus labels -> its name in the source, as the flags say."""
    names = {ours: getattr(args, f"{flag}_column", None) for flag, ours in COLUMNS.items()}
    return {ours: name for ours, name in names.items() if name}


def _read_raters(args: argparse.Namespace) -> tuple[pd.DataFrame, pd.DataFrame]:
    ratings = corpora.clip_to_scale(utils.read_detailed_labels(args.source), tuple(args.label_scale), args.source)
    table = corpora.consensus_of(ratings)
    for column in corpora.ATTRIBUTE_COLUMNS:
        table.loc[table[f"{column}_n"] < args.min_raters, column] = float("nan")
    if args.consensus:
        known = utils.read_labels(args.consensus, needs_split=False).set_index("FileName")
        if missing := [name for name in table["FileName"] if name not in known.index]:
            utterances = plural(len(missing), "rated utterance")
            raise UserError(f"{args.consensus}: {utterances} missing ({first_few(missing)}).")
        table = table.join(known[known.columns.intersection(["SpkrID", "Gender", "Split_Set"])], on="FileName")
    return corpora.complete(table), ratings


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def write_corpus(
    out: Path, table: pd.DataFrame, ratings: pd.DataFrame | None, mark: dict, copy: bool, replace: bool
) -> None:
    """Write labels, links to the recordings, and `mark`, the settings that determine the labels.

    Raises:
        UserError: the folder has labels from elsewhere; or they were made with different flags and `replace` is off.
    """
    labels = out / "Labels"
    mark_file = labels / label_scales.PREPARED_MARK
    before = read_json_object(mark_file) if mark_file.is_file() else mark
    if before is mark and labels.is_dir() and any(labels.iterdir()):
        raise UserError(f"{labels}: contains labels that this tool did not write; name a different --out.")
    names = [name for name in sorted({*before, *mark}) if before.get(name) != mark.get(name)]
    if names and not replace:
        changed = "; ".join(f"{name} was {before.get(name)}, is now {mark.get(name)}" for name in names)
        raise UserError(
            f"{labels}: prepared with different flags ({changed}). Name a different --out, or add --replace."
        )
    prepare_folder(labels)
    link_files(prepare_folder(out / "Audios"), table["FileName"], table["audio"], copy, replace)
    more = [column for column in table.columns if column.endswith(("_n", "_std"))]
    write_text(mark_file, json.dumps(mark, indent=1) + "\n")
    write_text(labels / label_scales.PREPARED_LABELS, table[[*utils.CONSENSUS_COLUMNS, *more]].to_csv(**AS_CSV))
    if ratings is not None and len(ratings):
        ratings = ratings.rename(columns={"Worker": "WorkerID"})
        write_text(labels / "labels_detailed.csv", ratings.to_csv(**AS_CSV))


def link_files(folder: Path, names: Iterable[str], sources: Iterable[Path], copy: bool, replace: bool = False) -> None:
    """Link or copy recordings or feature files into a folder, under new names with their own endings.

    Raises:
        UserError: a different file has the same name, and `replace` is off.
    """
    # The label file may name a .wav file, but the recording is .flac; features are found by the name without ending.
    links = {f"{Path(name).stem}{source.suffix}": source.resolve() for name, source in zip(names, sources)}
    stems = {Path(name).stem for name in links}
    for path in list(folder.iterdir()):
        if path.is_symlink() and path.stem in stems and path.name not in links:
            path.unlink()  # the recording has a different ending now
    for name, source in links.items():
        target = folder / name
        if target.is_symlink():
            same = target.resolve() == source and not copy
        else:
            same = target.exists() and filecmp.cmp(target, source)  # size and modification time, or content
            if target.exists() and not (same or replace):
                raise UserError(f"{target}: not the same as {source}; name a different --out, or add --replace.")
        if same:
            continue
        target.unlink(missing_ok=True)
        if copy:
            with write_atomically(target) as temporary:
                shutil.copy2(source, temporary)  # keeps the modification time, for the next run
        else:
            target.symlink_to(source)


def link_features(source: Path, out: Path, feature_set: str, table: pd.DataFrame, copy: bool) -> None:
    """Link or copy the feature files that a release of MSP-Podcast has for the rows of the prepared corpus."""
    theirs, ours = utils.feature_folder(source, feature_set), utils.feature_folder(out, feature_set)
    if not theirs.is_dir():
        return
    missing = set(features.missing_features(theirs, table["entry"].tolist()))
    targets = table["FileName"].map(lambda name: ours / features.feature_name(name))
    files = {
        name: Path(features.feature_file(theirs, entry))
        for name, entry, target in zip(table["FileName"], table["entry"], targets)
        if entry not in missing and (target.is_symlink() or not target.exists())
    }
    if files:
        if not any(prepare_folder(ours).glob("*.mat")):
            features.write_feature_set(ours, features.read_feature_set(theirs))
        link_files(ours, files, files.values(), copy)
        print(f"{'copied' if copy else 'linked'} {plural(len(files), 'feature file')} from {theirs}")


def remove_stale_features(out: Path) -> None:
    """Remove the features (of every set) of recordings that have changed since; a note lists them."""
    folders = sorted(folder for folder in out.glob("Features/*/feat_mat") if folder.is_dir())
    recordings = find_recordings(out / "Audios") if folders else []
    for folder in folders:
        without_features(recordings, folder)


# ---------------------------------------------------------------------------------------------------------------------
# Summary


def summary(table: pd.DataFrame) -> list[str]:
    """Lines that describe a prepared corpus: utterances, speakers, hours, splits, and labels of each attribute."""
    bar = tqdm(table["audio"], "lengths", unit="file", leave=False, delay=0.5, disable=None)
    seconds = [seconds_of(recording) for recording in bar]
    speakers = table["SpkrID"].where(table["SpkrID"] != utils.UNKNOWN_SPEAKER)  # NaN if unknown
    unknown = plural(int(speakers.isna().sum()), "utterance")
    unreadable = f"; cannot read {plural(seconds.count(0), 'recording')}" if 0 in seconds else ""
    lines = [
        f"{plural(len(table), 'utterance')}, {plural(speakers.nunique(), 'speaker')} ({unknown} of unknown ones), "
        f"{sum(seconds) / 3600:.2f} hours{unreadable}"
    ]
    splits = table["Split_Set"]
    for split in [*utils.SPLITS, *sorted(set(splits) - set(utils.SPLITS))]:
        if len(members := speakers[splits == split]):
            lines.append(f"  {split}: {plural(len(members), 'utterance')}, {plural(members.nunique(), 'speaker')}")
    if shared := int((splits.groupby(speakers).nunique() > 1).sum()):
        lines.append(f"  warning: {plural(shared, 'speaker')} in more than one split")
    for column in corpora.ATTRIBUTE_COLUMNS:
        labels = table[column].dropna()
        if labels.empty:
            lines.append(f"{column}: no labels")
            continue
        lines.append(
            f"{column}: {plural(len(labels), 'label')}, {labels.min():.2f} to {labels.max():.2f}, mean "
            f"{labels.mean():.2f}, standard deviation {labels.std(ddof=0):.2f}"
        )
        lines += histogram(labels)
    anger, sadness = (table["EmoAct"][table["EmoClass"] == letter].mean() for letter in "AS")
    if not np.isnan(anger + sadness):
        lines.append(f"mean arousal of anger {anger:.2f}, of sadness {sadness:.2f}")
    if anger < sadness:  # in speech, anger has higher arousal
        lines.append("warning: arousal seems to run from high to low; if so, add --flip-arousal --replace.")
    return lines


def histogram(labels: pd.Series) -> list[str]:
    """A line for each of the six emotion levels."""
    edges = [f"{edge:g}" for edge in LEVEL_EDGES]
    names = [f"<{edges[0]}", *(f"{low}-{high}" for low, high in itertools.pairwise(edges)), f">={edges[-1]}"]
    counts = np.bincount(emotion_levels(labels), minlength=NUM_LEVELS)
    bars = np.ceil(BAR * counts / counts.max()).astype(int)
    return [f"    {name:>4} {count:7,} {'#' * bar}".rstrip() for name, count, bar in zip(names, counts, bars)]


def main(args: argparse.Namespace) -> None:
    """Read, check, write, summarise, extract features."""
    table, ratings, scale = read_source(args)
    table = corpora.rescale(table, scale, args.flip_arousal, args.source)
    if args.split_by_speaker:
        table["Split_Set"] = corpora.split_by_speaker(table, args.split_by_speaker, args.seed, args.source)
    table.loc[table["Split_Set"] == "", "Split_Set"] = "Test1"
    if args.norm_dir and "Train" not in set(table["Split_Set"]):
        raise UserError(
            "--norm-dir: no rows in split Train, from which it is computed; omit this flag, or provide splits."
        )
    wanted = with_options(args.feature_set, args.revision, args.layer, args.pool)
    feature_set = None if args.no_features else open_set(wanted, args.device).name
    if args.out:
        if ratings is not None:
            ratings = corpora.rescale(ratings, scale, args.flip_arousal, args.source, corpora.ROOM_OF_RATINGS)
        mark = {name: value for name, value in vars(args).items() if name not in OTHER_FLAGS}
        mark |= {"label_scale": list(scale), "source": str(args.source.resolve())}
        mark = json.loads(json.dumps(mark, default=str))
        write_corpus(args.out, table, ratings, mark, args.copy, args.replace)
        print(f"wrote {args.out / 'Labels'} and {args.out / 'Audios'}")
        if args.kind == "msp-podcast":
            link_features(args.source, args.out, feature_set or "IS13", table, args.copy)
        remove_stale_features(args.out)
    if scale != utils.LABEL_RANGE:
        print(f"labels rescaled linearly from {corpora.span(scale)} to 1-7")
    print("\n".join(map(one_line, summary(table))))
    folder = feature_set and utils.feature_folder(args.out or args.source, feature_set)
    if feature_set:
        audio = args.out / "Audios" if args.out else corpora.find_audio_folder(args.source)
        print_summary(extract_folder(audio, folder, wanted, args.workers, args.device), folder)
    if args.norm_dir:
        argv = ["--corpus", args.out or args.source, "--norm-dir", args.norm_dir, "--workers", args.workers]
        argv += ["--features", folder] if feature_set else []
        argv += ["--skip-missing"] if args.skip_missing else []
        norm_para.main(norm_para.get_args_parser().parse_args([str(value) for value in argv]))


if __name__ == "__main__":
    cli.run(main, ARGS)
