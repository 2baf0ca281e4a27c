"""What was measured, kept: an append-only SQLite file that a search, a training run and a gate share.

A row's identity is (kernel identity, problem, config, device sheet, toolchain, timing). One identity measured again is
another sitting, a row of its own; the same row twice (same identity, time and samples) is stored once, so `merge` may
be repeated. Every call of `add` commits before it returns, and a killed process loses nothing that was committed.

Schema history (PRAGMA user_version):
  1  texts, kernels, problems, devices, methods (toolchain and timing), measurements
"""

from __future__ import annotations

import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd

from costmodel import dataset
from costmodel.records import (
    STATUSES,
    Config,
    Device,
    Kernel,
    Measurement,
    Timing,
    UserError,
    Variant,
    digest,
)
from costmodel.sittings import identity, joined

_APPLICATION = 0x636D7374  # "cmst": tells a store from any other SQLite file
_BATCH = 256  # rows per transaction: short, so that two writers take turns
_REMEMBERED = 1 << 16  # ids of kernels, problems, devices and methods kept in memory
_BUSY_S = 60.0

# MIGRATIONS[n] makes version n + 1 out of version n; version 0 is an empty file.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE texts (identity TEXT PRIMARY KEY, source TEXT);
    CREATE TABLE kernels (
        id INTEGER PRIMARY KEY, identity TEXT NOT NULL REFERENCES texts, name TEXT NOT NULL, language TEXT NOT NULL,
        schema TEXT NOT NULL, origin TEXT NOT NULL, UNIQUE (identity, name, schema, origin));
    CREATE TABLE problems (id INTEGER PRIMARY KEY, op TEXT NOT NULL, sheet TEXT NOT NULL UNIQUE);
    CREATE TABLE devices (
        id INTEGER PRIMARY KEY, identity TEXT NOT NULL, name TEXT NOT NULL, sheet TEXT NOT NULL UNIQUE);
    CREATE TABLE methods (
        id INTEGER PRIMARY KEY, toolchain TEXT NOT NULL, timing TEXT NOT NULL, UNIQUE (toolchain, timing));
    CREATE TABLE measurements (
        id INTEGER PRIMARY KEY, identity TEXT NOT NULL, sitting INTEGER NOT NULL, content TEXT NOT NULL,
        kernel INTEGER NOT NULL REFERENCES kernels, problem INTEGER NOT NULL REFERENCES problems,
        device INTEGER NOT NULL REFERENCES devices, method INTEGER NOT NULL REFERENCES methods,
        config TEXT NOT NULL, status TEXT NOT NULL, samples_us TEXT NOT NULL, error TEXT NOT NULL,
        counters TEXT NOT NULL, collected_at TEXT NOT NULL,
        UNIQUE (identity, content), UNIQUE (identity, sitting));
    """,
)

_SELECT = """
    SELECT m.id, m.identity, t.source, k.name, k.language, k.schema, k.origin, p.sheet, d.sheet, r.toolchain, r.timing,
           m.config, m.status, m.samples_us, m.error, m.counters, m.collected_at
    FROM measurements m JOIN kernels k ON k.id = m.kernel JOIN texts t ON t.identity = k.identity
         JOIN problems p ON p.id = m.problem JOIN devices d ON d.id = m.device JOIN methods r ON r.id = m.method
"""


class Store:
    """A store in a file, made if there is none. Close it, or use it as a context manager."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._keys: dict[tuple[str, tuple[object, ...]], int] = {}
        self._texts: set[str] = set()
        self._kernels: dict[tuple[object, ...], Kernel] = {}
        if not self.path.parent.is_dir():
            raise UserError(f"got store {self.path}, expected its folder to exist; make {self.path.parent} first")
        with self._explained():
            self._database = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)
        try:
            with self._explained():
                self._open()
        except BaseException:
            self._database.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()

    def add(self, measurements: Iterable[Measurement]) -> int:
        """Append; returns how many were new. Committed in batches of at most 256 rows, each whole or not at all."""
        added = 0
        rows = iter(measurements)
        while batch := list(islice(rows, _BATCH)):
            with self._explained(), self._transaction():
                added += sum(self._add_one(row) for row in batch)
        return added

    def measurements(
        self,
        *,
        kernel: str | None = None,
        op: str | None = None,
        device: str | None = None,
        status: str | None = None,
    ) -> Iterator[Measurement]:
        """Every sitting in the order of storing; kernel and device by name or by identity."""
        for _, measurement in self._rows(kernel=kernel, op=op, device=device, status=status):
            yield measurement

    def combined(
        self, *, kernel: str | None = None, op: str | None = None, device: str | None = None
    ) -> Iterator[Measurement]:
        """One measurement per identity, its sittings joined, in the order of first storing.

        One wrong result condemns a variant. Otherwise the sittings vote, a tie going to failure; if they agree on ok,
        the samples of all ok sittings are pooled in order of time and counters are medians.
        """
        sittings: dict[str, list[Measurement]] = defaultdict(list)
        for key, measurement in self._rows(kernel=kernel, op=op, device=device, status=None):
            sittings[key].append(measurement)
        yield from map(joined, sittings.values())

    def identities(self) -> set[str]:
        """Of everything stored, failures too; see `identity`."""
        with self._explained():
            return {row[0] for row in self._database.execute("SELECT DISTINCT identity FROM measurements")}

    def has(self, variant: Variant, device: Device, *, timing: Timing, toolchain: tuple[tuple[str, str], ...]) -> bool:
        """Was it measured, with whatever outcome?"""
        key = identity(variant, device, timing, toolchain)
        with self._explained():
            found = self._database.execute("SELECT 1 FROM measurements WHERE identity = ? LIMIT 1", (key,))
            return found.fetchone() is not None

    def merge(self, other: str | Path) -> int:
        """Add all that another store holds; returns how many rows were new."""
        other = Path(other)
        if not other.is_file():
            raise UserError(f"no store {other} to merge; give the path of a store that exists")
        if other.resolve() == self.path.resolve():
            raise UserError(f"got {other} to merge into itself; give another store")
        with Store(other) as source:
            return self.add(source.measurements())

    def export(self, folder: str | Path, *, card: dataset.Card | None = None) -> int:
        """Write every sitting as parquet with a card, see `dataset.write_parquet`; returns how many there are."""
        sittings = list(self.measurements())
        dataset.write_parquet(sittings, folder, card)
        return len(sittings)

    def summary(self) -> pd.DataFrame:
        """One line per kernel, problem, device and status: how many variants, how many sittings, when the last."""
        columns = ("kernel", "problem", "device", "status", "variants", "sittings", "last_collected_at")
        sql = """
            SELECT k.name, p.sheet, d.name, m.status, COUNT(DISTINCT m.identity), COUNT(*), MAX(m.collected_at)
            FROM measurements m JOIN kernels k ON k.id = m.kernel JOIN problems p ON p.id = m.problem
                 JOIN devices d ON d.id = m.device
            GROUP BY k.name, p.id, d.name, m.status ORDER BY k.name, p.id, d.name, m.status
        """
        with self._explained():
            rows = self._database.execute(sql).fetchall()
        named = [(row[0], str(dataset.problem_from_json(row[1])), *row[2:]) for row in rows]
        return pd.DataFrame(named, columns=list(columns))

    # ---- opening ----

    def _open(self) -> None:
        self._database.execute("BEGIN")  # one view: another process may be making this file
        application, version, tables = map(self._pragma, ("application_id", "user_version", "schema_version"))
        self._database.execute("COMMIT")
        if application != _APPLICATION and (application or version or tables):
            raise UserError(f"got {self.path}, which is another program's database; give a store or a new file name")
        if version > len(MIGRATIONS):
            raise UserError(
                f"got {self.path} of schema {version}, expected at most {len(MIGRATIONS)}; update costmodel to open it"
            )
        self._database.execute("PRAGMA foreign_keys = ON")
        self._enter_wal()
        if version < len(MIGRATIONS):
            self._migrate()

    def _enter_wal(self) -> None:
        """SQLite does not wait for a lock when it changes the journal mode, so two that open a new file at once could
        see "locked"; this waits."""
        deadline = time.monotonic() + _BUSY_S
        while True:
            try:
                mode = self._database.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            except sqlite3.OperationalError as error:
                if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
                continue
            if mode != "wal":
                raise UserError(
                    f"got {self.path} on a file system without shared memory; put the store on a local disk"
                )
            return

    def _migrate(self) -> None:
        with self._transaction():
            version = self._pragma("user_version")  # another process may have done it meanwhile
            for script in MIGRATIONS[version:]:
                for statement in filter(str.strip, script.split(";")):
                    self._database.execute(statement)
            self._database.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
            self._database.execute(f"PRAGMA application_id = {_APPLICATION}")

    def _pragma(self, name: str) -> int:
        return int(self._database.execute(f"PRAGMA {name}").fetchone()[0])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            self._keys.clear()  # keys handed out in it are void
            self._texts.clear()
            raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """SQLite's errors as one line for the user."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            code = _code(error)
            if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
                advice = "the disk is full or failing; nothing stored before is lost; free space and run again"
            elif code == sqlite3.SQLITE_NOTADB:
                advice = "this is not a store; give a store or a new file name"
            elif code == sqlite3.SQLITE_BUSY:
                advice = f"another process has held it for {_BUSY_S:.0f} s; wait for that one to end"
            elif code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
                advice = "it cannot be opened for writing; check the permissions of the file and its folder"
            elif code == sqlite3.SQLITE_CORRUPT:
                advice = "the file is damaged; `sqlite3 FILE .recover` saves what can be read"
            else:
                raise
            raise UserError(f"store {self.path}: {error}: {advice}") from error

    # ---- rows ----

    def _add_one(self, row: Measurement) -> bool:
        key = identity(row.variant, row.device, row.timing, row.toolchain)
        error = dataset.printable(row.error)
        content = digest(row.collected_at, row.status, row.samples_us, error)
        kernel, problem, device = row.variant.kernel, row.variant.problem, row.device
        text = dataset.kernel_identity(kernel)
        if text not in self._texts:
            self._database.execute("INSERT OR IGNORE INTO texts VALUES (?, ?)", (text, kernel.source))
            self._texts.add(text)
        keys = (
            self._key("kernels", identity=text, name=kernel.name, language=kernel.language,
                      schema=dataset.to_json(kernel.schema), origin=kernel.origin),
            self._key("problems", op=problem.op, sheet=dataset.noun_json(problem)),
            self._key("devices", identity=device.identity, name=device.name, sheet=dataset.noun_json(device)),
            self._key("methods", toolchain=dataset.to_json(row.toolchain), timing=dataset.noun_json(row.timing)),
        )  # fmt: skip
        config, samples, counters = map(dataset.to_json, (row.variant.config.params, row.samples_us, row.counters))
        done = self._database.execute(
            "INSERT INTO measurements (identity, sitting, content, kernel, problem, device, method, config, status,"
            " samples_us, error, counters, collected_at)"
            " SELECT ?, 1 + COALESCE(MAX(sitting), 0), ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ? FROM measurements"
            " WHERE identity = ? ON CONFLICT (identity, content) DO NOTHING",
            (key, content, *keys, config, row.status, samples, error, counters, row.collected_at, key),
        )
        return done.rowcount > 0

    def _key(self, table: str, **fields: str) -> int:
        """The id of a row with these fields, made if there is none."""
        cached = (table, tuple(fields.values()))
        if cached not in self._keys:
            names, values = ", ".join(fields), list(fields.values())
            marks = ", ".join("?" * len(fields))
            made = self._database.execute(f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({marks})", values)
            found: Any = made.lastrowid
            if not made.rowcount:
                where = " AND ".join(f"{name} = ?" for name in fields)
                found = self._database.execute(f"SELECT id FROM {table} WHERE {where}", values).fetchone()[0]
            if len(self._keys) >= _REMEMBERED:  # an import may bring a problem a row
                self._keys.clear()
            self._keys[cached] = int(found)
        return self._keys[cached]

    def _rows(
        self, *, kernel: str | None, op: str | None, device: str | None, status: str | None
    ) -> Iterator[tuple[str, Measurement]]:
        """(identity, measurement) page by page, so that no read stays open while the caller writes."""
        if status is not None and status not in STATUSES:
            raise UserError(f"got status {status!r}, expected one of {', '.join(STATUSES)}")
        where, values = ["m.id > ?"], []
        for clause, value in (("? IN (k.name, k.identity)", kernel), ("p.op = ?", op),
                              ("? IN (d.name, d.identity)", device), ("m.status = ?", status)):  # fmt: skip
            if value is not None:
                where.append(clause)
                values.append(value)
        sql = f"{_SELECT} WHERE {' AND '.join(where)} ORDER BY m.id LIMIT 1000"
        last = 0
        while True:
            with self._explained():
                page = self._database.execute(sql, [last, *values]).fetchall()
            for row in page:
                yield row[1], self._measurement(row)
            if not page:
                return
            last = page[-1][0]

    def _measurement(self, row: Sequence[Any]) -> Measurement:
        source, name, language, schema, origin, problem, device, toolchain, timing = row[2:11]
        config, status, samples, error, counters, collected_at = row[11:]
        key = (source, name, language, schema, origin)
        if key not in self._kernels:  # one object for all its rows
            self._kernels[key] = Kernel(name, language, source, dataset.tuples(schema), origin)
        variant = Variant(self._kernels[key], dataset.problem_from_json(problem), Config(dataset.tuples(config)))
        return Measurement(
            variant=variant,
            device=dataset.device_from_json(device),
            timing=dataset.timing_from_json(timing),
            toolchain=dataset.tuples(toolchain),
            status=status,
            samples_us=dataset.tuples(samples),
            error=error,
            counters=dataset.tuples(counters),
            collected_at=collected_at,
        )


def _code(error: sqlite3.Error) -> int:
    """The primary result code; the upper bytes hold details."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
