"""A fixed small kernel whose time should never change: measured around every block, it shows drift of the machine.

Half arithmetic, half traffic through the second-level cache, so that a slower clock and a busier memory both show.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from costmodel.records import Config, Problem, SearchSpace, TensorSpec
from costmodel.workloads import cpp_workload

SOURCE = """
typedef float vec __attribute__((vector_size(32), aligned(4), may_alias));
constexpr int WIDTH = 8, LANES = 8;

extern "C" void run(void* const* buffers, const long long* sizes) {
    const long n = sizes[0], repeats = sizes[1];
    const float* x = (const float*)buffers[0];
    float* y = (float*)buffers[1];
#pragma omp parallel for num_threads(THREADS) schedule(static)
    for (long start = 0; start < n; start += WIDTH * LANES) {
        vec in[WIDTH], out[WIDTH];
        for (int i = 0; i < WIDTH; ++i) out[i] = in[i] = *(const vec*)(x + start + i * LANES);
        for (long r = 0; r < repeats; ++r)
            for (int i = 0; i < WIDTH; ++i) out[i] = out[i] * 0.5f + in[i];
        for (int i = 0; i < WIDTH; ++i) *(vec*)(y + start + i * LANES) = out[i];
    }
}
"""


def make_problem(*, N: int, REPEATS: int) -> Problem:
    flops = 2 * N * REPEATS
    return Problem("sentinel", (TensorSpec((N,), "f32"),), (("N", N), ("REPEATS", REPEATS)), flops, 8 * N)


def make_inputs(problem: Problem, seed: int) -> tuple[Any, ...]:
    return (np.random.default_rng(seed).random(int(problem["N"]), dtype=np.float32),)


def reference(problem: Problem, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """y_0 = x, y_r = y_(r-1) / 2 + x, so y_R = x (2 - 2^-R)."""
    return (inputs[0] * np.float32(2.0 - 2.0 ** -float(problem["REPEATS"])),)


WORKLOAD = cpp_workload(
    __file__,
    space=SearchSpace.of(THREADS=(1, 2)),
    default=Config.of(THREADS=1),
    make_problem=make_problem,
    problems={"only": {"N": 1 << 16, "REPEATS": 384}},
    make_inputs=make_inputs,
    reference=reference,
    source=SOURCE,
)
