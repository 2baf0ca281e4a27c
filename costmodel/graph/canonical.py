"""The canonical text of a module: what decides its cost, and nothing that does not, in few tokens.

    f32 A=8,32
    @a: p p add
     p[8,16] p[16,32] dot:A p[32] broadcast:A{b} add tanh constant(0) reduce[8]@a{b}

Instructions stand in post-order from the root, operands in their order, so that neither names nor the printed order
matter. The first line has the usual element type and the shapes that are written more than once; then comes a line for
each distinct computation that is called, the entry last.

`.ab` names operands by distance backwards (a: the one before), numbers with a sign count from the last operand that
was so far away, `$a` is the first value marked `$`; an operand that nothing used before is O, and where all are O none
is written. `12(...)` repeats what is in brackets; `3[A,(1);B,(2);C,(3)]( ... )` does with a row of sizes, numbers or
labels for each turn, of which `:a` is the first; so does a call `@a[:A,(1)]`, whose `%a` is the first. Shapes and
element types stand where they do not follow from the operands (`follows.py`) or matter most; parameters of called
computations follow from the call. Dimensions are letters (a: 0; of a dot in capitals where they are summed over); `p`
is the next parameter, `p+2` two later. After `;` stands what the root does not need.

Left out: names; attributes of the module; metadata, frontend attributes, channel ids, statistics, threads, layout
constraints, control dependencies; backend configurations but for trip counts and kinds of fusion; layouts that run
from major to minor; the values of arrays (but for zeros, ones, iota, one value) and of numbers with a fraction of over
four characters; what is "false"; computations that nothing calls.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from costmodel.graph.bodies import MARK, RAW, Body, Item, bodies, letters
from costmodel.graph.folding import Repeat, folded
from costmodel.graph.hlo import Module
from costmodel.graph.order import postorder


@dataclass(frozen=True, slots=True)
class Word:
    """A piece of the canonical text and the instructions it stands for, as (computation, name); structure: none."""

    text: str
    instructions: tuple[tuple[str, str], ...] = ()


def canonical_text(module: Module) -> str:
    """Equal for modules that differ in names, in the order of independent instructions, or in what is left out."""
    return "".join(word.text for word in canonical_words(module))


def canonical_words(module: Module) -> tuple[Word, ...]:
    """The text in pieces, each with the instructions whose cost it stands for: in repeats and in computations that
    are equal, several."""
    usual = _usual_dtype(module)
    found_bodies = bodies(module, usual)
    members: dict[str, list[tuple[str, Body]]] = {}
    for name, body in found_bodies.items():
        members.setdefault(body.digest, []).append((name, body))
    reached = _reached(found_bodies[module.entry], {d: found[0][1] for d, found in members.items()})
    calls = {digest: "@" + letters(n) for n, digest in enumerate(reached)}
    pieces: list[_Piece] = []
    for digest in reached:
        items = members[digest][0][1].items
        tree = folded(items, [item.skeleton for item in items])
        pieces += [] if digest == found_bodies[module.entry].digest else [_Piece(f"{calls[digest]}:")]
        pieces += [*_written(tree, members[digest], calls), _Piece("\n")]
    written = Counter(slot for piece in pieces for slot in piece.slots if slot[:1] not in RAW)
    labels = {dims: letters(n).upper() for n, dims in enumerate(d for d, times in written.items() if times > 1 and d)}
    head = Word(usual + "".join(f" {label}={dims}" for dims, label in labels.items()) + "\n")
    return (head, *(Word(_filled(piece, labels), piece.instructions) for piece in pieces))


@dataclass(frozen=True, slots=True)
class _Piece:
    """A word whose shapes have no letters yet: each MARK in the text takes a slot."""

    text: str
    slots: tuple[str, ...] = ()
    instructions: tuple[tuple[str, str], ...] = ()
    is_table: bool = False  # of slots alone, so no sign need tell a shape from what stands before it


def _written(tree: list[int | Repeat], found: list[tuple[str, Body]], calls: dict[str, str]) -> list[_Piece]:
    """A folded body; a word in a repeat stands for its instructions in every turn."""
    pieces: list[_Piece] = []
    items = found[0][1].items
    stack: list[tuple[list[int | Repeat], int, tuple[int, ...], dict[tuple[int, int], str]]] = [(tree, 0, (0,), {})]
    while stack:
        nodes, at, shifts, columns = stack.pop()
        if at == len(nodes):
            pieces += [_Piece(" )")] if stack else []
            continue
        stack.append((nodes, at + 1, shifts, columns))
        node = nodes[at]
        if isinstance(node, Repeat):
            columns, rows = (columns, []) if columns else _columns(node, items)
            rows_text = "[" + ";".join(",".join(MARK for _ in row) for row in rows) + "]" if rows else ""
            pieces.append(
                _Piece(f" {node.times}{rows_text}(", tuple(slot for row in rows for slot in row), is_table=True)
            )
            turns = tuple(shift + turn * node.length for shift in shifts for turn in range(node.times))
            stack.append((node.inside, 0, turns, columns))
            continue
        item, kept = items[node], []
        text = f" {item.start}{''.join(calls[digest] for digest in item.called)}{item.end}"
        for n, slot in enumerate(item.slots):
            if column := columns.get((node, n)):
                text = text.replace(MARK, column, 1)
            else:
                text = text.replace(MARK, "\2", 1)
                kept.append(slot)
        text = text.replace("\2", MARK)
        members = tuple((name, body.names[node + shift]) for name, body in found for shift in shifts)
        pieces.append(_Piece(text, tuple(kept), members))
    return pieces


def _columns(repeat: Repeat, items: tuple[Item, ...]) -> tuple[dict[tuple[int, int], str], list[tuple[str, ...]]]:
    """The slots that differ from turn to turn, by (position, number), with the letters of their columns; the rows."""
    found: dict[tuple[str, ...], str] = {}
    columns = {}
    waiting = list(reversed(repeat.inside))
    while waiting:
        node = waiting.pop()
        if isinstance(node, Repeat):
            waiting += reversed(node.inside)
            continue
        turns = [items[node + turn * repeat.length].slots for turn in range(repeat.times)]
        for n, values in enumerate(zip(*turns, strict=True)):
            if len(set(values)) > 1:
                columns[node, n] = ":" + found.setdefault(values, letters(len(found)))
    return columns, [tuple(column[turn] for column in found) for turn in range(repeat.times)] if found else []


def _filled(piece: _Piece, labels: dict[str, str]) -> str:
    text = piece.text
    for slot in piece.slots:
        written = slot if slot[:1] in RAW else labels.get(slot, f"[{slot}]")
        text = text.replace(MARK, written if piece.is_table or written[0] in "[($~" else f":{written}", 1)
    return text


def _usual_dtype(module: Module) -> str:
    found = Counter(
        leaf.dtype for c in module.computations for i in c.instructions for leaf in i.shape.leaves() if leaf.dims
    )
    return min(found, key=lambda dtype: (-found[dtype], dtype)) if found else "f32"


def _reached(entry: Body, distinct: dict[str, Body]) -> list[str]:
    """Digests of what the entry calls, callees first, in the order of the calls."""
    return postorder([entry.digest], lambda digest: [c for item in distinct[digest].items for c in item.called])
