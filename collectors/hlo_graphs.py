"""Whole programs timed on this machine's CPU: torch modules under eager torch, torch.compile and XLA, JAX functions
under XLA; each an HLO text with its latency.

    program = of_torch(model, inputs)                  # or of_jax(function, *examples)
    with runner([program]) as cpu:
        cpu.measure([variant_of(program, "eager")])
    for measurement in collect(CollectRequest(names=names(count=4000), engine="eager")):
        ...

What is timed is what the text says: the ATen operators of the exported graph, without dead code, in one Python function
(no modules, no hooks); torch.compile is given the same function, XLA the same text. One thread, gradients off, inputs
warm. The text is the kernel, the engine is its config: the engines of one program are versions of one thing.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform
import tempfile
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from typing import TYPE_CHECKING, Any

from costmodel import architectures
from costmodel.devices import detect
from costmodel.graph import Instruction, Module, Shape, facts, parse, to_text
from costmodel.measure import sealing
from costmodel.measure.blocks import BLOCK_SIZE, Patience, Sentinel, plan, suspicious, take_block, with_counter
from costmodel.measure.isolation import Isolated
from costmodel.measure.protocol import ENGINES, GraphTask, Outcome
from costmodel.measure.requests import MAX_PASSES, already
from costmodel.records import Config, Device, Kernel, Measurement, Problem, TensorSpec, Timing, UserError, Variant
from costmodel.workloads import load_module, shipped

if TYPE_CHECKING:
    from costmodel.aten import Program
    from costmodel.store import Store

__all__ = ["CollectRequest", "GraphRunner", "already", "collect", "names", "of_jax", "of_torch", "runner", "stored"]

# More samples than a kernel gets: a program of 50 us costs nothing to repeat.
WARM = Timing(warmup_us=10_000.0, min_samples=30, relative_error=0.01)
TIMEOUT_S = {"eager": 60.0, "compile": 240.0, "xla": 120.0}  # building and timing together
MEMORY_BYTES = 6 << 30
WINDOW = 320  # programs that are held at once; their passes are as far apart as it takes to time so many
SHORT = {
    "pred": "bool",
    "s8": "i8",
    "s16": "i16",
    "s32": "i32",
    "s64": "i64",
    "f8e4m3fn": "f8_e4m3",
    "f8e5m2": "f8_e5m2",
}


# ------------------------------------------------------------------------------------------------ programs as records


@dataclass(frozen=True)
class Graph:
    """A program with its identity: `name` says which of its family, `origin` the family. `hlo` is the text."""

    name: str
    origin: str
    hlo: str
    problem: Problem
    code: str
    arguments: tuple[dict[str, Any], ...]
    unmapped: tuple[str, ...] = ()

    @property
    def kernel(self) -> Kernel:
        return Kernel(self.name, "hlo", self.hlo, (("engine", ENGINES),), self.origin)


def of_torch(model: Any, inputs: Sequence[Any], *, name: str = "module", origin: str = "torch") -> Graph:
    """A torch module, whose weights may lie on the meta device. UserError where torch.export does not take it."""
    from costmodel.aten import trace

    program: Program = trace(model, inputs)
    text = to_text(program.module, percent=False)
    arguments = tuple(argument.encode() for argument in program.arguments)
    return Graph(name, origin, text, problem_of(program.module), program.code, arguments, program.unmapped)


def of_jax(function: Callable[..., Any], *examples: Any, name: str = "function", origin: str = "jax") -> Graph:
    """A JAX function as HLO before optimization. Shapes and types of the examples count; integers are taken as 0."""
    if not util.find_spec("jax"):
        raise UserError("got no jax, expected it for a JAX function; pip install 'costmodel[hlo]'")
    import jax

    module = neutral(parse(jax.jit(function).lower(*examples).as_text(dialect="hlo")))
    names_of = {short: long for long, short in _TORCH_NAMES.items()}
    arguments = []
    for parameter in module.entry_computation.parameters:
        shape = parameter.shape
        if not isinstance(shape, Shape) or shape.dtype not in names_of:
            raise UserError(f"got parameter {parameter.name} of type {shape}, expected an array of numbers")
        floating = shape.dtype.startswith(("f", "bf"))
        fields = {"name": parameter.name, "shape": shape.dims, "dtype": names_of[shape.dtype], "low": 0, "high": 0}
        arguments.append({**fields, "role": "input" if floating else "integers"})
    return Graph(name, origin, to_text(module, percent=False), problem_of(module), "", tuple(arguments))


_TORCH_NAMES = {
    "float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16", "int64": "s64", "int32": "s32",
    "int16": "s16", "int8": "s8", "uint8": "u8", "bool": "pred",
}  # fmt: skip


def neutral(module: Module) -> Module:
    """Without what names a machine, a file or a layout: the program alone."""
    bare = parse(to_text(module, metadata=False, layouts=False))
    return dataclasses.replace(bare, attributes=(), preamble="")


def for_xla(module: Module) -> Module:
    """With fusions as calls, so that XLA decides anew what to fuse."""
    return dataclasses.replace(
        module,
        computations=tuple(
            dataclasses.replace(c, instructions=tuple(map(_call, c.instructions))) for c in module.computations
        ),
    )


def _call(i: Instruction) -> Instruction:
    if i.opcode != "fusion":
        return i
    return dataclasses.replace(i, opcode="call", attributes=(("to_apply", i.attribute("calls")),))


def problem_of(module: Module) -> Problem:
    """What a program computes, on how much data. Inputs are all its parameters, one entry for an element type, that
    in which most of the arithmetic is done first. Bytes: each parameter once (of a table that is only looked up, what
    is looked up), and the results."""
    entry, total = module.entry_computation, facts(module)
    users: dict[str, list[Instruction]] = {}
    for i in entry.instructions:
        for operand in i.operands:
            users.setdefault(operand, []).append(i)
    sizes: dict[str, int] = {}
    moved = total.result_bytes
    for parameter in entry.parameters:
        uses = users.get(parameter.name, [])
        looked_up = bool(uses) and all(i.opcode == "gather" and i.operands[0] == parameter.name for i in uses)
        read = sum(i.shape.bytes for i in uses) if looked_up else parameter.shape.bytes
        moved += min(read, parameter.shape.bytes)
        for leaf in parameter.shape.leaves():
            sizes[leaf.dtype] = sizes.get(leaf.dtype, 0) + leaf.elements
    order = sorted(sizes, key=lambda dtype: (not dtype.startswith(("f", "bf")), -sizes[dtype]))
    inputs = tuple(TensorSpec((sizes[dtype],), SHORT.get(dtype, dtype)) for dtype in order)
    return Problem("graph", inputs, (), int(min(total.flops, 2**62)), moved)


def variant_of(graph: Graph, engine: str) -> Variant:
    return Variant(graph.kernel, graph.problem, Config.of(engine=engine))


# ---------------------------------------------------------------------------------------------------------- the runner


class GraphRunner:
    """A Runner (see records) for the programs it is given, one thread on core `pin` (the last one allowed, unless
    given); a context manager."""

    def __init__(
        self,
        graphs: Iterable[Graph] = (),
        *,
        device: Device | None = None,
        timing: Timing = WARM,
        timeout_s: float | None = None,
        memory_bytes: int = MEMORY_BYTES,
        pin: int | None = None,
        seed: int = 0,
    ) -> None:
        cores = tuple(sorted(os.sched_getaffinity(0)))
        self.device, self.timing, self.timeout_s = device or detect("cpu"), timing, timeout_s
        self.memory_bytes, self.seed = memory_bytes, seed
        self.pin = cores[-1] if pin is None else pin
        if self.pin not in cores:
            raise UserError(f"got pin={pin}, expected one of the cores {', '.join(map(str, cores))}")
        self.graphs = {graph.kernel: graph for graph in graphs}
        # This runner's own: a child that is killed while Inductor writes a library leaves half of one behind.
        self.cache = tempfile.TemporaryDirectory(prefix="costmodel-inductor-")
        self.worker = Isolated(
            "costmodel.measure.graph_worker",
            {**ENVIRONMENT, "TORCHINDUCTOR_CACHE_DIR": self.cache.name, sealing.WRITABLE: self.cache.name},
        )

    def __enter__(self) -> GraphRunner:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self.worker.close()
        self.cache.cleanup()

    def measure(self, variants: Sequence[Variant]) -> list[Measurement]:
        """One after the other. Same length and order; a bad variant is a status."""
        return [self._measure(variant) for variant in variants]

    def _measure(self, variant: Variant) -> Measurement:
        engine, graph = str(variant.config.get("engine", "eager")), self.graphs.get(variant.kernel)
        if engine not in ENGINES:
            outcome = Outcome("launch_error", error=f"got engine {engine!r}, expected one of {', '.join(ENGINES)}")
        elif graph is None:
            outcome = Outcome("launch_error", error=f"no program given for {variant.kernel.name!r}")
        else:
            outcome = self.worker.run(self._task(graph, engine))
        return Measurement(
            variant=variant,
            device=self.device,
            timing=self.timing,
            toolchain=toolchain(engine),
            status=outcome.status,
            samples_us=outcome.samples_us,
            error=outcome.error,
            counters=outcome.counters,
            collected_at=now(),
        )

    def _task(self, graph: Graph, engine: str) -> GraphTask:
        return GraphTask(
            engine=engine,
            code=graph.code,
            hlo=to_text(for_xla(parse(graph.hlo)), percent=False) if engine == "xla" else "",
            arguments=graph.arguments,
            cores=(self.pin,),
            timing=self.timing,
            timeout_s=self.timeout_s or TIMEOUT_S[engine],
            memory_bytes=self.memory_bytes,
            seed=self.seed,
        )


ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NPROC": "1", "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}  # fmt: skip


def runner(graphs: Iterable[Graph], **options: Any) -> GraphRunner:
    """A GraphRunner on this machine's CPU; options as of GraphRunner."""
    return GraphRunner(graphs, **options)


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def toolchain(engine: str) -> tuple[tuple[str, str], ...]:
    """What decides an engine's speed. Torch wrote the program, whatever runs it."""
    found = [("torch", metadata.version("torch")), ("threads", "1"), ("clock", "wall" if engine == "xla" else "thread")]
    if engine == "xla":
        found.append(("jaxlib", metadata.version("jaxlib")))
    if engine == "compile":
        found.append(("system", platform.system()))
    return tuple(found)


# --------------------------------------------------------------------------------------------------------- collection


def names(*, count: int, families: Sequence[str] = ()) -> list[str]:
    """The generator's first `count` graphs, see costmodel.architectures."""
    return architectures.names(count=count, only=families)


@dataclass(frozen=True)
class CollectRequest:
    """Which graphs of the generator to time under which engine, in how many passes. `skip` holds (variant, pass) pairs
    that need no measuring (see `already`); `known` maps names to kernels and problems that a store has, so that a graph
    that needs nothing more is not made again."""

    names: Sequence[str]
    engine: str = "eager"
    passes: int = 2
    budget_s: float | None = None
    seed: int = 0
    timing: Timing = WARM
    device: Device | None = None
    skip: Container[tuple[object, ...]] = frozenset()
    known: Mapping[str, Variant] = dataclasses.field(default_factory=dict)
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise UserError(f"got engine {self.engine!r}, expected one of {', '.join(ENGINES)}")
        if self.engine == "xla" and not util.find_spec("jaxlib"):
            raise UserError("got no jax, expected it for --engine xla; pip install 'costmodel[hlo]'")
        if not 1 <= self.passes < MAX_PASSES:
            raise UserError(f"got passes={self.passes}, expected 1 to {MAX_PASSES - 1}; 2 or 3 are usual")


def stored(
    store: Store, *, device: Device, engine: str, timing: Timing = WARM
) -> tuple[frozenset[tuple[Variant, int]], dict[str, Variant]]:
    """What a store spares a request: its `skip` and `known`."""
    rows = [
        m
        for m in store.measurements(op="graph", device=device.identity)
        if m.variant.config.get("engine", "") == engine and m.timing == timing and m.toolchain == toolchain(engine)
    ]
    return already(rows), {m.variant.kernel.name: m.variant for m in rows}


def collect(request: CollectRequest) -> Iterator[Measurement]:
    """Measure window by window: the programs of a window are made, timed in a shuffled pass, and timed again in another
    order, each time in a process of its own. Where passes disagree by more than a tenth, one more sitting is taken at
    the window's end. Each measurement's pass is counter "pass"; a graph that cannot be made is a compile_error whose
    kernel has no text. A failure is measured once."""
    yield from _Collection(request).run()


class _Collection:
    """The state of one `collect`."""

    def __init__(self, request: CollectRequest) -> None:
        self.request = request
        self.deadline = None if request.budget_s is None else time.monotonic() + request.budget_s
        self.patience = Patience()
        self.cpp = load_module(shipped("collectors") / "cpp_kernels.py").CppRunner(request.device, workloads=())
        self.sentinel = Sentinel(lambda: float(self.cpp.sentinel_us(1)))
        self.cpu = GraphRunner(
            device=self.cpp.device, timing=request.timing, seed=request.seed, timeout_s=request.timeout_s
        )

    def run(self) -> Iterator[Measurement]:
        left = [name for name in self.request.names if self.wanted(name)]
        try:
            for i in range(0, len(left), WINDOW):
                yield from self.window(left[i : i + WINDOW])
        finally:
            self.cpu.close()
            self.cpp.close()

    def late(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def wanted(self, name: str) -> bool:
        variant = self.request.known.get(name)
        return variant is None or any((variant, n) not in self.request.skip for n in range(self.request.passes))

    def window(self, window: Sequence[str]) -> Iterator[Measurement]:
        """The first pass makes a block's programs, then times them; later ones go over all of the window."""
        self.cpu.graphs.clear()
        variants: list[Variant] = []
        minima: dict[Variant, list[float]] = {}
        for i in range(0, len(window), BLOCK_SIZE):
            if self.late():
                return
            fresh = []
            for name in window[i : i + BLOCK_SIZE]:
                made = self.make(name)
                if isinstance(made, Measurement):
                    yield made
                else:
                    fresh.append(made)
            variants += fresh
            yield from self.one_pass(fresh, 0, minima)
        for number in range(1, self.request.passes):
            yield from self.one_pass(variants, number, minima)
        doubtful = [variant for variant, found in minima.items() if suspicious(found)]
        yield from self.one_pass(doubtful, self.request.passes, minima)

    def make(self, name: str) -> Variant | Measurement:
        """The variant of a graph of the generator, its program kept; or why there is none."""
        engine, family = self.request.engine, name.partition(":")[0]
        try:
            built = architectures.build(name)
            graph = of_torch(built.model, built.inputs, name=name, origin=family)
        except Exception as error:  # a library's model may fail in any way, and is then a datum
            words = " ".join(f"{type(error).__name__}: {error}".split())
            kernel = Kernel(name, "hlo", None, (("engine", ENGINES),), family)
            variant = Variant(kernel, Problem("graph", (), (), 0, 0), Config.of(engine=engine))
            return Measurement(
                variant, self.cpu.device, self.request.timing, toolchain(engine), "compile_error",
                error=f"cannot be made: {words[:400]}", collected_at=now(),
            )  # fmt: skip
        self.cpu.graphs[graph.kernel] = graph
        return variant_of(graph, engine)

    def one_pass(
        self, variants: Sequence[Variant], number: int, minima: dict[Variant, list[float]]
    ) -> Iterator[Measurement]:
        done = {v for v, found in minima.items() if not found}  # failed
        left = [v for v in dict.fromkeys(variants) if v not in done and (v, number) not in self.request.skip]
        for block in plan(left, seed=self.request.seed + number, exclusive=lambda _: False):
            if self.late():
                return
            for m in take_block(block, measure=self.cpu.measure, sentinel=self.sentinel, patience=self.patience):
                minima.setdefault(m.variant, []).extend([m.min_us] if m.status == "ok" else [])
                yield with_counter(m, "pass", number)
