"""C++ text and a config -> a shared library in a cache that is keyed by content.

Base flags, plus what the reserved parameters OPT, FASTMATH and VECTOR_BITS ask for, plus -DNAME=VALUE for every
parameter. Sizes are run-time arguments, so the problems of one config share one library.
"""

from __future__ import annotations

import os
import platform
import queue
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from costmodel.measure import channel
from costmodel.measure.helpers import Helper
from costmodel.measure.sealing import WRITABLE
from costmodel.records import Config, Scalar, UserError, digest

BASE_FLAGS = ("-std=c++17", "-O2", "-fopenmp", "-march=native", "-shared", "-fPIC")


@dataclass(frozen=True, slots=True)
class Compiler:
    """`command` starts it, `label` names it ("g++ 12.2.0"), `target` identifies what "native" means to it."""

    command: tuple[str, ...]
    label: str
    target: str

    @property
    def toolchain(self) -> tuple[tuple[str, str], ...]:
        return (("cxx", self.label), ("flags", " ".join(BASE_FLAGS)))


@dataclass(frozen=True, slots=True)
class Build:
    """A compiled library, or why there is none."""

    library: Path | None
    error: str = ""


def find_compiler() -> Compiler:
    """The system's C++ compiler: $CXX, else c++, g++ or clang++. UserError where there is none."""
    wanted = os.environ.get("CXX", "").strip()
    candidates = [shlex.split(wanted)] if wanted else [["c++"], ["g++"], ["clang++"]]
    for command in candidates:
        if found := shutil.which(command[0]):
            if os.sep in command[0]:  # it is started in another folder
                command[0] = os.path.abspath(found)
            return _describe(tuple(command))
    got = f"CXX={wanted}, which is not there" if wanted else "no c++, g++ or clang++ on the PATH"
    raise UserError(f"got {got}, expected a C++ compiler; install one (Debian, Ubuntu: apt install g++) or set CXX")


def _describe(command: tuple[str, ...]) -> Compiler:
    asked = ([*command, "--version"], [*command, "-march=native", "-fopenmp", "-x", "c++", "-E", "-v", os.devnull])
    try:
        version, target = (subprocess.run(x, capture_output=True, text=True, timeout=30, check=True) for x in asked)
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"got C++ compiler {shlex.join(command)}, which does not work ({error}); set CXX") from error
    first = version.stdout.splitlines()[0] if version.stdout else ""
    number = re.findall(r"\d+\.\d+(?:\.\d+)?", first)
    label = f"{'clang++' if 'clang' in first else 'g++'} {number[-1] if number else 'unknown'}"
    options = re.findall(r"-m(?:arch|tune|cpu)=\S+|-m[\w.-]+|--param[ =]\S+|-target-(?:cpu|feature) \S+", target.stderr)
    return Compiler(command, label, digest(first, sorted(set(options))))


def flags_of(config: Config) -> list[str]:
    """The flags beyond BASE_FLAGS that a config asks for."""
    flags: list[str] = []
    if config.get("OPT", 2) != 2:
        flags.append(f"-O{config['OPT']}")
    if config.get("FASTMATH", 0):
        flags.append("-ffast-math")
    if (bits := config.get("VECTOR_BITS", 0)) and platform.machine() in ("x86_64", "AMD64"):
        flags.append(f"-mprefer-vector-width={bits}")
    return flags + [f"-D{name}={_macro(value)}" for name, value in config.params]


def _macro(value: Scalar) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "costmodel" / "cpp"


class CompilePool:
    """Compiles in parallel on `cores`, by `jobs` launcher processes (one per core, unless given)."""

    def __init__(
        self, compiler: Compiler, cache: Path, *, cores: Sequence[int], timeout_s: float, jobs: int | None = None
    ) -> None:
        self.compiler, self.cache, self.timeout_s = compiler, cache.absolute(), timeout_s
        self.known: dict[str, Build] = {}
        self.cores, self.jobs = tuple(cores), jobs or len(cores)
        self.launchers: queue.SimpleQueue[Helper | None] = queue.SimpleQueue()
        for _ in range(self.jobs):
            self.launchers.put(None)  # starts when first needed
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write the compile cache {cache} ({error.strerror}); set XDG_CACHE_HOME") from error

    def key(self, source: str, config: Config) -> str:
        return digest(self.compiler.target, self.compiler.command, BASE_FLAGS, flags_of(config), source)

    def compile(self, wanted: Sequence[tuple[str, Config]]) -> list[Build]:
        """One Build for each (source, config), same order. Equal ones are compiled once, ever."""
        keys = [self.key(source, config) for source, config in wanted]
        todo = {key: job for key, job in zip(keys, wanted, strict=True) if key not in self.known}
        threads = ThreadPoolExecutor(self.jobs)
        try:
            builds = threads.map(lambda item: self._build(item[0], *item[1]), todo.items())
            self.known.update(zip(todo, builds, strict=True))
        finally:
            threads.shutdown(cancel_futures=True)  # on an error or an interrupt the rest is not wanted
        return [self.known[key] for key in keys]

    def _build(self, key: str, source: str, config: Config) -> Build:
        library = self.cache / key[:2] / f"{key}.so"
        if library.is_file():
            return Build(library)
        library.parent.mkdir(exist_ok=True)
        partial = library.with_name(f"{key}.{os.getpid()}.part")
        launcher = self.launchers.get()
        try:
            if launcher is None:
                launcher = Helper("costmodel.measure.launcher", {WRITABLE: str(self.cache)})
            command = [*self.compiler.command, *BASE_FLAGS, *flags_of(config), "-x", "c++", "-", "-o", str(partial)]
            request = {"command": command, "text": source, "timeout_s": self.timeout_s, "cores": self.cores}
            answer = launcher.ask(request, timeout_s=self.timeout_s + 30)
        except (channel.Closed, channel.Late) as error:
            if launcher is not None:
                launcher.close()
            launcher = None
            return Build(None, f"the compile process failed: {error}")
        finally:
            self.launchers.put(launcher)
        if answer["code"] != 0 or not partial.is_file():
            partial.unlink(missing_ok=True)
            if "No space left on device" in answer["said"]:  # says nothing about the kernel
                raise UserError(
                    f"the disk of {self.cache} or of the temporary folder is full; free space and run again"
                )
            return Build(None, _reason(answer, self.timeout_s))
        os.replace(partial, library)
        return Build(library)

    def close(self) -> None:
        for _ in range(self.jobs):
            if (launcher := self.launchers.get()) is not None:
                launcher.close()
            self.launchers.put(None)


def _reason(answer: dict[str, object], timeout_s: float) -> str:
    """The compiler's first error line."""
    if answer["code"] is None:
        return f"compiling took over {timeout_s:g} s"
    lines = [line.strip() for line in str(answer["said"]).splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\berror\b|undefined reference|cannot ", line)]
    return (errors or lines or [f"the compiler ended with code {answer['code']}"])[0][:400]
