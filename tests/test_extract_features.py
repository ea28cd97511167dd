"""Features from audio, against openSMILE called directly."""

import os
import shutil
import threading
import time

import numpy as np
import opensmile
import pytest
import soundfile
from conftest import run_script, voice

from deepmi import features, matfile
from deepmi.process import UserError
from tools import extract_features as tool
from tools import feature_sets, recordings

RATE = 16000


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


def test_another_rate_and_two_channels_come_to_16_khz_mono(audio, tmp_path):
    tool.extract_folder(audio, tmp_path / "feat_mat", workers=1)
    stereo = features.read_feature(tmp_path / "feat_mat" / "stereo44.mat")
    plain = features.read_feature(tmp_path / "feat_mat" / "plain.mat")
    names = opensmile.Smile(opensmile.FeatureSet.IS13, opensmile.FeatureLevel.Functionals).feature_names
    pitch = [i for i, name in enumerate(names) if name == "F0final_sma_amean"]
    assert stereo.shape == plain.shape and np.allclose(stereo[pitch], plain[pitch], rtol=0.05)


def test_unusable_recordings_are_listed_and_the_rest_is_done(audio, tmp_path, bench):
    (audio / "text.wav").write_text("this is no sound")
    (audio / "zero.wav").write_bytes(b"")
    soundfile.write(audio / "short.wav", voice(0.02), RATE)
    soundfile.write(audio / "headeronly.wav", np.zeros(0), RATE)
    code, out, err = bench.run("tools.extract_features", audio, tmp_path / "feat_mat")
    assert code == 0
    assert "3 recordings extracted, 0 there before, 4 without features" in out
    for words in (
        "text.wav: not readable",
        "zero.wav: empty",
        "short.wav: too short (20 ms)",
        "headeronly.wav: no samples",
    ):
        assert words in err
    assert sorted(path.name for path in (tmp_path / "feat_mat").glob("*.mat")) == [
        "free.mat",
        "plain.mat",
        "stereo44.mat",
    ]


@pytest.mark.parametrize(
    ("samples", "rate", "words"),
    [
        (np.zeros(1), 48000, "no samples"),  # none is left at 16 kHz
        (np.full((10, 2), 3e38, np.float32), RATE, "infinite"),
        (np.zeros(100), 1, "1 Hz"),
    ],
)
def test_recordings_that_hold_no_speech_are_refused(tmp_path, samples, rate, words):
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    with pytest.raises(UserError, match=words):
        feature_sets.read_signal(feature_sets.Clip(tmp_path / "a.wav"))


def test_a_name_of_no_encoding_is_no_hindrance(audio, tmp_path):
    strange = audio / os.fsdecode(b"caf\xe9.wav")
    strange.write_bytes((audio / "plain.wav").read_bytes())
    assert tool.extract_folder(audio, tmp_path / "feat_mat", "eGeMAPSv02", workers=1).extracted == 4


def test_what_is_there_is_kept(audio, tmp_path):
    tool.extract_folder(audio, tmp_path / "feat_mat", workers=1)
    (tmp_path / "feat_mat" / "free.mat").unlink()
    before = (tmp_path / "feat_mat" / "plain.mat").stat().st_mtime_ns
    summary = tool.extract_folder(audio, tmp_path / "feat_mat", workers=1)
    assert (summary.extracted, summary.kept) == (1, 2)
    assert (tmp_path / "feat_mat" / "plain.mat").stat().st_mtime_ns == before


def test_features_of_recordings_that_changed_are_made_again(audio, tmp_path, capsys):
    folder = tmp_path / "feat_mat"
    tool.extract_folder(audio, folder, "eGeMAPSv02", workers=1)
    before = {path.name: path.read_bytes() for path in folder.glob("*.mat")}
    times = (audio / "plain.wav").stat()
    soundfile.write(audio / "plain.wav", voice(pitch=200), RATE)
    os.utime(audio / "plain.wav", ns=(times.st_atime_ns, times.st_mtime_ns))
    summary = tool.extract_folder(audio, folder, "eGeMAPSv02", workers=1)
    assert (summary.extracted, summary.kept) == (1, 2) and "(plain.mat)" in capsys.readouterr().err
    assert [name for name, data in before.items() if (folder / name).read_bytes() != data] == ["plain.mat"]


def test_features_stay_where_only_times_changed(audio, tmp_path):
    tool.extract_folder(audio, tmp_path / "feat_mat", "eGeMAPSv02", workers=1)
    shutil.copytree(audio, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*.*"):
        path.chmod(0o600)
        os.utime(path)
    summary = tool.extract_folder(tmp_path / "copy", tmp_path / "feat_mat", "eGeMAPSv02", workers=1)
    assert (summary.extracted, summary.kept) == (0, 3)


def test_a_run_killed_at_any_moment_leaves_no_features_of_changed_recordings(audio, tmp_path, monkeypatch):
    folder = tmp_path / "feat_mat"
    tool.extract_folder(audio, folder, "eGeMAPSv02", workers=1)
    for path in (audio / "plain.wav", audio / "stereo44.wav"):
        soundfile.write(path, voice(pitch=200), RATE)
    tool.extract_folder(audio, tmp_path / "expected", "eGeMAPSv02", workers=1)

    def killed(*_):
        raise KeyboardInterrupt

    for step in ("tools.recordings.write_text", "tools.extract_features.extract_some"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(step, killed)
            tool.extract_folder(audio, folder, "eGeMAPSv02", workers=1)
    tool.extract_folder(audio, folder, "eGeMAPSv02", workers=1)
    for path in (tmp_path / "expected").glob("*.mat"):
        assert (folder / path.name).read_bytes() == path.read_bytes()


def test_features_that_came_with_a_corpus_are_trusted(audio, tmp_path):
    tool.extract_folder(audio, tmp_path / "feat_mat", "eGeMAPSv02", workers=1)
    for name in (features.SET_FILE, "recordings.json"):
        (tmp_path / "feat_mat" / name).unlink()
    soundfile.write(audio / "plain.wav", voice(pitch=200), RATE)
    assert tool.extract_folder(audio, tmp_path / "feat_mat", "eGeMAPSv02", workers=1).kept == 3


def test_full_scale_does_not_wrap_round(tmp_path):
    """Samples at 1, as in mp3 and loud resampled recordings, count as those of 16 bit at full scale."""
    (tmp_path / "audio").mkdir()
    loud = (4 * voice() / voice().max()).clip(-1, 1)
    soundfile.write(tmp_path / "audio/float.wav", loud, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "audio/short.wav", loud, RATE, subtype="PCM_16")
    tool.extract_folder(tmp_path / "audio", tmp_path / "feat_mat", workers=1)
    first, second = (features.read_feature(tmp_path / f"feat_mat/{name}.mat") for name in ("float", "short"))
    assert loud.max() == 1 and np.mean(~np.isclose(first, second, rtol=0.1)) < 0.1


def test_stopping_early_finishes_what_is_at_hand_and_leaves_no_thread():
    started, before = [], threading.active_count()

    def work(number):
        started.append(number)
        time.sleep(0.05)
        return number

    results = feature_sets.in_parallel(work, [(number,) for number in range(50)], 2)
    assert next(results) == 0
    results.close()
    assert threading.active_count() == before and len(started) < 10


def test_workers_do_not_change_the_bytes(audio, tmp_path, monkeypatch):
    for number in range(6):
        soundfile.write(audio / f"more{number}.wav", voice(pitch=100 + number), RATE)
    for workers, most_threads, name in ((1, 8, "one"), (2, 8, "threads"), (2, 1, "processes")):
        monkeypatch.setattr(feature_sets, "MOST_THREADS", most_threads)
        feature_sets.open_set.cache_clear()  # so that threads set it up at the same time
        tool.extract_folder(audio, tmp_path / name, workers=workers)
    for path in (tmp_path / "one").iterdir():
        for name in ("threads", "processes"):
            assert path.read_bytes() == (tmp_path / name / path.name).read_bytes()


def test_another_feature_set_has_its_own_width_and_does_not_mix(audio, tmp_path):
    tool.extract_folder(audio, tmp_path / "feat_mat", "eGeMAPSv02", workers=1)
    assert features.read_feature(tmp_path / "feat_mat" / "plain.mat").size == 88
    with pytest.raises(UserError, match="holds files of eGeMAPSv02 with 88 features, IS13 has 6373"):
        tool.extract_folder(audio, tmp_path / "feat_mat", workers=1)


def test_bad_arguments_are_refused(audio, tmp_path, bench):
    bench.refuses(bench.run("tools.extract_features", tmp_path / "none", tmp_path / "f"), "no such folder")
    (tmp_path / "silent").mkdir()
    bench.refuses(bench.run("tools.extract_features", tmp_path / "silent", tmp_path / "f"), "no recordings", ".flac")
    bench.refuses(bench.run("tools.extract_features", audio, tmp_path / "f", "--set", "IS99"), "IS99", "ComParE_2016")
    soundfile.write(audio / "plain.flac", voice(), RATE)
    bench.refuses(bench.run("tools.extract_features", audio, tmp_path / "f"), "share the feature file plain.mat")


def test_where_no_recording_can_be_used_the_run_fails(tmp_path, bench):
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio/text.wav").write_text("this is no sound")
    result = bench.run("tools.extract_features", tmp_path / "audio", tmp_path / "feat_mat")
    bench.refuses(result, "no features", "1 recordings")


def test_recordings_that_are_used_but_doubtful_are_named(audio, tmp_path, bench, monkeypatch):
    whole = (audio / "plain.wav").read_bytes()
    (audio / "part.wav").write_bytes(whole[: len(whole) // 2])
    monkeypatch.setattr(feature_sets, "MOST_THREADS", 1)  # so that warnings come from processes as well
    for workers, folder in ((1, "threads"), (2, "processes")):
        code, out, err = bench.run("tools.extract_features", audio, tmp_path / folder, "--workers", workers)
        assert code == 0 and "4 recordings extracted" in out and "0 without features" in out
        assert err.count("warning") == 1 and "part.wav: incomplete" in err


def test_many_warnings_of_a_kind_are_counted(capsys):
    tool.warn_of_doubtful(
        [(f"{number:02}.wav", f"incomplete: {number}") for number in range(30)] + [("z.wav", "loud: 9")]
    )
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == tool.MOST_WARNINGS + 2 and "10 more" in lines[-2] and "z.wav" in lines[-1]


def test_every_kind_of_recording_is_found_and_the_rest_is_counted(tmp_path, capsys):
    for name, kind in (("a.OPUS", "OGG"), ("b.aiff", "AIFF"), ("c.au", "AU"), ("d.caf", "CAF"), ("e.w64", "W64")):
        soundfile.write(tmp_path / name, voice(), RATE, format=kind, subtype="OPUS" if kind == "OGG" else None)
    for name in ("f.m4a", "g.WMA", "h.amr", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    found = recordings.list_recordings(tmp_path)
    assert [path.name for path in found] == ["a.OPUS", "b.aiff", "c.au", "d.caf", "e.w64"]
    assert all(len(feature_sets.read_signal(feature_sets.Clip(path))) for path in found)
    told = capsys.readouterr().err
    assert "3 files" in told and "g.WMA" in told and "notes" not in told


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_names_that_the_terminal_cannot_show_are_escaped(tmp_path, encoding):
    folder = tmp_path / "\u4f60"
    folder.mkdir()
    soundfile.write(folder / "\u597d.wav", voice(), RATE)
    (folder / "\u6b63.wav").write_text("this is no sound")
    argv = (folder, folder / "feat_mat", "--set", "eGeMAPSv02", "--workers", 1)
    done = run_script("tools.extract_features", *argv, cwd=tmp_path, PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and "1 recordings extracted" in done.stdout
    assert "\\u4f60" in done.stdout and "\\u6b63.wav" in done.stderr and "Traceback" not in done.stderr
    done = run_script("tools.extract_features", folder / "none", folder, cwd=tmp_path, PYTHONIOENCODING=encoding)
    assert done.returncode == 2 and "\\u4f60" in done.stderr and "Traceback" not in done.stderr
