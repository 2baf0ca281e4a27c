"""Softmax over the last axis: rows held in registers, or read twice in blocks with an online maximum and sum."""

import torch
import triton
import triton.language as tl

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload


@triton.jit
def softmax_rows(
    x_ptr, y_ptr, rows, columns,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STEPS: tl.constexpr, WHOLE: tl.constexpr, num_stages: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK_N)[None, :]
    if WHOLE:
        for step in tl.range(STEPS, num_stages=num_stages):
            row = (tl.program_id(0) * STEPS + step) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
            inside = (row < rows) & (column < columns)
            offset = row.to(tl.int64) * columns + column
            x = tl.load(x_ptr + offset, mask=inside, other=-float("inf")).to(tl.float32)
            x = tl.where(row < rows, x, 0.0)  # a row past the end must not be all -inf
            e = tl.exp(x - tl.max(x, 1)[:, None])
            y = e / tl.sum(e, 1)[:, None]
            tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), mask=inside)
    else:
        row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
        start = row.to(tl.int64) * columns
        largest = tl.full([BLOCK_M], -float("inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        for first in tl.range(0, columns, BLOCK_N, num_stages=num_stages):
            inside = (row < rows) & (first + column < columns)
            x = tl.load(x_ptr + start + first + column, mask=inside, other=-float("inf")).to(tl.float32)
            x = tl.where(row < rows, x, 0.0)
            larger = tl.maximum(largest, tl.max(x, 1))
            total = total * tl.exp(largest - larger) + tl.sum(tl.exp(x - larger[:, None]), 1)
            largest = larger
        scale = 1.0 / total
        for first in tl.range(0, columns, BLOCK_N, num_stages=num_stages):
            inside = (row < rows) & (first + column < columns)
            x = tl.load(x_ptr + start + first + column, mask=inside, other=0.0).to(tl.float32)
            y = tl.exp(x - largest[:, None]) * scale[:, None]
            tl.store(y_ptr + start + first + column, y.to(y_ptr.dtype.element_ty), mask=inside)


def make_problem(*, rows: int, columns: int, dtype: str = "f16") -> Problem:
    """x and y are [rows, columns]."""
    if columns < 1 or rows < 1:
        raise UserError(f"got rows={rows},columns={columns}, expected both from 1")
    spec = TensorSpec((rows, columns), dtype)
    size = tensors.dtype_of(dtype).itemsize
    params = (("rows", rows), ("columns", columns), ("dtype", dtype))
    return Problem("softmax", (spec,), params, flops=5 * rows * columns, bytes=2 * size * rows * columns)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    return tensors.normal(problem.inputs, seed)


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (torch.softmax(inputs[0].float(), -1).to(inputs[0].dtype),)


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    (x,), (y,) = inputs, outputs
    rows, columns = x.shape
    grid = (triton.cdiv(rows, config["BLOCK_M"] * config["STEPS"]),)
    settings = {**config.as_dict(), "WHOLE": config["BLOCK_N"] >= columns}
    return [Launch(softmax_rows, grid, (x, y, rows, columns), settings)]


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """At most 128 values a thread, and no thread without one; only a loop of several trips can be pipelined."""
    values = config["BLOCK_M"] * config["BLOCK_N"] / (32 * config["num_warps"])
    whole = config["BLOCK_N"] >= problem["columns"]
    return (
        1 <= values <= 128
        and config["BLOCK_N"] <= max(1024, triton.next_power_of_2(problem["columns"]))
        and (config["STEPS"] == 1 or whole)
        and (config["num_stages"] == 1 or config["STEPS"] > 1 or not whole)
    )


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        BLOCK_M=(1, 2, 4, 8, 16),
        BLOCK_N=(256, 512, 1024, 2048, 4096, 8192, 16384),
        STEPS=(1, 2, 4, 8),
        num_warps=(1, 2, 4, 8, 16),
        num_stages=(1, 2, 3),
    ),
    default=Config.of(BLOCK_M=1, BLOCK_N=1024, STEPS=1, num_warps=4, num_stages=1),
    make_problem=make_problem,
    problems={
        "attention": {"rows": 32768, "columns": 1024, "dtype": "f16"},  # scores of 32 heads: a row fits a few warps
        "narrow": {"rows": 131072, "columns": 130, "dtype": "f16"},  # a block's power of two wastes half its lanes
        "wide": {"rows": 2048, "columns": 8192, "dtype": "bf16"},  # a row fills a block's registers
        "few": {"rows": 96, "columns": 4096, "dtype": "f32"},  # fewer rows than SMs
        "vocabulary": {"rows": 512, "columns": 50257, "dtype": "f32"},  # no block holds a row, and rows are unaligned
    },
    make_inputs=make_inputs,
    outputs=lambda problem: problem.inputs,
    reference=reference,
    launch=launch,
    tolerance=4e-3,  # half a unit in the last place of bf16
)
