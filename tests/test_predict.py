"""Predictions from audio, against openSMILE and the network's layers by hand."""

import csv
import io
import os
import sys

import numpy as np
import opensmile
import pytest
import soundfile
import torch
from conftest import interrupt, voice
from test_model import numpy_regressor

import model
import utils
from deepmi import features
from tools import predict as tool

RATE = 16000
SET = "eGeMAPSv02"
SMILE = opensmile.Smile(getattr(opensmile.FeatureSet, SET))


@pytest.fixture
def models(bench):
    """Regressors of arousal and valence with random weights, normalisation statistics, and some recordings."""
    audio = bench.folder / "clips"
    (audio / "sub").mkdir(parents=True)
    for number in range(5):
        soundfile.write(audio / f"{number}.wav", voice(pitch=100 + 20 * number), RATE)
    soundfile.write(audio / "sub" / "deep.flac", voice(pitch=230), RATE)
    for folder in ("NormTerm", "Models"):
        (bench.folder / folder).mkdir()
    rows = np.concatenate([SMILE.process_file(path).to_numpy(np.float64) for path in sorted(audio.glob("*.wav"))])
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
    vector = SMILE.process_signal(signal, RATE).to_numpy(np.float64)
    mean, std = utils.read_feature_norm(folder / "NormTerm")
    x = np.clip((vector - mean) / np.where(std == 0, np.inf, std), -3, 3)
    weights = torch.load(utils.regressor_checkpoint(folder / "Models", "deepmi", attribute), weights_only=True)
    z = numpy_regressor({key: value.numpy() for key, value in weights.items()}, x)[0]
    return z * 0.8 + {"Act": 4.0, "Val": 3.0}[attribute]


def read(path):
    with path.open() as stream:
        return list(csv.DictReader(stream))


def run(bench, *inputs, attributes=("Val", "Act"), more=()):
    files = [utils.regressor_checkpoint(bench.folder / "Models", "deepmi", attribute) for attribute in attributes]
    return bench.run("tools.predict", *inputs, "--model", *files, "--device", "cpu", *more)


def predicted(bench, *inputs, **more):
    """The tool succeeds: the rows of its table."""
    code, _, err = run(bench, *inputs, **more)
    assert code == 0, err
    return read(bench.folder / "predictions.csv")


def test_a_folder_becomes_a_table_of_labels(models):
    code, out, err = run(models, "clips")
    assert code == 0 and "6 rows, 0 without prediction; wrote predictions.csv" in out, err
    rows, before = read(models.folder / "predictions.csv"), (models.folder / "predictions.csv").read_bytes()
    assert [row["FileName"] for row in rows] == [*(f"{number}.wav" for number in range(5)), "sub/deep.flac"]
    assert list(rows[0]) == ["FileName", "EmoAct", "EmoVal"]
    for row in rows:
        signal = soundfile.read(models.folder / "clips" / row["FileName"], dtype="float32")[0]
        for attribute in ("Act", "Val"):
            assert float(row[f"Emo{attribute}"]) == pytest.approx(by_hand(models.folder, attribute, signal), abs=1e-3)
    assert len({row["EmoVal"] for row in rows}) == 6
    run(models, "clips")
    assert (models.folder / "predictions.csv").read_bytes() == before
    assert not list(models.folder.glob(".*"))


def test_what_cannot_be_used_is_named_and_the_rest_is_predicted(models, monkeypatch):
    monkeypatch.setattr(tool, "BLOCK", 2)
    folder = models.folder / "clips"
    (folder / "text.wav").write_text("no sound")
    soundfile.write(folder / "short.wav", voice(0.02), RATE)
    soundfile.write(folder / "stereo.wav", np.column_stack([voice(pitch=150, rate=44100)] * 2), 44100)
    loud = 20000 * np.concatenate([voice(0.5, pitch=100 + number) for number in range(5)])
    soundfile.write(folder / "loud.wav", loud, RATE, subtype="FLOAT")
    code, out, err = run(models, "clips", more=("--out", "new/p.csv", "--segment", 0.5))
    names = [row["FileName"] for row in read(models.folder / "new/p.csv")]
    assert code == 1 and f"{len(names)} rows, 2 without prediction" in out and {"stereo.wav", "loud.wav"} < {*names}
    for words in ("text.wav: not readable", "short.wav (0.000 to 0.020 s): too short (20 ms)"):
        assert words in err
    assert err.count("loud.wav: over full scale") == 1 and err.count("warning") == 4


def test_long_recordings_in_segments(models):
    signal = np.concatenate([voice(1.0, pitch=110), voice(1.0, pitch=180), voice(0.7, pitch=240)])
    (models.folder / "long").mkdir()
    soundfile.write(models.folder / "long/a.wav", signal, RATE)
    soundfile.write(models.folder / "long/b.wav", signal[: int(1.4 * RATE)], RATE)
    rows = predicted(models, "long", attributes=("Act",), more=("--segment", 1))
    times = [(row["FileName"], float(row["start"]), float(row["end"])) for row in rows]
    assert times == [("a.wav", 0, 1), ("a.wav", 1, 2), ("a.wav", 2, 2.7), ("b.wav", 0, 1.4)]
    written = soundfile.read(models.folder / "long/a.wav", dtype="float32")[0]
    for row, (_, start, end) in zip(rows[:3], times):
        part = written[round(start * RATE) : round(end * RATE)]
        assert float(row["EmoAct"]) == pytest.approx(by_hand(models.folder, "Act", part), abs=1e-3)


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


@pytest.fixture
def stop_in_block(models, monkeypatch):
    """Blocks of two clips; a function that runs the tool and stops it in a block (from 1; 0: not at all).

    Returns the number of blocks that were computed.
    """
    monkeypatch.setattr(tool, "BLOCK", 2)
    whole = tool.predict_block

    def run_until(block, *inputs, attribute="Val"):
        seen = []

        def predict_block(*arguments):
            seen.append(arguments)
            return interrupt() if len(seen) == block else whole(*arguments)

        monkeypatch.setattr(tool, "predict_block", predict_block)
        code, _, err = run(models, *inputs, attributes=(attribute,))
        assert (code == 130 and "same command" in err) if block else code == 0
        return len(seen)

    return run_until


def test_a_killed_run_continues(models, stop_in_block):
    run(models, "clips", attributes=("Val",), more=("--out", "whole.csv"))
    unfinished, table = models.folder / ".predictions.csv.unfinished", models.folder / "predictions.csv"
    unfinished.write_text('{"key": "cut')  # by a run that was killed while it wrote its first block
    assert stop_in_block(3, "clips") == 3 and not table.exists()
    with unfinished.open("a") as stream:
        stream.write('{"rows": [["half')
    os.utime(models.folder / "clips/0.wav")  # changed, so the first block is computed again
    assert stop_in_block(0, "clips") == 2
    assert table.read_bytes() == (models.folder / "whole.csv").read_bytes() and not unfinished.exists()


def test_unfinished_blocks_of_different_recordings_or_regressors_are_not_used(models, stop_in_block):
    for folder, pitch in (("first", 120), ("second", 210)):
        (models.folder / folder).mkdir()
        for number in range(3):
            soundfile.write(models.folder / folder / f"{number}.wav", voice(pitch=pitch + number), RATE)
            os.utime(models.folder / folder / f"{number}.wav", (1e9, 1e9))  # same names, sizes and times
    run(models, "second", attributes=("Val",), more=("--out", "expected.csv"))
    stop_in_block(2, "first")
    stop_in_block(2, "second", attribute="Act")
    assert len((models.folder / ".predictions.csv.unfinished").read_text().splitlines()) == 2
    assert stop_in_block(0, "second") == 2
    assert (models.folder / "predictions.csv").read_bytes() == (models.folder / "expected.csv").read_bytes()


def test_names_that_two_folders_share_become_paths(models):
    (models.folder / "other").mkdir()
    soundfile.write(models.folder / "other/1.wav", voice(pitch=90), RATE)
    names = [row["FileName"] for row in predicted(models, "clips", "other", "clips/2.wav")]
    assert len(names) == 7 and {"clips/1.wav", "other/1.wav"} <= set(names)


def test_bad_arguments_are_refused(models):
    models.refuses(run(models, "nowhere.wav"), "nowhere.wav", "no such recording or folder")
    models.refuses(run(models, "clips", attributes=("Val", "Val")), "both predict Val")
    models.refuses(run(models, "clips", more=("--set", "IS13")), "feature set IS13", SET)
    models.refuses(run(models, "clips", more=("--norm-dir", "elsewhere")), "elsewhere", "norm_para.py")
    for seconds in ("0", "inf", "x"):
        code, _, err = run(models, "clips", more=("--segment", seconds))
        assert code == 2 and "at least 0.1" in err


def test_normalisation_statistics_of_another_training_are_refused(models):
    terms = utils.read_feature_norm("NormTerm"), utils.read_label_norm("NormTerm", "Val")
    save(models.folder, "Val", {"emo_attr": "Val", "feature_set": SET, "norm_terms": utils.norm_key(*terms)})
    predicted(models, "clips/0.wav", attributes=("Val",))
    utils.write_norm_stats(models.folder / "NormTerm", None, {"Val": (3.0, 0.9)})
    models.refuses(run(models, "clips", attributes=("Val",)), "different normalisation statistics", "--norm-dir")


def test_what_a_regressor_does_not_record_is_taken_from_its_name_or_refused(models):
    file = save(models.folder, "Act", {})  # as the original's
    predicted(models, "clips/0.wav", attributes=("Act",))
    renamed = file.rename(file.with_name("mine.pt.tar"))
    models.refuses(models.run("tools.predict", "clips", "--model", renamed), "mine.pt.tar", "attribute")
    features.write_feature_set(models.folder / "NormTerm", "")
    save(models.folder, "Val", {"emo_attr": "Val"})
    models.refuses(run(models, "clips", attributes=("Val",)), "88 features", "IS13 has 6373", "--set")
    save(models.folder, "Val", {"emo_attr": "Val", "feature_set": "wavlm-0123456789ab"})
    models.refuses(run(models, "clips", attributes=("Val",)), "wavlm-0123456789ab", "--set")


def test_nothing_but_a_table_is_written_over(models):
    recording = models.folder / "clips/1.wav"
    before = recording.read_bytes()
    models.refuses(run(models, "clips", more=("--out", "clips/1.wav")), "one of the inputs")
    assert recording.read_bytes() == before
    for name in (".", "clips", "/dev/full"):
        models.refuses(run(models, "clips", more=("--out", name)), "can be written")
    (models.folder / "table.csv").write_text("old")
    (models.folder / "link.csv").symlink_to("table.csv")
    assert run(models, "clips", more=("--out", "link.csv"))[0] == 0
    assert (models.folder / "link.csv").is_symlink() and len(read(models.folder / "table.csv")) == 6
