"""Honest opponents behind the same protocol as the network, without torch.

All learn the same quantity as the network does, a slowdown: log2(latency / floor), with the floor of `floor.floor_us`.
Where a problem states no flops and no bytes there is no floor; the slowdown is then relative to the median of its space
(one kernel, problem and device), and a prediction for a space of which nothing was measured says that its scale is
unknown. `NearestTable` and `MeanRank` carry over what was measured on other devices; the rest learn from features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import ExtraTreesRegressor, HistGradientBoostingRegressor

from costmodel.dataset import SpaceKey, space_key
from costmodel.devices import sheet_numbers
from costmodel.features import config_features, variant_features
from costmodel.floor import estimate_us, floor_us, has_estimate, has_floor
from costmodel.gaussian import MaternProcess
from costmodel.records import Config, Device, Kernel, Measurement, Prediction, Problem, Scalar, Timing, Variant

# Quantiles of the standard normal at the middle of 41 equal slices: how a point model states its spread.
_NORMAL_GRID = np.linspace(-3.0, 3.0, 41)
_NORMAL_WEIGHTS = np.exp(-0.5 * _NORMAL_GRID**2) / np.exp(-0.5 * _NORMAL_GRID**2).sum()
_WEIGHTS = tuple(_NORMAL_WEIGHTS.tolist())


def log_normal(log2_us: float, sd_log2: float, *, p_fail: float = 0.0, scale_known: bool = True) -> Prediction:
    """A log-normal latency as a Prediction: median 2**log2_us, spread in powers of two."""
    support = 2.0 ** (log2_us + sd_log2 * _NORMAL_GRID)
    return Prediction(tuple(support.tolist()), _WEIGHTS, p_fail, scale_known=scale_known)


class References:
    """What the slowdowns of a space are relative to, in log2 of microseconds."""

    def __init__(self) -> None:
        self._latencies_us: dict[SpaceKey, list[float]] = {}
        self._medians: dict[SpaceKey, float] = {}

    def add(self, ok: Sequence[Measurement]) -> None:
        """Take in successes; only spaces without a floor need them."""
        for m in ok:
            if not has_floor(m.variant.problem):
                self._latencies_us.setdefault(space_key(m), []).append(m.latency_us)
        self._medians = {key: math.log2(float(np.median(us))) for key, us in self._latencies_us.items()}

    def of(self, variant: Variant, device: Device) -> tuple[float, bool]:
        """(log2 of the reference, whether it is known); an unknown one counts as 1 us."""
        if has_floor(variant.problem):
            return math.log2(floor_us(variant.problem, device)), True
        key = space_key(Measurement(variant, device, Timing(), (), "crash"))
        return self._medians.get(key, 0.0), key in self._medians

    def slowdowns(self, ok: Sequence[Measurement]) -> np.ndarray:
        """log2(latency / reference) of successes."""
        return np.array([math.log2(m.latency_us) - self.of(m.variant, m.device)[0] for m in ok])

    def predictions(
        self, variants: Sequence[Variant], device: Device, slowdown: Sequence[float], spread: Sequence[float]
    ) -> list[Prediction]:
        """Slowdowns and their standard deviations in log2 as predictions."""
        known: dict[tuple[str, Problem], tuple[float, bool]] = {}
        answers = []
        for variant, z, sd in zip(variants, slowdown, spread, strict=True):
            key = (variant.kernel.identity if not has_floor(variant.problem) else "", variant.problem)
            if key not in known:
                known[key] = self.of(variant, device)
            base, is_known = known[key]
            answers.append(log_normal(base + float(z), float(sd), scale_known=is_known))
        return answers


class Measured:
    """The successes seen so far and their references."""

    def __init__(self) -> None:
        self._ok: list[Measurement] = []
        self._references = References()

    def _take(self, measurements: Sequence[Measurement]) -> list[Measurement]:
        new = [m for m in measurements if m.status == "ok"]
        self._ok += new
        self._references.add(new)
        return new

    def _nothing_known(self, variants: Sequence[Variant], device: Device) -> list[Prediction]:
        return self._references.predictions(variants, device, [1.0] * len(variants), [2.0] * len(variants))


class Roofline(Measured):
    """Latency = `floor.estimate_us` times one factor, learned from what was measured. It cannot rank the configs of a
    problem. Before anything is measured the factor is 1, or 2 where the estimate is no more than the floor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log2_factor: float | None = None
        self.sd = 2.0

    def predict(self, variants: Sequence[Variant], device: Device) -> list[Prediction]:
        expected = {problem: self._expected(problem, device) for problem in {v.problem for v in variants}}
        slowdown = [expected[v.problem] for v in variants]
        return self._references.predictions(variants, device, slowdown, [self.sd] * len(variants))

    def update(self, measurements: Sequence[Measurement]) -> None:
        if new := self._take(measurements):
            z = self._references.slowdowns(new) - [_above_floor(m.variant.problem, m.device) for m in new]
            self.log2_factor, self.sd = float(np.median(z)), float(max(z.std(), 0.1))

    def _expected(self, problem: Problem, device: Device) -> float:
        """log2(latency / floor)"""
        if self.log2_factor is not None:
            return self.log2_factor + _above_floor(problem, device)
        return _above_floor(problem, device) if has_estimate(problem, device) else 1.0


def _above_floor(problem: Problem, device: Device) -> float:
    """log2(estimate / floor); 0 for a problem without a floor."""
    return math.log2(estimate_us(problem, device) / floor_us(problem, device)) if has_floor(problem) else 0.0


class _Trees(Measured):
    """A regressor of scikit-learn on `variant_features`, fitted anew on everything at each update."""

    def __init__(self, regressor: Any) -> None:
        super().__init__()
        self._regressor, self._columns, self._sd = regressor, pd.Index([]), 1.0

    def update(self, measurements: Sequence[Measurement]) -> None:
        if not self._take(measurements) and not self._ok:
            return
        frames = []
        for device in dict.fromkeys(m.device for m in self._ok):
            mine = [m for m in self._ok if m.device == device]
            features = variant_features([m.variant for m in mine], device)
            frames.append(features.assign(target=self._references.slowdowns(mine)))
        table = pd.concat(frames, ignore_index=True).dropna(axis="columns", how="all")
        target = table.pop("target").to_numpy()
        self._columns = table.columns
        self._regressor.fit(table.to_numpy(float), target)
        self._sd = float(max((self._regressor.predict(table.to_numpy(float)) - target).std(), 0.05))

    def predict(self, variants: Sequence[Variant], device: Device) -> list[Prediction]:
        if not len(self._columns) or not variants:
            return self._nothing_known(variants, device)
        table = variant_features(variants, device).reindex(columns=self._columns)
        z = self._regressor.predict(table.to_numpy(float))
        return self._references.predictions(variants, device, z, [self._sd] * len(variants))


def boosting(
    *, seed: int, iterations: int = 600, leaves: int = 63, learning_rate: float = 0.06
) -> HistGradientBoostingRegressor:
    return HistGradientBoostingRegressor(
        max_iter=iterations, max_leaf_nodes=leaves, learning_rate=learning_rate, l2_regularization=1.0,
        min_samples_leaf=8, max_features=0.5, random_state=seed,
    )  # fmt: skip


class BoostedTrees(_Trees):
    """Gradient-boosted trees: the strongest opponent inside a parametrised kernel."""

    def __init__(self, *, seed: int, iterations: int = 600, leaves: int = 63, learning_rate: float = 0.06) -> None:
        super().__init__(boosting(seed=seed, iterations=iterations, leaves=leaves, learning_rate=learning_rate))


class RandomForest(_Trees):
    """Randomised trees, averaged (Geurts et al. 2006)."""

    def __init__(self, *, seed: int, trees: int = 40) -> None:
        super().__init__(ExtraTreesRegressor(trees, min_samples_leaf=2, max_features=0.5, random_state=seed))


class NearestNeighbour(Measured):
    """The slowdown of the most alike measured variants: same source first, then op, then problem size, then config."""

    def __init__(self, *, neighbours: int = 3) -> None:
        super().__init__()
        self._neighbours = neighbours

    def update(self, measurements: Sequence[Measurement]) -> None:
        self._take(measurements)

    def predict(self, variants: Sequence[Variant], device: Device) -> list[Prediction]:
        if not self._ok or not variants:
            return self._nothing_known(variants, device)
        known, z = [m.variant for m in self._ok], self._references.slowdowns(self._ok)
        numbers = variant_features([*variants, *known], device).to_numpy(float)
        seen = numbers[len(variants) :]  # the scale is that of what was measured, whatever is asked beside it
        scale = np.nan_to_num(seen, nan=-1.0).std(axis=0)
        numbers = np.nan_to_num(numbers[:, scale > 0] / scale[scale > 0], nan=-4.0)
        asked, seen = numbers[: len(variants)], numbers[len(variants) :]
        same = {k: np.array([v.kernel.identity == k for v in known]) for k in {v.kernel.identity for v in variants}}
        same_op = {op: np.array([v.problem.op == op for v in known]) for op in {v.problem.op for v in variants}}
        slowdown, spread = [], []
        for variant, row in zip(variants, asked, strict=True):
            distance = np.abs(seen - row).sum(axis=1)
            distance = distance + 1e3 * ~same[variant.kernel.identity] + 1e3 * ~same_op[variant.problem.op]
            near = np.argsort(distance, kind="stable")[: self._neighbours]
            slowdown.append(float(z[near].mean()))
            spread.append(float(max(z[near].std(), 0.1)))
        return self._references.predictions(variants, device, slowdown, spread)


class GaussianProcess(Measured):
    """Few-shot regression from scratch: a Matern process on the configs measured so far, for one kernel and problem."""

    def update(self, measurements: Sequence[Measurement]) -> None:
        self._take(measurements)

    def predict(self, variants: Sequence[Variant], device: Device) -> list[Prediction]:
        if len(self._ok) < 2:
            return self._nothing_known(variants, device)
        features = config_features([*variants, *(m.variant for m in self._ok)])
        target = np.log2([m.latency_us for m in self._ok])
        process = MaternProcess()
        process.fit(features[len(variants) :], target - target.mean())
        mean, sd = process.predict(features[: len(variants)])
        return [log_normal(float(m + target.mean()), float(s)) for m, s in zip(mean, sd, strict=True)]


# ------------------------------------------------------------------------------------- what other devices measured

Kind = tuple[str, str, tuple[str, ...], Problem]  # language, kernel name, parameter names, problem
ConfigKey = tuple[tuple[str, Scalar], ...]  # sorted by name
Table = dict[ConfigKey, float]  # log2 latency_us; infinite where it failed

_WORST = 2.0  # the rank, as a share, of what failed or is missing


def _kind(variant: Variant) -> Kind:
    """What tables of two devices must share; a space is the same whatever order its parameters are listed in."""
    kernel = variant.kernel
    language = "cuda" if kernel.language == "hip" else kernel.language  # one text compiled for two vendors
    return language, kernel.name, tuple(sorted(name for name, _ in variant.config.params)), variant.problem


def _config_key(config: Config) -> ConfigKey:
    return tuple(sorted(config.params))


def sheet_distance(one: Device, other: Device) -> tuple[bool, bool, float]:
    """How unlike two devices are: another vendor first, then another architecture, then their numbers.

    The last is the sum of |log2 ratio| of f32 rate, bandwidth, units, clock and L2, where both sheets state them.
    """
    numbers = zip(sheet_numbers(one), sheet_numbers(other), strict=True)
    ratios = [abs(math.log2(a / b)) for a, b in numbers if a > 0 and b > 0]
    return one.vendor != other.vendor, one.arch != other.arch, sum(ratios)


class _Tables:
    """Measurements by kind and device."""

    def __init__(self) -> None:
        self._tables: dict[Kind, dict[Device, Table]] = {}
        self._references = References()

    def update(self, measurements: Sequence[Measurement]) -> None:
        for m in measurements:
            table = self._tables.setdefault(_kind(m.variant), {}).setdefault(m.device, {})
            table[_config_key(m.variant.config)] = math.log2(m.latency_us) if m.status == "ok" else math.inf
        self._references.add([m for m in measurements if m.status == "ok"])

    def knows(self, variant: Variant) -> bool:
        """Whether there is a table of this kernel and problem with a success."""
        return bool(self._usable(variant))

    def _usable(self, variant: Variant) -> dict[Device, Table]:
        tables = self._tables.get(_kind(variant), {})
        return {device: table for device, table in tables.items() if any(map(math.isfinite, table.values()))}

    def _by_kind(
        self,
        variants: Sequence[Variant],
        device: Device,
        answer: Callable[[Sequence[Variant], Mapping[Device, Table]], tuple[np.ndarray, np.ndarray]],
    ) -> list[Prediction]:
        """Ask `answer` (slowdowns, failure shares) kind by kind; what no table knows gets one value."""
        groups: dict[tuple[Kernel, Problem], list[int]] = {}
        for i, variant in enumerate(variants):
            groups.setdefault((variant.kernel, variant.problem), []).append(i)
        slowdown, failing, spread = np.ones(len(variants)), np.zeros(len(variants)), np.full(len(variants), 2.0)
        for rows in groups.values():
            mine = [variants[i] for i in rows]
            if tables := self._usable(mine[0]):
                slowdown[rows], failing[rows] = answer(mine, tables)
                spread[rows] = 0.5
        predictions = self._references.predictions(variants, device, list(slowdown), list(spread))
        return [
            Prediction(p.support_us, p.weights, float(fail), scale_known=p.scale_known)
            for p, fail in zip(predictions, failing, strict=True)
        ]

    def _slowdowns(self, problem: Problem, device: Device, table: Table) -> Table:
        """The table in log2 relative to its device's reference."""
        if has_floor(problem):
            base = math.log2(floor_us(problem, device))
        else:
            base = float(np.median([us for us in table.values() if math.isfinite(us)]))
        return {config: us - base for config, us in table.items()}

    def _own(self, problem: Problem, device: Device, tables: Mapping[Device, Table]) -> Table:
        """What was measured on the device itself: it stands before what others measured."""
        return self._slowdowns(problem, device, tables[device]) if device in tables else {}


class NearestTable(_Tables):
    """The table of the nearest other device that measured the same kernel and problem: the line to beat without
    training.

    What that device lacks ranks below all it has; what failed there is predicted to fail. What the device itself has
    measured is known.
    """

    def predict(self, variants: Sequence[Variant], device: Device) -> list[Prediction]:
        return self._of_place(0, variants, device)

    def each(self, variants: Sequence[Variant], device: Device) -> list[list[Prediction]]:
        """From every other device that measured the first variant's kernel and problem, nearest first: a search has use
        for them all."""
        others = sum(other != device for other in self._usable(variants[0])) if variants else 0
        return [self._of_place(place, variants, device) for place in range(others)]

    def _of_place(self, place: int, variants: Sequence[Variant], device: Device) -> list[Prediction]:
        """From the nearest device (0), the second nearest (1), ...; from the last where there are not as many."""

        def answer(mine: Sequence[Variant], tables: Mapping[Device, Table]) -> tuple[np.ndarray, np.ndarray]:
            near = sorted(tables, key=lambda other: (other == device, *sheet_distance(device, other), other.name))
            source = near[min(place, len(near) - 1)]
            table = self._slowdowns(mine[0].problem, source, tables[source])
            worst = max(filter(math.isfinite, table.values())) + 1.0
            table |= self._own(mine[0].problem, device, tables)
            z = np.array([table.get(_config_key(v.config), math.nan) for v in mine])
            return np.where(np.isfinite(z), z, worst), np.where(np.isposinf(z), 0.9, 0.0)

        return self._by_kind(variants, device, answer)


class MeanRank(_Tables):
    """The mean rank of a config over all other devices that measured the same kernel and problem.

    A rank is a share of its table, and 2 for what failed or is missing. It is read off the pooled slowdowns, so that
    predictions are latencies again. What the device itself has measured is known.
    """

    def predict(self, variants: Sequence[Variant], device: Device) -> list[Prediction]:
        def answer(mine: Sequence[Variant], tables: Mapping[Device, Table]) -> tuple[np.ndarray, np.ndarray]:
            others = {other: table for other, table in tables.items() if other != device} or tables
            problem, keys = mine[0].problem, [_config_key(v.config) for v in mine]
            pooled: list[float] = []
            ranks, fails = np.zeros(len(mine)), np.zeros(len(mine))
            for source, table in others.items():
                known = self._slowdowns(problem, source, table)
                ordered = sorted(filter(math.isfinite, known.values()))
                z = np.array([known.get(key, math.nan) for key in keys])
                place = np.searchsorted(ordered, np.nan_to_num(z, posinf=0.0)) / len(table)
                ranks += np.where(np.isfinite(z), place, _WORST) / len(others)
                fails += np.isposinf(z) * 0.9 / len(others)
                pooled += ordered
            pooled.sort()
            read = np.interp(ranks, np.linspace(0.0, 1.0, len(pooled)), pooled) + np.maximum(ranks - 1.0, 0.0)
            read += 1e-6 * ranks  # where the pool has ties, the order stays that of the ranks
            own = self._own(problem, device, tables)
            measured = np.array([own.get(key, math.nan) for key in keys])
            return (
                np.where(np.isfinite(measured), measured, read),
                np.where(np.isfinite(measured), 0.0, np.where(np.isposinf(measured), 0.9, fails)),
            )

        return self._by_kind(variants, device, answer)
