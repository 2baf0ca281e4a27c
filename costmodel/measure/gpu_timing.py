"""Times of single calls on a GPU, taken in batches that the host queues faster than the GPU works them off.

A pair of events around a call on a stream that has run dry measures how long the host takes to launch, tens of
microseconds in Python, and not the kernel. So each batch begins with idling on the GPU that lasts until all of the
batch is queued, and that this was so is checked: when the last call is queued, the first event must not have passed.
A batch that fails the check is thrown away and taken again behind a longer idling. The launches of a call of several
then follow one another at the GPU's own pace, as in a CUDA graph, which is why none is captured here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Protocol

from costmodel.measure.sampling import BUDGET_US, enough
from costmodel.records import Timing

BATCH = 16
QUEUE = 800  # a CUDA stream holds about 1024 pending operations; one that is full holds up the host
WARM_CALLS = 1000
ATTEMPTS = 5
FIRST_LEAD_US = 2000.0
MAX_LEAD_US = 100_000.0


class Mark(Protocol):
    """A place in a stream."""

    def passed(self) -> bool: ...

    def us_since(self, earlier: Any) -> float:
        """Device time between two marks that have passed."""
        ...


class Stream(Protocol):
    """A device that works off in order what the host puts into its queue."""

    def idle(self, us: float) -> None:
        """Queue that much doing nothing."""
        ...

    def mark(self) -> Mark: ...

    def wait(self) -> None:
        """Until the queue is empty. Raises where something in it has failed."""
        ...


class Sampler:
    """Takes samples on one stream. `flush` queues what empties the second-level cache."""

    def __init__(
        self, stream: Stream, flush: Callable[[], object], *, clock_ns: Callable[[], int] = time.perf_counter_ns
    ) -> None:
        self.stream, self.flush, self.clock_ns = stream, flush, clock_ns

    def take(
        self, call: Callable[[], None], timing: Timing, *, launches: int = 1, budget_us: float = BUDGET_US
    ) -> tuple[list[float], bool]:
        """Warm up, then time single calls (of so many launches) until `sampling.enough`: microseconds each, and
        whether any may hold a gap that the host left. The cache is flushed before each call of a cold timing."""
        cold = timing.cache == "cold"
        once_us = max(self._batch(call, 1, 0.0, cold=cold)[0][0], 1.0)
        for _ in range(min(WARM_CALLS, int(timing.warmup_us / once_us))):
            call()
        self.stream.wait()
        most = max(1, min(BATCH, QUEUE // (launches + 3)))
        samples: list[float] = []
        starved, lead_us = False, FIRST_LEAD_US
        while not enough(samples, timing, budget_us=budget_us):
            count = max(1, min(most, math.ceil((budget_us - sum(samples)) / once_us)))
            for _ in range(ATTEMPTS):
                taken, ahead, host_us = self._batch(call, count, lead_us, cold=cold)
                lead_us = min(MAX_LEAD_US, 1.5 * host_us + 100.0 if ahead else 2 * max(lead_us, host_us))
                if ahead:
                    break
            starved |= not ahead
            for sample in taken:
                samples.append(sample)
                if enough(samples, timing, budget_us=budget_us):
                    break
        return samples, starved

    def _batch(
        self, call: Callable[[], None], count: int, lead_us: float, *, cold: bool
    ) -> tuple[list[float], bool, float]:
        """Samples, whether the host was ahead of the device all the time, and how long it took to queue them."""
        self.stream.idle(lead_us)
        begin = self.clock_ns()
        marks = []
        for _ in range(count):
            if cold:
                self.flush()
            start = self.stream.mark()
            call()
            marks.append((start, self.stream.mark()))
        ahead = not marks[0][0].passed()
        host_us = (self.clock_ns() - begin) / 1e3
        self.stream.wait()
        return [end.us_since(start) for start, end in marks], ahead, host_us


class CudaStream:
    """torch's current CUDA stream, timed by events."""

    def __init__(self) -> None:
        import torch

        self.cuda = torch.cuda
        self.cycles_per_us = 1000.0
        for _ in range(2):  # the first one wakes the clock up
            start = self.mark()
            self.idle(2000.0)
            end = self.mark()
            self.wait()
            self.cycles_per_us *= 2000.0 / end.us_since(start)

    def idle(self, us: float) -> None:
        if us > 0:
            self.cuda._sleep(int(us * self.cycles_per_us))

    def mark(self) -> CudaMark:
        return CudaMark(self.cuda)

    def wait(self) -> None:
        self.cuda.synchronize()


class CudaMark:
    """A CUDA event, recorded."""

    def __init__(self, cuda: Any) -> None:
        self.event = cuda.Event(enable_timing=True)
        self.event.record()

    def passed(self) -> bool:
        return bool(self.event.query())

    def us_since(self, earlier: CudaMark) -> float:
        return float(earlier.event.elapsed_time(self.event)) * 1e3


class HostStream:
    """This process itself, in which Triton's interpreter works a launch off before it returns."""

    def idle(self, us: float) -> None:
        pass

    def mark(self) -> HostMark:
        return HostMark()

    def wait(self) -> None:
        pass


class HostMark:
    """A reading of the clock. There is no queue, so nothing passes it unseen."""

    def __init__(self) -> None:
        self.ns = time.perf_counter_ns()

    def passed(self) -> bool:
        return False

    def us_since(self, earlier: HostMark) -> float:
        return (self.ns - earlier.ns) / 1e3
