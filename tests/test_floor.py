"""The analytic floor and the grey-box estimate: numbers by hand, laws, and what they leave out."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel import floor
from costmodel.devices import find, load_sheets, peak_tflops
from costmodel.floor import estimate_us, floor_us, op_class, terms, tile_waste
from costmodel.records import Device, Problem, TensorSpec

SHEETS = load_sheets()
CPU = Device("c", "cpu", "v", "a", 2, 2300.0, (("f32", 0.3), ("f64", 0.15)), 50.0, 2 << 20)


def problem(dtype: str, flops: int, traffic: int) -> Problem:
    return Problem("any", (TensorSpec((1,), dtype),), (), flops, traffic)


def product(b: int, m: int, n: int, k: int, *, dtype: str = "f32", op: str = "bmm") -> Problem:
    size = floor.element_bytes(dtype)
    return Problem(
        op,
        (TensorSpec((b, m, k), dtype), TensorSpec((b, k, n), dtype)),
        (("B", b), ("M", m), ("N", n), ("K", k)),
        2 * b * m * n * k,
        int(size * b * (m * k + k * n + m * n)),
    )


def rows(op: str, b: int, h: int, passes: int = 2, *, dtype: str = "f32") -> Problem:
    size = int(floor.element_bytes(dtype))
    return Problem(op, (TensorSpec((b, h), dtype),), (("B", b), ("H", h)), b * h, passes * size * b * h)


# ---- roofline ----


def test_roofline_by_hand() -> None:
    h100 = find("H100")
    assert floor_us(problem("bf16", 2 * 8192**3, 3 * 2 * 8192**2), h100) == pytest.approx(2 * 8192**3 / 989.4e6)
    assert floor_us(problem("f32", 1, 3_350_000_000), h100) == pytest.approx(1e3)
    assert floor_us(problem("f32", 10**12, 0), h100) == pytest.approx(1e12 / 66.9e6)  # f32 does not run as tf32
    assert floor_us(problem("f32", 0, 0), h100) == floor.GPU_LAUNCH_US
    assert floor_us(problem("f32", 300_000, 0), CPU) == pytest.approx(1.0)
    assert floor_us(problem("f64", 300_000, 0), CPU) == pytest.approx(2.0)
    assert floor_us(problem("i32", 300_000, 0), CPU) == pytest.approx(1.0)
    assert floor_us(problem("f32", 0, 0), CPU) == 0


def test_what_a_sheet_does_not_state_is_left_out() -> None:
    bare = Device("bare", "cpu", "v", "a", 2, 0.0, (), 0.0, 0)
    assert floor_us(problem("f32", 10**9, 10**9), bare) == 0
    streaming = Device("streaming", "cpu", "v", "a", 2, 0.0, (), 10.0, 0)
    assert floor_us(problem("f32", 10**9, 10_000), streaming) == pytest.approx(1.0)
    card = Device("card", "gpu", "v", "a", 0, 0.0, (), 0.0, 0)
    for asked in (product(4, 512, 512, 512), rows("softmax", 4096, 4096)):
        assert terms(asked, card) == {"launch_us": floor.GPU_LAUNCH_US}
        assert estimate_us(asked, card) == floor.GPU_LAUNCH_US
    unpowered = dataclasses.replace(find("T4"), tdp_watts=0.0)
    assert "power_us" not in terms(product(1, 512, 512, 512), unpowered)


@given(st.integers(0, 10**13), st.integers(0, 10**11), st.integers(0, 10**12), st.sampled_from(sorted(SHEETS)))
def test_more_work_never_has_a_lower_floor(flops: int, traffic: int, more: int, name: str) -> None:
    device = SHEETS[name]
    lowest = floor_us(problem("f16", flops, traffic), device)
    assert floor_us(problem("f16", flops + more, traffic), device) >= lowest
    assert floor_us(problem("f16", flops, traffic + more), device) >= lowest


# ---- matrix products ----


def test_power_limits_small_cards_and_plain_f32_alone() -> None:
    large = product(1, 8192, 8192, 8192)
    for name, tflops in (("T4", 564 * 70 / 12e3), ("L4", 564 * 72 / 4e3)):
        assert floor_us(large, find(name)) == pytest.approx(large.flops / (tflops * 1e6))
    # A tuned f32 matrix product of size 4096 runs at 24.3 TFLOP/s on an RTX 3090, whose sheet says 35.6.
    assert large.flops / terms(large, find("RTX 3090"))["power_us"] * 1e-6 == pytest.approx(24.3, rel=0.05)
    assert "power_us" not in terms(product(1, 8192, 8192, 8192, dtype="f16"), find("T4"))
    assert "power_us" not in terms(large, find("MI250X"))  # its f32 is that of the matrix units
    assert "power_us" not in terms(problem("f32", 10**12, 0), find("T4"))


def test_tiles_by_hand() -> None:
    a100 = find("A100")
    full = product(108, 128, 128, 256)  # one full tile a unit, no waste
    assert min(tile_waste(full, a100)) == pytest.approx(1.0)
    one_more = product(109, 128, 128, 32)  # two waves for 109 tiles; too shallow to split
    best = dict(zip(floor.TILES, tile_waste(one_more, a100), strict=True))
    assert best[128, 128, 1.0] == pytest.approx(2 * 108 / 109)
    assert best[64, 64, 0.75] == pytest.approx(5 * 108 / (109 * 4) / 0.75)
    padded = product(108, 100, 128, 32)
    assert dict(zip(floor.TILES, tile_waste(padded, a100), strict=True))[128, 128, 1.0] == pytest.approx(1.28)


def test_a_deep_product_is_split_over_the_units() -> None:
    """One tile of a long K (1, 64, 154, 53038) took 106 us on an A100: far less than one unit alone would need."""
    deep = product(1, 64, 154, 53038, op="linear")
    a100 = find("A100")
    assert floor_us(deep, a100) < 150
    alone = deep.flops / (peak_tflops(a100, "f32") * 1e6 / a100.num_units)
    assert terms(deep, a100)["tile_us"] < alone / 10


def test_a_matrix_vector_product_stays_memory_bound() -> None:
    asked = product(1, 1, 4096, 4096)
    found = terms(asked, find("H100"))
    assert floor_us(asked, find("H100")) == found["memory_us"]


sizes = st.integers(1, 5000)


@given(st.integers(1, 64), sizes, sizes, sizes, st.sampled_from([d.name for d in SHEETS.values() if d.kind == "gpu"]))
def test_a_tile_never_beats_the_peak_and_the_floor_is_the_largest_time(
    b: int, m: int, n: int, k: int, name: str
) -> None:
    asked, device = product(b, m, n, k), SHEETS[name]
    found = terms(asked, device)
    assert found["tile_us"] >= found["compute_us"] * (1 - 1e-9)
    assert floor_us(asked, device) == max(value for term, value in found.items() if term.endswith("_us"))
    assert estimate_us(asked, device) > 0
    assert math.isfinite(estimate_us(asked, device))


# ---- operations on rows ----


def test_rows_in_flight_by_hand() -> None:
    v100 = find("Tesla V100-PCIE-32GB")
    resident = 80 * 2048 / 128 * 4096 * 4
    assert terms(rows("ln", 8192, 4096), v100)["rows_over_l2"] == pytest.approx(resident / (6 << 20))
    assert terms(rows("softmax", 8192, 4096), v100)["rows_over_l2"] == pytest.approx(resident / 4 / (6 << 20))
    assert terms(rows("softmax", 8192, 1024), v100)["rows_over_l2"] == 0  # kept in registers
    assert "rows_over_l2" not in terms(rows("gelu", 8192, 4096), v100)


def test_classes_are_told_from_what_the_problem_states() -> None:
    assert [op_class(product(1, 2, 3, 4, op=op)) for op in ("bmm", "linear", "matmul")] == ["bmm", "linear", "bmm"]
    assert [op_class(rows(op, 2, 3)) for op in ("ln", "rms_norm", "softmax", "gelu")] == [
        "ln",
        "ln",
        "softmax",
        "elementwise",
    ]
    assert op_class(problem("f32", 1, 1)) == ""


# ---- the grey box ----


def test_the_estimate_on_a_cpu_and_for_an_unknown_class_is_the_floor() -> None:
    for asked in (product(2, 512, 512, 512), rows("ln", 4096, 1024), problem("f32", 10**9, 10**6)):
        assert estimate_us(asked, CPU) == floor_us(asked, CPU)
    assert estimate_us(problem("f32", 10**9, 10**6), find("H100")) == floor_us(
        problem("f32", 10**9, 10**6), find("H100")
    )


def test_sizes_without_flops_have_no_estimate() -> None:
    for bare in (
        dataclasses.replace(product(2, 512, 512, 512), flops=0),
        dataclasses.replace(rows("ln", 8, 8), bytes=0),
    ):
        assert not floor.has_estimate(bare, find("H100"))
        assert estimate_us(bare, find("H100")) == floor_us(bare, find("H100"))


def test_the_estimate_is_monotonic_and_above_the_traffic() -> None:
    for name in ("H100", "L4", "A100 80GB PCIe", "MI300X"):
        device = find(name)
        for op in ("gelu", "softmax", "ln"):
            times = [estimate_us(rows(op, 1 << p, 4096), device) for p in range(10, 20)]
            assert times == sorted(times)
            assert times[-1] > terms(rows(op, 1 << 19, 4096), device)["memory_us"]
        times = [estimate_us(product(1, 1 << p, 1 << p, 1 << p), device) for p in range(7, 13)]
        assert times == sorted(times)


def test_constants_cover_every_class_and_say_where_they_come_from() -> None:
    document = json.loads(Path(floor.__file__).with_name("floor_constants.json").read_text())
    assert set(document["constants"]) == {"bmm", "linear", "elementwise", "softmax", "ln"}
    assert "T4" in document["rows"]
    assert "--fit" in document["how"]


def test_an_estimate_by_hand() -> None:
    asked, device, constant = rows("gelu", 1 << 14, 4096), find("A100"), floor.constants()["elementwise"]
    expected = constant["launch"] + constant["memory_once"] * asked.bytes / 1555e3
    assert estimate_us(asked, device) == pytest.approx(expected)
