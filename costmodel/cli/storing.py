"""Measuring into a store, and what can be done with stores."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import typer

from costmodel.cli.graphing import collect_graphs
from costmodel.cli.shared import (
    COMPILE_INSTEAD,
    GIVE_DEVICE,
    GPU_LANGUAGES,
    Json,
    Seed,
    StorePath,
    Trust,
    compile_facts,
    device_named,
    open_store,
    told_warnings,
    tuning_records,
)
from costmodel.present import print_json, progress
from costmodel.records import Device, Measurement, Timing, UserError, Workload

LANGUAGES = ("cpp", *GPU_LANGUAGES)


def collect(
    kernels: Annotated[
        list[str] | None,
        typer.Argument(
            help="Kernels, or all shipped ones of a language: cpp (if left out), triton, cuda; or graphs, generated "
            "ones."
        ),
    ] = None,
    configs: Annotated[int | None, typer.Option(help="Configs per kernel, sampled; all if left out.")] = None,
    passes: Annotated[int, typer.Option(help="Shuffled passes over everything.")] = 2,
    budget: Annotated[str | None, typer.Option(help="Time such as 8m; to the end if left out.")] = None,
    timing: Annotated[
        str | None,
        typer.Option(help="warm or cold cache, or both: for GPU kernels both if left out, else warm."),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Compile GPU kernels for --device and run nothing: registers, spills, ...")
    ] = False,
    device: Annotated[str | None, typer.Option("--device", help="With --offline: a device sheet by name.")] = None,
    count: Annotated[int, typer.Option(help="Graphs: how many of the generator's.")] = 100,
    engine: Annotated[str, typer.Option(help="Graphs: what runs them: eager, compile or xla.")] = "eager",
    family: Annotated[list[str] | None, typer.Option(help="Graphs: only this family; may be repeated.")] = None,
    workers: Annotated[
        str | None, typer.Option(help="ray: on every device of a Ray cluster ($RAY_ADDRESS), not on this machine.")
    ] = None,
    store: StorePath = None,
    seed: Seed = 0,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Benchmark kernels into a store; what is in the store already is not taken again.

    Example: costmodel collect matmul --configs 40 --budget 2m

    Example: costmodel collect triton --offline --device H200 --configs 20

    Example: costmodel collect graphs --count 400 --engine xla

    Example: costmodel collect cpp --workers ray --store postgresql://me@host/kernels
    """
    from costmodel import workloads
    from costmodel.search import Budget

    seconds = Budget.parse(budget).seconds if budget else None
    if budget and seconds is None:
        raise UserError(f"got budget {budget!r}, expected a time such as 60s or 8m")
    if device and not offline:
        raise UserError(f"got --device {device}, but what is run is run on this machine; add --offline to only compile")
    if timing and offline:
        raise UserError(f"got --timing {timing} with --offline, which runs nothing; leave one of them out")
    if workers and (workers != "ray" or offline or kernels == ["graphs"]):
        raise UserError(f"got --workers {workers}, expected ray, and kernels that are run; leave it out")
    if kernels == ["graphs"]:
        if offline or configs is not None or timing:
            raise UserError("got --offline, --configs or --timing with graphs, which take none of them; leave it out")
        ended, where = collect_graphs(
            count=count,
            families=family or [],
            engine=engine,
            passes=passes,
            seconds=seconds,
            store=store,
            quiet=as_json,
        )
        _tell_measured("measured", ended, where, as_json=as_json)
        return
    deadline = None if seconds is None else time.monotonic() + seconds
    counts: Counter[str] = Counter()
    with open_store(store) as opened:
        for language, loaded in _by_language(kernels or ["cpp"], trust=trust).items():
            first, *also = timings = [Timing()] if offline else _timings(timing, language)
            options: dict[str, Any] = {} if offline else {"passes": passes}
            if not offline and language in GPU_LANGUAGES:
                options["also"] = tuple(also)
            collector = compile_facts(language) if offline else workloads.collector_of(language)
            kernels_of = [workload.kernel for workload in loaded]
            place = _fleet(language) if workers else _here(device, language, collector, offline=offline)
            with place as (devices, run):
                requests, total = [], 0
                for target in devices:
                    stored = partial(collector.stored, opened, device=target, kernels=kernels_of)
                    done = collector.already([m for t in timings for m in stored(timing=t)])
                    left = None if deadline is None else max(0.0, deadline - time.monotonic())
                    request = collector.CollectRequest(
                        workloads=loaded, configs_per_kernel=configs, seed=seed, device=target, skip=done,
                        timing=first, budget_s=left, **options,
                    )  # fmt: skip
                    requests.append(request)
                    total += len(collector.choose(request, target)) * options.get("passes", 1) * len(timings)
                what = "compiling" if offline else "measuring"
                for measurement in progress(run(requests), what, total=total, quiet=as_json):
                    opened.add([measurement])
                    counts["infeasible" if dict(measurement.counters).get("infeasible") else measurement.status] += 1
    _tell_measured("compiled" if offline else "measured", counts, opened.name, as_json=as_json)


# Devices, and what runs a request for each.
Place = tuple[Sequence[Device], Callable[[list[Any]], Iterator[Measurement]]]


@contextmanager
def _here(device: str | None, language: str, collector: ModuleType, *, offline: bool) -> Iterator[Place]:
    target = device_named(device, language, advice=GIVE_DEVICE if offline else COMPILE_INSTEAD)
    yield [target], lambda requests: collector.collect(*requests)


@contextmanager
def _fleet(language: str) -> Iterator[Place]:
    from costmodel.measure.many import Fleet

    with Fleet(language) as fleet:
        yield fleet.devices, fleet.collect
        if fleet.lost:
            told = f"{fleet.lost} workers were lost, and {fleet.again} variants measured by others in their place"
            print(f"costmodel: {told}", file=sys.stderr)


def _tell_measured(done: str, counts: Counter[str], store: str, *, as_json: bool) -> None:
    if as_json:
        print_json({done: dict(counts), "store": store})
    else:
        print(f"{done} {dict(counts) or 'nothing new'} into {store}")


def _timings(text: str | None, language: str) -> list[Timing]:
    """What --timing asks for; a GPU's kernels are timed in both ways in one sitting, a CPU's in one at a time."""
    gpu = language in GPU_LANGUAGES
    both: list[Literal["cold", "warm"]] = ["warm", "cold"]
    chosen = text or ("both" if gpu else "warm")
    if chosen == "both" and gpu:
        return [Timing(cache=cache) for cache in both]
    if chosen not in both:
        raise UserError(f"got --timing {text} for {language} kernels, expected warm{', both' if gpu else ''} or cold")
    return [Timing(cache=cache) for cache in both if cache == chosen]


def _by_language(kernels: list[str], *, trust: bool) -> dict[str, tuple[Workload, ...]]:
    """Names, files and languages as workloads, the languages in order of first appearance."""
    from costmodel import workloads

    found: dict[str, tuple[Workload, ...]] = {}
    for name in kernels:
        shipped = [f"{name}/{kernel}" for kernel in workloads.names(name)] if name in LANGUAGES else [name]
        for workload in (workloads.load(one, trust=trust) for one in shipped):
            language = workload.kernel.language
            found[language] = (*found.get(language, ()), workload)
    return found


def import_records(
    files: Annotated[list[Path], typer.Argument(help="Caches, results, logs and tables, gzip or not.")],
    store: StorePath = None,
    device: Annotated[str | None, typer.Option(help="The device of the files, whatever they state.")] = None,
    space: Annotated[Path | None, typer.Option(help="The T1 file of a T4 result, if it is not beside it.")] = None,
    as_json: Json = False,
) -> None:
    """Read what others measured into a store: Kernel Tuner caches, T4, Triton and Helion logs, NeuSight tables.

    Example: costmodel import convolution__A100.json.gz --store runs/public.sqlite
    """
    records = tuning_records()
    opened_files = [(path, records.read(path, device=device, space=space)) for path in files]
    doubts = records.Doubts()
    imported: list[dict[str, object]] = []
    with open_store(store) as opened, told_warnings() as warned:
        before = next(opened.measurements(), None) is not None
        for path, rows in opened_files:
            statuses: Counter[str] = Counter()
            new = opened.add(_counted(doubts.watch(rows), statuses))
            imported.append({"file": str(path), "rows": statuses.total(), "new": new, "statuses": dict(statuses)})
        for kernel in doubts.kernels if before else ():  # what was there may not fit what has come
            deque(doubts.watch(opened.measurements(kernel=kernel)), maxlen=0)
    lines = doubts.lines()
    if as_json:
        print_json({"files": imported, "doubts": lines, "warnings": warned, "store": opened.name})
        return
    for entry in imported:
        print(f"{entry['file']}: {entry['statuses']}, {entry['new']} new")
    for line in lines:
        print(f"doubtful: {line}")
    print(f"imported into {opened.name}")


def _counted(rows: Iterable[Measurement], statuses: Counter[str]) -> Iterator[Measurement]:
    for row in rows:
        statuses[row.status] += 1
        yield row


def store_ls(store: StorePath = None, as_json: Json = False) -> None:
    """List what a store holds, by kernel, problem, device and status.

    Example: costmodel store ls --store runs/cpu.sqlite
    """
    with open_store(store) as opened:
        table = opened.summary()
    if as_json:
        print_json(json.loads(table.to_json(orient="records")))
    else:
        print(table.to_string(index=False) if len(table) else "empty")


def store_merge(
    sources: Annotated[list[str], typer.Argument(help="Stores to read: files, or postgresql://USER@HOST/DATABASE.")],
    store: StorePath = None,
    as_json: Json = False,
) -> None:
    """Add what other stores hold to this one; twice is the same as once.

    Example: costmodel store merge a.sqlite b.sqlite --store all.sqlite
    """
    from costmodel.store.database import shown

    with open_store(store) as opened:
        added = {shown(source): opened.merge(source) for source in sources}
    if as_json:
        print_json({"added": added, "store": opened.name})
    else:
        for path, count in added.items():
            print(f"{count} new from {path}")


def store_export(
    folder: Annotated[Path, typer.Argument(help="Folder for the files; it is made.")],
    store: StorePath = None,
    form: Annotated[str, typer.Option("--format", help="parquet with a card, t4 or kernel-tuner.")] = "parquet",
    as_json: Json = False,
) -> None:
    """Write a store as parquet with a card, or each of its search spaces as T4 results or a Kernel Tuner cache.

    Example: costmodel store export datasets/mine --store runs/cpu.sqlite
    """
    from costmodel.published.export import write_spaces
    from costmodel.sittings import measured

    with open_store(store) as opened:
        if next(opened.measurements(), None) is None:
            raise UserError(f"got an empty store {opened.name}; `costmodel collect` fills it")
        spaces = {} if form == "parquet" else write_spaces(measured(opened.combined()), folder, form=form)
        rows = opened.export(folder) if form == "parquet" else sum(spaces.values())
    if as_json:
        print_json({"rows": rows, "folder": str(folder), **({"files": spaces} if spaces else {})})
    else:
        print(f"wrote {rows} {'entries' if spaces else 'sittings'} to {folder}")
