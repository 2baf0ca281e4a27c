"""Attention of one new token on a long cache: the keys are split over programs, whose parts a second kernel weighs.

One program takes all the query heads that share its keys, so a cache is read once. After Flash-Decoding (Dao et al.,
2023).
"""

import torch
import triton
import triton.language as tl

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def attend_part(
    q_ptr, k_ptr, v_ptr, parts_ptr, weights_ptr, group, keys, scale,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """One part of the keys of one head of keys: its output, and the logarithm (base 2) of what it weighs."""
    kv_head, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    h, n, d = tl.arange(0, ROWS), tl.arange(0, BLOCK_N), tl.arange(0, D)
    row = kv_head * group + h
    inside = (h < group)[:, None]  # fewer query heads than rows of a tensor core's tile
    q = tl.load(q_ptr + row[:, None] * D + d[None, :], mask=inside, other=0.0)
    k_ptr += kv_head * keys * D
    v_ptr += kv_head * keys * D
    depth = tl.cdiv(tl.cdiv(keys, BLOCK_N), SPLITS) * BLOCK_N
    first = part * depth
    last = tl.minimum(first + depth, keys)  # the last parts may be empty: they weigh 2 ** -inf
    o = tl.zeros((ROWS, D), tl.float32)
    sums = tl.zeros((ROWS,), tl.float32)
    tops = tl.full((ROWS,), -float("inf"), tl.float32)
    for start in range(first, last, BLOCK_N):
        key = start + n
        k = tl.load(k_ptr + d[:, None] + key[None, :] * D, mask=(key < last)[None, :], other=0.0)
        v = tl.load(v_ptr + key[:, None] * D + d[None, :], mask=(key < last)[:, None], other=0.0)
        scores = tl.dot(q, k) * (scale * LOG2_E)
        scores = tl.where((key < last)[None, :], scores, -float("inf"))
        top = tl.maximum(tops, tl.max(scores, 1))
        p = tl.exp2(scores - top[:, None])
        shrink = tl.exp2(tops - top)
        sums = sums * shrink + tl.sum(p, 1)
        o = tl.dot(p.to(v.dtype), v, o * shrink[:, None])
        tops = top
    o = o / tl.where(sums > 0, sums, 1.0)[:, None]
    weight = tl.where(sums > 0, tops + tl.log2(tl.where(sums > 0, sums, 1.0)), -float("inf"))
    place = row * SPLITS + part
    tl.store(parts_ptr + place[:, None] * D + d[None, :], o, mask=inside)
    tl.store(weights_ptr + place, weight, mask=h < group)


@triton.jit
def weigh_parts(parts_ptr, weights_ptr, o_ptr, D: tl.constexpr, SPLITS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    part, d = tl.arange(0, SPLITS), tl.arange(0, D)
    weight = tl.load(weights_ptr + row * SPLITS + part)
    weight = tl.exp2(weight - tl.max(weight, 0))
    parts = tl.load(parts_ptr + (row * SPLITS + part)[:, None] * D + d[None, :])
    o = tl.sum(parts * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(o_ptr + row * D + d, o.to(o_ptr.dtype.element_ty))


def make_problem(*, batch: int, heads: int, kv_heads: int, keys: int, D: int, dtype: str = "f16") -> Problem:
    """q, o [batch, heads, D]; k, v [batch, kv_heads, keys, D], a cache whose sequences are equally long."""
    if dtype not in ("f16", "bf16") or D not in (16, 32, 64, 128, 256) or heads % kv_heads or keys * D >= 2**31:
        raise UserError(
            f"got heads={heads},kv_heads={kv_heads},keys={keys},D={D},dtype={dtype}, expected heads a multiple of "
            "kv_heads, D a power of two from 16 to 256, keys*D below 2^31 and dtype f16 or bf16"
        )
    q, k = TensorSpec((batch, heads, D), dtype), TensorSpec((batch, kv_heads, keys, D), dtype)
    size = 4 * batch * D * (heads + kv_heads * keys)
    params = (
        ("batch", batch), ("heads", heads), ("kv_heads", kv_heads), ("keys", keys), ("D", D), ("dtype", dtype)
    )  # fmt: skip
    return Problem("attention", (q, k, k), params, flops=4 * batch * heads * keys * D, bytes=size)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    """Queries four times the normal size, so that a few keys count and not just the mean of them all."""
    q, k, v = tensors.normal(problem.inputs, seed)
    return 4 * q, k, v


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    q, k, v = inputs
    o = torch.empty_like(q)
    groups = q.view(len(q), problem["kv_heads"], -1, problem["D"])
    for b in range(len(q)):  # one sequence at a time, for the memory of its copies in f32
        scores = groups[b].float() @ k[b].float().mT * problem["D"] ** -0.5
        o[b] = (torch.softmax(scores, -1) @ v[b].float()).flatten(0, 1).to(o.dtype)
    return (o,)


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    (q, k, v), (o,) = inputs, outputs
    batch, heads, kv_heads, D = (problem[name] for name in ("batch", "heads", "kv_heads", "D"))
    splits, group = config["SPLITS"], heads // kv_heads
    parts = torch.empty((batch * heads, splits, D), dtype=torch.float32, device=q.device)
    weights = torch.empty((batch * heads, splits), dtype=torch.float32, device=q.device)
    rows = max(16, triton.next_power_of_2(group))
    return [
        Launch(
            attend_part, (batch * kv_heads, splits), (q, k, v, parts, weights, group, problem["keys"], D**-0.5),
            {**config.as_dict(), "D": D, "ROWS": rows},
        ),
        Launch(
            weigh_parts, (batch * heads,), (parts, weights, o), {"D": D, "SPLITS": splits, "num_warps": 4}
        ),
    ]  # fmt: skip


def fits(config: Config, problem: Problem, device: Device) -> bool:
    """Every part has keys; up to 256 values of output and scores a thread; 5/4 of a unit's shared memory."""
    block_n, D = config["BLOCK_N"], problem["D"]
    rows = max(16, triton.next_power_of_2(problem["heads"] // problem["kv_heads"]))
    shared = 2 * D * (rows + 2 * config["num_stages"] * block_n)
    return (
        config["SPLITS"] <= triton.cdiv(problem["keys"], block_n)
        and rows * (D + block_n) <= 256 * 32 * config["num_warps"]
        and shared <= 1.25 * dict(device.details).get("shared_bytes_per_unit", 1 << 16)
    )


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        fits, BLOCK_N=(16, 32, 64, 128, 256), SPLITS=(1, 2, 4, 8, 16, 32, 64), num_warps=(1, 2, 4, 8),
        num_stages=(1, 2, 3, 4),
    ),
    default=Config.of(BLOCK_N=64, SPLITS=8, num_warps=4, num_stages=3),
    make_problem=make_problem,
    problems={
        # Llama 3 8B, one user with a long prompt: 8 heads of keys alone would leave most of a GPU idle.
        "long": {"batch": 1, "heads": 32, "kv_heads": 8, "keys": 32768, "D": 128, "dtype": "bf16"},
        "serving": {"batch": 64, "heads": 32, "kv_heads": 8, "keys": 4096, "D": 128, "dtype": "bf16"},  # no need
        "own_heads": {"batch": 8, "heads": 32, "kv_heads": 32, "keys": 2048, "D": 128, "dtype": "f16"},  # Llama 2 7B
        "one_head": {"batch": 16, "heads": 48, "kv_heads": 1, "keys": 8192, "D": 128, "dtype": "f16"},  # StarCoder
        "ragged": {"batch": 3, "heads": 14, "kv_heads": 2, "keys": 5001, "D": 64, "dtype": "bf16"},  # Qwen2.5 0.5B
    },
    make_inputs=make_inputs,
    outputs=lambda problem: problem.inputs[:1],
    reference=reference,
    launch=launch,
    tolerance=1e-2,  # bf16: a step at the largest value, and probabilities rounded to it
)  # fmt: skip
