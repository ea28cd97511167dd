"""Make a small corpus of synthetic emotional voices, so that every stage can be tried without a licensed corpus.

    python -m tools.make_demo_corpus demo_corpus

OUT_DIR then has the layout of MSP-Podcast (Labels, Audios, Features) and an unlabeled pool in OUT_DIR/Unlabeled. The
same seed gives the same voices and labels, however many processes work. A killed run goes on where it stopped.

Each clip has a hidden position in the space of arousal, valence and dominance (1..7). Five simulated raters judge that
position; a source-filter synthesiser speaks nonsense syllables whose cues follow it, in the directions that the
literature reports:

    arousal    higher and wider F0, louder, faster, flatter spectral tilt, less breathy
               (Banse & Scherer 1996; Scherer 2003; Laukka, Juslin & Bresin 2005)
    valence    formants higher and further apart, since a smile shortens the tract (Tartter 1980); more melodic, rising
               accents, less jitter and harshness (Laukka et al. 2005; Goudbeek & Scherer 2010)
    dominance  louder, fuller and steadier (Goudbeek & Scherer 2010), lower F0 and lower formants (Puts et al. 2006)

About 15 % of the clips carry high disagreement: their raters scatter, and their voice follows a position far from the
one that was rated. Labels/demo_truth.csv tells which ones. The voices are no substitute for speech: figures from this
corpus show that the program works, not how well it recognises people.

Sources: Scherer, Speech Communication 40 (2003) 227-256. Laukka, Juslin & Bresin, Cognition and Emotion 19 (2005)
633-653. Goudbeek & Scherer, JASA 128 (2010) 1322-1336. Tartter, Perception & Psychophysics 27 (1980) 24-27. Puts,
Gaulin & Verdolini, Evolution and Human Behavior 27 (2006) 283-296. Banse & Scherer, J. Personality and Social
Psychology 70 (1996) 614-636. Glottal pulse: Rosenberg, JASA 49 (1971) 583-590. Resonators: Klatt, JASA 67 (1980)
971-995.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepmi import cli
from deepmi.process import UserError, workers_without_interrupt
from deepmi.storage import prepare_folder, read_json_object, write_atomically, write_text

VERSION = 2  # raise it whenever the same seed would give other files
MARKER = "demo_corpus.json"
LABEL_FILES = ("labels_consensus.csv", "labels_detailed.csv", "demo_truth.csv")

# ---------------------------------------------------------------------------------------------------------------------
# Who speaks, what they feel, what raters say

ATTRIBUTES = ("Act", "Val", "Dom")  # the order of every array of three in this file
CLIPS = {"Train": 300, "Development": 90, "Test1": 90}
UNLABELED_CLIPS = 240
SPEAKERS = {"Train": 10, "Development": 4, "Test1": 4, "Unlabeled": 8}

LATENT_MEAN = 4.2
LATENT_SD = 1.15
LATENT_CORRELATION = np.array([[1.0, 0.1, 0.6], [0.1, 1.0, 0.2], [0.6, 0.2, 1.0]])
# A speaker shows a feeling more or less faithfully. Valence is the least faithful, as in real speech.
CUE_NOISE = np.array([0.05, 0.65, 0.05])

HIGH_DISAGREEMENT_SHARE = 0.15
RATERS = 40
RATERS_A_CLIP = 5
RATER_BIAS_SD = 0.25
RATER_NOISE_SD = 0.5
RATER_NOISE_SD_HIGH = 1.5

# Letter, name and place (arousal, valence, dominance) of MSP-Podcast's primary classes.
EMOTIONS = (
    ("A", "Angry", (5.9, 2.3, 5.6)),
    ("S", "Sad", (2.6, 2.6, 2.9)),
    ("H", "Happy", (5.1, 5.7, 4.8)),
    ("U", "Surprise", (5.7, 4.6, 3.9)),
    ("F", "Fear", (5.4, 2.4, 2.7)),
    ("D", "Disgust", (4.2, 2.3, 4.7)),
    ("C", "Contempt", (3.6, 3.0, 5.2)),
    ("N", "Neutral", (4.0, 4.2, 4.2)),
)
EMOTION_SPREAD = 0.7
OTHER_SHARE = 0.03

# One stream of random numbers for each thing drawn: a change in one leaves the others as they were.
_SPEAKER_STREAM, _RATER_STREAM, _LABEL_STREAM, _AUDIO_STREAM = range(4)


@dataclass(frozen=True)
class Speaker:
    """What one speaker brings to every clip."""

    number: int
    gender: str  # Female or Male
    f0: float  # Hz, when neutral
    formant_scale: float  # 1 for a tract of 17.5 cm, more for a shorter one
    rate: float  # syllables a second
    loudness: float  # dB against the average speaker
    tilt: float  # octaves by which the source's cut-off lies above the average speaker's
    breathiness: float  # dB against the average speaker


@dataclass(frozen=True)
class Clip:
    """One utterance before it is spoken."""

    number: int
    file_name: str
    split: str  # Train, Development, Test1 or Unlabeled
    speaker: Speaker
    latents: np.ndarray  # (3,) position that the raters judge, 1..7
    cues: np.ndarray  # (3,) position that the voice shows, 1..7
    high_disagreement: bool


def draw_speaker(seed: int, number: int) -> Speaker:
    """Draw a speaker; even numbers are women, odd ones men.

    Args:
        seed: seed of the corpus.
        number: 0-based number of the speaker.
    Returns:
        The same speaker for the same seed and number.
    """
    rng = np.random.default_rng([seed, _SPEAKER_STREAM, number])
    female = number % 2 == 0
    return Speaker(
        number=number,
        gender="Female" if female else "Male",
        f0=(198.0 if female else 112.0) * np.exp(0.09 * rng.standard_normal()),
        formant_scale=(1.16 if female else 1.0) * np.exp(0.02 * rng.standard_normal()),
        rate=4.7 * np.exp(0.04 * rng.standard_normal()),
        loudness=0.8 * rng.standard_normal(),
        tilt=0.12 * rng.standard_normal(),
        breathiness=(1.5 if female else -1.5) + 0.8 * rng.standard_normal(),
    )


def _draw_latents(rng: np.random.Generator) -> np.ndarray:
    correlated = np.linalg.cholesky(LATENT_CORRELATION) @ rng.standard_normal(3)
    return np.clip(LATENT_MEAN + LATENT_SD * correlated, 1, 7)


def _draw_cues(latents: np.ndarray, high_disagreement: bool, rng: np.random.Generator) -> np.ndarray:
    cues = latents + CUE_NOISE * rng.standard_normal(3)
    pull = rng.uniform(1.0, 2.0, 3)
    if high_disagreement:
        # Towards the other side of the scale, where there is room: the voice contradicts the label on every attribute.
        cues = cues - np.where(latents > LATENT_MEAN, pull, -pull)
    return np.clip(cues, 1, 7)


def _file_name(speaker: int, number: int) -> str:
    # Every tenth name has the longer form that MSP-Podcast gives to parts of a segment.
    part = f"_{number % 7 + 1:04d}" if number % 10 == 9 else ""
    return f"MSP-PODCAST_{speaker + 1:04d}_{number + 1:04d}{part}.wav"


def plan_corpus(seed: int, clips: Mapping[str, int], unlabeled_clips: int) -> list[Clip]:
    """Decide who says what, and how, in every clip.

    Args:
        seed: seed of the corpus.
        clips: number of clips of Train, Development and Test1.
        unlabeled_clips: number of clips of the unlabeled pool.
    Returns:
        The clips in the order of their numbers; no speaker is in two splits.
    """
    plan = []
    first_speaker = 0
    for split, speaker_count in SPEAKERS.items():
        speakers = [draw_speaker(seed, first_speaker + i) for i in range(speaker_count)]
        for i in range(unlabeled_clips if split == "Unlabeled" else clips.get(split, 0)):
            number = len(plan)
            speaker = speakers[i % speaker_count]
            rng = np.random.default_rng([seed, _LABEL_STREAM, number])
            latents = _draw_latents(rng)
            high = bool(rng.random() < HIGH_DISAGREEMENT_SHARE)
            cues = _draw_cues(latents, high, rng)
            plan.append(Clip(number, _file_name(speaker.number, number), split, speaker, latents, cues, high))
        first_speaker += speaker_count
    return plan


def _perceived_emotion(position: np.ndarray, rng: np.random.Generator) -> tuple[str, str]:
    """A rater's primary class and, as MSP-Podcast lists them, the secondary ones ("Angry,Disgust,")."""
    places = np.array([place for _, _, place in EMOTIONS])
    closeness = np.exp(-np.sum((places - position) ** 2, axis=1) / (2 * EMOTION_SPREAD**2)) + 1e-12
    order = rng.choice(len(EMOTIONS), size=2, replace=False, p=closeness / closeness.sum())
    primary, second = (EMOTIONS[i][1] for i in order)
    if rng.random() < OTHER_SHARE:
        primary = "Other"
    secondary = f"{primary},{second}," if rng.random() < 0.5 else f"{primary},"
    return primary, secondary


def rate_clip(clip: Clip, seed: int) -> list[dict]:
    """Let the five simulated raters of a clip judge it.

    Args:
        clip: the clip; its latents are judged, not its sound.
        seed: seed of the corpus.
    Returns:
        One dict a rater: Worker, Primary, Secondary, and Act, Val, Dom as whole numbers 1..7.
    """
    biases = RATER_BIAS_SD * np.random.default_rng([seed, _RATER_STREAM]).standard_normal((RATERS, 3))
    rng = np.random.default_rng([seed, _LABEL_STREAM, clip.number, 1])
    noise_sd = RATER_NOISE_SD_HIGH if clip.high_disagreement else RATER_NOISE_SD
    ratings = []
    for rater in rng.choice(RATERS, size=RATERS_A_CLIP, replace=False):
        perceived = clip.latents + biases[rater] + noise_sd * rng.standard_normal(3)
        primary, secondary = _perceived_emotion(perceived, rng)
        scores = np.clip(np.rint(perceived), 1, 7).astype(int).tolist()
        ratings.append(
            {"Worker": f"WORKER{rater + 1:08d}", "Primary": primary, "Secondary": secondary}
            | dict(zip(ATTRIBUTES, scores))
        )
    return ratings


def plurality_class(primaries: list[str]) -> str:
    """The letter of the class that more raters chose than any other; X where none leads."""
    letters = {name: letter for letter, name, _ in EMOTIONS} | {"Other": "O"}
    votes = sorted(((primaries.count(name), name) for name in set(primaries)), reverse=True)
    if len(votes) > 1 and votes[0][0] == votes[1][0]:
        return "X"
    return letters[votes[0][1]]


def write_labels(clips: list[Clip], label_dir: Path, seed: int) -> None:
    """Write labels_consensus.csv, labels_detailed.csv and demo_truth.csv.

    Args:
        clips: the labeled clips.
        label_dir: an existing folder.
        seed: seed of the corpus.
    """
    consensus, detailed, truth = [], [], []
    for clip in sorted(clips, key=lambda clip: clip.file_name):
        ratings = rate_clip(clip, seed)
        means = {f"Emo{name}": np.mean([rating[name] for rating in ratings]) for name in ATTRIBUTES}
        emotion = plurality_class([rating["Primary"] for rating in ratings])
        name = {"FileName": clip.file_name}
        who = {"SpkrID": clip.speaker.number + 1, "Gender": clip.speaker.gender, "Split_Set": clip.split}
        consensus.append(name | {"EmoClass": emotion} | {c: means[c] for c in ("EmoAct", "EmoVal", "EmoDom")} | who)
        for rating in ratings:
            detail = (
                f"{rating['Worker']}; {rating['Primary']}; {rating['Secondary']}; "
                f"A:{rating['Act']:.6f}; V:{rating['Val']:.6f}; D:{rating['Dom']:.6f};"
            )
            detailed.append(name | {"EmoDetail": detail})
        truth.append(name | dict(zip(ATTRIBUTES, clip.latents)) | {"HighDisagreement": int(clip.high_disagreement)})
    for file_name, rows in zip(LABEL_FILES, (consensus, detailed, truth)):
        write_text(
            label_dir / file_name, pd.DataFrame(rows).to_csv(index=False, float_format="%.4f", lineterminator="\n")
        )


# ---------------------------------------------------------------------------------------------------------------------
# How a feeling sounds

SAMPLE_RATE = 16_000
HOP = 80  # samples a control frame (5 ms): the tract moves no faster than that
OVERSAMPLING = 2  # the glottal pulse has corners; drawn at 32 kHz they fold back less

# F1..F4 in Hz of an adult male tract, rounded from Peterson & Barney, JASA 24 (1952) 175-184.
VOWELS = np.array(
    [
        (290, 2250, 2950, 3550),
        (420, 2000, 2600, 3500),
        (560, 1800, 2500, 3450),
        (670, 1680, 2420, 3400),
        (740, 1120, 2450, 3400),
        (570, 860, 2420, 3350),
        (450, 980, 2300, 3300),
        (320, 900, 2250, 3300),
        (500, 1450, 2450, 3400),
    ],
    dtype=float,
)
BANDWIDTHS = np.array([70.0, 95.0, 140.0, 200.0])
NOISE_BANDS = ((4200.0, 7200.0), (2200.0, 5500.0), (1000.0, 7000.0))  # Hz: as in s, sh, f

# Pieces of a consonant: (seconds, voicing, frication, noise band, F1..F4 or None where the vowels shape it).
CONSONANTS = (
    ((0.085, 0.0, 0.30, 0, None),),  # s
    ((0.085, 0.0, 0.34, 1, None),),  # sh
    ((0.070, 0.0, 0.12, 2, None),),  # f
    ((0.065, 0.35, 0.12, 0, None),),  # z
    ((0.055, 0.0, 0.0, 0, None), (0.018, 0.0, 0.30, 0, None)),  # t
    ((0.055, 0.0, 0.0, 0, None), (0.022, 0.0, 0.30, 1, None)),  # k
    ((0.050, 0.12, 0.0, 0, None), (0.012, 0.2, 0.15, 2, None)),  # b
    ((0.065, 0.40, 0.0, 0, (260.0, 1050.0, 2250.0, 3200.0)),),  # m
    ((0.065, 0.40, 0.0, 0, (260.0, 1450.0, 2450.0, 3300.0)),),  # n
    ((0.060, 0.65, 0.0, 0, (360.0, 1150.0, 2650.0, 3300.0)),),  # l
    ((0.060, 0.60, 0.0, 0, (300.0, 720.0, 2250.0, 3300.0)),),  # w
)


@dataclass(frozen=True)
class Voice:
    """The acoustic settings of one clip: a speaker in a state."""

    f0: float  # Hz, mean
    f0_range: float  # semitones, height of an accent
    accent_slope: float  # semitones by which F0 rises (or falls) through a stressed vowel
    declination: float  # semitones a second by which F0 sinks
    loudness: float  # dB re full scale, RMS of the voiced part
    rate: float  # syllables a second
    unevenness: float  # spread of the log durations of syllables
    pause_share: float  # probability of a pause between two syllables
    cutoff: float  # Hz, above which the source falls by a further 6 dB an octave
    open_quotient: float  # share of the glottal cycle in which the glottis is open
    rise_share: float  # share of the open phase in which the flow grows
    breathiness: float  # RMS of aspiration noise over RMS of the pulses
    jitter: float  # sd of the cycle lengths over their mean
    shimmer: float  # sd of the cycle amplitudes over their mean
    formant_scales: np.ndarray  # (4,) factors on F1..F4
    bandwidth_scale: float
    fullness: float  # weight of the range below 300 Hz that is added to the voice


def voice_of(speaker: Speaker, cues: np.ndarray, rng: np.random.Generator) -> Voice:
    """Turn a speaker and a state into acoustic settings (sources: this file's docstring).

    Args:
        speaker: who speaks.
        cues: shape (3,), arousal, valence and dominance on 1..7.
        rng: draws what a voice does for no emotional reason.
    Returns:
        The settings of one clip.
    """
    a, v, d = (np.asarray(cues) - 4.0) / 1.5  # about -2..2
    n = rng.standard_normal(13)
    # A smile shortens the tract and moves the upper formants most; a dominant voice lowers the larynx.
    scales = speaker.formant_scale * (1 + np.array([0.012, 0.032, 0.030, 0.026]) * v - 0.024 * d + 0.008 * n[0])
    return Voice(
        f0=speaker.f0 * 2 ** ((2.8 * a + 0.3 * v - 1.5 * d + 0.5 * n[1]) / 12),
        f0_range=2.6 * np.exp(0.38 * a + 0.22 * v - 0.06 * d + 0.12 * n[2]),
        accent_slope=1.3 * v + 0.5 * n[3],
        declination=1.3 - 0.3 * v + 0.3 * n[4],
        loudness=-27.0 + 3.2 * a + 2.4 * d + speaker.loudness + 0.6 * n[5],
        rate=speaker.rate * np.exp(0.13 * a + 0.04 * n[6]),
        unevenness=0.16 * np.exp(-0.35 * d),
        pause_share=np.clip(0.09 - 0.03 * a - 0.01 * d, 0.02, 0.2),
        cutoff=1500.0 * 2 ** (0.65 * a + 0.2 * d + speaker.tilt + 0.1 * n[7]),
        open_quotient=np.clip(0.62 - 0.055 * a - 0.03 * d + 0.01 * n[8], 0.4, 0.85),
        rise_share=np.clip(0.68 + 0.04 * a, 0.55, 0.8),
        breathiness=10 ** ((-24 - 3.5 * a - 1.5 * d + speaker.breathiness + 0.8 * n[9]) / 20),
        jitter=0.009 * np.exp(-0.55 * v + 0.1 * a + 0.12 * n[10]),
        shimmer=0.06 * np.exp(-0.50 * v + 0.1 * a + 0.12 * n[11]),
        formant_scales=scales,
        bandwidth_scale=float(np.exp(-0.18 * d)),
        fullness=0.6 * np.exp(0.55 * d + 0.05 * n[12]),
    )


def _draw_pieces(voice: Voice, seconds: float, rng: np.random.Generator) -> tuple[list[tuple], list[tuple]]:
    """Draw syllables until `seconds` are full.

    Returns:
        The pieces, (seconds, voicing, frication, noise band, formants or None), and the vowels, (start, end in seconds,
        stress 0..1).
    """
    pieces: list[tuple] = [(0.08, 0.0, 0.0, 0, None)]
    vowels = []
    count = max(3, round(seconds * voice.rate))
    stressed = rng.random(count) < 0.45
    stressed[rng.integers(count)] = True
    tempo = 4.7 / voice.rate
    now = pieces[0][0]
    for i in range(count):
        onset = CONSONANTS[rng.integers(len(CONSONANTS))] if rng.random() < 0.85 else ()
        length = tempo * np.exp(voice.unevenness * rng.standard_normal()) * (1.25 if stressed[i] else 0.85)
        length *= 1.35 if i == count - 1 else 1.0  # phrase-final lengthening
        for piece in onset:
            pieces.append((piece[0] * tempo**0.5, *piece[1:]))
            now += pieces[-1][0]
        vowel = VOWELS[rng.integers(len(VOWELS))] * np.exp(0.02 * rng.standard_normal(4))
        pieces.append((0.135 * length, 1.0 if stressed[i] else 0.7, 0.0, 0, vowel))
        stress = rng.uniform(0.6, 1.4) if stressed[i] else 0.15
        vowels.append((now, now + pieces[-1][0], stress))
        now += pieces[-1][0]
        if i < count - 1 and rng.random() < voice.pause_share:
            pieces.append((rng.uniform(0.12, 0.25), 0.0, 0.0, 0, None))
            now += pieces[-1][0]
    pieces.append((0.08, 0.0, 0.0, 0, None))
    return pieces, vowels


def _smooth(track: np.ndarray, frames: int) -> np.ndarray:
    window = np.hanning(frames + 2)[1:-1]
    padded = np.pad(track, (frames // 2, frames - 1 - frames // 2), mode="edge")
    return np.convolve(padded, window / window.sum(), mode="valid")


def _control_tracks(pieces: list[tuple], voice: Voice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lay the pieces out in time.

    Returns:
        Voicing (frames,), frication (frames, noise bands) and formants in Hz (frames, 4), a frame every HOP samples.
    """
    ends = np.cumsum([piece[0] for piece in pieces])
    frame_times = np.arange(int(ends[-1] * SAMPLE_RATE / HOP)) * HOP / SAMPLE_RATE
    piece_of_frame = np.searchsorted(ends, frame_times, side="right")
    voicing = _smooth(np.array([piece[1] for piece in pieces])[piece_of_frame], 7)
    levels = np.zeros((len(pieces), len(NOISE_BANDS)))
    levels[np.arange(len(pieces)), [piece[3] for piece in pieces]] = [piece[2] for piece in pieces]
    frication = np.stack([_smooth(level, 3) for level in levels[piece_of_frame].T], axis=1)
    shaped = [i for i, piece in enumerate(pieces) if piece[4] is not None]
    targets = np.array([pieces[i][4] for i in shaped])
    middles = np.array([ends[i] - pieces[i][0] / 2 for i in shaped])
    formants = np.stack([_smooth(np.interp(frame_times, middles, f), 9) for f in targets.T], axis=1)
    return voicing, frication, np.minimum(formants * voice.formant_scales, 0.47 * SAMPLE_RATE)


def _f0_contour(frames: int, vowels: list[tuple], voice: Voice, rng: np.random.Generator) -> np.ndarray:
    """F0 in Hz for each frame: declination, an accent on every stressed vowel, and a slow wander."""
    times = np.arange(frames) * HOP / SAMPLE_RATE
    semitones = -voice.declination * (times - times.mean())
    accents = np.zeros(frames)
    for start, end, stress in vowels:
        middle, width = (start + end) / 2, 0.7 * (end - start)
        bump = np.exp(-0.5 * ((times - middle) / width) ** 2)
        slope = np.clip((times - middle) / width, -1, 1)
        accents += stress * bump * (voice.f0_range + voice.accent_slope * slope)
    wander = _smooth(rng.standard_normal(frames), 41) * 1.5
    # The accents widen the range; what they add to the mean is taken off again, so that F0's level stays its own cue.
    return np.maximum(voice.f0 * 2 ** ((semitones + accents - accents.mean() + wander) / 12), 50.0)


def _glottal_source(f0: np.ndarray, voice: Voice, rng: np.random.Generator) -> np.ndarray:
    """Flow derivative of a Rosenberg pulse train with jitter, shimmer and aspiration noise.

    Args:
        f0: Hz, a value for each sample.
    Returns:
        Samples of the same number, RMS 1.
    """
    rate = SAMPLE_RATE * OVERSAMPLING
    fine_f0 = np.repeat(f0, OVERSAMPLING)
    cycle = np.cumsum(fine_f0 / rate).astype(int)
    period_noise = 1 + np.clip(voice.jitter * rng.standard_normal(cycle[-1] + 1), -0.2, 0.2)
    phase = np.cumsum(fine_f0 * period_noise[cycle] / rate)
    cycle = phase.astype(int)
    phase -= cycle
    rise = voice.open_quotient * voice.rise_share
    fall = voice.open_quotient - rise
    flow = np.where(
        phase < rise,
        0.5 * (1 - np.cos(np.pi * phase / rise)),
        np.cos(0.5 * np.pi * np.minimum((phase - rise) / fall, 1.0)),
    )
    amplitude = 1 + np.clip(voice.shimmer * rng.standard_normal(cycle.max() + 1), -0.8, 0.8)
    flow = resample_poly(flow * amplitude[cycle], 1, OVERSAMPLING)
    pulses = np.diff(flow, prepend=flow[0])
    pole = np.exp(-2 * np.pi * min(voice.cutoff, 6500.0) / SAMPLE_RATE)
    pulses = lfilter([1 - pole], [1, -pole], pulses)
    # Turbulence arises while air flows, so the noise follows the opening of the glottis.
    aspiration = np.diff(rng.standard_normal(len(f0) + 1)) * (0.3 + flow)
    pulses /= np.sqrt(np.mean(pulses**2))
    source = pulses + voice.breathiness * aspiration / np.sqrt(np.mean(aspiration**2))
    return source / np.sqrt(np.mean(source**2))


def _vocal_tract(source: np.ndarray, formants: np.ndarray, bandwidths: np.ndarray) -> np.ndarray:
    """Pass the source through a cascade of Klatt resonators that move from frame to frame.

    Args:
        source: samples.
        formants: Hz, shape (frames, resonators).
        bandwidths: Hz, shape (resonators,).
    Returns:
        frames * HOP samples.
    """
    c = np.broadcast_to(-np.exp(-2 * np.pi * bandwidths / SAMPLE_RATE), formants.shape)
    b = 2 * np.exp(-np.pi * bandwidths / SAMPLE_RATE) * np.cos(2 * np.pi * formants / SAMPLE_RATE)
    zeros, ones = np.zeros_like(b), np.ones_like(b)
    sections = np.ascontiguousarray(np.stack([1 - b - c, zeros, zeros, ones, -b, -c], axis=2))
    state = np.zeros((formants.shape[1], 2))
    speech = np.empty(len(formants) * HOP)
    for i, sos in enumerate(sections):
        speech[i * HOP : (i + 1) * HOP], state = sosfilt(sos, source[i * HOP : (i + 1) * HOP], zi=state)
    return speech


def _add_fullness(speech: np.ndarray, weight: float) -> np.ndarray:
    """Raise what lies below 300 Hz, the chest's share of the sound."""
    pole = np.exp(-2 * np.pi * 300 / SAMPLE_RATE)
    return speech + weight * lfilter([1 - pole], [1, -pole], speech)


def _frication(levels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise of fricatives and bursts; levels: (samples, noise bands), RMS of each band."""
    noise = np.zeros(len(levels))
    for level, band in zip(levels.T, NOISE_BANDS):
        coloured = sosfilt(butter(2, band, "bandpass", fs=SAMPLE_RATE, output="sos"), rng.standard_normal(len(levels)))
        noise += level * coloured / np.sqrt(np.mean(coloured**2))
    return noise


def synthesise(speaker: Speaker, cues: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Let a speaker say some nonsense syllables in a given state.

    Args:
        speaker: who speaks.
        cues: shape (3,), arousal, valence and dominance on 1..7.
        rng: draws syllables, timing and noise.
    Returns:
        About 1.5 to 2.5 s of sound at 16 kHz, float64, within -1..1.
    """
    voice = voice_of(speaker, cues, rng)
    pieces, vowels = _draw_pieces(voice, rng.uniform(1.45, 2.0), rng)
    voicing, frication, formants = _control_tracks(pieces, voice)
    samples = len(voicing) * HOP
    frames = np.arange(len(voicing)) * HOP
    at_samples = np.arange(samples)
    f0 = np.interp(at_samples, frames, _f0_contour(len(voicing), vowels, voice, rng))
    source = _glottal_source(f0, voice, rng) * np.interp(at_samples, frames, voicing)
    speech = _vocal_tract(source, formants, BANDWIDTHS * voice.bandwidth_scale)
    speech = _add_fullness(speech, voice.fullness)
    voiced = np.repeat(voicing > 0.5, HOP)
    speech /= np.sqrt(np.mean(speech[voiced] ** 2))
    speech += _frication(np.stack([np.interp(at_samples, frames, level) for level in frication.T], axis=1), rng)
    speech *= 10 ** (voice.loudness / 20)
    speech += 10 ** (rng.uniform(-72, -66) / 20) * rng.standard_normal(samples)  # the room
    return speech * min(1.0, 0.95 / np.abs(speech).max())


# ---------------------------------------------------------------------------------------------------------------------
# The folder


def _synthesise_to(path: Path, clip: Clip, seed: int) -> None:
    speech = synthesise(clip.speaker, clip.cues, np.random.default_rng([seed, _AUDIO_STREAM, clip.number]))
    with write_atomically(path) as temporary:
        samples = np.rint(32767 * speech).astype(np.int16)
        soundfile.write(temporary, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")


def _audio_path(out_dir: Path, clip: Clip) -> Path:
    return _part(out_dir, clip.split) / "Audios" / clip.file_name


def _part(out_dir: Path, split: str) -> Path:
    return out_dir / "Unlabeled" if split == "Unlabeled" else out_dir


def _feature_path(out_dir: Path, clip: Clip) -> Path:
    return _part(out_dir, clip.split) / FEATURE_FOLDER / f"{Path(clip.file_name).stem}.mat"


def _read_marker(out_dir: Path, recipe: dict) -> dict | None:
    """What an earlier run left in OUT_DIR, or None for a new or empty folder.

    Raises:
        UserError: OUT_DIR holds something else, or a demo corpus made otherwise.
    """
    marker = out_dir / MARKER
    if not marker.exists():
        if out_dir.exists() and not out_dir.is_dir():
            raise UserError(f"{out_dir}: a file, expected a folder to make; name another OUT_DIR.")
        if out_dir.is_dir() and any(not entry.name.startswith(".") for entry in out_dir.iterdir()):
            raise UserError(f"{out_dir}: holds files that are no demo corpus; name a new or an empty folder.")
        return None
    found = read_json_object(marker)
    differences = [
        f"{key} {found.get(key)} there, {value} now" for key, value in recipe.items() if found.get(key) != value
    ]
    if differences:
        raise UserError(
            f"{out_dir}: holds another demo corpus ({'; '.join(differences)}); delete it or name another OUT_DIR."
        )
    return found


def _make_audio(clips: list[Clip], out_dir: Path, seed: int, workers: int) -> None:
    paths = [_audio_path(out_dir, clip) for clip in clips]
    tasks = [delayed(_synthesise_to)(path, clip, seed) for path, clip in zip(paths, clips) if not path.exists()]
    with workers_without_interrupt():
        finished = Parallel(n_jobs=workers, return_as="generator_unordered")(tasks)
    bar = tqdm(finished, total=len(clips), initial=len(clips) - len(tasks), desc="voices", unit="clip", disable=None)
    for _ in bar:
        pass


def _make_features(clips: list[Clip], out_dir: Path, workers: int) -> None:
    for part in dict.fromkeys(_part(out_dir, clip.split) for clip in clips):
        extract_folder(part / "Audios", part / FEATURE_FOLDER, workers=workers)
        (part / FEATURE_FOLDER / RECORD_FILE).unlink(missing_ok=True)  # file times would differ from demo to demo
    missing = [clip.file_name for clip in clips if not _feature_path(out_dir, clip).exists()]
    if missing:
        raise UserError(f"{out_dir}: no features of {len(missing)} clips ({', '.join(missing[:5])}); run it again.")


def make_corpus(
    out_dir: Path,
    seed: int = 31,
    workers: int = 1,
    clips: Mapping[str, int] = CLIPS,
    unlabeled_clips: int = UNLABELED_CLIPS,
    with_features: bool = True,
) -> bool:
    """Make the demo corpus, or what is missing of it.

    Args:
        out_dir: a new or empty folder, or one that an earlier call with the same seed and sizes began.
        seed: decides every label and every sample.
        workers: processes; the files do not depend on it.
        clips: number of clips of Train, Development and Test1.
        unlabeled_clips: number of clips of the unlabeled pool.
        with_features: also extract the openSMILE features.
    Returns:
        Whether there was anything to make.
    Raises:
        UserError: OUT_DIR can't be written or holds something else.
    """
    out_dir = Path(out_dir)
    recipe = {"version": VERSION, "seed": seed, "clips": dict(clips), "unlabeled_clips": unlabeled_clips}
    marker = _read_marker(out_dir, recipe)
    plan = plan_corpus(seed, clips, unlabeled_clips)
    if marker and marker.get("finished"):
        wanted = [out_dir / "Labels" / name for name in LABEL_FILES]
        wanted += [_audio_path(out_dir, clip) for clip in plan]
        wanted += [_feature_path(out_dir, clip) for clip in plan] if with_features else []
        if all(path.exists() for path in wanted):
            return False
    prepare_folder(out_dir)
    # Begun with the marker, so that a killed run is known as one; ended with it, so that a whole corpus is.
    write_text(out_dir / MARKER, json.dumps(recipe | {"finished": False}, indent=1) + "\n")
    for part in dict.fromkeys(_part(out_dir, clip.split) for clip in plan):
        prepare_folder(part / "Audios")
    write_labels([clip for clip in plan if clip.split != "Unlabeled"], prepare_folder(out_dir / "Labels"), seed)
    _make_audio(plan, out_dir, seed, workers)
    if with_features:
        _make_features(plan, out_dir, workers)
    write_text(out_dir / MARKER, json.dumps(recipe | {"finished": True}, indent=1) + "\n")
    return True


def describe_corpus(out_dir: Path) -> str:
    """Clips and seconds of each split, and where things lie."""

    table = pd.read_csv(out_dir / "Labels" / "labels_consensus.csv")
    names = {split: list(rows["FileName"]) for split, rows in table.groupby("Split_Set", sort=False)}
    files = {split: [out_dir / "Audios" / name for name in names.get(split, [])] for split in CLIPS}
    files["Unlabeled"] = sorted((out_dir / "Unlabeled" / "Audios").glob("*.wav"))
    lines = []
    for split, paths in files.items():
        seconds = sum(soundfile.info(path).duration for path in paths)
        lines.append(f"{split:<12}{len(paths):>5} clips {seconds:>7.1f} s of audio")
    lines += [
        f"labels      {out_dir / 'Labels' / 'labels_consensus.csv'}",
        f"audio       {out_dir / 'Audios'}",
        f"features    {out_dir / FEATURE_FOLDER}",
        f"unlabeled   {out_dir / 'Unlabeled'}",
        f"export DEEPMI_CORPUS={out_dir} DEEPMI_UNLABELED={out_dir / 'Unlabeled'}",
    ]
    return "\n".join(lines)


def get_args_parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    parser = cli.new_parser(__doc__)
    parser.add_argument(
        "out_dir", type=Path, metavar="OUT_DIR", help="folder to make, about 80 MB; new, empty, or begun before"
    )
    parser.add_argument(
        "--seed",
        type=cli.non_negative_int,
        default=31,
        metavar="N",
        help="another seed gives other speakers and clips",
    )
    parser.add_argument("--workers", type=cli.positive_int, default=cli.cpu_count(), metavar="N", help="processes")
    return parser


if __name__ == "__main__":
    ARGS = cli.parse(get_args_parser())  # before the heavy imports, so that --help answers at once

import pandas as pd
import soundfile
from joblib import Parallel, delayed
from scipy.signal import butter, lfilter, resample_poly, sosfilt
from tqdm import tqdm

from tools.extract_features import extract_folder
from tools.recordings import RECORD_FILE
from utils import FEATURE_FOLDER


def main(args: argparse.Namespace) -> None:
    """Make the corpus and say what it holds."""
    if make_corpus(args.out_dir, args.seed, args.workers):
        print(f"Made the demo corpus (seed {args.seed}) in {args.out_dir}")
    else:
        print(f"{args.out_dir} already holds the demo corpus of seed {args.seed}; nothing to do")
    print(describe_corpus(args.out_dir))


if __name__ == "__main__":
    cli.run(main, ARGS)
