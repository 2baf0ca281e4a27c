"""What may be said of a change without believing a model, where the model does not believe itself: what the compiler
makes of both texts for a GPU, that need not be here; else the floor below which the problem cannot run. Nothing is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from costmodel.floor import floor_us, has_floor
from costmodel.measure.gpu_compiling import GpuBuild, GpuCompilePool, compiles_for
from costmodel.records import Device, UserError, Variant

# What a person compares, by the names that a build's facts have; spills are loads and stores that miss the registers.
COMPARED = {
    "registers": ("registers",),
    "spills": ("local_loads", "local_stores"),
    "shared memory": ("shared_bytes",),
    "instructions": ("instructions",),
}


@dataclass(frozen=True, slots=True)
class Known:
    """`broken`: the new text cannot run on the device and the old one can. `told`: one line for people."""

    broken: bool
    told: str


def known(
    pairs: Sequence[tuple[Variant, Variant]], paths: tuple[Path, Path], device: Device, *, timeout_s: float = 120.0
) -> list[Known]:
    """One for each (base, head), same order. paths: the kernel's NAME.py on either side, which a compiler executes."""
    if not pairs:
        return []
    if not compiles_for(device, pairs[0][1].kernel.language):
        return [Known(False, _floor(after, device)) for _, after in pairs]
    wanted = [
        (path, variant.problem, variant.config, device.arch)
        for pair in pairs
        for path, variant in zip(paths, pair, strict=True)
    ]
    try:
        with GpuCompilePool(timeout_s=timeout_s) as pool:
            builds = pool.compile(wanted)
    except UserError as error:
        return [Known(False, f"nor can it be compiled here: {error}")] * len(pairs)
    return [compared(base, head, device) for base, head in zip(builds[::2], builds[1::2], strict=True)]


def compared(base: GpuBuild, head: GpuBuild, device: Device) -> Known:
    """Two builds of one kernel beside each other."""
    before, after = (build.error or build.infeasible(device) for build in (base, head))
    if after and not before and head.status != "timeout":
        return Known(True, f"it no longer {'fits' if head.status == 'compiled' else 'compiles'}: {after}")
    if before or after:
        return Known(False, f"base: {before or 'compiles'}; head: {after or 'compiles'}")
    changes = []
    for name, parts in COMPARED.items():
        old, new = (sum(dict(build.facts).get(part, 0.0) for part in parts) for build in (base, head))
        if old != new:
            changes.append(f"{name} {old:.0f} -> {new:.0f}")
    return Known(False, f"compiled: {', '.join(changes) or 'registers, spills, memory and instructions as before'}")


def _floor(after: Variant, device: Device) -> str:
    if not has_floor(after.problem):
        return "the problem states neither flops nor bytes, so not even its floor is known"
    return f"no text of it can take less than {floor_us(after.problem, device):.3g} us"
