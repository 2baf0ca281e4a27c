"""What predictions claim about their own uncertainty, and whether it came true.

A claim is read off as quantiles of a `Prediction`, in log2 of latency. `conformal` mends what turns out wrong here.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from costmodel.conformal import Bands
from costmodel.records import CostModel, Measurement, Prediction, UserError

Array = NDArray[np.float64]
LEVELS = tuple(level / 20 for level in range(1, 20))
AVERAGED_LEVELS = 256  # at which the quantiles of an ensemble are averaged


def predict_all(model: CostModel, measurements: Sequence[Measurement]) -> list[Prediction]:
    """Predictions in the order of the measurements, asked device by device."""
    answers: dict[int, Prediction] = {}
    for device in dict.fromkeys(m.device for m in measurements):
        mine = [i for i, m in enumerate(measurements) if m.device == device]
        predictions = model.predict([measurements[i].variant for i in mine], device)
        answers.update(zip(mine, predictions, strict=True))
    return [answers[i] for i in range(len(measurements))]


def inverse_cdf(support: ArrayLike, weights: ArrayLike, q: ArrayLike) -> Array:
    """Quantiles at many q, linear between the midpoints of the ascending support, as `Prediction.quantile_us`."""
    points, mass = np.asarray(support, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    edges = np.concatenate([points[:1], (points[1:] + points[:-1]) / 2, points[-1:]])
    return np.interp(np.asarray(q, dtype=np.float64), np.concatenate([[0.0], np.cumsum(mass) / mass.sum()]), edges)


def log2_quantiles(predictions: Sequence[Prediction], q: ArrayLike) -> Array:
    """(levels, n) log2 of the latencies below which each prediction expects shares q."""
    found = [inverse_cdf(p.support_us, p.weights, q) for p in predictions]
    return np.log2(np.array(found, dtype=np.float64).reshape(len(predictions), np.size(q))).T


def bands(predictions: Sequence[Prediction], *, alpha: float = 0.1) -> Bands:
    """The intervals that the predictions claim to hold 1 - alpha, half of the rest on either side."""
    return Bands(*log2_quantiles(predictions, [alpha / 2, 0.5, 1 - alpha / 2]))


def at_best_scale(
    log2_us: ArrayLike, middle: ArrayLike, predictions: Sequence[Prediction], spaces: Sequence[Hashable]
) -> Array:
    """Measured log2 latencies (n,), each space of unknown scale moved to its best.

    That is where they are off by 0 in the median from the predicted `middle` (n,): what is then judged is their order
    and their distances. A space's scale is unknown where one of its predictions does not know it."""
    moved, told = np.array(log2_us, dtype=np.float64), np.asarray(middle, dtype=np.float64)
    places: dict[Hashable, list[int]] = {}
    for place, space in enumerate(spaces):
        places.setdefault(space, []).append(place)
    for rows in places.values():
        if not all(predictions[row].scale_known for row in rows):
            moved[rows] -= np.median(moved[rows] - told[rows])
    return moved


# ---- ensembles ----


def rearranged(quantiles: Array) -> Array:
    """(levels, n) quantiles made to rise with the level by sorting each column: never further from the true ones than
    before (Chernozhukov, Fernandez-Val and Galichon 2010)."""
    return np.sort(quantiles, axis=0)


def averaged_quantiles(members: Sequence[Sequence[Prediction]]) -> list[Prediction]:
    """Several models' answers to the same questions as one, by averaging log2 quantiles level by level (Vincent 1912).

    The average of rising functions rises, so nothing crosses. It has the members' mean width (Lichtendahl et al. 2013);
    a mixture is as wide as that and their disagreement, too wide where each is calibrated (Gneiting and Ranjan 2013).
    """
    if len({len(answers) for answers in members}) != 1:
        raise UserError(
            f"got answers of {[len(a) for a in members]} rows, expected models with equally many, at least one"
        )
    levels = (np.arange(AVERAGED_LEVELS) + 0.5) / AVERAGED_LEVELS
    support = 2.0 ** np.mean([log2_quantiles(answers, levels) for answers in members], axis=0)
    weights = (1 / AVERAGED_LEVELS,) * AVERAGED_LEVELS
    return [
        Prediction(
            tuple(column.tolist()), weights, float(np.mean([p.p_fail for p in told])),
            scale_known=all(p.scale_known for p in told), trust=all(p.trust for p in told), reason=told[0].reason,
        )
        for column, told in zip(support.T, zip(*members, strict=True), strict=True)
    ]  # fmt: skip


# ---- whether claims came true ----


def claimed_ranks(predictions: Sequence[Prediction], true_us: Sequence[float]) -> Array:
    """(n,) the level that each prediction gave to what came (the probability integral transform): uniform on [0, 1]
    where predictions are calibrated (Dawid 1984)."""
    return np.array([p.probability_below(us) for p, us in zip(predictions, true_us, strict=True)])


def reliability_by_level(ranks: ArrayLike, *, levels: Sequence[float] = LEVELS) -> list[tuple[float, float]]:
    """(claimed level, observed share): the share of rows that lay below the quantile of that level."""
    array = np.asarray(ranks, dtype=np.float64)
    if not array.size:
        raise UserError("got no ranks, expected at least one prediction to judge")
    return [(level, float((array <= level).mean())) for level in levels]


def rank_histogram(ranks: ArrayLike, *, bins: int = 10) -> Array:
    """(bins,) shares of the ranks by equal bins of [0, 1]: flat where calibrated, a U where intervals are too narrow, a
    hump where they are too wide, a slope where they are off to one side."""
    array = np.asarray(ranks, dtype=np.float64)
    return np.histogram(array, bins, (0.0, 1.0))[0] / array.size
