"""What the compiler says of GPU variants for a device that need not be here: registers, spills, shared memory,
instruction mix, compile seconds, and whether they can be launched at all.

request = CollectRequest(workloads=(load("triton/matmul"),), device=devices.find("H200"), configs_per_kernel=40)
for measurement in collect(request):     # status "compiled", "compile_error" or "timeout"; no latency
    ...
"""

from __future__ import annotations

import datetime
import math
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from costmodel.measure import requests
from costmodel.measure.gpu_compiling import GpuBuild, GpuCompilePool, compiles_for, toolchain
from costmodel.measure.gpu_running import counters_of
from costmodel.measure.requests import choose
from costmodel.records import Device, Kernel, Measurement, Timing, UserError, Variant

if TYPE_CHECKING:
    from costmodel.store import Store

__all__ = ["CollectRequest", "already", "choose", "collect", "stored"]

CHUNK = 4  # variants for each process between two looks at the clock


@dataclass(frozen=True)
class CollectRequest(requests.CollectRequest):
    """What to compile (see measure.requests), and for how long a variant's compile may run."""

    timeout_s: float = 120.0


def already(measurements: Iterable[Measurement]) -> frozenset[tuple[Variant, int]]:
    """For `skip`: what was compiled before, or could not be, with the same toolchain."""
    return frozenset((m.variant, 0) for m in measurements if m.status in ("compiled", "compile_error", "timeout"))


def stored(
    store: Store, *, device: Device, timing: Timing | None = None, kernels: Iterable[Kernel]
) -> Iterator[Measurement]:
    """What a store holds that `collect` would find again."""
    for kernel in dict.fromkeys(kernels):
        tools = toolchain(kernel.language, device)
        yield from requests.stored(store, device=device, timing=timing or Timing(), toolchain=tools, kernels=[kernel])


def collect(request: CollectRequest) -> Iterator[Measurement]:
    """Compile a request in parallel, yielding in order. A measurement's counters are the facts with "compile_s" (left
    out where Triton's cache had it), "blocks_per_unit" and "infeasible"; an infeasible one says why in `error`."""
    device = request.device
    if device is None:
        raise UserError("got no device, expected the sheet of the GPU to compile for, such as H200")
    for workload in request.workloads:
        if not compiles_for(device, workload.kernel.language):
            got = f"device {device.name} for {workload.kernel.language} kernel {workload.kernel.name}"
            raise UserError(f"got {got}, expected a GPU such as H200")
    paths = {workload.kernel: workload.path for workload in request.workloads}
    variants = [variant for variant in choose(request, device) if (variant, 0) not in request.skip]
    deadline = math.inf if request.budget_s is None else time.monotonic() + request.budget_s
    with GpuCompilePool(jobs=request.jobs or len(os.sched_getaffinity(0)), timeout_s=request.timeout_s) as pool:
        step = CHUNK * pool.jobs
        for i in range(0, len(variants), step):
            if time.monotonic() >= deadline:
                return
            chunk = variants[i : i + step]
            builds = pool.compile([(paths[v.kernel], v.problem, v.config, device.arch) for v in chunk])
            for variant, build in zip(chunk, builds, strict=True):
                yield _measurement(variant, build, device, request.timing)


def _measurement(variant: Variant, build: GpuBuild, device: Device, timing: Timing) -> Measurement:
    return Measurement(
        variant=variant,
        device=device,
        timing=timing,
        toolchain=toolchain(variant.kernel.language, device),
        status=build.status,
        error=build.error or build.infeasible(device),
        counters=counters_of(build, device),
        collected_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
