"""Small programs as HLO text, and rows whose latency follows a known law."""

import random

import numpy as np

from costmodel.graph import parse
from costmodel.graph_lines import NUMBERS, program_of
from costmodel.graph_rows import Row

SUM = """
sum {
  a = f32[] parameter(0)
  b = f32[] parameter(1)
  ROOT s = f32[] add(a, b)
}
"""


def chain(seed, *, length=None, family="chain"):
    """HLO text: products of matrices, elementwise instructions and reductions, one after the other."""
    rng = random.Random(seed)
    rows, width = rng.choice([8, 32, 128, 512]), rng.choice([16, 64, 256])
    lines = [f"x0 = f32[{rows},{width}] parameter(0)", "zero = f32[] constant(0)"]
    last = 0
    for n in range(1, (length or rng.randint(3, 12)) + 1):
        kind = rng.choice(["dot", "dot", "tanh", "add", "multiply"])
        if kind == "dot":
            new = rng.choice([16, 64, 256])
            lines.append(f"w{n} = f32[{width},{new}] parameter({sum('parameter' in line for line in lines)})")
            width = new
            operands, attributes = f"x{last}, w{n}", ", lhs_contracting_dims={1}, rhs_contracting_dims={0}"
        else:
            operands, attributes = (f"x{last}" if kind == "tanh" else f"x{last}, x{last}"), ""
        lines.append(f"x{n} = f32[{rows},{width}] {kind}({operands}){attributes}")
        last = n
    lines.append(f"ROOT r = f32[{rows}] reduce(x{last}, zero), dimensions={{1}}, to_apply=sum")
    return f"HloModule m\n{SUM}\nENTRY e {{\n  " + "\n  ".join(lines) + "\n}\n"


def law_us(program):
    """A start of 1 us; products at 50 GFLOP/s and slower where small, tanh four times as slow per byte as the rest."""
    values = np.exp2(program.nodes.numbers.astype(float)) - 1
    total = 0.0
    for kind, row in zip(program.nodes.kinds, values, strict=True):
        cost = dict(zip(NUMBERS, row, strict=True))
        if cost["floor_us"] > 0:
            moved = cost["bytes_read"] + cost["bytes_written"]
            bandwidth = 2e3 if kind == "tanh" else 8e3
            peak = 50e3 * (0.2 if cost["flops"] < 1e6 else 1.0)
            total += cost["count"] * (1.0 + max(cost["flops"] / peak if kind == "dot" else 0.0, moved / bandwidth))
    return total


def rows(count, *, start=0):
    found = []
    for seed in range(start, start + count):
        program = program_of(parse(chain(seed)))
        found.append(Row(f"chain:{seed}", "chain", "eager", program, law_us(program)))
    return found
