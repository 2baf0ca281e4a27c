"""The analytic floor of a problem on a device: what no kernel is expected to beat by much.

Latencies are learned and told relative to it (`serialize.reference_us`), so it must hold on devices nobody has
measured: everything in it is read off the problem and the data sheet. With P the sheet's rate for the dtype (flop/us),
W its bandwidth (byte/us) and U its number of units, the terms are, in microseconds:

    compute   flops / P                                                      roofline (Williams et al., CACM 2009)
    memory    bytes / W
    launch    2 on a GPU, 0 on a CPU
    power     flops / (564e3 * tdp_watts / process_nm)                       f32 matrix products on a GPU
    tile      min over tiles (m, n, e) and splits s of
              ceil(B ceil(M/m) ceil(N/n) s / U) * m n * flops / (B M N s) / (P/U) / e    matrix products on a GPU

The floor is their maximum.

Power: small cards cannot feed all their lanes at the nominal clock. 564 GFLOP/s nm/W is what a T4 (70 W, 12 nm) reaches
on large f32 matrix products. It was fitted on the T4 alone, for plain f32, so other dtypes and matrix units leave it
out. It predicts 10.2 TFLOP/s for an L4 (sheet 30.3, measured about 8.8) and 24.7 for an RTX 3090 (sheet 35.6; the best
of 17956 configs of a tuned kernel, 24.3).

Tile: a unit computes whole tiles, and the last wave of tiles fills only some units (tile and wave quantisation, in
NVIDIA's matrix multiplication guide); small tiles reuse less and reach a share e of the rate. K may be split over units
(split-K; stream-K: Osama et al., PPoPP 2023): without it the floor of deep products is up to ten times what libraries
take.

Work that stays in cache can be faster than this floor, and so can small products on a power-limited card before its
clock falls.

`estimate_us` is the same physics with a few constants for each class of operator (efficiencies, the launch as torch
pays it, how sharp the maximum is), fitted once; see `grey_box_us`. It is an absolute guess, where the floor is a
reference.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from costmodel.devices import peak_tflops
from costmodel.records import Device, Problem

GPU_LAUNCH_US = 2.0  # an empty kernel, back to back on one stream; a CPU call costs nothing of that order
GFLOPS_NM_PER_WATT = 564.0  # large f32 matrix products on a T4
# Rows and columns of an output tile, and the share of a unit's rate it can reach. The two thin ones stand for
# matrix-vector kernels, which pad less.
TILES = ((8, 64, 0.25), (64, 8, 0.25), (32, 32, 0.5), (64, 64, 0.75), (64, 128, 0.9), (128, 64, 0.9), (128, 128, 1.0))
MIN_SPLIT_DEPTH = 64  # the least part of K that a split leaves to one tile
TILE_CHOICE = 8.0  # how surely a library picks its fastest tile: the exponent of the soft minimum of `grey_box_us`
_CONSTANTS = Path(__file__).with_name("floor_constants.json")

_MATMUL = frozenset(("M", "N", "K"))
_ROWS = frozenset(("B", "H"))
_NORMS = frozenset(("ln", "layer_norm", "rms_norm"))


def floor_us(problem: Problem, device: Device) -> float:
    """The analytic floor in microseconds: the largest of the times in `terms`. See the module for the equations.

    The rate is `devices.peak_tflops`: the sheet's fastest for the dtype on whichever unit ("bf16/tensor" for bf16;
    plain f32 never runs as tf32). A term that needs a number the sheet does not state (0) is left out.
    """
    return max(value for name, value in terms(problem, device).items() if name.endswith("_us"))


def has_floor(problem: Problem) -> bool:
    """Whether the problem states what a floor is made of; records that others published often do not."""
    return problem.flops > 0 or problem.bytes > 0


def op_class(problem: Problem) -> str:
    """What the problem's parameters make it: "bmm", "linear", "softmax", "ln", "elementwise", or "" for anything else.

    A matrix product states M, N and K (B is optional); an operation on rows states B (rows) and H (their length).
    """
    names = {name for name, _ in problem.params}
    if names >= _MATMUL:
        return "linear" if problem.op == "linear" else "bmm"
    if names != _ROWS:
        return ""
    if problem.op in _NORMS:
        return "ln"
    return "softmax" if problem.op == "softmax" else "elementwise"


def terms(problem: Problem, device: Device) -> dict[str, float]:
    """The parts of the floor by name: times end in `_us`. What does not apply, or is not on the sheet, is not there.

    `rows_over_l2` is a ratio and no part of the maximum: bytes of the rows that are in flight at once, over L2. Above 1
    a kernel that reads each row more than once fetches it from memory again (up to twice the time).
    """
    peak = peak_tflops(device, problem.dtype)
    found = {"launch_us": 0.0 if device.kind == "cpu" else GPU_LAUNCH_US}
    if peak:
        found["compute_us"] = problem.flops / (peak * 1e6)
    if device.peak_gb_per_s:
        found["memory_us"] = problem.bytes / (device.peak_gb_per_s * 1e3)
    if device.kind != "gpu":
        return found
    kind = op_class(problem)
    details = dict(device.details)
    if kind in ("bmm", "linear"):
        process_nm = float(details.get("process_nm", 0))
        if _is_plain_f32(problem, device) and process_nm and device.tdp_watts:
            found["power_us"] = problem.flops / (GFLOPS_NM_PER_WATT * 1e3 * device.tdp_watts / process_nm)
        if peak and device.num_units:
            found["tile_us"] = found["compute_us"] * min(tile_waste(problem, device))
    elif kind in ("softmax", "ln"):
        threads = float(details.get("max_threads_per_unit", 0))
        if threads and device.num_units and device.l2_bytes:
            found["rows_over_l2"] = _rows_in_flight_bytes(problem, device.num_units * threads) / device.l2_bytes
    return found


def _is_plain_f32(problem: Problem, device: Device) -> bool:
    """Whether it is f32 on the ordinary lanes: matrix units spend less energy on an operation."""
    return problem.dtype == "f32" and not any(name.startswith("f32/") for name, _ in device.peak_tflops)


def tile_waste(problem: Problem, device: Device) -> list[float]:
    """For each of TILES the time of a matrix product over its compute time (1: no waste), at the best split of K."""
    batch, rows, columns, depth = _sizes(problem)
    splits = [1]
    while depth >= 2 * splits[-1] * MIN_SPLIT_DEPTH:
        splits.append(2 * splits[-1])
    waste = []
    for tile_rows, tile_columns, share in TILES:
        tiles = batch * math.ceil(rows / tile_rows) * math.ceil(columns / tile_columns)
        waves = min(math.ceil(tiles * split / device.num_units) / split for split in splits)
        waste.append(waves * device.num_units * tile_rows * tile_columns / (batch * rows * columns) / share)
    return waste


def _rows_in_flight_bytes(problem: Problem, threads: float) -> float:
    """Bytes of the rows that `threads` hold at once, one row a block, as torch's kernels launch them.

    Layer norm takes blocks of 128 threads. Softmax keeps rows up to 1024 in registers, so it reads none again: 0.
    Longer rows take the least power of two from an eighth of their length on, at most 512 threads.
    """
    length = int(dict(problem.params)["H"])
    block = 128
    if op_class(problem) == "softmax":
        if length <= 1024:
            return 0.0
        block = min(512, 1 << math.ceil(math.log2(length // 8)))
    return threads / block * length * element_bytes(problem.dtype)


def element_bytes(dtype: str) -> float:
    """ "bf16" -> 2.0; 4 where the name states no width."""
    stated = re.search(r"\d+", dtype)
    return int(stated.group()) / 8 if stated else 4.0


# ---- the grey-box estimate ----


def estimate_us(problem: Problem, device: Device) -> float:
    """The latency that a library's kernel is expected to have, in microseconds; not a floor.

    `grey_box_us` with the constants of floor_constants.json, which says how and on which devices they were fitted (f32
    operators of torch on NVIDIA GPUs). Where no constants apply (another class of operator, a CPU, a sheet that lacks a
    number) it is `floor_us`.
    """
    kind = op_class(problem)
    if kind not in constants() or not has_estimate(problem, device):
        return floor_us(problem, device)
    return float(grey_box_us(kind, parts([problem], device), constants()[kind])[0])


def has_estimate(problem: Problem, device: Device) -> bool:
    """Whether `estimate_us` knows more of the problem than its floor."""
    wanted = {"bmm": "tile_us", "linear": "tile_us", "softmax": "rows_over_l2", "ln": "rows_over_l2"}
    kind, found = op_class(problem), terms(problem, device)
    is_stated = problem.bytes > 0 and (problem.flops > 0 or kind not in ("bmm", "linear"))
    return (
        device.kind == "gpu" and bool(kind) and is_stated and {"memory_us", wanted.get(kind, "memory_us")} <= set(found)
    )


@functools.cache
def constants() -> dict[str, dict[str, float]]:
    """Fitted constants by class of operator."""
    return json.loads(_CONSTANTS.read_text())["constants"]


def parts(problems: Sequence[Problem], device: Device) -> dict[str, np.ndarray]:
    """What `grey_box_us` needs of n problems of one class: arrays (n,); tiles of matrix products (n, len(TILES))."""
    rows = []
    for problem in problems:
        found = terms(problem, device)
        row: dict[str, float | list[int]] = {
            "power_us": found.get("power_us", 0.0), "memory_us": found["memory_us"],
            "rows_over_l2": found.get("rows_over_l2", 0.0),
        }  # fmt: skip
        if "tile_us" in found:
            batch, rows_out, columns, depth = _sizes(problem)
            cells = batch * rows_out * columns
            output_us = cells * element_bytes(problem.dtype) / (device.peak_gb_per_s * 1e3)
            row |= {
                "tiles": [batch * math.ceil(rows_out / m) * math.ceil(columns / n) for m, n, _ in TILES],
                "depth": depth, "units": device.num_units, "output_us": output_us,
                "cell_us": found["compute_us"] * device.num_units / (cells * depth),
            }  # fmt: skip
        rows.append(row)
    return {name: np.array([row[name] for row in rows], float) for name in (rows[0] if rows else {})}


def grey_box_us(kind: str, part: Mapping[str, np.ndarray], constant: Mapping[str, float]) -> np.ndarray:
    """(n,) latencies in microseconds from `parts` and the constants of a class of operator, c below.

    Matrix products, with the terms of the module and each tile's waves at its best split of K:

        c.launch + (power^p + (c.input input + c.output output)^p + tile^p)^(1/p),  p = c.norm
        tile = soft minimum over tiles of waves m n (K/s + c.depth) cell_us c.tile_MxN + [s > 1] c.split (s + 1) output

    `c.depth` is what filling the pipeline and writing the result cost, in steps of K. Everything else, memory-bound:

        c.launch + c.memory memory (1 + c.reread sigmoid(c.slope (log2(rows_over_l2) - c.middle)))

    where rows are read more than once (rows_over_l2 > 0), else c.launch + c.memory_once memory.
    """
    if kind not in ("bmm", "linear"):
        rows = part["rows_over_l2"]
        if "reread" not in constant:
            return constant["launch"] + constant["memory_once"] * part["memory_us"]
        x = constant["slope"] * (np.log2(np.maximum(rows, 1e-9)) - constant["middle"])
        again = constant["memory"] * (1 + constant["reread"] / (1 + np.exp(np.clip(-x, -50, 50))))
        return constant["launch"] + part["memory_us"] * np.where(rows > 0, again, constant["memory_once"])
    tile = (_tile_times(part, constant) ** -TILE_CHOICE).sum(axis=1) ** (-1 / TILE_CHOICE)
    memory = constant["input"] * (part["memory_us"] - part["output_us"]) + constant["output"] * part["output_us"]
    together = sum(
        np.maximum(time, 1e-9) ** constant["norm"] for time in (constant["power"] * part["power_us"], memory, tile)
    )
    return constant["launch"] + together ** (1 / constant["norm"])


def _tile_times(part: Mapping[str, np.ndarray], constant: Mapping[str, float]) -> np.ndarray:
    """(n, len(TILES)) microseconds of a matrix product made of one tile each, at its best split."""
    area = np.array([m * n * constant[f"tile_{m}x{n}"] for m, n, _ in TILES])
    depth, units, output = (part[name][:, None] for name in ("depth", "units", "output_us"))
    step = area * part["cell_us"][:, None]
    best = np.ceil(part["tiles"] / units) * step * (depth + constant["depth"])
    split = 2
    while (depth >= split * MIN_SPLIT_DEPTH).any():
        time = np.ceil(part["tiles"] * split / units) * step * (np.ceil(depth / split) + constant["depth"])
        time = time + constant["split"] * (split + 1) * output
        best = np.where(depth >= split * MIN_SPLIT_DEPTH, np.minimum(best, time), best)
        split *= 2
    return best


def _sizes(problem: Problem) -> tuple[int, int, int, int]:
    """B, M, N and K of a matrix product; B is 1 where it is not stated."""
    sizes = dict(problem.params)
    batch, rows, columns, depth = (max(int(sizes.get(name, 1)), 1) for name in "BMNK")
    return batch, rows, columns, depth
