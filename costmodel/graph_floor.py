"""The frame of reference for programs: one analytic floor, frozen, so that slowdowns of any two models can be compared.

The floor of an instruction is a roofline of one core and what it costs to start it:

    count * (START_US + max(flops / FLOPS_PER_US, bytes / BYTES_PER_US))

and nothing for what only names memory. A slowdown is log2(latency / sum of the floors). The constants are no fit and
must not become one: dividing by another floor changes every rank correlation of slowdowns, so they are told with the
data (`constants`), and a model that was trained against other ones is refused. They are round numbers near one core of
a server with AVX-512; small programs, whose data stays in caches, may lie below their floor.

What only may be a view (VIEWS) is neither free nor traffic here, but VIEW_US each, whatever its size: eager torch
only makes a view, XLA may copy or fuse. `graph.costs` counts the bytes of a copy for all of these but reshape.
"""

from __future__ import annotations

from costmodel.graph import Cost
from costmodel.graph.costs import FREE

FLOPS_PER_US = 60e3
BYTES_PER_US = 16e3
START_US = 2.0
VIEW_US = 1.0  # what may be another view of the same memory, which depends on who runs the program
VIEWS = frozenset({"reshape", "transpose", "broadcast", "slice"})


def constants() -> dict[str, float]:
    """What the floor is made of, to be published with data and models."""
    return {"flops_per_us": FLOPS_PER_US, "bytes_per_us": BYTES_PER_US, "start_us": START_US, "view_us": VIEW_US}


def floor_us(cost: Cost) -> float:
    """Of all executions of an instruction, in microseconds."""
    if cost.opcode in VIEWS:
        return cost.count * VIEW_US
    if cost.opcode in FREE or cost.opcode.endswith(("-done", "-update")):
        return 0.0
    moved = cost.bytes_read + cost.bytes_written
    return cost.count * (START_US + max(cost.flops / FLOPS_PER_US, moved / BYTES_PER_US))
