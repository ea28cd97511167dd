"""Reading, moments, normalising and packing of feature files."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from deepmi import features, matfile
from deepmi.process import UserError


def write_features(folder, matrix):
    folder.mkdir(exist_ok=True)
    names = [f"u{i:05d}.wav" for i in range(len(matrix))]
    for path, row in zip(features.feature_paths(folder, names), matrix):
        matfile.write_mat(path, features.FEATURE_KEY, row[None])
    return names


def adversarial(count):
    """Columns on which naive moments fail."""
    rng = np.random.default_rng(0)
    return np.column_stack(
        [
            rng.normal(size=count),
            1.45e12 + 9.6e11 * rng.normal(size=count),  # v1.8's largest
            1e12 + rng.normal(size=count),  # tiny spread about a huge mean: a running sum of squares cancels
            np.full(count, 0.1),  # constant, and not representable
            np.full(count, 1e12 / 3),
            np.where(np.arange(count) == 0, 1e15, rng.normal(size=count)),  # the first one far off
            1e-30 * rng.normal(size=count),
            rng.normal(size=count) * 10.0 ** rng.integers(-8, 9, count),
        ]
    )


@pytest.mark.parametrize("count", [1, 63, 64, 65, 400])
def test_moments_are_numpys_in_float64_on_adversarial_columns(tmp_path, count):
    matrix = adversarial(count)
    names = write_features(tmp_path / "mat", matrix)
    mean, std = features.feature_moments(features.feature_paths(tmp_path / "mat", names), workers=1)
    exact = matrix.astype(np.longdouble)
    assert np.allclose(mean, exact.mean(axis=0).astype(float), rtol=1e-13, atol=0)
    assert np.allclose(std, exact.std(axis=0).astype(float), rtol=1e-9, atol=0)
    assert std[3] == 0 and std[4] == 0  # exactly: a constant feature is told by its range


@pytest.fixture
def eager_workers(monkeypatch):
    """Workers start after the first chunk, however little is left, and in several waves."""
    monkeypatch.setattr(features, "START_UP", 0)
    monkeypatch.setattr(features, "WAVE", 3)


def test_moments_do_not_depend_on_the_workers(tmp_path, eager_workers):
    matrix = np.random.default_rng(0).normal(size=(1200, 5)) + 1e9
    paths = features.feature_paths(tmp_path / "mat", write_features(tmp_path / "mat", matrix))
    one, two = (features.feature_moments(paths, workers) for workers in (1, 2))
    assert one[0].tobytes() == two[0].tobytes() and one[1].tobytes() == two[1].tobytes()


def uneven_rows(kind):
    """A chunk with a constant column, zeros of both signs and what else `kind` names."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(64, 30)) * 10.0 ** rng.integers(-9, 13, 30)
    rows[:, 0], rows[:, 1] = 0.1, np.where(rng.random(64) < 0.5, 0.0, -0.0)
    if kind != "whole":
        rows[rng.random(rows.shape) < 0.05] = np.nan
        rows[:, 2] = np.nan
    if kind == "infinite":
        rows[rng.random(rows.shape) < 0.02] = np.inf
        rows[rng.random(rows.shape) < 0.02] = -1.7e308
    return rows


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", ["whole", "nan", "infinite"])
def test_a_chunks_moments_are_those_of_the_plain_formulas_to_the_last_bit(kind):
    rows = uneven_rows(kind)
    observed = ~np.isnan(rows)
    count = observed.sum(axis=0)
    filled = np.where(observed, rows, 0.0)
    mean = filled.sum(axis=0) / np.maximum(count, 1)
    deviations = np.where(observed, filled - mean, 0.0)
    expected = {
        "count": count,
        "mean": mean,
        "squares": np.einsum("bd,bd->d", deviations, deviations),
        "low": np.where(observed, rows, np.inf).min(axis=0),
        "high": np.where(observed, rows, -np.inf).max(axis=0),
    }
    moments = features.Moments.of(rows)
    for name, value in expected.items():
        assert np.broadcast_to(getattr(moments, name), 30).tobytes() == value.tobytes(), name


def test_a_nan_counts_as_not_observed(tmp_path):
    matrix = np.array([[1.0, 2.0], [3.0, np.nan], [8.0, 6.0]])
    paths = features.feature_paths(tmp_path / "mat", write_features(tmp_path / "mat", matrix))
    mean, std = features.feature_moments(paths, 1)
    assert mean == pytest.approx([4.0, 4.0]) and std == pytest.approx([matrix[:, 0].std(), 2.0])


def test_infinite_features_are_named_by_the_norms(tmp_path):
    matrix = np.ones((3, 2))
    matrix[1, 0] = np.inf
    paths = features.feature_paths(tmp_path / "mat", write_features(tmp_path / "mat", matrix))
    with pytest.raises(UserError, match=r"infinite.*u00001\.mat"):
        features.feature_moments(paths, 1)


def test_normalise_is_z_norm_clipped_with_nan_and_constants_at_0():
    x = np.array([[1.0, 2.0, 100.0, np.nan, 5.0, -1e300]])
    mean, std = np.array([0.0, 2.0, 0.0, 0.0, 4.0, 0.0]), np.array([2.0, 1.0, 1.0, 1.0, 0.0, 1e-300])
    z = features.normalise(x, mean, std)
    assert z.tolist() == [[0.5, 0.0, 3.0, 0.0, 0.0, -3.0]] and z.dtype == np.float32


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", ["whole", "nan", "infinite"])
def test_normalising_in_place_gives_the_same_bits_and_normalise_leaves_its_input(kind):
    rows = uneven_rows(kind)
    mean, std = np.nan_to_num(rows).mean(axis=0), np.ones(30)
    std[0], mean[2], std[2] = 0.0, np.nan, np.nan
    before = rows.tobytes()
    z = features.normalise(rows, mean, std)
    assert rows.tobytes() == before
    assert features._normalise_into(rows, rows, mean, std).astype(np.float32).tobytes() == z.tobytes()


def test_normalise_subtracts_in_float64():
    x = np.array([[1.45e12 + 1.0]])
    assert features.normalise(x, np.array([1.45e12]), np.array([2.0]))[0, 0] == 0.5


def pack(tmp_path, names, mean, std, workers=1):
    return features.pack_features(tmp_path / "mat", names, mean, std, tmp_path / "cache", workers)


@pytest.fixture
def packable(tmp_path):
    matrix = adversarial(150)
    return write_features(tmp_path / "mat", matrix), matrix, matrix.mean(axis=0), matrix.std(axis=0)


def test_packed_rows_are_the_normalised_files_in_the_order_of_their_names(tmp_path, packable):
    names, matrix, mean, std = packable
    shuffled = [names[i] for i in np.random.default_rng(0).permutation(150)]
    packed = pack(tmp_path, shuffled, mean, std)
    assert packed.names == names and packed.rows.dtype == np.float32
    assert np.array_equal(packed.rows, features.normalise(matrix, mean, std))
    assert isinstance(packed.rows, np.memmap)


def test_packing_does_not_depend_on_the_workers(tmp_path, eager_workers):
    matrix = np.random.default_rng(0).normal(size=(1100, 4))
    names = write_features(tmp_path / "mat", matrix)
    packed = pack(tmp_path, names, np.zeros(4), np.ones(4), workers=2)
    assert np.array_equal(packed.rows, features.normalise(matrix, np.zeros(4), np.ones(4)))


@pytest.mark.parametrize("block", [1, 7, 150, 4096])
def test_the_cache_file_is_known_beforehand_and_its_index_lists_the_names(tmp_path, packable, monkeypatch, block):
    monkeypatch.setattr(features, "BLOCK", block)
    names, matrix, mean, std = packable
    cache = features.cache_file(tmp_path / "mat", reversed(names), mean, std, tmp_path / "cache")
    cache.parent.mkdir()
    np.save(cache, features.normalise(matrix, mean, std))
    features.write_index(cache, "0" * 64, names)
    made = cache.stat().st_ino
    assert pack(tmp_path, names, mean, std).key == "0" * 64 and cache.stat().st_ino == made
    features.write_index(cache, "0" * 64, [*names, "one more.wav"])
    key = pack(tmp_path, names, mean, std).key
    assert cache.stat().st_ino != made
    assert json.loads(cache.with_suffix(".json").read_text()) == {"content": key, "names": names}


def test_the_key_is_the_content_whatever_the_files_times_and_folder(tmp_path, packable, eager_workers):
    names, _, mean, std = packable
    key = pack(tmp_path, names, mean, std).key
    for path in (tmp_path / "mat").iterdir():
        path.chmod(0o600)
    assert pack(tmp_path, names, mean, std, workers=2).key == key
    shutil.copytree(tmp_path / "mat", tmp_path / "elsewhere" / "mat", copy_function=shutil.copyfile)
    assert pack(tmp_path / "elsewhere", names, mean, std).key == key
    (tmp_path / "mat" / features.feature_name(names[0])).rename(tmp_path / "mat" / "0000.mat")
    assert pack(tmp_path, ["0000.wav", *names[1:]], mean, std).key != key


def test_the_key_does_not_depend_on_the_workers(tmp_path, packable, monkeypatch, eager_workers):
    monkeypatch.setattr(features, "BLOCK", 40)
    names, _, mean, std = packable
    one, two = (
        features.cache_file(tmp_path / "mat", names, mean, std, tmp_path / "cache", workers) for workers in (1, 2)
    )
    assert one == two


@pytest.mark.parametrize("count", [0, 1, 6, 7, 8, 20])
def test_an_index_is_json_whatever_the_names(monkeypatch, count):
    monkeypatch.setattr(features, "BLOCK", 7)
    names = [f'{i}, "ä\udc80\\].wav' for i in range(count)]
    text = b"".join(features._index_text("0" * 64, names))
    assert text == json.dumps({"content": "0" * 64, "names": names}).encode()


def test_feature_paths_are_a_sequence_of_paths(tmp_path):
    paths = features.feature_paths(tmp_path, ["a.wav", "b.FLAC", "c.d"])
    expected = [tmp_path / "a.mat", tmp_path / "b.mat", tmp_path / "c.d.mat"]
    assert list(paths) == expected and paths[-1] == expected[-1] and list(paths[1:]) == expected[1:]
    assert list(paths[1:].strings()) == [str(path) for path in expected[1:]]


def nap(paths, seconds):
    time.sleep(seconds)
    return paths


@pytest.mark.parametrize(("seconds", "workers", "alone"), [(0.02, 4, 1), (0.02, 1, 20), (0.0, 4, 20)])
def test_workers_are_started_where_they_save_more_than_they_cost(monkeypatch, seconds, workers, alone):
    handed_over = []

    def in_processes(work, chunks, workers, seconds):
        for chunk in chunks:
            handed_over.append(chunk)
            yield chunk, work(chunk[0], 0)

    monkeypatch.setattr(features, "_in_processes", in_processes)
    monkeypatch.setattr(features, "START_UP", 0.1)
    chunks = [([number], seconds) for number in range(20)]
    assert list(features._in_parallel(nap, chunks, workers, 20, "naps")) == [[number] for number in range(20)]
    assert len(handed_over) == 20 - alone


def test_a_second_stage_reads_no_feature_file(tmp_path, packable, monkeypatch):
    names, _, mean, std = packable
    first = pack(tmp_path, names, mean, std)
    monkeypatch.setattr(features, "read_mat", lambda *_: pytest.fail("a feature file was read again"))
    assert pack(tmp_path, names, mean, std).key == first.key


def change_content(path, names, mean, std):
    matfile.write_mat(path, features.FEATURE_KEY, np.zeros((1, mean.size)))


def change_behind_the_time_stamp(path, names, mean, std):
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-8:] = np.float64(2.5).tobytes()
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and path.stat().st_mtime_ns == before.st_mtime_ns


def change_norm_terms(path, names, mean, std):
    mean[0] += 1


def change_file_list(path, names, mean, std):
    names.pop()


@pytest.mark.parametrize("change", [change_content, change_behind_the_time_stamp, change_norm_terms, change_file_list])
def test_a_stale_cache_is_never_used(tmp_path, packable, change):
    names, _, mean, std = packable
    first = pack(tmp_path, names, mean, std)
    path = features.feature_paths(tmp_path / "mat", names)[3]
    change(path, names, mean, std)
    second = pack(tmp_path, names, mean, std)
    assert second.key != first.key
    matrix = np.stack([features.read_feature(p) for p in features.feature_paths(tmp_path / "mat", names)])
    assert np.array_equal(second.rows, features.normalise(matrix, mean, std))


def test_a_torn_cache_is_built_anew(tmp_path, packable):
    names, matrix, mean, std = packable
    pack(tmp_path, names, mean, std)
    (cache,) = (tmp_path / "cache").glob("*.npy")
    cache.write_bytes(cache.read_bytes()[:-100])
    assert np.array_equal(pack(tmp_path, names, mean, std).rows, features.normalise(matrix, mean, std))


def test_infinite_features_are_clipped_and_named(tmp_path, packable, capsys):
    names, matrix, mean, std = packable
    bad = matrix[5].copy()
    bad[0] = -np.inf
    matfile.write_mat(features.feature_paths(tmp_path / "mat", names)[5], features.FEATURE_KEY, bad[None])
    assert pack(tmp_path, names, mean, std).rows[5, 0] == -3
    assert "u00005.mat" in capsys.readouterr().err


def test_every_damaged_file_is_counted_and_nothing_is_left(tmp_path, packable):
    names, _, mean, std = packable
    for index in (100, 120):
        features.feature_paths(tmp_path / "mat", names)[index].write_bytes(b"broken")
    with pytest.raises(UserError, match=r"u00100\.mat.*damaged.*and 1 more of 150"):
        pack(tmp_path, names, mean, std)
    assert not list((tmp_path / "cache").glob("*.npy")) and not list((tmp_path / "cache").glob("*.tmp"))


def test_mat_files_go_round_with_the_same_bytes(tmp_path):
    value = np.random.default_rng(0).normal(size=(1, 6373))
    for name in ("a.mat", "b.mat"):
        matfile.write_mat(tmp_path / name, "Audio_data", value)
    assert np.array_equal(loadmat(tmp_path / "a.mat")["Audio_data"], value)
    assert (tmp_path / "a.mat").read_bytes() == (tmp_path / "b.mat").read_bytes()


def refused(path, key="Audio_data"):
    """What the reader says of a file that it does not take; empty where it takes it."""
    try:
        matfile.read_mat(path, key)
    except UserError as error:
        return str(error).removeprefix(f"{path}: ")
    return ""


@pytest.mark.parametrize("shape", [(1, 6373), (17, 1), (1, 1), (2, 3)])
@pytest.mark.parametrize("compressed", [False, True])
def test_files_are_read_as_scipy_reads_them(tmp_path, shape, compressed):
    value = np.random.default_rng(0).normal(size=shape)
    value.flat[:3] = [np.nan, np.inf, -0.0][: value.size]
    for length in range(1, 31):
        name = "Audio_data_of_a_very_long_name"[:length]
        savemat(tmp_path / "x.mat", {name: value}, do_compression=compressed)
        read, known = matfile.read_mat(tmp_path / "x.mat", name), loadmat(tmp_path / "x.mat")[name]
        assert (read.dtype, read.shape) == (known.dtype, known.shape) and read.tobytes() == known.tobytes()


@pytest.mark.parametrize("name", ["x", "abc", "abcd"])
def test_a_short_name_may_stand_behind_its_tag(tmp_path, name):
    matfile.write_mat(tmp_path / "x.mat", name, np.array([[1.5, 2.5]]))
    data = (tmp_path / "x.mat").read_bytes()
    sizes = [int.from_bytes(data[132:136], "little") + 8, 1, len(name)]
    matrix, kind, length = (number.to_bytes(4, "little") for number in sizes)
    long_form = data[:132] + matrix + data[136:168] + kind + length + name.encode().ljust(8, b"\0") + data[176:]
    (tmp_path / "x.mat").write_bytes(long_form)
    assert matfile.read_mat(tmp_path / "x.mat", name).tolist() == [[1.5, 2.5]]
    assert loadmat(tmp_path / "x.mat")[name].tolist() == [[1.5, 2.5]]


@pytest.mark.parametrize("kind", ["f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "?"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_real_type_is_read_as_scipy_reads_it(tmp_path, kind, order):
    path, value = tmp_path / "x.mat", np.array([[0, 1, 100], [7, 8, 9]]).astype(kind)
    savemat(path, {"other": np.zeros((3, 3)), "Audio_data": value, "text": "text", "more": {"a": [1]}})
    if order == ">":
        path.write_bytes(big_endian(value))
    read, known = matfile.read_mat(path, "Audio_data"), loadmat(path)["Audio_data"]
    assert np.array_equal(read, known) and read.dtype == np.dtype(kind if kind != "?" else "u1")


def big_endian(value):
    """A v5 file with one matrix as another machine writes it."""
    import struct

    kinds = {"f4": (7, 7), "f8": (9, 6), "i1": (1, 8), "u1": (2, 9), "i2": (3, 10), "u2": (4, 11), "i4": (5, 12)}
    kinds |= {"u4": (6, 13), "i8": (12, 14), "u8": (13, 15), "b1": (2, 9)}
    kind, matrix_class = kinds[value.dtype.str[1:]]
    numbers = value.astype(value.dtype.newbyteorder(">")).tobytes("F")
    parts = [(6, struct.pack(">2I", matrix_class, 0)), (5, struct.pack(">2i", *value.shape)), (1, b"Audio_data")]
    content = b"".join(
        struct.pack(">2I", number, len(data)) + data + b"\0" * (-len(data) % 8)
        for number, data in [*parts, (kind, numbers)]
    )
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\x01\x00MI" + struct.pack(">2I", 14, len(content)) + content


def test_integers_that_stand_for_doubles_are_read(tmp_path):
    integers = np.array([[7, -8, 9, 10, 0, 0, 1, 32767]], "<i2")
    savemat(tmp_path / "x.mat", {"Audio_data": integers.view("<f8")})
    data = (tmp_path / "x.mat").read_bytes()
    # As MATLAB stores doubles that are small integers; the bytes of two doubles become eight integers.
    (tmp_path / "x.mat").write_bytes(data[:164] + b"\x08" + data[165:192] + b"\x03" + data[193:])
    assert features.read_feature(tmp_path / "x.mat").tolist() == integers[0].tolist()


@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_cut_anywhere_is_refused(tmp_path, compressed):
    path = tmp_path / "x.mat"
    savemat(path, {"Audio_data": np.random.default_rng(0).normal(size=(1, 20))}, do_compression=compressed)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert refused(path), length


def test_a_wrong_byte_gives_what_scipy_reads_or_a_message(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "x.mat"
    matfile.write_mat(path, "Audio_data", rng.normal(size=(1, 20)))
    whole, taken = path.read_bytes(), 0
    for place, byte in zip(rng.integers(0, 300, 1000), rng.integers(0, 256, 1000)):
        data = bytearray(whole)
        data[place] = byte
        path.write_bytes(data)
        if not refused(path):
            taken += 1
            try:
                known = loadmat(path, variable_names=["Audio_data"])["Audio_data"]
            except ValueError:
                known = matfile.read_mat(path, "Audio_data")
            assert matfile.read_mat(path, "Audio_data").tobytes() == known.tobytes(), (place, byte)
    assert 300 < taken < 900  # the description and the numbers may be anything, what lies between may not


def test_a_shape_without_numbers_may_be_anything(tmp_path):
    savemat(tmp_path / "x.mat", {"Audio_data": np.zeros((0, 3, 4))})
    data = (tmp_path / "x.mat").read_bytes()
    shape = np.array([0, 3, 4], "<i4").tobytes()
    assert data.count(shape) == 1
    (tmp_path / "x.mat").write_bytes(data.replace(shape, np.array([0, 2**31 - 1, 2**31 - 1], "<i4").tobytes()))
    with pytest.raises(UserError, match="shape"):
        features.read_feature(tmp_path / "x.mat")


def test_fractions_in_a_matrix_of_integers_are_refused(tmp_path):
    savemat(tmp_path / "x.mat", {"Audio_data": np.array([[1e300, 2.5]])})
    data = bytearray((tmp_path / "x.mat").read_bytes())
    assert data[144] == 6  # the class: doubles
    data[144] = 8
    (tmp_path / "x.mat").write_bytes(data)
    assert "fractions" in refused(tmp_path / "x.mat")


def test_a_variable_that_unpacks_without_end_is_refused(tmp_path):
    import struct
    import zlib

    bomb = zlib.compress(bytes(2 * matfile.LARGEST_MAT), 9)
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + struct.pack("<2I", 15, len(bomb))
    (tmp_path / "x.mat").write_bytes(header + bomb)
    assert "too large" in refused(tmp_path / "x.mat")
    with (tmp_path / "y.mat").open("wb") as stream:
        stream.truncate(10**12)
    assert "1,000,000,000,000 bytes" in refused(tmp_path / "y.mat")


def test_files_that_matlab_compressed_are_read(tmp_path):
    savemat(tmp_path / "c.mat", {"Audio_data": np.array([[1.0, 2.0]])}, do_compression=True)
    assert features.read_feature(tmp_path / "c.mat").tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"\0" * 200, "damaged"),
        (b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + b"\xff" * 64, "damaged"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM", "HDF5"),
    ],
)
def test_damaged_files_are_refused(tmp_path, content, words):
    (tmp_path / "x.mat").write_bytes(content)
    with pytest.raises(UserError, match=words):
        features.read_feature(tmp_path / "x.mat")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"other": np.ones((1, 3))}, "no variable 'Audio_data'; found other"),
        ({"Audio_data": np.ones((2, 3))}, r"shape \(2, 3\)"),
        ({"Audio_data": np.full((1, 3), np.nan)}, "every feature is NaN"),
        ({"Audio_data": "text"}, "real numbers"),
        ({"Audio_data": np.ones((1, 2)) * 1j}, "real numbers"),
        ({"Audio_data": np.zeros((1, 0))}, "shape"),
    ],
)
def test_files_with_something_else_are_refused(tmp_path, content, words):
    savemat(tmp_path / "x.mat", content)
    with pytest.raises(UserError, match=words):
        features.read_feature(tmp_path / "x.mat")


@pytest.mark.parametrize(("stored", "kind"), [(np.array([[300, -5]], np.int32), 9), (np.array([[1e300, 1]]), 7)])
def test_numbers_that_their_class_cannot_hold_are_refused(tmp_path, stored, kind):
    matfile.write_mat(tmp_path / "x.mat", features.FEATURE_KEY, stored)
    data = bytearray((tmp_path / "x.mat").read_bytes())
    data[matfile.MAT_HEADER + 16] = kind  # the class, in the first byte of the flags
    (tmp_path / "x.mat").write_bytes(data)
    with pytest.raises(UserError, match="class can't hold"):
        features.read_feature(tmp_path / "x.mat")


def test_two_processes_that_pack_at_once_give_one_whole_matrix(tmp_path, packable):
    names, _, mean, std = packable
    np.savez(tmp_path / "terms.npz", mean=mean, std=std)
    code = (
        "import sys, numpy as np; from deepmi import features; t = np.load('terms.npz');"
        f"features.pack_features('mat', {names!r}, t['mean'], t['std'], 'cache', 1)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(features.__file__).parents[1])}
    runs = [subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment) for _ in range(3)]
    assert [run.wait() for run in runs] == [0, 0, 0]
    (matrix,) = (tmp_path / "cache").glob("*.npy")
    alone = features.pack_features(tmp_path / "mat", names, mean, std, tmp_path / "alone", 1)
    assert np.array_equal(np.load(matrix), alone.rows)
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".json", ".npy"]
