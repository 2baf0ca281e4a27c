"""Intervals that cover what they claim, whatever the model: split-conformal and conformalized quantile regression.

Everything is in log2 of latency. A calibration row's score says how much its claimed interval would have had to give
for its true value to lie inside; the interval of a new row gives the quantile of those scores. What may be exchanged is
a space (one kernel, problem and device), not a row: configs of one space err alike. So rows weigh 1 / (rows of their
space), and 1 - alpha is promised for a random row of a new space (hierarchical conformal prediction; Lee, Barber and
Willett 2023, arXiv 2306.06342). A promise that the calibration is too small for is an infinite interval.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from costmodel.devices import sheet_numbers
from costmodel.records import Device, UserError

Array = NDArray[np.float64]
Kind = Literal["split", "cqr", "stretch"]
_LEAST_WIDTH = 1e-6  # of a half interval that is stretched


@dataclass(frozen=True, slots=True, eq=False)
class Bands:
    """Claimed intervals and their medians, each (n,), in log2."""

    low: Array
    middle: Array
    high: Array

    def __getitem__(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Bands:
        return Bands(self.low[rows], self.middle[rows], self.high[rows])


def scores(kind: Kind, bands: Bands, true: Array) -> Array:
    """(n,) how much each interval must give to hold its true value, by the kind of what is given:

    split: doublings on either side of the median; the claimed interval is not used (Vovk et al. 2005).
    cqr: doublings added to either end of the interval, negative where it is too wide (Romano et al. 2019).
    stretch: the factor on the interval's half widths (CQR-m; Kivaranovic et al. 2020): what an exact quantile keeps
        exact, and a whole distribution can be stretched about its median likewise.
    """
    off = true - bands.middle
    if kind == "split":
        return np.abs(off)
    if kind == "cqr":
        return np.maximum(bands.low - true, true - bands.high)
    if kind == "stretch":
        above, below = bands.high - bands.middle, bands.middle - bands.low
        return np.abs(off) / np.maximum(np.where(off >= 0, above, below), _LEAST_WIDTH)
    raise UserError(f"got intervals of kind {kind!r}, expected one of {', '.join(get_args(Kind))}")


def widened(kind: Kind, bands: Bands, amount: float) -> tuple[Array, Array]:
    """The intervals (low, high) that give `amount`, as `scores` has it. A cqr interval never turns inside out."""
    if kind == "split":
        return bands.middle - amount, bands.middle + amount
    if kind == "cqr":
        return np.minimum(bands.low - amount, bands.middle), np.maximum(bands.high + amount, bands.middle)
    if kind == "stretch":
        above, below = (np.maximum(w, _LEAST_WIDTH) for w in (bands.high - bands.middle, bands.middle - bands.low))
        return bands.middle - amount * below, bands.middle + amount * above
    raise UserError(f"got intervals of kind {kind!r}, expected one of {', '.join(get_args(Kind))}")


def conformal_quantile(
    values: ArrayLike, alpha: float, *, weights: ArrayLike | None = None, own_weight: float = 1.0
) -> float:
    """The least score up to which the rows carry 1 - alpha of all weight, that of the row asked about among it, which
    counts as infinite. Infinite where no score reaches so far.

    With equal weights: the ceil((n + 1) (1 - alpha))-th smallest, exact in finite samples. Weights that are likelihood
    ratios of the row asked about over the calibration rows keep it exact under that shift (Tibshirani et al. 2019);
    any other fixed weights cost at most their mean total variation (Barber et al. 2023, theorem 2).
    """
    array = np.asarray(values, dtype=np.float64)
    weight = np.ones(array.size) if weights is None else np.asarray(weights, dtype=np.float64)
    if not 0 < alpha < 1:
        raise UserError(f"got alpha={alpha}, expected a number between 0 and 1, such as 0.1 for 90 % intervals")
    if array.ndim != 1 or array.shape != weight.shape or np.isnan(array).any() or (weight < 0).any():
        raise UserError(
            f"got scores of shape {array.shape} and weights of shape {weight.shape}, expected two lists of one length, "
            "no score NaN and no weight below 0"
        )
    order = np.argsort(array, kind="stable")
    reached = np.cumsum(weight[order]) >= (1 - alpha) * (weight.sum() + own_weight) * (1 - 1e-12)
    return float(array[order][np.argmax(reached)]) if reached.any() else math.inf


def space_weights(spaces: Sequence[Hashable]) -> Array:
    """(n,) 1 / (rows of the row's space): each space weighs 1, as the space of the row asked about does."""
    counts = Counter(spaces)
    return np.array([1 / counts[space] for space in spaces])


def least_spaces(alpha: float) -> int:
    """How many calibration spaces of equal weight a finite interval takes: 9 at alpha = 0.1."""
    return math.ceil((1 - alpha) / alpha - 1e-9)


def device_weight(target: Device, other: Device, *, bandwidth: float = 1.0) -> float:
    """exp(-(d / bandwidth)^2 / 2), in place of the likelihood ratio under a shift of device; 1 for the device itself.

    d is the root mean square of log2(a / b) over the numbers of `devices.sheet_numbers` that both sheets state, so at a
    bandwidth of 1 a device whose numbers all differ by a factor of two weighs 0.61, by four 0.14.
    """
    numbers = zip(sheet_numbers(target), sheet_numbers(other), strict=True)
    ratios = [math.log2(a / b) for a, b in numbers if a > 0 and b > 0]
    if not ratios:
        return 1.0 if target == other else 0.0
    return math.exp(-sum(ratio**2 for ratio in ratios) / len(ratios) / bandwidth**2 / 2)
