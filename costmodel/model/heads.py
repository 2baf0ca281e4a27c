"""Every numeric head by name: what turns hidden states into a distribution over z = log2(latency / reference).

    head = make("grid", hidden_size=64, z=training_values, vocab_size=4096)
    loss, terms = head.loss(backbone, prefix, suffixes, lengths, targets)
    distribution = head.distribution(backbone, prefix, suffixes, lengths)

Suffixes are token ids (M, L), or embeddings (M, L, D) of whatever else is to be regressed on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from costmodel.codecs.digits import IEEE, P10, FixedPoint, Normalized
from costmodel.codecs.grammar import NumberCodec
from costmodel.codecs.grids import LogGrid, QuantileGrid
from costmodel.codecs.repeated import Repeated
from costmodel.model.digit_head import DigitHead
from costmodel.model.grid_head import GridHead
from costmodel.model.losses import ONE_TOKEN_TERMS
from costmodel.model.scalar_heads import MixtureHead, ScalarHead
from costmodel.records import UserError

Head = GridHead | ScalarHead | MixtureHead | DigitHead
RIEMANN_BINS = 1024

DIGITS: dict[str, Callable[[np.ndarray], NumberCodec]] = {
    "p10": lambda z: P10(),
    "p10-merged": lambda z: P10(layout="merged", mantissa_digits=3),
    "p10-exponent-first": lambda z: P10(layout="exponent_first"),
    "ieee": lambda z: IEEE(),
    "normalized": lambda z: Normalized.fit(z.tolist()),
    "normalized-thrice": lambda z: Repeated(Normalized.fit(z.tolist()), times=3),
    "fixed-point": lambda z: FixedPoint(),
}
NAMES = ("grid", "learned-grid", "riemann", *DIGITS, "mixture", "pointwise", *ScalarHead.READS[1:])


def make(name: str, hidden_size: int, *, z: ArrayLike, vocab_size: int, loss: str | None = None) -> Head:
    """A head of NAMES with fresh weights. z: the training values, which ranges and scales are taken from; loss: terms
    joined by +, the head's own default if left out. Unknown names and terms raise UserError."""
    values = np.asarray(z, dtype=np.float64)
    chosen: dict[str, Any] = {} if loss is None else {"loss": loss}
    spread = (max(float(x.var()), 1e-12) for x in (values, np.exp2(values)))
    variances: dict[str, Any] = dict(zip(("z_var", "raw_var"), spread, strict=True))
    scale: dict[str, Any] = {"z_mean": float(values.mean()), "z_std": float(max(values.std(), 1e-6))}
    if name in ("grid", "learned-grid", "riemann"):
        grid = QuantileGrid.fit(values.tolist(), bins=RIEMANN_BINS) if name == "riemann" else LogGrid()
        if name == "riemann":
            chosen.setdefault("loss", "hard")
        head = GridHead(hidden_size, grid, learned=name == "learned-grid", **variances, **chosen)
        check_covered(values, grid, head.terms)
        return head
    if name in DIGITS:
        ends: dict[str, Any] = {"z_low": float(values.min()), "z_high": float(values.max())}
        return DigitHead(hidden_size, DIGITS[name](values), **ends, **variances, **chosen)
    if name == "mixture":
        return MixtureHead(hidden_size, **scale, **chosen)
    if name == "pointwise" or name in ScalarHead.READS[1:]:
        read = "last" if name == "pointwise" else name
        return ScalarHead(hidden_size, read=read, vocab_size=vocab_size, **scale, **chosen)
    raise UserError(f"got head {name!r}, expected one of {', '.join(NAMES)}")


def from_spec(hidden_size: int, spec: dict[str, Any]) -> Head:
    """The inverse of a head's `spec()`, with fresh weights."""
    kinds: dict[str, Any] = {"grid": GridHead, "scalar": ScalarHead, "mixture": MixtureHead}
    kinds |= {"digits": DigitHead, "p10": DigitHead}  # p10: as the first format said it
    if spec.get("kind") not in kinds:
        raise UserError(f"got a head of kind {spec.get('kind')!r}, expected one of {', '.join(kinds)}")
    return kinds[spec["kind"]].from_spec(hidden_size, spec)


def check_covered(values: np.ndarray, grid: LogGrid | QuantileGrid, terms: Sequence[str]) -> None:
    """An expectation over a grid cannot leave it, so it must hold every value (RAFT, Lemma 3): UserError otherwise."""
    outside = [value for value in (values.min(), values.max()) if grid.clips(float(value))]
    if outside and set(ONE_TOKEN_TERMS) & set(terms):
        raise UserError(
            f"got values up to {outside[-1]:.3g} for a grid of {grid.low:.3g} to {grid.high:.3g}, expected all inside: "
            "no expectation over the grid reaches them"
        )
