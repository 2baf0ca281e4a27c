"""Transposition through tiles: rows are read in order, columns written in order, shared memory turns the tile."""

import torch
import triton
import triton.language as tl

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload


@triton.jit
def transpose_tiles(x_ptr, y_ptr, rows, columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    # GROUP_M tiles go down before the next column of tiles: both sides then touch few DRAM pages at a time
    down, across = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    first = tl.program_id(0) // (GROUP_M * across) * GROUP_M
    height = tl.minimum(down - first, GROUP_M)
    place = tl.program_id(0) % (GROUP_M * across)
    row = (first + place % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = place // height * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    x = tl.load(x_ptr + row.to(tl.int64)[:, None] * columns + column[None, :], mask=inside)
    turned = (column < columns)[:, None] & (row < rows)[None, :]
    tl.store(y_ptr + column.to(tl.int64)[:, None] * rows + row[None, :], tl.trans(x), mask=turned)


def make_problem(*, rows: int, columns: int, dtype: str = "f32") -> Problem:
    """x is [rows, columns], y [columns, rows]."""
    if columns < 1 or rows < 1:
        raise UserError(f"got rows={rows},columns={columns}, expected both from 1")
    moved = 2 * tensors.dtype_of(dtype).itemsize * rows * columns
    params = (("rows", rows), ("columns", columns), ("dtype", dtype))
    spec = TensorSpec((rows, columns), dtype)
    # nothing is computed but addresses: one addition an element
    return Problem("transpose", (spec,), params, flops=rows * columns, bytes=moved)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    return tensors.normal(problem.inputs, seed)


def outputs_of(problem: Problem) -> tuple[TensorSpec, ...]:
    return (TensorSpec(problem.inputs[0].shape[::-1], problem.inputs[0].dtype),)


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (inputs[0].T.contiguous(),)


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    (x,), (y,) = inputs, outputs
    rows, columns = x.shape
    grid = (triton.cdiv(rows, config["BLOCK_M"]) * triton.cdiv(columns, config["BLOCK_N"]),)
    return [Launch(transpose_tiles, grid, (x, y, rows, columns), config.as_dict())]


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """From 2 to 128 values a thread, and a tile no larger than the matrix needs."""
    values = config["BLOCK_M"] * config["BLOCK_N"] / (32 * config["num_warps"])
    return (
        2 <= values <= 128
        and config["BLOCK_M"] <= triton.next_power_of_2(problem["rows"])
        and config["BLOCK_N"] <= triton.next_power_of_2(problem["columns"])
    )


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        BLOCK_M=(8, 16, 32, 64, 128, 256),
        BLOCK_N=(8, 16, 32, 64, 128, 256),
        GROUP_M=(1, 4, 16),
        num_warps=(1, 2, 4, 8, 16),
    ),
    default=Config.of(BLOCK_M=32, BLOCK_N=32, GROUP_M=1, num_warps=4),
    make_problem=make_problem,
    problems={
        "square": {"rows": 8192, "columns": 8192, "dtype": "f32"},  # strides of powers of two meet the same channels
        "ragged": {"rows": 10_007, "columns": 5_003, "dtype": "f32"},  # odd sizes: neither side is aligned
        "half": {"rows": 16384, "columns": 4096, "dtype": "f16"},  # two bytes an element: wider tiles for a sector
        "tall": {"rows": 1_000_000, "columns": 60, "dtype": "f32"},  # a table to columns: one tile across
        "small": {"rows": 1024, "columns": 768, "dtype": "bf16"},  # all in L2, few tiles
    },
    make_inputs=make_inputs,
    outputs=outputs_of,
    reference=reference,
    launch=launch,
    tolerance=0.0,
)
