"""RMS norm forward: a program normalises several blocks of rows, each held in registers, and reads the weight once."""

import torch
import triton
import triton.language as tl

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload

EPSILON = 1e-6


@triton.jit
def rms_norm_rows(
    x_ptr, w_ptr, y_ptr, rstd_ptr, rows, columns, epsilon,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STEPS: tl.constexpr, num_stages: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK_N)
    known = column < columns
    w = tl.load(w_ptr + column, mask=known, other=0.0).to(tl.float32)
    for step in tl.range(STEPS, num_stages=num_stages):
        row = (step * tl.num_programs(0) + tl.program_id(0)) * BLOCK_M + tl.arange(0, BLOCK_M)
        inside = (row < rows)[:, None] & known[None, :]
        offset = row.to(tl.int64)[:, None] * columns + column[None, :]
        x = tl.load(x_ptr + offset, mask=inside, other=0.0).to(tl.float32)
        rstd = 1.0 / tl.sqrt(tl.sum(x * x, 1) / columns + epsilon)
        y = x * rstd[:, None] * w[None, :]
        tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), mask=inside)
        tl.store(rstd_ptr + row, rstd, mask=row < rows)


def make_problem(*, rows: int, columns: int, dtype: str = "bf16") -> Problem:
    """x and y are [rows, columns], w [columns], of one type; rstd is f32 [rows]; columns to 16384."""
    if not 1 <= columns <= 16384 or rows < 1:
        raise UserError(f"got rows={rows},columns={columns}, expected rows from 1 and columns from 1 to 16384")
    x, w = TensorSpec((rows, columns), dtype), TensorSpec((columns,), dtype)
    moved = tensors.dtype_of(dtype).itemsize * (2 * rows * columns + columns) + 4 * rows
    params = (("rows", rows), ("columns", columns), ("dtype", dtype))
    return Problem("rms_norm", (x, w), params, flops=4 * rows * columns, bytes=moved)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    return tensors.normal(problem.inputs, seed)


def outputs_of(problem: Problem) -> tuple[TensorSpec, ...]:
    return problem.inputs[0], TensorSpec(problem.inputs[0].shape[:1], "f32")


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    x, w = (tensor.float() for tensor in inputs)
    rstd = torch.rsqrt((x * x).mean(-1) + EPSILON)
    return (x * rstd[:, None] * w).to(inputs[0].dtype), rstd


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    rows, columns = inputs[0].shape
    grid = (triton.cdiv(rows, config["BLOCK_M"] * config["STEPS"]),)
    settings = {**config.as_dict(), "BLOCK_N": triton.next_power_of_2(columns)}
    return [Launch(rms_norm_rows, grid, (*inputs, *outputs, rows, columns, EPSILON), settings)]


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """At most 128 values a thread, and no thread without one; one step is no loop, and rows are there for all steps."""
    values = config["BLOCK_M"] * triton.next_power_of_2(problem["columns"]) / (32 * config["num_warps"])
    pipelined = config["num_stages"] == 1 or config["STEPS"] > 1
    return 1 <= values <= 128 and pipelined and config["BLOCK_M"] * config["STEPS"] <= problem["rows"]


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        BLOCK_M=(1, 2, 4, 8, 16, 32),
        STEPS=(1, 2, 4, 8, 16),
        num_warps=(1, 2, 4, 8, 16),
        num_stages=(1, 2, 3),
    ),
    default=Config.of(BLOCK_M=1, STEPS=1, num_warps=4, num_stages=1),
    make_problem=make_problem,
    problems={
        "prefill": {"rows": 8192, "columns": 4096, "dtype": "bf16"},  # tokens of a prompt through an 8B model
        "wide": {"rows": 4096, "columns": 8192, "dtype": "bf16"},  # a 70B model: a row fills a block's registers
        "heads": {"rows": 262144, "columns": 128, "dtype": "f16"},  # the norm of each query's head: many rows a block
        "decode": {"rows": 128, "columns": 5120, "dtype": "f16"},  # a step of generation: fewer rows than SMs
        "ragged": {"rows": 10000, "columns": 2880, "dtype": "f32"},  # a width far from a power of two
    },
    make_inputs=make_inputs,
    outputs=outputs_of,
    reference=reference,
    launch=launch,
    tolerance=4e-3,  # half a unit in the last place of bf16
)
