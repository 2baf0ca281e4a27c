"""A variant on a device as text: (variant, device) -> Prompt.

Source, device and problem are the prefix that all candidates of one search share; the config is the suffix. An operator
(a library call that nobody tunes) has no config: there the sizes are the suffix, so that one prefix serves all of its
problems, told as magnitudes and as ratios of the floor's terms. Source is canonical: comments, docstrings and layout
never reach the model, so they cannot change a prediction. The schema (`param NAME: v1 v2 ...`) stands before the text,
so a reader from left to right knows what the names in it can be, and a budget that cuts the source at its end never
cuts the schema.
"""

from __future__ import annotations

import dataclasses
import heapq
import importlib
import math
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

from costmodel import devices, floor
from costmodel.records import Device, Kernel, Problem, Prompt, Scalar, TensorSpec, UserError, Variant

if TYPE_CHECKING:
    import tree_sitter

_GRAMMARS = {"cpp": "cpp", "opencl": "cpp", "cuda": "cuda", "hip": "cuda", "triton": "python"}

# One lexer for the C family. It finds comments before the grammar sees the text (a comment inside a macro body makes
# the C++ grammar fail), splits macro bodies, which the grammar leaves whole, and stands in where the grammar fails.
_C_TOKEN = re.compile(
    r"""(?P<comment>//[^\n]*|/\*(?s:.*?)(?:\*/|\Z))
      | (?P<token>
          (?:u8|[uUL])?R"(?P<fence>[^()\\\s]{0,16})\((?s:.*?)(?:\)(?P=fence)"|\Z)   # raw string
        | (?:u8|[uUL])?"(?:\\.|[^"\\\n])*"(?:_\w+)? | (?:u8|[uUL])?'(?:\\.|[^'\\\n])*'
        | \.?\d(?:[eEpP][+-]|'?[\w.])* | [^\W\d]\w*
        | <<=|>>=|<=>|\.\.\.|->\*|::|->|\+\+|--|<<|>>|[-+*/%&|^!=<>]=|&&|\|\||\#\#
        | \S)""",
    re.VERBOSE,
)
_PYTHON_TOKEN = re.compile(
    r"""(?P<comment>\#[^\n]*)
      | (?P<token>[rbuftRBUFT]{0,2}(?:\"{3}(?s:.*?)(?:\"{3}|\Z)|'{3}(?s:.*?)(?:'{3}|\Z)
                     |"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
        | \.?\d[\w.]* | [^\W\d]\w* | \*\*=|//=|>>=|<<=|->|:=|\*\*|//|<<|>>|[-+*/%&|^!=<>@]= | \S)""",
    re.VERBOSE,
)
_PRAGMA = re.compile(r"^[ \t]*#[ \t]*pragma\b.*$", re.MULTILINE)
_OPERATORS = frozenset("+-*/%&|^!=<>:.#")
_ATOMS = frozenset({"string_literal", "raw_string_literal", "char_literal", "user_defined_literal",
                    "system_lib_string", "string"})  # fmt: skip
_PYTHON_CLAUSES = frozenset({"else_clause", "elif_clause", "except_clause", "except_group_clause", "finally_clause",
                             "case_clause"})  # fmt: skip
_PYTHON_BRACKETS = frozenset({"argument_list", "parameters", "list", "dictionary", "set"})


def prompt(variant: Variant, device: Device) -> Prompt:
    """The text of one variant on one device; equal for kernels that differ only in layout and comments."""
    kernel, sizes = variant.kernel, variant.problem
    if kernel.language == "operator":
        frame = "estimate" if floor.has_floor(sizes) else "median"
        problem = f"operator {sizes.dtype} relative to {frame}"
        return Prompt(_source(kernel), device_text(device, sizes.dtype), problem, _operator_sizes(sizes, device))
    return Prompt(_source(kernel), device_text(device, sizes.dtype), _problem(sizes, device), _config(variant))


def reference_us(variant: Variant, device: Device) -> float | None:
    """What a slowdown is relative to, in microseconds: for an operator what its library's kernel is expected to take,
    else the analytic floor. None where the problem states neither flops nor bytes: its latencies are relative to the
    median of their space, which a probe or two must find out."""
    if not floor.has_floor(variant.problem):
        return None
    of = floor.estimate_us if variant.kernel.language == "operator" else floor.floor_us
    return of(variant.problem, device)


@lru_cache(maxsize=4096)
def canonical_source(kernel: Kernel) -> str:
    """The kernel's text without comments, docstrings and layout. Text that does not parse is split by a plain lexer;
    a kernel without text is its origin and name. Never fails."""
    text = kernel.source
    if text is None:
        return f"kernel {kernel.origin} {kernel.name}".replace("  ", " ")
    text = text.encode("utf-8", errors="replace").decode().replace("\r\n", "\n")
    if kernel.language == "triton":
        return _canonical_python(text)
    if kernel.language in _GRAMMARS:
        return _canonical_c(text, kernel.language)
    return "\n".join(filter(None, (" ".join(line.split()) for line in text.splitlines())))


# ---------------------------------------------------------------------------------------------------------- source


@lru_cache(maxsize=4096)
def _source(kernel: Kernel) -> str:
    schema = [f"param {name}: {' '.join(map(_value, values))}" for name, values in kernel.schema]
    return "\n".join([*schema, canonical_source(kernel)])


def _value(value: Scalar) -> str:
    """A config value as text; quoted only where a blank would split it."""
    text = str(value)
    return repr(text) if not text or any(map(str.isspace, text)) else text


@lru_cache(maxsize=8)
def _parser(language: str) -> tree_sitter.Parser:
    """Imported here and not above: the store stands on this module, and some GPU machines have no tree-sitter."""
    name = f"tree_sitter_{_GRAMMARS[language]}"
    try:
        import tree_sitter

        grammar = importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"got no {error.name}, which reading {language} source needs; pip install {name.replace('_', '-')} "
            "tree-sitter, or train on token shards (`costmodel train --shards`)"
        ) from error
    return tree_sitter.Parser(tree_sitter.Language(grammar.language()))


def _canonical_c(text: str, language: str) -> str:
    """One statement per line, one preprocessor directive per line, blanks only where two tokens would merge."""
    text = re.sub(r"\\\n", "", text)
    text = _C_TOKEN.sub(lambda m: " " if m["comment"] else m[0], text)
    if language in ("cuda", "hip"):
        text = re.sub(r"\b__align__(?=\s*\()", "alignas", text)  # the same thing, and the grammar knows it
    source_lines = text.split("\n")
    # A pragma may stand before any statement, which the grammar does not know: it parses the text without them.
    pragmas = [(row, line.strip()) for row, line in enumerate(source_lines) if _PRAGMA.match(line)]
    root = _parser(language).parse(_PRAGMA.sub("", text).encode()).root_node
    tokens = _lexed(text) if root.has_error else heapq.merge(pragmas, _leaves(root), key=lambda token: token[0])
    lines: list[list[str]] = [[]]
    directive_row, last_row, depth = -1, -1, 0
    for row, token in tokens:
        if row == directive_row:
            continue
        if token.startswith("#") and row != last_row:
            lines += [[_directive(source_lines[row])], []]
            directive_row = last_row = row
            continue
        last_row = row
        if lines[-1] and lines[-1][-1] == "}" and token not in (";", ",", ")"):
            lines.append([])
        lines[-1].append(token)
        depth = max(0, depth + (token in ("(", "[")) - (token in (")", "]")))
        if token == "{" or (token == ";" and depth == 0):
            lines.append([])
    return "\n".join(_joined(line) for line in lines if line)


def _leaves(root: tree_sitter.Node) -> Iterator[tuple[int, str]]:
    """(row, text) of a tree's tokens, from left to right; a stack, as text nests deeper than Python recurses."""
    stack = [root]
    while stack:
        node = stack.pop()
        if node.child_count and node.type not in _ATOMS:
            stack.extend(reversed(node.children))
        elif text := (node.text or b"").decode(errors="replace").strip():
            if node.type == "preproc_arg":
                yield from ((node.start_point.row, token) for _, token in _lexed(text))
            else:
                yield node.start_point.row, text


def _lexed(text: str) -> Iterator[tuple[int, str]]:
    row = position = 0
    for match in _C_TOKEN.finditer(text):
        row += text.count("\n", position, match.start())
        position = match.start()
        if match["token"]:
            yield row, match["token"]


def _directive(line: str) -> str:
    """`#  define F(x)  ((x)+1)` -> `#define F(x) ((x)+1)`; a blank before `(` has a meaning here and is kept."""
    name, rest = re.match(r"\s*#\s*(\w*)\s*(.*)", line, re.DOTALL).groups()  # type: ignore[union-attr]
    macro = re.match(r"(\w+(?:\([^)]*\))?)\s*(.*)", rest, re.DOTALL) if name == "define" else None
    parts = macro.groups() if macro else (rest,)
    return " ".join([f"#{name}", *filter(None, (_joined([token for _, token in _lexed(part)]) for part in parts))])


def _joined(tokens: list[str]) -> str:
    """Tokens with a blank only where the two would read as one."""
    pieces: list[str] = []
    last = ""
    for token in tokens:
        if last and _merges(last, token[0]):
            pieces.append(" ")
        pieces.append(token)
        last = token[-1]
    return "".join(pieces)


def _merges(left: str, right: str) -> bool:
    def word(character: str) -> bool:
        return character.isalnum() or character in "_\"'"

    if word(left) and word(right):
        return True
    if left.isdigit() and right == ".":
        return True
    return left in _OPERATORS and right in _OPERATORS and not left == right == ":"


def _canonical_python(text: str) -> str:
    """One statement per line, one blank per level of indentation, no docstrings."""
    root = _parser("triton").parse(text.encode()).root_node
    if root.has_error:
        return _lexed_python(text)
    lines: list[tuple[int, list[str]]] = [(0, [])]
    stack: list[tuple[tree_sitter.Node, str, int, bool]] = [(root, "", 0, False)]
    while stack:
        node, parent, depth, starts_line = stack.pop()
        if starts_line:
            lines.append((depth, []))
        if not node.child_count or node.type in _ATOMS:
            if token := (node.text or b"").decode(errors="replace").strip():
                lines[-1][1].append(token)
            continue
        inner = depth + (node.type == "block")
        children = [child for child in node.children if child.type not in ("comment", "line_continuation")]
        if node.type in ("module", "block"):
            scope = node.type == "module" or parent in ("function_definition", "class_definition")
            children = [c for i, c in enumerate(children) if c.type != ";" and not (scope and i == 0 and _is_text(c))]
        if node.type in _PYTHON_BRACKETS:
            children = [
                c for c, after in zip(children, [*children[1:], None], strict=True)
                if not (c.type == "," and after is not None and after.type in (")", "]", "}"))
            ]  # fmt: skip
        own_line = [
            node.type in ("module", "block", "decorated_definition") or c.type in _PYTHON_CLAUSES for c in children
        ]
        if node.type == "decorated_definition":
            own_line[0] = False  # the definition itself already began a line
        stack.extend((c, node.type, inner, own) for c, own in reversed(list(zip(children, own_line, strict=True))))
    return "\n".join(" " * depth + _joined(line) for depth, line in lines if line)


def _is_text(node: tree_sitter.Node) -> bool:
    return node.type == "expression_statement" and all(
        child.type in ("string", "concatenated_string") for child in node.children
    )


def _lexed_python(text: str) -> str:
    text = _PYTHON_TOKEN.sub(lambda m: "" if m["comment"] else m[0], text)
    lines = []
    for line in text.expandtabs(4).splitlines():
        tokens = [m["token"] for m in _PYTHON_TOKEN.finditer(line) if m["token"]]
        if tokens:
            lines.append(" " * (len(line) - len(line.lstrip())) + _joined(tokens))
    return "\n".join(lines)


# --------------------------------------------------------------------------------------- device, problem and config


def _number(value: float) -> str:
    """Three or four significant digits, no exponent where that is short, so that each digit is a token: 2048, 0.147."""
    if not math.isfinite(value):
        return "?"
    rounded = float(f"{value:.4g}" if abs(value) >= 1000 else f"{value:.3g}")
    return f"{rounded:.0f}" if 100 <= abs(rounded) < 1e9 else f"{rounded:g}"


def _or_unknown(value: float) -> str:
    """A sheet writes 0 for a number it does not have."""
    return _number(value) if value > 0 else "?"


@lru_cache(maxsize=4096)
def device_text(device: Device, dtype: str) -> str:
    """The sheet as one line: what decides speed, for arithmetic on `dtype`. The name is left out: it says nothing to a
    reader that has never met the device."""
    peak = devices.peak_tflops(device, dtype)
    ratio = peak * 1e3 / device.peak_gb_per_s if device.peak_gb_per_s > 0 else 0.0
    per_unit = peak * 1e6 / device.num_units / device.clock_mhz if device.num_units and device.clock_mhz else 0.0
    fields = [
        f"device {device.kind} {device.vendor} {device.arch}",
        f"units {_or_unknown(device.num_units)}",
        f"clock_mhz {_or_unknown(device.clock_mhz)}",
        f"{dtype} tflops {_or_unknown(peak)}",
        f"flops_per_unit_cycle {_or_unknown(per_unit)}",
        f"gb_per_s {_or_unknown(device.peak_gb_per_s)}",
        f"flops_per_byte {_or_unknown(ratio)}",
        f"l2_kib {_or_unknown(device.l2_bytes / 1024)}",
    ]
    for name, value in device.details:
        if name.endswith("_bytes") and isinstance(value, int):
            fields.append(f"{name.removesuffix('_bytes')}_kib {_or_unknown(value / 1024)}")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            fields.append(f"{name} {_or_unknown(value)}")
    return " ".join(fields)


@lru_cache(maxsize=4096)
def vendor_only(device: Device) -> Device:
    """The sheet without its numbers. With a handful of devices in training a number is a name in disguise; the vendor
    is what an unseen device is most likely to share with a seen one."""
    blank = tuple((name, value if isinstance(value, str | bool) else 0) for name, value in device.details)
    return dataclasses.replace(
        device, arch="?", num_units=0, clock_mhz=0.0, peak_tflops=(), peak_gb_per_s=0.0, l2_bytes=0, details=blank
    )


@lru_cache(maxsize=4096)
def _problem(problem: Problem, device: Device) -> str:
    """Sizes, shapes and the floor; amounts as log2 with one decimal, since their ratios are what matters."""
    fields = [f"problem {problem.op}", *(f"{name}={value}" for name, value in problem.params)]
    fields += [_tensor(spec) for spec in problem.inputs]
    if not floor.has_floor(problem):
        return " ".join([*fields, "relative to median"])
    fields += [f"flops {_power(problem.flops)}", f"bytes {_power(problem.bytes)}"]
    return " ".join([*fields, f"floor_us {_power(floor.floor_us(problem, device))}", "relative to floor"])


def _tensor(spec: TensorSpec) -> str:
    return f"{spec.dtype}[{','.join(map(str, spec.shape))}]"


def _power(value: float) -> str:
    """ "2^9.3": one decimal of the logarithm."""
    return f"2^{math.log2(value):.1f}" if value > 0 else "?"


@lru_cache(maxsize=65536)
def _operator_sizes(problem: Problem, device: Device) -> tuple[str, ...]:
    """NAME~magnitude for each size and the expected time (log2 to a half), whether sizes are multiples of 4, and of a
    matrix product how its time on tiles and in memory compares with it (log2 to a quarter, at most 4 doublings off).

    Nothing here names the device: a ratio that hardly varies on one (power over compute, rows in flight over L2) would,
    with a handful of devices to learn from.
    """
    parts = floor.terms(problem, device)
    expected = floor.estimate_us(problem, device) if floor.has_floor(problem) else 1.0
    settings = [f"{name}~{_steps(math.log2(max(float(value), 1.0)), 0.5)}" for name, value in problem.params]
    settings.append(f"expected_us~{_steps(math.log2(expected), 0.5)}")
    if "tile_us" in parts:
        for name in ("tile", "memory"):
            ratio = math.log2(max(parts[f"{name}_us"], 1e-9) / expected)
            settings.append(f"{name}/expected~{_steps(min(max(ratio, -4.0), 4.0), 0.25)}")
    aligned = "".join("y" if int(value) % 4 == 0 else "n" for _, value in problem.params)
    return (*settings, f"aligned~{aligned}")


def _steps(value: float, step: float) -> str:
    return f"{round(value / step) * step:g}"


def _config(variant: Variant) -> tuple[str, ...]:
    """NAME=value in schema order, or in the config's own where the kernel has no schema; a parameter that has but one
    value is left to the schema.

    The name stands beside each value, since "4" means little and THREADS=4 means the same in every kernel.
    """
    given = variant.config.as_dict()
    schema = dict(variant.kernel.schema)
    names = list(schema) or list(given)
    if set(names) != set(given):
        raise UserError(f"got config {variant.config}, expected values for {', '.join(names)} and no others")
    return tuple(f"{name}={_value(given[name])}" for name in names if len(schema.get(name, ())) != 1)
