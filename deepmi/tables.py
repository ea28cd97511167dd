"""Tables of text from any program: CSV with its variants, empty fields, numbers, file names."""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from deepmi.process import UNPRINTABLE, UserError
from deepmi.storage import read_text

# How programs write an empty field, in any case; for speakers and splits, `unknown` means the same
EMPTY = ("", "-", "nan", "-nan", "nat", "na", "n/a", "<na>", "#na", "#n/a", "none", "null")
UNKNOWN = (*EMPTY, "unknown")
LARGEST_LABEL = 1e9  # on any scale
LONGEST_NAME = 255  # bytes, the limit of the usual file systems
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def csv_lines(path: Path, delimiter: str = ",", strict: bool = True) -> Iterator[tuple[int, list[str]]]:
    """Line number and stripped fields of each line that is not blank, without Excel's first line `sep=;`."""
    text = re.sub(r"\A\s*\"?sep=.\"?\r?\n", "\n", read_text(path), flags=re.IGNORECASE)
    stream = io.StringIO(text, newline=None)  # line ends of any system
    reader = csv.reader(stream, delimiter=delimiter, skipinitialspace=True, strict=strict)
    try:
        for line in reader:
            if any(map(str.strip, line)):
                yield reader.line_num, [field.strip() for field in line]
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV table (line {reader.line_num}: {error}).") from None


def find_delimiter(path: Path, needed: Sequence[str]) -> str:
    """The delimiter of a table: comma, semicolon, tab or bar, whichever gives the most columns.

    Args:
        path: the file.
        needed: columns that it should have; they count before all others, because titles may contain commas.
    """

    def columns(delimiter: str) -> tuple[int, int]:
        _, header = next(csv_lines(path, delimiter, strict=False), (0, []))
        return len({*needed} & {*header}), len(header)

    return max(",;\t|", key=columns)


def read_csv(path: Path, needed: Sequence[str], delimiter: str = ",") -> pd.DataFrame:
    """A table with a header line, as stripped text, without columns that have neither title nor content.

    Args:
        path: the file.
        needed: columns that it must have.
        delimiter: between the fields.
    Raises:
        UserError: unreadable, a missing or duplicate column, or a row whose length differs from the header's.
    """
    lines = list(csv_lines(path, delimiter))
    if not lines:
        raise UserError(f"{path}: empty; expected the columns {', '.join(needed)}.")
    (_, header), *lines = lines
    for number, fields in lines:
        if len(fields) < len(header) or any(fields[len(header) :]):
            raise UserError(
                f"{path}: line {number} has {len(fields)} fields, the header {len(header)}; is a comma not quoted?"
            )
    columns = zip(*(fields[: len(header)] for _, fields in lines)) if lines else [()] * len(header)
    filled = [(title, column) for title, column in zip(header, columns) if title or any(column)]
    titles = [title for title, _ in filled]
    if not titles[-1]:
        raise UserError(f"{path}: its last column has content but no title; is a separator in a field not quoted?")
    duplicates = sorted(title for title, count in Counter(titles).items() if count > 1 and title)
    if duplicates:
        raise UserError(f"{path}: duplicate column {', '.join(duplicates)} (more than once in the header).")
    table = pd.DataFrame(dict(filled), dtype=object)
    check_columns(path, table, needed)
    return table


def check_columns(path: object, table: pd.DataFrame, needed: Sequence[str]) -> None:
    """Raise `UserError` if the table lacks a column."""
    lacking = [column for column in needed if column not in table.columns]
    if lacking:
        found = ", ".join(map(str, table.columns)) or "no columns"
        raise UserError(f"{path}: no column {', '.join(lacking)}; found {found}.")


def without_words(column: pd.Series, words: Sequence[str]) -> pd.Series:
    """A column of text in which fields that are one of these words, in any case, are empty."""
    return column.where(~column.str.casefold().isin(words), "")


def check_names(path: object, names: Sequence[str]) -> None:
    """Raise `UserError` unless all are plain file names, so that none leads out of the corpus."""
    for line, name in enumerate(names, start=1):
        too_long = len(name.encode(errors="replace")) > LONGEST_NAME
        if too_long or name in ("", ".", "..") or re.search(rf"[/\\{UNPRINTABLE}]", name):
            raise UserError(
                f"{path}: entry {line} has the file name {name[:60]!r}; expected a plain name such as X.wav."
            )


def parse_rating(path: Path, name: str, text: object) -> float:
    """A label as a number, NaN if the field is empty; raises `UserError` if it is not a number."""
    if isinstance(text, float) and math.isnan(text):
        return text
    text = "" if text is None else str(text).strip()
    if text.casefold() in EMPTY:
        return float("nan")
    # float() would accept 1_000, digits of other scripts and infinity as well.
    if not _NUMBER.fullmatch(text) or not abs(float(text)) < LARGEST_LABEL:
        raise UserError(f"{path}: a rating of {name} is {text[:40]!r}; expected a number.")
    return float(text)
