"""Replaying searches on what was recorded."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from costmodel.cli.shared import Json, ModelFolder, model_from, read_measurements, workloads_of
from costmodel.present import print_json, progress
from costmodel.records import UserError

if TYPE_CHECKING:
    from costmodel.predictor import NeuralCostModel
    from costmodel.replay import RecordedSpace, Run

MIN_SPACE = 10  # fewer configs are no search


def replay(
    recorded: Annotated[
        list[Path],
        typer.Argument(metavar="SPACE...", help="Stores, parquet or others' records, such as a Kernel Tuner cache."),
    ],
    strategy: Annotated[
        list[str] | None, typer.Option(help="Repeat to compare several; costmodel if left out, `list` shows them.")
    ] = None,
    model: ModelFolder = None,
    store: Annotated[
        list[Path] | None,
        typer.Option(help="What other devices measured, for the priors; a space's own device is left out of it."),
    ] = None,
    budget: Annotated[int, typer.Option(min=1, help="Benchmarks of one search.")] = 100,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of every strategy that draws at random.")] = 20,
    plot: Annotated[Path | None, typer.Option(help="PNG of the best found against benchmarks.")] = None,
    html: Annotated[Path | None, typer.Option(help="The plot and the tables as one page.")] = None,
    as_json: Json = False,
) -> None:
    """Search recorded spaces again: how many benchmarks, and seconds, until a strategy is near the optimum.

    Nothing is run; a failed config costs a benchmark, as it would in life.

    Example: costmodel replay cache.json --strategy costmodel --strategy annealing --plot curves.png
    """
    from costmodel import replay as replaying
    from costmodel import strategies

    names = list(dict.fromkeys(strategy or ["costmodel"]))
    if names == ["list"]:
        _list_strategies(strategies.STRATEGIES, as_json=as_json)
        return
    unknown = [name for name in names if name not in strategies.STRATEGIES]
    if unknown:
        raise UserError(f"got strategy {unknown[0]!r}, expected one of {', '.join(strategies.STRATEGIES)}")
    measurements = read_measurements(recorded)
    defaults = {identity: workload.default for identity, workload in workloads_of(measurements).items()}
    spaces = replaying.spaces(measurements, defaults, min_size=MIN_SPACE)
    if not spaces:
        raise UserError(
            f"got no space of {MIN_SPACE} configs in {', '.join(map(str, recorded))}, expected one kernel on one "
            "problem and device with many configs measured"
        )
    elsewhere = read_measurements(store) if store else []
    loaded: list[NeuralCostModel] = []

    def load() -> NeuralCostModel:
        if not loaded:
            loaded.append(model_from(model))
        return loaded[0]

    sources = strategies.Sources(load, elsewhere)
    chosen = {name: strategies.strategy(name, sources) for name in names}
    total = len(spaces) * sum(seeds if one.seeded else 1 for one in chosen.values())
    steps = replaying.replay(spaces, chosen, budget=budget, seeds=seeds)
    runs: list[Run] = list(progress(steps, "replaying", total=total, quiet=as_json))
    rows = replaying.summary_rows(runs)
    _mark_what_the_model_saw(rows, spaces, loaded)
    comparisons = _comparisons(runs, names)
    claims = {name: replaying.stop_rule(run for run in runs if run.strategy == name) for name in names}
    if plot is not None or html is not None:
        from costmodel import report

        if plot is not None:
            report.write_png(report.curves_figure(runs), plot)
        if html is not None:
            report.write_html(report.replay_html(rows, runs, comparisons=comparisons, claims=claims), html)
    if as_json:
        print_json(rows)
    else:
        _print(rows, comparisons, claims)


def _list_strategies(strategies: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json({name: told for name, (told, _) in strategies.items()})
        return
    width = max(map(len, strategies))
    for name, (told, _) in strategies.items():
        print(f"{name:<{width}}  {told}")


def _mark_what_the_model_saw(
    rows: list[dict[str, Any]], spaces: Sequence[RecordedSpace], loaded: Sequence[NeuralCostModel]
) -> None:
    """Rows of the model's strategies say whether it was trained on this kernel and device: then they prove nothing."""
    familiarity = loaded[0].familiarity if loaded else None
    seen = {
        (space.name, space.device.name)
        for space in spaces
        if familiarity and familiarity.measured(space.kernel, space.device)
    }
    for row in rows:
        if row["strategy"] in ("costmodel", "rank"):
            row["seen_in_training"] = (row["space"], row["device"]) in seen
    if seen:
        names = ", ".join(sorted(f"{space} on {device}" for space, device in seen))
        print(f"costmodel: warning: the model was trained on {names}; its lines there prove nothing", file=sys.stderr)


def _comparisons(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """The first strategy beside each other one, over all spaces."""
    from costmodel.replay import evaluation_ratio

    lines = []
    for other in names[1:]:
        ratio, low, high = evaluation_ratio(runs, names[0], other)
        lines.append(
            f"{names[0]} needs {ratio:.2f} times [{low:.2f}, {high:.2f}] the benchmarks of {other} to come within 5 %"
        )
    return lines


def _print(
    rows: Sequence[dict[str, Any]], comparisons: Sequence[str], claims: dict[str, list[dict[str, float]]]
) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from costmodel import report

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)

    def show(title: str, headings: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for i, heading in enumerate(headings):
            table.add_column(heading, justify="left" if i == 0 else "right", no_wrap=i == 0)
        for row in cells:
            table.add_row(*row)
        console.print(table)

    by_space: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        by_space.setdefault((row["space"], row["device"]), []).append(row)
    for (space, device), members in by_space.items():
        title = f"{space}, {device}\n{report.space_note(members)}"
        show(title, report.summary_headings(members), [report.summary_cells(row) for row in members])
    for line in comparisons:
        print(line)
    if comparisons:
        print("geometric mean over spaces; a run that never got there counts as twice its budget")
    cells = [report.claim_cells(name, bin_) for name, bins in claims.items() for bin_ in bins]
    if cells:
        show("claims that a config more than 5 % faster remains, and what was true", report.CLAIM_HEADINGS, cells)
