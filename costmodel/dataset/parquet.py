"""A dataset folder: `measurements.parquet` (one row per sitting; samples in whole nanoseconds), `kernels.parquet` (each
source once) and `README.md`, the card. What is read back equals what was written, with samples rounded to 1 ns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from costmodel import reading
from costmodel.dataset.bounded import parquet_rows
from costmodel.dataset.card import Card, Tally, card_text
from costmodel.dataset.rows import measurement_from, noun_json, printable, schema_from_json, to_json
from costmodel.records import Kernel, Measurement, UserError

_GROUP = 16_384  # rows written at once
_WORDS = pa.dictionary(pa.int32(), pa.string())
_SCHEMA = pa.schema(
    [("kernel", pa.int32()), ("op", _WORDS), ("problem", _WORDS), ("config", _WORDS), ("device", _WORDS),
     ("timing", _WORDS), ("toolchain", _WORDS), ("status", _WORDS), ("latency_us", pa.float64()),
     ("samples_ns", pa.list_(pa.int64())), ("error", _WORDS), ("counters", _WORDS), ("collected_at", _WORDS)]
)  # fmt: skip
_TEXTS = ("problem", "device", "timing", "toolchain", "config", "status", "error", "counters", "collected_at")


def write_parquet(measurements: Iterable[Measurement], folder: str | Path, card: Card | None = None) -> int:
    """Write a dataset folder, a group of rows at a time; returns how many rows. Samples are rounded to 1 ns, and a
    shorter one counts as 1 ns. Kept in memory are one group and each kernel once."""
    folder, tally, kernels = Path(folder), Tally(), dict[Kernel, int]()
    rows = iter(measurements)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(folder / "measurements.parquet", _SCHEMA, compression="zstd") as file:
            while group := list(islice(rows, _GROUP)):
                for row in group:
                    tally.count(row)
                    kernels.setdefault(row.variant.kernel, len(kernels))
                file.write_table(_table(group, kernels))
        texts = {
            "kernel": pa.array(list(kernels.values()), pa.int32()),
            "identity": pa.array([kernel.identity for kernel in kernels], pa.string()),
            "name": pa.array([kernel.name for kernel in kernels], pa.string()),
            "language": pa.array([kernel.language for kernel in kernels], pa.string()),
            "schema": pa.array([to_json(kernel.schema) for kernel in kernels], pa.string()),
            "origin": pa.array([kernel.origin for kernel in kernels], pa.string()),
            "source": pa.array([kernel.source for kernel in kernels], pa.string()),
        }
        pq.write_table(pa.table(texts), folder / "kernels.parquet", compression="zstd")
        (folder / "README.md").write_text(card_text(tally, card or Card()))
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    return tally.rows


def _table(rows: Sequence[Measurement], kernels: Mapping[Kernel, int]) -> pa.Table:
    columns: dict[str, pa.Array] = {
        "kernel": pa.array([kernels[row.variant.kernel] for row in rows], pa.int32()),
        "op": _words(row.variant.problem.op for row in rows),
        "problem": _words(noun_json(row.variant.problem) for row in rows),
        "config": _words(to_json(row.variant.config.params) for row in rows),
        "device": _words(noun_json(row.device) for row in rows),
        "timing": _words(noun_json(row.timing) for row in rows),
        "toolchain": _words(to_json(row.toolchain) for row in rows),
        "status": _words(row.status for row in rows),
        "latency_us": pa.array([row.latency_us if row.samples_us else None for row in rows], pa.float64()),
        "samples_ns": pa.array([[max(1, round(us * 1e3)) for us in row.samples_us] for row in rows],
                               pa.list_(pa.int64())),
        "error": _words(printable(row.error) for row in rows),
        "counters": _words(to_json(row.counters) for row in rows),
        "collected_at": _words(row.collected_at for row in rows),
    }  # fmt: skip
    return pa.table(columns, schema=_SCHEMA)


def read_parquet(path: str | Path) -> list[Measurement]:
    """Read a dataset folder (or its measurements.parquet) in the order it was written."""
    path = Path(path)
    folder = path.parent if path.suffix == ".parquet" else path
    for name in ("measurements.parquet", "kernels.parquet"):
        if not (folder / name).is_file():
            raise UserError(f"no {name} in {folder}, expected a folder that write_parquet or `store export` wrote")
    try:
        kernels = {
            row["kernel"]: Kernel(
                row["name"], row["language"], row["source"], schema_from_json(row["schema"]), row["origin"]
            )
            for row in parquet_rows(folder / "kernels.parquet")
        }
        return [_measurement(row, kernels) for row in parquet_rows(folder / "measurements.parquet")]
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(
            f"got {folder}, expected a dataset of this version ({reading.short(error)}); export it again"
        ) from error


def _words(values: Iterable[str]) -> pa.Array:
    return pa.array(list(values), pa.string()).dictionary_encode()


def _measurement(row: Mapping[str, Any], kernels: Mapping[int, Kernel]) -> Measurement:
    texts = {name: row[name] for name in _TEXTS}
    return measurement_from(kernels[row["kernel"]], samples_us=tuple(ns / 1e3 for ns in row["samples_ns"]), **texts)
