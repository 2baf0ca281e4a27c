"""Counting keys: out[k] is the number of keys equal to k."""

from __future__ import annotations

from typing import Any

import numpy as np

from costmodel.records import Config, Device, Problem, SearchSpace, TensorSpec
from costmodel.workloads import cpp_workload, form


def make_problem(*, N: int, BINS: int, SKEW: int) -> Problem:
    """N keys in BINS bins, spread as u ** SKEW for uniform u: 1 is even, larger crowds the first bins."""
    params = (("N", N), ("BINS", BINS), ("SKEW", SKEW))
    return Problem("histogram", (TensorSpec((N,), "i32"),), params, flops=N, bytes=4 * (N + BINS))


def make_inputs(problem: Problem, seed: int) -> tuple[Any, ...]:
    """Keys, i32 (N,), each in [0, BINS)."""
    n, bins, skew = (int(value) for _, value in problem.params)
    keys = np.random.default_rng(seed).random(n) ** skew * bins
    return (np.minimum(keys, bins - 1).astype(np.int32),)


def reference(problem: Problem, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """i32 (BINS,)."""
    return (np.bincount(inputs[0], minlength=int(problem["BINS"])).astype(np.int32),)


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """One private copy has one layout; sharing keys out and merging copies need more than one thread."""
    if config["COPIES"] == 1 and config["INTERLEAVED"] == 1:
        return False
    if config["THREADS"] == 1:
        return config["MERGE"] == 0 and config["DYNAMIC"] == 0
    return int(config["THREADS"]) <= device.num_units


def merge_is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """How copies are merged across threads needs more than one thread."""
    return int(config["THREADS"]) <= device.num_units and (int(config["THREADS"]) > 1 or config["MERGE"] == 0)


WORKLOAD = cpp_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        COPIES=(1, 2, 4, 8),
        INTERLEAVED=(0, 1),
        UNROLL=(1, 2, 4, 8),
        MERGE=(0, 1, 2),
        DYNAMIC=(0, 1),
        THREADS=(1, 2),
        OPT=(2, 3),
    ),
    default=Config.of(COPIES=1, INTERLEAVED=0, UNROLL=1, MERGE=0, DYNAMIC=0, THREADS=1, OPT=2),
    make_problem=make_problem,
    problems={
        "bytes": {"N": 3000000, "BINS": 256, "SKEW": 1},
        "crowded": {"N": 2000000, "BINS": 100, "SKEW": 12},
        "cached": {"N": 2000000, "BINS": 40000, "SKEW": 2},
        "large": {"N": 1200000, "BINS": 1500001, "SKEW": 1},
        "few": {"N": 3000001, "BINS": 3, "SKEW": 1},
    },
    make_inputs=make_inputs,
    reference=reference,
    tolerance=0.0,
)

FORMS = {
    "partitioned": form(
        WORKLOAD,
        "partitioned",
        space=SearchSpace.of(
            merge_is_valid,
            PARTS=(2, 8, 32, 128),
            SLOTS=(8, 32, 128),
            BRANCH=(0, 1),
            COPIES=(1, 2),
            MERGE=(0, 1),
            THREADS=(1, 2),
            OPT=(2, 3),
        ),
        default=Config.of(PARTS=8, SLOTS=32, BRANCH=1, COPIES=1, MERGE=0, THREADS=1, OPT=2),
    ),
    "narrow": form(
        WORKLOAD,
        "narrow",
        space=SearchSpace.of(
            merge_is_valid,
            COUNTER_BITS=(8, 16, 32),
            COPIES=(1, 2, 4),
            UNROLL=(1, 2, 4),
            PAIRS=(0, 1),
            MERGE=(0, 1),
            THREADS=(1, 2),
            OPT=(2, 3),
        ),
        default=Config.of(COUNTER_BITS=16, COPIES=1, UNROLL=1, PAIRS=0, MERGE=0, THREADS=1, OPT=2),
    ),
}
