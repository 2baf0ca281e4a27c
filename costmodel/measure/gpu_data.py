"""Inputs, answers and outputs of GPU kernels on their device: kept, guarded, spoiled and compared.

A GPU has no private pages: a kernel that writes where it should not may spoil what belongs to others. So outputs lie
between guards, and inputs and answers are known by checksums that show when they are no longer what they were.
"""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from costmodel import tensors
from costmodel.measure.gpu_protocol import GpuTask
from costmodel.records import Problem, TensorSpec, Workload

GUARD_BYTES = 4096
CANARY = 0x5C
PIECE = 1 << 22  # elements that are compared or summed at a time
GARBAGE = (0xA5, 0x5A)  # before the first and the last check: what one leaves behind is no answer to the other


def bytes_of(x: torch.Tensor) -> torch.Tensor:
    """The elements in logical order, as a flat tensor of bytes."""
    plain = x.detach()
    if not plain.is_contiguous() or plain.storage_offset():
        plain = plain.clone(memory_format=torch.contiguous_format)
    return plain.reshape(-1).view(torch.uint8)


@functools.cache
def _weights(device: torch.device) -> torch.Tensor:
    return torch.arange(1, 2 * PIECE, 2, dtype=torch.int64, device=device)


def checksum(x: torch.Tensor) -> int:
    """Of the bits, in their order: a weighted sum modulo 2^64."""
    flat = bytes_of(x)
    whole = len(flat) // 4 * 4
    total = torch.zeros((), dtype=torch.int64, device=x.device)
    for words in (flat[:whole].view(torch.int32), flat[whole:]):
        for i, piece in enumerate(words.split(PIECE) if len(words) else ()):
            total = total * 31 + ((piece.long() + 7) * _weights(x.device)[: len(piece)]).sum() + i
    return int(total)


# ---- what is right ----


def _pieces(got: torch.Tensor, expected: torch.Tensor) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    pairs = zip(got.reshape(-1).split(PIECE), expected.reshape(-1).split(PIECE), strict=True)
    for i, (mine, theirs) in enumerate(pairs):
        yield i * PIECE, mine, theirs


def mismatch(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> str:
    """ "" where the tensors agree, else one line that says by how much they do not.

    Floats: max |got - expected| <= tolerance * max |finite expected|, infinities and NaN in the same places.
    Everything else must be equal.
    """
    if expected.numel() == 0:
        return ""
    if not expected.is_floating_point():
        count, first = 0, -1
        if expected.dtype == torch.bool:  # what a kernel left alone is no bool
            got, expected = got.view(torch.uint8), expected.view(torch.uint8)
        for start, mine, theirs in _pieces(got, expected):
            wrong = mine != theirs
            here = int(wrong.sum())
            if here and first < 0:
                first = start + int(wrong.nonzero()[0])
            count += here
        return f"{count} of {got.numel()} values differ, first at index {first}" if count else ""
    wide = torch.float64 if expected.dtype == torch.float64 else torch.float32
    worst = torch.zeros((), dtype=wide, device=got.device)
    scale, odd = worst.clone(), torch.zeros((), dtype=torch.int64, device=got.device)
    for _, mine, theirs in _pieces(got, expected):
        mine, theirs = mine.to(wide), theirs.to(wide)
        finite = mine.isfinite() & theirs.isfinite()
        odd += _oddly(mine, theirs).sum()
        worst = torch.maximum(worst, (mine - theirs).abs().where(finite, 0).max())
        scale = torch.maximum(scale, theirs.abs().where(theirs.isfinite(), 0).max())
    if int(odd):
        return _first_odd(got, expected, wide)
    error, allowed = float(worst), tolerance * float(scale)
    if error <= allowed:
        return ""
    return f"largest error {error:.3g} where {allowed:.3g} is allowed (tolerance {tolerance:g} of {float(scale):.3g})"


def _oddly(mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Where one is infinite or no number and the other is not the same."""
    same = (mine == theirs) | (mine.isnan() & theirs.isnan())
    return ~(mine.isfinite() & theirs.isfinite()) & ~same


def _first_odd(got: torch.Tensor, expected: torch.Tensor, wide: torch.dtype) -> str:
    for start, mine, theirs in _pieces(got, expected):
        mine, theirs = mine.to(wide), theirs.to(wide)
        found = _oddly(mine, theirs).nonzero()
        if len(found):
            i = int(found[0])
            return f"got {float(mine[i]):g}, expected {float(theirs[i]):g} at index {start + i}"
    raise AssertionError("an odd value was counted and is not there")


# ---- outputs ----


class Output:
    """What a kernel writes to, between two guards."""

    def __init__(self, spec: TensorSpec, device: torch.device) -> None:
        dtype = tensors.dtype_of(spec.dtype)
        size = math.prod(spec.shape) * dtype.itemsize
        raw = torch.full((GUARD_BYTES + size + GUARD_BYTES,), CANARY, dtype=torch.uint8, device=device)
        self.guards = (raw[:GUARD_BYTES], raw[GUARD_BYTES + size :])
        self.body = raw[GUARD_BYTES : GUARD_BYTES + size]
        self.tensor = self.body.view(dtype).reshape(spec.shape)

    def spoil(self, byte: int) -> None:
        """Fill with garbage: NaN where the type has it, `byte` repeated elsewhere."""
        self.body.fill_(0xFF if self.tensor.is_floating_point() else byte)  # ones throughout are NaN in every float

    def overrun(self) -> bool:
        return any(bool((guard != CANARY).any()) for guard in self.guards)


# ---- inputs and answers ----


@dataclass(frozen=True)
class Prepared:
    """A problem's inputs and answers, and what their checksums were when they were made."""

    problem: Problem
    inputs: tuple[torch.Tensor, ...]
    expected: tuple[torch.Tensor, ...]
    sums: tuple[int, ...]
    tolerance: float

    @staticmethod
    def of(workload: Workload, task: GpuTask, device: torch.device) -> Prepared:
        """Raises what the workload's functions raise, and ValueError where they do not fit together."""
        assert workload.outputs is not None
        problem = workload.make_problem(**dict(task.problem))
        with device, torch.no_grad():
            inputs = tuple(workload.make_inputs(problem, task.seed))
            expected = tuple(workload.reference(problem, inputs))
        wanted = [(spec.shape, tensors.dtype_of(spec.dtype)) for spec in workload.outputs(problem)]
        made = [(tuple(x.shape), x.dtype) for x in expected]
        if made != wanted:
            raise ValueError(f"the reference gives {_shapes(made)}, the workload's outputs are {_shapes(wanted)}")
        expected = tuple(x.contiguous() for x in expected)
        sums = tuple(checksum(x) for x in (*inputs, *expected))
        return Prepared(problem, inputs, expected, sums, workload.tolerance)

    @property
    def bytes(self) -> int:
        return sum(x.numel() * x.element_size() for x in (*self.inputs, *self.expected))

    def intact(self) -> bool:
        return self.sums == tuple(checksum(x) for x in (*self.inputs, *self.expected))

    def changed_input(self) -> int | None:
        """The first input that is no longer what it was."""
        pairs = enumerate(zip(self.inputs, self.sums[: len(self.inputs)], strict=True))
        return next((i for i, (x, was) in pairs if checksum(x) != was), None)


def _shapes(tensors_: list[tuple[tuple[int, ...], torch.dtype]]) -> str:
    return ", ".join(f"{str(dtype).removeprefix('torch.')}{list(shape)}" for shape, dtype in tensors_) or "nothing"


class Shelf:
    """Prepared problems on the device, least recently used dropped first when `limit_bytes` is passed."""

    def __init__(self, device: torch.device, limit_bytes: int) -> None:
        self.device, self.limit_bytes = device, limit_bytes
        self.items: OrderedDict[tuple[object, ...], Prepared] = OrderedDict()

    def get(self, workload: Workload, task: GpuTask) -> Prepared:
        """Made now where it is not there, or where some kernel has spoiled it."""
        key = (workload.make_inputs, workload.reference, task.problem, task.seed, workload.tolerance)
        if key in self.items and not self.items[key].intact():
            self.clear()
        if key not in self.items:
            self.items[key] = Prepared.of(workload, task, self.device)
        self.items.move_to_end(key)
        while len(self.items) > 1 and sum(item.bytes for item in self.items.values()) > self.limit_bytes:
            self.items.popitem(last=False)
        return self.items[key]

    def clear(self) -> None:
        self.items.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
