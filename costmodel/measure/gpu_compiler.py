"""A process that compiles GPU kernels, one request at a time, for a device that need not be there.

    python -m costmodel.measure.gpu_compiler REQUEST_FD ANSWER_FD PARENT_PID

A compile that hangs or crashes the compiler takes only this process with it. It ends, with a compiler it has started,
when its supervisor does. The first message, {"said": descriptor for standard error}, is answered by {} once it is
ready; then each has an answer:

    {"workload", "problem", "config", "arch", "stages", "instructions", "fresh"}   of a workload's file
    {"file", "entry", "signature", "config", "arch", "stages"}                     a jit function of any Triton file
    -> {"launches": [{"name", "facts", "stage_s", "stages", "text"}], "compile_s": null where it came from the cache}
    or {"error": one line, "mistake": whether it is the user's}, or {"unusable": why the language cannot be compiled}
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from costmodel import workloads
from costmodel.measure import channel, facts, sealing
from costmodel.measure.surroundings import leave_no_scratch
from costmodel.records import Config, Launch, Params, UserError, Workload

SAID_BYTES = 64 << 10


def launches_of(workload: Workload, problem: Params, config: Config) -> list[Launch]:
    """The launches of a variant, with tensors that have a shape and no memory."""
    import torch

    from costmodel import tensors

    if workload.launch is None or workload.outputs is None:
        raise UserError(f"{workload.kernel.name} has no launches, expected a Triton or CUDA workload")
    chosen = workload.make_problem(**dict(problem))
    with torch.device("meta"):
        inputs, outputs = tensors.empty(chosen.inputs), tensors.empty(workload.outputs(chosen))
        return list(workload.launch(chosen, config, inputs, outputs))


class Triton:
    """A kernel of several launches is several kernels of Triton's."""

    def __init__(self) -> None:
        from costmodel.measure import triton_compile

        self.compiler, self.reason = triton_compile.TritonCompiler(), triton_compile.reason

    def variant(self, workload: Workload, problem: Params, config: Config, request: dict[str, Any]) -> dict[str, Any]:
        done = self.compiler.launches(
            launches_of(workload, problem, config),
            request["arch"],
            stages=request["stages"],
            instructions=request["instructions"],
            fresh=request["fresh"],
        )
        return self._answer(done)

    def function(self, config: Config, request: dict[str, Any]) -> dict[str, Any]:
        path, settings = Path(request["file"]), config.as_dict()
        launch = self.compiler.function(
            path, request["entry"], request["signature"], settings, request["arch"], stages=request["stages"]
        )
        return self._answer([launch])

    def _answer(self, launches: list[dict[str, Any]]) -> dict[str, Any]:
        taken = [sum(launch["stage_s"].values()) for launch in launches]
        return {"launches": launches, "compile_s": sum(taken) if all(taken) else None}


class Cuda:
    """One cubin holds the kernels of a config; each launch names its own."""

    def __init__(self) -> None:
        from costmodel.measure import cuda_compile, gpu_cubins

        cuda_compile.nvrtc_version()  # UserError where there is none
        self.compile = gpu_cubins.cubin_of

    def variant(self, workload: Workload, problem: Params, config: Config, request: dict[str, Any]) -> dict[str, Any]:
        launches, arch = launches_of(workload, problem, config), request["arch"]
        cubin, compile_s = self.compile(workload.kernel.source or "", config, arch, fresh=request["fresh"])
        done = [
            {
                "name": str(launch.entry),
                "facts": facts.of_cubin(
                    cubin, arch, entry=str(launch.entry), threads=math.prod(launch.block),
                    dynamic_shared_bytes=launch.shared_bytes, instructions=request["instructions"],
                ),
                "stage_s": {},
                "stages": ["sass"],
                "text": {"sass": facts.sass(cubin)} if "sass" in request["stages"] else {},
            }
            for launch in launches
        ]  # fmt: skip
        return {"launches": done, "compile_s": compile_s}

    def reason(self, error: BaseException, said: str) -> str:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return next((line for line in lines if "error" in line), (lines or [type(error).__name__])[0])[:400]


class Compilers:
    """One for each language that can be compiled here."""

    def __init__(self) -> None:
        self.ready: dict[str, Any] = {}
        self.unusable: dict[str, str] = {}
        for language, make in (("triton", Triton), ("cuda", Cuda)):
            try:
                self.ready[language] = make()
            except ImportError as error:
                self.unusable[language] = f"cannot import what compiles {language} ({error}); install it"
            except UserError as error:
                self.unusable[language] = str(error)

    def answer(self, request: dict[str, Any], said: Said) -> dict[str, Any]:
        config = Config(tuple((name, value) for name, value in request["config"]))
        workload = None if "file" in request else workloads.load(request["workload"], trust=True)
        language = workload.kernel.language if workload else "triton"
        if language not in self.ready:
            return {"unusable": self.unusable.get(language, f"got language {language}, expected triton or cuda")}
        compiler = self.ready[language]
        said.taken()
        try:
            return (
                compiler.variant(workload, request["problem"], config, request)
                if workload
                else compiler.function(config, request)
            )
        except UserError:
            raise
        except Exception as error:  # whatever a compiler raises is an answer about this kernel
            return {"error": compiler.reason(error, said.taken())}


class Said:
    """What is written to standard error, by whatever means, since it was last asked. It goes to a file of the
    supervisor's (a descriptor that was passed on), which can read it when this process has crashed."""

    def __init__(self, descriptor: int) -> None:
        self.file = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_APPEND)
        os.dup2(self.file, 2)
        os.close(descriptor)

    def taken(self) -> str:
        text = os.pread(self.file, SAID_BYTES, 0).decode(errors="replace")
        os.ftruncate(self.file, 0)
        return text


def end_with(parent: int) -> None:
    """Kill this process's group, in which its compilers are, when the parent has ended."""
    gone = os.pidfd_open(parent)

    def watch() -> None:
        channel.wait_readable([gone], None)
        leave_no_scratch()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    requests, answers, parent = map(int, sys.argv[1:4])
    sealing.seal()
    end_with(parent)
    with contextlib.suppress(channel.Closed):
        said = Said(channel.receive(requests)["said"])
        compilers = Compilers()
        channel.send(answers, {})
        while True:
            request = channel.receive(requests)
            try:
                answer = compilers.answer(request, said)
            except UserError as error:
                answer = {"error": str(error), "mistake": True}
            channel.send(answers, answer)


if __name__ == "__main__":
    main()
