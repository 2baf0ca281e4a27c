"""Is a store sound? SQLite's own integrity check, and what a store's rows must fulfil whatever they are kept in."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from costmodel.records import UserError
from costmodel.sittings import identity
from costmodel.store.database import Database, is_url, opened
from costmodel.store.reader import Reader
from costmodel.store.sqlite import explained
from costmodel.store.store import content

MOST = 100  # faults that are told one by one


@dataclass(frozen=True, slots=True)
class Check:
    """What was found. `rows` counts the sound ones, `unsound` the others; `faults` are lines, at most 100 of them."""

    rows: int
    unsound: int
    faults: tuple[str, ...]


def check(address: str | Path) -> Check:
    """Go through a whole store. Each row's identity and content must match their hashes, its samples be positive, its
    status known; nothing is there twice. A damaged one is reported, not raised; a file is not changed but for an older
    schema, which is brought up to date where its pages are sound."""
    if not is_url(address):
        if not Path(address).is_file():
            raise UserError(f"no store {address} to check; give the path of a store that exists")
        if faults := list(_page_faults(Path(address))):
            return Check(0, 0, tuple(faults[:MOST]))
    with closing(opened(address)) as database:
        sound, faults = 0, list(_twice(database))
        unsound = len(faults)
        for fault in _row_faults(Reader(database)):
            if fault is None:
                sound += 1
            else:
                unsound += 1
                faults += [fault] * (len(faults) < MOST)
    return Check(sound, unsound, tuple(faults[:MOST]))


def _page_faults(path: Path) -> Iterator[str]:
    """What SQLite finds, reading only."""
    try:
        with explained(str(path)), closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            database.execute("PRAGMA cell_size_check = ON")
            for (line,) in database.execute(f"PRAGMA integrity_check({MOST})"):
                yield from () if line == "ok" else line.splitlines()
            for table, number, parent, _ in database.execute("PRAGMA foreign_key_check"):
                yield f"row {number} of {table} refers to nothing in {parent}"
    except UserError as error:
        yield str(error)


def _twice(database: Database) -> Iterator[str]:
    sql = (
        "SELECT identity, COUNT(*) FROM measurements GROUP BY space, identity, content HAVING COUNT(*) > 1"
        f" ORDER BY identity LIMIT {MOST}"
    )
    for key, count in database.rows(sql):
        yield f"a row of identity {key} is stored {count} times"


def _row_faults(reader: Reader) -> Iterator[str | None]:
    """For each row what is wrong with it, or None."""
    for page in reader.pages():
        reader.load(page)
        for row in page:
            try:
                m = reader.measurement(row)
            except UserError as error:
                yield str(error)
                continue
            if row.identity != identity(m.variant, m.device, m.timing, m.toolchain):
                yield f"row {row.id} is not of its identity: its kernel, problem, config, device or method has changed"
            elif row.content != content(m):
                yield f"row {row.id} is not of its content's hash: its samples, status, error or time has changed"
            else:
                yield None
