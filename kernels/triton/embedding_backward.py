"""Gradient of an embedding table: each table row adds up the gradients of its tokens, brought together by a sort."""

import torch
import triton
import triton.language as tl

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload


@triton.jit
def add_tokens(
    gradient_ptr, order_ptr, offset_ptr, table_ptr, rows, width,
    ROWS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, num_stages: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    for step in range(ROWS):
        row = tl.program_id(0) * ROWS + step
        if row < rows:
            begin = tl.load(offset_ptr + row)
            end = tl.load(offset_ptr + row + 1)
            total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            for first in tl.range(begin, end, BLOCK_M, num_stages=num_stages):
                place = first + tl.arange(0, BLOCK_M)
                token = tl.load(order_ptr + place, mask=place < end, other=0).to(tl.int64)
                inside = (place < end)[:, None] & (column < width)[None, :]
                gradient = tl.load(gradient_ptr + token[:, None] * width + column[None, :], mask=inside, other=0.0)
                total += gradient.to(tl.float32)
            # most rows of a table have no token in a batch: they are zero
            y = tl.sum(total, 0).to(table_ptr.dtype.element_ty)
            tl.store(table_ptr + row.to(tl.int64) * width + column, y, mask=column < width)


def make_problem(*, rows: int, width: int, tokens: int, skewed: int = 0, dtype: str = "bf16") -> Problem:
    """The gradient is [tokens, width], order i32 [tokens] (sorted by id), offsets i32 [rows + 1], y [rows, width]."""
    if min(rows, width, tokens) < 1 or skewed not in (0, 1):
        raise UserError(f"got rows={rows},width={width},tokens={tokens},skewed={skewed}, expected sizes from 1")
    moved = tensors.dtype_of(dtype).itemsize * width * (tokens + rows) + 4 * (tokens + rows + 1)
    params = (("rows", rows), ("width", width), ("tokens", tokens), ("skewed", skewed), ("dtype", dtype))
    inputs = (TensorSpec((tokens, width), dtype), TensorSpec((tokens,), "i32"), TensorSpec((rows + 1,), "i32"))
    return Problem("embedding_backward", inputs, params, flops=tokens * width, bytes=moved)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    """Ids are even, or skewed to low ones as words are."""
    (gradient,) = tensors.normal(problem.inputs[:1], seed)
    rows = problem["rows"]
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed + 1)
    place = torch.rand(len(gradient), generator=generator, dtype=torch.float64) ** (4 if problem["skewed"] else 1)
    ids = (place * rows).long().clamp_max(rows - 1)
    counts = torch.bincount(ids, minlength=rows)
    return gradient, ids.argsort(stable=True).int(), torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()


def outputs_of(problem: Problem) -> tuple[TensorSpec, ...]:
    return (TensorSpec((problem["rows"], problem["width"]), problem.inputs[0].dtype),)


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    gradient, order, offsets = inputs
    counts = offsets.diff().long()
    index = torch.repeat_interleave(torch.arange(len(counts), device=gradient.device), counts)
    total = torch.zeros(len(counts), gradient.shape[1], dtype=torch.float32, device=gradient.device)
    return (total.index_add_(0, index, gradient[order.long()].float()).to(gradient.dtype),)


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    (table,) = outputs
    rows, width = table.shape
    grid = (triton.cdiv(rows, config["ROWS"]), triton.cdiv(width, config["BLOCK_N"]))
    return [Launch(add_tokens, grid, (*inputs, table, rows, width), config.as_dict())]


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """From 1 to 64 values a thread, and a block no wider than the rows need."""
    values = config["BLOCK_M"] * config["BLOCK_N"] / (32 * config["num_warps"])
    return 1 <= values <= 64 and config["BLOCK_N"] <= triton.next_power_of_2(problem["width"])


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        ROWS=(1, 4, 16),
        BLOCK_M=(1, 4, 16),
        BLOCK_N=(64, 128, 256, 512, 1024, 2048),
        num_warps=(1, 2, 4, 8),
        num_stages=(1, 2, 3),
    ),
    default=Config.of(ROWS=1, BLOCK_M=4, BLOCK_N=64, num_warps=2, num_stages=1),
    make_problem=make_problem,
    problems={
        "llama3": {"rows": 128256, "width": 2048, "tokens": 16384, "skewed": 1, "dtype": "bf16"},  # rows mostly empty
        "bert": {"rows": 30522, "width": 768, "tokens": 65536, "skewed": 1, "dtype": "f16"},  # frequent words wait
        "positions": {"rows": 512, "width": 1024, "tokens": 32768, "dtype": "f32"},  # 64 tokens for every row
        "recommender": {"rows": 1_000_000, "width": 64, "tokens": 262144, "dtype": "f32"},  # narrow rows, a token each
    },
    make_inputs=make_inputs,
    outputs=outputs_of,
    reference=reference,
    launch=launch,
    tolerance=4e-3,  # half a unit in the last place of bf16
)
