"""Rows of a table by index, as an embedding lookup does."""

import torch
import triton
import triton.language as tl

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload


@triton.jit
def gather_rows(
    table_ptr, index_ptr, y_ptr, count, width,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STEPS: tl.constexpr, num_stages: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = tl.load(index_ptr + place, mask=place < count, other=0).to(tl.int64)
    for step in tl.range(STEPS, num_stages=num_stages):
        column = (tl.program_id(1) * STEPS + step) * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = (place < count)[:, None] & (column < width)[None, :]
        y = tl.load(table_ptr + row[:, None] * width + column[None, :], mask=inside)
        tl.store(y_ptr + place.to(tl.int64)[:, None] * width + column[None, :], y, mask=inside)


def make_problem(*, rows: int, width: int, count: int, dtype: str = "bf16") -> Problem:
    """The table is [rows, width], the index i32 [count], y [count, width]."""
    if min(rows, width, count) < 1:
        raise UserError(f"got rows={rows},width={width},count={count}, expected all from 1")
    size = tensors.dtype_of(dtype).itemsize
    touched = rows * (1 - (1 - 1 / rows) ** count)  # expected number of distinct rows
    moved = 4 * count + size * width * (count + round(touched))
    params = (("rows", rows), ("width", width), ("count", count), ("dtype", dtype))
    inputs = (TensorSpec((rows, width), dtype), TensorSpec((count,), "i32"))
    # nothing is computed but addresses: one addition an element
    return Problem("gather", inputs, params, flops=count * width, bytes=moved)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    (table,) = tensors.normal(problem.inputs[:1], seed)
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed + 1)
    return table, torch.randint(len(table), problem.inputs[1].shape, generator=generator, dtype=torch.int32)


def outputs_of(problem: Problem) -> tuple[TensorSpec, ...]:
    return (TensorSpec((problem["count"], problem["width"]), problem.inputs[0].dtype),)


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    table, index = inputs
    return (table[index.long()],)


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    (table, index), (y,) = inputs, outputs
    count, width = y.shape
    grid = (triton.cdiv(count, config["BLOCK_M"]), triton.cdiv(width, config["BLOCK_N"] * config["STEPS"]))
    return [Launch(gather_rows, grid, (table, index, y, count, width), config.as_dict())]


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """From 1 to 64 values a thread, columns for all steps (but the first), and a loop where there are stages."""
    values = config["BLOCK_M"] * config["BLOCK_N"] / (32 * config["num_warps"])
    columns = config["BLOCK_N"] * config["STEPS"]
    return (
        1 <= values <= 64
        and columns <= max(128, triton.next_power_of_2(problem["width"]))
        and (config["num_stages"] == 1 or config["STEPS"] > 1)
    )


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        BLOCK_M=(1, 2, 4, 8, 16, 32, 64),
        BLOCK_N=(32, 64, 128, 256, 512, 1024, 2048),
        STEPS=(1, 2, 4),
        num_warps=(1, 2, 4, 8),
        num_stages=(1, 2),
    ),
    default=Config.of(BLOCK_M=4, BLOCK_N=128, STEPS=1, num_warps=4, num_stages=1),
    make_problem=make_problem,
    problems={
        "tokens": {"rows": 128256, "width": 4096, "count": 16384, "dtype": "bf16"},  # a language model's embedding
        "narrow": {"rows": 4_000_000, "width": 64, "count": 500_000, "dtype": "f32"},  # a row is two sectors
        "hot": {"rows": 512, "width": 768, "count": 65536, "dtype": "f16"},  # position embeddings: the table sits in L2
        "ragged": {"rows": 100_000, "width": 301, "count": 40_000, "dtype": "f32"},  # rows are not aligned
        "decode": {"rows": 151936, "width": 5120, "count": 64, "dtype": "bf16"},  # a step of generation
    },
    make_inputs=make_inputs,
    outputs=outputs_of,
    reference=reference,
    launch=launch,
    tolerance=0.0,
)
