"""What the supervisor of a GPU asks of its worker. An answer is one Outcome (see protocol) for each timing."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from costmodel.records import Params, Status, Timing

Stage = Literal["prepare", "build", "run"]


@dataclass(frozen=True, slots=True)
class GpuTask:
    """One variant: check it, time it in each of the ways, check it again."""

    workload: str  # what workloads.load takes
    kernel: str  # the kernel's identity: the file may have changed since the supervisor read it
    problem: Params
    config: Params
    timings: tuple[Timing, ...]
    seed: int

    def encode(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def decode(message: dict[str, Any]) -> GpuTask:
        values = dict(message)
        for name in ("problem", "config"):
            values[name] = tuple((key, value) for key, value in values[name])
        values["timings"] = tuple(Timing(**timing) for timing in values["timings"])
        return GpuTask(**values)


class Failure(Exception):
    """A variant has no times; the message says why."""

    def __init__(self, status: Status, error: str) -> None:
        super().__init__(error)
        self.status: Status = status


def one_line(error: BaseException | str) -> str:
    """The first line of a reason that says something, at most 400 characters."""
    text = error if isinstance(error, str) else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    head = lines[0] if lines else ""
    if isinstance(error, BaseException):
        head = f"{type(error).__name__}: {head}" if head else type(error).__name__
    return head[:400]
