"""HLO text to a `Module`: what XLA prints, before optimization and after, with or without layouts, `%` and metadata.

One pass over the text with a position and compiled patterns; brackets are counted, not descended into, so that depth
costs no stack. Attributes and literals are taken as balanced text. Whatever is broken ends in one `UserError` with the
number of its line.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import NoReturn

from costmodel.graph.hlo import BITS, AnyShape, Attributes, Computation, Instruction, Module, Shape, TupleShape
from costmodel.records import UserError

MAX_CHARS = 1 << 28
MAX_INSTRUCTIONS = 500_000
MAX_NESTING = 100
MAX_ELEMENTS = 1 << 62  # XLA's own sizes are signed 64-bit

_A = re.ASCII
_SKIP = re.compile(r"(?:\s+|/\*.*?\*/|//[^\n]*)*+", re.DOTALL)
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_MODULE = re.compile(r"HloModule\s+([^\s,{}()=\"]+)", _A)
_TABLE = re.compile(r"(?:FileNames|FunctionNames|FileLocations|StackFrames)[ \t]*(?:\n[ \t]*\d+ [^\n]*)*", _A)
_COMPUTATION = re.compile(r"(ENTRY\s+)?%?([\w.\-]+)\s*", _A)
_INSTRUCTION = re.compile(r"(ROOT\s+)?%?([\w.\-]+)\s*=\s*", _A)
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([\d,<=?\s]*)\](?:\{([^{}\"]*+(?:\{[^{}\"]*\}[^{}\"]*+)*+)\})?", _A)
_DIM = re.compile(r"\s*(?:(<=)?(\d{1,19})|\?)\s*", _A)
_OPEN_TUPLE = re.compile(r"(b?)\(")
_OPCODE = re.compile(r"\s*([a-zA-Z][\w\-]*)\(", _A)
_OPERANDS = re.compile(r"(?:%?[\w.\-]++(?:, %?[\w.\-]++)*+)?\)", _A)
_OPERAND = re.compile(r"%?([\w.\-]+)(?=\s*[,)/])", _A)
_NAME = re.compile(r"[\w.\-]+", _A)
_KEY = re.compile(r"([A-Za-z_][\w\-]*)\s*=\s*", _A)
_QUOTED = re.compile(r'"[^"\\\n]*+(?:\\.[^"\\\n]*+)*+"')
# The usual values: a bare word, quoted text, braces or brackets with nothing nested but quoted text.
_USUAL_VALUE = re.compile(
    r'(?:[^\s,(){}\[\]"/]+|\{(?:[^"(){}\[\]/]++|"[^"\\\n]*+(?:\\.[^"\\\n]*+)*+")*+\}|"[^"\\\n]*+(?:\\.[^"\\\n]*+)*+")'
    r"(?=[,\n}]|\Z)"
)
_STOP = re.compile(r'["(){}\[\]]|/\*|//')
_STOP_OUTSIDE = re.compile(r'["(){}\[\],\s]|/\*|//')
_CLOSING = {"(": ")", "[": "]", "{": "}"}


def read(path: str | Path, *, max_chars: int = MAX_CHARS, max_instructions: int = MAX_INSTRUCTIONS) -> Module:
    """The module in a file; what is no HLO text, or larger than the limits, is a `UserError` that names the file."""
    path = Path(path)
    try:
        if path.stat().st_size > 4 * max_chars:  # UTF-8 has at most four bytes for a character
            raise UserError(f"got {path.stat().st_size} bytes, expected at most {max_chars} characters")
        return parse(path.read_text(encoding="utf-8"), max_chars=max_chars, max_instructions=max_instructions)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"byte {error.start} is no UTF-8"
        raise UserError(f"got {path}, expected a file of HLO text: {reason}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def parse(
    text: str,
    *,
    max_chars: int = MAX_CHARS,
    max_instructions: int = MAX_INSTRUCTIONS,
    max_nesting: int = MAX_NESTING,
) -> Module:
    """Read a module, in time and memory proportional to its text.

    Checked: brackets and quotes, element types, that operands stand before their users and called computations exist
    and call each other in no circle, that names are unique and parameters are numbered 0, 1, ... Not checked: whether
    shapes and attributes agree with the opcode.
    """
    if len(text) > max_chars:
        raise UserError(f"got {len(text)} characters of HLO text, expected at most {max_chars}")
    text = text.replace("\r\n", "\n")
    if strange := _NOT_TEXT.search(text):
        line = text.count("\n", 0, strange.start()) + 1
        raise UserError(f"line {line}: got the character {strange[0]!r}, expected HLO text")
    module = _Reader(text, max_instructions, max_nesting).module()
    _check_calls(module)
    return module


class _Reader:
    """A position in the text. Every method starts at it and leaves it behind what was read."""

    def __init__(self, text: str, max_instructions: int, max_nesting: int) -> None:
        self.text, self.at = text, 0
        self.max_instructions, self.max_nesting = max_instructions, max_nesting
        self.count = 0
        self.shapes: dict[str, Shape] = {}  # equal text, one object
        self.pairs: dict[tuple[str, str], tuple[str, str]] = {}

    def fail(self, expected: str, at: int | None = None, got: str | None = None) -> NoReturn:
        at = self.at if at is None else at
        line = self.text.count("\n", 0, at) + 1
        if got is None:
            got = repr(self.text[at : at + 40].split("\n")[0]) if at < len(self.text) else "the end of the text"
        raise UserError(f"line {line}: got {got}, expected {expected}")

    def skip(self) -> str:
        """Over blanks and comments; the character that follows, "" at the end."""
        match = _SKIP.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return self.text[self.at : self.at + 1]

    def take(self, pattern: re.Pattern[str], expected: str) -> re.Match[str]:
        match = pattern.match(self.text, self.at)
        if match is None:
            self.fail(expected)
        self.at = match.end()
        return match

    # ------------------------------------------------------------------------------------------------------- module

    def module(self) -> Module:
        self.skip()
        name = self.take(_MODULE, "HloModule and a name")[1]
        attributes = self.attributes()
        tables = []
        while self.skip() and (table := _TABLE.match(self.text, self.at)):
            tables.append(table[0].rstrip())
            self.at = table.end()
        computations: dict[str, Computation] = {}
        entries: list[str] = []
        while self.skip():
            start = self.at
            computation, is_entry = self.computation()
            if computation.name in computations:
                self.fail("a computation of another name", start, f"a second {_short(computation.name)}")
            computations[computation.name] = computation
            entries += [computation.name] if is_entry else []
        if not computations:
            self.fail("a computation")
        if len(entries) > 1:
            self.fail("one", got=f"{len(entries)} computations marked ENTRY")
        entry = entries[0] if entries else list(computations)[-1]  # as XLA's parser takes it
        return Module(name, attributes, tuple(computations.values()), entry, "\n\n".join(tables))

    def computation(self) -> tuple[Computation, bool]:
        start = self.at
        match = self.take(_COMPUTATION, "a computation: its name, then instructions in braces")
        header = ""
        if self.skip() == "(":
            start = self.at
            self.balanced()
            if self.skip() and self.text.startswith("->", self.at):
                self.at += 2
                self.shape()
            header = " ".join(self.text[start : self.at].split())
        if self.skip() != "{":
            self.fail("'{' before the instructions of a computation")
        self.at += 1
        instructions: list[Instruction] = []
        defined: dict[str, str] = {}
        while (char := self.skip()) and char != "}":
            instructions.append(self.instruction(defined))
        if not char:
            self.fail(f"'}}' after the instructions of {_short(match[2])}")
        if not instructions:
            self.fail(f"an instruction in {_short(match[2])}")
        self.check(match[2], instructions)
        self.at += 1
        return Computation(match[2], tuple(instructions), header, self.attributes()), match[1] is not None

    def check(self, name: str, instructions: list[Instruction]) -> None:
        numbers = sorted(int(i.literal) for i in instructions if i.opcode == "parameter")
        if numbers != list(range(len(numbers))):
            self.fail("each of 0, 1, ... once", got=f"parameters {_short(str(numbers))} in {_short(name)}")
        if (roots := sum(i.is_root for i in instructions)) > 1:
            self.fail("one", got=f"{roots} instructions marked ROOT in {_short(name)}")

    # -------------------------------------------------------------------------------------------------- instruction

    def instruction(self, defined: dict[str, str]) -> Instruction:
        start = self.at
        self.count += 1
        if self.count > self.max_instructions:
            self.fail("no more", got=f"over {self.max_instructions} instructions")
        match = self.take(_INSTRUCTION, "an instruction: name = shape opcode(operands)")
        name = match[2]
        shape = self.shape()
        self.skip()
        opcode = self.take(_OPCODE, "an opcode and '('")[1]
        operands: tuple[str, ...] = ()
        literal = ""
        if opcode in ("constant", "parameter"):
            self.at -= 1
            before = self.at
            literal = self.balanced()[1:-1].strip()
            if opcode == "parameter":
                if not (literal.isascii() and literal.isdigit() and len(literal) < 10):
                    self.fail("the number of a parameter", before)
                literal = str(int(literal))
        else:
            operands = self.operands(defined)
        attributes = self.attributes()
        if name in defined:
            self.fail("an instruction of another name", start, f"a second {_short(name)}")
        defined[name] = name
        return Instruction(name, shape, opcode, operands, attributes, literal, match[1] is not None)

    def shape(self) -> AnyShape:
        stack: list[tuple[str, list[AnyShape]]] = []
        while True:
            char = self.skip()
            if opening := _OPEN_TUPLE.match(self.text, self.at):
                if len(stack) == self.max_nesting:
                    self.fail(f"tuples at most {self.max_nesting} deep")
                stack.append((opening[1], []))
                self.at = opening.end()
                if self.skip() != ")":
                    continue
                self.at += 1
                prefix, elements = stack.pop()
                shape: AnyShape = TupleShape(tuple(elements), prefix)
            else:
                shape = self.array()
            while stack:
                stack[-1][1].append(shape)
                char = self.skip()
                if char not in (",", ")"):
                    self.fail("',' or ')' in a tuple shape")
                self.at += 1
                if char == ",":
                    break
                prefix, elements = stack.pop()
                shape = TupleShape(tuple(elements), prefix)
            else:
                return shape

    def array(self) -> Shape:
        start = self.at
        match = self.take(_ARRAY, "a shape like f32[8,16]{1,0}")
        shape = self.shapes.get(match[0])
        if shape is None:
            if match[1] not in BITS:
                self.fail(f"an element type ({', '.join(list(BITS)[4:16])}, ...)", start, repr(match[1][:40]))
            dims, dynamic, size = [], [], 1
            for i, dim in enumerate(match[2].split(",") if match[2].strip() else ()):
                found = _DIM.fullmatch(dim)
                if found is None:
                    self.fail("sizes separated by commas", start)
                dims.append(int(found[2]) if found[2] else -1)
                dynamic += [i] if found[1] else []
                size *= abs(dims[-1]) or 1
                if size > MAX_ELEMENTS:
                    self.fail("at most 2^62 elements", start)
            layout = " ".join((match[3] or "").split())
            shape = self.shapes[match[0]] = Shape(match[1], tuple(dims), layout, tuple(dynamic))
        return shape

    def operands(self, defined: dict[str, str]) -> tuple[str, ...]:
        """Up to and with the closing bracket; the names of earlier instructions, with their shapes or without."""
        start = self.at
        if match := _OPERANDS.match(self.text, start):  # what XLA prints by default
            self.at = match.end()
            names = match[0][:-1].replace("%", "").split(", ") if len(match[0]) > 1 else []
        else:
            names = []
            while (char := self.skip()) != ")":
                if names:
                    if char != ",":
                        self.fail("',' or ')' after an operand")
                    self.at += 1
                    self.skip()
                if not (found := _OPERAND.match(self.text, self.at)):
                    self.shape()
                    self.skip()
                    if self.text.startswith("%", self.at):
                        self.at += 1
                    names.append(self.take(_NAME, "the name of an operand")[0])
                else:
                    names.append(found[1])
                    self.at = found.end()
            self.at += 1
        try:
            return tuple([defined[name] for name in names])
        except KeyError as error:
            self.fail("an instruction that stands before its user", start, f"the operand {_short(error.args[0])}")

    # --------------------------------------------------------------------------------------------------- attributes

    def attributes(self) -> Attributes:
        found = []
        while self.skip() == ",":
            self.at += 1
            self.skip()
            key = self.take(_KEY, "an attribute: name=value")[1]
            pair = (key, self.value())
            found.append(self.pairs.setdefault(pair, pair) if len(pair[1]) < 100 else pair)
        return tuple(found)

    def value(self) -> str:
        """To the comma, blank or closing bracket that ends it."""
        if match := _USUAL_VALUE.match(self.text, self.at):
            self.at = match.end()
            return _one_line(match[0])
        return self.balanced(whole_value=True)

    def balanced(self, *, whole_value: bool = False) -> str:
        """Text with balanced brackets: one bracket and its inside, or a whole value (`devices=[2,1]<=[2]`).

        Quoted text is opaque; comments to the end of a line are dropped; on one line.
        """
        text, start, at = self.text, self.at, self.at
        kept: list[str] = []
        closers: list[tuple[str, int]] = []
        while True:
            match = (_STOP if closers else _STOP_OUTSIDE).search(text, at)
            if match is None or (not closers and (match[0] in ",)]}" or match[0].isspace())):
                if closers:
                    self.fail(f"{closers[-1][0]!r} after this bracket", closers[-1][1])
                at = match.start() if match else len(text)
                break
            found, at = match[0], match.end()
            if found in _CLOSING:
                if len(closers) == self.max_nesting:
                    self.fail(f"brackets at most {self.max_nesting} deep", match.start())
                closers.append((_CLOSING[found], match.start()))
            elif found == '"':
                quoted = _QUOTED.match(text, match.start())
                if quoted is None:
                    self.fail("'\"' at the end of quoted text on the same line", match.start())
                at = quoted.end()
            elif found == "/*":
                at = text.find("*/", at) + 2
                if at == 1:
                    self.fail("'*/' after this comment", match.start())
            elif found == "//":
                kept.append(text[start : match.start()])
                end = text.find("\n", at)
                at = start = end if end >= 0 else len(text)
            elif closers.pop()[0] != found:
                self.fail("the bracket that was opened to be closed first", match.start())
            elif not closers and not whole_value:
                break
        kept.append(text[start:at])
        value = _one_line("".join(kept))
        if not value:
            self.fail("the value of an attribute")
        self.at = at
        return value


def _one_line(value: str) -> str:
    """Line breaks stand outside quotes only."""
    return " ".join(line.strip() for line in value.split("\n")) if "\n" in value else value


def _short(name: str) -> str:
    return repr(name if len(name) <= 40 else name[:37] + "...")


def _check_calls(module: Module) -> None:
    """Every called computation exists, and none calls itself through others (topological order by waiting callers)."""
    calls = {c.name: [called for i in c.instructions for called in i.called] for c in module.computations}
    waiting: Counter[str] = Counter()
    for name, called in calls.items():
        for other in called:
            if other not in calls:
                raise UserError(
                    f"got a call of {_short(other)} in {_short(name)}, expected a computation of the module"
                )
        waiting.update(called)
    ready = [name for name in calls if not waiting[name]]
    done = 0
    while ready:
        done += 1
        for other in calls[ready.pop()]:
            waiting[other] -= 1
            if not waiting[other]:
                ready.append(other)
    if done < len(calls):
        circle = next(name for name in calls if waiting[name] > 0)
        raise UserError(f"got calls in a circle, at or above {_short(circle)}; expected none to reach its caller")
