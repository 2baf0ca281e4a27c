"""Triton and CUDA kernels measured on a GPU: compiled ahead in parallel, run one at a time in a process of their own.

request = CollectRequest(workloads=(load("triton/softmax"),), configs_per_kernel=100, budget_s=480)
for measurement in collect(request):
    ...

The collectors of the two languages stand on this. A CPU's sheet as device lets Triton interpret its kernels, to try the
plumbing: such measurements carry that sheet and a toolchain called interpreted, so none can be taken for a GPU's.
"""

from __future__ import annotations

import datetime
import itertools
import math
import os
import random
import time
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from costmodel.devices import detect
from costmodel.measure import gpu_state, requests
from costmodel.measure.blocks import BLOCK_SIZE, Patience, Sentinel, suspicious, take_block, with_counter
from costmodel.measure.facts import blocks_per_unit
from costmodel.measure.gpu_compiling import GpuBuild, GpuCompilePool, toolchain
from costmodel.measure.gpu_counters import HardwareCounters
from costmodel.measure.gpu_isolation import GpuIsolated
from costmodel.measure.gpu_protocol import GpuTask
from costmodel.measure.gpu_state import GpuState, StateReader
from costmodel.measure.protocol import Outcome
from costmodel.measure.requests import MAX_PASSES, choose
from costmodel.records import Config, Device, Kernel, Measurement, Timing, UserError, Variant, Workload

if TYPE_CHECKING:
    from costmodel.store import Store

WARM, COLD = Timing(cache="warm"), Timing(cache="cold")
TIMEOUT_S = 20.0
COMPILE_TIMEOUT_S = 60.0
SPARED_CORES = 2  # of those that may compile: for this process and for the one that runs the kernels
LIMITS = ("shared_bytes_per_unit", "registers_per_unit", "max_threads_per_unit", "warp_size")

Sitting = tuple[Variant, Timing]
Counters = tuple[tuple[str, float], ...]


class OutOfTime(Exception):
    """The time budget is spent."""


def device_here(device: Device | None, language: str) -> Device:
    """The GPU at hand, or the CPU if its sheet is what was asked for. UserError where the sheet is another's."""
    if device is not None and device.kind == "cpu":
        if language != "triton":
            raise UserError(f"got {device.name} for a {language} kernel, expected a GPU; only Triton's are interpreted")
        return device
    here = detect("cuda")
    if device not in (None, here):
        raise UserError(f"got device {device.name}, but what is run is run on {here.name}; leave the device out")
    return here


def tools(language: str, device: Device) -> tuple[tuple[str, str], ...]:
    """The toolchain of what a runner measures."""
    if device.kind == "cpu":
        return (("triton", f"{metadata.version('triton')} interpreted"),)
    return toolchain(language, device)


class GpuRunner:
    """A Runner (see records) for GPU workloads; a context manager.

    A variant whose run crashed or hung is quarantined: asked for again, it has the same answer without being run.
    What the compiler shows to be infeasible is never launched; it has status "compiled" and says why. `record` is
    handed each measurement as soon as it is taken. `jobs` compile at the same time. `profile` adds hardware counters
    (see gpu_counters) to what has run well, once a variant, which takes longer than all the rest.
    """

    def __init__(
        self,
        device: Device | None = None,
        *,
        language: str,
        workloads: Sequence[Workload],
        timing: Timing = WARM,
        jobs: int | None = None,
        timeout_s: float = TIMEOUT_S,
        compile_timeout_s: float = COMPILE_TIMEOUT_S,
        seed: int = 0,
        profile: bool = False,
        record: Callable[[list[Measurement]], object] | None = None,
    ) -> None:
        if other := [workload.kernel for workload in workloads if workload.kernel.language != language]:
            raise UserError(f"got {other[0].language} kernel {other[0].name}, expected {language} kernels")
        if jobs is not None and jobs < 1:
            raise UserError(f"got jobs={jobs}, expected 1 or more compile processes")
        self.device = device_here(device, language)
        self.toolchain = tools(language, self.device)
        self.timing, self.seed, self.record = timing, seed, record
        self.paths: dict[Kernel, str] = {workload.kernel: str(workload.path) for workload in workloads}
        jobs = jobs or max(1, len(os.sched_getaffinity(0)) - SPARED_CORES)
        self.worker = GpuIsolated(self.device, timeout_s=timeout_s, compile_timeout_s=compile_timeout_s)
        self.pool = GpuCompilePool(jobs=jobs, timeout_s=compile_timeout_s)
        self.ahead = ThreadPoolExecutor(jobs)
        self.builds: dict[Variant, Future[dict[Variant, GpuBuild]]] = {}
        self.profiler = HardwareCounters(self.device) if profile else None
        self.profiled: dict[Variant, Counters] = {}
        self.quarantined: dict[Variant, Outcome] = {}
        self.closed = False

    def __enter__(self) -> GpuRunner:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker and the compile processes; what is being compiled now is waited for."""
        self.closed = True
        self.worker.close()
        self.ahead.shutdown(cancel_futures=True)
        self.pool.close()

    # ---- compiling ----

    def prefetch(self, variants: Iterable[Variant]) -> None:
        """Compile in the background, in this order. The problems of one config go one after the other, so that what
        one has compiled the next finds in the cache."""
        if self.device.kind == "cpu":
            return
        groups: dict[tuple[Kernel, Config], list[Variant]] = {}
        for variant in dict.fromkeys(variants):
            if variant.kernel in self.paths and variant not in self.builds:
                groups.setdefault((variant.kernel, variant.config), []).append(variant)
        for group in groups.values():
            future = self.ahead.submit(self._compile, group)
            self.builds.update((variant, future) for variant in group)

    def _compile(self, group: Sequence[Variant]) -> dict[Variant, GpuBuild]:
        done: dict[Variant, GpuBuild] = {}
        for variant in group:
            if self.closed:
                raise CancelledError
            wanted = (self.paths[variant.kernel], variant.problem, variant.config, self.device.arch)
            done[variant] = self.pool.compile([wanted])[0]
        return done

    def _build(self, variant: Variant, deadline: float) -> GpuBuild:
        if self.device.kind == "cpu":
            return GpuBuild("compiled")
        left = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
        try:
            return self.builds[variant].result(left)[variant]
        except FutureTimeoutError as error:
            raise OutOfTime from error

    # ---- measuring ----

    def measure(self, variants: Sequence[Variant]) -> list[Measurement]:
        """Compile all, then run one after the other. Same length and order; a bad variant is a status."""
        return list(self.sit([(variant, self.timing) for variant in variants]))

    def sit(self, sittings: Sequence[Sitting], *, deadline: float = math.inf) -> Iterator[Measurement]:
        """A measurement for each sitting, in order. Those of one variant that follow one another share its inputs and
        checks. OutOfTime once `deadline` (of time.monotonic) has passed."""
        self.prefetch(variant for variant, _ in sittings)
        for variant, group in itertools.groupby(sittings, key=lambda sitting: sitting[0]):
            if time.monotonic() >= deadline:
                raise OutOfTime
            timings = tuple(timing for _, timing in group)
            taken = self._variant(variant, timings, deadline)
            if self.record is not None:
                self.record(taken)
            yield from taken

    def _variant(self, variant: Variant, timings: tuple[Timing, ...], deadline: float) -> list[Measurement]:
        if variant.kernel not in self.paths:
            outcomes = [Outcome("launch_error", error=f"no workload given for kernel {variant.kernel.name!r}")]
            return self._measurements(variant, timings, outcomes * len(timings))
        if variant in self.quarantined:
            return self._measurements(variant, timings, [self.quarantined[variant]] * len(timings))
        build = self._build(variant, deadline)
        counters = counters_of(build, self.device)
        why = build.infeasible(self.device) if limits_stated(self.device) else ""
        if build.status != "compiled" or why:
            outcomes = [Outcome(build.status, error=build.error or why, counters=counters)] * len(timings)
            return self._measurements(variant, timings, outcomes)
        task = GpuTask(
            workload=self.paths[variant.kernel],
            kernel=variant.kernel.identity,
            problem=variant.problem.params,
            config=variant.config.params,
            timings=timings,
            seed=self.seed,
        )
        outcomes = self.worker.run(task)
        if outcomes[0].status in ("crash", "timeout"):
            self.quarantined[variant] = outcomes[0]
        if outcomes[0].status == "ok":
            counters = (*counters, *self._profile(variant, task))
        return self._measurements(variant, timings, outcomes, counters)

    def _profile(self, variant: Variant, task: GpuTask) -> Counters:
        if self.profiler is not None and variant not in self.profiled:
            self.profiled[variant] = self.profiler.of(task)
            if self.profiler.trouble:
                warnings.warn(f"measured without hardware counters: {self.profiler.trouble}", stacklevel=2)
        return self.profiled.get(variant, ())

    def _measurements(
        self,
        variant: Variant,
        timings: Sequence[Timing],
        outcomes: Sequence[Outcome],
        counters: Counters = (),
    ) -> list[Measurement]:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return [
            Measurement(
                variant=variant,
                device=self.device,
                timing=timing,
                toolchain=self.toolchain,
                status=outcome.status,
                samples_us=outcome.samples_us,
                error=outcome.error,
                counters=(*outcome.counters, *counters),
                collected_at=now,
            )
            for timing, outcome in zip(timings, outcomes, strict=True)
        ]


def limits_stated(device: Device) -> bool:
    """Whether the sheet says what a launch may take; one made from what a driver states may not."""
    return set(LIMITS) <= {name for name, _ in device.details}


def counters_of(build: GpuBuild, device: Device) -> Counters:
    """What the compiler has said, as counters (the names are those of collectors/compile_facts.py)."""
    if not build.launches:
        return ()
    counters = build.facts
    if not math.isnan(build.compile_s):
        counters = (*counters, ("compile_s", round(build.compile_s, 6)))
    if limits_stated(device):
        blocks = min(blocks_per_unit(launch.facts, device) for launch in build.launches)
        infeasible = float(bool(build.infeasible(device)))
        counters = (*counters, ("blocks_per_unit", float(blocks)), ("infeasible", infeasible))
    return counters


# ---- collecting ----


@dataclass(frozen=True)
class CollectRequest(requests.CollectRequest):
    """What to measure in how many passes (see measure.requests and GpuRunner). `also`: further timings that are taken
    in the same sittings; () leaves it at `timing`. `skip` holds (variant, timing, pass). `profile` as of GpuRunner."""

    also: tuple[Timing, ...] = (COLD,)
    passes: int = 2
    timeout_s: float = TIMEOUT_S
    profile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.passes < MAX_PASSES:
            raise UserError(f"got passes={self.passes}, expected 1 to {MAX_PASSES - 1}; 2 or 3 are usual")

    @property
    def timings(self) -> tuple[Timing, ...]:
        return tuple(dict.fromkeys((self.timing, *self.also)))


def stored(
    store: Store, *, device: Device, timing: Timing = WARM, language: str, kernels: Iterable[Kernel] | None = None
) -> Iterator[Measurement]:
    """What a store holds that a runner of this device, timing and the installed tools would measure again."""
    return requests.stored(store, device=device, timing=timing, toolchain=tools(language, device), kernels=kernels)


def already(measurements: Iterable[Measurement]) -> frozenset[tuple[Variant, Timing, int]]:
    """The (variant, timing, pass) that need no measuring, for `skip`; a failure stands for all passes, and so does a
    compile that showed the variant to be infeasible."""
    done: set[tuple[Variant, Timing, int]] = set()
    for m in measurements:
        counters = dict(m.counters)
        if m.status == "ok":
            done.add((m.variant, m.timing, int(counters.get("pass", 0))))
        elif m.status != "compiled" or counters.get("infeasible"):
            done |= {(m.variant, m.timing, number) for number in range(MAX_PASSES)}
    return frozenset(done)


def plan(sittings: Sequence[Sitting], *, seed: int) -> list[list[Sitting]]:
    """All sittings once, in shuffled blocks. A block holds whole configs of one kernel: their problems then find their
    inputs on the device and each other's compiled code in the cache."""
    rng = random.Random(seed)
    kernels: dict[Hashable, dict[Config, list[Sitting]]] = {}
    for sitting in sittings:
        variant = sitting[0]
        kernels.setdefault(variant.kernel, {}).setdefault(variant.config, []).append(sitting)
    blocks: list[list[Sitting]] = []
    for groups in kernels.values():
        block: list[Sitting] = []
        for config in rng.sample(list(groups), len(groups)):
            if block and len(block) + len(groups[config]) > BLOCK_SIZE:
                blocks.append(block)
                block = []
            block = block + groups[config]
        blocks.append(block)
    rng.shuffle(blocks)
    return blocks


def collect(request: CollectRequest, *, language: str) -> Iterator[Measurement]:
    """Measure a request in shuffled passes, yielding block by block; each measurement's pass is counter "pass".

    Around every block a fixed piece of work is timed and the GPU's state read; a block in which the first drifted is
    taken again (see blocks), and the state is in the counters. Where the passes of a variant disagree by more than a
    tenth, one more sitting is taken at the end. The time budget ends it within one variant.
    """
    deadline = math.inf if request.budget_s is None else time.monotonic() + request.budget_s
    with GpuRunner(
        request.device, language=language, workloads=request.workloads, timing=request.timing, jobs=request.jobs,
        timeout_s=request.timeout_s, seed=request.seed, profile=request.profile,
    ) as gpu:  # fmt: skip
        yield from _Collection(request, gpu, deadline).run()


class _Collection:
    """The state of one `collect`."""

    def __init__(self, request: CollectRequest, gpu: GpuRunner, deadline: float) -> None:
        self.request, self.gpu, self.deadline = request, gpu, deadline
        self.minima_us: dict[Sitting, list[float]] = {}
        self.failed: set[Sitting] = set()
        self.patience = Patience()
        self.sentinel = Sentinel(self.read_sentinel)
        self.reader: StateReader | None = None
        self.states: list[GpuState] = []  # around the block in work
        self.taken: list[Measurement] = []  # of the block in work: the last attempt's, and earlier ones' failures

    def run(self) -> Iterator[Measurement]:
        variants = choose(self.request, self.gpu.device)
        everything = [(variant, timing) for variant in variants for timing in self.request.timings]
        for number in range(self.request.passes):
            yield from self.one_pass(everything, number)
        doubtful = [sitting for sitting, minima in self.minima_us.items() if suspicious(minima)]
        yield from self.one_pass(doubtful, self.request.passes)

    def one_pass(self, sittings: Sequence[Sitting], number: int) -> Iterator[Measurement]:
        left = [s for s in sittings if s not in self.failed and (*s, number) not in self.request.skip]
        blocks = plan(left, seed=self.request.seed + number)
        self.gpu.prefetch(variant for block in blocks for variant, _ in block)
        for block in blocks:
            if time.monotonic() >= self.deadline:
                return
            del self.states[:-1]
            self.taken = []
            try:
                taken = take_block(block, measure=self.attempt, sentinel=self.sentinel, patience=self.patience)
            except OutOfTime:
                taken = self.taken
            state = gpu_state.counters(self.states)
            for measurement in taken:
                sitting = (measurement.variant, measurement.timing)
                if measurement.status == "ok":
                    self.minima_us.setdefault(sitting, []).append(measurement.min_us)
                    for name, value in state:
                        measurement = with_counter(measurement, name, value)
                else:
                    self.failed.add(sitting)
                yield with_counter(measurement, "pass", number)

    def attempt(self, sittings: Sequence[Sitting]) -> list[Measurement]:
        self.taken = [measurement for measurement in self.taken if measurement.status != "ok"]  # the failures stand
        done = len(self.taken)
        for measurement in self.gpu.sit(sittings, deadline=self.deadline):
            self.taken.append(measurement)
        return self.taken[done:]

    def read_sentinel(self) -> float:
        """The sentinel's time; the GPU's state is read while the sentinel keeps it busy."""
        if self.reader is None:
            self.reader = StateReader(self.gpu.worker.start())
        with ThreadPoolExecutor(1) as beside:
            reading = beside.submit(self.reader.read if self.gpu.device.kind == "gpu" else lambda: None)
            us = self.gpu.worker.sentinel_us()
            state = reading.result()
        if state is not None:
            self.states.append(state)
        elif self.gpu.device.kind == "gpu":
            warnings.warn(f"measured without the GPU's clocks: {self.reader.trouble}", stacklevel=2)
        return us
