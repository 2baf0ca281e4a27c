"""Rows added up by destination, the same on every run: values sorted by destination, segment offsets, no atomics."""

import torch
import triton
import triton.language as tl

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload


@triton.jit
def sum_segments(
    x_ptr, offset_ptr, y_ptr, width, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, num_stages: tl.constexpr
):
    segment = tl.program_id(0)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    begin = tl.load(offset_ptr + segment)
    end = tl.load(offset_ptr + segment + 1)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in tl.range(begin, end, BLOCK_M, num_stages=num_stages):
        row = first + tl.arange(0, BLOCK_M)
        inside = (row < end)[:, None] & (column < width)[None, :]
        x = tl.load(x_ptr + row.to(tl.int64)[:, None] * width + column[None, :], mask=inside, other=0.0)
        total += x.to(tl.float32)
    y = tl.sum(total, 0).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + segment.to(tl.int64) * width + column, y, mask=column < width)


def make_problem(*, rows: int, width: int, segments: int, skewed: int = 0, dtype: str = "f32") -> Problem:
    """x is [rows, width], the offsets are i32 [segments + 1], y is [segments, width]; skewed=1: a few long segments."""
    if min(rows, width, segments) < 1 or skewed not in (0, 1):
        raise UserError(f"got rows={rows},width={width},segments={segments},skewed={skewed}, expected sizes from 1")
    moved = tensors.dtype_of(dtype).itemsize * width * (rows + segments) + 4 * (segments + 1)
    params = (("rows", rows), ("width", width), ("segments", segments), ("skewed", skewed), ("dtype", dtype))
    inputs = (TensorSpec((rows, width), dtype), TensorSpec((segments + 1,), "i32"))
    return Problem("scatter_add", inputs, params, flops=rows * width, bytes=moved)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    """Each row picks its destination at random: evenly, or with density falling as the 4th root's derivative."""
    (x,) = tensors.normal(problem.inputs[:1], seed)
    segments = problem["segments"]
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed + 1)
    place = torch.rand(len(x), generator=generator, dtype=torch.float64) ** (4 if problem["skewed"] else 1)
    counts = torch.bincount((place * segments).long().clamp_max(segments - 1), minlength=segments)
    return x, torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()


def outputs_of(problem: Problem) -> tuple[TensorSpec, ...]:
    return (TensorSpec((problem["segments"], problem["width"]), problem.inputs[0].dtype),)


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    x, offsets = inputs
    counts = offsets.diff().long()
    index = torch.repeat_interleave(torch.arange(len(counts), device=x.device), counts)
    total = torch.zeros(len(counts), x.shape[1], dtype=torch.float32, device=x.device)
    return (total.index_add_(0, index, x.float()).to(x.dtype),)


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    (x, offsets), (y,) = inputs, outputs
    segments, width = y.shape
    grid = (segments, triton.cdiv(width, config["BLOCK_N"]))
    return [Launch(sum_segments, grid, (x, offsets, y, width), config.as_dict())]


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """From 1 to 64 values a thread, and a block no wider than the rows need."""
    values = config["BLOCK_M"] * config["BLOCK_N"] / (32 * config["num_warps"])
    return 1 <= values <= 64 and config["BLOCK_N"] <= triton.next_power_of_2(problem["width"])


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        BLOCK_M=(1, 2, 4, 8, 16, 32, 64),
        BLOCK_N=(32, 64, 128, 256, 512, 1024),
        num_warps=(1, 2, 4, 8),
        num_stages=(1, 2, 3, 4),
    ),
    default=Config.of(BLOCK_M=8, BLOCK_N=64, num_warps=2, num_stages=2),
    make_problem=make_problem,
    problems={
        "graph": {"rows": 1_000_000, "width": 128, "segments": 60_000, "dtype": "f32"},  # messages along edges
        "powerlaw": {"rows": 1_000_000, "width": 64, "segments": 60_000, "skewed": 1, "dtype": "f32"},  # hubs wait
        "experts": {"rows": 65536, "width": 4096, "segments": 32768, "dtype": "bf16"},  # two experts' answers a token
        "pool": {"rows": 400_000, "width": 300, "segments": 256, "dtype": "f16"},  # few long segments of ragged rows
    },
    make_inputs=make_inputs,
    outputs=outputs_of,
    reference=reference,
    launch=launch,
    tolerance=4e-3,  # half a unit in the last place of bf16
)
