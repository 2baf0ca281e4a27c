"""What several commands share: options, and how a device, a model, a store or a kernel is found from what was typed."""

from __future__ import annotations

import glob
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer

from costmodel import reading
from costmodel.records import UserError

if TYPE_CHECKING:
    from costmodel.predictor import NeuralCostModel
    from costmodel.records import Device, Measurement, Variant, Workload
    from costmodel.store import Store

GPU_LANGUAGES = ("triton", "cuda")
GIVE_DEVICE = "give --device and the name of a sheet such as H200"
COMPILE_INSTEAD = "`costmodel collect --offline --device H200` compiles without one"

Json = Annotated[bool, typer.Option("--json", help="End standard output with one JSON document.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
ModelFolder = Annotated[Path | None, typer.Option("--model", help="A model folder; the shipped model if left out.")]
StorePath = Annotated[
    str | None,
    typer.Option(
        "--store",
        help="Store of measurements: a file, or postgresql://USER@HOST/DATABASE; $COSTMODEL_STORE or one in your data "
        "folder if left out.",
    ),
]
KernelFile = Annotated[str, typer.Argument(help="A kernel: NAME.cpp, NAME.py or the name of a shipped one.")]
ProblemText = Annotated[
    str | None, typer.Option("--problem", help="A listed name, or sizes such as M=512,N=512; the first if left out.")
]
Readout = Annotated[
    str, typer.Option("--readout", help="The number read off a prediction: median, mean, mean-raw, relative or mode.")
]
DeviceName = Annotated[str | None, typer.Option("--device", help="A device sheet by name; this machine if left out.")]


Trust = Annotated[
    bool, typer.Option("--trust", help="Execute kernel files from outside your project; read them before.")
]


def device_named(name: str | None, language: str = "cpp", *, advice: str = GIVE_DEVICE) -> Device:
    """The sheet of that name; with none, this machine's CPU for C++ and its GPU for the languages of GPUs."""
    from costmodel import devices

    if name:
        return devices.find(name)
    if language not in GPU_LANGUAGES:
        return devices.detect("cpu")
    found = devices.detect()
    if found.kind == "cpu":
        raise UserError(f"got no GPU here, expected one for a {language} kernel; {advice}")
    return found


def model_from(folder: Path | None) -> NeuralCostModel:
    """Called after what the user typed has been read: this is where torch is imported, which takes seconds."""
    from costmodel.predictor import NeuralCostModel

    return NeuralCostModel.from_pretrained(folder)


def store_address(given: str | None) -> str:
    """What was given, what the environment says, or a file in the user's data folder."""
    address = given or os.environ.get("COSTMODEL_STORE")
    if not address:
        data = Path(os.environ.get("XDG_DATA_HOME", Path.home() / ".local" / "share"))
        address = str(data / "costmodel" / "store.sqlite")
    if "://" not in address:
        Path(address).parent.mkdir(parents=True, exist_ok=True)
    return address


def open_store(given: str | None) -> Store:
    from costmodel.store import Store

    return Store(store_address(given))


def existing(path: Path) -> Path:
    if str(path).startswith("postgresql"):  # its password is not for the screen
        raise UserError("got a database, expected a file; `costmodel store export FOLDER --store URL` writes a folder")
    if not path.exists():
        raise UserError(f"no file {path}; give a store or a folder of parquet that exists")
    if not path.is_dir():
        reading.regular(path, expected="a store, parquet or a record")
    return path


def compile_facts(language: str) -> ModuleType:
    """The collector that compiles kernels of a language for a device that need not be here."""
    from costmodel import workloads

    if language not in GPU_LANGUAGES:
        raise UserError(f"got a {language} kernel, expected a Triton or CUDA one to compile for a GPU")
    return workloads.load_module(workloads.shipped("collectors") / "compile_facts.py")


def tuning_records() -> ModuleType:
    """The collector of what others measured; collectors are loaded by path."""
    from costmodel import workloads

    return workloads.load_module(workloads.shipped("collectors") / "tuning_records.py")


@contextmanager
def told_warnings() -> Iterator[list[str]]:
    """What is warned of inside, as lines in the list, and on standard error once it ends well."""
    lines: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield lines
    lines += dict.fromkeys(str(warning.message) for warning in caught)
    for line in lines:
        print(f"costmodel: warning: {line}", file=sys.stderr)


def read_measurements(paths: Sequence[Path]) -> list[Measurement]:
    """As `read_everything`, without what was only compiled: it says nothing about latency and is no failure."""
    from costmodel.sittings import measured

    if not (found := measured(read_everything(paths))):
        raise UserError(f"got no measurement in {', '.join(map(str, paths))}; `costmodel collect` makes some")
    return found


def read_everything(paths: Sequence[Path]) -> list[Measurement]:
    """Stores, parquet and what others measured (see collectors/tuning_records.py), told apart by what they hold."""
    from costmodel.dataset import read_parquet
    from costmodel.sittings import combine
    from costmodel.store import Store

    found: list[Measurement] = []
    for path in paths:
        if existing(path).is_dir() or _begins(path, b"PAR1"):
            found += combine(read_parquet(path))
        elif _begins(path, b"SQLite format 3") or not path.stat().st_size:
            with Store(path) as store:
                found += store.combined()
        else:
            with told_warnings():
                found += combine(tuning_records().read(path))
    return found


def workloads_of(rows: Sequence[Measurement]) -> dict[str, Workload]:
    """The workloads of measured kernels that this project ships, where the recorded text is theirs."""
    found = {}
    for kernel in {m.variant.kernel for m in rows if m.variant.kernel.source is not None}:
        workload = shipped_workload(kernel.name, kernel.language, kernel.identity)
        if workload is not None:
            found[kernel.identity] = workload
    return found


def shipped_workload(name: str, language: str, identity: str) -> Workload | None:
    """The shipped kernel of this name and language whose text is the one that was recorded."""
    from costmodel import workloads

    if not list(workloads.shipped("kernels").glob(f"*/{glob.escape(name)}.*")):
        return None  # a table or a record may call its kernel anything, a file to execute among it
    for text in (name, f"{language}/{name}"):
        try:
            workload = workloads.load(text)
        except UserError:
            continue  # not one of ours
        if workload.kernel.identity == identity:
            return workload
    return None


def _begins(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def candidates_of(
    kernels: Sequence[str], problem: str | None, device: Device, *, trust: bool
) -> tuple[list[Variant], list[Workload]]:
    """All valid variants of the kernels on one problem; the kernels must compute the same operation."""
    from costmodel import workloads

    loaded = [workloads.load(name, trust=trust) for name in kernels]
    chosen = workloads.parse_problem(loaded[0], problem)
    for other in loaded[1:]:
        op = next(iter(other.problems.values())).op
        if op != chosen.op:
            raise UserError(f"got {other.kernel.name} which computes {op}, expected another source of {chosen.op}")
    candidates = [variant for workload in loaded for variant in workload.variants(chosen, device)]
    if not candidates:
        raise UserError(f"got no valid config of {loaded[0].kernel.name} on {chosen}; check the space's constraints")
    return candidates, loaded
