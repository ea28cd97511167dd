"""Headers of sound files that promise more or less than the file holds, which libsndfile doesn't report."""

from __future__ import annotations

import functools
import mmap
import re
import struct
from pathlib import Path
from typing import NamedTuple

UNCOVERED = 1.0  # seconds of sound that would fit behind the end by the header; tags and padding are shorter
SLACK = 0.1  # seconds that may be missing: decoders and encoders disagree on the silence around a recording
MPEG_SLACK = 8  # frames that an mp3's header may leave out: the encoder's delay and padding are at most this long
STREAMED = 0x7F000000  # bytes and more: what programs write as the length where they write to a pipe
# In libsndfile's log: the length of the samples or, where it only has that, of the file, and what is there.
LOGGED_LENGTH = re.compile(r"^ *(?:data|SSND|BODY|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)$", re.M)
LOGGED_STOP = re.compile(r"^\*\*\* Unknown chunk marker \(\w+\) at position (\d+)", re.M)  # bytes that it passes over
MPEG_SYNC = re.compile(rb"\xff[\xe2-\xff][\x10-\xef]|ID3")  # how a frame or a tag may begin
MPEG_COUNT = re.compile(rb"(?:Xing|Info)\0\0\0[\1\3\5\7\x09\x0b\x0d\x0f](.{4})|VBRI.{10}(.{4})", re.S)
OGG_PAGE = 65307  # bytes, the most that one may have
SECOND_START = {"FLAC": b"fLaC\0\0\0\x22", "OGG": b"OggS\0\x02"}  # how a recording in the same file would begin

# Tables of the MPEG audio header: ISO/IEC 11172-3 and 13818-3, section 2.4.2.3; MPEG 2.5 halves the rates of MPEG 2.
MPEG_KBITS = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
MPEG_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # by the version's bits


def examine(path: Path, stream) -> tuple[bytes | None, str]:
    """Compare the header of a sound file with the file.

    Args:
        path: the file.
        stream: the same as an open `soundfile.SoundFile`.
    Returns:
        The corrected file, where libsndfile can't read all of it otherwise, else None; and a remark on what is missing
        from the recording, empty if nothing is.
    """
    with path.open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if stream.subtype.startswith("MPEG"):
            return _examine_mpeg(path, stream, data)
        if stream.frames == 0 and data[:4] == b"RIFF":
            return _with_open_length(data), ""
        mark = SECOND_START.get(stream.format)
        if mark and data.find(mark, data.find(mark) + 1) > 0:  # the first may stand behind a tag
            return None, "several recordings in one file: only the first is read; split them"
        if stream.format == "OGG" and _ends_within_page(data):
            return None, f"incomplete: it ends after {stream.frames / stream.samplerate:.1f} s, within a page"
        stop = LOGGED_STOP.search(stream.extra_info)
        seconds = stream.frames / stream.samplerate
        if stop and seconds * (len(data) / int(stop[1]) - 1) > UNCOVERED:  # a recorder died before its last header
            return None, f"incomplete: its header covers {int(stop[1]):,} of {len(data):,} bytes, {seconds:.1f} s"
        return None, incomplete(stream.frames / stream.samplerate, _promised_seconds(stream, data))


def incomplete(found: float, promised: float) -> str:
    """The remark on a recording with fewer seconds than it should have, empty if none are missing."""
    return f"incomplete: only {found:.1f} of {promised:.1f} s can be read" if promised - found > SLACK else ""


def _promised_seconds(stream, data) -> float:
    """Length by the header, where libsndfile goes by the size of the file instead; 0 where it doesn't differ."""
    count = re.search(rb"\nsample_count -i (\d{1,12})\n", data[:1024]) if stream.format == "NIST" else None
    if count:
        return int(count[1]) / stream.samplerate
    claimed, there = map(int, (LOGGED_LENGTH.findall(stream.extra_info) or [(0, 0)])[-1])
    return stream.frames / stream.samplerate * claimed / there if there and claimed < STREAMED else 0.0


def _with_open_length(data) -> bytes | None:
    """A wav file whose samples are of unknown length instead of none, None where there truly are none."""
    at, size = data.find(b"data\0\0\0\0"), int.from_bytes(data[4:8], "little")
    if at < 0 or at + 8 >= len(data) or at < size < STREAMED:  # what follows is another chunk
        return None
    return b"".join([data[:4], b"\xff" * 4, data[8 : at + 4], b"\xff" * 4, data[at + 8 :]])


def _ends_within_page(data) -> bool:
    """Whether the last page of an Ogg file is not whole."""
    last = data[max(0, data.rfind(b"OggS", max(0, len(data) - OGG_PAGE))) :]
    return len(last) < 27 or len(last) < 27 + last[26] + sum(last[27 : 27 + last[26]])


# ---------------------------------------------------------------------------------------------------------------------
# MPEG audio. libsndfile believes the frame count that the first frame may hold; where there is none, it guesses one.


def _examine_mpeg(path: Path, stream, data) -> tuple[bytes | None, str]:
    state = path.stat()
    found = walk_mpeg(path, state.st_size, state.st_mtime_ns)
    if found is None:
        return None, ""
    per_frame = found.samples / found.frames
    seconds = found.samples / stream.samplerate
    remark = incomplete(seconds, found.counted * per_frame / stream.samplerate)
    if -per_frame <= found.samples - stream.frames <= MPEG_SLACK * per_frame:
        return None, remark
    if stream.subtype != "MPEG_LAYER_III":  # the others know no frame count
        return None, incomplete(stream.frames / stream.samplerate, seconds)
    return _with_frame_count(data, found), remark


class MpegFrame(NamedTuple):
    """What the four bytes before a frame of MPEG audio say.

    Attributes:
        kind: its version, layer and sampling rate, which all frames of a stream share.
        size: in bytes, with the header.
        samples: per channel.
    """

    kind: tuple[int, int, int]
    size: int
    samples: int


class MpegStream(NamedTuple):
    """The frames of an MPEG file.

    Attributes:
        samples: per channel, of all frames.
        frames: their number, without one before them that holds a frame count.
        start: where the first of those frames begins, in bytes.
        counted: that frame count, 0 where there is none.
    """

    samples: int
    frames: int
    start: int
    counted: int


def mpeg_frame(data, at: int) -> MpegFrame | None:
    """The frame of MPEG audio that begins at a place, None if there is none."""
    head = bytes(data[at : at + 4])
    if len(head) < 4 or head[0] != 0xFF or head[1] < 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bitrate, rate = head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    mpeg_1 = version == 3
    hertz, bits = MPEG_RATES[version][rate], 1000 * MPEG_KBITS[1 if mpeg_1 else 2, layer][bitrate - 1]
    padding = head[2] >> 1 & 1
    if layer == 1:
        return MpegFrame((version, layer, hertz), (12 * bits // hertz + padding) * 4, 384)
    samples = 1152 if mpeg_1 or layer == 2 else 576
    return MpegFrame((version, layer, hertz), samples // 8 * bits // hertz + padding, samples)


@functools.lru_cache(maxsize=16)  # a recording is opened for each of its segments
def walk_mpeg(path: Path, size: int, mtime_ns: int) -> MpegStream | None:
    """Count the frames of an MPEG file without decoding them; tags and other bytes between them are passed over.

    Args:
        path: the file.
        size: of the file in bytes; it and the next tell a file from what was there before.
        mtime_ns: time of its last change.
    Returns:
        The stream, or None where there is no frame.
    """
    with path.open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at, kind, start, counted, samples, frames = 0, None, 0, 0, 0, 0
        while at < len(data):
            if data[at : at + 3] == b"ID3":
                at += 10 + sum(part << shift for part, shift in zip(data[at + 6 : at + 10], (21, 14, 7, 0)))
                continue
            frame = mpeg_frame(data, at)
            # Any bytes may look like a frame; where none came before, another must follow.
            if frame and frame.kind != kind and not mpeg_frame(data, at + frame.size):
                frame = None
            if frame is None or at + frame.size > len(data):
                following = MPEG_SYNC.search(data, at + 1)
                if not following:
                    break
                kind, at = None, following.start()
                continue
            kind = frame.kind
            tag = None if samples else MPEG_COUNT.search(data[at : at + min(frame.size, 64)])
            if tag:
                counted = int.from_bytes(tag[1] or tag[2], "big")
            else:
                start = start if samples else at
                samples, frames = samples + frame.samples, frames + 1
            at += frame.size
    return MpegStream(samples, frames, start, counted) if samples else None


def _with_frame_count(data, stream: MpegStream) -> bytes:
    """An MPEG file with the number of its frames in the first one."""
    head = bytearray(data[stream.start : stream.start + 4])
    head[1] |= 1  # no checksum
    head[2] = head[2] & 0b1100 | 0xE0  # the highest bitrate: long enough for the count
    mono, mpeg_1 = head[3] >> 6 == 3, head[1] >> 3 & 3 == 3
    side_bytes = (17 if mono else 32) if mpeg_1 else (9 if mono else 17)
    tag = bytes(head) + bytes(side_bytes) + b"Xing" + struct.pack(">II", 1, stream.frames)
    return tag.ljust(mpeg_frame(head, 0).size, b"\0") + data[stream.start :]
