"""Sound files whose headers say less or more than the files hold, and codecs that can't be read from everywhere."""

import io
import struct

import numpy as np
import pytest
import soundfile
from conftest import voice

from deepmi.process import UserError
from tools import feature_sets, headers, recordings
from tools.feature_sets import Clip

RATE = 16000
CODECS = [("WAV", name) for name in ("GSM610", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "G721_32", "NMS_ADPCM_32")]
CODECS += [("AU", name) for name in ("ULAW", "ALAW", "G721_32", "G723_24", "G723_40")] + [("AIFF", "GSM610")]


def encoded(samples, kind, codec=None, rate=RATE, **options):
    """The bytes of a sound file."""
    stream = io.BytesIO()
    with soundfile.SoundFile(stream, "w", rate, 1, codec, format=kind, **options) as file:
        file.write(samples)
    return stream.getvalue()


def mp3(seconds, mode="CONSTANT", rate=RATE, pitch=140.0):
    return encoded(voice(seconds, rate, pitch), "MP3", rate=rate, bitrate_mode=mode, compression_level=0.6)


def wav(claimed, body, riff=None):
    """A wav file whose header gives any number of bytes."""
    riff = min(claimed + 36, 2**32 - 1) if riff is None else riff
    facts = struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    return b"RIFF" + struct.pack("<I", riff) + b"WAVEfmt " + facts + b"data" + struct.pack("<I", claimed) + body


def read(path, *ends):
    """(samples, remarks) of a clip."""
    remarks = []
    return feature_sets.read_signal(Clip(path, *ends), remarks), remarks


PCM = (voice(2.0) * 32767).astype("<i2").tobytes()
TAG_BETWEEN = b"ID3\x04\0\0\0\0\x01\x00" + b"\xff\xfb\x90\xc4" * 32


@pytest.mark.parametrize("mode", ["CONSTANT", "AVERAGE", "VARIABLE"])
@pytest.mark.parametrize("rate", [8000, RATE, 44100])
def test_all_of_an_mp3_is_read_whatever_its_frame_count_says(tmp_path, rate, mode):
    first, second = mp3(1.0, mode, rate), mp3(2.0, mode, rate, pitch=220)
    size = headers.mpeg_frame(second, 0).size
    files = {
        "joined": (first + second, 3),
        "joined_with_tags": (first + TAG_BETWEEN + second + b"TAG".ljust(128, b"x"), 3),
        "without_count": (second[size:], 2),
    }
    for name, (data, seconds) in files.items():
        path = tmp_path / f"{name}.mp3"
        path.write_bytes(data)
        whole, remarks = read(path)
        assert len(whole) / RATE == pytest.approx(seconds, abs=0.4) and not remarks, name
        assert feature_sets.seconds_of(path) == pytest.approx(len(whole) / RATE, abs=0.05), name
    path.write_bytes(first[: -size // 3] + second)
    whole, remarks = read(path)
    assert len(whole) > 2.5 * RATE or remarks  # the decoder doesn't find its way back after every broken frame


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_a_part_of_a_mended_mp3_is_that_of_the_whole(tmp_path, mode):
    path = tmp_path / "a.mp3"
    path.write_bytes(mp3(1.0, mode) + mp3(2.0, mode, pitch=220))
    whole, _ = read(path)
    part, remarks = read(path, 1.5, 2.5)
    settled = slice(RATE // 10, None)  # the decoder needs some frames after a seek
    assert not remarks and np.allclose(part[settled], whole[int(1.5 * RATE) : int(2.5 * RATE)][settled], atol=1e-3)


@pytest.mark.parametrize("mode", ["CONSTANT", "AVERAGE", "VARIABLE"])
def test_an_mp3_with_a_right_count_is_read_as_before(tmp_path, mode):
    path = tmp_path / "a.mp3"
    path.write_bytes(mp3(1.0, mode))
    samples, remarks = read(path)
    assert not remarks and len(samples) == RATE
    assert np.array_equal(samples, soundfile.read(path, dtype="float32")[0].clip(-1, 1 - 2**-15))


CONTAINERS = [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAVEX", "PCM_16"), ("RF64", "PCM_16"), ("W64", "PCM_16")]
CONTAINERS += [("AIFF", "PCM_16"), ("AU", "PCM_16"), ("NIST", "PCM_16"), ("CAF", "PCM_16"), ("FLAC", "PCM_16")]
CONTAINERS += [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)]


@pytest.mark.parametrize(("kind", "codec"), CONTAINERS + CODECS)
def test_a_recording_that_was_cut_off_is_named_or_refused(tmp_path, kind, codec):
    path = tmp_path / "a.wav"
    data = encoded(voice(4.0, 8000), kind, codec, 8000)
    path.write_bytes(data)
    samples, remarks = read(path)
    assert len(samples) == pytest.approx(4 * RATE, abs=0.1 * RATE) and not remarks
    for share in (0.4, 0.9):
        path.write_bytes(data[: int(share * len(data))])
        try:
            _, remarks = read(path)
        except UserError as error:
            remarks = [str(error)]
        assert len(remarks) == 1 and any(word in remarks[0] for word in ("incomplete", "not readable", "no samples"))


def test_headers_of_streams_are_read_whole_and_without_a_warning(tmp_path):
    aiff = encoded(voice(2.0), "AIFF", "PCM_16")
    place = aiff.index(b"SSND")
    files = [wav(2**32 - 1, PCM), wav(0x7FFFF000, PCM), wav(0, PCM, 0), wav(0, PCM), wav(0, PCM, 2**32 - 1)]
    files += [wav(len(PCM), PCM[:-1]), wav(len(PCM) - 1, PCM[:-1]), wav(len(PCM), PCM[:-200])]
    files += [aiff[:4] + bytes(4) + aiff[8 : place + 4] + bytes(4) + aiff[place + 8 :]]
    files += [wav(len(PCM), PCM + b"junk" + struct.pack("<I", 1000) + bytes(1000)), wav(len(PCM), PCM + b"\xff" * 999)]
    path = tmp_path / "a.wav"
    for data in files:
        path.write_bytes(data)
        samples, remarks = read(path)
        assert len(samples) == pytest.approx(2 * RATE, abs=200) and not remarks
        assert feature_sets.seconds_of(path) == pytest.approx(2, abs=0.02)


def test_a_header_that_covers_little_of_the_file_is_named(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(len(PCM) // 5, PCM))
    _, remarks = read(tmp_path / "a.wav")
    assert len(remarks) == 1 and "its header covers" in remarks[0]


def test_an_empty_recording_before_another_chunk_stays_empty(tmp_path):
    chunk = b"LIST" + struct.pack("<I", 4) + b"INFO"
    (tmp_path / "a.wav").write_bytes(wav(0, chunk, 36 + len(chunk)))
    with pytest.raises(UserError, match="no samples"):
        read(tmp_path / "a.wav")


@pytest.mark.parametrize(("kind", "codec"), [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS")])
def test_recordings_joined_in_one_file_are_named(tmp_path, kind, codec):
    (tmp_path / "a.ogg").write_bytes(2 * encoded(voice(1.0), kind, codec))
    _, remarks = read(tmp_path / "a.ogg")
    assert len(remarks) == 1 and "only the first" in remarks[0]


@pytest.mark.parametrize(("kind", "codec"), CODECS)
def test_codecs_of_telephony_are_read_from_everywhere(tmp_path, kind, codec):
    path = tmp_path / "a.au"
    path.write_bytes(encoded(voice(2.0), kind, codec))
    whole, remarks = read(path)
    part, more = read(path, 0.5, 1.5)
    assert not remarks + more and np.array_equal(part, whole[RATE // 2 : RATE * 3 // 2])
    assert np.corrcoef(whole[: 2 * RATE], voice(2.0))[0, 1] > 0.8


@pytest.mark.parametrize(("kind", "codec"), [("FLAC", None), ("MP3", None), ("AIFF", None), ("WAVEX", "PCM_24")])
def test_the_content_counts_whatever_the_ending_says(tmp_path, kind, codec):
    (tmp_path / "A.WAV").write_bytes(encoded(voice(1.0), kind, codec))
    samples, remarks = read(tmp_path / "A.WAV")
    assert len(samples) == RATE and not remarks and recordings.list_recordings(tmp_path)


def test_samples_far_beyond_full_scale_are_named(tmp_path):
    signal = voice(1.0) / np.abs(voice(1.0)).max()
    for scale, count in ((1, 0), (3.5, 0), (127, 1), (32767, 1), (2.0**31, 1)):
        soundfile.write(tmp_path / "a.wav", scale * signal, RATE, subtype="FLOAT")
        _, remarks = read(tmp_path / "a.wav")
        assert len(remarks) == count and all("over full scale" in remark for remark in remarks)


def test_a_channel_that_is_not_finite_is_refused(tmp_path):
    for bad in (np.nan, np.inf):
        soundfile.write(tmp_path / "a.wav", np.column_stack([voice(), np.full(len(voice()), bad)]), RATE, "DOUBLE")
        with pytest.raises(UserError, match="samples"):
            read(tmp_path / "a.wav")


def test_parts_of_an_mp3_that_the_decoder_passes_over_are_missed(tmp_path):
    (tmp_path / "a.mp3").write_bytes(mp3(1.0, rate=44100) + mp3(2.0, rate=22050))
    _, remarks = read(tmp_path / "a.mp3")
    assert len(remarks) == 1 and "of 3.1 s" in remarks[0]


def test_a_count_as_fraunhofers_encoders_write_it(tmp_path):
    data = mp3(4.0, "VARIABLE")
    size = headers.mpeg_frame(data, 0).size
    tag = data[:4] + bytes(32) + b"VBRI" + bytes(10) + struct.pack(">I", 112)  # of frames of 576 samples
    data = tag.ljust(size, b"\0") + data[size:]
    for share, complete in ((1, True), (0.6, False)):
        (tmp_path / "a.mp3").write_bytes(data[: int(share * len(data))])
        samples, remarks = read(tmp_path / "a.mp3")
        assert len(samples) / RATE == pytest.approx(4 * share, abs=0.3) and (not remarks) == complete


def test_a_flac_behind_a_tag_is_one_recording(tmp_path):
    path = tmp_path / "tagged.flac"
    soundfile.write(path, np.zeros(RATE), RATE)
    path.write_bytes(b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + path.read_bytes())
    remarks = []
    assert len(feature_sets.read_signal(Clip(path), remarks)) == RATE and not remarks


def test_a_header_that_covers_most_of_the_file_is_named_where_seconds_are_lost(tmp_path):
    path = tmp_path / "part.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 5 * RATE), RATE, subtype="PCM_16")
    data = bytearray(path.read_bytes())
    data[40:44] = struct.pack("<I", int(0.7 * (len(data) - 44)) // 2 * 2)
    path.write_bytes(data)
    remarks = []
    assert len(feature_sets.read_signal(Clip(path), remarks)) < 4 * RATE and "header covers" in remarks[0]
