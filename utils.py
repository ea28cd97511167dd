"""Where a corpus lies, what its labels say, how its norm terms and the program's files are called.

Everything outside this file works with MSP-Podcast's layout (releases 1.6 to 2.0) as read here.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from deepmi import features, matfile
from deepmi.process import UNPRINTABLE, UserError, notify
from deepmi.seeds import UNLABELED_SEED
from deepmi.storage import LARGEST_LABELS, digest, prepare_folder, read_json_object, read_text, write_together

FEATURE_FOLDER = Path("Features/OpenSmile_func_IS13ComParE/feat_mat")
PREPARED_LABELS, PREPARED_MARK = "labels_consensus.csv", "prepared.json"  # what tools.prepare_corpus writes
# How tables write that a field is empty, in any case; of speakers and splits `unknown` says the same
EMPTY = ("", "-", "nan", "-nan", "nat", "na", "n/a", "<na>", "#na", "#n/a", "none", "null")
UNKNOWN = (*EMPTY, "unknown")
LABEL_RANGE = (1.0, 7.0)  # the self-assessment manikins of MSP-Podcast
NORM_KEY = "normal_para"
CONSENSUS_COLUMNS = ("FileName", "EmoClass", "EmoAct", "EmoVal", "EmoDom", "SpkrID", "Gender", "Split_Set")
DETAILED_COLUMNS = ("FileName", "Worker", "EmoClass_Major", "EmoClass_Second", "EmoAct", "EmoDom", "EmoVal")
UNKNOWN_SPEAKER = "Unknown"
LARGEST_LABEL = 1e9  # whatever the scale
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
LONGEST_NAME = 255  # bytes, the limit of the usual file systems

NO_CORPUS = (
    "no corpus given. Name one with --corpus DIR or the environment variable DEEPMI_CORPUS (a folder in MSP-Podcast's "
    "layout: Labels, Features); `make demo` builds a small one to try."
)
NO_UNLABELED = (
    "no unlabeled set given. Name one with --unlabeled DIR or the environment variable DEEPMI_UNLABELED, or train on "
    "the labeled set only with --unlabeled-size 0."
)


# ---------------------------------------------------------------------------------------------------------------------
# Where a corpus lies


@dataclass
class Corpus:
    """The parts of a corpus.

    Attributes:
        root: its folder, or None where the parts were named one by one.
        labels: consensus label file.
        features: folder of the .mat files.
    """

    root: Path | None
    labels: Path
    features: Path


def find_corpus(root: Path | None, labels: Path | None = None, feature_dir: Path | None = None) -> Corpus:
    """Find the label file and the feature folder of a corpus.

    Args:
        root: the corpus, e.g. MSP-PODCAST-Publish-1.8.
        labels: label file to use instead of the corpus' own.
        feature_dir: feature folder to use instead of the corpus' own.
    Raises:
        UserError: a part is named nowhere, or not there.
    Source: the releases 1.6 to 2.0 of MSP-Podcast.
    """
    if root is None and (labels is None or feature_dir is None):
        raise UserError(NO_CORPUS)
    if root is not None and not root.is_dir():
        raise UserError(f"{root}: no such folder; --corpus (or DEEPMI_CORPUS) names a corpus in MSP-Podcast's layout.")
    if labels is None:
        labels = find_label_file(root)
    elif not labels.is_file():
        raise UserError(f"{labels}: no such label file.")
    if feature_dir is None:
        found = _find_features(root)
        if len(found) != 1:
            advice = (
                f"Make the features with `python -m tools.extract_features {root / 'Audios'} {root / FEATURE_FOLDER}`, "
                "or name --features DIR."
            )
            if found:
                advice = f"There are {', '.join(map(str, found))}: name one with --features DIR."
            raise UserError(f"{root / FEATURE_FOLDER}: no such folder. {advice}")
        feature_dir = found[0]
    elif not feature_dir.is_dir():
        raise UserError(f"{feature_dir}: no such feature folder.")
    return Corpus(root, labels, feature_dir)


def _find_folder(root: Path, relative: Path) -> Path | None:
    """`root/relative` whatever its case."""
    folder = root
    for part in relative.parts:
        if (folder / part).is_dir():
            folder = folder / part
            continue
        folder = next((child for child in _folders(folder) if child.name.casefold() == part.casefold()), None)
        if folder is None:
            return None
    return folder


def _find_features(root: Path) -> list[Path]:
    """A corpus' feature folder: that of IS13; where there is none, every `Features/*/feat_mat`."""
    if known := _find_folder(root, FEATURE_FOLDER):
        return [known]
    top = _find_folder(root, FEATURE_FOLDER.parent.parent)
    children = _folders(top) if top else []
    return [folder for child in children if (folder := _find_folder(child, Path(FEATURE_FOLDER.name)))]


def feature_folder(root: Path, feature_set: str) -> Path:
    """Where a corpus keeps the features of a set, MSP-Podcast's name for IS13."""
    return root / (FEATURE_FOLDER if feature_set == "IS13" else Path("Features", feature_set, FEATURE_FOLDER.name))


def _folders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir())


def _find_labels(root: Path, stems: Sequence[str]) -> Path | None:
    """A label file called like one of `stems`, .csv before .json, in `root`'s label folder or `root` itself."""
    folders = [child for child in _folders(root) if child.name.casefold() in ("labels", "label")] + [root]
    files = [file for folder in folders for file in sorted(folder.iterdir()) if file.is_file()]
    for ending in (".csv", ".json"):
        for stem in stems:
            for file in files:
                if file.name.casefold() == stem + ending:
                    return file
    return None


def find_label_file(root: Path) -> Path:
    """The consensus label file of a corpus, in either spelling, any case, CSV or JSON.

    Raises:
        UserError: none found.
    """
    found = _find_labels(root, ("labels_consensus", "labels_concensus"))
    if found is None:
        raise UserError(
            f"{root}: no label file; looked for labels_consensus and labels_concensus (.csv, .json) in its folder "
            "Labels. Name another with --labels FILE."
        )
    return found


def is_label_scale(low: float, high: float) -> bool:
    """Whether these can be the lowest and the highest possible label."""
    return -LARGEST_LABEL < low < high < LARGEST_LABEL  # neither infinite nor NaN


def prepared_scale(labels: Path) -> tuple[float, float] | None:
    """Lowest and highest label that a corpus had before tools.prepare_corpus brought its labels to 1..7.

    Args:
        labels: its consensus label file.
    Returns:
        None where that tool did not write the file.
    Raises:
        UserError: its mark beside the file is damaged.
    """
    mark = labels.with_name(PREPARED_MARK)
    if labels.name != PREPARED_LABELS or not mark.is_file():
        return None
    scale = read_json_object(mark).get("label_scale")
    numbers = isinstance(scale, list) and len(scale) == 2 and all(type(value) in (int, float) for value in scale)
    if not (numbers and is_label_scale(*scale)):
        raise UserError(f"{mark}: no label_scale in it; prepare the corpus again.")
    return float(scale[0]), float(scale[1])


def find_detailed_file(root: Path) -> Path | None:
    """The file of the single raters' labels of a corpus, or None."""
    return _find_labels(root, ("labels_detailed",))


# ---------------------------------------------------------------------------------------------------------------------
# Consensus labels


def _csv_rows(path: Path, delimiter: str, strict: bool) -> Iterator[tuple[int, list[str]]]:
    """Line number and stripped fields of each line that is not blank; Excel's first line `sep=;` is passed over."""
    text = re.sub(r"\A\s*\"?sep=.\"?\r?\n", "\n", read_text(path, LARGEST_LABELS), flags=re.IGNORECASE)
    stream = io.StringIO(text, newline=None)  # line ends of any system
    reader = csv.reader(stream, delimiter=delimiter, skipinitialspace=True, strict=strict)
    try:
        yield from (
            (reader.line_num, [field.strip() for field in line]) for line in reader if any(map(str.strip, line))
        )
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV table (line {reader.line_num}: {error}).") from None


def _csv_lines(path: Path, delimiter: str = ",") -> list[tuple[int, list[str]]]:
    return list(_csv_rows(path, delimiter, strict=True))


def find_delimiter(path: Path, needed: Sequence[str]) -> str:
    """What stands between the fields of a table: that of comma, semicolon, tab and bar that gives the most columns.

    Args:
        path: the file.
        needed: columns that it should have; they count before all others, since titles may have commas in them.
    """
    columns = {}
    for delimiter in ",;\t|":
        _, header = next(_csv_rows(path, delimiter, strict=False), (0, []))
        columns[delimiter] = (len({*needed} & {*header}), len(header))
    return max(columns, key=columns.get)


def read_csv(path: Path, needed: Sequence[str], delimiter: str = ",") -> pd.DataFrame:
    """A table with a header line, as stripped text; columns without a title and without content are left out.

    Args:
        path: the file.
        needed: columns that it must have.
        delimiter: between the fields.
    Raises:
        UserError: unreadable, a missing or duplicate column, or a row that is not as long as the header.
    """
    lines = _csv_lines(path, delimiter)
    if not lines:
        raise UserError(f"{path}: empty; expected the columns {', '.join(needed)}.")
    header = lines[0][1]
    rows = []
    for number, fields in lines[1:]:
        if len(fields) < len(header) or any(fields[len(header) :]):
            raise UserError(
                f"{path}: line {number} has {len(fields)} fields, the header {len(header)}; is a comma not quoted?"
            )
        rows.append(fields[: len(header)])
    filled = [bool(title) or any(row[column] for row in rows) for column, title in enumerate(header)]
    header, *rows = ([*itertools.compress(row, filled)] for row in (header, *rows))
    if not header[-1]:
        raise UserError(f"{path}: its last column has content but no title; is a separator in a field not quoted?")
    duplicates = sorted(column for column, count in Counter(header).items() if count > 1 and column)
    if duplicates:
        raise UserError(f"{path}: duplicate column {', '.join(duplicates)} (more than once in the header).")
    table = pd.DataFrame(rows, columns=header, dtype=object)
    _check_columns(path, table, needed)
    return table


def without_words(column: pd.Series, words: Sequence[str]) -> pd.Series:
    """A column of text in which fields that are one of some words, in any case, are empty."""
    return column.where(~column.str.casefold().isin(words), "")


def _check_columns(path: Path, table: pd.DataFrame, needed: Sequence[str]) -> None:
    lacking = [column for column in needed if column not in table.columns]
    if lacking:
        raise UserError(
            f"{path}: no column {', '.join(lacking)}; found {', '.join(map(str, table.columns)) or 'no columns'}."
        )


def check_names(path: Path, names: Sequence[str]) -> None:
    """Raise `UserError` unless all are plain file names, of which none could lead out of the corpus."""
    for line, name in enumerate(names, start=1):
        unsafe = name in ("", ".", "..") or re.search(rf"[/\\{UNPRINTABLE}]", name)
        unsafe = unsafe or len(name.encode(errors="replace")) > LONGEST_NAME
        if unsafe:
            raise UserError(
                f"{path}: entry {line} has the file name {name[:60]!r}; expected a plain name such as X.wav."
            )


def read_labels(path: Path, needs_split: bool = True) -> pd.DataFrame:
    """Consensus labels of any release, one row an utterance.

    Args:
        path: labels_consensus or labels_concensus, .csv or .json (a dict FileName -> fields).
        needs_split: whether Split_Set must be there; it is empty where it is not.
    Returns:
        Table of text columns: FileName, Split_Set and those of EmoClass, EmoAct, EmoVal, EmoDom, SpkrID, Gender that
        the file has (SpkrID always, `Unknown` where it is not given).
    Raises:
        UserError: unreadable, without FileName or Split_Set, a duplicate or unsafe file name.
    Source: the releases 1.6 to 2.0 of MSP-Podcast.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        content = read_json_object(path, of_labels=True)
        if not all(isinstance(fields, dict) for fields in content.values()):
            raise UserError(f"{path}: expected a dict of fields a file name (EmoAct, EmoVal, EmoDom, Split_Set, ...).")
        rows = [{**fields, "FileName": name} for name, fields in content.items()]
        table = pd.DataFrame(rows, columns=None if rows else ["FileName"])
        table = table.astype(object).where(table.notna(), "").map(lambda value: str(value).strip())
    else:
        table = read_csv(path, CONSENSUS_COLUMNS[:1])
    if not needs_split and "Split_Set" not in table:
        table["Split_Set"] = ""
    _check_columns(path, table, ("FileName", "Split_Set"))
    if table.empty:
        raise UserError(f"{path}: no utterances in it.")
    check_names(path, table["FileName"].tolist())
    twice = table["FileName"][table["FileName"].duplicated()]
    if len(twice):
        raise UserError(
            f"{path}: {len(twice)} file names are there twice, the first {twice.iloc[0]}; expected one row per file."
        )
    shared = table["FileName"].map(features.feature_name)
    if shared.duplicated().any():
        clash = table["FileName"][shared == shared[shared.duplicated()].iloc[0]].tolist()
        raise UserError(f"{path}: {clash[0]} and {clash[1]} would share one feature file; rename one.")
    for column in {"EmoClass", "SpkrID", "Gender", "Split_Set"} & {*table.columns}:
        table[column] = without_words(table[column], UNKNOWN if column in ("SpkrID", "Split_Set") else EMPTY)
    homeless = table["FileName"][table["Split_Set"] == ""]
    if len(homeless) and needs_split:
        notify(f"warning: {path}: {len(homeless)} rows have no Split_Set, the first {homeless.iloc[0]}.")
    if "SpkrID" not in table:
        table["SpkrID"] = UNKNOWN_SPEAKER
    table.loc[table["SpkrID"] == "", "SpkrID"] = UNKNOWN_SPEAKER
    return table[[column for column in CONSENSUS_COLUMNS if column in table.columns]]


_SAME_SPLIT = {"development": "validation", "dev": "validation", "valid": "validation"}


def _split_name(name: str) -> str:
    return _SAME_SPLIT.get(name.casefold(), name.casefold())


def select_split(table: pd.DataFrame, split: str, source: object = "labels") -> pd.DataFrame:
    """The rows of one split.

    Args:
        table: as from `read_labels`.
        split: `Train`, `Validation` (`Development` is the same), `Test1`, ... or `all`; any case. Where a corpus has
            one test split called `Test` (release 1.6), `Test1` is that.
        source: the file, for the message.
    Raises:
        UserError: no such split.
    """
    if split.casefold() == "all":
        return table
    present = table["Split_Set"].map(_split_name)
    wanted = _split_name(split)
    if wanted == "test1" and not (present == "test1").any():
        wanted = "test"
    rows = table[present == wanted]
    if rows.empty:
        counts = table["Split_Set"].value_counts().to_dict()
        found = ", ".join(f"{name or '(empty)'} {count}" for name, count in counts.items())
        raise UserError(f"{source}: no rows in split {split}; found {found}.")
    return rows


def _label_text(rows: pd.DataFrame, emo_attr: str, source: object) -> pd.Series:
    """One attribute's labels as written, indexed by file name, without the empty ones.

    Raises:
        UserError: no such column, or no label in it.
    """
    column = f"Emo{emo_attr}"
    _check_columns(source, rows, (column,))
    text = rows.set_index("FileName")[column]
    text = text[~text.str.casefold().isin(EMPTY)]
    if text.empty:
        raise UserError(
            f"{source}: column {column} is empty for these {len(rows)} rows, so there is nothing to do for {emo_attr}."
        )
    return text


def attribute_labels(
    rows: pd.DataFrame, emo_attr: str, source: object = "labels", scale: tuple[float, float] = LABEL_RANGE
) -> pd.Series:
    """One attribute's labels.

    Args:
        rows: as from `select_split`.
        emo_attr: `Act`, `Dom` or `Val`.
        source: the file, for the messages.
        scale: lowest and highest possible label.
    Returns:
        float64 labels in the unit of the file, indexed by file name; rows with an empty label are left out.
    Raises:
        UserError: no such column, no labels in it, a label that is no number or outside the scale.
    """
    column = f"Emo{emo_attr}"
    text = _label_text(rows, emo_attr, source)
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


def has_labels(rows: pd.DataFrame, emo_attr: str) -> bool:
    """Whether any row has a label of the attribute."""
    column = f"Emo{emo_attr}"
    return column in rows and not rows[column].str.casefold().isin(EMPTY).all()


def getPaths_attri(
    path_label: Path | str, split_set: str, emo_attr: str
) -> tuple[NDArray[np.str_], NDArray[np.float64]]:
    """File names and labels of one split and attribute.

    Args:
        path_label: consensus label file, or the corpus that holds it.
        split_set: `Train`, `Validation`/`Development`, `Test1`, ... or `all`.
        emo_attr: `Act`, `Dom` or `Val`.
    Returns:
        (file names, labels 1..7), shape (N,) each, in the order of the file.
    Raises:
        UserError: as `read_labels`, `select_split`, `attribute_labels`.
    """
    path = Path(path_label)
    path = find_label_file(path) if path.is_dir() else path
    labels = attribute_labels(select_split(read_labels(path), split_set, path), emo_attr, path)
    return labels.index.to_numpy(dtype=str), labels.to_numpy()


# ---------------------------------------------------------------------------------------------------------------------
# The single raters' labels


def parse_detail(path: Path, name: str, detail: str) -> dict:
    """`WORKERxxx; primary; secondary; A:x; V:x; D:x;` where the secondary class may be absent.

    MSP-IMPROV writes the same with the naturalness, `N:x`, which is passed over.
    """
    row: dict[str, object] = dict.fromkeys(DETAILED_COLUMNS, "")
    row.update(FileName=name, EmoAct=np.nan, EmoDom=np.nan, EmoVal=np.nan)
    words = []
    for part in (piece.strip() for piece in detail.split(";")):
        rating = re.fullmatch(r"([AVDN])\s*:\s*(.*)", part)
        if rating and rating[1] != "N":
            row[{"A": "EmoAct", "V": "EmoVal", "D": "EmoDom"}[rating[1]]] = parse_rating(path, name, rating[2])
        elif not rating:
            words.append(part)
    for column, word in zip(("Worker", "EmoClass_Major", "EmoClass_Second"), words):
        row[column] = word
    return row


def parse_rating(path: Path, name: str, text: object) -> float:
    """A label as a number, NaN where the field is empty; raises `UserError` where it is no number."""
    if isinstance(text, float) and math.isnan(text):
        return text
    text = "" if text is None else str(text).strip()
    if text.casefold() in EMPTY:
        return float("nan")
    # float() would take 1_000, digits of other scripts and infinity as well.
    if not NUMBER.fullmatch(text) or not abs(float(text)) < LARGEST_LABEL:
        raise UserError(f"{path}: a rating of {name} is {text[:40]!r}; expected a number.")
    return float(text)


def _detailed_csv(path: Path) -> list[dict]:
    lines = _csv_lines(path)
    header = lines[0][1] if lines else []
    if "EmoDetail" in header:
        if "FileName" not in header:
            raise UserError(f"{path}: no column FileName; found {', '.join(header)}.")
        # A secondary class may list several emotions with commas, unquoted: what the other columns leave is the detail.
        start, name = header.index("EmoDetail"), header.index("FileName")
        after = len(header) - 1 - start  # columns behind the detail, counted from the end of a line
        rows = []
        for number, fields in lines[1:]:
            if len(fields) < len(header):
                raise UserError(f"{path}: line {number} has {len(fields)} fields; expected at least {len(header)}.")
            detail = fields[start : len(fields) - after]
            rows.append(parse_detail(path, fields[name if name < start else name - len(header)], ",".join(detail)))
        return rows
    table = read_csv(path, ("FileName",))
    worker = "WorkerID" if "WorkerID" in table.columns else "Workers"
    _check_columns(path, table, ("FileName", worker))
    return [{**row, "Worker": row[worker]} for row in table.to_dict("records")]


def _detailed_json(path: Path) -> list[dict]:
    rows = []
    for name, workers in read_json_object(path, of_labels=True).items():
        if not isinstance(workers, dict) or not all(isinstance(fields, dict) for fields in workers.values()):
            raise UserError(f"{path}: {name} is no dict of workers; expected FileName -> worker -> fields.")
        rows += [{**fields, "FileName": name, "Worker": worker} for worker, fields in workers.items()]
    return rows


def read_detailed_labels(path: Path) -> pd.DataFrame:
    """The single raters' labels of any release, one row a rating.

    Args:
        path: labels_detailed, .csv (`EmoDetail` of 1.7-1.12, or separate columns of 1.6 and 2.0) or .json.
    Returns:
        Table with FileName, Worker, EmoClass_Major, EmoClass_Second (text) and EmoAct, EmoDom, EmoVal (float64, NaN
        where not rated).
    Raises:
        UserError: unreadable, a column missing, a rating that is no number.
    Source: the releases 1.6 to 2.0 of MSP-Podcast.
    """
    path = Path(path)
    rows = _detailed_json(path) if path.suffix.lower() == ".json" else _detailed_csv(path)
    if not rows:
        raise UserError(f"{path}: no ratings in it.")
    table = pd.DataFrame(rows)
    for column in DETAILED_COLUMNS:
        if column not in table:
            table[column] = ""
    for column in ("EmoAct", "EmoDom", "EmoVal"):
        table[column] = [parse_rating(path, name, value) for name, value in zip(table["FileName"], table[column])]
    texts = ["FileName", "Worker", "EmoClass_Major", "EmoClass_Second"]
    table[texts] = table[texts].fillna("").astype(str).apply(lambda column: column.str.strip())
    check_names(path, table["FileName"].tolist())
    return table[list(DETAILED_COLUMNS)]


def rater_spread(path: Path, emo_attr: str) -> pd.Series:
    """How far the raters of each utterance are apart.

    Args:
        path: labels_detailed, as for `read_detailed_labels`.
        emo_attr: `Act`, `Dom` or `Val`.
    Returns:
        Standard deviation (population moments) of the ratings in their own unit, float64, indexed by file name; without
        the utterances that fewer than two rated.
    Raises:
        UserError: as `read_detailed_labels`, or nobody rated this attribute.
    Source: Lotfian & Busso, Interspeech 2018, for its use as a curriculum.
    """
    ratings = read_detailed_labels(path).groupby("FileName")[f"Emo{emo_attr}"]
    # Rounded, since the same ratings in another order differ in the last bits, and ties must stay ties.
    spread = ratings.std(ddof=0).round(9)[ratings.count() >= 2]
    if spread.empty:
        raise UserError(f"{path}: no utterance has two ratings of {emo_attr}, so raters can't be compared.")
    return spread


# ---------------------------------------------------------------------------------------------------------------------
# The unlabeled set


def getPaths_unlabel_Podcast(root_dir: Path | str, sample_num: int = 90000, seed: int = UNLABELED_SEED) -> list[Path]:
    """Feature files of the unlabeled set, drawn at random; arguments and errors as those of `draw_unlabeled`."""
    return list(draw_unlabeled(Path(root_dir), sample_num, seed))


def draw_unlabeled(root: Path, sample_num: int, seed: int) -> features.FeaturePaths:
    """Feature files of the unlabeled set, drawn at random, as a sequence that makes paths when asked for them.

    Args:
        root: laid out like a corpus, or the folder of .mat files itself.
        sample_num: how many to draw, without replacement; all where there are fewer.
        seed: of the draw.
    Returns:
        Sorted paths; the same for the same folder, number and seed.
    Raises:
        UserError: no such folder, or no .mat file in it.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; --unlabeled (or DEEPMI_UNLABELED) names the unlabeled set.")
    found = _find_features(root)
    folder = found[0] if len(found) == 1 else root
    entries = (entry.name for entry in os.scandir(folder))
    names = sorted(name for name in entries if name.endswith(".mat") and not name.startswith("."))
    if not names:
        raise UserError(
            f"{folder}: no .mat files, here or in {root / FEATURE_FOLDER}. Make features of recordings with "
            "`python -m tools.extract_features`."
        )
    if sample_num < len(names):
        drawn = np.random.default_rng(seed).choice(len(names), size=sample_num, replace=False)
        names = [names[index] for index in np.sort(drawn)]
    return features.feature_paths(folder, names)


# ---------------------------------------------------------------------------------------------------------------------
# Norm terms


def write_norm_stats(
    norm_dir: Path,
    feature_norm: tuple[NDArray, NDArray] | None = None,
    label_norms: dict[str, tuple[float, float]] | None = None,
    feature_set: str = "",
) -> list[Path]:
    """Write norm terms, all of them or none.

    Args:
        norm_dir: the folder.
        feature_norm: mean and standard deviation of each feature, shape (D,) each; None leaves those that are there.
        label_norms: attribute -> mean and standard deviation of its labels, in label units.
        feature_set: which feature set they are of, empty where nothing says so.
    Returns:
        The files: feat_norm_means.mat and feat_norm_stds.mat, shape (1, D); feature_set.json where the set is known;
        val_norm_means.mat and so on, shape (1, 1).
    """
    contents: dict[Path, bytes | None] = {}
    if feature_norm:  # the mark comes first, or what a kill leaves could pass for terms of any set
        contents[Path(norm_dir) / features.SET_FILE] = features.feature_set_mark(feature_set)
        contents |= _norm_files(norm_dir, "feat", *feature_norm)
    for emo_attr, terms in (label_norms or {}).items():
        contents |= _norm_files(norm_dir, emo_attr.lower(), *terms)
    if any(path.is_file() and path.read_bytes() != content for path, content in contents.items()):
        notify(f"note: replaces other norm terms in {norm_dir}.")
    write_together(contents)
    return [path for path, content in contents.items() if content is not None]


def _norm_files(norm_dir: Path, what: str, mean: ArrayLike, std: ArrayLike) -> dict[Path, bytes]:
    terms = {"means": mean, "stds": std}
    return {
        Path(norm_dir) / f"{what}_norm_{kind}.mat": matfile.mat_bytes(
            NORM_KEY, np.reshape(np.asarray(value, dtype=np.float64), (1, -1))
        )
        for kind, value in terms.items()
    }


def _read_norm(norm_dir: Path, what: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    terms = []
    for kind in ("means", "stds"):
        file = Path(norm_dir) / f"{what}_norm_{kind}.mat"
        if not file.is_file():
            raise UserError(
                f"{file}: no such norm term. Run norm_para.py with the same --norm-dir first (for the published "
                "ones, NormTerm/v1.8, `python -m tools.fetch_v18`)."
            )
        terms.append(matfile.read_mat(file, NORM_KEY).astype(np.float64).ravel())
    if terms[0].size != terms[1].size or terms[0].size == 0:
        raise UserError(
            f"{norm_dir}: {what} has {terms[0].size} means but {terms[1].size} stds; run norm_para.py anew."
        )
    mean, std = terms
    # NaN is what a feature that was never observed has; nothing else may be off.
    if np.isinf(mean).any() or np.isinf(std).any() or (std < 0).any() or np.isnan(mean + std).all():
        raise UserError(
            f"{norm_dir}: the terms of {what} hold infinite, negative or no numbers; run norm_para.py anew."
        )
    return mean, std


def read_feature_norm(norm_dir: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each feature over Train, float64, shape (D,) each.

    Raises:
        UserError: missing or damaged.
    """
    return _read_norm(norm_dir, "feat")


def read_label_norm(norm_dir: Path, emo_attr: str) -> tuple[float, float]:
    """Mean and standard deviation of an attribute's Train labels, in label units.

    Raises:
        UserError: missing, damaged, or a standard deviation that is not positive.
    """
    mean, std = _read_norm(norm_dir, emo_attr.lower())
    low, high = LABEL_RANGE
    if mean.size != 1 or not low <= mean[0] <= high or not 0 < std[0] <= high - low:
        raise UserError(
            f"{norm_dir}: {emo_attr.lower()} has mean {mean[0]:g} and std {std[0]:g}; expected a mean of labels "
            f"{low:g}..{high:g} and a positive std (are all Train labels the same?)."
        )
    return float(mean[0]), float(std[0])


def norm_key(feature_norm: tuple, label_norm: tuple[float, float]) -> str:
    """Digest of the norm terms that a network works with; networks remember it."""
    return digest(*(terms.tobytes() for terms in feature_norm), label_norm)


def has_other_norm_stats(info: dict, key: str) -> bool:
    """Whether a network, by what was saved with it, was trained with other norm terms than those of `norm_key`."""
    return info.get("norm_terms", key) != key


# ---------------------------------------------------------------------------------------------------------------------
# Labels and features together


def to_label_range(labels: NDArray[np.float64], scale: tuple[float, float]) -> NDArray[np.float64]:
    """Bring labels from another scale to 1..7 linearly, shape kept; those of 1..7 stay as they are to the last bit."""
    if tuple(scale) == LABEL_RANGE:
        return labels  # a label on the edge of a level must not move by rounding
    low, high = LABEL_RANGE
    return low + (labels - scale[0]) * (high - low) / (scale[1] - scale[0])


def denormalise(
    prediction: NDArray[np.float32], label_norm: tuple[float, float], source: object
) -> NDArray[np.float64]:
    """The z-normed prediction of the network in `source` as a label 1..7, shape kept.

    Args:
        prediction: z-normed.
        label_norm: mean and standard deviation of the Train labels, as from `read_label_norm`.
        source: the network's file, for the message.
    Raises:
        UserError: a prediction is not finite.
    """
    if not np.isfinite(prediction).all():
        raise UserError(f"{source}: predicts NaN or infinity, so its weights are damaged; download or train it again.")
    mean, std = label_norm
    return prediction.astype(np.float64) * std + mean


@dataclass
class LabeledSet:
    """Utterances of a split with features and labels; entry i of each part belongs to names[i].

    Attributes:
        names: file names, sorted.
        rows: normalised features, float32 memory map, shape (N, D).
        labels: in label units (1..7), float64, shape (N,).
        targets: labels z-normed by the Train split's terms, float32, shape (N,).
        speakers: speaker of each utterance, `Unknown` where not given.
        key: digest of features, norm terms and labels.
    """

    names: list[str]
    rows: NDArray[np.float32]
    labels: NDArray[np.float64]
    targets: NDArray[np.float32]
    speakers: list[str]
    key: str


def present_utterances(corpus: Corpus, utterances: Sequence[str], skip_missing: bool) -> list[str]:
    """Those utterances that have a feature file.

    Raises:
        UserError: some have none, and `skip_missing` is off; or none has one.
    """
    missing = features.missing_features(corpus.features, utterances)
    if not missing:
        return list(utterances)
    found = (
        f"{corpus.features}: {len(missing)} of {len(utterances)} feature files are missing ({', '.join(missing[:5])}"
    )
    found += ", ...)" if len(missing) > 5 else ")"
    if not skip_missing or len(missing) == len(utterances):
        raise UserError(f"{found}. Extract them, or leave these utterances out with --skip-missing.")
    notify(f"warning: {found}; left out.")
    absent = set(missing)
    return [name for name in utterances if name not in absent]


class LabeledCorpus:
    """A corpus opened for one attribute: its label table, norm terms and features, joined by file name.

    `feature_set` is that of features and norm terms, empty where neither says.
    """

    def __init__(
        self,
        corpus: Corpus,
        emo_attr: str,
        norm_dir: Path,
        cache_dir: Path,
        workers: int,
        skip_missing: bool = False,
        scale: tuple[float, float] = LABEL_RANGE,
    ):
        """
        Args:
            corpus: as from `find_corpus`.
            emo_attr: `Act`, `Dom` or `Val`.
            norm_dir: folder of the norm terms.
            cache_dir: folder of the packed features.
            workers: processes that read feature files.
            skip_missing: leave out utterances without a feature file.
            scale: lowest and highest label of this corpus; labels are brought to 1..7 linearly.
        Raises:
            UserError: labels or norm terms are missing or unreadable, or features and terms of different sets.
        """
        self.corpus, self.emo_attr, self.scale = corpus, emo_attr, scale
        self.cache_dir, self.workers, self.skip_missing = cache_dir, workers, skip_missing
        self.table = read_labels(corpus.labels)
        _label_text(self.table, emo_attr, corpus.labels)  # before the norm terms: without labels none can be made
        self.feature_set = features.common_feature_set(
            {folder: features.read_feature_set(folder) for folder in (corpus.features, norm_dir)}
        )
        self.feature_norm = read_feature_norm(norm_dir)
        self.label_norm = read_label_norm(norm_dir, emo_attr)

    @property
    def num_features(self) -> int:
        """D, by the norm terms."""
        return self.feature_norm[0].size

    def facts(self) -> dict:
        """What a network that is trained on this corpus should remember of it."""
        return {"feature_set": self.feature_set, "norm_terms": norm_key(self.feature_norm, self.label_norm)}

    def note_other_norm_stats(self, source: object, info: dict) -> None:
        """Print a note where the network in `source`, by what was saved with it, was trained with other norm terms."""
        if has_other_norm_stats(info, norm_key(self.feature_norm, self.label_norm)):
            print(f"note: {source} was trained with other norm terms than those used here; the figures follow these.")

    def warn_of_tested(self, unlabeled: Sequence[str], folder: Path) -> None:
        """Warn where the unlabeled set holds utterances of this corpus that are validated or tested on.

        Args:
            unlabeled: names of the unlabeled utterances.
            folder: where they lie, for the message.
        """
        stems = {features.feature_name(name) for name in unlabeled}
        shared = self.table[self.table["FileName"].map(features.feature_name).isin(stems)]
        shared = shared[~shared["Split_Set"].map(_split_name).isin(("train", ""))]
        if len(shared):
            counts = ", ".join(f"{count} of {split}" for split, count in shared["Split_Set"].value_counts().items())
            notify(
                f"warning: {folder}: the unlabeled set has files with the names of {counts}, the first "
                f"{shared['FileName'].iloc[0]}. If they are the same utterances, the network trains on them, and "
                "results on these splits are too good: remove them from the unlabeled set."
            )

    def select(self, split: str) -> pd.DataFrame:
        """The label rows of a split; raises `UserError` where there is no such split."""
        return select_split(self.table, split, self.corpus.labels)

    def load(self, split: str) -> LabeledSet:
        """Features and labels of a split.

        Raises:
            UserError: no such split, no labels, labels outside the scale, or features missing or unreadable.
        """
        rows = self.select(split)
        labels = attribute_labels(rows, self.emo_attr, self.corpus.labels, self.scale)
        if len(labels) < len(rows):
            notify(f"warning: {len(rows) - len(labels)} rows of {split} have no Emo{self.emo_attr}; left out.")
        names = present_utterances(self.corpus, list(labels.index), self.skip_missing)
        packed = features.pack_features(
            self.corpus.features, names, *self.feature_norm, self.cache_dir, self.workers, split
        )
        values = to_label_range(labels.loc[packed.names].to_numpy(), self.scale)
        mean, std = self.label_norm
        return LabeledSet(
            packed.names,
            packed.rows,
            values,
            ((values - mean) / std).astype(np.float32),
            rows.set_index("FileName")["SpkrID"].loc[packed.names].tolist(),
            digest(packed.key, values.tobytes(), [mean, std]),
        )

    def load_validation(self) -> LabeledSet:
        """The Validation split, for choosing the best epoch.

        Raises:
            UserError: as `load`; or all labels are the same, so that its CCC is 0 whatever is predicted.
        """
        data = self.load("Validation")
        if np.ptp(data.labels) == 0:
            raise UserError(
                f"{self.corpus.labels}: all {len(data.labels)} Emo{self.emo_attr} labels of Validation are "
                f"{data.labels[0]:g}, so no epoch would be better than another; expected labels that differ."
            )
        return data


def open_corpus(args: argparse.Namespace, scale: tuple[float, float] = LABEL_RANGE) -> LabeledCorpus:
    """The corpus that the flags name."""
    return LabeledCorpus(
        find_corpus(args.corpus, args.labels, args.features),
        args.emo_attr,
        args.norm_dir,
        args.cache_dir,
        args.workers,
        args.skip_missing,
        scale,
    )


def refuse_label_scale(low: float, high: float) -> None:
    """Raise `UserError` where a --label-scale is no range of labels."""
    if not is_label_scale(low, high):
        raise UserError(f"--label-scale {low:g} {high:g}: expected two numbers, the lowest label first.")


# ---------------------------------------------------------------------------------------------------------------------
# What the program's files are called


def ssl_checkpoint(model_dir: Path, epoch: int, batch_size: int, num_clusters: int, emo_attr: str) -> Path:
    """DeepEmoCluster's checkpoint, under the original's name."""
    name = f"ResNetDeepEmoCluster_epoch{epoch}_batch{batch_size}_{num_clusters}clusters_{emo_attr}.pth.tar"
    return Path(model_dir) / name


def metric_file(metric_dir: Path, num_clusters: int, emo_attr: str) -> Path:
    """The DeepMI values, under the original's name."""
    return Path(metric_dir) / f"DeepMI_{num_clusters}clusters@_{emo_attr}.json"


def regressor_checkpoint(model_dir: Path, order: str, emo_attr: str) -> Path:
    """The curriculum regressor, under the original's name for the DeepMI order."""
    return Path(model_dir) / f"SimpleEmoRegressor_{'DeepMI' if order == 'deepmi' else order}@_{emo_attr}.pt.tar"


def make_output_folders(*folders: Path) -> None:
    """Make the folders a stage writes to before it computes anything.

    Raises:
        UserError: one can't be written.
    """
    for folder in folders:
        prepare_folder(folder)
