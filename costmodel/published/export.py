"""Search spaces written as other tools read them: T4 results (with their T1 beside them) and Kernel Tuner caches.

What was read from such a record and is written again reads back the same, to the last bit. A row measured here has no
published aggregate: the mean of its samples stands in the file for one, as Kernel Tuner does it. Sources and the names
of sizes have no place in these formats and stay in the store.
"""

from __future__ import annotations

import datetime
import gzip
import json
import math
import re
import statistics
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import TextIO, cast

from costmodel.published import streams
from costmodel.published.entries import MS
from costmodel.published.spaces import KERNEL_TUNER_COSTS, KERNEL_TUNER_ERRORS, T4_COSTS, T4_INVALIDITY
from costmodel.records import Kernel, Measurement, Scalar, UserError


def write_kernel_tuner_cache(measurements: Iterable[Measurement], path: str | Path) -> int:
    """One space as a Kernel Tuner cache (gzip if the name ends in .gz); returns how many entries were written."""
    path, rows = Path(path), _one_space(measurements)
    count = 0
    with _written(path) as file:
        for row in rows:
            file.write(",\n" if count else _cache_head(row))
            key = ",".join(str(value) for _, value in row.variant.config.params)
            file.write(f"{json.dumps(key)}: {_cache_entry(row)}")
            count += 1
        file.write("}\n}\n")
        _some(count)
    return count


def write_t4(measurements: Iterable[Measurement], path: str | Path) -> int:
    """One space as T4 results, its T1 as STEM.t1.json beside them; gzip and the count as above."""
    path, rows = Path(path), _one_space(measurements)
    count, first = 0, None
    with _written(path) as file:
        for row in rows:
            file.write(",\n" if count else _t4_head(row))
            file.write(_t4_result(row))
            first, count = first or row, count + 1
        file.write('\n],\n"schema_version": ' + json.dumps(_version(first, "t4")) + "\n}\n")
        _some(count)
    if first is not None:
        t1 = path.with_name(path.name.removesuffix(".gz").removesuffix(".json") + ".t1.json")
        with _written(t1) as file:
            file.write(json.dumps(_t1(first), indent=2) + "\n")
    return count


WRITERS = {"t4": write_t4, "kernel-tuner": write_kernel_tuner_cache}


def write_spaces(measurements: Iterable[Measurement], folder: str | Path, *, form: str) -> dict[str, int]:
    """Each search space as a file KERNEL__DEVICE.json in `folder`; returns the number of entries by file name.

    A further space of the same kernel and device (another problem, toolchain or timing) gets a number behind its name.
    Kernels without parameters span no space and are passed over.
    """
    if form not in WRITERS:
        raise UserError(f"got format {form!r}, expected parquet, {' or '.join(WRITERS)}")
    spaces: dict[tuple[object, ...], list[Measurement]] = defaultdict(list)
    for row in measurements:
        variant = row.variant
        if variant.kernel.schema:
            key = (variant.kernel, variant.problem, row.device, row.timing, row.toolchain)
            spaces[key].append(row)
    if not spaces:
        raise UserError(f"got no kernel with parameters to write as {form}, expected at least one; export as parquet")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}; give another folder") from error
    written: dict[str, int] = {}
    for rows in spaces.values():
        kernel, device = (
            re.sub(pattern, "_", name) for pattern, name in
            ((r"[^A-Za-z0-9_.+-]+|^[.]+", rows[0].variant.kernel.name), (r"[^A-Za-z0-9-]+", rows[0].device.name))
        )  # fmt: skip
        stem = f"{kernel[:160]}__{device.strip('_')[:40]}"  # a name may hold anything, a path not
        taken = sum(name.startswith((f"{stem}.", f"{stem}__")) for name in written)
        name = f"{stem}__{taken + 1}.json" if taken else f"{stem}.json"
        written[name] = WRITERS[form](rows, Path(folder) / name)
    return written


# -------------------------------------------------------------------------------------------------------- one space


def _one_space(measurements: Iterable[Measurement]) -> Iterator[Measurement]:
    """The rows, as long as they are of one kernel, problem and device."""
    first: Measurement | None = None
    for row in measurements:
        first = first or row
        for what, wanted, found in (
            ("kernel", first.variant.kernel.name, row.variant.kernel.name),
            ("parameters", _names(first.variant.kernel), _names(row.variant.kernel)),
            ("problem", str(first.variant.problem), str(row.variant.problem)),
            ("device", first.device.name, row.device.name),
        ):
            if wanted != found:
                raise UserError(f"got {what} {found} after {wanted}, expected one search space; write a file for each")
        yield row


def _names(kernel: Kernel) -> tuple[str, ...]:
    return tuple(name for name, _ in kernel.schema)


def _some(count: int) -> None:
    if not count:
        raise UserError("got no measurement to write, expected at least one; check what was selected")


@contextmanager
def _written(path: Path) -> Iterator[TextIO]:
    """A text file that appears under its name only when it is whole."""
    part = path.with_name(f"{path.name}.part")
    try:
        with cast(TextIO, (gzip.open if path.suffix == ".gz" else open)(part, "wt", encoding="utf-8")) as file:
            yield file
        part.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; give a path that can be written") from error
    finally:
        part.unlink(missing_ok=True)


def _object(fields: Mapping[str, str]) -> str:
    """A JSON object of values that are JSON text already: times keep every digit that way."""
    return "{" + ", ".join(f"{json.dumps(name)}: {text}" for name, text in fields.items()) + "}"


def _ms(us: float) -> str:
    """JSON text in milliseconds that is read back as exactly `us`.

    Several doubles may be. CUDA's events are 32-bit floats and OpenCL's whole nanoseconds, so that such a double was
    most likely published. Where none is, the decimal point moves.
    """
    near = us / 1e3
    doubles = (near, math.nextafter(near, 0.0), math.nextafter(near, math.inf))
    for ms in (*filter(_is_f32, doubles), round(us * 1e3) * 1e-6, near):
        if streams.shifted(ms, MS) == us:
            return repr(ms)
    return format(Decimal(repr(us)).scaleb(-MS), "f")


def _is_f32(number: float) -> bool:
    return bool(struct.unpack("f", struct.pack("f", number))[0] == number)


def _array_ms(samples_us: Iterable[float]) -> str:
    return f"[{', '.join(map(_ms, samples_us))}]"


def _version(row: Measurement | None, tool: str, default: str = "1.0.0") -> str:
    return dict(row.toolchain).get(tool, default) if row else default


def _time_us(row: Measurement) -> float:
    return dict(row.counters).get("published_us") or statistics.fmean(row.samples_us)


def _costs(row: Measurement, names: Mapping[str, str]) -> dict[str, str]:
    """What the row's counters say of the format's own costs, as JSON text in milliseconds."""
    counters = dict(row.counters)
    return {theirs: _ms(counters[ours]) for theirs, ours in names.items() if ours in counters}


def _metrics(row: Measurement) -> dict[str, float]:
    """Counters that are no times of the formats: GFLOP/s and what else the tuning script computed."""
    known = {"published_us", *KERNEL_TUNER_COSTS.values()}
    return {name: value for name, value in row.counters if name not in known}


def _stamp(row: Measurement) -> dict[str, str]:
    if not row.collected_at:
        return {}
    return {"timestamp": json.dumps(str(datetime.datetime.fromisoformat(row.collected_at)))}


# ----------------------------------------------------------------------------------------------------- Kernel Tuner


def _cache_head(row: Measurement) -> str:
    kernel = row.variant.kernel
    sizes = [value for _, value in row.variant.problem.params]
    version = _version(row, "kernel_tuner", "").removeprefix("cache").strip()
    head = {
        "device_name": row.device.name,
        "kernel_name": kernel.name,
        "problem_size": sizes,
        "tune_params_keys": list(_names(kernel)),
        "tune_params": {name: list(values) for name, values in kernel.schema},
        "objective": "time",
        **({"schema_version": version} if version else {}),
    }
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
    return "{\n" + ",\n".join(lines) + ',\n"cache": {\n'


def _cache_entry(row: Measurement) -> str:
    fields = {name: json.dumps(value) for name, value in row.variant.config.params}
    if row.status == "ok":
        fields |= {"time": _ms(_time_us(row)), "times": _array_ms(row.samples_us)}
    else:
        fields["time"] = json.dumps(_cache_error(row))
    fields |= _costs(row, KERNEL_TUNER_COSTS)
    fields |= {name: json.dumps(value) for name, value in _metrics(row).items()}
    return _object(fields | _stamp(row))


def _cache_error(row: Measurement) -> str:
    """Kernel Tuner's word for a failure: the one that was read, else the one that fits."""
    if row.error in KERNEL_TUNER_ERRORS:
        return row.error
    return "CompilationFailedConfig" if row.status == "compile_error" else "RuntimeFailedConfig"


# -------------------------------------------------------------------------------------------------------- T4 and T1


def _t4_head(row: Measurement) -> str:
    metadata = {"timeunit": "milliseconds", "device_name": row.device.name, "kernel_name": row.variant.kernel.name}
    return f'{{\n"metadata": {json.dumps(metadata)},\n"results": [\n'


def _t4_result(row: Measurement) -> str:
    times = _costs(row, T4_COSTS)
    if row.status == "ok":
        times["runtimes"] = _array_ms(row.samples_us)
        time = _ms(_time_us(row))
    else:
        time = json.dumps(row.error or _invalidity(row))
    measured = [_object({"name": '"time"', "value": time, "unit": '"ms"' if row.status == "ok" else '""'})]
    measured += [json.dumps({"name": name, "value": value, "unit": ""}) for name, value in _metrics(row).items()]
    return _object({
        **_stamp(row),
        "configuration": json.dumps(row.variant.config.as_dict()),
        "times": _object(times),
        "invalidity": json.dumps(_invalidity(row)),
        "correctness": "1" if row.status == "ok" else "0",
        "measurements": f"[{', '.join(measured)}]",
        "objectives": '["time"]',
    })  # fmt: skip


def _invalidity(row: Measurement) -> str:
    if row.error in ("InvalidConfig", "constraints"):
        return "constraints"
    words = {status: word for word, status in T4_INVALIDITY.items() if word != "constraints"}
    return str(words.get(row.status, "runtime"))


def _t1(row: Measurement) -> dict[str, object]:
    kernel, sizes = row.variant.kernel, [value for _, value in row.variant.problem.params]
    return {
        "General": {"BenchmarkName": kernel.name, "OutputFormat": "JSON"},
        "ConfigurationSpace": {
            "TuningParameters": [
                {"Name": name, "Type": _type(values), "Values": str(list(values)), "Default": values[0]}
                for name, values in kernel.schema
            ]
        },
        "KernelSpecification": {"Language": kernel.language.upper(), "KernelName": kernel.name, "ProblemSize": sizes},
    }


def _type(values: tuple[Scalar, ...]) -> str:
    for kind, name in ((bool, "bool"), (int, "int"), (float, "float")):
        if all(isinstance(value, kind) for value in values):
            return name
    return "string"
