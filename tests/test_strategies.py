"""Strategies spend their budget on distinct candidates, are repeatable, and never see the space's own device."""

import random
import sys

import numpy as np
import pytest
from test_replay import BROKEN, DEVICE, OPTIMUM, RECORDS, SIBLING, SPACE, Prior, on

from costmodel import baselines, replay, strategies
from costmodel.records import UserError

ELSEWHERE = on(SIBLING, factor=3.0)
PRIOR = strategies.prior_of([Prior(0.5)])
SOURCES = strategies.Sources(lambda: Prior(0.5), ELSEWHERE)


@pytest.mark.parametrize(
    "strategy",
    [
        strategies.random_search,
        strategies.guided(lambda space: []),
        strategies.guided(PRIOR),
        strategies.ranked(PRIOR),
        strategies.extra_trees(),
        strategies.extra_trees(PRIOR),
        *(strategies.strategy(name, SOURCES) for name in ("costmodel", "nearest-table", "mean-rank", "boosted-trees")),
    ],
)
def test_every_strategy_spends_its_budget_on_distinct_candidates(strategy):
    taken = strategy(SPACE, 30, 1).taken
    assert len({m.variant for m in taken}) == len(taken) == 30
    assert strategy(SPACE, 30, 1).taken == taken
    assert {m.variant for m in strategy(SPACE, 10_000, 0).taken} == {m.variant for m in RECORDS}


@pytest.mark.parametrize("name", ["simulated_annealing", "genetic_algorithm", "adaptive_tabu_greywolf"])
def test_kernel_tuner_plays_on_exactly_the_recorded_space(name):
    pytest.importorskip("kernel_tuner")
    strategy = strategies.kernel_tuner(name)
    before = random.getstate()
    traces = [strategy(SPACE, 30, seed).taken for seed in range(3)]
    assert random.getstate() == before
    for taken in traces:
        assert len({m.variant for m in taken}) == len(taken) <= 30
        assert set(taken) <= set(RECORDS)
    assert any(m.variant in BROKEN for taken in traces for m in taken)  # failures stay in the space and cost
    assert strategy(SPACE, 30, 0).taken == traces[0]
    assert traces[0] != traces[1]


def test_without_kernel_tuner_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "kernel_tuner", None)
    with pytest.raises(UserError, match="pip install kernel_tuner"):
        strategies.kernel_tuner("simulated_annealing")(SPACE, 10, 0)


def test_trees_in_the_search_beat_random_search():
    runs = list(
        replay.replay(
            [SPACE],
            {"random": strategies.random_search, "trees": strategies.extra_trees()},
            budget=50,
            seeds=6,
        )
    )
    assert replay.evaluation_ratio(runs, "trees", "random")[0] < 1.0


def test_what_will_probably_fail_is_measured_last():
    def some_fail(space):
        told = PRIOR(space)[0]
        return [
            [
                baselines.log_normal(0.0, 0.1, p_fail=0.9) if m.variant in BROKEN else p
                for m, p in zip(space.measurements, told, strict=True)
            ]
        ]

    taken = strategies.ranked(some_fail)(SPACE, len(RECORDS), 0).taken
    assert {m.variant for m in taken[-len(BROKEN) :]} == BROKEN


class Spy:
    """A model that keeps what it is shown."""

    def __init__(self):
        self.shown = []

    def update(self, measurements):
        self.shown += measurements

    def predict(self, variants, device):
        return [baselines.log_normal(0.0, 1.0) for _ in variants]


def test_a_prior_is_never_shown_the_own_device():
    spy = Spy()
    strategies.trained_elsewhere(lambda: spy, [*RECORDS, *ELSEWHERE])(SPACE)
    assert {m.device for m in spy.shown} == {SIBLING}


@pytest.mark.parametrize("name", ["costmodel", "nearest-table", "mean-rank", "boosted-trees", "extra-trees-prior"])
def test_measurements_of_the_own_device_change_nothing(name):
    lies = on(DEVICE, RECORDS[::-1], factor=0.001)
    clean = strategies.strategy(name, strategies.Sources(lambda: Prior(0.5), ELSEWHERE))
    leaky = strategies.strategy(name, strategies.Sources(lambda: Prior(0.5), [*ELSEWHERE, *lies]))
    assert clean(SPACE, 25, 3).taken == leaky(SPACE, 25, 3).taken


def test_the_sibling_table_leads_our_search():
    alone = strategies.strategy("costmodel", strategies.Sources(lambda: Prior(3.0)))
    led = strategies.strategy("costmodel", strategies.Sources(lambda: Prior(3.0), ELSEWHERE))
    reached = [
        np.median([replay.evaluations_to(s(SPACE, 60, seed).taken, OPTIMUM, 0.05) for seed in range(5)])
        for s in (alone, led)
    ]
    assert reached[1] < reached[0]


def test_metropolis_walks_downhill_and_never_measures_twice():
    runs = [strategies.metropolis(SPACE, 60, seed).taken for seed in range(8)]
    for taken in runs:
        assert len({m.variant for m in taken}) == len(taken) == 60
    assert strategies.metropolis(SPACE, 60, 3) == strategies.metropolis(SPACE, 60, 3)
    random = [strategies.random_search(SPACE, 60, seed).taken for seed in range(8)]

    def to_five_percent(searches):
        return np.median([min(replay.evaluations_to(taken, SPACE.optimum_us, 0.05), 120) for taken in searches])

    assert to_five_percent(runs) < to_five_percent(random)


def test_tables_of_nowhere_are_refused_where_they_are_needed():
    for name in ("nearest-table", "mean-rank"):
        with pytest.raises(UserError, match="--store"):
            strategies.strategy(name, strategies.Sources(lambda: Prior(0.5)))(SPACE, 10, 0)
    with pytest.raises(UserError, match="--store"):
        strategies.strategy("boosted-trees", strategies.Sources(lambda: Prior(0.5)))


def test_an_unknown_name_names_the_known_ones():
    with pytest.raises(UserError, match="costmodel, rank, random, annealing"):
        strategies.strategy("anealing", SOURCES)
