"""Training a model, checking it, and asking it."""

from __future__ import annotations

import heapq
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from costmodel.cli.graphing import predict_program
from costmodel.cli.shared import (
    DeviceName,
    Json,
    KernelFile,
    ModelFolder,
    ProblemText,
    Readout,
    Seed,
    Trust,
    candidates_of,
    device_named,
    model_from,
    read_measurements,
)
from costmodel.present import prediction_row, print_json, print_predictions
from costmodel.records import UserError

if TYPE_CHECKING:
    from costmodel.recipe import Recipe
    from costmodel.shards import Shards
    from costmodel.tokens import TextTokenizer


def train(
    data: Annotated[
        list[Path] | None, typer.Option("--data", help="Stores or parquet folders; repeat for several.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write the model to.")] = Path("runs/model"),
    objective: Annotated[
        str,
        typer.Option(help="next-token reads the sources, latency learns the numbers, both does one after the other."),
    ] = "both",
    start: Annotated[Path | None, typer.Option("--from", help="Model folder to start from.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Latency steps per member; as the shipped model's if left out.")
    ] = None,
    members: Annotated[int, typer.Option(help="Networks of different seeds, averaged.")] = 1,
    head: Annotated[str, typer.Option(help="Numeric head, such as grid, p10, mixture or pointwise.")] = "grid",
    loss: Annotated[
        str | None, typer.Option(help="Terms joined by +, such as hl-gauss+raft; the head's own if left out.")
    ] = None,
    write_shards: Annotated[
        Path | None, typer.Option(help="Only write what training would read to this folder, as token ids.")
    ] = None,
    shards: Annotated[
        Path | None, typer.Option(help="Train on such a folder, on a machine that need not read source text.")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train a model on measurements; run again after a kill, it goes on where it was.

    Processes that torchrun or accelerate launch start share every step; so do several machines.
    Example: costmodel train --data datasets/cpu-cpp --out runs/mine --members 2
    """
    if objective not in ("both", "next-token", "latency"):
        raise UserError(f"got objective {objective!r}, expected both, next-token or latency")
    if shards and (data or write_shards):
        raise UserError("got --shards beside --data or --write-shards, expected it alone; shards hold the data")
    from costmodel import parallel
    from costmodel.model import checkpoint
    from costmodel.recipe import Recipe, train_members

    shipped = Recipe()
    recipe = Recipe(
        members=members,
        steps=0 if objective == "next-token" else steps or shipped.steps,
        reading_steps=0 if objective == "latency" else shipped.reading_steps,
        head=head,
        loss=loss,
        seed=seed,
    )
    begin, tokenizer, _ = checkpoint.load(start) if start else (None, None, None)
    examples = _shards(shards, data, recipe, tokenizer)
    if write_shards:
        examples.save(write_shards)
        document = {"shards": str(write_shards), "rows": examples.rows}
        if as_json:
            print_json(document)
        else:
            print(f"wrote {write_shards}, {examples.rows} variants as token ids")
        return
    jobs = min(members, os.cpu_count() or 1)
    with parallel.joined() as processes:
        trained, stages = train_members(
            examples, recipe, start=begin, checkpoints=out / "training", jobs=jobs, processes=processes
        )
    if processes.rank > 0:
        return  # the first writes the model
    checkpoint.save(out, trained, examples.tokenizer, details=examples.details)
    told = [{"objective": s.objective, "steps": s.steps, "seconds": s.seconds, "losses": s.losses} for s in stages]
    if as_json:
        print_json({"model": str(out), "rows": examples.rows, "members": members, "stages": told})
    else:
        print(f"wrote {out}, trained on {examples.rows} variants in {sum(s.seconds for s in stages):.0f} s")


def _shards(folder: Path | None, data: list[Path] | None, recipe: Recipe, tokenizer: TextTokenizer | None) -> Shards:
    if folder:
        from costmodel.shards import Shards

        return Shards.load(folder)
    from costmodel import workloads
    from costmodel.examples import shards_of

    return shards_of(
        read_measurements(data or [workloads.shipped("datasets") / "cpu-cpp"]), recipe, tokenizer=tokenizer
    )


def update(
    data: Annotated[
        list[Path], typer.Option("--data", help="Stores, parquet folders or others' records; repeat for several.")
    ],
    model: ModelFolder = None,
    out: Annotated[Path, typer.Option(help="Folder to write the model to.")] = Path("runs/model"),
    as_json: Json = False,
) -> None:
    """Fold measurements into a model: its scale and what it gets wrong on their kernels, no network training.

    Example: costmodel update --data cache.json --out runs/mine
    """
    measurements = read_measurements(data)
    ok = [m for m in measurements if m.status == "ok"]
    if not ok:
        raise UserError(f"got {len(measurements)} measurements and none that is ok, expected some to learn from")
    updated = model_from(model)
    updated.update(ok)
    updated.save_pretrained(out)
    spaces = len({(m.variant.kernel.identity, m.variant.problem, m.device.identity) for m in ok})
    if as_json:
        print_json({"model": str(out), "rows": len(ok), "spaces": spaces})
    else:
        print(f"wrote {out}, corrected on {spaces} spaces by {len(ok)} measurements")


def calibrate(
    data: Annotated[
        list[Path], typer.Option("--data", help="Stores, parquet folders or others' records; repeat for several.")
    ],
    model: ModelFolder = None,
    alpha: Annotated[float, typer.Option(help="What intervals may miss: 0.1 for those of 90 %.")] = 0.1,
    device: DeviceName = None,
    out: Annotated[Path, typer.Option(help="Folder to write the model to.")] = Path("runs/model"),
    as_json: Json = False,
) -> None:
    """Stretch a model's intervals so that they hold their share of new spaces (split-conformal, by space).

    The data must be new to the model. With --device, spaces of devices like it weigh more.
    Example: costmodel calibrate --data mine.sqlite --out runs/mine
    """
    from costmodel import devices

    calibrated = model_from(model)
    table = calibrated.calibrate(read_measurements(data), alpha=alpha, device=devices.find(device) if device else None)
    calibrated.save_pretrained(out)
    if as_json:
        print_json({"model": str(out), "alpha": alpha, "rows": json.loads(table.to_json(orient="records"))})
    else:
        print(table.to_string(index=False, float_format=lambda x: f"{x:.3f}"))
        print(f"wrote {out}")


def evaluate(
    data: Annotated[list[Path], typer.Option("--data", help="Stores or parquet folders; repeat for several.")],
    model: ModelFolder = None,
    by: Annotated[str, typer.Option(help="kernel, problem, device or space: a row each.")] = "kernel",
    readout: Readout = "median",
    as_json: Json = False,
) -> None:
    """Compare predictions with what was measured.

    Example: costmodel evaluate --data datasets/cpu-cpp --by kernel
    """
    from costmodel import evaluate as evaluation

    measurements = [m for m in read_measurements(data) if m.status == "ok"]
    predictions = evaluation.predict_all(model_from(model), measurements)
    groups = cast("evaluation.By", by)  # others are refused there
    table = evaluation.evaluate(measurements, predictions, by=groups, readout=readout)
    if as_json:
        print_json({"rows": json.loads(table.to_json(orient="records"))})
    else:
        print(table.to_string(index=False, float_format=lambda x: f"{x:.3f}"))


def predict(
    kernel: KernelFile,
    problem: ProblemText = None,
    config: Annotated[str | None, typer.Option(help="NAME=VALUE,... over the default config.")] = None,
    device: DeviceName = None,
    model: ModelFolder = None,
    trust: Trust = False,
    readout: Readout = "median",
    graph: Annotated[
        bool, typer.Option("--graph", help="A whole program: HLO text, or FILE.py:FUNCTION of a torch module.")
    ] = False,
    engine: Annotated[str, typer.Option(help="With --graph, who runs it: eager, compile or xla.")] = "eager",
    as_json: Json = False,
) -> None:
    """Say how long one config would run, without compiling it; with --graph, how long a whole program would.

    Example: costmodel predict matmul --problem M=512,N=512 --config THREADS=2
    Example: costmodel predict model.py:build --graph --device cpu
    """
    if graph:
        predict_program(kernel, engine=engine, device=device, model=model, trust=trust, as_json=as_json)
        return
    from costmodel import workloads
    from costmodel.records import Variant

    workload = workloads.load(kernel, trust=trust)
    chosen = workloads.parse_problem(workload, problem)
    variant = Variant(workload.kernel, chosen, workloads.parse_config(workload, config))
    target = device_named(device, workload.kernel.language)
    answer = model_from(model).predict([variant], target)[0]
    rows = [prediction_row(variant, answer, readout)]
    if as_json:
        print_json(rows)
    else:
        print_predictions(rows, f"{workload.kernel.name} {chosen}", readout)


def rank(
    kernels: Annotated[list[str], typer.Argument(help="One kernel, or several sources of one operation.")],
    problem: ProblemText = None,
    top: Annotated[int, typer.Option(help="How many to list.")] = 10,
    device: DeviceName = None,
    model: ModelFolder = None,
    trust: Trust = False,
    readout: Readout = "median",
    as_json: Json = False,
) -> None:
    """Order the configs of a kernel, or of several sources, by predicted latency; nothing is compiled.

    Example: costmodel rank matmul matmul__packed --problem M=512,N=512 --top 5
    """
    from costmodel import workloads

    target = device_named(device, workloads.load(kernels[0], trust=trust).kernel.language)
    candidates, _ = candidates_of(kernels, problem, target, trust=trust)
    told = ((p.read_us(readout), i, p) for i, p in model_from(model).stream(candidates, target))
    best = heapq.nsmallest(top, told, key=lambda one: one[:2])  # the others are not kept
    rows = [prediction_row(candidates[i], prediction, readout) for _, i, prediction in best]
    if as_json:
        print_json(rows)
    else:
        print_predictions(rows, f"{len(candidates)} candidates, {candidates[0].problem}", readout)
