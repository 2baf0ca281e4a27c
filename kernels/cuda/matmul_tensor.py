"""Matrix product C = A @ B^T (a linear layer) in f16 with f32 sums on the tensor cores, by mma.m16n8k16."""

import torch

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload


def make_problem(*, M: int, N: int, K: int) -> Problem:
    """A is [M, K], B is [N, K], C is [M, N]."""
    if min(M, N, K) < 1 or K % 2:
        raise UserError(f"got M={M},N={N},K={K}, expected sizes from 1 and an even K; pad K with a zero")
    return Problem(
        "matmul",
        (TensorSpec((M, K), "f16"), TensorSpec((N, K), "f16")),
        (("M", M), ("N", N), ("K", K)),
        flops=2 * M * N * K,
        bytes=2 * (M * K + K * N + M * N),
    )


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    return tensors.normal(problem.inputs, seed)


def outputs(problem: Problem) -> tuple[TensorSpec, ...]:
    return (TensorSpec((problem["M"], problem["N"]), "f16"),)


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    a, b = inputs
    return ((a.float() @ b.float().T).half(),)


def threads(config: Config) -> int:
    return 32 * config["WARPS_M"] * config["WARPS_N"]


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    (a, b), (c,) = inputs, outputs
    M, N, K = problem["M"], problem["N"], problem["K"]
    grid = (-(-N // config["BN"]), -(-M // config["BM"]))
    return [Launch("matmul_tensor", grid, (a, b, c, M, N, K), block=(threads(config),))]


def is_valid(config: Config, problem: Problem, device: Device) -> bool:
    """A warp's part is made of whole products, every thread loads equally many whole packs, the tiles fit static shared
    memory, and a block's accumulators, fragments and loads its registers. The instruction exists from sm_80 on."""
    BM, BN, BK, VEC = (config[name] for name in ("BM", "BN", "BK", "VEC"))
    count = threads(config)
    rows, columns = BM // config["WARPS_M"], BN // config["WARPS_N"]
    loads = (BM + BN) * BK // (VEC * count)
    registers = rows * columns // 32 + rows // 4 + columns // 4 + loads * (VEC // 2 + 2) + 32  # an address has two
    return (
        int(device.arch.removeprefix("sm_")) >= 80
        and rows % 16 == 0
        and columns % 8 == 0
        and BM * BK % (VEC * count) == 0
        and BN * BK % (VEC * count) == 0
        and problem["K"] % VEC == 0
        and 2 * config["STAGES"] * (BK + config["PAD"]) * (BM + BN) <= 48 << 10
        and registers <= 255
        and registers * count * config["MIN_BLOCKS"] <= 65536
    )


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        is_valid,
        BM=(32, 64, 128, 256),
        BN=(32, 64, 128),
        BK=(16, 32, 64),
        WARPS_M=(1, 2, 4),
        WARPS_N=(1, 2, 4),
        VEC=(2, 4, 8),
        PAD=(0, 8),
        STAGES=(1, 2),
        MIN_BLOCKS=(1, 2),
    ),
    default=Config.of(BM=64, BN=64, BK=32, WARPS_M=2, WARPS_N=2, VEC=2, PAD=8, STAGES=1, MIN_BLOCKS=1),
    make_problem=make_problem,
    problems={
        "square": {"M": 4096, "N": 4096, "K": 4096},  # arithmetic alone counts
        "decode": {"M": 16, "N": 4096, "K": 4096},  # a batch of 16 tokens: B streams from memory once
        "prefill": {"M": 2048, "N": 11008, "K": 4096},  # a language model's widest layer
        "odd": {"M": 1777, "N": 1999, "K": 1510},  # tails in every direction, packs of one pair
        "deep": {"M": 128, "N": 128, "K": 65536},  # few blocks, long sums
        "thin": {"M": 8192, "N": 8192, "K": 64},  # short sums: what is written counts
    },
    make_inputs=make_inputs,
    outputs=outputs,
    reference=reference,
    launch=launch,
    tolerance=2e-3,  # a unit in the last place of f16 is 1e-3
)
