"""Explanations: numbers on a model that is known, facts of a compiled kernel, words that fit a screen."""

import dataclasses
import json
import math

import pytest
from sized import workload
from test_cli import ROOT

from costmodel.cli import app
from costmodel.cli.explaining import words
from costmodel.devices import find
from costmodel.explain import explain
from costmodel.floor import floor_us
from costmodel.records import (
    Config,
    Kernel,
    Measurement,
    Prediction,
    Problem,
    SearchSpace,
    TensorSpec,
    Timing,
    UserError,
    Variant,
)

H200 = find("H200")
CPU = dataclasses.replace(H200, name="cpu", kind="cpu", num_units=4, peak_tflops=(("f32", 1.0),), peak_gb_per_s=100.0,
                          l2_bytes=1 << 20, details=(("l3_bytes", 1 << 23),))  # fmt: skip
SPACE = SearchSpace.of(TILE=(1, 2, 4), VECTOR=(4, 8), THREADS=(1, 2, 4))
KERNEL = Kernel("product", "cpp", "void product();", SPACE.params)


def problem(n):
    return Problem("product", (TensorSpec((n, n), "f32"),), (("N", n),), flops=2 * n**3, bytes=12 * n * n)


WORKLOAD = workload(KERNEL, SPACE, Config.of(TILE=1, VECTOR=4, THREADS=1), problem, 256)
BEST = Config.of(TILE=2, VECTOR=8, THREADS=4)


class Known:
    """Latency is 100 us times a factor for each parameter; TILE=4 is 4 % slower than 2 up to N=256 and faster above."""

    def us(self, config, n):
        tile = {1: 1.5, 2: 1.0, 4: 1.04 if n <= 256 else 0.8}[config["TILE"]]
        return 100 * tile * {4: 1.25, 8: 1.0}[config["VECTOR"]] * {1: 3.0, 2: 1.6, 4: 1.0}[config["THREADS"]]

    def predict(self, variants, device):
        return [self.one(self.us(v.config, v.problem["N"])) for v in variants]

    def one(self, us):
        support = tuple(us * 2.0 ** (0.1 * x) for x in range(-5, 6))
        return Prediction(support, (1 / 11,) * 11, trust=True, reason="as told")

    def update(self, measurements):
        raise NotImplementedError


def told(**options):
    return explain(WORKLOAD, problem(256), CPU, Known(), **options)


def row(config, us, device=CPU, status="ok", counters=(), kernel=KERNEL, of=256):
    samples = (us,) if status == "ok" else ()
    return Measurement(Variant(kernel, problem(of), config), device, Timing(), (), status, samples, counters=counters)


def changed(**params):
    return Config(tuple({**BEST.as_dict(), **params}.items()))


def test_the_pick_and_the_limits_that_hold_it():
    explained = told()
    assert explained.variant.config == BEST
    assert (explained.rank, explained.candidates) == (1, 18)
    limits = {limit.name: limit for limit in explained.limits}
    assert limits["compute"].us == pytest.approx(2 * 256**3 / 1e6)  # 33.6 us at 1 TFLOP/s
    assert limits["memory"].us == pytest.approx(12 * 256**2 / 1e5)
    assert "cores" not in limits
    assert "fits L2" in limits["memory"].told
    assert max(limit.us for limit in explained.limits) == floor_us(problem(256), CPU)
    assert "2.98 times" in "\n".join(words(explained))  # 100 / 33.55
    one_core = told(config=changed(THREADS=1))
    assert one_core.limits[0].name == "cores"
    assert one_core.limits[0].us == pytest.approx(4 * limits["compute"].us)
    large = {limit.name: limit for limit in explain(WORKLOAD, problem(500), CPU, Known()).limits}
    assert "fits L3" in large["memory"].told
    huge = {limit.name: limit for limit in explain(WORKLOAD, problem(2000), CPU, Known()).limits}
    assert f"{12 * 2000**2 / (1 << 23):.3g} times the largest cache" in huge["memory"].told


def test_single_changes_in_the_order_of_what_they_do():
    explained = told()
    assert [(str(c), round(c.factor, 3)) for c in explained.changes] == [
        ("TILE 2 -> 4", 1.04), ("VECTOR 8 -> 4", 1.25), ("THREADS 4 -> 2", 1.6)
    ]  # fmt: skip
    assert [(str(c), round(c.factor, 3)) for c in explained.worst] == [
        ("THREADS 4 -> 1", 3.0), ("TILE 2 -> 1", 1.5), ("VECTOR 8 -> 4", 1.25)
    ]  # fmt: skip


def test_the_runner_up_and_what_would_make_it_win():
    second = told().runner_up
    assert second.config == changed(TILE=4)
    assert second.factor == pytest.approx(1.04)
    assert [str(c) for c in second.contributions] == ["TILE 2 -> 4"]
    assert second.flips == ("N=512",)
    assert 0.3 < second.p_faster < 0.5


def test_contributions_of_several_changes_multiply_to_the_whole():
    explained = told(config=changed(TILE=1, VECTOR=4, THREADS=1))
    best = explained.runner_up
    assert explained.rank == 18
    assert best.config == BEST
    found = {c.name: c.factor for c in best.contributions}
    assert found == pytest.approx({"TILE": 1 / 1.5, "VECTOR": 0.8, "THREADS": 1 / 3})
    assert list(found) == ["THREADS", "TILE", "VECTOR"]
    assert math.prod(found.values()) == pytest.approx(best.factor)
    assert best.p_faster > 0.99
    assert any(line.startswith("the best") for line in words(explained))


def test_contributions_share_an_interaction():
    """TILE and VECTOR help only together: each gets half of the logarithm (Shapley)."""

    class Together(Known):
        def us(self, config, n):
            return 50.0 if config["TILE"] == 2 and config["VECTOR"] == 8 else 100.0 + config["TILE"] + config["THREADS"]

    explained = explain(WORKLOAD, problem(256), CPU, Together(), config=changed(TILE=4, VECTOR=4))
    both = {c.name: c.factor for c in explained.runner_up.contributions}
    assert both["TILE"] == pytest.approx((50 / 108) ** 0.5, rel=0.05)
    assert math.prod(both.values()) == pytest.approx(explained.runner_up.factor)


def test_many_differing_parameters_are_scaled_to_the_whole():
    names = [f"P{i}" for i in range(7)]
    space = SearchSpace.of(**dict.fromkeys(names, (0, 1)))
    slowest = Config.of(**dict.fromkeys(names, 0))
    many = dataclasses.replace(WORKLOAD, space=space, kernel=Kernel("many", "cpp", "x", space.params), default=slowest)

    class Sum(Known):
        def us(self, config, n):
            return 100 - 5 * sum(value for _, value in config.params)

    found = explain(many, problem(256), CPU, Sum(), config=slowest).runner_up
    assert len(found.contributions) == 7
    assert math.prod(c.factor for c in found.contributions) == pytest.approx(found.factor) == pytest.approx(0.65)


def test_neighbours_are_of_this_problem_and_nearest_first():
    rows = [
        row(BEST, 90.0), row(changed(TILE=4), 80.0), row(changed(THREADS=2), 170.0),
        row(changed(THREADS=2, VECTOR=4), 60.0), row(Config.of(TILE=1, VECTOR=4, THREADS=1), 500.0),
        row(changed(TILE=1), 0.0, status="timeout"), row(changed(VECTOR=4), 10.0, of=512),
        row(changed(VECTOR=4), 10.0, kernel=dataclasses.replace(KERNEL, source="another")),
        row(changed(VECTOR=4), 5.0, device=H200),
    ]  # fmt: skip
    explained = told(measurements=rows)
    assert [(n.changes, n.latency_us) for n in explained.neighbours] == [
        ((), 90.0), (("TILE 2 -> 4",), 80.0), (("THREADS 4 -> 2",), 170.0),
        (("VECTOR 8 -> 4", "THREADS 4 -> 2"), 60.0),
    ]  # fmt: skip
    text = "\n".join(words(explained))
    assert "itself 90 us" in text
    assert "TILE 2 -> 4: 80 us (0.89x)" in text
    assert "2 of them faster" in text
    assert "another device" not in text
    only_there = told(measurements=[row(changed(VECTOR=4), 5.0, device=H200)])
    assert "on NVIDIA H200, another device" in "\n".join(words(only_there))
    assert "nothing of this problem was measured" in "\n".join(words(told()))


def gpu_told(registers, shared, threads=256.0, stack=0.0, config=BEST):
    counters = (("registers", registers), ("stack_bytes", stack), ("shared_bytes", shared),
                ("threads_per_block", threads), ("tensor_memory_columns", 0.0), ("local_loads", stack / 4))  # fmt: skip
    facts = row(config, 0.0, device=H200, status="compiled", counters=counters)
    return explain(WORKLOAD, problem(256), H200, Known(), measurements=[facts], config=BEST)


def test_compile_facts_name_the_resource_that_binds():
    by_registers = {limit.name: limit.told for limit in gpu_told(128.0, 1024.0).limits}
    assert "2 blocks a unit, 25% of its threads; limited by registers" in by_registers["occupancy"]
    by_shared = {limit.name: limit.told for limit in gpu_told(32.0, 100_000.0).limits}
    assert by_shared["occupancy"].endswith("2 blocks a unit, 25% of its threads; limited by shared memory")
    free = {limit.name: limit.told for limit in gpu_told(32.0, 0.0).limits}
    assert free["occupancy"].endswith("8 blocks a unit, 100% of its threads; limited by the threads of a unit")
    assert "spills" not in free
    spilled = {limit.name: limit.told for limit in gpu_told(255.0, 0.0, stack=64.0).limits}
    assert spilled["spills"] == "64 B of stack a thread, 16 loads and 0 stores"
    assert "occupancy" not in {limit.name for limit in gpu_told(128.0, 0.0, config=changed(TILE=1)).limits}


def test_waves_of_a_gpu_launch():
    space = SearchSpace.of(BLOCK_M=(64, 128), BLOCK_N=(64,), BLOCK_K=(32,), num_warps=(4,), num_stages=(2,))
    sizes = (("M", 1024), ("N", 1024), ("K", 256))
    product = Problem("matmul", (TensorSpec((1024, 256), "f16"),), sizes, flops=2 * 1024 * 1024 * 256, bytes=3 << 20)
    kernel = Kernel("product", "triton", "x", space.params)
    gpu = dataclasses.replace(WORKLOAD, space=space, kernel=kernel, make_problem=lambda **sizes: product)
    model = Known()
    model.predict = lambda variants, device: [model.one(10.0 + v.config["BLOCK_M"] / 1e3) for v in variants]
    limits = {limit.name: limit for limit in explain(gpu, product, H200, model).limits}
    assert {"compute", "memory", "tile", "launch", "waves"} <= set(limits)
    assert limits["waves"].told.startswith("256 blocks on 132 units")
    assert math.isnan(limits["waves"].us)


def test_without_flops_nothing_is_said_of_a_floor():
    bare = dataclasses.replace(problem(256), flops=0, bytes=0)
    explained = explain(WORKLOAD, bare, CPU, Known())
    assert explained.limits == ()
    assert "nothing is known of its floor" in "\n".join(words(explained))


def test_mistakes_and_spaces_of_one():
    with pytest.raises(UserError, match="got TILE=3,VECTOR=8,THREADS=4, which is not valid"):
        told(config=Config.of(TILE=3, VECTOR=8, THREADS=4))
    none = dataclasses.replace(WORKLOAD, space=dataclasses.replace(SPACE, is_valid=lambda c, p, d: False))
    with pytest.raises(UserError, match="no valid config"):
        explain(none, problem(256), CPU, Known())
    alone = dataclasses.replace(WORKLOAD, space=dataclasses.replace(SPACE, is_valid=lambda c, p, d: c == BEST))
    explained = explain(alone, problem(256), CPU, Known())
    assert explained.runner_up is None
    assert explained.changes == ()
    assert "none: the space has no other config" in "\n".join(words(explained))


def test_it_fits_a_screen():
    rows = [row(c, 90.0) for c in SPACE.configs(problem(256), CPU)]
    lines = words(told(measurements=rows), width=80)
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80


def test_the_command_explains_a_shipped_kernel(capsys):
    """With the shipped model and data, on the CPU they come from."""
    arguments = [
        "explain",
        str(ROOT / "kernels" / "cpp" / "matmul.cpp"),
        "--problem",
        "square",
        "--device",
        "Intel Xeon Processor",
    ]
    app([*arguments, "--json"], standalone_mode=False)
    explained = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert explained["rank"] == 1
    assert explained["candidates"] == 396
    assert explained["measured"] >= 40
    assert explained["limits"][0]["name"] == "compute"
    assert explained["neighbours"]
    assert all(len(n["changes"]) <= 2 for n in explained["neighbours"])
    assert explained["worst_changes"][0]["factor"] > 1.5
    assert explained["runner_up"]["factor"] >= 1
    assert 0.3 < explained["runner_up"]["p_faster"] < 0.7
