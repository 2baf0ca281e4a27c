"""Softmax over the last axis: one row, or a few, in the registers of a block."""

import torch
import triton
import triton.language as tl

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload


@triton.jit
def softmax_rows(x_ptr, y_ptr, rows, columns, ROWS: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    column = tl.arange(0, BLOCK)
    for step in range(STEPS):
        row = (tl.program_id(0) * STEPS + step) * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        offset = row.to(tl.int64)[:, None] * columns + column[None, :]
        x = tl.load(x_ptr + offset, mask=inside, other=-float("inf")).to(tl.float32)
        x = tl.where((row < rows)[:, None], x, 0.0)  # a row past the end must not be all -inf
        e = tl.exp(x - tl.max(x, 1)[:, None])
        y = e / tl.sum(e, 1)[:, None]
        tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), mask=inside)


def make_problem(*, rows: int, columns: int, dtype: str = "f16") -> Problem:
    """x and y are [rows, columns]; columns from 1 to 32768."""
    if not 1 <= columns <= 32768 or rows < 1:
        raise UserError(f"got rows={rows},columns={columns}, expected rows from 1 and columns from 1 to 32768")
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
    settings = {**config.as_dict(), "BLOCK": triton.next_power_of_2(columns)}
    grid = (triton.cdiv(rows, config["ROWS"] * config["STEPS"]),)
    return [Launch(softmax_rows, grid, (x, y, rows, columns), settings)]


def fits_registers(config: Config, problem: Problem, device: Device) -> bool:
    """At most 128 values a thread, and no thread without one."""
    values = config["ROWS"] * triton.next_power_of_2(problem["columns"]) / (32 * config["num_warps"])
    return 1 <= values <= 128


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        fits_registers, ROWS=(1, 2, 4, 8, 16), STEPS=(1, 2, 4, 8), num_warps=(1, 2, 4, 8, 16), num_stages=(1, 2, 3)
    ),
    default=Config.of(ROWS=1, STEPS=1, num_warps=4, num_stages=2),
    make_problem=make_problem,
    problems={
        "attention": {"rows": 32768, "columns": 1024, "dtype": "f16"},  # scores of 32 heads: one row a warp group
        "narrow": {"rows": 131072, "columns": 130, "dtype": "f16"},  # a block's power of two wastes half its lanes
        "wide": {"rows": 2048, "columns": 8192, "dtype": "bf16"},  # a row fills a block's registers
        "few": {"rows": 96, "columns": 4096, "dtype": "f32"},  # fewer rows than SMs
    },
    make_inputs=make_inputs,
    outputs=lambda problem: problem.inputs,
    reference=reference,
    launch=launch,
    tolerance=2e-3,
)
