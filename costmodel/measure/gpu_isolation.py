"""The supervisor's end of the GPU worker: hands it variants, and replaces it when it dies, hangs or loses its context.

A kernel that spins for ever cannot be stopped, only its process can; so limits are kept here, by SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import Any

from costmodel.measure import channel
from costmodel.measure.gpu_protocol import GpuTask, Stage
from costmodel.measure.helpers import Helper
from costmodel.measure.protocol import Outcome
from costmodel.records import Device, Status, UserError

START_S = 300.0  # for importing torch and triton on a busy machine, and for the first CUDA context
PREPARE_S = 120.0  # for make_inputs and reference
SENTINEL_S = 60.0
LEAST_FLUSH_BYTES = 64 << 20
SAID_BYTES = 64 << 10
RENEW = 2000  # variants a worker: Triton keeps every kernel that it has loaded


class GpuIsolated:
    """One worker process for a device, started when first needed. Not for use from several threads at once.

    A CPU's sheet as `device` makes a worker that interprets Triton kernels. timeout_s bounds the run of a variant,
    with its checks and all its timings; compile_timeout_s what is left to compile when it comes to run.
    """

    def __init__(self, device: Device, *, timeout_s: float, compile_timeout_s: float) -> None:
        self.device = device
        self.limits_s: dict[Stage, float] = {"prepare": PREPARE_S, "build": compile_timeout_s, "run": timeout_s}
        self.helper: Helper | None = None
        self.served = 0  # variants, by this worker
        self.said = os.memfd_create("said")
        self.uuid = ""

    def run(self, task: GpuTask) -> list[Outcome]:
        """How the task ended, one Outcome for each timing. UserError where no worker can be started at all."""
        if self.served >= RENEW:
            self.close()
        fresh = self.helper is None
        self.served += 1
        message: dict[str, Any] = {"task": task.encode()}
        stage: Stage
        for stage in ("prepare", "build", "run"):
            try:
                answer = self._ask({"stage": stage, **message}, self.limits_s[stage])
            except channel.Late:
                self.close()
                return self._failed(task, *_late(stage, self.limits_s[stage]))
            except channel.Closed:
                how = self.close()
                if stage == "prepare" and not fresh:  # it may have died of what came before
                    return self.run(task)
                return self._failed(task, "crash", f"the worker died with this variant: {how}")
            message = {}
            if "outcomes" in answer:
                if answer.get("ends"):
                    self.close()
                return [Outcome.decode(outcome) for outcome in answer["outcomes"]]
        raise channel.Closed("a worker that ended no stage")

    def sentinel_us(self) -> float:
        """The time of a fixed piece of work now; the device is kept busy for a sixth of a second first."""
        try:
            return float(self._ask({"stage": "sentinel"}, SENTINEL_S)["us"])
        except (channel.Late, channel.Closed) as error:
            how = self.close()
            raise UserError(
                f"got {self.device.name} that does not run two torch operations ({error}; {how}), expected one in "
                "order; see what else runs on it"
            ) from error

    def close(self) -> str:
        """End the worker; a later `run` starts a new one. Returns how it ended, with its last words."""
        if self.helper is None:
            return "not running"
        helper, self.helper = self.helper, None
        how = helper.close()
        lines = os.pread(self.said, SAID_BYTES, 0).decode(errors="replace").splitlines()
        telling = [line.strip() for line in lines if re.search(r"\b(\w*[Ee]rror|fatal|[Aa]ssert\w*)\b", line)]
        return ", ".join([how, *telling[-1:]])[:400]

    def _ask(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        self.start()
        assert self.helper is not None
        return self.helper.ask(message, timeout_s=timeout_s)

    def start(self) -> str:
        """Start a worker unless there is one. Returns the UUID of its GPU, "" where Triton interprets."""
        if self.helper is not None:
            return self.uuid
        self.served = 0
        interpreted = "1" if self.device.kind == "cpu" else "0"
        os.ftruncate(self.said, 0)
        environment = {"TRITON_INTERPRET": interpreted, "OMP_NUM_THREADS": "1"}
        self.helper = Helper("costmodel.measure.gpu_worker", environment, passed=[self.said])
        hello = {
            "said": self.said,
            "arch": self.device.arch,
            "flush_bytes": max(LEAST_FLUSH_BYTES, 2 * self.device.l2_bytes),
        }
        try:
            answer = self.helper.ask(hello, timeout_s=START_S)
        except (channel.Late, channel.Closed) as error:
            raise UserError(
                f"got a worker for {self.device.name} that does not start ({self.close()}), expected torch with a "
                "device that it can use"
            ) from error
        if "unusable" in answer:
            self.close()
            raise UserError(f"got {self.device.name}, on which nothing can be run ({answer['unusable']})")
        self.uuid = answer["uuid"]
        return self.uuid

    def _failed(self, task: GpuTask, status: Status, error: str) -> list[Outcome]:
        return [Outcome(status, error=error)] * len(task.timings)

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.said)


def _late(stage: Stage, limit_s: float) -> tuple[Status, str]:
    if stage == "prepare":
        return "launch_error", f"inputs and reference took over {limit_s:g} s"
    return "timeout", f"{'compiling' if stage == 'build' else 'the run'} took over {limit_s:g} s"
