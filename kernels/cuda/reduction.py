"""The sum of the squares of an array of f32 (what clipping by the norm needs): in two launches, or atomic."""

import torch

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload


def make_problem(*, n: int) -> Problem:
    """x is [n], out is [1]."""
    if not 1 <= n < 1 << 30:
        raise UserError(f"got n={n}, expected from 1 to 2^30 - 1; give a size that 32-bit indices reach")
    return Problem("sum_of_squares", (TensorSpec((n,), "f32"),), (("n", n),), flops=2 * n, bytes=4 * n + 4)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    return tensors.normal(problem.inputs, seed)


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (inputs[0].double().square().sum().float().reshape(1),)


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    (x,), (out,) = inputs, outputs
    blocks, n, block = config["BLOCKS"], problem["n"], (config["THREADS"],)
    if config["ATOMIC"]:
        return [Launch("clear", (1,), (out,), block=(1,)), Launch("sum_parts", (blocks,), (x, out, n), block=block)]
    parts = torch.empty(blocks, dtype=torch.float32, device=x.device)
    return [
        Launch("sum_parts", (blocks,), (x, parts, n), block=block),
        Launch("sum_sums", (1,), (parts, out, blocks), block=block),
    ]


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """Indices stay below 2^31: the last stride may reach that far beyond the end."""
    reach = config["BLOCKS"] * config["THREADS"] * config["UNROLL"]
    return problem["n"] // config["VEC"] + reach < 1 << 31


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        THREADS=(64, 128, 256, 512, 1024),
        BLOCKS=(32, 128, 256, 512, 1024, 4096),
        VEC=(1, 2, 4),
        UNROLL=(1, 2, 4, 8),
        SHUFFLE=(0, 1),
        ATOMIC=(0, 1),
    ),
    default=Config.of(THREADS=256, BLOCKS=256, VEC=1, UNROLL=1, SHUFFLE=0, ATOMIC=0),
    make_problem=make_problem,
    problems={
        "large": {"n": 1 << 28},  # a gigabyte: memory alone counts
        "cached": {"n": 4_000_000},  # stays in the second-level cache
        "small": {"n": 65_537},  # starting the kernels counts, and few blocks have work
        "odd": {"n": 99_999_989},  # a prime: something is left behind the last pack
    },
    make_inputs=make_inputs,
    outputs=lambda problem: (TensorSpec((1,), "f32"),),
    reference=reference,
    launch=launch,
    tolerance=1e-5,  # each thread adds thousands of positive numbers in f32
)
