"""C = A B with A block-sparse: only the square blocks that are there, listed row by row (BSR), meet B."""

import torch
import triton
import triton.language as tl

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload


@triton.jit
def matmul_listed_blocks(
    a_ptr, b_ptr, starts_ptr, columns_ptr, c_ptr, N, SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr, STEPS: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """`SIZE`: rows and columns of a block of A. `STEPS`: into how many products its columns are split."""
    BLOCK_K: tl.constexpr = SIZE // STEPS
    blocks_n = tl.cdiv(N, BLOCK_N)
    pid = tl.program_id(0)
    block_row, block_n = tl.swizzle2d(
        pid // blocks_n, pid % blocks_n, tl.num_programs(0) // blocks_n, blocks_n, GROUP_M
    )  # fmt: skip
    m, n, k = tl.arange(0, SIZE), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    first_n = block_n * BLOCK_N
    inside = (n < N - first_n)[None, :]
    a_offset = m[:, None] * SIZE + k[None, :]
    b_offset = k[:, None] * N + n[None, :]
    first, last = tl.load(starts_ptr + block_row), tl.load(starts_ptr + block_row + 1)
    a_ptr += first.to(tl.int64) * SIZE * SIZE
    product = tl.zeros((SIZE, BLOCK_N), tl.float32)
    for step in range(first * STEPS, last * STEPS):  # one loop over blocks and their steps, so that it is pipelined
        block, first_k = step // STEPS, step % STEPS * BLOCK_K
        row = tl.load(columns_ptr + block).to(tl.int64) * SIZE + first_k
        a = tl.load(a_ptr + (block - first) * SIZE * SIZE + first_k + a_offset)
        b = tl.load(b_ptr + row * N + first_n + b_offset, mask=inside, other=0.0)
        product = tl.dot(a, b, product)
    c_ptr += block_row.to(tl.int64) * SIZE * N + first_n
    tl.store(c_ptr + m[:, None] * N + n[None, :], product.to(c_ptr.dtype.element_ty), mask=inside)


def make_problem(*, M: int, N: int, K: int, size: int, density: float, dtype: str = "f16") -> Problem:
    """A [M, K] in blocks of size x size, B [K, N], C [M, N].

    Inputs: the blocks that are there [count, size, size], B, where each row of blocks starts among them i32
    [M/size + 1], and their columns i32 [count]. The count is density * M/size * K/size, rounded, at least 1.
    """
    if dtype not in ("f16", "bf16") or size not in (16, 32, 64, 128) or M % size or K % size or not 0 < density <= 1:
        raise UserError(
            f"got M={M},K={K},size={size},density={density},dtype={dtype}, expected size 16, 32, 64 or 128, M and K "
            "multiples of it, density above 0 and at most 1, and dtype f16 or bf16"
        )
    count = max(1, round(density * (M // size) * (K // size)))
    specs = (
        TensorSpec((count, size, size), dtype), TensorSpec((K, N), dtype),
        TensorSpec((M // size + 1,), "i32"), TensorSpec((count,), "i32"),
    )  # fmt: skip
    traffic = 2 * (count * size * size + K * N + M * N) + 4 * (M // size + 1 + count)
    params = (("M", M), ("N", N), ("K", K), ("size", size), ("density", density), ("dtype", dtype))
    return Problem("matmul_sparse", specs, params, flops=2 * count * size * size * N, bytes=traffic)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    """Every place of a block is as likely as any other, so rows differ in how many they have."""
    blocks, b = tensors.normal(problem.inputs[:2], seed)
    rows, columns = problem["M"] // problem["size"], problem["K"] // problem["size"]
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    places = torch.randperm(rows * columns, generator=generator)[: len(blocks)].sort().values
    counts = torch.bincount(places // columns, minlength=rows)
    starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return blocks, b, starts.to(torch.int32), (places % columns).to(torch.int32)


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    blocks, b, starts, columns = inputs
    size = problem["size"]
    rows = torch.repeat_interleave(torch.arange(len(starts) - 1, device=b.device), starts.diff().long())
    dense = torch.zeros(len(starts) - 1, problem["K"] // size, size, size, device=b.device)
    dense[rows, columns.long()] = blocks.float()
    product = dense.transpose(1, 2).reshape(problem["M"], problem["K"]) @ b.float()
    return (product.to(b.dtype),)


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    size, N = problem["size"], problem["N"]
    grid = (problem["M"] // size * triton.cdiv(N, config["BLOCK_N"]),)
    return [Launch(matmul_listed_blocks, grid, (*inputs, *outputs, N), {**config.as_dict(), "SIZE": size})]


def fits(config: Config, problem: Problem, device: Device) -> bool:
    """16 columns a step; 1 to 256 accumulators a thread; stages in up to 5/4 of a unit's shared memory."""
    size, block_n = problem["size"], config["BLOCK_N"]
    stages = 2 * config["num_stages"] * (size + block_n) * size // config["STEPS"]
    return (
        size // config["STEPS"] >= 16
        and 1 <= size * block_n / (32 * config["num_warps"]) <= 256
        and stages <= 1.25 * dict(device.details).get("shared_bytes_per_unit", 1 << 16)
    )


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        fits, BLOCK_N=(16, 32, 64, 128, 256), STEPS=(1, 2, 4, 8), GROUP_M=(1, 4, 16), num_warps=(1, 2, 4, 8),
        num_stages=(2, 3, 4, 5),
    ),
    default=Config.of(BLOCK_N=64, STEPS=1, GROUP_M=4, num_warps=4, num_stages=3),
    make_problem=make_problem,
    problems={
        # A pruned MLP matrix of Llama 3 8B times a prompt: a quarter of the blocks, and one in twenty smaller ones.
        "pruned": {"M": 14336, "N": 2048, "K": 4096, "size": 64, "density": 0.25, "dtype": "bf16"},
        "pruned_hard": {"M": 4096, "N": 2048, "K": 4096, "size": 32, "density": 0.05, "dtype": "f16"},
        # Sparse attention's probabilities times values: a tenth of the blocks, a head's width of columns.
        "values": {"M": 8192, "N": 64, "K": 8192, "size": 64, "density": 0.1, "dtype": "f16"},
        "graph": {"M": 32768, "N": 256, "K": 32768, "size": 16, "density": 0.005, "dtype": "f16"},  # small blocks
        "decode": {"M": 14336, "N": 16, "K": 4096, "size": 128, "density": 0.3, "dtype": "bf16"},  # 16 tokens
        "ragged": {"M": 1024, "N": 1000, "K": 2048, "size": 64, "density": 0.5, "dtype": "f16"},  # half of it is there
    },
    make_inputs=make_inputs,
    outputs=lambda problem: (TensorSpec((problem["M"], problem["N"]), problem.dtype),),
    reference=reference,
    launch=launch,
    tolerance=8e-3,  # one step of bf16 at the largest value
)  # fmt: skip
