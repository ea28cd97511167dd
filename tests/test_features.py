"""Reading, moments, normalising and packing of feature files."""

import os

import numpy as np
import pytest
from scipy.io import loadmat, savemat

import features
from runtime import UserError


def write_features(folder, matrix):
    folder.mkdir(exist_ok=True)
    names = [f"u{i:05d}.wav" for i in range(len(matrix))]
    for path, row in zip(features.feature_paths(folder, names), matrix):
        features.write_mat(path, features.FEATURE_KEY, row[None])
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


def test_moments_do_not_depend_on_the_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "CHUNK", 400)
    matrix = np.random.default_rng(0).normal(size=(1200, 5)) + 1e9
    paths = features.feature_paths(tmp_path / "mat", write_features(tmp_path / "mat", matrix))
    one, two = (features.feature_moments(paths, workers) for workers in (1, 2))
    assert one[0].tobytes() == two[0].tobytes() and one[1].tobytes() == two[1].tobytes()


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


def test_packing_does_not_depend_on_the_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "CHUNK", 300)
    matrix = np.random.default_rng(0).normal(size=(1100, 4))
    names = write_features(tmp_path / "mat", matrix)
    packed = pack(tmp_path, names, np.zeros(4), np.ones(4), workers=2)
    assert np.array_equal(packed.rows, features.normalise(matrix, np.zeros(4), np.ones(4)))


def test_a_second_stage_reads_no_feature_file(tmp_path, packable, monkeypatch):
    names, _, mean, std = packable
    first = pack(tmp_path, names, mean, std)
    monkeypatch.setattr(features, "read_mat", lambda *_: pytest.fail("a feature file was read again"))
    assert pack(tmp_path, names, mean, std).key == first.key


def change_content(path, names, mean, std):
    features.write_mat(path, features.FEATURE_KEY, np.zeros((1, mean.size)))


def change_behind_the_time_stamp(path, names, mean, std):
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-8:] = np.float64(2.5).tobytes()
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and path.stat().st_mtime_ns == before.st_mtime_ns


def change_norm_terms(path, names, mean, std):
    mean[0] += 1e-9


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
    key = pack(tmp_path, names, mean, std).key
    cache = tmp_path / "cache" / f"{key}.npy"
    cache.write_bytes(cache.read_bytes()[:-100])
    assert np.array_equal(pack(tmp_path, names, mean, std).rows, features.normalise(matrix, mean, std))


def test_infinite_features_are_clipped_and_named(tmp_path, packable, capsys):
    names, matrix, mean, std = packable
    bad = matrix[5].copy()
    bad[0] = -np.inf
    features.write_mat(features.feature_paths(tmp_path / "mat", names)[5], features.FEATURE_KEY, bad[None])
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
        features.write_mat(tmp_path / name, "Audio_data", value)
    assert np.array_equal(loadmat(tmp_path / "a.mat")["Audio_data"], value)
    assert (tmp_path / "a.mat").read_bytes() == (tmp_path / "b.mat").read_bytes()


def test_files_that_matlab_compressed_are_read(tmp_path):
    savemat(tmp_path / "c.mat", {"Audio_data": np.array([[1.0, 2.0]])}, do_compression=True)
    assert features.read_feature(tmp_path / "c.mat").tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"\0" * 200, "damaged"),
        (b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + b"\xff" * 64, "damaged"),
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
