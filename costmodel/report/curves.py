"""Figures that compare several by name: best-so-far curves of replays, reliability of claims, what abstaining buys."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

from costmodel import stats, uncertainty
from costmodel.records import UserError
from costmodel.replay import RecordedSpace, Run, grouped
from costmodel.report.page import written
from costmodel.report.style import GUIDE, STYLE, Look, looks


def curves_figure(runs: Iterable[Run]) -> Figure:
    """Best-so-far share of the optimum against evaluations: a panel a space, median over seeds and quartile band."""
    by_space: dict[str, dict[str, np.ndarray]] = {}
    for (_, strategy), members in grouped(runs).items():
        title = _title(members[0].space)
        by_space.setdefault(title, {})[strategy] = np.array([run.fractions() for run in members])
    if not by_space:
        raise UserError("got no runs, expected at least one to draw")
    names = list(dict.fromkeys(name for panel in by_space.values() for name in panel))
    styles = dict(zip(names, looks(names), strict=True))
    columns = min(len(by_space), 2)  # two panels side by side can still be read on a phone
    rows = math.ceil(len(by_space) / columns)
    with rc_context(STYLE):
        legend_rows = math.ceil(len(names) / columns / 2)
        height = 2.9 * rows + 0.3 * legend_rows + 0.5
        figure = Figure(figsize=(3.7 * columns + 0.3, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax, (title, panel) in zip(axes, by_space.items(), strict=False):
            _panel(ax, title, panel, styles)
        for ax in axes[len(by_space) :]:
            ax.set_visible(False)
        for ax in axes[max(len(by_space) - columns, 0) : len(by_space)]:
            ax.set_xlabel("benchmarks")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2 * columns, frameon=False)
        figure.supylabel("share of the optimum reached", fontsize=11)
    return figure


def _title(space: RecordedSpace) -> str:
    """Two lines that fit a panel."""
    return f"{short(f'{space.kernel.name}, {space.device.name}', 60)}\n{short(str(space.problem), 44)}"


def short(text: str, most: int = 40) -> str:
    """What a figure shows of a name: one line of what can be printed."""
    one = "".join(c if c.isprintable() else "?" for c in text)
    return one if len(one) <= most else f"{one[: most - 1]}…"


def _panel(ax: Axes, title: str, panel: Mapping[str, np.ndarray], styles: Mapping[str, Look]) -> None:
    lowest = 1.0
    for name, fractions in panel.items():
        count = np.arange(1, fractions.shape[1] + 1)
        low, middle, high = np.quantile(fractions, [0.25, 0.5, 0.75], axis=0)
        ax.plot(count, middle, drawstyle="steps-post", label=name, linewidth=2, **styles[name].line)
        if len(fractions) > 1:
            ax.fill_between(count, low, high, step="post", color=styles[name].colour, alpha=0.15, linewidth=0)
        lowest = min(lowest, float(middle[min(4, len(middle) - 1) :].min()))
    ax.axhline(1 / 1.05, **GUIDE)
    ax.set_title(title, fontsize=9.5, loc="left")
    ax.set_xscale("log")
    last = next(iter(panel.values())).shape[1]
    ax.set_xlim(1, max(last, 2))
    ax.set_xticks([n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if n <= last])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_ylim(max(0.0, math.floor(10 * lowest - 0.5) / 10), 1.01)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    plain(ax)


def reliability_figure(ranks: Mapping[str, Sequence[float]]) -> Figure:
    """Whether claimed levels came true: name -> `uncertainty.claimed_ranks`. On the left the share of rows below each
    claimed quantile, calibrated on the diagonal; on the right the histogram of the ranks, calibrated where it is flat.
    """
    figure, (left, right) = _panels(ranks, "share of the rows below it", "share of the rows")
    for (name, one), look in zip(ranks.items(), looks(ranks), strict=True):
        reliability(left, one, name, look)
        shares = uncertainty.rank_histogram(one)
        right.stairs(shares, np.linspace(0, 1, shares.size + 1), linewidth=2, **look.line)
    left.plot([0, 1], [0, 1], **GUIDE)
    right.axhline(0.1, **GUIDE)
    left.set(xlabel="claimed quantile", xlim=(0, 1), ylim=(0, 1))
    right.set(xlabel="rank of what came in what was claimed", xlim=(0, 1), ylim=(0, None))
    return _with_legend(figure, left)


def reliability(ax: Axes, ranks: Sequence[float], name: str, look: Look) -> None:
    """One line of observed over claimed."""
    claimed, observed = zip(*uncertainty.reliability_by_level(ranks), strict=True)
    ax.plot(claimed, observed, label=name, linewidth=2, **look.line)


def risk_coverage_figure(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """What abstaining buys: name -> (errors, scores) of `stats.risk_coverage`; the mean error of the share that is
    answered, surest first, with the area under it in brackets."""
    figure, (ax,) = _panels(curves, "mean error of what is answered")
    for (name, (errors, scores)), look in zip(curves.items(), looks(curves), strict=True):
        covered, risk, area = stats.risk_coverage(errors, scores)
        ax.plot(covered, risk, label=f"{name} ({area:.3g})", linewidth=2, **look.line)
    ax.set(xlabel="share that is answered", xlim=(0, 1), ylim=(0, None))
    ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return _with_legend(figure, ax)


def plain(ax: Axes) -> None:
    """A light grid and no box."""
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)


def _panels(shown: Mapping[str, Any], *labels: str) -> tuple[Figure, list[Axes]]:
    """A panel for each label of a vertical axis, side by side."""
    if not shown:
        raise UserError("got nothing to draw, expected at least one model")
    with rc_context(STYLE):
        figure = Figure(figsize=(0.7 + 3.5 * max(len(labels), 1.5), 3.6 + 0.3 * math.ceil(len(shown) / 2)))
        figure.set_layout_engine("constrained")
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(1, len(labels), squeeze=False)[0])
        for ax, label in zip(axes, labels, strict=True):
            ax.set_ylabel(label)
            plain(ax)
    return figure, axes


def _with_legend(figure: Figure, panel: Axes) -> Figure:
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def write_png(figure: Figure, path: Path) -> None:
    """160 dots an inch: sharp on a phone, small in a repository."""
    buffer = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=160)
    written(path, buffer.getvalue())
