"""Measured or predicted configs of Inductor's matmul templates as the table that torch._inductor.lookup_table reads.

    import json
    from costmodel.integrations.inductor_table import lookup_table
    from costmodel.records import Config, Kernel, Problem, TensorSpec, Variant

    inputs = (TensorSpec((1024, 512), "f16"), TensorSpec((512, 2048), "f16"))
    problem = Problem("mm", inputs, (("M", 1024), ("N", 2048), ("K", 512)), flops=0, bytes=0)
    config = Config.of(BLOCK_M=128, BLOCK_N=128, BLOCK_K=64, GROUP_M=8, num_warps=8, num_stages=3)
    best = Variant(Kernel("mm", "triton", None), problem, config)
    text = json.dumps(lookup_table([("mm", best)]))

In torch, `torch._inductor.config.lookup_table.table = json.loads(text)` and
`torch._inductor.virtualized.V.set_choices_handler(torch._inductor.lookup_table.LookupTableChoices())` use it: an
operation that is listed has no other choice, one that is not has them all.
"""

from __future__ import annotations

from collections.abc import Iterable

from costmodel.records import Scalar, Variant
from costmodel.table_formats import dense, inductor_entry, inductor_key

LookupTable = dict[str, list[dict[str, Scalar]]]


def lookup_table(picks: Iterable[tuple[str, Variant]], *, device: str = "") -> LookupTable:
    """Several picks of one operation and problem are all benchmarked by torch, which then takes the fastest.

    picks: torch's operation (mm, addmm, bmm, baddbmm) and a variant whose problem names K and lists the inputs as torch
    gets them, each contiguous. device: as torch.cuda.get_device_properties names it; for every one if left out.
    """
    table: LookupTable = {}
    for op, variant in picks:
        entry = inductor_entry(op, variant.config.as_dict(), int(variant.problem["K"]))
        key = inductor_key(op, [dense(spec) for spec in variant.problem.inputs], device=device)
        table.setdefault(key, []).append(entry)
    return table
