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
