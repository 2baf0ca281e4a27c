"""C++/OpenMP kernels measured on this machine's CPU: compiled by the system's compiler, run in isolation.

request = CollectRequest(workloads=(load("matmul"),), configs_per_kernel=100)
for measurement in collect(request):
    ...
with runner(workloads=[load("matmul")]) as cpu:
    cpu.measure(variants)
"""

from __future__ import annotations

import datetime
import inspect
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costmodel.devices import detect
from costmodel.measure import requests, sentinel
from costmodel.measure.blocks import Patience, Sentinel, plan, suspicious, take_block, with_counter
from costmodel.measure.compiling import Build, CompilePool, default_cache, find_compiler
from costmodel.measure.isolation import Isolated
from costmodel.measure.protocol import Outcome, Task
from costmodel.measure.requests import MAX_PASSES, already, choose
from costmodel.records import Config, Device, Kernel, Measurement, Timing, UserError, Variant, Workload

if TYPE_CHECKING:
    from costmodel.store import Store

__all__ = ["CollectRequest", "CppRunner", "already", "choose", "collect", "runner", "stored"]

WARM = Timing()
COMPILE_TIMEOUT_S = 60.0
MEMORY_BYTES = 2 << 30
EVICT_BYTES = 64 << 20
CHUNK_BLOCKS = 25
SENTINEL_SITTINGS = 3


def threads_of(variant: Variant) -> int:
    return int(variant.config.get("THREADS", 1))


class CppRunner:
    """A Runner (see records) for the C++ workloads it is given; a context manager.

    One-thread variants run on core `pin` (the last one allowed, unless given), others on every allowed core. `record`
    is handed each measurement as soon as it is taken, so that a kill loses at most the one in work.
    """

    def __init__(
        self,
        device: Device | None = None,
        *,
        workloads: Sequence[Workload],
        timing: Timing = WARM,
        jobs: int | None = None,
        timeout_s: float = 10.0,
        compile_timeout_s: float = COMPILE_TIMEOUT_S,
        pin: int | None = None,
        cache: Path | None = None,
        memory_bytes: int = MEMORY_BYTES,
        seed: int = 0,
        record: Callable[[list[Measurement]], object] | None = None,
    ) -> None:
        self.device = device or detect("cpu")
        self.timing, self.timeout_s, self.memory_bytes, self.seed = timing, timeout_s, memory_bytes, seed
        self.record = record
        self.cores = tuple(sorted(os.sched_getaffinity(0)))
        self.pin = self.cores[-1] if pin is None else pin
        if self.pin not in self.cores:
            raise UserError(f"got pin={pin}, expected one of the cores {', '.join(map(str, self.cores))}")
        if jobs is not None and jobs < 1:
            raise UserError(f"got jobs={jobs}, expected 1 or more compile processes")
        self.paths: dict[Kernel, str] = {workload.kernel: str(workload.path) for workload in workloads}
        self.compiler = find_compiler()
        self.worker = Isolated()
        self.pool = CompilePool(
            self.compiler, cache or default_cache(), cores=self.cores, jobs=jobs, timeout_s=compile_timeout_s
        )

    def __enter__(self) -> CppRunner:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker and the compile processes."""
        self.worker.close()
        self.pool.close()

    def compile(self, variants: Sequence[Variant]) -> list[Build]:
        """Compile what is not in the cache yet, in parallel. Same length and order as `variants`."""
        return self.pool.compile([(variant.kernel.source or "", variant.config) for variant in variants])

    def measure(self, variants: Sequence[Variant]) -> list[Measurement]:
        """Compile all, then run one after the other. Same length and order; a bad variant is a status."""
        measurements: list[Measurement] = []
        for variant, build in zip(variants, self.compile(variants), strict=True):
            measurements.append(self._measure(variant, build))
            if self.record is not None:
                self.record(measurements[-1:])
        return measurements

    def sentinel_us(self, threads: int) -> float:
        """The sentinel's time now: the lower quartile of the samples of a few sittings.

        Not their minimum: a moment of turbo clock would set it, and every later reading would look like drift.
        """
        workload = sentinel.WORKLOAD
        variant = Variant(workload.kernel, workload.problems["only"], Config.of(THREADS=threads))
        self.paths[workload.kernel] = str(workload.path)
        (build,) = self.compile([variant])
        taken = [self._measure(variant, build) for _ in range(SENTINEL_SITTINGS)]
        samples = sorted(x for measurement in taken for x in measurement.samples_us)
        if not samples:
            raise UserError(
                f"got a sentinel kernel that does not run ({taken[0].error}), expected "
                f"{self.compiler.label} to build kernels that do; set CXX to another compiler"
            )
        return samples[len(samples) // 4]

    def _measure(self, variant: Variant, build: Build) -> Measurement:
        path = self.paths.get(variant.kernel)
        if path is None:
            outcome = Outcome("launch_error", error=f"no workload given for kernel {variant.kernel.name!r}")
        elif build.library is None:
            outcome = Outcome("compile_error", error=build.error)
        else:
            outcome = self.worker.run(self._task(variant, path, build.library))
        return Measurement(
            variant=variant,
            device=self.device,
            timing=self.timing,
            toolchain=self.compiler.toolchain,
            status=outcome.status,
            samples_us=outcome.samples_us,
            error=outcome.error,
            counters=outcome.counters,
            collected_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )

    def _task(self, variant: Variant, path: str, library: Path) -> Task:
        return Task(
            workload=path,
            problem=variant.problem.params,
            library=str(library),
            cores=(self.pin,) if threads_of(variant) == 1 else self.cores,
            timing=self.timing,
            timeout_s=self.timeout_s,
            memory_bytes=self.memory_bytes,
            seed=self.seed,
            evict_bytes=max(EVICT_BYTES, 4 * self.device.l2_bytes),
        )


def runner(device: Device | None = None, *, workloads: Sequence[Workload], **options: Any) -> CppRunner:
    """A CppRunner on this machine's CPU for the given workloads; options as of CppRunner."""
    known = list(inspect.signature(CppRunner).parameters)
    if unknown := [name for name in options if name not in known]:
        raise UserError(f"got option {unknown[0]!r}, expected one of {', '.join(known)}")
    return CppRunner(device, workloads=workloads, **options)


@dataclass(frozen=True)
class CollectRequest(requests.CollectRequest):
    """What to measure in how many passes, where and for how long at most (see measure.requests and CppRunner)."""

    passes: int = 2
    pin: int | None = None
    timeout_s: float = 10.0
    cache: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.passes < MAX_PASSES:
            raise UserError(f"got passes={self.passes}, expected 1 to {MAX_PASSES - 1}; 2 or 3 are usual")


def stored(
    store: Store, *, device: Device, timing: Timing = WARM, kernels: Iterable[Kernel] | None = None
) -> Iterator[Measurement]:
    """What a store holds that a runner of this device, timing and the system's compiler would measure again."""
    toolchain = find_compiler().toolchain
    return requests.stored(store, device=device, timing=timing, toolchain=toolchain, kernels=kernels)


def collect(request: CollectRequest) -> Iterator[Measurement]:
    """Measure a request in shuffled passes, yielding block by block; each measurement's pass is counter "pass".

    The first pass compiles a chunk of blocks, then times it. A failure is measured once. Where the passes of a variant
    disagree by more than a tenth, one more sitting is taken at the end.
    """
    with CppRunner(
        request.device, workloads=request.workloads, timing=request.timing, jobs=request.jobs, pin=request.pin,
        timeout_s=request.timeout_s, cache=request.cache, seed=request.seed,
    ) as cpu:  # fmt: skip
        yield from _Collection(request, cpu).run()


class _Collection:
    """The state of one `collect`."""

    def __init__(self, request: CollectRequest, cpu: CppRunner) -> None:
        self.request, self.cpu = request, cpu
        self.deadline = None if request.budget_s is None else time.monotonic() + request.budget_s
        self.minima_us: dict[Variant, list[float]] = {}
        self.failed: set[Variant] = set()
        self.patience = Patience()
        self.sentinels = {threads: Sentinel(partial(cpu.sentinel_us, threads)) for threads in (1, 2)}

    def run(self) -> Iterator[Measurement]:
        variants = choose(self.request, self.cpu.device)
        for number in range(self.request.passes):
            yield from self.one_pass(variants, number)
        doubtful = [variant for variant, minima in self.minima_us.items() if suspicious(minima)]
        yield from self.one_pass(doubtful, self.request.passes)

    def one_pass(self, variants: Sequence[Variant], number: int) -> Iterator[Measurement]:
        left = [v for v in variants if v not in self.failed and (v, number) not in self.request.skip]
        blocks = plan(left, seed=self.request.seed + number, exclusive=lambda variant: threads_of(variant) > 1)
        for i, block in enumerate(blocks):
            if self.deadline is not None and time.monotonic() >= self.deadline:
                return
            if i % CHUNK_BLOCKS == 0:
                self.cpu.compile([variant for later in blocks[i : i + CHUNK_BLOCKS] for variant in later])
            sentinel = self.sentinels[min(2, max(map(threads_of, block)))]
            taken = take_block(block, measure=self.cpu.measure, sentinel=sentinel, patience=self.patience)
            for measurement in taken:
                if measurement.status == "ok":
                    self.minima_us.setdefault(measurement.variant, []).append(measurement.min_us)
                else:
                    self.failed.add(measurement.variant)
                yield with_counter(measurement, "pass", number)
