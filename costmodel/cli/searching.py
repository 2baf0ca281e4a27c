"""Searching for the fastest config."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from costmodel.cli.shared import (
    COMPILE_INSTEAD,
    Json,
    ModelFolder,
    ProblemText,
    Seed,
    StorePath,
    Trust,
    candidates_of,
    device_named,
    model_from,
    open_store,
)
from costmodel.present import benchmark_counter, print_json, print_tuned, tuned_document


def tune(
    kernels: Annotated[list[str], typer.Argument(help="One kernel, or several sources of one operation.")],
    problem: ProblemText = None,
    budget: Annotated[str, typer.Option(help="Evaluations such as 40, or time such as 60s or 8m.")] = "40",
    model: ModelFolder = None,
    store: StorePath = None,
    seed: Seed = 0,
    html: Annotated[Path | None, typer.Option(help="The search as one page.")] = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Find the fastest config: rank with the model, benchmark a few in isolation, learn, repeat.

    Everything measured goes to the store at once; run again after a kill, it goes on where it was. What other devices
    have measured of the same kernel, where the store holds it, leads beside the model.

    Example: costmodel tune matmul --problem M=512,N=512 --budget 60s
    """
    from costmodel import baselines, search, workloads
    from costmodel.records import CostModel, Variant
    from costmodel.sittings import combine, measured

    limit = search.Budget.parse(budget)
    language = workloads.load(kernels[0], trust=trust).kernel.language
    target = device_named(None, language, advice=COMPILE_INSTEAD)
    candidates, loaded = candidates_of(kernels, problem, target, trust=trust)
    default = Variant(loaded[0].kernel, candidates[0].problem, loaded[0].default)
    collector = workloads.collector_of(language)
    prior = model_from(model)
    with open_store(store) as opened, collector.runner(target, workloads=loaded, record=opened.add) as runner:
        there = collector.stored(opened, device=target, kernels=[workload.kernel for workload in loaded])
        known = measured(combine(there))
        tables = baselines.NearestTable()
        for workload in loaded:
            everywhere = measured(opened.combined(kernel=workload.kernel.identity))
            tables.update([m for m in everywhere if m.device != target])
        priors: list[CostModel] = [tables, prior] if tables.knows(candidates[0]) else [prior]
        with benchmark_counter(limit.evaluations, quiet=as_json) as advance:
            result = search.tune(
                candidates, priors, runner, default=default, budget=limit, seed=seed, known=known, progress=advance
            )
    if html is not None:
        from costmodel import report

        report.write_html(report.tuned_html(result, default=default), html)
    document = tuned_document(result)
    if as_json:
        print_json(document)
    else:
        print_tuned(document)
