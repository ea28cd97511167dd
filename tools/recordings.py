"""Recordings: those below a folder, those that a table names, and those that feature files were made from."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

from tqdm import tqdm

from deepmi import features
from deepmi.features import AUDIO_ENDINGS, UNREADABLE_ENDINGS
from deepmi.process import UserError, notify
from deepmi.storage import read_json_object, write_text

# Tables often name the video, or the file before its conversion.
MEDIA_ENDINGS = (
    *AUDIO_ENDINGS,
    *UNREADABLE_ENDINGS,
    ".mpg",
    ".mpeg",
    ".wmv",
    ".flv",
    ".avi",
    ".mov",
    ".mkv",
    ".m4v",
    ".mp4",
)
SYSTEM_FOLDERS = ("__macosx", "$recycle.bin", "@eadir")  # of archivers, Windows and Synology; no recordings
RECORD_FILE = "recordings.json"  # beside .mat files: the recording that each was made from


def first_few(names: Sequence[object], most: int = 5) -> str:
    """The first names of a list, for a message."""
    return ", ".join(map(str, names[:most])) + (", ..." if len(names) > most else "")


# ---------------------------------------------------------------------------------------------------------------------
# Below a folder


def _files_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """(files, broken links and unreadable folders) below a folder, without hidden ones.

    Links to folders are followed, after all other folders: a folder that is there twice counts under its own name.
    """
    found, lost, seen = [], [], set()
    waiting, links = [folder], []
    while waiting or links:
        place = waiting.pop() if waiting else links.pop(links.index(min(links)))
        try:
            state = place.stat()
            if (state.st_dev, state.st_ino) in seen:
                continue
            seen.add((state.st_dev, state.st_ino))
            with os.scandir(place) as listing:
                entries = list(listing)
        except OSError:
            lost.append(place)
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name.casefold() in SYSTEM_FOLDERS:
                continue
            path = place / entry.name
            if entry.is_symlink():
                try:
                    mode = path.stat().st_mode
                except OSError:
                    lost.append(path)
                    continue
                if stat.S_ISDIR(mode):
                    links.append(path)
                elif stat.S_ISREG(mode):
                    found.append(path)
            elif entry.is_dir():
                waiting.append(path)
            elif entry.is_file():
                found.append(path)
    return found, lost


def list_recordings(audio_dir: Path) -> list[Path]:
    """Recordings below a folder, sorted. Links are followed; broken ones and kinds that can't be read are named.

    Raises:
        UserError: no such folder, or no recordings that can be read.
    """
    if not audio_dir.is_dir():
        raise UserError(f"{audio_dir}: no such folder of recordings.")
    files, lost = _files_below(audio_dir)
    if lost:
        names = sorted(str(path.relative_to(audio_dir)) for path in lost)
        notify(f"warning: {audio_dir}: left out {len(lost)} broken links or unreadable folders ({first_few(names)}).")
    found = sorted(path for path in files if path.suffix.lower() in AUDIO_ENDINGS)
    readable = {path.with_suffix("") for path in found}  # a video beside its sound is no loss
    rest = (path for path in files if path.suffix.lower() in UNREADABLE_ENDINGS)
    unreadable = sorted(path.name for path in rest if path.with_suffix("") not in readable)
    if unreadable:
        told = f"left out {len(unreadable)} files of kinds that can't be read ({first_few(unreadable)})"
        notify(f"note: {audio_dir}: {told}; convert them to wav or flac.")
    if not found:
        raise UserError(f"{audio_dir}: no recordings; expected files ending in {', '.join(AUDIO_ENDINGS)}.")
    return found


def find_recordings(audio_dir: Path) -> list[Path]:
    """Recordings below a folder, sorted, each with its own feature file.

    Raises:
        UserError: as `list_recordings`, or two would share a feature file.
    """
    by_feature: dict[str, Path] = {}
    for path in list_recordings(audio_dir):
        name = features.feature_name(path.name)
        other = by_feature.setdefault(name, path)
        if other is not path and not other.samefile(path):
            raise UserError(f"{path} and {other} would share the feature file {name}; rename one.")
    return list(by_feature.values())


# ---------------------------------------------------------------------------------------------------------------------
# By the names in a table


class _Place(NamedTuple):
    """Where a recording lies: its folders below the audio folder, also in small letters, its name, and its path."""

    folders: list[str]
    folded: list[str]
    name: str
    path: Path


def _composed(text: str) -> str:
    """The text with each accented letter as one character; file systems and archives write them as one or as two."""
    return unicodedata.normalize("NFC", text)


def _folded(text: str) -> str:
    return _composed(_composed(text).casefold())


def _parts(entry: str) -> list[str]:
    """Folders and name of a path as tables write it, with slashes of either kind."""
    path = os.path.normpath(re.sub(r"^[A-Za-z]:(?=[\\/])", "", entry).replace("\\", "/"))
    return [_composed(part) for part in path.split("/") if part not in ("", ".", "..")]


def _stem(name: str) -> str:
    """A file name without its ending; what is not the ending of a sound or video file belongs to the name."""
    ending = Path(name).suffix
    return name.removesuffix(ending) if ending.lower() in MEDIA_ENDINGS else name


def _is_within(some: Sequence[str], folders: Sequence[str]) -> bool:
    """Whether `folders` has all of `some`, in their order."""
    rest = iter(folders)
    return all(folder in rest for folder in some)


class Recordings:
    """The recordings below a folder, found by what label files call them."""

    def __init__(self, folder: Path, linked: Path | None = None):
        """
        Args:
            folder: searched with its subfolders.
            linked: folder of links to recordings, or copies of them, that an earlier run made; what is there counts
                only where there is nothing else.
        Raises:
            UserError: no such folder, or no recordings in it.
        """
        self.folder, self.linked = folder, linked and linked.absolute()
        self.beside: set[str] = set()  # names of the folders beside it
        self.root = [_folded(part) for part in folder.absolute().parts[1:]]
        with contextlib.suppress(OSError):
            self.beside = {_folded(path.name) for path in folder.absolute().parent.iterdir() if path.is_dir()}
        self.by_stem: dict[str, list[_Place]] = defaultdict(list)
        self.folders: set[str] = set()
        for path in list_recordings(folder):
            *folders, name = map(_composed, path.relative_to(folder).parts)
            place = _Place(folders, [_folded(folder) for folder in folders], name, path)
            self.by_stem[_folded(_stem(name))].append(place)
            self.folders.update(place.folded)

    def find_all(self, entries: Sequence[str]) -> list[Path | None]:
        """The recording of each entry, as `find`.

        Where some entries name the audio folder itself (`s1/a.wav` for the folder `.../s1`), one that names other
        folders instead (`s2/a.wav`) is not looked for in it.
        """
        named = any(self._from_root([*map(_folded, _parts(entry)[:-1])]) is not None for entry in entries)
        found = [self.find(entry, flat=not named) for entry in entries]
        astray = [entry for entry, path in zip(entries, found) if path and not named and self._names_neighbour(entry)]
        if astray:
            notify(
                f"warning: {self.folder}: {len(astray)} rows name a folder beside this one ({first_few(astray)}); "
                "their recordings were taken from here by name alone."
            )
        return found

    def find(self, entry: str, flat: bool = True) -> Path | None:
        """The recording called so: a path, absolute or from the folder, or a file name anywhere below it.

        The ending may be different or absent, as may the case of letters where that leaves one. Folders of the entry
        must be on the way to the recording, in their order. An entry may have more of them, such as those of another
        disk, but none that is elsewhere below the audio folder: s1/a.wav is not s2/a.wav. Nothing outside the audio
        folder is looked at.

        Args:
            entry: what the table says.
            flat: whether the entry may have folders that the audio folder lacks.
        Raises:
            UserError: several are called so.
        """
        path = self._at(entry)
        if path is not None:
            return path
        for text in dict.fromkeys((entry, unquote(entry))):
            *folders, name = _parts(text) or [""]
            folded = [_folded(folder) for folder in folders]
            for stem in dict.fromkeys((_stem(name), name)):
                places = self._fitting(self.by_stem.get(_folded(stem), ()), folded, flat)
                for alike in (
                    [place for place in places if place.name == name],
                    [place for place in places if _stem(place.name) == stem],
                    places,
                ):
                    if alike:
                        return self._only(alike, folders, entry)
        return None

    def _names_neighbour(self, entry: str) -> bool:
        """Whether an entry's last folder is not below the audio folder, but beside it."""
        folders = [_folded(folder) for folder in _parts(entry)[:-1]]
        return bool(folders) and folders[-1] in self.beside and not self.folders & {*folders}

    def namesake(self, entry: str) -> Path | None:
        """A recording with the file name of an entry, in whichever folder."""
        name = (_parts(entry) or [""])[-1]
        return next((place.path for place in self.by_stem.get(_folded(_stem(name)), ())), None)

    def _at(self, entry: str) -> Path | None:
        """The recording at just this path, if it is in the folder."""
        root = os.path.normpath(self.folder.absolute())
        path = Path(os.path.normpath(Path(root) / entry))
        with contextlib.suppress(OSError, ValueError):  # a name that no file can have
            if path.is_relative_to(root) and path.suffix.lower() in AUDIO_ENDINGS and path.is_file():
                return self.folder / path.relative_to(root)
        return None

    def _from_root(self, folders: Sequence[str]) -> list[str] | None:
        """The folders after those that lead to the audio folder; None where they do not lead there."""
        for count in range(min(len(folders), len(self.root)), 0, -1):
            if folders[:count] == self.root[-count:]:
                return folders[count:]
        return None

    def _fitting(self, places: Sequence[_Place], wanted: list[str], flat: bool) -> list[_Place]:
        """Those places that the folders of an entry, in small letters, do not contradict."""
        below = self._from_root(wanted)
        only_name = len(places) == 1  # with no folder in common the name decides, unless several recordings have it

        def fits(here: list[str]) -> bool:
            if _is_within(wanted, here) or (below is not None and _is_within(below, here)):
                return True
            known = self.folders.isdisjoint(set(wanted) - set(here))
            return flat and known and _is_within(here, wanted) and bool(here or only_name)

        return [place for place in places if fits(place.folded)]

    def _only(self, places: list[_Place], folders: list[str], entry: str) -> Path:
        """The one of several places that an entry means."""
        tests = (
            lambda place: self.linked is None or not place.path.absolute().is_relative_to(self.linked),
            lambda place: _is_within(folders, place.folders),  # by the case of letters
            lambda place: place.folders == folders,
        )
        for test in tests:
            places = [place for place in places if test(place)] or places
        first, *others = [place.path for place in places]
        for other in others:
            if not first.samefile(other):
                raise UserError(f"{entry}: both {first} and {other} match; name files with their folders and endings.")
        return first


def plain_names(entries: Sequence[str], paths: Sequence[Path], folder: Path) -> list[str]:
    """A file name for each entry, with its folders in it where plain names or feature files would clash.

    Args:
        entries: what the table says.
        paths: their recordings.
        folder: that of the recordings.
    """
    names = [(_parts(entry) or [""])[-1] for entry in entries]
    endings = [Path(name).suffix.lower() in AUDIO_ENDINGS for name in names]
    names = [name if known else _composed(path.name) for name, known, path in zip(names, endings, paths)]
    if len({features.feature_name(name) for name in names}) < len(names):
        relative = [path.relative_to(folder) if path.is_relative_to(folder) else path for path in paths]
        names = [_composed("_".join(part for part in path.parts if part != path.anchor)) for path in relative]
    return names


# ---------------------------------------------------------------------------------------------------------------------
# What features were made from


def _state(recording: Path) -> str:
    """Size and times of a recording: while they stay, so does its content. No tool can set the second time."""
    state = recording.stat()
    return f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}"


def _content(recording: Path) -> str:
    checksum = hashlib.blake2b(digest_size=16)
    with recording.open("rb") as stream:
        while block := stream.read(2**20):
            checksum.update(block)
    return checksum.hexdigest()


def without_features(recordings: Sequence[Path], feature_dir: Path) -> dict[Path, Path]:
    """Recordings that need features, and the file for them: those that have none, and those that have changed.

    A feature file whose recording has another content now is removed, and a note says so. What features are made from
    is noted down in RECORD_FILE before they are, so that a killed run leaves none that the next run could take for
    those of another recording. Features that are not of this program, such as MSP-Podcast's own, are kept as they are.

    Args:
        recordings: as from `find_recordings`.
        feature_dir: folder of the .mat files.
    Returns:
        Recording -> feature file.
    Raises:
        UserError: RECORD_FILE is damaged.
    """
    file = feature_dir / RECORD_FILE
    try:
        before = read_json_object(file) if file.is_file() else {}
    except UserError as error:
        raise UserError(f"{error} Remove it, and the features beside it if recordings have changed.") from None
    ours = bool(features.read_feature_set(feature_dir))
    record, todo, changed = dict(before), {}, []
    for recording in tqdm(recordings, "recordings", unit="file", leave=False, delay=0.5, disable=None):
        target = Path(features.feature_file(feature_dir, recording.name))
        key = quote(target.name, errors="surrogateescape")  # a name may be of no encoding
        known, there = str(before.get(key, "")), target.is_file()
        if there and not known and not ours:
            continue
        try:
            state = _state(recording)
            if there and known.startswith(f"{state} "):
                continue
            content = _content(recording)
            older = not known and recording.stat().st_mtime_ns <= target.stat().st_mtime_ns if there else False
        except OSError:  # the extraction says what is wrong with it
            todo[recording] = target
            continue
        record[key] = f"{state} {content}"
        if not there or not (older or known.endswith(f" {content}")):
            todo[recording] = target
            changed += [target] if there else []
    for target in changed:
        target.unlink()
    if record != before:
        write_text(file, json.dumps(record, indent=0) + "\n")
    if changed:
        names = [target.name for target in changed]
        notify(f"note: {feature_dir}: removed {len(changed)} feature files of changed recordings ({first_few(names)}).")
    return todo
