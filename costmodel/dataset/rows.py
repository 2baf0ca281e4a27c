"""Nouns and rows as JSON text, checked when read back: a store and a dataset write them alike."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import lru_cache
from typing import Any

from costmodel import reading
from costmodel.records import (
    Config,
    Device,
    Kernel,
    Measurement,
    Problem,
    Scalar,
    Status,
    TensorSpec,
    Timing,
    UserError,
    Variant,
)


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

    try:
        return deep(reading.decoded(text))
    except RecursionError:
        raise ValueError("it is nested too deep") from None


# What is read is checked, since whoever wrote a store or a dataset may have written anything into it.


@lru_cache(maxsize=4096)
def problem_from_json(text: str) -> Problem:
    """ValueError, TypeError or KeyError where the text is no problem's; so do the others here."""
    fields = tuples(text)
    problem = Problem(**{**fields, "inputs": tuple(TensorSpec(**spec) for spec in fields["inputs"])})
    shapes = [size for spec in problem.inputs for size in spec.shape]
    _expect(_are_words(problem.op, *(spec.dtype for spec in problem.inputs)), "a problem's names")
    _expect(_are_whole(problem.flops, problem.bytes, *shapes), "a problem's sizes")
    _expect_pairs(problem.params, int | float | str)
    return problem


@lru_cache(maxsize=4096)
def device_from_json(text: str) -> Device:
    device = Device(**tuples(text))
    _expect(_are_words(device.name, device.kind, device.vendor, device.arch), "a device's names")
    _expect(_are_whole(device.num_units, device.l2_bytes, device.memory_bytes), "a device's sizes")
    rates = (device.clock_mhz, device.peak_gb_per_s, device.tdp_watts)
    _expect(all(_is_number(rate) and 0 <= rate < math.inf for rate in rates), "a device's rates")
    _expect_pairs(device.peak_tflops, int | float)
    _expect_pairs(device.details, int | float | str)
    return device


@lru_cache(maxsize=4096)
def timing_from_json(text: str) -> Timing:
    timing = Timing(**tuples(text))
    _expect(timing.cache in ("cold", "warm"), "a timing's cache")
    _expect(_are_whole(timing.min_samples), "a timing's number of samples")
    _expect(_is_number(timing.warmup_us) and _is_number(timing.relative_error), "a timing's numbers")
    return timing


@lru_cache(maxsize=4096)
def schema_from_json(text: str) -> tuple[tuple[str, tuple[Scalar, ...]], ...]:
    schema = tuples(text)
    _expect_pairs(schema, tuple)
    _expect(all(isinstance(value, int | float | str) for _, values in schema for value in values), "a schema's values")
    return schema


def measurement_from(
    kernel: Kernel,
    *,
    problem: str,
    device: str,
    timing: str,
    toolchain: str,
    config: str,
    status: Status,
    samples_us: tuple[float, ...],
    error: str,
    counters: str,
    collected_at: str,
) -> Measurement:
    """A row of a store or of a dataset, its nouns as JSON text. ValueError, TypeError or KeyError where it is none."""
    settings, versions, counted = tuples(config), tuples(toolchain), tuples(counters)
    _expect_pairs(settings, int | float | str)
    _expect_pairs(versions, str)
    _expect_pairs(counted, int | float)
    _expect(_are_words(kernel.name, kernel.origin, error, collected_at, kernel.source or ""), "a row's texts")
    _expect(all(_is_number(us) and 0 < us < math.inf for us in samples_us), "a row's samples")
    return Measurement(
        variant=Variant(kernel, problem_from_json(problem), Config(settings)),
        device=device_from_json(device),
        timing=timing_from_json(timing),
        toolchain=versions,
        status=status,
        samples_us=samples_us,
        error=error,
        counters=counted,
        collected_at=collected_at,
    )


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"{what} are not of their types")


def _expect_pairs(pairs: Any, kind: Any) -> None:
    _expect(
        isinstance(pairs, tuple)
        and all(isinstance(p, tuple) and len(p) == 2 and isinstance(p[0], str) for p in pairs)
        and all(isinstance(value, kind) for _, value in pairs),
        "pairs of a name and a value",
    )


def _are_words(*values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


def _are_whole(*values: Any) -> bool:
    return all(isinstance(value, int) and 0 <= value < 2**63 for value in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
