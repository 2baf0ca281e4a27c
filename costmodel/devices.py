"""Device sheets: the machine at hand, and the published sheets in devices.json.

A sheet states nominal numbers only (never a clock read now), so one machine gives one sheet on each call and after a
reboot. On a CPU `num_units` counts the logical processors this process may use, `l2_bytes` is one core's, and
`peak_tflops` and `peak_gb_per_s` are those of the processors in `num_units`, not of the whole socket.
"""

from __future__ import annotations

import difflib
import functools
import json
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from costmodel.records import Device, UserError

_SHEETS = Path(__file__).with_name("devices.json")


def peak_tflops(device: Device, dtype: str) -> float:
    """The sheet's fastest rate for a dtype on whichever unit ("bf16/tensor" for bf16; f32 is never tf32); 0 if unknown.

    A dtype without an entry takes f64's rate if it is 8 bytes wide, else f32's, else the fastest float's.
    """
    stated = "f8" if dtype.startswith("f8") else dtype  # one rate for all 8-bit float formats
    for wanted in (stated, "f64" if dtype.endswith("64") else "f32", "f32"):
        rates = [rate for name, rate in device.peak_tflops if name.partition("/")[0] == wanted]
        if rates:
            return max(rates)
    return max((rate for name, rate in device.peak_tflops if not name.startswith("i")), default=0.0)


def sheet_numbers(device: Device) -> tuple[float, ...]:
    """What decides speed on most kernels: f32 rate, bandwidth, units, clock and L2; 0 where the sheet has none."""
    f32 = peak_tflops(device, "f32")
    return f32, device.peak_gb_per_s, float(device.num_units), device.clock_mhz, float(device.l2_bytes)


# ---- published sheets ----


@functools.cache
def _published() -> tuple[tuple[Device, ...], dict[str, str]]:
    """Devices in file order, and alias -> name."""
    devices: list[Device] = []
    aliases: dict[str, str] = {}
    for sheet in json.loads(_SHEETS.read_text())["devices"]:
        fields = {key: value for key, value in sheet.items() if key not in ("aliases", "sources")}
        fields["peak_tflops"] = tuple(fields["peak_tflops"].items())
        fields["details"] = tuple(fields["details"].items())
        devices.append(Device(**fields))
        aliases |= {_plain(alias): sheet["name"] for alias in [*sheet["aliases"], sheet["name"]]}
    return tuple(devices), aliases


def load_sheets() -> dict[str, Device]:
    """The published sheets by name, in file order. The sources of their numbers stand in devices.json."""
    return {device.name: device for device in _published()[0]}


def find(name: str) -> Device:
    """A published sheet by name, alias or unambiguous part of a name; case and punctuation do not matter.

    Raises UserError, naming the nearest sheets, where none or several match.
    """
    sheets = load_sheets()
    aliases = _published()[1]
    plain = _plain(name)
    if plain in aliases:
        return sheets[aliases[plain]]
    words = set(plain.split())
    matches = [known for known in sheets if words and words <= set(_plain(known).split())]
    if len(matches) == 1:
        return sheets[matches[0]]
    if matches:
        raise UserError(f"got device {name!r}, which may be any of: {', '.join(matches)}; give the full name")
    close = difflib.get_close_matches(plain, aliases, n=5, cutoff=0.4)
    near = list(dict.fromkeys(aliases[alias] for alias in close)) or list(sheets)[:5]
    raise UserError(f"no sheet for device {name!r}; near it: {', '.join(near)}; `costmodel devices` lists all")


def _plain(name: str) -> str:
    """ "NVIDIA GeForce RTX 3090" -> "rtx 3090": lower case, makers and brands dropped, letters and digits kept."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    return " ".join(word for word in words if word not in ("nvidia", "geforce", "tesla", "amd", "instinct", "radeon"))


# ---- the machine at hand ----


def detect(kind: Literal["cpu", "cuda"] | None = None) -> Device:
    """The sheet of the CPU ("cpu"), of the current GPU of torch ("cuda", ROCm too), or the GPU if there is one (None).

    Raises UserError if "cuda" is asked for and torch sees no GPU.
    """
    if kind == "cpu":
        return _cpu()
    if kind == "cuda":
        return _cuda()
    if kind is not None:
        raise UserError(f"got device kind {kind!r}, expected cpu or cuda (or nothing: a GPU if there is one)")
    if not (Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()):  # spares the import of torch
        return _cpu()
    try:
        return _cuda()
    except UserError:
        return _cpu()


def _cuda() -> Device:
    # torch is imported here and not above: the search and the gate import this module and must start without it.
    try:
        import torch
    except ImportError as error:
        raise UserError(f"got device kind 'cuda', but torch cannot be imported ({error}); install torch") from error
    if not torch.cuda.is_available():
        raise UserError("got device kind 'cuda', but torch sees no GPU; use the cpu, or install a CUDA build of torch")
    return _gpu_sheet(torch.cuda.get_device_properties(torch.cuda.current_device()))


def _gpu_sheet(properties: Any) -> Device:
    """The published sheet of that name, or one made from what the driver states (torch's device properties)."""
    wanted = _plain(properties.name)
    aliases = _published()[1]
    if wanted in aliases:
        return load_sheets()[aliases[wanted]]
    for needed in ("clock_rate", "memory_clock_rate", "memory_bus_width"):
        if not getattr(properties, needed, 0):
            raise UserError(
                f"no sheet for {properties.name!r}, and torch does not state its {needed}; add it to devices.json"
            )
    # f32 lanes of an SM: 64 on compute capability 6.0, 7.x and 8.0, else 128 (CUDA programming guide, throughput table)
    capability = (properties.major, properties.minor)
    lanes = 64 if capability in ((6, 0), (7, 0), (7, 5), (8, 0)) else 128
    units, clock_mhz = properties.multi_processor_count, properties.clock_rate / 1e3
    return Device(
        name=properties.name,
        kind="gpu",
        vendor="NVIDIA",
        arch=f"sm_{properties.major}{properties.minor}",
        num_units=units,
        clock_mhz=clock_mhz,
        peak_tflops=(("f32", round(units * lanes * 2 * clock_mhz * 1e-6, 2)),),
        peak_gb_per_s=round(2 * properties.memory_clock_rate * properties.memory_bus_width / 8 * 1e-6, 1),
        l2_bytes=properties.L2_cache_size,
        memory_bytes=properties.total_memory,
        details=(
            ("lanes_per_unit", lanes),
            ("max_threads_per_unit", getattr(properties, "max_threads_per_multi_processor", 0)),
            ("shared_bytes_per_unit", getattr(properties, "shared_memory_per_multiprocessor", 0)),
            ("registers_per_unit", getattr(properties, "regs_per_multiprocessor", 0)),
            ("warp_size", properties.warp_size),
        ),
    )


# ---- CPUs ----


@dataclass(frozen=True, slots=True)
class _Family:
    """What a CPU does not tell about itself. Bandwidths are nominal: memory channels x transfer rate x 8 bytes."""

    arch: str
    fma_bits: int  # all the FMA pipes of a core together, per cycle
    gb_per_s: float  # of one socket
    core_gb_per_s: float  # what one core draws alone: it has too few outstanding misses to fill a server's channels


# One core of an Intel server draws about 25 GB/s (measured on Emerald Rapids: 12-15 read, 22-27 read and written back).
# Sources: Intel ARK and AMD product pages for the channels, Agner Fog's microarchitecture.pdf for the pipes.
_X86 = {
    ("GenuineIntel", 6, (63,)): _Family("haswell", 512, 68.3, 20),
    ("GenuineIntel", 6, (79, 86)): _Family("broadwell", 512, 76.8, 20),
    ("GenuineIntel", 6, (85,)): _Family("skylake-sp", 1024, 128.0, 20),
    ("GenuineIntel", 6, (106, 108)): _Family("icelake-sp", 1024, 204.8, 20),
    ("GenuineIntel", 6, (143,)): _Family("sapphire-rapids", 1024, 307.2, 25),
    ("GenuineIntel", 6, (207,)): _Family("emerald-rapids", 1024, 358.4, 25),
    ("GenuineIntel", 6, (173, 174)): _Family("granite-rapids", 1024, 614.4, 25),
    ("GenuineIntel", 6, (78, 94, 142, 158, 165, 166)): _Family("skylake", 512, 41.6, 30),
    ("GenuineIntel", 6, (125, 126, 140, 141, 167)): _Family("icelake", 512, 51.2, 30),
    ("GenuineIntel", 6, (151, 154, 183, 186, 191)): _Family("alderlake", 512, 76.8, 40),
    ("AuthenticAMD", 23, (1, 8, 17, 24)): _Family("zen", 256, 41.6, 25),
    ("AuthenticAMD", 23, (49,)): _Family("zen2-epyc", 512, 204.8, 25),
    ("AuthenticAMD", 23, (96, 104, 113)): _Family("zen2", 512, 51.2, 30),
    ("AuthenticAMD", 25, (1,)): _Family("zen3-epyc", 512, 204.8, 30),
    ("AuthenticAMD", 25, (33, 68, 80)): _Family("zen3", 512, 51.2, 35),
    ("AuthenticAMD", 25, (17, 160)): _Family("zen4-epyc", 512, 460.8, 35),
    ("AuthenticAMD", 25, (97, 116, 117)): _Family("zen4", 512, 83.2, 45),
    ("AuthenticAMD", 26, (2, 17)): _Family("zen5-epyc", 1024, 576.0, 45),
    ("AuthenticAMD", 26, (36, 68)): _Family("zen5", 1024, 89.6, 50),
}
_ARM_PARTS = {  # Linux: (implementer, part) of /proc/cpuinfo
    (0x41, 0xD0C): _Family("neoverse-n1", 256, 204.8, 25),
    (0x41, 0xD40): _Family("neoverse-v1", 512, 307.2, 30),
    (0x41, 0xD49): _Family("neoverse-n2", 256, 204.8, 30),
    (0x41, 0xD4F): _Family("neoverse-v2", 512, 500.0, 35),
    (0x41, 0xD08): _Family("cortex-a72", 128, 12.8, 6),
    (0x41, 0xD0B): _Family("cortex-a76", 256, 17.1, 12),
}
_APPLE = {  # macOS: the brand string after "Apple "
    "M1": _Family("apple-m1", 512, 68.3, 60),
    "M1 Pro": _Family("apple-m1", 512, 200.0, 90),
    "M1 Max": _Family("apple-m1", 512, 400.0, 90),
    "M2": _Family("apple-m2", 512, 100.0, 90),
    "M2 Pro": _Family("apple-m2", 512, 200.0, 90),
    "M2 Max": _Family("apple-m2", 512, 400.0, 90),
    "M3": _Family("apple-m3", 512, 100.0, 90),
    "M4": _Family("apple-m4", 512, 120.0, 100),
}


def _cpu() -> Device:
    if platform.system() == "Darwin":
        keys = (
            "machdep.cpu.brand_string",
            "hw.l1dcachesize",
            "hw.l2cachesize",
            "hw.l3cachesize",
            "hw.perflevel0.l2cachesize",
        )
        facts = {key: _sysctl(key) for key in keys}
        return mac_sheet(facts, os.cpu_count() or 1, _memory_bytes())
    text = _read("/proc/cpuinfo")
    has_affinity = hasattr(os, "sched_getaffinity")
    allowed = sorted(os.sched_getaffinity(0)) if has_affinity else list(range(os.cpu_count() or 1))
    caches = {}
    for folder in sorted(Path(f"/sys/devices/system/cpu/cpu{allowed[0]}/cache").glob("index*")):
        if _read(folder / "type").strip() != "Instruction":
            caches[int(_read(folder / "level"))] = _size(_read(folder / "size"))
    siblings = {_read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in allowed}
    base_khz = _read(f"/sys/devices/system/cpu/cpu{allowed[0]}/cpufreq/base_frequency")
    maximum_khz = _read(f"/sys/devices/system/cpu/cpu{allowed[0]}/cpufreq/cpuinfo_max_freq")
    return linux_sheet(
        text,
        caches=caches,
        num_logical=len(allowed),
        num_cores=len(siblings),
        base_mhz=float(base_khz or maximum_khz or 0) / 1e3,
        memory_bytes=_memory_bytes(),
    )


def linux_sheet(
    cpuinfo: str,
    *,
    caches: dict[int, int],
    num_logical: int,
    num_cores: int,
    base_mhz: float = 0.0,
    memory_bytes: int = 0,
) -> Device:
    """The sheet from /proc/cpuinfo's text, data cache bytes by level, and a stated base clock (0: not stated).

    Peak f32 TFLOP/s = cores x (FMA bits per cycle / 32) x 2 x clock. The clock is the one in the model's name, else the
    stated base clock, else half of bogomips on x86 (the time-stamp counter's rate: the nominal clock), else 2 GHz.
    """
    facts = dict(re.findall(r"^([^:\n]*?)\s*: ?(.*)$", cpuinfo.partition("\n\n")[0], re.MULTILINE))
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    is_x86 = "vendor_id" in facts
    if "avx512f" in flags:
        vector_bits = 512
    elif "avx" in flags:
        vector_bits = 256
    else:
        vector_bits = 128
    family = _linux_family(facts, vector_bits, has_fma="fma" in flags or not is_x86)
    name = re.sub(r"\((R|TM|r|tm)\)", "", facts.get("model name", "")).strip() or f"{platform.machine()} {family.arch}"
    in_name = re.search(r"@ ([\d.]+)GHz", name)
    if in_name:
        clock_mhz = float(in_name.group(1)) * 1e3
    elif base_mhz:
        clock_mhz = base_mhz
    else:
        bogomips = float(facts.get("bogomips", 0)) if is_x86 else 0.0
        clock_mhz = round(bogomips / 2, -2) or 2000.0
    return _cpu_sheet(
        re.sub(r"\s+", " ", name),
        vendor={"GenuineIntel": "Intel", "AuthenticAMD": "AMD"}.get(facts.get("vendor_id", ""), "ARM"),
        family=family,
        vector_bits=vector_bits,
        clock_mhz=clock_mhz,
        caches=caches,
        num_logical=num_logical,
        num_cores=num_cores,
        memory_bytes=memory_bytes,
    )


def _linux_family(facts: dict[str, str], vector_bits: int, *, has_fma: bool) -> _Family:
    """The table's row; for an unknown CPU two pipes of its vector width (one without FMA), 20 GB/s for each core."""
    if "vendor_id" in facts:
        vendor, number, model = facts["vendor_id"], int(facts.get("cpu family", 0)), int(facts.get("model", 0))
        for (row_vendor, row_number, models), family in _X86.items():
            if (row_vendor, row_number) == (vendor, number) and model in models:
                return family
        return _Family(f"x86-family{number}-model{model}", vector_bits * (2 if has_fma else 1), 80.0, 20)
    implementer, part = (int(facts.get(key, "0"), 16) for key in ("CPU implementer", "CPU part"))
    unknown = _Family(f"arm-{implementer:02x}-{part:03x}", 256, 80.0, 20)
    return _ARM_PARTS.get((implementer, part), unknown)


def mac_sheet(facts: dict[str, str], num_cores: int, memory_bytes: int) -> Device:
    """The sheet from macOS's sysctl values. It states no clock: 3.2 GHz stands for Apple's, 2.4 for Intel's."""
    brand = facts["machdep.cpu.brand_string"].strip()
    is_apple = brand.startswith("Apple")
    family = _APPLE.get(brand.removeprefix("Apple "), _Family(brand.lower().replace(" ", "-") or "mac", 512, 50.0, 40))
    named = re.search(r"@ ([\d.]+)GHz", brand)
    l2_key = "hw.perflevel0.l2cachesize" if facts.get("hw.perflevel0.l2cachesize") else "hw.l2cachesize"
    sizes = {1: facts["hw.l1dcachesize"], 2: facts[l2_key], 3: facts["hw.l3cachesize"]}
    return _cpu_sheet(
        brand or "Mac",
        vendor="Apple" if is_apple else "Intel",
        family=family,
        vector_bits=128 if is_apple else 256,
        clock_mhz=float(named.group(1)) * 1e3 if named else (3200.0 if is_apple else 2400.0),
        caches={level: int(size) for level, size in sizes.items() if size},
        num_logical=num_cores,
        num_cores=num_cores,
        memory_bytes=memory_bytes,
    )


def _cpu_sheet(
    name: str,
    *,
    vendor: str,
    family: _Family,
    vector_bits: int,
    clock_mhz: float,
    caches: dict[int, int],
    num_logical: int,
    num_cores: int,
    memory_bytes: int,
) -> Device:
    # A family's server chips may have AVX-512 switched off; then each of its two pipes is as wide as what is left.
    fma_bits = min(family.fma_bits, 2 * vector_bits) if vendor in ("Intel", "AMD") else family.fma_bits
    f32 = num_cores * fma_bits / 32 * 2 * clock_mhz * 1e-6
    return Device(
        name=name,
        kind="cpu",
        vendor=vendor,
        arch=family.arch,
        num_units=num_logical,
        clock_mhz=clock_mhz,
        peak_tflops=(("f32", round(f32, 5)), ("f64", round(f32 / 2, 5))),
        peak_gb_per_s=min(family.gb_per_s, num_cores * family.core_gb_per_s),
        l2_bytes=caches.get(2, 1 << 20),  # 1 MB where the system states none
        memory_bytes=memory_bytes,
        details=(
            ("l1_bytes", caches.get(1, 32 << 10)),
            ("l3_bytes", caches.get(3, 0)),
            ("vector_bits", vector_bits),
            ("num_cores", num_cores),
        ),
    )


def _read(path: str | Path) -> str:
    """A small system file; empty where the system has none."""
    path = Path(path)
    return path.read_text(errors="replace") if path.is_file() else ""


def _sysctl(key: str) -> str:
    return subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, check=False).stdout.strip()


def _size(text: str) -> int:
    """ "2048K" -> 2097152"""
    text = text.strip()
    scale = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
    return int(text.rstrip("KM") or 0) * scale


def _memory_bytes() -> int:
    """Memory in whole GiB, rounded up: what the kernel keeps for itself differs from boot to boot."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return 0
    return -(-os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // (1 << 30)) << 30
