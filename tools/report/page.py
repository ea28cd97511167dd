"""The report as one HTML page: charts and utterances as JSON, inline scripts; only recordings are loaded."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from deepmi.features import audio_stem
from deepmi.metric import DECIMALS
from deepmi.process import UserError
from deepmi.storage import read_text
from tools.corpora import find_audio_folder
from tools.report import charts, panels
from tools.report.evidence import ATTRIBUTE_NAMES, Evidence
from tools.report.measures import LEVEL_NAMES

FOLDER = Path(__file__).parent


class Recordings(NamedTuple):
    """Where the page finds the recordings."""

    base: str  # start of their addresses, percent-encoded, with a slash at the end
    files: dict[str, str] | None  # name without audio ending -> file name; None: names as in the label file


def find_recordings(root: Path | None, audio_base: str | None, page_dir: Path) -> Recordings:
    """Where the recordings are, as seen from the page.

    Args:
        root: the corpus, or None.
        audio_base: --audio-base.
        page_dir: folder of the page.
    Raises:
        UserError: --audio-base is neither a folder nor a URL that a page can play from.
    """
    is_url = audio_base and "://" in audio_base
    folder = Path(audio_base) if audio_base and not is_url else root and find_audio_folder(root)
    if folder is None and not is_url:
        return Recordings("", {})
    if folder and not folder.is_dir():
        raise UserError(f"--audio-base {audio_base}: no such folder; expected a URL or the folder of the recordings.")
    names = sorted(entry.name for entry in os.scandir(folder)) if folder else []
    files = {audio_stem(name): name for name in names if audio_stem(name) != name} if folder else None
    if is_url:
        if not re.match(r"(https?://[^\s/]+(/|$)|file://)", audio_base):
            raise UserError(f"--audio-base {audio_base}: expected a URL of http, https or file, or a folder.")
        return Recordings(quote(audio_base.rstrip("/"), safe="/:@%?&=+,;~!$'()*[]") + "/", files)
    try:
        relative = os.path.relpath(folder.resolve(), page_dir.resolve())
    except ValueError:  # on a different drive of Windows
        return Recordings(folder.resolve().as_uri() + "/", files)
    return Recordings(quote(os.fsencode(Path(relative).as_posix())) + "/", files)


def recording_names(names: Sequence[str], recordings: Recordings) -> list[str | int | None]:
    """For each file name the name of its recording: 0 if it is the same, None if there is no recording."""
    if recordings.files is None:
        return [0] * len(names)
    found = [recordings.files.get(audio_stem(name)) for name in names]
    return [0 if recording == name else recording for name, recording in zip(names, found)]


def utterance_columns(found: Evidence) -> list[dict]:
    """The table of utterances by column: highest DeepMI first; utterances without a value at the end, by file name.

    Returns:
        For each column `title` and `data`; `digits` for numbers, `names` if `data` are positions in them.
    """
    rows = found.table.sort_index().sort_values("place", kind="stable")

    def numbers(title: str, column: str, digits: int, **more) -> dict:
        values = [round(value, digits or None) if np.isfinite(value) else None for value in rows[column].tolist()]
        return {"title": title, "digits": digits, "data": values} | more

    def texts(title: str, column: str) -> dict:
        codes, names = pd.factorize(rows[column], sort=True)
        return {"title": title, "names": names.tolist(), "data": codes.tolist()}

    columns = [
        {"title": "file", "data": rows.index.tolist()},
        numbers("DeepMI", "value", DECIMALS),
        *(numbers(title, title, DECIMALS) for name in ATTRIBUTE_NAMES if (title := f"DeepMI {name}") in rows),
        *([numbers("label quality", "label quality", 3)] if "label quality" in rows else []),
        numbers("place", "place", 0),
        numbers("first bin", "bin", 0),
        numbers("ties", "ties", 0),
    ]
    if found.has_labels:
        columns += [texts("split", "Split_Set"), numbers("level", "level", 0, names=LEVEL_NAMES)]
    for name in sorted(ATTRIBUTE_NAMES, key=lambda name: name != found.emo_attr):
        if name in rows and rows[name].notna().any():
            columns.append(numbers(name, name, 2))
    for title, column in (("class", "EmoClass"), ("speaker", "SpkrID"), ("gender", "Gender")):
        if column in rows and (rows[column] != "").any():
            columns.append(texts(title, column))
    if "cluster" in rows:
        columns.append(numbers("cluster", "cluster", 0))
    if "prediction" in rows:
        rows = rows.assign(residual=rows["prediction"] - rows["label"])
        columns += [numbers(title, title, 2) for title in ("prediction", "residual")]
    if "spread" in rows:
        columns.append(numbers("rater sd", "spread", 2))
    return columns


def _source(script: str) -> str:
    """The digest by which a content security policy allows a script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def render(report: panels.Report, corpus: str, metric: str, recordings: Recordings) -> str:
    """The whole page.

    Args:
        report: the content.
        corpus: name of the corpus; empty if no corpus is given.
        metric: name of the DeepMI file.
        recordings: as from `find_recordings`.
    """
    columns = utterance_columns(report.found)
    codes = recording_names(columns[0]["data"], recordings)
    scripts = [charts.javascript().replace("</script", r"<\/script"), read_text(FOLDER / "page.js")]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment.get_template("page.html").render(
        report=report,
        corpus=corpus,
        metric=metric,
        playable=sum(code is not None for code in codes),
        allowed_scripts=" ".join(map(_source, scripts)),
        scripts=[Markup(script) for script in scripts],
        style=Markup(read_text(FOLDER / "page.css")),
        largest_entropy=np.log(report.found.num_clusters),
        groups_shown=panels.MOST_GROUPS,
        points_shown=panels.MOST_POINTS,
        data={
            "columns": columns,
            "recordings": codes,
            "base": recordings.base,
            "charts": {name: charts.page_spec(chart) for name, chart in report.charts.items()},
            "config": charts.config("currentColor", None),
        },
    )
