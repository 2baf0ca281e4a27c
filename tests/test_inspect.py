"""`costmodel inspect` and `collect --offline` as a user types them, on a kernel file of the user's own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from costmodel import devices
from costmodel.cli.inspecting import inspect
from costmodel.cli.shared import read_measurements
from costmodel.measure import requests
from costmodel.measure.gpu_compiling import GpuBuild, Launched
from costmodel.present import inspected_document, print_inspected
from costmodel.records import Config, Kernel, Measurement, Problem, TensorSpec, Timing, UserError, Variant
from costmodel.store import Store

ROOT = Path(__file__).resolve().parent.parent

PLAIN = """
import triton
import triton.language as tl


@triton.jit
def clamp(x):
    return tl.maximum(x, 0)


@triton.autotune(configs=[triton.Config({"BLOCK": 64})], key=["n"])
@triton.jit
def axpy(x_ptr, y_ptr, out_ptr, n, a, BLOCK: tl.constexpr, RELU: tl.constexpr = False):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = a * tl.load(x_ptr + i, i < n) + tl.load(y_ptr + i, i < n)
    if RELU:
        v = clamp(v)
    tl.store(out_ptr + i, v, i < n)
"""

OWN = """
import triton
import triton.language as tl

from costmodel.records import Config, Launch, Problem, SearchSpace, TensorSpec
from costmodel.workloads import gpu_workload


@triton.jit
def copy(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + i, tl.load(x_ptr + i, i < n), i < n)


def make_problem(*, n):
    return Problem("copy", (TensorSpec((n,), "f32"),), (("n", n),), n, 8 * n)


def launch(problem, config, inputs, outputs):
    return [Launch(copy, (1,), (*inputs, *outputs, problem["n"]), config.as_dict())]


WORKLOAD = gpu_workload(
    __file__,
    space=SearchSpace.of(BLOCK=(128, 100, 512), num_warps=(4,)),
    default=Config.of(BLOCK=512, num_warps=4),
    make_problem=make_problem,
    problems={"odd": {"n": 1001}},
    make_inputs=lambda problem, seed: (),
    outputs=lambda problem: problem.inputs,
    reference=lambda problem, inputs: inputs,
    launch=launch,
)
"""
SIGNATURE = "*fp16:16,*fp16:16,*fp16:16,i32:16,fp32"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    for name, text in (("plain.py", PLAIN), ("own.py", OWN), ("nothing.py", "x = 1\n")):
        (folder / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(folder / "cache"))
        yield folder


def costmodel(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-c", "from costmodel.cli import main; main()", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(ROOT), **environment),
        timeout=300,
    )


def inspected(capsys, **arguments):
    inspect(
        **{"config": None, "problem": None, "stage": None, "signature": None, "entry": "", **arguments}, as_json=True
    )
    return json.loads(capsys.readouterr().out)


def test_a_plain_file_is_inspected_by_its_signature(files, capsys):
    pytest.importorskip("triton")
    document = inspected(
        capsys, kernel=str(files / "plain.py"), signature=SIGNATURE, entry="axpy", device="A10", stage="sass",
        config="BLOCK=1024,num_warps=8,RELU=True",
    )  # fmt: skip
    (launch,) = document["launches"]
    assert (document["fits"], document["status"], document["arch"]) == (True, "compiled", "sm_86")
    assert launch["facts"]["threads_per_block"] == 256
    assert (launch["facts"]["global_loads"], launch["facts"]["global_stores"]) == (2, 1)
    assert launch["blocks_per_unit"] == 6
    assert list(launch["stage_s"]) == ["ttir", "ttgir", "llir", "ptx", "cubin"]
    assert "STG" in launch["text"]


def test_own_workload_is_inspected_and_collected_offline(files):
    pytest.importorskip("triton")
    done = costmodel("inspect", "own.py", "--device", "H200", cwd=files)
    assert done.returncode == 0, done.stderr
    assert "own n=1001 BLOCK=512,num_warps=4" in done.stdout
    assert "fits NVIDIA H200" in done.stdout
    store = files / "store.sqlite"
    arguments = ("collect", "own.py", "--offline", "--device", "H200", "--store", store, "--json")
    first, again = (costmodel(*arguments, cwd=files) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["compiled"] == {"compiled": 2, "compile_error": 1}
    assert json.loads(again.stdout)["compiled"] == {}
    with Store(store) as opened:
        rows = list(opened.measurements())
    assert sorted(m.status for m in rows) == ["compile_error", "compiled", "compiled"]
    assert all(dict(m.counters)["registers"] > 0 for m in rows if m.status == "compiled")
    listed = json.loads(costmodel("store", "ls", "--store", store, "--json", cwd=files).stdout)
    assert {row["status"]: row["variants"] for row in listed} == {"compiled": 2, "compile_error": 1}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kernel": "plain.py"}, ("has no WORKLOAD", '--entry axpy --signature "*fp16:16,*fp16:16,*fp16:16,i32,i32"')),
        ({"kernel": "plain.py"}, ("--config BLOCK=64,num_warps=4",)),
        ({"kernel": "nothing.py"}, ("defines no WORKLOAD",)),
        ({"kernel": "absent.py", "signature": "i32"}, ("no file", "absent.py")),
        ({"kernel": "cpp/matmul"}, ("matmul, a cpp kernel, expected Triton or CUDA",)),
        ({"kernel": "own.py", "device": "Gaudi 2"}, ("got device Intel Gaudi 2", "H200")),
        ({"kernel": "own.py", "config": "BLOCK=7"}, ("got BLOCK=7", "128, 100, 512")),
    ],
)
def test_a_mistake_says_what_to_type(files, monkeypatch, arguments, words):
    if arguments["kernel"] == "own.py":
        pytest.importorskip("triton")
    monkeypatch.chdir(files)
    given = {"device": "H200", "config": None, "problem": None, "stage": None, "signature": None, "entry": ""}
    with pytest.raises(UserError) as error:
        inspect(**{**given, **arguments}, as_json=False)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("signature", "entry", "config", "words"),
    [
        (SIGNATURE, "", "BLOCK=64", ("several jit functions", "--entry axpy")),
        (SIGNATURE, "axpi", "BLOCK=64", ("no jit function 'axpi'", "clamp, axpy")),
        ("*fp16,i32", "axpy", "BLOCK=64", ("got 2 types", "x_ptr, y_ptr, out_ptr, n, a")),
        (SIGNATURE, "axpy", "num_warps=4", ("no value of BLOCK", "--config BLOCK=64")),
        (SIGNATURE, "axpy", "BLOCK=64,warps=4", ("got 'warps'", "num_warps")),
        (SIGNATURE.replace("fp32", "fq32"), "axpy", "BLOCK=64", ("got type 'fq32'", "*fp16")),
        (SIGNATURE.replace("i32:16", "i32:8"), "axpy", "BLOCK=64", ("got 'i32:8'", ":16")),
    ],
)
def test_a_mistake_in_a_signature_says_what_to_type(files, monkeypatch, signature, entry, config, words):
    """Asked of the compiler itself: a process for each would take longer than all the rest."""
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton.knobs.compilation, "listener", None)
    from costmodel import workloads
    from costmodel.measure.triton_compile import TritonCompiler

    with pytest.raises(UserError) as error:
        TritonCompiler().function(files / "plain.py", entry, signature, workloads.parse_assignments(config), "sm_90")
    for word in words:
        assert word in str(error.value)


def test_no_gpu_and_no_device_is_one_line_of_advice(files):
    pytest.importorskip("triton")
    if devices.detect().kind == "gpu":
        pytest.skip("there is a GPU")
    store = files / "advice.sqlite"
    for arguments, advice in (
        (("inspect", "own.py"), "give --device"),
        (("collect", "own.py", "--offline", "--store", store), "give --device"),
        (("collect", "own.py", "--store", store), "--offline --device H200"),
    ):
        done = costmodel(*arguments, cwd=files)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("costmodel: got no GPU here")
        assert advice in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_what_was_only_compiled_is_listed_and_is_nobodys_measurement_or_failure(tmp_path):
    """Readers of latencies get the one row that ran, with the counters of its compile."""
    device, problem = devices.find("H200"), Problem("copy", (TensorSpec((8,), "f32"),), (("n", 8),), 8, 64)
    kernel = Kernel("copy", "triton", "text", (("BLOCK", (1, 2)),))
    variants = [Variant(kernel, problem, Config.of(BLOCK=block)) for block in (1, 2)]
    rows = [Measurement(v, device, Timing(), (), "compiled", counters=(("registers", 9.0),)) for v in variants]
    rows.append(Measurement(variants[0], device, Timing(), (), "ok", (3.0, 3.0)))
    with Store(tmp_path / "store.sqlite") as store:
        assert store.add(rows) == 3
        assert set(store.summary()["status"]) == {"compiled", "ok"}
        card = (store.export(tmp_path / "out"), (tmp_path / "out" / "README.md").read_text())[1]
    assert card.partition("## Failures by kind")[2].strip().startswith("None.")
    for path in (tmp_path / "store.sqlite", tmp_path / "out"):
        (only,) = read_measurements([path])
        assert (only.status, only.variant, dict(only.counters)) == ("ok", variants[0], {"registers": 9.0})
    assert requests.already(rows) == {(variants[0], 0)}


def build(shared=0, local_loads=0):
    facts = (
        ("registers", 40.0), ("stack_bytes", 8.0), ("shared_bytes", float(shared)), ("threads_per_block", 128.0),
        ("local_loads", float(local_loads)), ("local_stores", float(local_loads)),
    )  # fmt: skip
    return GpuBuild("compiled", (Launched("f", facts, {"ttir": 0.01}, (), {}),), 0.01)


def test_the_table_says_why_a_config_does_not_fit_and_warns_of_spills(capsys):
    device = devices.find("RTX 3090")
    print_inspected(inspected_document(build(shared=120_000, local_loads=7), device, "matmul"))
    said = capsys.readouterr().out
    assert "120000 of 101376 B" in said
    assert "does not fit NVIDIA GeForce RTX 3090: 120000 B of shared memory a block" in said
    assert "warning: 7 loads and 7 stores of spilled registers" in said
    print_inspected(inspected_document(GpuBuild("compile_error", error="no"), device, "matmul"))
    assert "does not compile for NVIDIA GeForce RTX 3090: no" in capsys.readouterr().out
    print_inspected(inspected_document(build(), device, "matmul"))
    said = capsys.readouterr().out
    assert "warning" not in said
    assert "12 (100% of its threads)" in said
