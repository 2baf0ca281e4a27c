"""TensorSpec <-> torch: types by their short names, and inputs that are the same on each call with one seed.

Tensors are made on torch's default device, so one function serves a GPU, a CPU and the meta device (shapes alone).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from costmodel.records import TensorSpec, UserError

DTYPES = {
    "f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16,
    "f8e4m3": torch.float8_e4m3fn, "f8e5m2": torch.float8_e5m2,
    "i64": torch.int64, "i32": torch.int32, "i16": torch.int16, "i8": torch.int8, "u8": torch.uint8, "bool": torch.bool,
}  # fmt: skip


def dtype_of(name: str) -> torch.dtype:
    """The torch type of a short name such as "bf16"."""
    if name not in DTYPES:
        raise UserError(f"got dtype {name!r}, expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


def empty(specs: Sequence[TensorSpec]) -> tuple[torch.Tensor, ...]:
    """Uninitialised tensors of these shapes and types."""
    return tuple(torch.empty(spec.shape, dtype=dtype_of(spec.dtype)) for spec in specs)


def normal(specs: Sequence[TensorSpec], seed: int) -> tuple[torch.Tensor, ...]:
    """Standard normal values of floating types, equal for equal seeds on one kind of device."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    return tuple(torch.randn(spec.shape, generator=generator).to(dtype_of(spec.dtype)) for spec in specs)
