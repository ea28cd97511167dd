"""k-means pseudo-labels, draws that are uniform over clusters, and how much a clustering changes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch  # noqa: F401  torch before faiss, everywhere: each brings an OpenMP, and this order is the tested one
from numpy.typing import NDArray

from runtime import UserError

ITERATIONS = 20
MAX_POINTS_PER_CENTROID = 10_000_000  # faiss would subsample at 256 a centroid


@dataclass
class Clustering:
    """Pseudo-labels of N utterances.

    Attributes:
        assignment: cluster of each utterance, int64, shape (N,).
        sizes: utterances in each cluster, int64, shape (K,).
        objective: mean squared distance to the centroids at the last iteration.
    """

    assignment: NDArray[np.int64]
    sizes: NDArray[np.int64]
    objective: float

    @property
    def non_empty(self) -> int:
        """Number of clusters that have a member."""
        return int((self.sizes > 0).sum())


def kmeans(features: NDArray[np.float32], num_clusters: int, seed: int, on_gpu: bool = False) -> Clustering:
    """Cluster by faiss k-means: squared L2, 20 iterations, one start, every point used.

    Args:
        features: float32, shape (N, 256).
        num_clusters: K.
        seed: of the initial centroids.
        on_gpu: compute on GPUs where this faiss has them.
    Returns:
        `Clustering`. A cluster may end up empty.
    Raises:
        UserError: K is larger than N, or a feature is not finite.
    Source: Lin, Sridhar & Busso (2021), after Caron et al., ECCV 2018.
    """
    import faiss

    points = np.ascontiguousarray(features, dtype=np.float32)
    if num_clusters > len(points):
        raise UserError(
            f"-nc {num_clusters}: more clusters than the {len(points)} utterances to cluster; ask for fewer."
        )
    if not np.isfinite(points).all():
        raise UserError("the network's features are not finite any more: training diverged. Try --precision fp32.")
    trainer = faiss.Kmeans(
        points.shape[1],
        num_clusters,
        niter=ITERATIONS,
        nredo=1,
        seed=seed,
        gpu=on_gpu and faiss.get_num_gpus() > 0,
        min_points_per_centroid=1,  # small corpora are the user's choice; no warning an epoch
        max_points_per_centroid=MAX_POINTS_PER_CENTROID,
    )
    trainer.train(points)
    _, nearest = trainer.index.search(points, 1)
    assignment = nearest.ravel().astype(np.int64)
    sizes = np.bincount(assignment, minlength=num_clusters)
    return Clustering(assignment, sizes, float(trainer.obj[-1]) / len(points))


def uniform_draws(assignment: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """As many draws as utterances, the same number from each non-empty cluster, shuffled.

    A cluster smaller than its share is drawn from with replacement, a larger one without. Where N does not divide
    evenly, some clusters (drawn at random) give one more.

    Args:
        assignment: cluster of each utterance, shape (N,).
        seed: of the draws.
    Returns:
        Positions 0..N-1, int64, shape (N,).
    Source: Caron et al., ECCV 2018, section 3.3; README, difference 2.
    """
    rng = np.random.default_rng(seed)
    by_cluster = np.argsort(assignment, kind="stable")
    sizes = np.bincount(assignment)
    members = [part for part in np.split(by_cluster, np.cumsum(sizes)[:-1]) if part.size]
    shares = np.full(len(members), len(assignment) // len(members))
    shares[rng.permutation(len(members))[: len(assignment) % len(members)]] += 1
    draws = [rng.choice(part, size=share, replace=share > part.size) for part, share in zip(members, shares)]
    return rng.permutation(np.concatenate(draws))


def nmi(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """Normalised mutual information of two clusterings of the same utterances, 0..1 (arithmetic mean of entropies)."""
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(first, second))
