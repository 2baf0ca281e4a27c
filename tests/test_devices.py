"""Device sheets: published numbers agree with each other, and the machine at hand describes itself steadily."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel import devices
from costmodel.devices import detect, find, linux_sheet, load_sheets, mac_sheet, peak_tflops
from costmodel.records import Device, UserError

DOCUMENT = json.loads(Path(devices.__file__).with_name("devices.json").read_text())
SHEETS = load_sheets()
GIB = 1 << 30


# ---- published sheets ----


def test_there_are_the_promised_devices() -> None:
    assert len(SHEETS) >= 40
    for name in ("H200", "H100", "A100", "L4", "RTX 3090", "RTX 4090", "RTX 5090", "MI250X", "MI300X", "W7800"):
        assert find(name) in SHEETS.values()


@pytest.mark.parametrize("sheet", DOCUMENT["devices"], ids=lambda sheet: sheet["name"])
def test_every_number_has_a_source(sheet: dict) -> None:
    numbers = {"num_units", "clock_mhz", "peak_tflops", "peak_gb_per_s", "l2_bytes", "memory_bytes", "tdp_watts"}
    stated = {name for name in numbers if sheet[name]} | set(sheet["details"])
    assert set(sheet["sources"]) == stated
    assert set(sheet["sources"].values()) <= set(DOCUMENT["sources"])


@pytest.mark.parametrize("device", SHEETS.values(), ids=lambda device: device.name)
def test_f32_rate_is_units_times_lanes_times_clock(device: Device) -> None:
    details, rates = dict(device.details), dict(device.peak_tflops)
    if "lanes_per_unit" not in details:
        assert device.kind == "accelerator" or device.name == "NVIDIA H20"  # its f32 rate fits no whole lane count
        return
    computed = device.num_units * int(details["lanes_per_unit"]) * 2 * device.clock_mhz * 1e-6
    assert computed == pytest.approx(rates["f32"], rel=0.03)


@pytest.mark.parametrize("device", SHEETS.values(), ids=lambda device: device.name)
def test_numbers_are_plausible(device: Device) -> None:
    assert 150 <= device.peak_gb_per_s <= 10_000
    assert 6 * GIB <= device.memory_bytes <= 300 * GIB
    assert 0 <= device.tdp_watts <= 1500
    assert 0 <= device.l2_bytes <= 512 << 20
    rates = dict(device.peak_tflops)
    for name, rate in rates.items():
        assert 0 < rate < 6000
        dtype, _, unit = name.partition("/")
        if unit and dtype in rates:
            assert rate >= rates[dtype], f"{name} is slower than plain {dtype}"
    # Dense tensor rates: f8 is at most twice f16, f16 at most twice tf32 (a sparse number would show as four times).
    for fast, slow in (("f8", "f16"), ("f16", "tf32"), ("i8", "f16")):
        for unit in ("tensor", "matrix"):
            if f"{fast}/{unit}" in rates and f"{slow}/{unit}" in rates:
                bound = 4.05 if fast == "i8" else 2.05
                assert rates[f"{fast}/{unit}"] <= bound * rates[f"{slow}/{unit}"]
    if device.vendor == "NVIDIA":
        details = dict(device.details)
        assert details["warp_size"] == 32
        assert details["registers_per_unit"] == 65536
        assert details["max_threads_per_unit"] in (1024, 1536, 2048)


@pytest.mark.parametrize("device", [d for d in SHEETS.values() if d.kind == "gpu"], ids=lambda device: device.name)
def test_every_gpu_states_what_the_floor_needs(device: Device) -> None:
    details = dict(device.details)
    assert dict(device.peak_tflops)["f32"] > 0
    for number in (device.num_units, device.clock_mhz, device.peak_gb_per_s, device.l2_bytes, device.tdp_watts):
        assert number > 0
    assert 3 <= details["process_nm"] <= 16
    assert 1024 <= details["max_threads_per_unit"] <= 4096


def test_a_two_die_card_is_the_die_that_a_program_sees() -> None:
    die = find("MI250X")
    assert (die.num_units, die.memory_bytes, die.peak_gb_per_s) == (110, 64 * GIB, 1638.4)
    assert peak_tflops(die, "f64") == pytest.approx(
        2 * 110 * 64 * 2 * 1.7e-3, rel=0.01
    )  # matrix units: twice the lanes


def test_sheets_that_share_an_architecture_stay_apart() -> None:
    h100, h200 = find("H100"), find("H200")
    assert h100.arch == h200.arch == "sm_90"
    assert h100.identity != h200.identity
    assert h200.peak_gb_per_s > 1.3 * h100.peak_gb_per_s
    assert len({device.identity for device in SHEETS.values()}) == len(SHEETS)


def test_aliases_belong_to_one_device_each() -> None:
    seen: dict[str, str] = {}
    for sheet in DOCUMENT["devices"]:
        for alias in {devices._plain(alias) for alias in [*sheet["aliases"], sheet["name"]]}:
            assert alias not in seen, f"{alias!r} is {seen.get(alias)} and {sheet['name']}"
            seen[alias] = sheet["name"]


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("nvidia geforce rtx 3090", "NVIDIA GeForce RTX 3090"),
        ("rtx_titan", "NVIDIA TITAN RTX"),
        ("a4000", "NVIDIA RTX A4000"),
        ("mi250x", "AMD Instinct MI250X"),
        ("W6600", "AMD Radeon PRO W6600"),
        ("A100 80GB PCIe", "NVIDIA A100 80GB PCIe"),
        ("Tesla T4", "Tesla T4"),
        ("5070 Ti", "NVIDIA GeForce RTX 5070 Ti"),
        ("RTX_3060L", "NVIDIA GeForce RTX 3060 Laptop GPU"),
        ("RTX_2080_Ti", "NVIDIA GeForce RTX 2080 Ti"),
        ("A6000", "NVIDIA RTX A6000"),
        ("W7800", "AMD Radeon PRO W7800"),
        ("Tesla_V100-PCIE-32GB", "Tesla V100-PCIE-32GB"),
        ("H100", "NVIDIA H100 80GB HBM3"),
        ("L4", "NVIDIA L4"),
    ],
)
def test_find_is_lenient(asked: str, name: str) -> None:
    assert find(asked).name == name


def test_find_names_what_is_near() -> None:
    with pytest.raises(UserError, match=r"RTX 3090"):
        find("RTX 3091")
    with pytest.raises(UserError, match=r"may be any of: .*SXM2-16GB.*SXM2-32GB"):
        find("SXM2")
    with pytest.raises(UserError, match="no sheet"):
        find("")


@given(st.sampled_from(sorted(SHEETS)))
def test_every_name_finds_itself(name: str) -> None:
    assert find(name).name == name
    assert find(name.lower().replace("-", " ")).name == name


def test_rate_of_a_dtype_without_an_entry() -> None:
    assert peak_tflops(find("H100"), "f8e4m3fn") == pytest.approx(1978.9, rel=1e-3)
    assert peak_tflops(find("Tesla T4"), "bf16") == 8.1
    assert peak_tflops(find("Tesla T4"), "i64") == pytest.approx(8.1 / 32, rel=1e-3)
    assert peak_tflops(find("TPU v5e"), "f32") == 197


# ---- the machine at hand ----

SERVER = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8480+
cpu MHz\t\t: {mhz}
flags\t\t: fpu sse2 avx fma avx2 avx512f
bogomips\t: 4000.00

processor\t: 1
"""
DESKTOP = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 97
model name\t: AMD Ryzen 9 7950X 16-Core Processor
flags\t\t: fpu sse2 avx fma avx2 avx512f
bogomips\t: 9000.42
"""
ARM = """processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd0c
"""
CACHES = {1: 48 << 10, 2: 2 << 20, 3: 105 << 20}


def test_a_server_by_hand() -> None:
    sheet = linux_sheet(SERVER.format(mhz=3512.2), caches=CACHES, num_logical=4, num_cores=2, memory_bytes=8 * GIB)
    assert (sheet.name, sheet.arch, sheet.num_units) == ("Intel Xeon Platinum 8480+", "sapphire-rapids", 4)
    assert sheet.clock_mhz == 2000.0
    # two cores x two 512-bit pipes x 16 lanes x multiply and add x 2 GHz
    assert dict(sheet.peak_tflops) == pytest.approx({"f32": 2 * 2 * 16 * 2 * 2.0e-3, "f64": 2 * 2 * 8 * 2 * 2.0e-3})
    assert sheet.peak_gb_per_s == 50
    assert dict(sheet.details)["vector_bits"] == 512
    whole = linux_sheet(SERVER.format(mhz=800), caches=CACHES, num_logical=56, num_cores=56)
    assert whole.peak_gb_per_s == 307.2  # the socket's channels bind


def test_the_current_clock_does_not_enter() -> None:
    sheets = [linux_sheet(SERVER.format(mhz=mhz), caches=CACHES, num_logical=2, num_cores=2) for mhz in (800.0, 3800.0)]
    assert sheets[0].identity == sheets[1].identity


def test_clock_sources_in_order() -> None:
    named = SERVER.replace("8480+", "8480+ CPU @ 2.70GHz")
    assert linux_sheet(named, caches={}, num_logical=1, num_cores=1, base_mhz=2500.0).clock_mhz == 2700.0
    assert linux_sheet(SERVER, caches={}, num_logical=1, num_cores=1, base_mhz=2500.0).clock_mhz == 2500.0
    assert linux_sheet(DESKTOP, caches={}, num_logical=1, num_cores=1).clock_mhz == 4500.0
    assert linux_sheet(ARM, caches={}, num_logical=1, num_cores=1).clock_mhz == 2000.0


def test_other_cpus() -> None:
    zen = linux_sheet(DESKTOP, caches=CACHES, num_logical=32, num_cores=16)
    assert (zen.vendor, zen.arch, zen.num_units) == ("AMD", "zen4", 32)
    assert dict(zen.peak_tflops)["f32"] == pytest.approx(16 * 16 * 2 * 4.5e-3)  # 512-bit work takes two cycles
    arm = linux_sheet(ARM, caches={}, num_logical=8, num_cores=8, base_mhz=2500.0)
    assert (arm.vendor, arm.arch) == ("ARM", "neoverse-n1")
    assert dict(arm.peak_tflops)["f32"] == pytest.approx(8 * 8 * 2 * 2.5e-3)
    plain = linux_sheet(
        SERVER.replace("avx fma avx2 avx512f", "").replace(": 143", ": 999"), caches={}, num_logical=1, num_cores=1
    )
    assert plain.arch == "x86-family6-model999"
    assert dict(plain.peak_tflops)["f32"] == pytest.approx(4 * 2 * 2.0e-3)
    masked = linux_sheet(SERVER.replace(" avx512f", ""), caches={}, num_logical=1, num_cores=1)
    assert dict(masked.peak_tflops)["f32"] == pytest.approx(2 * 8 * 2 * 2.0e-3)
    empty = linux_sheet("", caches={}, num_logical=1, num_cores=1)
    assert empty.name
    assert empty.peak_gb_per_s == 20


def test_a_mac_by_hand() -> None:
    facts = {
        "machdep.cpu.brand_string": "Apple M2 Pro",
        "hw.l1dcachesize": "65536",
        "hw.l2cachesize": "4194304",
        "hw.perflevel0.l2cachesize": "16777216",
        "hw.l3cachesize": "",
    }
    sheet = mac_sheet(facts, 10, 16 * GIB)
    assert (sheet.name, sheet.vendor, sheet.arch) == ("Apple M2 Pro", "Apple", "apple-m2")
    assert (sheet.l2_bytes, dict(sheet.details)["l3_bytes"], sheet.peak_gb_per_s) == (16 << 20, 0, 200)
    assert dict(sheet.peak_tflops)["f32"] == pytest.approx(10 * 16 * 2 * 3.2e-3)
    unknown = mac_sheet(dict.fromkeys(facts, ""), 4, 0)
    assert unknown.name == "Mac"
    assert unknown.l2_bytes == 1 << 20


def test_this_machine_is_the_same_each_time() -> None:
    here = detect("cpu")
    assert here == detect("cpu")
    code = "from costmodel import devices; print(devices.detect('cpu').identity)"
    root = str(Path(devices.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": root}
    )
    assert done.stdout.strip() == here.identity
    assert here.kind == "cpu"
    assert here.num_units >= 1
    assert here.clock_mhz >= 500
    assert here.l2_bytes >= 64 << 10
    assert peak_tflops(here, "f32") == pytest.approx(2 * peak_tflops(here, "f64"))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no processor affinity here")
def test_units_are_the_processors_this_process_may_use() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert detect("cpu").num_units == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert detect("cpu").num_units == len(allowed)


def test_importing_devices_leaves_torch_alone() -> None:
    code = (
        "import sys; from costmodel import devices as d; d.find('H100'); d.detect('cpu'); print('torch' in sys.modules)"
    )
    root = str(Path(devices.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": root}
    )
    assert done.stdout.strip() == "False"


def test_unknown_kind_is_named() -> None:
    with pytest.raises(UserError, match="expected cpu or cuda"):
        detect("gpu")  # type: ignore[arg-type]


# ---- GPUs, as torch describes them ----


def gpu(**changes: object) -> SimpleNamespace:
    facts = {
        "name": "NVIDIA H200",
        "major": 9,
        "minor": 0,
        "multi_processor_count": 132,
        "clock_rate": 1_980_000,
        "memory_clock_rate": 3_201_000,
        "memory_bus_width": 6144,
        "L2_cache_size": 50 << 20,
        "total_memory": 141 * GIB,
        "warp_size": 32,
    }
    return SimpleNamespace(**{**facts, **changes})


def test_a_known_gpu_gets_its_published_sheet() -> None:
    assert devices._gpu_sheet(gpu()) == find("H200")
    assert devices._gpu_sheet(gpu(name="Tesla V100-SXM2-16GB")) == find("V100")


def test_an_unknown_gpu_gets_a_sheet_from_its_driver() -> None:
    sheet = devices._gpu_sheet(gpu(name="NVIDIA Next"))
    assert (sheet.name, sheet.arch, sheet.num_units) == ("NVIDIA Next", "sm_90", 132)
    assert peak_tflops(sheet, "f32") == pytest.approx(66.9, rel=0.01)
    assert sheet.peak_gb_per_s == pytest.approx(4917, rel=0.01)
    with pytest.raises(UserError, match="does not state its memory_clock_rate"):
        devices._gpu_sheet(gpu(name="NVIDIA Next", memory_clock_rate=0))


@pytest.mark.gpu
def test_the_gpu_at_hand() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    sheet = detect("cuda")
    assert sheet.kind == "gpu"
    assert detect() == sheet


def test_no_gpu_is_one_clear_line() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="torch sees no GPU"):
        detect("cuda")
    assert detect().kind == "cpu"
