"""Whole programs: timing them, what they cost line by line, and a picture of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from costmodel.cli.shared import Json, Trust, open_store
from costmodel.notebook import format_us
from costmodel.present import print_json, progress
from costmodel.records import UserError

if TYPE_CHECKING:
    from costmodel.graph import Module
    from costmodel.graph_lines import Program
    from costmodel.graph_model import GraphModel
    from costmodel.records import Prediction

HEAVIEST = 10

GraphFile = Annotated[
    str, typer.Argument(help="HLO text, or FILE.py:FUNCTION that returns (torch module, example inputs).")
]
Engine = Annotated[str, typer.Option(help="Who runs the program: eager, compile or xla.")]
GraphDevice = Annotated[str, typer.Option("--device", help="cpu: one core of a server.")]
GraphModelFolder = Annotated[
    Path | None, typer.Option("--model", help="A folder of a graph model; the shipped one if left out.")
]


def collect_graphs(
    *, count: int, families: list[str], engine: str, passes: int, seconds: float | None, store: str | None, quiet: bool
) -> tuple[Counter[str], str]:
    """Time the generator's graphs into a store. Returns how many sittings ended how, and the store's name."""
    from costmodel import devices, workloads

    graphs = workloads.load_module(workloads.shipped("collectors") / "hlo_graphs.py")
    counts: Counter[str] = Counter()
    with open_store(store) as opened:
        device = devices.detect("cpu")
        skip, known = graphs.stored(opened, device=device, engine=engine)
        request = graphs.CollectRequest(
            names=graphs.names(count=count, families=families), engine=engine, passes=passes, budget_s=seconds,
            device=device, skip=skip, known=known,
        )  # fmt: skip
        for measurement in progress(graphs.collect(request), "measuring", total=count * passes, quiet=quiet):
            opened.add([measurement])
            counts[measurement.status] += 1
        return counts, opened.name


def graph_show(
    file: GraphFile,
    out: Annotated[Path | None, typer.Option(help="Draw it: a file that ends in .svg, .png or .pdf.")] = None,
    engine: Engine = "eager",
    device: GraphDevice = "cpu",
    model: GraphModelFolder = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """List the ten heaviest lines of a program by predicted cost, and draw it.

    Example: costmodel graph show model.py:build --out model.svg
    """
    from costmodel.graph_lines import program_of

    module = module_from(file, trust=trust)
    program = program_of(module)
    costs, prediction = _costs(program, engine, _graph_model(model, device))
    if out is not None:
        from costmodel.graph_picture import draw

        draw(module, program, costs, out, title=f"{file}: {format_us(float(costs.sum()))} predicted, {engine}")
    document = _document(file, program, costs, prediction)
    if as_json:
        print_json(document)
        return
    _print(document)
    if out is not None:
        print(f"wrote {out}")


def predict_program(
    file: str, *, engine: str, device: str | None, model: Path | None, trust: bool, as_json: bool
) -> None:
    """What `costmodel predict --graph` does."""
    from costmodel.graph_lines import program_of

    program = program_of(module_from(file, trust=trust))
    document = _document(file, program, *_costs(program, engine, _graph_model(model, device or "cpu")))
    if as_json:
        print_json(document)
    else:
        _print(document)


def module_from(file: str, *, trust: bool) -> Module:
    """HLO text as it is; FILE.py:FUNCTION is executed, if the user may be asked to trust it, and exported."""
    from costmodel.graph import read

    path, colon, function = file.rpartition(":")
    if not (colon and path.endswith(".py")):
        if file.endswith(".py"):
            raise UserError(f"got {file}, expected FILE.py:FUNCTION, a function that returns (module, inputs)")
        return read(file)
    from costmodel import workloads

    source = Path(path)
    if not source.is_file():
        raise UserError(f"no file {path}; give FILE.py:FUNCTION or a file of HLO text")
    workloads.expect_trust(source, trust=trust)
    build = getattr(workloads.load_module(source), function, None)
    if not callable(build):
        raise UserError(f"{source.name} defines no function {function!r}, expected one that returns (module, inputs)")
    import torch

    from costmodel.aten import trace

    try:
        built = build()
    except Exception as error:
        raise UserError(
            f"{function} of {source.name} failed: {type(error).__name__}: {error}".splitlines()[0]
        ) from error
    if not (isinstance(built, tuple) and len(built) == 2 and isinstance(built[0], torch.nn.Module)):
        raise UserError(
            f"got a {type(built).__name__} from {function} of {source.name}, expected (torch module, inputs)"
        )
    model, inputs = built
    return trace(model, inputs if isinstance(inputs, list | tuple) else (inputs,)).module


def _graph_model(folder: Path | None, device: str) -> GraphModel:
    """The model in a folder, or the shipped one."""
    if device != "cpu":
        raise UserError(f"got --device {device!r}, expected cpu: programs are predicted for one core of a CPU")
    from costmodel.graph_model import GraphModel

    return GraphModel.load(folder or Path(__file__).resolve().parents[1] / "pretrained" / "graph")


def _costs(program: Program, engine: str, model: GraphModel) -> tuple[Any, Prediction]:
    costs = model.line_costs([(program, engine)])[0]
    return costs, model.prediction(float(costs.sum()))


def _document(file: str, program: Program, costs: Any, prediction: Prediction) -> dict[str, Any]:
    total = float(costs.sum())
    order = sorted(range(len(costs)), key=lambda n: (-costs[n], n))[:HEAVIEST]
    heaviest = [
        {
            "cost_us": float(costs[n]),
            "share": float(costs[n]) / total,
            "times": len(program.lines[n].instructions),
            "floor_us": program.lines[n].floor_us,
            "line": program.lines[n].text,
            "instructions": ["/".join(place) for place in program.lines[n].instructions[:3]],
        }
        for n in order
    ]
    return {
        "program": file, "lines": len(costs), "median_us": total, "q05_us": prediction.quantile_us(0.05),
        "q95_us": prediction.quantile_us(0.95), "floor_us": program.floor_us, "trust": prediction.trust,
        "reason": prediction.reason, "heaviest": heaviest,
    }  # fmt: skip


def _print(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    low, high = format_us(document["q05_us"]), format_us(document["q95_us"])
    headline = f"{format_us(document['median_us'])}, 90 % within {low} to {high}"
    headline += "" if document["trust"] else f" ({document['reason']})"
    headline += f"; analytic floor {format_us(document['floor_us'])}"
    console = Console(highlight=False)
    print(f"{document['program']}: {headline}; {document['lines']} lines")
    table = Table()
    for name in ("cost", "share", "times", "floor"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("line", no_wrap=True)
    room = max(24, console.width - 48)  # what the other columns leave
    for row in document["heaviest"]:
        line = row["line"] if len(row["line"]) <= room else row["line"][: room - 1] + "…"
        table.add_row(
            format_us(row["cost_us"]), f"{row['share']:.1%}", str(row["times"]), format_us(row["floor_us"]),
            line.replace("[", "\\["),
        )  # fmt: skip
    console.print(table)
