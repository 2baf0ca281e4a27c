"""Why a config: which resource limits it, what its measured neighbours did, what would have to change.

Everything is read off the problem and the sheet (`floor`), the compiler's facts where a store has them, measurements,
and a model's predictions; nothing is run.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from costmodel import dataset, floor
from costmodel.devices import peak_tflops
from costmodel.features import launch_features
from costmodel.joint import CORRELATION
from costmodel.measure import facts as compile_facts
from costmodel.records import (
    Config,
    CostModel,
    Device,
    Measurement,
    Prediction,
    Problem,
    Scalar,
    UserError,
    Variant,
    Workload,
)

SHARED = 5  # differing parameters up to which contributions are shared out exactly: 2^5 predictions
NEAREST = 2  # parameters in which a measured neighbour may differ


@dataclass(frozen=True, slots=True)
class Limit:
    """One resource. `us` is the time that it alone would take; NaN for what is no time."""

    name: str
    us: float
    told: str


@dataclass(frozen=True, slots=True)
class Change:
    """A parameter with another value; `factor`: how many times the predicted latency becomes."""

    name: str
    old: Scalar
    new: Scalar
    factor: float

    def __str__(self) -> str:
        return f"{self.name} {self.old} -> {self.new}"


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A measured config near the pick. `changes` lists "NAME old -> new"; none for the pick itself."""

    config: Config
    changes: tuple[str, ...]
    latency_us: float
    device: str


@dataclass(frozen=True, slots=True)
class RunnerUp:
    """The second of the ranking.

    contributions: of each parameter in which it differs, as factors of latency whose product is `factor` (Shapley
    values of log latency; with more than SHARED parameters those of changing each alone, scaled to the same product).
    flips: problems, one size of the pick's halved or doubled, on which it is predicted to be the faster.
    """

    config: Config
    median_us: float
    factor: float
    p_faster: float
    contributions: tuple[Change, ...]
    flips: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """A pick and its reasons. `rank` is its place among the `candidates` configs of the space, 1 the fastest."""

    variant: Variant
    device: Device
    prediction: Prediction
    rank: int
    candidates: int
    limits: tuple[Limit, ...]
    neighbours: tuple[Neighbour, ...]
    measured: int  # configs of this problem with a latency on any device
    changes: tuple[Change, ...]  # of each parameter the best other value, most telling first
    worst: tuple[Change, ...]  # and the worst
    runner_up: RunnerUp | None


def explain(
    workload: Workload,
    problem: Problem,
    device: Device,
    model: CostModel,
    *,
    config: Config | None = None,
    measurements: Sequence[Measurement] = (),
) -> Explanation:
    """Explain a config, or the best predicted one. Measurements may be of anything, compiled ones among them."""
    variants = workload.variants(problem, device)
    if not variants:
        raise UserError(f"got no valid config of {workload.kernel.name} on {problem}; check the space's constraints")
    told = dict(zip((v.config for v in variants), model.predict(variants, device), strict=True))
    order = sorted(told, key=lambda one: (told[one].p_fail > 0.5, told[one].median_us))
    pick = config or order[0]
    if pick not in told:
        raise UserError(f"got {pick}, which is not valid for {problem} on {device.name}; give another --config")
    variant = Variant(workload.kernel, problem, pick)
    own = [m for m in measurements if dataset.kernel_identity(m.variant.kernel) == workload.kernel.identity]
    here = [m for m in own if m.variant.problem == problem]
    best, worst = _alone(workload, problem, device, pick, told)
    return Explanation(
        variant, device, told[pick], order.index(pick) + 1, len(order),
        limits=(*_floor_limits(variant, device), *_fact_limits(variant, device, here)),
        neighbours=_neighbours(pick, device, here),
        measured=len({m.variant.config for m in here if m.status == "ok"}),
        changes=best, worst=worst,
        runner_up=_runner_up(workload, problem, device, model, pick, order, told),
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- limits


def _floor_limits(variant: Variant, device: Device) -> list[Limit]:
    """The terms of the floor, slowest first, and what the config makes of a GPU's launch or a CPU's cores."""
    problem, config = variant.problem, variant.config.as_dict()
    if not floor.has_floor(problem):
        return []
    rate, megabytes = peak_tflops(device, problem.dtype), problem.bytes / 1e6
    words = {
        "compute_us": f"{problem.flops / 1e9:.4g} GFLOP at {rate or 0:.4g} TFLOP/s {problem.dtype}",
        "memory_us": f"{megabytes:.4g} MB at {device.peak_gb_per_s:.4g} GB/s; {_cache(problem, device)}",
        "power_us": f"{device.tdp_watts:.0f} W feed the lanes",
        "tile_us": "whole tiles in whole waves, at the best tile",
        "launch_us": "an empty kernel",
    }
    terms = floor.terms(problem, device)
    found = [Limit(name.removesuffix("_us"), us, words[name]) for name, us in terms.items() if us > 0 and name in words]
    threads = config.get("THREADS")
    if device.kind == "cpu" and isinstance(threads, int) and 0 < threads < device.num_units and "compute_us" in terms:
        us = terms["compute_us"] * device.num_units / threads
        found.append(Limit("cores", us, f"THREADS={threads} of {device.num_units} cores leave compute this much"))
    return sorted(found, key=lambda limit: -limit.us) + _launch_limits(variant, device)


def _cache(problem: Problem, device: Device) -> str:
    """Where the working set fits, from the caches that the sheet states."""
    last = int(dict(device.details).get("l3_bytes", 0))
    for name, size in (("L2", device.l2_bytes), ("L3", last)):
        if size and problem.bytes <= size:
            return f"fits {name} ({size / 1e6:.3g} MB), so a warm run may need less"
    largest = max(device.l2_bytes, last)
    return f"{problem.bytes / largest:.3g} times the largest cache" if largest else "no cache is on the sheet"


def _launch_limits(variant: Variant, device: Device) -> list[Limit]:
    """Waves of blocks, as far as the names of the parameters tell."""
    if device.kind != "gpu":
        return []
    columns = {n: np.array([float(x)]) for n, x in variant.config.params if not isinstance(x, str)}
    told = {name: float(column[0]) for name, column in launch_features(columns, variant.problem, device).items()}
    if "launch_waves" not in told:
        return []
    waves = 2 ** told["launch_waves"]
    return [
        Limit(
            "waves", math.nan,
            f"{2 ** told['launch_blocks']:.0f} blocks on {device.num_units} units, {told['launch_resident']:.0f} at "
            f"once each: {waves:.3g} waves, the last costs {told['launch_tail'] - 1:.0%}",
        )
    ]  # fmt: skip


def _fact_limits(variant: Variant, device: Device, rows: Sequence[Measurement]) -> list[Limit]:
    """Occupancy and spills, where the variant was compiled for this device; the resource that binds is named."""
    for m in rows:
        known = {name: value for name, value in m.counters if name in compile_facts.RESOURCES}
        if m.variant.config == variant.config and _same(m.device, device) and known.get("registers"):
            return _occupancy(known, dict(m.counters), device)
    return []


def _occupancy(known: dict[str, float], counters: Mapping[str, float], device: Device) -> list[Limit]:
    facts = tuple(known.items())
    blocks = compile_facts.blocks_per_unit(facts, device)
    limit = int(dict(device.details)["max_threads_per_unit"])
    share = blocks * known["threads_per_block"] / limit
    binding = [
        word
        for name, word in (("registers", "registers"), ("shared_bytes", "shared memory"))
        if compile_facts.blocks_per_unit(tuple({**known, name: 0.0}.items()), device) > blocks
    ]
    by = " and ".join(binding) or ("both registers and shared memory" if share < 1 else "the threads of a unit")
    told = (
        f"{known['registers']:.0f} registers, {known['shared_bytes']:.0f} B shared, {known['threads_per_block']:.0f} "
        f"threads: {blocks} blocks a unit, {share:.0%} of its threads; limited by {by}"
    )
    found = [Limit("occupancy", math.nan, told)]
    if known.get("stack_bytes") or counters.get("local_loads") or known.get("spilled_registers"):
        loads, stores = counters.get("local_loads", 0.0), counters.get("local_stores", 0.0)
        spilled = f"{known.get('stack_bytes', 0):.0f} B of stack a thread, {loads:.0f} loads and {stores:.0f} stores"
        found.append(Limit("spills", math.nan, spilled))
    return found


# ---------------------------------------------------------------------------------------------------------- neighbours


def _neighbours(pick: Config, device: Device, rows: Sequence[Measurement]) -> tuple[Neighbour, ...]:
    """Measured configs that differ in at most NEAREST parameters: this device's if it has any, nearest first."""
    fine = [m for m in rows if m.status == "ok"]
    fine = [m for m in fine if _same(m.device, device)] or fine
    found = [
        Neighbour(m.variant.config, _differences(pick, m.variant.config), m.latency_us, m.device.name)
        for m in fine
        if len(_differences(pick, m.variant.config)) <= NEAREST
    ]
    return tuple(sorted(found, key=lambda n: (len(n.changes), n.latency_us)))


def _differences(old: Config, new: Config) -> tuple[str, ...]:
    values = old.as_dict()
    return tuple(f"{name} {values.get(name)} -> {value}" for name, value in new.params if values.get(name) != value)


def _same(one: Device, other: Device) -> bool:
    return dataset.device_identity(one) == dataset.device_identity(other)


# ------------------------------------------------------------------------------------------------------------- changes


def _alone(
    workload: Workload, problem: Problem, device: Device, pick: Config, told: Mapping[Config, Prediction]
) -> tuple[tuple[Change, ...], tuple[Change, ...]]:
    """Of each parameter its best other value and its worst, one change at a time, most telling first."""
    by_name: dict[str, list[Change]] = {}
    for other in workload.space.neighbours(pick, problem, device):
        name = next(name for name, value in other.params if value != pick[name])
        factor = told[other].median_us / told[pick].median_us
        by_name.setdefault(name, []).append(Change(name, pick[name], other[name], factor))
    best = sorted((min(found, key=lambda c: c.factor) for found in by_name.values()), key=lambda c: c.factor)
    worst = sorted((max(found, key=lambda c: c.factor) for found in by_name.values()), key=lambda c: -c.factor)
    return tuple(best), tuple(worst)


def _runner_up(
    workload: Workload, problem: Problem, device: Device, model: CostModel, pick: Config,
    order: Sequence[Config], told: Mapping[Config, Prediction],
) -> RunnerUp | None:  # fmt: skip
    """The best of the other configs, against the pick."""
    others = [config for config in order if config != pick]
    if not others:
        return None
    second = others[0]
    factor = told[second].median_us / told[pick].median_us
    names = [name for name, value in pick.params if value != second[name]]
    mixed = _mixtures(pick, second, names)
    answers = model.predict([Variant(workload.kernel, problem, config) for config in mixed.values()], device)
    log_us = {changed: math.log(answer.median_us) for changed, answer in zip(mixed, answers, strict=True)}
    shares = _shapley(names, log_us) if len(names) <= SHARED else _scaled(names, log_us, math.log(factor))
    contributions = (Change(name, pick[name], second[name], math.exp(shares[name])) for name in names)
    return RunnerUp(
        second, told[second].median_us, factor,
        told[second].probability_faster_than(told[pick], correlation=CORRELATION),
        tuple(sorted(contributions, key=lambda change: -abs(math.log(change.factor)))),
        _flips(workload, problem, device, model, pick, second),
    )  # fmt: skip


def _mixtures(pick: Config, second: Config, names: Sequence[str]) -> dict[frozenset[str], Config]:
    """The configs between two, by the parameters taken from the second: all, or with many only one at a time."""
    sizes = range(len(names) + 1) if len(names) <= SHARED else (0, 1)
    return {
        frozenset(changed): Config(tuple((n, second[n] if n in changed else value) for n, value in pick.params))
        for size in sizes
        for changed in itertools.combinations(names, size)
    }


def _shapley(names: Sequence[str], worth: Mapping[frozenset[str], float]) -> dict[str, float]:
    """Each name's share of worth(all) - worth(none): its mean marginal worth over all orders (Shapley 1953)."""
    shares = dict.fromkeys(names, 0.0)
    for name in names:
        others = [other for other in names if other != name]
        for size in range(len(names)):
            weight = 1 / (len(names) * math.comb(len(others), size))
            for chosen in itertools.combinations(others, size):
                before = frozenset(chosen)
                shares[name] += weight * (worth[before | {name}] - worth[before])
    return shares


def _scaled(names: Sequence[str], worth: Mapping[frozenset[str], float], total: float) -> dict[str, float]:
    alone = {name: worth[frozenset((name,))] - worth[frozenset()] for name in names}
    rest = (total - sum(alone.values())) / len(names)
    return {name: share + rest for name, share in alone.items()}


def _flips(
    workload: Workload, problem: Problem, device: Device, model: CostModel, pick: Config, second: Config
) -> tuple[str, ...]:
    """The problems with one size halved or doubled, valid for both, on which the second is predicted to be faster."""
    found = []
    for name, value in problem.params:
        if not isinstance(value, int) or isinstance(value, bool) or value < 2:
            continue
        for size in (value // 2, 2 * value):
            sizes = {**dict(problem.params), name: size}
            try:
                other = workload.make_problem(**sizes)
            except UserError:
                continue  # no such problem: an odd number of heads, a size beyond what the kernel takes
            if all(workload.space.is_valid(config, other, device) for config in (pick, second)):
                variants = [Variant(workload.kernel, other, config) for config in (pick, second)]
                first, then = model.predict(variants, device)
                found += [f"{name}={size}"] if then.median_us < first.median_us else []
    return tuple(found)
