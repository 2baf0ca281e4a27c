"""What was measured, and how good a model's predictions of it are, as one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from costmodel.cli.shared import Json, ModelFolder, StorePath, model_from, open_store, read_measurements, workloads_of
from costmodel.present import print_json, progress
from costmodel.records import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from costmodel.predictor import NeuralCostModel
    from costmodel.records import Measurement, Prediction


def report(
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", help="Stores, parquet folders or others' records; repeat for several. Else --store."),
    ] = None,
    store: StorePath = None,
    model: ModelFolder = None,
    predict: Annotated[bool, typer.Option(help="Ask the model about every config.")] = True,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    as_json: Json = False,
) -> None:
    """Write what was measured as one HTML page: predictions against it, and kernel by kernel where fast configs lie.

    The page opens without a network, at a desk and on a phone. Nothing is run.

    Example: costmodel report --data datasets/cpu-cpp --out report.html
    """
    from costmodel import report as reporting
    from costmodel.report.page import counted

    rows = _measurements(data, store)
    fine = [m for m in rows if m.status == "ok"]
    loaded = model_from(model) if predict and fine else None
    told = _predictions(loaded, fine, quiet=as_json) if loaded else None
    page = reporting.measured_html(
        rows,
        title=f"Measured kernels, {', '.join(path.name for path in data)}" if data else "Measured kernels",
        defaults={identity: workload.default for identity, workload in workloads_of(rows).items()},
        predictions=told,
        notes=_seen(loaded, fine) if loaded else (),
    )
    reporting.write_html(page, out)
    if as_json:
        print_json({"html": str(out), "rows": len(rows), "predicted": len(told or ()), "bytes": len(page.encode())})
    else:
        print(f"wrote {out}, {counted(len(rows), 'measurement')}, {len(page.encode()) / 1e3:.0f} kB")


def _measurements(data: Sequence[Path] | None, store: str | None) -> list[Measurement]:
    from costmodel.sittings import measured

    if data:
        if store:
            raise UserError("got --data beside --store, expected one of them; --data takes a store's file too")
        return read_measurements(data)
    with open_store(store) as opened:
        rows = measured(opened.combined())
    if not rows:
        raise UserError("got no measurement in the store; `costmodel tune` or `costmodel collect` makes some")
    return rows


def _predictions(model: NeuralCostModel, rows: Sequence[Measurement], *, quiet: bool) -> list[Prediction]:
    """In the order of the rows; asked space by space, which is how the model shares its work."""
    from costmodel.dataset import space_key
    from costmodel.uncertainty import predict_all

    spaces: dict[object, list[int]] = {}
    for place, row in enumerate(rows):
        spaces.setdefault(space_key(row), []).append(place)
    found: dict[int, Prediction] = {}
    for places in progress(spaces.values(), "predicting", total=len(spaces), quiet=quiet):
        found.update(zip(places, predict_all(model, [rows[place] for place in places]), strict=True))
    return [found[place] for place in range(len(rows))]


def _seen(model: NeuralCostModel, rows: Sequence[Measurement]) -> list[str]:
    """Whether the model was trained on these kernels and devices: then its figures prove nothing."""
    from costmodel.report.page import counted

    kernels = {m.variant.kernel.identity for m in rows}
    known = model.familiarity
    seen = {m.variant.kernel.identity for m in rows if known and known.measured(m.variant.kernel, m.device)}
    if not seen:
        return ["The model has seen none of these kernels on these devices."]
    return [
        f"The model was trained on {len(seen)} of {counted(len(kernels), 'kernel')} here on their device, so what the "
        "page says of predictions there is no proof."
    ]
