"""Transposition of a batch of matrices: out[b, c, r] = in[b, r, c]."""

from __future__ import annotations

from typing import Any

import numpy as np

from costmodel.records import Config, Device, Problem, SearchSpace, TensorSpec
from costmodel.workloads import cpp_workload, form

WHOLE = 1 << 30


def make_problem(*, BATCH: int, ROWS: int, COLS: int) -> Problem:
    """BATCH matrices of ROWS x COLS. One operation per entry stands for its move."""
    size = BATCH * ROWS * COLS
    params = (("BATCH", BATCH), ("ROWS", ROWS), ("COLS", COLS))
    return Problem("transpose", (TensorSpec((BATCH, ROWS, COLS), "f32"),), params, flops=size, bytes=2 * 4 * size)


def make_inputs(problem: Problem, seed: int) -> tuple[Any, ...]:
    """f32 (BATCH, ROWS, COLS)."""
    return (np.random.default_rng(seed).standard_normal(problem.inputs[0].shape, dtype=np.float32),)


def reference(problem: Problem, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """f32 (BATCH, COLS, ROWS)."""
    return (np.ascontiguousarray(inputs[0].transpose(0, 2, 1)),)


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    return int(config["THREADS"]) <= device.num_units


WORKLOAD = cpp_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        TILE_R=(1, 8, 32, 128, WHOLE),
        TILE_C=(8, 32, 128, WHOLE),
        ORDER=(0, 1),
        SIMD=(0, 1),
        THREADS=(1, 2),
        OPT=(2, 3),
    ),
    default=Config.of(TILE_R=32, TILE_C=32, ORDER=0, SIMD=0, THREADS=1, OPT=2),
    make_problem=make_problem,
    problems={
        "square": {"BATCH": 1, "ROWS": 1500, "COLS": 1501},
        "power": {"BATCH": 1, "ROWS": 1024, "COLS": 2048},
        "small": {"BATCH": 2000, "ROWS": 33, "COLS": 31},
        "tall": {"BATCH": 1, "ROWS": 300000, "COLS": 7},
        "wide": {"BATCH": 40, "ROWS": 12, "COLS": 5003},
    },
    make_inputs=make_inputs,
    reference=reference,
    tolerance=0.0,
)

FORMS = {
    "registers": form(
        WORKLOAD,
        "registers",
        space=SearchSpace.of(
            is_valid,
            BLOCK=(4, 8, 16),
            TILE_R=(16, 64, 512),
            TILE_C=(16, 64, 512),
            ORDER=(0, 1),
            PREFETCH=(0, 1),
            THREADS=(1, 2),
            OPT=(2, 3),
        ),
        default=Config.of(BLOCK=4, TILE_R=64, TILE_C=64, ORDER=0, PREFETCH=0, THREADS=1, OPT=2),
    ),
    "buffered": form(
        WORKLOAD,
        "buffered",
        space=SearchSpace.of(
            is_valid,
            TILE_R=(8, 16, 64, 128),
            TILE_C=(8, 16, 64),
            PAD=(0, 1, 16),
            TURN=(0, 1),
            LIBRARY=(0, 1),
            THREADS=(1, 2),
            OPT=(2, 3),
        ),
        default=Config.of(TILE_R=64, TILE_C=64, PAD=0, TURN=1, LIBRARY=0, THREADS=1, OPT=2),
    ),
}
