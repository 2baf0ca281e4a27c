"""What the forked child does with one program: fill the arguments, build it under its engine, check, time, check again.

Engines: "eager" runs the ATen operators one by one as torch does; "compile" hands the same function to torch.compile;
"xla" compiles the program's HLO text for the CPU. Where the program has torch code, its eager answers are what the
other engines must come to. One core; gradients off.

Where one thread does all the work (eager, compile) the clock is its processor time: the wall time without what other
programs took of the core meanwhile, since a long program is hardly ever left alone until it ends. XLA works in a thread
of its own, so its clock is the wall's. (The process's own clock steps by whole ticks where processor time is limited.)
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from costmodel.measure import sampling
from costmodel.measure.arrays import mismatch
from costmodel.measure.protocol import GraphTask, Outcome

Run = Callable[[], Sequence[Any]]
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 6e-2}
BUDGET_US = 150_000.0  # of samples: making a program takes longer
CLOCKS = {"eager": time.thread_time_ns, "compile": time.thread_time_ns, "xla": time.perf_counter_ns}


def load(engine: str) -> None:
    """Import what an engine needs, in the process that is forked."""
    if engine == "compile":
        import torch._inductor.config as config

        if config.compile_threads != 1:
            config.compile_threads = 1  # no pool of processes
            torch.compile(lambda x: torch.relu(x) + 1)(torch.ones(64))  # finds out the compiler and the vector width
    if engine == "xla":
        import jax

        jax.config.update("jax_cpu_enable_async_dispatch", False)  # else a call returns before it is done
        jax.config.update("jax_enable_x64", True)
        for library in ("jax.extend.backend", "jaxlib._hlo", "jaxlib.xla_client"):  # what `_xla` needs
            importlib.import_module(library)


def execute(task: GraphTask) -> Outcome:
    """Runs in the child. A build that fails is a compile_error; MemoryError where memory ran out, which torch says in
    words; a run that fails raises what it raises."""
    try:
        return _execute(task)
    except RuntimeError as error:
        if "can't allocate memory" in str(error):
            raise MemoryError(one_line(error)) from error
        raise


def _execute(task: GraphTask) -> Outcome:
    torch.set_grad_enabled(False)
    arguments = fill(task)
    forward = function(task.code) if task.code else None
    expected = None
    if forward is not None and task.engine != "eager":
        expected = as_numpy(forward(None, *arguments))
    try:
        run = build(task, forward, arguments)
    except MemoryError:
        raise
    except Exception as error:  # whatever a compiler raises
        return Outcome("compile_error", error=one_line(error))
    first = as_numpy(run())
    if fault := faults(first, expected, tolerance(arguments)):
        return Outcome("wrong_result", error=fault)
    samples = sampling.take(run_once(run), task.timing, clock_ns=CLOCKS[task.engine], budget_us=BUDGET_US)
    if fault := faults(as_numpy(run()), first, tolerance(arguments)):
        return Outcome("wrong_result", error=f"on a later call: {fault}")
    return Outcome("ok", tuple(round(x, 3) for x in samples))


def run_once(run: Run) -> Callable[[], None]:
    """A call whose results are freed within it."""

    def call() -> None:
        run()

    return call


# ---------------------------------------------------------------------------------------------------------- the parts


def fill(task: GraphTask) -> list[torch.Tensor]:
    """The arguments, the same for every engine; see costmodel.aten.Argument for what a role means."""
    generator = torch.Generator().manual_seed(task.seed)
    return [_filled(argument, generator) for argument in task.arguments]


def _filled(argument: dict[str, Any], generator: torch.Generator) -> torch.Tensor:
    shape, role, dtype = tuple(argument["shape"]), argument["role"], getattr(torch, argument["dtype"])
    if role == "integers":
        x = torch.randint(argument["low"], argument["high"] + 1, shape, generator=generator)
    elif role == "vector":
        x = torch.rand(shape, generator=generator) / 2 + 0.25
    else:
        x = torch.randn(shape, generator=generator)
        if role == "weight":
            x /= math.sqrt(math.prod(shape[1:]))
    return x.to(dtype)


def function(code: str) -> Callable[..., Sequence[torch.Tensor]]:
    """The `forward` that a program's text defines."""
    scope: dict[str, Any] = {
        "torch": torch, "device": torch.device, "inf": math.inf, "nan": math.nan, "NoneType": type(None)
    }  # fmt: skip
    exec(code, scope)
    return scope["forward"]


def build(task: GraphTask, forward: Callable[..., Sequence[torch.Tensor]] | None, arguments: list[torch.Tensor]) -> Run:
    """A call without arguments that runs the program and is done when it returns."""
    if task.engine == "xla":
        return _xla(task.hlo, arguments)
    if forward is None:
        raise ValueError(f"a program without torch code does not run under {task.engine}")
    if task.engine == "compile":
        compiled = torch.compile(forward, fullgraph=True, dynamic=False)
        compiled(None, *arguments)
        return lambda: compiled(None, *arguments)
    return lambda: forward(None, *arguments)


def _xla(text: str, arguments: list[torch.Tensor]) -> Run:
    import jax
    from jax.extend.backend import get_backend
    from jaxlib import _hlo, xla_client

    backend = get_backend("cpu")
    devices = backend.local_devices()[:1]
    proto = _hlo.hlo_module_from_text(text).as_serialized_hlo_module_proto()
    program = xla_client._xla.mlir.hlo_to_stablehlo(proto)
    executable = backend.compile_and_load(program, xla_client.DeviceList(tuple(devices)), xla_client.CompileOptions())
    buffers = [jax.device_put(_numpy(x), devices[0]) for x in arguments]

    def run() -> Sequence[Any]:
        results = [shards[0] for shards in executable.execute_sharded(buffers).disassemble_into_single_device_arrays()]
        for result in results:
            result.block_until_ready()
        return results

    return run


def _numpy(x: torch.Tensor) -> np.ndarray[Any, Any]:
    if x.dtype is not torch.bfloat16:
        return x.contiguous().numpy()
    import ml_dtypes

    return x.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)


def as_numpy(results: Sequence[Any]) -> list[np.ndarray[Any, Any]]:
    """Answers of any engine, half precision as f32. Copies, since an engine may use its memory again."""
    found = []
    for x in results:
        if isinstance(x, torch.Tensor):
            x = x.detach()
            x = (x.float() if x.dtype in (torch.bfloat16, torch.float16) else x).numpy()
        array = np.array(x)
        found.append(array if array.dtype.kind in "fciub" else array.astype(np.float32))
    return found


def tolerance(arguments: Sequence[torch.Tensor]) -> float:
    """That of the coarsest type that the program reads."""
    return max((TOLERANCES.get(x.dtype, 0.0) for x in arguments), default=0.0) or TOLERANCES[torch.float32]


def faults(got: Sequence[np.ndarray[Any, Any]], expected: Sequence[np.ndarray[Any, Any]] | None, limit: float) -> str:
    """ "" where all is finite and as expected."""
    for i, array in enumerate(got):
        if array.dtype.kind in "fc" and not np.isfinite(array).all():
            return f"output {i} holds values that are not finite"
    for i, (array, wanted) in enumerate(zip(got, expected or got, strict=True)):
        if array.shape != wanted.shape:
            return f"output {i} has shape {array.shape}, expected {wanted.shape}"
        if error := mismatch(array, wanted, limit):
            return f"output {i}: {error}"
    return ""


def one_line(error: BaseException) -> str:
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:400]}"
