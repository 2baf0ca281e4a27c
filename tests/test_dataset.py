import dataclasses
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from costmodel import dataset
from costmodel.dataset import Card, Split, assert_no_leak, groups, read_parquet, split, write_parquet
from costmodel.records import Config, Device, Kernel, Measurement, Problem, TensorSpec, Timing, UserError, Variant

CPU = Device("box", "cpu", "Intel", "x", 2, 2300.0, (("f32", 0.2), ("f32/simd", 0.4)), 50.0, 1 << 20,
             details=(("l1_bytes", 49152),))  # fmt: skip
GPU = Device("H200", "gpu", "NVIDIA", "sm_90", 132, 1980.0, (("f32", 67.0),), 4800.0, 50 << 20)
SCHEMA = (("TILE", (8, 16, 32)),)


def kernel(name: str, source: str | None = None, language: str = "cpp") -> Kernel:
    return Kernel(name, language, source or f"void run() {{ {name}(); }}", SCHEMA)  # type: ignore[arg-type]


def problem(op: str, size: int) -> Problem:
    return Problem(op, (TensorSpec((size, 2), "f32"), TensorSpec((), "i32")), (("N", size),), 2 * size, 8 * size)


def row(k: Kernel, size: int = 64, tile: int = 8, device: Device = CPU, **fields: object) -> Measurement:
    variant = Variant(k, problem(k.name.partition("__")[0], size), Config.of(TILE=tile))
    status = fields.get("status", "ok")
    whole: dict[str, object] = {"timing": Timing(), "toolchain": (("cxx", "g++ 12"), ("flags", "-O2")), "status": "ok"}
    samples = {"samples_us": (10.125, 9.5)} if status == "ok" else {}
    return Measurement(variant, device, **(whole | samples | fields))  # type: ignore[arg-type]


DATASETS = Path(__file__).parents[1] / "datasets"
FORMS = ["matmul", "matmul__packed", "matmul__dot", "softmax", "softmax__online", "loop_nest_1", "loop_nest_2", "scan"]
ROWS = [row(kernel(name), size, tile, device) for name in FORMS for size in (64, 128, 256) for tile in (8, 16)
        for device in (CPU, GPU)]  # fmt: skip


# ---- parquet ----


def test_a_dataset_comes_back_exactly(tmp_path: Path) -> None:
    imported = Measurement(
        Variant(Kernel("gemm", "opencl", None, origin="tables"), problem("gemm", 8), Config.of(A=1.5, B="ü", C=True)),
        GPU, Timing("cold", 1.0, 3, 0.5), (), "ok", (0.001, 1e7 + 0.125), "", (("cycles", 1e9),), "2026-01-01",
    )  # fmt: skip
    rows = [*ROWS, row(kernel("scan"), status="crash", error="Segmentation fault\x00 \udcff"), imported]
    write_parquet(rows, tmp_path)
    back = read_parquet(tmp_path)
    assert back[:-2] == rows[:-2]
    assert back[-1] == imported
    assert back[-2] == dataclasses.replace(rows[-2], error="Segmentation fault\x00 ?")
    assert [type(value) for _, value in back[-1].variant.config.params] == [float, str, bool]
    assert read_parquet(tmp_path / "measurements.parquet") == back


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(1e-5, 1e9), min_size=1, max_size=20))
def test_samples_are_rounded_to_a_nanosecond_once(
    tmp_path_factory: pytest.TempPathFactory, samples: list[float]
) -> None:
    folder = tmp_path_factory.mktemp("rounding")
    write_parquet([row(kernel("scan"), samples_us=tuple(samples))], folder)
    (back,) = read_parquet(folder)
    for was, now in zip(samples, back.samples_us, strict=True):
        assert now >= 0.001
        assert abs(now - was) <= max(0.0005, 0.001 - was) * (1 + 1e-6) + was * 1e-15
    write_parquet([back], folder)
    assert read_parquet(folder) == [back]


def test_sources_are_written_once(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(20_000).hex()
    long = kernel("long", f"// {noise}")
    write_parquet([row(long, size, tile) for size in range(1, 60) for tile in range(60)], tmp_path)
    assert pq.read_table(tmp_path / "kernels.parquet").num_rows == 1
    assert (tmp_path / "measurements.parquet").stat().st_size < 40_000


def test_the_file_is_readable_without_costmodel(tmp_path: Path) -> None:
    write_parquet([*ROWS, row(kernel("scan"), status="timeout")], tmp_path)
    table = pq.read_table(tmp_path / "measurements.parquet").to_pandas()
    assert (table.loc[table.status == "ok", "latency_us"] == 9.8125).all()
    assert math.isnan(table.loc[table.status == "timeout", "latency_us"].item())
    assert list(table["samples_ns"][0]) == [10125, 9500]


def test_the_card_states_what_was_measured(tmp_path: Path) -> None:
    rows = [
        row(kernel("scan"), collected_at="2026-01-02"),
        row(kernel("scan"), 128, collected_at="2026-01-01"),
        row(kernel("scan"), status="crash"),
        row(kernel("dot:0"), status="timeout"),
        row(kernel("dot:1"), status="timeout"),  # generated kernels are counted together
    ]
    card = Card("My kernels", hardware="A quiet box.", protocol="Three passes.", split_policy="By kernel.")
    write_parquet(rows, tmp_path, card)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith('---\nlicense: apache-2.0\npretty_name: "My kernels"\n')
    for part in (
        "A quiet box.",
        "- box (cpu, x): 2 units at 2300 MHz, 0.2 TFLOP/s f32, 0.4 TFLOP/s f32/simd, 50 GB/s, L2 1024 KiB",
        "- cxx `g++ 12`, flags `-O2`",
        "Three passes.",
        "5 rows, 2 of them `ok`, with 4 samples, collected from 2026-01-01 to 2026-01-02.",
        "| kernel | problems | ok | timeout | crash | median us |\n|---|---|---|---|---|---|\n"
        "| dot | 2 | 0 | 2 | 0 | - |\n| scan | 2 | 2 | 0 | 1 | 9.812 |",
        "- crash: 1\n- timeout: 2",
        "By kernel.",
    ):
        assert part in text


@pytest.mark.parametrize("folder", sorted(DATASETS.iterdir()), ids=lambda folder: folder.name)
def test_a_shipped_data_set_is_what_its_card_says(folder: Path) -> None:
    rows = pd.read_parquet(folder / "measurements.parquet", columns=["kernel", "status", "latency_us", "error"])
    ok = rows[rows.status == "ok"]
    assert f"{len(rows)} rows, {len(ok)} of them `ok`" in (folder / "README.md").read_text()
    assert (ok.latency_us > 0).all()
    assert (rows[rows.status != "ok"].error != "").all()
    assert set(rows.kernel) == set(pd.read_parquet(folder / "kernels.parquet", columns=["kernel"]).kernel)


def test_what_is_no_dataset_gets_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no measurements\.parquet in"):
        read_parquet(tmp_path)
    write_parquet(ROWS[:2], tmp_path)
    (tmp_path / "measurements.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(UserError, match="expected a whole parquet file"):
        read_parquet(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_parquet(ROWS[:2], tmp_path / "file")


# ---- splits ----


def test_by_kernel_holds_out_all_forms() -> None:
    parts = split(ROWS, by="kernel", held_out=["matmul", "loop_nest_2"])
    assert {m.variant.kernel.name for m in parts.test} == {"matmul", "matmul__packed", "matmul__dot", "loop_nest_2"}
    assert len(parts.train) + len(parts.test) == len(ROWS)


def test_by_problem_holds_out_a_size_for_all_forms() -> None:
    parts = split(ROWS, by="problem", held_out=["matmul:N=128"])
    assert {(m.variant.kernel.name, m.variant.problem["N"]) for m in parts.test} == {
        (name, 128) for name in FORMS if name.startswith("matmul")
    }
    assert any(m.variant.problem["N"] == 128 for m in parts.train)


def test_by_form_and_by_device() -> None:
    forms = split(ROWS, by="form", held_out=["softmax__online"])
    assert {m.variant.kernel.name for m in forms.test} == {"softmax__online"}
    devices = split(ROWS, by="device", held_out=["H200"])
    assert {m.device for m in devices.test} == {GPU}
    assert {m.device for m in devices.train} == {CPU}


@pytest.mark.parametrize("by", ["kernel", "form"])
def test_equal_text_never_straddles(by: str) -> None:
    """A copy under another name, and one that differs in a comment, go where the original goes."""
    copies = [
        kernel("nest_a", "int f(){return 1;}"),
        kernel("nest_b", "int f(){return 1;}"),
        kernel("nest_c", "// the same\nint f() { return 1; }"),
        kernel("nest_d", "int f(){return 2;}"),
    ]
    rows = [row(copy) for copy in copies]
    parts = split(rows, by=by, held_out=["nest_b"])  # type: ignore[arg-type]
    assert {m.variant.kernel.name for m in parts.test} == {"nest_a", "nest_b", "nest_c"}
    assert {m.variant.kernel.name for m in parts.train} == {"nest_d"}


names = st.sampled_from([*FORMS, "nest_a", "nest_a__x", "nest_b", "nest_b__y"])
bodies = st.sampled_from(["", "return;", "/* c */ return;", "return ;", "x();", "y();"])
sizes = st.sampled_from([64, 128, 256])
machines = st.sampled_from([CPU, GPU, dataclasses.replace(GPU, l2_bytes=1)])
some_rows = st.lists(
    st.builds(lambda n, b, s, d: row(kernel(n, f"void run() {{{b}}}"), s, 8, d), names, bodies, sizes, machines),
    min_size=2,
    max_size=25,
)


@settings(max_examples=120, deadline=None)
@given(some_rows, st.sampled_from(["kernel", "problem", "form", "device"]), st.floats(0.05, 0.95), st.integers(0, 9))
def test_no_split_leaks(rows: list[Measurement], by: str, fraction: float, seed: int) -> None:
    try:
        parts = split(rows, by=by, fraction=fraction, seed=seed)  # type: ignore[arg-type]
    except UserError:  # one unit only: nothing can be held out
        reject()
    assert parts == split(rows, by=by, fraction=fraction, seed=seed)  # type: ignore[arg-type]
    assert parts.train
    assert parts.test
    assert sorted(map(rows.index, (*parts.train, *parts.test))) == sorted(map(rows.index, rows))

    def both(key) -> set[object]:  # type: ignore[no-untyped-def]
        return {key(m) for m in parts.train} & {key(m) for m in parts.test}

    if by in ("kernel", "form"):
        assert not both(lambda m: m.variant.kernel.identity)
        assert not both(lambda m: "".join(m.variant.kernel.source.replace("/* c */", "").split()))
    if by == "kernel":
        assert not both(lambda m: m.variant.kernel.name.partition("__")[0])
    if by == "problem":
        assert not both(lambda m: (m.variant.problem.op, m.variant.problem.params))
        assert {m.variant.problem.op for m in parts.test} <= {m.variant.problem.op for m in parts.train}
    if by == "form":
        assert not both(lambda m: m.variant.kernel.name)
        assert {dataset.family(m.variant.kernel) for m in parts.test} <= {
            dataset.family(m.variant.kernel) for m in parts.train
        }
    if by == "device":
        assert not both(lambda m: m.device.name)


def test_seeds_differ_and_the_fraction_is_kept() -> None:
    chosen = {
        tuple(
            sorted({dataset.family(m.variant.kernel) for m in split(ROWS, by="kernel", fraction=0.4, seed=seed).test})
        )
        for seed in range(8)
    }
    assert len(chosen) > 1
    assert {len(names) for names in chosen} == {2}  # of 5 families


@pytest.mark.parametrize("by", ["kernel", "problem", "form", "device"])
def test_a_leak_is_found(by: str) -> None:
    parts = split(ROWS, by=by, fraction=0.5)  # type: ignore[arg-type]
    leaky = Split(parts.by, (*parts.train, parts.test[0]), parts.test)
    with pytest.raises(AssertionError, match=f"on both sides of a split by {by}"):
        assert_no_leak(leaky)


def test_a_leak_through_an_edited_comment_is_found() -> None:
    one, two = row(kernel("a", "int x;")), row(kernel("b", "int x; // the same"))
    with pytest.raises(AssertionError, match="source on both sides"):
        assert_no_leak(Split("kernel", (one,), (two,)))


def test_mistakes_get_one_line() -> None:
    with pytest.raises(UserError, match="got kernel 'matmull' to hold out, expected one of: loop_nest_1, "):
        split(ROWS, by="kernel", held_out=["matmull"])
    with pytest.raises(UserError, match="both or neither"):
        split(ROWS, by="kernel")
    with pytest.raises(UserError, match="expected 0 < fraction < 1"):
        split(ROWS, by="kernel", fraction=1.0)
    with pytest.raises(UserError, match="expected one of kernel, problem, form, device"):
        split(ROWS, by="row", fraction=0.5)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="at least two to split by device"):
        split(ROWS[:1], by="device", fraction=0.5)


# ---- groups ----


def test_groups_are_the_rows_of_one_prefix() -> None:
    found = list(groups(ROWS))
    assert len(found) == len(FORMS) * 3 * 2
    assert sorted(ROWS.index(m) for group in found for m in group.measurements) == list(range(len(ROWS)))
    for group in found:
        assert [m.variant.config["TILE"] for m in group.measurements] == [8, 16]
        assert {(m.variant.kernel, m.variant.problem, m.device) for m in group.measurements} == {
            (group.kernel, group.problem, group.device)
        }


def test_rows_timed_in_different_ways_do_not_meet() -> None:
    rows = [row(kernel("a")), row(kernel("a"), 64, 16), row(kernel("a"), 64, 32, timing=Timing("cold"))]
    assert [len(group.measurements) for group in groups(rows)] == [2, 1]


def test_kernels_of_equal_text_share_a_group() -> None:
    rows = [row(kernel("a", "int x;")), dataclasses.replace(row(kernel("a", "int x;"), 64, 16), error="")]
    renamed = dataclasses.replace(
        rows[1], variant=dataclasses.replace(rows[1].variant, kernel=kernel("other", "int x;"))
    )
    assert [len(group.measurements) for group in groups([*rows, renamed])] == [3]
