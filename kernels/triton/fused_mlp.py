"""A transformer's MLP in two launches: the first product (or gate and up at once) ends in the activation, then down."""

import torch
import triton
import triton.language as tl

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload


@triton.jit
def gate_up(
    x_ptr, gate_ptr, up_ptr, h_ptr, M, N, K, GATED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """h = silu(x gate) * (x up), or gelu(x up): x is read once for both products, neither of which reaches memory."""
    blocks_m, blocks_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    pid = tl.program_id(0)
    block_m, block_n = tl.swizzle2d(pid // blocks_n, pid % blocks_n, blocks_m, blocks_n, GROUP_M)
    m, n, k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    first_m, first_n = (block_m * BLOCK_M).to(tl.int64), (block_n * BLOCK_N).to(tl.int64)
    x_ptr += first_m * K
    gate_ptr += first_n
    up_ptr += first_n
    x_offset = m[:, None] * K + k[None, :]
    w_offset = k[:, None] * N + n[None, :]
    x_inside, w_inside = (m < M - first_m)[:, None], (n < N - first_n)[None, :]
    up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        deep = k < K - start
        x = tl.load(x_ptr + x_offset, mask=x_inside & deep[None, :], other=0.0)
        up = tl.dot(x, tl.load(up_ptr + w_offset, mask=w_inside & deep[:, None], other=0.0), up)
        if GATED:
            gate = tl.dot(x, tl.load(gate_ptr + w_offset, mask=w_inside & deep[:, None], other=0.0), gate)
        x_ptr += BLOCK_K
        gate_ptr += BLOCK_K * N
        up_ptr += BLOCK_K * N
    h = gate * tl.sigmoid(gate) * up if GATED else 0.5 * up * (1.0 + tl.erf(up * 0.7071067811865476))
    h_ptr += first_m * N + first_n
    tl.store(h_ptr + m[:, None] * N + n[None, :], h.to(h_ptr.dtype.element_ty), mask=x_inside & w_inside)


@triton.jit
def down(
    h_ptr, w_ptr, y_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    blocks_m, blocks_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    pid = tl.program_id(0)
    block_m, block_n = tl.swizzle2d(pid // blocks_n, pid % blocks_n, blocks_m, blocks_n, GROUP_M)
    m, n, k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    first_m, first_n = (block_m * BLOCK_M).to(tl.int64), (block_n * BLOCK_N).to(tl.int64)
    h_ptr += first_m * K
    w_ptr += first_n
    h_offset = m[:, None] * K + k[None, :]
    w_offset = k[:, None] * N + n[None, :]
    h_inside, w_inside = (m < M - first_m)[:, None], (n < N - first_n)[None, :]
    y = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        deep = k < K - start
        h = tl.load(h_ptr + h_offset, mask=h_inside & deep[None, :], other=0.0)
        y = tl.dot(h, tl.load(w_ptr + w_offset, mask=w_inside & deep[:, None], other=0.0), y)
        h_ptr += BLOCK_K
        w_ptr += BLOCK_K * N
    y_ptr += first_m * N + first_n
    tl.store(y_ptr + m[:, None] * N + n[None, :], y.to(y_ptr.dtype.element_ty), mask=h_inside & w_inside)


def make_problem(*, tokens: int, width: int, hidden: int, activation: str = "swiglu", dtype: str = "bf16") -> Problem:
    """x, y [tokens, width]; gate (swiglu alone) and up [width, hidden]; down [hidden, width]."""
    if activation not in ("swiglu", "gelu") or dtype not in ("f16", "bf16"):
        raise UserError(f"got activation={activation},dtype={dtype}, expected swiglu or gelu and f16 or bf16")
    first = 2 if activation == "swiglu" else 1
    specs = (
        TensorSpec((tokens, width), dtype), *[TensorSpec((width, hidden), dtype)] * first,
        TensorSpec((hidden, width), dtype),
    )  # fmt: skip
    weights = (first + 1) * width * hidden
    params = (
        ("tokens", tokens), ("width", width), ("hidden", hidden), ("activation", activation), ("dtype", dtype)
    )  # fmt: skip
    return Problem("mlp", specs, params, flops=2 * tokens * weights, bytes=2 * (weights + 2 * tokens * width))


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    """Weights scaled as they are initialised, so that f16 holds every value on the way."""
    x, *weights = tensors.normal(problem.inputs, seed)
    return x, *(w * w.shape[0] ** -0.5 for w in weights)


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    x, *first, last = (tensor.float() for tensor in inputs)
    if problem["activation"] == "swiglu":
        h = torch.nn.functional.silu(x @ first[0]) * (x @ first[1])
    else:
        h = torch.nn.functional.gelu(x @ first[0])
    return ((h @ last).to(inputs[0].dtype),)


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    x, *first, last = inputs
    gate, up = first[0], first[-1]  # without a gate its pointer is never read
    (y,) = outputs
    tokens, width, hidden = problem["tokens"], problem["width"], problem["hidden"]
    h = torch.empty((tokens, hidden), dtype=x.dtype, device=x.device)
    common = config.as_dict()
    down_n = common.pop("DOWN_N")
    blocks_m = triton.cdiv(tokens, config["BLOCK_M"])
    return [
        Launch(
            gate_up, (blocks_m * triton.cdiv(hidden, config["BLOCK_N"]),), (x, gate, up, h, tokens, hidden, width),
            {**common, "GATED": problem["activation"] == "swiglu"},
        ),
        Launch(
            down, (blocks_m * triton.cdiv(width, down_n),), (h, last, y, tokens, width, hidden),
            {**common, "BLOCK_N": down_n},
        ),
    ]  # fmt: skip


def fits(config: Config, problem: Problem, device: Device) -> bool:
    """Of both launches: 4 to 256 accumulators a thread, and stages in up to 5/4 of a unit's shared memory."""
    block_m = config["BLOCK_M"]
    widths = (config["BLOCK_N"] * (2 if problem["activation"] == "swiglu" else 1), config["DOWN_N"])
    stages = 2 * config["num_stages"] * (block_m + max(widths)) * config["BLOCK_K"]
    return stages <= 1.25 * dict(device.details).get("shared_bytes_per_unit", 1 << 16) and all(
        4 <= block_m * width / (32 * config["num_warps"]) <= 256 for width in widths
    )


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        fits, BLOCK_M=(16, 32, 64, 128), BLOCK_N=(32, 64, 128), DOWN_N=(32, 64, 128, 256), BLOCK_K=(32, 64, 128),
        GROUP_M=(1, 8), num_warps=(4, 8), num_stages=(2, 3, 4),
    ),
    default=Config.of(BLOCK_M=64, BLOCK_N=64, DOWN_N=128, BLOCK_K=64, GROUP_M=8, num_warps=4, num_stages=3),
    make_problem=make_problem,
    problems={
        # Llama 3 8B: a prefill bound by arithmetic, and 8 tokens bound by the weights' bandwidth.
        "prefill": {"tokens": 2048, "width": 4096, "hidden": 14336, "activation": "swiglu", "dtype": "bf16"},
        "decode": {"tokens": 8, "width": 4096, "hidden": 14336, "activation": "swiglu", "dtype": "bf16"},
        "small": {"tokens": 512, "width": 896, "hidden": 4864, "activation": "swiglu", "dtype": "bf16"},  # Qwen2.5 0.5B
        "gpt2": {"tokens": 8192, "width": 768, "hidden": 3072, "activation": "gelu", "dtype": "f16"},  # one product
        "vit": {"tokens": 197, "width": 1024, "hidden": 4096, "activation": "gelu", "dtype": "f16"},  # one image
    },
    make_inputs=make_inputs,
    outputs=lambda problem: (problem.inputs[0],),
    reference=reference,
    launch=launch,
    tolerance=1e-2,  # a step of bf16 at the largest value, after a hidden layer that was rounded to it
)  # fmt: skip
