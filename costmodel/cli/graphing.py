"""Measuring whole programs: what `costmodel collect graphs` does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from costmodel.cli.shared import open_store
from costmodel.present import progress


def collect_graphs(
    *, count: int, families: list[str], engine: str, passes: int, seconds: float | None, store: Path | None, quiet: bool
) -> tuple[Counter[str], str]:
    """Time the generator's graphs into a store. Returns how many sittings ended how, and the store's name."""
    from costmodel import devices, workloads

    graphs = workloads.load_module(workloads.shipped("collectors") / "hlo_graphs.py")
    counts: Counter[str] = Counter()
    with open_store(store) as opened:  # type: ignore[arg-type]
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
