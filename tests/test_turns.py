"""Turns of two sides: exactly one computes, whatever the other one lacks, fails or dies of, and nobody waits for ever.

Threads stand for processes. A slice of no length changes hands at every reading of the clock, so no clock decides.
"""

import socket
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.measure import side, turns
from costmodel.measure.turns import Turns

LONG_S = 60.0  # until a side counts as stuck


@pytest.fixture
def ends():
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def played(plans):
    """Runs two sides, each a {number of a test: readings of the clock in it}; who computed, in order, as (side, test).

    A side that computes while the other one does, or is stuck, fails.
    """
    log, faults, computing = [], [], threading.Lock()

    def play(name, me, plan):
        def compute(number):
            if not computing.acquire(blocking=False):
                faults.append((name, number))
                return
            log.append((name, number))
            computing.release()

        for number, readings in sorted(plan.items()):
            me.enter(number)
            for _ in range(readings):
                compute(number)
                me.clock_ns()
            me.leave()
        me.connection.close()

    ends = socket.socketpair()
    sides = [Turns(end, first=i == 0, patience_s=LONG_S) for i, end in enumerate(ends)]
    threads = [
        threading.Thread(target=play, args=(name, me, plan), daemon=True)
        for name, me, plan in zip("ab", sides, plans, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
        assert not thread.is_alive()
    assert not faults
    assert not any(me.gave_up for me in sides)
    return log


def test_two_sides_alternate_and_the_first_one_begins(monkeypatch):
    monkeypatch.setattr(turns, "SLICE_NS", 0)
    log = played([{0: 5, 1: 3}, {0: 5, 1: 6}])
    assert log[:10] == [("a", 0), ("b", 0)] * 5
    assert log[10:] == [("a", 1), ("b", 1)] * 3 + [("b", 1)] * 3


def test_a_long_slice_is_not_cut(monkeypatch):
    monkeypatch.setattr(turns, "SLICE_NS", 10**18)
    assert played([{0: 3}, {0: 2}]) == [("a", 0)] * 3 + [("b", 0)] * 2


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.dictionaries(st.integers(0, 6), st.integers(0, 4), max_size=6)] * 2))
def test_sides_with_different_tests_never_wait_in_a_circle(plans):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turns, "SLICE_NS", 0)
        log = played(plans)
    for name, plan in zip("ab", plans, strict=True):
        assert [number for who, number in log if who == name] == [n for n in sorted(plan) for _ in range(plan[n])]


# ---- one side, told what the other one says ----


def test_the_clock_stands_still_while_the_other_side_computes(ends, monkeypatch):
    readings = iter([0, 10, turns.SLICE_NS, 900 * turns.SLICE_NS, 900 * turns.SLICE_NS + 5])
    monkeypatch.setattr(turns.time, "perf_counter_ns", lambda: next(readings))
    me = Turns(ends[0], first=True)
    ends[1].sendall(b"0 at\n0 turn\n")
    me.enter(0)  # at 0
    assert me.clock_ns() == 10
    assert me.clock_ns() == turns.SLICE_NS  # and hands over, until 900 slices
    assert me.clock_ns() == turns.SLICE_NS + 5
    assert ends[1].recv(100) == b"0 at\n0 turn\n"


def test_a_thread_of_the_test_reads_the_clock_and_hands_nothing_over(ends, monkeypatch):
    monkeypatch.setattr(turns, "SLICE_NS", 0)
    me = Turns(ends[0], first=True, patience_s=LONG_S)
    ends[1].sendall(b"0 at\n")
    me.enter(0)
    thread = threading.Thread(target=me.clock_ns, daemon=True)
    thread.start()
    thread.join(LONG_S / 2)
    assert not thread.is_alive()
    assert me.mine
    assert ends[1].recv(100) == b"0 at\n"


@pytest.mark.parametrize("said", [b"7 at\n", b"3 at\n3 left\n", b"1 at\n1 turn\n4 at\n"])
def test_a_partner_without_the_test_or_out_of_it_is_not_waited_for(ends, said, monkeypatch):
    monkeypatch.setattr(turns, "SLICE_NS", 0)
    me = Turns(ends[0], first=False, patience_s=LONG_S)
    ends[1].sendall(said)
    me.enter(3)
    assert me.alone
    assert me.clock_ns() <= me.clock_ns()
    me.leave()
    assert not me.gave_up


@pytest.mark.parametrize("said", [b"", b"0 at\n", b"0 at\n0 turn\n0 at"])
@pytest.mark.parametrize("first", [True, False])
def test_a_dead_partner_is_noticed_at_once(ends, said, first, monkeypatch):
    monkeypatch.setattr(turns, "SLICE_NS", 0)
    me = Turns(ends[0], first=first, patience_s=LONG_S)
    ends[1].sendall(said)
    ends[1].close()
    for number in range(2):
        me.enter(number)
        assert me.clock_ns() <= me.clock_ns() <= me.clock_ns()
        me.leave()
    assert me.alone
    assert not me.gave_up


@pytest.mark.parametrize("said", [b"", b"0 at\n"])
def test_a_partner_that_hangs_is_given_up_and_told_so(ends, said):
    me = Turns(ends[0], first=False, patience_s=0.01)
    ends[1].sendall(said)
    me.enter(0)
    assert me.gave_up
    me.leave()
    assert ends[1].recv(100) == b"0 at\n"
    assert ends[1].recv(100) == b""


# ---- the number of a process ----


def test_a_low_quantile_by_linear_interpolation():
    assert side.low_us([3.0]) == 3.0
    assert side.low_us([5.0, 3.0]) == pytest.approx(3.1)
    assert side.low_us([float(i) for i in range(101)][::-1]) == pytest.approx(5.0)
    assert side.low_us([1.0, *[2.0] * 40, *[9.0] * 60]) == 2.0  # neither luck nor preemption decides


@pytest.mark.parametrize(("call_us", "samples"), [(100, 249), (50_000, 7), (250_000, 4), (900_000, 3)])
def test_a_call_is_timed_by_the_clock_of_turns(monkeypatch, call_us, samples):
    """A fast call fills its budget; a slow one is called seven times, or what a second allows."""
    calls = []  # each a nanosecond longer than the last, so that no two samples are equal

    def now():
        return sum(range(len(calls))) + 1000 * call_us * len(calls)

    monkeypatch.setattr(side, "clock_ns", now)
    taken = side.time_call(lambda: calls.append(1))
    assert len(taken) == samples
    assert taken == pytest.approx([call_us] * samples, rel=0.02)
