"""Tables of operators: one row per operator, shape and device, as NeuSight publishes them (Lee et al., ASPLOS 2025)."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping

from costmodel.published.entries import MS, Refused, Source, rows, time_us
from costmodel.records import Config, Device, Kernel, Measurement, Problem, TensorSpec, Timing, Variant

# Arithmetic operations per element, a transcendental counting as one. "addu" is "add" with a number for one operand.
_FLOPS = {"add": 1, "sub": 1, "mul": 1, "div": 1, "pow": 1, "relu": 1, "tanh": 1, "gelu": 5, "softmax": 5, "ln": 8}
_BINARY = ("add", "sub", "mul", "div", "pow")


def read_neusight(source: Source) -> Iterator[Measurement]:
    """One row per operator and shape: forward passes of torch in f32. The kernel that ran is left out: it tells."""
    timing = Timing("warm", 0.0, 1, 0.0)
    found: dict[str, Device] = {}

    def make(entry: dict[str, str]) -> Measurement:
        op, stated = entry["OPName"], entry.get("Device", "")
        if stated not in found:
            found[stated] = source.device(stated)
        return Measurement(
            Variant(_operator(op), operator_problem(op, entry), Config(())), found[stated], timing,
            _versions(*(entry.get(f"{library} Version", "") for library in ("Torch", "CUDNN", "CUDA"))),
            "ok", (time_us(entry["Latency"], MS),),
        )  # fmt: skip

    return rows(source, source.table(), make)


@functools.cache
def _operator(op: str) -> Kernel:
    return Kernel(op, "operator", None, (), "torch")


@functools.lru_cache(maxsize=256)
def _versions(torch: str, cudnn: str, cuda: str) -> tuple[tuple[str, str], ...]:
    stated = (("torch", torch.removeprefix("p")), ("cudnn", cudnn), ("cuda", cuda.removeprefix("cu")))
    return tuple(pair for pair in stated if pair[1])


def operator_problem(op: str, sizes: Mapping[str, str]) -> Problem:
    """The problem of a row: B, M, N, K of a product of matrices, or B, H of an operation on B rows of H elements.

    bmm: (B, M, K) @ (B, K, N); linear: (B, M, K) @ (K, N). Bytes count each operand and the result once.
    """
    named = {name: int(sizes[name]) for name in ("BMNK" if sizes.get("K") else "BH")}
    if min(named.values()) < 1:
        raise Refused("sizes are not positive")
    if "K" in named:
        b, m, n, k = named.values()
        shapes: tuple[tuple[int, ...], ...] = ((b, m, k), (k, n) if op == "linear" else (b, k, n))
        flops, moved = 2 * b * m * n * k, sum(map(math.prod, shapes)) + b * m * n
    else:
        b, h = named.values()
        base = op if op in _FLOPS else op.removesuffix("u")
        shapes = ((b, h),) * (2 if op in _BINARY else 1)
        flops = _FLOPS.get(base, 0) * b * h
        moved = (len(shapes) + 1) * b * h if base in _FLOPS else 0  # of an unknown operation no floor is known
    inputs = tuple(TensorSpec(shape, "f32") for shape in shapes)
    return Problem(op, inputs, tuple(named.items()), flops, 4 * moved)
