"""k-means, uniform draws and NMI."""

import subprocess
import sys

import numpy as np
import pytest
import torch
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
def test_uniform_draws_take_the_same_number_from_each_cluster(sizes, given, seed):
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
    assignment = result.assignment.numpy()
    assert result.sizes.tolist() == np.bincount(assignment, minlength=10).tolist()
    assert result.non_empty == (result.sizes > 0).sum()
    means = np.stack([points[assignment == c].mean(axis=0) for c in range(10)])
    distances = ((points[:, None] - means[None]) ** 2).sum(axis=2)
    # 20 iterations are close to converged: nearly all points are nearest to their own cluster's mean
    assert (distances.argmin(axis=1) == assignment).mean() > 0.95


def test_kmeans_is_its_seeds():
    points = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    one, again, other = (clustering.kmeans(points, 10, seed).assignment for seed in (1, 1, 2))
    assert (one == again).all() and (one != other).any()


def test_kmeans_takes_tensors_and_arrays_alike_and_returns_tensors():
    points = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    one, other = clustering.kmeans(points, 5, seed=0), clustering.kmeans(points.numpy(), 5, seed=0, device="cpu")
    assert one.assignment.dtype == torch.int64 and one.assignment.shape == (200,)
    assert one.sizes.dtype == np.int64 and type(one.objective) is float
    assert (one.assignment == other.assignment).all() and one.objective == other.objective


def groups(kind: str, n: int, k: int, seed: int) -> torch.Tensor:
    """Points (n, 64): k `blobs`, one blob of `noise`, or `copies`, ten of each row."""
    rng = np.random.default_rng(seed)
    if kind == "blobs":
        points = (rng.normal(size=(k, 64)) * 3)[rng.integers(k, size=n)] + rng.normal(size=(n, 64))
    elif kind == "noise":
        points = rng.normal(size=(n, 64))
    else:  # whole numbers: their products are exact, so ties of equal initial centroids are ties in any arithmetic
        points = rng.integers(-8, 9, size=(n // 10, 64))[rng.permutation(n) % (n // 10)]
    return torch.from_numpy(points.astype(np.float32))


def both_ways(points: torch.Tensor, k: int, seed: int) -> tuple[clustering.Clustering, clustering.Clustering]:
    """The clustering by faiss and the one by torch."""
    return clustering._kmeans_faiss(points.numpy(), k, seed, False), clustering._kmeans_torch(points, k, seed)


def assert_same(one: clustering.Clustering, other: clustering.Clustering) -> None:
    """The same clustering, but for points that float32 can't tell apart."""
    differing = int((one.assignment != other.assignment).sum())
    assert differing <= len(one.assignment) / 1000
    assert np.abs(one.sizes - other.sizes).sum() <= 2 * differing
    assert other.sizes.dtype == np.int64 and other.assignment.dtype == torch.int64
    assert other.objective == pytest.approx(one.objective, rel=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
@pytest.mark.parametrize(
    ("kind", "n", "k"),
    [
        ("noise", 3, 2),
        ("noise", 60, 50),
        ("noise", 300, 50),
        ("noise", 1000, 20),
        ("noise", 5000, 50),
        ("blobs", 500, 2),
        ("blobs", 2000, 20),
        ("blobs", 5000, 50),
        ("copies", 1000, 10),
        ("copies", 5000, 50),
    ],
)
def test_torch_clusters_as_faiss_does(kind, n, k, seed):
    assert_same(*both_ways(groups(kind, n, k, seed), k, seed))


@pytest.mark.parametrize("seed", range(4))
def test_torch_splits_empty_clusters_as_faiss_does(seed, monkeypatch):
    splits, rule = [], clustering._donors_of_empty_clusters

    def spy(sizes, n):
        splits.append(rule(sizes, n))
        return splits[-1]

    monkeypatch.setattr(clustering, "_donors_of_empty_clusters", spy)
    assert_same(*both_ways(groups("copies", 3000, 50, seed), 50, seed))
    assert len(splits) == clustering.ITERATIONS
    assert sum(map(len, splits)) >= 2


@pytest.mark.parametrize(("n", "k", "near"), [(51, 50, 3), (1000, 50, 1), (5000, 50, 5), (3000, 400, 10)])
def test_many_empty_clusters_get_faiss_own_centroids(n, k, near):
    import faiss

    rng = np.random.default_rng(n)
    points = rng.normal(size=(n, 15)).astype(np.float32)
    start = rng.normal(size=(k, 15)).astype(np.float32)
    start[rng.permutation(k)[near:]] += 100  # nearest to no point
    expected = faiss.Kmeans(15, k, niter=1, min_points_per_centroid=1, max_points_per_centroid=n)
    expected.train(points, init_centroids=start)

    points = torch.from_numpy(points)
    _, sums, sizes, objective = clustering._assign(points, points.square().sum(dim=1), torch.from_numpy(start))
    centroids = sums / sizes.clamp(min=1)[:, None]
    pairs = clustering._donors_of_empty_clusters(sizes.numpy(), n)
    for empty, donor in pairs:
        clustering._split(centroids, empty, donor)
    assert len(pairs) == expected.iteration_stats[0]["nsplit"] >= k - near
    assert centroids.numpy() == pytest.approx(expected.centroids, abs=2e-6)
    assert objective.item() == pytest.approx(expected.obj[0], rel=1e-5)


def test_as_many_clusters_as_points_leave_each_alone():
    points = groups("noise", 30, 30, 0)
    for result in both_ways(points, 30, seed=5):
        assert result.assignment.tolist() == list(range(30))
        assert result.sizes.tolist() == [1] * 30 and result.objective == 0


def test_blocks_of_any_size_cluster_alike(monkeypatch):
    points = groups("blobs", 1000, 20, 0)
    whole = clustering._kmeans_torch(points, 20, seed=0)
    monkeypatch.setattr(clustering, "BLOCK_ROWS", 77)
    assert_same(whole, clustering._kmeans_torch(points, 20, seed=0))


def test_torch_reads_from_the_device_once_an_iteration():
    points = groups("copies", 500, 20, 0)
    with WaitSpy() as spy:
        clustering._kmeans_torch(points, 20, seed=0)
    assert spy.seen == ["_local_scalar_dense"]  # the objective; the sizes go by copies, once an iteration


def test_tf32_is_off_in_kmeans_and_back_afterwards(monkeypatch):
    settings = torch.backends.cuda.matmul
    seen, assign = [], clustering._assign
    monkeypatch.setattr(clustering, "_assign", lambda *a: (seen.append(settings.fp32_precision), assign(*a))[1])
    before, settings.fp32_precision = settings.fp32_precision, "tf32"
    try:
        clustering._kmeans_torch(groups("noise", 50, 2, 0), 2, seed=0)
        assert set(seen) == {"ieee"} and settings.fp32_precision == "tf32"
    finally:
        settings.fp32_precision = before


@on_cuda
@pytest.mark.parametrize(("kind", "n", "k"), [("noise", 1000, 20), ("blobs", 5000, 50), ("copies", 5000, 50)])
def test_a_gpu_clusters_as_the_cpu_does(kind, n, k):
    points = groups(kind, n, k, 0)
    expected, found = clustering.kmeans(points, k, seed=0), clustering.kmeans(points.cuda(), k, seed=0)
    again = clustering._kmeans_torch(points.cuda(), k, seed=0)
    assert found.assignment.is_cuda and again.assignment.is_cuda
    for result in (found, again):
        result.assignment = result.assignment.cpu()
        assert_same(expected, result)
    assert clustering.kmeans(points, k, seed=0, device="cuda").assignment.device.type == "cpu"


def test_more_clusters_than_points_are_refused():
    with pytest.raises(UserError, match=r"-nc 9.*4 utterances"):
        clustering.kmeans(torch.zeros(4, 2), 9, seed=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_features_that_are_not_finite_are_refused(value):
    points = torch.zeros(4, 2)
    points[1, 1] = value
    with pytest.raises(UserError, match="not finite"):
        clustering.kmeans(points, 2, seed=0)


def test_nmi_of_the_same_partition_is_1_whatever_its_names():
    assert clustering.nmi(np.array([0, 0, 1, 1]), np.array([5, 5, 2, 2])) == pytest.approx(1.0)
    assert clustering.nmi(torch.tensor([0, 0, 1, 1]), np.array([0, 1, 0, 1])) == pytest.approx(0.0, abs=1e-12)


def test_torch_and_faiss_compute_in_one_process_in_the_order_the_program_imports_them():
    code = (
        "from deepmi import clustering; import numpy, torch; x = torch.randn(512, 256); (x @ x.T).sum();"
        "print(clustering.kmeans(x, 8, 0).sizes.sum()); (x @ x.T).sum()"
    )
    root = clustering.__file__.rsplit("/", 1)[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "512", done.stderr
