"""What a supervisor asks of its worker, and what it is told."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from costmodel.records import STATUSES, Scalar, Status, Timing


@dataclass(frozen=True, slots=True)
class Task:
    """Run one compiled variant once: check, warm up, time, check again."""

    workload: str  # what workloads.load takes
    problem: tuple[tuple[str, Scalar], ...]  # sizes by name, as Workload.make_problem takes them
    library: str  # path of the .so
    cores: tuple[int, ...]  # where it may run
    timing: Timing
    timeout_s: float
    memory_bytes: int  # beyond its arrays
    seed: int
    evict_bytes: int  # swept through before each sample of a cold timing

    def encode(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def decode(message: dict[str, Any]) -> Task:
        values = dict(message)
        values["timing"] = Timing(**values["timing"])
        values["problem"] = tuple((name, value) for name, value in values["problem"])
        values["cores"] = tuple(values["cores"])
        return Task(**values)


ENGINES = ("eager", "compile", "xla")  # who runs a whole program; graph_child says how


@dataclass(frozen=True, slots=True)
class GraphTask:
    """Run one program once under an engine, with all that building takes: check, warm up, time, check again.

    code: Python text that defines `forward(self, *arguments)` over torch, "" where there is none (XLA's engine takes
    `hlo`); arguments: as costmodel.aten.Argument encodes them.
    """

    engine: str  # of ENGINES
    code: str
    hlo: str
    arguments: tuple[dict[str, Any], ...]
    cores: tuple[int, ...]
    timing: Timing
    timeout_s: float
    memory_bytes: int
    seed: int

    def encode(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def decode(message: dict[str, Any]) -> GraphTask:
        values = dict(message)
        values["timing"] = Timing(**values["timing"])
        values["arguments"], values["cores"] = tuple(values["arguments"]), tuple(values["cores"])
        return GraphTask(**values)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a task ended; the fields are those of a Measurement."""

    status: Status
    samples_us: tuple[float, ...] = ()
    error: str = ""
    counters: tuple[tuple[str, float], ...] = ()

    def encode(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def decode(message: dict[str, Any]) -> Outcome:
        """Raises ValueError or TypeError where the message is no outcome."""
        status = message["status"]
        if status not in STATUSES:
            raise ValueError("not an outcome")
        samples = tuple(float(x) for x in message["samples_us"])
        if (status == "ok") != bool(samples) or any(not 0.0 < x < float("inf") for x in samples):
            raise ValueError("not an outcome")
        counters = tuple((str(name), float(value)) for name, value in message["counters"])
        return Outcome(status, samples, str(message["error"]), counters)
