"""Hardware counters through Linux perf_event_open, where the kernel and the machine permit it; else none.

The layout of perf_event_attr and the event numbers are those of linux/perf_event.h.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import struct
from collections.abc import Callable

_SYSCALL = {"x86_64": 298, "aarch64": 241}
_EVENTS = {"cycles": 0, "instructions": 1, "cache_misses": 3}
_DISABLED, _INHERIT, _NO_KERNEL, _NO_HYPERVISOR = 1 << 0, 1 << 1, 1 << 5, 1 << 6
_ENABLE, _DISABLE, _RESET = 0x2400, 0x2401, 0x2403
_ATTRIBUTE_BYTES = 64  # PERF_ATTR_SIZE_VER0


class Counters:
    """Counts of this process and of the threads it starts after this object is made. Empty where not permitted."""

    def __init__(self) -> None:
        self.descriptors: dict[str, int] = {}
        number = _SYSCALL.get(platform.machine())
        if number is None:
            return
        libc = ctypes.CDLL(None, use_errno=True)
        flags = _DISABLED | _INHERIT | _NO_KERNEL | _NO_HYPERVISOR
        for name, event in _EVENTS.items():
            attribute = struct.pack("<IIQQQQQ", 0, _ATTRIBUTE_BYTES, event, 0, 0, 0, flags).ljust(
                _ATTRIBUTE_BYTES, b"\0"
            )
            descriptor = libc.syscall(number, attribute, 0, -1, -1, 0)
            if descriptor >= 0:
                self.descriptors[name] = descriptor

    def count(self, call: Callable[[], None]) -> dict[str, float]:
        """Counts over one more call, by name; where nothing is permitted there is no call."""
        for descriptor in self.descriptors.values():
            fcntl.ioctl(descriptor, _RESET, 0)
            fcntl.ioctl(descriptor, _ENABLE, 0)
        if self.descriptors:
            call()
        for descriptor in self.descriptors.values():
            fcntl.ioctl(descriptor, _DISABLE, 0)
        return {name: float(struct.unpack("<Q", os.read(fd, 8))[0]) for name, fd in self.descriptors.items()}
