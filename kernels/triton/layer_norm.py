"""Layer norm forward: one read of rows held in registers, or two of blocks with moments merged by Chan's rule."""

import torch
import triton
import triton.language as tl

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload

EPSILON = 1e-5


@triton.jit
def layer_norm_rows(
    x_ptr, w_ptr, b_ptr, y_ptr, mean_ptr, rstd_ptr, rows, columns, epsilon,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WHOLE: tl.constexpr, num_stages: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    real = (row < rows)[:, None]
    start = row.to(tl.int64)[:, None] * columns
    column = tl.arange(0, BLOCK_N)
    if WHOLE:
        known = column < columns
        inside = real & known[None, :]
        x = tl.load(x_ptr + start + column[None, :], mask=inside, other=0.0).to(tl.float32)
        mean = tl.sum(x, 1) / columns
        centred = tl.where(inside, x - mean[:, None], 0.0)
        rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / columns + epsilon)
        w = tl.load(w_ptr + column, mask=known, other=0.0).to(tl.float32)
        b = tl.load(b_ptr + column, mask=known, other=0.0).to(tl.float32)
        y = centred * rstd[:, None] * w[None, :] + b[None, :]
        tl.store(y_ptr + start + column[None, :], y.to(y_ptr.dtype.element_ty), mask=inside)
    else:
        mean = tl.zeros([BLOCK_M], tl.float32)
        squares = tl.zeros([BLOCK_M], tl.float32)  # of the distances from the mean so far
        for first in tl.range(0, columns, BLOCK_N, num_stages=num_stages):
            inside = real & (first + column < columns)[None, :]
            x = tl.load(x_ptr + start + first + column[None, :], mask=inside, other=0.0).to(tl.float32)
            count = tl.minimum(columns - first, BLOCK_N) * 1.0
            total = first + count
            block_mean = tl.sum(x, 1) / count
            centred = tl.where(inside, x - block_mean[:, None], 0.0)
            away = block_mean - mean
            mean += away * (count / total)
            squares += tl.sum(centred * centred, 1) + away * away * (first * (count / total))
        rstd = 1.0 / tl.sqrt(squares / columns + epsilon)
        for first in tl.range(0, columns, BLOCK_N, num_stages=num_stages):
            known = first + column < columns
            inside = real & known[None, :]
            x = tl.load(x_ptr + start + first + column[None, :], mask=inside, other=0.0).to(tl.float32)
            w = tl.load(w_ptr + first + column, mask=known, other=0.0).to(tl.float32)
            b = tl.load(b_ptr + first + column, mask=known, other=0.0).to(tl.float32)
            y = (x - mean[:, None]) * rstd[:, None] * w[None, :] + b[None, :]
            tl.store(y_ptr + start + first + column[None, :], y.to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(mean_ptr + row, mean, mask=row < rows)
    tl.store(rstd_ptr + row, rstd, mask=row < rows)


def make_problem(*, rows: int, columns: int, dtype: str = "bf16") -> Problem:
    """x and y are [rows, columns], w and b [columns], all of one type; mean and rstd are f32 [rows]."""
    if columns < 2 or rows < 1:
        raise UserError(f"got rows={rows},columns={columns}, expected rows from 1 and columns from 2")
    x, w = TensorSpec((rows, columns), dtype), TensorSpec((columns,), dtype)
    moved = tensors.dtype_of(dtype).itemsize * (2 * rows * columns + 2 * columns) + 8 * rows
    params = (("rows", rows), ("columns", columns), ("dtype", dtype))
    return Problem("layer_norm", (x, w, w), params, flops=8 * rows * columns, bytes=moved)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    x, w, b = tensors.normal(problem.inputs, seed)
    return x + 1, w, b  # away from zero, where a variance taken as a difference of squares would lose digits


def outputs_of(problem: Problem) -> tuple[TensorSpec, ...]:
    moment = TensorSpec(problem.inputs[0].shape[:1], "f32")
    return problem.inputs[0], moment, moment


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    x, w, b = (tensor.float() for tensor in inputs)
    mean = x.mean(-1)
    rstd = torch.rsqrt(x.var(-1, correction=0) + EPSILON)
    y = (x - mean[:, None]) * rstd[:, None] * w + b
    return y.to(inputs[0].dtype), mean, rstd


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    rows, columns = inputs[0].shape
    grid = (triton.cdiv(rows, config["BLOCK_M"]),)
    settings = {**config.as_dict(), "WHOLE": config["BLOCK_N"] >= columns}
    return [Launch(layer_norm_rows, grid, (*inputs, *outputs, rows, columns, EPSILON), settings)]


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """At most 128 values a thread, and no thread without one; rows in registers have no loop to pipeline."""
    values = config["BLOCK_M"] * config["BLOCK_N"] / (32 * config["num_warps"])
    whole = config["BLOCK_N"] >= problem["columns"]
    fits = config["BLOCK_N"] <= max(1024, triton.next_power_of_2(problem["columns"]))
    return 1 <= values <= 128 and fits and (config["num_stages"] == 1 or not whole)


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        BLOCK_M=(1, 2, 4, 8, 16),
        BLOCK_N=(256, 512, 1024, 2048, 4096, 8192, 16384),
        num_warps=(1, 2, 4, 8, 16),
        num_stages=(1, 2, 3),
    ),
    default=Config.of(BLOCK_M=1, BLOCK_N=1024, num_warps=4, num_stages=1),
    make_problem=make_problem,
    problems={
        "bert": {"rows": 16384, "columns": 768, "dtype": "f16"},  # short rows: a quarter of a 1024 block is idle
        "gpt": {"rows": 8192, "columns": 4096, "dtype": "bf16"},  # a row fits a block's registers with room to spare
        "wide": {"rows": 2048, "columns": 12288, "dtype": "bf16"},  # a row just fits, or is read twice
        "vision": {"rows": 200704, "columns": 192, "dtype": "f16"},  # patches of images: many rows a block
        "decode": {"rows": 64, "columns": 5120, "dtype": "f32"},  # a step of generation: fewer rows than SMs
    },
    make_inputs=make_inputs,
    outputs=outputs_of,
    reference=reference,
    launch=launch,
    tolerance=4e-3,  # half a unit in the last place of bf16
)
