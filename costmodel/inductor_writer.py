"""Let Inductor write its Triton program for a GPU that need not be here: `write(model, inputs, device=...)`.

The operation is traced with fake tensors in the caller's process; Inductor then runs, up to its text, in a process of
its own (this module as a program), where torch.cuda answers from the device's sheet. Nothing is compiled or started
there, and no other process sees the pretence. The private names of torch that this needs are all in this module.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

from costmodel.inductor_code import Tensor, parse
from costmodel.records import Device, UserError

OLDEST_TORCH = (2, 11)
TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Program:
    """What Inductor wrote. references: for a kernel of it `def reference(problem, inputs)` as text, made of the torch
    operators between what the kernel reads and what it writes; kernels for which the graph has no such piece lack."""

    code: str
    references: Mapping[str, str]


def write(model: Callable[..., Any], inputs: Sequence[Any], *, device: Device, max_autotune: bool = False) -> Program:
    """The program of torch.compile for `model(*inputs)` on an NVIDIA device; UserError where Inductor gives up.

    max_autotune: matrix products become Triton templates (the first candidate stands for all), not library calls.
    """
    import torch

    if device.vendor != "NVIDIA" or not device.arch.startswith("sm_"):
        raise UserError(f"got device {device.name}, expected an NVIDIA sheet such as H200")
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < OLDEST_TORCH:
        raise UserError(f"got torch {torch.__version__}, expected {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]} or newer")
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise UserError("got no triton, expected it for the kernels of torch.compile; pip install triton") from error
    order = (*_traced(model, inputs), device, max_autotune)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "costmodel.inductor_writer"],
            input=pickle.dumps(order), capture_output=True, timeout=TIMEOUT_S,
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
    return Program(**json.loads(done.stdout))


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


# ---- the process in which Inductor runs ----


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
    names: dict[str, Any] = {
        "torch": torch,
        "device": torch.device,
        "inf": math.inf,
        "nan": math.nan,
        "NoneType": type(None),
    }
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
    """Let torch.cuda and Inductor's device interface answer from a sheet: nothing of it is real."""
    import triton
    from torch import cuda, uint8, zeros
    from torch import device as torch_device
    from torch._dynamo import device_interface
    from torch._inductor.fx_passes import joint_graph, post_grad
    from triton.backends.compiler import GPUTarget

    passes: Any
    for passes in (joint_graph, post_grad):  # their patterns are traced with real tensors: on the CPU, before the rest
        passes.lazy_init(torch_device("cpu"))
        passes.lazy_init = lambda *arguments, **keywords: None
    capability = divmod(int(device.arch.removeprefix("sm_").rstrip("af")), 10)
    details: dict[str, Any] = dict(device.details)
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
    interface: Any = device_interface.get_interface_for_device("cuda")
    answers |= {
        "get_compute_capability": lambda device=None: 10 * capability[0] + capability[1],
        "is_triton_capable": lambda device=None: True,
        "raise_if_triton_unavailable": lambda device=None: None,
    }
    for name, answer in answers.items():
        setattr(interface, name.lstrip("_"), staticmethod(answer))
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
    nodes = {name: node for name, node in nodes.items() if node and _same_shape(node, buffers.get(name))}
    found: dict[str, str] = {}
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
    layouts = [(t.written, _whole(b.get_size()), _whole(b.get_stride())) for t, _, b in tensors]
    return f'''def graph({read}):
{body}


def reference(problem, inputs):
    """The torch operators that the kernel was made of, on tensors laid out as the kernel has them."""
    views = {[(size, stride) for written, size, stride in layouts if not written]}
    layouts = {[(size, stride) for written, size, stride in layouts if written]}
    values = graph(*(torch.as_strided(x, *view) for x, view in zip(inputs, views, strict=True)))
    memories = [
        torch.empty_strided(size, stride, dtype=value.dtype).copy_(value.reshape(size))
        for value, (size, stride) in zip(values, layouts, strict=True)
    ]
    steps = [torch.empty(spec.shape, device="meta").stride() for spec in WRITTEN.values()]
    return tuple(
        torch.as_strided(memory, spec.shape, step)
        for memory, spec, step in zip(memories, WRITTEN.values(), steps, strict=True)
    )
'''


def _same_shape(node: Any, buffer: Any) -> bool:
    value = node.meta.get("val")
    return buffer is not None and hasattr(value, "shape") and tuple(value.shape) == tuple(buffer.get_size())


def _whole(sizes: Sequence[Any]) -> tuple[int, ...]:
    return tuple(int(size) for size in sizes)


if __name__ == "__main__":
    try:
        answer = _compile(*pickle.load(sys.stdin.buffer))
    except Exception as error:
        sys.exit(_line(error))
    sys.stdout.write(json.dumps(answer))
