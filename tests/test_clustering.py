"""k-means, uniform sampling and NMI."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from sklearn import metrics

from deepmi import clustering, ranks
from deepmi.process import UserError

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")


def clusters_of(*sizes: int) -> torch.Tensor:
    """A shuffled assignment with clusters of these sizes."""
    ordered = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return ordered[torch.randperm(len(ordered), generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize(
    ("sizes", "given"),
    [
        ((70, 20, 8, 0, 5), [0, 25, 26, 26, 26]),  # an empty cluster in the middle
        ((0, 30, 12, 0, 0), [0, 0, 0, 21, 21]),  # and at both ends
        ((1, 1, 1, 1), [1, 1, 1, 1]),
        ((1,), [1]),
        ((0, 0, 2, 1, 0), [0, 0, 0, 1, 2]),
        ((1, 0, 0, 50_000, 0, 49_999), [0, 0, 0, 33_333, 33_333, 33_334]),
    ],
)
def test_a_uniform_sample_has_the_same_number_from_each_cluster(sizes, given):
    assignment = clusters_of(*sizes)
    for seed in range(5):
        sampled = clustering.uniform_sample(assignment, len(sizes), seed)
        counts = torch.bincount(assignment[sampled], minlength=len(sizes))
        assert sampled.dtype == torch.int64 and sampled.shape == assignment.shape
        assert sorted(counts.tolist()) == given
        assert ((counts > 0) == (torch.tensor(sizes) > 0)).all()


@pytest.mark.parametrize("sizes", [(90, 10), (3, 0, 500, 61, 2), (20, 20, 20), (150_000, 0, 50_000, 100_000)])
def test_large_clusters_are_sampled_without_replacement_and_small_ones_with(sizes):
    assignment = clusters_of(*sizes)
    sampled = clustering.uniform_sample(assignment, len(sizes), seed=1)
    for cluster, size in enumerate(sizes):
        mine = sampled[assignment[sampled] == cluster]
        distinct = len(mine.unique())
        if len(mine) <= size:
            assert distinct == len(mine)
        else:
            assert size / 2 < distinct <= size  # a share of over twice the size misses few members
    # 1000 draws of 900 with replacement miss about exp(-10/9) of them, although the cluster is hardly too small
    sampled = clustering.uniform_sample(assignment := clusters_of(900, 1100), 2, seed=0)
    assert len(sampled[assignment[sampled] == 0].unique()) == pytest.approx(900 * (1 - np.exp(-10 / 9)), abs=40)


def test_every_member_of_a_cluster_and_every_position_is_equally_likely():
    assignment = torch.tensor([1, 0, 0, 2, 0, 1, 0, 0, 0])  # shares of 3 from clusters of 6, 2 and 1
    runs = 3000
    sampled = torch.stack([clustering.uniform_sample(assignment, 3, seed) for seed in range(runs)])
    expected = torch.tensor([3 / 2, 3 / 6, 3 / 6, 3, 3 / 6, 3 / 2, 3 / 6, 3 / 6, 3 / 6])
    for counts, total in [(sampled, runs), *((sampled[:, place], runs / 9) for place in range(9))]:
        counts = torch.bincount(counts.flatten(), minlength=9)
        # 5 standard deviations of independent draws; draws without replacement vary less
        assert ((counts - expected * total).abs() <= 5 * (expected * total).sqrt()).all()


def test_the_clusters_that_give_one_more_are_random():
    assignment = clusters_of(4, 0, 4, 3)  # 11 draws of three clusters: two of them give 4
    sampled = torch.stack([clustering.uniform_sample(assignment, 4, seed) for seed in range(900)])
    counts = torch.bincount(assignment[sampled].flatten(), minlength=4).tolist()
    assert counts.pop(1) == 0
    assert counts == pytest.approx([900 * 11 / 3] * 3, abs=75)  # 5 standard deviations


def test_a_sample_follows_its_seed_and_uses_no_global_generator():
    assignment = clusters_of(30, 30)
    before = torch.get_rng_state()
    one, again, different = (clustering.uniform_sample(assignment, 2, seed) for seed in (1, 1, 2))
    assert (one == again).all() and (one != different).any()
    assert (torch.get_rng_state() == before).all()


@on_cuda
def test_uniform_sampling_never_waits_for_the_gpu():
    assignment = clusters_of(50_000, 0, 9, 70_000).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        sampled, again = (clustering.uniform_sample(assignment, 4, seed=0) for _ in range(2))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sampled.is_cuda and (sampled == again).all()
    assert sorted(torch.bincount(assignment[sampled], minlength=4).tolist()) == [0, 40_003, 40_003, 40_003]


def by_faiss(points: torch.Tensor, k: int, seed: int) -> clustering.Clustering:
    return clustering._kmeans_faiss(points, k, seed, False)


def by_torch(points: torch.Tensor, k: int, seed: int) -> clustering.Clustering:
    return clustering._kmeans_torch(points, len(points), k, seed)


def blobs(n: int, k: int, spread: float = 1.0) -> tuple[torch.Tensor, np.ndarray]:
    """Points (n, 64) in k groups, and their groups (n,)."""
    rng = np.random.default_rng(0)
    groups = rng.integers(k, size=n)
    points = spread * rng.normal(size=(k, 64))[groups] + rng.normal(size=(n, 64))
    return torch.from_numpy(points.astype(np.float32)), groups


@pytest.mark.parametrize("kmeans", [by_faiss, by_torch])
def test_kmeans_finds_separate_groups(kmeans):
    points, groups = blobs(200, 4, spread=20)
    # One start may end in a local minimum
    assert max(clustering.nmi(kmeans(points, 4, seed).assignment, groups) for seed in range(5)) == pytest.approx(1)


@pytest.mark.parametrize("kmeans", [by_faiss, by_torch])
def test_points_belong_to_the_nearest_centroid(kmeans):
    points, _ = blobs(300, 10)
    result, again, different = (kmeans(points, 10, seed) for seed in (3, 3, 4))
    assignment = result.assignment.numpy()
    assert (result.assignment == again.assignment).all() and (result.assignment != different.assignment).any()
    assert result.assignment.dtype == torch.int64 and result.sizes.dtype == np.int64
    assert result.sizes.tolist() == np.bincount(assignment, minlength=10).tolist()
    assert result.non_empty == (result.sizes > 0).sum()
    means = np.stack([points.numpy()[assignment == cluster].mean(axis=0) for cluster in range(10)])
    distances = ((points.numpy()[:, None] - means) ** 2).sum(axis=2)
    # 20 iterations are close to converged: nearly all points are nearest to the mean of their own cluster
    assert (distances.argmin(axis=1) == assignment).mean() > 0.95
    assert result.objective == pytest.approx(distances.min(axis=1).mean(), rel=0.02)


@pytest.mark.parametrize(("n", "k", "spread"), [(300, 50, 0), (5000, 50, 0), (2000, 20, 1)])
def test_torch_clusters_as_well_as_faiss(n, k, spread):
    points, _ = blobs(n, k, spread)
    found = [np.mean([kmeans(points, k, seed).objective for seed in range(5)]) for kmeans in (by_faiss, by_torch)]
    assert found[1] == pytest.approx(found[0], rel=0.03)


def test_torch_fills_empty_clusters():
    points = blobs(30, 3)[0].repeat(10, 1)  # ten copies of each point, so some initial centroids are equal
    assert by_torch(points, 25, 0).non_empty == 25


def test_the_size_of_blocks_changes_nothing(monkeypatch):
    points, _ = blobs(1000, 20)
    whole = by_torch(points, 20, 0)
    monkeypatch.setattr(clustering, "BLOCK_ROWS", 77)
    assert clustering.nmi(whole.assignment, by_torch(points, 20, 0).assignment) > 0.99


def test_shares_on_two_ranks_cluster_as_one_process_does(monkeypatch):
    """Two threads act as ranks; a sum waits for both."""
    points, _ = blobs(501, 8)
    this, meeting, parts = threading.local(), threading.Barrier(2, timeout=60), {}

    def sum_over_ranks(own):
        parts[this.rank] = own
        meeting.wait()
        total = parts[0] + parts[1]
        meeting.wait()
        return total

    def cluster(rank):
        this.rank = rank
        return clustering.kmeans(points[ranks.own_share(501)], 8, 5, count=501)

    expected = by_torch(points, 8, 5)
    monkeypatch.setattr(ranks, "rank", lambda: this.rank)
    for module in (ranks, clustering):
        monkeypatch.setattr(module, "num_ranks", lambda: 2)
        monkeypatch.setattr(module, "sum_over_ranks", sum_over_ranks)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(cluster, range(2)))
    for found in results:
        assert clustering.nmi(found.assignment, expected.assignment) > 0.99
        assert found.sizes.tolist() == np.bincount(found.assignment, minlength=8).tolist()
        assert found.objective == pytest.approx(expected.objective, rel=1e-3)


@on_cuda
def test_a_gpu_clusters_as_well_as_the_cpu():
    points, _ = blobs(5000, 50, 0)
    expected, found = clustering.kmeans(points, 50, seed=0), clustering.kmeans(points.cuda(), 50, seed=0)
    assert found.assignment.is_cuda and found.objective == pytest.approx(expected.objective, rel=0.05)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_features_that_are_not_finite_and_more_clusters_than_points_are_refused(value):
    points = torch.zeros(4, 2)
    with pytest.raises(UserError, match=r"-nc 9.*4 utterances"):
        clustering.kmeans(points, 9, seed=0)
    points[1, 1] = value
    with pytest.raises(UserError, match="NaN or infinite"):
        clustering.kmeans(points, 2, seed=0)


def test_nmi_equals_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 5, 200), rng.integers(3, 9, 200)
    expected = metrics.normalized_mutual_info_score(first, second)
    assert clustering.nmi(first, torch.from_numpy(second)) == pytest.approx(expected)
    assert clustering.nmi(first, (first + 7) % 5) == pytest.approx(1.0)
    assert clustering.nmi([0, 0], [1, 1]) == 1.0
