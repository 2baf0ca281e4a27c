"""Token shards: what training reads, as files of token ids. They hold no text, and need no parser to be read.

They may be larger than memory: rows are written in row groups of bounded size, and what is loaded reads a row group
when one of its rows is asked for.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from costmodel import reading
from costmodel.batches import Group
from costmodel.dataset.bounded import RowGroups
from costmodel.records import UserError
from costmodel.tokens import TextTokenizer

ROW_GROUP_IDS = 1 << 18  # token ids of a row group, about; one row may have more
_IDS = pa.list_(pa.int32())
_GROUPS = pa.schema(
    [
        ("source", _IDS), ("contexts", pa.list_(_IDS)), ("suffixes", pa.list_(_IDS)), ("spelled", pa.list_(_IDS)),
        ("z", pa.list_(pa.float64())), ("failed", pa.list_(pa.bool_())), ("rank_only", pa.bool_()),
    ]
)  # fmt: skip
_TEXTS = pa.schema([("ids", _IDS)])
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Shards:
    """Groups for "latency", texts for "next-token", the tokenizer of their ids, and what a model made of them is to
    remember (`details`)."""

    tokenizer: TextTokenizer
    groups: Sequence[Group]
    texts: Sequence[Sequence[int]]
    details: dict[str, Any]

    @property
    def rows(self) -> int:
        return sum(len(group.suffixes) for group in self.groups)

    def save(self, folder: str | Path) -> None:
        """groups.parquet, texts.parquet, tokenizer.json, details.json."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "groups.parquet", _GROUPS, map(_group_row, self.groups))
        _write(folder / "texts.parquet", _TEXTS, ({"ids": list(text)} for text in self.texts))
        self.tokenizer.save(folder)
        (folder / "details.json").write_text(json.dumps(self.details))

    @staticmethod
    def load(folder: str | Path) -> Shards:
        """Goes through the files once, and keeps of them how many rows a row group has. UserError where it is no such
        folder, or ids in it are none of its tokenizer's."""
        folder = Path(folder)
        if not (folder / "groups.parquet").is_file():
            raise UserError(
                f"got {folder}, expected a folder of token shards; `costmodel train --write-shards` makes one"
            )
        tokenizer = TextTokenizer.load(folder)
        groups = OnDemand(folder / "groups.parquet", _GROUPS, _group, tokenizer.vocab_size)
        texts = OnDemand(folder / "texts.parquet", _TEXTS, _text, tokenizer.vocab_size)
        details = reading.json_object(folder / "details.json", expected="what a model of the shards is to remember")
        return Shards(tokenizer, groups, texts, details)


class OnDemand(Sequence[T], Generic[T]):
    """The rows of a file, made of its row groups as they are asked for."""

    def __init__(self, path: Path, schema: pa.Schema, make: Callable[[pa.Table, int], T], vocab_size: int) -> None:
        self._row_groups, self._make = RowGroups(path, schema), make
        self._ends: list[int] = []  # of each row group, in rows
        for number in range(len(self._row_groups)):
            table = self._row_groups[number]
            if why := _trouble(table, vocab_size):
                raise UserError(f"got {path}, which holds no token shards ({why}); write them again")
            self._ends.append((self._ends[-1] if self._ends else 0) + len(table))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, place: int) -> T: ...

    @overload
    def __getitem__(self, place: slice) -> list[T]: ...

    def __getitem__(self, place: int | slice) -> T | list[T]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        place = range(len(self))[place]  # from the end, and IndexError
        number = bisect_right(self._ends, place)
        return self._make(self._row_groups[number], place - (self._ends[number - 1] if number else 0))


class Rows(Sequence[list[int]]):
    """Lists of ids, made of one array as they are asked for: as Python objects they would take far more room."""

    def __init__(self, lists: pa.ListArray) -> None:
        self._ids, self._offsets = lists.values.to_numpy(), lists.offsets.to_numpy()

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, place: int) -> list[int]: ...

    @overload
    def __getitem__(self, place: slice) -> list[list[int]]: ...

    def __getitem__(self, place: int | slice) -> list[int] | list[list[int]]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        return self._ids[self._offsets[place] : self._offsets[place + 1]].tolist()


def _group(table: pa.Table, row: int) -> Group:
    value = {name: table.column(name)[row] for name in table.column_names}
    return Group(
        source=value["source"].as_py(),
        contexts=Rows(value["contexts"].values),
        suffixes=Rows(value["suffixes"].values),
        z=value["z"].values.to_numpy(),
        failed=value["failed"].values.to_numpy(zero_copy_only=False),
        rank_only=value["rank_only"].as_py(),
        spelled=Rows(value["spelled"].values) if value["spelled"].is_valid else None,
    )


def _text(table: pa.Table, row: int) -> list[int]:
    return table.column("ids")[row].as_py()


def _trouble(table: pa.Table, vocab_size: int) -> str:
    """What is wrong with a row group, "" for nothing."""
    for name, column in zip(table.column_names, table.columns, strict=True):
        level = column
        while pa.types.is_list(level.type):
            if level.null_count and not (name == "spelled" and level is column):
                return f"a row without {name}"
            level = pc.list_flatten(level)
        if level.null_count:
            return f"a row without {name}"
        if pa.types.is_integer(level.type) and len(level):
            ends = pc.min_max(level).as_py()
            if not 0 <= ends["min"] <= ends["max"] < vocab_size:
                return f"ids are not all of a vocabulary of {vocab_size}"
    return ""


def _group_row(group: Group) -> dict[str, Any]:
    def lists(rows: Sequence[Sequence[int]]) -> list[list[int]]:
        return [list(row) for row in rows]

    return {
        "source": list(group.source),
        "contexts": lists(group.contexts),
        "suffixes": lists(group.suffixes),
        "spelled": None if group.spelled is None else lists(group.spelled),
        "z": group.z,
        "failed": group.failed,
        "rank_only": group.rank_only,
    }


def _write(path: Path, schema: pa.Schema, rows: Iterable[dict[str, Any]]) -> None:
    with pq.ParquetWriter(path, schema, compression="zstd") as file:
        for some in _bounded(rows, schema):
            file.write_table(some)


def _bounded(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> Iterator[pa.Table]:
    """Rows as tables of about ROW_GROUP_IDS each."""
    taken: list[pa.Table] = []
    size = 0
    for row in rows:
        taken.append(pa.Table.from_pylist([row], schema=schema))
        size += taken[-1].nbytes
        if size >= 4 * ROW_GROUP_IDS:
            yield pa.concat_tables(taken)
            taken, size = [], 0
    if taken:
        yield pa.concat_tables(taken)
