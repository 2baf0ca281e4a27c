"""One line in `triton.autotune`: the model ranks the configs, and the few best are benchmarked.

    import triton
    import triton.language as tl
    from costmodel.integrations.triton import prune

    CONFIGS = [
        triton.Config({"BLOCK": block}, num_warps=warps) for block in (128, 256, 512, 1024) for warps in (1, 2, 4, 8)
    ]

    @triton.autotune(configs=CONFIGS, key=["n"], prune_configs_by=prune(top_k=4))
    @triton.jit
    def double(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
        offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + offset, mask=offset < n)
        tl.store(y_ptr + offset, 2 * x, mask=offset < n)

For a kernel that one does not own: `install(kernel, top_k=4)`. Either works on Triton 3.6 to 3.9 and never fails a
launch: whatever goes wrong, all configs are benchmarked as ever, and one warning says why.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from costmodel import devices
from costmodel.integrations.ranking import Guard, Model, best_first, inputs, sheet, within
from costmodel.records import Config, Kernel, Measurement, Problem, Scalar, Timing, Variant
from costmodel.table_formats import TRITON_OPTIONS
from costmodel.workloads import triton_source

FAILED = "Triton's autotuner could not compile or launch it"
DO_BENCH = Timing(cache="cold", warmup_us=25e3, min_samples=1, relative_error=0.05)  # triton.testing.do_bench's


def prune(
    *, top_k: int = 4, device: str | None = None, model: Model = None, patience_s: float = 30.0
) -> dict[str, Pruner]:
    """What `triton.autotune(prune_configs_by=...)` takes.

    top_k: how many configs are benchmarked. From 2 on the first one listed, the default, is among them; with 1 nothing
    is compared, and Triton 3.9 does not even benchmark.
    device: a sheet's name; this machine's GPU if left out. model: a model or its folder; the shipped one if left out.
    patience_s: how long ranking may take, loading included.
    """
    return {"early_config_prune": Pruner(top_k, device, model, patience_s)}


def install(kernel: Any, *, store: str | Path | None = None, **options: Any) -> None:
    """Prune an autotuned kernel as it stands; options as of `prune`.

    store: a store of measurements that is told what each tuning benchmarked.
    """
    kernel.early_config_prune = prune(**options)["early_config_prune"]
    if store is not None:
        kernel.run = _recorded(kernel, kernel.run, Path(store))


class Pruner:
    """Triton's `early_config_prune`: (configs, named_args, **launch) -> the configs to benchmark, best first."""

    def __init__(self, top_k: int, device: str | None, model: Model, patience_s: float) -> None:
        self.top_k, self.device, self.model, self.patience_s = top_k, device, model, patience_s
        self.guard = Guard("all configs are benchmarked")

    def __call__(self, configs: list[Any], named_args: dict[str, Any], **launch: Any) -> list[Any]:
        if len(configs) <= self.top_k:
            return configs
        tuner = sys._getframe(1).f_locals.get("self")  # Triton does not tell which kernel it is
        ask = functools.partial(self.rank, tuner, configs, {**named_args, **launch})
        order = self.guard(lambda: within(self.patience_s, ask, f"ranking {len(configs)} configs"))
        if order is None:
            return configs
        kept = order[: self.top_k]
        if self.top_k > 1 and 0 not in kept:
            kept[-1] = 0
        return [configs[i] for i in kept]

    def rank(self, tuner: Any, configs: list[Any], arguments: dict[str, Any]) -> list[int]:
        """Places in `configs`, the fastest predicted first."""
        return best_first(variants(tuner, configs, arguments), sheet(self.device), self.model)


def variants(tuner: Any, configs: Sequence[Any], arguments: dict[str, Any]) -> list[Variant]:
    """The configs of an autotuned kernel on its arguments, as the model reads them."""
    settings = [_settings(config) for config in configs]
    names = list(settings[0])
    if any(list(other) != names for other in settings):
        raise ValueError("its configs set different names")
    schema = tuple((name, tuple(dict.fromkeys(setting[name] for setting in settings))) for name in names)
    source = "\n\n".join(dict.fromkeys(_sources(tuner.base_fn)))
    kernel = Kernel(tuner.base_fn.__name__, "triton", source, schema)
    known = {name: arguments[name] for name in tuner.arg_names if name in arguments}
    problem = Problem(
        kernel.name,
        inputs(known.values()),
        tuple((name, value) for name, value in known.items() if isinstance(value, int | float | str)),
        flops=0,
        bytes=0,
    )
    return [Variant(kernel, problem, Config(tuple(setting.items()))) for setting in settings]


def _settings(config: Any) -> dict[str, Scalar]:
    options = {name: getattr(config, name, None) for name in TRITON_OPTIONS}
    given = {**config.kwargs, **{name: value for name, value in options.items() if value is not None}}
    return {name: value if isinstance(value, int | float | str) else str(value) for name, value in given.items()}


def _sources(function: Any) -> Iterator[str]:
    """The text of a kernel, then of the jit functions that it calls, their own among them."""
    yield triton_source(textwrap.dedent(inspect.getsource(function)))
    for name in function.__code__.co_names:
        called = getattr(function.__globals__.get(name), "fn", None)
        if inspect.isfunction(called) and not called.__module__.startswith("triton.") and called is not function:
            yield from _sources(called)


# ------------------------------------------------------------------------------------------------------------ feedback


def _recorded(kernel: Any, run: Any, store: Path) -> Any:
    """`kernel.run` that stores what a tuning benchmarked, once it is over."""

    @functools.wraps(run)
    def wrapped(*args: Any, **launch: Any) -> Any:
        before = getattr(kernel, "configs_timings", None)
        result = run(*args, **launch)
        timings: dict[Any, Any] = getattr(kernel, "configs_timings", None) or {}
        if timings and timings is not before:
            try:
                arguments = {**dict(zip(kernel.arg_names, args, strict=False)), **launch}
                _store(store, variants(kernel, list(timings), arguments), list(timings.values()))
            except Exception as error:
                # as above: what is wrong with the store is no reason to fail the launch
                warnings.warn(f"costmodel stores nothing of this tuning: {error}", stacklevel=2)
        return result

    return wrapped


def _store(path: Path, tuned: Sequence[Variant], timings_ms: Sequence[Any]) -> None:
    """Triton's timings are median, 20 % and 80 % quantile in ms, infinite where a config failed. They are of the GPU at
    hand, whichever one the configs were ranked for."""
    import triton

    from costmodel.store import Store

    device = devices.detect("cuda")
    toolchain = (("triton", triton.__version__), ("timer", "triton.testing.do_bench"))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    rows = []
    for variant, told in zip(tuned, timings_ms, strict=True):
        samples = tuple(sorted(1e3 * ms for ms in (told if isinstance(told, Sequence) else [told])))
        row = Measurement(variant, device, DO_BENCH, toolchain, "launch_error", collected_at=now, error=FAILED)
        rows.append(replace(row, status="ok", samples_us=samples, error="") if samples[-1] < math.inf else row)
    with Store(path) as opened:
        opened.add(rows)
