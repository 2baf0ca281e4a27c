"""torch.compile's max-autotune with fewer templates: the model ranks the configs before any code is written for them.

    import torch
    from costmodel.integrations import inductor

    pruning = inductor.install(top_k=4, device="H200")

    @torch.compile(options={"max_autotune": True, "max_autotune_gemm_backends": "ATEN,TRITON"})
    def product(x, weight):
        return x @ weight

    product(x, weight)
    table = pruning.lookup_table()  # JSON; torch._inductor.config.lookup_table.table = table leaves no choice elsewhere

Of every matrix product the library's call, what is no Triton template, and Inductor's first config are kept as ever.
Run on torch 2.13. It never fails a compilation: whatever goes wrong, every choice is kept, and one warning
says why.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costmodel.integrations.inductor_table import LookupTable
from costmodel.integrations.ranking import Guard, Model, best_first, sheet, spec, within
from costmodel.records import Config, Device, Kernel, Problem, Scalar, Variant
from costmodel.workloads import triton_source


@dataclass(slots=True)
class _Pick:
    is_triton: bool
    entry: dict[str, Scalar]
    ms: float = math.inf  # until it is measured


def install(
    *, top_k: int = 4, device: Device | str | None = None, model: Model = None, patience_s: float = 30.0
) -> Any:
    """Prune in every compilation that this process starts from now on. Returns the handler, which has `lookup_table()`.

    top_k: how many configs of Triton templates are kept for one operation, Inductor's first among them.
    device, model, patience_s: as of `costmodel.integrations.triton.prune`.
    """
    from torch._inductor import config, select_algorithm
    from torch._inductor.virtualized import V

    handler = _handler_class()(top_k, device, model, patience_s)
    V.set_choices_handler(handler)  # this thread's
    if hasattr(config, "inductor_choices_class"):
        config.inductor_choices_class = lambda: handler  # that of threads to come, and part of what caches are keyed by
    select_algorithm.add_feedback_saver(lambda timings, *others: handler.measured(timings))
    return handler


@functools.cache
def _handler_class() -> type:
    from torch._inductor.choices import InductorChoices
    from torch._inductor.lookup_table import LookupTableChoices

    class Pruning(InductorChoices):
        def __init__(self, top_k: int, device: Device | str | None, model: Model, patience_s: float) -> None:
            self.top_k, self.device, self.model, self.patience_s = top_k, device, model, patience_s
            self.guard = Guard("all choices are kept")
            self._picks: dict[str, list[_Pick]] = {}  # by the lookup table's key, the likeliest first

        def uuid(self) -> str:
            return f"costmodel.integrations.inductor {self.top_k} {self.device} {self.model}"

        def _finalize_template_configs(
            self, template_choices: Any, kernel_inputs: Any, templates: Any, op_name: str, kwarg_overrides: Any = None
        ) -> list[Any]:
            every = super()._finalize_template_configs(
                template_choices, kernel_inputs, templates, op_name, kwarg_overrides
            )
            kept = self.guard(lambda: self.prune(every, kernel_inputs, op_name)) or every
            if key := LookupTableChoices().make_lookup_key(kernel_inputs, op_name):
                self._picks[key] = [_Pick(_is_triton(choice), _entry(choice)) for choice in kept]
                for choice, pick in zip(kept, self._picks[key], strict=True):
                    choice.annotations["costmodel"] = pick
            return [choice for choice in every if choice in kept]  # Inductor's first stays the first

        def prune(self, every: list[Any], inputs: Any, op: str) -> list[Any]:
            """The choices to keep, the likeliest first."""
            ranked = [choice for choice in every if _is_triton(choice)]
            if len(ranked) <= self.top_k:
                return every
            asked, device = variants(ranked, inputs, op), sheet(self.device)
            ask = functools.partial(best_first, asked, device, self.model)
            order = within(self.patience_s, ask, f"ranking {len(asked)} configs")[: self.top_k]
            if 0 not in order:
                order[-1] = 0
            return [ranked[i] for i in order] + [choice for choice in every if not _is_triton(choice)]

        def measured(self, timings: Mapping[Any, float]) -> None:
            """What autotuning told of the choices, in milliseconds."""
            for caller, ms in timings.items():
                if pick := getattr(caller, "annotations", {}).get("costmodel"):
                    pick.ms = ms

        def lookup_table(self, *, top: int = 1) -> LookupTable:
            """For `torch._inductor.config.lookup_table.table`: the `top` fastest measured of each operation that was
            compiled; where nothing was, the library's call and the `top` likeliest configs."""
            table: LookupTable = {}
            for key, picks in self._picks.items():
                told = sorted((pick for pick in picks if pick.ms < math.inf), key=lambda pick: pick.ms)[:top]
                likely = [pick for pick in picks if pick.is_triton][:top]
                table[key] = [p.entry for p in told or [p for p in picks if not p.is_triton] + likely]
            return table

    return Pruning


def variants(choices: Sequence[Any], inputs: Any, op: str) -> list[Variant]:
    """Inductor's KernelTemplateChoices of one operation, as the model reads them: the text of each template is
    that written for its first config, without the constants that the others set otherwise."""
    problem = _problem(inputs, op)
    kernels: dict[str, Kernel] = {}
    for choice in choices:
        if choice.template.uid not in kernels:
            settings = [_settings(c) for c in choices if c.template.uid == choice.template.uid]
            schema = {name: tuple(dict.fromkeys(s.get(name, 0) for s in settings)) for name in settings[0]}
            varied = {name: values for name, values in schema.items() if len(values) > 1}
            text = re.sub(rf"(?m)^\s*({'|'.join(varied)})\s*:\s*tl\.constexpr\s*=.*\n", "", _text(choice, inputs))
            kernels[choice.template.uid] = Kernel(choice.template.name, "triton", text, tuple(varied.items()))
    return [
        Variant(kernel, problem, Config(tuple((name, settings.get(name, 0)) for name, _ in kernel.schema)))
        for kernel, settings in ((kernels[c.template.uid], _settings(c)) for c in choices)
    ]


def _is_triton(choice: Any) -> bool:
    return str(choice.template.uid).startswith("triton::")


def _text(choice: Any, inputs: Any) -> str:
    """What Inductor writes for a choice; the choice itself is left as it is, its layout not fixed."""
    caller = type(choice)(
        choice.template, choice.params, choice.extra_kwargs, inputs.output_layout(flexible=False), choice.inputs
    ).choice
    if caller is None:
        raise ValueError(f"Inductor writes no {choice.template.uid} for its first config")
    return triton_source(Path(caller.bmreq.module_path).read_text()) + "\n"


def _settings(choice: Any) -> dict[str, Scalar]:
    kwargs = choice.params.to_kwargs()
    return {name: value for name, value in kwargs.items() if isinstance(value, int | float | str)}


def _entry(choice: Any) -> dict[str, Scalar]:
    """One config of the lookup table; the hash lets torch drop it once the template has changed."""
    stamp = getattr(choice.template, "src_hash", None)
    named = {"template_id": choice.template.uid, **({"template_hash": stamp} if stamp else {})}
    return {**named, **(_settings(choice) if _is_triton(choice) else {})}


def _problem(inputs: Any, op: str) -> Problem:
    specs = tuple(spec(*told) for told in zip(inputs.shapes_hinted(), inputs.dtypes(), strict=True))
    if not hasattr(inputs, "mnk_hinted"):
        return Problem(op, specs, (), flops=0, bytes=0)
    m, n, k = map(int, inputs.mnk_hinted())
    batch = math.prod(specs[-1].shape[:-2])
    moved = sum(math.prod(s.shape) * dtype.itemsize for s, dtype in zip(specs, inputs.dtypes(), strict=True))
    moved += batch * m * n * inputs.out_dtype().itemsize
    return Problem(op, specs, (("B", batch), ("M", m), ("N", n), ("K", k)), 2 * batch * m * n * k, moved)
