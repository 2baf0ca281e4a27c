"""Keeping one child within bounds: limits, death with its parent, and sweeping up what it leaves behind (Linux).

This contains faults. What a kernel that means harm is kept from stands in `sealing`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import time
from pathlib import Path

from costmodel.measure import sealing

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
PRINTED_LIMIT_BYTES = 64 << 10
STACK_BYTES = 16 << 20
SIGNAL_WORDS = {
    "SIGSEGV": "invalid memory access or stack overflow",
    "SIGBUS": "bad address",
    "SIGFPE": "arithmetic trap",
    "SIGILL": "illegal instruction",
    "SIGABRT": "abort",
    "SIGKILL": "killed, perhaps out of memory",
    "SIGXCPU": "processor time limit",
}


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")


def adopt_orphans() -> None:
    """Descendants whose parent ends become children of this process, whatever session they fled to."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """SIGKILL this process when the thread that forked it ends; at once if that has happened already."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def address_space_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def limit(*, memory_bytes: int, cpu_s: float, file_bytes: int = PRINTED_LIMIT_BYTES) -> None:
    """Bound what this process may still take: `memory_bytes` beyond what it has mapped now, processor time, files.
    What root could raise the bounds with goes too."""
    space = address_space_bytes() + memory_bytes
    seconds = int(cpu_s) + 1
    for what, soft in (
        (resource.RLIMIT_AS, space),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_STACK, STACK_BYTES),
    ):
        hard = resource.getrlimit(what)[1]
        bound = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
        resource.setrlimit(what, (bound, hard if what == resource.RLIMIT_CPU else bound))  # a hard one kills unnamed
    sealing.drop_capabilities()


def children() -> list[int]:
    """Living and dead direct children of this process."""
    me = os.getpid()
    try:
        return [int(pid) for pid in Path(f"/proc/{me}/task/{me}/children").read_text().split()]
    except FileNotFoundError:  # kernels without CONFIG_PROC_CHILDREN
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _parent(pid) == me]


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return -1


def sweep(*, patience_s: float = 2.0) -> int:
    """Kill and reap every child of this process until there is none. Returns how many were still alive."""
    alive: set[int] = set()
    deadline = time.monotonic() + patience_s
    while (found := children()) and time.monotonic() < deadline:
        for pid in found:
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                alive.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.0005)
    return len(alive)


def describe_signal(number: int) -> str:
    """ "SIGSEGV (invalid memory access or stack overflow)" """
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    return f"{name} ({SIGNAL_WORDS[name]})" if name in SIGNAL_WORDS else name
