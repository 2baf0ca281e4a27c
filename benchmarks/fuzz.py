"""Damaged and hostile input for every reader: each answers with what it read or with a UserError, and nothing else.

    python benchmarks/fuzz.py --seconds 300                      # all readers, an equal share of the time each
    python benchmarks/fuzz.py --seconds 60 --reader parquet      # one of them

Each reader runs in a process of its own with at most MEMORY_BYTES of memory. With atheris installed libFuzzer mutates
valid files, led by the coverage of costmodel's own code; without it the mutations are those of `mutated`.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from costmodel import dataset, reading, serialize, workloads
from costmodel.measure import channel
from costmodel.measure.protocol import Outcome
from costmodel.records import Config, Device, Kernel, Measurement, Problem, TensorSpec, Timing, UserError, Variant
from costmodel.store import Store

MEMORY_BYTES = 6 << 30
LONGEST_LINE = 2000  # characters, paths in it among them
LONGEST = 1 << 16  # bytes of an input
# What breaks readers, to be put anywhere.
SPITE = (
    b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\r", b"NaN", b"-Infinity", b"1e999", b"-0.0", b"9" * 5000, b"-1",
    b"[" * 3000, b'{"a":' * 1500, b"(" * 300, b"null", b'""', b"{}", b"[]", b"true", b"../../../etc/passwd", b"/",
    b'"\\ud800"', b"9223372036854775808", b"18446744073709551616", b"0001-01-01T00:00:00+14:00", b"x" * 300, b",", b'"',
)  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """`seeds(folder)`: valid inputs; `read(folder, input)` raises UserError where it is none."""

    seeds: Callable[[Path], list[bytes]]
    read: Callable[[Path, bytes], object]


def outcome(reader: Reader, folder: Path, data: bytes) -> str:
    """ "read" or "refused"; anything else that happens is a mistake, and raised. One line is what a refusal takes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(folder, data)
    except UserError as error:
        if "\n" in str(error) or len(str(error)) > LONGEST_LINE:
            raise AssertionError(f"got more than one short line: {str(error)[:LONGEST_LINE]!r}") from error
        return "refused"
    return "read"


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A few changes: bytes overwritten, cut, doubled, spliced with SPITE."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = chance.randrange(len(found) + 1)
        kind = chance.randrange(6)
        if kind == 0 and found:
            found[min(at, len(found) - 1)] = chance.randrange(256)
        elif kind == 1:
            del found[at : at + chance.choice((1, 8, 64))]
        elif kind == 2:
            found[at:at] = chance.choice(SPITE)
        elif kind == 3:
            found[at : at + 8] = chance.choice(SPITE)
        elif kind == 4:
            del found[at:]
        else:
            found[at:at] = found[at : at + 64]
    return bytes(found[:LONGEST])


# ---- valid inputs ----


def measurements() -> list[Measurement]:
    kernel = Kernel("k__a", "cpp", "int f() { return 1; }", (("TILE", (8, 16)), ("MODE", ("x", "y"))))
    problem = Problem("k", (TensorSpec((64, 64), "f32"),), (("M", 64), ("N", 64)), 8192, 32768)
    device = Device("Toy", "cpu", "Maker", "x1", 2, 1000.0, (("f32", 0.5),), 20.0, 1 << 20, details=(("l1_bytes", 4),))
    rows = []
    for tile in (8, 16):
        variant = Variant(kernel, problem, Config.of(TILE=tile, MODE="x"))
        rows.append(
            Measurement(variant, device, Timing(), (("cxx", "g++ 12"),), "ok", (1.5, 2.0 * tile), "", (("pass", 0.0),))
        )
    return [
        *rows,
        Measurement(variant, device, Timing("cold"), (), "timeout", (), "late", (), "2026-01-01T00:00:00+00:00"),
    ]


KERNEL_TUNER = {
    "device_name": "A100", "kernel_name": "k", "tune_params_keys": ["x", "y"], "tune_params": {"x": [1, 2], "y": [4]},
    "problem_size": [64, 64], "schema_version": "1.0.0",
    "cache": {
        "1,4": {"x": 1, "y": 4, "time": 0.5, "times": [0.4, 0.6], "compile_time": 12.5, "timestamp": "2026-01-01"},
        "2,4": {"x": 2, "y": 4, "time": "InvalidConfig", "GFLOP/s": 12.5},
    },
}  # fmt: skip
T4 = {
    "schema_version": "1.0.0", "metadata": {"timeunit": "milliseconds", "device_name": "A100", "kernel_name": "k"},
    "results": [
        {
            "timestamp": "2026-01-01T00:00:00+00:00", "configuration": {"x": 1, "y": "a"}, "invalidity": "correct",
            "times": {"compilation": 3.5, "runtimes": [0.4, 0.6]}, "correctness": 1,
            "measurements": [{"name": "time", "value": 0.5, "unit": "ms"}, {"name": "power", "value": 3, "unit": "W"}],
        },
        {"configuration": {"x": 2, "y": "a"}, "invalidity": "compile", "times": {}, "measurements": []},
    ],
}  # fmt: skip
TRITON = {
    "key": ["64", "torch.float32"],
    "configs_timings": [
        [{"kwargs": {"BLOCK": 64}, "num_warps": 4, "num_stages": 3, "maxnreg": None}, [0.5, 0.4, 0.6]],
        [{"kwargs": {"BLOCK": 128}, "num_warps": 8, "num_stages": 3}, [float("inf"), float("inf"), float("inf")]],
    ],
}  # fmt: skip
HELION = (
    b"run_id,timestamp_s,config_index,generation,status,perf_ms,compile_time_s,config\n"
    b'1,1.0,1,0,ok,0.5,2.5,"Config(block_sizes=[32, 16], num_warps=4)"\n'
    b'1,2.0,2,0,error,,2.5,"Config(block_sizes=[64, 16], num_warps=8)"\n'
)
HELION_RUN = (
    b'{"run_id": "1", "kernel_name": "k", "hardware": "A100", "input_shapes": "[(64, 64)]", '
    b'"dtypes": "[\'torch.float32\']"}\n'
)
NEUSIGHT = (
    b"OPName,Device,B,M,N,K,H,Latency,Torch Version,CUDA Version\n"
    b"bmm,A100,2,64,64,64,,0.5,2.1,12.1\nrelu,A100,8,,,,1024,0.01,2.1,12.1\n"
)
T1 = {
    "ConfigurationSpace": {"TuningParameters": [{"Name": "x", "Values": "[1, 2]"}, {"Name": "y", "Values": "['a']"}]},
    "KernelSpecification": {"Language": "CUDA", "ProblemSize": [64, 64]},
}  # fmt: skip
CPP = (
    b"#pragma omp parallel\n#define F(x) ((x) + 1)\n// why\n"
    b"int f(int *a) { for (int i = 0; i < N; ++i) a[i] = F(i); return 0x1p3; }\n"
)
PYTHON = (
    b"import triton\n@triton.jit\ndef k(x_ptr, B: tl.constexpr):\n    '''says'''\n    if B > 1:\n        x = [1, (2)]\n"
)


def as_json(document: object) -> bytes:
    return json.dumps(document).encode()


def read_record(name: str) -> Callable[[Path, bytes], object]:
    records = workloads.load_module(workloads.shipped("collectors") / "tuning_records.py")

    def read(folder: Path, data: bytes) -> object:
        (folder / name).write_bytes(data)
        return list(records.read(folder / name))

    return read


def read_beside(beside: str, record: str, valid: bytes) -> Callable[[Path, bytes], object]:
    """The input lies beside a valid record, which is read."""
    read = read_record(record)

    def both(folder: Path, data: bytes) -> object:
        (folder / beside).write_bytes(data)
        return read(folder, valid)

    return both


def parquet_seed(name: str) -> Callable[[Path], list[bytes]]:
    def seeds(folder: Path) -> list[bytes]:
        dataset.write_parquet(measurements(), folder / "seed")
        return [(folder / "seed" / name).read_bytes()]

    return seeds


def read_parquet(name: str) -> Callable[[Path, bytes], object]:
    def read(folder: Path, data: bytes) -> object:
        place = folder / "read"
        if not place.is_dir():
            dataset.write_parquet(measurements(), place)
        (place / name).write_bytes(data)
        return dataset.read_parquet(place)

    return read


def store_seeds(folder: Path) -> list[bytes]:
    with Store(folder / "seed.sqlite") as store:
        store.add(measurements())
    return [(folder / "seed.sqlite").read_bytes()]


def read_store(folder: Path, data: bytes) -> object:
    for old in folder.glob("read.sqlite*"):
        old.unlink()
    (folder / "read.sqlite").write_bytes(data)
    with Store(folder / "read.sqlite") as store:
        return [list(store.combined()), store.summary()]


def model_folder(folder: Path) -> Path:
    from costmodel.codecs.grids import LogGrid
    from costmodel.model import checkpoint
    from costmodel.model.decoder import build, small_config
    from costmodel.model.heads import GridHead
    from costmodel.tokens import TextTokenizer

    place = folder / "model"
    if not place.is_dir():
        tokenizer = TextTokenizer.train(["int f() { return 1; }"], vocab_size=512)
        config = small_config(tokenizer.vocab_size, hidden_size=16, layers=1, heads=2)
        members = [
            checkpoint.Member(build(config, seed=i), GridHead(16, LogGrid(low=-4.0, high=4.0, bins=16)))
            for i in range(2)
        ]
        checkpoint.save(place, members, tokenizer, details={"spread": {"trusted": 1.0}})
    return place


def model_seed(name: str) -> Callable[[Path], list[bytes]]:
    return lambda folder: [(model_folder(folder) / name).read_bytes()]


def read_model(name: str) -> Callable[[Path, bytes], object]:
    def read(folder: Path, data: bytes) -> object:
        from costmodel.predictor import NeuralCostModel

        place = model_folder(folder)
        whole = (place / name).read_bytes()
        (place / name).write_bytes(data)
        try:
            return NeuralCostModel.from_pretrained(place)
        finally:
            (place / name).write_bytes(whole)

    return read


def shard_folder(folder: Path) -> Path:
    import numpy as np

    from costmodel.shards import Shards
    from costmodel.tokens import TextTokenizer
    from costmodel.train import Group

    place = folder / "shards"
    if not place.is_dir():
        tokenizer = TextTokenizer.train(["int f() { return 1; }"], vocab_size=512)
        group = Group([1, 2], [[3], [4]], [[5], [6, 7]], np.array([0.5, 1.0]), np.array([False, True]))
        Shards(tokenizer, [group], [[1, 2, 3]], {"a": 1}).save(place)
    return place


def read_shards(name: str) -> Callable[[Path, bytes], object]:
    def read(folder: Path, data: bytes) -> object:
        from costmodel.shards import Shards

        place = shard_folder(folder)
        (place / name).write_bytes(data)
        loaded = Shards.load(place)
        return list(loaded.groups), list(loaded.texts)

    return read


def read_source(language: str) -> Callable[[Path, bytes], object]:
    def read(folder: Path, data: bytes) -> object:
        (folder / "kernel").write_bytes(data)
        text = reading.source(folder / "kernel")
        return serialize.canonical_source(Kernel("k", language, text))  # type: ignore[arg-type]

    return read


def read_message(folder: Path, data: bytes) -> object:
    try:
        return Outcome.decode(channel.unpack(data))
    except (channel.Closed, KeyError, OverflowError, TypeError, ValueError) as error:  # what the worker catches
        raise UserError(type(error).__name__) from error


def training_seeds(folder: Path) -> list[bytes]:
    import torch

    from costmodel.model import checkpoint

    checkpoint.save_training(folder / "seed.safetensors", {"a": torch.ones(3)}, {"step": 1})
    return [(folder / "seed.safetensors").read_bytes()]


def read_training(folder: Path, data: bytes) -> object:
    from costmodel.model import checkpoint

    (folder / "read.safetensors").write_bytes(data)
    return checkpoint.load_training(folder / "read.safetensors")


def fixed(*seeds: bytes) -> Callable[[Path], list[bytes]]:
    return lambda folder: list(seeds)


READERS: dict[str, Reader] = {
    "kernel-tuner": Reader(fixed(as_json(KERNEL_TUNER)), read_record("k__A100.json")),
    "t4": Reader(fixed(as_json(T4)), read_record("k__A100.json")),
    "t1": Reader(fixed(as_json(T1)), read_beside("k__A100.t1.json", "k__A100.json", as_json(T4))),
    "triton": Reader(fixed(as_json(TRITON)), read_record("k__A100.autotune.json")),
    "helion": Reader(fixed(HELION), read_record("k__A100.csv")),
    "helion-run": Reader(fixed(HELION_RUN), read_beside("k.meta.jsonl", "k.csv", HELION)),
    "neusight": Reader(fixed(NEUSIGHT), read_record("table.csv")),
    "gzip": Reader(fixed(gzip.compress(as_json(KERNEL_TUNER))), read_record("k__A100.json.gz")),
    "parquet": Reader(parquet_seed("measurements.parquet"), read_parquet("measurements.parquet")),
    "parquet-kernels": Reader(parquet_seed("kernels.parquet"), read_parquet("kernels.parquet")),
    "store": Reader(store_seeds, read_store),
    "model-config": Reader(model_seed("config.json"), read_model("config.json")),
    "model-weights": Reader(model_seed("model.safetensors"), read_model("model.safetensors")),
    "model-tokenizer": Reader(model_seed("tokenizer.json"), read_model("tokenizer.json")),
    "training": Reader(training_seeds, read_training),
    "shards": Reader(
        lambda folder: [(shard_folder(folder) / "groups.parquet").read_bytes()], read_shards("groups.parquet")
    ),
    "shards-texts": Reader(
        lambda folder: [(shard_folder(folder) / "texts.parquet").read_bytes()], read_shards("texts.parquet")
    ),
    "source-cpp": Reader(fixed(CPP), read_source("cpp")),
    "source-cuda": Reader(fixed(CPP), read_source("cuda")),
    "source-triton": Reader(fixed(PYTHON), read_source("triton")),
    "python": Reader(fixed(PYTHON), lambda folder, data: workloads.triton_source(data.decode(errors="replace"))),
    "message": Reader(
        fixed(channel.pack(Outcome("ok", (1.0, 2.0), "", (("pass", 1.0),)).encode())), read_message
    ),
}  # fmt: skip


# ---- the process of one reader ----


def limit_memory(most_bytes: int = MEMORY_BYTES) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run_plain(reader: Reader, folder: Path, seconds: float, seed: int) -> dict[str, int]:
    """Until the time is over; a failure is told with the input that made it, and ends it."""
    counts = {"read": 0, "refused": 0}
    chance, seeds, end = random.Random(seed), reader.seeds(folder), time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutated(chance.choice(seeds), chance)
        with _kept(data):
            counts[outcome(reader, folder, data)] += 1
    return counts


@contextlib.contextmanager
def _kept(data: bytes) -> Iterator[None]:
    try:
        yield
    except BaseException:
        place = Path(tempfile.mkdtemp(prefix="costmodel-fuzz-")) / "input"
        place.write_bytes(data)
        traceback.print_exc()
        print(f"the input is kept in {place}", file=sys.stderr)
        os._exit(1)


def run_atheris(name: str, folder: Path, seconds: int) -> None:
    """Never returns: libFuzzer ends the process, and prints how many inputs it has tried."""
    import atheris

    reader, corpus = READERS[name], folder / "corpus"
    corpus.mkdir()
    for i, seed in enumerate(reader.seeds(folder)):
        (corpus / str(i)).write_bytes(seed)
    words, kept = folder / "words", tempfile.mkdtemp(prefix="costmodel-fuzz-")
    spelled = ["".join(map("\\x{:02x}".format, word)) for word in SPITE if len(word) < 64]
    words.write_text("".join(f'"{word}"\n' for word in spelled))
    options = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", f"-dict={words}", f"-artifact_prefix={kept}/",
               "-rss_limit_mb=0", "-print_final_stats=1", str(corpus)]  # fmt: skip
    instrument(atheris)

    def attempt(data: bytes) -> None:
        with _kept(bytes(data)):
            outcome(reader, folder, bytes(data))

    atheris.Setup([sys.argv[0], *options], attempt)
    atheris.Fuzz()


def instrument(atheris: object) -> None:
    """Count branches in the modules that read; they have been imported already."""
    from costmodel.published import entries, logs, spaces, streams, tables

    for module in (entries, logs, spaces, streams, tables, dataset.rows, dataset.bounded, reading, serialize, channel):
        for value in vars(module).values():
            if callable(value) and getattr(value, "__module__", "") == module.__name__ and hasattr(value, "__code__"):
                atheris.instrument_func(value)  # type: ignore[attr-defined]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seconds", type=float, default=60.0)
    options.add_argument("--reader", action="append", choices=sorted(READERS))
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--inside", choices=("plain", "atheris"), help=argparse.SUPPRESS)
    given = options.parse_args()
    names = given.reader or list(READERS)
    if given.inside:
        limit_memory()
        with tempfile.TemporaryDirectory(prefix="costmodel-fuzz-") as place:
            if given.inside == "atheris":
                run_atheris(names[0], Path(place), int(given.seconds))
            print(json.dumps(run_plain(READERS[names[0]], Path(place), given.seconds, given.seed)))
        return
    try:
        import atheris  # noqa: F401

        how = "atheris"
    except ImportError:
        how = "plain"
    total, failed = 0, []
    for name in names:
        command = [sys.executable, __file__, "--inside", how, "--reader", name, "--seconds",
                   str(max(1, int(given.seconds / len(names)))), "--seed", str(given.seed)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        said = done.stdout + done.stderr
        tried = re.search(r"number_of_executed_units: (\d+)", said)
        count = int(tried[1]) if tried else sum(json.loads(done.stdout).values()) if done.returncode == 0 else 0
        total += count
        print(f"{name:18} {count:9} inputs  {'nothing' if done.returncode == 0 else 'FAILED'}", flush=True)
        if done.returncode:
            failed.append(name)
            print(said[-3000:], file=sys.stderr)
    print(f"{total} inputs by {how}; {', '.join(failed) or 'no reader'} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
