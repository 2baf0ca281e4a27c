"""Comparing numeric heads, losses and readouts on one's own data."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from costmodel.cli.shared import Json, read_measurements
from costmodel.present import print_json, progress
from costmodel.records import UserError

BY = ("problem", "config", "kernel", "form", "device")


def ablate(
    data: Annotated[
        list[Path] | None, typer.Option("--data", help="Stores, parquet or others' records; repeat for several.")
    ] = None,
    head: Annotated[
        list[str] | None,
        typer.Option(help="NAME or NAME:LOSS, such as p10 or grid:hard+raft; repeat."),
    ] = None,
    loss: Annotated[
        list[str] | None, typer.Option(help="Terms joined by +; repeat. Each with every --head that names none.")
    ] = None,
    readout: Annotated[list[str] | None, typer.Option(help="Repeat for several; all if left out.")] = None,
    by: Annotated[str, typer.Option(help=f"What is held out, a quarter of it: {', '.join(BY)}.")] = "problem",
    seeds: Annotated[int, typer.Option(min=1, help="Networks of every head and loss.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of a network.")] = 600,
    reading_steps: Annotated[int, typer.Option(min=0, help="Steps of reading the sources first.")] = 0,
    rows: Annotated[int, typer.Option(min=2, help="Variants of a training step.")] = 128,
    jobs: Annotated[int, typer.Option(min=1, help="Networks trained at once.")] = os.cpu_count() or 1,
    out: Annotated[Path, typer.Option(help="Folder for rows.csv, table.md and table.png.")] = Path("runs/ablation"),
    as_json: Json = False,
) -> None:
    """Compare numeric heads, losses and readouts: train each on the same rows, write a table and a picture.

    Run again after a kill, it goes on where it was; other data or another recipe takes another --out. Example:
    costmodel ablate --data datasets/cpu-cpp --head grid --head p10 --head pointwise --seeds 3
    """
    if by not in BY:
        raise UserError(f"got --by {by!r}, expected one of {', '.join(BY)}")
    import pandas as pd

    from costmodel import ablation, workloads
    from costmodel.recipe import Recipe
    from costmodel.records import READOUTS
    from costmodel.report import write_png

    named = [ablation.Trial.of(text) for text in head] if head else list(ablation.STANDARD)
    trials = [ablation.Trial(t.head, terms) for t in named for terms in ([t.loss] if t.loss or not loss else loss)]
    recipe = Recipe(members=1, steps=steps, reading_steps=reading_steps, rows=rows)
    sources = data or [workloads.shipped("datasets") / "cpu-cpp"]
    train, test = ablation.hold_out(read_measurements(sources), by)
    out.mkdir(parents=True, exist_ok=True)
    told, asked = ablation.read_rows(out / "rows.csv"), readout or READOUTS
    settings = {"data": [str(path.resolve()) for path in sources], "training rows": len(train), "by": by}
    settings |= {"steps": steps, "reading_steps": reading_steps, "rows": rows}
    ablation.check_same_run(out, settings)
    done = ablation.finished(told, asked)
    count = sum((str(trial), seed) not in done for trial in trials for seed in range(seeds))
    run = ablation.ablate(
        train, test, trials=trials, seeds=range(seeds), recipe=recipe, readouts=asked, done=done, jobs=jobs
    )
    for finished in progress(run, "training", total=count, quiet=as_json):
        told = pd.concat([told, pd.DataFrame(finished)]).drop_duplicates(["trial", "seed", "readout"], keep="last")
        told.to_csv(out / "rows.csv", index=False)
    summary = ablation.table(told[told["trial"].isin(map(str, trials)) & told["readout"].isin(asked)])
    (out / "table.md").write_text(ablation.markdown(summary))
    write_png(ablation.figure(summary), out / "table.png")
    if as_json:
        print_json({"out": str(out), "rows": json.loads(summary.to_json(orient="records"))})
    else:
        print(ablation.markdown(summary))
