"""The process that runs GPU kernels: one per device, one variant at a time.

    python -m costmodel.measure.gpu_worker REQUEST_FD ANSWER_FD PARENT_PID

A CUDA context survives no fork and no fault, so there is no child for each variant: after a fault this process says so
and ends, and its supervisor starts another. It ends when the supervisor does. With TRITON_INTERPRET=1 it lets Triton
interpret the kernels on the CPU, to try the plumbing where there is no GPU.

The first message, {"said": descriptor for standard error, "arch", "flush_bytes"}, is answered by {"uuid": of the GPU}
or {"unusable": why}. Then a variant takes three, so that each has its own time limit:

    {"stage": "prepare", "task"}   inputs and answers       -> {} to go on, or {"outcomes"} where it ends here,
    {"stage": "build"}             compile, load            ->   with "ends" where this process ends with it
    {"stage": "run"}               check, time, check again -> {"outcomes"}
    {"stage": "sentinel"}          a fixed piece of work    -> {"us"}
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from costmodel import workloads
from costmodel.measure import channel, sealing
from costmodel.measure.gpu_compiler import Said, end_with
from costmodel.measure.gpu_data import GARBAGE, Output, Prepared, Shelf, mismatch
from costmodel.measure.gpu_protocol import Failure, GpuTask, one_line
from costmodel.measure.gpu_timing import CudaStream, HostStream, Sampler, Stream
from costmodel.measure.protocol import Outcome
from costmodel.measure.worker import CACHE_SHARE, free_memory_bytes
from costmodel.records import Config, Launch, Timing, Workload

if TYPE_CHECKING:
    from costmodel.measure.cuda_launch import CudaModule

SENTINEL = Timing(warmup_us=150_000.0, min_samples=24, relative_error=0.0)  # busy long enough to be looked at


class Faulted(Exception):
    """The CUDA context is lost, and with it this process."""


class Session:
    """The device, and the variant in work."""

    def __init__(self, device: torch.device, stream: Stream, *, arch: str, flush_bytes: int, shelf_bytes: int) -> None:
        self.device, self.stream, self.arch = device, stream, arch
        flushed = torch.empty(flush_bytes, dtype=torch.uint8, device=device)
        self.sampler = Sampler(stream, flushed.zero_)
        self.shelf = Shelf(device, shelf_bytes)
        self.task: GpuTask | None = None
        self.workload: Workload | None = None
        self.prepared: Prepared | None = None
        self.outputs: list[Output] = []
        self.starts: list[Callable[[], object]] = []
        self.module: CudaModule | None = None

    def serve(self, message: dict[str, Any]) -> dict[str, Any]:
        """The answer to one message."""
        stages = {"prepare": self.prepare, "build": self.build, "run": self.run}
        if message["stage"] == "sentinel":
            return {"us": self.sentinel_us()}
        if message["stage"] == "prepare":
            self.forget()
            self.task = GpuTask.decode(message["task"])
        assert self.task is not None
        try:
            outcomes = self.attempt(stages[message["stage"]])
        except Failure as failure:
            outcomes = [Outcome(failure.status, error=str(failure))] * len(self.task.timings)
        if not outcomes:
            return {}
        self.forget()
        return {"outcomes": [outcome.encode() for outcome in outcomes]}

    def attempt(self, stage: Callable[[], list[Outcome]]) -> list[Outcome]:
        """A stage; once more with an empty shelf where memory ran out. Faulted where an error has cost the context."""
        try:
            try:
                return self.finished(stage)
            except torch.OutOfMemoryError:
                pass  # out of this block first: its traceback holds tensors
            self.shelf.clear()
            return self.finished(stage)
        except Faulted:
            raise
        except Failure:
            self.survived(None)
            raise
        except Exception as error:  # whatever a workload's functions or Triton raise belongs to this variant alone
            self.survived(error)
            raise Failure("launch_error", one_line(error)) from error

    def finished(self, stage: Callable[[], list[Outcome]]) -> list[Outcome]:
        outcomes = stage()
        self.stream.wait()  # what went wrong on the device is to show here
        return outcomes

    def survived(self, error: Exception | None) -> None:
        try:
            self.stream.wait()
        except Exception as fault:
            raise Faulted(one_line(error or fault)) from fault

    def forget(self) -> None:
        self.task = self.workload = self.prepared = None
        self.outputs, self.starts = [], []
        if self.module is not None:
            self.module.close()
            self.module = None

    # ---- the stages ----

    def prepare(self) -> list[Outcome]:
        assert self.task is not None
        try:
            self.workload = workloads.load(self.task.workload, trust=True)
            if self.workload.kernel.identity != self.task.kernel:
                raise ValueError("the kernel's file has changed since it was read; start again")
            self.prepared = self.shelf.get(self.workload, self.task)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self.survived(error)
            raise Failure("launch_error", f"inputs or reference failed: {one_line(error)}") from error
        return []

    def build(self) -> list[Outcome]:
        assert self.task is not None
        assert self.prepared is not None
        assert self.workload is not None
        assert self.workload.launch is not None
        assert self.workload.outputs is not None
        problem, config = self.prepared.problem, Config(self.task.config)
        self.outputs = [Output(spec, self.device) for spec in self.workload.outputs(problem)]
        with self.device:
            launches = self.workload.launch(
                problem, config, self.prepared.inputs, tuple(output.tensor for output in self.outputs)
            )
        try:
            if self.workload.kernel.language == "cuda":
                self.module = load_cuda(self.workload, config, self.arch)
                self.starts = [functools.partial(self.module.start, launch) for launch in launches]
            else:
                self.starts = start_triton(launches)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self.survived(error)
            refused = type(error).__name__ in ("OutOfResources", "LaunchError")
            raise Failure("launch_error" if refused else "compile_error", one_line(error)) from error
        return []

    def run(self) -> list[Outcome]:
        assert self.task is not None
        self.check(GARBAGE[0], "on the first call")
        outcomes = []
        for timing in self.task.timings:
            samples, starved = self.sampler.take(self.call, timing, launches=len(self.starts))
            counters = (("starved", 1.0),) if starved else ()
            outcomes.append(Outcome("ok", tuple(round(x, 3) for x in samples), counters=counters))
        self.check(GARBAGE[1], "on a later call")
        return outcomes

    def call(self) -> None:
        """Queue the variant's launches."""
        for start in self.starts:
            start()

    def check(self, garbage: int, when: str) -> None:
        """Failure where outputs are not as expected, or anything else was written to."""
        assert self.prepared is not None
        for output in self.outputs:
            output.spoil(garbage)
        self.call()
        self.stream.wait()
        changed = self.prepared.changed_input()
        if changed is not None:
            self.shelf.clear()
            raise Failure("wrong_result", f"{when}: wrote to input {changed}")
        for i, (output, expected) in enumerate(zip(self.outputs, self.prepared.expected, strict=True)):
            if output.overrun():
                self.shelf.clear()  # who knows what else it has written to
                raise Failure("wrong_result", f"{when}: wrote outside output {i}")
            if error := mismatch(output.tensor, expected, self.prepared.tolerance):
                raise Failure("wrong_result", f"{when}: output {i}: {error}")

    # ---- the sentinel ----

    def sentinel_us(self) -> float:
        """The lower quartile of samples of a fixed piece of work: one half arithmetic, the other memory traffic."""
        self.forget()
        large = self.device.type == "cuda"
        x = torch.ones(2048 if large else 64, 2048 if large else 64, device=self.device)
        y = torch.zeros(1 << (26 if large else 10), device=self.device)

        def call() -> None:
            torch.mm(x, x)
            y.add_(1.0)

        samples, _ = self.sampler.take(call, SENTINEL if large else Timing(), launches=2)
        return statistics.quantiles(samples, n=4)[0]


# ---- languages ----


def start_triton(launches: Sequence[Launch]) -> list[Callable[[], object]]:
    """Compiles what Triton's disk cache does not hold yet; the interpreter has nothing to compile."""
    for launch in launches:
        launch.entry.warmup(*launch.args, grid=launch.grid, **launch.keywords)
    return [functools.partial(launch.entry[launch.grid], *launch.args, **launch.keywords) for launch in launches]


def load_cuda(workload: Workload, config: Config, arch: str) -> CudaModule:
    from costmodel.measure.cuda_launch import CudaModule
    from costmodel.measure.gpu_cubins import cubin_of

    return CudaModule(cubin_of(workload.kernel.source or "", config, arch)[0])


# ---- the process ----


def make_device_files() -> None:
    """What CUDA would do by a program with its owner's rights, which a sealed process cannot start."""
    if Path("/dev/nvidiactl").exists() and not Path("/dev/nvidia-uvm").exists() and shutil.which("nvidia-modprobe"):
        subprocess.run(["nvidia-modprobe", "-u", "-c=0"], check=False)


def open_session(hello: dict[str, Any]) -> tuple[Session, str]:
    """A session on the GPU, and the GPU's UUID; on the CPU where Triton interprets, and "" then."""
    arch, flush_bytes = hello["arch"], hello["flush_bytes"]
    if os.environ.get("TRITON_INTERPRET") == "1":
        shelf_bytes = int(CACHE_SHARE * free_memory_bytes())
        host = Session(torch.device("cpu"), HostStream(), arch=arch, flush_bytes=flush_bytes, shelf_bytes=shelf_bytes)
        return host, ""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    device = torch.device("cuda", torch.cuda.current_device())
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"  # as nvidia-smi calls it
    shelf_bytes = int(CACHE_SHARE * torch.cuda.mem_get_info(device)[0])
    return Session(device, CudaStream(), arch=arch, flush_bytes=flush_bytes, shelf_bytes=shelf_bytes), uuid


def main() -> None:
    requests, answers, parent = map(int, sys.argv[1:4])
    make_device_files()
    sealing.seal()
    end_with(parent)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(channel.Closed):
        hello = channel.receive(requests)
        Said(hello["said"])
        try:
            session, uuid = open_session(hello)
        except Exception as error:
            channel.send(answers, {"unusable": one_line(error)})
            return
        channel.send(answers, {"uuid": uuid})
        while True:
            message = channel.receive(requests)
            try:
                answer = session.serve(message)
            except Faulted as fault:
                timings = session.task.timings if session.task else ()
                lost = [Outcome("crash", error=str(fault)).encode() for _ in timings]
                channel.send(answers, {"outcomes": lost, "ends": True})
                os._exit(1)  # destructors of what lay on the device could hang
            channel.send(answers, answer)


if __name__ == "__main__":
    main()
