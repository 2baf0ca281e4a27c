"""Steps of heat flow on a 3-D grid, a stencil of seven points: planes marched in registers, or in shared memory."""

import torch

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload

CENTRE, SIDE = 0.4, 0.1


def make_problem(*, D: int, H: int, W: int, STEPS: int) -> Problem:
    """The grid is [D, H, W]; STEPS times each point becomes 0.4 of itself and 0.1 of each neighbour (zero outside)."""
    if min(D, H, W, STEPS) < 1:
        raise UserError(f"got D={D},H={H},W={W},STEPS={STEPS}, expected all from 1; give positive sizes")
    points = D * H * W
    params = (("D", D), ("H", H), ("W", W), ("STEPS", STEPS))
    return Problem("stencil3d", (TensorSpec((D, H, W), "f32"),), params, flops=8 * points * STEPS, bytes=8 * points)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    return tensors.normal(problem.inputs, seed)


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    u = inputs[0].double()
    for _ in range(problem["STEPS"]):
        p = torch.nn.functional.pad(u, (1, 1, 1, 1, 1, 1))
        sides = p[2:, 1:-1, 1:-1] + p[:-2, 1:-1, 1:-1] + p[1:-1, 2:, 1:-1] + p[1:-1, :-2, 1:-1]
        sides += p[1:-1, 1:-1, 2:] + p[1:-1, 1:-1, :-2]
        u = CENTRE * u + SIDE * sides
    return (u.float(),)


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    (u,), (out,) = inputs, outputs
    D, H, W = u.shape
    spans = (config["BLOCK_X"], config["BLOCK_Y"] * config["ROWS"], config["DEPTH"])
    grid = tuple(-(-size // span) for size, span in zip((W, H, D), spans, strict=True))
    block = (config["BLOCK_X"], config["BLOCK_Y"])
    steps = problem["STEPS"]
    scratch = torch.empty_like(u) if steps > 1 else out
    launches, source = [], u
    for step in range(steps):
        target = out if (steps - step) % 2 else scratch  # the last one writes the output
        launches.append(Launch("stencil", grid, (source, target, D, H, W, CENTRE, SIDE), block=block))
        source = target
    return launches


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """Two warps and more; planes fit static shared memory; a loop over one plane is not unrolled; z ends at 65535."""
    count = config["BLOCK_X"] * config["BLOCK_Y"]
    tile = (config["BLOCK_X"] + 2) * (config["BLOCK_Y"] * config["ROWS"] + 2)
    return (
        64 <= count <= 1024
        and (not config["SHARED"] or 2 * 4 * tile <= 48 << 10)
        and count * config["MIN_BLOCKS"] <= dict(device.details)["max_threads_per_unit"]
        and (config["DEPTH"] > 1 or not config["MARCH"])
        and config["UNROLL"] <= config["DEPTH"]
        and -(-problem["D"] // config["DEPTH"]) <= 65535
    )


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        BLOCK_X=(32, 64, 128),
        BLOCK_Y=(1, 2, 4, 8, 16),
        ROWS=(1, 2, 4),
        DEPTH=(1, 4, 16, 64),
        MARCH=(0, 1),
        SHARED=(0, 1),
        UNROLL=(1, 2),
        MIN_BLOCKS=(1, 2, 4),
    ),
    default=Config.of(BLOCK_X=32, BLOCK_Y=8, ROWS=1, DEPTH=1, MARCH=0, SHARED=0, UNROLL=1, MIN_BLOCKS=1),
    make_problem=make_problem,
    problems={
        "cube": {"D": 512, "H": 512, "W": 512, "STEPS": 1},  # half a gigabyte: memory counts
        "cached": {"D": 96, "H": 256, "W": 256, "STEPS": 4},  # both grids stay in the second-level cache
        "odd": {"D": 201, "H": 203, "W": 307, "STEPS": 2},  # tails in every direction
        "flat": {"D": 7, "H": 2048, "W": 2048, "STEPS": 1},  # few planes to march through
        "column": {"D": 8192, "H": 64, "W": 64, "STEPS": 1},  # few blocks a plane: marching far leaves units idle
    },
    make_inputs=make_inputs,
    outputs=lambda problem: problem.inputs,
    reference=reference,
    launch=launch,
    tolerance=1e-6,
)
