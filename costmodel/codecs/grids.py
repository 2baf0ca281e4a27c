"""Numbers as one token each: even bins over a number or its logarithm, and bins that hold equal shares."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from costmodel.codecs.grammar import FAILED, Domain, Grammar, check_number
from costmodel.records import UserError


class _Grid(Grammar):
    """One token: the bin between two of `edges` (float64 (bins + 1,)); it decodes to its middle, `centres`.

    Values beyond the ends take the end bin, and `clips` says so. Token id `bins` is `failed`.
    """

    edges: np.ndarray
    centres: np.ndarray

    def _build(self, edges: np.ndarray, specials: Sequence[str]) -> None:
        self.edges = np.asarray(edges, dtype=np.float64)
        if self.edges.ndim != 1 or len(self.edges) < 2 or not (np.diff(self.edges) > 0).all():
            raise UserError(f"got edges {edges}, expected two or more in ascending order")
        self.low, self.high = float(self.edges[0]), float(self.edges[-1])
        self.bins = len(self.edges) - 1
        self.width = (self.high - self.low) / self.bins  # of a bin, on average
        self.centres = (self.edges[1:] + self.edges[:-1]) / 2
        words = [f"<b:{centre:.6g}>" for centre in self.centres]
        self._tabulate(words, 1, specials, lambda state: ((token, "end") for token in range(self.bins)))

    def clips(self, value: float) -> bool:
        """Is the value beyond the grid, so that its token is off by more than half a bin?"""
        return not self.low <= value <= self.high

    def encode(self, value: float) -> list[int]:
        check_number(value)
        return [min(self.bins - 1, max(0, int(np.searchsorted(self.edges, value, side="right")) - 1))]

    def decode(self, ids: Sequence[int]) -> float:
        return math.nan if self.special(ids) else float(self.centres[ids[0]])


class LinearGrid(_Grid):
    """Even bins over a number.

    >>> grid = LinearGrid(low=0.0, high=10.0, bins=5)
    >>> grid.encode(3.9), grid.decode([1])
    ([1], 3.0)
    """

    def __init__(self, *, low: float, high: float, bins: int = 256, specials: Sequence[str] = (FAILED,)) -> None:
        if not (low < high and bins >= 1):
            raise UserError(f"got low={low}, high={high}, bins={bins}, expected low < high and bins >= 1")
        self._build(low + (high - low) / bins * np.arange(bins + 1), specials)


class LogGrid(LinearGrid):
    """Even bins over log2 of a slowdown, the default of the shipped model.

    >>> grid = LogGrid()
    >>> grid.encode(0.0), grid.decode([77])
    ([76], 0.0546875)
    """

    domain: Domain = "log2"

    def __init__(
        self, *, low: float = -6.0, high: float = 14.0, bins: int = 256, specials: Sequence[str] = (FAILED,)
    ) -> None:
        super().__init__(low=low, high=high, bins=bins, specials=specials)


class QuantileGrid(_Grid):
    """Bins that hold equal shares of the values it was fitted on, over log2 of a slowdown.

    >>> grid = QuantileGrid.fit([0.0, 1.0, 2.0, 3.0, 10.0, 20.0], bins=3)
    >>> [round(edge, 2) for edge in grid.edges.tolist()], grid.encode(2.5)
    ([0.0, 1.67, 5.33, 20.0], [1])
    """

    domain: Domain = "log2"

    def __init__(self, *, edges: Sequence[float], specials: Sequence[str] = (FAILED,)) -> None:
        self._build(np.asarray(edges), specials)

    @classmethod
    def fit(cls, values: Sequence[float], *, bins: int = 256) -> QuantileGrid:
        """At most `bins` bins: where many values are equal, some would be empty and are left out."""
        edges = np.unique(np.quantile(np.asarray(values, dtype=np.float64), np.linspace(0, 1, bins + 1)))
        return cls(edges=edges.tolist())
