"""Pre-tuned tables: for a kernel on a device the best config of each measured problem, and what may be said of others.

A table is made by `table_building`, asked by `lookup`, kept as a file by `table_files` and told to other tuners by
`table_formats`.

Between measured problems a lookup interpolates. With x the problem's numeric sizes as log2(1 + size), d the Euclidean
distance and s(c, i) the slowdown of config c on measured problem i against the best there, it takes the config with the
least

    sum_i log s(c, i) / (1 + d_i^2) / sum_i 1 / (1 + d_i^2)

among those that were near the best somewhere; a config that a problem did not measure counts there as that problem's
median config. Leaving each problem out in turn says what this is worth, and the table states it. On contrasting
problems of CPU kernels (`benchmarks/table.py`) such picks were slower than the default in 4 % of cases up to a factor
of 2 outside the measured sizes and in 16 % beyond; hence FARTHEST_OUTSIDE and FARTHEST. A lookup that is not confident
says "keep the default".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from costmodel import __version__
from costmodel.records import (
    Config,
    Params,
    Problem,
    Scalar,
    Timing,
    UserError,
)

TIE = 1.05  # latencies within 5 % are a tie
FARTHEST_OUTSIDE = 1.0  # in log2 of a size: how far outside the measured range a lookup still answers
FARTHEST = 4.0  # in log2 of all sizes together: how far from the nearest measured problem
FEWEST = 3  # measured problems, for leaving one out to say something

Source = Literal["measured", "predicted"]


@dataclass(frozen=True, slots=True)
class TunedEntry:
    """What is known of one problem.

    confidence: the probability that the config is within 5 % of the best. Of a measured entry it speaks of noise alone:
        the best of those that were measured, `measured` of `space_size` (0: unknown). Of a predicted entry it is what
        the model states.
    tied: how many of the measured configs are within 5 % of this one.
    slowdowns: of the table's candidates, in its order, against the best; None where one was not measured.
    """

    problem: Problem
    config: Config
    source: Source
    latency_us: float
    default_us: float | None
    measured: int
    space_size: int
    tied: int
    confidence: float
    median_slowdown: float = 1.0
    slowdowns: tuple[float | None, ...] = ()

    @property
    def gain(self) -> float | None:
        """How many times faster than the default, where the default is known."""
        return None if self.default_us is None else self.default_us / self.latency_us


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Each measured problem picked for by the others: mean slowdowns (geometric) against the best measured there.

    Only configs that were measured on the problem left out could be picked. `default_slowdown` and `worse` (problems on
    which the pick was more than 5 % slower than the default) speak of the `with_default` problems that measured it.
    """

    problems: int
    slowdown: float
    worst: float
    with_default: int
    default_slowdown: float | None
    worse: int

    @property
    def beats_default(self) -> bool:
        return self.default_slowdown is not None and self.slowdown < self.default_slowdown

    def __str__(self) -> str:
        told = f"over {self.problems} problems, each left out, {self.slowdown - 1:.0%} above the best"
        if self.default_slowdown is None:
            return f"{told}; the default was not measured"
        return (
            f"{told} (the default {self.default_slowdown - 1:.0%}), worse than the default on {self.worse} of "
            f"{self.with_default}"
        )


@dataclass(frozen=True, slots=True)
class TunedTable:
    """One kernel text on one device, timed one way. `source_digest` is the kernel's identity."""

    kernel: str
    language: str
    source_digest: str
    schema: tuple[tuple[str, tuple[Scalar, ...]], ...]
    op: str
    device: str
    device_identity: str
    device_vendor: str
    timing: Timing
    toolchain: tuple[tuple[str, str], ...]
    default: Config | None
    candidates: tuple[Config, ...]
    left_out: LeftOut | None
    entries: tuple[TunedEntry, ...]
    created: str = ""  # ISO 8601, UTC: when the newest measurement was taken
    costmodel: str = __version__

    def ties(self, entry: TunedEntry) -> tuple[Config, ...]:
        """The candidates within 5 % of the entry's best measured config, itself among them; best first."""
        known = [(slow, i) for i, slow in enumerate(entry.slowdowns) if slow is not None and slow <= TIE]
        return tuple(self.candidates[i] for _, i in sorted(known)) or (entry.config,)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a table says of a problem. `config` is None for "keep the default"; `reason` says why, in words.

    slowdown: expected latency over that of the best config, 1 for a measured problem; NaN where nothing is said.
    gain: the default's expected latency over the config's; None where the default was not measured.
    """

    config: Config | None
    reason: str
    slowdown: float = math.nan
    gain: float | None = None
    entry: TunedEntry | None = None


# -------------------------------------------------------------------------------------------------------------- asking


def lookup(
    table: TunedTable, sizes: Mapping[str, Scalar], *, is_valid: Callable[[Config], bool] = lambda config: True
) -> Answer:
    """The table's config for a problem's parameters, all of them by name; UserError if one is missing or unknown.

    is_valid: which configs may be used on the problem, where the kernel's space says so.
    """
    names = [name for name, _ in table.entries[0].problem.params] if table.entries else []
    if set(sizes) != set(names):
        raise UserError(f"got {', '.join(sizes) or 'nothing'} of {table.kernel}, expected {', '.join(names) or 'none'}")
    for entry in table.entries:
        if dict(entry.problem.params) == dict(sizes):
            return _exact(table, entry)
    params = tuple((name, sizes[name]) for name in names)
    near = [e for e in table.entries if e.source == "measured" and _words(e.problem.params) == _words(params)]
    if refusal := _too_far(params, near) or _unproven(table):
        return Answer(None, f"keep the default: {refusal}")
    told = expected(table, params)
    usable = np.array([is_valid(config) for config in table.candidates])
    if not usable.any():
        return Answer(None, "keep the default: no config of the table is valid for this problem")
    pick = int(np.argmin(np.where(usable, told, math.inf)))
    assert table.default is not None  # else nothing was validated against it
    gain = float(told[table.candidates.index(table.default)] / told[pick])
    if gain <= 1.0:
        return Answer(None, "keep the default: it is expected to be the best", float(told[pick]), 1.0)
    reason = f"interpolated between {len(near)} measured problems, nearest {_nearest(params, near)}; {table.left_out}"
    return Answer(table.candidates[pick], reason, float(told[pick]), gain)


def expected(table: TunedTable, params: Params) -> np.ndarray:
    """(candidates,) the slowdowns that the measured problems let expect, however far they are; NaN where none is like
    this one."""
    measured = [entry for entry in table.entries if entry.source == "measured"]
    rows = np.array([[math.nan if s is None else s for s in entry.slowdowns] for entry in measured])
    medians = np.array([entry.median_slowdown for entry in measured])
    return interpolated(params, [entry.problem.params for entry in measured], rows, medians)


def _exact(table: TunedTable, entry: TunedEntry) -> Answer:
    if entry.source == "predicted":
        reason = f"predicted, never measured: within 5 % of the best with a probability of {entry.confidence:.0%}"
        return Answer(entry.config, reason, math.nan, entry.gain, entry)
    of = f" of {entry.space_size}" if entry.space_size else ""
    reason = f"measured: the best of {entry.measured}{of} configs, {entry.tied} within 5 %"
    if entry.config == table.default:
        reason += "; it is the default"
    return Answer(entry.config, reason, 1.0, entry.gain, entry)


def _unproven(table: TunedTable) -> str:
    """Why the table's interpolation is not to be trusted; empty where it is."""
    if table.left_out is None:
        return f"fewer than {FEWEST} measured problems, too few to tell whether interpolation works"
    if table.left_out.default_slowdown is None or table.default not in table.candidates:
        return "the default was not measured, so nothing says that the table beats it"
    if not table.left_out.beats_default:
        return f"interpolation does not beat it: {table.left_out}"
    return ""


def _too_far(params: Params, near: Sequence[TunedEntry]) -> str:
    """Why the measured problems say nothing of this one; empty where they do."""
    if not near:
        return f"nothing was measured with {_said(_words(params))}"
    points = np.array([point(entry.problem.params) for entry in near])
    here = point(params)
    for i, (name, value) in enumerate(_sizes(params)):
        low, high = points[:, i].min(), points[:, i].max()
        if not low - FARTHEST_OUTSIDE <= here[i] <= high + FARTHEST_OUTSIDE:
            values = sorted(float(dict(entry.problem.params)[name]) for entry in near)
            return f"{name}={value:g} lies more than a factor of 2 outside the measured {values[0]:g} to {values[-1]:g}"
    distance = float(np.linalg.norm(points - here, axis=1).min())
    if distance > FARTHEST:
        return f"the nearest measured problem, {_nearest(params, near)}, is {distance:.1f} doublings of sizes away"
    return ""


def _nearest(params: Params, near: Sequence[TunedEntry]) -> str:
    here = point(params)
    return str(min(near, key=lambda entry: float(np.linalg.norm(point(entry.problem.params) - here))).problem)


def interpolated(params: Params, problems: Sequence[Params], slowdowns: np.ndarray, medians: np.ndarray) -> np.ndarray:
    """(configs,) expected slowdowns; slowdowns: (problems, configs), NaN where not measured; medians: (problems,)."""
    like = [i for i, other in enumerate(problems) if _words(other) == _words(params)]
    if not like:
        return np.full(slowdowns.shape[1], math.nan)
    distance = np.array([np.linalg.norm(point(problems[i]) - point(params)) for i in like])
    weights = 1 / (1 + distance**2)
    filled = np.where(np.isnan(slowdowns[like]), medians[like, None], slowdowns[like])
    return np.exp(weights @ np.log(filled) / weights.sum())


def _words(params: Params) -> Params:
    """The parameters that are no sizes: a layout, an element type. Problems that differ in one are not comparable."""
    return tuple((name, value) for name, value in params if isinstance(value, str | bool))


def _sizes(params: Params) -> list[tuple[str, float]]:
    return [(name, float(value)) for name, value in params if not isinstance(value, str | bool)]


def point(params: Params) -> np.ndarray:
    """Sizes as log2(1 + size), so that 0 (no skew, no padding) has a place too."""
    return np.array([math.log2(1 + value) if value >= 0 else value for _, value in _sizes(params)])


def _said(params: Params) -> str:
    return ",".join(f"{name}={value}" for name, value in params) or "sizes"
