"""The DeepMI report's page in a browser, as a reader uses it."""

import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile
from conftest import voice

from deepmi.metric import deepmi_values, emotion_levels
from tools import report_page, report_panels

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to open the page in")

TRAIN, REST, CLUSTERS = 60, 12, 4
ODD = 'odd & 50%#?<b>".wav'  # as hostile as a file name can be
HOSTILE = ("<img src=x onerror=alert(1)>", "</script>", "<a href='http://example.org'>x</a>")


def evidence(seed: int = 0) -> report_panels.Evidence:
    """All that a report can have, of names that try to be HTML."""
    rng = np.random.default_rng(seed)
    names = [ODD, *(f"MSP-PODCAST_{number:04d}.wav" for number in range(1, TRAIN + REST))]
    labels = rng.uniform(1, 7, len(names)).round(2)
    table = pd.DataFrame(
        {
            "EmoClass": [HOSTILE[number % 3] for number in range(len(names))],
            "EmoAct": "4.0",
            "EmoVal": labels.astype(str),
            "SpkrID": [HOSTILE[number % 2] for number in range(len(names))],
            "Gender": "Female",
            "Split_Set": ["Train"] * TRAIN + ["Test1"] * REST,
            "label": labels,
        },
        index=pd.Index(names, name="FileName"),
    )
    train = sorted(names[:TRAIN])
    levels = emotion_levels(table["label"][train])
    clusters = (levels // 2 + rng.integers(0, 2, TRAIN)) % CLUSTERS
    predicted = np.clip(levels + rng.integers(-1, 2, TRAIN), 0, 5)
    values, information = deepmi_values(clusters, levels, predicted, CLUSTERS, 0.5)
    differences = rng.normal(size=(CLUSTERS, 6))
    network = report_panels.Network(
        "x.pth.tar",
        clusters,
        predicted,
        values,
        information,
        rng.normal(size=(TRAIN, 256)).astype(np.float32),
        differences,
        [f"feature {number}" for number in range(6)],
    )
    spread = pd.Series(rng.uniform(0, 2, TRAIN).round(1), index=train)
    others = {"Act": pd.Series(rng.permutation(values), index=train)}
    marked = report_panels.most_disputed(spread)
    return report_panels.Evidence(
        "Val", CLUSTERS, 31, train, values, table["label"][train].to_numpy(), table, others, spread, marked, "", network
    )


@pytest.fixture(scope="module")
def found() -> report_panels.Evidence:
    return evidence()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory, found):
    """The page, with recordings of two utterances."""
    folder = tmp_path_factory.mktemp("report")
    audios = folder / "my corpus" / "Audios"
    audios.mkdir(parents=True)
    soundfile.write(audios / ODD, voice(), 16000)
    soundfile.write(audios / "MSP-PODCAST_0001.flac", voice(0.9), 16000)
    audio = report_page.find_audio(folder / "my corpus", None, folder / "results")
    (folder / "results").mkdir()
    file = folder / "results" / "page.html"
    file.write_text(report_page.page(found, report_panels.build(found), HOSTILE[0], "DeepMI.json", audio))
    return file


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Reader:
    """Opens the page, and notes every error and whatever is asked for besides the page and its recordings."""

    def __init__(self, browser, page_file):
        self.browser, self.address, self.faults = browser, page_file.as_uri(), []
        self.allowed = (self.address, (page_file.parents[1] / "my corpus").as_uri(), "data:")

    def open(self, width: int, scheme: str):
        page = self.browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page.on("console", lambda message: self.faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("dialog", lambda dialog: self.faults.append("a name was run as a script"))
        page.on("request", lambda request: self.note(request.url))
        page.goto(self.address)
        page.wait_for_selector("#utterance-table tbody tr")
        return page

    def note(self, address: str) -> None:
        if not address.startswith(self.allowed):
            self.faults.append(f"asked for {address}")


@pytest.fixture(scope="module")
def reader(browser, page_file) -> Reader:
    return Reader(browser, page_file)


@pytest.fixture(scope="module")
def wide_page(reader):
    return reader.open(1200, "light")


@pytest.fixture
def page(reader, wide_page):
    """The page on a wide screen, as if just opened."""
    wide_page.get_by_role("button", name="Show all").click()
    yield wide_page
    assert not reader.faults


def draw(page, chart) -> None:
    """Scroll to a picture, and wait for it."""
    chart.scroll_into_view_if_needed()
    chart.locator("svg.main-svg").first.wait_for()


def draw_all(page) -> None:
    for chart in page.locator(".chart").all():
        draw(page, chart)


def column(page, title: str) -> list[str]:
    """What the table shows in a column."""
    titles = page.locator("#utterance-table thead th").all_inner_texts()
    number = [text.strip() for text in titles].index(title)
    return [
        text.strip() for text in page.locator(f"#utterance-table tbody td:nth-child({number + 1})").all_inner_texts()
    ]


def by_value(found, sign: int) -> list[str]:
    return sorted(found.names, key=lambda name: (-sign * found.values[found.names.index(name)], name))


def test_every_picture_is_drawn_and_the_theme_reaches_it(page):
    draw_all(page)
    drawn = page.locator(".chart").evaluate_all(
        "charts => charts.map(c => [c.dataset.panel, c.querySelectorAll('.trace, .hm, .point, .bars, image').length])"
    )
    assert len(drawn) == 20 and all(marks for _, marks in drawn), drawn
    for section in page.locator("main section").all():
        title = section.locator("h2").inner_text()
        assert title in ("Findings", "Utterances") or section.locator("svg.main-svg").count(), title
    paper = "document.querySelector('.main-svg').style.background"
    light = page.evaluate(paper)
    page.get_by_role("button", name="Change to dark colours").click()
    assert page.evaluate("document.documentElement.className") == "dark"
    for _ in range(100):
        if page.evaluate(paper) != light:
            break
        page.wait_for_timeout(100)
    assert page.evaluate(paper) != light


def test_the_most_informative_come_first_and_the_least_with_one_click(page, found):
    assert column(page, "file") == by_value(found, 1)[:25]
    assert column(page, "place") == [str(place) for place in range(1, 26)]
    page.get_by_role("button", name="Least informative first").click()
    # the order of the curriculum backwards, and those without a value still at the end
    assert column(page, "file") == by_value(found, 1)[::-1][:25]
    page.locator("#utterance-table thead [role=button][aria-label^='DeepMI']").focus()
    page.keyboard.press("Enter")
    shown = [float(value) for value in column(page, "DeepMI")]
    assert shown == sorted(found.values)[:25]
    page.get_by_role("button", name="Least informative first").click()
    page.locator(".dt-paging-button", has_text="3").click()
    assert column(page, "split") == ["Train"] * 10 + ["Test1"] * 12
    assert column(page, "DeepMI")[10:] == [""] * 12


def test_filters_and_search_find_what_they_say(page, found):
    page.locator("#filter-split").select_option("Test1")
    assert column(page, "split") == ["Test1"] * REST
    page.get_by_role("button", name="Show all").click()
    page.locator("#filter-level").select_option(label="[3,4)")
    labels = found.table["label"]
    assert len(column(page, "level")) == ((labels >= 3) & (labels < 4)).sum()
    assert set(column(page, "level")) == {"[3,4)"}
    page.locator("#filter-cluster").select_option("1")
    expected = [
        name
        for name, cluster, level in zip(found.names, found.network.clusters, found.levels)
        if cluster == 1 and level == 2
    ]
    assert sorted(column(page, "file")) == (expected or ["No matching records found"])
    page.get_by_role("button", name="Show all").click()
    page.get_by_role("searchbox", name="Search").fill("PODCAST_0013")
    page.wait_for_timeout(400)
    assert column(page, "file") == ["MSP-PODCAST_0013.wav"]
    page.get_by_role("searchbox", name="Search").fill("nothing of the kind")
    page.wait_for_timeout(400)
    assert page.locator("#utterance-table tbody").inner_text().strip() == "No matching records found"


def test_names_are_shown_as_text(page):
    page.get_by_role("searchbox", name="Search").fill("odd & 50%")
    page.wait_for_timeout(400)
    assert column(page, "file") == [ODD]
    assert column(page, "class")[0] in HOSTILE and column(page, "speaker")[0] in HOSTILE
    draw(page, page.locator('[data-panel="class"]'))
    shown = page.locator('[data-panel="class"] .ytick').all_text_contents()
    assert any("<img src=x onerror=alert(1)>" in text for text in shown)
    assert page.locator("main img, main a[href^=http], figure a").count() == 0
    assert page.locator("h1").inner_text() == f"DeepMI of valence: {HOSTILE[0]}"


@pytest.mark.parametrize("name, seconds", [(ODD, 0.6), ("MSP-PODCAST_0001.wav", 0.9)])
def test_a_recording_is_played(page, name, seconds):
    page.get_by_role("searchbox", name="Search").fill(name)
    page.wait_for_timeout(400)
    page.get_by_role("button", name=f"Play {name}").focus()
    page.keyboard.press("Enter")
    audio = page.locator("#player audio")
    for _ in range(50):
        if audio.evaluate("player => player.readyState") >= 1:
            break
        page.wait_for_timeout(100)
    assert audio.evaluate("player => player.duration") == pytest.approx(seconds, abs=0.05)
    assert audio.is_visible() and page.locator("audio").count() == 1
    assert page.locator("#playing").inner_text() == name
    assert page.locator("#utterance-table button").count() == 1, "only those with a recording have a button"


def test_nothing_overflows_a_narrow_screen(reader):
    page = reader.open(390, "dark")
    assert page.evaluate("document.documentElement.className") == "dark"
    draw_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    wide = page.evaluate(
        """[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > 391
           && !e.closest('.scroll, .dt-layout-table, svg')).map(e => e.tagName + '.' + e.className)"""
    )
    assert wide == []
    assert page.locator(".dt-layout-table > div").evaluate("e => e.scrollWidth > e.clientWidth")
    assert not reader.faults
