"""Measurements as files and as training data: parquet with a card, splits that cannot leak, groups that share a prefix.

A dataset folder holds `measurements.parquet` (one row per sitting; samples in whole nanoseconds), `kernels.parquet`
(each source once) and `README.md`, the card. What is read back equals what was written, with samples rounded to 1 ns.
"""

from __future__ import annotations

import dataclasses
import json
import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from costmodel.records import (
    STATUSES,
    Config,
    Device,
    Kernel,
    Measurement,
    Problem,
    TensorSpec,
    Timing,
    UserError,
    Variant,
)
from costmodel.serialize import canonical_source

By = Literal["kernel", "problem", "form", "device"]

# ------------------------------------------------------------------------------------------------- nouns as JSON text


@lru_cache(maxsize=4096)
def noun_json(noun: Problem | Device | Timing) -> str:
    return to_json(dataclasses.asdict(noun))


def to_json(value: Any) -> str:
    """Compact JSON. Pairs of names and values become a list, since their order matters."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    """A NumPy scalar is written as the number it holds; anything else that JSON lacks is a mistake."""
    if hasattr(value, "item"):
        return value.item()
    raise UserError(f"got {value!r} of type {type(value).__name__} in a measurement, expected a number, text or bool")


@lru_cache(maxsize=4096)
def kernel_identity(kernel: Kernel) -> str:
    """`kernel.identity`, hashed once."""
    return kernel.identity


@lru_cache(maxsize=4096)
def device_identity(device: Device) -> str:
    """`device.identity`, hashed once."""
    return device.identity


def printable(text: str) -> str:
    """A crashed kernel's message may hold anything; what UTF-8 cannot write becomes "?"."""
    return text.encode("utf-8", errors="replace").decode()


def tuples(text: str) -> Any:
    """JSON text with its lists as tuples, as the nouns want them."""

    def deep(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(deep(item) for item in value)
        return {key: deep(item) for key, item in value.items()} if isinstance(value, dict) else value

    return deep(json.loads(text))


@lru_cache(maxsize=4096)
def problem_from_json(text: str) -> Problem:
    fields = tuples(text)
    return Problem(**{**fields, "inputs": tuple(TensorSpec(**spec) for spec in fields["inputs"])})


@lru_cache(maxsize=4096)
def device_from_json(text: str) -> Device:
    return Device(**tuples(text))


@lru_cache(maxsize=4096)
def timing_from_json(text: str) -> Timing:
    return Timing(**tuples(text))


# ------------------------------------------------------------------------------------------------------------ parquet


@dataclass(frozen=True, slots=True)
class Card:
    """What the numbers cannot say of themselves. Device, compiler, flags and counts are taken from the data."""

    title: str = "Kernel latencies"
    description: str = "Latencies of kernel variants, measured with costmodel."
    hardware: str = ""  # beyond the device sheets: what the machine is, what else ran on it
    protocol: str = "Each sitting is one row; its samples are raw. The latency of a row is the median of its samples."
    split_policy: str = (
        "None is fixed in the files. `costmodel.dataset.split` holds out whole operations with all their forms "
        '(by="kernel"), problems for all forms (by="problem"), source forms (by="form") or devices (by="device").'
    )
    license: str = "apache-2.0"


def write_parquet(measurements: Iterable[Measurement], folder: str | Path, card: Card | None = None) -> None:
    """Write a dataset folder; samples are rounded to 1 ns, and a shorter one counts as 1 ns."""
    rows = list(measurements)
    folder = Path(folder)
    kernels: dict[Kernel, int] = {}
    for row in rows:
        kernels.setdefault(row.variant.kernel, len(kernels))
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
    texts = {
        "kernel": pa.array(list(kernels.values()), pa.int32()),
        "identity": [kernel.identity for kernel in kernels],
        "name": [kernel.name for kernel in kernels],
        "language": [kernel.language for kernel in kernels],
        "schema": [to_json(kernel.schema) for kernel in kernels],
        "origin": [kernel.origin for kernel in kernels],
        "source": pa.array([kernel.source for kernel in kernels], pa.string()),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(texts), folder / "kernels.parquet", compression="zstd")
        pq.write_table(pa.table(columns), folder / "measurements.parquet", compression="zstd")
        (folder / "README.md").write_text(_card_text(rows, card or Card()))
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error


def read_parquet(path: str | Path) -> list[Measurement]:
    """Read a dataset folder (or its measurements.parquet) in the order it was written."""
    path = Path(path)
    folder = path.parent if path.suffix == ".parquet" else path
    for name in ("measurements.parquet", "kernels.parquet"):
        if not (folder / name).is_file():
            raise UserError(f"no {name} in {folder}, expected a folder that write_parquet or `store export` wrote")
    try:
        texts = pq.read_table(folder / "kernels.parquet").to_pylist()
        rows = pq.read_table(folder / "measurements.parquet").to_pylist()
        kernels = {
            row["kernel"]: Kernel(row["name"], row["language"], row["source"], tuples(row["schema"]), row["origin"])
            for row in texts
        }
        return [_measurement(row, kernels) for row in rows]
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"got {folder}, expected a dataset of this version: {reason}; export it again") from error


def _words(values: Iterable[str]) -> pa.Array:
    return pa.array(list(values), pa.string()).dictionary_encode()


def _measurement(row: Mapping[str, Any], kernels: Mapping[int, Kernel]) -> Measurement:
    variant = Variant(kernels[row["kernel"]], problem_from_json(row["problem"]), Config(tuples(row["config"])))
    return Measurement(
        variant=variant,
        device=device_from_json(row["device"]),
        timing=timing_from_json(row["timing"]),
        toolchain=tuples(row["toolchain"]),
        status=row["status"],
        samples_us=tuple(ns / 1e3 for ns in row["samples_ns"]),
        error=row["error"],
        counters=tuples(row["counters"]),
        collected_at=row["collected_at"],
    )


# --------------------------------------------------------------------------------------------------------------- card


def _card_text(rows: Sequence[Measurement], card: Card) -> str:
    """README.md: a YAML head that Hugging Face reads, then prose from `card` and tables from the rows."""
    devices = {row.device.identity: row.device for row in rows}.values()
    toolchains = sorted({", ".join(f"{name} `{value}`" for name, value in row.toolchain) for row in rows})
    timings = sorted({str(row.timing) for row in rows})
    failures = Counter(row.status for row in rows if row.status not in ("ok", "compiled"))
    samples = sum(len(row.samples_us) for row in rows)
    dates = sorted(row.collected_at for row in rows if row.collected_at)
    parts = [
        f"---\nlicense: {card.license}\npretty_name: {json.dumps(card.title)}\nconfigs:\n- config_name: default\n"
        "  data_files: measurements.parquet\n- config_name: kernels\n  data_files: kernels.parquet\n---",
        f"# {card.title}",
        card.description,
        "## Hardware",
        card.hardware,
        "\n".join(f"- {_device_line(device)}" for device in devices),
        "## Compiler and flags",
        "\n".join(f"- {toolchain or 'not stated'}" for toolchain in toolchains),
        "## Protocol",
        card.protocol,
        "\n".join(f"- `{timing}`" for timing in timings),
        "## Counts",
        f"{len(rows)} rows, {sum(row.status == 'ok' for row in rows)} of them `ok`, with {samples} samples"
        + (f", collected from {dates[0]} to {dates[-1]}." if dates else "."),
        _counts_table(rows),
        "## Failures by kind",
        "\n".join(f"- {kind}: {count}" for kind, count in sorted(failures.items())) or "None.",
        "## Splits",
        card.split_policy,
        "## Columns",
        _COLUMNS,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


_COLUMNS = """`measurements.parquet`, one row per sitting: `kernel` (key into `kernels.parquet`), `op`, `problem`,
`config`, `device`, `timing`, `toolchain`, `counters` (JSON text), `status`, `latency_us` (median of the samples, empty
for a failure), `samples_ns` (raw, rounded to 1 ns), `error`, `collected_at` (UTC). `kernels.parquet`: `kernel`,
`identity`, `name`, `language`, `schema` (JSON text), `origin`, `source`. Read both with
`costmodel.dataset.read_parquet(folder)`."""


def _device_line(device: Device) -> str:
    peaks = ", ".join(f"{rate:g} TFLOP/s {name}" for name, rate in device.peak_tflops)
    return (
        f"{device.name} ({device.kind}, {device.arch}): {device.num_units} units at {device.clock_mhz:g} MHz, {peaks}, "
        f"{device.peak_gb_per_s:g} GB/s, L2 {device.l2_bytes / 1024:g} KiB"
    )


def _counts_table(rows: Sequence[Measurement]) -> str:
    statuses = [status for status in STATUSES if any(row.status == status for row in rows)]
    counts: Counter[tuple[str, str]] = Counter((row.variant.kernel.name, row.status) for row in rows)
    median: dict[str, list[float]] = defaultdict(list)
    problems: dict[str, set[Problem]] = defaultdict(set)
    for row in rows:
        problems[row.variant.kernel.name].add(row.variant.problem)
        if row.samples_us:
            median[row.variant.kernel.name].append(row.latency_us)
    lines = [f"| kernel | problems | {' | '.join(statuses)} | median us |", "|" + "---|" * (len(statuses) + 3)]
    for name in sorted(problems):
        cells = [str(counts[name, status]) for status in statuses]
        middle = f"{statistics.median(median[name]):.4g}" if median[name] else "-"
        lines.append(f"| {name} | {len(problems[name])} | {' | '.join(cells)} | {middle} |")
    return "\n".join(lines)


# -------------------------------------------------------------------------------------------------------------- splits


@dataclass(frozen=True, slots=True)
class Split:
    """Training and test rows, and what kept them apart."""

    by: By
    train: tuple[Measurement, ...]
    test: tuple[Measurement, ...]


def family(kernel: Kernel) -> str:
    """The operation that a kernel is a form of: the name before "__"."""
    return kernel.name.partition("__")[0]


def split(
    measurements: Iterable[Measurement],
    *,
    by: By,
    held_out: Sequence[str] | None = None,
    fraction: float | None = None,
    seed: int = 0,
) -> Split:
    """Hold out by name (`held_out`), or a share of what there is (`fraction`, at least one, chosen by `seed`).

    kernel    operations with all their forms, named by family ("matmul")
    problem   sizes of an operation for all its forms, named "OP:SIZES" ("matmul:M=512,N=512,K=512");
              `fraction` is of each operation's problems, and one of them always stays in training
    form      source forms, named by kernel ("matmul__packed"); `fraction` is of the forms of operations with several,
              and one form of each operation always stays in training
    device    devices, by name

    Kernels whose canonical text is equal are never on two sides of a kernel or a form split: naming one holds out all.
    """
    rows = list(measurements)
    if by not in _KEYS:
        raise UserError(f"got by={by!r}, expected one of {', '.join(_KEYS)}")
    if (held_out is None) == (fraction is None):
        raise UserError("got both or neither of held_out and fraction, expected one of them")
    bound = _bound(rows, by)
    chosen = _named(bound, by, held_out) if held_out is not None else _drawn(rows, bound, by, fraction or 0.0, seed)
    test = {bound[name] for name in chosen}
    key = _KEYS[by]
    result = Split(
        by,
        tuple(row for row in rows if bound[key(row)] not in test),
        tuple(row for row in rows if bound[key(row)] in test),
    )
    assert_no_leak(result)
    return result


def assert_no_leak(parts: Split) -> None:
    """AssertionError, naming what is shared, if anything that `parts.by` must keep apart is on both sides."""
    checks: dict[str, Callable[[Measurement], str]] = {parts.by: _KEYS[parts.by]}
    if parts.by in ("kernel", "form"):
        checks |= {"source": _text, "source identity": lambda row: kernel_identity(row.variant.kernel)}
    if parts.by == "device":
        checks["device identity"] = lambda row: row.device.identity
    for what, key in checks.items():
        shared = {key(row) for row in parts.train} & {key(row) for row in parts.test}
        if shared:
            raise AssertionError(f"{what} on both sides of a split by {parts.by}: {', '.join(sorted(shared)[:3])}")


def _problem_name(row: Measurement) -> str:
    return f"{row.variant.problem.op}:{row.variant.problem}"


def _text(row: Measurement) -> str:
    return canonical_source(row.variant.kernel)


_KEYS: dict[str, Callable[[Measurement], str]] = {
    "kernel": lambda row: family(row.variant.kernel),
    "problem": _problem_name,
    "form": lambda row: row.variant.kernel.name,
    "device": lambda row: row.device.name,
}


def _bound(rows: Sequence[Measurement], by: By) -> dict[str, str]:
    """Name -> representative of the names that must stay together (they share a canonical text), by union-find."""
    parent = {_KEYS[by](row): _KEYS[by](row) for row in rows}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = name = parent[parent[name]]
        return name

    if by in ("kernel", "form"):
        first: dict[str, str] = {}
        for name, text in {(_KEYS[by](row), _text(row)): None for row in rows}:
            parent[root(name)] = root(first.setdefault(text, name))
    return {name: root(name) for name in parent}


def _named(bound: Mapping[str, str], by: By, held_out: Sequence[str]) -> list[str]:
    for name in held_out:
        if name not in bound:
            known = sorted(bound)
            more = f" and {len(known) - 12} more" if len(known) > 12 else ""
            raise UserError(f"got {by} {name!r} to hold out, expected one of: {', '.join(known[:12])}{more}")
    return list(held_out)


def _drawn(rows: Sequence[Measurement], bound: Mapping[str, str], by: By, fraction: float, seed: int) -> list[str]:
    if not 0.0 < fraction < 1.0:
        raise UserError(f"got fraction={fraction}, expected 0 < fraction < 1")
    chance = random.Random(seed)
    if by in ("kernel", "device"):
        units = sorted(set(bound.values()))
        if len(units) < 2:
            raise UserError(f"got one {by} ({', '.join(units)}), expected at least two to split by {by}")
        return chance.sample(units, min(len(units) - 1, max(1, round(fraction * len(units)))))
    pools: dict[str, set[str]] = defaultdict(set)
    owners: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        operation = row.variant.problem.op if by == "problem" else family(row.variant.kernel)
        pools[operation].add(bound[_KEYS[by](row)])
        owners[bound[_KEYS[by](row)]].add(operation)
    drawn: list[str] = []
    for _, pool in sorted(pools.items()):
        own = sorted(unit for unit in pool if len(owners[unit]) == 1)  # another operation may have no other
        drawn += chance.sample(own, min(len(own), len(pool) - 1, max(1, round(fraction * len(pool)))))
    if not drawn:
        raise UserError(f"got no operation with two {by}s, expected one to split by {by}; hold out by name")
    return drawn


# -------------------------------------------------------------------------------------------------------------- groups


SpaceKey = tuple[str, Problem | None, str]


def space_of(variant: Variant, device: Device) -> SpaceKey:
    """What rows must share to be compared by rank: (kernel identity, problem, device identity).

    An operator's rows each are a problem of their own, with nothing to tune, so its space is the kernel on the device.
    """
    problem = None if variant.kernel.language == "operator" else variant.problem
    return kernel_identity(variant.kernel), problem, device_identity(device)


def space_key(row: Measurement) -> SpaceKey:
    """`space_of` a measurement."""
    return space_of(row.variant, row.device)


@dataclass(frozen=True, slots=True)
class Group:
    """The rows that share a prefix: one kernel, problem and device, timed alike. Their configs are its suffixes."""

    kernel: Kernel
    problem: Problem
    device: Device
    timing: Timing
    measurements: tuple[Measurement, ...]


def groups(measurements: Iterable[Measurement]) -> Iterator[Group]:
    """Rows by space (see `space_key`), schema and timing, in order of first appearance."""
    found: dict[tuple[object, ...], list[Measurement]] = {}
    for row in measurements:
        found.setdefault((space_key(row), row.variant.kernel.schema, row.device, row.timing), []).append(row)
    for rows in found.values():
        first = rows[0]
        yield Group(first.variant.kernel, first.variant.problem, first.device, first.timing, tuple(rows))
