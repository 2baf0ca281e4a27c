"""How a store grows: insert, look-up, export, split and replay at several sizes, each step in a process of its own.

    python benchmarks/store_scale.py --rows 1e4,1e5,1e6,1e7 --folder /tmp/scale [--out figures.csv]
    python benchmarks/store_scale.py --rows 1e4,1e5 --store postgresql://USER:PASSWORD@HOST/DATABASE
    python benchmarks/store_scale.py --candidates 1000,10000,100000   # ranking with the shipped model

The rows are synthetic and made as they are stored: kernels of 3 kB with 8 problems on 5 of 40 devices, 250 configs a
space, 7 to 20 samples, one in 30 a failure, space after space as collectors and importers bring them (--shuffled: any
space after any other). A PostgreSQL store must be empty; it is filled for the first size and added to for the others,
so give sizes in ascending order.

Told are CPU seconds of the process and of its children (PostgreSQL's server is neither), wall-clock seconds, the peak
of the resident set and bytes on disk; and the exponent b of a fit a * rows^b by least squares on logarithms: 1 is
linear, 0 constant. The last line is one JSON document.
"""

import argparse
import json
import multiprocessing
import random
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from costmodel import dataset, devices
from costmodel.records import Config, Device, Kernel, Measurement, Problem, TensorSpec, Timing, Variant
from costmodel.store import Store
from costmodel.store.database import is_url

SCHEMA = (("BLOCK_M", (16, 32, 64, 128, 256)), ("BLOCK_N", (16, 32, 64, 128, 256)), ("WARPS", (2, 4, 8, 16, 32)),
          ("STAGES", (1, 2)))  # fmt: skip
CONFIGS, PROBLEMS, DEVICES = 250, 8, 5
LOOKUPS = 2000
TOOLS = (("triton", "3.6.0"), ("torch", "2.11.0"), ("cuda", "13.0"))


def kernel(number: int) -> Kernel:
    body = "".join(f"    acc_{i} += tl.load(a_ptr + {i * number} + offsets)\n" for i in range(60))
    return Kernel(f"op{number % 97}__form{number}", "triton", f"@triton.jit\ndef kernel_{number}():\n{body}", SCHEMA)


def problem(of: Kernel, number: int) -> Problem:
    m, n, k = 2 ** (6 + number % 8), 512 + 64 * (number % 5), 1024
    inputs = (TensorSpec((m, k), "bf16"), TensorSpec((k, n), "bf16"))
    params = (("M", m), ("N", n), ("K", k))
    return Problem(of.name.partition("__")[0], inputs, params, 2 * m * n * k, 2 * (m * k + k * n + m * n))


def sheets() -> list[Device]:
    return list(devices.load_sheets().values())[:40]


def space(number: int, on: list[Device]) -> list[Measurement]:
    """The rows of one space; a later sitting of each tenth config is among them."""
    chance = random.Random(number)
    of = kernel(number // (PROBLEMS * DEVICES))
    what = problem(of, number // DEVICES % PROBLEMS)
    device = on[(7 * number + number // (PROBLEMS * DEVICES)) % len(on)]
    configs = list(islice(configs_of(), CONFIGS))
    rows = []
    for i in range(CONFIGS):
        config = configs[i - 1] if i % 10 == 9 else configs[i]
        at = f"2026-{1 + number % 12:02}-{1 + i % 28:02}T{i % 24:02}:00:00+00:00"
        variant, failed = Variant(of, what, config), chance.random() < 1 / 30
        base = chance.lognormvariate(4, 1)
        samples = () if failed else tuple(round(base * (1 + abs(chance.gauss(0, 0.02))), 3)
                                          for _ in range(chance.randint(7, 20)))  # fmt: skip
        rows.append(Measurement(
            variant, device, Timing(), TOOLS, "launch_error" if failed else "ok", samples,
            error="out of resource: shared memory, Required: 262144, Hardware limit: 101376" if failed else "",
            counters=(("pass", float(i % 2)), ("registers", float(32 + i % 200))), collected_at=at,
        ))  # fmt: skip
    return rows


def configs_of() -> Iterator[Config]:
    names = [name for name, _ in SCHEMA]
    for m in SCHEMA[0][1]:
        for n in SCHEMA[1][1]:
            for warps in SCHEMA[2][1]:
                for stages in SCHEMA[3][1]:
                    yield Config(tuple(zip(names, (m, n, warps, stages), strict=True)))


def numbers(first: int, rows: int, shuffled: bool) -> list[int]:
    spaces = list(range(first // CONFIGS, -(-rows // CONFIGS)))
    if shuffled:
        random.Random(0).shuffle(spaces)
    return spaces


def stream(first: int, rows: int, shuffled: bool = False) -> Iterator[Measurement]:
    """Rows first to rows, without holding them; shuffled, a row of each of 400 spaces in turn."""
    on, width = sheets(), 400 if shuffled else 1
    spaces = numbers(first, rows, shuffled)
    for start in range(0, len(spaces), width):
        together = [space(number, on) for number in spaces[start : start + width]]
        for i in range(CONFIGS):
            for members in together if shuffled else ():
                yield members[i]
        if not shuffled:
            yield from together[0]


# ------------------------------------------------------------------------------------------------------------- steps


def make(first: int, rows: int, shuffled: bool) -> int:
    """What the rows cost before they are stored."""
    return sum(1 for _ in stream(first, rows, shuffled))


def insert(address: str, first: int, rows: int, shuffled: bool) -> int:
    with Store(address) as store:
        return store.add(stream(first, rows, shuffled))


def look_up(address: str, rows: int) -> tuple[int, float, float]:
    """Half of the variants are there, half are not; making them is not counted."""
    chance, on = random.Random(1), sheets()
    drawn = [m for _ in range(LOOKUPS // 20) for m in space(chance.randrange(max(1, rows // CONFIGS)), on)[:10]]
    with Store(address) as store:
        began, used = time.perf_counter(), time.process_time()
        found = 0
        for m in drawn:
            found += store.has(m.variant, m.device, timing=m.timing, toolchain=m.toolchain)
            found += store.has(m.variant, m.device, timing=Timing("cold"), toolchain=m.toolchain)
        taken = time.process_time() - used, time.perf_counter() - began
    assert found == LOOKUPS // 2
    return LOOKUPS, *taken


def read(address: str) -> int:
    with Store(address) as store:
        return sum(1 for _ in store.measurements())


def combine(address: str) -> int:
    with Store(address) as store:
        return sum(1 for _ in store.combined())


def export(address: str, folder: str) -> int:
    with Store(address) as store:
        return store.export(folder)


def split(address: str) -> int:
    with Store(address) as store:
        held = dataset.chosen(store.measurements(), by="device", fraction=0.2, seed=0)
        sides = Counter(map(held, store.measurements()))
    assert sides[True]
    return sides.total()


def replay(address: str) -> int:
    """One space out of all: read, and searched at random."""
    from costmodel import replay as replaying
    from costmodel import strategies

    (m, *_) = space(3, sheets())
    with Store(address) as store:
        rows = [r for r in store.combined(kernel=m.variant.kernel.identity, device=m.device.identity)
                if r.variant.problem == m.variant.problem]  # fmt: skip
    (found,) = replaying.spaces(rows, {}, min_size=2)
    strategies.random_search(found, budget=50, seed=0)
    return len(rows)


def summary(address: str) -> int:
    with Store(address) as store:
        return len(store.summary())


def check(address: str) -> int:
    from costmodel.store.checking import check as checked

    found = checked(address)
    assert not found.faults, found.faults[:3]
    return found.rows


def backup(address: str, out: str) -> int:
    from costmodel.store.sqlite import backup as copy

    Path(out).unlink(missing_ok=True)
    copy(Path(address), Path(out))
    Path(out).unlink()
    return 1


def rank(candidates: int) -> int:
    from costmodel.predictor import NeuralCostModel

    of = Kernel("wide", "triton", kernel(1).source, tuple((f"P{i}", tuple(range(1, 11))) for i in range(6)))
    what = problem(of, 1)
    schema = [name for name, _ in of.schema]
    variants = [
        Variant(of, what, Config(tuple((name, 1 + i // 10**p % 10) for p, name in enumerate(schema))))
        for i in range(candidates)
    ]
    ranked = NeuralCostModel.from_pretrained().rank(variants, devices.find("H100 SXM"))
    assert len(ranked) == candidates
    return candidates


def child(function: Callable[..., Any], arguments: tuple[Any, ...], sender: Any) -> None:
    began, used = time.perf_counter(), time.process_time()
    done = function(*arguments)
    cpu, wall = time.process_time() - used, time.perf_counter() - began
    done, cpu, wall = done if isinstance(done, tuple) else (done, cpu, wall)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sender.send({"items": done, "cpu_s": cpu, "wall_s": wall, "peak_mb": peak_mb})


def measured(step: str, rows: int, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """A step in a process of its own, so that its peak of memory is its own."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(function, arguments, sender))
    process.start()
    sender.close()
    try:
        told = receiver.recv()
    except EOFError:
        raise SystemExit(f"{step} at {rows} rows failed") from None
    process.join()
    row = {"step": step, "rows": rows, **told}
    print(f"{step:10} {rows:>10} rows {told['items']:>10} items {told['cpu_s']:9.2f} s CPU {told['wall_s']:9.2f} s "
          f"wall {told['peak_mb']:6.0f} MB", flush=True)  # fmt: skip
    return row


def size_mb(address: str) -> float:
    if is_url(address):
        from costmodel.store.database import opened

        return opened(address).rows("SELECT pg_database_size(current_database())")[0][0] / 1e6
    return sum(p.stat().st_size for p in Path(address).parent.glob(Path(address).name + "*")) / 1e6


def exponent(rows: pd.Series, figure: pd.Series) -> float:
    if len(rows) < 2 or (figure <= 0).any():
        return float("nan")
    return float(np.polyfit(np.log(rows.astype(float)), np.log(figure.astype(float)), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1e4,1e5")
    parser.add_argument("--store", help="a PostgreSQL store; files in --folder if left out")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/store-scale"))
    parser.add_argument("--shuffled", action="store_true", help="rows of many spaces in turn")
    parser.add_argument("--candidates", help="rank so many instead, with the shipped model")
    parser.add_argument("--out", type=Path, help="write the table as CSV")
    options = parser.parse_args()
    told: list[dict[str, Any]] = []
    if options.candidates:
        for count in (int(float(text)) for text in options.candidates.split(",")):
            told.append(measured("rank", count, rank, count))
    else:
        options.folder.mkdir(parents=True, exist_ok=True)
        stored = 0
        for rows in (int(float(text)) for text in options.rows.split(",")):
            told += at(rows, stored, options)
            stored = rows if options.store else 0
    table = pd.DataFrame(told)
    growth = {
        step: {name: exponent(part["rows"], part[name]) for name in ("cpu_s", "wall_s", "peak_mb")}
        for step, part in table.groupby("step", sort=False)
    }
    if options.out:
        table.to_csv(options.out, index=False)
    print(table.to_string(index=False, float_format=lambda x: f"{x:.3f}"))
    print(json.dumps({"growth": growth, "rows": json.loads(table.to_json(orient="records"))}))


def at(rows: int, stored: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    address = options.store or str(options.folder / f"{rows}.sqlite")
    out = options.folder / f"{rows}.parquet"
    if not options.store:
        for old in options.folder.glob(f"{rows}.sqlite*"):
            old.unlink()
    told = [
        measured("make", rows, make, stored, rows, options.shuffled),
        measured("insert", rows, insert, address, stored, rows, options.shuffled),
        measured("look-up", rows, look_up, address, rows),
        measured("read", rows, read, address),
        measured("combined", rows, combine, address),
        measured("export", rows, export, address, str(out)),
        measured("split", rows, split, address),
        measured("replay", rows, replay, address),
        measured("summary", rows, summary, address),
        measured("check", rows, check, address),
    ]
    if not options.store:
        told.append(measured("backup", rows, backup, address, str(options.folder / "backup.sqlite")))
    sizes = {"store_mb": size_mb(address), "parquet_mb": sum(p.stat().st_size for p in out.glob("*")) / 1e6}
    shutil.rmtree(out)
    print(f"{rows} rows: {sizes}", flush=True)
    return [{**row, **sizes} for row in told]


if __name__ == "__main__":
    main()
