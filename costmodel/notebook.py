"""How nouns show themselves where somebody looks at one: a table of a few rows, for a notebook, and latencies in words.

Everything is escaped, and takes its colours from the notebook. Standard library only: the ground floor uses it.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

MOST_BARS = 48


def format_us(latency_us: float) -> str:
    """Four digits in a unit that fits: 812.3 us, 4.127 ms, 1.5 s."""
    if not math.isfinite(latency_us):
        return "-"
    for factor, unit in ((1e6, "s"), (1e3, "ms")):
        if latency_us >= factor:
            return f"{latency_us / factor:.4g} {unit}"
    return f"{latency_us:.4g} us"


def shown(title: str, rows: Mapping[str, object], *, picture: str = "") -> str:
    """HTML of a title over names and values; `picture` is HTML already, every other text is escaped."""
    body = "".join(
        f'<tr><th style="text-align:left">{html.escape(name)}</th>'
        f'<td style="text-align:left;overflow-wrap:anywhere">{html.escape(str(value))}</td></tr>'
        for name, value in rows.items()
    )
    return f"<div><strong>{html.escape(title)}</strong>{picture}<table><tbody>{body}</tbody></table></div>"


def bars(shares: Sequence[float], told: str) -> str:
    """A histogram as SVG in the colour of the text, of at most MOST_BARS, over `told`, which says what it shows. Empty
    where there is nothing to draw."""
    if not shares:
        return ""
    if len(shares) > MOST_BARS:
        shares = [shares[i * (len(shares) - 1) // (MOST_BARS - 1)] for i in range(MOST_BARS)]
    highest = max(shares) or 1.0
    drawn = "".join(
        f'<rect x="{6 * i}" y="{40 - 40 * share / highest:.1f}" width="5" height="{40 * share / highest:.1f}"/>'
        for i, share in enumerate(shares)
    )
    width = 6 * len(shares)
    return (
        f'<svg aria-hidden="true" viewBox="0 0 {width} 40" width="{2 * width}" height="80" '
        f'style="display:block;max-width:100%" fill="currentColor">{drawn}</svg><small>{html.escape(told)}</small>'
    )
