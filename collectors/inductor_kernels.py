"""The Triton kernels that torch.compile writes for a module or a function, each as a workload of its own.

found = workloads_of(model, x, device=find("H200"), folder=Path("kernels_of_model"))
found.workloads[0].path    # a NAME.py like those in kernels/triton: `costmodel inspect`, `collect` and `rank` take it
found.left                 # what the program runs besides, and why it is no workload (library calls, atomics)
found = from_code(text, device=find("H200"), folder=folder)   # of a program written elsewhere: TORCH_LOGS=output_code

No GPU is needed to write kernels: the operation is traced with fake CUDA tensors, and Inductor then runs, up to its
text, in a process of its own where torch.cuda answers from the device's sheet. Only one process ever sees that, and
nothing is started in it. A whole graph is needed (no breaks), its sizes are fixed, and a matrix product is a library
call unless `max_autotune` is given, which makes Triton templates of it (the first candidate stands for all: the tile
sizes are parameters afterwards). Random numbers, convolutions by template, and attention by a library are left out.

The reference of a workload is the piece of the torch graph between what the kernel reads and what it writes. Where
there is no such piece (text alone was given, or a buffer that the graph does not name, such as partial sums) the
reference is the kernel under its default config: it then shows that configs agree, not that they are right, and the
file says so.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import costmodel
from costmodel.inductor_code import GeneratedKernel, Left, Number, Tensor, parse
from costmodel.records import Device, Measurement, UserError, Workload
from costmodel.workloads import load, load_module, shipped

OLDEST_TORCH = (2, 11)
TIMEOUT_S = 600.0
_TEMPLATE = Path(costmodel.__file__).parent / "templates" / "inductor" / "kernel.txt"
LARGEST_BLOCK = {"XBLOCK": 4096, "YBLOCK": 1024, "ZBLOCK": 1024, "R0_BLOCK": 16384, "R1_BLOCK": 16384}
TOLERANCES = {"f64": 1e-9, "f32": 1e-4, "f16": 4e-3, "bf16": 2e-2, "f8e4m3": 0.13, "f8e5m2": 0.26}


@dataclass(frozen=True, slots=True)
class Found:
    """The workloads of a program, in the order in which it starts them, and what was left out."""

    workloads: tuple[Workload, ...]
    left: tuple[Left, ...]


def workloads_of(
    model: Callable[..., Any], *example_inputs: Any, device: Device, folder: Path, max_autotune: bool = False
) -> Found:
    """Write one NAME.py into `folder` for each kernel that torch.compile makes of `model(*example_inputs)`.

    Shapes, strides and types of the inputs count; their values and their device do not. A function that calls
    torch.autograd.grad gives the kernels of the backward pass too. Raises UserError where Inductor gives up.
    """
    if device.vendor != "NVIDIA" or not device.arch.startswith("sm_"):
        raise UserError(f"got device {device.name}, expected an NVIDIA sheet such as H200")
    program = _written_by_inductor(*_traced(model, example_inputs), device, max_autotune)
    return from_code(program["code"], device=device, folder=folder, references=program["references"])


def from_code(text: str, *, device: Device, folder: Path, references: Mapping[str, str] | None = None) -> Found:
    """Write the kernels of a generated program into `folder`. references: Python text by kernel, as `_reference` makes
    it; a kernel without one is compared with itself under the default config."""
    kernels, left = parse(text)
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    seen: Counter[str] = Counter()
    for kernel in kernels:
        seen[kernel.name] += 1
        path = folder / f"{kernel.name}{f'_{seen[kernel.name]}' if seen[kernel.name] > 1 else ''}.py"
        content = _file(kernel, device, (references or {}).get(kernel.program))
        if path.exists() and path.read_text() != content:  # and it may be loaded already
            raise UserError(f"{path} exists already and holds another kernel; give a folder of its own")
        path.write_text(content)
        paths.append(path)
    return Found(tuple(load(path) for path in paths), tuple(left))


@dataclass(frozen=True)
class CollectRequest:
    """A model to take apart; `options` are further fields of the Triton collector's request."""

    model: Callable[..., Any]
    inputs: tuple[Any, ...]
    device: Device
    folder: Path
    max_autotune: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def collect(request: CollectRequest) -> Iterator[Measurement]:
    """Write the kernels, then let `triton_kernels` measure them, or compile them where there is no GPU."""
    found = workloads_of(
        request.model, *request.inputs, device=request.device, folder=request.folder, max_autotune=request.max_autotune
    )
    triton_kernels = load_module(shipped("collectors") / "triton_kernels.py")
    yield from triton_kernels.collect(
        triton_kernels.CollectRequest(workloads=found.workloads, device=request.device, **request.options)
    )


# ---- a file for a kernel ----


def _file(kernel: GeneratedKernel, device: Device, reference: str | None) -> str:
    """The text of NAME.py: kernels/triton/softmax.py is what it looks like."""
    import torch

    tensors = [argument for argument in kernel.arguments if isinstance(argument, Tensor)]
    numels = {a.name: int(a.value) for a in kernel.arguments if isinstance(a, Number) and a.name.endswith("numel")}
    sizes = {name: kernel.fixed[name] for name in "BMNK"} if kernel.kind == "template" else numels
    points = sizes["B"] * sizes["M"] * sizes["N"] if kernel.kind == "template" else math.prod(sizes.values())
    flops = kernel.operations * points + (2 * points * sizes["K"] if kernel.kind == "template" else 0)
    moved = {(t.buffer or t.name, t.written): t.extent * _bytes(t.dtype) for t in tensors}
    candidates = _inductor_configs(kernel)
    written = [t for t in tensors if t.written]
    text = _TEMPLATE.read_text()
    for mark, value in {
        "SOURCE": kernel.source,
        "REFERENCE": reference or _SELF_REFERENCE,
        "GRID": _grid(kernel, sizes),
        "VALID": _MATMUL_VALID if kernel.kind == "template" else _BLOCKS_VALID,
        "READ": _dict((t.name, _spec(t)) for t in tensors if not t.written),
        "WRITTEN": _dict((t.name, _spec(t)) for t in written),
        "SPACE": ", ".join(f"{name}={values}" for name, values in _space(kernel, candidates, sizes).items()),
        "INDUCTOR": "".join(f"    {_config(config)},\n" for config in candidates),
        "ARGUMENTS": repr([a.name if isinstance(a, Tensor) else a.value for a in kernel.arguments]),
        "SIZES": repr(sizes),
        "FIXED": repr({name: n for name, n in kernel.fixed.items() if name.endswith("BLOCK")}),
        "OP": repr("matmul" if kernel.kind == "template" else kernel.kind),
        "FLOPS": str(flops),
        "BYTES": str(sum(moved.values())),
        "BOUND": str(kernel.index_below or 2),
        "POSITIVE": str(kernel.positive),
        "TOLERANCE": str(max(TOLERANCES.get(t.dtype, 0.0) for t in written)),
        "ABOUT": f"A {kernel.kind} kernel that torch.compile (torch {torch.__version__}) wrote for the {device.name}",
        "KERNEL": kernel.name,
    }.items():
        text = text.replace(f"@{mark}@", value)
    return text


def _bytes(dtype: str) -> int:
    from costmodel.tensors import dtype_of

    return dtype_of(dtype).itemsize


def _spec(tensor: Tensor) -> str:
    """The tensor as it lies in memory: its sizes from the outermost step inwards, or flat where it has gaps."""
    order = sorted(range(len(tensor.shape)), key=lambda i: -tensor.stride[i])
    shape = tuple(tensor.shape[i] for i in order)
    dense = math.prod(shape) == tensor.extent
    return f'TensorSpec({shape if dense else (tensor.extent,)}, "{tensor.dtype}")'


def _dict(items: Iterator[tuple[str, str]]) -> str:
    return "{" + "".join(f'\n    "{name}": {value},' for name, value in items) + "\n}"


def _config(config: Mapping[str, int]) -> str:
    return f"Config.of({', '.join(f'{name}={value}' for name, value in config.items())})"


def _grid(kernel: GeneratedKernel, sizes: Mapping[str, int]) -> str:
    if kernel.kind == "template":
        return 'triton.cdiv(SIZES["M"], settings["BLOCK_M"]) * triton.cdiv(SIZES["N"], settings["BLOCK_N"]), SIZES["B"]'
    axes = [
        f'triton.cdiv(SIZES["{axis}numel"], block["{axis.upper()}BLOCK"])' for axis in "xyz" if f"{axis}numel" in sizes
    ]
    if kernel.grid == "Grid2DWithYZOverflow":  # more blocks along y than a grid may have go to z
        rows = f"triton.cdiv({axes[1]}, 65535)"
        axes = [axes[0], f"triton.cdiv({axes[1]}, {rows})", rows]
    return ", ".join(axes)


def _space(
    kernel: GeneratedKernel, candidates: Sequence[Mapping[str, int]], sizes: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """Inductor's values and the powers of two up to four times less and more; every usual tile of a matmul."""
    if kernel.kind == "template":
        usual = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16}
        tiles = {name: tuple(low << i for i in range(5 if name != "BLOCK_K" else 4)) for name, low in usual.items()}
        space = {**tiles, "GROUP_M": (8,), "num_warps": (2, 4, 8), "num_stages": (1, 2, 3, 4, 5)}
    else:
        space = {}
        for name in kernel.tunable:
            size = sizes.get(name.replace("BLOCK", "").lower() + "numel", 1)
            most = min(LARGEST_BLOCK.get(name, 4096), 1 << (size - 1).bit_length())
            tried = {config[name] for config in candidates}
            powers = {1 << i for i in range(15) if min(tried) <= 4 << i and 1 << i <= 4 * max(tried)}
            space[name] = tuple(sorted(tried | {value for value in powers if value <= most}))
        space["num_warps"] = (1, 2, 4, 8, 16)
        space["num_stages"] = (1, 2, 3, 4) if "\n    for " in kernel.source else (1,)
    return {name: tuple(sorted({*values, *(c[name] for c in candidates)})) for name, values in space.items()}


def _inductor_configs(kernel: GeneratedKernel) -> list[dict[str, int]]:
    """What Inductor's heuristics would try, its choice without autotuning first. Needs torch and triton, no GPU."""
    if kernel.kind == "template":
        return [{name: value for name, value in kernel.default.items() if name != "EVEN_K"}]
    import torch
    from torch._inductor.runtime import hints, triton_heuristics

    found: list[dict[str, int]] = []

    def keep(size_hints: Any, configs: Sequence[Any], *args: Any, **keywords: Any) -> Callable[[Any], Any]:
        for config in configs:
            values = {name: config.kwargs.get(name, kernel.fixed.get(name, 1)) for name in kernel.tunable}
            found.append({**values, "num_warps": config.num_warps, "num_stages": config.num_stages})
        return lambda function: function

    names = {**vars(hints), "torch": torch, "triton_heuristics": triton_heuristics, "__file__": "program"}
    with mock.patch.object(triton_heuristics, "cached_autotune", keep):
        for wanted in ("False", "True"):
            call = kernel.heuristic
            for option in ("max_autotune", "max_autotune_pointwise"):
                call = call.replace(f"'{option}': {wanted != 'True'}", f"'{option}': {wanted}")
            try:
                eval(call, dict(names))
            except (TypeError, AttributeError, KeyError, ImportError) as error:
                raise UserError(
                    f"got {kernel.name} with heuristics that torch {torch.__version__} does not run ({error}), "
                    "expected a program written by the same version; write it again with this torch"
                ) from error
    return [config for i, config in enumerate(found) if config not in found[:i]]


_BLOCKS_VALID = '''    """From one value a thread to 128."""
    values = prod(v for name, v in {**FIXED, **config.as_dict()}.items() if name.endswith("BLOCK"))
    return 32 * config["num_warps"] <= values <= 128 * 32 * config["num_warps"]
'''

_MATMUL_VALID = '''    """At most 256 sums a thread, and the stages' tiles within an SM's shared memory."""
    m, n, k = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]
    size = max(tensors.dtype_of(spec.dtype).itemsize for spec in problem.inputs[:2])
    shared = dict(sheet.details).get("shared_bytes_per_unit", 1 << 17)
    sums = m * n / (32 * config["num_warps"])
    return 4 <= sums <= 256 and (m + n) * k * size * config["num_stages"] <= shared
'''

_SELF_REFERENCE = '''def reference(problem, inputs):
    """No torch graph of this kernel is known: its own answers under the default config, to which others must come."""
    outputs = tensors.empty(WRITTEN.values())
    for start in launch(problem, INDUCTOR[0], inputs, outputs):
        start.entry[start.grid](*start.args, **start.keywords)
    return outputs

'''


# ---- Inductor, in a process of its own ----


def _traced(model: Callable[..., Any], example_inputs: Sequence[Any]) -> tuple[str, dict[str, Any], tuple[Any, ...]]:
    """The ATen operators as the text of `forward(self, ...)`, the constants that it finds in self, and (shape, stride,
    torch type) of what it takes: parameters, buffers, inputs.

    Traced with fake tensors in place of the inputs, the parameters and the buffers: of the CPU, since a build
    of torch without CUDA has no autograd for others. Attention is spelled out, not the CPU's own operator."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils import _pytree

    state: dict[str, torch.Tensor] = {}
    if isinstance(model, torch.nn.Module):
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    flat, tree = _pytree.tree_flatten(tuple(example_inputs))
    where = [i for i, value in enumerate(flat) if isinstance(value, torch.Tensor)]
    real = [*state.values(), *(flat[i] for i in where)]

    def call(*given: torch.Tensor) -> Any:
        values = list(flat)
        for i, value in zip(where, given[len(state) :], strict=True):
            values[i] = value
        arguments = _pytree.tree_unflatten(values, tree)
        if not isinstance(model, torch.nn.Module):
            return model(*arguments)
        return torch.func.functional_call(model, dict(zip(state, given, strict=False)), arguments)

    try:
        with FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.MATH):
            graph = make_fx(call)(
                *(torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, requires_grad=x.requires_grad) for x in real)
            )
    except Exception as error:
        raise UserError(
            f"got a model that cannot be traced as one graph on fake tensors ({_line(error)}), expected one "
            "without control flow on values and with every tensor an input, a parameter or a buffer"
        ) from error
    for node in graph.graph.nodes:
        if node.kwargs.get("device") == torch.device("cpu"):
            node.kwargs = {**node.kwargs, "device": torch.device("cuda", 0)}
    constants = {node.target: getattr(graph, node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    layouts = tuple((tuple(x.shape), x.stride(), x.dtype) for x in real)
    return graph.graph.python_code("self").src, constants, layouts


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]


def _written_by_inductor(*order: Any) -> dict[str, Any]:
    """Run this file as a program: the arguments of `_compile` by stdin, its result by stdout."""
    import torch

    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < OLDEST_TORCH:
        raise UserError(f"got torch {torch.__version__}, expected {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]} or newer")
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise UserError("got no triton, expected it for the kernels of torch.compile; pip install triton") from error
    try:
        done = subprocess.run(
            [sys.executable, "-P", __file__], input=pickle.dumps(order), capture_output=True, timeout=TIMEOUT_S,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TRITON_INTERPRET": "0"},
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise UserError(f"got no kernels within {TIMEOUT_S:g} s, expected Inductor to be done; give a part") from error
    if done.returncode:
        reason = (done.stderr.decode().strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise UserError(
            f"got no kernels from the Inductor of torch {torch.__version__} ({reason}), expected it to write them "
            "without a GPU; on a machine with one, give the text that TORCH_LOGS=output_code prints to from_code"
        )
    return json.loads(done.stdout)


class _Written(BaseException):
    """Inductor has written its program; what it would do with it next needs a GPU."""


def _compile(
    code: str, constants: Mapping[str, Any], inputs: Sequence[Any], device: Device, max_autotune: bool
) -> dict[str, Any]:
    """{"code": the program that Inductor writes for a traced graph, "references": {kernel: text}}.

    Only for a process of its own: it changes torch for good.
    """
    import torch
    from torch._inductor import config, select_algorithm
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    _pretend(device)
    result: dict[str, Any] = {}

    def save(program: str) -> None:
        result.update(code=program, references=_references(program, V.graph))
        raise _Written

    GraphLowering.save_output_code = staticmethod(save)
    config.compile_threads = 1
    config.force_disable_caches = True
    config.shape_padding = False  # it measures whether padding a matrix product pays,
    config.joint_graph_constant_folding = False  # computes constants on the GPU,
    config.fallback_random = True  # and draws its seeds there
    if max_autotune:
        config.max_autotune = True
        config.max_autotune_gemm_backends = "TRITON"
        select_algorithm.add_preprocessing_fn(lambda choices: choices[:1])  # one choice is not benchmarked
    names = {"torch": torch, "device": torch.device, "inf": math.inf, "nan": math.nan, "NoneType": type(None)}
    exec(code, names)
    try:
        with torch.no_grad():
            with FakeTensorMode(allow_non_fake_inputs=True):
                fakes = [torch.empty_strided(*layout, dtype=dtype, device="cuda") for *layout, dtype in inputs]
                graph = make_fx(partial(names["forward"], SimpleNamespace(**constants)))(*fakes)
            compile_fx(graph, fakes)
    except _Written:
        return result
    raise RuntimeError("the graph has nothing to compile")


def _pretend(device: Device) -> None:
    """Let torch.cuda and Inductor's device interface answer from a sheet: every private name of torch is here, in
    `_compile` and in `_references`."""
    import triton
    from torch import cuda, uint8, zeros
    from torch import device as torch_device
    from torch._dynamo import device_interface
    from torch._inductor.fx_passes import joint_graph, post_grad
    from triton.backends.compiler import GPUTarget

    for passes in (joint_graph, post_grad):  # their patterns are traced with real tensors: on the CPU, before the rest
        passes.lazy_init(torch_device("cpu"))
        passes.lazy_init = lambda *arguments, **keywords: None
    capability = divmod(int(device.arch.removeprefix("sm_").rstrip("af")), 10)
    details = dict(device.details)
    properties = SimpleNamespace(
        name=device.name, major=capability[0], minor=capability[1], gcnArchName="",
        multi_processor_count=device.num_units, total_memory=device.memory_bytes, L2_cache_size=device.l2_bytes,
        regs_per_multiprocessor=details.get("registers_per_unit", 65536), max_threads_per_block=1024,
        max_threads_per_multi_processor=details.get("max_threads_per_unit", 2048), warp_size=32,
        shared_memory_per_multiprocessor=details.get("shared_bytes_per_unit", 1 << 17),
        shared_memory_per_block_optin=details.get("shared_bytes_per_unit", 1 << 17) - 1024,
    )  # fmt: skip
    answers: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_properties": lambda device=None: properties,
        "get_device_capability": lambda device=None: capability,
        "synchronize": lambda device=None: None,
        "set_device": lambda device: None,
        "get_rng_state": lambda device=None: zeros(16, dtype=uint8),
        "set_rng_state": lambda state, device=None: None,
        "is_bf16_supported": lambda including_emulation=True: True,
        "_exchange_device": lambda device: device,
        "_maybe_exchange_device": lambda device: device,
    }
    for name, answer in answers.items():
        setattr(cuda, name, answer)
    interface = device_interface.get_interface_for_device("cuda")
    for name in (*answers, "get_compute_capability", "is_triton_capable", "raise_if_triton_unavailable"):
        own = {
            "get_compute_capability": lambda device=None: 10 * capability[0] + capability[1],
            "is_triton_capable": lambda device=None: True,
            "raise_if_triton_unavailable": lambda device=None: None,
        }
        setattr(interface, name.lstrip("_"), staticmethod(own.get(name) or answers[name]))
    interface.Worker.get_device_properties = staticmethod(answers["get_device_properties"])
    interface.Worker.current_device = staticmethod(answers["current_device"])
    triton.runtime.driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", 10 * capability[0] + capability[1], 32),
            get_current_device=lambda: 0,
            get_active_torch_device=lambda: torch_device("cuda"),
        )
    )


def _references(code: str, lowering: Any) -> dict[str, str]:
    """For each kernel the piece of the torch graph between its inputs and its outputs, as Python text; where the graph
    names all of them. `lowering`: the GraphLowering that wrote the code."""
    buffers = {**lowering.name_to_buffer, **lowering.graph_inputs}
    nodes = {name: buffer.get_origin_node() for name, buffer in lowering.name_to_buffer.items()}
    nodes |= {node.target: node for node in lowering.graph.nodes if node.op == "placeholder"}
    nodes = {
        name: node for name, node in nodes.items() if node and name in buffers and _same_shape(node, buffers[name])
    }
    found = {}
    for kernel in parse(code)[0]:
        tensors = [argument for argument in kernel.arguments if isinstance(argument, Tensor)]
        if all(tensor.buffer in nodes for tensor in tensors):
            text = _reference([(t, nodes[t.buffer], buffers[t.buffer]) for t in tensors])
            if text:
                found[kernel.program] = text
    return found


def _reference(tensors: Sequence[tuple[Tensor, Any, Any]]) -> str:
    """`def reference(problem, inputs)` of (argument, node, buffer) triples; "" where the graph needs other inputs."""
    from torch import Tag, fx

    graph = fx.Graph()
    copies: dict[Any, Any] = {}
    for tensor, node, _ in tensors:
        if not tensor.written:
            copies[node] = graph.placeholder(tensor.name)
        elif node.op == "placeholder":  # a graph input is overwritten: its node is the value before
            return ""

    def copy(node: Any) -> Any:
        if node not in copies:
            random = Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
            if node.op != "call_function" or random:
                raise LookupError(node.name)
            for needed in node.all_input_nodes:
                copy(needed)
            copies[node] = graph.node_copy(node, copies.__getitem__)
        return copies[node]

    try:
        graph.output(tuple(copy(node) for tensor, node, _ in tensors if tensor.written))
    except LookupError:
        return ""
    read = ", ".join(tensor.name for tensor, _, _ in tensors if not tensor.written)
    body = graph.python_code("self").src.strip().split("\n", 1)[1]
    body = body.replace("device(type='cuda', index=0)", "torch.get_default_device()")
    lines = [f"def graph({read}):", body, "", "", "def reference(problem, inputs):"]
    lines += ['    """The torch operators that the kernel was made of, on tensors laid out as the kernel has them."""']
    layouts = [(tensor, tuple(b.get_size()), tuple(b.get_stride())) for tensor, _, b in tensors]
    views = [(size, stride) for tensor, size, stride in layouts if not tensor.written]
    lines += [f"    views = {[tuple(map(_whole, view)) for view in views]}"]
    lines += ["    given = [torch.as_strided(x, *view) for x, view in zip(inputs, views, strict=True)]"]
    lines += [f"    layouts = {[tuple(map(_whole, (z, s))) for t, z, s in layouts if t.written]}"]
    lines += ["    results = []"]
    lines += ["    for value, (size, stride), spec in zip(graph(*given), layouts, WRITTEN.values(), strict=True):"]
    lines += ["        memory = torch.empty_strided(size, stride, dtype=value.dtype).copy_(value.reshape(size))"]
    lines += [
        "        results.append(torch.as_strided(memory, spec.shape, torch.empty(spec.shape, device='meta').stride()))"
    ]
    lines += ["    return tuple(results)", "", ""]
    return "\n".join(lines)


def _same_shape(node: Any, buffer: Any) -> bool:
    value = node.meta.get("val")
    return hasattr(value, "shape") and tuple(value.shape) == tuple(buffer.get_size())


def _whole(sizes: Sequence[Any]) -> tuple[int, ...]:
    return tuple(int(size) for size in sizes)


if __name__ == "__main__":
    try:
        answer = _compile(*pickle.load(sys.stdin.buffer))
    except Exception as error:
        sys.exit(_line(error))
    sys.stdout.write(json.dumps(answer))
