"""axpy: out = 2 * x + y over n floats; what can be tuned, how it is started, and what the right answer is."""

import triton
import triton.language as tl

from costmodel import tensors
from costmodel.records import Config, Launch, Problem, SearchSpace, TensorSpec
from costmodel.workloads import gpu_workload


@triton.jit
def axpy(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * BLOCK * STEPS
    for step in range(STEPS):
        offset = start + step * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + offset, mask=offset < n)
        y = tl.load(y_ptr + offset, mask=offset < n)
        tl.store(out_ptr + offset, 2.0 * x + y, mask=offset < n)


def make_problem(n):
    tensor = TensorSpec((n,), "f32")
    return Problem("axpy", (tensor, tensor), (("n", n),), flops=2 * n, bytes=12 * n)


def make_inputs(problem, seed):
    return tensors.normal(problem.inputs, seed)


def outputs(problem):
    return (problem.inputs[0],)


def reference(problem, inputs):
    x, y = inputs
    return (2 * x + y,)


def launch(problem, config, inputs, outputs):
    (x, y), (out,) = inputs, outputs
    n = problem["n"]
    grid = (triton.cdiv(n, config["BLOCK"] * config["STEPS"]),)
    return [Launch(axpy, grid, (x, y, out, n), config.as_dict())]


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(BLOCK=[256, 512, 1024, 2048, 4096], STEPS=[1, 2, 4], num_warps=[1, 2, 4, 8]),
    default=Config.of(BLOCK=1024, STEPS=1, num_warps=4),
    make_problem=make_problem,
    problems={"large": {"n": 40_000_000}, "small": {"n": 1_000_003}},
    make_inputs=make_inputs,
    outputs=outputs,
    reference=reference,
    launch=launch,
    tolerance=1e-6,
)
