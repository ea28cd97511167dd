"""Reading recordings: headers that claim less or more than the file holds, telephone codecs, odd samples."""

import io
import struct

import numpy as np
import pytest
import soundfile
from conftest import voice

from deepmi.process import UserError
from tools import headers, recordings, sound
from tools.sound import Clip

RATE = 16000
CODECS = [("WAV", name) for name in ("GSM610", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "G721_32", "NMS_ADPCM_32")]
CODECS += [("AU", name) for name in ("ULAW", "ALAW", "G721_32", "G723_24", "G723_40")] + [("AIFF", "GSM610")]
CONTAINERS = [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAVEX", "PCM_16"), ("RF64", "PCM_16"), ("W64", "PCM_16")]
CONTAINERS += [("AIFF", "PCM_16"), ("AU", "PCM_16"), ("NIST", "PCM_16"), ("CAF", "PCM_16"), ("FLAC", "PCM_16")]
CONTAINERS += [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)]
PCM = (voice(2.0) * 32767).astype("<i2").tobytes()
TAG = b"ID3\x04\0\0\0\0\x01\x00" + b"\xff\xfb\x90\xc4" * 32


def encoded(samples, kind, codec=None, rate=RATE, **options):
    """The bytes of a sound file."""
    stream = io.BytesIO()
    with soundfile.SoundFile(stream, "w", rate, 1, codec, format=kind, **options) as file:
        file.write(samples)
    return stream.getvalue()


def mp3(seconds, mode="CONSTANT", rate=RATE, pitch=140.0):
    return encoded(voice(seconds, rate, pitch), "MP3", rate=rate, bitrate_mode=mode, compression_level=0.6)


def wav(claimed, body, riff=None):
    """A wav file whose header claims any number of bytes."""
    riff = min(claimed + 36, 2**32 - 1) if riff is None else riff
    facts = struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    return b"RIFF" + struct.pack("<I", riff) + b"WAVEfmt " + facts + b"data" + struct.pack("<I", claimed) + body


@pytest.fixture
def read(tmp_path):
    """(samples, remarks) of a part of a file with these bytes."""

    def read_bytes(data, *ends):
        path, remarks = tmp_path / "a.wav", []
        path.write_bytes(data)
        return sound.read_signal(Clip(path, *ends), remarks), remarks

    return read_bytes


@pytest.mark.parametrize("mode", ["CONSTANT", "AVERAGE", "VARIABLE"])
@pytest.mark.parametrize("rate", [8000, RATE, 44100])
def test_all_of_an_mp3_is_read_whatever_its_frame_count_says(tmp_path, read, rate, mode):
    first, second = mp3(1.0, mode, rate), mp3(2.0, mode, rate, pitch=220)
    size = headers.mpeg_frame(second, 0).size
    joined = first + second
    for data, seconds in ((joined, 3), (first + TAG + second + b"TAG".ljust(128, b"x"), 3), (second[size:], 2)):
        whole, remarks = read(data)
        assert len(whole) / RATE == pytest.approx(seconds, abs=0.4) and not remarks
        assert sound.seconds_of(tmp_path / "a.wav") == pytest.approx(len(whole) / RATE, abs=0.05)
    whole, remarks = read(first[: -size // 3] + second)
    assert len(whole) > 2.5 * RATE or remarks  # the decoder does not recover after every broken frame
    if rate == RATE:
        (whole, _), (part, remarks) = read(joined), read(joined, 1.5, 2.5)
        settled = slice(RATE // 10, None)  # the decoder needs some frames after a seek
        assert not remarks and np.allclose(part[settled], whole[RATE * 3 // 2 : RATE * 5 // 2][settled], atol=1e-3)


def test_an_mp3_with_a_right_count_is_read_as_soundfile_reads_it_and_parts_that_it_skips_are_named(read):
    for mode in ("CONSTANT", "AVERAGE", "VARIABLE"):
        data = mp3(1.0, mode)
        samples, remarks = read(data)
        assert not remarks and len(samples) == RATE
        assert np.array_equal(samples, soundfile.read(io.BytesIO(data), dtype="float32")[0].clip(-1, 1 - 2**-15))
    _, remarks = read(mp3(1.0, rate=44100) + mp3(2.0, rate=22050))
    assert len(remarks) == 1 and "of 3.1 s" in remarks[0]


@pytest.mark.parametrize("share", [1, 0.6])
def test_a_count_in_the_form_of_fraunhofers_encoders(read, share):
    data = mp3(4.0, "VARIABLE")
    tag = data[:4] + bytes(32) + b"VBRI" + bytes(10) + struct.pack(">I", 112)  # of frames of 576 samples
    size = headers.mpeg_frame(data, 0).size
    data = tag.ljust(size, b"\0") + data[size:]
    samples, remarks = read(data[: int(share * len(data))])
    assert len(samples) / RATE == pytest.approx(4 * share, abs=0.3) and bool(remarks) == (share < 1)


@pytest.mark.parametrize(("kind", "codec"), CONTAINERS + CODECS)
def test_a_recording_that_was_cut_off_is_named_or_refused(read, kind, codec):
    data = encoded(voice(4.0, 8000), kind, codec, 8000)
    samples, remarks = read(data)
    assert len(samples) == pytest.approx(4 * RATE, abs=0.1 * RATE) and not remarks
    for share in (0.4, 0.9):
        try:
            _, remarks = read(data[: int(share * len(data))])
        except UserError as error:
            remarks = [str(error)]
        assert len(remarks) == 1 and any(word in remarks[0] for word in ("incomplete", "not readable", "no samples"))


def test_headers_of_streams_are_read_whole_and_without_a_warning(tmp_path, read):
    aiff = encoded(voice(2.0), "AIFF", "PCM_16")
    place = aiff.index(b"SSND")
    files = [wav(2**32 - 1, PCM), wav(0x7FFFF000, PCM), wav(0, PCM, 0), wav(0, PCM), wav(0, PCM, 2**32 - 1)]
    files += [wav(len(PCM), PCM[:-1]), wav(len(PCM) - 1, PCM[:-1]), wav(len(PCM), PCM[:-200])]
    files += [aiff[:4] + bytes(4) + aiff[8 : place + 4] + bytes(4) + aiff[place + 8 :]]
    files += [wav(len(PCM), PCM + b"junk" + struct.pack("<I", 1000) + bytes(1000)), wav(len(PCM), PCM + b"\xff" * 999)]
    files += [encoded(voice(2.0), "RF64") + b"\xff" * 9999]  # libsndfile logs that it stops at byte 0
    for data in files:
        samples, remarks = read(data)
        assert len(samples) == pytest.approx(2 * RATE, abs=200) and not remarks
        assert sound.seconds_of(tmp_path / "a.wav") == pytest.approx(2, abs=0.02)


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_a_header_that_covers_a_part_of_the_file_is_named(read, share):
    noise = np.random.default_rng(0).integers(-3000, 3000, 5 * RATE, np.int16).tobytes()
    _, remarks = read(wav(int(share * len(noise)) // 2 * 2, noise))
    assert len(remarks) == 1 and "its header covers" in remarks[0]


def test_an_empty_recording_before_another_chunk_stays_empty(read):
    chunk = b"LIST" + struct.pack("<I", 4) + b"INFO"
    with pytest.raises(UserError, match="no samples"):
        read(wav(0, chunk, 36 + len(chunk)))


@pytest.mark.parametrize(("kind", "codec"), [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS")])
def test_recordings_joined_in_one_file_are_named(read, kind, codec):
    data = encoded(voice(1.0), kind, codec)
    _, remarks = read(2 * data)
    assert len(remarks) == 1 and "only the first" in remarks[0]
    if kind == "FLAC":
        samples, remarks = read(b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + data)
        assert len(samples) == RATE and not remarks


@pytest.mark.parametrize(("kind", "codec"), CODECS)
def test_telephone_codecs_are_read_from_any_time(read, kind, codec):
    data = encoded(voice(2.0), kind, codec)
    (whole, remarks), (part, more) = read(data), read(data, 0.5, 1.5)
    assert not remarks + more and np.array_equal(part, whole[RATE // 2 : RATE * 3 // 2])
    assert np.corrcoef(whole[: 2 * RATE], voice(2.0))[0, 1] > 0.8


def test_samples_far_over_full_scale_are_named(read):
    signal = voice(1.0) / np.abs(voice(1.0)).max()
    for scale, count in ((1, 0), (3.5, 0), (127, 1), (32767, 1), (2.0**31, 1)):
        samples, remarks = read(encoded(scale * signal, "WAV", "FLOAT"))
        assert len(remarks) == count and all("over full scale" in remark for remark in remarks)
        assert samples.max() < 1  # openSMILE's 16-bit samples would wrap around


@pytest.mark.parametrize(
    ("samples", "rate", "words"),
    [
        (np.zeros(1), 48000, "no samples"),  # none is left at 16 kHz
        (np.full((10, 2), 3e38, np.float32), RATE, "infinite"),
        (np.column_stack([voice(), np.full(len(voice()), np.nan)]), RATE, "infinite"),
        (np.zeros(100), 1, "1 Hz"),
    ],
)
def test_recordings_that_hold_no_speech_are_refused(tmp_path, samples, rate, words):
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    with pytest.raises(UserError, match=words):
        sound.read_signal(Clip(tmp_path / "a.wav"))


def test_every_kind_of_recording_is_found_and_the_rest_is_counted(tmp_path, capsys):
    for name, kind in (("a.OPUS", "OGG"), ("b.aiff", "AIFF"), ("c.au", "AU"), ("d.caf", "CAF"), ("e.w64", "W64")):
        soundfile.write(tmp_path / name, voice(), RATE, format=kind, subtype="OPUS" if kind == "OGG" else None)
    for name in ("f.m4a", "g.WMA", "h.amr", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    found = recordings.list_recordings(tmp_path)
    assert [path.name for path in found] == ["a.OPUS", "b.aiff", "c.au", "d.caf", "e.w64"]
    assert all(len(sound.read_signal(Clip(path))) for path in found)
    note = capsys.readouterr().err
    assert "3 files" in note and "g.WMA" in note and "notes" not in note
