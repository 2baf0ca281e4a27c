"""The page of a search: what it found, how it came there, and what each value costs."""

from __future__ import annotations

import math

from costmodel.notebook import format_us
from costmodel.records import Variant
from costmodel.replay import RecordedSpace
from costmodel.report.figures import FAILED, GREEN, INK, MEASURED, search_figure
from costmodel.report.landscape import floor_words, times, told_of, value_chips
from costmodel.report.page import Column, facts, heading, page, paragraph, picture, side_by_side, table
from costmodel.report.style import Look
from costmodel.search import TuneResult

MOST_ROWS = 15
_KEY = {"measured": MEASURED, "best so far": Look(GREEN)}
_DEFAULT_KEY = {"default": Look(INK, "--")}


def tuned_html(result: TuneResult, *, default: Variant | None = None) -> str:
    """default: marked in the table where it is given."""
    best, first = result.best, result.measurements[0]
    failed = sum(m.status != "ok" for m in result.measurements)
    title = f"{best.kernel.name} {best.problem}".strip()
    key = _KEY | (_DEFAULT_KEY if math.isfinite(result.default_us) else {}) | ({"failed": FAILED} if failed else {})
    curve = search_figure([m.latency_us for m in result.measurements], result.default_us)
    reused = f" The first {result.reused} were in the store." if result.reused else ""
    return page(
        f"Tuned: {title}",
        paragraph(f"On {first.device.name}. Best config: {best.config}"),
        facts(_headline(result, failed)),
        side_by_side(
            heading("The search")
            + picture(
                curve,
                f"Latencies of {len(result.measurements)} benchmarks of {title} in order, and the best so far",
                caption=f"Benchmarks in order.{reused} The search ended by its {result.stopped_by}.",
                key=key,
            ),
            heading("What each value costs")
            + paragraph(
                "The fastest measured config with that value, against the fastest of all; few benchmarks: a hint."
            )
            + value_chips([_space(result)])
            + _floor(result),
        ),
        heading("The fastest"),
        paragraph(
            "As measured during the search. The winner, its next best and the default were measured again side by side "
            f"at the end: {format_us(result.best_us)}" + _against_default(result) + "."
        ),
        _fastest(result, default),
    )


def _headline(result: TuneResult, failed: int) -> dict[str, str]:
    found = {"best": format_us(result.best_us), "default": format_us(result.default_us)}
    if math.isfinite(result.speedup):
        found["default over best"] = times(result.speedup)
    found["measured"] = f"{len(result.measurements)} of {result.space_size}"
    found |= {"failed": str(failed)} if failed else {}
    found["a config more than 5 % faster was missed"] = f"{result.p_better_remains:.0%} likely"
    return found | ({"tie with the best, within 5 %": str(len(result.ties))} if result.ties else {})


def _against_default(result: TuneResult) -> str:
    if not math.isfinite(result.default_us):
        return "; the default failed"
    return f" for the winner, {format_us(result.default_us)} for the default"


def _space(result: TuneResult) -> RecordedSpace:
    """What was measured of the winner's kernel; sources of one operation are spaces of their own."""
    own = tuple(m for m in result.measurements if m.variant.kernel == result.best.kernel)
    return RecordedSpace(result.best.kernel, result.best.problem, own[0].device, own)


def _floor(result: TuneResult) -> str:
    told = told_of(_space(result), {})
    return paragraph(f"As measured during the search, {floor_words(told)}.") if told.limit else ""


def _fastest(result: TuneResult, default: Variant | None) -> str:
    ok = sorted((m for m in result.measurements if m.status == "ok"), key=lambda m: m.latency_us)
    several = len({m.variant.kernel for m in ok}) > 1
    rows = []
    for place, m in enumerate(ok, 1):
        marks = ["best"] * (m.variant == result.best) + ["tie"] * (m.variant in result.ties)
        marks += ["default"] * (m.variant == default)
        if place > MOST_ROWS and not marks:
            continue
        name = f"{m.variant.kernel.name} {m.variant.config}" if several else str(m.variant.config)
        rows.append([name, place, format_us(m.latency_us), times(m.latency_us / ok[0].latency_us), ", ".join(marks)])
    return table([Column("config", text=True), "place", "latency", "times the fastest", ""], rows)
