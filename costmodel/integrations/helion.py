"""Helion's autotuner with our model: it seeds the search, and it selects which proposals are worth a benchmark.

    import os
    import helion.autotuner
    from costmodel.integrations.helion import register

    register(device="H200")
    os.environ["HELION_AUTOTUNER"] = "CostModel"  # what @helion.kernel then tunes with

    best = helion.autotuner.autotune(tunables, compile_fn, args, algorithm="CostModel")  # kernels that are not Helion's

It is Helion's default search (LFBOTreeSearch) with two steps changed. To the initial population come the best predicted
of a pool of random configs; and of the neighbours that are proposed later, our posterior (predictions corrected by all
benchmarks so far) chooses in place of a forest that knows the benchmarks alone. It never fails a tuning: whatever goes
wrong, Helion goes on by itself, and one warning says why. Checked with Helion 1.5.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from costmodel.integrations.ranking import Guard, Model, best_first, inputs, loaded, measurement, sheet
from costmodel.records import Config, Device, Kernel, Prediction, Problem, Scalar, Variant
from costmodel.search import Tuner
from costmodel.workloads import triton_source

NAME = "CostModel"
HINTS = ("range_", "indexing", "atomic_indexing", "load_eviction_policies", "loop_orders")  # one each loop or load
UNSET = "unset"  # what a config leaves out


def register(*, device: Device | str | None = None, model: Model = None, pool: int = 512, seeds: int = 16) -> type:
    """Make the search known to Helion as "CostModel", and return its class.

    device: a sheet or its name; this machine's GPU if left out. model: a model or its folder; the shipped one if left
    out. pool: how many random configs are ranked; the `seeds` best are benchmarked first.
    """
    from helion.autotuner import search_algorithms

    search: type = type(NAME, (_search_class(),), {"device": device, "model": model, "pool": pool, "seeds": seeds})
    search_algorithms[NAME] = search
    return search


@functools.cache
def _search_class() -> type:
    from helion.autotuner import LFBOTreeSearch

    class Search(LFBOTreeSearch):
        device: Device | str | None
        model: Model
        pool: int
        seeds: int

        @functools.cached_property
        def guard(self) -> Guard:
            return Guard("Helion searches by itself")

        def _autotune_seed_configs(self) -> Sequence[Any]:
            return (*super()._autotune_seed_configs(), *self.best_of_pool)

        @functools.cached_property
        def best_of_pool(self) -> list[Any]:
            return self.guard(self.rank_pool) or []

        def rank_pool(self) -> list[Any]:
            configs = list(self.variant_of)
            order = best_first([read(v) for v in self.variant_of.values()], sheet(self.device), self.model)
            return [configs[i] for i in order[: self.seeds]]

        @functools.cached_property
        def variant_of(self) -> dict[Any, Variant]:
            """The pool; what is proposed later joins it, as the same kernel."""
            pool = list(dict.fromkeys(self.config_gen.random_config() for _ in range(self.pool)))
            return dict(zip(pool, variants(self.kernel, self.args, pool), strict=True))

        @functools.cached_property
        def prediction_of(self) -> dict[Variant, Prediction]:
            return {}

        def _surrogate_select(self, candidates: list[Any], n_sorted: int) -> list[Any]:
            picked = self.guard(lambda: self.pick(candidates, n_sorted)) if n_sorted > 0 and candidates else None
            return picked or super()._surrogate_select(candidates, n_sorted)

        def pick(self, candidates: list[Any], count: int) -> list[Any]:
            told = {m.config: ms for m, ms in zip(self._train_members, self.train_y, strict=True) if m is not None}
            like = next(iter(self.variant_of.values()))
            for config in (*told, *(member.config for member in candidates)):
                self.variant_of.setdefault(config, replace(like, config=_config(config, like.kernel)))
            measured = {self.variant_of[config]: ms for config, ms in told.items()}
            members = {self.variant_of[member.config]: member for member in candidates}
            asked, device = list(dict.fromkeys((*measured, *members))), sheet(self.device)
            new = [variant for variant in asked if variant not in self.prediction_of]
            told_of = loaded(self.model).predict([read(variant) for variant in new], device)
            self.prediction_of.update(zip(new, told_of, strict=True))
            tuner = Tuner(asked, [[self.prediction_of[variant] for variant in asked]], seed=len(told))
            failure = "Helion could not run it"
            tuner.tell([measurement(variant, device, 1e3 * ms, failure=failure) for variant, ms in measured.items()])
            return [members[variant] for variant in tuner.ask(count)]

        def _algorithm_cache_policy(self) -> dict[str, object]:
            ours = [str(self.device), str(self.model), self.pool, self.seeds]
            return {**super()._algorithm_cache_policy(), "costmodel": ours}

    return Search


def variants(kernel: Any, args: Sequence[Any], configs: Sequence[Any]) -> list[Variant]:
    """Helion's configs of a bound kernel, as the model reads them: the Triton text of the default config, without the
    block sizes, which are the config's. Of a kernel that is not Helion's there is no text."""
    settings = [_settings(config) for config in configs]
    names = list(dict.fromkeys(name for setting in settings for name in setting))
    schema = {name: tuple(dict.fromkeys(setting.get(name, UNSET) for setting in settings)) for name in names}
    varied = tuple((name, values) for name, values in schema.items() if len(values) > 1)
    code = kernel.to_code(kernel.config_spec.default_config())
    text = re.sub(r"(?m)^_BLOCK_SIZE_\d+ = .*\n+", "", triton_source(code)) if code else None
    name = getattr(getattr(kernel, "kernel", None), "name", "external")
    made = Kernel(name, "triton", text, varied, "helion")
    problem = Problem(
        name,
        inputs(args),
        tuple((f"arg_{i}", value) for i, value in enumerate(args) if isinstance(value, int | float | str)),
        flops=0,
        bytes=0,
    )
    return [Variant(made, problem, _config(config, made)) for config in configs]


def read(variant: Variant) -> Variant:
    """Without the hints, of which a config has a score: spelled out they cost four times as much as all else, and no
    training text has them. What they change the search learns from its benchmarks."""
    kept = tuple(pair for pair in variant.kernel.schema if not pair[0].startswith(HINTS))
    params = tuple(pair for pair in variant.config.params if not pair[0].startswith(HINTS))
    return replace(variant, kernel=replace(variant.kernel, schema=kept), config=Config(params))


def _config(config: Any, kernel: Kernel) -> Config:
    settings = _settings(config)
    return Config(tuple((name, settings.get(name, UNSET)) for name, _ in kernel.schema))


def _settings(config: Any) -> dict[str, Scalar]:
    """Flat, with the names that the text has: block_sizes=[32, 64] is _BLOCK_SIZE_0=32, _BLOCK_SIZE_1=64."""
    flat: dict[str, Scalar] = {}
    for name, value in config.config.items():
        stem = "_BLOCK_SIZE" if name == "block_sizes" else name
        for i, one in enumerate(value if isinstance(value, list) else [value]):
            key = f"{stem}_{i}" if isinstance(value, list) else stem
            flat[key] = one if isinstance(one, int | float | str) else str(one)
    return flat
