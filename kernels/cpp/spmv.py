"""Sparse matrix times vector, rows compressed (CSR), with rows of very different lengths."""

from __future__ import annotations

from typing import Any

import numpy as np

from costmodel.records import Config, Device, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import cpp_workload


def make_problem(*, ROWS: int, COLS: int, NNZ: int, SKEW: int) -> Problem:
    """ROWS x COLS, NNZ entries per row on average; SKEW 1 is even, larger is more and more lopsided."""
    entries = ROWS * NNZ
    if entries >= 1 << 31:
        raise UserError(f"got {entries} entries (ROWS * NNZ), expected fewer than 2**31; take fewer rows or entries")
    inputs = (
        TensorSpec((ROWS + 1,), "i32"),
        TensorSpec((entries,), "i32"),
        TensorSpec((entries,), "f32"),
        TensorSpec((COLS,), "f32"),
    )
    params = (("ROWS", ROWS), ("COLS", COLS), ("NNZ", NNZ), ("SKEW", SKEW))
    return Problem("spmv", inputs, params, flops=2 * entries, bytes=4 * (2 * entries + 2 * ROWS + 1 + COLS))


def make_inputs(problem: Problem, seed: int) -> tuple[Any, ...]:
    """(row starts i32, columns i32, values f32, x f32). Row lengths are multinomial with lognormal weights."""
    rng = np.random.default_rng(seed)
    rows, cols, nnz, skew = (int(value) for _, value in problem.params)
    weights = np.exp(0.5 * (skew - 1) * rng.standard_normal(rows))
    lengths = rng.multinomial(rows * nnz, weights / weights.sum())
    starts = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    columns = rng.integers(0, cols, rows * nnz, dtype=np.int32)
    values = rng.standard_normal(rows * nnz, dtype=np.float32)
    return starts, columns, values, rng.standard_normal(cols, dtype=np.float32)


def reference(problem: Problem, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """f32 (ROWS,)."""
    starts, columns, values, x = inputs
    sums = np.concatenate(([0.0], np.cumsum(values.astype(np.float64) * x[columns])))
    return ((sums[starts[1:]] - sums[starts[:-1]]).astype(np.float32),)


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """A schedule needs threads to share out to; rows side by side have few lanes each and no list of products."""
    if int(config["THREADS"]) > device.num_units or (config["THREADS"] == 1 and config["SCHEDULE"] != 0):
        return False
    if config["PRODUCTS"]:
        return config["TOGETHER"] == 1
    if config["SIMD"] and int(config["LANES"]) < 4:
        return False
    return int(config["TOGETHER"]) * int(config["LANES"]) <= 16


WORKLOAD = cpp_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        PRODUCTS=(0, 1),
        LANES=(1, 2, 4, 8, 16),
        SIMD=(0, 1),
        TOGETHER=(1, 2, 4),
        PREFETCH=(0, 64),
        SCHEDULE=(0, 1, 2),
        THREADS=(1, 2),
        OPT=(2, 3),
    ),
    default=Config.of(PRODUCTS=0, LANES=1, SIMD=0, TOGETHER=1, PREFETCH=0, SCHEDULE=0, THREADS=1, OPT=2),
    make_problem=make_problem,
    problems={
        "short": {"ROWS": 200000, "COLS": 200000, "NNZ": 5, "SKEW": 1},
        "long": {"ROWS": 500, "COLS": 5000, "NNZ": 4000, "SKEW": 2},
        "skewed": {"ROWS": 30000, "COLS": 30000, "NNZ": 50, "SKEW": 6},
        "far": {"ROWS": 40000, "COLS": 3000000, "NNZ": 20, "SKEW": 2},
    },
    make_inputs=make_inputs,
    reference=reference,
)
