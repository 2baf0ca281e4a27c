"""A store in an SQLite file, in WAL mode: readers and one writer at a time, and a killed process loses nothing that was
committed."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from costmodel.records import UserError, digest
from costmodel.store import schema
from costmodel.store.database import utf8_only

APPLICATION = 0x636D7374  # "cmst": tells a store from any other SQLite file
BUSY_S = 60.0
LONGEST_BYTES = 16 << 20  # one text of a row; SQLite refuses a longer one
PAGE_BYTES = 64 << 20  # of rows that are held at once
TICK = 1_000_000  # of SQLite's steps
TICKS, BYTES_A_TICK = 20, 100_000  # what one statement may take: in a damaged file pages can follow in a circle


class SqliteDatabase:
    """See `database.Database`."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        if not path.parent.is_dir():
            raise UserError(f"got store {path}, expected its folder to exist; make {path.parent} first")
        with explained(self.name):
            self._connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
            self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST_BYTES)
            self._connection.set_progress_handler(self._tick, TICK)
        self._ticks = 0

    def prepare(self) -> None:
        with explained(self.name):
            self._open()

    def close(self) -> None:
        self._connection.close()

    def rows(self, sql: str, **values: Any) -> list[Any]:
        with explained(self.name):
            self._ticks = 0
            return self._connection.execute(sql, values).fetchall()

    def page(self, sql: str, **values: Any) -> list[Any]:
        found, size = [], 0
        with explained(self.name):
            self._ticks = 0
            for row in self._connection.execute(sql, values):
                found.append(row)
                size += sum(len(value) for value in row if isinstance(value, str | bytes))
                if size > PAGE_BYTES:
                    break
        return found

    @contextmanager
    def writing(self) -> Iterator[None]:
        with explained(self.name):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _tick(self) -> bool:
        """Whether SQLite is to give up on a statement; the file may have grown since it was opened."""
        self._ticks += 1
        size = sum(file.stat().st_size for file in (self.path, Path(f"{self.path}-wal")) if file.is_file())
        return self._ticks > TICKS + size // BYTES_A_TICK

    def _open(self) -> None:
        self._connection.execute("BEGIN")  # one view: another process may be making this file
        application, version, tables = map(self._pragma, ("application_id", "user_version", "schema_version"))
        self._connection.execute("COMMIT")
        if application != APPLICATION and (application or version or tables):
            raise UserError(f"got {self.path}, which is another program's database; give a store or a new file name")
        schema.expect_known(version, self.name)
        self._refuse_programs()
        self._connection.execute("PRAGMA foreign_keys = ON")
        self._enter_wal()
        if version < schema.VERSION:
            self._bring_up_to_date()

    def _refuse_programs(self) -> None:
        """A schema can hold code that runs when the file is used. None of a store's does."""
        self._connection.execute("PRAGMA trusted_schema = OFF")
        self._connection.execute("PRAGMA cell_size_check = ON")
        code = "type NOT IN ('table', 'index') OR sql LIKE 'CREATE VIRTUAL%'"
        found = self._connection.execute(f"SELECT type, name FROM sqlite_master WHERE {code} LIMIT 1").fetchone()
        if found:
            raise UserError(
                f"got {self.path} with the {found[0]} {found[1]!r}, expected none; it is no store of costmodel"
            )

    def _enter_wal(self) -> None:
        """SQLite does not wait for a lock when it changes the journal mode, so two that open a new file at once could
        see "locked"; this waits."""
        deadline = time.monotonic() + BUSY_S
        while True:
            try:
                mode = self._connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
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

    def _bring_up_to_date(self) -> None:
        self._connection.create_function("digest", -1, digest, deterministic=True)
        with self.writing():
            version = self._pragma("user_version")  # another process may have done it meanwhile
            scripts = [schema.UPGRADES[n] for n in range(version, schema.VERSION)] if version else [schema.NEW]
            for script in scripts:
                for statement in schema.statements(script):
                    self._ticks = 0
                    self._connection.execute(statement)
            self._connection.execute(f"PRAGMA user_version = {schema.VERSION}")
            self._connection.execute(f"PRAGMA application_id = {APPLICATION}")

    def _pragma(self, name: str) -> int:
        return int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])


def backup(path: Path, out: Path) -> int:
    """Copy a store as it is at one moment, also while others write to it; bytes of the copy, which appears whole."""
    if not path.is_file():
        raise UserError(f"no store {path} to back up; give the path of a store that exists")
    if out.exists():
        raise UserError(f"got {out}, which exists already; give a new file name for the backup")
    if not out.parent.is_dir():
        raise UserError(f"got backup {out}, expected its folder to exist; make {out.parent} first")
    part = out.with_name(out.name + ".part")
    part.unlink(missing_ok=True)
    try:
        with explained(str(path)), closing(sqlite3.connect(path, timeout=BUSY_S)) as source:
            application = source.execute("PRAGMA application_id").fetchone()[0]
            if application != APPLICATION:
                raise UserError(f"got {path}, which is another program's database; give a store")
            with explained(str(part)), closing(sqlite3.connect(part)) as copy:
                source.backup(copy)  # in one step: a reader's snapshot, which in WAL mode keeps no writer waiting
                copy.execute("PRAGMA journal_mode = DELETE")  # one file, nothing beside it
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
    return out.stat().st_size


@contextmanager
def explained(name: str) -> Iterator[None]:
    """SQLite's errors as one line for the user."""
    try:
        with utf8_only():
            yield
    except sqlite3.DatabaseError as error:
        code = _code(error)
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            advice = "the disk is full or failing; nothing stored before is lost; free space and run again"
        elif code == sqlite3.SQLITE_NOTADB:
            advice = "this is not a store; give a store or a new file name"
        elif code == sqlite3.SQLITE_BUSY:
            advice = f"another process has held it for {BUSY_S:.0f} s; wait for that one to end"
        elif code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
            advice = "it cannot be opened for writing; check the permissions of the file and its folder"
        elif code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_INTERRUPT):
            advice = f"the file is damaged; `costmodel store repair {name} --out NEW` saves what can be read"
        elif code == sqlite3.SQLITE_TOOBIG:
            advice = f"a text in it is longer than {LONGEST_BYTES} bytes; this is not a store"
        elif isinstance(error, sqlite3.ProgrammingError) or "syntax" in str(error):
            raise  # a mistake of this package's, not of the file's
        else:
            advice = (
                f"its tables are not a store's, or damaged; `costmodel store repair {name} --out NEW` saves what it can"
            )
        said = " ".join(str(error).split())[:200]  # it may quote the file at length
        raise UserError(f"store {name}: {said}: {advice}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"got store {name}, in which a text is not UTF-8 ({error.reason}), expected a whole one; "
            f"`costmodel store repair {name} --out NEW` saves what can be read"
        ) from error


def _code(error: sqlite3.Error) -> int:
    """The primary result code; the upper bytes hold details."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
