"""Stores in files: the contract, and what only files go through."""

import dataclasses
import itertools
import pickle
import re
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from contracts import StoreContract
from stored import KERNEL, PROBLEM, golden_rows, row, start

from costmodel.records import Config, UserError, Variant
from costmodel.store import Store, schema, sqlite
from costmodel.store.checking import check


class TestFiles(StoreContract):
    @pytest.fixture
    def fresh(self, tmp_path: Path) -> Callable[..., str]:
        numbers = itertools.count()
        return lambda other=False: str(tmp_path / f"store{next(numbers)}.sqlite")

    def set_version(self, address: str, version: int) -> None:
        database = sqlite3.connect(address)
        database.execute(f"PRAGMA user_version = {version}")
        database.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store.sqlite") as opened:
        yield opened


def test_a_source_is_stored_once_whatever_it_is_called(store: Store) -> None:
    renamed = dataclasses.replace(KERNEL, name="other")
    store.add([row(tile) for tile in range(20)])
    store.add([row(variant=Variant(renamed, PROBLEM, Config.of(TILE=8, MODE="row")), at="later")])
    database = sqlite3.connect(store.name)
    counts = [database.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0] for table in ("texts", *schema.NOUNS)]
    assert counts == [1, 2, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (["ok", "ok"], "ok"),
        (["ok", "ok", "ok", "ok", "wrong_result"], "wrong_result"),
        (["wrong_result", "crash", "crash"], "wrong_result"),
        (["ok", "crash"], "crash"),
        (["ok", "ok", "timeout"], "ok"),
        (["ok", "timeout", "crash"], "crash"),
        (["compile_error"], "compile_error"),
    ],
)
def test_sittings_vote(store: Store, statuses: list[str], expected: str) -> None:
    store.add([row(status=status, at=f"2026-01-{i:02}", samples=(float(i + 1),)) for i, status in enumerate(statuses)])
    (joined,) = store.combined()
    assert joined.status == expected
    fine = tuple(float(i + 1) for i, status in enumerate(statuses) if status == "ok")
    assert joined.samples_us == (fine if expected == "ok" else ())


def test_pooled_sittings_are_in_order_of_time_with_median_counters(store: Store) -> None:
    store.add([row(samples=(5.0,), at="2026-02", counters=(("cycles", 30.0),))])
    store.add([row(samples=(1.0, 2.0), at="2026-01", counters=(("cycles", 10.0),))])
    (joined,) = store.combined()
    assert joined.samples_us == (1.0, 2.0, 5.0)
    assert joined.latency_us == 2.0
    assert joined.counters == (("cycles", 20.0),)
    assert joined.collected_at == "2026-02"


# ---- what goes wrong ----


def test_files_that_are_no_stores_get_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, and long enough to have a header " * 40)
    with pytest.raises(UserError, match="not a store"):
        Store(tmp_path / "text")
    foreign = sqlite3.connect(tmp_path / "foreign")
    foreign.execute("CREATE TABLE things (x)")
    foreign.close()
    with pytest.raises(UserError, match="another program's database"):
        Store(tmp_path / "foreign")
    with pytest.raises(UserError, match="expected its folder to exist"):
        Store(tmp_path / "nowhere" / "s")
    with pytest.raises(UserError, match="cannot be opened"):
        Store(tmp_path)
    with Store(tmp_path / "s") as store:
        with pytest.raises(UserError, match="no store"):
            store.merge(tmp_path / "absent")
        with pytest.raises(UserError, match="into itself"):
            store.merge(tmp_path / "s")
        with pytest.raises(UserError, match="not a store"):
            store.merge(tmp_path / "text")
    assert not (tmp_path / "absent").exists()


GOLDEN = Path(__file__).parent / "golden" / "store"  # a file of each schema that was ever written


@pytest.mark.parametrize("version", range(1, schema.VERSION + 1))
def test_every_older_schema_is_brought_up_to_date(tmp_path: Path, version: int) -> None:
    shutil.copy(GOLDEN / f"schema{version}.sqlite", tmp_path / "s")
    rows = golden_rows()
    with Store(tmp_path / "s") as store:
        assert list(store.measurements()) == rows
        assert store.add(rows) == 0  # their identities are what they were
        assert store.add([row(5)]) == 1
        assert next(m.samples_us for m in store.combined(kernel="dot")) == (1.5, 2.25, 3.5)
    with Store(tmp_path / "new") as new:
        new.add([*rows, row(5)])
    assert tables(tmp_path / "s") == tables(tmp_path / "new")
    assert not check(tmp_path / "s").faults


def tables(path: Path) -> dict[str, str]:
    """Everything in the schema of a file, spaces apart."""
    found = sqlite3.connect(path).execute("SELECT name, sql FROM sqlite_master").fetchall()
    return {name: re.sub(r"[\s\"]", "", sql or "") for name, sql in found}


def test_an_upgrade_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(GOLDEN / "schema1.sqlite", tmp_path / "s")
    with monkeypatch.context() as patch:
        patch.setitem(schema.UPGRADES, 1, schema.UPGRADES[1] + "; NOT SQL")
        with pytest.raises(sqlite3.OperationalError):
            Store(tmp_path / "s")
    assert sqlite3.connect(tmp_path / "s").execute("PRAGMA user_version").fetchone() == (1,)
    with Store(tmp_path / "s") as store:
        assert list(store.measurements()) == golden_rows()


def test_processes_that_bring_one_store_up_to_date_at_once(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "schema1.sqlite", tmp_path / "s")
    code = """
print("ready", flush=True)
sys.stdin.readline()
with Store(sys.argv[1]) as store:
    store.add([row(int(sys.argv[3]))])
"""
    writers = [start(code, tmp_path / "s", str(1000 * i)) for i in (1, 2, 3)]
    assert [writer.stdout.readline() for writer in writers if writer.stdout] == ["ready\n"] * 3
    for writer in writers:
        writer.communicate("go\n", timeout=60)
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    with Store(tmp_path / "s") as store:
        assert list(store.measurements())[: len(golden_rows())] == golden_rows()
        assert len(list(store.measurements())) == len(golden_rows()) + 3


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    """SQLite's own page limit gives the error of a full disk."""
    with Store(tmp_path / "s") as store:
        store.add([row(tile) for tile in range(10)])
        store._database.rows("PRAGMA max_page_count = 34")
        with pytest.raises(UserError, match="the disk is full or failing; nothing stored before is lost"):
            store.add(row(tile, samples=(1.0,) * 100) for tile in range(10, 1000))
        kept = len(list(store.measurements()))
        store._database.rows("PRAGMA max_page_count = 100000")
        assert store.add([row(5000)]) == 1  # the ids handed out in the failed transaction are not reused
    with Store(tmp_path / "s") as store:
        assert len(list(store.measurements())) == kept + 1 >= 11
    assert sqlite3.connect(tmp_path / "s").execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_file_that_cannot_grow_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    """A limit on the file size is what the operating system says when a file cannot grow."""
    code = """
with Store(sys.argv[1]) as store:
    stored = store.add([row()])
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    try:
        for tile in range(100, 2000):
            stored += store.add([row(tile, samples=(1.5,) * 200)])
    except UserError as error:
        print(stored, error, flush=True)
"""
    stored, message = start(code, tmp_path / "s").communicate(timeout=60)[0].split(" ", 1)
    assert "free space and run again" in message
    with Store(tmp_path / "s") as store:
        assert len(list(store.measurements())) == int(stored) > 1


def test_what_a_statement_may_take_grows_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that was opened while it was empty is not taken for a damaged one when it is full."""
    monkeypatch.setattr(sqlite, "TICK", 1000)
    monkeypatch.setattr(sqlite, "BYTES_A_TICK", 100)
    with Store(tmp_path / "s") as store:
        assert store.add(row(tile) for tile in range(1500)) == 1500
        assert len(store.identities()) == 1500
        assert store.summary()["sittings"].tolist() == [1500]


def test_a_store_needs_no_parser(tmp_path: Path) -> None:
    """Some GPU machines have no tree-sitter: what is measured there is stored there, and its text is read elsewhere."""
    path, rows = tmp_path / "store.sqlite", [row()]
    code = textwrap.dedent(f"""
        import pickle, sys
        for name in ("tree_sitter", "tree_sitter_python", "tree_sitter_cpp", "tree_sitter_cuda"):
            sys.modules[name] = None  # as if it were not installed
        from costmodel.measure import gpu_running
        from costmodel.records import UserError
        from costmodel.serialize import canonical_source
        from costmodel.store import Store
        rows = pickle.loads({pickle.dumps(rows)!r})
        with Store({str(path)!r}) as store:
            assert store.add(rows) == len(rows) == len(list(store.combined()))
        try:
            canonical_source(rows[0].variant.kernel)
        except UserError as error:
            assert "pip install tree-sitter-cpp" in str(error)
        else:
            raise AssertionError("it was read")
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with Store(path) as store:
        assert list(store.measurements()) == rows
