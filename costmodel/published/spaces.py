"""Search spaces: Kernel Tuner's cache files, and T4 results with the T1 file that declares their space.

Formats: Kernel Tuner's cache files; T1 and T4 of https://github.com/odgaard/TuningSchema. The same space read from
either gives equal variants: parameters in the order declared, values sorted, language from the T1 and never from the
device. A T4 result without its T1 does not state the problem size, nor values that nobody measured.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costmodel import reading
from costmodel.published import streams
from costmodel.published.entries import (
    MS,
    Refused,
    Schema,
    Source,
    Space,
    costs_us,
    is_number,
    observed,
    rows,
    scalar,
    schema_of,
    time_us,
    timing_of,
    utc,
)
from costmodel.records import LANGUAGES, Kernel, Measurement, Params, Problem, Status, Timing, UserError

_PEEK = 256  # entries looked at to learn how many repeats are usual

KERNEL_TUNER_COSTS = {
    "compile_time": "compile_us", "benchmark_time": "benchmark_us", "verification_time": "verification_us",
    "framework_time": "framework_us", "strategy_time": "strategy_us",
}  # fmt: skip
T4_COSTS = {
    "compilation": "compile_us", "benchmark": "benchmark_us", "validation": "verification_us",
    "framework": "framework_us", "search_algorithm": "strategy_us",
}  # fmt: skip
# A config that Kernel Tuner calls invalid was stopped before it ran: for a search it is like one that does not compile.
KERNEL_TUNER_ERRORS: dict[str, Status] = {
    "CompilationFailedConfig": "compile_error", "RuntimeFailedConfig": "launch_error", "InvalidConfig": "compile_error",
}  # fmt: skip
T4_INVALIDITY: dict[str, Status] = {
    "correct": "ok", "compile": "compile_error", "runtime": "launch_error", "constraints": "compile_error",
    "timeout": "timeout", "correctness": "wrong_result",
}  # fmt: skip
_TIME_UNITS = {
    "miliseconds": 3, "milliseconds": 3, "ms": 3, "microseconds": 0, "us": 0, "nanoseconds": -3, "ns": -3,
    "seconds": 6, "s": 6,
}  # fmt: skip


def read_kernel_tuner(source: Source) -> Iterator[Measurement]:
    header: dict[str, Any] = {}
    entries = source.entries("cache", header)
    first = list(itertools.islice(entries, _PEEK))
    if first and "tune_params_keys" not in header:  # it stands after the cache, or nowhere
        for _ in entries:
            pass
        entries = source.entries("cache", {})
        first = list(itertools.islice(entries, _PEEK))
    names, declared = header.get("tune_params_keys"), header.get("tune_params")
    if not isinstance(names, list):
        raise UserError(f"got {source.path} without tune_params_keys, expected a Kernel Tuner cache; check the file")
    if isinstance(declared, dict) and set(declared) == set(names):
        schema = schema_of({name: declared[name] for name in names})
    else:
        seen = _configs(source.entries("cache", {}), names)
        schema = observed(seen)
    version = header.get("schema_version")
    space = _tuned_space(
        source, schema,
        name=str(header.get("kernel_name") or ""),
        sizes=header.get("problem_size"),
        device=str(header.get("device_name") or ""),
        timing=timing_of(len(entry.get("times") or ()) for entry in first if isinstance(entry, dict)),
        toolchain=(("kernel_tuner", f"cache {version}" if version else "cache"),),
    )  # fmt: skip
    others = {*names, "time", "times", "timestamp", "__error__", *KERNEL_TUNER_COSTS}

    def make(entry: Mapping[str, Any]) -> Measurement:
        costs = costs_us(entry, KERNEL_TUNER_COSTS, MS)
        metrics = {key: float(value) for key, value in entry.items() if key not in others and is_number(value)}
        moment = utc(entry.get("timestamp"))
        word = entry.get("__error__") or entry["time"]
        if isinstance(word, str) and not isinstance(word, streams.Decimals):
            if word not in KERNEL_TUNER_ERRORS:
                raise Refused(f"time is the unknown word {word[:40]!r}")
            return space.row(entry, KERNEL_TUNER_ERRORS[word], (), word, costs | metrics, moment)
        published = {"published_us": time_us(entry["time"], MS)}
        samples = tuple(time_us(time, MS) for time in entry.get("times") or (entry["time"],))
        return space.row(entry, "ok", samples, "", published | costs | metrics, moment)

    return rows(source, itertools.chain(first, entries), make)


def _configs(entries: Iterable[Any], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    for entry in entries:
        if isinstance(entry, dict) and entry.keys() >= set(names):
            yield {name: entry[name] for name in names}


def read_t4(source: Source) -> Iterator[Measurement]:
    header: dict[str, Any] = {}  # Kernel Tuner writes the unit and the version after the results
    entries = source.entries("results", header)
    schema = observed(e["configuration"] for e in entries if isinstance(e, dict) and "configuration" in e)
    metadata = header.get("metadata") or {}
    unit = _unit(source, metadata.get("timeunit") or "ms")
    entries = source.entries("results", {})
    first = list(itertools.islice(entries, _PEEK))
    space = _tuned_space(
        source, schema,
        name=str(metadata.get("kernel_name") or ""),
        sizes=None,
        device=str(metadata.get("device_name") or ""),
        timing=timing_of(len((e.get("times") or {}).get("runtimes") or ()) for e in first if isinstance(e, dict)),
        toolchain=(("t4", str(header.get("schema_version") or "")),),
    )  # fmt: skip

    def make(entry: Mapping[str, Any]) -> Measurement:
        config, times, invalidity = entry["configuration"], entry.get("times") or {}, entry["invalidity"]
        measured = {item["name"]: item for item in entry.get("measurements") or ()}
        costs = costs_us(times, T4_COSTS, unit)
        metrics = {
            name: float(item["value"]) for name, item in measured.items() if name != "time" and is_number(item["value"])
        }
        moment = utc(entry.get("timestamp"))
        stated = measured.get("time", {})
        time = stated.get("value")
        if invalidity not in T4_INVALIDITY:
            raise Refused(f"invalidity is the unknown word {str(invalidity)[:40]!r}")
        if invalidity != "correct":
            word = time if isinstance(time, str) and not isinstance(time, streams.Decimals) else invalidity
            return space.row(config, T4_INVALIDITY[invalidity], (), word, costs | metrics, moment)
        own = _unit(source, stated["unit"]) if stated.get("unit") else unit
        published = {"published_us": time_us(time, own)} if time is not None else {}
        samples = tuple(time_us(run, unit) for run in times.get("runtimes") or ()) or tuple(published.values())
        if not samples:
            raise Refused("time is missing")
        return space.row(config, "ok", samples, "", published | costs | metrics, moment)

    return rows(source, itertools.chain(first, entries), make)


def _unit(source: Source, name: Any) -> int:
    """The power of ten that makes microseconds of a unit."""
    if str(name).lower() not in _TIME_UNITS:
        raise UserError(f"got time unit {name!r} in {source.path}, expected one of {', '.join(_TIME_UNITS)}; mend it")
    return _TIME_UNITS[str(name).lower()]


def _tuned_space(
    source: Source,
    schema: Schema,
    *,
    name: str,
    sizes: Any,
    device: str,
    timing: Timing,
    toolchain: tuple[tuple[str, str], ...],
) -> Space:
    """A space as the file states it, its T1 (if there is one) overriding parameters, problem size and language."""
    stated, (name, _), language = name, source.named(name), "cuda"
    t1 = _t1(source, name, {parameter for parameter, _ in schema})
    if t1:
        schema, sizes, language = t1.schema, t1.sizes or sizes, t1.language
    sizes = sizes if isinstance(sizes, list | tuple) else [] if sizes is None else [sizes]
    params: Params = tuple((f"size_{i}", scalar(size)) for i, size in enumerate(sizes))
    return Space(
        Kernel(name, language, None, schema, "kernel_tuner"),  # type: ignore[arg-type]
        Problem(name, (), params, flops=0, bytes=0),
        source.device(device, stated), timing, toolchain,
    )  # fmt: skip


@dataclass(frozen=True)
class _T1:
    """What a T1 file declares."""

    schema: Schema
    sizes: tuple[Any, ...]
    language: str


def _t1(source: Source, name: str, names: set[str]) -> _T1 | None:
    """The T1 that was given, else one beside the file: STEM.t1.json, NAME.json or ../t1/NAME.json, if it fits."""
    if source.space_given:
        t1 = read_t1(source.space_given)
        if names and {name for name, _ in t1.schema} != names:
            raise UserError(
                f"got space {source.space_given} of {', '.join(n for n, _ in t1.schema)}, expected the parameters of "
                f"{source.path}: {', '.join(sorted(names))}; give the T1 file of this record"
            )
        return t1
    folder = source.path.parent
    if Path(name).name != name:
        return None  # the record's own name for its kernel, which must not lead to other folders
    for path in (folder / f"{source.stem}.t1.json", folder / f"{name}.json", folder.parent / "t1" / f"{name}.json"):
        if path != source.path and path.is_file() and _is_t1(path):
            t1 = read_t1(path)
            if not names or {parameter for parameter, _ in t1.schema} == names:
                return t1
    return None


def _is_t1(path: Path) -> bool:
    with path.open(errors="replace") as file:
        return '"ConfigurationSpace"' in file.read(1 << 16)


def read_t1(path: Path) -> _T1:
    """A T1 file's parameters with their values, its problem size and its language."""
    try:
        document = reading.json_object(path, expected="a T1 file")
        parameters = document["ConfigurationSpace"]["TuningParameters"]
        values = {item["Name"]: _literal(item["Values"]) for item in parameters}
        specification = document.get("KernelSpecification") or {}
        sizes = _literal(specification.get("ProblemSize") or [])
        language = str(specification.get("Language", "")).lower()
        sizes = tuple(sizes) if isinstance(sizes, list | tuple) else (sizes,)
        return _T1(schema_of(values), sizes, language if language in LANGUAGES else "cuda")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"got {path}, expected a T1 file with literal values ({reason}); give another --space"
        ) from error


def _literal(value: Any) -> Any:
    """T1 writes lists as text: "[16, 32]"."""
    return reading.literal(value) if isinstance(value, str) else value
