"""A program as a picture: its lines from top to bottom, as large and as dark as they cost.

Nodes are lines (`graph_lines`), which stand for all instructions that were folded into them; arrows go from what makes
a value to what uses it, dashed where a folded repeat goes back up. Of a program with many lines the heaviest are drawn,
and the runs between them are one node each.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from costmodel.graph import Module
from costmodel.graph_lines import Program
from costmodel.records import UserError

MOST_NODES = 60  # that a page has room for
MOST_SOURCES = 8  # of a value that came through tuples
FORMATS = (".svg", ".png", ".pdf")
HEAVY = ("dot", "convolution", "scatter", "sort", "gather", "reduce-window", "exponential", "reduce", "tanh", "erf")


def line_graph(module: Module, program: Program) -> nx.DiGraph:
    """Nodes are numbers of lines; an edge for each line that uses what another makes."""
    of_place = {place: n for n, line in enumerate(program.lines) for place in line.instructions}
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(program.lines)))
    for computation in module.computations:
        sources: dict[str, list[int]] = {}
        for i in computation.instructions:
            found = dict.fromkeys(n for operand in i.operands for n in sources[operand])
            own = of_place.get((computation.name, i.name))
            if own is not None:
                graph.add_edges_from((n, own) for n in found if n != own)
            sources[i.name] = [own] if own is not None else list(found)[:MOST_SOURCES]
    return graph


def folded(graph: nx.DiGraph, costs_us: NDArray[np.float64], labels: Sequence[str]) -> nx.DiGraph:
    """At most MOST_NODES nodes, with `label`, `cost_us` and `lines`: the heaviest lines, and each run of others as one.

    A node is named by its first line.
    """
    heavy = set(range(len(costs_us)))
    if len(heavy) > MOST_NODES:
        heavy = set(np.argsort(-costs_us, kind="stable")[: (MOST_NODES - 1) // 2].tolist())
    group: list[int] = []
    for n in range(len(costs_us)):
        joins = n > 0 and n not in heavy and n - 1 not in heavy
        group.append(group[-1] if joins else n)
    small = nx.DiGraph()
    for n, first in enumerate(group):
        if first not in small:
            small.add_node(first, cost_us=0.0, lines=0, label=labels[n])
        small.nodes[first]["cost_us"] += float(costs_us[n])
        small.nodes[first]["lines"] += 1
    for _, data in small.nodes(data=True):
        if data["lines"] > 1:
            data["label"] = f"{data['lines']} small lines"
    small.add_edges_from((group[a], group[b]) for a, b in graph.edges if group[a] != group[b])
    return small


def label_of(program: Program, number: int) -> str:
    """`dot 64,512`, with how often where it stands for several."""
    line = program.lines[number]
    opcode, *inside = line.kind.split(" ")
    named = next((name for name in HEAVY if name in inside), inside[-1] if inside else "")
    shape = next((word for word in line.text.split(" ")[1:] if "[" in word), "")
    times = f"{len(line.instructions)}× " if len(line.instructions) > 1 else ""
    return f"{times}{named or opcode} {shape[:28]}".strip()


def layers_of(graph: nx.DiGraph) -> dict[int, int]:
    """The longest way to each node along edges that go forward (in the order of lines, which is one of execution)."""
    depth: dict[int, int] = {}
    for node in sorted(graph):
        depth[node] = 1 + max((depth[n] for n in graph.predecessors(node) if n < node), default=-1)
    return depth


def places_of(graph: nx.DiGraph) -> dict[int, tuple[float, float]]:
    """(x, y) in units of a node, y downwards; within a layer by the mean place of what is above."""
    depth = layers_of(graph)
    rows: dict[int, list[int]] = {}
    for node in sorted(depth):
        rows.setdefault(depth[node], []).append(node)
    x: dict[int, float] = {}
    for layer in sorted(rows):
        wanted = {}
        for node in rows[layer]:
            above = [x[n] for n in graph.predecessors(node) if n in x]
            wanted[node] = sum(above) / len(above) if above else 0.0
        ordered = sorted(rows[layer], key=lambda node: (wanted[node], node))
        middle = sum(wanted.values()) / len(wanted)
        for at, node in enumerate(ordered):
            x[node] = middle + at - (len(ordered) - 1) / 2
    return {node: (x[node], float(depth[node])) for node in depth}


def draw(module: Module, program: Program, costs_us: NDArray[np.float64], path: Path, *, title: str) -> None:
    """Write the picture; its kind follows from the file's ending."""
    if path.suffix not in FORMATS:
        raise UserError(f"got {path.name}, expected a picture that ends in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise UserError(f"got {path}, expected a folder that exists; make {path.parent} first")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    labels = [label_of(program, n) for n in range(len(program.lines))]
    graph = folded(line_graph(module, program), costs_us, labels)
    places = places_of(graph)
    xs, ys = (np.array([places[node][axis] for node in graph]) for axis in (0, 1))
    figure = Figure(
        figsize=(min(40, 4 + 1.7 * np.ptp(xs)), min(60, 2.0 + (0.62 if np.ptp(ys) < 24 else 0.42) * np.ptp(ys))),
        layout="constrained",
    )
    axes: Any = figure.subplots()
    shares = np.array([data["cost_us"] for _, data in graph.nodes(data=True)]) / costs_us.sum()
    sizes = 40 + 1600 * shares  # in points squared, as scatter has it
    radius = dict(zip(graph, 0.5 * np.sqrt(sizes), strict=True))
    for a, b in graph.edges:
        axes.annotate("", places[b], places[a], zorder=1, arrowprops=_arrow(places[a], places[b], radius[a], radius[b]))
    dots = axes.scatter(xs, ys, s=sizes, c=100 * shares, cmap="YlOrRd", vmin=0, edgecolors="#404040",
                        linewidths=0.7, zorder=2)  # fmt: skip
    box = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
    for (node, data), share in zip(graph.nodes(data=True), shares, strict=True):
        told = f"{data['label']}\n{data['cost_us']:.4g} us, {share:.0%}" if share >= 0.005 else data["label"]
        axes.annotate(told, places[node], xytext=(radius[node] + 3, 0), textcoords="offset points", fontsize=7,
                      va="center", zorder=3, bbox=box)  # fmt: skip
    axes.set_xlim(xs.min() - 0.6, xs.max() + 1.4)
    axes.set_ylim(ys.max() + 0.8, ys.min() - 0.8)
    axes.set_axis_off()
    axes.set_title(title, fontsize=9, loc="left")
    figure.colorbar(dots, ax=axes, label="share of the latency, %", shrink=0.5, pad=0.01)
    with rc_context({"svg.hashsalt": "costmodel", "svg.fonttype": "none"}):
        figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)


def _arrow(start: tuple[float, float], end: tuple[float, float], from_edge: float, to_edge: float) -> dict[str, Any]:
    """Straight to the next layer, bent past others, dashed and bent the other way where it goes up."""
    down = end[1] - start[1]
    bend = 0.35 if down <= 0 else 0.2 if down > 1.5 else 0.0
    return {
        "arrowstyle": "-|>", "linewidth": 0.8, "shrinkA": from_edge, "shrinkB": to_edge + 1,
        "color": "#9a9a9a" if down > 0 else "#b05050", "linestyle": "-" if down > 0 else "--",
        "connectionstyle": f"arc3,rad={bend}",
    }  # fmt: skip
