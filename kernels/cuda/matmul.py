"""Matrix product C = A @ B in f32 on the CUDA cores: tiles in shared memory, blocks of C in registers."""

import torch

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload


def make_problem(*, M: int, N: int, K: int) -> Problem:
    """A is [M, K], B is [K, N], C is [M, N]."""
    if min(M, N, K) < 1:
        raise UserError(f"got M={M},N={N},K={K}, expected sizes from 1; give positive sizes")
    return Problem(
        "matmul",
        (TensorSpec((M, K), "f32"), TensorSpec((K, N), "f32")),
        (("M", M), ("N", N), ("K", K)),
        flops=2 * M * N * K,
        bytes=4 * (M * K + K * N + M * N),
    )


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    return tensors.normal(problem.inputs, seed)


def outputs(problem: Problem) -> tuple[TensorSpec, ...]:
    return (TensorSpec((problem["M"], problem["N"]), "f32"),)


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    a, b = inputs
    return ((a.double() @ b.double()).float(),)


def threads(config: Config) -> int:
    return config["BM"] // config["TM"] * (config["BN"] // config["TN"])


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    (a, b), (c,) = inputs, outputs
    M, N, K = problem["M"], problem["N"], problem["K"]
    grid = (-(-N // config["BN"]), -(-M // config["BM"]))
    return [Launch("matmul", grid, (a, b, c, M, N, K), block=(threads(config),))]


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """Every thread loads equally many whole packs; the tiles fit static shared memory, and a block's accumulators, with
    what it multiplies and what it loads, its registers."""
    BM, BN, BK, TM, TN, VEC, stages = (config[name] for name in ("BM", "BN", "BK", "TM", "TN", "VEC", "STAGES"))
    count = threads(config)
    loads = (BM + BN) * BK // (VEC * count)
    registers = TM * TN + TM + TN + loads * (VEC + 2) + 32  # an address has two
    return (
        32 <= count <= 1024
        and BM * BK % (VEC * count) == 0
        and BN * BK % (VEC * count) == 0
        and problem["K"] % VEC == 0
        and problem["N"] % VEC == 0
        and 4 * stages * BK * (BM + config["PAD"] + BN) <= 48 << 10
        and registers <= 255
        and registers * count * config["MIN_BLOCKS"] <= 65536
    )


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        BM=(32, 64, 128),
        BN=(32, 64, 128),
        BK=(8, 16, 32),
        TM=(4, 8),
        TN=(4, 8),
        VEC=(1, 2, 4),
        PAD=(0, 4),
        SPREAD=(0, 1),
        STAGES=(1, 2),
        MIN_BLOCKS=(1, 2),
    ),
    default=Config.of(BM=64, BN=64, BK=16, TM=4, TN=4, VEC=1, PAD=4, SPREAD=0, STAGES=1, MIN_BLOCKS=1),
    make_problem=make_problem,
    problems={
        "square": {"M": 4096, "N": 4096, "K": 4096},  # arithmetic alone counts
        "small": {"M": 512, "N": 512, "K": 512},  # 16 large blocks for 132 units: small ones win
        "odd": {"M": 1777, "N": 1999, "K": 1511},  # tails in every direction, no vector loads
        "tall": {"M": 65536, "N": 64, "K": 256},  # few columns: half of a wide tile would be empty
        "deep": {"M": 256, "N": 256, "K": 32768},  # few blocks, long sums
        "thin": {"M": 8192, "N": 8192, "K": 32},  # short sums: what is written counts
    },
    make_inputs=make_inputs,
    outputs=outputs,
    reference=reference,
    launch=launch,
    tolerance=1e-4,  # sums of 32768 products in f32
)
