"""HLO texts and random modules that several files of tests share."""

import re
from dataclasses import replace
from pathlib import Path

from hypothesis import strategies as st

from costmodel.graph import Computation, Instruction, Module, Shape, TupleShape, parse

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = {path.stem: path.read_text() for path in sorted((ROOT / "tests/golden/hlo").glob("*.hlo"))}


def blanks(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def entry(*lines: str) -> Module:
    return parse("HloModule m\nENTRY e {\n" + "\n".join(lines) + "\n}")


SHAPES = st.sampled_from(
    [
        Shape("f32", ()),
        Shape("f32", (4, 8), "1,0"),
        Shape("f32", (4, 8), "0,1:T(8,128)"),
        Shape("bf16", (8,)),
        Shape("pred", (2, 0, 3)),
        Shape("s32", (5, 7), dynamic=(1,)),
        TupleShape((Shape("f32", (4, 8)), TupleShape(()), Shape("token", ()))),
    ]
)
EXTRAS = st.sampled_from(
    [
        (),
        (("dimensions", "{1}"),),
        (("dimensions", "{0}"), ("is_stable", "true")),
        (("custom_call_target", '"a\\"}, b"'), ("backend_config", '{"n":[1,{"k":"}"}]}')),
        (("sharding", "{devices=[2,1]<=[2]}"), ("metadata", '{op_name="x/y" source_line=3}')),
        (("slice", "{[0:4], [2:8:2]}"),),
    ]
)


@st.composite
def modules(draw) -> Module:
    computations: list[Computation] = []
    for number in range(draw(st.integers(1, 4))):
        body: list[Instruction] = []
        for i in range(draw(st.integers(1, 12))):
            names = [before.name for before in body]
            kind = draw(
                st.sampled_from(["parameter", "constant", "add", "negate", "tuple", "reduce", "iota", "fusion"])
            )
            parameters = sum(before.opcode == "parameter" for before in body)
            literal = {"parameter": str(parameters), "constant": draw(st.sampled_from(["1", "-inf", "{1, 1}"]))}
            count = 0 if kind in literal or not names else draw(st.integers(0, 7 if kind == "tuple" else 2))
            attributes = draw(EXTRAS)
            if kind in ("reduce", "fusion") and computations:
                attributes += (("to_apply", "%" + draw(st.sampled_from(computations)).name),)
            operands = tuple(draw(st.sampled_from(names)) for _ in range(count))
            body.append(Instruction(f"i{i}", draw(SHAPES), kind, operands, attributes, literal.get(kind, "")))
        root = draw(st.integers(0, len(body) - 1))
        body[root] = replace(body[root], is_root=True)
        computations.append(Computation(f"c{number}", tuple(body)))
    return Module("m", (("is_scheduled", "true"),), tuple(computations), computations[-1].name)
