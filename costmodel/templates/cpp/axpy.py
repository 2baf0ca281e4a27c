"""axpy: what can be tuned, on which sizes, and what the right answer is."""

import numpy as np

from costmodel.records import Config, Problem, SearchSpace, TensorSpec
from costmodel.workloads import cpp_workload


def make_problem(n):
    tensor = TensorSpec((n,), "f32")
    return Problem("axpy", (tensor, tensor), (("n", n),), flops=2 * n, bytes=12 * n)


def make_inputs(problem, seed):
    rng = np.random.default_rng(seed)
    n = problem["n"]
    return rng.standard_normal(n, dtype=np.float32), rng.standard_normal(n, dtype=np.float32)


def reference(problem, inputs):
    x, y = inputs
    return (2 * x + y,)


def is_valid(config, problem, device):
    return config["THREADS"] <= device.num_units and config["UNROLL"] <= config["CHUNK"]


WORKLOAD = cpp_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        CHUNK=[256, 1024, 4096, 16384],
        UNROLL=[1, 2, 4, 8],
        OPT=[2, 3],
        VECTOR_BITS=[128, 256, 512],
        THREADS=[1, 2],
    ),
    default=Config.of(CHUNK=1024, UNROLL=1, OPT=2, VECTOR_BITS=256, THREADS=1),
    make_problem=make_problem,
    problems={"large": {"n": 4_000_000}, "small": {"n": 100_003}},
    make_inputs=make_inputs,
    reference=reference,
    tolerance=1e-5,
)
