"""Gravity of n bodies on each other in f32, all pairs: bodies read through the cache or shared, whole or split."""

import torch

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload

SOFTENING_SQUARED = 1e-2


def make_problem(*, n: int) -> Problem:
    """Bodies are [n, 4]: x, y, z and mass; the output is [n, 3], their accelerations."""
    if not 1 <= n <= 1 << 24:
        raise UserError(f"got n={n}, expected from 1 to 2^24; give fewer bodies")
    return Problem("nbody", (TensorSpec((n, 4), "f32"),), (("n", n),), flops=20 * n * n, bytes=28 * n)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    (bodies,) = tensors.normal(problem.inputs, seed)
    bodies[:, 3].abs_()
    return (bodies,)


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    bodies = inputs[0].double()
    place, mass = bodies[:, :3], bodies[:, 3]
    pulls = []
    for some in place.split(max(1, (1 << 22) // len(place))):  # a few at a time: all pairs need much memory
        away = place[None] - some[:, None]
        squared = away.square().sum(-1) + SOFTENING_SQUARED
        pulls.append(torch.einsum("ij,ijk->ik", mass * squared**-1.5, away))
    return (torch.cat(pulls).float(),)


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    (bodies,), (out,) = inputs, outputs
    n, threads, split = problem["n"], config["THREADS"], config["SPLIT"]
    grid = (-(-n // (threads * config["PER_THREAD"])), split)
    start = Launch("nbody", grid, (bodies, out, n), block=(threads,))
    if split == 1:
        return [start]
    return [Launch("clear", (-(-3 * n // threads),), (out, 3 * n), block=(threads,)), start]


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """The blocks that a unit is asked to hold fit it."""
    return config["THREADS"] * config["MIN_BLOCKS"] <= dict(device.details)["max_threads_per_unit"]


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        THREADS=(64, 128, 256, 512),
        PER_THREAD=(1, 2, 4),
        SHARED=(0, 1),
        SPLIT=(1, 4, 16),
        UNROLL=(1, 4, 16),
        RSQRT=(0, 1),
        MIN_BLOCKS=(1, 2, 4),
    ),
    default=Config.of(THREADS=256, PER_THREAD=1, SHARED=0, SPLIT=1, UNROLL=1, RSQRT=0, MIN_BLOCKS=1),
    make_problem=make_problem,
    problems={
        "large": {"n": 131072},  # arithmetic alone counts
        "middle": {"n": 32768},  # 128 blocks of 256: just under one for each unit
        "small": {"n": 4096},  # 16 blocks: units idle unless the work is split
        "odd": {"n": 20011},  # a prime: the last block and the last tile are part empty
    },
    make_inputs=make_inputs,
    outputs=lambda problem: (TensorSpec((problem["n"], 3), "f32"),),
    reference=reference,
    launch=launch,
    tolerance=1e-4,  # close pairs pull hard, and each sum has n terms in f32
)
