"""Splits of measurements that cannot leak: by operation, problem, source form or device."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from costmodel.dataset.rows import kernel_identity
from costmodel.records import Kernel, Measurement, UserError
from costmodel.serialize import canonical_source

By = Literal["kernel", "problem", "form", "device"]


@dataclass(frozen=True, slots=True)
class Split:
    """Training and test rows, and what kept them apart."""

    by: By
    train: tuple[Measurement, ...]
    test: tuple[Measurement, ...]


def family(kernel: Kernel) -> str:
    """The operation that a kernel is a form of: the name before "__"."""
    return kernel.name.partition("__")[0]


def split(
    measurements: Iterable[Measurement],
    *,
    by: By,
    held_out: Sequence[str] | None = None,
    fraction: float | None = None,
    seed: int = 0,
) -> Split:
    """Hold out by name (`held_out`), or a share of what there is (`fraction`, at least one, chosen by `seed`).

    kernel    operations with all their forms, named by family ("matmul")
    problem   sizes of an operation for all its forms, named "OP:SIZES" ("matmul:M=512,N=512,K=512");
              `fraction` is of each operation's problems, and one of them always stays in training
    form      source forms, named by kernel ("matmul__packed"); `fraction` is of the forms of operations with several,
              and one form of each operation always stays in training
    device    devices, by name

    Kernels whose canonical text is equal are never on two sides of a kernel or a form split: naming one holds out all.
    """
    rows = list(measurements)
    held = chosen(rows, by=by, held_out=held_out, fraction=fraction, seed=seed)
    result = Split(by, tuple(row for row in rows if not held(row)), tuple(row for row in rows if held(row)))
    assert_no_leak(result)
    return result


def chosen(
    measurements: Iterable[Measurement],
    *,
    by: By,
    held_out: Sequence[str] | None = None,
    fraction: float | None = None,
    seed: int = 0,
) -> Callable[[Measurement], bool]:
    """What `split` holds out, as a question to a row: for rows that do not fit in memory and are gone through twice.

    Kept are one row of each name and kernel, not all.
    """
    if by not in _KEYS:
        raise UserError(f"got by={by!r}, expected one of {', '.join(_KEYS)}")
    if (held_out is None) == (fraction is None):
        raise UserError("got both or neither of held_out and fraction, expected one of them")
    key = _KEYS[by]
    rows = list({(key(row), row.variant.kernel, row.variant.problem.op): row for row in measurements}.values())
    bound = _bound(rows, by)
    names = _named(bound, by, held_out) if held_out is not None else _drawn(rows, bound, by, fraction or 0.0, seed)
    test = {bound[name] for name in names}
    return lambda row: bound[key(row)] in test


def assert_no_leak(parts: Split) -> None:
    """AssertionError, naming what is shared, if anything that `parts.by` must keep apart is on both sides."""
    checks: dict[str, Callable[[Measurement], str]] = {parts.by: _KEYS[parts.by]}
    if parts.by in ("kernel", "form"):
        checks |= {"source": _text, "source identity": lambda row: kernel_identity(row.variant.kernel)}
    if parts.by == "device":
        checks["device identity"] = lambda row: row.device.identity
    for what, key in checks.items():
        shared = {key(row) for row in parts.train} & {key(row) for row in parts.test}
        if shared:
            raise AssertionError(f"{what} on both sides of a split by {parts.by}: {', '.join(sorted(shared)[:3])}")


def _problem_name(row: Measurement) -> str:
    return f"{row.variant.problem.op}:{row.variant.problem}"


def _text(row: Measurement) -> str:
    return canonical_source(row.variant.kernel)


_KEYS: dict[str, Callable[[Measurement], str]] = {
    "kernel": lambda row: family(row.variant.kernel),
    "problem": _problem_name,
    "form": lambda row: row.variant.kernel.name,
    "device": lambda row: row.device.name,
}


def _bound(rows: Sequence[Measurement], by: By) -> dict[str, str]:
    """Name -> representative of the names that must stay together (they share a canonical text), by union-find."""
    parent = {_KEYS[by](row): _KEYS[by](row) for row in rows}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = name = parent[parent[name]]
        return name

    if by in ("kernel", "form"):
        first: dict[str, str] = {}
        for name, text in {(_KEYS[by](row), _text(row)): None for row in rows}:
            parent[root(name)] = root(first.setdefault(text, name))
    return {name: root(name) for name in parent}


def _named(bound: Mapping[str, str], by: By, held_out: Sequence[str]) -> list[str]:
    for name in held_out:
        if name not in bound:
            known = sorted(bound)
            more = f" and {len(known) - 12} more" if len(known) > 12 else ""
            raise UserError(f"got {by} {name!r} to hold out, expected one of: {', '.join(known[:12])}{more}")
    return list(held_out)


def _drawn(rows: Sequence[Measurement], bound: Mapping[str, str], by: By, fraction: float, seed: int) -> list[str]:
    if not 0.0 < fraction < 1.0:
        raise UserError(f"got fraction={fraction}, expected 0 < fraction < 1")
    chance = random.Random(seed)
    if by in ("kernel", "device"):
        units = sorted(set(bound.values()))
        if len(units) < 2:
            raise UserError(f"got one {by} ({', '.join(units)}), expected at least two to split by {by}")
        return chance.sample(units, min(len(units) - 1, max(1, round(fraction * len(units)))))
    pools: dict[str, set[str]] = defaultdict(set)
    owners: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        operation = row.variant.problem.op if by == "problem" else family(row.variant.kernel)
        pools[operation].add(bound[_KEYS[by](row)])
        owners[bound[_KEYS[by](row)]].add(operation)
    drawn: list[str] = []
    for _, pool in sorted(pools.items()):
        own = sorted(unit for unit in pool if len(owners[unit]) == 1)  # another operation may have no other
        drawn += chance.sample(own, min(len(own), len(pool) - 1, max(1, round(fraction * len(pool)))))
    if not drawn:
        raise UserError(f"got no operation with two {by}s, expected one to split by {by}; hold out by name")
    return drawn
