"""Attention of several heads in f32, with two further forms: online softmax, and blocks of transposed keys."""

from typing import Any

import numpy as np

from costmodel.records import Config, Device, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import cpp_workload, form


def make_problem(*, H: int, SQ: int, SK: int, D: int) -> Problem:
    """H heads: Q and O are [H, SQ, D], K and V are [H, SK, D]; any size from 1 on. exp counts as one flop."""
    if min(H, SQ, SK, D) < 1:
        raise UserError(f"got H={H},SQ={SQ},SK={SK},D={D}, expected sizes of at least 1; give positive sizes")
    return Problem(
        op="attention",
        inputs=(TensorSpec((H, SQ, D), "f32"), TensorSpec((H, SK, D), "f32"), TensorSpec((H, SK, D), "f32")),
        params=(("H", H), ("SQ", SQ), ("SK", SK), ("D", D)),
        flops=H * SQ * SK * (4 * D + 5),  # two products; scale, maximum, difference, exponential and sum
        bytes=8 * H * D * (SQ + SK),
    )


def make_inputs(problem: Problem, seed: int) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(spec.shape, dtype=np.float32) for spec in problem.inputs)


def reference(problem: Problem, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    q, k, v = (array.astype(np.float64) for array in inputs)
    scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return ((weights / weights.sum(axis=-1, keepdims=True) @ v).astype(np.float32),)


def fits_registers(config: Config, problem: Problem, device: Device) -> bool:
    """QB x KB sums leave room among 32 vector registers; threads have a core each."""
    return config["QB"] * config["KB"] <= 24 and config["THREADS"] <= device.num_units


def has_cores(config: Config, problem: Problem, device: Device) -> bool:
    return config["THREADS"] <= device.num_units


def fits_block(config: Config, problem: Problem, device: Device) -> bool:
    """Whole groups of NV vectors make up a block of keys; threads have a core each."""
    return config["BK"] % (config["NV"] * config["LANES"]) == 0 and config["THREADS"] <= device.num_units


WORKLOAD = cpp_workload(
    __file__,
    space=SearchSpace.of(
        fits_registers,
        LANES=(4, 8, 16),
        QB=(1, 2, 4, 8),
        KB=(1, 2, 4),
        KEYS_ACROSS=(0, 1),
        LIBM=(0, 1),
        THREADS=(1, 2),
    ),
    default=Config.of(LANES=8, QB=2, KB=1, KEYS_ACROSS=0, LIBM=1, THREADS=1),
    make_problem=make_problem,
    problems={
        "short": {"H": 96, "SQ": 64, "SK": 64, "D": 32},
        "long": {"H": 2, "SQ": 128, "SK": 1024, "D": 64},  # a row of scores no longer shares L1 with the keys
        "decode": {"H": 20, "SQ": 1, "SK": 1536, "D": 64},  # one query: 16 MB of keys and values stream past
        "odd": {"H": 7, "SQ": 97, "SK": 203, "D": 41},  # tails in every direction
        "wide": {"H": 3, "SQ": 128, "SK": 256, "D": 128},
        "cross": {"H": 32, "SQ": 384, "SK": 24, "D": 16},  # few keys, short dots
    },
    make_inputs=make_inputs,
    reference=reference,
    tolerance=1e-4,
)

FORMS = {
    "online": form(
        WORKLOAD,
        "online",
        space=SearchSpace.of(
            has_cores,
            LANES=(4, 8, 16),
            QB=(1, 4, 16),
            KB=(1, 2, 4, 8),
            LAZY=(0, 1),
            LIBM=(0, 1),
            THREADS=(1, 2),
        ),
        default=Config.of(LANES=8, QB=1, KB=1, LAZY=1, LIBM=1, THREADS=1),
    ),
    "blocked": form(
        WORKLOAD,
        "blocked",
        space=SearchSpace.of(
            fits_block,
            LANES=(4, 8, 16),
            BQ=(4, 16, 64),
            BK=(16, 64, 256),
            NV=(1, 2, 4),
            LIBM=(0, 1),
            THREADS=(1, 2),
        ),
        default=Config.of(LANES=8, BQ=16, BK=64, NV=1, LIBM=1, THREADS=1),
    ),
}
