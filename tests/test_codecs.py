"""Number codecs: tables of (value, tokens, value'), and the laws that every codec keeps."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel.codecs.digits import IEEE, P10, FixedPoint, Normalized
from costmodel.codecs.grammar import NumberCodec
from costmodel.codecs.grids import LinearGrid, LogGrid, QuantileGrid
from costmodel.codecs.repeated import Repeated
from costmodel.records import UserError


def words(codec: NumberCodec, value: float) -> str:
    return " ".join(codec.vocabulary[i] for i in codec.encode(value))


@pytest.mark.parametrize(
    ("value", "tokens", "back"),
    [
        (0.0, "+ 0 0 0 0 E0", 0.0),
        (1.0, "+ 1 0 0 0 E-3", 1.0),
        (-1.9999, "- 2 0 0 0 E-3", -2.0),  # rounds up through the carry, where truncation would give 1.999
        (1.9994, "+ 1 9 9 9 E-3", 1.999),
        (1234.5, "+ 1 2 3 4 E0", 1234.0),  # an exact tie goes to the even digit
        (1235.5, "+ 1 2 3 6 E0", 1236.0),
        (999.95, "+ 1 0 0 0 E0", 1000.0),  # the double is a little above the tie
        (1e-7, "+ 1 0 0 0 E-10", 1e-7),
        (9.9994e-8, "+ 0 0 0 0 E0", 0.0),  # below the smallest: 0
        (9.9996e-8, "+ 1 0 0 0 E-10", 1e-7),  # rounds into the range
        (-1e-30, "+ 0 0 0 0 E0", 0.0),
        (5e-324, "+ 0 0 0 0 E0", 0.0),
        (9.999e13, "+ 9 9 9 9 E10", 9.999e13),
        (9.9996e13, "+ 9 9 9 9 E10", 9.999e13),  # above the largest: the largest
        (-1.7e308, "- 9 9 9 9 E10", -9.999e13),
    ],
)
def test_p10_table(value: float, tokens: str, back: float) -> None:
    codec = P10()
    assert words(codec, value) == tokens
    assert codec.decode(codec.encode(value)) == back
    assert math.copysign(1, codec.decode(codec.encode(value))) == math.copysign(1, back)


@pytest.mark.parametrize(
    ("value", "bin_", "back"),
    [
        (-6.0, 0, -6.0 + 10 / 256),
        (0.0, 76, -6.0 + 76.5 * 20 / 256),
        (13.9999, 255, 14.0 - 10 / 256),
        (14.0, 255, 14.0 - 10 / 256),
        (-60.0, 0, -6.0 + 10 / 256),
        (60.0, 255, 14.0 - 10 / 256),
    ],
)
def test_log_grid_table(value: float, bin_: int, back: float) -> None:
    grid = LogGrid()
    assert grid.encode(value) == [bin_]
    assert grid.decode([bin_]) == pytest.approx(back, abs=1e-12)
    assert grid.clips(value) == (abs(value) == 60.0)


@given(st.floats(-6.0, 14.0))
def test_log_grid_is_within_half_a_bin(value: float) -> None:
    grid = LogGrid()
    (token,) = grid.encode(value)
    assert abs(grid.decode([token]) - value) <= grid.width / 2 * (1 + 1e-9)
    assert grid.edges[token] - 1e-9 <= value <= grid.edges[token + 1] + 1e-9


@given(st.floats(1e-7, 9.999e13), st.booleans(), st.integers(1, 7))
def test_p10_is_within_half_a_unit_of_the_last_digit(magnitude: float, negative: bool, digits: int) -> None:
    codec = P10(mantissa_digits=digits, min_exponent=-20)
    value = -magnitude if negative else magnitude
    largest = (10**digits - 1) * 1e10
    if magnitude > largest:
        assert codec.decode(codec.encode(value)) == math.copysign(largest, value)
        return
    unit = 10.0 ** (math.floor(math.log10(magnitude)) - digits + 1)
    assert abs(codec.decode(codec.encode(value)) - value) <= unit / 2 * (1 + 1e-9)


def strings(codec: NumberCodec) -> dict[tuple[int, ...], float]:
    """Every string the grammar allows, with its probability if each step chooses evenly among the allowed tokens."""
    partial = {(): 1.0}
    for _ in range(codec.num_tokens):
        partial = {
            (*prefix, token): weight / len(allowed)
            for prefix, weight in partial.items()
            for allowed in [codec.allowed_next(prefix)]
            for token in allowed
        }
    return partial


BOTH = ("failed", "unmeasured")
SMALL = [
    P10(mantissa_digits=2, min_exponent=-1, max_exponent=2),
    P10(mantissa_digits=1),
    P10(mantissa_digits=2, min_exponent=-1, max_exponent=1, layout="merged"),
    P10(mantissa_digits=2, min_exponent=-1, max_exponent=1, layout="exponent_first", specials=BOTH),
    P10(mantissa_digits=1, layout="exponent_first"),
    IEEE(base=3, exponent_digits=1, mantissa_digits=2),
    IEEE(base=2, exponent_digits=2, mantissa_digits=1, specials=BOTH),
    Normalized(low=-1.0, high=5.0, base=3, digits=3),
    FixedPoint(integer_digits=1, fraction_digits=1, base=3),
    FixedPoint(integer_digits=2, fraction_digits=0, base=2, specials=BOTH),
    LogGrid(bins=7),
    LinearGrid(low=0.0, high=3.0, bins=5, specials=BOTH),
    QuantileGrid(edges=[0.0, 1.0, 4.0]),
]
DEFAULTS = [
    P10(), P10(layout="merged", mantissa_digits=3), P10(layout="exponent_first"), IEEE(),
    Normalized(low=-6.0, high=14.0), FixedPoint(), LogGrid(), LinearGrid(low=0.0, high=1.0),
    Repeated(P10(mantissa_digits=2), times=3),
]  # fmt: skip


@pytest.mark.parametrize("codec", SMALL)
def test_probabilities_sum_to_one_and_each_string_is_the_only_one_of_its_value(codec: NumberCodec) -> None:
    table = strings(codec)
    assert sum(table.values()) == pytest.approx(1.0, abs=1e-12)
    failures = [ids for ids in table if math.isnan(codec.decode(ids))]
    assert failures == [(token,) * codec.num_tokens for token in codec.specials.values()]
    assert [codec.special(ids) for ids in failures] == list(codec.specials)
    for ids in table:
        assert codec.allowed_next(ids) == ()
        if ids not in failures:
            assert tuple(codec.encode(codec.decode(ids))) == ids


@pytest.mark.parametrize("codec", SMALL)
def test_no_other_string_decodes(codec: NumberCodec) -> None:
    legal = strings(codec)
    vocabulary = range(len(codec.vocabulary))
    for ids in itertools.islice(itertools.product(vocabulary, repeat=codec.num_tokens), 20000):
        if ids not in legal:
            with pytest.raises(ValueError, match="does not allow"):
                codec.decode(ids)
    for short in ([], list(next(iter(legal)))[:-1], [-1], [len(codec.vocabulary)]):
        with pytest.raises(ValueError, match=r"expected|does not allow"):
            codec.decode(short)


@pytest.mark.parametrize("codec", [*DEFAULTS, *SMALL])
def test_the_mask_is_a_table_by_state(codec: NumberCodec) -> None:
    assert codec.mask.dtype == np.bool_
    assert codec.mask.shape == codec.next_state.shape == (len(codec.mask), len(codec.vocabulary))
    np.testing.assert_array_equal(codec.mask, codec.next_state >= 0)
    assert not codec.mask[-1].any()  # the end
    assert codec.mask[:-1].any(axis=1).all()  # no dead end before it
    assert set(codec.next_state[codec.mask].tolist()) == set(range(1, len(codec.mask)))  # every state is reached
    state, prefix = np.zeros(64, dtype=np.int64), [[] for _ in range(64)]
    chance = np.random.default_rng(0)
    for _ in range(codec.num_tokens):
        scores = np.where(codec.mask[state], chance.random((64, len(codec.vocabulary))), -1)
        token = scores.argmax(axis=1)
        for row, choice in zip(prefix, token, strict=True):
            assert choice in codec.allowed_next(row)
            row.append(int(choice))
        state = codec.next_state[state, token]
    assert (state == len(codec.mask) - 1).all()
    for row in prefix:
        codec.decode(row)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("codec", DEFAULTS)
def test_what_is_not_a_number_is_refused(codec: NumberCodec, value: float) -> None:
    with pytest.raises(ValueError, match="expected a finite number"):
        codec.encode(value)


@pytest.mark.parametrize("codec", [P10(), P10(layout="merged"), IEEE()])
def test_negative_zero_is_refused_where_zero_has_a_sign(codec: NumberCodec) -> None:
    with pytest.raises(ValueError, match=r"not -0\.0"):
        codec.encode(-0.0)


def test_negative_zero_is_zero_elsewhere() -> None:
    assert FixedPoint().encode(-0.0) == FixedPoint().encode(0.0) == FixedPoint().encode(-0.001)
    assert LogGrid().encode(-0.0) == LogGrid().encode(0.0)


@pytest.mark.parametrize("codec", DEFAULTS)
def test_a_failure_is_one_string(codec: NumberCodec) -> None:
    ids = codec.encode_special("failed")
    assert len(ids) == codec.num_tokens
    assert math.isnan(codec.decode(ids))
    assert codec.vocabulary[codec.failed] == "<failed>"
    assert LogGrid(bins=256).failed == 256


@pytest.mark.parametrize("codec", DEFAULTS[:-1])
def test_samples_under_the_mask_all_parse_to_the_nearest_string(codec: NumberCodec) -> None:
    """500 uniform samples of the grammar: each is the canonical string of the value it decodes to."""
    chance = np.random.default_rng(1)
    for _ in range(500):
        ids: list[int] = []
        while allowed := codec.allowed_next(ids):
            ids.append(int(chance.choice(allowed)))
        if ids[0] != codec.failed:
            assert codec.encode(codec.decode(ids)) == ids


@pytest.mark.parametrize("fields", [{"mantissa_digits": 0}, {"min_exponent": 1}, {"max_exponent": -1}])
def test_impossible_p10(fields: dict[str, int]) -> None:
    with pytest.raises(UserError, match="expected at least one digit"):
        P10(**fields)


@pytest.mark.parametrize(
    ("layout", "value", "tokens", "back"),
    [
        ("merged", 0.0, "+ 000 E0", 0.0),
        ("merged", -12.3456, "- 123 E-1", -12.3),
        ("merged", 9.9961, "+ 100 E-1", 10.0),
        ("merged", 1e-320, "+ 000 E0", 0.0),  # subnormal
        ("merged", 1e300, "+ 999 E10", 999e10),
        ("exponent_first", 0.0, "+ E0 0 0 0", 0.0),
        ("exponent_first", -12.3456, "- E-1 1 2 3", -12.3),
        ("exponent_first", 123.0, "+ E0 1 2 3", 123.0),  # the exponent of zero, and not zero
        ("exponent_first", -1e300, "- E10 9 9 9", -999e10),
    ],
)
def test_p10_layouts_table(layout: str, value: float, tokens: str, back: float) -> None:
    codec = P10(mantissa_digits=3, layout=layout)
    assert words(codec, value) == tokens
    assert codec.decode(codec.encode(value)) == back


@pytest.mark.parametrize(
    ("options", "value", "tokens", "back"),
    [
        ({}, 0.0, "+ + 0 0 0 0 0", 0.0),
        ({}, 0.98765, "+ - 1 9 8 7 7", 0.9877),
        ({}, -9999.5, "- + 4 1 0 0 0", -10000.0),  # a tie, half to even, through the carry
        ({}, 9999.4999, "+ + 3 9 9 9 9", 9999.0),
        ({}, 1e-9, "+ - 9 1 0 0 0", 1e-9),
        ({}, 9.9996e-10, "+ - 9 1 0 0 0", 1e-9),  # rounds into the range
        ({}, 9.9994e-10, "+ + 0 0 0 0 0", 0.0),
        ({}, -5e-324, "+ + 0 0 0 0 0", 0.0),
        ({}, 1e10, "+ + 9 9 9 9 9", 9.999e9),
        ({}, -1.7e308, "- + 9 9 9 9 9", -9.999e9),
        ({"base": 2, "exponent_digits": 3, "mantissa_digits": 4}, 0.3, "+ - 0 1 0 1 0 1 0", 0.3125),
        ({"base": 2, "exponent_digits": 3, "mantissa_digits": 4}, 1.0, "+ + 0 0 0 1 0 0 0", 1.0),
        ({"base": 16, "exponent_digits": 1, "mantissa_digits": 2}, 255.0, "+ + 1 15 15", 255.0),
        ({"base": 10, "exponent_digits": 3, "mantissa_digits": 2}, 5e-324, "+ - 3 2 4 4 9", 4.9e-324),
    ],
)
def test_ieee_table(options: dict[str, int], value: float, tokens: str, back: float) -> None:
    codec = IEEE(**options)
    assert words(codec, value) == tokens
    assert codec.decode(codec.encode(value)) == pytest.approx(back, rel=1e-15)


@pytest.mark.parametrize(
    ("value", "tokens", "back"),
    [
        (0.0, "+ 0 0 0 0", 0.0),
        (3.14159, "+ 0 3 1 4", 3.14),
        (-0.125, "- 0 0 1 2", -0.12),  # a tie goes to the even digit
        (-0.004, "+ 0 0 0 0", 0.0),
        (99.999, "+ 9 9 9 9", 99.99),
        (-1e9, "- 9 9 9 9", -99.99),
    ],
)
def test_fixed_point_table(value: float, tokens: str, back: float) -> None:
    codec = FixedPoint()
    assert words(codec, value) == tokens
    assert codec.decode(codec.encode(value)) == back


@pytest.mark.parametrize(
    ("value", "tokens", "back"),
    [(0.0, "0 0 0", 0.5), (7.999, "1 1 1", 7.5), (8.0, "1 1 1", 7.5), (-3.0, "0 0 0", 0.5), (4.0, "1 0 0", 4.5)],
)
def test_normalized_table(value: float, tokens: str, back: float) -> None:
    codec = Normalized(low=0.0, high=8.0, base=2, digits=3)
    assert words(codec, value) == tokens
    assert codec.decode(codec.encode(value)) == back
    assert codec.clips(value) == (value == -3.0)


magnitudes = st.floats(1e-10, 1e10)


@given(magnitudes, st.booleans(), st.integers(1, 5), st.sampled_from(P10.LAYOUTS))
def test_p10_is_within_half_a_unit_of_the_last_digit_in_every_layout(
    magnitude: float, negative: bool, digits: int, layout: str
) -> None:
    if layout == "merged":
        digits = min(digits, 3)
    value = -magnitude if negative else magnitude
    codec = P10(mantissa_digits=digits, min_exponent=-16, layout=layout)
    power = int(f"{magnitude:.25e}".partition("e")[2])
    assert abs(codec.decode(codec.encode(value)) - value) <= 0.5 * 10.0 ** (power - digits + 1) * (1 + 1e-9)


@given(magnitudes, st.booleans(), st.sampled_from([(2, 6, 8), (3, 4, 3), (10, 2, 4), (16, 2, 2)]))
def test_ieee_is_within_half_a_unit_of_the_last_digit(
    magnitude: float, negative: bool, shape: tuple[int, int, int]
) -> None:
    base, exponent_digits, mantissa_digits = shape
    value = -magnitude if negative else magnitude
    codec = IEEE(base=base, exponent_digits=exponent_digits, mantissa_digits=mantissa_digits)
    e = next(e for e in range(80, -81, -1) if Fraction(base) ** e <= Fraction(magnitude))
    unit = float(Fraction(base) ** (e - mantissa_digits + 1))
    assert abs(codec.decode(codec.encode(value)) - value) <= unit / 2 * (1 + 1e-9)


@given(st.floats(-30.0, 30.0))
def test_digits_of_the_logarithm_are_within_half_a_unit(z: float) -> None:
    assert abs(FixedPoint().decode(FixedPoint().encode(z)) - z) <= 0.005 * (1 + 1e-9)
    codec = Normalized(low=-30.0, high=30.0, base=2, digits=8)
    assert abs(codec.decode(codec.encode(z)) - z) <= 30 / 256 * (1 + 1e-9)


def test_a_fitted_grid_holds_equal_shares() -> None:
    values = np.random.default_rng(0).lognormal(size=1000)
    grid = QuantileGrid.fit(values, bins=20)
    counts = np.bincount([grid.encode(value)[0] for value in values], minlength=20)
    assert counts.min() >= 49
    assert counts.max() <= 51
    assert QuantileGrid.fit([1.0, 1.0, 1.0, 2.0], bins=8).bins < 8
    low, high = Normalized.fit(values).low, Normalized.fit(values).high
    assert (low, high) == (values.min(), values.max())


def test_copies_outvote_a_wild_token() -> None:
    codec = Repeated(P10(mantissa_digits=2), times=3)
    good = codec.encode(12.0)
    wild = list(good)
    wild[3] = codec.vocabulary.index("E9")  # of the first copy
    assert codec.decode(wild) == 12.0
    assert P10(mantissa_digits=2).decode(wild[:4]) == 12e9
    failed = codec.codec.encode_special("failed")
    assert codec.decode(good[:4] * 2 + failed) == 12.0
    assert math.isnan(codec.decode(good[:4] + failed * 2))
    assert codec.special(good[:4] + failed * 2) == "failed"
    one, two, three = (codec.codec.encode(value) for value in (1.0, 2.0, 30.0))
    assert codec.decode([*three, *one, *two]) == 2.0  # no majority: the median
    assert codec.decode([*failed, *one, *two]) == 1.0


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: P10(layout="mantissa"), "expected one of default, merged, exponent_first"),
        (lambda: IEEE(base=1), "a base of at least 2"),
        (lambda: Normalized(low=1.0, high=1.0), "low < high"),
        (lambda: FixedPoint(integer_digits=0), "at least one digit before the point"),
        (lambda: LinearGrid(low=0.0, high=1.0, bins=0), "bins >= 1"),
        (lambda: QuantileGrid(edges=[1.0, 0.0]), "ascending"),
        (lambda: Repeated(P10(), times=0), "1 or more"),
        (lambda: LogGrid(specials=("lost",)), "expected failed"),
        (lambda: P10().encode_special("lost"), "expected one of failed"),
    ],
)
def test_mistakes_name_what_was_expected(make, told: str) -> None:
    with pytest.raises(UserError, match=told):
        make()


def test_examples_in_the_docstrings() -> None:
    import doctest

    from costmodel.codecs import digits, grids, repeated

    done = [doctest.testmod(module) for module in (digits, grids, repeated)]
    assert sum(result.attempted for result in done) > 15
    assert sum(result.failed for result in done) == 0
