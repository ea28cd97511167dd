"""k-means pseudo-labels, draws that are uniform over clusters, and how much a clustering changes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch  # torch before faiss, everywhere: each brings an OpenMP, and this order is the tested one
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from deepmi.process import UserError

ITERATIONS = 20
MAX_POINTS_PER_CENTROID = 10_000_000  # faiss would subsample at 256 a centroid
BLOCK_ROWS = 65_536  # points whose distances are in memory at a time, in `_kmeans_torch`
SPLIT_SEED = 1234  # faiss' own, whatever the seed of the clustering
SPLIT_STEP = 1 / 1024  # how far, relatively, the halves of a split cluster move apart


@dataclass
class Clustering:
    """Pseudo-labels of N utterances.

    Attributes:
        assignment: cluster of each utterance, int64, shape (N,), on the device of the features.
        sizes: utterances in each cluster, int64, shape (K,).
        objective: mean squared distance to the centroids at the last iteration.
    """

    assignment: Tensor
    sizes: NDArray[np.int64]
    objective: float

    @property
    def non_empty(self) -> int:
        """Number of clusters that have a member."""
        return int((self.sizes > 0).sum())


@contextlib.contextmanager
def on_one_thread() -> Iterator[None]:
    """Torch and faiss compute on one thread of the CPU meanwhile, as when many small trainings run side by side."""
    import faiss

    threads = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads[0])
        faiss.omp_set_num_threads(threads[1])


def kmeans(
    features: Tensor | NDArray[np.float32], num_clusters: int, seed: int, device: torch.device | None = None
) -> Clustering:
    """Cluster by faiss' k-means: squared L2, 20 iterations, one start, every point used.

    faiss computes it, except on a CUDA GPU that the installed faiss can't use; there torch does, by the same rules.

    Args:
        features: float32, shape (N, 256).
        num_clusters: K.
        seed: of the initial centroids.
        device: compute there; by default, where the features are.
    Returns:
        `Clustering`. A cluster may end up empty.
    Raises:
        UserError: K is larger than N, or a feature is not finite.
    Source: Lin, Sridhar & Busso (2021), after Caron et al., ECCV 2018.
    """
    import faiss

    features = torch.as_tensor(features).detach()
    if num_clusters > len(features):
        raise UserError(
            f"-nc {num_clusters}: more clusters than the {len(features)} utterances to cluster; ask for fewer."
        )
    points = features.to(device or features.device, torch.float32)
    if not torch.stack(points.aminmax()).isfinite().all():  # either end is NaN where a point is
        raise UserError("the network's features are not finite any more: training diverged. Try --precision fp32.")
    on_gpu = points.device.type == "cuda"
    if on_gpu and faiss.get_num_gpus() == 0:
        found = _kmeans_torch(points, num_clusters, seed)
    else:
        found = _kmeans_faiss(points.cpu().numpy(), num_clusters, seed, on_gpu)
    found.assignment = found.assignment.to(features.device)
    return found


def _kmeans_faiss(points: NDArray[np.float32], k: int, seed: int, on_gpu: bool) -> Clustering:
    """`kmeans` of finite points (N, D) by faiss, on all its GPUs or on the CPU."""
    import faiss

    points = np.ascontiguousarray(points)
    trainer = faiss.Kmeans(
        points.shape[1],
        k,
        niter=ITERATIONS,
        nredo=1,
        seed=seed,
        gpu=on_gpu,
        min_points_per_centroid=1,  # small corpora are the user's choice; no warning an epoch
        max_points_per_centroid=MAX_POINTS_PER_CENTROID,
    )
    trainer.train(points)
    _, nearest = trainer.index.search(points, 1)
    assignment = nearest.ravel().astype(np.int64)
    sizes = np.bincount(assignment, minlength=k)
    return Clustering(torch.from_numpy(assignment), sizes, float(trainer.obj[-1]) / len(points))


def _kmeans_torch(points: Tensor, k: int, seed: int) -> Clustering:
    """`kmeans` of finite points (N, D) by matrix products on their device, as faiss 1.15.1 computes it.

    Equal to faiss but for the order of float32 sums, which may move a point that lies between two centroids. It waits
    for the device once an iteration.
    """
    n = len(points)
    with _full_precision():
        squared_norms = torch.cat([block.square().sum(dim=1) for block in points.split(BLOCK_ROWS)])  # (N,)
        centroids, iterations = _initial_centroids(points, k, seed), ITERATIONS
        objective = squared_norms.new_zeros((), dtype=torch.float64)
        if k == n:  # faiss, too, then takes the points for the centroids and leaves it at that
            centroids, iterations = points, 0
        for _ in range(iterations):
            _, sums, sizes, objective = _assign(points, squared_norms, centroids)
            centroids = sums * (1 / sizes.clamp(min=1).float())[:, None]
            for empty, donor in _donors_of_empty_clusters(sizes.cpu().numpy(), n):
                _split(centroids, empty, donor)
        assignment, _, sizes, _ = _assign(points, squared_norms, centroids)
    return Clustering(assignment, sizes.cpu().numpy(), float(objective) / n)


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """float32 matrix products without TF32, which a container or a caller may have allowed for the network."""
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = before


def _initial_centroids(points: Tensor, k: int, seed: int) -> Tensor:
    """(K, D): the points that faiss' permutation puts first."""
    import faiss

    order = np.empty(len(points), np.int32)
    faiss.rand_perm(faiss.swig_ptr(order), len(points), seed + 1)  # + 1 for the first of its starts
    return points[torch.from_numpy(order[:k]).to(points.device, torch.int64)]


def _assign(points: Tensor, squared_norms: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The nearest centroid of each point, the lower number where two are as near.

    Args:
        points: (N, D).
        squared_norms: of the points, (N,).
        centroids: (K, D).
    Returns:
        Assignment (N,), int64; sums of the clusters' points (K, D); sizes (K,), int64; sum of squared distances.
    """
    assignment = torch.empty(len(points), dtype=torch.int64, device=points.device)
    sums = torch.zeros_like(centroids)
    sizes = torch.zeros(len(centroids), dtype=torch.int64, device=points.device)
    objective = torch.zeros((), dtype=torch.float64, device=points.device)
    centroid_norms = centroids.square().sum(dim=1)
    for block, norms, nearest in zip(*(x.split(BLOCK_ROWS) for x in (points, squared_norms, assignment))):
        distances = torch.addmm(centroid_norms, block, centroids.T, alpha=-2)  # (B, K), each row short of its norm
        smallest, nearest[:] = distances.min(dim=1)
        objective += (smallest + norms).clamp_(min=0).sum(dtype=torch.float64)
        # A matrix product adds the same way every time; index_add_ on CUDA doesn't. The distances are done with.
        members = distances.zero_().scatter_(1, nearest[:, None], 1)
        sums.addmm_(members.T, block)
        sizes += members.sum(dim=0).long()
    return assignment, sums, sizes, objective


def _donors_of_empty_clusters(sizes: NDArray[np.int64], n: int) -> list[tuple[int, int]]:
    """Which cluster each empty one gets half of, by faiss' rule: larger clusters more often, in float32.

    Args:
        sizes: of the clusters, (K,), K < n.
        n: number of points.
    Returns:
        (empty, donor) in the order in which to split; a cluster just filled may be a donor.
    """
    import faiss

    k = len(sizes)
    sizes = sizes.astype(np.float32)
    draws = faiss.RandomGenerator(SPLIT_SEED)
    pairs = []
    for empty in np.flatnonzero(sizes == 0).tolist():
        donor = 0
        while draws.rand_float() >= np.float32((float(sizes[donor]) - 1) / (n - k)):
            donor = (donor + 1) % k
        sizes[empty] = sizes[donor] / 2
        sizes[donor] -= sizes[empty]
        pairs.append((empty, donor))
    return pairs


def _split(centroids: Tensor, empty: int, donor: int) -> None:
    """Put two centroids (of (K, D), changed in place) close to the donor's: coordinates alternately grow and shrink."""
    factors = torch.full_like(centroids[donor], 1 - SPLIT_STEP)
    factors[::2] = 1 + SPLIT_STEP
    centroids[empty] = centroids[donor] * factors
    centroids[donor] *= 2 - factors


def uniform_sample(assignment: Tensor, num_clusters: int, seed: int) -> Tensor:
    """As many draws as utterances, the same number from each non-empty cluster, shuffled.

    A cluster smaller than its share is drawn from with replacement, a larger one without. Where N does not divide
    evenly, some clusters (drawn at random) give one more. Computed on the assignment's device, without waiting for it.

    Args:
        assignment: cluster of each utterance, int64, shape (N,).
        num_clusters: K.
        seed: of the draws.
    Returns:
        Positions 0..N-1, int64, shape (N,).
    Source: Caron et al., ECCV 2018, section 3.3; docs/differences.md, difference 2.
    """
    n, device = len(assignment), assignment.device
    generator = torch.Generator(device).manual_seed(seed)
    # Members of each cluster side by side, in random order. randperm is fair for any N; float32 keys would tie.
    shuffled = torch.randperm(n, generator=generator, device=device)
    clusters, order = assignment[shuffled].sort(stable=True)
    members = shuffled[order]
    ends = torch.searchsorted(clusters, torch.arange(num_clusters, device=device), right=True)
    sizes = ends.diff(prepend=ends.new_zeros(1))
    shares = _shares(sizes, n, generator)

    slots = torch.arange(n, device=device)
    share_ends = shares.cumsum(dim=0)
    drawn_from = torch.searchsorted(share_ends, slots, right=True)  # right: passes over the empty clusters
    size, share = sizes[drawn_from], shares[drawn_from]
    without = slots - share_ends[drawn_from] + share
    # Integers, since not every device has float64. Against 2**62 the bias of % is nothing.
    replaced = torch.randint(2**62, (n,), generator=generator, device=device) % size
    drawn = members[ends[drawn_from] - size + torch.where(share > size, replaced, without)]
    return drawn[torch.randperm(n, generator=generator, device=device)]


def _shares(sizes: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """How many of n draws each cluster gives, int64, (K,): none if empty, else equal numbers to within one."""
    lottery = torch.randperm(len(sizes), generator=generator, device=sizes.device)
    taking_part = (sizes[lottery] > 0).long()
    count = taking_part.sum()
    gives_one_more = taking_part.cumsum(dim=0) <= n % count
    return torch.empty_like(sizes).scatter_(0, lottery, taking_part * (n // count + gives_one_more))


def nmi(first: ArrayLike | Tensor, second: ArrayLike | Tensor) -> float:
    """Normalised mutual information of two clusterings of the same utterances, 0..1 (arithmetic mean of entropies)."""
    from sklearn.metrics import normalized_mutual_info_score

    first, second = (x.cpu().numpy() if isinstance(x, Tensor) else x for x in (first, second))
    return float(normalized_mutual_info_score(first, second))
