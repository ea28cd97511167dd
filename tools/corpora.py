"""Read the label files of different corpora as one table of utterances.

Each reader returns a table with the columns of MSP-Podcast's consensus labels. EmoAct, EmoVal and EmoDom are numbers on
the scale of the corpus, NaN if there is no label. If the corpus has the ratings of each rater, a second table holds
them (`utils.DETAILED_COLUMNS`).

Sources: IEMOCAP (Busso et al. 2008) and MSP-IMPROV (Busso et al. 2017), as distributed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from sklearn.model_selection import train_test_split

import utils
from deepmi import tables
from deepmi.features import AUDIO_ENDINGS, feature_name
from deepmi.process import UserError, first_few, notify
from deepmi.seeds import derived_seed
from deepmi.storage import read_text
from tools.recordings import Recordings, plain_names, plural

ATTRIBUTE_COLUMNS = ("EmoAct", "EmoVal", "EmoDom")
MOST_OUTSIDE = 10  # labels outside the scale, or one in a hundred if that is more
ROOM, ROOM_OF_RATINGS = 1 / 8, 1 / 4  # of the scale's width, beyond its ends; IEMOCAP's 5.5 are means of 5 and 6
SCALE_OF_FIVE = (1.0, 5.0)  # of IEMOCAP and MSP-IMPROV
# MSP-Podcast's letters. Excitement counts as happiness, as usual; MSP-Podcast has no class for frustration.
IEMOCAP_CLASSES = {"neu": "N", "hap": "H", "exc": "H", "ang": "A", "sad": "S", "sur": "U", "fea": "F", "dis": "D"}
IEMOCAP_CLASSES |= {"fru": "O", "oth": "O", "xxx": "X"}
GENDERS = {"F": "Female", "M": "Male"}


# ---------------------------------------------------------------------------------------------------------------------
# Any corpus


def join_recordings(
    table: pd.DataFrame, recordings: Recordings, source: object, skip_missing: bool = False
) -> pd.DataFrame:
    """The table with its recordings in `audio`, plain file names in `FileName`, and the original names in `entry`.

    Raises:
        UserError: recordings are missing, and `skip_missing` is off; or two rows match one recording or one name.
    """
    entries = table["FileName"].tolist()
    paths = recordings.find_all(entries)
    if missing := [entry for entry, path in zip(entries, paths) if path is None]:
        found = f"{source}: {len(missing)} of {plural(len(entries), 'recording')} not found in {recordings.folder} "
        found += f"({first_few(missing)})"
        if namesake := recordings.namesake(missing[0]):
            found += f"; {namesake} has the file name of the first, but is in a different folder"
        if not skip_missing or len(missing) == len(entries):
            raise UserError(f"{found}. Correct the rows, name the folder with --audio, or add --skip-missing.")
        notify(f"warning: {found}; left out.")
    table = table.assign(entry=entries, audio=paths).dropna(subset="audio").reset_index(drop=True)
    table["FileName"] = plain_names(table["entry"].tolist(), table["audio"].tolist(), recordings.folder)
    stems = table["FileName"].map(feature_name)
    for keys, problem in ((table["audio"], "are the same recording"), (stems, "would have the same name")):
        if keys.duplicated().any():
            first, second, *_ = table["entry"][keys == keys[keys.duplicated()].iloc[0]]
            raise UserError(f"{source}: {first} and {second} {problem}; expected one row and one name per recording.")
    tables.check_names(source, table["FileName"].tolist())
    return table


def complete(table: pd.DataFrame) -> pd.DataFrame:
    """The table with all columns of the consensus labels; words for an empty field, such as `nan`, become empty."""
    for column in utils.CONSENSUS_COLUMNS:
        if column not in table:
            table[column] = float("nan") if column in ATTRIBUTE_COLUMNS else ""
    for column in ("EmoClass", "SpkrID", "Gender", "Split_Set"):
        words = tables.UNKNOWN if column in ("SpkrID", "Split_Set") else tables.EMPTY
        table[column] = tables.without_words(table[column], words)
    table["Split_Set"] = table["Split_Set"].map(utils.split_name)
    table.loc[table["SpkrID"] == "", "SpkrID"] = utils.UNKNOWN_SPEAKER
    return table


def leave_out_unsplit(table: pd.DataFrame, source: object) -> pd.DataFrame:
    """The rows that have a split, with a warning about the rest; raises `UserError` if no row has one."""
    names = table["FileName"][table["Split_Set"] == ""].tolist()
    if len(names) == len(table):
        raise UserError(f"{source}: no row has a split; expected Train, Validation, Test1 or names of your own.")
    if names:
        notify(f"warning: {source}: left out {len(names)} of {len(table)} rows without a split ({first_few(names)}).")
    return table[table["Split_Set"] != ""].reset_index(drop=True)


def span(scale: tuple[float, float]) -> str:
    """A label scale for messages: 1-7."""
    return f"{scale[0]:g}{'-' if scale[0] >= 0 else ' to '}{scale[1]:g}"


def clip_to_scale(table: pd.DataFrame, scale: tuple[float, float], source: object, room: float = ROOM) -> pd.DataFrame:
    """The table with labels slightly outside the scale (IEMOCAP has a few) set to its end; a warning lists them.

    Args:
        table: consensus labels or ratings.
        scale: lowest and highest possible label.
        source: the file, for messages.
        room: how far outside the scale a label may be, as a fraction of the scale's width.
    Raises:
        UserError: a label is farther outside, or so many labels are outside that the scale must be wrong.
    """
    room *= (scale[1] - scale[0]) * (1 + 1e-9)
    table = table.copy()
    for column in ATTRIBUTE_COLUMNS:
        labels = table[column].dropna()
        excess = (labels - labels.clip(*scale)).abs()
        outside = labels[excess > 0]
        if excess.max() > room or len(outside) > max(MOST_OUTSIDE, len(labels) / 100):
            row = excess.idxmax()
            raise UserError(
                f"{source}: {len(outside)} of {plural(len(labels), 'label')} of {column} outside the label scale "
                f"{span(scale)}, such as {labels[row]:g} of {table['FileName'][row]}; is this the right scale?"
            )
        if len(outside):
            names = first_few([f"{table['FileName'][row]} {label:g}" for row, label in outside.items()])
            notify(
                f"warning: {source}: {plural(len(outside), 'label')} of {column} outside the label scale {span(scale)} "
                f"set to its end ({names})."
            )
            table[column] = table[column].clip(*scale)
    return table


def rescale(
    table: pd.DataFrame, scale: tuple[float, float], flip: bool, source: object, room: float = ROOM
) -> pd.DataFrame:
    """The table with its labels, and their standard deviations, rescaled linearly to 1-7.

    `flip` reverses arousal. For the remaining arguments and `UserError` see `clip_to_scale`.
    """
    table = clip_to_scale(table, scale, source, room)
    for column in ATTRIBUTE_COLUMNS:
        values = scale[0] + scale[1] - table[column] if flip and column == "EmoAct" else table[column]
        table[column] = utils.to_label_range(values, scale)
        if f"{column}_std" in table:
            table[f"{column}_std"] *= (utils.LABEL_RANGE[1] - utils.LABEL_RANGE[0]) / (scale[1] - scale[0])
    return table


def split_by_speaker(table: pd.DataFrame, fractions: Sequence[float], seed: int, source: object) -> list[str]:
    """Train, Validation or Test1 for each row: the given fractions of the speakers, and no speaker in two splits.

    Raises:
        UserError: fractions that do not sum to 1, rows of unknown speakers, or fewer than three speakers.
    """
    if not (min(fractions) > 0 and abs(sum(fractions) - 1) <= 1e-6):  # refuses NaN as well
        wanted = " ".join(f"{fraction:g}" for fraction in fractions)
        raise UserError(f"--split-by-speaker {wanted}: expected three positive fractions that sum to 1.")
    if unknown := table["FileName"][table["SpkrID"] == utils.UNKNOWN_SPEAKER].tolist():
        raise UserError(
            f"{source}: {len(unknown)} of {len(table)} rows have no speaker ({first_few(unknown)}), so a split by "
            "speaker is not safe. Name the column of speakers with --speaker-column, and fill or remove such rows."
        )
    speakers = sorted(set(table["SpkrID"]))
    if len(speakers) < len(fractions):
        raise UserError(f"{source}: {plural(len(speakers), 'speaker')}; a split by speaker needs at least three.")
    rest = min(max(round(len(speakers) * (fractions[1] + fractions[2])), 2), len(speakers) - 1)
    test = min(max(round(rest * fractions[2] / (fractions[1] + fractions[2])), 1), rest - 1)
    seed = seed if seed < 2**32 else derived_seed(seed)  # scikit-learn's largest seed is 2**32 - 1
    train, rest_speakers = train_test_split(speakers, test_size=rest, random_state=seed)
    parts = (train, *train_test_split(rest_speakers, test_size=test, random_state=seed))
    splits = {speaker: split for split, part in zip(utils.SPLITS, parts) for speaker in part}
    return [splits[speaker] for speaker in table["SpkrID"]]


def read_table(path: Path, columns: dict[str, str]) -> pd.DataFrame:
    """Labels of a table with a header line, separated by comma, semicolon, tab or bar.

    Args:
        path: the table.
        columns: column of the consensus labels -> its name in the table; `FileName` is required.
    Raises:
        UserError: the table is unreadable or has no rows, a column is missing, a label is not a number, or a row names
            no file.
    """
    wanted = tuple(columns.values())
    delimiter = tables.find_delimiter(path, wanted)
    given = tables.read_csv(path, wanted, delimiter)
    table = pd.DataFrame({ours: given[theirs] for ours, theirs in columns.items()})
    if table.empty:
        raise UserError(f"{path}: no rows below its header.")
    if (nameless := table["FileName"] == "").any():
        raise UserError(f"{path}: row {nameless.argmax() + 1} below the header names no file in {columns['FileName']}.")
    for column in table.columns.intersection(ATTRIBUTE_COLUMNS):
        labels = table[column]
        if delimiter != "," and not labels.str.contains(".", regex=False).any():
            labels = labels.str.replace(r"^([+-]?\d*),(\d+)$", r"\1.\2", regex=True)  # decimal commas
        table[column] = [tables.parse_rating(path, *row) for row in zip(table["FileName"], labels)]
    if "SpkrID" in table:  # programs write 1.0 for 1 if some speakers are missing; accented letters have two forms
        table["SpkrID"] = table["SpkrID"].str.normalize("NFC").str.replace(r"^(\d+)\.0+$", r"\1", regex=True)
    return complete(table)


def consensus_of(ratings: pd.DataFrame) -> pd.DataFrame:
    """Mean, number (`_n`) and population standard deviation (`_std`) of the ratings of each utterance.

    EmoClass is the most frequent primary class, X if there is a tie.
    """
    groups = ratings.groupby("FileName")
    modes = groups["EmoClass_Major"].agg(lambda classes: classes[classes != ""].mode().tolist())
    table = modes.map(lambda mode: "X" if len(mode) > 1 else "".join(mode)).to_frame("EmoClass")
    for column in ATTRIBUTE_COLUMNS:
        table[column] = groups[column].mean()
        table[f"{column}_n"] = groups[column].count()
        table[f"{column}_std"] = groups[column].std(ddof=0)
    return table.reset_index()


# ---------------------------------------------------------------------------------------------------------------------
# MSP-Podcast


def find_audio_folder(root: Path) -> Path | None:
    """The folder with the recordings of a corpus, `Audios` or `Audio` in any case; None if there is none."""
    folders = (child for child in sorted(root.iterdir()) if child.is_dir())
    return next((folder for folder in folders if folder.name.casefold() in ("audios", "audio")), None)


def read_podcast(root: Path, in_place: bool = False) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Consensus labels and ratings (or None) of a release of MSP-Podcast. Prints which files it used.

    Splits missing from the label file are read from Partitions.txt. `in_place` means that the stages will read the
    label file of the release itself.

    Raises:
        UserError: no label file, no splits anywhere, or a label file that the stages cannot read in place.
    """
    file, detailed = utils.find_label_file(root), utils.find_detailed_file(root)
    print(f"labels: {file}\nlabels of each rater: {detailed or 'none'}")
    table = utils.read_labels(file, needs_split=False)
    table["Split_Set"] = table["Split_Set"].map(utils.split_name)
    for path in sorted(path for path in root.rglob("*.txt") if path.stem.casefold() == "partitions")[:1]:
        theirs = table["FileName"].map(read_partitions(path)).fillna("")
        lacking = table["Split_Set"] == ""
        used = (lacking & (theirs != "")).sum()
        differing = (~lacking & (theirs != "") & (theirs != table["Split_Set"])).sum()
        if used and in_place:
            raise UserError(
                f"{file}: {plural(used, 'row')} with a split only in {path}, which the stages do not read. Add "
                "--out DIR to write a corpus whose labels have these splits; it links to the features of the release."
            )
        table["Split_Set"] = table["Split_Set"].where(~lacking, theirs)
        print(f"splits: {path} for {plural(used, 'row')}; the label file for the rest ({differing:,} of them differ)")
    if (table["Split_Set"] == "").all():
        raise UserError(f"{file}: no Split_Set, and no Partitions.txt in {root}.")
    for column in table.columns.intersection(ATTRIBUTE_COLUMNS):
        table[column] = [tables.parse_rating(file, *row) for row in zip(table["FileName"], table[column])]
        outside = table[["FileName", column]][table[column] != table[column].clip(*utils.LABEL_RANGE)].dropna()
        if len(outside) and in_place:
            name, label = outside.iloc[0]
            raise UserError(
                f"{file}: {plural(len(outside), 'label')} of {column} outside 1-7, such as {label:g} of {name}; the "
                "stages refuse these. Add --out DIR to write a corpus with such labels set to the end of the scale."
            )
    return complete(table), utils.read_detailed_labels(detailed) if detailed else None


def read_partitions(path: Path) -> dict[str, str]:
    """The split of each file in a Partitions.txt: a file and its split per line, in either order.

    Raises:
        UserError: a line with anything else, or a file in two splits.
    """
    splits = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        fields = [field for field in re.split(r"[;,\s]+", line) if field]
        if not fields:
            continue
        files = [field for field in fields if Path(field).suffix.lower() in AUDIO_ENDINGS]
        names = [field for field in fields if field not in files]
        if len(files) != 1 or len(names) != 1:
            raise UserError(f"{path}: line {number} is {line[:60]!r}; expected a file and its split.")
        split = utils.split_name(names[0])
        if splits.setdefault(files[0], split) != split:
            raise UserError(f"{path}: {files[0]} is in {splits[files[0]]} and in {split}; expected one split.")
    return splits


# ---------------------------------------------------------------------------------------------------------------------
# IEMOCAP and MSP-IMPROV

_TURN = re.compile(r"^\[\s*[\d.]+\s*-\s*[\d.]+\s*\]\s+(\S+)\s+(\S+)\s+\[([^\]]*)\]")
_RATER = re.compile(r"^A-(\S+?):\s*(.*)")
_RATING = re.compile(r"\b(val|act|dom)\w*\s+([^\s;()]+)")
_IMPROV_NAME = re.compile(r"^(?:UTD|MSP)-IMPROV-(\S+-([FM])(\d+)-\S+)\.(?:avi|wav)$", re.IGNORECASE)


def _tables(rows: list[dict], ratings: list[dict]) -> tuple[pd.DataFrame, pd.DataFrame]:
    text = dict.fromkeys(("Worker", "EmoClass_Major", "EmoClass_Second"), "")
    table = pd.DataFrame([text | rating for rating in ratings], columns=list(utils.DETAILED_COLUMNS))
    return complete(pd.DataFrame(rows)), table


def read_iemocap(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Consensus labels and ratings of IEMOCAP, scale 1-5.

    The numbers in brackets after a turn are valence, activation and dominance. Raters whose name begins with F or M are
    the actors, who rate themselves. They are left out, as in the consensus labels.

    Raises:
        UserError: no evaluation files, no turns in them, or a turn without its three numbers.
    """
    sessions = sorted(root.glob("Session*/dialog/EmoEvaluation/*.txt"))
    files = [file for file in sessions if not file.name.startswith(".")]
    if not files:
        raise UserError(f"{root}: no Session*/dialog/EmoEvaluation/*.txt; name the folder that holds Session1 to 5.")
    rows, ratings = [], []
    for file in files:
        turn = None
        for line in read_text(file).splitlines():
            if match := _TURN.match(line):
                turn, emotion, numbers = match.groups()
                labels = numbers.split(",")
                if len(labels) != 3:
                    raise UserError(f"{file}: {turn} has [{numbers[:40]}]; expected [valence, activation, dominance].")
                letter = turn.split("_")[-1][:1]
                row = {"FileName": f"{turn}.wav", "EmoClass": IEMOCAP_CLASSES.get(emotion, "O")}
                row |= {"SpkrID": turn[:5] + letter, "Gender": GENDERS.get(letter, "")}
                for column, label in zip(("EmoVal", "EmoAct", "EmoDom"), labels):
                    row[column] = tables.parse_rating(file, turn, label)
                rows.append(row)
            elif turn and (match := _RATER.match(line)) and match[1][:1] not in GENDERS:
                rating = {"FileName": f"{turn}.wav", "Worker": match[1]}
                for name, label in _RATING.findall(match[2]):
                    rating[f"Emo{name.capitalize()}"] = tables.parse_rating(file, turn, label)
                ratings.append(rating)
    if not rows:
        raise UserError(f"{files[0].parent}: no turns; expected lines such as [start - end] TURN emotion [V, A, D].")
    return _tables(rows, ratings)


def read_improv(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Consensus labels and ratings of MSP-IMPROV, scale 1-5, from its Evalution.txt (sic).

    Raises:
        UserError: there is no such file, or no utterance in it.
    """
    names = ("evalution.txt", "evaluation.txt")
    files = sorted(file for file in root.rglob("*.txt") if file.name.casefold() in names)
    if not files:
        raise UserError(f"{root}: no Evalution.txt or Evaluation.txt in it.")
    file, rows, ratings = files[0], [], []
    for line in filter(str.strip, read_text(file).splitlines()):
        # Cut, because the time of a search without a match grows with the square of the name's length.
        if match := _IMPROV_NAME.match(line.partition(";")[0].strip()[: tables.LONGEST_NAME]):
            name, speaker = f"MSP-IMPROV-{match[1]}.wav", f"{match[2].upper()}{match[3]}"
            found = utils.parse_detail(file, name, line)
            row = {"FileName": name, "EmoClass": found["EmoClass_Major"]}
            row |= {"SpkrID": speaker, "Gender": GENDERS[speaker[0]]}
            rows.append(row | {column: found[column] for column in ATTRIBUTE_COLUMNS})
        elif rows and line.count(";") > 2:
            ratings.append(utils.parse_detail(file, rows[-1]["FileName"], line))
    if not rows:
        raise UserError(f"{file}: no utterances; expected lines such as UTD-IMPROV-S01A-F01-P-FM01.avi; N; A:3; ...")
    return _tables(rows, ratings)
