"""Hand-made numbers for what is not a text model: the residual of a search and the boosted-tree opponent.

`config_features` describes the configs of one search among themselves. `variant_features` describes any variant of any
kernel, so that trees can learn across kernels: parameters by name, problem sizes, arithmetic, and counts of what a
programmer would look for in the source.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from costmodel.devices import floor_us
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
    kernels = [variant.kernel.identity for variant in variants]
    columns += [np.array([kernel == one for kernel in kernels], float) for one in sorted(set(kernels))]
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
    problems = {problem: _problem_features(problem, device) for problem in {v.problem for v in variants}}
    return pd.DataFrame(
        [
            {
                **problems[v.problem],
                **dict(source_counts(v.kernel)),
                **{f"config_{name}": _number(value) for name, value in v.config.params},
            }
            for v in variants
        ]
    )


def _problem_features(problem: Problem, device: Device) -> dict[str, float]:
    return {
        **{f"size_{name}": _number(value) for name, value in problem.params},
        "log2_flops": math.log2(1 + problem.flops),
        "log2_bytes": math.log2(1 + problem.bytes),
        "log2_intensity": math.log2((1 + problem.flops) / (1 + problem.bytes)),
        "log2_floor_us": math.log2(max(floor_us(problem, device), 1e-6)),
        "log2_bytes_over_l2": math.log2((1 + problem.bytes) / max(device.l2_bytes, 1)),
    }
