"""One published file while it is read: what it is called, what all its entries share, and what had to be left out."""

from __future__ import annotations

import csv
import datetime
import json
import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from costmodel import devices, reading
from costmodel.published import streams
from costmodel.records import Config, Device, Kernel, Measurement, Problem, Scalar, Status, Timing, UserError, Variant

MS = 3  # a millisecond is 10^3 microseconds
MOST_NAME = 200  # characters
MOST_SCHEMA = 16 << 20  # characters of parameters and values in a space that no file declares
SHORTEST_MS, LONGEST_MS = 1e-5, 1e7  # outside, a number is no kernel's time in ms: a launch alone takes 1e-3

Schema = tuple[tuple[str, tuple[Scalar, ...]], ...]


class RecordWarning(UserWarning):
    """Something in a published record that was mended or left out."""


class Refused(Exception):
    """An entry that cannot be a measurement; the message says why."""


@dataclass
class Source:
    """A file that is being read: its names, what the user said of it, and what was left out of it."""

    path: Path
    device_given: Device | str | None
    space_given: Path | None
    left_out: Counter[str] = field(default_factory=Counter)
    is_cut: bool = False

    @property
    def stem(self) -> str:
        """The file's name without .gz, .json, .csv and .autotune."""
        name = self.path.name
        for suffix in (".gz", ".json", ".csv", ".autotune"):
            name = name.removesuffix(suffix)
        return name

    def named(self, stated: str = "") -> tuple[str, str]:
        """(kernel, device) of a file called NAME__DEVICE, else (`stated`, ""); `stated` may itself hold "__"."""
        stated = stated or self.stem
        name = stated if self.stem.startswith(f"{stated}__") else self.stem.partition("__")[0]
        rest = self.stem.removeprefix(name).removeprefix("__").partition("__")[0]
        return (name, rest.replace("_", " ")) if rest else (stated, "")

    def device(self, stated: str, name: str = "") -> Device:
        """What the user gave, else what the record states, else what the file is called; bare where no sheet fits."""
        if isinstance(self.device_given, Device):
            return self.device_given
        if self.device_given:
            return devices.find(self.device_given)
        wanted = stated or self.named(name)[1]
        if len(wanted) > MOST_NAME:
            raise UserError(f"got {self.path} of a device with a name of {len(wanted)} characters; give --device NAME")
        if not wanted:
            raise UserError(f"got {self.path}, which states no device, expected one; give --device NAME")
        return _sheet(wanted)

    def entries(self, body: str, header: dict[str, Any]) -> Iterator[Any]:
        """The members of `body` (keys dropped), one after another; the other members before it go to `header`.

        Where the text ends inside an entry, those before it stand and `is_cut` is set.
        """
        with streams.opened(self.path) as file:
            stream = streams.JsonStream(file)
            try:
                for key in stream.members():
                    if key != body:
                        header[key] = stream.value()
                    elif body == "cache":
                        yield from (entry for _, entry in stream.pairs())
                    else:
                        yield from stream.items()
            except streams.Cut:
                self.is_cut = True
            except UnicodeDecodeError:
                raise  # a ValueError, which `streams.opened` explains
            except ValueError as error:
                raise UserError(
                    f"got {self.path}, which is damaged: {error}; what stands before the damage was read"
                ) from error

    def table(self) -> Iterator[dict[str, str]]:
        """Row by row; a row with too few or too many cells is the end of a killed run or damage, and is counted."""
        with streams.opened(self.path) as file:
            lines = csv.reader(reading.lines(file))
            try:
                header = next(lines, [])
                for cells in lines:
                    if len(cells) == len(header):
                        yield dict(zip(header, cells, strict=True))
                    elif cells:
                        self.left_out["cells do not fit the header"] += 1
            except UnicodeDecodeError:
                raise
            except (csv.Error, ValueError) as error:
                raise UserError(
                    f"got {self.path}, which is damaged at line {lines.line_num}: {error}; mend it"
                ) from error


def _sheet(name: str) -> Device:
    """The published sheet, or a bare one that states nothing but the name."""
    try:
        return devices.find(name)
    except UserError as error:
        warnings.warn(f"{error}; it is kept without one", RecordWarning, stacklevel=2)
        return Device(name, "gpu", "", "", 0, 0.0, (), 0.0, 0)


@dataclass(frozen=True)
class Space:
    """What all entries of a search space share."""

    kernel: Kernel
    problem: Problem
    device: Device
    timing: Timing
    toolchain: tuple[tuple[str, str], ...]

    def row(
        self,
        config: Mapping[str, Any],
        status: Status,
        samples_us: tuple[float, ...],
        error: str,
        counters: Mapping[str, float],
        collected_at: str,
    ) -> Measurement:
        names = [name for name, _ in self.kernel.schema]
        if not config.keys() >= set(names):
            raise Refused("parameters are not those of the space")
        params = tuple((name, scalar(config[name])) for name in names)
        variant = Variant(self.kernel, self.problem, Config(params))
        return Measurement(
            variant, self.device, self.timing, self.toolchain, status, samples_us, error, tuple(counters.items()),
            collected_at,
        )  # fmt: skip


def scalar(value: Any) -> Scalar:
    """A parameter's value; what is neither number nor text is kept as its JSON text."""
    value = streams.plain(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        value = str(value)
    return value if isinstance(value, int | float | str) else json.dumps(value)


def schema_of(values: Mapping[str, Iterable[Any]]) -> Schema:
    """Names in the order given, each with its values sorted: numbers first."""

    def order(value: Scalar) -> tuple[bool, float, str]:
        return isinstance(value, str), 0.0 if isinstance(value, str) else float(value), str(value)

    return tuple((name, tuple(sorted(set(map(scalar, given)), key=order))) for name, given in values.items())


def observed(configs: Iterable[Mapping[str, Any]]) -> Schema:
    """The schema of a space that nobody declares: what its entries hold. Bounded, since it is held in memory."""
    values: dict[str, set[Scalar]] = defaultdict(set)
    left = MOST_SCHEMA
    for config in configs:
        for name, given in config.items():
            value = scalar(given)
            if value not in values[name]:
                values[name].add(value)
                left -= len(name) + len(str(value))
        if left < 0:
            raise UserError(
                f"got parameters whose values take over {MOST_SCHEMA} characters, expected those of one search space; "
                "check the record"
            )
    return schema_of(values)


def time_us(value: Any, exponent: int) -> float:
    """A run's time in microseconds."""
    if isinstance(value, bool) or not isinstance(value, int | float | str) or value == "":
        raise Refused("time is no number")
    try:
        us = float(streams.shifted(value, exponent))
    except ValueError:
        raise Refused("time is no number") from None
    if not us > 0 or math.isinf(us):
        raise Refused("time is not positive and finite")
    if not SHORTEST_MS * 1e3 <= us <= LONGEST_MS * 1e3:
        raise Refused("time cannot be in the unit of the format")
    return us


def costs_us(stated: Mapping[str, Any], names: Mapping[str, str], exponent: int) -> dict[str, float]:
    """What an entry cost besides running, in microseconds, in the order of `names`."""
    found: dict[str, float] = {}
    for theirs, ours in names.items():
        value = stated.get(theirs)
        if is_number(value):
            found[ours] = streams.shifted(value, exponent)
    return found


def is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int | streams.Decimals) or (isinstance(value, float) and math.isfinite(value))


def utc(stamp: Any) -> str:
    """ISO 8601 in UTC; empty where the entry states no time that can be read. A time without a zone is UTC."""
    try:
        moment = datetime.datetime.fromisoformat(stamp)
        return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).astimezone(datetime.UTC).isoformat()
    except (OverflowError, TypeError, ValueError):
        return ""


def timing_of(repeats: Iterable[int]) -> Timing:
    """Importers know of no warm-up and no stop rule; min_samples is the usual number of repeats."""
    usual = Counter(count for count in repeats if count).most_common(1)
    return Timing("warm", 0.0, usual[0][0] if usual else 1, 0.0)


def rows(source: Source, entries: Iterable[Any], make: Callable[[Any], Measurement]) -> Iterator[Measurement]:
    """What `make` makes of the entries; those it refuses, or cannot read, are counted."""
    for entry in entries:
        try:
            row = make(entry)
        except Refused as why:
            source.left_out[str(why)] += 1
        except (AttributeError, IndexError, KeyError, OverflowError, RecursionError, TypeError, ValueError):
            source.left_out["form is not that of the format"] += 1
        else:
            yield row
