"""What a Prediction says of itself."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from costmodel.baselines import log_normal
from costmodel.records import Prediction, UserError

distributions = st.lists(
    st.tuples(st.floats(0.1, 1e6), st.floats(1e-3, 1.0)), min_size=1, max_size=12, unique_by=lambda pair: pair[0]
)


def told(pairs, **fields):
    """A Prediction of latencies and weights."""
    pairs = sorted(pairs)
    total = sum(weight for _, weight in pairs)
    return Prediction(tuple(us for us, _ in pairs), tuple(weight / total for _, weight in pairs), **fields)


@given(distributions, st.floats(0.01, 0.99))
def test_probability_below_inverts_the_quantile(pairs, q):
    one = told(pairs)
    if len(pairs) > 1:
        assert one.probability_below(one.quantile_us(q)) == pytest.approx(q, abs=1e-6)
    assert one.probability_below(min(pairs)[0] / 2) == 0.0
    assert one.probability_below(max(pairs)[0] * 2) == pytest.approx(1.0)


# ---- which of two is faster ----


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([(1, 1)], [(2, 1)], 1.0),
        ([(2, 1)], [(1, 1)], 0.0),
        ([(1, 1)], [(1, 1)], 0.5),  # a tie
        ([(1, 1), (2, 1)], [(1, 1), (2, 1)], 0.5),
        ([(1, 1), (2, 1)], [(1.5, 1)], 0.5),
        ([(1, 1), (2, 3)], [(1.75, 1)], 0.25 + 0.75 / 2),  # cells 1 to 1.5 and 1.5 to 2, each evenly
        ([(1, 1), (2, 1)], [(1.5, 1), (2.5, 1)], 1 - 1 / 8),  # uniform on 1..2 and 1.5..2.5
        ([(1, 1), (3, 1)], [(2, 1), (4, 3)], 1 - 1 / 16),  # both lie in 2..3 with 1/2 * 1/4, and then it is even
    ],
)
def test_the_faster_of_two_by_hand(first, second, expected):
    assert told(first).probability_faster_than(told(second)) == pytest.approx(expected, abs=1e-12)


@given(distributions, distributions)
def test_independent_latencies_against_monte_carlo(first, second):
    a, b = told(first), told(second)
    uniforms = (np.random.default_rng(0).random((2, 400))).tolist()
    x, y = ([p.quantile_us(q) for q in mine] for p, mine in zip((a, b), uniforms, strict=True))
    every = np.array(x)[:, None] - np.array(y)
    drawn = (every < 0).mean() + (every == 0).mean() / 2
    assert a.probability_faster_than(b) == pytest.approx(drawn, abs=0.1)  # 4 standard errors of 400
    assert a.probability_faster_than(b) + b.probability_faster_than(a) == pytest.approx(1.0)


@pytest.mark.parametrize("correlation", [-0.9, 0.0, 0.5, 0.95])
def test_normal_laws_under_a_copula(correlation):
    """log2 latencies N(3, 1) and N(3.5, 0.5): P(A < B) = Phi(0.5 / sd of the difference)."""
    spread = math.sqrt(1 + 0.25 - 2 * correlation * 0.5)
    found = log_normal(3.0, 1.0).probability_faster_than(log_normal(3.5, 0.5), correlation=correlation)
    assert found == pytest.approx(scipy.stats.norm.cdf(0.5 / spread), abs=0.01)


@given(distributions, distributions, st.floats(-0.99, 0.99))
def test_one_of_two_is_faster_at_any_correlation(first, second, correlation):
    a, b = told(first), told(second)
    forth = a.probability_faster_than(b, correlation=correlation)
    back = b.probability_faster_than(a, correlation=correlation)
    assert forth + back == pytest.approx(1.0, abs=0.01)


def test_what_fails_is_never_faster():
    fast, slow = [(1, 1)], [(2, 1)]
    assert told(fast, p_fail=0.3).probability_faster_than(told(slow)) == pytest.approx(0.7)
    assert told(slow).probability_faster_than(told(fast, p_fail=0.3)) == pytest.approx(0.3)
    both = told(fast, p_fail=1.0), told(slow, p_fail=1.0)
    assert both[0].probability_faster_than(both[1]) == both[1].probability_faster_than(both[0]) == 0.0
    with pytest.raises(UserError, match="correlation=1"):
        both[0].probability_faster_than(both[1], correlation=1)


def test_when_to_abstain():
    sure = log_normal(3.0, 0.5)
    assert sure.log2_width == pytest.approx(2 * 1.645 * 0.5, rel=0.02)
    assert not sure.abstains()
    assert sure.abstains(max_factor=3.0)  # its interval is 2**1.645 = 3.1 wide
    assert log_normal(3.0, 1.5).abstains()
    assert log_normal(3.0, 0.5, scale_known=False).abstains()
    assert Prediction(sure.support_us, sure.weights, trust=False).abstains()
