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

import math
from collections.abc import Iterable, Sequence

from costmodel.records import DTYPES, Scalar, TensorSpec, UserError, Variant

LookupTable = dict[str, list[dict[str, Scalar]]]
_TEMPLATES = {"mm": "triton::mm", "addmm": "triton::mm", "bmm": "triton::bmm", "baddbmm": "triton::bmm"}
_TORCH = {short: name for name, short in DTYPES.items()}


def lookup_table(picks: Iterable[tuple[str, Variant]], *, device: str | None = None) -> LookupTable:
    """Several picks of one operation and problem are all benchmarked by torch, which then takes the fastest.

    picks: torch's operation (mm, addmm, bmm, baddbmm) and a variant whose problem names K and lists the inputs as torch
    gets them, each contiguous. device: as torch.cuda.get_device_properties names it; for every one if left out.
    """
    table: LookupTable = {}
    for op, variant in picks:
        if op not in _TEMPLATES:
            raise UserError(f"got operation {op!r}, expected one of {', '.join(_TEMPLATES)}")
        even = {"EVEN_K": int(variant.problem["K"]) % int(variant.config["BLOCK_K"]) == 0}
        entry = {"template_id": _TEMPLATES[op], **even, **variant.config.as_dict()}
        key = "+".join(filter(None, (device, _inputs_key(variant.problem.inputs), op)))
        table.setdefault(key, []).append(entry)
    return table


def _inputs_key(inputs: Sequence[TensorSpec]) -> str:
    """What torch makes of (dtype, sizes, strides) of each input by `str`."""
    told = []
    for spec in inputs:
        strides = [math.prod(spec.shape[i + 1 :]) for i in range(len(spec.shape))]
        told.append(f"(torch.{_TORCH.get(spec.dtype, spec.dtype)}, {list(spec.shape)}, {strides})")
    return f"({', '.join(told)})"
