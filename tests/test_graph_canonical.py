"""Canonical text: the same for the same program, another where costs are; and how repeats are folded."""

import random
import re
import textwrap
from dataclasses import replace

import pytest
from hlo_modules import GOLDEN, entry, modules
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.graph import Computation, Module, canonical, canonical_text, canonical_words, parse
from costmodel.graph.bodies import letters
from costmodel.graph.folding import Repeat, folded
from costmodel.graph.hlo import CALLS


def disguised(module: Module, seed: int) -> Module:
    """Other names, another order of instructions and computations, other metadata: the same program."""
    order = random.Random(seed)

    def renamed(names: list[str], prefix: str) -> dict[str, str]:
        numbers = order.sample(range(10 * len(names)), len(names))
        return {name: f"{prefix}{number}" for name, number in zip(names, numbers, strict=True)}

    calls = renamed([c.name for c in module.computations], "other.")
    computations = []
    for computation in module.computations:
        new = renamed([i.name for i in computation.instructions], "x.")
        waiting, moved, done = list(computation.instructions), [], set()
        while waiting:
            ready = [i for i in waiting if set(i.operands) <= done]
            chosen = order.choice(ready)
            waiting.remove(chosen)
            done.add(chosen.name)
            attributes = [
                (k, re.sub(r"[\w.\-]+", lambda m: calls[m[0]], v) if k in CALLS else v) for k, v in chosen.attributes
            ]
            attributes = [pair for pair in attributes if pair[0] != "metadata"] + [
                ("metadata", f'{{op_name="{seed}"}}')
            ]
            is_root = chosen.name == computation.root.name
            operands = tuple(new[operand] for operand in chosen.operands)
            moved.append(
                replace(chosen, name=new[chosen.name], operands=operands, attributes=tuple(attributes), is_root=is_root)
            )
        computations.append(Computation(calls[computation.name], tuple(moved)))
    order.shuffle(computations)
    return Module("another", (), tuple(computations), calls[module.entry])


@given(modules(), st.integers(0, 1 << 30))
@settings(max_examples=300, deadline=None)
def test_names_and_order_leave_the_canonical_text_alone(module, seed):
    assert canonical_text(disguised(module, seed)) == canonical_text(module)


@pytest.mark.parametrize("name", GOLDEN)
def test_names_and_order_leave_the_canonical_text_of_real_text_alone(name):
    module = parse(GOLDEN[name])
    assert {canonical_text(disguised(module, seed)) for seed in range(20)} == {canonical_text(module)}


@given(modules())
@settings(deadline=None)
def test_every_instruction_stands_in_one_word(module):
    listed = [pair for word in canonical_words(module) for pair in word.instructions]
    assert len(listed) == len(set(listed))
    reached, waiting = set(), [module.entry]
    while waiting:
        computation = module.by_name[waiting.pop()]
        reached.add(computation.name)
        waiting += [called for i in computation.instructions for called in i.called]
    assert set(listed) == {(name, i.name) for name in reached for i in module.by_name[name].instructions}


# ------------------------------------------------------------------------------------------------------------- text


def test_canonical_text_of_a_loop_and_a_branch():
    assert canonical_text(parse(GOLDEN["before"])) == (
        "f32 A=8,32\n"
        "@a: p p maximum\n"
        "@b: p add.Oa\n"
        "@c: p negate\n"
        "@d: p get0 constant:s32(10) compare,LT\n"
        "@e: p get0 constant:s32(1) add get.d1 sine tuple\n"
        " constant:s32(0) p+2:s32[] p-3[8,16],sharding={devices=[2,1]<=[2]} p[16,32] dot:A,operand_precision={highest,"
        "highest} constant(-inf) reduce.bO[8]@a{b} broadcast:A{a} subtract conditional.OOa@b@c tuple while@d@e\n"
    )


def test_repeated_layers_are_folded():
    lines = ["x0 = f32[8,16] parameter(0)"]
    for i in range(24):
        lines.append(f"w{i} = f32[16,16] parameter({i + 1})")
        lines.append(f"d{i} = f32[8,16] dot(x{i}, w{i}), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}")
        lines.append(f"x{i + 1} = f32[8,16] tanh(d{i})")
    module = entry(*lines)
    assert canonical_text(module) == "f32 A=8,16\n p:A 24( p[16,16] dot:A tanh )\n"
    (word,) = [word for word in canonical_words(module) if word.text == " tanh"]
    assert word.instructions == tuple(("e", f"x{i + 1}") for i in range(24))


def test_the_text_of_the_docstring():
    module = parse("""HloModule m
        sum { a = f32[] parameter(0) b = f32[] parameter(1) ROOT c = f32[] add(a, b) }
        ENTRY e {
          x = f32[8,16]{1,0} parameter(0)
          w = f32[16,32]{1,0} parameter(1)
          v = f32[32]{0} parameter(2)
          d = f32[8,32]{1,0} dot(x, w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
          b = f32[8,32]{1,0} broadcast(v), dimensions={1}
          s = f32[8,32]{1,0} add(d, b)
          t = f32[8,32]{1,0} tanh(s)
          z = f32[] constant(0)
          ROOT r = f32[8]{0} reduce(t, z), dimensions={1}, to_apply=sum
        }""")
    assert textwrap.indent(canonical_text(module), "    ") in canonical.__doc__


def test_layers_of_other_sizes_are_folded_with_a_table():
    lines = ["x0 = f32[8,16] parameter(0)"]
    for i in range(8):
        m, n = 16 * (i + 1), 16 * (i + 2)
        lines.append(f"w{i} = f32[{m},{n}] parameter({i + 1})")
        lines.append(f"d{i} = f32[8,{n}] dot(x{i}, w{i}), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}")
        lines.append(f"c{i} = f32[] constant({i})")
        lines.append(f"b{i} = f32[8,{n}] broadcast(c{i}), dimensions={{}}")
        lines.append(f"x{i + 1} = f32[8,{n}] add(d{i}, b{i})")
    text = canonical_text(entry(*lines))
    rows = ";".join(f"[{16 * (i + 1)},{16 * (i + 2)}],[8,{16 * (i + 2)}],({i})" for i in range(8))
    assert text == f"f32\n p[8,16] 8[{rows}]( p:a dot:b constant:c broadcast:b{{}} add )\n"
    for change in (("[8,48]", "[8,49]"), ("constant(5)", "constant(6)")):
        assert canonical_text(entry(*(line.replace(*change) for line in lines))) != text


def test_computations_that_differ_in_sizes_are_one_with_arguments():
    bodies = [f"c{n} {{ p = f32[{n}] parameter(0) z = f32[] constant({n}) b = f32[{n}] broadcast(z), dimensions={{}} "
              f"ROOT r = f32[{n}] add(p, b) }}" for n in (4, 5)]  # fmt: skip
    calls = "\n".join(f"x{n} = f32[{n}] parameter({n - 4}) y{n} = f32[{n}] call(x{n}), to_apply=c{n}" for n in (4, 5))
    module = parse(
        "HloModule m\n" + "\n".join(bodies) + f"ENTRY e {{ {calls} ROOT t = (f32[4], f32[5]) tuple(y4, y5) }}"
    )
    assert canonical_text(module) == (
        "f32 A=4 B=5\n@a: p constant:%a broadcast:%b{} add\n p:A call:A@a[(4),:A] p:B call:B@a[(5),:B] tuple\n"
    )
    (word,) = [word for word in canonical_words(module) if word.text == " add"]
    assert set(word.instructions) == {("c4", "r"), ("c5", "r")}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("sine(value.1)", "cosine(value.1)"),
        ("constant(10)", "constant(11)"),
        ("constant(-inf)", "constant(inf)"),
        ("dimensions={0}", "dimensions={1}"),
        ("operand_precision={highest,highest}", "operand_precision={high,highest}"),
        ("lhs_contracting_dims={1}", "lhs_contracting_dims={0}"),
        ("sub.1 = f32[8,32]{1,0}", "sub.1 = f32[8,32]{0,1}"),
        ("sub.1 = f32[8,32]{1,0}", "sub.1 = bf16[8,32]{1,0}"),
        ("w.1 = f32[16,32]{1,0} parameter(1)", "w.1 = f32[16,32]{1,0} parameter(2)"),
        ("subtract(dot.1, wide.1)", "subtract(wide.1, dot.1)"),
        ("branch_computations={double.4, negate.5}", "branch_computations={negate.5, double.4}"),
        ("ROOT add.2 = f32[8,32]{1,0} add(y.1, y.1)", "ROOT add.2 = f32[8,32]{1,0} negate(y.1)"),
        ("compare(count.2, limit.1), direction=LT", "compare(count.2, limit.1), direction=LE"),
        ("devices=[2,1]<=[2]", "devices=[1,2]<=[2]"),
    ],
)
def test_what_decides_cost_is_in_the_canonical_text(old, new):
    text = GOLDEN["before"]
    assert old in text
    changed = text.replace(old, new)
    if "parameter(2)" in new:
        changed = changed.replace("choice.1 = s32[] parameter(2)", "choice.1 = s32[] parameter(1)")
    assert canonical_text(parse(changed)) != canonical_text(parse(text))


def test_what_does_not_decide_cost_is_not():
    before = canonical_text(parse(GOLDEN["optimized"]))
    assert ".py" not in before
    assert "jit" not in before
    text = GOLDEN["optimized"]
    for old, new in [
        ("stack_frame_id=2", "stack_frame_id=1"),
        ("model.py", "other.py"),
        ("is_scheduled=true, ", ""),
        ('"outer_dimension_partitions":["2"]', '"outer_dimension_partitions":["8"]'),
        ("f32[8,32]{1,0}", "f32[8,32]"),
        ("API_VERSION_TYPED_FFI", "API_VERSION_ORIGINAL"),
    ]:
        assert old in text
        text = text.replace(old, new)
    assert canonical_text(parse(text)) == before


@pytest.mark.parametrize(
    ("shape", "literal", "written"),
    [
        ("f32[4]", "{0, 0, 0, 0}", "constant[4]zeros"),
        ("f32[2,2]", "{ { 1, 1 }, { 1, 1 } }", "constant[2,2]ones"),
        ("s32[4]", "{0, 1, 2, 3}", "constant[4]iota"),
        ("s32[2]", "{7, 7}", "constant[2]same"),
        ("s32[2]", "{...}", "constant[2]~"),
        ("f32[]", "0.5", "constant(0.5)"),
        ("f32[]", "0.0441941731", "constant~"),
        ("s32[]", "1000000", "constant(1000000)"),
    ],
)
def test_constants_are_told_by_their_kind(shape, literal, written):
    usual = shape[:3]
    module = entry(f"p = {usual}[9,9] parameter(0)", f"ROOT c = {shape} constant({literal})")
    assert canonical_text(module).split(";")[0].endswith(written)


def test_letters():
    assert [letters(n) for n in (0, 25, 26, 27, 701, 702)] == ["a", "z", "aa", "ab", "zz", "aaa"]


# ---------------------------------------------------------------------------------------------------------- folding


@given(
    st.lists(st.integers(0, 2), max_size=60)
    | st.builds(
        lambda a, n, b: a + b * n + a,
        *(st.lists(st.integers(0, 3), max_size=9), st.integers(0, 6)) * 1,
        st.lists(st.integers(0, 3), max_size=9),
    )
)
def test_what_is_folded_unfolds(sequence):
    def unfolded(nodes, shift=0):
        found = []
        for node in nodes:
            if isinstance(node, Repeat):
                found += [
                    position
                    for turn in range(node.times)
                    for position in unfolded(node.inside, shift + turn * node.length)
                ]
            else:
                found.append(node + shift)
        return found

    tree = folded(sequence)
    assert unfolded(tree) == list(range(len(sequence)))

    def check(nodes):
        for node in nodes:
            if isinstance(node, Repeat):
                first = unfolded([node])
                turns = [
                    sequence[first[0] + t * node.length : first[0] + (t + 1) * node.length] for t in range(node.times)
                ]
                assert all(turn == turns[0] for turn in turns)
                check(node.inside)

    check(tree)


def test_folding_finds_loops_in_loops():
    inner = [1, 2, 3, 4, 5, 6, 7] * 3
    tree = folded([0, *([*inner, 8, 9] * 5)])
    assert [type(node) for node in tree] == [int, Repeat]
    assert (tree[1].times, tree[1].length) == (5, 23)
    assert (tree[1].inside[0].times, tree[1].inside[0].length) == (3, 7)
