"""Findings as a terminal shows them, as Markdown, as annotations of a pull request and as pytest-benchmark's JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from costmodel.gate.verdicts import Finding, Side, Verdict

ORDER: tuple[Verdict, ...] = ("regressed", "inconclusive", "not comparable", "ok")
HEADINGS = ("verdict", "slow-down", "bounds", "evidence", "what")


def rows(findings: Sequence[Finding]) -> list[tuple[str, ...]]:
    """Cells under `HEADINGS`, in the order of `ORDER`."""
    return [
        (
            finding.verdict,
            f"{finding.slowdown:+.1%}" if math.isfinite(finding.slowdown) else "-",
            f"{_percent(finding.low)} .. {_percent(finding.high)}" if math.isfinite(finding.slowdown) else "-",
            finding.evidence or "-",
            f"{finding.name}: {finding.reason}" if finding.reason else finding.name,
        )
        for finding in sorted(findings, key=lambda f: ORDER.index(f.verdict))
    ]


def _percent(value: float) -> str:
    return f"{value:+.1%}" if math.isfinite(value) else "?"


def table(findings: Sequence[Finding]) -> list[str]:
    """Lines for a terminal."""
    cells = [HEADINGS, *rows(findings)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(HEADINGS) - 1)]
    return ["  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]) for row in cells]


def summary(findings: Sequence[Finding]) -> str:
    """ "1 regressed, 3 ok" """
    counts = {
        verdict: sum(f.verdict == verdict for f in findings) for verdict in dict.fromkeys(f.verdict for f in findings)
    }
    return ", ".join(
        f"{count} {verdict}" for verdict, count in sorted(counts.items(), key=lambda c: c[0] != "regressed")
    )


def markdown(findings: Sequence[Finding], title: str, nothing: str) -> str:
    """A section for a job's summary or a comment."""
    lines = [f"### {title}", "", summary(findings) or nothing, ""]
    if findings:
        lines += [_markdown_row(HEADINGS), _markdown_row(["---"] * len(HEADINGS))]
        lines += [_markdown_row(row) for row in rows(findings)]
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def github_commands(findings: Sequence[Finding]) -> list[str]:
    """GitHub's workflow commands, one for each regression, on the line that changed."""
    return [
        f"::error file={_property(f.path)},line={f.line},title={_property(f.name)}::{_data(f.sentence)}"
        for f in findings
        if f.verdict == "regressed" and f.path
    ]


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def benchmark_json(
    findings: Sequence[Finding], side: Side, *, machine: Mapping[str, str], commit: str, now: str
) -> dict[str, object]:
    """One side's measured numbers as pytest-benchmark saves its own (`pytest-benchmark compare` reads them); a round
    is a process. What the gate found is in extra_info."""
    return {
        "machine_info": {"costmodel": dict(machine)},
        "commit_info": {"id": commit, "dirty": False},
        "benchmarks": [
            {
                "group": None,
                "name": f.name.rpartition("::")[2],
                "fullname": f.name,
                "params": None,
                "param": None,
                "extra_info": {"costmodel": extra(f)},
                "options": {},
                "stats": _statistics([pair[side == "head"] / 1e6 for pair in f.pairs]),
            }
            for f in findings
            if f.pairs
        ],
        "datetime": now,
        "version": "costmodel",
    }


def extra(finding: Finding) -> dict[str, object]:
    """A finding as JSON: what is not finite is null."""
    numbers = {name: getattr(finding, name) for name in ("slowdown", "low", "high", "p", "probability")}
    return {
        "verdict": finding.verdict,
        "threshold": finding.threshold,
        "reason": finding.reason,
        "pairs_us": [list(pair) for pair in finding.pairs],
        **{name: value if value is not None and math.isfinite(value) else None for name, value in numbers.items()},
    }


def _statistics(seconds: Sequence[float]) -> dict[str, object]:
    """pytest-benchmark's statistics, by its definitions: quartiles by linear interpolation, outliers beyond 1.5 of
    the quartiles' distance, and beyond one standard deviation."""
    ordered, count = sorted(seconds), len(seconds)
    q1, median, q3 = (float(q) for q in np.quantile(ordered, (0.25, 0.5, 0.75)))
    mean, deviation = statistics.fmean(ordered), statistics.stdev(ordered) if count > 1 else 0.0
    low, high = q1 - 1.5 * (q3 - q1), q3 + 1.5 * (q3 - q1)
    tukey = sum(not low <= x <= high for x in ordered)
    apart = sum(abs(x - mean) > deviation for x in ordered)
    return {
        "min": ordered[0], "max": ordered[-1], "mean": mean, "stddev": deviation, "rounds": count, "median": median,
        "iqr": q3 - q1, "q1": q1, "q3": q3, "iqr_outliers": tukey, "stddev_outliers": apart,
        "outliers": f"{apart};{tukey}", "ld15iqr": min(x for x in ordered if x >= low),
        "hd15iqr": max(x for x in ordered if x <= high), "ops": 1 / mean, "total": sum(ordered), "data": list(seconds),
        "iterations": 1,
    }  # fmt: skip
