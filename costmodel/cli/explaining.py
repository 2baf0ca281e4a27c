"""What limits a config, what its measured neighbours did, and what would make another one win; one screen."""

from __future__ import annotations

import dataclasses
import math
import shutil
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from costmodel.cli.shared import (
    Json,
    KernelFile,
    ModelFolder,
    ProblemText,
    Trust,
    device_named,
    model_from,
    read_everything,
)
from costmodel.notebook import format_us
from costmodel.present import prediction_row, print_json

if TYPE_CHECKING:
    from costmodel.explain import Explanation, RunnerUp
    from costmodel.records import Device, Measurement

SHOWN = 5  # neighbours and changes on a screen


def explain(
    kernel: KernelFile,
    problem: ProblemText = None,
    config: Annotated[
        str | None, typer.Option(help="NAME=VALUE,... over the default config; the best predicted one if left out.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="A sheet or a device of --data by name; this machine if left out.")
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data", help="Where neighbours were measured or compiled; for C++ the shipped data if left out."
        ),
    ] = None,
    model: ModelFolder = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Explain a pick: what limits it, what its measured neighbours did, what would have to change for another to win.

    Example: costmodel explain matmul --problem M=512,N=512,K=512 --config THREADS=2
    """
    from costmodel import workloads
    from costmodel.explain import explain as explained_by

    workload = workloads.load(kernel, trust=trust)
    chosen = workloads.parse_problem(workload, problem)
    settings = None if config is None else workloads.parse_config(workload, config)
    paths = list(data or ())
    shipped = workloads.shipped("datasets") / "cpu-cpp"
    if not paths and workload.kernel.language == "cpp" and shipped.is_dir():
        paths = [shipped]
    rows = read_everything(paths)
    target = _device(device, rows, workload.kernel.language)
    told = explained_by(workload, chosen, target, model_from(model), config=settings, measurements=rows)
    if as_json:
        print_json(document(told))
    else:
        print("\n".join(words(told, width=max(80, shutil.get_terminal_size().columns))))


def _device(name: str | None, rows: list[Measurement], language: str) -> Device:
    return next((m.device for m in rows if m.device.name == name), None) or device_named(name, language)


def document(explained: Explanation) -> dict[str, Any]:
    row = prediction_row(explained.variant, explained.prediction)
    second = explained.runner_up
    return {
        **row,
        "problem": dict(explained.variant.problem.params),
        "device": explained.device.name,
        "rank": explained.rank,
        "candidates": explained.candidates,
        "limits": [dataclasses.asdict(limit) for limit in explained.limits],
        "measured": explained.measured,
        "neighbours": [{**dataclasses.asdict(n), "config": n.config.as_dict()} for n in explained.neighbours],
        "best_changes": [dataclasses.asdict(change) for change in explained.changes],
        "worst_changes": [dataclasses.asdict(change) for change in explained.worst],
        "runner_up": {**dataclasses.asdict(second), "config": second.config.as_dict()} if second else None,
    }


def words(explained: Explanation, *, width: int = 100) -> list[str]:
    """One screen: a heading, and sections of lines up to `width` characters."""
    variant, told = explained.variant, explained.prediction
    low, high = (format_us(told.quantile_us(q)) for q in (0.05, 0.95))
    fails = f"; may fail {told.p_fail:.0%}" if told.p_fail >= 0.005 else ""
    sections = {
        "config": [f"{variant.config} ({explained.rank} of {explained.candidates} by prediction)"],
        "predicted": [
            f"{format_us(told.median_us)}, 90 % between {low} and {high}{fails}",
            f"{'trust' if told.trust else 'do not trust'}: {told.reason}",
        ],
        "limits": _limit_lines(explained),
        "neighbours": _neighbour_lines(explained),
        "changes": _change_lines(explained),
        "runner-up" if explained.rank == 1 else "the best": _runner_up_lines(explained.runner_up),
    }
    lines = [f"{variant.kernel.name} {variant.problem} on {explained.device.name}"]
    for name, told_lines in sections.items():
        for i, line in enumerate(told_lines):
            lines += textwrap.wrap(
                line, width, initial_indent=f"{name if i == 0 else '':<11} ", subsequent_indent=" " * 14
            )
    return lines


def _limit_lines(explained: Explanation) -> list[str]:
    timed = [limit for limit in explained.limits if not math.isnan(limit.us)]
    if not timed:
        return ["the problem states neither flops nor bytes, so nothing is known of its floor"]
    lines = [f"{limit.name} {format_us(limit.us)}: {limit.told}" for limit in timed]
    ratio = explained.prediction.median_us / timed[0].us
    lines.insert(1, f"so {timed[0].name} is the limit; predicted is {ratio:.3g} times that")
    return lines + [f"{limit.name}: {limit.told}" for limit in explained.limits if math.isnan(limit.us)]


def _neighbour_lines(explained: Explanation) -> list[str]:
    if not explained.measured:
        return ["nothing of this problem was measured"]
    own = next((n for n in explained.neighbours if not n.changes), None)
    others = [n for n in explained.neighbours if n.changes]
    where = explained.neighbours[0].device if explained.neighbours else explained.device.name
    elsewhere = f" on {where}, another device" if where != explained.device.name else ""
    itself = f"itself {format_us(own.latency_us)}" if own else "itself not measured"
    counted = f"{len(others)} of {explained.measured} measured configs differ in one or two parameters"
    if own and others:
        counted += f", {sum(n.latency_us < own.latency_us for n in others)} of them faster"
    lines = [f"{itself}{elsewhere}; {counted}"]
    for n in others[:SHOWN]:
        against = f" ({n.latency_us / own.latency_us:.2f}x)" if own else ""
        lines.append(f"{', '.join(n.changes)}: {format_us(n.latency_us)}{against}")
    return lines


def _change_lines(explained: Explanation) -> list[str]:
    lines = []
    for what, changes in (("best", explained.changes), ("worst", explained.worst)):
        if changes:
            lines.append(f"{what}: " + "; ".join(f"{c} {c.factor:.2f}x" for c in changes[:SHOWN]))
    return lines or ["no other value of any one parameter is valid"]


def _runner_up_lines(second: RunnerUp | None) -> list[str]:
    if second is None:
        return ["none: the space has no other config"]
    shares = "; ".join(f"{change} {change.factor:.3f}x" for change in second.contributions)
    together = f"together {second.factor:.3f}x, {format_us(second.median_us)}"
    lines = [shares, f"{together}; faster with a probability of {second.p_faster:.0%}"]
    if second.factor >= 1:
        flips = ", ".join(second.flips)
        lines.append(f"predicted to win with {flips}" if flips else "no size halved or doubled makes it win")
    return lines
