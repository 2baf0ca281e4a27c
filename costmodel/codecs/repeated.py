"""A number written several times, against wild tokens."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from costmodel.codecs.grammar import Grammar, NumberCodec
from costmodel.records import UserError


class Repeated(Grammar):
    """A number written several times; what most of the copies say counts, so one wild token is outvoted.

        >>> from costmodel.codecs.digits import Normalized
        >>> codec = Repeated(Normalized(low=0.0, high=8.0, base=2, digits=3), times=3)
        >>> codec.encode(5.2)
        [1, 0, 1, 1, 0, 1, 1, 0, 1]
        >>> codec.decode([1, 0, 1, 0, 0, 1, 1, 0, 1])
        5.5

    The grammar leaves each copy free. A tie goes to the median of what is tied, the lower one of two; special values
    count as one candidate each and lose ties to numbers. After Decoding-based Regression (arXiv 2501.19383).
    """

    def __init__(self, codec: NumberCodec, *, times: int = 3) -> None:
        if times < 1:
            raise UserError(f"got times={times}, expected 1 or more")
        self.codec, self.times = codec, times
        self.domain, self.vocabulary, self.specials = codec.domain, codec.vocabulary, codec.specials
        self.num_tokens = times * codec.num_tokens
        end = len(codec.mask) - 1
        # copy k stands in states k * end ...; the end of one copy is the beginning of the next
        tables = [np.where(codec.mask[:-1], codec.next_state[:-1] + k * end, -1) for k in range(times)]
        self.next_state = np.concatenate([*tables, codec.next_state[-1:]])
        self.mask = self.next_state >= 0

    def options(self) -> dict[str, Any]:
        return {"codec": type(self.codec).__name__, "options": self.codec.options(), "times": self.times}

    def encode(self, value: float) -> list[int]:
        return self.codec.encode(value) * self.times

    def decode(self, ids: Sequence[int]) -> float:
        return math.nan if self.special(ids) else self._vote(ids)[1]

    def special(self, ids: Sequence[int]) -> str | None:
        self._check_whole(ids)
        return self._vote(ids)[0]

    def _vote(self, ids: Sequence[int]) -> tuple[str | None, float]:
        length = self.codec.num_tokens
        copies = [ids[i : i + length] for i in range(0, len(ids), length)]
        named = [(self.codec.special(copy), self.codec.decode(copy)) for copy in copies]
        said = Counter((name, 0.0 if name else value) for name, value in named)  # NaN equals nothing, itself included
        most = max(said.values())
        tied = [choice for choice, count in said.items() if count == most]
        numbers = sorted(value for name, value in tied if name is None)
        return (None, numbers[(len(numbers) - 1) // 2]) if numbers else tied[0]
