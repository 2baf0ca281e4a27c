"""What in published measurements is hard to believe: repeats that disagree, scales that no other device shares."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from costmodel.records import Config, Measurement, Problem

Item = tuple[Problem, Config]

_UNSTEADY = 0.30  # median coefficient of variation of the repeats of one config
_OFF_SCALE = 100.0
_WATCHED = 5000  # per kernel: the problems and configs that are looked at


class Doubts:
    """Watches rows go by, in bounded memory, and says what in them is hard to believe."""

    def __init__(self) -> None:
        self._spread: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._latency: dict[str, dict[Item, dict[str, float]]] = defaultdict(dict)

    def watch(self, measurements: Iterable[Measurement]) -> Iterator[Measurement]:
        """Pass the rows on."""
        for row in measurements:
            if row.status == "ok":
                self._take(row)
            yield row

    def _take(self, row: Measurement) -> None:
        kernel, device = row.variant.kernel.name, row.device.name
        spread = self._spread[kernel, device]
        if len(row.samples_us) > 1 and len(spread) < _WATCHED:
            spread.append(_variation(row.samples_us))
        seen, item = self._latency[kernel], (row.variant.problem, row.variant.config)
        if item in seen or len(seen) < _WATCHED:
            seen.setdefault(item, {})[device] = row.latency_us

    @property
    def kernels(self) -> tuple[str, ...]:
        """The names of what went by and ran."""
        return tuple(self._latency)

    def lines(self) -> list[str]:
        """One line for each space whose repeats disagree, or whose scale is not that of other devices."""
        found = []
        for (kernel, device), spread in self._spread.items():
            middle = statistics.median(spread) if spread else 0.0
            if middle >= _UNSTEADY:
                found.append(
                    f"{kernel} on {device}: repeats of one config vary by {middle:.0%} (median); do not trust it"
                )
        for kernel, items in self._latency.items():
            for device, ratio in self._scales(items).items():
                if not 1 / _OFF_SCALE < ratio < _OFF_SCALE:
                    times = f"{ratio:.3g} times slower" if ratio > 1 else f"{1 / ratio:.3g} times faster"
                    found.append(
                        f"{kernel} on {device}: {times} than on any other device (median); check the unit of its times"
                    )
        return found

    def _scales(self, items: Mapping[Item, Mapping[str, float]]) -> dict[str, float]:
        """Device -> its latency over that of the nearest other device: the median over what it shares with others.

        The nearest, and not the middle one: a single wrong device must not throw doubt on the rest.
        """
        ratios: dict[str, list[float]] = defaultdict(list)
        for latencies in items.values():
            for device, latency_us in latencies.items():
                others = [other_us for other, other_us in latencies.items() if other != device]
                if others:
                    nearest = min(others, key=lambda other_us: abs(math.log(latency_us / other_us)))
                    ratios[device].append(latency_us / nearest)
        return {device: statistics.median(found) for device, found in ratios.items()}


def _variation(samples_us: Sequence[float]) -> float:
    """The coefficient of variation; `statistics.stdev` computes with fractions, and takes longer than the import."""
    mean = math.fsum(samples_us) / len(samples_us)
    return math.sqrt(math.fsum((us - mean) ** 2 for us in samples_us) / (len(samples_us) - 1)) / mean


def doubts(measurements: Iterable[Measurement]) -> list[str]:
    """What is hard to believe in these rows, one line each; see `Doubts`."""
    doubter = Doubts()
    for _ in doubter.watch(measurements):
        pass
    return doubter.lines()
