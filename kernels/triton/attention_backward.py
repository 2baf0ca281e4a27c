"""Gradients of attention from the forward's log of sums: three launches, no atomics, so equal inputs give equal bits.

After FlashAttention-2 (Dao, 2023). With p = exp(scale q k - lse) and ds = p (do v - delta), where delta = sum(o do):
dv = p^T do, dk = scale ds^T q, dq = scale ds k. Scores are recomputed by blocks of keys for dk and dv, which add up
over the heads that share the keys, and again by blocks of queries for dq.
"""

import torch
import triton
import triton.language as tl

from costmodel import tensors
from costmodel.records import Config, Device, Launch, Problem, SearchSpace, TensorSpec, UserError
from costmodel.workloads import gpu_workload

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def row_delta(o_ptr, do_ptr, delta_ptr, rows, D: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    offset, inside = row[:, None] * D + tl.arange(0, D)[None, :], (row < rows)[:, None]
    o = tl.load(o_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    do = tl.load(do_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    tl.store(delta_ptr + row, tl.sum(o * do, 1), mask=row < rows)


@triton.jit
def add_queries(
    dk, dv, k, v, q_ptr, do_ptr, lse_ptr, delta_ptr, first, last, key, queries, keys, scale,
    D: tl.constexpr, BLOCK_M: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add the share of queries [first, last) of one head to a block of keys. A row past the end has an infinite lse,
    so its probabilities are 0."""
    d = tl.arange(0, D)
    for start in range(first, last, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        offset = row[:, None] * D + d[None, :]
        q = tl.load(q_ptr + offset, mask=(row < queries)[:, None], other=0.0)
        do = tl.load(do_ptr + offset, mask=(row < queries)[:, None], other=0.0)
        lse = tl.load(lse_ptr + row, mask=row < queries, other=float("inf")) * LOG2_E
        delta = tl.load(delta_ptr + row, mask=row < queries, other=0.0)
        p = tl.exp2(tl.dot(k, tl.trans(q)) * (scale * LOG2_E) - lse[None, :])
        if MASKED:
            p = tl.where(key[:, None] <= row[None, :] + keys - queries, p, 0.0)
        dv = tl.dot(p.to(do.dtype), do, dv)
        ds = p * (tl.dot(v, tl.trans(do)) - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk)
    return dk, dv


@triton.jit
def gradient_of_keys(
    q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, heads, kv_heads, queries, keys, scale,
    D: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    kv_head = tl.program_id(1)
    first_key = tl.program_id(0) * BLOCK_N
    key, d = first_key + tl.arange(0, BLOCK_N), tl.arange(0, D)
    offset, inside = key[:, None] * D + d[None, :], (key < keys)[:, None]
    base = kv_head.to(tl.int64) * keys * D
    k = tl.load(k_ptr + base + offset, mask=inside, other=0.0)
    v = tl.load(v_ptr + base + offset, mask=inside, other=0.0)
    dk = tl.zeros((BLOCK_N, D), tl.float32)
    dv = tl.zeros((BLOCK_N, D), tl.float32)
    first = 0  # the first block of queries that sees a key of this one
    whole = 0  # and the first all of whose rows see all of its keys
    if CAUSAL:
        own = first_key - (keys - queries)
        first = tl.maximum(own, 0) // BLOCK_M * BLOCK_M
        whole = tl.minimum(tl.cdiv(tl.maximum(own + BLOCK_N - 1, 0), BLOCK_M) * BLOCK_M, queries)
    group = heads // kv_heads
    for member in range(group):
        head = (kv_head // kv_heads * heads + kv_head % kv_heads * group + member).to(tl.int64)
        q_head, do_head = q_ptr + head * queries * D, do_ptr + head * queries * D
        lse_head, delta_head = lse_ptr + head * queries, delta_ptr + head * queries
        if CAUSAL:
            dk, dv = add_queries(
                dk, dv, k, v, q_head, do_head, lse_head, delta_head, first, whole, key, queries, keys, scale,
                D, BLOCK_M, True,
            )  # fmt: skip
        dk, dv = add_queries(
            dk, dv, k, v, q_head, do_head, lse_head, delta_head, whole, queries, key, queries, keys, scale,
            D, BLOCK_M, False,
        )  # fmt: skip
    tl.store(dk_ptr + base + offset, (dk * scale).to(dk_ptr.dtype.element_ty), mask=inside)
    tl.store(dv_ptr + base + offset, dv.to(dv_ptr.dtype.element_ty), mask=inside)


@triton.jit
def add_keys(
    dq, q, do, lse, delta, k_ptr, v_ptr, first, last, row, queries, keys, scale,
    D: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add the share of keys [first, last) to a block of queries."""
    d = tl.arange(0, D)
    for start in range(first, last, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        offset = key[:, None] * D + d[None, :]
        if MASKED:
            k = tl.load(k_ptr + offset, mask=(key < keys)[:, None], other=0.0)
            v = tl.load(v_ptr + offset, mask=(key < keys)[:, None], other=0.0)
        else:
            k, v = tl.load(k_ptr + offset), tl.load(v_ptr + offset)
        p = tl.exp2(tl.dot(q, tl.trans(k)) * (scale * LOG2_E) - lse[:, None])
        if MASKED:
            seen = (key < keys)[None, :]
            if CAUSAL:
                seen = seen & (key[None, :] <= row[:, None] + keys - queries)
            p = tl.where(seen, p, 0.0)
        ds = p * (tl.dot(do, tl.trans(v)) - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq)
    return dq


@triton.jit
def gradient_of_queries(
    q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dq_ptr, heads, kv_heads, queries, keys, scale,
    D: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    kv_head = head // heads * kv_heads + head % heads // (heads // kv_heads)
    block = tl.program_id(0)
    if CAUSAL:
        block = tl.num_programs(0) - 1 - block  # the last queries see the most keys: they start first
    first_row = block * BLOCK_M
    row, d = first_row + tl.arange(0, BLOCK_M), tl.arange(0, D)
    offset, inside = row[:, None] * D + d[None, :], (row < queries)[:, None]
    base = head.to(tl.int64) * queries
    q = tl.load(q_ptr + base * D + offset, mask=inside, other=0.0)
    do = tl.load(do_ptr + base * D + offset, mask=inside, other=0.0)
    lse = tl.load(lse_ptr + base + row, mask=row < queries, other=float("inf")) * LOG2_E
    delta = tl.load(delta_ptr + base + row, mask=row < queries, other=0.0)
    k_ptr += kv_head.to(tl.int64) * keys * D
    v_ptr += kv_head.to(tl.int64) * keys * D
    if CAUSAL:
        whole = (first_row + keys - queries + 1) // BLOCK_N * BLOCK_N
        last = tl.minimum(first_row + BLOCK_M + keys - queries, keys)
    else:
        whole = keys // BLOCK_N * BLOCK_N
        last = keys
    dq = tl.zeros((BLOCK_M, D), tl.float32)
    dq = add_keys(
        dq, q, do, lse, delta, k_ptr, v_ptr, 0, whole, row, queries, keys, scale, D, BLOCK_N, CAUSAL, False
    )  # fmt: skip
    dq = add_keys(
        dq, q, do, lse, delta, k_ptr, v_ptr, whole, last, row, queries, keys, scale, D, BLOCK_N, CAUSAL, True
    )  # fmt: skip
    tl.store(dq_ptr + base * D + offset, (dq * scale).to(dq_ptr.dtype.element_ty), mask=inside)


def make_problem(
    *, batch: int, heads: int, kv_heads: int, queries: int, keys: int, D: int, causal: bool = True, dtype: str = "f16"
) -> Problem:
    """Inputs q, k, v, o, do, lse; outputs dq, dk, dv.

    q, o, do, dq [batch, heads, queries, D]; k, v, dk, dv [batch, kv_heads, keys, D]; lse f32 [batch, heads, queries].
    """
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
    lse = TensorSpec((batch, heads, queries), "f32")
    pairs = queries * keys - (queries * (queries - 1) // 2 if causal else 0)
    size = 8 * batch * D * (heads * queries + kv_heads * keys) + 4 * batch * heads * queries
    params = (
        ("batch", batch), ("heads", heads), ("kv_heads", kv_heads), ("queries", queries), ("keys", keys), ("D", D),
        ("causal", causal), ("dtype", dtype),
    )  # fmt: skip
    specs = (q, k, k, q, q, lse)
    return Problem("attention_backward", specs, params, flops=10 * batch * heads * pairs * D, bytes=size)


def attention(problem: Problem, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and log of sums, in f32, of some heads of queries q [heads, queries, D] with one of keys."""
    scores = q.float() @ k.float().T * problem["D"] ** -0.5
    if problem["causal"]:
        hidden = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device)
        scores = scores.masked_fill(hidden.triu(scores.shape[2] - scores.shape[1] + 1), -torch.inf)
    return torch.softmax(scores, -1) @ v.float(), torch.logsumexp(scores, -1)


def make_inputs(problem: Problem, seed: int) -> tuple[torch.Tensor, ...]:
    q, k, v, do = tensors.normal((*problem.inputs[:3], problem.inputs[4]), seed)
    o, lse = torch.empty_like(q), torch.empty(q.shape[:3])
    for b, head in torch.cartesian_prod(torch.arange(len(q)), torch.arange(q.shape[1])).tolist():
        kv_head = head // (problem["heads"] // problem["kv_heads"])
        one = slice(head, head + 1)
        one_o, lse[b, one] = attention(problem, q[b, one], k[b, kv_head], v[b, kv_head])
        o[b, one] = one_o.to(o.dtype)
    return q, k, v, o, do, lse


def reference(problem: Problem, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """By torch's own differentiation, a head of keys at a time; it needs neither o nor lse."""
    q, k, v, _, do, _ = inputs
    group = problem["heads"] // problem["kv_heads"]
    gradients = tuple(torch.empty_like(tensor) for tensor in (q, k, v))
    for b, kv_head in torch.cartesian_prod(torch.arange(len(k)), torch.arange(k.shape[1])).tolist():
        members = slice(kv_head * group, (kv_head + 1) * group)
        with torch.enable_grad():
            leaves = [x.float().requires_grad_() for x in (q[b, members], k[b, kv_head], v[b, kv_head])]
            o, _ = attention(problem, *leaves)
            found = torch.autograd.grad(o, leaves, do[b, members].float())
        for gradient, place, one in zip(gradients, (members, kv_head, kv_head), found, strict=True):
            gradient[b, place] = one.to(gradient.dtype)
    return gradients


def launch(
    problem: Problem, config: Config, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]
) -> list[Launch]:
    q, k, v, o, do, lse = inputs
    dq, dk, dv = outputs
    batch, heads, kv_heads, D = (problem[name] for name in ("batch", "heads", "kv_heads", "D"))
    queries, keys = problem["queries"], problem["keys"]
    delta = torch.empty(lse.shape, dtype=torch.float32, device=q.device)
    common = (q, k, v, do, lse, delta)
    sizes = (heads, kv_heads, queries, keys, D**-0.5)
    settings = {
        "D": D, "CAUSAL": problem["causal"], "num_warps": config["num_warps"], "num_stages": config["num_stages"]
    }  # fmt: skip
    rows, kv_n, q_m = batch * heads * queries, config["KV_BLOCK_N"], config["Q_BLOCK_M"]
    return [
        Launch(row_delta, (triton.cdiv(rows, 32),), (o, do, delta, rows), {"D": D, "ROWS": 32, "num_warps": 4}),
        Launch(
            gradient_of_keys, (triton.cdiv(keys, kv_n), batch * kv_heads), (*common, dk, dv, *sizes),
            {**settings, "BLOCK_M": config["KV_BLOCK_M"], "BLOCK_N": kv_n},
        ),
        Launch(
            gradient_of_queries, (triton.cdiv(queries, q_m), batch * heads), (*common, dq, *sizes),
            {**settings, "BLOCK_M": q_m, "BLOCK_N": config["Q_BLOCK_N"]},
        ),
    ]  # fmt: skip


def fits(config: Config, problem: Problem, device: Device) -> bool:
    """Of both large launches, with `held` rows that stay and `passing` rows that go by: up to 320 values of gradients,
    scores and probabilities a thread (from 200 on they spill), and 5/4 of a unit's shared memory."""
    D, threads = problem["D"], 32 * config["num_warps"]
    limit = 1.25 * dict(device.details).get("shared_bytes_per_unit", 1 << 16)
    launches = ((config["KV_BLOCK_N"], config["KV_BLOCK_M"], 2), (config["Q_BLOCK_M"], config["Q_BLOCK_N"], 1))
    return all(
        held * (sums * D + 2 * passing) <= 320 * threads
        and held * passing >= 4 * threads
        and 4 * D * (held + config["num_stages"] * passing) <= limit
        for held, passing, sums in launches
    )


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(
        fits, KV_BLOCK_M=(16, 32, 64, 128), KV_BLOCK_N=(32, 64, 128), Q_BLOCK_M=(32, 64, 128),
        Q_BLOCK_N=(16, 32, 64, 128), num_warps=(4, 8), num_stages=(1, 2, 3),
    ),
    default=Config.of(KV_BLOCK_M=32, KV_BLOCK_N=64, Q_BLOCK_M=128, Q_BLOCK_N=32, num_warps=8, num_stages=2),
    make_problem=make_problem,
    problems={
        # Llama 3 8B in training: four heads of queries add to one head of keys.
        "llama": {
            "batch": 1, "heads": 32, "kv_heads": 8, "queries": 4096, "keys": 4096, "D": 128, "causal": True,
            "dtype": "bf16",
        },
        # GPT-2: narrow heads of their own, short enough that the diagonal's blocks are a large share.
        "gpt2": {
            "batch": 16, "heads": 12, "kv_heads": 12, "queries": 1024, "keys": 1024, "D": 64, "causal": True,
            "dtype": "f16",
        },
        # A vision transformer: ragged at 197, a few blocks a head.
        "vit": {
            "batch": 64, "heads": 16, "kv_heads": 16, "queries": 197, "keys": 197, "D": 64, "causal": False,
            "dtype": "f16",
        },
        # An image's 4096 places and a text's 77 tokens: dk and dv have 2 blocks a head, each with all the queries.
        "cross": {
            "batch": 4, "heads": 8, "kv_heads": 8, "queries": 4096, "keys": 77, "D": 64, "causal": False,
            "dtype": "f16",
        },
    },
    make_inputs=make_inputs,
    outputs=lambda problem: problem.inputs[:3],
    reference=reference,
    launch=launch,
    tolerance=2e-2,  # bf16: a step at the largest value, o rounded to it before delta, p and ds before their products
)  # fmt: skip
