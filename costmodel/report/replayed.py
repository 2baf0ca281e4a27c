"""The page of a replay, and the cells that it shares with the table on screen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from costmodel.replay import Run
from costmodel.report.curves import curves_figure
from costmodel.report.page import bullets, counted, heading, page, paragraph, picture, table

_READING = (
    "Lines are medians over seeds, bands the middle half; a failed config costs a benchmark. Above the dotted line a "
    "search is within 5 % of the optimum. Tables: the share of the optimum reached at so many benchmarks; the "
    "benchmarks, and the seconds of compiling and measuring, until within 5 % and 1 %, with 95 % bootstrap intervals "
    "of the median in brackets; P, the mean lead over random search (0: no better, 1: the optimum at once; Willemsen "
    "et al. 2024)."
)
CLAIM_HEADINGS = ("strategy", "claimed", "true", "mean regret", "claims")


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
    return page(
        "Replayed searches",
        paragraph(
            f"{counted(len(by_space), 'recorded space')}, a budget of {rows[0]['budget']} benchmarks, "
            f"{max(row['seeds'] for row in rows)} seeds for what draws at random. {_READING}"
        ),
        bullets(comparisons),
        *(_space_section(members, runs_of[key]) for key, members in by_space.items()),
        _claims_section(claims),
    )


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
    name, device, note = rows[0]["space"], rows[0]["device"], space_note(rows)
    cells = [summary_cells(row) for row in rows]
    told = f"Share of the optimum reached against benchmarks, {name} on {device}: {note}"
    return (
        heading(name, note=device)
        + paragraph(f"{note}.")
        + picture(curves_figure(runs), told)
        + table(summary_headings(rows), cells)
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
        heading("What the search claims, and what was true")
        + paragraph(
            "After each batch a search states how likely it is that a config more than 5 % faster remains unmeasured. "
            "Claims of all spaces are put into bins; beside the mean claim stands the share for which there was one, "
            "and how far the best so far was above the optimum."
        )
        + table(CLAIM_HEADINGS, cells)
    )
