"""The fused ops of the numeric head beside eager torch, torch.compile and CUDA graphs, one CSV row per point.

    python benchmarks/ops.py --out ops.csv            # on a GPU: the whole grid
    python benchmarks/ops.py --quick --out ops.csv    # five; on a CPU a rehearsal, "ours" being the definition

numeric_loss: forward and backward of the loss over N rows, hidden size H, V tokens. "eager" writes the definition as
one would in torch; "ours" is one kernel on the logits of one matrix product. The floor reads h twice and writes its
gradient, writes the logits' gradient once and reads it twice (6H + 6V bytes a row in bf16) at the sheet's bandwidth.
numeric_step: one step of decoding. tree_attention: M suffixes of one prefix, against each with a copy of the prefix.
Liger's and cut-cross-entropy's losses, where they are installed, are the cross-entropy alone: not the same function.
"""

import argparse
import csv
import datetime
import itertools
import json
import subprocess
import time
from importlib.util import find_spec

import numpy as np
import torch
from torch.nn import functional as F

from costmodel import devices
from costmodel.ops.numeric_loss import numeric_loss
from costmodel.ops.numeric_step import numeric_step
from costmodel.ops.tree_attention import tree_attention

GRID = {"H": (256, 512, 1024), "V": (32, 128, 512), "N": (1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20)}
QUICK = {"H": (512,), "V": (128,), "N": (1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 20)}
LARGEST_ON_CPU = 1 << 14  # rows
LARGEST_LOGITS = 1 << 29  # N * V beyond this is left out: eager would not fit beside its copies
COLUMNS = (
    "op", "provider", "mode", "p50_ms", "p20_ms", "p80_ms", "bytes", "share_of_floor", "peak_mb", "config", "device",
    "torch", "triton", "commit", "taken_at",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ clocks


def quantiles_ms(call):
    """(p50, p20, p80) of a call, in ms: on a GPU by events with L2 flushed, on a CPU by the wall clock."""
    if torch.cuda.is_available():
        from triton.testing import do_bench

        return tuple(do_bench(call, warmup=50, rep=200, quantiles=[0.5, 0.2, 0.8]))
    call()
    taken = []
    for _ in range(7):
        start = time.perf_counter()
        call()
        taken.append(1e3 * (time.perf_counter() - start))
    return tuple(np.quantile(taken, [0.5, 0.2, 0.8]))


def peak_mb(call):
    """What a call allocates at its peak beyond what was there before; NaN on a CPU."""
    if not torch.cuda.is_available():
        return float("nan")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def in_graph(call):
    """The same call, captured once in a CUDA graph and replayed."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


# --------------------------------------------------------------------------------------------------------- numeric_loss


def loss_in_torch(h, w, state, target, y, legal, value, w_ce, w_ev):
    z = (h @ w.t()).float().masked_fill(~legal[state].bool(), float("-inf"))
    log_p = z.log_softmax(-1)
    nll = -log_p.gather(1, target[:, None])[:, 0]
    ev = (log_p.exp() * value[state]).sum(-1)
    return (w_ce * nll + w_ev * (ev - y).square()).sum()


def loss_case(N, H, V, dtype):
    g = torch.Generator(torch.get_default_device()).manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    h, w = normal(N, H).to(dtype).requires_grad_(), (normal(V, H) / H**0.5).to(dtype).requires_grad_()
    legal = (torch.rand(6, V, generator=g) < 0.5).to(torch.uint8)
    legal[:, 0] = 1
    state = torch.randint(0, 6, (N,), generator=g)
    target = torch.zeros(N, dtype=torch.long)
    weights = torch.full((N,), 1 / N)
    return h, w, state, target, normal(N), legal, normal(6, V), weights, 0.3 * weights


def losses(N, H, V, dtype):
    """{provider: call}, each a forward and a backward."""
    case = loss_case(N, H, V, dtype)
    h, w, target = case[0], case[1], case[3]

    def both(loss):
        def call():
            h.grad = w.grad = None
            loss(*case).backward()

        return call

    ours = lambda h, w, *rows: numeric_loss(h, w, None, *rows)[0]  # noqa: E731
    calls = {"eager": both(loss_in_torch), "ours": both(ours)}
    if torch.cuda.is_available():
        torch.compiler.reset()  # past a few sizes of one function it would give up and run eagerly, unsaid
        calls["compile"] = both(torch.compile(loss_in_torch, dynamic=False))
        calls["compile, graph"] = in_graph(calls["compile"])
        calls["ours, graph"] = in_graph(calls["ours"])
        if find_spec("liger_kernel"):
            from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

            liger = LigerFusedLinearCrossEntropyLoss()
            calls["liger (cross-entropy alone)"] = both(lambda h, w, *rows: liger(w, h, target))
        if find_spec("cut_cross_entropy"):
            from cut_cross_entropy import linear_cross_entropy

            calls["cce (cross-entropy alone)"] = both(lambda h, w, *rows: linear_cross_entropy(h, w, target))
    return calls


# ------------------------------------------------------------------------------------- numeric_step and tree_attention


def steps(R, V):
    g = torch.Generator(torch.get_default_device()).manual_seed(0)
    z, u = torch.randn(R, V, generator=g), torch.rand(R, generator=g, dtype=torch.float64)
    legal, next_state = torch.ones(6, V, dtype=torch.uint8), torch.zeros(6, V, dtype=torch.long)
    rows = z, torch.zeros(R, dtype=torch.long), u, legal, torch.zeros(6, V), next_state
    calls = {impl: lambda impl=impl: numeric_step(*rows, impl=impl) for impl in ("torch", "auto")}
    return {"eager": calls["torch"], "ours": calls["auto"]}


def attentions(P, L, M, dtype, heads=8, width=64):
    g = torch.Generator(torch.get_default_device()).manual_seed(0)
    shapes = [(M, heads, L, width)] * 3 + [(heads, P, width)] * 2
    parts = [torch.randn(*shape, generator=g).to(dtype).requires_grad_() for shape in shapes]
    query, key, value, shared_key, shared_value = parts

    def copied():
        keys, values = (
            torch.cat([shared.expand(M, -1, -1, -1), own], 2)
            for shared, own in ((shared_key, key), (shared_value, value))
        )
        mask = torch.ones(L, P + L, dtype=torch.bool).tril(P)
        F.scaled_dot_product_attention(query, keys, values, mask, scale=0.125).sum().backward()

    def shared(impl):
        return lambda: tree_attention(*parts, scale=0.125, impl=impl).sum().backward()

    forms = ("torch", "flex") if torch.cuda.is_available() else ("torch", "flash")
    return {"a copy of the prefix each": copied, **{f"ours, {form}": shared(form) for form in forms}}


# ---------------------------------------------------------------------------------------------------------------- rows


def points(quick, dtype):
    """(op, config, bytes of the floor or 0, {provider: call})."""
    size = dtype.itemsize
    grid = QUICK if quick else GRID
    for N, H, V in itertools.product(grid["N"], grid["H"], grid["V"]):
        if N * V <= LARGEST_LOGITS and (torch.cuda.is_available() or N <= LARGEST_ON_CPU):
            config = {"N": N, "H": H, "V": V, "dtype": str(dtype)[6:]}
            yield "numeric_loss", config, 3 * size * (H + V) * N, losses(N, H, V, dtype)
    for R, V in ((64, 128),) if quick else itertools.product((64, 256, 1024, 1 << 14), (32, 128, 512)):
        yield "numeric_step", {"R": R, "V": V}, 0, steps(R, V)
    for P, L, M in ((256, 16, 16),) if quick else ((512, 16, 64), (1024, 16, 64), (1024, 16, 256), (4096, 32, 64)):
        yield "tree_attention", {"P": P, "L": L, "M": M, "dtype": str(dtype)[6:]}, 0, attentions(P, L, M, dtype)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="the CSV to write")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    cuda = torch.cuda.is_available()
    device = devices.detect("cuda" if cuda else "cpu")
    version = __import__("triton").__version__ if find_spec("triton") else ""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    told = (device.name, torch.__version__, version, commit)
    torch.set_default_device("cuda" if cuda else "cpu")
    with open(options.out, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for op, config, floor_bytes, calls in points(options.quick, torch.bfloat16 if cuda else torch.float32):
            for provider, call in calls.items():
                p50, p20, p80 = quantiles_ms(call)
                floor_ms = floor_bytes / (device.peak_gb_per_s * 1e6)
                share = floor_ms / p50 if floor_bytes and device.peak_gb_per_s else float("nan")
                mode = "forward" if op == "numeric_step" else "forward and backward"
                taken = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
                figures = (
                    f"{p50:.5g}",
                    f"{p20:.5g}",
                    f"{p80:.5g}",
                    floor_bytes,
                    f"{share:.3g}",
                    f"{peak_mb(call):.4g}",
                )
                writer.writerow((op, provider, mode, *figures, json.dumps(config), *told, taken))
                file.flush()
                print(f"{op:16} {provider:28} {p50:10.4f} ms  {json.dumps(config)}", flush=True)


if __name__ == "__main__":
    main()
