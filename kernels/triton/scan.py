"""Cumulative sum over the last axis: blocks chained within a row, and rows split in parts whose sums go first."""

import torch
import triton
import triton.language as tl

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload


@triton.jit
def sum_parts(
    x_ptr, sums_ptr, rows, columns, part_columns,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr, INTEGER: tl.constexpr, num_stages: tl.constexpr,
):  # fmt: skip
    kind = tl.int32 if INTEGER else tl.float32
    part = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    start = row.to(tl.int64)[:, None] * columns
    end = tl.minimum((part + 1) * part_columns, columns)
    total = tl.zeros([BLOCK_M, BLOCK_N], kind)
    for first in tl.range(part * part_columns, end, BLOCK_N, num_stages=num_stages):
        column = first + tl.arange(0, BLOCK_N)
        inside = (row < rows)[:, None] & (column < end)[None, :]
        total += tl.load(x_ptr + start + column[None, :], mask=inside, other=0).to(kind)
    tl.store(sums_ptr + row * SPLIT + part, tl.sum(total, 1), mask=row < rows)


@triton.jit
def scan_parts(
    x_ptr, sums_ptr, y_ptr, rows, columns, part_columns,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr, INTEGER: tl.constexpr, num_stages: tl.constexpr,
):  # fmt: skip
    kind = tl.int32 if INTEGER else tl.float32
    part = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    start = row.to(tl.int64)[:, None] * columns
    end = tl.minimum((part + 1) * part_columns, columns)
    before = tl.zeros([BLOCK_M], kind)
    if SPLIT > 1:
        earlier = tl.arange(0, SPLIT)[None, :]
        known = (row < rows)[:, None] & (earlier < part)
        before = tl.sum(tl.load(sums_ptr + row[:, None] * SPLIT + earlier, mask=known, other=0), 1)
    for first in tl.range(part * part_columns, end, BLOCK_N, num_stages=num_stages):
        column = first + tl.arange(0, BLOCK_N)
        inside = (row < rows)[:, None] & (column < end)[None, :]
        x = tl.load(x_ptr + start + column[None, :], mask=inside, other=0).to(kind)
        y = tl.cumsum(x, 1) + before[:, None]
        tl.store(y_ptr + start + column[None, :], y.to(y_ptr.dtype.element_ty), mask=inside)
        # not `before += tl.sum(x, 1)`: where BLOCK_M is 1, Triton's pass for sums in loops asserts on that (3.7.1)
        before = tl.sum(tl.where((tl.arange(0, BLOCK_N) == BLOCK_N - 1)[None, :], y, 0), 1)


def make_problem(*, rows: int, columns: int, dtype: str = "f32") -> Problem:
    """x and y are [rows, columns], summed in f32, or in i32 where they are i32."""
    if columns < 1 or rows < 1:
        raise UserError(f"got rows={rows},columns={columns}, expected both from 1")
    spec = TensorSpec((rows, columns), dtype)
    moved = 2 * tensors.dtype_of(dtype).itemsize * rows * columns
    params = (("rows", rows), ("columns", columns), ("dtype", dtype))
    return Problem("scan", (spec,), params, flops=rows * columns, bytes=moved)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    """Standard normal values, or counts from 0 to 9."""
    (spec,) = problem.inputs
    if spec.dtype != "i32":
        return tensors.normal(problem.inputs, seed)
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    return (torch.randint(10, spec.shape, generator=generator, dtype=torch.int32),)


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    (x,) = inputs
    return (x.cumsum(-1, dtype=torch.float64 if x.is_floating_point() else torch.int64).to(x.dtype),)


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    (x,), (y,) = inputs, outputs
    (rows, columns), parts = x.shape, config["SPLIT"]
    integer = not x.dtype.is_floating_point
    settings = {**config.as_dict(), "INTEGER": integer}
    sums = torch.empty(rows, parts, dtype=torch.int32 if integer else torch.float32, device=x.device)
    part_columns = triton.cdiv(triton.cdiv(columns, parts), config["BLOCK_N"]) * config["BLOCK_N"]
    grid = (triton.cdiv(rows, config["BLOCK_M"]), parts)
    scan = Launch(scan_parts, grid, (x, sums, y, rows, columns, part_columns), settings)
    return [Launch(sum_parts, grid, (x, sums, rows, columns, part_columns), settings), scan] if parts > 1 else [scan]


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """From 1 to 64 values a thread; blocks no wider than a part; a loop of one trip has nothing to pipeline."""
    values = config["BLOCK_M"] * config["BLOCK_N"] / (32 * config["num_warps"])
    part = triton.next_power_of_2(triton.cdiv(problem["columns"], config["SPLIT"]))
    return (
        1 <= values <= 64
        and config["BLOCK_N"] <= part
        and config["BLOCK_M"] <= problem["rows"]
        and (config["num_stages"] == 1 or config["BLOCK_N"] < part)
    )


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        BLOCK_M=(1, 2, 4, 8),
        BLOCK_N=(128, 256, 512, 1024, 2048, 4096),
        SPLIT=(1, 4, 16, 64),
        num_warps=(1, 2, 4, 8),
        num_stages=(1, 2, 3),
    ),
    default=Config.of(BLOCK_M=1, BLOCK_N=512, SPLIT=1, num_warps=4, num_stages=1),
    make_problem=make_problem,
    problems={
        "tokens": {"rows": 4096, "columns": 8192, "dtype": "f32"},  # rows enough for every SM: no split is needed
        "probabilities": {"rows": 64, "columns": 128256, "dtype": "f32"},  # sampling by inverse CDF: few long rows
        "offsets": {"rows": 1, "columns": 16_777_216, "dtype": "i32"},  # the offsets of a compaction: one row
        "short": {"rows": 200_000, "columns": 500, "dtype": "f16"},  # a row is one block
        "ragged": {"rows": 1000, "columns": 30_001, "dtype": "f16"},  # an odd width: rows are not aligned
    },
    make_inputs=make_inputs,
    outputs=lambda problem: problem.inputs,
    reference=reference,
    launch=launch,
    tolerance=1e-3,  # f16 outputs
)
