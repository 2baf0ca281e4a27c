"""How often each value occurs among n integers: counted in memory, or in copies in shared memory that are added up."""

import torch

from costmodel.measure.facts import shared_limit_bytes
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload


def make_problem(*, n: int, bins: int, skew: int) -> Problem:
    """x is [n] and holds values below `bins`, counts is [bins]; the share of each value falls as 1 / rank^skew."""
    if not 1 <= n < 1 << 30 or not 1 <= bins < 1 << 24 or skew < 0:
        raise UserError(f"got n={n},bins={bins},skew={skew}, expected n below 2^30, bins below 2^24 and skew from 0")
    params = (("n", n), ("bins", bins), ("skew", skew))
    return Problem("histogram", (TensorSpec((n,), "i32"),), params, flops=n, bytes=4 * n + 4 * bins)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    bins, skew = problem["bins"], problem["skew"]
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    uniform = torch.rand(problem["n"], generator=generator)
    if skew == 0:
        return ((uniform * bins).to(torch.int32).clamp_max(bins - 1),)
    shares = torch.arange(1, bins + 1, dtype=torch.float64) ** -float(skew)
    edges = (shares.cumsum(0) / shares.sum()).float()
    return (torch.searchsorted(edges, uniform).to(torch.int32).clamp_max(bins - 1),)


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (torch.bincount(inputs[0], minlength=problem["bins"]).to(torch.int32),)


def shared_bytes(config: Config, bins: int) -> int:
    return 4 * config["COPIES"] * bins if config["PRIVATE"] else 0


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    (x,), (counts,) = inputs, outputs
    n, bins, threads = problem["n"], problem["bins"], config["THREADS"]
    shared = shared_bytes(config, bins)
    return [
        Launch("clear", (-(-bins // threads),), (counts, bins), block=(threads,)),
        Launch("histogram", (config["BLOCKS"],), (x, counts, n, bins), block=(threads,), shared_bytes=shared),
    ]


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """A block's copies fit its shared memory; what only copies use is not varied."""
    users = config["THREADS"] if config["BY_LANE"] else config["THREADS"] // 32
    return (
        shared_bytes(config, problem["bins"]) <= shared_limit_bytes(device)
        and config["COPIES"] <= users
        and (config["PRIVATE"] == 1 or config["COPIES"] == 1)
        and (config["COPIES"] > 1 or config["BY_LANE"] == 0)
    )


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        THREADS=(64, 128, 256, 512, 1024),
        BLOCKS=(64, 132, 264, 528, 1056, 4224),
        VEC=(1, 2, 4),
        PRIVATE=(0, 1),
        COPIES=(1, 2, 4, 8),
        BY_LANE=(0, 1),
        MERGE=(0, 1),
    ),
    default=Config.of(THREADS=256, BLOCKS=264, VEC=1, PRIVATE=0, COPIES=1, BY_LANE=0, MERGE=0),
    make_problem=make_problem,
    problems={
        "bytes": {"n": 1 << 27, "bins": 256, "skew": 0},  # copies are cheap; reading counts
        "skewed": {"n": 1 << 26, "bins": 256, "skew": 2},  # most values are equal: additions collide
        "bits": {"n": 1 << 26, "bins": 2, "skew": 0},  # half of a warp's lanes hold one value
        "many": {"n": 50_000_017, "bins": 20_000, "skew": 1},  # one copy of 80 KB, or two
        "sparse": {"n": 10_000_019, "bins": 2_000_003, "skew": 0},  # no copy fits
    },
    make_inputs=make_inputs,
    outputs=lambda problem: (TensorSpec((problem["bins"],), "i32"),),
    reference=reference,
    launch=launch,
    tolerance=0.0,
)
