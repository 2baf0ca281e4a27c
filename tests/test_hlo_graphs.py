"""Torch modules as HLO, the generator of architectures, and programs timed under their engines, well and badly made."""

import dataclasses
import json
from collections import Counter
from importlib import util
from pathlib import Path

import pytest
import torch
from contracts import RunnerContract
from torch import nn

from costmodel import architectures, workloads
from costmodel.aten import trace
from costmodel.graph import facts, parse, to_text
from costmodel.measure import graph_child
from costmodel.records import Config, Timing, UserError, Variant

graphs = workloads.load_module(workloads.shipped("collectors") / "hlo_graphs.py")
GOLDEN = Path(__file__).parent / "golden" / "mlp.hlo"
QUICK = Timing(warmup_us=100.0, min_samples=3, relative_error=0.5)
FAMILIES = architectures.families()
needs_jax = pytest.mark.skipif(not util.find_spec("jax"), reason="needs jax")


def traced(function, *inputs):
    """The program of a plain function."""

    class Module(nn.Module):
        def forward(self, *x):
            return function(*x)

    return trace(Module(), inputs)


def entry_opcodes(program):
    return [i.opcode for i in program.module.entry_computation.instructions if i.opcode not in ("parameter", "tuple")]


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, device="meta", dtype=dtype)


# ---------------------------------------------------------------------------------------------------------------- text


def test_an_mlp_reads_as_the_golden_text_says():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.LayerNorm(16), nn.Linear(16, 4, bias=False))
    graph = graphs.of_torch(model, (meta(2, 8),), name="mlp")
    assert graph.hlo == GOLDEN.read_text()
    assert to_text(parse(graph.hlo), percent=False) == graph.hlo


def test_the_numbers_of_a_product_are_the_textbooks():
    graph = graphs.of_torch(nn.Linear(64, 48, bias=False), (torch.zeros(32, 64),))
    assert graph.problem.flops == 2 * 32 * 64 * 48
    assert graph.problem.bytes == 4 * (64 * 48 + 32 * 64 + 32 * 48)
    assert [(spec.shape, spec.dtype) for spec in graph.problem.inputs] == [((64 * 48 + 32 * 64,), "f32")]


def test_a_fusion_holds_the_arithmetic_of_its_operator():
    program = trace(nn.Linear(64, 48).to(torch.bfloat16), (meta(32, 64, dtype=torch.bfloat16),))
    assert entry_opcodes(program) == ["fusion"]
    assert facts(program.module).flops == 2 * 32 * 64 * 48 + 32 * 48
    assert facts(program.module).bytes_written == 2 * 32 * 48


def test_a_table_that_is_looked_up_counts_what_is_looked_up():
    graph = graphs.of_torch(nn.Embedding(1000, 16), (torch.tensor([[3, 999]]),))
    assert graph.problem.bytes == 2 * 8 + 2 * (2 * 16 * 4)
    assert next(a for a in graph.arguments if a["role"] == "integers")["high"] == 999


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"), [(1, 0, 1, 1), (2, 1, 1, 1), (1, 2, 2, 2), ((2, 1), (0, 1), 1, 4)]
)
def test_a_convolution_has_torchs_shape_and_flops(stride, padding, dilation, groups):
    layer = nn.Conv2d(4, 8, 3, stride, padding, dilation, groups, bias=False)
    program = trace(layer, (torch.zeros(2, 4, 11, 9),))
    expected = layer(torch.zeros(2, 4, 11, 9))
    convolution = program.module.entry_computation.instructions[-2]
    assert (convolution.opcode, convolution.shape.dims) == ("convolution", tuple(expected.shape))
    assert facts(program.module).flops == 2 * expected.numel() * (4 // groups) * 9


def test_a_recurrent_layer_is_a_loop_that_knows_its_length():
    lstm = nn.LSTM(8, 16, batch_first=True)
    program = trace(lstm, (torch.zeros(3, 7, 8),))
    assert "custom-call" not in {i.opcode for c in program.module.computations for i in c.instructions}
    loops = [i for c in program.module.computations for i in c.instructions if i.opcode == "while"]
    assert [loop.attribute("backend_config") for loop in loops] == ['{"known_trip_count":{"n":"7"}}']
    product = 2 * 3 * 7 * 4 * 16 * (8 + 16)
    assert product < facts(program.module).flops < 1.2 * product


# ------------------------------------------------------------------------------------------ the program is the module's


class Wasteful(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.wasted = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        self.wasted(x).tanh()
        return self.used(x)


def test_dead_code_is_neither_printed_nor_run():
    program = trace(Wasteful(), (torch.zeros(2, 8),))
    assert entry_opcodes(program) == ["fusion"]
    assert [argument.name for argument in program.arguments] == ["p_used_weight", "p_used_bias", "x"]
    assert program.code.count("torch.ops.aten") == 1


def test_what_runs_is_the_model():
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)).eval()
    x = torch.randn(3, 8)
    program = trace(model, (x,))
    forward = graph_child.function(program.code)
    with torch.no_grad():
        (y,) = forward(None, *model.state_dict().values(), x)
        assert torch.equal(y, model(x))


def test_writing_in_place_is_read_as_a_new_value():
    relu = traced(lambda x: nn.functional.relu_(x * 2) + 1, torch.zeros(4))
    assert entry_opcodes(relu).count("fusion") == 3
    assert "relu" in relu.code
    view = traced(lambda x: (lambda y: (y[:2].mul_(3), y.sum())[1])(x * 2), torch.zeros(4))
    kept = {i.opcode for c in view.module.computations for i in c.instructions}
    assert "dynamic-update-slice" in kept or "pad" in kept or "concatenate" in kept


def test_copies_are_told_from_views():
    assert entry_opcodes(traced(lambda x: x.reshape(8), torch.zeros(2, 4))) == ["reshape"]
    assert entry_opcodes(traced(lambda x: x.t().reshape(8), torch.zeros(2, 4))) == ["transpose", "copy", "reshape"]
    assert entry_opcodes(traced(lambda x: x.t().contiguous(), torch.zeros(2, 4))) == ["transpose", "copy"]


def test_an_operator_without_hlo_is_a_custom_call():
    program = traced(torch.linalg.inv, torch.eye(4))
    assert program.unmapped
    assert all(name.startswith("aten.") for name in program.unmapped)
    assert "custom-call" in entry_opcodes(program)
    assert to_text(parse(to_text(program.module))) == to_text(program.module)


def test_dropout_is_nothing_but_where_it_drops():
    dropped = traced(lambda x: nn.functional.dropout(x, 0.5, training=True) + 1, torch.zeros(4))
    assert dropped.unmapped == ("aten.dropout.default",)
    kept = traced(lambda x: nn.functional.dropout(x, 0.5, training=False) + 1, torch.zeros(4))
    assert kept.unmapped == ()
    assert entry_opcodes(kept) == ["fusion"]


def test_complex_numbers_that_are_compared_are_a_custom_call():
    assert traced(lambda x: torch.complex(x, x) == 0, torch.zeros(4)).unmapped[-1].startswith("aten.eq")


def test_a_type_without_a_name_in_hlo_is_one_line():
    with pytest.raises(UserError, match=r"^got a tensor of torch\.float8_e4m3fn, expected one of .*convert it"):
        traced(lambda x: x.to(torch.float32), meta(4, dtype=torch.float8_e4m3fn))


def test_a_module_that_torch_does_not_export_is_one_line():
    with pytest.raises(UserError, match=r"^got Module, which torch.export does not take .*expected a module") as caught:
        traced(lambda x: x if x.sum() > 0 else -x, torch.ones(2))
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------------- generator


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_prints_what_reads_back_and_has_no_dead_line(family):
    built = architectures.build(f"{family}:1")
    graph = graphs.of_torch(built.model, built.inputs, name=f"{family}:1", origin=family)
    module = parse(graph.hlo)
    assert to_text(module, percent=False) == graph.hlo
    used = {operand for i in module.entry_computation.instructions for operand in i.operands}
    assert [i.name for i in module.entry_computation.instructions if i.name not in used and not i.is_root] == []
    assert len(module.entry_computation.parameters) == len(graph.arguments)
    assert graph.unmapped == ()
    assert graph.problem.flops > 0
    again = architectures.build(f"{family}:1")
    assert graphs.of_torch(again.model, again.inputs, name="again").hlo == graph.hlo


def test_names_mix_families_by_their_shares_and_begin_alike():
    names = architectures.names(count=1600)
    assert len(set(names)) == 1600
    assert architectures.names(count=90) == names[:90]
    drawn = Counter(name.partition(":")[0] for name in names)
    assert set(drawn) == set(FAMILIES)
    assert abs(drawn["attention"] - 2 * drawn["norm"]) <= 10
    assert set(architectures.names(count=9, only=["mlp"])) >= {"mlp:0", "mlp:0:bf16", "mlp:4"}


def test_a_version_differs_in_what_its_name_says_alone():
    single, half = (graphs.of_torch(b.model, b.inputs) for b in map(architectures.build, ("mlp:1:f32", "mlp:1:bf16")))
    shapes = [[a["shape"] for a in graph.arguments] for graph in (single, half)]
    assert shapes[0] == shapes[1]
    assert {a["dtype"] for a in half.arguments} == {"bfloat16"}
    wide = architectures.build("mlp:1:f32:b64")
    assert wide.inputs[0].shape[0] == 64
    assert wide.inputs[0].shape[1:] == architectures.build("mlp:1").inputs[0].shape[1:]


@pytest.mark.parametrize("name", ["mlp", "mlp:x", "nothing:1", "mlp:1:f64", "mlp:1:b0"])
def test_a_name_that_is_none_is_one_line(name):
    with pytest.raises(UserError, match=r"^got .*expected"):
        architectures.build(name)


# -------------------------------------------------------------------------------------------------------------- timing


def graph_of(code, *, shape=(64,), **changes):
    """A program whose torch code misbehaves; its text is that of a relu."""
    good = graphs.of_torch(nn.ReLU(), (torch.zeros(shape),), name="good")
    text = good.hlo.replace("HloModule module", f"HloModule {changes.pop('name')}")
    return dataclasses.replace(good, code=f"def forward(self, x):\n    {code}\n", hlo=text, **changes)


BAD = {
    "raises": ("raise ValueError('no')", "launch_error"),
    "hangs": ("while True: pass", "timeout"),
    "dies": ("__import__('ctypes').string_at(0)", "crash"),
    "leaves": ("__import__('os')._exit(3)", "crash"),
    "eats": ("return (torch.zeros(1 << 40),)", "crash"),
    "nan": ("return (x / 0 * 0,)", "wrong_result"),
    "changes": ("return (torch.rand(64),)", "wrong_result"),
}
GOOD = {"eager": nn.Sequential(nn.Linear(8, 8), nn.ReLU()), "norm": nn.LayerNorm(8)}


@pytest.fixture(scope="module")
def programs():
    good = {name: graphs.of_torch(model, (torch.zeros(4, 8),), name=name) for name, model in GOOD.items()}
    return good | {name: graph_of(code, name=name) for name, (code, _) in BAD.items()}


@pytest.fixture(scope="module")
def cpu(programs):
    with graphs.runner(programs.values(), timing=QUICK, timeout_s=4.0) as runner:
        yield runner


class TestGraphRunner(RunnerContract):
    @pytest.fixture
    def runner(self, cpu):
        return cpu

    @pytest.fixture
    def good(self, programs):
        return [graphs.variant_of(programs[name], "eager") for name in GOOD]

    @pytest.fixture
    def bad(self, programs):
        found = [(graphs.variant_of(programs[name], "eager"), status) for name, (_, status) in BAD.items()]
        unknown = Variant(programs["norm"].kernel, programs["norm"].problem, Config.of(engine="abacus"))
        return [*found, (unknown, "launch_error")]

    def test_memory_that_ran_out_is_called_so(self, runner, programs):
        (measured,) = runner.measure([graphs.variant_of(programs["eats"], "eager")])
        assert "out of memory" in measured.error


def test_a_collection_resumes_and_keeps_what_cannot_be_made(monkeypatch):
    real = architectures.build

    def build(name):
        if name == "mlp:3":
            raise RuntimeError("no such layer")
        return real(name)

    monkeypatch.setattr(architectures, "build", build)
    names = ["mlp:2", "mlp:3", "norm:0"]
    taken = list(graphs.collect(graphs.CollectRequest(names=names, timing=QUICK)))
    passes = Counter((m.variant.kernel.name, m.status) for m in taken)
    assert passes["mlp:2", "ok"] >= 2
    assert passes["norm:0", "ok"] >= 2
    assert passes["mlp:3", "compile_error"] == 1
    assert next(m.error for m in taken if m.status != "ok") == "cannot be made: RuntimeError: no such layer"
    skip, known = graphs.already(taken), {m.variant.kernel.name: m.variant for m in taken}
    assert list(graphs.collect(graphs.CollectRequest(names=names, timing=QUICK, skip=skip, known=known))) == []


@pytest.mark.parametrize("fields", [{"engine": "abacus"}, {"passes": 0}])
def test_a_request_that_makes_no_sense_is_one_line(fields):
    with pytest.raises(UserError, match=r"^got .*expected"):
        graphs.CollectRequest(names=["mlp:0"], **fields)


# ----------------------------------------------------------------------------------------------------------------- XLA


@needs_jax
@pytest.mark.parametrize("family", FAMILIES)
def test_xla_comes_to_torchs_answers_from_the_text(family, cpu):
    built = architectures.build(f"{family}:1:f32")
    graph = graphs.of_torch(built.model, built.inputs, name=f"{family}:1")
    cpu.graphs[graph.kernel] = graph
    cpu.timeout_s = 60.0
    (measured,) = cpu.measure([graphs.variant_of(graph, "xla")])
    assert (measured.status, measured.error) == ("ok", "")


@needs_jax
def test_a_jax_function_is_a_program_without_machine_or_layout(cpu):
    import jax.numpy as jnp

    graph = graphs.of_jax(lambda x, y: jnp.tanh(x @ y), jnp.zeros((4, 8)), jnp.zeros((8, 2)), name="f")
    assert "{1,0}" not in graph.hlo
    assert "metadata" not in graph.hlo
    assert graph.problem.flops == 2 * 4 * 8 * 2 + 8
    cpu.graphs[graph.kernel] = graph
    xla, eager = cpu.measure([graphs.variant_of(graph, engine) for engine in ("xla", "eager")])
    assert xla.status == "ok"
    assert eager.status == "compile_error"


def test_the_command_times_graphs_into_a_store_once(tmp_path):
    from typer.testing import CliRunner

    from costmodel.cli import app

    asked = ["collect", "graphs", "--count", "1", "--family", "norm", "--passes", "1", "--json"]
    asked += ["--store", str(tmp_path / "graphs.sqlite")]
    first, second = (json.loads(CliRunner().invoke(app, asked).stdout.splitlines()[-1]) for _ in range(2))
    assert first["measured"] == {"ok": 1}
    assert second["measured"] == {}
    wrong = CliRunner().invoke(app, [*asked, "--engine", "abacus"])
    assert isinstance(wrong.exception, UserError)
