"""Searches replayed on recorded spaces: the bench itself."""

import dataclasses
import math

import numpy as np
import pytest
from test_search import CANDIDATES, DEFAULT, DEVICE, KERNEL, OPTIMUM, PROBLEM, Prior, measurement, truth

from costmodel import dataset, replay, stats, strategies
from costmodel.records import Config, Kernel, Problem, UserError, Variant

BROKEN = {v for v in CANDIDATES if v.config["A"] == 32}
RECORDS = [measurement(v, None if v in BROKEN else truth(v)) for v in CANDIDATES]
SPACE = replay.RecordedSpace(KERNEL, PROBLEM, DEVICE, tuple(RECORDS), DEFAULT)
SIBLING = dataclasses.replace(DEVICE, name="sibling cpu", clock_mhz=2400.0)


def on(device, records=RECORDS, factor=1.0):
    return [
        dataclasses.replace(m, device=device, samples_us=tuple(factor * us for us in m.samples_us)) for m in records
    ]


def runs_of(**chosen):
    return list(replay.replay([SPACE], chosen, budget=100, seeds=12))


def test_spaces_are_grouped_and_small_ones_left_out():
    found = replay.spaces([*RECORDS, *on(SIBLING)], {KERNEL.identity: DEFAULT.config}, min_size=10)
    assert [(s.name, s.device, s.default) for s in found] == [
        ("toy n=64", SIBLING, DEFAULT),
        ("toy n=64", DEVICE, DEFAULT),
    ]
    assert found[0].optimum_us == OPTIMUM
    assert replay.spaces(RECORDS, {}, min_size=1000) == []
    assert replay.spaces([m for m in RECORDS if m.status != "ok"], {}, min_size=1) == []


def test_operators_share_a_space_and_are_no_search():
    operator = Kernel("bmm", "operator", None)
    rows = [
        measurement(Variant(operator, Problem("bmm", (), (("M", size),), size, size), Config(())), float(size))
        for size in range(1, 20)
    ]
    assert len({dataset.space_key(m) for m in rows}) == 1
    assert len({dataset.space_key(m) for m in RECORDS}) == 1
    assert dataset.space_key(RECORDS[0]) != dataset.space_key(on(SIBLING)[0])
    assert replay.spaces(rows, {}, min_size=1) == []


def test_a_prior_beats_random_search_and_the_summary_says_so():
    runs = runs_of(random=strategies.random_search, prior=strategies.guided(strategies.prior_of([Prior(0.3)])))
    table = replay.summarise(replay.table(runs), never=200)
    assert table.loc["prior", "to_5_percent"] < table.loc["random", "to_5_percent"]
    assert table.loc["prior", "fraction_at_20"] == 1.0
    ratio, low, high = replay.evaluation_ratio(runs, "prior", "random")
    assert low <= ratio <= high < 1.0
    assert replay.evaluation_ratio(runs, "random", "prior")[0] == pytest.approx(1 / ratio)


def test_rows_are_medians_over_seeds():
    runs = runs_of(random=strategies.random_search)
    (row,) = replay.summary_rows(runs)
    assert (row["space"], row["device"], row["strategy"], row["seeds"]) == ("toy n=64", "test cpu", "random", 12)
    assert list(row["fraction_at"]) == ["1", "10", "20", "50", "100"]
    assert row["fraction_at"]["20"] == pytest.approx(np.median([run.fractions()[19] for run in runs]))
    counts = [run.evaluations_to(0.05) for run in runs]
    assert row["evaluations_to"]["0.05"] == np.median(counts)
    low, high = row["evaluations_to_interval"]["0.05"]
    assert min(counts) <= low <= np.median(counts) <= high
    assert row["seconds_to"] == {"0.05": None, "0.01": None}  # the records do not say what an evaluation took
    assert (row["size"], row["failures"]) == (len(RECORDS), len(BROKEN))


def test_a_checkpoint_beyond_the_budget_is_null_and_a_target_never_reached_too():
    only = replay.Strategy(lambda space, budget, seed: replay.Trace(tuple(RECORDS[:3])), seeded=False)
    (row,) = replay.summary_rows(replay.replay([SPACE], {"first": only}, budget=15, seeds=9))
    assert row["seeds"] == 1
    assert row["seeded"] is False
    assert row["fraction_at"]["20"] is None
    assert row["fraction_at"]["15"] == row["fraction_at"]["10"] == OPTIMUM / min(map(truth, CANDIDATES[:3]))
    assert row["evaluations_to"] == {"0.05": None, "0.01": None}


def test_seconds_count_compiling_and_failures():
    def costing(m, counters):
        return dataclasses.replace(m, counters=counters)

    first = costing(measurement(CANDIDATES[0], None), (("compile_us", 2e6),))
    best = min(CANDIDATES, key=truth)
    second = costing(measurement(best, truth(best)), (("compile_us", 1e6), ("benchmark_us", 5e5), ("registers", 64.0)))
    run = replay.Run(SPACE, "x", 0, 10, replay.Trace((first, second)))
    assert run.seconds_to(0.05) == pytest.approx(3.5)
    assert math.isnan(replay.cost_us(RECORDS[0]))


def test_counting():
    taken = [measurement(CANDIDATES[0], None), measurement(CANDIDATES[1], 200.0), measurement(CANDIDATES[2], 104.0)]
    assert replay.evaluations_to(taken, 100.0, 0.05) == 3
    assert replay.evaluations_to(taken, 100.0, 0.01) == math.inf
    assert replay.Trace(tuple(taken)).best_so_far_us(5).tolist() == [math.inf, 200.0, 104.0, 104.0, 104.0]


def test_a_claim_is_held_against_what_remained():
    slow = measurement(CANDIDATES[0], 2 * OPTIMUM)
    best = measurement(min(CANDIDATES, key=truth), OPTIMUM)
    trace = replay.Trace((slow, best), claims=((1, 0.9), (2, 0.05)))
    low, high = replay.stop_rule([replay.Run(SPACE, "x", 0, 2, trace)])
    assert low == {"claimed": 0.05, "remained": 0.0, "regret": 0.0, "count": 1}
    assert high == {"claimed": 0.9, "remained": 1.0, "regret": pytest.approx(1.0), "count": 1}


def test_our_search_claims_after_each_batch():
    trace = strategies.guided(strategies.prior_of([Prior(0.3)]))(SPACE, 40, 0)
    assert [count for count, _ in trace.claims] == [8, 16, 24, 32, 40]
    assert all(0.0 <= claim <= 1.0 for _, claim in trace.claims)


def test_the_p_score_of_random_search_is_about_zero_and_of_the_optimum_at_once_one():
    (row,) = replay.summary_rows(list(replay.replay([SPACE], {"r": strategies.random_search}, budget=50, seeds=200)))
    assert row["p_score"] == pytest.approx(0.0, abs=0.1)
    best = replay.Strategy(lambda *_: replay.Trace((min(RECORDS, key=lambda m: (m.status != "ok", m.latency_us)),)))
    (row,) = replay.summary_rows(replay.replay([SPACE], {"best": best}, budget=50, seeds=1))
    assert row["p_score"] == 1.0


def test_ties_are_counted_by_the_repeats():
    noisy = [
        dataclasses.replace(m, samples_us=(0.97 * m.latency_us, m.latency_us, 1.03 * m.latency_us))
        if m.status == "ok"
        else m
        for m in RECORDS
    ]
    space = replay.RecordedSpace(KERNEL, PROBLEM, DEVICE, tuple(noisy))
    (row,) = replay.summary_rows(replay.replay([space], {"r": strategies.random_search}, budget=5, seeds=1))
    assert row["tied_with_optimum"] == stats.tied_with_best([m.samples_us for m in noisy if m.status == "ok"]) == 1


def test_a_variant_that_was_not_recorded_is_refused():
    runner = replay.RecordedRunner(SPACE)
    assert np.isclose(runner.measure([DEFAULT])[0].latency_us, truth(DEFAULT))
    other = replay.RecordedRunner(replay.RecordedSpace(KERNEL, PROBLEM, DEVICE, tuple(RECORDS[:3])))
    with pytest.raises(UserError, match="was not recorded"):
        other.measure([CANDIDATES[-1]])


def test_what_others_measured_leaves_out_the_own_device_under_any_guise():
    renamed = dataclasses.replace(DEVICE, clock_mhz=1.0)  # the same name, another sheet
    seen = SPACE.others([*RECORDS, *on(SIBLING), *on(renamed)])
    assert {m.device for m in seen} == {SIBLING}
