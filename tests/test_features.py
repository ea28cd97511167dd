"""Moments, normalising and packing of feature files."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deepmi import features, matfile
from deepmi.moments import Moments
from deepmi.process import UserError


def file_of(folder, name):
    return Path(features.feature_file(folder, name))


def write_features(folder, matrix):
    folder.mkdir(exist_ok=True)
    names = [f"u{i:05d}.wav" for i in range(len(matrix))]
    for name, row in zip(names, matrix):
        matfile.write_mat(file_of(folder, name), features.FEATURE_KEY, row[None])
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


@pytest.mark.parametrize("count", [1, 64, 65, 200])
def test_moments_are_numpys_in_float64_on_adversarial_columns(tmp_path, count):
    matrix = adversarial(count)
    mean, std = features.feature_moments(tmp_path / "mat", write_features(tmp_path / "mat", matrix), workers=1)
    exact = matrix.astype(np.longdouble)
    assert np.allclose(mean, exact.mean(axis=0).astype(float), rtol=1e-13, atol=0)
    assert np.allclose(std, exact.std(axis=0).astype(float), rtol=1e-9, atol=0)
    assert std[3] == 0 and std[4] == 0  # exactly: a constant feature has one minimum and maximum


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", ["whole", "nan"])
def test_the_moments_of_a_chunk_are_those_of_the_plain_formulas_to_the_last_bit(kind):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(64, 30)) * 10.0 ** rng.integers(-9, 13, 30)
    rows[:, 0], rows[:, 1] = 0.1, np.where(rng.random(64) < 0.5, 0.0, -0.0)  # a constant, zeros of both signs
    if kind == "nan":
        rows[rng.random(rows.shape) < 0.05] = np.nan
        rows[:, 2] = np.nan
    observed = ~np.isnan(rows)
    count = observed.sum(axis=0)
    filled = np.where(observed, rows, 0.0)
    mean = filled.sum(axis=0) / np.maximum(count, 1)
    deviations = np.where(observed, filled - mean, 0.0)
    squares = np.einsum("bd,bd->d", deviations, deviations)
    expected = {"mean": mean, "squares": squares, "low": np.nanmin(rows, axis=0), "high": np.nanmax(rows, axis=0)}
    moments = Moments.of(rows)
    assert np.array_equal(np.broadcast_to(moments.count, 30), count)
    for name, value in expected.items():
        assert np.array_equal(getattr(moments, name), value, equal_nan=True), name


def test_a_nan_counts_as_not_observed_and_infinite_features_have_no_moments(tmp_path):
    matrix = np.array([[1.0, np.nan], [3.0, 2.0], [8.0, 6.0]])
    mean, std = features.feature_moments(tmp_path / "mat", write_features(tmp_path / "mat", matrix), 1)
    assert mean == pytest.approx([4.0, 4.0]) and std == pytest.approx([matrix[:, 0].std(), 2.0])
    matrix[1, 0] = np.inf
    with pytest.raises(UserError, match=r"infinite.*u00001\.mat"):
        features.feature_moments(tmp_path / "mat", write_features(tmp_path / "mat", matrix), 1)


def test_normalise_is_z_norm_clipped_with_nan_and_constants_at_0():
    x = np.array([[1.0, 2.0, 100.0, np.nan, 5.0, -1e300]])
    mean, std = np.array([0.0, 2.0, 0.0, 0.0, 4.0, 0.0]), np.array([2.0, 1.0, 1.0, 1.0, 0.0, 1e-300])
    z = features.normalise(x, mean, std)
    assert z.tolist() == [[0.5, 0.0, 3.0, 0.0, 0.0, -3.0]] and z.dtype == np.float32
    assert features.normalise(np.array([1.45e12 + 1.0]), np.array([1.45e12]), np.array([2.0])) == 0.5  # in float64


def pack(folder, names, mean, std, workers=1):
    return features.pack_features(folder / "mat", names, mean, std, folder / "cache", workers)


@pytest.fixture
def packable(tmp_path):
    """(names, matrix, mean, standard deviation) of feature files."""
    matrix = adversarial(70)
    return write_features(tmp_path / "mat", matrix), matrix, matrix.mean(axis=0), matrix.std(axis=0)


def test_packed_rows_are_the_normalised_files_by_name_and_are_read_once(tmp_path, packable, monkeypatch):
    names, matrix, mean, std = packable
    monkeypatch.setattr(features, "Parallel", lambda *_, **__: pytest.fail("workers were started for few files"))
    shuffled = [names[i] for i in np.random.default_rng(0).permutation(len(names))]
    packed = pack(tmp_path, shuffled, mean, std, workers=4)
    assert packed.names == names and packed.rows.dtype == np.float32 and isinstance(packed.rows, np.memmap)
    assert np.array_equal(packed.rows, features.normalise(matrix, mean, std))
    (cache,) = (tmp_path / "cache").glob("*.npy")
    assert cache == features.cache_file(tmp_path / "mat", shuffled, mean, std, tmp_path / "cache")
    assert json.loads(cache.with_suffix(".json").read_text()) == {"content": packed.key, "names": names}
    monkeypatch.setattr(features, "read_mat", lambda *_: pytest.fail("a feature file was read again"))
    assert pack(tmp_path, names, mean, std).key == packed.key


def test_the_result_does_not_depend_on_the_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "START_UP", 0)  # workers join after the first chunk, however little is left
    monkeypatch.setattr(features, "WAVE", 3)
    monkeypatch.setattr(features, "BLOCK", 100)
    matrix = np.random.default_rng(0).normal(size=(500, 4)) + 1e9
    names, found = write_features(tmp_path / "mat", matrix), []
    for workers in (1, 2):
        moments = features.feature_moments(tmp_path / "mat", names, workers)
        packed = pack(tmp_path, names, *moments, workers)
        assert np.array_equal(packed.rows, features.normalise(matrix, *moments))
        (cache,) = (tmp_path / "cache").glob("*.npy")
        found.append((moments[0].tobytes(), moments[1].tobytes(), packed.key, cache.name))
        shutil.rmtree(tmp_path / "cache")
    assert found[0] == found[1]


def test_the_key_depends_on_names_and_content_but_not_on_times_and_folder(tmp_path, packable):
    names, _, mean, std = packable
    key = pack(tmp_path, names, mean, std).key
    shutil.copytree(tmp_path / "mat", tmp_path / "elsewhere" / "mat", copy_function=shutil.copyfile)
    assert pack(tmp_path / "elsewhere", names, mean, std).key == key
    file_of(tmp_path / "mat", names[0]).rename(tmp_path / "mat" / "0000.mat")
    assert pack(tmp_path, ["0000.wav", *names[1:]], mean, std).key != key


@pytest.mark.parametrize("change", ["content", "content behind the time stamp", "statistics", "file list"])
def test_a_stale_cache_is_never_used(tmp_path, packable, change):
    names, _, mean, std = packable
    first = pack(tmp_path, names, mean, std)
    if change == "statistics":
        mean[0] += 1
    elif change == "file list":
        names.pop()
    else:
        path = file_of(tmp_path / "mat", names[3])
        before = path.stat()
        path.write_bytes(path.read_bytes()[:-8] + np.float64(2.5).tobytes())
        if change != "content":
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = pack(tmp_path, names, mean, std)
    assert second.key != first.key
    matrix = np.stack([features.read_feature(file_of(tmp_path / "mat", name)) for name in names])
    assert np.array_equal(second.rows, features.normalise(matrix, mean, std))


@pytest.mark.parametrize("spoil", [lambda data: data[:-100], lambda data: b"\x93NUMPY\x01\x00" + data[:9], None])
def test_a_damaged_cache_is_built_again(tmp_path, packable, spoil):
    names, matrix, mean, std = packable
    pack(tmp_path, names, mean, std)
    (cache,) = (tmp_path / "cache").glob("*.npy")
    if spoil:
        cache.write_bytes(spoil(cache.read_bytes()))
    else:
        features.write_index(cache, "0" * 64, [*names, "one more.wav"])
    assert np.array_equal(pack(tmp_path, names, mean, std).rows, features.normalise(matrix, mean, std))


def test_infinite_features_are_clipped_and_named(tmp_path, packable, capsys):
    names, matrix, mean, std = packable
    matrix[5, 0] = -np.inf
    matfile.write_mat(file_of(tmp_path / "mat", names[5]), features.FEATURE_KEY, matrix[5:6])
    assert pack(tmp_path, names, mean, std).rows[5, 0] == -3
    assert "u00005.mat" in capsys.readouterr().err


def test_every_damaged_file_is_counted_and_nothing_is_left(tmp_path, packable):
    names, _, mean, std = packable
    for index in (10, 68):
        file_of(tmp_path / "mat", names[index]).write_bytes(b"broken")
    with pytest.raises(UserError, match=r"u00010\.mat.*damaged.*and 1 more of 70"):
        pack(tmp_path, names, mean, std)
    assert not list((tmp_path / "cache").iterdir())


def test_two_processes_that_pack_at_once_give_one_complete_matrix(tmp_path, packable):
    names, _, mean, std = packable
    np.savez(tmp_path / "stats.npz", mean=mean, std=std)
    code = (
        "import sys, numpy as np; from deepmi import features; stats = np.load('stats.npz');"
        f"features.pack_features('mat', {names!r}, stats['mean'], stats['std'], 'cache', 1)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(features.__file__).parents[1])}
    runs = [subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment) for _ in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    (matrix,) = (tmp_path / "cache").glob("*.npy")
    alone = features.pack_features(tmp_path / "mat", names, mean, std, tmp_path / "alone", 1)
    assert np.array_equal(np.load(matrix), alone.rows)
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".json", ".npy"]
