"""Rotary embedding of queries and keys in one launch: the halves of each head are turned by the token's angles."""

import torch
import triton
import triton.language as tl

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload


@triton.jit
def rotate_heads(
    x_ptr, y_ptr, cos, sin, token, tokens, first_head, heads, half,
    BLOCK_H: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    head = first_head + tl.arange(0, BLOCK_H)[None, :, None]
    lane = tl.arange(0, HALF)[None, None, :]
    inside = (token < tokens) & (head < heads) & (lane < half)
    left = (token.to(tl.int64) * heads + head) * (2 * half) + lane
    x = tl.load(x_ptr + left, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(x_ptr + left + half, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + left, (x * cos - y * sin).to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(y_ptr + left + half, (y * cos + x * sin).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def rotary_tokens(
    q_ptr, k_ptr, cos_ptr, sin_ptr, q_out_ptr, k_out_ptr, tokens, positions, q_heads, k_heads, half,
    BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None, None]
    lane = tl.arange(0, HALF)[None, None, :]
    known = (token < tokens) & (lane < half)
    angle = (token % positions) * half + lane
    cos = tl.load(cos_ptr + angle, mask=known, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + angle, mask=known, other=0.0).to(tl.float32)
    # the second axis of the grid goes over the blocks of query heads, then over those of key heads
    q_blocks = tl.cdiv(q_heads, BLOCK_H)
    block = tl.program_id(1)
    if block < q_blocks:
        rotate_heads(q_ptr, q_out_ptr, cos, sin, token, tokens, block * BLOCK_H, q_heads, half, BLOCK_H, HALF)
    else:
        first = (block - q_blocks) * BLOCK_H
        rotate_heads(k_ptr, k_out_ptr, cos, sin, token, tokens, first, k_heads, half, BLOCK_H, HALF)


def make_problem(*, tokens: int, positions: int, q_heads: int, k_heads: int, dim: int, dtype: str = "bf16") -> Problem:
    """q is [tokens, q_heads, dim], k [tokens, k_heads, dim], cos and sin f32 [positions, dim / 2].

    Sequences of `positions` tokens follow each other: token t stands at position t % positions.
    """
    if min(tokens, positions, q_heads, k_heads) < 1 or not 2 <= dim <= 512 or dim % 2:
        raise UserError(f"got tokens={tokens},dim={dim}, expected counts from 1 and an even dim from 2 to 512")
    q, k = TensorSpec((tokens, q_heads, dim), dtype), TensorSpec((tokens, k_heads, dim), dtype)
    table = TensorSpec((positions, dim // 2), "f32")
    elements = tokens * (q_heads + k_heads) * dim
    moved = 2 * tensors.dtype_of(dtype).itemsize * elements + 4 * positions * dim
    params = (
        ("tokens", tokens), ("positions", positions), ("q_heads", q_heads), ("k_heads", k_heads), ("dim", dim),
        ("dtype", dtype),
    )  # fmt: skip
    return Problem("rotary", (q, k, table, table), params, flops=3 * elements, bytes=moved)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    q, k = tensors.normal(problem.inputs[:2], seed)
    positions, half = problem.inputs[2].shape
    frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float32) / half)
    angle = torch.arange(positions, dtype=torch.float32)[:, None] * frequency
    return q, k, angle.cos(), angle.sin()


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    q, k, cos, sin = inputs
    position = torch.arange(len(q), device=q.device) % len(cos)
    cos, sin = cos[position][:, None], sin[position][:, None]

    def turned(tensor: torch.Tensor) -> torch.Tensor:
        x, y = tensor.float().chunk(2, -1)
        return torch.cat([x * cos - y * sin, y * cos + x * sin], -1).to(tensor.dtype)

    return turned(q), turned(k)


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    (tokens, q_heads, dim), k_heads = inputs[0].shape, inputs[1].shape[1]
    blocks = triton.cdiv(q_heads, config["BLOCK_H"]) + triton.cdiv(k_heads, config["BLOCK_H"])
    grid = (triton.cdiv(tokens, config["BLOCK_M"]), blocks)
    sizes = (tokens, inputs[2].shape[0], q_heads, k_heads, dim // 2)
    settings = {**config.as_dict(), "HALF": triton.next_power_of_2(dim // 2)}
    return [Launch(rotary_tokens, grid, (*inputs, *outputs, *sizes), settings)]


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """From 1 to 64 pairs a thread, and no more heads a block than there are."""
    half = triton.next_power_of_2(problem["dim"] // 2)
    pairs = config["BLOCK_M"] * config["BLOCK_H"] * half / (32 * config["num_warps"])
    return 1 <= pairs <= 64 and config["BLOCK_H"] <= triton.next_power_of_2(problem["q_heads"])


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        is_valid, BLOCK_M=(1, 2, 4, 8, 16, 32), BLOCK_H=(1, 2, 4, 8, 16, 32), num_warps=(1, 2, 4, 8, 16)
    ),
    default=Config.of(BLOCK_M=1, BLOCK_H=8, num_warps=4),
    make_problem=make_problem,
    problems={
        # 8B model, grouped heads: four times as many queries as keys
        "llama3": {"tokens": 8192, "positions": 8192, "q_heads": 32, "k_heads": 8, "dim": 128, "dtype": "bf16"},
        # a head of 96: a quarter of the lanes is idle
        "phi3": {"tokens": 8192, "positions": 2048, "q_heads": 32, "k_heads": 32, "dim": 96, "dtype": "f16"},
        # one head of keys: the blocks of keys are nearly empty
        "single": {"tokens": 16384, "positions": 4096, "q_heads": 16, "k_heads": 1, "dim": 256, "dtype": "bf16"},
        # a step of generation for 64 sequences
        "decode": {"tokens": 64, "positions": 4096, "q_heads": 64, "k_heads": 8, "dim": 128, "dtype": "bf16"},
        # small heads in f32
        "vision": {"tokens": 50176, "positions": 196, "q_heads": 12, "k_heads": 12, "dim": 64, "dtype": "f32"},
    },
    make_inputs=make_inputs,
    outputs=lambda problem: problem.inputs[:2],
    reference=reference,
    launch=launch,
    tolerance=4e-3,  # half a unit in the last place of bf16
)
