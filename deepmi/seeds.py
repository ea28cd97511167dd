"""Seeds of the random steps of a run."""

from __future__ import annotations

import zlib

import numpy as np

SEED = 31  # the default of --seed everywhere
UNLABELED_SEED = 99  # the original's for the draw of the unlabeled set, the same for every run


def derived_seed(seed: int, *place: int | str) -> int:
    """The seed of one random step, from the run's seed and the step's place in the run.

    No generator state has to outlive an epoch, so a resumed run draws what an uninterrupted one would have drawn.

    Args:
        seed: the run's.
        place: what is drawn, and where, e.g. ("k-means", epoch, phase). Different places have different seeds.
    Returns:
        An int in [0, 2**31), the range that faiss, numpy and torch all accept.
    """
    key = tuple(zlib.crc32(part.encode()) if isinstance(part, str) else part for part in place)
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1)[0] >> 1)
