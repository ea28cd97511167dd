"""The demo corpus: same seed, same files; labels that read as MSP-Podcast's; voices that follow the latents."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from conftest import run_script

import utils
from deepmi import features
from deepmi.process import UserError
from tools import make_demo_corpus as demo

TINY = {"Train": 7, "Development": 2, "Test1": 2}
TINY_UNLABELED = 3
CALM, CENTRE, ACTIVE = np.array([2.0, 4.0, 4.0]), np.array([4.0, 4.0, 4.0]), np.array([6.0, 4.0, 4.0])


def make_tiny(folder: Path, seed: int = 31, workers: int = 1, with_features: bool = False) -> bool:
    return demo.make_corpus(folder, seed, workers, TINY, TINY_UNLABELED, with_features)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A tiny demo corpus without features, which nobody changes."""
    folder = tmp_path_factory.mktemp("demo") / "tiny"
    make_tiny(folder)
    return folder


@pytest.fixture(scope="module")
def whole_plan() -> list[demo.Clip]:
    """The clips of the demo corpus as users make it."""
    return demo.plan_corpus(31, demo.CLIPS, demo.UNLABELED_CLIPS)


@pytest.fixture(scope="module")
def whole_tables(whole_plan, tmp_path_factory) -> dict[str, pd.DataFrame]:
    """Its labels: consensus, detailed, truth."""
    folder = tmp_path_factory.mktemp("labels")
    demo.write_labels([clip for clip in whole_plan if clip.split != "Unlabeled"], folder, 31)
    return {
        "consensus": utils.read_labels(folder / "labels_consensus.csv").set_index("FileName"),
        "detailed": utils.read_detailed_labels(folder / "labels_detailed.csv"),
        "truth": pd.read_csv(folder / "demo_truth.csv").set_index("FileName"),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Files


def test_same_seed_gives_the_same_bytes_whatever_the_workers(tiny, tmp_path):
    make_tiny(tmp_path / "again", workers=2)
    assert contents(tmp_path / "again") == contents(tiny)


def test_another_seed_gives_other_labels_and_voices(tiny, tmp_path):
    make_tiny(tmp_path / "other", seed=32)
    here, there = contents(tiny), contents(tmp_path / "other")
    assert here.keys() == there.keys()
    assert not [name for name in here if here[name] == there[name]]


def test_layout_is_that_of_msp_podcast(tiny):
    corpus = utils.find_corpus(tiny, feature_dir=tiny)
    assert corpus.labels == tiny / "Labels" / "labels_consensus.csv"
    labeled, pool = (sorted((tiny / part / "Audios").iterdir()) for part in ("", "Unlabeled"))
    assert (len(labeled), len(pool)) == (sum(TINY.values()), TINY_UNLABELED)
    names = [path.name for path in labeled + pool]
    assert all(re.fullmatch(r"MSP-PODCAST_\d{4}_\d{4}(_\d{4})?\.wav", name) for name in names)
    assert len(set(names)) == len(names)
    assert {name.count("_") for name in names} == {2, 3}
    assert set(utils.read_labels(corpus.labels)["FileName"]) == {path.name for path in labeled}


def test_audio_is_16_khz_mono_neither_clipped_nor_silent(tiny):
    for path in tiny.rglob("*.wav"):
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
        assert 1.2 < info.duration < 3
        signal, _ = soundfile.read(path)
        assert np.abs(signal).max() < 0.96
        assert np.sqrt(np.mean(signal**2)) > 0.004


def test_features_are_openSMILEs_and_the_same_again(tmp_path):
    pytest.importorskip("opensmile")
    for name, workers in (("a", 1), ("b", 2)):
        demo.make_corpus(tmp_path / name, 31, workers, {"Train": 2, "Development": 1, "Test1": 1}, 1)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    mats = sorted((tmp_path / "a").rglob("*.mat"))
    assert len(mats) == 5
    assert all(features.read_feature(path).shape == (6373,) for path in mats)
    assert {path.stem for path in mats} == {path.stem for path in (tmp_path / "a").rglob("*.wav")}


def test_finished_corpus_is_left_alone_and_a_killed_run_goes_on(tiny, tmp_path):
    folder = tmp_path / "corpus"
    assert make_tiny(folder)
    assert not make_tiny(folder)
    kept, lost, *_ = sorted(folder.rglob("*.wav"))
    lost.unlink()
    kept_since = kept.stat().st_mtime_ns
    marker = folder / demo.MARKER
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"finished": False}))
    assert make_tiny(folder)
    assert contents(folder) == contents(tiny)
    assert kept.stat().st_mtime_ns == kept_since


def test_a_finished_corpus_that_lost_its_labels_gets_them_back(tiny, tmp_path):
    make_tiny(tmp_path / "corpus")
    (tmp_path / "corpus" / "Labels" / "labels_consensus.csv").unlink()
    assert make_tiny(tmp_path / "corpus")
    assert contents(tmp_path / "corpus") == contents(tiny)


def test_refuses_a_folder_that_is_not_its_own(tiny, tmp_path):
    with pytest.raises(UserError, match="seed 31 there, 32 now"):
        make_tiny(tiny, seed=32)
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(UserError, match="no demo corpus"):
        make_tiny(tmp_path)
    with pytest.raises(UserError, match="a file, expected a folder"):
        make_tiny(tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_command_says_so_and_leaves_with_2(tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    result = run_script("tools.make_demo_corpus", tmp_path, cwd=tmp_path)
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "no demo corpus" in result.stderr


# ---------------------------------------------------------------------------------------------------------------------
# Labels


def test_consensus_is_the_mean_of_the_five_ratings(whole_tables):
    columns = ["EmoAct", "EmoVal", "EmoDom"]
    ratings = whole_tables["detailed"].groupby("FileName")
    assert set(ratings.size()) == {5}
    assert set(ratings["Worker"].nunique()) == {5}
    scores = whole_tables["detailed"][columns].to_numpy()
    assert set(np.unique(scores)) == set(range(1, 8))
    consensus = whole_tables["consensus"][columns].astype(float)
    pd.testing.assert_frame_equal(
        ratings[columns].mean().sort_index(), consensus.sort_index(), check_names=False, check_index_type=False
    )


def test_detailed_rows_are_written_as_msp_podcast_writes_them(tiny):
    table = pd.read_csv(tiny / "Labels" / "labels_detailed.csv")
    assert list(table.columns) == ["FileName", "EmoDetail"]
    row = r"WORKER\d{8}; [A-Z][a-z]+; ([A-Z][a-z]+,){1,2}; A:[1-7]\.0{6}; V:[1-7]\.0{6}; D:[1-7]\.0{6};"
    assert table["EmoDetail"].str.fullmatch(row).all()


def test_class_is_the_plurality_of_the_primary_ones(whole_tables):
    assert demo.plurality_class(["Angry", "Angry", "Sad", "Happy", "Fear"]) == "A"
    assert demo.plurality_class(["Angry", "Angry", "Sad", "Sad", "Fear"]) == "X"
    assert demo.plurality_class(["Other", "Other", "Other", "Sad", "Fear"]) == "O"
    primaries = whole_tables["detailed"].groupby("FileName")["EmoClass_Major"].agg(list)
    classes = whole_tables["consensus"]["EmoClass"]
    assert all(demo.plurality_class(primaries[name]) == letter for name, letter in classes.items())
    assert set(classes) >= set("ASHUFDCNX")


def test_no_speaker_is_in_two_splits_and_each_split_has_both_genders(whole_plan):
    speakers = {split: {clip.speaker for clip in whole_plan if clip.split == split} for split in demo.SPEAKERS}
    assert {split: len(group) for split, group in speakers.items()} == demo.SPEAKERS
    assert len({speaker.number for group in speakers.values() for speaker in group}) == sum(demo.SPEAKERS.values())
    assert all({speaker.gender for speaker in group} == {"Female", "Male"} for group in speakers.values())


def test_all_six_levels_occur_in_train(whole_tables):
    consensus = whole_tables["consensus"]
    train = consensus[consensus["Split_Set"] == "Train"]
    for column in ("EmoAct", "EmoVal", "EmoDom"):
        assert set(np.clip(np.floor(train[column].astype(float)), 1, 6)) == set(range(1, 7))
        assert abs(train[column].astype(float).mean() - 4.2) < 0.25


def test_high_disagreement_scatters_the_raters_and_parts_voice_from_label(whole_plan, whole_tables):
    high = whole_tables["truth"]["HighDisagreement"].astype(bool)
    assert 0.1 < high.mean() < 0.2
    spread = whole_tables["detailed"].groupby("FileName")[["EmoAct", "EmoVal", "EmoDom"]].std().mean(axis=1)
    spread = spread.reindex(high.index)
    assert spread[high].mean() > 1.8 * spread[~high].mean()
    distance = {
        marked: np.mean([np.abs(c.cues - c.latents) for c in whole_plan if c.high_disagreement is marked])
        for marked in (False, True)
    }
    assert distance[True] > 1.2
    assert distance[False] < 0.4


# ---------------------------------------------------------------------------------------------------------------------
# Voices


def rms_f0_harmonicity(signal: np.ndarray) -> tuple[float, float, float]:
    """RMS in dB, median F0 in Hz and median height of the autocorrelation peak, over the voiced frames of 40 ms."""
    frames = np.lib.stride_tricks.sliding_window_view(signal, 640)[::160]
    loud = frames[np.sqrt(np.mean(frames**2, axis=1)) > 0.5 * signal.std()]
    spectrum = np.fft.rfft((loud - loud.mean(axis=1, keepdims=True)) * np.hanning(640), 2048, axis=1)
    correlation = np.fft.irfft(np.abs(spectrum) ** 2, axis=1)[:, :321]
    window = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(640), 2048)) ** 2)[:321]
    correlation = correlation / correlation[:, :1] / (window / window[0])
    lags = np.arange(32, 267)  # 500 to 60 Hz
    best = correlation[:, lags].argmax(axis=1)
    heights = correlation[np.arange(len(best)), lags[best]]
    voiced = heights > 0.5
    level = 20 * np.log10(np.sqrt(np.mean(signal**2)))
    return level, float(np.median(16000 / lags[best][voiced])), float(np.median(heights[voiced]))


def mean_measures(speaker: demo.Speaker, cues: np.ndarray) -> np.ndarray:
    clips = [demo.synthesise(speaker, cues, np.random.default_rng(i)) for i in range(6)]
    return np.mean([rms_f0_harmonicity(clip) for clip in clips], axis=0)


@pytest.mark.parametrize("number", [0, 1])
def test_an_aroused_voice_is_louder_and_higher(number):
    speaker = demo.draw_speaker(31, number)
    calm, active = mean_measures(speaker, CALM), mean_measures(speaker, ACTIVE)
    assert active[0] - calm[0] > 5  # dB
    assert active[1] / calm[1] > 1.25


@pytest.mark.parametrize("number", [0, 1])
def test_a_dominant_voice_is_louder_and_lower(number):
    speaker = demo.draw_speaker(31, number)
    weak, strong = (mean_measures(speaker, CENTRE + step * np.eye(3)[2]) for step in (-2, 2))
    assert strong[0] - weak[0] > 3
    assert strong[1] / weak[1] < 0.9


@pytest.mark.parametrize("number", [0, 1])
def test_a_positive_voice_is_less_harsh(number):
    speaker = demo.draw_speaker(31, number)
    negative, positive = (mean_measures(speaker, CENTRE + step * np.eye(3)[1]) for step in (-2, 2))
    assert positive[2] > negative[2]


def test_settings_move_as_the_literature_reports():
    speaker = demo.draw_speaker(31, 0)

    def change(attribute: int) -> dict[str, float]:
        low, high = (
            demo.voice_of(speaker, CENTRE + step * np.eye(3)[attribute], np.random.default_rng(0)) for step in (-2, 2)
        )
        return {name: np.mean(getattr(high, name)) - np.mean(getattr(low, name)) for name in vars(low)}

    arousal, valence, dominance = (change(i) for i in range(3))
    assert all(arousal[name] > 0 for name in ("f0", "f0_range", "loudness", "rate", "cutoff"))
    assert arousal["breathiness"] < 0
    assert all(valence[name] > 0 for name in ("formant_scales", "f0_range", "accent_slope"))
    assert all(valence[name] < 0 for name in ("jitter", "shimmer"))
    assert all(dominance[name] > 0 for name in ("loudness", "fullness"))
    assert all(dominance[name] < 0 for name in ("f0", "formant_scales", "unevenness"))


def test_a_man_speaks_lower_than_a_woman():
    woman, man = (mean_measures(demo.draw_speaker(31, number), CENTRE) for number in (0, 1))
    assert 150 < woman[1] < 260
    assert 80 < man[1] < 150
