"""int8 weights with a scale for each group of neighbours, to f16: groups lie flat, one scale a row of the tile."""

import torch
import triton
import triton.language as tl

from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload


@triton.jit
def dequantize_groups(
    q_ptr, scale_ptr, y_ptr, groups,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, STEPS: tl.constexpr, num_stages: tl.constexpr,
):  # fmt: skip
    for step in tl.range(STEPS, num_stages=num_stages):
        group = (tl.program_id(0) * STEPS + step) * BLOCK_M + tl.arange(0, BLOCK_M)
        scale = tl.load(scale_ptr + group, mask=group < groups, other=0.0).to(tl.float32)
        offset = group.to(tl.int64)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        inside = (group < groups)[:, None]
        q = tl.load(q_ptr + offset, mask=inside, other=0).to(tl.float32)
        tl.store(y_ptr + offset, (q * scale[:, None]).to(y_ptr.dtype.element_ty), mask=inside)


def make_problem(*, rows: int, columns: int, group: int) -> Problem:
    """q is i8 [rows, columns], scales f16 [rows, columns / group], y f16 [rows, columns]; group: 16, 32, ..., 256."""
    if group not in (16, 32, 64, 128, 256) or columns < 1 or columns % group or rows < 1:
        raise UserError(f"got columns={columns},group={group}, expected a group of 16, 32, ..., 256 dividing columns")
    params = (("rows", rows), ("columns", columns), ("group", group))
    inputs = (TensorSpec((rows, columns), "i8"), TensorSpec((rows, columns // group), "f16"))
    moved = 3 * rows * columns + 2 * rows * columns // group
    return Problem("dequantize", inputs, params, flops=rows * columns, bytes=moved)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    q = torch.randint(-127, 128, problem.inputs[0].shape, generator=generator, dtype=torch.int8)
    scale = 0.001 + 0.01 * torch.rand(problem.inputs[1].shape, generator=generator)
    return q, scale.half()


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    q, scale = inputs
    return ((q.float().unflatten(-1, (-1, problem["group"])) * scale.float()[:, :, None]).flatten(1).half(),)


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    groups = inputs[1].numel()
    grid = (triton.cdiv(groups, config["BLOCK_M"] * config["STEPS"]),)
    settings = {**config.as_dict(), "GROUP": problem["group"]}
    return [Launch(dequantize_groups, grid, (*inputs, *outputs, groups), settings)]


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """From 2 to 128 values a thread; one step is no loop."""
    values = config["BLOCK_M"] * problem["group"] / (32 * config["num_warps"])
    return 2 <= values <= 128 and (config["num_stages"] == 1 or config["STEPS"] > 1)


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        BLOCK_M=(2, 4, 8, 16, 32, 64, 128, 256),
        STEPS=(1, 2, 4, 8),
        num_warps=(1, 2, 4, 8),
        num_stages=(1, 2, 3),
    ),
    default=Config.of(BLOCK_M=16, STEPS=1, num_warps=4, num_stages=1),
    make_problem=make_problem,
    problems={
        "projection": {"rows": 4096, "columns": 4096, "group": 128},  # fits L2 whole
        "hidden": {"rows": 14336, "columns": 4096, "group": 64},  # the largest matrix of an 8B model's layer
        "fine": {"rows": 8192, "columns": 8192, "group": 32},  # a scale for every 32: more loads of scales
        "output": {"rows": 128256, "columns": 2048, "group": 256},  # the output projection: streams DRAM
    },
    make_inputs=make_inputs,
    outputs=lambda problem: (TensorSpec(problem.inputs[0].shape, "f16"),),
    reference=reference,
    launch=launch,
    tolerance=1e-3,  # a unit in the last place of f16
)
