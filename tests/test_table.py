"""Pre-tuned tables: picks on spaces whose optimum is known, abstention, files that anybody may have written, forms."""

import dataclasses
import importlib.util
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sized import workload

from costmodel import table, table_building, table_files, table_formats, workloads
from costmodel.cli import app
from costmodel.cli.shared import workloads_of
from costmodel.devices import find
from costmodel.joint import CORRELATION, draws_us, probability_near_best
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
from costmodel.store import Store

H200 = find("H200")
TILES = (16, 32, 64, 128, 256)
SPACE = SearchSpace.of(TILE=TILES, UNROLL=(1, 2, 4), num_warps=(4, 8))
KERNEL = Kernel("scale", "triton", "def scale(): pass", SPACE.params)
DEFAULT = Config.of(TILE=16, UNROLL=1, num_warps=4)


def problem(n):
    return Problem("scale", (TensorSpec((n,), "f32"),), (("N", n),), flops=n, bytes=8 * n)


WORKLOAD = workload(KERNEL, SPACE, DEFAULT, problem, 1024)


def true_us(config, n):
    """The best tile is 16 at 1024 and one step wider for every factor of 4: an optimum that moves with the size."""
    wanted = math.log2(16) + math.log2(n / 1024) / 2
    return n / 1024 * (1 + 0.3 * abs(math.log2(config["TILE"]) - wanted) + 0.1 * (config["UNROLL"] != 2)
                       + 0.02 * (config["num_warps"] == 4))  # fmt: skip


def measured(n, config, us=None, *, samples=5, spread=0.0, kernel=KERNEL, device=H200, of=problem):
    us = true_us(config, n) if us is None else us
    taken = tuple(us * (1 + spread * (i - (samples - 1) / 2)) for i in range(samples))
    return Measurement(Variant(kernel, of(n), config), device, Timing(), (("triton", "3.7.1"),), "ok", taken,
                       collected_at="2026-01-01T00:00:00+00:00")  # fmt: skip


def build(sizes, latency=true_us, workloads=None):
    rows = [measured(n, c, latency(c, n)) for n in sizes for c in SPACE.configs(problem(n), H200)]
    (built,) = table_building.build(rows, {KERNEL.identity: WORKLOAD} if workloads is None else workloads)
    return built


SIZES = (1024, 4096, 16384, 65536, 262144)


def test_a_measured_problem_answers_with_its_best():
    built = build(SIZES)
    for n in SIZES:
        answer = table.lookup(built, {"N": n})
        best = min(SPACE.configs(problem(n), H200), key=lambda c: true_us(c, n))
        assert answer.config == best
        assert answer.gain == pytest.approx(true_us(DEFAULT, n) / true_us(best, n), rel=1e-5)
        assert answer.entry.measured == answer.entry.space_size == 30
        assert "the best of 30 of 30" in answer.reason


@pytest.mark.parametrize("n", [2048, 8192, 12000, 50000, 131072])
def test_between_problems_it_beats_the_nearest_and_the_default(n):
    """Interpolated picks are never worse than the nearest problem's config, and near the optimum."""
    built = build(SIZES)
    answer = table.lookup(built, {"N": n})
    best = min(true_us(c, n) for c in SPACE.configs(problem(n), H200))
    nearest = min(built.entries, key=lambda e: abs(math.log2(e.problem["N"] / n)))
    assert answer.config["UNROLL"] == 2
    assert true_us(answer.config, n) <= true_us(nearest.config, n) + 1e-9
    assert true_us(answer.config, n) / best - 1 < 0.2
    assert true_us(answer.config, n) < true_us(DEFAULT, n)
    assert answer.gain > 1


def test_a_size_that_one_problem_misjudges_is_outvoted():
    """At 4096 one lucky measurement made a bad config the best: the nearest problem's config would be that one."""
    lucky = Config.of(TILE=256, UNROLL=4, num_warps=4)
    built = build(SIZES, lambda c, n: 0.9 * n / 1024 if (c, n) == (lucky, 4096) else true_us(c, n))
    assert table.lookup(built, {"N": 4096}).config == lucky
    assert table.lookup(built, {"N": 5500}).config["TILE"] in (32, 64)


@pytest.mark.parametrize(("n", "answers"), [(512, True), (500, False), (524288, True), (600000, False), (1, False)])
def test_far_outside_it_keeps_the_default(n, answers):
    answer = table.lookup(build(SIZES), {"N": n})
    assert (answer.config is not None) == answers or answer.reason.startswith("keep the default: it is expected")
    if not answers:
        assert answer.config is None
        assert answer.reason.startswith(f"keep the default: N={n:g} lies more than a factor of 2 outside")
        assert math.isnan(answer.slowdown)


def test_a_gap_that_is_too_wide_keeps_the_default():
    answer = table.lookup(build((1024, 2048, 1 << 22, 1 << 23)), {"N": 1 << 16})
    assert answer.config is None
    assert "doublings of sizes away" in answer.reason


def test_what_does_not_carry_over_keeps_the_default():
    """Each problem has an optimum of its own and the default is second everywhere: leaving one out finds that."""
    own = dict(zip(SIZES, [c for c in SPACE.configs(problem(1), H200) if c != DEFAULT], strict=False))
    built = build(
        SIZES, lambda c, n: 1.0 if own[n] == c else 1.1 if c == DEFAULT else 5.0 if c in own.values() else 9.0
    )
    assert built.left_out.default_slowdown == pytest.approx(1.1, rel=1e-5)
    assert not built.left_out.beats_default
    assert table.lookup(built, {"N": 2048}).config is None
    assert table.lookup(built, {"N": 4096}).config == own[4096]  # what was measured stands


def test_left_out_figures_by_hand():
    """Three problems, two configs: the other two vote 2:1 by weight, and the default is measured on two of them."""
    a, b = Config.of(TILE=16, UNROLL=1, num_warps=4), Config.of(TILE=32, UNROLL=1, num_warps=4)
    us = {1024: (2.0, 1.0), 4096: (2.0, 1.0), 16384: (1.0, 4.0)}
    rows = [measured(n, c, x) for n, pair in us.items() for c, x in zip((a, b), pair, strict=True)]
    (built,) = table_building.build(rows, {KERNEL.identity: WORKLOAD})
    # 16384 left out: b twice, 4x too slow there. 1024: a slowdown of 2 at distance 2, b of 4 at distance 4: b is taken
    # as log 2 / 5 > log 4 / 17. 4096: log 2 / 5 < log 4 / 5, so a, 2x too slow.
    assert built.left_out.slowdown == pytest.approx(8 ** (1 / 3), rel=1e-5)
    assert built.left_out.worst == 4.0
    assert built.left_out.default_slowdown == pytest.approx(4 ** (1 / 3), rel=1e-5)
    assert built.left_out.worse == 1  # 16384; at 4096 the pick is the default itself


def test_noise_decides_by_the_neighbours_and_lowers_the_confidence():
    """Two configs tied within their noise at 4096: the one that is good on the other sizes is taken."""
    good, other = Config.of(TILE=32, UNROLL=2, num_warps=8), Config.of(TILE=32, UNROLL=2, num_warps=4)
    rows = [measured(n, good, 1.0) for n in (1024, 16384)] + [measured(n, other, 2.0) for n in (1024, 16384)]
    noisy = [measured(4096, good, 1.01, spread=0.02), measured(4096, other, 1.0, spread=0.02)]
    (built,) = table_building.build([*rows, *noisy], {KERNEL.identity: WORKLOAD})
    chosen = {e.problem["N"]: e for e in built.entries}
    assert chosen[4096].config == good
    assert chosen[4096].tied == 2
    assert chosen[1024].confidence == 1.0
    sure = [measured(4096, good, 1.01), measured(4096, other, 1.0)]
    (built,) = table_building.build([*rows, *sure], {KERNEL.identity: WORKLOAD})
    assert built.entries[1].config == other
    wild = [measured(4096, good, 1.5, spread=0.5), measured(4096, other, 1.4, spread=0.5)]
    (built,) = table_building.build([*rows, *wild], {KERNEL.identity: WORKLOAD})
    assert 0.3 < built.entries[1].confidence < 0.8


def test_other_layouts_ways_and_failures_stay_apart():
    def with_layout(layout):
        return lambda n: dataclasses.replace(problem(n), params=(("N", n), ("layout", layout)))

    rows = [measured(n, c, of=with_layout("nt")) for n in SIZES for c in SPACE.configs(problem(n), H200)]
    cold = [dataclasses.replace(m, timing=Timing(cache="cold")) for m in rows[:40]]
    failed = dataclasses.replace(rows[0], status="timeout", samples_us=())
    (built,) = table_building.build([*cold, *rows, failed], {})
    assert built.timing.cache == "warm"
    assert len(built.entries) == len(SIZES)
    assert built.default is None
    assert built.entries[0].space_size == 0
    assert built.entries[0].default_us is None
    assert "nothing was measured with layout=nn" in table.lookup(built, {"N": 2048, "layout": "nn"}).reason
    assert "default was not measured" in table.lookup(built, {"N": 2048, "layout": "nt"}).reason
    with pytest.raises(UserError, match="got N of scale, expected N, layout"):
        table.lookup(built, {"N": 2048})


def test_only_what_is_valid_is_interpolated():
    built = build(SIZES)
    free = table.lookup(built, {"N": 8192}).config
    bound = table.lookup(built, {"N": 8192}, is_valid=lambda c: c["TILE"] != free["TILE"])
    assert bound.config["TILE"] != free["TILE"]
    assert table.lookup(built, {"N": 8192}, is_valid=lambda c: False).config is None


@given(st.lists(st.floats(1.0, 100.0), min_size=30, max_size=30), st.integers(1024, 65536))
@settings(max_examples=40, deadline=None)
def test_it_never_recommends_what_it_expects_to_be_slower_than_the_default(us, n):
    """Whatever was measured: a pick is a config of the table, with a gain over 1."""
    configs = list(SPACE.configs(problem(1), H200))
    rows = [measured(size, c, u) for i, size in enumerate(SIZES) for c, u in zip(configs, us[i:] + us[:i], strict=True)]
    (built,) = table_building.build(rows, {KERNEL.identity: WORKLOAD})
    answer = table.lookup(built, {"N": n})
    if answer.config is not None and answer.entry is None:
        assert answer.config in built.candidates
        assert answer.gain > 1
    for entry in built.entries:
        assert entry.latency_us <= table.TIE * min(m.latency_us for m in rows if m.variant.problem == entry.problem)
        assert entry.config in built.ties(entry)


# ---- predicted entries ----


class Told:
    """A model that knows the truth up to a spread."""

    def __init__(self, spread=0.0, trust=True):
        self.spread, self.trust = spread, trust

    def predict(self, variants, device):
        return [self.one(true_us(v.config, v.problem["N"])) for v in variants]

    def one(self, us):
        points = [us * 2 ** (self.spread * x) for x in np.linspace(-2, 2, 41)]
        weights = np.exp(-(np.linspace(-2, 2, 41) ** 2) / 2)
        return Prediction(tuple(points), tuple(weights / weights.sum()), trust=self.trust, reason="as told")

    def update(self, measurements):
        raise NotImplementedError


def test_predicted_entries_state_what_the_model_knows():
    sure, _ = table_building.predicted(WORKLOAD, problem(8192), H200, Told(1e-6))
    best = min(SPACE.configs(problem(8192), H200), key=lambda c: true_us(c, 8192))
    assert sure.config == best
    assert sure.confidence == 1.0
    assert sure.default_us == pytest.approx(true_us(DEFAULT, 8192), rel=1e-3)
    unsure, _ = table_building.predicted(WORKLOAD, problem(8192), H200, Told(1.0))
    assert 0.02 < unsure.confidence < 0.5
    nothing, why = table_building.predicted(WORKLOAD, problem(8192), H200, Told(trust=False))
    assert nothing is None
    assert "as told" in why
    built = table_building.with_entries(build(SIZES), [unsure])
    answer = table.lookup(built, {"N": 8192})
    assert answer.config == unsure.config
    assert answer.reason.startswith("predicted, never measured")
    assert table.lookup(built, {"N": 8000}).reason.startswith("interpolated between 5 measured")


def test_errors_that_models_share_cancel():
    a, b = Told(1.0).one(1.0), Told(1.0).one(2.0)
    faster = a.probability_faster_than(b, correlation=CORRELATION)
    # log2 a - log2 b is -1 with a standard deviation of about sqrt(2 (1 - 0.7)) times the (truncated) 0.88
    assert faster == pytest.approx(0.93, abs=0.02)
    drawn_a, drawn_b = draws_us([a, b])
    assert (drawn_a < drawn_b).mean() == pytest.approx(faster, abs=0.02)  # draws and integral say the same
    assert probability_near_best([a, b], 0) >= (drawn_a < drawn_b).mean()
    assert probability_near_best([a, b], 0) + probability_near_best([a, b], 1) >= 1


# ---- files ----


def test_a_file_gives_back_the_tables_and_is_read_by_people(tmp_path):
    unsure, _ = table_building.predicted(WORKLOAD, problem(8192), H200, Told(1.0))
    tables = [table_building.with_entries(build(SIZES), [unsure]), build((7, 9), workloads={})]
    path = tmp_path / "table.json"
    table_files.write(tables, path)
    assert table_files.read(path) == tables
    first = path.read_bytes()
    table_files.write(table_files.read(path), path)
    assert path.read_bytes() == first
    lines = path.read_text().splitlines()
    assert '     "config": {"TILE": 16, "UNROLL": 2, "num_warps": 8},' in lines
    assert max(map(len, lines)) < 400


def places(value, path=()):
    """Every place of a document."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


SPOILED = [None, True, -1, 0, 1e308, "x", "\n", [], {}, [None], {"a": 1}, "x" * 5000, 10**40, -0.5, 1.5]
WRITTEN = {}


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_any_spoiled_file_is_one_line_or_a_table(tmp_path_factory, data):
    """One value of a good file becomes another, or goes: either it is refused in one line, or what is read is whole."""
    if not WRITTEN:
        WRITTEN["path"] = tmp_path_factory.mktemp("tables") / "table.json"
        table_files.write([build((1024, 4096, 16384))], WRITTEN["path"])
        WRITTEN["document"] = json.loads(WRITTEN["path"].read_text())
    path, spoiled = WRITTEN["path"], json.loads(json.dumps(WRITTEN["document"]))
    where = data.draw(st.sampled_from([p for p in places(spoiled) if p]))
    holder = spoiled
    for key in where[:-1]:
        holder = holder[key]
    if data.draw(st.booleans()):
        holder[where[-1]] = data.draw(st.sampled_from(SPOILED))
    else:
        del holder[where[-1]]
    path.write_text(json.dumps(spoiled))
    tables, refusal = [], ""
    try:
        tables = table_files.read(path)
    except UserError as error:
        refusal = str(error)
    assert len(refusal.splitlines()) == bool(refusal)
    assert not refusal or str(path) in refusal
    if refusal:
        return
    table_files.write(tables, path)
    assert table_files.read(path) == tables
    for one in tables:
        for entry in one.entries:
            assert 0 < entry.latency_us < math.inf
            assert list(entry.config.as_dict()) == [name for name, _ in one.schema]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected JSON"),
        ("{", "expected JSON"),
        ("[" * 100_000, "expected JSON"),
        ("[]", 'expected a table of "format"'),
        ('{"format": "costmodel table", "version": NaN, "tables": []}', "NaN is no number"),
        ('{"format": "costmodel table", "version": 2, "tables": []}', "of version 2, expected 1"),
        ('{"format": "costmodel table", "version": 1}', "expected it to state 'tables'"),
        ('{"format": "costmodel table", "version": 1, "tables": 3}', "expected a list"),
        ("9" * 5000, "expected JSON"),
        ("\udcff".encode("utf-8", "surrogateescape"), "expected JSON"),
    ],
)
def test_hostile_files_are_one_line(tmp_path, text, words):
    path = tmp_path / "table.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=words) as error:
        table_files.read(path)
    assert len(str(error.value).splitlines()) == 1


def test_a_huge_file_is_refused_unread(tmp_path):
    path = tmp_path / "table.json"
    with path.open("wb") as file:
        file.truncate(table_files.LARGEST_BYTES + 1)
    with pytest.raises(UserError, match="expected at most 64"):
        table_files.read(path)
    with pytest.raises(UserError, match="table build"):
        table_files.read(tmp_path / "nowhere.json")


# ---- forms of other tuners ----

MATMUL_SPACE = SearchSpace.of(
    BLOCK_M=(64, 128), BLOCK_N=(64, 128), BLOCK_K=(32, 64), GROUP_M=(8,), num_warps=(4, 8), num_stages=(3,)
)
MATMUL = Kernel("product", "triton", "def product(): pass", MATMUL_SPACE.params)


def product(m, n, k, layout="nn"):
    inputs = TensorSpec((m, k), "f16"), TensorSpec((k, n) if layout == "nn" else (n, k), "f16")
    params = (("M", m), ("N", n), ("K", k), ("layout", layout))
    return Problem("matmul", inputs, params, flops=2 * m * n * k, bytes=2 * (m * k + k * n + m * n))


def product_table(*problems, space=MATMUL_SPACE, kernel=MATMUL, device=H200):
    rows = [
        measured(p, c, 1.0 + i, of=lambda p: p, kernel=kernel, device=device)
        for p in problems
        for i, c in enumerate(reversed(list(space.configs(p, device))))
    ]
    (built,) = table_building.build(rows, {})
    return built


def loaded(path):
    spec = importlib.util.spec_from_file_location("tuned_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_triton_form_is_python_that_triton_takes(tmp_path):
    triton = pytest.importorskip("triton")
    built = build(SIZES)
    path = tmp_path / "tuned.py"
    path.write_text(table_formats.triton(built))
    tuned = loaded(path)
    config = tuned.config(N=4096)
    assert isinstance(config, triton.Config)
    assert config.kwargs == {"TILE": 32, "UNROLL": 2}
    assert config.num_warps == 8
    assert tuned.config(N=5).all_kwargs()["num_warps"] == 4  # the default
    assert tuned.KEY == ("N",)
    others = [triton.Config({"TILE": 16, "UNROLL": 1}, num_warps=4)]
    assert tuned.prune(others, {"x": 1, "N": 5}) == others
    (picked,) = tuned.prune(others, {"x": 1, "N": 4096}, grid=(1,))
    assert picked.all_kwargs() == config.all_kwargs()


def test_triton_form_of_a_hostile_table_runs_nothing(tmp_path):
    pytest.importorskip("triton")
    evil = '""" + __import__("os").abort() + """ {x} %s \'\'\''
    path = tmp_path / "tuned.py"
    path.write_text(table_formats.triton(dataclasses.replace(build(SIZES), kernel=evil, device=evil, created=evil)))
    assert vars(loaded(path))["KERNEL"] == evil
    named = dataclasses.replace(build(SIZES), schema=(("a b", (1,)),))
    with pytest.raises(UserError, match="expected a Python name"):
        table_formats.triton(named)


def test_inductor_form_is_found_by_inductors_own_reader(monkeypatch):
    torch = pytest.importorskip("torch")
    choices = pytest.importorskip("torch._inductor.lookup_table.choices")
    problems = [product(128, 512, 256), product(128, 512, 96, "nt")]
    written = json.loads(table_formats.inductor(product_table(*problems)))

    class Inputs:
        """What `LookupTableChoices` asks of an operator's inputs, here of real tensors."""

        def __init__(self, *tensors):
            self.tensors, self._scalars = tensors, {}

        def dtypes(self):
            return [t.dtype for t in self.tensors]

        def shapes_hinted(self):
            return [tuple(t.shape) for t in self.tensors]

        def strides_hinted(self):
            return [t.stride() for t in self.tensors]

        def device(self):
            return torch.device("cuda")

    reader = choices.LookupTableChoices()
    monkeypatch.setattr(choices.LookupTableChoices, "_get_device_key", staticmethod(lambda device: "NVIDIA H200"))
    monkeypatch.setattr(choices.LookupTableChoices, "_get_lookup_table", lambda self: written)
    a = torch.empty(128, 256, dtype=torch.float16)
    found = reader.lookup_template_configs(Inputs(a, a.new_empty(256, 512)), "mm", ["triton::mm"])
    assert found == {"triton::mm": [{"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "GROUP_M": 8, "num_warps": 8,
                                     "num_stages": 3, "EVEN_K": True}]}  # fmt: skip
    a = torch.empty(128, 96, dtype=torch.float16)
    assert not reader.lookup_template_configs(Inputs(a, a.new_empty(96, 512)), "mm", ["triton::mm"])
    found = reader.lookup_template_configs(Inputs(a, a.new_empty(512, 96).T), "mm", ["triton::mm"])
    assert found["triton::mm"][0]["EVEN_K"] is False
    monkeypatch.setattr(choices.LookupTableChoices, "_get_device_key", staticmethod(lambda device: "NVIDIA H100 PCIe"))
    assert not reader.lookup_template_configs(Inputs(a, a.new_empty(512, 96).T), "mm", ["triton::mm"])


def test_inductors_batched_key():
    key = table_formats.inductor_key("bmm", (("f32", (4, 8, 2), (16, 2, 1)), ("bf16", (4, 2, 8), (16, 8, 1))))
    assert key == "((torch.float32, [4, 8, 2], [16, 2, 1]), (torch.bfloat16, [4, 2, 8], [16, 8, 1]))+bmm"


MOE_SPACE = SearchSpace.of(
    BLOCK_SIZE_M=(16, 64), BLOCK_SIZE_N=(64,), BLOCK_SIZE_K=(64,), GROUP_SIZE_M=(1, 8), num_warps=(4,), num_stages=(3,)
)


def moe(e, n, m, dtype="bf16"):
    return Problem("moe", (TensorSpec((m, 512), dtype),), (("E", e), ("N", n), ("M", m)), flops=m, bytes=m)


def test_vllm_form(tmp_path):
    kernel = Kernel("fused_moe", "triton", "def moe(): pass", MOE_SPACE.params)
    problems = [moe(8, 7168, m) for m in (64, 1, 16)] + [moe(8, 14336, 4, "f8_e4m3")]
    files = table_formats.vllm(product_table(*problems, space=MOE_SPACE, kernel=kernel))
    assert set(files) == {
        "E=8,N=7168,device_name=NVIDIA_H200.json",
        "E=8,N=14336,device_name=NVIDIA_H200,dtype=fp8_w8a8.json",
    }
    read = json.loads(files["E=8,N=7168,device_name=NVIDIA_H200.json"])
    assert list(read) == ["1", "16", "64"]
    assert list(read["1"].items()) == [("BLOCK_SIZE_M", 64), ("BLOCK_SIZE_N", 64), ("BLOCK_SIZE_K", 64),
                                       ("GROUP_SIZE_M", 8), ("num_warps", 4), ("num_stages", 3)]  # fmt: skip
    assert "NVIDIA_A100-SXM4-80GB," not in table_formats.vllm_file(8, 1, "NVIDIA A100-SXM4-80GB", "bf16")
    assert table_formats.vllm_file(8, 1, "NVIDIA A100-SXM4-80GB", "i8").endswith(
        "device_name=NVIDIA_A100-SXM4-80GB,dtype=int8_w8a8.json"
    )


@pytest.mark.parametrize(
    ("write", "built", "words"),
    [
        (table_formats.inductor, lambda: build(SIZES), "expected a matrix product"),
        (table_formats.inductor, lambda: product_table(product(8, 8, 8), device=find("MI300X")), "expected an NVIDIA"),
        (table_formats.vllm, lambda: product_table(product(8, 8, 8)), "states M, N, K, layout and no E"),
        (table_formats.vllm, lambda: product_table(moe(8, 8, 8)), None),
        (
            table_formats.inductor,
            lambda: product_table(
                product(8, 8, 8), kernel=dataclasses.replace(MATMUL, schema=SPACE.params), space=SPACE
            ),
            "without BLOCK_M, BLOCK_N, BLOCK_K, num_stages",
        ),
        (table_formats.triton, lambda: dataclasses.replace(build(SIZES), language="cpp"), "expected a Triton one"),
    ],
)
def test_what_does_not_fit_a_form_is_one_line(write, built, words):
    if words is None:
        assert write(built())
        return
    with pytest.raises(UserError, match=words) as error:
        write(built())
    assert len(str(error.value).splitlines()) == 1


# ---- the commands ----


@pytest.mark.parametrize("name", ["matmul", "triton/matmul", "matmul__packed"])
def test_the_shipped_workload_of_a_record_is_found_by_its_text(name):
    """Two languages have a matmul; and a record may have any name, and a text that is not ours."""
    shipped = workloads.load(name)
    own = measured(8, shipped.default, 1.0, kernel=shipped.kernel)
    foreign = measured(8, shipped.default, 1.0, kernel=dataclasses.replace(shipped.kernel, source="another"))
    file = measured(8, shipped.default, 1.0, kernel=dataclasses.replace(shipped.kernel, name="../mine.py"))
    assert workloads_of([own]).keys() == {shipped.kernel.identity}
    assert workloads_of([own])[shipped.kernel.identity].default == shipped.default
    assert workloads_of([foreign, file]) == {}


def test_build_show_and_apply(tmp_path, capsys):
    """From a store to a Triton file, by the commands alone."""

    def ran(*arguments):
        app(["table", *map(str, arguments), "--json"], standalone_mode=False)
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    store, file = tmp_path / "s.sqlite", tmp_path / "t.json"
    with Store(store) as opened:
        opened.add(measured(n, c) for n in SIZES for c in SPACE.configs(problem(n), H200))
    built = ran("build", "--data", store, "--out", file)
    assert built["tables"][0]["entries"] == len(SIZES)
    shown = ran("show", file)
    assert [entry["config"]["TILE"] for entry in shown[0]["entries"]] == list(TILES)
    app(["table", "show", str(file)], standalone_mode=False)
    assert "UNROLL=2" in capsys.readouterr().out
    answer = ran("show", file, "--problem", "N=4096")
    assert answer["config"]["TILE"] == 32
    assert ran("show", file, "--problem", "N=9")["config"] is None
    done = ran("apply", file, "--to", "triton", "--out", tmp_path / "tuned.py")
    assert done["entries"] == len(SIZES)
    assert "(4096,): ({'TILE': 32, 'UNROLL': 2}, {'num_warps': 8})" in (tmp_path / "tuned.py").read_text()
    for arguments, words in (
        (("apply", file, "--to", "vllm", "--out", tmp_path), "no E, expected .* --to json"),
        (("apply", file, "--to", "tvm", "--out", tmp_path), "got --to tvm, expected one of triton"),
        (("show", file, "--problem", "Q=3"), "got Q of scale, expected N"),
        (("show", file, "--kernel", "other"), "got 0 tables"),
        (("build", "--out", file), "got no --data"),
        (("build", "--predict", "--out", file), "without --kernel and --problem"),
        (("build", "--data", store, "--problem", "N=7", "--out", file), "ask for others"),
    ):
        with pytest.raises(UserError, match=words) as error:
            app(["table", *map(str, arguments)], standalone_mode=False)
        assert len(str(error.value).splitlines()) == 1
