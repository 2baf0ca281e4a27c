"""Measured programs as rows to learn from: read, split so that nothing leaks, and scored.

A row is one program under one engine. Its latency is the median over sittings of the fastest sample, which repeats best
on a CPU. Rows of one skeleton (see `graph_lines`), and all versions of one program (engine, precision, batch), lie on
one side of any split.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import networkx as nx
import numpy as np

from costmodel import stats
from costmodel.graph import parse
from costmodel.graph_lines import Program, program_of
from costmodel.records import Measurement, UserError

APART = 0.10  # pairs that are closer are no reliable label
MOST_SPREAD = 0.5  # of the sittings' minima; a program that varies more is no label at all


@dataclass(frozen=True, eq=False)  # no slots: the floor is kept
class Row:
    """`name` is FAMILY:NUMBER and changes (attention:17:bf16:b4). `spread`: largest over smallest sitting, less 1."""

    name: str
    family: str
    engine: str
    program: Program
    latency_us: float
    spread: float = 0.0

    @property
    def base(self) -> str:
        """The program whose version this is."""
        return ":".join(self.name.split(":")[:2])

    @cached_property
    def floor_us(self) -> float:
        return self.program.floor_us

    @property
    def slowdown(self) -> float:
        """log2(latency / floor)."""
        return math.log2(self.latency_us / self.floor_us)


def rows_of(measurements: Iterable[Measurement]) -> list[Row]:
    """The successes among measurements of programs, sittings joined; those with `drift` count where no other is."""
    sittings: dict[tuple[str, str], list[Measurement]] = {}
    for m in measurements:
        if m.variant.kernel.language == "hlo" and m.status == "ok" and m.variant.kernel.source:
            engine = str(m.variant.config.get("engine", "eager"))
            sittings.setdefault((m.variant.kernel.identity, engine), []).append(m)
    programs: dict[str, Program] = {}
    rows = []
    for (identity, engine), found in sittings.items():
        calm = [m for m in found if "drift" not in dict(m.counters)] or found
        minima = [m.min_us for m in calm]
        spread = max(minima) / min(minima) - 1
        if spread > MOST_SPREAD:
            continue
        kernel = found[0].variant.kernel
        if identity not in programs:
            programs[identity] = program_of(parse(kernel.source or ""))
        latency_us = statistics.median(minima)
        rows.append(Row(kernel.name, kernel.origin, engine, programs[identity], latency_us, spread))
    if not rows:
        raise UserError("got no measured program; `costmodel collect` or collectors/hlo_graphs.py makes some")
    return rows


# ------------------------------------------------------------------------------------------------------------- splits


def components(rows: Sequence[Row]) -> list[int]:
    """A number per row; rows with different ones share neither a skeleton nor a program."""
    graph = nx.Graph()
    for n, row in enumerate(rows):
        graph.add_edge(n, ("skeleton", row.program.skeleton))
        graph.add_edge(n, ("program", row.base))
    found = [0] * len(rows)
    for number, members in enumerate(nx.connected_components(graph)):
        for member in members:
            if isinstance(member, int):
                found[member] = number
    return found


def random_split(rows: Sequence[Row], *, fraction: float = 0.2, seed: int) -> tuple[list[Row], list[Row]]:
    """(train, test); whole components are drawn until the test has its share."""
    of_row = components(rows)
    sizes = np.bincount(of_row)
    test: set[int] = set()
    taken = 0
    for component in np.random.default_rng(seed).permutation(len(sizes)):
        if taken < fraction * len(rows):
            test.add(int(component))
            taken += int(sizes[component])
    train = [row for row, c in zip(rows, of_row, strict=True) if c not in test]
    if not train:
        raise UserError("got programs that all share a skeleton or a version, expected several kinds; measure others")
    return train, [row for row, c in zip(rows, of_row, strict=True) if c in test]


def family_split(rows: Sequence[Row], families: Sequence[str]) -> tuple[list[Row], list[Row]]:
    """(train, test): test is these families; what shares a skeleton with it is in neither."""
    of_row = components(rows)
    held_out = {c for row, c in zip(rows, of_row, strict=True) if row.family in families}
    train = [row for row, c in zip(rows, of_row, strict=True) if c not in held_out]
    test = [row for row in rows if row.family in families]
    if not train or not test:
        raise UserError(f"got families {', '.join(families)}, expected some of {sorted({r.family for r in rows})}")
    return train, test


# ------------------------------------------------------------------------------------------------------------- scores


def scores(rows: Sequence[Row], predicted_us: np.ndarray) -> dict[str, float]:
    """Accuracy and order of latencies, and the order of slowdowns over the frozen floor."""
    true = np.array([row.latency_us for row in rows])
    floors = np.array([row.floor_us for row in rows])
    return {
        "n": len(rows),
        "kendall": stats.kendall_apart(true, predicted_us, apart=APART),
        "spearman": stats.spearman(true, predicted_us),
        "median_ape": stats.median_ape(true, predicted_us),
        "slowdown_kendall": stats.kendall_apart(true / floors, predicted_us / floors, apart=APART),
    }


def ratio_pairs(rows: Sequence[Row]) -> list[tuple[int, int, str]]:
    """(i, j, what differs) for versions of one program that differ in one thing: engine, precision or batch."""
    groups: dict[str, list[int]] = {}
    for n, row in enumerate(rows):
        groups.setdefault(row.base, []).append(n)
    found = []
    for members in groups.values():
        for i, j in itertools.combinations(members, 2):
            a, b = _version(rows[i]), _version(rows[j])
            differing = [key for key in a if a[key] != b[key]]
            if len(differing) == 1:
                found.append((i, j, differing[0]))
    return found


def _version(row: Row) -> dict[str, str]:
    changes = row.name.split(":")[2:]
    batch = next((c for c in changes if c[:1] == "b" and c[1:].isdigit()), "")
    precision = next((c for c in changes if c != batch), "")
    return {"engine": row.engine, "precision": precision, "batch": batch}


def ratio_scores(rows: Sequence[Row], predicted_us: np.ndarray) -> list[dict[str, Any]]:
    """For each thing that versions differ in: the share of ratios on the right side of 1, of those that are off it by
    APART, and the median error of the ratio."""
    true = np.log2([row.latency_us for row in rows])
    predicted = np.log2(predicted_us)
    by_thing: dict[str, list[tuple[float, float]]] = {}
    for i, j, what in ratio_pairs(rows):
        by_thing.setdefault(what, []).append((true[i] - true[j], predicted[i] - predicted[j]))
    answers = []
    for what, pairs in sorted(by_thing.items()):
        told = np.array(pairs)
        clear = np.abs(told[:, 0]) > math.log2(1 + APART)
        right = np.sign(told[clear, 0]) == np.sign(told[clear, 1])
        answers.append({
            "differ_in": what, "pairs": len(told), "clear": int(clear.sum()),
            "right": float(right.mean()) if clear.any() else math.nan,
            "ratio_error": float(2 ** np.median(np.abs(told[:, 0] - told[:, 1])) - 1),
        })  # fmt: skip
    return answers
