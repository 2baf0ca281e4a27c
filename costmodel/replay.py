"""Replay searches on recorded spaces: what a strategy would have found, and after how many benchmarks and seconds.

A space is every measurement of one kernel on one problem and device. A failed configuration costs an evaluation, as it
does in life. The strategies themselves are in `strategies`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from costmodel import stats
from costmodel.dataset import SpaceKey, device_identity, kernel_identity, space_key
from costmodel.records import Config, Device, Kernel, Measurement, Problem, UserError, Variant

NEVER = math.inf
CHECKPOINTS = (1, 10, 20, 50, 100)  # evaluations at which a fraction of the optimum is always told
LATER_CHECKPOINTS = (200, 500, 1000)  # and where the budget reaches them
TARGETS = (0.05, 0.01)  # how near to the optimum a search should come
COSTS = ("compile_us", "verification_us", "benchmark_us")  # counters: what an evaluation took


@dataclass(frozen=True)
class RecordedSpace:
    """All that was measured of one kernel on one problem and device."""

    kernel: Kernel
    problem: Problem
    device: Device
    measurements: tuple[Measurement, ...] = field(repr=False)
    default: Variant | None = None

    @property
    def name(self) -> str:
        return f"{self.kernel.name} {self.problem}"

    @property
    def key(self) -> SpaceKey:
        return space_key(self.measurements[0])

    @property
    def optimum_us(self) -> float:
        return min(m.latency_us for m in self.measurements if m.status == "ok")

    @property
    def latencies_us(self) -> list[float]:
        """Of the successes."""
        return [m.latency_us for m in self.measurements if m.status == "ok"]

    @property
    def failures(self) -> int:
        return sum(m.status != "ok" for m in self.measurements)

    def others(self, measurements: Iterable[Measurement]) -> list[Measurement]:
        """Those from other devices: what a prior may know before this device was ever measured."""
        own = device_identity(self.device)
        return [m for m in measurements if m.device.name != self.device.name and device_identity(m.device) != own]


def spaces(
    measurements: Iterable[Measurement], defaults: Mapping[str, Config], *, min_size: int
) -> list[RecordedSpace]:
    """Group measurements (one per identity) into spaces; defaults: kernel identity -> default config.

    Left out are spaces of fewer than `min_size` measurements, of failures alone, and operators, which have no config.
    """
    groups: dict[SpaceKey, list[Measurement]] = {}
    for m in measurements:
        if m.variant.kernel.language != "operator":
            groups.setdefault(space_key(m), []).append(m)
    found = []
    for members in groups.values():
        if len(members) < min_size or not any(m.status == "ok" for m in members):
            continue
        first = members[0]
        kernel, problem = first.variant.kernel, first.variant.problem
        wanted = defaults.get(kernel_identity(kernel))
        default = next((m.variant for m in members if m.variant.config == wanted), None)
        unique = {m.variant: m for m in members}
        found.append(RecordedSpace(kernel, problem, first.device, tuple(unique.values()), default))
    return sorted(found, key=lambda space: (space.name, space.device.name))


class RecordedRunner:
    """A Runner that answers from a recorded space."""

    def __init__(self, space: RecordedSpace) -> None:
        self.device = space.device
        self._table = {m.variant: m for m in space.measurements}

    def measure(self, variants: Sequence[Variant]) -> list[Measurement]:
        missing = [v for v in variants if v not in self._table]
        if missing:
            raise UserError(
                f"got {missing[0].config}, which was not recorded; expected one of the space's own variants"
            )
        return [self._table[v] for v in variants]


# ------------------------------------------------------------------------------------------------- running strategies


@dataclass(frozen=True, slots=True)
class Trace:
    """Measurements in order of evaluation, and what the search claimed on its way.

    claims: (evaluations, probability that an unmeasured candidate is more than 5 % faster than the best so far).
    """

    taken: tuple[Measurement, ...]
    claims: tuple[tuple[int, float], ...] = ()

    def best_so_far_us(self, budget: int) -> np.ndarray:
        """(budget,) infinite until the first success; a search that stopped early keeps its last."""
        us = np.array([m.latency_us for m in self.taken[:budget]] or [math.nan])
        best = np.fmin.accumulate(np.where(np.isnan(us), math.inf, us))
        return np.concatenate([best, np.full(max(budget - len(best), 0), best[-1])])


@dataclass(frozen=True, slots=True)
class Strategy:
    """(space, budget, seed) -> Trace. `seeded` says whether the seed matters; where it does not, one run says all."""

    search: Callable[[RecordedSpace, int, int], Trace]
    seeded: bool = True

    def __call__(self, space: RecordedSpace, budget: int, seed: int) -> Trace:
        return self.search(space, budget, seed)


@dataclass(frozen=True, slots=True)
class Run:
    """One strategy on one space with one seed."""

    space: RecordedSpace
    strategy: str
    seed: int
    budget: int
    trace: Trace
    seeded: bool = True

    def fractions(self) -> np.ndarray:
        """(budget,) optimum over the best so far; 0 while every evaluation failed."""
        return self.space.optimum_us / self.trace.best_so_far_us(self.budget)

    def evaluations_to(self, within: float) -> float:
        return evaluations_to(self.trace.taken, self.space.optimum_us, within)

    def seconds_to(self, within: float) -> float:
        """Seconds of compiling and benchmarking until then, failures included; NaN where the record does not say."""
        reached = self.evaluations_to(within)
        if reached == NEVER:
            return NEVER
        return sum(map(cost_us, self.trace.taken[: int(reached)])) / 1e6


def replay(
    recorded: Sequence[RecordedSpace], strategies: Mapping[str, Strategy], *, budget: int, seeds: int
) -> Iterator[Run]:
    """Run every strategy on every space with every seed; a strategy that has no use for a seed runs once."""
    for space in recorded:
        for name, strategy in strategies.items():
            for seed in range(seeds if strategy.seeded else 1):
                yield Run(space, name, seed, budget, strategy(space, budget, seed), strategy.seeded)


def evaluations_to(taken: Sequence[Measurement], optimum_us: float, within: float) -> float:
    """How many evaluations until one is within a share of the optimum; infinite if none is."""
    reached = stats.evaluations_to([m.latency_us for m in taken], optimum_us, within=within)
    return NEVER if reached is None else float(reached)


def cost_us(measurement: Measurement) -> float:
    """What the evaluation took: compiling, checking and benchmarking, as its counters tell; NaN where none does."""
    told = [value for name, value in measurement.counters if name in COSTS]
    return float(sum(told)) if told else math.nan


# --------------------------------------------------------------------------------------------------------- summaries


def table(runs: Iterable[Run]) -> pd.DataFrame:
    """One row a run."""
    return pd.DataFrame(
        [
            {
                "space": run.space.name,
                "device": run.space.device.name,
                "strategy": run.strategy,
                "seed": run.seed,
                "size": len(run.space.measurements),
                **{f"fraction_at_{n}": run.fractions()[min(n, run.budget) - 1] for n in CHECKPOINTS},
                "to_5_percent": run.evaluations_to(0.05),
                "to_1_percent": run.evaluations_to(0.01),
            }
            for run in runs
        ]
    )


def summarise(runs: pd.DataFrame, *, never: float) -> pd.DataFrame:
    """Per strategy: the geometric mean over spaces of the median evaluations to 5 % and 1 % (a run that never got there
    counts as `never`), and the mean over spaces of the median fractions."""
    counts = ["to_5_percent", "to_1_percent"]
    fractions = [column for column in runs if str(column).startswith("fraction_at_")]
    by = ["strategy", "space", "device"]
    medians = runs.replace(NEVER, never).groupby(by, sort=False)[counts + fractions].median()
    by_strategy = medians.groupby("strategy", sort=False)
    return pd.concat([by_strategy[counts].agg(stats.geometric_mean), by_strategy[fractions].mean()], axis=1)


def grouped(runs: Iterable[Run]) -> dict[tuple[SpaceKey, str], list[Run]]:
    """Runs of one strategy on one space, in order of first appearance."""
    found: dict[tuple[SpaceKey, str], list[Run]] = {}
    for run in runs:
        found.setdefault((run.space.key, run.strategy), []).append(run)
    return found


def summary_rows(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """One JSON-able row for each space and strategy: medians over seeds, None for never, 95 % bootstrap intervals."""
    return [_summary_row(members) for members in grouped(runs).values()]


def _summary_row(runs: Sequence[Run]) -> dict[str, Any]:
    space, budget = runs[0].space, runs[0].budget
    fractions = np.array([run.fractions() for run in runs])
    checkpoints = [*CHECKPOINTS, *(n for n in LATER_CHECKPOINTS if n <= budget)]
    checkpoints = sorted({*checkpoints, budget})
    curves = np.array([run.trace.best_so_far_us(budget) for run in runs])
    score, covered = stats.p_score(curves, space.latencies_us, failures=space.failures)
    to = {within: [run.evaluations_to(within) for run in runs] for within in TARGETS}
    seconds = {within: [run.seconds_to(within) for run in runs] for within in TARGETS}
    return {
        "space": space.name,
        "device": space.device.name,
        "strategy": runs[0].strategy,
        "fraction_at": {str(n): float(np.median(fractions[:, n - 1])) if n <= budget else None for n in checkpoints},
        "evaluations_to": {str(within): _median(values) for within, values in to.items()},
        "seconds_to": {str(within): _median(values) for within, values in seconds.items()},
        "seeds": len(runs),
        "seeded": runs[0].seeded,
        "budget": budget,
        "fraction_at_interval": {str(n): _interval(fractions[:, n - 1]) if n <= budget else None for n in checkpoints},
        "evaluations_to_interval": {str(within): _interval(values) for within, values in to.items()},
        "p_score": score,
        "p_score_evaluations": covered,
        "size": len(space.measurements),
        "failures": space.failures,
        "optimum_us": space.optimum_us,
        "tied_with_optimum": stats.tied_with_best([m.samples_us for m in space.measurements if m.status == "ok"]),
        "random_evaluations_to": {
            str(within): stats.expected_random_evaluations(space.latencies_us, within=within, failures=space.failures)
            for within in TARGETS
        },
        "stop_rule": stop_rule(runs),
    }


def _median(values: Sequence[float]) -> float | None:
    """The median where never is infinite; None for never and for what no record tells."""
    middle = float(np.median(values))
    return middle if math.isfinite(middle) else None


def _interval(values: Sequence[float] | np.ndarray) -> list[float | None]:
    return [edge if math.isfinite(edge) else None for edge in stats.median_interval(values, seed=0)]


def stop_rule(runs: Iterable[Run], *, within: float = 0.05) -> list[dict[str, float]]:
    """The search's claim that a candidate more than 5 % faster remains, against what remained: one row a bin of claims.

    `remained` is the share of claims for which there was one, `regret` how much slower the best so far was than the
    optimum, on average.
    """
    claimed, regrets = [], []
    for run in runs:
        best = run.trace.best_so_far_us(run.budget)
        for evaluations, claim in run.trace.claims:
            if math.isfinite(best[evaluations - 1]):
                claimed.append(claim)
                regrets.append(best[evaluations - 1] / run.space.optimum_us - 1)
    if not claimed:
        return []
    remained = [float(regret > within) for regret in regrets]
    told = stats.reliability(claimed, remained)
    lost = stats.reliability(claimed, regrets)
    return [
        {"claimed": claim, "remained": share, "regret": regret, "count": count}
        for (claim, share, count), (_, regret, _) in zip(told, lost, strict=True)
    ]


def evaluation_ratio(
    runs: Iterable[Run], strategy: str, other: str, *, within: float = 0.05, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """(ratio, low, high): the geometric mean over spaces of the median evaluations that `strategy` needs to come within
    a share of the optimum over those of `other`, with a 95 % bootstrap over the seeds of each space. A run that never
    got there counts as twice its budget.
    """
    rng = np.random.default_rng(seed)
    counts: dict[SpaceKey, dict[str, list[float]]] = {}
    for run in runs:
        reached = min(run.evaluations_to(within), 2.0 * run.budget)
        counts.setdefault(run.space.key, {}).setdefault(run.strategy, []).append(reached)
    logs, drawn = [], []
    for by_strategy in counts.values():
        mine, theirs = np.array(by_strategy[strategy]), np.array(by_strategy[other])
        logs.append(math.log(np.median(mine) / np.median(theirs)))
        medians = [np.median(x[rng.integers(0, len(x), (resamples, len(x)))], axis=1) for x in (mine, theirs)]
        drawn.append(np.log(medians[0] / medians[1]))
    low, high = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975])
    return math.exp(float(np.mean(logs))), math.exp(low), math.exp(high)
