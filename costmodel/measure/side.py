"""What a process of one side of the gate does: it times calls, and says on what kind of machine it ran.

Standard library only: this runs inside the tests of others.
"""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from costmodel.measure import sampling
from costmodel.measure.turns import clock_ns
from costmodel.records import Timing

# A process spends this long on a test: starting it takes far longer, so less would save nothing.
BUDGET_US = 100_000.0
SLOW_US = 1_000_000.0  # and up to this long on a call that takes its time, for `min_samples` of it
SAMPLE_US = 400.0  # calls are repeated to fill it, so that a call of a microsecond is no matter of the clock's own cost
# Of a process's samples this quantile counts: the smallest may be luck, and on a busy machine most are preempted.
LOW = 0.05
TIMING = Timing(warmup_us=5000.0, min_samples=7, relative_error=0.0)
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
LIBRARIES = ("torch", "triton", "numpy", "jax")


def time_call(call: Callable[[], Any]) -> list[float]:
    """Microseconds a call, one number a sample. Work that a call leaves running on a GPU is waited for."""
    call()
    wait = _waiter()
    begin = clock_ns()
    call()
    wait()
    once_us = max((clock_ns() - begin) / 1e3, 0.01)
    repeats = max(1, math.ceil(SAMPLE_US / once_us)) if once_us < SAMPLE_US else 1

    def sample() -> None:
        for _ in range(repeats):
            call()
        wait()

    budget_us = max(BUDGET_US, min(TIMING.min_samples * once_us, SLOW_US))
    taken = sampling.take(sample, TIMING, clock_ns=clock_ns, budget_us=budget_us)
    return [us / repeats for us in taken]


def low_us(samples_us: Sequence[float]) -> float:
    """The quantile `LOW` of at least one sample, by linear interpolation."""
    ordered = sorted(samples_us)
    below, part = divmod(LOW * (len(ordered) - 1), 1)
    left, right = (ordered[min(int(below) + i, len(ordered) - 1)] for i in (0, 1))
    return left + part * (right - left)


def _cuda() -> Any | None:
    """torch.cuda where the process already uses it; nothing is imported for the question."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def _waiter() -> Callable[[], None]:
    cuda = _cuda()
    return cuda.synchronize if cuda else lambda: None


def fingerprint() -> dict[str, str]:
    """What must be equal for two times to be compared. No clock rates: they are read anew and never equal."""
    found = {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "usable cpus": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor.is_file():
        found["governor"] = governor.read_text().strip()
    found |= {name: os.environ[name] for name in THREADS if name in os.environ}
    for name in LIBRARIES:
        if (version := getattr(sys.modules.get(name), "__version__", None)) is not None:
            found[name] = str(version)
    if cuda := _cuda():
        properties = cuda.get_device_properties(cuda.current_device())
        found["gpu"] = f"{properties.name}, {properties.multi_processor_count} SMs, {properties.total_memory} bytes"
    return found


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def installed_copies(changed: Sequence[str]) -> list[str]:
    """Loaded modules that are the environment's copies of changed files: `pkg.work` in site-packages, where the
    repository changed src/pkg/work.py. What was timed is then the copy, on both sides."""
    found = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and "site-packages" in Path(file).parts:
            stem = name.replace(".", "/")
            own = (f"/{stem}.py", f"/{stem}/__init__.py")
            found += [file for path in changed if f"/{path}".endswith(own)]
    return sorted(found)


def loaded_files(folder: Path) -> list[str]:
    """The files of loaded modules that lie in `folder` and not in the Python environment, which may lie there too."""
    environments = {Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()}
    found = set()
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        path = Path(file).resolve() if isinstance(file, str) else None
        if path and path.is_relative_to(folder) and not any(path.is_relative_to(e) for e in environments - {folder}):
            found.add(str(path))
    return sorted(found)
