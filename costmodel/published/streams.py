"""Published files as text, read a piece at a time: gzip or not, and JSON of any size one member after another.

A tuning cache may hold gigabytes and may end where its run was killed, so nothing here reads a file whole. JSON is
decoded by the standard library's decoder over a sliding window; NaN and Infinity, which Python's writers emit, are
read. Numbers with a fraction stay text (`Decimals`), so that a change of unit moves the decimal point and loses
nothing. A value, a line and the growth of a gzip file are bounded, so that no file makes a reader take much memory.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol, TextIO, cast

from costmodel import reading
from costmodel.records import UserError

_CHUNK = 1 << 20  # characters
_LARGEST = 4 << 20  # characters in one value: more than any entry of a cache needs; decoded it takes many times that
_GROWTH = 300  # times its size that gzip may unpack to: less than a bomb does, more than a cache
_UNPACKED_FREELY = 256 << 20  # bytes
_LITERAL = 32  # characters: a number or a word that the end cuts short
_SPACE = re.compile(r"[ \t\r\n]*")


class Decimals(str):
    """A JSON number that has a fraction or an exponent, as it is written."""

    __slots__ = ()


class Cut(Exception):
    """The text ends inside a value, as the file of a killed run does."""


def plain(value: Any) -> Any:
    """A decoded scalar with its number as a float."""
    return float(value) if isinstance(value, Decimals) else value


def shifted(number: Any, exponent: int) -> float:
    """number x 10^exponent, correctly rounded from the decimal text: 0.07 ms is 70 us, not 70.00000000000001.

    Raises ValueError for text that is no number.
    """
    try:
        return float(f"{number}e{exponent}")
    except ValueError:
        try:
            return float(Decimal(str(number)).scaleb(exponent))  # it has an exponent already, or is not finite
        except ArithmeticError:
            raise ValueError(f"{number!r} is no number") from None


def is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """The file as text, whatever it is called; what is wrong with it is a UserError of one line."""
    reading.regular(path, expected="a published record")
    try:
        is_packed = is_gzip(path)
        if path.suffix == ".gz" and not is_packed:
            raise UserError(f"got {path}, which is not gzip, expected gzip in a .gz file; rename or compress it")
        with _Unpacked(path) if is_packed else path.open("rb") as file:
            yield cast(TextIO, io.TextIOWrapper(cast(Any, file), encoding="utf-8-sig", newline=""))
    except UnicodeDecodeError as error:
        raise UserError(f"got {path}, which is not text ({error.reason}), expected a published record") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"got {path}, whose gzip ends early or is damaged ({error}); fetch the file again") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; give a file that can be read") from error


class _Unpacked(io.BufferedIOBase):
    """Reads gzip up to a number of bytes."""

    def __init__(self, path: Path) -> None:
        self._file, self._path, self._taken = gzip.GzipFile(path), path, 0
        self._most = max(_UNPACKED_FREELY, _GROWTH * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def read1(self, size: int | None = -1, /) -> bytes:
        found = self._file.read1(-1 if size is None else size)
        self._taken += len(found)
        if self._taken > self._most:
            raise UserError(
                f"got {self._path}, whose gzip unpacks to over {_GROWTH} times its size, expected a published record; "
                "unpack it yourself if it is one"
            )
        return found

    read = read1

    def close(self) -> None:
        self._file.close()
        super().close()


class Readable(Protocol):
    """A text that can be read on."""

    def read(self, size: int, /) -> str: ...


class JsonStream:
    """A JSON text whose top is one object, read member by member.

    Walk `members()`; for each key take the value with exactly one of `value()`, `pairs()` and `items()`. Raises `Cut`
    where the text ends early and ValueError where it is not JSON.
    """

    def __init__(self, file: Readable) -> None:
        self._file, self._text, self._at, self._done = file, "", 0, False
        self._decode = json.JSONDecoder(parse_float=Decimals).raw_decode

    def members(self) -> Iterator[str]:
        """The keys of the object that begins here, the stream standing at each key's value."""
        self._expect("{")
        if self._peek() == "}":
            self._at += 1
            return
        while True:
            key = self.value()
            if not isinstance(key, str):
                raise ValueError("a key is not text")
            self._expect(":")
            yield key
            if not self._another("}"):
                return

    def pairs(self) -> Iterator[tuple[str, Any]]:
        """The members of the object that begins here, decoded."""
        for key in self.members():
            yield key, self.value()

    def items(self) -> Iterator[Any]:
        """The elements of the array that begins here."""
        self._expect("[")
        if self._peek() == "]":
            self._at += 1
            return
        while True:
            yield self.value()
            if not self._another("]"):
                return

    def value(self) -> Any:
        """The value that begins here, decoded whole."""
        while True:
            self._peek()
            try:
                found, end = self._decode(self._text, self._at)
            except RecursionError:
                raise ValueError("a value is nested too deep") from None
            except json.JSONDecodeError as error:
                if self._more():
                    continue
                at_the_end = error.msg.startswith("Unterminated") or error.pos > len(self._text) - _LITERAL
                raise (Cut() if self._done and at_the_end else ValueError(error.msg)) from None
            if end == len(self._text) and self._more():
                continue  # a number may go on in the next chunk
            self._at = end
            return found

    def _another(self, end: str) -> bool:
        """After a member: is there one more? A comma before the end, or before the end of the text, is forgiven."""
        mark = self._peek()
        if mark == ",":
            self._at += 1
            mark = self._peek()
            if mark != end:
                return True
        if mark != end:
            raise ValueError(f"{mark!r} where a comma or {end!r} belongs")
        self._at += 1
        return False

    def _expect(self, mark: str) -> None:
        found = self._peek()
        if found != mark:
            raise ValueError(f"{found!r} where {mark!r} belongs")
        self._at += 1

    def _peek(self) -> str:
        """The next character that is not white space."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                raise Cut

    def _more(self) -> bool:
        """Drop what was read and read on, at least as much as is held; False where there is no more."""
        held = len(self._text) - self._at
        if self._done or held > _LARGEST:
            return False
        new = self._file.read(max(_CHUNK, held))
        self._done = not new
        self._text, self._at = self._text[self._at :] + new, 0
        return bool(new)
