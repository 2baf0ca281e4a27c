"""Programs: their lines and floor, the text model, its opponents, splits, and the commands that show them."""

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import SUM, chain, law_us, rows

from costmodel import graph_floor
from costmodel.graph import costs, parse, read, to_text
from costmodel.graph_baselines import Floor, opponents
from costmodel.graph_lines import program_of
from costmodel.graph_model import GraphConfig, GraphModel
from costmodel.graph_network import GraphNetwork
from costmodel.graph_picture import MOST_NODES, draw, folded, label_of, layers_of, line_graph, places_of
from costmodel.graph_rows import (
    Row,
    components,
    family_split,
    random_split,
    ratio_pairs,
    ratio_scores,
    rows_of,
    scores,
)
from costmodel.records import Config, Device, Kernel, Measurement, Problem, Timing, UserError, Variant

HLO = Path(__file__).parent / "golden" / "hlo"
GOLDEN = sorted(path for path in HLO.glob("*.hlo") if path.stem != "literals")  # that one computes nothing
SMALL = GraphConfig(hidden=32, layers=1, vocab_size=512, steps=150, batch=8)


@pytest.fixture(scope="module")
def chains():
    return rows(60)


@pytest.fixture(scope="module")
def fitted(chains):
    model = GraphModel(SMALL)
    model.fit(chains)
    return model


def shuffled(text, seed):
    """The entry's instructions renamed, and printed in another order that keeps operands before their users."""
    rng = random.Random(seed)
    head, entry = text.split("ENTRY e {")
    lines = [line.strip() for line in entry.strip().rstrip("}").strip().splitlines()]
    names = {line.removeprefix("ROOT ").split(" = ")[0]: f"v{rng.randrange(10**9)}" for line in lines}
    waiting, done, ordered = list(lines), set(), []
    while waiting:
        ready = [line for line in waiting if not (names.keys() & set(uses(line))) - done]
        chosen = rng.choice(ready)
        waiting.remove(chosen)
        ordered.append(chosen)
        done.add(chosen.removeprefix("ROOT ").split(" = ")[0])
    renamed = [re.sub(r"\b(x\d+|w\d+|zero|r)\b", lambda m: names.get(m[0], m[0]), line) for line in ordered]
    return f"{head}ENTRY e {{\n  " + "\n  ".join(renamed) + "\n}\n"


def uses(line):
    return re.findall(r"\b(?:x\d+|w\d+|zero)\b", line.split(" = ", 1)[1])


# ----------------------------------------------------------------------------------------------------- lines and floor


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_lines_hold_the_floor_of_every_instruction_that_runs(path):
    module = read(path)
    program = program_of(module)
    assert program.floor_us == pytest.approx(sum(map(graph_floor.floor_us, costs(module))))
    places = [place for line in program.lines for place in line.instructions]
    assert len(places) == len(set(places))
    assert all(line.floor_us > 0 for line in program.lines)
    assert len(program.nodes.kinds) == len(program.nodes.numbers) == len(costs(module))
    assert program.nodes.edges.shape[0] == 2


def test_the_floor_is_a_roofline_with_a_start():
    text = "HloModule m\nENTRY e {\n a = f32[1000,1000] parameter(0)\n ROOT t = f32[1000,1000] add(a, a)\n}\n"
    (line,) = program_of(parse(text)).lines
    assert line.floor_us == pytest.approx(graph_floor.START_US + 8e6 / graph_floor.BYTES_PER_US)
    text = text.replace("add(a, a)", "dot(a, a), lhs_contracting_dims={1}, rhs_contracting_dims={0}")
    (line,) = program_of(parse(text)).lines
    assert line.floor_us == pytest.approx(graph_floor.START_US + 2e9 / graph_floor.FLOPS_PER_US)
    assert line.text == "dot f32[1000,1000] f32[1000,1000] f32[1000,1000]"


def test_lines_know_nothing_of_names_and_printed_order():
    for seed in range(8):
        text = chain(seed)
        one, other = program_of(parse(text)), program_of(parse(shuffled(text, seed)))
        assert [(line.text, line.floor_us) for line in one.lines] == [
            (line.text, line.floor_us) for line in other.lines
        ]
        assert one.skeleton == other.skeleton


def test_equal_layers_are_one_line():
    body = "\n".join(
        f" x{n} = f32[64,64] {op}(x{n - 1})" for n, op in enumerate(["tanh", "negate", "abs"] * 20, start=1)
    )
    program = program_of(parse(f"HloModule m\nENTRY e {{\n x0 = f32[64,64] parameter(0)\n{body}\n}}\n"))
    assert len(program.lines) == 3
    assert [len(line.instructions) for line in program.lines] == [20, 20, 20]


def test_a_program_without_work_is_one_clear_line():
    with pytest.raises(UserError, match="nothing that takes time"):
        program_of(read(HLO / "literals.hlo"))


# -------------------------------------------------------------------------------------------------------- the model


def test_node_costs_sum_to_the_latency_and_the_model_learns_its_rows(chains, fitted):
    predicted = fitted.predict(chains)
    for row, us in zip(chains[:10], predicted[:10], strict=True):
        costs_us = fitted.line_costs([(row.program, row.engine)])[0]
        assert len(costs_us) == len(row.program.lines)
        assert costs_us.sum() == pytest.approx(us, rel=1e-4)
    told = scores(chains, predicted)
    floor = Floor()
    floor.fit(chains)
    assert told["median_ape"] < 0.5 * scores(chains, floor.predict(chains))["median_ape"]
    assert told["kendall"] > 0.95
    assert told["slowdown_kendall"] > 0.8


def test_it_tells_programs_apart_that_it_has_not_seen(fitted):
    unseen = rows(40, start=1000)
    told = scores(unseen, fitted.predict(unseen))
    floor = Floor()
    floor.fit(rows(60))
    assert told["kendall"] > 0.9
    assert told["slowdown_kendall"] > scores(unseen, floor.predict(unseen))["slowdown_kendall"] + 0.1


def test_renamed_and_reordered_programs_are_predicted_alike(fitted):
    for seed in range(3):
        one = fitted.line_costs([(program_of(parse(chain(seed))), "eager")])[0]
        other = fitted.line_costs([(program_of(parse(shuffled(chain(seed), seed))), "eager")])[0]
        assert np.array_equal(one, other)


def test_who_is_asked_beside_changes_nothing(chains, fitted):
    alone = fitted.line_costs([(chains[3].program, "eager")])[0]
    together = fitted.line_costs([(row.program, "eager") for row in chains[:8]])[3]
    assert alone == pytest.approx(together, rel=1e-4)


def test_saved_and_loaded_models_agree(tmp_path, chains, fitted):
    fitted.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    again = GraphModel.load(tmp_path)
    assert again.predict(chains[:9]) == pytest.approx(fitted.predict(chains[:9]), rel=5e-3)  # weights are rounded
    again.save(tmp_path / "twice")
    assert np.array_equal(GraphModel.load(tmp_path / "twice").predict(chains[:9]), again.predict(chains[:9]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "other"}, "no graph model"),
        ({"format": 99}, "format 99"),
        ({"floor": {"start_us": 1.0}}, "another floor"),
        ({"config": {"hidden": 48}}, "not those of its config"),
        ({"config": {"hidden": 1 << 30}}, "at most 1024"),
        ({"config": {"nonsense": 1}}, "damaged"),
    ],
)
def test_a_damaged_folder_is_one_clear_line(tmp_path, fitted, change, words):
    fitted.save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=words):
        GraphModel.load(tmp_path)


def test_long_programs_are_read_whole(fitted):
    """Of 1,500 instructions every line has its cost."""
    long = program_of(parse(chain(5, length=1500)))
    assert sum(len(line.instructions) for line in long.lines) > 1000
    costs_us = fitted.line_costs([(long, "eager")])[0]
    assert np.isfinite(costs_us).all()
    assert 0.1 < costs_us.sum() / law_us(long) < 10


def test_an_unknown_engine_and_an_untrained_model_are_refused(chains, fitted):
    with pytest.raises(UserError, match="got engine 'xla', expected one of eager"):
        fitted.line_costs([(chains[0].program, "xla")])
    with pytest.raises(UserError, match="not trained"):
        GraphModel(SMALL).predict(chains[:1])


def test_intervals_are_calibrated_where_there_are_rows_enough(fitted):
    assert fitted.spread == ()
    assert not fitted.prediction(100.0).trust
    many = rows(170)
    model = GraphModel(GraphConfig(hidden=16, layers=1, vocab_size=512, steps=40, batch=8))
    model.fit(many)
    assert model.spread
    assert list(model.spread) == sorted(model.spread)
    told = model.prediction(100.0)
    assert told.quantile_us(0.05) < 100.0 < told.quantile_us(0.95)
    unseen = rows(60, start=500)
    inside = [
        model.prediction(us).quantile_us(0.1) <= row.latency_us <= model.prediction(us).quantile_us(0.9)
        for row, us in zip(unseen, model.predict(unseen), strict=True)
    ]
    assert 0.6 < np.mean(inside) <= 1.0


def test_predicting_leaves_torchs_random_state_alone(chains):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model = GraphModel(GraphConfig(hidden=16, layers=1, vocab_size=512, steps=2, batch=4))
    model.fit(chains[:8])
    assert torch.equal(before, torch.get_rng_state())


# -------------------------------------------------------------------------------------------------------- opponents


def test_opponents_learn_a_law(chains):
    unseen = rows(40, start=1000)
    told = {}
    for name, model in {**opponents(seed=0), "graph network": GraphNetwork(steps=200, width=32, layers=2)}.items():
        model.fit(chains)
        predicted = model.predict(unseen)
        assert (predicted > 0).all()
        told[name] = scores(unseen, predicted)
    assert told["trees on residual"]["kendall"] > 0.85
    assert told["graph network"]["kendall"] > 0.85
    assert told["nearest"]["median_ape"] < told["floor"]["median_ape"]
    assert told["trees on histogram"]["kendall"] < told["trees on residual"]["kendall"]


def test_the_floors_factor_is_the_median_slowdown_of_its_engine(chains):
    floor = Floor()
    slow = [Row(r.name, r.family, "xla", r.program, 4 * r.latency_us) for r in chains]
    floor.fit([*chains, *slow])
    assert floor.predict(slow) == pytest.approx(4 * floor.predict(chains))


# ----------------------------------------------------------------------------------------------------- rows and splits


def measured(name, text, samples, *, engine="eager", status="ok", counters=()):
    kernel = Kernel(name, "hlo", text, (("engine", ("eager", "xla")),), name.partition(":")[0])
    device = Device("a cpu", "cpu", "us", "x", 1, 1000.0, (("f32", 1.0),), 10.0, 1 << 20)
    variant = Variant(kernel, Problem("graph", (), (), 1, 1), Config.of(engine=engine))
    return Measurement(variant, device, Timing(), (), status, samples, counters=counters)


def test_rows_join_sittings_and_leave_out_failures():
    text = chain(1)
    found = rows_of([
        measured("mlp:1", text, (10.0, 12.0)), measured("mlp:1", text, (11.0, 30.0)),
        measured("mlp:1", text, (99.0,), counters=(("drift", 1.0),)),
        measured("mlp:1", text, (5.0,), engine="xla"), measured("mlp:2", chain(2), (), status="crash"),
    ])  # fmt: skip
    assert [(row.name, row.engine, row.latency_us) for row in found] == [
        ("mlp:1", "eager", 10.5),
        ("mlp:1", "xla", 5.0),
    ]
    assert found[0].spread == pytest.approx(0.1)
    assert found[0].program is found[1].program
    with pytest.raises(UserError, match="no measured program"):
        rows_of([measured("mlp:2", text, (), status="crash")])


def test_splits_divide_neither_skeletons_nor_versions():
    everything = rows(50)
    versions = [Row(f"{r.name}:b{n}", r.family, "eager", r.program, r.latency_us) for r in everything for n in (1, 2)]
    train, test = random_split([*everything, *versions], fraction=0.3, seed=1)
    assert len(train) + len(test) == 150
    assert 0.2 < len(test) / 150 < 0.5
    assert not {r.program.skeleton for r in train} & {r.program.skeleton for r in test}
    assert not {r.base for r in train} & {r.base for r in test}
    assert len(set(components(everything))) == len({r.program.skeleton for r in everything})


def test_programs_of_one_skeleton_are_not_split():
    program = rows(1)[0].program
    with pytest.raises(UserError, match="share a skeleton"):
        random_split([Row(f"mlp:{n}", "mlp", "eager", program, 1.0) for n in range(5)], seed=0)


def test_a_held_out_family_takes_its_skeletons_along():
    mine = rows(20)
    other = [Row(f"other:{n}", "other", "eager", mine[0].program, 3.0) for n in range(2)]
    train, test = family_split([*mine, *other], ["other"])
    assert test == other
    assert mine[0] not in train
    with pytest.raises(UserError, match="nobody"):
        family_split(mine, ["nobody"])


def test_ratios_of_versions():
    program = rows(1)[0].program
    pairs = [
        ("mlp:1", "eager", 10.0),
        ("mlp:1", "xla", 5.0),
        ("mlp:1:bf16", "eager", 20.0),
        ("mlp:1:bf16:b4", "xla", 9.0),
    ]
    found = [Row(name, "mlp", engine, program, us) for name, engine, us in pairs]
    assert sorted(ratio_pairs(found)) == [(0, 1, "engine"), (0, 2, "precision")]
    told = {row["differ_in"]: row for row in ratio_scores(found, np.array([10.0, 8.0, 9.0, 1.0]))}
    assert told["engine"]["right"] == 1.0
    assert told["engine"]["ratio_error"] == pytest.approx(0.6)
    assert told["precision"]["right"] == 0.0


# ------------------------------------------------------------------------------------------------------- the picture


def test_the_picture_folds_a_long_program_and_keeps_its_cost(tmp_path):
    module = parse(chain(5, length=400))
    program = program_of(module)
    costs_us = np.array([line.floor_us for line in program.lines])
    graph = folded(line_graph(module, program), costs_us, [label_of(program, n) for n in range(len(costs_us))])
    assert len(graph) <= MOST_NODES < len(program.lines)
    assert sum(cost for _, cost in graph.nodes(data="cost_us")) == pytest.approx(costs_us.sum())
    assert sum(lines for _, lines in graph.nodes(data="lines")) == len(costs_us)
    depth = layers_of(graph)
    assert all(depth[a] < depth[b] for a, b in graph.edges if a < b)
    places = places_of(graph)
    assert len(set(places.values())) == len(places)
    draw(module, program, costs_us, tmp_path / "a.svg", title="long")
    draw(module, program, costs_us, tmp_path / "b.png", title="long")
    assert "small lines" in (tmp_path / "a.svg").read_text()
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"a\.bmp"):
        draw(module, program, costs_us, tmp_path / "a.bmp", title="long")


def test_edges_follow_values_through_what_has_no_line():
    text = f"""HloModule m
{SUM}
ENTRY e {{
  a = f32[64,64] parameter(0)
  b = f32[64,64] tanh(a)
  t = (f32[64,64], f32[64,64]) tuple(b, a)
  g = f32[64,64] get-tuple-element(t), index=0
  ROOT c = f32[64,64] negate(g)
}}
"""
    module = parse(text)
    program = program_of(module)
    assert [line.kind for line in program.lines] == ["tanh", "negate"]
    assert list(line_graph(module, program).edges) == [(0, 1)]


def test_text_is_read_back(tmp_path):
    module = parse(chain(3))
    again = parse(to_text(module, percent=False))
    assert [line.text for line in program_of(again).lines] == [line.text for line in program_of(module).lines]
