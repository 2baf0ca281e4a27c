"""What the compiler says of one config, for a device that need not be here."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from costmodel import reading
from costmodel.cli.shared import GPU_LANGUAGES, Json, ProblemText, Trust, device_named
from costmodel.present import inspected_document, print_inspected, print_json
from costmodel.records import Config, Scalar, UserError

if TYPE_CHECKING:
    from costmodel.measure.gpu_compiling import GpuBuild
    from costmodel.records import Device


def inspect(
    kernel: Annotated[
        str, typer.Argument(help="A Triton or CUDA kernel: its name, its file, or any file with @triton.jit.")
    ],
    problem: ProblemText = None,
    config: Annotated[str | None, typer.Option(help="NAME=VALUE,... over the default config.")] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="A GPU's sheet by name; the GPU at hand if left out.")
    ] = None,
    stage: Annotated[
        str | None, typer.Option(help="Print this stage's text: ttir, ttgir, llir, ptx, sass, amdgcn.")
    ] = None,
    signature: Annotated[
        str | None,
        typer.Option(
            help="For a file without WORKLOAD: argument types in Triton's notation; :16 says divisible by 16."
        ),
    ] = None,
    entry: Annotated[str, typer.Option(help="With --signature: the function, where the file has several.")] = "",
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Compile one config and say what became of it: registers, spills, shared memory, instructions; nothing is run.

    Example: costmodel inspect triton/softmax --device H200 --config num_warps=8

    Example: costmodel inspect mine.py --signature "*fp16:16,*fp16:16,i32" --config BLOCK=1024,num_warps=4 --device A10
    """
    if signature is None:
        target, title, build = _of_workload(kernel, problem, config, device, stage, trust)
    else:
        target, title, build = _of_function(Path(kernel), entry, signature, config or "", device, stage, trust)
    document = inspected_document(build, target, title)
    if stage is not None and build.launches:
        if stage not in build.launches[0].text:
            there = ", ".join(build.launches[0].stages)
            raise UserError(f"got stage {stage!r}, expected one that compiling for {target.name} has: {there}")
        for row, launch in zip(document["launches"], build.launches, strict=True):
            row["text"] = launch.text[stage]
    if as_json:
        print_json(document)
    elif stage is not None and build.launches:
        print("\n".join(launch.text[stage] for launch in build.launches))
    else:
        print_inspected(document)


def _of_workload(
    kernel: str, problem: str | None, config: str | None, device: str | None, stage: str | None, trust: bool
) -> tuple[Device, str, GpuBuild]:
    from costmodel import workloads
    from costmodel.measure.gpu_compiling import GpuCompilePool

    if kernel.endswith(".py") and Path(kernel).is_file():
        _expect_workload(Path(kernel))
    workload = workloads.load(kernel, trust=trust)
    if workload.kernel.language not in GPU_LANGUAGES:
        raise UserError(f"got {workload.kernel.name}, a {workload.kernel.language} kernel, expected Triton or CUDA")
    target = _gpu(device, workload.kernel.language)
    chosen, settings = workloads.parse_problem(workload, problem), workloads.parse_config(workload, config)
    with GpuCompilePool(jobs=1) as pool:
        wanted = (workload.path, chosen, settings, target.arch)
        (build,) = pool.compile([wanted], stages=[stage] if stage else [], fresh=True)
    return target, f"{workload.kernel.name} {chosen} {settings}", build


def _of_function(
    file: Path, entry: str, signature: str, config: str, device: str | None, stage: str | None, trust: bool
) -> tuple[Device, str, GpuBuild]:
    from costmodel import workloads
    from costmodel.measure.gpu_compiling import GpuCompilePool

    if not file.is_file():
        raise UserError(f"no file {file}; --signature goes with a Python file that has @triton.jit functions")
    workloads.expect_trust(file, trust=trust)
    truths: dict[Scalar, Scalar] = {"True": True, "False": False}
    settings = Config.of(**{name: truths.get(x, x) for name, x in workloads.parse_assignments(config).items()})
    target = _gpu(device, "triton")
    with GpuCompilePool(jobs=1) as pool:
        stages = [stage] if stage else []
        build = pool.compile_function(file.resolve(), entry, signature, settings, target.arch, stages=stages)
    return target, f"{entry or file.name} ({signature}) {settings}", build


def _gpu(name: str | None, language: str) -> Device:
    from costmodel.measure.gpu_compiling import compiles_for

    target = device_named(name, language)
    if not compiles_for(target, language):
        raise UserError(f"got device {target.name} for a {language} kernel, expected a GPU such as H200")
    return target


def _expect_workload(file: Path) -> None:
    """UserError, with what to type, where the file has jit functions and no WORKLOAD; it is read and not run."""
    from costmodel.workloads import triton_source

    text = reading.source(file)
    functions = [
        node for node in reading.module(triton_source(text), file.name).body if isinstance(node, ast.FunctionDef)
    ]
    if not functions or any(
        isinstance(node, ast.Assign) and any(isinstance(x, ast.Name) and x.id == "WORKLOAD" for x in node.targets)
        for node in reading.module(text, file.name).body
    ):
        return
    function = functions[-1]
    arguments = function.args.args
    constants = [x.arg for x in arguments if x.annotation and "constexpr" in ast.unparse(x.annotation)]
    optional = [x.arg for x in arguments[len(arguments) - len(function.args.defaults) :]]
    types = ",".join("*fp16:16" if "ptr" in x.arg.lower() else "i32" for x in arguments if x.arg not in constants)
    settings = ",".join([*(f"{name}=64" for name in constants if name not in optional), "num_warps=4"])
    chosen = f" --entry {function.name}" if len(functions) > 1 else ""
    raise UserError(
        f"{file.name} has no WORKLOAD, so say the types of {function.name}'s arguments and its constants, such as: "
        f"costmodel inspect {file}{chosen} --signature {json.dumps(types)} --config {settings}"
    )
