"""Sound files whose header claims more or less than the file contains; libsndfile does not report these."""

from __future__ import annotations

import functools
import mmap
import re
import struct
from pathlib import Path
from typing import NamedTuple

import soundfile

MOST_UNREAD = 1.0  # seconds of sound that fit after the end according to the header; tags and padding are shorter
SLACK = 0.1  # seconds that may be missing: decoders and encoders disagree on the silence around a recording
MPEG_SLACK = 8  # frames that the header of an mp3 may omit: the encoder's delay and padding
STREAMED = 0x7F000000  # programs that write to a pipe claim at least this length in bytes, which means unknown
# In libsndfile's log: the claimed length of the samples or of the file, and the actual one.
LOGGED_LENGTH = re.compile(r"^ *(?:data|SSND|BODY|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)$", re.M)
LOGGED_STOP = re.compile(r"^\*\*\* Unknown chunk marker \(\w+\) at position ([1-9]\d*)", re.M)  # libsndfile stops there
SECOND_START = {"FLAC": b"fLaC\0\0\0\x22", "OGG": b"OggS\0\x02"}  # first bytes of a second recording in the same file
OGG_PAGE = 65307  # bytes, the largest page
MPEG_SYNC = re.compile(rb"\xff[\xe2-\xff][\x10-\xef]|ID3")  # first bytes of a frame or a tag
MPEG_COUNT = re.compile(rb"(?:Xing|Info)\0\0\0[\1\3\5\7\x09\x0b\x0d\x0f](.{4})|VBRI.{10}(.{4})", re.S)

# The MPEG audio header of layers II and III, ISO/IEC 11172-3 and 13818-3, section 2.4.2.3.
MPEG_1 = 3  # value of the two version bits; 2 is MPEG 2, 0 is MPEG 2.5
MPEG_HERTZ = {MPEG_1: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
MPEG_1_KBITS = {
    2: (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    3: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
}
MPEG_2_KBITS = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)


def examine(path: Path, stream: soundfile.SoundFile) -> tuple[bytes | None, str]:
    """Compare the header of a sound file with the rest of the file.

    Args:
        path: the file.
        stream: the same file, opened.
    Returns:
        The whole file with a corrected header if libsndfile needs it to read all of the file, else None; and a remark
        about missing parts of the recording, or "".
    """
    seconds = stream.frames / stream.samplerate
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if stream.subtype.startswith("MPEG"):
            return _examine_mpeg(path, stream, data)
        if stream.frames == 0 and data[:4] == b"RIFF":
            return _with_open_length(data), ""
        start = SECOND_START.get(stream.format)
        if start and data.find(start, data.find(start) + 1) > 0:  # the first recording may follow a tag
            return None, "several recordings in one file: only the first is read; split the file"
        if stream.format == "OGG" and _ends_within_page(data):
            return None, f"incomplete: ends within a page after {seconds:.1f} s"
        stop = LOGGED_STOP.search(stream.extra_info)
        if stop and seconds * (len(data) / int(stop[1]) - 1) > MOST_UNREAD:  # the recorder was killed
            return None, f"incomplete: its header covers {int(stop[1]):,} of {len(data):,} bytes, {seconds:.1f} s"
        return None, incomplete(seconds, _claimed_seconds(stream, data))


def incomplete(found: float, claimed: float) -> str:
    """The remark on a recording that has fewer seconds than its header claims, or "" if none are missing."""
    return f"incomplete: only {found:.1f} of {claimed:.1f} s can be read" if claimed - found > SLACK else ""


def _claimed_seconds(stream: soundfile.SoundFile, data: mmap.mmap) -> float:
    """Length according to the header if libsndfile uses the size of the file instead, else 0."""
    count = re.search(rb"\nsample_count -i (\d{1,12})\n", data[:1024]) if stream.format == "NIST" else None
    if count:
        return int(count[1]) / stream.samplerate
    claimed, there = map(int, (LOGGED_LENGTH.findall(stream.extra_info) or [(0, 0)])[-1])
    return stream.frames / stream.samplerate * claimed / there if there and claimed < STREAMED else 0.0


def _with_open_length(data: mmap.mmap) -> bytes | None:
    """A wav file whose header claims 0 samples, with "unknown length" instead; None if it really has no samples."""
    at, size = data.find(b"data\0\0\0\0"), int.from_bytes(data[4:8], "little")
    if at < 0 or at + 8 >= len(data) or at < size < STREAMED:  # a different chunk follows
        return None
    return b"".join([data[:4], b"\xff" * 4, data[8 : at + 4], b"\xff" * 4, data[at + 8 :]])


def _ends_within_page(data: mmap.mmap) -> bool:
    """Whether the last page of an Ogg file is cut off."""
    last = data[max(0, data.rfind(b"OggS", max(0, len(data) - OGG_PAGE))) :]
    return len(last) < 27 or len(last) < 27 + last[26] + sum(last[27 : 27 + last[26]])


# ---------------------------------------------------------------------------------------------------------------------
# MPEG audio. libsndfile trusts the frame count in the first frame; without a count it guesses.


def _examine_mpeg(path: Path, stream: soundfile.SoundFile, data: mmap.mmap) -> tuple[bytes | None, str]:
    found = walk_mpeg(path, path.stat().st_mtime_ns)
    if found is None:
        return None, ""
    per_frame = found.samples / found.frames
    seconds = found.samples / stream.samplerate
    remark = incomplete(seconds, found.counted * per_frame / stream.samplerate)
    if -per_frame <= found.samples - stream.frames <= MPEG_SLACK * per_frame:
        return None, remark
    if stream.subtype != "MPEG_LAYER_III":  # layer II has no frame count
        return None, incomplete(stream.frames / stream.samplerate, seconds)
    return _with_frame_count(data, found), remark


class MpegFrame(NamedTuple):
    """The header of one frame of MPEG audio."""

    kind: tuple[int, int, int]  # version, layer and sampling rate, shared by all frames of a stream
    size: int  # bytes, header included
    samples: int  # per channel


class MpegStream(NamedTuple):
    """The frames of an MPEG file, without a first frame that holds a frame count instead of sound."""

    samples: int  # per channel, of all frames
    frames: int
    start: int  # byte at which the first frame begins
    counted: int  # frame count according to the file, 0 if it has none


def mpeg_frame(data: bytes | mmap.mmap, at: int) -> MpegFrame | None:
    """The frame of MPEG audio that begins at a byte, or None."""
    head = bytes(data[at : at + 4])
    if len(head) < 4 or head[0] != 0xFF or head[1] < 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bitrate, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer in (1, 4) or bitrate in (0, 15) or rate == 3:
        return None
    hertz = MPEG_HERTZ[version][rate]
    kbits = (MPEG_1_KBITS[layer] if version == MPEG_1 else MPEG_2_KBITS)[bitrate - 1]
    samples = 1152 if version == MPEG_1 or layer == 2 else 576
    return MpegFrame((version, layer, hertz), samples // 8 * 1000 * kbits // hertz + padding, samples)


@functools.lru_cache(maxsize=16)  # a recording is opened once per segment
def walk_mpeg(path: Path, mtime_ns: int) -> MpegStream | None:
    """Count the frames of an MPEG file without decoding them, skipping tags between them; None if there is no frame.

    The time of the last change is only part of the cache key.
    """
    at, kind, start, counted, samples, frames = 0, None, 0, 0, 0, 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        while at < len(data):
            if data[at : at + 3] == b"ID3":
                at += 10 + sum(part << shift for part, shift in zip(data[at + 6 : at + 10], (21, 14, 7, 0)))
                continue
            frame = mpeg_frame(data, at)
            # Any bytes can look like a frame, so the first frame of a kind counts only if a second one follows.
            if frame and frame.kind != kind and not mpeg_frame(data, at + frame.size):
                frame = None
            if frame is None or at + frame.size > len(data):
                following = MPEG_SYNC.search(data, at + 1)
                if not following:
                    break
                kind, at = None, following.start()
                continue
            kind = frame.kind
            count = None if samples else MPEG_COUNT.search(data[at : at + min(frame.size, 64)])
            if count:
                counted = int.from_bytes(count[1] or count[2], "big")
            else:
                start = start if samples else at
                samples, frames = samples + frame.samples, frames + 1
            at += frame.size
    return MpegStream(samples, frames, start, counted) if samples else None


def _with_frame_count(data: mmap.mmap, stream: MpegStream) -> bytes:
    """The MPEG file, with a first frame that holds the correct frame count."""
    head = bytearray(data[stream.start : stream.start + 4])
    head[1] |= 1  # no checksum
    head[2] = head[2] & 0b1100 | 0xE0  # the highest bitrate: a frame long enough for the count
    is_mono, is_mpeg_1 = head[3] >> 6 == 3, head[1] >> 3 & 3 == MPEG_1
    side_bytes = (17 if is_mono else 32) if is_mpeg_1 else (9 if is_mono else 17)
    tag = bytes(head) + bytes(side_bytes) + b"Xing" + struct.pack(">II", 1, stream.frames)
    return tag.ljust(mpeg_frame(head, 0).size, b"\0") + data[stream.start :]
