"""Searches replayed on a recorded space."""

import math

import numpy as np
import pytest
from test_search import CANDIDATES, DEFAULT, DEVICE, KERNEL, OPTIMUM, PROBLEM, Prior, measurement, truth

from costmodel import replay
from costmodel.records import UserError

BROKEN = {v for v in CANDIDATES if v.config["A"] == 32}
RECORDS = [measurement(v, None if v in BROKEN else truth(v)) for v in CANDIDATES]
SPACE = replay.RecordedSpace(KERNEL, PROBLEM, DEVICE, tuple(RECORDS), DEFAULT)


def test_spaces_are_grouped_and_small_ones_left_out():
    found = replay.spaces(RECORDS, {KERNEL.identity: DEFAULT.config}, min_size=10)
    assert [(s.name, s.default) for s in found] == [("toy n=64", DEFAULT)]
    assert found[0].optimum_us == OPTIMUM
    assert replay.spaces(RECORDS, {}, min_size=1000) == []


@pytest.mark.parametrize(
    "strategy",
    [
        replay.random_search,
        replay.simulated_annealing,
        replay.guided(lambda space: []),
        replay.guided(replay.prior_of([Prior(0.5)])),
        replay.ranked(replay.prior_of([Prior(0.5)])),
    ],
)
def test_every_strategy_spends_its_budget_on_distinct_candidates(strategy):
    taken = strategy(SPACE, 30, 1)
    assert len(taken) == 30
    assert len({m.variant for m in taken}) == 30
    assert [m.variant for m in strategy(SPACE, 30, 1)] == [m.variant for m in taken]
    assert len(strategy(SPACE, 10_000, 0)) == len(RECORDS)


def test_annealing_beats_random_and_a_prior_beats_both():
    runs = replay.replay(
        [SPACE],
        {
            "random": replay.random_search,
            "annealing": replay.simulated_annealing,
            "prior": replay.guided(replay.prior_of([Prior(0.3)])),
        },
        budget=100,
        seeds=12,
    )
    table = replay.summarise(runs, never=200)
    assert table.loc["prior", "to_5_percent"] < table.loc["annealing", "to_5_percent"]
    assert table.loc["annealing", "to_5_percent"] < table.loc["random", "to_5_percent"]
    assert table.loc["prior", "fraction_at_20"] == 1.0


def test_counting():
    taken = [measurement(CANDIDATES[0], None), measurement(CANDIDATES[1], 200.0), measurement(CANDIDATES[2], 104.0)]
    assert replay.evaluations_to(taken, 100.0, 0.05) == 3
    assert replay.evaluations_to(taken, 100.0, 0.01) == math.inf
    assert [replay.fraction_at(taken, 100.0, n) for n in (1, 2, 3)] == [0.0, 0.5, pytest.approx(100 / 104)]


def test_a_variant_that_was_not_recorded_is_refused():
    runner = replay.RecordedRunner(SPACE)
    assert np.isclose(runner.measure([DEFAULT])[0].latency_us, truth(DEFAULT))
    other = replay.RecordedRunner(replay.RecordedSpace(KERNEL, PROBLEM, DEVICE, tuple(RECORDS[:3])))
    with pytest.raises(UserError, match="was not recorded"):
        other.measure([CANDIDATES[-1]])
