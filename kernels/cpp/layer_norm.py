"""Layer norm of rows in f32, with two further forms: Welford's update, and a fused sum of values and squares."""

from typing import Any

import numpy as np

from costmodel.records import Config, Device, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import cpp_workload, form

EPSILON = 1e-5


def make_problem(*, ROWS: int, COLS: int) -> Problem:
    """X and Y are [ROWS, COLS], gain and bias [COLS]; any size from 1 on."""
    if min(ROWS, COLS) < 1:
        raise UserError(f"got ROWS={ROWS},COLS={COLS}, expected sizes of at least 1; give positive sizes")
    return Problem(
        op="layer_norm",
        inputs=(TensorSpec((ROWS, COLS), "f32"), TensorSpec((COLS,), "f32"), TensorSpec((COLS,), "f32")),
        params=(("ROWS", ROWS), ("COLS", COLS)),
        flops=8 * ROWS * COLS,  # sum; difference, square, sum; difference, scale, gain, bias
        bytes=4 * (2 * ROWS * COLS + 2 * COLS),
    )


def make_inputs(problem: Problem, seed: int) -> tuple[Any, ...]:
    """Rows with means and spreads of their own, as activations have."""
    rng = np.random.default_rng(seed)
    rows, cols = problem.inputs[0].shape
    x = rng.standard_normal((rows, cols), dtype=np.float32)
    x *= rng.uniform(0.5, 2.0, (rows, 1)).astype(np.float32)
    x += rng.standard_normal((rows, 1), dtype=np.float32)
    gain = rng.uniform(0.5, 1.5, cols).astype(np.float32)
    return x, gain, rng.standard_normal(cols, dtype=np.float32)


def reference(problem: Problem, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    x, gain, bias = (array.astype(np.float64) for array in inputs)
    x -= x.mean(axis=1, keepdims=True)
    x /= np.sqrt(np.square(x).mean(axis=1, keepdims=True) + EPSILON)
    return ((x * gain + bias).astype(np.float32),)


def has_cores(config: Config, problem: Problem, device: Device) -> bool:
    return config["THREADS"] <= device.num_units


def fits_registers(config: Config, problem: Problem, device: Device) -> bool:
    """Two sums per chain and row stay within 32 vector registers; threads have a core each."""
    return config["CHAINS"] * config["TOGETHER"] <= 16 and config["THREADS"] <= device.num_units


WORKLOAD = cpp_workload(
    __file__,
    space=SearchSpace.of(
        has_cores,
        SUMS=(1, 4, 8, 16, 32, 64),
        ONE_PASS=(0, 1),
        OPT=(2, 3),
        FASTMATH=(0, 1),
        VECTOR_BITS=(128, 256, 512),
        THREADS=(1, 2),
    ),
    default=Config.of(SUMS=4, ONE_PASS=0, OPT=2, FASTMATH=0, VECTOR_BITS=256, THREADS=1),
    make_problem=make_problem,
    problems={
        "model": {"ROWS": 3072, "COLS": 768},  # a transformer's rows: each fits L1
        "short": {"ROWS": 50000, "COLS": 24},  # the row's overhead decides
        "long": {"ROWS": 36, "COLS": 65536},  # a row fits L2, not L1
        "huge": {"ROWS": 10, "COLS": 200003},  # a row is read from beyond L2 twice
        "odd": {"ROWS": 8009, "COLS": 333},
    },
    make_inputs=make_inputs,
    reference=reference,
    tolerance=5e-4,  # a single f32 sum of 200,003 values is off by about 1e-4
)

FORMS = {
    "welford": form(
        WORKLOAD,
        "welford",
        space=SearchSpace.of(
            fits_registers,
            LANES=(4, 8, 16),
            CHAINS=(1, 2, 4, 8),
            TOGETHER=(1, 2, 4),
            RECIPROCAL=(0, 1),
            FASTMATH=(0, 1),
            THREADS=(1, 2),
        ),
        default=Config.of(LANES=8, CHAINS=1, TOGETHER=1, RECIPROCAL=0, FASTMATH=0, THREADS=1),
    ),
    "fused": form(
        WORKLOAD,
        "fused",
        space=SearchSpace.of(
            fits_registers,
            LANES=(4, 8, 16),
            CHAINS=(1, 2, 4, 8),
            TOGETHER=(1, 2, 4),
            SHIFT=(0, 1),
            AHEAD=(0, 1),
            THREADS=(1, 2),
        ),
        default=Config.of(LANES=8, CHAINS=1, TOGETHER=1, SHIFT=1, AHEAD=0, THREADS=1),
    ),
}
