import dataclasses
import pickle
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel import store as store_module
from costmodel.dataset import read_parquet
from costmodel.records import Config, Device, Kernel, Measurement, Problem, TensorSpec, Timing, UserError, Variant
from costmodel.store import Store, identity

KERNEL = Kernel("dot", "cpp", "void run() {}", (("TILE", (8, 16)), ("MODE", ("row", "col"))))
PROBLEM = Problem("dot", (TensorSpec((64,), "f32"),), (("N", 64),), 128, 512)
DEVICE = Device("box", "cpu", "Intel", "x", 2, 2300.0, (("f32", 0.2), ("f32/simd", 0.4)), 50.0, 1 << 20,
                details=(("l1_bytes", 49152),))  # fmt: skip
TOOLS = (("cxx", "g++ 12.2.0"), ("flags", "-O2"))


def row(
    tile: int = 8, *, samples: tuple[float, ...] = (1.5, 2.25), at: str = "2026-01-01T00:00:00", **fields: object
) -> Measurement:
    if fields.get("status", "ok") != "ok":
        samples = ()
    variant = Variant(KERNEL, PROBLEM, Config.of(TILE=tile, MODE="row"))
    whole = {"variant": variant, "device": DEVICE, "timing": Timing(), "toolchain": TOOLS, "status": "ok"} | fields
    return Measurement(**whole, samples_us=samples, collected_at=at)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store.sqlite") as opened:
        yield opened


def test_what_goes_in_comes_out_exactly(tmp_path: Path) -> None:
    imported = Variant(Kernel("gemm", "opencl", None, origin="tables"), PROBLEM, Config.of(A=1.0, B=True, C="ü", D=1))
    rows = [
        row(samples=(0.1 + 0.2, 1e-9, 123456.789)),
        row(16, status="crash", error="Segmentation fault\x00\x01\nline"),
        row(variant=imported, device=dataclasses.replace(DEVICE, name="other"), timing=Timing("cold", 1.0, 3, 0.5)),
        row(8, counters=(("cycles", 1e9), ("misses", 0.5)), at="2026-01-02"),
    ]
    with Store(tmp_path / "s") as first:
        assert first.add(rows) == 4
    with Store(tmp_path / "s") as again:
        back = list(again.measurements())
    assert back == rows
    assert [type(value) for _, value in back[2].variant.config.params] == [float, bool, str, int]


def test_a_message_that_utf8_cannot_write_is_kept_readable(store: Store) -> None:
    store.add([row(status="crash", error="bad \udcff byte")])
    assert [found.error for found in store.measurements()] == ["bad ? byte"]


def test_exact_duplicates_are_ignored_and_new_sittings_are_numbered(store: Store) -> None:
    first, second = row(), row(at="2026-01-01T01:00:00")
    assert store.add([first, first, second]) == 2
    assert store.add([first, row(samples=(9.0,))]) == 1
    assert len(list(store.measurements())) == 3
    numbers = sqlite3.connect(store.path).execute("SELECT sitting FROM measurements ORDER BY id").fetchall()
    assert numbers == [(1,), (2,), (3,)]


def test_a_source_is_stored_once_whatever_it_is_called(store: Store) -> None:
    renamed = dataclasses.replace(KERNEL, name="other")
    store.add([row(tile) for tile in range(20)])
    store.add([row(variant=Variant(renamed, PROBLEM, Config.of(TILE=8, MODE="row")), at="later")])
    database = sqlite3.connect(store.path)
    assert database.execute("SELECT COUNT(*) FROM texts").fetchone() == (1,)
    assert database.execute("SELECT COUNT(*) FROM kernels").fetchone() == (2,)
    assert database.execute("SELECT COUNT(*) FROM problems").fetchone() == (1,)


CHANGES = {
    "kernel": {"variant": Variant(dataclasses.replace(KERNEL, source="x"), PROBLEM, Config.of(TILE=8, MODE="row"))},
    "problem": {"variant": Variant(KERNEL, dataclasses.replace(PROBLEM, op="y"), Config.of(TILE=8, MODE="row"))},
    "config": {"variant": Variant(KERNEL, PROBLEM, Config.of(TILE=8, MODE="col"))},
    "device": {"device": dataclasses.replace(DEVICE, l2_bytes=1)},
    "toolchain": {"toolchain": (("cxx", "clang 19"),)},
    "timing": {"timing": Timing("cold")},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_each_part_of_the_identity_counts(store: Store, change: dict[str, object]) -> None:
    one, two = row(), row(**change)
    store.add([one])

    def stored(m: Measurement) -> bool:
        return store.has(m.variant, m.device, timing=m.timing, toolchain=m.toolchain)

    assert stored(one)
    assert not stored(two)
    store.add([two])
    assert stored(two)
    assert store.identities() == {identity(m.variant, m.device, m.timing, m.toolchain) for m in (one, two)}
    assert len(list(store.combined())) == 2


def test_filters(store: Store) -> None:
    other = dataclasses.replace(DEVICE, name="other")
    store.add([row(8), row(16, status="timeout"), row(8, device=other)])
    assert [m.variant.config["TILE"] for m in store.measurements(status="timeout")] == [16]
    assert [m.device for m in store.measurements(device="other")] == [other]
    assert [m.device for m in store.measurements(device=other.identity)] == [other]
    assert len(list(store.measurements(kernel="dot", op="dot", device="box"))) == 2
    assert len(list(store.measurements(kernel=KERNEL.identity))) == 3
    assert list(store.measurements(kernel="dot", op="sum")) == []
    with pytest.raises(UserError, match="got status 'fine', expected one of ok, "):
        list(store.measurements(status="fine"))


def test_reading_goes_on_while_the_caller_writes(store: Store) -> None:
    store.add([row(tile) for tile in range(1500)])
    seen = 0
    for found in store.measurements():
        seen += 1
        if found.collected_at == "2026-01-01T00:00:00":
            store.add([dataclasses.replace(found, collected_at="later")]) if seen <= 5 else None
    assert seen == 1505
    assert len(list(store.combined())) == 1500


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


rows = st.builds(
    lambda tile, at, samples, bad: row(tile, samples=tuple(samples), at=at, status="timeout" if bad else "ok"),
    st.sampled_from([8, 16, 32]),
    st.sampled_from(["2026-01", "2026-02"]),
    st.lists(st.floats(0.001, 1e6), min_size=1, max_size=2),
    st.booleans(),
)


@settings(max_examples=12, deadline=None)
@given(ours=st.lists(rows, max_size=6), theirs=st.lists(rows, max_size=6))
def test_merge_is_idempotent_and_a_union(tmp_path_factory: pytest.TempPathFactory, ours, theirs) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("merge")
    with Store(folder / "a") as a, Store(folder / "b") as b:
        a.add(ours)
        b.add(theirs)
        assert a.merge(folder / "b") == len(set(theirs) - set(ours))
        assert a.merge(folder / "b") == 0
        assert set(a.measurements()) == set(ours) | set(theirs)
        b.merge(folder / "a")
        assert {m.status for m in a.combined()} == {m.status for m in b.combined()}
        assert len(list(a.measurements())) == len(list(b.measurements()))


def test_summary_and_export(store: Store, tmp_path: Path) -> None:
    store.add([row(8), row(8, at="2026-03"), row(16), row(32, status="crash", error="boom")])
    table = store.summary()
    assert table[["kernel", "problem", "device", "status", "variants", "sittings"]].values.tolist() == [
        ["dot", "N=64", "box", "crash", 1, 1],
        ["dot", "N=64", "box", "ok", 2, 3],
    ]
    assert table["last_collected_at"].tolist() == ["2026-01-01T00:00:00", "2026-03"]
    store.export(tmp_path / "out")
    assert read_parquet(tmp_path / "out") == list(store.measurements())


def test_an_empty_store_is_empty(store: Store) -> None:
    assert list(store.combined()) == []
    assert store.identities() == set()
    assert len(store.summary()) == 0


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


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    with Store(tmp_path / "s") as store:
        store.add([row()])
    database = sqlite3.connect(tmp_path / "s")
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(UserError, match="of schema 99, expected at most 1; update costmodel"):
        Store(tmp_path / "s")
    assert sqlite3.connect(tmp_path / "s").execute("SELECT COUNT(*) FROM measurements").fetchone() == (1,)


def test_an_older_schema_is_brought_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path / "s") as store:
        store.add([row()])
    later = (*store_module.MIGRATIONS, "ALTER TABLE devices ADD COLUMN note TEXT; CREATE TABLE extra (x);")
    monkeypatch.setattr(store_module, "MIGRATIONS", later)
    with Store(tmp_path / "s") as store:
        assert list(store.measurements()) == [row()]
        assert store.add([row(16)]) == 1
    database = sqlite3.connect(tmp_path / "s")
    assert database.execute("PRAGMA user_version").fetchone() == (2,)
    assert database.execute("SELECT note FROM devices").fetchall() == [(None,)]


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path / "s") as store:
        store.add([row()])
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "MIGRATIONS", (*store_module.MIGRATIONS, "CREATE TABLE extra (x); NOT SQL;"))
        with pytest.raises(sqlite3.OperationalError):
            Store(tmp_path / "s")
    with Store(tmp_path / "s") as store:
        assert list(store.measurements()) == [row()]


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    """SQLite's own page limit gives the error of a full disk."""
    with Store(tmp_path / "s") as store:
        store.add([row(tile) for tile in range(10)])
        store._database.execute("PRAGMA max_page_count = 30")
        with pytest.raises(UserError, match="the disk is full or failing; nothing stored before is lost"):
            store.add(row(tile, samples=(1.0,) * 100) for tile in range(10, 1000))
        kept = len(list(store.measurements()))
        store._database.execute("PRAGMA max_page_count = 100000")
        assert store.add([row(5000)]) == 1  # the ids handed out in the failed transaction are not reused
    with Store(tmp_path / "s") as store:
        assert len(list(store.measurements())) == kept + 1 >= 11
    assert sqlite3.connect(tmp_path / "s").execute("PRAGMA integrity_check").fetchone() == ("ok",)


# What runs in a process of its own: this file's folder is argument 2, since pytest's import mode hides test modules.
PROLOGUE = """
import resource, sys
from costmodel.records import UserError
from costmodel.store import Store
sys.path.insert(0, sys.argv[2])
from test_store import row
"""


def start(code: str, path: Path, *more: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", PROLOGUE + code, str(path), str(Path(__file__).parent), *more]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


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


def test_processes_that_make_and_fill_one_store_at_once(tmp_path: Path) -> None:
    """Three writers open a file that is not there yet, at the same moment."""
    code = """
print("ready", flush=True)
sys.stdin.readline()
first = int(sys.argv[3])
with Store(sys.argv[1]) as store:
    for tile in range(first, first + 15):
        store.add([row(tile), row(7, at=f"2026-{tile}")])
"""
    writers = [start(code, tmp_path / "s", str(1000 * i)) for i in (1, 2, 3)]
    assert [writer.stdout.readline() for writer in writers if writer.stdout] == ["ready\n"] * 3
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=90)
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    with Store(tmp_path / "s") as store:
        assert len(list(store.measurements())) == 90
        assert len(list(store.combined())) == 46
    numbers = sqlite3.connect(tmp_path / "s").execute(
        "SELECT sitting FROM measurements WHERE config LIKE '%\"TILE\",7]%' ORDER BY sitting"
    )
    assert [number for (number,) in numbers] == list(range(1, 46))


def test_kill_9_keeps_all_that_was_committed(tmp_path: Path) -> None:
    code = """
with Store(sys.argv[1]) as store:
    tile = 0
    while True:
        store.add([row(tile + i, samples=(1.0,) * 50) for i in range(5)])
        tile += 5
        print(tile, flush=True)
"""
    process = start(code, tmp_path / "s")
    assert process.stdout is not None
    said = [int(process.stdout.readline()) for _ in range(20)]
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    said += [int(line) for line in process.stdout.read().splitlines()]
    process.communicate(timeout=30)
    with Store(tmp_path / "s") as store:
        tiles = [int(m.variant.config["TILE"]) for m in store.measurements()]
        assert tiles == list(range(len(tiles)))
        assert len(tiles) >= said[-1]
        assert len(tiles) % 5 == 0  # each add whole or not at all
        assert store.add([row(10**6)]) == 1


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
