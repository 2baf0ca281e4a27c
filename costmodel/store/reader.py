"""Reading a store: rows page by page in the order of storing, and what a row says as a measurement."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from costmodel import dataset
from costmodel.records import STATUSES, Kernel, Measurement, UserError
from costmodel.store.database import Database
from costmodel.store.schema import NOUNS

_PAGE = 1000  # rows per read
_SPACES = 100  # whose rows' ids are asked for at once
_REMEMBERED = 1 << 16  # nouns of a kind kept in memory
_NOUNS = {  # what is read of each, its id first
    "kernels": "SELECT k.id, k.text, k.name, k.language, t.source, k.schema, k.origin FROM kernels k"
    " JOIN texts t ON t.identity = k.text WHERE k.id",
    "problems": "SELECT id, sheet FROM problems WHERE id",
    "devices": "SELECT id, sheet FROM devices WHERE id",
    "methods": "SELECT id, toolchain, timing FROM methods WHERE id",
    "spaces": "SELECT id, text, problem, device FROM spaces WHERE id",
}


class Row(NamedTuple):
    """A line of the table of measurements; space, kernel and method are ids of nouns."""

    id: int
    space: int
    identity: str
    content: str
    kernel: int
    method: int
    config: str
    status: Any
    samples_us: str
    error: str
    counters: str
    collected_at: str


_SELECT = f"SELECT {', '.join(f'm.{name}' for name in Row._fields)} FROM measurements m WHERE"


class Reader:
    """Nothing here holds all rows: a page at a time, and of nouns some 65,536 of a kind."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._nouns: dict[str, dict[int, tuple[Any, ...]]] = {table: {} for table in NOUNS}

    def pages(
        self,
        *,
        kernel: str | None = None,
        op: str | None = None,
        device: str | None = None,
        status: str | None = None,
    ) -> Iterator[list[Row]]:
        """No read stays open between two pages, so the caller may write.

        Without a choice of kernel, op or device it goes through the table; with one, through the ids of the rows of
        the spaces chosen, 8 bytes each in memory.
        """
        if status is not None and status not in STATUSES:
            raise UserError(f"got status {status!r}, expected one of {', '.join(STATUSES)}")
        condition, values = _condition(kernel=kernel, status=status)
        if kernel is op is device is None:
            last, sql = 0, f"{_SELECT} m.id > :last{condition} ORDER BY m.id LIMIT {_PAGE}"
            while page := self._page(sql, last=last, **values):
                yield page
                last = page[-1].id
            return
        ids = self._ids(self._spaces(kernel, op, device))
        for start in range(0, len(ids), _PAGE):
            wanted, last = ids[start : start + _PAGE].tolist(), 0
            sql = f"{_SELECT} m.id IN ({_listed(wanted)}) AND m.id > :last{condition} ORDER BY m.id"
            while last < wanted[-1] and (page := self._page(sql, last=last, **values)):
                yield page
                last = page[-1].id

    def sittings(self, page: Sequence[Row], *, kernel: str | None = None) -> list[Row]:
        """The rows of the identities of a page, wherever they are stored; of a kernel's name alone if given."""
        condition, values = _condition(kernel=kernel, status=None)
        sql = (
            f"{_SELECT} (m.space, m.identity) IN (SELECT p.space, p.identity FROM measurements p"
            f" WHERE p.id IN ({_listed(row.id for row in page)})){condition} ORDER BY m.id"
        )
        return list(map(Row._make, self._database.rows(sql, **values)))

    def measurements(self, rows: Sequence[Row]) -> Iterator[Measurement]:
        self.load(rows)
        for row in rows:
            yield self.measurement(row)

    def load(self, rows: Sequence[Row]) -> None:
        """Have the nouns of a page at hand, for `measurement`."""
        for table, ids in (
            ("kernels", {row.kernel for row in rows}),
            ("methods", {row.method for row in rows}),
            ("spaces", {row.space for row in rows}),
        ):
            self._load(table, ids)
        spaces = [self._nouns["spaces"].get(row.space) for row in rows]
        self._load("problems", {space[1] for space in spaces if space})
        self._load("devices", {space[2] for space in spaces if space})

    def measurement(self, row: Row) -> Measurement:
        """What a row of a loaded page says; UserError where it is no measurement."""
        try:
            text, problem, device = self._nouns["spaces"][row.space]
            toolchain, timing = self._nouns["methods"][row.method]
            own_text, *noun = self._nouns["kernels"][row.kernel]
            if own_text != text:
                raise ValueError("its kernel is not its space's")
            return dataset.measurement_from(
                _kernel(*noun),
                problem=self._nouns["problems"][problem][0],
                device=self._nouns["devices"][device][0],
                toolchain=toolchain,
                timing=timing,
                config=row.config,
                status=row.status,
                samples_us=dataset.tuples(row.samples_us),
                error=row.error,
                counters=row.counters,
                collected_at=row.collected_at,
            )
        except (KeyError, TypeError, ValueError, OverflowError, UserError) as error:
            raise UserError(
                f"got {self._database.name}, whose row {row.id} is no measurement ({str(error)[:200]}), expected a"
                " store that costmodel wrote; `costmodel store check` says what else is damaged"
            ) from error

    def problem_names(self, ids: Iterable[int]) -> list[str]:
        ids = list(map(int, ids))
        self._load("problems", set(ids))
        try:
            return [str(dataset.problem_from_json(self._nouns["problems"][number][0])) for number in ids]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"got {self._database.name}, which holds no problem where one belongs ({error}); `costmodel store"
                " check` says what else is damaged"
            ) from error

    def _page(self, sql: str, *, last: int, **values: Any) -> list[Row]:
        page = list(map(Row._make, self._database.page(sql, last=last, **values)))
        ids = [last, *(row.id for row in page)]
        if not all(isinstance(b, int) and a < b for a, b in itertools.pairwise(ids)):  # else reading might never end
            raise UserError(
                f"got {self._database.name}, whose rows do not follow one another, expected a whole store; "
                "`costmodel store check` says what else is damaged"
            )
        return page

    def _spaces(self, kernel: str | None, op: str | None, device: str | None) -> list[int]:
        where, values = [], {}
        for clause, name, value in (
            ("s.text IN (SELECT text FROM kernels WHERE :kernel IN (name, text))", "kernel", kernel),
            ("s.problem IN (SELECT id FROM problems WHERE op = :op)", "op", op),
            ("s.device IN (SELECT id FROM devices WHERE :device IN (name, identity))", "device", device),
        ):
            if value is not None:
                where.append(clause)
                values[name] = value
        found = self._database.rows(f"SELECT s.id FROM spaces s WHERE {' AND '.join(where)}", **values)
        return [row[0] for row in found]

    def _ids(self, spaces: Sequence[int]) -> np.ndarray:
        """(N,) ids of the measurements in spaces, ascending."""
        found = array("q")
        for start in range(0, len(spaces), _SPACES):
            listed = _listed(spaces[start : start + _SPACES])
            found.extend(
                row[0] for row in self._database.rows(f"SELECT id FROM measurements WHERE space IN ({listed})")
            )
        return np.sort(np.array(found, dtype=np.int64))

    def _load(self, table: str, ids: set[int]) -> None:
        known = self._nouns[table]
        if len(known) + len(ids) > _REMEMBERED and not ids <= known.keys():
            known.clear()
        missing = sorted(ids - known.keys())
        for start in range(0, len(missing), _PAGE):
            listed = _listed(missing[start : start + _PAGE])
            for number, *noun in self._database.rows(f"{_NOUNS[table]} IN ({listed})"):
                known[number] = tuple(noun)


@lru_cache(maxsize=4096)
def _kernel(name: str, language: Any, source: str | None, schema: str, origin: str) -> Kernel:
    """One object for all rows of a kernel."""
    return Kernel(name, language, source, dataset.schema_from_json(schema), origin)


def _condition(*, kernel: str | None, status: str | None) -> tuple[str, dict[str, str]]:
    """What rows must fulfil beyond lying in the right space: one text may have kernels of several names."""
    sql, values = "", {}
    if kernel is not None:
        sql += " AND m.kernel IN (SELECT id FROM kernels WHERE :kernel IN (name, text))"
        values["kernel"] = kernel
    if status is not None:
        sql += " AND m.status = :status"
        values["status"] = status
    return sql, values


def _listed(ids: Iterable[int]) -> str:
    return ",".join(map(str, ids)) or "NULL"
