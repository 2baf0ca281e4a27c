"""RMS norm backward: a block of rows goes twice over the columns, for its sums and then for dx and a share of dw."""

import torch
import triton
import triton.language as tl

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload

EPSILON = 1e-6


@triton.jit
def rms_norm_backward_rows(
    dy_ptr, x_ptr, w_ptr, rstd_ptr, dx_ptr, dw_part_ptr, rows, columns,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, num_stages: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    start = row.to(tl.int64)[:, None] * columns
    rstd = tl.load(rstd_ptr + row, mask=row < rows, other=0.0)[:, None]
    along = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in tl.range(0, columns, BLOCK_N, num_stages=num_stages):
        column = first + tl.arange(0, BLOCK_N)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        dy = tl.load(dy_ptr + start + column[None, :], mask=inside, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + start + column[None, :], mask=inside, other=0.0).to(tl.float32)
        w = tl.load(w_ptr + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
        along += dy * w * x
    share = (tl.sum(along, 1) / columns)[:, None] * rstd * rstd
    for first in tl.range(0, columns, BLOCK_N, num_stages=num_stages):  # the rows come from L2 this time
        column = first + tl.arange(0, BLOCK_N)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        dy = tl.load(dy_ptr + start + column[None, :], mask=inside, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + start + column[None, :], mask=inside, other=0.0).to(tl.float32)
        w = tl.load(w_ptr + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
        dx = (dy * w - x * share) * rstd
        tl.store(dx_ptr + start + column[None, :], dx.to(dx_ptr.dtype.element_ty), mask=inside)
        part = tl.program_id(0).to(tl.int64) * columns + column
        tl.store(dw_part_ptr + part, tl.sum(dy * x * rstd, 0), mask=column < columns)


@triton.jit
def add_parts(dw_part_ptr, dw_ptr, parts, columns, REDUCE_M: tl.constexpr, REDUCE_N: tl.constexpr):
    column = tl.program_id(0) * REDUCE_N + tl.arange(0, REDUCE_N)
    dw = tl.zeros([REDUCE_M, REDUCE_N], tl.float32)
    for first in range(0, parts, REDUCE_M):
        part = first + tl.arange(0, REDUCE_M)
        inside = (part < parts)[:, None] & (column < columns)[None, :]
        dw += tl.load(dw_part_ptr + part.to(tl.int64)[:, None] * columns + column[None, :], mask=inside, other=0.0)
    tl.store(dw_ptr + column, tl.sum(dw, 0).to(dw_ptr.dtype.element_ty), mask=column < columns)


def make_problem(*, rows: int, columns: int, dtype: str = "bf16") -> Problem:
    """dy, x and dx are [rows, columns], w and dw [columns], of one type; rstd is f32 [rows]."""
    if columns < 1 or rows < 1:
        raise UserError(f"got rows={rows},columns={columns}, expected both from 1")
    x, w, rstd = TensorSpec((rows, columns), dtype), TensorSpec((columns,), dtype), TensorSpec((rows,), "f32")
    moved = tensors.dtype_of(dtype).itemsize * (3 * rows * columns + 2 * columns) + 4 * rows
    params = (("rows", rows), ("columns", columns), ("dtype", dtype))
    return Problem("rms_norm_backward", (x, x, w, rstd), params, flops=10 * rows * columns, bytes=moved)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    dy, x, w = tensors.normal(problem.inputs[:3], seed)
    return dy, x, w, torch.rsqrt(x.float().square().mean(-1) + EPSILON)


def outputs_of(problem: Problem) -> tuple[TensorSpec, ...]:
    _, x, w, _ = problem.inputs
    return x, w


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    dy, x, w, rstd = (tensor.float() for tensor in inputs)
    unit = x * rstd[:, None]
    dx = (dy * w - unit * (dy * w * unit).mean(-1, keepdim=True)) * rstd[:, None]
    kind = inputs[1].dtype
    return dx.to(kind), (dy * unit).sum(0).to(kind)


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    dx, dw = outputs
    rows, columns = dx.shape
    parts = triton.cdiv(rows, config["BLOCK_M"])
    dw_part = torch.empty(parts, columns, dtype=torch.float32, device=dx.device)
    rows_settings = {name: config[name] for name in ("BLOCK_M", "BLOCK_N", "num_warps", "num_stages")}
    sums_settings = {"REDUCE_M": 64, "REDUCE_N": config["REDUCE_N"], "num_warps": 4}
    sums_grid = (triton.cdiv(columns, config["REDUCE_N"]),)
    return [
        Launch(rms_norm_backward_rows, (parts,), (*inputs, dx, dw_part, rows, columns), rows_settings),
        Launch(add_parts, sums_grid, (dw_part, dw, parts, columns), sums_settings),
    ]


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """From 2 to 64 values a thread; a block no wider than the row; a loop of one trip has nothing to pipeline."""
    values = config["BLOCK_M"] * config["BLOCK_N"] / (32 * config["num_warps"])
    width = triton.next_power_of_2(problem["columns"])
    pipelined = config["num_stages"] == 1 or config["BLOCK_N"] < width
    return 2 <= values <= 64 and config["BLOCK_N"] <= width and pipelined


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        BLOCK_M=(4, 8, 16, 32),
        BLOCK_N=(64, 128, 256, 512, 1024),
        REDUCE_N=(16, 64),
        num_warps=(2, 4, 8, 16),
        num_stages=(1, 2, 3),
    ),
    default=Config.of(BLOCK_M=8, BLOCK_N=128, REDUCE_N=16, num_warps=4, num_stages=1),
    make_problem=make_problem,
    problems={
        "prefill": {"rows": 8192, "columns": 4096, "dtype": "bf16"},  # a training step of an 8B model
        "wide": {"rows": 4096, "columns": 8192, "dtype": "bf16"},  # longer rows: the second read misses L1
        "heads": {"rows": 262144, "columns": 128, "dtype": "f16"},  # head norms: partial sums are a share of traffic
        "few": {"rows": 512, "columns": 5120, "dtype": "f32"},  # few blocks of rows: a choice between SMs and scratch
        "ragged": {"rows": 10000, "columns": 2880, "dtype": "f16"},  # neither size is a power of two
    },
    make_inputs=make_inputs,
    outputs=outputs_of,
    reference=reference,
    launch=launch,
    tolerance=4e-3,  # half a unit in the last place of bf16
)
