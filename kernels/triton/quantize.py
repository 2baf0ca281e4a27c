"""Quantization of each row to int8 by its largest magnitude: the row in registers, or read twice in blocks."""

import torch
import triton
import triton.language as tl

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload


@triton.jit
def to_int8(x, scale):
    # IEEE division, and half to even by the addition of 1.5 * 2^23: bit for bit what round(x / scale) is elsewhere
    rounded = (tl.div_rn(x, scale) + 12582912.0) - 12582912.0
    return rounded.to(tl.int8)


@triton.jit
def quantize_rows(
    x_ptr, q_ptr, scale_ptr, rows, columns,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WHOLE: tl.constexpr, num_stages: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    real = (row < rows)[:, None]
    start = row.to(tl.int64)[:, None] * columns
    column = tl.arange(0, BLOCK_N)[None, :]
    if WHOLE:
        inside = real & (column < columns)
        x = tl.load(x_ptr + start + column, mask=inside, other=0.0).to(tl.float32)
        largest = tl.max(tl.abs(x), 1)
    else:
        magnitude = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for first in tl.range(0, columns, BLOCK_N, num_stages=num_stages):
            inside = real & (first + column < columns)
            x = tl.load(x_ptr + start + first + column, mask=inside, other=0.0).to(tl.float32)
            magnitude = tl.maximum(magnitude, tl.abs(x))
        largest = tl.max(magnitude, 1)
    scale = tl.div_rn(largest, tl.full([BLOCK_M], 127.0, tl.float32))
    tl.store(scale_ptr + row, scale, mask=row < rows)
    divisor = tl.where(scale == 0.0, 1.0, scale)[:, None]  # a row of zeros stays zeros
    if WHOLE:
        tl.store(q_ptr + start + column, to_int8(x, tl.broadcast_to(divisor, [BLOCK_M, BLOCK_N])), mask=inside)
    else:
        for first in tl.range(0, columns, BLOCK_N, num_stages=num_stages):
            inside = real & (first + column < columns)
            x = tl.load(x_ptr + start + first + column, mask=inside, other=0.0).to(tl.float32)
            q = to_int8(x, tl.broadcast_to(divisor, [BLOCK_M, BLOCK_N]))
            tl.store(q_ptr + start + first + column, q, mask=inside)


def make_problem(*, rows: int, columns: int, dtype: str = "bf16") -> Problem:
    """x is [rows, columns], q i8 [rows, columns], scales f32 [rows]: x is about q * scale."""
    if columns < 1 or rows < 1:
        raise UserError(f"got rows={rows},columns={columns}, expected both from 1")
    moved = (tensors.dtype_of(dtype).itemsize + 1) * rows * columns + 4 * rows
    params = (("rows", rows), ("columns", columns), ("dtype", dtype))
    return Problem("quantize", (TensorSpec((rows, columns), dtype),), params, flops=4 * rows * columns, bytes=moved)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    return tensors.normal(problem.inputs, seed)


def outputs_of(problem: Problem) -> tuple[TensorSpec, ...]:
    shape = problem.inputs[0].shape
    return TensorSpec(shape, "i8"), TensorSpec(shape[:1], "f32")


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    x = inputs[0].float()
    # a tensor, since some builds of torch multiply by the reciprocal of a plain number
    scale = x.abs().amax(-1) / torch.full((len(x),), 127.0, device=x.device)
    q = (x / torch.where(scale == 0, 1.0, scale)[:, None]).round().to(torch.int8)
    return q, scale


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    rows, columns = inputs[0].shape
    settings = {**config.as_dict(), "WHOLE": config["BLOCK_N"] >= columns}
    grid = (triton.cdiv(rows, config["BLOCK_M"]),)
    return [Launch(quantize_rows, grid, (*inputs, *outputs, rows, columns), settings)]


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """From 1 to 128 values a thread; a block no wider than the row; rows in registers have no loop to pipeline."""
    values = config["BLOCK_M"] * config["BLOCK_N"] / (32 * config["num_warps"])
    whole = config["BLOCK_N"] >= problem["columns"]
    fits = config["BLOCK_N"] <= triton.next_power_of_2(problem["columns"])
    return 1 <= values <= 128 and fits and (config["num_stages"] == 1 or not whole)


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        BLOCK_M=(1, 2, 4, 8),
        BLOCK_N=(256, 512, 1024, 2048, 4096, 8192, 16384),
        num_warps=(1, 2, 4, 8, 16),
        num_stages=(1, 2, 3),
    ),
    default=Config.of(BLOCK_M=1, BLOCK_N=1024, num_warps=4, num_stages=1),
    make_problem=make_problem,
    problems={
        "activations": {"rows": 8192, "columns": 4096, "dtype": "bf16"},  # per token, ahead of an int8 matmul
        "weights": {"rows": 4096, "columns": 14336, "dtype": "f16"},  # per output channel: long rows
        "few": {"rows": 64, "columns": 8192, "dtype": "bf16"},  # a step of generation: fewer rows than SMs
        "cache": {"rows": 262144, "columns": 1000, "dtype": "f16"},  # short rows that no power of two fits
        "ragged": {"rows": 3000, "columns": 11007, "dtype": "f32"},  # an odd width: rows are not aligned
    },
    make_inputs=make_inputs,
    outputs=outputs_of,
    reference=reference,
    launch=launch,
    tolerance=1e-6,
)
