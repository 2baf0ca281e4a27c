"""The supervisor's end of the worker: hands it tasks and replaces it when it dies."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from costmodel.measure import channel
from costmodel.measure.helpers import Helper
from costmodel.measure.protocol import GraphTask, Outcome, Task
from costmodel.records import UserError

PREPARE_S = 120.0  # for starting up, make_inputs and reference, which run in the worker
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",  # kernels ask for their own number
    "OMP_WAIT_POLICY": "ACTIVE",  # two-thread times of two passes rank alike by .985; with PASSIVE by .951
    "OMP_PROC_BIND": "true",
    "OMP_DYNAMIC": "false",
}


class Isolated:
    """One worker process, started when first needed. Not for use from several threads at once."""

    def __init__(self, module: str = "costmodel.measure.worker", environment: Mapping[str, str] = ENVIRONMENT) -> None:
        if sys.platform != "linux":
            raise UserError(
                f"got platform {sys.platform}, expected linux, whose process control isolation needs; run there"
            )
        self.module, self.environment = module, environment
        self.helper: Helper | None = None

    def run(self, task: Task | GraphTask) -> Outcome:
        """How the task ended; a worker that dies or hangs on it is replaced, and that is its outcome."""
        if self.helper is None:
            self.helper = Helper(self.module, self.environment)
        try:
            return Outcome.decode(self.helper.ask(task.encode(), timeout_s=task.timeout_s + PREPARE_S))
        except channel.Late:
            self.close()
            return Outcome("launch_error", error=f"inputs and reference took over {PREPARE_S:g} s")
        except channel.Closed:
            return Outcome("crash", error=f"the worker died with this variant: {self.close()}")

    def close(self) -> str:
        """End the worker and its child; a later `run` starts a new one. Returns how it ended."""
        if self.helper is None:
            return "not running"
        helper, self.helper = self.helper, None
        return helper.close()
