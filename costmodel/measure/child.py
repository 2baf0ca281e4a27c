"""What the forked child does with one task: load the library, check, warm up, time, check again.

The calling convention of C++ kernels: `void run(void* const* buffers, const long long* sizes)`, buffers being the
inputs and then the outputs, sizes the integer sizes of the problem in order.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from costmodel.measure import sampling
from costmodel.measure.arrays import Original, Output, mismatch
from costmodel.measure.perf_events import Counters
from costmodel.measure.protocol import Outcome, Task

GARBAGE = (0xA5, 0x5A)  # before the first and the last check: what one leaves behind is no answer to the other


@dataclass(frozen=True)
class Prepared:
    """A problem's inputs and answers, made once in the parent and shared with every child."""

    inputs: tuple[Original, ...]
    expected: tuple[np.ndarray[Any, Any], ...]
    sizes: tuple[int, ...]
    tolerance: float

    @property
    def bytes(self) -> int:
        return sum(x.size for x in self.inputs) + sum(x.nbytes for x in self.expected)

    def close(self) -> None:
        for original in self.inputs:
            original.close()


def load_entry(path: str) -> tuple[Any | None, str]:
    """The library's `run`, or None and why not."""
    try:
        entry = ctypes.CDLL(path).run
    except (OSError, AttributeError) as error:
        return None, f"cannot load the compiled kernel: {error}"
    entry.restype = None
    return entry, ""


def execute(task: Task, prepared: Prepared, confine: Callable[[], None]) -> Outcome:
    """Runs in the child. `confine` sets the memory limit once the arrays are mapped."""
    views = [original.view() for original in prepared.inputs]
    outputs = [Output.like(array) for array in prepared.expected]
    counters = Counters()
    evicted = np.zeros(task.evict_bytes if task.timing.cache == "cold" else 0, np.uint8)
    confine()
    entry, error = load_entry(task.library)
    if entry is None:
        return Outcome("launch_error", error=error)
    addresses = [*views, *(output.address for output in outputs)]
    buffers = (ctypes.c_void_p * len(addresses))(*addresses)
    sizes = (ctypes.c_longlong * max(1, len(prepared.sizes)))(*prepared.sizes)

    def call() -> None:
        entry(buffers, sizes)

    def empty_caches() -> None:
        np.add(evicted, 1, out=evicted)

    def check(garbage: int, when: str) -> str:
        for output in outputs:
            output.spoil(garbage)
        call()
        return _faults(prepared, views, outputs, when)

    if error := check(GARBAGE[0], "on the first call"):
        return Outcome("wrong_result", error=error)
    samples = sampling.take(
        call,
        task.timing,
        clock_ns=time.perf_counter_ns,
        before=empty_caches if evicted.size else None,
        warm_calls=1,  # the checked call was the first of two
    )
    counted = counters.count(call)
    if error := check(GARBAGE[1], "on a later call"):
        return Outcome("wrong_result", error=error)
    return Outcome("ok", tuple(round(x, 3) for x in samples), counters=tuple(counted.items()))


def _faults(prepared: Prepared, views: list[int], outputs: list[Output], when: str) -> str:
    for i, (original, view) in enumerate(zip(prepared.inputs, views, strict=True)):
        if original.differs(view):
            return f"{when}: wrote to input {i}"
    for i, (output, expected) in enumerate(zip(outputs, prepared.expected, strict=True)):
        if output.overrun():
            return f"{when}: wrote past the end of output {i}"
        if error := mismatch(output.array, expected, prepared.tolerance):
            return f"{when}: output {i}: {error}"
    return ""
