"""The DeepMI report as one HTML page: data as JSON, libraries inlined, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import numpy as np
import pandas as pd

from deepmi import curriculum
from deepmi.features import AUDIO_ENDINGS
from deepmi.metric import DECIMALS, emotion_levels
from deepmi.process import UserError
from deepmi.storage import read_text
from tools.corpora import find_audio_folder
from tools.report_panels import ATTRIBUTE_NAMES, LEVEL_NAMES, Evidence, Report, Section, first_bins
from tools.report_render import height_of, numbers, plotly_figure

TEMPLATE = Path(__file__).with_name("report_page.html")
SCRIPT = Path(__file__).with_name("report_page.js")


# ---------------------------------------------------------------------------------------------------------------------
# Recordings


class Audio(NamedTuple):
    """Where the page finds the recordings.

    Attributes:
        base: what stands before a file's name, percent-encoded, with its slash; empty where there are none.
        endings: the recordings' endings, stem -> ending; None where the names of the label file hold.
    """

    base: str
    endings: dict[str, str] | None


def stem_of(name: str) -> tuple[str, str]:
    """(name without its audio ending, that ending), the ending empty where there is none."""
    ending = Path(name).suffix
    return (name[: -len(ending)], ending) if ending.lower() in AUDIO_ENDINGS else (name, "")


def _endings_in(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in sorted((entry.name for entry in os.scandir(folder)), reverse=True):
        stem, ending = stem_of(name)
        if ending:
            found.setdefault(stem, ending)  # .wav where there is a .flac as well
    return found


def find_audio(root: Path | None, audio_base: str | None, page_dir: Path) -> Audio:
    """Where the recordings lie, as seen from the page.

    Args:
        root: the corpus, or None.
        audio_base: --audio-base.
        page_dir: folder of the page.
    Raises:
        UserError: neither a URL that a page can play from nor a folder.
    """
    own = find_audio_folder(root) if root else None
    endings = _endings_in(own) if own else None
    if audio_base and "://" in audio_base:
        address = urlsplit(audio_base)
        host = re.fullmatch(r"[\w.:\[\]-]+", address.netloc)  # it goes into the page's security policy
        if address.scheme != "file" and not (address.scheme in ("http", "https") and host):
            raise UserError(f"--audio-base {audio_base}: expected a URL of http, https or file, or a folder.")
        return Audio(quote(audio_base.rstrip("/"), safe="/:@%?&=+,;~!$'()*[]") + "/", endings)
    if audio_base:
        own = Path(audio_base)
        if not own.is_dir():
            raise UserError(f"--audio-base {audio_base}: no such folder; expected a URL or the recordings' folder.")
        endings = _endings_in(own)
    if own is None:
        return Audio("", {})
    try:
        relative = os.path.relpath(own.resolve(), page_dir.resolve())
    except ValueError:  # another drive of Windows
        return Audio(own.resolve().as_uri() + "/", endings)
    return Audio(quote(os.fsencode(Path(relative).as_posix())) + "/", endings)


def audio_of(names: Sequence[str], audio: Audio) -> dict:
    """Where each utterance's recording is.

    Args:
        names: file names of the label file.
        audio: as from `find_audio`.
    Returns:
        `base`; `codes`, one a name: -1 no recording, 0 called as the name is, n the name's stem with the n-th of
        `endings`; `stem`, a pattern of what the stem is without.
    """
    pattern = rf"({'|'.join(map(re.escape, AUDIO_ENDINGS))})$"
    endings = sorted(set((audio.endings or {}).values()))
    codes = [0] * len(names)
    if audio.endings is not None:
        code_of = {ending: number for number, ending in enumerate(endings, start=1)}
        for row, name in enumerate(names):
            stem = re.sub(pattern, "", name, flags=re.IGNORECASE)
            ending = audio.endings.get(stem)
            codes[row] = -1 if ending is None else 0 if stem + ending == name else code_of[ending]
    return {"base": audio.base, "stem": pattern, "endings": endings, "codes": codes}


# ---------------------------------------------------------------------------------------------------------------------
# Data


def as_json(content: object) -> str:
    """JSON that is safe within a script element: nothing in it can end the element or start another."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    unsafe = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
    return re.sub("[<>&\u2028\u2029]", lambda found: unsafe[found[0]], text)


def _coded(key: str, title: str, values: pd.Series) -> dict:
    names = sorted(set(values))
    codes = {name: number for number, name in enumerate(names)}
    return {"key": key, "title": title, "kind": "text", "names": names, "data": [codes[value] for value in values]}


def _number(key: str, title: str, values: pd.Series, digits: int) -> dict:
    data = numbers(values)
    if digits == 0:
        data = [None if value is None else int(value) for value in data]
    return {"key": key, "title": title, "kind": "number", "digits": digits, "data": data}


def utterance_columns(found: Evidence) -> list[dict]:
    """The table of utterances by column, most informative first, those without a value by name after them.

    Returns:
        For each column key, title, kind (`text`, `number`, `level`) and data; text of few values is coded by `names`.
    """
    order = curriculum.training_order("deepmi", found.names, found.values, found.seed)
    places, bins = first_bins(order)
    of_train = pd.DataFrame({"DeepMI": found.values, "place": places, "bin": bins}, index=found.names)
    if found.network is not None:
        of_train["cluster"] = found.network.clusters
    rows = found.table.join(of_train)
    rows = rows.iloc[np.lexsort((rows.index.to_numpy(dtype=str), rows["place"].fillna(np.inf)))]
    level = {"key": "level", "title": "level", "kind": "level", "levels": LEVEL_NAMES}
    columns = [
        {"key": "file", "title": "file", "kind": "text", "data": rows.index.tolist()},
        _number("deepmi", "DeepMI", rows["DeepMI"], DECIMALS),
        _coded("split", "split", rows["Split_Set"]),
        _number("rank", "place", rows["place"], 0),
        _number("bin", "first bin", rows["bin"], 0),
        level | {"data": emotion_levels(rows["label"]).tolist()},
    ]
    for attribute in sorted(ATTRIBUTE_NAMES, key=lambda name: name != found.emo_attr):
        if f"Emo{attribute}" in rows:
            values = pd.to_numeric(rows[f"Emo{attribute}"], errors="coerce")
            if values.notna().any():
                columns.append(_number(attribute.lower(), attribute, values, 2))
    for key, title, column in (
        ("class", "class", "EmoClass"),
        ("speaker", "speaker", "SpkrID"),
        ("gender", "gender", "Gender"),
    ):
        if column in rows and (rows[column] != "").any():
            columns.append(_coded(key, title, rows[column]))
    if "cluster" in rows:
        columns.append(_number("cluster", "cluster", rows["cluster"], 0))
    if found.spread is not None:
        columns.append(_number("spread", "rater sd", found.spread.reindex(rows.index), 2))
    return columns


# ---------------------------------------------------------------------------------------------------------------------
# The page


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def policy(audio_base: str, scripts: Sequence[str]) -> str:
    """Content security policy: these scripts only, recordings from beside the page or their base, no connection."""
    address = urlsplit(audio_base)
    media = f" {address.scheme}://{address.netloc}" if address.scheme in ("http", "https") else ""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {' '.join(map(_hash, scripts))}",
            "style-src 'unsafe-inline'",
            "img-src data: blob:",
            f"media-src 'self' file:{media}",
            "connect-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def datatables() -> tuple[str, str]:
    """(script, style) of DataTables as itables ships them; the script leaves `DataTable` with the window.

    Raises:
        UserError: this version of itables has another bundle.
    """
    import itables

    folder = Path(itables.__file__).with_name("html")
    script, style = read_text(folder / "dt_bundle.js"), read_text(folder / "dt_bundle.css")
    exported = re.search(r"export\s*\{[^}]*?([\w$]+) as default[^}]*\};?", script)
    if not exported:
        raise UserError(f"{folder}: no table library that this program knows; install itables>=2.4,<3.")
    script = script.replace(exported[0], f"window.DataTable={exported[1]};")
    return script.replace("</script", r"<\/script").replace("<!--", r"\x3c!--"), style


def _paragraphs(texts: Sequence[str]) -> str:
    return "".join(f"<p>{escape(text)}</p>" for text in texts)


def _cell(cell: object) -> str:
    if isinstance(cell, list):
        return f"<ul>{''.join(f'<li>{escape(str(line))}</li>' for line in cell)}</ul>"
    return escape(str(cell))


def _table(caption: str, header: list[str], rows: list[list]) -> str:
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in header)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table class="small">'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _section(section: Section) -> str:
    figures = "".join(
        f'<figure><h3>{escape(panel.title)}</h3><div class="chart" data-panel="{panel.name}" role="img" '
        f'aria-label="{escape(panel.title)}" style="height:{height_of(panel.chart)}px"></div>'
        f"<figcaption>{escape(panel.note)}</figcaption></figure>"
        for panel in section.panels
    )
    tables = "".join(_table(*table) for table in section.tables)
    return (
        f'<section aria-labelledby="{section.anchor}"><h2 id="{section.anchor}">{escape(section.title)}</h2>'
        f"{_paragraphs(section.text)}{figures}{tables}</section>"
    )


def _summary(found: Evidence, corpus: str, metric: str) -> str:
    attribute = ATTRIBUTE_NAMES[found.emo_attr]
    text = (
        f"DeepMI says for each training utterance how much its acoustic cluster tells about the level of its "
        f"{attribute}: the part that its cell of the joint table adds to the mutual information, in nats. High values "
        "come first in the curriculum."
    )
    facts = {
        "corpus": corpus,
        "attribute": f"{attribute} ({found.emo_attr})",
        "training utterances": f"{len(found.names):,}",
        "clusters K": f"{found.num_clusters}",
        "alpha, weight of the predicted level": f"{found.alpha:g}",
        "DeepMI file": metric,
    }
    if found.network is not None:
        information = found.network.information
        facts |= {
            "checkpoint": found.network.source,
            "I(X;Y)": f"{information['I(X;Y)']:.5f} nats",
            "I(Y';Y)": f"{information['I(Yp;Y)']:.5f} nats",
            "H(X)": f"{information['H(X)']:.5f} of {np.log(found.num_clusters):.5f} nats",
        }
    else:
        facts["checkpoint"] = "none: clusters, I(X;Y) and H(X) are not known"
    listed = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in facts.items())
    return f'<p>{escape(text)}</p><dl class="facts">{listed}</dl>'


def page(found: Evidence, report: Report, corpus: str, metric: str, audio: Audio) -> str:
    """The whole page.

    Args:
        found: what the report is made of.
        report: its panels and sentences.
        corpus: the corpus' name.
        metric: name of the DeepMI file.
        audio: as from `find_audio`.
    """
    from plotly.offline import get_plotlyjs

    columns = utterance_columns(found)
    recordings = audio_of(columns[0]["data"], audio)
    plotly = get_plotlyjs().replace("</script", r"<\/script")
    table_script, table_style = datatables()
    script = read_text(SCRIPT)
    playable = sum(code >= 0 for code in recordings["codes"])
    note = (
        f"All {len(columns[0]['data']):,} utterances that have a label; DeepMI, its place in the order, the first bin "
        "that trains on it and the cluster are those of the Train split. To sort, click a heading or press Enter "
        f"on it. {playable:,} have a recording to play."
    )
    parts = {
        "policy": escape(policy(audio.base, (plotly, table_script, script))),
        "title": escape(f"DeepMI of {ATTRIBUTE_NAMES[found.emo_attr]}: {corpus}"),
        "summary": _summary(found, corpus, metric),
        "warnings": "".join(f'<p class="warning" role="note">{escape(text)}</p>' for text in report.warnings),
        "navigation": "".join(
            f'<li><a href="#{anchor}">{escape(title)}</a></li>'
            for anchor, title in (
                *((section.anchor, section.title) for section in report.sections),
                ("utterances", "Utterances"),
            )
        ),
        "findings": f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in report.findings)}</ul>",
        "sections": "".join(map(_section, report.sections)),
        "table_note": _paragraphs([note]),
        "footer": escape(
            "Values say what the clusters of one network say about the ratings of one corpus. They are no quality "
            "score of a speaker or a rater, and no claim that the curriculum helps. Method: Lin, Sridhar & Busso, "
            "IEEE/ACM TASLP 32 (2024) 5117-5130."
        ),
        "figures": "".join(
            f'<script type="application/json" id="figure-{panel.name}">{as_json(plotly_figure(panel))}</script>'
            for panel in report.panels
        ),
        "data": as_json({"columns": columns, "audio": recordings}),
        "plotly": plotly,
        "datatables": table_script,
        "table_style": table_style,
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], read_text(TEMPLATE))
