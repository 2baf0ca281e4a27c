"""Search spaces: which rows may be compared, and which share a prefix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from costmodel.dataset.rows import device_identity, kernel_identity
from costmodel.records import Device, Kernel, Measurement, Problem, Timing, Variant

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
