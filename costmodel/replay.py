"""Replay searches on recorded spaces: what a strategy would have found, and after how many benchmarks.

A space is every measurement of one kernel (or of several sources of one operation) on one problem and device. A failed
configuration costs an evaluation, as it does in life.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from costmodel import stats
from costmodel.records import Config, CostModel, Device, Kernel, Measurement, Prediction, Problem, UserError, Variant
from costmodel.search import Tuner

NEVER = math.inf


@dataclass(frozen=True)
class RecordedSpace:
    """All that was measured of one kernel on one problem and device."""

    kernel: Kernel
    problem: Problem
    device: Device
    measurements: tuple[Measurement, ...]
    default: Variant | None = None

    @property
    def name(self) -> str:
        return f"{self.kernel.name} {self.problem}"

    @property
    def optimum_us(self) -> float:
        return min(m.latency_us for m in self.measurements if m.status == "ok")


def spaces(measurements: Iterable[Measurement], defaults: dict[str, Config], *, min_size: int) -> list[RecordedSpace]:
    """Group measurements (one per identity) into spaces; defaults: kernel identity -> default config."""
    groups: dict[tuple[str, Problem, Device], list[Measurement]] = {}
    for m in measurements:
        groups.setdefault((m.variant.kernel.identity, m.variant.problem, m.device), []).append(m)
    found = []
    for (identity, problem, device), members in groups.items():
        if len(members) < min_size or not any(m.status == "ok" for m in members):
            continue
        kernel = members[0].variant.kernel
        default = next((m.variant for m in members if m.variant.config == defaults.get(identity)), None)
        found.append(RecordedSpace(kernel, problem, device, tuple(members), default))
    return sorted(found, key=lambda space: space.name)


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


Strategy = Callable[[RecordedSpace, int, int], list[Measurement]]  # (space, budget, seed) -> in order of evaluation


def random_search(space: RecordedSpace, budget: int, seed: int) -> list[Measurement]:
    order = np.random.default_rng(seed).permutation(len(space.measurements))[:budget]
    return [space.measurements[i] for i in order]


def simulated_annealing(space: RecordedSpace, budget: int, seed: int) -> list[Measurement]:
    """Metropolis moves to candidates that differ in one or two parameters; a repeated visit costs nothing.

    Temperature falls geometrically from 1 to 0.001 over the budget, on relative slowdown (Kernel Tuner's defaults);
    a walk that is stuck for as long as its neighbourhood is large starts again from a random candidate.
    """
    rng = np.random.default_rng(seed)
    variants = [m.variant for m in space.measurements]
    words = [[str(value) for _, value in v.config.params] for v in variants]
    codes = np.stack([np.unique(column, return_inverse=True)[1] for column in np.array(words).T], axis=1)
    visited: dict[int, Measurement] = {}

    def cost(i: int) -> float:
        visited.setdefault(i, space.measurements[i])
        return space.measurements[i].latency_us if space.measurements[i].status == "ok" else NEVER

    budget = min(budget, len(variants))
    here = int(rng.integers(len(variants)))
    here_us, stuck = cost(here), 0
    while len(visited) < budget:
        changed = (codes != codes[here]).sum(axis=1)
        near = np.flatnonzero((changed == 1) if rng.random() < 0.8 and (changed == 1).any() else (changed <= 2))
        there = int(rng.choice(near))
        known = there in visited
        there_us = cost(there)
        temperature = 0.001 ** (len(visited) / budget)
        worse = there_us / here_us - 1 if math.isfinite(here_us) else (-1.0 if math.isfinite(there_us) else 0.0)
        if worse <= 0 or rng.random() < math.exp(-worse / temperature):
            here, here_us = there, there_us
        stuck = stuck + 1 if known else 0
        if stuck > len(near):
            here, stuck = int(rng.integers(len(variants))), 0
            here_us = cost(here)
    return list(visited.values())


def guided(predictions: Callable[[RecordedSpace], Sequence[Sequence[Prediction]]], *, guarded: bool = True) -> Strategy:
    """The Tuner with these priors; with none, a Gaussian process from scratch."""

    def run(space: RecordedSpace, budget: int, seed: int) -> list[Measurement]:
        runner = RecordedRunner(space)
        priors = predictions(space)
        default = space.default if priors else None
        tuner = Tuner([m.variant for m in space.measurements], priors, default=default, guarded=guarded, seed=seed)
        taken: list[Measurement] = []
        while len(taken) < budget:
            batch = tuner.ask(min(8, budget - len(taken)))
            if not batch:
                break
            results = runner.measure(batch)
            tuner.tell(results)
            taken += results
        return taken

    return run


def prior_of(models: Sequence[CostModel]) -> Callable[[RecordedSpace], list[list[Prediction]]]:
    """Predictions of each model, computed once per space."""
    cache: dict[tuple[str, str], list[list[Prediction]]] = {}

    def predict(space: RecordedSpace) -> list[list[Prediction]]:
        key = (space.name, space.device.identity)
        if key not in cache:
            cache[key] = [m.predict([x.variant for x in space.measurements], space.device) for m in models]
        return cache[key]

    return predict


def ranked(predictions: Callable[[RecordedSpace], Sequence[Sequence[Prediction]]]) -> Strategy:
    """Measure in the order of the mean prediction and learn nothing on the way."""

    def run(space: RecordedSpace, budget: int, seed: int) -> list[Measurement]:
        log2_us = np.log2([[p.median_us for p in prior] for prior in predictions(space)]).mean(axis=0)
        return [space.measurements[i] for i in np.argsort(log2_us, kind="stable")[:budget]]

    return run


def evaluations_to(taken: Sequence[Measurement], optimum_us: float, within: float) -> float:
    """How many evaluations until one is within a share of the optimum; infinite if none is."""
    reached = stats.evaluations_to([m.latency_us for m in taken], optimum_us, within=within)
    return NEVER if reached is None else float(reached)


def fraction_at(taken: Sequence[Measurement], optimum_us: float, count: int) -> float:
    """Optimum over the best of the first `count`; 0 while every evaluation failed."""
    ok = [m.latency_us for m in taken[:count] if m.status == "ok"]
    return optimum_us / min(ok) if ok else 0.0


def replay(
    recorded: Sequence[RecordedSpace], strategies: dict[str, Strategy], *, budget: int, seeds: int
) -> pd.DataFrame:
    """Run every strategy on every space with every seed: one row a run."""
    rows = []
    for space in recorded:
        optimum = space.optimum_us
        for name, strategy in strategies.items():
            for seed in range(seeds):
                taken = strategy(space, budget, seed)
                rows.append(
                    {
                        "space": space.name,
                        "device": space.device.name,
                        "strategy": name,
                        "seed": seed,
                        "size": len(space.measurements),
                        **{f"fraction_at_{n}": fraction_at(taken, optimum, n) for n in (1, 10, 20, 50, 100)},
                        "to_5_percent": evaluations_to(taken, optimum, 0.05),
                        "to_1_percent": evaluations_to(taken, optimum, 0.01),
                    }
                )
    return pd.DataFrame(rows)


def summarise(runs: pd.DataFrame, *, never: float) -> pd.DataFrame:
    """Per strategy: the geometric mean over spaces of the median evaluations to 5 % and 1 % (a run that never got there
    counts as `never`), and the mean over spaces of the median fractions."""
    counts = ["to_5_percent", "to_1_percent"]
    fractions = [column for column in runs if str(column).startswith("fraction_at_")]
    medians = runs.replace(NEVER, never).groupby(["strategy", "space"], sort=False)[counts + fractions].median()
    by_strategy = medians.groupby("strategy", sort=False)
    return pd.concat([by_strategy[counts].agg(stats.geometric_mean), by_strategy[fractions].mean()], axis=1)
