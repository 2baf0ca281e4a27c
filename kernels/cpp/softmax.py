"""Softmax over rows, as in attention: some entries carry a large negative mask, some rows are masked throughout.

The online form is that of Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from costmodel.records import Config, Device, Problem, SearchSpace, TensorSpec
from costmodel.workloads import cpp_workload, form

MASK = -1e9


def make_problem(*, ROWS: int, COLS: int) -> Problem:
    """ROWS independent rows of COLS entries; an exponential counts as 8 operations."""
    size = ROWS * COLS
    params = (("ROWS", ROWS), ("COLS", COLS))
    return Problem("softmax", (TensorSpec((ROWS, COLS), "f32"),), params, flops=12 * size, bytes=2 * 4 * size)


def make_inputs(problem: Problem, seed: int) -> tuple[Any, ...]:
    """Scores, f32 (ROWS, COLS): one in five masked, every 64th row altogether."""
    rng = np.random.default_rng(seed)
    shape = problem.inputs[0].shape
    scores = rng.standard_normal(shape, dtype=np.float32) * np.float32(3)
    scores[rng.random(shape, dtype=np.float32) < 0.2] = MASK
    scores[63::64] = MASK
    return (scores,)


def reference(problem: Problem, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """f32 (ROWS, COLS); each row sums to one."""
    shifted = np.exp(inputs[0] - inputs[0].max(axis=1, keepdims=True))
    return (shifted / shifted.sum(axis=1, keepdims=True, dtype=np.float64).astype(np.float32),)


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    return int(config["THREADS"]) <= device.num_units


def online_is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """Reassociated, x - m - log would lose the logarithm beside a masked row's m."""
    return int(config["THREADS"]) <= device.num_units and not (config["LOGSUM"] and config["FASTMATH"])


def vector_is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """More than four vectors under way would only spill."""
    return int(config["THREADS"]) <= device.num_units and int(config["UNROLL"]) * int(config["TOGETHER"]) <= 4


WORKLOAD = cpp_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        POLYNOMIAL=(0, 1),
        KEEP=(0, 1),
        DIVIDE=(0, 1),
        SIMD=(0, 1),
        THREADS=(1, 2),
        OPT=(2, 3),
        FASTMATH=(0, 1),
        VECTOR_BITS=(128, 256, 512),
    ),
    default=Config.of(POLYNOMIAL=0, KEEP=1, DIVIDE=0, SIMD=0, THREADS=1, OPT=3, FASTMATH=0, VECTOR_BITS=256),
    make_problem=make_problem,
    problems={
        "medium": {"ROWS": 2000, "COLS": 1000},
        "short": {"ROWS": 50000, "COLS": 29},
        "tiny_rows": {"ROWS": 100000, "COLS": 7},
        "long": {"ROWS": 9, "COLS": 200003},
        "single": {"ROWS": 1, "COLS": 1800001},
    },
    make_inputs=make_inputs,
    reference=reference,
    tolerance=2e-4,
)

FORMS = {
    "online": form(
        WORKLOAD,
        "online",
        space=SearchSpace.of(
            online_is_valid,
            LANES=(1, 8, 16, 64),
            BLOCK=(1, 4, 16),
            POLYNOMIAL=(0, 1),
            LOGSUM=(0, 1),
            THREADS=(1, 2),
            OPT=(2, 3),
            FASTMATH=(0, 1),
        ),
        default=Config.of(LANES=8, BLOCK=1, POLYNOMIAL=0, LOGSUM=0, THREADS=1, OPT=3, FASTMATH=0),
    ),
    "vector": form(
        WORKLOAD,
        "vector",
        space=SearchSpace.of(
            vector_is_valid,
            VEC=(4, 8, 16),
            UNROLL=(1, 2, 4),
            TOGETHER=(1, 2, 4),
            DEGREE=(3, 5),
            KEEP=(0, 1),
            PADDED=(0, 1),
            THREADS=(1, 2),
            OPT=(2, 3),
        ),
        default=Config.of(VEC=8, UNROLL=1, TOGETHER=1, DEGREE=5, KEEP=1, PADDED=0, THREADS=1, OPT=2),
    ),
}
