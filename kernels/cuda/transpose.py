"""Transpose of an f32 matrix: straight, or through a tile in shared memory."""

import torch

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload


def make_problem(*, rows: int, columns: int) -> Problem:
    """x is [rows, columns], y is [columns, rows]."""
    if min(rows, columns) < 1:
        raise UserError(f"got rows={rows},columns={columns}, expected both from 1; give positive sizes")
    spec = TensorSpec((rows, columns), "f32")
    params, size = (("rows", rows), ("columns", columns)), rows * columns
    return Problem("transpose", (spec,), params, flops=size, bytes=8 * size)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    return tensors.normal(problem.inputs, seed)


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (inputs[0].T.contiguous(),)


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    (x,), (y,) = inputs, outputs
    rows, columns = x.shape
    tiles = -(-rows // config["TILE_Y"]) * -(-columns // config["TILE_X"])
    return [Launch("transpose", (tiles,), (x, y, rows, columns), block=(config["BLOCK"],))]


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """Each thread moves 1 to 32 elements; a tile fits static shared memory; what only one way uses is not varied."""
    tile = config["TILE_X"] * config["TILE_Y"]
    return (
        config["BLOCK"] <= tile <= 32 * config["BLOCK"]
        and 4 * config["TILE_Y"] * (config["TILE_X"] + config["PAD"]) <= 48 << 10
        and not (config["SHARED"] and config["READ_ROWS"])
        and not (config["PAD"] and not config["SHARED"])
    )


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        TILE_X=(8, 16, 32, 64, 128),
        TILE_Y=(8, 16, 32, 64, 128),
        BLOCK=(64, 128, 256, 512, 1024),
        SHARED=(0, 1),
        PAD=(0, 1),
        READ_ROWS=(0, 1),
        STREAM=(0, 1),
        BY_COLUMNS=(0, 1),
    ),
    default=Config.of(TILE_X=32, TILE_Y=32, BLOCK=256, SHARED=1, PAD=0, READ_ROWS=0, STREAM=0, BY_COLUMNS=0),
    make_problem=make_problem,
    problems={
        "square": {"rows": 8192, "columns": 8192},  # a quarter of a gigabyte; columns a power of two apart
        "odd": {"rows": 7919, "columns": 10007},  # primes: no row is aligned
        "cached": {"rows": 1024, "columns": 2048},  # both stay in the second-level cache
        "tall": {"rows": 4_000_000, "columns": 12},  # structures to arrays: tiles wider than 12 are part empty
        "wide": {"rows": 24, "columns": 2_000_000},  # arrays to structures
    },
    make_inputs=make_inputs,
    outputs=lambda problem: (TensorSpec((problem["columns"], problem["rows"]), "f32"),),
    reference=reference,
    launch=launch,
    tolerance=0.0,
)
