"""Gravity between all pairs of bodies: the softened acceleration of each, for a batch of independent systems.

After Nyland, Harris and Prins, "Fast N-body simulation with CUDA" (GPU Gems 3, chapter 31, 2007).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from costmodel.records import Config, Device, Problem, SearchSpace, TensorSpec
from costmodel.workloads import cpp_workload

SOFTENING = 0.01


def make_problem(*, BATCH: int, N: int) -> Problem:
    """BATCH systems of N bodies; a pair counts as 20 operations."""
    params = (("BATCH", BATCH), ("N", N))
    inputs = (TensorSpec((BATCH, N, 4), "f32"),)
    return Problem("nbody", inputs, params, flops=20 * BATCH * N * N, bytes=4 * 7 * BATCH * N)


def make_inputs(problem: Problem, seed: int) -> tuple[Any, ...]:
    """x, y, z and mass of each body, f32 (BATCH, N, 4)."""
    rng = np.random.default_rng(seed)
    bodies = rng.standard_normal(problem.inputs[0].shape, dtype=np.float32)
    bodies[:, :, 3] = rng.uniform(0.1, 1.0, bodies.shape[:2])
    return (bodies,)


def reference(problem: Problem, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Accelerations, f32 (BATCH, N, 3)."""
    position, mass = inputs[0][:, :, :3], inputs[0][:, :, 3]
    out = np.empty(position.shape, dtype=np.float32)
    chunk = max(1, 2_000_000 // mass.shape[1] ** 2)
    for i in range(0, len(out), chunk):
        p = position[i : i + chunk]
        squares = np.float32(SOFTENING) + np.zeros((len(p), p.shape[1], p.shape[1]), dtype=np.float32)
        for axis in range(3):
            squares += (p[:, None, :, axis] - p[:, :, None, axis]) ** 2
        pull = mass[i : i + chunk, None, :] / (squares * np.sqrt(squares))
        for axis in range(3):
            away = p[:, None, :, axis] - p[:, :, None, axis]
            out[i : i + chunk, :, axis] = np.einsum("bij,bij->bi", pull, away, dtype=np.float64)
    return (out,)


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """Wide vectors ask for a vectorised loop."""
    if int(config["THREADS"]) > device.num_units:
        return False
    return config["SIMD"] == 1 or config["FASTMATH"] == 1 or config["VECTOR_BITS"] == 256


WORKLOAD = cpp_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        LAYOUT=(0, 1),
        BODIES=(1, 2, 4),
        ROOT=(0, 1, 2),
        SIMD=(0, 1),
        THREADS=(1, 2),
        OPT=(2, 3),
        FASTMATH=(0, 1),
        VECTOR_BITS=(256, 512),
    ),
    default=Config.of(LAYOUT=0, BODIES=1, ROOT=0, SIMD=0, THREADS=1, OPT=3, FASTMATH=0, VECTOR_BITS=256),
    make_problem=make_problem,
    problems={
        "one": {"BATCH": 1, "N": 1800},
        "hundreds": {"BATCH": 40, "N": 259},
        "tens": {"BATCH": 2000, "N": 29},
        "few": {"BATCH": 25000, "N": 7},
    },
    make_inputs=make_inputs,
    reference=reference,
    tolerance=2e-4,
)
