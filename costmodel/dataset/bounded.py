"""Parquet files that others may have written, read in bounded memory: once from end to end, or by row group."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from costmodel import footer, reading
from costmodel.records import UserError

BATCH_ROWS = 1024
BATCH_BYTES = 256 << 20
MOST_ROWS = 100_000_000
MOST_VALUES = 1 << 26
MOST_GROUP_BYTES = 2 << 30
KEPT_BYTES = 64 << 20  # of row groups that are asked for by number


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file, read in memory that `BATCH_BYTES` and `MOST_VALUES` bound, whatever it stands for.

    A small file can stand for a huge table, since what repeats takes no room. So text is read as dictionaries, a few
    rows at a time, and what they would take as Python objects is counted before they are made.
    """
    with _explained(path):
        check_sizes(path)
        with pq.ParquetFile(path) as file:
            words = [field.name for field in file.schema_arrow if _is_text(field.type)]
        with pq.ParquetFile(path, read_dictionary=words) as file:
            for batch in _batches(path, file):
                yield from batch.to_pylist()


class RowGroups:
    """The row groups of a parquet file by number, each read when it is asked for; those read last, up to KEPT_BYTES,
    are kept. It can be pickled: what is read elsewhere is read there."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        """Columns that `schema` lacks are passed over; UserError at reading where one is missing or of another type."""
        self.path, self.schema = path, schema
        with _explained(path):
            check_sizes(path)
            with pq.ParquetFile(path) as file:
                self._count = file.num_row_groups
        self._file: pq.ParquetFile | None = None
        self._kept: OrderedDict[int, pa.Table] = OrderedDict()

    def __len__(self) -> int:
        return self._count

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_kept": OrderedDict()}

    def __getitem__(self, number: int) -> pa.Table:
        if number not in self._kept:
            with _explained(self.path):
                self._file = self._file or pq.ParquetFile(self.path)
                batches = list(_batches(self.path, self._file, [number]))
                table = pa.Table.from_batches(batches, self._file.schema_arrow).select(self.schema.names)
                self._kept[number] = table.cast(self.schema).combine_chunks()
            while len(self._kept) > 1 and sum(table.nbytes for table in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(number)
        return self._kept[number]


def _batches(path: Path, file: pq.ParquetFile, row_groups: list[int] | None = None) -> Iterator[pa.RecordBatch]:
    for batch in file.iter_batches(BATCH_ROWS, row_groups=row_groups, use_threads=False):
        if (taken := sum(map(_unpacked_bytes, batch.columns))) > BATCH_BYTES:
            raise UserError(
                f"got {path}, {batch.num_rows} rows of which unpack to {taken} bytes, expected at most {BATCH_BYTES}; "
                "look at what wrote it"
            )
        yield batch


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What pyarrow raises, as one line for the user."""
    try:
        yield
    except (pa.ArrowException, IndexError, KeyError, OSError, OverflowError, RuntimeError, ValueError) as error:
        raise UserError(
            f"got {path}, expected a whole parquet file ({reading.short(error)}); export it again"
        ) from error


def check_sizes(path: Path) -> None:
    """UserError where it is no regular file, or its footer states what cannot be held, or columns within columns."""
    reading.regular(path, expected="a parquet file")
    rows, values, unpacked = footer.sizes(path)
    with pq.ParquetFile(path) as file:
        deep = [field.name for field in file.schema_arrow if _depth(field.type) > 2]
    for got, most, what in (
        (rows, MOST_ROWS, "rows"),
        (values, MOST_VALUES, "values of a column in a row group"),
        (unpacked, MOST_GROUP_BYTES, "bytes in a row group"),
        (len(deep), 0, f"columns that nest deeper than lists of lists ({', '.join(deep[:3])[:80]})"),
    ):
        if got > most:
            raise UserError(f"got {path} with {got} {what}, expected at most {most}; look at what wrote it")


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _depth(kind: pa.DataType) -> int:
    depth = 0
    while pa.types.is_nested(kind):
        depth += 1
        kind = kind.value_type if pa.types.is_list(kind) and depth < 3 else pa.null()
        depth += 3 * (kind == pa.null())  # a struct, a map, a union
    return depth


def _unpacked_bytes(column: pa.Array) -> int:
    """What the values of a column take, each written out."""
    if pa.types.is_dictionary(column.type):
        lengths = pc.binary_length(column.dictionary).take(column.indices)
        return 64 * len(column) + (pc.sum(lengths).as_py() or 0)
    return 8 * len(column) + 4 * int(column.nbytes)  # a number is an object of 32 bytes
