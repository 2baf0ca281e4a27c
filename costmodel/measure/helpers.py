"""Start, speak to and end the helper processes that a supervisor keeps: the worker and the compile launchers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from costmodel.measure import channel
from costmodel.measure.surroundings import Scratch, environment_of


class Helper:
    """A Python module run as a process with a pair of private pipes. One message goes in, one comes out.

    It sees a scrubbed environment and a scratch folder (see surroundings); `passed` are further descriptors for it.
    """

    def __init__(self, module: str, environment: Mapping[str, str], *, passed: Sequence[int] = ()) -> None:
        self.scratch = Scratch()
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(theirs_in), str(theirs_out), str(os.getpid())],
            pass_fds=(theirs_in, theirs_out, *passed),
            env=environment_of({**environment, **self.scratch.environment}),
            cwd=self.scratch.path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is the supervisor's to handle
        )
        os.close(theirs_in)
        os.close(theirs_out)

    def ask(self, message: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """The answer to a message. Raises channel.Closed where the helper died, channel.Late where it is too slow."""
        channel.send(self._to, message)
        return channel.receive(self._from, timeout_s=timeout_s)

    def close(self) -> str:
        """End the process, by force if it does not end by itself. Returns how it ended."""
        os.close(self._to)
        os.close(self._from)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(0.5)
        if self.process.poll() is None:
            self.process.kill()
        code = self.process.wait()
        self.scratch.remove()
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
