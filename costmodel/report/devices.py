"""The part of a page that compares devices which measured the same kernel on the same problem."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from costmodel import stats
from costmodel.dataset import kernel_identity
from costmodel.notebook import format_us
from costmodel.report.figures import devices_figure
from costmodel.report.landscape import Told, times
from costmodel.report.page import Column, counted, escaped, heading, paragraph, picture, table

MOST_PROBLEMS = 12
MIN_COMMON = 8  # configs that two devices must share for a rank correlation


def device_section(spaces: Sequence[Told]) -> str:
    """Empty where no problem was measured on two devices."""
    together: dict[object, list[Told]] = {}
    for told in spaces:
        together.setdefault((kernel_identity(told.space.kernel), told.space.problem), []).append(told)
    shared = sorted((m for m in together.values() if len(m) > 1), key=lambda m: -sum(t.configs for t in m))
    if not shared:
        return ""
    more = f" {len(shared) - MOST_PROBLEMS} more left out." * (len(shared) > MOST_PROBLEMS)
    return (
        heading("Devices")
        + paragraph(
            f"Measured on several devices: {counted(len(shared), 'problem')}.{more} Carried over: what another "
            "device's best config loses here, against this device's best."
        )
        + "".join(map(_problem, shared[:MOST_PROBLEMS]))
    )


def _problem(members: Sequence[Told]) -> str:
    first = members[0].space
    rows = [
        [
            told.space.device.name,
            told.configs,
            format_us(told.best.latency_us),
            str(told.best.variant.config),
            "; ".join(f"{other.space.device.name} {_carried(other, told)}" for other in members if other is not told),
        ]
        for told in members
    ]
    config, carried = Column("best config", text=True), Column("carried over", text=True)
    headings: list[str | Column] = ["device", "configs", "best", config, carried]
    drawn = _picture(members)
    return f"<h3>{escaped(f'{first.kernel.name} {first.problem}')}</h3>" + table(headings, rows) + drawn


def _carried(source: Told, target: Told) -> str:
    """The source's best config on the target."""
    for m in target.space.measurements:
        if m.variant.config == source.best.variant.config:
            return times(m.latency_us / target.best.latency_us) if m.status == "ok" else m.status.replace("_", " ")
    return "not measured"


def common(first: Told, second: Told) -> list[tuple[float, float]]:
    """Latencies of the configs that both measured, in microseconds."""
    there = {m.variant.config: m.latency_us for m in second.space.measurements if m.status == "ok"}
    return [
        (m.latency_us, there[m.variant.config])
        for m in first.space.measurements
        if m.status == "ok" and m.variant.config in there
    ]


def _picture(members: Sequence[Told]) -> str:
    """Of the two that share most configs."""
    first, second = max(itertools.combinations(members, 2), key=lambda pair: len(common(*pair)))
    pairs = common(first, second)
    if len(pairs) < MIN_COMMON:
        return ""
    x, y = zip(*pairs, strict=True)
    names = first.space.device.name, second.space.device.name
    told = f"{len(pairs)} configs on both; their order agrees by {stats.spearman(x, y):.3f} (Spearman)."
    return picture(devices_figure(x, y, *names), f"Latencies on {names[1]} against {names[0]}: {told}", caption=told)
