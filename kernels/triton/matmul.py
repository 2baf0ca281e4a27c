"""C = A B: a block of C in registers, blocks ordered in groups of rows so that those in flight share operands in L2."""

import torch
import triton
import triton.language as tl

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload


@triton.jit
def matmul_blocks(
    a_ptr, b_ptr, c_ptr, M, N, K, b_row, b_column,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    blocks_m, blocks_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    pid = tl.program_id(0)
    block_m, block_n = tl.swizzle2d(pid // blocks_n, pid % blocks_n, blocks_m, blocks_n, GROUP_M)
    # A scalar of 64 bits leads to the block's first row; offsets inside a block fit 32, which saves registers.
    m, n, k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    first_m, first_n = (block_m * BLOCK_M).to(tl.int64), (block_n * BLOCK_N).to(tl.int64)
    a_ptr += first_m * K
    b_ptr += first_n * b_column
    a_offset = m[:, None] * K + k[None, :]
    b_offset = k[:, None] * b_row + n[None, :] * b_column
    a_inside, b_inside = (m < M - first_m)[:, None], (n < N - first_n)[None, :]
    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        if EVEN_K:  # the last step is whole too: masks that do not change with the step cost nothing
            a = tl.load(a_ptr + a_offset, mask=a_inside, other=0.0)
            b = tl.load(b_ptr + b_offset, mask=b_inside, other=0.0)
        else:
            a = tl.load(a_ptr + a_offset, mask=a_inside & (k < K - start)[None, :], other=0.0)
            b = tl.load(b_ptr + b_offset, mask=b_inside & (k < K - start)[:, None], other=0.0)
        product = tl.dot(a, b, product)
        a_ptr += BLOCK_K
        b_ptr += BLOCK_K * b_row
    c_ptr += first_m * N + first_n
    tl.store(c_ptr + m[:, None] * N + n[None, :], product.to(c_ptr.dtype.element_ty), mask=a_inside & b_inside)


def make_problem(*, M: int, N: int, K: int, layout: str = "nn", dtype: str = "f16") -> Problem:
    """A [M, K], C [M, N]; B is [K, N] in layout nn, and [N, K], as a linear layer keeps its weights, in layout nt."""
    if layout not in ("nn", "nt") or dtype not in ("f16", "bf16"):
        raise UserError(f"got layout={layout},dtype={dtype}, expected layout nn or nt and dtype f16 or bf16")
    a, b = TensorSpec((M, K), dtype), TensorSpec((K, N) if layout == "nn" else (N, K), dtype)
    params = (("M", M), ("N", N), ("K", K), ("layout", layout), ("dtype", dtype))
    return Problem("matmul", (a, b), params, flops=2 * M * N * K, bytes=2 * (M * K + K * N + M * N))


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    return tensors.normal(problem.inputs, seed)


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    a, b = inputs
    product = a.float() @ (b.float() if problem["layout"] == "nn" else b.float().T)
    return (product.to(a.dtype),)


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    (a, b), (c,) = inputs, outputs
    M, N, K = problem["M"], problem["N"], problem["K"]
    b_strides = b.stride() if problem["layout"] == "nn" else b.stride()[::-1]
    grid = (triton.cdiv(M, config["BLOCK_M"]) * triton.cdiv(N, config["BLOCK_N"]),)
    settings = {**config.as_dict(), "EVEN_K": K % config["BLOCK_K"] == 0}
    return [Launch(matmul_blocks, grid, (a, b, c, M, N, K, *b_strides), settings)]


def fits(config: Config, problem: Problem, device: Device) -> bool:
    """4 to 256 accumulators a thread (the last spill), and stages in up to 5/4 of a unit's shared memory."""
    block_m, block_n = config["BLOCK_M"], config["BLOCK_N"]
    stages = 2 * config["num_stages"] * (block_m + block_n) * config["BLOCK_K"]
    accumulators = block_m * block_n / (32 * config["num_warps"])
    return 4 <= accumulators <= 256 and stages <= 1.25 * dict(device.details).get("shared_bytes_per_unit", 1 << 16)


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        fits, BLOCK_M=(16, 32, 64, 128, 256), BLOCK_N=(32, 64, 128, 256), BLOCK_K=(32, 64, 128), GROUP_M=(1, 4, 8),
        num_warps=(2, 4, 8), num_stages=(2, 3, 4, 5),
    ),
    default=Config.of(BLOCK_M=128, BLOCK_N=128, BLOCK_K=64, GROUP_M=8, num_warps=8, num_stages=3),
    make_problem=make_problem,
    problems={
        "square": {"M": 4096, "N": 4096, "K": 4096, "layout": "nn", "dtype": "f16"},  # the one everybody quotes
        "mlp_down": {"M": 2048, "N": 4096, "K": 14336, "layout": "nt", "dtype": "bf16"},  # Llama 3 8B: few, deep blocks
        "decode": {"M": 16, "N": 14336, "K": 4096, "layout": "nt", "dtype": "bf16"},  # 16 tokens: weights' bandwidth
        "logits": {"M": 4096, "N": 50257, "K": 768, "layout": "nn", "dtype": "f16"},  # GPT-2: odd rows, no wide loads
        "ragged": {"M": 1000, "N": 1500, "K": 2050, "layout": "nn", "dtype": "f16"},  # every mask, no wide loads
        "outer": {"M": 8192, "N": 8192, "K": 128, "layout": "nt", "dtype": "f16"},  # shallow: writing C decides
    },
    make_inputs=make_inputs,
    outputs=lambda problem: (TensorSpec((problem["M"], problem["N"]), problem.dtype),),
    reference=reference,
    launch=launch,
    tolerance=8e-3,  # one step of bf16 at the largest value
)  # fmt: skip
