"""What the commands show: tables for people, one JSON document for scripts, progress where somebody looks."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from costmodel.notebook import format_us
from costmodel.records import Device, Measurement, Prediction, Variant

if TYPE_CHECKING:
    from rich.console import Console

    from costmodel.measure.gpu_compiling import GpuBuild
    from costmodel.search import TuneResult


def _console(*, to_stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=to_stderr, highlight=False)


def print_json(document: object) -> None:
    """One line; NaN and infinities, which JSON does not have, become null."""
    print(json.dumps(_finite(document), allow_nan=False, default=str))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def progress(items: Iterable[Any], what: str, *, total: int | None, quiet: bool) -> Iterator[Any]:
    """A bar on standard error that keeps quiet where nobody looks."""
    from rich.progress import track

    hidden = quiet or not sys.stderr.isatty()
    yield from track(items, what, total=total, console=_console(to_stderr=True), disable=hidden)


@contextmanager
def benchmark_counter(total: int | None, *, quiet: bool) -> Iterator[Callable[[Measurement], None]]:
    """A bar that also says the best latency so far; the caller feeds it measurements."""
    from rich.progress import Progress

    best = math.inf
    with Progress(console=_console(to_stderr=True), disable=quiet or not sys.stderr.isatty()) as bar:
        task = bar.add_task("benchmarking", total=total)

        def advance(measurement: Measurement) -> None:
            nonlocal best
            best = min(best, measurement.latency_us) if measurement.status == "ok" else best
            bar.update(task, advance=1, description=f"benchmarking, best {format_us(best)}")

        yield advance


def prediction_row(variant: Variant, prediction: Prediction, readout: str = "median") -> dict[str, Any]:
    return {
        "kernel": variant.kernel.name,
        "config": variant.config.as_dict(),
        "median_us": prediction.median_us,
        "estimate_us": prediction.read_us(readout),
        "q05_us": prediction.quantile_us(0.05),
        "q95_us": prediction.quantile_us(0.95),
        "p_fail": prediction.p_fail,
        "abstains": prediction.abstains(),
        "trust": prediction.trust,
        "reason": prediction.reason,
    }


def print_predictions(rows: Sequence[dict[str, Any]], title: str, readout: str = "median") -> None:
    from rich.table import Table

    several = len({row["kernel"] for row in rows}) > 1
    table = Table(title=title, title_justify="left")
    for heading in (["kernel"] if several else []) + ["config"]:
        table.add_column(heading, overflow="fold")
    for heading in (readout, "5 %", "95 %", "may fail"):
        table.add_column(heading, justify="right")
    for row in rows:
        numbers = [format_us(row[key]) for key in ("estimate_us", "q05_us", "q95_us")]
        config = ",".join(f"{name}={value}" for name, value in row["config"].items())
        table.add_row(*([row["kernel"]] if several else []), config, *numbers, f"{row['p_fail']:.0%}")
    _console().print(table)
    for trust, reason in dict.fromkeys((row["trust"], row["reason"]) for row in rows):
        print(f"{'trust' if trust else 'do not trust'}: {reason}")


def print_devices(rows: Sequence[Device]) -> None:
    from rich.table import Table

    table = Table()
    for heading in ("device", "arch", "units", "clock MHz", "f32 TFLOP/s", "GB/s"):
        table.add_column(heading, justify="left" if heading in ("device", "arch") else "right")
    for row in rows:
        rate = dict(row.peak_tflops).get("f32", math.nan)
        numbers = (str(row.num_units), f"{row.clock_mhz:.0f}", f"{rate:.4g}", f"{row.peak_gb_per_s:.4g}")
        table.add_row(row.name, row.arch, *numbers)
    _console().print(table)


def tuned_document(result: TuneResult) -> dict[str, Any]:
    best = result.best
    return {
        "kernel": best.kernel.name,
        "problem": dict(best.problem.params),
        "best_config": best.config.as_dict(),
        "best_us": result.best_us,
        "default_us": result.default_us,
        "speedup": result.speedup,
        "evaluated": len(result.measurements),
        "reused": result.reused,
        "space_size": result.space_size,
        "failures": sum(m.status != "ok" for m in result.measurements),
        "p_better_remains": result.p_better_remains,
        "stopped_by": result.stopped_by,
        "ties": [{"kernel": v.kernel.name, "config": v.config.as_dict()} for v in result.ties],
    }


def print_tuned(document: dict[str, Any]) -> None:
    config = ",".join(f"{name}={value}" for name, value in document["best_config"].items())
    print(f"best     {document['kernel']} {config}")
    print(f"latency  {format_us(document['best_us'])}")
    if not math.isnan(document["default_us"]):
        print(f"default  {format_us(document['default_us'])}, so {document['speedup']:.2f}x faster")
    else:
        print("default  failed")
    reused = f", {document['reused']} of them from the store" if document["reused"] else ""
    failed = f", {document['failures']} failed" if document["failures"] else ""
    saved = document["space_size"] - document["evaluated"]
    counted = f"measured {document['evaluated']} of {document['space_size']} configs{reused}{failed}"
    print(f"{counted}; saved {saved} benchmarks")
    print(f"chance that a config more than 5 % faster was missed: {document['p_better_remains']:.0%}")
    if document["ties"]:
        print(f"{len(document['ties'])} measured config(s) lie within 5 %: a tie")


def inspected_document(build: GpuBuild, device: Device, title: str) -> dict[str, Any]:
    from costmodel.measure.facts import blocks_per_unit, shared_limit_bytes

    reason = build.error or build.infeasible(device)
    return {
        "variant": title,
        "device": device.name,
        "arch": device.arch,
        "status": build.status,
        "fits": not reason,
        "reason": reason,
        "shared_limit_bytes": shared_limit_bytes(device),
        "max_threads_per_unit": dict(device.details)["max_threads_per_unit"],
        "compile_s": build.compile_s,
        "launches": [
            {
                "name": launch.name,
                "facts": dict(launch.facts),
                "blocks_per_unit": blocks_per_unit(launch.facts, device),
                "stage_s": launch.stage_s,
            }
            for launch in build.launches
        ],
        "together": dict(build.facts),
    }


def print_inspected(document: dict[str, Any]) -> None:
    from rich.table import Table

    print(f"{document['variant']}\nfor {document['device']}, {document['arch']}")
    launches = document["launches"]
    if launches:
        columns = [_fact_rows(launch, document) for launch in launches]
        if len(launches) > 1:
            columns.append(_fact_rows({"facts": document["together"], "stage_s": {}}, document))
        table = Table()
        for heading in ["", *(launch["name"] for launch in launches), *(["together"] if len(launches) > 1 else [])]:
            table.add_column(heading, justify="right" if heading else "left", overflow="fold")
        for heading in dict.fromkeys(heading for column in columns for heading in column):
            table.add_row(heading, *(column.get(heading, "") for column in columns))
        _console().print(table)
    spilled = {name: document["together"].get(name, 0.0) for name in ("local_loads", "local_stores")}
    if any(spilled.values()):
        print(
            f"warning: {spilled['local_loads']:.0f} loads and {spilled['local_stores']:.0f} stores of spilled registers"
        )
    if document["status"] != "compiled":
        print(f"does not compile for {document['device']}: {document['reason']}")
    elif document["fits"]:
        print(f"fits {document['device']}; compiled in {document['compile_s'] * 1e3:.0f} ms")
    else:
        print(f"does not fit {document['device']}: {document['reason']}")


def _fact_rows(launch: dict[str, Any], document: dict[str, Any]) -> dict[str, str]:
    """What a column shows, by heading; instructions of which there is none are left out."""
    from costmodel.measure.facts import CLASSES

    facts = launch["facts"]
    rows = {
        "registers a thread": f"{facts['registers']:.0f}",
        "stack a thread": f"{facts['stack_bytes']:.0f} B",
        "shared memory a block": f"{facts['shared_bytes']:.0f} of {document['shared_limit_bytes']} B",
        "threads a block": f"{facts['threads_per_block']:.0f}",
    }
    if "blocks_per_unit" in launch:
        busy = launch["blocks_per_unit"] * facts["threads_per_block"] / document["max_threads_per_unit"]
        rows["blocks on a unit"] = f"{launch['blocks_per_unit']} ({busy:.0%} of its threads)"
    if "spilled_registers" in facts:
        rows["spilled registers"] = f"{facts['spilled_registers']:.0f}"
    if "instructions" in facts:
        rows["instructions"] = f"{facts['instructions']:.0f}"
        rows |= {f"  {name.replace('_', ' ')}": f"{facts[name]:.0f}" for name in CLASSES if facts[name]}
    return rows | {f"compiling, {stage}": f"{seconds * 1e3:.1f} ms" for stage, seconds in launch["stage_s"].items()}
