"""The Triton kernels that torch.compile writes for a module or a function, each as a workload of its own.

found = workloads_of(model, x, device=find("H200"), folder=Path("kernels_of_model"))
found.workloads[0].path    # a NAME.py like those in kernels/triton: `costmodel inspect`, `collect` and `rank` take it
found.left                 # what the program runs besides, and why it is no workload (library calls, atomics)
found = from_code(text, device=find("H200"), folder=folder)   # of a program written elsewhere: TORCH_LOGS=output_code

No GPU is needed to write kernels (see costmodel/inductor_writer.py), nor to compile them. A whole graph is needed (no
breaks), its sizes are fixed, and without a CUDA build of torch it must not write to its inputs. Left out: what runs in
libraries (convolutions, random numbers, and matrix products unless `max_autotune` is given), and kernels whose answers
depend on what their outputs held before. Attention is taken apart into products and a softmax.

The reference of a workload is the piece of the torch graph between what the kernel reads and what it writes. Where
there is no such piece (text alone was given, or a buffer that the graph does not name, such as partial sums) the
reference is the kernel under its default config: it then shows that configs agree, not that they are right, and the
file says so.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import costmodel
from costmodel.inductor_code import GeneratedKernel, Left, Number, Tensor, parse
from costmodel.inductor_writer import write
from costmodel.records import Device, Measurement, UserError, Workload
from costmodel.workloads import load, load_module, shipped

_TEMPLATE = Path(costmodel.__file__).parent / "templates" / "inductor" / "kernel.txt"
LARGEST_BLOCK = {"XBLOCK": 4096, "YBLOCK": 1024, "ZBLOCK": 1024, "R0_BLOCK": 16384, "R1_BLOCK": 16384}
TOLERANCES = {"f64": 1e-9, "f32": 1e-4, "f16": 4e-3, "bf16": 2e-2, "f8_e4m3": 0.13, "f8_e5m2": 0.26}


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
    program = write(model, example_inputs, device=device, max_autotune=max_autotune)
    return from_code(program.code, device=device, folder=folder, references=program.references)


def from_code(text: str, *, device: Device, folder: Path, references: Mapping[str, str] | None = None) -> Found:
    """Write the kernels of a generated program into `folder`. references: as of
    inductor_writer.Program; a kernel without one is compared with itself under the default config."""
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
    return Found(tuple(load(path, trust=True) for path in paths), tuple(left))  # just written


@dataclass(frozen=True)
class CollectRequest:
    """A model to take apart. `offline` compiles its kernels only; `options` are further fields of the request of the
    collector that does the work: compile_facts if offline, else triton_kernels."""

    model: Callable[..., Any]
    inputs: tuple[Any, ...]
    device: Device
    folder: Path
    max_autotune: bool = False
    offline: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def collect(request: CollectRequest) -> Iterator[Measurement]:
    """Write the kernels, then measure them on this machine's GPU or, offline, compile them for the device."""
    found = workloads_of(
        request.model, *request.inputs, device=request.device, folder=request.folder, max_autotune=request.max_autotune
    )
    name = "compile_facts" if request.offline else "triton_kernels"
    collector = load_module(shipped("collectors") / f"{name}.py")
    asked = collector.CollectRequest(workloads=found.workloads, device=request.device, **request.options)
    yield from collector.collect(asked)


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
        "EVEN_K": _EVEN_K if kernel.kind == "template" else "",
        "BOUND": str(kernel.index_below or 2),
        "FLOATS": _POSITIVE if kernel.positive else "x",
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
        tiles = (16, 32, 64, 128, 256)
        space = {
            "BLOCK_M": tiles, "BLOCK_N": tiles, "BLOCK_K": tiles[:4], "GROUP_M": (8,),
            "num_warps": (2, 4, 8), "num_stages": (1, 2, 3, 4, 5),
        }  # fmt: skip
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
        names = [name for name in kernel.tunable if name != "EVEN_K"]
        return [{name: kernel.default[name] for name in (*names, "num_warps", "num_stages")}]
    import torch
    from torch._inductor.runtime import hints, triton_heuristics

    found: list[dict[str, int]] = []

    def keep(size_hints: Any, configs: Sequence[Any], *args: Any, **keywords: Any) -> Callable[[Any], Any]:
        for config in configs:
            values = {name: config.kwargs.get(name, kernel.fixed.get(name, 1)) for name in kernel.tunable}
            found.append({**values, "num_warps": config.num_warps, "num_stages": config.num_stages})
        return lambda function: function

    scope = {**vars(hints), "torch": torch, "triton_heuristics": triton_heuristics, "__file__": "program"}
    with mock.patch.object(triton_heuristics, "cached_autotune", keep):
        for wanted in ("False", "True"):
            call = kernel.heuristic
            for option in ("max_autotune", "max_autotune_pointwise"):
                call = call.replace(f"'{option}': {wanted != 'True'}", f"'{option}': {wanted}")
            try:
                eval(call, dict(scope))
            except (TypeError, AttributeError, KeyError, ImportError) as error:
                raise UserError(
                    f"got {kernel.name} with heuristics that torch {torch.__version__} does not run ({error}), "
                    "expected a program written by the same version; write it again with this torch"
                ) from error
    return [config for i, config in enumerate(found) if config not in found[:i]]


_EVEN_K = '    settings["EVEN_K"] = SIZES["K"] % settings["BLOCK_K"] == 0\n'
_POSITIVE = "x.abs() + 0.1"  # roots and logarithms need positive numbers

_BLOCKS_VALID = """    # from one value a thread to 128
    values = prod(v for name, v in {**FIXED, **config.as_dict()}.items() if name.endswith("BLOCK"))
    return 32 * config["num_warps"] <= values <= 128 * 32 * config["num_warps"]
"""

_MATMUL_VALID = """    # at most 256 sums a thread, and the stages' tiles within an SM's shared memory
    m, n, k = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]
    size = max(tensors.dtype_of(spec.dtype).itemsize for spec in problem.inputs)
    shared = dict(sheet.details).get("shared_bytes_per_unit", 1 << 17)
    sums = m * n / (32 * config["num_warps"])
    return 4 <= sums <= 256 and (m + n) * k * size * config["num_stages"] <= shared
"""

_SELF_REFERENCE = '''def reference(problem, inputs):
    """No torch graph of this kernel is known: its own answers under the default config, to which others must come."""
    outputs = tensors.empty(WRITTEN.values())
    for start in launch(problem, INDUCTOR[0], inputs, outputs):
        start.entry[start.grid](*start.args, **start.keywords)
    return outputs
'''
