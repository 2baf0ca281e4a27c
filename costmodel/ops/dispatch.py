"""Which implementation of an op runs: Triton's kernel, or the reference beside it.

The reference is the definition: plain torch, on any device, in float64 where it is given float64. "auto" takes the
kernel where it can run, a forced "triton" says why it cannot instead of falling back. Triton need not be installed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from costmodel.records import Launch, UserError

jit: Callable[..., Any]
try:
    import triton
    import triton.language as tl

    jit = triton.jit
except ImportError:  # kernels stay plain functions that nobody calls
    triton = tl = None
    jit = lambda function: function  # noqa: E731

IMPLEMENTATIONS = ("auto", "torch", "triton")
DTYPES = (torch.float32, torch.bfloat16, torch.float64)  # of logits; float16 would lose small gradients
MAX_VOCABULARY = 2048  # a row of logits stays in registers
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # read as Triton reads it: when kernels are decorated


def takes_kernel(impl: str, logits: Tensor, vocabulary: int) -> bool:
    """Is the op on these logits, or on what they will be computed from, to run as a kernel? UserError where a forced
    "triton" cannot."""
    if impl not in IMPLEMENTATIONS:
        raise UserError(f"got impl={impl!r}, expected one of {', '.join(IMPLEMENTATIONS)}")
    if impl == "torch":
        return False
    obstacle = _obstacle(logits, vocabulary)
    if obstacle and impl == "triton":
        raise UserError(f"got impl='triton' with {obstacle}; take impl='auto' or 'torch'")
    return not obstacle


def _obstacle(logits: Tensor, vocabulary: int) -> str:
    if triton is None:
        return "no triton installed, expected one"
    if not (logits.is_cuda or INTERPRETED):
        return f"a tensor on {logits.device}, expected one on a CUDA device or TRITON_INTERPRET=1 from the start"
    if logits.dtype not in DTYPES:
        return f"{logits.dtype}, expected one of {', '.join(map(str, DTYPES))}"
    if vocabulary > MAX_VOCABULARY:
        return f"{vocabulary} tokens, expected at most {MAX_VOCABULARY}"
    return ""


def block_of(vocabulary: int, dtype: torch.dtype) -> dict[str, Any]:
    """Keywords of a launch: BN rows of BV columns that one block holds, the type WIDE in which it computes, options."""
    columns = max(16, triton.next_power_of_2(vocabulary))
    double = dtype == torch.float64
    rows = max(1, (1024 if double else 2048) // columns)  # 16 logits a thread: twice as many spill registers
    wide = tl.float64 if double else tl.float32
    # fusing is said outright, since Triton is about to change what it does unasked
    return {"BN": rows, "BV": columns, "WIDE": wide, "num_warps": 4, "enable_fp_fusion": True}


def start(launch: Launch) -> None:
    """Starts a kernel on the device of its first argument, which need not be the current one."""
    with torch.cuda.device_of(launch.args[0]):
        launch.entry[launch.grid](*launch.args, **launch.keywords)


def as_bytes(legal: Tensor) -> Tensor:
    """A table of bools as Triton reads it."""
    return legal.view(torch.uint8) if legal.dtype == torch.bool else legal
