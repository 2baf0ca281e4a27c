"""The search on a synthetic landscape whose optimum is known."""

import dataclasses
import math

import numpy as np
import pytest

from costmodel.baselines import log_normal
from costmodel.records import (
    Config,
    Device,
    Kernel,
    Measurement,
    Problem,
    SearchSpace,
    TensorSpec,
    Timing,
    UserError,
    Variant,
)
from costmodel.search import Budget, Tuner, tune

DEVICE = Device("test cpu", "cpu", "none", "none", 2, 2000.0, (("f32", 0.1),), 20.0, 1 << 20)
PROBLEM = Problem("toy", (TensorSpec((64,), "f32"),), (("n", 64),), 10**6, 10**6)
SPACE = SearchSpace.of(
    lambda c, p, d: c["A"] * c["B"] <= 512, A=[1, 2, 4, 8, 16, 32], B=[1, 2, 4, 8, 16, 32], C=[0, 1, 2]
)
KERNEL = Kernel("toy", "cpp", "toy source", SPACE.params)
CANDIDATES = [Variant(KERNEL, PROBLEM, config) for config in SPACE.configs(PROBLEM, DEVICE)]
DEFAULT = Variant(KERNEL, PROBLEM, Config.of(A=1, B=1, C=0))


def truth(variant: Variant) -> float:
    a, b, c = (variant.config[name] for name in "ABC")
    return 100 * 2 ** (0.5 * abs(math.log2(a) - 3) + 0.4 * abs(math.log2(b) - 2) + 0.6 * (c != 1))


def measurement(variant: Variant, latency_us: float | None) -> Measurement:
    if latency_us is None:
        return Measurement(variant, DEVICE, Timing(), (), "crash", error="signal 11")
    return Measurement(variant, DEVICE, Timing(), (), "ok", (latency_us,))


class Synthetic:
    """A Runner that knows the landscape; candidates in `broken` crash."""

    device = DEVICE

    def __init__(self, broken=()):
        self.broken, self.asked = set(broken), []

    def measure(self, variants):
        self.asked += variants
        return [measurement(v, None if v in self.broken else truth(v)) for v in variants]


class Prior:
    """Predicts the truth with noise, or its opposite."""

    def __init__(self, noise: float, sign: float = 1.0):
        self.noise, self.sign = noise, sign

    def predict(self, variants, device):
        rng = np.random.default_rng(1)
        return [log_normal(self.sign * math.log2(truth(v)) + self.noise * rng.standard_normal(), 0.3) for v in variants]

    def update(self, measurements):
        raise AssertionError("the search does not train its priors")


OPTIMUM = min(map(truth, CANDIDATES))


def search(priors, runner=None, budget=60, seed=0, **options):
    return tune(
        CANDIDATES,
        priors,
        runner or Synthetic(),
        default=DEFAULT,
        budget=Budget(evaluations=budget),
        seed=seed,
        **options,
    )


def first_within(result, share=0.05):
    return next((i for i, us in enumerate(result.best_so_far_us(), 1) if us <= OPTIMUM * (1 + share)), math.inf)


def test_a_good_prior_finds_the_optimum_in_the_first_batch():
    result = search([Prior(noise=0.2)], budget=8)
    assert result.best_us == OPTIMUM
    assert result.default_us == truth(DEFAULT)
    assert result.measurements[0].variant == DEFAULT


def test_from_scratch_beats_random_and_is_repeatable():
    counts = [first_within(search([], seed=seed)) for seed in range(8)]
    at_random = (len(CANDIDATES) + 1) / (1 + sum(truth(v) <= 1.05 * OPTIMUM for v in CANDIDATES))
    assert np.median(counts) < at_random / 1.5
    assert [m.variant for m in search([], seed=3).measurements] == [m.variant for m in search([], seed=3).measurements]


def test_a_reversed_prior_is_overcome():
    assert first_within(search([Prior(noise=0.0, sign=-1.0)], budget=70)) < math.inf


def test_several_priors_are_weighed_by_what_was_measured():
    tuner = Tuner(
        CANDIDATES, [Prior(0.1).predict(CANDIDATES, DEVICE), Prior(0.1, -1.0).predict(CANDIDATES, DEVICE)], seed=0
    )
    tuner.tell(Synthetic().measure(CANDIDATES[::5]))
    good, bad = tuner.prior_weights()
    assert good > 0.7
    assert bad < 0.1


def test_failures_cost_an_evaluation_and_never_win():
    runner = Synthetic(broken=[v for v in CANDIDATES if v.config["A"] == 8])
    result = search([Prior(noise=0.1)], runner, budget=40)
    assert result.best.config["A"] != 8
    assert len(result.measurements) <= 40
    assert any(m.status == "crash" for m in result.measurements)


def test_all_failing_is_one_clear_line():
    with pytest.raises(UserError, match="signal 11"):
        search([Prior(0.1)], Synthetic(broken=CANDIDATES), budget=10)


def test_nothing_is_measured_twice_and_the_space_can_be_used_up():
    runner = Synthetic()
    result = search([Prior(0.5)], runner, budget=10_000, stop_below=-1.0)
    assert len(set(runner.asked[: len(CANDIDATES)])) == len(CANDIDATES) == result.space_size == len(result.measurements)
    assert result.stopped_by == "space"
    assert result.p_better_remains == 0.0


def test_a_killed_search_goes_on_where_it_was():
    whole = search([Prior(0.8)], budget=32, stop_below=-1.0)
    runner = Synthetic()
    resumed = search([Prior(0.8)], runner, budget=32, known=whole.measurements[:16], stop_below=-1.0)
    assert resumed.reused == 16
    assert [m.variant for m in resumed.measurements[16:]] == runner.asked[:16]
    assert [m.variant for m in resumed.measurements][:16] == [m.variant for m in whole.measurements][:16]


def test_it_stops_when_it_is_confident_and_is_right_about_it():
    result = search([Prior(0.3)], budget=len(CANDIDATES))
    assert result.stopped_by == "confidence"
    assert len(result.measurements) < len(CANDIDATES)
    assert result.best_us <= 1.05 * OPTIMUM


def test_the_posterior_follows_the_measurements():
    tuner = Tuner(CANDIDATES, [], seed=0)
    seen = CANDIDATES[::2]
    tuner.tell(Synthetic().measure(seen))
    mean, sd = tuner.posterior()
    true = np.log2([truth(v) for v in CANDIDATES])
    assert np.abs(mean - true).mean() < 0.15
    assert sd[1::2].mean() > sd[::2].mean()


def test_candidates_may_differ_in_source():
    other = Kernel("toy__other", "cpp", "another source", SPACE.params)
    both = CANDIDATES + [dataclasses.replace(v, kernel=other) for v in CANDIDATES]
    result = tune(both, [], Synthetic(), default=DEFAULT, budget=Budget(evaluations=30), seed=0)
    assert {m.variant.kernel for m in result.measurements} == {KERNEL, other}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("40", Budget(evaluations=40)),
        ("60s", Budget(seconds=60)),
        ("8m", Budget(seconds=480)),
        ("0.5h", Budget(seconds=1800)),
    ],
)
def test_budget_reads_counts_and_times(text, expected):
    assert Budget.parse(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-3", "4.5", "10 parsecs", "m"])
def test_budget_refuses_the_rest(text):
    with pytest.raises(UserError, match="expected a number of evaluations"):
        Budget.parse(text)


def test_the_winner_is_confirmed_beside_its_next_best():
    """One lucky sitting must not win: the confirming rounds tell the truth."""

    class Lucky(Synthetic):
        def measure(self, variants):
            first = not self.asked
            results = super().measure(variants)
            return [measurement(m.variant, 0.95 * OPTIMUM) if first and m.variant == lucky else m for m in results]

    lucky = next(v for v in CANDIDATES if 1.05 * OPTIMUM < truth(v) < 1.5 * OPTIMUM)
    result = tune(CANDIDATES, [], Lucky(), default=lucky, budget=Budget(evaluations=60), seed=0, stop_below=-1.0)
    assert result.measurements[0].variant == lucky
    assert result.best != lucky
    assert result.best_us == truth(result.best) < truth(lucky) == result.default_us


def test_a_large_space_is_asked_about_in_parts_and_whole_predictions_are_not_kept():
    """Predictions of 256 points for 100,000 candidates would be 1.6 GB."""
    from costmodel import search

    sizes = []

    class Wide(Prior):
        def predict(self, variants, device):
            sizes.append(len(variants))
            return super().predict(variants, device)

    prior = Wide(0.3)
    many = CANDIDATES * 90
    told = search._medians(prior, many, DEVICE)
    assert len(many) > search.ASKED == max(sizes)
    assert sum(sizes) == len(many) == len(told)
    assert {len(p.support_us) for p in told} == {1}
    whole = Prior(0.3).predict(CANDIDATES, DEVICE)
    assert [(p.median_us, p.p_fail) for p in told[: len(CANDIDATES)]] == [(p.median_us, p.p_fail) for p in whole]
