"""Pre-tuned tables: built from measurements, looked at, asked, and handed to other tuners."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from costmodel.cli.shared import (
    DeviceName,
    Json,
    ModelFolder,
    Trust,
    device_named,
    model_from,
    read_measurements,
    shipped_workload,
    workloads_of,
)
from costmodel.notebook import format_us
from costmodel.present import print_json
from costmodel.records import Timing, UserError

if TYPE_CHECKING:
    from costmodel.records import Config, Device, Measurement, Scalar, Workload
    from costmodel.table import Answer, TunedTable

TableFile = Annotated[Path, typer.Argument(help="A file of `costmodel table build`.")]
OfKernel = Annotated[str | None, typer.Option("--kernel", help="The kernel, where the file has tables of several.")]
OfDevice = Annotated[str | None, typer.Option("--device", help="The device, where the file has tables of several.")]


def table_build(
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", help="Stores, parquet folders or others' records; repeat for several."),
    ] = None,
    kernel: Annotated[
        list[str] | None, typer.Option("--kernel", help="Only these kernels, by name or file; repeat for several.")
    ] = None,
    device: DeviceName = None,
    problem: Annotated[
        list[str] | None, typer.Option("--problem", help="Only these problems, by name or sizes; repeat for several.")
    ] = None,
    predict: Annotated[
        bool, typer.Option("--predict", help="Ask the model about each --problem that was not measured.")
    ] = False,
    model: ModelFolder = None,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("table.json"),
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Make a table of the best configs: measured ones, and with --predict the model's for problems nobody measured.

    Example: costmodel table build --data datasets/cpu-cpp --kernel matmul --out matmul.json
    """
    from costmodel import table_files
    from costmodel.table_building import build

    if not data and not predict:
        raise UserError("got no --data, expected a store or a dataset to build from; or --predict with --problem")
    if predict and not (problem and kernel):
        raise UserError(
            "got --predict without --kernel and --problem, expected which problems of which kernel to predict"
        )
    wanted = _wanted(kernel, trust=trust)
    rows = read_measurements(data) if data else []
    rows = [m for m in rows if _is_named(m.device.name, device)]
    if kernel:
        ours = {(w.kernel.language, w.kernel.name) for w in wanted.values()}
        others = set(kernel) - {name for language, own in ours for name in (own, f"{language}/{own}")}
        rows = [m for m in rows if (m.variant.kernel.language, m.variant.kernel.name) in ours
                or m.variant.kernel.name in others]  # fmt: skip
    if problem:
        rows = [m for m in rows if _is_listed(m, problem, wanted)]
    known = wanted | workloads_of(rows)
    tables = build(rows, known)
    notes: list[str] = []
    if predict:
        targets = {m.device.identity: m.device for m in rows}
        targets = targets or {
            "": device_named(device, next(iter(wanted.values())).kernel.language if wanted else "cpp")
        }
        tables = _predicted(tables, wanted, problem or [], list(targets.values()), model, notes)
    if not tables:
        raise UserError("; ".join(notes) or "got no measurement of these kernels, devices and problems; ask for others")
    table_files.write(tables, out)
    if as_json:
        print_json({"tables": [_summary(table) for table in tables], "notes": notes, "file": str(out)})
        return
    for table in tables:
        predicted = sum(entry.source == "predicted" for entry in table.entries)
        measured = len(table.entries) - predicted
        print(f"{table.kernel} on {table.device}: {measured} measured problems, {predicted} predicted")
        if table.left_out:
            print(f"  {table.left_out}")
    for note in notes:
        print(f"left out: {note}")
    print(f"wrote {out}")


def table_show(
    file: TableFile,
    kernel: OfKernel = None,
    device: OfDevice = None,
    problem: Annotated[
        str | None, typer.Option("--problem", help="Sizes such as M=512,N=512,K=512: what the table says of them.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a table holds, or what it says of one problem, measured or in between: a config, or "keep the default".

    Example: costmodel table show matmul.json --problem M=512,N=512,K=512
    """
    from costmodel import table_files

    tables = [t for t in table_files.read(file) if _is_asked(t, kernel, device)]
    if problem is None and tables:
        if as_json:
            print_json([_document(table) for table in tables])
            return
        for table in tables:
            _print(table)
        return
    table = _only(tables, file)
    answer = _asked(table, problem or "")
    if as_json:
        config = answer.config.as_dict() if answer.config else None
        print_json({
            "kernel": table.kernel, "device": table.device, "config": config, "reason": answer.reason,
            "slowdown": answer.slowdown, "gain": answer.gain,
        })  # fmt: skip
        return
    print(f"config  {answer.config or 'the default'}")
    if answer.gain is not None and answer.config is not None:
        print(f"gain    {answer.gain:.2f}x over the default")
    print(f"why     {answer.reason}")


def table_apply(
    file: TableFile,
    to: Annotated[str, typer.Option("--to", help="triton, inductor, vllm or json.")],
    out: Annotated[Path, typer.Option(help="The file to write; for vllm the folder of its files.")],
    kernel: OfKernel = None,
    device: OfDevice = None,
    as_json: Json = False,
) -> None:
    """Write a table in the form of another tuner: a Python file for Triton, JSON for Inductor and vLLM, or plain JSON.

    Example: costmodel table apply matmul.json --to triton --out tuned_matmul.py
    """
    from costmodel import table_files
    from costmodel.table_formats import WRITERS

    if to not in WRITERS:
        raise UserError(f"got --to {to}, expected one of {', '.join(WRITERS)}")
    table = _only([t for t in table_files.read(file) if _is_asked(t, kernel, device)], file)
    written = WRITERS[to](table)
    files = {out: written} if isinstance(written, str) else {out / name: text for name, text in written.items()}
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}; give another --out") from error
    if as_json:
        print_json({"kernel": table.kernel, "entries": len(table.entries), "files": [str(path) for path in files]})
    else:
        for path in files:
            print(f"wrote {path}")


# ---- what was asked for ----


def _wanted(kernels: Sequence[str] | None, *, trust: bool) -> dict[str, Workload]:
    """The kernels named that there are, by identity; a name of somebody else's record is none of ours."""
    from costmodel import workloads

    found = {}
    for name in kernels or ():
        try:
            workload = workloads.load(name, trust=trust)
        except UserError:
            if Path(name).suffix:
                raise
            continue
        found[workload.kernel.identity] = workload
    return found


def _is_listed(m: Measurement, problems: Sequence[str], wanted: dict[str, Workload]) -> bool:
    from costmodel import workloads

    stated = dict(m.variant.problem.params)
    workload = wanted.get(m.variant.kernel.identity)
    for text in problems:
        if workload is not None and workloads.parse_problem(workload, text) == m.variant.problem:
            return True
        if workload is None and "=" in text and workloads.parse_assignments(text).items() <= stated.items():
            return True
    return False


def _predicted(
    tables: list[TunedTable],
    wanted: dict[str, Workload],
    problems: Sequence[str],
    targets: Sequence[Device],
    model: Path | None,
    notes: list[str],
) -> list[TunedTable]:
    """The tables with the model's answers for what they lack; why there is none goes to `notes`."""
    from costmodel import workloads
    from costmodel.table_building import empty, predicted, with_entries

    if not wanted:
        raise UserError("got --predict and no kernel of ours, expected one whose text and space are known")
    loaded = model_from(model)
    found = {(table.source_digest, table.device_identity): table for table in tables}
    for workload, target in itertools.product(wanted.values(), targets):
        key = workload.kernel.identity, target.identity
        table = found.get(key) or empty(workload, target, Timing())
        there = {entry.problem for entry in table.entries}
        asked = [workloads.parse_problem(workload, text) for text in problems]
        for problem in dict.fromkeys(p for p in asked if p not in there):
            entry, why = predicted(workload, problem, target, loaded)
            if entry is None:
                notes.append(why)
            else:
                table = with_entries(table, [entry])
        if table.entries:
            found[key] = table
    return sorted(found.values(), key=lambda table: (table.kernel, table.device))


def _is_asked(table: TunedTable, kernel: str | None, device: str | None) -> bool:
    return kernel in (None, table.kernel, f"{table.language}/{table.kernel}") and _is_named(table.device, device)


def _is_named(name: str, device: str | None) -> bool:
    """Whether a device's name is the one asked for, in full or as `devices.find` takes it."""
    from costmodel import devices

    return device in (None, name) or devices.find(str(device)).name == name


def _only(tables: Sequence[TunedTable], file: Path) -> TunedTable:
    if len(tables) != 1:
        there = ", ".join(f"{table.kernel} on {table.device}" for table in tables[:6]) or "none"
        raise UserError(
            f"got {len(tables)} tables of {file} ({there}), expected one; give another --kernel or --device"
        )
    return tables[0]


def _asked(table: TunedTable, problem: str) -> Answer:
    """The table's answer, with what the kernel's space allows where the kernel is one of ours."""
    from costmodel import devices, workloads
    from costmodel.table import lookup

    sizes = workloads.parse_assignments(problem)
    workload = shipped_workload(table.kernel, table.language, table.source_digest)
    if workload is None:
        return lookup(table, sizes)
    stated = workloads.parse_problem(workload, problem)
    sheet = next((d for d in [devices.detect("cpu"), *devices.load_sheets().values()] if d.name == table.device), None)

    def is_valid(config: Config) -> bool:
        return sheet is None or workload.space.is_valid(config, stated, sheet)

    return lookup(table, dict(stated.params), is_valid=is_valid)


# ---- what is told ----


def _summary(table: TunedTable) -> dict[str, Any]:
    import dataclasses

    return {
        "kernel": table.kernel, "device": table.device, "entries": len(table.entries),
        "predicted": sum(entry.source == "predicted" for entry in table.entries),
        "left_out": dataclasses.asdict(table.left_out) if table.left_out else None,
    }  # fmt: skip


def _document(table: TunedTable) -> dict[str, Any]:
    entries = [
        {
            "problem": dict(entry.problem.params), "config": entry.config.as_dict(), "source": entry.source,
            "latency_us": entry.latency_us, "default_us": entry.default_us, "gain": entry.gain,
            "measured": entry.measured, "space_size": entry.space_size, "tied": entry.tied,
            "ties": [config.as_dict() for config in table.ties(entry)], "confidence": entry.confidence,
        }
        for entry in table.entries
    ]  # fmt: skip
    stated = {"source": table.source_digest, "toolchain": dict(table.toolchain), "created": table.created}
    return {**_summary(table), **stated, "costmodel": table.costmodel, "entries": entries}


def _print(table: TunedTable) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown = Table(title=escape(f"{table.kernel} on {table.device}"), title_justify="left")
    shown.add_column("problem, its config", overflow="fold")
    for heading in ("latency", "gain", "measured", "tied", "sure"):
        shown.add_column(heading, justify="right")
    for entry in table.entries:
        of = f" of {entry.space_size}" if entry.space_size else ""
        shown.add_row(
            escape(f"{entry.problem}\n  {_differences(entry.config, table.default)}"), format_us(entry.latency_us),
            f"{entry.gain:.2f}x" if entry.gain else "-",
            f"{entry.measured}{of}" if entry.source == "measured" else "predicted",
            str(entry.tied), f"{entry.confidence:.0%}",
        )  # fmt: skip
    Console(highlight=False).print(shown)
    if table.default is not None:
        print(f"configs over the default {table.default}")
    ways = ", ".join(value for name, value in table.toolchain if name != "flags") or "no toolchain stated"
    print(f"kernel text {table.source_digest}; {table.timing.cache} cache; {ways}; {table.created}")
    print(f"between problems: {table.left_out or 'too few to tell'}")


def _differences(config: Config, default: Config | None) -> str:
    """What is set otherwise than in the default: what a person looks for."""
    plain: dict[str, Scalar] = default.as_dict() if default else {}
    changed = [f"{name}={value}" for name, value in config.params if plain.get(name, math.nan) != value]
    return ", ".join(changed) or "the default"
