"""What a space looks like: its best, its default, what a model would have picked, and what each value costs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from costmodel import floor
from costmodel.dataset import SpaceKey
from costmodel.notebook import format_us
from costmodel.records import Measurement, Prediction, Scalar, Variant
from costmodel.replay import RecordedSpace
from costmodel.report.page import Html, escaped
from costmodel.uncertainty import at_best_scale

Asked = Mapping[tuple[SpaceKey, Variant], Prediction]


@dataclass(frozen=True, slots=True)
class Told:
    """A recorded space and what is known of it; None and "" for what is not.

    pick: the measurement of the config predicted to be the fastest. pairs: measured and predicted latencies, the
    predicted ones at the scale that fits best where the model does not know the space's.
    limit: the largest term of the floor, and `floor_us` its time, 0 where there is none.
    """

    space: RecordedSpace
    best: Measurement
    default_us: float | None
    pick: Measurement | None
    pairs: tuple[tuple[float, float], ...]
    limit: str
    floor_us: float

    @property
    def configs(self) -> int:
        return len(self.space.measurements)


def told_of(space: RecordedSpace, asked: Asked) -> Told:
    fine = [m for m in space.measurements if m.status == "ok"]
    default = next((m.latency_us for m in fine if m.variant == space.default), None)
    key = space.key
    answers = [(m, asked[key, m.variant]) for m in fine if (key, m.variant) in asked]
    pick = min(answers, key=lambda one: one[1].median_us)[0] if answers else None
    limit, floor_us = "", 0.0
    if floor.has_floor(space.problem):
        terms = {name: us for name, us in floor.terms(space.problem, space.device).items() if name.endswith("_us")}
        limit = max(terms, key=lambda name: terms[name])
        limit, floor_us = (limit.removesuffix("_us"), terms[limit]) if terms[limit] > 0 else ("", 0.0)
    best = min(fine, key=lambda m: m.latency_us)
    return Told(space, best, default, pick, _pairs(answers), limit, floor_us)


def _pairs(answers: Sequence[tuple[Measurement, Prediction]]) -> tuple[tuple[float, float], ...]:
    true, middle = np.array([(m.latency_us, p.median_us) for m, p in answers]).reshape(-1, 2).T
    moved = 2.0 ** at_best_scale(np.log2(true), np.log2(middle), [p for _, p in answers], [None] * len(answers))
    return tuple(zip(true.tolist(), (middle * true / moved).tolist(), strict=True))


def floor_words(told: Told) -> str:
    """Of a space that has a limit."""
    return (
        f"the analytic floor is {format_us(told.floor_us)}, limited by {told.limit}; the best takes "
        f"{told.best.latency_us / told.floor_us:.2f} times that"
    )


def times(factor: float) -> str:
    return f"{factor:.2f}x" if factor < 10 else f"{factor:.3g}x"


def value_costs(spaces: Sequence[RecordedSpace]) -> dict[str, dict[Scalar, float]]:
    """Parameter -> value -> the best config with it over the best of all, geometric mean over the spaces that have it.

    Parameters of which only one value was measured are left out.
    """
    logs: dict[str, dict[Scalar, list[float]]] = {}
    for space in spaces:
        best: dict[tuple[str, Scalar], float] = {}
        for m in space.measurements:
            if m.status == "ok":
                for param in m.variant.config.params:
                    best[param] = min(best.get(param, math.inf), m.latency_us)
        optimum = space.optimum_us
        for (name, value), us in best.items():
            logs.setdefault(name, {}).setdefault(value, []).append(math.log(us / optimum))
    return {
        name: {value: math.exp(statistics.fmean(found)) for value, found in sorted(values.items(), key=_order)}
        for name, values in logs.items()
        if len(values) > 1
    }


def _order(item: tuple[Scalar, object]) -> tuple[bool, float, str]:
    value = item[0]
    return (True, 0.0, value) if isinstance(value, str) else (False, float(value), "")


def value_chips(spaces: Sequence[RecordedSpace]) -> Html:
    """`value_costs`, a line of chips a parameter: green where nothing is lost, the redder the more."""
    lines = []
    for name, values in value_costs(spaces).items():
        chips = "".join(
            f'<span style="background:{_shade(factor)}">{escaped(value)} <small>{times(factor)}</small></span>'
            for value, factor in values.items()
        )
        lines.append(f'<div class="chips"><strong>{escaped(name)}</strong> {chips}</div>')
    return Html("".join(lines))


def _shade(factor: float) -> str:
    if factor < 1.02:
        return "rgba(var(--good), 0.3)"
    return f"rgba(var(--bad), {min(0.6, 0.3 * math.log2(factor)):.2f})"
