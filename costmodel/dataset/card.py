"""The card of a dataset: what the numbers cannot say of themselves, and what is counted as they are written."""

from __future__ import annotations

import json
import random
import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass

from costmodel.dataset.rows import device_identity, noun_json
from costmodel.records import STATUSES, Device, Measurement, digest


@dataclass(frozen=True, slots=True)
class Card:
    """What the numbers cannot say of themselves. Device, compiler, flags and counts are taken from the data."""

    title: str = "Kernel latencies"
    description: str = "Latencies of kernel variants, measured with costmodel."
    hardware: str = ""  # beyond the device sheets: what the machine is, what else ran on it
    protocol: str = "Each sitting is one row; its samples are raw. The latency of a row is the median of its samples."
    split_policy: str = (
        "None is fixed in the files. `costmodel.dataset.split` holds out whole operations with all their forms "
        '(by="kernel"), problems for all forms (by="problem"), source forms (by="form") or devices (by="device").'
    )
    license: str = "apache-2.0"


class Tally:
    """What a card says of rows, counted as they go by; medians are of a bounded random sample of a kernel's rows."""

    SAMPLE = 10_000

    def __init__(self) -> None:
        self.rows = self.samples = 0
        self.devices: dict[str, Device] = {}
        self.toolchains: set[str] = set()
        self.timings: set[str] = set()
        self.dates: tuple[str, str] | None = None
        self.statuses: Counter[str] = Counter()
        self.counts: Counter[tuple[str, str]] = Counter()  # by kernel's name and status; generated ones (NAME:7) as one
        self.problems: dict[str, set[str]] = defaultdict(set)
        self.latencies: dict[str, list[float]] = defaultdict(list)
        self._chance = random.Random(0)
        self._toolchain: tuple[tuple[str, str], ...] | None = None

    def count(self, row: Measurement) -> None:
        name = row.variant.kernel.name.partition(":")[0]
        self.rows += 1
        self.samples += len(row.samples_us)
        self.devices.setdefault(device_identity(row.device), row.device)
        if row.toolchain != self._toolchain:  # they come in long runs
            self._toolchain = row.toolchain
            self.toolchains.add(", ".join(f"{name} `{value}`" for name, value in row.toolchain))
        self.timings.add(str(row.timing))
        if at := row.collected_at:
            first, last = self.dates or (at, at)
            self.dates = min(first, at), max(last, at)
        self.statuses[row.status] += 1
        self.counts[name, row.status] += 1
        self.problems[name].add(digest(noun_json(row.variant.problem)))
        if row.samples_us:
            self._keep(self.latencies[name], row.latency_us, self.counts[name, row.status])

    def _keep(self, sample: list[float], latency_us: float, seen: int) -> None:
        """Reservoir sampling: of `seen` latencies each is in the sample with the same probability."""
        if len(sample) < self.SAMPLE:
            sample.append(latency_us)
        elif (place := self._chance.randrange(seen)) < self.SAMPLE:
            sample[place] = latency_us


def card_text(tally: Tally, card: Card) -> str:
    """README.md: a YAML head that Hugging Face reads, then prose from `card` and tables from the rows."""
    failures = {kind: n for kind, n in sorted(tally.statuses.items()) if kind not in ("ok", "compiled")}
    parts = [
        f"---\nlicense: {card.license}\npretty_name: {json.dumps(card.title)}\nconfigs:\n- config_name: default\n"
        "  data_files: measurements.parquet\n- config_name: kernels\n  data_files: kernels.parquet\n---",
        f"# {card.title}",
        card.description,
        "## Hardware",
        card.hardware,
        "\n".join(f"- {_device_line(device)}" for device in tally.devices.values()),
        "## Compiler and flags",
        "\n".join(f"- {toolchain or 'not stated'}" for toolchain in sorted(tally.toolchains)),
        "## Protocol",
        card.protocol,
        "\n".join(f"- `{timing}`" for timing in sorted(tally.timings)),
        "## Counts",
        f"{tally.rows} rows, {tally.statuses['ok']} of them `ok`, with {tally.samples} samples"
        + (f", collected from {tally.dates[0]} to {tally.dates[1]}." if tally.dates else "."),
        _counts_table(tally),
        "## Failures by kind",
        "\n".join(f"- {kind}: {count}" for kind, count in failures.items()) or "None.",
        "## Splits",
        card.split_policy,
        "## Columns",
        _COLUMNS,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


_COLUMNS = """`measurements.parquet`, one row per sitting: `kernel` (key into `kernels.parquet`), `op`, `problem`,
`config`, `device`, `timing`, `toolchain`, `counters` (JSON text), `status`, `latency_us` (median of the samples, empty
for a failure), `samples_ns` (raw, rounded to 1 ns), `error`, `collected_at` (UTC). `kernels.parquet`: `kernel`,
`identity`, `name`, `language`, `schema` (JSON text), `origin`, `source`. Read both with
`costmodel.dataset.read_parquet(folder)`."""


def _device_line(device: Device) -> str:
    peaks = ", ".join(f"{rate:g} TFLOP/s {name}" for name, rate in device.peak_tflops)
    return (
        f"{device.name} ({device.kind}, {device.arch}): {device.num_units} units at {device.clock_mhz:g} MHz, {peaks}, "
        f"{device.peak_gb_per_s:g} GB/s, L2 {device.l2_bytes / 1024:g} KiB"
    )


def _counts_table(tally: Tally) -> str:
    statuses = [status for status in STATUSES if tally.statuses[status]]
    lines = [f"| kernel | problems | {' | '.join(statuses)} | median us |", "|" + "---|" * (len(statuses) + 3)]
    for name, problems in sorted(tally.problems.items()):
        cells = [str(tally.counts[name, status]) for status in statuses]
        sample = tally.latencies.get(name)
        middle = f"{statistics.median(sample):.4g}" if sample else "-"
        lines.append(f"| {name} | {len(problems)} | {' | '.join(cells)} | {middle} |")
    return "\n".join(lines)
