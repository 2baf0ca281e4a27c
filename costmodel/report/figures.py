"""Figures of one panel each, as wide as a phone: what was measured, against what was predicted, and where it lies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from costmodel.notebook import format_us
from costmodel.report.curves import plain, reliability, short
from costmodel.report.style import COLOURS, GUIDE, STYLE, Look

BLUE, RED, GREEN, *_ = COLOURS
INK, GREY, PAPER = "#000000", "#7A7A7A", "#FFFFFF"
MOST_DOTS = 1200  # of a figure; more are thinned out
CURVE_POINTS = 40  # of a sorted curve
MEASURED = Look(BLUE, dot="full")
FAILED = Look(RED, dot="hollow")
DEFAULT = Look(INK, dot="hollow")
PICK = Look(INK, dot="full")


@contextmanager
def _panel(height: float = 3.0) -> Iterator[tuple[Figure, Axes]]:
    with rc_context(STYLE):
        figure = Figure(figsize=(4.6, height), layout="constrained")
        FigureCanvasAgg(figure)
        ax = figure.subplots()
        plain(ax)
        yield figure, ax


def dots(
    ax: Axes,
    x: Sequence[float] | np.ndarray,
    y: Sequence[float] | np.ndarray,
    colour: str,
    size: float,
    *,
    alpha: float = 0.8,
) -> None:
    """As lines of no length with round ends, which take far less SVG than markers do."""
    place = np.repeat(np.column_stack([x, y]), 2, axis=0)
    outline = Outline(place, np.tile([Outline.MOVETO, Outline.LINETO], len(place) // 2))
    outline.should_simplify = False
    ax.add_patch(
        PathPatch(outline, fill=False, edgecolor=colour, linewidth=size, alpha=alpha, capstyle="round", zorder=3)
    )


def predicted_figure(
    true_us: Sequence[float] | np.ndarray, predicted_us: Sequence[float] | np.ndarray, *, most: int = MOST_DOTS
) -> Figure:
    """Predicted against measured latency, both logarithmic; what is right lies on the dotted line."""
    true, predicted = _thinned(np.array([true_us, predicted_us], dtype=np.float64), most)
    low, high = min(true.min(), predicted.min()) / 1.2, max(true.max(), predicted.max()) * 1.2
    with _panel(3.6) as (figure, ax):
        ax.plot([low, high], [low, high], **GUIDE)
        dots(ax, true, predicted, BLUE, 2.5)
        ax.set(xlim=(low, high), ylim=(low, high), xlabel="measured", ylabel="predicted")
        _latency(ax, "x", low, high)
        _latency(ax, "y", low, high)
    return figure


def calibration_figure(ranks: Sequence[float]) -> Figure:
    """Share of rows below each claimed quantile; calibrated on the dotted line. ranks: `uncertainty.claimed_ranks`."""
    with _panel(3.6) as (figure, ax):
        reliability(ax, ranks, "", Look(BLUE))
        ax.plot([0, 1], [0, 1], **GUIDE)
        ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="claimed: below this quantile", ylabel="came true")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return figure


def landscape_figure(
    curves: Sequence[tuple[Look, Sequence[float], float | None, float | None]],
) -> Figure:
    """Every space's latencies, sorted, as multiples of its best, against the share of its configs.

    curves: (look, latencies, default's latency, that of the model's pick), the last two None where not known.
    """
    worst = 1.1
    with _panel() as (figure, ax):
        for look, latencies, default, pick in curves:
            order = np.sort(np.asarray(latencies, dtype=np.float64))
            factors, share = order / order[0], np.arange(1, len(order) + 1) / len(order)
            kept = np.unique(np.linspace(0, len(order) - 1, CURVE_POINTS).round().astype(int))
            ax.plot(share[kept], factors[kept], linewidth=1.5, **look.line)
            for latency, filled in ((default, False), (pick, True)):
                if latency is not None:
                    place = np.interp(latency, order, share), latency / order[0]
                    dots(ax, [place[0]], [place[1]], look.colour, 8.0, alpha=1.0)
                    if not filled:
                        dots(ax, [place[0]], [place[1]], PAPER, 5.0, alpha=1.0)
            worst = max(worst, float(factors[-1]))
        ax.set(xlim=(0, 1.01), yscale="log", ylim=(0.97, worst * 1.1), ylabel="times the best")
        ax.set_xlabel("share of the configs, fastest first")
        ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        _factors(ax, worst)
    return figure


def floor_figure(spaces: Mapping[str, Sequence[tuple[float, float]]], looks: Mapping[str, Look]) -> Figure:
    """The best measured against the floor: limiting term -> (floor, best latency), both in microseconds."""
    every = np.array([pair for pairs in spaces.values() for pair in pairs], dtype=np.float64)
    (left, low), (right, high) = every.min(axis=0) / 1.3, every.max(axis=0) * 1.3
    size = 4.0 if len(every) < 200 else 2.5
    with _panel(3.6) as (figure, ax):
        ax.plot([left, max(right, high)], [left, max(right, high)], **GUIDE)
        for name, pairs in spaces.items():
            floors, bests = np.array(pairs, dtype=np.float64).T
            dots(ax, floors, bests, looks[name].colour, size)
        ax.set(xlabel="the floor", ylabel="best measured")
        _latency(ax, "x", left, right)
        _latency(ax, "y", low, high)
    return figure


def devices_figure(first_us: Sequence[float], second_us: Sequence[float], first: str, second: str) -> Figure:
    """The same variants on two devices."""
    x, y = _thinned(np.array([first_us, second_us], dtype=np.float64), MOST_DOTS)
    with _panel(3.6) as (figure, ax):
        dots(ax, x, y, BLUE, 3.0)
        ax.set(xlabel=short(first), ylabel=short(second))
        for name, values in (("x", x), ("y", y)):
            _latency(ax, name, values.min() / 1.2, values.max() * 1.2)
    return figure


def search_figure(latencies_us: Sequence[float], default_us: float) -> Figure:
    """A search as it went: latencies in order (NaN: failed), the best so far, and the default, NaN where it failed."""
    us = np.asarray(latencies_us, dtype=np.float64)
    count, fine = np.arange(1, len(us) + 1), np.isfinite(us)
    best = np.fmin.accumulate(us)
    low, high = float(np.nanmin(us)) / 1.15, float(np.nanmax(us)) * 1.15
    with _panel() as (figure, ax):
        dots(ax, count[fine], us[fine], BLUE, 5.0)
        ax.plot(count, best, drawstyle="steps-post", color=GREEN, linewidth=2)
        if math.isfinite(default_us):
            ax.axhline(default_us, color=INK, linewidth=1, linestyle="--")
            low, high = min(low, default_us / 1.15), max(high, default_us * 1.15)
        for colour, size in ((RED, 7.0), (PAPER, 4.0)):
            dots(ax, count[~fine], np.full((~fine).sum(), high / 1.08), colour, size, alpha=1.0)
        ax.set(xlim=(0.5, len(us) + 0.5), xlabel="benchmarks", ylabel="latency")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        _latency(ax, "y", low, high)
    return figure


def pairs_figure(
    rows: Sequence[tuple[str, Sequence[float], float, float, float, float, bool]],
) -> Figure:
    """A strip a test: (name, slow-downs of its pairs, estimate, low, high, threshold, regressed), as shares."""
    every = [value for _, pairs, *numbers, _ in rows for value in (*pairs, *numbers) if math.isfinite(value)]
    low, high = min([0.0, *every]), max([0.0, *every])
    with _panel(0.8 + 0.55 * len(rows)) as (figure, ax):
        ax.axvline(0, color=INK, linewidth=0.8)
        for place, (name, pairs, estimate, left, right, threshold, regressed) in enumerate(rows):
            colour = RED if regressed else BLUE
            dots(ax, pairs, np.full(len(pairs), place), GREY, 4.0)  # the estimate lies above them
            ends = [end if math.isfinite(end) else edge for end, edge in ((left, low), (right, high))]
            ax.plot(ends, [place, place], color=colour, linewidth=2, zorder=4)
            ax.plot(estimate, place, "D", color=colour, markersize=6, zorder=4)
            ax.plot([threshold, threshold], [place - 0.2, place + 0.2], color=INK, linewidth=1.5)
            ax.text(0.0, place - 0.43, short(name, 60), transform=ax.get_yaxis_transform(), fontsize=9, va="center")
        margin = 0.05 * (high - low) or 0.01
        ax.set(xlim=(low - margin, high + margin), ylim=(len(rows) - 0.5, -0.7), xlabel="slow-down of head over base")
        ax.xaxis.set_major_formatter(PercentFormatter(1.0))
        ax.yaxis.set_major_locator(NullLocator())
        ax.spines["left"].set_visible(False)
    return figure


def _latency(ax: Axes, name: str, low: float, high: float) -> None:
    """A logarithmic axis in units that fit."""
    axis = ax.xaxis if name == "x" else ax.yaxis
    (ax.set_xscale if name == "x" else ax.set_yscale)("log")
    (ax.set_xlim if name == "x" else ax.set_ylim)(low, high)
    axis.set_major_locator(LogLocator(subs=_steps(high / low), numticks=6 if name == "x" else 8))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda us, _: format_us(us)))


def _factors(ax: Axes, worst: float) -> None:
    ax.yaxis.set_major_locator(LogLocator(subs=_steps(worst), numticks=8))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda factor, _: f"{factor:.3g}"))


def _steps(ratio: float) -> tuple[float, ...]:
    """Where a decade has ticks, by how many decades there are."""
    if ratio > 300:
        return (1.0,)
    if ratio > 20:
        return (1.0, 3.0)
    return (1.0, 2.0, 5.0) if ratio > 4 else (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)


def _thinned(columns: np.ndarray, most: int) -> np.ndarray:
    """(k, n) -> (k, at most `most`), drawn at random, the same ones every time."""
    count = columns.shape[1]
    if count <= most:
        return columns
    return columns[:, np.sort(np.random.default_rng(0).choice(count, most, replace=False))]
