"""What sharing a prefix buys: scoring and training, two-part attention against whole sequences.

    python benchmarks/two_part.py            # about ten minutes on one core
    python benchmarks/two_part.py --quick    # about one

Scoring: 512 candidates of one kernel, suffixes of 16 tokens. "one at a time" encodes each whole sequence by itself,
"batched" 16 of them at once. Training: forward and backward of M candidates; naive takes whole sequences in batches of
8. Naive cost is linear in the number of candidates, so it is timed on a slice and scaled; outputs and gradients are
compared in float32 (scoring on every slice timed, training on all M once). Every round times each contestant once, in
turn; figures are medians, in CPU seconds with one thread and in wall seconds with more. The last line is one JSON
document.
"""

import argparse
import json
import os
import statistics
import sys
import time

# Large tensors would otherwise be mapped and unmapped at every step: 20 - 30 % of the time goes to page faults.
MALLOC = {"MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}
if __name__ == "__main__" and any(os.environ.get(name) != value for name, value in MALLOC.items()):
    os.environ.update(MALLOC)
    os.execv(sys.executable, [sys.executable, *sys.argv])

import torch  # noqa: E402

from costmodel.model import decoder  # noqa: E402

VOCAB, SUFFIX, CANDIDATES, SLICE, NAIVE_BATCH = 2048, 16, 512, 16, 8
SIZES = {"3M (width 256, 4 layers)": (256, 4), "0.3M (width 96, 3 layers)": (96, 3)}


def case(prefix, rows, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB, (prefix,), generator=g), torch.randint(0, VOCAB, (rows, SUFFIX), generator=g)


def shared(backbone, prefix_ids, suffix_ids):
    prefix = decoder.encode_prefix(backbone, prefix_ids)
    lengths = torch.full((len(suffix_ids),), SUFFIX)
    return decoder.encode_suffixes(backbone, prefix, suffix_ids, lengths)


def whole(backbone, prefix_ids, suffix_ids):
    rows = torch.cat([prefix_ids.expand(len(suffix_ids), -1), suffix_ids], -1)
    return backbone.base_model(input_ids=rows, use_cache=False).last_hidden_state[:, -1]


def timed(clock, f, *args):
    start = clock()
    result = f(*args)
    return clock() - start, result


@torch.inference_mode()
def scoring(backbone, prefix, rounds, clock):
    prefix_ids, suffix_ids = case(prefix, CANDIDATES)
    seconds = {"shared": [], "one at a time": [], "batched": []}
    difference = 0.0
    for i in range(rounds):
        rows = slice(i * SLICE % CANDIDATES, i * SLICE % CANDIDATES + SLICE)
        some = suffix_ids[rows]
        took, ours = timed(clock, shared, backbone, prefix_ids, suffix_ids)
        seconds["shared"].append(took / CANDIDATES)
        took, single = timed(clock, lambda s: torch.cat([whole(backbone, prefix_ids, row[None]) for row in s]), some)
        seconds["one at a time"].append(took / SLICE)
        took, batch = timed(clock, whole, backbone, prefix_ids, some)
        seconds["batched"].append(took / SLICE)
        difference = max(difference, (ours[rows] - single).abs().max().item(), (ours[rows] - batch).abs().max().item())
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "what": "scoring", "prefix_tokens": prefix, "candidates": CANDIDATES,
        "shared_per_s": 1 / medians["shared"], "naive_per_s": 1 / medians["one at a time"],
        "ratio": medians["one at a time"] / medians["shared"], "ratio_batched": medians["batched"] / medians["shared"],
        "max_abs_difference": difference,
    }  # fmt: skip


def step(backbone, forward, prefix_ids, suffix_ids, weights, batch):
    """Forward and backward of all rows, `batch` at a time; leaves the gradients in the parameters."""
    backbone.zero_grad()
    for rows, weight in zip(suffix_ids.split(batch), weights.split(batch), strict=True):
        (forward(backbone, prefix_ids, rows) * weight).sum().backward()


def gradients(backbone):
    return {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}


def training(backbone, prefix, rows, rounds, clock):
    prefix_ids, suffix_ids = case(prefix, rows)
    weights = torch.randn(rows, backbone.config.hidden_size, generator=torch.Generator().manual_seed(1)) / rows
    some = min(rows, 2 * NAIVE_BATCH)
    seconds = {"shared": [], "naive": []}
    for _ in range(rounds):
        took, _ = timed(clock, step, backbone, shared, prefix_ids, suffix_ids, weights, rows)
        seconds["shared"].append(took / rows)
        took, _ = timed(clock, step, backbone, whole, prefix_ids, suffix_ids[:some], weights[:some], NAIVE_BATCH)
        seconds["naive"].append(took / some)
    step(backbone, shared, prefix_ids, suffix_ids, weights, rows)
    ours = gradients(backbone)
    step(backbone, whole, prefix_ids, suffix_ids, weights, NAIVE_BATCH)
    naive = gradients(backbone)
    difference = max(((ours[name] - g).abs().max() / g.abs().max()).item() for name, g in naive.items())
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "what": "training", "prefix_tokens": prefix, "candidates": rows,
        "shared_per_s": 1 / medians["shared"], "naive_per_s": 1 / medians["naive"],
        "ratio": medians["naive"] / medians["shared"], "max_relative_gradient_difference": difference,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the large model, prefix 512, fewer rounds")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    rounds = 3 if options.quick else 7
    results = []
    for name, (width, layers) in list(SIZES.items())[: 1 if options.quick else None]:
        backbone = decoder.build(decoder.small_config(VOCAB, hidden_size=width, layers=layers), seed=0)
        whole(backbone, *case(64, 2))  # warm-up
        shared(backbone, *case(64, 2))
        for prefix in (512,) if options.quick else (512, 1024):
            cells = [scoring(backbone, prefix, rounds, clock)]
            cells += [training(backbone, prefix, rows, rounds, clock) for rows in (32, 128)]
            for cell in cells:
                results.append({"model": name, **cell})
                batched = f" (batched {cell['ratio_batched']:.1f}x)" if "ratio_batched" in cell else ""
                error = cell.get("max_abs_difference", cell.get("max_relative_gradient_difference"))
                print(
                    f"{name}: {cell['what']} {cell['candidates']} on {prefix}: {cell['ratio']:.1f}x{batched}, "
                    f"{cell['shared_per_s']:.0f}/s against {cell['naive_per_s']:.1f}/s, difference {error:.1e}",
                    flush=True,
                )
    setting = {"threads": options.threads, "clock": clock.__name__, "suffix_tokens": SUFFIX, "rounds": rounds}
    print(json.dumps({**setting, "torch": torch.__version__, "results": results}))


if __name__ == "__main__":
    main()
