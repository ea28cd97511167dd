"""What label files say: consensus labels, splits and individual ratings, in the formats of MSP-Podcast 1.6 to 2.0."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from deepmi.ccc import UNKNOWN_SPEAKER
from deepmi.features import feature_name
from deepmi.norm_stats import LABEL_RANGE
from deepmi.process import UserError, notify
from deepmi.storage import read_json_object
from deepmi.tables import EMPTY, UNKNOWN, check_columns, check_names, csv_lines, parse_rating, read_csv, without_words

CONSENSUS_COLUMNS = ("FileName", "EmoClass", "EmoAct", "EmoVal", "EmoDom", "SpkrID", "Gender", "Split_Set")
DETAILED_COLUMNS = ("FileName", "Worker", "EmoClass_Major", "EmoClass_Second", "EmoAct", "EmoDom", "EmoVal")
SPLITS = {  # how tables write the splits, in any case; all other names are kept
    "Train": ("train", "training"),
    "Validation": ("validation", "valid", "val", "development", "devel", "dev"),
    "Test1": ("test1", "test", "testing", "evaluation", "eval"),
}


# ---------------------------------------------------------------------------------------------------------------------
# Consensus labels


def read_labels(path: Path, needs_split: bool = True) -> pd.DataFrame:
    """Consensus labels of any release, one row per utterance.

    Args:
        path: labels_consensus or labels_concensus, .csv or .json (a dict FileName -> fields).
        needs_split: whether Split_Set must be there; if not, it may be missing or empty.
    Returns:
        Table of text columns: FileName, Split_Set, SpkrID (`Unknown` if not given), and those of EmoClass, EmoAct,
        EmoVal, EmoDom, Gender that the file has.
    Raises:
        UserError: unreadable, no FileName or Split_Set, a duplicate or unsafe file name.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        content = read_json_object(path)
        if not all(isinstance(fields, dict) for fields in content.values()):
            raise UserError(f"{path}: expected a dict of fields per file name (EmoAct, EmoVal, Split_Set, ...).")
        rows = [{**fields, "FileName": name} for name, fields in content.items()]
        table = pd.DataFrame(rows, columns=None if rows else ["FileName"])
        table = table.astype(object).where(table.notna(), "").map(lambda value: str(value).strip())
    else:
        table = read_csv(path, CONSENSUS_COLUMNS[:1])
    if not needs_split and "Split_Set" not in table:
        table["Split_Set"] = ""
    check_columns(path, table, ("FileName", "Split_Set"))
    if table.empty:
        raise UserError(f"{path}: no utterances in it.")
    names = table["FileName"]
    check_names(path, names.tolist())
    if names.duplicated().any():
        first, count = names[names.duplicated()].iloc[0], names.duplicated().sum()
        raise UserError(f"{path}: {count} duplicate file names, the first {first}; expected one row per file.")
    files = names.map(feature_name)
    if files.duplicated().any():
        first, second = names[files == files[files.duplicated()].iloc[0]][:2]
        raise UserError(f"{path}: {first} and {second} would share one feature file; rename one.")
    for column in {"EmoClass", "SpkrID", "Gender", "Split_Set"} & {*table.columns}:
        table[column] = without_words(table[column], UNKNOWN if column in ("SpkrID", "Split_Set") else EMPTY)
    unsplit = names[table["Split_Set"] == ""]
    if len(unsplit) and needs_split:
        notify(f"warning: {path}: {len(unsplit)} rows have no Split_Set, the first {unsplit.iloc[0]}.")
    if "SpkrID" not in table:
        table["SpkrID"] = ""
    table["SpkrID"] = table["SpkrID"].replace("", UNKNOWN_SPEAKER)
    return table[[column for column in CONSENSUS_COLUMNS if column in table.columns]]


def split_name(name: str) -> str:
    """The usual name of a split: `dev` is Validation, `test-2` is Test2; unknown names are kept."""
    if numbered := re.fullmatch(r"test[ _-]?(\d+)", name.casefold()):
        return f"Test{numbered[1]}"
    return next((split for split, synonyms in SPLITS.items() if name.casefold() in synonyms), name)


def select_split(table: pd.DataFrame, split: str, source: object = "labels") -> pd.DataFrame:
    """The rows of one split.

    Args:
        table: from `read_labels`.
        split: `Train`, `Validation` (or `Development`), `Test1`, ... in any case, or `all`. `Test` and `Test1` are the
            same in a corpus with one test split (release 1.6).
        source: the file, for the message.
    Raises:
        UserError: no such split.
    """
    if split.casefold() == "all":
        return table
    as_written = table["Split_Set"].str.casefold()
    rows = table[as_written == split.casefold()]
    if rows.empty:  # by a different name
        present = table["Split_Set"].map(split_name).str.casefold()
        ambiguous = split.casefold() == "test" and (present == "test2").any()
        rows = table[(present == split_name(split).casefold()) & (not ambiguous)]
    if rows.empty:
        counts = table["Split_Set"].value_counts().to_dict()
        found = ", ".join(f"{name or '(empty)'} {count}" for name, count in counts.items())
        raise UserError(f"{source}: no rows in split {split}; found {found}.")
    return rows


def has_labels(rows: pd.DataFrame, emo_attr: str) -> bool:
    """Whether any row has a label of the attribute."""
    column = f"Emo{emo_attr}"
    return column in rows and not rows[column].str.casefold().isin(EMPTY).all()


def attribute_labels(
    rows: pd.DataFrame, emo_attr: str, source: object = "labels", scale: tuple[float, float] = LABEL_RANGE
) -> pd.Series:
    """One attribute's labels.

    Args:
        rows: from `select_split`.
        emo_attr: `Act`, `Dom` or `Val`.
        source: the file, for the messages.
        scale: lowest and highest possible label.
    Returns:
        float64 labels in the unit of the file, indexed by file name, without rows whose label is empty.
    Raises:
        UserError: no such column, no labels in it, a label that is not a number or is outside the scale.
    """
    column = f"Emo{emo_attr}"
    check_columns(source, rows, (column,))
    if not has_labels(rows, emo_attr):
        raise UserError(
            f"{source}: column {column} is empty for these {len(rows)} rows, so there is nothing to do for {emo_attr}."
        )
    text = rows.set_index("FileName")[column]
    text = text[~text.str.casefold().isin(EMPTY)]
    values = pd.to_numeric(text, errors="coerce").astype(np.float64)
    if values.isna().any():
        name = values.index[values.isna()][0]
        raise UserError(f"{source}: {column} of {name} is {text[name][:40]!r}; expected a number.")
    outside = values[(values < scale[0]) | (values > scale[1])]
    if len(outside):
        raise UserError(
            f"{source}: {column} of {outside.index[0]} is {outside.iloc[0]:g}, outside {scale[0]:g}..{scale[1]:g} "
            f"({len(outside)} such rows)."
        )
    return values


# ---------------------------------------------------------------------------------------------------------------------
# Individual ratings


def parse_detail(path: Path, name: str, detail: str) -> dict:
    """`WORKERxxx; primary; secondary; A:x; V:x; D:x;`, in which the secondary class may be absent.

    MSP-IMPROV writes the same with the naturalness, `N:x`, which is ignored.
    """
    row: dict[str, object] = dict.fromkeys(DETAILED_COLUMNS, "")
    row |= {"FileName": name, "EmoAct": np.nan, "EmoDom": np.nan, "EmoVal": np.nan}
    words = []
    for part in map(str.strip, detail.split(";")):
        rating = re.fullmatch(r"([AVDN])\s*:\s*(.*)", part)
        if not rating:
            words.append(part)
        elif rating[1] != "N":
            row[{"A": "EmoAct", "V": "EmoVal", "D": "EmoDom"}[rating[1]]] = parse_rating(path, name, rating[2])
    return row | dict(zip(("Worker", "EmoClass_Major", "EmoClass_Second"), words))


def _detailed_csv(path: Path) -> list[dict]:
    lines = csv_lines(path)
    _, header = next(lines, (0, []))
    if "EmoDetail" not in header:
        table = read_csv(path, ("FileName",))
        worker = "WorkerID" if "WorkerID" in table.columns else "Workers"
        check_columns(path, table, (worker,))
        return table.rename(columns={worker: "Worker"}).to_dict("records")
    if "FileName" not in header:
        raise UserError(f"{path}: no column FileName; found {', '.join(header)}.")
    # A secondary class may list several emotions with commas, unquoted: what the other columns leave is the detail.
    start, name = header.index("EmoDetail"), header.index("FileName")
    after = len(header) - 1 - start  # columns behind the detail, counted from the end of a line
    rows = []
    for number, fields in lines:
        if len(fields) < len(header):
            raise UserError(f"{path}: line {number} has {len(fields)} fields; expected at least {len(header)}.")
        detail = ",".join(fields[start : len(fields) - after])
        rows.append(parse_detail(path, fields[name if name < start else name - len(header)], detail))
    return rows


def _detailed_json(path: Path) -> list[dict]:
    rows = []
    for name, workers in read_json_object(path).items():
        if not isinstance(workers, dict) or not all(isinstance(fields, dict) for fields in workers.values()):
            raise UserError(f"{path}: {name} is not a dict of workers; expected FileName -> worker -> fields.")
        rows += [{**fields, "FileName": name, "Worker": worker} for worker, fields in workers.items()]
    return rows


def read_detailed_labels(path: Path) -> pd.DataFrame:
    """The individual ratings of any release, one row per rating.

    Args:
        path: labels_detailed, .csv (`EmoDetail` of 1.7-1.12, or separate columns of 1.6 and 2.0) or .json.
    Returns:
        Table with FileName, Worker, EmoClass_Major, EmoClass_Second (text) and EmoAct, EmoDom, EmoVal (float64, NaN
        if not rated).
    Raises:
        UserError: unreadable, a missing column, a rating that is not a number.
    """
    path = Path(path)
    rows = _detailed_json(path) if path.suffix.lower() == ".json" else _detailed_csv(path)
    if not rows:
        raise UserError(f"{path}: no ratings in it.")
    table = pd.DataFrame(rows).reindex(columns=DETAILED_COLUMNS, fill_value="")
    for column in ("EmoAct", "EmoDom", "EmoVal"):
        table[column] = [parse_rating(path, name, value) for name, value in zip(table["FileName"], table[column])]
    texts = ["FileName", "Worker", "EmoClass_Major", "EmoClass_Second"]
    table[texts] = table[texts].fillna("").astype(str).apply(lambda column: column.str.strip())
    check_names(path, table["FileName"].tolist())
    return table


def rater_statistics(path: Path, emo_attr: str) -> pd.DataFrame:
    """How many raters rated each utterance, and how much they disagree.

    Args:
        path: labels_detailed, as for `read_detailed_labels`.
        emo_attr: `Act`, `Dom` or `Val`.
    Returns:
        Number of ratings `raters`, and standard deviation `rater_sd` (population moments, in the unit of the ratings;
        NaN for fewer than two), indexed by file name.
    Raises:
        UserError: as `read_detailed_labels`.
    """
    ratings = read_detailed_labels(path).groupby("FileName")[f"Emo{emo_attr}"]
    # Rounded, because the same ratings in a different order differ in the last bits, and ties must stay ties.
    spread = ratings.std(ddof=0).round(9)
    return pd.DataFrame({"raters": ratings.count(), "rater_sd": spread[ratings.count() >= 2]})


def rater_spread(path: Path, emo_attr: str) -> pd.Series:
    """Disagreement of the raters of each utterance.

    Args:
        path: labels_detailed, as for `read_detailed_labels`.
        emo_attr: `Act`, `Dom` or `Val`.
    Returns:
        Standard deviation (population moments) of the ratings in their own unit, float64, indexed by file name;
        utterances with fewer than two ratings are left out.
    Raises:
        UserError: as `read_detailed_labels`, or no utterance has two ratings of this attribute.
    Source: Lotfian & Busso, Interspeech 2018, for its use as a curriculum.
    """
    spread = rater_statistics(path, emo_attr)["rater_sd"].dropna()
    if spread.empty:
        raise UserError(f"{path}: no utterance has two ratings of {emo_attr}, so raters can't be compared.")
    return spread


def draw_ratings(path: Path, emo_attr: str, seed: int) -> pd.Series:
    """The rating of one random rater per utterance.

    Args:
        path: labels_detailed, as for `read_detailed_labels`.
        emo_attr: `Act`, `Dom` or `Val`.
        seed: of the draw.
    Returns:
        Ratings in their own unit, float64, indexed by file name; utterances without a rating are left out.
    Raises:
        UserError: as `read_detailed_labels`.
    """
    ratings = read_detailed_labels(path).dropna(subset=f"Emo{emo_attr}").sort_values(["FileName", "Worker"])
    return ratings.groupby("FileName").sample(1, random_state=seed).set_index("FileName")[f"Emo{emo_attr}"]
