"""Boosted trees for library operators on GPUs nobody has measured: the opponent for matrix products and rows.

One regressor for each class of operator (`floor.op_class`) learns log2(latency / floor) from what a problem comes to on
a device: waves, tails and padding for each tile size, what binds, alignment, the floor itself. With a handful of
training devices any ratio that is constant on a device (power to compute, flops to bytes on rows, rows in flight to L2)
names it, and the trees then learn devices by heart; such ratios are no features, and the trees are small. Both were
chosen by leaving one GPU out of five (`benchmarks/operators.py`): they are opponents at their best on that table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingRegressor

from costmodel.baselines import log_normal
from costmodel.floor import TILES, estimate_us, floor_us, op_class, terms, tile_waste
from costmodel.records import Device, Measurement, Prediction, Problem, Variant

_SD_OF_THE_ESTIMATE = 0.5  # log2; the grey box is within 20 to 30 % on devices it was not fitted on


class OperatorTrees:
    """The CostModel protocol. A class of operator of which nothing was measured is predicted by `floor.estimate_us`."""

    def __init__(self, *, seed: int, iterations: int = 150, leaves: int = 12, learning_rate: float = 0.06) -> None:
        self._options = {
            "loss": "absolute_error", "max_iter": iterations, "max_leaf_nodes": leaves, "learning_rate": learning_rate,
            "min_samples_leaf": 40, "early_stopping": False, "max_features": 0.7, "random_state": seed,
        }  # fmt: skip
        self._measured: dict[str, list[Measurement]] = {}
        self._fitted: dict[str, tuple[HistGradientBoostingRegressor, list[str], float]] = {}

    def update(self, measurements: Sequence[Measurement]) -> None:
        """Refit the classes of which something new was measured."""
        touched = set()
        for m in measurements:
            if m.status == "ok":
                kind = op_class(m.variant.problem)
                self._measured.setdefault(kind, []).append(m)
                touched.add(kind)
        for kind in sorted(touched):
            mine = self._measured[kind]
            table = pd.DataFrame([operator_features(m.variant.problem, m.device) for m in mine])
            z = np.array([math.log2(m.latency_us / floor_us(m.variant.problem, m.device)) for m in mine])
            regressor = HistGradientBoostingRegressor(**self._options)
            regressor.fit(table.to_numpy(float), z)
            sd = float(max((regressor.predict(table.to_numpy(float)) - z).std(), 0.1))
            self._fitted[kind] = regressor, list(table.columns), sd

    def predict(self, variants: Sequence[Variant], device: Device) -> list[Prediction]:
        """All variants of one problem get the same prediction: an operator has no config."""
        by_kind: dict[str, list[Problem]] = {}
        for problem in dict.fromkeys(v.problem for v in variants):
            by_kind.setdefault(op_class(problem), []).append(problem)
        told: dict[Problem, Prediction] = {}
        for kind, problems in by_kind.items():
            if kind not in self._fitted:
                told |= {p: log_normal(math.log2(estimate_us(p, device)), _SD_OF_THE_ESTIMATE) for p in problems}
                continue
            regressor, columns, sd = self._fitted[kind]
            table = pd.DataFrame([operator_features(p, device) for p in problems]).reindex(columns=columns)
            for problem, z in zip(problems, regressor.predict(table.to_numpy(float)), strict=True):
                told[problem] = log_normal(math.log2(floor_us(problem, device)) + float(z), sd)
        return [told[v.problem] for v in variants]


def operator_features(problem: Problem, device: Device) -> dict[str, float]:
    """What the problem comes to on the device; logarithms to base 2. Each is named for what it is."""
    found = terms(problem, device)
    floor = max([1e-6, *(value for name, value in found.items() if name.endswith("_us"))])
    sizes = {name: value for name, value in problem.params if isinstance(value, int) and value > 0}
    features = {"log2_floor_us": math.log2(floor)}
    features |= {f"alignment_{name}": float(min(value & -value, 32)) for name, value in sizes.items()}
    if "tile_us" in found:
        features |= {f"{name}_share": _log2(found.get(name, 0.0) / floor) for name in ("memory_us", "tile_us")}
        return features | {"log2_K": math.log2(sizes["K"])} | _tile_features(problem, device, sizes)
    features["bytes_per_element"] = problem.bytes / math.prod(problem.inputs[0].shape) if problem.inputs else 0.0
    return features | ({"log2_H": math.log2(sizes["H"])} if "H" in sizes else {})


def _tile_features(problem: Problem, device: Device, sizes: dict[str, int]) -> dict[str, float]:
    """For each tile size its time over the compute time; for square tiles waves, their rounding, and padding."""
    rows, columns = sizes.get("M", 1), sizes.get("N", 1)
    features = {}
    for (m, n, _), waste in zip(TILES, tile_waste(problem, device), strict=True):
        features[f"waste_{m}x{n}"] = _log2(waste)
        if m == n:
            across, down = math.ceil(rows / m), math.ceil(columns / n)
            waves = sizes.get("B", 1) * across * down / device.num_units
            features[f"waves_{m}"] = _log2(waves)
            features[f"tail_{m}"] = math.ceil(waves) / waves
            features[f"padding_{m}"] = across * m / rows * (down * n / columns)
    return features


def _log2(value: float) -> float:
    return math.log2(max(value, 1e-9))
