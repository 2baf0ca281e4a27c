"""A few numbers of a codec from one end of a range to the other, whose strings have much in common.

Regression-aware fine-tuning (RAFT; Lukasik et al., 2025) takes an expectation over such a grid, and what its strings
have in common is run once. Values are in log2 units whatever the codec writes, see `written`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from costmodel.codecs.grammar import Grammar, NumberCodec
from costmodel.codecs.repeated import Repeated
from costmodel.records import UserError

LEAST, MOST = 12, 18  # numbers of a grid, where the codec has as many; more cost more nodes than they tell
MARGIN = 0.1  # beyond either end, as a share of the range


def written(codec: NumberCodec, z: float) -> float:
    """The number that a codec writes for z: the slowdown 2**z, or z itself."""
    return 2.0**z if codec.domain == "linear" else z + 0.0  # -0.0 + 0.0 is 0.0


def read(codec: NumberCodec, ids: Sequence[int]) -> float:
    """z of a string; -inf of a slowdown of zero."""
    value = codec.decode(ids)
    if codec.domain == "log2":
        return value
    return math.log2(value) if value else -math.inf


def spread(codec: NumberCodec, low: float, high: float) -> list[float]:
    """Up to MOST numbers, spread evenly from `low` or below to `high` or above, ascending.

    They have as few digits as LEAST such numbers need; the rest of a string is what the codec makes of that.
    Where the codec itself ends inside the range, so does the grid, and where it has fewer numbers, it has fewer.
    """
    margin = MARGIN * max(high - low, 1.0)
    aims = np.linspace(low - margin, high + margin, 8 * MOST).tolist()
    even: list[float] = []
    for coarse in _coarser(codec.codec if isinstance(codec, Repeated) else codec):
        found = _distinct(codec, {coarse.decode(coarse.encode(written(codec, z))) for z in aims})
        if not len(found):
            raise UserError(f"got values up to {high:.6g} in log2 units, which {type(codec).__name__} writes as 0")
        if found[0] > low or found[-1] < high:
            found = np.union1d(found, _distinct(codec, {written(codec, low), written(codec, high)}))
        wanted = np.linspace(found[0], found[-1], MOST)
        even = np.unique(found[np.abs(found - wanted[:, None]).argmin(1)]).tolist()
        if len(even) >= LEAST:
            break
    return even


def half_unit(codec: NumberCodec, z: float, towards: float) -> float:
    """How far from z, in that direction, numbers are still written as z is."""
    string, near, far = codec.encode(written(codec, z)), z, towards
    for _ in range(60):
        middle = (near + far) / 2
        near, far = (middle, far) if codec.encode(written(codec, middle)) == string else (near, middle)
    return abs(near - z)


def _coarser(codec: NumberCodec) -> Iterator[NumberCodec]:
    """Codecs that write as this one does with ever more digits, up to itself."""
    if isinstance(codec, Grammar) and codec.detail:
        options = codec.options()
        for digits in range(options[codec.detail]):
            if digits or codec.detail == "fraction_digits":
                yield type(codec)(**{**options, codec.detail: digits})
    yield codec


def _distinct(codec: NumberCodec, numbers: Iterable[float]) -> np.ndarray:
    """What the codec makes of numbers, ascending, without a slowdown of zero."""
    return np.array(sorted({read(codec, codec.encode(x)) for x in numbers} - {-math.inf}))
