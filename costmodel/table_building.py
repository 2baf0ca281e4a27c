"""Making pre-tuned tables: from measurements, each validated by leaving one problem out; and from a model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from costmodel import dataset
from costmodel.joint import probability_near_best
from costmodel.records import Config, CostModel, Device, Measurement, Params, Problem, Timing, Workload
from costmodel.table import FEWEST, TIE, LeftOut, TunedEntry, TunedTable, interpolated

CANDIDATES = 8  # the best of each problem, kept for the other problems
DRAWS = 1000


def build(measurements: Iterable[Measurement], workloads: Mapping[str, Workload]) -> list[TunedTable]:
    """One table for each kernel on each device, in order of names, from measurements (one an identity).

    workloads: by kernel identity; they say what the default and the space are. Numbers that were taken in different
    ways do not meet: where a kernel was timed in several (warm and cold cache, two compilers), the way with the most
    problems counts, then the one with the most measurements.
    """
    ways: dict[tuple[str, str], dict[tuple[Any, ...], list[Measurement]]] = {}
    for m in measurements:
        if m.variant.kernel.language != "operator" and m.status != "compiled":
            key = dataset.kernel_identity(m.variant.kernel), dataset.device_identity(m.device)
            ways.setdefault(key, {}).setdefault((m.timing, m.toolchain), []).append(m)
    tables = []
    for (identity, _), found in ways.items():
        rows = max(found.values(), key=lambda rows: (len({m.variant.problem for m in rows}), len(rows)))
        if any(m.status == "ok" for m in rows):
            tables.append(_table(rows, workloads.get(identity)))
    return sorted(tables, key=lambda table: (table.kernel, table.source_digest, table.device))


def _table(rows: Sequence[Measurement], workload: Workload | None) -> TunedTable:
    first, default = rows[0], workload.default if workload else None
    grid = _Grid.of(rows)
    left_out = _leave_one_out(grid, default)
    chosen = grid.candidates(default)
    places = [grid.configs.index(config) for config in chosen]
    kernel = first.variant.kernel
    return TunedTable(
        kernel.name, kernel.language, dataset.kernel_identity(kernel), kernel.schema, first.variant.problem.op,
        first.device.name, dataset.device_identity(first.device), first.device.vendor, first.timing, first.toolchain,
        default, chosen, left_out,
        tuple(_entry(grid, i, places, default, workload, first.device) for i in range(len(grid.problems))),
        created=max(m.collected_at for m in rows),
    )  # fmt: skip


@dataclass(frozen=True)
class _Grid:
    """Latencies of a kernel's configs on its problems: (problems, configs) microseconds, NaN where not measured."""

    problems: list[Problem]
    configs: list[Config]
    us: np.ndarray
    errors_us: np.ndarray  # standard errors of `us`; 0 for what was sampled once

    @staticmethod
    def of(rows: Sequence[Measurement]) -> _Grid:
        fine = [m for m in rows if m.status == "ok"]
        problems = sorted({m.variant.problem for m in fine}, key=lambda problem: _order(problem.params))
        configs = list(dict.fromkeys(m.variant.config for m in fine))
        us = np.full((len(problems), len(configs)), math.nan)
        errors = us.copy()
        row, column = ({one: i for i, one in enumerate(found)} for found in (problems, configs))
        for m in fine:
            place = row[m.variant.problem], column[m.variant.config]
            us[place], errors[place] = m.latency_us, _error_us(m.samples_us)
        return _Grid(problems, configs, us, errors)

    def without(self, i: int) -> _Grid:
        kept = [j for j in range(len(self.problems)) if j != i]
        return _Grid([self.problems[j] for j in kept], self.configs, self.us[kept], self.errors_us[kept])

    def slowdowns(self) -> np.ndarray:
        return self.us / np.nanmin(self.us, axis=1, keepdims=True)

    def candidates(self, default: Config | None) -> tuple[Config, ...]:
        """The best few of each problem and the default, in order of the configs' values."""
        near = np.where(np.isnan(self.us), math.inf, self.us)
        chosen = {int(c) for row in near for c in np.argsort(row, kind="stable")[:CANDIDATES] if row[c] < math.inf}
        kept = {self.configs[c] for c in chosen} | ({default} if default in self.configs and default else set())
        return tuple(sorted(kept, key=lambda config: _order(config.params)))

    def expected(self, problem: Problem) -> np.ndarray:
        """(configs,) expected slowdowns on a problem, by the module's equation; NaN with no comparable problem."""
        rows, medians = self.slowdowns(), np.nanmedian(self.slowdowns(), axis=1)
        return interpolated(problem.params, [p.params for p in self.problems], rows, medians)


def _order(params: Params) -> tuple[tuple[str, bool, float, str], ...]:
    """A key that sorts names and values of any kinds."""
    return tuple(
        (name, isinstance(x, str), 0.0 if isinstance(x, str) else float(x), str(x)) for name, x in params
    )  # fmt: skip


def _error_us(samples: Sequence[float]) -> float:
    """The standard error of the median of samples, as if they were normal (Kendall and Stuart): 1.25 s / sqrt(n)."""
    return 1.2533 * float(np.std(samples, ddof=1)) / len(samples) ** 0.5 if len(samples) > 1 else 0.0


def _digits(value: float) -> float:
    """Six significant digits: what a file shows, and more than any measurement has."""
    return float(f"{value:.6g}")


def _entry(
    grid: _Grid, i: int, places: Sequence[int], default: Config | None, workload: Workload | None, device: Device
) -> TunedEntry:
    us, problem = grid.us[i], grid.problems[i]
    chosen = _robust(grid, i)
    known = np.flatnonzero(~np.isnan(us))
    best = float(np.nanmin(us))
    default_us = None
    if default in grid.configs and default is not None and not np.isnan(us[grid.configs.index(default)]):
        default_us = _digits(us[grid.configs.index(default)])
    drawn = us[known] + grid.errors_us[i, known] * np.random.default_rng(0).standard_normal((DRAWS, len(known)))
    own = drawn[:, known.tolist().index(chosen)]
    return TunedEntry(
        problem, grid.configs[chosen], "measured", _digits(us[chosen]), default_us,
        measured=len(known),
        space_size=sum(1 for _ in workload.space.configs(problem, device)) if workload else 0,
        tied=int((us[known] <= TIE * us[chosen]).sum()),
        confidence=float((own <= TIE * drawn.min(axis=1)).mean()),
        median_slowdown=_digits(np.nanmedian(us) / best),
        slowdowns=tuple(None if np.isnan(us[c]) else _digits(us[c] / best) for c in places),
    )  # fmt: skip


def _robust(grid: _Grid, i: int) -> int:
    """The best config; among those that noise cannot tell from it, the one that the other problems like best."""
    us, errors = grid.us[i], grid.errors_us[i]
    best = int(np.nanargmin(us))
    alike = np.flatnonzero(us - us[best] <= np.minimum(1.96 * np.hypot(errors, errors[best]), (TIE - 1) * us[best]))
    if len(alike) == 1 or len(grid.problems) == 1:
        return best
    elsewhere = grid.without(i).expected(grid.problems[i])[alike]
    return best if np.isnan(elsewhere).all() else int(alike[np.nanargmin(elsewhere)])


def _leave_one_out(grid: _Grid, default: Config | None) -> LeftOut | None:
    """None with fewer than FEWEST problems. Candidates are chosen anew without the problem that is left out."""
    if len(grid.problems) < FEWEST:
        return None
    picked, defaults, slow = [], [], grid.slowdowns()
    for i, problem in enumerate(grid.problems):
        others = grid.without(i)
        expected = others.expected(problem)
        allowed = np.array([config in others.candidates(default) for config in grid.configs]) & ~np.isnan(slow[i])
        if np.isnan(expected).all() or not allowed.any():
            continue
        picked.append(slow[i, int(np.argmin(np.where(allowed, expected, math.inf)))])
        defaults.append(slow[i, grid.configs.index(default)] if default in grid.configs and default else math.nan)
    if len(picked) < FEWEST:
        return None
    found, standard = np.array(picked), np.array(defaults)
    both = ~np.isnan(standard)
    return LeftOut(
        problems=len(found),
        slowdown=_digits(np.exp(np.log(found).mean())),
        worst=_digits(found.max()),
        with_default=int(both.sum()),
        default_slowdown=_digits(np.exp(np.log(standard[both]).mean())) if both.any() else None,
        worse=int((found[both] > TIE * standard[both]).sum()),
    )


# --------------------------------------------------------------------------------------------------------- from a model


def predicted(workload: Workload, problem: Problem, device: Device, model: CostModel) -> tuple[TunedEntry | None, str]:
    """(entry, why there is none). None where the model does not trust itself or knows no scale."""
    variants = workload.variants(problem, device)
    if not variants:
        return None, f"no valid config of {workload.kernel.name} on {problem}"
    told = model.predict(variants, device)
    if not told[0].trust or not told[0].scale_known:
        return None, f"{problem}: the model does not trust itself: {told[0].reason}"
    alive = [i for i, prediction in enumerate(told) if prediction.p_fail < 0.5]
    if not alive:
        return None, f"{problem}: the model expects every config to fail"
    best = min(range(len(alive)), key=lambda i: told[alive[i]].median_us)
    default = next((_digits(told[i].median_us) for i, v in enumerate(variants) if v.config == workload.default), None)
    entry = TunedEntry(
        problem, variants[alive[best]].config, "predicted", _digits(told[alive[best]].median_us), default,
        measured=0,
        space_size=len(variants),
        tied=sum(1 for i in alive if told[i].median_us <= TIE * told[alive[best]].median_us),
        confidence=probability_near_best([told[i] for i in alive], best),
    )  # fmt: skip
    return entry, ""


def empty(workload: Workload, device: Device, timing: Timing) -> TunedTable:
    """A table of a kernel that nobody measured on the device, for predicted entries."""
    kernel = workload.kernel
    op = next(iter(workload.problems.values())).op
    return TunedTable(
        kernel.name, kernel.language, dataset.kernel_identity(kernel), kernel.schema, op, device.name,
        dataset.device_identity(device), device.vendor, timing, (), workload.default, (), None, (),
    )  # fmt: skip


def with_entries(table: TunedTable, entries: Iterable[TunedEntry]) -> TunedTable:
    """The table with further entries, in the order of their problems."""
    return replace(table, entries=tuple(sorted((*table.entries, *entries), key=lambda e: _order(e.problem.params))))
