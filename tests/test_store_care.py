"""Stores that are damaged, checked, repaired and backed up."""

import json
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from stored import DEVICE, ENDLESS, KERNEL, PROBLEM, golden_rows, row, start

from costmodel.records import Config, Measurement, UserError, Variant
from costmodel.store import Store, schema
from costmodel.store.checking import check
from costmodel.store.pages import opened
from costmodel.store.repair import repair
from costmodel.store.sqlite import backup

GOLDEN = Path(__file__).parent / "golden" / "store"


def many(count: int) -> list[Measurement]:
    """Rows of several kernels (one with a text of many pages), problems and devices; some fail."""
    kernels = [replace(KERNEL, name=f"k{i}", source="x" * (20_000 if i == 1 else 300) + str(i)) for i in range(3)]
    problems = [replace(PROBLEM, params=(("N", n),)) for n in (64, 128)]
    devices = [DEVICE, replace(DEVICE, name="other")]
    rows = []
    for i in range(count):
        variant = Variant(kernels[i % 3], problems[i // 3 % 2], Config.of(TILE=i, MODE="row"))
        status = "timeout" if i % 17 == 0 else "ok"
        rows.append(row(variant=variant, device=devices[i // 6 % 2], status=status, samples=(1.5 + i, 2.25, 1e-9)))
    return rows


def stored(path: Path, rows: list[Measurement]) -> Path:
    with Store(path) as store:
        store.add(rows)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored(tmp_path_factory.mktemp("whole") / "s", many(1200))


def kept(path: Path) -> list[Measurement]:
    with Store(path) as store:
        return list(store.measurements())


def command(*arguments: object) -> tuple[int, dict[str, object], str]:
    code = "from costmodel.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments), "--json"], capture_output=True, text=True, timeout=60
    )
    return done.returncode, json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}, done.stderr


# ---- check ----


def test_a_sound_store_is_sound(whole: Path) -> None:
    assert check(whole).faults == ()
    assert check(whole).rows == 1200


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("UPDATE measurements SET samples_us = '[9.5]' WHERE id = 7", "row 7 is not of its content's hash"),
        ("UPDATE measurements SET collected_at = 'x' WHERE id = 7", "row 7 is not of its content's hash"),
        ("UPDATE measurements SET config = '[[\"TILE\",1]]' WHERE id = 7", "row 7 is not of its identity"),
        ("UPDATE measurements SET samples_us = '[-1.0]' WHERE id = 7", "row 7 is no measurement"),
        ("UPDATE measurements SET samples_us = '[1e999]' WHERE id = 7", "row 7 is no measurement"),
        ("UPDATE measurements SET samples_us = '[]' WHERE id = 7", "row 7 is no measurement"),
        ("UPDATE measurements SET status = 'fine' WHERE id = 7", "row 7 is no measurement"),
        ("UPDATE measurements SET kernel = 3 - kernel WHERE id = 7", "row 7 is no measurement"),
        ("UPDATE measurements SET counters = '[' WHERE id = 7", "row 7 is no measurement"),
        ("UPDATE measurements SET method = 99 WHERE id = 7", "row 7 of measurements refers to nothing in methods"),
        ("UPDATE devices SET sheet = replace(sheet, '2300', '2301')", "is not of its identity"),
        ("UPDATE texts SET source = source || ' '", "is not of its identity"),
    ],
)
def test_what_was_changed_is_found(tmp_path: Path, change: str, word: str) -> None:
    path = stored(tmp_path / "s", many(20))
    with closing(sqlite3.connect(path)) as database:
        database.execute(change)
        database.commit()
    found = check(path)
    assert any(word in fault for fault in found.faults), found.faults


def test_a_row_that_is_there_twice_is_found(tmp_path: Path) -> None:
    """An index that was lost lets a row in again."""
    path = stored(tmp_path / "s", many(20))
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE again AS SELECT * FROM measurements")
        database.execute("DROP TABLE measurements")
        database.execute("ALTER TABLE again RENAME TO measurements")
        database.execute(
            "INSERT INTO measurements SELECT id + 100, space, identity, content, kernel, method, config, status,"
            " samples_us, error, counters, collected_at FROM measurements WHERE id = 5"
        )
        database.commit()
    found = check(path)
    assert found.unsound == 1
    assert "is stored 2 times" in found.faults[0]


def test_damaged_pages_are_found_and_the_file_is_left_alone(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(whole.read_bytes()[:-20_000])
    before = path.read_bytes()
    found = check(path)
    assert found.rows == 0
    assert found.faults
    assert path.read_bytes() == before
    with pytest.raises(UserError, match="no store"):
        check(tmp_path / "absent")


# ---- repair ----


@pytest.mark.parametrize("version", range(1, schema.VERSION + 1))
def test_of_a_sound_file_everything_is_saved(tmp_path: Path, version: int) -> None:
    done = repair(GOLDEN / f"schema{version}.sqlite", tmp_path / "new")
    assert (done.saved, done.lost, done.unsound) == (len(golden_rows()), 0, 0)
    assert kept(tmp_path / "new") == golden_rows()


def test_long_texts_and_many_pages_come_back_in_order(whole: Path, tmp_path: Path) -> None:
    done = repair(whole, tmp_path / "new")
    assert (done.saved, done.lost, done.unsound) == (1200, 0, 0)
    assert kept(tmp_path / "new") == many(1200)


def test_what_is_only_in_the_write_ahead_log_is_saved(tmp_path: Path) -> None:
    with Store(tmp_path / "s") as store:
        store.add(many(100))
        assert (tmp_path / "s-wal").stat().st_size
        shutil.copy(tmp_path / "s", tmp_path / "copy")
        shutil.copy(tmp_path / "s-wal", tmp_path / "copy-wal")
    before = (tmp_path / "copy").read_bytes(), (tmp_path / "copy-wal").read_bytes()
    assert repair(tmp_path / "copy", tmp_path / "new").saved == 100
    assert ((tmp_path / "copy").read_bytes(), (tmp_path / "copy-wal").read_bytes()) == before
    assert kept(tmp_path / "new") == many(100)


def test_a_file_that_is_cut_off_gives_its_first_rows(whole: Path, tmp_path: Path) -> None:
    data = whole.read_bytes()
    path = tmp_path / "s"
    path.write_bytes(data[: len(data) // 2 + 100])
    with pytest.raises(UserError, match="damaged"):
        kept(path)
    done = repair(path, tmp_path / "new")
    assert done.claimed == len(data) // 4096 > done.pages
    assert 300 < done.saved < 1200
    assert set(kept(tmp_path / "new")) <= set(many(1200))
    assert check(tmp_path / "new").faults == ()


def test_a_file_without_its_first_pages_gives_the_rest(whole: Path, tmp_path: Path) -> None:
    """The header, the schema and the roots of all trees are gone."""
    path = tmp_path / "s"
    with opened(whole) as pages:
        nouns = max(n for n in range(1, pages.count + 1)
                    if any(len(values) == 4 and values[0] is None for _, values in pages.records(n)))  # fmt: skip
    data = bytearray(whole.read_bytes())
    data[:4096] = bytes(4096)
    path.write_bytes(data)
    done = repair(path, tmp_path / "new")
    assert done.saved == 1200
    assert nouns > 1
    assert kept(tmp_path / "new") == many(1200)


def test_a_lost_space_is_found_again_by_the_identities(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    shutil.copy(whole, path)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("DELETE FROM spaces WHERE id < 5").rowcount == 4
        database.commit()
        database.execute("VACUUM")
    done = repair(path, tmp_path / "new")
    assert (done.saved, done.unsound) == (1200, 0)
    assert kept(tmp_path / "new") == many(1200)


@pytest.mark.parametrize(("flips", "least"), [(1, 700), (30, 0), (300, 0)])
def test_flipped_bits_never_make_a_row_and_one_loses_few(whole: Path, tmp_path: Path, flips: int, least: int) -> None:
    """Whatever is saved was stored; one flip loses at most what one page holds, or a kernel's rows."""
    true = {replace(m, counters=()) for m in many(1200)}  # no hash covers counters
    total = 0
    for seed in range(4):
        data, chance = bytearray(whole.read_bytes()), random.Random(seed)
        for _ in range(flips):
            place = chance.randrange(len(data))
            data[place] ^= 1 << chance.randrange(8)
        (tmp_path / f"s{seed}").write_bytes(data)
        saved = saved_of(tmp_path / f"s{seed}", tmp_path / f"new{seed}")
        assert {replace(m, counters=()) for m in saved} <= true
        assert len(saved) >= least
        total += len(saved)
    assert total > 0
    assert check(tmp_path / "new0").faults == ()


def saved_of(path: Path, new: Path) -> list[Measurement]:
    """None where even the one method of all rows is gone."""
    try:
        done = repair(path, new)
    except UserError:
        return []
    rows = kept(new)
    assert len(rows) == done.saved
    return rows


def test_what_cannot_be_repaired_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(random.Random(0).randbytes(200_000))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "there").write_bytes(b"")
    for name, words in (("noise", "no row of a store"), ("empty", "is empty"), ("absent", "no file")):
        with pytest.raises(UserError, match=words):
            repair(tmp_path / name, tmp_path / "new")
        assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="exists already"):
        repair(stored(tmp_path / "s", many(3)), tmp_path / "there")


# ---- backup ----


def test_a_backup_while_another_process_writes_is_whole(tmp_path: Path) -> None:
    writer = start(ENDLESS, tmp_path / "s")
    assert writer.stdout is not None
    try:
        counts = []
        for number in range(6):
            said = int(writer.stdout.readline())
            backup(tmp_path / "s", tmp_path / f"copy{number}")
            with Store(tmp_path / f"copy{number}") as copy:
                tiles = [m.variant.config["TILE"] for m in copy.measurements()]
            assert tiles == list(range(len(tiles)))
            assert len(tiles) >= said
            assert len(tiles) % 5 == 0  # no half of a transaction
            assert check(tmp_path / f"copy{number}").faults == ()
            counts.append(len(tiles))
            time.sleep(0.02)
        assert counts[-1] > counts[0]
    finally:
        writer.kill()
        writer.communicate(timeout=30)
    assert not list(tmp_path.glob("*.part"))


def test_a_backup_is_one_file_that_appears_whole(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backup(whole, tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
    assert kept(tmp_path / "copy") == many(1200)
    with pytest.raises(UserError, match="exists already"):
        backup(whole, tmp_path / "copy")
    with pytest.raises(UserError, match="no store"):
        backup(tmp_path / "absent", tmp_path / "other")
    with pytest.raises(UserError, match="expected its folder to exist"):
        backup(whole, tmp_path / "nowhere" / "copy")
    (tmp_path / "text").write_text("no database, and long enough to have a header " * 40)
    with pytest.raises(UserError, match="not a store"):
        backup(tmp_path / "text", tmp_path / "other")
    assert not (tmp_path / "other").exists()


# ---- commands ----


def test_the_commands(whole: Path, tmp_path: Path) -> None:
    code, told, _ = command("store", "check", whole)
    assert (code, told["sound"], told["rows"], told["faults"]) == (0, True, 1200, [])
    code, told, _ = command("store", "backup", whole, tmp_path / "copy")
    assert (code, told["bytes"]) == (0, (tmp_path / "copy").stat().st_size)
    cut = tmp_path / "cut"
    cut.write_bytes(whole.read_bytes()[:-100_000])
    code, told, _ = command("store", "check", cut)
    assert (code, told["sound"]) == (1, False)
    code, told, _ = command("store", "repair", cut, "--out", tmp_path / "new")
    assert code == 0
    assert told["saved"] == len(kept(tmp_path / "new")) > 300
    assert told["pages"] < told["pages_claimed"]
    code, _, error = command("store", "repair", tmp_path / "absent", "--out", tmp_path / "new2")
    assert code == 2
    assert error.startswith("costmodel: no file")
    code, _, error = command("store", "ls", "--store", "postgresql://team:s3cret@127.0.0.1:1/none")
    assert code == 2
    assert error.startswith("costmodel: ")
    assert "s3cret" not in error
    code, _, error = command("store", "backup", "postgresql://team:s3cret@127.0.0.1:1/none", tmp_path / "x")
    assert (code, "pg_dump" in error, "s3cret" in error) == (2, True, False)
