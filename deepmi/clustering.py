"""k-means pseudo-labels, sampling that is uniform over clusters, and how much a clustering changes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch  # before faiss, everywhere: each brings an OpenMP, and this order is the tested one
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

import faiss  # isort: skip
from deepmi.metric import entropy, information_of_cells, joint_probability
from deepmi.process import UserError, num_ranks
from deepmi.ranks import own_share, sum_over_ranks, whole_of_shares

ITERATIONS = 20
MAX_POINTS_PER_CENTROID = 10_000_000  # faiss would subsample at 256 per centroid
BLOCK_ROWS = 65_536  # points whose distances are in memory at a time
SPLIT_STEP = 1 / 1024  # how far, relatively, the halves of a split cluster move apart


@dataclass
class Clustering:
    """Pseudo-labels of N utterances.

    Attributes:
        assignment: cluster of each utterance, int64, shape (N,).
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
    """Within the block, torch and faiss compute on one CPU thread, for many small trainings side by side."""
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
    """k-means: squared L2, 20 iterations, one start, every point used.

    One process computes it with faiss. On a CUDA GPU that faiss cannot use, and over several ranks, torch does.

    Args:
        own: this rank's share of the features, float32, shape (size of `own_share(count)`, 256); all without ranks.
        num_clusters: K.
        seed: of the initial centroids.
        count: N, the utterances of all ranks; by default those of this one.
        device: where to compute, and where the assignment is returned; by default where the features are.
    Returns:
        `Clustering` of all N utterances, on every rank. A cluster may end up empty.
    Raises:
        UserError: K is larger than N, or a feature is not finite.
    Source: Lin, Sridhar & Busso (2021), after Caron et al., ECCV 2018.
    """
    count, device = len(own) if count is None else count, device or own.device
    if num_clusters > count:
        raise UserError(f"-nc {num_clusters}: more clusters than the {count} utterances to cluster.")
    points = own.detach().to(device, torch.float32)
    broken = sum_over_ranks((~points.isfinite()).any().long())
    if broken:
        raise UserError("the features of the network are NaN or infinite: training diverged. Try --precision fp32.")
    on_gpu = device.type == "cuda"
    if num_ranks() > 1 or (on_gpu and faiss.get_num_gpus() == 0):
        return _kmeans_torch(points, count, num_clusters, seed)
    return _kmeans_faiss(points, num_clusters, seed, on_gpu)


def _kmeans_faiss(points: Tensor, k: int, seed: int, on_gpu: bool) -> Clustering:
    """`kmeans` by faiss, on all its GPUs or on the CPU."""
    array = np.ascontiguousarray(points.cpu().numpy())
    trainer = faiss.Kmeans(
        array.shape[1],
        k,
        niter=ITERATIONS,
        nredo=1,
        seed=seed,
        gpu=on_gpu,
        min_points_per_centroid=1,  # a small corpus needs no warning in every epoch
        max_points_per_centroid=MAX_POINTS_PER_CENTROID,
    )
    trainer.train(array)
    _, nearest = trainer.index.search(array, 1)
    assignment = nearest.ravel().astype(np.int64)
    sizes = np.bincount(assignment, minlength=k)
    return Clustering(torch.from_numpy(assignment).to(points.device), sizes, float(trainer.obj[-1]) / len(array))


def _kmeans_torch(own: Tensor, count: int, k: int, seed: int) -> Clustering:
    """`kmeans` by Lloyd's algorithm; each rank assigns its own points, and sums are reduced over ranks.

    Source: as `main_deepclusterv2.py` of SwAV does over ranks. An empty cluster takes half of the largest one.
    """
    share = own_share(count)
    chosen = torch.from_numpy(np.random.default_rng(seed).choice(count, k, replace=False)).to(own.device)
    mine = (chosen >= share.start) & (chosen < share.stop)
    centroids = own.new_zeros(k, own.shape[1])
    centroids[mine] = own[chosen[mine] - share.start]
    centroids = sum_over_ranks(centroids)
    for _ in range(ITERATIONS):
        _, sums, sizes, objective = _assign(own, centroids)
        sums, sizes, objective = (sum_over_ranks(part) for part in (sums, sizes, objective))
        centroids = sums / sizes.clamp(min=1)[:, None]
        for empty in (sizes == 0).nonzero().flatten().tolist():
            largest = int(sizes.argmax())
            centroids[empty] = centroids[largest] * (1 + SPLIT_STEP)
            centroids[largest] *= 1 - SPLIT_STEP
            sizes[empty] = sizes[largest] // 2
            sizes[largest] -= sizes[empty]
    assignment, _, sizes, _ = _assign(own, centroids)
    sizes = sum_over_ranks(sizes).long().cpu().numpy()
    return Clustering(whole_of_shares(assignment, count), sizes, float(objective) / count)


def _assign(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Nearest centroid of each point (n,); sums (K, D) and sizes (K,) of the clusters; sum of squared distances."""
    nearest = torch.empty(len(points), dtype=torch.int64, device=points.device)
    sums, sizes = torch.zeros_like(centroids), centroids.new_zeros(len(centroids))
    objective, norms = centroids.new_zeros(()), centroids.square().sum(dim=1)
    for block, found in zip(points.split(BLOCK_ROWS), nearest.split(BLOCK_ROWS)):
        distances = torch.addmm(norms, block, centroids.T, alpha=-2)  # (B, K), short of the norm of the point
        smallest, found[:] = distances.min(dim=1)
        objective += (smallest + block.square().sum(dim=1)).clamp_(min=0).sum()
        members = torch.zeros_like(distances).scatter_(1, found[:, None], 1)  # unlike index_add_, deterministic on CUDA
        sums.addmm_(members.T, block)
        sizes += members.sum(dim=0)
    return nearest, sums, sizes, objective


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
    """Normalised mutual information of two clusterings of N utterances, 0 to 1 (arithmetic mean of entropies)."""
    first, second = (
        np.unique(np.asarray(x.cpu() if isinstance(x, Tensor) else x), return_inverse=True)[1] for x in (first, second)
    )
    joint = joint_probability(first, second, first.max() + 1, second.max() + 1)
    mean = (entropy(joint.sum(axis=0)) + entropy(joint.sum(axis=1))) / 2
    return float(information_of_cells(joint).sum() / mean) if mean > 0 else 1.0
