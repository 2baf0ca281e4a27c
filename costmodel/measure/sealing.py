"""What a helper process gives up before it touches what others wrote: network, files to write, privileges (Linux).

Everything here needs no rights of its own and costs a running kernel nothing. A filter of system calls (seccomp) would
cut the network where namespaces are not to be had, but slows every call and, before Linux 5.16, every branch: it would
change what is measured. What a machine does not offer is left out, and `costmodel doctor` says which:

    python -m costmodel.measure.sealing          # {"network": ..., "writing": ..., "privileges": ..., "processes": ...}

The process can still read what its user can read, and use the machine: a kernel is run for those who trust it so far.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path

WRITABLE = "COSTMODEL_WRITABLE"  # a folder beside the scratch folder, for a compiler's output
MOST_PROCESSES = 4096  # threads included; where the process has its own count
_NEW_USER, _NEW_NET = 0x1000_0000, 0x4000_0000
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x2008_0522
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # Landlock's numbers, the same on every architecture
_LANDLOCK_VERSION, _PATH_BENEATH = 1, 1
_WRITE_FILE, _TRUNCATE = 1 << 1, 1 << 14
_WRITING = sum(1 << bit for bit in (1, 4, 5, 6, 7, 8, 9, 10, 11, 12))  # write, remove and make anything
_TCP = 3  # bind and connect
_libc = ctypes.CDLL(None, use_errno=True)


def seal(*, writable: Sequence[str | os.PathLike[str]] | None = None) -> dict[str, str]:
    """Call it before the process has a second thread. Returns what holds from now on.

    `writable`: folders and files that may be written to, and no others; None leaves writing alone.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    network, own_count = _cut_network()
    privileges = "no new ones" if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 else "as its user"
    version = _libc.syscall(_CREATE_RULESET, None, 0, _LANDLOCK_VERSION)
    writing = "as its user"
    if writable is not None and version > 0 and _restrict(version, writable):
        writing = "scratch and cache only"
        if version >= 4 and network != "cut":
            network = "no TCP"
    if own_count:
        resource.setrlimit(resource.RLIMIT_NPROC, (MOST_PROCESSES, MOST_PROCESSES))
    processes = f"at most {MOST_PROCESSES}" if own_count else "swept up, not limited"
    return {"network": network, "writing": writing, "privileges": privileges, "processes": processes}


def drop_capabilities() -> None:
    """Of root, or of the user namespace: whoever has them could undo what is here. Keeps the user's own rights."""
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    _libc.capset(ctypes.c_char_p(header), ctypes.c_char_p(bytes(24)))


def _cut_network() -> tuple[str, bool]:
    """A network namespace with nothing in it; where that takes a user namespace, that one counts its own processes."""
    if _libc.unshare(_NEW_NET) == 0:
        return "cut", False
    uid, gid = os.geteuid(), os.getegid()
    if _libc.unshare(_NEW_USER | _NEW_NET) != 0:
        return "as its user", False
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        Path("/proc/self", name).write_text(text)
    drop_capabilities()
    return "cut", True


def _restrict(version: int, writable: Sequence[str | os.PathLike[str]]) -> bool:
    """Landlock: from now on this process and its children write below these and nowhere else."""
    rights = _WRITING | (_TRUNCATE if version >= 3 else 0)
    attributes = struct.pack("<QQ", rights, _TCP) if version >= 4 else struct.pack("<Q", rights)
    ruleset = _libc.syscall(_CREATE_RULESET, ctypes.c_char_p(attributes), len(attributes), 0)
    if ruleset < 0:
        return False
    try:
        for path in map(Path, writable):
            descriptor = os.open(path, os.O_PATH)
            allowed = rights if path.is_dir() else rights & (_WRITE_FILE | _TRUNCATE)
            rule = struct.pack("<Qi", allowed, descriptor)
            added = _libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.c_char_p(rule), 0)
            os.close(descriptor)
            if added != 0:
                return False
        return bool(_libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


if __name__ == "__main__":
    print(json.dumps(seal(writable=[tempfile.gettempdir()])))
