"""Collecting on the machines of a Ray cluster: what a collector does on one machine, on all of them.

    with Fleet("cpp") as fleet:
        requests = [CollectRequest(workloads=..., device=device) for device in fleet.devices]
        for measurement in fleet.collect(requests):
            store.add([measurement])

A worker is a Ray actor with a device to itself: each GPU of a node, or its CPU. It runs the collector of one machine
on the variants it is handed and sends each measurement as it is taken; when it is done it is handed more. When a worker
is lost, what it has not sent is handed out again. Nodes that join later are put to work.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from costmodel import workloads
from costmodel.devices import detect
from costmodel.measure.requests import CollectRequest, choose
from costmodel.records import Device, Measurement, UserError, Variant, Workload

HANDED_OUT = 40  # variants at a time, at most
MOST_LOSSES = 3  # of workers, over one handful of variants
START_S = 120.0  # for a worker to say what device it has
LOOK_S = 5.0  # how long nothing may come before new nodes are looked for


@dataclass(slots=True)
class Handful:
    """Variants that one worker measures in all passes, and what needs no measuring of them any more (see `already`)."""

    request: CollectRequest
    variants: frozenset[Variant]
    done: frozenset[tuple[object, ...]]
    received: list[Measurement] = field(default_factory=list)
    losses: int = 0


@dataclass(frozen=True, slots=True)
class Rest:
    """A request's `skip`: all sittings but those of some variants that are not done."""

    variants: frozenset[Variant]
    done: frozenset[tuple[object, ...]]

    def __contains__(self, sitting: object) -> bool:
        return isinstance(sitting, tuple) and (sitting[0] not in self.variants or sitting in self.done)


class Worker:
    """What runs beside a device; an actor."""

    def __init__(self, language: str) -> None:
        self.collector = workloads.collector_of(language)
        self.kind: Literal["cpu", "cuda"] = "cpu" if language == "cpp" else "cuda"

    def device(self) -> Device:
        return detect(self.kind)

    def collect(self, kernels: list[tuple[str, str]], options: dict[str, Any], rest: Rest) -> Iterator[Measurement]:
        """kernels: where each is found (see `address`) and its identity. options: the request's other fields."""
        loaded = tuple(_loaded(address, identity) for address, identity in kernels)
        yield from self.collector.collect(self.collector.CollectRequest(workloads=loaded, skip=rest, **options))


@dataclass(eq=False, slots=True)
class Hired:
    """A worker as it is seen from here."""

    actor: Any
    node: str
    device: Device


class Fleet:
    """The workers on a Ray cluster: that of $RAY_ADDRESS or of this machine, else one that is started here.

    `lost` counts the workers that ended while they had work, `again` the variants of which they had sent nothing.
    """

    def __init__(self, language: str) -> None:
        self.language, self.ray = language, _ray()
        self.lost = self.again = 0
        self.hired: list[Hired] = []
        self.asked: dict[Any, tuple[str, Any]] = {}  # the answer of a worker that starts -> its node and actor
        self.began = not self.ray.is_initialized()
        if self.began:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
            self.ray.init(log_to_driver=False, logging_level="ERROR")
        self._ask()
        for answer in self.ray.wait(list(self.asked), num_returns=len(self.asked), timeout=START_S)[0]:
            self._hear(answer)
        if not self.hired:
            what = "CPU" if language == "cpp" else "GPU"
            raise UserError(f"got a Ray cluster without a free {what} for {language} kernels, expected one; add a node")

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *exception: object) -> None:
        for actor in (*(worker.actor for worker in self.hired), *(actor for _, actor in self.asked.values())):
            self.ray.kill(actor)
        if self.began:
            self.ray.shutdown()

    @property
    def devices(self) -> list[Device]:
        """Each kind of device once; workers whose sheets are equal share a request."""
        return list(dict.fromkeys(worker.device for worker in self.hired))

    def collect(self, requests: Sequence[CollectRequest]) -> Iterator[Measurement]:
        """Measures each request on the workers of its device, yielding what they send as it comes."""
        waiting = {r.device: deque(_handfuls(r, workers=len(self.hired))) for r in requests}
        ends = {r.device: None if r.budget_s is None else time.monotonic() + r.budget_s for r in requests}
        running: dict[Any, tuple[Hired, Handful]] = {}
        looks = 0
        while True:
            busy = [worker for worker, _ in running.values()]
            for worker in self.hired:
                queue, end = waiting.get(worker.device), ends.get(worker.device)
                if queue and end is not None and time.monotonic() >= end:
                    queue.clear()
                if queue and worker not in busy:
                    handful = queue.popleft()
                    running[self._start(worker, handful, end)] = worker, handful
            looks = 0 if running else looks + 1
            if not running and not (any(waiting.values()) and self.asked and looks * LOOK_S < START_S):
                break
            ready, _ = self.ray.wait([*running, *self.asked], num_returns=1, timeout=LOOK_S)
            for answer in ready:
                if answer in self.asked:
                    self._hear(answer)
                    continue
                worker, handful = running[answer]
                try:
                    measurement = self.ray.get(next(answer))
                except StopIteration:
                    del running[answer]
                except self.ray.exceptions.RayTaskError as error:  # the collector raised it
                    reason = next(iter(str(error.cause).splitlines()), type(error.cause).__name__)
                    raise UserError(f"a worker on node {worker.node[:8]}: {reason}") from None
                except self.ray.exceptions.RayError:
                    del running[answer]
                    waiting[worker.device].appendleft(self._lost(worker, handful))
                else:
                    handful.received.append(measurement)
                    yield measurement
            if not ready:
                self._ask()
        if left := sum(len(handful.variants) for queue in waiting.values() for handful in queue):
            raise UserError(f"got no worker left to measure {left} variants; run again, what came is in the store")

    def _start(self, worker: Hired, handful: Handful, end: float | None) -> Any:
        """Streams the measurements."""
        request = handful.request
        kernels = [(address(workload), workload.kernel.identity) for workload in request.workloads]
        given = {f.name: getattr(request, f.name) for f in dataclasses.fields(request)}
        options = {name: value for name, value in given.items() if name not in ("workloads", "skip", "device")}
        options["budget_s"] = None if end is None else max(0.0, end - time.monotonic())
        rest = Rest(handful.variants, handful.done)
        return worker.actor.collect.options(num_returns="streaming").remote(kernels, options, rest)

    def _lost(self, worker: Hired, handful: Handful) -> Handful:
        """What the worker has sent is done; the rest stays to be done, by others or by another one in its place."""
        self.hired.remove(worker)
        self.ray.kill(worker.actor)  # it may be that only the way to it is lost
        left = handful.variants - {measurement.variant for measurement in handful.received}
        self.lost += 1
        self.again += len(left)
        handful.losses += 1
        if handful.losses == MOST_LOSSES:
            name = min(variant.kernel.name for variant in left or handful.variants)
            raise UserError(f"{MOST_LOSSES} workers were lost over the same variants of {name}; look at those machines")
        handful.done |= workloads.collector_of(self.language).already(handful.received)
        self._ask()
        return handful

    def _ask(self) -> None:
        """Start workers for devices that have none: on nodes that are new, or whose worker was lost."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        actor = self.ray.remote(Worker)
        there = Counter([*(worker.node for worker in self.hired), *(node for node, _ in self.asked.values())])
        for node in self.ray.nodes():
            what, name = node["Resources"], node["NodeID"]
            cpu = self.language == "cpp"
            wanted = min(1, int(what.get("CPU", 0))) if cpu else int(what.get("GPU", 0))
            taken = {"num_cpus": what.get("CPU", 0)} if cpu else {"num_gpus": 1}
            place = NodeAffinitySchedulingStrategy(node_id=name, soft=False)
            for _ in range(wanted - there[name] if node["Alive"] else 0):
                worker = actor.options(scheduling_strategy=place, **taken).remote(self.language)
                self.asked[worker.device.remote()] = name, worker

    def _hear(self, answer: Any) -> None:
        """A worker has started, or could not: the node has died meanwhile, or has no such device."""
        node, actor = self.asked.pop(answer)
        try:
            self.hired.append(Hired(actor, node, self.ray.get(answer)))
        except self.ray.exceptions.RayError:
            self.ray.kill(actor)


def address(workload: Workload) -> str:
    """Where another machine finds a workload: a shipped one by its place among them, another by its path."""
    kernels = workloads.shipped("kernels")
    return str(workload.path.relative_to(kernels) if workload.path.is_relative_to(kernels) else workload.path.resolve())


def _loaded(address: str, identity: str) -> Workload:
    """The workload at an address; UserError where it is not the one that was meant."""
    found = workloads.load(workloads.shipped("kernels") / address, trust=True)  # who asks has been asked
    if found.kernel.identity != identity:
        raise UserError(f"got another text of kernel {address} than the one asked for; install the same version here")
    return found


def _handfuls(request: CollectRequest, *, workers: int) -> Iterator[Handful]:
    """The variants of a request in its order, some at a time, and at least two for each worker."""
    if request.device is None or not isinstance(request.skip, frozenset):
        raise UserError("got a request without a device or a set to skip, expected both for workers elsewhere")
    variants = choose(request, request.device)
    size = max(1, min(HANDED_OUT, len(variants) // (2 * workers)))
    for start in range(0, len(variants), size):
        mine = frozenset(variants[start : start + size])
        yield Handful(request, mine, frozenset(sitting for sitting in request.skip if sitting[0] in mine))


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise UserError("got --workers ray without Ray, expected it installed; pip install 'costmodel[ray]'") from error
    return ray
