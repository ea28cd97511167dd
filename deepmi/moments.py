"""Mean and standard deviation merged from parts, and the normalisation that uses them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CLIP = 3.0  # normalised features are clipped to [-CLIP, CLIP]
MUCH_CLIPPED = 0.05  # of the values: corpora with their own statistics have .01 to .02
BLOCK = 2048  # rows in memory at a time


@dataclass
class Moments:
    """Count, mean and sum of squared deviations of each feature, about a fixed shift; NaN counts as not observed.

    The shift, by the first utterance, keeps small spreads about huge means (v1.8 has means of 1e12). The minimum and
    the maximum identify a constant feature exactly.
    Source: merging as in Chan, Golub & LeVeque (1979).
    """

    count: NDArray | int  # (D,) utterances in which the feature is a number; one number if equal for all features
    mean: NDArray  # (D,) of x - shift
    squares: NDArray  # (D,) sum of (x - mean)**2
    low: NDArray  # (D,) of x - shift
    high: NDArray  # (D,) of x - shift

    @classmethod
    def of(cls, rows: NDArray[np.float64]) -> Moments:
        """Moments of shifted rows (B, D), which are overwritten."""
        missing = np.isnan(rows)
        count = len(rows) - (missing.sum(axis=0) if missing.any() else 0)
        low, high = np.fmin.reduce(rows), np.fmax.reduce(rows)
        rows[missing] = 0.0
        mean = rows.sum(axis=0) / np.maximum(count, 1)
        rows -= mean
        rows[missing] = 0.0
        return cls(count, mean, np.einsum("bd,bd->d", rows, rows), low, high)

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets together."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        step = other.mean - self.mean
        return Moments(
            count,
            self.mean + step * share,
            self.squares + other.squares + step * step * self.count * share,
            np.fmin(self.low, other.low),
            np.fmax(self.high, other.high),
        )


def normalise(features: NDArray[np.float64], mean: NDArray, std: NDArray) -> NDArray[np.float32]:
    """z-norm, with NaN set to 0, clipped to [-3, 3]; a constant feature (std 0) becomes 0.

    Args:
        features: float64, shape (..., D). The subtraction needs float64: v1.8 has means of 1e12.
        mean: float64, shape (D,).
        std: float64, shape (D,).
    Returns:
        float32, in the shape of `features`.
    Source: Lin, Sridhar & Busso (2024).
    """
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        z = features - mean
        z /= std
        z[..., std == 0] = 0.0
        z = z.astype(np.float32)  # before the clipping: half of the memory to pass over
    np.clip(z, -CLIP, CLIP, out=z)
    np.copyto(z, 0.0, where=np.isnan(z))
    return z


def clipped_share(rows: NDArray[np.float32]) -> float:
    """Share of the values of normalised features, shape (N, D), that were clipped."""
    blocks = (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))
    return sum(np.count_nonzero(np.abs(block) >= CLIP) for block in blocks) / rows.size


def describe_clipped(share: float) -> str:
    """A line on this share, with a warning if it is high."""
    line = f"{100 * share:.1f} % of the feature values lie {CLIP:g} or more standard deviations from the training mean"
    if share <= MUCH_CLIPPED:
        return line
    return f"warning: {line}: these recordings differ from the training corpus, so predictions may be far off."
