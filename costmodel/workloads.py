"""Find and load tunable kernels: a name, a NAME.py or the NAME.cpp beside it -> Workload.

One NAME.py defines WORKLOAD, and may define FORMS, a mapping from a form's name to another Workload of the same
operation whose text stands in NAME__FORM.cpp. Files are loaded by path, never imported as packages: top-level packages
called `kernels` or `collectors` would shadow those of other projects.

To load a NAME.py is to execute it, with all that the user may do. `load` does so for shipped kernels and for the user's
own (see `is_own`); for any other file it has to be told, by `trust=True` or COSTMODEL_TRUST=1 in the environment.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import os
import re
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from costmodel import reading
from costmodel.records import (
    Config,
    Kernel,
    Launch,
    Problem,
    Scalar,
    SearchSpace,
    TensorSpec,
    UserError,
    Workload,
)

_HERE = Path(__file__).resolve().parent
SOURCE_SUFFIXES = (".cpp", ".cu")
TRUST = "COSTMODEL_TRUST"
_NAME = re.compile(r"(?:(\w+)/)?(\w+)", re.ASCII)
_LONGEST_SEED = 18  # digits


class Untrusted(UserError):
    """A file that would be executed lies outside the user's project, and nobody has said that it may be."""


def shipped(folder: str) -> Path:
    """The folder `kernels`, `collectors` or `datasets`: beside the package in a checkout, inside it in a wheel."""
    inside = _HERE / "_data" / folder
    return inside if inside.is_dir() else _HERE.parent / folder


def load_module(path: Path) -> ModuleType:
    """Execute a file under a private module name, once per path."""
    path = path.resolve()
    if reading.regular(path, expected="a Python file") > reading.MOST_SOURCE_BYTES:
        raise UserError(f"got {path} of over {reading.MOST_SOURCE_BYTES} bytes, expected a Python file")
    name = "costmodel._loaded." + "_".join(path.with_suffix("").parts[1:])
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"got {path}, expected a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except UserError:
        del sys.modules[name]
        raise
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(f"{path.name} cannot be loaded: {type(error).__name__}: {error}") from error
    return module


def collector_of(language: str) -> ModuleType:
    """The collector that runs kernels of a language on this machine."""
    path = shipped("collectors") / f"{language}_kernels.py"
    if not path.is_file():
        raise UserError(f"got a {language} kernel, which no collector runs; expected cpp, triton or cuda")
    return load_module(path)


def cpp_workload(
    file: str,
    *,
    space: SearchSpace,
    default: Config,
    make_problem: Callable[..., Problem],
    problems: Mapping[str, Mapping[str, Scalar]],
    make_inputs: Callable[[Problem, int], tuple[Any, ...]],
    reference: Callable[[Problem, tuple[Any, ...]], tuple[Any, ...]],
    tolerance: float = 1e-4,
    source: str | None = None,
) -> Workload:
    """The Workload of the C++ text beside `file` (a NAME.py passes its own `__file__`), or of `source`."""
    path = Path(file).resolve()
    if source is None:
        text_path = path.with_suffix(".cpp")
        if not text_path.is_file():
            raise UserError(f"{path.name} has no {text_path.name} beside it; write the kernel's text there")
        source = reading.source(text_path)
    return Workload(
        kernel=Kernel(path.stem, "cpp", source, space.params),
        space=space,
        default=default,
        problems={name: make_problem(**sizes) for name, sizes in problems.items()},
        make_problem=make_problem,
        make_inputs=make_inputs,
        reference=reference,
        tolerance=tolerance,
        path=path,
    )


def gpu_workload(
    file: str,
    *,
    space: SearchSpace,
    default: Config,
    make_problem: Callable[..., Problem],
    problems: Mapping[str, Mapping[str, Scalar]],
    make_inputs: Callable[[Problem, int], tuple[Any, ...]],
    outputs: Callable[[Problem], tuple[TensorSpec, ...]],
    reference: Callable[[Problem, tuple[Any, ...]], tuple[Any, ...]],
    launch: Callable[..., Sequence[Launch]],
    tolerance: float = 1e-4,
) -> Workload:
    """The Workload of the CUDA text in NAME.cu beside `file` where there is one, else of the Triton functions in it.

    `make_inputs` makes torch tensors on torch's default device, which whoever runs the kernel sets; `reference` takes
    them there. `launch` is called with tensors of torch's meta device where a variant is only compiled.
    """
    path = Path(file).resolve()
    text_path = path.with_suffix(".cu")
    cuda = text_path.is_file()
    source = reading.source(text_path) if cuda else triton_source(reading.source(path))
    if not source:
        raise UserError(f"{path.name} has no @triton.jit function and no {text_path.name} beside it; write one of them")
    return Workload(
        kernel=Kernel(path.stem, "cuda" if cuda else "triton", source, space.params),
        space=space,
        default=default,
        problems={name: make_problem(**sizes) for name, sizes in problems.items()},
        make_problem=make_problem,
        make_inputs=make_inputs,
        reference=reference,
        tolerance=tolerance,
        launch=launch,
        outputs=outputs,
        path=path,
    )


def triton_source(text: str) -> str:
    """The functions of a Python file that Triton compiles (those under a decorator called jit, without any others that
    they have), with the constants (`NAME = tl.constexpr(...)`) among them, in the file's order. Needs no Triton."""
    lines = text.splitlines()
    pieces = []
    for node in reading.module(text, "the file").body:
        spans: list[ast.expr | ast.stmt] = []
        if isinstance(node, ast.FunctionDef):
            jit = [decorator for decorator in node.decorator_list if _last_name(decorator) == "jit"]
            spans = [*jit, node] if jit else []
        elif isinstance(node, ast.Assign | ast.AnnAssign) and _last_name(node.value) == "constexpr":
            spans = [node]
        if spans:
            pieces.append("\n".join("\n".join(lines[span.lineno - 1 : span.end_lineno]) for span in spans))
    return "\n\n".join(pieces)


def _last_name(node: ast.AST | None) -> str:
    """ "jit" of `triton.jit`, of `jit` and of `triton.jit(noinline=True)`."""
    if isinstance(node, ast.Call):
        node = node.func
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def form(workload: Workload, name: str, *, space: SearchSpace | None = None, default: Config | None = None) -> Workload:
    """Another source of the same operation: the text in NAME__FORM.cpp, with its own space where it has one."""
    text_path = workload.path.with_name(f"{workload.path.stem}__{name}.cpp")
    space = space or workload.space
    kernel = Kernel(text_path.stem, workload.kernel.language, reading.source(text_path), space.params)
    return dataclasses.replace(
        workload, kernel=kernel, space=space, default=default or workload.default, path=text_path
    )


def is_own(path: Path) -> bool:
    """Whether a file is shipped with this package or the user's own: it belongs to him (or to root), nobody else may
    write it, and it lies in the folder that he works in or, where that is in a git work tree, anywhere in that.

    A tree that is the whole disk or his home is no project: of it only the files directly in the current folder count.
    """
    path, here = path.resolve(), Path.cwd().resolve()
    if path.is_relative_to(shipped("kernels").resolve()):
        return True
    found = path.stat()
    if found.st_uid not in (os.getuid(), 0) or stat.S_IMODE(found.st_mode) & stat.S_IWOTH:
        return False
    project = next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), here)
    if project in (Path(project.anchor), Path.home().resolve()):
        return path.parent == here
    return path.is_relative_to(project)


def expect_trust(path: Path, *, trust: bool = False) -> None:
    """Untrusted, with what would be executed and how to allow it, unless `is_own` or told."""
    if not (trust or os.environ.get(TRUST) == "1" or is_own(path)):
        raise Untrusted(
            f"got {path}, a file from outside your project, and using it executes the Python in it as you; read it, "
            f"then add --trust (in Python: trust=True, in CI: {TRUST}=1)"
        )


def load(name: str | Path, *, trust: bool = False) -> Workload:
    """Load by name ("matmul", "triton/matmul", "matmul__packed", "loop_nest:17"), or by path (NAME.py, NAME.cpp,
    NAME.cu, NAME__FORM.cpp). A name without its language is C++'s where there is one, then CUDA's, then Triton's.

    A path's NAME.py is executed; for one that is not the user's own say `trust=True` (see `is_own`).
    """
    text = str(name)
    if ":" in text:
        stem, _, seed = text.rpartition(":")
        if not (seed.isascii() and seed.isdigit() and len(seed) <= _LONGEST_SEED):
            raise UserError(f"got {text!r}, expected GENERATOR:NUMBER such as loop_nest:17")
        return _attribute(_definition(stem, trust=trust), "generate")(int(seed))
    path = _definition(text, trust=trust)
    stem = Path(text).stem if Path(text).suffix else Path(text).name
    if "__" not in stem:
        return _attribute(path, "WORKLOAD")
    wanted = stem.partition("__")[2]
    forms = _attribute(path, "FORMS")
    if wanted not in forms:
        raise UserError(f"{path.name} has no form {wanted!r}; it has {', '.join(forms) or 'none'}")
    return forms[wanted]


def _definition(text: str, *, trust: bool) -> Path:
    """The NAME.py that defines a name or a path, and that may be executed."""
    given = Path(text)
    if given.suffix:
        if not given.is_file():
            raise UserError(f"no file {text}; give a kernel file or one of: {', '.join(names())}")
        path = given if given.suffix == ".py" else given.with_name(given.stem.partition("__")[0] + ".py")
        if given.suffix != ".py" and given.suffix not in SOURCE_SUFFIXES:
            raise UserError(f"got {given.name}, expected a .py, .cpp or .cu file")
        if not path.is_file():
            raise UserError(
                f"{given.name} has no {path.name} beside it; `costmodel new {given.name}` writes one to fill in"
            )
        expect_trust(path, trust=trust)
        return path
    named = _NAME.fullmatch(text)  # anything else would lead out of the folder
    language, name = named.groups() if named else ("", "")
    for folder in sorted(shipped("kernels").glob(language or "*")) if name else ():
        path = folder / f"{name.partition('__')[0]}.py"
        if path.is_file():
            return path
    raise UserError(f"no kernel {text!r}; there are: {', '.join(names())}; or give a file")


def _attribute(path: Path, attribute: str) -> Any:
    module = load_module(path)
    if not hasattr(module, attribute):
        raise UserError(f"{path.name} defines no {attribute}; see kernels/cpp/matmul.py for an example")
    return getattr(module, attribute)


def names(language: str = "cpp") -> list[str]:
    """The shipped kernels and their forms, sorted. Generators of kernels are not among them."""
    found: list[str] = []
    for path in sorted((shipped("kernels") / language).glob("*.py")):
        module = load_module(path)
        if hasattr(module, "WORKLOAD"):
            found.append(path.stem)
            found += [f"{path.stem}__{name}" for name in getattr(module, "FORMS", {})]
    return found


def parse_problem(workload: Workload, text: str | None) -> Problem:
    """A listed name, or sizes such as M=512,N=512 over the first listed problem's; None is the first."""
    first = next(iter(workload.problems.values()))
    if text is None:
        return first
    if text in workload.problems:
        return workload.problems[text]
    if "=" not in text:
        raise UserError(f"no problem {text!r} of {workload.kernel.name}; it lists {', '.join(workload.problems)}")
    sizes = dict(first.params)
    for name, value in parse_assignments(text).items():
        if name not in sizes:
            raise UserError(f"got size {name!r}, expected one of {', '.join(sizes)}")
        if isinstance(sizes[name], int) and (not isinstance(value, int) or value < 1):
            raise UserError(f"got {name}={value}, expected a positive whole number")
        sizes[name] = value
    return workload.make_problem(**sizes)


def parse_config(workload: Workload, text: str | None) -> Config:
    """KEY=VALUE,... over the default config; None is the default."""
    chosen = workload.default.as_dict()
    for name, value in parse_assignments(text or "").items():
        allowed = dict(workload.space.params).get(name)
        if allowed is None:
            raise UserError(f"got parameter {name!r}, expected one of {', '.join(chosen)}")
        if value not in allowed:
            raise UserError(f"got {name}={value}, expected one of {', '.join(map(str, allowed))}")
        chosen[name] = value
    return Config(tuple(chosen.items()))


def parse_assignments(text: str) -> dict[str, Scalar]:
    """ "M=512,MODE=fast" -> {"M": 512, "MODE": "fast"}"""
    result: dict[str, Scalar] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or not name or not value:
            raise UserError(f"got {part!r}, expected NAME=VALUE")
        result[name.strip()] = _scalar(value.strip())
    return result


def _scalar(text: str) -> Scalar:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
