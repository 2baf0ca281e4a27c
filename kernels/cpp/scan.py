"""Inclusive prefix sums along rows in f32, by several algorithms: whole rows or segments, one value or one vector."""

from typing import Any

import numpy as np

from costmodel.records import Config, Device, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import cpp_workload

SEGMENTS = (256, 1024, 4096, 16384, 65536)
LANES = (4, 8, 16)


def make_problem(*, ROWS: int, COLS: int) -> Problem:
    """X and Y are [ROWS, COLS]; any size from 1 on."""
    if min(ROWS, COLS) < 1:
        raise UserError(f"got ROWS={ROWS},COLS={COLS}, expected sizes of at least 1; give positive sizes")
    return Problem(
        op="scan",
        inputs=(TensorSpec((ROWS, COLS), "f32"),),
        params=(("ROWS", ROWS), ("COLS", COLS)),
        flops=ROWS * COLS,
        bytes=8 * ROWS * COLS,
    )


def make_inputs(problem: Problem, seed: int) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    return (rng.uniform(0.0, 1.0, problem.inputs[0].shape).astype(np.float32),)


def reference(problem: Problem, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (np.cumsum(inputs[0], axis=1, dtype=np.float64).astype(np.float32),)


def says_something_new(config: Config, problem: Problem, device: Device) -> bool:
    """Whole rows have no segments, and value by value over whole rows no lanes: there only the first value counts."""
    if config["ALG"] < 2 and config["SEGMENT"] != SEGMENTS[0]:
        return False
    if config["ALG"] == 0 and config["LANES"] != LANES[0]:
        return False
    return config["THREADS"] <= device.num_units


WORKLOAD = cpp_workload(
    __file__,
    space=SearchSpace.of(
        says_something_new,
        ALG=(0, 1, 2, 3),
        LANES=LANES,
        SEGMENT=SEGMENTS,
        CHAINS=(1, 2, 4, 8),
        THREADS=(1, 2),
    ),
    default=Config.of(ALG=0, LANES=4, SEGMENT=256, CHAINS=1, THREADS=1),
    make_problem=make_problem,
    problems={
        "rows": {"ROWS": 2500, "COLS": 1024},
        "single": {"ROWS": 1, "COLS": 3000003},  # only segments can run side by side
        "short": {"ROWS": 200000, "COLS": 13},  # shorter than a vector
        "pair": {"ROWS": 3, "COLS": 900000},  # fewer rows than chains
        "odd": {"ROWS": 1777, "COLS": 1537},
    },
    make_inputs=make_inputs,
    reference=reference,
    tolerance=1e-3,  # one running f32 sum of three million values is off by some 1e-4
)
