"""C = (A B^T) scaled by row and by column, A and B in 8-bit floats: what a linear layer quantized per token runs."""

import torch
import triton
import triton.language as tl

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload


@triton.jit
def matmul_scaled(
    a_ptr, b_ptr, a_scale_ptr, b_scale_ptr, c_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    blocks_m, blocks_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    pid = tl.program_id(0)
    block_m, block_n = tl.swizzle2d(pid // blocks_n, pid % blocks_n, blocks_m, blocks_n, GROUP_M)
    m, n, k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    first_m, first_n = (block_m * BLOCK_M).to(tl.int64), (block_n * BLOCK_N).to(tl.int64)
    a_ptr += first_m * K
    b_ptr += first_n * K  # both are contiguous along K, the one order in which tensor cores take 8-bit floats
    a_offset = m[:, None] * K + k[None, :]
    b_offset = k[:, None] + n[None, :] * K
    a_inside, b_inside = (m < M - first_m)[:, None], (n < N - first_n)[None, :]
    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        if EVEN_K:
            a = tl.load(a_ptr + a_offset, mask=a_inside, other=0.0)
            b = tl.load(b_ptr + b_offset, mask=b_inside, other=0.0)
        else:
            a = tl.load(a_ptr + a_offset, mask=a_inside & (k < K - start)[None, :], other=0.0)
            b = tl.load(b_ptr + b_offset, mask=b_inside & (k < K - start)[:, None], other=0.0)
        product = tl.dot(a, b, product)
        a_ptr += BLOCK_K
        b_ptr += BLOCK_K
    a_scale = tl.load(a_scale_ptr + first_m + m, mask=m < M - first_m, other=0.0)
    b_scale = tl.load(b_scale_ptr + first_n + n, mask=n < N - first_n, other=0.0)
    product = product * a_scale[:, None] * b_scale[None, :]
    c_ptr += first_m * N + first_n
    tl.store(c_ptr + m[:, None] * N + n[None, :], product.to(c_ptr.dtype.element_ty), mask=a_inside & b_inside)


def make_problem(*, M: int, N: int, K: int, output: str = "bf16") -> Problem:
    """A [M, K] and B [N, K] f8_e4m3, scales f32 [M] and [N], C [M, N] of type `output`: f16 or bf16."""
    if output not in ("f16", "bf16"):
        raise UserError(f"got output={output}, expected f16 or bf16")
    specs = (
        TensorSpec((M, K), "f8_e4m3"), TensorSpec((N, K), "f8_e4m3"), TensorSpec((M,), "f32"), TensorSpec((N,), "f32")
    )  # fmt: skip
    size = M * K + K * N + 4 * (M + N) + 2 * M * N
    params = (("M", M), ("N", N), ("K", K), ("output", output))
    return Problem("matmul", specs, params, flops=2 * M * N * K, bytes=size)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    """Scales of one sign and one order of magnitude, as the largest values of rows are."""
    a, b, a_scale, b_scale = tensors.normal(problem.inputs, seed)
    return a, b, 0.05 * (0.5 + a_scale.abs()), 0.05 * (0.5 + b_scale.abs())


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    a, b, a_scale, b_scale = inputs
    product = (a.float() @ b.float().T) * a_scale[:, None] * b_scale[None, :]
    return (product.to(tensors.dtype_of(problem["output"])),)


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    M, N, K = problem["M"], problem["N"], problem["K"]
    grid = (triton.cdiv(M, config["BLOCK_M"]) * triton.cdiv(N, config["BLOCK_N"]),)
    settings = {**config.as_dict(), "EVEN_K": K % config["BLOCK_K"] == 0}
    return [Launch(matmul_scaled, grid, (*inputs, *outputs, M, N, K), settings)]


def fits(config: Config, problem: Problem, device: Device) -> bool:
    """A unit for 8-bit floats; 4 to 256 accumulators a thread; stages in up to 5/4 of a unit's shared memory."""
    block_m, block_n = config["BLOCK_M"], config["BLOCK_N"]
    stages = config["num_stages"] * (block_m + block_n) * config["BLOCK_K"]
    return (
        "f8/tensor" in dict(device.peak_tflops)
        and 4 <= block_m * block_n / (32 * config["num_warps"]) <= 256
        and stages <= 1.25 * dict(device.details).get("shared_bytes_per_unit", 1 << 16)
    )


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        fits, BLOCK_M=(16, 32, 64, 128, 256), BLOCK_N=(32, 64, 128, 256), BLOCK_K=(64, 128, 256), GROUP_M=(1, 4, 8),
        num_warps=(4, 8), num_stages=(2, 3, 4, 5),
    ),
    default=Config.of(BLOCK_M=128, BLOCK_N=128, BLOCK_K=128, GROUP_M=8, num_warps=8, num_stages=3),
    make_problem=make_problem,
    problems={
        "square": {"M": 4096, "N": 4096, "K": 4096, "output": "f16"},  # the one everybody quotes
        "mlp_up": {"M": 8192, "N": 14336, "K": 4096, "output": "bf16"},  # Llama 3 8B, prefill: bound by arithmetic
        "mlp_down": {"M": 1024, "N": 4096, "K": 14336, "output": "bf16"},  # deep, few blocks
        "decode": {"M": 32, "N": 28672, "K": 8192, "output": "bf16"},  # 32 tokens of the 70B: weights' bandwidth
        "ragged": {"M": 777, "N": 2000, "K": 1104, "output": "f16"},  # K a multiple of 16 but of no step
    },
    make_inputs=make_inputs,
    outputs=lambda problem: (TensorSpec((problem["M"], problem["N"]), problem["output"]),),
    reference=reference,
    launch=launch,
    tolerance=1e-2,  # a step of bf16, and sums inside Hopper's 8-bit unit that keep some 14 bits
)  # fmt: skip
