"""A 7-point stencil on volumes with zeros around them: each cell is a weighted sum of itself and its six neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np

from costmodel.records import Config, Device, Problem, SearchSpace, TensorSpec
from costmodel.workloads import cpp_workload


def make_problem(*, BATCH: int, D: int, H: int, W: int) -> Problem:
    """BATCH volumes of D x H x W cells."""
    size = BATCH * D * H * W
    inputs = (TensorSpec((BATCH, D, H, W), "f32"), TensorSpec((7,), "f32"))
    params = (("BATCH", BATCH), ("D", D), ("H", H), ("W", W))
    return Problem("stencil3d", inputs, params, flops=13 * size, bytes=2 * 4 * size + 28)


def make_inputs(problem: Problem, seed: int) -> tuple[Any, ...]:
    """(volume f32 (BATCH, D, H, W), weights f32 (7,): centre, down, up, north, south, west, east)."""
    rng = np.random.default_rng(seed)
    volume = rng.standard_normal(problem.inputs[0].shape, dtype=np.float32)
    return volume, rng.standard_normal(7, dtype=np.float32)


def reference(problem: Problem, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """f32 (BATCH, D, H, W)."""
    x, weights = inputs
    p = np.pad(x, ((0, 0), (1, 1), (1, 1), (1, 1)))
    d, h, w = (size + 1 for size in x.shape[1:])
    out = weights[0] * x
    out += weights[1] * p[:, : d - 1, 1:h, 1:w] + weights[2] * p[:, 2:, 1:h, 1:w]
    out += weights[3] * p[:, 1:d, : h - 1, 1:w] + weights[4] * p[:, 1:d, 2:, 1:w]
    out += weights[5] * p[:, 1:d, 1:h, : w - 1] + weights[6] * p[:, 1:d, 1:h, 2:]
    return (out,)


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """Guarded cells are taken one by one; how work is shared out only matters with more than one thread."""
    if int(config["THREADS"]) > device.num_units or (config["THREADS"] == 1 and config["SHARE"] != 0):
        return False
    return config["INNER"] != 0 or (config["PLANES"] == 1 and config["VECTOR_BITS"] == 256)


WORKLOAD = cpp_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        INNER=(0, 1, 2),
        PLANES=(1, 2, 4),
        TILE_Y=(4, 32, 1 << 30),
        TILE_X=(64, 1 << 30),
        SHARE=(0, 1),
        THREADS=(1, 2),
        OPT=(2, 3),
        VECTOR_BITS=(256, 512),
    ),
    default=Config.of(INNER=1, PLANES=1, TILE_Y=32, TILE_X=1 << 30, SHARE=0, THREADS=1, OPT=2, VECTOR_BITS=256),
    make_problem=make_problem,
    problems={
        "cube": {"BATCH": 1, "D": 150, "H": 149, "W": 151},
        "small": {"BATCH": 700, "D": 16, "H": 16, "W": 16},
        "flat": {"BATCH": 1, "D": 3, "H": 1000, "W": 1001},
        "sticks": {"BATCH": 40, "D": 90, "H": 90, "W": 9},
        "plate": {"BATCH": 1, "D": 400, "H": 5, "W": 1500},
    },
    make_inputs=make_inputs,
    reference=reference,
)
