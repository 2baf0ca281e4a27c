"""Layer norm backward: dx row by row; dw and db as partial sums of persistent programs, added up by a second kernel."""

import torch
import triton
import triton.language as tl

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload

EPSILON = 1e-5


@triton.jit
def layer_norm_backward_rows(
    dy_ptr, x_ptr, w_ptr, mean_ptr, rstd_ptr, dx_ptr, dw_part_ptr, db_part_ptr, rows, columns,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, num_stages: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK_N)
    known = column < columns
    w = tl.load(w_ptr + column, mask=known, other=0.0).to(tl.float32)[None, :]
    dw = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    db = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    # neighbouring programs take neighbouring rows, so that open DRAM pages are shared
    for first in tl.range(tl.program_id(0) * BLOCK_M, rows, tl.num_programs(0) * BLOCK_M, num_stages=num_stages):
        row = first + tl.arange(0, BLOCK_M)
        inside = (row < rows)[:, None] & known[None, :]
        offset = row.to(tl.int64)[:, None] * columns + column[None, :]
        dy = tl.load(dy_ptr + offset, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + offset, mask=inside, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + row, mask=row < rows, other=0.0)[:, None]
        rstd = tl.load(rstd_ptr + row, mask=row < rows, other=0.0)[:, None]
        unit = tl.where(inside, (x - mean) * rstd, 0.0)
        scaled = dy * w
        along_unit = (tl.sum(scaled * unit, 1) / columns)[:, None]
        along_one = (tl.sum(scaled, 1) / columns)[:, None]
        dx = (scaled - unit * along_unit - along_one) * rstd
        tl.store(dx_ptr + offset, dx.to(dx_ptr.dtype.element_ty), mask=inside)
        dw += dy * unit
        db += dy
    part = tl.program_id(0).to(tl.int64) * columns + column
    tl.store(dw_part_ptr + part, tl.sum(dw, 0), mask=known)
    tl.store(db_part_ptr + part, tl.sum(db, 0), mask=known)


@triton.jit
def add_parts(dw_part_ptr, db_part_ptr, dw_ptr, db_ptr, parts, columns, REDUCE_M: tl.constexpr, REDUCE_N: tl.constexpr):
    column = tl.program_id(0) * REDUCE_N + tl.arange(0, REDUCE_N)
    dw = tl.zeros([REDUCE_M, REDUCE_N], tl.float32)
    db = tl.zeros([REDUCE_M, REDUCE_N], tl.float32)
    for first in range(0, parts, REDUCE_M):
        part = first + tl.arange(0, REDUCE_M)
        inside = (part < parts)[:, None] & (column < columns)[None, :]
        offset = part.to(tl.int64)[:, None] * columns + column[None, :]
        dw += tl.load(dw_part_ptr + offset, mask=inside, other=0.0)
        db += tl.load(db_part_ptr + offset, mask=inside, other=0.0)
    tl.store(dw_ptr + column, tl.sum(dw, 0).to(dw_ptr.dtype.element_ty), mask=column < columns)
    tl.store(db_ptr + column, tl.sum(db, 0).to(db_ptr.dtype.element_ty), mask=column < columns)


def make_problem(*, rows: int, columns: int, dtype: str = "bf16") -> Problem:
    """dy, x and dx are [rows, columns], w, dw and db [columns], of one type; mean and rstd are f32 [rows]."""
    if not 2 <= columns <= 16384 or rows < 1:
        raise UserError(f"got rows={rows},columns={columns}, expected rows from 1 and columns from 2 to 16384")
    x, w, moment = TensorSpec((rows, columns), dtype), TensorSpec((columns,), dtype), TensorSpec((rows,), "f32")
    moved = tensors.dtype_of(dtype).itemsize * (3 * rows * columns + 3 * columns) + 8 * rows
    params = (("rows", rows), ("columns", columns), ("dtype", dtype))
    return Problem("layer_norm_backward", (x, x, w, moment, moment), params, flops=14 * rows * columns, bytes=moved)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    dy, x, w = tensors.normal(problem.inputs[:3], seed)
    mean = x.float().mean(-1)
    return dy, x, w, mean, torch.rsqrt(x.float().var(-1, correction=0) + EPSILON)


def outputs_of(problem: Problem) -> tuple[TensorSpec, ...]:
    _, x, w, _, _ = problem.inputs
    return x, w, w


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    dy, x, w, mean, rstd = (tensor.float() for tensor in inputs)
    unit = (x - mean[:, None]) * rstd[:, None]
    scaled = dy * w
    dx = (scaled - unit * (scaled * unit).mean(-1, keepdim=True) - scaled.mean(-1, keepdim=True)) * rstd[:, None]
    kind = inputs[1].dtype
    return dx.to(kind), (dy * unit).sum(0).to(kind), dy.sum(0).to(kind)


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    dx, dw, db = outputs
    rows, columns = dx.shape
    parts = config["PROGRAMS"]
    dw_part, db_part = (torch.empty(parts, columns, dtype=torch.float32, device=dx.device) for _ in range(2))
    rows_settings = {
        "BLOCK_M": config["BLOCK_M"],
        "BLOCK_N": triton.next_power_of_2(columns),
        "num_warps": config["num_warps"],
        "num_stages": config["num_stages"],
    }
    sums_settings = {"REDUCE_M": 32, "REDUCE_N": config["REDUCE_N"], "num_warps": 4}
    sums_grid = (triton.cdiv(columns, config["REDUCE_N"]),)
    return [
        Launch(layer_norm_backward_rows, (parts,), (*inputs, dx, dw_part, db_part, rows, columns), rows_settings),
        Launch(add_parts, sums_grid, (dw_part, db_part, dw, db, parts, columns), sums_settings),
    ]


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """At most 64 values a thread of each of the five arrays it holds, and rows for every program."""
    values = config["BLOCK_M"] * triton.next_power_of_2(problem["columns"]) / (32 * config["num_warps"])
    return 1 <= values <= 64 and config["PROGRAMS"] * config["BLOCK_M"] <= problem["rows"]


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        BLOCK_M=(1, 2, 4, 8),
        PROGRAMS=(132, 264, 528, 1056),
        REDUCE_N=(16, 64),
        num_warps=(1, 2, 4, 8, 16),
        num_stages=(1, 2, 3),
    ),
    default=Config.of(BLOCK_M=1, PROGRAMS=264, REDUCE_N=16, num_warps=8, num_stages=1),
    make_problem=make_problem,
    problems={
        "bert": {"rows": 16384, "columns": 768, "dtype": "f16"},  # short rows: several fit a block
        "gpt": {"rows": 8192, "columns": 4096, "dtype": "bf16"},  # the partial sums are small beside the rows
        "wide": {"rows": 2048, "columns": 8192, "dtype": "bf16"},  # registers decide how many programs an SM holds
        "few": {"rows": 1024, "columns": 1600, "dtype": "f32"},  # the second kernel and the launches count
        "vision": {"rows": 200704, "columns": 384, "dtype": "f16"},  # patches of images: hundreds of rows a program
    },
    make_inputs=make_inputs,
    outputs=outputs_of,
    reference=reference,
    launch=launch,
    tolerance=4e-3,  # half a unit in the last place of bf16
)
