"""The footer of a parquet file, read here because pyarrow's own access to it ends the process where it is forged.

A footer is one Thrift struct in the compact protocol, of at most as many values as it has bytes. Formats:
https://parquet.apache.org/docs/file-format/metadata and Thrift's doc/specs/thrift-compact-protocol.md.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

MAGIC = b"PAR1"
MOST_BYTES = 64 << 20
_DEEPEST = 32
_ROWS, _GROUPS, _COLUMNS, _GROUP_BYTES, _COLUMN, _VALUES = 3, 4, 1, 2, 3, 5  # field numbers


def sizes(path: Path) -> tuple[int, int, int]:
    """(rows, most values of a column in a row group, most bytes of a row group unpacked), as the footer states them.

    ValueError where it is none.
    """
    with path.open("rb") as file:
        end = file.seek(0, 2)
        file.seek(max(0, end - 8))
        tail = file.read(8)
        length = int.from_bytes(tail[:4], "little")
        if end < 12 or tail[4:] != MAGIC or not 0 < length <= min(end - 12, MOST_BYTES):
            raise ValueError("no parquet footer at its end")
        file.seek(end - 8 - length)
        top = _Compact(file.read(length)).struct()
    groups = _listed(top.get(_GROUPS, []))
    chunks = [_fields(column).get(_COLUMN, {}) for group in groups for column in _listed(group.get(_COLUMNS, []))]
    values = [_whole(_fields(chunk).get(_VALUES)) for chunk in chunks]
    unpacked = [_whole(group.get(_GROUP_BYTES)) for group in groups]
    return _whole(top.get(_ROWS)), max(values, default=0), max(unpacked, default=0)


def _listed(value: Any) -> list[dict[int, Any]]:
    if not isinstance(value, list):
        raise ValueError("a parquet footer that is none")
    return [_fields(item) for item in value]


def _fields(value: Any) -> dict[int, Any]:
    if not isinstance(value, dict):
        raise ValueError("a parquet footer that is none")
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError("a parquet footer that states no size")
    return value


class _Compact:
    """Decodes structs to {field number: value}; maps, which a footer has none of, are refused."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        found: dict[int, Any] = {}
        number = 0
        while head := self.byte():
            number = number + (head >> 4) if head >> 4 else self.zigzag()
            kind = head & 15
            found[number] = kind == 1 if kind in (1, 2) else self.value(kind, depth)
        return found

    def value(self, kind: int, depth: int) -> Any:
        if depth > _DEEPEST:
            raise ValueError("a parquet footer that is nested too deep")
        readers: dict[int, Callable[[], Any]] = {
            1: self.byte, 2: self.byte, 3: self.byte, 4: self.zigzag, 5: self.zigzag, 6: self.zigzag,
            7: lambda: self.bytes(8), 8: lambda: self.bytes(self.varint()), 9: lambda: self.list(depth + 1),
            10: lambda: self.list(depth + 1), 12: lambda: self.struct(depth + 1),
        }  # fmt: skip
        if kind not in readers:
            raise ValueError("a parquet footer with a value of an unknown kind")
        return readers[kind]()

    def list(self, depth: int) -> list[Any]:
        head = self.byte()
        count = head >> 4 if head >> 4 < 15 else self.varint()
        if count > len(self.data) - self.at:  # each takes a byte at least
            raise ValueError("a parquet footer with a list longer than itself")
        return [self.value(head & 15, depth) for _ in range(count)]

    def byte(self) -> int:
        return self.bytes(1)[0]

    def bytes(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise ValueError("a parquet footer that is cut")
        self.at += count
        return self.data[self.at - count : self.at]

    def varint(self) -> int:
        found = shift = 0
        while True:
            byte = self.byte()
            found |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return found
            if shift > 63:
                raise ValueError("a parquet footer with a number that is too long")

    def zigzag(self) -> int:
        found = self.varint()
        return (found >> 1) ^ -(found & 1)
