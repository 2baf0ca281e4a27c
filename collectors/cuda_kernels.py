"""CUDA kernels measured on this machine's GPU (see costmodel/measure/gpu_running.py).

request = CollectRequest(workloads=(load("cuda/softmax"),), configs_per_kernel=100, budget_s=480)
for measurement in collect(request):
    ...
with runner(workloads=[load("cuda/softmax")]) as gpu:
    gpu.measure(variants)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from costmodel.measure import gpu_running
from costmodel.measure.gpu_running import COLD, WARM, CollectRequest, GpuRunner, already, choose
from costmodel.records import Device, Kernel, Measurement, Timing, Workload

if TYPE_CHECKING:
    from costmodel.store import Store

__all__ = ["COLD", "WARM", "CollectRequest", "GpuRunner", "already", "choose", "collect", "runner", "stored"]


def runner(device: Device | None = None, *, workloads: Sequence[Workload], **options: Any) -> GpuRunner:
    """A GpuRunner for the given workloads; options as of GpuRunner."""
    return GpuRunner(device, language="cuda", workloads=workloads, **options)


def collect(request: CollectRequest) -> Iterator[Measurement]:
    """Measure a request; see gpu_running.collect."""
    return gpu_running.collect(request, language="cuda")


def stored(
    store: Store, *, device: Device, timing: Timing = WARM, kernels: Iterable[Kernel] | None = None
) -> Iterator[Measurement]:
    """What a store holds that a runner of this device and timing would measure again."""
    return gpu_running.stored(store, device=device, timing=timing, language="cuda", kernels=kernels)
