"""Protocol suites: every implementation of a protocol inherits its suite and passes it."""

import datetime
import math

import pytest

from costmodel.records import STATUSES, Measurement, Runner, Variant


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
