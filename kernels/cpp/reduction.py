"""Row statistics: the sum, the largest entry and the sum of squares of each row of a matrix, in one go."""

from __future__ import annotations

from typing import Any

import numpy as np

from costmodel.records import Config, Device, Problem, SearchSpace, TensorSpec
from costmodel.workloads import cpp_workload, form


def make_problem(*, ROWS: int, COLS: int) -> Problem:
    """ROWS rows of COLS entries; three outputs of ROWS entries."""
    params = (("ROWS", ROWS), ("COLS", COLS))
    size = ROWS * COLS
    return Problem("reduction", (TensorSpec((ROWS, COLS), "f32"),), params, flops=4 * size, bytes=4 * (size + 3 * ROWS))


def make_inputs(problem: Problem, seed: int) -> tuple[Any, ...]:
    """f32 (ROWS, COLS), of mean one half so that sums do not vanish."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(problem.inputs[0].shape, dtype=np.float32) + np.float32(0.5),)


def reference(problem: Problem, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """(sum, largest, sum of squares), each f32 (ROWS,)."""
    (x,) = inputs
    squares = np.einsum("ij,ij->i", x, x, dtype=np.float64)
    return x.sum(axis=1, dtype=np.float64).astype(np.float32), x.max(axis=1), squares.astype(np.float32)


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """How a matrix is shared out (by rows, or each row by columns) only matters with more than one thread."""
    return int(config["THREADS"]) <= device.num_units and (int(config["THREADS"]) > 1 or config["SHARE"] == 0)


def vector_is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """Three accumulators per vector under way: more than eight of those would only spill."""
    few = int(config["UNROLL"]) * int(config["TOGETHER"]) <= 8
    return few and is_valid(config, problem, device)


WORKLOAD = cpp_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        ACCUMULATORS=(1, 2, 4, 8, 16),
        DOUBLE=(0, 1),
        FUSED=(0, 1),
        SHARE=(0, 1),
        THREADS=(1, 2),
        OPT=(2, 3),
        FASTMATH=(0, 1),
        VECTOR_BITS=(256, 512),
    ),
    default=Config.of(ACCUMULATORS=1, DOUBLE=0, FUSED=1, SHARE=0, THREADS=1, OPT=3, FASTMATH=0, VECTOR_BITS=256),
    make_problem=make_problem,
    problems={
        "medium": {"ROWS": 7000, "COLS": 1000},
        "tall": {"ROWS": 250000, "COLS": 5},
        "short": {"ROWS": 90000, "COLS": 61},
        "few": {"ROWS": 3, "COLS": 2600001},
        "single": {"ROWS": 1, "COLS": 6000037},
    },
    make_inputs=make_inputs,
    reference=reference,
    tolerance=5e-4,
)

FORMS = {
    "pairwise": form(
        WORKLOAD,
        "pairwise",
        space=SearchSpace.of(
            is_valid,
            LEAF=(16, 64, 256, 2048),
            WIDTH=(4, 16, 32),
            TREE=(0, 1),
            SHARE=(0, 1),
            THREADS=(1, 2),
            OPT=(2, 3),
            FASTMATH=(0, 1),
            VECTOR_BITS=(256, 512),
        ),
        default=Config.of(LEAF=64, WIDTH=4, TREE=0, SHARE=0, THREADS=1, OPT=2, FASTMATH=0, VECTOR_BITS=256),
    ),
    "vector": form(
        WORKLOAD,
        "vector",
        space=SearchSpace.of(
            vector_is_valid,
            VEC=(4, 8, 16),
            UNROLL=(1, 2, 4, 8),
            TOGETHER=(1, 2, 4),
            AHEAD=(0, 1024),
            SHARE=(0, 1),
            THREADS=(1, 2),
            OPT=(2, 3),
        ),
        default=Config.of(VEC=4, UNROLL=1, TOGETHER=1, AHEAD=0, SHARE=0, THREADS=1, OPT=2),
    ),
}
