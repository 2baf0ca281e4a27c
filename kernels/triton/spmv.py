"""Sparse matrix (CSR) times vector: a few lanes walk each row, a block of rows as far as its longest."""

import torch
import triton
import triton.language as tl

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload


@triton.jit
def csr_rows(
    start_ptr, column_ptr, value_ptr, x_ptr, y_ptr, rows,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STEPS: tl.constexpr, num_stages: tl.constexpr,
):  # fmt: skip
    for step in range(STEPS):
        row = (tl.program_id(0) * STEPS + step) * BLOCK_M + tl.arange(0, BLOCK_M)
        begin = tl.load(start_ptr + row, mask=row < rows, other=0)
        end = tl.load(start_ptr + row + 1, mask=row < rows, other=0)
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for first in tl.range(0, tl.max(end - begin, 0), BLOCK_N, num_stages=num_stages):
            place = begin[:, None] + first + tl.arange(0, BLOCK_N)[None, :]
            inside = place < end[:, None]
            column = tl.load(column_ptr + place, mask=inside, other=0)
            value = tl.load(value_ptr + place, mask=inside, other=0.0).to(tl.float32)
            total += value * tl.load(x_ptr + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(y_ptr + row, tl.sum(total, 1), mask=row < rows)


def make_problem(*, rows: int, columns: int, nonzeros: int, pattern: str = "uniform", dtype: str = "f32") -> Problem:
    """Starts i32 [rows + 1], columns i32 and values [nonzeros], x [columns], y f32 [rows].

    pattern: uniform (columns and rows at random), powerlaw (few long rows), banded (columns near the diagonal).
    """
    if min(rows, columns, nonzeros) < 1 or pattern not in ("uniform", "powerlaw", "banded"):
        raise UserError(f"got rows={rows},pattern={pattern}, expected sizes from 1; uniform, powerlaw or banded")
    size = tensors.dtype_of(dtype).itemsize
    params = (("rows", rows), ("columns", columns), ("nonzeros", nonzeros), ("pattern", pattern), ("dtype", dtype))
    inputs = (
        TensorSpec((rows + 1,), "i32"),
        TensorSpec((nonzeros,), "i32"),
        TensorSpec((nonzeros,), dtype),
        TensorSpec((columns,), dtype),
    )
    moved = 4 * (rows + 1) + (4 + size) * nonzeros + size * columns + 4 * rows
    return Problem("spmv", inputs, params, flops=2 * nonzeros, bytes=moved)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    value, x = tensors.normal(problem.inputs[2:], seed)
    rows, nonzeros = problem["rows"], problem["nonzeros"]
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed + 1)
    place = torch.rand(nonzeros, generator=generator, dtype=torch.float64)
    row = (place ** (3 if problem["pattern"] == "powerlaw" else 1) * rows).long().clamp_max(rows - 1).sort().values
    start = torch.nn.functional.pad(torch.bincount(row, minlength=rows).cumsum(0), (1, 0)).int()
    column = torch.randint(len(x), (nonzeros,), generator=generator)
    if problem["pattern"] == "banded":
        column = (row * len(x) // rows + column % 128 - 64).clamp(0, len(x) - 1)
    return start, column.int(), value, x


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    start, column, value, x = inputs
    row = torch.repeat_interleave(torch.arange(problem["rows"], device=x.device), start.diff().long())
    y = torch.zeros(problem["rows"], dtype=torch.float32, device=x.device)
    return (y.index_add_(0, row, value.float() * x.float()[column.long()]),)


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    (y,) = outputs
    grid = (triton.cdiv(len(y), config["BLOCK_M"] * config["STEPS"]),)
    return [Launch(csr_rows, grid, (*inputs, y, len(y)), config.as_dict())]


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """From 1 to 32 nonzeros a thread."""
    return 1 <= config["BLOCK_M"] * config["BLOCK_N"] / (32 * config["num_warps"]) <= 32


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        BLOCK_M=(1, 4, 16, 64, 256),
        BLOCK_N=(4, 16, 32, 64, 256),
        STEPS=(1, 4),
        num_warps=(1, 2, 4, 8),
        num_stages=(1, 2, 3),
    ),
    default=Config.of(BLOCK_M=16, BLOCK_N=16, STEPS=1, num_warps=4, num_stages=1),
    make_problem=make_problem,
    problems={
        # a mesh: 27 neighbours, nearly in order
        "mesh": {"rows": 1_000_000, "columns": 1_000_000, "nonzeros": 27_000_000, "pattern": "banded"},
        # a graph with hubs: a block waits for its longest row
        "graph": {"rows": 500_000, "columns": 500_000, "nonzeros": 16_000_000, "pattern": "powerlaw"},
        # x lies beyond L2, and every load of it is a sector of its own
        "scattered": {"rows": 2_000_000, "columns": 20_000_000, "nonzeros": 20_000_000},
        # a pruned layer: 10 % of its weights, long rows
        "pruned": {"rows": 8192, "columns": 8192, "nonzeros": 6_710_886, "dtype": "f16"},
    },
    make_inputs=make_inputs,
    outputs=lambda problem: (TensorSpec((problem["rows"],), "f32"),),
    reference=reference,
    launch=launch,
    tolerance=1e-4,
)
