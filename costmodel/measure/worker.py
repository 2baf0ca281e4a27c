"""The zygote: one process per runner that holds inputs and answers, and forks a child for every task.

    python -m costmodel.measure.worker REQUEST_FD ANSWER_FD PARENT_PID

It imports numpy and the standard library, never torch, and has one thread, so a fork is cheap and safe. It ends when
its supervisor does. A fork per task costs a few ms and buys a clean state: a kernel spoils its own child and no more.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from costmodel.measure import channel, containment, sealing
from costmodel.measure.arrays import Original
from costmodel.measure.child import Prepared, execute
from costmodel.measure.protocol import Outcome, Task
from costmodel.measure.surroundings import SCRATCH, leave_no_scratch
from costmodel.workloads import load

CACHE_SHARE = 0.25  # of the memory that is free when the worker starts


class Shelf:
    """Prepared problems, least recently used dropped first when `limit_bytes` is passed."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.items: OrderedDict[tuple[object, ...], Prepared] = OrderedDict()

    def get(self, task: Task) -> Prepared:
        workload = load(task.workload, trust=True)  # whoever made the task has decided
        # Forms of one operation share their functions, and so one entry.
        key = (workload.make_inputs, workload.reference, task.problem, task.seed, workload.tolerance)
        if key not in self.items:
            problem = workload.make_problem(**dict(task.problem))
            inputs = workload.make_inputs(problem, task.seed)
            expected = workload.reference(problem, inputs)
            sizes = tuple(value for _, value in problem.params if isinstance(value, int))
            self.items[key] = Prepared(
                tuple(Original.of(np.asarray(x)) for x in inputs),
                tuple(np.ascontiguousarray(x) for x in expected),
                sizes,
                workload.tolerance,
            )
        self.items.move_to_end(key)
        while len(self.items) > 1 and sum(item.bytes for item in self.items.values()) > self.limit_bytes:
            self.items.popitem(last=False)[1].close()
        return self.items[key]


def free_memory_bytes() -> int:
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


class AnyTask(Protocol):
    """What a zygote must know of a task to bound the child that does it."""

    @property
    def cores(self) -> tuple[int, ...]: ...
    @property
    def timeout_s(self) -> float: ...
    @property
    def memory_bytes(self) -> int: ...


class AnyPrepared(Protocol):
    """What is made for a task before the fork takes so much memory."""

    @property
    def bytes(self) -> int: ...


TaskT = TypeVar("TaskT", bound=AnyTask)
PreparedT = TypeVar("PreparedT", bound=AnyPrepared)


class Zygote(ABC, Generic[TaskT, PreparedT]):
    """Serves tasks of one kind from one pipe, outcomes into another, one child at a time."""

    def __init__(self, requests: int, answers: int, parent: int) -> None:
        self.requests, self.answers = requests, answers
        self.parent_gone = os.pidfd_open(parent)
        containment.adopt_orphans()

    def serve(self) -> None:
        """Answer tasks until the supervisor closes its end or dies."""
        while True:
            try:
                message = channel.receive(self.requests, gone=self.parent_gone)
            except channel.Closed:
                return
            channel.send(self.answers, self.run(self.decode(message)).encode())

    @abstractmethod
    def decode(self, message: dict[str, Any]) -> TaskT:
        """The task in a message."""

    @abstractmethod
    def prepare(self, task: TaskT) -> PreparedT:
        """What is made once, in this process."""

    @abstractmethod
    def execute(self, task: TaskT, prepared: PreparedT) -> Outcome:
        """Do the task, in the child."""

    def run(self, task: TaskT) -> Outcome:
        try:
            prepared = self.prepare(task)
        except Exception as error:
            # Whatever a user's make_inputs or reference does wrong belongs to this task alone.
            return Outcome("launch_error", error=f"inputs or reference failed: {type(error).__name__}: {error}")
        gc.freeze()  # keep the collector from touching, and so copying, shared pages in the child
        printed = os.memfd_create("printed")
        own_bytes = containment.resident_bytes() + prepared.bytes
        reading, writing = os.pipe2(os.O_CLOEXEC)
        me = os.getpid()
        child = os.fork()
        if child == 0:
            os.close(reading)
            self.become_child(task, prepared, writing, printed, me)
        os.close(writing)
        try:
            return self.attend(task, child, reading, printed, own_bytes)
        finally:
            os.close(reading)
            os.close(printed)

    def become_child(self, task: TaskT, prepared: PreparedT, writing: int, printed: int, parent: int) -> None:
        """Never returns: whatever happens, this process ends here, with a message or without."""
        try:
            containment.die_with_parent(parent)
            os.setsid()
            os.close(self.requests)
            os.close(self.answers)
            os.close(self.parent_gone)
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, 0)
            os.dup2(printed, 1)
            os.dup2(printed, 2)
            os.sched_setaffinity(0, task.cores)
            outcome = self.execute(task, prepared)
            channel.send(writing, outcome.encode())
        except MemoryError as error:
            channel.send(writing, Outcome("crash", error=f"out of memory: {error}").encode())
        except BaseException as error:
            text = f"the worker's child failed: {type(error).__name__}: {error}"
            channel.send(writing, Outcome("launch_error", error=text).encode())
        finally:
            os._exit(0)

    def attend(self, task: TaskT, child: int, reading: int, printed: int, own_bytes: int) -> Outcome:
        """Wait for the child's message and end, or for the deadline; leave no process behind.

        Between tasks nothing is sent, so a stir in `requests` means that the supervisor has closed or died.
        """
        deadline = time.monotonic() + task.timeout_s
        ended = os.pidfd_open(child)
        data, late, orphaned = b"", False, False
        watched = [ended, reading, self.parent_gone, self.requests]
        while True:
            ready = channel.wait_readable(watched, deadline - time.monotonic())
            if reading in ready:
                piece = os.read(reading, 1 << 16)
                data += piece
                if not piece:
                    watched.remove(reading)
            late, orphaned = not ready, bool(ready & {self.parent_gone, self.requests})
            if late or orphaned or ready == {ended} or len(data) > channel.LIMIT_BYTES:
                break
        os.close(ended)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
        left = containment.sweep()
        if orphaned:
            leave_no_scratch()
            os._exit(0)
        size = os.fstat(printed).st_size
        words = os.pread(printed, 4096, max(0, size - 4096)).decode(errors="replace")
        if late:
            return Outcome("timeout", error=f"no result after {task.timeout_s:g} s")
        return verdict(task, data, status, usage.ru_maxrss * 1024 - own_bytes, left, size, words)


class KernelZygote(Zygote[Task, Prepared]):
    """Serves tasks that run one variant of a C++ kernel."""

    def __init__(self, requests: int, answers: int, parent: int) -> None:
        super().__init__(requests, answers, parent)
        self.shelf = Shelf(int(free_memory_bytes() * CACHE_SHARE))

    def decode(self, message: dict[str, Any]) -> Task:
        return Task.decode(message)

    def prepare(self, task: Task) -> Prepared:
        return self.shelf.get(task)

    def execute(self, task: Task, prepared: Prepared) -> Outcome:
        cpu_s = (task.timeout_s + 1) * len(task.cores)
        return execute(task, prepared, lambda: containment.limit(memory_bytes=task.memory_bytes, cpu_s=cpu_s))


def verdict(
    task: AnyTask, data: bytes, status: int, taken_bytes: int, left_behind: int, printed_bytes: int, words: str
) -> Outcome:
    """What a child's message and end mean together. No message is a crash, whatever the exit code says."""
    try:
        outcome = Outcome.decode(channel.unpack(data))
    except (channel.Closed, KeyError, OverflowError, TypeError, ValueError):
        outcome = None
    if outcome is not None and os.WIFEXITED(status):
        if left_behind:
            return Outcome("crash", error=f"left {left_behind} process(es) behind, now killed")
        extra = (("printed_bytes", float(printed_bytes)),) if printed_bytes else ()
        return Outcome(outcome.status, outcome.samples_us, outcome.error, outcome.counters + extra)
    if not os.WIFSIGNALED(status):
        what = "garbled its result" if data else "ended the process"
        return Outcome("crash", error=f"the kernel {what}, exit code {os.waitstatus_to_exitcode(status)}")
    number = os.WTERMSIG(status)
    if number == signal.SIGXCPU:
        return Outcome("timeout", error="processor time used up")
    reason = containment.describe_signal(number)
    if taken_bytes > 0.7 * task.memory_bytes or "bad_alloc" in words:
        limit = task.memory_bytes / 2**30
        reason = f"out of memory: {reason} after {taken_bytes / 2**30:.2f} GiB of {limit:.2f} GiB allowed"
    last = [line.strip() for line in words.splitlines() if line.strip().isprintable() and line.strip()]
    return Outcome("crash", error=f"{reason}: {last[-1][:200]}" if last else reason)


def main() -> None:
    requests, answers, parent = map(int, sys.argv[1:4])
    sealing.seal(writable=[os.environ[SCRATCH], os.devnull])
    with contextlib.suppress(channel.Closed):
        KernelZygote(requests, answers, parent).serve()
    leave_no_scratch()


if __name__ == "__main__":
    main()
