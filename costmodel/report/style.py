"""How figures look: colours that every eye tells apart, and with them as many line styles for a print in grey."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

# Okabe and Ito's colours. Black is the ink: on a page it takes the colour of the text.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7A7A7A")
_DASHES = {"-": "", "--": "8 4", "-.": "10 3 2 3", ":": "2 3"}
# Text is drawn as it is: a name may hold dollar signs.
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "costmodel", "font.size": 11, "font.family": "sans-serif",
    "text.parse_math": False,
}  # fmt: skip
GUIDE: Any = {"color": "0.6", "linewidth": 0.8, "linestyle": (0, (1, 2)), "zorder": 0}


@dataclass(frozen=True, slots=True)
class Look:
    """A colour with a line style, or a dot that is full or hollow."""

    colour: str
    style: str = "-"
    dot: Literal["", "full", "hollow"] = ""

    @property
    def line(self) -> dict[str, Any]:
        """Keywords of matplotlib's lines."""
        return {"color": self.colour, "linestyle": self.style}

    @property
    def dashes(self) -> str:
        return _DASHES[self.style]

    @property
    def attributes(self) -> str:
        """Of an SVG shape."""
        colour = "currentColor" if self.colour == "#000000" else self.colour
        return f'fill="{colour}"' if self.dot == "full" else f'fill="none" stroke="{colour}" stroke-width="2"'


def looks(names: Iterable[object]) -> list[Look]:
    styles = list(_DASHES)
    return [Look(COLOURS[i % len(COLOURS)], styles[i // len(COLOURS) % len(styles)]) for i, _ in enumerate(names)]
