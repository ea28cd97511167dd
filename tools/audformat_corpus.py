"""Read the labels of an audformat database as one table of utterances, as the readers of `tools.corpora` do.

Attributes come from the tables that have columns of them; their scale from the `minimum` and `maximum` of the scheme;
splits from the `split_id` of a table, or a column; speakers from a column; genders from a column, or from what the
scheme of the speakers says about each of them.

Source: https://audeering.github.io/audformat/data-format.html
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

import utils
from deepmi import tables
from deepmi.norm_stats import is_label_scale
from deepmi.process import UserError, first_few
from tools import audformat_files
from tools.corpora import ATTRIBUTE_COLUMNS, complete, span

FILE = "file"  # the column of an audformat table that names the recording
NAMES = {  # column of the consensus labels -> what databases call it, in any case
    "EmoAct": ("arousal", "activation"), "EmoVal": ("valence",), "EmoDom": ("dominance",),
    "SpkrID": ("speaker",), "Gender": ("gender", "sex"), "EmoClass": ("emotion",), "Split_Set": ("split",),
}  # fmt: skip
GENDERS = {"f": "Female", "female": "Female", "m": "Male", "male": "Male"}
SPLIT_TYPES = ("train", "dev", "test")  # of a split in the header; `other` and `undefined` leave its name


class Part(NamedTuple):
    """A column of a table."""

    table: str
    column: str
    scheme: dict  # empty if it has none


def read_database(
    root: Path, given: dict[str, str], chosen: Sequence[str], scale: Sequence[float] | None
) -> tuple[pd.DataFrame, tuple[float, float]]:
    """Consensus labels of an audformat database, and their scale.

    Args:
        root: folder with db.yaml and the tables.
        given: column of the consensus labels -> its name in the database, where that is not one of NAMES. If
            attributes are among them, only these are read.
        chosen: tables with the labels; empty for all that have attributes.
        scale: lowest and highest possible label; None for those in the header.
    Raises:
        UserError: no such database, no attributes in it, no scale, or two values for one file.
    """
    header = audformat_files.read_header(root)
    parts = _find_parts(root, header, given, chosen)
    labeled = list(dict.fromkeys(part.table for column in ATTRIBUTE_COLUMNS for part in parts[column]))
    scale = tuple(scale) if scale else _scale_of(root, [part for name in ATTRIBUTE_COLUMNS for part in parts[name]])
    frames = {name: _read_text(audformat_files.table_file(root, header, name)) for name in labeled}
    for name, frame in frames.items():
        if (again := frame[FILE].duplicated()).any():
            raise UserError(
                f"{root}: the table {name} has several segments of {frame[FILE][again].iloc[0]}; cut the recordings, "
                "so that each utterance has its own, or choose tables without segments with --table."
            )
    found: dict[str, pd.Series] = {}
    for column in NAMES:
        values = [_values(root, header, frames, part, column in ATTRIBUTE_COLUMNS) for part in parts[column]]
        if column == "Split_Set":
            values += _splits_of_tables(header, frames, labeled)
        if values:
            found[column] = _one_per_file(root, column, values)
    files = list(dict.fromkeys(file for name in labeled for file in frames[name][FILE]))
    table = pd.DataFrame({name: column.reindex(files) for name, column in found.items()}, index=files)
    for column in table.columns.difference(ATTRIBUTE_COLUMNS):
        table[column] = table[column].fillna("").astype(str)
    if "SpkrID" in table:
        _add_facts_of_speakers(root, header, parts, table)
    if "Gender" in table:
        table["Gender"] = [GENDERS.get(gender.casefold(), gender) for gender in table["Gender"]]
    return complete(table.rename_axis("FileName").reset_index()), scale


def _find_parts(root: Path, header: dict, given: dict[str, str], chosen: Sequence[str]) -> dict[str, list[Part]]:
    """The columns of the database that hold each column of the consensus labels.

    Attributes and classes come from the chosen tables, or all; speakers, genders and splits from any table of files.
    """
    for name in chosen:
        audformat_files.table_file(root, header, name)
    only_given = not given.keys().isdisjoint(ATTRIBUTE_COLUMNS)
    names = {ours: (given[ours],) if ours in given else theirs for ours, theirs in NAMES.items()}
    if only_given:
        names = {ours: theirs for ours, theirs in names.items() if ours in given or ours not in ATTRIBUTE_COLUMNS}
    of_files = header["tables"] | {
        name: table for name, table in header["misc_tables"].items() if FILE in table["levels"]
    }
    parts: dict[str, list[Part]] = {ours: [] for ours in NAMES}
    for name, table in of_files.items():
        for column, entry in table["columns"].items():
            for ours, theirs in names.items():
                is_label = ours in ATTRIBUTE_COLUMNS or ours == "EmoClass"
                if (column in theirs or column.casefold() in theirs) and (name in (chosen or of_files) or not is_label):
                    scheme = header["schemes"].get(str(entry.get("scheme_id")), {})
                    parts[ours].append(Part(name, column, scheme))
    labeled = {part.table for ours in ATTRIBUTE_COLUMNS for part in parts[ours]}
    parts["EmoClass"] = [part for part in parts["EmoClass"] if part.table in labeled]
    lacking = [theirs for ours, theirs in given.items() if not parts[ours]]
    if lacking or not labeled:
        columns = [f"{name}: {', '.join(table['columns'])}" for name, table in of_files.items()]
        wanted = ", ".join(lacking) or "arousal, valence or dominance"
        where = f"the table {', '.join(chosen)}" if chosen else "its tables"
        raise UserError(
            f"{root}: no column {wanted} in {where}; found {'; '.join(columns) or 'no tables'}. Name columns of "
            "attributes with --arousal-column, --valence-column or --dominance-column."
        )
    return parts


def _scale_of(root: Path, parts: Sequence[Part]) -> tuple[float, float]:
    """Lowest and highest possible label by the schemes of the attributes."""
    scales: dict[tuple, str] = {}
    for part in parts:
        ends = part.scheme.get("minimum"), part.scheme.get("maximum")
        if not (all(type(end) in (int, float) for end in ends) and is_label_scale(*ends)):
            raise UserError(
                f"{root}: the scheme of {part.column} ({part.table}) has no minimum below a maximum; name the label "
                "scale with --label-scale LOW HIGH."
            )
        scales.setdefault(ends, part.column)
    if len(scales) > 1:
        found = ", ".join(f"{column} {span(ends)}" for ends, column in scales.items())
        raise UserError(
            f"{root}: attributes on different scales ({found}); prepare one corpus per scale: name its attributes "
            "with --arousal-column, --valence-column or --dominance-column."
        )
    return next(iter(scales))


def _read_text(path: Path) -> pd.DataFrame:
    """A table of a database as text."""
    if path.suffix == ".csv":
        return tables.read_csv(path, ())
    frame = audformat_files.read_frame(path)
    return frame.astype(object).where(frame.notna(), "").map(lambda value: str(value).strip())


def _values(root: Path, header: dict, frames: dict[str, pd.DataFrame], part: Part, is_number: bool) -> pd.Series:
    """A column by file, without empty fields; its table is read unless `frames` has it."""
    path = audformat_files.table_file(root, header, part.table)
    if part.table not in frames:
        frames[part.table] = _read_text(path)
    frame = frames[part.table]
    tables.check_columns(path, frame, (FILE, part.column))
    column = frame.set_index(FILE)[part.column]
    if is_number:
        return pd.Series([tables.parse_rating(path, *row) for row in column.items()], column.index, float).dropna()
    column = column.str.replace(r"^(\d+)\.0+$", r"\1", regex=True)  # whole numbers, some of which are missing
    return column[~column.str.casefold().isin(tables.EMPTY)]


def _splits_of_tables(header: dict, frames: dict[str, pd.DataFrame], labeled: Sequence[str]) -> list[pd.Series]:
    """The split of each file in the tables that belong to one, such as `emotion.train`."""
    found = []
    for name in labeled:
        if split := header["tables"].get(name, {}).get("split_id"):
            kind = str(header["splits"].get(str(split), {}).get("type"))
            named = utils.split_name(str(split))  # `test-2` is Test2, which the kind does not say
            if named not in utils.SPLITS and not named.startswith("Test") and kind in SPLIT_TYPES:
                named = utils.split_name(kind)
            found.append(pd.Series(named, frames[name][FILE]))
    return found


def _one_per_file(root: Path, name: str, values: Sequence[pd.Series]) -> pd.Series:
    """Columns of several tables as one, by file; raises `UserError` if they contradict each other."""
    column = pd.concat(values).rename("value").rename_axis(FILE).reset_index().drop_duplicates()
    if (again := column[FILE].duplicated()).any():
        file = column[FILE][again].iloc[0]
        both = first_few(column["value"][column[FILE] == file].tolist())
        raise UserError(f"{root}: {name} of {file} is {both} in different tables; choose tables with --table.")
    return column.set_index(FILE)["value"]


def _add_facts_of_speakers(root: Path, header: dict, parts: dict[str, list[Part]], table: pd.DataFrame) -> None:
    """Fill empty genders and splits from the labels of the scheme of the speakers: a dict, or a table."""
    labels = parts["SpkrID"][0].scheme.get("labels")
    if isinstance(labels, str):
        frame = _read_text(audformat_files.table_file(root, header, labels))
        levels = header["misc_tables"].get(labels, {}).get("levels") or ["speaker"]
        tables.check_columns(f"{root}: table {labels}", frame, levels[:1])
        facts = frame.set_index(levels[0]).to_dict("index")
    else:
        entries = labels.items() if isinstance(labels, dict) else ()
        facts = {str(speaker): about for speaker, about in entries if isinstance(about, dict)}
    for ours in ("Gender", "Split_Set"):
        for name in NAMES[ours]:
            known = {speaker: str(about[name]) for speaker, about in facts.items() if name in about}
            if known:
                filled = table[ours] if ours in table else pd.Series("", table.index)
                table[ours] = filled.where(filled != "", table["SpkrID"].map(known).fillna(""))
