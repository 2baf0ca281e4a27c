"""Numbers as digits: P10 (after OmniPred, arXiv 2402.14547), IEEE and Normalized (both after Decoding-based Regression,
arXiv 2501.19383), and FixedPoint."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction

import numpy as np

from costmodel.codecs.grammar import FAILED, Domain, Grammar, State, check_domain, check_number
from costmodel.records import UserError


class P10(Grammar):
    """Sign, mantissa digits, exponent of ten: `+ 1 2 3 4 E-3` is 1234 * 10**-3 (after OmniPred, arXiv 2402.14547).

    Worked example with 4 digits: 0.98765 is 9.877e-1 (half to even on the exact binary value, which lies a little above
    the tie), written as the integer 9877 and the exponent -1 - 3 = -4; 1234.5 is a tie and goes to the even 1234:

        >>> codec = P10()
        >>> [codec.vocabulary[i] for i in codec.encode(0.98765)]
        ['+', '9', '8', '7', '7', 'E-4']
        >>> codec.decode(codec.encode(0.98765)), codec.decode(codec.encode(1234.5))
        (0.9877, 1234.0)

    Layouts: "default"; "merged", the mantissa as one token (`+ 9877 E-4`); "exponent_first" (`+ E-4 9 8 7 7`). The
    first digit is zero for zero alone, and zero has the exponent 0 alone, so each value has one string. Magnitudes that
    would need an exponent below the lowest are 0; above the highest they take the largest number. -0.0, NaN and
    infinities raise ValueError. `failed` stands for a candidate that did not run and is repeated to full length.

    domain "linear": what is written is the slowdown; "log2": its logarithm, or any signed number as it is.
    """

    LAYOUTS = ("default", "merged", "exponent_first")
    detail = "mantissa_digits"

    def __init__(
        self,
        *,
        mantissa_digits: int = 4,
        min_exponent: int = -10,
        max_exponent: int = 10,
        layout: str = "default",
        domain: Domain = "linear",
        specials: Sequence[str] = (FAILED,),
    ) -> None:
        if mantissa_digits < 1 or not min_exponent <= 0 <= max_exponent:
            raise UserError(
                f"got mantissa_digits={mantissa_digits}, exponents {min_exponent}..{max_exponent}, "
                "expected at least one digit and a range that holds 0"
            )
        if layout not in self.LAYOUTS:
            raise UserError(f"got layout={layout!r}, expected one of {', '.join(self.LAYOUTS)}")
        self.mantissa_digits, self.min_exponent, self.max_exponent = mantissa_digits, min_exponent, max_exponent
        self.layout, self.domain = layout, check_domain(domain)
        whole = range(10 ** (mantissa_digits - 1), 10**mantissa_digits)
        mantissas = ["0" * mantissa_digits, *map(str, whole)] if layout == "merged" else list(map(str, range(10)))
        exponents = [f"E{e}" for e in range(min_exponent, max_exponent + 1)]
        self._first_exponent = 2 + len(mantissas)
        length = 3 if layout == "merged" else mantissa_digits + 2
        self._tabulate(["+", "-", *mantissas, *exponents], length, specials, self._follow)

    def encode(self, value: float) -> list[int]:
        check_number(value, signed_zero=True)
        # The format rounds half to even on the exact binary value.
        mantissa, _, power = f"{abs(value):.{self.mantissa_digits - 1}e}".partition("e")
        digits = mantissa.replace(".", "")
        exponent = int(power) - (self.mantissa_digits - 1)
        if value == 0 or exponent < self.min_exponent:
            return self._string("+", "0" * self.mantissa_digits, 0)
        if exponent > self.max_exponent:
            digits, exponent = "9" * self.mantissa_digits, self.max_exponent
        return self._string("-" if value < 0 else "+", digits, exponent)

    def _string(self, sign: str, digits: str, exponent: int) -> list[int]:
        if self.layout == "merged":
            mantissa = [2 + max(0, int(digits) - 10 ** (self.mantissa_digits - 1) + 1)]
        else:
            mantissa = [2 + int(digit) for digit in digits]
        parts = [[self._exponent(exponent)], mantissa]
        first, second = parts if self.layout == "exponent_first" else parts[::-1]
        return ["+-".index(sign), *first, *second]

    def decode(self, ids: Sequence[int]) -> float:
        if self.special(ids):
            return math.nan
        sign, *rest = (self.vocabulary[i] for i in ids)
        exponent = rest.pop(0 if self.layout == "exponent_first" else -1)
        return float(f"{sign}{''.join(rest)}{exponent}")

    def _exponent(self, exponent: int) -> int:
        return self._first_exponent + exponent - self.min_exponent

    def _follow(self, state: State) -> Iterable[tuple[int, State]]:
        """States: "start"; ("sign", is it a plus); then, behind k digits, ("number" | "zero", k); "exponent" states."""
        if state == "start":
            yield from ((0, ("sign", True)), (1, ("sign", False)))
            return
        kind, told = state
        exponents = range(self.min_exponent, self.max_exponent + 1)
        if kind == "sign" and self.layout == "exponent_first":
            yield from ((self._exponent(e), ("digits", bool(told) and e == 0)) for e in exponents)
        elif kind in ("sign", "digits"):  # the mantissa begins; `told` says whether it may be zero
            if told:
                yield 2, self._after("zero", 1)
            others = self._first_exponent - 2 if self.layout == "merged" else 10
            yield from ((2 + i, self._after("number", 1)) for i in range(1, others))
        elif self.layout != "exponent_first" and told == self._mantissa_tokens:
            yield from ((self._exponent(e), "end") for e in (exponents if kind == "number" else (0,)))
        else:
            yield from ((2 + i, self._after(kind, told + 1)) for i in range(10 if kind == "number" else 1))

    @property
    def _mantissa_tokens(self) -> int:
        return 1 if self.layout == "merged" else self.mantissa_digits

    def _after(self, kind: str, told: int) -> State:
        ends = self.layout == "exponent_first" and told == self._mantissa_tokens
        return "end" if ends else (kind, told)


class IEEE(Grammar):
    """Sign, the exponent's sign and digits, mantissa digits, in any base: m0.m1m2... * base**exponent.

        >>> codec = IEEE(base=10, exponent_digits=1, mantissa_digits=3)
        >>> [codec.vocabulary[i] for i in codec.encode(-0.0123)]
        ['-', '-', '2', '1', '2', '3']
        >>> binary = IEEE(base=2, exponent_digits=3, mantissa_digits=4)
        >>> binary.decode(binary.encode(0.3))  # 1.001 * 2**-2
        0.3125

    Rounds half to even on the exact value. The first digit is zero for zero alone and an exponent of 0 has a plus, so
    each value has one string. Magnitudes below the lowest exponent are 0, above the highest the largest number.
    `domain` as in P10.
    """

    detail = "mantissa_digits"

    def __init__(
        self,
        *,
        base: int = 10,
        exponent_digits: int = 1,
        mantissa_digits: int = 4,
        domain: Domain = "linear",
        specials: Sequence[str] = (FAILED,),
    ) -> None:
        if base < 2 or exponent_digits < 1 or mantissa_digits < 1:
            raise UserError(
                f"got base={base}, exponent_digits={exponent_digits}, mantissa_digits={mantissa_digits}, "
                "expected a base of at least 2 and at least one digit of each"
            )
        self.base, self.exponent_digits, self.mantissa_digits = base, exponent_digits, mantissa_digits
        self.domain = check_domain(domain)
        self.max_exponent = base**exponent_digits - 1
        length = 2 + exponent_digits + mantissa_digits
        self._tabulate(["+", "-", *map(str, range(base))], length, specials, self._follow)

    def encode(self, value: float) -> list[int]:
        check_number(value, signed_zero=True)
        exact, places = abs(Fraction(value)), self.mantissa_digits - 1
        exponent = _exponent_of(exact, self.base) if exact else 0
        mantissa = round(exact / Fraction(self.base) ** (exponent - places))
        if mantissa == self.base**self.mantissa_digits:  # rounded up through the carry
            mantissa, exponent = mantissa // self.base, exponent + 1
        if exponent < -self.max_exponent or not exact:
            return self._string(False, 0, 0)
        if exponent > self.max_exponent:
            mantissa, exponent = self.base**self.mantissa_digits - 1, self.max_exponent
        return self._string(value < 0, exponent, mantissa)

    def _string(self, negative: bool, exponent: int, mantissa: int) -> list[int]:
        digits = [*_digits(abs(exponent), self.base, self.exponent_digits),
                  *_digits(mantissa, self.base, self.mantissa_digits)]  # fmt: skip
        return [int(negative), int(exponent < 0), *(2 + digit for digit in digits)]

    def decode(self, ids: Sequence[int]) -> float:
        if self.special(ids):
            return math.nan
        digits = [token - 2 for token in ids[2:]]
        exponent = _number(digits[: self.exponent_digits], self.base) * (-1 if ids[1] else 1)
        exact = _number(digits[self.exponent_digits :], self.base) * Fraction(self.base) ** (
            exponent - self.mantissa_digits + 1
        )
        return float(-exact if ids[0] else exact)

    def _follow(self, state: State) -> Iterable[tuple[int, State]]:
        """States: ("exponent", digits told, may the number be zero, is the exponent negative, is it 0 so far) and
        ("number" | "zero", digits told)."""
        if state == "start":
            yield from ((sign, ("sign", sign == 0)) for sign in (0, 1))
            return
        kind, *rest = state
        if kind == "sign":
            yield 0, ("exponent", 0, rest[0], False, True)
            yield 1, ("exponent", 0, False, True, True)
        elif kind == "exponent":
            told, may_be_zero, negative, nothing = rest
            last = told + 1 == self.exponent_digits
            for digit in range(self.base):
                still = nothing and digit == 0
                if last and negative and still:
                    continue  # -0 is +0
                zero = may_be_zero and still
                yield 2 + digit, ("mantissa", zero) if last else ("exponent", told + 1, zero, negative, still)
        elif kind == "mantissa":
            if rest[0]:
                yield 2, self._after("zero", 1)
            yield from ((2 + digit, self._after("number", 1)) for digit in range(1, self.base))
        else:
            digits = range(self.base if kind == "number" else 1)
            yield from ((2 + digit, self._after(kind, rest[0] + 1)) for digit in digits)

    def _after(self, kind: str, told: int) -> State:
        return "end" if told == self.mantissa_digits else (kind, told)


class Normalized(Grammar):
    """Digits of (value - low) / (high - low) in a base: a tree of bins over a range, decoded to the bin's middle.

        >>> codec = Normalized(low=0.0, high=8.0, base=2, digits=3)
        >>> codec.encode(5.2), codec.decode([1, 0, 1])
        ([1, 0, 1], 5.5)

    Values beyond the range take the end bin, and `clips` says so. After Decoding-based Regression (arXiv 2501.19383).
    """

    domain: Domain = "log2"
    detail = "digits"

    def __init__(
        self, *, low: float, high: float, base: int = 2, digits: int = 8, specials: Sequence[str] = (FAILED,)
    ) -> None:
        if not low < high or base < 2 or digits < 1:
            raise UserError(
                f"got low={low}, high={high}, base={base}, digits={digits}, expected low < high, a base of at least 2 "
                "and at least one digit"
            )
        self.low, self.high, self.base, self.digits = low, high, base, digits
        self._tabulate(list(map(str, range(base))), digits, specials, self._follow)

    @classmethod
    def fit(cls, values: Sequence[float], *, base: int = 2, digits: int = 8) -> Normalized:
        """The range is that of the values."""
        return cls(low=float(np.min(values)), high=float(np.max(values)), base=base, digits=digits)

    def clips(self, value: float) -> bool:
        return not self.low <= value <= self.high

    def encode(self, value: float) -> list[int]:
        check_number(value)
        bins = self.base**self.digits
        place = math.floor((value - self.low) / (self.high - self.low) * bins)
        return _digits(min(bins - 1, max(0, place)), self.base, self.digits)

    def decode(self, ids: Sequence[int]) -> float:
        if self.special(ids):
            return math.nan
        return self.low + (self.high - self.low) * (_number(ids, self.base) + 0.5) / self.base**self.digits

    def _follow(self, state: State) -> Iterable[tuple[int, State]]:
        told = 0 if state == "start" else int(state)
        after = "end" if told + 1 == self.digits else told + 1
        yield from ((digit, after) for digit in range(self.base))


class FixedPoint(Grammar):
    """Sign, digits before and after the point: of log2 of a slowdown, so that a digit is a ratio at any scale.

        >>> codec = FixedPoint(integer_digits=2, fraction_digits=2)
        >>> [codec.vocabulary[i] for i in codec.encode(-3.14159)]
        ['-', '0', '3', '1', '4']
        >>> codec.decode(codec.encode(-3.14159))
        -3.14

    Rounds half to even on the exact value; zero has a plus. Magnitudes beyond the largest take the largest.
    """

    domain: Domain = "log2"
    detail = "fraction_digits"

    def __init__(
        self,
        *,
        integer_digits: int = 2,
        fraction_digits: int = 2,
        base: int = 10,
        specials: Sequence[str] = (FAILED,),
    ) -> None:
        if base < 2 or integer_digits < 1 or fraction_digits < 0:
            raise UserError(
                f"got base={base}, integer_digits={integer_digits}, fraction_digits={fraction_digits}, expected a base "
                "of at least 2, at least one digit before the point and none or more behind it"
            )
        self.integer_digits, self.fraction_digits, self.base = integer_digits, fraction_digits, base
        self.digits = integer_digits + fraction_digits
        self._tabulate(["+", "-", *map(str, range(base))], 1 + self.digits, specials, self._follow)

    def encode(self, value: float) -> list[int]:
        check_number(value)
        number = min(round(abs(Fraction(value)) * self.base**self.fraction_digits), self.base**self.digits - 1)
        return [int(value < 0 < number), *(2 + digit for digit in _digits(number, self.base, self.digits))]

    def decode(self, ids: Sequence[int]) -> float:
        if self.special(ids):
            return math.nan
        number = float(Fraction(_number([token - 2 for token in ids[1:]], self.base), self.base**self.fraction_digits))
        return -number if ids[0] else number

    def _follow(self, state: State) -> Iterable[tuple[int, State]]:
        """States: (digits told, is it "-" and zeros so far)."""
        if state == "start":
            yield from ((0, (0, False)), (1, (0, True)))
            return
        told, only_minus = state
        last = told + 1 == self.digits
        for digit in range(self.base):
            still = only_minus and digit == 0
            if not (last and still):  # -0 is +0
                yield 2 + digit, "end" if last else (told + 1, still)


def _exponent_of(exact: Fraction, base: int) -> int:
    """The e with base**e <= exact < base**(e + 1)."""
    # logarithms of numerator and denominator, since the ratio may be too small for a float
    e = math.floor((math.log(exact.numerator) - math.log(exact.denominator)) / math.log(base))
    while Fraction(base) ** e > exact:
        e -= 1
    while Fraction(base) ** (e + 1) <= exact:
        e += 1
    return e


def _digits(number: int, base: int, count: int) -> list[int]:
    return [number // base**place % base for place in reversed(range(count))]


def _number(digits: Sequence[int], base: int) -> int:
    value = 0
    for digit in digits:
        value = value * base + digit
    return value
