"""Protocol suites: every implementation of a protocol inherits its suite and passes it."""

import datetime
import math
import signal
import time
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stored import DEVICE, ENDLESS, KERNEL, PROBLEM, row, start

from costmodel.dataset import read_parquet
from costmodel.records import STATUSES, Config, Kernel, Measurement, Runner, Timing, UserError, Variant
from costmodel.sittings import identity
from costmodel.store import Store
from costmodel.store.schema import VERSION


class RunnerContract:
    """What `records.Runner` promises. A subclass provides the fixtures `runner`, `good` and `bad`.

    good: at least two different variants that run. bad: (variant, expected status) pairs, one for each way to fail.
    """

    @pytest.fixture
    def runner(self) -> Runner:
        raise NotImplementedError

    @pytest.fixture
    def good(self) -> list[Variant]:
        raise NotImplementedError

    @pytest.fixture
    def bad(self) -> list[tuple[Variant, str]]:
        raise NotImplementedError

    def test_nothing_in_nothing_out(self, runner):
        assert runner.measure([]) == []

    def test_same_length_and_order_also_with_repeats(self, runner, good):
        asked = [*good, good[0], *reversed(good)]
        assert [m.variant for m in runner.measure(asked)] == asked

    def test_good_variants_have_positive_samples(self, runner, good):
        for measurement in runner.measure(good):
            assert measurement.status == "ok", measurement.error
            assert measurement.samples_us
            assert all(x > 0 and math.isfinite(x) for x in measurement.samples_us)

    def test_bad_variants_are_statuses_with_a_reason_and_spoil_no_other(self, runner, good, bad):
        asked = [good[0], *(variant for variant, _ in bad), good[1]]
        measured = runner.measure(asked)
        assert [m.variant for m in measured] == asked
        assert [(m.status, m.error) for m in (measured[0], measured[-1])] == [("ok", ""), ("ok", "")]
        assert [m.status for m in measured[1:-1]] == [status for _, status in bad]
        for measurement in measured[1:-1]:
            assert measurement.samples_us == ()
            assert measurement.error.strip()
            assert "\n" not in measurement.error

    def test_a_measurement_says_where_how_and_when(self, runner, good):
        before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
        (measurement,) = runner.measure(good[:1])
        assert isinstance(measurement, Measurement)
        assert measurement.status in STATUSES
        assert measurement.device == runner.device
        assert dict(measurement.toolchain)
        assert datetime.datetime.fromisoformat(measurement.collected_at) >= before


class CostModelContract:
    """What `records.CostModel` promises. A subclass defines `make()`, an untrained or loaded model."""

    def make(self):
        raise NotImplementedError

    def ask(self, model, variants):
        from test_search import DEVICE

        return model.predict(variants, DEVICE)

    def data(self):
        from test_search import CANDIDATES, measurement, truth

        return [measurement(v, truth(v)) for v in CANDIDATES[::3]] + [measurement(CANDIDATES[1], None)]

    def test_same_length_and_order_also_with_repeats(self):
        model = self.make()
        model.update(self.data())
        variants = [m.variant for m in self.data()]
        asked = [*variants[:5], variants[0], *reversed(variants)]
        medians = [p.median_us for p in self.ask(model, asked)]
        alone = {v: self.ask(model, [v])[0].median_us for v in dict.fromkeys(asked)}
        assert medians == pytest.approx([alone[v] for v in asked], rel=2e-2)
        assert self.ask(model, []) == []

    def test_predictions_are_distributions_over_positive_latencies(self):
        model = self.make()
        model.update(self.data())
        for p in self.ask(model, [m.variant for m in self.data()]):
            assert sum(p.weights) == pytest.approx(1.0)
            assert all(x > 0 for x in p.support_us)
            assert list(p.support_us) == sorted(p.support_us)
            assert p.quantile_us(0.05) <= p.median_us <= p.quantile_us(0.95)
            assert 0.0 <= p.p_fail <= 1.0

    def test_equal_inputs_give_equal_predictions(self):
        first, second = self.make(), self.make()
        for model in (first, second):
            model.update(self.data())
        variants = [m.variant for m in self.data()]
        assert self.ask(first, variants) == self.ask(second, variants)

    def test_untrained_and_failures_alone_are_no_error(self):
        model = self.make()
        variants = [m.variant for m in self.data()]
        assert len(self.ask(model, variants)) == len(variants)
        model.update([m for m in self.data() if m.status != "ok"])
        assert len(self.ask(model, variants)) == len(variants)

    def test_an_update_moves_predictions_towards_what_was_measured(self):
        model = self.make()
        ok = [m for m in self.data() if m.status == "ok"]

        def error():
            told = self.ask(model, [m.variant for m in ok])
            return sum(abs(math.log2(p.median_us / m.latency_us)) for p, m in zip(told, ok, strict=True))

        before = error()
        model.update(ok)
        assert error() < before


CHANGES = {
    "kernel": {"variant": Variant(replace(KERNEL, source="x"), PROBLEM, Config.of(TILE=8, MODE="row"))},
    "problem": {"variant": Variant(KERNEL, replace(PROBLEM, op="y"), Config.of(TILE=8, MODE="row"))},
    "config": {"variant": Variant(KERNEL, PROBLEM, Config.of(TILE=8, MODE="col"))},
    "device": {"device": replace(DEVICE, l2_bytes=1)},
    "toolchain": {"toolchain": (("cxx", "clang 19"),)},
    "timing": {"timing": Timing("cold")},
}

some_rows = st.lists(
    st.builds(
        lambda tile, at, samples, bad: row(tile, samples=tuple(samples), at=at, status="timeout" if bad else "ok"),
        st.sampled_from([8, 16, 32]),
        st.sampled_from(["2026-01", "2026-02"]),
        st.lists(st.floats(0.001, 1e6), min_size=1, max_size=2),
        st.booleans(),
    ),
    max_size=6,
)


# each example makes its own stores, and each kind of store runs the examples
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.differing_executors]


class StoreContract:
    """What a store promises, whatever it is kept in. A subclass provides the fixture `fresh` and `set_version`.

    fresh: called, the address of a store that is not there yet; with other=True of one to merge with, which may be of
    another kind.
    """

    @pytest.fixture
    def fresh(self):
        raise NotImplementedError

    @pytest.fixture
    def address(self, fresh):
        return fresh()

    def set_version(self, address, version):
        """Make the store at `address` say that its schema is of this version."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, address):
        with Store(address) as opened:
            yield opened

    def test_what_goes_in_comes_out_exactly(self, address):
        imported = Variant(
            Kernel("gemm", "opencl", None, origin="tables"), PROBLEM, Config.of(A=1.0, B=True, C="ü", D=1)
        )
        rows = [
            row(samples=(0.1 + 0.2, 1e-9, 123456.789)),
            row(16, status="crash", error="Segmentation fault\x00\x01\x1a0\x1a\x00\nline: 100 % of :x, C:\\n"),
            row(variant=imported, device=replace(DEVICE, name="other"), timing=Timing("cold", 1.0, 3, 0.5)),
            row(8, counters=(("cycles", 1e9), ("misses", 0.5)), at="2026-01-02"),
        ]
        with Store(address) as first:
            assert first.add(rows) == 4
        with Store(address) as again:
            back = list(again.measurements())
        assert back == rows
        assert [type(value) for _, value in back[2].variant.config.params] == [float, bool, str, int]

    def test_a_message_that_utf8_cannot_write_is_kept_readable(self, store):
        store.add([row(status="crash", error="bad \udcff byte")])
        assert [found.error for found in store.measurements()] == ["bad ? byte"]

    def test_a_source_that_utf8_cannot_write_is_one_line_and_the_batch_is_not_stored(self, store):
        bad = Variant(replace(KERNEL, source="bad \udcff byte"), PROBLEM, Config.of(TILE=8, MODE="row"))
        with pytest.raises(UserError, match="got text that UTF-8 cannot write"):
            store.add([row(), row(variant=bad)])
        assert list(store.measurements()) == []
        assert store.add([row()]) == 1

    def test_a_long_source_and_schema_are_no_matter(self, store):
        values = tuple(range(3000))
        long = Variant(replace(KERNEL, source="x" * 50_000, schema=(("TILE", values),)), PROBLEM, Config.of(TILE=8))
        store.add([row(variant=long)])
        assert [m.variant for m in store.measurements()] == [long]

    def test_exact_duplicates_are_ignored_and_new_sittings_are_kept_in_order(self, store):
        first, second, third = row(), row(at="2026-01-01T01:00:00"), row(samples=(9.0,))
        assert store.add([first, first, second]) == 2
        assert store.add([first, third]) == 1
        assert list(store.measurements()) == [first, second, third]

    def test_one_text_under_two_names_is_one_thing_measured(self, store):
        other = Variant(replace(KERNEL, name="other"), PROBLEM, Config.of(TILE=8, MODE="row"))
        assert store.add([row(), row(variant=other)]) == 1
        assert store.add([row(variant=other, at="later")]) == 1
        assert [m.variant.kernel.name for m in store.measurements()] == ["dot", "other"]
        assert [m.variant.kernel.name for m in store.measurements(kernel="other")] == ["other"]
        assert [len(list(store.combined(kernel=name))) for name in ("dot", "other", KERNEL.identity)] == [1, 1, 1]
        assert len(next(store.combined()).samples_us) == 4

    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    def test_each_part_of_the_identity_counts(self, store, change):
        one, two = row(), row(**change)
        store.add([one])

        def stored(m):
            return store.has(m.variant, m.device, timing=m.timing, toolchain=m.toolchain)

        assert stored(one)
        assert not stored(two)
        store.add([two])
        assert stored(two)
        assert store.identities() == {identity(m.variant, m.device, m.timing, m.toolchain) for m in (one, two)}
        assert len(list(store.combined())) == 2

    def test_filters(self, store):
        other = replace(DEVICE, name="other")
        store.add([row(8), row(16, status="timeout"), row(8, device=other)])
        assert [m.variant.config["TILE"] for m in store.measurements(status="timeout")] == [16]
        assert [m.device for m in store.measurements(device="other")] == [other]
        assert [m.device for m in store.measurements(device=other.identity)] == [other]
        assert len(list(store.measurements(kernel="dot", op="dot", device="box"))) == 2
        assert len(list(store.measurements(kernel="dot", status="ok"))) == 2
        assert len(list(store.measurements(kernel=KERNEL.identity))) == 3
        assert list(store.measurements(kernel="dot", op="sum")) == []
        with pytest.raises(UserError, match="got status 'fine', expected one of ok, "):
            list(store.measurements(status="fine"))

    def test_reading_goes_on_while_the_caller_writes(self, store):
        store.add([row(tile) for tile in range(1500)])
        seen = 0
        for found in store.measurements():
            seen += 1
            if found.collected_at == "2026-01-01T00:00:00" and seen <= 5:
                store.add([replace(found, collected_at="later")])
        assert seen == 1505
        assert [m.variant.config["TILE"] for m in store.combined()] == list(range(1500))
        assert [m.variant.config["TILE"] for m in store.combined(kernel="dot")] == list(range(1500))
        assert [m.variant.config["TILE"] for m in store.measurements(device="box")][:1500] == list(range(1500))

    @settings(max_examples=5, deadline=None, suppress_health_check=CHECKS)
    @given(ours=some_rows, theirs=some_rows)
    def test_merge_is_idempotent_and_a_union(self, fresh, ours, theirs):
        first, second = fresh(), fresh(other=True)
        with Store(first) as a, Store(second) as b:
            a.add(ours)
            b.add(theirs)
            assert a.merge(second) == len(set(theirs) - set(ours))
            assert a.merge(second) == 0
            assert set(a.measurements()) == set(ours) | set(theirs)
            assert b.merge(first) == len(set(ours) - set(theirs))
            assert {m.status for m in a.combined()} == {m.status for m in b.combined()}
            assert len(list(a.measurements())) == len(list(b.measurements()))

    def test_a_store_is_not_merged_into_itself(self, address):
        with Store(address) as store, pytest.raises(UserError, match="into itself"):
            store.merge(address)

    def test_summary_and_export(self, store, tmp_path):
        store.add([row(8), row(8, at="2026-03"), row(16), row(32, status="crash", error="boom")])
        table = store.summary()
        assert table[["kernel", "problem", "device", "status", "variants", "sittings"]].values.tolist() == [
            ["dot", "N=64", "box", "crash", 1, 1],
            ["dot", "N=64", "box", "ok", 2, 3],
        ]
        assert table["last_collected_at"].tolist() == ["2026-01-01T00:00:00", "2026-03"]
        assert store.export(tmp_path / "out") == 4
        assert read_parquet(tmp_path / "out") == list(store.measurements())

    def test_an_empty_store_is_empty(self, store, tmp_path):
        assert list(store.combined()) == list(store.measurements()) == list(store.measurements(kernel="dot")) == []
        assert store.identities() == set()
        assert len(store.summary()) == 0
        assert store.export(tmp_path / "out") == 0
        assert read_parquet(tmp_path / "out") == []

    def test_a_newer_schema_is_refused_and_left_alone(self, address):
        with Store(address) as store:
            store.add([row()])
        self.set_version(address, 99)
        with pytest.raises(UserError, match=f"of schema 99, expected at most {VERSION}; update costmodel"):
            Store(address)
        self.set_version(address, VERSION)
        with Store(address) as store:
            assert list(store.measurements()) == [row()]

    def test_a_batch_that_fails_is_not_stored_and_the_next_one_is(self, store):
        with pytest.raises(UserError, match="in a measurement, expected a number, text or bool"):
            store.add([row(1), row(2, device=replace(DEVICE, name="new")), row(3, counters=(("x", object()),))])
        assert list(store.measurements()) == []
        assert store.add([row(2, device=replace(DEVICE, name="new"))]) == 1  # ids handed out in it are not reused
        assert [m.device.name for m in store.measurements()] == ["new"]

    def test_processes_that_make_and_fill_one_store_at_once(self, address):
        """Three writers open a store that is not there yet, at the same moment."""
        code = """
print("ready", flush=True)
sys.stdin.readline()
first = int(sys.argv[3])
with Store(sys.argv[1]) as store:
    for tile in range(first, first + 15):
        store.add([row(tile), row(7, at=f"2026-{tile}")])
"""
        writers = [start(code, address, str(1000 * i)) for i in (1, 2, 3)]
        assert [writer.stdout.readline() for writer in writers] == ["ready\n"] * 3
        for writer in writers:
            writer.stdin.write("go\n")
            writer.stdin.flush()
        for writer in writers:
            writer.communicate(timeout=90)
        assert [writer.returncode for writer in writers] == [0, 0, 0]
        with Store(address) as store:
            kept = list(store.measurements())
            assert len(kept) == len(set(kept)) == 90
            assert len(list(store.combined())) == 46
        for first in (1000, 2000, 3000):  # each writer's rows in its order
            own = [m.variant.config["TILE"] for m in kept if first <= m.variant.config["TILE"] < first + 15]
            assert own == list(range(first, first + 15))

    def test_kill_9_keeps_all_that_was_committed(self, address):
        process = start(ENDLESS, address)
        said = [int(process.stdout.readline()) for _ in range(20)]
        time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        said += [int(line) for line in process.stdout.read().splitlines()]
        process.communicate(timeout=30)
        with Store(address) as store:
            tiles = [m.variant.config["TILE"] for m in store.measurements()]
            assert tiles == list(range(len(tiles)))
            assert len(tiles) >= said[-1]
            assert len(tiles) % 5 == 0  # each add whole or not at all
            assert store.add([row(10**6)]) == 1
