"""Compile GPU variants in parallel, ahead of measuring them or without a GPU at all.

with GpuCompilePool(jobs=4) as pool:
    builds = pool.compile([(workload.path, problem, config, "sm_90"), ...])

Each process compiles one variant at a time. One that hangs or dies costs the variant it was at and is replaced. What
Triton compiles lands in its disk cache, where a later launch of the same variant on such a GPU finds it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from costmodel.measure import channel, facts
from costmodel.measure.facts import Facts
from costmodel.measure.helpers import Helper
from costmodel.records import Config, Device, Problem, UserError

SAID_BYTES = 64 << 10
START_S = 300.0  # for importing torch and triton on a busy machine
ENVIRONMENT = {"TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

Wanted = tuple[str | Path, Problem, Config, str]  # the workload's path, problem, config, architecture such as "sm_90"


@dataclass(frozen=True)
class Launched:
    """What the compiler says of one launch. `stage_s` is empty where it came from Triton's cache, or for CUDA."""

    name: str
    facts: Facts
    stage_s: dict[str, float]
    stages: tuple[str, ...]  # that have a text
    text: dict[str, str]  # of those stages that were asked for


@dataclass(frozen=True)
class GpuBuild:
    """How the compile of one variant ended. `compile_s` is NaN where an earlier run has left it in a cache."""

    status: Literal["compiled", "compile_error", "timeout"]
    launches: tuple[Launched, ...] = ()
    compile_s: float = float("nan")
    error: str = ""

    @cached_property
    def facts(self) -> Facts:
        """Of all launches together (see facts.joined); empty where there is none."""
        return facts.joined([launch.facts for launch in self.launches]) if self.launches else ()

    def infeasible(self, device: Device) -> str:
        """Why the variant cannot be launched on the device, in one line; empty where it can."""
        return next(filter(None, (facts.infeasible(launch.facts, device) for launch in self.launches)), "")


class GpuCompilePool:
    """`jobs` processes that compile (the processors allowed, unless given); a context manager.

    timeout_s: the most one variant's compile may take.
    instructions: whether facts hold the instruction mix, which costs 0.15 s and more a variant.
    """

    def __init__(self, *, jobs: int | None = None, timeout_s: float = 120.0, instructions: bool = True) -> None:
        self.jobs, self.timeout_s, self.instructions = jobs or len(os.sched_getaffinity(0)), timeout_s, instructions
        if self.jobs < 1 or timeout_s <= 0:
            raise UserError(f"got jobs={jobs}, timeout_s={timeout_s}, expected both above 0")
        self.idle: queue.SimpleQueue[_Process | None] = queue.SimpleQueue()
        for _ in range(self.jobs):
            self.idle.put(None)  # starts when first needed

    def __enter__(self) -> GpuCompilePool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; a later `compile` starts new ones."""
        for _ in range(self.jobs):
            _end(self.idle.get())
            self.idle.put(None)

    def compile(self, wanted: Sequence[Wanted], *, stages: Sequence[str] = (), fresh: bool = False) -> list[GpuBuild]:
        """One build for each, same order; Triton and CUDA workloads may be mixed.

        `stages` asks for the text of these (where a target has them); `fresh` passes over what the caches on disk have.
        UserError only where nothing of a language can be compiled (Triton is not installed).
        """
        requests = [
            {
                "workload": str(path), "problem": problem.params, "config": config.params, "arch": arch,
                "stages": list(stages), "instructions": self.instructions, "fresh": fresh,
            }
            for path, problem, config, arch in wanted
        ]  # fmt: skip
        threads = ThreadPoolExecutor(self.jobs)
        try:
            return [_build(answer) for answer in threads.map(self._ask, requests)]
        finally:
            threads.shutdown(cancel_futures=True)  # on an error or an interrupt the rest is not wanted

    def compile_function(
        self, file: Path, entry: str, signature: str, config: Config, arch: str, *, stages: Sequence[str] = ()
    ) -> GpuBuild:
        """A jit function of any Triton file: `entry`, or the only one; `signature` in Triton's notation; `config` its
        constants and Triton's options. UserError for a mistake in these."""
        answer = self._ask(
            {
                "file": str(file), "entry": entry, "signature": signature, "config": config.params, "arch": arch,
                "stages": list(stages),
            }
        )  # fmt: skip
        if answer.get("mistake"):
            raise UserError(answer["error"])
        return _build(answer)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer of a process that is free, or {"error", "status"} where it had to be ended."""
        process = self.idle.get()
        try:
            process = process or _Process()
            answer = process.helper.ask(request, timeout_s=self.timeout_s)
        except channel.Late:
            _end(process)
            process = None
            return {"status": "timeout", "error": f"compiling took over {self.timeout_s:g} s"}
        except channel.Closed:
            how = process.end() if process else ""
            process = None
            return {"error": f"the compile process died with this variant: {how}"}
        finally:
            self.idle.put(process)
        if "unusable" in answer:
            raise UserError(answer["unusable"])
        return answer


def compiles_for(device: Device, language: str) -> bool:
    """Whether the language's compiler knows the device's architecture."""
    return device.arch.startswith(("sm_", "gfx") if language == "triton" else "sm_")


@cache
def toolchain(language: str, device: Device) -> tuple[tuple[str, str], ...]:
    """What compiles a language for a device, by name and version: the toolchain of its measurements.

    UserError where it is not installed.
    """
    if language == "cuda":
        from costmodel.measure import cuda_compile

        return (("nvrtc", cuda_compile.nvrtc_version()),)
    try:
        triton = ("triton", metadata.version("triton"))
    except metadata.PackageNotFoundError as error:
        raise UserError("got no triton, expected what compiles Triton kernels; pip install triton") from error
    if not device.arch.startswith("sm_"):
        return (triton,)
    name = "ptxas-blackwell" if facts.capability(device.arch) >= 100 else "ptxas"
    said = subprocess.run([facts.tool(name), "--version"], capture_output=True, text=True, check=True).stdout
    return (triton, ("ptxas", re.findall(r"V(\d+\.\d+\.\d+)", said)[-1]))


class _Process:
    """One that has imported what it compiles with. UserError where it cannot even do that."""

    def __init__(self) -> None:
        self.said = os.memfd_create("said")
        self.helper = Helper("costmodel.measure.gpu_compiler", ENVIRONMENT, passed=[self.said])
        try:
            self.helper.ask({"said": self.said}, timeout_s=START_S)
        except (channel.Closed, channel.Late) as error:
            raise UserError(
                f"got a compile process that does not start ({self.end()}), expected torch to be there"
            ) from error

    def end(self) -> str:
        """End it and the compilers it has started. Returns how it ended, with its last words."""
        how = self.helper.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.helper.process.pid, signal.SIGKILL)  # it led a session of its own
        said = os.pread(self.said, SAID_BYTES, 0).decode(errors="replace")
        os.close(self.said)
        telling = [
            line.strip() for line in said.splitlines() if re.search(r"\b(error|fatal|ERROR|Error|Assertion)\b", line)
        ]
        return ", ".join([how, *telling[-1:]])[:400]


def _end(process: _Process | None) -> None:
    if process is not None:
        process.end()


def _build(answer: dict[str, Any]) -> GpuBuild:
    if "error" in answer:
        return GpuBuild(answer.get("status", "compile_error"), error=answer["error"])
    launches = tuple(
        Launched(
            x["name"], tuple((name, value) for name, value in x["facts"]), x["stage_s"], tuple(x["stages"]), x["text"]
        )
        for x in answer["launches"]
    )
    compile_s = float("nan") if answer["compile_s"] is None else float(answer["compile_s"])
    return GpuBuild("compiled", launches, compile_s)
