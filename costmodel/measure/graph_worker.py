"""The zygote for whole programs: as worker.py's, but it holds torch, and XLA or Inductor once a task asks for them.

    python -m costmodel.measure.graph_worker REQUEST_FD ANSWER_FD PARENT_PID

It keeps to one thread and never starts a backend of its own, so that its forks are whole: each child has the libraries
loaded (slow, but once) and everything else to itself.
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from typing import Any

import torch

from costmodel.measure import channel, containment, graph_child, sealing
from costmodel.measure.protocol import GraphTask, Outcome
from costmodel.measure.surroundings import SCRATCH, leave_no_scratch
from costmodel.measure.worker import Zygote

FILE_BYTES = 256 << 20  # what a compiler may write into one file


@dataclass(frozen=True, slots=True)
class Nothing:
    """What a program shares with others: no arrays, its child makes them."""

    bytes: int = 0


class GraphZygote(Zygote[GraphTask, Nothing]):
    """Serves graph tasks, one child for each."""

    def decode(self, message: dict[str, Any]) -> GraphTask:
        return GraphTask.decode(message)

    def prepare(self, task: GraphTask) -> Nothing:
        graph_child.load(task.engine)
        return Nothing()

    def execute(self, task: GraphTask, prepared: Nothing) -> Outcome:
        containment.limit(memory_bytes=task.memory_bytes, cpu_s=task.timeout_s + 1, file_bytes=FILE_BYTES)
        return graph_child.execute(task)


def main() -> None:
    requests, answers, parent = map(int, sys.argv[1:4])
    sealing.seal(writable=[os.environ[SCRATCH], os.environ[sealing.WRITABLE], os.devnull])
    torch.set_num_threads(1)
    with contextlib.suppress(channel.Closed):
        GraphZygote(requests, answers, parent).serve()
    leave_no_scratch()


if __name__ == "__main__":
    main()
