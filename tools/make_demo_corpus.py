"""Make a small corpus of synthetic emotional voices, so that every stage can be tried without a licensed corpus.

    python -m tools.make_demo_corpus demo_corpus

OUT_DIR gets the layout of MSP-Podcast (Labels, Audios, Features) and an unlabeled set in OUT_DIR/Unlabeled. The same
seed gives the same files for any number of processes. A run that was killed continues where it stopped.

Each recording has a hidden position in the space of arousal, valence and dominance (1 to 7). Five simulated raters
judge this position. The voice is a sequence of vowels made of harmonics. It depends on the position as the literature
reports (Scherer, Speech Communication 40 (2003) 227-256; Laukka et al., Cognition and Emotion 19 (2005) 633-653;
Tartter, Perception & Psychophysics 27 (1980) 24-27; Puts et al., Evolution and Human Behavior 27 (2006) 283-296):

    arousal    higher and more varied F0, louder, faster, flatter spectral tilt, less noise
    valence    higher formants (a smile shortens the vocal tract), rising accents, less noise
    dominance  louder, lower F0 and lower formants, flatter spectral tilt

Valence is harder to hear than arousal, as in real speech. About 15 % of the recordings have high disagreement: their
raters scatter, and their voice contradicts the rated position. Labels/demo_truth.csv lists them. Results on this corpus
show that the program works, not how well it recognises emotions.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import multimode
from typing import NamedTuple

from deepmi import cli


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    parser = cli.new_parser(__doc__)
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="a new or empty folder; about 80 MB are written")
    help = "seed of speakers and recordings"
    parser.add_argument("--seed", type=cli.non_negative_int, default=31, metavar="N", help=help)
    parser.add_argument("--workers", type=cli.positive_int, default=cli.cpu_count(), metavar="N", help="processes")
    return parser


if __name__ == "__main__":
    ARGS = cli.parse(get_args_parser())  # before the heavy imports, so that --help answers at once

import numpy as np
import pandas as pd
import soundfile
from joblib import Parallel, delayed
from numpy.typing import NDArray
from tqdm import tqdm

from deepmi.process import UserError, workers_without_interrupt
from deepmi.storage import prepare_folder, read_json_object, write_atomically, write_text
from tools.extract_features import extract_folder
from tools.recordings import RECORD_FILE
from utils import FEATURE_FOLDER

VERSION = 4  # increase it when the same seed gives different files
MARKER = "demo_corpus.json"
LABEL_FILES = ("labels_consensus.csv", "labels_detailed.csv", "demo_truth.csv")
CLIPS = {"Train": 300, "Development": 90, "Test1": 90, "Unlabeled": 240}
SPEAKERS = {"Train": 10, "Development": 4, "Test1": 4, "Unlabeled": 8}

# ---------------------------------------------------------------------------------------------------------------------
# Speakers, clips and raters

ATTRIBUTES = ("Act", "Val", "Dom")  # the order of every array of three in this file
LATENT_MEAN, LATENT_SD = 4.2, 1.15
LATENT_CORRELATION = np.array([[1.0, 0.1, 0.6], [0.1, 1.0, 0.2], [0.6, 0.2, 1.0]])
CUE_NOISE = np.array([0.05, 1.0, 0.05])  # standard deviation of the voice around the position
HIGH_DISAGREEMENT_SHARE = 0.15
RATERS, RATERS_PER_CLIP = 40, 5
RATER_BIAS_SD, RATER_NOISE_SD, RATER_NOISE_SD_HIGH = 0.25, 0.5, 1.5
# MSP-Podcast's primary classes: name, letter and position (arousal, valence, dominance).
EMOTIONS = {
    "Angry": ("A", (5.9, 2.3, 5.6)),
    "Sad": ("S", (2.6, 2.6, 2.9)),
    "Happy": ("H", (5.1, 5.7, 4.8)),
    "Surprise": ("U", (5.7, 4.6, 3.9)),
    "Fear": ("F", (5.4, 2.4, 2.7)),
    "Disgust": ("D", (4.2, 2.3, 4.7)),
    "Contempt": ("C", (3.6, 3.0, 5.2)),
    "Neutral": ("N", (4.0, 4.2, 4.2)),
}
EMOTION_SPREAD, OTHER_SHARE = 0.7, 0.03
# One stream of random numbers per purpose: a change to one purpose does not affect the others.
_SPEAKER_STREAM, _RATER_STREAM, _LABEL_STREAM, _AUDIO_STREAM = range(4)


class Speaker(NamedTuple):
    """The voice of a speaker in a neutral state."""

    number: int
    gender: str  # Female or Male
    f0: float  # Hz
    formant_scale: float  # 1 for a vocal tract of 17.5 cm, larger for a shorter one
    loudness: float  # dB relative to the average speaker
    tilt: float  # dB per octave, relative to the average speaker
    noise: float  # dB, relative to the average speaker


class Clip(NamedTuple):
    """An utterance to be synthesised."""

    number: int
    file_name: str
    split: str  # Train, Development, Test1 or Unlabeled
    speaker: Speaker
    latents: NDArray[np.float64]  # (3,) position that the raters judge, 1 to 7
    cues: NDArray[np.float64]  # (3,) position that the voice expresses, 1 to 7
    high_disagreement: bool

    @property
    def audio(self) -> Path:
        """The recording, relative to the corpus."""
        return Path("Unlabeled" if self.split == "Unlabeled" else "", "Audios", self.file_name)

    @property
    def features(self) -> Path:
        """The feature file, relative to the corpus."""
        return self.audio.parents[1] / FEATURE_FOLDER / f"{self.audio.stem}.mat"


def draw_speaker(seed: int, number: int) -> Speaker:
    """Draw the speaker with this number; even numbers are women, odd numbers men."""
    female = number % 2 == 0
    f0, formants, loudness, tilt, noise = np.random.default_rng([seed, _SPEAKER_STREAM, number]).standard_normal(5)
    gender, hertz, scale, breath = ("Female", 198.0, 1.16, 2.0) if female else ("Male", 112.0, 1.0, -2.0)
    voice = hertz * np.exp(0.09 * f0), scale * np.exp(0.02 * formants), 0.8 * loudness, 0.8 * tilt, breath + 2.0 * noise
    return Speaker(number, gender, *voice)


def plan_corpus(seed: int, clips: Mapping[str, int] = CLIPS) -> list[Clip]:
    """Decide who says what, and how, in every recording; no speaker is in two splits.

    Args:
        seed: seed of the corpus.
        clips: number of recordings per split.
    Returns:
        The recordings, ordered by number.
    """
    plan: list[Clip] = []
    new_speakers = (draw_speaker(seed, number) for number in itertools.count())
    for split, count in SPEAKERS.items():
        speakers = itertools.cycle(list(itertools.islice(new_speakers, count)))
        for speaker in itertools.islice(speakers, clips[split]):
            number = len(plan)
            rng = np.random.default_rng([seed, _LABEL_STREAM, number])
            correlated = np.linalg.cholesky(LATENT_CORRELATION) @ rng.standard_normal(3)
            latents = np.clip(LATENT_MEAN + LATENT_SD * correlated, 1, 7)
            high = bool(rng.random() < HIGH_DISAGREEMENT_SHARE)
            cues = latents + CUE_NOISE * rng.standard_normal(3)
            if high:  # the voice moves toward the opposite side of the scale
                cues -= np.copysign(rng.uniform(1.0, 2.0, 3), latents - LATENT_MEAN)
            # Every tenth name has the longer form that MSP-Podcast uses for parts of a segment.
            part = f"_{number % 7 + 1:04d}" if number % 10 == 9 else ""
            name = f"MSP-PODCAST_{speaker.number + 1:04d}_{number + 1:04d}{part}.wav"
            plan.append(Clip(number, name, split, speaker, latents, np.clip(cues, 1, 7), high))
    return plan


def rate_clip(clip: Clip, seed: int) -> list[dict]:
    """Ratings of the latents of a recording by five simulated raters.

    Returns:
        One dict per rater: Worker, Primary, Secondary ("Angry,Disgust,"), and Act, Val, Dom as whole numbers 1 to 7.
    """
    biases = RATER_BIAS_SD * np.random.default_rng([seed, _RATER_STREAM]).standard_normal((RATERS, 3))
    rng = np.random.default_rng([seed, _LABEL_STREAM, clip.number, 1])
    noise_sd = RATER_NOISE_SD_HIGH if clip.high_disagreement else RATER_NOISE_SD
    places = np.array([place for _, place in EMOTIONS.values()])
    ratings = []
    for rater in rng.choice(RATERS, size=RATERS_PER_CLIP, replace=False):
        perceived = clip.latents + biases[rater] + noise_sd * rng.standard_normal(3)
        closeness = np.exp(-np.sum((places - perceived) ** 2, axis=1) / (2 * EMOTION_SPREAD**2)) + 1e-12
        primary, second = rng.choice(list(EMOTIONS), size=2, replace=False, p=closeness / closeness.sum())
        if rng.random() < OTHER_SHARE:
            primary = "Other"
        secondary = f"{primary},{second}," if rng.random() < 0.5 else f"{primary},"
        scores = np.clip(np.rint(perceived), 1, 7).astype(int).tolist()
        worker = f"WORKER{rater + 1:08d}"
        ratings.append({"Worker": worker, "Primary": primary, "Secondary": secondary} | dict(zip(ATTRIBUTES, scores)))
    return ratings


def plurality_class(primaries: Sequence[str]) -> str:
    """The letter of the most frequent class; X if there is a tie."""
    first, *more = multimode(primaries)
    return "X" if more else EMOTIONS.get(first, "O")[0]


def write_labels(clips: Sequence[Clip], label_dir: Path, seed: int) -> None:
    """Write the consensus labels, the labels of each rater and the hidden truth of the labeled recordings."""
    consensus, detailed, truth = [], [], []
    for clip in sorted(clips, key=lambda clip: clip.file_name):
        name, ratings = {"FileName": clip.file_name}, rate_clip(clip, seed)
        emotion = {"EmoClass": plurality_class([rating["Primary"] for rating in ratings])}
        means = {f"Emo{attribute}": np.mean([rating[attribute] for rating in ratings]) for attribute in ATTRIBUTES}
        speaker = {"SpkrID": clip.speaker.number + 1, "Gender": clip.speaker.gender, "Split_Set": clip.split}
        consensus.append(name | emotion | means | speaker)
        for rating in ratings:
            detail = "{Worker}; {Primary}; {Secondary}; A:{Act:.6f}; V:{Val:.6f}; D:{Dom:.6f};".format_map(rating)
            detailed.append(name | {"EmoDetail": detail})
        truth.append(name | dict(zip(ATTRIBUTES, clip.latents)) | {"HighDisagreement": int(clip.high_disagreement)})
    for file_name, rows in zip(LABEL_FILES, (consensus, detailed, truth)):
        table = pd.DataFrame(rows).to_csv(index=False, float_format="%.4f", lineterminator="\n")
        write_text(label_dir / file_name, table)


# ---------------------------------------------------------------------------------------------------------------------
# Sound

SAMPLE_RATE = 16_000
# F1 to F4 in Hz of seven vowels (columns) of an adult man, rounded from Peterson & Barney, JASA 24 (1952) 175-184.
VOWELS = np.array(
    [
        [290, 560, 670, 740, 450, 320, 500],
        [2250, 1800, 1680, 1120, 980, 900, 1450],
        [2950, 2500, 2420, 2450, 2300, 2250, 2450],
        [3550, 3450, 3400, 3400, 3300, 3300, 3400],
    ]
)
BANDWIDTHS = np.array([[70.0], [95.0], [140.0], [200.0]])  # Hz, of F1 to F4
SMILE = np.array([[0.010], [0.026], [0.024], [0.020]])  # fraction by which valence raises F1 to F4


def synthesize(speaker: Speaker, cues: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Nonsense syllables of a speaker in a given emotional state.

    Args:
        speaker: who speaks.
        cues: shape (3,), arousal, valence and dominance, 1 to 7.
        rng: draws syllables, timing and noise.
    Returns:
        About 2 s of sound at 16 kHz, from -1 to 1.
    """
    a, v, d = (np.asarray(cues) - 4.0) / 1.5  # about -2 to 2
    varied = rng.standard_normal(7)  # variation that is not emotional
    mean_f0 = speaker.f0 * 2 ** ((2.8 * a + 0.3 * v - 1.5 * d + 0.5 * varied[0]) / 12)  # Hz
    accent = 2.6 * np.exp(0.38 * a + 0.12 * varied[1])  # semitones
    slope = 1.3 * v + 0.5 * varied[2]  # semitones by which F0 rises within a stressed vowel
    tempo = np.exp(-0.13 * a + 0.04 * varied[3])  # factor on durations
    tilt = -9.0 + 2.5 * a + 0.6 * d + speaker.tilt + 0.3 * varied[4]  # dB per octave
    noise = 10 ** ((-22 - 3.0 * a - 2.0 * v + speaker.noise + 0.8 * varied[5]) / 20)  # relative to the harmonics
    loudness = -27.0 + 3.2 * a + 2.4 * d + speaker.loudness + 0.6 * varied[6]  # dB relative to full scale
    vowels = VOWELS * speaker.formant_scale * (1 + SMILE * v - 0.024 * d)

    silence = np.zeros(SAMPLE_RATE // 12)
    parts = [silence]
    syllables = round(rng.uniform(7, 9.5) / tempo)
    for i in range(syllables):
        if rng.random() < 0.85:  # a consonant
            parts.append(rng.uniform(0.05, 0.35) * _noise(int(0.07 * tempo * SAMPLE_RATE), rng))
        stressed = rng.random() < 0.45
        time = np.linspace(-1, 1, int((0.19 if stressed else 0.13) * tempo * rng.uniform(0.8, 1.2) * SAMPLE_RATE))
        semitones = rng.uniform(0.6, 1.4) * stressed * (accent * (1 - time**2) + slope * time) - accent / 3
        f0 = mean_f0 * 2 ** ((semitones - 2.6 * (i / syllables - 0.5)) / 12)  # it falls from syllable to syllable
        vowel = _harmonics(f0, tilt, vowels[:, [rng.integers(vowels.shape[1])]]) + noise * _noise(len(time), rng)
        parts.append(vowel * (1.0 if stressed else 0.7) * np.minimum(1, 6 * (1 - np.abs(time))))
        if rng.random() < 0.09 - 0.03 * a:
            parts.append(silence)
    speech = np.concatenate([*parts, silence])
    speech *= 10 ** (loudness / 20) / np.sqrt(np.mean(speech**2))
    speech += 10 ** (rng.uniform(-72, -66) / 20) * rng.standard_normal(len(speech))  # noise of the room
    return speech * min(1.0, 0.95 / np.abs(speech).max())


def _noise(samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Noise whose level rises by 6 dB per octave, RMS about 1."""
    return np.diff(rng.standard_normal(samples + 1)) / np.sqrt(2)


def _harmonics(f0: NDArray[np.float64], tilt: float, formants: NDArray[np.float64]) -> NDArray[np.float64]:
    """A vowel: harmonics of F0 (Hz, one per sample), weighted by a tilt (dB per octave) and formants (Hz); RMS 1."""
    number = np.arange(1, int(0.47 * SAMPLE_RATE / f0.mean()) + 1)
    hertz = number * f0.mean()
    resonance = np.prod(formants**2 / np.hypot(formants**2 - hertz**2, BANDWIDTHS * hertz), axis=0)
    weight = resonance * 10 ** (tilt * np.log2(number) / 20)
    phase = 2 * np.pi * np.cumsum(f0) / SAMPLE_RATE
    vowel = (weight[:, None] * np.sin(number[:, None] * phase)).sum(axis=0)
    return vowel / np.sqrt(np.mean(vowel**2))


def _write_voice(path: Path, clip: Clip, seed: int) -> None:
    speech = synthesize(clip.speaker, clip.cues, np.random.default_rng([seed, _AUDIO_STREAM, clip.number]))
    with write_atomically(path) as temporary:
        samples = np.rint(32767 * speech).astype(np.int16)
        soundfile.write(temporary, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")


# ---------------------------------------------------------------------------------------------------------------------
# The folder


def _read_marker(out_dir: Path, recipe: dict) -> dict:
    """The content of the marker file of this corpus, empty for a new or empty folder.

    Raises:
        UserError: OUT_DIR contains something else, or a different demo corpus.
    """
    if not (marker := out_dir / MARKER).exists():
        if out_dir.is_dir() and any(not entry.name.startswith(".") for entry in out_dir.iterdir()):
            raise UserError(f"{out_dir}: the folder has files, but no demo corpus; name a new or empty folder.")
        return {}
    found = read_json_object(marker)
    differ = [f"{key} {found.get(key)} there, {recipe[key]} now" for key in recipe if found.get(key) != recipe[key]]
    if differ:
        reasons = "; ".join(differ)
        raise UserError(f"{out_dir}: a different demo corpus ({reasons}); delete it or name a different OUT_DIR.")
    return found


def make_corpus(out_dir: Path, seed: int = 31, workers: int = 1, clips: Mapping[str, int] = CLIPS) -> bool:
    """Make the demo corpus, or the missing parts of it.

    Args:
        out_dir: a new or empty folder, or one that an earlier call with the same seed and sizes began.
        seed: determines every label and every sample.
        workers: number of processes; the files do not depend on it.
        clips: number of recordings per split.
    Returns:
        Whether anything was missing.
    Raises:
        UserError: OUT_DIR can't be written or contains something else.
    """
    plan, recipe = plan_corpus(seed, clips), {"version": VERSION, "seed": seed, "clips": dict(clips)}
    features = [out_dir / clip.features for clip in plan]
    labels = [out_dir / "Labels" / name for name in LABEL_FILES]
    silent = [clip for clip in plan if not (out_dir / clip.audio).exists()]
    if _read_marker(out_dir, recipe).get("finished") and not silent and all(f.exists() for f in labels + features):
        return False
    prepare_folder(out_dir)
    # The marker is written first, so that the next run recognises the files of a killed run.
    write_text(out_dir / MARKER, json.dumps(recipe | {"finished": False}, indent=1) + "\n")
    write_labels([clip for clip in plan if clip.split != "Unlabeled"], prepare_folder(out_dir / "Labels"), seed)
    audio_dirs = [prepare_folder(out_dir / part / "Audios") for part in ("", "Unlabeled")]
    with workers_without_interrupt():
        voices = Parallel(workers, return_as="generator_unordered")(
            delayed(_write_voice)(out_dir / clip.audio, clip, seed) for clip in silent
        )
    for _ in tqdm(voices, total=len(silent), desc="voices", unit="file", disable=None):
        pass
    for audio_dir in audio_dirs:
        feature_dir = audio_dir.parent / FEATURE_FOLDER
        extract_folder(audio_dir, feature_dir, workers=workers)
        (feature_dir / RECORD_FILE).unlink(missing_ok=True)  # it has file times, which differ between runs
    if missing := [file.stem for file in features if not file.exists()]:
        raise UserError(f"{out_dir}: {len(missing)} recordings without features (first: {missing[0]}); run again.")
    write_text(out_dir / MARKER, json.dumps(recipe | {"finished": True}, indent=1) + "\n")
    return True


def main(args: argparse.Namespace) -> None:
    """Make the corpus and print its size."""
    if make_corpus(args.out_dir, args.seed, args.workers):
        print(f"Made the demo corpus (seed {args.seed}) in {args.out_dir}")
    else:
        print(f"{args.out_dir} already contains the demo corpus of seed {args.seed}; nothing to do")
    plan = plan_corpus(args.seed)
    for split in CLIPS:
        seconds = [soundfile.info(args.out_dir / clip.audio).duration for clip in plan if clip.split == split]
        print(f"{split:<12}{len(seconds):>5} recordings {sum(seconds):>7.1f} s of audio")
    print(f"export DEEPMI_CORPUS={args.out_dir} DEEPMI_UNLABELED={args.out_dir / 'Unlabeled'}")


if __name__ == "__main__":
    cli.run(main, ARGS)
