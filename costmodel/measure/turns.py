"""Two processes that are timed beside each other take turns: while one computes, the other waits.

What slows a machine down for a while slows both down then, and cancels in their ratio; of two processes that run one
after the other it hits one. Each side holds an end of a socket pair and runs the same tests in the same order. Within a
test that both have, exactly one holds the turn, and only the other one waits; between tests a side waits only for a
partner that is behind it. So neither can wait for the other in a circle, and a partner that dies is an end of file.

The turn changes hands where the clock is read, in the clock: it stands still while the other side computes. So
whoever measures with it, pytest-benchmark too, need not know of turns. Standard library only: this runs inside the
tests of others.
"""

from __future__ import annotations

import math
import socket
import threading
import time

BENCHMARK_TIMER = f"{__name__}.seconds"  # what pytest-benchmark takes as --benchmark-timer
SLICE_NS = 5_000_000
# A partner that hangs must not be waited for for ever; one whose tests take long to prepare must be.
PATIENCE_S = 600.0


class Turns:
    """One side's end. `first`: whether it has the first turn in every test."""

    def __init__(self, connection: socket.socket, *, first: bool, patience_s: float = PATIENCE_S) -> None:
        connection.settimeout(patience_s)
        self.connection = connection
        self.first = first
        self.unread = b""
        self.waited_ns = 0
        self.since_ns = 0  # when the present turn began
        self.number = -1  # the test that this side is in
        self.theirs = -math.inf  # the test that the partner was in last; infinite when it is gone
        self.left = True  # whether the partner has left the test that this side is in
        self.mine = False  # whether this side has the turn
        self.thread = 0  # the one that the test runs in; to hand the turn over is its alone
        self.gave_up = False  # whether the partner made it wait too long, so that both may run at once from then on

    @property
    def alone(self) -> bool:
        return self.left or self.theirs != self.number

    def enter(self, number: int) -> None:
        """Begin the test of this number, once the partner has come as far and, where it has the test, this side's turn
        has come."""
        self.number, self.left, self.mine = number, False, self.first
        self.thread = threading.get_ident()
        self._say("at")
        while self.theirs < number:
            self._listen()
        self._await_turn()

    def leave(self) -> None:
        """End the test. Where the partner is still in it, wait, so that what follows here disturbs nothing there."""
        self._say("left")
        while not self.alone:
            self._listen()
        self.left = True

    def clock_ns(self) -> int:
        """Nanoseconds, like time.perf_counter_ns, of which none pass while the partner has the turn.

        Only the test's own thread hands the turn over: two that wait for it at once would take each other's messages.
        """
        now = time.perf_counter_ns()
        read = now - self.waited_ns
        own = threading.get_ident() == self.thread
        if own and not self.alone and now - self.since_ns >= SLICE_NS:
            self.mine = False
            self._say("turn")
            self._await_turn()
            self.waited_ns += self.since_ns - now
        return read

    def _await_turn(self) -> None:
        while not (self.mine or self.alone):
            self._listen()
        self.since_ns = time.perf_counter_ns()

    # ---- messages: lines "NUMBER WORD", and those of another test than this side's are out of date ----

    def _say(self, word: str) -> None:
        try:
            self.connection.sendall(f"{self.number} {word}\n".encode())
        except OSError:  # TimeoutError too: a partner that reads nothing any more
            self._part()

    def _listen(self) -> None:
        """Wait for one message and take note of it."""
        try:
            while b"\n" not in self.unread:
                received = self.connection.recv(4096)
                if not received:
                    return self._part()
                self.unread += received
        except OSError as error:
            self.gave_up = isinstance(error, TimeoutError)
            return self._part()
        line, _, self.unread = self.unread.partition(b"\n")
        number, word = line.decode().split()
        if word == "at":
            self.theirs = int(number)
        elif int(number) == self.number:  # "turn" and "left" both hand it over
            self.mine = True
            self.left = word == "left"

    def _part(self) -> None:
        self.theirs = math.inf
        self.connection.close()


# ---- this process's clock: a timer that pytest-benchmark is given by name can know its turns from nowhere else ----

_present: Turns | None = None


def join(connection: socket.socket, *, first: bool) -> Turns:
    """Take turns in this process from now on."""
    global _present
    _present = Turns(connection, first=first)
    return _present


def clock_ns() -> int:
    """Nanoseconds of this process's turns; of a process that takes none, time.perf_counter_ns."""
    return time.perf_counter_ns() if _present is None else _present.clock_ns()


def seconds() -> float:
    """`clock_ns` in seconds."""
    return clock_ns() / 1e9
