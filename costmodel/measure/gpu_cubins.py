"""Cubins of CUDA kernels, on disk: what is compiled ahead in one process is loaded by another, and no config twice."""

from __future__ import annotations

import os
import time
from pathlib import Path

from costmodel.measure.compiling import default_cache
from costmodel.measure.cuda_compile import FLAGS, compile_cuda, nvrtc_version
from costmodel.records import Config, UserError, digest


def cubin_of(source: str, config: Config, arch: str, *, fresh: bool = False) -> tuple[bytes, float | None]:
    """The cubin, and the seconds it took to compile it, None where it was on disk. Raises as compile_cuda does.

    `fresh` compiles again what is on disk.
    """
    key = digest(source, config.params, arch, FLAGS, nvrtc_version())
    path = default_cache().with_name("cuda") / key[:2] / f"{key}.cubin"
    if path.is_file() and not fresh:
        return path.read_bytes(), None
    start = time.monotonic()
    cubin = compile_cuda(source, config, arch)
    taken_s = time.monotonic() - start
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{key}.{os.getpid()}.part")
        partial.write_bytes(cubin)
        os.replace(partial, path)
    except OSError as error:
        folder = Path(*path.parts[:-2])
        raise UserError(f"cannot write the compile cache {folder} ({error.strerror}); set XDG_CACHE_HOME") from error
    return cubin, taken_s
