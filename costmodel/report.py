"""What replays showed, as a plot and as one HTML file that opens without a network; how predictions kept their word."""

from __future__ import annotations

import html
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

# Okabe and Ito's colours, apart for every eye; with as many line styles, so that a print in grey can be read too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7A7A7A")
_STYLES = ("-", "--", "-.", ":")
_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "costmodel", "font.size": 11, "font.family": "sans-serif"}
_GUIDE: Any = {"color": "0.6", "linewidth": 0.8, "linestyle": (0, (1, 2)), "zorder": 0}


def curves_figure(runs: Iterable[Run]) -> Figure:
    """Best-so-far share of the optimum against evaluations: a panel a space, median over seeds and quartile band."""
    by_space: dict[str, dict[str, np.ndarray]] = {}
    for (_, strategy), members in grouped(runs).items():
        title = _title(members[0].space)
        by_space.setdefault(title, {})[strategy] = np.array([run.fractions() for run in members])
    if not by_space:
        raise UserError("got no runs, expected at least one to draw")
    names = list(dict.fromkeys(name for panel in by_space.values() for name in panel))
    looks = dict(zip(names, _looks(names), strict=True))
    columns = min(len(by_space), 2)  # two panels side by side can still be read on a phone
    rows = math.ceil(len(by_space) / columns)
    with rc_context(_STYLE):
        legend_rows = math.ceil(len(names) / columns / 2)
        height = 2.9 * rows + 0.3 * legend_rows + 0.5
        figure = Figure(figsize=(3.7 * columns + 0.3, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax, (title, panel) in zip(axes, by_space.items(), strict=False):
            _panel(ax, title, panel, looks)
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
    problem = str(space.problem)
    shown = problem if len(problem) <= 44 else f"{problem[:43]}…"
    return f"{space.kernel.name}, {space.device.name}\n{shown}"


def _panel(ax: Axes, title: str, panel: Mapping[str, np.ndarray], looks: Mapping[str, dict[str, Any]]) -> None:
    lowest = 1.0
    for name, fractions in panel.items():
        count = np.arange(1, fractions.shape[1] + 1)
        low, middle, high = np.quantile(fractions, [0.25, 0.5, 0.75], axis=0)
        ax.plot(count, middle, drawstyle="steps-post", label=name, linewidth=2, **looks[name])
        if len(fractions) > 1:
            ax.fill_between(count, low, high, step="post", color=looks[name]["color"], alpha=0.15, linewidth=0)
        lowest = min(lowest, float(middle[min(4, len(middle) - 1) :].min()))
    ax.axhline(1 / 1.05, **_GUIDE)
    ax.set_title(title, fontsize=9.5, loc="left")
    ax.set_xscale("log")
    last = next(iter(panel.values())).shape[1]
    ax.set_xlim(1, max(last, 2))
    ax.set_xticks([n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if n <= last])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_ylim(max(0.0, math.floor(10 * lowest - 0.5) / 10), 1.01)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)


def reliability_figure(ranks: Mapping[str, Sequence[float]]) -> Figure:
    """Whether claimed levels came true: name -> `uncertainty.claimed_ranks`. On the left the share of rows below each
    claimed quantile, calibrated on the diagonal; on the right the histogram of the ranks, calibrated where it is flat.
    """
    figure, (left, right) = _panels(ranks, "share of the rows below it", "share of the rows")
    for (name, one), look in zip(ranks.items(), _looks(ranks), strict=True):
        claimed, observed = zip(*uncertainty.reliability_by_level(one), strict=True)
        left.plot(claimed, observed, label=name, linewidth=2, **look)
        shares = uncertainty.rank_histogram(one)
        right.stairs(shares, np.linspace(0, 1, shares.size + 1), linewidth=2, **look)
    left.plot([0, 1], [0, 1], **_GUIDE)
    right.axhline(0.1, **_GUIDE)
    left.set(xlabel="claimed quantile", xlim=(0, 1), ylim=(0, 1))
    right.set(xlabel="rank of what came in what was claimed", xlim=(0, 1), ylim=(0, None))
    return _with_legend(figure, left)


def risk_coverage_figure(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """What abstaining buys: name -> (errors, scores) of `stats.risk_coverage`; the mean error of the share that is
    answered, surest first, with the area under it in brackets."""
    figure, (ax,) = _panels(curves, "mean error of what is answered")
    for (name, (errors, scores)), look in zip(curves.items(), _looks(curves), strict=True):
        covered, risk, area = stats.risk_coverage(errors, scores)
        ax.plot(covered, risk, label=f"{name} ({area:.3g})", linewidth=2, **look)
    ax.set(xlabel="share that is answered", xlim=(0, 1), ylim=(0, None))
    ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return _with_legend(figure, ax)


def _looks(names: Iterable[str]) -> list[dict[str, Any]]:
    return [
        {"color": _COLOURS[i % len(_COLOURS)], "linestyle": _STYLES[i // len(_COLOURS) % len(_STYLES)]}
        for i, _ in enumerate(names)
    ]


def _panels(shown: Mapping[str, Any], *labels: str) -> tuple[Figure, list[Axes]]:
    """A panel for each label of a vertical axis, side by side."""
    if not shown:
        raise UserError("got nothing to draw, expected at least one model")
    with rc_context(_STYLE):
        figure = Figure(figsize=(0.7 + 3.5 * max(len(labels), 1.5), 3.6 + 0.3 * math.ceil(len(shown) / 2)))
        figure.set_layout_engine("constrained")
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(1, len(labels), squeeze=False)[0])
        for ax, label in zip(axes, labels, strict=True):
            ax.set_ylabel(label)
            ax.grid(alpha=0.25, linewidth=0.6)
            ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _with_legend(figure: Figure, panel: Axes) -> Figure:
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def write_png(figure: Figure, path: Path) -> None:
    """160 dots an inch: sharp on a phone, small in a repository."""
    _written(path, _image(figure, "png"))


def _image(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {}
    with rc_context(_STYLE):
        figure.savefig(buffer, format=kind, dpi=160, metadata=metadata)
    return buffer.getvalue()


def _written(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; give a file that can be written") from error


# --------------------------------------------------------------------------------------------------------------- HTML

_CSS = """
:root { color-scheme: light; font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; }
body { max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; margin: 0.5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 0.5rem; }
p, li { max-width: 44rem; } figure { margin: 0; max-width: 36rem; } svg { width: 100%; height: auto; display: block; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: 0.3rem 0.7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #555; font-weight: 600; }
small { color: #595959; } tbody tr:nth-child(even) { background: #f7f7f7; }
"""


def replay_html(
    rows: Sequence[Mapping[str, Any]],
    runs: Iterable[Run],
    *,
    comparisons: Sequence[str] = (),
    claims: Mapping[str, Sequence[Mapping[str, float]]],
) -> str:
    """One page with everything inside: a section a space, its plot as SVG and its table, and how claims came true.

    rows: of `replay.summary_rows`. claims: strategy -> rows of `replay.stop_rule`.
    """
    by_space: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        by_space.setdefault((row["space"], row["device"]), []).append(row)
    runs_of: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        runs_of.setdefault((run.space.name, run.space.device.name), []).append(run)
    parts = [
        "<h1>Replayed searches</h1>",
        f"<p>{len(by_space)} recorded space{'s' * (len(by_space) != 1)}, a budget of {rows[0]['budget']} benchmarks, "
        f"{max(row['seeds'] for row in rows)} seeds for what draws at random. {_READING}</p>",
        "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in comparisons) + "</ul>" if comparisons else "",
        *(_space_section(members, runs_of[key]) for key, members in by_space.items()),
        _claims_section(claims),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Replayed searches</title><style>{_CSS}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


_READING = (
    "Lines are medians over seeds, bands the middle half; a failed config costs a benchmark. Above the dotted line a "
    "search is within 5 % of the optimum. Tables: the share of the optimum reached at so many benchmarks; the "
    "benchmarks, and the seconds of compiling and measuring, until within 5 % and 1 %, with 95 % bootstrap intervals "
    "of the median in brackets; P, the mean lead over random search (0: no better, 1: the optimum at once; Willemsen "
    "et al. 2024)."
)


def write_html(text: str, path: Path) -> None:
    _written(path, text.encode())


def space_note(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the space is, above its table."""
    first = rows[0]
    tied, optimum = first["tied_with_optimum"], first["optimum_us"]
    ties = f", {tied - 1} more tie with it by their repeats" if tied > 1 else ""
    return (
        f"{first['size']} configs, {first['failures']} fail; optimum "
        f"{f'{optimum:.4g}' if optimum < 1e4 else f'{optimum:.0f}'} us{ties}; random search is expected to need "
        f"{first['random_evaluations_to']['0.05']:.0f} benchmarks to 5 %"
    )


def _space_section(rows: Sequence[Mapping[str, Any]], runs: Sequence[Run]) -> str:
    svg = _image(curves_figure(runs), "svg").decode()
    svg = svg[svg.index("<svg") :]  # the XML head has no place inside a page
    return (
        f"<h2>{html.escape(rows[0]['space'])} <small>{html.escape(rows[0]['device'])}</small></h2>\n"
        f"<p>{html.escape(space_note(rows))}.</p>\n<figure>{svg}</figure>\n"
        + _table(summary_headings(rows), [summary_cells(row) for row in rows])
    )


def summary_headings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    budget = rows[0]["budget"]
    return ["strategy", *(["at 20"] if budget > 20 else []), f"at {budget}", "to 5 %", "to 1 %", "seconds to 5 %", "P"]


def summary_cells(row: Mapping[str, Any]) -> list[str]:
    """What the tables on screen and on the page say of one strategy on one space; in the order of the headings."""
    budget, seeds = row["budget"], row["seeds"]
    last = row["fraction_at"][str(budget)]
    low, high = row["fraction_at_interval"][str(budget)]
    return [
        row["strategy"],
        *([f"{row['fraction_at']['20']:.3f}"] if budget > 20 else []),
        f"{last:.3f}" if seeds == 1 else f"{last:.3f} [{low:.2f}, {high:.2f}]",
        _count(row["evaluations_to"]["0.05"], row["evaluations_to_interval"]["0.05"], budget, seeds),
        _count(row["evaluations_to"]["0.01"], None, budget, seeds),
        _number(row["seconds_to"]["0.05"]),
        f"{row['p_score']:.2f}",
    ]


def _count(value: float | None, interval: Sequence[float | None] | None, budget: int, seeds: int) -> str:
    never = f">{budget}"
    told, *edges = (never if x is None else f"{x:g}" for x in (value, *(interval or ())))
    return told if seeds == 1 or set(edges) <= {told} else f"{told} [{', '.join(edges)}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in headings)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


CLAIM_HEADINGS = ("strategy", "claimed", "true", "mean regret", "claims")


def claim_cells(strategy: str, row: Mapping[str, float]) -> list[str]:
    """One bin of claims, in the order of the headings."""
    return [
        strategy, f"{row['claimed']:.0%}", f"{row['remained']:.0%}", f"{row['regret']:.1%}", f"{row['count']:.0f}"
    ]  # fmt: skip


def _claims_section(claims: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    cells = [claim_cells(strategy, row) for strategy, bins in claims.items() for row in bins]
    if not cells:
        return ""
    return (
        "<h2>What the search claims, and what was true</h2>\n<p>After each batch a search states how likely it is that "
        "a config more than 5 % faster remains unmeasured. Claims of all spaces are put into bins; beside the mean "
        "claim stands the share for which there was one, and how far the best so far was above the optimum.</p>\n"
        + _table(CLAIM_HEADINGS, cells)
    )
