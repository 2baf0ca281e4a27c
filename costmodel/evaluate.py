"""How good predictions are: rank correlation inside a space, errors with and without a scale, top-k, coverage.

A space is what `dataset.space_key` says: one kernel on one problem and device, or an operator on a device. Rank figures
are taken inside each space and averaged; error and coverage figures are taken over its rows and averaged likewise, so a
large space does not drown a small one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from costmodel import stats
from costmodel.dataset import space_key
from costmodel.records import Measurement, Prediction, UserError
from costmodel.uncertainty import predict_all as predict_all

By = Literal["kernel", "problem", "device", "space"]
MIN_SPACE = 8  # rank correlation of fewer points says nothing

_KEYS: dict[str, Callable[[Measurement], str]] = {
    "kernel": lambda m: m.variant.kernel.name,
    "problem": lambda m: f"{m.variant.problem.op} {m.variant.problem}",
    "device": lambda m: m.device.name,
    "space": lambda m: f"{m.variant.kernel.name} {m.variant.problem} {m.device.name}",
}


def average(members: Sequence[Sequence[Prediction]]) -> np.ndarray:
    """Geometric mean of the members' medians, in microseconds: how several models rank as one."""
    return 2.0 ** np.log2([[p.median_us for p in member] for member in members]).mean(axis=0)


def evaluate(
    measurements: Sequence[Measurement],
    predictions: Sequence[Prediction],
    *,
    by: By = "kernel",
    readout: str = "median",
) -> pd.DataFrame:
    """One row a group, and the mean over groups last; failures are left out. Errors are fractions, not per cent.

    readout: what of a prediction is compared, see `Prediction.read_us`.

    top1 and top10: the optimum over the best true latency among the 1 and 10 predicted fastest, 1 is perfect. Where a
    model does not know the scale of a space, its mape and median_ape there are NaN, and coverage90 is taken after the
    one factor of mape_scaled; a group averages the spaces that have a figure.
    """
    points = np.array([p.read_us(readout) for p in predictions])
    intervals = [(p.quantile_us(0.05), p.quantile_us(0.95)) for p in predictions]
    return evaluate_points(measurements, points, intervals, by=by, scale_known=[p.scale_known for p in predictions])


def evaluate_points(
    measurements: Sequence[Measurement],
    predicted_us: np.ndarray,
    intervals_us: Sequence[tuple[float, float]] | None = None,
    *,
    by: By = "kernel",
    scale_known: Sequence[bool] | None = None,
) -> pd.DataFrame:
    """As `evaluate`, from point predictions; without intervals there is no coverage, and scales count as known."""
    if by not in _KEYS:
        raise UserError(f"got by={by!r}, expected one of {', '.join(_KEYS)}")
    table = pd.DataFrame(
        {
            "group": [_KEYS[by](m) for m in measurements],
            "space": [space_key(m) for m in measurements],
            "true": [m.latency_us for m in measurements],
            "predicted": predicted_us,
            "low": [low for low, _ in intervals_us] if intervals_us is not None else np.nan,
            "high": [high for _, high in intervals_us] if intervals_us is not None else np.nan,
            "scale_known": list(scale_known) if scale_known is not None else True,
        }
    )
    table = table[np.isfinite(table["true"])]
    per_space = [
        {"group": group, **_space_row(rows)}
        for (group, _), rows in table.groupby(["group", "space"], sort=False)
        if len(rows) >= MIN_SPACE
    ]
    if not per_space:
        raise UserError(f"got no space with {MIN_SPACE} measured configs; collect more configs per problem")
    frame = pd.DataFrame(per_space)
    counts = frame.groupby("group", sort=True)["n"].sum()
    means = frame.drop(columns="n").groupby("group", sort=True).mean()
    means.loc["mean"] = means.mean()
    means.insert(0, "n", [*counts, counts.sum()])
    return means.reset_index()


def _space_row(rows: pd.DataFrame) -> dict[str, float]:
    true, predicted = rows["true"].to_numpy(), rows["predicted"].to_numpy()
    known = bool(rows["scale_known"].all())
    factor = 1.0 if known else float(np.exp(np.median(np.log(true) - np.log(predicted))))
    low, high = factor * rows["low"].to_numpy(), factor * rows["high"].to_numpy()
    return {
        "n": len(rows),
        "spearman": stats.spearman(true, predicted),
        "kendall": stats.kendall(true, predicted),
        "mape": stats.mape(true, predicted) if known else float("nan"),
        "median_ape": stats.median_ape(true, predicted) if known else float("nan"),
        "mape_scaled": stats.mape_scaled(true, predicted),
        "top1": 1 / stats.top_k_slowdown(true, predicted, 1),
        "top10": 1 / stats.top_k_slowdown(true, predicted, 10),
        "coverage90": stats.coverage(low, high, true) if rows["low"].notna().all() else float("nan"),
    }
