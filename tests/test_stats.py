"""Statistics: numbers known from elsewhere, and the laws that hold for any data."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st

from costmodel import stats
from costmodel.records import UserError

latencies = st.lists(st.floats(0.1, 1e6), min_size=2, max_size=40)
pairs = st.integers(2, 30).flatmap(
    lambda size: st.tuples(*[st.lists(st.floats(0.1, 1e6), min_size=size, max_size=size)] * 2)
)


# ---- known numbers ----


def test_location() -> None:
    assert stats.median([3, 1, 2]) == 2
    assert stats.median([4, 1, 2, 3]) == 2.5
    assert stats.geometric_mean([1, 10, 100]) == pytest.approx(10)


def test_rank_correlations_of_a_textbook_example() -> None:
    # IQ and hours of television a week: rho = -29/165 (Wikipedia, Spearman's rank correlation coefficient)
    iq = [106, 100, 86, 101, 99, 103, 97, 113, 112, 110]
    hours = [7, 27, 2, 50, 28, 29, 20, 12, 6, 17]
    assert stats.spearman(iq, hours) == pytest.approx(-29 / 165)
    assert stats.kendall([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(4 / 6)
    assert stats.kendall([1, 1, 2, 3], [1, 2, 3, 4]) == pytest.approx(5 / math.sqrt(5 * 6))
    assert math.isnan(stats.spearman([1, 1, 1], [1, 2, 3]))
    assert math.isnan(stats.kendall([1, 2, 3], [5, 5, 5]))


def test_errors_by_hand() -> None:
    true, predicted = [10, 20, 40, 100], [11, 10, 40, 300]
    assert stats.mape(true, predicted) == pytest.approx((0.1 + 0.5 + 0 + 2) / 4)
    assert stats.median_ape(true, predicted) == pytest.approx(0.3)
    assert stats.mape_scaled(true, [5, 10, 20, 50]) == pytest.approx(0)
    assert stats.mape_scaled([1, 2, 4], [2, 4, 16]) == pytest.approx(1 / 3)


def test_choice_by_hand() -> None:
    true, predicted = [4, 2, 8, 1], [1, 2, 3, 4]
    assert [stats.top_k_slowdown(true, predicted, k) for k in (1, 2, 3, 4, 9)] == [4, 2, 2, 1, 1]
    assert stats.regret(true, 1) == 1
    assert stats.regret(true, 3) == 0
    assert stats.coverage([0, 0, 5], [1, 1, 6], [1, 2, 5]) == pytest.approx(2 / 3)


def test_searches_by_hand() -> None:
    trace = [9, math.nan, 5, 4.1, 4]
    assert stats.evaluations_to(trace, 4, within=0.05) == 4
    assert stats.evaluations_to(trace, 4, within=0) == 5
    assert stats.evaluations_to(trace, 1) is None
    assert stats.expected_random_evaluations([1, 1.04, 2, 3], within=0.05) == pytest.approx(5 / 3)
    assert stats.expected_random_evaluations([1, 1.04, 2, 3], within=0.05, failures=3) == pytest.approx(8 / 3)


def test_sign_flip_of_darwins_maize() -> None:
    # Fisher, The Design of Experiments (1935): 15 pairs, 863 of 32768 patterns a side at least as extreme, 1726 in all
    differences = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
    assert stats.sign_flip_p(differences) == pytest.approx(1726 / 32768)


def test_sign_flip_beyond_exact_pairs_agrees_with_the_normal_law() -> None:
    rng = np.random.default_rng(3)
    differences = rng.standard_normal(60) + 0.25
    z = differences.sum() / np.sqrt((differences**2).sum())
    assert stats.sign_flip_p(differences, seed=1) == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), abs=0.01)
    assert stats.sign_flip_p(differences, seed=1) == stats.sign_flip_p(differences, seed=1)


def test_bootstrap_interval_of_a_mean_is_near_the_normal_one() -> None:
    values = np.random.default_rng(0).standard_normal(400)
    low, high = stats.bootstrap_interval(values, np.mean, seed=5)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)
    assert stats.bootstrap_interval(values, np.mean, seed=5) == (low, high)
    assert stats.bootstrap_interval(values, np.mean, seed=6) != (low, high)
    narrow = stats.bootstrap_interval(values, np.mean, confidence=0.5, seed=5)
    assert low < narrow[0] < narrow[1] < high


# ---- laws ----


@given(pairs, st.floats(0.01, 100))
def test_rank_measures_ignore_monotone_changes(pair: tuple[list[float], list[float]], scale: float) -> None:
    true, predicted = pair
    assume(len(set(true)) > 1 and len(set(predicted)) > 1)
    doubled = [value * 2.0 for value in predicted]
    assert stats.spearman(true, doubled) == pytest.approx(stats.spearman(true, predicted))
    assert stats.kendall(true, doubled) == pytest.approx(stats.kendall(true, predicted))
    opposite = [-value for value in predicted]
    assert stats.spearman(true, opposite) == pytest.approx(-stats.spearman(true, predicted))
    assert stats.mape_scaled(true, [scale * value for value in predicted]) == pytest.approx(
        stats.mape_scaled(true, predicted), rel=1e-6, abs=1e-9
    )


@given(pairs, st.integers(1, 30))
def test_top_k_never_worsens_with_k(pair: tuple[list[float], list[float]], k: int) -> None:
    true, predicted = pair
    slowdown = stats.top_k_slowdown(true, predicted, k)
    assert 1 <= stats.top_k_slowdown(true, predicted, k + 1) <= slowdown * (1 + 1e-12)
    assert stats.top_k_slowdown(true, true, k) == 1


@given(st.lists(st.integers(1, 9), min_size=2, max_size=7), st.data())
def test_tied_predictions_are_broken_at_random(true: list[int], data: st.DataObject) -> None:
    """Against all ways of choosing: a constant prediction is worth a random choice of k."""
    k = data.draw(st.integers(1, len(true)))
    chosen = [min(choice) for choice in itertools.combinations(true, k)]
    assert stats.top_k_slowdown(true, [5.0] * len(true), k) == pytest.approx(np.mean(chosen) / min(true))
    halves = [1.0] + [2.0] * (len(true) - 1)
    if k > 1:
        chosen = [min(true[0], *choice) for choice in itertools.combinations(true[1:], k - 1)]
        assert stats.top_k_slowdown(true, halves, k) == pytest.approx(np.mean(chosen) / min(true))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_expected_random_search_against_all_orders(values: list[int]) -> None:
    taken = [stats.evaluations_to(order, min(values), within=0.3) for order in itertools.permutations(values)]
    assert stats.expected_random_evaluations(values, within=0.3) == pytest.approx(np.mean(taken))


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=9))
def test_sign_flip_against_all_patterns(differences: list[int]) -> None:
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    p = stats.sign_flip_p(differences)
    assert p == pytest.approx(np.mean([total >= abs(sum(differences)) for total in sums]))
    assert p == stats.sign_flip_p([-value for value in differences])


@given(latencies)
def test_geometric_mean_lies_between(values: list[float]) -> None:
    assert min(values) * (1 - 1e-9) <= stats.geometric_mean(values) <= np.mean(values) * (1 + 1e-9)


@given(latencies, st.integers(0, 5))
def test_bootstrap_interval_stays_within_the_data(values: list[float], seed: int) -> None:
    low, high = stats.bootstrap_interval(values, resamples=50, seed=seed)
    assert min(values) <= low <= high <= max(values)


# ---- mistakes ----


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: stats.median([]), "non-empty"),
        (lambda: stats.median([1, math.nan]), "not finite"),
        (lambda: stats.mape([1, 2], [1]), "equally many"),
        (lambda: stats.mape([0, 2], [1, 1]), "positive latencies"),
        (lambda: stats.top_k_slowdown([1, 2], [1, 2], 0), "at least 1"),
        (lambda: stats.regret([1, 2], 2), "0 to 1"),
        (lambda: stats.bootstrap_interval([1, 2], confidence=95, seed=0), "between 0 and 1"),
        (lambda: stats.geometric_mean([1, -1]), "positive"),
    ],
)
def test_mistakes_are_named(call, says: str) -> None:
    with pytest.raises(UserError, match=says):
        call()


@given(
    st.lists(st.floats(1.0, 100.0), min_size=1, max_size=7),
    st.integers(0, 2),
)
def test_expected_random_best_is_the_mean_over_all_orders(latencies, failures):
    worst = max(latencies)
    drawn = latencies + [worst] * failures  # a failure alone counts as the slowest
    told = stats.expected_random_best(latencies, len(drawn), failures=failures)
    for count in range(1, len(drawn) + 1):
        every = [min(chosen) for chosen in itertools.combinations(drawn, count)]
        assert told[count - 1] == pytest.approx(np.mean(every))


def test_p_score_is_zero_for_random_search_and_one_for_the_optimum_at_once():
    latencies = np.linspace(1.0, 5.0, 200)
    random = stats.expected_random_best(latencies, 30)
    score, covered = stats.p_score(random[None], latencies)
    assert score == pytest.approx(0.0, abs=1e-12)
    # within 1 + 0.05 (3 - 1) = 1.1 lie the 5 fastest: (200 - 5) / 6 evaluations, more than the 30 that were run
    assert covered == 30
    assert stats.p_score(np.full((3, 90), 1.0), latencies) == (1.0, 33)
    assert stats.p_score(np.full((3, 90), np.inf), latencies)[0] < 0


def test_ties_need_repeats_that_overlap():
    samples = [[1.0, 1.2, 1.4], [1.1, 1.3, 1.5], [2.0, 2.1, 2.2], [1.21]]
    assert stats.tied_with_best(samples) == 3
    assert stats.tied_with_best([[1.0], [1.0001], [1.0]]) == 2
    with pytest.raises(UserError):
        stats.tied_with_best([])


def test_reliability_sets_claims_beside_what_came():
    claimed, came = [0.0, 0.1, 0.9, 1.0, 1.0], [0, 1, 1, 1, 0]
    low, high = stats.reliability(claimed, came)
    assert low == (pytest.approx(0.05), 0.5, 2)
    assert high == (pytest.approx(2.9 / 3), pytest.approx(2 / 3), 3)


def test_the_interval_of_a_median_may_end_at_never():
    assert stats.median_interval([3.0] * 5, seed=0) == (3.0, 3.0)
    low, high = stats.median_interval([1.0, 2.0, 3.0, np.inf, np.inf], seed=0)
    assert low == 1.0
    assert high == np.inf
    values = np.random.default_rng(0).normal(size=60)
    assert stats.median_interval(values, seed=1) == pytest.approx(stats.bootstrap_interval(values, seed=2), abs=0.1)
    with pytest.raises(UserError):
        stats.median_interval([1.0, np.nan], seed=0)


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=9))
def test_one_sided_sign_flip_against_all_patterns(differences: list[int]) -> None:
    patterns = itertools.product((-1, 1), repeat=len(differences))
    sums = [sum(s * d for s, d in zip(signs, differences, strict=True)) for signs in patterns]
    p = stats.sign_flip_p(differences, alternative="greater")
    assert p == pytest.approx(np.mean([total >= sum(differences) for total in sums]))


distinct = st.lists(st.floats(-10, 10).filter(lambda x: abs(x) > 1e-3), min_size=2, max_size=12, unique_by=abs)


@given(distinct)
def test_sign_flips_of_signed_ranks_are_wilcoxons_exact_test(differences: list[float]) -> None:
    ours = stats.sign_flip_p(stats.signed_ranks(differences), alternative="greater")
    assert ours == pytest.approx(scipy.stats.wilcoxon(differences, alternative="greater", method="exact").pvalue)


@given(distinct, st.sampled_from((0.02, 0.05, 0.2)))
def test_shift_bounds_are_where_the_signed_rank_test_begins_to_reject(differences: list[float], alpha: float) -> None:
    low, high = stats.shift_bounds(differences, alpha=alpha)
    estimate = float(np.median(stats.walsh_averages(differences)))
    assert low <= estimate <= high
    if 2.0 ** -len(differences) > alpha:
        assert (low, high) == (-math.inf, math.inf)
        return
    gaps = np.diff(stats.walsh_averages(differences))
    step = gaps[gaps > 1e-9].min(initial=1.0) / 4  # between two averages, where no rank is tied
    assume(step > 1e-6)
    for bound, sign in ((low, 1), (high, -1)):
        rejects = [
            stats.sign_flip_p(sign * stats.signed_ranks(np.array(differences) - bound + sign * way * step),
                              alternative="greater") <= alpha
            for way in (1, -1)
        ]  # fmt: skip
        assert rejects == [True, False]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(0.001, 0.5))
def test_holm_rejects_what_bonferroni_over_every_subset_rejects(p_values: list[float], alpha: float) -> None:
    """Closed testing: a hypothesis falls where every set of hypotheses that holds it falls."""
    adjusted = stats.holm(p_values)
    everything = range(len(p_values))
    subsets = [s for size in range(1, len(p_values) + 1) for s in itertools.combinations(everything, size)]
    for i, p in enumerate(adjusted):
        worst = max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in subsets if i in s)
        assert p == pytest.approx(worst)
        assert (p <= alpha) == (worst <= alpha) or p == pytest.approx(alpha)


# ---- order of what is apart ----


def test_kendall_counts_only_pairs_that_are_apart():
    true = [1.0, 1.05, 2.0, 4.0]
    assert stats.kendall_apart(true, [2.0, 1.0, 3.0, 4.0], apart=0.1) == 1.0  # the swapped pair is within noise
    assert stats.kendall_apart(true, [2.0, 1.0, 3.0, 4.0], apart=0.01) == pytest.approx(4 / 6)
    assert stats.kendall_apart(true, [1.0, 1.0, 1.0, 1.0], apart=0.1) == 0.0
    assert np.isnan(stats.kendall_apart([1.0, 1.01], [1.0, 2.0], apart=0.1))


def test_kendall_apart_is_kendall_where_all_are_apart():
    rng = np.random.default_rng(1)
    true, told = 2.0 ** rng.permutation(30), rng.normal(size=30)
    assert stats.kendall_apart(true, told, apart=0.1) == pytest.approx(stats.kendall(true, told))


# ---- abstaining ----


def test_risk_coverage_by_hand():
    covered, risk, area = stats.risk_coverage([4.0, 1.0, 3.0, 2.0], [40.0, 10.0, 30.0, 20.0])
    assert covered.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk.tolist() == [1.0, 1.5, 2.0, 2.5]
    assert area == pytest.approx(1.75)


def test_a_constant_score_gains_nothing_whatever_the_order():
    _, risk, area = stats.risk_coverage([4.0, 1.0, 3.0, 2.0], [7.0] * 4)
    assert risk == pytest.approx([2.5] * 4)
    assert area == pytest.approx(2.5)


def test_an_oracle_is_below_a_good_score_and_that_below_a_random_one():
    rng = np.random.default_rng(6)
    spread = rng.uniform(0.1, 2.0, 2000)
    errors = np.abs(spread * rng.standard_normal(2000))
    scores = {"oracle": errors, "spread": spread, "random": rng.random(2000), "opposite": -errors}
    areas = [stats.risk_coverage(errors, score)[2] for score in scores.values()]
    assert areas == sorted(areas)
    assert areas[1] < 0.75 * areas[2]
    assert areas[2] == pytest.approx(errors.mean(), rel=0.1)
