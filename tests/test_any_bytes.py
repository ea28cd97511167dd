"""Any bytes in a file give a right result or one message; the long search is benchmarks/fuzz.py."""

import json
import os
import random
import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from benchmarks import fuzz
from benchmarks.fuzz_targets import FIELDS, TARGETS, Target, Wrong, expect

few = settings(max_examples=25, deadline=10_000, derandomize=True, suppress_health_check=list(HealthCheck))
texts = st.text(max_size=12)
numbers = st.one_of(st.floats(), st.integers(), st.sampled_from(["", "nan", "4,5", "٣", "1e400", "-0"]))
names = st.one_of(
    texts, st.sampled_from(["a.wav", "../../x.wav", "/etc/passwd", "a\nb", "x" * 5000, "a.WAV", " a.wav "])
)


@pytest.mark.parametrize("name", sorted(TARGETS.keys() - {"scipy_mat"}))
def test_damaged_files_are_read_rightly_or_refused(tmp_path, name):
    rng, good = random.Random(7), TARGETS[name].good()
    assert all(fuzz.feed(TARGETS[name], data, tmp_path) == "read" for data in good)
    for _ in range(100):
        with fuzz.within_limits():
            fuzz.feed(TARGETS[name], fuzz.damaged(good, rng), tmp_path)


@few
@given(rows=st.lists(st.lists(st.one_of(names, numbers.map(str)), min_size=8, max_size=8), max_size=4))
def test_any_label_table(tmp_path_factory, rows):
    data = "\n".join(",".join('"' + cell.replace('"', '""') + '"' for cell in line) for line in [FIELDS, *rows])
    fuzz.feed(TARGETS["labels_csv"], data.encode("utf-8", "surrogatepass"), tmp_path_factory.getbasetemp())


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
    for name in ("labels_json", "detailed_json", "metric"):
        fuzz.feed(TARGETS[name], json.dumps(content).encode(), tmp_path_factory.getbasetemp())


def test_a_reader_that_does_harm_is_found(tmp_path, monkeypatch):
    target = Target(".x", lambda: [b"abc"], lambda path: expect(path.read_bytes() != b"b", "b"))
    assert fuzz.feed(target, b"a", tmp_path) == "read"
    with pytest.raises(Wrong, match="b"):
        fuzz.feed(target, b"b", tmp_path)
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    with pytest.raises(Wrong, match="more than 1 s"), fuzz.within_limits():
        while True:
            pass


def test_finds_and_crashes_are_counted_and_kept(tmp_path, monkeypatch, capsys):
    harm, inputs = {b"0": lambda: 1 / 0, b"1": lambda: os._exit(3)}, iter((b"0", b"1", b"2"))
    target = Target(".x", lambda: [b"abc"], lambda path: harm.get(path.read_bytes(), bool)())
    monkeypatch.setitem(TARGETS, "scipy_mat", target)
    monkeypatch.setattr(fuzz, "damaged", lambda good, rng: next(inputs))
    argv = ["--targets", "scipy_mat", "--inputs", "3", "--keep-going", "--finds", str(tmp_path / "finds")]
    assert fuzz.main(fuzz.get_args_parser().parse_args(argv)) == 1
    (row,) = re.findall(r"scipy_mat *\| 3 *\| 1 *\| 0 *\| 2 *\| (.*)", capsys.readouterr().out)
    assert "ZeroDivisionError" in row
    assert [path.read_bytes() for path in sorted((tmp_path / "finds").iterdir())] == [b"0", b"1"]
