"""The records that can be read from the pages of an SQLite file, whatever became of the file around them.

A leaf page of a table holds whole rows, so a row is readable as long as its page is (and, where it is long, the pages
that it overflows into): neither the schema, nor the tree above, nor the end of the file is needed. The format is
https://www.sqlite.org/fileformat2.html: 1.2 (header), 1.6 (b-tree pages), 2.1 (records), 4.1 (write-ahead log).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from costmodel.records import UserError

Value = int | float | str | bytes | None
Record = tuple[int, tuple[Value, ...]]  # rowid, columns

_MAGIC = b"SQLite format 3\0"
_TABLE_LEAF = 0x0D
_WIDTHS = (0, 1, 2, 3, 4, 6, 8)  # bytes of an integer, by serial type
_LOG_HEADER, _FRAME_HEADER = 32, 24
_MOST_COLUMNS = 32  # more than any table of a store has
_MOST_BYTES = 64 << 20  # of one record


class Pages:
    """The pages of a file by number, from 1; those in its write-ahead log, as last committed, stand over the file's."""

    def __init__(self, file: mmap.mmap | bytes, log: mmap.mmap | bytes) -> None:
        self._file, self._log = file, log
        size = int.from_bytes(file[16:18], "big") if file[:16] == _MAGIC else 4096
        self.page_bytes = 65536 if size == 1 else size if size >= 512 and size & (size - 1) == 0 else 4096
        reserved = file[20] if file[:16] == _MAGIC and len(file) > 20 else 0
        self._usable = self.page_bytes - (reserved if reserved <= 32 else 0)
        self._frames = self._committed()
        self.count = max(-(-len(file) // self.page_bytes), *self._frames, 0)

    def claimed(self) -> int:
        """How many pages the file's header says there are; 0 where it says nothing."""
        return int.from_bytes(self._file[28:32], "big") if self._file[:16] == _MAGIC else 0

    def page(self, number: int) -> bytes:
        """Short or empty where the file ends early."""
        if number in self._frames:
            start = self._frames[number]
            return self._log[start : start + self.page_bytes]
        return self._file[(number - 1) * self.page_bytes : number * self.page_bytes]

    def records(self, number: int) -> Iterator[Record]:
        """The rows of a page; none where it is no leaf of a table. Cells that make no sense are passed over. Where the
        log holds the page, what the file has beneath comes too: nothing is ever deleted, so it is true as well."""
        start = (number - 1) * self.page_bytes
        images = [self.page(number)]
        if number in self._frames:
            images.append(self._file[start : start + self.page_bytes])
        for image in images:
            yield from self._leaf(image, 100 if number == 1 else 0)

    def _leaf(self, page: bytes, start: int) -> Iterator[Record]:
        if len(page) < start + 8 or page[start] != _TABLE_LEAF:
            return
        cells = int.from_bytes(page[start + 3 : start + 5], "big")
        for i in range(min(cells, self.page_bytes // 4)):
            offset = int.from_bytes(page[start + 8 + 2 * i : start + 10 + 2 * i], "big")
            try:
                found = self._cell(page, offset)
            except (IndexError, ValueError, struct.error):
                continue
            yield found

    def _committed(self) -> dict[int, int]:
        """Page number -> where its last committed image begins in the log."""
        log = self._log
        if len(log) < _LOG_HEADER or log[:4] not in (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83"):
            return {}
        salt, frames, pending = log[16:24], dict[int, int](), dict[int, int]()
        for start in range(
            _LOG_HEADER, len(log) - _FRAME_HEADER - self.page_bytes + 1, _FRAME_HEADER + self.page_bytes
        ):
            number, committed = struct.unpack(">II", log[start : start + 8])
            if log[start + 8 : start + 16] != salt:
                break  # left over from before the log was begun anew
            pending[number] = start + _FRAME_HEADER
            if committed:
                frames |= pending
                pending.clear()
        return frames

    def _cell(self, page: bytes, offset: int) -> Record:
        size, at = _varint(page, offset)
        rowid, at = _varint(page, at)
        if size > _MOST_BYTES:
            raise ValueError("too long to be a record")
        most, least = self._usable - 35, (self._usable - 12) * 32 // 255 - 23
        here = size if size <= most else least + (size - least) % (self._usable - 4)
        here = least if here > most else here
        payload = page[at : at + here]
        if size > here:
            payload += self._overflow(page[at + here : at + here + 4], size - here)
        if len(payload) != size:
            raise ValueError("cut off")
        return rowid - (1 << 64) * (rowid >> 63), _values(payload)

    def _overflow(self, first: bytes, wanted: int) -> bytes:
        parts, number, seen = [], int.from_bytes(first, "big"), 0
        while wanted > 0:
            page = self.page(number) if 0 < number <= self.count else b""
            if len(page) < 4 or (seen := seen + 1) > self.count:
                raise ValueError("its overflow is lost")
            part = page[4 : 4 + min(wanted, self._usable - 4)]
            parts.append(part)
            wanted -= len(part) or wanted
            number = int.from_bytes(page[:4], "big")
        return b"".join(parts)


@contextmanager
def opened(path: Path) -> Iterator[Pages]:
    """The file and its write-ahead log, read only."""
    log = path.with_name(path.name + "-wal")
    try:
        with path.open("rb") as file, (log if log.is_file() else path).open("rb") as beside:
            if not file.seek(0, 2):
                raise UserError(f"got {path}, which is empty, expected a damaged store")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                if log.is_file() and beside.seek(0, 2):
                    with mmap.mmap(beside.fileno(), 0, access=mmap.ACCESS_READ) as more:
                        yield Pages(data, more)
                else:
                    yield Pages(data, b"")
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}), expected a damaged store; check the path") from error


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Big-endian, seven bits a byte, eight in a ninth; the value and where it ends."""
    value = 0
    for i in range(8):
        byte = data[at + i]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + i + 1
    return value << 8 | data[at + 8], at + 9


def _values(payload: bytes) -> tuple[Value, ...]:
    end, at = _varint(payload, 0)
    types: list[int] = []
    while at < end:
        kind, at = _varint(payload, at)
        types.append(kind)
    if at != end or len(types) > _MOST_COLUMNS:
        raise ValueError("no record's header")
    values: list[Value] = []
    for kind in types:
        size = _WIDTHS[kind] if kind < 7 else 8 if kind == 7 else 0 if kind in (8, 9) else (kind - 12) // 2
        part = payload[at : at + size]
        if len(part) != size or kind in (10, 11):
            raise ValueError("cut off, or no type that a file holds")
        values.append(_value(kind, part))
        at += size
    if at != len(payload):
        raise ValueError("more than its header says")
    return tuple(values)


def _value(kind: int, part: bytes) -> Value:
    if kind == 0:
        return None
    if kind < 7:
        return int.from_bytes(part, "big", signed=True)
    if kind == 7:
        return float(struct.unpack(">d", part)[0])
    if kind in (8, 9):
        return kind - 8
    return part.decode() if kind % 2 else part  # UnicodeDecodeError is a ValueError
