"""Rows sorted by expert times their expert's matrix (mixture of experts), all experts in one launch.

How many rows an expert has is known on the device alone: the grid is the most blocks there can be, and each program
finds its expert in the offsets.
"""

import torch
import triton
import triton.language as tl

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload


@triton.jit
def matmul_of_experts(
    x_ptr, w_ptr, offsets_ptr, y_ptr, experts, most_blocks, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    EXPERTS: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    blocks_n = tl.cdiv(N, BLOCK_N)
    pid = tl.program_id(0)
    block_m, block_n = tl.swizzle2d(pid // blocks_n, pid % blocks_n, most_blocks, blocks_n, GROUP_M)
    e = tl.arange(0, EXPERTS)
    first = tl.load(offsets_ptr + e, mask=e < experts, other=0)
    rows = tl.load(offsets_ptr + e + 1, mask=e < experts, other=0) - first
    blocks = tl.cdiv(rows, BLOCK_M)
    ends = tl.cumsum(blocks, 0)  # experts past the last repeat its end
    if block_m >= tl.max(ends, 0):
        return
    expert = tl.sum((ends <= block_m).to(tl.int32), 0)
    within = (block_m - tl.sum(tl.where(e == expert, ends - blocks, 0), 0)) * BLOCK_M
    rows_left = tl.sum(tl.where(e == expert, rows, 0), 0) - within
    first_row = (tl.sum(tl.where(e == expert, first, 0), 0) + within).to(tl.int64)
    m, n, k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    first_n = block_n * BLOCK_N
    x_ptr += first_row * K
    w_ptr += expert.to(tl.int64) * K * N + first_n
    x_offset = m[:, None] * K + k[None, :]
    w_offset = k[:, None] * N + n[None, :]
    x_inside, w_inside = (m < rows_left)[:, None], (n < N - first_n)[None, :]
    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        if EVEN_K:
            x = tl.load(x_ptr + x_offset, mask=x_inside, other=0.0)
            w = tl.load(w_ptr + w_offset, mask=w_inside, other=0.0)
        else:
            x = tl.load(x_ptr + x_offset, mask=x_inside & (k < K - start)[None, :], other=0.0)
            w = tl.load(w_ptr + w_offset, mask=w_inside & (k < K - start)[:, None], other=0.0)
        product = tl.dot(x, w, product)
        x_ptr += BLOCK_K
        w_ptr += BLOCK_K * N
    y_ptr += first_row * N + first_n
    tl.store(y_ptr + m[:, None] * N + n[None, :], product.to(y_ptr.dtype.element_ty), mask=x_inside & w_inside)


def make_problem(*, rows: int, experts: int, N: int, K: int, skew: float = 0.0, dtype: str = "bf16") -> Problem:
    """x [rows, K] sorted by expert, w [experts, K, N], offsets i32 [experts + 1], y [rows, N].

    skew: the standard deviation of the logarithm of an expert's share of the rows; 0 is an even draw.
    """
    if dtype not in ("f16", "bf16") or not 1 <= experts <= 1024:
        raise UserError(f"got experts={experts},dtype={dtype}, expected 1 to 1024 experts and dtype f16 or bf16")
    specs = (
        TensorSpec((rows, K), dtype), TensorSpec((experts, K, N), dtype), TensorSpec((experts + 1,), "i32")
    )  # fmt: skip
    size = 2 * (rows * K + experts * K * N + rows * N) + 4 * (experts + 1)
    params = (("rows", rows), ("experts", experts), ("N", N), ("K", K), ("skew", skew), ("dtype", dtype))
    return Problem("matmul_grouped", specs, params, flops=2 * rows * N * K, bytes=size)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    shares = torch.softmax(problem["skew"] * torch.randn(problem["experts"], generator=generator), 0)
    choice = torch.multinomial(shares, problem["rows"], replacement=True, generator=generator)
    counts = torch.bincount(choice, minlength=problem["experts"])
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).to(torch.int32)
    return (*tensors.normal(problem.inputs[:2], seed), offsets)


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    x, w, offsets = inputs
    ends = offsets.tolist()
    products = [x[ends[e] : ends[e + 1]].float() @ w[e].float() for e in range(len(w))]
    return (torch.cat(products).to(x.dtype),)


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    rows, experts, N, K = problem["rows"], problem["experts"], problem["N"], problem["K"]
    block_m = config["BLOCK_M"]
    most_blocks = min(rows, (rows + experts * (block_m - 1)) // block_m)  # every expert's last block is ragged
    settings = {
        **config.as_dict(), "EXPERTS": triton.next_power_of_2(experts), "EVEN_K": K % config["BLOCK_K"] == 0
    }  # fmt: skip
    grid = (most_blocks * triton.cdiv(N, config["BLOCK_N"]),)
    return [Launch(matmul_of_experts, grid, (*inputs, *outputs, experts, most_blocks, N, K), settings)]


def fits(config: Config, problem: Problem, device: Device) -> bool:
    """4 to 256 accumulators a thread (the last spill), and stages in up to 5/4 of a unit's shared memory."""
    block_m, block_n = config["BLOCK_M"], config["BLOCK_N"]
    stages = 2 * config["num_stages"] * (block_m + block_n) * config["BLOCK_K"]
    accumulators = block_m * block_n / (32 * config["num_warps"])
    return 4 <= accumulators <= 256 and stages <= 1.25 * dict(device.details).get("shared_bytes_per_unit", 1 << 16)


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        fits, BLOCK_M=(16, 32, 64, 128), BLOCK_N=(32, 64, 128, 256), BLOCK_K=(32, 64, 128), GROUP_M=(1, 4, 16),
        num_warps=(4, 8), num_stages=(2, 3, 4, 5),
    ),
    default=Config.of(BLOCK_M=64, BLOCK_N=128, BLOCK_K=64, GROUP_M=4, num_warps=4, num_stages=3),
    make_problem=make_problem,
    problems={
        # Mixtral 8x7B: 2 of 8 experts for each of 4096 tokens; a thousand rows an expert, large blocks.
        "mixtral": {"rows": 8192, "experts": 8, "N": 14336, "K": 4096, "skew": 0.3, "dtype": "bf16"},
        "mixtral_decode": {"rows": 64, "experts": 8, "N": 14336, "K": 4096, "skew": 0.3, "dtype": "bf16"},  # 8 rows
        # Qwen3 30B-A3B: 8 of 128 experts for 1024 tokens; 64 rows an expert on average, some with hardly any.
        "qwen": {"rows": 8192, "experts": 128, "N": 768, "K": 2048, "skew": 0.8, "dtype": "bf16"},
        # DeepSeek V3 on 8 devices: 32 of its experts here, and their second matrix.
        "deepseek": {"rows": 4096, "experts": 32, "N": 7168, "K": 2048, "skew": 0.5, "dtype": "f16"},
        "one_busy": {"rows": 4096, "experts": 16, "N": 1000, "K": 1000, "skew": 3.0, "dtype": "f16"},  # and ragged
    },
    make_inputs=make_inputs,
    outputs=lambda problem: (TensorSpec((problem["rows"], problem["N"]), problem.dtype),),
    reference=reference,
    launch=launch,
    tolerance=8e-3,  # one step of bf16 at the largest value
)  # fmt: skip
