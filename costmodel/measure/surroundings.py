"""What a helper process finds around it: a scrubbed environment, and a scratch folder as its home and current folder.

Kernels, compilers and a workload's Python see the variables that decide how code is built and run, and no others: a
token, a password or a cloud's credentials are not theirs. What their tools cache stays where it was.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import site
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

SCRATCH = "COSTMODEL_SCRATCH"
_PREFIX = "costmodel-scratch-"
_ABANDONED_S = 60.0  # a folder whose maker has had time to lock it
_KEPT = re.compile(
    r"PATH|LANG|LC_\w+|TZ|USER|LOGNAME|CC|CXX|\w*(?:INCLUDE|LIBRARY)_PATH|CPATH|COMPILER_PATH|LD_\w+|VIRTUAL_ENV"
    r"|CONDA_PREFIX|PYTHON\w+|MALLOC_\w+|GLIBC_\w+|XDG_CACHE_HOME|NUMEXPR_\w+"
    r"|(?:OMP|GOMP|KMP|MKL|OPENBLAS|BLIS|CUDA|CUDNN|NVIDIA|NVCC|HIP|HSA|ROCM|ROCR|GPU|TRITON|TORCH|TORCHINDUCTOR|PYTORCH)_\w+"
)
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE|AUTH", re.IGNORECASE)


def environment_of(extra: Mapping[str, str]) -> dict[str, str]:
    """For a Python process that is to find this package, wherever it lies, and nothing that is none of its business."""
    kept = {name: value for name, value in os.environ.items() if _KEPT.fullmatch(name) and not _SECRET.search(name)}
    root = Path(__file__).resolve().parents[2]
    paths = [] if root.name in ("site-packages", "dist-packages") else [str(root)]
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    home = Path.home()
    found = {
        # What lies in the home, which the process is not to see, under the names that lead to it.
        "XDG_CACHE_HOME": str(home / ".cache"),
        "TRITON_HOME": str(home),
        "CUDA_CACHE_PATH": str(home / ".nv" / "ComputeCache"),
        "PYTHONUSERBASE": site.getuserbase(),
        **{name: value for name, value in kept.items() if value},
        "PYTHONPATH": os.pathsep.join([*paths, *(os.path.abspath(path) for path in given if path)]),
    }
    for name in ("XDG_CACHE_HOME", "TRITON_HOME", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH", "TORCHINDUCTOR_CACHE_DIR"):
        if name in found:
            found[name] = os.path.abspath(found[name])
    return {**found, **extra}


class Scratch:
    """A temporary folder for one process, which goes with it. Those that a killed supervisor has left go with the next
    one that is made: a lock, which ends with its process, tells them."""

    def __init__(self) -> None:
        _remove_abandoned()
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = os.open(self.path, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    @property
    def environment(self) -> dict[str, str]:
        return dict.fromkeys(("HOME", "TMPDIR", SCRATCH), str(self.path))

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def leave_no_scratch() -> None:
    """Remove the scratch folder of this process, whose supervisor may not be there to do it."""
    if folder := os.environ.get(SCRATCH):
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # somebody else's, or gone by now
            found = folder.lstat()
            if found.st_uid != os.getuid() or time.time() - found.st_mtime < _ABANDONED_S:
                continue
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
