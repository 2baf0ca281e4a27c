"""Claims read off predictions, ensembles of them, and whether they came true."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from test_records import distributions, told

from costmodel import uncertainty
from costmodel.baselines import log_normal
from costmodel.records import UserError


@given(distributions, st.floats(0.0, 1.0))
def test_log2_quantiles_are_those_of_the_prediction(pairs, q):
    prediction = told(pairs)
    ((found,),) = uncertainty.log2_quantiles([prediction], [q])
    assert 2**found == pytest.approx(prediction.quantile_us(q), rel=1e-6)


def test_bands_are_the_claimed_interval():
    bands = uncertainty.bands([log_normal(3.0, 0.5), log_normal(7.0, 2.0)], alpha=0.1)
    assert bands.middle == pytest.approx([3.0, 7.0], abs=0.02)
    assert bands.high - bands.low == pytest.approx([1.645, 4 * 1.645], rel=0.05)


def test_averaged_quantiles_of_normal_laws_are_a_normal_law():
    """N(3, 0.5) and N(7, 1.5) average to N(5, 1); their mixture would have a standard deviation of 2.3."""
    (both,) = uncertainty.averaged_quantiles([[log_normal(3.0, 0.5, p_fail=0.2)], [log_normal(7.0, 1.5)]])
    levels = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
    found = np.log2([both.quantile_us(q) for q in levels])
    assert found == pytest.approx(5.0 + scipy.stats.norm.ppf(levels), abs=0.03)
    assert both.p_fail == pytest.approx(0.1)
    assert sum(both.weights) == pytest.approx(1.0)


@given(st.lists(st.tuples(distributions, distributions), min_size=1, max_size=4))
def test_averaged_quantiles_never_cross(pairs):
    members = [[told(first) for first, _ in pairs], [told(second) for _, second in pairs]]
    for prediction in uncertainty.averaged_quantiles(members):
        assert list(prediction.support_us) == sorted(prediction.support_us)


def test_members_must_answer_the_same_questions():
    with pytest.raises(UserError, match=r"\[1, 0\] rows"):
        uncertainty.averaged_quantiles([[log_normal(0.0, 1.0)], []])


def test_only_a_space_of_unknown_scale_is_moved_to_its_best():
    known, unknown = log_normal(1.0, 1.0), log_normal(1.0, 1.0, scale_known=False)
    true, middle = [3.0, 4.0, 7.0, 8.0, 10.0], [1.0] * 5
    moved = uncertainty.at_best_scale(
        true, middle, [known, known, unknown, unknown, unknown], ["a", "a", "b", "b", "b"]
    )
    assert moved.tolist() == [3.0, 4.0, 0.0, 1.0, 3.0]
    assert uncertainty.at_best_scale([], [], [], []).size == 0


@given(st.integers(0, 10_000))
def test_rearranging_brings_crossing_quantiles_nearer_to_the_true_ones(seed):
    rng = np.random.default_rng(seed)
    true = np.sort(rng.standard_normal((7, 20)), axis=0)
    crossing = true + rng.standard_normal((7, 20))
    mended = uncertainty.rearranged(crossing)
    assert (np.diff(mended, axis=0) >= 0).all()
    assert (np.abs(mended - true).sum(0) <= np.abs(crossing - true).sum(0) + 1e-9).all()


@pytest.mark.parametrize(("claimed_sd", "outside"), [(1.0, 0.1), (0.5, 0.41), (2.0, 0.001)])
def test_reliability_sees_intervals_that_are_right_too_narrow_and_too_wide(claimed_sd, outside):
    true_us = 2.0 ** np.random.default_rng(5).normal(4.0, 1.0, 3000)
    ranks = uncertainty.claimed_ranks([log_normal(4.0, claimed_sd)] * len(true_us), true_us)
    table = dict(uncertainty.reliability_by_level(ranks))
    assert 1 - (table[0.95] - table[0.05]) == pytest.approx(outside, abs=0.02)
    assert table[0.5] == pytest.approx(0.5, abs=0.03)
    shape = uncertainty.rank_histogram(ranks)
    assert shape.sum() == pytest.approx(1.0)
    edge, middle = shape[[0, -1]].mean(), shape[4:6].mean()
    assert edge == pytest.approx(middle, abs=0.03) if claimed_sd == 1.0 else (edge > middle) == (claimed_sd < 1.0)


def test_no_ranks_are_a_mistake():
    with pytest.raises(UserError, match="no ranks"):
        uncertainty.reliability_by_level([])
