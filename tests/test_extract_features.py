"""Features from audio, against openSMILE called directly."""

import io
import os
import shutil
import sys
import threading
import time

import numpy as np
import opensmile
import pytest
import soundfile
from conftest import interrupt, voice

from deepmi import features, matfile
from deepmi.process import UserError
from tools import extract_features as tool
from tools import feature_sets

RATE = 16000
SMALL = "eGeMAPSv02"  # 88 features


@pytest.fixture
def audio(tmp_path):
    folder = tmp_path / "Audios"
    (folder / "sub").mkdir(parents=True)
    soundfile.write(folder / "plain.wav", voice(), RATE)
    soundfile.write(folder / "sub" / "free.flac", voice(pitch=200), RATE)
    stereo = np.column_stack([voice(rate=44100), 0.5 * voice(rate=44100)])
    soundfile.write(folder / "stereo44.wav", stereo, 44100)
    return folder


def test_features_are_opensmiles_in_msp_podcasts_layout(audio, tmp_path):
    summary = tool.extract_folder(audio, tmp_path / "feat_mat", workers=1)
    assert (summary.extracted, summary.kept, summary.failed) == (3, 0, [])
    smile = opensmile.Smile(opensmile.FeatureSet.IS13, opensmile.FeatureLevel.Functionals)
    for recording in (audio / "plain.wav", audio / "sub" / "free.flac"):
        stored = matfile.read_mat(tmp_path / "feat_mat" / f"{recording.stem}.mat", "Audio_data")
        assert stored.shape == (1, 6373) and stored.dtype == np.float64
        assert np.array_equal(stored, smile.process_file(recording).to_numpy(np.float64))
    stereo, plain = (features.read_feature(tmp_path / f"feat_mat/{name}.mat") for name in ("stereo44", "plain"))
    pitch = [number for number, name in enumerate(smile.feature_names) if name == "F0final_sma_amean"]
    assert stereo.shape == plain.shape and np.allclose(stereo[pitch], plain[pitch], rtol=0.05)


def test_unusable_recordings_are_listed_and_the_rest_is_done(audio, tmp_path, bench):
    (audio / "text.wav").write_text("this is no sound")
    (audio / "zero.wav").write_bytes(b"")
    soundfile.write(audio / "short.wav", voice(0.02), RATE)
    soundfile.write(audio / "headeronly.wav", np.zeros(0), RATE)
    (audio / os.fsdecode(b"caf\xe9.wav")).write_bytes((audio / "plain.wav").read_bytes())  # not a name in UTF-8
    code, out, err = bench.run("tools.extract_features", audio, tmp_path / "feat_mat", "--set", SMALL)
    assert code == 0 and "4 recordings extracted, 0 there before, 4 without features" in out
    for words in ("text.wav: not readable", "zero.wav: empty", "short.wav: too short (20 ms)", "headeronly.wav: no sa"):
        assert words in err
    found = {path.stem for path in (tmp_path / "feat_mat").glob("*.mat")}
    assert len(found) == 4 and {"free", "plain", "stereo44"} < found


def test_a_second_run_extracts_what_is_missing_or_has_changed(audio, tmp_path, capsys):
    def extract(recordings=audio):
        summary = tool.extract_folder(recordings, folder, SMALL, workers=1)
        return summary.extracted, summary.kept

    folder = tmp_path / "feat_mat"
    assert extract() == (3, 0)
    before = {path.name: path.read_bytes() for path in folder.glob("*.mat")}
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*.mat")}
    (folder / "free.mat").unlink()
    assert extract() == (1, 2)
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert [path.name for path in times if path.stat().st_mtime_ns != times[path]] == ["free.mat"]

    shutil.copytree(audio, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*.*"):  # other times, same content
        path.chmod(0o600)
        os.utime(path)
    assert extract(tmp_path / "copy") == (0, 3) and extract() == (0, 3)

    state = (audio / "plain.wav").stat()
    soundfile.write(audio / "plain.wav", voice(pitch=200), RATE)
    os.utime(audio / "plain.wav", ns=(state.st_atime_ns, state.st_mtime_ns))  # other content, same size and time
    assert extract() == (1, 2) and "(plain.mat)" in capsys.readouterr().err
    assert [name for name, data in before.items() if (folder / name).read_bytes() != data] == ["plain.mat"]

    for name in (features.SET_FILE, "recordings.json"):  # as features that came with a corpus: they are trusted
        (folder / name).unlink()
    soundfile.write(audio / "plain.wav", voice(pitch=100), RATE)
    assert extract() == (0, 3)
    with pytest.raises(UserError, match=r"88 features .* IS13 has 6373"):
        tool.extract_folder(audio, folder, workers=1)


def test_a_run_killed_at_any_moment_leaves_no_features_of_changed_recordings(audio, tmp_path, monkeypatch):
    folder = tmp_path / "feat_mat"
    tool.extract_folder(audio, folder, SMALL, workers=1)
    soundfile.write(audio / "plain.wav", voice(pitch=200), RATE)
    tool.extract_folder(audio, tmp_path / "expected", SMALL, workers=1)

    for step in ("tools.recordings.write_text", "tools.extract_features.extract_some"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(step, interrupt)
            tool.extract_folder(audio, folder, SMALL, workers=1)
    tool.extract_folder(audio, folder, SMALL, workers=1)
    for path in (tmp_path / "expected").glob("*.mat"):
        assert (folder / path.name).read_bytes() == path.read_bytes()


def test_stopping_early_finishes_running_tasks_and_leaves_no_thread():
    started, before = [], threading.active_count()

    def work(number):
        started.append(number)
        time.sleep(0.05)
        return number

    results = feature_sets.in_parallel(work, [(number,) for number in range(50)], 2)
    assert next(results) == 0
    results.close()
    assert threading.active_count() == before and len(started) < 10


def test_threads_and_processes_give_the_same_bytes_and_warnings(audio, tmp_path, bench, monkeypatch):
    whole = (audio / "plain.wav").read_bytes()
    (audio / "part.wav").write_bytes(whole[: len(whole) // 2])
    monkeypatch.setattr(tool, "CLIPS_PER_TASK", 2)
    for workers, most_threads, name in ((1, 8, "one"), (2, 8, "threads"), (2, 1, "processes")):
        monkeypatch.setattr(feature_sets, "MOST_THREADS", most_threads)
        monkeypatch.setattr(tool, "MOST_THREADS", most_threads)
        feature_sets.open_set.cache_clear()  # so that threads open it at the same time
        code, out, err = bench.run("tools.extract_features", audio, tmp_path / name, "--workers", workers)
        assert code == 0 and "4 recordings extracted" in out and "0 without features" in out
        assert err.count("warning") == 1 and "part.wav: incomplete" in err
    for path in (tmp_path / "one").iterdir():
        for name in ("threads", "processes"):
            assert path.read_bytes() == (tmp_path / name / path.name).read_bytes()


def test_bad_arguments_are_refused(audio, tmp_path, bench):
    (tmp_path / "silent").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text/text.wav").write_text("this is no sound")
    soundfile.write(audio / "plain.flac", voice(), RATE)
    for folder, words, more in (
        (tmp_path / "none", ("no such folder",), ()),
        (tmp_path / "silent", ("no recordings", ".flac"), ()),
        (tmp_path / "text", ("no features", "1 recordings"), ()),
        (tmp_path / "text", ("IS99", "ComParE_2016"), ("--set", "IS99")),
        (audio, ("share the feature file plain.mat",), ()),
    ):
        result = bench.run("tools.extract_features", folder, tmp_path / "f", *more)
        bench.refuses(result, *words)


def test_many_warnings_of_a_kind_are_counted(capsys):
    many = [(f"{number:02}.wav", f"incomplete: {number}") for number in range(30)]
    tool.warn_of_doubtful([*many, ("z.wav", "loud: 9")])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == tool.MOST_WARNINGS + 2 and "10 more" in lines[-2] and "z.wav" in lines[-1]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_names_that_the_terminal_cannot_show_are_escaped(tmp_path, bench, monkeypatch, encoding):
    folder = tmp_path / "\u4f60"
    folder.mkdir()
    soundfile.write(folder / "\u597d.wav", voice(), RATE)
    (folder / "\u6b63.wav").write_text("this is no sound")
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert bench.run("tools.extract_features", folder, folder / "feat_mat", "--set", SMALL)[0] == 0
    assert b"\\u4f60" in out.buffer.getvalue() and b"\\u6b63.wav" in err.buffer.getvalue()
    assert bench.run("tools.extract_features", folder / "none", folder)[0] == 2
    assert b"\\u4f60/none" in err.buffer.getvalue()
