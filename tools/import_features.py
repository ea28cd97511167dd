"""Features that a different program has made -> one .mat file per utterance, in MSP-Podcast's layout.

    python -m tools.import_features emotion2vec/ corpus/Features/emotion2vec/feat_mat --name emotion2vec --corpus corpus
    python -m tools.import_features features.csv corpus/Features/egemaps/feat_mat --name egemaps --corpus corpus

SOURCE is a folder of .npy files (one vector per utterance), a table with one row per file (CSV or Parquet, as openSMILE
and nkululeko write it), or an audformat database with --table. Rows belong to the utterances of the label file by file
name. What has no partner on the other side is listed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from deepmi import cli


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    parser = cli.new_parser(__doc__)
    help = "folder of .npy files, a table (.csv, .tsv, .parquet), or an audformat database"
    parser.add_argument("source", type=Path, metavar="SOURCE", help=help)
    parser.add_argument("feature_dir", type=Path, metavar="FEAT_DIR", help="folder for the .mat files")
    help = "name of the feature set, which is recorded beside the features, so that stages do not mix it with another"
    parser.add_argument("--name", required=True, metavar="SET", help=help)
    labels = parser.add_mutually_exclusive_group()
    help = "corpus whose utterances get the features; without it all rows are imported, as for an unlabeled set"
    labels.add_argument("--corpus", type=Path, metavar="DIR", help=help)
    labels.add_argument("--labels", type=Path, metavar="FILE", help="its label file, instead of --corpus")
    help = "the .npy files hold frames, shape (frames, features): their mean over time, or mean and standard deviation"
    parser.add_argument("--pool", choices=cli.POOLINGS, help=help)
    help = "column with the file of each row (a path or a name); by default file, filename, name or path"
    parser.add_argument("--file-column", metavar="COLUMN", help=help)
    help = "columns that are no features, such as a speaker; start and end are left out in any case"
    parser.add_argument("--drop", nargs="+", default=[], metavar="COLUMN", help=help)
    parser.add_argument("--table", metavar="NAME", help="table of an audformat database")
    return parser


if __name__ == "__main__":
    ARGS = cli.parse(get_args_parser())  # before the heavy imports, so that --help answers at once

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

import utils
from deepmi import features, matfile, tables
from deepmi.process import UserError, first_few, notify
from deepmi.storage import prepare_folder
from tools import audformat_files
from tools.extract_features import claim_folder
from tools.recordings import plural

NPY = ".npy"

# ---------------------------------------------------------------------------------------------------------------------
# Reading


def open_array(path: Path, has_frames: bool) -> NDArray:
    """The array of a .npy file, mapped, so that a wrong size in its header takes no memory.

    Args:
        path: the file.
        has_frames: whether it must have the shape (frames, features), instead of one vector.
    Raises:
        UserError: not numbers, or of a different shape.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # numpy raises many kinds of errors for a damaged header
        raise UserError(f"{path}: not an array of numbers ({str(error)[:200]}).") from None
    if array.dtype.kind not in "fiu" or array.size == 0:
        raise UserError(f"{path}: {array.dtype} of shape {array.shape}; expected numbers, one vector per file.")
    if has_frames and array.ndim != 2:
        raise UserError(f"{path}: shape {array.shape}; --pool expects (frames, features) in every file.")
    is_vector = array.ndim == 1 or (array.ndim == 2 and array.shape[0] == 1)
    if not (is_vector or has_frames):
        more = "; frames? Add --pool mean to average them" if array.ndim == 2 else ""
        raise UserError(f"{path}: shape {array.shape}; expected one vector, (D,) or (1, D){more}.")
    return array


class ArrayFolder:
    """A folder of .npy files; entry i has the features `row(i)`.

    Attributes:
        entries: path of each file from the folder, without `.npy`.
        width: number of features.
    """

    def __init__(self, folder: Path, pool: str | None):
        self.paths = sorted(path for path in folder.rglob(f"*{NPY}") if not path.name.startswith("."))
        if not self.paths:
            raise UserError(f"{folder}: no .npy files in it.")
        self.entries = [path.relative_to(folder).as_posix().removesuffix(NPY) for path in self.paths]
        self._pool = pool
        widths = [open_array(path, bool(pool)).shape[-1] for path in self.paths]
        usual = max(set(widths), key=widths.count)
        if others := [path.name for path, width in zip(self.paths, widths) if width != usual]:
            odd = next(width for width in widths if width != usual)
            raise UserError(
                f"{folder}: {plural(len(others), 'file')} ({first_few(others)}) of different width, the first with "
                f"{odd} features; the others have {usual}. Remove them, or make them again."
            )
        self.width = usual * (2 if pool == "mean+std" else 1)

    def row(self, number: int) -> NDArray[np.float64]:
        """The features of a file, shape (D,)."""
        array = open_array(self.paths[number], bool(self._pool)).astype(np.float64)
        if self._pool is None:
            return array.ravel()
        parts = [array.mean(axis=0)] + ([array.std(axis=0)] if self._pool == "mean+std" else [])
        return np.concatenate(parts)


class TableRows:
    """The rows of a table; attributes and methods as `ArrayFolder`."""

    def __init__(self, path: Path, given_column: str | None, drop: Sequence[str]):
        frame = audformat_files.read_frame(path)
        tables.check_columns(path, frame, drop)
        column = audformat_files.file_column(path, frame, given_column)
        if (nameless := frame[column].isna()).any():
            raise UserError(f"{path}: row {nameless.argmax() + 1} below the header names no file in {column}.")
        self.entries = frame[column].astype(str).str.strip().tolist()
        others = [name for name in frame if name.casefold() in audformat_files.SEGMENT_COLUMNS]
        frame = frame.drop(columns={column, *others, *drop})
        text = [name for name in frame if not pd.api.types.is_numeric_dtype(frame[name].dtype)]
        text += [name for name in frame if frame[name].dtype == bool]
        if text:
            raise UserError(
                f"{path}: {plural(len(text), 'column')} without numbers: {first_few(text)}. If they are no features, "
                f"leave them out with --drop {' '.join(text[:5])}{' ...' if len(text) > 5 else ''}."
            )
        self.width = len(frame.columns)
        if not self.width:
            raise UserError(f"{path}: no features beside the column {column}.")
        self._rows = frame.to_numpy(dtype=np.float64, na_value=np.nan)

    def row(self, number: int) -> NDArray[np.float64]:
        """The features of a row, shape (D,)."""
        return self._rows[number]


def open_source(args: argparse.Namespace) -> ArrayFolder | TableRows:
    """The features that the command line names."""
    source: Path = args.source
    database = source.is_dir() and (source / audformat_files.HEADER).is_file()
    if args.table and not database:
        raise UserError(f"--table: {source} is not the folder of an audformat database (no db.yaml in it).")
    if source.is_dir() and not database:
        return ArrayFolder(source, args.pool)
    if args.pool:
        raise UserError(f"--pool: only for .npy files of frames; {source} has one row per file.")
    if database:
        header = audformat_files.read_header(source)
        if not args.table:
            raise UserError(f"{source}: name the table with --table: {', '.join(header['tables']) or 'it has none'}.")
        source = audformat_files.table_file(source, header, args.table)
    return TableRows(source, args.file_column, args.drop)


# ---------------------------------------------------------------------------------------------------------------------
# Joining


def possible_names(entry: str) -> list[str]:
    """Names of .mat files that an entry can mean, the longest first.

    `clips/s1/a.wav` can be the utterance `clips_s1_a.wav`, `s1_a.wav` (so does tools.prepare_corpus distinguish
    recordings of the same name) or `a.wav`.
    """
    parts = [part for part in entry.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return [features.feature_name("_".join(parts[start:])) for start in range(len(parts))]


def join(source: Path, entries: Sequence[str], utterances: Sequence[str] | None) -> dict[str, int]:
    """Name of each .mat file to write -> number of its entry. What has no partner is reported.

    Args:
        source: of the entries, for messages.
        entries: path or name of the file of each row.
        utterances: names in the label file; None to import all entries.
    Raises:
        UserError: two entries are the same utterance, or none is in the label file.
    """
    wanted = None if utterances is None else {features.feature_name(name): name for name in utterances}
    found: dict[str, int] = {}
    unknown = []
    for number, entry in enumerate(entries):
        names = possible_names(entry)
        name = names[-1] if wanted is None else next((name for name in names if name in wanted), None)
        if name is None:
            unknown.append(entry)
        elif name in found:
            raise UserError(
                f"{source}: {entries[found[name]]} and {entry} are both {name.removesuffix('.mat')}; expected one row "
                "per utterance (no segments, and no file of the same name in two folders)."
            )
        else:
            found[name] = number
    if wanted is not None:
        missing = [name for file, name in wanted.items() if file not in found]
        if not found:
            raise UserError(
                f"{source}: no row belongs to an utterance of the label file; rows are called {first_few(entries, 2)}, "
                f"utterances {first_few(missing, 2)}."
            )
        if unknown:
            notify(f"note: {source}: left out {plural(len(unknown), 'row')} not in the labels ({first_few(unknown)}).")
        if missing:
            notify(f"warning: {source}: no row for {plural(len(missing), 'utterance')} ({first_few(missing)}).")
    tables.check_names(source, list(found))
    return found


def usable(source: Path, rows: ArrayFolder | TableRows, numbers: Sequence[int]) -> list[int]:
    """The entries that have features. Those that are all NaN are left out, as recordings too short for their features.

    Raises:
        UserError: infinite values, or no usable entry.
    """
    empty, partial, infinite = [], [], []
    for number in tqdm(numbers, "check", unit="file", leave=False, delay=0.5, disable=None):
        values = rows.row(number)
        if not np.isfinite(values).all():
            kind = infinite if np.isinf(values).any() else empty if np.isnan(values).all() else partial
            kind.append(number)

    def described(kind: list[int]) -> str:
        return f"{plural(len(kind), 'row')} ({first_few([rows.entries[number] for number in kind])})"

    if infinite:
        raise UserError(f"{source}: infinite values in {described(infinite)}; correct or remove them.")
    if len(empty) == len(numbers):
        raise UserError(f"{source}: every row is NaN; make the features again.")
    if empty:
        notify(f"warning: {source}: left out {described(empty)} in which every feature is NaN.")
    if partial:
        notify(
            f"warning: {source}: NaN in some features of {described(partial)}; stages set them to the mean of Train."
        )
    without = set(empty)
    return [number for number in numbers if number not in without]


def main(args: argparse.Namespace) -> None:
    """Read, join by file name, check, write."""
    utterances = None
    if args.corpus or args.labels:
        labels = args.labels or utils.find_label_file(args.corpus)
        utterances = utils.read_labels(labels, needs_split=False)["FileName"].tolist()
    rows = open_source(args)
    files = join(args.source, rows.entries, utterances)
    numbers = set(usable(args.source, rows, list(files.values())))
    folder = prepare_folder(args.feature_dir)
    if any(folder.glob("*.mat")) and (before := features.read_feature_set(folder)) != args.name:
        raise UserError(f"{folder}: holds features of {before or 'an unnamed set'}; name a different FEAT_DIR.")
    claim_folder(folder, args.name, rows.width)
    for name, number in tqdm(files.items(), args.name, unit="file", delay=0.5, disable=None):
        if number in numbers:
            target = Path(features.feature_file(folder, name))
            matfile.write_mat(target, features.FEATURE_KEY, rows.row(number)[None])
    print(f"{plural(len(numbers), 'utterance')} of {rows.width} features ({args.name}); wrote {folder}")


if __name__ == "__main__":
    cli.run(main, ARGS)
