"""What others measured: Kernel Tuner caches, T4 results, Triton's and Helion's autotuning logs, NeuSight's tables.

    for measurement in read("convolution__A100.json.gz"):
        ...

The format is told from the content. Every reader streams, so a file may be larger than memory. A published record has
no source text: origin, kernel name and parameter schema stand for it. An entry whose time is not a positive number of
milliseconds is left out, and one `RecordWarning` a file counts them. The formats stand in `costmodel.published`.
"""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from costmodel.published import streams
from costmodel.published.doubts import Doubts, doubts
from costmodel.published.entries import RecordWarning, Source
from costmodel.published.export import write_kernel_tuner_cache, write_t4
from costmodel.published.logs import read_helion, read_triton
from costmodel.published.spaces import read_kernel_tuner, read_t4
from costmodel.published.tables import read_neusight
from costmodel.records import Device, Measurement, UserError

__all__ = [
    "CollectRequest",
    "Doubts",
    "RecordWarning",
    "collect",
    "doubts",
    "is_record",
    "read",
    "write_kernel_tuner_cache",
    "write_t4",
]

_SNIFFED = 4 << 20  # characters in which a record must show what it is
# JSON is told by the member that holds the entries, CSV by its columns.
_JSON = {"cache": read_kernel_tuner, "results": read_t4, "configs_timings": read_triton}
_CSV = {("OPName", "Latency"): read_neusight, ("status", "perf_ms", "config"): read_helion}

Reader = Callable[[Source], Iterator[Measurement]]


@dataclass(frozen=True)
class CollectRequest:
    """What to read. `device` overrides the device that the files state; `space` is the T1 file of a T4 result."""

    files: tuple[Path, ...]
    device: Device | str | None = None
    space: Path | None = None


def collect(request: CollectRequest) -> Iterator[Measurement]:
    """Every measurement of every file, in order."""
    for path in request.files:
        yield from read(path, device=request.device, space=request.space)


def read(
    path: str | Path, *, device: Device | str | None = None, space: str | Path | None = None
) -> Iterator[Measurement]:
    """The measurements of one file.

    Raises UserError at once where it is no record, and while reading where it is damaged or holds no usable entry.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no file {path}; give a tuning record")
    reader = _reader(path)
    if reader is None:
        raise UserError(
            f"got {path}, which is none of the records that can be read; give a Kernel Tuner cache, T4 results, "
            "Triton's *.autotune.json, Helion's CSV log or a NeuSight table"
        )
    return _checked(Source(path, device, Path(space) if space else None), reader)


def is_record(path: str | Path) -> bool:
    """Whether `read` knows the format: a look at the beginning, at most a few megabytes."""
    path = Path(path)
    try:
        return path.is_file() and _reader(path) is not None
    except UserError:
        return False


def _reader(path: Path) -> Reader | None:
    with streams.opened(path) as file:
        head = file.read(_SNIFFED)
    if head.lstrip()[:1] == "{":
        return _json_reader(head)
    try:
        columns = set(next(csv.reader(head.splitlines()[:1]), []))
    except csv.Error:
        return None
    return next((reader for wanted, reader in _CSV.items() if columns.issuperset(wanted)), None)


def _json_reader(head: str) -> Reader | None:
    stream = streams.JsonStream(io.StringIO(head))
    try:
        for key in stream.members():
            if key in _JSON:
                return _JSON[key]
            stream.value()
    except (ValueError, streams.Cut):
        return None
    return None


def _checked(source: Source, reader: Reader) -> Iterator[Measurement]:
    """The rows; at the end one warning of what was left out, or a UserError where nothing was usable."""
    usable = 0
    try:
        for row in reader(source):
            usable += 1
            yield row
    except (AttributeError, IndexError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise UserError(
            f"got {source.path}, whose header is not that of its format ({type(error).__name__}: {str(error)[:80]}), "
            "expected a published record; fetch it again"
        ) from error
    reasons = [f"{count} entries whose {why}" for why, count in source.left_out.most_common(3)]
    if source.is_cut:
        reasons.append("the end, for the file stops inside an entry or before its closing brackets")
    if not usable:
        raise UserError(
            f"got {source.path} with no usable entry ({'; '.join(reasons) or 'it is empty'}), expected at least one; "
            "check that the record is complete and its times are positive"
        )
    if reasons:
        warnings.warn(f"{source.path.name}: left out {'; '.join(reasons)}", RecordWarning, stacklevel=2)
