"""Dropout with a mask that is never stored: Philox 4x32-10 of the element's number, four elements a call.

Element 4 * c + j is kept where the upper 24 bits of output j of Philox(counter c, key seed) reach p * 2^24.
"""

import torch
import triton
import triton.language as tl

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload

SEED = 20240229


@triton.jit
def dropout_blocks(
    x_ptr, y_ptr, size, seed, threshold, scale,
    BLOCK: tl.constexpr, STEPS: tl.constexpr, num_stages: tl.constexpr,
):  # fmt: skip
    for step in tl.range(STEPS, num_stages=num_stages):
        block = tl.program_id(0) * STEPS + step
        element = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + element, mask=element < size, other=0.0).to(tl.float32)
        counter = block * (BLOCK // 4) + tl.arange(0, BLOCK // 4)  # 32 bits: good for 2^33 elements
        a, b, c, d = tl.randint4x(seed, counter)
        bits = tl.interleave(tl.interleave(a, c), tl.interleave(b, d)).to(tl.uint32, bitcast=True)  # a b c d a b c d
        kept = (bits >> 8).to(tl.int32) >= threshold
        y = tl.where(kept, x * scale, 0.0)
        tl.store(y_ptr + element, y.to(y_ptr.dtype.element_ty), mask=element < size)


def philox(counter: torch.Tensor, seed: int) -> torch.Tensor:
    """Philox 4x32-10 (Salmon et al., SC 2011) of counters (c, 0, 0, 0): i64 [n] -> 32 bits in i64 [n, 4]."""
    low = 0xFFFFFFFF
    zero = torch.zeros_like(counter)
    c0, c1, c2, c3 = counter & low, zero, zero, zero
    k0, k1 = seed & low, seed >> 32 & low
    for _ in range(10):
        # an i64 product wraps, but its 64 bits are those of the unsigned one
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (b >> 32 & low) ^ c1 ^ k0, b & low, (a >> 32 & low) ^ c3 ^ k1, a & low
        k0, k1 = k0 + 0x9E3779B9 & low, k1 + 0xBB67AE85 & low
    return torch.stack([c0, c1, c2, c3], -1)


def make_problem(*, size: int, p: float, dtype: str = "f16") -> Problem:
    """x and y are [size]; each element is dropped with probability p, the others are divided by 1 - p."""
    if not 0 < p < 1 or size < 1:
        raise UserError(f"got size={size},p={p}, expected size from 1 and p between 0 and 1")
    params = (("size", size), ("p", p), ("dtype", dtype))
    moved = 2 * tensors.dtype_of(dtype).itemsize * size
    return Problem("dropout", (TensorSpec((size,), dtype),), params, flops=2 * size, bytes=moved)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    return tensors.normal(problem.inputs, seed)


def threshold_of(problem: Problem) -> int:
    return round(problem["p"] * 2**24)


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    (x,) = inputs
    y = torch.zeros_like(x)
    for first in range(0, len(x), 1 << 24):  # in pieces: 64-bit arithmetic takes a dozen times the room of x
        part = x[first : first + (1 << 24)]
        counter = torch.arange(first // 4, (first + len(part) + 3) // 4, device=x.device)
        kept = (philox(counter, SEED).flatten()[: len(part)] >> 8) >= threshold_of(problem)
        y[first : first + len(part)] = torch.where(kept, part.float() * (1 / (1 - problem["p"])), 0).to(x.dtype)
    return (y,)


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    (x,), (y,) = inputs, outputs
    grid = (triton.cdiv(len(x), config["BLOCK"] * config["STEPS"]),)
    scalars = (len(x), SEED, threshold_of(problem), 1 / (1 - problem["p"]))
    return [Launch(dropout_blocks, grid, (x, y, *scalars), config.as_dict())]


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """From 4 (one call of Philox) to 128 values a thread; one step is no loop; work for all steps."""
    values = config["BLOCK"] / (32 * config["num_warps"])
    pipelined = config["num_stages"] == 1 or config["STEPS"] > 1
    return 4 <= values <= 128 and pipelined and config["BLOCK"] * config["STEPS"] <= problem["size"]


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        BLOCK=(256, 512, 1024, 2048, 4096, 8192, 16384),
        STEPS=(1, 2, 4, 8),
        num_warps=(1, 2, 4, 8, 16),
        num_stages=(1, 2, 3),
    ),
    default=Config.of(BLOCK=1024, STEPS=1, num_warps=4, num_stages=1),
    make_problem=make_problem,
    problems={
        "attention": {"size": 1 << 27, "p": 0.1, "dtype": "f16"},  # scores of 32 heads by 2048 by 2048: streams DRAM
        "hidden": {"size": 8192 * 4096, "p": 0.1, "dtype": "bf16"},  # activations of a layer: twice what L2 holds
        "small": {"size": 512 * 768, "p": 0.5, "dtype": "f32"},  # a short batch: all in L2, the launch counts
        "ragged": {"size": 30_000_001, "p": 0.25, "dtype": "f32"},  # the last block holds few elements
    },
    make_inputs=make_inputs,
    outputs=lambda problem: problem.inputs,
    reference=reference,
    launch=launch,
    tolerance=4e-3,  # half a unit in the last place of bf16
)
