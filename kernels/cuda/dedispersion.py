"""Dedispersion: channels of a radio telescope added up under many trial delays, a gather that reuses what it reads."""

import torch

from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload


def make_problem(*, channels: int, trials: int, samples: int, longest: int) -> Problem:
    """x is [channels, samples + longest], delay [trials, channels] with values up to `longest`, out [trials, samples].

    Delays grow with the trial and, as 1 / frequency^2, towards the low channels.
    """
    if min(channels, trials, samples) < 1 or longest < 0:
        raise UserError(
            f"got channels={channels},trials={trials},samples={samples},longest={longest}, expected positive sizes"
        )
    params = (("channels", channels), ("trials", trials), ("samples", samples), ("longest", longest))
    row = samples + longest
    return Problem(
        "dedispersion",
        (TensorSpec((channels, row), "f32"), TensorSpec((trials, channels), "i32")),
        params,
        flops=channels * trials * samples,
        bytes=4 * (channels * row + trials * channels + trials * samples),
    )


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    channels, trials = problem["channels"], problem["trials"]
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    x = torch.randn(problem.inputs[0].shape, generator=generator)
    frequency = torch.linspace(0.5, 1.0, channels, dtype=torch.float64)  # of the highest
    slope = frequency**-2 - 1
    share = torch.arange(1, trials + 1, dtype=torch.float64) / trials
    delay = (problem["longest"] * share[:, None] * slope / slope.max().clamp_min(1)).floor().to(torch.int32)
    return x, delay


def outputs(problem: Problem) -> tuple[TensorSpec, ...]:
    return (TensorSpec((problem["trials"], problem["samples"]), "f32"),)


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    x, delay = inputs
    sample = torch.arange(problem["samples"], device=x.device)
    out = torch.zeros(problem["trials"], problem["samples"], dtype=torch.float64, device=x.device)
    for channel in range(problem["channels"]):
        out += x[channel][delay[:, channel, None].long() + sample].double()
    return (out.float(),)


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    (x, delay), (out,) = inputs, outputs
    channels, trials, samples = problem["channels"], problem["trials"], problem["samples"]
    spans = config["BLOCK_X"] * config["TILE_X"], config["BLOCK_Y"] * config["TILE_Y"]
    grid = (-(-samples // spans[0]), -(-trials // spans[1]))
    block = (config["BLOCK_X"], config["BLOCK_Y"])
    return [Launch("dedispersion", grid, (x, delay, out, channels, trials, samples, x.shape[1]), block=block)]


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """Whole warps, delays that fit static shared memory, and at most 32 sums a thread."""
    count = config["BLOCK_X"] * config["BLOCK_Y"]
    sums = config["TILE_X"] * config["TILE_Y"]
    return (
        64 <= count <= 1024
        and sums <= 32
        and count * config["MIN_BLOCKS"] * (2 * sums + 32) <= 65536
        and 4 * config["BLOCK_Y"] * config["TILE_Y"] * config["CHANNELS"] <= 48 << 10
        and (config["DELAYS_SHARED"] or config["CHANNELS"] == 32)
    )


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        BLOCK_X=(32, 64, 128, 256),
        BLOCK_Y=(1, 2, 4, 8),
        TILE_X=(1, 2, 4, 8),
        TILE_Y=(1, 2, 4, 8),
        NEAR=(0, 1),
        DELAYS_SHARED=(0, 1),
        CHANNELS=(32, 128),
        UNROLL=(1, 4),
        MIN_BLOCKS=(1, 2),
    ),
    default=Config.of(
        BLOCK_X=64, BLOCK_Y=4, TILE_X=1, TILE_Y=1, NEAR=0, DELAYS_SHARED=0, CHANNELS=32, UNROLL=1, MIN_BLOCKS=1
    ),
    make_problem=make_problem,
    problems={
        "survey": {"channels": 1024, "trials": 512, "samples": 25000, "longest": 2500},  # usual: much is reused
        "fine": {"channels": 512, "trials": 2048, "samples": 8192, "longest": 400},  # neighbours read the same
        "coarse": {"channels": 1024, "trials": 32, "samples": 50000, "longest": 20000},  # they read far apart
        "odd": {"channels": 333, "trials": 101, "samples": 20011, "longest": 997},  # tails in every direction
        "short": {"channels": 4096, "trials": 256, "samples": 1000, "longest": 300},  # few blocks, long sums
    },
    make_inputs=make_inputs,
    outputs=outputs,
    reference=reference,
    launch=launch,
    tolerance=1e-5,
)
