"""A team's store in a real PostgreSQL, which is started for these tests where one is installed."""

import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from contracts import StoreContract
from stored import golden_rows, row

from costmodel.records import UserError
from costmodel.store import Store
from costmodel.store.checking import check

sqlalchemy = pytest.importorskip("sqlalchemy", reason="costmodel[postgres] is not installed")
pytest.importorskip("psycopg", reason="costmodel[postgres] is not installed")

PASSWORD = "s3cret-word"


def tool(name: str) -> str:
    """A program of PostgreSQL, which Debian keeps out of the path."""
    found = shutil.which(name) or next(map(str, sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)
    if not found:
        pytest.skip(f"no {name}: PostgreSQL is not installed here, and its store is not tested")
    return found


def as_nobody(command: list[str]) -> list[str]:
    """PostgreSQL does not run as root."""
    if os.getuid():
        return command
    setpriv = shutil.which("setpriv")
    if not setpriv:
        pytest.skip("this is root and there is no setpriv: PostgreSQL runs as another user only, and is not tested")
    return [setpriv, "--reuid=65534", "--regid=65534", "--clear-groups", *command]


class Server:
    """PostgreSQL in a folder of its own, on a free port of this machine."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.initdb, self.postgres = tool("initdb"), tool("postgres")
        (folder / "password").write_text(PASSWORD)
        if not os.getuid():
            for path in (folder, folder / "password"):
                os.chown(path, 65534, 65534)
        self._run([self.initdb, "-D", self.data, "-U", "team", "-A", "scram-sha-256", "-E", "UTF8", "--locale=C",
                   "--pwfile", folder / "password", "--no-sync"])  # fmt: skip
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._databases = (f"db{number}" for number in itertools.count())
        self.start()

    def _run(self, command: list[object]) -> None:
        done = subprocess.run(as_nobody(list(map(str, command))), capture_output=True, text=True, cwd="/")
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        options = [self.postgres, "-D", self.data, "-p", self.port, "-k", "", "-c", "listen_addresses=127.0.0.1",
                   "-c", "fsync=off", "-c", "shared_buffers=16MB"]  # fmt: skip
        self.process = subprocess.Popen(
            as_nobody(list(map(str, options))), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/"
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                with self.admin():
                    return
            except sqlalchemy.exc.OperationalError:
                assert self.process.poll() is None, "PostgreSQL did not start"
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGQUIT)  # at once, as in a crash
        self.process.wait(timeout=60)

    def admin(self, database: str = "postgres") -> "sqlalchemy.Connection":
        url = self.url(database).replace("postgresql://", "postgresql+psycopg://")
        return sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool).connect()

    def url(self, database: str) -> str:
        return f"postgresql://team:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def fresh(self) -> str:
        name = next(self._databases)
        with self.admin() as admin:
            admin.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
        return self.url(name)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="costmodel-postgres-", dir="/tmp"))  # nobody must be able to reach it
    try:
        started = Server(folder)
        yield started
        started.stop()
    finally:
        shutil.rmtree(folder)


class TestPostgres(StoreContract):
    @pytest.fixture
    def fresh(self, server: Server) -> Callable[..., str]:
        return lambda other=False: server.fresh()

    def set_version(self, address: str, version: int) -> None:
        with sqlalchemy.create_engine(address.replace("postgresql:", "postgresql+psycopg:")).begin() as connection:
            connection.execute(sqlalchemy.text(f"UPDATE costmodel.version SET version = {version}"))


class TestMergesWithFiles:
    @pytest.fixture
    def addresses(self, server: Server, tmp_path: Path) -> tuple[str, str]:
        return server.fresh(), str(tmp_path / "mine.sqlite")

    def test_diverged_stores_become_one(self, addresses: tuple[str, str]) -> None:
        """Both ways round, and a third time round without effect: hashes are the same in both."""
        team, mine = addresses
        rows, common = golden_rows(), golden_rows()[:5]
        with Store(team) as a, Store(mine) as b:
            a.add([*common, *rows[5:9]])
            b.add([*common, *rows[9:]])
            assert a.merge(mine) == len(rows) - 9
            assert b.merge(team) == 4
            assert a.merge(mine) == b.merge(team) == 0
            assert set(a.measurements()) == set(b.measurements()) == set(rows)
            assert a.summary().values.tolist() == b.summary().values.tolist()
        assert check(team) == check(mine)
        assert check(team).rows == len(rows)


def test_a_check_finds_what_was_changed(server: Server) -> None:
    address = server.fresh()
    with Store(address) as store:
        store.add([row(8), row(16), row(32)])
    with sqlalchemy.create_engine(address.replace("postgresql:", "postgresql+psycopg:")).begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE costmodel.measurements SET samples_us = '[9.0]' WHERE id = 2"))
    found = check(address)
    assert (found.rows, found.unsound) == (2, 1)
    assert "row 2 is not of its content's hash" in found.faults[0]


def test_a_password_is_never_shown(server: Server, tmp_path: Path) -> None:
    address = server.fresh()
    with Store(address) as store:
        assert store.name == f"postgresql://team:***@127.0.0.1:{server.port}/{address.rpartition('/')[2]}"
        told = [store.name]
    wrong = [
        address.replace("team:", "nobody:"),
        address.replace(f":{server.port}/", ":1/"),
        address + "-absent",
        address.replace("127.0.0.1", "no host"),
    ]
    for url in wrong:
        with pytest.raises(UserError) as caught:
            Store(url)
        told.append(str(caught.value))
        assert caught.value.__cause__ is None
        assert "\n" not in told[-1]
        assert "check that the server runs" in told[-1]
    with pytest.raises(UserError, match="got a store URL that cannot be read") as caught:
        Store(f"postgresql://team:{PASSWORD}@host:port:x/db")
    told.append(str(caught.value))
    with pytest.raises(UserError, match="got a store of kind mysql://") as caught:
        Store(f"mysql://team:{PASSWORD}@host/db")
    told.append(str(caught.value))
    with Store(tmp_path / "s") as store, pytest.raises(UserError) as caught:
        store.merge(wrong[0])
    told.append(str(caught.value))
    assert not [line for line in told if PASSWORD in line]


def test_other_tables_of_the_database_are_no_matter(server: Server) -> None:
    address = server.fresh()
    with server.admin(address.rpartition("/")[2]) as admin:
        admin.execute(sqlalchemy.text("CREATE TABLE public.measurements (x int)"))
    with Store(address) as store:
        store.add([row()])
        assert list(store.measurements()) == [row()]


def test_a_server_that_stops_is_one_line_and_loses_nothing(server: Server) -> None:
    address = server.fresh()
    with Store(address) as store:
        store.add([row(1)])
        server.stop()
        try:
            with pytest.raises(UserError, match="what was committed before is kept"):
                store.add([row(2)])
            with pytest.raises(UserError, match="what was committed before is kept"):
                list(store.measurements())
        finally:
            server.start()
    with Store(address) as store:
        assert store.add([row(2)]) == 1
        assert list(store.measurements()) == [row(1), row(2)]
