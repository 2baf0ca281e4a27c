"""Files of pre-tuned tables: JSON that a person can read, in canonical order, and checked when it is read.

A file may come from anybody. Whatever is wrong with it is one line that names the place, and nothing in it is run.

    {"format": "costmodel table", "version": 1, "tables": [{"kernel": {...}, "device": {...}, "entries": [...]}]}
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from costmodel.records import LANGUAGES, Config, Problem, Scalar, TensorSpec, Timing, UserError
from costmodel.table import LeftOut, TunedEntry, TunedTable

FORMAT, VERSION = "costmodel table", 1
LARGEST_BYTES = 64 << 20
LONGEST = 4096  # characters of a text
MOST = 100_000  # items of a list
WIDTH = 110

# ------------------------------------------------------------------------------------------------------------- writing


def write(tables: Sequence[TunedTable], path: str | Path) -> None:
    """Write tables to one file; equal tables give equal bytes."""
    document = {"format": FORMAT, "version": VERSION, "tables": [_table_document(table) for table in tables]}
    try:
        Path(path).write_text(_laid_out(document) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; give another file") from error


def _table_document(table: TunedTable) -> dict[str, Any]:
    return {
        "kernel": {
            "name": table.kernel, "language": table.language, "source": table.source_digest,
            "schema": {name: list(values) for name, values in table.schema}, "op": table.op,
        },
        "device": {"name": table.device, "identity": table.device_identity, "vendor": table.device_vendor},
        "timing": dataclasses.asdict(table.timing),
        "toolchain": dict(table.toolchain),
        "created": table.created,
        "costmodel": table.costmodel,
        "default": table.default.as_dict() if table.default else None,
        "left_out": dataclasses.asdict(table.left_out) if table.left_out else None,
        "candidates": [[value for _, value in config.params] for config in table.candidates],
        "entries": [_entry_document(entry) for entry in table.entries],
    }  # fmt: skip


def _entry_document(entry: TunedEntry) -> dict[str, Any]:
    problem = entry.problem
    return {
        "problem": dict(problem.params),
        "config": entry.config.as_dict(),
        "source": entry.source,
        "latency_us": entry.latency_us,
        "default_us": entry.default_us,
        "confidence": entry.confidence,
        "measured": entry.measured,
        "space_size": entry.space_size,
        "tied": entry.tied,
        "median_slowdown": entry.median_slowdown,
        "slowdowns": list(entry.slowdowns),
        "inputs": [[spec.dtype, *spec.shape] for spec in problem.inputs],
        "flops": problem.flops,
        "bytes": problem.bytes,
    }


def _laid_out(value: Any, indent: int = 0) -> str:
    """JSON in which whatever fits a line stands on one; lists of numbers always do."""
    compact = json.dumps(value, ensure_ascii=False, allow_nan=False)
    plain = isinstance(value, list) and not any(isinstance(item, list | dict) for item in value)
    if not isinstance(value, list | dict) or plain or len(compact) + indent <= WIDTH:
        return compact
    pad, end = " " * (indent + 1), " " * indent
    if isinstance(value, list):
        return "[\n" + ",\n".join(pad + _laid_out(item, indent + 1) for item in value) + f"\n{end}]"
    items = (f"{pad}{json.dumps(name)}: {_laid_out(item, indent + 1)}" for name, item in value.items())
    return "{\n" + ",\n".join(items) + f"\n{end}}}"


# ------------------------------------------------------------------------------------------------------------- reading


def read(path: str | Path) -> list[TunedTable]:
    """The tables of a file; UserError, in one line, if there is anything in it that no table would say."""
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise UserError(f"got {path} of {path.stat().st_size >> 20} MB, expected at most {LARGEST_BYTES >> 20}")
        document = json.loads(path.read_text(), parse_constant=_no_constant)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; `costmodel table build` makes one") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"got {path}, expected JSON of `costmodel table build`: {_line(error)}") from error
    root = _Place(document, str(path))
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        root.wrong(f'a table of "format": "{FORMAT}"')
    if document.get("version") != VERSION:
        raise UserError(
            f"got {path} of version {_short(document.get('version'))}, expected {VERSION}; update costmodel"
        )
    return [_table(place) for place in root["tables"].items()]


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:120]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


@dataclasses.dataclass(frozen=True)
class _Place:
    """A value and where it stands."""

    value: Any
    path: str

    def wrong(self, expected: str) -> NoReturn:
        raise UserError(f"got {self.path} = {_short(self.value)}, expected {expected}; build the table again")

    def __getitem__(self, name: str) -> _Place:
        if not isinstance(self.value, dict):
            self.wrong("an object")
        if name not in self.value:
            self.wrong(f"it to state {name!r}")
        return _Place(self.value[name], f"{self.path}.{name}")

    def items(self) -> Iterator[_Place]:
        if not isinstance(self.value, list) or len(self.value) > MOST:
            self.wrong(f"a list of at most {MOST}")
        return (_Place(item, f"{self.path}[{i}]") for i, item in enumerate(self.value))

    def named(self) -> Iterator[tuple[str, _Place]]:
        if not isinstance(self.value, dict) or len(self.value) > LONGEST:
            self.wrong("an object")
        return (
            (_Place(name, self.path).text(), _Place(item, f"{self.path}.{name}")) for name, item in self.value.items()
        )

    def text(self) -> str:
        if not isinstance(self.value, str) or len(self.value) > LONGEST:
            self.wrong(f"a text of at most {LONGEST} characters")
        if not self.value.isprintable():
            self.wrong("a text that can be printed")
        return str(self.value)

    def number(self, low: float, high: float = 1e30) -> float:
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:  # NaN is neither
            self.wrong(f"a number from {low:g} to {high:g}")
        return float(value)

    def whole(self, low: int = 0, high: int = 1 << 80) -> int:
        if isinstance(self.value, bool) or not isinstance(self.value, int) or not low <= self.value <= high:
            self.wrong(f"a whole number from {low} on")
        return int(self.value)

    def scalar(self) -> Scalar:
        if isinstance(self.value, str):
            return self.text()
        if isinstance(self.value, bool):
            return self.value
        if isinstance(self.value, int):
            return self.whole(-(1 << 80))
        self.number(-1e30)
        return float(self.value)


def _table(place: _Place) -> TunedTable:
    kernel, device = place["kernel"], place["device"]
    language = kernel["language"].text()
    if language not in LANGUAGES:
        kernel["language"].wrong(f"one of {', '.join(LANGUAGES)}")
    schema = tuple((name, tuple(x.scalar() for x in values.items())) for name, values in kernel["schema"].named())
    candidates = tuple(_values(values, schema) for values in place["candidates"].items())
    default = None if place["default"].value is None else _config(place["default"], schema)
    entries = tuple(_entry(entry, schema, candidates, kernel["op"].text()) for entry in place["entries"].items())
    stated = {tuple((name, isinstance(x, str | bool)) for name, x in entry.problem.params) for entry in entries}
    if len(stated) > 1 or len({entry.problem.params for entry in entries}) < len(entries):
        place["entries"].wrong("problems that state the same sizes, each problem once")
    return TunedTable(
        kernel["name"].text(), language, kernel["source"].text(), schema, kernel["op"].text(),
        device["name"].text(), device["identity"].text(), device["vendor"].text(), _timing(place["timing"]),
        tuple((name, value.text()) for name, value in place["toolchain"].named()), default, candidates,
        _left_out(place["left_out"]), entries, place["created"].text(), place["costmodel"].text(),
    )  # fmt: skip


def _config(place: _Place, schema: Any) -> Config:
    found = {name: value.scalar() for name, value in place.named()}
    if list(found) != [name for name, _ in schema]:
        place.wrong(f"the parameters {', '.join(name for name, _ in schema)}, in this order")
    for name, values in schema:
        if not _among(found[name], values):
            place[name].wrong(f"one of {', '.join(map(str, values))}")
    return Config(tuple(found.items()))


def _values(place: _Place, schema: Any) -> Config:
    values = [value.scalar() for value in place.items()]
    if len(values) != len(schema):
        place.wrong(f"{len(schema)} values")
    for value, (name, allowed) in zip(values, schema, strict=True):
        if not _among(value, allowed):
            place.wrong(f"{name} to be one of {', '.join(map(str, allowed))}")
    return Config(tuple((name, value) for (name, _), value in zip(schema, values, strict=True)))


def _among(value: Scalar, allowed: Sequence[Scalar]) -> bool:
    """Python takes True for 1; a table does not."""
    return any(value == one and type(value) is type(one) for one in allowed)


def _entry(place: _Place, schema: Any, candidates: Sequence[Config], op: str) -> TunedEntry:
    source = place["source"].value
    if source not in ("measured", "predicted"):
        place["source"].wrong("measured or predicted")
    slowdowns = tuple(None if x.value is None else x.number(1.0 - 1e-9, 1e12) for x in place["slowdowns"].items())
    if len(slowdowns) != (len(candidates) if source == "measured" else 0):
        place["slowdowns"].wrong(f"{len(candidates)} of a measured entry, one for each candidate; none of a predicted")
    default_us = place["default_us"]
    problem = Problem(
        op, tuple(_spec(spec) for spec in place["inputs"].items()),
        tuple((name, value.scalar()) for name, value in place["problem"].named()),
        flops=place["flops"].whole(), bytes=place["bytes"].whole(),
    )  # fmt: skip
    return TunedEntry(
        problem, _config(place["config"], schema), source, place["latency_us"].number(math.ulp(0.0)),
        None if default_us.value is None else default_us.number(math.ulp(0.0)),
        measured=place["measured"].whole(),
        space_size=place["space_size"].whole(),
        tied=place["tied"].whole(),
        confidence=place["confidence"].number(0.0, 1.0),
        median_slowdown=place["median_slowdown"].number(1.0 - 1e-9, 1e12),
        slowdowns=slowdowns,
    )  # fmt: skip


def _spec(place: _Place) -> TensorSpec:
    parts = list(place.items())
    if not parts:
        place.wrong("an element type and sizes")
    return TensorSpec(tuple(size.whole() for size in parts[1:]), parts[0].text())


def _timing(place: _Place) -> Timing:
    cache = place["cache"].value
    if cache not in ("cold", "warm"):
        place["cache"].wrong("cold or warm")
    return Timing(
        cache, place["warmup_us"].number(0.0), place["min_samples"].whole(), place["relative_error"].number(0.0)
    )  # fmt: skip


def _left_out(place: _Place) -> LeftOut | None:
    if place.value is None:
        return None
    default = place["default_slowdown"]
    return LeftOut(
        place["problems"].whole(1), place["slowdown"].number(1.0 - 1e-9, 1e12), place["worst"].number(1.0 - 1e-9, 1e12),
        place["with_default"].whole(), None if default.value is None else default.number(1.0 - 1e-9, 1e12),
        place["worse"].whole(),
    )  # fmt: skip
