"""C = A B for few blocks and a deep K: several programs share a block of C, each takes a part of K.

The parts go to f32 scratch and a second kernel adds them in a fixed order, so that equal inputs give equal bits.
"""

import torch
import triton
import triton.language as tl

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload


@triton.jit
def matmul_parts(
    a_ptr, b_ptr, parts_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT_K: tl.constexpr,
):  # fmt: skip
    blocks_n = tl.cdiv(N, BLOCK_N)
    block_m, block_n = tl.program_id(0) // blocks_n, tl.program_id(0) % blocks_n
    part = tl.program_id(1)
    depth = tl.cdiv(tl.cdiv(K, BLOCK_K), SPLIT_K) * BLOCK_K  # whole steps, so that only the last part is ragged
    first_k = part * depth
    last_k = tl.minimum(first_k + depth, K)  # the last parts may be empty; they store zeros
    m, n, k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    first_m, first_n = (block_m * BLOCK_M).to(tl.int64), (block_n * BLOCK_N).to(tl.int64)
    a_ptr += first_m * K + first_k
    b_ptr += first_n + first_k.to(tl.int64) * N
    a_offset = m[:, None] * K + k[None, :]
    b_offset = k[:, None] * N + n[None, :]
    a_inside, b_inside = (m < M - first_m)[:, None], (n < N - first_n)[None, :]
    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(first_k, last_k, BLOCK_K):
        a = tl.load(a_ptr + a_offset, mask=a_inside & (k < last_k - start)[None, :], other=0.0)
        b = tl.load(b_ptr + b_offset, mask=b_inside & (k < last_k - start)[:, None], other=0.0)
        product = tl.dot(a, b, product)
        a_ptr += BLOCK_K
        b_ptr += BLOCK_K * N
    parts_ptr += (part * M + first_m) * N + first_n
    tl.store(parts_ptr + m[:, None] * N + n[None, :], product, mask=a_inside & b_inside)


@triton.jit
def add_parts(parts_ptr, c_ptr, size, SPLIT_K: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for part in tl.static_range(SPLIT_K):
        total += tl.load(parts_ptr + part * size.to(tl.int64) + i, mask=i < size, other=0.0)
    tl.store(c_ptr + i, total.to(c_ptr.dtype.element_ty), mask=i < size)


def make_problem(*, M: int, N: int, K: int, dtype: str = "f16") -> Problem:
    """A [M, K], B [K, N], C [M, N] of fewer than 2^31 elements."""
    if dtype not in ("f16", "bf16") or M * N >= 2**31:
        raise UserError(f"got M={M},N={N},dtype={dtype}, expected dtype f16 or bf16 and M*N below 2^31")
    params = (("M", M), ("N", N), ("K", K), ("dtype", dtype))
    specs = (TensorSpec((M, K), dtype), TensorSpec((K, N), dtype))
    return Problem("matmul", specs, params, flops=2 * M * N * K, bytes=2 * (M * K + K * N + M * N))


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    return tensors.normal(problem.inputs, seed)


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    a, b = inputs
    return ((a.float() @ b.float()).to(a.dtype),)


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    (a, b), (c,) = inputs, outputs
    M, N, K, splits = problem["M"], problem["N"], problem["K"], config["SPLIT_K"]
    parts = torch.empty((splits, M, N), dtype=torch.float32, device=a.device)
    settings = config.as_dict()
    block = settings.pop("SUM_BLOCK")
    grid = (triton.cdiv(M, config["BLOCK_M"]) * triton.cdiv(N, config["BLOCK_N"]), splits)
    return [
        Launch(matmul_parts, grid, (a, b, parts, M, N, K), settings),
        Launch(
            add_parts, (triton.cdiv(M * N, block),), (parts, c, M * N),
            {"SPLIT_K": splits, "BLOCK": block, "num_warps": 4},
        ),
    ]  # fmt: skip


def fits(config: Config, problem: Problem, device: Device) -> bool:
    """Every part of K has a step; 4 to 256 accumulators a thread; stages in up to 5/4 of a unit's shared memory."""
    block_m, block_n = config["BLOCK_M"], config["BLOCK_N"]
    stages = 2 * config["num_stages"] * (block_m + block_n) * config["BLOCK_K"]
    return (
        config["SPLIT_K"] <= triton.cdiv(problem["K"], config["BLOCK_K"])
        and 4 <= block_m * block_n / (32 * config["num_warps"]) <= 256
        and stages <= 1.25 * dict(device.details).get("shared_bytes_per_unit", 1 << 16)
    )


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        fits, BLOCK_M=(16, 32, 64, 128), BLOCK_N=(32, 64, 128), BLOCK_K=(32, 64, 128), SPLIT_K=(2, 4, 8, 16, 32),
        SUM_BLOCK=(512, 2048), num_warps=(4, 8), num_stages=(2, 3, 4, 5),
    ),
    default=Config.of(BLOCK_M=64, BLOCK_N=64, BLOCK_K=64, SPLIT_K=4, SUM_BLOCK=512, num_warps=4, num_stages=4),
    make_problem=make_problem,
    problems={
        "decode": {"M": 16, "N": 4096, "K": 14336, "dtype": "bf16"},  # 16 tokens through Llama 3 8B's last MLP matrix
        "one_token": {"M": 1, "N": 4096, "K": 4096, "dtype": "f16"},  # a matrix times a vector, padded to 16 rows
        "weight_gradient": {"M": 768, "N": 768, "K": 32768, "dtype": "bf16"},  # dW of 32768 tokens: 36 blocks of 128
        "router": {"M": 4096, "N": 64, "K": 7168, "dtype": "bf16"},  # scores of 64 experts: one block wide
        "ragged": {"M": 300, "N": 200, "K": 20002, "dtype": "f16"},  # a part that ends in the middle of a step
    },
    make_inputs=make_inputs,
    outputs=lambda problem: (TensorSpec((problem["M"], problem["N"]), problem.dtype),),
    reference=reference,
    launch=launch,
    tolerance=8e-3,  # one step of bf16 at the largest value
)  # fmt: skip
