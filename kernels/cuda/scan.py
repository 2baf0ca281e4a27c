"""Running sums of 32-bit integers: sums of parts, sums of those, and each part again, three launches."""

import torch

from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload


def make_problem(*, n: int) -> Problem:
    """x and y are [n]; y[i] is the sum of x[0] to x[i]."""
    if not 1 <= n <= 1 << 30:
        raise UserError(f"got n={n}, expected from 1 to 2^30; give a size that 32-bit indices reach")
    return Problem("scan", (TensorSpec((n,), "i32"),), (("n", n),), flops=n, bytes=8 * n)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    return (torch.randint(-1000, 1000, (problem["n"],), generator=generator, dtype=torch.int32),)


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (inputs[0].cumsum(0, dtype=torch.int64).to(torch.int32),)


def part(config: Config) -> int:
    """The numbers of a block."""
    return config["THREADS"] * config["ITEMS"] * config["ROUNDS"]


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    (x,), (y,) = inputs, outputs
    n, block = problem["n"], (config["THREADS"],)
    blocks = -(-n // part(config))
    sums = torch.empty(blocks, dtype=torch.int32, device=x.device)
    return [
        Launch("sum_parts", (blocks,), (x, sums, n), block=block),
        Launch("scan_sums", (1,), (sums, blocks), block=block),
        Launch("scan_parts", (blocks,), (x, sums, y, n), block=block),
    ]


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """A block's tile fits static shared memory; 32-bit indices reach the end of the last part."""
    step = config["THREADS"] * config["ITEMS"]
    tile = step + step // 32 if config["EXCHANGE"] else 0
    return 4 * (tile + config["THREADS"]) <= 48 << 10 and problem["n"] + part(config) < 1 << 31


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        THREADS=(64, 128, 256, 512, 1024),
        ITEMS=(1, 2, 4, 8, 16),
        ROUNDS=(1, 4, 16),
        EXCHANGE=(0, 1),
        SHUFFLE=(0, 1),
        UNROLL=(1, 4),
    ),
    default=Config.of(THREADS=256, ITEMS=4, ROUNDS=1, EXCHANGE=0, SHUFFLE=0, UNROLL=1),
    make_problem=make_problem,
    problems={
        "large": {"n": 1 << 28},  # a gigabyte: memory alone counts, and x is read twice
        "cached": {"n": 4_000_000},  # the second reading finds x in the second-level cache
        "small": {"n": 70_001},  # three starts count, and large parts leave units idle
        "odd": {"n": 99_999_989},  # a prime: the last part is part empty
    },
    make_inputs=make_inputs,
    outputs=lambda problem: problem.inputs,
    reference=reference,
    launch=launch,
    tolerance=0.0,
)
