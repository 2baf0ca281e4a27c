"""Attention forward, with the log of each row's sum: keys pass by a block of queries, softmax is kept up to date.

After FlashAttention-2 (Dao, 2023). Heads of queries may share a head of keys and values; a causal query sees the keys
up to its own, where the last query's is the last key.
"""

import torch
import triton
import triton.language as tl

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def attend(
    o, sums, tops, q, k_ptr, v_ptr, first, last, position, keys, scale,
    D: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Take in keys [first, last): `o` and `sums` stay relative to 2 ** `tops`, the largest score so far."""
    n, d = tl.arange(0, BLOCK_N), tl.arange(0, D)
    for start in range(first, last, BLOCK_N):
        key = start + n
        k_offset, v_offset = d[:, None] + key[None, :] * D, key[:, None] * D + d[None, :]
        if MASKED:
            k = tl.load(k_ptr + k_offset, mask=(key < keys)[None, :], other=0.0)
            v = tl.load(v_ptr + v_offset, mask=(key < keys)[:, None], other=0.0)
        else:
            k, v = tl.load(k_ptr + k_offset), tl.load(v_ptr + v_offset)
        scores = tl.dot(q, k) * scale
        if MASKED:
            seen = (key < keys)[None, :]
            if CAUSAL:
                seen = seen & (key[None, :] <= position[:, None])
            scores = tl.where(seen, scores, -float("inf"))
        top = tl.maximum(tops, tl.max(scores, 1))
        p = tl.exp2(scores - top[:, None])
        shrink = tl.exp2(tops - top)
        sums = sums * shrink + tl.sum(p, 1)
        o = tl.dot(p.to(v.dtype), v, o * shrink[:, None])
        tops = top
    return o, sums, tops


@triton.jit
def attention_forward(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, heads, kv_heads, queries, keys, scale,
    D: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    if CAUSAL:
        block = tl.num_programs(0) - 1 - block  # the last queries see the most keys: they start first
    head = tl.program_id(1)
    kv_head = head // heads * kv_heads + head % heads // (heads // kv_heads)
    first_row = block * BLOCK_M
    row, d = first_row + tl.arange(0, BLOCK_M), tl.arange(0, D)
    q_ptr += head.to(tl.int64) * queries * D
    o_ptr += head.to(tl.int64) * queries * D
    k_ptr += kv_head.to(tl.int64) * keys * D
    v_ptr += kv_head.to(tl.int64) * keys * D
    offset, inside = row[:, None] * D + d[None, :], (row < queries)[:, None]
    q = tl.load(q_ptr + offset, mask=inside, other=0.0)
    o = tl.zeros((BLOCK_M, D), tl.float32)
    sums = tl.zeros((BLOCK_M,), tl.float32)
    tops = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    position = row + keys - queries
    if CAUSAL:
        whole = (first_row + keys - queries + 1) // BLOCK_N * BLOCK_N  # all of the block's rows see these keys
        last = tl.minimum(first_row + BLOCK_M + keys - queries, keys)
    else:
        whole = keys // BLOCK_N * BLOCK_N
        last = keys
    scale *= LOG2_E
    o, sums, tops = attend(
        o, sums, tops, q, k_ptr, v_ptr, 0, whole, position, keys, scale, D, BLOCK_N, CAUSAL, False
    )  # fmt: skip
    o, sums, tops = attend(
        o, sums, tops, q, k_ptr, v_ptr, whole, last, position, keys, scale, D, BLOCK_N, CAUSAL, True
    )  # fmt: skip
    tl.store(o_ptr + offset, (o / sums[:, None]).to(o_ptr.dtype.element_ty), mask=inside)
    tl.store(lse_ptr + head.to(tl.int64) * queries + row, (tops + tl.log2(sums)) * LN_2, mask=row < queries)


def make_problem(
    *, batch: int, heads: int, kv_heads: int, queries: int, keys: int, D: int, causal: bool = True, dtype: str = "f16"
) -> Problem:
    """q, o [batch, heads, queries, D]; k, v [batch, kv_heads, keys, D]; lse f32 [batch, heads, queries]."""
    if dtype not in ("f16", "bf16") or D not in (16, 32, 64, 128) or heads % kv_heads:
        raise UserError(
            f"got heads={heads},kv_heads={kv_heads},D={D},dtype={dtype}, "
            "expected heads a multiple of kv_heads, D 16, 32, 64 or 128, and dtype f16 or bf16"
        )
    if (causal and queries > keys) or batch * heads > 65535 or max(queries, keys) * D >= 2**31:
        raise UserError(
            f"got batch={batch},heads={heads},queries={queries},keys={keys}, "
            "expected at least as many keys as causal queries, and at most 65535 heads in the batch"
        )
    q, k = TensorSpec((batch, heads, queries, D), dtype), TensorSpec((batch, kv_heads, keys, D), dtype)
    pairs = queries * keys - (queries * (queries - 1) // 2 if causal else 0)
    size = 4 * batch * D * (heads * queries + kv_heads * keys) + 4 * batch * heads * queries
    params = (
        ("batch", batch), ("heads", heads), ("kv_heads", kv_heads), ("queries", queries), ("keys", keys), ("D", D),
        ("causal", causal), ("dtype", dtype),
    )  # fmt: skip
    return Problem("attention", (q, k, k), params, flops=4 * batch * heads * pairs * D, bytes=size)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    return tensors.normal(problem.inputs, seed)


def outputs(problem: Problem) -> tuple[TensorSpec, ...]:
    return problem.inputs[0], TensorSpec(problem.inputs[0].shape[:3], "f32")


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Head by head: all scores at once would not fit a GPU's memory."""
    q, k, v = (tensor.flatten(0, 1) for tensor in inputs)
    o, lse = torch.empty_like(q), torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    hidden = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device).triu(k.shape[1] - q.shape[1] + 1)
    for head in range(len(q)):
        kv_head = head // (problem["heads"] // problem["kv_heads"])
        scores = q[head].float() @ k[kv_head].float().T * problem["D"] ** -0.5
        if problem["causal"]:
            scores.masked_fill_(hidden, -torch.inf)
        o[head] = (torch.softmax(scores, -1) @ v[kv_head].float()).to(o.dtype)
        lse[head] = torch.logsumexp(scores, -1)
    return o.view_as(inputs[0]), lse.view(inputs[0].shape[:3])


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    queries, heads, D = problem["queries"], problem["heads"], problem["D"]
    sizes = (heads, problem["kv_heads"], queries, problem["keys"], D**-0.5)
    grid = (triton.cdiv(queries, config["BLOCK_M"]), problem["batch"] * heads)
    settings = {**config.as_dict(), "D": D, "CAUSAL": problem["causal"]}
    return [Launch(attention_forward, grid, (*inputs, *outputs, *sizes), settings)]


def fits(config: Config, problem: Problem, device: Device) -> bool:
    """Up to 288 values of output and scores a thread (from 200 on they spill); 5/4 of a unit's shared memory."""
    block_m, block_n, D = config["BLOCK_M"], config["BLOCK_N"], problem["D"]
    shared = 2 * D * (block_m + 2 * config["num_stages"] * block_n)
    return (
        block_m * (D + block_n) <= 288 * 32 * config["num_warps"]
        and block_m * block_n >= 4 * 32 * config["num_warps"]
        and shared <= 1.25 * dict(device.details).get("shared_bytes_per_unit", 1 << 16)
    )


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        fits, BLOCK_M=(16, 32, 64, 128, 256), BLOCK_N=(16, 32, 64, 128), num_warps=(2, 4, 8), num_stages=(1, 2, 3, 4)
    ),
    default=Config.of(BLOCK_M=128, BLOCK_N=64, num_warps=8, num_stages=2),
    make_problem=make_problem,
    problems={
        # Llama 3 8B: a prompt of 4096, four heads of queries to one of keys.
        "llama": {
            "batch": 2, "heads": 32, "kv_heads": 8, "queries": 4096, "keys": 4096, "D": 128, "causal": True,
            "dtype": "bf16",
        },
        # GPT-2 in training: narrow heads, where softmax weighs as much as the products.
        "gpt2": {
            "batch": 16, "heads": 12, "kv_heads": 12, "queries": 1024, "keys": 1024, "D": 64, "causal": True,
            "dtype": "f16",
        },
        # A vision transformer's patches and class: ragged, a few blocks a head, no mask but the edge's.
        "vit": {
            "batch": 64, "heads": 16, "kv_heads": 16, "queries": 197, "keys": 197, "D": 64, "causal": False,
            "dtype": "f16",
        },
        # An image's 4096 places look at a text's 77 tokens: the keys are one or two blocks.
        "cross": {
            "batch": 16, "heads": 8, "kv_heads": 8, "queries": 4096, "keys": 77, "D": 64, "causal": False,
            "dtype": "f16",
        },
        # The next 512 tokens of a long prompt: few blocks, each with many keys.
        "chunk": {
            "batch": 1, "heads": 32, "kv_heads": 8, "queries": 512, "keys": 16384, "D": 128, "causal": True,
            "dtype": "bf16",
        },
    },
    make_inputs=make_inputs,
    outputs=outputs,
    reference=reference,
    launch=launch,
    tolerance=1e-2,  # bf16: a step at the largest value, and probabilities rounded to it
)  # fmt: skip
