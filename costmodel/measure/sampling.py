"""The stop rule: when enough samples of one variant have been taken. Pure, apart from the clock it is handed."""

from __future__ import annotations

from collections.abc import Callable
from heapq import nsmallest

from costmodel.records import Timing

BUDGET_US = 60_000.0
RANK = 5  # the fifth smallest sample must be near the smallest: one lucky sample is no proof of a floor
FLOOR_SAMPLES = 3  # a slow variant gets this many even where they exceed the budget
MAX_SAMPLES = 256  # a variant of a few microseconds would otherwise store thousands


def enough(samples_us: list[float], timing: Timing, *, budget_us: float = BUDGET_US) -> bool:
    """True when more samples would not change the picture, or the budget is spent."""
    count = len(samples_us)
    if count >= MAX_SAMPLES:
        return True
    if count >= min(FLOOR_SAMPLES, timing.min_samples) and sum(samples_us) >= budget_us:
        return True
    if count < max(timing.min_samples, 1):
        return False
    smallest = nsmallest(RANK, samples_us)
    return smallest[-1] <= (1.0 + timing.relative_error) * smallest[0]


def take(
    call: Callable[[], None],
    timing: Timing,
    *,
    clock_ns: Callable[[], int],
    before: Callable[[], None] | None = None,
    warm_calls: int = 2,
    budget_us: float = BUDGET_US,
) -> list[float]:
    """Warm up, then time single calls until `enough`. Returns wall times in microseconds.

    At least `warm_calls` calls and `timing.warmup_us` of warm-up. `before` runs untimed ahead of every sample
    (it empties the caches where timing.cache is "cold").
    """
    start = clock_ns()
    calls = 0
    while calls < warm_calls or clock_ns() - start < timing.warmup_us * 1e3:
        call()
        calls += 1
    samples: list[float] = []
    while not enough(samples, timing, budget_us=budget_us):
        if before is not None:
            before()
        begin = clock_ns()
        call()
        samples.append((clock_ns() - begin) / 1e3)
    return samples
