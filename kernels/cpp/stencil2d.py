"""Heat spreading over a chip: a 5-point stencil with a power term, several steps, clamped edges.

The update is that of "hotspot" in the Rodinia suite (Che et al., 2009): a cell moves towards its neighbours and the
ambient temperature, and is heated by its power.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from costmodel.records import Config, Device, Problem, SearchSpace, TensorSpec
from costmodel.workloads import cpp_workload, form

STEP, ALONG_Y, ALONG_X, TO_AMBIENT, AMBIENT = 0.25, 0.9, 1.1, 0.05, 80.0


def make_problem(*, H: int, W: int, STEPS: int) -> Problem:
    """A grid of H x W cells, STEPS times."""
    grid = TensorSpec((H, W), "f32")
    params = (("H", H), ("W", W), ("STEPS", STEPS))
    return Problem("stencil2d", (grid, grid), params, flops=14 * H * W * STEPS, bytes=3 * 4 * H * W)


def make_inputs(problem: Problem, seed: int) -> tuple[Any, ...]:
    """(temperature, power), each f32 (H, W)."""
    rng = np.random.default_rng(seed)
    shape = problem.inputs[0].shape
    temperature = rng.uniform(60.0, 100.0, shape).astype(np.float32)
    return temperature, rng.uniform(0.0, 5.0, shape).astype(np.float32)


def reference(problem: Problem, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The temperature after STEPS steps."""
    t, power = inputs
    for _ in range(int(problem["STEPS"])):
        p = np.pad(t, 1, mode="edge")
        change = (p[:-2, 1:-1] + p[2:, 1:-1] - 2 * t) * np.float32(ALONG_Y)
        change += (p[1:-1, :-2] + p[1:-1, 2:] - 2 * t) * np.float32(ALONG_X)
        change += (np.float32(AMBIENT) - t) * np.float32(TO_AMBIENT)
        t = t + np.float32(STEP) * (change + power)
    return (t,)


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """Cells whose indexes are clamped one by one are not vectorised, nor taken several rows at a time."""
    if int(config["THREADS"]) > device.num_units:
        return False
    return config["INNER"] != 0 or (config["ROWS"] == 1 and config["VECTOR_BITS"] == 256)


def rolling_is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """Neighbours can be shuffled out of registers only where a strip has more than one vector."""
    return int(config["THREADS"]) <= device.num_units and (config["SHIFT"] == 0 or config["STRIP"] != 1)


def timetiled_is_valid(config: Config, problem: Problem, device: Device) -> bool:
    return int(config["THREADS"]) <= device.num_units


WORKLOAD = cpp_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        INNER=(0, 1, 2),
        ROWS=(1, 2, 4),
        TILE_COLS=(64, 512, 1 << 30),
        DIVIDE=(0, 1),
        THREADS=(1, 2),
        OPT=(2, 3),
        VECTOR_BITS=(256, 512),
    ),
    default=Config.of(INNER=1, ROWS=1, TILE_COLS=1 << 30, DIVIDE=0, THREADS=1, OPT=2, VECTOR_BITS=256),
    make_problem=make_problem,
    problems={
        "square": {"H": 1200, "W": 1203, "STEPS": 3},
        "cached": {"H": 256, "W": 250, "STEPS": 60},
        "narrow": {"H": 50000, "W": 37, "STEPS": 2},
        "wide": {"H": 13, "W": 60001, "STEPS": 6},
    },
    make_inputs=make_inputs,
    reference=reference,
)

FORMS = {
    "rolling": form(
        WORKLOAD,
        "rolling",
        space=SearchSpace.of(
            rolling_is_valid,
            VEC=(4, 8, 16),
            STRIP=(1, 2, 4),
            SHIFT=(0, 1),
            UNROLL=(1, 3),
            BAND=(8, 32, 256),
            THREADS=(1, 2),
            OPT=(2, 3),
        ),
        default=Config.of(VEC=4, STRIP=1, SHIFT=0, UNROLL=1, BAND=32, THREADS=1, OPT=2),
    ),
    "timetiled": form(
        WORKLOAD,
        "timetiled",
        space=SearchSpace.of(
            timetiled_is_valid,
            TIME=(1, 2, 3, 6),
            TILE_H=(8, 32, 128),
            TILE_W=(32, 256, 2048),
            SIMD=(0, 1),
            THREADS=(1, 2),
            OPT=(2, 3),
        ),
        default=Config.of(TIME=2, TILE_H=32, TILE_W=256, SIMD=0, THREADS=1, OPT=2),
    ),
}
