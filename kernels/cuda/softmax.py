"""Softmax over the last axis in f32: a team of threads a row, in two or three passes, over memory or shared memory."""

import torch

from costmodel import tensors
from costmodel.measure.facts import shared_limit_bytes
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload


def make_problem(*, rows: int, columns: int) -> Problem:
    """x and y are [rows, columns]."""
    if min(rows, columns) < 1:
        raise UserError(f"got rows={rows},columns={columns}, expected both from 1; give positive sizes")
    spec = TensorSpec((rows, columns), "f32")
    size = rows * columns
    return Problem("softmax", (spec,), (("rows", rows), ("columns", columns)), flops=5 * size, bytes=8 * size)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    return tensors.normal(problem.inputs, seed)


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (torch.softmax(inputs[0].double(), -1).float(),)


def kept_bytes(config: Config, columns: int) -> int:
    return 4 * config["TEAMS"] * columns if config["KEEP"] else 0


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    (x,), (y,) = inputs, outputs
    rows, columns = x.shape
    grid, block = (-(-rows // config["TEAMS"]),), (config["TEAM"], config["TEAMS"])
    kept = kept_bytes(config, columns)
    return [Launch("softmax", grid, (x, y, rows, columns), block=block, shared_bytes=kept)]


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """Whole warps; packs do not straddle rows; kept rows fit a block's shared memory with 512
    bytes of sums."""
    count = config["TEAM"] * config["TEAMS"]
    return (
        32 <= count <= 1024
        and problem["columns"] % config["VEC"] == 0
        and kept_bytes(config, problem["columns"]) + 512 <= shared_limit_bytes(device)
    )


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        TEAM=(8, 16, 32, 64, 128, 256, 512, 1024),
        TEAMS=(1, 2, 4, 8, 16, 32),
        VEC=(1, 2, 4),
        KEEP=(0, 1),
        ONLINE=(0, 1),
        FAST=(0, 1),
    ),
    default=Config.of(TEAM=256, TEAMS=1, VEC=1, KEEP=0, ONLINE=0, FAST=0),
    make_problem=make_problem,
    problems={
        "attention": {"rows": 32768, "columns": 1024},  # scores of 32 heads
        "narrow": {"rows": 262144, "columns": 130},  # a row is less than a warp's worth of vectors
        "wide": {"rows": 2048, "columns": 8192},  # several rows of 32 KB fit shared memory
        "few": {"rows": 96, "columns": 4096},  # fewer rows than units
        "vocabulary": {"rows": 512, "columns": 50257},  # odd: no vectors; a row fills a unit's shared memory
    },
    make_inputs=make_inputs,
    outputs=lambda problem: problem.inputs,
    reference=reference,
    launch=launch,
    tolerance=1e-5,
)
