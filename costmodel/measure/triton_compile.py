"""Compile Triton launches for a GPU that need not be there.

A driver that only names a target lets a jit function's own `warmup` specialize and compile as it would on that GPU, so
what lands in Triton's disk cache is what a later run there takes from it. Tensors may be on torch's meta device.

This module is imported by processes that compile and by nobody else: it imports torch and triton.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import triton
from triton._utils import type_canonicalisation_dict
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.compiler import ASTSource, CompiledKernel, make_backend
from triton.runtime.jit import JITFunction, KernelInterface

from costmodel import workloads
from costmodel.measure import facts
from costmodel.records import Launch, Scalar, UserError

TEXT_STAGES = ("ttir", "ttgir", "llir", "ptx", "amdgcn")


def target_of(arch: str) -> GPUTarget:
    """ "sm_90" -> cuda:90, "gfx942" -> hip with 64 lanes, "gfx1100" -> hip with 32."""
    if number := re.fullmatch(r"sm_(\d+)", arch):
        return GPUTarget("cuda", int(number.group(1)), 32)
    if re.fullmatch(r"gfx[0-9a-f]+", arch):
        return GPUTarget("hip", arch, 32 if re.match(r"gfx1\d", arch) else 64)
    raise UserError(f"got architecture {arch!r}, expected one that Triton compiles for, such as sm_90 or gfx942")


class OfflineDriver(DriverBase):
    """Names a target and can do nothing else."""

    def __init__(self, target: GPUTarget, number: int) -> None:
        self.target, self.number = target, number

    @classmethod
    def is_active(cls) -> bool:
        return False  # nobody is to pick it unasked

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")

    def get_benchmarker(self) -> Any:
        raise RuntimeError("nothing can be timed on a GPU that is not there")

    def get_current_device(self) -> int:
        """One for each target: a jit function keeps what it has compiled by the device's number."""
        return self.number

    def get_current_stream(self, device: int) -> int:
        return 0


class TritonCompiler:
    """Compiles launches and keeps in mind what the stages took, for later launches that are the same kernel."""

    def __init__(self) -> None:
        self.drivers: dict[str, OfflineDriver] = {}
        self.numbers = itertools.count()
        self.stage_s: dict[str, dict[str, float]] = {}  # by Triton's hash of the kernel
        triton.knobs.compilation.listener = self._listen

    def _listen(self, *, metadata: Mapping[str, Any], times: Any, cache_hit: bool, **rest: Any) -> None:
        if not cache_hit:
            self.stage_s[metadata["hash"]] = {stage: us / 1e6 for stage, us in times.lowering_stages}

    def aim(self, arch: str) -> GPUTarget:
        """From now on Triton compiles for this architecture."""
        if arch not in self.drivers:
            self.drivers[arch] = OfflineDriver(target_of(arch), next(self.numbers))
        triton.runtime.driver.set_active(self.drivers[arch])
        return self.drivers[arch].target

    def launches(
        self,
        launches: Iterable[Launch],
        arch: str,
        *,
        stages: Sequence[str] = (),
        instructions: bool = True,
        fresh: bool = False,
    ) -> list[dict[str, Any]]:
        """Each launch as a message (see `_message`); what the compiler refuses is raised as it raises it.

        `fresh` compiles again what Triton's caches have, to see what the stages take.
        """
        self.aim(arch)
        triton.knobs.compilation.always_compile = fresh
        done = []
        for launch in launches:
            if fresh:
                launch.entry.device_caches.clear()
            kernel = launch.entry.warmup(*launch.args, grid=launch.grid, **launch.keywords)
            done.append(self._message(kernel, arch, stages, instructions=instructions))
        return done

    def function(
        self,
        path: Path,
        entry: str,
        signature: str,
        settings: Mapping[str, Scalar],
        arch: str,
        *,
        stages: Sequence[str] = (),
    ) -> dict[str, Any]:
        """A jit function of any file, its argument types in Triton's own notation ("*fp16:16,i32"), compiled afresh."""
        target = target_of(arch)
        function = _function(path, entry)
        constants = {name: value for name, value in settings.items() if name in function.arg_names}
        options = {name: value for name, value in settings.items() if name not in constants}
        known = make_backend(target).parse_options({}).__dict__
        if unknown := [name for name in options if name not in known]:
            raise UserError(
                f"got {unknown[0]!r}, expected an argument of {function.__name__} ({', '.join(function.arg_names)}) "
                "or one of Triton's options such as num_warps"
            )
        source = _source(function, signature, constants)
        self.aim(arch)
        triton.knobs.compilation.always_compile = True
        kernel = triton.compile(source, target=target, options=options)
        return self._message(kernel, arch, stages, instructions=True)

    def _message(
        self, kernel: CompiledKernel, arch: str, stages: Sequence[str], *, instructions: bool
    ) -> dict[str, Any]:
        """name, facts, stage_s (empty where an earlier process compiled it), stages with a text, the texts asked."""
        metadata = kernel.metadata
        threads = metadata.num_warps * self.drivers[arch].target.warp_size
        if "cubin" in kernel.asm:
            found = facts.of_cubin(
                kernel.asm["cubin"],
                arch,
                threads=threads,
                dynamic_shared_bytes=metadata.shared,
                tensor_memory_columns=getattr(metadata, "tmem_size", 0) or 0,
                instructions=instructions,
            )
        else:
            found = facts.of_amdgcn(kernel.asm["amdgcn"], threads=threads, shared_bytes=metadata.shared)
        texts = {name: text for name, text in kernel.asm.items() if name in TEXT_STAGES}
        if "cubin" in kernel.asm:
            texts["sass"] = facts.sass(kernel.asm["cubin"]) if "sass" in stages else ""
        return {
            "name": metadata.name,
            "facts": found,
            "stage_s": self.stage_s.get(kernel.hash, {}),
            "stages": list(texts),
            "text": {stage: texts[stage] for stage in stages if stage in texts},
        }


# ---- files without a WORKLOAD ----


def _function(path: Path, entry: str) -> JITFunction[Any]:
    module = workloads.load_module(path)
    found = {name: _undecorated(value) for name, value in vars(module).items()}
    here = {
        name: value
        for name, value in found.items()
        if isinstance(value, JITFunction) and value.fn.__module__ == module.__name__
    }
    if not here:
        raise UserError(f"{path.name} has no function under @triton.jit; inspect takes one that has")
    if entry and entry not in here:
        raise UserError(f"{path.name} has no jit function {entry!r}; it has {', '.join(here)}")
    if not entry and len(here) > 1:
        raise UserError(f"{path.name} has several jit functions: say which with --entry {' or --entry '.join(here)}")
    return here[entry] if entry else next(iter(here.values()))


def _undecorated(value: object) -> object:
    """The jit function under Triton's autotune and heuristics."""
    while isinstance(value, KernelInterface) and not isinstance(value, JITFunction):
        value = getattr(value, "fn", None)
    return value


def _source(function: JITFunction[Any], signature: str, constants: Mapping[str, Scalar]) -> ASTSource:
    types = [part.strip() for part in re.split(r",(?![^<]*>)", signature) if part.strip()]
    constexprs = [parameter.name for parameter in function.params if parameter.is_constexpr]
    arguments = [name for name in function.arg_names if name not in constexprs and name not in constants]
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(function.fn).parameters.items()
        if parameter.default is not inspect.Parameter.empty and name in constexprs
    }
    values: dict[str, Any] = {**defaults, **constants}
    if len(types) != len(arguments):
        raise UserError(
            f"got {len(types)} types, expected one for each of {', '.join(arguments) or 'no argument'}: "
            f'--signature "{",".join("*fp16:16" if "ptr" in name else "i32" for name in arguments)}" or such'
        )
    if missing := [name for name in constexprs if name not in values]:
        raise UserError(f"got no value of {', '.join(missing)}, expected --config {missing[0]}=64 or such")
    kinds, attributes = dict.fromkeys(values, "constexpr"), {}
    for name, text in zip(arguments, types, strict=True):
        kind, _, hint = text.partition(":")
        kinds[name] = _canonical(kind)
        if hint == "16":
            attributes[(function.arg_names.index(name),)] = [["tt.divisibility", 16]]
        elif hint == "1":
            kinds[name], values[name] = "constexpr", 1
        elif hint:
            raise UserError(f"got {text!r}, expected a type alone, with :16 (divisible by 16) or with :1 (equal to 1)")
    ordered = {name: kinds[name] for name in function.arg_names}
    return ASTSource(fn=function, signature=ordered, constexprs=values, attrs=attributes)


def _canonical(kind: str) -> str:
    """ "*float16" -> "*fp16" """
    plain = kind.lstrip("*k")
    star = kind[: len(kind) - len(plain)]
    if plain.startswith("tensordesc<"):
        return kind
    if plain not in type_canonicalisation_dict:
        raise UserError(f"got type {kind!r}, expected one of Triton's, such as *fp16 (a pointer), bf16, fp32, i32, i64")
    return f"{star}{type_canonicalisation_dict[plain]}"


# ---- what went wrong ----


def reason(error: BaseException, said: str) -> str:
    """One line for what a compile raised: its own last words, with the compiler's where they say more.

    `said` is what was written to standard error meanwhile, where MLIR and LLVM put the cause.
    """
    causes = [error]
    while (deeper := causes[-1].__cause__) is not None:
        causes.append(deeper)
    text = str(causes[-1]).strip()
    lines = [line.strip() for line in f"{text}\n{said}".splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"\b(error|fatal|failed to|LLVM ERROR)\b", line)]
    last = text.splitlines()[-1].strip() if text else ""
    if type(error).__name__ == "PTXASError" or "PassManager" in text:
        last = next((line for line in telling if "PassManager" not in line), last)
    place = re.search(r"^at (\d+):\d+:", str(error).strip())
    where = f" (line {place.group(1)} of the function)" if place else ""
    return f"{type(causes[-1]).__name__}: {last}{where}"[:400]
