"""SwiGLU, silu(gate) * up, of a packed projection: each row holds the gate's columns and then the other half's."""

import torch
import triton
import triton.language as tl

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload


@triton.jit
def swiglu_tiles(
    x_ptr, y_ptr, rows, columns,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STEPS: tl.constexpr, num_stages: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    for step in tl.range(STEPS, num_stages=num_stages):
        row = (tl.program_id(1) * STEPS + step) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
        inside = (row < rows) & (column < columns)
        long_row = row.to(tl.int64)
        gate_ptr = x_ptr + long_row * (2 * columns) + column
        gate = tl.load(gate_ptr, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(gate_ptr + columns, mask=inside, other=0.0).to(tl.float32)
        y = gate * tl.sigmoid(gate) * up
        tl.store(y_ptr + long_row * columns + column, y.to(y_ptr.dtype.element_ty), mask=inside)


def make_problem(*, rows: int, columns: int, dtype: str = "bf16") -> Problem:
    """x is [rows, 2 * columns], y [rows, columns]."""
    if columns < 1 or rows < 1:
        raise UserError(f"got rows={rows},columns={columns}, expected both from 1")
    moved = 3 * tensors.dtype_of(dtype).itemsize * rows * columns
    params = (("rows", rows), ("columns", columns), ("dtype", dtype))
    x = TensorSpec((rows, 2 * columns), dtype)
    return Problem("swiglu", (x,), params, flops=5 * rows * columns, bytes=moved)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    return tensors.normal(problem.inputs, seed)


def outputs_of(problem: Problem) -> tuple[TensorSpec, ...]:
    return (TensorSpec((problem["rows"], problem["columns"]), problem.inputs[0].dtype),)


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    gate, up = inputs[0].float().chunk(2, -1)
    return ((torch.nn.functional.silu(gate) * up).to(inputs[0].dtype),)


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    (x,), (y,) = inputs, outputs
    rows, columns = y.shape
    grid = (triton.cdiv(columns, config["BLOCK_N"]), triton.cdiv(rows, config["BLOCK_M"] * config["STEPS"]))
    return [Launch(swiglu_tiles, grid, (x, y, rows, columns), config.as_dict())]


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """From 2 to 64 values a thread, rows for all steps, at most 65535 blocks down (the grid's limit)."""
    values = config["BLOCK_M"] * config["BLOCK_N"] / (32 * config["num_warps"])
    rows = config["BLOCK_M"] * config["STEPS"]
    return (
        2 <= values <= 64
        and config["BLOCK_N"] <= triton.next_power_of_2(problem["columns"])
        and problem["rows"] / 65535 <= rows <= max(1, problem["rows"])
        and (config["num_stages"] == 1 or config["STEPS"] > 1)
    )


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        BLOCK_M=(1, 2, 4, 8, 16),
        BLOCK_N=(128, 256, 512, 1024, 2048, 4096),
        STEPS=(1, 4, 16),
        num_warps=(1, 2, 4, 8, 16),
        num_stages=(1, 2, 4),
    ),
    default=Config.of(BLOCK_M=1, BLOCK_N=1024, STEPS=1, num_warps=4, num_stages=1),
    make_problem=make_problem,
    problems={
        "llama3": {"rows": 4096, "columns": 14336, "dtype": "bf16"},  # an 8B model's hidden width: blocks fit exactly
        "llama2": {"rows": 8192, "columns": 11008, "dtype": "f16"},  # the last block of a row is three quarters full
        "expert": {"rows": 32768, "columns": 1408, "dtype": "bf16"},  # a narrow expert: many rows a block
        "decode": {"rows": 48, "columns": 28672, "dtype": "bf16"},  # a step of generation: launch latency dominates
        "ragged": {"rows": 5000, "columns": 5461, "dtype": "f32"},  # an odd width: no aligned loads of the other half
    },
    make_inputs=make_inputs,
    outputs=outputs_of,
    reference=reference,
    launch=launch,
    tolerance=4e-3,  # half a unit in the last place of bf16
)
