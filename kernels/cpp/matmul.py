"""Matrix product C = A @ B in f32, with two further forms: packed panels of B, and dot products over a transposed B."""

from typing import Any

import numpy as np

from costmodel.records import Config, Device, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import cpp_workload, form


def make_problem(*, M: int, N: int, K: int) -> Problem:
    """A is [M, K], B is [K, N], C is [M, N]; any size from 1 on."""
    if min(M, N, K) < 1:
        raise UserError(f"got M={M},N={N},K={K}, expected sizes of at least 1; give positive sizes")
    return Problem(
        op="matmul",
        inputs=(TensorSpec((M, K), "f32"), TensorSpec((K, N), "f32")),
        params=(("M", M), ("N", N), ("K", K)),
        flops=2 * M * N * K,
        bytes=4 * (M * K + K * N + M * N),
    )


def make_inputs(problem: Problem, seed: int) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(spec.shape, dtype=np.float32) for spec in problem.inputs)


def reference(problem: Problem, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    a, b = inputs
    return ((a.astype(np.float64) @ b.astype(np.float64)).astype(np.float32),)


def fits_registers(config: Config, problem: Problem, device: Device) -> bool:
    """The block of C leaves room among 32 vector registers for a row of B; threads have a core each."""
    return config["MR"] * config["NV"] <= 24 and config["THREADS"] <= device.num_units


def fits_registers_dot(config: Config, problem: Problem, device: Device) -> bool:
    return config["MR"] * config["NR"] * config["UK"] <= 24 and config["THREADS"] <= device.num_units


WORKLOAD = cpp_workload(
    __file__,
    space=SearchSpace.of(
        fits_registers,
        LANES=(4, 8, 16),
        MR=(1, 2, 4, 8),
        NV=(1, 2, 4),
        KC=(64, 256, 1024),
        COLUMNS_FIRST=(0, 1),
        THREADS=(1, 2),
    ),
    default=Config.of(LANES=8, MR=4, NV=1, KC=256, COLUMNS_FIRST=0, THREADS=1),
    make_problem=make_problem,
    problems={
        "square": {"M": 384, "N": 384, "K": 384},  # three matrices of 0.6 MB: in cache
        "odd": {"M": 331, "N": 357, "K": 389},  # tails in every direction
        "tall": {"M": 8192, "N": 24, "K": 256},  # few columns: wide blocks do not fit
        "wide": {"M": 12, "N": 4096, "K": 512},  # few rows: B streams from memory once
        "deep": {"M": 64, "N": 64, "K": 12288},  # long sums, little output
        "thin": {"M": 1024, "N": 1536, "K": 32},  # short sums, 6 MB of output
    },
    make_inputs=make_inputs,
    reference=reference,
    tolerance=1e-4,
)

FORMS = {
    "packed": form(
        WORKLOAD,
        "packed",
        space=SearchSpace.of(
            fits_registers,
            LANES=(4, 8, 16),
            MR=(2, 4, 6, 8),
            NV=(1, 2, 4),
            KC=(64, 256, 1024),
            PACK_A=(0, 1),
            THREADS=(1, 2),
        ),
        default=Config.of(LANES=8, MR=4, NV=2, KC=256, PACK_A=0, THREADS=1),
    ),
    "dot": form(
        WORKLOAD,
        "dot",
        space=SearchSpace.of(
            fits_registers_dot,
            LANES=(4, 8, 16),
            MR=(1, 2, 4),
            NR=(1, 2, 4),
            UK=(1, 2),
            TN=(16, 64, 256),
            THREADS=(1, 2),
        ),
        default=Config.of(LANES=8, MR=2, NR=2, UK=1, TN=64, THREADS=1),
    ),
}
