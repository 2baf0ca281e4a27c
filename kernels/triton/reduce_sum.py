"""Sum over the rows of a matrix (a bias gradient): tiles walk down, split rows are added up by a second launch."""

import torch
import triton
import triton.language as tl

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload


@triton.jit
def sum_rows(
    x_ptr, y_ptr, rows, columns, rows_a_part, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, num_stages: tl.constexpr
):
    part = tl.program_id(1)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    end = tl.minimum((part + 1) * rows_a_part, rows)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in tl.range(part * rows_a_part, end, BLOCK_M, num_stages=num_stages):
        row = first + tl.arange(0, BLOCK_M)
        inside = (row < end)[:, None] & (column < columns)[None, :]
        offset = row.to(tl.int64)[:, None] * columns + column[None, :]
        total += tl.load(x_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    out = part.to(tl.int64) * columns + column
    tl.store(y_ptr + out, tl.sum(total, 0), mask=column < columns)


def make_problem(*, rows: int, columns: int, dtype: str = "bf16") -> Problem:
    """x is [rows, columns], y f32 [columns]."""
    if columns < 1 or rows < 1:
        raise UserError(f"got rows={rows},columns={columns}, expected both from 1")
    moved = tensors.dtype_of(dtype).itemsize * rows * columns + 4 * columns
    params = (("rows", rows), ("columns", columns), ("dtype", dtype))
    return Problem("reduce_sum", (TensorSpec((rows, columns), dtype),), params, flops=rows * columns, bytes=moved)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    return tensors.normal(problem.inputs, seed)


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (inputs[0].sum(0, dtype=torch.float32),)


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    (x,), (y,) = inputs, outputs
    (rows, columns), parts = x.shape, config["SPLIT"]
    blocks = triton.cdiv(columns, config["BLOCK_N"])
    settings = {name: config[name] for name in ("BLOCK_M", "BLOCK_N", "num_warps", "num_stages")}
    if parts == 1:
        return [Launch(sum_rows, (blocks, 1), (x, y, rows, columns, rows), settings)]
    scratch = torch.empty(parts, columns, dtype=torch.float32, device=x.device)
    first = Launch(sum_rows, (blocks, parts), (x, scratch, rows, columns, triton.cdiv(rows, parts)), settings)
    # the partial sums are few: small tiles, to have a block for every SM
    settings = {"BLOCK_M": min(parts, 64), "BLOCK_N": 16, "num_warps": 4, "num_stages": 1}
    return [first, Launch(sum_rows, (triton.cdiv(columns, 16), 1), (scratch, y, parts, columns, parts), settings)]


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """From 1 to 64 values a thread, two tiles for every part, and a tile no wider than the matrix needs."""
    values = config["BLOCK_M"] * config["BLOCK_N"] / (32 * config["num_warps"])
    return (
        1 <= values <= 64
        and config["SPLIT"] * config["BLOCK_M"] * 2 <= problem["rows"]
        and config["BLOCK_N"] <= max(64, triton.next_power_of_2(problem["columns"]))
    )


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        BLOCK_M=(1, 4, 16, 64),
        BLOCK_N=(16, 64, 128, 256, 512),
        SPLIT=(1, 4, 16, 64, 256),
        num_warps=(1, 2, 4, 8),
        num_stages=(1, 2, 4),
    ),
    default=Config.of(BLOCK_M=16, BLOCK_N=64, SPLIT=4, num_warps=4, num_stages=2),
    make_problem=make_problem,
    problems={
        "bias": {"rows": 8192, "columns": 4096, "dtype": "bf16"},  # the gradient of a layer's bias
        "tall": {"rows": 2_000_000, "columns": 48, "dtype": "f32"},  # few columns: only a split fills the SMs
        "wide": {"rows": 256, "columns": 400_000, "dtype": "f16"},  # many columns: a split only costs
        "small": {"rows": 1024, "columns": 1000, "dtype": "f32"},  # a classifier's bias: the second launch counts
        "square": {"rows": 20_000, "columns": 10_007, "dtype": "f16"},  # an odd width: rows are not aligned
    },
    make_inputs=make_inputs,
    outputs=lambda problem: (TensorSpec((problem["columns"],), "f32"),),
    reference=reference,
    launch=launch,
    tolerance=1e-4,
)
