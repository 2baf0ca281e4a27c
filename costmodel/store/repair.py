"""Saving what can be read of a damaged store file into a new one.

Rows are taken from the pages themselves (`pages`), so a file may be cut off, have flipped bits or lost its first page.
What is taken is known to be whole: a row is kept only if its identity and content are what their hashes say. No hash
covers counters, and in files of schema 1 a kernel's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice, product
from pathlib import Path
from typing import Any

from costmodel import dataset
from costmodel.records import Kernel, Measurement, UserError, digest
from costmodel.sittings import identity
from costmodel.store.pages import Pages, opened
from costmodel.store.schema import NOUNS
from costmodel.store.store import Store, content

_MOST_GUESSES = 1 << 20  # pairs of a problem and a device that are tried for a lost space
_BAD = (KeyError, TypeError, ValueError, OverflowError, AttributeError, UserError)


@dataclass(frozen=True, slots=True)
class Repair:
    """saved: rows in the new store. lost: rows that are missing there, counted by the gaps in their numbers, so that
    those after the last one saved are not counted. unsound: rows found that are not what their hashes say, or whose
    kernel, problem, device or method is gone. pages: those in the file; claimed: how many its header says there were.
    """

    saved: int
    lost: int
    unsound: int
    pages: int
    claimed: int


def repair(path: Path, out: Path) -> Repair:
    """Write every row of `path` that can be read to the new store `out`; `path` is not touched."""
    if not path.is_file():
        raise UserError(f"no file {path} to repair; give the path of a damaged store")
    if out.exists():
        raise UserError(f"got {out}, which exists already; give a new file name for what is saved")
    with opened(path) as pages:
        salvage = _Salvage(pages)
        rows = salvage.measurements()
        if not (first := list(islice(rows, 1))):
            raise UserError(f"got {path}, in which no row of a store can be read; restore a backup")
        with Store(out) as store:
            saved = store.add(chain(first, rows))
        lost = salvage.last - salvage.counts["found"]
        return Repair(saved, lost, salvage.counts["unsound"], pages.count, pages.claimed())


class _Salvage:
    """The nouns that can be read, by table and id, and the pages that hold measurements."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._texts: dict[str, str | None] = {}
        self._nouns: dict[str, dict[int, Any]] = {table: {} for table in NOUNS}
        self._leaves: list[tuple[int, int]] = []  # (least id of a measurement, page)
        self._seen = bytearray()  # a bit for each id
        self.counts: Counter[str] = Counter()
        self.last = 0
        for number in range(1, pages.count + 1):
            ids = [rowid for rowid, values in pages.records(number) if self._is_measurement(rowid, values)]
            if ids:
                self._leaves.append((min(ids), number))
        self._leaves.sort()
        self._nouns["kernels"] = dict(self._kernels())

    def measurements(self) -> Iterator[Measurement]:
        """About in the order of storing; some perhaps twice, which a store does not mind."""
        for _, number in self._leaves:
            for rowid, values in self._pages.records(number):
                if len(values) not in _ROWS:
                    continue
                found = self._measurement(values)
                if found is None:
                    self.counts["unsound"] += 1
                else:
                    self._mark(rowid)
                    yield found

    def _mark(self, rowid: int) -> None:
        """Count an id once."""
        place, bit = rowid >> 3, 1 << (rowid & 7)
        if place >= len(self._seen):
            self._seen.extend(bytes(place + 4096 - len(self._seen)))
        self.counts["found"] += not self._seen[place] & bit
        self._seen[place] |= bit
        self.last = max(self.last, rowid)

    def _is_measurement(self, rowid: int, values: tuple[Any, ...]) -> bool:
        """Keep a noun; say whether it is none of them but a measurement."""
        if len(values) == 2 and isinstance(values[0], str):
            self._texts[values[0]] = values[1]
        elif values and values[0] is None:
            for table, is_one in _SHAPES.get(len(values), ()):
                if _holds(is_one, values):
                    self._nouns[table][rowid] = values
            return len(values) in _ROWS
        return False

    def _kernels(self) -> Iterator[tuple[int, Kernel]]:
        for rowid, values in self._nouns["kernels"].items():
            text, name, language, schema, origin = values[-5:]
            try:
                kernel = Kernel(name, language, self._texts[text], dataset.schema_from_json(schema), origin)
                whole = kernel.identity == text
            except _BAD:
                continue
            if whole:
                yield rowid, kernel

    def _measurement(self, values: tuple[Any, ...]) -> Measurement | None:
        row = dict(zip(_ROWS[len(values)], values, strict=True))
        try:
            kernel, method = self._nouns["kernels"][row["kernel"]], self._nouns["methods"][row["method"]]
            fields = {name: row[name] for name in ("config", "status", "error", "counters", "collected_at")}
            fields |= {"toolchain": method[-2], "timing": method[-1], "samples_us": dataset.tuples(row["samples_us"])}
        except _BAD:
            return None
        for problem, device in self._places(row, dataset.kernel_identity(kernel)):
            try:
                found = dataset.measurement_from(kernel, problem=problem, device=device, **fields)
                whole = identity(found.variant, found.device, found.timing, found.toolchain) == row["identity"]
            except _BAD:
                continue
            if whole:
                if "space" in row:  # what was found by trying is known from now on
                    self._nouns["spaces"].setdefault(row["space"], (problem, device))
                return found if content(found) == row["content"] else None
        return None

    def _places(self, row: dict[str, Any], text: str) -> Iterable[tuple[str, str]]:
        """The sheets of problem and device. Where a space is lost, those to try: the identity says which are right."""
        problems, devices = self._nouns["problems"], self._nouns["devices"]
        if "space" not in row:
            ids = row["problem"], row["device"]
        elif (space := self._nouns["spaces"].get(row["space"])) is None:
            everything = product([p[-1] for p in problems.values()], [d[-1] for d in devices.values()])
            return islice(everything, _MOST_GUESSES)
        elif len(space) == 2:
            return [space]
        elif space[1] != text:
            return []
        else:
            ids = space[2:]
        return [(problems[ids[0]][-1], devices[ids[1]][-1])] if ids[0] in problems and ids[1] in devices else []


def _holds(is_one: Callable[[tuple[Any, ...]], bool], values: tuple[Any, ...]) -> bool:
    try:
        return is_one(values)
    except _BAD:
        return False


def _texts(values: tuple[Any, ...]) -> bool:
    return all(isinstance(value, str) for value in values)


def _is_problem(values: tuple[Any, ...]) -> bool:
    return dataset.problem_from_json(values[-1]).op == values[-2]


def _is_device(values: tuple[Any, ...]) -> bool:
    return dataset.device_from_json(values[-1]).identity == values[-3]


def _is_method(values: tuple[Any, ...]) -> bool:
    return bool(dataset.timing_from_json(values[-1])) and isinstance(dataset.tuples(values[-2]), tuple)


# What a row is, by how many columns it has: of schema 1 and of schema 2. The tables of 2 say so by a digest.
_SHAPES: dict[int, tuple[tuple[str, Callable[[tuple[Any, ...]], bool]], ...]] = {
    3: (("problems", _is_problem), ("methods", _is_method)),
    4: (
        ("devices", _is_device),
        ("problems", lambda v: v[1] == digest(v[3]) and _is_problem(v)),
        ("methods", lambda v: v[1] == digest(v[2], v[3])),
        ("spaces", lambda v: isinstance(v[1], str) and isinstance(v[2], int) and isinstance(v[3], int)),
    ),
    5: (("devices", lambda v: v[1] == digest(v[4]) and _is_device(v)),),
    6: (("kernels", lambda v: _texts(v[1:])),),
    7: (("kernels", lambda v: v[1] == digest(v[2], v[3], v[5], v[6])),),
}
_ROWS = {
    14: ("id", "identity", "sitting", "content", "kernel", "problem", "device", "method", "config", "status",
         "samples_us", "error", "counters", "collected_at"),
    12: ("id", "space", "identity", "content", "kernel", "method", "config", "status", "samples_us", "error",
         "counters", "collected_at"),
}  # fmt: skip
