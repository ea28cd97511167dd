"""The page of the DeepMI report in a browser, as a reader uses it."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile
from conftest import voice

from deepmi.metric import deepmi_values, emotion_levels
from tools.report import measures, page, panels
from tools.report.evidence import Evidence, Network

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to open the page in")

TRAIN, REST, CLUSTERS = 130, 12, 4
ODD = 'odd & 50%#?<b>".wav'  # as hostile as a file name can be
FLAC = "MSP-PODCAST_0001.wav"  # whose recording ends in .flac
HOSTILE = ("<img src=x onerror=alert(1)>", "</script>", "<a href='http://example.org'>x</a>")


@pytest.fixture(scope="module")
def found() -> Evidence:
    """All that a report can have, with names that try to be HTML."""
    rng = np.random.default_rng(0)
    names = sorted([ODD, *(f"MSP-PODCAST_{number:04d}.wav" for number in range(1, TRAIN))])
    files = [*names, *(f"rest_{number}.wav" for number in range(REST))]
    labels = rng.uniform(1, 7, len(files)).round(2)
    levels = emotion_levels(labels)
    clusters = (levels[:TRAIN] // 2 + rng.integers(0, 2, TRAIN)) % CLUSTERS
    predicted = np.clip(levels[:TRAIN] + rng.integers(-1, 2, TRAIN), 0, 5)
    values, information = deepmi_values(clusters, levels[:TRAIN], predicted, CLUSTERS, 0.5)
    features, differences = rng.normal(size=(TRAIN, 256)).astype(np.float32), rng.normal(size=(CLUSTERS, 6))
    names_of_features = [f"feature {number}" for number in range(6)]
    sources = measures.cluster_sources({"cluster head": clusters}, {"cluster head": (values, information)})
    network = Network(
        *("x.pth.tar", clusters, predicted, values, information, features, sources, values[::-1]),
        *(differences, names_of_features),
    )
    spread = pd.Series(rng.uniform(0, 2, TRAIN).round(1), index=names)
    of_train = {"value": values, "cluster": clusters, "spread": spread, "DeepMI Act": rng.permutation(values)}
    of_train["disputed"] = measures.most_disputed(spread).astype(float)
    table = pd.DataFrame({"Val": labels, "label": labels, "level": levels}, index=files)
    table["EmoClass"] = [HOSTILE[number % 3] for number in range(len(files))]
    table["SpkrID"] = [f"{HOSTILE[0]}{number % 50}" for number in range(len(files))]
    table["Split_Set"] = ["Train"] * TRAIN + ["Test1"] * REST
    table = table.join(pd.DataFrame(of_train, index=names))
    return Evidence("Val", CLUSTERS, 31, table, HOSTILE[0], network)


@pytest.fixture(scope="module")
def page_file(tmp_path_factory, found):
    """The page, with recordings of the training utterances."""
    folder = tmp_path_factory.mktemp("report")
    audios = folder / "my corpus" / "Audios"
    audios.mkdir(parents=True)
    for name in found.train.index:
        soundfile.write(
            audios / name.replace(FLAC, "MSP-PODCAST_0001.flac"), voice(0.9 if name == FLAC else 0.6), 16000
        )
    recordings = page.find_recordings(folder / "my corpus", None, folder / "results")
    (folder / "results").mkdir()
    file = folder / "results" / "page.html"
    file.write_text(page.render(panels.build(found), HOSTILE[0], "DeepMI.json", recordings))
    return file


@pytest.fixture(scope="module")
def reader(page_file):
    """How to open the page, and the list of errors and of requests for anything but the page and its recordings."""
    faults, allowed = [], (page_file.as_uri(), (page_file.parents[1] / "my corpus").as_uri(), "data:")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        def open_page(width: int, scheme: str):
            page = chromium.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("dialog", lambda dialog: faults.append("a name was run as a script"))
            page.on("request", lambda got: None if got.url.startswith(allowed) else faults.append(got.url))
            page.goto(page_file.as_uri())
            page.locator(".chart").last.locator("svg").wait_for(state="attached")
            return page

        yield open_page, faults
        chromium.close()


@pytest.fixture(scope="module")
def wide_page(reader):
    return reader[0](1200, "light")


@pytest.fixture
def opened(reader, wide_page):
    """The page on a wide screen, as if just opened."""
    wide_page.get_by_role("button", name="Show all").click()
    yield wide_page
    assert not reader[1]


def column(page, title: str) -> list[str]:
    """What the table shows in a column."""
    titles = page.locator("#utterance-table thead th").all_inner_texts()
    number = [text.strip(" ▲▼") for text in titles].index(title)
    return page.locator(f"#utterance-table tbody td:nth-child({number + 1})").all_inner_texts()


def search(page, text: str) -> None:
    page.get_by_role("searchbox", name="Search").fill(text)
    page.wait_for_timeout(300)


def wait_for_duration(page) -> float:
    audio = page.locator("#audio")
    for _ in range(50):
        if audio.evaluate("player => player.readyState") >= 1:
            break
        page.wait_for_timeout(100)
    return audio.evaluate("player => player.duration")


def test_values_of_the_cluster_head_are_never_called_those_of_kmeans(found):
    for kmeans_values, by_kmeans in ((found.network.kmeans_values, False), (found.network.values, True), (None, False)):
        network = dataclasses.replace(found.network, kmeans_values=kmeans_values)
        assert panels.is_by_kmeans(dataclasses.replace(found, network=network)) == by_kmeans


def test_every_chart_is_drawn_and_has_the_color_of_the_page(opened):
    marks = opened.locator(".chart").evaluate_all(
        "charts => charts.map(c => [c.dataset.chart, c.querySelectorAll('.role-mark path, .role-mark line').length])"
    )
    assert len(marks) == 20 and all(count for _, count in marks), marks
    color = "getComputedStyle(document.querySelector('.chart svg text')).fill"
    light = opened.evaluate(color)
    opened.get_by_role("button", name="Dark").click()
    assert opened.evaluate("document.documentElement.className") == "dark"
    assert opened.evaluate(color) != light
    opened.emulate_media(media="print")
    assert opened.evaluate(color) == "rgb(0, 0, 0)"
    assert opened.locator(".chart svg").evaluate_all("all => all.every(svg => svg.getBoundingClientRect().height > 50)")
    opened.emulate_media(media="screen")
    opened.get_by_role("button", name="Light").click()


def test_the_most_informative_come_first_and_the_least_with_one_click(opened, found):
    order = found.train.sort_values("place").index.tolist()
    assert column(opened, "file") == order[:100]
    assert column(opened, "place") == [str(place) for place in range(1, 101)]
    opened.get_by_role("button", name="Least informative first").click()
    opened.get_by_role("button", name="Show 100 more").click()
    assert column(opened, "file")[:TRAIN] == order[::-1]
    assert column(opened, "split")[TRAIN - 1 :] == ["Train"] + ["Test1"] * REST, "those without a value come last"
    opened.locator("#utterance-table thead button", has_text="DeepMI").first.focus()
    opened.keyboard.press("Enter")
    assert [float(value) for value in column(opened, "DeepMI")] == sorted(found.train["value"])[:100]


def test_filters_and_search_find_what_they_say(opened, found):
    opened.locator("#filter-split").select_option("Test1")
    assert column(opened, "split") == ["Test1"] * REST
    opened.get_by_role("button", name="Show all").click()
    opened.locator("#filter-level").select_option(label="[3,4)")
    assert len(column(opened, "level")) == (found.table["level"] == 2).sum()
    opened.locator("#filter-cluster").select_option("1")
    chosen = found.train[(found.train["level"] == 2) & (found.train["cluster"] == 1)]
    assert sorted(column(opened, "file")) == sorted(chosen.index)
    opened.get_by_role("button", name="Show all").click()
    search(opened, "podcast_0013")
    assert column(opened, "file") == ["MSP-PODCAST_0013.wav"]
    search(opened, "nothing of the kind")
    assert column(opened, "file") == [] and opened.locator("#shown").inner_text() == "No utterance matches."


def test_names_are_shown_as_text(opened):
    search(opened, "odd & 50%")
    assert column(opened, "file") == [ODD]
    assert column(opened, "class")[0] in HOSTILE and column(opened, "speaker")[0].startswith(HOSTILE[0])
    labels = opened.locator('[data-chart="speaker"] svg text').all_text_contents()
    assert sum(text.startswith(HOSTILE[0]) for text in labels) == 40, "of many groups those at the ends are shown"
    labels = opened.locator('[data-chart="class"] svg text').all_text_contents()
    assert any(text.startswith(HOSTILE[0]) for text in labels)
    opened.locator('[data-chart="class"] .role-mark path').first.hover()
    assert any(name in opened.locator("#vg-tooltip-element").inner_text() for name in HOSTILE)
    assert opened.locator("img, a[href^=http]").count() == 0
    assert opened.locator("h1").inner_text() == f"DeepMI of valence: {HOSTILE[0]}"


@pytest.mark.parametrize("name, seconds", [(ODD, 0.6), (FLAC, 0.9)])
def test_a_recording_is_played(opened, name, seconds):
    search(opened, name)
    opened.get_by_role("button", name=f"Play {name}").focus()
    opened.keyboard.press("Enter")
    assert wait_for_duration(opened) == pytest.approx(seconds, abs=0.05)
    assert opened.locator("#audio").is_visible() and opened.locator("#playing").inner_text() == name
    search(opened, "rest_")
    assert opened.locator("#utterance-table tbody button").count() == 0, "only those with a recording have a button"


@pytest.mark.parametrize("chart", ["pca_cluster", "groups"])
def test_a_point_plays_its_recording(opened, found, chart):
    opened.evaluate("document.getElementById('audio').removeAttribute('src')")
    point = opened.locator(f'[data-chart="{chart}"] .mark-symbol.role-mark path').first
    point.click(force=True)
    name = opened.locator("#playing").inner_text()
    assert name in found.train.index
    assert wait_for_duration(opened) == pytest.approx(0.9 if name == FLAC else 0.6, abs=0.05)


def test_nothing_overflows_a_narrow_screen(reader):
    page = reader[0](390, "dark")
    assert page.evaluate("document.documentElement.className") == "dark"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    wide = page.evaluate(
        """[...document.querySelectorAll('body *:not(svg *), svg text')].filter(e =>
           e.getBoundingClientRect().right > 391 && !e.closest('.scroll')).map(e => e.outerHTML)"""
    )
    assert wide == []
    assert page.locator(".scroll").last.evaluate("e => e.scrollWidth > e.clientWidth")
    assert not reader[1]
