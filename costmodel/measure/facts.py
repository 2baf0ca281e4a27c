"""What a compiled GPU kernel says of itself before anybody launches it: resources, spills, instruction mix.

The facts of one launch are pairs of a name and a number, in a fixed order, fit for `Measurement.counters`. On NVIDIA
they are read from the cubin by the `cuobjdump` and `nvdisasm` that Triton's wheel brings (a CUDA toolkit's serve too);
resources take a few milliseconds, instructions 0.15 s and more. On AMD they stand in the assembly text. From facts and
a device's sheet follow how many blocks a unit holds at once, and whether the kernel can be launched at all.

Sources of the limits: NVIDIA's CUDA programming guide, tables of compute capabilities, and its occupancy calculator;
LLVM's AMDGPU backend guide and AMDGPUBaseInfo.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from costmodel.measure.instructions import CLASSES, amd_class, nvidia_class
from costmodel.records import Device, UserError

Facts = tuple[tuple[str, float], ...]

# Of a launch, and the largest over the launches of a variant. Registers and stack are a thread's, sizes in bytes.
RESOURCES = ("registers", "stack_bytes", "shared_bytes", "threads_per_block", "tensor_memory_columns",
             "spilled_registers", "scalar_registers", "spilled_scalar_registers")  # fmt: skip
MAX_THREADS = 1024
TENSOR_MEMORY_COLUMNS = 512
DISASSEMBLE_TIMEOUT_S = 120.0


def of_cubin(
    cubin: bytes,
    arch: str,
    *,
    threads: int,
    entry: str = "",
    dynamic_shared_bytes: int = 0,
    tensor_memory_columns: int = 0,
    instructions: bool = True,
) -> Facts:
    """The facts of one launch of a cubin's kernel `entry` (may be left out where there is one) for "sm_90" and such.

    Shared memory counts static and dynamic, without the kilobyte that the system reserves from sm_90 on. NVIDIA's
    tools do not count spilled registers: `local_loads` and `local_stores` are the instructions that spills (and
    arrays indexed at run time) cost. Instructions are counted from sm_75 on, the oldest that the disassembler reads;
    `instructions=False` leaves them out, which is quicker. UserError without the tools.
    """
    usage = _usage(cubin, entry)
    reserved = 1024 if capability(arch) >= 90 and usage["SHARED"] >= 1024 else 0
    resources = {
        "registers": usage["REG"],
        "stack_bytes": usage["STACK"] + usage["LOCAL"],
        "shared_bytes": usage["SHARED"] - reserved + dynamic_shared_bytes,
        "threads_per_block": threads,
        "tensor_memory_columns": tensor_memory_columns,
    }
    readable = instructions and capability(arch) >= 75
    counts = _counted(_opcodes(cubin, entry), nvidia_class) if readable else {}
    return tuple((name, float(value)) for name, value in {**resources, **counts}.items())


def of_amdgcn(text: str, *, threads: int, shared_bytes: int = 0) -> Facts:
    """The facts of one launch of an AMD kernel, from its assembly text. `shared_bytes`: what the launch adds."""
    stated = dict(re.findall(r"^\s+(\.[a-z_]+):\s+(\d+)\s*$", text, re.MULTILINE))
    if ".vgpr_count" not in stated:
        raise ValueError("got assembly without .amdgpu_metadata, expected the text of one kernel")
    resources = {
        "registers": int(stated[".vgpr_count"]),
        "stack_bytes": int(stated[".private_segment_fixed_size"]),
        "shared_bytes": int(stated[".group_segment_fixed_size"]) + shared_bytes,
        "threads_per_block": threads,
        "spilled_registers": int(stated[".vgpr_spill_count"]),
        "scalar_registers": int(stated[".sgpr_count"]),
        "spilled_scalar_registers": int(stated[".sgpr_spill_count"]),
    }
    opcodes = re.findall(r"^\t([a-z]\w+.*)$", text, re.MULTILINE)
    return tuple((name, float(value)) for name, value in {**resources, **_counted(opcodes, amd_class)}.items())


def joined(launches: Sequence[Facts]) -> Facts:
    """The facts of a variant that starts these: the largest of each resource, sums of instructions, and "launches"."""
    names = dict.fromkeys(name for facts in launches for name, _ in facts)
    each = [dict(facts) for facts in launches]
    values = ((name, [facts.get(name, 0.0) for facts in each]) for name in names)
    together = tuple((name, max(found) if name in RESOURCES else sum(found)) for name, found in values)
    return (*together, ("launches", float(len(launches))))


def _counted(opcodes: Sequence[str], class_of: Callable[[str], str]) -> dict[str, int]:
    found = Counter(class_of(opcode) for opcode in opcodes)
    del found[""]  # padding
    return {**{name: found[name] for name in CLASSES}, "instructions": found.total()}


# ---- NVIDIA's tools ----


@functools.cache
def tool(name: str) -> str:
    """The path of cuobjdump, nvdisasm or ptxas: what $TRITON_NAME_PATH says, as Triton itself would take it, else
    Triton's own, else the one on the PATH. UserError where there is none."""
    if chosen := os.environ.get(f"TRITON_{name.upper().replace('-', '_')}_PATH"):
        return chosen
    triton = importlib.util.find_spec("triton")
    for folder in (triton.submodule_search_locations or ()) if triton else ():
        path = Path(folder, "backends", "nvidia", "bin", name)
        if path.is_file():
            return str(path)
    path_found = shutil.which(name)
    if path_found is None:
        raise UserError(f"got no {name}, expected the one in Triton's wheel or in CUDA's toolkit; pip install triton")
    return path_found


def _read(command: str, *options: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [tool(command), *options, file.name], capture_output=True, text=True, timeout=DISASSEMBLE_TIMEOUT_S
        )
    if done.returncode != 0:
        raise ValueError(f"{command} cannot read the kernel: {done.stderr.strip()[:300]}")
    return done.stdout


def _is_entry(function: str, entry: str) -> bool:
    """A function's name in the cubin may be C++'s mangled one."""
    return not entry or function == entry or function.startswith(f"_Z{len(entry)}{entry}")


@functools.lru_cache(maxsize=256)
def _usage(cubin: bytes, entry: str) -> dict[str, int]:
    said = _read("cuobjdump", "-res-usage", cubin=cubin)
    for function, usage in re.findall(r"Function (\S+):\s*\n\s*(REG:.*)", said):
        if _is_entry(function, entry):
            return {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", usage)}
    raise ValueError(f"got a cubin without kernel {entry or 'in it'}")


@functools.lru_cache(maxsize=256)
def _opcodes(cubin: bytes, entry: str) -> tuple[str, ...]:
    """The opcodes of a kernel and of the functions that it did not inline, which are all that are no kernels."""
    document = json.loads(_read("nvdisasm", "-json", "-ndf", cubin=cubin))
    functions = {function["function-name"]: function["sass-instructions"] for function in document[1]}
    kernels = set(re.findall(r"Function (\S+):", _read("cuobjdump", "-res-usage", cubin=cubin))) if entry else set()
    wanted = [name for name in functions if _is_entry(name, entry) or name not in kernels]
    return tuple(instruction["opcode"] for name in wanted for instruction in functions[name])


def sass(cubin: bytes) -> str:
    """The disassembly as text."""
    return _read("nvdisasm", "-c", cubin=cubin)


# ---- what fits a device ----


def capability(arch: str) -> int:
    """ "sm_90a" -> 90"""
    return int(re.sub(r"\D", "", arch))


def shared_limit_bytes(device: Device) -> int:
    """The most shared memory (AMD: LDS) that one block may ask for.

    From sm_80 on it is the unit's less the kilobyte that the system keeps for each block; before that the unit's
    (sm_70: 96 KiB, sm_75: 64 KiB), but 48 KiB on sm_6x. AMD: 64 KiB, and 160 KiB on gfx950.
    """
    unit = _stated(device, "shared_bytes_per_unit")
    if not device.arch.startswith("sm_"):
        return unit
    if capability(device.arch) < 70:
        return 48 << 10
    return unit - 1024 if capability(device.arch) >= 80 else unit


def _stated(device: Device, name: str) -> int:
    value = dict(device.details).get(name)
    if value is None:
        raise UserError(f"the sheet of {device.name} does not state {name}, expected a GPU whose sheet does")
    return int(value)


def _up(value: float, step: int) -> int:
    return -(-int(value) // step) * step


def blocks_per_unit(facts: Facts, device: Device) -> int:
    """How many blocks of a launch a unit (SM, CU) holds at once; 0 where not even one fits."""
    known = dict(facts)
    shared = int(known["shared_bytes"])
    warps = -(-int(known["threads_per_block"]) // _stated(device, "warp_size"))
    if device.arch.startswith("sm_"):
        modern, number = capability(device.arch) >= 80, capability(device.arch)
        shared = _up(shared + (1024 if modern else 0), 128 if modern else 256)
        most = {75: 16, 86: 16, 87: 16, 89: 24, 120: 24, 121: 24}.get(number, 32)
    else:
        shared = _up(shared, 512)
        most = 16 if warps > 1 else 32  # a block of several waves takes one of 16 barriers
    limits = [most, _warp_slots(device) // warps, _warps_by_registers(known["registers"], device) // warps]
    if shared:
        limits.append(_stated(device, "shared_bytes_per_unit") // shared)
    return max(0, min(limits))


def _warp_slots(device: Device) -> int:
    return _stated(device, "max_threads_per_unit") // _stated(device, "warp_size")


def _warps_by_registers(registers: float, device: Device) -> int:
    """How many warps' registers a unit's file holds. The file is split evenly over the unit's schedulers."""
    lanes = _stated(device, "warp_size")
    file = _stated(device, "registers_per_unit")
    if device.arch.startswith("sm_"):
        parts, step = 4, 8  # a warp takes 256 registers at a time
    elif device.arch.startswith(("gfx10", "gfx11", "gfx12")):
        parts, step = 2, {65536: 16}.get(file, 24)
    else:
        parts, step = 4, 8
    if device.arch == "gfx908":  # half the file are accumulation registers, which count apart
        file, step = file // 2, 4
    return parts * (file // parts // (max(step, _up(registers, step)) * lanes))


def infeasible(facts: Facts, device: Device) -> str:
    """Why a launch with these facts fails on the device, in one line; empty where it does not. A spill is no reason."""
    known = {name: int(value) for name, value in facts}
    limit = shared_limit_bytes(device)
    lanes = _stated(device, "warp_size")
    warps = -(-known["threads_per_block"] // lanes)
    if known["threads_per_block"] > MAX_THREADS:
        return f"{known['threads_per_block']} threads a block, the limit is {MAX_THREADS}"
    if known["shared_bytes"] > limit:
        return f"{known['shared_bytes']} B of shared memory a block, {device.name} has {limit}"
    if known.get("tensor_memory_columns", 0) > TENSOR_MEMORY_COLUMNS:
        return f"{known['tensor_memory_columns']} columns of tensor memory, the limit is {TENSOR_MEMORY_COLUMNS}"
    if warps > _warps_by_registers(known["registers"], device):
        file = _stated(device, "registers_per_unit")
        return f"{known['threads_per_block']} threads of {known['registers']} registers, {device.name} has {file}"
    return ""
