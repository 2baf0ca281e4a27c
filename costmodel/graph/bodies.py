"""A module's computations as items in canonical order: the words of the canonical text before their letters.

Computations that differ in sizes and numbers alone are one, with these as arguments of their calls.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, replace

from costmodel.graph.attributes import after_opcode, before_shape
from costmodel.graph.follows import follows, plain
from costmodel.graph.hlo import AnyShape, Computation, Instruction, Module, Shape, TupleShape
from costmodel.graph.order import callees_first

# What they call takes its parameters' shapes from the call.
SHAPED_BY_CALL = frozenset({
    "fusion", "call", "while", "conditional", "reduce", "reduce-window", "sort", "scatter", "map",
    "select-and-scatter", "all-reduce", "reduce-scatter", "async-start",
})  # fmt: skip
# Follows too, but is written: where the time goes, nobody should have to work out the sizes.
SHOWN = frozenset({
    "dot", "fusion", "custom-call", "reduce", "sort", "call",
})  # fmt: skip
RAW = ("(", "$", "~", "%")
NEAR = 26  # distances that are one letter
LABELLED = 5  # far users from which on a value has a label
MARK = "\1"  # where a slot belongs in a text
MOST_ARGUMENTS = 64  # computations that differ in more are written apart


@dataclass(frozen=True, slots=True)
class Item:
    """An instruction before shapes and computations have their letters. Equal items are equal text.

    `slots` take the places of MARK in `start` and `end`: sizes of written shapes, or, with one of RAW before
    them, numbers, labels and arguments.
    """

    start: str
    slots: tuple[str, ...]
    called: tuple[str, ...]  # digests, written between start and end
    end: str

    @property
    def skeleton(self) -> tuple[str, tuple[str, ...], str]:
        return self.start, self.called, self.end


@dataclass(frozen=True, slots=True)
class Body:
    """Items and the names of their instructions. Bodies of one digest have equal items."""

    items: tuple[Item, ...]
    names: tuple[str, ...]
    digest: str
    arguments: tuple[str, ...] = ()


def bodies(module: Module, usual: str) -> dict[str, Body]:
    """What the entry reaches, by name, the entry with it; `usual` is the element type that need not be said."""
    shaped = {
        called for c in module.computations for i in c.instructions if i.opcode in SHAPED_BY_CALL for called in i.called
    }
    order = callees_first(module)
    reached = {module.entry}
    for computation in reversed(order):
        if computation.name in reached:
            reached |= {called for i in computation.instructions for called in i.called}
    height: dict[str, int] = {}
    levels: dict[int, list[Computation]] = {}
    for computation in order:
        if computation.name in reached:
            below = (height[called] for i in computation.instructions for called in i.called)
            height[computation.name] = 1 + max(below, default=-1)
            levels.setdefault(height[computation.name], []).append(computation)
    found: dict[str, Body] = {}
    for level in sorted(levels):  # who is alike is known once all of a level are there, and before they are called
        groups: dict[str, dict[str, Body]] = {}
        for computation in levels[level]:
            body = _body(computation, module, found, usual, computation.name in shaped)
            groups.setdefault(body.digest, {})[computation.name] = body
        for group in groups.values():
            found |= _with_arguments(group)
    return found


def _with_arguments(group: dict[str, Body]) -> dict[str, Body]:
    """Bodies of one skeleton: slots that differ among them become `%a`, `%b`, ..., and each has its arguments."""
    slots = {name: [slot for item in body.items for slot in item.slots] for name, body in group.items()}
    distinct = list(dict.fromkeys(map(tuple, slots.values())))
    columns: dict[tuple[str, ...], list[int]] = {}
    for position, values in enumerate(zip(*distinct, strict=True)):
        if len(set(values)) > 1:
            columns.setdefault(values, []).append(position)
    if len(columns) > MOST_ARGUMENTS:
        return {name: replace(body, digest=_digest(body.digest, *slots[name])) for name, body in group.items()}
    letter = {position: "%" + letters(n) for n, places in enumerate(columns.values()) for position in places}
    first = next(iter(group.values()))
    items, position = [], 0
    for item in first.items:
        filled = tuple(letter.get(position + n, slot) for n, slot in enumerate(item.slots))
        items.append(replace(item, slots=filled))
        position += len(filled)
    return {
        name: replace(body, items=tuple(items), arguments=tuple(slots[name][places[0]] for places in columns.values()))
        for name, body in group.items()
    }


def letters(number: int) -> str:
    """0: a, 25: z, 26: aa."""
    word = ""
    while number >= 0:
        number, digit = divmod(number, 26)
        word = chr(97 + digit) + word
        number -= 1
    return word


# ------------------------------------------------------------------------------------------------------ instructions


def _body(computation: Computation, module: Module, found: dict[str, Body], usual: str, shaped: bool) -> Body:
    shapes = {i.name: plain(i.shape) for i in computation.instructions}
    starts: dict[str, tuple[str, tuple[str, ...], tuple[str, ...], str]] = {}
    for i in computation.instructions:
        operands = [shapes[operand] for operand in i.operands]
        root = plain(module.by_name[i.called[0]].root.shape) if i.called else None
        known = shapes[i.name] if shaped and i.opcode == "parameter" else _expected(i, operands, root, usual)
        if i.opcode in SHOWN and isinstance(known, Shape) and known.dims:
            known = Shape(known.dtype, (-1,) * (len(known.dims) + 1))  # no shape has these
        shape, dims = _difference(shapes[i.name], known, usual)
        callees = [found[name] for name in i.called]
        end = after_opcode(i, operands)
        if i.opcode == "constant" and end[:1] in RAW:  # a number is no part of the skeleton
            shape, dims, end = shape + MARK, (*dims, end), ""
        end = "".join(f"[{','.join(MARK for _ in body.arguments)}]" for body in callees if body.arguments) + end
        dims = (*dims, *(argument for body in callees for argument in body.arguments))
        starts[i.name] = (before_shape(i), (shape, *dims), tuple(body.digest for body in callees), end)
    local = {name: _digest(*start, *dims, *called, end) for name, (start, dims, called, end) in starts.items()}
    order, fresh, live = _ordered(computation, local)
    references = _references(order, fresh)
    parameter = 0
    items = []
    for at, (i, (reference, label)) in enumerate(zip(order, references, strict=True)):
        start, written, called, end = starts[i.name]
        if i.opcode == "parameter":
            start += "" if int(i.literal) == parameter else f"{int(i.literal) - parameter:+d}"
            parameter = int(i.literal) + 1
        mark = "$" * label + ";" * (at == live - 1 < len(order) - 1)
        text, labels = reference
        items.append(Item(start + text + written[0], labels + written[1:], called, end + mark))
    digest = _digest(*(part for item in items for part in (item.start, *item.called, item.end, "\2")))
    return Body(tuple(items), tuple(i.name for i in order), digest)


def _expected(i: Instruction, operands: list[AnyShape], root: AnyShape | None, usual: str) -> AnyShape | None:
    if i.opcode == "constant":
        return Shape(usual, ())
    return follows(i, operands, root)


def _difference(shape: AnyShape, known: AnyShape | None, usual: str) -> tuple[str, tuple[str, ...]]:
    """How a shape is written where another (or none) is expected; MARK stands for the dimensions that are returned."""
    if shape == known:
        return "", ()
    if isinstance(shape, TupleShape):
        parts = [_difference(element, None, usual) for element in shape.elements]
        text = ",".join(text for text, _ in parts)
        return f"{shape.prefix}({text})", tuple(d for _, dims in parts for d in dims)
    expected = known.dtype if isinstance(known, Shape) else usual
    dtype = "" if shape.dtype == expected else f":{shape.dtype}"
    layout = f"{{{shape.layout}}}" if shape.layout else ""
    if isinstance(known, Shape) and (known.dims, known.dynamic) == (shape.dims, shape.dynamic):
        return dtype + (layout if shape.layout != known.layout else ""), ()
    dims = ",".join("?" if d < 0 else f"<={d}" if n in shape.dynamic else str(d) for n, d in enumerate(shape.dims))
    return f"{dtype}{MARK}{layout}", (dims,)


def _references(
    order: list[Instruction], fresh: dict[str, list[bool]]
) -> list[tuple[tuple[str, tuple[str, ...]], bool]]:
    """For each instruction the text of its operands with the labels in it, and whether it has a label itself."""
    at = {i.name: n for n, i in enumerate(order)}
    far: Counter[str] = Counter()
    for n, i in enumerate(order):
        far.update(o for o, first in zip(i.operands, fresh[i.name], strict=True) if not first and n - at[o] > NEAR)
    labels = {i.name: letters(k) for k, i in enumerate(i for i in order if far[i.name] >= LABELLED)}
    pointer = 0
    found = []
    for n, i in enumerate(order):
        text, named = "", []
        for operand, first in zip(i.operands, fresh[i.name], strict=True):
            if first:
                text += "O"
            elif n - at[operand] <= NEAR:
                text += chr(96 + n - at[operand])
            elif operand in labels:
                text += f"{MARK}."
                named.append("$" + labels[operand])
            else:
                text += f"{at[operand] - pointer:+d}."
                pointer = at[operand]
        text = "" if all(fresh[i.name]) else "." + text.rstrip(".")
        found.append(((text, tuple(named)), i.name in labels))
    return found


# ------------------------------------------------------------------------------------------------------------- order


def _ordered(computation: Computation, local: dict[str, str]) -> tuple[list[Instruction], dict[str, list[bool]], int]:
    """Instructions in post-order from the root, then those that the root does not need; for each, which operands it
    is the first to use; and how many the root needs. `local` says what an instruction is but for its operands."""
    order: list[Instruction] = []
    fresh: dict[str, list[bool]] = {}

    def visit(start: str) -> None:
        fresh[start] = []
        stack = [(computation.by_name[start], 0)]
        while stack:
            i, position = stack.pop()
            if position == len(i.operands):
                order.append(i)
                continue
            stack.append((i, position + 1))
            operand = i.operands[position]
            fresh[i.name].append(operand not in fresh)
            if operand not in fresh:
                fresh[operand] = []
                stack.append((computation.by_name[operand], 0))

    visit(computation.root.name)
    live = len(order)
    if live < len(computation.instructions):
        for name in _dead_ends(computation, local, order):
            visit(name)
    return order, fresh, live


def _dead_ends(computation: Computation, local: dict[str, str], order: list[Instruction]) -> list[str]:
    """What nothing uses, by what it computes and by who else uses its parts, so not by name or printed order.

    Hashes are handed from operands to users, back, and to users again; what the root needs has its place in the order.
    """
    place = {i.name: str(n) for n, i in enumerate(order)}
    content: dict[str, str] = {}
    users: dict[str, list[str]] = {}
    final: dict[str, str] = {}
    for i in computation.instructions:
        number = i.literal if i.opcode == "parameter" else ""
        content[i.name] = _digest(place.get(i.name, ""), local[i.name], number, *(content[o] for o in i.operands))
    context = dict(content)
    for i in reversed(computation.instructions):
        context[i.name] = _digest(content[i.name], *sorted(users.get(i.name, [])))
        for position, operand in enumerate(i.operands):
            users.setdefault(operand, []).append(f"{position} {context[i.name]}")
    for i in computation.instructions:
        final[i.name] = _digest(context[i.name], *(final[o] for o in i.operands))
    ends = [i.name for i in computation.instructions if i.name not in users and i.name not in place]
    return sorted(ends, key=lambda name: final[name])


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=12).hexdigest()
