"""Coverage of conformal intervals on data whose law is known."""

import dataclasses

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from test_search import DEVICE

from costmodel import conformal
from costmodel.conformal import Bands, conformal_quantile
from costmodel.records import UserError


def within_binomial(covered, expected):
    """Whether a share of hits is within 4 standard errors of what is expected."""
    return abs(np.mean(covered) - expected) < 4 * (expected * (1 - expected) / len(covered)) ** 0.5


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=60), st.sampled_from([0.05, 0.1, 0.2, 0.25, 0.5]))
def test_with_equal_weights_it_is_an_order_statistic(values, alpha):
    place = int(np.ceil((len(values) + 1) * (1 - alpha) - 1e-9))
    expected = sorted(values)[place - 1] if place <= len(values) else np.inf
    assert conformal_quantile(values, alpha) == expected
    assert np.isinf(expected) == (len(values) < conformal.least_spaces(alpha))


@pytest.mark.parametrize(("alpha", "count"), [(0.1, 9), (0.05, 19), (0.2, 4), (0.5, 1)])
def test_the_least_number_of_spaces(alpha, count):
    assert conformal.least_spaces(alpha) == count
    assert np.isinf(conformal_quantile([1.0] * (count - 1), alpha))
    assert conformal_quantile([1.0] * count, alpha) == 1.0


def test_a_weight_is_worth_as_many_rows():
    values, counts = [3.0, 1.0, 2.0, 5.0, 4.0], [3, 7, 2, 4, 6]
    repeated = [v for v, n in zip(values, counts, strict=True) for _ in range(n)]
    for alpha in (0.05, 0.1, 0.3, 0.6):
        assert conformal_quantile(values, alpha, weights=counts) == conformal_quantile(repeated, alpha)
    assert np.isinf(conformal_quantile(values, 0.1, weights=np.full(5, 1e-3)))
    assert conformal_quantile(values, 0.1, weights=np.full(5, 1e-3), own_weight=0.0) == 5.0


def heteroscedastic(rng, n):
    """y ~ N(0, sd(x)) with x uniform: sd from 0.2 to 2.2, and the bands of a model that takes it for 1 everywhere."""
    x = rng.random(n)
    sd = 0.2 + 2 * x
    return x, sd, sd * rng.standard_normal(n)


@pytest.mark.parametrize("kind", ["split", "cqr", "stretch"])
def test_coverage_is_exact_on_exchangeable_rows(kind):
    """Over 4,000 draws of 25 calibration rows and one new one, whatever the model claims; at most 1 / 26 above."""
    rng, covered = np.random.default_rng(1), []
    for _ in range(4000):
        x, _, y = heteroscedastic(rng, 26)
        bands = Bands(np.full(26, -0.3) + 0.1 * x, np.full(26, 0.1), np.full(26, 0.4) + x)
        amount = conformal_quantile(conformal.scores(kind, bands[:25], y[:25]), 0.1)
        low, high = conformal.widened(kind, bands[25:], amount)
        covered.append(low[0] <= y[25] <= high[0])
    assert within_binomial(covered, np.ceil(26 * 0.9) / 26)


@given(st.integers(0, 1000), st.sampled_from(["split", "cqr", "stretch"]))
def test_an_interval_that_gives_a_rows_score_just_holds_it(seed, kind):
    rng = np.random.default_rng(seed)
    low, middle, high = np.sort(rng.standard_normal((3, 1)), axis=0)
    bands, true = Bands(low, middle, high), middle + 3 * rng.standard_normal(1)
    score = float(conformal.scores(kind, bands, true)[0])
    for more, inside in ((1e-6, True), (-1e-6, False)):
        lower, upper = conformal.widened(kind, bands, score + more)
        if kind == "cqr" and not inside and score < 0:
            continue  # it is not made to turn inside out
        assert bool(lower[0] <= true[0] <= upper[0]) == inside


def test_cqr_and_stretch_follow_the_noise_where_split_does_not():
    """With the true 25 % and 75 % quantiles of N(0, sd(x)) told as a 90 % interval."""
    rng = np.random.default_rng(2)
    widths, covered = {}, {}
    _, sd, y = heteroscedastic(rng, 8000)
    bands = Bands(sd * scipy.stats.norm.ppf(0.25), np.zeros(8000), sd * scipy.stats.norm.ppf(0.75))
    fit, new = np.arange(4000), np.arange(4000, 8000)
    for kind in ("split", "cqr", "stretch"):
        amount = conformal_quantile(conformal.scores(kind, bands[fit], y[fit]), 0.1)
        low, high = conformal.widened(kind, bands[new], amount)
        widths[kind] = [float((high - low)[mine].mean()) for mine in (sd[new] < 0.7, sd[new] > 1.7)]
        covered[kind] = [((low <= y[new]) & (y[new] <= high))[mine].mean() for mine in (sd[new] < 0.7, sd[new] > 1.7)]
        assert within_binomial((low <= y[new]) & (y[new] <= high), 0.9)
    assert widths["split"][0] == pytest.approx(widths["split"][1])
    assert widths["cqr"][1] > 1.4 * widths["cqr"][0]
    assert widths["stretch"][1] / widths["stretch"][0] == pytest.approx(1.95 / 0.45, rel=0.03)  # the noise's own ratio
    assert covered["split"][0] > 0.99
    assert covered["split"][1] < 0.82
    assert covered["stretch"] == pytest.approx([0.9, 0.9], abs=0.025)


def test_weights_repair_a_known_shift():
    """Calibrated where x is uniform, asked where its density is 3 x^2 and the noise grows with x."""
    rng = np.random.default_rng(3)
    plain, weighted = [], []
    for _ in range(1500):
        x, _, y = heteroscedastic(rng, 200)
        own = rng.random() ** (1 / 3)
        true = (0.2 + 2 * own) * rng.standard_normal()
        plain.append(abs(true) <= conformal_quantile(np.abs(y), 0.1))
        weighted.append(abs(true) <= conformal_quantile(np.abs(y), 0.1, weights=3 * x**2, own_weight=3 * own**2))
    assert np.mean(plain) < 0.83
    assert 0.9 - 4 * 0.3 / 1500**0.5 < np.mean(weighted) < 0.93


def test_rows_of_a_space_count_as_one_space():
    """30 spaces of 2 to 60 rows that share most of their error: rows as if exchangeable promise too much."""
    rng, by_row, by_space = np.random.default_rng(4), [], []
    for _ in range(2000):
        sizes = rng.integers(2, 60, 12)
        spaces = np.repeat(np.arange(12), sizes)
        spreads = np.where(sizes > 30, 0.3, 2.0)  # the large spaces are the easy ones
        scores = np.abs((spreads * rng.standard_normal(12))[spaces] + 0.05 * rng.standard_normal(len(spaces)))
        own = abs(rng.choice([0.3, 2.0], p=[29 / 58, 29 / 58]) * rng.standard_normal() + 0.05 * rng.standard_normal())
        by_row.append(own <= conformal_quantile(scores, 0.1))
        by_space.append(own <= conformal_quantile(scores, 0.1, weights=conformal.space_weights(spaces.tolist())))
    assert np.mean(by_row) < 0.82
    assert np.mean(by_space) > 0.9 - 4 * 0.3 / 2000**0.5


def test_space_weights_sum_to_one_in_each_space():
    weights = conformal.space_weights(["a", "b", "a", "a", "b"])
    assert weights == pytest.approx([1 / 3, 1 / 2, 1 / 3, 1 / 3, 1 / 2])


def test_near_devices_weigh_more():
    twice = dataclasses.replace(
        DEVICE, name="twice", num_units=4, clock_mhz=4000.0, peak_tflops=(("f32", 0.2),), peak_gb_per_s=40.0,
        l2_bytes=2 << 20,
    )  # fmt: skip
    assert conformal.device_weight(DEVICE, DEVICE) == 1.0
    assert conformal.device_weight(DEVICE, twice) == pytest.approx(np.exp(-0.5))
    assert conformal.device_weight(twice, DEVICE) == conformal.device_weight(DEVICE, twice)
    assert conformal.device_weight(DEVICE, twice, bandwidth=2.0) == pytest.approx(np.exp(-1 / 8))
    blank = dataclasses.replace(DEVICE, num_units=0, clock_mhz=0.0, peak_tflops=(), peak_gb_per_s=0.0, l2_bytes=0)
    assert conformal.device_weight(DEVICE, blank) == 0.0


@pytest.mark.parametrize(
    ("ask", "match"),
    [
        (lambda: conformal_quantile([1.0], 0.0), "alpha=0.0"),
        (lambda: conformal_quantile([1.0, 2.0], 0.1, weights=[1.0]), r"shape \(2,\) and weights of shape \(1,\)"),
        (lambda: conformal_quantile([float("nan")], 0.1), "no score NaN"),
        (lambda: conformal.scores("best", Bands(*np.zeros((3, 1))), np.zeros(1)), "split, cqr, stretch"),
        (lambda: conformal.widened("best", Bands(*np.zeros((3, 1))), 1.0), "split, cqr, stretch"),
    ],
)
def test_mistakes_are_named(ask, match):
    with pytest.raises(UserError, match=match):
        ask()
