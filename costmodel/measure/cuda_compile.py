"""CUDA text and a config -> a cubin, by NVRTC: needs neither a GPU nor a driver, nor a CUDA toolkit.

Every parameter of the config is a macro. Kernels are found by name in the cubin, so the text declares them
`extern "C" __global__`. NVRTC's own wheel has no headers: a text that includes some (cuda_fp16.h, mma.h) finds those
of the CUDA runtime's wheel, of a toolkit or of Triton.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from costmodel.records import Config, UserError

FLAGS = ("--std=c++17",)


class CompileError(Exception):
    """The compiler's first error, one line."""


def compile_cuda(source: str, config: Config, arch: str) -> bytes:
    """The cubin of a text for an architecture such as "sm_90"; CompileError where it has none, UserError without NVRTC.

    The kernels of a text are compiled together; sizes are run-time arguments, so one cubin serves all problems.
    """
    nvrtc = _nvrtc()
    macros = [f"-D{name}={int(value) if isinstance(value, bool) else value}" for name, value in config.params]
    headers = [f"--include-path={path}"] if (path := include_path()) else []
    flags = [f"--gpu-architecture={arch}", *FLAGS, *headers, *macros]
    program = _said(nvrtc.nvrtcCreateProgram(source.encode(), b"kernel.cu", 0, [], []))
    try:
        status = nvrtc.nvrtcCompileProgram(program, len(flags), [flag.encode() for flag in flags])[0]
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = _filled(nvrtc.nvrtcGetProgramLog, program, _said(nvrtc.nvrtcGetProgramLogSize(program)))
            raise CompileError(_first_error(log, status.name))
        return _filled(nvrtc.nvrtcGetCUBIN, program, _said(nvrtc.nvrtcGetCUBINSize(program)))
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def nvrtc_version() -> str:
    """ "13.5"; UserError without NVRTC."""
    major, minor = _said(_nvrtc().nvrtcVersion())
    return f"{major}.{minor}"


@functools.cache
def include_path() -> str | None:
    """The folder of CUDA's headers (cuda_fp16.h among them), the first there is: a wheel's, a toolkit's, Triton's."""
    wheels = [Path(place) for place in _places("nvidia")]
    found = [path for wheel in wheels for path in sorted(wheel.glob("*/include"))]
    found += [Path(os.environ[name], "include") for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    found += [Path(place, "backends", "nvidia", "include") for place in _places("triton")]
    found.append(Path("/usr/local/cuda/include"))
    return next((str(path) for path in found if (path / "cuda_fp16.h").is_file()), None)


def _places(package: str) -> list[str]:
    spec = importlib.util.find_spec(package)
    return list(spec.submodule_search_locations or ()) if spec else []


@functools.cache
def _nvrtc() -> ModuleType:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()  # loads the library
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"got no NVRTC ({str(error).splitlines()[0][:100]}), which compiles CUDA; pip install 'costmodel[cuda]'"
        ) from error
    return nvrtc


def _said(answer: tuple[Any, ...]) -> Any:
    """What a call returned, where it worked."""
    status, *values = answer
    if status.value != 0:
        raise CompileError(f"NVRTC answered {status.name}")
    return values[0] if len(values) == 1 else tuple(values)


def _filled(read: Any, program: Any, size: int) -> bytes:
    buffer = bytearray(size)
    _said(read(program, buffer))
    return bytes(buffer)


def _first_error(log: bytes, status: str) -> str:
    lines = [line.strip() for line in log.decode(errors="replace").strip("\0").splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\berror\b", line)]
    return (errors or lines or [f"NVRTC answered {status}"])[0][:400]
