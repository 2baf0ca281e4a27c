"""The store: measurements in, measurements out, whatever they are kept in.

A row's identity is (kernel identity, problem, config, device sheet, toolchain, timing). One identity measured again is
another sitting, a row of its own; the same row twice (same identity, time and samples) is stored once, so `merge` may
be repeated. Every call of `add` commits before it returns, and a killed process loses nothing that was committed.

Nothing here holds all rows in memory: reading goes page by page, and what is remembered is bounded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd

from costmodel import dataset
from costmodel.records import Device, Kernel, Measurement, Problem, Timing, UserError, Variant, digest
from costmodel.sittings import identity, joined
from costmodel.store.database import is_url, opened
from costmodel.store.reader import Reader

_BATCH = 256  # rows per transaction: short, so that two writers take turns
_TOGETHER = 16  # rows per statement: a server may be a millisecond away; SQLite reads longer ones slowly
_REMEMBERED = 1 << 16  # ids kept in memory


class Store:
    """A store at an address: a file, or postgresql://USER:PASSWORD@HOST/DATABASE. It is made if there is none.

    Close it, or use it as a context manager. `name` is the address as it may be shown, without a password.
    """

    def __init__(self, address: str | Path) -> None:
        self._database = opened(address)
        self.name = self._database.name
        self._keys: dict[tuple[Any, ...], int] = {}
        self._texts: set[str] = set()
        self._reader = Reader(self._database)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()

    def add(self, measurements: Iterable[Measurement]) -> int:
        """Append; returns how many were new. Committed in batches of at most 256 rows, each whole or not at all."""
        added = 0
        rows = iter(measurements)
        while batch := list(islice(rows, _BATCH)):
            with self._writing():
                lines = [self._fields(row) for row in batch]
                added += sum(
                    self._insert(lines[start : start + _TOGETHER]) for start in range(0, len(lines), _TOGETHER)
                )
        return added

    def measurements(
        self,
        *,
        kernel: str | None = None,
        op: str | None = None,
        device: str | None = None,
        status: str | None = None,
    ) -> Iterator[Measurement]:
        """Every sitting in the order of storing; kernel and device by name or by identity."""
        for page in self._reader.pages(kernel=kernel, op=op, device=device, status=status):
            yield from self._reader.measurements(page)

    def combined(
        self, *, kernel: str | None = None, op: str | None = None, device: str | None = None
    ) -> Iterator[Measurement]:
        """One measurement per identity, its sittings joined, in the order of first storing.

        One wrong result condemns a variant. Otherwise the sittings vote, a tie going to failure; if they agree on ok,
        the samples of all ok sittings are pooled in order of time and counters are medians.
        """
        for page in self._reader.pages(kernel=kernel, op=op, device=device):
            rows = self._reader.sittings(page, kernel=kernel)
            found: dict[tuple[int, str], list[tuple[int, Measurement]]] = defaultdict(list)
            for row, measurement in zip(rows, self._reader.measurements(rows), strict=True):
                found[row.space, row.identity].append((row.id, measurement))
            here = {row.id for row in page}
            for sittings in found.values():
                if sittings[0][0] in here:  # else an earlier page had it
                    yield joined([measurement for _, measurement in sittings])

    def identities(self) -> set[str]:
        """Of everything stored, failures too; see `identity`."""
        return {row[0] for row in self._database.rows("SELECT DISTINCT identity FROM measurements")}

    def has(self, variant: Variant, device: Device, *, timing: Timing, toolchain: tuple[tuple[str, str], ...]) -> bool:
        """Was it measured, with whatever outcome?"""
        sql = """
            SELECT 1 FROM problems p, devices d, spaces s, measurements m
            WHERE p.key = :problem AND d.key = :device AND s.text = :text AND s.problem = p.id AND s.device = d.id
                  AND m.space = s.id AND m.identity = :identity LIMIT 1
        """
        found = self._database.rows(
            sql,
            text=dataset.kernel_identity(variant.kernel),
            problem=_problem_row(variant.problem)["key"],
            device=_device_row(device)["key"],
            identity=identity(variant, device, timing, toolchain),
        )
        return bool(found)

    def merge(self, other: str | Path) -> int:
        """Add all that another store holds; returns how many rows were new."""
        if not is_url(other) and not Path(other).is_file():
            raise UserError(f"no store {other} to merge; give the path of a store that exists")
        with Store(other) as source:
            if source._place() == self._place():
                raise UserError(f"got {source.name} to merge into itself; give another store")
            return self.add(source.measurements())

    def export(self, folder: str | Path, *, card: dataset.Card | None = None) -> int:
        """Write every sitting as parquet with a card, see `dataset.write_parquet`; returns how many there are."""
        return dataset.write_parquet(self.measurements(), folder, card)

    def summary(self) -> pd.DataFrame:
        """One line per kernel, problem, device and status: how many variants, how many sittings, when the last."""
        columns = ("kernel", "problem", "device", "status", "variants", "sittings", "last_collected_at")
        sql = """
            SELECT k.name, s.problem, d.name, c.status, c.variants, c.sittings, c.last
            FROM (SELECT space, kernel, status, COUNT(DISTINCT identity) AS variants, COUNT(*) AS sittings,
                         MAX(collected_at) AS last FROM measurements GROUP BY space, kernel, status) c
                 JOIN kernels k ON k.id = c.kernel JOIN spaces s ON s.id = c.space JOIN devices d ON d.id = s.device
        """
        table = pd.DataFrame(self._database.rows(sql), columns=list(columns))
        by = list(columns[:4])
        table = table.groupby(by, as_index=False).agg(
            {"variants": "sum", "sittings": "sum", "last_collected_at": "max"}
        )
        return table.assign(problem=self._reader.problem_names(table["problem"]))

    # ---- writing ----

    def _place(self) -> str:
        return self.name if is_url(self.name) else str(Path(self.name).resolve())

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with self._database.writing():
                yield
        except BaseException:
            self._keys.clear()  # keys handed out in it are void
            self._texts.clear()
            raise

    def _insert(self, batch: list[dict[str, Any]]) -> int:
        """How many of a few lines are new."""
        names = list(batch[0])
        marks = ", ".join(f"({', '.join(f':{name}_{i}' for name in names)})" for i in range(len(batch)))
        done = self._database.rows(
            f"INSERT INTO measurements ({', '.join(names)}) VALUES {marks} ON CONFLICT DO NOTHING RETURNING id",
            **{f"{name}_{i}": value for i, fields in enumerate(batch) for name, value in fields.items()},
        )
        return len(done)

    def _fields(self, row: Measurement) -> dict[str, Any]:
        """A line of the table of measurements; the nouns that it refers to are stored before."""
        kernel = _kernel_row(row.variant.kernel)
        if kernel["text"] not in self._texts:
            sql = "INSERT INTO texts (identity, source) VALUES (:text, :source) ON CONFLICT DO NOTHING"
            self._database.rows(sql, text=kernel["text"], source=row.variant.kernel.source)
            self._texts.add(kernel["text"])
        place = {
            "text": kernel["text"],
            "problem": self._key("problems", _problem_row(row.variant.problem)),
            "device": self._key("devices", _device_row(row.device)),
        }
        return {
            "space": self._key("spaces", place, by=tuple(place)),
            "identity": identity(row.variant, row.device, row.timing, row.toolchain),
            "content": content(row),
            "kernel": self._key("kernels", kernel),
            "method": self._key("methods", _method_row(row.toolchain, row.timing)),
            "config": dataset.to_json(row.variant.config.params),
            "status": row.status,
            "samples_us": dataset.to_json(row.samples_us),
            "error": dataset.printable(row.error),
            "counters": dataset.to_json(row.counters),
            "collected_at": row.collected_at,
        }

    def _key(self, table: str, fields: dict[str, Any], by: tuple[str, ...] = ("key",)) -> int:
        """The id of the row that has these fields, of which `by` tell it from all others; made if there is none."""
        cached = (table, *(fields[name] for name in by))
        if cached not in self._keys:
            found = self._database.rows(
                f"INSERT INTO {table} ({', '.join(fields)}) VALUES ({', '.join(f':{name}' for name in fields)})"
                " ON CONFLICT DO NOTHING RETURNING id",
                **fields,
            ) or self._database.rows(
                f"SELECT id FROM {table} WHERE {' AND '.join(f'{name} = :{name}' for name in by)}",
                **{name: fields[name] for name in by},
            )
            if len(self._keys) >= _REMEMBERED:  # an import may bring a problem a row
                self._keys.clear()
            self._keys[cached] = int(found[0][0])
        return self._keys[cached]


@lru_cache(maxsize=4096)
def _kernel_row(kernel: Kernel) -> dict[str, Any]:
    text, schema = dataset.kernel_identity(kernel), dataset.to_json(kernel.schema)
    key = digest(text, kernel.name, schema, kernel.origin)
    return {"key": key, "text": text, "name": kernel.name, "language": kernel.language, "schema": schema,
            "origin": kernel.origin}  # fmt: skip


@lru_cache(maxsize=4096)
def _problem_row(problem: Problem) -> dict[str, Any]:
    sheet = dataset.noun_json(problem)
    return {"key": digest(sheet), "op": problem.op, "sheet": sheet}


@lru_cache(maxsize=4096)
def _device_row(device: Device) -> dict[str, Any]:
    sheet = dataset.noun_json(device)
    return {"key": digest(sheet), "identity": device.identity, "name": device.name, "sheet": sheet}


@lru_cache(maxsize=4096)
def _method_row(toolchain: tuple[tuple[str, str], ...], timing: Timing) -> dict[str, Any]:
    told = dataset.to_json(toolchain), dataset.noun_json(timing)
    return {"key": digest(*told), "toolchain": told[0], "timing": told[1]}


def content(row: Measurement) -> str:
    """What sets two sittings of one identity apart; counters have no say."""
    return digest(row.collected_at, row.status, row.samples_us, dataset.printable(row.error))
