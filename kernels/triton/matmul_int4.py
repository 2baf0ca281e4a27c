"""Y = X W with W in 4 bits and a scale for each group of rows: what a linear layer with quantized weights runs.

A byte holds two rows of W that lie half a group apart, so both share their scale and nothing has to be interleaved.
"""

import torch
import triton
import triton.language as tl

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload


@triton.jit
def matmul_of_nibbles(
    x_ptr, packed_ptr, scales_ptr, y_ptr, M, N, K, GROUP_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = BLOCK_K // 2
    HALF_GROUP: tl.constexpr = GROUP_K // 2
    blocks_m, blocks_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    pid = tl.program_id(0)
    block_m, block_n = tl.swizzle2d(pid // blocks_n, pid % blocks_n, blocks_m, blocks_n, GROUP_M)
    m, n, half = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, HALF)
    first_m, first_n = (block_m * BLOCK_M).to(tl.int64), (block_n * BLOCK_N).to(tl.int64)
    x_ptr += first_m * K
    packed_ptr += first_n
    scales_ptr += first_n
    x_offset = m[:, None] * K + half[None, :]
    packed_offset = half[:, None] * N + n[None, :]
    x_inside, n_inside = (m < M - first_m)[:, None], n < N - first_n
    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for row in range(0, K // 2, HALF):  # rows of bytes
        group = row // HALF_GROUP
        low_row = row + group * HALF_GROUP
        x_low = tl.load(x_ptr + low_row + x_offset, mask=x_inside, other=0.0)
        x_high = tl.load(x_ptr + low_row + HALF_GROUP + x_offset, mask=x_inside, other=0.0)
        packed = tl.load(packed_ptr + packed_offset, mask=n_inside[None, :], other=0)
        scale = tl.load(scales_ptr + group.to(tl.int64) * N + n, mask=n_inside, other=0.0)[None, :]
        low = ((packed & 15).to(x_low.dtype) - 8.0) * scale
        high = ((packed >> 4).to(x_high.dtype) - 8.0) * scale
        product = tl.dot(x_low, low, product)
        product = tl.dot(x_high, high, product)
        packed_ptr += HALF * N
    y_ptr += first_m * N + first_n
    tl.store(y_ptr + m[:, None] * N + n[None, :], product.to(y_ptr.dtype.element_ty), mask=x_inside & n_inside[None, :])


def make_problem(*, M: int, N: int, K: int, group: int = 128, dtype: str = "f16") -> Problem:
    """X [M, K], bytes u8 [K/2, N], scales [K/group, N] of X's type, Y [M, N]. K is whole groups.

    Byte (r, n) holds W[k, n] / scale + 8 in its low half and W[k + group/2, n] / scale + 8 in its high one, where
    k = r + (r div group/2) * group/2.
    """
    if dtype not in ("f16", "bf16") or group not in (32, 64, 128, 256) or K % group:
        raise UserError(
            f"got K={K},group={group},dtype={dtype}, expected f16 or bf16, group 32, 64, 128 or 256, and whole groups"
        )
    specs = (TensorSpec((M, K), dtype), TensorSpec((K // 2, N), "u8"), TensorSpec((K // group, N), dtype))
    size = 2 * M * K + K * N // 2 + 2 * (K // group) * N + 2 * M * N
    params = (("M", M), ("N", N), ("K", K), ("group", group), ("dtype", dtype))
    return Problem("matmul", specs, params, flops=2 * M * N * K, bytes=size)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    x, scales = tensors.normal((problem.inputs[0], problem.inputs[2]), seed)
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    packed = torch.randint(0, 256, problem.inputs[1].shape, generator=generator, dtype=torch.uint8)
    return x, packed, 0.02 * (0.5 + scales.abs())


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    x, packed, scales = inputs
    half = packed.view(len(scales), problem["group"] // 2, -1)
    w = (torch.cat((half & 15, half >> 4), 1).float() - 8) * scales.float()[:, None, :]
    return ((x.float() @ w.flatten(0, 1)).to(x.dtype),)


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    M, N, K = problem["M"], problem["N"], problem["K"]
    grid = (triton.cdiv(M, config["BLOCK_M"]) * triton.cdiv(N, config["BLOCK_N"]),)
    settings = {**config.as_dict(), "GROUP_K": problem["group"]}
    return [Launch(matmul_of_nibbles, grid, (*inputs, *outputs, M, N, K), settings)]


def fits(config: Config, problem: Problem, device: Device) -> bool:
    """A step lies in one group; 4 to 256 accumulators a thread; stages in up to 5/4 of a unit's shared memory."""
    block_m, block_n = config["BLOCK_M"], config["BLOCK_N"]
    stages = config["num_stages"] * (2 * block_m + block_n / 2) * config["BLOCK_K"]
    return (
        problem["group"] % config["BLOCK_K"] == 0
        and 4 <= block_m * block_n / (32 * config["num_warps"]) <= 256
        and stages <= 1.25 * dict(device.details).get("shared_bytes_per_unit", 1 << 16)
    )


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        fits, BLOCK_M=(16, 32, 64, 128), BLOCK_N=(16, 32, 64, 128, 256), BLOCK_K=(32, 64, 128), GROUP_M=(1, 8),
        num_warps=(2, 4, 8), num_stages=(2, 3, 4, 5),
    ),
    default=Config.of(BLOCK_M=16, BLOCK_N=64, BLOCK_K=64, GROUP_M=8, num_warps=4, num_stages=4),
    make_problem=make_problem,
    problems={
        "one_token": {"M": 1, "N": 4096, "K": 4096, "group": 128, "dtype": "f16"},  # Llama 3 8B, attention's output
        "decode": {"M": 16, "N": 28672, "K": 4096, "group": 128, "dtype": "bf16"},  # gate and up at once, 16 tokens
        "mlp_down": {"M": 64, "N": 4096, "K": 14336, "group": 128, "dtype": "f16"},  # deep; unpacking starts to tell
        "prefill": {"M": 2048, "N": 4096, "K": 4096, "group": 64, "dtype": "bf16"},  # bound by arithmetic and unpacking
        "ragged": {"M": 100, "N": 1000, "K": 2048, "group": 64, "dtype": "f16"},  # blocks that hang over both edges
    },
    make_inputs=make_inputs,
    outputs=lambda problem: (TensorSpec((problem["M"], problem["N"]), problem.dtype),),
    reference=reference,
    launch=launch,
    tolerance=8e-3,  # one step of bf16 at the largest value; weights are rounded to the activations' type
)  # fmt: skip
