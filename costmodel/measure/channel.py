"""Messages between a supervisor and its worker: JSON, each behind its length, over a pair of pipes.

The descriptors are private to the two ends (never 0, 1 or 2), so whatever a kernel prints cannot enter a message.
"""

from __future__ import annotations

import json
import os
import select
import struct
import time
from typing import Any

_LENGTH = struct.Struct("<I")
LIMIT_BYTES = 64 << 20


class Closed(Exception):
    """The other end is gone, or what it sent is no message."""


class Late(Exception):
    """Nothing complete arrived in time."""


def pack(message: dict[str, Any]) -> bytes:
    body = json.dumps(message, separators=(",", ":")).encode()
    return _LENGTH.pack(len(body)) + body


def unpack(data: bytes) -> dict[str, Any]:
    """The one message that `data` consists of; Closed where it is anything else."""
    if len(data) < _LENGTH.size or _LENGTH.unpack_from(data)[0] != len(data) - _LENGTH.size:
        raise Closed("incomplete message")
    try:
        message = json.loads(data[_LENGTH.size :])
    except (ValueError, RecursionError) as error:
        raise Closed(f"garbled message: {error}") from error
    if not isinstance(message, dict):
        raise Closed("garbled message: not an object")
    return message


def send(descriptor: int, message: dict[str, Any]) -> None:
    view = memoryview(pack(message))
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BrokenPipeError as error:
            raise Closed("the other end is gone") from error


def receive(descriptor: int, *, timeout_s: float | None = None, gone: int | None = None) -> dict[str, Any]:
    """The next message. `gone` is a descriptor (a pidfd) that turns readable when the other process has died."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    head = _read_exactly(descriptor, _LENGTH.size, deadline, gone)
    size = _LENGTH.unpack(head)[0]
    if size > LIMIT_BYTES:
        raise Closed(f"garbled message: length {size}")
    return unpack(head + _read_exactly(descriptor, size, deadline, gone))


def _read_exactly(descriptor: int, count: int, deadline: float | None, gone: int | None) -> bytes:
    data = b""
    watched = [descriptor] if gone is None else [descriptor, gone]
    while len(data) < count:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready = wait_readable(watched, left)
        if descriptor in ready:
            piece = os.read(descriptor, count - len(data))
            if not piece:
                raise Closed("the other end is gone")
            data += piece
        elif ready:
            raise Closed("the other process died")
        else:
            raise Late("no message in time")
    return data


def wait_readable(descriptors: list[int], timeout_s: float | None) -> set[int]:
    """Which of the descriptors can be read (or have hung up) within the time; poll, so no limit at 1024."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {fd for fd, _ in poll.poll(None if timeout_s is None else max(0.0, timeout_s * 1e3))}
