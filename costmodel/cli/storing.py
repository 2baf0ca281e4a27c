"""Measuring into a store, and what can be done with stores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from costmodel.cli.shared import Json, Seed, StorePath, existing, open_store, store_path
from costmodel.present import print_json, progress
from costmodel.records import UserError


def collect(
    kernels: Annotated[list[str] | None, typer.Argument(help="Kernels to run; all shipped ones if left out.")] = None,
    configs: Annotated[int | None, typer.Option(help="Configs per kernel, sampled; all if left out.")] = None,
    passes: Annotated[int, typer.Option(help="Shuffled passes over everything.")] = 2,
    budget: Annotated[str | None, typer.Option(help="Time such as 8m; to the end if left out.")] = None,
    store: StorePath = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Benchmark kernels into a store; what is in the store already is not taken again.

    Example: costmodel collect matmul --configs 40 --budget 2m
    """
    from costmodel import devices, workloads
    from costmodel.search import Budget

    seconds = Budget.parse(budget).seconds if budget else None
    if budget and seconds is None:
        raise UserError(f"got budget {budget!r}, expected a time such as 60s or 8m")
    collector = workloads.load_module(workloads.shipped("collectors") / "cpp_kernels.py")
    loaded = [workloads.load(name) for name in kernels or workloads.names("cpp")]
    target = devices.detect("cpu")
    counts: dict[str, int] = {}
    with open_store(store) as opened:
        request = collector.CollectRequest(
            workloads=tuple(loaded), configs_per_kernel=configs, passes=passes, seed=seed, budget_s=seconds,
            device=target, skip=collector.already(collector.stored(opened, device=target)),
        )  # fmt: skip
        total = len(collector.choose(request, target)) * passes
        for measurement in progress(collector.collect(request), "measuring", total=total, quiet=as_json):
            opened.add([measurement])
            counts[measurement.status] = counts.get(measurement.status, 0) + 1
    document = {"measured": counts, "store": str(store_path(store))}
    if as_json:
        print_json(document)
    else:
        print(f"measured {counts or 'nothing new'} into {document['store']}")


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
    sources: Annotated[list[Path], typer.Argument(help="Stores to read.")],
    store: StorePath = None,
    as_json: Json = False,
) -> None:
    """Add what other stores hold to this one; twice is the same as once.

    Example: costmodel store merge a.sqlite b.sqlite --store all.sqlite
    """
    with open_store(store) as opened:
        added = {str(path): opened.merge(existing(path)) for path in sources}
    if as_json:
        print_json({"added": added, "store": str(store_path(store))})
    else:
        for path, count in added.items():
            print(f"{count} new from {path}")


def store_export(
    folder: Annotated[Path, typer.Argument(help="Folder for the parquet files and the card.")],
    store: StorePath = None,
    as_json: Json = False,
) -> None:
    """Write a store as parquet with a card.

    Example: costmodel store export datasets/mine --store runs/cpu.sqlite
    """
    with open_store(store) as opened:
        if not opened.identities():
            raise UserError(f"got an empty store {store_path(store)}; `costmodel collect` fills it")
        rows = opened.export(folder)
    if as_json:
        print_json({"rows": rows, "folder": str(folder)})
    else:
        print(f"wrote {rows} sittings to {folder}")
