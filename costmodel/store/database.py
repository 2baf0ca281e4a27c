"""The seam between a store and what it is kept in: SQL text with :names in, rows out.

SQLite (`sqlite`) is the default and needs nothing installed; PostgreSQL (`postgres`) is for a team. Both understand the
SQL that `store` writes, and each turns its own errors into one line for the user.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from costmodel.records import UserError


class Database(Protocol):
    """One open connection. `name` is what messages show: a path, or a URL without its password."""

    name: str

    def prepare(self) -> None:
        """Make the tables where there are none and bring older ones up to date; called once, first."""
        ...

    def rows(self, sql: str, **values: Any) -> list[Any]:
        """Run one statement; all its rows. Outside of `writing` a statement is a transaction of its own."""
        ...

    def page(self, sql: str, **values: Any) -> list[Any]:
        """As `rows`, but only the first of them where all would take more memory than is held at once."""
        ...

    def writing(self) -> AbstractContextManager[None]:
        """One writer at a time; what is done inside is committed whole at the end, or not at all."""
        ...

    def close(self) -> None: ...


def is_url(address: str | Path) -> bool:
    return isinstance(address, str) and "://" in address


def shown(address: str | Path) -> str:
    """An address as messages may show it: a URL without its password, also where it is no URL that can be opened."""
    scheme, found, rest = str(address).partition("://")
    who, at, where = rest.rpartition("@")
    if not found or not at or ":" not in who:
        return str(address)
    return f"{scheme}://{who.partition(':')[0]}:***@{where}"


def opened(address: str | Path) -> Database:
    """A file's path, or postgresql://USER:PASSWORD@HOST/DATABASE; made if there is none."""
    database = _connected(address)
    try:
        database.prepare()
    except BaseException:
        database.close()
        raise
    return database


@contextmanager
def utf8_only() -> Iterator[None]:
    """A text that neither kind of store can write, as one line for the user."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise UserError(
            f"got text that UTF-8 cannot write ({error.reason}), expected text; nothing was stored"
        ) from error


def _connected(address: str | Path) -> Database:
    if not is_url(address):
        from costmodel.store.sqlite import SqliteDatabase

        return SqliteDatabase(Path(address))
    scheme = str(address).partition("://")[0]
    if scheme.partition("+")[0] != "postgresql":
        raise UserError(f"got a store of kind {scheme}://, expected a file or postgresql://USER@HOST/DATABASE")
    from costmodel.store.postgres import PostgresDatabase

    return PostgresDatabase(str(address))
