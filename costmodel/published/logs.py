"""Logs of compilers that tune: Triton's NAME.autotune.json, and Helion's CSV log with the .meta.jsonl beside it."""

from __future__ import annotations

import ast
import functools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from costmodel import reading
from costmodel.published import streams
from costmodel.published.entries import MS, Refused, Schema, Source, Space, observed, rows, scalar, time_us, timing_of
from costmodel.records import DTYPES, Kernel, Measurement, Params, Problem, Status, TensorSpec, UserError

# ------------------------------------------------------------------------------------------------------------- Triton


def read_triton(source: Source) -> Iterator[Measurement]:
    header: dict[str, Any] = {}
    schema = observed(_triton_config(e[0]) for e in source.entries("configs_timings", header) if _is_pair(e))
    name, _ = source.named()
    key = header.get("key")
    values = key if isinstance(key, list) else [] if key is None else [key]
    space = Space(
        Kernel(name, "triton", None, schema, "triton"),
        Problem(name, (), tuple((f"key_{i}", scalar(value)) for i, value in enumerate(values)), flops=0, bytes=0),
        source.device(""), timing_of(()), (("triton", "autotune.json"),),
    )  # fmt: skip
    defaults = {parameter: 0 for parameter, _ in schema}  # maxnreg that one config sets and another does not

    def make(entry: Any) -> Measurement:
        config, times = entry
        times = times if isinstance(times, list) else [times]
        if times[0] == math.inf:  # it did not compile or exceeds the GPU's resources; Triton does not keep which
            return space.row(defaults | _triton_config(config), "compile_error", (), "inf", {}, "")
        middle = time_us(times[0], MS)
        quantiles = {"p20_us": time_us(times[1], MS), "p80_us": time_us(times[2], MS)} if len(times) == 3 else {}
        return space.row(defaults | _triton_config(config), "ok", (middle,), "", quantiles, "")

    return rows(source, source.entries("configs_timings", {}), make)


def _is_pair(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], dict)


def _triton_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The kernel's own parameters, then the launch options that are set."""
    options = {key: value for key, value in config.items() if key not in ("kwargs", "pre_hook") and value is not None}
    return {**(config.get("kwargs") or {}), **options}


# ------------------------------------------------------------------------------------------------------------- Helion

_HELION_STATUS: dict[str, Status] = {
    "ok": "ok", "deduplicated": "ok", "timeout": "timeout", "peer_compilation_fail": "compile_error",
    "error": "launch_error",
}  # fmt: skip


def read_helion(source: Source) -> Iterator[Measurement]:
    """One row per benchmarked config. A row that says "started" announces another and is passed over."""
    runs = _helion_runs(source.path)
    seen: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in source.table():
        config = _helion_config(entry["config"])
        if config is not None:
            seen[entry.get("run_id", "")].append(config)
    spaces = {run: _helion_space(source, runs.get(run, {}), observed(configs)) for run, configs in seen.items()}

    def make(entry: dict[str, str]) -> Measurement:
        status, config = entry["status"], _helion_config(entry["config"])
        if status not in _HELION_STATUS:
            raise Refused(f"status is the unknown word {status[:40]!r}")
        if config is None:
            raise Refused("config cannot be read")
        space = spaces[entry.get("run_id", "")]
        config = {name: "none" for name, _ in space.kernel.schema} | config
        costs = {"compile_us": streams.shifted(entry["compile_time_s"], 6)} if entry.get("compile_time_s") else {}
        if _HELION_STATUS[status] != "ok":
            return space.row(config, _HELION_STATUS[status], (), status, costs, "")
        return space.row(config, "ok", (time_us(entry["perf_ms"], MS),), "", costs, "")

    return rows(source, (entry for entry in source.table() if entry["status"] != "started"), make)


def _helion_runs(path: Path) -> dict[str, dict[str, Any]]:
    """The runs that BASE.meta.jsonl beside BASE.csv describes, by run_id."""
    base = path.name.removesuffix(".gz").removesuffix(".csv")
    sidecar = path.with_name(f"{base}.meta.jsonl")
    runs: dict[str, dict[str, Any]] = {}
    if sidecar.is_file():
        told = reading.text(sidecar, most_bytes=reading.MOST_JSON_BYTES, expected="one JSON record a line")
        for line in filter(str.strip, told.splitlines()):
            try:
                record = reading.decoded(line)
                runs[str(record.get("run_id", ""))] = record
            except (AttributeError, ValueError) as error:
                raise UserError(
                    f"got {sidecar}, expected one JSON record a line ({error}); mend or remove it"
                ) from error
    return runs


def _helion_space(source: Source, run: Mapping[str, Any], schema: Schema) -> Space:
    name = str(run.get("kernel_name") or source.named()[0])
    hardware = run.get("hardware_info") or {}
    inputs = _helion_inputs(run)
    params: Params = tuple(
        (f"arg{i}_{axis}", size) for i, spec in enumerate(inputs) for axis, size in enumerate(spec.shape)
    )
    versions = hardware.get("versions") or {}
    toolchain = tuple((key, str(versions[key])) for key in ("helion", "torch", "triton") if versions.get(key))
    return Space(
        Kernel(name, "triton", None, schema, "helion"),
        Problem(name, inputs, params, flops=0, bytes=0),
        source.device(str(hardware.get("device_name") or run.get("hardware") or "")),
        timing_of(()), toolchain or (("helion", "autotune log"),),
    )  # fmt: skip


def _helion_inputs(run: Mapping[str, Any]) -> tuple[TensorSpec, ...]:
    """From the texts "[(64, 64)]" and "['torch.float32']"; arguments that are no tensors have no shape."""
    try:
        shapes = reading.literal(str(run.get("input_shapes") or "[]"))
        dtypes = reading.literal(str(run.get("dtypes") or "[]"))
        return tuple(
            TensorSpec(tuple(map(int, shape)), DTYPES.get(str(dtype).removeprefix("torch."), str(dtype)))
            for shape, dtype in zip(shapes, dtypes, strict=True)
            if isinstance(shape, list | tuple)
        )
    except (OverflowError, TypeError, ValueError):
        return ()


@functools.lru_cache(maxsize=4096)
def _helion_config(text: str) -> dict[str, Any] | None:
    """ "Config(block_sizes=[32, 16], num_warps=4)" -> block_sizes_0, block_sizes_1, num_warps; None if it is not so."""
    try:
        call = reading.expression(text)
        if not isinstance(call, ast.Call) or call.args:
            return None
        given = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (RecursionError, TypeError, ValueError):
        return None
    flat: dict[str, Any] = {}
    for name, value in given.items():
        flat |= {f"{name}_{i}": item for i, item in enumerate(value)} if isinstance(value, list) else {name: value}
    return {name: "none" if value is None else value for name, value in flat.items()}
