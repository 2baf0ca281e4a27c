"""What a Prediction says of itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel.records import Prediction

distributions = st.lists(
    st.tuples(st.floats(0.1, 1e6), st.floats(1e-3, 1.0)), min_size=1, max_size=12, unique_by=lambda pair: pair[0]
)


@given(distributions, st.floats(0.01, 0.99))
def test_probability_below_inverts_the_quantile(pairs, q):
    pairs = sorted(pairs)
    total = sum(weight for _, weight in pairs)
    told = Prediction(tuple(us for us, _ in pairs), tuple(weight / total for _, weight in pairs))
    if len(pairs) > 1:
        assert told.probability_below(told.quantile_us(q)) == pytest.approx(q, abs=1e-6)
    assert told.probability_below(pairs[0][0] / 2) == 0.0
    assert told.probability_below(pairs[-1][0] * 2) == pytest.approx(1.0)
