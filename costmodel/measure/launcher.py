"""A small process that runs one command at a time and ends, with the command, when its supervisor does.

    python -m costmodel.measure.launcher REQUEST_FD ANSWER_FD PARENT_PID

Compilers are started from here and not from the supervisor, which may hold torch and threads, and whose sudden death
would leave them running.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from typing import Any

from costmodel.measure import channel, sealing
from costmodel.measure.surroundings import SCRATCH, leave_no_scratch

SAID_BYTES = 64 << 10
MEMORY_BYTES, FILE_BYTES = 8 << 30, 1 << 30  # of a compiler


def run(request: dict[str, Any], gone: set[int]) -> dict[str, Any]:
    """Run request["command"] with request["text"] as its input. code None: it ran past request["timeout_s"].

    `gone`: descriptors that stir when the supervisor has closed or died; this process then ends.
    """
    os.sched_setaffinity(0, request["cores"])
    said, text = os.memfd_create("said"), os.memfd_create("text")
    try:
        os.write(text, request["text"].encode())
        os.lseek(text, 0, os.SEEK_SET)
        process = subprocess.Popen(
            request["command"], stdin=text, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        ended = os.pidfd_open(process.pid)
        deadline = time.monotonic() + request["timeout_s"]
        ready = channel.wait_readable([ended, *gone], deadline - time.monotonic())
        os.close(ended)
        if ended not in ready:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        if ready & gone:
            sys.exit(0)
        return {"code": code if ready else None, "said": os.pread(said, SAID_BYTES, 0).decode(errors="replace")}
    except OSError as error:
        return {"code": 127, "said": f"error: cannot run {request['command'][0]}: {error}"}
    finally:
        os.close(said)
        os.close(text)


def main() -> None:
    requests, answers, parent = map(int, sys.argv[1:4])
    sealing.seal(writable=[os.environ[SCRATCH], os.environ[sealing.WRITABLE], os.devnull])
    for what, most in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_FSIZE, FILE_BYTES)):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))
    parent_gone = os.pidfd_open(parent)
    try:
        with contextlib.suppress(channel.Closed):
            while True:
                request = channel.receive(requests, gone=parent_gone)
                channel.send(answers, run(request, {parent_gone, requests}))
    finally:
        leave_no_scratch()


if __name__ == "__main__":
    main()
