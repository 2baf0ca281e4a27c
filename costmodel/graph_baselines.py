"""Opponents of the text model on programs, behind one protocol: fit(rows), predict(rows) -> latencies in microseconds.

They know what the text model is not told: histograms of opcodes and the cost facts of each instruction.
benchmarks/graphs.py compares them.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor

from costmodel.graph_lines import NUMBERS, Program
from costmodel.graph_rows import Row
from costmodel.measure.protocol import ENGINES

Array = NDArray[np.float64]
_FLOPS, _READ, _WRITTEN, _COUNT, _FLOOR = (
    NUMBERS.index(name) for name in ("flops", "bytes_read", "bytes_written", "count", "floor_us")
)
_MOST_KINDS = 128  # columns of a histogram, the most frequent first


class Opponent(Protocol):
    """Learns from rows and predicts latencies, (n,) in microseconds."""

    def fit(self, rows: Sequence[Row]) -> None: ...

    def predict(self, rows: Sequence[Row]) -> Array: ...


def log2_latencies(rows: Sequence[Row]) -> Array:
    return np.log2([row.latency_us for row in rows])


def log2_floors(rows: Sequence[Row]) -> Array:
    return np.log2([row.floor_us for row in rows])


def _numbers(program: Program) -> Array:
    """(n, NUMBERS), plain."""
    return np.exp2(program.nodes.numbers.astype(np.float64)) - 1


class Floor:
    """The frozen floor times one factor for each engine."""

    def __init__(self) -> None:
        self.factors: dict[str, float] = {}

    def fit(self, rows: Sequence[Row]) -> None:
        slowdowns: dict[str, list[float]] = {}
        for row in rows:
            slowdowns.setdefault(row.engine, []).append(row.slowdown)
        self.factors = {engine: float(np.median(found)) for engine, found in slowdowns.items()}

    def predict(self, rows: Sequence[Row]) -> Array:
        return np.asarray(2 ** (log2_floors(rows) + [self.factors.get(row.engine, 0.0) for row in rows]))


class FittedRoofline:
    """sum over instructions of count * max(flops / p, bytes / w, c), its three constants fitted for each engine by
    median error over a grid."""

    PEAKS = (10e3, 20e3, 40e3, 80e3, 160e3)  # flops per us
    BANDWIDTHS = (2e3, 4e3, 8e3, 16e3, 32e3)  # bytes per us
    STARTS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # us

    def __init__(self) -> None:
        self.constants: dict[str, tuple[float, float, float]] = {}

    def fit(self, rows: Sequence[Row]) -> None:
        for engine in {row.engine for row in rows}:
            mine = [row for row in rows if row.engine == engine]
            true = np.array([row.latency_us for row in mine])
            grid = itertools.product(self.PEAKS, self.BANDWIDTHS, self.STARTS)
            errors = {c: np.median(np.abs(np.log(_roofline(mine, c) / true))) for c in grid}
            self.constants[engine] = min(errors, key=lambda c: errors[c])

    def predict(self, rows: Sequence[Row]) -> Array:
        usual = (40e3, 8e3, 2.0)
        return np.array([_roofline([row], self.constants.get(row.engine, usual))[0] for row in rows])


def _roofline(rows: Sequence[Row], constants: tuple[float, float, float]) -> Array:
    peak, bandwidth, start = constants
    totals = []
    for row in rows:
        numbers = _numbers(row.program)
        runs = numbers[:, _FLOOR] > 0
        each = np.maximum(numbers[:, _FLOPS] / peak, (numbers[:, _READ] + numbers[:, _WRITTEN]) / bandwidth)
        totals.append(float((numbers[runs, _COUNT] * np.maximum(each[runs], start)).sum()))
    return np.array(totals)


# ----------------------------------------------------------------------------------------------------------- features


def histogram(program: Program) -> dict[str, float]:
    """By kind: how often it runs, its floating-point operations and its bytes; opcodes inside others by count alone."""
    numbers = _numbers(program)
    found: Counter[str] = Counter()
    for kind, row in zip(program.nodes.kinds, numbers, strict=True):
        opcode, *inside = kind.split(" ")
        heavy = next((name for name in inside if name in ("dot", "convolution", "gather", "scatter", "sort")), "")
        label = f"{opcode} {heavy or (inside[0] if inside else '')}".strip()
        found[f"{label} count"] += row[_COUNT]
        found[f"{label} flops"] += row[_COUNT] * row[_FLOPS]
        found[f"{label} bytes"] += row[_COUNT] * (row[_READ] + row[_WRITTEN])
        for name in inside:
            found[f"{name} inside"] += row[_COUNT]
    return dict(found)


def facts(program: Program) -> list[float]:
    """log2 of flops, bytes read and written, runs, instructions and the floor; and the largest share of one of them."""
    numbers = _numbers(program)
    count = numbers[:, _COUNT]
    totals = [float((count * numbers[:, column]).sum()) for column in (_FLOPS, _READ, _WRITTEN)]
    floors = numbers[:, _FLOOR]
    logs = np.log2([1 + x for x in (*totals, count.sum(), len(count), program.floor_us)])
    return [*logs.tolist(), float(floors.max() / max(floors.sum(), 1e-9))]


class _Table:
    """Rows as numbers: facts, engine, and the histogram over the kinds that training had."""

    def __init__(self, *, with_facts: bool) -> None:
        self.with_facts, self.columns = with_facts, dict[str, int]()

    def fit(self, rows: Sequence[Row]) -> Array:
        seen = Counter(name for row in rows for name in histogram(row.program))
        names = [n for n, _ in seen.most_common() if self.with_facts or n.endswith((" count", " inside"))]
        self.columns = {name: n for n, name in enumerate(names[: 3 * _MOST_KINDS])}
        return self.of(rows)

    def of(self, rows: Sequence[Row]) -> Array:
        table = np.zeros((len(rows), len(self.columns)))
        for n, row in enumerate(rows):
            for name, value in histogram(row.program).items():
                if name in self.columns:
                    table[n, self.columns[name]] = np.log2(1 + value)
        engines = np.array([[row.engine == name for name in ENGINES] for row in rows], dtype=float)
        parts = [table, engines]
        return np.hstack([*parts, np.array([facts(row.program) for row in rows])] if self.with_facts else parts)


class Trees:
    """Boosted trees on a histogram of opcodes, with cost facts or without, on log2 latency or on its residual over the
    floor (`on_residual`)."""

    def __init__(self, *, with_facts: bool = True, on_residual: bool = True, seed: int = 0) -> None:
        self.table, self.on_residual = _Table(with_facts=with_facts), on_residual
        self.regressor = HistGradientBoostingRegressor(
            max_iter=400, learning_rate=0.05, max_leaf_nodes=24, min_samples_leaf=6, l2_regularization=1.0,
            max_features=0.4, random_state=seed,
        )  # fmt: skip

    def fit(self, rows: Sequence[Row]) -> None:
        base = log2_floors(rows) if self.on_residual else 0.0
        self.regressor.fit(self.table.fit(rows), log2_latencies(rows) - base)

    def predict(self, rows: Sequence[Row]) -> Array:
        base = log2_floors(rows) if self.on_residual else 0.0
        return np.asarray(2 ** (base + self.regressor.predict(self.table.of(rows))))


class Nearest:
    """The mean slowdown of the nearest programs by histogram and facts, of those under the same engine."""

    def __init__(self, *, neighbours: int = 3) -> None:
        self.table, self.neighbours = _Table(with_facts=True), neighbours

    def fit(self, rows: Sequence[Row]) -> None:
        self.known = self.table.fit(rows)
        self.scale = np.maximum(self.known.std(axis=0), 1e-9)
        self.slowdowns = np.array([row.slowdown for row in rows])
        self.engines = np.array([row.engine for row in rows])

    def predict(self, rows: Sequence[Row]) -> Array:
        asked = self.table.of(rows)
        slowdowns = []
        for row, values in zip(rows, asked, strict=True):
            distances = (np.abs(self.known - values) / self.scale).sum(axis=1)
            distances = distances + 1e6 * (self.engines != row.engine)
            nearest = np.argsort(distances, kind="stable")[: self.neighbours]
            slowdowns.append(float(self.slowdowns[nearest].mean()))
        return np.asarray(2 ** (log2_floors(rows) + slowdowns))


def opponents(*, seed: int) -> dict[str, Opponent]:
    """All but the graph network, which needs torch (`graph_network`)."""
    return {
        "floor": Floor(),
        "roofline, fitted": FittedRoofline(),
        "nearest": Nearest(),
        "trees on histogram": Trees(with_facts=False, on_residual=False, seed=seed),
        "trees on facts": Trees(on_residual=False, seed=seed),
        "trees on residual": Trees(seed=seed),
    }
