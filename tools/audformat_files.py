"""Tables of openSMILE, nkululeko and audformat (CSV or Parquet), and the header of an audformat database.

The library audformat reads the same files, but it unpickles tables and builds any Python object that a header names. So
the header is read as plain YAML here, and pickled tables are refused.

Source: https://audeering.github.io/audformat/data-format.html
"""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

import pandas as pd
import yaml
from pyarrow import parquet

from deepmi import tables
from deepmi.process import UserError
from deepmi.storage import read_text

HEADER = "db.yaml"
TABLE_ENDINGS = (".csv", ".tsv", ".txt", ".parquet")
PICKLE_ENDINGS = (".pkl", ".pickle")
FILE_COLUMNS = ("file", "filename", "file_name", "name", "path", "")  # as tables call it; "" is an untitled index
# Columns that are no features: the segment of a row, and a row number. They are left out, in any case.
SEGMENT_COLUMNS = ("start", "end", "frametime", "")
MOST_GROWTH, SMALL = 100, 2**28  # a Parquet file may unpack to this many times its size, or to this many bytes


def read_frame(path: Path) -> pd.DataFrame:
    """A table, its index included as columns.

    Args:
        path: text with a header (comma, semicolon, tab or bar), or Parquet.
    Raises:
        UserError: unreadable, damaged, empty, or pickled, which could run code.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder.")
    ending = path.suffix.lower()
    if ending in PICKLE_ENDINGS:
        raise UserError(f"{path}: pickled, so reading it could run code; save it as CSV or Parquet.")
    if ending not in TABLE_ENDINGS:
        raise UserError(f"{path}: expected a table ending in {', '.join(TABLE_ENDINGS)}.")
    try:
        frame = _read_parquet(path) if ending == ".parquet" else _read_text(path)
    except Exception as error:  # pandas and pyarrow raise errors of many kinds over a damaged file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{path}: not a table that can be read ({reason}).") from None
    frame.columns = [str(column).strip() for column in frame.columns]
    if duplicates := sorted(set(frame.columns[frame.columns.duplicated()])):
        raise UserError(f"{path}: duplicate column {', '.join(duplicates)}.")
    if frame.empty:
        raise UserError(f"{path}: no rows.")
    return frame


def _read_parquet(path: Path) -> pd.DataFrame:
    with parquet.ParquetFile(path) as stored:
        size = stored.metadata.num_rows * max(stored.metadata.num_columns, 1) * 8  # bytes of float64
        if size > max(MOST_GROWTH * path.stat().st_size, SMALL):
            raise ValueError(f"{stored.metadata.num_rows:,} rows, more than its size justifies")
        frame = stored.read().to_pandas()
    named = any(name is not None for name in frame.index.names)
    if not named and isinstance(frame.index, pd.RangeIndex):
        return frame
    return frame.reset_index(names=[name or "" for name in frame.index.names])


def _read_text(path: Path) -> pd.DataFrame:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        header = stream.readline()
        delimiter = max(",;\t|", key=header.count)
        titles = next(csv.reader([header], delimiter=delimiter), [])
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # a row of more fields than the header
            # Named here, because pandas invents names for untitled and duplicate columns.
            options = {"header": None, "names": range(len(titles)), "index_col": False, "low_memory": False}
            frame = pd.read_csv(stream, sep=delimiter, **options)
    return frame.set_axis(titles, axis=1)


def file_column(path: Path, frame: pd.DataFrame, given: str | None = None) -> str:
    """The column that names the file of each row: the given one, or one of FILE_COLUMNS, in any case.

    Raises:
        UserError: there is none.
    """
    if given is not None:
        tables.check_columns(path, frame, [given])
        return given
    by_name = {column.casefold(): column for column in reversed(frame.columns)}
    for name in FILE_COLUMNS:
        column = by_name.get(name)
        if column is not None and not pd.api.types.is_numeric_dtype(frame[column]):
            return column
    raise UserError(
        f"{path}: no column with file names; found {', '.join(map(str, frame.columns[:5]))}, ...; name it with "
        "--file-column."
    )


# ---------------------------------------------------------------------------------------------------------------------
# Databases


def read_header(folder: Path) -> dict:
    """The header of an audformat database, with `schemes`, `splits`, `tables` and `misc_tables` as dicts.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = folder / HEADER
    if not path.is_file():
        raise UserError(f"{folder}: no {HEADER} in it; expected the folder of an audformat database.")
    try:
        header = yaml.load(read_text(path), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a header of an audformat database ({reason}).") from None
    header = header if isinstance(header, dict) else {}
    for part in ("schemes", "splits", "tables", "misc_tables"):
        entries = header.setdefault(part, None) or {}
        if not (isinstance(entries, dict) and all(isinstance(entry, dict) for entry in entries.values())):
            raise UserError(f"{path}: {part} is not a dict of dicts; expected the header of an audformat database.")
        header[part] = {str(name): entry for name, entry in entries.items()}
    for name, table in (header["tables"] | header["misc_tables"]).items():
        columns = table.get("columns") or {}
        if not (isinstance(columns, dict) and all(isinstance(entry, dict) for entry in columns.values())):
            raise UserError(f"{path}: columns of the table {name} is not a dict of dicts.")
        table["columns"] = {str(column): entry for column, entry in columns.items()}
        levels = table.get("levels")  # of a table that has no files, a list in early versions of the format
        table["levels"] = [str(level) for level in levels] if isinstance(levels, (dict, list)) else []
    return header


def table_file(folder: Path, header: dict, name: str) -> Path:
    """The file of a table of a database.

    Raises:
        UserError: no such table, or it is there only as pickle.
    """
    known = [*header["tables"], *header["misc_tables"]]
    if name not in known:
        raise UserError(f"{folder}: no table {name}; found {', '.join(known) or 'none'}.")
    stem = f"{Path(HEADER).stem}.{name}"
    for ending in (".parquet", ".csv"):
        if Path(stem).name == stem and (folder / f"{stem}{ending}").is_file():
            return folder / f"{stem}{ending}"
    if (folder / f"{stem}.pkl").is_file():
        raise UserError(
            f"{folder}: the table {name} is there only as pickle, which could run code; save the database with "
            "storage_format='parquet'."
        )
    raise UserError(f"{folder}: no {stem}.parquet or {stem}.csv in it; the database has to be complete.")
