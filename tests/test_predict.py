"""Predictions from audio, against openSMILE and the network's layers by hand."""

import csv
import io
import os

import numpy as np
import opensmile
import pytest
import soundfile
import torch
from conftest import run_script, voice

import model
import utils
from deepmi import features, matfile
from tools import predict as tool

RATE = 16000
SET = "eGeMAPSv02"


@pytest.fixture
def models(bench):
    """Regressors of arousal and valence with random weights, norm terms, and some recordings."""
    smile = opensmile.Smile(getattr(opensmile.FeatureSet, SET))
    audio = bench.folder / "clips"
    (audio / "sub").mkdir(parents=True)
    for number in range(5):
        soundfile.write(audio / f"{number}.wav", voice(pitch=100 + 20 * number), RATE)
    soundfile.write(audio / "sub" / "deep.flac", voice(pitch=230), RATE)
    for folder in ("NormTerm", "Models"):
        (bench.folder / folder).mkdir()
    rows = np.concatenate([smile.process_file(path).to_numpy(np.float64) for path in sorted(audio.glob("*.wav"))])
    utils.write_norm_stats(bench.folder / "NormTerm", (rows.mean(axis=0), rows.std(axis=0)), feature_set=SET)
    for attribute, mean in (("Act", 4.0), ("Val", 3.0)):
        utils.write_norm_stats(bench.folder / "NormTerm", None, {attribute: (mean, 0.8)})
        torch.manual_seed(len(attribute) + int(mean))
        save(bench.folder, attribute, {"emo_attr": attribute, "feature_set": SET})
    return bench


def save(folder, attribute, info, width=88):
    file = utils.regressor_checkpoint(folder / "Models", "deepmi", attribute)
    model.save_regressor(file, model.DenseNet(width).state_dict(), info)
    return file


def by_hand(folder, attribute, signal):
    """A label from the samples."""
    smile = opensmile.Smile(getattr(opensmile.FeatureSet, SET))
    vector = smile.process_signal(signal, RATE).to_numpy(np.float64)[0]
    mean, std = (
        matfile.read_mat(folder / f"NormTerm/feat_norm_{kind}.mat", "normal_para")[0] for kind in ("means", "stds")
    )
    x = np.clip((vector - mean) / np.where(std == 0, np.inf, std), -3, 3)
    weights = torch.load(utils.regressor_checkpoint(folder / "Models", "deepmi", attribute), weights_only=True)
    for layer in (0, 2, 5, 7):
        x = weights[f"dense_net.{layer}.weight"].numpy() @ x + weights[f"dense_net.{layer}.bias"].numpy()
        x = np.maximum(x, 0) if layer in (2, 5) else x
    return x[0] * 0.8 + {"Act": 4.0, "Val": 3.0}[attribute]


def read(path):
    with path.open() as stream:
        return list(csv.DictReader(stream))


def run(bench, *inputs, attributes=("Val", "Act"), more=()):
    files = [utils.regressor_checkpoint(bench.folder / "Models", "deepmi", attribute) for attribute in attributes]
    return bench.run("tools.predict", *inputs, "--model", *files, "--device", "cpu", *more)


def test_a_folder_becomes_a_table_of_labels(models):
    code, out, err = run(models, "clips")
    assert code == 0 and "6 rows, 0 without prediction; wrote predictions.csv" in out, err
    rows = read(models.folder / "predictions.csv")
    assert [row["FileName"] for row in rows] == [*(f"{number}.wav" for number in range(5)), "sub/deep.flac"]
    assert list(rows[0]) == ["FileName", "EmoAct", "EmoVal"]
    for row in rows:
        signal = soundfile.read(models.folder / "clips" / row["FileName"], dtype="float32")[0]
        for attribute in ("Act", "Val"):
            assert float(row[f"Emo{attribute}"]) == pytest.approx(by_hand(models.folder, attribute, signal), abs=1e-3)
    assert len({row["EmoVal"] for row in rows}) == 6
    before = (models.folder / "predictions.csv").read_bytes()
    run(models, "clips")
    assert (models.folder / "predictions.csv").read_bytes() == before
    assert not list(models.folder.glob(".*"))


def test_what_cannot_be_used_is_named_and_the_rest_is_predicted(models):
    bad = models.folder / "clips"
    (bad / "text.wav").write_text("no sound")
    (bad / "zero.wav").write_bytes(b"")
    soundfile.write(bad / "short.wav", voice(0.02), RATE)
    soundfile.write(bad / "stereo.wav", np.column_stack([voice(pitch=150, rate=44100)] * 2), 44100)
    code, out, err = run(models, "clips", more=("--out", "new/p.csv"))
    assert code == 1 and "7 rows, 3 without prediction" in out
    for words in ("text.wav: not readable", "zero.wav: empty", "short.wav: too short (20 ms)"):
        assert words in err
    rows = read(models.folder / "new/p.csv")
    assert "stereo.wav" in [row["FileName"] for row in rows] and len(rows) == 7


def test_long_recordings_in_segments(models):
    signal = np.concatenate([voice(1.0, pitch=110), voice(1.0, pitch=180), voice(0.7, pitch=240)])
    (models.folder / "long").mkdir()
    soundfile.write(models.folder / "long/a.wav", signal, RATE)
    soundfile.write(models.folder / "long/b.wav", signal[: int(1.4 * RATE)], RATE)
    code, _, err = run(models, "long", attributes=("Act",), more=("--segment", 1))
    assert code == 0, err
    rows = read(models.folder / "predictions.csv")
    times = [(row["FileName"], row["start"], row["end"]) for row in rows]
    assert times == [
        ("a.wav", "0.000", "1.000"),
        ("a.wav", "1.000", "2.000"),
        ("a.wav", "2.000", "2.700"),
        ("b.wav", "0.000", "1.400"),
    ]
    read_back = soundfile.read(models.folder / "long/a.wav", dtype="float32")[0]
    for row in rows[:3]:
        part = read_back[round(float(row["start"]) * RATE) : round(float(row["end"]) * RATE)]
        assert float(row["EmoAct"]) == pytest.approx(by_hand(models.folder, "Act", part), abs=1e-3)


def test_a_doubtful_recording_is_predicted_and_named_once(models, monkeypatch):
    monkeypatch.setattr(tool, "BLOCK", 2)
    loud = 20000 * np.concatenate([voice(0.5, pitch=100 + number) for number in range(5)])
    soundfile.write(models.folder / "loud.wav", loud, RATE, subtype="FLOAT")
    code, out, err = run(models, "loud.wav", "clips/1.wav", more=("--segment", 0.5))
    assert code == 0 and "6 rows, 0 without prediction" in out
    assert err.count("warning") == 1 and "loud.wav: over full scale" in err


def test_segments_cover_all_of_an_mp3_whose_header_counts_its_first_part_only(models):
    parts = []
    for pitch, seconds in ((120, 1.0), (210, 3.0)):
        stream = io.BytesIO()
        soundfile.write(stream, voice(seconds, pitch=pitch), RATE, format="MP3")
        parts.append(stream.getvalue())
    (models.folder / "joined.mp3").write_bytes(b"".join(parts))
    code, _, err = run(models, "joined.mp3", more=("--segment", 1))
    assert code == 0 and "warning" not in err
    assert [row["start"] for row in read(models.folder / "predictions.csv")] == ["0.000", "1.000", "2.000", "3.000"]


def test_standard_output_holds_the_table_in_utf_8_and_nothing_else(models, monkeypatch):
    name = "\u597d\xe9.wav"
    (models.folder / "clips/1.wav").rename(models.folder / name)
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    code, _, err = run(models, name, "clips/sub/deep.flac", attributes=("Val",), more=("--out", "-"))
    assert code == 0 and "2 rows" in err
    rows = list(csv.DictReader(io.StringIO(stream.buffer.getvalue().decode())))
    assert [list(row) for row in rows] == [["FileName", "EmoVal"]] * 2
    assert [row["FileName"] for row in rows] == [name, "deep.flac"]


def test_a_killed_run_continues(models, monkeypatch):
    (models.folder / ".predictions.csv.unfinished").write_text('{"key": "cut')  # by a run killed in its first block
    run(models, "clips", more=("--out", "whole.csv"))
    monkeypatch.setattr(tool, "BLOCK", 2)
    seen, whole = [], tool.extract_block

    def fails_later(predictor, clips, args, bar):
        seen.append(len(clips))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return whole(predictor, clips, args, bar)

    monkeypatch.setattr(tool, "extract_block", fails_later)
    code, _, err = run(models, "clips")
    assert code == 130 and "same command" in err and not (models.folder / "predictions.csv").exists()
    with (models.folder / ".predictions.csv.unfinished").open("a") as stream:
        stream.write('{"rows": [["half')
    os.utime(models.folder / "clips/0.wav")  # its block is not used
    run(models, "clips")
    assert seen == [2, 2, 2, 2, 2]  # the first again, not the second, the third again
    assert (models.folder / "predictions.csv").read_bytes() == (models.folder / "whole.csv").read_bytes()
    assert not (models.folder / ".predictions.csv.unfinished").exists()


def test_unfinished_blocks_of_other_recordings_or_regressors_are_not_used(models, monkeypatch):
    for folder, pitch in (("first", 120), ("second", 210)):
        (models.folder / folder).mkdir()
        soundfile.write(models.folder / folder / "x.wav", voice(pitch=pitch), RATE)
        os.utime(models.folder / folder / "x.wav", (1e9, 1e9))  # same name, size and time
    run(models, "second", attributes=("Val",), more=("--out", "expected.csv"))
    unfinished = models.folder / ".predictions.csv.unfinished"
    for folder, attribute in (("first", "Val"), ("second", "Act")):
        with monkeypatch.context() as patch, pytest.raises(AssertionError):
            patch.setattr(tool, "warn_of_doubtful", None)
            patch.setattr(tool.Path, "unlink", lambda *_, **__: 1 / 0)
            raise AssertionError
    assert not unfinished.exists()


def test_names_that_two_folders_share_become_paths(models):
    (models.folder / "other").mkdir()
    soundfile.write(models.folder / "other/1.wav", voice(pitch=90), RATE)
    assert run(models, "clips", "other", "clips/2.wav")[0] == 0
    names = [row["FileName"] for row in read(models.folder / "predictions.csv")]
    assert len(names) == 7 and {"clips/1.wav", "other/1.wav"} <= set(names)


def test_the_originals_regressor_tells_its_attribute_by_its_name(models):
    file = save(models.folder, "Act", {})
    renamed = file.rename(file.with_name("mine.pt.tar"))
    result = models.run("tools.predict", "clips", "--model", renamed)
    models.refuses(result, "mine.pt.tar", "does not say its attribute")
    renamed.rename(file)
    assert run(models, "clips", attributes=("Act",))[0] == 0


def test_bad_arguments_are_refused(models):
    models.refuses(run(models, "nowhere.wav"), "nowhere.wav", "no such recording or folder")
    models.refuses(run(models, "clips", attributes=("Val", "Val")), "both predict Val")
    models.refuses(run(models, "clips", more=("--set", "IS13")), "feature set IS13", SET)
    models.refuses(run(models, "clips", more=("--norm-dir", "elsewhere")), "elsewhere", "norm_para.py")
    features.write_feature_set(models.folder / "NormTerm", "")
    for attribute in ("Act", "Val"):
        save(models.folder, attribute, {"emo_attr": attribute})
    models.refuses(run(models, "clips"), "88 features, IS13 has 6373", "--set")
    save(models.folder, "Val", {"emo_attr": "Val", "feature_set": "wavlm-0123456789ab"})
    models.refuses(run(models, "clips", attributes=("Val",)), "of wavlm-0123456789ab, no set of openSMILE", "--set")
    code, _, err = run(models, "clips", more=("--segment", "0"))
    assert code == 2 and "at least 0.1" in err


def test_norm_terms_that_a_regressor_was_not_trained_with_are_refused(models):
    terms = utils.read_feature_norm("NormTerm"), utils.read_label_norm("NormTerm", "Val")
    save(models.folder, "Val", {"emo_attr": "Val", "feature_set": SET, "norm_terms": utils.norm_key(*terms)})
    assert run(models, "clips", attributes=("Val",))[0] == 0
    utils.write_norm_stats(models.folder / "NormTerm", None, {"Val": (3.0, 0.9)})
    models.refuses(run(models, "clips", attributes=("Val",)), "NormTerm: not the norm terms", "--norm-dir")


def test_nothing_but_a_table_is_written_over(models):
    recording = models.folder / "clips/1.wav"
    before = recording.read_bytes()
    models.refuses(run(models, "clips", more=("--out", "clips/1.wav")), "one of the inputs")
    assert recording.read_bytes() == before
    for name in (".", "clips", "/dev/full"):
        models.refuses(run(models, "clips", more=("--out", name)), "no file that can be written")
    (models.folder / "table.csv").write_text("old")
    (models.folder / "link.csv").symlink_to("table.csv")
    assert run(models, "clips", more=("--out", "link.csv"))[0] == 0
    assert (models.folder / "link.csv").is_symlink() and len(read(models.folder / "table.csv")) == 6
