"""The k largest of each row and where they stand, ties by the lower index: bitonic selection, block by block.

Value and column are packed into one 64-bit key whose order is the order wanted, so a sort moves both at once.
"""

import torch
import triton
import triton.language as tl

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload

LOWEST = tl.constexpr(-(2**63) + 1)  # below the key of any value


@triton.jit
def pack(x, column):
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)  # one zero: -0 and +0 are a tie
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # as signed integers, in the order of the floats
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - column).to(tl.int64)


@triton.jit
def merge(best, more, BLOCK_M: tl.constexpr, K: tl.constexpr):
    return tl.topk(tl.reshape(tl.join(best, more), [BLOCK_M, 2 * K]), K)


@triton.jit
def write_top(best, value_ptr, index_ptr, row, rows, k, K: tl.constexpr):
    place = tl.arange(0, K)[None, :]
    inside = (row < rows)[:, None] & (place < k)
    ordered = (best >> 32).to(tl.int32)
    value = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    out = row.to(tl.int64)[:, None] * k + place
    tl.store(value_ptr + out, value.to(value_ptr.dtype.element_ty), mask=inside)
    tl.store(index_ptr + out, 0x7FFFFFFF - (best & 0x7FFFFFFF).to(tl.int32), mask=inside)


@triton.jit
def top_of_parts(
    x_ptr, keys_ptr, value_ptr, index_ptr, rows, columns, part_columns, k,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr, SKIP: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    start = row.to(tl.int64)[:, None] * columns
    end = tl.minimum((part + 1) * part_columns, columns)
    best = tl.full([BLOCK_M, K], LOWEST, tl.int64)
    for first in range(part * part_columns, end, BLOCK_N):
        column = first + tl.arange(0, BLOCK_N)[None, :]
        inside = (row < rows)[:, None] & (column < end)
        x = tl.load(x_ptr + start + column, mask=inside, other=0.0).to(tl.float32)
        key = tl.where(inside, pack(x, column), LOWEST)
        if SKIP:  # most blocks of a long row hold nothing that enters the top: a maximum tells
            if tl.max((tl.max(key, 1) > tl.min(best, 1)).to(tl.int32), 0) > 0:
                best = merge(best, tl.topk(key, K), BLOCK_M, K)
        else:
            best = merge(best, tl.topk(key, K), BLOCK_M, K)
    if SPLIT == 1:
        write_top(best, value_ptr, index_ptr, row, rows, k, K)
    else:
        out = (row.to(tl.int64)[:, None] * SPLIT + part) * K + tl.arange(0, K)[None, :]
        tl.store(keys_ptr + out, best, mask=(row < rows)[:, None])


@triton.jit
def top_of_keys(keys_ptr, value_ptr, index_ptr, rows, k, SPLIT: tl.constexpr, K: tl.constexpr):
    row = tl.program_id(0) + tl.arange(0, 1)
    key = tl.load(keys_ptr + row.to(tl.int64)[:, None] * (SPLIT * K) + tl.arange(0, SPLIT * K)[None, :])
    write_top(tl.topk(key, K), value_ptr, index_ptr, row, rows, k, K)


def make_problem(*, rows: int, columns: int, k: int, dtype: str = "f32") -> Problem:
    """x is [rows, columns]; values (x's type) and indices (i32) are [rows, k], the largest first; k to 32."""
    if not 1 <= k <= min(32, columns) or rows < 1:
        raise UserError(f"got rows={rows},columns={columns},k={k}, expected rows from 1 and k from 1 to 32, columns")
    size = tensors.dtype_of(dtype).itemsize
    moved = size * rows * columns + (size + 4) * rows * k
    params = (("rows", rows), ("columns", columns), ("k", k), ("dtype", dtype))
    return Problem("top_k", (TensorSpec((rows, columns), dtype),), params, flops=rows * columns, bytes=moved)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    return tensors.normal(problem.inputs, seed)


def outputs_of(problem: Problem) -> tuple[TensorSpec, ...]:
    shape = (problem["rows"], problem["k"])
    return TensorSpec(shape, problem.inputs[0].dtype), TensorSpec(shape, "i32")


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    values, indices = inputs[0].sort(dim=-1, descending=True, stable=True)  # topk promises nothing about ties
    return values[:, : problem["k"]].contiguous(), indices[:, : problem["k"]].int()


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    (x,), (values, indices) = inputs, outputs
    (rows, columns), parts, k = x.shape, config["SPLIT"], problem["k"]
    settings = {**config.as_dict(), "K": max(2, triton.next_power_of_2(k))}
    keys = torch.empty(rows, parts, settings["K"], dtype=torch.int64, device=x.device)
    part_columns = triton.cdiv(triton.cdiv(columns, parts), config["BLOCK_N"]) * config["BLOCK_N"]
    grid = (triton.cdiv(rows, config["BLOCK_M"]), parts)
    first = Launch(top_of_parts, grid, (x, keys, values, indices, rows, columns, part_columns, k), settings)
    if parts == 1:
        return [first]
    settings = {"SPLIT": parts, "K": settings["K"], "num_warps": 1}
    return [first, Launch(top_of_keys, (rows,), (keys, values, indices, rows, k), settings)]


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """From 1 to 32 keys of 64 bits a thread; blocks that hold k and are no wider than a part; skipping needs a loop."""
    values = config["BLOCK_M"] * config["BLOCK_N"] / (32 * config["num_warps"])
    part = triton.next_power_of_2(triton.cdiv(problem["columns"], config["SPLIT"]))
    return (
        1 <= values <= 32
        and problem["k"] <= config["BLOCK_N"] <= part
        and config["BLOCK_M"] <= problem["rows"]
        and (not config["SKIP"] or config["BLOCK_N"] < part)
    )


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        BLOCK_M=(1, 2, 4, 8, 16, 32),
        BLOCK_N=(64, 128, 256, 512, 1024, 2048),
        SPLIT=(1, 4, 16),
        SKIP=(0, 1),
        num_warps=(1, 2, 4, 8, 16),
    ),
    default=Config.of(BLOCK_M=1, BLOCK_N=128, SPLIT=1, SKIP=0, num_warps=1),
    make_problem=make_problem,
    problems={
        "sampling": {"rows": 256, "columns": 128256, "k": 32, "dtype": "bf16"},  # next tokens of 256 sequences; ties
        "beam": {"rows": 8, "columns": 50257, "k": 8, "dtype": "f32"},  # a beam search: only a split fills the SMs
        "experts": {"rows": 65536, "columns": 128, "k": 8, "dtype": "f32"},  # routing of tokens: many short rows
        "neighbours": {"rows": 4096, "columns": 16384, "k": 10, "dtype": "f32"},  # k is no power of two
    },
    make_inputs=make_inputs,
    outputs=outputs_of,
    reference=reference,
    launch=launch,
    tolerance=0.0,
)
