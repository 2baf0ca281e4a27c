"""The page of a gate: every finding, and the pairs that it rests on."""

from __future__ import annotations

import math
from collections.abc import Sequence

from costmodel.gate import telling
from costmodel.gate.verdicts import Finding
from costmodel.report.figures import pairs_figure
from costmodel.report.page import Column, heading, page, paragraph, picture, table

MOST_STRIPS = 40  # in the figure


def gate_html(findings: Sequence[Finding], *, title: str = "Performance gate") -> str:
    """One page for the findings of either tier, the pairs of the measured ones drawn."""
    paired = [f for f in findings if f.pairs and math.isfinite(f.slowdown)]
    paired.sort(key=lambda f: (telling.ORDER.index(f.verdict), -f.slowdown))
    columns = [Column(name, text=name in ("verdict", "what", "evidence")) for name in telling.HEADINGS]
    return page(
        title,
        paragraph(telling.summary(findings) or "Nothing to compare."),
        _pairs_section(paired),
        heading("Findings") if findings else "",
        table(columns, telling.rows(findings)) if findings else "",
    )


def _pairs_section(paired: Sequence[Finding]) -> str:
    if not paired:
        return ""
    shown = paired[:MOST_STRIPS]
    more = f" The first {MOST_STRIPS} of {len(paired)}." * (len(paired) > MOST_STRIPS)
    figure = pairs_figure(
        [
            (f.name, [head / base - 1 for base, head in f.pairs], f.slowdown, f.low, f.high, f.threshold,
             f.verdict == "regressed")
            for f in shown
        ]
    )  # fmt: skip
    told = "; ".join(f"{f.name} {f.verdict} {f.slowdown:+.1%}" for f in shown)
    return heading("Pairs") + picture(
        figure,
        f"Slow-down of each pair by test: {told}",
        caption="Grey: the slow-down in each pair of processes, head over base. Diamond and line: the estimate and its "
        f"bounds, red where it regressed. Tick: the threshold.{more}",
    )
