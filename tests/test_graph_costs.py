"""What follows from shapes: arithmetic, traffic and memory of instructions and modules; the networkx view."""

import pytest
from hlo_modules import GOLDEN, entry

from costmodel.graph import costs, facts, parse, view
from costmodel.graph.costs import peak_bytes
from costmodel.records import UserError

PRODUCT = "lhs_contracting_dims={1}, rhs_contracting_dims={0}"


@pytest.mark.parametrize(
    ("lines", "flops", "transcendentals", "read", "written"),
    [
        (["r = f32[8,16] add(x, x)"], 128, 0, 512, 512),
        (["r = f32[8,16] tanh(x)"], 128, 128, 512, 512),
        (["w = f32[16,4] parameter(1)", f"r = f32[8,4] dot(x, w), {PRODUCT}"], 1024, 0, 768, 128),
        (["r = f32[16,8] transpose(x), dimensions={1,0}"], 0, 0, 512, 512),
        (["r = f32[128] reshape(x)"], 0, 0, 0, 0),
        (["z = f32[] constant(0)", "r = f32[8] reduce(x, z), dimensions={1}, to_apply=sum"], 128, 0, 516, 32),
        (["r = f32[2,16] slice(x), slice={[0:2], [0:16]}"], 0, 0, 128, 128),
        (["r = bf16[8,16] convert(x)"], 128, 0, 512, 256),
        (["r = f32[8,16] fusion(x), kind=kLoop, calls=square_sine"], 256, 128, 512, 512),
        (["r = f32[8,16] sort(x), dimensions={1}, to_apply=less"], 512, 0, 512, 512),
    ],
)  # fmt: skip
def test_costs_of_one_instruction(lines, flops, transcendentals, read, written):
    called = """
        sum { a = f32[] parameter(0) b = f32[] parameter(1) ROOT c = f32[] add(a, b) }
        less { a = f32[] parameter(0) b = f32[] parameter(1) ROOT c = pred[] compare(a, b), direction=LT }
        square_sine { a = f32[8,16] parameter(0) b = f32[8,16] multiply(a, a) ROOT c = f32[8,16] sine(b) }
    """
    module = parse(f"HloModule m\n{called}\nENTRY e {{ x = f32[8,16] parameter(0)\n" + "\n".join(lines) + "}")
    (cost,) = [cost for cost in costs(module) if cost.name == "r"]
    assert (cost.flops, cost.transcendentals, cost.bytes_read, cost.bytes_written) == (
        flops,
        transcendentals,
        read,
        written,
    )


def test_cost_of_a_convolution():
    module = entry(
        "x = f32[2,16,16,8] parameter(0)",
        "w = f32[3,3,4,6] parameter(1)",
        "r = f32[2,16,16,6] convolution(x, w), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f,",
        "feature_group_count=2",
    )
    assert costs(module)[-1].flops == 2 * (2 * 16 * 16 * 6) * 3 * 3 * 4


def test_loops_count_their_trips():
    found = {cost.name: cost for cost in costs(parse(GOLDEN["optimized"]))}
    assert found["tanh"].count == 5
    assert found["less"].count == 5
    assert found["ynn_fusion"].flops == 2 * 8 * 16 * 32
    assert "while" not in found  # what it calls is listed
    assert "dot.1" not in found  # inside a fusion
    total = facts(parse(GOLDEN["optimized"]))
    assert total.parameter_bytes == 4 * (8 * 16 + 16 * 32 + 1)
    assert total.transcendentals == 5 * 8 * 32


def test_peak_memory_is_what_lives_at_once():
    module = entry(
        "x = f32[100] parameter(0)",  # 400, to the end
        "a = f32[200] broadcast(x), dimensions={}",  # 800
        "b = f32[300] broadcast(a), dimensions={}",  # 1200; a dies here
        "c = f32[300] bitcast(b)",  # b under another name
        "d = f32[50] slice(c), slice={[0:50]}",  # 200; b dies here
        "ROOT e = f32[50] tanh(d)",
    )
    assert peak_bytes(module) == 400 + 800 + 1200


@pytest.mark.parametrize(
    "line",
    [
        "r = f32[8] dot(x), lhs_contracting_dims={0}",
        "r = f32[8] dot(x, x), lhs_contracting_dims={7}",
        "r = f32[8] convolution(x, x), dim_labels=b0f_0io->b0f",
        "r = f32[8] convolution(x)",
    ],
)
def test_sizes_that_do_not_fit_are_refused(line):
    with pytest.raises(UserError, match="'r'"):
        costs(entry("x = f32[8] parameter(0)", line))


def test_view():
    graph = view(parse(GOLDEN["before"]))
    assert graph.number_of_nodes() == parse(GOLDEN["before"]).num_instructions
    assert graph.nodes["main.6", "dot.1"]["flops"] == 2 * 8 * 16 * 32
    assert graph.nodes["main.6", "dot.1"]["shape"] == "f32[8,32]{1,0}"
    assert graph.nodes["body.2", "sin.1"]["bytes"] == 1024
    positions = [data["position"] for _, _, data in graph.in_edges(("main.6", "dot.1"), data=True)]
    assert positions == [0, 1]
    assert graph.has_edge(("main.6", "while.1"), ("body.2", "state.1"))
    assert graph.has_edge(("body.2", "tuple.1"), ("main.6", "while.1"))
