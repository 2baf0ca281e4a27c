"""C[b] = A[b] B[b] for a batch of equal matrix products: the batch is the grid's second axis."""

import torch
import triton
import triton.language as tl

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload


@triton.jit
def matmul_of_batch(
    a_ptr, b_ptr, c_ptr, M, N, K, b_row, b_column,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    blocks_m, blocks_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    pid, matrix = tl.program_id(0), tl.program_id(1).to(tl.int64)
    block_m, block_n = tl.swizzle2d(pid // blocks_n, pid % blocks_n, blocks_m, blocks_n, GROUP_M)
    m, n, k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    first_m, first_n = block_m * BLOCK_M, block_n * BLOCK_N
    a_ptr += (matrix * M + first_m) * K
    b_ptr += matrix * K * N + first_n * b_column
    a_offset = m[:, None] * K + k[None, :]
    b_offset = k[:, None] * b_row + n[None, :] * b_column
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
        b_ptr += BLOCK_K * b_row
    c_ptr += (matrix * M + first_m) * N + first_n
    tl.store(c_ptr + m[:, None] * N + n[None, :], product.to(c_ptr.dtype.element_ty), mask=a_inside & b_inside)


def make_problem(*, B: int, M: int, N: int, K: int, layout: str = "nn", dtype: str = "f16") -> Problem:
    """A [B, M, K], C [B, M, N]; B is [B, K, N] in layout nn and [B, N, K] in nt. One matrix has below 2^31 elements."""
    if layout not in ("nn", "nt") or dtype not in ("f16", "bf16"):
        raise UserError(f"got layout={layout},dtype={dtype}, expected layout nn or nt and dtype f16 or bf16")
    if B > 65535 or max(M * K, K * N, M * N) >= 2**31:
        raise UserError(f"got B={B},M={M},N={N},K={K}, expected B up to 65535 and matrices below 2^31 elements")
    a, b = TensorSpec((B, M, K), dtype), TensorSpec((B, K, N) if layout == "nn" else (B, N, K), dtype)
    params = (("B", B), ("M", M), ("N", N), ("K", K), ("layout", layout), ("dtype", dtype))
    return Problem("matmul", (a, b), params, flops=2 * B * M * N * K, bytes=2 * B * (M * K + K * N + M * N))


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    return tensors.normal(problem.inputs, seed)


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    a, b = inputs
    b = b if problem["layout"] == "nn" else b.mT
    return ((a.float() @ b.float()).to(a.dtype),)


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    (a, b), (c,) = inputs, outputs
    M, N, K = problem["M"], problem["N"], problem["K"]
    b_strides = b.stride()[1:] if problem["layout"] == "nn" else b.stride()[:0:-1]
    grid = (triton.cdiv(M, config["BLOCK_M"]) * triton.cdiv(N, config["BLOCK_N"]), problem["B"])
    settings = {**config.as_dict(), "EVEN_K": K % config["BLOCK_K"] == 0}
    return [Launch(matmul_of_batch, grid, (a, b, c, M, N, K, *b_strides), settings)]


def fits(config: Config, problem: Problem, device: Device) -> bool:
    """4 to 256 accumulators a thread (the last spill), and stages in up to 5/4 of a unit's shared memory."""
    block_m, block_n = config["BLOCK_M"], config["BLOCK_N"]
    stages = 2 * config["num_stages"] * (block_m + block_n) * config["BLOCK_K"]
    accumulators = block_m * block_n / (32 * config["num_warps"])
    return 4 <= accumulators <= 256 and stages <= 1.25 * dict(device.details).get("shared_bytes_per_unit", 1 << 16)


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        fits, BLOCK_M=(16, 32, 64, 128), BLOCK_N=(32, 64, 128, 256), BLOCK_K=(16, 32, 64, 128), GROUP_M=(1, 8),
        num_warps=(2, 4, 8), num_stages=(1, 2, 3, 4),
    ),
    default=Config.of(BLOCK_M=64, BLOCK_N=64, BLOCK_K=64, GROUP_M=8, num_warps=4, num_stages=3),
    make_problem=make_problem,
    problems={
        # Scores and values of unfused attention, BERT large: 16 heads of 16 sequences. K, then N, is one head wide.
        "scores": {"B": 256, "M": 512, "N": 512, "K": 64, "layout": "nt", "dtype": "f16"},
        "values": {"B": 256, "M": 512, "N": 64, "K": 512, "layout": "nn", "dtype": "f16"},
        "latent": {"B": 128, "M": 64, "N": 512, "K": 128, "layout": "nn", "dtype": "bf16"},  # DeepSeek: q to the latent
        "small": {"B": 8192, "M": 32, "N": 32, "K": 32, "layout": "nn", "dtype": "f16"},  # a block each
        "windows": {"B": 4096, "M": 49, "N": 49, "K": 32, "layout": "nt", "dtype": "f16"},  # Swin: 7x7 windows, ragged
        "large": {"B": 8, "M": 2048, "N": 2048, "K": 2048, "layout": "nn", "dtype": "bf16"},  # a product each
    },
    make_inputs=make_inputs,
    outputs=lambda problem: (TensorSpec((problem["B"], problem["M"], problem["N"]), problem.dtype),),
    reference=reference,
    launch=launch,
    tolerance=8e-3,  # one step of bf16 at the largest value
)  # fmt: skip
