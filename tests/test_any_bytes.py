"""Whatever bytes a file holds, its reader gives a right result or a message; the long search is benchmarks/fuzz.py."""

import random

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from benchmarks import fuzz
from deepmi.process import UserError

few = settings(max_examples=60, deadline=10_000, derandomize=True, suppress_health_check=list(HealthCheck))
texts = st.text(max_size=12)
numbers = st.one_of(st.floats(), st.integers(), st.sampled_from(["", "nan", "4,5", "٣", "1e400", "-0"]))
names = st.one_of(
    texts, st.sampled_from(["a.wav", "../../x.wav", "/etc/passwd", "a\nb", "x" * 5000, "a.WAV", " a.wav "])
)
COLUMNS = ["FileName", "EmoClass", "EmoAct", "EmoVal", "EmoDom", "SpkrID", "Gender", "Split_Set"]


def feed(tmp_path, name, data):
    return fuzz.feed(fuzz.TARGETS[name], data, tmp_path)


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_damaged_files_are_read_rightly_or_refused(tmp_path, name):
    rng, good = random.Random(7), fuzz.TARGETS[name].good()
    assert all(feed(tmp_path, name, data) == "read" for data in good)
    for _ in range(300):
        with fuzz.within_limits():
            feed(tmp_path, name, fuzz.damaged(good, rng))


@pytest.mark.parametrize("name", fuzz.TARGETS)
@few
@given(data=st.binary(max_size=300))
def test_any_bytes_are_read_rightly_or_refused(tmp_path_factory, name, data):
    feed(tmp_path_factory.getbasetemp(), name, data)


@few
@given(rows=st.lists(st.lists(st.one_of(names, numbers.map(str)), min_size=8, max_size=8), max_size=4))
def test_any_label_table(tmp_path_factory, rows):
    lines = [COLUMNS, *rows]
    data = "\n".join(",".join('"' + cell.replace('"', '""') + '"' for cell in line) for line in lines)
    feed(tmp_path_factory.getbasetemp(), "labels_csv", data.encode("utf-8", "surrogatepass"))


@few
@given(
    content=st.recursive(
        st.one_of(st.none(), st.booleans(), numbers, texts),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=4)),
        max_leaves=12,
    )
)
@example(content={"a.wav": {"EmoAct": True, "Split_Set": ["Train"]}})
def test_any_json(tmp_path_factory, content):
    import json

    for name in ("labels_json", "detailed_json", "metric"):
        feed(tmp_path_factory.getbasetemp(), name, json.dumps(content).encode())


def test_a_message_stays_a_line_whatever_it_cites():
    assert str(UserError("a\nb\x1b[31m é\u2028")) == r"a\nb\x1b[31m é\u2028"
    assert 900 < len(str(UserError("x" * 5000))) < 1000


def test_a_reader_that_lets_something_through_is_found(tmp_path, monkeypatch):
    target = fuzz.Target(".x", lambda: [b"abc"], lambda path: fuzz.expect(path.read_bytes() != b"b", "b"))
    assert fuzz.feed(target, b"a", tmp_path) == "read"
    with pytest.raises(fuzz.Wrong, match="b"):
        fuzz.feed(target, b"b", tmp_path)
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    with pytest.raises(fuzz.Wrong, match="more than 1 s"), fuzz.within_limits():
        while True:
            pass

    def silent(path):
        raise UserError("")

    with pytest.raises(fuzz.Wrong, match="message of 0"):
        fuzz.feed(fuzz.Target(".x", list, silent), b"", tmp_path)
