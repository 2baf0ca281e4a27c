"""A square filter over one image in f32, read through the cache or from tiles in shared memory."""

import torch

from costmodel import tensors
from costmodel.measure.facts import shared_limit_bytes
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload


def make_problem(*, H: int, W: int, F: int) -> Problem:
    """The image is [H, W], the filter [F, F], the output [H - F + 1, W - F + 1]."""
    if F < 1 or min(H, W) < F:
        raise UserError(f"got H={H},W={W},F={F}, expected 1 <= F <= H and F <= W; give a smaller filter")
    pixels = (H - F + 1) * (W - F + 1)
    return Problem(
        "convolution",
        (TensorSpec((H, W), "f32"), TensorSpec((F, F), "f32")),
        (("H", H), ("W", W), ("F", F)),
        flops=2 * F * F * pixels,
        bytes=4 * (H * W + F * F + pixels),
    )


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    return tensors.normal(problem.inputs, seed)


def outputs(problem: Problem) -> tuple[TensorSpec, ...]:
    H, W, F = problem["H"], problem["W"], problem["F"]
    return (TensorSpec((H - F + 1, W - F + 1), "f32"),)


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    image, weight = (x.double() for x in inputs)
    rows, columns = (size - problem["F"] + 1 for size in image.shape)
    out = torch.zeros(rows, columns, dtype=torch.float64, device=image.device)
    for y in range(problem["F"]):  # conv2d may use TF32 or transforms; this is the definition
        for x in range(problem["F"]):
            out += weight[y, x] * image[y : y + rows, x : x + columns]
    return (out.float(),)


def span(config: Config) -> tuple[int, int]:
    """Pixels of a block: across, down."""
    return config["BLOCK_X"] * config["TILE_X"], config["BLOCK_Y"] * config["TILE_Y"]


def shared_bytes(config: Config, F: int) -> int:
    across, down = span(config)
    image = (down + F - 1) * (across + F - 1 + config["PAD"]) if config["IMAGE_SHARED"] else 0
    return 4 * (image + (F * F if config["FILTER_SHARED"] else 0))


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    (image, weight), (out,) = inputs, outputs
    H, W, F = problem["H"], problem["W"], problem["F"]
    across, down = span(config)
    grid = (-(-(W - F + 1) // across), -(-(H - F + 1) // down))
    block = (config["BLOCK_X"], config["BLOCK_Y"])
    args = (image, weight, out, H, W, F)
    return [Launch("convolution", grid, args, block=block, shared_bytes=shared_bytes(config, F))]


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """A block has whole warps and fits the unit's threads and shared memory (one kilobyte is the system's)."""
    count = config["BLOCK_X"] * config["BLOCK_Y"]
    most = (shared_limit_bytes(device) + 1024) // config["MIN_BLOCKS"] - 1024
    return (
        32 <= count <= 1024
        and count * config["MIN_BLOCKS"] <= dict(device.details)["max_threads_per_unit"]
        and config["TILE_X"] * config["TILE_Y"] <= 16
        and (config["PAD"] == 0 or config["IMAGE_SHARED"] == 1)
        and not (config["READ_ONLY"] == 0 and config["IMAGE_SHARED"] == config["FILTER_SHARED"] == 1)
        and shared_bytes(config, problem["F"]) <= most
    )


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        BLOCK_X=(16, 32, 64, 128),
        BLOCK_Y=(1, 2, 4, 8, 16),
        TILE_X=(1, 2, 4),
        TILE_Y=(1, 2, 4, 8),
        IMAGE_SHARED=(0, 1),
        FILTER_SHARED=(0, 1),
        PAD=(0, 1),
        READ_ONLY=(0, 1),
        UNROLL=(1, 4),
        MIN_BLOCKS=(1, 2),
    ),
    default=Config.of(
        BLOCK_X=32, BLOCK_Y=8, TILE_X=1, TILE_Y=1, IMAGE_SHARED=0, FILTER_SHARED=0, PAD=0, READ_ONLY=1, UNROLL=1,
        MIN_BLOCKS=1,
    ),
    make_problem=make_problem,
    problems={
        "blur": {"H": 4096, "W": 4096, "F": 17},  # arithmetic counts; a tile's border is as large as the tile
        "edge": {"H": 8192, "W": 8192, "F": 3},  # memory counts
        "wide filter": {"H": 2048, "W": 2048, "F": 63},  # borders of 62 pixels: large tiles, much shared memory
        "strip": {"H": 131, "W": 100003, "F": 9},  # few rows, unaligned ones
        "point": {"H": 5000, "W": 5000, "F": 1},  # a scaled copy: nothing to reuse
    },
    make_inputs=make_inputs,
    outputs=outputs,
    reference=reference,
    launch=launch,
    tolerance=1e-5,
)  # fmt: skip
