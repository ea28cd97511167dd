"""The corpora of a test: their names in a table, the value of a flag for each, and the scales of their labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from numpy.typing import NDArray

from deepmi.norm_stats import LABEL_RANGE, is_label_scale, refuse_label_scale
from deepmi.process import UserError, notify
from deepmi.storage import read_json_object

PREPARED_LABELS, PREPARED_MARK = "labels_consensus.csv", "prepared.json"  # what tools.prepare_corpus writes
Scale = tuple[float, float]


def scale_pairs(bounds: Sequence[float] | None) -> list[Scale | None]:
    """The pairs of --label-scale, or [None] where it is not given.

    Raises:
        UserError: an odd number of bounds, or a pair that is not a range of labels.
    """
    bounds = bounds or []
    if len(bounds) % 2:
        raise UserError(f"--label-scale: {len(bounds)} numbers; expected pairs, the lowest label first.")
    for low, high in zip(bounds[::2], bounds[1::2]):
        refuse_label_scale(low, high)
    return list(zip(bounds[::2], bounds[1::2])) or [None]


def one_each(values: Sequence, corpora: Sequence, flag: str) -> list:
    """A flag's value per corpus; raises `UserError` unless there is one value, or as many as corpora."""
    if len(values) not in (1, len(corpora)):
        raise UserError(f"{flag}: {len(values)} given for {len(corpora)} corpora; expected one, or one per corpus.")
    return list(values) * len(corpora) if len(values) == 1 else list(values)


def prepared_scale(labels: Path) -> Scale | None:
    """Lowest and highest label of a corpus before tools.prepare_corpus rescaled its labels to 1..7.

    Returns:
        None if that tool did not write this label file.
    Raises:
        UserError: the record beside the file is damaged.
    """
    mark = labels.with_name(PREPARED_MARK)
    if labels.name != PREPARED_LABELS or not mark.is_file():
        return None
    scale = read_json_object(mark).get("label_scale")
    numbers = isinstance(scale, list) and len(scale) == 2 and all(type(value) in (int, float) for value in scale)
    if not (numbers and is_label_scale(*scale)):
        raise UserError(f"{mark}: no valid label_scale; prepare the corpus again.")
    return float(scale[0]), float(scale[1])


def label_scale(labels: Path, asked: Scale | None) -> tuple[Scale, Scale]:
    """The scale of a label file, and the scale that its labels had first.

    Args:
        labels: the file, for the message.
        asked: the pair of --label-scale, or None.
    Raises:
        UserError: the file was prepared from a scale that is not the one asked for.
    """
    prepared = prepared_scale(labels)
    if prepared is None:
        return asked or LABEL_RANGE, asked or LABEL_RANGE
    if asked not in (None, prepared, LABEL_RANGE):
        raise UserError(
            f"{labels}: prepared from labels of {prepared[0]:g}..{prepared[1]:g}, on 1..7 now; --label-scale says "
            f"{asked[0]:g}..{asked[1]:g}. Leave it out; with several corpora give one pair each, 1 7 for this one."
        )
    return LABEL_RANGE, prepared


def note_if_narrow_scale(labels: Path, asked: Scale | None, values: NDArray) -> None:
    """Print a note where no scale is known and no label is above 5, as on a scale of 1 to 5."""
    if asked is None and prepared_scale(labels) is None and len(values) >= 20 and values.max() <= 5:
        notify(
            f"note: {labels}: all {len(values)} labels are at most {values.max():g}. If its scale is 1 to 5, give "
            "--label-scale 1 5; the CCC depends on it."
        )


def distinct_names(corpora: Sequence[Path | None]) -> list[str]:
    """A name per corpus, empty for a single one.

    The name is that of its folder, preceded by the parent folder where two are the same, and followed by a number where
    that does not help.
    """
    if len(corpora) == 1:
        return [""]
    paths = [folder.resolve() for folder in corpora]
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = ["_".join(path.parts[-2:]).strip("/") for path in paths]
    earlier = [names[:number].count(name) for number, name in enumerate(names)]
    return [f"{name}_{count + 1}" if count else name for name, count in zip(names, earlier)]
