"""Hand-made numbers for what is not a text model: the residual of a search and the boosted-tree opponent.

`config_features` describes the configs of one search among themselves. `variant_features` describes any variant of any
kernel, so that trees can learn across kernels and devices: parameters by name, what they make of a GPU's launch,
problem sizes, arithmetic, the device's numbers, and counts of what a programmer would look for in the source.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from costmodel.floor import floor_us, has_floor
from costmodel.records import Device, Kernel, Problem, Scalar, Variant


def _number(value: Scalar) -> float:
    """log2 for positive sizes (a tile of 64 is one step from 32), the value itself otherwise."""
    if isinstance(value, str):
        return math.nan
    return math.log2(1 + value) if value >= 0 else float(value)


def config_features(variants: Sequence[Variant]) -> np.ndarray:
    """(candidates, features), standardised: numbers as log2(1 + x), words and source texts one-hot.

    A column that never changes is left out; with nothing that changes one zero column is returned.
    """
    rows = [variant.config.as_dict() for variant in variants]
    columns: list[np.ndarray] = []
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        if any(value is None or isinstance(value, str) for value in values):
            columns += [np.array([value == word for value in values], float) for word in sorted(set(map(str, values)))]
        else:
            columns.append(np.array([_number(value) for value in values if value is not None]))
    identities = {
        id(variant.kernel): variant.kernel.identity for variant in {id(v.kernel): v for v in variants}.values()
    }
    kernels = np.array([identities[id(variant.kernel)] for variant in variants])
    columns += [(kernels == one).astype(float) for one in sorted(set(identities.values()))]
    varying = [column for column in columns if column.std() > 0]
    if not varying:
        return np.zeros((len(variants), 1))
    table = np.stack(varying, axis=1)
    return (table - table.mean(axis=0)) / table.std(axis=0)


def schema_features(variants: Sequence[Variant]) -> np.ndarray:
    """(variants, features) of variants of one kernel with a schema, in the scale of the schema's values.

    Unlike those of `config_features`, the numbers of one variant do not depend on what stands beside it.
    """
    columns: list[list[float]] = []
    rows = [variant.config.as_dict() for variant in variants]
    for name, values in variants[0].kernel.schema:
        if any(isinstance(value, str) for value in values):
            columns += [[float(row[name] == value) for row in rows] for value in values]
        else:
            known = np.array([_number(value) for value in values])
            scale = known.std() or 1.0
            columns.append([(_number(row[name]) - known.mean()) / scale for row in rows])
    return np.array(columns).T


_PATTERNS = {
    "loops": r"\bfor\s*\(",
    "branches": r"\bif\s*\(|\?",
    "simd_pragmas": r"omp\s+simd",
    "parallel_pragmas": r"omp\s+parallel",
    "barriers": r"omp\s+barrier|__syncthreads",
    "unroll_pragmas": r"\bunroll\b",
    "vector_types": r"vector_size",
    "restricts": r"__restrict",
    "exponentials": r"exp[fl2]?\s*\(|tanh|log[f2]?\s*\(",
    "roots": r"sqrt",
    "divisions": r"/",
    "multiplications": r"\*",
    "additions": r"\+",
    "allocations": r"malloc|thread_local",
    "subscripts": r"\[",
}


@lru_cache(maxsize=4096)
def source_counts(kernel: Kernel) -> tuple[tuple[str, float], ...]:
    """How often the source contains what decides its speed, and how deep its braces nest."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", kernel.source or "", flags=re.DOTALL)
    counts = {f"src_{name}": float(len(re.findall(pattern, text))) for name, pattern in _PATTERNS.items()}
    depth = deepest = 0
    for char in text:
        depth += (char == "{") - (char == "}")
        deepest = max(deepest, depth)
    counts["src_depth"] = float(deepest)
    counts["src_tokens"] = math.log2(1 + len(re.findall(r"\w+|[^\s\w]", text)))
    return tuple(counts.items())


def variant_features(variants: Sequence[Variant], device: Device) -> pd.DataFrame:
    """One row a variant, one column a feature, NaN where a feature does not apply (trees route those by themselves)."""
    groups: dict[tuple[Kernel, Problem, tuple[str, ...]], list[int]] = {}
    for i, variant in enumerate(variants):
        names = tuple(name for name, _ in variant.config.params)
        groups.setdefault((variant.kernel, variant.problem, names), []).append(i)
    sheet = _device_features(device)
    frames = []
    for (kernel, problem, names), rows in groups.items():
        values = [[_plain(value) for _, value in variants[i].config.params] for i in rows]
        config = dict(zip(names, np.array(values, float).reshape(len(rows), len(names)).T, strict=True))
        same = {**sheet, **_problem_features(problem, device), **dict(source_counts(kernel))}
        columns = {f"config_{name}": _log2(column) for name, column in config.items()}
        columns |= launch_features(config, problem, device) if device.kind == "gpu" else {}
        frames.append(pd.DataFrame({**same, **columns}, index=rows))
    return pd.concat(frames).sort_index() if frames else pd.DataFrame()


def _plain(value: Scalar) -> float:
    return math.nan if isinstance(value, str) else float(value)


def _log2(column: np.ndarray) -> np.ndarray:
    return np.where(column >= 0, np.log2(1 + np.maximum(column, 0)), column)


def _problem_features(problem: Problem, device: Device) -> dict[str, float]:
    sizes = {f"size_{name}": _number(value) for name, value in problem.params}
    if not has_floor(problem):
        return sizes
    return {
        **sizes,
        "log2_flops": math.log2(1 + problem.flops),
        "log2_bytes": math.log2(1 + problem.bytes),
        "log2_intensity": math.log2((1 + problem.flops) / (1 + problem.bytes)),
        "log2_floor_us": math.log2(max(floor_us(problem, device), 1e-6)),
        "log2_bytes_over_l2": math.log2((1 + problem.bytes) / max(device.l2_bytes, 1)),
    }


def _device_features(device: Device) -> dict[str, float]:
    """Numbers of the sheet, as trees compare devices; what the sheet does not state (0) is NaN."""
    details = dict(device.details)
    stated = {
        "units": device.num_units, "clock_mhz": device.clock_mhz, "tflops": dict(device.peak_tflops).get("f32", 0.0),
        "gb_per_s": device.peak_gb_per_s, "l2_bytes": device.l2_bytes, "tdp_watts": device.tdp_watts,
        **{name: _plain(details.get(name, 0)) for name in ("max_threads_per_unit", "shared_bytes_per_unit",
           "registers_per_unit", "lanes_per_unit", "warp_size")},
    }  # fmt: skip
    told = {f"device_{name}": math.log2(value) if value > 0 else math.nan for name, value in stated.items()}
    return {**told, "device_is_amd": float(device.vendor == "AMD")}


# --------------------------------------------------------------------------------------------- what a launch looks like

_MAX_BLOCKS_PER_UNIT = 32
_Columns = dict[str, np.ndarray]


def launch_features(config: Mapping[str, np.ndarray], problem: Problem, device: Device) -> _Columns:
    """What a GPU config means, as far as its names tell: threads, elements, shared memory, occupancy, waves.

    config: parameter name -> (n,) values. Read are the names of Kernel Tuner's kernels (block_size_x, tile_size_x),
    CLBlast's matrix product (MWG, MDIMC, ...) and Triton's (BLOCK_M, num_warps). Features are log2 but for the shares;
    with no name that is known, none.
    """
    got = {name.lower(): np.maximum(column, 0) for name, column in config.items()}
    threads, width, height = _block(got, device)
    if threads is None or width is None or height is None:
        return {}
    details = dict(device.details)
    warp = float(details.get("warp_size", 32)) or 32.0
    limit = float(details.get("max_threads_per_unit", 0)) or 2048.0
    lanes = np.ceil(threads / warp) * warp
    shared = _shared_bytes(got, width, height)
    room = float(details.get("shared_bytes_per_unit", 0)) or 65536.0
    by_shared = room / np.maximum(shared, 1.0) if shared is not None else np.full(len(threads), math.inf)
    resident = np.minimum(np.minimum(np.floor(limit / lanes), _MAX_BLOCKS_PER_UNIT), np.floor(by_shared))
    blocks = _blocks(problem, width, height)
    columns = {
        "launch_threads": np.log2(threads), "launch_width": np.log2(width), "launch_height": np.log2(height),
        "launch_elements": np.log2(width * height), "launch_per_thread": np.log2(width * height / threads),
        "launch_aspect": np.log2(width / height), "launch_warp_share": threads / lanes,
        "launch_resident": resident, "launch_occupancy": resident * lanes / limit,
    }  # fmt: skip
    if shared is not None:
        columns["launch_shared_bytes"] = np.log2(1 + shared)
    if blocks is not None and device.num_units:
        waves = blocks / (device.num_units * np.maximum(resident, 1))
        columns |= {
            "launch_blocks": np.log2(blocks),
            "launch_waves": np.log2(waves),
            "launch_tail": np.ceil(waves) / waves,
        }
    return columns


def _product(got: _Columns, *names: str) -> np.ndarray | None:
    """The product of those of the names that are there (at least 1 each); None where none is."""
    found = [np.maximum(got[name], 1.0) for name in names if name in got]
    return np.prod(found, axis=0) if found else None


def _block(got: _Columns, device: Device) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Threads of a block, and the width and height of what a block computes."""
    if {"mwg", "nwg", "mdimc", "ndimc"} <= set(got):
        return _product(got, "mdimc", "ndimc"), _product(got, "mwg"), _product(got, "nwg")
    one = np.ones(len(next(iter(got.values())))) if got else None
    if "num_warps" in got:
        width = _product(got, "block_m", "block_size_m", "block_size", "block", "xblock")
        height = _product(got, "block_n", "block_size_n", "yblock", "rblock")
        return got["num_warps"] * 32.0, width, one if height is None else height
    threads = _product(got, "block_size_x", "block_size_y", "block_size_z")
    width = _product(got, "block_size_x", "tile_size_x", "tile_size")
    height = _product(got, "block_size_y", "tile_size_y")
    return threads, width, one if height is None else height


def _shared_bytes(got: _Columns, width: np.ndarray, height: np.ndarray) -> np.ndarray | None:
    """Bytes of shared memory of a block, f32 (f16 for Triton's tiles); None where the names do not tell."""
    if {"filter_width", "filter_height"} <= set(got):  # a convolution keeps its tile and the halo around it
        tile = (width + got["filter_width"] - 1 + got.get("use_padding", 0)) * (height + got["filter_height"] - 1)
        return 4.0 * tile * got.get("use_shmem", np.ones(len(width)))
    if {"kwg", "sa", "sb"} <= set(got):
        return 4.0 * got["kwg"] * (got["sa"] * width + got["sb"] * height)
    depth = _product(got, "block_k", "block_size_k")
    if depth is not None and "num_warps" in got:
        return 2.0 * depth * (width + height) * np.maximum(got.get("num_stages", np.ones(len(width))), 1.0)
    return None


def _blocks(problem: Problem, width: np.ndarray, height: np.ndarray) -> np.ndarray | None:
    """How many blocks are launched: over the first two sizes, or over the only one."""
    sizes = [float(value) for _, value in problem.params if not isinstance(value, str) and value > 0]
    if not sizes:
        return None
    if len(sizes) == 1:
        return np.ceil(sizes[0] / (width * height))
    return np.ceil(sizes[0] / width) * np.ceil(sizes[1] / height)
