"""Many small matrix products in f32, with two further forms: padded panels, and one matrix per vector lane."""

from typing import Any

import numpy as np

from costmodel.records import Config, Device, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import cpp_workload, form


def make_problem(*, B: int, M: int, N: int, K: int) -> Problem:
    """B products of [M, K] and [K, N]; any size from 1 on."""
    if min(B, M, N, K) < 1:
        raise UserError(f"got B={B},M={M},N={N},K={K}, expected sizes of at least 1; give positive sizes")
    return Problem(
        op="batched_matmul",
        inputs=(TensorSpec((B, M, K), "f32"), TensorSpec((B, K, N), "f32")),
        params=(("B", B), ("M", M), ("N", N), ("K", K)),
        flops=2 * B * M * N * K,
        bytes=4 * B * (M * K + K * N + M * N),
    )


def make_inputs(problem: Problem, seed: int) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(spec.shape, dtype=np.float32) for spec in problem.inputs)


def reference(problem: Problem, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    a, b = inputs
    return (np.matmul(a.astype(np.float64), b.astype(np.float64)).astype(np.float32),)


def fits_registers(config: Config, problem: Problem, device: Device) -> bool:
    """The block of C leaves room among 32 vector registers for a row of B; threads have a core each."""
    return config["MR"] * config["NV"] <= 24 and config["THREADS"] <= device.num_units


def has_cores(config: Config, problem: Problem, device: Device) -> bool:
    return config["THREADS"] <= device.num_units


WORKLOAD = cpp_workload(
    __file__,
    space=SearchSpace.of(
        fits_registers,
        LANES=(4, 8, 16),
        MR=(1, 2, 4, 8),
        NV=(1, 2, 4),
        OVERLAP=(0, 1),
        CHUNK=(1, 8, 64),
        THREADS=(1, 2),
    ),
    default=Config.of(LANES=8, MR=4, NV=1, OVERLAP=0, CHUNK=8, THREADS=1),
    make_problem=make_problem,
    problems={
        "medium": {"B": 2048, "M": 32, "N": 32, "K": 32},  # 25 MB in all
        "eights": {"B": 20000, "M": 8, "N": 8, "K": 8},  # less than one wide vector per row
        "odd": {"B": 1201, "M": 29, "N": 37, "K": 43},  # tails in every direction
        "cached": {"B": 40, "M": 96, "N": 96, "K": 112},  # 4.7 MB: half of it nearly fits each L2
        "few_rows": {"B": 2000, "M": 3, "N": 64, "K": 64},  # B streams from memory for three rows
        "large": {"B": 32, "M": 136, "N": 120, "K": 152},  # few batches, each beyond L1
    },
    make_inputs=make_inputs,
    reference=reference,
    tolerance=1e-4,
)

FORMS = {
    "padded": form(
        WORKLOAD,
        "padded",
        space=SearchSpace.of(
            fits_registers,
            LANES=(4, 8, 16),
            MR=(1, 2, 4, 8),
            NV=(1, 2, 4),
            ROWS_OUTER=(0, 1),
            CHUNK=(1, 8, 64),
            THREADS=(1, 2),
        ),
        default=Config.of(LANES=8, MR=4, NV=1, ROWS_OUTER=1, CHUNK=8, THREADS=1),
    ),
    "interleaved": form(
        WORKLOAD,
        "interleaved",
        space=SearchSpace.of(
            has_cores,
            LANES=(4, 8, 16),
            MR=(1, 2, 3, 4),
            NR=(1, 2, 3, 4),
            WEAVE_A=(0, 1),
            WEAVE_C=(0, 1),
            THREADS=(1, 2),
        ),
        default=Config.of(LANES=8, MR=2, NR=2, WEAVE_A=1, WEAVE_C=1, THREADS=1),
    ),
}
