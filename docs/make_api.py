"""Writes docs/api.md: the public surface, from signatures and the first paragraphs of docstrings. Nothing is imported.

python docs/make_api.py
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

# What users call, by subject; of a module, the names in the tuple, or every public class and function with a docstring.
MODULES: dict[str, tuple[str, ...]] = {
    "records": (),
    "devices": ("detect", "find", "load_sheets"),
    "workloads": ("load", "names", "cpp_workload", "gpu_workload", "parse_problem", "parse_config"),
    "predictor": (),
    "search": (),
    "store": ("Store",),
    "dataset": ("Card", "write_parquet", "read_parquet", "Split", "split", "groups"),
    "evaluate": (),
    "uncertainty": (),
    "conformal": ("conformal_quantile", "space_weights", "device_weight"),
    "embeddings": ("embed", "EmbeddedModel"),
    "replay": ("spaces", "replay", "summary_rows"),
    "explain": ("explain", "Explanation"),
    "report": ("measured_html", "tuned_html", "gate_html", "replay_html", "write_html"),
    "table": ("TunedTable", "lookup"),
    "recipe": (),
    "examples": ("fit", "shards_of"),
    "tabular": (),
    "codecs": ("P10", "IEEE", "Normalized", "FixedPoint", "LinearGrid", "LogGrid", "QuantileGrid", "Repeated"),
    "codecs.grammar": ("NumberCodec", "Grammar"),
    "model.heads": (),
    "graph": ("parse", "read", "Module", "to_text", "costs", "facts", "canonical_text", "view"),
    "integrations.triton": ("prune", "install"),
    "integrations.kernel_tuner": ("strategy",),
    "integrations.optuna": ("CostModelSampler", "enqueue_best"),
    "integrations.helion": ("register",),
    "integrations.inductor": ("install",),
    "integrations.inductor_table": ("lookup_table",),
    "pytest_plugin": ("latency",),
    "gate.verdicts": ("Finding", "Rule", "judge"),
}
HEADER = """# API

The public surface, written by `python docs/make_api.py` from the docstrings; the other pages say what it is for. Times
are microseconds, sizes bytes. A user's mistake raises `records.UserError`, one line with what to do.
"""


def reference(root: Path) -> str:
    """The whole page, for the repository at `root`."""
    lines = [HEADER]
    for name, chosen in MODULES.items():
        tree, told = module(root, f"costmodel.{name}")
        lines.append(f"\n## costmodel.{name}\n\n{paragraph(tree)}\n")
        for one in chosen or [n for n, node in told.items() if not n.startswith("_") and ast.get_docstring(node)]:
            lines += entry(told.get(one) or imported(root, tree, one))
    return "\n".join(lines) + "\n"


Definition = ast.ClassDef | ast.FunctionDef


def module(root: Path, name: str) -> tuple[ast.Module, dict[str, Definition]]:
    """A module's text and what it defines."""
    path = root / name.replace(".", "/")
    file = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    tree = ast.parse(file.read_text())
    return tree, {node.name: node for node in tree.body if isinstance(node, Definition)}


def imported(root: Path, tree: ast.Module, name: str) -> Definition:
    """What a package has from one of its modules."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and name in {alias.name for alias in node.names}:
            return module(root, node.module)[1][name]
    raise SystemExit(f"got {name!r}, which no module defines; correct MODULES in docs/make_api.py")


def entry(node: Definition) -> Iterator[str]:
    """A function, or a class with its methods in one line."""
    if isinstance(node, ast.FunctionDef):
        yield f"- `{node.name}{signature(node)}` {paragraph(node)}".rstrip()
        return
    methods = [
        one
        for one in node.body
        if isinstance(one, ast.FunctionDef) and not one.name.startswith("_") and "overload" not in ast.dump(one)
    ]
    begin = next((m for m in node.body if isinstance(m, ast.FunctionDef) and m.name == "__init__"), None)
    yield f"- `class {node.name}{signature(begin) if begin else fields(node)}` {paragraph(node)}".rstrip()
    if methods:
        yield "  " + ", ".join(f"`.{m.name}{'' if is_property(m) else signature(m)}`" for m in methods)


def signature(node: ast.FunctionDef) -> str:
    """(a, *, b=1) -> int, without the types of the arguments: those are in the source."""
    arguments = node.args
    spelled = ast.arguments(
        posonlyargs=bare(arguments.posonlyargs),
        args=[one for one in bare(arguments.args) if one.arg not in ("self", "cls")],
        vararg=ast.arg(arguments.vararg.arg) if arguments.vararg else None,
        kwonlyargs=bare(arguments.kwonlyargs),
        kw_defaults=arguments.kw_defaults,
        kwarg=ast.arg(arguments.kwarg.arg) if arguments.kwarg else None,
        defaults=arguments.defaults,
    )
    returns = ast.unparse(node.returns) if node.returns and node.name != "__init__" else ""
    return f"({ast.unparse(spelled)})" + (f" -> {returns}" if returns not in ("", "None") else "")


def bare(arguments: list[ast.arg]) -> list[ast.arg]:
    return [ast.arg(one.arg) for one in arguments]


def fields(node: ast.ClassDef) -> str:
    """The fields of a dataclass, as its constructor takes them."""
    if "dataclass" not in ast.dump(ast.Module(node.decorator_list, [])):
        return ""
    told = [
        one.target.id + (f"={ast.unparse(one.value)}" if one.value else "")
        for one in node.body
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and not one.target.id.startswith("_")
    ]
    return f"({', '.join(told)})"


def is_property(node: ast.FunctionDef) -> bool:
    return any("property" in ast.unparse(one) for one in node.decorator_list)


def paragraph(node: ast.Module | Definition) -> str:
    """The first paragraph of a docstring, on one line."""
    first = re.split(r"\n\s*\n", ast.get_docstring(node) or "", maxsplit=1)[0]
    return " ".join(first.split())


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    (here / "api.md").write_text(reference(here.parent))
