"""The backward pass of RMS normalisation: gradients of the input (by row) and of the weights (summed over rows).

With r = 1 / sqrt(mean(x^2) + EPSILON), forward is y = x * r * w (Zhang and Sennrich, 2019).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from costmodel.records import Config, Device, Problem, SearchSpace, TensorSpec
from costmodel.workloads import cpp_workload

EPSILON = 1e-2  # large, so that a row of one entry, whose dx nearly cancels, is still well conditioned


def make_problem(*, ROWS: int, COLS: int) -> Problem:
    """ROWS tokens of width COLS."""
    matrix, size = TensorSpec((ROWS, COLS), "f32"), ROWS * COLS
    params = (("ROWS", ROWS), ("COLS", COLS))
    inputs = (matrix, matrix, TensorSpec((COLS,), "f32"))
    return Problem("rms_norm_backward", inputs, params, flops=12 * size, bytes=4 * (3 * size + 2 * COLS))


def make_inputs(problem: Problem, seed: int) -> tuple[Any, ...]:
    """(x f32 (ROWS, COLS), dy f32 (ROWS, COLS), w f32 (COLS,))."""
    rng = np.random.default_rng(seed)
    shape = problem.inputs[0].shape
    weights = rng.uniform(0.5, 1.5, shape[1]).astype(np.float32)
    return rng.standard_normal(shape, dtype=np.float32), rng.standard_normal(shape, dtype=np.float32), weights


def reference(problem: Problem, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """(dx f32 (ROWS, COLS), dw f32 (COLS,))."""
    x, dy, w = inputs
    cols = x.shape[1]
    r = 1.0 / np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64)[:, None] / cols + EPSILON)
    g = dy.astype(np.float64) * w
    dx = r * (g - x * (np.einsum("ij,ij->i", g, x)[:, None] * r * r / cols))
    return dx.astype(np.float32), (dy * x * r).sum(axis=0, dtype=np.float64).astype(np.float32)


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    return int(config["THREADS"]) <= device.num_units


WORKLOAD = cpp_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        WEIGHTS=(0, 1),
        TOGETHER=(1, 2, 4),
        KEEP=(0, 1),
        SIMD=(0, 1),
        THREADS=(1, 2),
        OPT=(2, 3),
        FASTMATH=(0, 1),
        VECTOR_BITS=(128, 256, 512),
    ),
    default=Config.of(WEIGHTS=0, TOGETHER=1, KEEP=0, SIMD=0, THREADS=1, OPT=3, FASTMATH=0, VECTOR_BITS=256),
    make_problem=make_problem,
    problems={
        "model": {"ROWS": 1500, "COLS": 1024},
        "narrow": {"ROWS": 50000, "COLS": 31},
        "tiny_rows": {"ROWS": 200000, "COLS": 5},
        "wide": {"ROWS": 23, "COLS": 60007},
    },
    make_inputs=make_inputs,
    reference=reference,
    tolerance=2e-4,
)
