import ctypes
import faulthandler
import math
import os
import random
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.measure import blocks, channel, perf_events, sampling
from costmodel.measure.arrays import Original, Output, mismatch
from costmodel.measure.protocol import Outcome, Task
from costmodel.measure.worker import Shelf
from costmodel.records import Config, Device, Kernel, Measurement, Problem, Timing, UserError, Variant

TIMING = Timing(min_samples=7, relative_error=0.01)
DEVICE = Device("cpu", "cpu", "maker", "arch", 2, 2000.0, (("f32", 0.1),), 20.0, 1 << 20)
PROBLEM = Problem("double", (), (("N", 8),), 8, 64)


def variants(count: int, threads: int = 1) -> list[Variant]:
    kernel = Kernel("k", "cpp", "text")
    return [Variant(kernel, PROBLEM, Config.of(I=i, THREADS=threads)) for i in range(count)]


def measured(variant: Variant, *samples_us: float, status: str = "ok") -> Measurement:
    error = "" if status == "ok" else "reason"
    return Measurement(variant, DEVICE, TIMING, (("cxx", "none"),), status, samples_us, error)


# ---- the stop rule ----


class Clock:
    """Time in nanoseconds that passes only when `call` is called, by the next of `durations_us`."""

    def __init__(self, durations_us):
        self.now_ns, self.calls, self.durations = 0, 0, iter(durations_us)

    def call(self):
        self.calls += 1
        self.now_ns += round(next(self.durations) * 1000)

    def read(self):
        return self.now_ns


def test_steady_samples_stop_at_the_least_number():
    clock = Clock([500.0] * 100)
    assert sampling.take(clock.call, TIMING, clock_ns=clock.read) == [500.0] * 7
    assert clock.calls == 7 + 4  # 2000 us of warm-up


def test_fifth_smallest_must_be_near_the_smallest():
    samples = [100.0, 100.2, 100.4, 100.6, 150.0, 150.0, 150.0]
    assert not sampling.enough(samples, TIMING)
    assert sampling.enough([*samples, 101.0], TIMING)
    assert not sampling.enough([*samples, 101.1], TIMING)


def test_budget_ends_noisy_and_slow_variants():
    rng = random.Random(0)
    noisy = Clock([1000.0 * (1 + rng.random()) for _ in range(1000)])
    taken = sampling.take(noisy.call, TIMING, clock_ns=noisy.read)
    assert sum(taken[:-1]) < sampling.BUDGET_US <= sum(taken)
    slow = Clock([1e6] * 100)
    assert len(sampling.take(slow.call, TIMING, clock_ns=slow.read)) == sampling.FLOOR_SAMPLES


def test_warm_up_is_calls_and_time():
    slow, quick = Clock([5000.0] * 50), Clock([10.0] * 1000)
    assert len(sampling.take(slow.call, TIMING, clock_ns=slow.read)) == slow.calls - 2
    assert len(sampling.take(quick.call, TIMING, clock_ns=quick.read)) == quick.calls - 200


def test_before_runs_ahead_of_each_sample_and_is_not_timed():
    clock, times = Clock([500.0] * 1000), []

    def before():
        times.append(clock.now_ns)
        clock.now_ns += 10**7

    taken = sampling.take(clock.call, TIMING, clock_ns=clock.read, before=before)
    assert len(times) == len(taken)
    assert set(taken) == {500.0}


@given(
    durations=st.lists(st.floats(0.2, 1e5), min_size=1, max_size=80),
    least=st.integers(1, 12),
    error=st.floats(0.0, 0.2),
)
@settings(max_examples=25, deadline=None)
def test_sampling_stops_exactly_when_the_rule_says_so(durations, least, error):
    timing = Timing(min_samples=least, relative_error=error, warmup_us=0.0)
    clock = Clock([*durations, *[1.0] * 600])
    taken = sampling.take(clock.call, timing, clock_ns=clock.read, warm_calls=0)
    assert sampling.enough(taken, timing)
    assert not any(sampling.enough(taken[:i], timing) for i in range(len(taken)))
    assert len(taken) <= sampling.MAX_SAMPLES


# ---- messages ----


def test_a_message_larger_than_a_pipe_arrives_whole():
    reading, writing = os.pipe()
    message = {"text": "é" * 300_000, "numbers": list(range(1000))}
    sender = threading.Thread(target=channel.send, args=(writing, message))
    sender.start()
    assert channel.receive(reading, timeout_s=10) == message
    sender.join()


@pytest.mark.parametrize(
    "data",
    [b"", b"\x01", b"\x02\0\0\0{", b"\x02\0\0\0{}{}", b"\x02\0\0\0[]", b"\x04\0\0\0\xff\xfe\0\x01", b"\x7fELF" * 9],
)
def test_what_is_no_message_is_said_to_be_none(data):
    with pytest.raises(channel.Closed):
        channel.unpack(data)


def test_receive_tells_late_from_gone():
    reading, writing = os.pipe()
    with pytest.raises(channel.Late):
        channel.receive(reading, timeout_s=0.01)
    os.write(writing, b"\xff\0\0\0half")
    os.close(writing)
    with pytest.raises(channel.Closed):
        channel.receive(reading, timeout_s=5)


def test_task_and_outcome_survive_the_wire():
    task = Task("k.py:3", (("N", 8),), "/x.so", (0, 1), Timing(cache="cold"), 2.5, 1 << 30, 7, 64)
    assert Task.decode(channel.unpack(channel.pack(task.encode()))) == task
    outcome = Outcome("ok", (1.5, 2.25), counters=(("cycles", 3.0),))
    assert Outcome.decode(channel.unpack(channel.pack(outcome.encode()))) == outcome
    assert len(channel.pack(outcome.encode())) < 200


@pytest.mark.parametrize(
    "change", [{"samples_us": []}, {"samples_us": [-1.0]}, {"samples_us": [math.nan]}, {"status": "wrong_result"}]
)
def test_an_outcome_that_contradicts_itself_is_refused(change):
    with pytest.raises(ValueError, match="outcome"):
        Outcome.decode({**Outcome("ok", (1.0,)).encode(), **change})


# ---- checked arrays ----


def test_mismatch_is_relative_to_the_largest_magnitude():
    expected = np.linspace(-4.0, 2.0, 500_000, dtype=np.float32)
    for error, passes in ((3e-4, True), (5e-4, False)):
        got = expected.copy()
        got[400_000] += np.float32(error)
        assert (mismatch(got, expected, 1e-4) == "") is passes
    assert mismatch(np.zeros(0), np.zeros(0), 0.0) == ""


def test_mismatch_wants_infinities_and_nan_in_place():
    expected = np.array([1.0, np.inf, -np.inf, np.nan, 2.0])
    assert mismatch(expected.copy(), expected, 0.0) == ""
    for i, value in ((1, -np.inf), (3, 0.0), (0, np.nan), (4, np.inf), (2, 5.0)):
        got = expected.copy()
        got[i] = value
        assert f"index {i}" in mismatch(got, expected, 1.0)


def test_whole_numbers_must_be_equal():
    expected = np.arange(12, dtype=np.int32).reshape(3, 4)
    got = expected.copy()
    assert mismatch(got, expected, 1.0) == ""
    got[1, 2] += 1
    assert "1 of 12 values differ, first at index 6" in mismatch(got, expected, 1.0)


@given(shape=st.lists(st.integers(1, 40), min_size=1, max_size=3), where=st.integers(0, 10**6), by=st.floats(0.01, 100))
@settings(max_examples=40, deadline=None)
def test_one_wrong_value_anywhere_is_found(shape, where, by):
    expected = np.ones(shape, np.float64)
    got = expected.copy()
    got.reshape(-1)[where % got.size] += by
    assert (mismatch(got, expected, 1e-3) == "") == (abs(by) <= 1e-3)


@pytest.mark.parametrize("count", [1, 1000, 1024, 5000])
def test_a_write_past_the_end_is_seen_or_faults(count):
    output = Output.like(np.zeros(count, np.float32))
    output.spoil(0xA5)
    assert np.isnan(output.array).all()
    assert not output.overrun()
    pid = os.fork()
    if pid == 0:  # one element past the end: the canary, or the unmapped page
        faulthandler.disable()
        ctypes.memset(output.address + 4 * count, 1, 4)
        os._exit(10 if output.overrun() else 11)
    _, status = os.waitpid(pid, 0)
    slack = -4 * count % 4096
    assert os.WTERMSIG(status) == 11 if slack == 0 else os.waitstatus_to_exitcode(status) == 10


def test_a_view_is_private_and_its_changes_are_seen():
    array = np.arange(3000, dtype=np.int32)
    original = Original.of(array)
    view, other = original.view(), original.view()
    assert not original.differs(view)
    ctypes.memset(view + 8000, 1, 1)
    assert original.differs(view)
    assert not original.differs(other)
    original.close()


def test_unsigned_garbage_differs_between_checks():
    output = Output.like(np.zeros((3, 5), np.int32))
    output.spoil(0xA5)
    first = output.array.copy()
    output.spoil(0x5A)
    assert (first != output.array).all()


# ---- the worker's shelf ----


def shelf_task(name, seed, **sizes):
    return Task(name, tuple(sizes.items()), "", (0,), TIMING, 1.0, 0, seed, 0)


def test_forms_share_inputs_and_the_oldest_are_dropped_past_the_limit():
    shelf = Shelf(limit_bytes=40_000)
    sizes = {"M": 5, "N": 6, "K": 7}
    first = shelf.get(shelf_task("matmul", 0, **sizes))
    assert shelf.get(shelf_task("matmul__packed", 0, **sizes)) is first
    assert [array.shape for array in first.expected] == [(5, 6)]
    assert first.sizes == (5, 6, 7)
    other = shelf.get(shelf_task("matmul", 1, **sizes))
    assert not np.array_equal(other.expected[0], first.expected[0])
    shelf.get(shelf_task("matmul", 0, **sizes))  # used again, so `other` is now the oldest
    for seed in range(2, 6):
        shelf.get(shelf_task("matmul", seed, **sizes))
        if other not in shelf.items.values():
            break
    assert other not in shelf.items.values()
    assert sum(item.bytes for item in shelf.items.values()) <= shelf.limit_bytes
    shelf.get(shelf_task("matmul", 0, M=100, N=100, K=100))
    assert len(shelf.items) == 1  # larger than the limit alone, and still served


# ---- hardware counters ----


def test_no_counters_without_permission_and_no_extra_call(monkeypatch):
    monkeypatch.setattr(perf_events, "_EVENTS", {"nonsense": 1 << 40})
    calls = []
    assert perf_events.Counters().count(lambda: calls.append(1)) == {}
    assert calls == []
    monkeypatch.setattr(perf_events, "_SYSCALL", {})
    assert perf_events.Counters().descriptors == {}


def test_counters_count_where_permitted():
    counters = perf_events.Counters()
    counted = counters.count(lambda: sum(range(100_000)))
    assert set(counted) == set(counters.descriptors)
    assert all(value >= 0 for value in counted.values())


# ---- blocks ----


@given(single=st.integers(0, 150), multi=st.integers(0, 150), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_a_plan_holds_everything_once_and_never_mixes_exclusive_variants(single, multi, seed):
    everything = variants(single) + variants(multi, threads=2)
    made = blocks.plan(everything, seed=seed, exclusive=lambda v: v.config["THREADS"] > 1)
    flat = [variant for block in made for variant in block]
    assert sorted(map(str, flat)) == sorted(map(str, everything))
    assert all(0 < len(block) <= blocks.BLOCK_SIZE for block in made)
    assert all(len({v.config["THREADS"] for v in block}) == 1 for block in made)
    assert made == blocks.plan(everything, seed=seed, exclusive=lambda v: v.config["THREADS"] > 1)


def test_passes_differ_in_order():
    one, two = (blocks.plan(variants(200), seed=seed, exclusive=lambda v: False) for seed in (0, 1))
    assert [v for b in one for v in b] != [v for b in two for v in b]


class Machine:
    """A fake: `readings` of the sentinel in order, and a count of how often each variant was measured."""

    def __init__(self, readings, failing=()):
        self.readings, self.failing, self.times = iter(readings), set(failing), {}

    def sentinel_us(self):
        return next(self.readings)

    def measure(self, asked):
        taken = []
        for variant in asked:
            attempt = self.times[variant] = self.times.get(variant, 0) + 1
            fails = variant in self.failing
            taken.append(measured(variant, status="crash") if fails else measured(variant, 100.0 * attempt))
        return taken


def take(machine, count=5):
    sentinel, patience = blocks.Sentinel(machine.sentinel_us), blocks.Patience()
    return blocks.take_block(variants(count), measure=machine.measure, sentinel=sentinel, patience=patience)


def test_a_calm_block_is_taken_once():
    machine = Machine([100.0, 102.9])
    assert [m.samples_us for m in take(machine)] == [(100.0,)] * 5
    assert set(machine.times.values()) == {1}


def test_a_drifting_block_is_discarded_and_taken_again_but_failures_stand():
    failing = variants(5)[2]
    machine = Machine([100.0, 104.0, 105.0], failing=[failing])
    taken = take(machine)
    assert [m.variant for m in taken] == variants(5)
    assert [m.samples_us for m in taken if m.status == "ok"] == [(200.0,)] * 4
    assert machine.times[failing] == 1
    assert all("drift" not in dict(m.counters) for m in taken)


def test_a_block_that_never_calms_is_kept_at_its_calmest_and_flagged():
    taken = take(Machine([100.0, 120.0, 126.0, 150.0]))
    assert [m.samples_us for m in taken] == [(200.0,)] * 5
    assert [dict(m.counters)["drift"] for m in taken] == [0.05] * 5


def test_a_block_of_failures_needs_no_second_look():
    machine = Machine([100.0, 200.0], failing=variants(3))
    assert {m.status for m in take(machine, 3)} == {"crash"}


def test_patience_bounds_the_retries_of_a_machine_that_never_calms():
    readings = (100.0 * 1.1**i for i in range(10_000))
    machine, patience = Machine(readings), blocks.Patience()
    sentinel = blocks.Sentinel(machine.sentinel_us)
    for _ in range(100):
        blocks.take_block(variants(1), measure=machine.measure, sentinel=sentinel, patience=patience)
    assert 100 + 20 < machine.times[variants(1)[0]] < 100 + 30


def test_a_reading_is_shared_by_neighbours_only():
    now_s, readings = [0.0], iter((1.0, 2.0, 3.0))
    sentinel = blocks.Sentinel(lambda: next(readings), clock_s=lambda: now_s[0])
    assert (sentinel.before(), sentinel.after()) == (1.0, 2.0)
    assert sentinel.before() == 2.0
    now_s[0] += 10
    assert sentinel.before() == 3.0


@given(st.floats(0.01, 1e6), st.floats(0.01, 1e6))
def test_drift_is_symmetric_and_zero_only_for_equals(a, b):
    assert blocks.drift(a, b) == blocks.drift(b, a) >= 0
    assert (blocks.drift(a, b) == 0) == (a == b)


def test_passes_that_disagree_are_suspicious():
    assert not blocks.suspicious([100.0])
    assert not blocks.suspicious([100.0, 109.0])
    assert blocks.suspicious([100.0, 111.0])


class Noisy:
    """A fake runner: true latencies, a slow spell in every other round, and variants that fail in one round."""

    device = DEVICE

    def __init__(self, true_us, flaky=()):
        self.true_us, self.flaky, self.orders = true_us, flaky, []

    def measure(self, asked):
        self.orders.append(list(asked))
        slow = 1.5 if len(self.orders) % 2 == 0 else 1.0
        return [
            measured(v, status="wrong_result") if v in self.flaky and len(self.orders) == 2
            else measured(v, self.true_us[v] * slow, self.true_us[v] * slow * 1.2)
            for v in asked
        ]  # fmt: skip


def test_confirmation_ranks_in_interleaved_rounds_and_names_ties():
    shortlist = variants(6)
    runner = Noisy(dict(zip(shortlist, (130.0, 104.0, 100.0, 106.0, 90.0, 200.0), strict=True)), flaky=shortlist[4:5])
    result = blocks.confirm(runner, shortlist, rounds=5, seed=1)
    assert result.winner == shortlist[2]
    assert result.ties == (shortlist[2], shortlist[1])
    assert [v for v, _ in result.latencies_us] == [shortlist[i] for i in (2, 1, 3, 0, 5)]
    assert [m.variant for m in result.failed] == [shortlist[4]]
    assert [len(order) for order in runner.orders] == [6, 6, 5, 5, 5]
    assert len({tuple(order) for order in runner.orders}) > 1


def test_confirmation_without_a_survivor_is_said_in_one_line():
    runner = Noisy(dict.fromkeys(variants(2), 1.0), flaky=variants(2))
    with pytest.raises(UserError, match="5 times in a row"):
        blocks.confirm(runner, variants(2))
