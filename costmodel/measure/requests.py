"""What is common to the collectors that measure: the request, the choice of variants, and what a store spares them."""

from __future__ import annotations

import random
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from costmodel.records import Device, Kernel, Measurement, Timing, UserError, Variant, Workload

if TYPE_CHECKING:
    from costmodel.store import Store

MAX_PASSES = 8


@dataclass(frozen=True)
class CollectRequest:
    """What to measure; a collector's own request adds what only it can be told.

    `configs_per_kernel` None takes the whole space; else a seeded sample with the default in it. `problems` None takes
    every listed problem; else those of these names, where a workload lists them. `skip` holds (variant, pass) pairs
    that need no measuring (see `already`). `budget_s` ends it early, with all that was measured yielded. `device` None
    is the one at hand.
    """

    workloads: tuple[Workload, ...]
    configs_per_kernel: int | None = None
    problems: tuple[str, ...] | None = None
    seed: int = 0
    timing: Timing = field(default_factory=Timing)
    budget_s: float | None = None
    skip: Container[tuple[object, ...]] = frozenset()
    jobs: int | None = None
    device: Device | None = None

    def __post_init__(self) -> None:
        if self.configs_per_kernel is not None and self.configs_per_kernel < 1:
            raise UserError(f"got configs_per_kernel={self.configs_per_kernel}, expected 1 or more, or None for all")
        listed = {name for workload in self.workloads for name in workload.problems}
        if unknown := [name for name in self.problems or () if name not in listed]:
            raise UserError(f"got problem {unknown[0]!r}, expected one of {', '.join(sorted(listed))}")


def choose(request: CollectRequest, device: Device) -> list[Variant]:
    """The variants of a request: per kernel one seeded sample of configs, on every problem where each is valid."""
    variants: list[Variant] = []
    for workload in request.workloads:
        problems = [p for name, p in workload.problems.items() if request.problems is None or name in request.problems]
        valid = {problem: set(workload.space.configs(problem, device)) for problem in problems}
        union = list(dict.fromkeys(c for problem in problems for c in workload.space.configs(problem, device)))
        count = request.configs_per_kernel
        if count is not None and count < len(union):
            always = [config for config in union if config == workload.default]
            others = [config for config in union if config != workload.default]
            rng = random.Random(f"{request.seed}:{workload.kernel.identity}")
            chosen = {*always, *rng.sample(others, count - len(always))}
            union = [config for config in union if config in chosen]
        variants += [Variant(workload.kernel, p, config) for p in problems for config in union if config in valid[p]]
    return variants


def already(measurements: Iterable[Measurement]) -> frozenset[tuple[Variant, int]]:
    """The (variant, pass) pairs that need no measuring, for `skip`; a failure stands for all passes.

    Give it measurements of one device, timing and toolchain (see `stored`). What was only compiled needs measuring.
    """
    done: set[tuple[Variant, int]] = set()
    for m in measurements:
        if m.status == "ok":
            done.add((m.variant, int(dict(m.counters).get("pass", 0))))
        elif m.status != "compiled":
            done |= {(m.variant, n) for n in range(MAX_PASSES)}
    return frozenset(done)


def stored(
    store: Store,
    *,
    device: Device,
    timing: Timing,
    toolchain: tuple[tuple[str, str], ...],
    kernels: Iterable[Kernel] | None = None,
) -> Iterator[Measurement]:
    """What a store holds of a device, timing and toolchain; of these kernels, or of all."""
    for identity in [None] if kernels is None else dict.fromkeys(kernel.identity for kernel in kernels):
        for m in store.measurements(kernel=identity, device=device.identity):
            if m.timing == timing and m.toolchain == toolchain:
                yield m
