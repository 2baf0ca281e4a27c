"""Histogram without atomics on global memory: persistent programs count in registers, a second kernel adds them up."""

import torch
import triton
import triton.language as tl

from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload


@triton.jit
def count_blocks(x_ptr, part_ptr, size, BLOCK: tl.constexpr, BINS: tl.constexpr, num_stages: tl.constexpr):
    counts = tl.zeros([BINS], tl.int32)
    for block in tl.range(tl.program_id(0), tl.cdiv(size, BLOCK), tl.num_programs(0), num_stages=num_stages):
        element = block * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + element, mask=element < size, other=0).to(tl.int32)
        counts += tl.histogram(x, BINS, mask=element < size)
    tl.store(part_ptr + tl.program_id(0) * BINS + tl.arange(0, BINS), counts)


@triton.jit
def add_parts(part_ptr, count_ptr, parts, bins, BINS: tl.constexpr, REDUCE_M: tl.constexpr, REDUCE_N: tl.constexpr):
    column = tl.program_id(0) * REDUCE_N + tl.arange(0, REDUCE_N)
    total = tl.zeros([REDUCE_M, REDUCE_N], tl.int32)
    for first in range(0, parts, REDUCE_M):
        part = first + tl.arange(0, REDUCE_M)
        inside = (part < parts)[:, None] & (column < bins)[None, :]
        total += tl.load(part_ptr + part[:, None] * BINS + column[None, :], mask=inside, other=0)
    tl.store(count_ptr + column, tl.sum(total, 0), mask=column < bins)


def make_problem(*, size: int, bins: int, skewed: int = 0, dtype: str = "i32") -> Problem:
    """x is [size] with values from 0 to bins - 1, counts are i32 [bins]; skewed=1: low values are frequent."""
    if not 1 <= bins <= 2048 or not 1 <= size <= 2**30 or dtype not in ("u8", "i32") or (dtype == "u8" and bins > 256):
        raise UserError(f"got size={size},bins={bins},dtype={dtype}, expected u8 or i32, size to 2^30, bins to 2048")
    params = (("size", size), ("bins", bins), ("skewed", skewed), ("dtype", dtype))
    moved = (1 if dtype == "u8" else 4) * size + 4 * bins
    return Problem("histogram", (TensorSpec((size,), dtype),), params, flops=size, bytes=moved)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    place = torch.rand(problem["size"], generator=generator) ** (4 if problem["skewed"] else 1)
    x = (place * problem["bins"]).int().clamp_max(problem["bins"] - 1)
    return (x.to(torch.uint8) if problem["dtype"] == "u8" else x,)


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (torch.bincount(inputs[0], minlength=problem["bins"]).int(),)


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    (x,), (counts,) = inputs, outputs
    parts, bins = config["PROGRAMS"], max(32, triton.next_power_of_2(problem["bins"]))
    scratch = torch.empty(parts, bins, dtype=torch.int32, device=x.device)
    settings = {name: config[name] for name in ("BLOCK", "num_warps", "num_stages")} | {"BINS": bins}
    sums = {"BINS": bins, "REDUCE_M": 64, "REDUCE_N": 16, "num_warps": 4}
    grid = (triton.cdiv(len(counts), 16),)
    return [
        Launch(count_blocks, (parts,), (x, scratch, len(x)), settings),
        Launch(add_parts, grid, (scratch, counts, parts, len(counts)), sums),
    ]


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """From 1 to 64 values a thread, and a block for every program."""
    values = config["BLOCK"] / (32 * config["num_warps"])
    return 1 <= values <= 64 and config["BLOCK"] * config["PROGRAMS"] <= problem["size"]


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        BLOCK=(256, 512, 1024, 2048, 4096),
        PROGRAMS=(132, 264, 528, 1056, 2112),
        num_warps=(1, 2, 4, 8),
        num_stages=(1, 2, 3),
    ),
    default=Config.of(BLOCK=1024, PROGRAMS=528, num_warps=4, num_stages=1),
    make_problem=make_problem,
    problems={
        "bytes": {"size": 1 << 28, "bins": 256, "dtype": "u8"},  # frequencies of bytes: streams DRAM
        "image": {"size": 8192 * 8192, "bins": 256, "skewed": 1, "dtype": "u8"},  # dark pixels: lanes meet in a bin
        "experts": {"size": 1 << 22, "bins": 64, "dtype": "i32"},  # tokens an expert gets: all in L2
        "wide": {"size": 1 << 26, "bins": 1000, "dtype": "i32"},  # many bins: the counts fill registers
    },
    make_inputs=make_inputs,
    outputs=lambda problem: (TensorSpec((problem["bins"],), "i32"),),
    reference=reference,
    launch=launch,
    tolerance=0.0,
)
