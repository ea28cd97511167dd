"""k-means, uniform draws and NMI."""

import subprocess
import sys

import numpy as np
import pytest

import clustering
from runtime import UserError


def test_uniform_draws_take_the_same_number_from_each_cluster():
    assignment = np.repeat([0, 1, 2, 4], [70, 20, 8, 5])  # cluster 3 is empty; N = 103, four clusters
    drawn = clustering.uniform_draws(assignment, seed=1)
    counts = np.bincount(assignment[drawn], minlength=5)
    assert len(drawn) == 103
    assert counts[3] == 0
    assert sorted(counts[[0, 1, 2, 4]]) == [25, 26, 26, 26]


def test_large_clusters_are_drawn_without_replacement_and_small_ones_with():
    assignment = np.repeat([0, 1], [90, 10])
    drawn = clustering.uniform_draws(assignment, seed=1)
    from_large, from_small = drawn[assignment[drawn] == 0], drawn[assignment[drawn] == 1]
    assert len(set(from_large)) == len(from_large) == 50
    assert len(from_small) == 50 and set(from_small) <= set(range(90, 100))


def test_every_batch_mixes_the_clusters():
    assignment = np.repeat(np.arange(5), 200)
    first = assignment[clustering.uniform_draws(assignment, seed=0)[:100]]
    assert np.bincount(first, minlength=5).min() >= 8


def test_draws_are_their_seeds():
    assignment = np.repeat([0, 1], [30, 30])
    one, again, other = (clustering.uniform_draws(assignment, seed) for seed in (1, 1, 2))
    assert (one == again).all() and (one != other).any()


def test_kmeans_finds_separated_groups():
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(4), 50)
    points = (rng.normal(size=(4, 16)) * 20)[truth] + rng.normal(size=(200, 16))
    # One start may end in a local minimum; over a few seeds the groups are found.
    scores = [clustering.nmi(clustering.kmeans(points, 4, seed).assignment, truth) for seed in range(5)]
    assert max(scores) == pytest.approx(1.0)


def test_kmeans_assigns_each_point_to_its_nearest_centroid_and_counts_sizes():
    points = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    result = clustering.kmeans(points, 10, seed=3)
    assert result.sizes.sum() == 300
    assert result.sizes.tolist() == np.bincount(result.assignment, minlength=10).tolist()
    assert result.non_empty == (result.sizes > 0).sum()
    means = np.stack([points[result.assignment == c].mean(axis=0) for c in range(10)])
    distances = ((points[:, None] - means[None]) ** 2).sum(axis=2)
    # 20 iterations are close to converged: nearly all points are nearest to their own cluster's mean
    assert (distances.argmin(axis=1) == result.assignment).mean() > 0.95


def test_kmeans_is_its_seeds():
    points = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    one, again, other = (clustering.kmeans(points, 10, seed).assignment for seed in (1, 1, 2))
    assert (one == again).all() and (one != other).any()


def test_more_clusters_than_points_are_refused():
    with pytest.raises(UserError, match=r"-nc 9.*4 utterances"):
        clustering.kmeans(np.zeros((4, 2), np.float32), 9, seed=0)


def test_features_that_are_not_finite_are_refused():
    points = np.zeros((4, 2), np.float32)
    points[1, 1] = np.nan
    with pytest.raises(UserError, match="not finite"):
        clustering.kmeans(points, 2, seed=0)


def test_nmi_of_the_same_partition_is_1_whatever_its_names():
    assert clustering.nmi(np.array([0, 0, 1, 1]), np.array([5, 5, 2, 2])) == pytest.approx(1.0)
    assert clustering.nmi(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])) == pytest.approx(0.0, abs=1e-12)


def test_torch_and_faiss_compute_in_one_process_in_the_order_the_program_imports_them():
    code = (
        "import clustering, numpy, torch; x = torch.randn(512, 256); (x @ x.T).sum();"
        "print(clustering.kmeans(x.numpy(), 8, 0).sizes.sum()); (x @ x.T).sum()"
    )
    root = clustering.__file__.rsplit("/", 1)[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "512", done.stderr
