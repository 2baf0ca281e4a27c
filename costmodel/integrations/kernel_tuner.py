"""Kernel Tuner with our guarded search as its strategy.

    import kernel_tuner
    from costmodel.integrations.kernel_tuner import strategy

    results, environment = kernel_tuner.tune_kernel(
        "stencil", source, size, arguments, tune_params, lang="CUDA",
        strategy=strategy(), strategy_options={"max_fevals": 40},
        cache="stencil.json", simulation_mode=True,  # leave out where there is a GPU
    )

It takes Kernel Tuner's budgets, caches and restrictions as its own strategies do. Where there is no model that works,
one warning says so, and the search learns from its benchmarks alone.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from costmodel import devices, search
from costmodel.integrations.ranking import Guard, loaded, measurement
from costmodel.records import Config, CostModel, Kernel, Language, Problem, UserError, Variant

_LANGUAGES: dict[str, Language] = {
    "CUDA": "cuda", "CUPY": "cuda", "NVCUDA": "cuda", "HIP": "hip", "OPENCL": "opencl", "C": "cpp"
}  # fmt: skip


def strategy(
    *,
    device: str | None = None,
    model: str | Path | None = None,
    priors: Sequence[CostModel] | None = None,
    seed: int = 0,
) -> CostModelStrategy:
    """What `tune_kernel(strategy=...)` takes; works in its simulation mode too.

    device: a sheet's name; the one Kernel Tuner runs on if left out. priors: what ranks the configs; the model in the
    folder `model`, the shipped one if left out.
    """
    return CostModelStrategy(device, model, priors, seed)


class CostModelStrategy:
    """Kernel Tuner calls `tune`. A config that fails costs an evaluation, as in all of its strategies."""

    def __init__(
        self, device: str | None, model: str | Path | None, priors: Sequence[CostModel] | None, seed: int
    ) -> None:
        self.device, self.model, self.priors, self.seed = device, model, priors, seed

    def tune(self, searchspace: Any, runner: Any, tuning_options: Any) -> list[dict[str, Any]]:
        """Kernel Tuner's results in the order in which they were taken."""
        from kernel_tuner.strategies.common import CostFunc
        from kernel_tuner.util import StopCriterionReached

        target = devices.find(self.device or runner.dev.name)
        if tuning_options.objective not in ("time", ["time"]):
            raise UserError(f"got objective {tuning_options.objective}, expected 'time', which is what is predicted")
        candidates = _candidates(searchspace, runner)
        ask = Guard("the search learns from its benchmarks alone")
        told = ask(lambda: [prior.predict(candidates, target) for prior in self._priors()])
        tuner = search.Tuner(candidates, told or [], seed=self.seed)
        cost = CostFunc(searchspace, tuning_options, runner, scaling=False, snap=False)
        try:
            while batch := tuner.ask():
                configs = [tuple(value for _, value in variant.config.params) for variant in batch]
                times_ms = cost.eval_all(configs)
                tuner.tell([
                    measurement(variant, target, _microseconds(ms), failure="Kernel Tuner could not run it")
                    for variant, ms in zip(batch, times_ms, strict=True)
                ])  # fmt: skip
        except StopCriterionReached as reached:
            if tuning_options.verbose:
                print(reached)
        return cost.results

    def _priors(self) -> Sequence[CostModel]:
        return [loaded(self.model)] if self.priors is None else self.priors


def _candidates(searchspace: Any, runner: Any) -> list[Variant]:
    """The configs of a search space, as the model reads them. In simulation mode there is no text to read."""
    source, options = runner.kernel_source, runner.kernel_options
    language = _LANGUAGES.get(source.lang)
    if language is None:
        raise UserError(f"got a kernel in {source.lang}, expected one of {', '.join(_LANGUAGES)}")
    schema = tuple((name, tuple(values)) for name, values in searchspace.tune_params.items())
    text = None if getattr(runner, "simulation_mode", False) else source.get_kernel_string(0)
    kernel = Kernel(source.kernel_name, language, text, schema, "kernel_tuner")
    size = options.problem_size
    sizes = size if isinstance(size, list | tuple) else [size]
    named = tuple((f"size_{i}", value) for i, value in enumerate(sizes) if isinstance(value, int | float | str))
    problem = Problem(kernel.name, (), named, flops=0, bytes=0)
    names = list(searchspace.tune_params)
    return [Variant(kernel, problem, Config(tuple(zip(names, values, strict=True)))) for values in searchspace.list]


def _microseconds(time_ms: float) -> float:
    """Kernel Tuner's cost of a config that failed is the largest float, or no number."""
    return 1e3 * time_ms if time_ms < sys.float_info.max else math.inf
