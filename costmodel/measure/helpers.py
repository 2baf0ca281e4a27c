"""Start, speak to and end the helper processes that a supervisor keeps: the worker and the compile launchers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from costmodel.measure import channel


def environment_of(extra: Mapping[str, str]) -> dict[str, str]:
    """For a Python process that is to find this package, wherever it lies."""
    root = Path(__file__).resolve().parents[2]
    paths = [] if root.name in ("site-packages", "dist-packages") else [str(root)]
    path = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **extra}


class Helper:
    """A Python module run as a process with a pair of private pipes. One message goes in, one comes out."""

    def __init__(self, module: str, environment: Mapping[str, str]) -> None:
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(theirs_in), str(theirs_out), str(os.getpid())],
            pass_fds=(theirs_in, theirs_out),
            env=environment_of(environment),
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
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
