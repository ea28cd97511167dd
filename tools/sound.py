"""Recordings as samples: any rate and number of channels in, mono at 16 kHz out."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import audresample
import numpy as np
import soundfile
from numpy.typing import NDArray

from deepmi.process import UserError
from tools import headers

SAMPLING_RATE = 16000  # Hz; the features depend on the bandwidth, and this is MSP-Podcast's rate
LOWEST_RATE = 1000  # Hz; below it there is no speech, and a short file would become hours at 16 kHz
LONGEST_CLIP = 7200  # seconds
PIECE_SAMPLES = 2**23  # samples of all channels that are decoded at a time; nearly every clip is one piece
FULL_SCALE = 4.0  # lossy codecs and resampling exceed full scale, but not by this factor


class Clip(NamedTuple):
    """A recording, or a part of it."""

    recording: Path
    start: float = 0.0  # seconds
    stop: float | None = None  # seconds, None for the end of the recording


def read_signal(clip: Clip, remarks: list[str] | None = None) -> NDArray[np.float32]:
    """The samples of a clip at 16 kHz in [-1, 1], shape (samples,).

    Args:
        clip: a recording or a part of it.
        remarks: list to which what makes the clip doubtful is appended, such as a recording that was cut off.
    Raises:
        UserError: unreadable or empty; the message does not repeat the file name.
    """
    remarks = [] if remarks is None else remarks
    try:
        with _opened(clip.recording, remarks) as stream:
            rate = stream.samplerate
            start = min(round(clip.start * rate), stream.frames)
            frames = (stream.frames if clip.stop is None else round(clip.stop * rate)) - start
            if frames > LONGEST_CLIP * rate:
                raise UserError(f"{frames / rate / 3600:.1f} hours; expected at most {LONGEST_CLIP / 3600:g}, split it")
            _skip(stream, start)
            mono, peak = _read_mono(stream, frames)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise UserError(f"not readable as audio ({str(error).rsplit(':', 1)[-1].strip()})") from None
    missing = headers.incomplete(len(mono) / rate, frames / rate)
    if missing and not remarks:
        remarks.append(missing)
    if peak > FULL_SCALE:
        remarks.append(f"over full scale: samples up to {peak:,.0f} are clipped to 1; divide 16-bit samples by 32768")
    if rate != SAMPLING_RATE and len(mono):
        mono = audresample.resample(mono, rate, SAMPLING_RATE)[0]
    if len(mono) == 0:
        raise UserError("no samples in it")
    if not np.isfinite(mono).all():  # or their mean overflows float32
        raise UserError("NaN or infinite samples")
    # opensmile converts samples to 16-bit numbers, which wrap around at full scale; resampling overshoots.
    return mono.clip(-1, 1 - 2**-15)


def seconds_of(recording: Path) -> float:
    """Length of a recording; 0 if it cannot be read, which `read_signal` reports."""
    try:
        with _opened(recording, []) as stream:
            return stream.frames / stream.samplerate
    except (soundfile.LibsndfileError, RuntimeError, OSError, UserError):
        return 0.0


@contextlib.contextmanager
def _opened(recording: Path, remarks: list[str]) -> Iterator[soundfile.SoundFile]:
    """An open recording, its header corrected if need be; what is missing from it is appended to the remarks.

    Raises:
        UserError: it is empty, its header cannot be true, or it is no speech.
        soundfile.LibsndfileError, RuntimeError, OSError: it cannot be read.
    """
    size = recording.stat().st_size
    if size == 0:  # checked before it is opened: a pipe would wait for its writer
        raise UserError("empty file (0 bytes)")
    # Opened by Python, because soundfile takes only names in UTF-8.
    with recording.open("rb") as file, soundfile.SoundFile(file.fileno(), closefd=False) as stream:
        if stream.samplerate < LOWEST_RATE:
            raise UserError(f"{stream.samplerate} Hz; expected at least {LOWEST_RATE} Hz")
        if stream.frames > size * stream.samplerate:  # 2**63 - 1 if the header has no length
            raise UserError(f"its header claims no length, or more than {size:,} bytes can hold; convert it")
        corrected, missing = headers.examine(recording, stream)
        if missing:
            remarks.append(missing)
        if corrected is None:
            yield stream
        else:
            with soundfile.SoundFile(io.BytesIO(corrected)) as whole:
                yield whole


def _skip(stream: soundfile.SoundFile, frames: int) -> None:
    """Skip the first samples; many telephone codecs can only be read from the beginning."""
    if stream.seekable():
        stream.seek(frames)  # to 0 as well: it changes the last bits of the samples of an mp3
        return
    while frames > 0 and (passed := len(stream.read(min(frames, PIECE_SAMPLES), "float32"))):
        frames -= passed


def _read_mono(stream: soundfile.SoundFile, frames: int) -> tuple[NDArray[np.float32], float]:
    """The mean of the channels of the next samples, at most `frames`, and the largest magnitude in any channel.

    Reads piece by piece, because soundfile reserves memory for as many samples as the header claims.
    """
    pieces, peak = [np.empty(0, np.float32)], 0.0
    while frames > 0:
        piece = stream.read(min(frames, 1 + PIECE_SAMPLES // stream.channels), "float32", always_2d=True)
        if not len(piece):
            break
        with np.errstate(over="ignore", invalid="ignore"):  # the caller checks for infinity
            pieces.append(piece.mean(axis=1))  # (samples, channels) -> (samples,)
        peak = max(peak, float(piece.max()), -float(piece.min()))
        frames -= len(piece)
    return np.concatenate(pieces), peak
