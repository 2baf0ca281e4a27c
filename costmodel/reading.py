"""How files are read that others may have written: whole, of bounded size, and with one line for what is wrong.

Nothing read here is executed, and nothing is read before it is known to be a regular file of a size that fits: a pipe
would never end, and a device never stop.
"""

from __future__ import annotations

import ast
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from costmodel.records import UserError

MOST_SOURCE_BYTES = 4 << 20  # of a kernel's text; what torch.compile writes is far shorter
MOST_JSON_BYTES = 64 << 20  # of a document that is decoded whole, which takes many times as much memory
MOST_LINE = 1 << 20  # characters in a line of a table
MOST_LITERAL = 1 << 16  # characters in a Python literal, which is parsed by recursion


def regular(path: Path, *, expected: str) -> int:
    """The size in bytes of a file, links followed. UserError where there is none, or no regular one."""
    try:
        found = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"cannot read {str(path)!r} ({reason}), expected {expected}; check the path") from error
    if not stat.S_ISREG(found.st_mode):
        kind = "folder" if stat.S_ISDIR(found.st_mode) else "pipe, device or socket"
        raise UserError(f"got {path}, a {kind}, expected {expected}; give a regular file")
    return found.st_size


def text(path: Path, *, most_bytes: int, expected: str) -> str:
    """A whole file as text."""
    size = regular(path, expected=expected)
    if size > most_bytes:
        raise UserError(f"got {path} of {size} bytes, expected {expected} of at most {most_bytes}; give a smaller file")
    try:
        with path.open("rb") as file:
            return file.read(most_bytes).decode()  # it may have grown
    except UnicodeDecodeError as error:
        raise UserError(
            f"got {path}, which is not UTF-8 ({error.reason} at byte {error.start}), expected {expected}; convert it"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}), expected {expected}; check its permissions") from error


def source(path: Path) -> str:
    """A kernel's text, with line ends as Python reads them."""
    read = text(path, most_bytes=MOST_SOURCE_BYTES, expected="a kernel's source")
    return read.replace("\r\n", "\n").replace("\r", "\n")


def decoded(document: str | bytes) -> Any:
    """JSON text as a value. ValueError for anything else: brackets nested too deep, integers of too many digits."""
    try:
        return json.loads(document)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def json_object(path: Path, *, expected: str, most_bytes: int = MOST_JSON_BYTES) -> dict[str, Any]:
    """A JSON file whose top is an object."""
    try:
        found = decoded(text(path, most_bytes=most_bytes, expected=expected))
    except ValueError as error:
        raise UserError(f"got {path}, which is not JSON ({error}), expected {expected}; fetch it again") from error
    if not isinstance(found, dict):
        raise UserError(f"got {path}, JSON of a {type(found).__name__}, expected {expected}; give another file")
    return found


def literal(written: str) -> Any:
    """A Python literal. ValueError for anything else, however deep it is nested."""
    try:
        return ast.literal_eval(expression(written))
    except (RecursionError, TypeError) as error:  # TypeError: a set of lists
        raise ValueError(f"it is no Python literal ({type(error).__name__})") from None


def expression(written: str) -> ast.expr:
    """The tree of a Python expression, not evaluated. ValueError for anything else."""
    if len(written) > MOST_LITERAL:
        raise ValueError(f"it has {len(written)} characters, expected at most {MOST_LITERAL}")
    try:
        return ast.parse(written.strip(), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError) as error:  # the parser's stack is full: MemoryError
        raise ValueError(f"it is no Python expression ({type(error).__name__})") from None


def module(written: str, name: str) -> ast.Module:
    """The tree of a Python file, not executed. UserError for what Python cannot parse."""
    try:
        return ast.parse(written)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error) or "it is nested too deep"
        raise UserError(f"got {name}, which Python cannot parse ({reason}), expected a Python file; mend it") from error


def short(error: BaseException) -> str:
    """What an error says, in one line of at most 200 characters."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def lines(file: TextIO) -> Iterator[str]:
    """Line by line. ValueError at one that is longer than any table's."""
    while line := file.readline(MOST_LINE):
        if len(line) == MOST_LINE and not line.endswith("\n"):
            raise ValueError(f"a line has over {MOST_LINE} characters")
        yield line
