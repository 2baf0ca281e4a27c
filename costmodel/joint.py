"""Predictions of one space taken together: what a model gets wrong about one config it partly gets wrong about all.

A prediction says what it knows of one config. Whether one config beats another also depends on how their errors go
together, which is taken to be a Gaussian copula with one common factor: each error shares CORRELATION of its variance
with every other (of two alone, `Prediction.probability_faster_than` with this correlation).
`python benchmarks/joint.py` measures what it should be: at 0.7 the shipped model's first picks on kernels that it never
saw were said to be within 5 % of the best with .077 and were so in .075 of 53 spaces; independent errors say .036.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr

from costmodel.records import Prediction
from costmodel.uncertainty import inverse_cdf

CORRELATION = 0.7  # of the errors of one model on two configs of one space
DRAWS = 2000


def draws_us(predictions: Sequence[Prediction], *, correlation: float = CORRELATION) -> np.ndarray:
    """(len(predictions), DRAWS) latencies in microseconds, drawn together: a column is one thing that may be true."""
    rng = np.random.default_rng(0)
    common, own = rng.standard_normal(DRAWS), rng.standard_normal((len(predictions), DRAWS))
    q = ndtr(correlation**0.5 * common + (1 - correlation) ** 0.5 * own)
    return np.array([inverse_cdf(told.support_us, told.weights, row) for told, row in zip(predictions, q, strict=True)])


def probability_near_best(
    predictions: Sequence[Prediction], pick: int, *, within: float = 0.05, correlation: float = CORRELATION
) -> float:
    """The probability that one of them is within a share of the best of them all; failures have no say."""
    drawn = draws_us(predictions, correlation=correlation)
    return float((drawn[pick] <= (1 + within) * drawn.min(axis=0)).mean())
