"""The command line: one command per verb. Heavy imports stand inside the commands, so that --help answers at once.

Exit codes: 0 done, 2 a mistake in what was given, 130 interrupted. With --json the last line of standard output is one
JSON document, and nothing else is written there.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from costmodel import __version__
from costmodel.present import (
    benchmark_counter,
    prediction_row,
    print_devices,
    print_json,
    print_predictions,
    print_tuned,
    progress,
    tuned_document,
)
from costmodel.records import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from costmodel.predictor import NeuralCostModel
    from costmodel.records import Device, Measurement, Variant, Workload
    from costmodel.store import Store

app = typer.Typer(
    help="Predict how long a kernel will run from its text, and benchmark ten candidates instead of a thousand.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
store_app = typer.Typer(help="List, join and export stores of measurements.", no_args_is_help=True)
app.add_typer(store_app, name="store")

Json = Annotated[bool, typer.Option("--json", help="End standard output with one JSON document.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
ModelFolder = Annotated[Path | None, typer.Option("--model", help="A model folder; the shipped model if left out.")]
StorePath = Annotated[
    Path | None,
    typer.Option("--store", help="Store of measurements; $COSTMODEL_STORE or one in your data folder if left out."),
]
KernelFile = Annotated[str, typer.Argument(help="A kernel: NAME.cpp, NAME.py or the name of a shipped one.")]
ProblemText = Annotated[
    str | None, typer.Option("--problem", help="A listed name, or sizes such as M=512,N=512; the first if left out.")
]
DeviceName = Annotated[str | None, typer.Option("--device", help="A device sheet by name; this machine if left out.")]


def main() -> None:
    """Entry point: a user's mistake is one line and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"costmodel: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except KeyboardInterrupt:
        print("costmodel: interrupted; what was measured is in the store", file=sys.stderr)
        raise SystemExit(130) from None


# -- what several commands share --------------------------------------------------------------------------------------


def _device(name: str | None) -> Device:
    from costmodel import devices

    return devices.find(name) if name else devices.detect("cpu")


def _model(folder: Path | None) -> NeuralCostModel:
    """Called after what the user typed has been read: this is where torch is imported, which takes seconds."""
    from costmodel.predictor import NeuralCostModel

    return NeuralCostModel.from_pretrained(folder)


def _store_path(path: Path | None) -> Path:
    if path is None and "COSTMODEL_STORE" in os.environ:
        path = Path(os.environ["COSTMODEL_STORE"])
    if path is None:
        data = Path(os.environ.get("XDG_DATA_HOME", Path.home() / ".local" / "share"))
        path = data / "costmodel" / "store.sqlite"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _open_store(path: Path | None) -> Store:
    from costmodel.store import Store

    return Store(_store_path(path))


def _existing(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"no file {path}; give a store or a folder of parquet that exists")
    return path


def _read_measurements(paths: Sequence[Path]) -> list[Measurement]:
    """Stores and parquet folders, told apart by what they are."""
    from costmodel.dataset import read_parquet
    from costmodel.sittings import combine
    from costmodel.store import Store

    found: list[Measurement] = []
    for path in paths:
        if _existing(path).is_dir() or path.suffix == ".parquet":
            found += combine(read_parquet(path))
        else:
            with Store(path) as store:
                found += store.combined()
    if not found:
        raise UserError(f"got no measurement in {', '.join(map(str, paths))}; `costmodel collect` makes some")
    return found


# -- looking around ---------------------------------------------------------------------------------------------------


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine offers: device, compiler, versions, and folders that shadow other packages.

    Example: costmodel doctor
    """
    from importlib.metadata import PackageNotFoundError, version

    from costmodel import devices
    from costmodel.measure.compiling import find_compiler

    facts: dict[str, Any] = {"costmodel": __version__, "python": sys.version.split()[0]}
    for package in ("torch", "triton", "transformers", "tree-sitter", "numpy", "pandas"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    device = devices.detect()
    facts |= {"device": device.name, "units": device.num_units, "peak_gb_per_s": device.peak_gb_per_s}
    try:
        facts["compiler"] = find_compiler().label
    except UserError as error:
        facts["compiler"] = str(error)
    shadows = [name for name in ("kernels", "collectors", "datasets") if Path(name, "__init__.py").exists()]
    facts["shadowing"] = f"{', '.join(shadows)} hide packages of the same name" if shadows else "none"
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        print(f"{name:14} {value}")


@app.command("devices")
def list_devices(as_json: Json = False) -> None:
    """List the device sheets, and the device at hand.

    Example: costmodel devices
    """
    import dataclasses

    from costmodel import devices as sheets

    rows = [sheets.detect(), *sheets.load_sheets().values()]
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
        return
    print_devices(rows)


@app.command()
def new(file: Annotated[Path, typer.Argument(help="The kernel to write: NAME.cpp.")]) -> None:
    """Write NAME.cpp and NAME.py to fill in: a small kernel that already runs, with its search space.

    Example: costmodel new axpy.cpp
    """
    from costmodel.template import write_template

    for path in write_template(file):
        print(f"wrote {path}")
    print(f"fill them in, then: costmodel tune {file}")


# -- measuring --------------------------------------------------------------------------------------------------------


@app.command()
def collect(
    kernels: Annotated[list[str] | None, typer.Argument(help="Kernels to run; all shipped ones if left out.")] = None,
    configs: Annotated[int | None, typer.Option(help="Configs per kernel, sampled; all if left out.")] = None,
    passes: Annotated[int, typer.Option(help="Shuffled passes over everything.")] = 2,
    budget: Annotated[str | None, typer.Option(help="Time such as 8m; to the end if left out.")] = None,
    store: StorePath = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Benchmark kernels into a store; what is in the store already is not taken again.

    Example: costmodel collect matmul --configs 40 --budget 2m
    """
    from costmodel import devices, workloads
    from costmodel.search import Budget

    seconds = Budget.parse(budget).seconds if budget else None
    if budget and seconds is None:
        raise UserError(f"got budget {budget!r}, expected a time such as 60s or 8m")
    collector = workloads.load_module(workloads.shipped("collectors") / "cpp_kernels.py")
    loaded = [workloads.load(name) for name in kernels or workloads.names("cpp")]
    target = devices.detect("cpu")
    counts: dict[str, int] = {}
    with _open_store(store) as opened:
        request = collector.CollectRequest(
            workloads=tuple(loaded), configs_per_kernel=configs, passes=passes, seed=seed, budget_s=seconds,
            device=target, skip=collector.already(collector.stored(opened, device=target)),
        )  # fmt: skip
        total = len(collector.choose(request, target)) * passes
        for measurement in progress(collector.collect(request), "measuring", total=total, quiet=as_json):
            opened.add([measurement])
            counts[measurement.status] = counts.get(measurement.status, 0) + 1
    document = {"measured": counts, "store": str(_store_path(store))}
    if as_json:
        print_json(document)
    else:
        print(f"measured {counts or 'nothing new'} into {document['store']}")


@store_app.command("ls")
def store_ls(store: StorePath = None, as_json: Json = False) -> None:
    """List what a store holds, by kernel, problem, device and status.

    Example: costmodel store ls --store runs/cpu.sqlite
    """
    with _open_store(store) as opened:
        table = opened.summary()
    if as_json:
        print_json(json.loads(table.to_json(orient="records")))
    else:
        print(table.to_string(index=False) if len(table) else "empty")


@store_app.command("merge")
def store_merge(
    sources: Annotated[list[Path], typer.Argument(help="Stores to read.")],
    store: StorePath = None,
    as_json: Json = False,
) -> None:
    """Add what other stores hold to this one; twice is the same as once.

    Example: costmodel store merge a.sqlite b.sqlite --store all.sqlite
    """
    with _open_store(store) as opened:
        added = {str(path): opened.merge(_existing(path)) for path in sources}
    if as_json:
        print_json({"added": added, "store": str(_store_path(store))})
    else:
        for path, count in added.items():
            print(f"{count} new from {path}")


@store_app.command("export")
def store_export(
    folder: Annotated[Path, typer.Argument(help="Folder for the parquet files and the card.")],
    store: StorePath = None,
    as_json: Json = False,
) -> None:
    """Write a store as parquet with a card.

    Example: costmodel store export datasets/mine --store runs/cpu.sqlite
    """
    with _open_store(store) as opened:
        if not opened.identities():
            raise UserError(f"got an empty store {_store_path(store)}; `costmodel collect` fills it")
        rows = opened.export(folder)
    if as_json:
        print_json({"rows": rows, "folder": str(folder)})
    else:
        print(f"wrote {rows} sittings to {folder}")


# -- the model --------------------------------------------------------------------------------------------------------


@app.command()
def train(
    data: Annotated[
        list[Path] | None, typer.Option("--data", help="Stores or parquet folders; repeat for several.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write the model to.")] = Path("runs/model"),
    objective: Annotated[
        str,
        typer.Option(help="next-token reads the sources, latency learns the numbers, both does one after the other."),
    ] = "both",
    start: Annotated[Path | None, typer.Option("--from", help="Model folder to start from.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Latency steps per member; as the shipped model's if left out.")
    ] = None,
    members: Annotated[int, typer.Option(help="Networks of different seeds, averaged.")] = 1,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train a model on measurements; run again after a kill, it goes on where it was.

    Example: costmodel train --data datasets/cpu-cpp --out runs/mine --members 2
    """
    from costmodel import workloads

    if objective not in ("both", "next-token", "latency"):
        raise UserError(f"got objective {objective!r}, expected both, next-token or latency")
    measurements = _read_measurements(data or [workloads.shipped("datasets") / "cpu-cpp"])
    begin = _model(start) if start else None
    from costmodel.recipe import Recipe, fit

    shipped = Recipe()
    recipe = Recipe(
        members=members,
        steps=0 if objective == "next-token" else steps or shipped.steps,
        reading_steps=0 if objective == "latency" else shipped.reading_steps,
        seed=seed,
    )
    model, stages = fit(
        measurements, recipe, start=begin, checkpoints=out / "training", jobs=min(members, os.cpu_count() or 1)
    )
    model.save_pretrained(out)
    document = {
        "model": str(out),
        "rows": len(measurements),
        "members": members,
        "stages": [
            {"objective": s.objective, "steps": s.steps, "seconds": s.seconds, "losses": s.losses} for s in stages
        ],
    }
    if as_json:
        print_json(document)
    else:
        print(f"wrote {out}, trained on {len(measurements)} variants in {sum(s.seconds for s in stages):.0f} s")


@app.command()
def evaluate(
    data: Annotated[list[Path], typer.Option("--data", help="Stores or parquet folders; repeat for several.")],
    model: ModelFolder = None,
    by: Annotated[str, typer.Option(help="kernel, problem, device or space: a row each.")] = "kernel",
    as_json: Json = False,
) -> None:
    """Compare predictions with what was measured.

    Example: costmodel evaluate --data datasets/cpu-cpp --by kernel
    """
    from costmodel import evaluate as evaluation

    measurements = [m for m in _read_measurements(data) if m.status == "ok"]
    predictions = evaluation.predict_all(_model(model), measurements)
    table = evaluation.evaluate(measurements, predictions, by=by)  # type: ignore[arg-type]
    if as_json:
        print_json({"rows": json.loads(table.to_json(orient="records"))})
    else:
        print(table.to_string(index=False, float_format=lambda x: f"{x:.3f}"))


@app.command()
def predict(
    kernel: KernelFile,
    problem: ProblemText = None,
    config: Annotated[str | None, typer.Option(help="NAME=VALUE,... over the default config.")] = None,
    device: DeviceName = None,
    model: ModelFolder = None,
    as_json: Json = False,
) -> None:
    """Say how long one config would run, without compiling it.

    Example: costmodel predict matmul --problem M=512,N=512 --config THREADS=2
    """
    from costmodel import workloads
    from costmodel.records import Variant

    workload = workloads.load(kernel)
    chosen = workloads.parse_problem(workload, problem)
    variant = Variant(workload.kernel, chosen, workloads.parse_config(workload, config))
    target = _device(device)
    answer = _model(model).predict([variant], target)[0]
    rows = [prediction_row(variant, answer)]
    if as_json:
        print_json(rows)
    else:
        print_predictions(rows, f"{workload.kernel.name} {chosen}")


@app.command()
def rank(
    kernels: Annotated[list[str], typer.Argument(help="One kernel, or several sources of one operation.")],
    problem: ProblemText = None,
    top: Annotated[int, typer.Option(help="How many to list.")] = 10,
    device: DeviceName = None,
    model: ModelFolder = None,
    as_json: Json = False,
) -> None:
    """Order the configs of a kernel, or of several sources, by predicted latency; nothing is compiled.

    Example: costmodel rank matmul matmul__packed --problem M=512,N=512 --top 5
    """
    target = _device(device)
    candidates, _ = _candidates(kernels, problem, target)
    predictions = _model(model).predict(candidates, target)
    order = sorted(range(len(candidates)), key=lambda i: predictions[i].median_us)[:top]
    rows = [prediction_row(candidates[i], predictions[i]) for i in order]
    if as_json:
        print_json(rows)
    else:
        print_predictions(rows, f"{len(candidates)} candidates, {candidates[0].problem}")


def _candidates(kernels: Sequence[str], problem: str | None, device: Device) -> tuple[list[Variant], list[Workload]]:
    """All valid variants of the kernels on one problem; the kernels must compute the same operation."""
    from costmodel import workloads

    loaded = [workloads.load(name) for name in kernels]
    chosen = workloads.parse_problem(loaded[0], problem)
    for other in loaded[1:]:
        op = next(iter(other.problems.values())).op
        if op != chosen.op:
            raise UserError(f"got {other.kernel.name} which computes {op}, expected another source of {chosen.op}")
    candidates = [variant for workload in loaded for variant in workload.variants(chosen, device)]
    if not candidates:
        raise UserError(f"got no valid config of {loaded[0].kernel.name} on {chosen}; check the space's constraints")
    return candidates, loaded


@app.command()
def tune(
    kernels: Annotated[list[str], typer.Argument(help="One kernel, or several sources of one operation.")],
    problem: ProblemText = None,
    budget: Annotated[str, typer.Option(help="Evaluations such as 40, or time such as 60s or 8m.")] = "40",
    model: ModelFolder = None,
    store: StorePath = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Find the fastest config: rank with the model, benchmark a few in isolation, learn, repeat.

    Everything measured goes to the store at once; run again after a kill, it goes on where it was.

    Example: costmodel tune matmul --problem M=512,N=512 --budget 60s
    """
    from costmodel import search, workloads
    from costmodel.records import Variant
    from costmodel.sittings import combine

    target, limit = _device(None), search.Budget.parse(budget)
    candidates, loaded = _candidates(kernels, problem, target)
    default = Variant(loaded[0].kernel, candidates[0].problem, loaded[0].default)
    collector = workloads.load_module(workloads.shipped("collectors") / "cpp_kernels.py")
    prior = _model(model)
    with _open_store(store) as opened, collector.runner(target, workloads=loaded, record=opened.add) as runner:
        known = combine(collector.stored(opened, device=target, kernels=[workload.kernel for workload in loaded]))
        with benchmark_counter(limit.evaluations, quiet=as_json) as advance:
            result = search.tune(
                candidates, [prior], runner, default=default, budget=limit, seed=seed, known=known, progress=advance
            )
    document = tuned_document(result)
    if as_json:
        print_json(document)
    else:
        print_tuned(document)
