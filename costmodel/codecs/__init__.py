"""Numbers to tokens and back: each codec is a class with its grammar, and each value it can write has one string.

A number is a string of exactly `num_tokens` tokens of a small vocabulary of its own. A table says which token may
follow (`mask`, `next_state`), so that a batch is constrained on the device without a Python call per sample.
"""

from __future__ import annotations

from typing import Any

from costmodel.codecs.digits import IEEE, P10, FixedPoint, Normalized
from costmodel.codecs.grammar import NumberCodec
from costmodel.codecs.grids import LinearGrid, LogGrid, QuantileGrid
from costmodel.codecs.repeated import Repeated
from costmodel.records import UserError


def codec_from(name: str, options: dict[str, Any]) -> NumberCodec:
    """The inverse of `type(codec).__name__` and `codec.options()`. UserError for any other name or option."""
    known = {codec.__name__: codec for codec in (P10, IEEE, Normalized, FixedPoint, LinearGrid, LogGrid, QuantileGrid)}
    try:
        if name == Repeated.__name__:
            return Repeated(codec_from(options["codec"], options["options"]), times=options["times"])
        if name not in known:
            raise UserError(f"got codec {name!r}, expected one of {', '.join([*known, Repeated.__name__])}")
        return known[name](**options)
    except (TypeError, KeyError) as error:
        raise UserError(f"got {options} for codec {name}, expected its keywords ({error})") from error
