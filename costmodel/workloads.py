"""Find and load tunable kernels: a name, a NAME.py or the NAME.cpp beside it -> Workload.

One NAME.py defines WORKLOAD, and may define FORMS, a mapping from a form's name to another Workload of the same
operation whose text stands in NAME__FORM.cpp. Files are loaded by path, never imported as packages: top-level packages
called `kernels` or `collectors` would shadow those of other projects.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

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


def shipped(folder: str) -> Path:
    """The folder `kernels`, `collectors` or `datasets`: beside the package in a checkout, inside it in a wheel."""
    inside = _HERE / "_data" / folder
    return inside if inside.is_dir() else _HERE.parent / folder


def load_module(path: Path) -> ModuleType:
    """Execute a file under a private module name, once per path."""
    path = path.resolve()
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
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"{path.name} cannot be loaded: {type(error).__name__}: {error}") from error
    return module


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
        source = text_path.read_text()
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
    source = text_path.read_text() if cuda else triton_source(path.read_text())
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
    for node in ast.parse(text).body:
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
    kernel = Kernel(text_path.stem, workload.kernel.language, text_path.read_text(), space.params)
    return dataclasses.replace(
        workload, kernel=kernel, space=space, default=default or workload.default, path=text_path
    )


def load(name: str | Path) -> Workload:
    """Load by name ("matmul", "triton/matmul", "matmul__packed", "loop_nest:17"), or by path (NAME.py, NAME.cpp,
    NAME.cu, NAME__FORM.cpp). A name without its language is C++'s where there is one, then CUDA's, then Triton's."""
    text = str(name)
    if ":" in text:
        stem, _, seed = text.partition(":")
        if not seed.isdigit():
            raise UserError(f"got {text!r}, expected GENERATOR:NUMBER such as loop_nest:17")
        return _attribute(_definition(stem), "generate")(int(seed))
    path = _definition(text)
    stem = Path(text).stem if Path(text).suffix else Path(text).name
    if "__" not in stem:
        return _attribute(path, "WORKLOAD")
    wanted = stem.partition("__")[2]
    forms = _attribute(path, "FORMS")
    if wanted not in forms:
        raise UserError(f"{path.name} has no form {wanted!r}; it has {', '.join(forms) or 'none'}")
    return forms[wanted]


def _definition(text: str) -> Path:
    """The NAME.py that defines a name or a path."""
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
        return path
    language, _, name = text.rpartition("/")
    for folder in sorted(shipped("kernels").glob(language or "*")):
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
