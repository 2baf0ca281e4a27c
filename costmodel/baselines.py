"""Honest opponents behind the same protocol as the network, without torch.

All learn the same quantity as the network does: log2(latency / floor), with the floor of `devices.floor_us`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingRegressor

from costmodel.devices import floor_us
from costmodel.features import config_features, variant_features
from costmodel.gaussian import MaternProcess
from costmodel.records import Device, Measurement, Prediction, Variant

# Quantiles of the standard normal at the middle of 41 equal slices: how a point model states its spread.
_NORMAL_GRID = np.linspace(-3.0, 3.0, 41)
_NORMAL_WEIGHTS = np.exp(-0.5 * _NORMAL_GRID**2) / np.exp(-0.5 * _NORMAL_GRID**2).sum()


def log_normal(log2_us: float, sd_log2: float) -> Prediction:
    """A log-normal latency as a Prediction: median 2**log2_us, spread in powers of two."""
    support = 2.0 ** (log2_us + sd_log2 * _NORMAL_GRID)
    return Prediction(tuple(support.tolist()), tuple(_NORMAL_WEIGHTS.tolist()))


def slowdowns(measurements: Sequence[Measurement]) -> np.ndarray:
    """log2(latency / floor) of measurements that are all ok."""
    return np.array([math.log2(m.latency_us / floor_us(m.variant.problem, m.device)) for m in measurements])


class Roofline:
    """Latency = floor times one factor, learned from what was measured. It cannot rank the configs of a problem."""

    def __init__(self) -> None:
        self.log2_factor, self.sd = 1.0, 2.0

    def predict(self, variants: Sequence[Variant], device: Device) -> list[Prediction]:
        return [log_normal(math.log2(floor_us(v.problem, device)) + self.log2_factor, self.sd) for v in variants]

    def update(self, measurements: Sequence[Measurement]) -> None:
        ok = [m for m in measurements if m.status == "ok"]
        if ok:
            z = slowdowns(ok)
            self.log2_factor, self.sd = float(np.median(z)), float(max(z.std(), 0.1))


class BoostedTrees:
    """Gradient-boosted trees on `variant_features`: the strongest opponent inside a parametrised kernel."""

    def __init__(self, *, seed: int, iterations: int = 600, leaves: int = 63, learning_rate: float = 0.06) -> None:
        self._regressor = HistGradientBoostingRegressor(
            max_iter=iterations, max_leaf_nodes=leaves, learning_rate=learning_rate, l2_regularization=1.0,
            min_samples_leaf=8, max_features=0.5, random_state=seed,
        )  # fmt: skip
        self._measured: list[Measurement] = []
        self._columns: list[str] = []
        self._sd = 1.0

    def update(self, measurements: Sequence[Measurement]) -> None:
        """Refit on everything seen so far."""
        self._measured += [m for m in measurements if m.status == "ok"]
        if not self._measured:
            return
        frames = []
        for device in dict.fromkeys(m.device for m in self._measured):
            mine = [m for m in self._measured if m.device == device]
            frames.append(variant_features([m.variant for m in mine], device).assign(target=slowdowns(mine)))
        table = pd.concat(frames, ignore_index=True)
        target = table.pop("target").to_numpy()
        self._columns = list(table.columns)
        self._regressor.fit(table.to_numpy(float), target)
        self._sd = float(max((self._regressor.predict(table.to_numpy(float)) - target).std(), 0.05))

    def predict(self, variants: Sequence[Variant], device: Device) -> list[Prediction]:
        if not self._columns or not variants:
            return Roofline().predict(variants, device)
        table = variant_features(variants, device).reindex(columns=self._columns)
        z = self._regressor.predict(table.to_numpy(float))
        floors = [math.log2(floor_us(v.problem, device)) for v in variants]
        return [log_normal(base + value, self._sd) for base, value in zip(floors, z, strict=True)]


class NearestNeighbour:
    """The slowdown of the most alike measured variants: same source first, then op, then problem size, then config."""

    def __init__(self, *, neighbours: int = 3) -> None:
        self._neighbours = neighbours
        self._measured: list[Measurement] = []

    def update(self, measurements: Sequence[Measurement]) -> None:
        self._measured += [m for m in measurements if m.status == "ok"]

    def predict(self, variants: Sequence[Variant], device: Device) -> list[Prediction]:
        if not self._measured or not variants:
            return Roofline().predict(variants, device)
        known, z = [m.variant for m in self._measured], slowdowns(self._measured)
        table = variant_features([*variants, *known], device)
        numbers = table.to_numpy(float)
        seen = numbers[len(variants) :]  # the scale is that of what was measured, whatever is asked beside it
        scale = np.nan_to_num(seen, nan=-1.0).std(axis=0)
        numbers = np.nan_to_num(numbers[:, scale > 0] / scale[scale > 0], nan=-4.0)
        asked, seen = numbers[: len(variants)], numbers[len(variants) :]
        same = {k: np.array([v.kernel.identity == k for v in known]) for k in {v.kernel.identity for v in variants}}
        same_op = {op: np.array([v.problem.op == op for v in known]) for op in {v.problem.op for v in variants}}
        predictions = []
        for variant, row in zip(variants, asked, strict=True):
            distance = np.abs(seen - row).sum(axis=1)
            distance = distance + 1e3 * ~same[variant.kernel.identity] + 1e3 * ~same_op[variant.problem.op]
            near = np.argsort(distance, kind="stable")[: self._neighbours]
            base = math.log2(floor_us(variant.problem, device))
            predictions.append(log_normal(base + float(z[near].mean()), float(max(z[near].std(), 0.1))))
        return predictions


class GaussianProcess:
    """Few-shot regression from scratch: a Matern process on the configs measured so far, for one kernel and problem."""

    def __init__(self) -> None:
        self._measured: list[Measurement] = []

    def update(self, measurements: Sequence[Measurement]) -> None:
        self._measured += [m for m in measurements if m.status == "ok"]

    def predict(self, variants: Sequence[Variant], device: Device) -> list[Prediction]:
        if len(self._measured) < 2:
            return Roofline().predict(variants, device)
        features = config_features([*variants, *(m.variant for m in self._measured)])
        target = np.log2([m.latency_us for m in self._measured])
        process = MaternProcess()
        process.fit(features[len(variants) :], target - target.mean())
        mean, sd = process.predict(features[: len(variants)])
        return [log_normal(float(m + target.mean()), float(s)) for m, s in zip(mean, sd, strict=True)]
