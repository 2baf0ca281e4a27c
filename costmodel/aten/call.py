"""One use of an ATen operator, as the functions that write its HLO see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from costmodel.aten.builder import Builder, Value
from costmodel.graph import Shape


class Unmapped(Exception):
    """This use of an operator has no HLO here; it becomes a custom call."""


@dataclass(frozen=True, slots=True)
class Call:
    """`b` is where to write; `out` are the shapes of the results. What shapes alone do not tell (see program.py):
    `copies`, whether a view has to copy; `wraps`, whether indices may count from the end."""

    b: Builder
    out: tuple[Shape, ...]
    copies: bool = False
    wraps: bool = False

    @property
    def dtype(self) -> str:
        return self.out[0].dtype

    @property
    def dims(self) -> tuple[int, ...]:
        return self.out[0].dims

    def value(self, x: Any, dtype: str) -> Value:
        """An operand, array or number, in a type."""
        return self.b.convert(x, dtype) if isinstance(x, Value) else self.b.constant(x, dtype)

    def done(self, x: Value) -> Value:
        """In the type of the result."""
        return self.b.convert(x, self.dtype)


def positive(dim: int, rank: int) -> int:
    return dim + rank if dim < 0 else dim


def dims_of(over: Any, rank: int) -> list[int]:
    """Dimensions to reduce over: all where none is given."""
    if over is None or over == []:
        return list(range(rank))
    return sorted(positive(d, rank) for d in ([over] if isinstance(over, int) else over))


def several(value: Any, count: int) -> list[int]:
    """One number for each of `count` dimensions."""
    numbers = [value] if isinstance(value, int) else list(value)
    return numbers * count if len(numbers) == 1 else numbers
