"""Order and trust: shuffled passes in blocks, a sentinel around each block, winners confirmed in interleaved rounds.

Why: what varies on a machine is between moments, not between samples of one process (30 samples repeat no better than
7), so sittings are spread over time and compared side by side.
"""

from __future__ import annotations

import dataclasses
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from costmodel.records import Measurement, Runner, Variant

BLOCK_SIZE = 40
DRIFT_LIMIT = 0.03
RETRIES = 2
TIE = 0.05

Measure = Callable[[Sequence[Variant]], list[Measurement]]


def plan(variants: Sequence[Variant], *, seed: int, exclusive: Callable[[Variant], bool]) -> list[list[Variant]]:
    """All variants once, shuffled, in shuffled blocks. A block holds exclusive variants or others, never both."""
    rng = random.Random(seed)
    blocks: list[list[Variant]] = []
    for kind in (False, True):
        chosen = [variant for variant in variants if exclusive(variant) is kind]
        rng.shuffle(chosen)
        blocks += [chosen[i : i + BLOCK_SIZE] for i in range(0, len(chosen), BLOCK_SIZE)]
    rng.shuffle(blocks)
    return blocks


def drift(before_us: float, after_us: float) -> float:
    """How far two readings of the sentinel are apart, as a share of the smaller."""
    return max(before_us, after_us) / min(before_us, after_us) - 1.0


def take_block(variants: Sequence[Variant], *, measure: Measure, sentinel_us: Callable[[], float]) -> list[Measurement]:
    """Measure a block between two readings of the sentinel; where it drifted, discard the times and take them again.

    Failures stand: they do not depend on the clock. After RETRIES the calmest attempt is kept, with its drift in
    `counters` as "drift". Same length and order as `variants`.
    """
    result: dict[int, Measurement] = {}
    left = list(range(len(variants)))
    best, calmest = {}, float("inf")
    before = sentinel_us()
    for _ in range(RETRIES + 1):
        taken = dict(zip(left, measure([variants[i] for i in left]), strict=True))
        result.update({i: m for i, m in taken.items() if m.status != "ok"})
        left = [i for i in left if i not in result]
        after = sentinel_us()
        moved = drift(before, after)
        if moved < calmest:
            best, calmest = taken, moved
        if moved <= DRIFT_LIMIT:
            break
        before = after
    for i in left:
        result[i] = best[i] if calmest <= DRIFT_LIMIT else with_counter(best[i], "drift", round(calmest, 4))
    return [result[i] for i in range(len(variants))]


def with_counter(measurement: Measurement, name: str, value: float) -> Measurement:
    return dataclasses.replace(measurement, counters=(*measurement.counters, (name, value)))


def suspicious(minima_us: Sequence[float]) -> bool:
    """Whether sittings of one variant disagree by more than two ties: one of them met something else."""
    return len(minima_us) > 1 and max(minima_us) > (1 + 2 * TIE) * min(minima_us)


@dataclass(frozen=True, slots=True)
class Confirmation:
    """Variants that ran in every round, fastest first; `ties` are those within 5 % of the winner, itself included."""

    latencies_us: tuple[tuple[Variant, float], ...]
    failed: tuple[Measurement, ...]

    @property
    def winner(self) -> Variant:
        return self.latencies_us[0][0]

    @property
    def ties(self) -> tuple[Variant, ...]:
        best = self.latencies_us[0][1]
        return tuple(variant for variant, latency_us in self.latencies_us if latency_us <= (1 + TIE) * best)


def confirm(runner: Runner, variants: Sequence[Variant], *, rounds: int = 5, seed: int = 0) -> Confirmation:
    """Measure all variants `rounds` times, each round in its own order, and rank by the median of their minima."""
    rng = random.Random(seed)
    minima: dict[Variant, list[float]] = {variant: [] for variant in variants}
    failed: dict[Variant, Measurement] = {}
    for _ in range(rounds):
        order = [variant for variant in minima if variant not in failed]
        rng.shuffle(order)
        for measurement in runner.measure(order):
            if measurement.status == "ok":
                minima[measurement.variant].append(measurement.min_us)
            else:
                failed[measurement.variant] = measurement
    standing = [(v, statistics.median(times)) for v, times in minima.items() if v not in failed]
    return Confirmation(tuple(sorted(standing, key=lambda item: item[1])), tuple(failed.values()))
