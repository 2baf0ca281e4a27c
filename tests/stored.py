"""Rows to store, and processes that store them."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from costmodel.records import Config, Device, Kernel, Measurement, Problem, TensorSpec, Timing, Variant

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


def golden_rows() -> list[Measurement]:
    """What the files in tests/golden/store hold."""
    renamed = replace(KERNEL, name="other")
    imported = Variant(Kernel("gemm", "opencl", None, origin="tables"), PROBLEM, Config.of(A=1.0, B=True, C="ü", D=1))
    return [
        row(8),
        row(8, samples=(3.5,), at="2026-01-02T00:00:00"),
        row(16, status="crash", error="Segmentation fault\x00\x01\nline"),
        row(variant=imported, device=replace(DEVICE, name="other"), timing=Timing("cold", 1.0, 3, 0.5)),
        row(variant=Variant(renamed, PROBLEM, Config.of(TILE=9, MODE="row")), at="2026-01-03T00:00:00"),
        row(32, status="compiled", counters=(("registers", 32.0),)),
        *(row(tile, counters=(("cycles", 1e9),)) for tile in range(100, 110)),
    ]


# What runs in a process of its own: this file's folder is argument 2, since pytest's import mode hides test modules.
PROLOGUE = """
import resource, sys
from costmodel.records import UserError
from costmodel.store import Store
sys.path.insert(0, sys.argv[2])
from stored import row
"""

# Adds five rows at a time for ever, and says after each time how many there are.
ENDLESS = """
with Store(sys.argv[1]) as store:
    tile = 0
    while True:
        store.add([row(tile + i, samples=(1.0,) * 50) for i in range(5)])
        tile += 5
        print(tile, flush=True)
"""


def start(code: str, address: str | Path, *more: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", PROLOGUE + code, str(address), str(Path(__file__).parent), *more]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
