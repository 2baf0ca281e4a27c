"""TensorSpec <-> torch: types by their short names, and inputs that are the same on each call with one seed.

Tensors are made on torch's default device, so one function serves a GPU, a CPU and the meta device (shapes alone).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from costmodel.records import DTYPES, TensorSpec, UserError

_TORCH = {short: getattr(torch, name) for name, short in DTYPES.items()}


def dtype_of(name: str) -> torch.dtype:
    """The torch type of a short name such as "bf16"."""
    if name not in _TORCH:
        raise UserError(f"got dtype {name!r}, expected one of {', '.join(_TORCH)}")
    return _TORCH[name]


def empty(specs: Sequence[TensorSpec]) -> tuple[torch.Tensor, ...]:
    """Uninitialised tensors of these shapes and types."""
    return tuple(torch.empty(spec.shape, dtype=dtype_of(spec.dtype)) for spec in specs)


def normal(specs: Sequence[TensorSpec], seed: int) -> tuple[torch.Tensor, ...]:
    """Standard normal values of floating types, equal for equal seeds on one kind of device."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    return tuple(torch.randn(spec.shape, generator=generator).to(dtype_of(spec.dtype)) for spec in specs)
