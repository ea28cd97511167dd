"""The reader of MATLAB files against scipy's, and what it refuses."""

import os
import struct
import zlib

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from deepmi import features, matfile
from deepmi.process import UserError

HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "x.mat"


def refused(path, key="Audio_data"):
    """The message of the reader if it refuses a file, else empty."""
    try:
        matfile.read_mat(path, key)
    except UserError as error:
        return str(error).removeprefix(f"{path}: ")
    return ""


def test_a_written_file_has_the_same_bytes_each_time_and_scipy_reads_it(tmp_path):
    value = np.random.default_rng(0).normal(size=(1, 6373))
    for name in ("a.mat", "b.mat"):
        matfile.write_mat(tmp_path / name, "Audio_data", value)
    assert np.array_equal(loadmat(tmp_path / "a.mat")["Audio_data"], value)
    assert (tmp_path / "a.mat").read_bytes() == (tmp_path / "b.mat").read_bytes()


@pytest.mark.parametrize("shape", [(1, 6373), (17, 1), (1, 1), (2, 3)])
@pytest.mark.parametrize("compressed", [False, True])
def test_files_are_read_as_scipy_reads_them(file, shape, compressed):
    value = np.random.default_rng(0).normal(size=shape)
    value.flat[:3] = [np.nan, np.inf, -0.0][: value.size]
    for name in ("x", "four", "fives", "eight_ch", "Audio_data_of_a_very_long_name"):
        savemat(file, {name: value}, do_compression=compressed)
        read, known = matfile.read_mat(file, name), loadmat(file)[name]
        assert (read.dtype, read.shape) == (known.dtype, known.shape) and read.tobytes() == known.tobytes()


@pytest.mark.parametrize("kind", ["f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_real_type_is_read_as_scipy_reads_it(file, kind, order):
    value = np.array([[0, 1, 100], [7, 8, 9]]).astype(kind)
    if order == ">":
        file.write_bytes(big_endian(value))
    else:
        savemat(file, {"other": np.zeros((3, 3)), "Audio_data": value, "text": "text", "more": {"a": [1]}})
    read, known = matfile.read_mat(file, "Audio_data"), loadmat(file)["Audio_data"]
    assert np.array_equal(read, known) and read.dtype == np.dtype(kind)


def big_endian(value):
    """A v5 file with one matrix, as a different machine writes it; its name lies behind the tag."""
    types = {kind: number for number, kind in matfile.ELEMENT_TYPES.items()}
    classes = {kind: number for number, kind in matfile.MATRIX_CLASSES.items()}
    kind = value.dtype.str[1:]
    numbers = value.astype(value.dtype.newbyteorder(">")).tobytes("F")
    parts = [(6, struct.pack(">2I", classes[kind], 0)), (5, struct.pack(">2i", *value.shape)), (1, b"Audio_data")]
    content = b"".join(
        struct.pack(">2I", number, len(data)) + data + b"\0" * (-len(data) % 8)
        for number, data in [*parts, (types[kind], numbers)]
    )
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\x01\x00MI" + struct.pack(">2I", 14, len(content)) + content


def test_integers_that_stand_for_doubles_are_read(file):
    integers = np.array([[7, -8, 9, 10, 0, 0, 1, 32767]], "<i2")
    savemat(file, {"Audio_data": integers.view("<f8")})
    data = file.read_bytes()
    # As MATLAB stores doubles that are small integers; the bytes of two doubles become eight integers.
    file.write_bytes(data[:164] + b"\x08" + data[165:192] + b"\x03" + data[193:])
    assert features.read_feature(file).tolist() == integers[0].tolist()


@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_cut_anywhere_is_refused(file, compressed):
    savemat(file, {"Audio_data": np.random.default_rng(0).normal(size=(1, 20))}, do_compression=compressed)
    data = file.read_bytes()
    for length in range(len(data)):
        file.write_bytes(data[:length])
        assert refused(file), length


def test_a_shape_without_numbers_may_be_anything(file):
    savemat(file, {"Audio_data": np.zeros((0, 3, 4))})
    data = file.read_bytes()
    shape = np.array([0, 3, 4], "<i4").tobytes()
    assert data.count(shape) == 1
    for sizes in ([0, 2**31 - 1, 2**31 - 1], [0, -1, 3]):
        file.write_bytes(data.replace(shape, np.array(sizes, "<i4").tobytes()))
        with pytest.raises(UserError, match=r"shape|size|dimension"):
            features.read_feature(file)


@pytest.mark.parametrize(
    ("stored", "kind"), [(np.array([[300, -5]], np.int32), 9), (np.array([[1e300, 1]]), 7), (np.array([[2.5]]), 8)]
)
def test_numbers_that_their_class_cannot_hold_are_refused(file, stored, kind):
    matfile.write_mat(file, features.FEATURE_KEY, stored)
    data = bytearray(file.read_bytes())
    data[matfile.HEADER + 16] = kind  # the class, in the first byte of the flags
    file.write_bytes(data)
    assert "class can't hold" in refused(file)


def test_a_file_without_end_and_a_pipe_are_refused_unread(file):
    bomb = zlib.compress(bytes(2 * matfile.LARGEST_MAT), 1)
    file.write_bytes(HEADER + struct.pack("<2I", 15, len(bomb)) + bomb)
    assert "too large" in refused(file)
    with file.open("wb") as stream:
        stream.truncate(10**12)
    assert "1,000,000,000,000 bytes" in refused(file)
    file.unlink()
    os.mkfifo(file)
    assert "empty" in refused(file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"\0" * 200, "damaged"),
        (HEADER + b"\xff" * 64, "damaged"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM", "HDF5"),
        ({"other": np.ones((1, 3))}, "found other"),
        ({"Audio_data": np.ones((2, 3))}, r"shape \(2, 3\)"),
        ({"Audio_data": np.full((1, 3), np.nan)}, "every feature is NaN"),
        ({"Audio_data": "text"}, "real numbers"),
        ({"Audio_data": np.ones((1, 2)) * 1j}, "real numbers"),
        ({"Audio_data": np.zeros((1, 0))}, "shape"),
    ],
)
def test_files_without_a_feature_vector_are_refused(file, content, words):
    file.write_bytes(content) if isinstance(content, bytes) else savemat(file, content)
    with pytest.raises(UserError, match=words):
        features.read_feature(file)
