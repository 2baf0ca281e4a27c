"""Predictions of one space taken together: what a model gets wrong about one config it partly gets wrong about all.

A prediction says what it knows of one config. Whether one config beats another also depends on how their errors go
together, which is taken to be a Gaussian copula with one common factor: each error shares CORRELATION of its variance
with every other. `benchmarks/joint.py` measures what it should be: with the shipped model on kernels it was not trained
on (53 spaces), 0.7 makes both kinds of statements true. Pairs of which one was called faster with .13, .31, .50, .69
and .87 on average were so in .16, .30, .51, .69 and .83; first picks called within 5 % of the best with .077 were so in
.075 of the spaces. Independent errors (0) say .036 instead; 0.95 says .93 of pairs that came true in .77.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr

from costmodel.records import Prediction

CORRELATION = 0.7
DRAWS = 2000


def draws_us(predictions: Sequence[Prediction], *, seed: int = 0) -> np.ndarray:
    """(len(predictions), DRAWS) latencies in microseconds, drawn together: a column is one thing that may be true."""
    rng = np.random.default_rng(seed)
    common, own = rng.standard_normal(DRAWS), rng.standard_normal((len(predictions), DRAWS))
    q = ndtr(CORRELATION**0.5 * common + (1 - CORRELATION) ** 0.5 * own)
    return np.array([_quantiles_us(told, row) for told, row in zip(predictions, q, strict=True)])


def _quantiles_us(told: Prediction, q: np.ndarray) -> np.ndarray:
    """`Prediction.quantile_us` at many q at once."""
    us = np.array(told.support_us)
    edges = np.concatenate([us[:1], (us[1:] + us[:-1]) / 2, us[-1:]])
    return np.interp(q, np.concatenate([[0.0], np.cumsum(told.weights) / np.sum(told.weights)]), edges)


def probability_faster(first: Prediction, second: Prediction) -> float:
    """The probability that the first is faster than the second: of equals one half, and of the two orders together one,
    since both orders are drawn from the same numbers."""
    a, b = draws_us([first, second])
    d, c = draws_us([second, first])
    faster, equal = np.concatenate([a < b, c < d]), np.concatenate([a == b, c == d])
    return float(faster.mean() + equal.mean() / 2)


def probability_near_best(predictions: Sequence[Prediction], pick: int, *, within: float = 0.05) -> float:
    """The probability that one of them is within a share of the best of them all; failures have no say."""
    drawn = draws_us(predictions)
    return float((drawn[pick] <= (1 + within) * drawn.min(axis=0)).mean())
