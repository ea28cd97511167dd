"""Find recordings: those below a folder, those that a table names, and those without up-to-date features."""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import json
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote, unquote

from tqdm import tqdm

from deepmi import features
from deepmi.features import AUDIO_ENDINGS, UNREADABLE_ENDINGS
from deepmi.process import UserError, first_few, notify
from deepmi.storage import read_json_object, update_with_file, write_text

# Tables often name the video, or the file before its conversion.
VIDEO_ENDINGS = (".mpg", ".mpeg", ".wmv", ".flv", ".avi", ".mov", ".mkv", ".m4v", ".mp4")
MEDIA_ENDINGS = (*AUDIO_ENDINGS, *UNREADABLE_ENDINGS, *VIDEO_ENDINGS)
SYSTEM_FOLDERS = ("__macosx", "$recycle.bin", "@eadir")  # made by macOS archives, Windows and Synology
RECORD_FILE = "recordings.json"  # beside .mat files: the recording that each was made from


def plural(count: int, noun: str) -> str:
    """A number with its noun: `1 row`, `2 rows`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


# ---------------------------------------------------------------------------------------------------------------------
# Below a folder


def _files_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files below a folder, and paths that cannot be read; hidden files and system folders are skipped.

    Linked folders are searched last, so that a folder with two paths is listed under its real one.
    """
    files, unreadable, seen = [], [], set()
    queue = [(False, folder)]  # (whether it is a link, folder)
    while queue:
        _, place = heapq.heappop(queue)
        try:
            state, entries = place.stat(), list(os.scandir(place))
        except OSError:
            unreadable.append(place)
            continue
        if (state.st_dev, state.st_ino) in seen:
            continue
        seen.add((state.st_dev, state.st_ino))
        for entry in entries:
            path = place / entry.name
            if entry.name.startswith(".") or entry.name.casefold() in SYSTEM_FOLDERS:
                continue
            try:
                if entry.is_dir():
                    heapq.heappush(queue, (entry.is_symlink(), path))
                elif entry.is_file():
                    files.append(path)
                else:
                    path.stat()
            except OSError:  # a broken link, or no permission
                unreadable.append(path)
    return files, unreadable


def list_recordings(audio_dir: Path) -> list[Path]:
    """Recordings below a folder, sorted. Links are followed. Messages list broken links and unsupported formats.

    Raises:
        UserError: the folder does not exist, or has no supported recordings.
    """
    if not audio_dir.is_dir():
        raise UserError(f"{audio_dir}: no such folder of recordings.")
    files, unreadable = _files_below(audio_dir)
    if unreadable:
        names = sorted(str(path.relative_to(audio_dir)) for path in unreadable)
        paths = f"{plural(len(names), 'path')} (broken link or no permission): {first_few(names)}"
        notify(f"warning: {audio_dir}: left out {paths}.")
    found = sorted(path for path in files if path.suffix.lower() in AUDIO_ENDINGS)
    supported = {path.with_suffix("") for path in found}  # a video beside its sound file is not reported
    unsupported = sorted(
        path.name
        for path in files
        if path.suffix.lower() in UNREADABLE_ENDINGS and path.with_suffix("") not in supported
    )
    if unsupported:
        paths = f"{plural(len(unsupported), 'file')} in unsupported formats ({first_few(unsupported)})"
        notify(f"note: {audio_dir}: left out {paths}; convert them to wav or flac.")
    if not found:
        raise UserError(f"{audio_dir}: no recordings; expected files ending in {', '.join(AUDIO_ENDINGS)}.")
    return found


def find_recordings(audio_dir: Path) -> list[Path]:
    """Recordings below a folder, sorted, one per feature file.

    Raises:
        UserError: as `list_recordings`; or two different recordings would share a feature file.
    """
    by_feature: dict[str, Path] = {}
    for path in list_recordings(audio_dir):
        name = features.feature_name(path.name)
        first = by_feature.setdefault(name, path)
        if first is not path and not first.samefile(path):
            raise UserError(f"{path} and {first} would share the feature file {name}; rename one.")
    return list(by_feature.values())


# ---------------------------------------------------------------------------------------------------------------------
# By the names in a table


def _composed(text: str) -> str:
    """The text with each accented letter as one character; some file systems and archives use two."""
    return unicodedata.normalize("NFC", text)


def _folded(text: str) -> str:
    """The composed text, ignoring case."""
    return _composed(_composed(text).casefold())


def _split(entry: str) -> tuple[list[str], str]:
    """Folders and file name of a path in a table, with slashes or backslashes."""
    path = os.path.normpath(re.sub(r"^[A-Za-z]:(?=[\\/])", "", entry).replace("\\", "/"))
    *folders, name = [_composed(part) for part in path.split("/") if part not in ("", ".", "..")] or [""]
    return folders, name


def _stem(name: str) -> str:
    """A file name without the ending of a sound or video file; any other ending belongs to the name."""
    ending = Path(name).suffix
    return name.removesuffix(ending) if ending.lower() in MEDIA_ENDINGS else name


def _is_within(some: Sequence[str], folders: Sequence[str]) -> bool:
    """Whether `folders` contains all of `some`, in the same order."""
    rest = iter(folders)
    return all(folder in rest for folder in some)


class Recordings:
    """The recordings below a folder, found by the names that a table gives them.

    Links and copies that an earlier run made in the folder `prepared` are used only if there is no other match.
    """

    def __init__(self, folder: Path, prepared: Path | None = None):
        self.folder, self.prepared = folder, prepared and prepared.absolute()
        self.root = [_folded(part) for part in folder.absolute().parts[1:]]
        self.by_stem: dict[str, list[tuple[list[str], Path]]] = defaultdict(list)  # (folders below the root, path)
        for path in list_recordings(folder):
            folders = [_folded(part) for part in path.relative_to(folder).parts[:-1]]
            self.by_stem[_folded(_stem(path.name))].append((folders, path))
        self.folders = {part for places in self.by_stem.values() for folders, _ in places for part in folders}

    def find_all(self, entries: Sequence[str]) -> list[Path | None]:
        """The recording of each entry, as `find`.

        If some entries name the audio folder itself (`s1/a.wav`, and the folder is `.../s1`), entries with different
        folders (`s2/a.wav`) do not match its recordings.
        """
        given = [[_folded(folder) for folder in _split(entry)[0]] for entry in entries]
        named = any(self._below_root(folders) is not None for folders in given)
        found = [self.find(entry, flat=not named) for entry in entries]
        neighbors = set()
        with contextlib.suppress(OSError):
            neighbors = {_folded(path.name) for path in self.folder.absolute().parent.iterdir() if path.is_dir()}
        doubtful = [
            entry
            for entry, path, folders in zip(entries, found, given)
            if path and folders and folders[-1] in neighbors and self.folders.isdisjoint(folders)
        ]
        if doubtful and not named:
            notify(
                f"warning: {self.folder}: {plural(len(doubtful), 'row')} with a folder that is next to this one "
                f"({first_few(doubtful)}); these recordings were found here by file name alone."
            )
        return found

    def find(self, entry: str, flat: bool = True) -> Path | None:
        """The recording that a table's entry means: a path, absolute or from the folder, or a file name below it.

        The ending may differ or be missing. The case of letters may differ if only one recording matches. The folders
        of the entry and those of the recording must not contradict each other: `s1/a.wav` is never `s2/a.wav`. Both may
        have additional folders, but the entry only if `flat`. Nothing outside the audio folder is found.

        Raises:
            UserError: several recordings match.
        """
        if path := self._at(entry):
            return path
        for text in dict.fromkeys((entry, unquote(entry))):
            folders, name = _split(text)
            for stem in dict.fromkeys((_stem(name), name)):
                if paths := self._fitting(stem, [_folded(folder) for folder in folders], flat):
                    return self._best(paths, folders, name, entry)
        return None

    def namesake(self, entry: str) -> Path | None:
        """A recording with the file name of an entry, in any folder."""
        places = self.by_stem.get(_folded(_stem(_split(entry)[1])))
        return places[0][1] if places else None

    def _at(self, entry: str) -> Path | None:
        """The recording at exactly this path, if it is in the folder."""
        root = os.path.normpath(self.folder.absolute())
        path = Path(os.path.normpath(Path(root) / entry))
        with contextlib.suppress(OSError, ValueError):  # the entry is not a valid file name
            if path.is_relative_to(root) and path.suffix.lower() in AUDIO_ENDINGS and path.is_file():
                return self.folder / path.relative_to(root)
        return None

    def _below_root(self, folders: Sequence[str]) -> list[str] | None:
        """The folders after those that lead to the audio folder; None if they do not lead there."""
        for count in range(min(len(folders), len(self.root)), 0, -1):
            if folders[:count] == self.root[-count:]:
                return folders[count:]
        return None

    def _fitting(self, stem: str, wanted: list[str], flat: bool) -> list[Path]:
        """Recordings with this stem whose folders do not contradict those wanted."""
        places = self.by_stem.get(_folded(stem), [])
        below = self._below_root(wanted)

        def fits(here: list[str]) -> bool:
            if _is_within(wanted, here) or (below is not None and _is_within(below, here)):
                return True
            unknown = self.folders.isdisjoint({*wanted} - {*here})  # such as folders of a different disk
            # Without a common folder the file name decides, unless several recordings have it.
            return flat and unknown and _is_within(here, wanted) and bool(here or len(places) == 1)

        return [path for here, path in places if fits(here)]

    def _best(self, paths: Sequence[Path], folders: list[str], name: str, entry: str) -> Path:
        """The path that is most similar to the entry; raises `UserError` if several different recordings are."""

        def likeness(path: Path) -> tuple[bool, ...]:
            *here, file = map(_composed, path.relative_to(self.folder).parts)
            original = self.prepared is None or not path.absolute().is_relative_to(self.prepared)
            same_stem = _stem(file) in (_stem(name), name)
            return file == name, same_stem, original, _is_within(folders, here), folders == here

        most = max(map(likeness, paths))
        first, *rest = (path for path in paths if likeness(path) == most)
        for second in rest:
            if not first.samefile(second):
                raise UserError(
                    f"{entry}: both {first} and {second} match; write file names with their folders and endings."
                )
        return first


def plain_names(entries: Sequence[str], paths: Sequence[Path], folder: Path) -> list[str]:
    """A file name for each entry; all names include their folders if plain names or feature files would clash."""
    names = [_split(entry)[1] for entry in entries]
    names = [
        name if Path(name).suffix.lower() in AUDIO_ENDINGS else _composed(path.name) for name, path in zip(names, paths)
    ]
    if len({features.feature_name(name) for name in names}) < len(names):
        names = [_composed("_".join(path.relative_to(folder).parts)) for path in paths]
    return names


# ---------------------------------------------------------------------------------------------------------------------
# Which features are out of date


def without_features(recordings: Sequence[Path], feature_dir: Path) -> dict[Path, Path]:
    """Recordings that have no features or have changed since, with the feature file to write for each.

    The feature file of a recording whose content has changed is removed and reported. RECORD_FILE is updated before
    any features are made, so that a killed run leaves no features that could pass for those of a different recording.
    Features from a different program, such as MSP-Podcast's own, are kept.

    Args:
        recordings: as from `find_recordings`.
        feature_dir: folder of the .mat files.
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
        key = quote(target.name, errors="surrogateescape")  # the name may not be valid UTF-8
        known, exists = str(before.get(key, "")), target.is_file()
        if exists and not known and not ours:
            continue
        try:
            state = recording.stat()
            # While these stay the same, so does the content: no tool can set st_ctime.
            stamp = f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns} "
            if exists and known.startswith(stamp):
                continue
            digest = hashlib.blake2b(digest_size=16)
            update_with_file(digest, recording)
            content = digest.hexdigest()
        except OSError:  # the extraction reports it
            todo[recording] = target
            continue
        record[key] = stamp + content
        if exists and (known.endswith(f" {content}") if known else state.st_mtime_ns <= target.stat().st_mtime_ns):
            continue
        todo[recording] = target
        if exists:
            target.unlink()
            changed.append(target.name)
    if record != before:
        write_text(file, json.dumps(record, indent=0) + "\n")
    if changed:
        files = f"{plural(len(changed), 'feature file')} of changed recordings ({first_few(changed)})"
        notify(f"note: {feature_dir}: removed {files}.")
    return todo
