"""k-means, uniform sampling and NMI."""

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from conftest import ROOT
from sklearn import metrics
from torch.utils._python_dispatch import TorchDispatchMode

from deepmi import clustering
from deepmi.process import UserError

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")


def clusters_of(*sizes: int) -> torch.Tensor:
    """An assignment, shuffled, with clusters of these sizes."""
    ordered = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return ordered[torch.randperm(len(ordered), generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize(
    ("sizes", "given"),
    [
        ((70, 20, 8, 0, 5), [0, 25, 26, 26, 26]),  # an empty cluster in the middle
        ((0, 30, 12, 0, 0), [0, 0, 0, 21, 21]),  # and at both ends
        ((1, 1, 1, 1), [1, 1, 1, 1]),
        ((40,), [40]),
        ((1,), [1]),
        ((0, 0, 2, 1, 0), [0, 0, 0, 1, 2]),
        ((1, 0, 0, 50_000, 0, 49_999), [0, 0, 0, 33_333, 33_333, 33_334]),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_uniform_samples_take_the_same_number_from_each_cluster(sizes, given, seed):
    assignment = clusters_of(*sizes)
    drawn = clustering.uniform_sample(assignment, len(sizes), seed)
    counts = torch.bincount(assignment[drawn], minlength=len(sizes))
    assert drawn.dtype == torch.int64 and drawn.shape == assignment.shape
    assert sorted(counts.tolist()) == given
    assert ((counts > 0) == (torch.tensor(sizes) > 0)).all()


@pytest.mark.parametrize("sizes", [(90, 10), (3, 0, 500, 61, 2), (20, 20, 20), (150_000, 0, 50_000, 100_000)])
def test_large_clusters_are_drawn_without_replacement_and_small_ones_with(sizes):
    assignment = clusters_of(*sizes)
    drawn = clustering.uniform_sample(assignment, len(sizes), seed=1)
    for cluster, size in enumerate(sizes):
        mine = drawn[assignment[drawn] == cluster]
        distinct = len(mine.unique())
        if len(mine) <= size:
            assert distinct == len(mine)
        else:
            assert size / 2 < distinct <= size  # a share of over twice the size misses few members


def test_a_cluster_slightly_smaller_than_its_share_is_drawn_with_replacement():
    assignment = clusters_of(900, 1100)
    drawn = clustering.uniform_sample(assignment, 2, seed=0)
    # 1000 draws of 900 with replacement leave about exp(-10/9) of them out
    assert len(drawn[assignment[drawn] == 0].unique()) == pytest.approx(900 * (1 - np.exp(-10 / 9)), abs=40)


def test_each_member_of_a_cluster_is_as_likely_drawn_and_in_any_place():
    assignment = torch.tensor([1, 0, 0, 2, 0, 1, 0, 0, 0])  # shares of 3 from clusters of 6, 2 and 1
    runs = 3000
    drawn = torch.stack([clustering.uniform_sample(assignment, 3, seed) for seed in range(runs)])
    expected = torch.tensor([3 / 2, 3 / 6, 3 / 6, 3, 3 / 6, 3 / 2, 3 / 6, 3 / 6, 3 / 6])
    for counts, total in [(drawn, runs), *((drawn[:, place], runs / 9) for place in range(9))]:
        counts = torch.bincount(counts.flatten(), minlength=9)
        # 5 standard deviations of independent draws; draws without replacement vary less
        assert ((counts - expected * total).abs() <= 5 * (expected * total).sqrt()).all()


def test_which_clusters_give_one_more_is_drawn_fairly():
    assignment = clusters_of(4, 0, 4, 3)  # 11 draws of three clusters: two of them give 4
    counts = sum(
        torch.bincount(assignment[clustering.uniform_sample(assignment, 4, s)], minlength=4) for s in range(900)
    )
    assert counts[1] == 0
    assert counts[[0, 2, 3]].tolist() == pytest.approx([900 * 11 / 3] * 3, abs=75)  # 5 standard deviations


def test_every_batch_mixes_the_clusters():
    assignment = torch.arange(5).repeat_interleave(200)
    first = assignment[clustering.uniform_sample(assignment, 5, seed=0)[:100]]
    assert torch.bincount(first, minlength=5).min() >= 8


def test_draws_are_their_seeds_and_leave_other_generators_alone():
    assignment = clusters_of(30, 30)
    before = torch.get_rng_state()
    one, again, other = (clustering.uniform_sample(assignment, 2, seed) for seed in (1, 1, 2))
    assert (one == again).all() and (one != other).any()
    assert (torch.get_rng_state() == before).all()


class WaitSpy(TorchDispatchMode):
    """Notes the operations that would wait for a CUDA device: numbers read out, shapes that depend on values."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique", "equal", "repeat_interleave")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.overloadpacket.__name__
        masks = [x for x in torch.utils._pytree.tree_leaves(arguments) if getattr(x, "dtype", None) == torch.bool]
        if name.startswith(self.WAITING) or (name.startswith("index") and masks):
            self.seen.append(name)
        return function(*arguments, **(keywords or {}))


def test_uniform_draws_never_wait_for_the_device():
    assignment = clusters_of(5, 0, 9)
    with WaitSpy() as spy:
        clustering.uniform_sample(assignment, 3, seed=0)
    assert spy.seen == []
    with spy:  # and the spy is awake
        assignment[assignment > 1].sum().item()
    assert spy.seen == ["index", "_local_scalar_dense"]


@on_cuda
def test_uniform_draws_never_wait_for_a_real_device():
    assignment = clusters_of(50_000, 0, 9, 70_000).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        drawn, again = (clustering.uniform_sample(assignment, 4, seed=0) for _ in range(2))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert drawn.is_cuda and (drawn == again).all()
    assert torch.bincount(assignment[drawn], minlength=4).tolist().count(0) == 1
    assert torch.bincount(assignment[drawn]).max() - 120_009 // 3 <= 1


BACKENDS = [clustering._kmeans_faiss, clustering._kmeans_torch]


def blobs(n: int, k: int, seed: int) -> torch.Tensor:
    """Points (n, 64) in k overlapping groups."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(k, 64))[rng.integers(k, size=n)] + rng.normal(size=(n, 64))
    return torch.from_numpy(points.astype(np.float32))


def by(backend, points, k, seed):
    more = (False,) if backend is clustering._kmeans_faiss else ()
    arguments = (points, k, seed) if more else (points, len(points), k, seed)
    return backend(*arguments, *more)


@pytest.mark.parametrize("backend", BACKENDS)
def test_kmeans_finds_separated_groups(backend):
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(4), 50)
    points = torch.from_numpy(((rng.normal(size=(4, 16)) * 20)[truth] + rng.normal(size=(200, 16))).astype(np.float32))
    # One start may end in a local minimum; over a few seeds the groups are found.
    scores = [clustering.nmi(by(backend, points, 4, seed).assignment, truth) for seed in range(5)]
    assert max(scores) == pytest.approx(1.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_points_belong_to_the_nearest_centroid(backend):
    points = blobs(300, 10, 0)
    result = by(backend, points, 10, 3)
    assignment = result.assignment.numpy()
    assert result.assignment.dtype == torch.int64 and result.sizes.dtype == np.int64 and result.sizes.sum() == 300
    assert result.sizes.tolist() == np.bincount(assignment, minlength=10).tolist()
    assert result.non_empty == (result.sizes > 0).sum()
    means = np.stack([points.numpy()[assignment == c].mean(axis=0) for c in range(10)])
    distances = ((points.numpy()[:, None] - means[None]) ** 2).sum(axis=2)
    # 20 iterations are close to converged: nearly all points are nearest to the mean of their own cluster
    assert (distances.argmin(axis=1) == assignment).mean() > 0.95
    assert result.objective == pytest.approx(distances.min(axis=1).mean(), rel=0.02)


@pytest.mark.parametrize("backend", BACKENDS)
def test_kmeans_follows_its_seed(backend):
    points = blobs(300, 10, 0)
    one, again, other = (by(backend, points, 10, seed).assignment for seed in (1, 1, 2))
    assert (one == again).all() and (one != other).any()


@pytest.mark.parametrize(("n", "k"), [(300, 50), (2000, 20), (5000, 50)])
def test_torch_clusters_as_well_as_faiss(n, k):
    """On points without groups, whose objective hardly depends on the initial centroids."""
    points = torch.randn(n, 64, generator=torch.Generator().manual_seed(0))
    for seed in range(3):
        theirs, ours = (by(backend, points, k, seed).objective for backend in BACKENDS)
        assert ours == pytest.approx(theirs, rel=0.02)


def test_empty_clusters_are_filled_by_torch():
    points = blobs(30, 3, 0).repeat(10, 1)  # ten copies of each point, so some initial centroids are equal
    assert by(clustering._kmeans_torch, points, 25, 0).non_empty == 25


def test_blocks_of_any_size_cluster_alike(monkeypatch):
    points = blobs(1000, 20, 0)
    whole = by(clustering._kmeans_torch, points, 20, 0)
    monkeypatch.setattr(clustering, "BLOCK_ROWS", 77)
    assert clustering.nmi(whole.assignment, by(clustering._kmeans_torch, points, 20, 0).assignment) > 0.99


def test_shares_of_ranks_cluster_as_the_whole(monkeypatch):
    """Two threads stand for two ranks; sums wait for both."""
    points, k = blobs(501, 8, 0), 8
    expected = by(clustering._kmeans_torch, points, k, 5)
    rank, meeting, sums, results = threading.local(), threading.Barrier(2), [None, None], [None, None]
    shares = [slice(0, 250), slice(250, 501)]

    def sum_over_ranks(own):
        sums[rank.number] = own
        meeting.wait()
        total = sums[0] + sums[1]
        meeting.wait()
        return total

    def whole_of_shares(own, count):
        return sum_over_ranks(
            torch.zeros(count, dtype=own.dtype).index_copy(0, torch.arange(count)[shares[rank.number]], own)
        )

    monkeypatch.setattr(clustering, "own_share", lambda count: shares[rank.number])
    monkeypatch.setattr(clustering, "sum_over_ranks", sum_over_ranks)
    monkeypatch.setattr(clustering, "whole_of_shares", whole_of_shares)

    def run(number):
        rank.number = number
        results[number] = clustering._kmeans_torch(points[shares[number]], 501, k, 5)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for result in results:
        assert clustering.nmi(result.assignment, expected.assignment) > 0.99
        assert result.sizes.tolist() == np.bincount(result.assignment, minlength=k).tolist()
        assert result.objective == pytest.approx(expected.objective, rel=1e-3)


@on_cuda
def test_a_gpu_clusters_as_well_as_the_cpu():
    points = blobs(5000, 50, 0)
    expected, found = clustering.kmeans(points, 50, seed=0), clustering.kmeans(points.cuda(), 50, seed=0)
    assert found.assignment.is_cuda and found.objective == pytest.approx(expected.objective, rel=0.05)


def test_more_clusters_than_points_are_refused():
    with pytest.raises(UserError, match=r"-nc 9.*4 utterances"):
        clustering.kmeans(torch.zeros(4, 2), 9, seed=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_features_that_are_not_finite_are_refused(value):
    points = torch.zeros(4, 2)
    points[1, 1] = value
    with pytest.raises(UserError, match="NaN or infinite"):
        clustering.kmeans(points, 2, seed=0)


def test_nmi_is_scikit_learns():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 5, 200), rng.integers(3, 9, 200)
    expected = metrics.normalized_mutual_info_score(first, second)
    assert clustering.nmi(first, torch.from_numpy(second)) == pytest.approx(expected)
    assert clustering.nmi(first, (first + 7) % 5) == pytest.approx(1.0)
    assert clustering.nmi([0, 0], [1, 1]) == 1.0


def test_torch_and_faiss_compute_in_one_process_in_the_order_the_program_imports_them():
    code = (
        "from deepmi import clustering; import torch; x = torch.randn(512, 256); (x @ x.T).sum();"
        "print(clustering.kmeans(x, 8, 0).sizes.sum()); (x @ x.T).sum()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "512", done.stderr
