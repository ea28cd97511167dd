"""The demo corpus: same seed, same files; labels as MSP-Podcast writes them; voices that follow the labels."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

import utils
from deepmi import features
from deepmi.process import UserError
from tools import make_demo_corpus as demo

TINY = {"Train": 7, "Development": 2, "Test1": 2, "Unlabeled": 3}
COLUMNS = ["EmoAct", "EmoVal", "EmoDom"]


def make_tiny(folder: Path, seed: int = 31, workers: int = 1) -> bool:
    return demo.make_corpus(folder, seed, workers, TINY)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A tiny demo corpus; no test changes it."""
    folder = tmp_path_factory.mktemp("demo") / "tiny"
    make_tiny(folder)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[list[demo.Clip], pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The clips of the default corpus and its labels: consensus, detailed, truth."""
    folder, plan = tmp_path_factory.mktemp("labels"), demo.plan_corpus(31)
    demo.write_labels([clip for clip in plan if clip.split != "Unlabeled"], folder, 31)
    consensus = utils.read_labels(folder / "labels_consensus.csv").set_index("FileName")
    consensus[COLUMNS] = consensus[COLUMNS].astype(float)
    detailed = utils.read_detailed_labels(folder / "labels_detailed.csv")
    return plan, consensus, detailed, pd.read_csv(folder / "demo_truth.csv").set_index("FileName")


def test_the_seed_alone_decides_the_bytes(tiny, tmp_path):
    make_tiny(tmp_path / "again", workers=2)
    make_tiny(tmp_path / "other", seed=32)
    here, there = contents(tiny), contents(tmp_path / "other")
    assert contents(tmp_path / "again") == here
    assert here.keys() == there.keys()
    assert {Path(name).name for name in here if here[name] == there[name]} == {features.SET_FILE}


def test_the_layout_is_that_of_msp_podcast(tiny):
    labels = utils.find_corpus(tiny).labels
    assert labels == tiny / "Labels/labels_consensus.csv"
    recordings = [sorted((tiny / part / "Audios").iterdir()) for part in ("", "Unlabeled")]
    assert [len(part) for part in recordings] == [11, 3]
    names = {path.name for part in recordings for path in part}
    assert len(names) == 14 and {name.count("_") for name in names} == {2, 3}
    assert all(re.fullmatch(r"MSP-PODCAST_\d{4}_\d{4}(_\d{4})?\.wav", name) for name in names)
    assert set(utils.read_labels(labels)["FileName"]) == {path.name for path in recordings[0]}
    for path in tiny.rglob("*.wav"):
        info, (signal, _) = soundfile.info(path), soundfile.read(path)
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
        assert 1.2 < info.duration < 3.5 and np.abs(signal).max() < 0.96 and np.std(signal) > 0.004
    mats = sorted(tiny.rglob("*.mat"))
    assert {path.stem for path in mats} == {Path(name).stem for name in names}
    assert all(features.read_feature(path).shape == (6373,) for path in mats)
    details = pd.read_csv(tiny / "Labels/labels_detailed.csv")
    assert list(details.columns) == ["FileName", "EmoDetail"]
    row = r"WORKER\d{8}; [A-Z][a-z]+; ([A-Z][a-z]+,){1,2}; A:[1-7]\.0{6}; V:[1-7]\.0{6}; D:[1-7]\.0{6};"
    assert details["EmoDetail"].str.fullmatch(row).all()


def test_a_killed_run_continues_and_a_finished_corpus_is_left_alone(tiny, tmp_path):
    folder = tmp_path / "corpus"
    assert make_tiny(folder) and not make_tiny(folder)
    kept, lost, *_ = sorted(folder.rglob("*.wav"))
    since = kept.stat().st_mtime_ns
    marker = folder / demo.MARKER
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"finished": False}))
    for missing in (lost, folder / "Labels/labels_consensus.csv"):  # the second from a finished corpus
        missing.unlink()
        assert make_tiny(folder)
        assert contents(folder) == contents(tiny)
    assert kept.stat().st_mtime_ns == since


def test_other_folders_are_refused(bench, tiny):
    with pytest.raises(UserError, match="seed 31 there, 32 now"):
        make_tiny(tiny, seed=32)
    thesis = bench.folder / "theses/mine.txt"
    thesis.parent.mkdir()
    thesis.write_text("all of it")
    bench.refuses(bench.run("tools.make_demo_corpus", thesis.parent), "theses", "no demo corpus")
    bench.refuses(bench.run("tools.make_demo_corpus", thesis), "mine.txt", "different folder")
    assert [path.name for path in thesis.parent.iterdir()] == ["mine.txt"]


def test_the_consensus_summarises_five_raters(whole):
    _, consensus, detailed, _ = whole
    ratings = detailed.groupby("FileName")
    assert set(ratings.size()) == set(ratings["Worker"].nunique()) == {5}
    assert set(np.unique(detailed[COLUMNS].to_numpy())) == set(range(1, 8))
    np.testing.assert_allclose(ratings[COLUMNS].mean().loc[consensus.index], consensus[COLUMNS], atol=1e-4)
    classes = ratings["EmoClass_Major"].agg(list).map(demo.plurality_class)
    assert consensus["EmoClass"].to_dict() == classes.to_dict()
    assert set(classes) >= set("ASHUFDCNX")
    assert demo.plurality_class(["Angry", "Sad", "Angry", "Sad", "Fear"]) == "X"
    assert demo.plurality_class(["Sad", "Other", "Other", "Fear", "Other"]) == "O"


def test_splits_share_no_speaker_and_train_has_all_levels(whole):
    plan, consensus, _, _ = whole
    speakers = {split: {clip.speaker for clip in plan if clip.split == split} for split in demo.SPEAKERS}
    assert {split: len(group) for split, group in speakers.items()} == demo.SPEAKERS
    assert len({speaker.number for group in speakers.values() for speaker in group}) == 26
    assert all({speaker.gender for speaker in group} == {"Female", "Male"} for group in speakers.values())
    train = consensus[consensus["Split_Set"] == "Train"]
    assert all(set(np.clip(train[column] // 1, 1, 6)) == set(range(1, 7)) for column in COLUMNS)


def test_high_disagreement_scatters_raters_and_separates_voice_from_label(whole):
    plan, _, detailed, truth = whole
    high = truth["HighDisagreement"].astype(bool)
    assert 0.1 < high.mean() < 0.2
    spread = detailed.groupby("FileName")[COLUMNS].std().mean(axis=1)[high.index]
    assert spread[high].mean() > 1.8 * spread[~high].mean()
    near, far = (np.mean([abs(c.cues - c.latents) for c in plan if c.high_disagreement is x]) for x in (False, True))
    assert near < 0.5 and far > 1.2


def measure(number: int, attribute: int, value: float) -> tuple[float, float, float]:
    """Level in dB, and the medians over frames of 40 ms of F0 in Hz and of the autocorrelation peak, of six clips."""
    cues = np.where(np.arange(3) == attribute, value, 4.0)
    clips = [demo.synthesize(demo.draw_speaker(31, number), cues, np.random.default_rng(i)) for i in range(6)]
    frames = np.lib.stride_tricks.sliding_window_view(np.concatenate(clips), 640)[::160] * np.hanning(640)
    loud = frames[frames.std(axis=1) > frames.std() / 2]
    correlation = np.fft.irfft(abs(np.fft.rfft(loud, 2048)) ** 2)
    lags, peaks = 40 + correlation[:, 40:230].argmax(axis=1), correlation[:, 40:230].max(axis=1)  # 400 to 70 Hz
    return 20 * np.log10(frames.std()), np.median(16000 / lags), np.median(peaks / correlation[:, 0])


@pytest.mark.parametrize("number, lowest, highest", [(0, 150, 260), (1, 80, 150)])  # a woman, a man
def test_voices_follow_the_attributes(number, lowest, highest):
    calm, neutral, active = (measure(number, 0, value) for value in (2, 4, 6))
    assert active[0] - calm[0] > 5 and active[1] > 1.25 * calm[1]  # louder, higher
    assert lowest < neutral[1] < highest
    weak, strong = (measure(number, 2, value) for value in (2, 6))
    assert strong[0] - weak[0] > 3 and strong[1] < 0.9 * weak[1]  # louder, lower
    negative, positive = (measure(number, 1, value) for value in (2, 6))
    assert positive[2] > negative[2]  # less noise
