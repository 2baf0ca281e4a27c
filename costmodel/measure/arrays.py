"""Buffers that a kernel may be trusted with: unmapped zones on both sides, canaries up to the page's end.

A write that misses a buffer by little dies on the canary or on the unmapped zone; one that hits an input is found by
comparing the kernel's private view with the shared original.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

_PAGE = mmap.PAGESIZE
GUARD_BYTES = 1 << 20
_CANARY = 0xC5
_READ, _WRITE, _NONE = mmap.PROT_READ, mmap.PROT_WRITE, 0
_PRIVATE, _ANONYMOUS, _FIXED, _POPULATE = 0x2, 0x20, 0x10, 0x8000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


def _map(address: int | None, size: int, protection: int, flags: int, descriptor: int = -1) -> int:
    got = _libc.mmap(address, size, protection, flags, descriptor, 0)
    if got is None or got == ctypes.c_void_p(-1).value:
        raise MemoryError(f"cannot map {size} bytes: {os.strerror(ctypes.get_errno())}")
    return int(got)


def _pages(size: int) -> int:
    return max(1, -(-size // _PAGE)) * _PAGE


def _bytes_at(address: int, size: int) -> np.ndarray[Any, Any]:
    return np.ctypeslib.as_array((ctypes.c_ubyte * size).from_address(address))


def _between_guards(size: int, flags: int, descriptor: int = -1) -> int:
    """Map `size` bytes (whole pages) with GUARD_BYTES of unmapped zone before and after."""
    start = _map(None, size + 2 * GUARD_BYTES, _NONE, _PRIVATE | _ANONYMOUS)
    return _map(start + GUARD_BYTES, size, _READ | _WRITE, flags | _FIXED | _POPULATE, descriptor)


@dataclass(frozen=True)
class Original:
    """An input array in a sealed memory file: read-only for everyone, and each child gets a private view."""

    descriptor: int
    address: int
    size: int  # whole pages

    @staticmethod
    def of(array: np.ndarray[Any, Any]) -> Original:
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        size = _pages(data.nbytes)
        descriptor = os.memfd_create("input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with open(descriptor, "wb", closefd=False) as file:
            data.tofile(file)
        os.truncate(descriptor, size)
        # A child inherits the descriptor; sealed, a stray write() to it cannot reach the original either.
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
        return Original(descriptor, _map(None, size, _READ, _PRIVATE, descriptor), size)

    def view(self) -> int:
        """Address of a private copy-on-write view between guards."""
        return _between_guards(self.size, _PRIVATE, self.descriptor)

    def differs(self, view: int) -> bool:
        """Whether the view (with the slack up to its page's end) was written to."""
        return bool(_libc.memcmp(view, self.address, self.size))

    def close(self) -> None:
        _libc.munmap(self.address, self.size)
        os.close(self.descriptor)


@dataclass(frozen=True)
class Output:
    """A writable array between guards, with canaries behind its last byte."""

    array: np.ndarray[Any, Any]
    address: int
    slack: np.ndarray[Any, Any]

    @staticmethod
    def like(expected: np.ndarray[Any, Any]) -> Output:
        size = _pages(expected.nbytes)
        address = _between_guards(size, _PRIVATE | _ANONYMOUS)
        whole = _bytes_at(address, size)
        slack = whole[expected.nbytes :]
        slack[:] = _CANARY
        array = whole[: expected.nbytes].view(expected.dtype).reshape(expected.shape)
        return Output(array, address, slack)

    def spoil(self, byte: int) -> None:
        """Fill with garbage: NaN where the type has it, `byte` repeated elsewhere."""
        if self.array.dtype.kind in "fc":
            self.array.fill(np.nan)
        else:
            self.array.reshape(-1).view(np.uint8).fill(byte)

    def overrun(self) -> bool:
        return bool((self.slack != _CANARY).any())


def mismatch(got: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], tolerance: float) -> str:
    """ "" where the arrays agree, else one line that says by how much they do not.

    Floats: max |got - expected| <= tolerance * max |finite expected|, infinities and NaN in the same places.
    Everything else must be equal.
    """
    if expected.size == 0:
        return ""
    if expected.dtype.kind not in "fc":
        wrong = np.flatnonzero((got != expected).reshape(-1))
        return f"{wrong.size} of {got.size} values differ, first at index {wrong[0]}" if wrong.size else ""
    got, expected = got.reshape(-1), expected.reshape(-1)
    worst = scale = 0.0
    step = 1 << 17  # stays in cache
    with np.errstate(all="ignore"):
        for i in range(0, got.size, step):
            mine, theirs = got[i : i + step], expected[i : i + step]
            error = np.abs(mine - theirs)
            high = np.abs(theirs)
            if not (np.isfinite(error.max()) and np.isfinite(high.max())):
                same = (mine == theirs) | (np.isnan(mine) & np.isnan(theirs))
                odd = ~np.isfinite(mine) | ~np.isfinite(theirs)
                if (odd & ~same).any():
                    where = i + int(np.flatnonzero(odd & ~same)[0])
                    return f"got {got[where]}, expected {expected[where]} at index {where}"
                error, high = np.where(odd, 0, error), np.where(odd, 0, high)
            worst, scale = max(worst, float(error.max())), max(scale, float(high.max()))
    if worst <= tolerance * scale:
        return ""
    return (
        f"largest error {worst:.3g} where {tolerance * scale:.3g} is allowed (tolerance {tolerance:g} of {scale:.3g})"
    )
