"""HLO text to modules and back, and what is refused. Texts of the project's own making stand in golden/hlo/."""

import re

import pytest
from hlo_modules import GOLDEN, blanks, entry, modules
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from costmodel.graph import Shape, TupleShape, canonical_text, facts, parse, read, to_text, view
from costmodel.records import UserError


@pytest.mark.parametrize("name", GOLDEN)
def test_text_is_read_and_printed_as_it_was(name):
    module = parse(GOLDEN[name])
    printed = to_text(module, percent=name != "before")
    assert parse(printed) == module
    if name != "loose":  # written as XLA's printer would not
        assert blanks(printed) == blanks(GOLDEN[name])


def test_what_is_read_is_what_stands_there():
    module = parse(GOLDEN["optimized"])
    main = module.entry_computation
    assert (module.name, module.entry, len(module.computations), module.num_instructions) == (
        "jit_step",
        "main.6",
        5,
        33,
    )
    assert dict(module.attributes)["frontend_attributes"] == '{note="a \\"quoted\\" {brace"}'
    assert module.preamble.startswith('FileNames\n1 "model.py"')
    assert main.header == "(x.1: f32[8,16], w.1: f32[16,32], n.1: s32[]) -> (f32[8,16], s32[])"
    assert [i.name for i in main.parameters] == ["x.1", "w.1", "n.1"]
    assert main.root.name == "result"
    assert main.root.operands == ("call", "n.1")
    assert main.by_name["while"].called == ("condition", "body")
    assert main.by_name["while"].shape == TupleShape((Shape("s32", ()), Shape("f32", (8, 32), "1,0")))
    assert main.by_name["call"].attribute("output_to_operand_aliasing") == "{{}: (0, {})}"
    assert main.by_name["call"].attribute("backend_config") == '{index = 0 : ui64, name = "a}b"}'
    assert main.by_name["call"].attribute("nothing", "else") == "else"
    fused = module.by_name["fused_dot"].root
    assert fused.attribute("metadata") == '{op_name="jit(step)/dot_general[\\"x\\", {y}]" stack_frame_id=2}'


def test_threads_layouts_and_async_pairs():
    module = parse(GOLDEN["async"])
    main = module.entry_computation
    assert module.by_name["wrapped"].attributes == (("execution_thread", '"side"'),)
    assert main.by_name["y"].shape == Shape("f32", (4, 8), "1,0:T(8,128)(2,1)S(1)")
    assert [type(e) for e in main.by_name["async-start"].shape.elements] == [TupleShape, Shape, Shape]
    assert main.by_name["async-start"].called == ("wrapped",)


def test_dynamic_sizes_buffers_and_literals():
    main = parse(GOLDEN["dynamic"]).entry_computation
    assert main.by_name["bounded"].shape == Shape("f32", (3,), "0", dynamic=(0,))
    assert main.by_name["u"].shape.dims == (-1, 4)
    assert main.by_name["buffer"].shape == TupleShape((Shape("f32", (4,), "0"),), prefix="b")
    main = parse(GOLDEN["literals"]).entry_computation
    assert main.by_name["complex"].literal == "{(1, 2), (3, -4)}"
    assert main.by_name["nibbles"].shape.bytes == 3
    assert main.by_name["none"].shape == TupleShape(())
    assert len(main.root.operands) == 11


def test_what_only_a_careless_writer_writes():
    module = parse(GOLDEN["loose"])
    last = module.entry_computation  # the last computation, where none is marked
    assert last.name == "last"
    assert last.by_name["g"].operands == ("t",)
    assert last.by_name["s"].operands == ("x", "g")
    assert last.by_name["x"].attribute("metadata") == '{op_name="a//b /*no comment*/" source_file="x y.py"}'
    assert last.by_name["z"].literal == "{ { 1, 2 }, /*i=1*/ { 3, 4 } }"
    assert module.by_name["add.1"].root.operands == ("a", "b")


def test_print_without_metadata_names_no_file():
    text = to_text(parse(GOLDEN["optimized"]), metadata=False)
    assert ".py" not in text
    assert "op_name" not in text
    assert "s32[8,32] iota()" in to_text(parse(GOLDEN["optimized"]), layouts=False)


def test_a_huge_constant_is_one_literal():
    values = ", ".join(map(str, range(200_000)))
    module = entry(f"ROOT c = s32[200000]{{0}} constant({{{values}}})")
    assert parse(to_text(module)) == module
    assert canonical_text(module) == "s32\n constant[200000]iota\n"


@given(modules(), st.booleans())
@settings(deadline=None)
def test_random_modules_are_printed_and_read(module, percent):
    assert parse(to_text(module, percent=percent)) == module


# ------------------------------------------------------------------------------------------------------------ errors

START = "HloModule m\nENTRY e {\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: got the end of the text, expected HloModule and a name"),
        ("digraph {}", "line 1: got 'digraph {}', expected HloModule and a name"),
        ("HloModule m\n", "expected a computation"),
        ("HloModule m, x", "expected an attribute: name=value"),
        (START, "expected '}' after the instructions of 'e'"),
        (START + "}", "expected an instruction in 'e'"),
        (START + " a = f33[] parameter(0)}", "line 3: got 'f33', expected an element type"),
        (START + " a = f32[-1] parameter(0)}", "expected a shape like"),
        (START + " a = f32[1,,2] parameter(0)}", "expected sizes separated by commas"),
        (START + f" a = f32[{'9' * 50}] parameter(0)}}", "expected sizes separated by commas"),
        (START + f" a = f32[{'9999999999,' * 9}1] parameter(0)}}", "expected at most 2^62 elements"),
        (START + " a = (f32[], s32[] parameter(0)}", "expected ',' or ')' in a tuple shape"),
        (START + " a = f32[]}", "expected an opcode and '('"),
        (START + " a = f32[] add(b)}", "got the operand 'b', expected an instruction that stands before its user"),
        (START + " a = f32[] add(a)}", "got the operand 'a', expected an instruction that stands before its user"),
        (START + " a = f32[] parameter(x)}", "expected the number of a parameter"),
        (START + " a = f32[] parameter(1)}", "got parameters '[1]' in 'e', expected each of 0, 1, ... once"),
        (START + " a = f32[] parameter(0)\n a = f32[] add(a)}", "line 4: got a second 'a'"),
        (START + " ROOT a = f32[] parameter(0) ROOT b = f32[] add(a)}", "got 2 instructions marked ROOT"),
        (START + " a = f32[] parameter(0)}\n}", "expected a computation: its name"),
        (START + " a = f32[] parameter(0)}\nENTRY f { a = f32[] parameter(0)}", "got 2 computations marked ENTRY"),
        (START + " a = f32[] parameter(0)}\ne { a = f32[] parameter(0)}", "line 4: got a second 'e'"),
        (START + " a = f32[] parameter(0), x=(]", "expected the bracket that was opened to be closed first"),
        (START + ' a = f32[] parameter(0), x="b\n', "expected '\"' at the end of quoted text on the same line"),
        (START + " a = f32[] constant({1, 2)", "expected the bracket that was opened"),
        (START + " a = f32[] constant({1, 2}", "expected ')' after this bracket"),
        (START + " a = f32[] constant(1), x={ /* }", "expected '*/' after this comment"),
        (START + " a = f32[] constant(1), x=", "expected the value of an attribute"),
        (START + " a = f32[] add(), to_apply=b}", "got a call of 'b' in 'e', expected a computation of the module"),
        (START + " a = f32[] call(), to_apply=e}", "got calls in a circle, at or above 'e'"),
        ("HloModule m\n\0", "line 2: got the character '\\x00', expected HLO text"),
        (START + " a = " + "(" * 1_000_000, "expected tuples at most 100 deep"),
        (START + " a = f32[] constant(" + "{" * 1_000_000, "expected brackets at most 100 deep"),
        (START + " a = f32[] add(" + "b, " * 100_000, "expected"),
        (START + "/*" * 1_000_000, "expected an instruction"),
        (START + ' a = f32[] add(), x="' + '\\"' * 1_000_000, "expected '\"' at the end"),
        (START + " " + "a" * 1_000_000, "expected an instruction"),
        (START + " a = f32[2]{" + "0," * 1_000_000, "expected an opcode"),
    ],
    ids=lambda value: value[-24:] if len(value) < 200 else "huge",
)
def test_what_is_no_hlo_gets_one_line(text, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_computations_that_call_in_a_circle():
    text = "HloModule m\n" + "\n".join(f"c{i} {{ a = f32[] call(), to_apply=c{(i + 1) % 500} }}" for i in range(500))
    with pytest.raises(UserError, match="got calls in a circle"):
        parse(text)


def test_limits():
    text = START + "\n".join(f" a{i} = f32[] constant({i})" for i in range(10)) + "}"
    assert parse(text, max_instructions=10).num_instructions == 10
    with pytest.raises(UserError, match="line 12: got over 9 instructions"):
        parse(text, max_instructions=9)
    with pytest.raises(UserError, match="expected at most 20"):
        parse(text, max_chars=20)
    with pytest.raises(UserError, match="at most 1 deep"):
        parse(START + " a = ((f32[])) parameter(0)}", max_nesting=1)


def test_a_file_is_read_and_its_faults_name_it(tmp_path):
    path = tmp_path / "x.hlo"
    path.write_text(GOLDEN["before"])
    assert read(path) == parse(GOLDEN["before"])
    with pytest.raises(UserError, match=r"x\.hlo: got \d+ characters of HLO text, expected at most 1000"):
        read(path, max_chars=1000)
    with pytest.raises(UserError, match=r"x\.hlo: got \d+ bytes, expected at most 100 characters"):
        read(path, max_chars=100)
    path.write_bytes(b"HloModule m\xff")
    with pytest.raises(UserError, match="byte 11 is no UTF-8"):
        read(path)
    with pytest.raises(UserError, match="No such file"):
        read(tmp_path / "none")


def test_calls_that_double_at_each_level_stay_finite():
    levels = ["c0 { a = f32[4] parameter(0) ROOT b = f32[4] tanh(a) }"]
    call = "c{0} {{ a = f32[4] parameter(0) b = f32[4] call(a), to_apply=c{1} ROOT c = f32[4] call(b), to_apply=c{1} }}"
    levels += [call.format(i, i - 1) for i in range(1, 2000)]
    module = parse("HloModule m\n" + "\n".join(levels))
    total = facts(module)
    assert 1e90 < total.flops < float("inf")
    assert canonical_text(module).count("\n") == 2001


@given(st.sampled_from(sorted(GOLDEN)), st.data())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_mutilated_text_is_read_or_refused(name, data):
    text = GOLDEN[name]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        length = data.draw(st.integers(0, 60))
        new = data.draw(
            st.sampled_from(["", text[at + length : at + 3 * length]]) | st.text('(){}[],=%"\\/*\n .0aé:', max_size=4)
        )
        text = text[:at] + new + text[at + length :]
    refused = ""
    try:
        module = parse(text)
        again = parse(to_text(module))
        canonical_text(module)
        facts(module)
        view(module)
    except UserError as error:
        refused = str(error)
    else:
        assert again == module
    assert "\n" not in refused
