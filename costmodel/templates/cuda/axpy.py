"""axpy: what can be tuned, on which sizes, how it is started, and what the right answer is."""

from costmodel import tensors
from costmodel.records import Config, Launch, Problem, SearchSpace, TensorSpec
from costmodel.workloads import gpu_workload


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
    items = n // config["WIDTH"] + n % config["WIDTH"]
    blocks = -(-items // (config["THREADS"] * config["PER_THREAD"]))
    return [Launch("axpy", (blocks,), (x, y, out, n), block=(config["THREADS"],))]


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(THREADS=[64, 128, 256, 512, 1024], PER_THREAD=[1, 2, 4, 8], WIDTH=[1, 2, 4]),
    default=Config.of(THREADS=256, PER_THREAD=1, WIDTH=1),
    make_problem=make_problem,
    problems={"large": {"n": 40_000_000}, "small": {"n": 1_000_003}},
    make_inputs=make_inputs,
    outputs=outputs,
    reference=reference,
    launch=launch,
    tolerance=1e-6,
)
