"""k-means pseudo-labels, sampling that is uniform over clusters, and the similarity of two clusterings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch  # always before faiss: each brings its own OpenMP, and only this order is tested
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

import faiss  # isort: skip
from deepmi.metric import entropy, information_of_cells, joint_probability
from deepmi.process import UserError, num_ranks
from deepmi.ranks import own_share, sum_over_ranks, whole_of_shares
from deepmi.seeds import derived_seed

ITERATIONS = 20
MAX_POINTS_PER_CENTROID = 10_000_000  # faiss would subsample at 256 per centroid
BLOCK_ROWS = 65_536  # points whose distances are in memory at a time
SPLIT_STEP = 1 / 1024  # relative distance of the two halves of a split cluster from its centroid


@dataclass
class Clustering:
    """Pseudo-labels of N utterances.

    Attributes:
        assignment: cluster of each utterance, int64, shape (N,).
        sizes: utterances in each cluster, int64, shape (K,).
        objective: mean squared distance to the nearest centroid in the last iteration.
    """

    assignment: Tensor
    sizes: NDArray[np.int64]
    objective: float

    @property
    def non_empty(self) -> int:
        """Number of clusters with at least one utterance."""
        return int((self.sizes > 0).sum())


@contextlib.contextmanager
def on_one_thread() -> Iterator[None]:
    """Within the block, torch and faiss use one CPU thread: for many small trainings in parallel."""
    threads = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads[0])
        faiss.omp_set_num_threads(threads[1])


def kmeans(
    own: Tensor, num_clusters: int, seed: int, count: int | None = None, device: torch.device | None = None
) -> Clustering:
    """k-means with squared Euclidean distance, 20 iterations, one start, and all points.

    faiss computes it for a single process on a CPU, or on a CUDA GPU if faiss was built for GPUs. In all other cases,
    among them several ranks, torch does.

    Args:
        own: this rank's share of the features, float32, shape (size of `own_share(count)`, D).
        num_clusters: K.
        seed: seed of the initial centroids.
        count: N, the number of utterances over all ranks; by default all are in `own`.
        device: where to compute; by default the device of the features.
    Returns:
        `Clustering` of all N utterances, on every rank and on this device. A cluster may be empty.
    Raises:
        UserError: K is larger than N, or a feature is NaN or infinite.
    Source: Lin, Sridhar & Busso (2021), after Caron et al., ECCV 2018.
    """
    count, device = len(own) if count is None else count, device or own.device
    if num_clusters > count:
        raise UserError(f"-nc {num_clusters}: more clusters than the {count} utterances to cluster.")
    points = own.detach().to(device, torch.float32)
    if not sum_over_ranks(points.sum()).isfinite():
        raise UserError("the features of the network are NaN or infinite: training diverged. Try --precision fp32.")
    on_gpu = device.type == "cuda" and faiss.get_num_gpus() > 0
    if num_ranks() == 1 and (on_gpu or device.type == "cpu"):
        return _kmeans_faiss(points, num_clusters, seed, on_gpu)
    return _kmeans_torch(points, count, num_clusters, seed)


def repeated_kmeans(points: Tensor, num_clusters: int, restarts: int, seed: int) -> NDArray[np.int64]:
    """Clusters of the Train split for DeepMI by several k-means, each from a seed derived from `seed`.

    One CPU thread, so that DeepMI does not depend on the number of cores. More would hardly be faster: 20 k-means of
    44,879 utterances with K 50 take 12 s (benchmarks/RESULTS.md).

    Args:
        points: features, shape (N, D), the same on every rank.
        num_clusters: K.
        restarts: R, number of k-means.
    Returns:
        Clusters 0..K-1, shape (R, N).
    Raises:
        UserError: as `kmeans`.
    """
    own, seeds = points[own_share(len(points))], [derived_seed(seed, "k-means of Train", r) for r in range(restarts)]
    with on_one_thread():
        found = [kmeans(own, num_clusters, one, len(points)).assignment for one in seeds]
    return torch.stack(found).cpu().numpy()


def _kmeans_faiss(points: Tensor, k: int, seed: int, on_gpu: bool) -> Clustering:
    """`kmeans` of points (N, D) by faiss."""
    array = np.ascontiguousarray(points.cpu().numpy())
    trainer = faiss.Kmeans(
        array.shape[1],
        k,
        niter=ITERATIONS,
        seed=seed,
        gpu=on_gpu,
        min_points_per_centroid=1,  # no warning for small corpora
        max_points_per_centroid=MAX_POINTS_PER_CENTROID,
    )
    trainer.train(array)
    _, nearest = trainer.index.search(array, 1)
    assignment = nearest.ravel().astype(np.int64)
    sizes = np.bincount(assignment, minlength=k)
    return Clustering(torch.from_numpy(assignment).to(points.device), sizes, float(trainer.obj[-1]) / len(array))


def _kmeans_torch(own: Tensor, count: int, k: int, seed: int) -> Clustering:
    """`kmeans` by Lloyd's algorithm. Each rank assigns its own points; sums and sizes are added up over the ranks.

    The initial centroids are points drawn by the seed. An empty cluster takes half of the largest one.
    Source: the distributed k-means of `main_deepclusterv2.py` in facebookresearch/swav.
    """
    share = own_share(count)
    drawn = torch.from_numpy(np.random.default_rng(seed).choice(count, k, replace=False)).to(own.device)
    mine = (drawn >= share.start) & (drawn < share.stop)
    centroids = own.new_zeros(k, own.shape[1])  # (K, D)
    centroids[mine] = own[drawn[mine] - share.start]
    centroids = sum_over_ranks(centroids)
    step = SPLIT_STEP * torch.tensor([1.0, -1.0], device=own.device).repeat(own.shape[1] // 2 + 1)[: own.shape[1]]
    for _ in range(ITERATIONS):
        _, *totals = _assign(own, centroids)
        sums, sizes, objective = map(sum_over_ranks, totals)
        centroids = sums / sizes.clamp(min=1)[:, None]
        for empty in (sizes == 0).nonzero():
            largest = sizes.argmax()
            centroids[empty] = centroids[largest] * (1 + step)
            centroids[largest] *= 1 - step
            sizes[empty] = sizes[largest] = sizes[largest] / 2
    assignment, _, sizes, _ = _assign(own, centroids)
    sizes = sum_over_ranks(sizes).long().cpu().numpy()
    return Clustering(whole_of_shares(assignment, count), sizes, float(objective) / count)


def _assign(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Assign points (n, D) to the nearest centroids (K, D).

    Returns:
        Nearest centroid (n,); per cluster the sum of its points (K, D) and its size (K,); sum of squared distances.
    """
    nearest = torch.empty(len(points), dtype=torch.int64, device=points.device)
    sums, sizes = torch.zeros_like(centroids), centroids.new_zeros(len(centroids))
    objective, norms = centroids.new_zeros(()), centroids.square().sum(dim=1)
    for block, found in zip(points.split(BLOCK_ROWS), nearest.split(BLOCK_ROWS)):
        distances = torch.addmm(norms, block, centroids.T, alpha=-2)  # (B, K), without the norm of the point
        smallest, found[:] = distances.min(dim=1)
        objective += (smallest + block.square().sum(dim=1)).clamp_(min=0).sum()
        members = torch.zeros_like(distances).scatter_(1, found[:, None], 1)  # deterministic on CUDA; index_add_ is not
        sums.addmm_(members.T, block)
        sizes += members.sum(dim=0)
    return nearest, sums, sizes, objective


def uniform_sample(assignment: Tensor, num_clusters: int, seed: int) -> Tensor:
    """Sample N of N utterances, the same number from each non-empty cluster, in random order.

    A cluster smaller than its share is sampled with replacement, a larger one without. If N cannot be divided evenly,
    some random clusters give one more. All is computed on the device of the assignment, without waiting for it.

    Args:
        assignment: cluster of each utterance, int64, shape (N,).
        num_clusters: K.
        seed: seed of the sample.
    Returns:
        Positions 0..N-1, int64, shape (N,).
    Source: Caron et al., ECCV 2018, section 3.3; docs/differences.md, difference 2.
    """
    n, device = len(assignment), assignment.device
    generator = torch.Generator(device).manual_seed(seed)
    # Members of each cluster next to each other, in random order; random float32 keys would have ties.
    shuffled = torch.randperm(n, generator=generator, device=device)
    clusters, order = assignment[shuffled].sort(stable=True)
    members = shuffled[order]
    ends = torch.searchsorted(clusters, torch.arange(num_clusters, device=device), right=True)
    sizes = ends.diff(prepend=ends.new_zeros(1))
    shares = _shares(sizes, n, generator)

    slots = torch.arange(n, device=device)
    share_ends = shares.cumsum(dim=0)
    drawn_from = torch.searchsorted(share_ends, slots, right=True)  # right: skips empty clusters
    size, share = sizes[drawn_from], shares[drawn_from]
    without = slots - share_ends[drawn_from] + share
    # Integers, because not every device has float64. The bias of % is negligible.
    replaced = torch.randint(2**62, (n,), generator=generator, device=device) % size
    drawn = members[ends[drawn_from] - size + torch.where(share > size, replaced, without)]
    return drawn[torch.randperm(n, generator=generator, device=device)]


def _shares(sizes: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Split n evenly over the non-empty clusters, the remainder at random: int64, (K,)."""
    shuffled = torch.randperm(len(sizes), generator=generator, device=sizes.device)
    non_empty = (sizes[shuffled] > 0).long()
    count = non_empty.sum()
    gives_one_more = non_empty.cumsum(dim=0) <= n % count
    return torch.empty_like(sizes).scatter_(0, shuffled, non_empty * (n // count + gives_one_more))


def nmi(first: ArrayLike | Tensor, second: ArrayLike | Tensor) -> float:
    """Normalised mutual information of two clusterings of N utterances, 0 to 1 (arithmetic mean of entropies)."""
    first, second = (
        np.unique(np.asarray(x.cpu() if isinstance(x, Tensor) else x), return_inverse=True)[1] for x in (first, second)
    )
    joint = joint_probability(first, second, first.max() + 1, second.max() + 1)
    mean = (entropy(joint.sum(axis=0)) + entropy(joint.sum(axis=1))) / 2
    return float(information_of_cells(joint).sum() / mean) if mean > 0 else 1.0
