"""Order and trust: shuffled passes in blocks, a sentinel around each block, winners confirmed in interleaved rounds.

Why: what varies on a machine is between moments, not between samples of one process (30 samples repeat no better than
7), so sittings are spread over time and compared side by side.
"""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from costmodel.records import Measurement, Runner, UserError, Variant

BLOCK_SIZE = 40
DRIFT_LIMIT = 0.03
RETRIES = 2
SHARE = 0.25
FRESH_S = 0.5
TIE = 0.05

Item = TypeVar("Item")  # what a measurement is asked for: a variant, or a variant and how to time it


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


class Sentinel:
    """Readings of the sentinel in microseconds; the one that ends a block also begins the next that follows at once."""

    def __init__(self, read: Callable[[], float], *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._read, self._clock_s = read, clock_s
        self._last_us, self._at_s = 0.0, -math.inf

    def before(self) -> float:
        return self._last_us if self._clock_s() - self._at_s < FRESH_S else self.after()

    def after(self) -> float:
        self._last_us, self._at_s = self._read(), self._clock_s()
        return self._last_us


class Patience:
    """How often a drifting block may be taken again: RETRIES times, but over a run not above one retry in four blocks.

    On a machine that never calms, retries would triple the time and better nothing.
    """

    def __init__(self) -> None:
        self.blocks = self.retries = 0

    def retry(self, attempt: int) -> bool:
        """Whether the block may be taken again after its attempt of this number (from 0); counts what it grants."""
        self.blocks += attempt == 0
        granted = attempt < RETRIES and self.retries < RETRIES + SHARE * self.blocks
        self.retries += granted
        return granted


def take_block(
    items: Sequence[Item],
    *,
    measure: Callable[[Sequence[Item]], list[Measurement]],
    sentinel: Sentinel,
    patience: Patience,
) -> list[Measurement]:
    """Measure a block between two readings of the sentinel; where it drifted, discard the times and take them again.

    Failures stand: they do not depend on the clock. When patience ends, the calmest attempt is kept, with its drift in
    `counters` as "drift". Same length and order as `items`.
    """
    result: dict[int, Measurement] = {}
    left = list(range(len(items)))
    best, calmest = {}, math.inf
    before = sentinel.before()
    for attempt in range(RETRIES + 1):
        taken = dict(zip(left, measure([items[i] for i in left]), strict=True))
        result.update({i: m for i, m in taken.items() if m.status != "ok"})
        left = [i for i in left if i not in result]
        if not left:
            break
        after = sentinel.after()
        moved = drift(before, after)
        if moved < calmest:
            best, calmest = taken, moved
        if moved <= DRIFT_LIMIT or not patience.retry(attempt):
            break
        before = after
    for i in left:
        result[i] = best[i] if calmest <= DRIFT_LIMIT else with_counter(best[i], "drift", round(calmest, 4))
    return [result[i] for i in range(len(items))]


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
    """Measure all variants `rounds` times, each round in its own order, and rank by the median of their minima.

    UserError where none of them gets through every round.
    """
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
    if not standing:
        reason = next(iter(failed.values())).error if failed else "there are no variants"
        raise UserError(f"got no variant that runs {rounds} times in a row ({reason}), expected one; check the kernel")
    return Confirmation(tuple(sorted(standing, key=lambda item: item[1])), tuple(failed.values()))
