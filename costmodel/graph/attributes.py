"""How the canonical text writes opcodes, literals and attributes: short, and only what decides cost."""

from __future__ import annotations

import re

from costmodel.graph.costs import trip_count
from costmodel.graph.follows import numbers, ranges
from costmodel.graph.hlo import CALLS, AnyShape, Instruction, Shape

DROPPED = frozenset({
    "metadata", "frontend_attributes", "backend_config", "channel_id", "operand_layout_constraints", "statistics",
    "origin", "original_value", "control-predecessors", "async_execution_thread", "execution_thread", "api_version",
    "infeed_config", "outfeed_config", "outfeed_shape", "dynamic_slice_sizes", "kind",
})  # fmt: skip
# Their values are told from each other without the key.
KEYLESS = frozenset({
    "index", "direction", "window", "dim_labels", "padding", "custom_call_target", "slice",
})  # fmt: skip
DIMENSIONS = frozenset({
    "dimensions", "iota_dimension", "permutation",
})  # fmt: skip
DOT = ("lhs_batch_dims", "lhs_contracting_dims", "rhs_batch_dims", "rhs_contracting_dims")
OPCODES = {"parameter": "p", "get-tuple-element": "get"}
_KIND = re.compile(r'"kind"\s*:\s*"([\w.\-]+)"')
_VALUE = re.compile(r"[^\s,{}]+")
_LOOSE, _BLANKS = re.compile(r"\s*([{},])\s*"), re.compile(r"\s+")  # a word has no blanks inside
_OPENING = ("{", '"')
_DEFAULTS = {"sharding": "{replicated}"}
_FRACTION = 4  # characters of a number that is no integer


def before_shape(i: Instruction) -> str:
    """The opcode without dashes; a fusion by its kind."""
    kind = i.attribute("kind") if i.opcode == "fusion" else ""
    return OPCODES.get(i.opcode) or (kind.removeprefix("k").lower() or i.opcode).replace("-", "")


def after_opcode(i: Instruction, operands: list[AnyShape]) -> str:
    """Literal and attributes, these in the order of their names."""
    parts = [literal(i)] if i.opcode == "constant" else []
    if i.opcode == "dot":
        parts.append(_dot(i, operands))
    for key, value in sorted(i.attributes):
        if key in DROPPED or key in CALLS or (key in DOT and i.opcode == "dot"):
            continue
        value = _BLANKS.sub("_", _LOOSE.sub(r"\1", value))
        if value == _DEFAULTS.get(key, "false") or (value == "{}" and key not in DIMENSIONS):
            continue
        if key in DIMENSIONS:
            parts.append(f"{{{dimensions(value)}}}")
        elif key == "slice":
            parts.append(f"{{{_slice(value, operands)}}}")
        elif key == "index":
            parts.append(value)
        elif key in KEYLESS:
            parts.append("," + (value[1:-1] if value[:1] in _OPENING else value).removeprefix("size="))
        else:
            parts.append(f",{key}={value}")
    if i.opcode == "while":
        parts.append(f"{trip_count(i)}" if "known_trip_count" in i.attribute("backend_config") else "")
    if i.opcode == "fusion" and (kinds := _KIND.findall(i.attribute("backend_config"))):
        parts.append("," + ",".join(kinds))
    return "".join(parts)


def dimensions(listed: str) -> str:
    """Letters: `{0,2}` is `ac`."""
    return "".join(chr(97 + n) if n < 26 else f"<{n}>" for n in numbers(listed))


def _dot(i: Instruction, operands: list[AnyShape]) -> str:
    """Batch dimensions, and in capitals those summed over, of both sides; nothing for a product of matrices."""
    lhs_batch, lhs, rhs_batch, rhs = (dimensions(i.attribute(key)) for key in DOT)
    left = operands[0] if operands else None
    if not lhs_batch and isinstance(left, Shape) and lhs == chr(96 + len(left.dims)) and rhs == "a":
        return ""
    return f"{{{lhs_batch}{lhs.upper()},{rhs_batch}{rhs.upper()}}}"


def _slice(value: str, operands: list[AnyShape]) -> str:
    """Ranges; nothing for a whole dimension."""
    dims = operands[0].dims if operands and isinstance(operands[0], Shape) else ()
    parts = []
    for n, (start, limit, stride) in enumerate(ranges(value)):
        whole = n < len(dims) and (start, limit, stride) == (0, dims[n], 1)
        parts.append("" if whole else f"{start}:{limit}" + (f":{stride}" if stride != 1 else ""))
    return ",".join(parts)


def literal(i: Instruction) -> str:
    """A number as it is, one with a long fraction as `~`; an array by its kind."""
    if isinstance(i.shape, Shape) and not i.shape.dims and i.literal:
        is_exact = i.literal.lstrip("-").isdigit() or i.literal in ("true", "false")
        return f"({i.literal})" if is_exact or len(i.literal) <= _FRACTION else "~"
    values = _VALUE.findall(i.literal)
    if "..." in values or not values:
        return "~"
    if len(set(values)) == 1:
        return {"0": "zeros", "1": "ones"}.get(values[0], "same")
    return "iota" if values == [str(n) for n in range(len(values))] else "~"
