"""What other corpora write into their label files, as one table of utterances.

Each reader returns a table with the columns of MSP-Podcast's consensus labels and `audio`, the recording's path;
EmoAct, EmoVal and EmoDom are numbers in the corpus' own scale, NaN where there is no label. Where a corpus has the
single raters' labels, a second table holds them (`utils.DETAILED_COLUMNS`).

Sources: the files as IEMOCAP (Busso et al. 2008) and MSP-IMPROV (Busso et al. 2017) are distributed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from sklearn.model_selection import train_test_split

import utils
from deepmi.features import AUDIO_ENDINGS, feature_name
from deepmi.process import UserError, notify
from deepmi.seeds import derived_seed
from deepmi.storage import read_text, write_text
from tools.recordings import Recordings, first_few, plain_names
from utils import SPLITS, split_name  # noqa: F401

ATTRIBUTE_COLUMNS = ("EmoAct", "EmoVal", "EmoDom")
RATING_CLIPPED = 1 / 4  # and a single rater's: IEMOCAP's 5.5 are means of 5 and 6
MOST_OUTSIDE = 10  # labels outside the scale, or as many in a thousand
CLIPPED = 1 / 8  # of the scale's width that a label may be outside of it
IEMOCAP_SCALE = IMPROV_SCALE = (1.0, 5.0)
IEMOCAP_CLASSES = {
    "neu": "N",
    "hap": "H",
    "exc": "H",
    "ang": "A",
    "sad": "S",
    "sur": "U",
    "fea": "F",
    "dis": "D",
    "fru": "O",
    "oth": "O",
    "xxx": "X",
}  # MSP-Podcast's letters; excitement counts as happiness, as usual; MSP-Podcast has no frustration
GENDERS = {"F": "Female", "M": "Male"}


# ---------------------------------------------------------------------------------------------------------------------
# Recordings


def join_recordings(
    table: pd.DataFrame, recordings: Recordings, source: object, skip_missing: bool = False
) -> pd.DataFrame:
    """The table with `audio` found for each `FileName`, which becomes a plain file name; `entry` is what it was.

    Raises:
        UserError: recordings are missing and `skip_missing` is off, or two rows mean one recording.
    """
    entries = table["FileName"].tolist()
    paths = recordings.find_all(entries)
    missing = [entry for entry, path in zip(entries, paths) if path is None]
    if missing:
        found = f"{source}: {len(missing)} of {len(entries)} recordings are not in {recordings.folder} "
        found += f"({first_few(missing)})"
        if namesake := recordings.namesake(missing[0]):
            found += f"; {namesake} has the name of the first, but not its folder"
        if not skip_missing or len(missing) == len(entries):
            raise UserError(
                f"{found}. Correct the rows, name the folder with --audio, or leave them out with --skip-missing."
            )
        notify(f"warning: {found}; left out.")
    present = [path is not None for path in paths]
    table = table[present].reset_index(drop=True)
    table["audio"] = [path for path in paths if path is not None]
    twice = table["audio"][table["audio"].duplicated()]
    if len(twice):
        rows = table["FileName"][table["audio"] == twice.iloc[0]].tolist()
        raise UserError(
            f"{source}: {rows[0]} and {rows[1]} are one recording ({twice.iloc[0]}); expected one row per recording."
        )
    table["entry"] = table["FileName"]
    table["FileName"] = plain_names(table["entry"].tolist(), table["audio"].tolist(), recordings.folder)
    utils.check_names(source, table["FileName"].tolist())
    stems = table["FileName"].map(feature_name)
    if stems.duplicated().any():
        rows = table["entry"][stems == stems[stems.duplicated()].iloc[0]].tolist()
        raise UserError(f"{source}: {rows[0]} and {rows[1]} would get one name in the corpus; rename one.")
    return table


def complete(table: pd.DataFrame) -> pd.DataFrame:
    """The table with every column of the consensus labels; words for an empty field are empty in it."""
    for column in utils.CONSENSUS_COLUMNS:
        if column not in table:
            table[column] = float("nan") if column in ATTRIBUTE_COLUMNS else ""
    for column in ("EmoClass", "SpkrID", "Gender", "Split_Set"):
        words = utils.UNKNOWN if column in ("SpkrID", "Split_Set") else utils.EMPTY
        table[column] = utils.without_words(table[column], words)
    table["Split_Set"] = table["Split_Set"].map(split_name)
    table.loc[table["SpkrID"] == "", "SpkrID"] = utils.UNKNOWN_SPEAKER
    return table


def leave_out_unsplit(table: pd.DataFrame, source: object) -> pd.DataFrame:
    """The rows that have a split, of a corpus that has splits; a warning says how many have none.

    Raises:
        UserError: no row has one.
    """
    names = table["FileName"][table["Split_Set"] == ""].tolist()
    if len(names) == len(table):
        raise UserError(f"{source}: no row has a split; expected Train, Validation, Test1 or names of your own.")
    if names:
        notify(f"warning: {source}: left out {len(names)} of {len(table)} rows without a split ({first_few(names)}).")
    return table[table["Split_Set"] != ""].reset_index(drop=True)


def outside_scale(table: pd.DataFrame, column: str, scale: tuple[float, float]) -> pd.Series:
    """Labels of one attribute that are outside the scale."""
    return table[column][(table[column] < scale[0]) | (table[column] > scale[1])]


def clip_to_scale(
    table: pd.DataFrame, scale: tuple[float, float], source: object, share: float = CLIPPED
) -> pd.DataFrame:
    """The table with labels a little outside the scale at its end; a warning names them.

    IEMOCAP has a few of 5.5 and 0.5 on its scale of 1..5.

    Args:
        table: consensus labels or ratings.
        scale: lowest and highest possible label.
        source: the file, for the messages.
        share: of the scale's width that a label may be outside.
    Raises:
        UserError: a label farther outside, or so many that the scale must be wrong.
    """
    room = share * (scale[1] - scale[0]) * (1 + 1e-9)
    table = table.copy()
    for column in ATTRIBUTE_COLUMNS:
        outside = outside_scale(table, column, scale)
        if outside.empty:
            continue
        far = outside_scale(table, column, (scale[0] - room, scale[1] + room))
        if len(far):
            raise UserError(
                f"{source}: {column} of {table['FileName'][far.index[0]]} is {far.iloc[0]:g}, outside the label scale "
                f"{scale[0]:g}..{scale[1]:g} ({len(outside)} such)."
            )
        if len(outside) > max(MOST_OUTSIDE, MOST_OUTSIDE / 1000 * table[column].count()):
            raise UserError(
                f"{source}: {len(outside)} of {table[column].count()} labels of {column} are outside {scale[0]:g} to "
                f"{scale[1]:g}, such as {outside.iloc[0]:g}; is that the right scale?"
            )
        labels = [f"{table['FileName'][row]} {label:g}" for row, label in outside.items()]
        notify(
            f"warning: {source}: {len(labels)} labels of {column} are outside {scale[0]:g}..{scale[1]:g} and were "
            f"brought to its end ({first_few(labels)})."
        )
        table[column] = table[column].clip(*scale)
    return table


# ---------------------------------------------------------------------------------------------------------------------
# Any table


def read_table(path: Path, columns: dict[str, str]) -> pd.DataFrame:
    """Labels of any table with a header line, its fields apart by comma, semicolon, tab or bar.

    Args:
        path: the table.
        columns: name in the table of `FileName` and of any other column of the consensus labels.
    Returns:
        Table without `audio`.
    Raises:
        UserError: unreadable, a column missing, a label that is no number, a row without a file.
    """
    wanted = tuple(columns.values())
    delimiter = utils.find_delimiter(path, wanted)
    given = utils.read_csv(path, wanted, delimiter)
    table = pd.DataFrame({ours: given[theirs] for ours, theirs in columns.items()})
    if table.empty:
        raise UserError(f"{path}: no rows below its header.")
    nameless = table.index[table["FileName"] == ""]
    if len(nameless):
        raise UserError(f"{path}: row {nameless[0] + 1} below the header names no file in {columns['FileName']}.")
    for column in ATTRIBUTE_COLUMNS:
        if column in table:
            labels = _decimal_points(table[column]) if delimiter != "," else table[column]
            table[column] = [utils.parse_rating(path, *row) for row in zip(table["FileName"], labels)]
    if "SpkrID" in table:  # numbers become 1.0 in a table where some are missing; a letter has two Unicode forms
        table["SpkrID"] = table["SpkrID"].str.normalize("NFC").str.replace(r"^(\d+)\.0+$", r"\1", regex=True)
    return complete(table)


def _decimal_points(labels: pd.Series) -> pd.Series:
    """Labels that are written with a decimal comma, all of them, with a point."""
    if labels.str.contains(".", regex=False).any():
        return labels
    return labels.str.replace(r"^([+-]?\d*),(\d+)$", r"\1.\2", regex=True)


def split_by_speaker(table: pd.DataFrame, fractions: Sequence[float], seed: int, source: object) -> list[str]:
    """Train, Validation or Test1 for each row, no speaker in two of them.

    Args:
        table: with SpkrID.
        fractions: of the speakers, for the three splits.
        seed: of the draw.
        source: the file, for the messages.
    Raises:
        UserError: fractions that are no fractions, rows of unknown speakers, or fewer than three speakers.
    """
    if not (min(fractions) > 0 and abs(sum(fractions) - 1) <= 1e-6):  # so that NaN is refused
        wanted = " ".join(f"{fraction:g}" for fraction in fractions)
        raise UserError(f"--split-by-speaker {wanted}: expected three positive fractions that sum to 1.")
    unknown = int((table["SpkrID"] == utils.UNKNOWN_SPEAKER).sum())
    if unknown:
        first = table["FileName"][table["SpkrID"] == utils.UNKNOWN_SPEAKER]
        raise UserError(
            f"{source}: {unknown} of {len(table)} rows have no speaker, the first {first.iloc[0]}, so no split by "
            "speaker is safe. Name the speakers' column with --speaker-column, and fill or leave out such rows."
        )
    speakers = sorted(set(table["SpkrID"]))
    if len(speakers) < len(fractions):
        raise UserError(f"{source}: {len(speakers)} speakers; a split by speaker into three needs three.")
    rest = min(max(round(len(speakers) * (fractions[1] + fractions[2])), 2), len(speakers) - 1)
    test = min(max(round(rest * fractions[2] / (fractions[1] + fractions[2])), 1), rest - 1)
    seed = seed if seed < 2**32 else derived_seed(seed)  # more than scikit-learn takes
    train, others = train_test_split(speakers, test_size=rest, random_state=seed)
    validation, test_speakers = train_test_split(others, test_size=test, random_state=seed)
    parts = {"Train": train, "Validation": validation, "Test1": test_speakers}
    split = {speaker: name for name, those in parts.items() for speaker in those}
    return [split[speaker] for speaker in table["SpkrID"]]


# ---------------------------------------------------------------------------------------------------------------------
# MSP-Podcast


def podcast_audio(root: Path) -> Path:
    """The folder of a release's recordings; raises `UserError` where there is none."""
    found = find_audio_folder(root)
    if found is None:
        raise UserError(f"{root}: no folder Audios in it.")
    return found


def find_audio_folder(root: Path) -> Path | None:
    """The folder of a corpus' recordings, `Audios` or `Audio` in any case; None where there is none."""
    folders = (child for child in sorted(root.iterdir()) if child.is_dir())
    return next((folder for folder in folders if folder.name.casefold() in ("audios", "audio")), None)


def read_podcast(root: Path, in_place: bool = False) -> tuple[pd.DataFrame, pd.DataFrame | None, list[str]]:
    """Consensus and single raters' labels of a release of MSP-Podcast, its splits from Partitions.txt where need be.

    Args:
        root: the release as downloaded.
        in_place: whether the stages are to read the release's own label file, which stays as it is.
    Returns:
        (consensus without `audio`, ratings or None, lines that say what was found).
    Raises:
        UserError: no label file, or no splits anywhere; or the stages could not read the release's label file.
    """
    file = utils.find_label_file(root)
    table = utils.read_labels(file, needs_split=False)
    detailed = utils.find_detailed_file(root)
    found = [f"labels: {file}", f"single raters' labels: {detailed or 'none'}"]
    table["Split_Set"] = table["Split_Set"].map(split_name)
    for path in sorted(path for path in root.rglob("*.txt") if path.stem.casefold() == "partitions")[:1]:
        splits = read_partitions(path)
        here = table["FileName"].map(splits).fillna("")
        lacking = table["Split_Set"] == ""
        used = int((lacking & (here != "")).sum())
        differing = int(((here != "") & ~lacking & (here != table["Split_Set"])).sum())
        table["Split_Set"] = table["Split_Set"].where(~lacking, here)
        found.append(
            f"splits: {path}, {len(splits):,} files; used for {used:,} rows without a split in the label file, which "
            f"counts for {differing:,} where they differ"
        )
        if used and in_place:
            raise UserError(
                f"{file}: {used:,} rows have their split only in {path}, which the stages do not read. Add --out DIR "
                "to write labels with these splits there; the release's own features are linked."
            )
    if (table["Split_Set"] == "").all():
        raise UserError(f"{file}: no Split_Set, and no Partitions.txt in {root}.")
    for column in ATTRIBUTE_COLUMNS:
        attribute, scale = column.removeprefix("Emo"), (-utils.LARGEST_LABEL, utils.LARGEST_LABEL)
        labels = utils.attribute_labels(table, attribute, file, scale) if utils.has_labels(table, attribute) else {}
        table[column] = table["FileName"].map(dict(labels)).astype(float)
        outside = outside_scale(table, column, utils.LABEL_RANGE)
        if len(outside) and in_place:
            raise UserError(
                f"{file}: {len(outside)} labels of {column} are outside 1..7, the first {outside.iloc[0]:g} of "
                f"{table['FileName'][outside.index[0]]}, and the stages refuse them. Add --out DIR to write a corpus "
                "with such labels at the end of the scale."
            )
    return complete(table), utils.read_detailed_labels(detailed) if detailed else None, found


def read_partitions(path: Path) -> dict[str, str]:
    """Split of each file by a Partitions.txt: a file and its split per line, in either order.

    Raises:
        UserError: a line of something else.
    """
    splits = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        fields = [field for field in re.split(r"[;,\s]+", line) if field]
        if not fields:
            continue
        files = [field for field in fields if Path(field).suffix.lower() in AUDIO_ENDINGS]
        others = [field for field in fields if field not in files]
        if len(files) != 1 or len(others) != 1:
            raise UserError(f"{path}: line {number} is {line[:60]!r}; expected a file and its split.")
        split = split_name(others[0])
        if splits.setdefault(files[0], split) != split:
            raise UserError(f"{path}: {files[0]} is in {splits[files[0]]} and in {split}; expected one split.")
    return splits


# ---------------------------------------------------------------------------------------------------------------------
# IEMOCAP

_TURN = re.compile(r"^\[\s*[\d.]+\s*-\s*[\d.]+\s*\]\s+(\S+)\s+(\S+)\s+\[([^\]]*)\]")
_RATER = re.compile(r"^A-(\S+?):\s*(.*)")
_RATING = re.compile(r"\b(val|act|dom)\w*\s+([^\s;()]+)")


def read_iemocap(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Consensus and single raters' labels of IEMOCAP, scale 1..5.

    The numbers in a turn's brackets are valence, activation, dominance. Raters whose name begins with F or M are the
    actors judging themselves and are left out, as in the consensus.

    Args:
        root: the corpus' folder, IEMOCAP_full_release.
    Returns:
        (consensus without `audio`, ratings).
    Raises:
        UserError: no such files, or a turn without its three numbers.
    """
    sessions = sorted(root.glob("Session*/dialog/EmoEvaluation/*.txt"))
    files = [file for file in sessions if not file.name.startswith(".")]
    if not files:
        raise UserError(f"{root}: no Session*/dialog/EmoEvaluation/*.txt; name the folder that holds Session1 .. 5.")
    rows, ratings = [], []
    for file in files:
        turn = None
        for line in read_text(file).splitlines():
            if match := _TURN.match(line):
                turn, emotion, numbers = match.groups()
                values = [number.strip() for number in numbers.split(",")]
                if len(values) != 3:
                    raise UserError(f"{file}: {turn} has [{numbers[:40]}]; expected [valence, activation, dominance].")
                valence, activation, dominance = (utils.parse_rating(file, turn, value) for value in values)
                rows.append(
                    {
                        "FileName": f"{turn}.wav",
                        "EmoClass": IEMOCAP_CLASSES.get(emotion, "O"),
                        "EmoAct": activation,
                        "EmoVal": valence,
                        "EmoDom": dominance,
                        "SpkrID": f"{turn[:5]}{turn.split('_')[-1][:1]}",
                        "Gender": GENDERS.get(turn.split("_")[-1][:1], ""),
                    }
                )
            elif turn and (match := _RATER.match(line)) and match[1][:1] not in GENDERS:
                found = {name: utils.parse_rating(file, turn, value) for name, value in _RATING.findall(match[2])}
                ratings.append(
                    {
                        "FileName": f"{turn}.wav",
                        "Worker": match[1],
                        "EmoAct": found.get("act", float("nan")),
                        "EmoDom": found.get("dom", float("nan")),
                        "EmoVal": found.get("val", float("nan")),
                    }
                )
    if not rows:
        raise UserError(
            f"{files[0].parent}: no turn in {len(files)} files; expected [start - end] TURN emotion [V, A, D]."
        )
    return complete(pd.DataFrame(rows)), _ratings(ratings)


def _ratings(rows: list[dict]) -> pd.DataFrame:
    words = {"Worker": "", "EmoClass_Major": "", "EmoClass_Second": ""}
    return pd.DataFrame([words | row for row in rows], columns=list(utils.DETAILED_COLUMNS))


# ---------------------------------------------------------------------------------------------------------------------
# MSP-IMPROV

_IMPROV_NAME = re.compile(r"^(?:UTD|MSP)-IMPROV-(\S+-([FM])(\d+)-\S+)\.(?:avi|wav)$", re.IGNORECASE)


def read_improv(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Consensus and single raters' labels of MSP-IMPROV, scale 1..5, as they stand in its file.

    Args:
        root: the corpus' folder, with Evalution.txt (spelt so; or Evaluation.txt) somewhere in it.
    Returns:
        (consensus without `audio`, ratings).
    Raises:
        UserError: no such file, or no utterance in it.
    """
    names = ("evalution.txt", "evaluation.txt")
    files = sorted(file for file in root.rglob("*.txt") if file.name.casefold() in names)
    if not files:
        raise UserError(f"{root}: no Evalution.txt or Evaluation.txt in it.")
    file, rows, ratings = files[0], [], []
    for line in filter(str.strip, read_text(file).splitlines()):
        # Cut, since the pattern's time grows with the square of a name that it does not fit.
        if match := _IMPROV_NAME.match(line.partition(";")[0].strip()[: utils.LONGEST_NAME]):
            name, speaker = f"MSP-IMPROV-{match[1]}.wav", f"{match[2].upper()}{match[3]}"
            found = utils.parse_detail(file, name, line)
            known = {"EmoClass": found["EmoClass_Major"], "SpkrID": speaker, "Gender": GENDERS[speaker[0]]}
            rows.append({"FileName": name, **known, **{column: found[column] for column in ATTRIBUTE_COLUMNS}})
        elif rows and line.count(";") > 2:
            ratings.append(utils.parse_detail(file, rows[-1]["FileName"], line))
    if not rows:
        raise UserError(
            f"{file}: no utterance in it; expected lines such as UTD-IMPROV-S01A-F01-P-FM01.avi; N; A:3; ..."
        )
    return complete(pd.DataFrame(rows)), _ratings(ratings)


# ---------------------------------------------------------------------------------------------------------------------
# Consensus of raters


def consensus_of(ratings: pd.DataFrame) -> pd.DataFrame:
    """Mean, number and standard deviation of the ratings of each utterance.

    Args:
        ratings: as from `utils.read_detailed_labels`.
    Returns:
        Table with FileName, EmoClass (what most raters named first; X where several share that), and EmoAct, EmoVal,
        EmoDom, each with `_n` and `_std` (population moments, as in the rest of the program), sorted by file name.
    """
    table = pd.DataFrame(index=sorted(set(ratings["FileName"])))
    groups = ratings.groupby("FileName")
    table["EmoClass"] = groups["EmoClass_Major"].agg(_plurality)
    for column in ATTRIBUTE_COLUMNS:
        table[column] = groups[column].mean()
        table[f"{column}_n"] = groups[column].count()
        table[f"{column}_std"] = groups[column].std(ddof=0)
    return table.rename_axis("FileName").reset_index()


def _plurality(classes: pd.Series) -> str:
    counts = classes[classes != ""].value_counts()
    if counts.empty:
        return ""
    most = counts[counts == counts.iloc[0]].index
    return str(most[0]) if len(most) == 1 else "X"


def write_table(table: pd.DataFrame, path: Path) -> None:
    """A CSV file with an empty field where there is no label.

    Ten digits: what a change of scale leaves in the sixteenth must not move a label over the edge of a level.
    """
    write_text(path, table.to_csv(index=False, float_format="%.10g", lineterminator="\n"))
